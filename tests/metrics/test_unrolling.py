"""Verification error and unlearning error against numbers by hand, and what their paper claims of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedforget.metrics.unrolling import unlearning_error, verification_error
from fedforget.params import Layout, Params
from fedforget.routines import sd_loss

LAYOUT = Layout(("w",), ((3,),))


def point(*values: float) -> Params:
    return Params(torch.tensor(values), LAYOUT)


def test_verification_error_is_the_distance() -> None:
    # (1, 2, 2) apart: sqrt(1 + 4 + 4) = 3
    assert verification_error(point(1, 2, 3), point(0, 0, 5)) == 3
    assert verification_error(point(1, 2, 3), point(1, 2, 3)) == 0


def test_verification_error_keeps_small_differences() -> None:
    # 1 + 2^-23 is the float32 next to 1; the difference is exact only if taken before rounding.
    assert verification_error(point(1 + 2**-23, 0, 0), point(1, 0, 0)) == 2**-23


def test_unlearning_error_by_hand() -> None:
    # ||w_t - w_0|| = 5, t = 4, eta = 0.1, sigma = 9: 0.01 * 5/4 * 9 * (16 - 4)/2 = 0.675
    start, end = point(0, 0, 0), point(3, 4, 0)
    assert unlearning_error(start, end, steps=4, lr=0.1, sigma=9.0) == pytest.approx(0.675)
    # With the square root, 3 stands for 9.
    assert unlearning_error(start, end, steps=4, lr=0.1, sigma=9.0, square_root=True) == pytest.approx(0.225)


def test_one_step_can_be_unlearned_without_error() -> None:
    # A single step starts at w_0, where its gradient is known: (t^2 - t) / 2 = 0.
    assert unlearning_error(point(0, 0, 0), point(3, 4, 0), steps=1, lr=0.1, sigma=9.0) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"steps": 0, "sigma": 1.0}, "steps=0 must be at least 1"), ({"steps": 2, "sigma": -1.0}, "sigma=-1.0 must not")],
)
def test_what_cannot_be_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unlearning_error(point(0, 0, 0), point(3, 4, 0), lr=0.1, **fields)


# ------------------------------------------------------------------ claims, on logistic regression


def task() -> tuple[Tensor, Tensor]:
    """16 batches of 16 examples in 5 dimensions, two overlapping classes."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(256) % 2).reshape(16, 16)
    centres = 0.5 * (2.0 * labels - 1).unsqueeze(-1)
    return torch.randn(16, 16, 5, generator=generator) + centres, labels


def gradient(w: Tensor, inputs: Tensor, labels: Tensor, gamma: float = 0.0) -> Tensor:
    w = w.clone().requires_grad_()
    return torch.autograd.grad(sd_loss(inputs @ w, labels, gamma), w)[0]


def learn(w: Tensor, lr: float, epochs: int, skip: int | None = None, gamma: float = 0.0) -> Tensor:
    """SGD from ``w`` over the batches in order, without batch ``skip``."""
    inputs, labels = task()
    for _ in range(epochs):
        for batch in range(16):
            if batch != skip:
                w = w - lr * gradient(w, inputs[batch], labels[batch], gamma)
    return w


def start() -> Tensor:
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(1))


def distance(a: Tensor, b: Tensor) -> float:
    layout = Layout(("w",), ((5, 2),))
    return verification_error(Params(a.flatten(), layout), Params(b.flatten(), layout))


def errors(lr: float, epochs: int) -> tuple[float, float]:
    """v of single-gradient unlearning of the first batch, and of doing nothing."""
    inputs, labels = task()
    final, retrained = learn(start(), lr, epochs), learn(start(), lr, epochs, skip=0)
    unlearned = final + epochs * lr * gradient(start(), inputs[0], labels[0])
    return distance(unlearned, retrained), distance(final, retrained)


def test_the_retrained_model_has_no_error() -> None:
    assert distance(learn(start(), 0.1, 2, skip=0), learn(start(), 0.1, 2, skip=0)) == 0


def test_single_gradient_unlearning_helps_while_the_steps_are_few_and_small() -> None:
    for lr, epochs, factor in ((0.01, 1, 10), (0.1, 1, 1.1)):
        unlearned, nothing = errors(lr, epochs)
        assert unlearned * factor < nothing


def test_over_many_large_steps_it_is_worse_than_doing_nothing() -> None:
    unlearned, nothing = errors(0.1, 5)
    assert unlearned > 3 * nothing


def test_the_verification_error_vanishes_quadratically_in_the_learning_rate() -> None:
    # The expansion is exact to first order in eta: halving eta divides the error by about four.
    coarse, fine = errors(0.02, 1)[0], errors(0.01, 1)[0]
    assert 3.5 < coarse / fine < 4.5


def test_the_sd_loss_moves_weights_less_the_larger_gamma() -> None:
    w_0 = 0.01 * start()
    moved = [distance(learn(w_0, 0.1, 5, gamma=gamma), w_0) for gamma in (0.0, 0.1, 0.3, 1.0)]
    assert moved == sorted(moved, reverse=True) and moved[0] > 2 * moved[-1]
