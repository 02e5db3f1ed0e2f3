"""Partial gradient ascent: raise the loss on the forgotten data, changing only a part of each layer at every step.

Paper: Gogineni and Nadimi, "Efficient Knowledge Deletion from Trained Models Through Layer-wise Partial Machine
Unlearning", JMLR 2025, arXiv 2403.07611 ("Layer-wise Partial-Updates Optimisation-based Unlearning").
Source: abstract only; the paper itself could not be read, only its abstract and summaries.

Symbols: w_l layer l of the weights, w_o the model to unlearn from; eta learning rate; S_l 0/1 mask of density p; D_f
forgotten, D_r retained data; mu weight of what restrains the ascent; U rounds; R repair rounds.

    w_l <- w_l - eta S_l (.) grad_l J,   J = -CE(D_f) + mu CE(D_r)   (restraint: data)
                                    or   J = -CE(D_f) + mu ||w - w_o||^2   (restraint: origin, where D_r is away)

Deviations: masks and objective are choices of this project around the paper's title: either the entries of largest
|grad CE(D_f)| at the model sent, fixed for the round, or a block that cycles through the layer. The two means of J are
taken over the parts of one mixed batch; a batch without one of them has that term 0. A client without forgotten data
descends on mu CE(D_r) and masks by its own gradient. With another optimiser than SGD the mask lies on the step, not the
gradient. Updates are billed by their non-zero entries and a bitmap of their places: p d + d/32 numbers up under a fixed
mask, where p d is what is usually counted, and up to d under a rotating one, whose blocks add up in a round.

Limit: ascent forgets little before it destroys. On a client of digits the default leaves all there is; longer steps
cost most of the utility, and ordinary rounds bring the canaries' signal back (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedforget import routines
from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class PartialAscent(UnlearningStrategy):
    """Ascend with part of the model, then repair."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        density: float = option(
            0.1, "share of each layer that a step changes", symbol="p", above=0, at_most=1, search=(0.01, 1.0, "log")
        )
        mask: str = option("top", "top gradients or a rotating block", symbol="S", choices=routines.MASKS)
        restraint: str = option("data", "data (retained) or origin (distance)", choices=("data", "origin"))
        mu: float = option(1.0, "weight of the restraint", symbol="mu", at_least=0, search=(0.1, 10.0, "log"))
        lr: float = option(0.01, "learning rate of the ascent", symbol="eta", above=0, search=(0.001, 0.1, "log"))
        rounds: int = option(2, "rounds of ascent", symbol="U", at_least=1)
        repair_rounds: int = option(0, "ordinary rounds afterwards", symbol="R", at_least=0)

    @property
    def card(self) -> Card:
        """Who forgets must be there with that data."""
        needs_retained = self.config.restraint == "data" or self.config.repair_rounds > 0
        return Card(target_online=True, retained_online=needs_retained)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """U rounds of partial ascent, then R ordinary ones."""
        cfg = self.config
        w = w_o = history.final
        for t in range(history.rounds + 1, history.rounds + 1 + cfg.rounds):
            by_data = cfg.restraint == "data"
            w = w + cohort.reduce(
                w,
                {*cohort.targets, *cohort.sample(t)} if by_data else cohort.targets,
                routine=ascend_part,
                split="train" if by_data else "forget",
                vectors={} if by_data else {"w_o": w_o},
                density=cfg.density,
                mask=cfg.mask,
                mu=cfg.mu,
                lr=cfg.lr,
                lr_decay=1.0,
            )
            yield w
        yield from self.learn(cohort, w, cfg.repair_rounds, first_round=cohort.next_round)


def ascend_part(client: Client) -> None:
    """Local steps down J, of which each changes what its masks allow."""
    for batch, masks in zip(client.batch_indices(), routines.layer_masks(client), strict=False):  # masks never end
        routines.masked_step(client, objective(client, batch), masks)


def objective(client: Client, batch: Tensor) -> Tensor:
    """J on a batch of positions."""
    mu, forgotten = float(client.options["mu"]), client.forgotten[batch]
    D_f, D_r = batch[forgotten], batch[~forgotten]
    terms = []
    if len(D_f):
        terms.append(-client.loss(client.inputs[D_f], client.labels[D_f]))
    if len(D_r):
        terms.append(mu * client.loss(client.inputs[D_r], client.labels[D_r]))
    if "w_o" in client.vectors:
        pairs = zip(client.parameters, client.vectors["w_o"].layers().values(), strict=True)
        terms += [mu * (w - w_o.to(w.device)).square().sum() for w, w_o in pairs]
    return torch.stack(terms).sum()
