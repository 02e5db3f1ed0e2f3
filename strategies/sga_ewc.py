"""SGA with EWC: the target ascends the loss on its data, and is held back where the retained data needs the weights.

Paper: Wu, Guo, Wang, Hong, Zhang and Ding, "Federated Unlearning: Guarantee the Right of Clients to Forget", IEEE
Network 36(5), 129-135, 2022. The elastic penalty is that of Kirkpatrick et al., PNAS 114(13), 2017.
Source: secondary; the paper was not read, only a description of it.

Symbols: w_o the model to unlearn from; F Fisher diagonal of the retained data at w_o; lambda strength of the penalty;
eta learning rate; R_u rounds of E epochs at the forgetting clients; R rounds on the retained data afterwards.

    ascend   CE(w; D_f) - lambda/2 sum_i F_i (w_i - w_o,i)^2

Deviations: as printed in that description the penalty has a plus, and ascent would run away from w_o; the sign here is
that of a penalty. That F is of the retained data, pooled in one round, is this project's choice, and so are the
defaults. A class is forgotten in the same way; in the paper the server ascends on test data of its own, without a
penalty. lambda F_i is capped at 1/eta, because gradient steps on a stiffer penalty diverge. The paper's own caution:
ascent destroys what classes share (a class at 61.5 % where retraining keeps 94.4 %).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedforget.routines import drift
from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class ElasticAscent(UnlearningStrategy):
    """Ascend at the target under an elastic penalty, and recover."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        penalty: float = option(1.0, "strength of the penalty", symbol="lambda", at_least=0, search=(0.1, 100.0, "log"))
        lr: float = option(0.01, "learning rate of the ascent", symbol="eta", above=0, search=(0.001, 0.1, "log"))
        unlearning_rounds: int = option(2, "rounds of ascent", symbol="R_u", at_least=1)
        epochs: int = option(1, "epochs in each of them", symbol="E", at_least=1)
        rounds: int = option(5, "ordinary rounds afterwards", symbol="R", at_least=0)

    card = Card(target_online=True)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """One round for F, R_u rounds of ascent, R ordinary rounds."""
        cfg = self.config
        w = w_o = history.final
        F = cohort.fisher(w_o)
        if not F.norm() > 0:
            cohort.notes.append("F is zero, so nothing holds what the retained data needs")
        yield w
        hold = Params((cfg.penalty / 2 * F.flat).clamp(max=1 / (2 * cfg.lr)), F.layout)
        for _ in range(cfg.unlearning_rounds):
            w = w + cohort.reduce(
                w,
                cohort.targets,
                routine=ascend,
                split="forget",
                vectors={"w_o": w_o, "hold": hold},
                optimizer="sgd",
                lr=cfg.lr,
                lr_decay=1.0,
                momentum=0.0,
                weight_decay=0.0,
                epochs=cfg.epochs,
                steps=0,
            )
            yield w
        yield from self.learn(cohort, w, cfg.rounds, first_round=history.rounds + 1)


def ascend(client: Client) -> None:
    """Raise the loss by mini-batch steps, less the penalty."""
    for inputs, labels in client.batches():
        client.step(drift(client, client.vectors["w_o"], client.vectors["hold"]) - client.loss(inputs, labels))
