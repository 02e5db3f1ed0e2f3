"""Sharpness-aware parameter selection: selection by hand, the plain step at q = 1, curvature that the probes find."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from fedforget.params import Layout, Params
from fedforget.routines import gradient
from fedforget.seeds import Seeds
from fedforget.testing import REQUESTS, Toy, serve
from strategies.saps import SharpnessAware, sharpest, sign_vector

LAYOUT = Layout(("a", "b"), ((2,), (2,)))


def select(G: Params, H: Params, q: float) -> Params:
    """G on the sharpest coordinates, as clients send it."""
    return Params(G.flat * sharpest(H, q).flat, G.layout)


def point(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), LAYOUT)


@pytest.mark.parametrize(
    ("q", "expected"),
    [(0.5, [0, 2, 0, 4]), (0.25, [0, 0, 0, 4]), (0.01, [0, 0, 0, 4]), (0.75, [1, 2, 0, 4]), (1.0, [1, 2, 3, 4])],
)
def test_the_largest_curvatures_are_selected(q: float, expected: list[float]) -> None:
    # Curvature counts with its sign: -9 is the flattest direction here, not the second sharpest. At least one moves.
    assert select(point(1, 2, 3, 4), point(0.5, 2, -9, 10), q).flat.tolist() == expected


def test_the_largest_curvatures_are_the_best_choice_for_a_diagonal_quadratic() -> None:
    # L = sum_i h_i (w_i - 1)^2 / 2 from w = 0: G_i = h_i (to be taken back), and a step of tau on S lowers L by
    # sum_S tau h_i^2 (1 - tau h_i / 2), which rises with h_i while tau h_i < 4/3: no other two coordinates do better.
    layout, tau = Layout(("a",), ((6,),)), 0.3
    h = torch.tensor([0.5, 4.0, 1.0, 0.1, 3.0, 2.0])

    def lowered(step: torch.Tensor) -> float:
        return float((h / 2 - h * (tau * step - 1) ** 2 / 2).sum())

    chosen = select(Params(h, layout), Params(h, layout), 2 / 6).flat
    others = [torch.zeros(6).index_copy(0, torch.tensor(S), h[list(S)]) for S in itertools.combinations(range(6), 2)]
    assert chosen.nonzero().flatten().tolist() == [1, 4]
    assert lowered(chosen) == max(map(lowered, others)) > sorted(map(lowered, others))[-2]


def test_signs_are_drawn_anew_for_each_probe() -> None:
    layout = Layout(("a",), ((10000,),))
    v, other = (sign_vector(layout, Seeds(0).torch(j)).flat for j in (0, 1))
    assert v.unique().tolist() == [-1, 1] and abs(v.mean()) < 0.05 and abs((v * other).mean()) < 0.05
    # So v * (D v) is D itself for a diagonal D, after a single probe.
    assert torch.equal(v * (torch.arange(10000) * v), torch.arange(10000))


def unlearn(folder: Path, scope: str, **fields: Any) -> tuple[list[Params], Any, Params, Toy]:
    toy = Toy(folder)
    strategy = SharpnessAware(SharpnessAware.Config(**fields), toy.learning)
    models, cohort, final = serve(toy, strategy, REQUESTS[scope])
    return models, cohort, final, toy


@pytest.mark.parametrize("scope", sorted(REQUESTS))
def test_all_parameters_make_the_plain_first_order_step(tmp_path: Path, scope: str) -> None:
    models, cohort, final, toy = unlearn(tmp_path, scope, share=1.0, rate=0.01)
    assert cohort.cost.rounds == 2 and models[0].equals(final)
    # tau times the summed gradient, that is, the number of forgotten examples times the mean.
    replies = cohort.train(final, cohort.targets, routine=gradient, split="forget")
    total = sum(reply.num_examples * reply.update.flat.double() for reply in replies)
    torch.testing.assert_close(models[-1].flat.double() - final.flat, 0.01 * total, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("curvature", "rounds"), [("fisher", 2), ("hutchinson", 4)])
def test_a_tenth_of_the_parameters_moves(tmp_path: Path, curvature: str, rounds: int) -> None:
    models, cohort, final, toy = unlearn(tmp_path, "client", curvature=curvature, probes=3)
    assert cohort.cost.rounds == len(models) == rounds  # one, or P for the curvature, and one for G
    assert (models[-1].flat != final.flat).sum() == 65
    assert all(model.equals(final) for model in models[:-1])
    split = {work.split: work.clients for work in toy.grid.work}
    assert set(split["forget"]) == {2} and 2 not in split["retain"]


def test_both_curvatures_point_at_much_the_same_parameters(tmp_path: Path) -> None:
    moved = []
    for fields in ({"curvature": "fisher"}, {"curvature": "hutchinson", "probes": 40}):
        models, _, final, _ = unlearn(tmp_path, "client", **fields)
        moved.append(models[-1].flat != final.flat)
    assert (moved[0] & moved[1]).sum() > 65 / 3  # by chance 65/10


def test_the_forgotten_data_is_fitted_worse(tmp_path: Path) -> None:
    models, cohort, final, _ = unlearn(tmp_path, "class")

    def hits(model: Params) -> float:
        logits, labels, *_ = cohort.evaluate(model, {"forget": 500})["forget"]
        return float((logits.argmax(1) == labels).mean())

    assert hits(models[-1]) < hits(final)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 0.0}, r"strategy.saps.share is 0.0, but must be in \(0, 1\]"),
        ({"rate": 0.0}, "strategy.saps.rate is 0.0, but must be above 0"),
        ({"curvature": "exact"}, "strategy.saps.curvature is 'exact', but must be one of hutchinson, fisher"),
        ({"probes": 0}, "strategy.saps.probes is 0, but must be at least 1"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharpnessAware.Config(**fields)
