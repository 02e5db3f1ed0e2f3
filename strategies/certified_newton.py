"""Certified removal from a convex model: Newton steps on a randomly perturbed objective, with a bound on what is left.

Warnecke, Pirch, Wressnegger and Rieck, "Machine Unlearning of Features and Labels", NDSS 2023, arXiv 2108.11577,
section on certified unlearning; after Guo, Goldstein, Hannun and van der Maaten, "Certified Data Removal from Machine
Learning Models", ICML 2020, arXiv 1911.03030.

Symbols: D' the retained data, l the cross-entropy of an example; lambda regularisation; b ~ N(0, sigma^2 I);

    L_b(w; D') = sum_{D'} l(w) + lambda/2 ||w||^2 + b.w                     (summed, strictly convex)
    r = ||grad L_b(w; D')||,   epsilon = c r / sigma,   c = sqrt(2 ln(1.5 / delta))

A residual r at the published w certifies (epsilon, delta)-indistinguishability from the exact minimiser of L_b on D'
under a fresh b. Newton steps are taken until epsilon is at most what is asked; the result is written in the notes.

Deviations: the paper perturbs the objective in learning, and unlearning starts from its minimiser. Here every strategy
unlearns from the same unperturbed model, so b is drawn when the request is served: the certificate speaks of the
unlearned model alone, to somebody who has not seen b or the original, and its reference is a retrain with this L_b,
not the recipe's. Federated here: the server keeps b; gradients and products are pooled sums over retained clients, one
round each. Steps are slightly cubic-regularised (M, of the mean loss) and found in a Krylov subspace to a relative
residual of 0.1, because plain ones may diverge from a model far from the minimum of L_b; near it both are the same.
A larger M is safer and slower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from fedforget.params import Params
from fedforget.solvers import krylov_cubic, shifted
from fedforget.strategy import UnlearningStrategy


class CertifiedNewton(UnlearningStrategy):
    """Newton steps until the residual certifies the removal."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        epsilon: float = field(default=0.1, metadata={"help": "the certificate asked for", "symbol": "epsilon"})
        delta: float = field(default=0.01, metadata={"help": "its failure probability", "symbol": "delta"})
        sigma: float = field(default=1.0, metadata={"help": "standard deviation of b", "symbol": "sigma"})
        regularisation: float = field(default=1.0, metadata={"help": "of the summed loss", "symbol": "lambda"})
        lipschitz: float = field(default=1e-3, metadata={"help": "Lipschitz constant of the Hessian", "symbol": "M"})
        steps: int = field(default=20, metadata={"help": "most Newton steps", "symbol": ""})
        iterations: int = field(default=50, metadata={"help": "most products a step, each one round", "symbol": ""})

        def __post_init__(self):
            for name in ("epsilon", "sigma", "regularisation", "lipschitz"):
                if not 0 < getattr(self, name) < float("inf"):
                    raise ValueError(f"certified_newton.{name}={getattr(self, name)} must be finite and positive")
            if not 0 < self.delta < 1:
                raise ValueError(f"certified_newton.delta={self.delta} must lie strictly between 0 and 1")
            for name in ("steps", "iterations"):
                if getattr(self, name) < 1:
                    raise ValueError(f"certified_newton.{name}={getattr(self, name)} must be at least 1")

    def check(self, cohort):
        """Only a convex loss has one minimiser to compare with."""
        if cohort.task.model.name != "linear":
            name = cohort.task.model.name
            raise ValueError(f"certified_newton needs model=linear, whose loss is convex, not {name!r}")

    def unlearn(self, request, history, cohort):
        """Newton steps on L_b from the model to unlearn, in the float32 in which the model is published."""
        c, w = self.config, history.final.double()
        b = torch.randn(len(w.flat), generator=cohort.seeds.torch("objective perturbation"), dtype=torch.float64)
        b = c.sigma * Params(b, w.layout)
        for step in range(c.steps + 1):
            mean = cohort.gradient(w)
            n = sum(reply.num_examples for reply in cohort.last_replies)
            residual = n * mean + c.regularisation * w + b
            epsilon = certificate(residual.norm(), c.sigma, c.delta)
            yield w.float()
            if epsilon <= c.epsilon or step == c.steps:
                break
            product = shifted(cohort.hvp, w, c.regularisation / n)
            s = 0.0 * w
            for s in krylov_cubic(product, residual / n, c.lipschitz, c.iterations, tolerance=0.1):
                yield (w + s).float()
            w = (w + s).float().double()
        found = "certified" if epsilon <= c.epsilon else f"NOT certified (asked for {c.epsilon:g})"
        cohort.notes.append(f"{found}: epsilon={epsilon:.3g} at delta={c.delta:g}, residual {residual.norm():.3g}")


def certificate(residual, sigma, delta):
    """``epsilon = residual sqrt(2 ln(1.5 / delta)) / sigma``."""
    return residual * math.sqrt(2 * math.log(1.5 / delta)) / sigma
