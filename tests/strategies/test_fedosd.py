"""FedOSD: its loss and directions by hand, that they do not conflict, and what it costs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from fedforget.cohort import Cohort
from fedforget.exchange import Card, Replies, Reply
from fedforget.history import History
from fedforget.params import Layout, Params
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.fedosd import FedOSD, orthogonal, unlearning, without

LAYOUT = Layout(("w",), ((3,),))


def point(*values: float) -> Params:
    return Params(torch.tensor(values), LAYOUT)


def test_a_direction_by_hand() -> None:
    # Without its part along (0, 1, 0), (3, 4, 0) is (3, 0, 0), and at its old norm (5, 0, 0).
    assert orthogonal(point(3, 4, 0), [point(0, 2, 0)]).flat.tolist() == pytest.approx([5, 0, 0])
    # The same gradient twice is one direction: the pseudo-inverse of a singular matrix.
    assert orthogonal(point(3, 4, 0), [point(0, 2, 0), point(0, 2, 0)]).flat.tolist() == pytest.approx([5, 0, 0])


def test_what_lies_in_the_retained_gradients_is_not_taken() -> None:
    assert orthogonal(point(3, 4, 0), [point(0.1, 0, 0), point(0, 0.3, 0)]).norm() == 0


def test_small_gradients_count_as_large_ones_do() -> None:
    # The squared norm 1e-12 is below an absolute cut of 1e-6.
    assert orthogonal(point(3, 4, 0), [point(0, 1e-6, 0)]).flat.tolist() == pytest.approx([5, 0, 0])


def test_directions_do_not_conflict() -> None:
    generator = torch.Generator().manual_seed(0)
    layout = Layout(("w",), ((50,),))
    g_u, *G = (Params(torch.randn(50, generator=generator), layout) for _ in range(6))
    d = orthogonal(g_u, G)
    assert all(abs(d.dot(g_k)) < 1e-5 for g_k in G)
    assert d.norm() == pytest.approx(g_u.norm(), rel=1e-6) and d.dot(g_u) > 0


def test_post_training_does_not_turn_back() -> None:
    # (3, 4, 0) without its part along a = (0, -7, 0) is (3, 0, 0), at its old norm (5, 0, 0).
    assert without(point(3, 4, 0), point(0, -7, 0)).flat.tolist() == pytest.approx([5, 0, 0])
    # Where nothing was unlearned nothing is removed, and what is all along a is not followed.
    assert without(point(3, 4, 0), point(0, 0, 0)).flat.tolist() == [3, 4, 0]
    assert without(point(3, 4, 0), point(6, 8, 0)).norm() == 0


class Told:
    """A cohort that answers with given gradients, of clients of unequal size."""

    targets, retained = (0, 1), (2, 3)

    def __init__(self, *answers: list[tuple[float, float, float]]) -> None:
        self.answers = iter(answers)

    def hold(self, *vectors: Params) -> None:
        assert [vector.flat.tolist() for vector in vectors] == [[10, 10, 10]]  # w_T

    def train(self, model: Params, clients: tuple[int, ...], **options: Any) -> Replies:
        gradients = next(self.answers)
        return Replies(Reply(k, point(*g), 10**k, 0.0) for k, g in zip(clients, gradients, strict=True))


def test_a_round_of_each_kind_by_hand() -> None:
    # g_u = ((6, 0, 0) + (0, 8, 0)) / 2 = (3, 4, 0), both targets alike; the retained gradients span (0, 1, 0), so d =
    # (5, 0, 0), and w = (10, 10, 10) - 0.2 d = (9, 10, 10).
    # a = (-1, 0, 0): of (3, 4, 0) stays (0, 4, 0), at its norm (0, 5, 0); (0, 0, 2) stays. Their mean, both alike,
    # is (0, 2.5, 1), and w = (9, 10, 10) - 0.1 (0, 2.5, 1).
    cohort = Told(
        [(6.0, 0.0, 0.0), (0.0, 8.0, 0.0)],
        [(0.0, 2.0, 0.0), (0.0, -1.0, 0.0)],
        [(3.0, 4.0, 0.0), (0.0, 0.0, 2.0)],
    )
    strategy = FedOSD(FedOSD.Config(rounds=1, lr=0.2, post_rounds=1, post_lr=0.1))
    history = SimpleNamespace(final=point(10.0, 10.0, 10.0), rounds=7)
    first, second = strategy.unlearn(REQUESTS["client"], cast(History, history), cast(Cohort, cohort))
    assert first.flat.tolist() == pytest.approx([9, 10, 10])
    assert second.flat.tolist() == pytest.approx([9, 9.75, 9.9])


def test_the_unlearning_gradient_by_hand() -> None:
    # x = 1, logits w = (0, 0), label 0: p = 1/2, and -log(1 - p/2) has the derivative (1/2) / (1 - p/2) = 2/3 in p;
    # dp/dw = p (1 - p) (1, -1) = (1/4, -1/4): gradient (1/6, -1/6). Descent lowers the label's probability.
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    client = Client(
        0, 1, model, torch.ones(4, 1), torch.zeros(4, dtype=torch.long), torch.arange(4), 4, LocalConfig(), Seeds(0)
    )
    assert unlearning(client).flat.tolist() == pytest.approx([1 / 6, -1 / 6])
    assert (client.steps, client.examples) == (1, 4)


def test_a_class_is_forgotten_and_stays_forgotten(tmp_path: Path) -> None:
    toy = Toy(tmp_path, 1, LearningConfig(rounds=4), LocalConfig(lr=1.0))
    models, cohort, final = serve(toy, FedOSD(FedOSD.Config(lr=0.5)), REQUESTS["class"])

    def accuracy(model: Params) -> dict[str, float]:
        outputs = cohort.evaluate(model, {"forget": 500, "retain": 500})
        return {name: (logits.argmax(1) == labels).mean() for name, (logits, labels, *_) in outputs.items()}

    before, unlearned, after = accuracy(final), accuracy(models[9]), accuracy(models[-1])
    assert before["forget"] > 0.9 and unlearned["forget"] < 0.2 and after["forget"] < 0.2
    assert before["retain"] - after["retain"] < 0.03


def test_what_it_costs(tmp_path: Path) -> None:
    # R = 2 rounds of two parts (one target, five retained), R_r = 3 of one: 2 (1 + 5) + 3 * 5 = 27 models down and
    # gradients up, in 2 + 3 = 5 rounds.
    models, cohort, _ = serve(Toy(tmp_path), FedOSD(FedOSD.Config(rounds=2, post_rounds=3)), REQUESTS["client"])
    assert len(models) == cohort.cost.rounds == 5
    assert cohort.cost.bytes_up == cohort.cost.bytes_down == 27 * 4 * cohort.layout.size


def test_what_it_assumes() -> None:
    assert FedOSD().card == Card(target_online=True)
    assert FedOSD.scopes == {"client", "sample", "class"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "strategy.fedosd.rounds is 0, but must be at least 1"),
        ({"post_rounds": -1}, "strategy.fedosd.post_rounds is -1, but must be at least 0"),
        ({"post_lr": 0.0}, "strategy.fedosd.post_lr is 0.0, but must be above 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedOSD.Config(**fields)
