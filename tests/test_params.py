"""Flat parameter vectors: layout, arithmetic, and the one weighted mean that every aggregation uses."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedforget.params import Layout, Params, weighted_mean

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
