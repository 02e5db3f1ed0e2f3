"""Partial ascent by hand, its limit p = 1 against plain ascent, and what restrains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedforget.exchange import Card
from fedforget.params import Params
from fedforget.routines import Client, LocalConfig, gradient
from fedforget.seeds import Seeds
from fedforget.testing import REQUESTS, Toy, serve
from strategies.partial_ascent import PartialAscent, ascend_part

OPTIONS: dict[str, float | str] = {"density": 1.0, "mask": "top", "mu": 0.5}


def client(inputs: list[list[float]], forgotten: list[bool], **options: Any) -> Client:
    """Softmax regression W [2, 2] at zero, examples of class 0, one batch of rate 1."""
    module = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(module.weight)
    n, flags, local = len(inputs), torch.tensor(forgotten), LocalConfig(lr=1)
    x, y = torch.tensor(inputs), torch.zeros(n).long()
    return Client(0, 1, module, x, y, torch.arange(n), n, local, Seeds(0), {**OPTIONS, **options}, forgotten=flags)


# Both outputs have probability 1/2, so grad CE of an example x of class 0 is (-1/2, 1/2) x^T; ascent adds it to W.
@pytest.mark.parametrize(
    ("inputs", "forgotten", "options", "expected"),
    [
        # x = (2, 1): W = (-1/2, 1/2) x^T
        ([[2.0, 1.0]], [True], {}, [[-1.0, -0.5], [1.0, 0.5]]),
        # Half of the layer: the two gradients of magnitude 1, or the first half.
        ([[2.0, 1.0]], [True], {"density": 0.5}, [[-1.0, 0.0], [1.0, 0.0]]),
        ([[2.0, 1.0]], [True], {"density": 0.5, "mask": "rotating"}, [[-1.0, -0.5], [0.0, 0.0]]),
        # mu = 1/2 of the descent on (2, 1)
        ([[2.0, 1.0]], [False], {}, [[0.5, 0.25], [-0.5, -0.25]]),
        # Means of each kind: ascent on (2, 1); half of the descent on the mean (1, 3) of (0, 6) and (2, 0):
        # (-1/2, 1/2) (2 - 1/2, 1 - 3/2)^T = (-1/2, 1/2) (3/2, -1/2)^T
        ([[2.0, 1.0], [0.0, 6.0], [2.0, 0.0]], [True, False, False], {}, [[-0.75, 0.25], [0.75, -0.25]]),
        # The mask follows the forgotten example alone: the first column.
        (
            [[2.0, 1.0], [0.0, 6.0], [2.0, 0.0]],
            [True, False, False],
            {"density": 0.5},
            [[-0.75, 0.0], [0.75, 0.0]],
        ),
    ],
)
def test_one_step_by_hand(
    inputs: list[list[float]], forgotten: list[bool], options: dict[str, Any], expected: list[list[float]]
) -> None:
    worker = client(inputs, forgotten, **options)
    ascend_part(worker)
    torch.testing.assert_close(worker.model.weight.data, torch.tensor(expected))


def test_the_distance_from_the_origin_pulls_back() -> None:
    # grad of 1/2 ||W - w_o||^2 at W = 0 is -w_o, so the step adds w_o to the ascent [[-1, -1/2], [1, 1/2]].
    worker = client([[2.0, 1.0]], [True])
    origin = Params.from_module(worker.model) + Params.from_tensors(
        worker.model, {"weight": torch.tensor([[4.0, 0.0], [0.0, 8.0]])}
    )
    worker.vectors = {"w_o": origin}
    ascend_part(worker)
    torch.testing.assert_close(worker.model.weight.data, torch.tensor([[3.0, -0.5], [1.0, 8.5]]))


def plain(sent: Params, toy: Toy, round: int, eta: float) -> Params:
    """Plain full-batch ascent of client 2 on all its data."""
    cohort = toy.cohort(REQUESTS["client"])
    g = cohort.train(sent, [2], routine=gradient, split="forget", round=round).mean()
    return sent + eta * g


def test_full_density_is_plain_ascent(tmp_path: Path) -> None:
    """One step a round on the whole of D_f, mu = 0: both masks agree to the bit, and with ascent to rounding."""
    toy = Toy(tmp_path, local=LocalConfig(lr=0.3, batch_size=1000))
    made = {}
    for mask in ("top", "rotating"):
        config = PartialAscent.Config(1.0, mask, "origin", mu=0.0, lr=0.02, rounds=2)
        made[mask], _, final = serve(toy, PartialAscent(config), REQUESTS["client"])
    assert all(a.equals(b) for a, b in zip(made["top"], made["rotating"], strict=True))
    w = final
    for round, reached in zip((5, 6), made["top"], strict=True):
        w = plain(w, toy, round, 0.02)
        torch.testing.assert_close(reached.flat, w.flat, rtol=0, atol=1e-6)


def test_the_distance_restrains(tmp_path: Path) -> None:
    toy, moved = Toy(tmp_path), []
    for mu in (0.0, 1.0, 10.0):
        config = PartialAscent.Config(1.0, restraint="origin", mu=mu, rounds=3)
        models, _, final = serve(toy, PartialAscent(config), REQUESTS["class"])
        moved.append((models[-1] - final).norm())
    assert moved[0] > moved[1] > moved[2] > 0


@pytest.mark.parametrize(
    ("restraint", "split", "asked"), [("origin", "forget", {2}), ("data", "train", {0, 1, 2, 3, 4, 5})]
)
def test_who_takes_part_and_what_it_costs(tmp_path: Path, restraint: str, split: str, asked: set[int]) -> None:
    toy = Toy(tmp_path)
    config = PartialAscent.Config(restraint=restraint, rounds=2)
    models, cohort, _ = serve(toy, PartialAscent(config), REQUESTS["client"])
    assert len(models) == 2 == cohort.cost.rounds
    assert {work.split for work in toy.grid.work} == {split}
    assert 2 in cohort.contacted <= asked and cohort.contacted.issuperset(asked if restraint == "origin" else {2})
    # The origin is sent along with the model: 2 d down. Up go the 65 entries of the mask and a bitmap of 650 bits.
    vectors, clients = 1 + (restraint == "origin"), sum(len(work.clients) for work in toy.grid.work)
    assert cohort.cost.bytes_down == vectors * clients * 650 * 4 and cohort.cost.bytes_up == clients * (65 * 4 + 82)


def test_what_it_assumes() -> None:
    assert PartialAscent.scopes == {"client", "sample", "class"}
    assert PartialAscent().card == Card(target_online=True)
    away = PartialAscent.Config(restraint="origin")
    assert PartialAscent(away).card == Card(target_online=True, retained_online=False)
    assert PartialAscent(PartialAscent.Config(restraint="origin", repair_rounds=1)).card == Card(target_online=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": 0.0}, r"strategy.partial_ascent.density is 0.0, but must be in \(0, 1\]"),
        ({"mask": "bottom"}, "strategy.partial_ascent.mask is 'bottom', but must be one of top, rotating"),
        ({"restraint": "none"}, "strategy.partial_ascent.restraint is 'none', but must be one of data, origin"),
        ({"mu": -1.0}, "strategy.partial_ascent.mu is -1.0, but must be at least 0"),
        ({"lr": 0.0}, "strategy.partial_ascent.lr is 0.0, but must be above 0"),
        ({"rounds": 0}, "strategy.partial_ascent.rounds is 0, but must be at least 1"),
        ({"repair_rounds": -1}, "strategy.partial_ascent.repair_rounds is -1, but must be at least 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartialAscent.Config(**fields)
