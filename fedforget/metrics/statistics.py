"""What may be said of a few seeds: intervals, equivalence, families of tests, ranks.

The unit of replication is the seed of the model, never the example: each number of a sample belongs to one seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy


@dataclass(frozen=True)
class Interval:
    """A mean and the two ends of its confidence interval, in the sample's unit; NaN ends where one cannot be had."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """Whether a method is as good as retraining, under one metric.

    Args:
        verdict: ``"equivalent"``, ``"different"`` or ``"unresolved"``.
        p: of the equivalence test; small = equivalent. NaN where it could not be done.
    """

    verdict: str
    p: float


def interval(sample: Sequence[float], confidence: float = 0.95) -> Interval:
    """The t-interval ``mean +- t_{n-1} sd / sqrt(n)`` (Student 1908). One number has NaN ends.

    Raises:
        ValueError: if the sample is empty or the confidence does not lie in (0, 1).
    """
    values = _checked(sample, confidence)
    if len(values) == 1:
        return Interval(float(values[0]), math.nan, math.nan)
    with np.errstate(invalid="ignore"):  # a model that diverged scores inf or NaN, and its row must say so
        mean = float(values.mean())
        half = float(scipy.stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return Interval(mean, mean - half, mean + half)


def hierarchical_bootstrap(
    values: np.ndarray, rng: np.random.Generator, resamples: int = 2000, confidence: float = 0.95
) -> Interval:
    """The mean of a table of seeds and examples, and its percentile interval over resampled seeds and examples.

    Each resample draws whole seeds, and then examples, the same ones for all seeds, because the examples of an audit
    set are the same for every model (rows and columns are crossed, not nested). So it covers new models *and* new
    examples of the kind, and neither the n examples of one seed nor the K answers to one example pass for independent.
    Its variance is biased upwards, if at all. One seed has NaN ends, and so has a table with a number that is not
    finite. With few seeds it is too narrow, as all percentile intervals are: below ten use `interval` of the seeds'
    means. Source: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007, doi 10.1214/07-AOAS122.

    Args:
        values: ``[K, n]``, a row for each seed, a column for each example.
        rng: draws the resamples.
        resamples: their number.
        confidence: of the interval.

    Raises:
        ValueError: if the table is empty or none, the confidence does not lie in (0, 1), or ``resamples`` is not
            positive.
    """
    table = _checked(values, confidence)  # type: ignore[arg-type]
    if table.ndim != 2 or not table.size:
        raise ValueError(f"the table has shape {table.shape}; give a row for each seed and a column for each example")
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be at least 1")
    mean = float(table.mean())
    if len(table) == 1 or not np.isfinite(table).all():
        return Interval(mean, math.nan, math.nan)
    seeds, examples = (rng.multinomial(size, [1 / size] * size, resamples) for size in table.shape)
    drawn = ((seeds @ table) * examples).sum(1) / table.size
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high))


def equivalence(gaps: Sequence[float], margin: float, alpha: float = 0.05) -> Verdict:
    """Is the mean gap to the oracle within ``+- margin``? Two one-sided t-tests (Schuirmann 1987), and the converse.

    - equivalent: both tests reject, p < alpha; that is, the 1 - 2 alpha t-interval lies inside the margins;
    - different: the 1 - alpha t-interval lies wholly outside them;
    - unresolved: neither. One seed is always unresolved, and so is a gap that is NaN or infinite; p is then NaN.

    Gaps that are all equal leave no doubt: equivalent (p = 0) inside the margins, else different (p = 1).

    Args:
        gaps: metric of the unlearned model minus that of its oracle, one a seed.
        margin: the largest gap that does not matter, positive, fixed before looking at the gaps.
        alpha: level of the tests.

    Raises:
        ValueError: if the margin is not positive, there is no gap, or alpha does not lie in (0, 1/2).
    """
    if not margin > 0:
        raise ValueError(f"margin={margin} must be positive; it is the largest gap that does not matter")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha={alpha} must lie between 0 and 1/2")
    values = _checked(gaps, 1 - alpha)
    if len(values) == 1 or not np.isfinite(values).all():
        return Verdict("unresolved", math.nan)
    if np.ptp(values) == 0:
        return Verdict("equivalent", 0.0) if abs(values[0]) < margin else Verdict("different", 1.0)
    # It loads pandas, which takes a second, and is needed once at the end of a run.
    from statsmodels.stats.weightstats import DescrStatsW

    p = float(DescrStatsW(values).ttost_mean(-margin, margin)[0])
    ends = interval(gaps, 1 - alpha)
    outside = ends.low > margin or ends.high < -margin
    return Verdict("equivalent" if p < alpha else "different" if outside else "unresolved", p)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for their number by Holm's step-down rule (1979), by name; they control the familywise error.

    A NaN stays NaN and does not count as a test. By hand, because statsmodels' ``multipletests``, which the tests
    compare with, collects the garbage of the whole process each time.
    """
    tested = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted, least = dict.fromkeys(p_values, math.nan), 0.0
    for rank, (p, name) in enumerate(tested):
        adjusted[name] = least = max(least, min(1.0, (len(tested) - rank) * p))
    return adjusted


def rank_ranges(
    scores: Mapping[str, Sequence[float]], rng: np.random.Generator, resamples: int = 2000, confidence: float = 0.95
) -> dict[str, tuple[int, int]]:
    """First and last rank of each method in the central ``confidence`` of resamples of the seeds; 1 = best.

    The same seeds are drawn for all methods, since models of one seed are paired; methods are ranked by their means,
    and equal ones share the best of their ranks. No rank should be printed without this range.

    Args:
        scores: by method, one score a seed, the same seeds in the same order; higher is better; NaN is worst.
        rng: draws the seeds.
        resamples: number of draws.
        confidence: share of the draws that the range covers at least.

    Raises:
        ValueError: if methods differ in their number of seeds, there is none, the confidence does not lie in (0, 1), or
            ``resamples`` is not positive.
    """
    counts = {name: len(sample) for name, sample in scores.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"methods have {counts} scores; each needs one for each of the same seeds")
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be at least 1")
    values = np.stack([_checked(sample, confidence) for sample in scores.values()])
    seeds = rng.integers(values.shape[1], size=(resamples, values.shape[1]))
    with np.errstate(invalid="ignore"):
        means = values[:, seeds].mean(axis=2)
    means = np.where(np.isnan(means), -np.inf, means)
    ranks = 1 + (means[None] > means[:, None]).sum(axis=1)
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    first, last = np.quantile(ranks, ends, axis=1, method="inverted_cdf")
    return {name: (int(low), int(high)) for name, low, high in zip(scores, first, last, strict=True)}


def memorised(original: Sequence[float], oracle: Sequence[float], floor_sd: float) -> bool:
    """Whether there is anything to forget: ``|mean(original - oracle)| >= 3 floor_sd``, and not 0.

    False where anything is NaN. Where it is False a scenario says nothing under this metric: doing nothing would pass.
    The 3 is this project's choice.

    Args:
        original: the metric of the original model, one a seed.
        oracle: that of the oracle of the same seed.
        floor_sd: standard deviation of the metric between oracles.

    Raises:
        ValueError: if the two differ in length or are empty.
    """
    if len(original) != len(oracle) or len(original) == 0:
        raise ValueError(f"{len(original)} originals and {len(oracle)} oracles; each original needs its oracle")
    with np.errstate(invalid="ignore"):
        signal = abs(float(np.mean(np.subtract(original, oracle))))
    return signal >= 3 * floor_sd and signal > 0


def _checked(sample: Sequence[float], confidence: float) -> np.ndarray:
    if len(sample) == 0:
        raise ValueError("the sample is empty; give one number a seed")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1")
    return np.asarray(sample, dtype=float)
