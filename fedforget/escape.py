"""Texts from outside (names of strategies, clients and classes, notes of nodes, paths), made harmless for each medium.

The record keeps them as they are. What is printed or written for people goes through `plain`; Markdown and CSV need
more. jinja2 escapes what HTML needs, and the figures read no text as mathematics.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

# C0 and C1 with ESC, marks and overrides of the writing direction, invisible ones, line separators, lone surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_MARKDOWN = re.compile(r"\\(?=[!-/:-@\[-`{-~])|[|`*\[\]<>]|(?<![^\W_])_|_(?![^\W_])")
_FORMULA = ("=", "+", "-", "@")


def plain(text: str) -> str:
    """One line of visible characters: a line break or tab is a blank, another control character its code."""
    return _CONTROL.sub(lambda found: " " if found[0] in "\n\r\t" else ascii(found[0])[1:-1], text)


def lines(text: str) -> str:
    """Text for a terminal: as `plain`, but its line breaks stay."""
    return "\n".join(map(plain, text.split("\n")))


def markdown(text: str) -> str:
    """Text that GitHub's Markdown shows as it is, in a cell, too; an underscore within a word needs no mark."""
    return _MARKDOWN.sub(lambda found: "\\" + found[0], plain(text))


def csv_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    shown = plain(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def everywhere(value: Any, escape: Callable[[str], str]) -> Any:
    """``value`` with every text in it escaped, names of fields too."""
    if isinstance(value, dict):
        return {everywhere(key, escape): everywhere(item, escape) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [everywhere(item, escape) for item in value]
    return escape(value) if isinstance(value, str) else value
