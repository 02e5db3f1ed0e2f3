"""The whole story of a run: learn, request, unlearn, oracle, audit, report.

Every result is stored under an address made of everything that determines it, so what exists is never made twice: not
by a run that was killed and started again, not by a second run that shares originals or oracles with this one.

A strategy that must be planned before training overrides `learn`. It then has an original trajectory of its own, from
the same initial weights, cohorts and client randomness, and serves its requests from there. Its row is compared with
what everyone's is: the common original (the row ``original``, and the signal ``noop_gap``) and the common oracle, so
what its way of learning does to the model counts as its doing. Learning is billed to no strategy, be it common or own.

With ``tuning.trials`` strategies are tuned first (tuning.py), in a rehearsal: a copy of the experiment that shares its
store and its clients, but has another trajectory and another request.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import itertools
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid
from torch import Tensor

import fedforget
from fedforget import config as configuration
from fedforget import disk, escape, messages, models, report, routines, solvers, tuning
from fedforget.assessment import PARTS, assess
from fedforget.cohort import (
    AuditFailed,
    Cohort,
    TooFewClients,
    asked_of,
    describe,
)
from fedforget.config import RunConfig, StrategySpec
from fedforget.data import audit_sets
from fedforget.disk import Need
from fedforget.evaluation import ANOTHER, CHECKPOINT, LEVELS, ORACLE, ORIGINAL
from fedforget.exchange import RECORDS
from fedforget.grid import GridEnded
from fedforget.history import FileJournal, History, HistoryConfig, Recording, find_recording
from fedforget.ledger import Cost
from fedforget.messages import Task
from fedforget.metrics import Outputs
from fedforget.metrics.representation import swap_head
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.resolve import name_request, resolve
from fedforget.seeds import Seeds
from fedforget.store import (
    CannotWrite,
    DamagedFile,
    Store,
    digest,
    digest_of_code,
    discard,
    load_tensors,
    make_folder,
    save_tensors,
    write_text,
)
from fedforget.strategy import AVERAGING, UnlearningStrategy, find

PATH = 4  # steps of equal length from the original to a model, between which the loss is measured
ASKED_BYTES = 1 << 26  # of models in one message of an audit, about

Step = Callable[[int, int, str], None]  # is told how many models are there, of how many, and what goes on


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
class Question:
    """What the audit asks of a model.

    Args:
        label: whose model it is.
        stage: what became of it before it is asked; empty for nothing.
        model: the model.
        sets: the audit sets.
        marks: whether those that the corruption is made for are asked too.
    """

    label: str
    stage: str
    model: Model
    sets: tuple[str, ...]
    marks: bool = True


@dataclass(frozen=True)
class Original:
    """A learned trajectory of one seed."""

    model: Model
    recording: Recording


class Experiment:
    """One run of the framework.

    Args:
        config: the composed configuration.
        grid: reaches the nodes, which are there.
        output: an absolute folder; results go to ``runs/`` in it, and what runs share to ``store/``.
        say: is told, in one line, what has been done.
        step: is told how many models are there, of how many, and in one line what goes on; None: `say` is.
    """

    def __init__(
        self,
        config: RunConfig,
        grid: Grid,
        output: Path,
        say: Callable[[str], None] = print,
        step: Step | None = None,
    ) -> None:
        self.config, self.say, self.grid = config, lambda line: say(escape.lines(line)), grid
        self.store = Store(output / "store")
        self.output = output
        self.task = Task(
            config.data, config.model, config.local, config.engine.device, config.engine.mode, config.engine.precision
        )
        self._stop = threading.Event()
        self._failed: dict[str, str] = {}
        self._count = Count(step or (lambda done, total, what: self.say(f"[{done}/{total}] {what}")))
        self.strategies = config.strategies  # with the options that tuning chose, once it has
        self.rehearsal: Experiment | None = None
        self.tuned: dict[str, Any] = {}

    def prepare(self) -> None:
        """Find out who is there, and what the requests mean to them; nothing is trained.

        Raises:
            ValueError: if the configuration does not fit the data.
        """
        self.federation = describe(self.grid, self.task)
        self.layout = Layout.of(models.build(self.config.model, *self._shape()))
        self.requests = resolve(self.config, self.federation)
        self.folder = make_folder(self.output / "runs" / self._name())
        self._check()
        for heading, text in self.federation.facts.lines():
            self.say(f"{heading}: {text}")
        named = [name_request(request, self.federation) for request in self.requests]
        clients = len(self.federation.clients)
        asked = asked_of(self.config.learning.fraction, clients)
        self.say(
            f"{clients} clients on {len(self.federation.hosts)} SuperNodes ({self.federation.about['device']}), "
            f"{asked} asked in a round; to forget: {', then '.join(named)}"
        )

    def run(self) -> Path:
        """Do everything that is not done yet; returns the folder with the report.

        Raises:
            ValueError: if the configuration does not fit the data, or the results the disk; nothing has been trained.
            CannotWrite: if the disk does not take a result; the same command resumes from what was saved.
            TooFewClients: if a round failed; what was finished is stored, and the same command resumes from there.
            AuditFailed: if no node could say what a model answers; likewise.
        """
        # The workers fill every core; a server with more threads would only take them away.
        torch.set_num_threads(1)
        # Flower's learners log two lines a round; a run has thousands of rounds and says itself how far it is.
        logging.getLogger("flwr").setLevel(logging.WARNING)
        self.prepare()
        self.rehearsal = self._rehearsal()
        evaluation = self.config.evaluation
        self.say(
            f"evidence level {evaluation.level} ({LEVELS[evaluation.level].code}), K = {evaluation.seeds}: "
            f"{self._trainings()} whole trainings, {len(self._specs()) - 1} strategies. {evaluation.claim}"
        )
        need = _disk_needed(self)
        self.say(f"what is still to be done needs {need}")
        disk.refuse(need, self.store.root, self._history_config().record)
        self._count.total = self._to_make()
        if self.config.tuning.trials:
            self.tuned = self._tune()
        index = self._models()
        self.say("measuring")
        header = self._header(index)
        rows = assess(self.store.root, header).rows()
        with self.store.lock("runs", self.folder.name):
            for folder in (self.folder, self.folder / "figures"):
                self.store.tidy(folder)
            write_text(self.folder / "config.yaml", configuration.to_yaml(self.config))
            report.write(self.folder, header, rows)
        self.say(report.render_table(header, rows))
        self.say(f"results: {self.folder}")
        return self.folder

    # ------------------------------------------------------------------ before any work

    def _check(self) -> None:
        """Refuse what cannot work, before anything is trained."""
        if int(self.federation.about["num_test"]) < 2:  # the audit measures distances between test images
            raise ValueError("the task has a single test example, but an audit needs two at least")
        for number, request in enumerate(self.requests):
            cohort = self._cohort(Seeds(0), number)
            if not cohort.targets:
                raise ValueError(f"request {request} names no training example that is still there")
            if not cohort.retained:
                raise ValueError(f"request {request} leaves no training data at any client")
        for spec in self._specs():
            with _code_of_strategy(spec, refuses=True):
                strategy = self._strategy(spec)
                strategy.card  # noqa: B018 (a card that cannot be made is found here)
                strategy.check(self._cohort(Seeds(0), 0))

    def _specs(self) -> list[StrategySpec]:
        """The oracle, the no-op and the strategies asked for, each label once."""
        asked = {spec.label: spec for spec in self.strategies}
        always = {name: StrategySpec(name, name, find(name).Config()) for name in (ORACLE, "none")}
        return list((always | asked).values())

    def _strategy(self, spec: StrategySpec) -> UnlearningStrategy:
        return find(spec.name)(spec.options, self.config.learning)

    def _history_config(self) -> HistoryConfig:
        """The configured record; ``auto`` is the least that the strategies' cards and the request ask for."""
        levels = {f"strategy {spec.label!r}": self._strategy(spec).card.records for spec in self._specs()}
        after = self.requests[0].after_round
        if after not in (None, self.config.learning.rounds):  # the model to unlearn from is not the last one
            levels[f"request.after_round={after}"] = "globals"
        kept = self.config.history
        for spec in self._specs():
            card = self._strategy(spec).card
            if card.keep < 1 and kept.keep < 1 and (card.keep, card.select) != (kept.keep, kept.select):
                raise ValueError(
                    f"history.keep={kept.keep:g} ({kept.select}) prunes the updates of which strategy {spec.label!r} "
                    f"is to keep {card.keep:g} ({card.select}); use history.keep=1"
                )
        needy = max(levels, key=lambda who: RECORDS.index(levels[who]))
        most, asked = levels[needy], self.config.history.record
        if asked == "auto":
            return replace(self.config.history, record=most)
        if RECORDS.index(asked) < RECORDS.index(most):
            raise ValueError(f"history.record={asked}, but {needy} needs {most}; use history.record={most}")
        return self.config.history

    # ------------------------------------------------------------------ the work

    def _models(self) -> list[dict]:
        """The index of all models of the run, which are made where they are missing."""
        seeds = range(self.config.evaluation.seeds)
        specs = self._specs()
        history_config = self._history_config()
        with self._workers() as pool:
            originals = {k: pool.submit(self._original, k, history_config) for k in seeds}
            chains = [pool.submit(self._chain, k, spec, history_config, originals[k]) for k in seeds for spec in specs]
            before = [pool.submit(self._before, k, originals[k]) for k in seeds]
            self._wait([*originals.values(), *chains, *before])
            oracles = [chain.result() for chain in chains[:: len(specs)]]
            others = [pool.submit(self._another, k, oracles, originals[k].result().model) for k in seeds]
            self._wait(others)
        works = (*before, *chains, *others)
        index = [entry for work in works for entry in work.result() if entry["label"] not in self._failed]
        order = [ORIGINAL, *(spec.label for spec in specs)]
        order += sorted({entry["label"] for entry in index} - set(order), key=lambda label: (len(label), label))
        index.sort(key=lambda entry: (entry["request"], order.index(entry["label"]), entry["seed"]))
        return index

    def _before(self, k: int, original: Future[Original]) -> list[dict]:
        """Index entries of the original of seed ``k``, audited for each request."""
        model = original.result().model
        return [entry for i in range(len(self.requests)) for entry in self._audits(k, ORIGINAL, i, model, model)]

    def _another(self, k: int, oracles: Sequence[list[dict]], original: Model) -> list[dict]:
        """Index entries of an oracle in the place of a strategy's models of seed ``k``; none if there is no other.

        Whose oracle it is, is drawn for each seed by itself: if each served once, their differences would cancel.
        """
        number, entries = len(oracles), []
        if number > 1:
            j = (k + 1 + int(Seeds(self.config.seed).numpy("another", k).integers(number - 1))) % number
            for entry in oracles[j]:
                if (entry["label"], entry["stage"]) == (ORACLE, ""):
                    path, tensor = entry["weights"]
                    params = Params(load_tensors(self.store.root / path)[0][tensor], self.layout)
                    cost = Cost(**entry["cost"])
                    model = Model(entry["model"], params, cost, str(self.store.root / path), tensor, entry["residues"])
                    entries += self._audits(k, ANOTHER, entry["request"], model, original, learned_as=j)
        return entries

    def _to_make(self) -> int:
        """How many models the run makes or loads, those that are learned among them."""
        seeds, specs = self.config.evaluation.seeds, self._specs()
        number = seeds * (1 + len(specs) * len(self.requests) + sum(map(self._learns_itself, specs)))
        return number + (2 + self.config.tuning.trials * len(self._tunable()[0]) if self.rehearsal else 0)

    @contextmanager
    def _workers(self) -> Iterator[ThreadPoolExecutor]:
        """Threads for trajectories; they stop at their next round when something goes wrong."""
        concurrent = self.config.engine.trajectories or 2 * len(self.federation.hosts)
        with ThreadPoolExecutor(concurrent, thread_name_prefix="trajectory") as pool:
            try:
                yield pool
            except BaseException:
                self._stop.set()
                raise

    def _wait(self, futures: Sequence[Future]) -> None:
        """Wait for all; the first failure stops the rest at their next round."""
        done, pending = wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in done if future.exception()]
        if failed:
            self._stop.set()
            for future in pending:
                future.cancel()
            wait(pending)
            failed = [f for f in futures if not f.cancelled() and not isinstance(f.exception(), (Stopped, type(None)))]
            raise failed[0].exception()  # type: ignore[misc]

    def _original(self, k: int, history_config: HistoryConfig, learner: StrategySpec | None = None) -> Original:
        """Learn the trajectory of seed ``k``, or load it: the common one, or that of a strategy that learns itself."""
        config, seeds = self.config, self._seeds(k)
        key, start = self._trajectory_key(k, learner), self._initial(k)
        what = f"learning for {learner.label}, {_seed(k)}" if learner else f"learning, {_seed(k)}"
        rounds = self.requests[0].after_round or config.learning.rounds

        def find() -> Recording:
            return find_recording(self.store, key, start.layout, history_config, self._targets(), seeds)

        with self.store.lock("trajectories", key):
            recording = find()
            try:
                notes = recording.verify() if recording.is_complete else None
            except DamagedFile as error:
                self.say(f"  note: {error}")
                self.store.remove(recording.folder)
                recording, notes = find(), None
            journal = FileJournal(recording.folder / "journal", self.say)
            if not recording.is_complete:
                cohort = self._cohort(seeds, None)
                cohort.journal, cohort.progress = journal, self._progress(what, config.learning.rounds)
                strategy = self._strategy(learner or self._specs()[0])
                if strategy.card.client_records:
                    cohort.planned, cohort.shelves = self.requests, _shelves(recording)
                recording.begin(start)
                with _code_of_strategy(learner) if learner else nullcontext():
                    for _ in strategy.learn(cohort, start, config.learning.rounds, recording=recording):
                        pass
                recording.finish(config.learning.rounds, cohort.cost)
            self.store.remove(journal.folder)
            notes = notes or recording.verify()
        _, cost = recording.summary()
        noted = tuple(note for round in range(1, rounds + 1) for note in notes[round])
        self._say_notes(what, noted)
        final = Params(recording.load(rounds)[0]["global"], start.layout)
        whose = f"{learner.label}'s own original" if learner else "the original"
        self._count.finished(f"learned {whose}, {_seed(k)}: {rounds} rounds")
        model = Model(digest([key, rounds]), final, cost, str(recording.path(rounds)), "global", notes=noted)
        return Original(model, recording)

    def _chain(
        self, k: int, spec: StrategySpec, history_config: HistoryConfig, original: Future[Original]
    ) -> list[dict]:
        """Serve the requests one after another with one strategy; returns index entries."""
        learned, entries = original.result(), []
        try:
            if self._learns_itself(spec):
                learned = self._original(k, history_config, spec)
            previous = learned.model
            for i in range(len(self.requests)):
                previous, passed = self._serve(k, spec, i, previous, learned.recording)
                entries += self._audits(k, spec.label, i, previous, original.result().model)
                entries += self._entries(
                    k,
                    i,
                    [
                        Question(f"{CHECKPOINT}{round}", "", model, audit_sets.EXAMPLES)
                        for round, model in passed.items()
                    ],
                )
        except TooFewClients as error:
            if spec.label == ORACLE:
                raise
            # A method that breaks its clients' models is a finding about that method; the others go on. An audit that
            # fails is none: it stops the run.
            self._failed[spec.label] = f"seed {k}: {error}"
            self.say(f"  note: {spec.label} failed and is left out, {self._failed[spec.label]}")
        return entries

    def _serve(
        self, k: int, spec: StrategySpec, i: int, previous: Model, recording: Recording
    ) -> tuple[Model, dict[int, Model]]:
        """The model after request ``i``, made by the strategy or loaded; and those that an oracle passed, by round.

        Raises:
            Broken: if so many clients failed that the strategy cannot go on, or if its model is not finite.
            ValueError: if the strategy's code fails.
        """
        strategy, request, layout = self._strategy(spec), self.requests[i], previous.params.layout
        card, determines = strategy.card, self._made_of(k, spec, i, previous.key, recording.config)
        key = digest(determines)
        folder = self.store.folder("models", key)
        path = folder / "model.safetensors"
        with self.store.lock("models", key):
            journal, stored = FileJournal(folder / "journal", self.say), self._stored(path)
            if stored is None:
                cohort = self._cohort(self._seeds(k), i)
                rounds = request.after_round or self.config.learning.rounds
                cohort.card, cohort.next_round = card, rounds + 1
                cohort.journal, cohort.shelves = journal, _shelves(recording) if card.client_records else ""
                cohort.progress = self._progress(f"{spec.label}, {_seed(k)}", None)
                gone = frozenset(
                    c for earlier in self.requests[:i] if earlier.scope == "client" for c in earlier.targets
                )
                history = History(recording, rounds, previous.params, card, gone, cohort.targets)
                result, passed, bills = previous.params, {}, {}
                wanted = self._checkpoints(rounds) if spec.label == ORACLE else ()
                try:
                    with _code_of_strategy(spec):
                        for done, result in enumerate(strategy.serve(request, history, cohort), start=1):
                            self._check_stopped()
                            if done in wanted:
                                passed[str(done)], bills[str(done)] = result.flat, cohort.cost.to_dict()
                except TooFewClients as error:
                    raise Broken(str(error), cohort.cost) from error
                if not result.flat.isfinite().all():
                    raise Broken("its model holds NaN or infinite values", cohort.cost)
                cost = cohort.cost + Cost(bytes_stored=history.bytes_stored(), bytes_held=cohort.held)
                contacted = sorted(cohort.contacted)
                metadata: dict[str, Any] = {
                    "cost": cost.to_dict(),
                    "notes": cohort.notes,
                    "contacted": contacted,
                    "residues": history.residues(),
                    "checkpoints": bills,
                    "made_of": determines,
                }
                save_tensors(path, {"model": result.flat, **passed}, metadata)
            self.store.remove(journal.folder)
            tensors, metadata = stored or load_tensors(path)
        self._say_notes(f"{spec.label}, {_seed(k)}", metadata["notes"])
        cost = Cost(**metadata["cost"])
        self._count.finished(f"{spec.label}, {_seed(k)}: {cost.rounds} rounds, {request} forgotten")
        checkpoints = {
            int(done): Model(f"{key}@{done}", Params(tensors[done], layout), Cost(**spent), str(path), done)
            for done, spent in metadata["checkpoints"].items()
        }
        params, notes = Params(tensors["model"], layout), tuple(metadata["notes"])
        return Model(key, params, cost, str(path), "model", metadata["residues"], notes), checkpoints

    def _made_of(self, k: int, spec: StrategySpec, i: int, previous: str, form: HistoryConfig) -> dict[str, Any]:
        """What determines the model that a strategy makes of the model ``previous``; its digest is the address."""
        strategy = self._strategy(spec)
        updates = strategy.card.records not in ("nothing", "globals")
        return {
            "trajectory": self._trajectory_key(k, spec if self._learns_itself(spec) else None),
            "previous": previous,
            "requests": [request.to_dict() for request in self.requests[: i + 1]],
            "strategy": [spec.name, asdict(spec.options), _code_of(strategy)],
            "recorded": asdict(replace(form, record="")) if updates else None,
        }

    def _stored(self, path: Path) -> tuple[dict[str, Tensor], dict] | None:
        """What a file holds; ``None`` if it has to be made, or made again: a damaged one is named and deleted.

        The object's lock is held.
        """
        self.store.tidy(path.parent)
        try:
            return load_tensors(path)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            self.say(f"  note: {error}")
            discard(path)
            return None

    def _checkpoints(self, rounds: int) -> set[int]:
        """The rounds after which an oracle is audited too, evenly spread over its training, its end not among them."""
        number = self.config.evaluation.checkpoints + 1
        return {round(rounds * i / number) for i in range(1, number)} - {0, rounds}

    def _trainings(self) -> int:
        """How many whole trainings the run's models amount to: originals, oracles, and those of planned strategies."""
        own = sum(map(self._learns_itself, self._specs()))
        return self.config.evaluation.seeds * (1 + len(self.requests) + own) + 2 * bool(self.rehearsal)

    # ------------------------------------------------------------------ tuning

    def _tunable(self) -> tuple[list[StrategySpec], dict[str, str]]:
        """The listed strategies that are tuned, and why others are not, by label."""
        tuned, why = [], {}
        for spec in self.config.strategies:
            if spec.name in (ORACLE, "none"):
                continue
            if self._learns_itself(spec):
                why[spec.label] = "it learns by itself, so every trial would be a whole training"
            elif not tuning.space(spec.options):
                why[spec.label] = "no option of its Config declares a range to search"
            else:
                tuned.append(spec)
        return tuned, why

    def _rehearsal(self) -> Experiment | None:
        """This experiment with another request, to tune strategies on; ``None`` if there is nothing to tune.

        Corruption moves from the request's clients to the others, so that there is the same to forget.
        """
        if not self.config.tuning.trials or not self._tunable()[0]:
            return None
        there, sizes, counts = copy.copy(self), self.federation.num_train, self.federation.class_counts
        other = tuning.another_request(self.requests, sizes, counts, Seeds(self.config.seed).child("tuning"))
        corruption = self.config.corruption
        moved = replace(corruption, clients=tuning.exchanged(corruption.clients, self.requests[0], other))
        there.requests = (other,)
        if moved != corruption:
            there.task = replace(self.task, data=replace(self.task.data, corruption=moved))
            there.federation = describe(self.grid, there.task)
        there._check()
        there._outcome("initial", Model("", there._initial(tuning.SEED), Cost()), self.requests)  # is there any data?
        return there

    def _tune(self) -> dict[str, Any]:
        """Give every strategy its trials, adopt the best options, and return what the report's header says of it."""
        config, there, (specs, why) = self.config.tuning, self.rehearsal, self._tunable()
        for label, reason in why.items():
            self.say(f"  note: {label} is not tuned and keeps its configured options: {reason}")
        said = {**asdict(config), "request": "", "objectives": {}, "strategies": {}, "untuned": why, "note": ""}
        if there is None:
            return said
        self.say(f"tuning: {config.trials} trials for each of {len(specs)} strategies, to forget {there.requests[0]}")
        original = there._original(tuning.SEED, self._history_config())
        with self._workers() as pool:
            oracle = pool.submit(there._attempt, self._specs()[0], original, self.requests)
            trials = {spec.label: pool.submit(there._trials, spec, original, self.requests) for spec in specs}
            self._wait([oracle, *trials.values()])
        tuned = {label: mine.result() for label, mine in trials.items()}
        for label, mine in tuned.items():
            self.say(f"tuned {label}: {mine}")
        best = {spec.label: replace(spec.options, **tuned[spec.label].best.drawn) for spec in specs}
        self.strategies = tuple(replace(spec, options=best.get(spec.label, spec.options)) for spec in self.strategies)
        done_nothing = there._outcome(ORIGINAL, original.model, self.requests)
        note = tuning.doubt(done_nothing, oracle.result())
        if note:
            self.say(f"  note: {note}")
        return {
            **said,
            "request": str(there.requests[0]),
            "objectives": {ORIGINAL: done_nothing.objective, ORACLE: oracle.result().objective},
            "note": note,
            "strategies": {label: mine.to_dict() for label, mine in tuned.items()},
        }

    # Of a rehearsal; clients that the run's own requests name are ``spared`` the validation.

    def _trials(self, spec: StrategySpec, original: Original, spared: Sequence[UnlearningRequest]) -> tuning.Tuned:
        """All trials of a strategy."""
        seeds = Seeds(self.config.seed).child("tuning", spec.label)
        return tuning.tune(
            spec.options,
            self.config.tuning.trials,
            seeds,
            lambda options: self._attempt(replace(spec, options=options), original, spared),
        )

    def _attempt(self, spec: StrategySpec, original: Original, spared: Sequence[UnlearningRequest]) -> tuning.Outcome:
        """One trial: a strategy serves the request, and what it leaves is scored."""
        try:
            model, _ = self._serve(tuning.SEED, spec, 0, original.model, original.recording)
            return self._outcome(spec.label, model, spared)
        except Broken as error:
            return tuning.Outcome(tuning.WORST, error.spent, str(error))

    def _outcome(self, label: str, model: Model, spared: Sequence[UnlearningRequest]) -> tuning.Outcome:
        """The objective of a model."""
        (entry,) = self._entries(tuning.SEED, 0, [Question(label, "", model, tuning.SETS, marks=False)])
        tensors, _ = load_tensors(self.store.root / entry["outputs"])
        answers = {name: Outputs(*(tensors.get(f"{name}/{part}") for part in PARTS)) for name in tuning.SETS}  # type: ignore[arg-type]
        named = {client for request in spared for client in request.clients}
        return tuning.outcome(answers, self.requests[0], named, self.config.tuning, model.cost)

    # ------------------------------------------------------------------ the audit

    def _audits(
        self, k: int, label: str, i: int, model: Model, original: Model, learned_as: int | None = None
    ) -> list[dict]:
        """Index entries of a model after request ``i``: as it is, after ordinary rounds, and after relearning.

        Args:
            k: the seed under whose coins, and beside whose original and oracle, the model is audited.
            label: whose model it is.
            i: the request.
            model: the model.
            original: the original of seed ``k``.
            learned_as: the seed whose streams its further rounds follow; None: ``k``.
        """
        own = k if learned_as is None else learned_as
        return list(self._entries(k, i, self._questions(k, label, i, model, original, own)))

    def _questions(self, k: int, label: str, i: int, model: Model, original: Model, own: int) -> Iterator[Question]:
        """What `_audits` asks; models of further rounds are made when they are asked for."""
        evaluation = self.config.evaluation
        sets = (*audit_sets.FIRST, *(audit_sets.DRAWN if k == 0 else ()))  # one seed's regions are drawn
        yield Question(label, "", model, sets)
        if label != ORIGINAL:
            swapped = replace(model, params=swap_head(model.params, original.params))
            yield Question(label, "head", swapped, ("forget",), marks=False)
        if label != ORIGINAL and evaluation.durability:
            way = model.params - original.params
            for step in range(1, PATH):
                between = replace(model, params=original.params + (step / PATH) * way)
                yield Question(label, f"path {step}", between, ("test",), marks=False)
        try:
            taught = range(1, evaluation.relearn + 1)
            for rounds, later in self._later(own, i, model, sorted({*evaluation.durability, *taught}), "+"):
                if rounds in evaluation.durability:
                    yield Question(label, f"+{rounds}", later, audit_sets.LATER)
                if rounds in taught:
                    yield Question(label, f"retain {rounds}", later, ("rest",), marks=False)
            for kind in ("rejoin", "few"):
                for rounds, later in self._later(own, i, model, taught, kind):
                    yield Question(label, f"{kind} {rounds}", later, ("rest",), marks=False)
        except TooFewClients as error:
            self.say(f"  note: {label}, seed {k}: no further rounds are possible from this model ({error})")

    def _later(self, k: int, i: int, model: Model, wanted: Sequence[int], kind: str) -> Iterator[tuple[int, Model]]:
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
        key = self._address(k, i, model, {"kind": kind, "rounds": list(wanted), "learning": self._learned_by()})
        path = self.store.folder("later", key) / "models.safetensors"
        with self.store.lock("later", key):
            stored = self._stored(path)
            if stored is None:
                first = (self.requests[i].after_round or self.config.learning.rounds) + 1
                cohort, made = self._cohort(self._seeds(k), i), {}
                cohort.next_round = first
                if kind == "rejoin":
                    cohort.request = None
                rounds = (
                    _on_few(cohort, model.params, first)
                    if kind == "few"
                    else find("none")(learning=self.config.learning).learn(cohort, model.params, wanted[-1], first)
                )
                for done, params in enumerate(itertools.islice(rounds, wanted[-1]), start=1):
                    self._check_stopped()
                    if done in wanted:
                        made[str(done)] = params.flat
                save_tensors(path, made, {"model": model.key, "notes": cohort.notes})
            tensors, metadata = stored or load_tensors(path)
        for done in wanted:
            params, notes = Params(tensors[str(done)], model.params.layout), tuple(metadata["notes"])
            yield done, replace(model, params=params, notes=notes)

    def _learned_by(self) -> list:
        config = self.config
        return [asdict(config.local), {**asdict(config.learning), "timeout": None}, config.seed, versions()]

    def _address(self, k: int, i: int, model: Model, what: dict) -> str:
        """The address of something made of a model's parameters after request ``i``."""
        content = hashlib.sha256(model.params.flat.numpy().tobytes()).hexdigest()
        requests = [request.to_dict() for request in self.requests[: i + 1]]
        made_of = {"model": content, "task": self.task.to_json(), "requests": requests, "seed": k, **what}
        return digest({**made_of, "data": self.federation.about["data"]})

    def _marked_sets(self) -> tuple[str, ...]:
        """The audit sets that the corruption is made for."""
        return audit_sets.planted(self.config.corruption.kind)

    def _entries(self, k: int, i: int, questions: Iterable[Question]) -> Iterator[dict]:
        """The index entry of each question, in order; what is not answered on file is asked, many at a time."""
        waiting: list[Question] = []
        for question in questions:
            waiting.append(question)
            if sum(each.model.params.flat.nbytes for each in waiting) >= ASKED_BYTES:
                yield from self._answered(k, i, waiting)
                waiting = []
        yield from self._answered(k, i, waiting)

    def _answered(self, k: int, i: int, questions: Sequence[Question]) -> list[dict]:
        """Index entries of models whose answers are on file, where they are put if they are not there."""
        most, asked = self.config.evaluation.max_examples, {}
        keys = []
        for question in questions:
            marked = self._marked_sets() if question.marks else ()
            sets = dict.fromkeys((*question.sets, *marked), most)
            keys.append(self._address(k, i, question.model, {"sets": sets}))
            asked[keys[-1]] = question.model.params, sets
        paths = {key: self.store.folder("outputs", key) / "outputs.safetensors" for key in asked}
        with ExitStack() as locks:
            for key in sorted(asked):  # in one order, so that two runs never wait for each other
                locks.enter_context(self.store.lock("outputs", key))
            missing = [key for key in asked if self._stored(paths[key]) is None]
            answers = self._cohort(self._seeds(k), i).evaluate_all([asked[key] for key in missing]) if missing else []
            for key, found in zip(missing, answers, strict=True):
                # Copied, because from_numpy gives an empty array a stride of 0, and then it cannot be stored.
                tensors = {
                    f"{name}/{part}": torch.from_numpy(array).clone(memory_format=torch.contiguous_format)
                    for name, mine in found.items()
                    for part, array in mine._asdict().items()
                    if array is not None
                }
                # No model's name: another with the same parameters has the same answers.
                save_tensors(paths[key], tensors, {})
        return [self._indexed(k, i, each, paths[key]) for each, key in zip(questions, keys, strict=True)]

    def _indexed(self, k: int, i: int, question: Question, path: Path) -> dict:
        """The index entry of a model whose answers lie at ``path``."""
        model = question.model
        relative = Path(model.path).relative_to(self.store.root) if model.path else None
        return {
            "request": i,
            "label": question.label,
            "seed": k,
            "stage": question.stage,
            "model": model.key,
            "outputs": str(path.relative_to(self.store.root)),
            "weights": [str(relative), model.tensor],
            "cost": model.cost.to_dict(),
            "residues": model.residues,
            "notes": model.notes,
        }

    def _header(self, index: list[dict]) -> dict:
        """What the report says about the run itself."""
        config = self.config
        return {
            "experiment": config.experiment,
            "level": config.evaluation.level,
            "code": LEVELS[config.evaluation.level].code,
            "trainings": self._trainings(),
            "primary": config.evaluation.primary,
            "durability": list(config.evaluation.durability),
            "classes": int(self.federation.about["num_classes"]),
            "layout": [self.layout.names, self.layout.shapes],
            "corruption_config": asdict(config.corruption.resolved(self.federation.facts.classes)),
            "claim": config.evaluation.claim,
            "tuning": self.tuned,
            "seeds": config.evaluation.seeds,
            "requests": [name_request(request, self.federation) for request in self.requests],
            "request_values": [request.to_dict() for request in self.requests],
            "failed": dict(sorted(self._failed.items())),
            "left_out": _left_out(index),
            "config": digest(configuration.to_dict(config)),
            "trajectory": digest([self._trajectory_key(k) for k in range(config.evaluation.seeds)]),
            "options": {spec.label: _options(spec) for spec in self._specs()},
            "data": self.federation.about["data"],
            "data_facts": self.federation.about["facts"],
            "data_lines": self.federation.facts.lines(),
            "owners": {str(client): owner for client, owner in enumerate(self.federation.facts.owners)},
            "corruption": self.federation.about["corruption"],
            "versions": versions(),
            "strategies": {spec.label: asdict(self._strategy(spec).card) for spec in self._specs()},
            "models": index,
        }

    # ------------------------------------------------------------------ small parts

    def _name(self) -> str:
        """The name of the run's folder: other settings, or other data under the same settings, are another run."""
        of = {"config": configuration.to_dict(self.config), "data": self.federation.about["data"]}
        return f"{self.config.experiment}-{digest(of)[:8]}"

    def _seeds(self, k: int) -> Seeds:
        """The streams of trajectory ``k``: originals and oracles of one ``k`` share them, which pairs them."""
        return Seeds(self.config.seed).child("trajectory", k)

    def _initial(self, k: int) -> Params:
        return Params.from_module(models.initial(self.config.model, *self._shape(), self._seeds(k).integer("initial")))

    def _targets(self) -> tuple[int, ...]:
        """The clients that requests name, whose updates a recording may have to keep."""
        return tuple(sorted({client for request in self.requests for client in request.clients}))

    def _learns_itself(self, spec: StrategySpec) -> bool:
        """Whether the strategy's class has its own `learn`."""
        return find(spec.name).learn is not UnlearningStrategy.learn

    def _trajectory_key(self, k: int, learner: StrategySpec | None = None) -> str:
        """Address of a trajectory: the common one, or that of a strategy that learns itself."""
        if learner:
            strategy = self._strategy(learner)
            planned = [request.to_dict() for request in self.requests] if strategy.card.client_records else []
            mine = [learner.name, asdict(learner.options), _code_of(strategy), *planned]
            return digest([self._trajectory_key(k), *mine])
        config, about, learning = self.config, self.federation.about, asdict(self.config.learning)
        return digest(
            {
                "versions": versions(),
                "device": self.federation.device,
                "engine": self.task.engine(self.federation.device),
                "precision": self.task.precision,
                "data": [self.task.data.to_json(), about["data"]],
                "model": asdict(config.model),
                "local": asdict(config.local),
                "learning": learning | {"timeout": None},
                "seed": [config.seed, k],
            }
        )

    def _cohort(self, seeds: Seeds, i: int | None) -> Cohort:
        learning = self.config.learning
        cohort = Cohort(self.grid, self.federation, self.task, self.layout, seeds, learning.fraction)
        cohort.min_share, cohort.timeout = learning.min_share, learning.timeout
        if i is not None:
            cohort.removed, cohort.request = self.requests[:i], self.requests[i]
        return cohort

    def _shape(self) -> tuple[tuple[int, int, int], int]:
        channels, height, width = self.federation.about["input_shape"]
        return (channels, height, width), int(self.federation.about["num_classes"])

    def _progress(self, what: str, rounds: int | None) -> Callable[[int], None]:
        def progress(round: int) -> None:
            self._check_stopped()
            self._count.tick(f"{what}: round {round}" + (f"/{rounds}" if rounds else ""))

        return progress

    def _say_notes(self, what: str, notes: Sequence[str]) -> None:
        for note in notes:
            self.say(f"  note: {what}: {note}")

    def _check_stopped(self) -> None:
        if self._stop.is_set():
            raise Stopped


class Count:
    """Says how far a run is.

    Args:
        step: is told.
    """

    def __init__(self, step: Step) -> None:
        self.step, self.done, self.total = step, 0, 0
        self._lock, self._last = threading.Lock(), time.monotonic()

    def tick(self, what: str) -> None:
        """Say what goes on, if nothing was said for two seconds."""
        with self._lock:
            if time.monotonic() - self._last > 2:
                self._say(what)

    def finished(self, what: str) -> None:
        """Say that a model is there."""
        with self._lock:
            self.done += 1
            self._say(what)

    def _say(self, what: str) -> None:
        self._last = time.monotonic()
        self.step(self.done, self.total, what)


def _disk_needed(run: Experiment) -> Need:
    """What the run will write that is not there yet; what was begun counts as far as it is not written."""
    config, form, specs = run.config, run._history_config(), run._specs()
    model, need = disk.FLOAT * run.layout.size, Need()
    for k in range(config.evaluation.seeds):
        for learner in (None, *filter(run._learns_itself, specs)):
            learning = _recording_needed(run, k, learner, form)
            need += learning
            if learner is None and learning.total:
                need += sum((_audit_needed(run, i) for i in range(len(run.requests))), Need())
        for spec in specs:
            learned = run._trajectory_key(k, spec if run._learns_itself(spec) else None)
            previous = digest([learned, run.requests[0].after_round or config.learning.rounds])
            for i, request in enumerate(run.requests):
                previous = digest(run._made_of(k, spec, i, previous, form))
                if (run.store.folder("models", previous) / "model.safetensors").exists():
                    continue
                passed = run._checkpoints(request.after_round or config.learning.rounds) if spec.label == ORACLE else ()
                answers = len(passed) * _answers_needed(run, i, audit_sets.EXAMPLES)
                need += Need(models=(1 + len(passed)) * model, audits=answers) + _audit_needed(run, i)
                if spec.label == ORACLE and config.evaluation.seeds > 1:
                    need += _audit_needed(run, i)  # once more, in the place of another
    if run.rehearsal:
        learning = _recording_needed(run.rehearsal, tuning.SEED, None, form)
        if learning.total:
            number = 1 + config.tuning.trials * len(run._tunable()[0])
            answers = number * _answers_needed(run.rehearsal, 0, tuning.SETS)
            need += learning + Need(models=number * model, audits=answers)
    return need


def _recording_needed(run: Experiment, k: int, learner: StrategySpec | None, form: HistoryConfig) -> Need:
    """What a trajectory needs that is not learned yet."""
    seeds, targets = run._seeds(k), run._targets()
    recording = find_recording(run.store, run._trajectory_key(k, learner), run.layout, form, targets, seeds)
    if recording.is_complete:
        return Need()
    cohort, learning = run._cohort(seeds, None), run.config.learning
    cohorts = [cohort.sample(round) for round in range(1, learning.rounds + 1)]
    need = disk.of_recording(run.layout, form, cohorts, targets, learning.learner in AVERAGING)
    return replace(need, recordings=max(0, need.recordings - disk.already(recording.folder)))


def _audit_needed(run: Experiment, i: int) -> Need:
    """About what the audit of a model needs after request ``i``: its answers, and the models of further rounds."""
    evaluation = run.config.evaluation
    taught = range(1, evaluation.relearn + 1)
    later = len({*evaluation.durability, *taught}) + 2 * len(taught)
    sets = [
        *audit_sets.FIRST,
        *audit_sets.DRAWN,
        *run._marked_sets(),
        "forget",
        *(PATH - 1) * ["test"] * bool(evaluation.durability),
    ]
    sets += len(evaluation.durability) * [*audit_sets.LATER, *run._marked_sets()] + 3 * len(taught) * ["rest"]
    return Need(models=later * disk.FLOAT * run.layout.size, audits=_answers_needed(run, i, sets))


def _answers_needed(run: Experiment, i: int, sets: Iterable[str]) -> int:
    """About how many bytes a model's answers on audit sets take."""
    federation, most = run.federation, run.config.evaluation.max_examples
    kept, everything = federation.kept(run.requests[: i + 1]), sum(federation.num_train.values())
    sizes = dict.fromkeys(("test", "trigger"), int(federation.about["num_test"]))
    sizes |= dict.fromkeys(("forget", "rest", "few"), everything - sum(kept.values()))
    classes, total = int(federation.about["num_classes"]), 0
    for name in sets:
        capped = audit_sets.find(name).cap is not None
        size = audit_sets.find(name).most(most if capped else min(most, sizes.get(name, everything)))
        total += disk.of_answers(run.layout, classes, {name: size})
    return total


def _options(spec: StrategySpec) -> list[dict]:
    """What a strategy was set to: of each option its name, value, and what the strategy says of symbol and meaning."""
    return [
        {
            "name": option.name,
            "symbol": option.metadata.get("symbol", ""),
            "value": getattr(spec.options, option.name),
            "help": option.metadata.get("help", ""),
        }
        for option in fields(spec.options)
    ]


def _shelves(recording: Recording) -> str:
    """Where clients of a simulation keep what they record of this trajectory."""
    return str(recording.folder / "clients")


def _seed(k: int) -> str:
    """The name of trajectory ``k``."""
    return "tuning" if k == tuning.SEED else f"seed {k}"


def _left_out(index: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By model, which clients were left out of its rounds, and why; of one with many such rounds the first three.

    What became of a model (further rounds, another head) has its notes as well, and only those of its own are said.
    """
    own: dict[str, list[str]] = {}
    known: dict[tuple[str, int], set[str]] = {}
    for entry in index:
        before = known.setdefault((entry["label"], entry["seed"]), set())
        new = [note for note in entry["notes"] if note not in before]
        before.update(new)
        if new:
            own.setdefault(f"{entry['label']}, seed {entry['seed']} {entry['stage']}".strip(), []).extend(new)
    more = {model: f"; and {len(notes) - 3} more" if len(notes) > 3 else "" for model, notes in own.items()}
    return {model: "; ".join(notes[:3]) + more[model] for model, notes in own.items()}


def _on_few(cohort: Cohort, model: Params, first: int) -> Iterator[Params]:
    """The model after each round in which only the forgotten data's owners train, on a few forgotten examples."""
    for round in itertools.count(first):
        replies = cohort.train(model, cohort.targets, split="few", round=round)
        model = model + replies.mean() if replies else model
        yield model


def _code_of(strategy: UnlearningStrategy) -> str:
    """Address of the code of a strategy's file and of the modules that hold its mathematics."""
    files = [inspect.getfile(type(strategy)), routines.__file__, solvers.__file__]
    with messages.READING:  # which says why code is parsed by one thread at a time
        return digest_of_code(map(Path, files))


@contextmanager
def _code_of_strategy(spec: StrategySpec, refuses: bool = False) -> Iterator[None]:
    """Whatever is wrong with a strategy's code, as one sentence that names the strategy and the line of its file.

    Where it ``refuses`` a task, a ValueError is its own sentence to the user, and passes.

    Raises:
        ValueError: in the place of what the code raised. What is no fault of it passes: a full disk, too many clients
            that failed, or another trajectory's failure.
    """
    try:
        yield
    except (TooFewClients, AuditFailed, CannotWrite, DamagedFile, GridEnded, Stopped):
        raise
    except Exception as error:
        if refuses and type(error) is ValueError:
            raise
        file = inspect.getfile(find(spec.name))
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f" in {Path(file).name}, line {lines[-1]}" if lines else ""
        what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"strategy {spec.label!r} failed{where}: {what}") from error


class Broken(TooFewClients):
    """A strategy cannot go on: too many clients failed, or its model is no longer finite.

    Args:
        reason: which round failed, and how.
        spent: its bill so far.
    """

    def __init__(self, reason: str, spent: Cost) -> None:
        super().__init__(reason)
        self.spent = spent


class Stopped(Exception):
    """Another trajectory of the run failed; this one stops at its next round and can go on later."""


def versions() -> dict[str, str]:
    """Versions that stored numbers depend on."""
    return {"fedforget": fedforget.__version__, "torch": torch.__version__}
