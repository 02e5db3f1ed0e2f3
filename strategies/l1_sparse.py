"""L1-sparse fine-tuning: go on with the retained data under a penalty that empties unneeded weights.

Paper: Jia, Liu, Ram, Yao, Liu, Liu, Sharma and Liu, "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023,
arXiv 2304.04934.
Source: code; the paper was not read.

It never touches the forgotten data.

Symbols: w weights; D_r retained data; gamma_t weight of the penalty in round t = 0, ..., R - 1 of unlearning; R rounds.

    minimise  CE(w; D_r) + gamma_t ||w||_1,   gamma_t = gamma (1 - t / R) with decay, else gamma

Deviations: the linear decay of gamma is that of the released code (github.com/OPTML-Group/Unlearn-Sparse); its default
is recalled from memory, and R = 5 is half of the code's epochs. The code can keep its last epochs free of the penalty;
here none is. The federated form is this project's: clients apply the sub-gradient gamma sign(w) in each local step,
gamma is fixed within a round, and FedAvg aggregates. The sub-gradient at 0 is 0, and a mean of clients' models has few
exact zeros, so sparsity is one of magnitude.

Limit: the default forgets nothing in a model of 650 numbers; gamma = 0.01 and 20 rounds do (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedforget.strategy import Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class L1Sparse(UnlearningStrategy):
    """Fine-tuning with an L1 penalty."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        rounds: int = option(5, "rounds on the retained data", symbol="R", at_least=1)
        gamma: float = option(5e-4, "weight of the penalty", symbol="gamma", at_least=0, search=(5e-05, 0.005, "log"))
        decay: bool = option(True, "gamma falls linearly, towards 0")

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """R rounds of FedAvg on the penalised loss."""
        cfg, w, R = self.config, history.final, self.config.rounds
        for t in range(R):
            gamma = cfg.gamma * (1 - t / R if cfg.decay else 1)
            w = w + cohort.reduce(w, routine=sparse, round=history.rounds + 1 + t, gamma=gamma)
            yield w


def sparse(client: Client) -> None:
    """Minimise ``CE + gamma ||w||_1``."""
    for inputs, labels in client.batches():
        norm = sum(layer.abs().sum() for layer in client.parameters)
        client.step(client.loss(inputs, labels) + client.options["gamma"] * norm)
