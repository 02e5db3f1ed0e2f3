"""Fine-tuning: more ordinary rounds, after the last one, from the model to unlearn."""

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
from strategies.finetune import FineTune

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
    return History(recording, rounds, FINAL, FineTune().card)


def test_learning_goes_on_from_the_final_model(tmp_path: Path, calls: Calls) -> None:
    models = list(FineTune(FineTune.Config(rounds=2)).unlearn(REQUEST, history(tmp_path, 7), COHORT))
    assert calls == [(COHORT, [10, 20, 30], 2, 8)]  # round 8 follows the seven of the original
    assert [model.flat.tolist() for model in models] == [[11, 21, 31], [12, 22, 32]]


def test_what_it_assumes() -> None:
    assert FineTune.scopes == set(SCOPES)
    assert FineTune().card == Card(records="nothing", target_online=False, retained_online=True)


@pytest.mark.parametrize("rounds", [0, -3])
def test_bad_settings_are_refused(rounds: int) -> None:
    with pytest.raises(ValueError, match=f"finetune.rounds={rounds} must be at least 1"):
        FineTune.Config(rounds=rounds)
