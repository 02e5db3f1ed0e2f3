"""What is said of a name that does not exist: the nearest one that does, or those there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST = 20  # names that a sentence lists; more are no help


def closest(name: str, names: Iterable[str]) -> str:
    """The valid name that ``name`` was probably meant to be, whatever its capitals, or ``""``."""
    valid = {each.lower(): each for each in sorted(names, reverse=True)}
    found = difflib.get_close_matches(name.lower(), valid, n=1)
    return valid[found[0]] if found else ""


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest valid one, or else the valid ones in their order."""
    valid = list(names)
    if not valid:
        return "; there is none"
    found = closest(name, valid)
    if found:
        return f"; did you mean {found!r}?"
    more = f", ... ({len(valid)} in all)" if len(valid) > MOST else ""
    return f"; choose one of {', '.join(valid[:MOST])}{more}"
