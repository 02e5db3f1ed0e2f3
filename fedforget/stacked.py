"""Many clients in one step: the same small network of several clients as one stack.

A small network spends its time on the dispatch of tiny operations; one batched operation for a group of clients pays
for that once. The numbers equal those of clients trained one by one up to the rounding of the products. Networks of
linear layers are stacked here, as batched matrix products, or, where few examples are trained on, as one product for
all clients and the factors of what changed; small convolutional ones by convolved.py, any other by vmapped.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fedforget.routines import Client, Optimizer, products, take

STACKABLE = (nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear, nn.ReLU)


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


def can_stack(model: nn.Module) -> bool:
    """Whether `LinearStack` understands the network: a sequence of pooling, flattening, linear layers and ReLU."""
    return isinstance(model, nn.Sequential) and all(type(module) in STACKABLE for module in model)


def halves(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The layers of a sequence before the first that has parameters, alike for all clients, and the others."""
    if not isinstance(model, nn.Sequential):
        return nn.Identity(), model
    first = next(place for place, module in enumerate(model) if next(module.parameters(), None) is not None)
    return model[:first], model[first:]


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

    steps = [client.planned_steps() for client in clients]
    examples = torch.cat([client.rows for client in clients])
    labels = torch.cat([client.labels for client in clients])
    index = _plan(clients, steps).to(labels.device)
    filled = index >= 0
    share = filled.to(sent.dtype) / filled.sum(2, keepdim=True).clamp(min=1)
    for client, seen in zip(clients, filled.sum((0, 2)).tolist(), strict=True):
        client.examples += seen
    index.clamp_(min=0)

    shapes = [parameter.shape for parameter in clients[0].parameters]

    def views(vectors: Tensor) -> list[Tensor]:
        pieces = vectors.split([shape.numel() for shape in shapes], 1)
        return [piece.view(-1, *shape) for piece, shape in zip(pieces, shapes, strict=True)]

    mu = float(clients[0].options.get("proximal-mu", 0.0))
    plain, rank = local.is_plain and not mu, index.shape[0] * index.shape[2]
    factored = type(stack) is LinearStack and plain and not clients[0].bfloat16 and FactoredStack.pays(model, rank)
    working: PlainStack = FactoredStack(model, sent, len(clients), rank) if factored else stack
    # One vector a client, of which the stack's tensors are views, so that nothing has to be put together afterwards.
    vectors = sent.expand(len(clients), -1) if factored else sent.repeat(len(clients), 1)
    optimizer = Optimizer(views(vectors), local, clients[0].round)
    losses = torch.zeros(len(clients), dtype=sent.dtype, device=labels.device)
    for step in range(steps[0]):
        active = sum(length > step for length in steps)
        optimizer.narrow(active)
        rows = index[step, :active]
        inputs = stack.features(take(images, examples[rows.flatten()]).to(sent.dtype)).unflatten(0, rows.shape)
        with products(clients[0].bfloat16, images.device):
            logits = working.logits(optimizer.parameters, inputs).detach().to(sent.dtype)
            loss, slope = _loss(logits, labels[rows], share[step, :active], local.sd_gamma)
            if plain:
                working.descend(optimizer.parameters, slope, optimizer.lr)
            else:
                gradients = stack.gradients(optimizer.parameters, slope)
                if mu:
                    away = torch._foreach_sub(optimizer.parameters, views(sent.unsqueeze(0)))
                    torch._foreach_add_(gradients, away, alpha=mu)
                optimizer.step(gradients)
        losses[:active] += loss

    for client, length, total in zip(clients, steps, losses, strict=True):
        client.steps, client.total_loss = length, total
    if isinstance(working, FactoredStack):
        vectors = torch.empty_like(vectors, memory_format=torch.contiguous_format)
        working.finish(views(vectors))
    return [vectors[order.index(place)] for place in range(len(clients))], None if factored else sent


def _plan(clients: Sequence[Client], steps: Sequence[int]) -> Tensor:
    """The examples of each step, as rows of all clients' examples one after another.

    Returns:
        ``[steps, clients, width]`` in main memory, -1 where a client's batch is shorter than the widest or it has no
        such step.
    """
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
