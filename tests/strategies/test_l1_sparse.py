"""L1-sparse fine-tuning: one step by hand, the decay of gamma, and what the penalty does."""

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
from strategies.l1_sparse import L1Sparse, sparse

LEARNING = LearningConfig(rounds=3)


def run(folder: Path, **fields: Any) -> tuple[list[Params], Toy, Any]:
    place = Toy(folder, learning=LEARNING)
    made, cohort, _ = serve(place, L1Sparse(L1Sparse.Config(**fields), LEARNING), REQUESTS["client"])
    return made, place, cohort


def test_a_step_by_hand() -> None:
    # x = (1, 0, 0) of class 0; weights rows (1, -2, 0) and (1, 0, 3): logits (1, 1), p - 1_y = (-0.5, 0.5).
    # Gradient of CE: (-0.5, 0, 0 | 0.5, 0, 0); of gamma ||w||_1: 0.1 (1, -1, 0 | 1, 0, 1), where 0 stays 0.
    # Sum (-0.4, -0.1, 0 | 0.6, 0, 0.1); w - 1.0 of it = (1.4, -1.9, 0 | 0.4, 0, 2.9).
    model = nn.Linear(3, 2, bias=False)
    Params(torch.tensor([1.0, -2, 0, 1, 0, 3]), Layout.of(model)).copy_to(model)
    local, inputs, labels = LocalConfig(lr=1.0), torch.tensor([[1.0, 0, 0]]), torch.tensor([0])
    sparse(Client(0, 1, model, inputs, labels, torch.tensor([0]), 1, local, Seeds(0), {"gamma": 0.1}))
    assert Params.from_module(model).flat.tolist() == pytest.approx([1.4, -1.9, 0, 0.4, 0, 2.9])


@pytest.mark.parametrize(("decay", "gammas"), [(True, [0.8, 0.6, 0.4, 0.2]), (False, [0.8, 0.8, 0.8, 0.8])])
def test_gamma_falls_linearly(tmp_path: Path, decay: bool, gammas: list[float]) -> None:
    _, place, _ = run(tmp_path, rounds=4, gamma=0.8, decay=decay)
    sent = {work.round: work.options["gamma"] for work in place.grid.work}
    assert sent == {4 + t: pytest.approx(gamma) for t, gamma in enumerate(gammas)}


def test_without_a_penalty_it_is_fine_tuning(tmp_path: Path) -> None:
    made, _, _ = run(tmp_path, rounds=2, gamma=0.0)
    place = Toy(tmp_path, learning=LEARNING)
    tuned, _, _ = serve(place, FineTune(FineTune.Config(rounds=2), LEARNING), REQUESTS["client"])
    assert all(torch.allclose(a.flat, b.flat, atol=1e-6) for a, b in zip(made, tuned, strict=True))


def test_a_larger_gamma_leaves_less_weight(tmp_path: Path) -> None:
    norms = [
        float(run(tmp_path, rounds=2, gamma=gamma, decay=False)[0][-1].flat.abs().sum()) for gamma in (0, 1e-3, 1e-2)
    ]
    assert norms[0] > norms[1] > norms[2]


def test_what_it_costs(tmp_path: Path) -> None:
    # As fine-tuning: d floats a round from each of 5 retained clients; the target is not asked.
    made, _, cohort = run(tmp_path, rounds=3)
    assert len(made) == 3 and cohort.contacted == {0, 1, 3, 4, 5}
    assert (cohort.cost.rounds, cohort.cost.bytes_up) == (3, 4 * len(made[0].flat) * 3 * 5)


def test_what_it_assumes() -> None:
    assert L1Sparse.scopes == set(SCOPES)
    assert L1Sparse().card == Card()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "strategy.l1_sparse.rounds is 0, but must be at least 1"),
        ({"gamma": -1e-4}, "strategy.l1_sparse.gamma is -0.0001, but must be at least 0"),
        ({"gamma": float("nan")}, "strategy.l1_sparse.gamma is nan, but must be a finite number"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        L1Sparse.Config(**fields)
