"""The truncated retrain: the first rounds of a retrain, and no others."""

from __future__ import annotations

import pytest

from fedforget.exchange import Card
from fedforget.request import SCOPES
from strategies.truncated_retrain import TruncatedRetrain


@pytest.mark.parametrize(
    ("share", "total", "rounds"),
    [
        (0.5, 10, 5),
        (0.3, 10, 3),
        (0.26, 10, 3),  # 2.6
        (0.01, 10, 1),  # 0.1, but at least one
        (0.1, 4, 1),
        (1.0, 7, 7),
        (0.5, 1, 1),  # 0.5 is rounded to even, 0, but at least one
        (0.5, 5, 2),  # 2.5 is rounded to even
        (0.5, 7, 4),  # 3.5 likewise
    ],
)
def test_it_stops_early(calls, models_after, share: float, total: int, rounds: int) -> None:
    made = models_after(TruncatedRetrain(TruncatedRetrain.Config(share=share)), total)
    assert calls == [([1, 2, 3], rounds, 1)]
    assert made == [[1 + i, 2 + i, 3 + i] for i in range(1, rounds + 1)]


def test_what_it_assumes() -> None:
    assert TruncatedRetrain.scopes == set(SCOPES)
    assert TruncatedRetrain().card == Card(records="nothing", target_online=False, retained_online=True)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, 1.5])
def test_bad_settings_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"strategy.truncated_retrain.share is {share}, but must be in \(0, 1\]"):
        TruncatedRetrain.Config(share=share)
