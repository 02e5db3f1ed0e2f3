"""Retraining: as many rounds as the original had, from its start."""

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
from strategies.retrain import Retrain

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
    return History(recording, rounds, FINAL, Retrain().card)


@pytest.mark.parametrize("rounds", [1, 3])
def test_it_learns_again_from_the_start(tmp_path: Path, calls: Calls, rounds: int) -> None:
    models = list(Retrain().unlearn(REQUEST, history(tmp_path, rounds), COHORT))
    assert calls == [(COHORT, [1, 2, 3], rounds, 1)]  # first_round=1 pairs cohorts and randomness with the original's
    assert [model.flat.tolist() for model in models] == [[1 + i, 2 + i, 3 + i] for i in range(1, rounds + 1)]


def test_what_it_assumes() -> None:
    assert Retrain.scopes == set(SCOPES)
    assert Retrain().card == Card(records="nothing", target_online=False, retained_online=True)
