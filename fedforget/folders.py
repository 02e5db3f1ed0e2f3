"""Folders that are joined by name: a user's ``strategies/`` and ``configs/`` with those that come with fedforget."""

from __future__ import annotations

import importlib
from pathlib import Path


def places(name: str) -> list[Path]:
    """Every folder of that name on the path, the user's first.

    Raises:
        ValueError: if a file makes one of them a package of its own, which hides the others.
    """
    package = importlib.import_module(name)
    hiding = getattr(package, "__file__", None)
    if hiding:
        raise ValueError(
            f"{hiding} hides the {name} that come with fedforget; delete or rename it (a folder {name}/ needs no "
            "__init__.py)"
        )
    return [Path(place) for place in package.__path__]
