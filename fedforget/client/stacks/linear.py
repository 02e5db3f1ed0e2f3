"""Networks of linear layers, stacked as batched matrix products; or, where few examples are trained on, as one product
for all clients and the factors of what changed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedforget.client.stacks.base import PlainStack, Stack

STACKABLE = (nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear, nn.ReLU)


def can_stack(model: nn.Module) -> bool:
    """Whether `LinearStack` understands the network: a sequence of pooling, flattening, linear layers and ReLU."""
    return isinstance(model, nn.Sequential) and all(type(module) in STACKABLE for module in model)


class LinearStack(Stack):
    """A `Stack` of networks that `can_stack`, as batched matrix products."""

    def __init__(self, model: nn.Module) -> None:
        assert can_stack(model), "the engine stacks only what can be stacked"
        super().__init__(model)
        self._given: list[Tensor] = []  # what each linear layer was given, [clients, batch, features]
        self._continues = False  # whether something lies before the first linear layer, ending in a ReLU
        self._entering = torch.zeros(0)  # if so, the loss's gradient by what that ReLU was given

    def logits(self, parameters: list[Tensor], x: Tensor) -> Tensor:
        """As in `Stack.logits`."""
        remaining, self._given = iter(parameters), []
        assert isinstance(self.layers, nn.Sequential)
        for module in self.layers:
            if isinstance(module, nn.Linear):
                self._given.append(x)
                weight, bias = next(remaining), next(remaining)
                x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
            elif isinstance(module, nn.ReLU):
                x = x.relu_()
        return x

    def gradients(self, parameters: list[Tensor], slope: Tensor) -> list[Tensor]:
        """As in `Stack.gradients`."""
        factors = list(self._backward(parameters, slope))[::-1]
        return [(left @ right).to(p.dtype).view_as(p) for p, (left, right) in zip(parameters, factors, strict=True)]

    def descend(self, parameters: list[Tensor], slope: Tensor, lr: float) -> None:
        """As in `Stack.descend`, in one pass over the parameters; gradients would be written first, and read again."""
        backwards = reversed(parameters)
        for parameter, (left, right) in zip(backwards, self._backward(parameters, slope), strict=True):
            matrix = parameter if parameter.dim() == 3 else parameter.unsqueeze(2)
            matrix.baddbmm_(left.to(matrix.dtype), right.to(matrix.dtype), alpha=-lr)

    def _backward(self, parameters: list[Tensor], slope: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Two factors for each parameter, from the last to the first, whose product is its gradient.

        A parameter may be changed once its factors are there: what lies before it needs it no more.
        """
        for number in reversed(range(len(self._given))):
            given, weight, left = self._given[number], parameters[2 * number], slope.transpose(1, 2)
            if number or self._continues:  # all layers but the first are given what a ReLU let through
                slope = self._entering = through_relu(torch.bmm(slope, weight), given)
            yield left, left.new_ones(()).expand(len(left), left.shape[2], 1)  # the bias
            yield left, given


def through_relu(slope: Tensor, answered: Tensor) -> Tensor:
    """The gradient by what a ReLU was given, for that by what it ``answered``."""
    return torch.ops.aten.threshold_backward(slope, answered, 0)  # what autograd would call


class FactoredStack(PlainStack):
    """A `PlainStack` of clients whose parameters are those sent plus products of two narrow matrices, until they end.

    A plain step changes a linear layer ``W [out, in]`` by ``-lr slope^T given``, of rank ``batch``. So after some steps
    ``W_k = W + A_k^T X_k``, where A_k holds the slopes, times -lr, and X_k what the layer was given, an example a row.
    The products with W, which all clients share, are one product; what a client adds to them is narrow; and its own
    matrix, which other stacks read and write in every step, is made once, at the end.

    Args:
        model: the network of one client.
        sent: the parameters that all of them start from, a flat vector ``[d]``.
        clients: how many they are.
        rank: most examples that any of them trains on, an example of two epochs being two.
    """

    def __init__(self, model: nn.Module, sent: Tensor, clients: int, rank: int) -> None:
        assert can_stack(model), "only what can be a LinearStack can be factored"
        super().__init__(model)
        assert isinstance(self.layers, nn.Sequential)
        layers = [module for module in self.layers if isinstance(module, nn.Linear)]
        self._done = 0  # examples so far
        self._slopes = [sent.new_empty(clients, rank, layer.out_features) for layer in layers]
        self._inputs = [sent.new_empty(clients, rank, layer.in_features) for layer in layers]

    @staticmethod
    def pays(model: nn.Module, rank: int) -> bool:
        """Whether the factors have no more numbers than the network, which is about where they begin to cost time."""
        weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]
        return rank * sum(sum(weight.shape) for weight in weights) <= sum(weight.numel() for weight in weights)

    def logits(self, parameters: list[Tensor], x: Tensor) -> Tensor:
        """As in `PlainStack.logits`; the parameters are those sent, and alike for all clients."""
        count, batch, number = *x.shape[:2], 0
        assert isinstance(self.layers, nn.Sequential)
        for module in self.layers:
            if isinstance(module, nn.Linear):
                inputs = self._inputs[number][:count]
                inputs[:, self._done : self._done + batch] = x
                weight, bias = parameters[2 * number][0], parameters[2 * number + 1][0]
                z = torch.addmm(bias, x.flatten(0, 1), weight.t()).unflatten(0, (count, batch))
                if self._done:
                    # The bias is a weight whose input is 1.
                    likeness = torch.baddbmm(x.new_ones(1, 1, 1), x, inputs[:, : self._done].transpose(1, 2))
                    z.baddbmm_(likeness, self._slopes[number][:count, : self._done])
                x, number = z, number + 1
            elif isinstance(module, nn.ReLU):
                x = x.relu_()
        return x

    def descend(self, parameters: list[Tensor], slope: Tensor, lr: float) -> None:
        """As in `PlainStack.descend`, but what would be added to the parameters is kept as factors."""
        count, batch = slope.shape[:2]
        now = slice(self._done, self._done + batch)
        for number in reversed(range(len(self._slopes))):
            for factor in (self._slopes[number], self._inputs[number]):
                factor[count:, now] = 0.0  # of clients that are done
            slopes, inputs = self._slopes[number][:count], self._inputs[number][:count]
            torch.mul(slope, -lr, out=slopes[:, now])
            if number:  # all layers but the first are given what a ReLU let through
                before = (slope.flatten(0, 1) @ parameters[2 * number][0]).unflatten(0, (count, batch))
                if self._done:
                    likeness = torch.bmm(slope, slopes[:, : self._done].transpose(1, 2))
                    before.baddbmm_(likeness, inputs[:, : self._done])
                slope = through_relu(before, inputs[:, now])
        self._done += batch

    def finish(self, changes: list[Tensor]) -> None:
        """Write each client's parameters, less those sent, to ``changes``, which are shaped as the parameters."""
        for number, (slopes, inputs) in enumerate(zip(self._slopes, self._inputs, strict=True)):
            torch.bmm(slopes.transpose(1, 2), inputs, out=changes[2 * number])
            torch.sum(slopes, 1, out=changes[2 * number + 1])
