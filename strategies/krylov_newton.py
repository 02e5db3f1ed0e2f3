"""Cubic-regularised Newton steps minimised over a Krylov subspace: the decrease of the exact step in few rounds.

Paper: The cubic model is that of Bui, Lu, Sim, Ng and Low, "On Newton's Method to Unlearn Neural Networks", arXiv
2406.14507 (2024); the solver is the Lanczos method of Cartis, Gould and Toint, "Adaptive cubic regularisation methods
for unconstrained optimization. Part I", Mathematical Programming 127 (2011), section 6. The combination is this
project's.
Source: paper.

Symbols: w global weights; g, H gradient and Hessian of the mean loss on the retained data; M Lipschitz constant of the
Hessian; N_out outer steps; k products a step.

    s_k = argmin g.s + s.H s / 2 + M/6 ||s||^3  over s in span{g, H g, ..., H^(k-1) g},    w <- w + s_k

After k products this span holds every step that SCureNewton's Cauchy start and k - 1 descent steps can reach (apart
from its perturbation), so its model value is never higher for the same rounds.

Deviations: no published unlearning method does this. The loss includes the recipe's weight decay. In the hard case (g
orthogonal to the lowest eigenvectors of an indefinite H) the step has no part along them, so a saddle point stays one.

Limit: as `cubic_newton`, M = 1 is too cautious for a convex mean loss. For a convolutional network after two rounds it
is far too bold: the Hessian is indefinite, steps are at least -2 lambda_1 / M long, and nothing is left of the model
(docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedforget.solvers import krylov_cubic, shifted
from fedforget.strategy import Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class KrylovNewton(UnlearningStrategy):
    """Cubic-regularised Newton steps by Lanczos."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        lipschitz: float = option(
            1.0, "Lipschitz constant of the Hessian", symbol="M", above=0, search=(0.1, 10.0, "log")
        )
        steps: int = option(2, "outer steps", symbol="N_out", at_least=1)
        products: int = option(10, "most products a step, each one round", symbol="k", at_least=1)
        tolerance: float = option(1e-3, "gradient of the model, relative to g, that is enough", at_least=0, below=1)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """N_out outer steps of at most 1 + k rounds."""
        cfg, decay = self.config, cohort.task.local.weight_decay
        w = history.final.double()
        for _ in range(cfg.steps):
            g, s = cohort.gradient(w) + decay * w, 0.0 * w
            yield w.float()
            product = shifted(cohort.hvp, w, decay)
            for s in krylov_cubic(product, g, cfg.lipschitz, cfg.products, cfg.tolerance, cohort.hold):
                yield (w + s).float()
            w = w + s
