"""What may be said of a method: the one place where results are cut down to what the evidence allows.

`permitted` goes over every verdict row before anything is made of it (tables, sentences, figures, ``verdicts.csv``): a
column that the gate or the evidence level does not cover becomes None, and ``verdict`` the word that may be said.
`permitted_metric` does so with audit rows. The record (``results.jsonl``) keeps all numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

PASSED, VOID, UNCHECKED = "passed", "void", "cannot be checked"  # states of the gate
NOT_FINITE, CONSTANT, UNMOVED = "not finite", "constant answer", "did not move"  # states of a model, worst first
SCORED_FROM = 1  # the first evidence level whose scores and shares are printed: with one seed nothing has a limit
RANKED_FROM = 2  # the first that may claim verdicts, ranks and the speed-up at equal quality
ATTACKED_FROM = 4  # the first that may claim attacks on single examples; the next one bounds epsilon
FREE = ("request", "label", "seeds", "state", "state_seeds", "verdict")  # columns that say no more than who it is
STATES = {  # in a sentence
    NOT_FINITE: "what it answers is NaN or infinite, so it has no numbers",
    CONSTANT: "it answers one class whatever it is asked, so its numbers say nothing about forgetting",
    UNMOVED: "its weights are those that it started from, to rounding, so it has forgotten nothing",
}
FAR = 1.5  # times doing nothing's distance: from here on in words, not in per cent
LARGEST = 9.995  # shares beyond it are not printed as numbers in tables

Row = dict


def level(header: Mapping) -> int:
    """The number of the evidence level: 2 for ``EL2``."""
    return int(header["code"].removeprefix("EL"))


def scored(header: Mapping, gate: Mapping) -> bool:
    """Whether scores, shares and verdicts of this request may be shown at all."""
    return gate["state"] == PASSED and level(header) >= SCORED_FROM


def needed(column: str) -> int:
    """The lowest evidence level at which a column of a verdict row may be shown."""
    if column in FREE:
        return 0
    if "epsilon" in column:
        return ATTACKED_FROM + 1
    if column.startswith(("ulira_", "coin_")):
        return ATTACKED_FROM
    tested = column in ("closer", "harmed") or column.endswith(("_p", "_holm"))
    return RANKED_FROM if tested or column.startswith("rank_") or column.endswith("_speedup") else SCORED_FROM


def permitted(header: Mapping, gate: Mapping, row: Row) -> Row:
    """A verdict row as it may be shown: the same columns, None where nothing may be said, the word in ``verdict``."""
    least = level(header) if scored(header, gate) else 0
    shown = {column: value if needed(column) <= least else None for column, value in row.items()}
    return shown | {"verdict": word(header, gate, row)}


def permitted_metric(header: Mapping, row: Row) -> Row:
    """An audit row as it may be shown: its share of the original's gap is one of those that need a level."""
    return row if level(header) >= SCORED_FROM else row | {"gap_closed": None}


def word(header: Mapping, gate: Mapping, row: Row) -> str:
    """The word for a verdict row.

    The state of a model that cannot have unlearned, that of a gate that did not pass, nothing, a direction (level
    screen), or what the test of equivalence found.
    """
    if row["state"]:
        some = row["state_seeds"] < row["seeds"]
        return f"{row['state']} {row['state_seeds']}/{row['seeds']}" if some else row["state"]
    if gate["state"] != PASSED:
        return gate["state"]
    if level(header) < SCORED_FROM:
        return "no claim"
    if row["remaining"] is not None and not math.isfinite(row["remaining"]):
        return "diverged"
    if row["remaining"] is None or level(header) >= RANKED_FROM:
        return row["verdict"]
    if row["remaining_low"] is None or row["remaining_low"] <= 0 <= row["remaining_high"]:
        return "no direction"
    return "short of the oracle" if row["remaining_low"] > 0 else "beyond the oracle"


def state(row: Row) -> str:
    """What a sentence says of a model that cannot have unlearned; empty for all others."""
    if not row["state"]:
        return ""
    some = row["state_seeds"] < row["seeds"]
    where = f"in {row['state_seeds']} of {row['seeds']} seeds " if some else ""
    return f"{row['state']}: {where}{STATES[row['state']]}"


def gate(found: Mapping) -> tuple[str, str]:
    """What is said of a gate: a word, and why."""
    if found["state"] == PASSED:
        return "gate passed", "there is something to forget"
    return found["state"] if found["state"] == UNCHECKED else "VOID", found["why"]


def no_scores(header: Mapping, found: Mapping) -> str:
    """Why a request has no scores, in a sentence."""
    if found["state"] == UNCHECKED:
        return (
            "Whether there is anything to forget cannot be checked with one seed, so there are no scores and no "
            "verdicts; evaluation=screen, with three seeds, is the least that shows a direction."
        )
    if found["state"] == PASSED:
        return f"{header['code']} claims nothing about any method, so there are no scores and no verdicts."
    return "This scenario cannot show forgetting, whatever a method does, so there are no scores and no verdicts."


# ---------------------------------------------------------------------- shares of a distance


def distance(share: float, of: str, low: float | None = None, high: float | None = None) -> str:
    """Where a model lies between the oracle (0) and the original (1), in words where a percentage misleads.

    Args:
        share: the gap to the oracle over the original's, with its sign.
        of: what the original's gap is.
        low: lower end of its interval, None without one.
        high: the upper one.
    """
    ends = None if low is None or high is None else (low, high)
    if share > FAR:
        return f"it is {_times(share, ends)} times as far from the oracle as doing nothing"
    if round(100 * share) >= 0:
        return f"{_per_cent(share, ends)} of {of} remains"
    turned = None if ends is None else (-ends[1], -ends[0])
    sure = "it forgets more than the oracle does: " if turned and turned[0] > 0 else ""
    if share < -FAR:
        return f"{sure}it lies {_times(-share, turned)} times as far beyond the oracle as doing nothing is short of it"
    return f"{sure}it lies beyond the oracle by {_per_cent(-share, turned)} of {of}"


def _per_cent(share: float, ends: tuple[float, float] | None) -> str:
    return f"{100 * share:z.0f} %" + (f" [{cell(ends[0])}, {cell(ends[1])}]" if ends else "")


def _times(share: float, ends: tuple[float, float] | None) -> str:
    return f"{share:.1f}" + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else "")


def cell(share: float) -> str:
    """A share in %, without numbers that a distance hardly above the noise would make huge."""
    if abs(share) > LARGEST:
        return ">999" if share > 0 else "<-999"
    return f"{100 * share:z.0f}"
