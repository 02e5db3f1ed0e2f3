"""Stacked convolutional networks, by hand and beside torch's own; test_vmap_stack.py has their training."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedforget.client.stacks.conv import ConvStack, can_convolve
from fedforget.models import ModelConfig, build, initial

CPU = torch.device("cpu")


def network(*blocks: nn.Module, features: int, classes: int = 2) -> nn.Sequential:
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(features, classes))


def pooled(layer: nn.Conv2d, window: int) -> tuple[nn.Module, ...]:
    return layer, nn.MaxPool2d(window), nn.ReLU()


def test_by_hand() -> None:
    # One pooled output: the largest of the four answers of a 2 x 2 kernel on a 3 x 3 image. The first client's kernel
    # [[1, -1], [2, 0]] with bias 1 answers 0, 5, 4, -1, so 5; the second one's [[0, 1], [0, 0]] with bias 3 answers
    # 3 + [[2, 0], [1, 3]], so 6, on the image below, and on one of zeros 3 four times, where the first of them counts.
    image = torch.tensor([[1.0, 2, 0], [0, 1, 3], [2, 0, 1]])
    stack = ConvStack(network(*pooled(nn.Conv2d(1, 1, 2), 2), features=1, classes=1), (1, 3, 3), CPU)
    kernels = torch.tensor([[[1.0, -1], [2, 0]], [[0, 1], [0, 0]]]).view(2, 1, 1, 2, 2)
    biases, weights, shift = torch.tensor([[1.0], [3]]), torch.tensor([[[2.0]], [[-1]]]), torch.tensor([[0.0], [0.5]])
    x = torch.stack([torch.stack([image, image]), torch.stack([image, 0 * image])]).unsqueeze(2)
    logits = stack.logits([kernels, biases, weights, shift], x)
    assert logits.flatten(1).tolist() == [[10, 10], [-5.5, -2.5]]
    found = stack.gradients([kernels, biases, weights, shift], torch.tensor([[[1.0], [10]], [[1], [10]]]))
    # The slope by the pooled output is the last layer's weight, times 1 and 10; its patch is [[2, 0], [1, 3]] for the
    # first client's maximum, [[1, 3], [0, 1]] for the second's, and zeros.
    assert found[0].tolist() == [[[[[44, 0], [22, 66]]]], [[[[-1, -3], [0, -1]]]]]
    assert found[1].tolist() == [[22], [-11]], "of four equal answers only one is the maximum"
    assert found[2].tolist() == [[[55]], [[36]]]
    assert found[3].tolist() == [[11], [11]]


def test_the_first_of_equal_answers_passes_the_slope_on() -> None:
    # Two convolutions; the first is the identity. Of a constant image all answers of the second are alike.
    blocks = *pooled(nn.Conv2d(1, 1, 1), 1), *pooled(nn.Conv2d(1, 1, 2), 2)
    stack = ConvStack(network(*blocks, features=1, classes=1), (1, 3, 3), CPU)
    one, none = torch.ones(1, 1), torch.zeros(1, 1)
    kernel = torch.tensor([[1.0, 2], [3, 4]]).view(1, 1, 1, 2, 2)
    parameters = [one.view(1, 1, 1, 1, 1), none, kernel, none, one.view(1, 1, 1), none]
    image = torch.full((1, 1, 1, 3, 3), 5.0)
    assert stack.logits(parameters, image).item() == 50
    # The weight of the identity gets 5 for each pixel under the kernel, which is moved to the first place.
    assert stack.gradients(parameters, torch.ones(1, 1, 1))[0].item() == 5 * (1 + 2 + 3 + 4)
    entering = torch.arange(9.0).view(1, 1, 1, 3, 3) + 5
    stack.logits(parameters, entering)  # now the last place has the largest answer: pixels 9, 10, 12 and 13
    assert stack.gradients(parameters, torch.ones(1, 1, 1))[0].item() == 9 * 1 + 10 * 2 + 12 * 3 + 13 * 4


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.tuples(st.integers(7, 11), st.integers(7, 11)),
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=2
    ),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 1000),
)
def test_gradients_are_those_of_torch(channels, size, layers, clients, batch, blank, seed) -> None:
    torch.manual_seed(seed)
    blocks, shape = [], (channels, *size)
    for outputs, kernel, padding, window in layers:
        block = pooled(nn.Conv2d(shape[0], outputs, kernel, padding=padding), window)
        after = nn.Sequential(*block)(torch.zeros(1, *shape)).shape[1:] if min(shape[1:]) >= kernel + window else None
        if after is None:
            break
        blocks, shape = [*blocks, *block], tuple(after)
    model = network(*blocks, features=shape[0] * shape[1] * shape[2], classes=3).double()
    assert can_convolve(model)
    single = [torch.randn(clients, *p.shape, dtype=torch.float64) / p[0].numel() ** 0.5 for p in model.parameters()]
    x = torch.randn(clients, batch, channels, *size, dtype=torch.float64)
    if blank:
        x[..., : size[1] // 2] = 0.0  # where all answers of a window are equal
    slope = torch.randn(clients, batch, 3, dtype=torch.float64)
    stack = ConvStack(model, (channels, *size), CPU)
    logits, gradients = stack.logits(single, x), stack.gradients(single, slope)
    for client in range(clients):
        own = {name: p[client].requires_grad_() for (name, _), p in zip(model.named_parameters(), single, strict=True)}
        expected = torch.func.functional_call(model, own, (x[client],))
        torch.testing.assert_close(logits[client], expected.detach(), rtol=1e-11, atol=1e-12)
        by_each = torch.autograd.grad(expected, list(own.values()), slope[client])
        for found, right in zip(gradients, by_each, strict=True):
            torch.testing.assert_close(found[client], right, rtol=1e-11, atol=1e-11)
    moved = [parameter.detach().clone() for parameter in single]
    stack.logits(moved, x)
    stack.descend(moved, slope, 0.25)
    for parameter, old, gradient in zip(moved, single, gradients, strict=True):
        torch.testing.assert_close(parameter, old.detach() - 0.25 * gradient, rtol=1e-12, atol=1e-13)


def test_every_network_that_may_be_stacked_can_be() -> None:
    for name in ("lenet5", "cnn"):
        for shape in ((1, 8, 8), (3, 33, 32)):
            model = build(ModelConfig(name, 0.5), shape, 10)
            assert can_convolve(model)
            flat = [parameter.detach().unsqueeze(0) for parameter in model.parameters()]
            x = torch.randn(2, *shape)
            found = ConvStack(model, shape, CPU).logits(flat, x.unsqueeze(0))
            torch.testing.assert_close(found[0], model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "block",
    [
        pooled(nn.Conv2d(1, 2, 3, stride=2), 2),
        pooled(nn.Conv2d(1, 2, 3, dilation=2), 2),
        pooled(nn.Conv2d(1, 2, (3, 2)), 2),
        pooled(nn.Conv2d(1, 2, 3, bias=False), 2),
        pooled(nn.Conv2d(1, 2, 3, padding="same"), 2),
        pooled(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), 2),
        pooled(nn.Conv2d(2, 2, 3, groups=2), 2),
        (nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, stride=2), nn.ReLU()),
        (nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()),
        (nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2)),
        (nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.ReLU()),
        (nn.Conv2d(1, 2, 3), nn.ReLU()),
        (),
    ],
)
def test_what_cannot_be_convolved(block: tuple[nn.Module, ...]) -> None:
    assert not can_convolve(network(*block, features=2))
    assert can_convolve(network(*pooled(nn.Conv2d(1, 2, 3), 2), features=2))


def test_a_residual_network_cannot_be_convolved() -> None:
    assert not can_convolve(initial(ModelConfig("resnet18", 0.1), (1, 8, 8), 10, 0))
    assert not can_convolve(initial(ModelConfig("vit", 0.1), (1, 8, 8), 10, 0))
