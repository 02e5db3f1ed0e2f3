"""From results to a page, tables and figures. Works on plain rows, so a report can be made again without the run.

``results.jsonl`` is the record, one JSON object a line: ``{"header": ...}``, then an object for each row of each kind
in `KINDS`, then a checksum. All other files follow from it.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedforget import claims, figures, page, tables
from fedforget.escape import csv_cell, everywhere, markdown, plain
from fedforget.store import load_lines, make_folder, save_lines, write_bytes, write_text
from fedforget.tables import Row, Rows, Table, View

WIDTH = 118
METRICS = ("metric",)  # columns of CSV files
RECORD = "results.jsonl"
HEADER = (
    *("experiment", "level", "code", "seeds", "claim", "requests", "failed", "left_out", "trainings", "durability"),
    *("tuning", "config", "trajectory", "data", "corruption", "versions", "strategies", "options", "models"),
)
KINDS = ("result", "audit", "cost", "verdict", "gate", "figure")  # see `fedforget.assessment.Assessment`


def write(folder: Path, header: dict, rows: Rows) -> dict[str, Path]:
    """Writes the record and everything that follows from it; each file appears whole or not at all.

    ``report.html`` is the page, ``table.md`` its short form, ``audit.csv`` and ``verdicts.csv`` have what
    of the rows gate and evidence level let be shown (`fedforget.claims`),
    ``quality_cost.png`` the planes against cost, ``figures/`` the page's figures one by one.

    Args:
        folder: where to write; created if absent.
        header: the fields in `HEADER` (as the experiment writes them; ``failed``: label -> why, of strategies that did
            not finish; ``left_out``: model -> what was noted of it: clients left out of a round and why, certificates),
            and anything else worth keeping; all of it JSON.
        rows: by kind, `KINDS`; from `fedforget.assessment.Assessment.rows`.

    Returns:
        file name -> path.

    Raises:
        ValueError: if the header lacks a field.
    """
    text = render_table(header, rows)
    record = {"header": [header], **{kind: rows[kind] for kind in KINDS}}
    header, rows = everywhere(header, plain), everywhere(rows, plain)
    views = tables.views(header, rows)
    drawings = [figures.draw(header, view) for view in views]
    sequence = [figures.requests([(header, view) for view in views], sequence=True)] if len(views) > 1 else []
    contents = {
        "table.md": text.encode(),
        "report.html": page.render(header, views, drawings, sequence).encode(),
        "quality_cost.png": figures.quality_cost(header, views),
        "audit.csv": _csv([row for view in views for mine in view.audits.values() for row in mine.values()]).encode(),
        "verdicts.csv": _csv([row for view in views for row in view.verdicts.values()]).encode(),
        **{f"figures/{drawing.name}.svg": drawing.svg.encode() for mine in (sequence, *drawings) for drawing in mine},
    }
    make_folder(folder / "figures")
    for name, content in contents.items():
        write_bytes(folder / name, content)
    save_lines(folder / RECORD, ({kind: _to_json(row)} for kind, mine in record.items() for row in mine))
    return {name: folder / name for name in (*contents, RECORD)}


def write_together(folder: Path, runs: Sequence[tuple[dict, Rows]]) -> dict[str, Path]:
    """Writes what several runs that differ in their request say together: ``requests.md`` and ``requests.svg``.

    Args:
        folder: where to write; created if absent.
        runs: header and rows of each.

    Returns:
        file name -> path.
    """
    drawn, several = _views(runs, plain), _views(runs, markdown)
    table = tables.requests_table(several)
    header = several[0][0]
    title = f"**{header['experiment']}**, {tables.overall(header, [view for _, view in several])}"
    void = [_item(_counts_for_nothing(header, view)) for header, view in several if not view.scored]
    scores = [_grid(table), *void, _wrap(table.note)] if table.rows else void
    blocks = [_wrap(title), *scores]
    make_folder(folder)
    contents = {"requests.md": "\n\n".join(blocks) + "\n", "requests.svg": figures.requests(drawn).svg}
    for name, text in contents.items():
        write_text(folder / name, text)
    return {name: folder / name for name in contents}


def _views(runs: Sequence[tuple[dict, Rows]], escape: Callable[[str], str]) -> list[tuple[dict, View]]:
    """Each request of the runs with the header of its run, their texts escaped."""
    escaped = [(everywhere(header, escape), everywhere(rows, escape)) for header, rows in runs]
    return [(header, view) for header, rows in escaped for view in tables.views(header, rows)]


def _counts_for_nothing(header: dict, view: View) -> str:
    said, why = claims.gate(view.gate)
    return f"{view.name} counts for nothing ({said}: {why}). {claims.no_scores(header, view.gate)}"


def load(folder: Path) -> tuple[dict, Rows]:
    """``(header, rows)`` as they were given to `write`.

    Raises:
        DamagedFile: if the record does not match its checksum.
        ValueError: if the folder holds no finished run, or a record that is not one.
    """
    path = folder / RECORD
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} holds no {RECORD}; give the folder of a finished run")
    header: dict = {}
    rows: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    for line in load_lines(path):
        kind, row = next(iter(line.items())) if isinstance(line, dict) and len(line) == 1 else ("", None)
        if kind not in ("header", *KINDS) or not isinstance(row, dict):
            raise ValueError(f"{path} is no record of a run: a line of it is neither a header nor one of {KINDS}")
        if kind == "header":
            header = _from_json(row)
        else:
            rows[kind].append(_from_json(row))
    _check_header(header)
    return header, rows


_NOT_IN_JSON = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def _to_json(value: Any) -> Any:
    """``value`` with infinite and NaN numbers as words, for which JSON has no numbers."""
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    """Inverts `_to_json`."""
    if isinstance(value, dict):
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return _NOT_IN_JSON.get(value, value) if isinstance(value, str) else value


def render_table(header: dict, rows: Rows) -> str:
    """The report as GitHub Markdown that also reads well in a terminal of 120 columns. Raises as `write` does."""
    _check_header(header)
    if any(part not in gate for gate in rows["gate"] for part in ("examples", "state", "chances")):
        raise ValueError(
            "the record lacks the sizes of audit sets or the states of its gates, because an earlier version wrote it "
            "and the store that it could be measured from again is gone; run its experiment again"
        )
    header, rows = everywhere(header, markdown), everywhere(rows, markdown)
    views = tables.views(header, rows)
    seeds = f"{header['seeds']} seed{'s' * (header['seeds'] != 1)}"
    level = f"evidence level {header['level']} ({header['code']}), K = {seeds}. {header['claim']}"
    blocks = [_wrap(f"**{header['experiment']}** (forget {', then '.join(header['requests'])}): {level}")]
    for view in views:
        if len(views) > 1:
            blocks.append(f"### Request {view.number} of {len(views)}: {view.name}")
        blocks += _of_request(header, view)
    failed = [_item(f"{label} failed and has no row: {why}") for label, why in header["failed"].items()]
    if failed:
        blocks.append("\n".join(failed))
    left_out = [_item(f"{model}: {why}") for model, why in header["left_out"].items()]
    if left_out:
        blocks.append("\n".join([_wrap("Noted while the run went on:"), *left_out]))
    data = tables.data_table(header)
    if data:
        blocks.append("\n".join([_wrap("Data:"), *(_item(": ".join(row)) for row in data.rows)]))
    notes = [tables.accuracy_table(header, view).note for view in views[:1]]
    notes = [tables.verdict_table(header, view).note for view in views if view.scored][:1] + notes
    return "\n\n".join([*blocks, *map(_wrap, notes)]) + "\n"


def _check_header(header: dict) -> None:
    missing = [field for field in HEADER if field not in header]
    if missing:
        raise ValueError(f"report header lacks {', '.join(missing)}; it needs {', '.join(HEADER)}")


def _of_request(header: dict, view: View) -> list[str]:
    stamp = _wrap(tables.stamp(header, view))
    accuracies = [stamp, _grid(tables.accuracy_table(header, view))]
    if not view.scored:
        return [_wrap(claims.no_scores(header, view.gate)), *accuracies]
    sentences = "\n".join(map(_item, tables.sentences(header, view)))
    return [stamp, _grid(tables.verdict_table(header, view)), *([sentences] if sentences else []), *accuracies]


def _wrap(text: str, subsequent_indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=subsequent_indent, break_long_words=False)


def _item(text: str) -> str:
    return _wrap(f"- {text}", subsequent_indent="  ")


def _grid(table: Table) -> str:
    """A Markdown table without outer pipes (to save columns); the first column is left-aligned, the others right."""
    rows = [table.columns, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [rows[0], rule, *rows[1:]]
    return "\n".join(" | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def _csv(rows: list[Row]) -> str:
    """Rows as CSV; names of metrics, which are the framework's, stay as they are, though some begin with a plus."""
    rows = [
        {key: value if key in METRICS else everywhere(value, csv_cell) for key, value in row.items()} for row in rows
    ]
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
