"""What a model's features still hold, how far they moved, and whether only the last layer did the forgetting.

None of these has an ideal value of its own: the ideal is what the oracle scores. U is the unlearned model, M the
original.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fedforget.metrics.outputs import Outputs
from fedforget.params import Params

RIDGE = 1.0  # the penalty of a probe, scikit-learn's default
ROWS = 500  # examples in a Gram matrix; the estimate is unbiased, so more of them only make it steadier


def linear_probe(train: Outputs, test: Outputs) -> float:
    """Accuracy on ``test`` of a linear classifier fitted on ``train``'s features. Higher = they tell more; [0, 1].

    Fitted on examples the model never forgot and scored on the forgotten ones, it says whether the features below a
    changed last layer still separate them; only the gap to the oracle's own probe means anything. Least squares of one
    0/1 column a class on standardised features, with an intercept and the penalty ``RIDGE ||w||^2`` for every model
    (the same strength, so that gaps compare); the class of the largest answer, the first among equals. It is
    scikit-learn's ``RidgeClassifier``, in closed form and fifty times faster on an audit set. A single class in
    ``train`` makes a classifier that always answers it. NaN where a feature is NaN or infinite.

    Source: Alain and Bengio 2016, arXiv 1610.01644, for the probe; Hoerl and Kennard 1970 for the regression.

    Args:
        train: features ``[n, p]`` and labels, at least one example.
        test: features ``[m, p]`` and labels of the same model, at least one example.

    Raises:
        ValueError: if a side has no features or no examples.
    """
    x, x_test = (_checked(name, outputs, 2) for name, outputs in (("train", train), ("test", test)))
    return _probe(x, train.labels, x_test, test.labels).item()


def layer_probes(train: Outputs, test: Outputs) -> list[float]:
    """`linear_probe` layer by layer, of features ``[n, L, p]`` and ``[m, L, p]``.

    Raises:
        ValueError: if a side has no features or no examples.
    """
    x, x_test = (_checked(name, outputs, 3) for name, outputs in (("train", train), ("test", test)))
    return _probe(x.transpose(0, 1), train.labels, x_test.transpose(0, 1), test.labels).tolist()


def _checked(name: str, outputs: Outputs, dimensions: int) -> Tensor:
    """The features of one side, float64."""
    features = outputs.features
    if features is None or features.ndim != dimensions or not len(outputs):
        raise ValueError(
            f"a linear probe needs features of at least one {name} example, got "
            f"{'none' if features is None else tuple(features.shape)}; record them with the logits"
        )
    return features.double().cpu()


def _probe(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> Tensor:
    """Accuracies ``[...]`` of the classifiers of ``x [..., n, p]``, of labels ``y [n]``."""
    spread, mean = torch.std_mean(x, -2, correction=0, keepdim=True)
    spread = spread.where(spread > 1e-12 * mean.abs(), 1.0)  # what only rounding moves says nothing
    x, x_test = (x - mean) / spread, (x_test - mean) / spread
    known = torch.nn.functional.one_hot(y).double()
    shares = known.mean(0)
    examples, features = x.shape[-2:]
    # Of the two equal forms, (X'X + r)^-1 X'Y and X'(XX' + r)^-1 Y, the one with the smaller matrix.
    if features <= examples:
        weights = torch.linalg.solve(x.mT @ x + RIDGE * torch.eye(features), x.mT @ (known - shares))
    else:
        weights = x.mT @ torch.linalg.solve(x @ x.mT + RIDGE * torch.eye(examples), known - shares)
    right = ((x_test @ weights + shares).argmax(-1) == y_test).double().mean(-1)
    finite = x.isfinite().all(-1).all(-1) & x_test.isfinite().all(-1).all(-1)
    return right.where(finite, torch.nan)


def cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of two models' features of the same examples. Higher = more alike; [-1, 1].

    1 for features that are equal up to rotation, reflection, shift and one scale; about 0, on either side of it, for
    independent ones. ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` with ``K = a a^T``, ``L = b b^T`` and the unbiased
    HSIC, without which wide layers look alike on few examples. That HSIC is an inner product of the U-centred Gram
    matrices, so this is their cosine. NaN where features are constant (but for at most one example), NaN or infinite.

    Source: Kornblith et al. 2019, arXiv 1905.00414; unbiased HSIC of Song et al. 2012 (JMLR 13), in CKA since Nguyen,
    Raghu and Kornblith 2021, arXiv 2010.15327; U-centring of Szekely and Rizzo 2014, arXiv 1310.2926.

    Args:
        a: ``[n, p]``, n at least 4. Of more than 500 examples 500 evenly spaced ones are used, because audit sets come
            client by client.
        b: ``[n, q]``.

    Raises:
        ValueError: if the examples differ in number or are fewer than 4.
    """
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) < 4:
        raise ValueError(
            f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}; "
            "they must be (examples, features) of the same 4 or more examples"
        )
    return (_u_centred(a) * _u_centred(b)).sum().item()


def layer_cka(a: Tensor, b: Tensor) -> list[float]:
    """`cka` layer by layer, of features ``[n, L, p]`` and ``[n, L, q]`` of the same examples, n at least 4.

    Raises:
        ValueError: if the examples or the layers differ in number or the examples are fewer than 4.
    """
    if a.ndim != 3 or b.ndim != 3 or a.shape[:2] != b.shape[:2] or len(a) < 4:
        raise ValueError(
            f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}; "
            "they must be (examples, layers, features) of the same 4 or more examples and as many layers"
        )
    return (_u_centred(a) * _u_centred(b)).sum((-1, -2)).tolist()


@lru_cache(maxsize=64)  # by identity, which is all that a tensor's hash looks at: an oracle is compared with all models
def _u_centred(features: Tensor) -> Tensor:
    """Gram matrix ``[n, n]`` without diagonal, row means or column means, of norm 1; NaN where only rounding is left.

    Of ``[n, L, p]`` one for each layer, ``[L, n, n]``.
    """
    rows = torch.linspace(0, len(features) - 1, min(len(features), ROWS), dtype=torch.float64).round().long()
    x = features[rows.to(features.device)].double()
    x = x.transpose(0, -2)  # layers first
    x = x - x.mean(-2, keepdim=True)  # U-centring removes any shift, but would lose digits to a large one
    gram, n = x @ x.mT, len(rows)
    size = _norm(gram)
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    sums = gram.sum(-1, keepdim=True)
    gram = gram - (sums + sums.mT) / (n - 2) + sums.sum(-2, keepdim=True) / ((n - 1) * (n - 2))
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    left = _norm(gram)
    return gram / left.where(left > 1e-10 * size, torch.nan)


def _norm(matrices: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrices, keepdim=True)


def layer_shares(unlearned: Params, original: Params) -> dict[str, float]:
    """Share of ``||w_U - w_M||^2`` in each block, in layout order. [0, 1] each, summing to 1; all 0 if U equals M.

    A block is what shares a name up to the last dot: a weight and its bias. Nearly all in the last one = only the head
    was changed. NaN if the difference is not finite. Source: the squared Euclidean norm is a sum over blocks.

    Raises:
        ValueError: if the two have different layouts.
    """
    _same_layout(unlearned, original)
    squares: dict[str, float] = {}
    for name, layer in (unlearned.double() - original.double()).layers().items():
        squares[_block(name)] = squares.get(_block(name), 0.0) + layer.square().sum().item()
    total = sum(squares.values())
    return {name: square / total if total else 0.0 for name, square in squares.items()}


def swap_head(unlearned: Params, original: Params) -> Params:
    """U with M's last layer, weight and bias, put back: if forgotten accuracy returns, the features never forgot.

    The last layer is the last block of the layout, as for `layer_shares`; in a model of one layer that is all of it.
    Source: the head-swap check of this project's protocol, after the finding that unlearning often changes little
    below the last layer.

    Raises:
        ValueError: if the two have different layouts.
    """
    _same_layout(unlearned, original)
    head = _block(unlearned.layout.names[-1])
    sides = zip(unlearned.layers().items(), original.layers().values(), strict=True)
    layers = [theirs if _block(name) == head else mine for (name, mine), theirs in sides]
    return Params(torch.cat([layer.reshape(-1) for layer in layers]), unlearned.layout)


def barrier(losses: Sequence[float]) -> float:
    """How far the loss rises above the straight line between its ends on the path from M to U. [0, inf); 0 = no rise.

    ``max_t [L((1 - t) w_M + t w_U) - (1 - t) L(w_M) - t L(w_U)]``; lower = both lie in one basin. NaN if an end's loss
    is not finite.

    Source: the error barrier of Frankle et al. 2020, arXiv 1912.05671, who subtract the mean of the ends; with the
    line between them, so that it cannot be negative, Entezari et al. 2022, arXiv 2110.06296.

    Args:
        losses: at equally spaced t from 0 to 1, both ends included.

    Raises:
        ValueError: if there are fewer than 2 points.
    """
    if len(losses) < 2:
        raise ValueError(f"a path needs the losses of its 2 ends at least, got {len(losses)}")
    if not np.isfinite([losses[0], losses[-1]]).all():
        return float("nan")
    return float(np.max(np.asarray(losses) - np.linspace(losses[0], losses[-1], len(losses))))


def _block(name: str) -> str:
    return name.rpartition(".")[0] or name


def _same_layout(a: Params, b: Params) -> None:
    if a.layout != b.layout:
        raise ValueError(
            f"the models have different layouts, of {a.layout.size} and {b.layout.size} entries; compare models of "
            "one architecture"
        )
