"""Intervals, equivalence, Holm and ranks against hand computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from fedforget.metrics.statistics import (
    Interval,
    Verdict,
    equivalence,
    hierarchical_bootstrap,
    holm,
    interval,
    memorised,
    rank_ranges,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_t_interval_by_hand() -> None:
    # Mean 2, sd 1, se 1 / sqrt 3; t_2(.975) = 4.302653 from the tables.
    found = interval([1, 2, 3])
    assert found.mean == 2
    assert [found.low, found.high] == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], rel=1e-6)


def test_t_interval_at_another_confidence() -> None:
    # t_2(.95) = 2.919986
    assert interval([1, 2, 3], 0.9).high == pytest.approx(2 + 2.919986 / 3**0.5, rel=1e-6)


def test_intervals_of_odd_samples() -> None:
    one = interval([0.5])
    assert one.mean == 0.5 and math.isnan(one.low) and math.isnan(one.high)
    assert interval([2, 2, 2]) == Interval(2, 2, 2)
    broken = interval([math.inf, -math.inf, 1])
    assert all(math.isnan(number) for number in (broken.mean, broken.low, broken.high))
    with pytest.raises(ValueError, match="the sample is empty"):
        interval([])


def test_bad_numbers_are_named() -> None:
    with pytest.raises(ValueError, match=r"confidence=1 must"):
        interval([1, 2], 1)


def test_equivalence_by_hand() -> None:
    # Gaps 0, .1, .2: mean .1, se .1 / sqrt 3. Margin .5: t = (.1 - .5) sqrt 3 / .1 = -6.9282 is the weaker test.
    # With two degrees of freedom P(T > t) = (1 - t / sqrt(t^2 + 2)) / 2 = (1 - 6.9282 / sqrt 50) / 2 = .010102.
    found = equivalence([0, 0.1, 0.2], 0.5)
    assert found.verdict == "equivalent"
    assert found.p == pytest.approx((1 - 48**0.5 / 50**0.5) / 2)
    assert found.p == pytest.approx(0.0101, abs=1e-4)


def test_equivalence_agrees_with_the_interval_of_twice_alpha() -> None:
    # The 90 % interval of 0, .1, .2 ends at .1 + 2.919986 * .1 / sqrt 3 = .268585: TOST turns exactly there.
    assert equivalence([0, 0.1, 0.2], 0.2686).verdict == "equivalent"
    assert equivalence([0, 0.1, 0.2], 0.2685).verdict == "unresolved"


@pytest.mark.parametrize("sign", [1, -1])
def test_different_means_that_the_interval_lies_outside(sign: int) -> None:
    # 95 % interval of 1, 1.1, 1.2: 1.1 - 4.302653 * .1 / sqrt 3 = .851586
    gaps = [sign * gap for gap in (1, 1.1, 1.2)]
    assert equivalence(gaps, 0.8515).verdict == "different"
    assert equivalence(gaps, 0.8517).verdict == "unresolved"
    assert equivalence(gaps, 0.8515).p > 0.5


def test_wide_gaps_are_unresolved() -> None:
    # 95 % interval of -1, 0, 1 is +-2.48: neither inside nor outside +-.5.
    assert equivalence([-1, 0, 1], 0.5).verdict == "unresolved"


@pytest.mark.parametrize("gaps", [[0.0], [9.0], [0, math.nan, 0], [math.inf, math.inf]], ids=str)
def test_what_cannot_be_tested_is_unresolved(gaps: list[float]) -> None:
    found = equivalence(gaps, 1)
    assert found.verdict == "unresolved" and math.isnan(found.p)


def test_equal_gaps_leave_no_doubt() -> None:
    assert equivalence([0.25, 0.25, 0.25], 0.5) == Verdict("equivalent", 0.0)
    assert equivalence([-0.5, -0.5], 0.5) == Verdict("different", 1.0)
    assert equivalence([0, 0], 0.5) == Verdict("equivalent", 0.0)


@pytest.mark.parametrize("margin", [0, -1, math.nan])
def test_a_margin_must_be_positive(margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin={margin} must be positive"):
        equivalence([0, 1], margin)


def test_equivalence_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match=r"alpha=0\.5 must"):
        equivalence([0, 1], 1, alpha=0.5)
    with pytest.raises(ValueError, match="empty"):
        equivalence([], 1)


def test_holm_by_hand() -> None:
    # Sorted .01, .03, .04 times 3, 2, 1 is .03, .06, .04; made monotone: .03, .06, .06.
    assert holm({"b": 0.04, "a": 0.01, "c": 0.03}) == pytest.approx({"b": 0.06, "a": 0.03, "c": 0.06})


def test_holm_does_not_count_nan() -> None:
    # Two tests remain: .02 * 2 and .5; a p is never above 1.
    found = holm({"a": 0.02, "lost": math.nan, "b": 0.5})
    assert list(found) == ["a", "lost", "b"]
    assert (found["a"], found["b"]) == (pytest.approx(0.04), pytest.approx(0.5)) and math.isnan(found["lost"])
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1, "b": 1}
    assert math.isnan(holm({"lost": math.nan})["lost"])
    assert holm({}) == {}


def test_holm_is_that_of_statsmodels() -> None:
    for seed in range(20):
        p = np.round(np.random.default_rng(seed).random(9) ** 3, 2)  # with ties
        names = [f"method {i}" for i in range(9)]
        expected = multipletests(p, method="holm")[1]
        assert list(holm(dict(zip(names, p.tolist(), strict=True))).values()) == pytest.approx(expected)


def test_separated_methods_have_certain_ranks() -> None:
    # Whatever seeds are drawn, every mean of "good" exceeds every mean of "fair", and so on.
    scores = {"fair": [0.5, 0.6, 0.7], "good": [0.8, 0.9, 1.0], "bad": [0.1, 0.2, 0.3]}
    assert rank_ranges(scores, rng()) == {"fair": (2, 2), "good": (1, 1), "bad": (3, 3)}


def test_identical_methods_share_the_best_rank() -> None:
    scores = {"a": [0.1, 0.5, 0.9], "b": [0.1, 0.5, 0.9], "c": [0.0, 0.4, 0.8]}
    assert rank_ranges(scores, rng()) == {"a": (1, 1), "b": (1, 1), "c": (3, 3)}


def test_ranks_are_paired_by_seed() -> None:
    # b is a little below a at every seed, though seeds differ by far more: unpaired, the two would change places.
    a = [0.0, 10.0, 20.0, 30.0, 40.0]
    assert rank_ranges({"a": a, "b": [score - 0.1 for score in a]}, rng()) == {"a": (1, 1), "b": (2, 2)}


def test_inseparable_methods_have_both_ranks() -> None:
    # a wins if seed 0 is drawn more often than seed 1: chances 1/4 each way, 1/2 a tie, at which both are first.
    scores = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    assert rank_ranges(scores, rng()) == {"a": (1, 2), "b": (1, 2)}
    # The central 40 %: P(rank 1) = 3/4 for both, so both ends are 1 (quantiles .3 and .7).
    assert rank_ranges(scores, rng(), confidence=0.4) == {"a": (1, 1), "b": (1, 1)}


def test_a_diverged_method_ranks_last() -> None:
    found = rank_ranges({"lost": [math.nan] * 3, "odd": [math.inf, -math.inf, 1], "worst": [-9, -9, -9]}, rng())
    assert found["lost"] == (2, 3) and found["worst"] == (1, 2)


def test_ranks_need_the_same_seeds() -> None:
    with pytest.raises(ValueError, match=r"\{'a': 2, 'b': 1\} scores"):
        rank_ranges({"a": [1, 2], "b": [1]}, rng())
    with pytest.raises(ValueError, match="empty"):
        rank_ranges({"a": []}, rng())
    with pytest.raises(ValueError, match="each needs one"):
        rank_ranges({}, rng())
    with pytest.raises(ValueError, match=r"resamples=0 must"):
        rank_ranges({"a": [1]}, rng(), resamples=0)


def test_memorised_turns_at_three_deviations() -> None:
    # Mean signal (.5 + .25) / 2 = .375 = 3 * .125, exact in binary.
    assert memorised([1, 1], [0.5, 0.75], 0.125) is True
    assert memorised([0.5, 0.75], [1, 1], 0.125) is True  # in either direction
    assert memorised([1, 1], [0.5, 0.75], 0.1251) is False


def test_memorised_sees_nothing_where_nothing_differs() -> None:
    assert memorised([1, 1], [1, 1], 0) is False
    assert memorised([1], [math.nan], 0.1) is False
    assert memorised([math.inf], [math.inf], 0.1) is False
    assert memorised([1], [0], math.nan) is False
    with pytest.raises(ValueError, match="2 originals and 1 oracles"):
        memorised([1, 1], [1], 0.1)
    with pytest.raises(ValueError, match="0 originals"):
        memorised([], [], 0.1)


# Seeds and examples


def test_the_bootstrap_of_seeds_and_examples_sees_both() -> None:
    """Effects of 40 seeds alone, of deviation s: the mean's standard error is s / sqrt 40 however many examples there
    are. Effects of 40 examples alone likewise. Together the variances add."""
    effects = stats.norm.ppf((np.arange(40) + 0.5) / 40)
    error = float(effects.std() / 40**0.5)  # of the bootstrap: the deviation without Bessel's correction
    tables = (
        (error, effects[:, None] + np.zeros((40, 500))),
        (error, np.zeros((500, 40)) + effects),
        (2**0.5 * error, effects[:, None] + effects),
    )
    for expected, table in tables:
        found = hierarchical_bootstrap(table, rng(), resamples=4000)
        assert found.mean == pytest.approx(0, abs=1e-12)
        assert (found.high - found.low) / 2 == pytest.approx(1.96 * expected, rel=0.06)


def test_the_bootstrap_of_seeds_and_examples_of_odd_tables() -> None:
    one = hierarchical_bootstrap(np.ones((1, 5)), rng())
    assert one.mean == 1 and math.isnan(one.low) and math.isnan(one.high)
    assert hierarchical_bootstrap(np.full((4, 5), 2.0), rng()) == Interval(2, 2, 2)
    assert math.isnan(hierarchical_bootstrap(np.array([[1.0], [math.nan]]), rng()).low)
    with pytest.raises(ValueError, match=r"the table has shape \(3,\)"):
        hierarchical_bootstrap(np.ones(3), rng())
    with pytest.raises(ValueError, match=r"resamples=0 must"):
        hierarchical_bootstrap(np.ones((2, 2)), rng(), resamples=0)
