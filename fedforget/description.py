"""What a node says of itself when it is asked (``query.describe``), checked before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from fedforget.data.classes import MOST_CLASSES
from fedforget.data.facts import DataFacts
from fedforget.schema.data import CORRUPTIONS

MOST_EXAMPLES = 10**12  # of a class at a client: more are a mistake, and would be billed
MOST_VALUES = 2**28  # of one image: the server makes a model for it
DEVICES = ("cpu", "cuda")


def read_description(report: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, list[int]]]:
    """What a node says of itself, and the class counts of the clients that it hosts.

    Args:
        report: ``node`` holds what the node says of itself: only ``error``, a sentence, if it cannot work; else what
            `_wrong_facts` asks for. Every other key is a client's id, with its ``num_train`` and ``class_counts``.

    Raises:
        ValueError: if anything is missing, of another type or out of range.
    """
    about = report.get("node")
    if not isinstance(about, dict):
        raise ValueError(f"it says {about!r} of itself")
    if "error" in about:
        if not isinstance(about["error"], str):
            raise ValueError(f"its error is {about['error']!r}")
        return about, {}
    wrong = _wrong_facts(about)
    clients: dict[int, list[int]] = {}
    for name, entry in report.items():
        if name == "node":
            continue
        if not _is_client(name, entry, about):
            wrong[f"client {name}"] = entry
        else:
            clients[int(name)] = entry["class_counts"]
    if wrong:
        raise ValueError(f"it says {wrong}")
    return about, clients


def _wrong_facts(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a node says of itself that cannot be, by name."""
    shape, classes, test = about.get("input_shape"), about.get("num_classes"), about.get("num_test")
    right = {
        "device": isinstance(about.get("device"), str) and about["device"].partition(":")[0] in DEVICES,
        "torch": isinstance(about.get("torch"), str),
        "data": isinstance(about.get("data"), str) and about["data"] != "",
        "input_shape": isinstance(shape, list)
        and len(shape) == 3
        and all(_is_count(size) and size > 0 for size in shape)
        and math.prod(shape) <= MOST_VALUES,
        "num_classes": _is_count(classes) and 2 <= classes <= MOST_CLASSES,
        "num_test": _is_count(test) and test > 0,
        "corruption": _is_corruption(about.get("corruption")),
    }
    wrong = {name: about.get(name) for name, holds in right.items() if not holds}
    try:
        facts = DataFacts.from_dict(about.get("facts", {}))
    except ValueError as error:
        return wrong | {"facts": str(error)}
    if len(facts.classes.names) != classes or sum(facts.test) != test:
        wrong["facts"] = f"{len(facts.classes.names)} classes and {sum(facts.test)} test examples"
    return wrong


def _is_corruption(record: object) -> bool:
    """Whether a record of corrupted positions is of the form of `fedforget.data.FederatedData.record`."""
    if record == {}:
        return True
    return (
        isinstance(record, dict)
        and record.keys() == {"kind", "positions"}
        and record["kind"] in CORRUPTIONS
        and isinstance(record["positions"], dict)
        and all(_is_id(client) for client in record["positions"])
        and all(isinstance(places, list) and all(map(_is_count, places)) for places in record["positions"].values())
    )


def _is_client(name: str, entry: object, about: Mapping[str, Any]) -> bool:
    if not _is_id(name) or not isinstance(entry, dict):
        return False
    counts = entry.get("class_counts")
    return (
        isinstance(counts, list)
        and len(counts) == about.get("num_classes")
        and all(map(_is_count, counts))
        and type(entry.get("num_train")) is int
        and sum(counts) == entry["num_train"]
    )


def _is_id(name: object) -> bool:
    return isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < 10 and str(int(name)) == name


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MOST_EXAMPLES
