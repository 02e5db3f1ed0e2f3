"""Random wrong labels by hand, and who takes part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedforget.exchange import Card
from fedforget.ledger import Cost
from fedforget.request import UnlearningRequest
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.testing import REQUESTS, Toy, serve
from strategies.random_label import RandomLabel, train_on_wrong_labels


@pytest.mark.parametrize(
    ("forgotten", "expected"),
    [
        # Softmax regression W [2, 2] at zero, one step of rate 1 on x = (2, 1) of class 0: both outputs have
        # probability 1/2. Its wrong label among two classes is 1: the step is (-1/2, 1/2) x^T.
        (True, [[-1.0, -0.5], [1.0, 0.5]]),
        (False, [[1.0, 0.5], [-1.0, -0.5]]),
    ],
)
def test_one_step_by_hand(forgotten: bool, expected: list[list[float]]) -> None:
    module = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(module.weight)
    inputs, labels, flags = torch.tensor([[2.0, 1.0]]), torch.zeros(1).long(), torch.tensor([forgotten])
    worker = Client(0, 1, module, inputs, labels, torch.arange(1), 1, LocalConfig(lr=1), Seeds(0), forgotten=flags)
    train_on_wrong_labels(worker)
    assert module.weight.tolist() == expected
    assert labels.tolist() == [0]  # shared by all clients of a process, so never written to


def spent(folder: Path, request: UnlearningRequest, **fields: Any) -> tuple[int, list[Any], Cost]:
    toy = Toy(folder)
    models, cohort, _ = serve(toy, RandomLabel(RandomLabel.Config(**fields)), request)
    return len(models), [(w.round, w.split, set(w.clients)) for w in toy.grid.work], cohort.cost


@pytest.mark.parametrize("scope", ["client", "sample"])
def test_without_retained_data_only_the_target_works(tmp_path: Path, scope: str) -> None:
    made, works, cost = spent(tmp_path, REQUESTS[scope], rounds=3, retained=False)
    assert made == 3 and works == [(round, "forget", {2}) for round in (5, 6, 7)]
    # d = 64 * 10 + 10 floats each way; 20 of the examples are named by the sample request.
    assert (cost.rounds, cost.bytes_up, cost.bytes_down) == (3, 3 * 650 * 4, 3 * 650 * 4)
    assert scope == "client" or cost.client_examples == 3 * 20


@pytest.mark.parametrize("scope", ["client", "sample"])
def test_with_retained_data_the_target_joins_the_sampled_cohort(tmp_path: Path, scope: str) -> None:
    made, works, _ = spent(tmp_path, REQUESTS[scope], rounds=2)
    assert made == 2
    for round in (5, 6):
        asked = set().union(*(clients for r, _, clients in works if r == round))
        assert 2 in asked and len(asked) >= 4  # of six clients a share of 0.7
    assert {split for _, split, _ in works} == {"train"}


def test_repair_goes_on_where_the_wrong_labels_end(tmp_path: Path) -> None:
    made, works, cost = spent(tmp_path, REQUESTS["client"], rounds=2, retained=False, repair_rounds=2)
    assert made == 4 == cost.rounds
    assert {round for round, split, _ in works if split == "retain"} == {7, 8}
    assert all(2 not in clients for _, split, clients in works if split == "retain")


def test_it_raises_the_loss_on_what_is_forgotten(tmp_path: Path) -> None:
    toy, request = Toy(tmp_path), REQUESTS["class"]
    models, cohort, final = serve(toy, RandomLabel(RandomLabel.Config(rounds=3)), request)

    def accuracy(model):
        logits, labels, *_ = cohort.evaluate(model, {"forget": 200})["forget"]
        return (logits.argmax(1) == labels).mean()

    assert accuracy(final) > 0.6 and accuracy(models[-1]) < 0.2


def test_what_it_assumes() -> None:
    assert RandomLabel.scopes == {"client", "sample", "class"}
    assert RandomLabel().card == Card(target_online=True)
    alone = RandomLabel.Config(retained=False)
    assert RandomLabel(alone).card == Card(target_online=True, retained_online=False)
    assert RandomLabel(RandomLabel.Config(retained=False, repair_rounds=1)).card == Card(target_online=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "strategy.random_label.rounds is 0, but must be at least 1"),
        ({"repair_rounds": -1}, "strategy.random_label.repair_rounds is -1, but must be at least 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomLabel.Config(**fields)
