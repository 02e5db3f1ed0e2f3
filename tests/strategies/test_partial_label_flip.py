"""Partial label-flipping by hand, its limit p = 1, and who takes part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedforget.exchange import Card
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.testing import REQUESTS, Toy, serve
from strategies.partial_label_flip import PartialLabelFlip, flip_part
from strategies.random_label import RandomLabel


# Softmax regression W [2, 2] at zero on x = (2, 1) of class 0; rate 1. Both outputs have probability 1/2, so the
# gradient of the true label is (-1/2, 1/2) x^T = [[-1, -1/2], [1, 1/2]]. That of the wrong label, 1, is its negative,
# so a whole step would lead to W = [[-1, -1/2], [1, 1/2]].
@pytest.mark.parametrize(
    ("mask", "round", "expected"),
    [
        ("top", 1, [[-1.0, 0.0], [1.0, 0.0]]),  # half of the layer: the two gradients of magnitude 1
        ("rotating", 1, [[-1.0, -0.5], [0.0, 0.0]]),  # the first half
        ("rotating", 2, [[0.0, 0.0], [1.0, 0.5]]),  # the second half
        ("rotating", 3, [[-1.0, -0.5], [0.0, 0.0]]),
    ],
)
def test_one_step_by_hand(mask: str, round: int, expected: list[list[float]]) -> None:
    module = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(module.weight)
    inputs, flags = torch.tensor([[2.0, 1.0]]), torch.tensor([True])
    options: dict[str, float | str] = {"density": 0.5, "mask": mask}
    labels = torch.zeros(1).long()
    worker = Client(
        0, round, module, inputs, labels, torch.arange(1), 1, LocalConfig(lr=1), Seeds(0), options, forgotten=flags
    )
    flip_part(worker)
    assert module.weight.tolist() == expected
    assert labels.tolist() == [0]
    # The fixed mask costs one more gradient of the forgotten data.
    assert (worker.steps, worker.examples) == ((2, 2) if mask == "top" else (1, 1))


@pytest.mark.parametrize("mask", ["top", "rotating"])
@pytest.mark.parametrize("retained", [True, False])
@pytest.mark.parametrize(("scope", "optimizer"), [("class", "sgd"), ("client", "adam")])
def test_full_density_is_random_labels_to_the_bit(
    tmp_path: Path, mask: str, retained: bool, scope: str, optimizer: str
) -> None:
    toy = Toy(tmp_path, local=LocalConfig(optimizer, lr=0.01, epochs=2))
    plain = RandomLabel(RandomLabel.Config(retained=retained, repair_rounds=1))
    partial = PartialLabelFlip(PartialLabelFlip.Config(1.0, mask, retained=retained, repair_rounds=1))
    expected, _, _ = serve(toy, plain, REQUESTS[scope])
    made, _, _ = serve(toy, partial, REQUESTS[scope])
    assert len(made) == len(expected) == 3
    assert all(w.equals(x) for w, x in zip(made, expected, strict=True))


def test_only_a_part_of_each_layer_changes(tmp_path: Path) -> None:
    # Layers of 640 and 10; a fixed mask of one client: 64 and 1 entries.
    config = PartialLabelFlip.Config(0.1, "top", rounds=1, retained=False)
    models, cohort, final = serve(Toy(tmp_path), PartialLabelFlip(config), REQUESTS["client"])
    changed = [int(layer.count_nonzero()) for layer in (models[0] - final).layers().values()]
    assert 0 < changed[0] <= 64 and changed[1] == 1
    # Sent back are the 65 entries and a bitmap of 650 bits.
    assert (cost := cohort.cost).rounds == 1 and (cost.bytes_up, cost.bytes_down) == (65 * 4 + 82, 650 * 4)


def test_what_it_assumes() -> None:
    assert PartialLabelFlip.scopes == {"client", "sample", "class"}
    assert PartialLabelFlip().card == Card(target_online=True)
    alone = PartialLabelFlip.Config(retained=False)
    assert PartialLabelFlip(alone).card == Card(target_online=True, retained_online=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": 0.0}, r"strategy.partial_label_flip.density is 0.0, but must be in \(0, 1\]"),
        ({"density": 2.0}, r"strategy.partial_label_flip.density is 2.0, but must be in \(0, 1\]"),
        ({"mask": "bottom"}, "strategy.partial_label_flip.mask is 'bottom', but must be one of top, rotating"),
        ({"rounds": 0}, "strategy.partial_label_flip.rounds is 0, but must be at least 1"),
        ({"repair_rounds": -1}, "strategy.partial_label_flip.repair_rounds is -1, but must be at least 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartialLabelFlip.Config(**fields)
