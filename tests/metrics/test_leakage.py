"""Leakage against closed forms and numbers derived by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, kstest, norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from torch import tensor

from fedforget.metrics import leakage
from fedforget.metrics.leakage import (
    SCORES,
    attack_success,
    auc,
    balanced_accuracy,
    calibrated,
    canary_auc,
    canary_p,
    canary_roc,
    confusion_between,
    entropy,
    epsilon_bound,
    lira,
    matched_holdout,
    modified_entropy,
    noise_alignment,
    noise_test,
    population,
    rmia,
    tpr_at_fpr,
)
from fedforget.metrics.outputs import Outputs


def outputs(logits, labels):
    return Outputs(tensor(logits, dtype=torch.float64), tensor(labels), torch.full((len(labels),), -1))


def sure(*chances):
    """Two classes, label 0, with these probabilities of the label."""
    return outputs([[math.log(p), math.log(1 - p)] for p in chances], [0] * len(chances))


def with_margins(*values):
    """Two classes, label 0, with these margins: of two classes the margin is the difference of the logits."""
    return outputs([[value, 0.0] for value in values], [0] * len(values))


def sure_nothing():
    return Outputs(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))


def test_scores_of_one_example():
    """p = (.5, .3, .2), label 1: log p_y = log .3; odds .3 / .7."""
    example = outputs([[math.log(p) + 3 for p in (0.5, 0.3, 0.2)]], [1])
    surprise = 0.5 * math.log(2) - 0.3 * math.log(0.3) - 0.2 * math.log(0.2)
    modified = -0.7 * math.log(0.3) - 0.5 * math.log(0.5) - 0.2 * math.log(0.8)
    expected = {"loss": math.log(0.3), "confidence": 0.3, "entropy": -surprise, "modified_entropy": -modified}
    expected["margin"] = math.log(0.3 / 0.7)
    assert {name: score(example).item() for name, score in SCORES.items()} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("label, expected", [(0, 0.498205), (2, 1.741126)])
def test_modified_entropy_by_hand(label, expected):
    """p = (.5, .3, .2). Label 0: .5 * .693147 + .3 * .356675 + .2 * .223144 = .346574 + .107002 + .044629.
    Label 2: .8 * 1.609438 + .5 * .693147 + .3 * .356675 = 1.287550 + .346574 + .107002."""
    example = outputs([[math.log(p) for p in (0.5, 0.3, 0.2)]], [label])
    assert modified_entropy(example).item() == pytest.approx(expected, abs=2e-6)


def test_the_loss_of_sure_examples_does_not_tie():
    """1 - p_y = e^-40 and e^-50 round p_y to 1; their losses are e^-40 and e^-50."""
    loss = SCORES["loss"](with_margins(40.0, 50.0))
    assert loss.tolist() == pytest.approx([-math.exp(-40), -math.exp(-50)], rel=1e-12, abs=0)


def test_modified_entropy_falls_in_the_confidence_where_entropy_does_not():
    chances = [0.02 * step for step in range(1, 50)]
    grid = outputs([[math.log(p), math.log((1 - p) / 2), math.log((1 - p) / 2)] for p in chances], [0] * 49)
    assert (modified_entropy(grid).diff() < 0).all()
    assert (entropy(grid).diff() > 0).any()


def test_modified_entropy_does_not_cancel():
    """Two classes 800 nats apart: right, both terms vanish; wrong, each is 800. Three classes with p_i = q = 1e-10 of
    both wrong ones: (1 - p_y) (-log p_y) is 2q * 2q, and each wrong class adds q * q, up to a share q of it all."""
    assert modified_entropy(outputs([[800.0, 0.0]] * 2, [0, 1])).tolist() == [0.0, 1600.0]
    small = outputs([[0.0, math.log(1e-10), math.log(1e-10)]], [0])
    assert modified_entropy(small).item() == pytest.approx(6e-20, rel=1e-8, abs=0)
    assert modified_entropy(outputs([[0.0, -math.inf]] * 2, [0, 1])).tolist() == [0.0, math.inf]


@pytest.mark.parametrize(
    "members, non_members, expected",
    [
        ([2.0, 3.0], [0.0, 1.0], 1.0),
        ([0.0, 1.0], [2.0, 3.0], 0.0),
        ([5.0, 5.0], [5.0], 0.5),
        ([1.0, 2.0], [1.0, 0.0], 3.5 / 4),  # four pairs: a tie and three wins
        ([math.inf, 0.0], [-math.inf, 0.0], 3.5 / 4),
        ([math.nan, 1.0], [0.0], math.nan),
        ([1.0], [math.nan, 0.0], math.nan),
    ],
)
def test_auc(members, non_members, expected):
    assert auc(tensor(members), tensor(non_members)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_auc_of_two_gaussians(shift):
    """A difference of unit Gaussians has deviation sqrt 2, so AUC = Phi(shift / sqrt 2). Quantiles for samples."""
    sample = torch.from_numpy(norm.ppf((np.arange(2000) + 0.5) / 2000))
    assert auc(sample + shift, sample) == pytest.approx(norm.cdf(shift / math.sqrt(2)), abs=1e-3)


@pytest.mark.parametrize("attack", [auc, balanced_accuracy, lambda a, b: tpr_at_fpr(a, b, 0.1)])
def test_an_attack_needs_both_kinds(attack):
    with pytest.raises(ValueError, match="0 members and 1 non-members"):
        attack(torch.zeros(0), torch.zeros(1))
    with pytest.raises(ValueError, match="1 members and 0 non-members"):
        attack(torch.zeros(1), torch.zeros(0))


def test_tpr_at_one_percent():
    """Of 0..99 one may be accused, so the threshold is above 98: three of four members are found. Clopper-Pearson: the
    upper end has 1 - p^4 = .025; at the lower end three or four of four have probability .025."""
    non_members, members = torch.arange(100.0), tensor([50.0, 98.5, 99.5, 200.0])
    interval = tpr_at_fpr(members, non_members, 0.01)
    assert interval.value == 0.75
    assert interval.high == pytest.approx(0.975**0.25)
    assert 4 * interval.low**3 * (1 - interval.low) + interval.low**4 == pytest.approx(0.025)
    assert tpr_at_fpr(members, non_members, 0.1).value == 0.75
    assert tpr_at_fpr(members, non_members, 0.5).value == 1.0


def test_tpr_needs_enough_non_members():
    assert all(math.isnan(number) for number in tpr_at_fpr(torch.ones(5), torch.zeros(99), 0.01))
    assert tpr_at_fpr(torch.ones(5), torch.zeros(100), 0.01).value == 1.0
    assert all(math.isnan(number) for number in tpr_at_fpr(tensor([math.nan]), torch.zeros(100), 0.01))
    with pytest.raises(ValueError, match="fpr=0 "):
        tpr_at_fpr(torch.ones(5), torch.zeros(100), 0)


def test_tpr_of_paired_scores():
    """Each member ties with one non-member, so accusing five of ten non-members finds five of ten members."""
    assert tpr_at_fpr(torch.arange(10.0), torch.arange(10.0), 0.5).value == 0.5


def test_tpr_is_that_of_scikit_learn():
    """Of small samples with many ties, where it is the largest rate of the curve up to the allowed one."""
    generator = np.random.default_rng(0)
    for _ in range(100):
        members, others = (generator.integers(0, 9, size).astype(float) for size in generator.integers(10, 40, 2))
        false, true, _ = roc_curve([1] * len(members) + [0] * len(others), [*members, *others], drop_intermediate=False)
        for fpr in (0.1, 0.29, 0.5):
            found = tpr_at_fpr(torch.from_numpy(members), torch.from_numpy(others), fpr)
            assert found.value == pytest.approx(true[false <= fpr].max())


def test_tpr_cannot_split_ties():
    """All scores are equal: to accuse one non-member is to accuse all."""
    assert tpr_at_fpr(torch.ones(4), torch.ones(100), 0.01).value == 0.0


def test_balanced_accuracy():
    """{1, 3} against {0, 2}: from 3 on, (1/2 + 1) / 2; from 1 on, (1 + 1/2) / 2."""
    assert balanced_accuracy(tensor([1.0, 3.0]), tensor([0.0, 2.0])) == 0.75
    assert balanced_accuracy(tensor([1.0]), tensor([1.0])) == 0.5
    assert balanced_accuracy(tensor([0.0]), tensor([1.0])) == 0.5  # accusing nobody
    assert math.isnan(balanced_accuracy(tensor([math.nan]), tensor([1.0])))


def test_matched_holdout():
    """Label probabilities .9, .8 against .3, .05: every label-aware score separates them. Entropy orders the sides
    .05 < .9 < .8 < .3 from sure to unsure, so each member beats only .3: AUC 2 / 4."""
    result = matched_holdout(sure(0.9, 0.8), sure(0.3, 0.05))
    assert result == {"loss": 1, "confidence": 1, "entropy": 0.5, "modified_entropy": 1, "margin": 1}


def test_population():
    """The threshold lies at .8, so .95 and .85 of four are members. Entropy's lies at H(.8): .1 is a member too."""
    shares = population(sure(0.9, 0.8), sure(0.4, 0.3), sure(0.95, 0.85, 0.6, 0.1))
    shares.pop("logistic")
    assert shares == {"loss": 0.5, "confidence": 0.5, "entropy": 0.25, "modified_entropy": 0.5, "margin": 0.5}


def test_population_of_the_extremes():
    retain, test = sure(0.95, 0.94, 0.93, 0.96), sure(0.3, 0.4, 0.35)
    assert set(population(retain, test, retain).values()) == {0.0}
    assert set(population(retain, test, test).values()) == {1.0}
    useless = population(test, test, retain)
    useless.pop("logistic")
    assert set(useless.values()) == {1.0}  # no threshold beats a coin, so nobody is called a member


def test_population_counts_both_sides_alike():
    """One test example against 99 retained ones: an attack that followed the sizes would call everyone a member."""
    retain, test = sure(*np.linspace(0.3, 0.9, 99)), sure(0.35)
    assert population(retain, test, test)["logistic"] == 1.0


def test_the_best_threshold_is_that_of_scikit_learn():
    """Of two hundred small samples with many ties, some of them upside down."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        size, levels = generator.integers(4, 40), generator.integers(1, 12)
        truth = np.arange(size) < generator.integers(1, size)
        scores = generator.integers(0, levels, size).astype(float)
        false, true, thresholds = roc_curve(truth, scores, drop_intermediate=False)
        best = thresholds[(true - false).argmax()]
        expected = best if np.isfinite(best) else math.nan
        assert leakage._best_threshold(truth, scores) == pytest.approx(expected, nan_ok=True)


def test_the_logistic_attack_is_that_of_scikit_learn():
    """Of a hundred small tables whose columns are far from independent, some of them separable, of unequal classes."""
    generator, compared = np.random.default_rng(0), 0
    for _ in range(100):
        x = generator.standard_normal((generator.integers(10, 200), 3))
        x[:, 1] = x[:, 0] + 0.01 * x[:, 1]
        truth = x[:, 0] + generator.choice([0, 1]) * x[:, 2] > generator.normal()
        if truth.all() or not truth.any():
            continue
        theirs = LogisticRegression(class_weight="balanced", solver="newton-cholesky", tol=1e-10).fit(x, truth)
        expected = [*theirs.coef_[0], *theirs.intercept_]
        assert leakage._logistic(x, truth).tolist() == pytest.approx(expected, abs=1e-4)
        compared += 1
    assert compared > 80


def test_population_of_a_diverged_model():
    broken = outputs([[math.nan, math.nan]], [0])
    shares = population(sure(0.9), sure(0.5), broken)
    assert len(shares) == 6 and all(math.isnan(share) for share in shares.values())
    assert all(math.isnan(value) for value in matched_holdout(broken, sure(0.5)).values())
    with pytest.raises(ValueError, match=r"\(1, 1, 0\)"):
        population(sure(0.9), sure(0.5), sure_nothing())


def test_lira_with_few_references_shares_one_deviation():
    """Margins (0, 2) and (10, 14): means 1 and 12, unbiased variances 2 and 8, their mean 5."""
    references = [with_margins(0.0, 10.0), with_margins(2.0, 14.0)]
    scores = lira(with_margins(1.0, 12.0 + math.sqrt(5)), references)
    assert scores.tolist() == pytest.approx([0.5, norm.cdf(1)])
    assert lira(with_margins(1.0 - math.sqrt(5), 12.0), references).tolist() == pytest.approx([norm.cdf(-1), 0.5])


@pytest.mark.parametrize("half, own", [(7, False), (8, True)])
def test_lira_with_many_references_gives_each_example_its_own_deviation(half, own):
    """Half the margins at -1 (-10), half at 1 (10): unbiased variances v = n / (n - 1) and 100 v; shared: 50.5 v."""
    references = [with_margins(-1.0, -10.0), with_margins(1.0, 10.0)] * half
    deviation = math.sqrt(2 * half / (2 * half - 1))
    expected = [norm.cdf(1), norm.cdf(0.1)] if own else [norm.cdf(1 / math.sqrt(50.5))] * 2
    assert lira(with_margins(deviation, deviation), references).tolist() == pytest.approx(expected)


def test_lira_of_equal_references():
    references = [with_margins(1.0, 1.0, 1.0)] * 3
    assert lira(with_margins(1.0, 0.5, 1.5), references).tolist() == [0.5, 0.0, 1.0]


def test_rmia_by_hand():
    """Mean out of x is (.2 + .4) / 2 = .3, of z .6. a = .3: .6 / .545 = 1.10 beats .8 / .74 = 1.08;
    a = 0: .6 / .65 = .92 loses to .8 / .8 = 1. A second z of .9 / .545 = 1.65 (a = .3) beats x."""
    x, x_references = sure(0.6), [sure(0.2), sure(0.4)]
    assert rmia(x, x_references, sure(0.8), [sure(0.6)] * 2).tolist() == [1.0]
    assert rmia(x, x_references, sure(0.8), [sure(0.6)] * 2, a=0.0).tolist() == [0.0]
    assert rmia(x, x_references, sure(0.8, 0.9), [sure(0.6, 0.3)] * 2).tolist() == [0.5]


def test_rmia_of_a_model_against_itself_is_uniform():
    """The ratio then rises in p_y, so the k-th of n examples beats k of the same n as population."""
    model = with_margins(*torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist())
    scores = rmia(model, [model], model, [model])
    assert scores.sort().values.tolist() == pytest.approx([k / 50 for k in range(50)])
    assert rmia(model, [model], model, [model], a=1.0).tolist() == [0.0] * 50  # every ratio is 1, and none exceeds it


def test_rmia_of_nan():
    good, bad = with_margins(0.0, 1.0), outputs([[math.nan, 0.0], [1.0, 0.0]], [0, 0])
    first, second = rmia(bad, [good], good, [good]).tolist()
    assert math.isnan(first) and not math.isnan(second)
    assert rmia(good, [good], bad, [good]).isnan().all()


def test_too_few_or_wrong_references():
    one, other = with_margins(1.0), outputs([[1.0, 0.0]], [1])
    with pytest.raises(ValueError, match="at least 2 reference models, not 1"):
        lira(one, [one])
    with pytest.raises(ValueError, match="at least 1 reference models, not 0"):
        calibrated(one, [])
    with pytest.raises(ValueError, match="at least 1 reference models, not 0"):
        rmia(one, [], one, [])
    with pytest.raises(ValueError, match="1 references, but 2"):
        rmia(one, [one], one, [one, one])
    with pytest.raises(ValueError, match="a=1.5"):
        rmia(one, [one], one, [one], a=1.5)
    with pytest.raises(ValueError, match="population is empty"):
        rmia(one, [one], sure_nothing(), [sure_nothing()])
    with pytest.raises(ValueError, match="other labels"):
        calibrated(one, [other])


def test_calibrated():
    references = [with_margins(0.0, 10.0), with_margins(2.0, 14.0)]
    assert calibrated(with_margins(3.0, 11.0), references).tolist() == pytest.approx([3 - 1, 11 - 12])


def test_canaries_of_different_difficulty():
    """Easy canaries hide the coins from the raw margin; against the references they show."""
    coins = tensor([True, False, True, False])
    model, reference = with_margins(1.0, 5.0, 11.0, 10.0), with_margins(0.0, 5.5, 10.0, 10.5)
    assert canary_auc(model.logits[:, 0], coins) == 0.5  # 1 loses twice, 11 wins twice
    assert canary_auc(calibrated(model, [reference]), coins) == 1.0  # 1, -.5, 1, -.5


def test_canary_roc():
    false, true = canary_roc(tensor([3.0, 2.0, 1.0, 0.0]), tensor([True, False, True, False]))
    assert false.tolist() == [0, 0, 0.5, 0.5, 1] and true.tolist() == [0, 0.5, 0.5, 1, 1]
    assert np.isnan(canary_roc(tensor([math.nan, 0.0]), tensor([True, False]))).all()


def test_canary_p_of_three_canaries():
    """The only one included scores highest. Of the six ways the coins can fall (not all alike), AUC is 1 in two: the
    first alone, and the first two. A hundred thousand flips have a deviation of .0015."""
    p = canary_p(tensor([3.0, 2.0, 1.0]), tensor([True, False, False]), np.random.default_rng(0), 100_000)
    assert p == pytest.approx(1 / 3, abs=0.006)


def test_canary_p_is_uniform_without_leakage_and_small_with_it():
    rng = np.random.default_rng(1)
    values = []
    for _ in range(200):
        scores, coins = torch.from_numpy(rng.normal(size=60)), torch.from_numpy(rng.random(60) < 0.5)
        values.append(canary_p(scores, coins, rng, 499))
    assert kstest(values, "uniform").pvalue > 0.01
    assert canary_p(scores + 3 * coins, coins, rng, 499) == 1 / 500
    assert canary_p(scores - 3 * coins, coins, rng, 499) == 1.0


def test_canary_p_counts_ties():
    """Equal scores give an AUC of 1/2 whatever the coins, so every flip is at least as extreme."""
    assert canary_p(torch.zeros(9), torch.arange(9) < 4, np.random.default_rng(0), 99) == 1.0


def test_epsilon_of_a_hundred_right_guesses():
    """All right: P[Binomial(100, p) = 100] = p^100 = .05, so p = .05^(1/100) = .9705 and epsilon 3.49."""
    coins = torch.arange(100) % 2 == 0
    p = 0.05 ** (1 / 100)
    assert epsilon_bound(coins.double(), coins) == pytest.approx(math.log(p / (1 - p)))
    assert epsilon_bound(coins.double(), coins) == pytest.approx(3.49, abs=0.01)
    assert epsilon_bound(-coins.double(), coins) == 0.0  # all wrong
    assert epsilon_bound(torch.arange(100.0), coins) == 0.0  # half right


def test_epsilon_with_abstention():
    """Coins from the highest score down: 1 1 0 1 0 0. Four guesses are all right (p^4 = .5 at confidence .5); of six,
    the third and fourth are wrong (at the bound, at least four of six right has probability .5). Of three, two are
    called included and one excluded, all right."""
    scores, coins = tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]), tensor([True, True, False, True, False, False])
    p = 0.5**0.25
    assert epsilon_bound(scores, coins, confidence=0.5, guesses=4) == pytest.approx(math.log(p / (1 - p)))
    epsilon = epsilon_bound(scores, coins, confidence=0.5)
    assert binom.sf(3, 6, 1 / (1 + math.exp(-epsilon))) == pytest.approx(0.5)
    p = 0.5 ** (1 / 3)
    assert epsilon_bound(scores, coins, confidence=0.5, guesses=3) == pytest.approx(math.log(p / (1 - p)))
    assert epsilon_bound(scores, coins) == 0.0


def test_epsilon_of_randomised_response_is_a_lower_bound():
    """Every coin is published, but a lie with probability 1 / (1 + e): epsilon is 1. At 95 %, of 300 bounds 15 may
    exceed it on average, and more than 28 with probability below .001."""
    rng = np.random.default_rng(2)
    bounds = []
    for _ in range(300):
        coins = rng.random(400) < 0.5
        said = coins ^ (rng.random(400) < 1 / (1 + math.e))
        bounds.append(epsilon_bound(torch.from_numpy(said.astype(float)), torch.from_numpy(coins)))
    assert sum(bound > 1 for bound in bounds) <= 28
    assert np.mean(bounds) > 0.6


def test_canaries_are_checked():
    scores, coins, rng = torch.zeros(4), torch.arange(4) < 2, np.random.default_rng(0)
    for call in (canary_auc, canary_roc, epsilon_bound, lambda s, c: canary_p(s, c, rng)):
        with pytest.raises(ValueError, match=r"shape \(4,\), coins \(3,\)"):
            call(scores, coins[:3])
        with pytest.raises(ValueError, match="torch.int64"):
            call(scores, coins.long())
    for call in (canary_auc, canary_roc, lambda s, c: canary_p(s, c, rng)):
        with pytest.raises(ValueError, match="4 members and 0"):
            call(scores, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="guesses=5"):
        epsilon_bound(scores, coins, guesses=5)
    with pytest.raises(ValueError, match="guesses=0"):
        epsilon_bound(scores, coins, guesses=0)
    with pytest.raises(ValueError, match="confidence=1.0"):
        epsilon_bound(scores, coins, confidence=1.0)
    with pytest.raises(ValueError, match="permutations=0"):
        canary_p(scores, coins, rng, 0)


def test_nan_canaries():
    scores, coins = tensor([math.nan, 1.0]), tensor([True, False])
    assert math.isnan(canary_auc(scores, coins))
    assert math.isnan(canary_p(scores, coins, np.random.default_rng(0), 9))
    assert math.isnan(epsilon_bound(scores, coins))


def test_attack_success():
    """True labels 0, 1, 1, 2, 1; target 0. Four are of other classes; of them the second is predicted as 0. A model
    with a NaN answer has no success, not one of 0."""
    logits = [[9.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 9.0, 0.0], [0.0, 9.0, 0.0]]
    assert math.isnan(attack_success(outputs([*logits[:4], [math.nan] * 3], [0, 1, 1, 2, 1]), 0))
    assert attack_success(outputs(logits, [0, 1, 1, 2, 1]), 0) == 0.25
    with pytest.raises(ValueError, match="other than the target 0"):
        attack_success(outputs(logits, [0] * 5), 0)
    with pytest.raises(ValueError, match="class 3 must"):
        attack_success(outputs(logits, [0, 1, 1, 2, 1]), 3)


def test_confusion_between():
    """Classes 0 and 2 have five examples: one right, two taken for one another, two for class 1. The example of class
    1 that is predicted as 2 does not count. Both numbers are NaN for a model with a NaN answer."""
    predicted, labels = [0, 2, 0, 1, 2, 1], [0, 0, 2, 2, 1]
    logits = [[9.0 if number == guess else 0.0 for number in range(3)] for guess in predicted]
    broken = confusion_between(outputs([*logits[:5], [math.nan] * 3], labels + [0]), 0, 2)
    assert math.isnan(broken["error"]) and math.isnan(broken["confused"])
    result = confusion_between(outputs(logits, labels + [0]), 0, 2)
    assert result == pytest.approx({"error": 4 / 5, "confused": 2 / 5})
    assert confusion_between(outputs(logits, labels + [0]), 2, 0) == result
    with pytest.raises(ValueError, match="same class"):
        confusion_between(outputs(logits, labels + [0]), 1, 1)
    with pytest.raises(ValueError, match="no example has label 0 or 2"):
        confusion_between(outputs(logits, [1] * 6), 0, 2)


def test_noise_is_measured_along_the_unit_gradient_in_its_own_deviations():
    """Noise (3, 4) of deviation 2 along gradients (1, 0), (0, 5), (3, 4) / 10: 3/2, 4/2 and 5/2. A gradient of length 0
    points nowhere."""
    noise = tensor([[3.0, 4.0]] * 4)
    gradients = tensor([[1.0, 0.0], [0.0, 5.0], [0.3, 0.4], [0.0, 0.0]])
    found = noise_alignment((noise * gradients).sum(1), gradients.norm(dim=1), 2.0)
    assert found.tolist() == pytest.approx([1.5, 2.0, 2.5, 0.0], abs=1e-6)
    assert noise_test(found) == pytest.approx({"alignment": 1.5, "p": norm.sf(3.0)})  # sqrt 4 times 1.5
    assert all(math.isnan(value) for value in noise_test(tensor([1.0, math.nan])).values())
    with pytest.raises(ValueError, match="deviation=0 must be above 0"):
        noise_alignment(tensor([1.0]), tensor([1.0]), 0)
    with pytest.raises(ValueError, match="no example carries noise"):
        noise_test(tensor([]))


def test_the_alignment_of_independent_noise_is_standard_normal():
    """Whatever the gradients are, and their p values are uniform: one common direction, and lengths of all sizes."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(400, 50, 64, generator=generator)
    gradients = (1 + torch.randn(50, 64, generator=generator)) * torch.logspace(-6, 3, 50)[:, None]
    aligned = noise_alignment((noise * gradients).sum(2).flatten(), gradients.norm(dim=1).repeat(400), 0.3)
    assert kstest(aligned.numpy(), norm.cdf).pvalue > 0.01
    p_values = [noise_test(one)["p"] for one in aligned.view(400, 50)]
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_what_one_step_of_training_leaves_of_the_noise():
    """A linear model of two classes at 0, after one step of gradient descent on (x + xi, y), has the margin gradient
    w_y - w_other = eta (x + xi), as both classes have probability 1/2: an alignment of <xi, x + xi> / (s |x + xi|)."""
    generator = torch.Generator().manual_seed(1)
    x, xi = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    weights = torch.zeros(2, 30, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy((weights @ (x + 0.5 * xi))[None], tensor([1])).backward()
    assert weights.grad is not None
    moved = weights.detach() - 0.1 * weights.grad
    gradient = moved[1] - moved[0]
    found = noise_alignment(torch.dot(0.5 * xi, gradient)[None], gradient.norm()[None], 0.5)
    seen = x + 0.5 * xi
    assert found.item() == pytest.approx((torch.dot(xi, seen) / seen.norm()).item())
    assert found.item() > 0
