"""Unlearning by random wrong labels: those who forget train on labels that are not their own.

Paper: Graves, Nagisetty and Ganesh, "Amnesiac Machine Learning", AAAI 2021, arXiv 2010.10981.
Source: paper.

There it is called "unlearning": the data to forget is relabelled at random and training goes on with the whole modified
data set for a few epochs. The federated form is a few ordinary FedAvg rounds in which the forgotten examples carry
wrong labels.

Symbols: w global weights; D_f forgotten, D_r retained data; U rounds with wrong labels; R repair rounds.

Deviations: the wrong labels are drawn anew in each round, which stands for the paper's copies of an example with
several wrong labels; in its class-wise form an example keeps its one wrong label. Without retained data (``retained:
false``, this project's form) clients train on D_f alone. Who forgets takes part in every round, the others as sampled.
The recipe is the learning's; the paper's is Adam at 0.001, and "a few epochs" are two rounds here.

Limit: two rounds are too few to forget a client of digits, twenty do more (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedforget import routines
from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class RandomLabel(UnlearningStrategy):
    """Train on wrong labels, then repair."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        rounds: int = option(2, "rounds with wrong labels", symbol="U", at_least=1, search=(1, 5, "int"))
        retained: bool = option(True, "train on retained data as well", symbol="D_r")
        repair_rounds: int = option(0, "ordinary rounds afterwards", symbol="R", at_least=0)

    @property
    def card(self) -> Card:
        """Who forgets must be there with that data."""
        return Card(target_online=True, retained_online=self.config.retained or self.config.repair_rounds > 0)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """U rounds of FedAvg with wrong labels, then R ordinary ones."""
        cfg, w = self.config, history.final
        for t in range(history.rounds + 1, history.rounds + 1 + cfg.rounds):
            w = w + cohort.reduce(
                w,
                {*cohort.targets, *cohort.sample(t)} if cfg.retained else cohort.targets,
                routine=train_on_wrong_labels,
                split="train" if cfg.retained else "forget",
            )
            yield w
        yield from self.learn(cohort, w, cfg.repair_rounds, first_round=cohort.next_round)


def train_on_wrong_labels(client: Client) -> None:
    """Ordinary local training, with wrong labels on what the client must forget."""
    client.labels = torch.where(client.forgotten, routines.wrong_labels(client), client.labels)
    routines.train(client)
