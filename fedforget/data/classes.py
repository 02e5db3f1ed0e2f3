"""The classes of a task: labels of any type become 0..C-1, and keep their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_CLASSES = 100_000  # a column of more values holds ids, and every network would have an output for each
MOST_LISTED = 20  # classes in a sentence


@dataclass(frozen=True)
class Classes:
    """The classes that occur, in the order of the network's outputs.

    Args:
        names: what each is called: its name in the data, or its label as it is printed.
        numbers: the label itself, where labels are whole numbers (or booleans: 0 and 1); else empty.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...] = ()

    def index(self, wanted: int | str, key: str) -> int:
        """The class that a setting means: a whole number is the label itself, a text the class's name.

        Args:
            wanted: as the setting says; where labels are texts, a number means the text that prints alike.
            key: the setting, for the error.

        Raises:
            ValueError: if no such class occurs.
        """
        if isinstance(wanted, int) and self.numbers:
            found = [number for number, label in enumerate(self.numbers) if label == wanted]
        else:
            found = [number for number, name in enumerate(self.names) if name == str(wanted)]
        if not found:
            raise ValueError(f"{key}: class {wanted} does not exist; the classes are {self}")
        return found[0]

    def __str__(self) -> str:
        count = len(self.names)
        if self == numbered(count):
            return f"0 to {count - 1}"
        labels = map(str, self.numbers) if self.numbers else self.names
        pairs = zip(self.names, labels, strict=True)
        shown = [name if name == label else f"{name} ({label})" for name, label in pairs][:MOST_LISTED]
        return ", ".join(shown) + (f", ... ({count} in all)" if count > MOST_LISTED else "")


def numbered(count: int) -> Classes:
    """Classes 0 to ``count - 1`` without names of their own."""
    return Classes(tuple(map(str, range(count))), tuple(range(count)))


def encode(splits: Sequence[np.ndarray], titles: Sequence[str] = ()) -> tuple[Classes, list[np.ndarray]]:
    """Labels as classes 0..C-1, in sorted order over all splits; whole numbers 0..C-1 stay as they are.

    Args:
        splits: the labels of each split ``[n]``: int64, bool, or texts as objects.
        titles: names of the labels 0, 1, ... where the source gives them; for labels that are whole numbers only.

    Returns:
        The classes that occur, and each split's labels as int64 ``[n]``.

    Raises:
        ValueError: if splits hold labels of different types, a label is negative or has no name, or there are fewer
            than two classes or too many.
    """
    kinds = {labels.dtype.kind for labels in splits}
    if len(kinds) > 1:
        raise ValueError("labels are of one type in training and of another in test; give both the same")
    values = np.unique(np.concatenate(splits))
    whole = kinds <= {"i", "b"}
    if whole and values[0] < 0:
        raise ValueError(f"label {values[0]} is negative; classes count from 0")
    if len(values) > MOST_CLASSES:
        raise ValueError(f"there are {len(values)} different labels; a task has {MOST_CLASSES} classes at most")
    if kinds == {"b"}:
        titles = ("false", "true")
    numbers = tuple(int(value) for value in values) if whole else ()
    names = tuple(str(value) for value in (numbers or values))
    if whole and titles:
        if numbers[-1] >= len(titles):
            raise ValueError(f"label {numbers[-1]} has no name; the data name labels 0 to {len(titles) - 1}")
        names = tuple(titles[number] for number in numbers)
    if len(values) == 1:
        raise ValueError(f"all labels are {names[0]}; a task needs two classes at least")
    if len(set(names)) != len(names):
        raise ValueError(f"two labels have one name; the names are {', '.join(names[:MOST_LISTED])}")
    return Classes(names, numbers), [np.searchsorted(values, labels).astype(np.int64) for labels in splits]
