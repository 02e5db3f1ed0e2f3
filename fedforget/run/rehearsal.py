"""Strategies are tuned in a rehearsal: the run's setting with another trajectory, another request, and the same store.

`fedforget.tuning` says what is tried and how it is scored; here the trials are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from fedforget import tuning
from fedforget.cohort import describe
from fedforget.config import RunConfig, StrategySpec
from fedforget.evaluation import ORACLE, ORIGINAL
from fedforget.ledger import Cost
from fedforget.metrics import Outputs
from fedforget.request import UnlearningRequest
from fedforget.run.auditing import Auditing, Question
from fedforget.run.checks import check
from fedforget.run.progress import Progress
from fedforget.run.setting import Setting, learns_itself
from fedforget.run.threads import wait_for, workers
from fedforget.run.trajectories import Broken, Model, Original, Trajectories
from fedforget.seeds import Seeds
from fedforget.stage import LEFT
from fedforget.store import load_tensors


class Rehearsal:
    """Trials of strategies.

    Args:
        setting: the run's, but for the request and what is corrupted.
        spared: the run's own requests, whose clients are spared the validation.
        progress: is told what is made.
    """

    def __init__(self, setting: Setting, spared: Sequence[UnlearningRequest], progress: Progress) -> None:
        self.setting, self.config, self.progress = setting, setting.config.tuning, progress
        self.trajectories = Trajectories(setting, progress)
        self.auditing = Auditing(self.trajectories)
        self._spared = {client for request in spared for client in request.clients}

    def check(self) -> None:
        """Refuse what cannot be tuned on, before anything is trained.

        Raises:
            ValueError: if the other request cannot be served, or there is nothing to score a trial on.
        """
        check(self.setting)
        self.outcome("initial", Model("", self.setting.initial(tuning.SEED), Cost()))

    def run(self, specs: Sequence[StrategySpec]) -> tuple[dict[str, tuning.Tuned], dict[str, Any]]:
        """Give every strategy its trials; returns them by label, and what the header says of the rehearsal itself.

        Raises:
            TooFewClients: if the trajectory that trials unlearn from could not go on.
            ValueError: if a strategy's code fails.
        """
        request = self.setting.requests[0]
        self.progress.say(
            f"tuning: {self.config.trials} trials for each of {len(specs)} strategies, to forget {request}"
        )
        original = self.trajectories.original(tuning.SEED)
        with workers(self.setting, self.progress) as pool:
            oracle = pool.submit(self._attempt, self.setting.specs[0], original)
            trials = {spec.label: pool.submit(self._trials, spec, original) for spec in specs}
            wait_for([oracle, *trials.values()], self.progress)
        tuned = {label: mine.result() for label, mine in trials.items()}
        for label, mine in tuned.items():
            self.progress.say(f"tuned {label}: {mine}")
        done_nothing = self.outcome(ORIGINAL, original.model)
        note = tuning.doubt(done_nothing, oracle.result())
        if note:
            self.progress.note(note)
        objectives = {ORIGINAL: done_nothing.objective, ORACLE: oracle.result().objective}
        return tuned, {"request": str(request), "objectives": objectives, "note": note}

    def outcome(self, label: str, model: Model) -> tuning.Outcome:
        """The objective of a model."""
        (entry,) = self.auditing.entries(tuning.SEED, 0, [Question(label, LEFT, model, tuning.SETS, marks=False)])
        tensors, _ = load_tensors(self.setting.store.root / entry["outputs"])
        answers = {name: Outputs.stored(tensors, name) for name in tuning.SETS}
        return tuning.outcome(answers, self.setting.requests[0], self._spared, self.config, model.cost)

    def _trials(self, spec: StrategySpec, original: Original) -> tuning.Tuned:
        """All trials of a strategy."""
        seeds = Seeds(self.setting.config.seed).child("tuning", spec.label)
        attempt = lambda options: self._attempt(replace(spec, options=options), original)  # noqa: E731
        return tuning.tune(spec.options, self.config.trials, seeds, attempt)

    def _attempt(self, spec: StrategySpec, original: Original) -> tuning.Outcome:
        """One trial: a strategy serves the request, and what it leaves is scored."""
        try:
            model, _ = self.trajectories.serve(tuning.SEED, spec, 0, original.model, original.recording)
            return self.outcome(spec.label, model)
        except Broken as error:
            return tuning.Outcome(tuning.WORST, error.spent, str(error))


def tunable(config: RunConfig) -> tuple[list[StrategySpec], dict[str, str]]:
    """The listed strategies that are tuned, and why others are not, by label."""
    tuned, why = [], {}
    for spec in config.strategies:
        if spec.name in (ORACLE, "none"):
            continue
        if learns_itself(spec):
            why[spec.label] = "it learns by itself, so every trial would be a whole training"
        elif not tuning.space(spec.options):
            why[spec.label] = "no option of its Config declares a range to search"
        else:
            tuned.append(spec)
    return tuned, why


def rehearse(setting: Setting, progress: Progress) -> Rehearsal | None:
    """The rehearsal of a run, with another request; ``None`` if there is nothing to tune.

    Corruption moves from the request's clients to the others, so that there is the same to forget.

    Raises:
        ValueError: if there is no other target, or it cannot be tuned on; nothing has been trained.
    """
    config = setting.config
    if not config.tuning.trials or not tunable(config)[0]:
        return None
    sizes, counts = setting.federation.num_train, setting.federation.class_counts
    other = tuning.another_request(setting.requests, sizes, counts, Seeds(config.seed).child("tuning"))
    corruption = config.corruption
    moved = replace(corruption, clients=tuning.exchanged(corruption.clients, setting.requests[0], other))
    there = replace(setting, requests=(other,))
    if moved != corruption:
        task = replace(setting.task, data=replace(setting.task.data, corruption=moved))
        there = replace(there, task=task, federation=describe(setting.grid, task))
    rehearsal = Rehearsal(there, setting.requests, progress)
    rehearsal.check()
    return rehearsal


def tune(setting: Setting, rehearsal: Rehearsal | None, progress: Progress) -> tuple[Setting, dict[str, Any]]:
    """The setting in which every strategy has its best options, and what the report's header says of the tuning."""
    config, (specs, why) = setting.config, tunable(setting.config)
    for label, reason in why.items():
        progress.note(f"{label} is not tuned and keeps its configured options: {reason}")
    said = {**asdict(config.tuning), "request": "", "objectives": {}, "strategies": {}, "untuned": why, "note": ""}
    if rehearsal is None:
        return setting, said
    tuned, itself = rehearsal.run(specs)
    best = {spec.label: replace(spec.options, **tuned[spec.label].best.drawn) for spec in specs}
    strategies = tuple(replace(spec, options=best.get(spec.label, spec.options)) for spec in setting.strategies)
    said |= {**itself, "strategies": {label: mine.to_dict() for label, mine in tuned.items()}}
    return replace(setting, strategies=strategies), said
