"""Partial amnesiac unlearning: subtract the target's updates, of which only a part of each layer was kept.

Paper: Gogineni and Nadimi, "Efficient Knowledge Deletion from Trained Models Through Layer-wise Partial Machine
Unlearning", JMLR 2025, arXiv 2403.07611 ("Partial Amnesiac Unlearning"), after Graves, Nagisetty and Ganesh, "Amnesiac
Machine Learning", AAAI 2021, arXiv 2010.10981.
Source: abstract only; the paper itself could not be read, only its abstract and summaries.

Symbols: w global weights; D_c^t update of client c in round t; p_c^t its share of the round's examples; P_p keeps the
share p of each layer's entries and zeroes the rest; T rounds; R repair rounds.

    w <- w - sum_t P_p(p_c^t D_c^t)

Storage, with d parameters, K clients a round and 4-byte values: the rounds' pruned updates, K T (4 p d + the smaller of
d/8 and 4 p d for the positions; none where the choice is random); or one running sum for each client, 4 K d whatever p.

Deviations: the paper prunes the updates of single batches that hold the data; a server sees rounds. Which entries
survive is not stated there: the largest in magnitude is this project's choice (it forgets with the least storage under
Adam, simulations/amnesiac_optimiser.py). Entries are chosen by D_c^t: the factor p_c^t does not change their order.
Full updates may be recorded, so that several p share one trajectory: the history reads, and the bill counts, only what
this method would have kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedforget.strategy import Card, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class PartialAmnesiac(UnlearningStrategy):
    """Roll back part of the target's updates, then repair."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        keep: float = option(
            0.05, "share of each layer that is kept", symbol="p", above=0, at_most=1, search=(0.01, 0.5, "log")
        )
        select: str = option(
            "top",
            "entries kept: top, random or bottom",
            symbol="P",
            choices=("top", "random", "bottom"),
            needs={"keep": "below 1"},
        )
        storage: str = option("rounds", "what a server keeps: rounds or sum", choices=("rounds", "sum"))
        repair_rounds: int = option(0, "ordinary rounds afterwards", symbol="R", at_least=0)

    scopes = frozenset({"client"})

    @property
    def card(self) -> Card:
        """Part of every client's updates, or sums of them, but no global models; contacts are for repair only."""
        return Card(
            records="targets",
            keep=self.config.keep,
            select=self.config.select,
            storage="sums" if self.config.storage == "sum" else "updates",
            retained_online=self.config.repair_rounds > 0,
        )

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """Subtract round by round, or add up first and subtract once; then R ordinary rounds."""
        cfg, w, S = self.config, history.final, 0 * history.final
        for t in range(1, history.rounds + 1):
            n = history.weights(t)
            for c in request.clients:
                if c in n:
                    p = n[c] / history.examples(t)
                    if cfg.storage == "sum":
                        S = S + p * history.update(t, c)
                    else:
                        w = w - p * history.update(t, c)
        w = w - S
        yield w
        yield from self.learn(cohort, w, cfg.repair_rounds, first_round=history.rounds + 1)
