"""What a stack is: the same network of several clients, in one step.

A small network spends its time on the dispatch of tiny operations; one batched operation for a group of clients pays
for that once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class PlainStack(ABC):
    """The network of several clients, each with its own parameters, through one plain step of SGD at a time.

    Args:
        model: the network of one client.
    """

    def __init__(self, model: nn.Module) -> None:
        self.features, self.layers = halves(model)

    @abstractmethod
    def logits(self, parameters: list[Tensor], x: Tensor) -> Tensor:
        """``[clients, batch, classes]`` for ``x [clients, batch, ...]``, which `features` made of the images."""

    @abstractmethod
    def descend(self, parameters: list[Tensor], slope: Tensor, lr: float) -> None:
        """Subtract ``lr`` times their gradients from the parameters that the last `logits` were given.

        ``slope``: the loss's gradient by those logits.
        """


class Stack(PlainStack):
    """The same with gradients, for steps of any kind."""

    @abstractmethod
    def gradients(self, parameters: list[Tensor], slope: Tensor) -> list[Tensor]:
        """The gradient by each of the parameters that the last `logits` were given; ``slope`` as in `descend`."""

    def descend(self, parameters: list[Tensor], slope: Tensor, lr: float) -> None:
        """As in `PlainStack.descend`."""
        torch._foreach_add_(parameters, self.gradients(parameters, slope), alpha=-lr)


def halves(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The layers of a sequence before the first that has parameters, alike for all clients, and the others."""
    if not isinstance(model, nn.Sequential):
        return nn.Identity(), model
    first = next(place for place, module in enumerate(model) if next(module.parameters(), None) is not None)
    return model[:first], model[first:]
