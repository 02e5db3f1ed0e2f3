"""Amnesiac unlearning at the client: take back the steps whose batches held what is forgotten.

Paper: Graves, Nagisetty and Ganesh, "Amnesiac Machine Learning", AAAI 2021, arXiv 2010.10981.
Source: paper.

While it learns, the client keeps what the steps on its sensitive batches change; when it must forget, it sends their
sum, and the server takes that back. Of a client that leaves, every batch is sensitive: the sum is all it ever sent, and
this is `amnesiac` without a record of updates at the server.

Symbols: w global weights; SB_c^t batches of client c in round t that hold examples to be forgotten; Delta_sb what the
step on such a batch changed; N_t examples of round t's cohort, n_c of client c; p_c^t = n_c / N_t; R repair rounds.

    w <- w - sum_c n_c sum_t 1/N_t sum_{sb in SB_c^t} Delta_sb

Cost: one upload of d by each client that forgets, and no training. The client keeps one d-vector for each round that it
took part in and each request, on its own disk; the server keeps nothing but the numbers n_c.

Deviations: the paper keeps every sensitive batch's update, here those of a round are added up at once, because which
data may be asked for is known while learning (the run's requests); where two requests are in one batch, its step is the
earlier one's. The server sends the model and T numbers 1/N_t with the request, the model for nothing. It learns by
FedAvg, in rounds of its own, with each client by itself: the same numbers as the shared trajectory's where that trains
clients one by one, and else the same up to rounding.

Limit: where nearly every batch holds forgotten examples, what is taken back is nearly everything (see `amnesiac`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedforget import routines
from fedforget.params import Layout
from fedforget.routines import Shelf
from fedforget.strategy import (
    Card,
    Client,
    Cohort,
    History,
    Params,
    Recording,
    UnlearningRequest,
    UnlearningStrategy,
    option,
)


class AmnesiacClient(UnlearningStrategy):
    """Take back the sensitive steps that clients kept, then repair."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        repair_rounds: int = option(0, "ordinary rounds afterwards", symbol="R", at_least=0)

    @property
    def card(self) -> Card:
        """Those who forget send what they kept; others are asked for repair alone."""
        return Card(target_online=True, retained_online=self.config.repair_rounds > 0, client_records=True)

    def check(self, cohort: Cohort) -> None:
        """What is taken back was weighted as FedAvg weights."""
        if self.learning.learner != "fedavg":
            raise ValueError(f"amnesiac_client learns by fedavg; learning.learner is {self.learning.learner!r}")

    def learn(
        self,
        cohort: Cohort,
        initial: Params,
        rounds: int,
        first_round: int = 1,
        recording: Recording | None = None,
    ) -> Iterator[Params]:
        """FedAvg in which clients keep their sensitive steps; unrecorded rounds are ordinary ones."""
        if recording is None:
            return super().learn(cohort, initial, rounds, first_round)

        def step(w: Params, t: int) -> Params:
            cohort.reduce(w, routine=train_and_keep, round=t)
            return cohort.last_replies.added_to(w)

        return self.rounds(cohort, initial, rounds, first_round, recording, step)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """Each target's kept sum, weighted as its updates were; then R ordinary rounds."""
        w, first = history.final, cohort.next_round
        n = {t: history.weights(t) for t in range(1, history.rounds + 1)}
        for c in cohort.targets:
            rounds = [t for t in n if c in n[t]]
            if rounds:
                kept = cohort.train(
                    history.final,
                    [c],
                    routine=sum_kept,
                    split="forget",
                    round=first,
                    number=len(cohort.removed),
                    rounds=rounds,
                    shares=[1 / history.examples(t) for t in rounds],
                )
                w = w - n[rounds[0]][c] * kept.by_client()[c]
        yield w
        yield from self.learn(cohort, w, self.config.repair_rounds, first_round=history.rounds + 1)


def train_and_keep(client: Client) -> None:
    """`fedforget.routines.train`, after which what its sensitive steps changed lies on the client's shelf."""
    shelf = kept_by(client)
    for number, total in sensitive_steps(client).items():
        shelf.put(f"{number}-{client.round}", total.flat)


def sensitive_steps(client: Client) -> dict[int, Params]:
    """Ordinary local training; returns the sum of its sensitive steps, by the number of the request."""
    planned = client.planned[client.planned >= 0].unique().tolist()
    totals = {number: [torch.zeros_like(p) for p in client.parameters] for number in planned}
    for batch in client.batch_indices():
        named = client.planned[batch]
        sensitive = bool((named >= 0).any())
        before = [parameter.detach().clone() for parameter in client.parameters] if sensitive else []
        logits = client.logits(client.inputs[batch])
        client.step(routines.sd_loss(logits, client.labels[batch], client.local.sd_gamma))
        if sensitive:
            change = torch._foreach_sub([parameter.detach() for parameter in client.parameters], before)
            torch._foreach_add_(totals[int(named[named >= 0].min())], change)
    return {number: client.vector(total) for number, total in totals.items()}


def kept_by(client: Client) -> Shelf:
    """The client's own records, which the card asks for."""
    assert client.shelf is not None, "the card says client_records"
    return client.shelf


def sum_kept(client: Client) -> Params:
    """What the client kept for the request ``number``: each round's sum, times that round's share."""
    shelf, number = kept_by(client), client.options["number"]
    shares = zip(client.options["rounds"], client.options["shares"], strict=True)
    kept = [share * shelf.get(f"{number}-{t}") for t, share in shares]
    return Params(sum(kept[1:], kept[0]), Layout.of(client.model))
