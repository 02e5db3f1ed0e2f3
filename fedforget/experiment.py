"""The whole story of a run: learn, request, unlearn, oracle, audit, report.

Every result is stored under an address made of everything that determines it, so what exists is never made twice: not
by a run that was killed and started again, not by a second run that shares originals or oracles with this one.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid

import fedforget
from fedforget import config as configuration
from fedforget import models, report, routines, solvers
from fedforget.cohort import Cohort, TooFewClients, describe
from fedforget.config import RequestStep, RunConfig, StrategySpec
from fedforget.data import DataConfig
from fedforget.evaluation import ORACLE, ORIGINAL, ModelResult, audit, bill, measure
from fedforget.exchange import RECORDS
from fedforget.grid import choose
from fedforget.history import FileJournal, History, HistoryConfig, Recording, find_recording
from fedforget.ledger import Cost
from fedforget.messages import Task
from fedforget.metrics import Outputs
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.seeds import Seeds
from fedforget.store import Store, digest, load_tensors, save_tensors, write_text
from fedforget.strategy import UnlearningStrategy, find

AUDIT_SETS = ("forget", "retain", "holdout", "test")


@dataclass(frozen=True)
class Model:
    """A stored model: its address, its parameters and what making it cost."""

    key: str
    params: Params
    cost: Cost


@dataclass(frozen=True)
class Original:
    """A learned trajectory of one seed."""

    model: Model
    recording: Recording


class Experiment:
    """One run of the framework.

    Args:
        config: the composed configuration.
        grid: the Flower grid that the ServerApp was given.
        output: an absolute folder; results go to ``runs/`` in it, and what runs share to ``store/``.
        say: is told, in one line, what has been done.
    """

    def __init__(self, config: RunConfig, grid: Grid, output: Path, say: Callable[[str], None] = print) -> None:
        self.config, self.say = config, say
        self.store = Store(output / "store")
        self.folder = output / "runs" / f"{config.experiment}-{digest(configuration.to_dict(config))[:8]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        data = DataConfig(config.task, config.partition, config.corruption, config.seed)
        self.task = Task(data, config.model, config.local, config.engine.device, config.engine.mode)
        self.grid = choose(grid, config.engine)
        self._stop = threading.Event()
        self._failed: dict[str, str] = {}
        self._progress_lock = threading.Lock()
        self._done, self._total, self._last_said = 0, 0, time.monotonic()

    def run(self) -> Path:
        """Do everything that is not done yet; returns the folder with the report.

        Raises:
            ValueError: if the configuration does not fit the data; nothing has been trained then.
            TooFewClients: if a round failed; what was finished is stored, and the same command goes on from there.
        """
        # The workers fill every core; a server with more threads would only take them away.
        torch.set_num_threads(1)
        # Flower's learners log two lines a round; a run has thousands of rounds and says itself how far it is.
        logging.getLogger("flwr").setLevel(logging.WARNING)
        self.say(f"waiting for the SuperNodes to load {self.config.task.source} data")
        self.federation = describe(self.grid, self.task)
        self.layout = Layout.of(models.build(self.config.model, *self._shape()))
        self.requests = tuple(self._resolve(i, step) for i, step in enumerate(self.config.request.steps))
        self._check()
        self.say(
            f"{len(self.federation.clients)} clients on {len(self.federation.hosts)} SuperNodes "
            f"({self.federation.about['device']}); to forget: {', then '.join(map(str, self.requests))}"
        )
        results, index = self._results()
        write_text(self.folder / "config.yaml", configuration.to_yaml(self.config))
        header = self._header(index)
        report.write(self.folder, header, audit(results), bill(results), [asdict(result) for result in results])
        self.say(report.render_table(header, audit(results), bill(results)))
        self.say(f"results: {self.folder}")
        return self.folder

    # ------------------------------------------------------------------ before any work

    def _resolve(self, number: int, step: RequestStep) -> UnlearningRequest:
        """The request that a step of the configuration means, now that the clients' sizes are known."""
        if step.scope == "class":
            return UnlearningRequest("class", step.classes, step.after_round)
        missing = [client for client in step.clients if client not in self.federation.num_train]
        if missing:
            raise ValueError(
                f"request.clients={list(step.clients)}: client {missing[0]} does not exist; "
                f"there are clients 0 to {self.federation.clients[-1]}"
            )
        if step.scope == "client":
            return UnlearningRequest("client", step.clients, step.after_round)
        client = step.clients[0]
        size = self.federation.num_train[client]
        positions: Any = step.samples
        if not positions:
            order = Seeds(self.config.seed).numpy("request", number).permutation(size)
            positions = order[: max(1, round(step.share * size))].tolist()
        beyond = [position for position in positions if position >= size]
        if beyond:
            raise ValueError(f"request.samples: client {client} has {size} training examples, so none at {beyond[0]}")
        return UnlearningRequest("sample", tuple((client, position) for position in positions), step.after_round)

    def _check(self) -> None:
        """Refuse what cannot work, before anything is trained."""
        classes = int(self.federation.about["num_classes"])
        for number, request in enumerate(self.requests):
            if request.scope == "class" and max(request.targets) >= classes:
                raise ValueError(f"request.classes: class {max(request.targets)} does not exist; there are {classes}")
            cohort = self._cohort(Seeds(0), number)
            if not cohort.targets:
                raise ValueError(f"request {request} names no training example that is still there")
            if not cohort.retained:
                raise ValueError(f"request {request} leaves no training data at any client")
        for spec in self._specs():
            strategy = self._strategy(spec)
            strategy.card  # noqa: B018 (a card that cannot be made is found here)
            strategy.check(self._cohort(Seeds(0), 0))

    def _specs(self) -> list[StrategySpec]:
        """The oracle, the no-op and the strategies asked for, each label once."""
        asked = {spec.label: spec for spec in self.config.strategies}
        always = {name: StrategySpec(name, name, find(name).Config()) for name in (ORACLE, "none")}
        return list((always | asked).values())

    def _strategy(self, spec: StrategySpec) -> UnlearningStrategy:
        return find(spec.name)(spec.options, self.config.learning)

    def _history_config(self) -> HistoryConfig:
        """The configured record; ``auto`` is the least that the strategies' cards ask for."""
        levels = [self._strategy(spec).card.records for spec in self._specs()]
        most = max(levels, key=RECORDS.index)
        asked = self.config.history.record
        if asked == "auto":
            return replace(self.config.history, record=most)
        if RECORDS.index(asked) < RECORDS.index(most):
            needy = next(s.label for s, level in zip(self._specs(), levels, strict=True) if level == most)
            raise ValueError(f"history.record={asked}, but strategy {needy!r} needs {most}; use history.record={most}")
        return self.config.history

    # ------------------------------------------------------------------ the work

    def _results(self) -> tuple[list[ModelResult], list[dict]]:
        """All models of the run, made where they are missing, and their scores."""
        config = self.config
        seeds = range(config.evaluation.seeds)
        specs = self._specs()
        history_config = self._history_config()
        self._total = len(seeds) * (1 + len(specs) * len(self.requests))
        concurrent = config.engine.trajectories or 2 * len(self.federation.hosts)
        with ThreadPoolExecutor(concurrent, thread_name_prefix="trajectory") as pool:
            originals = {k: pool.submit(self._original, k, history_config) for k in seeds}
            chains = [pool.submit(self._chain, k, spec, originals[k]) for k in seeds for spec in specs]
            try:
                self._wait([*originals.values(), *chains])
            finally:
                self._stop.set()
        found = [entry for chain in chains for entry in chain.result() if entry[1] not in self._failed]
        for k in seeds:
            for i in range(len(self.requests)):
                original = originals[k].result().model
                found.append((i, ORIGINAL, k, original, self._outputs(original, k, i)))
        order = [ORIGINAL, *(spec.label for spec in specs)]
        found.sort(key=lambda entry: (entry[0], order.index(entry[1]), entry[2]))
        results = [
            ModelResult(i, label, k, measure(self._load_outputs(path)), model.cost)
            for i, label, k, model, path in found
        ]
        index = [
            {
                "request": i,
                "label": label,
                "seed": k,
                "model": model.key,
                "outputs": str(path.relative_to(self.store.root)),
            }
            for i, label, k, model, path in found
        ]
        return results, index

    def _wait(self, futures: list[Future]) -> None:
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

    def _original(self, k: int, history_config: HistoryConfig) -> Original:
        """Learn the trajectory of seed ``k``, or load it."""
        config, seeds = self.config, self._seeds(k)
        key, start = self._trajectory_key(k), self._initial(k)
        targets = tuple(sorted({client for request in self.requests for client in request.clients}))
        rounds = self.requests[0].after_round or config.learning.rounds
        with self.store.lock("trajectories", key):
            recording = find_recording(self.store, key, start.layout, history_config, targets, seeds)
            if not recording.is_complete:
                journal = FileJournal(recording.folder / "journal")
                cohort = self._cohort(seeds, None)
                cohort.journal, cohort.progress = journal, self._progress(f"learning, seed {k}", config.learning.rounds)
                learner = self._strategy(self._specs()[0])
                recording.begin(start)
                for _ in learner.learn(cohort, start, config.learning.rounds, recording=recording):
                    pass
                recording.finish(config.learning.rounds, cohort.cost)
                self.store.remove(journal.folder)
        _, cost = recording.summary()
        for round in range(1, rounds + 1):
            self._say_notes(f"learning, seed {k}", recording.load(round)[1]["notes"])
        final = Params(recording.load(rounds)[0]["global"], start.layout)
        self._finished(f"learned the original, seed {k}: {rounds} rounds")
        return Original(Model(digest([key, rounds]), final, cost), recording)

    def _chain(self, k: int, spec: StrategySpec, original: Future[Original]) -> list[tuple]:
        """Serve the requests one after another with one strategy; ``(request, label, seed, model, outputs)`` each."""
        learned = original.result()
        previous, entries = learned.model, []
        try:
            for i in range(len(self.requests)):
                previous = self._serve(k, spec, i, previous, learned.recording)
                entries.append((i, spec.label, k, previous, self._outputs(previous, k, i)))
        except TooFewClients as error:
            if spec.label == ORACLE:
                raise
            # A method that breaks its clients' models is a finding about that method; the others go on.
            self._failed[spec.label] = f"seed {k}: {error}"
            self.say(f"  note: {spec.label} failed and is left out, {self._failed[spec.label]}")
        return entries

    def _serve(self, k: int, spec: StrategySpec, i: int, previous: Model, recording: Recording) -> Model:
        """The model after request ``i``, made by the strategy or loaded."""
        strategy, request, layout = self._strategy(spec), self.requests[i], previous.params.layout
        card = strategy.card
        determines = {
            "trajectory": self._trajectory_key(k),
            "previous": previous.key,
            "requests": [request.to_dict() for request in self.requests[: i + 1]],
            "strategy": [spec.name, asdict(spec.options), _code_of(strategy)],
            "recorded": None
            if card.records in ("nothing", "globals")
            else asdict(replace(recording.config, record="")),
        }
        key = digest(determines)
        folder = self.store.folder("models", key)
        path = folder / "model.safetensors"
        with self.store.lock("models", key):
            if not path.exists():
                cohort = self._cohort(self._seeds(k), i)
                rounds = request.after_round or self.config.learning.rounds
                cohort.card, cohort.next_round = card, rounds + 1
                cohort.journal = FileJournal(folder / "journal")
                cohort.progress = self._progress(f"{spec.label}, seed {k}", None)
                gone = frozenset(
                    c for earlier in self.requests[:i] if earlier.scope == "client" for c in earlier.targets
                )
                history = History(recording, rounds, previous.params, card, gone, cohort.targets)
                result = None
                for result in strategy.serve(request, history, cohort):  # noqa: B007 (the last one counts)
                    self._check_stopped()
                if result is None:
                    raise ValueError(f"strategy {spec.label!r} yielded no model")
                cost = cohort.cost + Cost(bytes_stored=history.bytes_stored())
                contacted = sorted(cohort.contacted)
                metadata: dict[str, Any] = {
                    "cost": cost.to_dict(),
                    "notes": cohort.notes,
                    "contacted": contacted,
                    "made_of": determines,
                }
                save_tensors(path, {"model": result.flat}, metadata)
                self.store.remove(cohort.journal.folder)
        tensors, metadata = load_tensors(path)
        self._say_notes(f"{spec.label}, seed {k}", metadata["notes"])
        cost = Cost(**metadata["cost"])
        self._finished(f"{spec.label}, seed {k}: {cost.rounds} rounds, {request} forgotten")
        return Model(key, Params(tensors["model"], layout), cost)

    # ------------------------------------------------------------------ the audit

    def _outputs(self, model: Model, k: int, i: int) -> Path:
        """The file with a model's logits on the audit sets of request ``i``; it is made if it is not there."""
        requests = [request.to_dict() for request in self.requests[: i + 1]]
        most = self.config.evaluation.max_examples
        key = digest({"model": model.key, "task": self.task.to_json(), "requests": requests, "most": most, "seed": k})
        path = self.store.folder("outputs", key) / "outputs.safetensors"
        with self.store.lock("outputs", key):
            if not path.exists():
                outputs = self._cohort(self._seeds(k), i).evaluate(model.params, dict.fromkeys(AUDIT_SETS, most))
                tensors = {
                    f"{name}/{part}": torch.from_numpy(array)
                    for name, arrays in outputs.items()
                    for part, array in zip(("logits", "labels", "clients"), arrays, strict=True)
                }
                save_tensors(path, tensors, {"model": model.key})
        return path

    def _load_outputs(self, path: Path) -> dict[str, Outputs]:
        tensors, _ = load_tensors(path)
        names = sorted({name.partition("/")[0] for name in tensors}, key=AUDIT_SETS.index)
        return {
            name: Outputs(*(tensors[f"{name}/{part}"] for part in ("logits", "labels", "clients"))) for name in names
        }

    def _header(self, index: list[dict]) -> dict:
        """What the report says about the run itself."""
        config = self.config
        return {
            "experiment": config.experiment,
            "level": config.evaluation.level,
            "claim": config.evaluation.claim,
            "seeds": config.evaluation.seeds,
            "requests": [str(request) for request in self.requests],
            "failed": dict(sorted(self._failed.items())),
            "config": digest(configuration.to_dict(config)),
            "data": self.federation.about["data"],
            "corruption": self.federation.about["corruption"],
            "versions": versions(),
            "strategies": {spec.label: asdict(self._strategy(spec).card) for spec in self._specs()},
            "models": index,
        }

    # ------------------------------------------------------------------ small parts

    def _seeds(self, k: int) -> Seeds:
        """The streams of trajectory ``k``: originals and oracles of one ``k`` share them, which pairs them."""
        return Seeds(self.config.seed).child("trajectory", k)

    def _initial(self, k: int) -> Params:
        return Params.from_module(models.initial(self.config.model, *self._shape(), self._seeds(k).integer("initial")))

    def _trajectory_key(self, k: int) -> str:
        config, about = self.config, self.federation.about
        return digest(
            {
                "versions": versions(),
                "device": about["device"].partition(":")[0],
                "stacks": self.task.stacks,
                "data": [self.task.data.to_json(), about["data"]],
                "model": asdict(config.model),
                "local": asdict(config.local),
                "learning": {**asdict(config.learning), "timeout": None},
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
            with self._progress_lock:
                if time.monotonic() - self._last_said > 2:
                    of = f"/{rounds}" if rounds else ""
                    self.say(f"[{self._done}/{self._total}] {what}: round {round}{of}")
                    self._last_said = time.monotonic()

        return progress

    def _say_notes(self, what: str, notes: list[str]) -> None:
        for note in notes:
            self.say(f"  note: {what}: {note}")

    def _check_stopped(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def _finished(self, what: str) -> None:
        with self._progress_lock:
            self._done += 1
            self._last_said = time.monotonic()
            self.say(f"[{self._done}/{self._total}] {what}")


def _code_of(strategy: UnlearningStrategy) -> str:
    """Digest of the text of a strategy's file and of the modules that hold its mathematics."""
    files = [inspect.getfile(type(strategy)), routines.__file__, solvers.__file__]
    return digest([Path(file).read_text(encoding="utf-8") for file in files])


class Stopped(Exception):
    """Another trajectory of the run failed; this one stops at its next round and can go on later."""


def versions() -> dict[str, str]:
    """Versions that stored numbers depend on."""
    return {"fedforget": fedforget.__version__, "torch": torch.__version__}
