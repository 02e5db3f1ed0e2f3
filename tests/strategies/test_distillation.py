"""Unlearning by distillation: the subtraction and a step by hand, and a student that returns to its teacher."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from fedforget.cohort import Cohort
from fedforget.exchange import Card
from fedforget.history import History
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.testing import REQUESTS, Toy, serve
from strategies.distillation import Distillation, distil

LAYOUT = Layout(("a",), ((2,),))
LN3 = 1.0986122886681098


def point(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), LAYOUT)


def test_the_shares_of_the_leaving_clients_are_subtracted_and_the_original_teaches() -> None:
    # Client 0: 10 of 40 examples in round 1, 10 of 20 in round 3; client 1: 30 of 40 in round 1. sum p D = (4, 8) / 4 +
    # (2, -2) / 2 + 3 (0, 4) / 4 = (2, 4). Each round of distillation then brings (1, 1).
    weights = {1: {0: 10, 1: 30}, 2: {2: 5}, 3: {0: 10, 2: 10}}
    updates = {(1, 0): point(4, 8), (3, 0): point(2, -2), (1, 1): point(0, 4)}
    asked = []

    def reduce(w: Params, **ask: Any) -> Params:
        asked.append((w.flat.tolist(), ask["round"], ask["vectors"]["teacher"].flat.tolist(), ask["T"], ask["hard"]))
        return point(1, 1)

    history = SimpleNamespace(
        final=point(10, 20),
        rounds=3,
        weights=weights.__getitem__,
        examples=lambda t: sum(weights[t].values()),
        update=lambda t, k: updates[t, k],
    )
    strategy = Distillation(Distillation.Config(rounds=2, temperature=4.0, hard=0.25))
    request = UnlearningRequest("client", (0, 1))
    made = strategy.unlearn(request, cast(History, history), cast(Cohort, SimpleNamespace(reduce=reduce)))
    assert [w.flat.tolist() for w in made] == [[8, 16], [9, 17], [10, 18]]
    assert asked == [([8, 16], 4, [10, 20], 4.0, 0.25), ([9, 17], 5, [10, 20], 4.0, 0.25)]


@pytest.mark.parametrize(
    ("hard", "expected"),
    [
        # Student (0, 0), teacher (2 ln 3, 0), T = 2: p_teacher = (3, 1) / 4, p_w = (1, 1) / 2. The gradient of T^2 KL
        # is T (p_w - p_teacher) = (-0.5, 0.5); that of the cross-entropy with label 1 is p_w - (0, 1) = (0.5, -0.5).
        (0.0, (0.05, -0.05)),
        (1.0, (-0.05, 0.05)),
        (0.2, (0.03, -0.03)),
    ],
)
def test_a_step_by_hand(hard: float, expected: tuple[float, float]) -> None:
    model = nn.Linear(1, 2, bias=False)
    teacher = Params(torch.tensor([2 * LN3, 0.0]), Layout.of(model))
    Params(torch.zeros(2), teacher.layout).copy_to(model)
    local, inputs, labels = LocalConfig(lr=0.1), torch.ones(1, 1), torch.tensor([1])
    options, vectors = {"T": 2.0, "hard": hard}, {"teacher": teacher}
    distil(Client(0, 1, model, inputs, labels, torch.tensor([0]), 1, local, Seeds(0), options, vectors))
    assert Params.from_module(model).flat.tolist() == pytest.approx(expected, rel=1e-5)


def test_distillation_brings_back_the_teachers_answers_and_asks_only_who_stays(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    models, cohort, final = serve(toy, Distillation(Distillation.Config(rounds=8), toy.learning), REQUESTS["client"])
    answers = [cohort.evaluate(model, {"test": 400})["test"].logits for model in (final, *models)]
    gaps = [float(((logits - answers[0]) ** 2).mean()) for logits in answers[1:]]
    assert len(models) == 1 + 8 and gaps[-1] < 0.3 * gaps[0]
    assert 2 not in cohort.contacted and cohort.cost.rounds == 8


def test_what_it_assumes() -> None:
    assert Distillation.card == Card(records="targets", storage="sums") and Distillation.scopes == {"client"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "strategy.distillation.rounds is 0, but must be at least 1"),
        ({"temperature": float("nan")}, "strategy.distillation.temperature is nan, but must be a finite number"),
        ({"hard": 1.5}, r"strategy.distillation.hard is 1.5, but must be in \[0, 1\]"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation.Config(**fields)
