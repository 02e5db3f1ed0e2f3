"""Fidelity metrics against closed forms, and the level and power of the energy test."""

from __future__ import annotations

import math
from itertools import combinations
from math import comb, log, sqrt

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedforget.metrics.fidelity import (
    EnergyTest,
    Relative,
    activation_distance,
    average_gap,
    brier,
    calibration_error,
    disagreement,
    energy_distance,
    energy_test,
    forgetting_score,
    jackknifed_distance,
    js_divergence,
    relative_test,
    spread,
    tug_of_war,
    weight_distance,
)
from fedforget.metrics.outputs import Outputs
from fedforget.params import Layout, Params

REFERENCE_METRICS = [disagreement, js_divergence, activation_distance]


def outputs(logits: list[list[float]], labels: list[int] | None = None) -> Outputs:
    classes = torch.tensor(labels if labels is not None else [0] * len(logits))
    return Outputs(torch.tensor(logits), classes, torch.zeros_like(classes))


def odds(*odds_of_first: float, labels: list[int] | None = None) -> Outputs:
    """Two classes; probabilities ``odds / (1 + odds)`` of the first."""
    return outputs([[log(number), 0.0] for number in odds_of_first], labels)


def right(share: int, of: int) -> Outputs:
    """A model that is right on ``share`` of ``of`` examples."""
    return outputs([[1.0, 0.0]] * share + [[0.0, 1.0]] * (of - share))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def models(count: int, examples: int, generator: np.random.Generator, shift: float = 0.0) -> Tensor:
    """Margins of variance 1, a fifth of which all examples of a model share."""
    own = generator.normal(size=(count, examples)) * sqrt(0.8)
    return torch.from_numpy(shift + own + generator.normal(size=(count, 1)) * sqrt(0.2))


# Predictions


def test_disagreement_by_hand() -> None:
    # Against the first reference one of four differs, against the second two: (1/4 + 2/4) / 2
    model = outputs([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    first = outputs([[9.0, 0], [2, 1], [0, 1], [0, 3]])
    second = outputs([[0.0, 1], [0, 1], [1, 0], [0, 1]])
    assert disagreement(model, [first, second]) == 3 / 8


def test_a_broken_answer_is_no_disagreement() -> None:
    """A share of classes means nothing for a model that gives none, be it the model or a reference."""
    broken, whole = outputs([[math.nan, 0.0], [1, 0]]), outputs([[1.0, 0], [1, 0]])
    assert math.isnan(disagreement(broken, [whole])) and math.isnan(disagreement(whole, [whole, broken]))


def test_js_divergence_by_hand() -> None:
    # p = (3/4, 1/4), q = (1/4, 3/4), m = (1/2, 1/2): JS = log 2 - H(p) = log 2 + 3/4 log 3/4 + 1/4 log 1/4
    expected = log(2) + 0.75 * log(0.75) + 0.25 * log(0.25)
    assert js_divergence(odds(3), [odds(1 / 3)]) == pytest.approx(expected, rel=1e-6)
    # Averaged over two references, one of them equal, and over examples
    assert js_divergence(odds(3, 1), [odds(1 / 3, 1), odds(3, 1)]) == pytest.approx(expected / 4, rel=1e-6)


def test_js_divergence_at_its_ends() -> None:
    # Opposite certainties: log 2
    assert js_divergence(outputs([[1e4, 0.0]]), [outputs([[0.0, 1e4]])]) == pytest.approx(log(2))
    # exp(-744.4) is the smallest number above 0, and half of it 0: that must not give infinity.
    assert js_divergence(outputs([[744.4, 0.0]]), [outputs([[1e4, 0.0]])]) == pytest.approx(0)
    same = outputs(torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).tolist())
    assert js_divergence(same, [same]) == 0


def test_activation_distance_by_hand() -> None:
    # (3/4, 1/4) - (1/4, 3/4) = (1/2, -1/2): 1 / sqrt 2; with an equal second example and an equal second reference / 4
    assert activation_distance(odds(3), [odds(1 / 3)]) == pytest.approx(1 / sqrt(2), rel=1e-6)
    found = activation_distance(odds(3, 1), [odds(1 / 3, 1), odds(3, 1)])
    assert found == pytest.approx(1 / sqrt(2) / 4, rel=1e-6)


@pytest.mark.parametrize("metric", REFERENCE_METRICS)
def test_references_must_answer_the_same_examples(metric) -> None:
    with pytest.raises(ValueError, match="no reference"):
        metric(odds(1, 2), [])
    with pytest.raises(ValueError, match=r"\(1, 2\), the model \(2, 2\)"):
        metric(odds(1, 2), [odds(1)])
    with pytest.raises(ValueError, match="the same labels"):
        metric(odds(1, 2, labels=[0, 1]), [odds(1, 2, labels=[1, 0])])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_destroyed_model_scores_nan(value: float) -> None:
    broken, whole = outputs([[value, 0.0], [1, 0]]), outputs([[1.0, 0], [1, 0]])
    for metric in (js_divergence, activation_distance):
        assert math.isnan(metric(broken, [whole]))
    assert math.isnan(calibration_error(broken)) and math.isnan(brier(broken))


def test_calibration_error_by_hand() -> None:
    # Confidence 3/4 on all; right on three of four is calibrated, on two of four is off by 1/4.
    assert calibration_error(odds(3, 3, 3, 3, labels=[0, 0, 0, 1])) == pytest.approx(0, abs=1e-6)
    assert calibration_error(odds(3, 3, 3, 3, labels=[0, 0, 1, 1])) == pytest.approx(0.25)


def test_calibration_error_weighs_bins() -> None:
    # Three at 3/4, all right: off by 1/4. One at 9/10, wrong: off by 9/10. (3 * 1/4 + 9/10) / 4 = .4125;
    # in a single bin: |3/4 - (3 * 3/4 + 9/10) / 4| = .0375
    model = odds(3, 3, 3, 9, labels=[0, 0, 0, 1])
    assert calibration_error(model) == pytest.approx(0.4125)
    assert calibration_error(model, bins=1) == pytest.approx(0.0375, rel=1e-5)


def test_calibration_error_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    generator = torch.Generator().manual_seed(0)
    model = outputs((4 * torch.randn(300, 7, generator=generator)).tolist(), torch.arange(300).remainder(7).tolist())
    theirs = multiclass_calibration_error(model.logits.double().softmax(1), model.labels, num_classes=7, n_bins=15)
    assert calibration_error(model) == pytest.approx(theirs.item(), abs=1e-6)  # theirs are in single precision


def test_logits_that_look_like_probabilities_are_logits() -> None:
    # Logits (1, 0): confidence e / (1 + e), not 1.
    assert calibration_error(outputs([[1.0, 0.0]])) == pytest.approx(1 - math.e / (1 + math.e), rel=1e-5)


def test_brier_by_hand() -> None:
    # p = (3/4, 1/4): right (1/4)^2 * 2 = 1/8, wrong (3/4)^2 * 2 = 9/8
    assert brier(odds(3, 3, labels=[0, 1])) == pytest.approx((1 / 8 + 9 / 8) / 2)
    assert brier(outputs([[1e3, 0.0]], [1])) == 2


def test_accuracy_gaps_by_hand() -> None:
    # (1/2)(3/4)(4/5) = 3/10. With the attack's .3 - .7: (.5 + .25 + .2 + .4) / 4 = .3375
    gaps = [1 / 2, -1 / 4, -1 / 5]
    assert tug_of_war(gaps) == pytest.approx(0.3)
    assert average_gap(gaps, 0.3 - 0.7) == pytest.approx(0.3375)
    assert tug_of_war([0, 0, 0]) == 1 and average_gap([0, 0, 0], 0) == 0


# Energy distance


def test_the_jackknifed_distance_leaves_out_whole_seeds() -> None:
    generator = torch.Generator().manual_seed(0)
    u, o = (torch.randn(5, 30, generator=generator) + shift for shift in (0.5, 0.0))
    distance, left_out = jackknifed_distance(u, o)
    assert distance == pytest.approx(energy_distance(u, o).mean().item())
    kept = [[k for k in range(5) if k != out] for out in range(5)]
    assert left_out == pytest.approx([energy_distance(u[k], o[k]).mean().item() for k in kept])
    assert jackknifed_distance(u[:2], o[:2])[1] == []
    u[1, 2] = math.nan
    assert math.isnan(jackknifed_distance(u, o)[0])
    with pytest.raises(ValueError, match="5 unlearned models and 4 oracles"):
        jackknifed_distance(u, o[:4])


def test_point_masses() -> None:
    # 2 |3 - 1| - 0 - 0
    assert energy_distance(column(3, 3, 3), column(1, 1)).tolist() == [4]
    assert energy_distance(column(3, 3), column(3, 3)).tolist() == [0]


def test_energy_distance_by_hand() -> None:
    # u = (0, 2), o = (1, 1, 4). Between: 1 + 1 + 4 + 1 + 1 + 2 = 10 over 6. Within u: 2. Within o: (0 + 3 + 3) / 3 = 2.
    # 20/6 - 4 = -2/3, below 0 as an unbiased estimate may be; a second example of point masses beside it
    u, o = torch.tensor([[0.0, 3], [2, 3]]), torch.tensor([[1.0, 1], [1, 1], [4, 1]])
    assert energy_distance(u, o).tolist() == pytest.approx([-2 / 3, 4])


def test_the_mean_is_0_under_the_null_with_few_models() -> None:
    # A plug-in estimate at K = L = 3 would be biased by 2 E|u - u'| / 3 = 2 * 1.128 / 3 = .75.
    generator = rng()
    draws = [energy_distance(*(models(3, 20, generator) for _ in range(2))).mean().item() for _ in range(300)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / sqrt(300) < 0.1


def test_the_mean_under_a_shift_is_that_of_gaussians() -> None:
    # u - o ~ N(1, 2), u - u' ~ N(0, 2). E|N(m, s^2)| = s sqrt(2/pi) exp(-m^2/(2 s^2)) + m (1 - 2 Phi(-m/s)):
    # at m = 1, s = sqrt 2: 1.12838 * .77880 + 1 - 2 * .23975 = 1.39928; at m = 0: 1.12838.
    # The distance is 2 (1.39928 - 1.12838) = .5418
    generator = rng(1)
    draws = [energy_distance(models(5, 20, generator, 1), models(5, 20, generator)).mean().item() for _ in range(1000)]
    assert abs(np.mean(draws) - 0.5418) < 4 * np.std(draws) / sqrt(1000) < 0.07


def test_energy_test_by_hand() -> None:
    # Disjoint sides: no other split but the mirror image is as far apart, 2 of comb(10, 5) = 252.
    u, o = column(10, 11, 12, 13, 14), column(0, 1, 2, 3, 4)
    found = energy_test(u, o, rng())
    assert found.p == pytest.approx(2 / 252)
    # Between the sides 10 on average; within, |i - j| sums to 20 over the 10 pairs of 0..4: 2 * 10 - 2 - 2
    assert found.statistic == pytest.approx(16) and found.worst_decile == pytest.approx(16)


def test_three_models_a_side_can_show_nothing() -> None:
    assert energy_test(column(10, 11, 12), column(0, 1, 2), rng()).p == pytest.approx(2 / 20)


def test_unequal_sides_have_no_mirror_image() -> None:
    # comb(6, 2) = 15 splits, of which the actual one alone is as far apart.
    assert energy_test(column(10, 11), column(0, 1, 2, 3), rng()).p == pytest.approx(1 / 15)


def test_p_is_the_share_of_splits_at_least_as_far_apart() -> None:
    # The definition, with the distance of each of the comb(7, 3) = 35 splits computed anew.
    everyone = models(7, 6, rng(6))
    chosen = [list(split) for split in combinations(range(7), 3)]
    rest = [[model for model in range(7) if model not in split] for split in chosen]
    distances = [energy_distance(everyone[a], everyone[b]).mean().item() for a, b in zip(chosen, rest, strict=True)]
    for a, b, distance in zip(chosen, rest, distances, strict=True):
        expected = np.mean(np.array(distances) >= distance - 1e-12)
        found = energy_test(everyone[a], everyone[b], rng())
        assert (found.statistic, found.p) == pytest.approx((distance, expected))


def test_mirror_images_are_not_lost_to_rounding() -> None:
    # Thirds and the like round differently on the two sides; p must stay a multiple of 2 / 252 whatever the margins.
    for seed in range(50):
        generator = rng(seed)
        p = energy_test(models(5, 3, generator, 1e3), models(5, 3, generator, 1e3), generator).p
        assert p * 126 == pytest.approx(round(p * 126), abs=1e-9)


def test_worst_decile() -> None:
    # 20 examples: distances 4 and 2 on two of them, else 0; the worst tenth is these two, the mean 6 / 20.
    u, o = torch.zeros(5, 20), torch.zeros(5, 20)
    u[:, 3], u[:, 11] = 2, 1
    found = energy_test(u, o, rng())
    assert (found.statistic, found.p, found.worst_decile) == pytest.approx((0.3, 2 / 252, 3))


def test_equal_models_are_not_told_apart() -> None:
    assert energy_test(torch.ones(5, 4), torch.ones(5, 4), rng()) == EnergyTest(0, 1, 0)


def test_many_models_are_permuted_at_random() -> None:
    # comb(20, 10) = 184756 splits: 999 draws, none as far apart as disjoint sides (chance 1 %): p = 1 / 1000
    assert comb(20, 10) == 184756
    u = torch.arange(10.0)[:, None]
    assert energy_test(u + 100, u, rng(1), permutations=999).p == pytest.approx(1 / 1000)


def test_random_splits_agree_with_all_splits() -> None:
    generator = rng(4)
    u, o = models(5, 10, generator, 0.5), models(5, 10, generator)
    exact, drawn = energy_test(u, o, rng()), energy_test(u, o, rng(), permutations=251)
    assert 0.02 < exact.p < 0.9  # else this shows nothing
    assert drawn.p == pytest.approx(exact.p, abs=3 * sqrt(exact.p * (1 - exact.p) / 251) + 1 / 252)
    assert drawn.statistic == exact.statistic


def test_level_at_five_models() -> None:
    # p is a multiple of 2 / 252, so p < .05 has chance 6 / 126 = .0476; the standard error of 600 runs is .009.
    generator = rng(2)
    p = [energy_test(models(5, 30, generator), models(5, 30, generator), generator).p for _ in range(600)]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.08
    assert np.mean(p) == pytest.approx(0.5, abs=0.05)


def test_power_at_five_models() -> None:
    generator = rng(3)
    p = [energy_test(models(5, 30, generator, 1), models(5, 30, generator), generator).p for _ in range(200)]
    assert np.mean(np.array(p) < 0.05) > 0.8


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_margin_gives_nan(value: float) -> None:
    u = torch.zeros(3, 2)
    u[:2, 1] = value
    assert energy_distance(u, torch.zeros(3, 2)).isnan().tolist() == [False, True]
    found = energy_test(u, torch.zeros(3, 2), rng())
    assert math.isnan(found.statistic) and math.isnan(found.p) and math.isnan(found.worst_decile)


@pytest.mark.parametrize("shapes", [((1, 4), (3, 4)), ((3, 4), (1, 4)), ((3, 4), (3, 5)), ((3,), (3, 3))])
def test_sides_must_fit(shapes: tuple) -> None:
    u, o = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="at least 2 models each"):
        energy_distance(u, o)
    with pytest.raises(ValueError, match="at least 2 models each"):
        energy_test(u, o, rng())


def test_permutations_must_be_positive() -> None:
    with pytest.raises(ValueError, match="permutations=0 must"):
        energy_test(torch.zeros(3, 2), torch.zeros(3, 2), rng(), permutations=0)


# Weights


def test_weight_distance_by_hand() -> None:
    # Oracles at 0, 3 and 4i: pairwise 3, 4, 5, mean 4. The model is (6, 8) away from the first: 10 / 4
    layout = Layout(("w",), ((2,),))
    first, second, third, model = (
        Params(torch.tensor(point), layout) for point in ([0.0, 0], [3.0, 0], [0.0, 4], [6.0, 8])
    )
    unit = spread([first, second, third])
    assert unit == 4
    assert weight_distance(model, first, unit) == pytest.approx(2.5)
    assert weight_distance(first, first, unit) == 0
    assert math.isnan(weight_distance(model, first, spread([first, first])))
    with pytest.raises(ValueError, match="at least 2 of them, not 1"):
        spread([first])


# The forgetting score


def test_identical_samples_are_forgotten() -> None:
    # Every rule has FPR = 1 - FNR, so epsilon <= 0.
    sample = models(8, 5, rng())
    assert forgetting_score(sample, sample) == 1


def test_disjoint_samples_are_not() -> None:
    sample = models(8, 5, rng())
    assert forgetting_score(sample + 50, sample) == 0
    assert forgetting_score(sample, sample + 50) == 0


def test_a_single_threshold_by_hand() -> None:
    # Positives 25, 35, 45, 55 (larger median), negatives 0, 10, 20, 30. A threshold in (25, 30] has FPR = FNR = 1/4, so
    # epsilon = log(3/4 - delta) - log 1/4 = log 3 = 1.099. Below 25 FNR = 0, above 30 FPR = 0: not counted. Intervals:
    # ranges are equal, so "inside" is the side of smaller median; [0, 28..30) has again 1/4 each, (0, 28] the same
    # FPR and FNR = 1/2, epsilon log 2. So 1.099, in the third bin of ceil(ln 3) / .5 = 4: 1/4 point.
    low, high = column(0, 10, 20, 30), column(25, 35, 45, 55)
    assert forgetting_score(low, high) == 0.25
    assert forgetting_score(high, low) == 0.25
    # The mean over that example and one that is forgotten
    assert forgetting_score(torch.cat([low, low], 1), torch.cat([high, low], 1)) == (0.25 + 1) / 2


def test_a_threshold_in_the_middle() -> None:
    # A single threshold in (21, 60] has FPR = FNR = 1/4 and epsilon log 3. The interval [0, 62], moved and stretched by
    # at most 2, holds 20 and 21 of the other side, so FPR >= 1/2 and epsilon is at most log 2 (half a point).
    assert forgetting_score(column(-5, 20, 21, 62), column(0, 60, 61, 62)) == 0.25


def test_both_directions_count() -> None:
    # Above (25, 55]: FPR 1/2 (70, 80), FNR 1/4 (25): log(1 - 1/2) - log 1/4 = log 2, half a point; the other formula
    # gives log(3/4) - log 1/2 = .405, a whole one. Intervals [25, 85] hold 70 and 80 too, the same FPR at no lower FNR.
    assert forgetting_score(column(10, 20, 70, 80), column(25, 55, 65, 85)) == 0.5
    # Above (40, 65]: FPR 1/4 (70), FNR 1/2 (5, 15): now the other formula gives log 2. Intervals [0, 70] hold three.
    assert forgetting_score(column(0, 20, 40, 70), column(5, 15, 65, 95)) == 0.5


def test_two_thresholds_by_hand() -> None:
    # One side inside a gap of the other: no single threshold has epsilon above log 2 (half a point), an interval
    # separates them, so epsilon is 50.
    assert forgetting_score(column(-30, -10, 10, 30), column(-1.5, -0.5, 0.5, 1.5)) == 0


def test_a_peaked_sample_is_not_forgotten() -> None:
    # Range 0 against 60. The rules alone say 0: inside [0, 0] FNR = 0 and FPR = 1/2, which does not count; single
    # thresholds have FPR = 0, or 1 with FNR = 1/4.
    assert forgetting_score(column(0, 0, 0, 0), column(-30, 0, 0, 30)) == 0
    # Range 1.2 against 60 is above 1 %.
    assert forgetting_score(column(0, 0, 0, 1.2), column(-30, 0, 1.2, 30)) > 0


def test_constant_margins() -> None:
    # Equal ones: every rule has one rate 0, none counts. Others: an interval separates them.
    assert forgetting_score(column(1, 1, 1), column(1, 1, 1)) == 1
    assert forgetting_score(column(1, 1, 1), column(2, 2, 2)) == 0


def test_bins_end_at_what_the_number_of_models_can_show() -> None:
    # Three models: bins up to ceil(ln 2) = 1. One mistake a side: FPR = FNR = 1/3, epsilon log 2, second bin: 1/2.
    assert forgetting_score(column(0, 10, 20), column(15, 25, 35)) == 0.5
    # Of five models, bins up to ceil(ln 4) = 2: log 4 = 1.386, third bin: 1/4.
    five = column(0, 10, 20, 30, 40)
    assert forgetting_score(five, five + 35) == 0.25
    # Of eight, up to ceil(ln 7) = 2: log 7 = 1.95, fourth bin: 1/8; of nine, up to ceil(ln 8) = 3, log 8 = 2.08: 1/16
    eight, nine = column(*range(0, 80, 10)), column(*range(0, 90, 10))
    assert forgetting_score(eight, eight + 65) == 0.125
    assert forgetting_score(nine, nine + 75) == 0.0625


def test_oracles_against_oracles_do_not_reach_1() -> None:
    # The bias that makes this score a matter of comparison only; a pilot with its own thresholds had .19 at N = 8 too.
    generator = rng(5)
    assert forgetting_score(models(8, 60, generator), models(8, 60, generator)) == pytest.approx(0.19, abs=0.1)


def test_broken_margins_have_no_score() -> None:
    assert math.isnan(forgetting_score(column(0, 1, math.nan), column(0, 1, 2)))
    assert forgetting_score(column(0, 1, math.inf), column(0, 1, math.inf)) == 1


@pytest.mark.parametrize("shapes", [((2, 4), (2, 4)), ((3, 4), (4, 4)), ((3,), (3,))])
def test_the_score_needs_equal_sides(shapes: tuple) -> None:
    with pytest.raises(ValueError, match="at least 3 models"):
        forgetting_score(*(torch.zeros(shape) for shape in shapes))


# The relative test


def test_relative_test_by_hand() -> None:
    """One example. U lies 1 from O and 3 from M everywhere, and nothing varies: T = 2 x 3 - 2 x 1."""
    found = relative_test(torch.ones(3, 1), torch.zeros(3, 1), torch.full((3, 1), 4.0))
    assert found == Relative("oracle", 4.0, 0.0)
    assert relative_test(torch.full((3, 1), 3.0), torch.zeros(3, 1), torch.full((3, 1), 4.0)).closer == "original"
    assert relative_test(torch.full((3, 1), 2.0), torch.zeros(3, 1), torch.full((3, 1), 4.0)) == Relative(
        "unresolved", 0.0, 1.0
    )


def test_relative_test_is_a_difference_of_energy_distances_and_its_jackknife() -> None:
    u, o, m = (shift + torch.randn(5, 7, generator=torch.Generator().manual_seed(shift)) for shift in (0, 1, 3))

    def difference(kept: list[int]) -> float:
        to_original, to_oracle = (energy_distance(u[kept], other[kept]).mean() for other in (m, o))
        return float(to_original - to_oracle)

    left_out = np.array([difference([i for i in range(5) if i != k]) for k in range(5)])
    error = sqrt(4 / 5 * ((left_out - left_out.mean()) ** 2).sum())
    found = relative_test(u, o, m)
    assert found.difference == pytest.approx(difference(list(range(5))))
    assert found.p == pytest.approx(2 * stats.t.sf(found.difference / error, 4))


def test_relative_test_exchanges_its_references() -> None:
    u, o, m = (torch.randn(6, 7, generator=torch.Generator().manual_seed(k)) for k in range(3))
    one, other = relative_test(u, o, m), relative_test(u, m, o)
    assert one.difference == pytest.approx(-other.difference) and one.p == pytest.approx(other.p)


def test_level_and_power_of_the_relative_test() -> None:
    """Half-way between the two it is called closer to one in at most 5 % of the runs; like one, mostly to it."""
    generator = torch.Generator().manual_seed(0)

    def called(at: float) -> list[str]:
        sides = ([at + torch.randn(10, 20, generator=generator), torch.randn(10, 20, generator=generator),
                  1 + torch.randn(10, 20, generator=generator)] for _ in range(300))  # fmt: skip
        return [relative_test(*three).closer for three in sides]

    middle = called(0.5)
    assert len([c for c in middle if c != "unresolved"]) <= 0.05 * 300 + 2 * sqrt(300 * 0.05 * 0.95)
    assert called(0.0).count("oracle") > 0.9 * 300 and called(1.0).count("original") > 0.9 * 300


def test_relative_test_refuses_what_it_cannot_judge() -> None:
    with pytest.raises(ValueError, match="with at least 3 seeds"):
        relative_test(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"\(4, 3\), \(4, 2\) and \(4, 3\)"):
        relative_test(torch.ones(4, 3), torch.ones(4, 2), torch.ones(4, 3))
    broken = relative_test(torch.full((3, 2), math.nan), torch.ones(3, 2), torch.ones(3, 2))
    assert broken.closer == "unresolved" and math.isnan(broken.p)
