"""Certified removal from a convex model: learn a randomly perturbed objective, take Newton steps, bound what is left.

Paper: Warnecke, Pirch, Wressnegger and Rieck, "Machine Unlearning of Features and Labels", NDSS 2023, arXiv 2108.11577,
section on certified unlearning; after Guo, Goldstein, Hannun and van der Maaten, "Certified Data Removal from Machine
Learning Models", ICML 2020, arXiv 1911.03030.
Source: paper.

Symbols: D' the retained data; n examples in all; l the cross-entropy of an example; lambda regularisation; b ~ N(0,
sigma^2 I);

    L_b(w; D) = sum_D l(w) + lambda/2 ||w||^2 + b.w                     (summed, strictly convex)
    r = ||grad L_b(w; D')||,   epsilon = c r / sigma,   c = sqrt(2 ln(1.5 / delta))

The model is learned on L_b(w; D): every client trains on its mean loss plus (lambda/2 ||w||^2 + b.w) / n. A residual r
of the model published after the removal certifies (epsilon, delta)-indistinguishability from the minimiser of L_b on D'
that the same learning, with a fresh b, would tend to. Newton steps are taken until epsilon is at most what is asked;
epsilon, delta, r and sigma are written in the notes.

Deviations: r is measured, where the paper bounds it for rows of unit length; so the original need not have reached the
minimum of L_b(w; D), which FedAvg's local steps do not. Federated here: the server draws b and sends it with the model
(2 d down a round of learning); the certificate is for who has seen neither b nor another model than the published one.
Learning is by FedAvg; lambda / n stands in for the recipe's weight decay. n counts all training splits. The oracle
retrains the common objective, without b and lambda, so part of this method's gap is the price of the certificate.
Gradients and products are pooled sums over retained clients, one round each. Steps are slightly cubic-regularised (M,
of the mean loss) and found in a Krylov subspace to a relative residual of 0.1, because plain ones may diverge from a
model far from the minimum of L_b; near it both are the same. A larger M is safer and slower. epsilon is at most 1, as
far as the bound on Gaussians a distance r apart is proven; at 10 and delta = 0.01 the true delta is 0.033.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from fedforget.params import Layout
from fedforget.solvers import krylov_cubic, shifted
from fedforget.strategy import Client, Cohort, History, Params, Recording, UnlearningRequest, UnlearningStrategy, option


class CertifiedNewton(UnlearningStrategy):
    """Newton steps until the residual certifies the removal."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        epsilon: float = option(0.1, "the certificate asked for", symbol="epsilon", above=0, at_most=1)
        delta: float = option(0.01, "its failure probability", symbol="delta", above=0, below=1)
        sigma: float = option(1.0, "standard deviation of b", symbol="sigma", above=0)
        regularisation: float = option(1.0, "of the summed loss", symbol="lambda", above=0)
        lipschitz: float = option(1e-3, "Lipschitz constant of the Hessian", symbol="M", above=0)
        steps: int = option(20, "most Newton steps", at_least=1)
        iterations: int = option(50, "most products a step, each one round", at_least=1)

    def check(self, cohort: Cohort) -> None:
        """Only a convex loss has one minimiser to compare with, and only FedAvg is known to learn it."""
        if cohort.task.model.name != "linear":
            name = cohort.task.model.name
            raise ValueError(f"certified_newton needs model=linear, whose loss is convex, not {name!r}")
        if self.learning.learner != "fedavg":
            raise ValueError(f"certified_newton learns by fedavg; learning.learner is {self.learning.learner!r}")

    def perturbation(self, cohort: Cohort, layout: Layout) -> Params:
        """b of the trajectory, float64: the same in learning and in every removal."""
        b = torch.randn(layout.size, generator=cohort.seeds.torch("objective perturbation"), dtype=torch.float64)
        return self.config.sigma * Params(b, layout)

    def learn(
        self,
        cohort: Cohort,
        initial: Params,
        rounds: int,
        first_round: int = 1,
        recording: Recording | None = None,
    ) -> Iterator[Params]:
        """FedAvg on ``L_b / n``."""
        n = sum(cohort.federation.num_train.values())
        b, decay = self.perturbation(cohort, initial.layout) / n, self.config.regularisation / n

        def step(w: Params, t: int) -> Params:
            sent = {"b": b.float()}
            return w + cohort.train(w, routine=perturbed, round=t, vectors=sent, weight_decay=decay).mean()

        return self.rounds(cohort, initial, rounds, first_round, recording, step)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """Newton steps on L_b from the model to unlearn, in the float32 in which the model is published."""
        cfg, w = self.config, history.final.double()
        b = self.perturbation(cohort, w.layout)
        for step in range(cfg.steps + 1):
            mean = cohort.gradient(w)
            n = cohort.last_replies.examples
            residual = n * mean + cfg.regularisation * w + b
            epsilon = certificate(residual.norm(), cfg.sigma, cfg.delta)
            yield w.float()
            if epsilon <= cfg.epsilon or step == cfg.steps:
                break
            product = shifted(cohort.hvp, w, cfg.regularisation / n)
            s = 0.0 * w
            hold = partial(cohort.hold, b)
            for s in krylov_cubic(product, residual / n, cfg.lipschitz, cfg.iterations, tolerance=0.1, hold=hold):
                yield (w + s).float()
            w = (w + s).float().double()
        found = "certified" if epsilon <= cfg.epsilon else f"NOT certified (asked for {cfg.epsilon:g})"
        size = residual.norm()
        cohort.notes.append(
            f"{found}: epsilon={epsilon:.3g} at delta={cfg.delta:g}, residual {size:.3g}, sigma={cfg.sigma:g}"
        )


def certificate(residual: float, sigma: float, delta: float) -> float:
    """``epsilon = residual sqrt(2 ln(1.5 / delta)) / sigma``."""
    return residual * math.sqrt(2 * math.log(1.5 / delta)) / sigma


def perturbed(client: Client) -> None:
    """`fedforget.routines.train` on the mean loss plus ``b.w``; the recipe's weight decay is that of L_b."""
    b = [layer.to(client.labels.device) for layer in client.vectors["b"].layers().values()]
    for inputs, labels in client.batches():
        linear = sum((v * w).sum() for v, w in zip(b, client.parameters, strict=True))
        client.step(client.loss(inputs, labels) + linear)
