"""A strategy without its targets is another method: it fails, with a sentence, where most of their work is missing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fedforget import client_app, messages
from fedforget.attendance import Attendance
from fedforget.cohort import TooFewClients
from fedforget.exchange import Card
from fedforget.grid import InProcessGrid
from fedforget.history import FileJournal, History
from fedforget.strategy import UnlearningStrategy
from fedforget.testing import REQUESTS, Toy

TARGET, OTHER = 2, 4
NAN = "sent NaN"


@pytest.mark.parametrize(
    ("rounds", "min_share", "fails"),
    [
        ([], 0.5, False),
        ([[], [], []], 0.5, False),
        ([[1], [1], [1]], 0.5, True),
        ([[1], [1], [1]], 0.0, True),  # none at all is too few whatever was asked for
        ([[1], []], 0.5, False),  # half came
        ([[1], [1], []], 0.5, True),
        ([[1], [1], []], 0.3, False),
    ],
)
def test_how_many_may_be_missed(rounds: list, min_share: float, fails: bool) -> None:
    counted = Attendance()
    for number, missed in enumerate(rounds, start=1):
        counted.count(number, {1}, {**dict.fromkeys(missed, NAN), 7: "another, who is no target"})
    assert bool(counted.complaint(min_share)) == fails
    if fails:
        assert re.match(
            rf"{sum(map(len, rounds))} of the {len(rounds)} updates .* left out \(first: round 1: client 1 {NAN}\)",
            counted.complaint(min_share),
        )


def test_one_of_ten_targets_may_be_away() -> None:
    counted = Attendance()
    for number in range(5):
        counted.count(number, range(10), {3: "did not answer in time"})
    assert (counted.asked, counted.missed) == (50, 5) and not counted.complaint(0.5)


class Ascent(UnlearningStrategy):
    """Two rounds that ask the target for its forgotten data, and one more of everybody else."""

    card = Card(target_online=True)

    def unlearn(self, request, history, cohort):
        w = history.final
        for _ in range(2):
            w = w + cohort.reduce(w, {*cohort.targets, *cohort.retained}, split="train")
            yield w
        yield w + cohort.reduce(w)


class Repair(UnlearningStrategy):
    """Three rounds of who is left."""

    def unlearn(self, request, history, cohort):
        for _ in range(3):
            w = history.final + cohort.reduce(history.final)
            yield w


def spoiled(client: int, rounds: tuple[int, ...] = ()):
    """The ClientApp, where a client fails, in some rounds or in all."""

    def app(message, context):
        work, _ = messages.unpack(message.content)
        now = work.round > Toy.learning.rounds and (not rounds or work.round in rounds)
        if message.metadata.message_type == messages.TRAIN and client in work.clients and now:
            raise RuntimeError("NaN")
        return client_app.app(message, context)

    return app


def served(folder: Path, strategy: UnlearningStrategy, client: int, rounds: tuple[int, ...] = (), scope="client"):
    """The cohort with which a strategy serves a request while a client fails."""
    toy = Toy(folder)
    toy.task = replace(toy.task, mode="sequential")  # nobody is in one group with the client that fails
    cohort = toy.cohort(REQUESTS[scope], strategy.card)
    recording, final = toy.learn(strategy, cohort.targets)
    cohort.grid = InProcessGrid(spoiled(client, rounds), 2)
    cohort.journal = FileJournal(folder / "journal")
    history = History(recording, toy.learning.rounds, final, strategy.card, frozenset(), cohort.targets)
    models = list(strategy.serve(cohort.request, history, cohort))
    assert models
    return cohort


def test_a_strategy_whose_target_was_left_out_has_failed(tmp_path: Path) -> None:
    said = r"2 of the 2 updates that it asked of .* left out \(first: round 5: client 2 .*NaN\)"
    for _ in range(2):  # also where its exchanges come from the journal
        with pytest.raises(TooFewClients, match=said) as caught:
            served(tmp_path, Ascent(), TARGET)
        assert "\n" not in str(caught.value)


def test_half_of_its_work_is_enough_and_is_noted(tmp_path: Path) -> None:
    cohort = served(tmp_path, Ascent(), TARGET, rounds=(5,))
    assert (cohort.attendance.asked, cohort.attendance.missed) == (2, 1)
    assert [note.startswith("round 5: client 2 left out") for note in cohort.notes] == [True]


def test_a_client_that_has_nothing_to_forget_is_only_noted(tmp_path: Path) -> None:
    """Who is left out of every round is one of those that `min_share` allows."""
    cohort = served(tmp_path, Ascent(), OTHER)
    assert cohort.attendance.missed == 0 and len(cohort.notes) >= 2


@pytest.mark.parametrize("scope", ["sample", "class"])
def test_a_target_that_repairs_what_it_retains_is_not_asked_as_a_target(tmp_path: Path, scope: str) -> None:
    cohort = served(tmp_path, Repair(), TARGET, scope=scope)
    assert cohort.attendance == Attendance() and cohort.notes


def test_partial_ascent_without_its_target_has_no_row(run_small) -> None:
    """At this rate the target's ascent leaves all numbers behind, while the others train as ever."""
    experiment, _ = run_small("model=mlp strategies=[partial_ascent,finetune] strategy.partial_ascent.lr=3")
    table = (experiment.folder / "table.md").read_text()
    said = "partial_ascent failed and has no row: seed 0: 2 of the 2 updates that it asked of the clients"
    assert said in " ".join(table.split())
    assert "\nfinetune " in table and "\npartial_ascent " not in table
