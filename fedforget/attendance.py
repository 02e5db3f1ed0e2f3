"""Whether the clients whose data is to be forgotten took part in what a strategy asked of them.

A strategy whose updates from its targets are left out (they failed, or sent NaN) goes on with what remains, and what
remains is another method: ascent without its target is fine-tuning. Such a row would carry the wrong name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass
class Attendance:
    """What became of the work that was asked of a request's targets, counted over the exchanges of a strategy.

    Args:
        asked: how many answers were asked for: one a target and exchange.
        missed: how many of them were left out.
        first: which was the first, and why.
    """

    asked: int = 0
    missed: int = 0
    first: str = ""

    def count(self, round: int, targets: Collection[int], left_out: Mapping[int, str]) -> None:
        """Count an exchange that asked ``targets`` for their work; ``left_out``: why, by client."""
        missing = sorted(left_out.keys() & set(targets))
        self.asked += len(targets)
        self.missed += len(missing)
        if missing and not self.first:
            self.first = f"round {round}: client {missing[0]} {left_out[missing[0]]}"

    def complaint(self, min_share: float) -> str:
        """One sentence if fewer than ``min_share`` of the answers asked for came, or none; else empty."""
        came = self.asked - self.missed
        if not self.missed or (came and came >= min_share * self.asked):
            return ""
        return (
            f"{self.missed} of the {self.asked} updates that it asked of the clients whose data it must forget were "
            f"left out (first: {self.first}), so what remains is not this method"
        )
