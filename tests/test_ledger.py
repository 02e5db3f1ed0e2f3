"""Costs add up, and compare as ratios."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedforget.ledger import Cost

costs = st.builds(Cost, *[st.integers(0, 10**9)] * 6, st.integers(0, 1000).map(float))
quick = settings(max_examples=25, deadline=None)


def test_addition_by_hand() -> None:
    total = Cost(1, 2, 3, 4, 5, 6, 0.5) + Cost(10, 20, 30, 40, 50, 60, 0.25)
    assert total == Cost(11, 22, 33, 44, 55, 66, 0.75)
    assert sum([Cost(rounds=1), Cost(rounds=2)], Cost()) == Cost(rounds=3)


@quick
@given(costs, costs, costs)
def test_costs_form_a_sum(a: Cost, b: Cost, c: Cost) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Cost() == a


@quick
@given(costs)
def test_to_dict_round_trips(cost: Cost) -> None:
    assert Cost(**cost.to_dict()) == cost  # type: ignore[arg-type]
    assert list(cost.to_dict()) == [field.name for field in fields(Cost)]


def test_speedup_by_hand() -> None:
    strategy = Cost(rounds=2, client_examples=50, bytes_up=8, bytes_stored=999, seconds=0.5)
    oracle = Cost(rounds=10, client_steps=7, client_examples=25, bytes_up=8, bytes_stored=1, seconds=2.0)
    ratios = strategy.speedup_over(oracle)
    assert math.isnan(ratios.pop("bytes_down"))  # neither spent anything
    assert ratios == {
        "rounds": 5.0,  # 10 / 2
        "client_steps": math.inf,  # 7 / 0
        "client_examples": 0.5,  # 25 / 50: dearer than the oracle
        "bytes_up": 1.0,
        "seconds": 4.0,
    }


def test_what_costs_something_where_the_other_costs_nothing_has_speedup_zero() -> None:
    assert Cost(rounds=3).speedup_over(Cost())["rounds"] == 0.0


@quick
@given(costs)
def test_nothing_is_faster_than_itself(cost: Cost) -> None:
    for name, ratio in cost.speedup_over(cost).items():
        assert ratio == 1.0 if getattr(cost, name) else math.isnan(ratio)


def test_storage_has_no_speedup() -> None:
    with pytest.raises(KeyError):
        Cost().speedup_over(Cost())["bytes_stored"]
