"""Equal tuning: every strategy gets the same number of trials, on another seed and another target, by one objective.

A comparison of methods of which one was tuned and the others were not shows who was tuned. With ``tuning.trials=B``
each strategy is tried with B settings: first the configured ones, then B - 1 that Optuna draws from the ranges that the
strategy's ``Config`` declares. Nothing that the run is judged by is looked at: the trials unlearn from an original of
another seed, forget a target that no request of the run names, and are scored on data that nobody trained on, apart
from the test set and from what the named clients hold.

A field of a ``Config`` that is worth tuning says so in its metadata, as ``search``: ``(low, high, scale)`` with a scale
of `SCALES`, or a tuple of choices. Good ranges span about two decades around the default and hold no setting that the
``Config`` refuses. What makes a strategy dearer (numbers of rounds) belongs there only where it is cheap, or nothing
else can be set: the objective does not see the price.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from fedforget.ledger import Cost
from fedforget.metrics import Outputs
from fedforget.metrics.objective import Goal, bias_removal, objective, privacy
from fedforget.metrics.outputs import accuracy
from fedforget.request import UnlearningRequest
from fedforget.schema.learning import TuningConfig
from fedforget.seeds import Seeds

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

GOALS: dict[str, Goal] = {"privacy": privacy, "bias_removal": bias_removal}
SCALES = ("log", "linear", "int")
SETS = ("forget", "holdout", "clients")  # the audit sets that a trial is scored on
SEED = -1  # index of the trajectory that trials unlearn from; those of the run count from 0
ALIKE = 3  # the other target is drawn among so many that are nearest in size
WORST = 1.0  # the objective of a trial that failed


@dataclass(frozen=True)
class Outcome:
    """What a trial gave.

    Args:
        objective: J, lower = better; in [0, 1].
        cost: its bill.
        note: what went wrong, if it failed; its objective is then `WORST`.
    """

    objective: float
    cost: Cost
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Args:
        drawn: the options that are searched, by name.
        outcome: what they gave.
    """

    drawn: Mapping[str, Any]
    outcome: Outcome

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"options": dict(self.drawn), **asdict(self.outcome)}


@dataclass(frozen=True)
class Tuned:
    """The trials of one strategy, in their order."""

    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial of least objective; among equals one that did not fail, then the first."""
        return min(self.trials, key=lambda trial: (trial.outcome.objective, bool(trial.outcome.note)))

    @property
    def cost(self) -> Cost:
        """The bill of all trials; what is stored serves all of them, and memory is free again, so both count once."""
        costs = [trial.outcome.cost for trial in self.trials]
        stored, held = max(cost.bytes_stored for cost in costs), max(cost.bytes_held for cost in costs)
        return replace(sum(costs, Cost()), bytes_stored=stored, bytes_held=held)

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.best.drawn.items())
        first, failed = self.trials[0].outcome.objective, sum(bool(trial.outcome.note) for trial in self.trials)
        failures = f"; {failed} of {len(self.trials)} trials failed" if failed else ""
        return f"{options} (objective {self.best.outcome.objective:.4f}; as configured {first:.4f}{failures})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        trials = [trial.to_dict() for trial in self.trials]
        return {"trials": trials, "chosen": dict(self.best.drawn), "cost": self.cost.to_dict()}


def space(options: Any) -> dict[str, tuple]:
    """The ``search`` ranges that a strategy's options declare, by field; empty if it has nothing to tune.

    Raises:
        ValueError: if one of them is neither a range nor choices.
    """
    ranges = {field.name: field.metadata["search"] for field in fields(options) if "search" in field.metadata}
    for name, search in ranges.items():
        whole = isinstance(search, (tuple, list)) and len(search) > 0
        numbers = whole and len(search) >= 2 and all(type(end) in (int, float) for end in search[:2])
        if whole and numbers and len(search) == 3 and isinstance(search[2], str):  # a range, and no choices
            whole = search[2] in SCALES and search[0] < search[1] and (search[2] != "log" or search[0] > 0)
        if not whole:
            raise ValueError(
                f"{type(options).__qualname__}.{name} is to be searched in {search!r}, but that must be (low, high, "
                f"scale) with low < high and a scale of {', '.join(SCALES)} (low > 0 for log), or a tuple of choices"
            )
    return ranges


def tune(options: Any, trials: int, seeds: Seeds, attempt: Callable[[Any], Outcome]) -> Tuned:
    """Try the given options and ``trials - 1`` others, one after another; Optuna's TPE sampler draws the others.

    The sampler draws uniformly (on each range's own scale) until ten trials are known, then where the best ones lie
    (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization"). It is seeded, so equal outcomes give equal
    draws.

    Args:
        options: an instance of the strategy's ``Config`` with at least one range.
        trials: how many, at least 1.
        seeds: the strategy's streams.
        attempt: unlearns with such options.
    """
    import optuna  # slow to load

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the run says itself what it tries
    ranges = {name: _distribution(search) for name, search in space(options).items()}
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seeds.integer("sampler") % 2**32))
    drawn = {name: getattr(options, name) for name in ranges}
    tried = [Trial(drawn, attempt(options))]
    if all(_holds(search, drawn[name]) for name, search in space(options).items()):
        value = tried[0].outcome.objective
        study.add_trial(optuna.trial.create_trial(params=drawn, distributions=ranges, value=value))
    while len(tried) < trials:
        asked = study.ask(ranges)
        outcome = attempt(replace(options, **asked.params))
        study.tell(asked, outcome.objective)
        tried.append(Trial(asked.params, outcome))
    return Tuned(tuple(tried))


def _is_range(search: tuple) -> bool:
    return len(search) == 3 and search[2] in SCALES


def _holds(search: tuple, value: Any) -> bool:
    """Whether a range or a tuple of choices holds a configured value, without which the sampler cannot learn of it."""
    return search[0] <= value <= search[1] if _is_range(search) else value in search


def _distribution(search: tuple) -> BaseDistribution:
    from optuna import distributions

    if not _is_range(search):
        return distributions.CategoricalDistribution(search)
    low, high, scale = search
    if scale == "int":
        return distributions.IntDistribution(low, high)
    return distributions.FloatDistribution(low, high, log=scale == "log")


def another_request(
    requests: Sequence[UnlearningRequest],
    sizes: Mapping[int, int],
    class_counts: Mapping[int, Sequence[int]],
    seeds: Seeds,
) -> UnlearningRequest:
    """A request like the first one, whose targets no request of the run names.

    Each target is replaced by one of the `ALIKE` that are nearest in size and free, drawn from ``seeds``: a client by a
    client, a class by a class, samples of a client by the same share of another client's.

    Args:
        requests: the run's requests.
        sizes: training examples of each client.
        class_counts: those of each class, by client.
        seeds: the streams of the draw.

    Raises:
        ValueError: if there is no other target, or for clients nobody left to validate on.
    """
    first = requests[0]
    named = {client for request in requests for client in request.clients}
    if first.scope == "class":
        named = {label for request in requests if request.scope == "class" for label in request.targets}
        sizes = dict(enumerate(map(sum, zip(*class_counts.values(), strict=True))))
    free = {target: size for target, size in sizes.items() if size and target not in named}
    old = first.targets if first.scope == "class" else first.clients
    needed = len(old) + (first.scope == "client")
    if len(free) < needed:
        noun = "class" if first.scope == "class" else "client"
        third = " and validates on a further one" if first.scope == "client" else ""
        raise ValueError(
            f"tuning forgets for each {noun} of the request another one{third}, so it needs {needed} that hold data "
            f"and that no request names, but there {'is' if len(free) == 1 else 'are'} {len(free)}; use tuning.trials=0"
        )
    chosen = {}
    for target in old:
        near = sorted(free, key=lambda other: (abs(free[other] - sizes[target]), other))[:ALIKE]
        chosen[target] = near[seeds.numpy("target", target).integers(len(near))]
        del free[chosen[target]]
    if first.scope != "sample":
        return replace(first, targets=tuple(chosen.values()))
    targets = []
    for target, owner in chosen.items():
        count = max(1, round(len(first.positions(target)) / sizes[target] * sizes[owner]))
        order = seeds.numpy("samples", owner).permutation(sizes[owner])
        targets += [(owner, position) for position in order[:count].tolist()]
    return replace(first, targets=tuple(targets))


def exchanged(clients: Sequence[int], first: UnlearningRequest, other: UnlearningRequest) -> tuple[int, ...]:
    """``clients`` with those of one request and those of the other in each other's places (what is corrupted)."""
    pairs = dict(zip(first.clients, other.clients, strict=True))
    pairs |= {there: here for here, there in pairs.items()}
    return tuple(sorted(pairs.get(client, client) for client in clients))


def outcome(
    answers: Mapping[str, Outputs],
    request: UnlearningRequest,
    spared: Collection[int],
    config: TuningConfig,
    cost: Cost,
) -> Outcome:
    """The objective of a model, from what it answers on `SETS`.

    ``J = (1 - lambda) err(V) + lambda goal``, see `fedforget.metrics.objective`. V is what the retained clients never
    trained on (of a class request: but for the classes to be forgotten). The goal ``privacy`` compares the forgotten
    examples with what their owners never trained on (of those classes): unlike V they are the same kind of data.

    Args:
        answers: by audit set.
        request: what the model was to forget.
        spared: clients whose data the run's own audit needs; they are left out of V.
        config: goal and trade-off.
        cost: the model's bill.

    Raises:
        ValueError: if one of the sets is empty.
    """
    forget, unseen, validation = (answers[name] for name in SETS)
    if request.scope == "class":
        classes = torch.tensor(request.targets)
        unseen = unseen.take(torch.isin(unseen.labels, classes).nonzero().flatten())
        validation = validation.take((~torch.isin(validation.labels, classes)).nonzero().flatten())
    others = ~torch.isin(validation.clients, torch.tensor(sorted(spared), dtype=validation.clients.dtype))
    validation = validation.take(others.nonzero().flatten())
    parts = {"forgotten examples": forget, "holdout of the target": unseen, "holdout of the others": validation}
    for what, part in parts.items():
        if not len(part):
            raise ValueError(
                f"tuning on {request} has no {what} to be scored on; use a larger partition.holdout or tuning.trials=0"
            )
    if not all(part.logits.isfinite().all() for part in parts.values()):
        return Outcome(WORST, cost, "the model diverged")
    forget_error, unseen_error, validation_error = (1 - accuracy(part) for part in parts.values())
    goal = GOALS[config.goal]
    value = objective(
        validation_error, forget_error, config.trade_off, lambda forgotten, _: goal(forgotten, unseen_error)
    )
    return Outcome(value, cost)


def doubt(original: Outcome, oracle: Outcome) -> str:
    """What to tell the user where the objective does not prefer retraining to doing nothing; else empty.

    Then nothing was memorised, or the goal does not fit: under ``privacy``, forgotten examples with wrong labels differ
    from unseen ones with right labels however well they are forgotten.
    """
    if oracle.objective < original.objective:
        return ""
    return (
        f"by this objective the oracle ({oracle.objective:.4f}) is no better than doing nothing "
        f"({original.objective:.4f}), so tuning does not favour forgetting; choose another tuning.goal or trade_off"
    )
