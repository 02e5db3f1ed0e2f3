"""What an unlearning strategy is, and how strategies are found by name.

A strategy *is* a Flower `Strategy`: learning is delegated to any Flower learner by composition. It adds one abstract
method, `unlearn`, whose body reads like the paper's algorithm. Each lives in one file of the package ``strategies``
and is found by that file's name.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp import strategy as learners
from flwr.serverapp.strategy import Strategy

from fedforget import messages
from fedforget.cohort import Cohort, TooFewClients
from fedforget.exchange import Card, Replies, Reply
from fedforget.found import strategy_names
from fedforget.history import History, Recording
from fedforget.names import nearest
from fedforget.options import check_when_made, option
from fedforget.params import Params
from fedforget.request import SCOPES, UnlearningRequest
from fedforget.routines import Client
from fedforget.schema.learning import LearningConfig
from fedforget.seeds import Seeds

__all__ = [  # for the authors of strategies
    "Card",
    "Client",
    "Cohort",
    "History",
    "LearningConfig",
    "Params",
    "Recording",
    "Replies",
    "Reply",
    "Seeds",
    "UnlearningRequest",
    "UnlearningStrategy",
    "all_strategies",
    "find",
    "option",
]

LEARNERS: dict[str, type[Strategy]] = {
    "fedavg": learners.FedAvg,
    "fedprox": learners.FedProx,
    "fedavgm": learners.FedAvgM,
    "fedadam": learners.FedAdam,
    "fedyogi": learners.FedYogi,
    "fedadagrad": learners.FedAdagrad,
    "krum": learners.Krum,
    "multikrum": learners.MultiKrum,
    "trimmed_mean": learners.FedTrimmedAvg,
    "median": learners.FedMedian,
}


OPTIONS: dict[str, tuple[str, Callable[[float], bool]]] = {  # of learners; most of them Flower does not check
    "proximal_mu": ("at least 0", lambda x: x >= 0),
    "server_learning_rate": ("above 0", lambda x: x > 0),
    "server_momentum": ("in [0, 1)", lambda x: 0 <= x < 1),
    "eta": ("above 0", lambda x: x > 0),
    "eta_l": ("above 0", lambda x: x > 0),
    "beta_1": ("in [0, 1)", lambda x: 0 <= x < 1),
    "beta_2": ("in [0, 1)", lambda x: 0 <= x < 1),
    "tau": ("above 0", lambda x: x > 0),
    "num_malicious_nodes": ("at least 0", lambda x: x >= 0),
    "num_nodes_to_select": ("at least 1", lambda x: x >= 1),
    "beta": ("in [0, 0.5)", lambda x: 0 <= x < 0.5),
}
REMEMBERING = ("fedavgm", "fedadam", "fedyogi", "fedadagrad")  # what they do in a round depends on those before
AVERAGING = ("fedavg", "fedprox", *REMEMBERING)  # need only the mean of the updates


def make_learner(config: LearningConfig) -> Strategy:
    """A fresh Flower learner that asks every client it is shown (the cohort has done the sampling).

    Raises:
        ValueError: if the name is unknown, or an option is not one of the learner's own, not of its type or out of
            its range.
    """
    if config.learner not in LEARNERS:
        raise ValueError(f"learning.learner {config.learner!r} is unknown{nearest(config.learner, LEARNERS)}")
    learner, common = LEARNERS[config.learner], inspect.signature(learners.FedAvg).parameters
    own = {name: p.default for name, p in inspect.signature(learner).parameters.items() if name not in common}
    for name, value in config.options.items():
        kinds = (int, float) if type(own.get(name)) is float else (int,)
        if name not in own or type(value) not in kinds or not math.isfinite(value):
            known = ", ".join(f"{own_name} ({type(default).__name__})" for own_name, default in own.items())
            raise ValueError(
                f"learning.options {dict(config.options)} do not fit {config.learner!r}: "
                f"{name!r} is {value!r}, but its settings are {known or 'none'}"
            )
        words, holds = OPTIONS[name]
        if not holds(value):
            raise ValueError(f"learning.options.{name} is {value}, but must be {words}")
    settings = {"fraction_train": 1.0, "min_train_nodes": 1, "min_available_nodes": 1, **config.options}
    return learner(**settings)


def _named(value: object) -> str:
    """What a value is, without what is in it: a tensor would fill the screen."""
    return "None" if value is None else f"an object of type {type(value).__name__}"


class UnlearningStrategy(Strategy):
    """Base class of all unlearning strategies.

    A subclass gives `unlearn` and, where its defaults do not fit, `Config`, `scopes` and `card`.

    Args:
        config: the strategy's own settings.
        learning: how the federation learns; the learner also serves rounds after the request.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings, each an `option`; every instance is checked against its ranges and choices when it is made."""

    scopes: ClassVar[frozenset[str]] = frozenset(SCOPES)

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "Config" in vars(cls) and dataclasses.is_dataclass(cls.Config):
            check_when_made(cls.Config, f"strategy.{cls.__module__.rpartition('.')[2]}")

    def __init__(self, config: Any = None, learning: LearningConfig | None = None) -> None:
        self.config: Any = self.Config() if config is None else config  # an instance of the strategy's own Config
        self.learning = learning or LearningConfig()
        self.learner = make_learner(self.learning)

    @property
    def card(self) -> Card:
        """What the strategy assumes."""
        return Card()

    def check(self, cohort: Cohort) -> None:
        """Refuse, before anything is trained, a task or model that the strategy cannot serve.

        Raises:
            ValueError: one sentence that names what does not fit.
        """

    @abstractmethod
    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """Serve a request: yield the global model after each round spent (at least once; the last is the result).

        Args:
            request: what to forget.
            history: the recorded trajectory, and ``history.final``, the model to unlearn from.
            cohort: the door to the clients.
        """

    def serve(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """`unlearn`, except that a request which names no data leaves the model as it is.

        Raises:
            ValueError: if `unlearn` yields what is no model of this federation, or nothing.
            TooFewClients: if so many updates of the targets were left out that the result is another method's, see
                `fedforget.attendance`.
        """
        if not cohort.targets:
            yield history.final
            return
        models, model = self.unlearn(request, history, cohort), None
        if not isinstance(models, Iterator):
            raise ValueError(
                f"unlearn returned {_named(models)}; it must yield a model after each round: write yield, not return"
            )
        for model in models:
            if not isinstance(model, Params) or model.layout != history.final.layout:
                what = "Params in another layout" if isinstance(model, Params) else _named(model)
                raise ValueError(f"unlearn yielded {what}; it must yield Params in the layout of history.final")
            yield model
        if model is None:
            raise ValueError("unlearn yielded no model; it must yield one after each round, and one at least")
        complaint = cohort.attendance.complaint(cohort.min_share)
        if complaint:
            raise TooFewClients(complaint)

    # ------------------------------------------------------------------ learning, by the composed Flower learner

    def learn(
        self, cohort: Cohort, initial: Params, rounds: int, first_round: int = 1, recording: Recording | None = None
    ) -> Iterator[Params]:
        """Ordinary federated rounds with a fresh learner, on what the cohort's clients retain.

        Args:
            cohort: the clients.
            initial: the model to start from.
            rounds: how many rounds.
            first_round: number of the first, which fixes cohorts, client randomness and learning rate.
            recording: records the rounds, if given.

        Yields:
            The global model after each round.
        """
        self.learner = make_learner(self.learning)
        step = functools.partial(self._learner_round, cohort, recording)
        yield from self.rounds(cohort, initial, rounds, first_round, recording, step)

    def rounds(
        self,
        cohort: Cohort,
        initial: Params,
        rounds: int,
        first_round: int,
        recording: Recording | None,
        step: Callable[[Params, int], Params],
    ) -> Iterator[Params]:
        """Rounds of any kind, for a strategy that learns in its own way: ``w <- step(w, t)``.

        Args:
            cohort: the clients.
            initial: the model to start from.
            rounds: how many rounds.
            first_round: number t of the first.
            recording: records each round with the replies of its last exchange, if given.
            step: spends round t from the model w, and returns the model after it.

        Yields:
            The model after each round.
        """
        model, last = initial, first_round + rounds - 1
        for round in range(first_round, last + 1):
            noted = len(cohort.notes)
            model = step(model, round)
            if recording:
                recording.add(round, model, cohort.last_replies, cohort.notes[noted:], round == last)
            yield model

    def _learner_round(self, cohort: Cohort, recording: Recording | None, model: Params, round: int) -> Params:
        """The model after a round of the composed learner."""
        cohort.next_round, cohort.separate = round, self._separate(cohort, recording)
        asked = list(self.configure_train(round, messages.to_learner(model), ConfigRecord(), cohort))
        if cohort.separate is not None and type(self.learner).aggregate_train is learners.FedAvg.aggregate_train:
            # The learner would be given the mean as one reply and return it: these bits, in a tenth of the time.
            replies = cohort.learner_round(asked) if asked else Replies()
            return replies.added_to(model) if replies.weights() else model
        answers = cohort.send_and_receive(asked)
        with messages.READING:  # whoever overrides it may read Flower's arrays, too
            aggregated, _ = self.aggregate_train(round, answers)
        return model if aggregated is None else messages.from_learner(aggregated, model.layout)

    def _separate(self, cohort: Cohort, recording: Recording | None) -> Collection[int] | None:
        """Whose updates a learner's round must bring one by one, see `Cohort`; what it learns does not depend on it."""
        own = type(self).aggregate_train is not UnlearningStrategy.aggregate_train
        if own or self.learning.learner not in AVERAGING:
            return None
        if recording is None:
            return ()
        return {"all": cohort.federation.clients, "targets": recording.targets}.get(recording.config.record, ())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegated to the learner; ``grid`` is a `Cohort`."""
        return self.learner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegated to the learner, in client-id order; `learn` calls it for one thread at a time."""
        return self.learner.aggregate_train(server_round, sorted(replies, key=lambda m: m.metadata.src_node_id))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: evaluation is the framework's (`Cohort.evaluate`)."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing to aggregate, see `configure_evaluate`."""
        return None

    def summary(self) -> None:
        """Delegated to the learner."""
        self.learner.summary()


def find(name: str) -> type[UnlearningStrategy]:
    """The strategy in ``strategies/<name>.py``.

    Raises:
        ValueError: if there is no such file, it cannot be imported, or it does not hold exactly one whole strategy.
    """
    names = strategy_names()
    if name not in names:
        raise ValueError(f"strategy {name!r} is unknown{nearest(name, names)}")
    try:
        module = importlib.import_module(f"strategies.{name}")
    except Exception as error:  # whatever a user's file does when it is read
        raise ValueError(f"strategies/{name}.py cannot be imported: {type(error).__name__}: {error}") from error
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, UnlearningStrategy) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise ValueError(f"strategies/{name}.py holds {len(classes)} strategies; it must hold exactly one")
    _check_class(f"strategies/{name}.py: {classes[0].__name__}", classes[0])
    return classes[0]


def _check_class(who: str, strategy: type[UnlearningStrategy]) -> None:
    """Refuse a strategy that could not be set up or asked."""
    if inspect.isabstract(strategy):
        raise ValueError(f"{who} does not define {', '.join(sorted(strategy.__abstractmethods__))}")
    if not set(strategy.scopes) <= set(SCOPES):
        raise ValueError(f"{who} has scopes {sorted(strategy.scopes)}, but must have some of {', '.join(SCOPES)}")
    if not dataclasses.is_dataclass(strategy.Config):
        raise ValueError(f"{who}.Config must be a dataclass: write @dataclass(frozen=True) above it")
    for setting in dataclasses.fields(strategy.Config):
        if setting.default is setting.default_factory is dataclasses.MISSING:
            raise ValueError(f"{who}.Config.{setting.name} has no default; give it one")


def all_strategies() -> dict[str, type[UnlearningStrategy]]:
    """Every strategy, by name."""
    return {name: find(name) for name in strategy_names()}
