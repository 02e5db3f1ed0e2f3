"""The audit: every model of a run against the oracles of its seed, with intervals, the floor, and the bill.

The unit of replication is the seed (one whole training run), never the example. Intervals are 95 % t-intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from fedforget.data import audit_sets
from fedforget.ledger import Cost
from fedforget.metrics import METRICS, Outputs, chance, clients, fidelity, leakage, representation
from fedforget.metrics.outputs import accuracy, align, balanced_accuracy, margins
from fedforget.schema.evaluation import LEVELS as LEVELS
from fedforget.schema.evaluation import EvaluationConfig as EvaluationConfig
from fedforget.schema.evaluation import Level as Level

ORIGINAL, ORACLE = "original", "retrain"
NOOP = "none"  # the strategy that does nothing
CHECKPOINT = "retrain@"  # a retrain stopped after so many rounds: free, for the oracle passed there
ANOTHER = "another oracle"  # of another seed, in the place of an unlearned model: what a perfect method would show


ONE_BY_ONE = 50  # clients up to which each has a metric of its own


LATER = (
    "forget/",
    "test/accuracy",
    "matched/",
    "efficacy/",
    "canary/",
    "rmia/",
    "lira/",
    "trigger/",
    "noise/",
    "confusion/",
)  # what is measured again later
LIKENESS = ("disagreement", "js_divergence", "activation_distance")
FAMILIES: dict[str, tuple[str, ...]] = {  # metrics that can be a primary one; those of every client or layer cannot
    "forget": (*METRICS, *LIKENESS, "cka"),
    "retain": (*METRICS, *LIKENESS),
    "holdout": (*METRICS,),
    "test": (*METRICS, "balanced_accuracy", "calibration_error", "brier", *LIKENESS),
    "matched": (*leakage.SCORES, "balanced_accuracy", "tpr_at_1", "tpr_at_01"),
    "efficacy": (*leakage.SCORES, "logistic"),
    "lira": ("auc",),
    "rmia": ("auc",),
    "probe": ("accuracy",),
    "canary": ("auc", "calibrated", "p", "epsilon"),
    "trigger": ("success",),
    "noise": ("alignment", "p"),
    "confusion": ("forget_error", "forget_confused", "test_error", "test_confused"),
    "clients": ("accuracy", "worst", "mean", "worst_decile", "min", "sd", "jain"),
    "relearn": ("rejoin", "few", "retain"),
    "near": ("disagreement",),
    "far": ("disagreement",),
    "regions": ("near", "far", "locality"),
}
MATCHED = ("holdout", "matched", "lira", "rmia", "probe")  # families that ask the leaving client's own holdout
NEEDED = {  # metrics that need oracles of other seeds, and how many seeds that takes
    "lira/auc": 3,
    **dict.fromkeys(("rmia/auc", "canary/calibrated", "near/disagreement", "far/disagreement", "forget/cka"), 2),
    **{f"{name}/{metric}": 2 for name in ("forget", "retain", "test") for metric in LIKENESS},
    **{f"clients/{metric}": 2 for metric in ("mean", "worst_decile", "min", "sd", "jain")},
}


@dataclass(frozen=True)
class ModelResult:
    """One model's scores and bill.

    Args:
        request: index of the request in the run's sequence, from 0.
        label: ``"original"``, ``"retrain"`` (the oracle), or the label of a strategy.
        seed: index k of the seed; models of equal seed are paired.
        values: what `measure` returned for the audit sets of this request.
        cost: what making this model cost.
        others: of an oracle, for each metric that depends on the seed's coins: what the oracles of the other seeds
            score under this seed's.
    """

    request: int
    label: str
    seed: int
    values: dict[str, float]
    cost: Cost
    others: Mapping[str, Sequence[float]] = field(default_factory=dict)


def measure(
    outputs: Mapping[str, Outputs],
    references: Sequence[Mapping[str, Outputs]] = (),
    corruption: Mapping[str, Any] | None = None,
    brief: bool = False,
    forgotten: Sequence[int] = (),
) -> dict[str, float]:
    """Every metric of one model, as ``"forget/accuracy" -> value``; a set that is empty or not there gives no entry.

    ==================  =============================================================================================
    forget, retain, ... accuracy, loss and margin on each set; on the test set calibration error, Brier score and
                        balanced accuracy (not where one class occurs)
    test_retained, ...  where classes were forgotten: accuracy on test examples of the others (balanced accuracy, too),
                        and, ``test_forgotten``, of these classes
    matched             AUC of each membership score, forget set against the owner's holdout; of the margin the best
                        balanced accuracy, and true positive rates
    efficacy            share of the forget set that an attack fitted on retain and test calls non-member
    lira, rmia          AUC of the attacks that are calibrated by ``references``, forget set against holdout
    probe               accuracy on the forget set of a linear classifier of features, fitted on the holdout
    canary              coin-flip audit: AUC of the margins, the same calibrated by references, p value, epsilon
    trigger, confusion  success of the planted trigger; mistakes between the two classes that were swapped
    noise               how far the model leans along the noise that was added to forgotten examples (GUS), its p value
    clients             accuracy on the retained clients' own holdouts (of classes that were not forgotten), and its
                        distance from the references'
    .../disagreement    churn, Jensen-Shannon divergence, activation distance and CKA to the references
    layer               CKA to the references of what comes out of each layer, on forgotten examples
    near, far           churn to the references on points around forgotten examples, and around test images
    ==================  =============================================================================================

    Args:
        outputs: by audit set.
        references: the same of oracles of *other* seeds; metrics that need more than there are have no entry.
        corruption: the run's corruption: its ``kind``, ``target_class``, ``classes`` and ``deviation``.
        brief: leave out what a model of a later stage, or a checkpoint of an oracle, is not judged by: the family
            probe, calibration and likeness.
        forgotten: the classes that requests so far named.
    """
    sets = {name: answers for name, answers in outputs.items() if len(answers)}
    values = {
        f"{name}/{metric}": function(sets[name])
        for name in audit_sets.SCORED
        if name in sets
        for metric, function in METRICS.items()
    }
    if "test" in sets and not brief:
        values["test/calibration_error"] = fidelity.calibration_error(sets["test"])
        values["test/brier"] = fidelity.brier(sets["test"])
    values |= _by_class(sets, forgotten)
    values |= _membership(sets, references, brief)
    values |= _marks(sets, references, corruption or {})
    values |= _side_effects(sets, references, forgotten)
    values |= _efficacy(sets)
    if not brief:
        values |= _likeness(sets, references)
    return values


def _by_class(sets: Mapping[str, Outputs], forgotten: Sequence[int]) -> dict[str, float]:
    """Accuracies on the test set that know its classes: balanced, and of retained and forgotten classes apart."""
    if "test" not in sets:
        return {}
    test = sets["test"]
    values = {}
    if len(test.labels.unique()) > 1:
        values["test/balanced_accuracy"] = balanced_accuracy(test)
    if forgotten:
        retained = test.without(forgotten)
        gone = test.take(torch.isin(test.labels, torch.tensor(forgotten)).nonzero().flatten())
        if len(retained):
            values["test_retained/accuracy"] = accuracy(retained)
        if len(retained.labels.unique()) > 1:
            values["test_retained/balanced_accuracy"] = balanced_accuracy(retained)
        if len(gone):
            values["test_forgotten/accuracy"] = accuracy(gone)
    return values


def chances(sets: Mapping[str, Outputs], forgotten: Sequence[int] = ()) -> dict[str, float]:
    """The metrics that utility is judged by, each with what the best constant answer scores under it.

    The test set's accuracy, of retained classes only if classes were forgotten; on a skewed one the balanced accuracy,
    too; and the retained clients' accuracy, of the mean and of the worst. A set on which a constant answer is always
    right, because one class occurs, judges nothing.

    Args:
        sets: an oracle's answers by audit set; only their labels and owners count.
        forgotten: the classes that requests so far named.
    """
    found: dict[str, float] = {}
    test = sets["test"].without(forgotten) if "test" in sets else None
    if test is not None and len(test):
        name = "test_retained" if forgotten else "test"
        found[f"{name}/accuracy"] = chance.constant_guess(test)
        if chance.is_skewed(test):
            found[f"{name}/balanced_accuracy"] = 1 / len(test.labels.unique())
    own = sets["clients"].without(forgotten) if "clients" in sets else None
    if own is not None and len(own):
        found |= {f"clients/{name}": value for name, value in chance.client_guesses(own).items()}
    return {name: value for name, value in found.items() if value < 1}


def _membership(
    sets: Mapping[str, Outputs], references: Sequence[Mapping[str, Outputs]], brief: bool
) -> dict[str, float]:
    """The families matched, lira, rmia and probe (not if brief)."""
    values: dict[str, float] = {}
    if not {"forget", "holdout"} <= sets.keys():
        return values
    forget, holdout = sets["forget"], sets["holdout"]
    members, others = margins(forget), margins(holdout)
    values |= {f"matched/{score}": value for score, value in leakage.matched_holdout(forget, holdout).items()}
    values["matched/balanced_accuracy"] = leakage.balanced_accuracy(members, others)
    for name, fpr in (("tpr_at_1", 0.01), ("tpr_at_01", 0.001)):
        values[f"matched/{name}"] = leakage.tpr_at_fpr(members, others, fpr).value
    if not brief and forget.features is not None and holdout.features is not None:
        values["probe/accuracy"] = representation.linear_probe(holdout, forget)
    if references:
        mine = {name: align([sets[name], *(other[name] for other in references)]) for name in ("forget", "holdout")}
        if len(mine["forget"][0]) and len(mine["holdout"][0]):
            if len(references) > 1:
                scores = [leakage.lira(model, others) for model, *others in mine.values()]
                values["lira/auc"] = leakage.auc(*scores)
            if "test" in sets:
                public, *theirs = align([sets["test"], *(other["test"] for other in references)])
                ratios = [leakage.rmia(model, others, public, theirs) for model, *others in mine.values()]
                values["rmia/auc"] = leakage.auc(*ratios)
    return values


def _efficacy(sets: Mapping[str, Outputs]) -> dict[str, float]:
    """The family efficacy."""
    if not {"forget", "retain", "test"} <= sets.keys():
        return {}
    shares = leakage.population(sets["retain"], sets["test"], sets["forget"])
    return {f"efficacy/{score}": share for score, share in shares.items()}


def _marks(
    sets: Mapping[str, Outputs], references: Sequence[Mapping[str, Outputs]], corruption: Mapping[str, Any]
) -> dict[str, float]:
    """The families canary, trigger, noise and confusion."""
    values: dict[str, float] = {}
    if "canary" in sets:
        candidates = sets["canary"]
        included = candidates.included.bool()  # type: ignore[union-attr]
        scores = canary_scores(candidates, [other["canary"] for other in references])
        if 0 < included.sum() < len(included):
            values |= {name: leakage.canary_auc(mine, included) for name, mine in scores.items()}
            values["canary/p"] = leakage.canary_p(scores["canary/auc"], included, np.random.default_rng(0))
            values["canary/epsilon"] = leakage.epsilon_bound(scores["canary/auc"], included)
    if "trigger" in sets:
        values["trigger/success"] = leakage.attack_success(sets["trigger"], corruption["target_class"])
    if "noise" in sets:
        along = sets["noise"].features
        assert along is not None, "the engine keeps what the noise is compared with"
        aligned = leakage.noise_alignment(along[:, 0], along[:, 1], corruption["deviation"])
        values |= {f"noise/{name}": value for name, value in leakage.noise_test(aligned).items()}
    if corruption.get("kind") == "label_swap":
        for name in ("forget", "test"):
            if name in sets:
                confused = leakage.confusion_between(sets[name], *corruption["classes"])
                values |= {f"confusion/{name}_{key}": value for key, value in confused.items()}
    return values


def canary_scores(candidates: Outputs, references: Sequence[Outputs]) -> dict[str, Tensor]:
    """Attack scores ``[m]`` of all candidate canaries, by the name of the metric that judges them by the coins."""
    scores = {"canary/auc": margins(candidates)}
    return scores | ({"canary/calibrated": leakage.calibrated(candidates, references)} if references else {})


def _side_effects(
    sets: Mapping[str, Outputs], references: Sequence[Mapping[str, Outputs]], forgotten: Sequence[int]
) -> dict[str, float]:
    """The family clients."""
    own = clients.client_accuracies(sets["clients"].without(forgotten)) if "clients" in sets else {}
    if not own:
        return {}
    values = {f"clients/{name}": value for name, value in clients.summary(own).items()}
    if len(own) <= ONE_BY_ONE:
        values |= {f"client/{client}": value for client, value in own.items()}
    if references:
        others = [clients.client_accuracies(other["clients"].without(forgotten)) for other in references]
        mean = {client: float(np.mean([other[client] for other in others])) for client in own}
        values |= {f"clients/{name}": value for name, value in clients.side_effects(own, mean).items()}
    return values


def _likeness(sets: Mapping[str, Outputs], references: Sequence[Mapping[str, Outputs]]) -> dict[str, float]:
    """How much the answers on each set differ from those of the references."""
    values: dict[str, float] = {}
    for name in ("forget", "retain", "test", "near", "far"):
        if not references or name not in sets:
            continue
        model, *others = align([sets[name], *(other[name] for other in references)])
        if not len(model):
            continue
        values[f"{name}/disagreement"] = fidelity.disagreement(model, others)
        if name in ("near", "far"):  # of decision regions only the class counts
            continue
        values[f"{name}/js_divergence"] = fidelity.js_divergence(model, others)
        values[f"{name}/activation_distance"] = fidelity.activation_distance(model, others)
        if model.features is not None and len(model) > 3:
            similar = [representation.cka(model.features, o.features) for o in others]  # type: ignore[arg-type]
            values[f"{name}/cka"] = float(np.mean(similar))
    if references and "forget_layers" in sets:
        model, *others = align([sets["forget_layers"], *(other["forget_layers"] for other in references)])
        several = [layer_likeness(model, other) for other in others]
        values |= {f"layer/{i}/cka": float(np.mean([one[i] for one in several])) for i in several[0]}
    return values


def layer_likeness(model: Outputs, other: Outputs) -> dict[int, float]:
    """CKA of two models' outputs of each layer, from 1, on the examples both were asked; nothing for under 4."""
    model, other = align([model, other])
    if len(model) < 4:
        return {}
    assert model.features is not None and other.features is not None
    return dict(enumerate(representation.layer_cka(model.features, other.features), start=1))


def audit(results: Sequence[ModelResult]) -> list[dict]:
    """One row per request, label and metric; originals first, then oracles, then strategies in their given order.

    Columns, with m the metric, U_k the model of seed k, O_k its oracle and M_k its original:

    - ``value``: mean of m(U_k); ``gap``: mean of m(U_k) - m(O_k); ``noop_gap``: mean of m(M_k) - m(O_k), the signal.
      Each has a ``..._half_width``, that of its 95 % t-interval over seeds; None for one seed.
    - ``floor``: mean over i of |m(O_i) - mean over j != i of m(O_j)|, what a perfect method would get; ``floor_sd``:
      standard deviation of these differences with their sign. Both None for one oracle. Where m depends on the coins of
      a seed, m(O_j) is taken under the coins of seed i (`ModelResult.others`).
    - ``gap_in_floors``: |gap| / floor; None without a floor, or where the floor is 0.
    - ``gap_closed``: 1 - |gap| / |noop_gap|; None where there is nothing to forget under this metric, that is unless
      |noop_gap| > 3 floor_sd, which one seed cannot show.

    The oracle's own gap is 0 by construction: its row has None for everything that rests on a gap, and the floor.

    Raises:
        ValueError: if a model has no oracle of its seed, a request has no original, a model occurs twice, or the models
            of one request do not have the same metrics.
    """
    rows = []
    for request, models in _by_request(results).items():
        metrics = list(next(iter(models[ORIGINAL].values())).values)
        of_all = {metric: _signal(models, metric) for metric in metrics}
        for label, by_seed in models.items():
            for metric in metrics:
                mine, oracle = (_scores(group, metric) for group in (by_seed, models[ORACLE]))
                names = {"request": request, "label": label, "metric": metric, "seeds": len(by_seed)}
                rows.append(names | _row(label, mine, oracle, of_all[metric]))
    return rows


def bill(results: Sequence[ModelResult]) -> list[dict]:
    """One row per request and label: the mean of each `Cost` field, and ``..._speedup`` over the oracles of its seeds.

    ``bytes_speedup`` counts both directions together. See `Cost.speedup_over` for infinities and NaN; errors as in
    `audit`.
    """
    rows = []
    for request, models in _by_request(results).items():
        for label, by_seed in models.items():
            spent = sum((result.cost for result in by_seed.values()), Cost())
            oracle = sum((models[ORACLE][seed].cost for seed in by_seed), Cost())
            traffic = _traffic(spent).speedup_over(_traffic(oracle))["bytes_up"]
            speedups = spent.speedup_over(oracle) | {"bytes": traffic}
            rows.append(
                {"request": request, "label": label, "seeds": len(by_seed)}
                | {name: total / len(by_seed) for name, total in spent.to_dict().items()}
                | {f"{name}_speedup": ratio for name, ratio in speedups.items()}
            )
    return rows


def _traffic(cost: Cost) -> Cost:
    return Cost(bytes_up=cost.bytes_up + cost.bytes_down)


def _by_request(results: Sequence[ModelResult]) -> dict[int, dict[str, dict[int, ModelResult]]]:
    """``request -> label -> seed -> result``, complete: see the errors of `audit`."""
    requests: dict[int, dict[str, dict[int, ModelResult]]] = {}
    for result in sorted(results, key=lambda result: result.request):
        models = requests.setdefault(result.request, {ORIGINAL: {}, ORACLE: {}})
        by_seed = models.setdefault(result.label, {})
        if result.seed in by_seed:
            raise ValueError(f"request {result.request} has two results for {result.label!r} with seed {result.seed}")
        by_seed[result.seed] = result
    for request, models in requests.items():
        if not models[ORIGINAL]:
            raise ValueError(f"request {request} has no {ORIGINAL!r} model, so its signal is unknown")
        expected = set(next(iter(models[ORIGINAL].values())).values)
        for label, by_seed in models.items():
            for seed, result in by_seed.items():
                if seed not in models[ORACLE]:
                    raise ValueError(f"request {request}: {label!r} with seed {seed} has no oracle ({ORACLE!r}) model")
                if set(result.values) != expected:
                    odd = ", ".join(sorted(expected ^ set(result.values)))
                    raise ValueError(f"request {request}: {label!r} with seed {seed} differs in its metrics: {odd}")
    return requests


def _scores(by_seed: Mapping[int, ModelResult], metric: str) -> dict[int, float]:
    return {seed: result.values[metric] for seed, result in by_seed.items()}


def _signal(models: Mapping[str, Mapping[int, ModelResult]], metric: str) -> dict:
    """The columns of `audit` that are the same for all labels."""
    original, oracle = (_scores(models[label], metric) for label in (ORIGINAL, ORACLE))
    others = [result.others[metric] for result in models[ORACLE].values() if metric in result.others]
    noop_gap, noop_gap_half_width = _interval([score - oracle[seed] for seed, score in original.items()])
    with np.errstate(invalid="ignore"):  # a model that diverged scores inf or NaN, and its row must say so
        apart, floor_sd = floor(list(oracle.values()), others)
    return {
        "noop_gap": noop_gap,
        "noop_gap_half_width": noop_gap_half_width,
        "floor": apart,
        "floor_sd": floor_sd,
    }


def _row(label: str, scores: dict[int, float], oracle: dict[int, float], signal: dict) -> dict:
    """The columns of `audit` that are numbers; scores are ``seed -> m``, ``signal`` is that of the metric."""
    value, value_half_width = _interval(list(scores.values()))
    gap, gap_half_width = _interval([score - oracle[seed] for seed, score in scores.items()])
    noop_gap, apart, floor_sd = (signal[name] for name in ("noop_gap", "floor", "floor_sd"))
    something_to_forget = floor_sd is not None and abs(noop_gap) > 3 * floor_sd
    row = {
        "value": value,
        "value_half_width": value_half_width,
        "gap": gap,
        "gap_half_width": gap_half_width,
        **signal,
        "gap_in_floors": abs(gap) / apart if apart else None,
        "gap_closed": 1 - abs(gap) / abs(noop_gap) if something_to_forget else None,
    }
    if label == ORACLE:
        row |= dict.fromkeys(("gap", "gap_half_width", "gap_in_floors", "gap_closed"))
    return row


def _interval(sample: list[float]) -> tuple[float, float | None]:
    """The mean of ``sample`` and the half-width of its 95 % t-interval, None for one number.

    In plain numbers, because there are many of these samples, and of few numbers each.
    """
    mean = sum(sample) / len(sample)
    if len(sample) == 1:
        return mean, None
    variance = sum((number - mean) ** 2 for number in sample) / (len(sample) - 1)
    return mean, _t(len(sample) - 1) * math.sqrt(variance / len(sample))


@lru_cache
def _t(degrees: int) -> float:
    return float(scipy.stats.t.ppf(0.975, degrees))


def floor(oracle: Sequence[float], others: Sequence[Sequence[float]] = ()) -> tuple[float | None, float | None]:
    """Mean absolute leave-one-out difference between oracles, and the standard deviation of the signed ones.

    Args:
        oracle: K scores, each of the oracle of a seed.
        others: K rows, each of the scores of the K - 1 other oracles under that seed's coins; none: as in ``oracle``,
            for the metric knows no coins. Coins are noise that a gap to the oracle of the same seed does not have, and
            so must the floor not have it.
    """
    if len(oracle) < 2:
        return None, None
    scores = np.asarray(oracle)
    # Differences first: equal oracles then have a floor of exactly 0.
    pairs = scores[:, None] - (np.asarray(others) if len(others) else scores)
    apart = pairs.sum(1) / (len(oracle) - 1)
    return float(np.abs(apart).mean()), float(np.std(apart, ddof=1))
