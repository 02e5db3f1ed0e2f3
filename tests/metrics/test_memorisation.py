"""Grouped memorisation against numbers by hand."""

from __future__ import annotations

import pytest
import torch

from fedforget.metrics.memorisation import Group, by_memorisation


def test_groups_are_those_of_the_other_seeds() -> None:
    # Two seeds, four examples, two groups. Seed 0 memorised the last two, seed 1 the first two: seed 0 is scored in
    # seed 1's groups ({2, 3}, {0, 1}), and seed 1 in seed 0's ({0, 1}, {2, 3}). So each group's own memorisation is the
    # other way round. Seed 0: example 3 is a failure; seed 1: example 2 is a loss.
    original = torch.tensor([[0.1, 0.2, 0.9, 0.8], [0.9, 0.7, 0.1, 0.3]])
    oracle = torch.tensor([[0.1, 0.1, 0.1, 0.2], [0.1, 0.1, 0.1, 0.1]])
    right = torch.tensor([[True, False, False, True], [True, True, False, False]])
    oracle_right = torch.tensor([[True, False, False, False], [True, True, True, False]])
    least, most = by_memorisation(original, oracle, right, oracle_right, groups=2)
    assert least.memorised == pytest.approx([(0.8 + 0.6) / 2, (0.8 + 0.6) / 2])
    assert most.memorised == pytest.approx([(0.0 + 0.1) / 2, (0.0 + 0.2) / 2])
    assert (least.gap, least.failure, least.loss) == ([0.5, 0.0], [0.5, 0.0], [0.0, 0.0])
    assert (most.gap, most.failure, most.loss) == ([0.0, -0.5], [0.0, 0.0], [0.0, 0.5])


def test_chance_alone_memorises_no_group() -> None:
    """Originals and oracles of one distribution, 20 seeds, 3000 examples: were groups those of the scored seed, the
    highest third would seem memorised by sqrt(2) * 1.09 = 1.5 standard deviations; by others' it is not."""
    generator = torch.Generator().manual_seed(0)
    original, oracle = (torch.randn(20, 3000, generator=generator) for _ in range(2))
    nobody = torch.zeros(20, 3000, dtype=torch.bool)
    groups = by_memorisation(original, oracle, nobody, nobody)
    # Standard error of 20 means of 1000 differences: sqrt(2 / 20000) = 0.01.
    assert [sum(group.memorised) / 20 for group in groups] == pytest.approx([0, 0, 0], abs=0.04)


def test_real_memorisation_is_found_and_sizes_may_differ() -> None:
    apart = torch.tensor([0.0, 0.5, 0.1, 0.9]).expand(3, 4)  # thirds of four: two, one and one
    known = (apart > 0.3).clone()
    groups = by_memorisation(apart, torch.zeros(3, 4), known, torch.zeros(3, 4, dtype=torch.bool))
    assert [group.memorised for group in groups] == [pytest.approx([mean] * 3) for mean in (0.05, 0.5, 0.9)]
    assert groups[0] == Group(groups[0].memorised, [0.0] * 3, [0.0] * 3, [0.0] * 3)
    assert groups[2].gap == groups[2].failure == [1.0] * 3


def test_what_cannot_be_grouped_is_refused() -> None:
    p, right = torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="3 groups of tables"):
        by_memorisation(p, p, right, right)
    with pytest.raises(ValueError, match="at least 2 seeds"):
        by_memorisation(p[:1], p[:1], right[:1], right[:1], groups=1)
    with pytest.raises(ValueError, match=r"\(2, 2\), \(2, 1\)"):
        by_memorisation(p, p[:, :1], right, right, groups=1)
