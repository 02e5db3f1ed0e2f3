"""FUSED: leave the model as it is, and let low-rank adapters of its critical layers overwrite what is to be forgotten.

Paper: Zhong, Bao, Wang, Zhang, Zhou, Lyu and Lim, "Unlearning through Knowledge Overwriting: Reversible Federated
Unlearning via Selective Sparse Adapter", CVPR 2025, arXiv 2502.20709. The adapters are those of Hu et al., "LoRA:
Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685.
Source: code; a released copy of it. The paper could not be read, only its abstract and reviews.

Symbols: w_l weight of layer l, of a convolution as outputs x patch; D_k update of client k in an ordinary round; d_l
how far clients move layer l; K critical layers; r rank; s scale; A_l [r, inputs] and B_l [outputs, r] the adapter.

    d_l = mean over clients and entries of |D_k,l|;  the critical layers are the K of largest d_l
    A_l random, B_l = 0;  R rounds in which retained clients train A and B alone, and the server averages both
    w_l <- w_l + s B_l A_l   for critical l

Whoever keeps A and B can take them off again: unlearning is reversible, and only they travel up.

Deviations: the code names its layers by hand; here they are found as its abstract says, in one ordinary round of
retained clients, whose updates are used for nothing else. r = 16 and s = 32 / 16 are released, its dropout of 0.1 is
left out, and r is at most the smaller side of a layer. "Sparse" is read as that code has it: low rank, few layers. A
starts uniform in +-1/sqrt(inputs), as there. Forgotten examples are left out, not relabelled. Rounds: 5, as `finetune`
has by default, not 100 (this project's choice).

Limit: in few rounds what is retained overwrites little: the canaries on digits stay; at the price of a retrain a
quarter of their signal is left (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from fedforget.params import Layout
from fedforget.routines import fresh
from fedforget.strategy import Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class SparseAdapters(UnlearningStrategy):
    """Train adapters on what is retained."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        layers: int = option(2, "critical layers", symbol="K", at_least=1)
        rank: int = option(16, "of an adapter, at most", symbol="r", at_least=1, search=(1, 64, "int"))
        scale: float = option(2.0, "factor of an adapter", symbol="s", above=0, search=(0.5, 8.0, "log"))
        rounds: int = option(5, "rounds on the retained data", symbol="R", at_least=1)

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """One round to find the critical layers, then R rounds of their adapters."""
        cfg, w = self.config, history.final
        critical = most_moved([reply.update for reply in cohort.train(w)], cfg.layers)
        yield w
        layout = adapter_layout(w.layout, critical, cfg.rank)
        x = unchanging(layout, cohort.seeds.torch("fused"))
        for _ in range(cfg.rounds):
            x = x + cohort.reduce(
                w,
                routine=adapt,
                vectors={"adapters": x},
                layout=layout,
                critical=critical,
                rank=cfg.rank,
                scale=cfg.scale,
            )
            layers = adapted(w.layers(), x.layers(), critical, cfg.scale)
            yield Params(torch.cat([layer.flatten() for layer in layers.values()]), w.layout)


def most_moved(updates: Sequence[Params], number: int) -> list[str]:
    """Names of the ``number`` weights with the largest ``d_l``, in the model's order."""
    D = [update.layers() for update in updates]
    weights = [name for name, layer in D[0].items() if layer.dim() > 1]
    d = {name: sum(float(D_k[name].abs().mean()) for D_k in D) for name in weights}
    chosen = sorted(weights, key=lambda name: -d[name])[:number]
    return [name for name in weights if name in chosen]


def adapter_layout(model: Layout, critical: Sequence[str], rank: int) -> Layout:
    """``A [r, inputs]`` and ``B [outputs, r]`` of each critical layer."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in zip(model.names, model.shapes, strict=True):
        if name in critical:
            outputs, inputs = shape[0], prod(shape[1:])
            r = min(rank, outputs, inputs)
            shapes |= {f"{name}/A": (r, inputs), f"{name}/B": (outputs, r)}
    return Layout(tuple(shapes), tuple(shapes.values()))


def unchanging(layout: Layout, generator: torch.Generator) -> Params:
    """Adapters that change nothing yet: A as `fedforget.routines.fresh` draws weights, B = 0."""
    x = fresh(layout, generator)
    for name, layer in x.layers().items():
        if name.endswith("/B"):
            layer.zero_()
    return x


def adapted(
    layers: dict[str, Tensor], x: Mapping[str, Tensor], critical: Sequence[str], scale: float
) -> dict[str, Tensor]:
    """The layers with their adapters ``x``, by name."""
    change = {name: x[f"{name}/B"] @ x[f"{name}/A"] * scale for name in critical}
    return layers | {name: layers[name] + change[name].view(layers[name].shape) for name in critical}


def adapt(client: Client) -> Params:
    """The change of the adapters in ordinary local training that leaves the model alone."""
    critical = client.options["critical"]
    layout = adapter_layout(Layout.of(client.model), critical, client.options["rank"])
    sent = Params(client.vectors["adapters"].flat.to(client.inputs.device), layout)
    x = {name: layer.clone().requires_grad_() for name, layer in sent.layers().items()}
    client.parameters = list(x.values())
    layers = {name: parameter.detach() for name, parameter in client.model.named_parameters()}
    for inputs, labels in client.batches():
        now = adapted(layers, x, critical, client.options["scale"])
        logits = torch.func.functional_call(client.model, now, (inputs,))
        client.step(nn.functional.cross_entropy(logits, labels))
    reached = torch.cat([layer.detach().flatten() for layer in x.values()])
    return Params(reached - sent.flat, layout)
