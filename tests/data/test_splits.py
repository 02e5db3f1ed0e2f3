from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fedforget.data import DataConfig, FederatedData, adopt, load
from fedforget.data.corruption import CorruptionConfig
from fedforget.data.partition import PartitionConfig
from fedforget.data.sources import TaskConfig
from fedforget.request import UnlearningRequest
from fedforget.seeds import Seeds

CONFIG = DataConfig(
    partition=PartitionConfig(kind="dirichlet", clients=5, alpha=1.0, min_examples=60),
    corruption=CorruptionConfig(kind="canary", clients=(1, 2), canaries=20),
    seed=3,
)
DATA = load(CONFIG)
TRAJECTORY = Seeds(7)
CLIENT = UnlearningRequest("client", (1,))
CLASS = UnlearningRequest("class", (0, 4))
SAMPLE = UnlearningRequest("sample", ((1, 0), (1, 5), (1, 6), (2, 3)))
SCOPES = pytest.mark.parametrize("request_", [CLIENT, CLASS, SAMPLE], ids=["client", "class", "sample"])


def split(client: int, name: str, *removed: UnlearningRequest, request: UnlearningRequest | None = None) -> list[int]:
    positions = DATA.split(client, name, TRAJECTORY, removed, request)
    assert positions.dtype == torch.int64
    assert positions.tolist() == sorted(set(positions.tolist()))  # ascending, so that runs pair example by example
    return positions.tolist()


@SCOPES
@pytest.mark.parametrize("removed", [(), (CLIENT,), (CLASS,), (SAMPLE, CLASS)])
def test_retain_and_forget_partition_train(request_: UnlearningRequest, removed: tuple) -> None:
    for client in range(5):
        retain = split(client, "retain", *removed, request=request_)
        forget = split(client, "forget", *removed, request=request_)
        train = split(client, "train", *removed)
        assert sorted(retain + forget) == train and not set(retain) & set(forget)
        assert retain == split(client, "train", *removed, request_)


def test_every_example_has_one_place() -> None:
    everything = []
    for client in range(5):
        parts = [split(client, name) for name in ("train", "holdout", "canary_out")]
        assert set(split(client, "canary_in")) <= set(parts[0])
        assert len(parts[0]) + len(parts[2]) == DATA.num_train(client)
        everything += list(itertools.chain(*parts))
    assert sorted(everything) == list(range(len(DATA.labels)))


def test_holdout_and_canaries_ignore_requests() -> None:
    for name in ("holdout", "canary_in", "canary_out"):
        assert split(1, name) == split(1, name, CLIENT, CLASS) == split(1, name, request=SAMPLE)


def test_removal_does_not_depend_on_the_order() -> None:
    for client in range(5):
        orders = itertools.permutations([CLIENT, CLASS, SAMPLE])
        assert len({tuple(split(client, "train", *order)) for order in orders}) == 1


def test_what_each_scope_forgets() -> None:
    assert split(1, "forget", request=CLIENT) == split(1, "train") and split(0, "forget", request=CLIENT) == []
    for client in range(5):
        forget = split(client, "forget", request=CLASS)
        assert set(DATA.labels[forget].tolist()) <= {0, 4}
        assert not set(DATA.labels[split(client, "retain", request=CLASS)].tolist()) & {0, 4}
    assert split(3, "forget", request=SAMPLE) == []


def test_class_requests_read_corrupted_labels() -> None:
    swapped = FederatedData(
        DataConfig(corruption=CorruptionConfig(kind="label_swap", clients=(0,), classes=(0, 1)), seed=3)
    )
    clean = FederatedData(DataConfig(seed=3))
    zeros, ones = (UnlearningRequest("class", (label,)) for label in (0, 1))
    assert torch.equal(
        swapped.split(0, "forget", TRAJECTORY, (), zeros), clean.split(0, "forget", TRAJECTORY, (), ones)
    )


def test_positions_count_the_split_before_coins_and_removals() -> None:
    everyone = sorted(split(1, "train") + split(1, "canary_out"))
    expected = [everyone[place] for place in (0, 5, 6)]
    in_train = [row for row in expected if row in split(1, "train")]
    assert split(1, "forget", request=SAMPLE) == in_train
    other = UnlearningRequest("sample", ((1, 1), (1, 2)))
    assert split(1, "forget", other, request=SAMPLE) == in_train


def test_other_clients_keep_their_data_when_the_trajectory_changes() -> None:
    for client in (0, 3, 4):
        assert torch.equal(DATA.split(client, "train", Seeds(1)), DATA.split(client, "train", Seeds(2)))


def test_class_counts() -> None:
    counts = [DATA.class_counts(client) for client in range(5)]
    assert [sum(count) for count in counts] == [DATA.num_train(client) for client in range(5)]
    assert counts[0] == torch.bincount(DATA.labels[split(0, "train")], minlength=10).tolist()


def test_bad_splits() -> None:
    with pytest.raises(ValueError, match="split=hold-out is unknown; did you mean 'holdout'?"):
        split(0, "hold-out")
    with pytest.raises(ValueError, match="client 5 does not exist; the clients are 0 to 4"):
        split(5, "train")
    with pytest.raises(ValueError, match="split 'forget' needs a request"):
        split(0, "forget")
    with pytest.raises(ValueError, match="names position 9999 of client 0, whose training split has only"):
        split(0, "train", UnlearningRequest("sample", ((0, 2), (0, 9999))))


@SCOPES
def test_good_requests(request_: UnlearningRequest) -> None:
    DATA.check(request_)


@pytest.mark.parametrize(
    ("scope", "targets", "sentence"),
    [
        ("client", (1, 5), "names client 5, but there are only 5: 0 to 4"),
        ("class", (10,), "names class 10, but there are only 10: 0 to 9"),
        ("sample", ((5, 0),), "names client 5, but there are only 5: 0 to 4"),
        ("sample", ((0, 9999),), "names position 9999 of client 0"),
        ("client", (), "nothing to forget"),
        ("client", range(5), "nothing to retain"),
        ("class", range(10), "nothing to retain"),
    ],
)
def test_bad_requests(scope: str, targets: tuple, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DATA.check(UnlearningRequest(scope, tuple(targets)))


def test_configuration_survives_json() -> None:
    again = DataConfig.from_json(CONFIG.to_json())
    assert again == CONFIG and hash(again) == hash(CONFIG) and again.to_json() == CONFIG.to_json()
    assert load(again) is load(CONFIG)


@pytest.mark.parametrize("kind", ["none", "canary", "noise"])
def test_another_process_adopts_the_data_without_loading_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arrays arrive as shared memory does: out of band, and read-only."""
    config = replace(CONFIG, seed=11, corruption=replace(CONFIG.corruption, kind=kind))
    made, buffers = FederatedData(config), []
    body = pickle.dumps(made, protocol=5, buffer_callback=buffers.append)
    assert len(body) < made.inputs.numel(), "the images travel in band"
    monkeypatch.setattr("fedforget.data.load_source", None)
    adopt(config, pickle.loads(body, buffers=[bytes(buffer) for buffer in buffers]))
    held = load(config)
    assert held.fingerprint == made.fingerprint == held._digest(SimpleNamespace(holding=None))
    for client, name in itertools.product(range(5), ("train", "holdout", "canary_in")):
        assert torch.equal(held.split(client, name, TRAJECTORY), made.split(client, name, TRAJECTORY))
    assert held.record == made.record and held.class_counts(1) == made.class_counts(1)
    assert kind != "noise" or all(map(torch.equal, held.noise(torch.arange(9)), made.noise(torch.arange(9))))


def test_the_fingerprint_tells_data_apart() -> None:
    small = TaskConfig(max_train=100, max_test=20)
    prints = [FederatedData(DataConfig(task=small, seed=seed)).fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    assert FederatedData(DataConfig(small, PartitionConfig(clients=9))).fingerprint != prints[0]
