"""Models of a trajectory: learned, left by strategies that serve requests, or reached by further rounds.

Each is stored under its address, made once, and continued where it was interrupted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fedforget import tuning
from fedforget.cohort import Cohort, TooFewClients
from fedforget.config import StrategySpec
from fedforget.evaluation import ORACLE
from fedforget.history import FileJournal, History, HistoryConfig, Recording, find_recording
from fedforget.ledger import Cost
from fedforget.params import Params
from fedforget.run import addresses
from fedforget.run.checks import code_of_strategy, record_of
from fedforget.run.progress import Progress
from fedforget.run.setting import Setting, cohort_of
from fedforget.store import DamagedFile, digest, discard, load_tensors, save_tensors
from fedforget.strategy import find


@dataclass(frozen=True)
class Model:
    """A stored model.

    Args:
        key: its address.
        params: its parameters.
        cost: what making it cost.
        path: the file that holds it.
        tensor: its name in that file.
        residues: bytes the server still holds that depend on the forgotten data, by what they are.
        notes: who was left out of which of its rounds, and why.
    """

    key: str
    params: Params
    cost: Cost
    path: str = ""
    tensor: str = "model"
    residues: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Original:
    """A learned trajectory of one seed."""

    model: Model
    recording: Recording


class Broken(TooFewClients):
    """A strategy cannot go on: too many clients failed, or its model is no longer finite.

    Args:
        reason: which round failed, and how.
        spent: its bill so far.
    """

    def __init__(self, reason: str, spent: Cost) -> None:
        super().__init__(reason)
        self.spent = spent


class Trajectories:
    """Makes the models of a run, or loads them.

    Args:
        setting: the run.
        progress: is told what is made.

    Raises:
        ValueError: if the configured record is less than a strategy needs.
    """

    def __init__(self, setting: Setting, progress: Progress) -> None:
        self.setting, self.progress, self.form = setting, progress, record_of(setting)

    def original(self, k: int, learner: StrategySpec | None = None) -> Original:
        """Learn the trajectory of seed ``k``, or load it: the common one, or that of a strategy that learns itself.

        Raises:
            TooFewClients: if too many clients failed.
            ValueError: if the code of the ``learner`` fails.
        """
        setting, start, rounds = self.setting, self.setting.initial(k), self.setting.rounds(0)
        what = f"learning for {learner.label}, {_seed(k)}" if learner else f"learning, {_seed(k)}"
        with setting.store.lock("trajectories", addresses.trajectory(setting, k, learner)):
            recording = find_trajectory(self.setting, k, learner, self.form)
            try:
                notes = recording.verify() if recording.is_complete else None
            except DamagedFile as error:
                self.progress.note(str(error))
                setting.store.remove(recording.folder)
                recording, notes = find_trajectory(self.setting, k, learner, self.form), None
            journal = FileJournal(recording.folder / "journal", self.progress.say)
            if not recording.is_complete:
                self._learn(k, learner, start, recording, journal, what)
            setting.store.remove(journal.folder)
            notes = notes or recording.verify()
        _, cost = recording.summary()
        noted = tuple(note for round in range(1, rounds + 1) for note in notes[round])
        self.progress.notes(what, noted)
        final = Params(recording.load(rounds)[0]["global"], start.layout)
        whose = f"{learner.label}'s own original" if learner else "the original"
        self.progress.finished(f"learned {whose}, {_seed(k)}: {rounds} rounds")
        key = addresses.original(setting, k, learner)
        return Original(Model(key, final, cost, str(recording.path(rounds)), "global", notes=noted), recording)

    def _learn(
        self,
        k: int,
        learner: StrategySpec | None,
        start: Params,
        recording: Recording,
        journal: FileJournal,
        what: str,
    ) -> None:
        """Learn a trajectory, and record it; the trajectory's lock is held."""
        setting, rounds = self.setting, self.setting.config.learning.rounds
        strategy = setting.strategy(learner or setting.specs[0])
        records = strategy.card.client_records
        cohort = cohort_of(
            setting,
            setting.seeds(k),
            planned=setting.requests if records else (),
            shelves=_shelves(recording) if records else "",
            journal=journal,
            progress=self.progress.of_rounds(what, rounds),
        )
        recording.begin(start)
        with code_of_strategy(learner) if learner else nullcontext():
            for _ in strategy.learn(cohort, start, rounds, recording=recording):
                pass
        recording.finish(rounds, cohort.cost)

    def serve(
        self, k: int, spec: StrategySpec, i: int, previous: Model, recording: Recording
    ) -> tuple[Model, dict[int, Model]]:
        """The model after request ``i``, made by the strategy or loaded; and those that an oracle passed, by round.

        Raises:
            Broken: if so many clients failed that the strategy cannot go on, or if its model is not finite.
            ValueError: if the strategy's code fails.
        """
        setting, layout = self.setting, previous.params.layout
        determines = addresses.made_of(setting, k, spec, i, previous.key, recording.config)
        key = digest(determines)
        folder = setting.store.folder("models", key)
        path = folder / "model.safetensors"
        with setting.store.lock("models", key):
            journal, stored = FileJournal(folder / "journal", self.progress.say), self.stored(path)
            if stored is None:
                tensors, metadata = self._unlearn(k, spec, i, previous, recording, journal)
                save_tensors(path, tensors, {**metadata, "made_of": determines})
            setting.store.remove(journal.folder)
            tensors, metadata = stored or load_tensors(path)
        self.progress.notes(f"{spec.label}, {_seed(k)}", metadata["notes"])
        cost = Cost(**metadata["cost"])
        self.progress.finished(f"{spec.label}, {_seed(k)}: {cost.rounds} rounds, {setting.requests[i]} forgotten")
        checkpoints = {
            int(done): Model(f"{key}@{done}", Params(tensors[done], layout), Cost(**spent), str(path), done)
            for done, spent in metadata["checkpoints"].items()
        }
        params, notes = Params(tensors["model"], layout), tuple(metadata["notes"])
        return Model(key, params, cost, str(path), "model", metadata["residues"], notes), checkpoints

    def _unlearn(
        self, k: int, spec: StrategySpec, i: int, previous: Model, recording: Recording, journal: FileJournal
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Let a strategy serve request ``i``; returns what is stored of it, the models' tensors and their metadata."""
        setting, strategy = self.setting, self.setting.strategy(spec)
        request, card, rounds = setting.requests[i], strategy.card, setting.rounds(i)
        cohort = cohort_of(
            setting,
            setting.seeds(k),
            i,
            card=card,
            shelves=_shelves(recording) if card.client_records else "",
            next_round=rounds + 1,
            journal=journal,
            progress=self.progress.of_rounds(f"{spec.label}, {_seed(k)}", None),
        )
        gone = frozenset(c for earlier in setting.requests[:i] if earlier.scope == "client" for c in earlier.targets)
        history = History(recording, rounds, previous.params, card, gone, cohort.targets)
        result, passed, bills = previous.params, {}, {}
        wanted = checkpoints(setting, i) if spec.label == ORACLE else ()
        try:
            with code_of_strategy(spec):
                for done, result in enumerate(strategy.serve(request, history, cohort), start=1):
                    self.progress.check()
                    if done in wanted:
                        passed[str(done)], bills[str(done)] = result.flat, cohort.cost.to_dict()
        except TooFewClients as error:
            raise Broken(str(error), cohort.cost) from error
        if not result.flat.isfinite().all():
            raise Broken("its model holds NaN or infinite values", cohort.cost)
        cost = cohort.cost + Cost(bytes_stored=history.bytes_stored(), bytes_held=cohort.held)
        return {"model": result.flat, **passed}, {
            "cost": cost.to_dict(),
            "notes": cohort.notes,
            "contacted": sorted(cohort.contacted),
            "residues": history.residues(),
            "checkpoints": bills,
        }

    def later(self, k: int, i: int, model: Model, wanted: Sequence[int], kind: str) -> Iterator[tuple[int, Model]]:
        """The model after further rounds, at each of the numbers ``wanted``: made once, or loaded.

        Args:
            k: the seed.
            i: the request.
            model: where to start from.
            wanted: numbers of rounds, ascending.
            kind: ``+`` for ordinary rounds on what is retained; ``rejoin`` if the forgotten data takes part again;
                ``few`` if its owners train on a few forgotten examples, and nobody else does.
        """
        if not wanted:
            return
        setting = self.setting
        key = addresses.later(setting, k, i, model.params, kind, list(wanted))
        path = setting.store.folder("later", key) / "models.safetensors"
        with setting.store.lock("later", key):
            stored = self.stored(path)
            if stored is None:
                first, made = setting.rounds(i) + 1, {}
                again = kind == "rejoin"
                cohort = cohort_of(setting, setting.seeds(k), i, learns_again=again, next_round=first)
                rounds = (
                    _on_few(cohort, model.params, first)
                    if kind == "few"
                    else find("none")(learning=setting.config.learning).learn(cohort, model.params, wanted[-1], first)
                )
                for done, params in enumerate(itertools.islice(rounds, wanted[-1]), start=1):
                    self.progress.check()
                    if done in wanted:
                        made[str(done)] = params.flat
                save_tensors(path, made, {"model": model.key, "notes": cohort.notes})
            tensors, metadata = stored or load_tensors(path)
        for done in wanted:
            params, notes = Params(tensors[str(done)], model.params.layout), tuple(metadata["notes"])
            yield done, replace(model, params=params, notes=notes)

    def stored(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What a file holds; ``None`` if it has to be made, or made again: a damaged one is named and deleted.

        The object's lock is held.
        """
        self.setting.store.tidy(path.parent)
        try:
            return load_tensors(path)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            self.progress.note(str(error))
            discard(path)
            return None


def find_trajectory(setting: Setting, k: int, learner: StrategySpec | None, form: HistoryConfig) -> Recording:
    """The recording of a trajectory that is there, or is to be made."""
    key = addresses.trajectory(setting, k, learner)
    return find_recording(setting.store, key, setting.layout, form, setting.targets, setting.seeds(k))


def checkpoints(setting: Setting, i: int) -> set[int]:
    """The rounds after which an oracle is audited too, evenly spread over its training, its end not among them."""
    rounds, number = setting.rounds(i), setting.config.evaluation.checkpoints + 1
    return {round(rounds * step / number) for step in range(1, number)} - {0, rounds}


def _on_few(cohort: Cohort, model: Params, first: int) -> Iterator[Params]:
    """The model after each round in which only the forgotten data's owners train, on a few forgotten examples."""
    for round in itertools.count(first):
        replies = cohort.train(model, cohort.targets, split="few", round=round)
        model = model + replies.mean() if replies else model
        yield model


def _shelves(recording: Recording) -> str:
    """Where clients of a simulation keep what they record of this trajectory."""
    return str(recording.folder / "clients")


def _seed(k: int) -> str:
    """The name of trajectory ``k``."""
    return "tuning" if k == tuning.SEED else f"seed {k}"
