"""Where the examples come from: embedded digits, a folder of parquet files, a hub name, or a torchvision name.

Every source yields encoded or raw 8-bit images; they are decoded once, and normalised per channel by the mean and the
standard deviation of the training images that are used.
"""

from __future__ import annotations

import inspect
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedforget.names import nearest
from fedforget.seeds import Seeds

SOURCES = ("digits", "folder", "hub", "torchvision", "holder")
LABEL_COLUMNS = ("label", "labels", "fine_label")
MOST_CLASSES = 100_000  # a larger label is an id or a mistake, and every network would have an output for it
TEST_SPLITS = ("test", "validation", "valid", "val")  # the first that a source has is its test set


def unknown(field: str, value: object, choices: Sequence[str]) -> ValueError:
    """The error for a value that is not among ``choices``; it names the nearest one."""
    return ValueError(f"{field}={value} is unknown{nearest(str(value), choices)}")


@dataclass(frozen=True)
class TaskConfig:
    """Which data set.

    Args:
        source: ``digits`` (scikit-learn's, 8x8, no download), ``folder``, ``hub``, ``torchvision`` or ``holder`` (each
            deployed SuperNode reads its own folder, see `fedforget.data.holder`).
        path: ``folder``: its path; ``hub``: the data set's name; ``torchvision``: its class, such as ``FashionMNIST``;
            ``holder``: empty, each node fills in its own.
        root: for ``torchvision``, where the files lie or go to; ``""`` means ``~/.cache/fedforget/torchvision``.
        input_column: the images; ``""`` where there is one image column.
        label_column: the classes; ``""`` means ``label``, ``labels``, ``fine_label`` or the only integer column.
        id_column: natural client ids (writers, hospitals), for ``partition.kind=natural``.
        test_share: share of the examples drawn as test set where the source has none.
        max_train: how many training examples to draw; 0 takes all.
        max_test: how many test examples to draw; 0 takes all.

    Raises:
        ValueError: if the source is unknown, lacks its path, or a number is out of range.
    """

    source: str = "digits"
    path: str = ""
    root: str = ""
    input_column: str = ""
    label_column: str = ""
    id_column: str = ""
    test_share: float = 0.2
    max_train: int = 0
    max_test: int = 0

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise unknown("task.source", self.source, SOURCES)
        if self.source not in ("digits", "holder") and not self.path:
            raise ValueError(f"task.source={self.source} needs task.path, but it is empty")
        if self.id_column and self.source not in ("folder", "hub"):
            raise ValueError(f"task.id_column={self.id_column} needs task.source=folder or hub, not {self.source}")
        if not 0 < self.test_share < 1:
            raise ValueError(f"task.test_share={self.test_share} must be above 0 and below 1")
        for field in ("max_train", "max_test"):
            if getattr(self, field) < 0:
                raise ValueError(f"task.{field}={getattr(self, field)} must be at least 0 (0 takes all)")
            if self.source == "holder" and getattr(self, field):
                raise ValueError(f"task.{field}={getattr(self, field)}, but task.source=holder takes all; use 0")


@dataclass(frozen=True)
class Holding:
    """Whose examples a folder holds, when it holds those of one client only.

    Args:
        client: the client's id.
        num_clients: how many clients the federation has.
        agreed: canonical JSON of what all holders agreed on.
    """

    client: int
    num_clients: int
    agreed: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """A decoded data set.

    Args:
        train_inputs: float32 ``[N, C, H, W]``, mean 0 and standard deviation 1 per channel.
        train_labels: int64 ``[N]``, in ``0..num_classes-1``.
        test_inputs: float32 ``[M, C, H, W]``, normalised as the training images.
        test_labels: int64 ``[M]``.
        train_ids: natural client id of each training example ``[N]``; ``None`` without ``task.id_column``.
        num_classes: one more than the largest label.
        holding: for ``task.source=holder``, whose examples these are; ``None`` if they are those of all clients.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    train_ids: np.ndarray | None
    num_classes: int
    holding: Holding | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        channels, height, width = self.train_inputs.shape[1:]
        return channels, height, width


@dataclass(frozen=True, eq=False)
class _Split:
    """Examples as the source holds them: images uint8 ``[N, C, H, W]`` or encoded bytes (objects ``[N]``)."""

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> _Split:
        return _Split(self.images[rows], self.labels[rows], None if self.ids is None else self.ids[rows])

    def draw(self, most: int, rng: np.random.Generator) -> _Split:
        """At most ``most`` random examples (0: all), in their order."""
        total = len(self.labels)
        return self.take(np.sort(rng.permutation(total)[:most])) if 0 < most < total else self


def load_source(task: TaskConfig, seeds: Seeds) -> Dataset:
    """Read, subsample, decode and normalise a data set.

    Args:
        task: which data set.
        seeds: the streams of the data: ``"test"``, ``"max_train"``, ``"max_test"``.

    Raises:
        ValueError: if the data is absent or unreachable, a column is missing or ambiguous, labels are not classes, or
            images are not grayscale or RGB images of one size.
    """
    train, test = read_examples(task, seeds)
    inputs, test_inputs = decode(train.images), decode(test.images)
    if inputs.shape[1:] != test_inputs.shape[1:]:
        shapes = f"{list(inputs.shape[1:])} for training and {list(test_inputs.shape[1:])} for test"
        raise ValueError(f"images have different sizes: {shapes}; a task needs one size")
    mean, std = moments(inputs)
    return Dataset(
        train_inputs=normalised(inputs, mean, std),
        train_labels=torch.from_numpy(train.labels.astype(np.int64)),
        test_inputs=normalised(test_inputs, mean, std),
        test_labels=torch.from_numpy(test.labels.astype(np.int64)),
        train_ids=train.ids,
        num_classes=int(max(train.labels.max(), test.labels.max())) + 1,
    )


def read_examples(task: TaskConfig, seeds: Seeds) -> tuple[_Split, _Split]:
    """The training and test examples of a data set, subsampled but not decoded; as `load_source` otherwise."""
    read = {"digits": _digits, "folder": _folder, "hub": _hub, "torchvision": _torchvision}[task.source]
    train, test = read(task)
    if test is None:
        order = seeds.numpy("test").permutation(len(train.labels))
        size = math.ceil(task.test_share * len(order))
        train, test = train.take(np.sort(order[size:])), train.take(np.sort(order[:size]))
    train = train.draw(task.max_train, seeds.numpy("max_train"))
    test = test.draw(task.max_test, seeds.numpy("max_test"))
    if not len(train.labels) or not len(test.labels):
        raise ValueError(
            f"the task has {len(train.labels)} training and {len(test.labels)} test examples; it needs both"
        )
    lowest = min(train.labels.min(), test.labels.min())
    if lowest < 0:
        raise ValueError(f"label {lowest} is negative; classes count from 0")
    highest = max(train.labels.max(), test.labels.max())
    if highest == 0:
        raise ValueError("all labels are 0; a task needs two classes at least")
    if highest >= MOST_CLASSES:
        raise ValueError(f"label {highest} is no class; number the classes from 0, {MOST_CLASSES} at most")
    return train, test


def _digits(task: TaskConfig) -> tuple[_Split, None]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return _Split(bunch.images.astype(np.uint8)[:, None], bunch.target), None


def _folder(task: TaskConfig) -> tuple[_Split, _Split | None]:
    import pyarrow as pa
    from pyarrow import parquet

    folder = Path(task.path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"task.path={task.path} is not a folder")
    try:
        files = sorted(folder.rglob("*.parquet"))
    except OSError as error:  # such as a folder that others change meanwhile
        raise ValueError(f"task.path={task.path} cannot be searched: {error.strerror} ({error.filename})") from error
    if not files:
        raise ValueError(f"task.path={task.path} holds no parquet file")

    def named(split: str) -> list[Path]:
        # train.parquet, train-00000-of-00002.parquet, data/train-*.parquet, default/train/0000.parquet all occur
        start = re.compile(rf"(^|/){split}(?![a-z])")
        return [file for file in files if start.search(file.relative_to(folder).as_posix())]

    def read(paths: list[Path]) -> _Split:
        tables = []
        for path in paths:  # one by one: only then do columns keep the types that the files give them
            try:
                tables.append(parquet.ParquetFile(path).read())
            except (OSError, pa.ArrowException) as error:
                raise ValueError(f"{path} cannot be read as a parquet file: {_first_line(error)}") from error
            if not tables[-1].schema.equals(tables[0].schema):
                raise ValueError(f"{path} has other columns than {paths[0]}; give all files of a split the same")
        return _columns(pa.concat_tables(tables), task)

    test = next(filter(None, map(named, TEST_SPLITS)), [])
    train = named("train") or [file for file in files if file not in test]
    if not train:
        raise ValueError(f"task.path={task.path} holds no training file; one must be called train*.parquet")
    return read(train), read(test) if test else None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _hub(task: TaskConfig) -> tuple[_Split, _Split | None]:
    import datasets

    try:
        splits = datasets.load_dataset(task.path)
    except (OSError, ValueError) as error:  # connection errors and unknown names are kinds of OSError
        raise ValueError(f"task.path={task.path} cannot be loaded from the hub: {error}") from error
    if "train" not in splits:
        raise ValueError(f"task.path={task.path} has no split 'train'; its splits are {', '.join(splits)}")

    def read(name: str) -> _Split:
        return _columns(splits[name].with_format("arrow")[:], task)

    test = next((name for name in TEST_SPLITS if name in splits), None)
    return read("train"), read(test) if test else None


def _torchvision(task: TaskConfig) -> tuple[_Split, _Split]:
    import torchvision.datasets as known

    names = [name for name in known.__all__ if {"train", "download"} <= set(_parameters(getattr(known, name)))]
    if task.path not in names:
        raise unknown("task.path", task.path, names)
    root = Path(task.root or "~/.cache/fedforget/torchvision").expanduser()

    def read(train: bool) -> _Split:
        try:
            source = getattr(known, task.path)(str(root), train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"torchvision cannot load task.path={task.path} from {root}: {error}") from error
        if not hasattr(source, "targets"):
            raise ValueError(f"task.path={task.path} has no class labels, so it is no classification task")
        return _Split(_channels_first(np.asarray(source.data)), np.asarray(source.targets))

    return read(True), read(False)


def _parameters(kind: type) -> list[str]:
    return list(inspect.signature(kind).parameters)


def _columns(table: Any, task: TaskConfig) -> _Split:
    """The images, labels and ids of a ``pyarrow.Table`` in the layout of Hugging Face ``datasets``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def is_image(kind: Any) -> bool:
        encoded = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return encoded or pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0

    images = [field.name for field in table.schema if is_image(field.type)]
    integers = [
        field.name for field in table.schema if pa.types.is_integer(field.type) and field.name != task.id_column
    ]
    usual = [name for name in LABEL_COLUMNS if name in integers]
    image = _choose("input_column", task.input_column, images, images, table.column_names)
    label = _choose("label_column", task.label_column, usual[:1] or integers, integers, table.column_names)
    if task.id_column and task.id_column not in table.column_names:
        raise unknown("task.id_column", task.id_column, table.column_names)

    columns = {image: table[image], label: table[label]}
    if pa.types.is_struct(columns[image].type):
        columns[image] = pc.struct_field(columns[image], "bytes")
    if task.id_column:
        columns[task.id_column] = table[task.id_column]
        if pa.types.is_nested(columns[task.id_column].type):
            raise ValueError(
                f"task.id_column={task.id_column} holds {columns[task.id_column].type}; an id is a number or a text"
            )
    for name, column in columns.items():
        if column.null_count:
            raise ValueError(f"column {name} lacks the values of {column.null_count} of {len(column)} examples")
    # By way of lists: `to_numpy` would import pandas, which takes a third of a second in every process that reads data.
    values = {
        name: np.array(column.to_pylist(), dtype=None if pa.types.is_integer(column.type) else object)
        for name, column in columns.items()
    }
    return _Split(values[image], values[label], values.get(task.id_column))


def _choose(field: str, wanted: str, guesses: list[str], fitting: list[str], columns: list[str]) -> str:
    """The wanted column, or the only guess."""
    kind = {"input_column": "image", "label_column": "integer label"}[field]
    if wanted and wanted not in columns:
        raise unknown(f"task.{field}", wanted, columns)
    if wanted and wanted not in fitting:
        raise ValueError(
            f"task.{field}={wanted} is no {kind} column; such columns are {', '.join(fitting) or 'absent'}"
        )
    if wanted or len(guesses) == 1:
        return wanted or guesses[0]
    if guesses:
        raise ValueError(f"there are several {kind} columns ({', '.join(guesses)}); set task.{field}")
    raise ValueError(f"there is no {kind} column; the columns are {', '.join(columns)}")


def decode(images: np.ndarray) -> Tensor:
    """uint8 ``[N, C, H, W]`` from raw or encoded images."""
    if images.dtype != object:
        return torch.from_numpy(images)
    from PIL import Image, UnidentifiedImageError  # torchvision's own decoders are deprecated

    pixels = None
    for number, encoded in enumerate(images):
        try:
            with Image.open(io.BytesIO(encoded)) as file:
                image, mode = np.asarray(file), file.mode
        except UnidentifiedImageError as error:
            raise ValueError(f"image {number} cannot be decoded: it is of no format that Pillow knows") from error
        except OSError as error:
            raise ValueError(f"image {number} cannot be decoded: {error}") from error
        if mode not in ("L", "RGB"):  # the pixels of others, such as a palette's, are no brightness
            kind = f"mode {mode}, shape {list(image.shape)} and type {image.dtype}"
            raise ValueError(f"image {number} has {kind}; only 8-bit grayscale and RGB images are supported")
        if pixels is None:
            pixels = np.empty((len(images), *image.shape), dtype=np.uint8)
        if image.shape != pixels.shape[1:]:
            sizes = f"{list(pixels.shape[1:])} and {list(image.shape)}"
            raise ValueError(f"images have different sizes: {sizes}; a task needs one size")
        pixels[number] = image
    assert pixels is not None, "load_source refuses empty splits"
    return torch.from_numpy(_channels_first(pixels))


def _channels_first(images: np.ndarray) -> np.ndarray:
    """``[N, C, H, W]`` from ``[N, H, W]`` or ``[N, H, W, C]``."""
    return images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """float32 ``[N, C, H, W]`` from 8-bit pixels, given mean and standard deviation per channel ``[C, 1, 1]``."""
    return images.float().sub_(mean).div_(std)


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, float32 ``[C, 1, 1]`` each, of uint8 ``[N, C, H, W]``."""
    # Sums of integers: exact, so the numbers do not depend on how many threads a node has.
    levels = torch.arange(256)
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])])
    total = counts.sum(1).double()
    mean = (counts * levels).sum(1) / total
    std = ((counts * levels.square()).sum(1) / total - mean.square()).sqrt()
    std[std == 0] = 1.0  # a constant channel becomes 0, not NaN
    return mean.float()[:, None, None], std.float()[:, None, None]
