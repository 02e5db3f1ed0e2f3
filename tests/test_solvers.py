"""Solvers against equations solved by hand, closed forms and optimality conditions."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize

from fedforget import solvers
from fedforget.params import Layout, Params

SIZE = 30


def vector(values):
    flat = torch.as_tensor(values, dtype=torch.float64)
    return Params(flat, Layout(("w",), ((len(flat),),)))


def last(iterates):
    *_, result = iterates
    return result


def product(H):
    return lambda v: Params(H @ v.flat, v.layout)


def random(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def symmetric(eigenvalues, seed=0):
    """A matrix with the given eigenvalues, and its eigenvectors."""
    vectors, _ = torch.linalg.qr(random(seed, len(eigenvalues), len(eigenvalues)))
    return vectors @ torch.diag(eigenvalues) @ vectors.T, vectors


def m(H, g, s, M):
    return solvers.cubic_model(g, Params(H @ s.flat, s.layout), s, M)


# ---------------------------------------------------------------------- ridge regression: one Newton step is retraining


def ridge(seed=1, penalty=0.1):
    """Clients' data, the last client's being forgotten; the retained loss's gradient at the full solution, and H."""
    X = [random(seed + k, 12, SIZE) for k in range(5)]
    y = [random(seed + 10 + k, 12) for k in range(5)]

    def solution(clients):
        n = 12 * len(clients)
        H = sum(X[k].T @ X[k] for k in clients) / n + penalty * torch.eye(SIZE, dtype=torch.float64)
        return torch.linalg.solve(H, sum(X[k].T @ y[k] for k in clients) / n), H

    (w, _), (golden, H) = solution(range(5)), solution(range(4))
    retained = sum(X[k].T @ (X[k] @ w - y[k]) for k in range(4)) / 48 + penalty * w
    forgotten = X[4].T @ (X[4] @ w - y[4]) / 12 + penalty * w
    return vector(w), vector(golden), H, vector(retained), vector(forgotten)


@pytest.mark.parametrize("solver", ["damped", "pseudo", "cg"])
def test_on_ridge_regression_one_newton_step_is_the_retrained_model(solver):
    w, golden, H, g, _ = ridge()
    step = {
        "damped": lambda: solvers.damped_solve(H, g, 0.0),
        "pseudo": lambda: solvers.pseudo_solve(H, g, 1e-12),
        "cg": lambda: last(solvers.conjugate_gradient(product(H), g, 3 * SIZE, 1e-14)),
    }[solver]()
    assert (w - golden).norm() > 0.1
    assert (w - step - golden).norm() < 1e-8


def test_on_ridge_regression_the_influence_update_is_the_retrained_model():
    # The full gradient is zero: 48 g_r + 12 g_f = 0, so w + H^-1 (12 g_f) / 48 = w - H^-1 g_r.
    w, golden, H, _, forgotten = ridge()
    assert (w + solvers.damped_solve(H, 12 * forgotten, 0.0) / 48 - golden).norm() < 1e-8


def test_a_cubic_step_with_a_tiny_constant_is_a_newton_step():
    w, golden, H, g, _ = ridge()
    assert (w + solvers.cubic_step(H, g, 1e-12) - golden).norm() < 1e-8
    assert (w + last(solvers.krylov_cubic(product(H), g, 1e-12, SIZE)) - golden).norm() < 1e-8


# ---------------------------------------------------------------------- linear systems


def test_conjugate_gradient_by_hand():
    # H = diag(1, 3), b = (1, 1): b.Hb = 4, step 2/4: x = (1/2, 1/2); then the exact (1, 1/3).
    H = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    first, second = solvers.conjugate_gradient(product(H), vector([1, 1]), 9, 1e-12)
    assert first.flat.tolist() == [0.5, 0.5]
    assert second.flat.tolist() == pytest.approx([1, 1 / 3])


def test_conjugate_gradient_stops_at_negative_curvature():
    # Along b itself the curvature is 1 - 3 < 0: nothing is gained, one product is spent.
    H = torch.diag(torch.tensor([1.0, -3.0], dtype=torch.float64))
    assert [x.flat.tolist() for x in solvers.conjugate_gradient(product(H), vector([1, 1]), 9)] == [[0, 0]]


def test_nothing_is_spent_on_a_zero_gradient():
    def spent(v):
        raise AssertionError("a product was spent")

    assert list(solvers.conjugate_gradient(spent, vector([0, 0]), 5)) == []
    assert list(solvers.krylov_cubic(spent, vector([0, 0]), 1.0, 5)) == []
    assert solvers.cauchy_step(vector([0, 0]), vector([0, 0]), 1.0).norm() == 0


def test_lissa_by_hand():
    # H = 2, b = 1, scale 4: u = 1 + u - u/2 from 1: 1.5, 1.75, ... -> 2; u / 4 = 0.375, 0.4375, ... -> 1/2 = b / H.
    iterates = list(solvers.lissa(lambda v: 2.0 * v, vector([1]), 60, 4.0))
    assert [x.flat.item() for x in iterates[:2]] == [0.375, 0.4375]
    assert iterates[-1].flat.item() == pytest.approx(0.5, abs=1e-12)


def test_pseudo_inverse_ignores_the_null_space():
    H, vectors = symmetric(torch.tensor([0.0, 0.0, 2.0, -4.0], dtype=torch.float64))
    b = vector(vectors @ torch.tensor([5.0, 1.0, 6.0, 8.0], dtype=torch.float64))
    x = vectors.T @ solvers.pseudo_solve(H, b, 1e-10).flat
    assert x.tolist() == pytest.approx([0, 0, 3, -2], abs=1e-12)


def test_the_cutoff_is_relative_to_the_largest_eigenvalue():
    # 2e-12 and 1e-12 of a matrix whose largest eigenvalue is 2e-12 are no zeros, but the smaller is below 0.6 of it.
    H, b = torch.diag(torch.tensor([2e-12, 1e-12], dtype=torch.float64)), vector([2e-12, 3e-12])
    assert solvers.pseudo_solve(H, b, 1e-10).flat.tolist() == pytest.approx([1, 3])
    assert solvers.pseudo_solve(H, b, 0.6).flat.tolist() == pytest.approx([1, 0])


def test_damping_by_hand():
    # (diag(1, 3) + 1) x = (2, 8): x = (1, 2).
    H = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert solvers.damped_solve(H, vector([2, 8]), 1.0).flat.tolist() == pytest.approx([1, 2])


def test_a_singular_system_is_refused():
    with pytest.raises(ValueError, match="gamma=0 times the identity is singular"):
        solvers.damped_solve(torch.zeros(2, 2, dtype=torch.float64), vector([1, 1]), 0.0)


def test_large_models_are_refused():
    solvers.check_explicit("it", 3000)
    with pytest.raises(ValueError, match="it makes a Hessian .* at most d=3000 parameters, not d=3001"):
        solvers.check_explicit("it", 3001)


def test_shifting_adds_to_the_diagonal():
    assert solvers.shifted(lambda w, v: w + v, vector([1, 2]), 0.5)(vector([4, 4])).flat.tolist() == [7, 8]


# ---------------------------------------------------------------------- cubic models

RISING = torch.linspace(0.5, 3, SIZE, dtype=torch.float64)
MIXED = torch.linspace(-1, 3, SIZE, dtype=torch.float64)
SINGULAR = torch.cat([torch.zeros(10, dtype=torch.float64), RISING[10:]])
CASES = ["positive", "semidefinite", "indefinite", "negative", "hard", "nearly hard", "saddle"]


def case(name):
    """A Hessian and a gradient; in the hard cases the gradient has (nearly) no part along the lowest direction."""
    spectrum = {"positive": RISING, "semidefinite": SINGULAR, "negative": -RISING.flip(0)}.get(name, MIXED)
    H, vectors = symmetric(spectrum)
    g = random(3, SIZE)
    if name in ("hard", "nearly hard", "saddle"):
        lowest = vectors[:, 0]
        g = 0.01 * (g - lowest * (lowest @ g)) + (1e-9 if name == "nearly hard" else 0) * lowest
    return H, vector(0 * g if name == "saddle" else g)


@pytest.mark.parametrize("M", [0.1, 1.0, 5.0, 50.0])
@pytest.mark.parametrize("name", CASES)
def test_the_cubic_step_is_the_global_minimiser(name, M):
    H, g = case(name)
    s = solvers.cubic_step(H, g, M)
    alpha = M * s.norm() / 2
    assert (H @ s.flat + alpha * s.flat + g.flat).norm() < 1e-10
    assert torch.linalg.eigvalsh(H)[0] + alpha > -1e-10
    for seed in range(20):
        assert m(H, g, s, M) <= m(H, g, s.norm() * vector(random(seed, SIZE)) / math.sqrt(SIZE), M)


KINDS = ["positive", "indefinite", "hard", "nearly hard"]


def drawn(kind, seed):
    """A random cubic model: up to 20 dimensions, eigenvalues that span up to six orders of magnitude, any M."""
    rng = np.random.default_rng([KINDS.index(kind), seed])
    size, condition = int(rng.integers(2, 21)), 10 ** rng.uniform(0, 6)
    values = np.sort(10 ** rng.uniform(-np.log10(condition), 0, size))
    if kind != "positive":
        values[: size // 2] *= -1
        values.sort()
    V, _ = np.linalg.qr(rng.standard_normal((size, size)))
    c = 10 ** rng.uniform(-3, 1) * rng.standard_normal(size)
    if kind in ("hard", "nearly hard"):  # short, and with no more than rounding along the lowest direction
        c *= 1e-3 * abs(values[0]) / np.linalg.norm(c)
        c[0] *= 0 if kind == "hard" else 1e-9
    return (V * values) @ V.T, V @ c, 10 ** rng.uniform(-2, 2)


def bound(H, g, M):
    """A lower bound of the cubic model, the greatest that its dual gives.

    M/6 r^3 >= alpha/2 r^2 - 2/3 alpha^3 / M^2 for every alpha >= 0, so that for alpha > -lambda_1 no s has a value
    below the minimum of g.s + s.(H + alpha I) s / 2, which is -g.(H + alpha I)^-1 g / 2, less 2/3 alpha^3 / M^2.
    """
    floor, size = max(0.0, -np.linalg.eigvalsh(H)[0]), len(g)

    def value(log_delta):
        alpha = floor + 10**log_delta
        return -g @ np.linalg.solve(H + alpha * np.eye(size), g) / 2 - 2 / 3 * alpha**3 / M**2

    grid = np.linspace(-14, 3, 200)
    best = grid[int(np.argmax([value(at) for at in grid]))]
    found = optimize.minimize_scalar(lambda at: -value(at), bounds=(best - 0.1, best + 0.1), method="bounded")
    return max(value(best), -found.fun)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_the_cubic_step_is_the_minimum_that_scipy_finds(kind, seed):
    H, g, M = drawn(kind, seed)

    def model(s):
        return g @ s + s @ H @ s / 2 + M / 6 * np.linalg.norm(s) ** 3

    def slope(s):
        return g + H @ s + M / 2 * np.linalg.norm(s) * s

    def curvature(s):
        r = np.linalg.norm(s)
        return H + M / 2 * (r * np.eye(len(s)) + np.outer(s, s) / max(r, 1e-300))

    s = solvers.cubic_step(torch.tensor(H), vector(g), M).flat.numpy()
    scale = abs(model(s))
    assert scale > 0 and model(s) - bound(H, g, M) <= 1e-7 * scale  # nothing is lower
    radius = np.linalg.norm(s)
    found = [
        optimize.minimize(
            model, start, method="trust-exact", jac=slope, hess=curvature, options={"gtol": 1e-6 * scale / radius}
        ).fun
        for start in radius * np.random.default_rng(seed).standard_normal((5, len(s)))
    ]
    assert min(found) == pytest.approx(model(s), rel=1e-6, abs=0) and min(found) >= model(s) - 1e-12 * scale
    # Lanczos finds it as well, once its subspace is whole; in the hard case it misses the lowest direction.
    *_, t = solvers.krylov_cubic(product(torch.tensor(H)), vector(g), M, len(g))
    if kind in ("positive", "indefinite"):
        assert model(t.flat.numpy()) == pytest.approx(model(s), rel=1e-9)
    assert model(t.flat.numpy()) >= model(s) - 1e-12 * scale


def test_the_cubic_step_by_hand():
    # h = 1, M = 2, g = -2: (1 + |s|) s = 2, so s = 1.
    assert solvers.cubic_step(torch.ones(1, 1, dtype=torch.float64), vector([-2]), 2.0).flat.item() == pytest.approx(1)
    # Nothing to gain at a minimum.
    assert solvers.cubic_step(torch.ones(1, 1, dtype=torch.float64), vector([0]), 2.0).norm() == 0


def test_the_hard_case_by_hand():
    # H = diag(-1, 3), g = (0, 4), M = 1: alpha = 1, s_2 = -4 / (3 + 1) = -1, radius 2 alpha / M = 2, s_1 = +-sqrt(3);
    # m = 4 (-1) + (-3 + 3) / 2 + 8 / 6 = -8/3.
    H, g = torch.diag(torch.tensor([-1.0, 3.0], dtype=torch.float64)), vector([0, 4])
    s = solvers.cubic_step(H, g, 1.0)
    assert s.flat.abs().tolist() == pytest.approx([math.sqrt(3), 1]) and s.flat[1] < 0
    assert m(H, g, s, 1.0) == pytest.approx(-8 / 3)


@pytest.mark.parametrize("M", [0.1, 5.0])
@pytest.mark.parametrize("name", ["positive", "indefinite", "negative"])
def test_the_cauchy_step_is_the_best_along_the_gradient(name, M):
    H, g = case(name)
    s = solvers.cauchy_step(g, Params(H @ g.flat, g.layout), M)
    slope = g.dot(s) + s.dot(Params(H @ s.flat, s.layout)) + M / 2 * s.norm() ** 3
    assert g.dot(s) == pytest.approx(-g.norm() * s.norm()) and slope == pytest.approx(0, abs=1e-9 * g.norm())
    assert m(H, g, s, M) < 0


def test_the_cauchy_step_by_hand():
    # ||g|| = 5, H = I, M = 1.5: b = 1 / 1.5, R = -2/3 + sqrt(4/9 + 20/3) = 2 (so that R + M R^2 / 2 = 5).
    assert solvers.cauchy_step(vector([3, 4]), vector([3, 4]), 1.5).flat.tolist() == pytest.approx([-1.2, -1.6])


def test_a_cauchy_step_against_large_curvature_does_not_cancel():
    # g = 1, h = 1e10, M = 1: (h + |s| / 2) |s| = 1 at |s| = 1e-10 (1 - 5e-21), and -b + sqrt(b^2 + 2) would be 0.
    assert solvers.cauchy_step(vector([1]), vector([1e10]), 1.0).flat.item() == pytest.approx(-1e-10, rel=1e-14)


def test_descent_on_the_cubic_model_by_hand():
    # g = -1, h = 2, M = 2, eta = 0.1, s = 1: slope -1 + 2 + 1 = 2, s = 0.8; slope -1 + 1.6 + 0.64 = 1.24, s = 0.676.
    iterates = solvers.cubic_descent(lambda v: 2.0 * v, vector([-1]), vector([1]), 2.0, 0.1, 2)
    assert [s.flat.item() for s in iterates] == pytest.approx([0.8, 0.676])


@pytest.mark.parametrize("name", ["positive", "semidefinite", "indefinite", "negative"])
def test_a_few_short_steps_are_enough_only_where_the_cubic_term_is_large(name):
    """Five descent steps of 0.01 after the Cauchy step: three quarters and more of the greatest decrease from M = 1 on,
    and less than 0.87 of it at M = 0.1, where the gradient is short against the curvature."""
    shares = {}
    for M in (0.1, 1.0, 5.0, 50.0):
        H, g = case(name)
        start = solvers.cauchy_step(g, Params(H @ g.flat, g.layout), M)
        s = last(solvers.cubic_descent(product(H), g, start, M, 0.01, 5))
        shares[M] = m(H, g, s, M) / m(H, g, solvers.cubic_step(H, g, M), M)
    assert 0.1 < shares[0.1] < 0.87 and 0.75 < shares[1.0] < shares[5.0] < shares[50.0] <= 1


@pytest.mark.parametrize("name", ["positive", "semidefinite", "indefinite", "negative"])
def test_the_krylov_step_becomes_the_exact_one_and_never_gets_worse(name):
    H, g = case(name)
    steps = list(solvers.krylov_cubic(product(H), g, 1.0, SIZE))
    exact = solvers.cubic_step(H, g, 1.0)
    assert (steps[-1] - exact).norm() < 1e-8
    values = [m(H, g, s, 1.0) for s in steps]
    assert all(later <= earlier + 1e-12 for earlier, later in zip(values, values[1:], strict=False))
    cauchy = solvers.cauchy_step(g, Params(H @ g.flat, g.layout), 1.0)
    assert (steps[0] - cauchy).norm() < 1e-12


@pytest.mark.parametrize("M", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("name", ["positive", "indefinite"])
def test_with_equal_products_krylov_is_never_above_descent(name, M):
    H, g = case(name)
    start = solvers.cauchy_step(g, Params(H @ g.flat, g.layout), M)
    descended = [start, *solvers.cubic_descent(product(H), g, start, M, 0.05, 7)]
    for s, t in zip(solvers.krylov_cubic(product(H), g, M, 8), descended, strict=True):
        assert m(H, g, s, M) <= m(H, g, t, M) + 1e-12


def test_krylov_stops_when_it_is_good_enough_or_has_seen_everything():
    H, g = case("positive")
    s = last(solvers.krylov_cubic(product(H), g, 1.0, SIZE, 0.01))
    slope = H @ s.flat + s.norm() / 2 * s.flat + g.flat
    assert 1e-12 < slope.norm() <= 0.01 * g.norm()
    eigenvector = vector(symmetric(RISING)[1][:, 4])
    assert len(list(solvers.krylov_cubic(product(symmetric(RISING)[0]), eigenvector, 1.0, SIZE, 1e-12))) == 1
    # A subspace that is exhausted ends it where any gradient would be too much.
    H = torch.diag(torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64))
    assert len(list(solvers.krylov_cubic(product(H), vector([1, 0, 1]), 1.0, 9))) == 2
