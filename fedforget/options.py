"""An option of a strategy: its default, meaning, symbol, range, choices and tuning range, stated once and checked once.

@dataclass(frozen=True)
class Config:
    temperature: float = option(1.0, "temperature of the teachers", symbol="tau", above=0, search=(0.3, 3.0, "log"))
    labels: str = option("soft", "new labels", choices=("soft", "excluded", "hard"))
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

SCALES = ("log", "linear", "int")  # of a tuning range


@dataclass(frozen=True)
class Range:
    """The numbers between two ends, of which each may be missing, open (``above``, ``below``) or closed."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether it holds a number."""
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        low = self.at_least if self.above is None else self.above
        high = self.at_most if self.below is None else self.below
        if low is not None and high is not None:
            return f"in {'[' if self.above is None else '('}{low:g}, {high:g}{']' if self.below is None else ')'}"
        if low is not None:
            return f"{'at least' if self.above is None else 'above'} {low:g}"
        return f"{'at most' if self.below is None else 'below'} {high:g}"


def option(
    default: Any,
    help: str,
    *,
    symbol: str = "",
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: tuple[Any, ...] = (),
    search: tuple[Any, ...] = (),
    needs: Mapping[str, tuple[Any, ...] | str] | None = None,
) -> Any:
    """A field of a strategy's ``Config``.

    Args:
        default: its value unless it is set: a number, a text, true or false, or a tuple of numbers or texts.
        help: what it means, in a few words.
        symbol: the paper's letter for it.
        above: the number must be above this.
        at_least: the number must be at least this.
        below: the number must be below this.
        at_most: the number must be at most this.
        choices: the values that are allowed. Of a tuple, range and choices hold for every entry.
        search: where it is tuned: ``(low, high, scale)`` with a scale of `SCALES`, or a tuple of choices.
        needs: other options without which it has no effect: by name the values that they must have one of, or
            ``"above 0"`` or ``"below 1"``, with any number.

    Raises:
        ValueError: if the default or an end of the tuning range is not allowed.
    """
    ends = (above, at_least, below, at_most)
    metadata: dict[str, Any] = {"help": help, "symbol": symbol}
    if any(end is not None for end in ends):
        metadata["range"] = Range(*ends)
    if choices:
        metadata["choices"] = choices
    if search:
        metadata["search"] = search
    if needs:
        metadata["needs"] = needs
    is_range = len(search) == 3 and search[2] in SCALES
    for what, value in [("default", default), *(("search", end) for end in (search[:2] if is_range else search))]:
        _check_value(f"{what} of the option {help!r}", value, metadata)
    return field(default=default, metadata=metadata)


def check(config_class: type, values: Mapping[str, Any], key: str) -> None:
    """Refuse values that the options of a dataclass do not allow.

    Args:
        config_class: the dataclass; fields that are not made by `option` allow everything.
        values: by the name of the field; fields may be missing.
        key: what the dataclass is called in a configuration, for the message.

    Raises:
        ValueError: naming the key, the value and what is allowed.
    """
    for option_ in fields(config_class):
        if option_.name in values:
            _check_value(f"{key}.{option_.name}", values[option_.name], option_.metadata)


def in_vain(options: Any, name: str, key: str) -> str:
    """What an option lacks to have an effect, in words; empty if it has one.

    Args:
        options: an instance of a strategy's ``Config``.
        name: the option.
        key: what the strategy is called in a configuration.
    """
    needs = next(each.metadata.get("needs", {}) for each in fields(options) if each.name == name)
    lacking = []
    for other, wanted in needs.items():
        value = getattr(options, other)
        if isinstance(wanted, str):
            side, _, limit = wanted.partition(" ")
            if not (value > float(limit) if side == "above" else value < float(limit)):
                lacking.append(f"{key}.{other} {wanted}")
        elif value not in wanted:
            shown = [str(each).lower() if isinstance(each, bool) else str(each) for each in wanted]
            lacking.append(f"{key}.{other}={' or '.join(shown)}")
    return ", and with ".join(lacking)


def check_when_made(config_class: type, key: str) -> None:
    """Have `check` look at the values of every instance of a dataclass before it is made."""
    make = config_class.__init__  # type: ignore[misc]
    signature = inspect.signature(make)

    @functools.wraps(make)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        check(config_class, signature.bind(self, *args, **kwargs).arguments, key)
        make(self, *args, **kwargs)

    config_class.__init__ = checked  # type: ignore[misc]


def _check_value(key: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if isinstance(value, tuple | list):
        for index, entry in enumerate(value):
            _check_value(f"{key}[{index}]", entry, metadata)
        return
    choices, range_ = metadata.get("choices"), metadata.get("range")
    if choices and value not in choices:
        raise ValueError(f"{key} is {value!r}, but must be one of {', '.join(map(str, choices))}")
    if range_ is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}, but must be a finite number")
    if not range_.holds(value):
        raise ValueError(f"{key} is {value!r}, but must be {range_}")
