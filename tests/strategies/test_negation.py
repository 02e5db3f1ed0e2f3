"""NoT: which entries change sign, and that ordinary rounds follow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedforget import models
from fedforget.params import Layout, Params
from fedforget.testing import REQUESTS, Toy, serve
from strategies.negation import Negation, negated


def test_the_first_layers_weights_change_sign() -> None:
    # A class token comes first in a transformer's layout, but it is no layer's weight.
    layout = Layout(("token", "0.weight", "0.bias", "1.weight", "1.bias"), ((1,), (2, 1), (2,), (1, 2), (1,)))
    w = Params(torch.arange(1.0, 9.0), layout)
    assert negated(w).flat.tolist() == [1, -2, -3, 4, 5, 6, 7, 8]
    assert negated(negated(w)).equals(w) and w.flat[1] == 2


@pytest.mark.parametrize(
    ("name", "first"),
    [("linear", "2.weight"), ("cnn", "0.weight"), ("resnet18", "conv1.weight"), ("vit", "conv_proj.weight")],
)
def test_the_first_layer_of_every_kind_of_model(name: str, first: str) -> None:
    w = Params.from_module(models.initial(models.ModelConfig(name, 0.25), (1, 8, 8), 10, seed=0))
    changed = negated(w)
    assert [layer for layer, values in changed.layers().items() if not torch.equal(values, w.layers()[layer])] == [
        first
    ]
    assert torch.equal(changed.layers()[first], -w.layers()[first])


def test_a_first_layer_without_bias_sees_the_negative_of_its_input() -> None:
    # theta_1 x becomes -theta_1 x: the network answers to x what it answered to -x where the first bias is zero.
    module = models.initial(models.ModelConfig("mlp", 0.1), (1, 8, 8), 10, seed=0)
    module.get_parameter("1.bias").data.zero_()
    x = torch.rand(3, 1, 8, 8)
    before = module(-x)
    negated(Params.from_module(module)).copy_to(module)
    torch.testing.assert_close(module(x), before)


@pytest.mark.parametrize("scope", sorted(REQUESTS))
def test_ordinary_rounds_on_retained_data_follow(tmp_path: Path, scope: str) -> None:
    toy = Toy(tmp_path)
    strategy = Negation(Negation.Config(rounds=2), toy.learning)
    made, cohort, final = serve(toy, strategy, REQUESTS[scope])
    assert made[0].equals(negated(final)) and cohort.cost.rounds == 2
    expected = list(strategy.learn(toy.cohort(REQUESTS[scope]), negated(final), 2, first_round=5))
    assert all(a.equals(b) for a, b in zip(made[1:], expected, strict=True))
    assert {work.split for work in toy.grid.work} == {"retain"}


def test_negative_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="strategy.negation.rounds is -1, but must be at least 0"):
        Negation.Config(rounds=-1)
