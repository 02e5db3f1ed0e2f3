"""Can fine-tuning forget? The over-parameterised linear model, where every answer has a closed form.

The question of Ding, Sharma, Chen, Xu and Ji, "Understanding Fine-tuning in Approximate Unlearning: A Theoretical
Perspective", TMLR 2025, arXiv 2410.03833, in its own setting, with a federated form of the answer. ``python
simulations/linear_lab.py`` takes three seconds and prints, for three shapes of random data, the loss of each model on
retained (RL) and forgotten (UL) data. Fine-tuning leaves the model as it is (UL = 0); projecting the original on the
span of the retained data gives the golden model to machine precision, from pooled data, from clients' Gram matrices,
and from clients' thin bases:

    overlapping: d_r, d_lap, d_f = (20, 10, 20), n_r, n_f = (15, 15)
      model                             RL        UL   UL/golden   ||w - golden||
      fine-tuned                   6.6e-31    0.0000       0.000          2.6e+00
      A: forget block removed      6.6e-31    5.9083       1.067          1.4e+00
      federated, thin bases        2.4e-28    5.5371       1.000          1.2e-14

A discriminative regulariser keeps RL < 1e-8 and lifts UL to 0.9 of the golden UL or more: always for `uniform` with
distinct features (there UL is exactly golden); on average over draws, but not in each, for `uniform` with overlapping
features and for `wrong`. `inverse` has no gradient where UL = 0, which is where interpolation starts, and no minimum: a
little off, UL grows without bound; with distinct features RL stays as it is, with overlapping ones it rises above 1e-8.

Symbols: X_r [d, n_r], X_f [d, n_f] retained and forgotten samples, as columns; y_r, y_f their noiseless targets; the d
features fall into blocks of d_r (retained data only), d_lap (both) and d_f (forgotten data only):

    X_r^T = [R, L1, 0],  X_f^T = [0, L2, F],  w*_r = (a, b, 0),  w*_f = (0, b, c),  y = X^T w*,  d > n_r + n_f

    original w_o = argmin ||w||        s.t. X_r^T w = y_r, X_f^T w = y_f
    fine-tuned   = argmin ||w - w_o||  s.t. X_r^T w = y_r      (the limit of gradient descent from w_o)
    golden   w_g = argmin ||w||        s.t. X_r^T w = y_r
    RL(w) = ||X_r^T w - y_r||^2 / n_r,   UL(w) = ||X_f^T w - y_f||^2 / n_f,   P_r = projector on the span of X_r

Deviations: beyond its abstract the paper was not read; the statements are derived here, and tested. The regularisers
are the squared-error counterparts of those of the strategy `discriminative`: uninformative targets (0) for the uniform
distribution, targets of another random model for wrong labels, and 1 / UL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CASES = {"distinct": (20, 0, 20, 10, 10), "overlapping": (20, 10, 20, 15, 15), "narrow overlap": (12, 4, 12, 12, 10)}


@dataclass(frozen=True)
class Instance:
    """One random problem; ``blocks`` is (d_r, d_lap, d_f)."""

    blocks: tuple[int, int, int]
    X_r: Array
    X_f: Array
    w_r: Array
    w_f: Array

    @property
    def y_r(self) -> Array:
        """Targets of the retained samples, ``[n_r]``."""
        return self.X_r.T @ self.w_r

    @property
    def y_f(self) -> Array:
        """Targets of the forgotten samples, ``[n_f]``."""
        return self.X_f.T @ self.w_f

    @property
    def original(self) -> Array:
        """w_o: the interpolating model of least norm, on all data."""
        return nearest(np.hstack([self.X_r, self.X_f]), np.concatenate([self.y_r, self.y_f]))

    @property
    def golden(self) -> Array:
        """w_g: the same on retained data alone."""
        return nearest(self.X_r, self.y_r)

    def RL(self, w: Array) -> float:
        """Loss on the retained data."""
        return float(np.mean((self.X_r.T @ w - self.y_r) ** 2))

    def UL(self, w: Array) -> float:
        """Loss on the forgotten data."""
        return float(np.mean((self.X_f.T @ w - self.y_f) ** 2))

    def energy(self, v: Array) -> float:
        """``||v||_M^2`` with ``M = X_f X_f^T / n_f``: the loss that an error ``v`` of the weights causes on X_f."""
        return float(np.mean((self.X_f.T @ v) ** 2))


def draw(rng: np.random.Generator, d_r: int, d_lap: int, d_f: int, n_r: int, n_f: int) -> Instance:
    """An instance with standard normal entries.

    Raises:
        ValueError: if it would not be over-parameterised.
    """
    if d_r + d_lap < n_r or d_lap + d_f < n_f or d_r + d_lap + d_f <= n_r + n_f:
        raise ValueError(f"{n_r} + {n_f} samples are too many for blocks of {d_r}, {d_lap} and {d_f} features")
    X_r = np.vstack([rng.standard_normal((d_r + d_lap, n_r)), np.zeros((d_f, n_r))])
    X_f = np.vstack([np.zeros((d_r, n_f)), rng.standard_normal((d_lap + d_f, n_f))])
    a, b, c = (rng.standard_normal(size) for size in (d_r, d_lap, d_f))
    w_r, w_f = np.concatenate([a, b, np.zeros(d_f)]), np.concatenate([np.zeros(d_r), b, c])
    return Instance((d_r, d_lap, d_f), X_r, X_f, w_r, w_f)


def nearest(X: Array, y: Array, start: Array | None = None) -> Array:
    """``argmin_w ||w - start||  s.t.  X^T w = y`` (start 0 by default): where gradient descent from there ends."""
    start = np.zeros(len(X)) if start is None else start
    return start + np.linalg.lstsq(X.T, y - X.T @ start)[0]


def projector(X: Array) -> Array:
    """The orthogonal projector ``[d, d]`` on the span of the columns of X."""
    Q = basis(X)
    return Q @ Q.T


def basis(X: Array, tolerance: float = 1e-10) -> Array:
    """An orthonormal basis ``[d, rank]`` of that span; singular values below ``tolerance`` of the largest are none."""
    U, s, _ = np.linalg.svd(X, full_matrices=False)
    return U[:, s > tolerance * s.max(initial=0.0)]


def fine_tune(instance: Instance, start: Array) -> Array:
    """The interpolator of the retained data that is nearest to ``start``."""
    return nearest(instance.X_r, instance.y_r, start)


def remove(instance: Instance, overlap: bool) -> Array:
    """w_o without its forget-only block (option A), or without the overlapping block too (option B)."""
    d_r, d_lap, _ = instance.blocks
    w = instance.original.copy()
    w[d_r if overlap else d_r + d_lap :] = 0
    return w


# ---------------------------------------------------------------------- federated


def shards(X: Array, y: Array, clients: int) -> list[tuple[Array, Array]]:
    """The samples dealt out to clients."""
    return list(zip(np.array_split(X, clients, axis=1), np.array_split(y, clients), strict=True))


def golden_from_grams(parts: Sequence[tuple[Array, Array]]) -> Array:
    """w_g from one upload a client, ``(X_k X_k^T, X_k y_k)``: the server solves ``sum_k X_k X_k^T w = sum_k X_k y_k``.

    The least-norm solution, whose precision suffers from the squared condition number.
    """
    S, b = sum(X @ X.T for X, _ in parts), sum(X @ y for X, y in parts)
    return np.asarray(np.linalg.pinv(S, rcond=1e-10, hermitian=True) @ b)


def golden_from_bases(parts: Sequence[tuple[Array, Array]], w_o: Array) -> Array:
    """w_g from w_o and each client's thin basis Q_k alone: P_r w_o, with P_r on the joint span of all Q_k."""
    Q = basis(np.hstack([basis(X) for X, _ in parts]))
    return Q @ (Q.T @ w_o)


# ---------------------------------------------------------------------- discriminative regularisation


def discriminative(instance: Instance, form: str, rng: np.random.Generator) -> Array:
    """The minimiser nearest to w_o of ``RL + alpha Rg`` for every alpha > 0, in closed form.

    All samples are independent, so that both terms reach their least value, 0, at once: retained targets are kept and
    forgotten ones replaced. ``uniform``: by 0, the mean of all targets. ``wrong``: by targets of another random model.
    """
    targets = {
        "uniform": np.zeros_like(instance.y_f),
        "wrong": instance.X_f.T @ (rng.standard_normal(len(instance.w_f)) * (instance.w_f != 0)),
    }
    X, y = np.hstack([instance.X_r, instance.X_f]), np.concatenate([instance.y_r, targets[form]])
    return nearest(X, y, instance.original)


def descend_inverse(
    instance: Instance, rng: np.random.Generator, alpha: float = 1.0, lr: float = 0.01, steps: int = 5000
) -> Array:
    """Gradient descent on ``RL + alpha / UL`` from a point a little off w_o, because at UL = 0 there is no gradient.

    ``1 / UL`` has no minimum but only the limit 0 as UL grows, so the step is divided by ``max(1, norm)``.
    """
    n_r, n_f = len(instance.y_r), len(instance.y_f)
    w = instance.original + 1e-3 * instance.X_f @ rng.standard_normal(n_f)
    for _ in range(steps):
        to_r, to_f = instance.X_r.T @ w - instance.y_r, instance.X_f.T @ w - instance.y_f
        gradient = 2 * instance.X_r @ to_r / n_r - alpha * 2 * instance.X_f @ to_f / n_f / np.mean(to_f**2) ** 2
        w -= lr * gradient / max(1.0, float(np.linalg.norm(gradient)))
    return w


# ---------------------------------------------------------------------- the table


def models(instance: Instance, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """Every model of the study, by name."""
    w_o = instance.original
    parts = shards(instance.X_r, instance.y_r, 4)
    yield "original", w_o
    yield "fine-tuned", fine_tune(instance, w_o)
    yield "golden", instance.golden
    yield "A: forget block removed", fine_tune(instance, remove(instance, overlap=False))
    yield "B: overlap removed too", fine_tune(instance, remove(instance, overlap=True))
    yield "projected", projector(instance.X_r) @ w_o
    yield "federated, Gram matrices", golden_from_grams(parts)
    yield "federated, thin bases", golden_from_bases(parts, w_o)
    yield "discriminative, uniform", discriminative(instance, "uniform", rng)
    yield "discriminative, wrong", discriminative(instance, "wrong", rng)
    yield "discriminative, inverse", descend_inverse(instance, rng)


def share_forgotten(form: str, sizes: tuple[int, ...], draws: int = 200) -> float:
    """The share of random instances on which a form of `discriminative` lifts UL to 0.9 of the golden UL or more."""
    reached = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        instance = draw(rng, *sizes)
        reached += instance.UL(discriminative(instance, form, rng)) >= 0.9 * instance.UL(instance.golden)
    return reached / draws


def main() -> None:
    """Print the table."""
    for case, sizes in CASES.items():
        rng = np.random.default_rng(1)
        instance = draw(rng, *sizes)
        print(f"{case}: d_r, d_lap, d_f = {sizes[:3]}, n_r, n_f = {sizes[3:]}")
        print(f"  {'model':26} {'RL':>9} {'UL':>9} {'UL/golden':>11} {'||w - golden||':>16}")
        for name, w in models(instance, rng):
            ratio, gap = instance.UL(w) / instance.UL(instance.golden), np.linalg.norm(w - instance.golden)
            print(f"  {name:26} {instance.RL(w):9.1e} {instance.UL(w):9.4f} {ratio:11.3f} {gap:16.1e}")
        shares = [f"{form} {share_forgotten(form, sizes):.2f}" for form in ("uniform", "wrong")]
        print(f"  share of 200 draws whose UL reaches 0.9 golden: {', '.join(shares)}")


if __name__ == "__main__":
    main()
