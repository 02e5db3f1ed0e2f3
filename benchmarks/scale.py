"""What grows and what must not: many clients, much work, and the record of a large model.

    python benchmarks/scale.py [--parts clients work history] [--rounds 0]

clients  100 clients a round of 100, 1,000 and 10,000, which share the same 40,000 random 8x8 images; each trains two
         batches of two, so the work of a round is the same. Seconds a round and memory may grow by at most a quarter.
         ``loading`` is the time until the federation has described itself: Ray starts, and the server reads and
         divides the data.
work     A federation of 1,000 clients: more clients a round, and more steps a client. The seconds of a client (of a
         step) may not grow with their number by more than a tenth.
history  The record of an 11 M-parameter model, ten clients a round, through `Recording` and `History` alone: synthetic
         updates are written round after round and read one by one in another process. Beyond what it holds before, and
         whatever the number of rounds, a process may use at most the memory of two rounds of float32 vectors. A hundred
         rounds take 49 GB in float32; ``--rounds`` says how many are really written (0: ten, or three if pruned), from
         which the bytes of 100 follow, as every round has the same.

Nothing is trained for long enough to learn; every federation runs in Flower's simulation, in a fresh process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
from common import CORES, SEEDS, WARM_UP, in_fresh_process, met, print_head, row, simulate, write_random
from flwr.serverapp import Grid

from fedforget import models
from fedforget.client_app import app as fedforget_app
from fedforget.cohort import Cohort, describe
from fedforget.data import DataConfig
from fedforget.data.partition import PartitionConfig
from fedforget.data.sources import TaskConfig
from fedforget.exchange import Replies, Reply
from fedforget.grid import EngineConfig, choose
from fedforget.history import History, HistoryConfig, Recording
from fedforget.messages import Task
from fedforget.params import Layout, Params
from fedforget.routines import LocalConfig
from fedforget.strategy import find

IMAGES = 40_000  # four for each of 10,000 clients: no client needs a second epoch for its two batches
CLIENTS = (100, 1_000, 10_000)
ASKED, STEPS = 100, 2  # where they are not varied
SHARES, LENGTHS = (50, 200, 400), (8, 32)  # clients a round, steps a client: the work is varied
ROUNDS = 10
FORMS = {
    "float32": (HistoryConfig("all"), 10),
    "bfloat16": (HistoryConfig("all", "bfloat16"), 10),
    "float32, largest 10 %": (HistoryConfig("all", keep=0.1), 3),
}
COHORT = 10


# ---------------------------------------------------------------------- clients and work


def federation(clients: int, tasks: list[tuple[int, int]], folder: str) -> dict[str, list[float]]:
    """Train rounds of ``(clients a round, steps a client)``.

    Returns:
        ``seconds`` a round of each; ``loading`` seconds; ``server`` and ``worker``: MB in memory after the first.
    """
    torch.set_num_threads(1)

    def main(grid: Grid) -> dict[str, list[float]]:
        start = time.perf_counter()
        data = DataConfig(TaskConfig("folder", folder), PartitionConfig("iid", clients, holdout=0.0))
        chosen = choose(grid, EngineConfig(nodes=CORES), data)
        result: dict[str, list[float]] = {"seconds": []}
        for asked, steps in tasks:
            config, local = models.ModelConfig("mlp"), LocalConfig(steps=steps, batch_size=2)
            task = Task(data, config, local, "cpu")
            known = describe(chosen, task)
            result.setdefault("loading", [time.perf_counter() - start])
            model = Params.from_module(models.initial(config, (1, 8, 8), 10, 0))
            cohort, stamps = Cohort(chosen, known, task, model.layout, SEEDS, asked / clients), []
            for _ in find("none")().learn(cohort, model, WARM_UP + ROUNDS):
                stamps.append(time.perf_counter())
            assert len(cohort.last_replies.weights()) == asked, "some clients did not answer"
            assert cohort.cost.client_steps == (WARM_UP + ROUNDS) * asked * steps, "some clients did not train"
            result["seconds"].append(float(statistics.median(np.diff(stamps)[WARM_UP - 1 :])))
            if "server" not in result:
                me = psutil.Process()
                workers = [process for process in me.children(recursive=True) if "ray::_Worker" in process.name()]
                result["server"] = [me.memory_info().rss / 1e6]
                result["worker"] = [max(process.memory_info().rss for process in workers) / 1e6]
        return result

    return simulate(main, fedforget_app, CORES, CORES)


def clients_part(folder: str) -> None:
    """Print the rows of the part ``clients``."""
    first: dict[str, float] = {}
    for number in CLIENTS:
        found = {
            name: values[0] for name, values in in_fresh_process(federation, number, [(ASKED, STEPS)], folder).items()
        }
        first = first or found
        flat = [found[name] <= 1.25 * first[name] for name in ("seconds", "server", "worker")]
        what = f"{ASKED} of {number:,} clients, {STEPS} steps"
        cells = (
            f"{found['seconds']:.4f} s a round",
            f"server {found['server']:.0f} MB, worker {found['worker']:.0f} MB",
        )
        verdict = "" if found is first else " / ".join(map(met, flat))
        print(
            row(what, *cells, f"loading {found['loading']:.1f} s", "<= 1.25 of the first: s / MB / MB", verdict),
            flush=True,
        )


def work_part(folder: str) -> None:
    """Print the rows of the part ``work``."""
    tasks = [(SHARES[0], STEPS), *((asked, STEPS) for asked in SHARES[1:]), *((ASKED, steps) for steps in LENGTHS)]
    seconds = in_fresh_process(federation, 1_000, tasks, folder)["seconds"]
    each = [spent / asked / steps for (asked, steps), spent in zip(tasks, seconds, strict=True)]
    for number, ((asked, steps), spent) in enumerate(zip(tasks, seconds, strict=True)):
        against = each[0] if number < len(SHARES) else each[len(SHARES)]
        verdict = "" if against is each[number] else met(each[number] <= 1.1 * against)
        what = f"{asked} of 1,000 clients, {steps} steps"
        per = f"{1e3 * each[number]:.3f} ms a client and step"
        print(row(what, f"{spent:.4f} s a round", "", per, "<= 1.1 of the first", verdict), flush=True)


# ---------------------------------------------------------------------- history


def _layout() -> Layout:
    return Layout.of(models.build(models.ModelConfig("resnet18"), (3, 32, 32), 10))


def _recording(form: str, folder: str) -> Recording:
    return Recording(Path(folder), _layout(), FORMS[form][0], (), SEEDS)


def _peak() -> float:
    """The most memory that this process has used so far, MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def write(form: str, rounds: int, folder: str) -> tuple[float, float]:
    """Record so many rounds; seconds a round, and MB used at most beyond the updates in hand."""
    torch.set_num_threads(1)
    recording = _recording(form, folder)
    size = recording.layout.size
    vectors = [torch.randn(size, generator=SEEDS.torch("update", client)) for client in range(COHORT)]
    replies = Replies(Reply(k, Params(vector, recording.layout), 1, 0.0) for k, vector in enumerate(vectors))
    model = Params(torch.zeros(size), recording.layout)
    before, start = psutil.Process().memory_info().rss / 1e6, time.perf_counter()
    recording.begin(model)
    for round in range(1, rounds + 1):
        recording.add(round, model, replies, [], round == rounds)
    return (time.perf_counter() - start) / rounds, _peak() - before


def read(form: str, rounds: int, folder: str) -> tuple[float, float, int]:
    """Read every recorded update once, in order; as `write`, and the bytes billed for what was recorded."""
    torch.set_num_threads(1)
    recording = _recording(form, folder)
    history = History(recording, rounds, Params(torch.zeros(recording.layout.size), recording.layout))
    before, start = psutil.Process().memory_info().rss / 1e6, time.perf_counter()
    for round in range(1, rounds + 1):
        for client in history.cohort(round):
            assert history.update(round, client).flat.count_nonzero() > 0
    spent, most = (time.perf_counter() - start) / rounds, _peak() - before
    return spent, most, history.bytes_stored()


def history_part(rounds: int) -> None:
    """Print the rows of the part ``history``."""
    limit = 2 * (COHORT + 1) * 4 * _layout().size / 1e6
    for form, (_, usual) in FORMS.items():
        number = rounds or usual
        with TemporaryDirectory() as folder:
            write_seconds, write_memory = in_fresh_process(write, form, number, folder)
            on_disk = {file.name: os.path.getsize(file) for file in Path(folder).glob("round-*")}
            read_seconds, read_memory, billed = in_fresh_process(read, form, number, folder)
        initial = on_disk[min(on_disk)]
        hundred = (initial + 100 * on_disk[max(on_disk)]) / 1e9
        assert abs(billed / sum(on_disk.values()) - 1) < 0.01, "the bill differs from the files"
        what = f"11 M x {COHORT} clients, {form}, {number} rounds"
        times = f"write {write_seconds:.2f}, read {read_seconds:.2f} s a round"
        memory = f"write +{write_memory:.0f}, read +{read_memory:.0f} MB"
        verdict = f"{met(write_memory <= limit)} / {met(read_memory <= limit)}"
        print(
            row(what, times, memory, f"100 rounds: {hundred:.1f} GB", f"write / read <= +{limit:.0f} MB", verdict),
            flush=True,
        )


def main() -> None:
    """Run the parts asked and print the table."""
    parser = argparse.ArgumentParser(description="What grows with clients, work and rounds.")
    parts = ("clients", "work", "history")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=0, help="recorded rounds; 0 = 10, or 3 if pruned")
    options = parser.parse_args()
    print("Scale\n")
    print_head("what", "time", "memory", "more", "bound", "verdict")
    with TemporaryDirectory() as folder:
        if set(options.parts) - {"history"}:
            write_random(Path(folder), (1, 8, 8), IMAGES)
        if "clients" in options.parts:
            clients_part(folder)
        if "work" in options.parts:
            work_part(folder)
    if "history" in options.parts:
        history_part(options.rounds)


if __name__ == "__main__":
    main()
