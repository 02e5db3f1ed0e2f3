"""A toy federation and the conformance check, for the authors of strategies.

from fedforget.testing import check_strategy
check_strategy(MyStrategy)
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.clientapp import ClientApp

from fedforget import client_app, messages, models
from fedforget.cohort import Cohort, Federation, describe
from fedforget.data import DataConfig
from fedforget.data.partition import PartitionConfig
from fedforget.exchange import Card
from fedforget.grid import InProcessGrid
from fedforget.history import History, HistoryConfig, Recording
from fedforget.ledger import Cost
from fedforget.messages import Task
from fedforget.params import Params
from fedforget.request import UnlearningRequest
from fedforget.routines import LocalConfig
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig, UnlearningStrategy

REQUESTS = {
    "client": UnlearningRequest("client", (2,)),
    "sample": UnlearningRequest("sample", tuple((2, position) for position in range(0, 40, 2))),
    "class": UnlearningRequest("class", (3,)),
}


class CountingGrid(InProcessGrid):
    """An in-process grid that remembers what passed, as a second opinion on the ledger."""

    def __init__(self, num_nodes: int, app: ClientApp = client_app.app) -> None:
        super().__init__(app, num_nodes)
        self.work: list[messages.Work] = []
        self.sent: list[bytes] = []

    def _deliver(self, batch: list[Message]) -> None:
        for message in batch:
            if message.metadata.message_type == messages.TRAIN:
                work, vectors = messages.unpack(message.content)
                self.work.append(work)
                self.sent.append(b"".join(vectors[name].tobytes() for name in sorted(vectors)))
        super()._deliver(batch)


@dataclass
class Toy:
    """A learned toy federation: digits, six IID clients, softmax regression.

    Args:
        folder: where its trajectory is recorded.
        num_nodes: nodes that share the work.
        learning: how it learns.
        local: how a client trains.
    """

    folder: Path
    num_nodes: int = 2
    learning: LearningConfig = LearningConfig(rounds=4, fraction=0.7)
    local: LocalConfig = LocalConfig(lr=0.3, batch_size=32)
    record: str = "all"

    def __post_init__(self) -> None:
        self.grid = CountingGrid(self.num_nodes)
        data = DataConfig(partition=PartitionConfig(clients=6))
        self.task = Task(data, models.ModelConfig("linear"), self.local, "cpu")
        self.federation: Federation = describe(self.grid, self.task)
        self.seeds = Seeds(5).child("trajectory", 0)
        self.start = Params.from_module(models.initial(self.task.model, (1, 8, 8), 10, self.seeds.integer("initial")))

    def cohort(self, request: UnlearningRequest | None = None, card: Card | None = None) -> Cohort:
        """A cohort of the toy's clients."""
        cohort = Cohort(self.grid, self.federation, self.task, self.start.layout, self.seeds, self.learning.fraction)
        cohort.request, cohort.card = request, card
        cohort.next_round = self.learning.rounds + 1 if request else 1
        return cohort

    @property
    def shelves(self) -> str:
        """Where clients keep records of their own."""
        return str(self.folder / f"clients-{self.num_nodes}")

    def learn(
        self, strategy: UnlearningStrategy, targets: tuple[int, ...] = (), request: UnlearningRequest | None = None
    ) -> tuple[Recording, Params]:
        """The recorded trajectory and its last model; clients whose strategy keeps records know of the request."""
        config = HistoryConfig(self.record)
        recording = Recording(
            self.folder / f"{self.record}-{self.num_nodes}", self.start.layout, config, targets, self.seeds
        )
        cohort, final = self.cohort(), self.start
        if request and strategy.card.client_records:
            cohort.planned, cohort.shelves = (request,), self.shelves
        recording.begin(self.start)
        for final in strategy.learn(cohort, self.start, self.learning.rounds, recording=recording):  # noqa: B007
            pass
        recording.finish(self.learning.rounds, cohort.cost)
        return recording, final


def serve(toy: Toy, strategy: UnlearningStrategy, request: UnlearningRequest) -> tuple[list[Params], Cohort, Params]:
    """All models that a strategy yields for a request, the cohort it used, and the model it started from."""
    card = strategy.card
    toy.record = card.records
    cohort = toy.cohort(request, card)
    cohort.shelves = toy.shelves if card.client_records else ""
    recording, final = toy.learn(strategy, cohort.targets, request)
    history = History(recording, toy.learning.rounds, final, card, frozenset(), cohort.targets)
    toy.grid.work.clear()
    toy.grid.sent.clear()
    return list(strategy.serve(request, history, cohort)), cohort, final


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back what Flower logs of each round; its warnings are shown, and its level is restored afterwards."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@quiet()
def check_strategy(strategy_class: type[UnlearningStrategy], config: Any = None) -> dict[str, Cost]:
    """Hold a strategy against its contract; returns what it spent, by scope.

    For each scope that it declares, on a toy federation that records just what its card asks for: it yields finite
    models, and no client is left out; they are equal to the bit when made again and with another number of nodes; an
    empty request changes nothing; clients that are gone are asked only if the card says so, and forgotten data is used
    only then; the ledger agrees with what passed on the wire.

    Raises:
        AssertionError: naming the broken promise.
        ValueError: if the strategy asks for what its card does not declare.
    """
    costs = {}
    with tempfile.TemporaryDirectory() as folder:
        learning = Toy.learning
        for scope in sorted(strategy_class.scopes):
            request, runs = REQUESTS[scope], []
            for number in (1, 2, 4):
                toy = Toy(Path(folder), number)
                made, cohort, _ = serve(toy, strategy_class(config, learning), request)
                runs.append(made)
                what = f"{strategy_class.__name__}, {scope} request"
                assert made, f"{what}: yielded no model"
                assert all(model.is_finite() for model in made), f"{what}: yielded NaN or infinite values"
                missing = [note for note in cohort.notes if " left out (" in note]  # strategies have notes of their own
                assert not missing, f"{what}: {missing[0]}"
                _check_ledger(what, toy, cohort)
                _check_contacts(what, toy, cohort, request)
            for other in runs[1:]:
                same = len(other) == len(runs[0]) and all(a.equals(b) for a, b in zip(runs[0], other, strict=True))
                assert same, f"{what}: another number of nodes gives another result"
            costs[scope] = cohort.cost
        nothing = UnlearningRequest("client", ())
        toy = Toy(Path(folder))
        made, cohort, final = serve(toy, strategy_class(config, learning), nothing)
        assert made[-1].equals(final), f"{strategy_class.__name__}: an empty request changed the model"
        assert cohort.cost == Cost(), f"{strategy_class.__name__}: an empty request cost something"
    return costs


def _check_ledger(what: str, toy: Toy, cohort: Cohort) -> None:
    rounds, now = 0, None
    busy: set[tuple[int, str]] = set()
    for work, sent in zip(toy.grid.work, toy.grid.sent, strict=True):
        mine = {(client, work.split) for client in work.clients}
        if (work.round, sent) != now or busy & mine:  # it needs what came before, or asks somebody again
            rounds, now, busy = rounds + 1, (work.round, sent), set()
        busy |= mine
    asked = sum(len(work.clients) for work in toy.grid.work)
    assert rounds == cohort.cost.rounds, f"{what}: {rounds} rounds passed, {cohort.cost.rounds} were billed"
    assert cohort.cost.bytes_down >= asked * 4 * toy.start.layout.size, f"{what}: bytes sent were not all billed"
    assert (asked == 0) == (cohort.cost.rounds == 0), (
        f"{what}: {asked} clients were asked in {cohort.cost.rounds} rounds"
    )


def _check_contacts(what: str, toy: Toy, cohort: Cohort, request: UnlearningRequest) -> None:
    card = cohort.card or Card()
    gone = set(request.targets) if request.scope == "client" else set()
    for work in toy.grid.work:
        if not card.target_online:
            assert not gone.intersection(work.clients), f"{what}: asked a client that is gone"
            assert work.split == "retain", f"{what}: used the split {work.split!r}"
        if not card.retained_online:
            assert work.split == "forget", f"{what}: asked retained clients"
