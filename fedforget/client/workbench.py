"""The data and the network of a task on one device: built once a process, and kept.

Everything runs on one intra-op thread: two processes with one thread each beat one process with two, and one thread
makes sums reproducible. Convolutional networks lie channels-last, which a CPU's convolutions and pooling are faster in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from fedforget import data, models
from fedforget.client.flat_module import FlatModule
from fedforget.data.audit_sets import SPHERE, TEST
from fedforget.messages import Task, Work
from fedforget.metrics import regions
from fedforget.params import Layout

RADIUS = 0.5  # of spheres of points, in typical distances between test images, which every node holds
NEIGHBOURS = 500  # test images among which that distance is taken
AUDITED, SPHERES = 1024, 8  # parts of audit sets whose rows (16 bytes an example), and whose points, are remembered
HELD = 2048  # parts of clients' data that are remembered (25 bytes an example)


@dataclass(frozen=True)
class Workbench:
    """The data and the network of a task on this process's device.

    Args:
        data: the federated data set.
        inputs: all training examples on the device, ``[N, C, H, W]``.
        labels: their labels on the device, ``[N]``.
        test_inputs: the global test set on the device.
        network: the network on the device; its parameters are overwritten by each client.
        task: what it was built for.
    """

    data: data.FederatedData
    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    network: FlatModule
    task: Task

    @property
    def model(self) -> nn.Module:
        """The module of the network."""
        return self.network.module

    @property
    def layout(self) -> Layout:
        """How a flat vector divides into the network's parameters."""
        return self.network.layout

    @cached_property
    def radius(self) -> float:
        """Of the spheres around anchors, near and far: alike on every node."""
        some = self.data.seeds.numpy("regions").permutation(len(self.data.test_labels))[:NEIGHBOURS]
        return RADIUS * regions.typical_distance(self.data.test_inputs[some])

    @cached_property
    def audited(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """`_audited`, which every model of a trajectory is asked about: remembered, for its latest arguments."""
        return lru_cache(maxsize=AUDITED)(partial(_audited, self))

    @cached_property
    def held(self) -> Callable[..., tuple[Tensor, Tensor, int, Tensor, Tensor]]:
        """`_held`, which every round of a trajectory asks about: remembered as `audited` is."""
        return lru_cache(maxsize=HELD)(partial(_held, self))

    @cached_property
    def spheres(self) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        """`_spheres`, remembered as `audited` is."""
        return lru_cache(maxsize=SPHERES)(partial(_spheres, self))


def device_of(name: str, precision: str = "float32") -> torch.device:
    """The device called ``name``.

    Raises:
        ValueError: if it is ``cuda`` and there is no such device, or does not multiply in the precision asked.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("engine.device=cuda, but this process sees no CUDA device; use engine.device=cpu or auto")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError("engine.precision=tf32 needs a CUDA device, not cpu; use engine.precision=float32 or bfloat16")
    return device


@lru_cache(maxsize=2)
def workbench(task_json: str) -> Workbench:
    """The workbench of a task, built once a process."""
    task = Task.from_json(task_json)
    device = device_of(task.device, task.precision)
    federated = data.load(task.data)
    model = models.build(task.model, federated.input_shape, federated.num_classes).to(device)
    inputs, test_inputs = federated.inputs.to(device), federated.test_inputs.to(device)
    if _channels_last(model, task.precision):
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        test_inputs = test_inputs.contiguous(memory_format=torch.channels_last)
    return Workbench(federated, inputs, federated.labels.to(device), test_inputs, FlatModule(model), task)


def _channels_last(model: nn.Module, precision: str) -> bool:
    """Whether a network's images and weights lie with their channels last.

    That makes pooling several times faster on a CPU, and products in bfloat16. A network without either gains nothing,
    but its weights would have to be turned over for every message.
    """
    kinds = {type(module) for module in model.modules()}
    return nn.Conv2d in kinds and (nn.MaxPool2d in kinds or precision == "bfloat16")


def prepare(work: Work) -> Workbench:
    """The workbench of a message's task, with this process set up for numbers that repeat."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    return workbench(work.task)


def multiply_in(precision: str) -> None:
    """How CUDA multiplies float32 matrices from here on; torch itself would use TF32 in convolutions."""
    products = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = products
    torch.backends.cudnn.conv.fp32_precision = products  # type: ignore[attr-defined]


def _held(
    bench: Workbench, whose: tuple[Any, ...], client: int, split: str, expected: tuple[Any, ...]
) -> tuple[Tensor, Tensor, int, Tensor, Tensor]:
    """``rows``, ``places``, ``capacity``, ``forgotten`` and ``planned`` of a `routines.Client`.

    ``whose`` is as in `_audited`; ``expected`` are the requests that clients know of.
    """
    seeds, removed, request = whose
    whole = bench.data.split(client, "train", seeds)
    all_of_it = split == "train" and not removed
    mine = whole if all_of_it else bench.data.split(client, split, seeds, removed, request)
    part = not all_of_it and split in ("train", "retain", "forget", "few")
    places = torch.searchsorted(whole, mine) if part else torch.arange(mine.numel())
    forgotten = torch.zeros_like(mine, dtype=torch.bool)
    if request:
        forgotten = torch.isin(mine, bench.data.split(client, "forget", seeds, removed, request))
    planned = torch.full_like(mine, -1)
    for number, one in enumerate(expected):
        named = bench.data.split(client, "forget", seeds, expected[:number], one)
        planned[torch.isin(mine, named)] = number
    device = bench.labels.device
    return mine.to(device), places, max(whole.numel(), mine.numel()), forgotten.to(device), planned.to(device)


def _audited(
    bench: Workbench, whose: tuple[Any, ...], client: int, split: str, start: int, stop: int | None
) -> tuple[Tensor, Tensor]:
    """The rows of a part of a split in its audit order, and whether the trajectory trained on each (int64).

    ``whose``, the streams of the trajectory, the requests removed and the one being served, says what is in the split.
    """
    federated = bench.data
    if split == "canary":
        rows = federated.split(client, split, *whose)[start:stop].clone()
        return rows, torch.isin(rows, federated.split(client, "canary_in", *whose)).long()
    # The few examples that an attacker knows, and the rest, are forgotten ones: they keep that set's order.
    order = federated.seeds.numpy("audit", client, "forget" if split in ("few", "rest") else split)
    if client == TEST:
        rows = torch.from_numpy(order.permutation(len(federated.test_labels)))
    else:
        mine = federated.split(client, split, *whose)
        rank = torch.from_numpy(order.permutation(len(federated.labels)))[mine]
        rows = mine[rank.argsort()]
    rows = rows[start:stop].clone()  # what is remembered must not keep all of them
    return rows, torch.ones_like(rows)


def _spheres(bench: Workbench, client: int, anchors: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """`SPHERE` points around each of some rows.

    Returns:
        The numbers of the points (`SPHERE` times the row of the anchor, plus 0, 1, ...), their anchors' labels, and the
        points on the device. An anchor has the same points for every model and trajectory.
    """
    inputs, labels = (
        (bench.test_inputs, bench.data.test_labels) if client == TEST else (bench.inputs, bench.data.labels)
    )
    seeds = bench.data.seeds.child("regions", client)
    spheres = [regions.sphere(inputs[row], bench.radius, SPHERE, seeds.torch(row)) for row in anchors]
    rows = torch.tensor(anchors, dtype=torch.long)
    numbers = SPHERE * rows[:, None] + torch.arange(SPHERE)
    return numbers.flatten(), labels[rows].repeat_interleave(SPHERE), torch.cat([inputs[:0], *spheres])
