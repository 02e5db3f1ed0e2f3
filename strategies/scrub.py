"""SCRUB: a student moves away from the original model on the forgotten data and stays with it on the rest.

Paper: Kurmanji, Triantafillou, Hayes and Triantafillou, "Towards Unbounded Machine Unlearning", NeurIPS 2023, arXiv
2302.09880; code github.com/RoyRin/data-unlearning-bench; studied against width by Alon and Dar, "How Does
Overparameterization Affect Machine Unlearning of Deep Neural Networks?", arXiv 2503.08633.
Source: code; the paper itself was not read.

Symbols: w student; w_o teacher, the original; p_w^T softmax of the logits over T; D_f, D_r forgotten and retained data.

    max-step, epochs 1 to msteps:  minimise  -T^2 KL(p_wo^T || p_w^T)                       on D_f
    min-step, every epoch:         minimise  gamma CE + alpha T^2 KL(p_wo^T || p_w^T)       on D_r

Deviations: the federated form is this project's: the two steps of an epoch start from the same global model and end in
one FedAvg aggregation, in which a client that forgets one part of its data and keeps another contributes the sum of its
updates. The rate drops after (not at) the named epochs, as in the helper that released code takes it from. An epoch is
one round of the learning's recipe in all but its rate: optimiser, batch size (published: 32 and 64) and local epochs
are its own. The public code's optimiser holds the teacher, so that its student never moves; here the student is what
moves. In epoch 1 student and teacher are equal, so its max-step is zero. The server holds the answers one by one, not
one sum of d numbers, because who forgets a part answers twice.

Limit: the published rates, ever smaller, end before a client of digits is forgotten; with a rate that stays at 0.3 what
is forgotten swings back within five ordinary rounds (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fedforget.params import weighted_mean
from fedforget.routines import divergence
from fedforget.strategy import (
    Card,
    Client,
    Cohort,
    History,
    Params,
    Reply,
    UnlearningRequest,
    UnlearningStrategy,
    option,
)


class Scrub(UnlearningStrategy):
    """Ascend the divergence from the teacher on what must be forgotten, and keep to it on the rest."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        rounds: int = option(10, "epochs, each one aggregation", symbol="R", at_least=1)
        max_rounds: int = option(5, "the first so many have a max-step", symbol="msteps", at_least=0)
        gamma: float = option(0.99, "weight of the cross-entropy", symbol="gamma", at_least=0)
        alpha: float = option(
            0.1, "weight of the divergence on D_r", symbol="alpha", at_least=0, search=(0.01, 1.0, "log")
        )
        temperature: float = option(4.0, "softens both outputs", symbol="T", above=0)
        lr: float = option(0.005, "learning rate in epoch 1", symbol="eta", above=0, search=(0.0005, 0.05, "log"))
        lr_drops: tuple[int, ...] = option(
            (3, 5, 9), "after each of these epochs the learning rate is divided by 10", at_least=1
        )

        def __post_init__(self) -> None:
            if self.max_rounds > self.rounds:
                raise ValueError(
                    f"strategy.scrub.max_rounds is {self.max_rounds}, but must be at most rounds, {self.rounds}"
                )

    card = Card(target_online=True)  # forgetting clients take the max-step, retained ones the min-step

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """R epochs of max- and min-step with the original as teacher."""
        cfg = self.config
        w = w_o = history.final
        for e in range(1, cfg.rounds + 1):
            eta = cfg.lr * 0.1 ** sum(e > drop for drop in cfg.lr_drops)
            ask: dict[str, Any] = {"round": history.rounds + e, "vectors": {"teacher": w_o}, "T": cfg.temperature}
            ask |= {"lr": eta, "lr_decay": 1.0}
            steps: list[Reply] = []
            if e <= cfg.max_rounds:
                steps += cohort.train(w, cohort.targets, routine=max_step, split="forget", **ask)
            steps += cohort.train(w, routine=min_step, gamma=cfg.gamma, alpha=cfg.alpha, **ask)
            D, n = dict[int, Params](), dict[int, int]()
            for reply in steps:
                k = reply.client
                D[k] = D[k] + reply.update if k in D else reply.update
                n[k] = n.get(k, 0) + reply.num_examples
            w = w + weighted_mean(D.values(), list(n.values()))
            yield w


def max_step(client: Client) -> None:
    """Minimise ``-T^2 KL(p_wo^T || p_w^T)``."""
    for inputs, _ in client.batches():
        client.step(-divergence(client, inputs))


def min_step(client: Client) -> None:
    """Minimise ``gamma CE + alpha T^2 KL(p_wo^T || p_w^T)``."""
    gamma, alpha = client.options["gamma"], client.options["alpha"]
    for inputs, labels in client.batches():
        client.step(gamma * client.loss(inputs, labels) + alpha * divergence(client, inputs))
