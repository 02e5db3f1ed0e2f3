"""How much unlearning changes the decision regions, near the forgotten examples and elsewhere.

change = share of points around an anchor at which two models predict different classes. [0, 1]; 0 = the regions are the
same. What is wanted is change near forgotten examples and none near others: locality = near / (near + far), higher =
better, 1/2 = change is alike everywhere; its ideal is what the oracle scores. Source: the question is that of Alon and
Dar, arXiv 2503.08633, who were not read; the measure is this project's. The plane through three images is that of
Somepalli et al., "Can Neural Nets Learn the Same Model Twice?", CVPR 2022, arXiv 2203.08124, as recalled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Model = Callable[[Tensor], Tensor]
CHUNK = 1000  # points in one call of a model, or rows of a distance matrix


def typical_distance(inputs: Tensor) -> float:
    """Median over examples of the Euclidean distance to the nearest other one; ``inputs [n, ...]``, n at least 2.

    Raises:
        ValueError: if there are fewer than two examples.
    """
    if len(inputs) < 2:
        raise ValueError(f"a distance to the nearest example needs at least 2 examples, not {len(inputs)}")
    points = inputs.flatten(1).double()
    distances = []
    for start in range(0, len(points), CHUNK):
        block = torch.cdist(points[start : start + CHUNK], points, compute_mode="donot_use_mm_for_euclid_dist")
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        distances.append(block.min(1).values)
    return torch.cat(distances).quantile(0.5).item()


def sphere(anchor: Tensor, radius: float, count: int, generator: torch.Generator) -> Tensor:
    """``count`` points at distance ``radius`` from the anchor ``[...]`` in random directions: ``[count, ...]``.

    The usual radii are 0.25, 0.5 and 1 times `typical_distance` of the training data.
    """
    directions = torch.randn((count, anchor.numel()), generator=generator).to(anchor)
    directions = directions / directions.norm(dim=1, keepdim=True)
    return anchor + radius * directions.view(count, *anchor.shape)


def plane(anchor: Tensor, first: Tensor, second: Tensor, size: int, margin: float = 0.1) -> Tensor:
    """A grid of points on the plane through three images ``[...]``: ``[size * size, ...]``.

    It fills the rectangle that bounds them, widened by ``margin`` of its length at each end, with one side along
    ``first - anchor``.

    Raises:
        ValueError: if the three lie on one line.
    """
    a, b = (first - anchor).flatten().double(), (second - anchor).flatten().double()
    e = a / a.norm()
    along = b @ e
    f = b - along * e
    if not f.norm() > 1e-9 * b.norm():
        raise ValueError("the three images lie on one line and span no plane")
    ends = torch.stack(
        [torch.zeros(2).double(), torch.stack([a.norm(), a.new_zeros(())]), torch.stack([along, f.norm()])]
    )
    low, high = ends.min(0).values, ends.max(0).values
    steps = torch.linspace(-margin, 1 + margin, size, dtype=torch.float64)[:, None]
    s, t = (low + steps * (high - low)).T
    grid = s[:, None, None] * e + t[None, :, None] * f / f.norm()
    return anchor + grid.reshape(size * size, *anchor.shape).to(anchor)


def change(before: Model, after: Model, points: Tensor) -> float:
    """Share of ``points [n, ...]`` at which two models (from inputs to logits) predict different classes."""
    differ = [before(block).argmax(1) != after(block).argmax(1) for block in points.split(CHUNK)]
    return torch.cat(differ).double().mean().item()


def mean_change(
    before: Model, after: Model, anchors: Tensor, radius: float, count: int, generator: torch.Generator
) -> float:
    """`change` on a `sphere` around each anchor ``[n, ...]``, averaged: near, for forgotten examples, or far."""
    changes = [change(before, after, sphere(anchor, radius, count, generator)) for anchor in anchors]
    return sum(changes) / len(changes)


def locality(near: float, far: float) -> float:
    """``near / (near + far)``, of two mean changes; NaN where nothing changed at all."""
    return near / (near + far) if near + far else float("nan")
