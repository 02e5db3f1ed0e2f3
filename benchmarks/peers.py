"""Seconds a round beside its peers: bare processes, stock Flower, pfl-research, FedLab and BlazeFL.

    python benchmarks/peers.py [--cases cnn lenet mlp resnet cnn-bf16] [--peers FOLDER] [--data FOLDER]

bare        One process a core, one intra-op thread each, shared memory and barriers, no framework at all: the cheapest
            step known (channels-last convolutional nets, ``autograd.grad`` and ``_foreach_add_``), clients dealt out in
            turn, partial sums, each process averaging its own slice of the model.
bare stack  The same with ten clients of an MLP in one batched matrix product.
flower      Stock Flower as in overhead.py: one SuperNode a client, one actor a core.
pfl         pfl-research 0.6.0 (arXiv 2404.06430) in its distributed mode: one process a core, gloo on this machine.
fedlab      FedLab 1.3.0 (arXiv 2107.11621), `StandalonePipeline`: one process, as many intra-op threads as cores.
blazefl     BlazeFL (arXiv 2604.03606), its `FedAvgThreadPoolClientTrainer`: one thread a core, one process.
fedforget   As in overhead.py.

pfl, FedLab and BlazeFL are no dependencies of the project: ``pip install --target FOLDER --no-deps pfl==0.6.0
fedlab==1.3.0 dp-accounting multiprocess dill prv-accountant nvidia-ml-py attrs absl-py mpmath dm-tree``, then ``pip
install --target FOLDER --no-deps --ignore-requires-python blazefl==3.0.0``, and ``--peers FOLDER``. Without them their
rows say so. BlazeFL is meant for free-threaded Python 3.14. To be read by 3.11 to 3.13 it needs two edits: in
core/utils.py ``T = TypeVar("T")`` in place of the two ``[T]``, and in reproducibility/snapshot.py quotes around the two
annotations RandomStateSnapshot. An interpreter that has a lock makes its threads share it.

Peers get their data in memory and their shuffles ready-made, use the memory layout that torch gives them, and one
intra-op thread a process (FedLab, which is a single process, all cores). As in overhead.py all do the same work, which
the last two columns show; distances are from the model that the bare processes reach. A bound says how many times the
seconds of fedforget a peer must need, at least; for bare processes 0.91 allows fedforget 1.10 of theirs.
"""

from __future__ import annotations

import argparse
import copy
import logging
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import (
    CORES,
    MNIST,
    WARM_UP,
    Case,
    Clients,
    Outcome,
    fedforget,
    flat,
    flower,
    folder_for,
    in_fresh_process,
    met,
    print_head,
    row,
)
from torch import Tensor, nn

from fedforget.messages import Task

CNN = "28x28, 10 clients x 600, batch 32"
SMALL = "28x28, 100 clients x 40, batch 20"
CASES = {
    "cnn": Case(f"CNN 0.4 M, {CNN}", "cnn", 10, 6000, (1, 28, 28), 32, 0.05, 6, 0.5),
    "lenet": Case(f"LeNet-5 62 k, {SMALL}", "lenet5", 100, 4000, (1, 28, 28), 20, 0.05, 10),
    "mlp": Case(f"MLP 118 k, {SMALL}", "mlp", 100, 4000, (1, 28, 28), 20, 0.05, 10, 0.64),
    "resnet": Case("ResNet-18 11 M, 32x32, 10 clients x 32, batch 32", "resnet18", 10, 320, (3, 32, 32), 32, 0.01, 3),
    "cnn-bf16": Case(f"CNN 0.4 M, {CNN}, bfloat16", "cnn", 10, 6000, (1, 28, 28), 32, 0.05, 6, 0.5, "bfloat16"),
}
# Times fedforget's seconds, at least; None: measured for information.
BOUNDS: dict[str, dict[str, float | None]] = {
    "cnn": {"bare": 1 / 1.1, "flower": 1.6, "pfl": 1.15, "fedlab": None, "blazefl": 1.15},
    "lenet": {"bare": None, "flower": 5.5, "pfl": 1.15, "fedlab": None, "blazefl": 1.7},
    "mlp": {"bare": 1.2, "bare stack": None, "flower": 20.0, "pfl": 1.8, "fedlab": None, "blazefl": 4.0},
    "resnet": {"bare": 1 / 1.1},
    "cnn-bf16": {"bare": 1 / 1.1, "flower": 2.3},
}
STACK = 10  # clients


# ---------------------------------------------------------------------- bare processes


def bare(case: Case, folder: str, rounds: int) -> Outcome:
    """One process a core, one client at a time."""
    return _bare(case, folder, rounds, _Loop)


def bare_stack(case: Case, folder: str, rounds: int) -> Outcome:
    """One process a core, `STACK` clients at a time."""
    return _bare(case, folder, rounds, _Stack)


class _Loop:
    """Trains some clients one after another and adds up what they reach."""

    def __init__(self, clients: Clients) -> None:
        self.clients, self.case, self.model = clients, clients.case, clients.model
        if any(isinstance(module, nn.Conv2d) for module in self.model.modules()):
            self.model.to(memory_format=torch.channels_last)
            order = torch.channels_last
            clients.examples = [(x.contiguous(memory_format=order), y) for x, y in clients.examples]
        self.parameters = list(self.model.parameters())

    def run(self, mine: list[int], round: int, layers: list[Tensor], sums: list[Tensor]) -> float:
        """Adds the weights that each client of ``mine`` reaches from ``layers`` to ``sums``; returns their losses."""
        values, losses = [parameter.data for parameter in self.parameters], 0.0
        reduced = self.case.precision == "bfloat16"
        for client in mine:
            torch._foreach_copy_(values, layers)
            inputs, labels = self.clients.examples[client]
            batches = self.clients.orders[client, round].split(self.case.batch)
            total = torch.zeros(())
            for batch in batches:
                with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                    loss = nn.functional.cross_entropy(self.model(inputs[batch]), labels[batch])
                torch._foreach_add_(values, list(torch.autograd.grad(loss, self.parameters)), alpha=-self.case.lr)
                total += loss.detach()
            torch._foreach_add_(sums, values)
            losses += float(total) / len(batches)
        return losses


class _Stack(_Loop):
    """The same, `STACK` clients of a multilayer perceptron in one batched product; all have equally many examples."""

    def run(self, mine: list[int], round: int, layers: list[Tensor], sums: list[Tensor]) -> float:
        losses = 0.0
        for start in range(0, len(mine), STACK):
            group = mine[start : start + STACK]
            inputs = torch.stack([self.clients.examples[client][0].flatten(1) for client in group])
            labels = torch.stack([self.clients.examples[client][1] for client in group])
            orders = torch.stack([self.clients.orders[client, round] for client in group])
            values = [layer.expand(len(group), *layer.shape).clone() for layer in layers]
            batches = orders.split(self.case.batch, 1)
            here = torch.arange(len(group))[:, None]
            for batch in batches:
                parameters = [value.detach().requires_grad_() for value in values]
                x = inputs[here, batch]
                for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
                    x = x.relu() if weight is not parameters[0] else x
                    x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
                chosen = x.log_softmax(-1).gather(-1, labels[here, batch].unsqueeze(-1))
                loss = -chosen.mean((1, 2)).sum()
                torch._foreach_add_(values, list(torch.autograd.grad(loss, parameters)), alpha=-self.case.lr)
                losses += float(loss.detach()) / len(batches)
            torch._foreach_add_(sums, [value.sum(0) for value in values])
        return losses


def _bare(case: Case, folder: str, rounds: int, kind: type[_Loop]) -> Outcome:
    clients = Clients(case, folder, rounds)
    initial = flat(clients.model.state_dict())
    shapes = [parameter.shape for parameter in clients.model.parameters()]
    sizes = [shape.numel() for shape in shapes]
    model, partial = initial.clone().share_memory_(), torch.zeros(CORES, len(initial)).share_memory_()
    losses = torch.zeros(CORES).share_memory_()
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(CORES)
    slices = np.array_split(np.arange(len(initial)), CORES)
    stamps: list[float] = []

    def views(vector: Tensor) -> list[Tensor]:
        return [piece.view(shape) for piece, shape in zip(vector.split(sizes), shapes, strict=True)]

    def work(rank: int) -> None:
        trainer, own = kind(clients), slice(int(slices[rank][0]), int(slices[rank][-1]) + 1)
        mine = list(range(rank, case.clients, CORES))
        for round in range(1, rounds + 1):
            partial[rank].zero_()
            losses[rank] = trainer.run(mine, round, views(model), views(partial[rank]))
            barrier.wait()
            torch.sum(partial[:, own], 0, out=model[own]).div_(case.clients)
            barrier.wait()
            if not rank:
                stamps.append(time.perf_counter())

    others = [fork.Process(target=work, args=(rank,)) for rank in range(1, CORES)]
    for process in others:
        process.start()
    work(0)
    for process in others:
        process.join()
    return stamps, model - initial, float(losses.sum()) / case.clients


# ---------------------------------------------------------------------- pfl-research


def pfl(case: Case, folder: str, rounds: int, peers: str) -> Outcome:
    """pfl-research with one process a core; this one is rank 0."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        addresses = ",".join([f"localhost:{free.getsockname()[1]}"] * CORES)  # only the first is used
    os.environ.update(PFL_WORKER_ADDRESSES=addresses, PFL_WORKER_RANK="0", PFL_PYTORCH_DEVICE="cpu")
    program = f"import peers\nfrom common import Case\npeers.pfl_worker({case!r}, {folder!r}, {rounds}, {peers!r})"
    others = [
        subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PFL_WORKER_RANK": str(rank)})
        for rank in range(1, CORES)
    ]
    try:
        return pfl_worker(case, folder, rounds, peers)
    finally:
        for process in others:
            process.wait()


def pfl_worker(case: Case, folder: str, rounds: int, peers: str) -> Outcome:
    """One process of `pfl`."""
    sys.path.append(peers)
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import MinimizeReuseUserSampler
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.internal.ops import pytorch_ops
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    logging.disable()
    clients = Clients(case, folder, rounds)
    initial, stamps, losses = flat(clients.model.state_dict()).clone(), [], []

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(clients.model(inputs), labels)
        losses.append(value.detach().clone())  # pfl divides it in place
        return value

    clients.model.loss, clients.model.metrics = loss, lambda *batch: {}  # pfl asks for both, and evaluates nothing here

    class Stamp(TrainingProcessCallback):
        def after_central_iteration(
            self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
        ) -> tuple[bool, Metrics]:
            stamps.append(time.perf_counter())
            if len(stamps) < rounds:
                losses.clear()
            return False, Metrics()

    def dataset(client: int) -> Dataset:
        inputs, labels = clients.examples[client]
        order = clients.orders[client, len(stamps) + 1]
        return Dataset([inputs[order], labels[order]], user_id=client)

    users = FederatedDataset(dataset, MinimizeReuseUserSampler(range(case.clients)))
    model = PyTorchModel(clients.model, torch.optim.SGD, torch.optim.SGD(clients.model.parameters(), 1.0))
    FederatedAveraging().run(
        NNAlgorithmParams(rounds, rounds + 1, case.clients, None),
        SimulatedBackend(users, users, [WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_batch_size=case.batch, local_num_epochs=1, local_learning_rate=case.lr, local_max_grad_norm=None
        ),
        callbacks=[Stamp()],
        send_metrics_to_platform=False,
    )
    mean = torch.stack(losses).mean()
    pytorch_ops.distributed.all_reduce([mean], average=True)
    return stamps, flat(clients.model.state_dict()) - initial, float(mean)


# ---------------------------------------------------------------------- FedLab


def fedlab(case: Case, folder: str, rounds: int, peers: str) -> Outcome:
    """FedLab's standalone pipeline."""
    sys.path.append(peers)
    from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
    from fedlab.contrib.algorithm.basic_server import SyncServerHandler
    from fedlab.core.standalone import StandalonePipeline

    logging.disable()
    clients = Clients(case, folder, rounds)
    torch.set_num_threads(CORES)
    initial, stamps, losses = flat(clients.model.state_dict()).clone(), [], []

    class Batches:
        """The data set of a trainer; a loader is a list of batches."""

        def get_dataloader(self, client: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
            inputs, labels = clients.examples[client]
            orders = clients.orders[client, len(stamps) + 1].split(batch_size)
            return [(inputs[batch], labels[batch]) for batch in orders]

    class Pipeline(StandalonePipeline):
        def evaluate(self) -> None:
            stamps.append(time.perf_counter())
            if len(stamps) < rounds:
                losses.clear()

    def criterion(output: Tensor, target: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(output, target)
        losses.append(loss.detach())
        return loss

    trainer = SGDSerialClientTrainer(clients.model, case.clients)
    trainer.setup_dataset(Batches())
    trainer.setup_optim(1, case.batch, case.lr)
    trainer.criterion = criterion
    handler = SyncServerHandler(clients.model, rounds, 1.0)
    Pipeline(handler, trainer).main()
    return stamps, handler.model_parameters - initial, float(torch.stack(losses).mean())


# ---------------------------------------------------------------------- BlazeFL


def blazefl(case: Case, folder: str, rounds: int, peers: str) -> Outcome:
    """BlazeFL's federated averaging with one thread a core; it reports no training loss."""
    sys.path.append(peers)
    from blazefl.contrib import FedAvgBaseServerHandler, FedAvgThreadPoolClientTrainer

    clients = Clients(case, folder, rounds)
    initial, stamps = flat(clients.model.state_dict()).clone(), []

    class Selector:
        """Hands out networks: BlazeFL asks for a new one for each client, and copying is cheaper than initialising."""

        def select_model(self, name: str) -> nn.Module:
            return copy.deepcopy(clients.model)

    class Batches(list):
        """A loader: a list of batches that knows its data set."""

        dataset: Tensor

    class Partition:
        """Where a trainer finds its loaders."""

        def get_dataloader(self, type_: str, cid: int, batch_size: int, generator: torch.Generator) -> Batches:
            inputs, labels = clients.examples[cid]
            orders = clients.orders[cid, len(stamps) + 1].split(batch_size)
            loader = Batches((inputs[batch], labels[batch]) for batch in orders)
            loader.dataset = labels
            return loader

    shared: dict[str, Any] = {"model_selector": Selector(), "model_name": case.model, "dataset": Partition()}
    shared |= {"device": "cpu", "num_clients": case.clients, "batch_size": case.batch, "seed": 0}
    handler = FedAvgBaseServerHandler(**shared, global_round=rounds, sample_ratio=1.0)
    trainer = FedAvgThreadPoolClientTrainer(**shared, epochs=1, lr=case.lr, num_parallels=CORES)
    while not handler.is_stopped():
        trainer.local_process(handler.downlink_package(), handler.sample_clients())
        for package in trainer.uplink_package():
            handler.load(package)
        stamps.append(time.perf_counter())
    return stamps, flat(handler.model.state_dict()) - initial, float("nan")


# ---------------------------------------------------------------------- the table


PEERS = {"pfl": pfl, "fedlab": fedlab, "blazefl": blazefl}  # that --peers may have to provide
SIDES = {"bare": bare, "bare stack": bare_stack, "flower": flower, **PEERS}


def compare(name: str, measured: int, mnist: Path, peers: str) -> None:
    """Run the sides of a case and print its rows, fedforget's last."""
    case, absent = CASES[name], {side for side in PEERS if not find_spec(side)}
    measured = measured or case.rounds
    if case.precision != "float32" and "precision" not in {field.name for field in fields(Task)}:
        print(row(case.title, "skipped: this engine trains in float32 only", *[""] * 6), flush=True)
        return
    with TemporaryDirectory() as temporary:
        work = (case, folder_for(case, mnist, Path(temporary)), WARM_UP + measured)
        outcomes = {}
        for side in BOUNDS[name]:
            if side not in absent:
                more = (peers,) if side in PEERS else ()
                outcomes[side] = in_fresh_process(SIDES[side], *work, *more)
        outcomes["fedforget"] = in_fresh_process(fedforget, *work)
    seconds = {side: statistics.median(np.diff(stamps)[-measured:]) for side, (stamps, _, _) in outcomes.items()}
    _, reached, _ = outcomes["bare"]
    for side, bound in [*BOUNDS[name].items(), ("fedforget", None)]:
        if side in absent:
            print(row(case.title, f"{side}: skipped, it cannot be imported", *[""] * 6), flush=True)
            continue
        _, moved, loss = outcomes[side]
        ratio = seconds[side] / seconds["fedforget"]
        verdict = met(ratio >= bound) if bound else ""
        distance = float((moved - reached).norm() / reached.norm())
        wanted = f">= {bound:.2f}" if bound else ""
        print(row(case.title, side, f"{seconds[side]:.4f}", f"{ratio:.2f}", wanted, verdict, f"{loss:.4f}",
                  f"{distance:.0e}"), flush=True)  # fmt: skip


def main() -> None:
    """Run the cases asked and print the table."""
    parser = argparse.ArgumentParser(description="Seconds a round: fedforget and its peers.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=0, help="rounds measured; 0 = 10 for small nets, 6, 3 for resnet")
    parser.add_argument("--peers", default="", metavar="FOLDER", help="where these three are, if not installed")
    parser.add_argument("--data", type=Path, default=MNIST, help="MNIST as parquet; random images if it is not there")
    options = parser.parse_args()
    peers = str(Path(options.peers).resolve()) if options.peers else ""
    sys.path.append(peers)
    print("Seconds a round\n")
    columns = ("seconds", "x fedforget", "bound", "verdict", "loss in the last round", "distance from bare")
    print_head("case", "engine", *columns)
    for name in options.cases:
        compare(name, options.rounds, options.data, peers)


if __name__ == "__main__":
    main()
