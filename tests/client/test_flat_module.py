"""A network in one vector computes what it computed before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedforget.client.flat_module import FlatModule
from fedforget.params import Layout, Params


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
        flat.start_from(Params(torch.zeros(3), Layout(("a",), ((3,),))))


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
