"""The discriminative regulariser: its three forms by hand, and equality with the pooled loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedforget.exchange import Card
from fedforget.params import Layout, Params
from fedforget.request import SCOPES
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.discriminative import FORMS, Discriminative, inverse, regularise, uniform, wrong
from strategies.finetune import FineTune

LEARNING = LearningConfig(rounds=3)
LR = 0.3


def client(logits: list[float], label: int, local: LocalConfig | None = None, **options: Any) -> Client:
    """One example x = 1, whose logits are the weights."""
    model = nn.Linear(1, len(logits), bias=False)
    Params(torch.tensor(logits), Layout.of(model)).copy_to(model)
    where = torch.tensor([0])
    data = (torch.ones(1, 1), torch.tensor([label]), where)
    return Client(0, 1, model, *data, 1, local or LocalConfig(), Seeds(0), options)


def value(form: Callable[..., Tensor], worker: Client) -> float:
    return form(worker, worker.inputs, worker.labels, 0).item()


def test_forms_by_hand() -> None:
    # p = (3, 1) / 4, label 0, so that the only wrong label is 1.
    worker = client([1.0986122886681098, 0.0], 0)
    # KL(U || p) = ln(1/2) - (ln(3/4) + ln(1/4)) / 2 = -0.693147 + 0.836988 = 0.143841
    assert value(uniform, worker) == pytest.approx(0.143841, rel=1e-5)
    assert value(wrong, worker) == pytest.approx(1.386294, rel=1e-5)  # -ln(1/4)
    assert value(inverse, worker) == pytest.approx(3.476059, rel=1e-5)  # 1 / -ln(3/4) = 1 / 0.287682


def test_a_step_by_hand() -> None:
    # The gradient of KL(U || p) is p - U = (1/4, -1/4); with half of the learning rate 0.8, w = -0.4 (1/4, -1/4).
    worker = client([1.0986122886681098, 0.0], 0, LocalConfig(lr=0.8), form="uniform", weight=0.5)
    regularise(worker)
    assert Params.from_module(worker.model).flat.tolist() == pytest.approx([0.998612, 0.1], rel=1e-5)


def test_the_uniform_form_is_least_where_all_classes_are_alike() -> None:
    assert value(uniform, client([2.0, 2.0, 2.0], 1)) == pytest.approx(0, abs=1e-6)


def test_a_wrong_label_is_any_other_one() -> None:
    labels = torch.arange(4).repeat(100)
    worker = client([0.0, 0.0, 0.0, 0.0], 0)
    seen: list[Tensor] = []

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return torch.tensor(0.0)

    worker.loss = loss  # type: ignore[method-assign]
    for step in range(2):
        wrong(worker, torch.ones(400, 1), labels, step)
    assert not (seen[0] == labels).any() and not torch.equal(*seen)
    assert all(set(seen[0][labels == y].tolist()) == set(range(4)) - {y} for y in range(4))


def toy(folder: Path, **local: Any) -> Toy:
    return Toy(folder, learning=LEARNING, local=LocalConfig(lr=LR, **local))


@pytest.mark.parametrize("scope", SCOPES)
def test_one_full_batch_step_is_a_step_on_the_pooled_loss(tmp_path: Path, scope: str) -> None:
    # For 1 / CE at a single target: grad (1 / CE) = -grad CE / CE^2. With several targets the mean of 1 / CE_c.
    place, request, alpha = toy(tmp_path, steps=1, batch_size=300), REQUESTS[scope], 0.02
    config = Discriminative.Config(form="inverse", alpha=alpha, rounds=1)
    [w], _, w_o = serve(place, Discriminative(config, LEARNING), request)
    cohort = place.cohort(request, Card(target_online=True))
    step, total = torch.zeros_like(w.flat), 0
    logits, labels, owners, *_ = cohort.evaluate(w_o, {"forget": 10**6})["forget"]
    for c in cohort.targets:
        mine = owners == c
        ce = nn.functional.cross_entropy(torch.tensor(logits[mine]), torch.tensor(labels[mine]))
        step += mine.sum() * -cohort.gradient(w_o, [c], "forget").flat / ce**2
        total += mine.sum()
    expected = w_o.flat - LR * (cohort.gradient(w_o).flat + alpha * step / total)
    assert torch.allclose(w.flat, expected, atol=1e-5)


def test_alpha_0_is_fine_tuning(tmp_path: Path) -> None:
    config = Discriminative.Config(alpha=0.0, rounds=2)
    made, _, _ = serve(toy(tmp_path), Discriminative(config, LEARNING), REQUESTS["client"])
    tuned, _, _ = serve(toy(tmp_path), FineTune(FineTune.Config(rounds=2), LEARNING), REQUESTS["client"])
    assert all(torch.allclose(a.flat, b.flat, atol=1e-6) for a, b in zip(made, tuned, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_on_forgotten_data_rises_with_alpha(tmp_path: Path, form: str) -> None:
    request, losses = REQUESTS["sample"], []
    for alpha in (0.0, 0.03, 0.3):
        place = toy(tmp_path)
        config = Discriminative.Config(form=form, alpha=alpha, rounds=3)
        made, cohort, _ = serve(place, Discriminative(config, LEARNING), request)
        logits, labels, *_ = place.cohort(request, cohort.card).evaluate(made[-1], {"forget": 500})["forget"]
        losses.append(nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item())
    assert losses[0] < losses[1] < losses[2]


def test_what_it_costs(tmp_path: Path) -> None:
    # Each of 3 aggregations: d floats from 5 retained clients and from the target, in one round of two parts.
    strategy = Discriminative(Discriminative.Config(rounds=3), LEARNING)
    made, cohort, w_o = serve(toy(tmp_path), strategy, REQUESTS["client"])
    assert len(made) == 3
    assert (cohort.cost.rounds, cohort.cost.bytes_up) == (3, 4 * len(w_o.flat) * 3 * (5 + 1))


def test_what_it_assumes() -> None:
    assert Discriminative.scopes == set(SCOPES)
    assert Discriminative().card == Card(target_online=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "random"}, "strategy.discriminative.form is 'random', but must be one of uniform, wrong, inverse"),
        ({"alpha": -0.1}, "strategy.discriminative.alpha is -0.1, but must be at least 0"),
        ({"rounds": 0}, "strategy.discriminative.rounds is 0, but must be at least 1"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Discriminative.Config(**fields)
