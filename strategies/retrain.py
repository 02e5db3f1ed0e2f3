"""Federated retraining without the forgotten data: the oracle.

Paper: none.

Same initial weights, same cohorts minus the forgotten clients, same client randomness and learning rates, same number
of rounds as the original; only the forgotten data is missing. It starts at round 1 (also where the target first took
part later: the rounds before are then repeated with equal results). There is no single paper; the pairing of random
streams follows what Plato (github.com/TL-System/plato) does by restoring its generators.

Deviations: where a request empties a cohort, the retained client of lowest sampling priority takes the round.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedforget.strategy import Cohort, History, Params, UnlearningRequest, UnlearningStrategy


class Retrain(UnlearningStrategy):
    """Learn again, from the same start, without the forgotten data."""

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """T rounds from the initial model on retained data."""
        yield from self.learn(cohort, history.initial, rounds=history.rounds)
