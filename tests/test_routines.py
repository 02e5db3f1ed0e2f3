"""Client work: the optimiser, the order of examples, the routines, and which names may be looked up."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import strategies
from fedforget import routines
from fedforget.params import Params
from fedforget.routines import Client, LocalConfig, Optimizer, find, gradient, train
from fedforget.seeds import Seeds

quick = settings(max_examples=40, deadline=None)
SHAPES = [(4, 3), (3,), (2, 2, 2, 2)]


def draw(shape: tuple[int, ...], *names: str | int) -> Tensor:
    return torch.randn(shape, generator=Seeds(0).torch(*names))


def network() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(draw(tuple(parameter.shape), "network", name))
    return module


def client(
    local: LocalConfig,
    places: list[int] | None = None,
    capacity: int = 10,
    options: Mapping[str, int | float | str] | None = None,
    seeds: Seeds = Seeds(7),  # noqa: B008 (a frozen value)
    round: int = 1,
) -> Client:
    """A client whose example at place p is the point (p, noise), so that batches tell which examples they hold."""
    here = list(range(capacity)) if places is None else places
    inputs = torch.stack([torch.arange(float(capacity)), draw((capacity,), "inputs")], dim=1)
    labels = torch.arange(capacity) % 2
    where = torch.tensor(here, dtype=torch.long)
    return Client(0, round, network(), inputs[where], labels[where], where, capacity, local, seeds, options or {})


def seen(worker: Client) -> list[list[int]]:
    """The places of the examples in each batch."""
    return [[int(place) for place in inputs[:, 0]] for inputs, _ in worker.batches()]


# ---------------------------------------------------------------------- optimiser


def against_torch(local: LocalConfig, reference: Callable[..., torch.optim.Optimizer]) -> list[tuple[Tensor, Tensor]]:
    """Both optimisers, five steps in each of rounds 1 to 3, with state that starts afresh in each round."""
    ours = [draw(shape, "start", i) for i, shape in enumerate(SHAPES)]
    theirs = [nn.Parameter(tensor.clone()) for tensor in ours]
    for round in (1, 2, 3):
        mine = Optimizer(ours, local, round)
        other = reference(theirs, lr=local.lr * local.lr_decay ** (round - 1), weight_decay=local.weight_decay)
        for step in range(5):
            gradients = [draw(shape, "gradient", round, step, i) for i, shape in enumerate(SHAPES)]
            mine.step([direction.clone() for direction in gradients])
            for parameter, direction in zip(theirs, gradients, strict=True):
                parameter.grad = direction
            other.step()
        assert mine.steps == 5
    return [(one, two.detach()) for one, two in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
@pytest.mark.parametrize("lr_decay", [1.0, 0.97])
def test_sgd_equals_torch_to_the_bit(momentum: float, weight_decay: float, lr_decay: float) -> None:
    local = LocalConfig(lr=0.1, momentum=momentum, weight_decay=weight_decay, lr_decay=lr_decay)
    for ours, theirs in against_torch(local, partial(torch.optim.SGD, momentum=momentum)):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_adam_equals_torch_closely(weight_decay: float) -> None:
    local = LocalConfig(optimizer="adam", lr=0.01, weight_decay=weight_decay, lr_decay=0.5)
    for ours, theirs in against_torch(local, torch.optim.Adam):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_momentum_and_decay_by_hand() -> None:
    # w = 1, lr 0.5 * 0.5 in round 2, momentum 0.5, weight decay 2, gradients 1 and 1:
    # g = 1 + 2 * 1 = 3, m = 3, w = 1 - 0.25 * 3 = 0.25; then g = 1 + 2 * 0.25 = 1.5, m = 1.5 + 1.5 = 3, w = -0.5.
    weight = torch.tensor([1.0])
    optimizer = Optimizer([weight], LocalConfig(lr=0.5, momentum=0.5, weight_decay=2.0, lr_decay=0.5), round=2)
    ones = torch.ones(1)
    optimizer.step([ones])
    assert weight.item() == 0.25
    optimizer.step([ones])
    assert weight.item() == -0.5
    assert ones.item() == 1.0  # the caller's gradient is left alone


def test_the_first_adam_step_has_the_size_of_the_learning_rate() -> None:
    # Bias correction makes the first step lr * g / |g|, whatever the size of g.
    weights = torch.zeros(2)
    Optimizer([weights], LocalConfig(optimizer="adam", lr=0.1), round=1).step([torch.tensor([1e-3, -50.0])])
    assert weights.tolist() == pytest.approx([-0.1, 0.1], rel=1e-4)


# ---------------------------------------------------------------------- batches


@quick
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 4))
def test_every_example_comes_once_an_epoch(examples: int, batch_size: int, epochs: int) -> None:
    worker = client(LocalConfig(epochs=epochs, batch_size=batch_size), capacity=examples)
    batches = seen(worker)
    epoch_steps = math.ceil(examples / batch_size)
    assert len(batches) == epochs * epoch_steps
    for epoch in range(epochs):
        mine = batches[epoch * epoch_steps : (epoch + 1) * epoch_steps]
        assert sorted(sum(mine, [])) == list(range(examples))
        assert all(len(batch) == batch_size for batch in mine[:-1])
    assert worker.examples == epochs * examples


def test_epochs_are_shuffled_differently() -> None:
    batches = seen(client(LocalConfig(epochs=2, batch_size=20), capacity=20))
    assert batches[0] != batches[1] and batches[0] != list(range(20))


def test_labels_belong_to_their_inputs() -> None:
    for inputs, labels in client(LocalConfig(batch_size=3)).batches():
        assert torch.equal(inputs[:, 0].long() % 2, labels)


@quick
@given(st.integers(1, 10), st.integers(1, 4), st.integers(1, 25))
def test_steps_replace_epochs(examples: int, batch_size: int, steps: int) -> None:
    by_steps = seen(client(LocalConfig(epochs=99, steps=steps, batch_size=batch_size), capacity=examples))
    enough = seen(client(LocalConfig(epochs=steps, batch_size=batch_size), capacity=examples))
    assert len(by_steps) == steps
    assert by_steps == enough[:steps]  # the same batches, only fewer of them


@pytest.mark.parametrize(
    ("local", "effort", "steps"),
    [
        (LocalConfig(epochs=2, batch_size=4), 1.0, 6),  # 10 examples are 3 steps an epoch
        (LocalConfig(epochs=2, batch_size=4), 0.5, 3),
        (LocalConfig(epochs=1, batch_size=4), 0.5, 2),  # 1.5 rounds up
        (LocalConfig(epochs=1, batch_size=4), 0.01, 1),
        (LocalConfig(epochs=1, batch_size=4), 0.0, 0),
        (LocalConfig(steps=7), 0.5, 4),  # 3.5 rounds up
        (LocalConfig(steps=100), 0.07, 7),  # in floats, 0.07 * 100 is a little more than 7
        (LocalConfig(steps=25), 0.28, 7),
    ],
)
def test_effort_is_a_share_of_the_steps_rounded_up(local: LocalConfig, effort: float, steps: int) -> None:
    assert seen(client(local, options={"effort": effort})) == seen(client(local))[:steps]
    assert len(seen(client(local, options={"effort": effort}))) == steps


@quick
@given(st.sets(st.integers(0, 14)), st.integers(1, 3), st.integers(1, 6))
def test_dropping_examples_keeps_the_order_of_the_others(kept: set[int], epochs: int, batch_size: int) -> None:
    whole = sum(seen(client(LocalConfig(epochs=epochs, batch_size=15), capacity=15)), [])
    part = seen(client(LocalConfig(epochs=epochs, batch_size=batch_size), sorted(kept), capacity=15))
    assert sum(part, []) == [place for place in whole if place in kept]


@pytest.mark.parametrize("local", [LocalConfig(epochs=3), LocalConfig(steps=5), LocalConfig(epochs=2, batch_size=1)])
def test_a_client_without_examples_takes_no_step(local: LocalConfig) -> None:
    worker = client(local, places=[])
    assert seen(worker) == [] and worker.examples == 0


def test_the_order_belongs_to_the_seeds() -> None:
    local = LocalConfig(epochs=2, batch_size=3)
    assert seen(client(local)) == seen(client(local))
    assert seen(client(local, seeds=Seeds(8))) != seen(client(local))
    worker = client(local)
    assert seen(worker) == seen(worker)


def test_the_order_is_pinned() -> None:
    assert seen(client(LocalConfig(batch_size=10))) == [Seeds(7).numpy("shuffle", 0).permutation(10).tolist()]


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_equals_a_plain_torch_loop(momentum: float) -> None:
    local = LocalConfig(lr=0.2, momentum=momentum, epochs=3, batch_size=4, lr_decay=0.5)
    worker = client(local, round=2)
    reference = network()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=momentum)  # round 2: 0.2 * 0.5
    losses = []
    for inputs, labels in client(local).batches():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(reference(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    train(worker)
    assert Params.from_module(worker.model).equals(Params.from_module(reference))
    assert (worker.steps, worker.examples) == (9, 30)
    assert float(worker.total_loss) == pytest.approx(sum(losses), rel=1e-6)


def test_the_proximal_term_pulls_towards_the_model_that_was_sent() -> None:
    # FedProx adds mu (w - w_sent) to the gradient: nothing in the first step, mu times the first update in the second.
    mu, lr = 0.5, 0.1
    local = LocalConfig(lr=lr, batch_size=5)
    worker, plain = client(local, options={"proximal-mu": mu}), client(local)
    sent = Params.from_module(worker.model)
    trace = []
    for (inputs, labels), _ in zip(worker.batches(), plain.batches(), strict=True):
        before = Params.from_module(worker.model)
        before.copy_to(plain.model)  # both take this step from the same point
        worker.step(worker.loss(inputs, labels))
        plain.step(plain.loss(inputs, labels))
        difference = Params.from_module(worker.model) - Params.from_module(plain.model)
        expected = (before - sent) * (-lr * mu)
        assert torch.allclose(difference.flat, expected.flat, rtol=0, atol=1e-7)
        trace.append(expected.norm())
    assert trace[0] == 0 and trace[1] > 1e-3


@pytest.mark.parametrize("mu", [0, 0.0])
def test_no_proximal_term_is_plain_training(mu: float) -> None:
    local = LocalConfig(epochs=2, batch_size=3)
    worker, plain = client(local, options={"proximal-mu": mu}), client(local)
    train(worker)
    train(plain)
    assert Params.from_module(worker.model).equals(Params.from_module(plain.model))


def test_gradient_is_the_mean_over_the_whole_split() -> None:
    worker, reference = client(LocalConfig(batch_size=3)), network()
    before = Params.from_module(worker.model)
    reply = gradient(worker)
    loss = nn.functional.cross_entropy(reference(worker.inputs), worker.labels)
    loss.backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters() if parameter.grad is not None}
    assert list(reply.layers()) == list(expected)
    for name, layer in reply.layers().items():
        assert torch.equal(layer, expected[name]), name
    assert (worker.steps, worker.examples) == (1, 10)
    assert Params.from_module(worker.model).equals(before)
    # Also by finite differences along the gradient itself: the loss falls by step * ||g||^2 to first order.
    (before - reply * 1e-2).copy_to(reference)
    fallen = loss.item() - nn.functional.cross_entropy(reference(worker.inputs), worker.labels).item()
    assert fallen == pytest.approx(1e-2 * reply.norm() ** 2, rel=0.15)


def test_options_that_name_fields_of_the_recipe_replace_them() -> None:
    worker = client(LocalConfig(epochs=5, lr=0.1), options={"lr": 0.5, "epochs": 2, "mu": 3.0, "effort": 0.5})
    assert worker.with_recipe().local == LocalConfig(epochs=2, lr=0.5)
    assert worker.with_recipe().options == worker.options
    assert worker.local == LocalConfig(epochs=5, lr=0.1)


# ---------------------------------------------------------------------- names


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A strategy file with a routine of its own and with names that it only imported."""
    source = (
        "from os import system\n"
        "from fedforget.routines import train, LocalConfig\n"
        "def ascend(client):\n    return None\n"
        "NUMBER = 3\n"
    )
    (tmp_path / "borrowed_paper.py").write_text(source)
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path)])
    yield "strategies.borrowed_paper"
    sys.modules.pop("strategies.borrowed_paper", None)
    vars(strategies).pop("borrowed_paper", None)


def test_routines_are_found(paper: str) -> None:
    assert find("fedforget.routines:train") is routines.train
    assert find("fedforget.routines:gradient") is routines.gradient
    assert find(f"{paper}:ascend").__module__ == paper


@pytest.mark.parametrize("function", ["system", "train", "LocalConfig", "NUMBER", "__builtins__", "__name__"])
def test_names_that_a_strategy_only_imported_are_refused(paper: str, function: str) -> None:
    with pytest.raises(ValueError, match=f"{paper}:{function}"):
        find(f"{paper}:{function}")


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "fedforget.store:digest",
        "fedforget.routinesx:train",
        "fedforget.routines.train",
        "fedforget.routines:",
        "fedforget.routines:train:x",
        "fedforget.routines:train()",
        "fedforget.routines:importlib.import_module",
        "fedforget.routines:importlib",
        "fedforget.routines:replace",
        "fedforget.routines:Params",
        "fedforget.routines:PACKAGES",
        "fedforget.routines:nothing_of_that_name",
        "strategies",
        "strategies:x",
        "strategies.:x",
        "strategies..os:system",
        "strategies.no_such_paper:train",
        "",
        ":",
        ":train",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="routine"):
        find(name)


def test_a_refused_module_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "harmful_on_import.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="harmful_on_import:f"):
        find("harmful_on_import:f")
    assert "harmful_on_import" not in sys.modules
