"""Class-discriminative pruning: cut the channels that speak of one class, and fine-tune what is left.

Wang, Guo, Xie and Qi, "Federated Unlearning via Class-Discriminative Pruning", WWW 2022, arXiv 2110.11794; details from
copies of its code.

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
of learning, a fixed number with a fresh learner each, where the paper fine-tunes up to an accuracy. R and R_ft are
[SPEC]. Norms after a convolution keep their shift, so that a cut channel can still be a constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedforget.exchange import Card
from fedforget.params import Layout, Params
from fedforget.strategy import UnlearningStrategy, option


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

    def check(self, cohort):
        """There must be channels to cut."""
        if not channels(cohort.layout):
            raise ValueError(f"class_pruning cuts channels of convolutions; model {cohort.task.model.name!r} has none")

    def unlearn(self, request, history, cohort):
        """One round for A, then R_ft rounds of the pruned network."""
        w, classes = history.final, int(cohort.federation.about["num_classes"])
        asked, layout = {*cohort.targets, *cohort.retained}, reply_layout(w.layout, classes)
        found = cohort.reduce(w, asked, routine=activations, split="train", layout=layout, classes=classes).layers()
        counts = found.pop("counts").clamp(min=torch.finfo(torch.float32).tiny)
        A = {name: sums.double() / counts.double()[:, None] for name, sums in found.items()}
        m = Params(torch.ones_like(w.flat), w.layout)
        for u in request.targets:
            cut(m, {name: tf_idf(A_l, u) for name, A_l in A.items()}, self.config.share)
        w = Params(m.flat * w.flat, w.layout)
        yield w
        for t in range(history.rounds + 1, history.rounds + 1 + self.config.rounds):
            [w] = self.learn(cohort, w, 1, first_round=t)
            w = Params(m.flat * w.flat, w.layout)
            yield w


def channels(layout):
    """How many channels come out of each convolution, by the name of its weight."""
    return {name: shape[0] for name, shape in zip(layout.names, layout.shapes, strict=True) if len(shape) == 4}


def reply_layout(model, classes):
    """``[classes, channels]`` for each convolution, and ``[classes]`` for the examples."""
    sizes = channels(model)
    return Layout((*sizes, "counts"), (*((classes, size) for size in sizes.values()), (classes,)))


def tf_idf(A, u):
    """``TF_j IDF_j`` for class u, ``[channels]``, from ``A [classes, channels]``; 0 where class u is silent."""
    TF = A[u] / A[u].sum().clamp(min=torch.finfo(A.dtype).tiny)
    active = A.ge(A.mean(0)).sum(0)
    return TF * torch.log((1 + len(A)) / (1 + active))


def cut(m, scores, share):
    """Set the mask to 0 at the ``max(1, round(share n))`` of n channels with the largest scores (equals: the first)."""
    layers = m.layers()  # views
    together = torch.cat([torch.zeros(0), *scores.values()])
    chosen = torch.zeros(len(together), dtype=torch.bool)
    chosen[together.argsort(descending=True, stable=True)[: max(1, round(share * len(together)))]] = True
    for name, mine in zip(scores, chosen.split([len(score) for score in scores.values()]), strict=True):
        for tensor in (name, name.removesuffix("weight") + "bias"):
            if tensor in layers:
                layers[tensor][mine] = 0.0


def activations(client):
    """For each class the sum over its examples of the rectified, averaged channels, and their number, over all n."""
    layout, modules = Layout.of(client.model), dict(client.model.named_modules())
    classes = int(client.options["classes"])
    of_class = torch.nn.functional.one_hot(client.labels, classes).to(client.inputs.dtype)
    sums = {name: torch.zeros(classes, size).to(client.inputs) for name, size in channels(layout).items()}
    batch = slice(0)

    def listen(name):
        def hook(module, inputs, output):
            sums[name] += of_class[batch].T @ output.relu().mean((2, 3))

        return modules[name.removesuffix(".weight")].register_forward_hook(hook)

    handles = [listen(name) for name in sums]
    try:
        with torch.no_grad():
            for start in range(0, len(client.labels), 128):
                batch = slice(start, start + 128)
                client.model(client.inputs[batch])
    finally:  # the next client gets the same module
        for handle in handles:
            handle.remove()
    client.examples = len(client.labels)
    flat = torch.cat([*(total.flatten() for total in sums.values()), of_class.sum(0)]) / len(client.labels)
    return Params(flat, reply_layout(layout, classes))
