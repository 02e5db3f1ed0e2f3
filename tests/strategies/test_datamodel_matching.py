"""Datamodel matching over clients: who is left out, the regression by hand, and what it trains and costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fedforget.cohort import Cohort
from fedforget.exchange import Card
from fedforget.metrics.unrolling import verification_error
from fedforget.routines import LocalConfig
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.datamodel_matching import DatamodelMatching, coefficients, left_out
from strategies.retrain import Retrain

CONFIG = DatamodelMatching.Config


def test_every_pass_leaves_out_every_client_once() -> None:
    A = left_out([0, 1, 2, 5, 7], 2, 3, Seeds(0))
    assert A.shape == (9, 5) and A.sum(0).tolist() == [3] * 5
    assert sorted(A.sum(1).tolist()) == [1] * 3 + [2] * 6  # blocks of 2, 2 and 1
    assert not torch.equal(A[:3], A[3:6])
    assert torch.equal(A, left_out([0, 1, 2, 5, 7], 2, 3, Seeds(0)))


def test_leaving_out_one_by_one_is_the_oracle() -> None:
    # A = I without ridge: f(without c) - f_o belongs to training c alone, so h = f_o + (f_c - f_o) = f_c.
    assert coefficients(torch.eye(3), [1], 0.0) == [0, 1, 0]
    assert coefficients(torch.eye(3), [0, 2], 0.0) == [1, 0, 1]
    # lambda = 1 halves them: 1 / (1 + 1).
    assert coefficients(torch.eye(3), [1], 1.0) == [0, 0.5, 0]


def test_additive_effects_are_found_exactly() -> None:
    # Trainings without {0, 1}, {1, 2} and {0, 2}: (a0 + a1, a1 + a2, a0 + a2), so a0 = (first + third - second) / 2.
    A = torch.tensor([[1.0, 1, 0], [0, 1, 1], [1, 0, 1]])
    assert coefficients(A, [0], 0.0) == pytest.approx([0.5, -0.5, 0.5])
    g = torch.tensor(coefficients(A, [0, 2], 0.0))
    assert (g @ A @ torch.tensor([3.0, -1.0, 10.0])).item() == pytest.approx(13)


def test_trainings_are_the_originals_rounds_without_the_left_out(tmp_path: Path) -> None:
    toy = Toy(tmp_path, 1)
    models, cohort, final = serve(toy, DatamodelMatching(CONFIG(passes=1, rounds=2)), REQUESTS["client"])
    trainings = [work for work in toy.grid.work if work.routine.endswith(":train")]
    plain = toy.cohort()
    A = left_out(range(6), 2, 1, cohort.seeds)
    expected = [
        (t, tuple(k for k in plain.sample(t) if not row[k]))
        for row in A
        for t in range(1, 5)
        if any(not row[k] for k in plain.sample(t))
    ]
    assert [(work.round, work.clients) for work in trainings] == expected
    assert {work.split for work in toy.grid.work} == {"train"}
    # The model moves only once the trainings are done; every one of their rounds is billed.
    assert all(w.equals(final) for w in models[:-2]) and not models[-1].equals(final)
    assert cohort.cost.rounds == len(models) == len(trainings) + 2


def test_matching_sends_all_models(tmp_path: Path) -> None:
    # 3 trainings of a pass, the original and the current model: 5 d down to each client, d up.
    toy = Toy(tmp_path, 1)
    _, cohort, _ = serve(toy, DatamodelMatching(CONFIG(passes=1, rounds=1)), REQUESTS["client"])
    trained = sum(len(work.clients) for work in toy.grid.work[:-1])
    matched = len({*cohort.sample(5), 2})
    d = 4 * cohort.layout.size
    assert cohort.cost.bytes_down == d * (trained + 5 * matched)
    assert cohort.cost.bytes_up == d * (trained + matched)


def test_weights_of_the_mixture_sum_to_one(tmp_path: Path) -> None:
    toy = Toy(tmp_path, 1)
    serve(toy, DatamodelMatching(CONFIG(passes=2, rounds=1)), REQUESTS["client"])
    options = toy.grid.work[-1].options
    assert sum(options[name] for name in options if name == "original" or name[0] == "f") == pytest.approx(1)


def test_it_comes_nearer_to_the_retrain(tmp_path: Path) -> None:
    # Softmax regression on the same inputs: models that answer alike are alike.
    toy = Toy(tmp_path, 1, LearningConfig(rounds=4), LocalConfig(lr=0.3))
    config = CONFIG(rounds=20, lr=0.2)
    models, _, final = serve(toy, DatamodelMatching(config, toy.learning), REQUESTS["client"])
    oracle, _, _ = serve(toy, Retrain(learning=toy.learning), REQUESTS["client"])
    assert 2 * verification_error(models[-1], oracle[-1]) < verification_error(final, oracle[-1])


def test_too_many_left_out_are_refused(tmp_path: Path) -> None:
    cohort = Toy(tmp_path).cohort()
    DatamodelMatching(CONFIG(left_out=5)).check(cohort)
    with pytest.raises(ValueError, match="left_out=6 must be below the 6 clients"):
        DatamodelMatching(CONFIG(left_out=6)).check(cast(Cohort, cohort))


def test_what_it_assumes() -> None:
    assert DatamodelMatching.scopes == {"client"}
    assert DatamodelMatching().card == Card(target_online=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"left_out": 1}, "strategy.datamodel_matching.left_out is 1, but must be at least 2"),
        ({"passes": 0}, "strategy.datamodel_matching.passes is 0, but must be at least 1"),
        ({"ridge": 0.0}, "strategy.datamodel_matching.ridge is 0.0, but must be above 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CONFIG(**fields)
