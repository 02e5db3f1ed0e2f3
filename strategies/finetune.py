"""Fine-tuning on the retained data: FedAvg goes on without the forgotten data.

Paper: Graves, Nagisetty and Ganesh, "Amnesiac Machine Learning", AAAI 2021, arXiv 2010.10981, where it is called "naive
retraining": the usual cheap baseline.
Source: paper.

Symbols: R rounds.

Deviations: none; no number of rounds is published for a federation, and R = 5 is a quarter of the default training.

Limit: in the interpolating regime it cannot forget. Ding et al. (arXiv 2410.03833) show for linear models that the
fine-tuned model equals the original (simulations/linear_lab.py); and of one client's marks on digits as many rounds as
a retrain has leave as much as there was (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedforget.strategy import Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class FineTune(UnlearningStrategy):
    """Some more ordinary rounds, on retained data only."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        rounds: int = option(5, "rounds on the retained data", symbol="R", at_least=1, search=(1, 10, "int"))

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """R ordinary rounds from the model to unlearn."""
        yield from self.learn(cohort, history.final, self.config.rounds, first_round=history.rounds + 1)
