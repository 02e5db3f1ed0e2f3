"""ConDa against two rounds by hand, and the order of its two contributions, which public code gets wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
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
from strategies.conda import ContributionDampening

LAYOUT = Layout(("w", "b"), ((4,), (1,)))
UPDATES: list[dict[int, tuple[float, ...]]] = [
    {0: (4, -1, 2, 0, 0), 1: (1, 2, -2, 3, 0), 2: (-1, 1, 2, 1, 0)},
    {0: (-4, 1, 2, 0, 8), 2: (0, -5, 4, 0, 2)},
]
# A_0 = (8, 2, 4, 0, 8), A_1 = (1, 2, 2, 3, 0), A_2 = (1, 6, 6, 1, 2): sums of sizes, as signs would cancel.


def point(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), LAYOUT)


FINAL = point(10, -10, 10, 10, 16)


def unlearn(
    folder: Path, targets: tuple[int, ...] = (0,), removed: frozenset[int] = frozenset(), **settings: float
) -> list[float]:
    strategy = ContributionDampening(ContributionDampening.Config(**settings))
    recording = Recording(folder, LAYOUT, HistoryConfig("all"), (), Seeds(0))
    recording.begin(point(0, 0, 0, 0, 0))
    for round, updates in enumerate(UPDATES, start=1):
        replies = Replies(Reply(k, point(*updates[k]), 10 * (k + 1), 0.0) for k in updates)
        recording.add(round, point(0, 0, 0, 0, 0), replies, [], last=round == 2)
    recording.finish(2, Cost())
    history = History(recording, 2, FINAL, strategy.card, removed, targets)
    cohort = cast(Cohort, SimpleNamespace())
    [w] = strategy.unlearn(UnlearningRequest("client", targets), history, cohort)
    return w.flat.tolist()


def test_by_hand(tmp_path: Path) -> None:
    # C_f = A_0, C_r = (A_1 + A_2) / 2 = (1, 4, 4, 2, 1): r = (1/8, 2, 1, 2/0, 1/8). Below 1/2 are the first and the
    # last, with a factor of 1/16. The ratio the other way round, as released, would shrink the fourth, which client 0
    # never moved.
    assert unlearn(tmp_path) == [10 / 16, -10, 10, 10, 1]


def test_the_cutoff_is_exclusive(tmp_path: Path) -> None:
    assert unlearn(tmp_path, cutoff=1 / 8) == FINAL.flat.tolist()
    # At 1.5 the third, r = 1, shrinks as well, by 1/2.
    assert unlearn(tmp_path, cutoff=1.5) == [10 / 16, -10, 5, 10, 1]


def test_the_factor_is_bounded(tmp_path: Path) -> None:
    # lambda r = (1, 16, 8, inf, 1) at lambda = 8.
    assert unlearn(tmp_path, cutoff=3.0, constant=8.0, bound=0.25) == [2.5, -2.5, 2.5, 10, 4]
    assert unlearn(tmp_path, cutoff=3.0, constant=8.0, bound=1.0) == FINAL.flat.tolist()
    assert unlearn(tmp_path, constant=0.0) == [0, -10, 10, 10, 0]


def test_several_targets_are_averaged(tmp_path: Path) -> None:
    # C_f = (A_0 + A_1) / 2 = (4.5, 2, 3, 1.5, 4), C_r = A_2: r = (2/9, 3, 2, 2/3, 1/2); 1/2 is not below the cutoff.
    assert unlearn(tmp_path, targets=(0, 1)) == pytest.approx([10 / 9, -10, 10, 10, 16])


def test_clients_that_left_before_count_for_nobody(tmp_path: Path) -> None:
    # Without client 1, C_r = A_2 = (1, 6, 6, 1, 2): r = (1/8, 3, 3/2, 1/0, 1/4).
    assert unlearn(tmp_path, removed=frozenset({1})) == [10 / 16, -10, 10, 10, 2]


@pytest.mark.parametrize("targets", [(7,), (0, 1, 2)])
def test_without_two_sides_there_is_no_ratio(tmp_path: Path, targets: tuple[int, ...]) -> None:
    assert unlearn(tmp_path, targets) == FINAL.flat.tolist()


def test_what_it_assumes() -> None:
    assert ContributionDampening.scopes == {"client"}
    assert ContributionDampening().card == Card(records="all", storage="sums", retained_online=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cutoff": 0.0}, "strategy.conda.cutoff is 0.0, but must be above 0"),
        ({"constant": -1.0}, "strategy.conda.constant is -1.0, but must be at least 0"),
        ({"constant": float("inf")}, "strategy.conda.constant is inf, but must be a finite number"),
        ({"bound": 1.5}, r"strategy.conda.bound is 1.5, but must be in \[0, 1\]"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContributionDampening.Config(**fields)
