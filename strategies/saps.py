"""Sharpness-aware parameter selection: a first-order step on the parameters of largest curvature only.

Paper: Malekmohammadi, Lee and Xiong, "Sharpness-aware Parameter Selection for Machine Unlearning", 2025, arXiv
2504.06398. The step is that of Warnecke, Pirch, Wressnegger and Rieck, "Machine Unlearning of Features and Labels",
NDSS 2023, arXiv 2108.11577, with nothing put in the place of what is removed.
Source: abstract only.

Symbols: w_o the model to unlearn from; H Hessian of the mean loss on the retained data at w_o; v_j random sign vectors,
j = 1..P; S the share q of coordinates with the largest diag(H); G = - sum over the forgotten data of the loss gradients
at w_o; tau rate.

    diag(H) = mean_j v_j * (H v_j)   (Hutchinson), or the Fisher diagonal
    w[S] = w_o[S] - tau G[S],   the others as they are

Deviations: estimators, q, tau and that H is of the retained data are this project's choice. It corrects features and
labels; here data is removed. S travels as d numbers 0 or 1, and what comes back is billed as q d numbers and a bitmap
of their places. A second-order step on S is left out.

Limit: one first-order step is too short to forget a client of digits, and where it is long enough utility is lost
(docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedforget.params import Layout
from fedforget.routines import gradient
from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class SharpnessAware(UnlearningStrategy):
    """One gradient step on the sharpest coordinates."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        share: float = option(
            0.1, "share of coordinates that move", symbol="q", above=0, at_most=1, search=(0.01, 1.0, "log")
        )
        rate: float = option(
            0.001, "step length for each forgotten example", symbol="tau", above=0, search=(0.0001, 0.01, "log")
        )
        curvature: str = option("fisher", "hutchinson or fisher", symbol="diag(H)", choices=("hutchinson", "fisher"))
        probes: int = option(
            10, "random vectors of hutchinson", symbol="P", at_least=1, needs={"curvature": ("hutchinson",)}
        )

    card = Card(target_online=True)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """Rounds for the diagonal (one, or P), then one for G."""
        cfg, w_o = self.config, history.final
        if cfg.curvature == "fisher":
            H = cohort.fisher(w_o)
            yield w_o
        else:
            H = w_o * 0.0
            cohort.hold(H)
            for j in range(cfg.probes):
                v = sign_vector(w_o.layout, cohort.seeds.torch("saps", j))
                H = H + Params(v.flat * cohort.hvp(w_o, v).flat, v.layout) / cfg.probes
                yield w_o
            cohort.hold()
        S = sharpest(H, cfg.share)
        mean = cohort.reduce(w_o, cohort.targets, routine=selected, split="forget", vectors={"S": S})
        G = -cohort.last_replies.examples * mean
        yield w_o - cfg.rate * G


def sign_vector(layout: Layout, generator: torch.Generator) -> Params:
    """Entries -1 or 1, each with probability one half (Rademacher)."""
    return Params(2.0 * torch.randint(0, 2, (layout.size,), generator=generator) - 1.0, layout)


def sharpest(H: Params, q: float) -> Params:
    """1 on the ``max(1, round(q d))`` coordinates with the largest ``H``, and 0 elsewhere."""
    count = max(1, round(q * H.layout.size))
    S = H.flat.argsort(descending=True, stable=True)[:count]
    return Params(torch.zeros_like(H.flat).index_fill(0, S, 1.0), H.layout)


def selected(client: Client) -> Params:
    """The gradient over the split on S, and zero elsewhere."""
    g = gradient(client)
    client.sparse = True
    return Params(g.flat * client.vectors["S"].flat.to(g.flat), g.layout)
