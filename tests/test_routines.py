"""Client work: the optimiser, the order of examples, the routines, and which names may be looked up."""

from __future__ import annotations

import itertools
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
from fedforget import models, routines
from fedforget.params import Params
from fedforget.routines import Client, LocalConfig, Optimizer, Routine, drift, find, fresh, gradient, name_of, train
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


def test_a_client_hears_its_layers_and_only_while_it_listens() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    worker = Client(
        0, 3, module, torch.ones(4, 2), torch.zeros(4), torch.arange(4), 4, LocalConfig(lr=0.4, lr_decay=0.5), Seeds(0)
    )
    heard = []

    layers = {"2.weight": module[2], "0.weight": module[0]}

    def keep(name: str, layer: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        assert layer is layers[name]
        heard.append((name, tuple(inputs.shape), tuple(outputs.shape)))

    with worker.listen(["0.weight", "2.weight", "attention.in_proj_weight"], keep):
        module(worker.inputs)
    with pytest.raises(ZeroDivisionError), worker.listen(["0.weight"], keep):
        raise ZeroDivisionError
    module(worker.inputs)
    assert heard == [("0.weight", (4, 2), (4, 3)), ("2.weight", (4, 3), (4, 1))]
    assert worker.lr == pytest.approx(0.1)  # 0.4 halved twice


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
        "fedforget.routines:Client",
        "fedforget.routines:LocalConfig",
        "fedforget.routines:_anything",
        "strategies._hidden:train",
        "strategies.finetune.deeper:train",
        "strategies.a/../../x:train",
        "strategies.finetune:__import__",
        "strategies.finetune:__builtins__",
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


def test_a_routine_is_named_by_where_it_is_found(paper: str) -> None:
    for name in ("fedforget.routines:train", f"{paper}:ascend"):
        assert name_of(find(name)) == name


@pytest.mark.parametrize(
    ("routine", "complaint"),
    [
        (lambda client: None, r"clients cannot find routine <lambda> of .*; write it as a function at the top level"),
        (draw, "clients cannot find routine draw of .*test_routines"),
        ("strategies.mine:ascend", "routine is 'strategies.mine:ascend', but must be a function, e.g. routine=ascend"),
        (partial(train), "routine is functools.partial"),
    ],
)
def test_what_clients_could_not_find_is_refused(routine: Routine, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        name_of(routine)


def test_a_refused_module_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "harmful_on_import.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="harmful_on_import:f"):
        find("harmful_on_import:f")
    assert "harmful_on_import" not in sys.modules


# ---------------------------------------------------------------------- vectors that strategies share


def test_drift_by_hand() -> None:
    # 2 parameters at 1 and 3, held at 0 and 5 with weights 4 and 1/2: 4 * 1 + 4/2 = 6; its gradient is 2 F (w - a).
    module = nn.Linear(1, 1)
    layout = Params.from_module(module).layout
    Params(torch.tensor([1.0, 3.0]), layout).copy_to(module)
    worker = client(LocalConfig())
    worker.model = module
    penalty = drift(worker, Params(torch.tensor([0.0, 5.0]), layout), Params(torch.tensor([4.0, 0.5]), layout))
    assert penalty.item() == 6
    assert [float(g) for g in torch.autograd.grad(penalty, worker.parameters)] == [8, -2]


def test_fresh_parameters_have_the_scale_of_torchs_own() -> None:
    module = nn.Sequential(nn.Conv2d(3, 40, 5), nn.GroupNorm(2, 40), nn.Linear(900, 100), nn.Linear(4, 3, bias=False))
    layout = Params.from_module(module).layout
    layers = fresh(layout, torch.Generator().manual_seed(0)).layers()
    for name, layer in layers.items():
        own = dict(module.named_parameters())[name]
        bound = {"0": 75**-0.5, "2": 900**-0.5, "3": 0.5}.get(name[0])  # 1 / sqrt(fan_in)
        if bound is None:
            assert torch.equal(layer, own)  # a norm: 1 and 0
            continue
        assert layer.abs().max() <= bound and own.abs().max() <= bound
        if layer.numel() > 1000:  # uniform: the standard deviation is bound / sqrt 3
            assert layer.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
            assert own.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert fresh(layout, torch.Generator().manual_seed(0)).equals(fresh(layout, torch.Generator().manual_seed(0)))
    assert not fresh(layout, torch.Generator().manual_seed(1)).equals(fresh(layout, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", models.names())
def test_every_model_has_fresh_parameters(name: str) -> None:
    module = models.build(models.ModelConfig(name, 0.25), (1, 8, 8), 10)
    w = fresh(Params.from_module(module).layout, torch.Generator().manual_seed(0))
    w.copy_to(module)
    assert w.is_finite() and module(torch.rand(2, 1, 8, 8)).isfinite().all()


# ---------------------------------------------------------------------- wrong labels and partial updates


def test_wrong_labels_are_wrong_uniform_and_new_each_round() -> None:
    def wrong(round: int, places: list[int] | None = None) -> Tensor:
        worker = client(LocalConfig(), places, capacity=3000, seeds=Seeds(7).child(round))
        worker.model = nn.Linear(2, 5)
        return routines.wrong_labels(worker)

    one, labels = wrong(1), torch.arange(3000) % 2
    assert not (one == labels).any() and one.min() >= 0 and one.max() <= 4
    counts = torch.bincount(one[labels == 0], minlength=5)  # 1500 over four classes: 375 each, sd 17
    assert counts[0] == 0 and bool(((counts[1:] - 375).abs() < 75).all())
    assert torch.equal(one, wrong(1)) and not torch.equal(one, wrong(2))
    assert torch.equal(wrong(1, [5, 2, 2999]), one[[5, 2, 2999]])  # whatever else the split holds


def masks(worker: Client, density: float, mask: str, steps: int) -> list[list[Tensor]]:
    worker.options = {"density": density, "mask": mask}
    return list(itertools.islice(routines.layer_masks(worker), steps))


@pytest.mark.parametrize("round", [1, 2, 5])
def test_rotating_masks_cover_every_layer_in_turn(round: int) -> None:
    # Layers of 6, 3, 6 and 2 entries; a third of them is 2, 1, 2 and 1.
    found = masks(client(LocalConfig(), round=round), 1 / 3, "rotating", 6)
    assert [[int(mask.sum()) for mask in step] for step in found] == [[2, 1, 2, 1]] * 6
    for step in range(3):
        assert all(torch.equal(a, b) for a, b in zip(found[step][:3], found[step + 3][:3], strict=True))
    for layer in range(3):
        assert bool((torch.stack([step[layer].int() for step in found[:3]]).sum(0) == 1).all())


def test_a_block_wraps_around_the_end_of_a_layer() -> None:
    # 0.7 of the first layer's 6 entries is 4: 0 1 2 3, then 4 5 0 1, then 2 3 4 5.
    found = masks(client(LocalConfig()), 0.7, "rotating", 3)
    assert [step[0].flatten().nonzero().flatten().tolist() for step in found] == [
        [0, 1, 2, 3],
        [0, 1, 4, 5],
        [2, 3, 4, 5],
    ]


def test_top_masks_are_fixed_and_of_the_forgotten_examples() -> None:
    worker = client(LocalConfig(), capacity=10)
    worker.forgotten = torch.arange(10) < 3
    gradients = torch.autograd.grad(worker.loss(worker.inputs[:3], worker.labels[:3]), worker.parameters)
    first, second = masks(worker, 0.5, "top", 2)
    for a, b, gradient_ in zip(first, second, gradients, strict=True):
        assert torch.equal(a, b) and int(a.sum()) == max(1, round(0.5 * a.numel()))
        assert gradient_[a].abs().min() >= gradient_[~a].abs().max()
    assert (worker.steps, worker.examples) == (1, 3)


def test_without_forgotten_examples_top_masks_are_of_all() -> None:
    nothing, everything = client(LocalConfig()), client(LocalConfig())
    nothing.forgotten, everything.forgotten = torch.zeros(10).bool(), torch.ones(10).bool()
    [one], [other] = masks(nothing, 0.3, "top", 1), masks(everything, 0.3, "top", 1)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)) and nothing.examples == 10


@pytest.mark.parametrize("local", [LocalConfig(), LocalConfig("adam"), LocalConfig(momentum=0.9, weight_decay=0.1)])
def test_a_masked_step_is_the_step_inside_and_nothing_outside(local: LocalConfig) -> None:
    masked, whole = client(local), client(local)
    before = [parameter.detach().clone() for parameter in masked.parameters]
    [chosen] = masks(masked, 0.5, "rotating", 1)
    routines.masked_step(masked, masked.loss(masked.inputs, masked.labels), chosen)
    whole.step(whole.loss(whole.inputs, whole.labels))
    for new, old, full, mask in zip(masked.parameters, before, whole.parameters, chosen, strict=True):
        assert torch.equal(new[mask], full[mask]) and torch.equal(new[~mask], old[~mask])
        assert not torch.equal(new[mask], old[mask])


def test_batch_indices_are_those_of_the_batches() -> None:
    local = LocalConfig(epochs=2, batch_size=4)
    indices = list(client(local, [8, 3, 5, 1, 9]).batch_indices())
    worker = client(local, [8, 3, 5, 1, 9])
    assert [worker.inputs[batch, 0].int().tolist() for batch in indices] == seen(worker)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("rows", [[2], [4, 0, 4, 1]])
def test_images_are_taken_as_they_lie_in_memory(channels: int, rows: list[int]) -> None:
    images, chosen = torch.randn(5, channels, 4, 6), torch.tensor(rows)
    last = images.contiguous(memory_format=torch.channels_last)
    for these in (images, last, images[:, :, 1:], images.transpose(2, 3), images.double()):
        taken = routines.take(these, chosen)
        assert torch.equal(taken, these[chosen]) and taken.stride() == these[chosen].stride()
    assert routines.take(images, chosen[:0]).shape == routines.take(images[:0], chosen[:0]).shape == (0, channels, 4, 6)
    with pytest.raises(IndexError):
        routines.take(images, torch.tensor([5]))
