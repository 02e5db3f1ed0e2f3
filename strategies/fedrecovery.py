"""FedRecovery: subtract a weighted sum of the target's gradient residuals, from the history alone.

Paper: Zhang, Zhu, Zhang, Xiong and Zhou, "FedRecovery: Differentially Private Machine Unlearning for Federated Learning
Frameworks", IEEE Transactions on Information Forensics and Security 18, 2023.
Source: secondary; the paper could not be read.

Symbols: n clients with equal shares; u the target; g_j gradient of client j at w_i; T rounds; (eps, beta) of the
guarantee; d a bound on the distance to the retrained model; N(0, sigma^2) noise.

    delta_i = (eta / n) (mean_{j != u} g_j - g_u)       what a round without u would have added to that round's step
    p_i = ||grad F(w_i)||^2 / sum_i ||grad F(w_i)||^2
    w_u = w_T - sum_i p_i delta_i + N(0, sigma^2),   sigma = d / sqrt 2 / (sqrt(log(1/beta) + eps) - sqrt(log(1/beta)))

Deviations: gradients are recorded updates over -eta, since clients make several steps; F's is their weighted mean; 1/n
is the targets' share of the round's examples, and several targets count as one. Rounds with nobody else have no
residual. d is a setting, because its published form (smoothness and Lipschitz constants of the loss) could not be read;
0, the default, adds no noise and claims nothing. The guarantee compares with a retrained model that got the same noise,
which the oracle here has not.

Limit: being a weighted mean over rounds, what is removed is one round's residual, a small part of the way between
original and oracle (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedforget.params import weighted_mean
from fedforget.strategy import Card, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class FedRecovery(UnlearningStrategy):
    """Remove the weighted gradient residuals; optionally add noise."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        distance: float = option(0.0, "bound on the distance; 0: no noise", symbol="d", at_least=0)
        epsilon: float = option(1.0, "indistinguishability", symbol="eps", above=0, needs={"distance": "above 0"})
        beta: float = option(
            1e-5, "its failure probability", symbol="beta", above=0, below=1, needs={"distance": "above 0"}
        )

    scopes = frozenset({"client"})

    card = Card(records="all", storage="updates", retained_online=False)  # all updates; nobody is contacted

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """``w_T - sum_i p_i delta_i``, and noise."""
        cfg, delta, squares = self.config, history.final * 0.0, 0.0
        for i in range(1, history.rounds + 1):
            n = history.weights(i)
            g = {k: history.update(i, k) * -1.0 for k in n}  # eta times the gradient
            decay = cohort.task.local.decay(i)
            square = (weighted_mean(g.values(), list(n.values())).norm() / decay) ** 2
            U, R = [k for k in n if k in request.clients], [k for k in n if k not in request.clients]
            if U and R:
                mean_U, mean_R = (weighted_mean([g[k] for k in group], [n[k] for k in group]) for group in (U, R))
                share = sum(n[k] for k in U) / sum(n.values())
                delta = delta + square * share * (mean_R - mean_U)
            squares += square
        w = history.final - delta / squares if squares > 0 else history.final
        if cfg.distance > 0:
            sigma = noise_scale(cfg.distance, cfg.epsilon, cfg.beta)
            noise = torch.randn(w.layout.size, generator=cohort.seeds.torch("fedrecovery"))
            w = w + Params(sigma * noise, w.layout)
            cohort.notes.append(
                f"noise of sigma={sigma:.3g} was added, and none to the oracle that it is compared with"
            )
        yield w


def noise_scale(d: float, epsilon: float, beta: float) -> float:
    """sigma, such that Gaussians at distance d are (epsilon, beta)-indistinguishable."""
    return d / math.sqrt(2) / (math.sqrt(math.log(1 / beta) + epsilon) - math.sqrt(math.log(1 / beta)))
