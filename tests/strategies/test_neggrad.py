"""NegGrad: one step by hand, equality with the pooled objective, and the ends of beta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedforget.exchange import Card
from fedforget.params import Layout, Params
from fedforget.request import SCOPES
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.finetune import FineTune
from strategies.neggrad import NegGrad, ascend

LEARNING = LearningConfig(rounds=3)
LR = 0.3


def toy(folder: Path, **local: Any) -> Toy:
    return Toy(folder, learning=LEARNING, local=LocalConfig(lr=LR, **local))


def test_ascent_by_hand() -> None:
    # x = 1 of class 0, logits (0, 0): the gradient of CE is p - 1_y = (-0.5, 0.5). Ascent with a quarter of the
    # learning rate 0.4: w = 0.1 (-0.5, 0.5).
    model = nn.Linear(1, 2, bias=False)
    Params(torch.zeros(2), Layout.of(model)).copy_to(model)
    local, inputs, labels = LocalConfig(lr=0.4), torch.ones(1, 1), torch.tensor([0])
    worker = Client(0, 1, model, inputs, labels, torch.tensor([0]), 1, local, Seeds(0), {"weight": 0.25})
    ascend(worker)
    assert Params.from_module(model).flat.tolist() == pytest.approx([-0.05, 0.05])


@pytest.mark.parametrize("scope", SCOPES)
def test_one_full_batch_step_is_a_step_on_the_pooled_objective(tmp_path: Path, scope: str) -> None:
    # w - lr (beta grad CE(w; D_r) - (1 - beta) grad CE(w; D_f)), with the gradients over all clients' data.
    place, request, beta = toy(tmp_path, steps=1, batch_size=300), REQUESTS[scope], 0.7
    [w], _, w_o = serve(place, NegGrad(NegGrad.Config(rounds=1, beta=beta), LEARNING), request)
    cohort = place.cohort(request, Card(target_online=True))
    pooled = beta * cohort.gradient(w_o) - (1 - beta) * cohort.gradient(w_o, split="forget")
    assert torch.allclose(w.flat, (w_o - LR * pooled).flat, atol=1e-6)


def test_beta_1_is_fine_tuning(tmp_path: Path) -> None:
    made, _, _ = serve(toy(tmp_path), NegGrad(NegGrad.Config(rounds=2, beta=1.0), LEARNING), REQUESTS["client"])
    tuned, _, _ = serve(toy(tmp_path), FineTune(FineTune.Config(rounds=2), LEARNING), REQUESTS["client"])
    assert all(torch.allclose(a.flat, b.flat, atol=1e-6) for a, b in zip(made, tuned, strict=True))


def test_the_loss_on_forgotten_data_rises_as_beta_falls(tmp_path: Path) -> None:
    request, losses = REQUESTS["sample"], []
    for beta in (1.0, 0.8, 0.5):
        place = toy(tmp_path)
        made, cohort, _ = serve(place, NegGrad(NegGrad.Config(rounds=3, beta=beta), LEARNING), request)
        logits, labels, *_ = place.cohort(request, cohort.card).evaluate(made[-1], {"forget": 500})["forget"]
        losses.append(nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item())
    assert losses[0] < losses[1] < losses[2]


def test_what_it_costs(tmp_path: Path) -> None:
    # Each of 3 aggregations: d floats from 5 retained clients and from the target, in one round of two parts.
    made, cohort, w_o = serve(toy(tmp_path), NegGrad(NegGrad.Config(rounds=3), LEARNING), REQUESTS["client"])
    assert len(made) == cohort.cost.rounds == 3
    assert cohort.cost.bytes_up == 4 * len(w_o.flat) * 3 * (5 + 1)


def test_what_it_assumes() -> None:
    assert NegGrad.scopes == set(SCOPES)
    assert NegGrad().card == Card(target_online=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "strategy.neggrad.rounds is 0, but must be at least 1"),
        ({"beta": 0.0}, r"strategy.neggrad.beta is 0.0, but must be in \(0, 1\]"),
        ({"beta": 1.1}, r"strategy.neggrad.beta is 1.1, but must be in \(0, 1\]"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NegGrad.Config(**fields)
