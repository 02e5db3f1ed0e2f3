"""What a federated round costs: fedforget beside a plain PyTorch loop and stock Flower, on the same work.

    python benchmarks/overhead.py [--cases mlp cnn resnet] [--rounds 5] [--data FOLDER]

(a) plain      One process, one intra-op thread: for each client load the global weights, one epoch of shuffled
               mini-batches with ``torch.optim.SGD``, then the weighted mean. Memory layout as torch gives it.
(b) flower     Flower's simulation: `FedAvg`, one SuperNode a client, one CPU a client (one actor a core). A client runs
               the loop of (a) on one intra-op thread; each actor keeps its data and its network in memory.
(c) fedforget  `UnlearningStrategy.learn` in Flower's simulation, over `Cohort` and `RayGrid`: one SuperNode and one
               worker a core. Its engine trains convolutional nets channels-last and has its own SGD; both count.

All train every client in every round on the same split, with the same shuffles, learning rate and initial weights;
nothing is evaluated or recorded. (a) and (b) get their shuffles ready-made, (c) draws them in the round. That nobody
skips work is seen from the training loss in the last round and from how far the final model is from that of (a),
relative to how far (a) moved. Each side runs in a fresh process. A round is timed at the server, from one aggregated
model to the next; the first two (imports, data, connections) are left out, and the median of the others counts.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from fedforget import data, models
from fedforget.client_app import app as fedforget_app
from fedforget.cohort import Cohort, describe
from fedforget.data.partition import PartitionConfig
from fedforget.data.sources import TaskConfig
from fedforget.grid import EngineConfig, choose
from fedforget.messages import Task
from fedforget.params import Params
from fedforget.routines import LocalConfig
from fedforget.seeds import Seeds
from fedforget.strategy import find

REPOSITORY = Path(__file__).resolve().parents[1]
CORES = len(os.sched_getaffinity(0))
WARM_UP = 2
SEEDS = Seeds(0)

Outcome = tuple[list[float], Tensor, float]  # time at the end of each round, final minus initial model, last loss


@dataclass(frozen=True)
class Case:
    """What is trained: one epoch a round at each of ``clients``, which share ``examples`` images evenly.

    ``shape`` is that of random images, None for scikit-learn's digits; ``gain`` is the b/c expected, at least.
    """

    title: str
    model: str
    clients: int
    examples: int
    shape: tuple[int, int, int] | None
    batch: int
    lr: float
    rounds: int
    gain: float

    def task(self, folder: str) -> Task:
        """The work as fedforget describes it."""
        source = TaskConfig("folder", folder, max_train=self.examples) if self.shape else TaskConfig("digits")
        config = data.DataConfig(source, PartitionConfig("iid", self.clients, holdout=0.0))
        return Task(config, models.ModelConfig(self.model), LocalConfig(lr=self.lr, batch_size=self.batch), "cpu")


CASES = {
    "mlp": Case("MLP 55 k, digits, 100 clients x 14, batch 5", "mlp", 100, 1437, None, 5, 0.1, 5, 3.0),
    "cnn": Case("CNN 1.7 M, 28x28, 10 clients x 600, batch 32", "cnn", 10, 6000, (1, 28, 28), 32, 0.05, 5, 1.0),
    "resnet": Case("ResNet-18 11 M, 32x32, 10 x 32, batch 32", "resnet18", 10, 320, (3, 32, 32), 32, 0.01, 3, 1.0),
}


class Clients:
    """What a process of (a) or (b) keeps in memory: all clients' tensors, their shuffles, and one network."""

    def __init__(self, name: str, folder: str, rounds: int) -> None:
        torch.set_num_threads(1)
        self.case = CASES[name]
        task = self.case.task(folder)
        federated = data.load(task.data)
        self.model = models.initial(task.model, federated.input_shape, federated.num_classes, 0)
        splits = [federated.split(client, "train", SEEDS) for client in range(self.case.clients)]
        self.examples = [(federated.inputs[split], federated.labels[split]) for split in splits]
        self.orders: dict[tuple[int, int], Tensor] = {}
        for client, split in enumerate(splits):
            for round in range(1, rounds + 1):
                generator = SEEDS.numpy("client", client, round, "shuffle", 0)
                self.orders[client, round] = torch.from_numpy(generator.permutation(len(split)))

    def train(self, state: dict[str, Tensor], client: int, round: int) -> tuple[int, float]:
        """One epoch from ``state``, whose result stays in the network; returns the examples and the mean loss."""
        self.model.load_state_dict(state)
        optimizer = torch.optim.SGD(self.model.parameters(), self.case.lr)
        inputs, labels = self.examples[client]
        losses = []
        for batch in self.orders[client, round].split(self.case.batch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return len(labels), float(torch.stack(losses).mean())


def flat(state: dict[str, Tensor]) -> Tensor:
    """All weights as one vector."""
    return torch.cat([value.reshape(-1) for value in state.values()])


def plain(name: str, folder: str, rounds: int) -> Outcome:
    """(a)"""
    clients = Clients(name, folder, rounds)
    initial = state = {key: value.clone() for key, value in clients.model.state_dict().items()}
    total = sum(len(labels) for _, labels in clients.examples)
    stamps = []
    for round in range(1, rounds + 1):
        mean, mean_loss = {key: torch.zeros_like(value) for key, value in state.items()}, 0.0
        for client in range(clients.case.clients):
            number, loss = clients.train(state, client, round)
            mean_loss += loss * number / total
            for key, value in clients.model.state_dict().items():
                mean[key].add_(value, alpha=number / total)
        state = mean
        stamps.append(time.perf_counter())
    return stamps, flat(state) - flat(initial), mean_loss


client_app = ClientApp()
kept = cache(Clients)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """A client of (b), after Flower's PyTorch template."""
    config: dict[str, Any] = dict(message.content.config_records["config"])
    clients = kept(config["case"], config["folder"], config["rounds"])
    state = message.content.array_records["arrays"].to_torch_state_dict()
    number, loss = clients.train(state, int(context.node_config["partition-id"]), config["server-round"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": number})
    arrays = ArrayRecord(clients.model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def simulate(main: Callable[[Grid], Outcome], clients: ClientApp, nodes: int) -> Outcome:
    """Run a ServerApp made of ``main`` in Flower's simulation, on one actor a core."""
    from flwr.simulation import run_simulation

    server, outcome = ServerApp(), []
    server.main()(lambda grid, context: outcome.append(main(grid)))
    warnings.simplefilter("ignore")  # run_simulation is deprecated, but nothing else runs an app in this process
    run_simulation(server, clients, nodes, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    return outcome[0]


def flower(name: str, folder: str, rounds: int) -> Outcome:
    """(b)"""
    number, initial = CASES[name].clients, Clients(name, folder, 0).model.state_dict()

    def main(grid: Grid) -> Outcome:
        stamps: list[float] = []
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=number, min_available_nodes=number)
        result = strategy.start(
            grid,
            ArrayRecord(initial),
            rounds,
            train_config=ConfigRecord({"case": name, "folder": folder, "rounds": rounds}),
            # Called once before the first round, and after each aggregation.
            evaluate_fn=lambda round, arrays: stamps.append(time.perf_counter()) if round else None,
        )
        moved = flat(result.arrays.to_torch_state_dict()) - flat(initial)
        return stamps, moved, float(result.train_metrics_clientapp[rounds]["train_loss"])  # type: ignore[arg-type]

    return simulate(main, client_app, number)


def fedforget(name: str, folder: str, rounds: int) -> Outcome:
    """(c)"""
    task = CASES[name].task(folder)

    def main(grid: Grid) -> Outcome:
        chosen = choose(grid, EngineConfig(nodes=CORES))
        torch.set_num_threads(1)  # as the project's server does, see fedforget/experiment.py
        federation = describe(chosen, task)
        shape, classes = federation.about["input_shape"], federation.about["num_classes"]
        initial = Params.from_module(models.initial(task.model, tuple(shape), classes, 0))
        cohort, stamps = Cohort(chosen, federation, task, initial.layout, SEEDS), []
        model = initial
        for model in find("none")().learn(cohort, initial, rounds):  # noqa: B007 (the last one counts)
            stamps.append(time.perf_counter())
        weights, losses = cohort.last_replies.weights(), cohort.last_replies.losses()
        loss = sum(losses[client] * number for client, number in weights.items()) / sum(weights.values())
        return stamps, model.flat - initial.flat, loss

    return simulate(main, fedforget_app, CORES)


SIDES = {"plain": plain, "flower": flower, "fedforget": fedforget}


def write_random(folder: Path, case: Case) -> None:
    """Random images with random labels, as parquet files."""
    import pyarrow
    from pyarrow import parquet
    from torchvision.io import encode_png

    generator = SEEDS.torch("images")
    for split, number in (("train", case.examples), ("test", 10)):
        pixels = torch.randint(256, (number, *(case.shape or ())), dtype=torch.uint8, generator=generator)
        images = [{"bytes": encode_png(image).numpy().tobytes()} for image in pixels]
        labels = torch.arange(number) % 10
        parquet.write_table(pyarrow.table({"image": images, "label": labels.numpy()}), folder / f"{split}.parquet")


def compare(name: str, measured: int, mnist: Path) -> tuple[str, str]:
    """Run the sides of a case; returns its row of the table, and a line that shows that they did the same work."""
    case, outcomes = CASES[name], {}
    # Ray runs its workers at niceness 15; on a machine that is not idle, (b) and (c) would lose their cores to others.
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    environment["PYTHONPATH"] = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "benchmarks")))
    measured = measured or case.rounds
    with TemporaryDirectory() as temporary:
        folder = mnist.resolve() if name == "cnn" and mnist.is_dir() else Path(temporary)
        if case.shape and folder == Path(temporary):
            write_random(folder, case)
        for side in SIDES:
            call = f"overhead.SIDES[{side!r}]({name!r}, {str(folder)!r}, {WARM_UP + measured})"
            # Imported, not run as __main__, so that workers find the functions by name and do not unpickle copies.
            program = f"import overhead, torch; torch.save({call}, {temporary + '/outcome'!r})"
            command = [sys.executable, "-c", program]
            process = subprocess.run(command, env=environment, capture_output=True, text=True)
            if process.returncode:
                sys.exit(f"{name}, {side}:\n{process.stderr[-4000:]}")
            outcomes[side] = torch.load(f"{temporary}/outcome")
    seconds = {side: statistics.median(np.diff(stamps)[-measured:]) for side, (stamps, _, _) in outcomes.items()}
    a, b, c = seconds.values()
    _, reached, _ = outcomes["plain"]
    losses = [
        f"{side} {loss:.4f} ({float((moved - reached).norm() / reached.norm()):.0e} from plain)"
        for side, (_, moved, loss) in outcomes.items()
    ]
    row = [case.title, f"{a:.4f}", f"{b:.4f}", f"{c:.4f}", f"{c / (a / CORES):.2f}", met(c <= 1.15 * a / CORES)]
    row += [f"{b / c:.2f}", f"{met(b >= case.gain * c)} (>= {case.gain:g})"]
    return f"| {' | '.join(row)} |", f"{name}: loss in the last round (final model): {', '.join(losses)}"


def met(condition: bool) -> str:
    """The verdict in words."""
    return "met" if condition else "NOT MET"


def machine() -> str:
    """Where, when and with what the numbers were taken."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "flwr", "ray", "numpy"))
    today = datetime.datetime.now(datetime.UTC).date()
    load = f"load {os.getloadavg()[0]:.1f} at the start"  # above about 0.5, others disturb the numbers
    return f"{today}, commit {commit}, {CORES} cores of {cpu}, {load}, Python {platform.python_version()}, {versions}"


def main() -> None:
    """Run the cases asked and print the table."""
    parser = argparse.ArgumentParser(description="Seconds a round: plain PyTorch, stock Flower, fedforget.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=0, help="rounds measured; 0 = 5, or 3 for resnet")
    mnist = REPOSITORY.parent / "shared" / "data" / "mnist"
    parser.add_argument("--data", type=Path, default=mnist, help="MNIST as parquet; random images if it is not there")
    options = parser.parse_args()
    print(f"{machine()}\n\nSeconds a round\n")
    print(f"| case | a plain | b flower | c fedforget | c / (a / {CORES} cores) | <= 1.15 | b / c | expected |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    checks = []
    for name in options.cases:
        row, check = compare(name, options.rounds, options.data)
        print(row, flush=True)
        checks.append(check)
    print("\n" + "\n".join(checks))


if __name__ == "__main__":
    main()
