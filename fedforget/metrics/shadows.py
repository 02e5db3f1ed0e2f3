"""Attacks that use the models of many seeds as shadows: U-LiRA, and lower bounds on epsilon over models.

Rows are models, columns are examples; what is attacked is the margin. Two questions are asked, and they are not one:

- *against the oracle*: was this model unlearned, or retrained without the data? Whoever trained otherwise than the
  oracle is found as well, an exact retrain that stopped early among them. The reference is A(R), the retrain (Ginart et
  al., NeurIPS 2019, arXiv 1907.05012).
- *by the coin*: had this unlearned model been trained on the candidate? A fair coin decided, so a method that leaves no
  trace of its candidates cannot be found, however it trains. The reference is the same method where the candidate was
  not in the data (as in Sekhari et al., NeurIPS 2021, arXiv 2103.03279).

Zeros are known without any oracle: accuracy and AUC expect 1/2 where both sides have one distribution, because a model
is scored by fits that saw no model of its seed. Margins that are not finite give NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from fedforget.metrics.leakage import epsilon_of_guesses
from fedforget.metrics.statistics import Interval, hierarchical_bootstrap

FEWEST = 16  # seeds below which Gaussians fitted to each example are noise
DELTA = 1e-5
VARIANCE = 1e-12  # least of a fitted Gaussian, nats^2: margins come from 32-bit logits and are not known better
FPR = 0.01
RESAMPLES = 400  # of the rate at that share of false positives, which takes more time than others
WORST = 10  # one in so many examples: the tenth that is told apart best


@dataclass(frozen=True)
class Attack:
    """What an attack on single examples achieved on held-out models.

    Args:
        accuracy: share of (model, example) pairs that are called rightly; 1/2 = a coin.
        auc: of the log-likelihood ratios of all pairs; 1/2 = a coin.
        tpr: share of pairs on the unlearned side above a threshold that 1 % of the others exceed; 0.01 = a coin.
        worst: accuracy on the tenth of the examples that is told apart best; see `ulira_attack`.
    """

    accuracy: Interval
    auc: Interval
    tpr: Interval
    worst: float


def ulira(margins: Tensor, unlearned: Tensor, seeds: Tensor) -> Tensor:
    """``log N(phi; "unlearned x") - log N(phi; "x never in")`` of each model and example, ``[N, n]``. Higher = more
    like a model that was trained on x and unlearned it; (-inf, inf), nats.

    Both Gaussians are those of the other seeds' models: a mean and an unbiased variance for each example and side.
    Source: Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy", 2024,
    arXiv 2403.01218; here the shadows are the models of a run, each held out in turn with all that shares its seed.

    Args:
        margins: ``[N, n]`` margins phi (log-odds) of N models on n examples.
        unlearned: ``[N, n]`` bool: the model was trained on the example and unlearned it; else it never held it.
        seeds: ``[N]`` int64; models of one seed share random numbers, and are left out together.

    Returns:
        float64; NaN where the other seeds have fewer than two models on a side, or a margin that is not finite.

    Raises:
        ValueError: if shapes differ, or there are fewer than `FEWEST` seeds.
    """
    if margins.ndim != 2 or unlearned.shape != margins.shape or seeds.shape != margins.shape[:1]:
        raise ValueError(
            f"margins have shape {tuple(margins.shape)}, unlearned {tuple(unlearned.shape)}, seeds "
            f"{tuple(seeds.shape)}; they must be (models, examples) twice, and (models,)"
        )
    different, place = seeds.unique(return_inverse=True)
    if len(different) < FEWEST:
        raise ValueError(
            f"U-LiRA fits two Gaussians to every example from the models of other seeds: {len(different)} seeds are "
            f"too few, use at least {FEWEST}"
        )
    phi = margins.double()
    likelihoods = []
    for side in (unlearned, ~unlearned):
        mean, variance = (fit[place] for fit in _left_out(phi, side, place, len(different)))
        likelihoods.append(-((phi - mean).square() / variance + variance.log()) / 2)
    return likelihoods[0] - likelihoods[1]


def ulira_attack(margins: Tensor, unlearned: Tensor, seeds: Tensor, rng: np.random.Generator) -> Attack:
    """Accuracy, AUC and true positive rate of `ulira` on held-out models, with 95 % intervals over seeds and examples.

    The rule is the likelihood ratio at 0, a tie counts half. For two Gaussians of one known deviation whose means are d
    deviations apart, accuracy tends to Phi(d / 2) and AUC to Phi(d / sqrt 2). The intervals resample whole seeds and
    whole examples (`fedforget.metrics.statistics.hierarchical_bootstrap`), that of the AUC by way of its influence
    function, that of the rate with the threshold chosen anew. They hold the fits fixed, whose folds overlap: of 150
    simulated runs of 64 seeds, 93 to 96 % of the intervals of accuracy and AUC covered the expected value.

    ``worst`` is cross-fitted, because the worst of many would be above 1/2 by chance: half of the seeds attack by
    themselves, choose the tenth of the examples that they tell apart best, and the other half, by itself, says how well
    these are told apart; then the halves change places. NaN if a half has fewer than `FEWEST` seeds.

    Args:
        margins: as for `ulira`; examples that cannot be fitted on both sides are left out.
        unlearned: as for `ulira`.
        seeds: as for `ulira`.
        rng: draws the resamples.

    Raises:
        ValueError: as `ulira`, and if no example can be attacked.
    """
    enough = _enough(unlearned, seeds)
    if not enough.any():
        raise ValueError("no example has two models on each side without any one seed; use more seeds")
    phi, side = margins[:, enough].double(), unlearned[:, enough]
    ratio = ulira(phi, side, seeds)
    if ratio.isnan().any():
        nothing = Interval(math.nan, math.nan, math.nan)
        return Attack(nothing, nothing, nothing, math.nan)
    member, scores = side.numpy(), ratio.numpy()
    influence = _auc(scores, member)
    place = seeds.unique(return_inverse=True)[1].numpy()
    accuracy, area = (
        hierarchical_bootstrap(_by_seed(values, place), rng) for values in (_right(ratio, side).numpy(), influence)
    )
    return Attack(accuracy, area, _tpr(scores, member, place, rng), _worst(phi, side, seeds))


def epsilon_of_errors(
    false_positives: int, negatives: int, false_negatives: int, positives: int, delta: float = DELTA,
    confidence: float = 0.95,
) -> float:  # fmt: skip
    """Lower bound on epsilon from the errors of one fixed test: ``max(log((1 - delta - FPR) / FNR), log((1 - delta -
    FNR) / FPR))`` at the upper Clopper-Pearson ends of both rates; [0, inf).

    Each end is one-sided at ``(1 + confidence) / 2``, so that both hold at once at ``confidence``. With N models on
    each side and no error at all the bound is 0.8, 1.6, 2.6 and 3.3 at N = 10, 20, 50 and 100: no data can show more.
    It only ever shows that epsilon is *larger*: 0 is no certificate.
    Source: Kairouz, Oh and Viswanath, ICML 2015, arXiv 1311.0776, for the region of error rates; Nasr et al. 2021,
    arXiv 2101.04535, for the bound.

    Args:
        false_positives: retrained models called unlearned.
        negatives: retrained models tested.
        false_negatives: unlearned models called retrained.
        positives: unlearned models tested.
        delta: of (epsilon, delta)-unlearning, in [0, 1).
        confidence: in (0, 1).

    Raises:
        ValueError: if a count is out of range, or ``delta`` or ``confidence`` is.
    """
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise ValueError(f"delta={delta} must lie in [0, 1) and confidence={confidence} in (0, 1)")
    if not (0 <= false_positives <= negatives and 0 <= false_negatives <= positives and min(negatives, positives) > 0):
        raise ValueError(
            f"{false_positives} of {negatives} and {false_negatives} of {positives} errors are not counts of errors"
        )
    high = [_highest(negatives, confidence)[false_positives], _highest(positives, confidence)[false_negatives]]
    return float(_epsilon(np.array(high[0]), np.array(high[1]), delta))


def epsilon_over_models(unlearned: Tensor, retrained: Tensor, delta: float = DELTA, confidence: float = 0.95) -> float:
    """Lower bound, at this confidence, on the epsilon of (epsilon, delta)-unlearning against the oracle. Higher = more
    shown against the method; [0, inf) or NaN; 0 = nothing shown, which is no certificate.

    The first half of the seeds makes two tests: the sum over examples of the likelihood ratios of `ulira`, and the
    ratio of the one example that it tells apart best; each gets the threshold of the largest bound on
    that half, where ratios are of held-out models. The second half is then touched by these two tests only, whatever
    the number of examples: each at half the error (Bonferroni), by `epsilon_of_errors`, and the larger bound counts.

    Args:
        unlearned: ``[K, n]`` margins of the unlearned models, one a seed.
        retrained: ``[K, n]`` margins of the oracles of the same seeds, in the same order.
        delta: in [0, 1).
        confidence: in (0, 1).

    Raises:
        ValueError: if the shapes differ, or there are fewer than twice `FEWEST` seeds.
    """
    if unlearned.shape != retrained.shape or unlearned.ndim != 2:
        raise ValueError(f"margins have shapes {tuple(unlearned.shape)}, {tuple(retrained.shape)}; they must be equal")
    half = _half(len(unlearned))
    sides = unlearned.double(), retrained.double()
    if not all(side.isfinite().all() for side in sides):
        return math.nan
    phi = torch.cat([side[:half] for side in sides])
    member = torch.arange(2 * half) < half
    whole = member[:, None].expand(phi.shape)
    chosen_by = ulira(phi, whole, torch.arange(half).repeat(2))
    tested = torch.stack([_ratio(phi, whole, side[half:]) for side in sides])  # [2, K - half, n]
    single, _ = _thresholds(chosen_by, half, delta, confidence)
    best = int(single.argmax())
    bounds = []
    for choose, test in (
        (chosen_by.sum(1, keepdim=True), tested.sum(2)),
        (chosen_by[:, best : best + 1], tested[:, :, best]),
    ):
        threshold = _thresholds(choose, half, delta, confidence)[1][0]
        missed = int((test[0] <= threshold).sum())
        accused = int((test[1] > threshold).sum())
        bounds.append(epsilon_of_errors(accused, test.shape[1], missed, test.shape[1], delta, 1 - (1 - confidence) / 2))
    return max(bounds)


def largest_epsilon(seeds: int, delta: float = DELTA, confidence: float = 0.95) -> float:
    """The most that `epsilon_over_models` can show with so many seeds: its bound where no model is called wrongly."""
    tested = seeds - _half(seeds)
    return epsilon_of_errors(0, tested, 0, tested, delta, 1 - (1 - confidence) / 2)


def epsilon_by_coin(margins: Tensor, included: Tensor, confidence: float = 0.95) -> float:
    """Lower bound, at this confidence, on the epsilon of the whole pipeline (learning, then unlearning) towards one
    candidate, delta = 0. Higher = more leakage; [0, inf) or NaN; 0 = nothing shown, which is no certificate.

    Gaussians for each candidate and coin come from the first half of the seeds. In every model of the second half a
    candidate is called included where the likelihood ratio is above 0, else excluded. Whatever is called, under epsilon
    the number of right calls of one model is stochastically at most Binomial(m, e^eps / (1 + e^eps)) (Steinke, Nasr and
    Jagielski, NeurIPS 2023, arXiv 2305.08846), models are independent given the first half, and so the calls of all
    add up. One test, hence nothing to correct.

    Args:
        margins: ``[K, m]`` margins of unlearned models on all candidates, one a seed.
        included: ``[K, m]`` bool, the coins, fair and independent.
        confidence: in (0, 1).

    Raises:
        ValueError: if the shapes differ, or there are fewer than twice `FEWEST` seeds.
    """
    if margins.shape != included.shape or margins.ndim != 2:
        raise ValueError(
            f"margins have shape {tuple(margins.shape)}, coins {tuple(included.shape)}; they must be equal"
        )
    half = _half(len(margins))
    if not margins.isfinite().all():
        return math.nan
    usable = _enough(included[:half], torch.arange(half))
    phi, coins = margins[:, usable].double(), included[:, usable]
    if not phi.shape[1]:
        return 0.0
    ratios = _ratio(phi[:half], coins[:half], phi[half:])
    right = (ratios > 0) == coins[half:]
    return epsilon_of_guesses(int(right.sum()), right.numel(), confidence)


# ---------------------------------------------------------------------- parts


def _half(seeds: int) -> int:
    if seeds < 2 * FEWEST:
        raise ValueError(
            f"a bound on epsilon chooses its tests on one half of the seeds and makes them on the other: {seeds} seeds "
            f"are too few, use at least {2 * FEWEST}"
        )
    return seeds // 2


def _enough(unlearned: Tensor, seeds: Tensor) -> Tensor:
    """``[n]``: whether each example has two models a side when any one seed is left out."""
    different, place = seeds.unique(return_inverse=True)
    enough = torch.ones(unlearned.shape[1], dtype=torch.bool)
    for side in (unlearned, ~unlearned):
        own = torch.zeros(len(different), side.shape[1]).index_add_(0, place, side.float())
        enough &= (own.sum(0) - own).amin(0) >= 2
    return enough


def _left_out(phi: Tensor, side: Tensor, place: Tensor, seeds: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of a side's margins without each seed, ``[seeds, n]`` each; NaN below two models."""
    centre = phi.where(side, 0.0).sum(0) / side.sum(0).clamp(min=1)
    weight = side.double()
    centred = (phi - centre).where(side, 0.0)  # else squares of large margins would swallow their differences

    def without(values: Tensor) -> Tensor:
        own = torch.zeros(seeds, values.shape[1], dtype=torch.float64).index_add_(0, place, values)
        return own.sum(0) - own

    count, first, second = without(weight), without(centred), without(centred.square())
    mean = first / count
    variance = (second - count * mean.square()) / (count - 1).where(count > 1, torch.nan)
    return mean + centre, variance.clamp(min=VARIANCE)


def _ratio(shadows: Tensor, unlearned: Tensor, phi: Tensor) -> Tensor:
    """The log-likelihood ratios of other models' margins ``[L, n]``, Gaussians fitted to all ``shadows [N, n]``."""
    likelihoods = []
    for side in (unlearned, ~unlearned):
        nobody = torch.ones(len(shadows), dtype=torch.int64)  # the one seed left out is that of none
        mean, variance = (fit[0] for fit in _left_out(shadows, side, nobody, 2))
        likelihoods.append(-((phi - mean).square() / variance + variance.log()) / 2)
    return likelihoods[0] - likelihoods[1]


def _right(ratio: Tensor, unlearned: Tensor) -> Tensor:
    """Whether each pair is called rightly; a tie counts half."""
    sign = ratio.sign() * torch.where(unlearned, 1.0, -1.0)
    return (1 + sign) / 2


def _by_seed(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Means over the models of each seed, ``[seeds, n]``."""
    sums = np.zeros((place.max() + 1, values.shape[1]))
    np.add.at(sums, place, values)
    return sums / np.bincount(place)[:, None]


def _tpr(scores: np.ndarray, member: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> Interval:
    """Share of members above the lowest threshold that at most `FPR` of the others exceed, with its interval."""
    sides = []
    for side in (member, ~member):
        falling = np.argsort(-scores[side], kind="stable")
        model, example = (index[falling] for index in np.nonzero(side))
        sides.append((-scores[side][falling], place[model], example))
    (inside, *of_member), (outside, *of_other) = sides

    def share(seeds: np.ndarray, examples: np.ndarray) -> float:
        weight = (seeds[of_other[0]] * examples[of_other[1]]).cumsum()
        threshold = outside[np.searchsorted(weight, FPR * weight[-1], side="right")]
        weight = np.append(0, (seeds[of_member[0]] * examples[of_member[1]]).cumsum())
        return float(weight[np.searchsorted(inside, threshold, side="left")] / weight[-1])

    counts = place.max() + 1, scores.shape[1]
    drawn = [share(*(rng.multinomial(size, [1 / size] * size) for size in counts)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(share(*(np.ones(size) for size in counts)), float(low), float(high))


def _auc(scores: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Numbers ``[N, n]`` whose mean is the AUC over all pairs, and whose spread is that of its influence function.

    A member's placement is the share of the others below it, ties half (DeLong et al. 1988).
    """
    inside, outside = int(member.sum()), int((~member).sum())
    ranks = scipy.stats.rankdata(scores, axis=None).reshape(scores.shape)
    placements = np.empty(scores.shape)
    placements[member] = (ranks[member] - scipy.stats.rankdata(scores[member])) / outside
    placements[~member] = 1 - (ranks[~member] - scipy.stats.rankdata(scores[~member])) / inside
    auc = float(placements[member].mean())
    share = np.where(member, inside, outside) / member.size
    return auc + (placements - auc) / share


def _worst(phi: Tensor, side: Tensor, seeds: Tensor) -> float:
    """Cross-fitted accuracy on the tenth of the examples that is told apart best."""
    different = seeds.unique()
    halves = [torch.isin(seeds, different[start::2]) for start in (0, 1)]
    if len(different) < 2 * FEWEST or not all(_enough(side[of], seeds[of]).all() for of in halves):
        return math.nan
    rights = []
    for of in halves:
        member = side[of]
        rights.append(_right(ulira(phi[of], member, seeds[of]), member).mean(0))
    most = -(-len(rights[0]) // WORST)
    found = [scored[chosen.topk(most).indices].mean() for chosen, scored in (rights, rights[::-1])]
    return float(torch.stack(found).mean())


def _highest(number: int, confidence: float) -> np.ndarray:
    """Upper Clopper-Pearson ends ``[number + 1]`` of a rate by its count, one-sided at ``(1 + confidence) / 2``."""
    ends = scipy.stats.beta.ppf((1 + confidence) / 2, np.arange(1, number + 1), np.arange(number, 0, -1))
    return np.append(ends, 1.0)


def _epsilon(fpr: np.ndarray, fnr: np.ndarray, delta: float) -> np.ndarray:
    top = np.maximum((1 - delta - fpr) / fnr, (1 - delta - fnr) / fpr)
    return np.log(np.maximum(top, 1.0))


def _thresholds(scores: Tensor, half: int, delta: float, confidence: float) -> tuple[Tensor, Tensor]:
    """For each example the largest bound of any threshold, and that threshold; of ``[2 half, n]``, unlearned first."""
    rising, order = scores.sort(0)
    member = order < half
    missed = member.cumsum(0)  # unlearned ones at or below the threshold
    accused = half - (~member).cumsum(0)
    high = _highest(half, confidence)
    bounds = torch.from_numpy(_epsilon(high[accused.numpy()], high[missed.numpy()], delta))
    # Between equal scores there is no threshold; the last one is above all, and calls nobody unlearned.
    possible = torch.cat([rising[1:] > rising[:-1], torch.ones(1, scores.shape[1], dtype=torch.bool)])
    best = bounds.where(possible, -1.0).max(0)
    above = torch.cat([rising[1:], rising[-1:]])
    middle = (rising + above) / 2
    return best.values, middle.gather(0, best.indices[None])[0]
