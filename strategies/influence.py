"""Influence updates: take back the forgotten examples' gradient, as it is or through the inverse Hessian.

Paper: Warnecke, Pirch, Wressnegger and Rieck, "Machine Unlearning of Features and Labels", NDSS 2023, arXiv 2108.11577.
Source: paper.

Symbols: w global weights; Z the forgotten examples; G = -sum_{z in Z} grad l(z, w) (the paper's G, with no corrected
examples put in their place); H Hessian of the summed loss on the data without Z; tau step size; gamma damping.

    first order: w <- w - tau G        second order: w <- w - (H + n gamma I)^-1 G,  n the examples without Z

H^-1 G is found by conjugate gradient, by LiSSA (u <- G + u - H u / scale, result u / scale) or from H itself.

Deviations: removal only (the paper also corrects features and labels), of all weights, where its code corrects the last
six trainable tensors of its CIFAR-10 network. tau = 2e-5 is published for that network; LiSSA's scale 2e5, damp 1e-4,
batches of 1024 and up to a hundred passes there do not fit a mean Hessian over all data, so gamma, scale and the number
of products are this project's choice. Federated here: owners of Z send their gradient, all retained clients their share
of H (d^2 numbers, once) or a product with it every iteration (one round each), on all their data where the paper's
LiSSA draws batches. Every example's loss l includes its weight decay, because FedAvg's recipe knows no summed
regulariser. Scale and damping refer to the mean Hessian H / n; damp is gamma / scale. Answers are in float64 and held
one by one: with CG (3 + r) d numbers at the server, with H r (d + d^2), where 3 d and d^2 are usually counted.

Limit: the first order forgets nothing at the published tau; longer steps destroy what they touch, and ordinary rounds
undo them. The second order's default damping hides the flat directions in which single marks are stored; a hundredth of
it forgets some. Twenty products of LiSSA at scale 10 see no eigenvalue below 0.5 (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from fedforget.solvers import check_explicit, conjugate_gradient, damped_solve, lissa, shifted
from fedforget.strategy import Card, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class Influence(UnlearningStrategy):
    """First- and second-order influence updates."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        order: int = option(2, "1 or 2", choices=(1, 2))
        tau: float = option(
            2e-5,
            "step size of the first order",
            symbol="tau",
            above=0,
            search=(2e-06, 0.0002, "log"),
            needs={"order": (1,)},
        )
        solver: str = option("cg", "cg, lissa or explicit", choices=("cg", "lissa", "explicit"), needs={"order": (2,)})
        damping: float = option(
            0.01,
            "added to the mean Hessian",
            symbol="gamma",
            at_least=0,
            search=(0.001, 0.1, "log"),
            needs={"order": (2,)},
        )
        iterations: int = option(
            20, "most products (cg, lissa)", at_least=1, needs={"order": (2,), "solver": ("cg", "lissa")}
        )
        tolerance: float = option(
            1e-3,
            "relative residual that is enough (cg)",
            at_least=0,
            below=1,
            needs={"order": (2,), "solver": ("cg",)},
        )
        scale: float = option(
            10.0,
            "above the mean Hessian's eigenvalues",
            symbol="scale",
            above=0,
            needs={"order": (2,), "solver": ("lissa",)},
        )

    @property
    def card(self) -> Card:
        """The owners of the forgotten data send its gradient; the second order asks everyone for curvature."""
        return Card(target_online=True, retained_online=self.config.order == 2)

    def check(self, cohort: Cohort) -> None:
        """Clients that send Hessians need a small model."""
        if self.config.order == 2 and self.config.solver == "explicit":
            check_explicit("influence with solver=explicit", cohort.layout.size)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """One influence update."""
        cfg, decay = self.config, cohort.task.local.weight_decay
        w, t = history.final.double(), cohort.next_round
        g = cohort.gradient(w, split="forget") + decay * w
        G = -g * cohort.last_replies.examples
        if cfg.order == 1:
            yield (w - cfg.tau * G).float()
            return
        solutions: Iterable[Params]
        product = shifted(cohort.hvp, w, decay + cfg.damping)
        if cfg.solver == "explicit":
            _, H = cohort.hessian(w, round=t)  # part of the round that brought G: both are at w
            solutions = [damped_solve(H + decay * torch.eye(len(H)), G, cfg.damping)]
        elif cfg.solver == "cg":
            yield w.float()
            solutions = conjugate_gradient(product, G, cfg.iterations, cfg.tolerance, cohort.hold)
        else:
            yield w.float()
            solutions = lissa(product, G, cfg.iterations, cfg.scale, cohort.hold)
        x, changes = 0.0 * G, []
        for next_x in solutions:
            changes.append((next_x - x).norm())
            x, n = next_x, cohort.last_replies.examples  # those of the retained clients that sent curvature
            yield (w - x / n).float()  # the solvers use the mean Hessian, so n is divided out here
        if cfg.solver == "lissa" and changes[-1] > changes[0]:
            cohort.notes.append(
                f"LiSSA diverged: the damped Hessian has eigenvalues below 0 or above twice scale={cfg.scale:g}"
            )
