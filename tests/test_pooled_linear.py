"""Softmax regression on a pooled image: small enough for the strategies that need a whole Hessian."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fedforget.messages import Task
from fedforget.models import ModelConfig, build, initial
from fedforget.params import Params
from fedforget.strategy import LearningConfig, find
from fedforget.testing import REQUESTS, Toy

MNIST, DIGITS = (1, 28, 28), (1, 8, 8)


def test_mnist_at_half_width_by_hand() -> None:
    # 28 * 0.5 = 14, and 14 * 14 * 10 + 10 = 1970; blocks of 2x2 pixels are averaged.
    model = build(ModelConfig("linear", 0.5), MNIST, 10)
    assert Params.from_module(model).layout.size == 1970
    images = torch.rand(3, *MNIST, generator=torch.Generator().manual_seed(0))
    blocks = images.reshape(3, 14, 2, 14, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(model(images), model[-1](blocks))


def test_width_1_is_the_plain_network() -> None:
    plain = build(ModelConfig("linear"), DIGITS, 10)
    assert [type(module) for module in plain] == [nn.Flatten, nn.Linear]
    assert Params.from_module(plain).layout.names == ("1.weight", "1.bias")


def test_at_least_a_pixel_is_left_and_none_is_invented() -> None:
    assert Params.from_module(build(ModelConfig("linear", 0.01), DIGITS, 10)).layout.size == 20
    with pytest.raises(ValueError, match="model 'linear' has the image's pixels .* width 2.0 must be at most 1"):
        build(ModelConfig("linear", 2.0), DIGITS, 10)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cubic_newton", {}),
        ("newton", {"solver": "explicit"}),
        ("influence", {"solver": "explicit"}),
        ("projected_gradient", {"rounds": 1}),
        ("certified_newton", {"steps": 1, "iterations": 2}),
    ],
)
def test_strategies_work_on_it(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    # 4x4 inputs: d = 170.
    toy = Toy(tmp_path, 1, LearningConfig(rounds=1))
    model = ModelConfig("linear", 0.5)
    toy.task = Task(toy.task.data, model, toy.local, "cpu")
    toy.start = Params.from_module(initial(model, DIGITS, 10, 0))
    strategy, request = find(name)(find(name).Config(**options), toy.learning), REQUESTS["client"]
    cohort = toy.cohort(request, strategy.card)
    strategy.check(cohort)
    *_, w = strategy.unlearn(request, SimpleNamespace(final=toy.start), cohort)  # type: ignore[arg-type]
    assert w.layout.size == 170 and w.is_finite() and not w.equals(toy.start)
