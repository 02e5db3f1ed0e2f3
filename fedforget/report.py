"""From results to tables and a figure. Works on plain rows, so a report can be made again without the run.

``results.jsonl`` is the record, one JSON object a line: ``{"header": ...}``, then an object for each row of each kind
in `KINDS`. ``audit.csv``, ``table.md`` and ``quality_cost.png`` follow from it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WIDTH = 118
SETS = ("forget", "retain", "holdout", "test")
HEADER = ("experiment", "level", "seeds", "claim", "requests")
ORIGINAL, ORACLE = "original", "retrain"  # the two labels that are no strategy's
SHOWN = "forget/margin"  # the figure's metric: accuracy saturates, and the loss of a destroyed model has no bound
NAMES = {ORACLE: "oracle (retrain)"}
COLUMNS = ("model", *(f"{name} %" for name in SETS), "gap, pts", "floors", "rounds", "examples", "bytes", "stored")

KINDS = ("result", "audit", "cost", "verdict", "gate", "figure")  # see `fedforget.assessment.Assessment`

Row = dict
Rows = Mapping[str, list[Row]]


def write(folder: Path, header: dict, rows: Rows) -> dict[str, Path]:
    """Writes the record and everything that follows from it; each file appears whole or not at all.

    Args:
        folder: where to write; created if absent.
        header: ``experiment`` (name), ``level``, ``seeds`` (K), ``claim`` (what the level may claim), ``requests`` (one
            short text for each), ``failed`` where strategies
            did not finish (label -> why), and anything else worth keeping; all of it JSON.
        rows: by kind, `KINDS`; from `fedforget.assessment.Assessment.rows`.

    Returns:
        file name -> path.

    Raises:
        ValueError: if the header lacks a field.
    """
    groups = {"header": [header], **{kind: rows[kind] for kind in KINDS}}
    lines = [json.dumps({kind: _to_json(row)}, allow_nan=False) for kind, mine in groups.items() for row in mine]
    contents = {
        "table.md": render_table(header, rows).encode(),
        "quality_cost.png": _draw(header, rows["audit"], rows["cost"]),
        "audit.csv": _csv(rows["audit"]).encode(),
        "results.jsonl": "\n".join([*lines, ""]).encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        unfinished = folder / f"{name}.tmp"
        unfinished.write_bytes(content)
        os.replace(unfinished, folder / name)
    return {name: folder / name for name in contents}


def load(folder: Path) -> tuple[dict, Rows]:
    """``(header, rows)`` as they were given to `write`.

    Raises:
        ValueError: if the folder holds no finished run.
    """
    path = folder / "results.jsonl"
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} holds no results.jsonl; give the folder of a finished run")
    header: dict = {}
    rows: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    for line in path.read_text().splitlines():
        ((kind, row),) = json.loads(line).items()
        if kind == "header":
            header = _from_json(row)
        else:
            rows[kind].append(_from_json(row))
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
    audit_rows, cost_rows = rows["audit"], rows["cost"]
    missing = [field for field in HEADER if field not in header]
    if missing:
        raise ValueError(f"report header lacks {', '.join(missing)}; it needs {', '.join(HEADER)}")
    seeds = f"{header['seeds']} seed{'s' * (header['seeds'] != 1)}"
    level = f"evidence level {header['level']}, K = {seeds}. {header['claim']}"
    blocks = [_wrap(f"**{header['experiment']}** (forget {', then '.join(header['requests'])}): {level}")]
    requests, strategies = _requests(cost_rows), _strategies(cost_rows)
    for request in requests:
        audits, costs = _by_label(audit_rows, cost_rows, request)
        if len(requests) > 1:
            blocks.append(f"### Request {request + 1} of {len(requests)}: {header['requests'][request]}")
        blocks.append(_grid([list(COLUMNS), *(_cells(label, audits[label], costs) for label in costs)]))
        sentences = [_sentence(label, audits[label], costs[label]) for label in strategies if label in costs]
        if sentences:
            blocks.append("\n".join(_wrap(f"- {sentence}", subsequent_indent="  ") for sentence in sentences))
    failed = [_wrap(f"- {label} failed and has no row: {why}") for label, why in header.get("failed", {}).items()]
    if failed:
        blocks.append("\n".join(failed))
    return "\n\n".join([*blocks, _footer(header["seeds"])]) + "\n"


def _footer(seeds: int) -> str:
    interval = "±: 95 % t-interval over seeds" if seeds > 1 else "K = 1, so no interval and no floor"
    return _wrap(
        f"{interval}; gap: forget accuracy minus the oracle's; floor: what an oracle scores against the other oracles, "
        "as a perfect method would. Costs: the oracle's own, then times cheaper; stored: kept by the server. "
        "Accuracy alone does not show forgetting."
    )


def _wrap(text: str, subsequent_indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=subsequent_indent, break_long_words=False)


def _requests(cost_rows: list[Row]) -> list[int]:
    return sorted({row["request"] for row in cost_rows})


def _strategies(cost_rows: list[Row]) -> list[str]:
    labels = dict.fromkeys(row["label"] for row in cost_rows)
    return [label for label in labels if label not in (ORIGINAL, ORACLE)]


def _by_label(
    audit_rows: list[Row], cost_rows: list[Row], request: int
) -> tuple[dict[str, dict[str, Row]], dict[str, Row]]:
    """``label -> metric -> audit row`` and ``label -> cost row`` of one request."""
    costs = {row["label"]: row for row in cost_rows if row["request"] == request}
    audits: dict[str, dict[str, Row]] = {label: {} for label in costs}
    for row in audit_rows:
        if row["request"] == request:
            audits[row["label"]][row["metric"]] = row
    return audits, costs


def _cells(label: str, audits: dict[str, Row], costs: dict[str, Row]) -> list[str]:
    cells = [NAMES.get(label, label)]
    for name in SETS:
        row = audits.get(f"{name}/accuracy")
        cells.append(_plus_minus(100 * row["value"], row["value_half_width"], 100) if row else "-")
    forget, cost = audits.get("forget/accuracy"), costs[label]
    if forget is None or (label == ORACLE and forget["floor"] is None):
        cells += ["-", "-"]
    elif label == ORACLE:
        cells += [f"floor {_number(100 * forget['floor'])}", "1.0"]
    else:
        sign = "+" if forget["gap"] > 0 else ""
        floors = forget["gap_in_floors"]
        cells.append(sign + _plus_minus(100 * forget["gap"], forget["gap_half_width"], 100))
        cells.append("-" if floors is None else _number(floors))
    if label == ORIGINAL:
        return [*cells, "-", "-", "-", "-"]
    if label == ORACLE:
        traffic = cost["bytes_down"] + cost["bytes_up"]
        cells += [_short(cost["rounds"]), _short(cost["client_examples"]), _short(traffic, "B")]
    else:
        cells += [_times(cost[f"{name}_speedup"]) for name in ("rounds", "client_examples", "bytes")]
    return [*cells, _short(cost["bytes_stored"], "B")]


def _grid(rows: list[list[str]]) -> str:
    """A Markdown table without outer pipes (to save columns); the first column is left-aligned, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [rows[0], rule, *rows[1:]]
    return "\n".join(" | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def _sentence(label: str, audits: dict[str, Row], cost: Row) -> str:
    """What the numbers and intervals support about one strategy, and nothing beyond."""
    parts = []
    for name, scale, unit, decimals in (("accuracy", 100, "points", 1), ("margin", 1, "nats", 2)):
        row = audits.get(f"forget/{name}")
        if row is not None and not math.isfinite(row["gap"]):
            parts.append(f"forget {name}: the model diverged")
        elif row is not None:
            size = _plus_minus(scale * abs(row["gap"]), row["gap_half_width"], scale, " ± ", decimals)
            side = "above" if row["gap"] >= 0 else "below"
            floor = "" if row["floor"] is None else f" (floor {_number(scale * row['floor'], decimals)})"
            parts.append(f"forget {name} is {size} {unit} {side} the oracle{floor}: {_verdict(row)}")
    speedup = cost["client_examples_speedup"]
    if speedup == math.inf:
        parts.append("no client examples spent")
    elif speedup > 0:  # NaN, where not even the oracle spent any, says nothing
        side = "cheaper" if speedup >= 1 else "dearer"
        parts.append(f"{_times(max(speedup, 1 / speedup))} {side} in client examples")
    return f"{label}: {'; '.join(parts)}."


def _verdict(row: Row) -> str:
    """Compares the interval of the gap with the band of one floor on each side of 0."""
    size, half_width, floor = abs(row["gap"]), row["gap_half_width"], row["floor"]
    if floor is None or half_width is None:
        return "one seed, so no verdict"
    apart = size - half_width > floor
    if row["gap_closed"] is None:
        return "nothing to forget under this metric" + (", and yet distinguishable" if apart else "")
    if apart:
        return "still distinguishable" if row["gap"] * row["noop_gap"] > 0 else "distinguishable, beyond the oracle"
    if size + half_width <= floor:
        return "within the floor"
    return f"unresolved, the interval reaches {'beyond' if size <= floor else 'into'} the floor"


def _number(value: float, decimals: int = 1) -> str:
    """Fixed decimals, none from 100 on."""
    return f"{value:.{decimals if abs(value) < 99.95 else 0}f}"


def _plus_minus(value: float, half_width: float | None, scale: float, sign: str = "±", decimals: int = 1) -> str:
    """``value`` with the half-width of its interval times ``scale``; a half-width from 10 on has no decimals."""
    if half_width is None:
        return _number(value, decimals)
    wide = scale * half_width
    return f"{_number(value, decimals)}{sign}{wide:.{decimals if wide < 9.95 else 0}f}"


def _short(value: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: 950, 12.3k, 4.56MB."""
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g}{prefix}{unit}"
        value /= 1000
    return f"{value:.3g}T{unit}"


def _times(ratio: float) -> str:
    if math.isnan(ratio):
        return "-"
    return "free" if ratio == math.inf else f"{_number(ratio, 1 if ratio >= 1 else 2)}x"


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _draw(header: dict, audit_rows: list[Row], cost_rows: list[Row]) -> bytes:
    """The quality-cost plane, a panel for each request, as PNG."""
    from matplotlib.figure import Figure  # slow to import, and only a finished run draws

    requests = _requests(cost_rows)
    tables = [_by_label(audit_rows, cost_rows, request) for request in requests]
    in_floors = all(metrics[SHOWN]["floor"] for audits, _ in tables for metrics in audits.values() if SHOWN in metrics)
    columns = max(1, min(3, len(requests)))
    rows = max(1, math.ceil(len(requests) / columns))
    figure = Figure(figsize=(3.4 + 4.4 * columns, 0.9 + 3.9 * rows), dpi=130, layout="constrained")
    figure.suptitle(f"{header['experiment']}: distance to the oracle and its price", fontsize="medium")
    figure.supxlabel("client examples processed, as a share of a full retrain (left is cheaper)", fontsize="medium")
    unit = "in floors, 1 = one oracle against the others" if in_floors else "in nats"
    figure.supylabel(f"|gap to the oracle in forget margin|\n{unit} (lower is closer)", fontsize="medium", ma="center")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for panel in panels[len(requests) :]:
        panel.remove()
    styles = _styles(cost_rows)
    handles: dict = {}
    for panel, request, (audits, costs) in zip(panels, requests, tables, strict=False):
        if len(requests) > 1:
            panel.set_title(f"request {request + 1}: {header['requests'][request]}", fontsize="medium")
        handles = _plot(panel, audits, costs, styles, in_floors) | handles
    panels[0].set_xlim(left=-0.003)
    panels[0].set_ylim(bottom=-0.08)
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def _styles(cost_rows: list[Row]) -> dict[str, dict[str, str]]:
    """``label -> colour and marker``; colours repeat after 10 labels, pairs after 70."""
    labels = enumerate(_strategies(cost_rows))
    return {label: {"color": f"C{i % 10}", "marker": "osD^vPX"[i % 7]} for i, label in labels}


def _plot(panel, audits: dict, costs: dict, styles: dict, in_floors: bool) -> dict:
    """Draws one request; returns ``legend text -> artist``."""
    panel.set_xscale("symlog", linthresh=0.01, linscale=0.6)  # symlog, because both a cost and a gap can be 0
    panel.set_yscale("symlog", linthresh=1.0)
    panel.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.tick_params(labelbottom=True)  # a shared axis would hide them where no panel follows below
    panel.grid(alpha=0.25)
    retrained = costs[ORACLE]["client_examples"]
    handles: dict = {}
    for label, style in styles.items():
        row = audits.get(label, {}).get(SHOWN)
        if row is None:
            continue
        if not math.isfinite(row["gap"]):
            (handles[f"{label} (diverged)"],) = panel.plot([], [], **style, linestyle="")
            continue
        scale = row["floor"] if in_floors else 1.0
        size, half_width = abs(row["gap"]) / scale, row["gap_half_width"]
        share = costs[label]["client_examples"] / retrained if retrained else math.nan
        # the interval of a distance ends at 0; one seed has none
        bars = None if half_width is None else [[min(size, half_width / scale)], [half_width / scale]]
        handles[label] = panel.errorbar(share, size, bars, **style, linestyle="", capsize=3, markersize=7)
    (handles[NAMES[ORACLE]],) = panel.plot(1.0, float(in_floors), "k*", markersize=12)
    row = audits[ORACLE].get(SHOWN)
    if row is None:
        panel.text(0.5, 0.5, "no example to forget", transform=panel.transAxes, ha="center")
    elif math.isfinite(row["noop_gap"]):
        noop = abs(row["noop_gap"]) / (row["floor"] if in_floors else 1.0)
        handles["doing nothing"] = panel.axhline(noop, color="0.3", linestyle="--", linewidth=1.2)
    if in_floors:
        handles["within the floor"] = panel.axhspan(0, 1, color="C2", alpha=0.15, linewidth=0)
    return handles
