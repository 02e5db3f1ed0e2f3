"""The linear laboratory: closed forms against their definitions on random instances, federated against pooled."""

from __future__ import annotations

import numpy as np
import pytest

from simulations.linear_lab import (
    CASES,
    Array,
    Instance,
    basis,
    descend_inverse,
    discriminative,
    draw,
    fine_tune,
    golden_from_bases,
    golden_from_grams,
    main,
    nearest,
    projector,
    remove,
    shards,
    share_forgotten,
)

DISTINCT, OVERLAPPING = CASES["distinct"], CASES["overlapping"]
each_instance = pytest.mark.parametrize(
    "instance",
    [draw(np.random.default_rng(seed), *sizes) for sizes in CASES.values() for seed in range(5)],
    ids=[f"{case}-{seed}" for case in CASES for seed in range(5)],
)


def close(a: Array, b: Array) -> bool:
    return float(np.linalg.norm(a - b)) <= 1e-10 * max(1.0, float(np.linalg.norm(b)))


def descend(instance: Instance, w: Array, targets: Array, alpha: float, steps: int = 20000) -> Array:
    """Gradient descent on RL + alpha ||X_f^T w - targets||^2 / n_f, with a step below 2 over the curvature."""
    X_r, X_f = instance.X_r, instance.X_f
    H = 2 * X_r @ X_r.T / X_r.shape[1] + 2 * alpha * X_f @ X_f.T / X_f.shape[1]
    g = 2 * X_r @ instance.y_r / X_r.shape[1] + 2 * alpha * X_f @ targets / X_f.shape[1]
    lr = 1 / np.linalg.norm(H, 2)
    for _ in range(steps):
        w = w - lr * (H @ w - g)
    return w


def test_nearest_by_hand() -> None:
    # One sample x = (3, 4), y = 10: the least-norm solution is 10 x / 25 = (1.2, 1.6). From (4, -3), which is
    # orthogonal to x, the nearest one keeps that part: (5.2, -1.4).
    X, y = np.array([[3.0], [4.0]]), np.array([10.0])
    assert close(nearest(X, y), np.array([1.2, 1.6]))
    assert close(nearest(X, y, np.array([4.0, -3.0])), np.array([5.2, -1.4]))


@pytest.mark.parametrize("case", CASES)
def test_gradient_descent_ends_at_the_nearest_interpolator(case: str) -> None:
    # alpha = 0: plain fine-tuning, from a point that interpolates nothing.
    instance = draw(np.random.default_rng(0), *CASES[case])
    start = np.random.default_rng(1).standard_normal(len(instance.w_r))
    w = descend(instance, start, instance.y_f, alpha=0.0)
    assert np.allclose(w, fine_tune(instance, start), atol=1e-6)


@each_instance
def test_fine_tuning_leaves_the_model(instance: Instance) -> None:
    w_o = instance.original
    assert close(fine_tune(instance, w_o), w_o)
    assert instance.RL(w_o) < 1e-20 and instance.UL(w_o) < 1e-20


@each_instance
def test_the_golden_model(instance: Instance) -> None:
    # UL = ||P_r w*_r - w*_f||_M^2; with distinct features P_r w*_r does not reach X_f: ||w*_f||_M^2.
    w_g = instance.golden
    expected = instance.energy(projector(instance.X_r) @ instance.w_r - instance.w_f)
    assert instance.RL(w_g) < 1e-20
    assert instance.UL(w_g) == pytest.approx(expected, rel=1e-10)
    if instance.blocks[1] == 0:
        assert instance.UL(w_g) == pytest.approx(instance.energy(instance.w_f), rel=1e-10)


@each_instance
def test_removing_the_forget_block(instance: Instance) -> None:
    # Option A still fits X_r, so fine-tuning stays there, and UL = ||(0, 0, w_o[f])||_M^2.
    w_A, w_o = remove(instance, overlap=False), instance.original
    assert close(fine_tune(instance, w_A), w_A)
    assert instance.UL(w_A) == pytest.approx(instance.energy(w_o - w_A), rel=1e-10)


@each_instance
def test_removing_the_overlap_too(instance: Instance) -> None:
    # Option B ends at (I - P_r) w_B + P_r w*_r; with distinct features A = B = golden in UL.
    w_B, P_r = remove(instance, overlap=True), projector(instance.X_r)
    w = fine_tune(instance, w_B)
    assert close(w, w_B - P_r @ w_B + P_r @ instance.w_r)
    assert instance.RL(w) < 1e-20
    assert instance.UL(w) == pytest.approx(instance.energy(w - instance.w_f), rel=1e-10)
    if instance.blocks[1] == 0:
        assert instance.UL(w) == pytest.approx(instance.UL(remove(instance, overlap=False)), rel=1e-10)
        assert instance.UL(w) == pytest.approx(instance.UL(instance.golden), rel=1e-10)


def test_blocks_that_are_removed() -> None:
    instance = draw(np.random.default_rng(0), 3, 2, 4, 2, 3)
    zeros = [(remove(instance, overlap=overlap) == 0).tolist() for overlap in (False, True)]
    assert zeros == [[False] * 5 + [True] * 4, [False] * 3 + [True] * 6]


@each_instance
def test_the_projected_original_is_the_golden_model(instance: Instance) -> None:
    assert close(projector(instance.X_r) @ instance.original, instance.golden)


@each_instance
@pytest.mark.parametrize("clients", [1, 4, 40])  # 40 clients have one sample each, or none
def test_federated_is_pooled(instance: Instance, clients: int) -> None:
    parts = shards(instance.X_r, instance.y_r, clients)
    assert len(parts) == clients and sum(len(y) for _, y in parts) == len(instance.y_r)
    assert close(golden_from_bases(parts, instance.original), instance.golden)
    assert close(golden_from_grams(parts), instance.golden)


def test_samples_that_several_clients_hold_count_once() -> None:
    instance = draw(np.random.default_rng(3), *OVERLAPPING)
    parts = shards(instance.X_r, instance.y_r, 3)
    assert close(golden_from_bases([*parts, parts[0]], instance.original), instance.golden)
    assert close(golden_from_grams([*parts, parts[0]]), instance.golden)


def test_a_basis_is_orthonormal_and_thin() -> None:
    X = np.random.default_rng(0).standard_normal((6, 2)) @ np.ones((2, 4))  # four samples on one line
    Q = basis(X)
    assert Q.shape == (6, 1) and np.allclose(Q.T @ Q, 1) and np.allclose(projector(X) @ X, X)
    assert basis(np.zeros((6, 0))).shape == (6, 0)


# ---------------------------------------------------------------------- discriminative regularisation


@each_instance
@pytest.mark.parametrize("form", ["uniform", "wrong"])
def test_regularisation_keeps_the_retained_loss(instance: Instance, form: str) -> None:
    w = discriminative(instance, form, np.random.default_rng(9))
    assert instance.RL(w) < 1e-8
    if form == "uniform":
        # All forgotten targets are answered by 0: UL = ||y_f||^2 / n_f = ||w*_f||_M^2, which is golden where distinct.
        assert instance.UL(w) == pytest.approx(instance.energy(instance.w_f), rel=1e-10)


@pytest.mark.parametrize("alpha", [0.01, 1.0])
def test_regularised_gradient_descent_ends_at_the_closed_form(alpha: float) -> None:
    instance = draw(np.random.default_rng(0), 20, 5, 20, 5, 5)
    w = descend(instance, instance.original, np.zeros(5), alpha)
    assert np.allclose(w, discriminative(instance, "uniform", np.random.default_rng(0)), atol=1e-6)


def test_distinct_features_are_always_forgotten_by_the_uniform_form() -> None:
    assert share_forgotten("uniform", DISTINCT, draws=50) == 1


@pytest.mark.parametrize(("form", "case"), [("wrong", "distinct"), *((f, "overlapping") for f in ("uniform", "wrong"))])
def test_elsewhere_the_unlearning_loss_is_golden_on_average_but_not_in_every_draw(form: str, case: str) -> None:
    made, golden = 0.0, 0.0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        instance = draw(rng, *CASES[case])
        made += instance.UL(discriminative(instance, form, rng))
        golden += instance.UL(instance.golden)
    assert made > 0.9 * golden
    assert 0.8 < share_forgotten(form, CASES[case], draws=100) < 1


@pytest.mark.parametrize(("sizes", "holds"), [(DISTINCT, True), (OVERLAPPING, False)])
def test_the_inverse_form_forgets_but_keeps_only_distinct_features(sizes: tuple[int, ...], holds: bool) -> None:
    for seed in range(3):
        instance = draw(np.random.default_rng(seed), *sizes)
        short, long = (descend_inverse(instance, np.random.default_rng(0), steps=steps) for steps in (2500, 10000))
        assert instance.UL(long) >= 0.9 * instance.UL(instance.golden)
        assert instance.UL(long) > 1.5 * instance.UL(short)  # there is no minimum where it would stop
        assert (instance.RL(long) < 1e-8) == holds


def test_too_many_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="20 \\+ 21 samples are too many for blocks of 20, 0 and 20 features"):
        draw(np.random.default_rng(0), 20, 0, 20, 20, 21)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * 14
    assert [line.split()[1:4] for line in lines if "fine-tuned" in line][1][1:] == ["0.0000", "0.000"]
