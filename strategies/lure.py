"""LURE: re-initialise the weights that the retained data needs least, then relearn.

Paper: Ramkumar, Arani and Zonooz, "Learn, Unlearn and Relearn: An Online Learning Paradigm for Deep Neural Networks",
TMLR 2023, arXiv 2303.10455; code github.com/NeurAI-Lab/LURE.
Source: code.

There it is no deletion method: the step precedes each new chunk of data. Here it is the start of fine-tuning on what is
retained.

Symbols: s_i saliency (SNIP) of weight w_i, g_b the gradient on mini-batch b; rho share of the weights that starts anew;
beta share of a client's batches that is looked at; R rounds of relearning.

    s_i = |w_i| * sum_b |g_b,i|;   of all weights, the share rho with the lowest s_i is drawn anew (Kaiming uniform)

Deviations: the federated form is this project's: each retained client sends the mean of |g_b| over its batches, and the
server weighs by n_k and marks. Biases are neither marked nor counted in the share. The weights of norms count, and
start again at 1. rho and beta are the code's; R is this project's choice.

Limit: a fifth of the weights is too few to forget one client's marks on digits; 0.95 and ten rounds do
(docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedforget.routines import fresh
from fedforget.strategy import Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class Lure(UnlearningStrategy):
    """Renew the least salient weights, and relearn."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        share: float = option(
            0.2, "share of the weights that is renewed", symbol="rho", above=0, at_most=1, search=(0.05, 0.8, "linear")
        )
        batches: float = option(1 / 32, "share of the batches looked at", symbol="beta", above=0, at_most=1)
        rounds: int = option(5, "rounds of relearning", symbol="R", at_least=0)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """One round for the saliency, then R ordinary rounds from the renewed model."""
        cfg, w = self.config, history.final
        saliency = cohort.reduce(w, cohort.retained, routine=salience, epochs=1, steps=0, effort=cfg.batches)
        s = Params(w.flat.abs() * saliency.flat, w.layout)
        w = renew(w, s, cfg.share, fresh(w.layout, cohort.seeds.torch("lure")))
        yield w
        yield from self.learn(cohort, w, cfg.rounds, first_round=history.rounds + 1)


def renew(w: Params, s: Params, rho: float, new: Params) -> Params:
    """``w`` with those ``round(rho m)`` of its m weights that have the lowest ``s`` taken from ``new``."""
    layers = zip(w.layout.names, w.layout.sizes, strict=True)
    weights = torch.cat([torch.full((size,), not name.endswith("bias")) for name, size in layers]).nonzero().squeeze(1)
    lowest = weights[s.flat[weights].argsort(stable=True)[: round(rho * len(weights))]]
    return Params(w.flat.index_copy(0, lowest, new.flat[lowest]), w.layout)


def salience(client: Client) -> Params:
    """The mean of ``|g_b|`` over the batches b."""
    total = [torch.zeros_like(parameter) for parameter in client.parameters]
    for inputs, labels in client.batches():
        for sum_, g in zip(total, torch.autograd.grad(client.loss(inputs, labels), client.parameters), strict=True):
            sum_ += g.abs()
        client.steps += 1
    return client.vector(sum_ / client.steps for sum_ in total)
