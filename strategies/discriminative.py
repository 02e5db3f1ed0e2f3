"""Fine-tuning with a discriminative regulariser: a term on the forgotten data that its labels no longer fit.

Paper: Ding, Sharma, Chen, Xu and Ji, "Why Fine-Tuning Struggles with Forgetting in Machine Unlearning? Theoretical
Insights and a Remedial Approach", 2024, arXiv 2410.03833 (v1; later versions have another title and another remedy,
`retention_mask`).
Source: abstract only.

Symbols: w global weights; D_f, D_r forgotten and retained data; U the uniform distribution over the C classes; p_w(x)
the model's probabilities; y the label, y' another one at random; alpha weight of the regulariser; R rounds.

    L = CE(w; D_r) + alpha Rg(w; D_f),   Rg = KL(U || p_w(x))  |  CE(p_w(x), y')  |  1 / CE(p_w(x), y)
                                              uniform             wrong              inverse

Deviations: the paper's regulariser could not be read; the three forms are this project's choice. The federated form is
this project's: forgetting clients minimise Rg, others the cross-entropy, and the server adds the two means, which for
one full-batch step of SGD is a step on the pooled loss (1 / CE being a mean over clients). The weight alpha scales the
learning rate on Rg, not the loss, where it would mean nothing to Adam. Wrong labels are drawn anew for each batch. All
defaults are this project's choice.

Limit: in the linear case RL stays and UL rises to the golden one where features are distinct, only on average where
they overlap, and `inverse` has no minimum (simulations/linear_lab.py). On digits the default has too few rounds for its
weight (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option

FORMS = ("uniform", "wrong", "inverse")


class Discriminative(UnlearningStrategy):
    """Fine-tuning that also unlearns the labels of the forgotten data."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        form: str = option("uniform", "uniform, wrong or inverse", symbol="Rg", choices=FORMS, search=FORMS)
        alpha: float = option(0.1, "weight of the regulariser", symbol="alpha", at_least=0, search=(0.01, 1.0, "log"))
        rounds: int = option(5, "aggregations", symbol="R", at_least=1)

    card = Card(target_online=True)  # forgetting clients minimise the regulariser on the forgotten data

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """``w <- w + mean_k D_k + mean_c G_c``: the retained clients' updates and those of the regulariser."""
        cfg, w = self.config, history.final
        for t in range(history.rounds + 1, history.rounds + 1 + cfg.rounds):
            D = cohort.reduce(w, round=t)
            G = cohort.reduce(
                w, cohort.targets, routine=regularise, split="forget", round=t, form=cfg.form, weight=cfg.alpha
            )
            w = w + D + G
            yield w


def regularise(client: Client) -> None:
    """Minimise Rg, with a share ``weight`` of the learning rate."""
    client.local = replace(client.local, lr=client.options["weight"] * client.local.lr)
    for step, (inputs, labels) in enumerate(client.batches()):
        client.step(REGULARISERS[client.options["form"]](client, inputs, labels, step))


def uniform(client: Client, inputs: Tensor, labels: Tensor, step: int) -> Tensor:
    """``KL(U || p) = -log C - mean_j log p_j``, in nats."""
    log_p = client.model(inputs).log_softmax(1)
    return -(log_p.mean(1) + torch.tensor(float(log_p.shape[1])).log()).mean()


def wrong(client: Client, inputs: Tensor, labels: Tensor, step: int) -> Tensor:
    """``CE(p, y')`` with y' uniform over the classes other than y."""
    C = client.model(inputs[:1]).shape[1]
    shift = torch.randint(1, C, labels.shape, generator=client.seeds.torch("wrong", step))
    return client.loss(inputs, (labels + shift.to(labels.device)) % C)


def inverse(client: Client, inputs: Tensor, labels: Tensor, step: int) -> Tensor:
    """``1 / CE(p, y)`` of a batch: large where the model still knows the labels."""
    return 1 / client.loss(inputs, labels)


REGULARISERS = {"uniform": uniform, "wrong": wrong, "inverse": inverse}
