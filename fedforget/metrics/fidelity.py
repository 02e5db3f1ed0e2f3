"""Fidelity: how far unlearned models are from retrained ones, in predictions, in distribution and in weights.

Fidelity is not leakage: an exact retrain that stopped early leaks nothing and still differs from the oracle. The ideal
of every number here is what an oracle scores against oracles of other seeds, which is rarely its best value. A model
whose logits are NaN gets NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy
import torch
from torch import Tensor

from fedforget.metrics.outputs import Outputs
from fedforget.params import Params

DELTA = 1e-5  # of the forgetting score, as are the next five
CAP = 50.0  # the largest epsilon
LIMIT = -math.log(1e-45)  # its margins are log-odds of probabilities to which 1e-45 was added
PER_UNIT = 100  # thresholds on an interval of length 1
BUFFER = 2.0  # how far the two thresholds stray from the range of the narrower sample
BIN = 0.5  # width of an epsilon bin


def disagreement(model: Outputs, references: Sequence[Outputs]) -> float:
    """Prediction churn: share of examples given another class than by a reference, averaged. Lower = closer; [0, 1].

    NaN if a logit of either is not finite. Two oracles disagree as well, so read it beside their value. Source: churn
    is that of Milani Fard et al., NeurIPS 2016.

    Args:
        model: the unlearned model's outputs on n examples.
        references: those of oracles of other seeds on the same examples in the same order.

    Raises:
        ValueError: if there is no reference, or one has other examples.
    """
    _check_aligned(model, references)
    if not all(other.finite for other in references):
        return math.nan
    return model.share(model.predicted != torch.stack([other.predicted for other in references]))


def js_divergence(model: Outputs, references: Sequence[Outputs]) -> float:
    """Jensen-Shannon divergence of the predicted distributions, averaged. Lower = closer; [0, ln 2], nats.

    ``(KL(p || m) + KL(q || m)) / 2`` with ``m = (p + q) / 2``, the mean over references and examples.
    Source: Lin, "Divergence measures based on the Shannon entropy", 1991.

    Args:
        model: the unlearned model's outputs on n examples.
        references: those of oracles of other seeds on the same examples in the same order.

    Raises:
        ValueError: if there is no reference, or one has other examples.
    """
    _check_aligned(model, references)
    p = model.probabilities.numpy()
    q = np.stack([other.probabilities.numpy() for other in references])
    # 4 JS = sum 2p log(2p / (p + q)) + 2q log(2q / (p + q)): a halved m could underflow to 0
    divergence = (scipy.special.rel_entr(2 * p, p + q) + scipy.special.rel_entr(2 * q, p + q)).sum(-1) / 4
    return float(np.maximum(divergence, 0).mean())  # rounding can take it below 0 by 1e-17


def activation_distance(model: Outputs, references: Sequence[Outputs]) -> float:
    """Mean over references and examples of ``||p_U - p_O||_2``. Lower = closer; [0, sqrt 2].

    Source: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023, arXiv 2205.08096, on the forget set.

    Args:
        model: the unlearned model's outputs on n examples.
        references: those of oracles of other seeds on the same examples in the same order.

    Raises:
        ValueError: if there is no reference, or one has other examples.
    """
    _check_aligned(model, references)
    p = model.probabilities
    return torch.stack([(p - other.probabilities).norm(dim=1) for other in references]).mean().item()


def calibration_error(outputs: Outputs, bins: int = 15) -> float:
    """Expected calibration error: mean of |accuracy - confidence| over bins of confidence, weighted by their size.

    Lower = confidences mean what they say; [0, 1]. Its ideal is the oracle's. Source: Guo et al. 2017, arXiv
    1706.04599. A bin holds its lower edge. torchmetrics, which takes longer to import than a run takes to be audited,
    is what the tests compare with.

    Args:
        outputs: a model's outputs.
        bins: bins of equal width of the confidence, the largest probability.
    """
    probabilities = outputs.probabilities
    if probabilities.isnan().any():
        return math.nan
    confidence, predicted = probabilities.max(1)
    surplus = (predicted == outputs.labels).double() - confidence
    places = np.digitize(confidence.numpy(), np.linspace(0, 1, bins + 1))
    return float(np.abs(np.bincount(places, surplus.numpy())).sum() / len(surplus))


def brier(outputs: Outputs) -> float:
    """Mean over examples of ``sum_c (p_c - [c = y])^2``. Lower = better calibrated and sharper; [0, 2].

    Its ideal is the oracle's. Source: Brier 1950.
    """
    probabilities = outputs.probabilities
    truth = torch.nn.functional.one_hot(outputs.labels, probabilities.shape[1])
    return (probabilities - truth).square().sum(1).mean().item()


def tug_of_war(gaps: Sequence[float]) -> float:
    """Product over forget, retain and test of ``1 - |accuracy gap|``. Higher = closer; [0, 1].

    Source: Zhao et al., "What makes unlearning hard and what to do about it" (RUM), NeurIPS 2024, arXiv 2406.01257.
    It cannot see leakage, and an oracle against another oracle does not reach 1.

    Args:
        gaps: accuracy of the unlearned model minus that of the oracle of its seed, on each of the three sets.
    """
    return math.prod(1 - abs(gap) for gap in gaps)


def average_gap(gaps: Sequence[float], attack: float) -> float:
    """Mean of |gap| over unlearning, retain and test accuracy and the attack's efficacy. Lower = closer; [0, 1].

    Unlearning accuracy is 1 - accuracy on the forget set. Source: Fan et al., SalUn, ICLR 2024, arXiv 2310.12508. Good
    utility can hide leakage in this average.

    Args:
        gaps: as for `tug_of_war`.
        attack: MIA-efficacy, the share of the forget set called non-member, on the unlearned model minus on the oracle.
    """
    return (sum(map(abs, gaps)) + abs(attack)) / (len(gaps) + 1)


def energy_distance(u: Tensor, o: Tensor) -> Tensor:
    """Unbiased energy distance of two samples of margins, example by example, ``[n]``. Lower = closer; (-inf, inf).

    ``2 E|u - o| - E|u - u'| - E|o - o'|``, in the margins' unit, with pairs of *different* models only: its mean is 0
    where both sides have one distribution, at any number of models, so it falls below 0 about half the time.
    Source: Szekely and Rizzo 2013, doi 10.1016/j.jspi.2013.03.018, in its U-statistic form. Margins that are not finite
    give NaN.

    Args:
        u: ``[K, n]`` margins of K >= 2 unlearned models.
        o: ``[L, n]`` margins of L >= 2 oracles on the same examples.

    Raises:
        ValueError: if the examples differ or a side has fewer than two models.
    """
    u, o = _sides(u, o)

    def within(side: Tensor) -> Tensor:
        return (side[:, None] - side).abs().sum((0, 1)) / (len(side) * (len(side) - 1))

    return 2 * (u[:, None] - o).abs().mean((0, 1)) - within(u) - within(o)


def jackknifed_distance(u: Tensor, o: Tensor) -> tuple[float, list[float]]:
    """The mean over examples of `energy_distance`, and the same without each seed in turn, of both sides.

    Args:
        u: ``[K, n]`` margins of K >= 2 unlearned models.
        o: ``[K, n]`` margins of the oracles of the same seeds, in the same order.

    Returns:
        The distance, and K distances of K - 1 seeds; none for K = 2.

    Raises:
        ValueError: if the shapes differ or there are fewer than two seeds.
    """
    u, o = _sides(u, o)
    seeds, examples = u.shape
    if len(o) != seeds:
        raise ValueError(f"there are {seeds} unlearned models and {len(o)} oracles; give one of each seed")
    across = _cityblock(u, o) / examples
    within = (_cityblock(u, u) + _cityblock(o, o)) / examples

    def mean(kept: int, lost: np.ndarray) -> np.ndarray:
        """Of ``kept`` seeds; ``lost [2, ...]`` are the sums that the others are part of."""
        between, inside = np.array([across.sum(), within.sum()])[:, None] - lost
        return 2 * between / kept**2 - inside / (kept * (kept - 1))

    of_seed = np.array([table.sum(0) + table.sum(1) - table.diagonal() for table in (across, within)])
    left_out = mean(seeds - 1, of_seed).tolist() if seeds > 2 else []
    return float(mean(seeds, np.zeros((2, 1)))[0]), left_out


@dataclass(frozen=True)
class EnergyTest:
    """What `energy_test` found.

    Args:
        statistic: mean over examples of `energy_distance`.
        p: one-sided p-value; small = the two sides have different distributions.
        worst_decile: mean of `energy_distance` over the tenth of the examples with the largest; positive even for a
            perfect method, since the worst are picked, so read it beside that of oracles against oracles.
    """

    statistic: float
    p: float
    worst_decile: float


def energy_test(u: Tensor, o: Tensor, rng: np.random.Generator, permutations: int = 5000) -> EnergyTest:
    """Do unlearned models and oracles have the same distribution of margins? Permutation test of the energy distance.

    Whole *models* change sides, never examples: the examples of one model are dependent. The test is exact: all splits
    are enumerated where there are at most ``permutations``; else that many are drawn and ``p = (1 + c) / (1 + B)``.

    No p can be smaller than 1 / comb(K + L, K), and with K = L than twice that, since exchanging the sides changes
    nothing: 2 / 20 for K = 3, which therefore can show nothing at 5 %, 2 / 70 for K = 4, 2 / 252 for K = 5. Use K >= 5.
    Margins that are not finite give NaN throughout.

    Args:
        u: ``[K, n]`` margins of K >= 2 unlearned models, trained from different seeds.
        o: ``[L, n]`` margins of L >= 2 oracles on the same examples, of seeds other than those of ``u`` (paired
            seeds share their random numbers, and then models may not be exchanged).
        rng: draws the splits, where they are not enumerated.
        permutations: number of splits up to which all are tried, and else the number drawn.

    Raises:
        ValueError: if the examples differ, a side has fewer than two models, or ``permutations`` is not positive.
    """
    if permutations < 1:
        raise ValueError(f"permutations={permutations} must be at least 1")
    per_example = energy_distance(u, o)
    if per_example.isnan().any():
        return EnergyTest(math.nan, math.nan, math.nan)
    u, o = _sides(u, o)
    models = torch.cat([u, o]).numpy()
    distances = _cityblock(models, models) / models.shape[1]  # mean over the examples

    def statistics(side: np.ndarray) -> np.ndarray:
        """The statistic of each split; rows of ``side [splits, K + L]`` are 1 for a model of the first side."""
        other = 1 - side
        first, second = side @ distances, other @ distances
        within = (first * side).sum(1) / (len(u) * (len(u) - 1)) + (second * other).sum(1) / (len(o) * (len(o) - 1))
        return 2 * (first * other).sum(1) / (len(u) * len(o)) - within

    actual = np.repeat([[1.0, 0.0]], [len(u), len(o)], axis=1)
    # Splits that tie in exact arithmetic, such as the mirror image, must not be lost to rounding.
    reached = statistics(actual) - 1e-12 * distances.max()
    if math.comb(len(models), len(u)) <= permutations:
        chosen = np.array(list(combinations(range(len(models)), len(u))))
        sides = np.zeros((len(chosen), len(models)))
        np.put_along_axis(sides, chosen, 1.0, axis=1)
        p = np.mean(statistics(sides) >= reached)
    else:
        sides = rng.permuted(np.repeat(actual, permutations, axis=0), axis=1)
        p = (1 + np.sum(statistics(sides) >= reached)) / (1 + permutations)
    worst = per_example.topk(math.ceil(len(per_example) / 10)).values
    return EnergyTest(per_example.mean().item(), float(p), worst.mean().item())


@dataclass(frozen=True)
class Relative:
    """What `relative_test` found.

    Args:
        closer: ``"oracle"``, ``"original"`` or ``"unresolved"``.
        difference: distance to the originals minus distance to the oracles; above 0 = closer to the oracles.
        p: two-sided; small = it is closer to one of the two. NaN where it could not be done.
    """

    closer: str
    difference: float
    p: float


def relative_test(u: Tensor, o: Tensor, m: Tensor, alpha: float = 0.05) -> Relative:
    """Are the unlearned models closer to the oracles than to the originals? The three-sample test of relative fit.

    ``T = ED(U, M) - ED(U, O)``, ED the mean over examples of `energy_distance`. A two-sample test flags any difference
    from the oracle, a harmless one too; this asks the easier question which of two references is nearer, and none may
    be: ``"unresolved"``. Models are paired by seed, so whole seeds are left out one by one; T over the jackknife's
    standard error is compared with Student's t of K - 1 degrees of freedom. Where that error is 0, the sign decides. It
    is conservative: in simulations a U half-way between M and O was called closer to one of them in 2 to 4.5 % of 2000
    runs at 5 seeds, and a U like O with M two standard deviations away was called closer to O in 62 %.
    Source: Bounliphone et al., "A Test of Relative Similarity for Model Selection in Generative Models", ICLR 2016,
    arXiv 1511.04581, with their maximum mean discrepancy; the energy distance is that of the kernel -|x - y|
    (Sejdinovic et al. 2013, arXiv 1207.6076). The jackknife in the place of their normal limit is this project's.

    Args:
        u: ``[K, n]`` margins of the unlearned models.
        o: ``[K, n]`` margins of the oracles of the same seeds, in the same order.
        m: ``[K, n]`` margins of the originals of these seeds.
        alpha: level of the test.

    Raises:
        ValueError: if the shapes differ or there are fewer than three seeds.
    """
    if u.ndim != 2 or not u.shape == o.shape == m.shape or len(u) < 3:
        raise ValueError(
            f"margins have shapes {tuple(u.shape)}, {tuple(o.shape)} and {tuple(m.shape)}; they must be equal, "
            "(seeds, examples), with at least 3 seeds"
        )
    if not all(side.isfinite().all() for side in (u, o, m)):
        return Relative("unresolved", math.nan, math.nan)
    sides = [side.double().numpy() for side in (u, o, m)]
    seeds = len(u)
    distances = np.array([[_cityblock(a, b) for b in sides] for a in sides]) / u.shape[1]  # [3, 3, K, K]

    def difference(kept: int, lost: np.ndarray) -> np.ndarray:
        """T of ``kept`` seeds, ``lost`` the sums that the others are part of; E|u - u'| cancels."""
        (_, to_oracle, to_original), (_, oracles, _), (_, _, originals) = distances.sum((2, 3))[..., None] - lost
        return 2 * (to_original - to_oracle) / kept**2 + (oracles - originals) / (kept * (kept - 1))

    found = float(difference(seeds, np.zeros((3, 3, 1)))[0])
    of_seed = distances.sum(2) + distances.sum(3) - distances.diagonal(axis1=2, axis2=3)  # [3, 3, K]
    left_out = difference(seeds - 1, of_seed)
    error = math.sqrt((seeds - 1) / seeds * ((left_out - left_out.mean()) ** 2).sum())
    if error <= 1e-12 * distances.max():
        p = 0.0 if found else 1.0
    else:
        p = 2 * float(scipy.stats.t.sf(abs(found) / error, seeds - 1))
    return Relative("unresolved" if p >= alpha else "oracle" if found > 0 else "original", found, p)


def spread(oracles: Sequence[Params]) -> float:
    """``mean ||w_Oi - w_Oj||`` over pairs of at least two oracles: the unit of `weight_distance`; [0, inf).

    Raises:
        ValueError: if there are fewer than two oracles.
    """
    if len(oracles) < 2:
        raise ValueError(f"a distance between oracles needs at least 2 of them, not {len(oracles)}")
    return float(np.mean([(first.double() - second.double()).norm() for first, second in combinations(oracles, 2)]))


def weight_distance(model: Params, oracle: Params, unit: float) -> float:
    """``||w_U - w_O|| / mean ||w_Oi - w_Oj||``: distance to the oracle in units of that between oracles; [0, inf).

    Lower = closer, 1 = as far as another oracle. A diagnostic only, never a verdict: equal functions can lie far apart
    (permuted neurons), so it means something only for a model and an oracle with the same initial weights and random
    streams. NaN where the oracles are equal. Source: this project's; the numerator is the verification error of Thudi
    et al. 2022, arXiv 2109.13398.

    Args:
        model: the unlearned model.
        oracle: the oracle of its seed.
        unit: `spread` of the oracles.
    """
    return (model.double() - oracle.double()).norm() / unit if unit else math.nan


def forgetting_score(unlearned: Tensor, retrained: Tensor) -> float:
    """F of the NeurIPS 2023 unlearning competition. Higher = closer; [0, 1]. For comparability only.

    Per example, every threshold rule that tells the two samples apart has an ``epsilon = max(log(1 - delta - FPR) -
    log FNR, log(1 - delta - FNR) - log FPR)``, delta = 1e-5, clipped to [0, 50]; 50 where FPR = FNR = 0, and a rule
    with exactly one of them 0 does not count. The example's epsilon is the largest: over single thresholds ("above" =
    the side of larger median) and over intervals ("inside" = the side of smaller range), 100 thresholds a unit. It is
    50 where one range is below 1 % of the other. Epsilons in [0, 0.5) earn 1, in [0.5, 1) earn 1/2, and so on up to
    ``ceil(ln(N - 1))``, beyond which they earn 0; F is the mean.

    The largest of many noisy rules is biased: two sets of equal Gaussians score about 0.2, not 1, and the value changes
    with N, so divide it by theirs at the same N. Source: Triantafillou et al. 2024, arXiv 2406.09073, and its code
    (github.com/google-deepmind/unlearning_evaluation). An example on which no rule counts has epsilon 0; NaN margins
    give NaN.

    Args:
        unlearned: ``[N, n]`` margins of N >= 3 unlearned models on the n examples to forget.
        retrained: ``[N, n]`` margins of as many retrained models.

    Raises:
        ValueError: if the shapes differ or there are fewer than three models a side.
    """
    if unlearned.ndim != 2 or unlearned.shape != retrained.shape or len(unlearned) < 3:
        raise ValueError(
            f"margins have shapes {tuple(unlearned.shape)} and {tuple(retrained.shape)}; "
            "they must be (models, examples), equal, and have at least 3 models"
        )
    if unlearned.isnan().any() or retrained.isnan().any():
        return math.nan
    # One row an example, sorted.
    u, r = (np.sort(side.double().clamp(-LIMIT, LIMIT).numpy().T) for side in (unlearned, retrained))
    table = _epsilons(len(unlearned))
    epsilons = np.array([_epsilon(*pair, table) for pair in zip(u, r, strict=True)])
    end = math.ceil(math.log(len(unlearned) - 1))
    return float(np.where(epsilons < end, 0.5 ** np.floor(epsilons / BIN), 0).mean())


def _epsilons(models: int) -> np.ndarray:
    """Epsilon of a rule by its number of false positives (row) and of false negatives (column), 0 to ``models``."""
    table = np.zeros((models + 1, models + 1))  # one of them 0 does not count: 0, for no maximum is below that
    rates = np.arange(1, models + 1) / models
    one_way = np.log(np.maximum(1 - DELTA - rates, DELTA))[:, None] - np.log(rates)  # where cut, it is below 0 anyway
    table[1:, 1:] = np.maximum(one_way, one_way.T).clip(0, CAP)
    table[0, 0] = CAP
    return table


def _epsilon(unlearned: np.ndarray, retrained: np.ndarray, table: np.ndarray) -> float:
    """The largest epsilon over all rules, of two sorted samples ``[N]``."""
    higher = np.median(retrained) > np.median(unlearned)
    positive, negative = (retrained, unlearned) if higher else (unlearned, retrained)
    inner, outer = (positive, negative) if np.ptp(positive) < np.ptp(negative) else (negative, positive)
    width = np.ptp(inner)
    if width < 0.01 * np.ptp(outer):
        return CAP

    low, high = min(positive[0], negative[0]), max(positive[-1], negative[-1])
    thresholds = np.linspace(low, high, math.ceil((high - low) * PER_UNIT))
    missed = np.searchsorted(positive, thresholds)  # how many are below
    alarms = len(negative) - np.searchsorted(negative, thresholds)
    single = table[alarms, missed]

    steps = np.linspace(-BUFFER, BUFFER, int(2 * BUFFER * PER_UNIT))
    right = (inner[-1] + steps)[:, None]
    left = right - width + steps

    def inside(side: np.ndarray) -> np.ndarray:
        return np.maximum(np.searchsorted(side, right, "right") - np.searchsorted(side, left), 0)

    double = table[inside(outer), len(inner) - inside(inner)]
    return max(single.max(initial=0), double.max())


def _check_aligned(model: Outputs, references: Sequence[Outputs]) -> None:
    if not references:
        raise ValueError("there is no reference to compare with; give at least one oracle's outputs")
    for other in references:
        if other.logits.shape != model.logits.shape or not torch.equal(other.labels, model.labels):
            raise ValueError(
                f"a reference has logits of shape {tuple(other.logits.shape)}, the model {tuple(model.logits.shape)}; "
                "both must answer the same examples, with the same labels, in the same order"
            )


def _sides(u: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, of matching shapes."""
    shapes = tuple(u.shape), tuple(o.shape)
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][1] != shapes[1][1] or min(len(u), len(o)) < 2:
        raise ValueError(
            f"margins have shapes {shapes[0]} and {shapes[1]}; they must be (models, examples), "
            "with the same examples and at least 2 models each"
        )
    return u.double(), o.double()


def _cityblock(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> np.ndarray:
    """The sums of absolute differences of the rows of ``a [K, n]`` and ``b [L, n]``, ``[K, L]``."""
    return scipy.spatial.distance.cdist(a, b, "cityblock")
