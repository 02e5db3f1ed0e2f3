"""Fine-tuning: more ordinary rounds, after the last one, from the model to unlearn."""

from __future__ import annotations

import pytest

from fedforget.exchange import Card
from fedforget.request import SCOPES
from strategies.finetune import FineTune


def test_learning_goes_on_from_the_final_model(calls, models_after) -> None:
    assert models_after(FineTune(FineTune.Config(rounds=2)), 7) == [[11, 21, 31], [12, 22, 32]]
    assert calls == [([10, 20, 30], 2, 8)]  # round 8 follows the seven of the original


def test_what_it_assumes() -> None:
    assert FineTune.scopes == set(SCOPES)
    assert FineTune().card == Card(records="nothing", target_online=False, retained_online=True)


@pytest.mark.parametrize("rounds", [0, -3])
def test_bad_settings_are_refused(rounds: int) -> None:
    with pytest.raises(ValueError, match=f"strategy.finetune.rounds is {rounds}, but must be at least 1"):
        FineTune.Config(rounds=rounds)
