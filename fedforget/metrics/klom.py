"""KLOM: how far the distribution of an unlearned model's margins is from that of retrained models, example by example.

Georgiev, Rinberg, Park, Garg, Ilyas, Madry and Neel, "Attribute-to-Delete: Machine Unlearning via Datamodel Matching",
ICLR 2025, arXiv 2410.23232; formula from github.com/RoyRin/data-unlearning-bench. Lower is better; nats. It is biased
upwards: with few models even retrained against retrained is far from 0 (about 5.5 at 10 models a side, 0.9 at 50, 0.3
at 100), so score a second set of retrained models too, and read the difference.
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


def _checked(unlearned: Tensor, retrained: Tensor) -> tuple[Tensor, Tensor]:
    shapes = tuple(unlearned.shape), tuple(retrained.shape)
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][1] != shapes[1][1] or 0 in (shapes[0][0], shapes[1][0]):
        raise ValueError(
            f"margins have shapes {shapes[0]} and {shapes[1]}; they must be (models, examples), "
            "with the same examples and at least one model each"
        )
    if unlearned.isnan().any() or retrained.isnan().any():
        raise ValueError("a margin is NaN, so it has no place in a distribution")
    return unlearned, retrained
