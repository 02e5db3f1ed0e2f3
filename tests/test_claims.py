"""What may be said at which level, over every column, table, sentence and file; and that nothing said contradicts."""

from __future__ import annotations

import itertools
import re

import pytest

from fedforget import claims, evaluation, tables
from fedforget.claims import CONSTANT, NOT_FINITE, PASSED, UNCHECKED, UNMOVED, VOID
from fedforget.ledger import Cost
from fedforget.verdicts import Evidence, judge

CODES = {level.code: level for level in evaluation.LEVELS.values()}
ATTACK = "matched/margin"


def header(code: str) -> dict:
    return {"code": code}


def a_row(**changes: object) -> dict:
    """A verdict row of five seeds whose every column holds something, by the real columns."""
    models = {label: Evidence({0: {ATTACK: 0.5}}, {0: {}}, Cost()) for label in ("original", "retrain")}
    (columns,) = judge(models, ATTACK, {})
    words = {"verdict": "different", "state": "", "state_seeds": 0, "seeds": 5, "label": "x"}
    words |= {"closer": "oracle", "worst_attack": ATTACK, "remaining_low": 0.3, "remaining_high": 0.5}
    return dict.fromkeys(columns, 0.4) | words | changes


def shown(code: str, gate: str = PASSED, /, **changes: object) -> dict:
    return claims.permitted(header(code), {"state": gate}, a_row(**changes))


def known(row: dict) -> set[str]:
    return {column for column, value in row.items() if value is not None} - set(claims.FREE)


# Columns


def test_every_level_shows_what_the_one_below_does_and_more() -> None:
    several = [known(shown(code)) for code in CODES]
    assert several[0] == set() and all(low <= high for low, high in itertools.pairwise(several))
    assert several[-1] == set(a_row()) - set(claims.FREE)
    screen, leaderboard, attack, epsilon = several[1], several[2], several[4], several[5]
    assert {"forgetting", "quality_privacy_low", "remaining", "remaining_low", "worst_attack"} <= screen
    # Directions only: no rank, no test, no speed-up at equal quality.
    gained = {"rank_first", "rank_last", "examples_speedup", "verdict_p", "energy_p", "energy_holm", "closer", "harmed"}
    assert gained <= leaderboard - screen
    assert {"ulira_accuracy", "coin_worst"} <= attack - leaderboard
    assert epsilon - attack == {"epsilon", "coin_epsilon", "epsilon_most"}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("state", [VOID, UNCHECKED])
def test_a_gate_that_did_not_pass_shows_nothing_at_any_level(code: str, state: str) -> None:
    row = shown(code, state)
    assert known(row) == set() and row["verdict"] == state and list(row) == list(a_row())


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("state", [PASSED, VOID, UNCHECKED])
@pytest.mark.parametrize("word", [NOT_FINITE, CONSTANT, UNMOVED])
def test_a_model_that_cannot_have_unlearned_is_called_so_at_every_level(code: str, state: str, word: str) -> None:
    assert shown(code, state, state=word, state_seeds=5)["verdict"] == word
    assert shown(code, state, state=word, state_seeds=2)["verdict"] == f"{word} 2/5"


# What is said of shares


@pytest.mark.parametrize(
    "share, low, high, expected",
    [
        (0.41, 0.33, 0.5, "41 % [33, 50] of D remains"),
        (1.13, None, None, "113 % of D remains"),
        (2.13, 1.9, 2.4, "it is 2.1 [1.9, 2.4] times as far from the oracle as doing nothing"),
        (30.47, None, None, "it is 30.5 times as far from the oracle as doing nothing"),
        (-0.3, -0.5, 0.1, "it lies beyond the oracle by 30 % [-10, 50] of D"),
        (-0.3, -0.5, -0.1, "it forgets more than the oracle does: it lies beyond the oracle by 30 % [10, 50] of D"),
        (-2.0, None, None, "it lies 2.0 times as far beyond the oracle as doing nothing is short of it"),
        (-0.001, None, None, "0 % of D remains"),
        (0.4, -40.0, 40.0, "40 % [<-999, >999] of D remains"),
    ],
)
def test_a_share_in_words(share: float, low: float | None, high: float | None, expected: str) -> None:
    assert claims.distance(share, "D", low, high) == expected


GRID = (-31.0, -1.5, -0.4, -0.01, 0.0, 0.3, 0.71, 1.0, 2.13, 30.47)


@pytest.mark.parametrize("code", ["EL1", "EL2"])
def test_no_sentence_contradicts_its_score(code: str) -> None:
    """Over a grid of what is left under the primary metric and under the worst attack: the sentence names both, no
    percentage exceeds what can be read, and more than doing nothing's distance is never a success."""
    head = {"code": code, "level": "some", "seeds": 5}
    gate = {"state": PASSED, "why": "", "primary": "forget/loss", "chances": {}}
    for left, worst in itertools.product(GRID, GRID):
        forgetting = min(1.0, max(0.0, 1 - abs(worst)))
        ends = {"remaining_low": left - 0.1, "remaining_high": left + 0.1}
        row = a_row(remaining=left, worst_left=worst, forgetting=forgetting, quality_privacy=forgetting, **ends)
        view = tables.View(
            1, "client 3", {}, {"x": {"client_examples_speedup": 2.0}}, {"x": claims.permitted(head, gate, row)},
            gate, [], [], {}, True,
        )  # fmt: skip
        (sentence,) = tables.sentences(head, view)
        assert f"by its worst attack, {ATTACK}, " in sentence
        numbers = [float(number) for number in re.findall(r"(-?\d+(?:\.\d+)?) %", sentence)]
        assert all(0 <= number <= 150 for number in numbers), sentence
        first, second = sentence.split(" (forget/loss); ")
        for share, said in ((left, first), (worst, second)):
            assert ("times as far" in said) == (abs(share) > claims.FAR), sentence
            assert ("beyond the oracle" in said.split("; too much")[0]) == (round(100 * share) < 0), sentence
        remains = re.search(r"attack, \S+, (\d+) % of what doing nothing shows remains", sentence)
        if remains and float(remains[1]) <= 100:
            assert 1 - float(remains[1]) / 100 == pytest.approx(forgetting, abs=0.006)


def test_the_attack_of_the_score_is_named_only_if_it_is_another_one() -> None:
    row = a_row(remaining=0.4, worst_left=0.4)
    view = tables.View(1, "", {}, {}, {}, {"primary": ATTACK}, [], [], {}, True)
    assert len(tables._shares(view, claims.permitted(header("EL2"), {"state": PASSED}, row))) == 2


def test_shares_in_tables_have_no_digits_that_mean_nothing() -> None:
    assert [claims.cell(share) for share in (0.413, -0.002, 30.47, -12.0)] == ["41", "0", ">999", "<-999"]
