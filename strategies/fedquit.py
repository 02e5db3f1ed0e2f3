"""FedQUIT: the target distils the global model into itself, but for the true class, and the others go on.

Paper: Mora, Valerio, Bellavista and Passarella, "FedQUIT: On-Device Federated Unlearning via a Quasi-Competent Virtual
Teacher", 2024, arXiv 2408.07587 (v4); code github.com/alessiomora/FedQUIT.
Source: code.

Symbols: w_o the model to unlearn from, z(x) its logits; y the label of x; q the virtual teacher's output; p_w(x) the
student's; v the true class's new logit; E epochs at the forgetting clients; R rounds on the retained data afterwards.

    q(x) = softmax(z'(x)),   z'_y = v,   z'_c = z_c for the other classes
    v = min_c z_c (minimum)   |   v = sum_{c != y} s_c z_c, s the softmax of z over c != y (entropy: H(q) is greatest)
    minimise over the forgotten data   KL(q || p_w), from w_o

Deviations: the temperature is 1, the code's default. The code distils one epoch (E = 1) by Adam at 0.0001, a thousandth
of its clients' SGD rate 0.1 (CIFAR-10, ResNet-18), and recovers until utility is back; here the optimiser and learning
rate are the recipe's, and R is fixed (this project's choice). The updates of several forgetting clients are averaged;
samples and classes are this project's generalisation. An early version's claim, up to 117.6 times less communication
than retraining, is of rounds saved: here R + 1 against the original's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option

TRUE_CLASS = ("minimum", "entropy")


class FedQuit(UnlearningStrategy):
    """One round of distillation from a teacher that does not know the labels, then recovery."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        true_class: str = option(
            "minimum",
            "the teacher's logit of it: minimum or entropy",
            symbol="v",
            choices=TRUE_CLASS,
            search=TRUE_CLASS,
        )
        epochs: int = option(1, "epochs of distillation", symbol="E", at_least=1, search=(1, 10, "int"))
        rounds: int = option(5, "ordinary rounds afterwards", symbol="R", at_least=0)

    @property
    def card(self) -> Card:
        """The target distils; the others are needed for recovery alone."""
        return Card(target_online=True, retained_online=self.config.rounds > 0)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """One round at the forgetting clients, then R ordinary rounds."""
        cfg, w = self.config, history.final
        w = w + cohort.reduce(
            w, cohort.targets, routine=distil, split="forget", epochs=cfg.epochs, steps=0, true_class=cfg.true_class
        )
        yield w
        yield from self.learn(cohort, w, cfg.rounds, first_round=history.rounds + 1)


def quasi_competent(z: Tensor, labels: Tensor, true_class: str) -> Tensor:
    """q, the softmax of logits ``z [n, classes]`` whose entry at the label is v."""
    s = z.scatter(1, labels[:, None], -torch.inf).softmax(1)
    v = (s * z).sum(1) if true_class == "entropy" else z.amin(1)
    return z.scatter(1, labels[:, None], v[:, None]).softmax(1)


def distil(client: Client) -> None:
    """Learn q instead of the labels; the cross-entropy to q is KL(q || p_w) and a constant."""
    with torch.no_grad():
        z = torch.cat([client.model(inputs) for inputs in client.inputs.split(500)])
    client.labels = quasi_competent(z, client.labels, client.options["true_class"])
    for inputs, q in client.batches():
        client.step(client.loss(inputs, q))
