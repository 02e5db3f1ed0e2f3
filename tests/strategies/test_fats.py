"""FATS: the rounds it repeats by hand, and that what it makes is the retrain to the bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from fedforget.cohort import Cohort
from fedforget.exchange import Card
from fedforget.history import History
from fedforget.request import SCOPES, UnlearningRequest
from fedforget.strategy import LEARNERS, LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.fats import StableRollback, first_round
from strategies.retrain import Retrain

SPARSE = LearningConfig(rounds=6, fraction=0.17)  # one of six clients in a round


def first_rounds(toy: Toy) -> dict[int, int]:
    """When each client first took part: what the cohort draws, not what was recorded."""
    found: dict[int, int] = {}
    for t in range(1, toy.learning.rounds + 1):
        for client in toy.cohort().sample(t):
            found.setdefault(client, t)
    return found


def test_the_first_round_by_hand() -> None:
    cohorts = [(1, 4), (2, 4), (0, 2)]
    history = cast(History, SimpleNamespace(rounds=3, cohort=lambda t: cohorts[t - 1]))
    assert [first_round(history, [k]) for k in range(6)] == [3, 1, 2, None, 1, None]
    assert first_round(history, (0, 2)) == 2
    assert first_round(history, (3, 5)) is None
    short = cast(History, SimpleNamespace(rounds=2, cohort=lambda t: cohorts[t - 1]))  # the request came after round 2
    assert first_round(short, [0]) is None


@pytest.mark.parametrize("learning", [SPARSE, Toy.learning])
def test_it_is_the_retrain_to_the_bit_at_the_price_of_the_rounds_that_were_touched(
    tmp_path: Path, learning: LearningConfig
) -> None:
    toy = Toy(tmp_path, learning=learning)
    first, T = first_rounds(toy), learning.rounds
    for client in range(6):
        request = UnlearningRequest("client", (client,))
        models, cohort, final = serve(toy, StableRollback(None, learning), request)
        oracle, _, _ = serve(toy, Retrain(None, learning), request)
        assert models[-1].equals(oracle[-1]) and not oracle[-1].equals(toy.start)
        repeated = T - first[client] + 1 if client in first else 0
        assert cohort.cost.rounds == repeated and len(models) == max(1, repeated)
        assert models[-1].equals(final) == (client not in first)
    if learning is SPARSE:  # the test shows nothing unless some took part late, and some never
        assert set(range(6)) - set(first) and {t for t in first.values() if t > 1}


@pytest.mark.parametrize("scope", ["sample", "class"])
def test_examples_are_as_touched_as_the_clients_that_hold_them(tmp_path: Path, scope: str) -> None:
    toy, request = Toy(tmp_path, learning=SPARSE), REQUESTS[scope]
    models, cohort, _ = serve(toy, StableRollback(None, SPARSE), request)
    oracle, _, _ = serve(toy, Retrain(None, SPARSE), request)
    assert models[-1].equals(oracle[-1])
    holders = range(6) if scope == "class" else (2,)  # IID clients hold every class
    met = [t for client, t in first_rounds(toy).items() if client in holders]
    assert cohort.cost.rounds == (SPARSE.rounds - min(met) + 1 if met else 0)


def test_after_an_earlier_request_it_starts_anew(tmp_path: Path) -> None:
    # Whoever left first may have touched any recorded model, and, other than a client, leaves no trace in its cohorts.
    toy = Toy(tmp_path, learning=SPARSE)
    late = next(client for client, t in first_rounds(toy).items() if t > 1)
    request, before = UnlearningRequest("client", (late,)), UnlearningRequest("sample", (((late + 1) % 6, 0),))
    strategy = StableRollback(None, SPARSE)
    cohort = toy.cohort(request, strategy.card)
    cohort.removed = (before,)
    recording, final = toy.learn(strategy)
    history = History(recording, SPARSE.rounds, final, strategy.card, frozenset(), cohort.targets)
    models = list(strategy.unlearn(request, history, cohort))
    again = toy.cohort(request)
    again.removed = (before,)
    expected = list(Retrain(None, SPARSE).learn(again, toy.start, SPARSE.rounds))
    assert len(models) == SPARSE.rounds and models[-1].equals(expected[-1])


@pytest.mark.parametrize("learner", LEARNERS)
def test_learners_that_remember_earlier_rounds_are_refused(learner: str) -> None:
    strategy = StableRollback(None, LearningConfig(learner=learner))
    if learner in ("fedavgm", "fedadam", "fedyogi", "fedadagrad"):
        with pytest.raises(ValueError, match=f"learning.learner={learner}, which remembers earlier rounds; use fedavg"):
            strategy.check(cast(Cohort, None))
    else:
        strategy.check(cast(Cohort, None))


def test_what_it_assumes() -> None:
    assert StableRollback.scopes == set(SCOPES)
    assert StableRollback().card == Card(records="globals")
