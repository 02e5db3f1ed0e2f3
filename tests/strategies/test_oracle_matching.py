"""Oracle matching: one step by hand, that the outputs approach the retrain's, and an honest bill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedforget.exchange import Card
from fedforget.params import Params
from fedforget.routines import Client, LocalConfig, match
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.oracle_matching import OracleMatching
from strategies.retrain import Retrain

CONFIG = OracleMatching.Config


def test_a_step_towards_a_mixture_by_hand() -> None:
    # One weight per class on x = 2. Matched: 3 (1, 0) - 2 (0, 1) = (3, -2), so h = (6, -4). At w = 0 the mean over two
    # classes of (2 w - h)^2 has the gradient 2 * 2 (2 w - h) / 2 = 2 (0 - h) = (-12, 8); lr = 0.5: w = (6, -4).
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    layout = Params.from_module(model).layout
    vectors = {"a": Params(torch.tensor([1.0, 0.0]), layout), "b": Params(torch.tensor([0.0, 1.0]), layout)}
    recipe, options = LocalConfig(lr=0.5), {"a": 3.0, "b": -2.0}
    one, place = torch.tensor([[2.0]]), torch.tensor([0])
    client = Client(0, 1, model, one, place, place, 1, recipe, Seeds(0), options, vectors)
    match(client)
    assert model.weight.flatten().tolist() == [6.0, -4.0]
    assert (client.steps, client.examples) == (1, 3)  # two models looked at, one step


def test_a_matched_model_stays(tmp_path: Path) -> None:
    # Where the model already answers as the mixture does, there is nothing to learn.
    toy = Toy(tmp_path, 1)
    cohort = toy.cohort(REQUESTS["client"])
    replies = cohort.train(toy.start, routine=match, vectors={"h": toy.start}, h=1.0)
    assert replies.mean().norm() == 0


def outputs(cohort: Any, model: Params) -> torch.Tensor:
    sets = cohort.evaluate(model, {"forget": 500, "retain": 200})
    return torch.cat([torch.tensor(logits) for logits, *_ in sets.values()])


def test_outputs_approach_the_retrained_ones(tmp_path: Path) -> None:
    toy = Toy(tmp_path, 1, LearningConfig(rounds=4), LocalConfig(lr=1.0))
    models, cohort, final = serve(toy, OracleMatching(CONFIG(lr=0.2), toy.learning), REQUESTS["class"])
    oracle, _, _ = serve(toy, Retrain(learning=toy.learning), REQUESTS["class"])
    h = outputs(cohort, oracle[-1])
    before, *matched = [(outputs(cohort, w) - h).square().mean().item() for w in (final, models[-5], models[-1])]
    assert matched[1] < matched[0] < before / 10


def test_the_retrain_inside_is_billed(tmp_path: Path) -> None:
    # T = 4 rounds of retraining as the oracle pays them, then R = 2 rounds, each with two models down to every client
    # of the cohort and to the target, and one update up.
    toy = Toy(tmp_path)
    models, cohort, final = serve(toy, OracleMatching(CONFIG(rounds=2)), REQUESTS["client"])
    matching = [sorted({*cohort.sample(t), 2}) for t in (5, 6)]
    asked = sum(map(len, matching))
    _, retrained, _ = serve(toy, Retrain(), REQUESTS["client"])
    d = 4 * cohort.layout.size
    assert len(models) == 6 and all(w.equals(final) for w in models[:4])
    assert cohort.cost.rounds == retrained.cost.rounds + 2
    assert cohort.cost.bytes_down == retrained.cost.bytes_down + 2 * asked * d
    assert cohort.cost.bytes_up == retrained.cost.bytes_up + asked * d


def test_what_it_assumes() -> None:
    assert OracleMatching().card == Card(target_online=True)
    assert OracleMatching.scopes == {"client", "sample", "class"}


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="strategy.oracle_matching.rounds is 0, but must be at least 1"):
        CONFIG(rounds=0)
    with pytest.raises(ValueError, match="strategy.oracle_matching.lr is 0.0, but must be above 0"):
        CONFIG(lr=0.0)
