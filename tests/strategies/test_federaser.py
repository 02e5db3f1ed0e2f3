"""FedEraser against two replayed rounds by hand, and what it asks of clients and history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fedforget.cohort import Cohort
from fedforget.exchange import Card, Replies, Reply
from fedforget.history import History, HistoryConfig, Recording
from fedforget.ledger import Cost
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.seeds import Seeds
from strategies.federaser import FedEraser, calibrate

LAYOUT = Layout(("a", "b"), ((2,), (1,)))
TARGET = UnlearningRequest("client", (0,))


def point(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), LAYOUT)


INITIAL = point(10, 20, 30)
# Per round: the examples and the updates of the clients that took part. Client 0 leaves.
WEIGHTS = [{0: 50, 1: 10, 2: 30}, {0: 50, 1: 10}, {0: 50, 1: 10, 2: 30}, {0: 50}, {0: 50, 2: 30}]
UPDATES = [
    {0: (99.0, 99.0, 99.0), 1: (4.0, 8.0, 0.0), 2: (0.0, 4.0, -4.0)},
    {0: (99.0, 99.0, 99.0), 1: (7.0, 7.0, 7.0)},
    {0: (99.0, 99.0, 99.0), 1: (3.0, 4.0, 2.0), 2: (0.0, 10.0, -6.0)},
    {0: (99.0, 99.0, 99.0)},
    {0: (99.0, 99.0, 99.0), 2: (6.0, 8.0, 1.0)},
]


class FakeCohort:
    """Answers a calibration with hand-chosen directions, and remembers what it was asked."""

    def __init__(self, directions: Mapping[int, Mapping[int, tuple[float, float, float]]]) -> None:
        self.directions = directions
        self.asked: list[tuple[Params, list[int], int, dict[str, Any]]] = []

    def train(self, model: Params, clients: Iterable[int], *, round: int, **options: Any) -> Replies:
        self.asked.append((model, sorted(clients), round, options))
        known = self.directions[round]
        return Replies(Reply(k, point(*known[k]), 1, 0.0) for k in sorted(clients) if k in known)


def history(folder: Path, card: Card, rounds: int = 5, removed: frozenset[int] = frozenset()) -> History:
    recording = Recording(folder, LAYOUT, HistoryConfig("all"), (), Seeds(0))
    recording.begin(INITIAL)
    for round, (weights, updates) in enumerate(zip(WEIGHTS, UPDATES, strict=True), start=1):
        replies = Replies(Reply(k, point(*updates[k]), weights[k], 0.0) for k in weights)
        recording.add(round, point(0, 0, 0), replies, [], last=round == 5)
    recording.finish(5, Cost())
    return History(recording, rounds, point(0, 0, 0), card, removed, (0,))


def unlearn(folder: Path, config: FedEraser.Config, cohort: FakeCohort, **fields: Any) -> list[list[float]]:
    strategy = FedEraser(config)
    models = strategy.unlearn(TARGET, history(folder, strategy.card, **fields), cast(Cohort, cohort))
    return [w.flat.tolist() for w in models]


# Round 1, as recorded, over clients 1 and 2 with weights 10/40 and 30/40:
# (4, 8, 0) / 4 + 3 (0, 4, -4) / 4 = (1, 2, 0) + (0, 3, -3) = (1, 5, -3); w = (11, 25, 27)
FIRST = [11, 25, 27]
# Round 3: ||U_1|| = 5 | 2 and the new direction (0, -2 | 8) has norms 2 | 8: calibrated (0, -5 | 2).
#          ||U_2|| = 10 | 6 and the new direction (6, 8 | 0) has norms 10 | 0: calibrated (6, 8 | -6), the recorded b.
# (0, -5, 2) / 4 + 3 (6, 8, -6) / 4 = (4.5, 4.75, -4); w = (15.5, 29.75, 23)
DIRECTIONS = {3: {1: (0.0, -2.0, 8.0), 2: (6.0, 8.0, 0.0)}, 5: {2: (-0.5, 0.0, -9.0)}}
SECOND = [15.5, 29.75, 23]
# Round 5, client 2 alone: norms 10 | 1, directions (-1, 0 | -1): calibrated (-10, 0 | -1).
THIRD = [5.5, 29.75, 22]


def test_replayed_rounds_by_hand(tmp_path: Path) -> None:
    cohort = FakeCohort(DIRECTIONS)
    assert unlearn(tmp_path, FedEraser.Config(interval=2), cohort) == [FIRST, SECOND, THIRD]


def test_calibration_asks_retained_clients_at_the_unlearned_model(tmp_path: Path) -> None:
    cohort = FakeCohort(DIRECTIONS)
    unlearn(tmp_path, FedEraser.Config(interval=2, ratio=0.25), cohort)
    # Round 1 needs nobody: the recorded updates start from the same initial model.
    assert [(model.flat.tolist(), clients, round) for model, clients, round, _ in cohort.asked] == [
        (FIRST, [1, 2], 3),
        (SECOND, [2], 5),
    ]
    assert all(options == {"effort": 0.25} for *_, options in cohort.asked)


def test_a_client_that_does_not_calibrate_is_left_out(tmp_path: Path) -> None:
    # Only client 1 answers in round 3: its weight is then 1, and w = (11, 25, 27) + (0, -5, 2).
    cohort = FakeCohort({3: {1: (0.0, -2.0, 8.0)}})
    assert unlearn(tmp_path, FedEraser.Config(interval=2), cohort, rounds=4) == [FIRST, [11, 20, 29]]


def test_without_calibration_it_is_fedaccum(tmp_path: Path) -> None:
    # The recorded updates of round 3: (3, 4, 2) / 4 + 3 (0, 10, -6) / 4 = (0.75, 8.5, -4)
    cohort = FakeCohort({})
    models = unlearn(tmp_path, FedEraser.Config(interval=2, calibration=False), cohort, rounds=3)
    assert models == [FIRST, [11.75, 33.5, 23]]
    assert cohort.asked == []


@pytest.mark.parametrize(
    ("interval", "rounds", "replayed"),
    [(1, 3, 3), (2, 3, 2), (2, 4, 2), (2, 5, 3), (3, 5, 2), (3, 3, 1), (9, 5, 1)],  # 1, 1 + dt, ... up to T
)
def test_how_many_rounds_are_replayed(tmp_path: Path, interval: int, rounds: int, replayed: int) -> None:
    config = FedEraser.Config(interval=interval, calibration=False)
    models = unlearn(tmp_path, config, FakeCohort({}), rounds=rounds)
    assert len(models) == replayed and models[0] == FIRST


def test_a_round_of_the_target_alone_leaves_the_model(tmp_path: Path) -> None:
    # With dt = 3 rounds 1 and 4 are replayed, and in round 4 there was nobody but client 0.
    models = unlearn(tmp_path, FedEraser.Config(interval=3, calibration=False), FakeCohort({}))
    assert models == [FIRST, FIRST]


def test_calibration_of_a_round_of_the_target_alone_leaves_the_model(tmp_path: Path) -> None:
    assert unlearn(tmp_path, FedEraser.Config(interval=3), FakeCohort({4: {}})) == [FIRST, FIRST]


def test_clients_removed_before_are_not_replayed(tmp_path: Path) -> None:
    # Without client 2, round 1 is client 1's update alone.
    config = FedEraser.Config(calibration=False)
    assert unlearn(tmp_path, config, FakeCohort({}), rounds=1, removed=frozenset({2})) == [[14, 28, 30]]


def test_calibrated_layers_have_the_recorded_norm_and_the_new_direction() -> None:
    # ||(3, 4)|| = 5 along (0, 1); |-2| = 2 along +1
    assert calibrate(point(3, 4, -2), point(0, 0.5, 7)).flat.tolist() == [0, 5, 2]
    # Nothing recorded stays nothing, and where there is no new direction the recorded layer stays.
    assert calibrate(point(0, 0, -2), point(3, 4, 0)).flat.tolist() == [0, 0, -2]
    assert calibrate(point(3, 4, -2), point(3, 4, -2)).flat.tolist() == pytest.approx([3, 4, -2])


def test_what_it_assumes(tmp_path: Path) -> None:
    assert FedEraser.scopes == {"client"}
    calibrating = FedEraser(FedEraser.Config(interval=3))
    assert calibrating.card == Card(records="all", every=3, storage="updates", retained_online=True)
    accumulating = FedEraser(FedEraser.Config(interval=1, calibration=False))
    assert accumulating.card == Card(records="all", every=1, storage="updates", retained_online=False)


def test_it_pays_only_for_the_rounds_that_it_replays(tmp_path: Path) -> None:
    # dt = 2: of rounds 1, 3 and 5 there are 3 + 3 + 2 updates, 12 bytes each; the initial model comes from its seed.
    strategy = FedEraser(FedEraser.Config(interval=2))
    assert history(tmp_path, strategy.card).bytes_stored() == 12 * 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"interval": 0}, "strategy.federaser.interval is 0, but must be at least 1"),
        ({"ratio": 0.0}, r"strategy.federaser.ratio is 0.0, but must be in \(0, 1\]"),
        ({"ratio": 1.5}, r"strategy.federaser.ratio is 1.5, but must be in \(0, 1\]"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedEraser.Config(**fields)
