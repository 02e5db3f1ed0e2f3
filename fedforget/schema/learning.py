"""How a federation learns, on what, and what is recorded and tuned.

The names of what other modules implement stand here as plain texts, so that reading a configuration does not load them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedforget.names import nearest

MODELS = ("linear", "mlp", "cnn", "lenet5", "resnet18", "resnet34", "vit")  # `fedforget.models` builds them
RECORDS = ("auto", "nothing", "globals", "targets", "all")  # what `fedforget.history` records
DTYPES = ("float32", "bfloat16", "float16")  # of recorded updates
GOALS = ("privacy", "bias_removal")  # of `fedforget.tuning`


@dataclass(frozen=True)
class ModelConfig:
    """Which model.

    Args:
        name: one of `MODELS`.
        width: multiplier of every hidden width (of the image's sides, for ``linear``); 1 is the published size.

    Raises:
        ValueError: if the name is unknown, or the width is not a positive finite number.
    """

    name: str = "mlp"
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise ValueError(f"model {self.name!r} is unknown{nearest(self.name, MODELS)}")
        if not 0 < self.width < math.inf:
            raise ValueError(f"model width {self.width} must be a positive finite number")


@dataclass(frozen=True)
class LocalConfig:
    """How a client trains.

    Args:
        optimizer: ``sgd`` or ``adam``.
        lr: learning rate in round 1.
        momentum: momentum of SGD (heavy ball, as in torch).
        weight_decay: coefficient of the L2 penalty, added to the gradient.
        lr_decay: factor on the learning rate after each round.
        epochs: passes over the client's data in a round.
        steps: optimiser steps in a round; above 0 it replaces ``epochs``.
        batch_size: examples a step.
        sd_gamma: gamma of the SD loss, see `sd_loss`.
    """

    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    lr_decay: float = 1.0
    epochs: int = 1
    steps: int = 0
    batch_size: int = 32
    sd_gamma: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether a step is no more than ``parameters -= lr * gradients``."""
        return self.optimizer == "sgd" and not self.momentum and not self.weight_decay

    def decay(self, round: int) -> float:
        """The learning rate of a round over that of round 1."""
        return self.lr_decay ** (round - 1)

    def with_options(self, options: Mapping[str, Any]) -> LocalConfig:
        """This recipe, with those options that name its fields applied to it (``lr=0.01``, ``epochs=2``)."""
        fields = {name: value for name, value in options.items() if name in LocalConfig.__dataclass_fields__}
        return replace(self, **fields) if fields else self

    def planned_steps(self, examples: int, effort: float = 1.0) -> int:
        """How many steps it asks of a client with so many examples, or the share ``effort`` (0 to 1) of them."""
        epoch_steps = -(-examples // self.batch_size)
        steps = (self.steps or self.epochs * epoch_steps) if epoch_steps else 0
        return math.ceil(steps * effort - 1e-9)  # 0.07 * 100 is 7, not 8

    def planned_examples(self, examples: int, effort: float = 1.0) -> int:
        """How many examples those steps see, with repetition; the last batch of an epoch may be short."""
        epochs, more = divmod(self.planned_steps(examples, effort), max(1, -(-examples // self.batch_size)))
        return epochs * examples + more * self.batch_size


@dataclass(frozen=True)
class LearningConfig:
    """How the federation learns.

    Args:
        learner: the Flower strategy that aggregates: one of `fedforget.strategy.LEARNERS`.
        options: its own settings, numbers under Flower's names, for instance ``{proximal_mu: 0.1}``; what all Flower
            strategies have (who is sampled, names of records) is the framework's.
        rounds: T, the number of rounds.
        fraction: share of all clients asked in a round.
        min_share: a round is void, and the run stops, if a smaller share of the clients asked answers.
        timeout: seconds that a round may take; at half of it, what has not answered is asked again elsewhere.
    """

    learner: str = "fedavg"
    options: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 10
    fraction: float = 1.0
    min_share: float = 0.5
    timeout: float = 600.0


@dataclass(frozen=True)
class HistoryConfig:
    """What the server records while it learns.

    Args:
        record: ``nothing``, ``globals``, ``targets``, ``all``, or ``auto`` = the least that the run's strategies need.
        dtype: type of recorded updates: ``float32``, ``bfloat16`` or ``float16`` (global models are float32).
        keep: share of each layer's entries that is kept of an update; the rest counts as zero.
        select: which entries are kept: ``top`` (largest magnitude), ``bottom`` (smallest) or ``random``.
    """

    record: str = "auto"
    dtype: str = "float32"
    keep: float = 1.0
    select: str = "top"


@dataclass(frozen=True)
class TuningConfig:
    """How strategies are tuned before they serve the run's requests.

    Args:
        trials: B, trials for each strategy, the configured settings being the first; 0 = no tuning.
        goal: what the objective rewards beside accuracy, one of `GOALS`: ``privacy`` (forgotten examples are like
            unseen ones) or ``bias_removal`` (their labels are no longer predicted).
        trade_off: lambda, the weight of the goal, in [0, 1].
    """

    trials: int = 0
    goal: str = "privacy"
    trade_off: float = 0.4


@dataclass(frozen=True)
class EngineConfig:
    """How client work is spread over the machine.

    Args:
        transport: ``auto`` (``ray`` in simulation, else the grid that Flower gives), ``ray`` or ``flower``.
        mode: how clients are trained: ``auto``, ``sequential``, ``stacked`` or ``vmap``, see `fedforget.messages.Task`.
        precision: of clients' training: ``float32``, ``tf32`` or ``bfloat16``, see there.
        device: ``auto`` (CUDA where a worker sees a card), ``cpu`` or ``cuda``.
        workers: worker processes; 0 = one a CPU core, or one a share of a card where ``gpus_per_worker`` is set.
        gpus_per_worker: share of a card that each of Ray's workers reserves, at most 1; with 0 they see no card.
        nodes: SuperNodes to wait for; 0 = as many as there are (a simulation has them all at its start).
        trajectories: independent trajectories that run at once; 0 = twice the number of nodes.
    """

    transport: str = "auto"
    mode: str = "auto"
    precision: str = "float32"
    device: str = "auto"
    workers: int = 0
    gpus_per_worker: float = 0.0
    nodes: int = 0
    trajectories: int = 0
