"""Unlearning by distillation: subtract the target's updates, and let the old model teach what that broke.

Paper: Wu, Zhu and Mitra, "Federated Unlearning with Knowledge Distillation", 2022, arXiv 2201.09441.
Source: abstract only.

Symbols: w global weights, w_o the model to unlearn from; D_u^t update of client u in round t; p_u^t its share n_u /
sum_k n_k of the round's cohort; T rounds; p_w^tau softmax of the logits over the temperature tau; alpha share of the
hard labels; R rounds of distillation.

    w <- w_o - sum_t p_u^t D_u^t                                                        then R times, from w:
    minimise  (1 - alpha) tau^2 KL(p_{w_o}^tau || p_w^tau) + alpha CE(p_w, y)

A teacher that still knows the target passes on little of it, because what is taught is answers to other data: a
backdoor is not in them.

Deviations: the server of the paper distils on unlabelled data of its own; here there is none, so the retained clients
distil on their data, and the server averages (one round each, w and w_o down, d up). Its weights 1/N are shares here.
The server keeps one running sum for each client, as in the paper. tau, R and alpha = 0 are this project's choice,
because the paper's own were not read; all else of the recipe is the learning's. With a learner other than FedAvg the
subtracted sum is what FedAvg would have added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedforget.routines import divergence
from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class Distillation(UnlearningStrategy):
    """Roll back the target's updates, then distil the original into what is left."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        rounds: int = option(5, "rounds of distillation", symbol="R", at_least=1, search=(1, 20, "int"))
        temperature: float = option(3.0, "softens both outputs", symbol="tau", above=0, search=(1.0, 10.0, "log"))
        hard: float = option(0.0, "share of the labels' cross-entropy", symbol="alpha", at_least=0, at_most=1)

    scopes = frozenset({"client"})
    card = Card(records="targets", storage="sums")

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """``w_o - sum_t p_u^t D_u^t``, then R rounds of distillation."""
        cfg = self.config
        w = w_o = history.final
        for t in range(1, history.rounds + 1):
            n = history.weights(t)
            for u in request.clients:
                if u in n:
                    w = w - n[u] / history.examples(t) * history.update(t, u)
        yield w
        for t in range(history.rounds + 1, history.rounds + 1 + cfg.rounds):
            w = w + cohort.reduce(
                w, routine=distil, round=t, vectors={"teacher": w_o}, T=cfg.temperature, hard=cfg.hard
            )
            yield w


def distil(client: Client) -> None:
    """Local training on the teacher's softened answers, and on the labels to a share alpha."""
    alpha = client.options["hard"]
    for inputs, labels in client.batches():
        loss = (1 - alpha) * divergence(client, inputs)
        client.step(loss + alpha * client.loss(inputs, labels) if alpha else loss)
