"""Learning with the SD loss: a step by hand, the recipe's field, and what it is for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fedforget.messages import Task
from fedforget.params import Params
from fedforget.routines import Client, LocalConfig, sd_loss, train
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig
from fedforget.testing import Toy
from strategies.retrain import Retrain


def client(module: nn.Module, inputs: list[list[float]], labels: list[int], **recipe: float) -> Client:
    places, local = torch.arange(len(inputs)), LocalConfig(**recipe)  # type: ignore[arg-type]
    return Client(0, 1, module, torch.tensor(inputs), torch.tensor(labels), places, len(inputs), local, Seeds(7))


def classifier(inputs: int, classes: int, *values: float) -> nn.Module:
    module = nn.Linear(inputs, classes, bias=False)
    Params(torch.tensor(values), Params.from_module(module).layout).copy_to(module)
    return module


def test_a_step_by_hand() -> None:
    # Two classes, x = 1, label 0, logits (1, -1): p_1 = 1 / (1 + e^2), so the cross-entropy has the gradient (-p_1,
    # p_1). The deviation of two numbers is |z_0 - z_1| / sqrt 2, with the gradient (1, -1) / sqrt 2. gamma = 3, lr = 1.
    module = classifier(1, 2, 1.0, -1.0)
    worker = client(module, [[1.0]], [0], lr=1.0, sd_gamma=3.0)
    train(worker)
    p_1 = 1 / (1 + math.e**2)
    w = [1 + p_1 - 3 / math.sqrt(2), -1 - p_1 + 3 / math.sqrt(2)]
    assert module.weight.flatten().tolist() == pytest.approx(w)
    assert float(worker.total_loss) == pytest.approx(math.log(1 + math.e**-2) + 3 * math.sqrt(2))


def test_the_loss_by_hand() -> None:
    # Logits (0, 0): cross-entropy log 2, deviation 0. Logits (1, -1), label 0: log(1 + e^-2), deviation
    # sqrt((1 + 1) / (2 - 1)) = sqrt 2. Mean over both, gamma = 3.
    loss = sd_loss(torch.tensor([[0.0, 0.0], [1.0, -1.0]]), torch.tensor([1, 0]), gamma=3.0)
    expected = (math.log(2) + math.log(1 + math.exp(-2))) / 2 + 3 * math.sqrt(2) / 2
    assert loss.item() == pytest.approx(expected)


def test_equal_logits_have_a_gradient() -> None:
    # The deviation has none where all logits are equal, as at zero weights; it counts as 0, not as NaN.
    module = classifier(1, 2, 0.0, 0.0)
    train(client(module, [[1.0]], [0], lr=1.0, sd_gamma=3.0))
    assert module.weight.flatten().tolist() == [0.5, -0.5]


def test_without_gamma_nothing_changes_to_the_bit() -> None:
    made = []
    for recipe in ({}, {"sd_gamma": 0.0}):
        module = classifier(2, 3, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
        train(client(module, [[1.0, 2.0], [3.0, -1.0]], [0, 2], **recipe))
        made.append(module.weight.flatten().tolist())
    assert made[0] == made[1] and LocalConfig().sd_gamma == 0


def test_a_federation_that_learns_with_it_moves_less(tmp_path: Path) -> None:
    moved = []
    for gamma in (0.0, 0.1, 1.0):
        toy = Toy(tmp_path, 1, LearningConfig(rounds=3), LocalConfig(sd_gamma=gamma))
        toy.task = Task(toy.task.data, toy.task.model, toy.local, "cpu", "sequential")
        *_, learned = Retrain(learning=toy.learning).learn(toy.cohort(), toy.start, 3)
        moved.append((learned - toy.start).norm())
    assert moved == sorted(moved, reverse=True) and moved[0] > 1.3 * moved[2]
