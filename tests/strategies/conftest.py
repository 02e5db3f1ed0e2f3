"""Fixtures shared by the tests of several strategies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from fedforget.cohort import Cohort
from fedforget.exchange import Card
from fedforget.history import History, HistoryConfig, Recording
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.routines import LocalConfig
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig, UnlearningStrategy
from fedforget.testing import REQUESTS, Toy

LAYOUT = Layout(("a", "b"), ((2,), (1,)))


def point(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), LAYOUT)


# ------------------------------------------------------------------ strategies that only learn on


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[float], int, int]]:
    """Ordinary rounds are replaced by adding 1 to every entry; kept is what they were asked: ``(start, rounds, first
    round)``."""
    asked: list[tuple[list[float], int, int]] = []

    def learn(
        self: UnlearningStrategy, cohort: Cohort, initial: Params, rounds: int, first_round: int = 1
    ) -> Iterator[Params]:
        asked.append((initial.flat.tolist(), rounds, first_round))
        yield from (initial + point(i, i, i) for i in range(1, rounds + 1))

    monkeypatch.setattr(UnlearningStrategy, "learn", learn)
    return asked


@pytest.fixture
def models_after(tmp_path: Path) -> Callable[[UnlearningStrategy, int], list[list[float]]]:
    """What a strategy yields after some rounds of which only the first model, (1, 2, 3), and the last, (10, 20, 30),
    are known; client 0 leaves, and nobody can be asked but through `calls`."""

    def models(strategy: UnlearningStrategy, rounds: int) -> list[list[float]]:
        recording = Recording(tmp_path, LAYOUT, HistoryConfig("nothing"), (), Seeds(0))
        recording.begin(point(1, 2, 3))
        history = History(recording, rounds, point(10, 20, 30), Card())
        made = strategy.unlearn(UnlearningRequest("client", (0,)), history, cast(Cohort, object()))
        return [model.flat.tolist() for model in made]

    return models


# ------------------------------------------------------------------ strategies that take Newton steps


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """A toy whose recipe has weight decay, on one node."""
    return Toy(tmp_path, 1, LearningConfig(rounds=1), LocalConfig(weight_decay=0.05))


@pytest.fixture
def from_start(toy: Toy) -> Callable[[UnlearningStrategy, Cohort], list[Params]]:
    """What a strategy yields that unlearns a client from the toy's initial model."""

    def models(strategy: UnlearningStrategy, cohort: Cohort) -> list[Params]:
        history = cast(History, SimpleNamespace(final=toy.start))
        return list(strategy.unlearn(REQUESTS["client"], history, cohort))

    return models


@pytest.fixture
def slope(toy: Toy) -> Callable[[Params], Params]:
    """The gradient of the retained objective, weight decay included, in float64."""

    def gradient(w: Params) -> Params:
        return toy.cohort(REQUESTS["client"]).gradient(w.double()) + toy.local.weight_decay * w.double()

    return gradient
