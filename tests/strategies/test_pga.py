"""Projected ascent: reference model, ball, projection and clipping by hand; when the ascent stops."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from fedforget.cohort import Cohort
from fedforget.exchange import Card, Replies, Reply
from fedforget.history import History, HistoryConfig, Recording
from fedforget.ledger import Cost
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.testing import REQUESTS, Toy, serve
from strategies import pga
from strategies.pga import ProjectedAscent, ascend, clipped, project, radius_squared

LAYOUT = Layout(("a", "b"), ((2,), (1,)))


def point(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), LAYOUT)


# Per round: the examples and updates of its clients, and the model after it. Client 3 trained alone, client 4 never.
WEIGHTS = [{0: 10, 1: 30}, {0: 10, 1: 10, 2: 20}, {3: 10}]
UPDATES = [{0: (9.0, 9, 9), 1: (0.0, 0, 0)}, {0: (4.0, 0, 8), 1: (0.0, 4, 0), 2: (0.0, 2, 0)}, {3: (1.0, 1, 1)}]
GLOBALS = [(0.0, 0, 0), (1.0, 2, 3), (2.0, 4, 5), (7.0, 7, 7)]


class FakeCohort:
    """Adds one to every entry, and remembers what it was asked."""

    seeds = Seeds(0)

    def __init__(self, targets: tuple[int, ...]) -> None:
        self.targets = targets
        self.asked: list[tuple[list[float], list[int], list[float]]] = []

    def train(self, model: Params, clients: Iterable[int], *, vectors: dict[str, Params], **options: Any) -> Replies:
        assert options["split"] == "forget"
        self.asked.append((model.flat.tolist(), list(clients), vectors["w_c"].flat.tolist()))
        return Replies([Reply(0, point(1, 1, 1), 10, 0.0)])


def unlearn(folder: Path, targets: tuple[int, ...], rounds: int) -> tuple[FakeCohort, list[list[float]]]:
    strategy, cohort = ProjectedAscent(ProjectedAscent.Config(rounds=0)), FakeCohort(targets)
    recording = Recording(folder, LAYOUT, HistoryConfig("targets"), targets, Seeds(0))
    recording.begin(point(*GLOBALS[0]))
    for t, (weights, updates) in enumerate(zip(WEIGHTS, UPDATES, strict=True), start=1):
        replies = Replies(Reply(k, point(*updates[k]), weights[k], 0.0) for k in weights)
        recording.add(t, point(*GLOBALS[t]), replies, [], last=t == 3)
    recording.finish(3, Cost())
    final = point(*GLOBALS[rounds])
    history = History(recording, rounds, final, strategy.card, frozenset(), targets)
    models = strategy.unlearn(UnlearningRequest("client", targets), history, cast(Cohort, cohort))
    return cohort, [w.flat.tolist() for w in models]


def test_the_reference_is_the_average_of_the_others(tmp_path: Path) -> None:
    # Round 2 starts at (1, 2, 3). Client 0 went to w_c = (5, 2, 11) with p = 10/40, and w = (2, 4, 5):
    # w_ref = (w - p w_c)/(1 - p) = ((2, 4, 5) - (5, 2, 11)/4) * 4/3 = (3, 14, 9)/3 = (1, 14/3, 3).
    # That is the others' average: (1, 2, 3) + (10 (0, 4, 0) + 20 (0, 2, 0))/30 = (1, 14/3, 3).
    cohort, models = unlearn(tmp_path, (0,), rounds=2)
    assert [clients for _, clients, _ in cohort.asked] == [[0]]
    assert cohort.asked[0][0] == pytest.approx([1, 14 / 3, 3])
    assert cohort.asked[0][2] == [5, 2, 11]
    assert models == [pytest.approx([2, 17 / 3, 4])]


def test_a_target_that_was_not_in_the_last_round(tmp_path: Path) -> None:
    # Its part in round 2, p/(1 - p) (w_c - w^2) = ((5, 2, 11) - (2, 4, 5))/3 = (1, -2/3, 2), leaves (7, 7, 7).
    cohort, _ = unlearn(tmp_path, (0,), rounds=3)
    assert cohort.asked[0][0] == pytest.approx([6, 23 / 3, 5])


def test_targets_unlearn_one_after_another(tmp_path: Path) -> None:
    # Client 0 as above, to (7, 26/3, 6). Client 2: w_c = (1, 4, 3), p = 1/2: minus (1, 4, 3) - (2, 4, 5) = (-1, 0, -2).
    cohort, models = unlearn(tmp_path, (0, 2), rounds=3)
    assert [clients for _, clients, _ in cohort.asked] == [[0], [2]]
    assert models == [pytest.approx([7, 26 / 3, 6]), pytest.approx([9, 29 / 3, 9])]


@pytest.mark.parametrize("target", [3, 4])
def test_there_is_no_reference_without_others(tmp_path: Path, target: int) -> None:
    cohort, models = unlearn(tmp_path, (target,), rounds=3)
    assert cohort.asked == [] and models == [[7, 7, 7]]


def test_projection_by_hand() -> None:
    # (3, 4, 0) from (0, 0, 0) is 5 away: on the ball of squared radius 4 it is at 2/5 of the way.
    origin = point(0, 0, 0)
    assert project(point(3, 4, 0), origin, 4.0).flat.tolist() == pytest.approx([1.2, 1.6, 0])
    assert project(point(3, 4, 1), point(3, 0, 1), 4.0).flat.tolist() == pytest.approx([3, 2, 1])
    inside = point(1, 1, 1)
    assert project(inside, origin, 3.0) is inside


def test_the_radius_is_a_third_of_the_mean_squared_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    # Squared distances 9 and 16 + 5 = 21 from (1, 1, 1): 15 / 3 = 5
    inits = iter([point(1, 4, 1), point(5, 2, 3)])
    monkeypatch.setattr(pga, "fresh", lambda layout, generator: next(inits))
    assert radius_squared(point(1, 1, 1), 2, torch.Generator()) == pytest.approx(5)


def test_clipping_by_hand() -> None:
    # The gradient of 3 a + 4 b has norm 5.
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    loss = (3 * a + 4 * b + 10).sum()
    assert clipped(loss, [a, b], 1.0).item() == pytest.approx(2)
    assert clipped(loss, [a, b], 7.0).item() == 10


def worker(options: dict[str, Any], w_c: tuple[float, ...], epochs: int = 5) -> Client:
    module = nn.Linear(1, 2)
    layout = Params.from_module(module).layout
    Params(torch.zeros(4), layout).copy_to(module)
    settings = {"clip": 5.0, "stop": 1e9, "inits": 3, "seed": 0, **options}
    vectors = {"w_c": Params(torch.tensor(w_c), layout)}
    local = LocalConfig(lr=1.0, epochs=epochs)
    return Client(
        0, 1, module, torch.ones(1, 1), torch.tensor([0]), torch.tensor([0]), 1, local, Seeds(0), settings, vectors
    )


def test_an_ascent_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # At w = 0, x = 1, label 0: the gradient is (-1/2, 1/2 | -1/2, 1/2) of norm 1; up it goes with lr 1.
    monkeypatch.setattr(pga, "radius_squared", lambda w_ref, number, generator: 1e9)
    client = worker({}, (0.0, 0, 0, 0), epochs=1)
    ascend(client)
    assert Params.from_module(client.model).flat.tolist() == [-0.5, 0.5, -0.5, 0.5]
    # Clipped to norm 1/2, half of that; and within a ball of radius 1/4, a quarter.
    for options, delta, expected in (({"clip": 0.5}, 1e9, 0.25), ({}, 1 / 16, 0.125)):
        monkeypatch.setattr(pga, "radius_squared", lambda w_ref, number, generator, delta=delta: delta)
        client = worker(options, (0.0, 0, 0, 0), epochs=1)
        ascend(client)
        assert Params.from_module(client.model).flat.tolist() == pytest.approx([-expected, expected] * 2)


def test_the_ascent_stops_where_it_is_far_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pga, "radius_squared", lambda w_ref, number, generator: 1e9)
    # After one step the squared distance from the target's model is 4 (1/2)^2 = 1, or with w_c at -w of it 4.
    for stop, w_c, steps in ((0.9, (0.0, 0, 0, 0), 1), (1.1, (0.0, 0, 0, 0), 2), (3.0, (0.5, -0.5, 0.5, -0.5), 1)):
        client = worker({"stop": stop}, w_c)
        ascend(client)
        assert client.steps == steps
    client = worker({}, (0.0, 0, 0, 0), epochs=3)
    ascend(client)
    assert client.steps == 3


def test_it_stays_in_the_ball_and_recovers(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    config = ProjectedAscent.Config(lr=10.0, clip=1e6, stop=1e9, epochs=5, batch_size=16, rounds=1)
    models, cohort, final = serve(toy, ProjectedAscent(config, toy.learning), REQUESTS["client"])
    assert cohort.cost.rounds == 2 and len(models) == 2
    [work] = [work for work in toy.grid.work if work.split == "forget"]
    assert work.clients == (2,)
    # Random weights have variance 1/(3 * 64) each, so delta is near (||w_ref||^2 + 650/192) / 3.
    bound = ((final.norm() + 1) ** 2 + 650 / 192) / 3
    assert (models[0] - final).norm() < bound**0.5 + 1


def test_what_it_assumes() -> None:
    assert ProjectedAscent.scopes == {"client"}
    assert ProjectedAscent().card == Card(records="targets", target_online=True)
    alone = ProjectedAscent(ProjectedAscent.Config(rounds=0))
    assert alone.card == Card(records="targets", target_online=True, retained_online=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.0}, "strategy.pga.lr is 0.0, but must be above 0"),
        ({"clip": 0.0}, "strategy.pga.clip is 0.0, but must be above 0"),
        ({"stop": 0.0}, "strategy.pga.stop is 0.0, but must be above 0"),
        ({"momentum": 1.0}, r"strategy.pga.momentum is 1.0, but must be in \[0, 1\)"),
        ({"epochs": 0}, "strategy.pga.epochs is 0, but must be at least 1"),
        ({"batch_size": 0}, "strategy.pga.batch_size is 0, but must be at least 1"),
        ({"inits": 0}, "strategy.pga.inits is 0, but must be at least 1"),
        ({"rounds": -1}, "strategy.pga.rounds is -1, but must be at least 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectedAscent.Config(**fields)
