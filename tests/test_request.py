"""What to forget: validation, a canonical order, JSON and plain words."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedforget.request import UnlearningRequest, from_json, to_json

quick = settings(max_examples=50, deadline=None)
numbers = st.integers(0, 10**6)
after = st.one_of(st.none(), st.integers(1, 1000))
whole = st.tuples(st.sampled_from(["client", "class"]), st.lists(numbers, unique=True, max_size=5), after)
single = st.tuples(st.just("sample"), st.lists(st.tuples(numbers, numbers), unique=True, max_size=5), after)
requests = st.one_of(whole, single).map(lambda parts: UnlearningRequest(parts[0], tuple(parts[1]), parts[2]))


@quick
@given(st.lists(requests, max_size=4).map(tuple))
def test_json_round_trip(sequence: tuple[UnlearningRequest, ...]) -> None:
    assert from_json(to_json(sequence)) == sequence
    for request in sequence:
        assert UnlearningRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_json_form() -> None:
    request = UnlearningRequest("sample", ((2, 5), (1, 9)), after_round=4)
    assert request.to_dict() == {"scope": "sample", "targets": [[1, 9], [2, 5]], "after_round": 4}
    assert to_json(()) == "[]"
    assert to_json((request,)) == '[{"after_round": 4, "scope": "sample", "targets": [[1, 9], [2, 5]]}]'


@quick
@given(requests, st.randoms(use_true_random=False))
def test_the_order_of_targets_does_not_matter(request: UnlearningRequest, random: Random) -> None:
    shuffled = list(request.targets)
    random.shuffle(shuffled)
    other = UnlearningRequest(request.scope, tuple(shuffled), request.after_round)
    assert other == request and hash(other) == hash(request) and to_json((other,)) == to_json((request,))
    assert list(request.targets) == sorted(request.targets)


@pytest.mark.parametrize(
    ("scope", "targets", "after_round", "message"),
    [
        ("clients", (1,), None, "scope 'clients' is unknown; choose one of client, sample, class"),
        ("client", (-1,), None, "target -1 is negative"),
        ("class", (3, -2), None, "target -2 is negative"),
        ("sample", ((0, -1),), None, r"target \(0, -1\) is negative"),
        ("sample", ((-1, 0),), None, r"target \(-1, 0\) is negative"),
        ("client", (3, 1, 3), None, "name one target twice"),
        ("sample", ((1, 2), (1, 2)), None, "name one target twice"),
        ("client", (1,), 0, "after_round 0 must be at least 1"),
    ],
)
def test_what_is_refused(scope: str, targets: tuple, after_round: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnlearningRequest(scope, targets, after_round)


@pytest.mark.parametrize(
    ("scope", "targets"),
    [("sample", (3,)), ("sample", ((1, 2, 3),)), ("client", ((1, 2),)), ("client", ("one",)), ("client", (1.5,))],
)
def test_targets_of_the_wrong_form_are_refused(scope: str, targets: tuple) -> None:
    with pytest.raises(ValueError):
        UnlearningRequest(scope, targets)


def test_clients_and_positions() -> None:
    samples = UnlearningRequest("sample", ((4, 9), (2, 1), (4, 3)))
    assert samples.clients == (2, 4)
    assert samples.positions(4) == (3, 9)
    assert samples.positions(2) == (1,)
    assert samples.positions(0) == ()
    clients = UnlearningRequest("client", (7, 5))
    assert clients.clients == (5, 7) and clients.positions(5) == ()
    classes = UnlearningRequest("class", (0,))
    assert classes.clients == () and classes.positions(0) == ()


def test_one_position_at_two_clients_is_two_targets() -> None:
    assert UnlearningRequest("sample", ((1, 0), (2, 0))).clients == (1, 2)


@pytest.mark.parametrize(
    ("scope", "targets", "words"),
    [
        ("client", (3,), "client 3"),
        ("client", (4, 1), "clients 1, 4"),
        ("client", (), "nothing"),
        ("class", (0,), "class 0"),
        ("class", (9, 2), "classes 2, 9"),
        ("sample", ((1, 5), (1, 6), (3, 0), (3, 1), (3, 2)), "2 samples of client 1, 3 samples of client 3"),
        ("sample", (), "no samples"),
    ],
)
def test_words(scope: str, targets: tuple, words: str) -> None:
    assert str(UnlearningRequest(scope, targets)) == words


def test_requests_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        UnlearningRequest("client", (1,)).scope = "class"  # type: ignore[misc]
