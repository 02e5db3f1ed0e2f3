"""Partial gradient ascent: raise the loss on the forgotten data, changing only a part of each layer at every step.

Gogineni and Nadimi, "Efficient Knowledge Deletion from Trained Models Through Layer-wise Partial Machine Unlearning",
JMLR 2025, arXiv 2403.07611 ("Layer-wise Partial-Updates Optimisation-based Unlearning").

Symbols: w_l layer l of the weights, w_o the model to unlearn from; eta learning rate; S_l 0/1 mask of density p; D_f
forgotten, D_r retained data; mu weight of what restrains the ascent; U rounds; R repair rounds.

    w_l <- w_l - eta S_l (.) grad_l J,   J = -CE(D_f) + mu CE(D_r)   (restraint: data)
                                    or   J = -CE(D_f) + mu ||w - w_o||^2   (restraint: origin, where D_r is away)

Deviations: the paper itself could not be read, only its abstract and summaries; masks and objective are choices of this
project around its title ([SPEC]): either the entries of largest |grad CE(D_f)| at the model sent, fixed for the round,
or a block that cycles through the layer. The two means of J are taken over the parts of one mixed batch; a batch
without one of them has that term 0. A client without forgotten data descends on mu CE(D_r) and masks by its own
gradient. With another optimiser than SGD the mask lies on the step, not the gradient. Updates are billed by their
non-zero entries and a bitmap of their places: p d + d/32 numbers up under a fixed mask, where p d is what is usually
counted, and up to d under a rotating one, whose blocks add up in a round (2026-11-28).

Limit: ascent forgets little before it destroys. On a client of digits the default leaves all there is; with eta = 0.1
utility falls to 0.37, and five ordinary rounds bring 0.93 of the canaries' signal back (docs/results.md, 2026-11-24).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedforget import routines
from fedforget.exchange import Card
from fedforget.strategy import UnlearningStrategy


class PartialAscent(UnlearningStrategy):
    """Ascend with part of the model, then repair."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        density: float = field(
            default=0.1,
            metadata={"help": "share of each layer that a step changes", "symbol": "p", "search": (0.01, 1.0, "log")},
        )
        mask: str = field(default="top", metadata={"help": "top gradients or a rotating block", "symbol": "S"})
        restraint: str = field(default="data", metadata={"help": "data (retained) or origin (distance)", "symbol": ""})
        mu: float = field(
            default=1.0, metadata={"help": "weight of the restraint", "symbol": "mu", "search": (0.1, 10.0, "log")}
        )
        lr: float = field(
            default=0.01,
            metadata={"help": "learning rate of the ascent", "symbol": "eta", "search": (0.001, 0.1, "log")},
        )
        rounds: int = field(default=2, metadata={"help": "rounds of ascent", "symbol": "U"})
        repair_rounds: int = field(default=0, metadata={"help": "ordinary rounds afterwards", "symbol": "R"})

        def __post_init__(self):
            if not 0 < self.density <= 1:
                raise ValueError(f"partial_ascent.density={self.density} must lie in (0, 1]")
            if self.mask not in routines.MASKS:
                raise ValueError(f"partial_ascent.mask={self.mask!r} must be one of {', '.join(routines.MASKS)}")
            if self.restraint not in ("data", "origin"):
                raise ValueError(f"partial_ascent.restraint={self.restraint!r} must be one of data, origin")
            if not self.mu >= 0:
                raise ValueError(f"partial_ascent.mu={self.mu} must not be negative")
            if not self.lr > 0:
                raise ValueError(f"partial_ascent.lr={self.lr} must be positive")
            if self.rounds < 1:
                raise ValueError(f"partial_ascent.rounds={self.rounds} must be at least 1")
            if self.repair_rounds < 0:
                raise ValueError(f"partial_ascent.repair_rounds={self.repair_rounds} must not be negative")

    @property
    def card(self):
        """Who forgets must be there with that data."""
        needs_retained = self.config.restraint == "data" or self.config.repair_rounds > 0
        return Card(target_online=True, retained_online=needs_retained)

    def unlearn(self, request, history, cohort):
        """U rounds of partial ascent, then R ordinary ones."""
        w = w_o = history.final
        options = {"density": self.config.density, "mask": self.config.mask, "mu": self.config.mu}
        options |= {"lr": self.config.lr, "lr_decay": 1.0}
        for t in range(history.rounds + 1, history.rounds + 1 + self.config.rounds):
            if self.config.restraint == "data":
                asked, split, vectors = {*cohort.targets, *cohort.sample(t)}, "train", {}
            else:
                asked, split, vectors = cohort.targets, "forget", {"w_o": w_o}
            routine = "strategies.partial_ascent:ascend_part"
            w = w + cohort.reduce(w, asked, routine=routine, split=split, vectors=vectors, **options)
            yield w
        yield from self.learn(cohort, w, self.config.repair_rounds, first_round=cohort.next_round)


def ascend_part(client: routines.Client) -> None:
    """Local steps down J, of which each changes what its masks allow."""
    for batch, masks in zip(client.batch_indices(), routines.layer_masks(client), strict=False):  # masks never end
        routines.masked_step(client, objective(client, batch), masks)


def objective(client: routines.Client, batch: Tensor) -> Tensor:
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
