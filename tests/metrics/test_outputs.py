"""Metrics against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from fedforget.metrics import METRICS, Outputs, accuracy, loss, margin


def outputs(logits: list[list[float]], labels: list[int]) -> Outputs:
    return Outputs(torch.tensor(logits), torch.tensor(labels), torch.full((len(labels),), -1))


def test_accuracy_counts_the_right_answers() -> None:
    assert accuracy(outputs([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [0.0, 1.0]], [0, 1, 1, 1])) == 0.75


def test_loss_of_known_probabilities() -> None:
    probabilities = [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]
    logits = [[math.log(p) + 7.0 for p in row] for row in probabilities]  # a shift of all logits changes nothing
    assert loss(outputs(logits, [1, 2])) == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2, rel=1e-6)


def test_margin_is_the_log_odds_of_the_label() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 5
    chance = logits.double().softmax(1)[torch.arange(20), labels]
    expected = torch.log(chance / (1 - chance)).mean().item()
    assert margin(Outputs(logits, labels, labels)) == pytest.approx(expected, rel=1e-9)


def test_margin_of_two_classes_is_the_difference_even_where_the_probability_rounds_to_one() -> None:
    assert margin(outputs([[200.0, 0.0], [0.0, 100.0]], [0, 0])) == pytest.approx((200 - 100) / 2)


def test_a_uniform_model() -> None:
    uniform = outputs([[1.0] * 10] * 3, [0, 4, 9])
    assert loss(uniform) == pytest.approx(math.log(10))
    assert margin(uniform) == pytest.approx(-math.log(9))


def test_a_diverged_model_is_wrong_everywhere() -> None:
    diverged = outputs([[math.nan, math.nan]], [0])
    assert accuracy(diverged) == 0.0
    assert math.isnan(loss(diverged)) and math.isnan(margin(diverged))


@pytest.mark.parametrize(
    "logits, labels",
    [((3, 2), (2,)), ((3, 1), (3,)), ((3,), (3,)), ((3, 2), (3, 1))],
)
def test_shapes_are_checked(logits: tuple, labels: tuple) -> None:
    whole = torch.zeros(labels, dtype=torch.long)
    with pytest.raises(ValueError, match="outputs have shapes"):
        Outputs(torch.zeros(logits), whole, whole)


def test_metrics_state_their_direction() -> None:
    for function in METRICS.values():
        assert "= the model knows the examples better" in (function.__doc__ or "").splitlines()[0]
