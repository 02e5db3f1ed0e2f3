"""IFU: go back to the last recorded model that hardly knew the target, add noise, and train on without it.

Paper: Fraboni, Van Waerebeke, Scaman, Vidal, Kameni and Lorenzi, "SIFU: Sequential Informed Federated Unlearning for
Efficient and Provable Client Unlearning in Federated Optimization", AISTATS 2024, arXiv 2211.11656.
Source: paper.

Symbols: w^s recorded global model after round s of T; Delta(I, w^s) the weighted mean update of the clients I of the
next round; u the target; sigma standard deviation of the noise; (eps, delta) of the certificate.

    Psi(n) = sum_{s<n} || Delta(I, w^s) - Delta(I \\ u, w^s) ||_2
    Psi*   = eps sigma / sqrt(2 (ln 1.25 - ln delta))
    n*     = the largest n <= T with Psi(n) <= Psi*
    start from w^{n*} + N(0, sigma^2 I), then rounds n* + 1 to T on what is retained

Deviations: several targets count as one. In rounds of targets alone Delta(I \\ u) is 0. The rounds that were rolled
back are made again, no more; the paper trains until it converges. delta defaults to 1 over the number of clients, as
released. The plain sum in Psi and the certificate are those of quadratic local losses, as secondary sources have them.
After an earlier request the recorded models know who left before, so the start is w^0 (the paper's tree of branches,
which would save those rounds, is left out). Psi* is the Gaussian mechanism's bound, proven for eps up to 1: at the
published eps = 10, and delta = 0.01, Psi* is only certified at a delta of 0.041. Where that is so, a note says which
delta holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch

from fedforget.params import weighted_mean
from fedforget.strategy import Card, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class InformedRollback(UnlearningStrategy):
    """Roll back as far as the target's influence demands, and go on without it."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        epsilon: float = option(10.0, "of the certificate", symbol="eps", above=0, search=(1.0, 100.0, "log"))
        delta: float = option(0.0, "its failure probability; 0: 1/K", symbol="delta", at_least=0, below=1)
        sigma: float = option(
            0.05, "standard deviation of the noise", symbol="sigma", above=0, search=(0.005, 0.5, "log")
        )

    scopes = frozenset({"client"})

    card = Card(records="all")  # all updates and global models; retained clients train on

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """The noisy model, then an ordinary round for each that was rolled back."""
        cfg = self.config
        delta = cfg.delta or 1 / len(cohort.federation.clients)
        limit = bound(cfg.epsilon, cfg.sigma, delta)
        holds = true_delta(cfg.epsilon, limit / cfg.sigma)
        if holds > delta:
            cohort.notes.append(f"epsilon={cfg.epsilon:g} is certified at delta={holds:.2g}, not at delta={delta:.2g}")
        n = 0 if cohort.removed else rollback(influences(history, request), limit)
        noise = torch.randn(history.final.layout.size, generator=cohort.seeds.torch("sifu"))
        w = history.model(n) + Params(cfg.sigma * noise, history.final.layout)
        yield w
        yield from self.learn(cohort, w, history.rounds - n, first_round=n + 1)


def bound(epsilon: float, sigma: float, delta: float) -> float:
    """``Psi*``."""
    return epsilon * sigma / math.sqrt(2 * math.log(1.25 / delta))


def true_delta(epsilon: float, ratio: float) -> float:
    """The least delta at which Gaussians ``ratio`` deviations apart are (epsilon, delta)-indistinguishable.

    Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, arXiv 1805.06530, theorem 8.
    """
    high, low = ratio / 2 - epsilon / ratio, -ratio / 2 - epsilon / ratio
    Phi = NormalDist().cdf
    tail = Phi(low)
    return Phi(high) - (math.exp(epsilon + math.log(tail)) if tail > 0 else 0.0)


def influences(history: History, request: UnlearningRequest) -> list[float]:
    """``|| Delta(I, w^s) - Delta(I \\ u, w^s) ||_2`` of every round."""
    found = []
    for t in range(1, history.rounds + 1):
        n = history.weights(t)
        stay = [k for k in n if k not in request.clients]
        if len(stay) == len(n):
            found.append(0.0)
            continue
        D = {k: history.update(t, k) for k in n}
        all_ = weighted_mean(D.values(), list(n.values()))
        rest = weighted_mean([D[k] for k in stay], [n[k] for k in stay]) if stay else 0.0 * all_
        found.append((all_ - rest).norm())
    return found


def rollback(influence: Sequence[float], limit: float) -> int:
    """The largest n whose first n influences sum to at most the limit."""
    n, psi = 0, 0.0
    for value in influence:
        psi += value
        if psi > limit:
            break
        n += 1
    return n
