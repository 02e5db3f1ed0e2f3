"""FedQUIT: the virtual teacher by hand, a step by hand, and who takes part."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedforget.exchange import Card
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.testing import REQUESTS, Toy, serve
from strategies.fedquit import FedQuit, distil, quasi_competent


@pytest.mark.parametrize(
    ("true_class", "powers"),
    [
        # z = (3, 1, 0) log 2, label 0. The least logit is 0: weights 2^0, 2^1, 2^0.
        ("minimum", [1.0, 2.0, 1.0]),
        # The others' softmax is (2, 1) / 3, and v = 2/3 log 2 + 1/3 log 1.
        ("entropy", [2 ** (2 / 3), 2.0, 1.0]),
    ],
)
def test_the_teacher_by_hand(true_class: str, powers: list[float]) -> None:
    z = math.log(2) * torch.tensor([[3.0, 1.0, 0.0]])
    q = quasi_competent(z, torch.tensor([0]), true_class)
    assert q[0].tolist() == pytest.approx([power / sum(powers) for power in powers])


def test_no_other_logit_of_the_true_class_has_more_entropy() -> None:
    z, labels = torch.tensor([[9.0, 1.0, -2.0, 0.5]]), torch.tensor([0])

    def entropy(q: torch.Tensor) -> float:
        return float(-(q * q.log()).sum())

    best = entropy(quasi_competent(z, labels, "entropy"))
    others = [z.scatter(1, labels[:, None], v).softmax(1) for v in torch.linspace(-3, 3, 601).tolist()]
    assert best >= max(map(entropy, others)) - 1e-6


def test_a_teacher_that_was_wrong_already_keeps_the_least_logit() -> None:
    z = torch.tensor([[0.0, 1.0, 2.0]])
    assert torch.equal(quasi_competent(z, torch.tensor([0]), "minimum"), z.softmax(1))


def test_a_step_by_hand() -> None:
    # W = (log 3, 0), x = 1, label 0: p = (3/4, 1/4); the teacher knows (1/2, 1/2), and the gradient is p - q.
    module = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[math.log(3)], [0.0]]))
    local, options = LocalConfig(lr=1.0), {"true_class": "minimum"}
    distil(Client(0, 1, module, torch.ones(1, 1), torch.tensor([0]), torch.tensor([0]), 1, local, Seeds(0), options))
    assert module.weight.flatten().tolist() == pytest.approx([math.log(3) - 0.25, 0.25])


@pytest.mark.parametrize("scope", sorted(REQUESTS))
def test_one_round_at_the_targets_and_recovery(tmp_path: Path, scope: str) -> None:
    toy = Toy(tmp_path)
    models, cohort, _ = serve(toy, FedQuit(FedQuit.Config(rounds=2), toy.learning), REQUESTS[scope])
    assert len(models) == cohort.cost.rounds == 3
    forgetting = {client for work in toy.grid.work if work.split == "forget" for client in work.clients}
    assert forgetting == set(cohort.targets)


def test_it_forgets_a_class(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    strategy = FedQuit(FedQuit.Config(epochs=10, rounds=0), toy.learning)
    models, cohort, final = serve(toy, strategy, REQUESTS["class"])
    logits, labels, *_ = cohort.evaluate(models[-1], {"forget": 500})["forget"]
    before = cohort.evaluate(final, {"forget": 500})["forget"].logits
    assert (before.argmax(1) == labels).mean() > 0.5 > (logits.argmax(1) == labels).mean() + 0.3


def test_what_it_assumes() -> None:
    assert FedQuit().card == Card(target_online=True)
    assert FedQuit(FedQuit.Config(rounds=0)).card == Card(target_online=True, retained_online=False)
    assert FedQuit.scopes == {"client", "sample", "class"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"true_class": "zero"}, "strategy.fedquit.true_class is 'zero', but must be one of minimum, entropy"),
        ({"epochs": 0}, "strategy.fedquit.epochs is 0, but must be at least 1"),
        ({"rounds": -1}, "strategy.fedquit.rounds is -1, but must be at least 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedQuit.Config(**fields)
