"""Metrics against closed forms."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from fedforget.metrics import METRICS, Outputs, accuracy, loss, margin
from fedforget.metrics.outputs import balanced_accuracy


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


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_diverged_model_has_no_numbers(broken: float) -> None:
    """An accuracy of 0 % would be that of a model that answers, and always wrong."""
    diverged = outputs([[broken, broken], [1.0, 0.0]], [0, 1])
    for metric in (accuracy, balanced_accuracy, loss, margin):
        assert math.isnan(metric(diverged)), metric
    assert not diverged.finite and math.isnan(diverged.share(diverged.labels == 0))


def test_balanced_accuracy_is_that_of_scikit_learn_on_classes_that_occur() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 50 + [2] * 9 + [3])
    logits = torch.randn(60, 5, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 5)
    mine = Outputs(logits, labels, torch.full((60,), -1))
    assert not mine.constant
    with warnings.catch_warnings():  # it warns of predicted classes that do not occur
        warnings.simplefilter("ignore")
        assert balanced_accuracy(mine) == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    constant = Outputs(torch.eye(5)[torch.zeros(60, dtype=torch.long)], labels, labels)
    assert balanced_accuracy(constant) == pytest.approx(1 / 3) and accuracy(constant) == pytest.approx(50 / 60)
    assert constant.constant and not constant.take(torch.arange(50)).constant  # on one class that is right


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
