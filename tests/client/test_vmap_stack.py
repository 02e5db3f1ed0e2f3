"""Clients of any network trained in one step get the numbers of clients trained one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from flwr.app import Message
from torch import nn

from fedforget import messages
from fedforget.client.stacks.vmap import VmapStack
from fedforget.client_app import app
from fedforget.cohort import Cohort, describe
from fedforget.data import DataConfig, load
from fedforget.data.partition import PartitionConfig
from fedforget.grid import InProcessGrid
from fedforget.messages import Task
from fedforget.models import ModelConfig, initial, names
from fedforget.params import Params
from fedforget.request import UnlearningRequest
from fedforget.routines import LocalConfig
from fedforget.seeds import Seeds
from fedforget.testing import CountingGrid

# 5 clients of 117 to 486 examples
DATA = DataConfig(partition=PartitionConfig(kind="dirichlet", clients=5, min_examples=4))
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
GROUPED = [("vmap", name) for name in names()] + [("stacked", "lenet5"), ("stacked", "cnn")]
RECIPES = [
    LocalConfig(batch_size=64, lr=0.05),
    LocalConfig(batch_size=48, steps=3, momentum=0.9, weight_decay=1e-2, lr=0.05),
    LocalConfig(batch_size=100, optimizer="adam", lr=1e-3),
    LocalConfig(batch_size=1_000_000, sd_gamma=0.5),
]


def cohort(
    mode: str, local: LocalConfig, model: str, device: str = "cpu", precision: str = "float32", **other
) -> tuple[Cohort, Params]:
    task = Task(DATA, ModelConfig(model, 0.1), local, device, mode, precision)
    grid = InProcessGrid(app, other.pop("nodes", 1))
    start = Params.from_module(initial(task.model, (1, 8, 8), 10, 7))
    return Cohort(grid, describe(grid, task), task, start.layout, Seeds(3), **other), start


def assert_alike(one, other, bound: float) -> None:
    """Updates differ by at most this share of their length."""
    assert [reply.client for reply in one] == [reply.client for reply in other]
    for a, b in zip(one, other, strict=True):
        assert (a.update - b.update).norm() <= bound * b.update.norm()
        assert a.num_examples == b.num_examples and a.loss == pytest.approx(b.loss, rel=1e-5)


def test_sizes_are_uneven_enough_to_matter() -> None:
    federated = load(DATA)
    sizes = [federated.num_train(client) for client in range(5)]
    assert max(sizes) > 3 * min(sizes) and len({-(-size // 64) for size in sizes}) > 2


@pytest.mark.parametrize(("mode", "model"), GROUPED)
@pytest.mark.parametrize("local", RECIPES, ids=["sgd", "momentum", "adam", "whole"])
def test_groups_equal_sequential_in_float64(mode: str, model: str, local: LocalConfig) -> None:
    # Adam divides by the size of a gradient, that of the ViT's key biases is rounding alone, and a proximal term feeds
    # what becomes of it back.
    options = {"proximal-mu": 0.0 if local.optimizer == "adam" else 0.3}
    (grouped, start), (sequential, _) = (cohort(how, local, model) for how in (mode, "sequential"))
    one, other = (each.train(start.double(), **options) for each in (grouped, sequential))
    assert one[0].update.flat.dtype == torch.float64 and len(one) == 5
    assert_alike(one, other, 1e-11)
    costs = [each.cost.to_dict() | {"seconds": 0} for each in (grouped, sequential)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("options", [{}, {"effort": 0.4}, {"proximal-mu": 0.3}])
@pytest.mark.parametrize(("mode", "model"), GROUPED)
def test_groups_equal_sequential_in_float32(mode: str, model: str, options: dict, device: str) -> None:
    # A ResNet this narrow is so steep that after some steps rounding decides on the sign of an activation (either
    # engine is then as far from float64 as the other); a single step shows that both do the same.
    local = LocalConfig(batch_size=64, momentum=0.5, lr=0.02, steps=1 if "resnet" in model else 0)
    (grouped, start), (sequential, _) = (
        cohort(how, local, model, where) for how, where in ((mode, device), ("sequential", "cpu"))
    )
    one, other = (each.train(start, **options) for each in (grouped, sequential))
    assert_alike(one, other, 1e-5 if device == "cpu" else 1e-3)


@pytest.mark.parametrize("mode", ["vmap", "stacked"])
@pytest.mark.parametrize("request_", [UnlearningRequest("class", (0, 1, 2, 3, 4)), UnlearningRequest("client", (2,))])
def test_clients_without_data_are_skipped_and_pairing_holds(mode: str, request_: UnlearningRequest) -> None:
    (grouped, start), (sequential, _) = (
        cohort(how, LocalConfig(batch_size=32), "lenet5", request=request_) for how in (mode, "sequential")
    )
    assert_alike(grouped.train(start, range(5)), sequential.train(start, range(5)), 1e-5)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("mode", ["vmap", "stacked"])
def test_groups_do_not_depend_on_nodes(mode: str, device: str) -> None:
    made = (cohort(mode, LocalConfig(), "cnn", device, nodes=nodes) for nodes in (1, 2, 5))
    first, *others = (each.train(start) for each, start in made)
    for other in others:
        assert all(a.update.equals(b.update) for a, b in zip(first, other, strict=True))


def test_groups_are_as_large_as_the_device_likes() -> None:
    data = DataConfig(partition=PartitionConfig(kind="iid", clients=70))
    task = Task(data, ModelConfig("cnn", 0.1), LocalConfig(steps=1), "cpu")
    grid = CountingGrid(1)
    federation = describe(grid, task)
    start = Params.from_module(initial(task.model, (1, 8, 8), 10, 7))
    sizes = {}
    # The nodes train on the CPU all the same; what counts is what they are asked.
    for device, mode in (("cpu", "auto"), ("cpu", "vmap"), ("cuda:0", "vmap")):
        grid.work.clear()
        there = replace(federation, about={**federation.about, "device": device})
        Cohort(grid, there, replace(task, mode=mode), start.layout, Seeds(3)).train(start)
        sizes[device, mode] = [len(group) for group in grid.work[0].groups]
    assert sizes["cpu", "auto"] == []  # one by one
    assert sizes["cpu", "vmap"] == [12] * 4 + [11] * 2
    assert sizes["cuda:0", "vmap"] == [18, 18, 17, 17]


def test_auto_is_a_rule_of_device_and_network_alone() -> None:
    chosen = {
        (name, device): Task(DATA, ModelConfig(name), LocalConfig(), device).engine(device)
        for name in names()
        for device in ("cpu", "cuda")
    }
    assert {name for (name, device), how in chosen.items() if how == "vmap"} == {"cnn", "lenet5"}
    assert {device for (_, device), how in chosen.items() if how == "vmap"} == {"cuda"}
    assert {name for (name, device), how in chosen.items() if how == "stacked"} == {"linear", "mlp", "lenet5"}
    wide = {
        (name, width): Task(DATA, ModelConfig(name, width), LocalConfig()).engine("cpu")
        for name in ("lenet5", "cnn")
        for width in (0.5, 1.0, 1.5)
    }
    assert {key for key, how in wide.items() if how == "stacked"} == {("lenet5", 0.5), ("lenet5", 1.0)}
    for device in ("cpu", "cuda"):
        assert all(chosen[name, device] == "stacked" for name in ("linear", "mlp"))
        assert all(chosen[name, device] == "sequential" for name in ("resnet18", "resnet34", "vit"))
    assert Task(DATA, ModelConfig("vit"), LocalConfig(), "cpu", "vmap").engine("cpu") == "vmap"


def test_a_network_that_draws_random_numbers_is_refused() -> None:
    stack = VmapStack(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    parameters = [torch.ones(3, 2, 2), torch.ones(3, 2)]
    with pytest.raises(RuntimeError, match="random"):
        stack.logits(parameters, torch.ones(3, 4, 2))


class TwoDevices(InProcessGrid):
    """Of its nodes, the second says that it computes on a GPU."""

    def _answer(self, message: Message, reply: Message) -> None:
        if message.metadata.dst_node_id == 2:
            arrays, report = messages.unpack_reply(reply.content)
            report["node"]["device"] = "cuda:0"
            reply = Message(messages.pack_reply(arrays, report), reply_to=message)
        super()._answer(message, reply)


def test_nodes_with_different_devices_are_refused() -> None:
    task = Task(DATA, ModelConfig("linear"), LocalConfig(), "cpu")
    assert describe(TwoDevices(app, 1), task).device == "cpu"
    with pytest.raises(ValueError, match="SuperNodes compute on cpu and on cuda.* set engine.device=cpu"):
        describe(TwoDevices(app, 3), task)
