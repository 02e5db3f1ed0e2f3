"""A module whose parameters lie in one vector, so that a client is loaded by one copy."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, repeat

import torch
from torch import Tensor, nn

from fedforget.core.exact import ends
from fedforget.params import Layout, Params, tensors_of

ALIGNED = 16  # entries of which the tensors of a `FlatModule` start at a multiple: 64 bytes, as torch's own tensors do


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
        tensors = tensors_of(module)
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
        """What a vector in main memory and in the order of `vector` holds, minus a number or another such vector."""
        params = Params(torch.empty(self.layout.size, dtype=vector.dtype), self.layout)
        if isinstance(minus, Tensor):
            subtracted: Iterable[Tensor] = self._views(minus)
        else:
            subtracted = repeat(torch.tensor(minus, dtype=torch.float64))
        for layer, view, other in zip(params.layers().values(), self._views(vector), subtracted, strict=False):
            torch.sub(view, other, out=layer)
        return params
