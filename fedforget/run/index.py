"""The index of a run: one entry for every model that the audit asks, each made where it is missing."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from fedforget.cohort import TooFewClients
from fedforget.config import StrategySpec
from fedforget.data import audit_sets
from fedforget.evaluation import ANOTHER, CHECKPOINT, ORACLE, ORIGINAL
from fedforget.ledger import Cost
from fedforget.params import Params
from fedforget.run.auditing import Auditing, Question
from fedforget.run.setting import learns_itself
from fedforget.run.threads import wait_for, workers
from fedforget.run.trajectories import Model, Original, Trajectories
from fedforget.seeds import Seeds
from fedforget.stage import LEFT
from fedforget.store import load_tensors


class Indexing:
    """Makes the index.

    Args:
        trajectories: makes the models.

    Attributes:
        failed: why a strategy has no models, by label.
    """

    def __init__(self, trajectories: Trajectories) -> None:
        self.trajectories, self.auditing = trajectories, Auditing(trajectories)
        self.setting, self.progress = trajectories.setting, trajectories.progress
        self.failed: dict[str, str] = {}

    def index(self) -> list[dict]:
        """The entries of all models, in the order in which the report shows them.

        Raises:
            TooFewClients: if a trajectory of an original or an oracle could not go on.
            AuditFailed: if no node could say what a model answers.
            ValueError: if a strategy's code fails.
        """
        seeds, specs = range(self.setting.config.evaluation.seeds), self.setting.specs
        with workers(self.setting, self.progress) as pool:
            originals = {k: pool.submit(self.trajectories.original, k) for k in seeds}
            chains = [pool.submit(self._chain, k, spec, originals[k]) for k in seeds for spec in specs]
            before = [pool.submit(self._before, k, originals[k]) for k in seeds]
            wait_for([*originals.values(), *chains, *before], self.progress)
            oracles = [chain.result() for chain in chains[:: len(specs)]]
            others = [pool.submit(self._another, k, oracles, originals[k].result().model) for k in seeds]
            wait_for(others, self.progress)
        works = (*before, *chains, *others)
        index = [entry for work in works for entry in work.result() if entry["label"] not in self.failed]
        order = [ORIGINAL, *(spec.label for spec in specs)]
        order += sorted({entry["label"] for entry in index} - set(order), key=lambda label: (len(label), label))
        index.sort(key=lambda entry: (entry["request"], order.index(entry["label"]), entry["seed"]))
        return index

    def _before(self, k: int, original: Future[Original]) -> list[dict]:
        """Entries of the original of seed ``k``, audited for each request."""
        model, requests = original.result().model, range(len(self.setting.requests))
        return [entry for i in requests for entry in self.auditing.audits(k, ORIGINAL, i, model, model)]

    def _chain(self, k: int, spec: StrategySpec, original: Future[Original]) -> list[dict]:
        """Serve the requests one after another with one strategy; returns entries."""
        learned, entries = original.result(), []
        try:
            if learns_itself(spec):
                learned = self.trajectories.original(k, spec)
            previous = learned.model
            for i in range(len(self.setting.requests)):
                previous, passed = self.trajectories.serve(k, spec, i, previous, learned.recording)
                entries += self.auditing.audits(k, spec.label, i, previous, original.result().model)
                asked = [
                    Question(f"{CHECKPOINT}{done}", LEFT, model, audit_sets.EXAMPLES) for done, model in passed.items()
                ]
                entries += self.auditing.entries(k, i, asked)
        except TooFewClients as error:
            if spec.label == ORACLE:
                raise
            # A method that breaks its clients' models is a finding about that method; the others go on. An audit that
            # fails is none: it stops the run.
            self.failed[spec.label] = f"seed {k}: {error}"
            self.progress.note(f"{spec.label} failed and is left out, {self.failed[spec.label]}")
        return entries

    def _another(self, k: int, oracles: Sequence[list[dict]], original: Model) -> list[dict]:
        """Entries of an oracle in the place of a strategy's models of seed ``k``; none if there is no other.

        Whose oracle it is, is drawn for each seed by itself: if each served once, their differences would cancel.
        """
        setting, number, entries = self.setting, len(oracles), []
        if number > 1:
            drawn = Seeds(setting.config.seed).numpy("another", k).integers(number - 1)
            j = (k + 1 + int(drawn)) % number
            for entry in oracles[j]:
                if (entry["label"], entry["stage"]) == (ORACLE, str(LEFT)):
                    path, tensor = setting.store.root / entry["weights"][0], entry["weights"][1]
                    params = Params(load_tensors(path)[0][tensor], setting.layout)
                    cost = Cost(**entry["cost"])
                    model = Model(entry["model"], params, cost, str(path), tensor, entry["residues"])
                    entries += self.auditing.audits(k, ANOTHER, entry["request"], model, original, learned_as=j)
        return entries
