"""SCRUB: both steps and the aggregation by hand, and a student that does move."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from fedforget.cohort import Cohort
from fedforget.exchange import Card, Replies, Reply
from fedforget.history import History
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.routines import Client, LocalConfig, Routine
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.finetune import FineTune
from strategies.scrub import Scrub, divergence, max_step, min_step

LN3 = 1.0986122886681098
LAYOUT = Layout(("a",), ((3,),))
LEARNING = LearningConfig(rounds=3)


def point(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), LAYOUT)


def client(**options: float) -> Client:
    """One example x = 1 of class 1; the logits are the two weights. Student (0, 0), teacher (2 ln 3, 0), T = 2."""
    model = nn.Linear(1, 2, bias=False)
    teacher = Params(torch.tensor([2 * LN3, 0.0]), Layout.of(model))
    Params(torch.zeros(2), teacher.layout).copy_to(model)
    local, inputs, labels = LocalConfig(lr=0.1), torch.ones(1, 1), torch.tensor([1])
    options, vectors = {"T": 2.0, **options}, {"teacher": teacher}
    return Client(0, 1, model, inputs, labels, torch.tensor([0]), 1, local, Seeds(0), options, vectors)


def test_divergence_by_hand() -> None:
    # p_wo^T = (3, 1) / 4 and p_w^T = (1, 1) / 2: KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812, times T^2 = 4
    worker = client()
    assert divergence(worker, worker.inputs).item() == pytest.approx(0.523248, rel=1e-5)


@pytest.mark.parametrize(
    ("step", "options", "expected"),
    [
        # The gradient of T^2 KL is T (p_w^T - p_wo^T) = (-0.5, 0.5); the max-step ascends it: w = 0.1 (-0.5, 0.5).
        (max_step, {}, (-0.05, 0.05)),
        # That of CE is p_w - 1_y = (0.5, -0.5): together (0.5, -0.5) + 0.1 (-0.5, 0.5) = (0.45, -0.45).
        (min_step, {"gamma": 1.0, "alpha": 0.1}, (-0.045, 0.045)),
        (min_step, {"gamma": 0.0, "alpha": 1.0}, (0.05, -0.05)),
    ],
)
def test_the_student_moves_and_the_teacher_does_not(
    step: Routine, options: dict[str, float], expected: tuple[float, float]
) -> None:
    worker = client(**options)
    teacher = worker.vectors["teacher"].flat.clone()
    step(worker)
    assert Params.from_module(worker.model).flat.tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(worker.vectors["teacher"].flat, teacher)


class FakeCohort:
    """Client 1 forgets 10 of its 30 examples; client 0 keeps its 30."""

    targets = (1,)

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, float]] = []

    def train(self, w: Params, clients: Iterable[int] | None = None, *, routine: Routine, **ask: Any) -> Replies:
        self.asked.append((routine.__name__, ask["round"], ask["lr"]))
        assert ask["vectors"]["teacher"].flat.tolist() == [1, 1, 1]
        if routine is max_step:
            assert tuple(clients or ()) == self.targets and ask["split"] == "forget"
            return Replies([Reply(1, point(4, 0, 0), 10, 0.0)])
        return Replies([Reply(0, point(0, 2, 0), 30, 0.0), Reply(1, point(0, 0, 6), 20, 0.0)])


def unlearn(cohort: FakeCohort, **fields: Any) -> list[list[float]]:
    history = cast(History, SimpleNamespace(final=point(1, 1, 1), rounds=7))
    request = UnlearningRequest("sample", ((1, 0),))
    models = Scrub(Scrub.Config(**fields)).unlearn(request, history, cast(Cohort, cohort))
    return [w.flat.tolist() for w in models]


def test_a_step_pair_is_one_aggregation() -> None:
    # Client 0 sends (0, 2, 0) for 30 examples; client 1 (4, 0, 0) + (0, 0, 6) for 10 + 20: the mean is (2, 1, 3).
    # The last epoch has no max-step: 30 (0, 2, 0) / 50 + 20 (0, 0, 6) / 50 = (0, 1.2, 2.4).
    models = unlearn(FakeCohort(), rounds=2, max_rounds=1)
    assert models == [[3, 2, 4], pytest.approx([3, 3.2, 6.4])]


def test_the_learning_rate_drops_after_epochs_3_5_and_9() -> None:
    cohort = FakeCohort()
    unlearn(cohort, rounds=10, max_rounds=2, lr=1.0)
    minima = [(round, lr) for routine, round, lr in cohort.asked if routine == "min_step"]
    rates = [1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.001]
    assert minima == [(8 + e, pytest.approx(rate)) for e, rate in enumerate(rates)]
    assert [round for routine, round, _ in cohort.asked if routine == "max_step"] == [8, 9]


def models(folder: Path, strategy: Any, request: UnlearningRequest) -> tuple[list[Params], Cohort, Params]:
    return serve(Toy(folder, learning=LEARNING), strategy, request)


def test_without_divergence_it_is_fine_tuning(tmp_path: Path) -> None:
    config = Scrub.Config(rounds=2, max_rounds=0, gamma=1.0, alpha=0.0, lr=Toy.local.lr, lr_drops=())
    made, _, _ = models(tmp_path, Scrub(config, LEARNING), REQUESTS["client"])
    tuned, _, _ = models(tmp_path, FineTune(FineTune.Config(rounds=2), LEARNING), REQUESTS["client"])
    assert all(torch.allclose(a.flat, b.flat, atol=1e-6) for a, b in zip(made, tuned, strict=True))


def test_divergence_alone_keeps_the_student_at_the_teacher(tmp_path: Path) -> None:
    # Student and teacher start equal, where the divergence is least: both steps have no gradient.
    config = Scrub.Config(rounds=1, max_rounds=1, gamma=0.0, alpha=1.0, lr=1.0)
    [w], _, w_o = models(tmp_path, Scrub(config, LEARNING), REQUESTS["sample"])
    assert torch.allclose(w.flat, w_o.flat, atol=1e-5)


@pytest.mark.parametrize("scope", ["client", "class"])
def test_ascent_raises_the_loss_on_the_forgotten_data(tmp_path: Path, scope: str) -> None:
    request, losses = REQUESTS[scope], []
    for max_rounds in (0, 4):
        config = Scrub.Config(rounds=4, max_rounds=max_rounds, lr=0.1, lr_drops=())
        toy = Toy(tmp_path, learning=LEARNING)
        made, cohort, w_o = serve(toy, Scrub(config, LEARNING), request)
        assert (made[-1] - w_o).norm() > 1e-3
        logits, labels, *_ = toy.cohort(request, cohort.card).evaluate(made[-1], {"forget": 500})["forget"]
        losses.append(nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item())
    assert losses[1] > losses[0]


def test_what_it_costs(tmp_path: Path) -> None:
    # 4 epochs, 2 of them with a max-step of the one target; d floats up from each client asked, 2 d down.
    made, cohort, w_o = models(tmp_path, Scrub(Scrub.Config(rounds=4, max_rounds=2), LEARNING), REQUESTS["client"])
    d, asked = len(w_o.flat), 4 * 5 + 2
    assert len(made) == cohort.cost.rounds == 4
    assert (cohort.cost.bytes_up, cohort.cost.bytes_down) == (4 * d * asked, 8 * d * asked)


def test_what_it_assumes() -> None:
    assert Scrub.scopes == {"client", "sample", "class"}
    assert Scrub().card == Card(target_online=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "strategy.scrub.rounds is 0, but must be at least 1"),
        ({"rounds": 2, "max_rounds": 3}, r"strategy.scrub.max_rounds is 3, but must be at most rounds, 2"),
        ({"gamma": -0.1}, "strategy.scrub.gamma is -0.1, but must be at least 0"),
        ({"alpha": float("nan")}, "strategy.scrub.alpha is nan, but must be a finite number"),
        ({"temperature": 0.0}, "strategy.scrub.temperature is 0.0, but must be above 0"),
        ({"lr": -1.0}, "strategy.scrub.lr is -1.0, but must be above 0"),
        ({"lr_drops": (3, 0)}, r"strategy.scrub.lr_drops\[1\] is 0, but must be at least 1"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scrub.Config(**fields)
