"""Retention masks: which weights are reset, to what, and what follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedforget.exchange import Card
from fedforget.params import Params
from fedforget.request import SCOPES
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.finetune import FineTune
from strategies.retention_mask import RetentionMask, mask

LEARNING = LearningConfig(rounds=3)


def run(folder: Path, scope: str = "client", **fields: Any) -> tuple[list[Params], Any, Params, Toy]:
    place = Toy(folder, learning=LEARNING)
    made, cohort, w_o = serve(place, RetentionMask(RetentionMask.Config(**fields), LEARNING), REQUESTS[scope])
    return made, cohort, w_o, place


@pytest.mark.parametrize(
    ("rho", "kept"),
    [
        (0.2, [0, 1, 0, 0, 0]),  # the largest
        (0.6, [0, 1, 1, 1, 0]),  # then the two 3s
        (0.4, [0, 1, 1, 0, 0]),  # of which the first comes first
        (1.0, [1, 1, 1, 1, 1]),
    ],
)
def test_a_mask_by_hand(rho: float, kept: list[int]) -> None:
    assert mask(torch.tensor([0.0, 5.0, 3.0, 3.0, 1.0]), rho).int().tolist() == kept


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("saliency", ["retain", "forget"])
@pytest.mark.parametrize("start", ["zero", "fresh"])
def test_what_is_reset(tmp_path: Path, scope: str, saliency: str, start: str) -> None:
    # 0.3 of 650 weights are kept: the 195 of largest |gradient| on retained, or of smallest on forgotten data.
    [w], _, w_o, place = run(tmp_path, scope, saliency=saliency, start=start, keep=0.3, rounds=0)
    s = place.cohort(REQUESTS[scope], Card(target_online=True)).gradient(w_o, split=saliency).flat.abs()
    kept = (s if saliency == "retain" else -s).argsort(descending=True, stable=True)[:195]
    expected = torch.zeros(650) if start == "zero" else place.start.flat.clone()
    expected[kept] = w_o.flat[kept]
    assert torch.equal(w.flat, expected)


def test_keeping_everything_is_fine_tuning(tmp_path: Path) -> None:
    made, _, w_o, _ = run(tmp_path, keep=1.0, rounds=2)
    place = Toy(tmp_path, learning=LEARNING)
    tuned, _, _ = serve(place, FineTune(FineTune.Config(rounds=2), LEARNING), REQUESTS["client"])
    assert made[0].equals(w_o)
    assert all(a.equals(b) for a, b in zip(made[1:], tuned, strict=True))


@pytest.mark.parametrize(("saliency", "asked"), [("retain", 5), ("forget", 1)])
def test_what_it_costs(tmp_path: Path, saliency: str, asked: int) -> None:
    # 1 + R rounds: d floats from each holder of the data that the saliency is measured on, then from 5 clients a round.
    made, cohort, w_o, _ = run(tmp_path, saliency=saliency, rounds=3)
    assert len(made) == 4
    assert (cohort.cost.rounds, cohort.cost.bytes_up) == (1 + 3, 4 * len(w_o.flat) * (asked + 3 * 5))


def test_what_it_assumes() -> None:
    assert RetentionMask.scopes == set(SCOPES)
    assert RetentionMask().card == Card()
    assert RetentionMask(RetentionMask.Config(saliency="forget")).card == Card(target_online=True)
    alone = RetentionMask(RetentionMask.Config(saliency="forget", rounds=0))
    assert alone.card == Card(target_online=True, retained_online=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"saliency": "both"}, "strategy.retention_mask.saliency is 'both', but must be one of retain, forget"),
        ({"keep": 0.0}, r"strategy.retention_mask.keep is 0.0, but must be in \(0, 1\]"),
        ({"keep": 1.5}, r"strategy.retention_mask.keep is 1.5, but must be in \(0, 1\]"),
        ({"start": "random"}, "strategy.retention_mask.start is 'random', but must be one of zero, fresh"),
        ({"rounds": -1}, "strategy.retention_mask.rounds is -1, but must be at least 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetentionMask.Config(**fields)
