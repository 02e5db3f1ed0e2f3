"""Retraining: as many rounds as the original had, from its start."""

from __future__ import annotations

import pytest

from fedforget.exchange import Card
from fedforget.request import SCOPES
from strategies.retrain import Retrain


@pytest.mark.parametrize("rounds", [1, 3])
def test_it_learns_again_from_the_start(calls, models_after, rounds: int) -> None:
    assert models_after(Retrain(), rounds) == [[1 + i, 2 + i, 3 + i] for i in range(1, rounds + 1)]
    assert calls == [([1, 2, 3], rounds, 1)]  # first_round=1 pairs cohorts and randomness with the original's


def test_what_it_assumes() -> None:
    assert Retrain.scopes == set(SCOPES)
    assert Retrain().card == Card(records="nothing", target_online=False, retained_online=True)
