"""What requests may name: natural owners, rows of the source, records. And what is said of the data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedforget.data import DataConfig, FederatedData, PartitionConfig, TaskConfig, check_task
from fedforget.data.facts import MOST_LENGTH, DataFacts, count_duplicates


def images(count: int, seed: int = 0) -> list[bytes]:
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save(file, "png")
        found.append(file.getvalue())
    return found


OWNERS = ["mia", "bob", "zoe", "bob", "mia", "zoe", "bob", "bob", "ann", "mia"] * 3


def write(root: Path, labels: list[int], test: int = 4, pictures: list[bytes] | None = None, **more: Any) -> None:
    table = pa.table({"image": pictures or images(len(labels)), "label": labels, **more})
    pq.write_table(table, root / "train.parquet")
    if test:
        pq.write_table(pa.table({"image": images(test, 1), "label": [0, 1] * (test // 2)}), root / "test.parquet")


def federated(root: Path, partition: PartitionConfig, **fields: Any) -> FederatedData:
    return FederatedData(DataConfig(TaskConfig("folder", str(root), **fields), partition, seed=1))


NATURAL = PartitionConfig("natural", 0)


def test_owners_are_named_at_their_clients(tmp_path: Path) -> None:
    write(tmp_path, [0, 1] * 15, owner=OWNERS)
    data = federated(tmp_path, NATURAL, id_column="owner")
    assert data.facts.owners == ("ann", "bob", "mia", "zoe") and data.origins is not None
    assert data.origins.clients(("zoe", "ann")) == (3, 0)
    for client, name in enumerate(data.facts.owners):
        assert data.num_train(client) + len(data.split(client, "holdout", data.seeds)) == OWNERS.count(name)
    with pytest.raises(ValueError, match="names eve, which does not exist; the owners are ann, bob, mia, zoe"):
        data.origins.clients(("eve",))
    assert ("owners", "client 0 = ann, client 1 = bob, client 2 = mia, client 3 = zoe") in data.facts.lines()


def test_owners_that_are_numbers(tmp_path: Path) -> None:
    write(tmp_path, [0, 1] * 15, owner=[70, 5, 9] * 10)
    data = federated(tmp_path, NATURAL, id_column="owner")
    assert data.facts.owners == ("5", "9", "70") and data.origins is not None
    assert data.origins.clients((70, "9")) == (2, 1)


def test_an_owner_that_was_not_drawn_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [0, 1] * 15, owner=["rare"] + ["a", "b"] * 14 + ["a"])
    for seed in range(20):
        task = TaskConfig("folder", str(tmp_path), id_column="owner", max_train=8)
        data = FederatedData(DataConfig(task, NATURAL, seed=seed))
        if "rare" not in data.facts.owners:
            break
    assert data.facts.owners == ("a", "b") and data.origins is not None
    with pytest.raises(ValueError, match=r"names rare, of whom no training example was drawn \(task.max_train=8 of 30"):
        data.origins.clients(("rare",))


def test_owners_need_a_natural_partition(tmp_path: Path) -> None:
    write(tmp_path, [0, 1] * 15, owner=OWNERS)
    data = federated(tmp_path, PartitionConfig(clients=3), id_column="owner")
    assert data.facts.owners == () and data.origins is not None
    with pytest.raises(ValueError, match="request.owners needs partition=natural"):
        data.origins.clients(("ann",))


def test_rows_and_records_are_found_where_they_are_trained_on(tmp_path: Path) -> None:
    """Each row has a label of its own pattern, so that what is found can be told from the data."""
    pictures = images(40)
    write(tmp_path, [row % 4 for row in range(40)], pictures=pictures, name=[f"r{row}" for row in range(40)])
    data = federated(tmp_path, PartitionConfig(clients=3, holdout=0.3), record_column="name")
    assert data.origins is not None
    seen = {}
    for row in range(40):
        try:
            ((client, position),) = data.origins.places((row,))
        except ValueError as error:
            assert f"row {row} of the source is in the holdout split of client" in str(error)
            continue
        example = int(data.split(client, "train", data.seeds)[position])
        assert example == row and data.labels[example] == row % 4
        seen[row] = (client, position)
    assert len(seen) == sum(map(data.num_train, range(3))) and len(set(seen.values())) == len(seen)
    first, second = sorted(seen)[:2]
    assert set(data.origins.places((second, first))) == {seen[first], seen[second]}
    assert data.origins.origin.rows_of((f"r{second}", f"r{first}")) == [first, second]
    with pytest.raises(ValueError, match="request.records names r99, which task.record_column does not hold"):
        data.origins.origin.rows_of(("r99",))


def test_rows_that_are_not_trained_on_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [0, 1] * 20, test=0)
    data = federated(tmp_path, PartitionConfig(clients=2, holdout=0), max_train=10)
    assert data.origins is not None
    origin = data.origins.origin
    with pytest.raises(ValueError, match="names row 40, but the training split has rows 0 to 39"):
        data.origins.places((40,))
    with pytest.raises(ValueError, match=f"row {origin.test_rows[0]} of the source was drawn as a test example"):
        data.origins.places((int(origin.test_rows[0]),))
    left = min(set(range(40)) - set(origin.rows.tolist()) - set(origin.test_rows.tolist()))
    with pytest.raises(ValueError, match=rf"row {left} of the source was not drawn \(task.max_train=10\)"):
        data.origins.places((left,))
    with pytest.raises(ValueError, match="request.records needs task.record_column"):
        origin.rows_of(("a",))


def test_a_record_of_several_rows(tmp_path: Path) -> None:
    write(tmp_path, [0, 1] * 10, patient=[7, 7, 8, 9] * 5)
    data = federated(tmp_path, PartitionConfig(clients=2, holdout=0), record_column="patient")
    assert data.origins is not None
    assert data.origins.origin.rows_of((8, "9")) == sorted([*range(2, 20, 4), *range(3, 20, 4)])


def test_duplicates_are_counted() -> None:
    # images 0..5 train, 6..8 test; 0, 1 and 6 are equal, 2 and 3, 4 and 7; the holdout (5) counts nowhere
    alike = np.array([0, 0, 1, 1, 2, 3, 0, 2, 3])
    assert count_duplicates(alike, [np.array([0, 2, 3]), np.array([1, 4])], 6) == (2, 2)
    assert count_duplicates(np.arange(9), [np.array([0, 2, 3]), np.array([1, 4])], 6) == (0, 0)


def test_duplicates_are_said(tmp_path: Path) -> None:
    pictures = images(10)
    write(tmp_path, [0, 1] * 10, pictures=pictures * 2, owner=["a"] * 10 + ["b"] * 10)
    pq.write_table(pa.table({"image": [pictures[3], *images(1, 9)], "label": [1, 0]}), tmp_path / "test.parquet")
    data = federated(tmp_path, PartitionConfig("natural", 0, holdout=0), id_column="owner")
    assert data.facts.equal == (1, 20)
    assert dict(data.facts.lines())["duplicates"] == (
        "1 test image is also a training image; 20 training images occur at more than one client"
    )


def test_facts_say_files_columns_and_classes(tmp_path: Path) -> None:
    write(tmp_path, [7, 9, 9] * 4, test=0)
    pq.write_table(pa.table({"image": images(4, 1), "label": [7, 9, 9, 9]}), tmp_path / "test.parquet")
    data = federated(tmp_path, PartitionConfig(clients=2))
    said = dict(data.facts.lines())
    assert said["train files"] == "train.parquet" and said["test files"] == "test.parquet"
    assert said["columns"] == "image = image, label = label"
    assert said["2 classes (train/test)"] == "7 (4/1), 9 (8/3)"
    quick = check_task(TaskConfig("folder", str(tmp_path)), PartitionConfig(clients=2))
    assert quick is not None and quick.classes == data.facts.classes and quick.train == data.facts.train
    assert DataFacts.from_dict(data.facts.to_dict()) == data.facts


def test_long_names_do_not_travel(tmp_path: Path) -> None:
    write(tmp_path, [0, 1] * 10, owner=["a" * 10**4, "b" * 10**4] * 10)
    data = federated(tmp_path, NATURAL, id_column="owner")
    assert all(len(name) == MOST_LENGTH for name in data.facts.to_dict()["owners"])


class Step:
    """A request as the user writes it."""

    def __init__(self, **fields: Any) -> None:
        self.classes, self.owners, self.rows, self.records = (
            fields.get(name, ()) for name in ("classes", "owners", "rows", "records")
        )


@pytest.mark.parametrize(
    ("step", "fields", "sentence"),
    [
        (Step(classes=(3,)), {}, "request.classes: class 3 does not exist; the classes are 0 to 1"),
        (Step(classes=("cat",)), {}, "request.classes: class cat does not exist; the classes are 0 to 1"),
        (Step(rows=(30,)), {}, "request.rows names row 30"),
        (Step(records=("x",)), {}, "request.records needs task.record_column"),
        (Step(records=("x",)), {"record_column": "owner"}, "request.records names x"),
        (Step(owners=("eve",)), {"id_column": "owner"}, "request.owners names eve"),
        (Step(owners=("eve",)), {}, "request.owners needs task.id_column"),
        (Step(), {"id_column": "ownr"}, "task.id_column=ownr is unknown; did you mean .?owner"),
        (Step(), {"record_column": "x"}, "task.record_column=x is unknown"),
        (Step(), {"label_column": "image"}, "task.label_column=image is no label column"),
        (Step(), {"input_column": "image", "label_column": "image"}, "are both image; name two columns"),
    ],
)
def test_what_is_refused_without_an_image_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step, fields: dict, sentence: str
) -> None:
    write(tmp_path, [0, 1] * 15, owner=OWNERS)
    monkeypatch.setattr("fedforget.data.sources._encoded", None)
    with pytest.raises(ValueError, match=sentence):
        check_task(TaskConfig("folder", str(tmp_path), **fields), PartitionConfig(clients=3), steps=(step,))  # type: ignore[list-item]


def test_what_is_read_elsewhere_is_not_checked_here() -> None:
    assert check_task(TaskConfig("holder"), PartitionConfig()) is None
    assert check_task(TaskConfig("hub", "a/b"), PartitionConfig()) is None
