"""Sensitive steps by hand, and the strategy against the updates that a toy federation really made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fedforget.exchange import Card
from fedforget.history import History
from fedforget.request import UnlearningRequest
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.store import Shelf
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.amnesiac import Amnesiac
from strategies.amnesiac_client import AmnesiacClient, sensitive_steps, sum_kept, train_and_keep


def client(planned: list[int], batch_size: int) -> Client:
    """Softmax regression W [2, 1], at zero, of two examples of class 0: x = 1 and x = 0, which has no gradient."""
    module = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(module.weight)
    inputs, labels, local = (
        torch.tensor([[1.0], [0.0]]),
        torch.zeros(2).long(),
        LocalConfig(lr=1, batch_size=batch_size),
    )
    numbers = torch.tensor(planned)
    return Client(0, 1, module, inputs, labels, torch.arange(2), 2, local, Seeds(0), planned=numbers)


@pytest.mark.parametrize(
    ("planned", "batch_size", "expected"),
    [
        # Both outputs have probability 1/2, so the gradient of x = 1 is (1/2 - 1, 1/2) and its step (1/2, -1/2).
        ([0, -1], 1, {0: [0.5, -0.5]}),
        # The step of x = 0 changes nothing, whichever of the two comes first.
        ([-1, 0], 1, {0: [0.0, 0.0]}),
        # In one batch their mean gradient is half of that, and one forgotten example takes the whole step with it.
        ([0, -1], 2, {0: [0.25, -0.25]}),
        ([-1, 0], 2, {0: [0.25, -0.25]}),
        ([-1, -1], 2, {}),
        # Two requests: each has its own example's step, but in one batch the earlier one has it all.
        ([1, 0], 1, {0: [0.0, 0.0], 1: [0.5, -0.5]}),
        ([1, 0], 2, {0: [0.25, -0.25], 1: [0.0, 0.0]}),
    ],
)
def test_sensitive_steps_by_hand(planned: list[int], batch_size: int, expected: dict[int, list[float]]) -> None:
    worker = client(planned, batch_size)
    assert {number: total.flat.tolist() for number, total in sensitive_steps(worker).items()} == expected
    assert worker.steps == 2 // batch_size and worker.examples == 2


def test_steps_are_those_of_the_recipes_loss() -> None:
    # Two steps on x = 1 with the SD loss, gamma = 1. At logits (0, 0) the deviation's slope is taken as 0, so the first
    # step is as above. At (1/2, -1/2): p = (e, 1) / (e + 1) = (0.731, 0.269), so the gradient of the cross-entropy is
    # (-0.269, 0.269); the deviation of (a, b) is |a - b| / sqrt 2, with slope (1, -1) / sqrt 2 = (0.707, -0.707). The
    # second step is -(-0.269 + 0.707) = -0.438, and the sum 0.5 - 0.438 = 0.062.
    worker = client([0, 0], 2)
    worker.inputs, worker.local = torch.tensor([[1.0], [1.0]]), LocalConfig(lr=1, batch_size=2, epochs=2, sd_gamma=1.0)
    nn.init.constant_(worker.parameters[0], 0.0)
    assert sensitive_steps(worker)[0].flat.tolist() == pytest.approx([0.0618, -0.0618], abs=1e-4)


def test_what_is_kept_is_summed_by_shares(tmp_path: Path) -> None:
    """Rounds 1 and 3, the same step (1/2, -1/2) in each, with shares 1/10 and 1/4: 0.5 (0.1 + 0.25) = 0.175."""
    shelf = Shelf(tmp_path / "client-0")
    for t in (1, 3):
        train_and_keep(replace(client([0, -1], 1), round=t, shelf=shelf))
    asked = replace(client([0, -1], 1), shelf=shelf, options={"number": 0, "rounds": (1, 3), "shares": (0.1, 0.25)})
    assert sum_kept(asked).flat.tolist() == pytest.approx([0.175, -0.175])
    with pytest.raises(ValueError, match="0-2.safetensors is not there; delete the folder of its trajectory"):
        sum_kept(replace(asked, options={"number": 0, "rounds": (2,), "shares": (0.1,)}))
    (kept,) = (tmp_path / "client-0").glob("0-1.*")
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="0-1.safetensors is damaged"):
        sum_kept(asked)


def toy(folder: Path, batch_size: int = 32) -> Toy:
    return Toy(folder, local=LocalConfig(lr=0.3, batch_size=batch_size))


def told(one: Toy, request: UnlearningRequest) -> History:
    """The same trajectory with every update on record."""
    one.record = "all"
    recording, final = one.learn(AmnesiacClient(None, one.learning), (), request)
    return History(recording, one.learning.rounds, final)


def test_forgetting_all_samples_takes_back_all_updates(tmp_path: Path) -> None:
    """Every batch is then sensitive: what a client kept adds up to what it really sent, in the rounds it took part."""
    one = toy(tmp_path)
    asked = {c: sum(c in one.cohort().sample(t) for t in range(1, 5)) for c in one.federation.clients}
    target = next(c for c, rounds in asked.items() if 1 < rounds < 4)
    everything = tuple((target, position) for position in range(one.federation.num_train[target]))
    request = UnlearningRequest("sample", everything)
    models, cohort, final = serve(one, AmnesiacClient(None, one.learning), request)
    history, expected = told(one, request), final
    for t in range(1, 5):
        n = history.weights(t)
        if target in n:
            update = one.cohort().train(history.model(t - 1), [target], split="train", round=t).by_client()[target]
            expected = expected - n[target] / sum(n.values()) * update
    assert (cohort.cost.rounds, cohort.cost.client_steps, cohort.contacted) == (1, 0, {target})
    torch.testing.assert_close(models[-1].flat, expected.flat, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scope", ["client", "class"])
def test_it_learns_what_the_shared_trajectory_is(tmp_path: Path, scope: str) -> None:
    """Up to the rounding of stacks; and a client that leaves takes back what `amnesiac` subtracts."""
    one = toy(tmp_path)
    models, cohort, final = serve(one, AmnesiacClient(None, one.learning), REQUESTS[scope])
    one.folder = tmp_path / "shared"
    shared, _, same = serve(one, Amnesiac(None, one.learning), REQUESTS["client"])
    torch.testing.assert_close(final.flat, same.flat, rtol=0, atol=1e-6)
    assert (models[-1] - final).norm() > 0.01
    if scope == "client":
        torch.testing.assert_close(models[-1].flat, shared[-1].flat, rtol=0, atol=2e-6)
    else:  # all hold some of the class, and each is asked once; parts of one round
        assert cohort.contacted == {0, 1, 2, 3, 4, 5} and cohort.cost.rounds == 1


@pytest.mark.parametrize("batch_size", [1, 32])
def test_one_sample_takes_its_batches_only(tmp_path: Path, batch_size: int) -> None:
    """The smaller the batches, the fewer steps are sensitive: with single examples, one in each round."""
    one, moved = toy(tmp_path, batch_size), []
    for number, samples in enumerate([((2, 0),), tuple((2, i) for i in range(20))]):
        one.folder = tmp_path / str(number)
        models, _, final = serve(one, AmnesiacClient(None, one.learning), UnlearningRequest("sample", samples))
        moved.append(float((models[-1] - final).norm()))
    assert 0 < moved[0] < moved[1]


def test_repair_is_ordinary_rounds_on_what_stays(tmp_path: Path) -> None:
    one, request = toy(tmp_path), REQUESTS["client"]
    strategy = AmnesiacClient(AmnesiacClient.Config(repair_rounds=2), one.learning)
    models, cohort, _ = serve(one, strategy, request)
    ordinary = Amnesiac(None, one.learning).learn(one.cohort(request), models[0], 2, first_round=5)
    assert all(made.equals(expected) for made, expected in zip(models[1:], ordinary, strict=True))
    assert len(models) == cohort.cost.rounds == 3


def test_what_it_assumes(tmp_path: Path) -> None:
    assert AmnesiacClient.scopes == {"client", "sample", "class"}
    assert AmnesiacClient().card == Card(target_online=True, retained_online=False, client_records=True)
    with pytest.raises(ValueError, match="strategy.amnesiac_client.repair_rounds is -1, but must be at least 0"):
        AmnesiacClient.Config(repair_rounds=-1)
    with pytest.raises(ValueError, match="amnesiac_client learns by fedavg; learning.learner is 'fedadam'"):
        AmnesiacClient(None, LearningConfig(learner="fedadam")).check(toy(tmp_path).cohort())
