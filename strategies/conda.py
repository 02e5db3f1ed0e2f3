"""ConDa: shrink the weights that the target moved more than the others did, without data and without training.

Paper: Chundawat, Niroula, Dhungana, Schoepf, Mandal and Brintrup, "ConDa: Fast Federated Unlearning with Contribution
Dampening", 2024, arXiv 2410.04144; after Foster, Schoepf and Brintrup, "Fast Machine Unlearning without Retraining
through Selective Synaptic Dampening", AAAI 2024, arXiv 2308.07707.
Source: code; of the paper only the abstract and a review were read.

Symbols: w global weights; D_k^t update of client k in round t; A_k its contribution, entry by entry; C_f the mean
contribution of the targets, C_r that of the other clients; r their ratio; alpha cutoff; lambda dampening constant; beta
upper bound of the factor. The server stores one running sum for each client.

    A_k = sum_t |D_k^t|
    r = C_r / C_f
    w <- min(lambda r, beta) w   where r < alpha

Deviations: the released code measures contributions from the initial model in every round, |w_k^t - w^0|, which counts
for each client what all moved together; the review speaks of updates, and so does this. It hands the two contributions
to its formula the other way round, and so shrinks the weights that the target moved least; here r is as its comments
say. Entries that no target moved are left alone (0/0 there). alpha = lambda = beta = 0.5 are its defaults; its tables
have alpha between 0.3 and 0.4.

Limit: which weights the target moved most says little of which hold what it alone had: on digits with canaries it is
little better than doing nothing, at a loss of utility (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedforget.params import weighted_mean
from fedforget.strategy import Card, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class ContributionDampening(UnlearningStrategy):
    """Shrink what is more the target's than the others'."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        cutoff: float = option(0.5, "weights with r below it shrink", symbol="alpha", above=0, search=(0.1, 2.0, "log"))
        constant: float = option(0.5, "their factor over r", symbol="lambda", at_least=0, search=(0.1, 2.0, "log"))
        bound: float = option(0.5, "largest factor", symbol="beta", at_least=0, at_most=1)

    scopes = frozenset({"client"})

    card = Card(records="all", storage="sums", retained_online=False)  # a sum of every client's updates

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """One pass over the weights."""
        A = contributions(history)
        mine = [A[k] for k in A if k in request.clients]
        others = [A[k] for k in A if k not in request.clients]
        if not mine or not others:
            yield history.final
            return
        C_f, C_r = (weighted_mean(side, [1] * len(side)) for side in (mine, others))
        yield history.final.by_layer(self._dampened, C_f, C_r)

    def _dampened(self, w: Tensor, c_f: Tensor, c_r: Tensor) -> Tensor:
        r = c_r / c_f
        factor = (self.config.constant * r).clamp(max=self.config.bound)
        return torch.where(r < self.config.cutoff, factor * w, w)


def contributions(history: History) -> dict[int, Params]:
    """``A_k``, by client."""
    A: dict[int, Params] = {}
    for t in range(1, history.rounds + 1):
        for k in history.cohort(t):
            moved = history.update(t, k).by_layer(torch.abs)
            A[k] = A[k] + moved if k in A else moved
    return A
