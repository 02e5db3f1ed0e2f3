"""Solvers of the Newton-type strategies: linear systems and cubic models, from a Hessian or from products with it.

Vectors are `Params`, in float64 for accuracy; a Hessian is a tensor ``[d, d]``; a product is a function ``v -> H v``,
which in a federation costs a round. Solvers that spend products are generators: they yield the iterate after each one,
and say at their start to ``hold`` what they keep meanwhile.

The cubic model of a function with gradient g and Hessian H, whose Hessian has the Lipschitz constant M, is

    m(s) = g.s + s.H s / 2 + M/6 ||s||^3,

and s is its global minimiser if and only if (H + alpha I) s = -g with alpha = M ||s|| / 2 and H + alpha I >= 0
(Nesterov and Polyak, Mathematical Programming 2006).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fedforget.params import Params

Product = Callable[[Params], Params]
Hold = Callable[..., None]  # is told which vectors a solver keeps while it spends products (`Cohort.hold`)

MOST_PARAMETERS = (
    3000  # largest d with an explicit Hessian: 72 MB a client in float64, an eigendecomposition of seconds
)


def check_explicit(strategy: str, size: int) -> None:
    """Refuse a model that is too large for a ``d x d`` Hessian.

    Raises:
        ValueError: if ``size``, the number of parameters, is above `MOST_PARAMETERS`.
    """
    if size > MOST_PARAMETERS:
        raise ValueError(
            f"{strategy} makes a Hessian of d x d entries, so it serves models of at most d={MOST_PARAMETERS} "
            f"parameters, not d={size}; choose a smaller model or a variant that needs Hessian-vector products only"
        )


def shifted(hvp: Callable[[Params, Params], Params], w: Params, shift: float) -> Product:
    """The product ``v -> (H + shift I) v`` with the Hessian at ``w`` that ``hvp(w, v)`` multiplies by."""
    return lambda v: hvp(w, v) + shift * v


# ---------------------------------------------------------------------- linear systems


def damped_solve(H: Tensor, b: Params, gamma: float) -> Params:
    """``(H + gamma I)^-1 b``.

    Raises:
        ValueError: if the matrix is singular.
    """
    shifted = H + gamma * torch.eye(len(H), dtype=H.dtype)
    solution, info = torch.linalg.solve_ex(shifted, b.flat)
    if info or not torch.isfinite(solution).all():
        raise ValueError(f"the Hessian plus gamma={gamma:g} times the identity is singular; use a positive gamma")
    return Params(solution, b.layout)


def pseudo_solve(H: Tensor, b: Params, cutoff: float) -> Params:
    """``H^+ b``: eigenvalues of magnitude below ``cutoff`` times the largest count as zero."""
    values, vectors = torch.linalg.eigh(H)
    kept = values.abs() > cutoff * values.abs().max()
    coefficients = torch.where(kept, vectors.T @ b.flat / torch.where(kept, values, 1.0), 0.0)
    return Params(vectors @ coefficients, b.layout)


def hold_nothing(*vectors: Params) -> None:
    """Where nobody counts what is kept."""


def conjugate_gradient(
    product: Product, b: Params, iterations: int, tolerance: float = 0.0, hold: Hold = hold_nothing
) -> Iterator[Params]:
    """Iterates for ``H x = b`` from ``x = 0`` (Hestenes and Stiefel 1952).

    It ends after ``iterations`` products, once ``||b - H x|| <= tolerance ||b||``, or, with the iterate unchanged, at a
    direction along which H does not curve upwards. For ``b = 0`` it spends and yields nothing.
    """
    x, r, p = 0.0 * b, b, b
    hold(x, r)
    rr = r.dot(r)
    for _ in range(iterations):
        if math.sqrt(rr) <= tolerance * b.norm():
            return
        Hp = product(p)
        curvature = p.dot(Hp)
        if curvature <= 0:
            yield x
            return
        x, r = x + rr / curvature * p, r - rr / curvature * Hp
        before, rr = rr, r.dot(r)
        p = r + rr / before * p
        yield x


def lissa(product: Product, b: Params, iterations: int, scale: float, hold: Hold = hold_nothing) -> Iterator[Params]:
    """Iterates ``u / scale`` of ``u <- b + u - H u / scale`` from ``u = b``.

    They tend to ``H^-1 b`` if H is positive definite and ``scale`` exceeds half its largest eigenvalue (Agarwal,
    Bullins and Hazan, JMLR 2017). Damping by ``(1 - damp) u``, as others write it, is the Hessian ``H + damp scale I``.
    """
    hold(b)
    u = b
    for _ in range(iterations):
        u = b + u - product(u) / scale
        yield u / scale


# ---------------------------------------------------------------------- cubic models


def cubic_model(g: Params, Hs: Params, s: Params, M: float) -> float:
    """``m(s)``, given ``Hs``, the product of the Hessian with ``s``."""
    return g.dot(s) + s.dot(Hs) / 2 + M / 6 * s.norm() ** 3


def cubic_step(H: Tensor, g: Params, M: float) -> Params:
    """The global minimiser of the cubic model, for any symmetric H (where there are several, one of them)."""
    values, vectors = torch.linalg.eigh(H)
    return Params(vectors @ _cubic_in_eigenbasis(values, vectors.T @ g.flat, M), g.layout)


def cauchy_step(g: Params, Hg: Params, M: float) -> Params:
    """The minimiser of the cubic model along ``-g``, given ``Hg``; zero for ``g = 0``."""
    norm = g.norm()
    if norm == 0:
        return g
    b = g.dot(Hg) / (M * norm**2)
    # R = -b + sqrt(b^2 + 2 ||g|| / M), written so that a large positive b does not cancel.
    root = math.sqrt(b**2 + 2 * norm / M)
    R = root - b if b <= 0 else 2 * norm / M / (root + b)
    return -(R / norm) * g


def cubic_descent(product: Product, g: Params, s: Params, M: float, eta: float, iterations: int) -> Iterator[Params]:
    """Gradient descent on the cubic model from ``s`` with step size ``eta``."""
    for _ in range(iterations):
        s = s - eta * (g + product(s) + (M / 2 * s.norm()) * s)
        yield s


def krylov_cubic(
    product: Product, g: Params, M: float, iterations: int, tolerance: float = 0.0, hold: Hold = hold_nothing
) -> Iterator[Params]:
    """The global minimisers of the cubic model over ``span{g, H g, H^2 g, ...}``, one more dimension with each product.

    Lanczos with full reorthogonalisation; on its basis H is tridiagonal, and the small cubic model is solved exactly
    (Cartis, Gould and Toint, Mathematical Programming 2011, section 6). It ends after ``iterations`` products, once the
    model's gradient is at most ``tolerance ||g||``, or when the subspace is exhausted. Directions orthogonal to the
    whole subspace are never found (the hard case). For ``g = 0`` it spends and yields nothing.
    """
    hold(*[g] * iterations)  # as large as the basis may become
    norm = g.norm()
    if norm == 0:
        return
    basis = (g.flat / norm)[None]
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for _ in range(iterations):
        u = product(Params(basis[-1], g.layout)).flat
        diagonal.append(float(basis[-1] @ u))
        for _ in range(2):  # twice is enough to be orthogonal to rounding
            u = u - basis.T @ (basis @ u)
        beta = float(u.norm())
        T = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        off = torch.tensor(off_diagonal, dtype=torch.float64)
        T += torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(T)
        y = vectors @ _cubic_in_eigenbasis(values, norm * vectors[0], M)
        yield Params(basis.T @ y.to(basis.dtype), g.layout)
        # The model's gradient at s is beta times the last entry of y, along the next basis vector.
        if beta * abs(float(y[-1])) <= tolerance * norm or beta <= torch.finfo(u.dtype).eps * float(values.abs().max()):
            return
        basis, off_diagonal = torch.cat([basis, u[None] / beta]), [*off_diagonal, beta]


def _cubic_in_eigenbasis(values: Tensor, c: Tensor, M: float) -> Tensor:
    """The minimiser for ``H = diag(values)`` (ascending) and gradient ``c``.

    With floor = max(0, -values[0]) and alpha = floor + delta, entry i of the step is ``-c_i / (values_i + floor +
    delta)``. Its norm falls with delta while the radius ``2 alpha / M`` that it must equal grows, so the one root is
    found by bisection; on delta, not alpha, so that nothing cancels when alpha is close to ``-values[0]``.
    """
    floor = max(0.0, -float(values[0]))
    gaps = values + floor

    def step(delta: float) -> Tensor:
        return torch.where(c == 0, 0.0, -c / (gaps + delta))

    limit = step(0.0)  # infinite unless c is zero wherever the gap is
    excess = (2 * floor / M) ** 2 - float(limit @ limit)
    if excess >= 0:  # the hard case: the step is too short even at delta = 0, and the lowest eigenvector fills it up
        limit[0] += math.sqrt(excess)
        return limit
    lowest = abs(float(values[0]))
    norm = float(c.norm())
    high = M * norm / (lowest + math.sqrt(lowest**2 + 2 * M * norm))  # from ||step|| <= norm / (values_0 + alpha)
    low = high * 1e-300
    while low < (middle := math.sqrt(low) * math.sqrt(high)) < high:
        if float(step(middle).norm()) > 2 * (floor + middle) / M:
            low = middle
        else:
            high = middle
    return step(high)
