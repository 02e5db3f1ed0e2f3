"""What a holder's folder gives is what the simulation gives that client: images, labels, splits, in the same order."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from fedforget.data import DataConfig, FederatedData, divide
from fedforget.data.holder import FACTS
from fedforget.data.partition import PartitionConfig
from fedforget.data.sources import TaskConfig
from fedforget.request import UnlearningRequest
from fedforget.seeds import Seeds


def encoded(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def pooled(tmp_path) -> DataConfig:
    """60 colour images of 3 classes at 3 clients, and 9 test images."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("test", 9)):
        table = pa.table({"image": [encoded(rng) for _ in range(count)], "label": rng.integers(0, 3, count)})
        (tmp_path / "pool").mkdir(exist_ok=True)
        parquet.write_table(table, tmp_path / "pool" / f"{name}.parquet")
    return DataConfig(TaskConfig("folder", str(tmp_path / "pool")), PartitionConfig(clients=3), seed=7)


def holder_of(config: DataConfig, folder: Path) -> FederatedData:
    return FederatedData(
        DataConfig(TaskConfig("holder", str(folder)), config.partition, config.corruption, config.seed)
    )


def test_every_holder_has_its_part_of_the_simulation_to_the_bit(pooled, tmp_path):
    whole = FederatedData(pooled)
    folders = divide(pooled, tmp_path / "holders")
    assert [folder.name for folder in folders] == ["client-0", "client-1", "client-2"]
    request, seeds = UnlearningRequest("sample", ((1, 0), (1, 3))), Seeds(1)
    fingerprints = set()
    for client, folder in enumerate(folders):
        own = holder_of(pooled, folder)
        fingerprints.add(own.fingerprint)
        assert list(own.held) == [client] and own.num_clients == 3 and own.num_classes == whole.num_classes
        assert own.num_train(client) == whole.num_train(client)
        assert own.class_counts(client) == whole.class_counts(client)
        assert torch.equal(own.test_inputs, whole.test_inputs) and torch.equal(own.test_labels, whole.test_labels)
        for name in ("train", "holdout", "retain", "forget"):
            mine = own.split(client, name, seeds, request=request)
            theirs = whole.split(client, name, seeds, request=request)
            assert torch.equal(own.inputs[mine], whole.inputs[theirs])
            assert torch.equal(own.labels[mine], whole.labels[theirs])
        assert len(own.split(client, "forget", seeds, request=request)) == (2 if client == 1 else 0)
        with pytest.raises(ValueError, match=f"this is the data of client {client} alone"):
            own.split((client + 1) % 3, "train", seeds)
    assert len(fingerprints) == 1  # else the server would refuse them


def test_the_fingerprint_covers_the_data_of_all_holders(pooled, tmp_path):
    """Another digest of client 2 is other data at client 2, which client 0 must know too."""
    first = divide(pooled, tmp_path / "holders")[0]
    before = holder_of(pooled, first).fingerprint
    facts = json.loads((first / FACTS).read_text())
    facts["digests"][2] = "0" * 64
    (first / FACTS).write_text(json.dumps(facts))
    assert holder_of(pooled, first).fingerprint != before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"classes": 2}, "label 2, but federation.json says that there are 2 classes"),
        ({"client": 3}, "is inconsistent: client=3, 3 digests"),
        ({"client": 2}, "agree on it anew"),
        ({"std": [1.0, 1.0, 0.0]}, "is inconsistent"),
        ({"mean": [0.0], "std": [1.0]}, "images of 3 channels, but federation.json has 1"),
        ({"mean": "grey"}, "lacks a field or has one of the wrong type"),
        ({"owner": "me"}, "is inconsistent"),
    ],
)
def test_facts_that_do_not_fit_are_refused(pooled, tmp_path, change, complaint):
    first = divide(pooled, tmp_path / "holders")[0]
    facts = json.loads((first / FACTS).read_text())
    (first / FACTS).write_text(json.dumps(facts | change))
    with pytest.raises(ValueError, match=complaint):
        holder_of(pooled, first)


def test_a_holder_without_the_test_set_is_refused(pooled, tmp_path):
    first = divide(pooled, tmp_path / "holders")[0]
    (first / "test.parquet").unlink()
    with pytest.raises(ValueError, match="every holder needs the global test set"):
        holder_of(pooled, first)
