"""Verdicts: from all models of a run to tests, the score and ranks, one row for each request and strategy.

Everything here is a pure function of what the audit measured, of margins on fixed examples, and of the bill. Seeds are
the unit: a strategy's K models are compared with the K oracles of the same seeds.

Symbols: U unlearned, M original, O oracle; s_a(.) the score of attack a; ED the energy distance of margins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedforget.claims import CONSTANT, NOT_FINITE, PASSED, UNCHECKED, UNMOVED, VOID
from fedforget.data import audit_sets
from fedforget.evaluation import ANOTHER, CHECKPOINT, LEVELS, ORACLE, ORIGINAL, ModelResult, floor
from fedforget.ledger import Cost
from fedforget.metrics import clients, fidelity, klom, score, shadows, statistics
from fedforget.stage import later_metric

ATTACKS = (
    "canary/auc",
    "canary/calibrated",
    "rmia/auc",
    "matched/margin",
    "probe/accuracy",
    "trigger/success",
    "noise/alignment",
    "confusion/forget_confused",
)
# Of no use against leakage by themselves: |metric - the oracle's| does not separate models that never saw the data
# (other oracles, retrains stopped early) from models that did and hide it. In the comments, the AUC over the models of
# tests/test_meta_evaluation.py; every attack above that passes the gate there has 1.0.
DIAGNOSTIC = frozenset(
    {
        *("retain/accuracy", "retain/loss", "retain/margin", "retain/disagreement"),  # 0.72, 0.88, 0.75, 0.75
        *("test/accuracy", "test/loss", "test/margin", "test/brier"),  # 0.62, 0.75, 0.75, 0.75
        "forget/margin",  # 0.81: an exact but shorter retrain is less sure than the oracle
        *("efficacy/loss", "efficacy/confidence", "efficacy/margin", "efficacy/modified_entropy"),  # 0.50
        "efficacy/entropy",  # 0.75
        *("clients/worst", "clients/sd", "clients/jain"),  # 0.50, 0.50, 0.69
    }
)
COINS = "coins"  # whether the model's seed trained on each candidate canary
RIGHT = "right"  # whether the model predicts the label of each forgotten example
MARGIN = 0.2  # of the signal: the largest gap that does not matter, fixed before any run
MEMORISED = 0.7  # canary AUC that an original must reach
KNOWN = 0.995  # forget accuracy of original and oracle from which on there is nothing that only one of them knows

Values = Mapping[int, Mapping[str, float]]  # seed -> metric -> value


@dataclass(frozen=True)
class Evidence:
    """What is known of the models of one label under one request.

    Args:
        values: metrics by seed.
        margins: margins on the examples that all models share, by seed and set: ``[n]``; of the candidate canaries too,
            with their `COINS` (bool); and what of the forget set is predicted `RIGHT` (bool).
        cost: mean bill over seeds.
        others: of oracles: by seed and metric, scores of the other seeds' oracles under its coins.
        states: by seed what the model is called if it is none that could have unlearned: `NOT_FINITE`, `CONSTANT` or
            `UNMOVED`.
    """

    values: Values
    margins: Mapping[int, Mapping[str, Tensor]]
    cost: Cost
    others: Mapping[int, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    states: Mapping[int, str] = field(default_factory=dict)


def evidence(
    results: Sequence[ModelResult],
    margins: Mapping[tuple[str, int], Mapping[str, Tensor]],
    states: Mapping[tuple[str, int], str] | None = None,
) -> dict[str, Evidence]:
    """The results of one request by label; ``margins`` and ``states`` by label and seed."""
    labels = dict.fromkeys(result.label for result in results)
    found = {}
    for label in labels:
        mine = sorted((result for result in results if result.label == label), key=lambda result: result.seed)
        total = sum((result.cost for result in mine), Cost())
        mean = Cost(**{name: value / len(mine) for name, value in total.to_dict().items()})  # type: ignore[arg-type]
        found[label] = Evidence(
            {result.seed: result.values for result in mine},
            {result.seed: margins.get((label, result.seed), {}) for result in mine},
            mean,
            {result.seed: result.others for result in mine},
            {k: state for (name, k), state in (states or {}).items() if name == label},
        )
    return found


def gates(models: Mapping[str, Evidence], primary: str, chances: Mapping[str, float]) -> dict:
    """Whether the scenario can show anything, before any strategy is looked at.

    Args:
        models: by label, from `evidence`.
        primary: the primary metric.
        chances: from `fedforget.evaluation.chances`.

    Returns:
        ``attacks``: those whose signal is at least 3 floor standard deviations; ``state``: `PASSED`, or `VOID` if it
        can show nothing, or `UNCHECKED` if one seed leaves that open; ``why``: a sentence unless it passed; `chances`.
    """
    original, oracle = models[ORIGINAL].values, models[ORACLE]
    available = [name for name in _names(models[ORIGINAL]) if _attack(name)]
    passed = [name for name in available if _has_signal(original, oracle, name)]
    state, why = VOID, _nothing_to_show(models[ORIGINAL], oracle, primary, chances)
    if not why and len(oracle.values) == 1:
        state, why = UNCHECKED, "one seed has no spread between oracles to compare a distance with"
    elif not why and not _has_signal(original, oracle, primary):
        why = (
            f"under {primary} the original is no further from the oracle than 3 standard deviations between oracles "
            f"({_mean(original, primary):.3g} against {_mean(oracle.values, primary):.3g})"
        )
    return {"attacks": passed, "state": state if why else PASSED, "why": why, "chances": dict(chances)}


def _nothing_to_show(original: Evidence, oracle: Evidence, primary: str, chances: Mapping[str, float]) -> str:
    """Why a scenario is void whatever the spread between seeds is; empty if it need not be."""
    sides = {"original": original.values, "oracle": oracle.values}
    if any(primary not in metrics for side in sides.values() for metrics in side.values()):
        return f"{primary} was not measured, because an audit set that it needs is empty"
    for name, side in sides.items():
        if not math.isfinite(_mean(side, primary)):
            return f"the {name}'s {primary} is no number, so there is nothing to compare with"
        useful = {m: chance for m, chance in chances.items() if m.startswith("test") and m in _names_of(side)}
        if useful and all(_mean(side, m) <= chance for m, chance in useful.items()):
            best, chance = next((100 * _mean(side, m), 100 * chance) for m, chance in useful.items())
            what = "nothing it forgets can be shown" if name == "original" else "it is no measure of forgetting"
            return f"the {name} is no better than a constant guess ({best:.3g} % against {chance:.3g} %), so {what}"
    auc = _mean(original.values, "canary/auc") if "canary/auc" in _names(original) else 1.0
    if not auc >= MEMORISED:
        return f"the original's canary AUC is {auc:.2f}, below {MEMORISED}: it did not memorise them"
    before, after = (_mean(side, primary) for side in sides.values())
    if before == after:
        return f"there is nothing to forget: under {primary} original and oracle are equal ({before:.3g})"
    if primary.startswith("forget/") and "forget/accuracy" in _names(original):
        before, after = (_mean(side, "forget/accuracy") for side in sides.values())
        if min(before, after) >= KNOWN:
            return (
                f"there is nothing to forget: original and oracle have {100 * before:.1f} % and {100 * after:.1f} % of "
                "the forgotten examples right"
            )
    return ""


def judge(models: Mapping[str, Evidence], primary: str, chances: Mapping[str, float], seed: int = 0) -> list[dict]:
    """A row for each strategy (and for the original, and for `ANOTHER`, an oracle in a strategy's place).

    Columns; each ``x_low`` is the pessimistic end of a one-sided 95 % interval, None where there is none:

    - ``state``: what the model is called if it cannot have unlearned: `NOT_FINITE`, `CONSTANT` (it predicts one class
      on a test set of at least two), `UNMOVED` (its weights are where it started, to rounding), else empty;
      ``state_seeds``: in how many seeds. Such a row is not ranked;
    - ``forgetting``, ``utility``, ``fidelity``: the axes of the score; None where no attack or set passed its gate;
    - ``worst_attack``, ``worst_left``: the attack that ``forgetting`` comes from, and the share of its signal that is
      left, with its sign (`fedforget.metrics.score.worst_attack`);
    - ``quality_privacy`` = min(forgetting, utility), ``quality_indistinguishable`` = min of all three;
    - ``rank_first``, ``rank_last``: range of the rank by quality_privacy over resamples of the seeds;
    - ``examples_speedup``, ``bytes_speedup``, ``rounds_speedup``: cost of an equally good retrain over the cost;
    - ``energy``, ``energy_p``, ``energy_holm``: test of equal margins on the forget set, and p corrected for the number
      of strategies (paired seeds make the test conservative); ``energy_worst``: mean over the worst tenth of examples;
    - ``verdict``, ``verdict_p``: equivalent, different or unresolved under the primary metric (TOST, margin 20 % of
      the signal); the gate's state where it did not pass, ``not measured`` without the metric;
    - ``remaining``: mean gap over signal under the primary metric, ``remaining_low`` and ``_high`` its 95 % interval;
    - ``closer``: ``oracle``, ``original`` or ``unresolved``, the relative test on the forget set, ``closer_p`` its p;
    - ``ulira_accuracy``, ``ulira_auc``, ``ulira_tpr``, each with ``_low`` and ``_high``, and ``ulira_worst``: U-LiRA on
      the forget set, against the oracle; ``coin_accuracy`` and so on: the same on candidate canaries, by the coin; None
      below the seeds of level attack. `ANOTHER` is the zero of the first: oracles against the next seed's, in pairs;
    - ``epsilon``, ``coin_epsilon``: lower bounds over models, against the oracle and by the coin; ``epsilon_most``: the
      most that the first could show; None below the seeds of level epsilon;
    - ``harmed``: share of retained clients whose accuracy suffers;
    - for comparability only: ``tug_of_war``, ``average_gap``, ``klom``, ``forgetting_score``, each with its ``_floor``.

    Args:
        models: by label, from `evidence`.
        primary: the primary metric.
        chances: what the best constant answer scores under each metric that utility is judged by.
        seed: of the bootstrap.
    """
    gate = gates(models, primary, chances)
    oracle, original = models[ORACLE], models[ORIGINAL]
    labels = [label for label in models if label != ORACLE and not label.startswith(CHECKPOINT)]
    shown = {label: models[label] for label in labels}
    frontier = stopped(models, gate["attacks"], chances)
    rows = []
    per_seed = {}
    for label, mine in shown.items():
        seeds = [k for k in mine.values if k in oracle.values and k in original.values]
        axes = _axes(mine, oracle, original, gate["attacks"], chances)
        row: dict = {"label": label, "seeds": len(seeds), **_state(mine), **axes}
        row |= _speedups(axes["quality_privacy"], mine.cost, frontier, models, oracle.cost)
        row |= _energy(mine, oracle, seed) | _verdict(mine, original, oracle, primary, gate["state"], seeds)
        row |= _relative(mine, oracle, original, seeds) | shadowed(label, mine, oracle, seed)
        row |= _comparable(mine, oracle) | {"harmed": _harmed(mine, oracle)}
        rows.append(row)
        if len(seeds) == len(oracle.values) > 1 and axes["quality_privacy"] is not None and not row["state"]:
            per_seed[label] = [_one_seed(mine, oracle, original, gate["attacks"], chances, k) for k in seeds]
    ranked = {label: scores for label, scores in per_seed.items() if label not in (ORIGINAL, ANOTHER)}
    if ranked:
        ranges = statistics.rank_ranges(ranked, np.random.default_rng(seed))
        for row in rows:
            row["rank_first"], row["rank_last"] = ranges.get(row["label"], (None, None))
    tested = {row["label"]: row["energy_p"] for row in rows if row["label"] not in (ORIGINAL, ANOTHER)}
    corrected = statistics.holm({label: math.nan if p is None else p for label, p in tested.items()})
    for row in rows:
        row.setdefault("rank_first", None)
        row.setdefault("rank_last", None)
        p = corrected.get(row["label"], math.nan)
        row["energy_holm"] = None if math.isnan(p) else p
    return rows


def stopped(models: Mapping[str, Evidence], attacks: Sequence[str], chances: Mapping[str, float]) -> dict[str, dict]:
    """The axes of the score of retrains that were stopped early, by label, without later stages: they have none."""
    now = [attack for attack in attacks if not later_metric(attack)[0]]
    early = {label: mine for label, mine in models.items() if label.startswith(CHECKPOINT)}
    return {label: _axes(mine, models[ORACLE], models[ORIGINAL], now, chances) for label, mine in early.items()}


def _state(mine: Evidence) -> dict:
    """The worst state of a label's models, and how many of them are in it."""
    found = list(mine.states.values())
    state = next((state for state in (NOT_FINITE, CONSTANT, UNMOVED) if state in found), "")
    return {"state": state, "state_seeds": found.count(state) if state else 0}


def _names(models: Evidence) -> list[str]:
    return _names_of(models.values)


def _names_of(values: Values) -> list[str]:
    return list(next(iter(values.values())))


def _attack(name: str) -> bool:
    return later_metric(name)[1] in ATTACKS


def _column(values: Values, name: str, seeds: Sequence[int] | None = None) -> list[float]:
    return [values[k][name] for k in (values if seeds is None else seeds)]


def _mean(values: Values, name: str) -> float:
    return float(np.mean(_column(values, name)))


def _has_signal(original: Values, oracle: Evidence, name: str) -> bool:
    if any(name not in metrics for metrics in (*original.values(), *oracle.values.values())):
        return False
    seeds = list(original)
    others = [scores[name] for scores in oracle.others.values() if name in scores]
    _, spread = floor(_column(oracle.values, name), others)
    if spread is None:  # of one oracle nobody knows how far another would be
        return False
    return statistics.memorised(_column(original, name), _column(oracle.values, name, seeds), spread)


def _axes(
    mine: Evidence, oracle: Evidence, original: Evidence, attacks: Sequence[str], chances: Mapping[str, float]
) -> dict:
    """The three axes of the score and their minima, each with its pessimistic end; and the attack that counted."""
    seeds = list(mine.values)
    sides = [
        {a: _column(e.values, a, seeds) for a in attacks if all(a in e.values[k] for k in seeds)}
        for e in (mine, oracle, original)
    ]
    common = [a for a in attacks if all(a in side for side in sides)]
    forgetting = utility = fidelity_ = worst = left = None
    if common:
        u, o, m = ({a: side[a] for a in common} for side in sides)
        forgetting = score.forgetting(u, o, m)
        worst, left = score.worst_attack(u, o, m)
    useful = [
        name
        for name, chance in chances.items()
        if all(name in e.values[k] for e in (mine, oracle) for k in seeds)
        and np.mean(_column(oracle.values, name, seeds)) > chance
    ]
    if useful:
        u, o = ({name: _column(e.values, name, seeds) for name in useful} for e in (mine, oracle))
        utility = score.utility(u, o, chances)
    distances = {name: _distance(mine, oracle, name, seeds) for name in audit_sets.COMPARED}
    signals = {name: _distance(original, oracle, name, seeds) for name in audit_sets.COMPARED}
    both_known = [n for n in audit_sets.COMPARED if distances[n] and (d := signals[n]) and 0 < d.value < math.inf]
    if both_known:
        fidelity_ = score.fidelity(
            {n: distances[n] for n in both_known},  # type: ignore[misc]
            {n: signals[n] for n in both_known},  # type: ignore[misc]
        )
    row: dict = {}
    for name, axis in (("forgetting", forgetting), ("utility", utility), ("fidelity", fidelity_)):
        row[name] = None if axis is None else axis.value
        row[f"{name}_low"] = None if axis is None or math.isnan(axis.pessimistic) else axis.pessimistic
    for name, parts in (
        ("quality_privacy", ("forgetting", "utility")),
        ("quality_indistinguishable", ("forgetting", "utility", "fidelity")),
    ):
        for end in ("", "_low"):
            known = [row[f"{part}{end}"] for part in parts]
            row[f"{name}{end}"] = None if None in known else score.quality(*known)
    return row | {"worst_attack": worst, "worst_left": left}


def _one_seed(
    mine: Evidence,
    oracle: Evidence,
    original: Evidence,
    attacks: Sequence[str],
    chances: Mapping[str, float],
    k: int,
) -> float:
    """Quality (privacy track) of one seed's model, with the signal and the oracle's utility averaged over seeds."""
    forgetting = 1.0
    for a in attacks:
        if a in mine.values[k]:
            signal = abs(_mean(original.values, a) - _mean(oracle.values, a))
            forgetting = min(forgetting, 1 - abs(mine.values[k][a] - oracle.values[k][a]) / signal)
    utility = 1.0
    for name, chance in chances.items():
        if name in mine.values[k] and _mean(oracle.values, name) > chance:
            best = _mean(oracle.values, name) - chance
            utility = min(utility, (mine.values[k][name] - chance) / best)
    worst = min(forgetting, utility)
    return 0.0 if math.isnan(worst) else max(0.0, worst)


def _stack(mine: Evidence, name: str, seeds: Sequence[int]) -> Tensor | None:
    """Margins ``[K, n]`` on one set, None where they are not known."""
    if not seeds or any(name not in mine.margins[k] for k in seeds):
        return None
    stack = torch.stack([mine.margins[k][name] for k in seeds])
    return stack if stack.shape[1] else None


def _distance(mine: Evidence, oracle: Evidence, name: str, seeds: Sequence[int]) -> score.Distance | None:
    u, o = _stack(mine, name, seeds), _stack(oracle, name, seeds)
    if u is None or o is None or len(seeds) < 2:
        return None

    return score.Distance(*fidelity.jackknifed_distance(u, o))


def _energy(mine: Evidence, oracle: Evidence, seed: int) -> dict:
    seeds = list(mine.values)
    u, o = _stack(mine, "forget", seeds), _stack(oracle, "forget", seeds)
    if u is None or o is None or len(seeds) < 2:
        return dict.fromkeys(("energy", "energy_p", "energy_worst"))
    test = fidelity.energy_test(u, o, np.random.default_rng(seed))
    return {"energy": test.statistic, "energy_p": test.p, "energy_worst": test.worst_decile}


def _relative(mine: Evidence, oracle: Evidence, original: Evidence, seeds: Sequence[int]) -> dict:
    """Whether the margins on the forget set are closer to the oracle's or to the original's."""
    u, o, m = (_stack(e, "forget", seeds) for e in (mine, oracle, original))
    if u is None or o is None or m is None or len(seeds) < 3:
        return {"closer": None, "closer_p": None}
    found = fidelity.relative_test(u, o, m)
    return {"closer": found.closer, "closer_p": None if math.isnan(found.p) else found.p}


def shadowed(label: str, mine: Evidence, oracle: Evidence, seed: int = 0) -> dict:
    """U-LiRA and bounds on epsilon over models: those columns of `judge`, None where there are too few seeds."""
    parts = ("accuracy", "auc", "tpr")
    names = [f"{part}{end}" for part in parts for end in ("", "_low", "_high")]
    row: dict = dict.fromkeys(f"{attack}_{name}" for attack in ("ulira", "coin") for name in (*names, "worst"))
    row |= dict.fromkeys(("epsilon", "coin_epsilon", "epsilon_most"))
    seeds, rng = list(mine.values), np.random.default_rng(seed)
    if len(seeds) < LEVELS["attack"].seeds:
        return row
    u, o = _stack(mine, "forget", seeds), _stack(oracle, "forget", seeds)
    if label == ANOTHER:  # in disjoint pairs, for an oracle on both sides would help to fit itself
        half = len(seeds) // 2
        u, o = (_stack(oracle, "forget", seeds[start : 2 * half : 2]) for start in (1, 0))
    candidates, coins = (_stack(mine, name, seeds) for name in ("canary", COINS))
    found = {}
    if u is not None and o is not None:
        unlearned = (torch.arange(2 * len(u)) < len(u))[:, None].expand(-1, u.shape[1])
        found["ulira"] = shadows.ulira_attack(torch.cat([u, o]), unlearned, torch.arange(len(u)).repeat(2), rng)
    if candidates is not None and coins is not None:
        found["coin"] = shadows.ulira_attack(candidates, coins, torch.arange(len(coins)), rng)
    for attack, result in found.items():
        for part in parts:
            interval = getattr(result, part)
            ends = {f"{attack}_{part}_low": interval.low, f"{attack}_{part}_high": interval.high}
            row |= {f"{attack}_{part}": interval.mean, **ends}
        row[f"{attack}_worst"] = result.worst
    if len(seeds) >= LEVELS["epsilon"].seeds:
        if u is not None and o is not None:
            row["epsilon"] = shadows.epsilon_over_models(u, o)
            row["epsilon_most"] = shadows.largest_epsilon(len(u))
        if candidates is not None and coins is not None:
            row["coin_epsilon"] = shadows.epsilon_by_coin(candidates, coins)
    return row


def _verdict(
    mine: Evidence, original: Evidence, oracle: Evidence, primary: str, gate: str, seeds: Sequence[int]
) -> dict:
    """Equivalence under the primary metric, and the share of the signal that remains."""
    known = all(primary in e.values[k] for e in (mine, original, oracle) for k in seeds)
    if not (known and gate == PASSED and seeds):
        blank = dict.fromkeys(("verdict_p", "remaining", "remaining_low", "remaining_high"))
        return {"verdict": "not measured" if gate == PASSED else gate, **blank}
    gaps = [mine.values[k][primary] - oracle.values[k][primary] for k in seeds]
    signal = float(np.mean([original.values[k][primary] - oracle.values[k][primary] for k in seeds]))
    found = statistics.equivalence(gaps, MARGIN * abs(signal))
    share = statistics.interval([gap / signal for gap in gaps])
    return {
        "verdict": found.verdict,
        "verdict_p": None if math.isnan(found.p) else found.p,
        "remaining": share.mean,
        "remaining_low": None if math.isnan(share.low) else share.low,
        "remaining_high": None if math.isnan(share.high) else share.high,
    }


def _speedups(
    quality: float | None, cost: Cost, frontier: Mapping[str, dict], models: Mapping[str, Evidence], whole: Cost
) -> dict:
    """`score.iso_quality_speedup` in examples, bytes and rounds; None without a frontier or a quality."""
    names = ("examples_speedup", "bytes_speedup", "rounds_speedup")
    known = {label: axes["quality_privacy"] for label, axes in frontier.items() if axes["quality_privacy"] is not None}
    if quality is None or math.isnan(quality) or not known:
        return dict.fromkeys(names)
    row = {}
    for name, unit in zip(names, (_examples, _bytes, _rounds), strict=True):
        points = [(unit(models[label].cost), reached) for label, reached in known.items()]
        ratio = score.iso_quality_speedup(quality, unit(cost), [*points, (unit(whole), 1.0)])
        row[name] = None if math.isnan(ratio) else ratio
    return row


def _examples(cost: Cost) -> float:
    return cost.client_examples


def _bytes(cost: Cost) -> float:
    return cost.bytes_up + cost.bytes_down


def _rounds(cost: Cost) -> float:
    return cost.rounds


def _harmed(mine: Evidence, oracle: Evidence) -> float | None:
    """Share of retained clients harmed; None where clients were not audited one by one."""
    sides = [
        [{name: v for name, v in e.values[k].items() if name.startswith("client/")} for k in mine.values]
        for e in (mine, oracle)
    ]
    if not all(sides[0]) or len(sides[0]) < 2:
        return None
    own, retrained = ([{int(n.split("/")[1]): v for n, v in one.items()} for one in side] for side in sides)
    share = clients.share_harmed(own, retrained)
    return None if math.isnan(share) else share


def _comparable(mine: Evidence, oracle: Evidence) -> dict:
    """ToW, average gap, KLOM and the NeurIPS score, with their floors, between halves of the seeds for the last two."""
    seeds = list(mine.values)
    following = dict(zip(seeds, [*seeds[1:], seeds[0]], strict=True))
    row: dict = {}
    pairs = {
        "": [(mine.values[k], oracle.values[k]) for k in seeds],
        "_floor": [(oracle.values[following[k]], oracle.values[k]) for k in seeds] if len(seeds) > 1 else [],
    }
    for end, several in pairs.items():
        tows, means = [], []
        for model, retrained in several:
            apart = {name: value - retrained[name] for name, value in model.items() if name in retrained}
            if not all(f"{name}/accuracy" in apart for name in audit_sets.COMPARED):
                continue
            gaps = [apart[f"{name}/accuracy"] for name in audit_sets.COMPARED]
            tows.append(fidelity.tug_of_war(gaps))
            if "efficacy/confidence" in apart:
                means.append(fidelity.average_gap(gaps, apart["efficacy/confidence"]))
        row[f"tug_of_war{end}"] = float(np.mean(tows)) if tows else None
        row[f"average_gap{end}"] = float(np.mean(means)) if means else None
    half = len(seeds) // 2
    first, second = seeds[:half], seeds[half : 2 * half]
    row |= dict.fromkeys(("klom", "klom_floor", "forgetting_score", "forgetting_score_floor"))
    sides = [_stack(mine, "forget", first), _stack(oracle, "forget", first), _stack(oracle, "forget", second)]
    if half >= 2 and all(side is not None and side.isfinite().all() for side in sides):
        u, o, other = sides
        row["klom"], row["klom_floor"] = (float(klom.klom(a, other).mean()) for a in (u, o))  # type: ignore[arg-type]
        if half >= 3:
            row["forgetting_score"], row["forgetting_score_floor"] = (
                fidelity.forgetting_score(a, other)  # type: ignore[arg-type]
                for a in (u, o)
            )
    return row
