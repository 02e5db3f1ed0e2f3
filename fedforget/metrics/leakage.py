"""Leakage: can an attacker who sees the model's outputs tell which examples it was trained on?

Every attack score here is higher for an example that looks more like a member. No figure has an ideal value of its own:
the ideal is the oracle's, and 1/2 is the ideal AUC only where members and non-members are exchangeable by construction
(the coin flips of the canary audit, and in expectation the owner's holdout). Both sides of the ideal count: an AUC far
below the oracle's also reveals what was forgotten.

A score that is NaN has no place in a ranking, so a model that answers NaN gets NaN figures, not an error; infinite
scores are ranked like any other. All is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from fedforget.metrics.outputs import Outputs, margins

NEWTON_STEPS = 100  # far more than a logistic regression of five scores takes
FEW = 16  # references below which a standard deviation per example is noise


class Interval(NamedTuple):
    """A share and its 95 % confidence interval, all in [0, 1], or all NaN."""

    value: float
    low: float
    high: float


def confidence(outputs: Outputs) -> Tensor:
    """``p_y`` of each example, ``[n]``. Higher = more like a member; [0, 1].

    Source: Salem et al. 2019, arXiv 1806.01246, and Song and Mittal 2021, arXiv 2003.10595.
    """
    return margins(outputs).sigmoid()


def entropy(outputs: Outputs) -> Tensor:
    """``-sum_i p_i log p_i`` of each example, ``[n]``. Lower = more like a member; [0, log classes], nats.

    It does not look at the label. Source: as for `confidence`.
    """
    return torch.special.entr(outputs.probabilities).sum(1)


def modified_entropy(outputs: Outputs) -> Tensor:
    """``-(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i)``, ``[n]``. Lower = more like a member; [0, inf), nats.

    Unlike `entropy` it is large for a confident wrong answer. Source: Song and Mittal, "Systematic Evaluation of
    Privacy Risks of Machine Learning Models", USENIX Security 2021, arXiv 2003.10595.
    """
    log_p, p = outputs.log_probabilities, outputs.probabilities
    # Only the largest p_i can be near 1, where 1 - p_i cancels; its complement is summed from the other classes.
    top = log_p.argmax(1, keepdim=True)
    complement = log_p.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    log_rest = torch.log1p(-p).scatter(1, top, complement)
    others = (p * log_rest).scatter(1, outputs.labels.unsqueeze(1), 0.0).sum(1)
    return -(-margins(outputs)).sigmoid() * _log_confidence(outputs) - others


# Attack scores of each example, [n], higher = more like a member. The margin is the score of Carlini et al. 2022.
SCORES: dict[str, Callable[[Outputs], Tensor]] = {
    "loss": lambda outputs: _log_confidence(outputs),
    "confidence": confidence,
    "entropy": lambda outputs: -entropy(outputs),
    "modified_entropy": lambda outputs: -modified_entropy(outputs),
    "margin": margins,
}


@lru_cache(maxsize=16)  # by identity, which is all that a tensor's hash looks at: both kinds of attack need them
def _scores(outputs: Outputs) -> dict[str, Tensor]:
    """All of `SCORES`, not to be written to."""
    return {name: score(outputs) for name, score in SCORES.items()}


def auc(members: Tensor, non_members: Tensor) -> float:
    """``P[a member scores higher] + P[a tie] / 2``. Higher = more leakage, 1/2 = no better than a coin; [0, 1] or NaN.

    Source: the area under the ROC curve (Mann-Whitney).

    Args:
        members: ``[a]`` attack scores.
        non_members: ``[b]`` attack scores.

    Raises:
        ValueError: if either is empty.
    """
    scores = _together(members, non_members)
    if np.isnan(scores).any():
        return float("nan")
    # Counted, not integrated: scikit-learn's area of the curve is the same number, fifty times slower on few scores.
    mine, others = scores[: len(members)], np.sort(scores[len(members) :])
    twice = np.searchsorted(others, mine).sum() + np.searchsorted(others, mine, "right").sum()
    return float(twice / (2 * len(mine) * len(others)))


def tpr_at_fpr(members: Tensor, non_members: Tensor, fpr: float) -> Interval:
    """Largest share of members found by a threshold that accuses at most ``fpr`` of the non-members. Higher = more
    leakage, ``fpr`` = no better than a coin; [0, 1] or NaN.

    With n non-members the smallest false positive rate above 0 is ``1/n``, so fewer than ``1/fpr`` give NaN: at least
    100 are needed for 1 %, 1000 for 0.1 %, and about five times as many before the figure is stable. The interval
    (Clopper-Pearson, 95 %) takes the threshold as given, so it is too narrow where non-members are few.
    Source: Carlini et al. 2022, arXiv 2112.03570.

    Args:
        members: ``[a]`` attack scores.
        non_members: ``[b]`` attack scores.
        fpr: the false positive rate allowed, in (0, 1).

    Raises:
        ValueError: if either is empty, or ``fpr`` is outside (0, 1).
    """
    if not 0 < fpr < 1:
        raise ValueError(f"fpr={fpr} must lie between 0 and 1, exclusive")
    scores = _together(members, non_members)
    if np.isnan(scores).any() or len(non_members) < 1 / fpr:
        return Interval(float("nan"), float("nan"), float("nan"))
    # Whoever beats the highest-scoring non-member that must not be accused is accused, and nobody who ties with it.
    falling = np.sort(scores[len(members) :])[::-1]
    found = int((scores[: len(members)] > falling[math.floor(fpr * len(falling) + 1e-9)]).sum())
    interval = scipy.stats.binomtest(found, len(members)).proportion_ci(0.95, method="exact")
    return Interval(found / len(members), float(interval.low), float(interval.high))


def balanced_accuracy(members: Tensor, non_members: Tensor) -> float:
    """``(TPR + TNR) / 2`` at the best threshold. Higher = more leakage; [1/2, 1] or NaN.

    Optimistic: the threshold is chosen on the very examples it is judged by, so it exceeds 1/2 even by chance.
    Source: Song and Mittal 2021, arXiv 2003.10595.

    Args:
        members: ``[a]`` attack scores.
        non_members: ``[b]`` attack scores.

    Raises:
        ValueError: if either is empty.
    """
    scores = _together(members, non_members)
    if np.isnan(scores).any():
        return float("nan")
    missed, spared = (np.searchsorted(np.sort(side), scores) / len(side) for side in np.split(scores, [len(members)]))
    return float(max(0.5, (1 - missed + spared).max() / 2))


def matched_holdout(forget: Outputs, holdout: Outputs) -> dict[str, float]:
    """`auc` of every score of `SCORES`, forgotten examples against their owner's never-trained ones.

    Higher = more leakage; [0, 1] or NaN. Both sides come from one owner's distribution, so the oracle expects 1/2.
    Source: this project; the distribution shift it avoids is a pitfall shown by Tu, Hu
    and Ma 2024, arXiv 2404.11577.

    Raises:
        ValueError: if either is empty.
    """
    mine, others = _scores(forget), _scores(holdout)
    return {name: auc(mine[name], others[name]) for name in SCORES}


def population(retain: Outputs, test: Outputs, forget: Outputs) -> dict[str, float]:
    """ "MIA-efficacy": share of forgotten examples that an attack calls non-members, ``TN / |F|``; [0, 1] or NaN.

    What matters is the gap to the oracle's share, in either direction, not that it is high: forgotten and test data
    rarely have one distribution, and a destroyed model scores near 1. For each score of `SCORES`, the attack is the
    threshold of best balanced accuracy of retained examples (members) against test examples (non-members): it calls a
    member what scores at least as much, and nobody where no threshold beats a coin. ``"logistic"`` is a logistic
    regression on all five scores, standardised, L2 with C = 1, both classes of equal weight; it needs finite scores.
    Source: Jia et al. 2023, arXiv 2304.04934, and Fan et al. 2024 (SalUn), arXiv 2310.12508, for the share; thresholds
    as in Song and Mittal 2021, arXiv 2003.10595.

    Raises:
        ValueError: if one of the three is empty.
    """
    sizes = len(retain), len(test), len(forget)
    if not min(sizes):
        raise ValueError(f"retain, test and forget have {sizes} examples; the attack needs some of each")
    truth = np.arange(len(retain) + len(test)) < len(retain)
    sides = retain, test, forget
    everyone = Outputs(
        *(torch.cat([getattr(side, part) for side in sides]) for part in ("logits", "labels", "clients"))
    )
    shares, columns = {}, []
    for name, score in SCORES.items():
        scores = score(everyone).numpy()
        columns.append(scores)
        shares[name] = float("nan")
        if not np.isnan(scores).any():
            threshold = _best_threshold(truth, scores[: len(truth)])
            shares[name] = float((~(scores[len(truth) :] >= threshold)).mean())
    table = np.stack(columns, 1)
    shares["logistic"] = float("nan")
    if np.isfinite(table).all():
        known, asked = table[: len(truth)], table[len(truth) :]
        spread = known.std(0)
        spread[spread <= 1e-12 * np.abs(known).max(0)] = 1  # a score that is the same for all says nothing
        *weights, intercept = _logistic((known - known.mean(0)) / spread, truth)
        shares["logistic"] = float(((asked - known.mean(0)) / spread @ weights + intercept <= 0).mean())
    return shares


def lira(model: Outputs, references: Sequence[Outputs]) -> Tensor:
    """Offline LiRA: ``Phi((phi - mu_out) / sd_out)``, ``phi`` = margin, ``[n]``. Higher = more like a member; [0, 1]
    or NaN.

    ``mu_out`` is an example's mean margin over references that never saw it. With few references its own standard
    deviation is noise, so below 16 of them all examples share one, the root of the mean unbiased variance; from 16 on
    each has its own. The score rounds to exactly 1 beyond 8.3 standard deviations.
    Source: Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022, arXiv 2112.03570; sharing
    one deviation is theirs, the limit of 16 is this project's.

    Args:
        model: the audited model.
        references: oracles of other seeds on the same examples in the same order, at least two.

    Raises:
        ValueError: if there are fewer than two references, or they are of other examples.
    """
    out = torch.stack([margins(reference) for reference in _checked(model, references, least=2)])
    variance = out.var(0) if len(out) >= FEW else out.var(0).mean()
    # Equal references leave no deviation; an example at their mean then still scores 1/2, and others 0 or 1.
    deviation = variance.sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.special.ndtr((margins(model) - out.mean(0)) / deviation)


def rmia(
    model: Outputs,
    references: Sequence[Outputs],
    population: Outputs,
    population_references: Sequence[Outputs],
    a: float = 0.3,
) -> Tensor:
    """Offline RMIA: share of population examples z with ``ratio_x / ratio_z > 1``, ``[n]``. Higher = more like a
    member; [0, 1] or NaN.

    ``ratio_x = p_y(x) / p_x`` and ``p_x = ((1 + a) mean_out(x) + (1 - a)) / 2``, where ``mean_out`` is the references'
    mean ``p_y`` and ``a`` guesses how much members would raise it (1 = not at all). Where the model itself is the
    reference, examples like the population score about uniformly.
    Source: Zarifzadeh, Liu and Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML 2024,
    arXiv 2312.03262, with gamma = 1; there ``a`` is tuned on a second model.

    Args:
        model: the audited model on the examples x.
        references: oracles of other seeds on the same examples in the same order, at least one.
        population: the audited model on non-members z, of the distribution of x.
        population_references: the same oracles on the same z.
        a: in [0, 1].

    Raises:
        ValueError: if there is no reference, they are of other examples, their numbers differ, the population is empty
            or ``a`` is outside [0, 1].
    """
    if not 0 <= a <= 1:
        raise ValueError(f"a={a} must lie in [0, 1]")
    if len(references) != len(population_references):
        raise ValueError(
            f"there are {len(references)} references, but {len(population_references)} on the population; "
            "give the same models on both"
        )
    if not len(population):
        raise ValueError("the population is empty, so there is nothing to compare with")

    def ratio(outputs: Outputs, others: Sequence[Outputs]) -> Tensor:
        out = torch.stack([confidence(other) for other in _checked(outputs, others, least=1)]).mean(0)
        return confidence(outputs) / (((1 + a) * out + (1 - a)) / 2)

    x, z = ratio(model, references), ratio(population, population_references)
    below = torch.searchsorted(z.sort().values, x).double() / len(z)
    return below.where(~(x.isnan() | z.isnan().any()), torch.nan)


def calibrated(model: Outputs, references: Sequence[Outputs]) -> Tensor:
    """Margin minus the references' mean margin, ``[m]``. Higher = more like a member; (-inf, inf), nats.

    It takes out how hard each example is. Source: Watson et al. 2022, arXiv 2111.08440, with margins for losses.

    Args:
        model: the audited model.
        references: oracles of other seeds on the same examples in the same order, at least one.

    Raises:
        ValueError: if there is no reference, or they are of other examples.
    """
    out = torch.stack([margins(reference) for reference in _checked(model, references, least=1)])
    return margins(model) - out.mean(0)


def canary_auc(scores: Tensor, included: Tensor) -> float:
    """`auc` of the canaries whose coin put them into the training data against those it left out.

    Higher = more leakage; [0, 1] or NaN. A fair coin decided, so a model that is independent of it expects exactly 1/2.
    Source: one-run auditing, Steinke, Nasr and Jagielski 2023, arXiv 2305.08846, applied to unlearning; exchanged
    splits as a true zero are the idea of Tu, Hu and Ma 2024, arXiv 2404.11577.

    Args:
        scores: ``[m]`` attack scores of all candidates, for instance `margins` or `calibrated`.
        included: ``[m]`` bool, the coins.

    Raises:
        ValueError: if the shapes differ, or all coins fell alike.
    """
    _check_canaries(scores, included)
    return auc(scores[included], scores[~included])


def canary_roc(scores: Tensor, included: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates of all thresholds, both rising from 0 to 1; one NaN each if a score is NaN.

    Further above the diagonal = more leakage. Source and arguments: as for `canary_auc`, of which this is the curve.

    Raises:
        ValueError: if the shapes differ, or all coins fell alike.
    """
    _check_canaries(scores, included)
    truth, places = _labelled(scores[included], scores[~included])
    if not np.isfinite(places).all():
        return np.array([np.nan]), np.array([np.nan])
    # It loads pandas, which takes most of a second, and few runs draw this figure.
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(truth, places)
    return false, true


def canary_p(scores: Tensor, included: Tensor, rng: np.random.Generator, permutations: int = 10_000) -> float:
    """Chance that fair coins give at least this `canary_auc`, one-sided. Lower = more evidence of leakage; (0, 1] or
    NaN.

    Exact at any m: the coins are flipped again, independently, and flips that fall all alike are flipped once more, as
    the audit needs both kinds. ``(1 + count) / (1 + permutations)``. Source: the randomisation test (Fisher), counted
    as in Phipson and Smyth 2010, arXiv 1603.05766.

    Args:
        scores: ``[m]`` attack scores of all candidates.
        included: ``[m]`` bool, the coins.
        rng: the source of new coins.
        permutations: number of new flips, at least 1.

    Raises:
        ValueError: if the shapes differ, all coins fell alike, or ``permutations`` is not positive.
    """
    if permutations < 1:
        raise ValueError(f"permutations={permutations} must be at least 1")
    if np.isnan(canary_auc(scores, included)):
        return float("nan")
    ranks = scipy.stats.rankdata(scores.numpy())
    coins = rng.integers(0, 2, (permutations, len(ranks)), dtype=bool)
    while (alike := coins.all(1) | ~coins.any(1)).any():
        coins[alike] = rng.integers(0, 2, (int(alike.sum()), len(ranks)), dtype=bool)

    def statistic(flips: np.ndarray) -> np.ndarray:  # the AUC from rank sums: equal AUCs are equal to the last bit
        inside = flips.sum(-1)
        return (flips @ ranks - inside * (inside + 1) / 2) / (inside * (len(ranks) - inside))

    count = (statistic(coins) >= statistic(included.numpy())).sum()
    return float((1 + count) / (1 + permutations))


def epsilon_bound(scores: Tensor, included: Tensor, confidence: float = 0.95, guesses: int | None = None) -> float:
    """Lower bound, at this confidence, on the epsilon for which the audited pipeline can be differentially private
    (delta = 0) towards a canary. Higher = more leakage; [0, inf) or NaN.

    The highest half of the guesses are called included, the lowest half excluded, the rest are not guessed; ties go by
    position, which must not depend on the coins. Under epsilon-DP the number of correct guesses is stochastically at
    most Binomial(guesses, e^eps / (1 + e^eps)), so with p the one-sided Clopper-Pearson lower end of the correct share,
    ``eps >= log(p / (1 - p))``. 0 = nothing shown, which is not privacy; m guesses can show no more than about
    ``log(m / 3)`` at 95 %.
    Source: Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, arXiv 2305.08846.

    Args:
        scores: ``[m]`` attack scores of all candidates.
        included: ``[m]`` bool, the coins, fair and independent.
        confidence: in (0, 1).
        guesses: how many to guess, 1..m; an odd one more is called included; ``None`` = all m. Fix it before looking at
            the scores: the best of several numbers of guesses is no longer a bound.

    Raises:
        ValueError: if the shapes differ, ``confidence`` is outside (0, 1) or ``guesses`` outside 1..m.
    """
    _check_canaries(scores, included)
    guesses = len(scores) if guesses is None else guesses
    if not 1 <= guesses <= len(scores):
        raise ValueError(f"guesses={guesses} must lie between 1 and {len(scores)}, the number of canaries")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, exclusive")
    if scores.isnan().any():
        return float("nan")
    falling = included[scores.sort(descending=True, stable=True).indices]
    high, low = (guesses + 1) // 2, guesses // 2
    correct = int(falling[:high].sum()) + int((~falling[len(falling) - low :]).sum())
    return epsilon_of_guesses(correct, guesses, confidence)


def epsilon_of_guesses(correct: int, guesses: int, confidence: float) -> float:
    """The bound of `epsilon_bound` from the number of right guesses; of independent runs together, from their sums."""
    test = scipy.stats.binomtest(correct, guesses, alternative="greater")
    return max(0.0, float(scipy.special.logit(test.proportion_ci(confidence, method="exact").low)))


def attack_success(triggered: Outputs, target: int) -> float:
    """Share of triggered examples of other classes predicted as ``target``. Higher = the backdoor works; [0, 1].

    The oracle's share is the zero: some examples are taken for the target without any backdoor. NaN if a logit is not
    finite. Source: attack success rate, Gu, Dolan-Gavitt and Garg 2017 (BadNets), arXiv 1708.06733.

    Args:
        triggered: outputs on inputs that carry the trigger, with their *true* labels.
        target: the class that the trigger was to cause.

    Raises:
        ValueError: if ``target`` is no class, or every example has it as its true label.
    """
    _check_classes(triggered, target)
    others = triggered.labels != target
    if not others.any():
        raise ValueError(f"no triggered example has a true label other than the target {target}")
    return triggered.share(triggered.predicted[others] == target)


def noise_alignment(products: Tensor, norms: Tensor, deviation: float) -> Tensor:
    """``I_i = <xi_i, g_i> / (s |g_i|)`` of each example with noise ``xi_i ~ N(0, s^2 I)``, ``[n]``. Higher = the model
    was trained on this noise; (-inf, inf), standard normal for a model that is independent of it.

    ``g_i`` is the gradient of the margin with respect to the example *before* noise was added, so that under the null
    it is independent of ``xi_i``, and a unit vector's product with Gaussian noise is exactly N(0, s^2), whatever the
    network. The margin's gradient has the opposite direction of the loss's: training on the noisy example makes the
    loss fall along the noise. 0 where the gradient is 0, which points nowhere.
    Source: the Gaussian unlearning score (GUS) of Pawelczyk et al., "Machine Unlearning Fails to Remove Data Poisoning
    Attacks", ICLR 2025, arXiv 2406.17216 (abstract and summaries; the sign is this project's, so that more is worse).

    Args:
        products: ``[n]``, ``<xi_i, g_i>``.
        norms: ``[n]``, ``|g_i|``.
        deviation: s, above 0.

    Raises:
        ValueError: if the shapes differ or the deviation is not positive.
    """
    if products.ndim != 1 or products.shape != norms.shape:
        raise ValueError(f"products have shape {tuple(products.shape)}, norms {tuple(norms.shape)}; they must be (n,)")
    if not deviation > 0:
        raise ValueError(f"deviation={deviation} must be above 0")
    aligned = products.double() / (deviation * norms.double())
    return aligned.where(norms != 0, 0.0)


def noise_test(aligned: Tensor) -> dict[str, float]:
    """What `noise_alignment` says of a model: ``alignment`` and ``p``, both NaN if an entry is.

    - ``alignment``: the mean over examples; higher = more of the noise is left; 0 is expected of a model that never saw
      it, with the standard deviation ``1 / sqrt n``.
    - ``p``: one-sided, that of ``sqrt n`` times the mean under N(0, 1): exact for independent noise, whatever the
      model; (0, 1), small = the model saw the noise. The noise of an example is one draw for all seeds, so the p values
      of several seeds are not independent evidence.

    Source: as for `noise_alignment`.

    Raises:
        ValueError: if there is no example.
    """
    if not len(aligned):
        raise ValueError("no example carries noise, so there is nothing to test")
    if aligned.isnan().any():
        return dict.fromkeys(("alignment", "p"), float("nan"))
    mean = aligned.mean().item()
    return {"alignment": mean, "p": float(scipy.stats.norm.sf(mean * len(aligned) ** 0.5))}


def confusion_between(outputs: Outputs, a: int, b: int) -> dict[str, float]:
    """Interclass confusion: what is left of labels that were swapped between two classes. Lower = less is left; [0, 1].

    Of the examples labelled a or b, ``"error"`` is the share of wrong predictions and ``"confused"`` the share where
    one of the two is predicted as the other. The oracle's values are the zero. Both are NaN if a logit is not finite.
    Source: Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning", 2022, arXiv 2201.06640.

    Args:
        outputs: with *true* labels.
        a: the one class.
        b: the other.

    Raises:
        ValueError: if a or b is no class, they are the same, or no example has either label.
    """
    _check_classes(outputs, a, b)
    if a == b:
        raise ValueError(f"a={a} and b={b} are the same class; confusion needs two")
    either = (outputs.labels == a) | (outputs.labels == b)
    if not either.any():
        raise ValueError(f"no example has label {a} or {b}")
    labels, predictions = outputs.labels[either], outputs.predicted[either]
    return {
        "error": outputs.share(predictions != labels),
        "confused": outputs.share(predictions == a + b - labels),
    }


def _best_threshold(truth: np.ndarray, scores: np.ndarray) -> float:
    """The score from which on examples are called members for the best balanced accuracy; the highest of equally good
    ones, NaN, which nobody reaches, if none beats a coin. As from scikit-learn's ``roc_curve``, which takes ten times
    as long."""
    order = scores.argsort()[::-1]
    falling = scores[order]
    last = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(scores) - 1)  # of each group of equal scores
    found = truth[order].cumsum()[last]
    better = found / truth.sum() - (last + 1 - found) / (~truth).sum()
    best = better.argmax()
    return float(falling[last[best]]) if better[best] > 0 else float("nan")


def _logistic(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Weights ``[p]`` and intercept of the logistic regression of ``truth [n]`` on ``x [n, p]``, standardised.

    The minimum of ``sum_i c_i log(1 + exp(-+ f_i)) + ||w||^2 / 2``, with c such that both classes weigh alike, as from
    scikit-learn's ``LogisticRegression(class_weight="balanced")``, which takes fifteen times as long: by Newton steps,
    halved until the objective does not rise, which on a strictly convex function always arrive.
    """
    x = np.column_stack([x, np.ones(len(x))])
    sign = np.where(truth, 1.0, -1.0)
    weight = len(truth) / (2 * np.where(truth, truth.sum(), (~truth).sum()))
    penalty = np.append(np.ones(x.shape[1] - 1), 0.0)

    def objective(at: np.ndarray) -> float:
        return float(weight @ np.logaddexp(0, -sign * (x @ at)) + penalty @ at**2 / 2)

    at = np.zeros(x.shape[1])
    value = objective(at)
    for _ in range(NEWTON_STEPS):
        wrong = scipy.special.expit(-sign * (x @ at))
        gradient = penalty * at - x.T @ (weight * sign * wrong)
        hessian = (x.T * (weight * wrong * (1 - wrong))) @ x + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        if gradient @ step <= 1e-12 * len(x):  # half of it is what is left to gain
            break
        while (less := objective(at - step)) > value and np.abs(step).max() > 1e-12:
            step = step / 2
        at, value = at - step, less
    return at


def _log_confidence(outputs: Outputs) -> Tensor:
    """``log p_y``, by way of the margin: log_softmax rounds it to 0 for sure examples, which would tie them."""
    return torch.nn.functional.logsigmoid(margins(outputs))


def _labelled(members: Tensor, non_members: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Who is a member, and each score's place among all."""
    scores = _together(members, non_members)
    return np.arange(len(scores)) < len(members), _places(scores)


def _together(members: Tensor, non_members: Tensor) -> np.ndarray:
    if not len(members) or not len(non_members):
        raise ValueError(f"there are {len(members)} members and {len(non_members)} non-members; an attack needs both")
    return torch.cat([members.double(), non_members.double()]).numpy()


def _places(scores: np.ndarray) -> np.ndarray:
    """Dense ranks, because scikit-learn refuses infinite scores; all NaN if a score is."""
    if np.isnan(scores).any():
        return np.full(len(scores), np.nan)
    return np.unique(scores, return_inverse=True)[1].astype(np.float64)


def _checked(model: Outputs, references: Sequence[Outputs], least: int) -> Sequence[Outputs]:
    if len(references) < least:
        raise ValueError(f"the attack needs at least {least} reference models, not {len(references)}")
    for reference in references:
        if not torch.equal(reference.labels, model.labels):
            raise ValueError("a reference has other labels than the model; give the same examples in the same order")
    return references


def _check_canaries(scores: Tensor, included: Tensor) -> None:
    if scores.ndim != 1 or scores.shape != included.shape or included.dtype != torch.bool:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)}, coins {tuple(included.shape)} of {included.dtype}; "
            "they must be (m,) and (m,) of torch.bool"
        )


def _check_classes(outputs: Outputs, *classes: int) -> None:
    for number in classes:
        if not 0 <= number < outputs.logits.shape[1]:
            raise ValueError(f"class {number} must lie between 0 and {outputs.logits.shape[1] - 1}")
