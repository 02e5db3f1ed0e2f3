"""Amnesiac unlearning at the client: take back the steps whose batches held what is forgotten.

Graves, Nagisetty and Ganesh, "Amnesiac Machine Learning", AAAI 2021, arXiv 2010.10981. The client keeps the updates of
its sensitive batches; when it must forget, it sends what they added to its models, and the server takes that back. Of
a client that leaves, every batch is sensitive: the sum is all it ever sent, and this is `amnesiac` without a record of
updates at the server.

Symbols: w global weights; SB_c^t batches of client c in round t that hold forgotten examples; Delta_sb what the step on
such a batch changed; p_c^t the client's share n_c / sum_k n_k of the round's cohort; T rounds; R repair rounds.

    w <- w - sum_t p_c^t sum_{sb in SB_c^t} Delta_sb

The client's storage in the paper is one d-vector for every sensitive batch, or one in all if it is known beforehand
what may be forgotten; it sends one d-vector, in no extra round.

Deviations: the steps are recomputed, not recorded: in each of its rounds the client trains again from that round's
global model with the same random stream. The bill is that of recomputing: the global models stored at the server, and
one exchange (d down, d up, the client's steps) for each round in which a target took part; with kept records it would
be one upload of d. Steps are equal to the original's (to rounding, where it was trained in groups) where FedAvg learned
in float32 and nothing was removed before; FedProx's proximal term is left out, and after an earlier request the batches
are those without its data. Retained clients are contacted only for repair, though a target that keeps other data counts
as one.

Limit: where nearly every batch holds forgotten examples, what is taken back is nearly everything (see `amnesiac`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fedforget import routines
from fedforget.exchange import Card
from fedforget.params import Params
from fedforget.strategy import UnlearningStrategy


class AmnesiacClient(UnlearningStrategy):
    """Take back the sensitive steps, then repair."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        repair_rounds: int = field(default=0, metadata={"help": "ordinary rounds afterwards", "symbol": "R"})

        def __post_init__(self):
            if self.repair_rounds < 0:
                raise ValueError(f"amnesiac_client.repair_rounds={self.repair_rounds} must not be negative")

    @property
    def card(self):
        """Those who forget repeat their rounds from the recorded global models."""
        return Card(records="globals", target_online=True)

    def unlearn(self, request, history, cohort):
        """Each round's sensitive steps, weighted as the round's updates were; then R ordinary rounds."""
        w = history.final
        for t in range(1, history.rounds + 1):
            n = history.weights(t)
            targets = [c for c in cohort.targets if c in n]
            if targets:
                routine = "strategies.amnesiac_client:sensitive_steps"
                Delta = cohort.train(history.model(t - 1), targets, routine=routine, split="train", round=t).by_client()
                for c in Delta:
                    w = w - n[c] / sum(n.values()) * Delta[c]
            yield w
        yield from self.learn(cohort, w, self.config.repair_rounds, first_round=history.rounds + 1)


def sensitive_steps(client: routines.Client) -> Params:
    """The sum of what the steps on batches with forgotten examples change, in an ordinary local training."""
    total = [torch.zeros_like(parameter) for parameter in client.parameters]
    for batch in client.batch_indices():
        before = [parameter.detach().clone() for parameter in client.parameters]
        logits = client.logits(client.inputs[batch])
        client.step(routines.sd_loss(logits, client.labels[batch], client.local.sd_gamma))
        if client.forgotten[batch].any():
            change = torch._foreach_sub([parameter.detach() for parameter in client.parameters], before)
            torch._foreach_add_(total, change)
    return client.vector(total)
