"""FedOSD: unlearn orthogonally to the retained gradients, then train on without turning back.

Paper: Pan, Wang, Li, Zheng, Wang, Tang and Zhao, "Federated Unlearning with Gradient Descent and Conflict Mitigation",
AAAI 2025, arXiv 2412.20200; code github.com/zibinpan/FedOSD.
Source: code.

Symbols: w_T the model to unlearn; g_k gradient of retained client k, the rows of G; g_u gradient of the unlearning loss
at the target; p_y probability of the label; eta, eta_r learning rates of the R unlearning and the R_r later rounds.

    unlearning loss     mean -log(1 - p_y / 2)                          bounded, unlike the negative cross-entropy
    unlearning          d = (I - G^T (G G^T)^+ G) g_u,  d <- d ||g_u|| / ||d||,  w <- w - eta d
    post-training       a = w - w_T,  g_k <- g_k - (g_k . a / ||a||^2) a, at its old norm,  w <- w - eta_r mean g_k

Deviations: gradients are over a client's whole data, one a round, as in the released code; the forgotten and the
retained data's are two parts of one round. The pseudo-inverse cuts singular values below 1e-6 of the largest, in
float64; the released code cuts at 1e-6 absolutely and keeps what it cuts, uninverted. A direction that the retained
gradients leave nothing of is not taken. Published are R = R_r = 100, eta = 4e-4 and eta_r = 1e-6 on CIFAR-10; the
defaults are for ten rounds (this project's choice). Requests for samples and classes are this project's generalisation.

Limit: of one client's data with marks, the ordinary part falls below the oracle's margin long before the marks do
(docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fedforget.params import weighted_mean
from fedforget.routines import gradient
from fedforget.strategy import (
    Card,
    Client,
    Cohort,
    History,
    Params,
    Replies,
    UnlearningRequest,
    UnlearningStrategy,
    option,
)


class FedOSD(UnlearningStrategy):
    """Orthogonal steepest descent, then projected post-training."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        rounds: int = option(10, "unlearning rounds", symbol="R", at_least=1)
        lr: float = option(0.2, "their learning rate", symbol="eta", above=0, search=(0.02, 2.0, "log"))
        post_rounds: int = option(10, "post-training rounds", symbol="R_r", at_least=0)
        post_lr: float = option(0.1, "their learning rate", symbol="eta_r", above=0, search=(0.01, 1.0, "log"))

    card = Card(target_online=True)  # the target unlearns; all retained clients answer in every round

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """R rounds of two parts, then R_r rounds of one."""
        cfg, w = self.config, history.final
        for t in range(history.rounds + 1, history.rounds + 1 + cfg.rounds):
            g_u = equal_mean(cohort.train(w, cohort.targets, routine=unlearning, split="forget", round=t))
            G = [reply.update for reply in cohort.train(w, cohort.retained, routine=gradient, round=t)]
            w = w - cfg.lr * orthogonal(g_u, G)
            yield w
        cohort.hold(history.final)
        for _ in range(cfg.post_rounds):
            replies = cohort.train(w, cohort.retained, routine=gradient)
            g = [without(reply.update, w - history.final) for reply in replies]
            w = w - cfg.post_lr * weighted_mean(g, [1] * len(g))
            yield w


def equal_mean(replies: Replies) -> Params:
    """The mean over clients, each with the same weight."""
    return weighted_mean([reply.update for reply in replies], [1] * len(replies))


def orthogonal(g_u: Params, G: Sequence[Params]) -> Params:
    """``g_u`` without what lies in the span of ``G``, at its old norm."""
    A, g = torch.stack([g_k.flat.double() for g_k in G]), g_u.flat.double()
    d = g - A.T @ (torch.linalg.pinv(A @ A.T, rtol=1e-6, hermitian=True) @ (A @ g))
    return at_norm_of(Params(d.to(g_u.flat.dtype), g_u.layout), g_u)


def without(g_k: Params, a: Params) -> Params:
    """``g_k`` without what lies along ``a``, at its old norm."""
    return at_norm_of(g_k - g_k.dot(a) / a.norm() ** 2 * a, g_k) if a.norm() > 0 else g_k


def at_norm_of(projected: Params, before: Params) -> Params:
    """``projected``, as long as ``before`` was; zero if nothing but rounding is left of it."""
    left = projected.norm()
    return projected * (before.norm() / left if left > 1e-6 * before.norm() else 0.0)


def unlearning(client: Client) -> Params:
    """The gradient of ``mean -log(1 - p_y / 2)`` over the whole split."""
    p_y = client.model(client.inputs).softmax(1).gather(1, client.labels[:, None])
    loss = -(1 - p_y / 2).log().mean()
    gradients = torch.autograd.grad(loss, client.parameters)
    client.steps, client.examples, client.total_loss = 1, len(client.labels), loss.detach()
    return client.vector(gradients)
