"""Projected-gradient unlearning (PGU): forget along directions that the retained data does not use.

Paper: Hoang, Rana, Gupta and Venkatesh, "Learn to Unlearn for Deep Neural Networks: Minimizing Unlearning Interference
With Gradient Projection", WACV 2024, arXiv 2312.04095; code github.com/hnanhtuan/projected_gradient_unlearning.
Source: code.

Symbols: f input features of layer l (of a convolution: unfolded patches); C_l = sum f f^T over the retained data; S the
singular values of the features, roots of those of C_l; U_l the first k singular vectors, where k counts the partial
sums of S up to the share v of its sum; W_l weights as outputs x inputs; G gradient; p_y probability of the label; H
entropy.

    loss = mean -log(1 - (p_y - 0.05)) - beta mean H(p)     G <- G - G U_l U_l^T,   W_l <- W_l - eta G

Deviations: federated form: each retained client sends its C_l once, the server sums them and sends U_l, and only the
owners of forgotten data compute from then on, E epochs a round. C_l is summed at the request from retained data: it is
the paper's C_l of all data, kept since training, minus that of the forgotten, without the rounding. The server holds
the C_l of all r clients at once, r sum in_l^2 numbers, where one sum would do. ``rank`` caps k. Biases, norms and
weights whose inputs no linear or convolutional module sees (attention's input projection) stay as they are. A fixed
number of rounds replaces early stopping on validation data, which a server does not have; the default is 10, not up to
100 epochs.

Limit: where retained features fill the input space nothing is left to move: on digits nothing is forgotten at v = 0.95,
and with less protection neither, for the margins of all the target's data fall alike (docs/results.md). The features
are many: sum in_l^2 numbers of each client, 8.2 d for a ResNet-18.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from fedforget.params import Layout
from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class ProjectedGradient(UnlearningStrategy):
    """Ascent on the forgotten data, orthogonal to the retained features."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        rounds: int = option(10, "rounds on the forgotten data", symbol="R_u", at_least=1)
        energy: float = option(
            0.95, "protected share of singular values", symbol="v", at_least=0, at_most=1, search=(0.8, 0.99, "linear")
        )
        rank: int = option(0, "most protected directions a layer; 0: no cap", symbol="k", at_least=0)
        lr: float = option(0.05, "learning rate of the first round", symbol="eta", above=0, search=(0.005, 0.5, "log"))
        lr_end: float = option(0.01, "that of the last, geometrically", symbol="eta", above=0)
        entropy: float = option(0.2, "weight of the entropy", symbol="beta", at_least=0)
        epochs: int = option(1, "epochs a round", symbol="E", at_least=1)
        batch_size: int = option(128, "forgotten examples a step", symbol="B", at_least=1)

    card = Card(target_online=True)  # retained clients send features once; the owners of the forgotten data do the rest

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """One round of features, then R_u rounds of projected ascent."""
        cfg, w = self.config, history.final
        layout = feature_layout(cohort.layout)
        replies = cohort.train(w, cohort.retained, routine=covariances, layout=layout)
        C = Params(torch.zeros(layout.size, dtype=torch.float64), layout)
        for reply in replies:
            C = C + reply.update.double()
        bases = [basis(C_l, cfg.energy, cfg.rank).float() for C_l in C.layers().values()]
        U = Params(torch.cat([U_l.flatten() for U_l in bases]), feature_layout(cohort.layout, cfg.rank))
        for r in range(cfg.rounds):
            w = w + cohort.reduce(
                w,
                cohort.targets,
                routine=ascend,
                split="forget",
                vectors={"U": U},
                rank=cfg.rank,
                beta=cfg.entropy,
                lr=cfg.lr * (cfg.lr_end / cfg.lr) ** (r / max(1, cfg.rounds - 1)),
                epochs=cfg.epochs,
                steps=0,
                batch_size=cfg.batch_size,
            )
            yield w


def feature_layout(model: Layout, rank: int = 0) -> Layout:
    """For each weight of a linear or convolutional layer ``[inputs, inputs]``, or ``[inputs, rank]`` under a cap."""
    inputs = {n: prod(shape[1:]) for n, shape in zip(model.names, model.shapes, strict=True) if len(shape) in (2, 4)}
    return Layout(tuple(inputs), tuple((size, min(rank or size, size)) for size in inputs.values()))


def basis(C: Tensor, v: float, rank: int = 0) -> Tensor:
    """``U_l``, padded with zero columns to the cap, or to a square."""
    eigenvalues, U = torch.linalg.eigh(C)
    S, U = eigenvalues.flip(0).clamp(min=0).sqrt(), U.flip(1)
    k = int((S.cumsum(0) <= v * S.sum()).sum())
    columns = min(rank or len(S), len(S))
    return torch.where(torch.arange(columns) < k, U[:, :columns], 0.0)


def covariances(client: Client) -> Params:
    """``C_l = sum f f^T`` over the split for every layer, by a forward pass that listens at the layers' inputs."""
    layout = feature_layout(Layout.of(client.model))
    C = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in zip(layout.names, layout.shapes, strict=True)}

    def add(name: str, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        f = features(module, inputs).double()
        C[name] += (f.T @ f).cpu()

    with client.listen(C, add), torch.no_grad():
        for inputs in client.inputs.split(128):
            client.model(inputs)
    client.examples = len(client.labels)
    return Params(torch.cat([C_l.flatten() for C_l in C.values()]).to(client.inputs.dtype), layout)


def features(module: nn.Module, inputs: Tensor) -> Tensor:
    """What multiplies the rows of the module's weight: ``[examples (x places), inputs]``."""
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str), "padding is given in numbers"
        patches = nn.functional.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
        return patches.transpose(1, 2).flatten(0, 1)
    return inputs.flatten(0, -2)


def loss(logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """``mean -log(1 - (p_y - 0.05)) - beta mean H(p)``: less confidence in the label, and in anything."""
    log_p = logits.log_softmax(1)
    p_y = log_p.gather(1, labels[:, None]).exp()
    return -(1.05 - p_y).log().mean() + beta * (log_p.exp() * log_p).sum(1).mean()


def ascend(client: Client) -> None:
    """Projected steps on the forgotten data, plain SGD."""
    layout = feature_layout(Layout.of(client.model), client.options["rank"])
    U = Params(client.vectors["U"].flat.to(client.inputs), layout).layers()
    W = {name: parameter for name, parameter in client.model.named_parameters() if name in U}
    for inputs, labels in client.batches():
        value = loss(client.model(inputs), labels, client.options["beta"])
        for (name, W_l), G in zip(W.items(), torch.autograd.grad(value, list(W.values())), strict=True):
            G = G.flatten(1)
            W_l.data -= client.local.lr * (G - G @ U[name] @ U[name].T).view_as(W_l)
        client.steps, client.total_loss = client.steps + 1, client.total_loss + value.detach()
