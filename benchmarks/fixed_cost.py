"""What a client costs that does nothing: fedforget beside stock Flower, with and without a record of every update.

    python benchmarks/fixed_cost.py [--cases small many large] [--profile CASE]

flower      `FedAvg` over one SuperNode a client, one actor a core. The no-op ClientApp loads what it is sent into its
            network and answers with the network's weights, as every PyTorch client does; it trains nothing.
fedforget   `UnlearningStrategy.learn` over `Cohort` and `RayGrid`, one SuperNode and one worker a core. The option
            ``effort=0`` asks every client for none of its steps; all the rest is done: its data is gathered, the model
            loaded, its update taken and summed. ``recorded`` keeps every client's update in a `Recording` on disk.

A round is timed at the server, from one aggregated model to the next, and all must end with the model they began with;
the first two rounds are left out, and the median of the others counts. The bounds are those of fedforget unrecorded.
``--profile CASE`` instead runs three rounds in this process (no Ray) and prints where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common import CORES, SEEDS, WARM_UP, in_fresh_process, met, print_head, row, simulate
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedforget import models
from fedforget.client_app import app as fedforget_app
from fedforget.cohort import Cohort, describe
from fedforget.data import DataConfig
from fedforget.data.partition import PartitionConfig
from fedforget.grid import EngineConfig, InProcessGrid, choose
from fedforget.history import HistoryConfig, Recording
from fedforget.messages import Task
from fedforget.params import Params
from fedforget.routines import LocalConfig
from fedforget.strategy import LearningConfig, find


@dataclass(frozen=True)
class Idle:
    """A federation on scikit-learn's digits of which ``asked`` clients take part in a round.

    ``bound`` is fedforget's, in seconds a round; ``rounds`` are those measured, of Flower and of fedforget.
    """

    title: str
    model: str
    clients: int
    asked: int
    bound: float
    rounds: tuple[int, int]


CASES = {
    "small": Idle("LeNet-5 62 k, 100 of 100 clients", "lenet5", 100, 100, 100 * 0.2e-3, (5, 20)),
    "many": Idle("LeNet-5 62 k, 400 of 1,000 clients", "lenet5", 1000, 400, 0.05, (2, 20)),
    "large": Idle("ResNet-18 11 M, 10 of 10 clients", "resnet18", 10, 10, 10 * 15e-3, (5, 10)),
}

Outcome = tuple[list[float], float]  # time at the end of each round, how far the model moved


@cache
def network(model: str) -> nn.Module:
    """What a process of Flower keeps."""
    torch.set_num_threads(1)
    return models.initial(models.ModelConfig(model), (1, 8, 8), 10, 0)


idle_app = ClientApp()


@idle_app.train()
def train(message: Message, context: Context) -> Message:
    """A client of stock Flower that trains nothing."""
    mine = network(str(message.content.config_records["config"]["model"]))
    mine.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    content = {"arrays": ArrayRecord(mine.state_dict()), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


def flower(name: str) -> Outcome:
    """Stock Flower."""
    case, stamps = CASES[name], []
    initial = network(case.model).state_dict()

    def main(grid: Grid) -> Outcome:
        strategy = FedAvg(
            fraction_train=case.asked / case.clients,
            fraction_evaluate=0.0,
            min_train_nodes=case.asked,
            min_available_nodes=case.clients,
        )
        result = strategy.start(
            grid,
            ArrayRecord(initial),
            WARM_UP + case.rounds[0],
            train_config=ConfigRecord({"model": case.model}),
            evaluate_fn=lambda round, arrays: stamps.append(time.perf_counter()) if round else None,
        )
        after = result.arrays.to_torch_state_dict()
        return stamps, max(float((after[key] - value).abs().max()) for key, value in initial.items())

    return simulate(main, idle_app, case.clients)


class Nothing(find("none")):  # type: ignore[misc]
    """Learning in which every client is asked for none of its steps."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the learner's, with ``effort=0``."""
        config["effort"] = 0.0
        return super().configure_train(server_round, arrays, config, grid)


def idle(grid: Grid, name: str, rounds: int, folder: str = "") -> Outcome:
    """Rounds of `Nothing` over a simulation's grid, recorded in ``folder`` if there is one."""
    case, stamps = CASES[name], []
    config = models.ModelConfig(case.model)
    task = Task(DataConfig(partition=PartitionConfig("iid", case.clients, holdout=0.0)), config, LocalConfig(), "cpu")
    grid = choose(grid, EngineConfig(nodes=CORES), task.data)
    torch.set_num_threads(1)
    federation = describe(grid, task)
    initial = model = Params.from_module(models.initial(config, (1, 8, 8), 10, 0))
    cohort = Cohort(grid, federation, task, initial.layout, SEEDS, case.asked / case.clients)
    recording = None
    if folder:
        recording = Recording(Path(folder), initial.layout, HistoryConfig(record="all"), (), SEEDS)
        recording.begin(initial)
    learned = Nothing(learning=LearningConfig()).learn(cohort, initial, rounds, recording=recording)
    for round, model in enumerate(learned, start=1):  # noqa: B007 (the last one counts)
        stamps.append(time.perf_counter())
        if recording and round > 1:
            recording.path(round - 1).unlink()  # the disk need not hold them all
    assert len(cohort.last_replies.weights()) == case.asked, "some clients did not answer"
    return stamps, float((model - initial).flat.abs().max())


def fedforget(name: str, folder: str) -> Outcome:
    """fedforget in Flower's simulation."""
    rounds = WARM_UP + CASES[name].rounds[1]
    return simulate(lambda grid: idle(grid, name, rounds, folder), fedforget_app, CORES, CORES)


def compare(name: str) -> None:
    """Print the rows of a case."""
    case = CASES[name]
    seconds = {}
    with TemporaryDirectory() as folder:
        sides = {"flower": (flower,), "fedforget": (fedforget, ""), "fedforget, recorded": (fedforget, folder)}
        for side, (function, *more) in sides.items():
            stamps, moved = in_fresh_process(function, name, *more)
            seconds[side] = statistics.median(np.diff(stamps)[WARM_UP - 1 :])
            verdict = f"{met(seconds[side] <= case.bound)} (<= {case.bound:g} s)" if side == "fedforget" else ""
            each = f"{1000 * seconds[side] / case.asked:.3f}"
            less = f"{seconds['flower'] / seconds[side]:.1f}"
            print(row(case.title, side, f"{seconds[side]:.4f}", each, verdict, less, f"{moved:.0e}"), flush=True)


def profile(name: str) -> None:
    """Print where three rounds of a case spend their time, server and clients in this one process."""
    case, grid = CASES[name], InProcessGrid(fedforget_app, CORES)
    idle(grid, name, 1)  # imports and data
    watch = cProfile.Profile(time.process_time)  # whoever else uses the machine
    watch.enable()
    idle(grid, name, 3)
    watch.disable()
    print(f"{case.title}: {3 * case.asked} client answers and one description of the federation")
    pstats.Stats(watch).sort_stats("tottime").print_stats(25)


def main() -> None:
    """Run the cases asked and print the table."""
    parser = argparse.ArgumentParser(description="What a client costs that does nothing.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--profile", choices=CASES, help="print a profile of this case instead")
    options = parser.parse_args()
    if options.profile:
        return profile(options.profile)
    print("Clients that do nothing\n")
    print_head("case", "engine", "s a round", "ms a client", "bound", "flower / this", "model moved by, at most")
    for name in options.cases:
        compare(name)


if __name__ == "__main__":
    main()
