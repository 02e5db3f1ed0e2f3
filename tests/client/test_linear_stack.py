"""Stacked clients get the numbers of clients trained one by one, whatever their sizes and the recipe."""

import pytest
import torch

from fedforget import data
from fedforget.client.stacks import training
from fedforget.client.stacks.linear import FactoredStack, can_stack
from fedforget.client_app import app
from fedforget.cohort import Cohort, describe
from fedforget.data import DataConfig
from fedforget.data.partition import PartitionConfig
from fedforget.grid import InProcessGrid
from fedforget.messages import Task
from fedforget.models import ModelConfig, build, initial, names
from fedforget.params import Params
from fedforget.request import UnlearningRequest
from fedforget.routines import LocalConfig
from fedforget.seeds import Seeds

DATA = DataConfig(partition=PartitionConfig(kind="dirichlet", clients=15, min_examples=4))


def cohort(mode, local, model="mlp", request=None, nodes=1):
    task = Task(DATA, ModelConfig(model, 0.2), local, "cpu", mode)
    grid = InProcessGrid(app, nodes)
    start = Params.from_module(initial(task.model, (1, 8, 8), 10, 7))
    made = Cohort(grid, describe(grid, task), task, start.layout, Seeds(3), request=request)
    return made, start


@pytest.mark.parametrize("model", ["linear", "mlp"])
@pytest.mark.parametrize(
    "local",
    [
        LocalConfig(batch_size=16),
        LocalConfig(batch_size=16, epochs=3, momentum=0.9, weight_decay=1e-3, lr=0.05),
        LocalConfig(optimizer="adam", lr=0.01, batch_size=10, steps=7),
        LocalConfig(batch_size=1_000_000),
        LocalConfig(batch_size=16, sd_gamma=0.5),
    ],
)
@pytest.mark.parametrize("options", [{}, {"proximal-mu": 0.3}, {"effort": 0.4}])
def test_stacked_equals_sequential(model, local, options):
    (stacked, start), (sequential, _) = (cohort(mode, local, model) for mode in ("stacked", "sequential"))
    one, other = (each.train(start, **options) for each in (stacked, sequential))
    assert [reply.client for reply in one] == [reply.client for reply in other] == list(range(15))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.update.flat, b.update.flat, rtol=2e-5, atol=2e-6)
        assert a.num_examples == b.num_examples and a.loss == pytest.approx(b.loss, rel=1e-5)
    costs = [each.cost.to_dict() | {"seconds": 0} for each in (stacked, sequential)]
    assert costs[0] == costs[1]


def test_stacked_equals_sequential_in_float64():
    local = LocalConfig(batch_size=16, momentum=0.9)
    (stacked, start), (sequential, _) = (cohort(mode, local) for mode in ("stacked", "sequential"))
    one, other = (each.train(start.double()) for each in (stacked, sequential))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.update.flat, b.update.flat, rtol=1e-9, atol=1e-13)


def test_sizes_and_requests_are_uneven_enough_to_matter():
    federated = data.load(DATA)
    sizes = [federated.num_train(client) for client in range(15)]
    assert max(sizes) > 4 * min(sizes)


@pytest.mark.parametrize("request_", [UnlearningRequest("class", (0, 1, 2, 3, 4)), UnlearningRequest("client", (2,))])
def test_clients_without_data_are_skipped_and_pairing_holds(request_):
    local = LocalConfig(batch_size=16)
    (stacked, start), (sequential, _) = (cohort(mode, local, request=request_) for mode in ("stacked", "sequential"))
    one, other = stacked.train(start), sequential.train(start)
    assert [reply.client for reply in one] == [reply.client for reply in other]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.update.flat, b.update.flat, rtol=2e-5, atol=2e-6)


def test_stacks_do_not_depend_on_nodes():
    replies = [made.train(start) for made, start in (cohort("auto", LocalConfig(), nodes=n) for n in (1, 2, 5))]
    for other in replies[1:]:
        assert all(a.update.equals(b.update) for a, b in zip(replies[0], other, strict=True))


def test_auto_stacks_networks_of_linear_layers_everywhere():
    for name in names():
        for width in (1.0, 0.5):
            task = Task(DATA, ModelConfig(name, width), LocalConfig())
            everywhere = {task.engine(device) for device in ("cpu", "cuda")} == {"stacked"}
            assert everywhere == can_stack(build(task.model, (1, 8, 8), 10))


def test_stacks_of_a_transformer_are_refused():
    with pytest.raises(ValueError, match="only linear, mlp, lenet5, cnn can be stacked, not vit"):
        Task(DATA, ModelConfig("vit"), LocalConfig(), mode="stacked")


@pytest.mark.parametrize("model", ["linear", "mlp"])
@pytest.mark.parametrize(
    "local",
    [
        LocalConfig(batch_size=16, lr=0.5),  # sizes are uneven: some clients are done before others
        LocalConfig(batch_size=10, steps=7, lr=0.5, lr_decay=0.5),
        LocalConfig(batch_size=1_000_000, epochs=3),
        LocalConfig(batch_size=16, sd_gamma=0.5),
    ],
)
@pytest.mark.parametrize("options", [{}, {"effort": 0.4}])
@pytest.mark.parametrize("double", [False, True])
def test_factored_equals_sequential(monkeypatch, model, local, options, double):
    monkeypatch.setattr(FactoredStack, "pays", lambda *_: True)
    used = []
    finish = FactoredStack.finish
    monkeypatch.setattr(FactoredStack, "finish", lambda *given: used.append(finish(*given)))
    (factored, start), (sequential, _) = (cohort(mode, local, model) for mode in ("stacked", "sequential"))
    start = start.double() if double else start
    one, other = (each.train(start, round=2, **options) for each in (factored, sequential))
    assert len(used) == 2, "fifteen clients are two groups"
    tolerance = {"rtol": 1e-9, "atol": 1e-13} if double else {"rtol": 2e-5, "atol": 4e-6}
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.update.flat, b.update.flat, **tolerance)
        assert a.num_examples == b.num_examples and a.loss == pytest.approx(b.loss, rel=1e-5)
    costs = [each.cost.to_dict() | {"seconds": 0} for each in (factored, sequential)]
    assert costs[0] == costs[1]


def test_a_client_that_diverges_in_a_factored_stack_harms_no_other(monkeypatch):
    monkeypatch.setattr(FactoredStack, "pays", lambda *_: True)
    made, start = cohort("stacked", LocalConfig(batch_size=16, steps=3))
    expected = {reply.client: reply.update for reply in made.train(start, round=1)}
    loss = training._loss

    def spoiled(logits, *others):
        each, slope = loss(logits, *others)
        slope[1] = float("nan")
        return each, slope

    monkeypatch.setattr(training, "_loss", spoiled)
    found = {reply.client: reply.update for reply in made.train(start, round=1)}
    assert len(found) == 15 - 2, "one of each group is left out"
    assert all(update.equals(expected[client]) for client, update in found.items())


@pytest.mark.parametrize(
    "rank, local, factored",
    [
        # Weights 64 x 40, 40 x 40, 40 x 10 are 4,560 numbers; an example's factors 64 + 40 + 40 + 40 + 40 + 10 = 234.
        (19, LocalConfig(batch_size=19, steps=1), True),
        (20, LocalConfig(batch_size=20, steps=1), False),
        (18, LocalConfig(batch_size=6, steps=3), True),
        (18, LocalConfig(batch_size=6, steps=3, momentum=0.9), False),
        (18, LocalConfig(batch_size=6, steps=3, weight_decay=0.1), False),
        (18, LocalConfig(batch_size=6, steps=3, optimizer="adam"), False),
    ],
)
def test_stacks_are_factored_where_it_pays(monkeypatch, rank, local, factored):
    made = []
    monkeypatch.setattr(training, "FactoredStack", spy := type("Spy", (FactoredStack,), {}))
    spy.__init__ = lambda self, *given: made.append(given[-1]) or FactoredStack.__init__(self, *given)
    trained, start = cohort("stacked", local)
    trained.train(start)
    assert made == ([rank] * 2 if factored else [])
