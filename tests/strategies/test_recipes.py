"""What all strategies do alike with the recipe of learning: whose epochs, rates and numbers of rounds count."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedforget.cohort import TRAIN_ROUTINE
from fedforget.messages import Work
from fedforget.strategy import LearningConfig, all_strategies, find
from fedforget.testing import REQUESTS, Toy, serve

T = 4
AFTERWARDS = {  # strategies that end in ordinary rounds, by the option that says how many
    "amnesiac": "repair_rounds",
    "amnesiac_client": "repair_rounds",
    "class_pruning": "rounds",
    "fedaf": "recovery_rounds",
    "fedquit": "rounds",
    "finetune": "rounds",
    "lure": "rounds",
    "negation": "rounds",
    "partial_amnesiac": "repair_rounds",
    "partial_ascent": "repair_rounds",
    "partial_label_flip": "repair_rounds",
    "pga": "rounds",
    "pseudo_gradient": "rounds",
    "random_label": "repair_rounds",
    "retention_mask": "rounds",
    "sga_ewc": "rounds",
}


def work_of(folder: Path, name: str, **options: object) -> list[Work]:
    """What a strategy asks of clients, for a client or the first scope that it serves."""
    strategy_class, toy = find(name), Toy(folder, 1, LearningConfig(rounds=T))
    scope = "client" if "client" in strategy_class.scopes else sorted(strategy_class.scopes)[0]
    serve(toy, strategy_class(strategy_class.Config(**options), toy.learning), REQUESTS[scope])
    return toy.grid.work


@pytest.mark.parametrize("name", sorted(all_strategies()))
def test_a_strategys_own_epochs_and_rates_are_not_changed_by_the_learnings(tmp_path: Path, name: str) -> None:
    # A number of steps in the recipe would replace the epochs, and its decay would go on in the rounds after learning.
    for work in work_of(tmp_path, name):
        if "epochs" in work.options:
            assert work.options["steps"] == 0
        if "lr" in work.options and work.routine != "strategies.projected_gradient:ascend":  # that has its own steps
            assert work.options["lr_decay"] == 1.0


@pytest.mark.parametrize("name", AFTERWARDS)
def test_ordinary_rounds_afterwards_are_numbered_on(tmp_path: Path, name: str) -> None:
    # The number fixes who is asked, how clients shuffle and how far the rate has decayed.
    work = work_of(tmp_path, name, **{AFTERWARDS[name]: 2})
    rounds = {mine.round for mine in work if mine.routine == TRAIN_ROUTINE and mine.split == "retain"}
    assert len(rounds) >= 2 and min(rounds) > T
