"""The published claim about amnesiac unlearning on one machine, on one seed: an effect of Adam, not of SGD."""

from __future__ import annotations

import pytest

from simulations.amnesiac_machine import OPTIMISERS, study


@pytest.fixture(scope="module")
def accuracies() -> dict[str, dict[str, list[float]]]:
    """By optimiser and model: on the forgotten examples, the class's test images, and all others'."""
    return {optimiser: dict(study("mlp", local, seed=0)) for optimiser, local in OPTIMISERS.items()}


def test_under_adam_the_class_is_gone_and_the_rest_soon_repaired(accuracies) -> None:
    original, subtracted, repaired, _ = accuracies["adam"].values()
    assert original[0] == 100 and original[1] > 30
    assert max(subtracted[:2]) <= 10 and max(repaired[:2]) <= 10
    assert original[2] - 8 < subtracted[2] < original[2] and repaired[2] > original[2] - 3


def test_under_sgd_subtraction_destroys_the_model(accuracies) -> None:
    original, subtracted, _, tuned = accuracies["sgd"].values()
    assert original[2] > 95 and subtracted[2] < 70 and tuned[0] > 50
