"""Flat parameter vectors: layout, arithmetic, and the one weighted mean that every aggregation uses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import FrozenInstanceError
from random import Random
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedforget.params import (
    BLOCK,
    ExactSum,
    FlatModule,
    Layout,
    Params,
    can_add_exactly,
    ends,
    exact_scale,
    weighted_mean,
)

quick = settings(max_examples=25, deadline=None)
entries = st.floats(-1e3, 1e3, width=32)
PAIR = Layout(("a", "b"), ((2,), (1,)))  # three entries: a = (x, y), b = (z)


def pair(x: float, y: float, z: float) -> Params:
    return Params(torch.tensor([x, y, z], dtype=torch.float32), PAIR)


def vectors(size: int = 3) -> st.SearchStrategy[Params]:
    return st.tuples(*[entries] * size).map(lambda values: pair(*values))


class Net(nn.Module):
    """2 x 3 weights, 2 biases, one scalar; a float buffer of 2 and an integer one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("running", torch.tensor([7.0, 8.0]))
        self.register_buffer("count", torch.tensor(3))


def test_layout_lists_parameters_then_float_buffers() -> None:
    layout = Layout.of(Net())
    assert layout.names == ("scale", "linear.weight", "linear.bias", "running")
    assert layout.shapes == ((), (2, 3), (2,), (2,))
    assert layout.sizes == [1, 6, 2, 2]
    assert layout.size == 11


def test_a_module_round_trips_through_its_flat_vector() -> None:
    source, target = Net(), Net()
    params = Params.from_module(source)
    # The flat vector is the layers one after another, each in row-major order.
    by_hand = [source.scale.reshape(1), source.linear.weight.reshape(6), source.linear.bias, torch.tensor([7.0, 8.0])]
    assert torch.equal(params.flat, torch.cat(by_hand).detach())
    params.copy_to(target)
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name
    assert Params.from_module(target).equals(params)


def test_from_module_copies() -> None:
    module = Net()
    params = Params.from_module(module)
    before = params.flat.clone()
    with torch.no_grad():
        module.linear.weight.fill_(9.0)
    assert torch.equal(params.flat, before)
    assert not params.flat.requires_grad


def test_layers_are_views_of_the_flat_vector() -> None:
    params = Params.from_module(Net())
    layers = params.layers()
    assert list(layers) == list(params.layout.names)
    assert [tuple(layer.shape) for layer in layers.values()] == list(params.layout.shapes)
    layers["linear.bias"].zero_()
    assert torch.equal(params.flat[7:9], torch.zeros(2))


def test_from_tensors_fills_layers_that_are_not_given_with_zeros() -> None:
    module = Net()
    params = Params.from_tensors(module, {"linear.bias": torch.tensor([1.0, 2.0])})
    assert params.flat.tolist() == [0.0] * 7 + [1.0, 2.0] + [0.0] * 2
    assert params.layout == Layout.of(module)


def test_copy_to_keeps_channels_last_and_the_modules_own_storage() -> None:
    module = nn.Conv2d(4, 5, 3).to(memory_format=torch.channels_last)
    weight = module.weight
    address = weight.data_ptr()
    params = Params.from_module(module)
    assert params.flat.is_contiguous()
    (params * 2.0).copy_to(module)
    assert module.weight is weight and weight.data_ptr() == address
    assert weight.is_contiguous(memory_format=torch.channels_last)
    # Strides do not leak into the flat order: reading back gives the doubled vector, entry for entry.
    assert Params.from_module(module).equals(params * 2.0)


def test_copy_to_keeps_the_modules_type() -> None:
    module = Net().double()
    Params.from_module(Net()).copy_to(module)
    assert module.linear.weight.dtype == torch.float64


def test_copy_to_refuses_another_layout() -> None:
    with pytest.raises(ValueError):
        pair(1, 2, 3).copy_to(nn.Linear(2, 3))


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), ()])
def test_a_vector_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not fit a layout of 3"):
        Params(torch.zeros(shape), PAIR)


def test_params_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        pair(1, 2, 3).flat = torch.zeros(3)  # type: ignore[misc]


def test_arithmetic_by_hand() -> None:
    u, v = pair(1, 2, 3), pair(10, 20, 30)
    assert (u + v).flat.tolist() == [11, 22, 33]
    assert (v - u).flat.tolist() == [9, 18, 27]
    assert (u * 2).flat.tolist() == (2 * u).flat.tolist() == [2, 4, 6]
    assert (v / 4).flat.tolist() == [2.5, 5, 7.5]
    assert (-u).flat.tolist() == [-1, -2, -3]
    assert u.dot(v) == 10 + 40 + 90
    assert pair(2, 3, 6).norm() == 7  # 4 + 9 + 36 = 49


@quick
@given(vectors(), vectors(), vectors(), entries)
def test_arithmetic_laws(u: Params, v: Params, w: Params, scale: float) -> None:
    zero = pair(0, 0, 0)
    assert (u + v).equals(v + u)
    negative = -u
    assert (u + zero).equals(u) and (u * 1.0).equals(u) and (-negative).equals(u)
    assert torch.equal((u - v).flat, (u + -v).flat)
    assert torch.equal((scale * u).flat, (u * scale).flat)
    # Sums of three differ by rounding: half a unit in the last place of partial sums below 3e3, so below 1e-3.
    assert torch.allclose(((u + v) + w).flat, (u + (v + w)).flat, rtol=0, atol=1e-3)
    assert u.dot(v) == v.dot(u)
    assert u.dot(u) == pytest.approx(u.norm() ** 2, rel=1e-12)
    assert abs(u.dot(v)) <= u.norm() * v.norm() * (1 + 1e-12)
    assert (u + v).layout is PAIR


def test_dot_and_norm_accumulate_in_float64() -> None:
    # 2**12 squared is 2**24, where float32 counts in steps of 2: adding 1 there is lost, in float64 it is not.
    u = pair(2.0**12, 1.0, 0.0)
    assert u.dot(u) == 2**24 + 1
    assert torch.dot(u.flat, u.flat).item() == 2**24
    # 1e30 squared overflows float32.
    assert pair(3e30, 4e30, 0).norm() == pytest.approx(5e30, rel=1e-6)


def test_by_layer_sees_shaped_layers_and_several_arguments() -> None:
    u, v, w = pair(3, 4, 5), pair(1, 2, 2), pair(0, 0, 10)
    seen = []

    def function(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        seen.append(tuple(a.shape))
        return a.norm() * b + c

    # layer a: ||(3, 4)|| = 5, times (1, 2), plus (0, 0); layer b: 5 * 2 + 10
    assert u.by_layer(function, v, w).flat.tolist() == [5, 10, 20]
    assert seen == [(2,), (1,)]
    assert u.by_layer(lambda layer: layer / layer.norm()).flat.tolist() == pytest.approx([0.6, 0.8, 1.0])


def test_by_layer_refuses_another_layout() -> None:
    with pytest.raises(ValueError):
        pair(1, 2, 3).by_layer(lambda a, b: a, Params(torch.zeros(3), Layout(("all",), ((3,),))))


def test_equality_is_bit_for_bit_and_includes_the_layout() -> None:
    u = pair(1, 2, 3)
    assert u.equals(pair(1, 2, 3))
    assert not u.equals(Params(torch.nextafter(u.flat, torch.tensor(9.0)), PAIR))
    assert not u.equals(Params(u.flat, Layout(("a", "b"), ((1,), (2,)))))


def test_is_finite() -> None:
    assert pair(1, 2, 3).is_finite()
    assert not pair(1, math.nan, 3).is_finite()
    assert not pair(1, 2, -math.inf).is_finite()


def test_cpu_keeps_the_values() -> None:
    assert pair(1, 2, 3).cpu().equals(pair(1, 2, 3))


def test_weighted_mean_by_hand() -> None:
    # (1 * (0, 0, 4) + 3 * (4, 8, 0)) / 4
    assert weighted_mean([pair(0, 0, 4), pair(4, 8, 0)], [1, 3]).flat.tolist() == [3, 6, 1]
    assert weighted_mean([pair(1, 2, 3)], [17]).flat.tolist() == [1, 2, 3]


@quick
@given(st.lists(st.tuples(vectors(), st.integers(1, 1000)), min_size=1, max_size=6))
def test_weighted_mean_is_the_float64_formula_in_the_order_given(pairs: list[tuple[Params, int]]) -> None:
    items, weights = [item for item, _ in pairs], [weight for _, weight in pairs]
    expected = np.zeros(3)
    for item, weight in pairs:
        expected = expected + item.flat.numpy().astype(np.float64) * (weight / sum(weights))
    mean = weighted_mean(iter(items), weights)
    assert mean.flat.dtype == torch.float32
    # Rounded once to float32. A fused multiply-add may differ in the last of 53 bits, hence not array_equal.
    np.testing.assert_allclose(mean.flat.numpy(), expected, rtol=2**-23, atol=1e-12)


def test_weighted_mean_accumulates_in_float64_in_the_order_given() -> None:
    # In float32, 2**24 + 1 is 2**24 and the small item is lost: the mean would be 0 rather than 1/3.
    big, small = Layout(("a",), ((1,),)), 1.0
    items = [Params(torch.tensor([value]), big) for value in (2.0**24, small, -(2.0**24))]
    assert weighted_mean(items, [1, 1, 1]).flat.item() == pytest.approx(1 / 3, rel=1e-6)
    # In float64 the order shows at 2**53: (1 - 2**60) + 2**60 = 0, but (-2**60 + 2**60) + 1 = 1. Weights of one half
    # sum to 1 with a fourth item, so that no division rounds.
    values = {"first": [1.0, -(2.0**60), 2.0**60, 0.0], "last": [-(2.0**60), 2.0**60, 1.0, 0.0]}
    means = {
        name: weighted_mean([Params(torch.tensor([v]), big) for v in order], [0.25] * 4).flat.item()
        for name, order in values.items()
    }
    assert means == {"first": 0.0, "last": 0.25}


def test_weighted_mean_keeps_the_type_of_its_items() -> None:
    items = [Params(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), PAIR)]
    assert weighted_mean(items, [2]).flat.dtype == torch.float64


@pytest.mark.parametrize("weights", [[], [0, 0], [-1.0], [math.nan]])
def test_weighted_mean_refuses_weights_without_a_positive_sum(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="positive sum"):
        weighted_mean([pair(1, 2, 3)] * len(weights), weights)


def test_weighted_mean_refuses_items_and_weights_of_different_number() -> None:
    with pytest.raises(ValueError):
        weighted_mean([pair(1, 2, 3)], [1, 2])
    with pytest.raises(ValueError):
        weighted_mean([pair(1, 2, 3)] * 2, [1])


def test_a_batch_norm_network_keeps_its_statistics() -> None:
    module = nn.BatchNorm1d(2)
    cast(Tensor, module.running_mean).copy_(torch.tensor([5.0, 6.0]))
    params = Params.from_module(module)
    assert params.layers()["running_mean"].tolist() == [5.0, 6.0]
    assert "num_batches_tracked" not in params.layout.names


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


def network() -> nn.Module:
    """Layers of odd sizes, channels-last weights, and buffers."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 2)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def test_a_flat_module_computes_the_same_and_gives_the_change_to_the_bit() -> None:
    plain, flat = network(), FlatModule(network())
    images = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    assert torch.equal(flat.module(images), plain(images))  # which changes the statistics of both
    for mine, other in zip(flat.module.parameters(), plain.parameters(), strict=True):
        assert mine.stride() == other.stride() and mine.data_ptr() % 64 == flat.vector.data_ptr() % 64
    after = Params.from_module(plain)
    assert Params.from_module(flat.module).equals(after) and flat.params(flat.vector).equals(after)
    before = Params(torch.randn_like(after.flat), after.layout)
    flat.start_from(before)
    assert flat.change().equals(after - before)
    flat.reset()
    assert Params.from_module(flat.module).equals(before) and not flat.change().flat.any()
    with pytest.raises(ValueError, match="another layout"):
        flat.start_from(pair(1, 2, 3))


def test_a_flat_module_keeps_what_waits_in_its_other_vectors() -> None:
    flat = FlatModule(network())
    before = Params.from_module(flat.module)
    flat.start_from(before)
    waiting = []
    for place in (0, 1, 2):
        flat.reset(place)
        with torch.no_grad():
            flat.module[3].bias.add_(place + 1.0)
        waiting.append(flat.vector)
    flat.reset(3)
    assert Params.from_module(flat.module).equals(before)
    assert [float((vector - flat.start).sum()) for vector in waiting] == pytest.approx([2.0, 4.0, 6.0])


def test_a_flat_module_takes_back_tensors_that_were_replaced() -> None:
    flat = FlatModule(network())
    before = Params.from_module(flat.module)
    flat.start_from(before)
    for replace in (1, 2):
        flat.reset()
        layer = flat.module[3]
        if replace == 1:
            layer.bias = nn.Parameter(layer.bias.detach() + 1)
        else:
            layer.bias.data = layer.bias.data + 1
        assert Params.from_module(flat.module).equals(before) is False
        assert flat.change().equals(Params.from_module(flat.module) - before)
        assert float(flat.change().flat.sum()) == pytest.approx(2.0)
        layer.bias = nn.Parameter(torch.zeros(2))
        flat.reset()
        assert Params.from_module(flat.module).equals(before)
