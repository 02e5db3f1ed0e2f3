"""The audit: every model of a run against the oracles of its seed, with intervals, the floor, and the bill.

The unit of replication is the seed (one whole training run), never the example. Intervals are 95 % t-intervals.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from fedforget.ledger import Cost
from fedforget.metrics import METRICS, Outputs

ORIGINAL, ORACLE = "original", "retrain"


class Level(NamedTuple):
    """An evidence level: the fewest seeds it needs, and in one sentence what a run at this level may claim."""

    seeds: int
    claim: str


LEVELS = {
    "smoke": Level(1, "The run works end to end; one seed has no error bar, so nothing is claimed about any method."),
    "screen": Level(
        3,
        "The direction of a gap may be claimed, not a ranking: with three seeds a 95 % interval is 2.5 standard "
        "deviations on each side.",
    ),
    "leaderboard": Level(
        5, "Verdicts against the oracle's floor may be claimed, with their intervals, for this task and request only."
    ),
}


@dataclass(frozen=True)
class EvaluationConfig:
    """How much evidence a run gathers.

    Args:
        level: an evidence level, a key of `LEVELS`.
        seeds: K, the number of originals and of oracles.
        max_examples: at most this many examples in each audit set.

    Raises:
        ValueError: if the level is unknown or needs more seeds, or if ``max_examples`` is below 1.
    """

    level: str = "screen"
    seeds: int = 3
    max_examples: int = 2000

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            near = difflib.get_close_matches(self.level, LEVELS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"evaluation level {self.level!r} is unknown; choose one of {', '.join(LEVELS)}{hint}")
        if self.seeds < LEVELS[self.level].seeds:
            raise ValueError(
                f"evaluation seeds={self.seeds} is too few for level {self.level!r}, "
                f"which needs at least {LEVELS[self.level].seeds}"
            )
        if self.max_examples < 1:
            raise ValueError(f"evaluation max_examples={self.max_examples} must be at least 1")

    @property
    def claim(self) -> str:
        """What a run at this level may claim."""
        return LEVELS[self.level].claim


@dataclass(frozen=True)
class ModelResult:
    """One model's scores and bill.

    Args:
        request: index of the request in the run's sequence, from 0.
        label: ``"original"``, ``"retrain"`` (the oracle), or the label of a strategy.
        seed: index k of the seed; models of equal seed are paired.
        values: what `measure` returned for the audit sets of this request.
        cost: what making this model cost.
    """

    request: int
    label: str
    seed: int
    values: dict[str, float]
    cost: Cost


def measure(outputs: Mapping[str, Outputs]) -> dict[str, float]:
    """Every metric on every audit set, as ``"forget/accuracy" -> value``; an empty set gives no entry."""
    return {
        f"{name}/{metric}": function(answers)
        for name, answers in outputs.items()
        if len(answers)
        for metric, function in METRICS.items()
    }


def audit(results: Sequence[ModelResult]) -> list[dict]:
    """One row per request, label and metric; originals first, then oracles, then strategies in their given order.

    Columns, with m the metric, U_k the model of seed k, O_k its oracle and M_k its original:

    - ``value``: mean of m(U_k); ``gap``: mean of m(U_k) - m(O_k); ``noop_gap``: mean of m(M_k) - m(O_k), the signal.
      Each has a ``..._half_width``, that of its 95 % t-interval over seeds; None for one seed.
    - ``floor``: mean over i of |m(O_i) - mean over j != i of m(O_j)|, what a perfect method would get; ``floor_sd``:
      standard deviation of these differences with their sign. Both None for one oracle.
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
        for label, by_seed in models.items():
            for metric in by_seed[min(by_seed)].values:
                scores = [_scores(group, metric) for group in (by_seed, models[ORIGINAL], models[ORACLE])]
                names = {"request": request, "label": label, "metric": metric, "seeds": len(by_seed)}
                rows.append(names | _row(label, *scores))
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


def _row(label: str, scores: dict[int, float], original: dict[int, float], oracle: dict[int, float]) -> dict:
    """The columns of `audit` that are numbers; each argument is ``seed -> m``."""
    with np.errstate(invalid="ignore"):  # a model that diverged scores inf or NaN, and its row must say so
        value, value_half_width = _interval(list(scores.values()))
        gap, gap_half_width = _interval([score - oracle[seed] for seed, score in scores.items()])
        noop_gap, noop_gap_half_width = _interval([score - oracle[seed] for seed, score in original.items()])
        floor, floor_sd = _floor(list(oracle.values()))
    something_to_forget = floor_sd is not None and abs(noop_gap) > 3 * floor_sd
    row = {
        "value": value,
        "value_half_width": value_half_width,
        "gap": gap,
        "gap_half_width": gap_half_width,
        "noop_gap": noop_gap,
        "noop_gap_half_width": noop_gap_half_width,
        "floor": floor,
        "floor_sd": floor_sd,
        "gap_in_floors": abs(gap) / floor if floor else None,
        "gap_closed": 1 - abs(gap) / abs(noop_gap) if something_to_forget else None,
    }
    if label == ORACLE:
        row |= dict.fromkeys(("gap", "gap_half_width", "gap_in_floors", "gap_closed"))
    return row


def _interval(sample: list[float]) -> tuple[float, float | None]:
    """The mean of ``sample`` and the half-width of its 95 % t-interval, None for one number."""
    half_width = None
    if len(sample) > 1:
        half_width = float(stats.t.ppf(0.975, len(sample) - 1) * np.std(sample, ddof=1) / len(sample) ** 0.5)
    return float(np.mean(sample)), half_width


def _floor(oracle: list[float]) -> tuple[float | None, float | None]:
    """Mean absolute leave-one-out difference between oracles, and the standard deviation of the signed ones."""
    if len(oracle) < 2:
        return None, None
    scores = np.asarray(oracle)
    pairs = scores[:, None] - scores  # differences first: equal oracles then have a floor of exactly 0
    apart = pairs.sum(1) / (len(oracle) - 1)
    return float(np.abs(apart).mean()), float(np.std(apart, ddof=1))
