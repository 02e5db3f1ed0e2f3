"""Model parameters as one flat vector with named layer views.

Server-side mathematics is vector arithmetic: ``w - eta * g``, ``w.dot(v)``, ``(w - w0).norm()``. A layer is one
parameter tensor of the module, under its `named_parameters` name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, repeat
from math import prod

import torch
from torch import Tensor, nn

BLOCK = 1 << 17  # entries; sums over long vectors go block by block, so that blocks stay in a core's own cache
EXACT_LIMIT = 128.0  # largest entry of an update that can be summed exactly, see `ExactSum`
EXACT_QUANTUM = 2.0**-42  # what its entries are rounded to, as a share of the sum's scale
ALIGNED = 16  # entries of which the tensors of a `FlatModule` start at a multiple: 64 bytes, as torch's own tensors do


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the layers, in the order in which they lie in the flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of ``module``: its parameters, then its floating-point buffers (integer buffers only count)."""
        tensors = _tensors(module)
        return cls(tuple(tensors), tuple(tuple(tensor.shape) for tensor in tensors.values()))

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of each layer."""
        return [prod(shape) for shape in self.shapes]

    @cached_property
    def size(self) -> int:
        """d, the number of entries in all."""
        return sum(self.sizes)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
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
        tensors = [tensor.detach().reshape(-1) for tensor in _tensors(module).values()]
        return cls(torch.cat(tensors), Layout.of(module))

    @classmethod
    def from_tensors(cls, module: nn.Module, tensors: Mapping[str, Tensor]) -> Params:
        """The vector in the layout of ``module`` with the given layers; layers not given are zero."""
        layers = _tensors(module)
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
            for tensor, layer in zip(_tensors(module).values(), self.layers().values(), strict=True):
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


class FlatModule:
    """A module whose tensors are moved into one vector, so that they are loaded and compared in one pass each.

    The tensors keep their strides (channels-last weights stay so) and their alignment, on which the order of a kernel's
    sums may depend. So the vector has an order of its own, and zeros between tensors; `params` translates. There are
    several such vectors, made when they are first asked for, so that what one client left can wait while the next
    client works in another.

    Args:
        module: its parameters and floating-point buffers are all of one type and on one device.

    Attributes:
        module: the same module.
        layout: its layout.
        trainable: its parameters that are trained, in the layout's order (every client would look for them).
        start: what `reset` loads, ``[D]`` with D >= d.
        start_ends: its least and its greatest entry.
    """

    def __init__(self, module: nn.Module) -> None:
        tensors = _tensors(module)
        self.module, self.layout = module, Layout.of(module)
        self.trainable: list[Tensor] = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._strides = [tensor.stride() for tensor in tensors.values()]
        self._starts = [0, *accumulate(-(-size // ALIGNED) * ALIGNED for size in self.layout.sizes)]
        first = next(iter(tensors.values()))
        self.start = torch.zeros(self._starts[-1], dtype=first.dtype, device=first.device)
        self.start_ends = (0.0, 0.0)
        self._vectors: list[Tensor] = []
        self._places: list[list[tuple[Tensor, int]]] = []  # by vector: where each tensor lies in it
        owners = dict(module.named_modules())
        self._homes = []
        for full_name in tensors:
            path, _, name = full_name.rpartition(".")
            owner = owners[path]._parameters if name in owners[path]._parameters else owners[path]._buffers
            self._homes.append((owner, name))
        self._at = self._vector(0)

    @property
    def vector(self) -> Tensor:
        """What the module holds, ``[D]``: the same memory, also where a routine has replaced some of its tensors."""
        for (owner, name), (view, address) in zip(self._homes, self._places[self._at], strict=True):
            tensor = owner[name]
            if tensor.data_ptr() != address:
                view.copy_(tensor.detach())
                tensor.data = view
        return self._vectors[self._at]

    def _vector(self, place: int) -> int:
        """The same place, once there is a vector for it."""
        while len(self._vectors) <= place:
            vector = torch.zeros_like(self.start)
            self._vectors.append(vector)
            self._places.append([(view, view.data_ptr()) for view in self._views(vector)])
        return place

    def _views(self, vector: Tensor) -> list[Tensor]:
        """Each layer of a vector in this order, in its shape and strides."""
        places = zip(self.layout.shapes, self._strides, self._starts[:-1], strict=True)
        return [vector.as_strided(shape, stride, start) for shape, stride, start in places]

    def start_from(self, params: Params) -> None:
        """Say what `reset` shall load.

        Raises:
            ValueError: if these parameters have another layout.
        """
        if params.layout != self.layout:
            raise ValueError("these parameters have another layout than the module they are to be copied to")
        torch._foreach_copy_(self._views(self.start), list(params.layers().values()))
        self.start_ends = ends(self.start)

    def reset(self, place: int = 0) -> None:
        """Give the module the parameters to start from, in the vector number ``place``; the others are left alone."""
        self._at = self._vector(place)
        for (owner, name), (view, _) in zip(self._homes, self._places[place], strict=True):
            owner[name].data = view
        self._vectors[place].copy_(self.start)

    def change(self) -> Params:
        """The module's parameters minus those that it started from, in main memory."""
        if self.start.device.type == "cpu":
            return self.params(self.vector, self.start)
        return self.params(torch.sub(self.vector, self.start).cpu())

    def params(self, vector: Tensor, minus: Tensor | float = 0.0) -> Params:
        """What a vector in main memory and in the order of `vector` holds, less a number or another such vector."""
        params = Params(torch.empty(self.layout.size, dtype=vector.dtype), self.layout)
        if isinstance(minus, Tensor):
            less: Iterable[Tensor] = self._views(minus)
        else:
            less = repeat(torch.tensor(minus, dtype=torch.float64))
        for layer, view, other in zip(params.layers().values(), self._views(vector), less, strict=False):
            torch.sub(view, other, out=layer)
        return params


def exact_scale(examples: int) -> float:
    """The scale of an exact sum over clients with so many examples in all: the next power of two."""
    return 2.0 ** max(0, (max(1, examples) - 1).bit_length())


def ends(vector: Tensor) -> tuple[float, float]:
    """The least and the greatest entry; both are NaN if any is."""
    least, greatest = torch.aminmax(vector)
    return float(least), float(greatest)


def can_add_exactly(vector: Tensor, minus: tuple[float, float] = (0.0, 0.0)) -> bool:
    """Whether an `ExactSum` takes a vector: float32, and no entry is NaN or beyond `EXACT_LIMIT`.

    Where a term is the difference of two vectors, ``minus`` are the `ends` of the other, and this asks whether every
    entry of the one may be subtracted from every entry of the other.
    """
    if vector.dtype != torch.float32:
        return False
    least, greatest = ends(vector)
    return least - minus[1] >= -EXACT_LIMIT and greatest - minus[0] <= EXACT_LIMIT


class ExactSum:
    """``sum_k weight_k (vector_k - minus)`` in float64, in whichever order and grouping with the same bits.

    Every term is rounded to a multiple of ``q = EXACT_QUANTUM * scale``, after which sums are exact (Demmel and Nguyen,
    "Fast Reproducible Floating-Point Summation", ARITH 2013, with one bin): partial sums are kept on top of a number
    so large that the last digit of float64 is worth q there, so an addition rounds its term and nothing else, as long
    as weights sum to at most ``4 * scale``. A term's rounding changes a mean over ``scale`` examples by at most 2^-43.

    Half a quantum would be rounded up or down depending on the sum so far. So a weight is raised to the next float64,
    whose last digit is 1: a product then has a digit far below half a quantum, whether it is rounded before it is
    added or not.

    Args:
        start: what the sum begins with, ``[d]``: zeros, or such a sum; not changed.
        scale: see `exact_scale`; the same for all terms of a sum.
        minus: float32 ``[d]``, subtracted in float32 from each vector; ``None`` for 0.
    """

    def __init__(self, start: Tensor, scale: float, minus: Tensor | None = None) -> None:
        self._large = 1.5 * 2.0**52 * EXACT_QUANTUM * scale
        self._sum = torch.add(start, self._large)
        self._minus = minus

    def add(self, terms: Iterable[tuple[Tensor, int]]) -> None:
        """Add vectors, float32 ``[d]``, see `can_add_exactly`, with n_k, at most ``scale``, of each."""
        # Block by block, so that what is not in the vectors stays in a core's cache.
        weighted = [(vector, math.nextafter(weight, math.inf)) for vector, weight in terms]
        size = self._sum.numel()
        change = torch.empty(min(BLOCK, size), dtype=torch.float32, device=self._sum.device)
        for start in range(0, size, BLOCK):
            here = slice(start, min(start + BLOCK, size))
            sums, minus = self._sum[here], None if self._minus is None else self._minus[here]
            for vector, weight in weighted:
                block = vector[here]
                if minus is not None:
                    block = torch.sub(block, minus, out=change[: len(block)])
                sums.add_(block, alpha=weight)  # in float64: the block is converted on its way

    def total(self, less: Callable[[Tensor, float], Tensor] = Tensor.sub_) -> Tensor:
        """The sum, float64 ``[d]``; nothing can be added to it any more.

        Args:
            less: a vector less a number; what it returns is returned.
        """
        total = less(self._sum, self._large)
        del self._sum
        return total


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
