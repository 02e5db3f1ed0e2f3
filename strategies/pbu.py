"""Partially-blinded unlearning: raise the loss on the forgotten data, and hold the parameters that it did not shape.

Paper: Panda, Sourav and Prathosh, "Partially Blinded Unlearning: Class Unlearning for Deep Networks from Bayesian
Perspective", AAAI 2025, arXiv 2403.16246; settings from the authors' code, github.com/Shash12-ship/pbu.
Source: paper.

Symbols: w_o the model to unlearn from; F Fisher diagonal of the forgotten data D_f at w_o; a, b, c weights of the three
terms; R rounds of E epochs at the forgetting clients.

    minimise  -a CE(D_f) + b sum_i F_i (w_i - w_o,i)^2 + c ||w - w_o||^2

Deviations: the federated form is this project's: F is pooled over the forgetting clients in one round; each then works
on its own forgotten data, and the updates are averaged. F is the empirical Fisher diagonal, of the examples' own
labels; the authors' code takes the labels from the model. a, b and c are those of one published class (MNIST's 6). The
published values belong to one or two epochs over some 6,000 images (94 steps each) at eta = 1e-4; a client forgets
fewer, so eta is ten times that here and epochs are 5.

Limit: made for whole classes; more of it destroys the other classes, and so does forgetting data that is not of one
class: on a client of digits nothing is forgotten, and utility is lost once the well is soft (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedforget.routines import drift
from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class PartiallyBlinded(UnlearningStrategy):
    """Ascend on the forgotten data within a stiff well around the original."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        ascent: float = option(721.0, "weight of the ascent", symbol="a", at_least=0, search=(72.0, 7200.0, "log"))
        stability: float = option(90.0, "weight of the Fisher term", symbol="b", at_least=0)
        distance: float = option(4001.0, "weight of the distance term", symbol="c", at_least=0)
        rounds: int = option(1, "forgetting rounds", symbol="R", at_least=1)
        epochs: int = option(5, "epochs in each of them", symbol="E", at_least=1)
        lr: float = option(1e-3, "learning rate of Adam", symbol="eta", above=0, search=(0.0001, 0.01, "log"))
        batch_size: int = option(64, "examples a step", symbol="B", at_least=1)

    card = Card(target_online=True, retained_online=False)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """One round for F, then R forgetting rounds."""
        cfg = self.config
        w = w_o = history.final
        F = cohort.fisher(w_o, split="forget")
        yield w
        hold = Params(cfg.stability * F.flat + cfg.distance, F.layout)  # b F_i + c, the stiffness of the well
        for _ in range(cfg.rounds):
            w = w + cohort.reduce(
                w,
                cohort.targets,
                routine=blind,
                split="forget",
                vectors={"w_o": w_o, "hold": hold},
                ascent=cfg.ascent,
                optimizer="adam",
                lr=cfg.lr,
                lr_decay=1.0,
                weight_decay=0.0,
                epochs=cfg.epochs,
                steps=0,
                batch_size=cfg.batch_size,
            )
            yield w


def blind(client: Client) -> None:
    """Minimise the three terms by mini-batch steps."""
    for inputs, labels in client.batches():
        well = drift(client, client.vectors["w_o"], client.vectors["hold"])
        client.step(well - client.options["ascent"] * client.loss(inputs, labels))
