"""The objective J by which an unlearner's settings are tuned on validation data, for one of two goals.

J = (1 - trade_off) * validation error + trade_off * goal error. Lower = better; [0, 1]. Source: the study of Alon and
Dar, arXiv 2503.08633, which tunes each method for each width and goal, with trade-offs of 0.2, 0.4 and 0.6; the paper
was not read, so the weighting is a choice that agrees with summaries of it. Settings are chosen by J on validation data
(disjoint from retained, forgotten and test data); then the test error and the goal error *against test data* are
reported.
"""

from __future__ import annotations

from collections.abc import Callable

Goal = Callable[[float, float], float]


def privacy(forget_error: float, reference_error: float) -> float:
    """``|err(D_f) - err(reference)|``: 0 = forgotten examples are like unseen ones. Lower = better; [0, 1]."""
    return abs(forget_error - reference_error)


def bias_removal(forget_error: float, reference_error: float) -> float:
    """``1 - err(D_f)``: 0 = no given label of a forgotten example is predicted any more. Lower = better; [0, 1]."""
    return 1 - forget_error


def objective(validation_error: float, forget_error: float, trade_off: float, goal: Goal = privacy) -> float:
    """J of one candidate.

    Args:
        validation_error: share of wrong predictions on validation data, in [0, 1].
        forget_error: the same on the forgotten data.
        trade_off: lambda, weight of the goal, in [0, 1].
        goal: `privacy`, `bias_removal`, or any function of the forget error and a reference error.

    Raises:
        ValueError: if a number lies outside its range.
    """
    numbers = {"validation_error": validation_error, "forget_error": forget_error, "trade_off": trade_off}
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name}={number} must lie in [0, 1]")
    return (1 - trade_off) * validation_error + trade_off * goal(forget_error, validation_error)
