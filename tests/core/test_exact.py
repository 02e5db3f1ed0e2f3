"""Exact sums: the same bits in whichever order and grouping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from random import Random
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedforget.core.exact import BLOCK, ExactSum, can_add_exactly, ends, exact_scale

quick = settings(max_examples=25, deadline=None)


def exact_sum(terms: Iterable[tuple[torch.Tensor, int]], scale: float, d: int = 1000, **settings: Any) -> torch.Tensor:
    result = ExactSum(torch.zeros(d, dtype=torch.float64), scale, **settings)
    result.add(terms)
    return result.total()


@quick
@given(st.permutations(range(6)), st.integers(1, 5))
def test_exact_sums_do_not_depend_on_order_or_grouping(order: list[int], cut: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(1000, generator=generator) * 10.0**power for power in range(-6, 0)]
    weights = [3, 100, 17, 1, 250, 64]
    scale = exact_scale(sum(weights))
    terms = list(zip(vectors, weights, strict=True))
    expected = exact_sum(terms, scale)
    one_by_one = ExactSum(torch.zeros(1000, dtype=torch.float64), scale)
    for place in order:
        one_by_one.add([terms[place]])
    assert torch.equal(one_by_one.total(), expected)
    parts = [exact_sum([terms[place] for place in places], scale) for places in (order[:cut], order[cut:])]
    assert torch.equal(parts[0] + parts[1], expected)
    onwards = ExactSum(parts[0], scale)
    onwards.add(terms[place] for place in order[cut:])
    assert torch.equal(onwards.total(), expected)
    plain = sum(n * v.double() for n, v in zip(weights, vectors, strict=True))
    assert float((expected - plain).abs().max()) <= 6 * scale * 2.0**-43


@quick
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 40)), min_size=2, max_size=8), st.randoms())
def test_exact_sums_of_half_quanta_do_not_depend_on_order(terms: list[tuple[int, int]], random: Random) -> None:
    # Multiples of a quarter of a quantum: many products lie halfway between two quanta.
    quarter = 2.0**-44 * 512.0
    given = [(torch.full((19,), number * quarter), weight) for number, weight in terms]
    shuffled = random.sample(given, len(given))
    found = exact_sum(given, 512.0, 19)
    assert torch.equal(found, exact_sum(shuffled, 512.0, 19))
    # By hand: the nearest quantum, halves away from zero. A block's last entries take another path through a kernel.
    by_hand = sum(math.copysign(math.floor(abs(number * weight) / 4 + 0.5), number) for number, weight in terms)
    assert found.tolist() == [by_hand * 4 * quarter] * 19


def test_exact_sums_by_hand() -> None:
    assert [exact_scale(n) for n in (0, 1, 2, 3, 1024, 1025)] == [1, 1, 2, 4, 1024, 2048]
    # With scale 1 the quantum is 2^-42: 1.5 quanta are rounded away from zero, 0.25 of one to nothing.
    found = exact_sum([(torch.tensor([1.5 * 2.0**-42, -1.5 * 2.0**-42, 2.0**-44]), 1)], 1.0, 3)
    assert found.tolist() == [2 * 2.0**-42, -2 * 2.0**-42, 0.0]
    # The largest sum that the scale allows, in either direction, and back.
    largest = torch.tensor([128.0, -128.0])
    assert exact_sum([(largest, 4)] * 4, 4.0, 2).tolist() == [2048.0, -2048.0]
    assert exact_sum([(largest, 4)] * 3 + [(-largest, 4)] * 3 + [(largest / 128, 1)], 4.0, 2).tolist() == [1.0, -1.0]
    assert exact_sum([(largest, 0)], 1.0, 2).tolist() == [0.0, 0.0]
    assert can_add_exactly(torch.tensor([-128.0])) and not can_add_exactly(torch.tensor([128.1]))
    assert not can_add_exactly(torch.tensor([math.nan])) and not can_add_exactly(torch.tensor([math.inf]))
    assert not can_add_exactly(torch.tensor([1.0], dtype=torch.float64))


def test_exact_sums_of_differences_are_those_of_what_was_subtracted() -> None:
    generator = torch.Generator().manual_seed(0)
    start, *vectors = torch.randn(4, 2 * BLOCK + 3, generator=generator)
    whole = exact_sum([(vector - start, n) for n, vector in enumerate(vectors, 1)], 8.0, len(start))
    of_differences = exact_sum([(vector, n) for n, vector in enumerate(vectors, 1)], 8.0, len(start), minus=start)
    assert torch.equal(whole, of_differences) and whole.all()
    # Entries of -1 and 1, and of 0 to 2, differ by 3 at most.
    one, other = torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 2.0])
    assert can_add_exactly(one * 42, ends(other * 42)) and not can_add_exactly(one * 43, ends(other * 43))
    assert not can_add_exactly(torch.tensor([math.nan, 1.0]), ends(other))
    assert not can_add_exactly(one, ends(torch.tensor([math.inf, 1.0])))
