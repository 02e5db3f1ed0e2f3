"""The table of audit sets: what is asked when, and how much of it, stated by hand."""

from __future__ import annotations

import pytest

from fedforget.data import audit_sets
from fedforget.data.audit_sets import find


def test_what_is_asked_when() -> None:
    """The order is part of what stored answers are found by."""
    first = ("forget", "retain", "holdout", "test", "clients", "near", "far", "forget_layers", "holdout_layers")
    assert first == audit_sets.FIRST
    assert audit_sets.DRAWN == ("plane",)
    assert audit_sets.LATER == audit_sets.SCORED == ("forget", "retain", "holdout", "test")
    assert audit_sets.EXAMPLES == ("forget", "retain", "holdout", "test", "clients")
    assert audit_sets.COMPARED == ("forget", "retain", "test")
    assert audit_sets.KEPT == ("forget", "retain", "test", "plane", "canary")
    assert (*audit_sets.EXAMPLES, "canary", "noise", "trigger") == audit_sets.STATED
    planted = {kind: audit_sets.planted(kind) for kind in ("none", "canary", "label_swap", "noise", "trigger", "few")}
    empty: dict[str, tuple[str, ...]] = dict.fromkeys(("none", "label_swap", "few"), ())
    assert planted == empty | {kind: (kind,) for kind in ("canary", "noise", "trigger")}


def test_how_much_is_asked_and_under_which_name() -> None:
    assert [find(name).most(2000) for name in ("forget", "near", "far", "forget_layers", "plane")] == [
        2000, 400, 400, 64, 1600,
    ]  # fmt: skip
    assert [find(name).most(10) for name in ("forget", "near", "far", "forget_layers", "plane")] == [
        10, 10, 10, 10, 1600,
    ]  # fmt: skip
    renamed = {name: each.split for name, each in audit_sets.AUDIT_SETS.items() if each.split != name}
    assert renamed == {"clients": "holdout"}  # the retained clients' own, as the targets' is


def test_features_and_where_examples_come_from() -> None:
    of = {name: each.of for name, each in audit_sets.AUDIT_SETS.items() if each.of}
    layers = {"forget_layers": "forget", "holdout_layers": "holdout"}
    assert of == {"clients": "holdout", "near": "forget", "far": "test", **layers}
    assert all(other in audit_sets.AUDIT_SETS for other in of.values())
    kept = {name: (each.features, each.dtype) for name, each in audit_sets.AUDIT_SETS.items() if each.features}
    last, inside = ("last", "float16"), ("layers", "float16")
    expected = {"forget": last, "holdout": last, "clients": last, **dict.fromkeys(layers, inside)}
    assert kept == expected | {"noise": ("noise", "float32")}


def test_an_unknown_audit_set_is_refused() -> None:
    with pytest.raises(ValueError, match="audit set 'forgot' is unknown; choose one of forget, retain"):
        find("forgot")
