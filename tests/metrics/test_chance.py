"""What a constant answer is worth, by hand."""

from __future__ import annotations

import pytest
import torch

from fedforget.metrics import Outputs
from fedforget.metrics.chance import client_guesses, constant_guess, is_skewed


def asked(labels: list[int], clients: list[int] | None = None, classes: int = 30) -> Outputs:
    """Answers of a model to examples with these labels; what it says does not matter."""
    of = torch.tensor(labels)
    return Outputs(torch.full((len(of), classes), torch.nan), of, torch.tensor(clients or [-1] * len(of)))


@pytest.mark.parametrize(
    "labels, share, skewed",
    [
        ([10, 20] * 5, 0.5, False),  # not one over the largest label
        ([10] * 2 + [20], 2 / 3, False),
        ([10] * 4 + [20], 0.8, True),  # 0.8 > 1.5 / 2
        ([0, 1, 2, 3] * 4 + [0], 5 / 17, False),
        ([0] * 4 + [1, 2, 3] * 2, 0.4, True),  # 0.4 > 1.5 / 4
        ([7] * 3, 1.0, False),
    ],
)
def test_the_best_constant_guess_is_the_most_frequent_class(labels, share, skewed) -> None:
    assert constant_guess(asked(labels)) == pytest.approx(share)
    assert is_skewed(asked(labels)) == skewed


def test_the_best_guess_for_the_mean_client_and_for_the_worst_are_different_ones() -> None:
    """Clients 0 and 1 hold class 5 alone but for one of 4 at client 1; client 2 has 5 once and 6 three times. Class 5
    scores 1, 3/4, 1/4: mean 2/3, worst 1/4. Class 6 scores 0, 0, 3/4."""
    labels, clients = [5] * 4 + [5, 5, 5, 6] + [5, 6, 6, 6], [0] * 4 + [1] * 4 + [2] * 4
    assert client_guesses(asked(labels, clients)) == pytest.approx({"accuracy": 2 / 3, "worst": 0.25})
    # With ten clients of class 0 and one of class 1 no answer serves the worst two at all well: 1 / 2 for class 0.
    labels, clients = [0] * 10 + [1], list(range(11))
    assert client_guesses(asked(labels, clients)) == pytest.approx({"accuracy": 10 / 11, "worst": 0.5})
