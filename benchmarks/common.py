"""What the benchmarks share: the cases, the sides that more than one of them runs, fresh processes, and verdicts."""

from __future__ import annotations

import datetime
import inspect
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
from fedforget.simulation import RAY
from fedforget.strategy import find

REPOSITORY = Path(__file__).resolve().parents[1]
MNIST = REPOSITORY.parent / "shared" / "data" / "mnist"
CORES = len(os.sched_getaffinity(0))
WARM_UP = 2
SEEDS = Seeds(0)

Outcome = tuple[list[float], Tensor, float]  # time at the end of each round, final minus initial model, last loss


@dataclass(frozen=True)
class Case:
    """What is trained: one epoch a round at each of ``clients``, which share ``examples`` images evenly.

    ``shape`` is that of the images in a folder of parquet files, None for scikit-learn's digits; ``rounds`` is how many
    are measured, after `WARM_UP`; ``precision`` is that of fedforget and of the bare processes, others use float32.
    """

    title: str
    model: str
    clients: int
    examples: int
    shape: tuple[int, int, int] | None
    batch: int
    lr: float
    rounds: int
    width: float = 1.0
    precision: str = "float32"

    def task(self, folder: str) -> Task:
        """The work as fedforget describes it."""
        source = TaskConfig("folder", folder, max_train=self.examples) if self.shape else TaskConfig("digits")
        config = data.DataConfig(source, PartitionConfig("iid", self.clients, holdout=0.0))
        model, local = models.ModelConfig(self.model, self.width), LocalConfig(lr=self.lr, batch_size=self.batch)
        asked = {} if self.precision == "float32" else {"precision": self.precision}
        return Task(config, model, local, "cpu", **asked)

    def to_json(self) -> str:
        """JSON, as a message carries it; `from_json` inverts it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Case:
        """The case that `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "shape": fields["shape"] and tuple(fields["shape"])})


class Clients:
    """What a process of a peer keeps in memory: all clients' tensors, their shuffles, and one network."""

    def __init__(self, case: Case, folder: str, rounds: int) -> None:
        torch.set_num_threads(1)
        self.case = case
        task = case.task(folder)
        federated = data.load(task.data)
        self.model = models.initial(task.model, federated.input_shape, federated.num_classes, 0)
        splits = [federated.split(client, "train", SEEDS) for client in range(case.clients)]
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


# ---------------------------------------------------------------------- sides


client_app = ClientApp()
kept = cache(Clients)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """A client of stock Flower, after Flower's PyTorch template."""
    config: dict[str, Any] = dict(message.content.config_records["config"])
    clients = kept(Case.from_json(config["case"]), config["folder"], config["rounds"])
    state = message.content.array_records["arrays"].to_torch_state_dict()
    number, loss = clients.train(state, int(context.node_config["partition-id"]), config["server-round"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": number})
    arrays = ArrayRecord(clients.model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def simulate(main: Callable[[Grid], Any], clients: ClientApp, nodes: int, cores: int = 1) -> Any:
    """What ``main`` returns as a ServerApp in Flower's simulation, on one of Flower's actors for so many cores."""
    from flwr.simulation import run_simulation

    server, outcome = ServerApp(), []
    server.main()(lambda grid, context: outcome.append(main(grid)))
    warnings.simplefilter("ignore")  # run_simulation is deprecated, but nothing else runs an app in this process
    run_simulation(server, clients, nodes, backend_config={"client_resources": {"num_cpus": cores, "num_gpus": 0.0}})
    return outcome[0]


def learn_with_flower(grid: Grid, case: Case, folder: str, rounds: int) -> Outcome:
    """Stock Flower: `FedAvg` over one SuperNode a client, with ``client_app``."""
    initial, stamps = Clients(case, folder, 0).model.state_dict(), []
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=case.clients, min_available_nodes=case.clients)
    result = strategy.start(
        grid,
        ArrayRecord(initial),
        rounds,
        train_config=ConfigRecord({"case": case.to_json(), "folder": folder, "rounds": rounds}),
        # Called once before the first round, and after each aggregation.
        evaluate_fn=lambda round, arrays: stamps.append(time.perf_counter()) if round else None,
    )
    moved = flat(result.arrays.to_torch_state_dict()) - flat(initial)
    return stamps, moved, float(result.train_metrics_clientapp[rounds]["train_loss"])  # type: ignore[arg-type]


def learn_with_fedforget(grid: Grid, case: Case, folder: str, rounds: int) -> Outcome:
    """fedforget: `UnlearningStrategy.learn` over `Cohort` and `RayGrid`, one SuperNode and one worker a core."""
    task = case.task(folder)
    chosen = choose(grid, EngineConfig(nodes=CORES), task.data)
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


def flower(case: Case, folder: str, rounds: int) -> Outcome:
    """`learn_with_flower` in a simulation of its own."""
    return simulate(lambda grid: learn_with_flower(grid, case, folder, rounds), client_app, case.clients)


def fedforget(case: Case, folder: str, rounds: int) -> Outcome:
    """`learn_with_fedforget` in a simulation of its own."""
    return simulate(lambda grid: learn_with_fedforget(grid, case, folder, rounds), fedforget_app, CORES, CORES)


# ---------------------------------------------------------------------- data


def write_random(folder: Path, shape: tuple[int, int, int], number: int) -> None:
    """So many random images with random labels, as parquet files."""
    import pyarrow
    from pyarrow import parquet
    from torchvision.io import encode_png

    generator = SEEDS.torch("images")
    for split, size in (("train", number), ("test", 10)):
        pixels = torch.randint(256, (size, *shape), dtype=torch.uint8, generator=generator)
        images = [{"bytes": encode_png(image).numpy().tobytes()} for image in pixels]
        labels = torch.arange(size) % 10
        parquet.write_table(pyarrow.table({"image": images, "label": labels.numpy()}), folder / f"{split}.parquet")


def folder_for(case: Case, mnist: Path, temporary: Path) -> str:
    """Where a case finds its images: MNIST if it has that shape and is there, else random ones."""
    if case.shape == (1, 28, 28) and mnist.is_dir():
        return str(mnist.resolve())
    if case.shape:
        write_random(temporary, case.shape, case.examples)
    return str(temporary)


# ---------------------------------------------------------------------- processes, verdicts


def environment(side: str) -> dict[str, str]:
    """That of a fresh process: it finds the project and this folder, and its Ray is set up as by ``fedforget run``.

    The side ``flower`` has Ray as it comes, but for the niceness of its workers: at Ray's own, 15, they would lose
    their cores to whatever else runs.
    """
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "benchmarks")))
    ray = {name: value for name, value in RAY.items() if side != "flower" or "niceness" in name}
    return {**os.environ, **ray, "PYTHONPATH": path}


def in_fresh_process(function: Callable, *arguments: Any) -> Any:
    """What a function of these modules returns (tensors and plain values) in a process of its own."""
    # Imported, not run as __main__, so that workers find the functions by name and do not unpickle copies.
    module = inspect.getmodulename(inspect.getfile(function))
    with TemporaryDirectory() as temporary:
        file = f"{temporary}/outcome"
        call = f"{module}.{function.__name__}(*{arguments!r})"
        program = f"import torch, {module}\nfrom common import Case\ntorch.save({call}, {file!r})"
        command = [sys.executable, "-c", program]
        process = subprocess.run(command, env=environment(function.__name__), capture_output=True, text=True)
        if process.returncode:
            sys.exit(f"{call}:\n{process.stderr[-4000:]}")
        return torch.load(file)


def met(condition: bool) -> str:
    """The verdict in words."""
    return "met" if condition else "NOT MET"


def row(*cells: object) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def print_head(*columns: str) -> None:
    """Machine, date and commit, then the head of the table."""
    print(f"{machine()}\n\n{row(*columns)}\n{row(*['---'] * len(columns))}", flush=True)


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
