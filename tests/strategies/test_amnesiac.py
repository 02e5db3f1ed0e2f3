"""Amnesiac unlearning against subtraction by hand, with clients that come and go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
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
from fedforget.strategy import UnlearningStrategy
from strategies.amnesiac import Amnesiac

LAYOUT = Layout(("a", "b"), ((2,), (1,)))
NOBODY = cast(Cohort, None)

# Per round: the examples and the updates of the clients that took part.
WEIGHTS = [{0: 10, 1: 30}, {1: 30, 2: 20}, {0: 10, 1: 30, 2: 20}]
UPDATES = [
    {0: (4.0, 0.0, -4.0), 1: (1.0, 1.0, 1.0)},
    {1: (2.0, 2.0, 2.0), 2: (5.0, -5.0, 10.0)},
    {0: (6.0, 12.0, 0.0), 1: (3.0, 3.0, 3.0), 2: (-3.0, 0.0, 9.0)},
]


def point(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), LAYOUT)


FINAL = point(100, 200, 300)


def history(
    folder: Path, targets: tuple[int, ...], card: Card, rounds: int = 3, removed: frozenset[int] = frozenset()
) -> History:
    """A recording of three rounds at the level that the card asks for."""
    recording = Recording(folder, LAYOUT, HistoryConfig(card.records), targets, Seeds(0))
    recording.begin(point(0, 0, 0))
    for round, (weights, updates) in enumerate(zip(WEIGHTS, UPDATES, strict=True), start=1):
        replies = Replies(Reply(k, point(*updates[k]), weights[k], 0.0) for k in weights)
        recording.add(round, point(round, round, round), replies, [], last=round == 3)
    recording.finish(3, Cost())
    return History(recording, rounds, FINAL, card, removed, targets)


def unlearn(folder: Path, targets: tuple[int, ...], **fields: Any) -> list[Params]:
    strategy = Amnesiac()
    request = UnlearningRequest("client", targets)
    return list(strategy.unlearn(request, history(folder, targets, strategy.card, **fields), NOBODY))


def test_the_targets_share_is_subtracted(tmp_path: Path) -> None:
    # Client 0: p = 10/40 = 1/4 in round 1, absent in round 2, p = 10/60 = 1/6 in round 3.
    # sum p D = (4, 0, -4) / 4 + (6, 12, 0) / 6 = (1, 0, -1) + (1, 2, 0) = (2, 2, -1)
    [w] = unlearn(tmp_path, (0,))
    assert w.flat.tolist() == [98, 198, 301]


def test_a_client_that_came_late(tmp_path: Path) -> None:
    # Client 2: p = 20/50 in round 2, p = 20/60 in round 3.
    # sum p D = 0.4 (5, -5, 10) + (-3, 0, 9) / 3 = (2, -2, 4) + (-1, 0, 3) = (1, -2, 7)
    [w] = unlearn(tmp_path, (2,))
    assert w.flat.tolist() == pytest.approx([99, 202, 293], rel=1e-6)


def test_several_targets_are_subtracted_together(tmp_path: Path) -> None:
    # The sums above: (2, 2, -1) + (1, -2, 7) = (3, 0, 6); shares still count the whole cohort.
    [w] = unlearn(tmp_path, (0, 2))
    assert w.flat.tolist() == pytest.approx([97, 200, 294], rel=1e-6)


def test_forgetting_everybody_returns_to_the_start_of_fedavg(tmp_path: Path) -> None:
    # All shares of a round sum to one, so what is left of a FedAvg trajectory is its initial model.
    [w] = unlearn(tmp_path, (0, 1, 2))
    total = torch.zeros(3)
    for weights, updates in zip(WEIGHTS, UPDATES, strict=True):
        for k in weights:
            total += torch.tensor(updates[k]) * weights[k] / sum(weights.values())
    assert torch.allclose(w.flat, FINAL.flat - total, atol=1e-4)


def test_only_rounds_before_the_request_count(tmp_path: Path) -> None:
    # After round 2: client 0 was in round 1 alone, (4, 0, -4) / 4.
    [w] = unlearn(tmp_path, (0,), rounds=2)
    assert w.flat.tolist() == [99, 200, 301]


def test_a_client_that_left_before_changes_no_share(tmp_path: Path) -> None:
    # What is in the model is what went into it: client 0's (2, 2, -1), whoever was taken out since. So clients that
    # leave one after another leave what those do that leave together.
    [w] = unlearn(tmp_path, (0,), removed=frozenset({1}))
    assert w.flat.tolist() == [98, 198, 301]


def test_a_client_that_never_took_part_changes_nothing(tmp_path: Path) -> None:
    [w] = unlearn(tmp_path, (7,))
    assert w.equals(FINAL)


def test_repair_goes_on_from_the_subtracted_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def learn(
        self: UnlearningStrategy, cohort: Cohort, initial: Params, rounds: int, first_round: int = 1
    ) -> Iterator[Params]:
        calls.append((cohort, initial, rounds, first_round))
        yield from (initial + point(i, i, i) for i in range(1, rounds + 1))

    monkeypatch.setattr(UnlearningStrategy, "learn", learn)
    cohort = cast(Cohort, object())
    strategy = Amnesiac(Amnesiac.Config(repair_rounds=2))
    request = UnlearningRequest("client", (0,))
    models = list(strategy.unlearn(request, history(tmp_path, (0,), strategy.card), cohort))
    assert [w.flat.tolist() for w in models] == [[98, 198, 301], [99, 199, 302], [100, 200, 303]]
    [(asked, start, rounds, first_round)] = calls
    assert asked is cohort and start is models[0] and (rounds, first_round) == (2, 4)


def test_what_it_assumes() -> None:
    assert Amnesiac.scopes == {"client"}
    assert Amnesiac().card == Card(records="targets", storage="updates", retained_online=False)
    assert Amnesiac(Amnesiac.Config(repair_rounds=1)).card == replace(Amnesiac().card, retained_online=True)


def test_every_update_is_billed(tmp_path: Path) -> None:
    # Nobody knows who will ask, so the updates of all clients of all rounds are kept: (2 + 2 + 3) of 3 floats.
    assert history(tmp_path, (0,), Amnesiac().card).bytes_stored() == 7 * 12


def test_negative_repair_is_refused() -> None:
    with pytest.raises(ValueError, match="strategy.amnesiac.repair_rounds is -1, but must be at least 0"):
        Amnesiac.Config(repair_rounds=-1)
