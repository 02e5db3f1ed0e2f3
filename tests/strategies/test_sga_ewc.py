"""SGA with EWC: a step by hand, the cap on the penalty, and who takes part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedforget.cohort import Cohort
from fedforget.exchange import Card
from fedforget.params import Params
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.testing import REQUESTS, Toy, serve
from strategies.sga_ewc import ElasticAscent, ascend


def test_a_step_by_hand() -> None:
    # At W = 0, x = 1, label 0 the cross-entropy has the gradient (-1/2, 1/2), so ascent adds it: (-1/2, 1/2). The
    # penalty with w_o = (1, -1) and lambda F / 2 = (1/4, 1/8) has 2 * (1/4, 1/8) * (0 - 1, 0 + 1) = (-1/2, 1/4), which
    # descent takes away: (1/2, -1/4). eta = 1.
    module = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(module.weight)
    layout = Params.from_module(module).layout
    vectors = {
        "w_o": Params(torch.tensor([1.0, -1.0]), layout),
        "hold": Params(torch.tensor([0.25, 0.125]), layout),
    }
    inputs, labels, local = torch.ones(1, 1), torch.tensor([0]), LocalConfig(lr=1.0)
    ascend(Client(0, 1, module, inputs, labels, torch.tensor([0]), 1, local, Seeds(0), vectors=vectors))
    assert module.weight.flatten().tolist() == [0.0, 0.25]


def unlearn(folder: Path, scope: str, **fields: Any) -> tuple[list[Params], Any, Params, Toy]:
    toy = Toy(folder)
    models, cohort, final = serve(toy, ElasticAscent(ElasticAscent.Config(**fields), toy.learning), REQUESTS[scope])
    return models, cohort, final, toy


@pytest.mark.parametrize("scope", sorted(REQUESTS))
def test_the_bill(tmp_path: Path, scope: str) -> None:
    # A round for F, two of ascent with w, w_o and the penalty down, three of recovery.
    models, cohort, final, toy = unlearn(tmp_path, scope, unlearning_rounds=2, rounds=3)
    assert len(models) == cohort.cost.rounds == 6 and models[0].equals(final)
    ascents = {client for work in toy.grid.work if work.split == "forget" for client in work.clients}
    assert ascents == set(cohort.targets)
    d = 4 * final.layout.size
    others = sum(len(work.clients) for work in toy.grid.work if work.split == "retain")
    assert cohort.cost.bytes_down == (others + 2 * 3 * len(cohort.targets)) * d


def test_momentum_and_decay_of_learning_stay_out_of_the_ascent(tmp_path: Path) -> None:
    # Two epochs of one batch at w = w_o, where the penalty is zero: up by eta grad CE, and again from there.
    local, eta = LocalConfig(momentum=0.9, weight_decay=0.1, batch_size=1000), 0.1
    toy = Toy(tmp_path, local=local)
    config = ElasticAscent.Config(penalty=0.0, lr=eta, epochs=2, unlearning_rounds=1, rounds=0)
    models, cohort, w = serve(toy, ElasticAscent(config, toy.learning), REQUESTS["client"])
    for _ in range(2):
        w = w + eta * cohort.gradient(w, split="forget")
    torch.testing.assert_close(models[-1].flat, w.flat, rtol=0, atol=1e-5)


def test_the_penalty_is_half_of_lambda_times_fisher_up_to_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, sent, reduce = Toy(tmp_path), [], Cohort.reduce

    def spy(self: Cohort, *args: Any, **options: Any) -> Any:
        sent.append(dict(options.get("vectors") or {}))
        return reduce(self, *args, **options)

    monkeypatch.setattr(Cohort, "reduce", spy)
    config = ElasticAscent.Config(penalty=30.0, lr=1.0, unlearning_rounds=1, rounds=0)
    _, _, final = serve(toy, ElasticAscent(config, toy.learning), REQUESTS["client"])
    [vectors] = [vectors for vectors in sent if "hold" in vectors]
    F = toy.cohort(REQUESTS["client"]).fisher(final).flat
    assert (30 * F > 1).any() and (30 * F < 1).any()  # lambda F_i is capped at 1/eta
    torch.testing.assert_close(vectors["hold"].flat, (30 * F).clamp(max=1.0) / 2)
    assert vectors["w_o"].equals(final)


def test_a_fisher_diagonal_of_zeros_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cohort, "fisher", lambda cohort, w: 0.0 * w)
    _, cohort, _, _ = unlearn(tmp_path, "client", rounds=0)
    assert cohort.notes == ["F is zero, so nothing holds what the retained data needs"]


def test_a_stiffer_penalty_keeps_the_model_nearer_and_never_diverges(tmp_path: Path) -> None:
    moved = []
    for penalty in (0.0, 1.0, 100.0, 1e9):
        models, _, final, _ = unlearn(tmp_path, "client", penalty=penalty, lr=0.1, epochs=10, rounds=0)
        moved.append((models[-1] - final).norm())
    assert moved[0] > moved[1] > moved[2] > moved[3] > 0


def test_ascent_raises_the_loss_on_what_is_forgotten(tmp_path: Path) -> None:
    models, cohort, final, _ = unlearn(tmp_path, "class", lr=0.1, rounds=0)
    losses = []
    for model in (final, models[-1]):
        logits, labels, *_ = cohort.evaluate(model, {"forget": 500})["forget"]
        losses.append(nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item())
    assert losses[1] > losses[0] + 0.1


def test_what_it_assumes() -> None:
    assert ElasticAscent().card == Card(target_online=True) and ElasticAscent.scopes == {"client", "sample", "class"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"penalty": -1.0}, "strategy.sga_ewc.penalty is -1.0, but must be at least 0"),
        ({"lr": 0.0}, "strategy.sga_ewc.lr is 0.0, but must be above 0"),
        ({"unlearning_rounds": 0}, "strategy.sga_ewc.unlearning_rounds is 0, but must be at least 1"),
        ({"epochs": 0}, "strategy.sga_ewc.epochs is 0, but must be at least 1"),
        ({"rounds": -1}, "strategy.sga_ewc.rounds is -1, but must be at least 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ElasticAscent.Config(**fields)
