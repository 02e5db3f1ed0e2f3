"""What a run is of, once it is known who is there: each of its parts gets this value, and none changes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.serverapp import Grid

from fedforget import models
from fedforget.cohort import Cohort, Federation, describe
from fedforget.config import RunConfig, StrategySpec
from fedforget.evaluation import ORACLE
from fedforget.exchange import Card
from fedforget.history import FileJournal
from fedforget.messages import Task
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.run.resolve import resolve
from fedforget.seeds import Seeds
from fedforget.store import Store
from fedforget.strategy import UnlearningStrategy, find


@dataclass(frozen=True)
class Setting:
    """The configuration, and what it means to the federation.

    Args:
        config: the composed configuration.
        grid: reaches the nodes.
        store: holds what is made.
        task: data and model; in a rehearsal what is corrupted may differ from the configured.
        federation: who is there.
        layout: how a flat vector divides into layers.
        requests: what to forget, one after another.
        strategies: the strategies to compare, with the options that tuning chose, once it has.
    """

    config: RunConfig
    grid: Grid
    store: Store
    task: Task
    federation: Federation
    layout: Layout
    requests: tuple[UnlearningRequest, ...]
    strategies: tuple[StrategySpec, ...]

    @classmethod
    def of(cls, config: RunConfig, grid: Grid, store: Store) -> Setting:
        """Ask who is there, and what the requests mean to them.

        Raises:
            ValueError: if the configuration does not fit the data.
        """
        engine = config.engine
        task = Task(config.data, config.model, config.local, engine.device, engine.mode, engine.precision)
        federation = describe(grid, task)
        layout = Layout.of(models.build(config.model, *_shape(federation)))
        return cls(config, grid, store, task, federation, layout, resolve(config, federation), config.strategies)

    @property
    def specs(self) -> list[StrategySpec]:
        """The oracle, the no-op and the strategies asked for, each label once."""
        asked = {spec.label: spec for spec in self.strategies}
        always = {name: StrategySpec(name, name, find(name).Config()) for name in (ORACLE, "none")}
        return list((always | asked).values())

    @property
    def targets(self) -> tuple[int, ...]:
        """The clients that requests name, whose updates a recording may have to keep."""
        return tuple(sorted({client for request in self.requests for client in request.clients}))

    def strategy(self, spec: StrategySpec) -> UnlearningStrategy:
        """The strategy that a specification describes, which trains as the run does."""
        return find(spec.name)(spec.options, self.config.learning)

    def rounds(self, i: int) -> int:
        """The number of rounds after which request ``i`` comes."""
        return self.requests[i].after_round or self.config.learning.rounds

    def seeds(self, k: int) -> Seeds:
        """The streams of trajectory ``k``: originals and oracles of one ``k`` share them, which pairs them."""
        return Seeds(self.config.seed).child("trajectory", k)

    def initial(self, k: int) -> Params:
        """The model from which trajectory ``k`` starts."""
        seed = self.seeds(k).integer("initial")
        return Params.from_module(models.initial(self.config.model, *_shape(self.federation), seed))


def learns_itself(spec: StrategySpec) -> bool:
    """Whether the strategy's class has its own `learn`."""
    return find(spec.name).learn is not UnlearningStrategy.learn


def cohort_of(
    setting: Setting,
    seeds: Seeds,
    i: int | None = None,
    *,
    card: Card | None = None,
    learns_again: bool = False,
    planned: tuple[UnlearningRequest, ...] = (),
    shelves: str = "",
    next_round: int = 1,
    journal: FileJournal | None = None,
    progress: Callable[[int], None] = lambda round: None,
) -> Cohort:
    """The clients of one trajectory; the only place that makes a cohort of a run.

    Args:
        setting: the run.
        seeds: the trajectory's streams.
        i: the request that is served, after those before it; None while learning.
        card: what may be asked; None: everything.
        learns_again: whether the data of request ``i`` take part again.
        planned: requests that clients know of while they learn.
        shelves: where clients keep what they record; empty: they record nothing.
        next_round: the number of the next round.
        journal: remembers exchanges.
        progress: called after each exchange with the number of the round.
    """
    learning = setting.config.learning
    cohort = Cohort(setting.grid, setting.federation, setting.task, setting.layout, seeds, learning.fraction)
    cohort.min_share, cohort.timeout = learning.min_share, learning.timeout
    if i is not None:
        cohort.removed = setting.requests[:i]
        cohort.request = None if learns_again else setting.requests[i]
    cohort.card, cohort.planned, cohort.shelves = card, planned, shelves
    cohort.next_round, cohort.journal, cohort.progress = next_round, journal, progress
    return cohort


def _shape(federation: Federation) -> tuple[tuple[int, int, int], int]:
    """The shape of an image, and the number of classes."""
    channels, height, width = federation.about["input_shape"]
    return (channels, height, width), int(federation.about["num_classes"])
