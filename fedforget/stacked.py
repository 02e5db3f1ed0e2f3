"""Many clients in one step: the same small network of several clients as one stack.

A small network spends its time on the dispatch of tiny operations; one batched operation for a group of clients pays
for that once. The numbers equal those of clients trained one by one up to the rounding of the products. Networks of
linear layers are stacked here, as batched matrix products; any other by vmapped.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from fedforget.routines import Client, Optimizer, products

STACKABLE = (nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear, nn.ReLU)


class Stack(Protocol):
    """The network of several clients, each with its own parameters."""

    @property
    def features(self) -> Callable[[Tensor], Tensor]:
        """What is done to images ``[n, C, H, W]`` before the first parameters, and so needs to be done but once."""

    def logits(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """``[clients, batch, classes]`` for features ``x [clients, batch, ...]`` and stacked parameters."""


def can_stack(model: nn.Module) -> bool:
    """Whether `LinearStack` understands the network: a sequence of pooling, flattening, linear layers and ReLU."""
    return isinstance(model, nn.Sequential) and all(type(module) in STACKABLE for module in model)


def halves(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The layers of a sequence before the first that has parameters, alike for all clients, and the others."""
    if not isinstance(model, nn.Sequential):
        return nn.Identity(), model
    first = next(place for place, module in enumerate(model) if next(module.parameters(), None) is not None)
    return model[:first], model[first:]


class LinearStack:
    """A `Stack` of networks that `can_stack`, as batched matrix products."""

    def __init__(self, model: nn.Module) -> None:
        assert can_stack(model), "the engine stacks only what can be stacked"
        self.features, layers = halves(model)
        assert isinstance(layers, nn.Sequential)
        self.layers = layers

    def logits(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """As in `Stack.logits`."""
        remaining = iter(parameters)
        for module in self.layers:
            if isinstance(module, nn.Linear):
                weight = next(remaining).transpose(1, 2)
                x = torch.baddbmm(next(remaining).unsqueeze(1), x, weight) if module.bias is not None else x @ weight
            elif isinstance(module, nn.ReLU):
                x = x.relu()
        return x


def train(clients: Sequence[Client], stack: Stack) -> list[Tensor]:
    """`routines.train` for a group of clients at once.

    Args:
        clients: clients of one round and recipe whose models hold the same parameters; their steps, examples and
            losses are counted as if each had trained alone.
        stack: their network.

    Returns:
        The trained parameters as a flat vector ``[d]``, one a client, in the order given.
    """
    # Clients with the most steps first: those that still train are then always the first so many of the stack.
    order = sorted(range(len(clients)), key=lambda place: -clients[place].planned_steps())
    clients = [clients[place] for place in order]
    model, local = clients[0].model, clients[0].local

    sizes = [len(client.labels) for client in clients]
    steps = [client.planned_steps() for client in clients]
    inputs = torch.cat([stack.features(client.inputs) for client in clients])
    labels = torch.cat([client.labels for client in clients])
    width = min(local.batch_size, max(sizes))  # a batch_size may exceed every client's data
    index = torch.full((steps[0], len(clients), width), -1, dtype=torch.long, device=labels.device)
    offset = 0
    for place, client in enumerate(clients):
        index[: steps[place], place] = _plan(client, steps[place], width, offset)
        offset += sizes[place]
    filled = index >= 0
    share = filled.to(inputs.dtype) / filled.sum(2, keepdim=True).clamp(min=1)
    for client, examples in zip(clients, filled.sum((0, 2)).tolist(), strict=True):
        client.examples += examples
    index.clamp_(min=0)

    sent = [parameter.detach() for parameter in model.parameters()]
    trained = [parameter.expand(len(clients), *parameter.shape).clone() for parameter in sent]
    optimizer = Optimizer(trained, local, clients[0].round)
    mu = float(clients[0].options.get("proximal-mu", 0.0))
    losses = torch.zeros(len(clients), dtype=inputs.dtype, device=labels.device)
    for step in range(steps[0]):
        active = sum(length > step for length in steps)
        optimizer.narrow(active)
        parameters = [parameter.detach().requires_grad_() for parameter in optimizer.parameters]
        rows = index[step, :active]
        with products(clients[0].bfloat16, inputs.device):
            logits = stack.logits(parameters, inputs[rows]).to(inputs.dtype)
        chosen = logits.log_softmax(-1).gather(-1, labels[rows].unsqueeze(-1)).squeeze(-1)
        loss = -(chosen * share[step, :active]).sum(1)
        if local.sd_gamma:
            loss = loss + local.sd_gamma * (logits.std(-1) * share[step, :active]).sum(1)
        gradients = list(torch.autograd.grad(loss.sum(), parameters))
        if mu:
            with torch.no_grad():
                torch._foreach_add_(gradients, torch._foreach_sub(parameters, sent), alpha=mu)
        optimizer.step(gradients)
        losses[:active] += loss.detach()

    for client, length, total in zip(clients, steps, losses, strict=True):
        client.steps, client.total_loss = length, total
    flat = torch.cat([parameter.flatten(1) for parameter in trained], 1)
    return [flat[order.index(place)] for place in range(len(clients))]


def _plan(client: Client, steps: int, width: int, offset: int) -> Tensor:
    """The examples of each of a client's steps, plus ``offset``: ``[steps, width]``, -1 where a batch is shorter."""
    rows: list[Tensor] = []
    done = 0
    for order in client.orders():
        batches = nn.functional.pad(order + offset, (0, -len(order) % width), value=-1).view(-1, width)
        rows.append(batches)
        done += len(batches)
        if done >= steps:
            break
    return torch.cat(rows)[:steps]
