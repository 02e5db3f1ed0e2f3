"""Partially-blinded unlearning: a step by hand, a well that holds, rounds and contacts on the toy federation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedforget.cohort import Cohort
from fedforget.params import Params
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.testing import REQUESTS, Toy, serve
from strategies.pbu import PartiallyBlinded, blind


def test_a_step_by_hand() -> None:
    # At w = 0, x = 1, label 0: the gradient of CE is p - y = (-1/2, 1/2), for weights and biases; times -a = -2 it is
    # (1, -1 | 1, -1). The well's is 2 hold (w - w_o) = 2 (1 * -1/2, 0 | 0, 2 * 1) = (-1, 0 | 0, 4).
    # lr = 1: w = -(0, -1 | 1, 3)
    module = nn.Linear(1, 2)
    layout = Params.from_module(module).layout
    Params(torch.zeros(4), layout).copy_to(module)
    vectors = {
        "w_o": Params(torch.tensor([0.5, 0, 0, -1]), layout),
        "hold": Params(torch.tensor([1.0, 5, 5, 2]), layout),
    }
    inputs, labels = torch.ones(1, 1), torch.tensor([0])
    local, options = LocalConfig(lr=1.0), {"ascent": 2.0}
    blind(Client(0, 1, module, inputs, labels, torch.tensor([0]), 1, local, Seeds(0), options, vectors))
    assert Params.from_module(module).flat.tolist() == [0, 1, -1, -3]


def unlearn(folder: Path, scope: str, **fields: Any) -> tuple[list[Params], Any, Params, Toy]:
    toy = Toy(folder)
    models, cohort, final = serve(
        toy, PartiallyBlinded(PartiallyBlinded.Config(**fields), toy.learning), REQUESTS[scope]
    )
    return models, cohort, final, toy


@pytest.mark.parametrize("scope", sorted(REQUESTS))
def test_only_forgotten_data_is_touched(tmp_path: Path, scope: str) -> None:
    models, cohort, final, toy = unlearn(tmp_path, scope, rounds=2)
    assert cohort.cost.rounds == 3 and len(models) == 3 and models[0].equals(final)  # one for F, and R
    assert cohort.contacted == set(cohort.targets) and {work.split for work in toy.grid.work} == {"forget"}
    # Down: w for F, then w, w_o and the stiffness of the well in each of the R rounds.
    assert cohort.cost.bytes_down == len(cohort.targets) * (1 + 2 * 3) * 4 * final.layout.size


def test_without_ascent_the_original_is_the_minimum(tmp_path: Path) -> None:
    models, _, final, _ = unlearn(tmp_path, "class", ascent=0.0, rounds=2)
    assert all(model.equals(final) for model in models)


def test_the_weight_decay_of_learning_is_not_in_the_objective(tmp_path: Path) -> None:
    toy = Toy(tmp_path, local=LocalConfig(weight_decay=0.1))
    strategy = PartiallyBlinded(PartiallyBlinded.Config(ascent=0.0), toy.learning)
    models, _, final = serve(toy, strategy, REQUESTS["client"])
    assert models[-1].equals(final)


def test_a_stiffer_well_keeps_the_model_nearer(tmp_path: Path) -> None:
    for term in ("distance", "stability"):
        free: dict[str, Any] = {"distance": 0.0, "stability": 0.0, "epochs": 20}
        runs = [unlearn(tmp_path, "client", **{**free, term: value}) for value in (0.0, 1e5, 1e7)]
        moved = [(models[-1] - final).norm() for models, _, final, _ in runs]
        assert moved[0] > moved[1] > moved[2] > 0


def test_the_stiffness_is_b_times_fisher_plus_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy, request = Toy(tmp_path), REQUESTS["sample"]
    reduce = Cohort.reduce
    sent: list[dict[str, Params]] = []

    def spy(self: Cohort, *args: Any, **options: Any) -> Any:
        sent.append(dict(options.get("vectors") or {}))
        return reduce(self, *args, **options)

    monkeypatch.setattr(Cohort, "reduce", spy)
    strategy = PartiallyBlinded(PartiallyBlinded.Config(stability=3.0, distance=5.0), toy.learning)
    _, _, final = serve(toy, strategy, request)
    [vectors] = [vectors for vectors in sent if "hold" in vectors]
    assert vectors["w_o"].equals(final)
    F = toy.cohort(request).fisher(final, split="forget")
    torch.testing.assert_close(vectors["hold"].flat, 3 * F.flat + 5)


def test_the_forgotten_class_is_no_longer_told(tmp_path: Path) -> None:
    models, cohort, final, _ = unlearn(tmp_path, "class", epochs=10, lr=0.01)

    def hits(model: Params, split: str) -> float:
        logits, labels, *_ = cohort.evaluate(model, {split: 500})[split]
        return float((logits.argmax(1) == labels).mean())

    assert hits(final, "forget") > 0.5 and hits(models[-1], "forget") < 0.1
    assert hits(models[-1], "retain") > hits(final, "retain") - 0.15


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ascent": -1.0}, "strategy.pbu.ascent is -1.0, but must be at least 0"),
        ({"stability": -1.0}, "strategy.pbu.stability is -1.0, but must be at least 0"),
        ({"distance": -1.0}, "strategy.pbu.distance is -1.0, but must be at least 0"),
        ({"rounds": 0}, "strategy.pbu.rounds is 0, but must be at least 1"),
        ({"epochs": 0}, "strategy.pbu.epochs is 0, but must be at least 1"),
        ({"batch_size": 0}, "strategy.pbu.batch_size is 0, but must be at least 1"),
        ({"lr": 0.0}, "strategy.pbu.lr is 0.0, but must be above 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartiallyBlinded.Config(**fields)
