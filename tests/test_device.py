"""Client work on another device than the CPU: nothing is mixed up, and the numbers are the same.

The device is a pretended card. A tensor on it names another device than the CPU and holds a tensor of the CPU, which
computes for it. So results are those of the CPU to the bit, and an operation on tensors of both devices, or a look at
the bytes of one that was not brought back, ends in an error, as on a real card. What it cannot show is how a card's own
kernels round, which of them are missing, and how fast they are: where a real card is at hand, test_vmap_stack.py,
test_linear_stack.py and test_precision.py use it.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from fedforget import cohort, description
from fedforget.client import workbench
from fedforget.client_app import app
from fedforget.cohort import Cohort, describe
from fedforget.data import DataConfig
from fedforget.data.audit_sets import AUDIT_SETS
from fedforget.data.corruption import CorruptionConfig
from fedforget.data.partition import PartitionConfig
from fedforget.grid import InProcessGrid
from fedforget.messages import Task
from fedforget.models import ModelConfig, initial, names
from fedforget.params import Params
from fedforget.request import UnlearningRequest
from fedforget.routines import LocalConfig
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig, all_strategies
from fedforget.testing import REQUESTS, Toy, serve

CARD = torch.device("meta")  # of the CUDA device that it stands for, torch's autograd would ask for a stream
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._foreach_copy_.default, aten._to_copy.default}  # between devices
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class OnCard(torch.Tensor):
    """A tensor on the card; ``there`` is the CPU's tensor that holds its numbers."""

    there: torch.Tensor

    @staticmethod
    def __new__(cls, there: torch.Tensor) -> OnCard:
        """Give a tensor of the CPU out as one of the card."""
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            there.shape,
            strides=there.stride(),
            storage_offset=there.storage_offset(),
            dtype=there.dtype,
            device=CARD,
        )
        self.there = there
        return self

    def __repr__(self) -> str:
        return f"OnCard({self.there})"

    def tolist(self):
        """As on a card; torch leaves it to each subclass."""
        return self.there.tolist()

    def data_ptr(self):
        """Where the numbers are."""
        return self.there.data_ptr()

    @property
    def data(self):
        """The same numbers, without their history."""
        return self.detach()

    @data.setter
    def data(self, other: OnCard) -> None:
        torch.Tensor.data.__set__(self, other)
        self.there = other.there

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


class PretendedCard(TorchDispatchMode):
    """As if this machine had `CARD`: catches what makes tensors there out of none, or copies them there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


def _compute(func, args, kwargs):
    """Run an operation where its tensors are.

    Raises:
        RuntimeError: if they are on both devices, and it is none that copies between them.
    """
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    to_card = any(isinstance(each, OnCard) for each in tensors)
    # A single number may stay in main memory, and so may the places in a tensor of the card.
    strangers = any(not isinstance(each, OnCard) and each.dim() for each in tensors)
    may_mix = func in COPIES or (func in INDEXING and isinstance(args[0], OnCard))
    if to_card and strangers and not may_mix:
        raise RuntimeError(f"{func} was given tensors of the card and of the CPU")
    if func is aten.copy_.default:
        to_card = isinstance(args[0], OnCard)
    if kwargs.get("device") is not None:
        to_card = torch.device(kwargs["device"]) == CARD
        kwargs = {**kwargs, "device": "cpu"}
    held = {id(each.there): each for each in tensors if isinstance(each, OnCard)}
    plain_args, plain_kwargs = tree_map(lambda each: each.there if isinstance(each, OnCard) else each, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)

    def give_out(each):
        if not isinstance(each, torch.Tensor) or not to_card:
            return each
        return held[id(each)] if id(each) in held else OnCard(each)  # in place: what it was given

    return tree_map(give_out, result)


RECIPES = [
    LocalConfig(batch_size=64, lr=0.05),
    LocalConfig(batch_size=48, steps=3, momentum=0.9, weight_decay=1e-2, lr=0.05),
    LocalConfig(batch_size=100, optimizer="adam", lr=1e-3, sd_gamma=0.5),
    LocalConfig(batch_size=6, steps=2, lr=0.05),  # which is factored in a stack
]
NETWORKS = sorted(set(names()) - {"resnet34"})  # it has the blocks of resnet18
CASES = [(name, mode, RECIPES[1]) for name in NETWORKS for mode in ("sequential", "vmap")]
CASES += [("mlp", mode, recipe) for mode in ("sequential", "vmap", "stacked") for recipe in RECIPES]
CASES += [(name, "stacked", recipe) for name in ("lenet5", "cnn") for recipe in RECIPES]


@pytest.fixture
def on(monkeypatch):
    """Where client work is done within a ``with`` block: on the CPU, or on the pretended card."""
    monkeypatch.setattr(description, "DEVICES", (*description.DEVICES, CARD.type))
    monkeypatch.setitem(cohort.GROUP, CARD.type, cohort.GROUP["cpu"])

    @contextlib.contextmanager
    def place(device: str):
        workbench.workbench.cache_clear()
        with contextlib.ExitStack() as stack:
            if device == "card":
                monkeypatch.setattr(workbench, "device_of", lambda *_: CARD)
                stack.enter_context(PretendedCard())
            yield
        monkeypatch.undo()
        monkeypatch.setattr(description, "DEVICES", (*description.DEVICES, CARD.type))
        monkeypatch.setitem(cohort.GROUP, CARD.type, cohort.GROUP["cpu"])
        workbench.workbench.cache_clear()

    return place


def federation(task: Task, **other) -> tuple[Cohort, Params]:
    grid = InProcessGrid(app)
    found = describe(grid, task)
    start = Params.from_module(initial(task.model, (1, 8, 8), 10, 7))
    return Cohort(grid, found, task, start.layout, Seeds(3), **other), start


def test_the_pretended_card_refuses_what_a_card_would() -> None:
    with PretendedCard():
        there = torch.ones(2, 3, device=CARD)
        assert isinstance(there, OnCard) and there.device == CARD
        assert (there @ torch.ones(3, 1).to(CARD)).cpu().tolist() == [[3.0], [3.0]]
        assert there[torch.tensor([1])].sum().item() == 3.0
        for mixed in (
            lambda: there + torch.ones(2, 3),
            lambda: torch.ones(2, 2) @ there,
            lambda: torch.stack([there, torch.ones(2, 3)]),
            lambda: torch.ones(2)[there.long()[0, :1]],
            lambda: torch.ones(2, 3) * there.sum(),
        ):
            with pytest.raises(RuntimeError, match="tensors of the card and of the CPU"):
                mixed()
        with pytest.raises(RuntimeError):
            there.numpy()


@pytest.mark.parametrize(("model", "mode", "recipe"), CASES)
def test_training_is_the_same(on, model: str, mode: str, recipe: LocalConfig) -> None:
    data = DataConfig(partition=PartitionConfig(kind="dirichlet", clients=5, min_examples=4))
    task = Task(data, ModelConfig(model, 0.1), recipe, "cpu", mode)
    answers = {}
    for device in ("cpu", "card"):
        with on(device):
            clients, start = federation(task)
            each = clients.train(start, range(5), **{"proximal-mu": 0.3})
            together = clients.reduce(start, range(5))
            double = clients.reduce(start.double(), range(2))
            answers[device] = [*(reply.update for reply in each), together, double], clients.cost.bytes_up
            assert clients.federation.device == (CARD.type if device == "card" else "cpu")
    mine, theirs = answers["card"][0], answers["cpu"][0]
    assert len(mine) == 7 and all(a.equals(b) for a, b in zip(mine, theirs, strict=True))
    assert answers["card"][1] == answers["cpu"][1]


@pytest.mark.parametrize(("model", "kind"), [("mlp", "canary"), ("cnn", "noise"), ("vit", "trigger")])
def test_audits_are_the_same(on, model: str, kind: str) -> None:
    corruption = CorruptionConfig(kind, (2,), share=0.2, canaries=8)
    data = DataConfig(partition=PartitionConfig(clients=5), corruption=corruption)
    task = Task(data, ModelConfig(model, 0.1), RECIPES[0], "cpu")
    wanted = dict.fromkeys(AUDIT_SETS, 50)
    if kind != "trigger":
        del wanted["trigger"]
    answers = {}
    for device in ("cpu", "card"):
        with on(device):
            clients, start = federation(task, request=UnlearningRequest("client", (2,)))
            answers[device] = clients.evaluate(start, wanted)
    for name, mine in answers["card"].items():
        for a, b in zip(mine, answers["cpu"][name], strict=True):
            assert (a is None and b is None) or np.array_equal(a, b), name


@pytest.mark.parametrize("name", sorted(all_strategies()))
def test_strategies_make_the_same_models(on, tmp_path: Path, name: str) -> None:
    strategy = all_strategies()[name]
    scope = sorted(strategy.scopes)[0]
    made = {}
    for device in ("cpu", "card"):
        with on(device):
            toy = Toy(tmp_path / device)
            toy.task = replace(toy.task, mode="auto")
            made[device], clients, _ = serve(toy, strategy(None, LearningConfig()), REQUESTS[scope])
            assert not [note for note in clients.notes if "left out" in note]
    assert len(made["cpu"]) == len(made["card"])
    assert all(a.equals(b) for a, b in zip(made["card"], made["cpu"], strict=True))
