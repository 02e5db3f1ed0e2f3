"""The tuning objective: values by hand, its limits, and the choice it makes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedforget.metrics.objective import bias_removal, objective, privacy

share = st.floats(0, 1)


def test_values_by_hand() -> None:
    # 0.8 * 0.1 + 0.2 * |0.3 - 0.1| = 0.12;  0.8 * 0.1 + 0.2 * (1 - 0.3) = 0.22
    assert objective(0.1, 0.3, 0.2) == pytest.approx(0.12)
    assert objective(0.1, 0.3, 0.2, bias_removal) == pytest.approx(0.22)


@pytest.mark.parametrize(("goal", "ideal"), [(privacy, 0.1), (bias_removal, 1.0)])
def test_where_the_goal_is_reached(goal, ideal) -> None:
    assert objective(0.1, ideal, 0.4, goal) == pytest.approx(0.6 * 0.1)


@settings(max_examples=50, deadline=None)
@given(share, share, share)
def test_it_is_a_mean_of_two_errors(validation: float, forget: float, trade_off: float) -> None:
    for goal in (privacy, bias_removal):
        ends = sorted([validation, goal(forget, validation)])
        assert ends[0] - 1e-12 <= objective(validation, forget, trade_off, goal) <= ends[1] + 1e-12
    assert objective(validation, forget, 0.0) == validation
    assert objective(validation, forget, 1.0, bias_removal) == 1 - forget


def test_any_goal_can_be_plugged_in() -> None:
    assert objective(0.5, 0.25, 0.5, lambda forget, reference: forget * reference) == 0.3125


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1.1, 0.0, 0.2), "validation_error=1.1"),
        ((0.0, -0.1, 0.2), "forget_error=-0.1"),
        ((0.0, 0.0, float("nan")), "trade_off=nan"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(*numbers)
