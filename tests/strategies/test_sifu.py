"""IFU: bound and rollback by hand, on a made-up history and on the toy federation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fedforget.exchange import Card
from fedforget.history import History
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.testing import REQUESTS, Toy, serve
from strategies.retrain import Retrain
from strategies.sifu import InformedRollback, bound, influences, rollback, true_delta

LAYOUT = Layout(("w",), ((2,),))


def test_the_bound_by_hand() -> None:
    # delta = 1.25 / e^2: ln 1.25 - ln delta = 2, root of 4 is 2: 10 * 0.05 / 2.
    assert bound(10.0, 0.05, 1.25 / math.e**2) == pytest.approx(0.25)


@pytest.mark.parametrize(("epsilon", "ratio"), [(0.1, 0.05), (1.0, 0.5), (1.0, 3.0), (10.0, 3.2183)])
def test_the_true_delta_is_the_mass_by_which_one_density_exceeds_the_other(epsilon: float, ratio: float) -> None:
    # delta = integral of max(0, p - e^epsilon q), p and q unit Gaussians around ratio and 0; here by a fine sum.
    x = torch.linspace(-12, 16, 1_000_001, dtype=torch.float64)
    p, q = (torch.exp(-((x - mean) ** 2) / 2) / math.sqrt(2 * math.pi) for mean in (ratio, 0.0))
    excess = (p - math.exp(epsilon) * q).clamp(min=0).sum().item() * 28e-6
    assert true_delta(epsilon, ratio) == pytest.approx(excess, rel=1e-4, abs=1e-12)


def test_what_is_certified_is_said_where_the_published_bound_is_too_wide(tmp_path: Path) -> None:
    # Up to epsilon = 1 it is safe; at 10 and delta = 0.01 the shift is 10 / sqrt(2 ln 125) = 3.218 deviations.
    for delta in (1e-6, 0.01, 0.2, 0.9):
        assert all(true_delta(epsilon, bound(epsilon, 1.0, delta)) <= delta for epsilon in (0.01, 0.1, 0.5, 1.0))
    assert bound(10.0, 1.0, 0.01) == pytest.approx(3.2183, abs=1e-3)
    notes = {}
    for epsilon in (1.0, 10.0):
        strategy = InformedRollback(InformedRollback.Config(epsilon=epsilon, delta=0.01), Toy.learning)
        notes[epsilon] = serve(Toy(tmp_path), strategy, REQUESTS["client"])[1].notes
    assert notes == {1.0: [], 10.0: ["epsilon=10 is certified at delta=0.041, not at delta=0.01"]}


@pytest.mark.parametrize(
    ("limit", "rounds"), [(0.0, 1), (0.9, 1), (1.0, 2), (2.9, 2), (3.0, 4), (6.9, 4), (7.0, 5), (99.0, 5)]
)
def test_the_last_model_within_the_bound(limit: float, rounds: int) -> None:
    # Psi(0), ..., Psi(5) = 0, 0, 1, 3, 3, 7
    assert rollback([0.0, 1.0, 2.0, 0.0, 4.0], limit) == rounds


class Rounds:
    """Weights and updates of three rounds; client 0 leaves."""

    rounds = 3
    taken: tuple[Mapping[int, int], ...] = ({0: 1, 1: 3}, {1: 2, 2: 2}, {0: 5})
    updates: Mapping[tuple[int, int], tuple[float, float]] = {
        (1, 0): (4.0, 0.0),
        (1, 1): (0.0, 4.0),
        (2, 1): (7.0, 7.0),
        (2, 2): (9.0, 9.0),
        (3, 0): (3.0, 4.0),
    }

    def weights(self, t: int) -> Mapping[int, int]:
        return self.taken[t - 1]

    def update(self, t: int, k: int) -> Params:
        return Params(torch.tensor(self.updates[t, k]), LAYOUT)


def test_influences_by_hand() -> None:
    # Round 1: with client 0 (4, 0) / 4 + 3 (0, 4) / 4 = (1, 3), without (0, 4): apart by (1, -1). Round 2 is without it
    # anyway. Round 3 is client 0 alone, so nothing stays of (3, 4).
    found = influences(cast(History, Rounds()), UnlearningRequest("client", (0,)))
    assert found == pytest.approx([math.sqrt(2), 0, 5])


def test_a_tight_bound_is_a_retrain_from_a_noisy_start(tmp_path: Path) -> None:
    """With nearly no noise it is the retrain itself; Psi* is then so small that nothing is kept."""
    toy = Toy(tmp_path)
    models, cohort, _ = serve(
        toy, InformedRollback(InformedRollback.Config(sigma=1e-9), toy.learning), REQUESTS["client"]
    )
    oracle, retrain, _ = serve(toy, Retrain(None, toy.learning), REQUESTS["client"])
    assert len(models) == 1 + toy.learning.rounds and cohort.cost.rounds == retrain.cost.rounds
    torch.testing.assert_close(models[-1].flat, oracle[-1].flat, rtol=0, atol=1e-6)


def test_a_loose_bound_only_adds_noise(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    strategy = InformedRollback(InformedRollback.Config(epsilon=1e9, sigma=0.05), toy.learning)
    models, cohort, final = serve(toy, strategy, REQUESTS["client"])
    assert len(models) == 1 and cohort.cost.rounds == 0
    noise = (models[0] - final).flat
    assert noise.std().item() == pytest.approx(0.05, rel=0.1) and abs(noise.mean().item()) < 0.01


def test_it_goes_on_with_the_round_after_the_one_it_kept(tmp_path: Path) -> None:
    # The bound lies halfway into the influence of the last round that the target took part in, so that one is undone.
    toy, request = Toy(tmp_path), REQUESTS["client"]
    card = InformedRollback().card
    cohort = toy.cohort(request, card)
    recording, final = toy.learn(InformedRollback(None, toy.learning), cohort.targets)
    history = History(recording, toy.learning.rounds, final, card, frozenset(), cohort.targets)
    found = influences(history, request)
    n = max(round for round, value in enumerate(found) if value > 0)
    assert 0 < n < toy.learning.rounds
    epsilon = (sum(found[:n]) + found[n] / 2) * math.sqrt(2 * math.log(1.25 * 6)) / 1e-9
    strategy = InformedRollback(InformedRollback.Config(epsilon=epsilon, sigma=1e-9), toy.learning)
    start, *later = strategy.unlearn(request, history, cohort)
    torch.testing.assert_close(start.flat, history.model(n).flat, rtol=0, atol=1e-7)
    expected = list(strategy.learn(toy.cohort(request), start, toy.learning.rounds - n, first_round=n + 1))
    assert len(later) == len(expected) and all(a.equals(b) for a, b in zip(later, expected, strict=True))


def test_after_an_earlier_request_it_starts_anew(tmp_path: Path) -> None:
    # That one names samples: no client left, and yet every recorded model knows what is gone.
    toy = Toy(tmp_path)
    strategy = InformedRollback(InformedRollback.Config(epsilon=1e9, sigma=1e-9), toy.learning)
    request = REQUESTS["client"]
    cohort = toy.cohort(request, strategy.card)
    cohort.removed = (UnlearningRequest("sample", ((4, 0),)),)
    recording, final = toy.learn(strategy, cohort.targets)
    history = History(recording, toy.learning.rounds, final, strategy.card, frozenset(), cohort.targets)
    first, *later = strategy.unlearn(request, history, cohort)
    torch.testing.assert_close(first.flat, history.initial.flat, rtol=0, atol=1e-6)
    assert len(later) == toy.learning.rounds


def test_what_it_assumes() -> None:
    assert InformedRollback().card == Card(records="all") and InformedRollback.scopes == {"client"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epsilon": 0.0}, "strategy.sifu.epsilon is 0.0, but must be above 0"),
        ({"sigma": -1.0}, "strategy.sifu.sigma is -1.0, but must be above 0"),
        ({"delta": 1.0}, r"strategy.sifu.delta is 1.0, but must be in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InformedRollback.Config(**fields)
