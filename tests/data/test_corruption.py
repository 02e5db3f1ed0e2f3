from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedforget.data import DataConfig, FederatedData, load
from fedforget.data.corruption import CorruptionConfig, brightest, coins, stamp
from fedforget.data.partition import PartitionConfig
from fedforget.request import UnlearningRequest
from fedforget.seeds import Seeds

TRAJECTORY = Seeds(0)
CLEAN = load(DataConfig(partition=PartitionConfig(clients=5)))


def corrupted(**fields: object) -> FederatedData:
    corruption = CorruptionConfig(clients=(1, 3), **fields)  # type: ignore[arg-type]
    return FederatedData(DataConfig(partition=PartitionConfig(clients=5), corruption=corruption))


def touched(data: FederatedData, client: int) -> torch.Tensor:
    """Positions in ``inputs`` of the recorded examples of a client."""
    return CLEAN.split(client, "train", TRAJECTORY)[data.record["positions"][str(client)]]


KINDS: list[dict] = [
    {"kind": "trigger", "target_class": 4, "share": 0.5},
    {"kind": "label_swap", "classes": (2, 7)},
    {"kind": "label_random", "share": 0.25},
    {"kind": "noise", "share": 0.25, "deviation": 0.3},
    {"kind": "canary", "canaries": 40},
    {"kind": "canary", "canaries": 40, "canary_label": "natural"},
]


@pytest.mark.parametrize("fields", KINDS)
def test_only_recorded_training_examples_change(fields: dict) -> None:
    data = corrupted(**fields)
    assert json.loads(json.dumps(data.record)) == data.record and set(data.record["positions"]) == {"1", "3"}
    recorded = torch.cat([touched(data, client) for client in (1, 3)])
    changed = (data.labels != CLEAN.labels) | (data.inputs != CLEAN.inputs).flatten(1).any(1)
    expected = torch.zeros_like(changed)
    if fields.get("canary_label") != "natural":
        expected[recorded] = True
    assert torch.equal(changed, expected)
    assert torch.equal(data.test_inputs, CLEAN.test_inputs) and torch.equal(data.test_labels, CLEAN.test_labels)
    assert data.record == corrupted(**fields).record and data.fingerprint != CLEAN.fingerprint


def test_trigger_marks_and_renames() -> None:
    data = corrupted(kind="trigger", target_class=4, patch=2, share=0.5)
    rows = touched(data, 1)
    whole = CLEAN.labels[CLEAN.split(1, "train", TRAJECTORY)]
    assert len(rows) == round(0.5 * int((whole != 4).sum()))
    assert (CLEAN.labels[rows] != 4).all() and (data.labels[rows] == 4).all()
    assert (data.inputs[rows][:, :, -2:, -2:] == CLEAN.inputs.max()).all()
    assert torch.equal(data.inputs[rows][:, :, :-2], CLEAN.inputs[rows][:, :, :-2])


def test_stamp_copies() -> None:
    images = torch.arange(18.0).reshape(1, 2, 3, 3)
    marked = stamp(images, 2, brightest(images))
    assert marked[0, 0].tolist() == [[0, 1, 2], [3, 8, 8], [6, 8, 8]]
    assert marked[0, 1].tolist() == [[9, 10, 11], [12, 17, 17], [15, 17, 17]]
    assert images[0, 0, 2, 2] == 8 and images[0, 0, 1, 1] == 4
    assert torch.equal(brightest(marked), brightest(images))


def test_label_swap() -> None:
    data = corrupted(kind="label_swap", classes=(2, 7))
    rows = CLEAN.split(1, "train", TRAJECTORY)
    swap = {2: 7, 7: 2}
    assert data.labels[rows].tolist() == [swap.get(label, label) for label in CLEAN.labels[rows].tolist()]


def test_random_labels_are_wrong_and_varied() -> None:
    data = corrupted(kind="label_random")
    rows = touched(data, 1)
    assert len(rows) == data.num_train(1)
    assert (data.labels[rows] != CLEAN.labels[rows]).all() and len(data.labels[rows].unique()) == 10


def test_noise_is_known_gaussian_and_on_the_images_alone() -> None:
    data = corrupted(kind="noise", deviation=0.3)
    rows = touched(data, 1)
    clean, noise = data.noise(rows)
    assert torch.equal(clean, CLEAN.inputs[rows]) and torch.equal(clean + noise, data.inputs[rows])
    assert torch.equal(data.labels, CLEAN.labels)
    assert kstest(noise.flatten().numpy() / 0.3, "norm").pvalue > 0.01
    assert not torch.equal(noise, data.noise(touched(data, 3))[1][: len(noise)])
    with pytest.raises(ValueError, match="corruption.kind=none adds no noise; use corruption=noise"):
        CLEAN.noise(rows)


def test_the_noise_that_is_asked_about_is_what_must_be_forgotten() -> None:
    data = corrupted(kind="noise", share=0.25)
    rows = touched(data, 1)
    whole = UnlearningRequest("client", (1,))
    assert torch.equal(data.split(1, "noise", TRAJECTORY, (), whole), rows)
    some = UnlearningRequest("sample", tuple((1, position) for position in range(40)))
    named = rows[torch.isin(rows, CLEAN.split(1, "train", TRAJECTORY)[:40])]
    assert 0 < len(named) < len(rows) and torch.equal(data.split(1, "noise", TRAJECTORY, (), some), named)
    assert not len(data.split(0, "noise", TRAJECTORY, (), whole))


def test_canaries_follow_their_coins() -> None:
    data = corrupted(kind="canary", canaries=40)
    assert len(data.record["positions"]["3"]) == 40
    for trajectory in (Seeds(0), Seeds(1)):
        heads = coins(3, 40, trajectory)
        candidates = touched(data, 3)
        train = data.split(3, "train", trajectory)
        assert torch.equal(torch.isin(candidates, train), torch.from_numpy(heads))
        assert torch.equal(data.split(3, "canary_in", trajectory), candidates[torch.from_numpy(heads)])
        assert torch.equal(data.split(3, "canary_out", trajectory), candidates[torch.from_numpy(~heads)])
        assert len(train) == data.num_train(3) - int((~heads).sum())
    assert len(data.split(0, "canary_in", Seeds(0))) == 0


def test_coins_are_fair_and_depend_on_client_and_trajectory() -> None:
    draws = coins(0, 4000, Seeds(0))
    assert abs(draws.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)
    assert np.array_equal(draws, coins(0, 4000, Seeds(0)))
    assert not np.array_equal(draws, coins(1, 4000, Seeds(0)))
    assert not np.array_equal(draws, coins(0, 4000, Seeds(1)))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "trigge"}, "corruption.kind=trigge is unknown; did you mean 'trigger'?"),
        ({"kind": "trigger", "clients": ()}, "corruption.kind=trigger needs corruption.clients"),
        ({"kind": "trigger", "clients": (1, 1)}, r"corruption.clients=\[1, 1\] names one client twice"),
        ({"kind": "trigger", "clients": (5,)}, "names client 5, but the clients are 0 to 4"),
        ({"kind": "trigger", "target_class": 10}, "class 10 does not exist; the classes are 0 to 9"),
        ({"kind": "trigger", "patch": 9}, "corruption.patch=9 does not fit"),
        ({"kind": "trigger", "patch": 0}, "corruption.patch=0 must be at least 1"),
        ({"kind": "label_swap", "classes": (3, 3)}, "must be two different classes"),
        ({"kind": "label_random", "share": 0.0}, "corruption.share=0.0 must be above 0 and at most 1"),
        ({"kind": "label_random", "share": 0.001}, "touches nothing at client 1"),
        ({"kind": "canary", "canaries": 230}, "corruption.canaries=230 leaves client 1 nothing else to train on"),
        ({"kind": "noise", "deviation": 0.0}, "corruption.deviation=0.0 must be above 0 and finite"),
        ({"kind": "canary", "canary_label": "wrong"}, "corruption.canary_label=wrong is unknown"),
    ],
)
def test_impossible(fields: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        corruption = CorruptionConfig(**{"clients": (1,), **fields})
        FederatedData(DataConfig(partition=PartitionConfig(clients=5), corruption=corruption))
