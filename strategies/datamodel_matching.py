"""Datamodel matching (DMM) over clients: predict what a retrain would answer, and fine-tune the original to answer it.

Paper: Georgiev, Rinberg, Park, Garg, Ilyas, Madry and Neel, "Attribute-to-Delete: Machine Unlearning via Datamodel
Matching", ICLR 2025, arXiv 2410.23232.
Source: abstract only.

A datamodel is linear in who takes part, f_S(x) ~ f_{w_o}(x) - sum_{k not in S} beta_k(x), and its beta come from models
that were trained without some of the data.

Symbols: w_o original; K clients, U those that leave; S_m the clients of training m, A_mk = 1 if k is not in S_m; L
clients left out of each; P passes, in each of which every client is left out once; lambda ridge; R rounds of matching.

    beta = -(A^T A + lambda I)^-1 A^T (f_{S_m} - f_{w_o})_m
    h(x) = f_{w_o}(x) - sum_{c in U} beta_c(x) = f_{w_o}(x) + sum_m g_m (f_{S_m}(x) - f_{w_o}(x))
    minimise mean over x in D_f and D_r of || f_w(x) - h(x) ||^2, from w = w_o

Deviations: the granularity is a client, this project's choice, because beta per example needs thousands of trainings;
and the trainings, about P K / L times T rounds with the leaving client among them, are made inside and billed, while a
server that foresees requests would make them once for all. They are FedAvg, whatever the learner. L = 1 would train the
oracle itself. The server sends the models and g, and clients form h, so no output leaves a client. Matching is that of
`oracle_matching`, and the defaults are this project's choice. Where L does not divide K the last block of a pass is
shorter: if it is the leaving client alone, that training is a retrain without it.

Limit: ten rounds of matching have not converged on digits, 40 have (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedforget.routines import match
from fedforget.strategy import Card, Cohort, History, Params, Seeds, UnlearningRequest, UnlearningStrategy, option


class DatamodelMatching(UnlearningStrategy):
    """Train without some clients several times, predict the retrain's outputs, match them."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        left_out: int = option(2, "clients left out of a training", symbol="L", at_least=2)
        passes: int = option(3, "times each client is left out", symbol="P", at_least=1)
        ridge: float = option(0.1, "ridge of the regression", symbol="lambda", above=0, search=(0.01, 1.0, "log"))
        rounds: int = option(10, "rounds of matching", symbol="R", at_least=1)
        lr: float = option(0.1, "learning rate of the matching", symbol="eta", above=0, search=(0.001, 1.0, "log"))

    scopes = frozenset({"client"})

    card = Card(target_online=True)  # the leaving client takes part in trainings, and its points are matched

    def check(self, cohort: Cohort) -> None:
        """Some clients must stay in each training."""
        K = len(cohort.federation.clients)
        if self.config.left_out >= K:
            raise ValueError(f"datamodel_matching.left_out={self.config.left_out} must be below the {K} clients")

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """T rounds a training, in which the model does not change, then R rounds of matching."""
        cfg, clients = self.config, sorted({*cohort.retained, *cohort.targets})
        A, w = left_out(clients, cfg.left_out, cfg.passes, cohort.seeds), history.final
        trained = {}
        for m, row in enumerate(A):
            trained[f"f{m}"] = history.initial
            for t in range(1, history.rounds + 1):
                S = [k for k, out in zip(clients, row, strict=True) if not out and k in history.cohort(t)]
                if S:
                    trained[f"f{m}"] = trained[f"f{m}"] + cohort.reduce(trained[f"f{m}"], S, split="train", round=t)
                    yield w
        g = coefficients(A, [clients.index(c) for c in cohort.targets], cfg.ridge)
        mixture: dict[str, Any] = {"original": 1 - sum(g), **dict(zip(trained, g, strict=True))}
        for t in range(history.rounds + 1, history.rounds + 1 + cfg.rounds):
            w = w + cohort.reduce(
                w,
                {*cohort.sample(t), *cohort.targets},
                routine=match,
                split="train",
                round=t,
                vectors={"original": history.final, **trained},
                lr=cfg.lr,
                lr_decay=1.0,
                **mixture,
            )
            yield w


def left_out(clients: Sequence[int], L: int, passes: int, seeds: Seeds) -> Tensor:
    """``A [M, K]``: each pass cuts a random order of the clients into blocks of ``L``, and each is left out once."""
    orders = [torch.from_numpy(seeds.numpy("datamodel", number).permutation(len(clients))) for number in range(passes)]
    blocks = [block for order in orders for block in order.split(L)]
    return torch.stack([torch.zeros(len(clients), dtype=torch.float64).index_fill(0, block, 1.0) for block in blocks])


def coefficients(A: Tensor, places: Sequence[int], ridge: float) -> list[float]:
    """``g_m``: the rows ``places`` of ``(A^T A + lambda I)^-1 A^T``, summed."""
    attribution = torch.linalg.solve(A.T @ A + ridge * torch.eye(A.shape[1], dtype=A.dtype), A.T)
    return attribution[places].sum(0).tolist()
