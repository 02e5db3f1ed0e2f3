"""Federated retraining stopped early: exact forgetting at a fraction of the cost, with the utility of a shorter run.

Paper: none.

It is the yardstick of every approximate method: one that costs more than the truncated retrain of equal quality is not
worth having.

Symbols: s share of the original's rounds; T rounds of the original.

Deviations: none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedforget.strategy import Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class TruncatedRetrain(UnlearningStrategy):
    """The oracle's first rounds."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        share: float = option(0.5, "share of the original's rounds", symbol="s", above=0, at_most=1)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """``max(1, round(s T))`` rounds from the initial model on retained data."""
        rounds = max(1, round(self.config.share * history.rounds))
        yield from self.learn(cohort, history.initial, rounds)
