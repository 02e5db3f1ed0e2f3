"""FUSED: critical layers, adapters and a first step by hand; all else of the model stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedforget import models
from fedforget.exchange import Card
from fedforget.params import Layout, Params
from fedforget.request import SCOPES
from fedforget.routines import LocalConfig
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.fused import SparseAdapters, adapted, adapter_layout, most_moved, unchanging

LAYOUT = Layout(("a.weight", "a.bias", "b.weight", "c.weight"), ((2, 1), (2,), (1, 2, 1, 2), (1, 3)))


def update(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), LAYOUT)


def test_critical_layers_by_hand() -> None:
    # Mean sizes a, b, c: client 0 (1, 2, 1), client 1 (4, 0.5, 3): 5, 2.5 and 4 in all. Biases are no layers, and signs
    # do not cancel.
    D = [update(1, -1, 9, 9, 2, -2, 2, -2, 1, 1, -1), update(4, -4, 9, 9, 0, 1, -1, 0, 3, 3, 3)]
    assert [most_moved(D, number) for number in (1, 2, 3, 9)] == [
        ["a.weight"],
        ["a.weight", "c.weight"],
        ["a.weight", "b.weight", "c.weight"],
        ["a.weight", "b.weight", "c.weight"],
    ]
    assert most_moved(D[:1], 1) == ["b.weight"]


def test_adapters_by_hand() -> None:
    layout = adapter_layout(LAYOUT, ["b.weight", "c.weight"], 2)  # at most the smaller side, here 1
    assert layout == Layout(("b.weight/A", "b.weight/B", "c.weight/A", "c.weight/B"), ((1, 4), (1, 1), (1, 3), (1, 1)))
    x = Params(torch.tensor([1.0, 2, 3, 4, 10, 5, 6, 7, -1]), layout)
    w = update(*range(11))
    found = adapted(w.layers(), x.layers(), ["b.weight", "c.weight"], 0.5)
    # s = 1/2: b moves by 5 (1, 2, 3, 4) and c by -(5, 6, 7) / 2.
    assert [layer.flatten().tolist() for layer in found.values()] == [
        [0, 1],
        [2, 3],
        [4 + 5, 5 + 10, 6 + 15, 7 + 20],
        [8 - 2.5, 9 - 3, 10 - 3.5],
    ]
    assert found["b.weight"].shape == (1, 2, 1, 2)


def test_fresh_adapters_change_nothing() -> None:
    layout = adapter_layout(LAYOUT, ["a.weight", "b.weight"], 2)
    x = unchanging(layout, torch.Generator().manual_seed(0)).layers()
    assert all(not x[name].any() for name in x if name.endswith("B"))
    assert x["b.weight/A"].any() and x["b.weight/A"].abs().max() <= 0.5  # four inputs: +-1/2
    w = update(*range(11))
    assert all(
        torch.equal(layer, w.layers()[name])
        for name, layer in adapted(w.layers(), x, ["a.weight", "b.weight"], 3.0).items()
    )


def test_a_first_step_by_hand(tmp_path: Path) -> None:
    # One full-batch step of rate eta: B = 0, so the gradient of A is 0 and that of B is s G A^T, where G is the pooled
    # gradient of the weight: w <- w - eta s^2 G A^T A.
    eta, rank, scale = 0.1, 4, 1.5
    toy = Toy(tmp_path, learning=LearningConfig(rounds=1), local=LocalConfig(lr=eta, batch_size=10_000))
    strategy = SparseAdapters(SparseAdapters.Config(layers=1, rank=rank, scale=scale, rounds=1), toy.learning)
    request = REQUESTS["client"]
    models_, cohort, w = serve(toy, strategy, request)
    assert len(models_) == 2 and models_[0].equals(w) and cohort.cost.rounds == 2
    G = toy.cohort(request).gradient(w).layers()
    name = next(name for name in G if name.endswith("weight"))
    A = unchanging(adapter_layout(w.layout, [name], rank), toy.seeds.torch("fused")).layers()[f"{name}/A"]
    assert A.shape == (rank, 64)
    expected = w.layers()[name] - eta * scale**2 * G[name] @ A.T @ A
    torch.testing.assert_close(models_[1].layers()[name], expected, rtol=1e-4, atol=1e-6)
    bias = name.replace("weight", "bias")
    assert torch.equal(models_[1].layers()[bias], w.layers()[bias])


def test_only_critical_layers_move_and_by_a_low_rank(tmp_path: Path) -> None:
    toy = Toy(tmp_path, learning=LearningConfig(rounds=1, fraction=0.5))
    toy.task = replace(toy.task, model=models.ModelConfig("mlp"))
    toy.start = Params.from_module(models.initial(toy.task.model, (1, 8, 8), 10, 0))
    strategy = SparseAdapters(SparseAdapters.Config(layers=1, rank=3, rounds=3), toy.learning)
    made, _, w = serve(toy, strategy, REQUESTS["sample"])
    assert len(made) == 4
    moved = {name: layer - w.layers()[name] for name, layer in made[-1].layers().items()}
    (name,) = [name for name, change in moved.items() if change.any()]
    assert moved[name].dim() == 2
    values = torch.linalg.svdvals(moved[name].double())
    assert values[2] > 1e-3 * values[0] > 100 * values[3]


def test_what_it_assumes() -> None:
    assert SparseAdapters.scopes == set(SCOPES) and SparseAdapters().card == Card()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 0}, "strategy.fused.layers is 0, but must be at least 1"),
        ({"rank": 0}, "strategy.fused.rank is 0, but must be at least 1"),
        ({"rounds": 0}, "strategy.fused.rounds is 0, but must be at least 1"),
        ({"scale": 0.0}, "strategy.fused.scale is 0.0, but must be above 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseAdapters.Config(**fields)
