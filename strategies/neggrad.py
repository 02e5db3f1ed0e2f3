"""NegGrad: descend the loss on the retained data and ascend it on the forgotten data.

Paper: Golatkar, Achille and Soatto, "Eternal Sunshine of the Spotless Net", CVPR 2020, arXiv 1911.04933, with the
weighting of Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, arXiv 2302.09880 (there NegGrad+).
Source: secondary; the papers were not read.

Symbols: w global weights; D_f, D_r forgotten and retained data; beta weight of the retained data; R rounds.

    minimise  beta CE(w; D_r) - (1 - beta) CE(w; D_f)

Deviations: the weighting and its default are recalled from memory. The federated form is this project's: forgetting
clients send the update of the negated loss, others their usual one, and the server adds the two means, which for one
full-batch step of SGD is a step on the pooled objective. The weight 1 - beta scales the learning rate of the ascent,
not its update: ascent with full steps diverges within a round, and a weight on the loss would mean nothing to Adam. All
else of the recipe is the learning's.

Limit: of what five rounds take from a client of digits, five ordinary rounds bring almost all back; more of it costs
accuracy (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class NegGrad(UnlearningStrategy):
    """Fine-tuning with gradient ascent on what must be forgotten."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        rounds: int = option(5, "aggregations", symbol="R", at_least=1)
        beta: float = option(
            0.95, "weight of the retained data", symbol="beta", above=0, at_most=1, search=(0.8, 0.99, "linear")
        )

    card = Card(target_online=True)  # forgetting clients ascend on the forgotten data

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """``w <- w + beta mean_k D_k + mean_c A_c``: descent on retained, weighted ascent on forgotten data."""
        cfg, w, beta = self.config, history.final, self.config.beta
        for t in range(history.rounds + 1, history.rounds + 1 + cfg.rounds):
            D = cohort.reduce(w, round=t)
            A = cohort.reduce(w, cohort.targets, routine=ascend, split="forget", round=t, weight=1 - beta)
            w = w + beta * D + A
            yield w


def ascend(client: Client) -> None:
    """Minimise the negated cross-entropy, with a share ``weight`` of the learning rate."""
    client.local = replace(client.local, lr=client.options["weight"] * client.local.lr)
    for inputs, labels in client.batches():
        client.step(-client.loss(inputs, labels))
