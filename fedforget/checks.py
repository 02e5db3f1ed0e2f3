"""Whether a client's answer can be what it was asked: what the server can count itself is held against the report.

A report's numbers become weights and bills, so none of them is believed. The server knows how many examples a client
holds, the recipe, the length of what came back, and how long it waited.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedforget.params import Layout
from fedforget.routines import LocalConfig

MOST_SAID = 500  # characters of a reason that a node gave
LAVISH = 1000  # times the recipe's work: most that a strategy's own routine may bill (no honest one comes near)
SLOW_CLOCK = (1.01, 1.0)  # a client may have spent so many times the seconds that the server waited, and so many more


@dataclass(frozen=True)
class Asked:
    """What the server knows of the work that it asks of clients.

    Args:
        routine: ``"module:function"``.
        local: the recipe, with the options that the strategy sent.
        effort: share of the recipe's steps, see `LocalConfig.planned_steps`.
        vectors: how many vectors were sent beside the model.
        size: d, the number of the model's parameters.
        layout: of the vector that must come back.
        dtype: of that vector.
        holds: most examples that each client can have worked on; of one that is not named it is none.
        seconds: how long ago they were asked.
    """

    routine: str
    local: LocalConfig
    effort: float
    vectors: int
    size: int
    layout: Layout
    dtype: np.dtype
    holds: Mapping[int, int]
    seconds: float = 0.0

    def planned(self, examples: int) -> tuple[int, int]:
        """The steps and examples of the recipe for a client with so many examples."""
        local = self.local
        return local.planned_steps(examples, self.effort), local.planned_examples(examples, self.effort)


def said(reason: object) -> str:
    """What a node gave as its reason, as part of one sentence: whole tracebacks and worse may arrive."""
    text = " ".join(str(reason).split())
    return text if len(text) <= MOST_SAID else f"... {text[-MOST_SAID:]}"


def miscount(client: int, entry: Mapping[str, Any], vector: NDArray | None, asked: Asked) -> str:
    """What is wrong with the numbers in a client's report; empty if nothing is. ``vector``: unless it is in a sum."""
    for name in ("num_examples", "steps", "examples", "bytes"):
        if type(entry.get(name)) is not int or entry[name] < 0:
            return f"says {name}={said(repr(entry.get(name)))}"
    for name in ("loss", "seconds"):  # a loss may be infinite: some routines climb
        value = entry.get(name)
        if type(value) not in (int, float) or (type(value) is int and abs(value) > sys.float_info.max):
            return f"says {name}={said(repr(value))}"
    holds = asked.holds.get(client, 0)
    if not 0 < entry["num_examples"] <= holds:
        return f"says num_examples={said(entry['num_examples'])}, but holds {holds}"
    factor, more = SLOW_CLOCK
    if not 0 <= entry["seconds"] <= factor * asked.seconds + more:
        return f"says seconds={said(entry['seconds'])}, but was asked {asked.seconds:.1f} s ago"
    return _misbilled_work(entry, asked) or _misbilled_bytes(entry["bytes"], vector, asked)


def misfit(vector: NDArray, layout: Layout, dtype: np.dtype) -> str:
    """What is wrong with a vector that arrived; empty if nothing is."""
    if vector.shape != (layout.size,):
        return f"sent a vector of shape {vector.shape}, expected ({layout.size},)"
    if vector.dtype != dtype:
        return f"sent a vector of {vector.dtype}, expected {dtype}"
    return "" if np.isfinite(vector).all() else "sent NaN or infinite values"


def shared_work(asked: Asked, examples: int) -> tuple[int, int] | None:
    """The steps and examples that a routine of `fedforget.routines` bills; ``None`` for a strategy's own routine."""
    module, _, name = asked.routine.partition(":")
    steps, seen = asked.planned(examples)
    work = {
        "train": (steps, seen),
        "match": (steps, seen + asked.vectors * examples),
        "gradient": (1, examples),
        "fisher": (1, examples),
        "hvp": (2, examples),
        "hessian": (2 * asked.size, asked.size * examples),
    }
    return work.get(name) if module == "fedforget.routines" else None


def _misbilled_work(entry: Mapping[str, Any], asked: Asked) -> str:
    """What is wrong with the steps and examples of a report.

    Of a shared routine both are known. A strategy's own may do what it likes, but not `LAVISH` times the recipe; one
    that answers with a matrix may do so for each of its rows.
    """
    found, examples = (entry["steps"], entry["examples"]), entry["num_examples"]
    known = shared_work(asked, examples)
    if known is not None:
        words = "says {0[0]} steps over {0[1]} examples, but {2} examples ask for {1[0]} over {1[1]}"
        return "" if found == known else words.format(tuple(map(said, found)), known, examples)
    rows = -(-asked.layout.size // asked.size)
    steps, seen = asked.planned(examples)
    most = LAVISH * rows * max(steps, 1), LAVISH * rows * max(seen, examples) * (1 + asked.vectors)
    for name, number, limit in zip(("steps", "examples"), found, most, strict=True):
        if number > limit:
            return f"says {name}={said(number)}, but more than {limit} is not believed"
    return ""


def _misbilled_bytes(number: int, vector: NDArray | None, asked: Asked) -> str:
    """What is wrong with the bytes of a report.

    They are those of the vector, or of its non-zero entries and a bitmap of their places. Of a vector in a sum only
    the bounds are known; such a one may be in double precision, which a sum is always in.
    """
    size = asked.layout.size
    bitmap = -(-size // 8)
    if vector is None:
        fits = min(bitmap, size) <= number <= 8 * size
    else:
        whole = size * asked.dtype.itemsize
        fits = number == whole or number == min(whole, int(np.count_nonzero(vector)) * asked.dtype.itemsize + bitmap)
    return "" if fits else f"says bytes={said(number)} of a vector of {size} numbers"
