"""KLOM: how far the distribution of an unlearned model's margins is from that of retrained models, example by example.

Georgiev, Rinberg, Park, Garg, Ilyas, Madry and Neel, "Attribute-to-Delete: Machine Unlearning via Datamodel Matching",
ICLR 2025, arXiv 2410.23232; formula from github.com/RoyRin/data-unlearning-bench. Lower is better; nats. Both forms
are biased upwards: with few models even retrained against retrained is far from 0 (histograms: about 5.5 at 10 models a
side, 0.9 at 50, 0.3 at 100), so score a second set of retrained models too, and read the difference.
"""

from __future__ import annotations

import torch
from torch import Tensor


def klom(unlearned: Tensor, retrained: Tensor, bins: int = 20, clip: float = 100.0, floor: float = 1e-5) -> Tensor:
    """``KL(unlearned || retrained)`` of histograms over each example's pooled range, ``[n]``, up to ``log(1/floor)``.

    It can fall a little below 0, because the floor is added to no other bin.

    The released code's ``np.digitize`` drops the pooled maximum from the counts; here the last bin holds it.

    Args:
        unlearned: ``[N, n]`` margins ``z_y - logsumexp of the others`` of N unlearned models on n examples.
        retrained: ``[M, n]`` margins of M retrained models on the same examples.
        bins: equal bins between the smallest and the largest of both.
        clip: margins are cut to ``[-clip, clip]``.
        floor: probability given to a bin that no retrained model falls into.

    Raises:
        ValueError: if the examples differ, a side has no model, or a margin is NaN.
    """
    p, q = (margins.double().clamp(-clip, clip) for margins in _checked(unlearned, retrained))
    low = torch.minimum(p.amin(0), q.amin(0))
    width = (torch.maximum(p.amax(0), q.amax(0)) - low).clamp(min=torch.finfo(torch.float64).tiny) / bins

    def histogram(margins: Tensor) -> Tensor:
        places = ((margins - low) / width).long().clamp(max=bins - 1)
        counts = torch.zeros(bins, margins.shape[1], dtype=torch.float64)
        return counts.scatter_add_(0, places, torch.ones_like(margins)) / len(margins)

    p, q = histogram(p), histogram(q)
    q = q.where(q > 0, floor)
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(0)


def gaussian_klom(unlearned: Tensor, retrained: Tensor) -> Tensor:
    """The same divergence between Gaussians of the samples' means and variances, ``[n]``, in [0, inf).

    ``log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2``. It needs far fewer models than a histogram; of two
    equal point masses it is 0, of others without variance infinite.

    Args:
        unlearned: ``[N, n]`` margins, as for `klom`; at least two models.
        retrained: ``[M, n]`` margins; at least two models.

    Raises:
        ValueError: if the examples differ, a side has fewer than two models, or a margin is NaN.
    """
    p, q = (margins.double() for margins in _checked(unlearned, retrained, least=2))
    square = (p.mean(0) - q.mean(0)).square()
    p_var, q_var = p.var(0), q.var(0)
    divergence = ((q_var / p_var).log() + (p_var + square) / q_var - 1) / 2
    equal = (square == 0) & (p_var == q_var)
    return divergence.where(~equal, 0.0).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _checked(unlearned: Tensor, retrained: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    shapes = tuple(unlearned.shape), tuple(retrained.shape)
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][1] != shapes[1][1] or min(s[0] for s in shapes) < least:
        raise ValueError(
            f"margins have shapes {shapes[0]} and {shapes[1]}; they must be (models, examples), "
            f"with the same examples and at least {least} models each"
        )
    if unlearned.isnan().any() or retrained.isnan().any():
        raise ValueError("a margin is NaN, so it has no place in a distribution")
    return unlearned, retrained
