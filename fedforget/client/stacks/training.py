"""Local training of a group of clients in one stack: `fedforget.routines.train` for all of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedforget.client.stacks.base import PlainStack, Stack
from fedforget.client.stacks.linear import FactoredStack, LinearStack
from fedforget.routines import Client, Optimizer, products, take


def train(clients: Sequence[Client], sent: Tensor, stack: Stack, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """`routines.train` for a group of clients at once.

    Args:
        clients: clients of one round and recipe; their steps, examples and losses are counted as if each had trained
            alone.
        sent: the parameters that all of them start from, a flat vector ``[d]`` on their device.
        stack: their network. A `LinearStack` is factored where that can be done and pays.
        images: all examples of the process, ``[N, C, H, W]``, of which clients have ``rows``.

    Returns:
        A vector ``[d]`` of each client in the order given, and what is to be subtracted from it to get the change of
        its parameters: ``sent`` from the parameters that it reached, or ``None`` if it is the change.
    """
    # Clients with the most steps first: those that still train are then always the first so many of the stack.
    order = sorted(range(len(clients)), key=lambda place: -clients[place].planned_steps())
    clients = [clients[place] for place in order]
    model, local = clients[0].model, clients[0].local
    index = _plan(clients)
    mu = float(clients[0].options.get("proximal-mu", 0.0))
    plain, rank = local.is_plain and not mu, index.shape[0] * index.shape[2]
    if type(stack) is LinearStack and plain and not clients[0].bfloat16 and FactoredStack.pays(model, rank):
        factored = FactoredStack(model, sent, len(clients), rank)
        _descend(clients, factored, _views(sent.expand(len(clients), -1), clients[0]), index, images)
        vectors, minus = sent.new_empty(len(clients), sent.numel()), None
        factored.finish(_views(vectors, clients[0]))
    else:
        # One vector a client, of which the stack's tensors are views: nothing has to be put together afterwards.
        vectors, minus = sent.repeat(len(clients), 1), sent
        away = _views(sent.unsqueeze(0), clients[0]) if mu else []
        _descend(clients, stack, _views(vectors, clients[0]), index, images, away, mu)
    return [vectors[order.index(place)] for place in range(len(clients))], minus


def _views(vectors: Tensor, client: Client) -> list[Tensor]:
    """The network's tensors ``[clients, ...]`` in flat vectors ``[clients, d]``."""
    shapes = [parameter.shape for parameter in client.parameters]
    pieces = vectors.split([shape.numel() for shape in shapes], 1)
    return [piece.view(-1, *shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _descend(
    clients: Sequence[Client],
    stack: PlainStack,
    parameters: list[Tensor],
    index: Tensor,
    images: Tensor,
    start: Sequence[Tensor] = (),
    mu: float = 0.0,
) -> None:
    """Take all steps; clients get their numbers of steps and examples, and their losses.

    Args:
        clients: those with the most steps first.
        stack: their network.
        parameters: its tensors, which change, unless the stack keeps factors.
        index: what `_plan` returned.
        images: all examples of the process.
        start: the tensors that FedProx's term, of weight ``mu``, pulls back to.
        mu: 0 for none.
    """
    local, sent = clients[0].local, parameters[0]
    steps = [client.planned_steps() for client in clients]
    examples = torch.cat([client.rows for client in clients])
    labels = torch.cat([client.labels for client in clients])
    index = index.to(labels.device)
    filled = index >= 0
    share = filled.to(sent.dtype) / filled.sum(2, keepdim=True).clamp(min=1)
    for client, seen in zip(clients, filled.sum((0, 2)).tolist(), strict=True):
        client.examples += seen
    index.clamp_(min=0)
    optimizer = Optimizer(parameters, local, clients[0].round)
    losses = torch.zeros(len(clients), dtype=sent.dtype, device=labels.device)
    for step in range(steps[0]):
        active = sum(length > step for length in steps)
        optimizer.narrow(active)
        rows = index[step, :active]
        inputs = stack.features(take(images, examples[rows.flatten()]).to(sent.dtype)).unflatten(0, rows.shape)
        with products(clients[0].bfloat16, images.device):
            logits = stack.logits(optimizer.parameters, inputs).detach().to(sent.dtype)
            loss, slope = _loss(logits, labels[rows], share[step, :active], local.sd_gamma)
            if local.is_plain and not mu:
                stack.descend(optimizer.parameters, slope, optimizer.lr)
            else:
                assert isinstance(stack, Stack), "only plain steps can do without gradients"
                gradients = stack.gradients(optimizer.parameters, slope)
                if mu:
                    torch._foreach_add_(gradients, torch._foreach_sub(optimizer.parameters, list(start)), alpha=mu)
                optimizer.step(gradients)
        losses[:active] += loss
    for client, length, total in zip(clients, steps, losses, strict=True):
        client.steps, client.total_loss = length, total


def _plan(clients: Sequence[Client]) -> Tensor:
    """The examples of each step, as rows of all clients' examples one after another.

    Returns:
        ``[steps, clients, width]`` in main memory, -1 where a client's batch is shorter than the widest or it has no
        such step.
    """
    steps = [client.planned_steps() for client in clients]
    sizes = [client.rows.numel() for client in clients]
    width = min(clients[0].local.batch_size, max(sizes))  # a batch_size may exceed every client's data
    index = torch.full((len(clients), max(steps) * width), -1)
    offset = 0
    # Through NumPy, whose small operations take a third of the time.
    for rows, client, length, size in zip(index.numpy(), clients, steps, sizes, strict=True):
        epoch = -(-size // width) * width  # an epoch's last batch may be short
        for number, start in enumerate(range(0, length * width, epoch)):
            order = client.order(number).numpy()[: length * width - start]
            rows[start : start + len(order)] = order + offset
        offset += size
    return index.view(len(clients), max(steps), width).transpose(0, 1)


def _loss(logits: Tensor, labels: Tensor, share: Tensor, sd_gamma: float) -> tuple[Tensor, Tensor]:
    """Each client's loss on its batch ``[clients]``, and its gradient by the logits.

    Args:
        logits: ``[clients, batch, classes]``.
        labels: ``[clients, batch]``.
        share: each example's share of its batch, 0 where there is none, ``[clients, batch]``.
        sd_gamma: as in `routines.sd_loss`.
    """
    log_p, true = logits.log_softmax(-1), labels.unsqueeze(-1)
    each = log_p.gather(-1, true).squeeze(-1).neg_()
    # What autograd would call, so that these are the bits of a client that trains alone.
    by_log_p = torch.zeros_like(logits).scatter_(-1, true, -share.unsqueeze(-1))
    slope = torch._log_softmax_backward_data(by_log_p, log_p, -1, logits.dtype)
    if sd_gamma:
        # The sample standard deviation of C numbers z has the gradient (z - mean) / ((C - 1) std), or 0 where it is 0.
        std = logits.std(-1)
        each = each + sd_gamma * std
        along = (sd_gamma * share / ((logits.shape[-1] - 1) * std)).masked_fill_(std == 0, 0.0)
        slope += along.unsqueeze(-1) * (logits - logits.mean(-1, keepdim=True))
    return (each * share).sum(1), slope
