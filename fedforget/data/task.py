"""Which data set: the settings of a task."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from fedforget.names import nearest

SOURCES = ("digits", "folder", "hub", "torchvision", "holder")
MODES = ("", "L", "RGB")
COLUMNS = ("input_column", "label_column", "id_column", "record_column")


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
        label_column: the classes: whole numbers, texts, booleans, a dictionary type or one-hot lists; ``""`` means the
            one of `fedforget.data.columns.LABEL_COLUMNS` that there is. Another column is never guessed.
        id_column: natural client ids (writers, hospitals), for ``partition.kind=natural``.
        record_column: names of examples, by which ``request.records`` names them.
        mode: ``L`` (8-bit grey) or ``RGB``: what images are converted to, from palettes, transparency (which is
            dropped), 1 bit or 16 bits (65535 becomes 255) a pixel, or from each other; ``""`` takes 8-bit grey or RGB
            images as they are, and no others.
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
    record_column: str = ""
    mode: str = ""
    test_share: float = 0.2
    max_train: int = 0
    max_test: int = 0

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise unknown("task.source", self.source, SOURCES)
        if self.source not in ("digits", "holder") and not self.path:
            raise ValueError(f"task.source={self.source} needs task.path, but it is empty")
        if self.mode not in MODES:
            raise unknown("task.mode", self.mode, MODES[1:])
        for field in ("id_column", "record_column", "mode"):
            if getattr(self, field) and self.source not in ("folder", "hub"):
                raise ValueError(
                    f"task.{field}={getattr(self, field)} needs task.source=folder or hub, not {self.source}"
                )
        columns = [field for field in COLUMNS if getattr(self, field)]
        for one, other in itertools.combinations(columns, 2):
            if getattr(self, one) == getattr(self, other) and {one, other} != {"id_column", "record_column"}:
                raise ValueError(f"task.{one} and task.{other} are both {getattr(self, one)}; name two columns")
        if not 0 < self.test_share < 1:
            raise ValueError(f"task.test_share={self.test_share} must be above 0 and below 1")
        for field in ("max_train", "max_test"):
            if getattr(self, field) < 0:
                raise ValueError(f"task.{field}={getattr(self, field)} must be at least 0 (0 takes all)")
            if self.source == "holder" and getattr(self, field):
                raise ValueError(f"task.{field}={getattr(self, field)}, but task.source=holder takes all; use 0")
