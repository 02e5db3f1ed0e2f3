"""How well independent trajectories fill the machine: a whole experiment beside the training that it consists of.

    python benchmarks/trajectories.py [--experiment quickstart] [--seeds 5] [--overrides KEY=VALUE ...]

K originals, K oracles, and K runs of each strategy of an experiment, in Flower's simulation over `RayGrid` with one
worker a core. With ``quickstart`` it is leaderboard-like, on scikit-learn's digits with a tiny MLP and six strategies;
``leaderboard_mnist`` has all that can forget a client, with the CNN. ``work`` is what clients were asked: the seconds
that workers spent in routines and audits. It is taken twice:

here    by the workers' own clocks during the run, which also count what the server and other processes take from them;
alone   by the clock of one process that runs a single seed of the same experiment, one trajectory at a time and with
        the server in the same process, so that nothing disturbs it; times K.

The time of the run is that from the first message to the last answer (a start of Ray and the report at the end do not
belong to the trajectories; the last column has the whole of `Experiment.run`). The bound of 1.15 holds for it over the
work ``alone``, shared by the cores; the bound of 90 % for the busy share of the same cores (/proc/stat) in that time,
which means something only if nothing else runs.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import CORES, in_fresh_process, met, print_head, row, simulate
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedforget.client_app import app as fedforget_app
from fedforget.config import compose
from fedforget.experiment import Experiment
from fedforget.grid import EngineConfig, InProcessGrid, choose
from fedforget.messages import EVALUATE, TRAIN, unpack_reply

QUICKSTART = (  # what makes a leaderboard of it
    "strategies=[finetune, truncated_retrain, federaser, fedaccum, amnesiac_repair, random_label]",
    "evaluation=leaderboard",
    "evaluation.level=smoke",  # which demands no number of seeds
    "learning.rounds=20",
)


class Clocked(Grid):
    """A grid that adds up the seconds which clients report, and notes when the first message left and the last came.

    Args:
        grid: carries the messages.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid, self.seconds = grid, {TRAIN: 0.0, EVALUATE: 0.0}
        self.first: tuple[float, float, float] | None = None
        self.last = (0.0, 0.0, 0.0)
        self._lock = threading.Lock()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """As the grid's."""
        sent = list(messages)
        kind = sent[0].metadata.message_type if sent else ""
        if kind not in self.seconds:
            return self.grid.send_and_receive(sent, timeout=timeout)
        with self._lock:
            self.first = self.first or now()
        replies = self.grid.send_and_receive(sent, timeout=timeout)
        reports = [unpack_reply(reply.content)[1] for reply in replies if not reply.has_error()]
        spent = sum(entry.get("seconds", 0.0) for report in reports for entry in report.values())
        with self._lock:
            self.seconds[kind] += spent
            self.last = now()
        return replies

    def get_node_ids(self) -> Iterable[int]:
        """As the grid's."""
        return self.grid.get_node_ids()

    def set_run(self, run: Any) -> None:
        """As the grid's."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """As the grid's."""
        return self.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the grid's."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the grid's."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the grid's."""
        return self.grid.pull_messages(message_ids)


def now() -> tuple[float, float, float]:
    """The time, and the busy and all seconds so far of the cores that this process may use."""
    wanted = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    busy = total = 0.0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in wanted:
            user, nice, system, idle, waiting, *rest = map(int, fields[:8])  # guests are counted in user already
            busy += user + nice + system + sum(rest)
            total += user + nice + system + sum(rest) + idle + waiting
    ticks = os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy / ticks, total / ticks


Outcome = tuple[dict[str, float], float, float, float, float]


def experiment(grid: Grid, name: str, overrides: list[str], trajectories: int) -> Outcome:
    """Run it over a grid.

    Returns:
        The seconds of clients by kind of message, those from the first message to the last answer, the busy share of
        the cores then, the processor seconds of this process, and the seconds of the whole run.
    """
    composed = compose(name, overrides)
    # Any grid but Flower's own is used as it is.
    config = replace(composed, engine=replace(composed.engine, device="cpu", trajectories=trajectories))
    clocked, start, used = Clocked(grid), time.perf_counter(), time.process_time()
    with TemporaryDirectory() as output:
        Experiment(config, clocked, Path(output), lambda line: None).run()
    assert clocked.first is not None, "an experiment asks its clients something"
    seconds, busy, total = (b - a for a, b in zip(clocked.first, clocked.last, strict=True))
    whole = time.perf_counter() - start
    return clocked.seconds, seconds, busy / total, time.process_time() - used, whole


def here(name: str, overrides: list[str]) -> Outcome:
    """The whole experiment, in Flower's simulation."""
    data = compose(name, overrides).data
    return simulate(
        lambda grid: experiment(choose(grid, EngineConfig(nodes=CORES), data), name, overrides, 0),
        fedforget_app,
        CORES,
        CORES,
    )


def alone(name: str, overrides: list[str]) -> Outcome:
    """One seed of it in this process."""
    torch.set_num_threads(1)
    return experiment(InProcessGrid(fedforget_app, CORES), name, [*overrides, "evaluation.seeds=1"], 1)


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description="Trajectories beside the training that they consist of.")
    parser.add_argument("--experiment", default="quickstart", help="a name in configs/experiment")
    parser.add_argument("--seeds", type=int, default=5, help="K originals, oracles and runs of each strategy")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the run")
    options = parser.parse_args()
    name = options.experiment
    usual = QUICKSTART if name == "quickstart" else ()
    overrides = [*usual, f"evaluation.seeds={options.seeds}", *options.overrides]
    try:
        compose(name, overrides)
    except ValueError as error:
        parser.error(str(error))
    print(f"`fedforget run {name} {' '.join(map(repr, overrides))}`\n")
    columns = ("training s", "audits s", "run s", "run / (work / cores)", "<= 1.15", "cores busy", ">= 90 %")
    print_head("work", *columns, "server's CPU s", "Experiment.run s")
    work, seconds, busy, server, whole = in_fresh_process(here, name, overrides)
    single, *_ = in_fresh_process(alone, name, overrides)
    for side, mine in (("here", work), ("alone", {kind: options.seeds * spent for kind, spent in single.items()})):
        ratio = seconds / (sum(mine.values()) / CORES)
        verdict = met(ratio <= 1.15) if side == "alone" else ""
        cells = (f"{mine[TRAIN]:.1f}", f"{mine[EVALUATE]:.1f}", f"{seconds:.1f}", f"{ratio:.2f}", verdict)
        shares = (f"{busy:.0%}", met(busy >= 0.9), f"{server:.1f}", f"{whole:.1f}") if side == "here" else [""] * 4
        print(row(side, *cells, *shares))


if __name__ == "__main__":
    main()
