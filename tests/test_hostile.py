"""Nodes that answer what nobody should believe: it harms nobody but the client that it is about, and is named.

A client is left out only if its own answer is wrong twice. Expected values are those of an undisturbed federation.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from fedforget import client_app, messages, routines
from fedforget.checks import MOST_SAID, Asked, miscount, shared_work
from fedforget.cohort import LATE, AuditFailed, Cohort, describe
from fedforget.exchange import Replies
from fedforget.grid import InProcessGrid
from fedforget.messages import POOL, Work
from fedforget.params import Layout
from fedforget.routines import LocalConfig, hessian_layout
from fedforget.testing import REQUESTS, Toy

ILL, SIZE = 3, 650
Change = Callable[[Work, dict, dict], object]


def tampered(change: Change, kind: str = messages.TRAIN, nodes: tuple[int, ...] = (1, 2)):
    """The ClientApp, whose answers are changed on some nodes: those about client 3, if they are about clients."""

    def app(message, context):
        reply = client_app.app(message, context)
        work, _ = messages.unpack(message.content)
        concerned = kind != messages.TRAIN or ILL in work.clients
        if message.metadata.message_type != kind or context.node_id not in nodes or not concerned:
            return reply
        arrays, report = messages.unpack_reply(reply.content)
        arrays = {name: np.array(array) for name, array in arrays.items()}
        change(work, arrays, report)
        return Message(messages.pack_reply(arrays, report), reply_to=message)

    return app


def cohort(folder: Path, app=client_app.app, grid: type[InProcessGrid] = InProcessGrid) -> tuple[Cohort, Toy]:
    toy = Toy(folder)
    toy.task = replace(toy.task, mode="sequential")
    made = toy.cohort()
    made.grid, made.task = grid(app, 2), toy.task
    return made, toy


def equal(replies: Replies, others: Replies) -> bool:
    assert [reply.client for reply in replies] == [reply.client for reply in others]
    return all(
        a.update.equals(b.update) and a.num_examples == b.num_examples for a, b in zip(replies, others, strict=True)
    )


def says(**fields) -> Change:
    """Client 3's report has other fields; ``...`` takes one away."""

    def change(work, arrays, report):
        entry = {**report[str(ILL)], **fields}
        report[str(ILL)] = {name: value for name, value in entry.items() if value is not ...}

    return change


def sends(make: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Client 3's vector is another."""

    def change(work, arrays, report):
        arrays[str(ILL)] = make(arrays[str(ILL)])

    return change


def unnamed(work, arrays, report):
    del report[str(ILL)]


def renamed(work, arrays, report):
    """Client 3's node says that its answer is client 99's."""
    arrays["99"], report["99"] = arrays.pop(str(ILL)), report.pop(str(ILL))


def sum_nobody_wanted(work, arrays, report):
    report[str(ILL)]["pooled"] = True
    arrays[POOL] = 1e6 * np.ones(SIZE)


ALONE = {
    "a negative number of examples": (says(num_examples=-5), "says num_examples=-5"),
    "none, and yet a vector": (says(num_examples=0), "says num_examples=0, but holds"),
    "not a number of examples": (says(num_examples=math.nan), "says num_examples=nan"),
    "more examples than it has": (says(num_examples=10**9), "says num_examples=1000000000, but holds"),
    "a fraction of examples": (says(num_examples=7.5), "says num_examples=7.5"),
    "true examples": (says(num_examples=True), "says num_examples=True"),
    "examples in words": (says(num_examples="7"), "says num_examples='7'"),
    "no number of examples": (says(num_examples=...), "says num_examples=None"),
    "no steps": (says(steps=...), "says steps=None"),
    "one step more": (says(steps=1000), r"says 1000 steps over \d+ examples, but \d+ examples ask for"),
    "one example less": (says(examples=1), r"says \d+ steps over 1 examples, but"),
    "more examples than atoms": (says(examples=10**30), f"over {10**30} examples, but"),
    "a bill beyond any disk": (says(bytes=10**40), f"says bytes={10**40} of a vector of 650 numbers"),
    "half of the bytes": (says(bytes=1300), "says bytes=1300 of a vector of 650 numbers"),
    "nothing sent": (says(bytes=0), "says bytes=0 of a vector of 650 numbers"),
    "a day for a moment's work": (says(seconds=86400.0), r"says seconds=86400.0, but was asked 0\.\d s ago"),
    "no time": (says(seconds=math.nan), "says seconds=nan"),
    "a loss beyond floats": (says(loss=10**400), "says loss="),
    "a number beyond reading": (says(examples=10**4000), "says .* steps over"),
    "a bill below zero": (says(bytes=-1), "says bytes=-1"),
    "an endless time": (says(seconds=math.inf), "says seconds=inf"),
    "a time before its start": (says(seconds=-1.0), "says seconds=-1.0"),
    "a loss in words": (says(loss="low"), "says loss='low'"),
    "whole numbers": (sends(lambda v: (1000 * v).astype(np.int64)), "sent a vector of int64, expected float32"),
    "half precision": (sends(lambda v: v.astype(np.float16)), "sent a vector of float16, expected float32"),
    "double precision": (sends(lambda v: v.astype(np.float64)), "sent a vector of float64, expected float32"),
    "one more axis": (sends(lambda v: v[None]), r"sent a vector of shape \(1, 650\)"),
    "nothing about it": (unnamed, "its node's answer does not name it"),
    "another's name": (renamed, "its node's answer does not name it"),
    "a sum": (sum_nobody_wanted, "is in a sum that was not asked for"),
    "a novel": (says(error="x\n" * 10**5), r"\.\.\. +x x x"),
}


@pytest.mark.parametrize("case", list(ALONE))
def test_a_wrong_answer_leaves_out_its_client_alone(tmp_path, case):
    change, reason = ALONE[case]
    ill, toy = cohort(tmp_path, tampered(change))
    replies = ill.train(toy.start, range(6), round=1)
    assert equal(replies, cohort(tmp_path)[0].train(toy.start, [0, 1, 2, 4, 5], round=1))
    (note,) = ill.notes
    assert note.startswith(f"round 1: client {ILL} left out (") and len(note) < MOST_SAID + 100 and "\n" not in note
    assert re.search(reason, note)
    assert 0 < ill.cost.seconds < math.inf and ill.cost.client_steps > 0


@pytest.mark.parametrize("scope", ["client", "sample", "class"])
@pytest.mark.parametrize("split", ["train", "retain", "forget"])
def test_a_weight_is_bounded_by_the_split_that_was_asked(tmp_path, scope, split):
    """Client 2's own number is believed; one more than it has in this split is not."""
    well, toy = cohort(tmp_path)
    well.request = REQUESTS[scope]
    most = well._most(split)
    honest = well.train(toy.start, [2], round=1, split=split)
    if (scope, split) == ("client", "retain"):
        assert not honest and 2 not in most  # it keeps nothing
        return
    assert [reply.num_examples for reply in honest] == [most[2]] and most[2] <= well.federation.num_train[2]
    assert well.notes == []

    def inflated(work, arrays, report):
        report["2"]["num_examples"] += 1

    ill, _ = cohort(tmp_path, tampered_everywhere(inflated))
    ill.request, ill.min_share = REQUESTS[scope], 0.0
    assert not ill.train(toy.start, [2], round=1, split=split)
    assert f"client 2 left out (says num_examples={most[2] + 1}, but holds {most[2]})" in ill.notes[0]


def tampered_everywhere(change: Change):
    """The ClientApp, whose answers to all training are changed."""

    def app(message, context):
        reply = client_app.app(message, context)
        work, _ = messages.unpack(message.content)
        arrays, report = messages.unpack_reply(reply.content)
        change(work, arrays, report)
        return Message(messages.pack_reply(arrays, report), reply_to=message)

    return app


@pytest.mark.parametrize("name", ["train", "gradient", "fisher", "hvp", "hessian"])
@pytest.mark.parametrize("options", [{}, {"epochs": 3}, {"steps": 7, "batch_size": 9}, {"effort": 0.3, "epochs": 2}])
def test_the_bills_of_shared_routines_are_known_to_the_server(tmp_path, name, options):
    """What every client bills is what `checks.shared_work` says, alone and in a sum, and is billed."""
    well, toy = cohort(tmp_path)
    layout = hessian_layout(SIZE) if name == "hessian" else None
    vectors = {"v": toy.start} if name == "hvp" else None
    clients = range(2) if name == "hessian" else range(6)
    ask = {"routine": getattr(routines, name), "vectors": vectors, "layout": layout, **options}
    replies = well.train(toy.start, clients, round=1, **ask)
    assert len(replies) == len(clients) and well.notes == []
    local = toy.task.local.with_options(options)
    asked = Asked(
        f"fedforget.routines:{name}",
        local,
        options.get("effort", 1.0),
        bool(vectors),
        SIZE,
        layout or toy.start.layout,
        np.dtype("float32"),
        {},
    )
    bills = [shared_work(asked, reply.num_examples) for reply in replies]
    assert (well.cost.client_steps, well.cost.client_examples) == tuple(map(sum, zip(*bills, strict=True)))
    if name != "hessian":
        pooled = cohort(tmp_path)[0]
        pooled.reduce(toy.start, clients, round=1, **ask)
        assert pooled.notes == [] and pooled.cost.client_examples == well.cost.client_examples


def test_a_strategys_own_routine_may_bill_much_but_not_anything():
    layout = Layout(("w",), ((10,),))
    asked = Asked(
        "strategies.mine:work", LocalConfig(batch_size=10), 1.0, 0, 10, layout, np.dtype("float32"), {0: 50}, 1
    )
    entry = {"num_examples": 50, "steps": 5, "examples": 50, "bytes": 40, "loss": 0.0, "seconds": 0.5}
    vector = np.ones(10, np.float32)
    for believed in ({}, {"examples": 1000 * 50}, {"steps": 5000}, {"steps": 0, "examples": 0}, {"loss": math.inf}):
        assert miscount(0, {**entry, **believed}, vector, asked) == "", believed
    for wrong in ({"examples": 10**30}, {"steps": 5001}, {"bytes": 44}, {"seconds": 10}, {"num_examples": 51}):
        assert miscount(0, {**entry, **wrong}, vector, asked), wrong
    sparse = np.where(np.arange(10) < 3, vector, 0)
    assert miscount(0, {**entry, "bytes": 3 * 4 + 2}, sparse, asked) == "", "three entries and a bitmap"
    assert miscount(0, {**entry, "bytes": 3 * 4 + 2}, vector, asked), "ten entries do not fit"
    matrix = replace(asked, layout=Layout(("H",), ((10, 10),)))
    assert miscount(0, {**entry, "bytes": 400, "steps": 50_000}, np.ones(100, np.float32), matrix) == ""


def test_a_node_cannot_answer_for_another_nodes_client(tmp_path):
    """Beside its own clients the node of client 3 answers for all others, with vectors of its own."""

    def change(work, arrays, report):
        for client in set(range(6)) - set(work.clients):
            arrays[str(client)], report[str(client)] = 1e3 * np.ones(SIZE, np.float32), dict(report[str(ILL)])

    ill, toy = cohort(tmp_path, tampered(change))
    well = cohort(tmp_path)[0]
    assert equal(ill.train(toy.start, range(6), round=1), well.train(toy.start, range(6), round=1))
    assert ill.notes == [] and ill.cost.client_steps == well.cost.client_steps


def spoils_the_sum(work, arrays, report):
    arrays[POOL][7] = math.nan


def narrows_the_sum(work, arrays, report):
    arrays[POOL] = arrays[POOL].astype(np.float32)


def loses_the_sum(work, arrays, report):
    del arrays[POOL]


def weighs_nothing(work, arrays, report):
    """Whoever is in the same sum is asked again: what client 3 added cannot be taken out."""
    report[str(ILL)]["num_examples"] = -1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (spoils_the_sum, "sent NaN or infinite values"),
        (narrows_the_sum, "sent a vector of float32, expected float64"),
        (loses_the_sum, "sent no vector"),
        (weighs_nothing, "says num_examples=-1"),
    ],
)
def test_a_spoiled_sum_costs_nobody_else_a_round(tmp_path, change, reason):
    ill, toy = cohort(tmp_path, tampered(change))
    expected = cohort(tmp_path)[0].train(toy.start, [0, 1, 2, 4, 5], round=1)
    mean = ill.reduce(toy.start, range(6), round=1)
    assert ill.last_replies.weights().keys() == {0, 1, 2, 4, 5}
    assert mean.equals(Replies(expected, scale=ill.last_replies.scale).mean())
    (note,) = ill.notes
    assert f"client {ILL} left out ({reason}" in note


def test_a_sum_of_nobody_is_not_added(tmp_path):
    def change(work, arrays, report):
        arrays[POOL] = 1e6 * np.ones(SIZE)

    ill, toy = cohort(tmp_path, tampered(change))
    well = cohort(tmp_path)[0]
    assert ill.train(toy.start, range(6), round=1).mean().equals(well.train(toy.start, range(6), round=1).mean())


class Tardy(InProcessGrid):
    """Hands out each answer about client 3 with the answers to the next messages, when it was given up."""

    def send_and_receive(self, messages_, *, timeout=None):
        sent = list(messages_)
        replies = super().send_and_receive(sent)
        about = {m.metadata.message_id for m in sent if ILL in messages.unpack(m.content)[0].clients}
        late, self.late = getattr(self, "late", []), [r for r in replies if r.metadata.reply_to_message_id in about]
        return late + [reply for reply in replies if reply not in self.late]


def test_an_answer_to_a_message_that_was_given_up_enters_no_other_round(tmp_path):
    ill, toy = cohort(tmp_path, grid=Tardy)
    well = cohort(tmp_path)[0]
    first = ill.train(toy.start, range(6), round=1)
    assert equal(first, well.train(toy.start, [0, 1, 2, 4, 5], round=1))
    assert ill.notes == [f"round 1: client {ILL} left out ({LATE})"]
    assert equal(ill.train(toy.start, [0, 1, 2], round=2), well.train(toy.start, [0, 1, 2], round=2))
    assert len(ill.notes) == 1


def test_an_answer_that_comes_twice_counts_once(tmp_path):
    class Stammering(InProcessGrid):
        def send_and_receive(self, messages_, *, timeout=None):
            replies = super().send_and_receive(messages_)
            return [*replies, *replies]

    ill, toy = cohort(tmp_path, grid=Stammering)
    well = cohort(tmp_path)[0]
    assert ill.reduce(toy.start, range(6), round=1).equals(well.reduce(toy.start, range(6), round=1))
    assert ill.cost.client_steps == well.cost.client_steps


# ---------------------------------------------------------------------- audits

SETS = {"forget": 20, "holdout": 20, "test": 40, "near": 20, "forget_layers": 8}


def in_answers(**changes) -> Change:
    def change(work, arrays, report):
        for name, make in changes.items():
            arrays[name] = make(arrays[name])

    return change


def without(name: str) -> Change:
    return lambda work, arrays, report: arrays.pop(name)


def counts(size: object) -> Change:
    def change(work, arrays, report):
        report["0"]["examples"] = size

    return change


ANSWERS = {
    "no logits": (without("logits"), "sent nothing as logits"),
    "too few logits": (in_answers(logits=lambda a: a[1:]), r"sent float32 \(\d+, 10\) as logits"),
    "more classes": (in_answers(logits=lambda a: np.pad(a, ((0, 0), (0, 1)))), r"sent float32 \(\d+, 11\) as logits"),
    "labels beyond the classes": (in_answers(labels=lambda a: a + 10), "sent labels that are no classes below 10"),
    "negative labels": (in_answers(labels=lambda a: a - 10), "sent labels that are no classes below 10"),
    "rows in float": (in_answers(rows=lambda a: a.astype(np.float32)), "sent float32 .* as rows"),
    "fewer than none": (counts(-1), "has -1 examples"),
    "more than asked for": (counts(10**9), "has 1000000000 examples"),
    "not a number": (counts(math.nan), "has nan examples"),
    "no number": (counts(None), "has None examples"),
    "no report": (lambda work, arrays, report: report.clear(), "has None examples"),
}


@pytest.mark.parametrize("case", list(ANSWERS))
def test_a_wrong_answer_to_an_audit_is_asked_for_elsewhere_or_refused(tmp_path, case):
    change, reason = ANSWERS[case]
    (well, toy), (ill, _), (worse, _) = (
        cohort(tmp_path, tampered(change, messages.EVALUATE, nodes)) for nodes in ((), (2,), (1, 2))
    )
    for each in (well, ill, worse):
        each.request = REQUESTS["client"]
    answers, others = ill.evaluate(toy.start, SETS), well.evaluate(toy.start, SETS)
    for name, mine in answers.items():
        assert all(a is b or np.array_equal(a, b) for a, b in zip(mine, others[name], strict=True)), name
    with pytest.raises(AuditFailed, match=f"a node could not evaluate a model: .*{reason}"):
        worse.evaluate(toy.start, SETS)


@pytest.mark.parametrize("name", ["forget", "holdout", "forget_layers"])
def test_an_audit_without_its_features_is_refused(tmp_path, name):
    ill, toy = cohort(tmp_path, tampered(without("0/features"), messages.EVALUATE))
    ill.request = REQUESTS["client"]
    with pytest.raises(AuditFailed, match=f"sent no features of {name}"):
        ill.evaluate(toy.start, {name: 8})


# ---------------------------------------------------------------------- descriptions


def of_client(**fields) -> Change:
    return lambda work, arrays, report: report["0"].update(fields)


def of_node(**fields) -> Change:
    return lambda work, arrays, report: report["node"].update(fields)


def of_facts(**fields) -> Change:
    return lambda work, arrays, report: report["node"]["facts"].update(fields)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda work, arrays, report: report.pop("node"), "cannot be read"),
        (lambda work, arrays, report: report.update({"two": report["0"]}), "cannot be read"),
        (lambda work, arrays, report: report.update({"-1": report["0"]}), "cannot be read"),
        (of_client(num_train=10**9), "cannot be read"),
        (of_client(class_counts=[1, 2]), "cannot be read"),
        (of_client(class_counts=None), "cannot be read"),
        (of_client(num_train=-10, class_counts=[-1] * 10), "cannot be read"),
        (of_client(num_train=10, class_counts=[1] * 10), "two SuperNodes hold different data of client 0"),
        (of_node(device=7), "cannot be read"),
        (of_client(num_train=10**30, class_counts=[10**30] + [0] * 9), "cannot be read"),
        (of_client(num_train=7.5), "cannot be read"),
        (lambda work, arrays, report: report.update({"0": [1]}), "cannot be read"),
        (lambda work, arrays, report: report.update({"007": report["0"]}), "cannot be read"),
        (lambda work, arrays, report: report.update({"9" * 99: report["0"]}), "cannot be read"),
        *[(lambda work, arrays, report, it=it: report.update(node=it), "cannot be read") for it in (None, [], "x", 3)],
        *[(of_node(error=it), "cannot be read") for it in (None, 3, ["x"])],
        *[(of_node(num_classes=it), "cannot be read") for it in ("ten", 1, -10, 10.0, True, 10**9, None)],
        *[(of_node(num_test=it), "cannot be read") for it in (0, -1, 2.5, "3", 10**30, 359)],
        *[(of_node(data=it), "cannot be read") for it in ("", None, 7)],
        *[(of_node(device=it), "cannot be read") for it in ("", "tpu", ["cpu"])],
        *[(of_node(torch=it), "cannot be read") for it in (None, 2)],
        *[
            (of_node(input_shape=it), "cannot be read")
            for it in (
                [],
                [1, 8],
                [1, 8, 8, 8],
                [1, 0, 8],
                [1, -8, 8],
                [1, 8.0, 8],
                ["1", 8, 8],
                [10**9] * 3,
                "188",
                None,
            )
        ],
        *[
            (of_node(corruption=it), "cannot be read")
            for it in (
                None,
                [],
                "noise",
                {"kind": "noise"},
                {"kind": "magic", "positions": {}},
                {"kind": ["noise"], "positions": {}},
                {"kind": "noise", "positions": [1]},
                {"kind": "noise", "positions": {"0": 3}},
                {"kind": "noise", "positions": {"0": [-1]}},
                {"kind": "noise", "positions": {"0": ["1"]}},
                {"kind": "noise", "positions": {"zero": [1]}},
            )
        ],
        *[(of_node(facts=it), "cannot be read") for it in (None, [], {}, "x", {"files": {}})],
        *[
            (of_facts(**{name: it}), "cannot be read")
            for name, it in {
                "files": {"train": "x"},
                "columns": {"label": 3},
                "classes": {"names": ["a"] * 9, "numbers": []},
                "train": [1] * 9,
                "test": [-1] * 10,
                "owners": {"0": "a"},
                "equal": [1],
                "holder": -1,
                "other": 1,
            }.items()
        ],
        (of_node(data="other"), "two SuperNodes hold different data"),
    ],
)
def test_a_wrong_description_is_one_sentence(tmp_path, change, complaint):
    toy = Toy(tmp_path)
    with pytest.raises(ValueError, match=complaint) as caught:
        describe(InProcessGrid(tampered(change, messages.DESCRIBE, (2,)), 2), toy.task)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < MOST_SAID + 200


# ---------------------------------------------------------------------- messages to a node


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{}", "[]", '{"task": {}}', json.dumps({"task": "[" * 100_000, "seeds": {"root": 0, "path": []}})],
)
def test_a_message_that_is_none_is_answered_with_an_error(tmp_path, text):
    content = messages.pack(Work("{}", Toy(tmp_path).seeds))
    content.config_records[messages.WORK]["json"] = text
    grid = InProcessGrid(client_app.app, 1)
    for kind in (messages.TRAIN, messages.EVALUATE, messages.DESCRIBE):
        (reply,) = grid.send_and_receive([Message(content, 1, kind)])
        said = reply.error.reason if reply.has_error() else reply.content.config_records[messages.REPORT]["json"]
        assert "rror" in str(said)
