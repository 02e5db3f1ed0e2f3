"""What is said of a name that does not exist: the nearest one that does, or those there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST = 20  # names that a sentence lists; of more it names the nearest


def closest(name: str, names: Iterable[str]) -> str:
    """The valid name that ``name`` was probably meant to be, whatever its capitals, or ``""``."""
    valid = {each.lower(): each for each in sorted(names, reverse=True)}
    found = difflib.get_close_matches(name.lower(), valid, n=1)
    return valid[found[0]] if found else ""


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest valid one, or else the valid ones if they are few."""
    valid = list(names)
    if not valid:
        return "; there is none"
    found = closest(name, valid)
    if found:
        return f"; did you mean {found!r}?"
    if len(valid) <= MOST:
        return f"; choose one of {', '.join(valid)}"
    (least,) = difflib.get_close_matches(name.lower(), [each.lower() for each in valid], n=1, cutoff=0)
    return f"; the nearest of {len(valid)} is {next(each for each in valid if each.lower() == least)!r}"
