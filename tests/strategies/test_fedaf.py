"""FedAF: new memories and a step by hand, the refined Fisher diagonal, rounds and contacts on the toy federation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedforget.cohort import Cohort
from fedforget.params import Params
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.testing import REQUESTS, Toy, serve
from strategies import fedaf
from strategies.fedaf import FedAF, new_memories, overwrite, refine

OPTIONS = {"teachers": 2, "temperature": 1.0, "labels": "soft", "seed": 3, "penalty": 0.5}


def flat(module: nn.Module, *values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), Params.from_module(module).layout)


def client(module: nn.Module, inputs: list[float], labels: list[int], **fields: Any) -> Client:
    images, local = torch.tensor(inputs)[:, None], LocalConfig(lr=1.0)
    places = torch.arange(len(inputs))
    return Client(0, 1, module, images, torch.tensor(labels), places, len(inputs), local, Seeds(7), **fields)


def linear(classes: int, *values: float) -> nn.Module:
    module = nn.Linear(1, classes)
    flat(module, *(values or [0.0] * 2 * classes)).copy_to(module)
    return module


# Teacher 1 says (1, 1, 1)/3 of anything, teacher 2 has logits (ln 2, 0, 0), so (2, 1, 1)/4.
# z = ((4, 4, 4)/12 + (6, 3, 3)/12) / 2 = (10, 7, 7)/24. Without class 0: (0, 7, 7)/14; without class 1: (10, 0, 7)/17.
# At tau = 1/2 teacher 2 has logits (ln 4, 0, 0), so (4, 1, 1)/6 and z = (6, 3, 3)/12.
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[10 / 24, 7 / 24, 7 / 24]] * 2),
        ({"labels": "excluded"}, [[0, 1 / 2, 1 / 2], [10 / 17, 0, 7 / 17]]),
        ({"labels": "hard"}, [[1, 0, 0]] * 2),
        ({"temperature": 0.5}, [[1 / 2, 1 / 4, 1 / 4]] * 2),
    ],
)
def test_new_memories_by_hand(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: list[list[float]]
) -> None:
    module = linear(3)
    teachers = iter([flat(module, 0, 0, 0, 0, 0, 0), flat(module, 0, 0, 0, math.log(2), 0, 0)])
    monkeypatch.setattr(fedaf, "fresh", lambda layout, generator: next(teachers))
    z = new_memories(client(module, [5.0, -1.0], [0, 1], options={**OPTIONS, **options}))
    torch.testing.assert_close(z, torch.tensor(expected, dtype=torch.float32))


def test_all_clients_have_the_same_teachers_and_leave_their_model_alone() -> None:
    module = linear(3, 1, 2, 3, 4, 5, 6)
    before = Params.from_module(module)
    # The same example is remembered alike wherever it is, and whatever the model at hand.
    one, other = client(module, [2.0, 1.0], [0, 0], options=OPTIONS), client(linear(3), [2.0], [1], options=OPTIONS)
    torch.testing.assert_close(new_memories(one)[:1], new_memories(other))
    assert Params.from_module(module).equals(before)
    assert torch.allclose(new_memories(one).sum(1), torch.ones(2))
    another = client(module, [2.0, 1.0], [0, 0], options=OPTIONS | {"seed": 4})
    assert not torch.equal(new_memories(one), new_memories(another))


def test_a_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # At w = 0 both classes have p = 1/2. With z = (3/4, 1/4) and x = 1 the gradient of KL(z || p) is p - z =
    # (-1/4, 1/4), for the weights and for the biases. lambda F (w - w_o) = 1/2 * 1 * (0 - 1/2) = -1/4 for the first
    # weight, and for the last bias min(1/2 * 9, 1/eta = 1) * (0 + 1) = 1. lr = 1: w = (1/2, -1/4 | 1/4, -5/4).
    module = linear(2)
    monkeypatch.setattr(fedaf, "new_memories", lambda client: torch.tensor([[0.75, 0.25]]))
    vectors = {"w_o": flat(module, 0.5, 0, 0, -1), "F": flat(module, 1, 7, 7, 9)}
    overwrite(client(module, [1.0], [0], options=OPTIONS, vectors=vectors))
    assert Params.from_module(module).flat.tolist() == [0.5, -0.25, 0.25, -1.25]


@pytest.mark.parametrize(
    ("q", "divide", "expected"),
    [
        (1.0, False, [1, 10, 4, 1]),
        (0.75, False, [1, 4, 4, 1]),  # the third smallest of (1, 1, 4, 10) is 4
        (1.0, True, [0.25, 2.5, 1, 0.25]),  # the mean is 16/4
        (0.75, True, [0.4, 1.6, 1.6, 0.4]),  # the mean is 10/4
        (0.01, False, [1, 1, 1, 1]),  # the smallest, at least
    ],
)
def test_refined_fisher_by_hand(q: float, divide: bool, expected: list[float]) -> None:
    module = linear(2)
    assert refine(flat(module, 1, 10, 4, 1), q, divide).flat.tolist() == pytest.approx(expected)
    assert refine(flat(module, 0, 0, 0, 0), q, divide).flat.tolist() == [0, 0, 0, 0]


def unlearn(folder: Path, scope: str, **fields: Any) -> tuple[list[Params], Any, Params, Toy]:
    toy = Toy(folder)
    models, cohort, final = serve(toy, FedAF(FedAF.Config(**fields), toy.learning), REQUESTS[scope])
    return models, cohort, final, toy


@pytest.mark.parametrize("scope", sorted(REQUESTS))
def test_only_forgetting_clients_work_after_the_fisher_round(tmp_path: Path, scope: str) -> None:
    models, cohort, final, toy = unlearn(tmp_path, scope, rounds=2, recovery_rounds=1)
    # 1 + R_u + R_ft rounds; w, w_o and F go down in each of the R_u.
    assert cohort.cost.rounds == 4 and len(models) == 4 and models[0].equals(final)
    forgetting = [work for work in toy.grid.work if work.routine == "strategies.fedaf:overwrite"]
    assert {client for work in forgetting for client in work.clients} == set(cohort.targets)
    assert {work.split for work in forgetting} == {"forget"}
    asked = len(cohort.retained) + 2 * 3 * len(cohort.targets) + len(cohort.sample(5))
    assert cohort.cost.bytes_down == asked * 4 * final.layout.size


def test_a_fisher_diagonal_of_zeros_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 650 entries 640 are 0; clipped at the median none is left.
    def few(cohort: Cohort, w: Params) -> Params:
        return Params(torch.cat([torch.zeros(640), torch.ones(10)]), w.layout)

    monkeypatch.setattr(Cohort, "fisher", few)
    _, cohort, _, _ = unlearn(tmp_path, "client", clip=0.5)
    assert cohort.notes == ["F is zero (clip=0.5), so nothing holds what the retained data needs"]
    _, cohort, _, _ = unlearn(tmp_path, "client", clip=0.99)
    assert cohort.notes == []


def test_the_cap_on_the_penalty_follows_the_rate_of_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    # In round 3 at a decay of 1/2 the rate is 1/4, so lambda F = 1/2 * 40 is capped at 4: with z = p the step from w =
    # (0, 0 | 0, 0) and w_o = (1, 0 | 0, 0) is 1/4 * 4 * 1, all the way to w_o and no further.
    module = linear(2)
    monkeypatch.setattr(fedaf, "new_memories", lambda client: torch.tensor([[0.5, 0.5]]))
    vectors = {"w_o": flat(module, 1, 0, 0, 0), "F": flat(module, 40, 40, 40, 40)}
    worker = client(module, [1.0], [0], options=OPTIONS, vectors=vectors)
    worker.round, worker.local = 3, LocalConfig(lr=1.0, lr_decay=0.5)
    overwrite(worker)
    assert Params.from_module(module).flat.tolist() == [1, 0, 0, 0]


def test_the_forgotten_class_is_no_longer_told(tmp_path: Path) -> None:
    models, cohort, final, _ = unlearn(tmp_path, "class", penalty=0.1, epochs=5)

    def hits(model: Params, split: str) -> Tensor:
        logits, labels, *_ = cohort.evaluate(model, {split: 500})[split]
        return (logits.argmax(1) == labels).mean()

    assert hits(final, "forget") > 0.5 and hits(models[-1], "forget") < 0.2
    assert hits(models[-1], "retain") > hits(final, "retain") - 0.15


def test_a_stronger_penalty_keeps_the_model_nearer(tmp_path: Path) -> None:
    moved = [
        (models[-1] - final).norm()
        for models, _, final, _ in (unlearn(tmp_path, "client", penalty=penalty) for penalty in (0.0, 0.3, 1e6))
    ]
    assert moved[0] > moved[1] > moved[2] > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teachers": 0}, "strategy.fedaf.teachers is 0, but must be at least 1"),
        ({"rounds": 0}, "strategy.fedaf.rounds is 0, but must be at least 1"),
        ({"temperature": 0.0}, "strategy.fedaf.temperature is 0.0, but must be above 0"),
        ({"labels": "sharp"}, "strategy.fedaf.labels is 'sharp', but must be one of soft, excluded, hard"),
        ({"clip": 0.0}, r"strategy.fedaf.clip is 0.0, but must be in \(0, 1\]"),
        ({"penalty": -1.0}, "strategy.fedaf.penalty is -1.0, but must be at least 0"),
        ({"recovery_rounds": -1}, "strategy.fedaf.recovery_rounds is -1, but must be at least 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedAF.Config(**fields)
