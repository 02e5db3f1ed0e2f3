"""Probe, CKA, layer shares, head swap and barrier against numbers by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from fedforget.metrics import Outputs
from fedforget.metrics.representation import (
    barrier,
    cka,
    layer_cka,
    layer_probes,
    layer_shares,
    linear_probe,
    swap_head,
)
from fedforget.models import ModelConfig, build, names
from fedforget.params import Layout, Params

LAYOUT = Layout(("0.weight", "0.bias", "2.weight", "2.bias"), ((2,), (1,), (1, 2), (1,)))


def outputs(features: list[list[float]] | None, labels: list[int]) -> Outputs:
    n = len(labels)
    table = None if features is None else torch.tensor(features).reshape(n, -1)
    return Outputs(torch.zeros(n, 2), torch.tensor(labels), torch.zeros(n, dtype=torch.int64), table)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------- the probe


def test_probe_by_hand() -> None:
    # Symmetric training data put the boundary at 0, so of -2, -1/2, 1/2, 2 only -1/2, labelled 1, is wrong: 3 of 4.
    train = outputs([[-1], [-1], [1], [1]], [0, 0, 1, 1])
    assert linear_probe(train, outputs([[-2], [-0.5], [0.5], [2]], [0, 1, 1, 1])) == 0.75
    assert linear_probe(train, train) == 1


def test_probe_standardises_features() -> None:
    # The first feature is the class, a thousandth in size; the second agrees with it on 3 of 4. Without standardisation
    # the penalty leaves the first a weight of no effect, and accuracy is that of the second.
    train = outputs([[s * 1e-3, s * (-1 if i == 0 else 1)] for s in (-1, 1) for i in range(4)], [0] * 4 + [1] * 4)
    assert RidgeClassifier().fit(train.features, train.labels).score(train.features, train.labels) == 0.75
    assert linear_probe(train, train) == 1


def test_probe_of_one_class_predicts_it() -> None:
    assert linear_probe(outputs([[1], [2]], [1, 1]), outputs([[1], [2], [3], [4]], [0, 1, 0, 0])) == 0.25


def test_probe_of_constant_features_predicts_the_majority() -> None:
    assert linear_probe(outputs([[5], [5], [5]], [0, 0, 1]), outputs([[5], [5], [5], [5]], [0, 0, 0, 1])) == 0.75


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_probe_of_a_destroyed_model_is_nan(odd: float) -> None:
    good, bad = outputs([[0], [1]], [0, 1]), outputs([[0], [odd]], [0, 1])
    assert math.isnan(linear_probe(good, bad)) and math.isnan(linear_probe(bad, good))


@pytest.mark.parametrize("examples, features", [(40, 7), (12, 30)])
def test_probe_is_scikit_learns_ridge_classifier(examples: int, features: int) -> None:
    """With more examples than features and with fewer, on 200 examples of three noisy classes."""
    labels = torch.arange(200) % 3
    x = gaussian(0, 200, features) + 0.7 * gaussian(1, 3, features)[labels]
    sides = [
        Outputs(torch.zeros(len(y), 3), y, torch.zeros(len(y), dtype=torch.int64), f)
        for f, y in ((x[:examples], labels[:examples]), (x[examples:], labels[examples:]))
    ]
    theirs = make_pipeline(StandardScaler(), RidgeClassifier()).fit(x[:examples].double(), labels[:examples])
    expected = theirs.score(x[examples:].double(), labels[examples:])
    assert linear_probe(*sides) == pytest.approx(expected) and 0.5 < expected < 0.99


def test_probes_of_layers_are_those_of_each_layer() -> None:
    labels = torch.arange(40) % 4
    x = gaussian(0, 40, 3, 6)
    x[:, 1] += gaussian(1, 4, 6)[labels]
    x[:, 2] = 0.1  # a layer that says nothing
    known, asked = (
        Outputs(torch.zeros(20, 4), labels[part], torch.zeros(20, dtype=torch.int64), x[part])
        for part in (slice(0, 20), slice(20, 40))
    )
    alone = [
        linear_probe(*(replace(side, features=side.features[:, layer]) for side in (known, asked)))  # type: ignore[index]
        for layer in range(3)
    ]
    assert layer_probes(known, asked) == alone and alone[1] > alone[2] == 0.25
    x[25, 0] = torch.nan
    broken = layer_probes(known, replace(asked, features=x[20:]))
    assert math.isnan(broken[0]) and broken[1:] == alone[1:]


def test_probe_needs_features_and_examples() -> None:
    good = outputs([[0], [1]], [0, 1])
    with pytest.raises(ValueError, match="features of at least one train example, got none"):
        linear_probe(outputs(None, [0, 1]), good)
    with pytest.raises(ValueError, match=r"features of at least one test example, got \(0, 1\)"):
        linear_probe(good, Outputs(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0), torch.zeros(0, 1)))


# ---------------------------------------------------------------------------------------------------------------- CKA


def test_cka_by_hand() -> None:
    # x = (1, 1, -1, -1): off its diagonal the Gram matrix has 1 for the pairs 12, 34 and -1 for the others. Row sums
    # are -1, the total is -4, so U-centring adds (1 + 1) / 2 - 4 / 6 = 1/3: A = 4/3 (twice), -2/3 (four times).
    # y = (1, -1, 1, -1): B alike, with 4/3 for the pairs 13, 24.
    # Over pairs <A, A> = 2 * 16/9 + 4 * 4/9 = 48/9 and <A, B> = 4 * (-8/9) + 2 * 4/9 = -24/9: CKA = -1/2.
    x, y = torch.tensor([[1.0], [1], [-1], [-1]]), torch.tensor([[1.0], [-1], [1], [-1]])
    assert cka(x, y) == pytest.approx(-0.5)
    # Both features together have A + B, and <A, A + B> = 24/9, |A + B|^2 = 48/9: CKA = 24/48.
    assert cka(x, torch.cat([x, y], 1)) == pytest.approx(0.5)


def test_cka_is_that_of_the_unbiased_hsic() -> None:
    # Song et al. 2012, eq. 5, term by term: with zero diagonals,
    # HSIC_1 = (tr(K L) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'K L1) / (n (n-3)).
    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        k, m, n = k - np.diag(np.diag(k)), m - np.diag(np.diag(m)), len(k)
        terms = np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
        return terms / (n * (n - 3))

    a, b = gaussian(0, 9, 3), gaussian(1, 9, 5)
    b[:, 0] += 2 * a[:, 0]
    k, m = (a @ a.T).double().numpy(), (b @ b.T).double().numpy()
    expected = hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))
    assert cka(a, b) == pytest.approx(expected, rel=1e-4)  # float32 features
    assert abs(expected) > 0.1


def test_cka_does_not_see_rotation_shift_and_scale() -> None:
    a = gaussian(0, 40, 6)
    rotation = torch.linalg.qr(gaussian(1, 6, 6).double()).Q
    assert cka(a, a) == pytest.approx(1)
    assert cka(a, 1e-3 * a.double() @ rotation + 7) == pytest.approx(1)
    assert cka(a.double(), a.double() + 1e7) == pytest.approx(1)
    # ... but it sees the scale of one direction, by which it differs from correlation analysis
    assert cka(a, a * torch.tensor([30.0, 1, 1, 1, 1, 1])) < 0.9


def test_cka_of_independent_features_is_about_zero() -> None:
    # The biased estimate is near p / (n + p) = 1/2 here. The mean of 40 draws must vanish within 4 standard errors.
    draws = np.array([cka(gaussian(2 * i, 50, 50), gaussian(2 * i + 1, 50, 50)) for i in range(40)])
    assert abs(draws.mean()) < 4 * draws.std(ddof=1) / math.sqrt(40) < 0.05


def test_cka_takes_500_examples_from_all_of_them() -> None:
    # Clients follow one another: only the second half differs, which the first 500 rows would not show.
    a = gaussian(0, 1000, 4)
    b = torch.cat([a[:500], gaussian(1, 500, 4)])
    assert cka(a[:500], b[:500]) == pytest.approx(1)
    assert 0 < cka(a, b) < 0.6


def test_cka_layer_by_layer_is_that_of_each_layer() -> None:
    a, b = gaussian(0, 30, 12).view(30, 3, 4), gaussian(1, 30, 15).view(30, 3, 5)
    b[:, 1] = 1.0  # a layer that says nothing
    a[:, 2, 0] = torch.nan
    expected = [cka(a[:, 0], b[:, 0]), math.nan, math.nan]
    assert layer_cka(a, b) == pytest.approx(expected, nan_ok=True)
    assert layer_cka(a[:, :1], a[:, :1]) == pytest.approx([1])
    for wrong in (b[:, :2], b[:29], b[:, 0]):
        with pytest.raises(ValueError, match="layers"):
            layer_cka(a, wrong)


@pytest.mark.parametrize(
    "odd",
    [
        torch.full((9, 3), 0.7).double(),
        torch.eye(9)[:, :1],
        torch.full((9, 1), torch.nan),
        torch.full((9, 1), torch.inf),
    ],
)
def test_cka_without_anything_to_compare_is_nan(odd: Tensor) -> None:
    # Constant, at a value whose mean is rounded; constant but for one example, so that every pair has u_i + u_j and
    # nothing of its own; destroyed.
    assert math.isnan(cka(odd, gaussian(0, 9, 2))) and math.isnan(cka(gaussian(0, 9, 2), odd))


def test_cka_needs_the_same_four_examples() -> None:
    for a, b in ((torch.zeros(3, 2), torch.zeros(3, 2)), (torch.zeros(5, 2), torch.zeros(4, 2))):
        with pytest.raises(ValueError, match="of the same 4 or more examples"):
            cka(a, b)


# ------------------------------------------------------------------------------------------------------------- layers


def point(*values: float) -> Params:
    return Params(torch.tensor(values), LAYOUT)


def test_layer_shares_by_hand() -> None:
    # Differences 1, 2 | 2 in block 0 and 0, 4 | 0 in block 2: squares 9 and 16 of 25.
    shares = layer_shares(point(1, 2, 2, 5, 4, 5), point(0, 0, 0, 5, 0, 5))
    assert list(shares.items()) == [("0", 9 / 25), ("2", 16 / 25)]


def test_layer_shares_of_equal_and_of_destroyed_models() -> None:
    w = point(1, 2, 3, 4, 5, 6)
    assert layer_shares(w, w) == {"0": 0, "2": 0}
    broken = layer_shares(point(1, 2, math.nan, 4, 5, 6), w)
    assert all(math.isnan(share) for share in broken.values())


def test_a_layer_without_a_dot_is_a_block() -> None:
    layout = Layout(("a", "b"), ((1,), (1,)))
    u, m = (Params(torch.tensor(flat), layout) for flat in ([3.0, 4.0], [0.0, 0.0]))
    assert layer_shares(u, m) == {"a": 9 / 25, "b": 16 / 25}
    assert swap_head(u, m).flat.tolist() == [3, 0]


def test_swap_head_puts_the_last_block_back() -> None:
    u, m = point(1, 2, 3, 4, 5, 6), point(-1, -2, -3, -4, -5, -6)
    assert swap_head(u, m).flat.tolist() == [1, 2, 3, -4, -5, -6]
    assert u.flat.tolist() == [1, 2, 3, 4, 5, 6]
    assert layer_shares(swap_head(u, m), u) == {"0": 0, "2": 1}


@pytest.mark.parametrize("name", names())
def test_the_last_block_of_each_model_makes_the_logits(name: str) -> None:
    layout = Layout.of(build(ModelConfig(name, 0.25), (1, 32, 32), 7))
    u, m = Params(torch.zeros(layout.size), layout), Params(torch.ones(layout.size), layout)
    changed = [layer for layer in swap_head(u, m).layers().values() if layer.any()]
    assert [len(layer) for layer in changed] == [7, 7] and [layer.ndim for layer in changed] == [2, 1]


def test_models_of_different_architectures_are_refused() -> None:
    other = Params(torch.zeros(6), Layout(("w",), ((6,),)))
    for function in (layer_shares, swap_head):
        with pytest.raises(ValueError, match="different layouts"):
            function(point(1, 2, 3, 4, 5, 6), other)


# ------------------------------------------------------------------------------------------------------------ barrier


def test_barrier_by_hand() -> None:
    # The line from 0 to 1 is at 1/2 half way: 3 - 1/2. (Against the mean of the ends, 1/2, it is the same there.)
    assert barrier([0, 3, 1]) == 2.5
    # The line from 3 to 0 is at 2 and 1 between: 4 - 2 and 3 - 1. (Against the mean it would be 4 - 3/2.)
    assert barrier([3, 4, 3, 0]) == 2
    # t^2 at thirds lies below its chord, and a chord on itself.
    assert barrier([0, 1 / 9, 4 / 9, 1]) == 0
    assert barrier([2, 5]) == 0


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=9), st.integers(-20, 20), st.integers(0, 20))
def test_a_barrier_is_not_negative_and_blind_to_lines(losses: list[int], slope: int, more: int) -> None:
    tilted = [loss + slope * i for i, loss in enumerate(losses)]
    assert barrier(losses) >= 0
    assert barrier(tilted) == pytest.approx(barrier(losses), abs=1e-9)
    raised = [losses[0], *(loss + more for loss in losses[1:-1]), losses[-1]]
    assert barrier(raised) >= barrier(losses)


def test_barrier_of_destroyed_models() -> None:
    assert math.isnan(barrier([1, 2, math.inf])) and math.isnan(barrier([1, math.nan, 1]))
    assert barrier([1, math.inf, 1]) == math.inf
    with pytest.raises(ValueError, match="2 ends at least, got 1"):
        barrier([1.0])
