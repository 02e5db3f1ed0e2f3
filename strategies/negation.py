"""NoT: negate the weights of the first layer, then fine-tune on the retained data.

Paper: Khalil, Brunswic, Lamghari, Li, Beitollahi and Chen, "NoT: Federated Unlearning via Weight Negation", CVPR 2025,
arXiv 2503.05657.
Source: secondary; of the paper only the abstract was read.

It needs neither the forgotten data nor a history: no perturbation of equal norm changes a layer's outputs more than
negation does, and fine-tuning recovers only what the retained data teaches.

Symbols: theta_1 weights of the first layer; R rounds.

    theta_1 <- -theta_1,   then R FedAvg rounds on the retained data

Deviations: that the first layer is chosen and that its bias keeps its sign is from secondary sources. It is the first
parameter whose name ends in ``weight``. Of a model with one layer that is the whole classifier. The number of rounds is
this project's choice; the paper goes on until the model is as accurate as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedforget.strategy import Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class Negation(UnlearningStrategy):
    """Flip the signs of the first layer, and recover."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        rounds: int = option(5, "rounds on the retained data", symbol="R", at_least=0, search=(1, 10, "int"))

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """The server negates, then R ordinary rounds."""
        w = negated(history.final)
        yield w
        yield from self.learn(cohort, w, self.config.rounds, first_round=history.rounds + 1)


def negated(w: Params) -> Params:
    """``w`` with its first layer's weights negated."""
    w = Params(w.flat.clone(), w.layout)
    first = next(name for name in w.layout.names if name.endswith("weight"))
    w.layers()[first].neg_()
    return w
