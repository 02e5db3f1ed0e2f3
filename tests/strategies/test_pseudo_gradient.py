"""PUF: rounds by hand, and who is asked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fedforget.cohort import Cohort
from fedforget.exchange import Card, Replies, Reply
from fedforget.history import History
from fedforget.params import Layout, Params, weighted_mean
from fedforget.request import UnlearningRequest
from fedforget.testing import REQUESTS, Toy, serve
from strategies.pseudo_gradient import PseudoGradient

LAYOUT = Layout(("a",), ((2,),))
UPDATES = {0: (8.0, 0.0), 1: (4.0, 4.0), 2: (0.0, 8.0), 3: (2.0, 6.0)}
EXAMPLES = {0: 10, 1: 10, 2: 30, 3: 30}


def point(*values: float) -> Params:
    return Params(torch.tensor(values), LAYOUT)


class FakeCohort:
    """Clients 1 and 2 are sampled in round 5, only client 1 in round 6; everyone's update is always the same."""

    def __init__(self, targets: tuple[int, ...]) -> None:
        self.targets = targets
        self.asked: list[tuple[list[float], list[int], str, int]] = []

    def sample(self, round: int) -> tuple[int, ...]:
        return {5: (1, 2), 6: (1,)}[round]

    def train(self, model: Params, clients: Iterable[int], *, split: str, round: int) -> Replies:
        self.asked.append((model.flat.tolist(), sorted(clients), split, round))
        return Replies(Reply(k, point(*UPDATES[k]), EXAMPLES[k], 0.0) for k in sorted(clients))


def unlearn(targets: tuple[int, ...], **fields: Any) -> tuple[FakeCohort, list[list[float]]]:
    cohort, history = FakeCohort(targets), cast(History, SimpleNamespace(final=point(100, 100), rounds=4))
    strategy = PseudoGradient(PseudoGradient.Config(rounds=0, **fields))
    models = strategy.unlearn(UnlearningRequest("client", targets), history, cast(Cohort, cohort))
    return cohort, [w.flat.tolist() for w in models]


def test_regular_rounds_by_hand() -> None:
    # D+ = (10 (4, 4) + 30 (0, 8))/40 = (1, 7), D- = (8, 0): w = (100, 100) + (1, 7) - 2 (8, 0) = (85, 107).
    # Then client 1 alone: w = (85, 107) + (4, 4) - (16, 0) = (73, 111).
    cohort, models = unlearn((0,), rate=2.0, unlearning_rounds=2)
    assert models == [[85, 107], [73, 111]]
    assert cohort.asked == [([100, 100], [0, 1, 2], "train", 5), ([85, 107], [0, 1], "train", 6)]


def test_special_rounds_ask_nobody_else() -> None:
    cohort, models = unlearn((0,), retained_rate=0.0)
    assert models == [[92, 100]] and cohort.asked == [([100, 100], [0], "forget", 5)]


def test_concurrent_requests_are_weighed_by_examples() -> None:
    # D- = (10 (8, 0) + 30 (2, 6))/40 = (3.5, 4.5); half of D+ is (0.5, 3.5): w = (97, 99)
    _, models = unlearn((0, 3), retained_rate=0.5)
    assert models == [[97, 99]]


def test_it_is_one_round_with_ordinary_updates(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    strategy = PseudoGradient(PseudoGradient.Config(rounds=2), toy.learning)
    models, cohort, final = serve(toy, strategy, REQUESTS["client"])
    assert cohort.cost.rounds == 3 and len(models) == 3
    # The leaving client's update is the one that it would make in an ordinary round 5, and so are the others'.
    ordinary = toy.cohort()
    replies = ordinary.train(final, (2, *cohort.sample(5)), round=5).by_client()
    n = toy.federation.num_train
    stay = weighted_mean([replies[k] for k in cohort.sample(5)], [n[k] for k in cohort.sample(5)])
    torch.testing.assert_close(models[0].flat, (final + stay - replies[2]).flat)
    # Recovery goes on with rounds 6 and 7.
    recovered = list(strategy.learn(toy.cohort(REQUESTS["client"]), models[0], 2, first_round=6))
    assert all(a.equals(b) for a, b in zip(models[1:], recovered, strict=True))


def test_what_it_assumes() -> None:
    assert PseudoGradient.scopes == {"client"}
    assert PseudoGradient().card == Card(target_online=True)
    alone = PseudoGradient(PseudoGradient.Config(retained_rate=0.0, rounds=0))
    assert alone.card == Card(target_online=True, retained_online=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0.0}, "strategy.pseudo_gradient.rate is 0.0, but must be above 0"),
        ({"retained_rate": -1.0}, "strategy.pseudo_gradient.retained_rate is -1.0, but must be at least 0"),
        ({"unlearning_rounds": 0}, "strategy.pseudo_gradient.unlearning_rounds is 0, but must be at least 1"),
        ({"rounds": -1}, "strategy.pseudo_gradient.rounds is -1, but must be at least 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PseudoGradient.Config(**fields)
