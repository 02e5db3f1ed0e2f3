"""How a client trains. What it computes is part of the addresses of stored results, so it has a file of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


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
