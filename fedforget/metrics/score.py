"""The score: how well a model has unlearned, and how much cheaper than retraining for just as long.

Three axes, each in [0, 1] with 1 = the oracle: `forgetting` (0 = do nothing), `utility` (0 = chance) and `fidelity`
(0 = do nothing). `quality` is the weakest of them, and `iso_quality_speedup` what is ranked. U is the unlearned model,
O the oracle, M the original, all of one seed. The unit of replication is the seed: every limit is one-sided, at level
``confidence``, over K paired seeds, and a maximum over attacks (or minimum over sets) needs no correction, because the
limit of the truly worst one is among them. In `forgetting` and
`utility` only the numerator's uncertainty counts: that the denominator is well above its noise is what the gate, which
comes before the score, has shown.

Source: this project's evaluation protocol; limits are those of Student 1908.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy

Scores = Mapping[str, Sequence[float]]


class Bounded(NamedTuple):
    """A score in [0, 1] and its pessimistic confidence limit, which a ranking uses; NaN for one seed."""

    value: float
    pessimistic: float


class Distance(NamedTuple):
    """An energy distance of K seeds, and the K distances that leave one seed out (none for a single seed)."""

    value: float
    left_out: Sequence[float]


def forgetting(unlearned: Scores, oracle: Scores, original: Scores, confidence: float = 0.95) -> Bounded:
    """``1 - max_a |s_a(U) - s_a(O)| / |s_a(M) - s_a(O)|``, clipped. Higher = better; 0 = some attack sees all it saw.

    Both differences are means over paired seeds. It is two-sided: an attack that scores below the oracle counts as much
    as one above, so forgetting too much is no success. The limit takes ``|mean gap| + t_{confidence, K-1} se(gap)`` for
    ``|mean gap|``, with ``se`` the standard deviation over seeds (divided by K - 1) over ``sqrt K``; it covers the
    absolute value of the true gap with at least that confidence, whatever its sign. A NaN score of U makes the result
    NaN.

    Source: gap closed relative to doing nothing, of this project's protocol.

    Args:
        unlearned: K scores ``s_a`` of each attack, by its name; only attacks whose signal passed the gate.
        oracle: the same attacks and seeds on the oracles.
        original: the same on the originals.
        confidence: of the one-sided limit, in [0.5, 1).

    Raises:
        ValueError: if there is no attack, attacks or seeds differ, an attack has no finite signal at all, or
            ``confidence`` is out of range.
    """
    _check(confidence, "attack", unlearned=unlearned, oracle=oracle, original=original)
    ratios = []
    for attack in oracle:
        gaps, signal = _gaps(unlearned[attack], oracle[attack]), abs(np.mean(_gaps(original[attack], oracle[attack])))
        if not 0 < signal < np.inf:
            raise ValueError(
                f"attack {attack!r} scores original and oracle {signal:.4g} apart on average, which is no signal that "
                "a gap could be compared with; leave it out"
            )
        gap = abs(np.mean(gaps))
        ratios.append((gap / signal, (gap + _margin(gaps, confidence)) / signal))
    return _weakest(1 - np.array(ratios))


def worst_attack(unlearned: Scores, oracle: Scores, original: Scores) -> tuple[str, float]:
    """The attack by which `forgetting` is what it is, and the share of its signal that is left: 0 = the oracle.

    ``mean(s_a(U) - s_a(O)) / mean(s_a(M) - s_a(O))``, with its sign: 1 = as doing nothing, below 0 = beyond the oracle.
    `forgetting` is one less its size, clipped. An attack that gives no number is the worst. Arguments as of
    `forgetting`.
    """
    with np.errstate(invalid="ignore"):
        left = {
            attack: float(np.mean(_gaps(unlearned[attack], zero)) / np.mean(_gaps(original[attack], zero)))
            for attack, zero in oracle.items()
        }
    attack = max(left, key=lambda name: np.inf if np.isnan(left[name]) else abs(left[name]))
    return attack, left[attack]


def _gaps(scores: Sequence[float], oracle: Sequence[float]) -> np.ndarray:
    return np.asarray(scores) - np.asarray(oracle)


def utility(unlearned: Scores, oracle: Scores, chance: Mapping[str, float], confidence: float = 0.95) -> Bounded:
    """``min over sets of (a(U) - chance) / (a(O) - chance)``, clipped. Higher = better; 0 = no better than chance.

    A ratio of means over seeds. Accuracy above the oracle's earns nothing. The limit subtracts
    ``t_{confidence, K-1} se`` of the paired differences ``a(U) - a(O)`` from the numerator. A NaN accuracy of U makes
    the result NaN.

    Source: accuracy above chance relative to the oracle's, of this project's protocol.

    Args:
        unlearned: K accuracies on each set (test, mean client, worst clients), by its name.
        oracle: the same sets and seeds on the oracles.
        chance: what the best constant answer scores on each set, in [0, 1); see `fedforget.metrics.chance`.
        confidence: of the one-sided limit, in [0.5, 1).

    Raises:
        ValueError: if there is no set, sets or seeds differ, an oracle is no better than chance on a set, or a number
            is out of range.
    """
    _check(confidence, "set", unlearned=unlearned, oracle=oracle)
    ratios = []
    for name in oracle:
        if not 0 <= chance[name] < 1:
            raise ValueError(f"chance[{name!r}]={chance[name]} must lie in [0, 1)")
        mine, theirs = np.asarray(unlearned[name]), np.asarray(oracle[name])
        best = np.mean(theirs) - chance[name]
        if not best > 0:
            raise ValueError(
                f"on {name!r} the oracle's accuracy {np.mean(theirs):.4g} is not above chance {chance[name]:.4g}, "
                "so there is no utility to keep; leave this set out"
            )
        above = np.mean(mine) - chance[name]
        ratios.append((above / best, (above - _margin(mine - theirs, confidence)) / best))
    return _weakest(np.array(ratios))


def fidelity(unlearned: Mapping[str, Distance], original: Mapping[str, Distance], confidence: float = 0.95) -> Bounded:
    """``1 - max over sets of ED(U, O) / ED(M, O)``, clipped. Higher = better; 0 = as far from the oracles as M.

    ED, the energy distance between two groups of models, is one number for all seeds, so its limit rests on the
    jackknife: the ratio of U's and M's distances is computed without each seed in turn, its standard error is
    ``sqrt((K - 1) / K sum_k (r_k - mean r)^2)``, and the limit ``r + t_{confidence, K-1} se``. The jackknife variance
    is biased upwards (Efron and Stein 1981), the pessimistic way; yet where the true ratio is small but not 0 and all
    examples of a model move together, the distance is so skewed that the limit covered it less often than it says: of
    700 simulated runs it missed it in 6 to 8 % at K = 5, and 7 to 14 % at K = 10, instead of 5 %. Where M's distance
    without some seed is not positive the ratio has no limit, and the pessimistic value is 0. A NaN distance of U makes
    the result NaN.

    Source: energy distance of Szekely and Rizzo 2013; its ratio to doing nothing, of this project's protocol.

    Args:
        unlearned: distance from the oracles on each audit set, by its name. An unbiased one may be negative.
        original: the same of the originals, seeds left out in the same order.
        confidence: of the one-sided limit, in [0.5, 1).

    Raises:
        ValueError: if there is no set, sets or seeds differ, an original's distance is not positive and finite, or
            ``confidence`` is out of range.
    """
    sides = {"unlearned": unlearned, "original": original}
    scores = {side: {name: [d.value, *d.left_out] for name, d in sets.items()} for side, sets in sides.items()}
    _check(confidence, "set", **scores)
    ratios = []
    for name, signal in original.items():
        if not 0 < signal.value < np.inf:
            raise ValueError(
                f"on {name!r} the original's distance {signal.value:.4g} from the oracles is not positive and "
                "finite, so there is no signal; leave this set out"
            )
        ratio, seeds = unlearned[name].value / signal.value, len(signal.left_out)
        mine, theirs = np.asarray(unlearned[name].left_out), np.asarray(signal.left_out)
        # Times K - 1, the ratios spread like K independent ones whose mean has the jackknife's standard error.
        margin = _margin((seeds - 1) * mine / theirs, confidence) if (theirs > 0).all() else np.inf
        ratios.append((ratio, ratio + margin))
    return _weakest(1 - np.array(ratios))


def quality(forgetting: float, utility: float, fidelity: float | None = None) -> float:
    """The weakest of the axes. Higher = better; [0, 1]; NaN if one is NaN and none is 0, the least there is.

    Without fidelity it is that of the privacy track, with it that of the indistinguishability track; never mix the two
    in one ranking. A ranking passes the pessimistic values. Source: this project's protocol.
    """
    axes = [forgetting, utility] if fidelity is None else [forgetting, utility, fidelity]
    return 0.0 if 0 in axes else float(np.min(axes))


def iso_quality_speedup(quality: float, cost: float, frontier: Sequence[tuple[float, float]]) -> float:
    """Cost of a retrain stopped at this quality, over this cost. Higher = better; [0, inf]; 1 = just retrain that long.

    A retrain reaches a quality at its first checkpoint, in order of cost, that has at least this quality: a step
    function, which credits no checkpoint that nobody trained, and the upper envelope, for later and worse checkpoints
    do not matter. The dearest checkpoint is the whole retrain, whose quality is 1 by definition, whatever was measured;
    so every quality is reached. Quality 0 needs no retraining at all: its speed-up is 0. A free method has infinite
    speed-up, or, with quality 0, NaN: doing nothing is not fast. NaN if the quality is NaN.

    Source: this project's protocol.

    Args:
        quality: of the method, in [0, 1].
        cost: of the method, in any unit.
        frontier: (cost, quality) of a retrain's checkpoints, the whole retrain among them, in the same unit.

    Raises:
        ValueError: if the quality is out of range, a cost is negative or not finite, or there is no checkpoint.
    """
    if not frontier:
        raise ValueError("the frontier has no checkpoint; give at least the whole retrain")
    costs = [cost, *(spent for spent, _ in frontier)]
    if not all(0 <= spent < np.inf for spent in costs):
        raise ValueError(f"costs {costs} (the method's, then the frontier's) must be finite and not negative")
    if np.isnan(quality):
        return float("nan")
    if not 0 <= quality <= 1:
        raise ValueError(f"quality={quality} must lie in [0, 1]")
    needed = min((spent for spent, reached in frontier if reached >= quality), default=max(costs[1:]))
    if quality == 0:
        needed = 0.0
    if cost == 0:
        return float("inf") if needed else float("nan")
    return needed / cost


def _margin(differences: np.ndarray, confidence: float) -> float:
    """``t_{confidence, K-1} sd / sqrt K`` of K differences; NaN for fewer than two."""
    if len(differences) < 2:
        return float("nan")
    with np.errstate(invalid="ignore"):  # a model that diverged scores inf, and its limit is NaN
        return (
            _quantile(confidence, len(differences) - 1) * float(np.std(differences, ddof=1)) / len(differences) ** 0.5
        )


@lru_cache
def _quantile(confidence: float, degrees: int) -> float:
    return float(scipy.stats.t.ppf(confidence, degrees))


def _weakest(axes: np.ndarray) -> Bounded:
    """The least value and the least limit of ``[attacks or sets, 2]``, clipped to [0, 1]; NaN stays."""
    value, pessimistic = np.clip(axes.min(0), 0, 1)
    return Bounded(float(value), float(pessimistic))


def _check(confidence: float, what: str, **sides: Scores) -> None:
    """Every side has the same names, at least one, and as many seeds, at least one, for each of them."""
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence={confidence} must lie in [0.5, 1)")
    found = {side: {name: len(seeds) for name, seeds in scores.items()} for side, scores in sides.items()}
    first = next(iter(found.values()))
    if not first or not all(first.values()) or any(counts != first for counts in found.values()):
        told = "; ".join(f"{side}: {counts}" for side, counts in found.items())
        raise ValueError(f"each {what} needs the same seeds on every side, and there must be one; got {told}")
