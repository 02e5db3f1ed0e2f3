"""Fine-tuning on the retained data: FedAvg goes on without the forgotten data.

The usual cheap baseline ("naive retraining" of Graves, Nagisetty and Ganesh, "Amnesiac Machine Learning", AAAI 2021,
arXiv 2010.10981).

Symbols: R rounds.

Deviations: none; no number of rounds is published for a federation, and R = 5 is a quarter of the default training.

Limit: in the interpolating regime it cannot forget. Ding et al. (arXiv 2410.03833) show for linear models that the
fine-tuned model equals the original (simulations/linear_lab.py); and of one client's marks on digits 40 rounds, as many
as a retrain, leave as much as there was (calibrated canary AUC 0.91 before and after; docs/results.md, 2026-11-24).
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
