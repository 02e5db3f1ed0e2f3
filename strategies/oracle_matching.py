"""Oracle matching: fine-tune the original until its outputs are those of a true retrain. An upper bound, not a method.

Paper: Georgiev, Rinberg, Park, Garg, Ilyas, Madry and Neel, "Attribute-to-Delete: Machine Unlearning via Datamodel
Matching", ICLR 2025, arXiv 2410.23232.
Source: abstract only.

Datamodel matching (datamodel_matching.py) predicts the retrained model's outputs h; here they are the retrained model's
own, so what is left of the error is the matching's.

Symbols: w_o original; w_g retrained model; f_w(x) logits; h(x) = f_{w_g}(x); R rounds of matching.

    minimise mean over x in D_f and D_r of || f_w(x) - h(x) ||^2, from w = w_o

Deviations: the retrain is made inside and billed, so this costs more than the oracle. Forgotten and retained examples
are mixed in their natural proportion; that, rounds, learning rate and the mean over classes are this project's choice,
because the paper's details could not be read. Retained examples are those of the round's cohort. All else of the recipe
(optimiser, weight decay) is the learning's.

Limit: ten rounds do not converge on a client of digits, 80 do (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedforget.routines import match
from fedforget.strategy import Card, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class OracleMatching(UnlearningStrategy):
    """Retrain, then move the original towards what the retrained model answers."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        rounds: int = option(10, "rounds of matching", symbol="R", at_least=1)
        lr: float = option(0.1, "learning rate of the matching", symbol="eta", above=0, search=(0.001, 1.0, "log"))

    card = Card(target_online=True)  # forgotten points are matched too

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """T rounds of retraining, in which the model does not change, then R rounds of matching."""
        cfg, w = self.config, history.final
        for w_g in self.learn(cohort, history.initial, history.rounds):  # noqa: B007 (the last one counts)
            yield w
        for t in range(history.rounds + 1, history.rounds + 1 + cfg.rounds):
            w = w + cohort.reduce(
                w,
                {*cohort.sample(t), *cohort.targets},
                routine=match,
                split="train",
                vectors={"h": w_g},
                h=1.0,
                lr=cfg.lr,
                lr_decay=1.0,
            )
            yield w
