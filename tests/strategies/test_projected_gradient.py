"""Projected-gradient unlearning: bases and losses by hand, and that protected features feel nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedforget.exchange import Card
from fedforget.models import ModelConfig, build, initial
from fedforget.params import Layout, Params
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.projected_gradient import ProjectedGradient, ascend, basis, covariances, feature_layout, features, loss

RECIPE = LocalConfig(lr=0.3, epochs=5, batch_size=5)


def client(model: nn.Module, n: int = 24, local: LocalConfig = RECIPE, **settings: Any) -> Client:
    """A client with ``n`` random 8x8 images."""
    inputs = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(n) % 10
    return Client(0, 1, model, inputs, labels, torch.arange(n), n, local, Seeds(0), **settings)


def test_the_basis_holds_the_first_directions_by_hand() -> None:
    # Singular values of the features 3, 2, 1: partial sums 3, 5, 6 of 6, so shares 0.5, 0.83 and 1.
    C = torch.diag(torch.tensor([1.0, 9.0, 4.0]))
    for v, kept in ((0.4, 0), (0.5, 1), (0.83, 1), (0.84, 2), (0.99, 2), (1.0, 3)):
        U = basis(C, v)
        assert U.shape == (3, 3) and torch.linalg.matrix_rank(U) == kept
    # The largest two eigenvalues belong to the second and third axis.
    assert torch.allclose(basis(C, 0.9) @ basis(C, 0.9).T, torch.diag(torch.tensor([0.0, 1.0, 1.0])))


def test_a_cap_keeps_the_largest() -> None:
    U = basis(torch.diag(torch.tensor([1.0, 9.0, 4.0])), 1.0, rank=1)
    assert U.abs().tolist() == [[0.0], [1.0], [0.0]]
    # A cap beyond the inputs is no cap.
    assert basis(torch.eye(3), 1.0, rank=7).shape == (3, 3)


def test_no_retained_features_protect_everything() -> None:
    # A layer that the retained data never excites, or whose inputs are not seen, is left as it is.
    assert torch.linalg.matrix_rank(basis(torch.zeros(3, 3), 0.5)) == 3


def test_the_features_of_a_resnet18_take_eight_times_the_model() -> None:
    # in_l^2, with in_l = 9 x channels in a 3x3 convolution, channels in a 1x1 one: 27^2 for the first; 4 x 576^2; 576^2
    # + 3 x 1152^2 + 64^2; 1152^2 + 3 x 2304^2 + 128^2; 2304^2 + 3 x 4608^2 + 256^2; and 512^2: 92,250,841, 352 MiB.
    with torch.device("meta"):
        layout = Layout.of(build(ModelConfig("resnet18"), (3, 32, 32), 10))
    size = feature_layout(layout).size
    assert size == 92_250_841 and round(4 * size / 2**20) == 352 and 8.2 <= size / layout.size < 8.3


def test_covariances_are_sums_over_the_layers_inputs() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10))
    it = client(model)
    C = covariances(it).layers()
    X = it.inputs.flatten(1)
    H = model[2](model[1](X)).detach()
    assert list(C) == ["1.weight", "3.weight"]
    assert torch.allclose(C["1.weight"], X.T @ X, atol=1e-4)
    assert torch.allclose(C["3.weight"], H.T @ H, atol=1e-4)
    assert it.examples == 24 and not any(module._forward_pre_hooks for module in model)


def test_features_of_a_convolution_multiply_its_rows() -> None:
    module = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False)
    inputs = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    made = features(module, inputs) @ module.weight.flatten(1).T  # [4 * 16 places, 3]
    assert torch.allclose(made.view(4, 16, 3).transpose(1, 2).reshape(4, 3, 4, 4), module(inputs), atol=1e-5)


def test_layout_of_what_clients_send() -> None:
    model = Layout(("a.weight", "a.bias", "c.weight", "token"), ((5, 4), (5,), (6, 2, 3, 3), (1, 1, 8)))
    assert feature_layout(model) == Layout(("a.weight", "c.weight"), ((4, 4), (18, 18)))
    assert feature_layout(model, rank=7) == Layout(("a.weight", "c.weight"), ((4, 4), (18, 7)))


def test_the_loss_by_hand() -> None:
    # p = (1/2, 1/2): -log(1 - 0.45) - beta log 2
    assert loss(torch.zeros(1, 2), torch.tensor([0]), 0.2).item() == pytest.approx(-math.log(0.55) - 0.2 * math.log(2))
    # A sure right answer costs -log 0.05, a sure wrong one -log 1.05; entropy 0.
    sure = torch.tensor([[200.0, 0.0]])
    assert loss(sure, torch.tensor([0]), 0.2).item() == pytest.approx(-math.log(0.05), rel=1e-5)
    assert loss(sure, torch.tensor([1]), 0.2).item() == pytest.approx(-math.log(1.05), rel=1e-5)


@pytest.mark.parametrize(("name", "rank"), [("linear", 0), ("mlp", 5), ("cnn", 0)])
def test_protected_features_feel_nothing(name: str, rank: int) -> None:
    # Property: after any number of projected steps, responses to features in span(U) change by less than 1e-5.
    check_projection(initial(ModelConfig(name, 0.05), (1, 8, 8), 10, seed=3), rank)


def check_projection(model: nn.Module, rank: int) -> None:
    before, layout = Params.from_module(model), feature_layout(Layout.of(model), rank)
    C = covariances(client(model)).double().layers()
    bases = [basis(C_l, 0.9, rank).float() for C_l in C.values()]
    U = Params(torch.cat([U_l.flatten() for U_l in bases]), layout)
    it = client(model, options={"rank": rank, "beta": 0.2}, vectors={"U": U})
    ascend(it)
    assert it.steps == 5 * 5
    moved = (Params.from_module(model) - before).layers()
    assert max(layer.abs().max() for layer in moved.values()) > 1e-3
    for layer, change in moved.items():
        if layer in U.layers():
            assert (change.flatten(1) @ U.layers()[layer]).abs().max() < 1e-5
        else:
            assert not change.any(), f"{layer} has no projection and must not move"


class Unseen(nn.Module):
    """Multiplies its input by a matrix that belongs to no linear module, as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.eye(64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.in_proj_weight


def test_weights_whose_inputs_are_not_seen_stay() -> None:
    model = nn.Sequential(nn.Flatten(), Unseen(), nn.Linear(64, 10))
    check_projection(model, 0)
    assert torch.equal(model[1].in_proj_weight.data, torch.eye(64))


def test_a_class_is_forgotten_and_the_others_are_not(tmp_path: Path) -> None:
    toy = Toy(tmp_path, 1, LearningConfig(rounds=4), LocalConfig(lr=1.0))
    strategy = ProjectedGradient(ProjectedGradient.Config(energy=0.5, lr=0.5, lr_end=0.1))
    models, cohort, final = serve(toy, strategy, REQUESTS["class"])

    def accuracy(model: Params) -> dict[str, float]:
        outputs = cohort.evaluate(model, {"forget": 500, "retain": 500})
        return {name: (logits.argmax(1) == labels).mean() for name, (logits, labels, *_) in outputs.items()}

    before, after = accuracy(final), accuracy(models[-1])
    assert before["forget"] > 0.9 and after["forget"] < 0.3
    assert abs(before["retain"] - after["retain"]) < 0.03


def test_what_it_costs(tmp_path: Path) -> None:
    # 1 + R_u rounds. Up: C (64^2 numbers) from five retained clients, then d numbers a round from the target.
    # Down: the model to the five, then the model and U (64 x 9) to the target.
    strategy = ProjectedGradient(ProjectedGradient.Config(rounds=3, rank=9))
    models, cohort, _ = serve(Toy(tmp_path), strategy, REQUESTS["client"])
    d = cohort.layout.size
    assert len(models) == 3 and cohort.cost.rounds == 4
    assert cohort.cost.bytes_up == 4 * (5 * 64**2 + 3 * d)
    assert cohort.cost.bytes_down == 4 * (5 * d + 3 * (d + 64 * 9))


def test_the_learning_rate_falls_geometrically(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    serve(toy, ProjectedGradient(ProjectedGradient.Config(rounds=3, lr=0.4, lr_end=0.1)), REQUESTS["client"])
    rates = sorted({(work.round, work.options["lr"]) for work in toy.grid.work if work.split == "forget"})
    assert [rate for _, rate in rates] == pytest.approx([0.4, 0.2, 0.1])


def test_what_it_assumes() -> None:
    assert ProjectedGradient().card == Card(target_online=True)
    assert ProjectedGradient.scopes == {"client", "sample", "class"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "strategy.projected_gradient.rounds is 0, but must be at least 1"),
        ({"lr_end": 0.0}, "strategy.projected_gradient.lr_end is 0.0, but must be above 0"),
        ({"rank": -1}, "strategy.projected_gradient.rank is -1, but must be at least 0"),
        ({"energy": 1.5}, r"strategy.projected_gradient.energy is 1.5, but must be in \[0, 1\]"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectedGradient.Config(**fields)
