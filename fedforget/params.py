"""Model parameters as one flat vector with named layer views.

Server-side mathematics is vector arithmetic: ``w - eta * g``, ``w.dot(v)``, ``(w - w0).norm()``. A layer is one
parameter tensor of the module, under its `named_parameters` name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn

from fedforget.core.exact import BLOCK


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the layers, in the order in which they lie in the flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of ``module``: its parameters, then its floating-point buffers (integer buffers only count)."""
        tensors = tensors_of(module)
        return cls(tuple(tensors), tuple(tuple(tensor.shape) for tensor in tensors.values()))

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of each layer."""
        return [prod(shape) for shape in self.shapes]

    @cached_property
    def size(self) -> int:
        """d, the number of entries in all."""
        return sum(self.sizes)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module that a flat vector holds, in its order: parameters, then floating-point buffers."""
    buffers = {name: tensor for name, tensor in module.named_buffers() if tensor.is_floating_point()}
    return {**dict(module.named_parameters()), **buffers}


@dataclass(frozen=True, eq=False)
class Params:
    """A point, or a direction, in parameter space.

    Args:
        flat: vector of shape ``[d]``.
        layout: how ``flat`` divides into layers.

    Raises:
        ValueError: if ``flat`` does not have the layout's size.
    """

    flat: Tensor
    layout: Layout

    def __post_init__(self) -> None:
        if tuple(self.flat.shape) != (self.layout.size,):
            raise ValueError(f"a vector of shape {tuple(self.flat.shape)} does not fit a layout of {self.layout.size}")

    def __repr__(self) -> str:
        """Its size alone: a message must not print every number of a model."""
        return f"Params({self.layout.size} numbers in {len(self.layout.names)} layers, {self.flat.dtype})"

    @classmethod
    def from_module(cls, module: nn.Module) -> Params:
        """A copy of the module's parameters."""
        tensors = [tensor.detach().reshape(-1) for tensor in tensors_of(module).values()]
        return cls(torch.cat(tensors), Layout.of(module))

    @classmethod
    def from_tensors(cls, module: nn.Module, tensors: Mapping[str, Tensor]) -> Params:
        """The vector in the layout of ``module`` with the given layers; layers not given are zero."""
        layers = tensors_of(module)
        flat = [tensors[name] if name in tensors else torch.zeros_like(layer) for name, layer in layers.items()]
        return cls(torch.cat([tensor.detach().reshape(-1) for tensor in flat]), Layout.of(module))

    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's parameters with these (the module keeps its device, dtype and memory format).

        Raises:
            ValueError: if the module has another layout.
        """
        if Layout.of(module) != self.layout:
            raise ValueError("these parameters have another layout than the module they are to be copied to")
        with torch.no_grad():
            for tensor, layer in zip(tensors_of(module).values(), self.layers().values(), strict=True):
                tensor.copy_(layer)

    def layers(self) -> dict[str, Tensor]:
        """Views of the flat vector, shaped as the layers, by name."""
        pieces = self.flat.split(self.layout.sizes)
        named = zip(self.layout.names, pieces, self.layout.shapes, strict=True)
        return {name: piece.view(shape) for name, piece, shape in named}

    def by_layer(self, function: Callable[..., Tensor], *others: Params) -> Params:
        """``function`` applied to each layer (and the same layer of ``others``); it returns a tensor of that shape."""
        stacks = zip(*(params.layers().values() for params in (self, *others)), strict=True)
        return Params(torch.cat([function(*layers).reshape(-1) for layers in stacks]), self.layout)

    def __add__(self, other: Params) -> Params:
        return Params(self.flat + other.flat, self.layout)

    def __sub__(self, other: Params) -> Params:
        return Params(self.flat - other.flat, self.layout)

    def __mul__(self, scale: float) -> Params:
        return Params(self.flat * scale, self.layout)

    __rmul__ = __mul__

    def __truediv__(self, scale: float) -> Params:
        return Params(self.flat / scale, self.layout)

    def __neg__(self) -> Params:
        return Params(-self.flat, self.layout)

    def dot(self, other: Params) -> float:
        """Inner product, accumulated in float64."""
        return float(self.flat.double() @ other.flat.double())

    def norm(self) -> float:
        """Euclidean norm, accumulated in float64."""
        return float(self.flat.double().norm())

    def cpu(self) -> Params:
        """The same values in main memory."""
        return Params(self.flat.cpu(), self.layout)

    def double(self) -> Params:
        """The same values in float64; clients work in the precision of the model they are sent."""
        return Params(self.flat.double(), self.layout)

    def float(self) -> Params:
        """The same values in float32."""
        return Params(self.flat.float(), self.layout)

    def is_finite(self) -> bool:
        """Whether no entry is NaN or infinite."""
        return bool(torch.isfinite(self.flat).all())

    def equals(self, other: Params) -> bool:
        """Bit-for-bit equality."""
        return self.layout == other.layout and torch.equal(self.flat, other.flat)


def weighted_mean(items: Iterable[Params], weights: Sequence[float]) -> Params:
    """``sum_k weights_k items_k / sum_k weights_k``, accumulated in float64 in the order given.

    Raises:
        ValueError: if items and weights differ in number, or the weights do not sum to something positive.
    """
    total = float(sum(weights))
    if not total > 0:
        raise ValueError(f"a weighted mean needs weights with a positive sum, got {list(weights)}")
    vectors = list(items)
    if len(vectors) != len(weights):
        raise ValueError(f"a weighted mean needs one weight an item, got {len(weights)} for {len(vectors)} items")
    first = vectors[0].flat
    mean = torch.empty_like(first)
    for start in range(0, len(first), BLOCK):
        block = torch.zeros(len(first[start : start + BLOCK]), dtype=torch.float64)
        for item, weight in zip(vectors, weights, strict=True):
            block.add_(item.flat[start : start + BLOCK], alpha=weight / total)
        mean[start : start + BLOCK] = block
    return Params(mean, vectors[0].layout)
