"""Options of strategies: what is stated once is checked once, wherever a Config is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from fedforget.options import Range, option
from fedforget.strategy import UnlearningStrategy


class Mine(UnlearningStrategy):
    @dataclass(frozen=True)
    class Config:
        rounds: int = option(2, "rounds", symbol="R", at_least=1, search=(1, 4, "int"))
        share: float = option(0.5, "share", above=0, at_most=1, search=(0.1, 1.0, "log"))
        kind: str = option("a", "kind", choices=("a", "b"), search=("a", "b"))
        drops: tuple[int, ...] = option((3, 5), "drops", at_least=1)
        free: float = option(0.0, "anything")

    def unlearn(self, request, history, cohort):
        yield history.final


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"rounds": 0}, "strategy.test_options.rounds is 0, but must be at least 1"),
        ({"rounds": True}, "strategy.test_options.rounds is True, but must be a finite number"),
        ({"share": 0.0}, r"strategy.test_options.share is 0.0, but must be in \(0, 1\]"),
        ({"share": float("nan")}, "strategy.test_options.share is nan, but must be a finite number"),
        ({"share": "much"}, "strategy.test_options.share is 'much', but must be a finite number"),
        ({"kind": "c"}, "strategy.test_options.kind is 'c', but must be one of a, b"),
        ({"drops": (3, 0)}, r"strategy.test_options.drops\[1\] is 0, but must be at least 1"),
    ],
)
def test_a_bad_value_is_refused_when_the_config_is_made(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Mine.Config(**values)
    with pytest.raises(ValueError, match=complaint):
        replace(Mine.Config(), **values)


def test_a_condition_of_two_fields_sees_values_within_their_ranges() -> None:
    class Both(UnlearningStrategy):
        @dataclass(frozen=True)
        class Config:
            low: int = option(1, "low", at_least=1)
            high: int = option(2, "high", at_least=1)

            def __post_init__(self) -> None:
                if self.high % self.low:
                    raise ValueError("high is no multiple of low")

    with pytest.raises(ValueError, match="low is 0, but must be at least 1"):
        Both.Config(low=0)
    with pytest.raises(ValueError, match="no multiple"):
        Both.Config(low=3)


def test_good_values_are_taken() -> None:
    config = Mine.Config(1, 1.0, "b", (), -7.5)
    assert (config.rounds, config.share, config.kind, config.drops, config.free) == (1, 1.0, "b", (), -7.5)


@pytest.mark.parametrize(
    ("ends", "words", "inside", "outside"),
    [
        ({"at_least": 1}, "at least 1", [1, 2], [0.5]),
        ({"above": 0}, "above 0", [0.1], [0, -1]),
        ({"at_most": 5}, "at most 5", [5, -9], [6]),
        ({"below": 5}, "below 5", [4], [5]),
        ({"at_least": 0, "below": 1}, "in [0, 1)", [0, 0.9], [1, -0.1]),
        ({"above": 0, "at_most": 1}, "in (0, 1]", [1, 0.1], [0, 1.1]),
    ],
)
def test_ranges(ends: dict[str, float], words: str, inside: list[float], outside: list[float]) -> None:
    numbers = Range(**ends)
    assert str(numbers) == words
    assert all(map(numbers.holds, inside)) and not any(map(numbers.holds, outside))


def test_an_option_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="default of the option 'share' is 0, but must be above 0"):
        option(0, "share", above=0)
    with pytest.raises(ValueError, match=r"search of the option 'share' is 2.0, but must be in \(0, 1\]"):
        option(0.5, "share", above=0, at_most=1, search=(0.1, 2.0, "log"))
    with pytest.raises(ValueError, match="search of the option 'kind' is 'c', but must be one of a, b"):
        option("a", "kind", choices=("a", "b"), search=("a", "c"))
