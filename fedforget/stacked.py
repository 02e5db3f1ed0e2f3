"""Many clients in one step: the same small network of several clients as a stack of batched matrix products.

A multilayer perceptron on a CPU spends its time on the dispatch of tiny operations; one batched product for a group of
clients pays for that once. The numbers equal those of clients trained one by one up to the rounding of the products.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fedforget.routines import Client, Optimizer

STACKABLE = (nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear, nn.ReLU)


def can_stack(model: nn.Module) -> bool:
    """Whether `train` understands the network: a sequence of pooling, flattening, linear layers and ReLU."""
    return isinstance(model, nn.Sequential) and all(type(module) in STACKABLE for module in model)


def train(clients: Sequence[Client], sent: Tensor) -> list[Tensor]:
    """`routines.train` for a group of clients at once.

    Args:
        clients: clients of one round and recipe; their steps, examples and losses are counted as if each had trained
            alone.
        sent: the parameters that all of them start from, a flat vector ``[d]``.

    Returns:
        The updates ``[d]``, one a client, in the order given.
    """
    # Clients with the most steps first: those that still train are then always the first so many of the stack.
    order = sorted(range(len(clients)), key=lambda place: -clients[place].planned_steps())
    clients = [clients[place] for place in order]
    model, local = clients[0].model, clients[0].local
    assert isinstance(model, nn.Sequential) and can_stack(model), "the engine stacks only what can be stacked"

    steps = [client.planned_steps() for client in clients]
    inputs = torch.cat([_features(model, client.inputs) for client in clients])
    labels = torch.cat([client.labels for client in clients])
    index = _plan(clients, steps)
    filled = index >= 0
    share = filled.to(inputs.dtype) / filled.sum(2, keepdim=True).clamp(min=1)
    for client, examples in zip(clients, filled.sum((0, 2)).tolist(), strict=True):
        client.examples += examples
    index.clamp_(min=0)

    shapes = [parameter.shape for parameter in model.parameters()]
    sizes = [shape.numel() for shape in shapes]
    layers = [piece.view(shape) for piece, shape in zip(sent.split(sizes), shapes, strict=True)]
    stack = [layer.expand(len(clients), *layer.shape).clone() for layer in layers]
    optimizer = Optimizer(stack, local, clients[0].round)
    mu = float(clients[0].options.get("proximal-mu", 0.0))
    losses = torch.zeros(len(clients), dtype=inputs.dtype, device=labels.device)
    for step in range(steps[0]):
        active = sum(length > step for length in steps)
        optimizer.narrow(active)
        rows = index[step, :active]
        tape = _forward(model, optimizer.parameters, inputs[rows])
        loss, slope = _loss(tape.pop(), labels[rows], share[step, :active], local.sd_gamma)
        if optimizer.is_plain and not mu:
            for parameter, left, right in _backward(tape, optimizer.parameters, slope):
                # The update in one pass over the parameters; a gradient made first would be written and read again.
                parameter.baddbmm_(left, right, alpha=-optimizer.lr)
        else:
            pieces = list(_backward(tape, optimizer.parameters, slope))
            gradients = [left @ right for _, left, right in reversed(pieces)]
            gradients = [g.view_as(p) for g, p in zip(gradients, optimizer.parameters, strict=True)]
            if mu:
                torch._foreach_add_(gradients, torch._foreach_sub(optimizer.parameters, layers), alpha=mu)
            optimizer.step(gradients)
        losses[:active] += loss

    for client, length, total in zip(clients, steps, losses, strict=True):
        client.steps, client.total_loss = length, total
    updates = torch.empty(len(clients), len(sent), dtype=sent.dtype, device=sent.device)
    for update, trained, layer in zip(updates.split(sizes, 1), stack, sent.split(sizes), strict=True):
        torch.sub(trained.flatten(1), layer, out=update)
    return [updates[order.index(place)] for place in range(len(clients))]


def _features(model: nn.Sequential, inputs: Tensor) -> Tensor:
    """What the first linear layer is given, ``[n, features]``: nothing before it has parameters, so once is enough."""
    for module in itertools.takewhile(lambda module: not isinstance(module, nn.Linear), model):
        inputs = module(inputs)
    return inputs


def _plan(clients: Sequence[Client], steps: Sequence[int]) -> Tensor:
    """The examples of each step, as rows of all clients' examples one after another.

    Returns:
        ``[steps, clients, width]``, -1 where a client's batch is shorter than the widest or it has no such step.
    """
    sizes = [len(client.labels) for client in clients]
    width = min(clients[0].local.batch_size, max(sizes))  # a batch_size may exceed every client's data
    index = torch.full((len(clients), max(steps), width), -1, dtype=torch.long, device=clients[0].labels.device)
    offset = 0
    for rows, client, length, size in zip(index, clients, steps, sizes, strict=True):
        flat = rows.view(-1)[: length * width]
        epoch = -(-size // width) * width  # an epoch's last batch may be short
        for start, order in zip(range(0, length * width, epoch), client.orders()):  # noqa: B905 (orders never end)
            flat[start : start + size] = order[: len(flat) - start] + offset
        offset += size
    return index.transpose(0, 1)


def _forward(model: nn.Sequential, parameters: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """What each linear layer is given, ``[clients, batch, features]``, and at last the logits."""
    remaining, tape = iter(parameters), []
    for module in model:
        if isinstance(module, nn.Linear):
            tape.append(x)
            weight, bias = next(remaining), next(remaining)
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
        elif isinstance(module, nn.ReLU):
            x = x.relu_()
    return [*tape, x]


def _loss(logits: Tensor, labels: Tensor, share: Tensor, sd_gamma: float) -> tuple[Tensor, Tensor]:
    """Each client's loss on its batch ``[clients]``, and the derivative with respect to the logits.

    Args:
        logits: ``[clients, batch, classes]``.
        labels: ``[clients, batch]``.
        share: each example's share of its batch, 0 where there is none, ``[clients, batch]``.
        sd_gamma: as in `routines.train`.
    """
    logits = logits.requires_grad_()
    each = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(share)
    if sd_gamma:
        each = each + sd_gamma * logits.std(-1)
    loss = (each * share).sum(1)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), slope


def _backward(
    tape: Sequence[Tensor], parameters: Sequence[Tensor], slope: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each parameter, from the last to the first, with two factors whose product ``left @ right`` is its gradient.

    Parameters may be changed as they come: what lies before them has been computed by then.

    Args:
        tape: what each linear layer was given.
        parameters: weight and bias of each.
        slope: the derivative with respect to the logits.
    """
    for number in reversed(range(len(tape))):
        given, weight, bias = tape[number], parameters[2 * number], parameters[2 * number + 1]
        # All layers but the first are given what a ReLU let through.
        before = torch.bmm(slope, weight).mul_(given > 0) if number else slope
        left = slope.transpose(1, 2)
        yield bias.unsqueeze(2), left, slope.new_ones(()).expand(*slope.shape[:2], 1)
        yield weight, left, given
        slope = before
