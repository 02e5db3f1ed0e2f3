"""Class-discriminative pruning: activations, scores and cuts by hand, and a network that stays pruned."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from fedforget import data
from fedforget.cohort import Cohort
from fedforget.history import History
from fedforget.messages import Task
from fedforget.models import ModelConfig, initial
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.class_pruning import ClassPruning, activations, cut, reply_layout, tf_idf

LAYOUT = Layout(("a.weight", "a.bias", "b.weight", "c.weight"), ((3, 1, 1, 1), (3,), (2, 3, 1, 1), (2, 4)))


def test_scores_by_hand() -> None:
    # Class 0: TF = (3, 1, 0) / 4. Means over classes are 1: channel 0 is active for class 0 alone, channel 1 for all
    # three, channel 2 for class 2 alone: IDF = log 4/2, log 4/4, log 4/2.
    A = torch.tensor([[3.0, 1, 0], [0, 1, 0], [0, 1, 3]], dtype=torch.float64)
    assert tf_idf(A, 0).tolist() == pytest.approx([0.75 * math.log(2), 0, 0])
    assert tf_idf(A, 2).tolist() == pytest.approx([0, 0, 0.75 * math.log(2)])
    assert tf_idf(0 * A, 0).tolist() == [0, 0, 0]


def test_cuts_by_hand() -> None:
    # round(0.4 * 5) = 2 of five channels, over both layers: scores 0.5 and 0.4. Linear layers are left alone.
    m = Params(torch.ones(LAYOUT.size), LAYOUT)
    cut(m, {"a.weight": torch.tensor([0.5, 0.1, 0.2]), "b.weight": torch.tensor([0.4, 0.0])}, 0.4)
    assert m.flat.tolist() == [0, 1, 1] + [0, 1, 1] + [0, 0, 0, 1, 1, 1] + [1] * 8


def test_activations_by_hand() -> None:
    # Channel 0 is x, channel 1 is 1/2 - x. Image 1, of class 0: 1 -2 3 0, rectified (1 + 0 + 3 + 0) / 4 = 1 and (0 +
    # 2.5 + 0 + 0.5) / 4 = 0.75. Image 2, of class 1, is black: 0 and 0.5. All divided by n = 2; class 2 is not there.
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 3))
    layout = Layout.of(model)
    Params(torch.cat([torch.tensor([1.0, -1.0, 0.0, 0.5]), torch.zeros(27)]), layout).copy_to(model)
    images = torch.tensor([[1.0, -2, 3, 0], [0, 0, 0, 0]]).view(2, 1, 2, 2)
    options = {"classes": 3}
    client = Client(
        0, 1, model, images, torch.tensor([0, 1]), torch.arange(2), 2, LocalConfig(), Seeds(0), options=options
    )
    found = activations(client)
    assert found.layout == reply_layout(layout, 3)
    assert found.flat.tolist() == [0.5, 0.375, 0, 0.25, 0, 0] + [0.5, 0.5, 0]
    assert not model[0]._forward_hooks


def convolutional(folder: Path) -> Toy:
    """The toy with a network of 3 and 6 channels."""
    toy = Toy(folder, learning=LearningConfig(rounds=2), local=LocalConfig(lr=0.1))
    model = ModelConfig("cnn", 0.1)
    toy.task = Task(toy.task.data, model, toy.local, "cpu")
    toy.start = Params.from_module(initial(model, (1, 8, 8), 10, 0))
    return toy


def unlearn(folder: Path, request: UnlearningRequest, **fields: Any) -> tuple[list[Params], Cohort, Params]:
    toy = convolutional(folder)
    return serve(toy, ClassPruning(ClassPruning.Config(**fields), toy.learning), request)


def test_the_channels_of_the_highest_scores_are_cut_and_stay_cut(tmp_path: Path) -> None:
    models, cohort, final = unlearn(tmp_path, REQUESTS["class"], share=0.34, rounds=2)
    # On one machine: the same means from all training images at once.
    federated = data.load(cohort.task.data)
    index = torch.cat([federated.split(k, "train", cohort.seeds) for k in range(6)])
    images, labels = federated.inputs[index], federated.labels[index]
    first, second = (final.layers()[name] for name in ("0.weight", "3.weight"))
    x = nn.functional.conv2d(images, first, final.layers()["0.bias"], padding=2)
    y = nn.functional.conv2d(nn.functional.max_pool2d(x.relu(), 2), second, final.layers()["3.bias"], padding=2)
    scores = torch.cat(
        [
            tf_idf(torch.stack([layer.relu().mean((2, 3))[labels == c].mean(0) for c in range(10)]), 3)
            for layer in (x, y)
        ]
    )
    chosen = set(scores.topk(3).indices.tolist())  # round(0.34 * 9)
    assert len(models) == 3 and scores.sort().values[-3] > 1.01 * scores.sort().values[-4]
    for model in models:
        weights = [*model.layers()["0.weight"], *model.layers()["3.weight"]]
        biases = [*model.layers()["0.bias"], *model.layers()["3.bias"]]
        assert {j for j, filter_ in enumerate(weights) if not filter_.any()} == chosen
        assert {j for j, bias in enumerate(biases) if not bias} >= chosen
    kept = torch.ones_like(final.flat, dtype=torch.bool) & (models[0].flat != 0)
    assert torch.equal(models[0].flat[kept], final.flat[kept])


def test_cut_channels_are_made_zero_again_after_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rounds that add 1 to every number, as a network could whose cut channels still have a gradient.
    def grow(self: ClassPruning, cohort: Cohort, initial: Params, rounds: int, first_round: int) -> list[Params]:
        return [Params(initial.flat + 1, initial.layout)]

    toy, strategy = convolutional(tmp_path), ClassPruning(ClassPruning.Config(share=0.34, rounds=2))
    cohort = toy.cohort(REQUESTS["class"], strategy.card)
    monkeypatch.setattr(ClassPruning, "learn", grow)
    history = cast(History, SimpleNamespace(final=toy.start, rounds=2))
    first, *later = strategy.unlearn(REQUESTS["class"], history, cohort)
    kept = first.flat != 0
    assert 0 < kept.sum() < len(kept)
    for number, model in enumerate(later, start=1):
        torch.testing.assert_close(model.flat, first.flat + number * kept)


def test_it_costs_a_round_of_activations_and_fine_tuning(tmp_path: Path) -> None:
    # Nine channels of ten classes and ten counts from each of six clients, then two rounds of the five or six that
    # keep data: every client keeps some.
    _, cohort, final = unlearn(tmp_path, REQUESTS["class"], rounds=2)
    assert cohort.cost.rounds == 3
    assert cohort.cost.bytes_up == 4 * (6 * (9 * 10 + 10) + 2 * 6 * len(final.flat))


def test_several_classes_each_take_their_share(tmp_path: Path) -> None:
    def zeros(*classes: int) -> torch.Tensor:
        [model], _, _ = unlearn(tmp_path, UnlearningRequest("class", classes), share=0.2, rounds=0)
        return model.flat == 0

    assert torch.equal(zeros(3, 5), zeros(3) | zeros(5))


def test_a_network_without_channels_is_refused_before_training(run_small: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="class_pruning cuts channels of convolutions; model 'linear' has none"):
        run_small("request=class strategies=[class_pruning]")
    assert not list(tmp_path.glob("store/trajectories/*"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 0.0}, r"strategy.class_pruning.share is 0.0, but must be in \(0, 1\)"),
        ({"share": 1.0}, r"strategy.class_pruning.share is 1.0, but must be in \(0, 1\)"),
        ({"rounds": -1}, "strategy.class_pruning.rounds is -1, but must be at least 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassPruning.Config(**fields)
