"""Amnesiac unlearning, federated: subtract what the target's updates added.

Paper: Graves, Nagisetty and Ganesh, "Amnesiac Machine Learning", AAAI 2021, arXiv 2010.10981.
Source: paper.

There, the updates of the batches that hold the data are subtracted; the federated form subtracts the target's weighted
updates of every round (also stage 1 of Wu, Zhu and Mitra, "Federated Unlearning with Knowledge Distillation", arXiv
2201.09441).

Symbols: w global weights; D_c^t update of client c in round t; p_c^t its share n_c / sum_k n_k of the round's cohort; T
rounds; R repair rounds (10 epochs in the released code; none here, unless asked for).

Deviations: subtraction is per client and round, not per batch, because that is what a server sees. With a learner other
than FedAvg the subtracted sum is what FedAvg would have added.

Limit: it takes back too much. What a client added is mostly what the others would have added in its place, so the model
goes about twice as far as the oracle is away; after many repair rounds the oracle is missed by as much, on the other
side (docs/results.md). That one epoch repairs the model is published for one machine and Adam, and holds there
(simulations/amnesiac_machine.py); in federated rounds one round repairs about half of the damage, under Adam and SGD
(simulations/amnesiac_optimiser.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedforget.strategy import Card, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class Amnesiac(UnlearningStrategy):
    """Roll back the target's recorded updates, then repair."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        repair_rounds: int = option(0, "ordinary rounds afterwards", symbol="R", at_least=0)

    scopes = frozenset({"client"})

    @property
    def card(self) -> Card:
        """The updates of whoever may ask are needed; nobody is contacted unless there is repair."""
        return Card(records="targets", storage="updates", retained_online=self.config.repair_rounds > 0)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """``w <- w - sum_t p_c^t D_c^t`` for every target c, then R ordinary rounds."""
        w = history.final
        for t in range(1, history.rounds + 1):
            n = history.weights(t)
            for c in request.clients:
                if c in n:
                    p = n[c] / history.examples(t)
                    w = w - p * history.update(t, c)
        yield w
        yield from self.learn(cohort, w, self.config.repair_rounds, first_round=history.rounds + 1)
