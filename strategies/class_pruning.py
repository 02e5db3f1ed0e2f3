"""Class-discriminative pruning: cut the channels that speak of one class, and fine-tune what is left.

Paper: Wang, Guo, Xie and Qi, "Federated Unlearning via Class-Discriminative Pruning", WWW 2022, arXiv 2110.11794.
Source: code; details from copies of it.

Symbols: U the classes, u the one to forget; A_ij mean over the examples of class i of channel j of a convolution,
rectified and averaged over the image; R share of all channels that is cut; TF, IDF as in the retrieval of text, with
classes as documents and channels as words.

    TF_j = A_uj / sum_j A_uj (in u's layer),   IDF_j = log (1 + |U|) / (1 + #{i: A_ij >= mean_i A_ij})
    filters and biases of the share R of channels with the largest TF_j IDF_j, of all layers, become 0; then R_ft rounds

Deviations: clients send, for each class, sums over their examples and how many these are, so that means are the pooled
ones. In the copies of the code the mean is over classes, as here (a summary has it over channels); there log |U| / (1 +
...) may fall below 0. They keep the channels whose score is above a threshold, that is, they cut those that speak of u
least; the paper cuts the others, and so does this. Their factor that balances layers of different widths is left out.
Of several classes each takes its share. The server makes the cut channels 0 again after every round; rounds are those
of learning, a fixed number with a fresh learner each, where the paper fine-tunes up to an accuracy. R and R_ft are this
project's choice. Norms after a convolution keep their shift, so that a cut channel can still be a constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedforget.params import Layout
from fedforget.strategy import Card, Client, Cohort, History, Params, UnlearningRequest, UnlearningStrategy, option


class ClassPruning(UnlearningStrategy):
    """Cut the most class-discriminative channels, and recover."""

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        share: float = option(
            0.05, "share of all channels that is cut", symbol="R", above=0, below=1, search=(0.01, 0.5, "log")
        )
        rounds: int = option(5, "ordinary rounds afterwards", symbol="R_ft", at_least=0)

    scopes = frozenset({"class"})
    card = Card(target_online=True)

    def check(self, cohort: Cohort) -> None:
        """There must be channels to cut."""
        if not channels(cohort.layout):
            raise ValueError(f"class_pruning cuts channels of convolutions; model {cohort.task.model.name!r} has none")

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """One round for A, then R_ft rounds of the pruned network."""
        cfg, w, classes = self.config, history.final, int(cohort.federation.about["num_classes"])
        asked, layout = {*cohort.targets, *cohort.retained}, reply_layout(w.layout, classes)
        found = cohort.reduce(w, asked, routine=activations, split="train", layout=layout, classes=classes).layers()
        counts = found.pop("counts").clamp(min=torch.finfo(torch.float32).tiny)
        A = {name: sums.double() / counts.double()[:, None] for name, sums in found.items()}
        m = Params(torch.ones_like(w.flat), w.layout)
        for u in request.targets:
            cut(m, {name: tf_idf(A_l, u) for name, A_l in A.items()}, cfg.share)
        w = Params(m.flat * w.flat, w.layout)
        yield w
        for t in range(history.rounds + 1, history.rounds + 1 + cfg.rounds):
            [w] = self.learn(cohort, w, 1, first_round=t)
            w = Params(m.flat * w.flat, w.layout)
            yield w


def channels(layout: Layout) -> dict[str, int]:
    """How many channels come out of each convolution, by the name of its weight."""
    return {name: shape[0] for name, shape in zip(layout.names, layout.shapes, strict=True) if len(shape) == 4}


def reply_layout(model: Layout, classes: int) -> Layout:
    """``[classes, channels]`` for each convolution, and ``[classes]`` for the examples."""
    sizes = channels(model)
    return Layout((*sizes, "counts"), (*((classes, size) for size in sizes.values()), (classes,)))


def tf_idf(A: Tensor, u: int) -> Tensor:
    """``TF_j IDF_j`` for class u, ``[channels]``, from ``A [classes, channels]``; 0 where class u is silent."""
    TF = A[u] / A[u].sum().clamp(min=torch.finfo(A.dtype).tiny)
    active = A.ge(A.mean(0)).sum(0)
    return TF * torch.log((1 + len(A)) / (1 + active))


def cut(m: Params, scores: Mapping[str, Tensor], share: float) -> None:
    """Set the mask to 0 at the ``max(1, round(share n))`` of n channels with the largest scores (equals: the first)."""
    layers = m.layers()  # views
    together = torch.cat([torch.zeros(0), *scores.values()])
    chosen = torch.zeros(len(together), dtype=torch.bool)
    chosen[together.argsort(descending=True, stable=True)[: max(1, round(share * len(together)))]] = True
    for name, mine in zip(scores, chosen.split([len(score) for score in scores.values()]), strict=True):
        for tensor in (name, name.removesuffix("weight") + "bias"):
            if tensor in layers:
                layers[tensor][mine] = 0.0


def activations(client: Client) -> Params:
    """For each class the sum over its examples of the rectified, averaged channels, and their number, over all n."""
    layout, classes = Layout.of(client.model), client.options["classes"]
    of_class = nn.functional.one_hot(client.labels, classes).to(client.inputs.dtype)
    sums = {name: torch.zeros(classes, size).to(client.inputs) for name, size in channels(layout).items()}
    batch = slice(0, 0)

    def add(name: str, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        sums[name] += of_class[batch].T @ outputs.relu().mean((2, 3))

    with client.listen(sums, add), torch.no_grad():
        for start in range(0, len(client.labels), 128):
            batch = slice(start, start + 128)
            client.model(client.inputs[batch])
    client.examples = len(client.labels)
    flat = torch.cat([*(total.flatten() for total in sums.values()), of_class.sum(0)]) / len(client.labels)
    return Params(flat, reply_layout(layout, classes))
