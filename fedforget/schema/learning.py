"""How a federation learns, on what, and what is recorded and tuned.

The names of what other modules implement stand here as plain texts, so that reading a configuration does not load them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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
