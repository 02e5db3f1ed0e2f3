"""What the label is: one column for all splits, by name and type; labels of any type become classes 0..C-1."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedforget.data import CorruptionConfig, DataConfig, FederatedData, PartitionConfig, TaskConfig, check_task
from fedforget.data.classes import Classes, encode
from fedforget.data.sources import load_source
from fedforget.seeds import Seeds


def images(count: int, seed: int = 0) -> list[bytes]:
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save(file, "png")
        found.append(file.getvalue())
    return found


def write(root: Path, name: str, labels: Any, seed: int = 0, column: str = "label", **more: Any) -> None:
    table = pa.table({"image": images(len(labels), seed), column: labels, **more})
    pq.write_table(table, root / f"{name}.parquet")


def load(root: Path, **fields: Any) -> Any:
    return load_source(TaskConfig("folder", str(root), **fields), Seeds(0))


def one_hot(labels: list[int], kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([[int(place == label) for place in range(3)] for label in labels], kind)


@pytest.mark.parametrize(
    ("labels", "classes", "codes"),
    [
        (["dog", "cat", "dog", "ape"], ("ape", "cat", "dog"), [2, 1, 2, 0]),
        ([True, False, True, False], ("false", "true"), [1, 0, 1, 0]),
        ([20, 10, 20, 10], ("10", "20"), [1, 0, 1, 0]),
        ([1, 2, 1, 2], ("1", "2"), [0, 1, 0, 1]),
        ([2, 0, 1, 0], ("0", "1", "2"), [2, 0, 1, 0]),
        ([2.0, 0.0, 1.0, 0.0], ("0", "1", "2"), [2, 0, 1, 0]),
        (pa.array([2, 0, 1, 0], pa.uint8()), ("0", "1", "2"), [2, 0, 1, 0]),
        (pa.array(["b", "a", "b", "a"]).dictionary_encode(), ("a", "b"), [1, 0, 1, 0]),
        (pa.array([7, 5, 7, 5]).dictionary_encode(), ("5", "7"), [1, 0, 1, 0]),
        (pa.array(["b", "a", "b", "a"], pa.large_string()), ("a", "b"), [1, 0, 1, 0]),
        (one_hot([2, 0, 1, 0], pa.list_(pa.int8(), 3)), ("0", "1", "2"), [2, 0, 1, 0]),
        (one_hot([2, 0, 2, 0], pa.list_(pa.float32())), ("0", "2"), [1, 0, 1, 0]),
        ([10**12, 5, 5, 5], ("5", "1000000000000"), [1, 0, 0, 0]),
    ],
)  # fmt: skip
def test_labels_of_any_type_are_classes_in_sorted_order(
    tmp_path: Path, labels: Any, classes: tuple[str, ...], codes: list[int]
) -> None:
    """An owner id beside them is never the label."""
    for seed, name in enumerate(("train", "test")):
        write(tmp_path, name, labels, seed, owner=[3, 1, 4, 1])
    data = load(tmp_path)
    assert data.classes == classes and data.num_classes == len(classes)
    assert data.train_labels.tolist() == data.test_labels.tolist() == codes


def test_classes_are_those_of_both_splits(tmp_path: Path) -> None:
    write(tmp_path, "train", ["b", "d", "b"])
    write(tmp_path, "test", ["c", "a"], 1)
    data = load(tmp_path)
    assert data.classes == ("a", "b", "c", "d")
    assert data.train_labels.tolist() == [1, 3, 1] and data.test_labels.tolist() == [2, 0]


@pytest.mark.parametrize("column", ["Label", "labels", "fine_label", "target", "Class"])
def test_usual_names(tmp_path: Path, column: str) -> None:
    write(tmp_path, "train", list("abab") * 3, column=column, coarse_label=[0, 1] * 6)
    assert load(tmp_path).classes == ("a", "b")


@pytest.mark.parametrize(
    ("labels", "more", "sentence"),
    [
        ([0.5, 1.0], {}, "label 0.5 in column label is no whole number"),
        ([float("nan"), 1.0], {}, "column label lacks the values of 1 of 2"),
        ([None, "a"], {}, "column label lacks the values of 1 of 2"),
        (["", "a"], {}, "column label lacks the values of 1 of 2"),
        ([None, True], {}, "column label lacks the values of 1 of 2"),
        (pa.array([None, "a"]).dictionary_encode(), {}, "column label lacks the values of 1 of 2"),
        ([None, [0, 1]], {}, "column label lacks the values of 1 of 2"),
        ([[0, 1], [1, 1]], {}, "lists that are not one-hot"),
        ([[0, 1], [1]], {}, "lists that are not one-hot"),
        ([[0, None], [1, 0]], {}, "lists that are not one-hot"),
        ([[0.2, 0.8], [1, 0]], {}, "lists that are not one-hot"),
        ([{"a": 1}, {"a": 2}], {}, "task.label_column=label is no label column, for it holds struct<a: int64>"),
        ([["a"], ["b"]], {}, "task.label_column=label is no label column, for it holds list<"),
        ([5, 5], {}, "all labels are 5; a task needs two classes at least"),
        (["a", "a"], {}, "all labels are a; a task needs two classes"),
        ([-1, 1], {}, "label -1 is negative"),
        (pa.array([2**63, 1], pa.uint64()), {}, "label 9223372036854775808 in column label is no class"),
        ([0, 1], {"target": [1, 0]}, r"several label columns \(label, target\); set task.label_column"),
    ],
)  # fmt: skip
def test_labels_that_name_no_class_are_refused(tmp_path: Path, labels: Any, more: dict, sentence: str) -> None:
    write(tmp_path, "train", labels, **more)
    for refuse in (lambda: load(tmp_path, test_share=0.5), lambda: check(tmp_path, test_share=0.5)):
        with pytest.raises(ValueError, match=sentence):
            refuse()


def check(root: Path, **fields: Any) -> Any:
    return check_task(TaskConfig("folder", str(root), **fields), PartitionConfig(clients=2))


@pytest.mark.parametrize("column", ["owner", "index", "digit"])
def test_no_other_column_is_guessed(tmp_path: Path, column: str) -> None:
    write(tmp_path, "train", [0, 1] * 5, column=column)
    with pytest.raises(ValueError, match=f"no column called label, .* set task.label_column .* are image, {column}"):
        load(tmp_path)
    assert load(tmp_path, label_column=column).num_classes == 2


@pytest.mark.parametrize(
    ("labels", "column", "sentence"),
    [
        ([0, 1], "target", "the test examples have no column label, which .* have; their columns are image, target"),
        (["0", "1"], "label", "labels are of one type in training and of another in test"),
        ([{"a": 1}, {"a": 2}], "label", "column label of the test examples holds struct<a: int64>, no labels"),
    ],
)
def test_splits_share_one_choice(tmp_path: Path, labels: list, column: str, sentence: str) -> None:
    write(tmp_path, "train", [0, 1, 2])
    write(tmp_path, "test", labels, 1, column=column)
    with pytest.raises(ValueError, match=sentence):
        load(tmp_path)


def named(root: Path, name: str, labels: list[int], titles: list[str], seed: int = 0) -> None:
    about = {"info": {"features": {"label": {"names": titles, "_type": "ClassLabel"}}}}
    table = pa.table({"image": images(len(labels), seed), "label": labels})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), root / f"{name}.parquet")


def test_names_in_the_schema_keep_the_numbers(tmp_path: Path) -> None:
    named(tmp_path, "train", [2, 0, 1, 2], ["cat", "bee", "ape"])
    named(tmp_path, "test", [0, 1], ["cat", "bee", "ape"], 1)
    data = load(tmp_path)
    assert data.classes == ("cat", "bee", "ape") and data.train_labels.tolist() == [2, 0, 1, 2]
    assert [data.labels.index(wanted, "k") for wanted in (2, "ape", "cat")] == [2, 2, 0]
    named(tmp_path, "test", [0, 1], ["bee", "cat", "ape"], 1)
    with pytest.raises(ValueError, match="name the labels in column label differently"):
        load(tmp_path)
    named(tmp_path, "train", [2, 0, 1, 2], ["cat", "bee"])
    named(tmp_path, "test", [0, 1], ["cat", "bee"], 1)
    with pytest.raises(ValueError, match="label 2 has no name; the data name labels 0 to 1"):
        load(tmp_path)


@pytest.mark.parametrize("metadata", [b"no json", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": {}}}}'])
def test_other_metadata_name_nothing(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"image": images(4), "label": [0, 1, 0, 1]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "train.parquet")
    assert load(tmp_path).classes == ("0", "1")


def test_a_class_is_meant_by_its_label_or_its_name() -> None:
    classes, _ = encode([np.array([20, 10])])
    assert classes.index(10, "k") == classes.index("10", "k") == 0
    with pytest.raises(ValueError, match="request.classes: class 0 does not exist; the classes are 10, 20"):
        classes.index(0, "request.classes")
    texts, _ = encode([np.array(["7", "3"], dtype=object)])
    assert texts.index(3, "k") == texts.index("3", "k") == 0
    swapped = Classes(("1", "0"), (0, 1))  # label 0 is called "1"
    assert swapped.index(1, "k") == 1 and swapped.index("1", "k") == 0
    with pytest.raises(ValueError, match=r"class zoo does not exist; the classes are 1 \(0\), 0 \(1\)"):
        swapped.index("zoo", "k")


def test_corruption_names_classes_as_the_data_do(tmp_path: Path) -> None:
    write(tmp_path, "train", ["cat", "dog"] * 10)
    swap = CorruptionConfig("label_swap", (0,), classes=("dog", "cat"))
    data = FederatedData(DataConfig(TaskConfig("folder", str(tmp_path)), PartitionConfig(clients=2), swap))
    assert data.corruption.classes == (1, 0)
    with pytest.raises(ValueError, match="corruption.target_class: class ape does not exist; the classes are cat, dog"):
        CorruptionConfig("trigger", (0,), target_class="ape").resolved(data.facts.classes)
    with pytest.raises(ValueError, match="corruption.target_class: class 0 does not exist; the classes are cat, dog"):
        check_task(TaskConfig("folder", str(tmp_path)), PartitionConfig(clients=2), CorruptionConfig("trigger", (0,)))


@pytest.mark.parametrize("kind", ["label_random", "canary"])
def test_wrong_labels_are_ones_that_occur(tmp_path: Path, kind: str) -> None:
    write(tmp_path, "train", [10, 20, 90] * 20)
    config = CorruptionConfig(kind, (0,), canaries=10)
    data = FederatedData(DataConfig(TaskConfig("folder", str(tmp_path)), PartitionConfig(clients=2), config))
    assert data.num_classes == 3 and set(data.labels.tolist()) == {0, 1, 2}
    assert len(data.class_counts(0)) == 3 and data.record["positions"]["0"]


def test_a_draw_counts_the_classes_that_it_holds(tmp_path: Path) -> None:
    write(tmp_path, "train", [0] * 20 + [1] * 20 + [2])
    write(tmp_path, "test", [0, 1], 1)
    assert load(tmp_path).num_classes == 3
    seeds = next(seed for seed in range(50) if load_source(
        TaskConfig("folder", str(tmp_path), max_train=10), Seeds(seed)).num_classes == 2)  # fmt: skip
    assert load_source(TaskConfig("folder", str(tmp_path), max_train=10), Seeds(seeds)).classes == ("0", "1")
