"""bfloat16 and TF32: where they are used, where they are not, and what they cost in accuracy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Message

from fedforget import messages
from fedforget.client import workbench
from fedforget.client_app import app
from fedforget.cohort import Cohort, describe
from fedforget.config import compose
from fedforget.data import DataConfig
from fedforget.data.partition import PartitionConfig
from fedforget.experiment import Experiment
from fedforget.grid import InProcessGrid
from fedforget.messages import Task
from fedforget.models import ModelConfig, initial, names
from fedforget.params import Params
from fedforget.routines import LocalConfig
from fedforget.run import addresses
from fedforget.seeds import Seeds
from strategies.random_label import train_on_wrong_labels

DATA = DataConfig(partition=PartitionConfig(kind="iid", clients=4))
LOCAL = LocalConfig(batch_size=64, lr=0.05)


def cohort(
    precision: str, model: str = "cnn", mode: str = "auto", nodes: int = 1, seed: int = 3, local: LocalConfig = LOCAL
) -> tuple[Cohort, Params]:
    task = Task(DATA, ModelConfig(model, 0.2), local, "cpu", mode, precision)
    grid = InProcessGrid(app, nodes)
    start = Params.from_module(initial(task.model, (1, 8, 8), 10, seed))
    return Cohort(grid, describe(grid, task), task, start.layout, Seeds(seed)), start


@pytest.mark.parametrize(
    ("mode", "model"),
    [(mode, name) for name in names() for mode in ("sequential", "vmap")] + [("stacked", "lenet5"), ("stacked", "cnn")],
)
def test_training_in_bfloat16_is_near_that_in_float32(mode: str, model: str) -> None:
    # One step from a common point is the gradient. A bfloat16 has 8 significant bits, so that one product is off by
    # 2^-9 at most, and a gradient, which is made of some dozens in a row, by some per cent.
    local = replace(LOCAL, steps=1)
    (half, start), (full, _) = (cohort(precision, model, mode, local=local) for precision in ("bfloat16", "float32"))
    for a, b in zip(half.train(start), full.train(start), strict=True):
        assert a.update.flat.dtype == torch.float32
        difference = (a.update - b.update).norm() / b.update.norm()
        assert 1e-5 < difference < 0.1
        assert a.loss == pytest.approx(b.loss, rel=0.02)


def test_stacks_of_linear_layers_multiply_in_bfloat16_too() -> None:
    (half, start), (full, _), (alone, _) = (
        cohort("bfloat16", "mlp", "stacked"),
        cohort("float32", "mlp", "stacked"),
        cohort("bfloat16", "mlp", "sequential"),
    )
    for a, b, c in zip(half.train(start), full.train(start), alone.train(start), strict=True):
        assert 1e-5 < (a.update - b.update).norm() / b.update.norm() < 0.05
        assert (a.update - c.update).norm() < 0.05 * c.update.norm()


def test_weights_stay_in_float32() -> None:
    # A step of 1e-6 is lost on a weight of bfloat16 (next to 0.01 the nearest ones are 6e-5 away), but not on a master.
    made, start = cohort("bfloat16", local=replace(LOCAL, lr=1e-6, steps=1))
    update = made.train(start)[0].update
    assert 0 < update.norm() < 1e-5
    assert not torch.equal(update.flat, update.flat.bfloat16().float())


@pytest.mark.parametrize("mode", ["sequential", "vmap"])
def test_numbers_repeat_and_do_not_depend_on_nodes(mode: str) -> None:
    first, *others = (made.train(start) for made, start in (cohort("bfloat16", mode=mode, nodes=n) for n in (1, 1, 4)))
    for other in others:
        assert all(a.update.equals(b.update) for a, b in zip(first, other, strict=True))


def test_accuracy_is_within_half_a_point_of_float32() -> None:
    # 360 test images a seed: of 3 seeds, half a point is 5 images.
    correct = {}
    for precision in ("float32", "bfloat16"):
        correct[precision] = 0
        for seed in range(3):
            made, model = cohort(precision, seed=seed, local=LocalConfig(batch_size=16, lr=0.1))
            for _ in range(8):
                model = model + made.reduce(model)
            answers = made.evaluate(model, {"test": 1000})["test"]
            correct[precision] += int((answers.logits.argmax(1) == answers.labels).sum())
    assert correct["float32"] > 0.85 * 3 * 360
    assert abs(correct["float32"] - correct["bfloat16"]) <= 0.005 * 3 * 360


def test_everything_but_the_shared_training_is_in_float32() -> None:
    (half, start), (full, _) = (cohort(precision) for precision in ("bfloat16", "float32"))
    a, b = (each.evaluate(start, {"test": 1000})["test"] for each in (half, full))
    assert (a.logits == b.logits).all() and a.logits.dtype == "float32"
    assert half.gradient(start).equals(full.gradient(start))
    assert half.hvp(start, start).equals(full.hvp(start, start))
    # A strategy's routine that calls the shared training is its own.
    replies = [each.train(start, routine=train_on_wrong_labels) for each in (half, full)]
    assert all(x.update.equals(y.update) for x, y in zip(*replies, strict=True))


def test_float64_is_left_alone() -> None:
    for mode in ("sequential", "vmap"):
        one, other = (
            made.train(start.double()) for made, start in (cohort(p, mode=mode) for p in ("bfloat16", "float32"))
        )
        assert all(a.update.equals(b.update) for a, b in zip(one, other, strict=True))


def test_tf32_is_used_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switches, which are for CUDA alone; a CPU refuses TF32, so it is let through here."""
    monkeypatch.setattr(workbench, "device_of", lambda *_: torch.device("cpu"))
    made, start = cohort("tf32")
    seen = []

    class Watched(InProcessGrid):
        def _answer(self, message: Message, reply: Message) -> None:
            switches = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
            seen.append((message.metadata.message_type, *switches, torch.backends.cudnn.deterministic))
            super()._answer(message, reply)

    made.grid = Watched(app)
    made.train(start)
    made.gradient(start)
    made.train(start)
    made.evaluate(start, {"test": 10})
    train, evaluate = messages.TRAIN, messages.EVALUATE
    tf32, exact = ("tf32", "tf32", True), ("ieee", "ieee", True)
    assert seen == [(train, *tf32), (train, *exact), (train, *tf32), (evaluate, *exact)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_what_a_machine_without_a_card_cannot_do_is_refused_in_a_sentence() -> None:
    task = Task(DATA, ModelConfig("linear"), LOCAL)
    for refused, words in (
        (replace(task, precision="tf32"), "engine.precision=tf32 needs a CUDA device, not cpu; use engine.precision="),
        (replace(task, device="cuda"), "engine.device=cuda, but this process sees no CUDA device; use engine.device="),
    ):
        with pytest.raises(ValueError, match=words):
            describe(InProcessGrid(app), refused)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_precisions_on_cuda(precision: str) -> None:
    replies = []
    for device, asked in (("cuda", precision), ("cuda", precision), ("cpu", "float32")):
        task = Task(DATA, ModelConfig("cnn", 0.2), replace(LOCAL, steps=1), device, "auto", asked)
        grid = InProcessGrid(app)
        start = Params.from_module(initial(task.model, (1, 8, 8), 10, 7))
        replies.append(Cohort(grid, describe(grid, task), task, start.layout, Seeds(3)).train(start))
    bound = {"float32": 1e-5, "tf32": 0.02, "bfloat16": 0.1}[precision]
    for one, again, other in zip(*replies, strict=True):
        assert one.update.equals(again.update)
        assert (one.update - other.update).norm() <= bound * other.update.norm()


def test_the_address_of_a_trajectory_says_how_it_was_computed(tmp_path: Path) -> None:
    def address(overrides: str) -> str:
        config = compose("quickstart", f"model=mlp partition.clients=4 engine.device=cpu {overrides}")
        experiment = Experiment(config, InProcessGrid(app), tmp_path)
        experiment.prepare()
        return addresses.trajectory(experiment.setting, 0)

    others = ("engine.mode=sequential", "engine.mode=vmap", "engine.precision=bfloat16")
    assert address("") == address("engine.mode=stacked")  # which is what auto means for this network
    assert len({address(overrides) for overrides in ("", *others)}) == 4
