"""How much unlearning changes the decision regions, near the forgotten examples and elsewhere.

A model is asked about points on small spheres around forgotten examples (near) and around test images (far). The change
between two models is the share of points that they give different classes, `fedforget.metrics.fidelity.disagreement`.
What is wanted is change near forgotten examples and none elsewhere, as much of either as retraining makes.

Source: the question is that of Alon and Dar, arXiv 2503.08633, who were not read; the measure is this project's. The
plane through three images is that of Somepalli et al., "Can Neural Nets Learn the Same Model Twice?", CVPR 2022, arXiv
2203.08124, as recalled, drawn here with its triangle as a right one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def typical_distance(inputs: Tensor) -> float:
    """Median over examples of the Euclidean distance to the nearest other one; ``inputs [n, ...]``, n at least 2.

    All pairs are compared, without the cancellation of the faster formula, so give it hundreds, not thousands.

    Raises:
        ValueError: if there are fewer than two examples.
    """
    if len(inputs) < 2:
        raise ValueError(f"a distance to the nearest example needs at least 2 examples, not {len(inputs)}")
    points = inputs.flatten(1).double()
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(torch.inf).min(1).values.quantile(0.5).item()


def sphere(anchor: Tensor, radius: float, count: int, generator: torch.Generator) -> Tensor:
    """``count`` points at distance ``radius`` from the anchor ``[...]`` in random directions: ``[count, ...]``."""
    directions = torch.randn((count, anchor.numel()), generator=generator).to(anchor)
    directions = directions / directions.norm(dim=1, keepdim=True)
    return anchor + radius * directions.view(count, *anchor.shape)


def corners(labels: Tensor) -> list[int]:
    """Places of three examples to span a plane: the first, then the next of yet unseen classes, or any if none is left.

    Raises:
        ValueError: if there are fewer than three ``labels [n]``.
    """
    if len(labels) < 3:
        raise ValueError(f"a plane needs 3 examples, not {len(labels)}")
    classes, places = labels.tolist(), [0]
    while len(places) < 3:
        seen = {classes[place] for place in places}
        left = [place for place in range(len(classes)) if place not in places]
        places.append(min(left, key=lambda place: (classes[place] in seen, place)))
    return places


def marks(size: int) -> list[tuple[int, int]]:
    """Where the three images stand in a grid of ``size`` by ``size``, at least 3: ``(column, row)``, the first's first.

    An eighth of the grid lies beyond them on each side.
    """
    low, high = size // 8, size - 1 - size // 8
    return [(low, low), (high, low), (low, high)]


def grid(size: int) -> Tensor:
    """Shares of the three images in each point of the plane through them, ``[size * size, 3]``, row by row.

    The shares of a point add up to 1; at its mark an image has 1 and the others 0, so that the grid holds the images
    themselves.
    """
    (low, _), (high, _), _ = marks(size)
    steps = (torch.arange(size) - low) / (high - low)
    second, first = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([1 - first - second, first, second], -1).view(-1, 3)


def plane(images: Tensor, size: int) -> Tensor:
    """A `grid` of points on the plane through three images ``[3, ...]``: ``[size * size, ...]``."""
    points = grid(size).to(images) @ images.flatten(1)
    return points.view(-1, *images.shape[1:])


def locality(near: float, far: float) -> float:
    """``near / (near + far)``, of two changes. [0, 1]; higher = only near; 1/2 = alike everywhere, or no change at all.

    Its ideal is what the oracle scores.
    """
    return near / (near + far) if near + far else 0.5
