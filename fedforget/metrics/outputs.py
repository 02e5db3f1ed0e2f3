"""What a model answers on a fixed set of examples, and the accuracy family of metrics.

None of these has an ideal value of its own: the ideal is what the oracle scores on the same examples. All are computed
in float64. A model with a NaN or infinite logit on the set has no accuracy, balanced accuracy, loss or margin: NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """A model's outputs on one audit set of ``n`` examples.

    Args:
        logits: ``[n, classes]`` float, at least two classes.
        labels: ``[n]`` int64, the true classes.
        clients: ``[n]`` int64, the owner of each example; -1 for the global test set.
        features: ``[n, p]`` float, what the last layer was given; ``None`` where nobody recorded it.
        rows: ``[n]`` int64, where each example stands in its owner's data: equal for every model.
        included: ``[n]`` int64, 0 for a candidate canary that the model was not trained on, else 1.

    Raises:
        ValueError: if the shapes disagree or there are fewer than two classes.
    """

    logits: Tensor
    labels: Tensor
    clients: Tensor
    features: Tensor | None = None
    rows: Tensor | None = None
    included: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = [tuple(tensor.shape) for tensor in (self.logits, self.labels, self.clients)]
        if len(shapes[0]) != 2 or shapes[0][1] < 2 or shapes[1:] != [shapes[0][:1]] * 2:
            raise ValueError(
                f"outputs have shapes {shapes[0]}, {shapes[1]}, {shapes[2]} (logits, labels, clients); "
                "they must be (n, classes >= 2), (n,) and (n,)"
            )

    @classmethod
    def stored(cls, tensors: Mapping[str, Tensor], name: str) -> Outputs:
        """The outputs on the audit set ``name``, from a file's tensors, each called ``name/field``."""
        return cls(**{part: tensors[key] for part in FIELDS if (key := f"{name}/{part}") in tensors})

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def margins(self) -> Tensor:
        """What the function `margins` says; kept, because most metrics start from it."""
        logits, column = self.logits.double(), self.labels.unsqueeze(1)
        others = logits.scatter(1, column, -torch.inf)
        return logits.gather(1, column).squeeze(1) - others.logsumexp(1)

    @cached_property
    def log_probabilities(self) -> Tensor:
        """Logarithm of the softmax of the logits, float64 ``[n, classes]``, not to be written to; kept."""
        return self.logits.double().log_softmax(1)

    @cached_property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, float64 ``[n, classes]``, not to be written to; kept."""
        return self.log_probabilities.exp()

    @cached_property
    def predicted(self) -> Tensor:
        """The class of the largest logit, int64 ``[n]``, not to be written to; -1 if a logit is NaN; kept."""
        return self.logits.argmax(1).masked_fill(self.logits.isnan().any(1), -1)

    @cached_property
    def finite(self) -> bool:
        """Whether every logit is a finite number; kept."""
        return bool(self.logits.isfinite().all())

    @property
    def constant(self) -> bool:
        """Whether one class is predicted throughout, on examples of at least two."""
        return len(self.predicted.unique()) == 1 and len(self.labels.unique()) > 1

    def share(self, which: Tensor) -> float:
        """The share of ``which``, bool ``[m]``, a statement about predictions; NaN if a logit is not finite."""
        return which.double().mean().item() if self.finite else float("nan")

    def without(self, classes: Sequence[int]) -> Outputs:
        """The outputs on examples of other classes."""
        return self.take((~torch.isin(self.labels, torch.tensor(classes))).nonzero().flatten()) if classes else self

    def take(self, places: Tensor) -> Outputs:
        """The outputs on some of the examples, in the order of ``places``."""
        optional = (None if t is None else t[places] for t in (self.features, self.rows, self.included))
        return Outputs(self.logits[places], self.labels[places], self.clients[places], *optional)


FIELDS = tuple(field.name for field in fields(Outputs))


def align(several: Sequence[Outputs]) -> list[Outputs]:
    """The outputs of several models on the examples that all of them have, in the order of the first.

    Coin-flipped canaries give each seed another forget set; what is compared example by example must be the same.

    Raises:
        ValueError: if one does not say which rows its examples are.
    """
    if any(outputs.rows is None for outputs in several):
        raise ValueError("outputs of different models can be aligned only if their rows are known")
    first = several[0]
    if all(torch.equal(o.rows, first.rows) and torch.equal(o.clients, first.clients) for o in several):  # type: ignore[arg-type]
        return list(several)
    keys = []
    for outputs in several:
        assert outputs.rows is not None
        keys.append(list(zip(outputs.clients.tolist(), outputs.rows.tolist(), strict=True)))
    common = set(keys[0]).intersection(*keys[1:])
    wanted = [key for key in keys[0] if key in common]
    aligned = []
    for outputs, mine in zip(several, keys, strict=True):
        place = {key: number for number, key in enumerate(mine)}
        aligned.append(outputs.take(torch.tensor([place[key] for key in wanted], dtype=torch.long)))
    return aligned


def accuracy(outputs: Outputs) -> float:
    """Share of examples whose largest logit is that of the label. Higher = the model knows the examples better; [0, 1].

    Source: unlearning accuracy is its complement on the forget set (Jia et al. 2023, arXiv 2304.04934).
    """
    return outputs.share(right(outputs))


def balanced_accuracy(outputs: Outputs) -> float:
    """Mean recall over the classes that occur. Higher = the model knows the examples better; [0, 1].

    Unlike accuracy it gives every constant answer the same value, one over the number of classes that occur.
    Source: Brodersen et al. 2010, "The balanced accuracy and its posterior distribution".
    """
    if not outputs.finite:
        return float("nan")
    classes, place, counts = outputs.labels.unique(return_inverse=True, return_counts=True)
    found = torch.zeros(len(classes), dtype=torch.float64).index_add_(0, place, right(outputs).double())
    return (found / counts).mean().item()


def right(outputs: Outputs) -> Tensor:
    """Whether the largest logit of each example is that of its label, bool ``[n]``; not if a logit is NaN."""
    return outputs.predicted == outputs.labels


def loss(outputs: Outputs) -> float:
    """Mean cross-entropy in nats. Lower = the model knows the examples better; [0, inf).

    Source: ``-log softmax(z)_y``, the training loss of every classifier here.
    """
    return -outputs.log_probabilities.gather(1, outputs.labels.unsqueeze(1)).mean().item()


def margin(outputs: Outputs) -> float:
    """Mean of ``z_y - log sum_{j != y} exp z_j``. Higher = the model knows the examples better; (-inf, inf), nats.

    Equals the log-odds ``log(p_y / (1 - p_y))`` without its rounding near 0 and 1.
    Source: the logit-scaled confidence of Carlini et al. 2022, arXiv 2112.03570.
    """
    return margins(outputs).mean().item()


def margins(outputs: Outputs) -> Tensor:
    """``z_y - log sum_{j != y} exp z_j`` of each example, float64 ``[n]``, not to be written to; see `margin`."""
    return outputs.margins
