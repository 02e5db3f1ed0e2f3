"""FedRecover: curvature and threshold by hand, that it estimates instead of retraining, and that it comes near."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fedforget.cohort import Cohort
from fedforget.exchange import Card, Replies, Reply
from fedforget.history import History, HistoryConfig, Recording
from fedforget.ledger import Cost
from fedforget.metrics.unrolling import verification_error
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.routines import LocalConfig
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.fedrecover import FedRecover, curvature, threshold
from strategies.retrain import Retrain

CONFIG = FedRecover.Config
TARGET = UnlearningRequest("client", (0,))


def vector(values: Sequence[float]) -> Params:
    return Params(torch.tensor(values), Layout(("w",), ((len(values),),)))


def test_curvature_of_one_pair_by_hand() -> None:
    # s = (2, 0), y = (6, 2): sigma = 12/4 = 3. BFGS: B = sigma I - sigma s s'/(s's) + y y'/(s'y)
    # = [[0, 0], [0, 3]] + [[36, 12], [12, 4]] / 12 = [[3, 1], [1, 10/3]]
    pairs = [(vector([2.0, 0.0]), vector([6.0, 2.0]))]
    assert curvature(pairs, vector([1.0, 0.0])).flat.tolist() == pytest.approx([3, 1])
    assert curvature(pairs, vector([0.0, 3.0])).flat.tolist() == pytest.approx([3, 10])


@pytest.mark.parametrize("sign", [1, -1])  # updates have the sign of minus the Hessian
def test_curvature_equals_explicit_bfgs_and_maps_the_last_step_to_its_change(sign: int) -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    H = sign * (A @ A.T + torch.eye(6))
    steps = [torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(3)]
    pairs = [(Params(s, vector([0.0] * 6).layout), Params(H @ s, vector([0.0] * 6).layout)) for s in steps]
    s, y = steps[-1], H @ steps[-1]
    B = (s @ y) / (s @ s) * torch.eye(6, dtype=torch.float64)
    for step in steps:
        change, image = H @ step, B @ step
        B = B - torch.outer(image, image) / (step @ image) + torch.outer(change, change) / (step @ change)
    v = Params(torch.randn(6, generator=generator, dtype=torch.float64), pairs[0][0].layout)
    assert torch.allclose(curvature(pairs, v).flat, B @ v.flat)
    assert torch.allclose(curvature(pairs, pairs[-1][0]).flat, y)


def history(folder: Path, updates: list[dict[int, float]], models: list[float], card: Card, idle: int = 0) -> History:
    """One parameter, and some more that are always 0; clients of equal size."""

    def wide(value: float) -> Params:
        return vector([value, *[0.0] * idle])

    recording = Recording(folder, wide(0.0).layout, HistoryConfig("all"), (), Seeds(0))
    recording.begin(wide(models[0]))
    for round, by_client in enumerate(updates, start=1):
        replies = Replies(Reply(k, wide(D), 1, 0.0) for k, D in by_client.items())
        recording.add(round, wide(models[round]), replies, [], last=round == len(updates))
    recording.finish(len(updates), Cost())
    return History(recording, len(updates), wide(models[-1]), card, frozenset(), (0,))


class Quadratic:
    """Client k's update is exactly ``-(w - k) / 4``, in the first entry."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[int]]] = []
        self.held: list[int] = []

    def hold(self, *vectors: Params) -> None:
        self.held.append(len(vectors))

    def train(self, model: Params, clients: Iterable[int], *, round: int) -> Replies:
        self.asked.append((round, sorted(clients)))
        w, *idle = model.flat.tolist()
        return Replies(Reply(k, vector([-(w - k) / 4, *idle]), 1, 0.0) for k in sorted(clients))


def quadratic_history(folder: Path, rounds: int) -> History:
    """FedAvg of clients 0, 1 and 2 from w = 4; the mean of all targets is 1."""
    updates, models = [], [4.0]
    for _ in range(rounds):
        updates.append({k: -(models[-1] - k) / 4 for k in range(3)})
        models.append(models[-1] + sum(updates[-1].values()) / 3)
    return history(folder, updates, models, FedRecover().card)


def test_estimates_are_exact_where_curvature_is_constant(tmp_path: Path) -> None:
    # Without client 0: w <- w - (w - 1.5) / 4, so w - 1.5 = 2.5 (3/4)^t, although most rounds ask nobody.
    cohort = Quadratic()
    models = list(FedRecover(CONFIG()).unlearn(TARGET, quadratic_history(tmp_path, 20), cast(Cohort, cohort)))
    assert [w.flat.item() for w in models] == pytest.approx([1.5 + 2.5 * 0.75**t for t in range(1, 21)], rel=1e-5)
    # T_w = 4, every T_c = 5 after it, T_f = 2: it is not another name for retraining.
    assert cohort.asked == [(t, [1, 2]) for t in (1, 2, 3, 4, 9, 14, 19, 20)]
    # In the exact rounds but the first: s = 2 pairs at most, of two vectors each, for both clients.
    assert cohort.held == [4, *[8] * 6]


def test_the_threshold_by_hand(tmp_path: Path) -> None:
    # Changes of who stays, by size: 1, 4; then 2, 3; then nobody's. The largest of each round: 4 and 3.
    updates = [{0: 99.0, 1: 1.0, 2: -4.0}, {1: 3.0, 2: 2.0}, {0: 99.0}]
    recorded = history(tmp_path, updates, [0.0] * 4, FedRecover().card)
    assert threshold(recorded, TARGET, 0.0) == 4
    # Half of a round's changes may be above: 1 and 2 are not.
    assert threshold(recorded, TARGET, 0.5) == 2


@pytest.mark.parametrize("idle", [0, 3])  # one entry alone may be too large: the mean of four would not be
def test_clients_whose_estimate_is_too_large_are_asked(tmp_path: Path, idle: int) -> None:
    # Recorded: changes of 0.1 from w^t = 0.1 t, and one of 0.3 (client 1, round 1): tau. Answers: (k - wh) / 4.
    # Round 1, exact: 0.25 and 0.5, wh = 0.375; dW was 0. Round 2, exact: 0.15625 and 0.40625, wh = 0.65625; the pairs
    # are dW = 0.275 with dD = 0.05625 and 0.30625: H = 0.204545 and 1.113636.
    # Round 3: dW = 0.45625, estimates 0.19332 and 0.60810 > tau. Client 2 answers 0.33594; wh = 0.92088.
    # Round 4: dW = 0.62088, estimates 0.22700 and 0.79144 > tau. Client 2 answers 0.26978; wh = 1.16927.
    updates = [{0: 0.1, 1: 0.3, 2: 0.1}, *[{0: 0.1, 1: 0.1, 2: 0.1}] * 3]
    models, cohort = [0.1 * t for t in range(5)], Quadratic()
    strategy = FedRecover(CONFIG(warmup=2, buffer=1, final=0, interval=100))
    made = strategy.unlearn(TARGET, history(tmp_path, updates, models, strategy.card, idle), cast(Cohort, cohort))
    assert [w.flat[0].item() for w in made] == pytest.approx([0.375, 0.65625, 0.92088, 1.16927], abs=1e-5)
    assert cohort.asked == [(1, [1, 2]), (2, [1, 2]), (3, [2]), (4, [2])]


def test_it_comes_near_the_retrain_at_a_fraction_of_the_work(tmp_path: Path) -> None:
    learning = LearningConfig(rounds=20, fraction=0.7)
    toy = Toy(tmp_path, 1, learning, LocalConfig(lr=0.3))
    models, cohort, final = serve(toy, FedRecover(learning=learning), REQUESTS["client"])
    oracle, retrained, _ = serve(toy, Retrain(learning=learning), REQUESTS["client"])
    assert verification_error(models[-1], oracle[-1]) < 0.3 * verification_error(final, oracle[-1])
    assert cohort.cost.client_steps < 0.6 * retrained.cost.client_steps


def test_when_all_rounds_are_exact_it_is_the_retrain(tmp_path: Path) -> None:
    # T = 4 <= T_w, and no cohort of the toy is the target alone.
    models, _, _ = serve(Toy(tmp_path), FedRecover(), REQUESTS["client"])
    oracle, _, _ = serve(Toy(tmp_path), Retrain(), REQUESTS["client"])
    assert verification_error(models[-1], oracle[-1]) < 1e-5


def test_what_it_assumes() -> None:
    assert FedRecover.scopes == {"client"}
    assert FedRecover().card == Card(records="all")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"interval": 0}, "strategy.fedrecover.interval is 0, but must be at least 1"),
        ({"buffer": 0}, "strategy.fedrecover.buffer is 0, but must be at least 1"),
        ({"warmup": 2}, "strategy.fedrecover.warmup is 2, but must be above buffer, 2"),
        ({"tolerance": 1.0}, r"strategy.fedrecover.tolerance is 1.0, but must be in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CONFIG(**fields)
