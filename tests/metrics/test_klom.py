"""KLOM against histograms by hand, its floors with few models, and the closed form of Gaussians."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedforget.metrics.klom import klom


def normal(models: int, examples: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + torch.randn(models, examples, generator=generator, dtype=torch.float64)


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def test_histograms_by_hand() -> None:
    # Range [0, 4] in two bins: p = (3/4, 1/4), q = (1/4, 3/4): 3/4 log 3 - 1/4 log 3 = log(3) / 2
    divergence = klom(column(0, 1, 1, 3), column(1, 2, 3, 4), bins=2)
    assert divergence.tolist() == pytest.approx([math.log(3) / 2])


def test_the_pooled_maximum_is_counted() -> None:
    # Each side's whole mass must count: with 4 dropped, q would be (1/2, 0) and KL large.
    assert klom(column(0, 4), column(0, 4), bins=2).item() == 0
    assert klom(column(4, 4), column(0, 4), bins=2).item() == pytest.approx(math.log(2))


def test_disjoint_supports_reach_the_ceiling() -> None:
    # All of p in a bin where q has the floor: log 1e5 = 11.5
    assert klom(column(0, 0), column(9, 9)).item() == pytest.approx(math.log(1e5))


def test_a_constant_margin_is_no_distance() -> None:
    assert klom(column(2, 2, 2), column(2, 2)).item() == 0


def test_margins_are_clipped() -> None:
    # Beyond 100, 200 and 1e9 are the same.
    assert klom(column(0, 200), column(0, 1e9)).item() == 0
    assert klom(column(0, math.inf), column(0, 100)).item() == 0


@pytest.mark.parametrize(("models", "floor"), [(10, 5.5), (20, 2.98), (50, 0.87), (100, 0.34), (400, 0.065)], ids=str)
def test_the_floor_with_few_models(models: int, floor: float) -> None:
    # Both sides from the same Gaussian: what a perfect method scores.
    divergence = klom(normal(models, 400, 0), normal(models, 400, 1))
    assert divergence.mean().item() == pytest.approx(floor, rel=0.12)


def test_the_tail_of_the_floor() -> None:
    divergence = klom(normal(100, 400, 0), normal(100, 400, 1))
    assert divergence.quantile(0.95).item() == pytest.approx(0.66, rel=0.12)


def test_a_shift_by_one_deviation() -> None:
    assert klom(normal(100, 400, 0), normal(100, 400, 1, shift=1.0)).mean().item() == pytest.approx(1.15, rel=0.15)


def test_examples_are_scored_one_by_one() -> None:
    p, q = normal(30, 3, 0), normal(40, 3, 1, shift=0.5)
    together = klom(p, q)
    assert together.shape == (3,)
    assert torch.allclose(together, torch.cat([klom(p[:, i : i + 1], q[:, i : i + 1]) for i in range(3)]))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \(3, 2\) and \(3, 4\)"):
        klom(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="at least one model"):
        klom(torch.zeros(0, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="NaN"):
        klom(column(0, math.nan), column(0, 1))
