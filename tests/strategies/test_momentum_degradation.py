"""MoDe: guidance and degradation by hand, its degradation model, and what it asks and costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedforget.exchange import Card
from fedforget.params import Params
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.testing import REQUESTS, Toy, serve
from strategies.momentum_degradation import MomentumDegradation, guide
from strategies.truncated_retrain import TruncatedRetrain

CONFIG = MomentumDegradation.Config


@pytest.mark.parametrize(
    ("forgotten", "expected"),
    [
        # One weight a class on x = (1), both of label 0; w = 0, so p = (1/2, 1/2). w_de = (0, 3) calls everything 1.
        # The gradient of a label 0 is (-1/2, 1/2), of a label 1 (1/2, -1/2). Full batch, lr 1.
        ([False, False], [0.5, -0.5]),
        ([True, True], [-0.5, 0.5]),
        ([True, False], [0.0, 0.0]),  # they cancel
    ],
)
def test_guidance_by_hand(forgotten: list[bool], expected: list[float]) -> None:
    module = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(module.weight)
    vectors = {"w_de": Params(torch.tensor([0.0, 3.0]), Params.from_module(module).layout)}
    labels, flags = torch.zeros(2).long(), torch.tensor(forgotten)
    worker = Client(
        0, 1, module, torch.ones(2, 1), labels, torch.arange(2), 2, LocalConfig(lr=1), Seeds(0), {}, vectors, flags
    )
    guide(worker)
    assert module.weight.flatten().tolist() == expected
    assert labels.tolist() == [0, 0]  # shared by all clients of a process, so never written to
    assert (worker.steps, worker.examples) == (1, 2 + sum(forgotten))


def unlearn(folder: Path, scope: str = "client", **fields: Any) -> tuple[list[Params], Any, Params, Toy]:
    toy = Toy(folder)
    models, cohort, final = serve(toy, MomentumDegradation(CONFIG(**fields), toy.learning), REQUESTS[scope])
    return models, cohort, final, toy


@pytest.mark.parametrize("scope", ["client", "class"])
def test_the_degradation_model_is_a_truncated_retrain(tmp_path: Path, scope: str) -> None:
    # lambda = 1/4: w = final/4 + 3/4 w_1 and, after guidance from there, guided/4 + 3/4 w_2.
    models, _, final, toy = unlearn(tmp_path, scope, momentum=0.25, degradation_rounds=2, guidance_rounds=2, rounds=0)
    assert len(models) == 4
    short = TruncatedRetrain(TruncatedRetrain.Config(share=0.5), toy.learning)
    (first, second), _, _ = serve(Toy(tmp_path), short, REQUESTS[scope])
    torch.testing.assert_close(models[0].flat, 0.25 * final.flat + 0.75 * first.flat)
    torch.testing.assert_close(models[2].flat, 0.25 * models[1].flat + 0.75 * second.flat)


def test_full_momentum_is_guidance_alone(tmp_path: Path) -> None:
    models, _, final, _ = unlearn(tmp_path, momentum=1.0, degradation_rounds=1, guidance_rounds=1, rounds=0)
    assert models[0].equals(final) and not models[1].equals(final)


def test_who_is_asked_and_what_it_costs(tmp_path: Path) -> None:
    # Two rounds for w_de, three of guidance (5 to 7: the target and the cohort, two models down), one of repair.
    models, cohort, _, toy = unlearn(tmp_path, degradation_rounds=2, guidance_rounds=3, rounds=1)
    assert len(models) == cohort.cost.rounds == 2 + 3 + 1
    guidance = {t: set() for t in (5, 6, 7)}
    others = []
    for work in toy.grid.work:
        if work.split == "train":
            guidance[work.round] |= set(work.clients)
        else:
            others += [(work.round, client) for client in work.clients]
    assert all(asked == {2, *cohort.sample(t)} for t, asked in guidance.items())
    assert sorted(others) == sorted((t, client) for t in (1, 2, 8) for client in cohort.sample(t))
    d, guided = 4 * cohort.layout.size, sum(map(len, guidance.values()))
    assert cohort.cost.bytes_up == (guided + len(others)) * d
    assert cohort.cost.bytes_down == (2 * guided + len(others)) * d


def test_a_class_is_forgotten_and_the_others_stay(tmp_path: Path) -> None:
    models, cohort, final, _ = unlearn(tmp_path, "class")

    def hits(model: Params, split: str) -> float:
        logits, labels, *_ = cohort.evaluate(model, {split: 500})[split]
        return float((logits.argmax(1) == labels).mean())

    assert hits(final, "forget") > 0.6 and hits(models[-1], "forget") < 0.1
    assert hits(models[-1], "retain") > hits(final, "retain")


def test_what_it_assumes() -> None:
    assert MomentumDegradation.scopes == {"client", "class"}
    assert MomentumDegradation().card == Card(target_online=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"momentum": 1.5}, r"strategy.momentum_degradation.momentum is 1.5, but must be in \[0, 1\]"),
        ({"degradation_rounds": 0}, "strategy.momentum_degradation.degradation_rounds is 0, but must be at least 1"),
        ({"guidance_rounds": 5}, "guidance_rounds is 5, but must be at least degradation_rounds, 6"),
        ({"rounds": -1}, "strategy.momentum_degradation.rounds is -1, but must be at least 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CONFIG(**fields)
