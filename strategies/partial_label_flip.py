"""Partial label-flipping: train on random wrong labels, but change only a part of each layer at every step.

Paper: Gogineni and Nadimi, "Efficient Knowledge Deletion from Trained Models Through Layer-wise Partial Machine
Unlearning", JMLR 2025, arXiv 2403.07611 ("Layer-wise Partial-Updates Label-Flipping"). With p = 1 it is unlearning by
random labels (Graves et al., arXiv 2010.10981), to the bit.
Source: abstract only; the paper itself could not be read, only its abstract and summaries.

Symbols: w_l layer l of the weights; eta learning rate; S_l 0/1 mask of density p; D_f forgotten, D_r retained data; U
rounds; R repair rounds.

    w_l <- w_l - eta S_l (.) grad_l [ CE(D_f, wrong labels) + CE(D_r) ]

Deviations: masks and objective are choices of this project around the paper's title: either the entries of largest
|grad CE(D_f)| at the model sent, fixed for the round, or a block that cycles through the layer. D_f and D_r are mixed
in one batch, so each counts by its examples. A client without forgotten data masks by its own. With another optimiser
than SGD the mask lies on the step, not the gradient. Updates are billed by their non-zero entries and a bitmap of their
places: p d + d/32 numbers up under a fixed mask, where p d is what is usually counted, and up to d under a rotating
one, whose blocks add up in a round.

Limit: two rounds in a tenth of each layer change too little to forget a client of digits; ten rounds in all of it do
more (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedforget import routines
from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class PartialLabelFlip(UnlearningStrategy):
    """Train part of the model on wrong labels, then repair."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        density: float = option(
            0.1, "share of each layer that a step changes", symbol="p", above=0, at_most=1, search=(0.01, 1.0, "log")
        )
        mask: str = option("top", "top gradients or a rotating block", symbol="S", choices=routines.MASKS)
        rounds: int = option(2, "rounds with wrong labels", symbol="U", at_least=1)
        retained: bool = option(True, "train on retained data as well", symbol="D_r")
        repair_rounds: int = option(0, "ordinary rounds afterwards", symbol="R", at_least=0)

    @property
    def card(self) -> Card:
        """Who forgets must be there with that data."""
        return Card(target_online=True, retained_online=self.config.retained or self.config.repair_rounds > 0)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """U rounds of partial steps on wrong labels, then R ordinary ones."""
        cfg, w = self.config, history.final
        for t in range(history.rounds + 1, history.rounds + 1 + cfg.rounds):
            w = w + cohort.reduce(
                w,
                {*cohort.targets, *cohort.sample(t)} if cfg.retained else cohort.targets,
                routine=flip_part,
                split="train" if cfg.retained else "forget",
                density=cfg.density,
                mask=cfg.mask,
            )
            yield w
        yield from self.learn(cohort, w, cfg.repair_rounds, first_round=cohort.next_round)


def flip_part(client: Client) -> None:
    """Local training in which the forgotten examples carry wrong labels and each step changes what its masks allow."""
    labels = torch.where(client.forgotten, routines.wrong_labels(client), client.labels)
    for batch, masks in zip(client.batch_indices(), routines.layer_masks(client), strict=False):  # masks never end
        routines.masked_step(client, client.loss(client.inputs[batch], labels[batch]), masks)
