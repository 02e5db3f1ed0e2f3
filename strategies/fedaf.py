"""FedAF: forget actively, by learning what untrained teachers say of the data.

Paper: Li, Chen, Zheng and Zhang, "Federated Unlearning via Active Forgetting", 2023, arXiv 2307.03363 (v1; v2 is by Li,
Zhang, Liu and Chen, "Class-wise Federated Unlearning: Harnessing Active Forgetting with Teacher-Student Memory
Generation").
Source: abstract only.

Symbols: w_o the model to unlearn from; f_m, m = 1..M, teachers of the same architecture with fresh random weights, made
at each client from one shared seed; tau their temperature; z new memory of an example; F Fisher diagonal of the
retained data at w_o, q the quantile at which it is clipped; lambda strength of the penalty; R_u rounds of E epochs at
the forgetting clients; R_ft recovery rounds.

    z(x) = mean_m softmax(f_m(x) / tau)
    minimise over the forgotten data   KL(z || p_w) + lambda/2 sum_i F_i (w_i - w_o,i)^2

Deviations: the formulas are this project's choice. The "refined" elastic weight consolidation of the paper is unknown:
here F is clipped at its q-quantile and divided by its mean, each of which can be switched off, and lambda F_i is capped
at 1/eta (eta the learning rate), because gradient steps on a stiffer penalty diverge. Labels are soft, or soft without
the forgotten example's own class (``excluded``), or the teachers' most likely class (``hard``). F comes from all
retained clients in one round. Forgetting clients train on forgotten data alone, without a cross-entropy term on what
they retain, for R_u rounds, without a stop at chance accuracy. All defaults are this project's choice.

Limit: made for whole classes. Of one client's marks among ordinary examples it forgets nothing in two rounds without
recovery, and a fifth with ten of each (docs/results.md).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedforget.routines import drift, fresh
from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class FedAF(UnlearningStrategy):
    """Overwrite old memories by those of random teachers, and hold the parameters that others need."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        teachers: int = option(10, "random teachers", symbol="M", at_least=1)
        temperature: float = option(1.0, "of the teachers", symbol="tau", above=0, search=(0.3, 3.0, "log"))
        labels: str = option("soft", "soft, excluded or hard", symbol="z", choices=("soft", "excluded", "hard"))
        penalty: float = option(1.0, "strength of the penalty", symbol="lambda", at_least=0, search=(0.1, 10.0, "log"))
        clip: float = option(
            0.99,
            "F is clipped at this quantile; 1: not",
            symbol="q",
            above=0,
            at_most=1,
            needs={"penalty": "above 0"},
        )
        divide: bool = option(True, "divide F by its mean", symbol="F", needs={"penalty": "above 0"})
        rounds: int = option(2, "forgetting rounds", symbol="R_u", at_least=1)
        epochs: int = option(1, "epochs in each of them", symbol="E", at_least=1)
        recovery_rounds: int = option(0, "ordinary rounds afterwards", symbol="R_ft", at_least=0)

    card = Card(target_online=True)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """One round for F, R_u forgetting rounds, R_ft ordinary rounds."""
        cfg = self.config
        w = w_o = history.final
        F = refine(cohort.fisher(w_o), cfg.clip, cfg.divide)
        if not F.norm() > 0:
            cohort.notes.append(f"F is zero (clip={cfg.clip:g}), so nothing holds what the retained data needs")
        yield w
        for _ in range(cfg.rounds):
            w = w + cohort.reduce(
                w,
                cohort.targets,
                routine=overwrite,
                split="forget",
                vectors={"w_o": w_o, "F": F},
                teachers=cfg.teachers,
                temperature=cfg.temperature,
                labels=cfg.labels,
                penalty=cfg.penalty,
                seed=cohort.seeds.integer("fedaf"),
                epochs=cfg.epochs,
                steps=0,
            )
            yield w
        yield from self.learn(cohort, w, cfg.recovery_rounds, first_round=history.rounds + 1)


def refine(F: Params, q: float, divide: bool) -> Params:
    """F clipped at its q-quantile (the ``ceil(q d)``-th smallest entry), then divided by its mean if that is not 0."""
    flat = F.flat
    if q < 1:
        flat = flat.clamp(max=flat.kthvalue(math.ceil(q * len(flat))).values)
    mean = flat.mean()
    return Params(flat / mean if divide and mean > 0 else flat, F.layout)


@torch.no_grad()
def new_memories(client: Client) -> Tensor:
    """z for every example of the split, ``[n, classes]``."""
    generator = torch.Generator().manual_seed(client.options["seed"])
    teacher, layout = copy.deepcopy(client.model), Params.from_module(client.model).layout
    total: Tensor | float = 0.0
    for _ in range(client.options["teachers"]):
        fresh(layout, generator).copy_to(teacher)
        logits = torch.cat([teacher(inputs) for inputs in client.inputs.split(500)])
        total = total + (logits / client.options["temperature"]).softmax(1)
    assert isinstance(total, Tensor), "there is at least one teacher"
    z = total / client.options["teachers"]
    if client.options["labels"] == "excluded":
        z = z.scatter(1, client.labels[:, None], 0.0)
        z = z / z.sum(1, keepdim=True)
    elif client.options["labels"] == "hard":
        z = torch.nn.functional.one_hot(z.argmax(1), z.shape[1]).to(z.dtype)
    return z


def overwrite(client: Client) -> None:
    """Learn z instead of the labels; the cross-entropy to z is KL(z || p_w) and a constant."""
    client.labels = new_memories(client)
    F, w_o = client.vectors["F"], client.vectors["w_o"]
    hold = Params((client.options["penalty"] * F.flat).clamp(max=1 / client.lr), F.layout)
    for inputs, z in client.batches():
        client.step(client.loss(inputs, z) + drift(client, w_o, hold) / 2)
