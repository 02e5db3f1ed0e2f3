"""Which columns of a table are the images, the labels and the ids: one choice for all splits, by name and type.

Only the schema is read to choose; labels and ids are read without the images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedforget.schema.data import TaskConfig, unknown

# What a label column may be called if task.label_column does not say, whatever the capitals. Another column, such as
# one of whole numbers that are the examples' owners, would be trained on without a word.
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "targets", "class", "classes")
SPLIT_WORDS = {"train": "training", "test": "test"}


@dataclass(frozen=True)
class Columns:
    """The names of the columns used.

    Args:
        image: of encoded images.
        label: of the classes.
        owner: of natural client ids; ``""`` without.
        record: of the examples' names; ``""`` without.
        titles: names of the labels 0, 1, ... that the schema gives.
    """

    image: str
    label: str
    owner: str
    record: str
    titles: tuple[str, ...]


def choose_columns(schemas: Mapping[str, Any], task: TaskConfig) -> Columns:
    """The columns used, given the ``pyarrow.Schema`` of each split (``train``, and ``test`` if there is one).

    Raises:
        ValueError: if a column is missing, ambiguous or of an unsuitable type, or splits differ in it.
    """
    first = schemas["train"]
    image = _image_column(first, task)
    label = _label_column(first, task, image)
    for field in ("id_column", "record_column"):
        wanted = getattr(task, field)
        if wanted and wanted not in first.names:
            raise unknown(f"task.{field}", wanted, first.names)
        if wanted and not is_name(first.field(wanted).type):
            raise ValueError(f"task.{field}={wanted} holds {first.field(wanted).type}; an id is a number or a text")
    for split, schema in schemas.items():
        for name, fits, kind in ((image, is_image, "images"), (label, is_label, "labels")):
            if name not in schema.names:
                raise ValueError(
                    f"the {SPLIT_WORDS[split]} examples have no column {name}, which the training examples have; "
                    f"their columns are {', '.join(schema.names)}"
                )
            if not fits(schema.field(name).type):
                raise ValueError(
                    f"column {name} of the {SPLIT_WORDS[split]} examples holds {schema.field(name).type}, no {kind}"
                )
    titles = {split: _titles(schema, label) for split, schema in schemas.items()}
    if len(set(titles.values())) > 1:
        raise ValueError(
            f"training and test examples name the labels in column {label} differently; give both the same"
        )
    return Columns(image, label, task.id_column, task.record_column, titles["train"])


def _image_column(schema: Any, task: TaskConfig) -> str:
    images = [field.name for field in schema if is_image(field.type)]
    wanted = task.input_column
    if wanted and wanted not in schema.names:
        raise unknown("task.input_column", wanted, schema.names)
    if wanted and wanted not in images:
        raise ValueError(
            f"task.input_column={wanted} is no image column; such columns are {', '.join(images) or 'absent'}"
        )
    if wanted or len(images) == 1:
        return wanted or images[0]
    if images:
        raise ValueError(f"there are several image columns ({', '.join(images)}); set task.input_column")
    raise ValueError(f"there is no image column; the columns are {', '.join(schema.names)}")


def _label_column(schema: Any, task: TaskConfig, image: str) -> str:
    wanted = task.label_column
    fitting = [field.name for field in schema if is_label(field.type)]
    if wanted and wanted not in schema.names:
        raise unknown("task.label_column", wanted, schema.names)
    if not wanted:
        called = [name for name in schema.names if name.lower() in LABEL_COLUMNS and name != image]
        called = [name for name in called if name not in (task.id_column, task.record_column)]
        if len(called) > 1:
            raise ValueError(f"there are several label columns ({', '.join(called)}); set task.label_column")
        if not called:
            raise ValueError(
                f"there is no column called {', '.join(LABEL_COLUMNS[:-1])} or {LABEL_COLUMNS[-1]}; set "
                f"task.label_column to that of the classes; the columns are {', '.join(schema.names)}"
            )
        wanted = called[0]
    if wanted not in fitting:
        raise ValueError(
            f"task.label_column={wanted} is no label column, for it holds {schema.field(wanted).type}; classes are "
            f"whole numbers, texts, booleans or one-hot lists; such columns are {', '.join(fitting) or 'absent'}"
        )
    return wanted


def is_image(kind: Any) -> bool:
    """Whether a type is one of encoded images: bytes, or a structure with them."""
    import pyarrow as pa

    encoded = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return encoded or pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def is_name(kind: Any) -> bool:
    """Whether a type can name owners and records: whole numbers or texts, in a dictionary or not."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_label(kind: Any) -> bool:
    """Whether a type can be one of labels; floats must also be whole, and lists one-hot (`read_labels`)."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_number(kind.value_type)
    return is_name(kind) or _is_number(kind)


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind)


def _titles(schema: Any, label: str) -> tuple[str, ...]:
    """The names that Hugging Face's ``datasets`` wrote into a schema for a label column; empty without."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def read_ids(column: Any, name: str) -> np.ndarray:
    """Ids or names of examples, from a ``pyarrow.ChunkedArray``: integers or objects ``[n]``.

    Raises:
        ValueError: if one is missing.
    """
    values = _values(column, name)
    return np.array(values, dtype=None if values and isinstance(values[0], int) else object)


def read_labels(column: Any, name: str) -> np.ndarray:
    """Labels as int64, bool or texts (objects) ``[n]``, from a ``pyarrow.ChunkedArray``.

    Raises:
        ValueError: if one is missing, no whole number, or a list is not one-hot.
    """
    values = _values(column, name)
    first = values[0] if values else 0
    if isinstance(first, list):
        return _one_hot(values, name)
    if isinstance(first, str):
        return np.array(values, dtype=object)
    if isinstance(first, float):
        odd = next((value for value in values if not value.is_integer()), None)
        if odd is not None:
            raise ValueError(f"label {odd} in column {name} is no whole number, so it names no class")
        values = [int(value) for value in values]
    try:
        return np.array(values, dtype=bool if isinstance(first, bool) else np.int64)
    except OverflowError as error:
        raise ValueError(f"label {max(values, key=abs)} in column {name} is no class; it is too large") from error


def _one_hot(rows: Sequence[list], name: str) -> np.ndarray:
    lengths = {len(row) for row in rows}
    flat = {value for row in rows for value in row}
    if len(lengths) != 1 or not flat <= {0, 1} or any(sum(row) != 1 for row in rows):
        raise ValueError(
            f"column {name} holds lists that are not one-hot (of one length, with a single 1 among zeros), "
            f"such as {str(rows[0])[:60]}; give each example one class"
        )
    return np.array([row.index(1) for row in rows], dtype=np.int64)


def _values(column: Any, name: str) -> list:
    """The values of a ``pyarrow.ChunkedArray``, of which none may be missing: null, or a float that is no number."""
    values = column.to_pylist()  # `to_numpy` would import pandas, a third of a second in every process that reads data
    refuse_missing(sum(value is None or value != value or value == "" for value in values), len(values), name)
    return values


def refuse_missing(missing: int, total: int, name: str) -> None:
    """The one sentence about a column without some of its values."""
    if missing:
        raise ValueError(f"column {name} lacks the values of {missing} of {total} examples")
