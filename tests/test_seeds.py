"""Named random streams: addressed by name alone, and pinned so that a change of the scheme is noticed."""

from __future__ import annotations

import hashlib
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedforget.seeds import Seeds

quick = settings(max_examples=50, deadline=None)
names = st.one_of(st.integers(-5, 10**9), st.text(max_size=5))
paths = st.lists(names, max_size=4).map(tuple)

# Drawn once from Seeds(3) under the name ("cohort", 7).
PINNED_INTEGER = 1_420_609_291_900_215_314
PINNED_PERMUTATION = [5, 4, 7, 3, 6, 8, 2, 9, 1, 0]
PINNED_TORCH = [866, 813, 135, 46]


def test_the_scheme_is_pinned() -> None:
    # The top 63 bits of SHA-256 of the JSON text; written out once more, without the class.
    text = b'[3, "cohort", 7]'
    assert Seeds(3).integer("cohort", 7) == int(hashlib.sha256(text).hexdigest()[:16], 16) // 2
    assert Seeds(3).integer("cohort", 7) == PINNED_INTEGER
    assert Seeds(3).numpy("cohort", 7).permutation(10).tolist() == PINNED_PERMUTATION
    assert torch.randint(1000, (4,), generator=Seeds(3).torch("cohort", 7)).tolist() == PINNED_TORCH


@quick
@given(st.integers(0, 2**40), paths, paths)
def test_a_child_is_a_longer_path(root: int, first: tuple, second: tuple) -> None:
    whole = Seeds(root).integer(*first, *second)
    assert Seeds(root).child(*first).integer(*second) == whole
    assert Seeds(root).child(*first).child(*second).integer() == whole
    assert Seeds(root).child(*first, *second) == Seeds(root, first + second)


@quick
@given(st.lists(st.tuples(st.integers(0, 3), paths), unique=True, min_size=2, max_size=6))
def test_different_addresses_have_different_streams(addresses: list[tuple[int, tuple]]) -> None:
    integers = [Seeds(root).integer(*path) for root, path in addresses]
    assert len(set(integers)) == len(integers)
    assert all(0 <= integer < 2**63 for integer in integers)


def test_names_do_not_run_together() -> None:
    seeds = Seeds(0)
    alike = [("ab",), ("a", "b"), ("a", "b", ""), ("12",), (12,), (1, 2), ("1", 2), ("a, b",), ('a", "b',)]
    for one, other in itertools.combinations(alike, 2):
        assert seeds.integer(*one) != seeds.integer(*other), (one, other)
    assert Seeds(1).integer("a") != Seeds(0).integer(1, "a")


def test_streams_do_not_depend_on_the_order_of_calls() -> None:
    seeds, other = Seeds(11), Seeds(11)
    forwards = [seeds.numpy("client", client).random(3).tolist() for client in range(4)]
    other.torch("noise").initial_seed()
    backwards = [other.numpy("client", client).random(3).tolist() for client in reversed(range(4))]
    assert forwards == backwards[::-1]


def test_every_call_starts_the_stream_afresh() -> None:
    seeds = Seeds(5)
    assert seeds.numpy("a").random(5).tolist() == seeds.numpy("a").random(5).tolist()
    assert torch.equal(torch.randn(5, generator=seeds.torch("a")), torch.randn(5, generator=seeds.torch("a")))
    assert seeds.numpy("a").random() != seeds.numpy("b").random()
    assert torch.randn(1, generator=seeds.torch("a")) != torch.randn(1, generator=seeds.torch("b"))


def test_no_global_generator_is_touched() -> None:
    before = torch.get_rng_state()
    torch.randn(3, generator=Seeds(0).torch("a"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [b"bytes", 3j, object()])
def test_names_that_are_no_plain_values_are_refused(name: object) -> None:
    with pytest.raises(TypeError):
        Seeds(0).integer(name)  # type: ignore[arg-type]
