"""Single-gradient unlearning: undo the first-order effect of the forgotten data, seen from the initial weights.

Paper: Thudi, Deza, Chandrasekaran and Papernot, "Unrolling SGD: Understanding Factors Influencing Machine Unlearning",
EuroS&P 2022, arXiv 2109.13398.
Source: paper.

Expanding SGD around w_0, every step on the forgotten data moved the model by about -eta grad(w_0), so that is added
back. Its error grows with eta, with the number of steps and with the Hessian's largest singular value; beyond small eta
E T it is worse than doing nothing. The true error is the audit's `weights/verification_error`; its proxy e is estimated
on request.

Symbols: w_0 initial weights; g_c mean gradient of the forgotten data of client c at w_0; f_c how many examples that is;
n_k examples of client k; p_c = f_c / sum_k n_k over the cohort of round t; E local steps; eta_t learning rate; T
rounds.

    plain:          w_u = w_T + sum_t sum_c p_c E eta_t g_c
    renormalised:   w_u = w_0 + sum_t (w_t - w_{t-1} + sum_c p_c E eta_t g_c) / (1 - sum_c p_c)
    unlearning error:   e = eta^2 (||w_T - w_0|| / t) sigma (t^2 - t) / 2,  t steps, sigma largest singular value of H

Deviations: the federated form is this project's. A client's E steps a round stand for the uses of a batch, and the
round's weights for the batch's share; the gradient is asked for in one round from its owner, where a server that
foresees the request would store it (K d numbers, and no round). Momentum and weight decay of the recipe are not in the
expansion. ``renormalise`` is this project's: FedAvg gives the weight of who leaves to the others, which the paper's
SGD, where a batch just goes missing, does not. It begins at w_0 again, so in a sequence what earlier requests took back
returns. With a learner other than FedAvg, what is added back is what FedAvg would have taken. For e the paper averages
sigma over training; here it is that of the retained clients' mean cross-entropy at w_T, by power iteration (a round a
product), t counts the steps of the owner with most of them, and eta is that of round 1. The released code
(github.com/cleverhans-lab/unrolling-sgd) takes the root of the largest eigenvalue for sigma, of the loss with its SD
term, which does not fit the formula.

Limit: it helps while steps are few and short, and of a whole client only if renormalised; the SD loss lowers e only
while its weight is small (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedforget.routines import LocalConfig, gradient
from fedforget.strategy import Card, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class Unrolling(UnlearningStrategy):
    """Add back the forgotten data's gradients at the initial weights."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        renormalise: bool = option(False, "the others take over the weight")
        products: int = option(0, "Hessian products to note e; 0: it is not", at_least=0)

    @property
    def card(self) -> Card:
        """One gradient from the owner of the data; the global models only to renormalise each round."""
        records = "globals" if self.config.renormalise else "nothing"
        return Card(records=records, target_online=True, retained_online=self.config.products > 0)

    def check(self, cohort: Cohort) -> None:
        """The recipe must be SGD."""
        if cohort.task.local.optimizer != "sgd":
            raise ValueError(f"unrolling expands SGD; local.optimizer={cohort.task.local.optimizer!r} must be 'sgd'")

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """One round, at the initial weights, after those that estimate e."""
        yield from self.note_error(history, cohort)
        cfg, local, w_0 = self.config, cohort.task.local, history.initial
        cohort.hold(w_0)
        replies = cohort.train(w_0, cohort.targets, routine=gradient, split="forget")
        w = w_0 if cfg.renormalise else history.final
        for t in range(1, history.rounds + 1):
            n, p_all, added = history.weights(t), 0.0, w_0 * 0.0
            for reply in replies:
                c = reply.client
                if c in n:
                    p = reply.num_examples / history.examples(t)
                    E = steps(local, n[c])
                    eta = local.lr * local.decay(t)
                    p_all, added = p_all + p, added + p * E * eta * reply.update
            if not cfg.renormalise:
                w = w + added
            elif p_all < 1:  # a round of forgotten data alone taught nothing that stays
                w = w + (history.model(t) - history.model(t - 1) + added) / (1 - p_all)
        yield w

    def note_error(self, history: History, cohort: Cohort) -> Iterator[Params]:
        """Note the unlearning error of the model as it is."""
        if not self.config.products:
            return
        w = history.final
        start = torch.randn(w.layout.size, generator=cohort.seeds.torch("unrolling"))
        v = Params(start / start.norm(), w.layout)
        for _ in range(self.config.products):
            Hv = cohort.hvp(w, v)
            sigma = Hv.norm()
            v = Hv / sigma if sigma > 0 else v
            yield w
        rounds = [history.weights(t) for t in range(1, history.rounds + 1)]
        t = max(sum(steps(cohort.task.local, n[c]) for n in rounds if c in n) for c in cohort.targets)
        e = cohort.task.local.lr**2 * (w - history.initial).norm() * sigma * max(t - 1, 0) / 2
        cohort.notes.append(f"unlearning error {e:.3g} (sigma={sigma:.3g}, t={t})")


def steps(local: LocalConfig, n: int) -> int:
    """E, the local steps a round of a client with ``n`` examples."""
    return local.steps or local.epochs * math.ceil(n / local.batch_size)
