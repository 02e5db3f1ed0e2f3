"""Which file is which split: by names below the task's folder, and never by one that is a copy of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedforget.data.files import find_files


def make(root: Path, *names: str) -> Path:
    """Files of different content."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes([number + 1]) * 10)
    return root


def found(root: Path) -> dict[str, list[str]]:
    return {
        split: [file.relative_to(root).as_posix() for file in several]
        for split, several in find_files(str(root)).items()
    }


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train.parquet"], ["test.parquet"]),
        (["Train.parquet"], ["TEST-0000.PARQUET"]),
        (["d/train-00000-of-00002.parquet", "d/train-00001-of-00002.parquet"], ["d/test-00000-of-00001.parquet"]),
        (["train-00000-of-00001-b42a775f407cee45.parquet"], ["validation-00000-of-00001-0a1b2c3d4e5f6071.parquet"]),
        (["default/train/0000.parquet", "default/train/0001.parquet"], ["default/test/0000.parquet"]),
        (["TRAIN/a.parquet"], ["Val/a.parquet"]),
        (["training.parquet"], ["testing.parquet"]),
        (["train (1).parquet"], ["test_old.parquet"]),  # the only one is no copy of another
        (["one.parquet"], []),
        (["0000.parquet", "0001.parquet"], []),
    ],
)  # fmt: skip
def test_usual_layouts(tmp_path: Path, train: list[str], test: list[str]) -> None:
    splits = found(make(tmp_path, *train, *test))
    assert splits.pop("train") == train and list(splits.values()) == ([test] if test else [])


@pytest.mark.parametrize("name", ["train", "test", "TESTS/validation", "trainings"])
def test_the_folders_above_decide_nothing(tmp_path: Path, name: str) -> None:
    root = make(tmp_path / name, "train.parquet", "test.parquet")
    assert found(root) == {"train": ["train.parquet"], "test": ["test.parquet"]}


def test_hidden_files_are_no_data(tmp_path: Path) -> None:
    make(tmp_path, "train.parquet", ".cache/train.parquet", "._train.parquet", "README.md")
    assert found(tmp_path) == {"train": ["train.parquet"]}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["train.parquet", "train_old.parquet"], "several train files .* train.parquet, train_old.parquet"),
        (["train.parquet", "train (1).parquet"], r"several train files .* train \(1\).parquet, train.parquet"),
        (["train.parquet", "Train.PARQUET"], "several train files"),
        (["train.parquet", "backup/train.parquet"], "several train files .* backup/train.parquet, train.parquet"),
        (["train.parquet", "train-1.parquet"], "several train files"),
        (["train/a.parquet", "train/b.parquet"], "several train files"),
        (["a/train/0.parquet", "b/train/1.parquet"], "several train files"),
        (["train-1.parquet", "train-01.parquet"], "several train files"),
        (["train.parquet", "test.parquet", "test-copy.parquet"], "several test files"),
        (["a.parquet", "b.parquet"], "several train files"),
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "holds 2 of the 3 train files"),
        (["train.parquet", "trainings/more.parquet"], "holds trainings/more.parquet, named after no split"),
        (["train.parquet", "test.parquet", "extra.parquet"], "holds extra.parquet, named after no split"),
        (["one.parquet", "validation.parquet"], "holds one.parquet, named after no split"),
        (["train/test.parquet"], r"train/test.parquet .* named after two splits \(test, train\)"),
        (["test.parquet"], "holds no training file"),
        ([], "holds no parquet file"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused(tmp_path: Path, names: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find_files(str(make(tmp_path, *names)))


@pytest.mark.parametrize("names", [("train.parquet", "test.parquet"), ("train-0.parquet", "train-1.parquet")])
def test_the_same_content_twice_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"the same")
    with pytest.raises(ValueError, match=f"the same examples twice: .*{names[1]}.* have the same content"):
        find_files(str(tmp_path))
