"""What one gets for nothing: the best that an answer which is the same for every example scores.

Utility counts from here, not from one over the number of classes, which a constant answer exceeds wherever classes
are not equally frequent.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from fedforget.metrics.clients import client_accuracies, summary
from fedforget.metrics.outputs import Outputs

SKEWED = 1.5  # times the share that the most frequent class had if classes were equally frequent


def constant_guess(outputs: Outputs) -> float:
    """The best accuracy of a constant answer: the share of the most frequent class; (0, 1], 1 = one class occurs."""
    return outputs.labels.bincount().max().item() / len(outputs)


def is_skewed(outputs: Outputs) -> bool:
    """Whether the most frequent class is more than `SKEWED` times as frequent as if all that occur were equally so."""
    return constant_guess(outputs) * len(outputs.labels.unique()) > SKEWED


def client_guesses(outputs: Outputs) -> dict[str, float]:
    """The best ``accuracy`` and the best ``worst`` (`fedforget.metrics.clients.summary`) of a constant answer; [0, 1].

    Each over all constant answers: the one that is best for the mean client may be useless for the worst.
    """
    found = []
    for label in outputs.labels.unique():
        logits = torch.zeros_like(outputs.logits)
        logits[:, label] = 1
        found.append(summary(client_accuracies(replace(outputs, logits=logits))))
    return {name: max(guess[name] for guess in found) for name in ("accuracy", "worst")}
