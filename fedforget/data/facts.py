"""What is known of a federation's data, to be printed and reported: files, columns, classes, owners, duplicates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedforget.data.classes import Classes

MOST_SHOWN = 20  # names in a line
MOST_FILES = 100  # names of files that travel, a split
MOST_LENGTH = 100  # characters of a name that travel


@dataclass(frozen=True)
class DataFacts:
    """What is known of a federation's data.

    Args:
        files: names of the files of each split of the source, whether used or not; empty where it has none.
        columns: the columns used, by role: ``image``, ``label``, ``owner``, ``record``.
        classes: the classes that occur, in the order of the network's outputs.
        train: training examples of each class, holdout splits included, before any corruption.
        test: test examples of each class.
        owners: natural owner of each client, by client id; empty unless clients are owners.
        equal: images of equal pixels: test images that are training images, too, and training images that occur at
            another client, too; ``None`` where not known.
        holder: the one client whose training examples are counted; ``None`` if all clients' are.
    """

    files: Mapping[str, tuple[str, ...]]
    columns: Mapping[str, str]
    classes: Classes
    train: tuple[int, ...]
    test: tuple[int, ...]
    owners: tuple[str, ...] = ()
    equal: tuple[int, int] | None = None
    holder: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with long names and lists of files cut; `from_dict` reads it."""
        files = {clip(split): [clip(name) for name in names[:MOST_FILES]] for split, names in self.files.items()}
        cut = {
            "files": files,
            "columns": {role: clip(name) for role, name in self.columns.items()},
            "classes": {"names": list(map(clip, self.classes.names)), "numbers": list(self.classes.numbers)},
            "owners": list(map(clip, self.owners)),
        }
        counts = {name: getattr(self, name) and list(getattr(self, name)) for name in ("train", "test", "equal")}
        return counts | cut | {"holder": self.holder}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DataFacts:
        """The facts that `to_dict` wrote.

        Raises:
            ValueError: if they are malformed.
        """
        if not isinstance(fields, Mapping) or set(fields) != {field.name for field in dataclasses.fields(cls)}:
            raise ValueError(f"facts about the data are {str(fields)[:MOST_LENGTH]}")
        files, columns, classes = fields["files"], fields["columns"], fields["classes"]
        equal, holder = fields["equal"], fields["holder"]
        right = (
            isinstance(files, Mapping)
            and all(map(_texts, [list(files), *files.values()]))
            and isinstance(columns, Mapping)
            and all(map(_texts, [list(columns), list(columns.values()), fields["owners"]]))
            and isinstance(classes, Mapping)
            and _texts(classes.get("names"))
            and all(map(_counts, [classes.get("numbers"), fields["train"], fields["test"]]))
            and len(classes["names"]) == len(fields["train"]) == len(fields["test"])
            and len(classes["numbers"]) in (0, len(classes["names"]))
            and (equal is None or _counts(equal) and len(equal) == 2)
            and (holder is None or _counts([holder]))
        )
        if not right:
            raise ValueError(f"facts about the data are {str(fields)[:MOST_LENGTH]}")
        return cls(
            {split: tuple(several) for split, several in files.items()},
            dict(columns),
            Classes(tuple(classes["names"]), tuple(classes["numbers"])),
            tuple(fields["train"]),
            tuple(fields["test"]),
            tuple(fields["owners"]),
            equal and (equal[0], equal[1]),
            holder,
        )

    def lines(self) -> list[tuple[str, str]]:
        """What is said of the data, as pairs of a heading and a text; nothing is said of what is not known."""
        columns = [f"{role} = {name}" for role, name in self.columns.items()]
        classes = [
            f"{name} ({train:,}/{test:,})"
            for name, train, test in zip(self.classes.names, self.train, self.test, strict=True)
        ]
        owners = [f"client {client} = {owner}" for client, owner in enumerate(self.owners)]
        whose = "" if self.holder is None else f", training examples of client {self.holder} alone"
        pairs = [(f"{split} files", _listed(names)) for split, names in self.files.items() if names]
        pairs += [
            ("columns", ", ".join(columns)),
            (f"{len(classes)} classes (train/test{whose})", _listed(classes)),
            ("owners", _listed(owners)),
            ("duplicates", self.duplicates),
        ]
        return [(heading, text) for heading, text in pairs if text]

    @property
    def duplicates(self) -> str:
        """What is said of images of equal pixels; empty where it is not known."""
        if self.equal is None:
            return ""
        test, clients = self.equal
        told = [
            f"{test:,} test image{' is' if test == 1 else 's are'} also {'a ' * (test == 1)}training "
            f"image{'s' * (test != 1)}",
            f"{clients:,} training image{' occurs' if clients == 1 else 's occur'} at more than one client",
        ]
        return "; ".join(text for text, count in zip(told, (test, clients), strict=True) if count) or "none"


def count_duplicates(alike: np.ndarray, parts: Sequence[np.ndarray], num_train: int) -> tuple[int, int]:
    """Test images that are training images, too, and training images that occur at another client, too.

    Args:
        alike: ``[N + M]``, equal for training and then test images of equal pixels.
        parts: each client's positions among the training images, holdout splits left out.
        num_train: N.
    """
    used = np.concatenate(list(parts))
    test = int(np.isin(alike[num_train:], alike[used]).sum())
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    pairs = np.unique(np.stack([alike[used], owner]), axis=1)  # each image once a client
    groups, homes = np.unique(pairs[0], return_counts=True)
    return test, int(np.isin(alike[used], groups[homes > 1]).sum())


def count_labels(labels: np.ndarray, classes: Classes) -> tuple[int, ...]:
    """How often each class occurs among labels ``[n]``."""
    return tuple(np.bincount(labels, minlength=len(classes.names)).tolist())


def clip(text: str) -> str:
    """A name, cut where it is too long to travel."""
    return text if len(text) <= MOST_LENGTH else text[: MOST_LENGTH - 3] + "..."


def _texts(values: object) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, str) for value in values)


def _counts(values: object) -> bool:
    return isinstance(values, (list, tuple)) and all(type(value) is int and value >= 0 for value in values)


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names):,} in all)" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more
