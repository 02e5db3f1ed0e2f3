"""Where the examples come from: embedded digits, a folder of parquet files, a hub name, or a torchvision name.

Every source yields encoded or raw 8-bit images; they are decoded once, and normalised per channel by the mean and the
standard deviation of the training images that are used. Labels and ids are read and checked before any image is.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedforget.data.classes import Classes, encode
from fedforget.data.columns import choose_columns, read_ids, read_labels, refuse_missing
from fedforget.data.files import TEST_SPLITS, find_files
from fedforget.data.images import channels_first, decode, moments, normalised
from fedforget.data.origins import Origin
from fedforget.schema.data import TaskConfig, unknown
from fedforget.seeds import Seeds

HUB_TEST_SPLITS = ("test", "validation", "valid", "val")  # the first that a data set has is its test set


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


@dataclass(frozen=True)
class Named:
    """What a source calls its parts, for the report.

    Args:
        files: names of the files of each split, whether used or not; empty for sources without.
        columns: the columns used, by role: ``image``, ``label``, ``owner``, ``record``.
    """

    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A decoded data set.

    Args:
        train_inputs: float32 ``[N, C, H, W]``, mean 0 and standard deviation 1 per channel.
        train_labels: int64 ``[N]``, in ``0..C-1`` for C classes.
        test_inputs: float32 ``[M, C, H, W]``, normalised as the training images.
        test_labels: int64 ``[M]``.
        labels: the classes that occur, in the order of the labels.
        alike: int64 ``[N + M]``: equal for training and then test images of equal pixels.
        origin: where the training examples stand in their source; ``None`` for a holder's.
        named: what the source calls its parts.
        holding: for ``task.source=holder``, whose examples these are; ``None`` if they are those of all clients.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    labels: Classes
    alike: np.ndarray
    origin: Origin | None = None
    named: Named = Named()
    holding: Holding | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        return self.labels.names

    @property
    def num_classes(self) -> int:
        """How many classes occur."""
        return len(self.labels.names)

    @property
    def train_ids(self) -> np.ndarray | None:
        """Natural client id of each training example ``[N]``; ``None`` without ``task.id_column``."""
        return self.origin.owners if self.origin else None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        channels, height, width = self.train_inputs.shape[1:]
        return channels, height, width


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples as the source holds them; images are read when they are asked for.

    Args:
        labels: as `fedforget.data.columns.read_labels` gives them, or encoded, ``[n]``.
        rows: positions in the source's split, int64 ``[n]``.
        read: the images of the source's whole split, as `decode` takes them, ``[total, ...]``.
        ids: natural client ids of the whole split, ``[total]``.
        records: names of the examples of the whole split, ``[total]``.
    """

    labels: np.ndarray
    rows: np.ndarray
    read: Callable[[], np.ndarray]
    ids: np.ndarray | None = None
    records: np.ndarray | None = None

    @property
    def images(self) -> np.ndarray:
        """The images of these examples ``[n, ...]``, as `decode` takes them."""
        return self.read()[self.rows]

    def take(self, places: np.ndarray) -> Examples:
        """The examples at some places."""
        return replace(self, labels=self.labels[places], rows=self.rows[places])

    def draw(self, most: int, rng: np.random.Generator) -> Examples:
        """At most ``most`` random examples (0: all), in their order."""
        total = len(self.labels)
        return self.take(np.sort(rng.permutation(total)[:most])) if 0 < most < total else self


@dataclass(frozen=True, eq=False)
class Source:
    """What a source holds.

    Args:
        train: its training split.
        test: its test split; ``None`` without.
        first: encoded images that can be had quickly, to look at: the first of each file.
        named: what it calls its parts.
        titles: names of the labels 0, 1, ... where it gives any.
    """

    train: Examples
    test: Examples | None
    named: Named = Named()
    titles: Sequence[str] = ()
    first: Callable[[], list[bytes]] = list


@dataclass(frozen=True, eq=False)
class Chosen:
    """The examples that a task uses, subsampled but not decoded.

    Args:
        train: training examples, with labels ``0..C-1``.
        test: test examples, likewise.
        labels: the classes that occur.
        origin: where the training examples stand in their source.
        named: what the source calls its parts.
        first: encoded images that can be had quickly, to look at: the first of each file.
    """

    train: Examples
    test: Examples
    labels: Classes
    origin: Origin
    named: Named
    first: Callable[[], list[bytes]]


def load_source(task: TaskConfig, seeds: Seeds) -> Dataset:
    """Read, subsample, decode and normalise a data set.

    Args:
        task: which data set.
        seeds: the streams of the data: ``"test"``, ``"max_train"``, ``"max_test"``.

    Raises:
        ValueError: if the data is absent or unreachable, a column is missing or ambiguous, labels are not classes, or
            images are not grayscale or RGB images of one size.
    """
    chosen = choose_examples(task, seeds)
    inputs, test_inputs = decoded(chosen, task.mode)
    mean, std = moments(inputs)
    return Dataset(
        train_inputs=normalised(inputs, mean, std),
        train_labels=torch.from_numpy(chosen.train.labels),
        test_inputs=normalised(test_inputs, mean, std),
        test_labels=torch.from_numpy(chosen.test.labels),
        labels=chosen.labels,
        alike=same_pixels(inputs, test_inputs),
        origin=chosen.origin,
        named=chosen.named,
    )


def choose_examples(task: TaskConfig, seeds: Seeds) -> Chosen:
    """The training and test examples of a data set, with no image read yet; as `load_source` otherwise."""
    source = read_source(task)
    train, test = source.train, source.test
    drawn = np.zeros(0, dtype=np.int64)  # of the training split, as test set
    if test is None:
        order = seeds.numpy("test").permutation(len(train.labels))
        size = math.ceil(task.test_share * len(order))
        train, test = train.take(np.sort(order[size:])), train.take(np.sort(order[:size]))
        drawn = test.rows
    train = train.draw(task.max_train, seeds.numpy("max_train"))
    test = test.draw(task.max_test, seeds.numpy("max_test"))
    if not len(train.labels) or not len(test.labels):
        raise ValueError(
            f"the task has {len(train.labels)} training and {len(test.labels)} test examples; it needs both"
        )
    classes, (train_labels, test_labels) = encode((train.labels, test.labels), source.titles)
    origin = Origin(train.rows, len(source.train.labels), drawn, train.ids, train.records)
    train, test = replace(train, labels=train_labels), replace(test, labels=test_labels)
    return Chosen(train, test, classes, origin, source.named, source.first)


def decoded(chosen: Chosen, mode: str) -> tuple[Tensor, Tensor]:
    """Training and test images, uint8 ``[N, C, H, W]``, converted to ``mode`` (`TaskConfig.mode`).

    Raises:
        ValueError: if they cannot be decoded, or are not of one size.
    """
    inputs, test_inputs = decode(chosen.train.images, mode), decode(chosen.test.images, mode)
    if inputs.shape[1:] != test_inputs.shape[1:]:
        shapes = f"{list(inputs.shape[1:])} for training and {list(test_inputs.shape[1:])} for test"
        raise ValueError(f"images have different sizes: {shapes}; a task needs one size")
    return inputs, test_inputs


def same_pixels(*several: Tensor) -> np.ndarray:
    """int64 ``[n]``, equal for images of equal pixels, over all of several stacks uint8 ``[n, C, H, W]``."""
    digests = [
        hashlib.blake2b(image.data, digest_size=16).digest()
        for images in several
        for image in images.contiguous().numpy()
    ]
    _, group = np.unique(np.array(digests, dtype="S16"), return_inverse=True)
    return group.reshape(-1).astype(np.int64)


def read_source(task: TaskConfig) -> Source:
    """A data set without its images.

    Raises:
        ValueError: if it is absent or unreachable, or a column is missing or ambiguous.
    """
    return {"digits": _digits, "folder": _folder, "hub": _hub, "torchvision": _torchvision}[task.source](task)


def _raw(images: np.ndarray, labels: np.ndarray) -> Examples:
    return Examples(labels.astype(np.int64), np.arange(len(labels)), lambda: images)


def _digits(task: TaskConfig) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Source(_raw(bunch.images.astype(np.uint8)[:, None], bunch.target), None)


def _folder(task: TaskConfig) -> Source:
    import pyarrow as pa

    files = find_files(task.path)
    test = next((split for split in TEST_SPLITS if split in files), "")
    used = {"train": files["train"]} | ({"test": files[test]} if test else {})
    opened = {split: [_open(path) for path in paths] for split, paths in used.items()}
    for split, several in opened.items():
        for path, file in zip(used[split], several, strict=True):
            if not file.schema_arrow.equals(several[0].schema_arrow):
                raise ValueError(f"{path} has other columns than {used[split][0]}; give all files of a split the same")

    def table(split: str, names: Sequence[str]) -> Any:
        tables = []
        # One by one: only then do columns keep the types that the files give them.
        for path, file in zip(used[split], opened[split], strict=True):
            try:
                tables.append(file.read(columns=list(names)))
            except (OSError, pa.ArrowException) as error:
                raise ValueError(f"{path} cannot be read as a parquet file: {_first_line(error)}") from error
        return pa.concat_tables(tables)

    schemas = {split: several[0].schema_arrow for split, several in opened.items()}
    root = Path(task.path).expanduser()
    names = {split: tuple(path.relative_to(root).as_posix() for path in paths) for split, paths in files.items()}
    source = _tabular(schemas, table, task, names)

    def first() -> list[bytes]:
        column = source.named.columns["image"]
        tops = [file.iter_batches(1, columns=[column]) for several in opened.values() for file in several]
        return [
            image
            for top in tops
            for batch in itertools.islice(top, 1)
            if len(batch)
            for image in _encoded(batch[column], column)[:1]
        ]

    return replace(source, first=first)


def _open(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as a parquet file: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _hub(task: TaskConfig) -> Source:
    import datasets

    try:
        splits = datasets.load_dataset(task.path)
    except (OSError, ValueError) as error:  # connection errors and unknown names are kinds of OSError
        raise ValueError(f"task.path={task.path} cannot be loaded from the hub: {error}") from error
    if "train" not in splits:
        raise ValueError(f"task.path={task.path} has no split 'train'; its splits are {', '.join(splits)}")
    test = next((name for name in HUB_TEST_SPLITS if name in splits), "")
    used = {"train": splits["train"]} | ({"test": splits[test]} if test else {})

    def table(split: str, names: Sequence[str]) -> Any:
        return used[split].select_columns(list(names)).with_format("arrow")[:]

    schemas = {split: content.features.arrow_schema for split, content in used.items()}
    return _tabular(schemas, table, task, {name: () for name in splits})


def _tabular(
    schemas: Mapping[str, Any],
    table: Callable[[str, Sequence[str]], Any],
    task: TaskConfig,
    files: Mapping[str, tuple[str, ...]],
) -> Source:
    """Splits in the layout of Hugging Face ``datasets``.

    Args:
        schemas: the ``pyarrow.Schema`` of each split.
        table: reads some columns of a split.
        task: which columns are used.
        files: names of the files of each split.
    """
    columns = choose_columns(schemas, task)

    def examples(split: str) -> Examples:
        wanted = dict.fromkeys(filter(None, (columns.label, *((columns.owner, columns.record) * (split == "train")))))
        content = table(split, list(wanted))
        labels = read_labels(content[columns.label], columns.label)
        ids = read_ids(content[columns.owner], columns.owner) if columns.owner in wanted else None
        records = read_ids(content[columns.record], columns.record) if columns.record in wanted else None
        images = cache(lambda: _encoded(table(split, [columns.image])[columns.image], columns.image))
        return Examples(labels, np.arange(len(labels)), images, ids, records)

    roles = {"image": columns.image, "label": columns.label, "owner": columns.owner, "record": columns.record}
    named = Named(files, {role: name for role, name in roles.items() if name})
    return Source(examples("train"), examples("test") if "test" in schemas else None, named, columns.titles)


def _encoded(column: Any, name: str) -> np.ndarray:
    """The encoded images of a column of ``pyarrow``, as objects ``[n]``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    refuse_missing(column.null_count, len(column), name)
    return np.array(column.to_pylist(), dtype=object)


def _torchvision(task: TaskConfig) -> Source:
    import torchvision.datasets as known

    names = [name for name in known.__all__ if {"train", "download"} <= set(_parameters(getattr(known, name)))]
    if task.path not in names:
        raise unknown("task.path", task.path, names)
    root = Path(task.root or "~/.cache/fedforget/torchvision").expanduser()

    def read(train: bool) -> tuple[Examples, Sequence[str]]:
        try:
            source = getattr(known, task.path)(str(root), train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"torchvision cannot load task.path={task.path} from {root}: {error}") from error
        if not hasattr(source, "targets"):
            raise ValueError(f"task.path={task.path} has no class labels, so it is no classification task")
        examples = _raw(channels_first(np.asarray(source.data)), np.asarray(source.targets))
        return examples, tuple(map(str, getattr(source, "classes", ())))

    (train, titles), (test, _) = read(True), read(False)
    return Source(train, test, titles=titles)


def _parameters(kind: type) -> list[str]:
    return list(inspect.signature(kind).parameters)
