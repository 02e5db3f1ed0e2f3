"""Damped and pseudo-inverse Newton steps on the retained data: the baselines of cubic-regularised Newton.

Paper: Both are baselines of Bui, Lu, Sim, Ng and Low, "On Newton's Method to Unlearn Neural Networks", 2024, arXiv
2406.14507, whose point is that a (nearly) singular Hessian gives them steps of huge norm that break the model.
Source: abstract only.

Symbols: w global weights; g, H gradient and Hessian of the mean loss on the retained data; gamma damping; N steps.

    damped: w <- w - (H + gamma I)^-1 g        pseudo: w <- w - H^+ g

Deviations: the baselines and their settings are recalled from memory. The loss includes the recipe's weight decay. With
``solver: cg`` the damped system is solved by conjugate gradient, one round a product, which stops at a direction of
negative curvature, where the exact solution would not; ``explicit`` and ``pseudo`` have each client send its d x d
Hessian once a step.

Limit: on a client of digits one damped step of the default 0.01 forgets nothing, ten of 0.001 do, and the
pseudo-inverse's goes many times as far as the oracle is, elsewhere (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedforget.solvers import check_explicit, conjugate_gradient, damped_solve, pseudo_solve, shifted
from fedforget.strategy import Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class Newton(UnlearningStrategy):
    """Newton steps with a fixed damping, or with none."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        solver: str = option("cg", "cg, explicit (both damped) or pseudo", choices=("cg", "explicit", "pseudo"))
        damping: float = option(
            0.01,
            "added to the Hessian's diagonal",
            symbol="gamma",
            at_least=0,
            search=(0.001, 0.1, "log"),
            needs={"solver": ("cg", "explicit")},
        )
        steps: int = option(1, "Newton steps", symbol="N", at_least=1)
        iterations: int = option(20, "most products a step (cg)", at_least=1, needs={"solver": ("cg",)})
        tolerance: float = option(
            1e-3, "relative residual that is enough (cg)", at_least=0, below=1, needs={"solver": ("cg",)}
        )
        cutoff: float = option(
            1e-10,
            "eigenvalues below this share of the largest are 0 (pseudo)",
            at_least=0,
            below=1,
            search=(1e-11, 0.001, "log"),
            needs={"solver": ("pseudo",)},
        )

    def check(self, cohort: Cohort) -> None:
        """Clients that send Hessians need a small model."""
        if self.config.solver != "cg":
            check_explicit(f"newton with solver={self.config.solver}", cohort.layout.size)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """N Newton steps."""
        cfg, w = self.config, history.final.double()
        for _ in range(cfg.steps):
            step = self.by_products if cfg.solver == "cg" else self.by_hessian
            for w in step(w, cohort):  # noqa: B020 (the last iterate is where the next step starts)
                yield w.float()

    def by_products(self, w: Params, cohort: Cohort) -> Iterator[Params]:
        """``w - (H + gamma I)^-1 g`` by conjugate gradient."""
        cfg, decay = self.config, cohort.task.local.weight_decay
        g = cohort.gradient(w) + decay * w
        yield w
        product = shifted(cohort.hvp, w, decay + cfg.damping)
        for x in conjugate_gradient(product, g, cfg.iterations, cfg.tolerance, cohort.hold):
            yield w - x

    def by_hessian(self, w: Params, cohort: Cohort) -> Iterator[Params]:
        """``w - (H + gamma I)^-1 g`` or ``w - H^+ g``."""
        cfg, decay = self.config, cohort.task.local.weight_decay
        g, H = cohort.hessian(w)
        g, H = g + decay * w, H + decay * torch.eye(len(H))
        if cfg.solver == "pseudo":
            yield w - pseudo_solve(H, g, cfg.cutoff)
        else:
            yield w - damped_solve(H, g, cfg.damping)
