"""MoDe: drift towards a model that never saw the data, and learn its answers on that data.

Paper: Zhao, Wang, Qi, Huang, Wei and Zhang, "Federated Unlearning With Momentum Degradation", IEEE Internet of Things
Journal, 2023, doi 10.1109/jiot.2023.3321594.
Source: secondary; of the paper only the abstract was read.

Symbols: w global weights; w_de degradation model, untrained at first; lambda momentum; D_f forgotten, D_r retained
data; R_de rounds of degradation; R_g rounds of guidance, the first R_de of them after a step of degradation; R rounds
on the retained data afterwards.

    degradation: w_de takes an ordinary round on D_r, then w <- lambda w + (1 - lambda) w_de
    guidance:    an ordinary round from w on D_r with its labels and on D_f with argmax f_{w_de}(x) as labels

Deviations: the steps, lambda, R_de and R_g are those of a public reimplementation, in the code of Mora et al.
(arXiv:2504.05822). There w_de starts from fresh weights; here from those that the original started from, and it takes
the first rounds of the oracle, with its cohorts and its randomness. There the owners of D_f train at the recipe's rate
and the others at a 200th of it; here all do at the recipe's. R is this project's choice. w_de is sent to everyone in a
round of guidance, and only who forgets uses it.

Limit: six steps of 0.05 blend in a quarter of w_de, too little to forget a client of digits; lambda = 0.5 does more
(docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.func import functional_call

from fedforget import routines
from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class MomentumDegradation(UnlearningStrategy):
    """Blend with a model that learns without the forgotten data, while that one's labels replace the data's own."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        momentum: float = option(
            0.95,
            "share of the model that a step keeps",
            symbol="lambda",
            at_least=0,
            at_most=1,
            search=(0.5, 0.99, "linear"),
        )
        degradation_rounds: int = option(6, "steps of degradation", symbol="R_de", at_least=1)
        guidance_rounds: int = option(10, "rounds of guidance", symbol="R_g")
        rounds: int = option(5, "ordinary rounds afterwards", symbol="R", at_least=0)

        def __post_init__(self) -> None:
            if self.guidance_rounds < self.degradation_rounds:
                raise ValueError(
                    f"strategy.momentum_degradation.guidance_rounds is {self.guidance_rounds}, but must be at least "
                    f"degradation_rounds, {self.degradation_rounds}"
                )

    scopes = frozenset({"client", "class"})
    card = Card(target_online=True)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """R_de rounds of degradation and guidance, R_g - R_de of guidance alone, R ordinary rounds."""
        cfg, w, t = self.config, history.final, history.rounds
        for w_de in self.learn(cohort, history.initial, cfg.degradation_rounds):
            w = cfg.momentum * w + (1 - cfg.momentum) * w_de
            cohort.hold(w_de)
            yield w
            t += 1
            w = guided(cohort, w, w_de, t)
            yield w
        while t < history.rounds + cfg.guidance_rounds:
            t += 1
            w = guided(cohort, w, w_de, t)
            yield w
        cohort.hold()
        yield from self.learn(cohort, w, cfg.rounds, first_round=t + 1)


def guided(cohort: Cohort, w: Params, w_de: Params, t: int) -> Params:
    """The model after a round of guidance from ``w``."""
    asked = {*cohort.targets, *cohort.sample(t)}
    return w + cohort.reduce(w, asked, routine=guide, split="train", round=t, vectors={"w_de": w_de})


def guide(client: Client) -> None:
    """Ordinary local training, in which the forgotten examples carry the labels that w_de gives them."""
    if client.forgotten.any():
        w_de = {name: layer.to(client.inputs.device) for name, layer in client.vectors["w_de"].layers().items()}
        batches = client.inputs[client.forgotten].split(500)
        with torch.no_grad():
            told = torch.cat([functional_call(client.model, w_de, (inputs,)).argmax(1) for inputs in batches])
        client.examples += len(told)
        client.labels = client.labels.masked_scatter(client.forgotten, told)  # shared labels are never written to
    routines.train(client)
