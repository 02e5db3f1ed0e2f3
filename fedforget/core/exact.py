"""Sums of vectors that have the same bits in whichever order and grouping they are added."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

BLOCK = 1 << 17  # entries; sums over long vectors go block by block, so that blocks stay in a core's own cache
LIMIT = 128.0  # largest entry of an update that can be summed exactly, see `ExactSum`
QUANTUM = 2.0**-42  # what its entries are rounded to, as a share of the sum's scale


def exact_scale(examples: int) -> float:
    """The scale of an exact sum over clients with so many examples in all: the next power of two."""
    return 2.0 ** max(0, (max(1, examples) - 1).bit_length())


def ends(vector: Tensor) -> tuple[float, float]:
    """The least and the greatest entry; both are NaN if any is."""
    least, greatest = torch.aminmax(vector)
    return float(least), float(greatest)


def can_add_exactly(vector: Tensor, minus: tuple[float, float] = (0.0, 0.0)) -> bool:
    """Whether an `ExactSum` takes a vector: float32, and no entry is NaN or beyond `LIMIT`.

    Where a term is the difference of two vectors, ``minus`` are the `ends` of the other, and this asks whether every
    entry of the one may be subtracted from every entry of the other.
    """
    if vector.dtype != torch.float32:
        return False
    least, greatest = ends(vector)
    return least - minus[1] >= -LIMIT and greatest - minus[0] <= LIMIT


class ExactSum:
    """``sum_k weight_k (vector_k - minus)`` in float64, in whichever order and grouping with the same bits.

    Every term is rounded to a multiple of ``q = QUANTUM * scale``, after which sums are exact (Demmel and Nguyen,
    "Fast Reproducible Floating-Point Summation", ARITH 2013, with one bin): partial sums are kept on top of a number
    so large that the last digit of float64 is worth q there, so an addition rounds its term and nothing else, as long
    as weights sum to at most ``4 * scale``. A term's rounding changes a mean over ``scale`` examples by at most 2^-43.

    Half a quantum would be rounded up or down depending on the sum so far. So a weight is raised to the next float64,
    whose last digit is 1: a product then has a digit far below half a quantum, whether it is rounded before it is
    added or not.

    Args:
        start: what the sum begins with, ``[d]``: zeros, or such a sum; not changed.
        scale: see `exact_scale`; the same for all terms of a sum.
        minus: float32 ``[d]``, subtracted in float32 from each vector; ``None`` for 0.
    """

    def __init__(self, start: Tensor, scale: float, minus: Tensor | None = None) -> None:
        self._large = 1.5 * 2.0**52 * QUANTUM * scale
        self._sum = torch.add(start, self._large)
        self._minus = minus

    def add(self, terms: Iterable[tuple[Tensor, int]]) -> None:
        """Add vectors, float32 ``[d]``, see `can_add_exactly`, with n_k, at most ``scale``, of each."""
        # Block by block, so that what is not in the vectors stays in a core's cache.
        weighted = [(vector, math.nextafter(weight, math.inf)) for vector, weight in terms]
        size = self._sum.numel()
        change = torch.empty(min(BLOCK, size), dtype=torch.float32, device=self._sum.device)
        for start in range(0, size, BLOCK):
            here = slice(start, min(start + BLOCK, size))
            sums, minus = self._sum[here], None if self._minus is None else self._minus[here]
            for vector, weight in weighted:
                block = vector[here]
                if minus is not None:
                    block = torch.sub(block, minus, out=change[: len(block)])
                sums.add_(block, alpha=weight)  # in float64: the block is converted on its way

    def total(self, less: Callable[[Tensor, float], Tensor] = Tensor.sub_) -> Tensor:
        """The sum, float64 ``[d]``; nothing can be added to it any more.

        Args:
            less: a vector minus a number; what it returns is returned.
        """
        total = less(self._sum, self._large)
        del self._sum
        return total
