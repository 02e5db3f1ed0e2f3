"""CureNewton: Newton steps on the retained data, damped by the cubic term of a Taylor bound.

Paper: Bui, Lu, Sim, Ng and Low, "On Newton's Method to Unlearn Neural Networks", arXiv 2406.14507 (2024).
Source: code; the paper could not be read.

Symbols: w global weights; g, H gradient and Hessian of the mean loss on the retained data; M Lipschitz constant of the
Hessian; N Newton steps.

    s = argmin_s g.s + s.H s / 2 + M/6 ||s||^3,    w <- w + s
    that is (H + alpha I) s = -g with alpha = M ||s|| / 2 and H + alpha I >= 0: the damping is chosen by the model

Deviations: federated here: each retained client sends its d x d Hessian once a step, and their mean is the pooled one.
The loss includes the recipe's weight decay. The equation for alpha is solved by bisection in the eigenbasis of H, not
by Newton on Cholesky factors: the released function divides by zero for a positive definite H, and its step is wrong in
the hard case (g orthogonal to the lowest eigenvectors of an indefinite H). M = 1 is the code's default. Answers are in
float64 and held one by one: r (d + d^2) numbers at the server, where d^2 is usually counted.

Limit: for a mean loss near its minimum, where g is short, M = 1 allows short steps only: on digits it forgets nothing,
while ten steps at M = 0.001 do (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedforget.solvers import check_explicit, cubic_step
from fedforget.strategy import Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class CubicNewton(UnlearningStrategy):
    """Exact cubic-regularised Newton steps."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        lipschitz: float = option(
            1.0, "Lipschitz constant of the Hessian", symbol="M", above=0, search=(0.1, 10.0, "log")
        )
        steps: int = option(1, "Newton steps, each one round", symbol="N", at_least=1)

    def check(self, cohort: Cohort) -> None:
        """Clients send Hessians, so the model must be small."""
        check_explicit("cubic_newton", cohort.layout.size)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """N times the global minimiser of the cubic model."""
        cfg, w, decay = self.config, history.final.double(), cohort.task.local.weight_decay
        for _ in range(cfg.steps):
            g, H = cohort.hessian(w)
            w = w + cubic_step(H + decay * torch.eye(len(H)), g + decay * w, cfg.lipschitz)
            yield w.float()
