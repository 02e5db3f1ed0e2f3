"""The axes of the score, its weakest link and the iso-quality speed-up, by hand and on models with known answers.

With 2 degrees of freedom P(T <= t) = 1/2 + t / (2 sqrt(2 + t^2)), so t_{.95, 2} solves t^2 = .81 (2 + t^2):
t = sqrt(1.62 / .19) = 2.91999.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedforget.metrics.score import (
    Bounded,
    Distance,
    fidelity,
    forgetting,
    iso_quality_speedup,
    quality,
    utility,
    worst_attack,
)

T = math.sqrt(1.62 / 0.19)
SE = 0.1 / math.sqrt(3)  # standard error of three numbers .1 apart

ORACLE = {"canary": [0.5, 0.5, 0.5], "probe": [0.25, 0.5, 0.75]}
ORIGINAL = {"canary": [0.9, 0.9, 0.9], "probe": [0.75, 1.0, 1.25]}


# --------------------------------------------------------------------------------------------------------- forgetting


def test_forgetting_by_hand() -> None:
    # Canary: gaps .1, .2, 0 of mean .1 and sd .1, signal .4. 1 - 1/4, and 1 - (.1 + T SE) / .4.
    result = forgetting({"canary": [0.6, 0.7, 0.5]}, {"canary": [0.5] * 3}, {"canary": [0.9] * 3})
    assert result == pytest.approx((0.75, 1 - (0.1 + T * SE) / 0.4))
    assert result.pessimistic == pytest.approx(0.3285, abs=1e-4)
    # At 50 % t is 0, and the limit is the value.
    half = forgetting({"canary": [0.6, 0.7, 0.5]}, {"canary": [0.5] * 3}, {"canary": [0.9] * 3}, confidence=0.5)
    assert half.pessimistic == pytest.approx(0.75)


def test_forgetting_of_the_oracle_is_one_and_of_doing_nothing_zero() -> None:
    assert forgetting(ORACLE, ORACLE, ORIGINAL) == (1, 1)
    assert forgetting(ORIGINAL, ORACLE, ORIGINAL) == (0, 0)


def test_seeds_are_paired() -> None:
    # The probe varies by .25 from seed to seed, but is 1/4 of the way from the oracle in each.
    u = {"canary": ORACLE["canary"], "probe": [0.375, 0.625, 0.875]}
    assert forgetting(u, ORACLE, ORIGINAL) == (0.75, 0.75)


def test_forgetting_too_much_counts_as_much_as_too_little() -> None:
    under = forgetting({"a": [0.625, 0.625]}, {"a": [0.5, 0.5]}, {"a": [1.0, 1.0]})
    over = forgetting({"a": [0.375, 0.375]}, {"a": [0.5, 0.5]}, {"a": [1.0, 1.0]})
    assert under == over == (0.75, 0.75)
    # As far below the oracle as the original is above: no forgetting at all. Farther is clipped.
    assert forgetting({"a": [0.0, 0.0]}, {"a": [0.5, 0.5]}, {"a": [1.0, 1.0]}) == (0, 0)
    assert forgetting({"a": [-9.0, -9.0]}, {"a": [0.5, 0.5]}, {"a": [1.0, 1.0]}) == (0, 0)


def test_the_direction_of_an_attack_does_not_matter() -> None:
    # An attack that scores the original lower, by .4: a gap of -.1 is a quarter of it.
    result = forgetting({"a": [0.4, 0.3, 0.5]}, {"a": [0.5] * 3}, {"a": [0.1] * 3})
    assert result == pytest.approx((0.75, 1 - (0.1 + T * SE) / 0.4))


def test_fixing_one_attack_does_not_help() -> None:
    assert forgetting({**ORACLE, "probe": ORIGINAL["probe"]}, ORACLE, ORIGINAL) == (0, 0)
    assert forgetting({**ORIGINAL, "probe": ORACLE["probe"]}, ORACLE, ORIGINAL) == (0, 0)


def test_value_and_limit_may_come_from_different_attacks() -> None:
    # a: 1/4 in every seed. b: mean 0, but sd .1 of a signal of .4: its limit is T SE / .4 = .42.
    u = {"a": [0.6] * 3, "b": [0.4, 0.5, 0.6]}
    result = forgetting(u, dict.fromkeys("ab", [0.5] * 3), dict.fromkeys("ab", [0.9] * 3))
    assert result == pytest.approx((0.75, 1 - T * SE / 0.4))


def test_the_limit_covers_the_true_gap_as_often_as_it_says() -> None:
    # Gaps N(.2, .1) of five seeds, signal 1: the limit lies below the true .8 in 95 % of draws; the standard error of
    # 1000 draws is .7 %.
    gaps = np.random.default_rng(0).normal(0.2, 0.1, (1000, 5))
    limits = [forgetting({"a": g}, {"a": [0.0] * 5}, {"a": [1.0] * 5}).pessimistic for g in gaps]
    assert 0.93 < np.mean(np.array(limits) <= 0.8) < 0.97


@given(st.lists(st.integers(-8, 8), min_size=2, max_size=6), st.floats(0, 1))
def test_forgetting_more_scores_more(gaps: list[int], kept: float) -> None:
    k = len(gaps)
    zero, signal = {"a": [0.0] * k}, {"a": [8.0] * k}
    more = forgetting({"a": [kept * gap for gap in gaps]}, zero, signal)
    less = forgetting({"a": gaps}, zero, signal)
    assert more.value >= less.value - 1e-12 and more.pessimistic >= less.pessimistic - 1e-12
    assert 0 <= less.pessimistic <= less.value <= 1


def test_one_seed_has_no_limit() -> None:
    assert forgetting({"a": [0.6]}, {"a": [0.5]}, {"a": [0.9]}).value == pytest.approx(0.75)
    assert math.isnan(forgetting({"a": [0.6]}, {"a": [0.5]}, {"a": [0.9]}).pessimistic)


def test_a_nan_score_hides_behind_no_other_attack() -> None:
    result = forgetting({"canary": [math.nan, 0.5, 0.5], "probe": ORACLE["probe"]}, ORACLE, ORIGINAL)
    assert math.isnan(result.value) and math.isnan(result.pessimistic)


def test_forgetting_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match="each attack needs the same seeds on every side, and there must be one"):
        forgetting({}, {}, {})
    with pytest.raises(ValueError, match=r"unlearned: \{'canary': 3\}; oracle: \{'canary': 3, 'probe': 3\}"):
        forgetting({"canary": [0.5] * 3}, ORACLE, ORIGINAL)
    with pytest.raises(ValueError, match=r"unlearned: \{'a': 2\}; oracle: \{'a': 1\}"):
        forgetting({"a": [0.5, 0.5]}, {"a": [0.5]}, {"a": [0.9]})
    with pytest.raises(ValueError, match="attack 'a' scores original and oracle 0 apart"):
        forgetting({"a": [0.5]}, {"a": [0.5]}, {"a": [0.5]})
    with pytest.raises(ValueError, match="attack 'a' scores original and oracle inf apart"):
        forgetting({"a": [0.5]}, {"a": [0.5]}, {"a": [math.inf]})
    with pytest.raises(ValueError, match="confidence=95"):
        forgetting(ORACLE, ORACLE, ORIGINAL, confidence=95)


def test_the_worst_attack_is_the_one_that_forgetting_comes_from() -> None:
    """Of 0.4 a quarter is left under a; b lies half of 0.2 beyond the oracle: forgetting is 1 - 1/2."""
    oracle, original = {"a": [0.5, 0.6], "b": [0.5, 0.6]}, {"a": [0.9, 1.0], "b": [0.7, 0.8]}
    u = {"a": [0.6, 0.7], "b": [0.4, 0.5]}
    attack, left = worst_attack(u, oracle, original)
    assert attack == "b" and left == pytest.approx(-0.5)
    assert forgetting(u, oracle, original).value == pytest.approx(1 - abs(left))
    attack, left = worst_attack(u | {"a": [math.nan, 0.7]}, oracle, original)
    assert attack == "a" and math.isnan(left)


# ------------------------------------------------------------------------------------------------------------ utility


def test_utility_by_hand() -> None:
    # (.7 - .1) / (.9 - .1) = 3/4; differences -.1, -.2, -.3 have sd .1: the limit is T SE / .8 lower.
    result = utility({"test": [0.8, 0.7, 0.6]}, {"test": [0.9] * 3}, {"test": 0.1})
    assert result == pytest.approx((0.75, 0.75 - T * SE / 0.8))


def test_utility_of_the_oracle_is_one_and_of_guessing_zero() -> None:
    oracle = {"test": [0.8, 0.9, 0.7], "worst": [0.5, 0.6, 0.3]}
    assert utility(oracle, oracle, dict.fromkeys(oracle, 0.1)) == (1, 1)
    guess = dict.fromkeys(oracle, [0.25] * 3)
    assert utility(guess, oracle, dict.fromkeys(oracle, 0.25)) == (0, 0)
    assert utility(dict.fromkeys(oracle, [0.0] * 3), oracle, dict.fromkeys(oracle, 0.25)) == (0, 0)


def test_utility_pairs_seeds_takes_the_worst_set_and_caps() -> None:
    # 1/8 below an oracle of mean 3/4 in each seed: (5/8 - 1/4) / (1/2) = 3/4 without an interval.
    oracle = {"test": [0.5, 0.75, 1.0], "mean client": [0.5, 0.5, 0.5]}
    u = {"test": [0.375, 0.625, 0.875], "mean client": [0.75, 0.75, 0.75]}
    assert utility(u, oracle, dict.fromkeys(oracle, 0.25)) == (0.75, 0.75)
    # Better than the oracle by far, with a limit that is better, too: both 1.
    assert utility({"a": [1.0, 0.9]}, {"a": [0.5, 0.4]}, {"a": 0.1}) == (1, 1)


def test_each_set_has_its_own_chance() -> None:
    """Three quarters of the test set are of one class: 0.75 there is worth nothing, however good it is elsewhere."""
    oracle, guess = {"test": [0.95] * 3, "worst": [0.5] * 3}, {"test": [0.75] * 3, "worst": [0.5] * 3}
    assert utility(guess, oracle, {"test": 0.75, "worst": 0.0}) == (0, 0)
    half = utility({"test": [0.85] * 3, "worst": [0.5] * 3}, oracle, {"test": 0.75, "worst": 0.0})
    assert half.value == pytest.approx(0.5)


def test_utility_of_one_seed_and_of_a_useless_oracle() -> None:
    one = utility({"test": [0.7]}, {"test": [0.9]}, {"test": 0.1})
    assert one.value == pytest.approx(0.75) and math.isnan(one.pessimistic)
    with pytest.raises(ValueError, match="on 'worst' the oracle's accuracy 0.1 is not above chance 0.1"):
        utility({"worst": [0.7]}, {"worst": [0.1]}, {"worst": 0.1})
    with pytest.raises(ValueError, match="chance\\['worst'\\]=1 must"):
        utility({"worst": [0.7]}, {"worst": [0.1]}, {"worst": 1})
    with pytest.raises(ValueError, match="each set needs"):
        utility({}, {}, {})


# ----------------------------------------------------------------------------------------------------------- fidelity


def test_fidelity_by_hand() -> None:
    # Ratios without a seed .2, .25, .3: jackknife variance 2/3 * (.05^2 + 0 + .05^2) = 1/300 = SE^2.
    u, m = Distance(0.25, [0.2, 0.25, 0.3]), Distance(1.0, [1.0, 1.0, 1.0])
    assert fidelity({"test": u}, {"test": m}) == pytest.approx((0.75, 0.75 - T * SE))
    # The worst set decides.
    assert fidelity({"test": u, "forget": m}, {"test": m, "forget": m}) == (0, 0)


def test_fidelity_of_known_models() -> None:
    m = Distance(2.0, [1.5, 2.0, 2.5])
    assert fidelity({"test": m}, {"test": m}) == (0, 0)
    # The oracle itself: an unbiased distance falls below 0.
    assert fidelity({"test": Distance(-0.5, [-0.5, -0.75, -1.0])}, {"test": m}).value == 1
    assert fidelity({"test": Distance(0.0, [0.0] * 3)}, {"test": m}) == (1, 1)
    # Farther than doing nothing is clipped.
    assert fidelity({"test": Distance(9.0, [9.0] * 3)}, {"test": m}) == (0, 0)
    # Half as far whichever seed is left out: what both share makes no uncertainty.
    assert fidelity({"test": Distance(1.0, [0.75, 1.0, 1.25])}, {"test": m}) == (0.5, 0.5)


def test_fidelity_without_a_firm_signal_claims_nothing() -> None:
    shaky = {"test": Distance(1.0, [2.0, 1.0, -0.5])}
    # The ratios without a seed, .005, .01 and -.02, alone would let the limit be .696.
    assert fidelity({"test": Distance(0.25, [0.01] * 3)}, shaky) == (0.75, 0)
    with pytest.raises(ValueError, match="on 'test' the original's distance 0 from the oracles is not positive"):
        fidelity(shaky, {"test": Distance(0.0, [1.0] * 3)})


def test_fidelity_of_one_seed_and_of_unpaired_seeds() -> None:
    one = fidelity({"test": Distance(0.25, [])}, {"test": Distance(1.0, [])})
    assert one.value == 0.75 and math.isnan(one.pessimistic)
    with pytest.raises(ValueError, match="each set needs the same seeds"):
        fidelity({"test": Distance(0.25, [0.25])}, {"test": Distance(1.0, [1.0, 1.0])})
    with pytest.raises(ValueError, match="each set needs the same seeds"):
        fidelity({}, {})


# ------------------------------------------------------------------------------------------------ quality and speed-up


def test_quality_is_the_weakest_axis_of_its_track() -> None:
    # An exact but shorter retrain: leak-free and useful, yet not the oracle's distribution.
    assert quality(0.9, 0.8) == 0.8
    assert quality(0.7, 0.8) == 0.7
    assert quality(0.9, 0.8, 0.0) == 0
    assert quality(0.9, 0.8, 1.0) == 0.8
    assert math.isnan(quality(0.9, math.nan)) and math.isnan(quality(math.nan, 0.9, 0.1))
    assert quality(math.nan, 0.0) == 0  # a model so broken that an attack gives no number
    assert quality(Bounded(0.9, 0.4).pessimistic, Bounded(0.8, 0.6).pessimistic) == 0.4


FRONTIER = [(4.0, 0.97), (1.0, 0.3), (3.0, 0.5), (2.0, 0.6)]  # in any order; the third checkpoint fell back


@pytest.mark.parametrize(
    ("reached", "needed"), [(0.01, 1), (0.3, 1), (0.31, 2), (0.5, 2), (0.6, 2), (0.61, 4), (0.97, 4), (1.0, 4)]
)
def test_speedup_by_hand(reached: float, needed: float) -> None:
    # The first checkpoint at least as good; beyond .97 the whole retrain, which is 1 by definition.
    assert iso_quality_speedup(reached, 1.0, FRONTIER) == needed
    assert iso_quality_speedup(reached, 8.0, FRONTIER) == needed / 8


def test_a_truncated_retrain_is_no_faster_than_itself() -> None:
    assert [iso_quality_speedup(q, c, FRONTIER) for c, q in sorted(FRONTIER)] == [1, 1, 2 / 3, 1]


def test_speedup_of_doing_nothing_and_of_free_methods() -> None:
    assert math.isnan(iso_quality_speedup(0.0, 0.0, FRONTIER))
    assert iso_quality_speedup(0.0, 1.0, FRONTIER) == 0
    assert iso_quality_speedup(0.5, 0.0, FRONTIER) == math.inf
    assert math.isnan(iso_quality_speedup(math.nan, 1.0, FRONTIER))


FRONTIERS = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=8)


@given(FRONTIERS, st.floats(0, 1), st.floats(0, 1), st.integers(1, 50), st.integers(1, 50))
def test_better_and_cheaper_methods_are_not_slower(
    frontier: list[tuple[float, float]], q: float, r: float, c: float, d: float
) -> None:
    best = iso_quality_speedup(max(q, r), min(c, d), frontier)
    assert best >= iso_quality_speedup(min(q, r), min(c, d), frontier)
    assert best >= iso_quality_speedup(max(q, r), max(c, d), frontier)
    assert best <= max(cost for cost, _ in frontier) / min(c, d)


def test_speedup_refuses_impossible_numbers() -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        iso_quality_speedup(0.5, 1.0, [])
    with pytest.raises(ValueError, match=r"costs \[-1.0, 4.0"):
        iso_quality_speedup(0.5, -1.0, FRONTIER)
    with pytest.raises(ValueError, match="must be finite"):
        iso_quality_speedup(0.5, 1.0, [(math.inf, 1.0)])
    with pytest.raises(ValueError, match="quality=1.5"):
        iso_quality_speedup(1.5, 1.0, FRONTIER)
