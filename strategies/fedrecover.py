"""FedRecover: repeat the training without the target, with most client updates estimated from the history.

Paper: Cao, Jia, Zhang and Gong, "FedRecover: Recovering from Poisoning Attacks in Federated Learning using Historical
Information", IEEE S&P 2023, arXiv 2210.10936.
Source: secondary; the paper could not be read.

Symbols: w^t, D_k^t recorded global model and update of round t; wh the recovered model; Dh_k its update; H_k^t the
curvature of client k by L-BFGS from the last s pairs (dW, dD_k) = (wh - w^t, Dh_k - D_k^t); T_w, T_c, T_f warm-up
rounds, interval of exact rounds, final rounds; alpha tolerance, tau the largest change that an estimate may have.

    Dh_k = D_k^t + H_k^t (wh - w^t)     or exact, in rounds t <= T_w, t > T - T_f, and every T_c rounds between
    wh <- wh + sum_k n_k Dh_k / sum_k n_k

Deviations: the curvature is of updates, not gradients (they differ by -eta and by the clients' several steps), and the
estimate enters the weighted mean whatever the learner. tau is the largest over rounds of the (1 - alpha)-quantile of
the recorded changes. A client whose estimate exceeds it, or that has no pair yet, is asked. Pairs with dW = 0 (round 1)
say nothing and are skipped. Published are T_w = 20 and T_c = 10 to 20 of hundreds of rounds, T_f = 5 and s = 2; the
defaults are for twenty rounds (this project's choice); with T <= T_w + T_f everything is exact, and it is retraining.

Limit: it forgets as far as it asks: on digits exact rounds every 5 leave much, every 2 little (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fedforget.params import weighted_mean
from fedforget.strategy import Card, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option

Pair = tuple[Params, Params]


class FedRecover(UnlearningStrategy):
    """Replay the rounds without the target, asking clients now and then."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        warmup: int = option(4, "exact rounds at the start", symbol="T_w")
        interval: int = option(5, "rounds between exact rounds", symbol="T_c", at_least=1, search=(1, 10, "int"))
        final: int = option(2, "exact rounds at the end", symbol="T_f", at_least=0)
        buffer: int = option(2, "pairs of L-BFGS", symbol="s", at_least=1)
        tolerance: float = option(
            1e-6, "share of changes above tau", symbol="alpha", at_least=0, below=1, search=(1e-07, 1e-05, "log")
        )

        def __post_init__(self) -> None:
            if self.warmup <= self.buffer:
                raise ValueError(
                    f"strategy.fedrecover.warmup is {self.warmup}, but must be above buffer, {self.buffer}"
                )

    scopes = frozenset({"client"})

    card = Card(records="all")  # all updates and global models; retained clients answer in exact rounds

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """T rounds from the initial model, few of them exact."""
        cfg, T, wh = self.config, history.rounds, history.initial
        tau, pairs = threshold(history, request, cfg.tolerance), dict[int, list[Pair]]()
        for t in range(1, T + 1):
            n = {k: n_k for k, n_k in history.weights(t).items() if k not in request.clients}
            exact = t <= cfg.warmup or t > T - cfg.final or (t - cfg.warmup) % cfg.interval == 0
            dW, Dh = wh - history.model(t - 1), dict[int, Params]()
            estimated = set() if exact else n.keys() & pairs.keys()
            for k in estimated:
                estimate = history.update(t, k) + curvature(pairs[k], dW)
                if estimate.flat.abs().max() <= tau:
                    Dh[k] = estimate
            asked = sorted(n.keys() - Dh.keys())
            answers = cohort.train(wh, asked, round=t).by_client() if asked else {}
            if exact and dW.norm() > 0:
                for k, D in answers.items():
                    pairs[k] = [*pairs.get(k, []), (dW, D - history.update(t, k))][-cfg.buffer :]
                cohort.hold(*(vector for mine in pairs.values() for pair in mine for vector in pair))
            Dh |= answers
            if Dh:
                wh = wh + weighted_mean([Dh[k] for k in sorted(Dh)], [n[k] for k in sorted(Dh)])
            yield wh


def threshold(history: History, request: UnlearningRequest, alpha: float) -> float:
    """``tau``: the share ``alpha`` of one round's changes exceeds it, in the round where it is largest."""
    tau = 0.0
    for t in range(1, history.rounds + 1):
        changes = [history.update(t, k).flat.abs() for k in history.cohort(t) if k not in request.clients]
        if changes:
            together = torch.cat(changes)
            tau = max(tau, together.kthvalue(max(1, math.ceil((1 - alpha) * len(together)))).values.item())
    return tau


def curvature(pairs: Sequence[Pair], v: Params) -> Params:
    """``H v`` with the compact L-BFGS matrix (Byrd, Nocedal and Schnabel 1994) of the pairs, the oldest first."""
    S, Y = (torch.stack([pair[i].flat.double() for pair in pairs]) for i in (0, 1))
    sigma = (S[-1] @ Y[-1]) / (S[-1] @ S[-1])
    A = S @ Y.T
    L, D = A.tril(-1), A.diag().diag()
    M = torch.cat([torch.cat([sigma * S @ S.T, L], 1), torch.cat([L.T, -D], 1)])
    W, x = torch.cat([sigma * S, Y]), v.flat.double()
    return Params((sigma * x - W.T @ (torch.linalg.pinv(M) @ (W @ x))).to(v.flat.dtype), v.layout)
