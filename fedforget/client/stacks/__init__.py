"""Many clients in one step: the same small network of several clients as one stack.

The numbers equal those of clients trained one by one up to the rounding of the products. Networks of linear layers are
stacked by linear.py, small convolutional ones by conv.py, any other by vmap.py; training.py is the loop.
"""

from __future__ import annotations

import torch
from torch import nn

from fedforget.client.stacks.base import Stack
from fedforget.client.stacks.conv import ConvStack
from fedforget.client.stacks.linear import LinearStack, can_stack
from fedforget.client.stacks.training import train
from fedforget.client.stacks.vmap import VmapStack

__all__ = ["Stack", "choose", "train"]


def choose(engine: str, model: nn.Module, shape: tuple[int, int, int], device: torch.device) -> Stack:
    """The stack of a network.

    Args:
        engine: ``vmap`` or ``stacked``, see `fedforget.messages.Task.engine`.
        model: the network of one client.
        shape: (channels, height, width) of an image.
        device: where it works.
    """
    if engine == "vmap":
        return VmapStack(model)
    return LinearStack(model) if can_stack(model) else ConvStack(model, shape, device)
