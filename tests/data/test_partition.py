from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from flwr_datasets.partitioner import IidPartitioner

from fedforget.data.partition import PartitionConfig, partition, split_holdout
from fedforget.schema.data import PARTITIONS
from fedforget.seeds import Seeds

LABELS = np.random.default_rng(0).integers(0, 10, 600)
IDS = np.array([f"writer {n}" for n in np.random.default_rng(1).integers(0, 7, 600)])


def divide(seed: int = 0, **fields: object) -> list[np.ndarray]:
    if fields["kind"] == "natural":
        fields["clients"] = 0
    return partition(LABELS, IDS, PartitionConfig(**fields), Seeds(seed))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", PARTITIONS)
def test_every_kind(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    parts = divide(kind=kind)
    assert capfd.readouterr() == ("", "")  # no partitioner's progress bar in the middle of a run's own lines
    assert len(parts) == (7 if kind == "natural" else 10)
    for part in parts:
        assert part.dtype == np.int64 and len(part) and (np.diff(part) > 0).all()
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(600))  # 600 divides into 20 shards


@pytest.mark.parametrize("kind", PARTITIONS)
def test_the_seed_alone_decides(kind: str) -> None:
    states = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()  # type: ignore[index]
    first, again, other = divide(kind=kind), divide(kind=kind), divide(kind=kind, seed=1)
    assert all(map(np.array_equal, first, again))
    assert all(map(np.array_equal, first, other)) == (kind == "natural")
    assert np.array_equal(states[0], np.random.get_state()[1])  # type: ignore[index]
    assert states[1] == random.getstate() and torch.equal(states[2], torch.get_rng_state())


def test_iid_sizes_are_even() -> None:
    assert {len(part) for part in divide(kind="iid", clients=7)} == {85, 86}


@pytest.mark.parametrize("clients", [1, 7, 599, 600])
def test_iid_is_what_the_partitioner_of_flwr_datasets_gives(clients: int) -> None:
    known = IidPartitioner(clients)
    known.dataset = Dataset.from_dict({"position": Seeds(3).numpy("order").permutation(600)})
    theirs = [sorted(known.load_partition(client)["position"]) for client in range(clients)]
    assert [part.tolist() for part in divide(3, kind="iid", clients=clients)] == theirs


def test_dirichlet_follows_alpha() -> None:
    def skew(alpha: float) -> float:
        parts = divide(kind="dirichlet", alpha=alpha, clients=5)
        return np.mean([np.bincount(LABELS[part], minlength=10).max() / len(part) for part in parts]).item()

    assert skew(0.2) > skew(100.0) + 0.1
    assert min(map(len, divide(kind="dirichlet", min_examples=30))) >= 30


def test_pathological_classes() -> None:
    parts = divide(kind="pathological", classes_per_client=3)
    assert all(len(np.unique(LABELS[part])) == 3 for part in parts)


def test_shards_are_runs_of_one_class_or_two() -> None:
    parts = divide(kind="shards", shards_per_client=2)
    assert all(len(part) == 60 and len(np.unique(LABELS[part])) <= 4 for part in parts)


@pytest.mark.parametrize("growth", ["linear", "square", "exponential"])
def test_sizes_grow(growth: str) -> None:
    sizes = [len(part) for part in divide(kind="sizes", clients=4, growth=growth)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_natural_clients_are_the_sorted_ids() -> None:
    for client, part in enumerate(divide(kind="natural")):
        assert set(IDS[part]) == {f"writer {client}"}


def test_natural_needs_ids_and_their_number() -> None:
    with pytest.raises(ValueError, match="needs task.id_column"):
        partition(LABELS, None, PartitionConfig(kind="natural", clients=0), Seeds(0))
    with pytest.raises(ValueError, match="partition.clients=10 but the task has 7 natural ids; use 0"):
        partition(LABELS, IDS, PartitionConfig(kind="natural"), Seeds(0))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "dirichlett"}, "partition.kind=dirichlett is unknown; did you mean 'dirichlet'?"),
        ({"kind": "sizes", "growth": "cubic"}, "partition.growth=cubic is unknown"),
        ({"kind": "iid", "clients": 0}, "partition.clients=0 must be at least 1"),
        ({"kind": "iid", "holdout": 1.0}, "partition.holdout=1.0 must be at least 0 and below 1"),
        ({"kind": "dirichlet", "alpha": 0.0}, "partition.alpha=0.0 must be above 0"),
        ({"kind": "iid", "clients": 5000}, "partition.clients=5000 but the task has only 600 training examples"),
        ({"kind": "shards", "clients": 301}, "partition.shards_per_client=2 makes 602 shards, but .* only 600"),
        ({"kind": "dirichlet", "min_examples": 61}, "fewer than partition.min_examples=61 examples in every draw"),
        ({"kind": "pathological", "classes_per_client": 11}, "partition.kind=pathological cannot divide the task"),
        ({"kind": "sizes", "growth": "exponential", "clients": 40}, "partition.kind=sizes cannot divide the task"),
        ({"kind": "sizes", "growth": "exponential", "clients": 600}, "partition.kind=sizes cannot divide the task"),
    ],
)
def test_impossible(fields: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        divide(**fields)


@pytest.mark.parametrize(("total", "share", "held"), [(10, 0.2, 2), (10, 0.0, 0), (1, 0.9, 0), (3, 0.99, 2)])
def test_holdout_size(total: int, share: float, held: int) -> None:
    positions = np.arange(total) * 3
    train, holdout = split_holdout(positions, share, np.random.default_rng(0))
    assert len(holdout) == held
    assert (np.diff(train) > 0).all() and (np.diff(holdout) > 0).all()
    assert np.array_equal(np.sort(np.concatenate([train, holdout])), positions)
