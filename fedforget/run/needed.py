"""What a run will write that is not there yet, before it writes any of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fedforget import tuning
from fedforget.config import StrategySpec
from fedforget.data import audit_sets
from fedforget.evaluation import ORACLE
from fedforget.history import HistoryConfig
from fedforget.run import addresses, disk
from fedforget.run.auditing import PATH
from fedforget.run.disk import Need
from fedforget.run.rehearsal import Rehearsal, tunable
from fedforget.run.setting import Setting, cohort_of, learns_itself
from fedforget.run.trajectories import checkpoints, find_trajectory
from fedforget.store import digest
from fedforget.strategy import AVERAGING


def to_make(setting: Setting, rehearsal: Rehearsal | None) -> int:
    """How many models the run makes or loads, those that are learned among them."""
    seeds, specs = setting.config.evaluation.seeds, setting.specs
    number = seeds * (1 + len(specs) * len(setting.requests) + sum(map(learns_itself, specs)))
    return number + (2 + setting.config.tuning.trials * len(tunable(setting.config)[0]) if rehearsal else 0)


def needed(setting: Setting, rehearsal: Rehearsal | None, form: HistoryConfig) -> Need:
    """What the run will write that is not there yet; what was begun counts as far as it is not written.

    Args:
        setting: the run.
        rehearsal: in which strategies are tuned, if they are.
        form: level and form of the record.
    """
    need, requests = Need(), range(len(setting.requests))
    for k in range(setting.config.evaluation.seeds):
        common = _recording(setting, k, None, form)
        need += common
        if common.total:
            need += sum((_audit(setting, i) for i in requests), Need())
        for spec in setting.specs:
            if learns_itself(spec):
                need += _recording(setting, k, spec, form)
            need += _served(setting, k, spec, form)
    if rehearsal:
        learning = _recording(rehearsal.setting, tuning.SEED, None, form)
        if learning.total:
            number = 1 + setting.config.tuning.trials * len(tunable(setting.config)[0])
            answers = number * _answers(rehearsal.setting, 0, tuning.SETS)
            need += learning + Need(models=number * disk.FLOAT * setting.layout.size, audits=answers)
    return need


def _served(setting: Setting, k: int, spec: StrategySpec, form: HistoryConfig) -> Need:
    """What a strategy's models of trajectory ``k`` need that are not there, and their audits."""
    model, need = disk.FLOAT * setting.layout.size, Need()
    previous = addresses.original(setting, k, spec if learns_itself(spec) else None)
    for i in range(len(setting.requests)):
        previous = digest(addresses.made_of(setting, k, spec, i, previous, form))
        if (setting.store.folder("models", previous) / "model.safetensors").exists():
            continue
        passed = checkpoints(setting, i) if spec.label == ORACLE else ()
        answers = len(passed) * _answers(setting, i, audit_sets.EXAMPLES)
        need += Need(models=(1 + len(passed)) * model, audits=answers) + _audit(setting, i)
        if spec.label == ORACLE and setting.config.evaluation.seeds > 1:
            need += _audit(setting, i)  # once more, in the place of another
    return need


def _recording(setting: Setting, k: int, learner: StrategySpec | None, form: HistoryConfig) -> Need:
    """What a trajectory needs that is not learned yet."""
    recording = find_trajectory(setting, k, learner, form)
    if recording.is_complete:
        return Need()
    cohort, learning = cohort_of(setting, setting.seeds(k)), setting.config.learning
    cohorts = [cohort.sample(round) for round in range(1, learning.rounds + 1)]
    need = disk.of_recording(setting.layout, form, cohorts, setting.targets, learning.learner in AVERAGING)
    return replace(need, recordings=max(0, need.recordings - disk.already(recording.folder)))


def _audit(setting: Setting, i: int) -> Need:
    """About what the audit of a model needs after request ``i``: its answers, and the models of further rounds."""
    evaluation, marked = setting.config.evaluation, audit_sets.planted(setting.config.corruption.kind)
    taught = range(1, evaluation.relearn + 1)
    later = len({*evaluation.durability, *taught}) + 2 * len(taught)
    sets = [
        *audit_sets.FIRST,
        *audit_sets.DRAWN,
        *marked,
        "forget",
        *(PATH - 1) * ["test"] * bool(evaluation.durability),
    ]
    sets += len(evaluation.durability) * [*audit_sets.LATER, *marked] + 3 * len(taught) * ["rest"]
    return Need(models=later * disk.FLOAT * setting.layout.size, audits=_answers(setting, i, sets))


def _answers(setting: Setting, i: int, sets: Iterable[str]) -> int:
    """About how many bytes a model's answers on audit sets take."""
    federation, most = setting.federation, setting.config.evaluation.max_examples
    kept, everything = federation.kept(setting.requests[: i + 1]), sum(federation.num_train.values())
    sizes = dict.fromkeys(("test", "trigger"), int(federation.about["num_test"]))
    sizes |= dict.fromkeys(("forget", "rest", "few"), everything - sum(kept.values()))
    classes, total = int(federation.about["num_classes"]), 0
    for name in sets:
        capped = audit_sets.find(name).cap is not None
        size = audit_sets.find(name).most(most if capped else min(most, sizes.get(name, everything)))
        total += disk.of_answers(setting.layout, classes, {name: size})
    return total
