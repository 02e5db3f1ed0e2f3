"""The strategies that there are, as their files say; none is imported."""

from __future__ import annotations

import ast
from pathlib import Path

from fedforget.folders import places
from fedforget.request import SCOPES


def strategy_names() -> list[str]:
    """Names of all strategies: the files of the package ``strategies``."""
    return sorted(_strategy_files())


def strategy_titles() -> dict[str, str]:
    """The first line of every strategy's file, by name; nothing is imported."""
    return {name: _title(path) for name, path in sorted(_strategy_files().items())}


def _strategy_files() -> dict[str, Path]:
    # The first place that holds a name wins, as in imports.
    return {path.stem: path for place in reversed(places("strategies")) for path in place.glob("[!_]*.py")}


def strategy_scopes() -> dict[str, tuple[str, ...]]:
    """The scopes of every strategy, sorted, by name: the texts in what the class in its file assigns to ``scopes``.

    One that assigns nothing serves all of `SCOPES`; of one that computes them without a text there are none here.
    """
    return {name: _scopes(_tree(path)) for name, path in sorted(_strategy_files().items())}


def _tree(path: Path) -> ast.Module:
    # A file that is no Python is refused by its name where it is used; here it only must not hide the others.
    try:
        return ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    except SyntaxError:
        return ast.Module([], [])


def _title(path: Path) -> str:
    return (ast.get_docstring(_tree(path)) or "").partition("\n")[0].rstrip(".")


def _scopes(tree: ast.Module) -> tuple[str, ...]:
    for statement in (each for kind in tree.body if isinstance(kind, ast.ClassDef) for each in kind.body):
        match statement:
            case ast.Assign([ast.Name("scopes")], value) | ast.AnnAssign(ast.Name("scopes"), _, ast.expr() as value):
                texts = {each.value for each in ast.walk(value) if isinstance(each, ast.Constant)}
                return tuple(sorted(text for text in texts if isinstance(text, str)))
    return tuple(sorted(SCOPES))
