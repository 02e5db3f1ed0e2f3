"""The whole story of a run: learn, request, unlearn, oracle, audit, report.

Every result is stored under an address made of everything that determines it, so what exists is never made twice: not
by a run that was killed and started again, not by a second run that shares originals or oracles with this one.

A strategy that must be planned before training overrides `learn`. It then has an original trajectory of its own, from
the same initial weights, cohorts and client randomness, and serves its requests from there. Its row is compared with
what everyone's is: the common original (the row ``original``, and the signal ``noop_gap``) and the common oracle, so
what its way of learning does to the model counts as its doing. Learning is billed to no strategy, be it common or own.

With ``tuning.trials`` strategies are tuned first (`fedforget.tuning`), in a rehearsal that shares the run's store and
its clients, but has another trajectory and another request. The parts are in `fedforget.run`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid

from fedforget import config as configuration
from fedforget import report
from fedforget.assessment import assess
from fedforget.cohort import asked_of
from fedforget.config import RunConfig
from fedforget.evaluation import LEVELS
from fedforget.run import disk
from fedforget.run.addresses import run_name
from fedforget.run.checks import check, record_of
from fedforget.run.header import header, trainings
from fedforget.run.index import Indexing
from fedforget.run.needed import needed, to_make
from fedforget.run.progress import Progress, Step
from fedforget.run.rehearsal import Rehearsal, rehearse, tune
from fedforget.run.resolve import name_request
from fedforget.run.setting import Setting
from fedforget.run.trajectories import Trajectories
from fedforget.store import Store, make_folder, write_text


class Experiment:
    """One run of the framework.

    Args:
        config: the composed configuration.
        grid: reaches the nodes, which are there.
        output: an absolute folder; results go to ``runs/`` in it, and what runs share to ``store/``.
        say: is told, in one line, what has been done.
        step: is told how many models are there, of how many, and in one line what goes on; None: `say` is.

    Attributes:
        setting: the configuration and what it means to the federation, once prepared; then with the tuned options.
        folder: where the report goes, once prepared.
        rehearsal: where strategies are tuned, if they are.
    """

    setting: Setting
    folder: Path
    rehearsal: Rehearsal | None

    def __init__(
        self,
        config: RunConfig,
        grid: Grid,
        output: Path,
        say: Callable[[str], None] = print,
        step: Step | None = None,
    ) -> None:
        self.config, self.grid, self.output = config, grid, output
        self.store, self.progress = Store(output / "store"), Progress(say, step)

    def prepare(self) -> None:
        """Find out who is there, and what the requests mean to them; nothing is trained.

        Raises:
            ValueError: if the configuration does not fit the data.
        """
        self.setting = Setting.of(self.config, self.grid, self.store)
        self.folder = make_folder(self.output / "runs" / run_name(self.setting))
        check(self.setting)
        federation, say = self.setting.federation, self.progress.say
        for heading, text in federation.facts.lines():
            say(f"{heading}: {text}")
        named = [name_request(request, federation) for request in self.setting.requests]
        clients = len(federation.clients)
        asked = asked_of(self.config.learning.fraction, clients)
        say(
            f"{clients} clients on {len(federation.hosts)} SuperNodes ({federation.about['device']}), "
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
        self.rehearsal, tuned = rehearse(self.setting, self.progress), dict[str, Any]()
        self._announce()
        if self.config.tuning.trials:
            self.setting, tuned = tune(self.setting, self.rehearsal, self.progress)
        models = Indexing(Trajectories(self.setting, self.progress))
        index = models.index()
        self.progress.say("measuring")
        said = header(self.setting, index, models.failed, tuned, bool(self.rehearsal))
        rows = assess(self.store.root, said).rows()
        with self.store.lock("runs", self.folder.name):
            for folder in (self.folder, self.folder / "figures"):
                self.store.tidy(folder)
            write_text(self.folder / "config.yaml", configuration.to_yaml(self.config))
            report.write(self.folder, said, rows)
        self.progress.say(report.render_table(said, rows))
        self.progress.say(f"results: {self.folder}")
        return self.folder

    def _announce(self) -> None:
        """Say what is to be done, and refuse what does not fit the disk."""
        evaluation, form = self.config.evaluation, record_of(self.setting)
        self.progress.say(
            f"evidence level {evaluation.level} ({LEVELS[evaluation.level].code}), K = {evaluation.seeds}: "
            f"{trainings(self.setting, bool(self.rehearsal))} whole trainings, "
            f"{len(self.setting.specs) - 1} strategies. {evaluation.claim}"
        )
        need = needed(self.setting, self.rehearsal, form)
        self.progress.say(f"what is still to be done needs {need}")
        disk.refuse(need, self.store.root, form.record)
        self.progress.total = to_make(self.setting, self.rehearsal)
