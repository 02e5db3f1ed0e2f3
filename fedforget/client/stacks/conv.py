"""Small convolutional networks of several clients in one step, as batched matrix products.

A convolution is the product of its kernels with the patches that they see. Libraries make theirs for more channels than
the first layers of a small network have, and pool neighbours, which lie badly in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, reduce

import torch
from torch import Tensor, nn

from fedforget.client.stacks.linear import LinearStack, can_stack, through_relu


def can_convolve(model: nn.Module) -> bool:
    """Whether `ConvStack` understands the network: convolutions, each max-pooled before ReLU, then linear layers.

    Convolutions have square kernels, a bias, stride 1 and zeros around; windows of the pooling do not overlap.
    """
    if not isinstance(model, nn.Sequential):
        return False
    modules = list(model)
    first = next((number for number, module in enumerate(modules) if isinstance(module, nn.Flatten)), 0)
    threes = [modules[number : number + 3] for number in range(0, first, 3)]
    return first > 0 and first % 3 == 0 and all(map(_is_pooled, threes)) and can_stack(model[first:])


def _is_pooled(modules: list[nn.Module]) -> bool:
    layer, pool, relu = modules
    if not (type(layer) is nn.Conv2d and type(pool) is nn.MaxPool2d and type(relu) is nn.ReLU):
        return False
    if layer.bias is None or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return False
    simple = layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and len(set(layer.kernel_size)) == 1
    window = pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
    return simple and isinstance(pool.kernel_size, int) and window == (pool.kernel_size, pool.kernel_size, 0, 1, False)


class ConvStack(LinearStack):
    """A `Stack` of networks that `can_convolve`.

    Args:
        model: the network of one client.
        shape: (channels, height, width) of an image.
        device: where it works.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], device: torch.device) -> None:
        assert can_convolve(model) and isinstance(model, nn.Sequential), "the engine stacks only what can be stacked"
        first = next(number for number, module in enumerate(model) if isinstance(module, nn.Flatten))
        super().__init__(model[first:])
        self.features = nn.Identity()
        self._continues = True
        self._convolutions: list[_Convolution] = []
        self._maps: list[Tensor] = []  # what each of them answers behind its ReLU
        for number in range(0, first, 3):
            layer, window = model[number], model[number + 1].kernel_size
            assert isinstance(layer, nn.Conv2d) and isinstance(window, int)
            self._convolutions.append(_Convolution(layer, window, shape, device))
            shape = self._convolutions[-1].shape

    def logits(self, parameters: list[Tensor], x: Tensor) -> Tensor:
        """As in `Stack.logits`."""
        self._maps, x = [], x.flatten(2).transpose(1, 2)
        for number, convolution in enumerate(self._convolutions):
            weight, bias = parameters[2 * number : 2 * number + 2]
            x = convolution.forward(weight, bias, x).relu_()
            self._maps.append(x)
        return super().logits(parameters[2 * len(self._convolutions) :], x.transpose(1, 2))

    def gradients(self, parameters: list[Tensor], slope: Tensor) -> list[Tensor]:
        """As in `Stack.gradients`."""
        last = super().gradients(parameters[2 * len(self._convolutions) :], slope)
        return list(self._through_convolutions())[::-1] + last

    def descend(self, parameters: list[Tensor], slope: Tensor, lr: float) -> None:
        """As in `Stack.descend`."""
        first = 2 * len(self._convolutions)
        super().descend(parameters[first:], slope, lr)
        gradients = list(self._through_convolutions())[::-1]
        torch._foreach_add_(parameters[:first], gradients, alpha=-lr)

    def _through_convolutions(self) -> Iterator[Tensor]:
        """The gradients by the convolutions' parameters, from the last to the first."""
        slope = self._entering.transpose(1, 2)
        for number in reversed(range(len(self._convolutions))):
            by_weight, by_bias, by_x = self._convolutions[number].backward(slope, further=number > 0)
            yield by_bias
            yield by_weight
            if by_x is not None:
                slope = through_relu(by_x, self._maps[number - 1])


class _Convolution:
    """A convolution of several clients, and the max pooling behind it, as one product a client.

    The maximum over a p x p window of what a k x k kernel answers is the maximum of what p^2 kernels of side k + p - 1
    answer in one place: each is that kernel, moved within a patch that all of them see, with zeros around it. So there
    are only as many patches as there are pooled outputs, and the maximum is taken of whole matrices.

    Activations are ``[clients, C * H * W, batch]``: a patch is put together from runs of ``batch`` numbers. Two rows go
    behind them, of zeros, for what lies outside the image, and of ones, whose weight is the bias.

    Args:
        layer: the convolution of one client.
        pool: p, the side of a window.
        shape: (channels, height, width) of what it is given.
        device: where it works.
    """

    def __init__(self, layer: nn.Conv2d, pool: int, shape: tuple[int, ...], device: torch.device) -> None:
        self.kernel, self.pool, self.side = layer.kernel_size[0], pool, layer.kernel_size[0] + pool - 1
        padding = tuple(map(int, layer.padding))
        rows, columns = (
            (size + 2 * around - self.kernel + 1) // pool for size, around in zip(shape[1:], padding, strict=True)
        )
        self.shape = layer.out_channels, rows, columns  # of what it answers
        self.inputs = shape[0] * self.side**2  # numbers in a patch
        self._patches, self._back = _patches(shape, padding, self.side, pool, (rows, columns), device)

    def forward(self, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        """What it answers, pooled: ``[clients, outputs, batch]`` for ``x [clients, pixels, batch]``."""
        count, _, batch = x.shape
        rows = torch.cat([x, x.new_zeros(count, 1, batch), x.new_ones(count, 1, batch)], 1)
        self._seen = rows.index_select(1, self._patches).view(count, self.inputs + 1, -1)
        # Behind its weights a kernel has its bias, and a 0: the gradient by what that sees is what `_back` ends with.
        self._kernels = weight.new_zeros(count, self.pool**2 * self.shape[0], self.inputs + 2)
        self._moved(self._kernels).copy_(weight[:, None, None])
        self._kernels.unflatten(1, (self.pool**2, -1))[..., self.inputs] = bias.unsqueeze(1)
        answers = torch.bmm(self._kernels[..., :-1], self._seen)
        # As images of p^2 x 1 pixels, each of which is a window, of very many channels, which lie last in memory.
        self._windows = answers.view(count, self.pool**2, 1, -1).permute(0, 3, 1, 2)
        pooled, self._largest = torch.ops.aten.max_pool2d_with_indices(self._windows, [self.pool**2, 1])
        return pooled.view(count, -1, batch)

    def backward(self, slope: Tensor, further: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """The gradient by weight, bias and, if it goes ``further``, x, for ``slope``, that by what `forward` gave."""
        count, _, batch = slope.shape
        size, window = self._windows.shape[1], [self.pool**2, 1]
        slope = slope.reshape(count, -1).as_strided((count, size, 1, 1), (size, 1, size, size))  # channels last
        slopes = torch.ops.aten.max_pool2d_with_indices_backward(
            slope, self._windows, window, window, [0, 0], [1, 1], False, self._largest
        )
        slopes = slopes.permute(0, 2, 3, 1).reshape(count, self.pool**2 * self.shape[0], -1)
        by_kernels = torch.bmm(slopes, self._seen.transpose(1, 2)).to(self._kernels.dtype)
        by_bias = by_kernels[..., self.inputs].unflatten(1, (self.pool**2, -1)).sum(1)
        by_weight = reduce(torch.add, (one for down in self._moved(by_kernels).unbind(1) for one in down.unbind(1)))
        if not further:
            return by_weight, by_bias, None
        by_patches = torch.bmm(self._kernels.transpose(1, 2), slopes).view(count, -1, batch)
        starts = by_patches.shape[1] * torch.arange(count, device=slope.device)
        # Adds in a fixed order, as scattering on a GPU would not.
        by_x = nn.functional.embedding_bag(
            (self._back + starts.view(-1, 1, 1)).flatten(0, 1), by_patches.flatten(0, 1), mode="sum"
        )
        return by_weight, by_bias, by_x.view(count, -1, batch)

    def _moved(self, kernels: Tensor) -> Tensor:
        """The kernels inside of ``kernels [clients, p^2 * out, numbers]``, ``[clients, p, p, out, in, k, k]``."""
        count, rows, numbers = kernels.shape
        out, area = self.shape[0], self.side**2
        sizes = (count, self.pool, self.pool, out, self.inputs // area, self.kernel, self.kernel)
        down, right = self.pool * out * numbers + self.side, out * numbers + 1
        return kernels.as_strided(sizes, (rows * numbers, down, right, numbers, area, self.side, 1))


@lru_cache(maxsize=16)
def _patches(
    shape: tuple[int, ...],
    padding: tuple[int, ...],
    side: int,
    stride: int,
    outputs: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Which pixels patches consist of, and which patches a pixel is in.

    Args:
        shape: (channels, height, width) of an image.
        padding: zeros above and left of it, and below and right.
        side: of a patch.
        stride: from one patch to the next.
        outputs: how many patches there are, down and to the right.
        device: where the answer is to be.

    Returns:
        The pixel of each number of the patches, ordered as ``[channel, y in the patch, x in the patch, y of the patch,
        x of it]``, and behind them a row for ones: pixels are numbered, then come a zero and a one. And for each pixel
        the places that it has in that order, ``[1, pixels, most]``, filled up with the first place behind all of these.
    """
    channels, height, width = shape
    y, x = (
        stride * torch.arange(count) + torch.arange(side).unsqueeze(1) - around
        for count, around in zip(outputs, padding, strict=True)
    )
    y, x = y[:, None, :, None], x[None, :, None, :]
    pixel = (torch.arange(channels).view(-1, 1, 1, 1, 1) * height + y) * width + x
    pixels, outside = channels * height * width, (y < 0) | (y >= height) | (x < 0) | (x >= width)
    places = torch.where(outside, pixels, pixel).flatten()
    ones = torch.full((math.prod(outputs),), pixels + 1)
    order, times = places.argsort(stable=True), torch.bincount(places, minlength=pixels + 1)
    back = torch.full((pixels + 1, int(times.max())), len(places) + len(ones))
    back[places[order], torch.arange(len(order)) - (times.cumsum(0) - times)[places[order]]] = order
    return torch.cat([places, ones]).to(device), back[None, :-1, : int(times[:-1].max())].to(device)
