"""The bill of a strategy: what it cost, counted only at the doors (cohort and history)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Cost:
    """A vector of costs; costs add with ``+``.

    Args:
        rounds: rounds of server-client exchange; exchanges that could be one count as one (see `fedforget.cohort`).
        client_steps: optimiser steps (or gradient evaluations) at clients.
        client_examples: training examples that clients processed, with repetition.
        bytes_down: payload bytes sent to clients, one copy of the arrays for each client asked.
        bytes_up: payload bytes that clients sent back.
        bytes_stored: bytes the server must keep for the strategy from learning on.
        seconds: seconds spent inside clients' work, summed over clients.
        bytes_held: most bytes that the server held at once while unlearning, beside the model and what it stored.
    """

    rounds: int = 0
    client_steps: int = 0
    client_examples: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    bytes_stored: int = 0
    seconds: float = 0.0
    bytes_held: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def to_dict(self) -> dict[str, float]:
        """Plain numbers by name."""
        return asdict(self)

    def speedup_over(self, other: Cost) -> dict[str, float]:
        """For each cost, how many times cheaper this is than ``other``: ``other / self``.

        Nothing spent where ``other`` spent something is ``inf``; nothing spent by either is ``nan``. Memory of the
        server is not what retraining is slow for, so it is left out.
        """
        ratios = {}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name not in ("bytes_stored", "bytes_held"):
                ratios[field.name] = theirs / mine if mine else (float("inf") if theirs else float("nan"))
        return ratios
