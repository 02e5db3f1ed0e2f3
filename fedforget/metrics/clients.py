"""What unlearning does to the clients that stay.

The zero is the oracle's accuracy on the same client, never the original's: retraining without a client harms those who
resemble it, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy
import torch

from fedforget.metrics.outputs import Outputs, right


def client_accuracies(outputs: Outputs) -> dict[int, float]:
    """`accuracy` on each client's own examples, by client id; the global test set, of owner -1, is left out.

    Higher = the model serves the client better; [0, 1], NaN for all if a logit is not finite. Source: accuracy, taken
    by owner.
    """
    clients, place = outputs.clients.unique(return_inverse=True)  # sorted
    shares = torch.zeros(len(clients), dtype=torch.float64).scatter_reduce(
        0, place, right(outputs).double(), "mean", include_self=False
    )
    if not outputs.finite:
        shares.fill_(torch.nan)
    return {client: share for client, share in zip(clients.tolist(), shares.tolist(), strict=True) if client >= 0}


def summary(own: Mapping[int, float]) -> dict[str, float]:
    """``accuracy``: the mean over clients; ``worst``: over the ceil(n / 10) that are served worst. As `accuracy`."""
    worst = sorted(own.values())[: -(-len(own) // 10)]
    return {"accuracy": float(np.mean(list(own.values()))), "worst": float(np.mean(worst))}


def side_effects(model: Mapping[int, float], oracle: Mapping[int, float]) -> dict[str, float]:
    """How the differences ``D_k = a_k(model) - a_k(oracle)`` spread over clients.

    - ``mean``: of D; ``min``: the worst D; [-1, 1], higher = better served, 0 = as by the oracle.
    - ``worst_decile``: mean of the ceil(n / 10) smallest D, the conditional value at risk at 10 %; as ``mean``.
    - ``sd``: of D over these clients (divided by n); [0, 1], lower = more even. Losing uniformly has sd 0, so never
      read it alone.
    - ``jain``: ``(sum_k a_k)^2 / (n sum_k a_k^2)`` of the model's own accuracies; [1/n, 1], higher = fairer, 1 when all
      are 0; compare with the oracle's.

    Source: CVaR of Rockafellar and Uryasev 2000; fairness index of Jain, Chiu and Hawe 1984, arXiv cs/9809099.

    Args:
        model: accuracy by client.
        oracle: the same of the oracle, or the mean over oracles.

    Raises:
        ValueError: if there is no client, or the two have different clients.
    """
    differences = np.sort(_table([model], oracle) - _table([oracle], oracle), axis=None)
    worst = differences[: -(-len(differences) // 10)]
    own = _table([model], oracle)
    square = float(np.square(own).sum())
    return {
        "mean": float(differences.mean()),
        "worst_decile": float(worst.mean()),
        "min": float(differences[0]),
        "sd": float(differences.std()),
        "jain": float(own.sum()) ** 2 / (own.size * square) if square else 1.0,
    }


def share_harmed(
    model: Sequence[Mapping[int, float]], oracle: Sequence[Mapping[int, float]], alpha: float = 0.05
) -> float:
    """Share of clients whose accuracy is below the oracle's by more than seeds explain. Lower = better; [0, 1].

    One-sided paired t test over seeds for each client, then Benjamini-Hochberg over clients: of the clients called
    harmed at most a share ``alpha`` is expected to be so by chance. Differences that are the same in every seed are
    certain: p = 0 if negative, else 1. NaN for fewer than two seeds, or if an accuracy is NaN.

    Source: Student 1908; Benjamini and Hochberg 1995 (JRSS B 57).

    Args:
        model: accuracies by client of each seed's model.
        oracle: the same of the oracles, seed by seed in the same order.
        alpha: false discovery rate, in (0, 1).

    Raises:
        ValueError: if the seeds differ in number, there is no client, not all have the same clients, or ``alpha`` is
            out of range.
    """
    if len(model) != len(oracle):
        raise ValueError(f"{len(model)} models and {len(oracle)} oracles cannot be paired; give one oracle a model")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must lie strictly between 0 and 1")
    if len(model) < 2:
        return float("nan")
    differences = _table(model, oracle[0]) - _table(oracle, oracle[0])
    if np.isnan(differences).any():
        return float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):  # no variance: t is infinite, and undefined for 0 / 0
        t = differences.mean(0) / scipy.stats.sem(differences, axis=0)
    p = np.where((differences == 0).all(0), 1.0, scipy.stats.t.cdf(t, len(model) - 1))
    return float((scipy.stats.false_discovery_control(p) <= alpha).mean())


def _table(seeds: Sequence[Mapping[int, float]], reference: Mapping[int, float]) -> np.ndarray:
    """Accuracies ``[seeds, clients]`` in the order of the reference's clients."""
    for accuracies in seeds:
        if not accuracies or set(accuracies) != set(reference):
            raise ValueError(
                f"clients {sorted(accuracies)} of the model and {sorted(reference)} of the oracle must be the same, "
                "and at least one; score both on the same examples"
            )
    return np.array([[accuracies[client] for client in reference] for accuracies in seeds])
