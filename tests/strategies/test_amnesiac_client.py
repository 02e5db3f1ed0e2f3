"""Sensitive steps by hand, and the strategy against the updates that a toy federation really made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fedforget.exchange import Card
from fedforget.history import History
from fedforget.params import Params
from fedforget.request import UnlearningRequest
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.testing import Toy, serve
from strategies.amnesiac import Amnesiac
from strategies.amnesiac_client import AmnesiacClient, sensitive_steps


def client(forgotten: list[bool], batch_size: int) -> Client:
    """Softmax regression W [2, 1], at zero, of two examples of class 0: x = 1 and x = 0, which has no gradient."""
    module = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(module.weight)
    inputs, labels, local = (
        torch.tensor([[1.0], [0.0]]),
        torch.zeros(2).long(),
        LocalConfig(lr=1, batch_size=batch_size),
    )
    flags = torch.tensor(forgotten)
    return Client(0, 1, module, inputs, labels, torch.arange(2), 2, local, Seeds(0), forgotten=flags)


@pytest.mark.parametrize(
    ("forgotten", "batch_size", "expected"),
    [
        # Both outputs have probability 1/2, so the gradient of x = 1 is (1/2 - 1, 1/2) and its step (1/2, -1/2).
        ([True, False], 1, [0.5, -0.5]),
        # The step of x = 0 changes nothing, whichever of the two comes first.
        ([False, True], 1, [0.0, 0.0]),
        # In one batch their mean gradient is half of that, and one forgotten example takes the whole step with it.
        ([True, False], 2, [0.25, -0.25]),
        ([False, True], 2, [0.25, -0.25]),
        ([False, False], 2, [0.0, 0.0]),
    ],
)
def test_sensitive_steps_by_hand(forgotten: list[bool], batch_size: int, expected: list[float]) -> None:
    worker = client(forgotten, batch_size)
    assert sensitive_steps(worker).flat.tolist() == expected
    assert worker.steps == 2 // batch_size and worker.examples == 2


def test_steps_are_those_of_the_recipes_loss() -> None:
    # Two steps on x = 1 with the SD loss, gamma = 1. At logits (0, 0) the deviation's slope is taken as 0, so the first
    # step is as above. At (1/2, -1/2): p = (e, 1) / (e + 1) = (0.731, 0.269), so the gradient of the cross-entropy is
    # (-0.269, 0.269); the deviation of (a, b) is |a - b| / sqrt 2, with slope (1, -1) / sqrt 2 = (0.707, -0.707). The
    # second step is -(-0.269 + 0.707) = -0.438, and the sum 0.5 - 0.438 = 0.062.
    worker = client([True, True], 2)
    worker.inputs, worker.local = torch.tensor([[1.0], [1.0]]), LocalConfig(lr=1, batch_size=2, epochs=2, sd_gamma=1.0)
    nn.init.constant_(worker.parameters[0], 0.0)
    assert sensitive_steps(worker).flat.tolist() == pytest.approx([0.0618, -0.0618], abs=1e-4)


def toy(folder: Path, batch_size: int = 32) -> Toy:
    return Toy(folder, local=LocalConfig(lr=0.3, batch_size=batch_size))


def history(one: Toy, final: Params) -> History:
    recording, _ = one.learn(AmnesiacClient(), ())
    return History(recording, one.learning.rounds, final)


def test_forgetting_all_samples_takes_back_all_updates(tmp_path: Path) -> None:
    """Every batch is then sensitive, so what the replayed steps add up to is what the client really sent."""
    one = toy(tmp_path)
    everything = tuple((2, position) for position in range(one.federation.num_train[2]))
    models, _, final = serve(one, AmnesiacClient(), UnlearningRequest("sample", everything))
    one.record = "all"
    told = history(one, final)
    expected, rounds = final, 0
    for t in range(1, told.rounds + 1):
        n = told.weights(t)
        if 2 in n:
            expected, rounds = expected - n[2] / sum(n.values()) * told.update(t, 2), rounds + 1
    assert 0 < rounds <= told.rounds == len(models)
    torch.testing.assert_close(models[-1].flat, expected.flat, rtol=0, atol=1e-6)


def test_a_client_that_leaves_takes_back_what_amnesiac_subtracts(tmp_path: Path) -> None:
    """All its batches are sensitive; the server has no updates, and the client repeats what they were."""
    one = toy(tmp_path)
    request = UnlearningRequest("client", (2,))
    models, cohort, _ = serve(one, AmnesiacClient(), request)
    (expected,), _, final = serve(one, Amnesiac(), request)
    torch.testing.assert_close(models[-1].flat, expected.flat, rtol=0, atol=1e-6)
    assert (models[-1] - final).norm() > 0.01 and cohort.contacted == {2}


def test_the_bill_is_that_of_recomputing(tmp_path: Path) -> None:
    one = toy(tmp_path)
    _, cohort, final = serve(one, AmnesiacClient(), UnlearningRequest("sample", ((2, 0),)))
    told = history(one, final)
    rounds, d = sum(2 in told.cohort(t) for t in range(1, told.rounds + 1)), 4 * final.layout.size
    examples = one.federation.num_train[2]
    cost = cohort.cost
    assert (cost.rounds, cost.bytes_up, cost.bytes_down) == (rounds, rounds * d, rounds * d)
    assert (cost.client_examples, cost.client_steps) == (rounds * examples, rounds * -(-examples // 32))
    assert cohort.contacted == {2}
    assert History(told.recording, told.rounds, final, AmnesiacClient().card).bytes_stored() == (told.rounds + 1) * d


@pytest.mark.parametrize("batch_size", [1, 32])
def test_one_sample_takes_its_batches_only(tmp_path: Path, batch_size: int) -> None:
    """The smaller the batches, the fewer steps are sensitive: with single examples, one in each round."""
    one = toy(tmp_path, batch_size)
    few, _, final = serve(one, AmnesiacClient(), UnlearningRequest("sample", ((2, 0),)))
    more, _, _ = serve(one, AmnesiacClient(), UnlearningRequest("sample", tuple((2, i) for i in range(20))))
    assert 0 < (few[-1] - final).norm() < (more[-1] - final).norm()


def test_what_it_assumes() -> None:
    assert AmnesiacClient.scopes == {"client", "sample", "class"}
    assert AmnesiacClient().card == Card(records="globals", target_online=True)
    with pytest.raises(ValueError, match="amnesiac_client.repair_rounds=-1 must not be negative"):
        AmnesiacClient.Config(repair_rounds=-1)
