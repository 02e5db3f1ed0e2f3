"""Doing nothing: the model comes back as it is, and nobody is asked."""

from __future__ import annotations

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
from strategies.none import DoNothing

LAYOUT = Layout(("a", "b"), ((2,), (1,)))


@pytest.mark.parametrize("scope", SCOPES)
def test_the_model_comes_back(tmp_path: Path, scope: str) -> None:
    final = Params(torch.tensor([1.0, 2.0, 3.0]), LAYOUT)
    recording = Recording(tmp_path, LAYOUT, HistoryConfig("nothing"), (), Seeds(0))
    strategy = DoNothing()
    target = (0, 5) if scope == "sample" else 0
    request = UnlearningRequest(scope, (target,))
    nobody = cast(Cohort, None)  # any question to the clients would fail
    [model] = strategy.unlearn(request, History(recording, 4, final, strategy.card), nobody)
    assert model is final


def test_it_assumes_nothing() -> None:
    assert DoNothing.scopes == set(SCOPES)
    assert DoNothing().card == Card(records="nothing", target_online=False, retained_online=False, server_data=False)


def test_it_has_no_settings() -> None:
    with pytest.raises(TypeError):
        DoNothing.Config(rounds=1)  # type: ignore[call-arg]
