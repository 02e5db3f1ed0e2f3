"""Client-side work shared by several papers, and the `Client` that every routine receives.

A routine is a function of one `Client`. It either changes ``client.model`` and returns nothing, and the reply is the
update (model after minus model before), or it returns `Params`, and they are the reply. A strategy passes the function
itself, which lives in this file or beside the strategy that needs it; messages carry its name, ``"module:function"``.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedforget.params import Layout, Params
from fedforget.schema.local import LocalConfig
from fedforget.seeds import Seeds

OPTIMIZERS = ("sgd", "adam")
MASKS = ("top", "rotating")
PACKAGES = ("fedforget.routines", "strategies.")

Option = int | float | str | Sequence[int | float | str]  # what a strategy may send along by name


class Optimizer:
    """SGD or Adam over a list of tensors, equal to ``torch.optim`` to the bit for SGD.

    ``torch.optim`` itself costs about a second of imports in every worker process at its first use (measured).
    """

    def __init__(self, parameters: list[Tensor], local: LocalConfig, round: int) -> None:
        self.parameters = parameters
        self.local = local
        self.lr = local.lr * local.decay(round)
        self.steps = 0
        self.first: list[Tensor] = []
        self.second: list[Tensor] = []

    def narrow(self, count: int) -> None:
        """Go on with the first ``count`` of stacked clients only (tensors are stacked along their first axis)."""
        if count < len(self.parameters[0]):
            lists = (self.parameters, self.first, self.second)
            self.parameters, self.first, self.second = ([tensor[:count] for tensor in tensors] for tensors in lists)

    @torch.no_grad()
    def step(self, gradients: list[Tensor]) -> None:
        """One step along ``gradients`` (one tensor a parameter)."""
        self.steps += 1
        if self.local.weight_decay:
            gradients = list(torch._foreach_add(gradients, self.parameters, alpha=self.local.weight_decay))
        if self.local.optimizer == "adam":
            self._adam(gradients)
        elif self.local.momentum:
            if not self.first:
                self.first = [gradient.clone() for gradient in gradients]
            else:
                torch._foreach_mul_(self.first, self.local.momentum)
                torch._foreach_add_(self.first, gradients)
            torch._foreach_add_(self.parameters, self.first, alpha=-self.lr)
        else:
            torch._foreach_add_(self.parameters, gradients, alpha=-self.lr)

    def _adam(self, gradients: list[Tensor], beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        """Kingma and Ba, Adam, ICLR 2015 (arXiv 1412.6980), algorithm 1, with torch's defaults."""
        if not self.first:
            self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
            self.second = [torch.zeros_like(parameter) for parameter in self.parameters]
        torch._foreach_lerp_(self.first, gradients, 1 - beta1)
        torch._foreach_mul_(self.second, beta2)
        torch._foreach_addcmul_(self.second, gradients, gradients, 1 - beta2)
        denominator = torch._foreach_sqrt(self.second)
        torch._foreach_div_(denominator, (1 - beta2**self.steps) ** 0.5)
        torch._foreach_add_(denominator, eps)
        torch._foreach_addcdiv_(self.parameters, self.first, denominator, -self.lr / (1 - beta1**self.steps))


class Shelf(Protocol):
    """Where a client keeps vectors on its own disk, by name (`fedforget.store.Shelf`)."""

    def put(self, name: str, vector: Tensor) -> None:
        """Keep a vector."""

    def get(self, name: str) -> Tensor:
        """The vector of that name; an error if there is none."""


@dataclass
class Client:
    """One client at work on one split of its data, as a routine sees it.

    Args:
        id: the client id.
        round: the round it works in; it fixes the learning rate and the random stream.
        model: the module, holding the parameters that the server sent.
        inputs: examples of the split, ``[n, C, H, W]``; none for a client in a stack, which reads its ``rows``.
        labels: their labels, ``[n]``.
        places: where each example stands in the client's whole training split, ``[n]``. Shuffles permute the whole
            split and then drop what is absent, so an oracle sees its data in the original's order.
        capacity: size of that whole split.
        local: the recipe.
        options: what the strategy sent along, by name: numbers, texts and tuples of them.
        vectors: parameter vectors that the strategy sent along, by name.
        seeds: the client's random streams in this round.
        rows: where each example stands among all that the process holds, ``[n]``. These, ``places``, ``forgotten`` and
            ``planned`` serve the client's later rounds as well, and must not be written to.
        forgotten: which examples the request being served names, booleans ``[n]``.
        planned: number of the first of the requests known beforehand that names each example, ``[n]``; -1 if none does.
        shelf: where the client keeps vectors for later, if its strategy's card says ``client_records``.
        sparse: whether the reply is billed by its non-zero entries (set by routines that change only some).
        bfloat16: whether `logits` multiplies in bfloat16; parameters and gradients are in float32 all the same.
    """

    id: int
    round: int
    model: nn.Module
    inputs: Tensor
    labels: Tensor
    places: Tensor
    capacity: int
    local: LocalConfig
    seeds: Seeds
    options: Mapping[str, Any] = field(default_factory=dict)
    vectors: Mapping[str, Params] = field(default_factory=dict)
    forgotten: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    steps: int = 0
    examples: int = 0
    total_loss: Tensor | float = 0.0
    sparse: bool = False
    bfloat16: bool = False
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    planned: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    shelf: Shelf | None = None
    _optimizer: Optimizer | None = None
    _sent: list[Tensor] = field(default_factory=list)

    @cached_property
    def parameters(self) -> list[Tensor]:
        """The module's trainable parameters, in the layout's order (found once: every step asks for them)."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def lr(self) -> float:
        """The learning rate of this round."""
        return self.local.lr * self.local.decay(self.round)

    @contextmanager
    def listen(self, names: Iterable[str], heard: Callable[[str, nn.Module, Tensor, Tensor], None]) -> Iterator[None]:
        """Hear, while it lasts, what goes in and out of the modules that hold the weights called ``names``.

        Each time such a module is applied, ``heard(name, module, inputs, outputs)`` is called. Weights that no module
        applies by itself (attention's input projection) are not heard.
        """
        modules = dict(self.model.named_modules())

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            return lambda module, inputs, outputs: heard(name, module, inputs[0], outputs)

        handles = [
            modules[holder].register_forward_hook(hook(name))
            for name in names
            if (holder := name.removesuffix(".weight")) in modules
        ]
        try:
            yield
        finally:  # the next client gets the same module
            for handle in handles:
                handle.remove()

    def vector(self, tensors: Iterable[Tensor]) -> Params:
        """One tensor for each of the `parameters`, as a vector in the model's layout."""
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        return Params.from_tensors(self.model, dict(zip(names, tensors, strict=True)))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled mini-batches ``(inputs, labels)`` for as many epochs or steps as the recipe says."""
        for batch in self.batch_indices():
            yield take(self.inputs, batch), self.labels[batch]

    def batch_indices(self) -> Iterator[Tensor]:
        """Which examples each of the `batches` holds."""
        left = self.planned_steps()
        for epoch in itertools.count():
            if not left:
                return
            batches = self.order(epoch).to(self.labels.device).split(self.local.batch_size)[:left]
            for batch in batches:
                self.examples += batch.numel()
                yield batch
            left -= len(batches)

    def planned_steps(self) -> int:
        """How many steps the recipe asks of this client.

        The option ``effort`` (0 to 1) asks for that share of them, rounded up.
        """
        return self.local.planned_steps(self.labels.shape[0], float(self.options.get("effort", 1.0)))

    def order(self, epoch: int) -> Tensor:
        """The order of the examples in an epoch, counted from 0, ``[n]`` in main memory."""
        order = torch.from_numpy(self.seeds.numpy("shuffle", epoch).permutation(self.capacity))
        if self.places.numel() == self.capacity:
            return order
        where = torch.full((self.capacity,), -1)
        where[self.places] = torch.arange(self.places.numel())
        order = where[order]
        return order[order >= 0]

    def logits(self, inputs: Tensor) -> Tensor:
        """What the model answers on a batch, ``[n, classes]`` in the precision of the inputs."""
        with products(self.bfloat16, inputs.device):
            return self.model(inputs).to(inputs.dtype)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the model on a batch, in nats."""
        return nn.functional.cross_entropy(self.model(inputs), labels)

    def step(self, loss: Tensor) -> None:
        """One optimiser step down ``loss``."""
        if self._optimizer is None:
            self._optimizer = Optimizer([parameter.data for parameter in self.parameters], self.local, self.round)
        gradients = list(torch.autograd.grad(loss, self.parameters))
        mu = self.options.get("proximal-mu")
        if mu:
            # FedProx (Li et al., MLSys 2020, arXiv 1812.06127): the gradient of mu/2 ||w - w_global||^2.
            with torch.no_grad():
                torch._foreach_add_(gradients, torch._foreach_sub(self.parameters, self._anchor()), alpha=float(mu))
        self._optimizer.step(gradients)
        self.steps += 1
        self.total_loss = self.total_loss + loss.detach()

    def _anchor(self) -> list[Tensor]:
        """The parameters as the server sent them, kept from the first step on."""
        if not self._sent:
            self._sent = [parameter.detach().clone() for parameter in self.parameters]
        return self._sent

    def with_recipe(self) -> Client:
        """This client, with its options applied to the recipe, see `LocalConfig.with_options`."""
        local = self.local.with_options(self.options)
        return self if local is self.local else replace(self, local=local)


Routine = Callable[[Client], Params | None]


def take(images: Tensor, rows: Tensor) -> Tensor:
    """``images[rows]`` of ``[N, C, H, W]``, laid out in memory as the images are, in about a fifth of the time."""
    size = images[:1].numel()
    if images.stride(0) != size or not (
        images.is_contiguous() or images.is_contiguous(memory_format=torch.channels_last)
    ):
        return images[rows]
    chosen = images.as_strided((len(images), size), (size, 1)).index_select(0, rows)
    return chosen.as_strided((len(rows), *images.shape[1:]), images.stride())


def products(bfloat16: bool, device: torch.device) -> AbstractContextManager:
    """Where float32 networks multiply in bfloat16, if asked, by torch's autocast; float64 ones are left alone."""
    # Without a cache: the copy of a weight would be of no use, because a forward pass needs every weight once.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if bfloat16 else nullcontext()


def train(client: Client) -> None:
    """Minimise the mean cross-entropy by mini-batch steps (FedAvg's ClientUpdate; McMahan et al., AISTATS 2017).

    With ``sd_gamma`` the loss of a batch is `sd_loss`.
    """
    for inputs, labels in client.batches():
        client.step(sd_loss(client.logits(inputs), labels, client.local.sd_gamma))


def sd_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """The SD loss ``mean_i CE_i + gamma mean_i std_c(logits_i)``, in nats; the mean cross-entropy for ``gamma=0``.

    ``std_c`` is the sample standard deviation over classes (C - 1 in the denominator). Models learned so change less
    and are easier to unlearn from (Thudi, Deza, Chandrasekaran and Papernot, "Unrolling SGD", EuroS&P 2022, arXiv
    2109.13398; their code divides by the number of classes too, so its gamma is C times as large).

    Args:
        logits: ``[n, classes]``.
        labels: ``[n]``.
        gamma: weight of the penalty, not negative.
    """
    loss = nn.functional.cross_entropy(logits, labels)
    return loss + gamma * logits.std(1).mean() if gamma else loss


def gradient(client: Client) -> Params:
    """The gradient of the mean cross-entropy over the whole split, at the parameters sent."""
    gradients = torch.autograd.grad(client.loss(client.inputs, client.labels), client.parameters)
    client.steps, client.examples = 1, len(client.labels)
    return client.vector(gradients)


def match(client: Client) -> None:
    """Minimise the mean squared difference between the model's logits and a mixture of other models' logits.

    The vectors are the other models; the option of the same name is a model's weight in the mixture.
    """
    mixture: Tensor | float = 0.0
    with torch.no_grad():
        for name, vector in client.vectors.items():
            layers = Params(vector.flat.to(client.inputs.device), vector.layout).layers()
            batches = client.inputs.split(500)
            logits = torch.cat([torch.func.functional_call(client.model, layers, (inputs,)) for inputs in batches])
            mixture = mixture + float(client.options[name]) * logits
            client.examples += len(logits)
    assert isinstance(mixture, Tensor), "there is no model to match"
    client.labels = mixture  # from here on these are what a batch is compared with
    for inputs, targets in client.batches():
        client.step(nn.functional.mse_loss(client.model(inputs), targets))


def divergence(client: Client, inputs: Tensor) -> Tensor:
    """``T^2 KL(p_teacher^T || p_w^T)``, the mean over a batch, in nats; gradients reach the model alone.

    ``p^T`` is the softmax of the logits over the option ``T``, the teacher the vector of that name. The factor keeps
    the gradient's size as T grows (Hinton, Vinyals and Dean, 2015, arXiv 1503.02531).
    """
    T = float(client.options["T"])
    teacher = {name: layer.to(inputs.device) for name, layer in client.vectors["teacher"].layers().items()}
    log_p = (torch.func.functional_call(client.model, teacher, (inputs,)) / T).log_softmax(1).detach()
    log_p_w = (client.model(inputs) / T).log_softmax(1)
    return T**2 * nn.functional.kl_div(log_p_w, log_p, reduction="batchmean", log_target=True)


def hvp(client: Client) -> Params:
    """The Hessian of the mean cross-entropy over the whole split, at the parameters sent, times the vector ``v``."""
    gradients = torch.autograd.grad(client.loss(client.inputs, client.labels), client.parameters, create_graph=True)
    directions = list(client.vectors["v"].layers().values())
    directions = [v.to(g.device) for v, g in zip(directions, gradients, strict=True)]
    products = torch.autograd.grad(gradients, client.parameters, directions)
    client.steps, client.examples = 2, len(client.labels)  # a product costs about two gradients
    return client.vector(products)


def hessian(client: Client) -> Params:
    """The gradient and the Hessian of the mean cross-entropy over the whole split, laid out by `hessian_layout`."""
    layers = Params.from_module(client.model)

    def loss(flat: Tensor) -> Tensor:
        logits = torch.func.functional_call(client.model, Params(flat, layers.layout).layers(), (client.inputs,))
        return nn.functional.cross_entropy(logits, client.labels)

    gradient = torch.func.grad(loss)
    rows = torch.func.jacrev(gradient, chunk_size=64)(layers.flat)
    size = layers.layout.size
    client.steps, client.examples = 2 * size, size * len(client.labels)  # one product a row
    return Params(torch.cat([gradient(layers.flat), rows.flatten()]).detach(), hessian_layout(size))


def hessian_layout(size: int) -> Layout:
    """The layout of a gradient of ``size`` numbers, followed by a Hessian."""
    return Layout(("gradient", "hessian"), ((size,), (size, size)))


def fisher(client: Client) -> Params:
    """The diagonal of the empirical Fisher matrix over the split: the mean of squared per-example gradients."""
    parameters = {name: parameter.detach() for name, parameter in client.model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(client.model, parameters, (image[None],))
        return nn.functional.cross_entropy(logits, label[None])

    per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for inputs, labels in zip(client.inputs.split(32), client.labels.split(32), strict=True):
        for name, gradient_ in per_example(parameters, inputs, labels).items():
            total[name] += gradient_.square().sum(0)
    client.steps, client.examples = 1, len(client.labels)
    return Params.from_tensors(client.model, {name: value / len(client.labels) for name, value in total.items()})


def wrong_labels(client: Client) -> Tensor:
    """A label for each example that is not its own, ``[n]``: uniform over the other classes, drawn anew each round."""
    with torch.no_grad():
        classes = client.model(client.inputs[:1]).shape[1]
    shifts = torch.randint(1, classes, (client.capacity,), generator=client.seeds.torch("wrong labels"))
    return (client.labels + shifts[client.places].to(client.labels.device)) % classes


def layer_masks(client: Client) -> Iterator[list[Tensor]]:
    """For each step the entries that a partial update may change: ``max(1, round(density * size))`` of each layer.

    The option ``density`` is the share of each layer, and ``mask`` says which: ``top`` (those of the largest gradient
    of the mean cross-entropy on what the client must forget, or on all its data if that is nothing, when the first
    masks are asked for; then fixed) or ``rotating`` (a block that moves on by its length every step, and starts one
    further in the next round; at the layer's end it wraps around). The masks never end.
    """
    density, rotates = float(client.options["density"]), client.options["mask"] == "rotating"
    client.sparse = True
    counts = [max(1, round(density * parameter.numel())) for parameter in client.parameters]
    if not rotates:
        chosen = client.forgotten if client.forgotten.any() else torch.ones_like(client.forgotten)
        loss = client.loss(client.inputs[chosen], client.labels[chosen])
        gradients = torch.autograd.grad(loss, client.parameters)
        orders = [gradient.abs().flatten().argsort(descending=True, stable=True) for gradient in gradients]
        client.examples += int(chosen.sum())
        client.steps, client.total_loss = client.steps + 1, client.total_loss + loss.detach()
    else:
        orders = [torch.arange(parameter.numel(), device=parameter.device) for parameter in client.parameters]
    for step in itertools.count(client.round - 1):
        masks = []
        for parameter, order, count in zip(client.parameters, orders, counts, strict=True):
            first = step * count if rotates else 0
            mask = torch.zeros_like(order, dtype=torch.bool)
            mask[order[(first + torch.arange(count, device=order.device)) % len(order)]] = True
            masks.append(mask.view(parameter.shape))
        yield masks


def masked_step(client: Client, loss: Tensor, masks: list[Tensor]) -> None:
    """One optimiser step down ``loss``, undone outside the masks."""
    before = [parameter.detach().clone() for parameter in client.parameters]
    client.step(loss)
    with torch.no_grad():
        for parameter, old, mask in zip(client.parameters, before, masks, strict=True):
            parameter.copy_(torch.where(mask, parameter, old))


def find(name: str) -> Routine:
    """The routine called ``"module:function"``.

    Names arrive in messages, so only packages that hold routines are imported, and only public functions are given.

    Raises:
        ValueError: if the name is malformed, lies outside the packages of routines, or does not exist.
    """
    module, _, function = name.partition(":")
    file = module.removeprefix(PACKAGES[1])
    known = module == PACKAGES[0] or (module.startswith(PACKAGES[1]) and file.isidentifier())
    if not known or not function.isidentifier() or "_" in (file[0], function[0]):
        raise ValueError(
            f"routine {name!r} is refused; routines are 'fedforget.routines:NAME' or 'strategies.FILE:NAME'"
        )
    try:
        routine = vars(importlib.import_module(module))[function]
    except (ImportError, KeyError) as error:
        raise ValueError(f"there is no routine {name!r}") from error
    if not inspect.isfunction(routine) or routine.__module__ != module:
        raise ValueError(f"routine {name!r} is refused; {function} is not a function defined in {module}")
    return routine


def name_of(routine: Routine) -> str:
    """The name ``"module:function"`` by which clients `find` a routine.

    Raises:
        ValueError: if it is no function, or one that clients would not find.
    """
    if not inspect.isfunction(routine):
        raise ValueError(f"routine is {routine!r}, but must be a function, e.g. routine=ascend")
    name = f"{routine.__module__}:{routine.__qualname__}"
    with suppress(ValueError):
        if find(name) is routine:
            return name
    raise ValueError(
        f"clients cannot find routine {routine.__qualname__} of {routine.__module__}; write it as a function at the "
        "top level of the strategy's file, without a leading underscore"
    )


def drift(client: Client, anchor: Params, weights: Params) -> Tensor:
    """``sum_i weights_i (w_i - anchor_i)^2`` at the client's present parameters w: the penalty that holds them."""
    pairs = zip(client.parameters, anchor.layers().values(), weights.layers().values(), strict=True)
    return torch.stack([(f.to(w.device) * (w - a.to(w.device)).square()).sum() for w, a, f in pairs]).sum()


def fresh(layout: Layout, generator: torch.Generator) -> Params:
    """New random parameters for a layout, in the scale of torch's default initialisation.

    A weight of two dimensions or more, and the bias that belongs to it, are uniform in ``+-1/sqrt(fan_in)`` (Kaiming
    uniform with a = sqrt 5). The one-dimensional weights of norms are 1, and their biases 0.

    Args:
        layout: names and shapes of the layers.
        generator: a CPU generator; equal states give equal parameters on every machine.
    """
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    pieces = []
    for name, shape in shapes.items():
        is_bias = name.endswith("bias")
        ruling = shapes[name.removesuffix("bias") + "weight"] if is_bias else shape
        if len(ruling) > 1:
            piece = (2 * torch.rand(prod(shape), generator=generator) - 1) / prod(ruling[1:]) ** 0.5
        else:
            piece = torch.full((prod(shape),), 0.0 if is_bias else 1.0)
        pieces.append(piece)
    return Params(torch.cat(pieces), layout)
