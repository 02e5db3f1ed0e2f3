"""Ends runs with SIGKILL at chosen moments, resumes them, and compares what they leave with an undisturbed run's.

    python tests/killing.py FOLDER --points 50 --also "evaluation.seeds=3"

prints one JSON object: ``messages`` (training messages of the undisturbed run) and ``points``, where each says in which
phase, at which event the run died, how many training messages were sent in all, and what differs (nothing should).

Every run is a forked child of this process, which has imported everything and computed nothing. Its grid is in process.
A moment is the n-th event of a phase (a message to a node, a file half written, a file written but not yet in place, a
file just put in place) or a time drawn uniformly over the run's length; both from the point's own seed.
"""

import argparse
import functools
import io
import json
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import matplotlib.backends.backend_svg  # noqa: F401 (these are imported once for all children, which need them)
import scipy.stats  # noqa: F401
import sklearn.datasets
import sklearn.linear_model  # noqa: F401
import statsmodels.stats.multitest  # noqa: F401
import torch
import torchmetrics  # noqa: F401
from matplotlib import figure

from fedforget import experiment, messages, report, store
from fedforget.client_app import app
from fedforget.config import compose
from fedforget.evaluation import ORACLE
from fedforget.grid import InProcessGrid
from fedforget.run.auditing import Auditing
from fedforget.run.trajectories import Trajectories

PHASES = ("learning", "oracle", "unlearning", "audit", "report")
# Further rounds after the audit, relearning, and a rehearsal in which strategies are tuned are all in it.
RUN = (
    "model=linear learning.rounds=6 partition.clients=5 evaluation=smoke evaluation.seeds=2 engine.device=cpu "
    "evaluation.durability=[1] evaluation.relearn=1 tuning.trials=2 "
    "learning.learner=fedavgm learning.options='{server_momentum: 0.5}' "
    "strategies=[finetune,federaser,amnesiac] strategy.finetune.rounds=3"
)


class Watch:
    """Counts the events of each phase, and ends the process at one of them.

    Args:
        last: ``(phase, n)``: at the n-th event of the phase the process ends; ``None``: never.
    """

    def __init__(self, log: Path, last: tuple[str, int] | None = None) -> None:
        self.log, self.last, self.counts = log, last, Counter()
        self.phase, self.lock = threading.local(), threading.Lock()

    def event(self, what: str) -> None:
        """Something happens, in this thread's phase."""
        name = getattr(self.phase, "name", "")
        with self.lock, self.log.open("a") as log:
            self.counts[name] += 1
            log.write(f"{what} {name}\n")
            log.flush()
            if self.last == (name, self.counts[name]):
                os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def during(self, name: str):
        """This thread works in the phase ``name``."""
        before, self.phase.name = getattr(self.phase, "name", ""), name
        yield
        self.phase.name = before

    def wrapped(self, function, phase):
        """``function`` in the phase that ``phase`` makes of its arguments."""

        @functools.wraps(function)
        def inner(*arguments, **named):
            with self.during(phase(*arguments)):
                return function(*arguments, **named)

        return inner

    def install(self) -> None:
        """Watch this process: its phases, its messages and its files."""
        learner = Trajectories
        learner.original = self.wrapped(learner.original, lambda *_: "learning")
        learner.serve = self.wrapped(
            learner.serve, lambda _, k, spec, *rest: "oracle" if spec.label == ORACLE else "unlearning"
        )
        Auditing.audits = self.wrapped(Auditing.audits, lambda *_: "audit")
        experiment.assess = self.wrapped(experiment.assess, lambda *_: "report")
        report.write = self.wrapped(report.write, lambda *_: "report")
        replace = store._replace

        def watched(path, write):
            def half(temporary):
                temporary.write_bytes(b"\x08\x00\x00\x00\x00\x00")  # what a killed writer leaves
                self.event("half")
                write(temporary)
                self.event("written")

            replace(path, half)
            self.event("in place")

        store._replace = watched

    def answer(self, message, context):
        """The ClientApp, watched."""
        if message.metadata.message_type == messages.TRAIN:
            self.event("train")
        return app(message, context)


def run(output: Path, log: Path, also: str, last: tuple[str, int] | None = None, seconds: float | None = None) -> int:
    """One run in a child, which ends itself at ``last``, or is ended after ``seconds``; returns its wait status.

    ``also``: overrides beside `RUN`.
    """
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = output.with_suffix(".said").open("a")
            watch = Watch(log, last)
            watch.install()
            experiment.Experiment(compose("quickstart", f"{RUN} {also}"), InProcessGrid(watch.answer, 2), output).run()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 (a child must never go on as its parent)
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def trace(output: Path) -> dict[str, object]:
    """Everything that a run leaves, by file: its content to the bit, but for the seconds that things took."""
    left: dict[str, object] = {}
    for path in sorted(output.rglob("*")):
        name = str(path.relative_to(output))
        if path.name == "journal" or path.name.startswith("."):
            left[name] = "something unfinished"
        elif path.suffix == ".safetensors":
            tensors, metadata = store.load_tensors(path)
            content = {key: tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for key, tensor in tensors.items()}
            left[name] = (content, timeless(metadata))
        elif path.name == "complete.json":
            left[name] = timeless(store.load_json(path))
        elif path.name == "results.jsonl":
            left[name] = timeless(store.load_lines(path))
        elif path.name == "report.html":
            left[name] = re.sub(r"<td>[\d.e+-]+s</td>", "<td>seconds</td>", path.read_text())
        elif path.is_file() and not name.startswith("store/locks"):
            left[name] = path.read_bytes()
    return left


def timeless(value: object) -> object:
    """A JSON value without the seconds that things took, and what is made of them."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if not key.startswith("seconds")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    """Run the points and print what happened."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--points", type=int, default=7, help="how many moments")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first of them")
    parser.add_argument("--also", default="", help="further overrides of the run")
    options = parser.parse_args()
    for kind in ("svg", "png"):  # so that children find fonts loaded
        figure.Figure().savefig(io.BytesIO(), format=kind)
    options.folder.mkdir(parents=True, exist_ok=True)
    undisturbed, log = options.folder / "undisturbed", options.folder / "undisturbed.log"
    began = time.monotonic()
    assert run(undisturbed, log, options.also) == 0
    length = time.monotonic() - began
    lines = log.read_text().splitlines()
    totals = Counter(line.rpartition(" ")[2] for line in lines)
    expected = trace(undisturbed)
    points = []
    for point in range(options.first, options.first + options.points):
        draw = random.Random(point)
        output, log = options.folder / str(point), options.folder / f"{point}.log"
        log.touch()
        place = point % (len(PHASES) + 1)
        if place < len(PHASES):
            last = (PHASES[place], draw.randrange(1, totals[PHASES[place]] + 1))
            status = run(output, log, options.also, last)
        else:
            status = run(output, log, options.also, seconds=draw.random() * length)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        before = log.read_text().splitlines()
        resumed = run(output, log, options.also)
        found = trace(output)
        differs = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        points.append(
            {
                "killed": killed,
                "phase": before[-1].rpartition(" ")[2] if before else "",
                "event": before[-1].rpartition(" ")[0] if before else "",
                "timed": place == len(PHASES),
                "resumed": resumed == 0,
                "messages": sum(line.startswith("train") for line in log.read_text().splitlines()),
                "differs": differs,
            }
        )
        print(json.dumps(points[-1]), file=sys.stderr, flush=True)
    print(
        json.dumps({"messages": sum(line.startswith("train") for line in lines), "seconds": length, "points": points})
    )


if __name__ == "__main__":
    main()
