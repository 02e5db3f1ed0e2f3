"""The truncated retrain: the first rounds of a retrain, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch

from fedforget.cohort import Cohort
from fedforget.exchange import Card
from fedforget.history import History, HistoryConfig, Recording
from fedforget.params import Layout, Params
from fedforget.request import SCOPES, UnlearningRequest
from fedforget.seeds import Seeds
from fedforget.strategy import UnlearningStrategy
from strategies.truncated_retrain import TruncatedRetrain

LAYOUT = Layout(("a", "b"), ((2,), (1,)))
COHORT = cast(Cohort, object())
REQUEST = UnlearningRequest("client", (0,))


def point(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), LAYOUT)


INITIAL, FINAL = point(1, 2, 3), point(10, 20, 30)
Calls = list[tuple[Cohort, list[float], int, int]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Ordinary rounds are replaced by adding 1 to every entry; what they were asked is kept."""
    asked: Calls = []

    def learn(
        self: UnlearningStrategy, cohort: Cohort, initial: Params, rounds: int, first_round: int = 1
    ) -> Iterator[Params]:
        asked.append((cohort, initial.flat.tolist(), rounds, first_round))
        yield from (initial + point(i, i, i) for i in range(1, rounds + 1))

    monkeypatch.setattr(UnlearningStrategy, "learn", learn)
    return asked


def history(folder: Path, rounds: int) -> History:
    """A trajectory of which only the first and the last model are known."""
    recording = Recording(folder, LAYOUT, HistoryConfig("nothing"), (), Seeds(0))
    recording.begin(INITIAL)
    return History(recording, rounds, FINAL, TruncatedRetrain().card)


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
def test_it_stops_early(tmp_path: Path, calls: Calls, share: float, total: int, rounds: int) -> None:
    strategy = TruncatedRetrain(TruncatedRetrain.Config(share=share))
    models = list(strategy.unlearn(REQUEST, history(tmp_path, total), COHORT))
    assert calls == [(COHORT, [1, 2, 3], rounds, 1)]
    assert [model.flat.tolist() for model in models] == [[1 + i, 2 + i, 3 + i] for i in range(1, rounds + 1)]


def test_what_it_assumes() -> None:
    assert TruncatedRetrain.scopes == set(SCOPES)
    assert TruncatedRetrain().card == Card(records="nothing", target_online=False, retained_online=True)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_bad_settings_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"truncated_retrain.share={share} must lie in \(0, 1\]"):
        TruncatedRetrain.Config(share=share)
