"""The figures of the report, each as an SVG that stands alone; `inline` fits one into a page.

A figure is one column wide, so that it can be read on a phone. Text stays text, in the fonts of the reader. A method
has the same colour and marker in all of them; doing nothing is a dashed grey line, the oracle black.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from fedforget import claims
from fedforget.stage import later_metric
from fedforget.tables import ANOTHER, NAMES, NOOP, ORACLE, ORIGINAL, Row, View, named

CHECKPOINT = "retrain@"
SHOWN = "forget/margin"  # accuracy saturates, and the loss of a destroyed model has no bound
INK, PAPER = "#010203", "#fdfefd"  # occur nowhere else, so that a page can put its own colours in their place
NOTHING: dict[str, Any] = {"color": "#808080", "linestyle": "--", "linewidth": 1.3}  # of doing nothing
BAND: dict[str, Any] = {"color": "#808080", "alpha": 0.25, "linewidth": 0}  # of the oracles
WIDTH = 4.4  # inches
MOST = 12  # strategies drawn by name; of more, those of highest quality
# A colour for each of them, so that lines without markers differ; grey is doing nothing's.
COLOURS = (*(f"C{i}" for i in (0, 1, 2, 3, 4, 5, 6, 8, 9)), "#5254a3", "#00c896", "#637939")
MARKS = "oX^"  # of the three images that span a plane of decision regions


class Drawing(NamedTuple):
    """A figure.

    Args:
        name: of its file, without ending.
        title: what it shows.
        caption: how to read it, with every unit.
        svg: the whole file.
    """

    name: str
    title: str
    caption: str
    svg: str


def draw(header: Row, view: View) -> list[Drawing]:
    """All figures of a request that there is data for."""
    makers: tuple[Callable[[Row, View], tuple | None], ...] = (
        _quality,
        _distance,
        _forest,
        _margins,
        _examples,
        _roc,
        _durability,
        lambda header, view: _relearning(view, "rejoin"),
        lambda header, view: _relearning(view, "few"),
        lambda header, view: _relearning(view, "retain"),
        _features,
        _layers,
        _clients,
        _regions,
    )
    drawings = []
    with _style():
        for make in makers:
            made = make(header, view)
            if made:
                name, title, caption, figure = made
                if make is not _forest:
                    caption += _left_out(view, "grey" if make in (_quality, _distance) else "not drawn")
                name = f"{name}-{view.number}"
                drawings.append(Drawing(name, title, caption, _svg(figure, name)))
    return drawings


def quality_cost(header: Row, views: list[View]) -> bytes:
    """Both planes against cost, a row for each request, as PNG."""
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(11, 0.8 + 4 * max(1, len(views))), dpi=130, layout="constrained", facecolor="white")
        figure.suptitle(f"{header['experiment']}: quality, distance to the oracle, and their price", fontsize="large")
        legend: dict = {}
        for panels, view in zip(figure.subplots(len(views) or 1, 2, squeeze=False), views, strict=False):
            panels[0].set_title(f"{view.name}: quality (privacy track)")
            panels[1].set_title(f"{view.name}: distance to the oracle")
            for panel, plot in zip(panels, (_plot_quality, _plot_distance), strict=True):
                if not plot(panel, header, view):
                    reason = "not measured: no attack tells\nthe original from the oracle here"
                    if not view.scored:
                        reason = textwrap.fill(claims.no_scores(header, view.gate), 50)
                    panel.text(0.5, 0.5, reason, transform=panel.transAxes, ha="center")
                    panel.set_axis_off()
                legend |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        _legend(figure, list(legend.values()), list(legend), columns=6)
        image = io.BytesIO()
        figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def requests(runs: Sequence[tuple[Row, View]], sequence: bool = False) -> Drawing:
    """Quality, and what remains under the primary metric, against the request; a void one has no points.

    Args:
        runs: a header and a view for each request.
        sequence: whether the requests are those of one run, served one after the other, or each of a run of its own.
    """
    with _style():
        figure, ((upper,), (lower,)) = _figure(5.0, rows=2)
        names = [view.name for _, view in runs]
        styles = {ORIGINAL: NOTHING | {"marker": ".", "label": "doing nothing"}}
        for _, view in runs:
            styles |= {
                label: {**style, "label": label} for label, style in _styles(view).items() if label not in styles
            }
        styles[ANOTHER] = {"color": INK, "marker": "*", "linestyle": ":", "label": ANOTHER}
        for panel, key in ((upper, "quality_privacy"), (lower, "remaining")):
            for label, style in styles.items():
                rows = [view.verdicts.get(label, {}) if view.scored else {} for _, view in runs]
                values = [row.get(key) for row in rows]
                panel.plot(range(len(runs)), _finite([math.nan if v is None else v for v in values]), **style)
            panel.set_xticks(range(len(runs)), names, rotation=20 * (len("".join(names)) > 40))
            panel.set_xlim(-0.3, len(runs) - 0.7)
        upper.set_ylabel("quality, 1 = the oracle")
        upper.set_ylim(-0.04, 1.04)
        lower.set_ylabel("remaining, 0 = the oracle")
        lower.set_yscale("symlog", linthresh=1.0)
        lower.yaxis.set_major_formatter("{x:g}")
        _legend(figure, *upper.get_legend_handles_labels())
        order = "requests have no order"
        if sequence:
            order = "each request starts from the model that the one before left; its oracles saw nothing of any so far"
        caption = (
            "Quality (privacy track), and the gap to the oracle under each request's primary metric as a share of the "
            f"original's. Lines join the values of a method; {order}. A void request has no points."
        )
        name, title = ("sequence", "Request after request") if sequence else ("requests", "Requests compared")
        return Drawing(name, title, caption, _svg(figure, name))


def inline(drawing: Drawing) -> str:
    """The SVG element for a page: colours of the page, and names that occur once even among many figures."""
    svg = drawing.svg[drawing.svg.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "none")
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\1{drawing.name}-", svg)


def _style() -> AbstractContextManager:
    """Defaults of all figures; labels are a user's text, so nothing in them is mathematics."""
    import matplotlib as mpl

    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: Any = dict.fromkeys(ink, INK) | {
        "figure.facecolor": PAPER,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "grid.color": "#808080",
        "grid.alpha": 0.25,
        "font.size": 9,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "svg.fonttype": "none",
        "text.parse_math": False,
    }
    return mpl.rc_context(settings)


def _figure(height: float, rows: int = 1, columns: int = 1):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _columns(panels: int) -> int:
    """Columns of small multiples: three, or another number with which no panel is alone in the last row."""
    return next((columns for columns in (3, 2, 4, 5) if columns <= panels and panels % columns != 1), min(3, panels))


def _svg(figure, name: str) -> str:
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return text.getvalue()


def _legend(figure, handles: list, labels: list[str], columns: int = 3) -> None:
    """A legend below the panels, for which the figure grows."""
    longest = max(map(len, labels), default=0)
    columns = max(1, columns - (longest > 13) - (longest > 23))
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.19 * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _shown(view: View) -> list[str]:
    """The strategies that figures draw by name, in their given order: all but doing nothing, or the `MOST` best."""
    labels = [label for label in view.strategies if label != NOOP]

    def order(label: str) -> tuple[float, float]:
        row = view.verdicts.get(label, {})
        quality = None if row.get("state") else row.get("quality_privacy")
        gap = view.audits[label].get(SHOWN, {}).get("gap", math.inf)
        worse = 1.0 if quality is None or not math.isfinite(quality) else -quality
        return worse, abs(gap) if math.isfinite(gap) else math.inf

    best = sorted(labels, key=order)[:MOST]
    return [label for label in labels if label in best]


def _left_out(view: View, how: str) -> str:
    """A sentence that names the strategies that are not drawn by name; empty if all are."""
    rest = [label for label in view.strategies if label not in (NOOP, *_shown(view))]
    if not rest:
        return ""
    by = "of highest quality or, without one, nearest to the oracle"
    return f" Drawn by name: the {MOST} {by}; {how}: {', '.join(rest)}."


def _styles(view: View) -> dict[str, dict[str, Any]]:
    """``label -> colour and marker`` of the strategies that are drawn by name."""
    labels = _shown(view)
    return {label: {"color": COLOURS[i], "marker": "osD^vPX"[i % 7]} for i, label in enumerate(labels)}


def _by_seed(view: View, label: str, metric: str) -> list[float]:
    """Finite values of a metric, one a seed."""
    values = [row["values"].get(metric, math.nan) for row in view.results if row["label"] == label]
    return [value for value in values if math.isfinite(value)]


def _finite(values: list[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in values]


# ---------------------------------------------------------------------- planes against cost


def _share_axis(panel) -> None:
    panel.set_xscale("symlog", linthresh=0.01, linscale=0.6)  # symlog, because a cost can be 0
    panel.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    panel.set_xlim(-0.003, 1.4 * max(1.0, panel.dataLim.x1))
    panel.set_xlabel("client examples, in % of a full retrain")


def _share(view: View, examples: float) -> float:
    whole = view.costs[ORACLE]["client_examples"]
    return examples / whole if whole else math.nan


def _plot_quality(panel, header: Row, view: View) -> bool:
    """Quality against cost; False if no model has a quality that counts."""
    known = {label: row for label, row in view.verdicts.items() if row["quality_privacy"] is not None}
    if not view.scored or not known:
        return False
    for stops in view.figures:
        if stops["kind"] == "frontier":
            shares = [_share(view, examples) for examples in stops["x"]]
            panel.plot(shares, stops["y"], ".-", color="#808080", linewidth=1, label="retrain stopped early")
    for other in _others(view, known):
        share = _share(view, view.costs[other["label"]]["client_examples"])
        panel.plot(share, other["quality_privacy"], ".", color="#808080", alpha=0.6)
    for label, style in _styles(view).items():
        row = known.get(label)
        if row is not None:
            _point(panel, _share(view, view.costs[label]["client_examples"]), row, named(label, view), style)
    if ANOTHER in known:
        style = {"color": INK, "marker": "*", "markersize": 11}
        _point(panel, 1.0, known[ANOTHER], ANOTHER, style)
    if ORIGINAL in known:
        panel.axhline(known[ORIGINAL]["quality_privacy"], **NOTHING, label="doing nothing")
    _share_axis(panel)
    panel.set_ylim(-0.04, 1.04)
    panel.set_ylabel("quality, 1 = the oracle")
    return True


def _others(view: View, known: dict[str, Row]) -> list[Row]:
    """Rows of the strategies that are not drawn by name."""
    named = (NOOP, *_shown(view))
    return [known[label] | {"label": label} for label in view.strategies if label in known and label not in named]


def _point(panel, x: float, row: Row, label: str, style: dict) -> None:
    value, low = row["quality_privacy"], row["quality_privacy_low"]
    if not math.isfinite(value):
        panel.plot([], [], **style, linestyle="", label=f"{label} (diverged)")
        return
    bars = None if low is None else [[value - low], [0]]
    panel.errorbar(x, value, bars, **{"markersize": 7, **style}, linestyle="", capsize=3, label=label)


def _quality(header: Row, view: View):
    figure, ((panel,),) = _figure(3.2)
    if not _plot_quality(panel, header, view):
        return None
    _legend(figure, *panel.get_legend_handles_labels())
    caption = (
        "Quality is the least of forgetting and utility (privacy track); bars reach down to the one-sided 95 % limit. "
        "A method is worth its price only above and to the left of a retrain that is stopped early."
    )
    return "quality_cost", "Quality and price", caption, figure


def _plot_distance(panel, header: Row, view: View) -> bool:
    """Distance to the oracle in forget margin against cost; False where there is nothing to forget."""
    noop = view.audits[ORACLE].get(SHOWN)
    if noop is None:
        return False
    scale = noop["floor"] or 1.0
    retrained = {row["seed"]: row["values"][SHOWN] for row in view.results if row["label"] == ORACLE}
    stops: dict[float, list[float]] = {}
    for row in view.results:
        if row["label"].startswith(CHECKPOINT):
            gap = row["values"][SHOWN] - retrained[row["seed"]]
            stops.setdefault(row["cost"]["rounds"], []).append(gap)
    if stops:
        costs = {n: [r["cost"]["client_examples"] for r in view.results if _is_stop(r, n)] for n in stops}
        order = sorted(stops)
        shares = [_share(view, sum(costs[n]) / len(costs[n])) for n in order]
        sizes = [abs(sum(stops[n]) / len(stops[n])) / scale for n in order]
        panel.plot(shares, _finite(sizes), ".-", color="#808080", linewidth=1, label="retrain stopped early")
    for row in _others(view, {label: audits[SHOWN] for label, audits in view.audits.items()}):
        share = _share(view, view.costs[row["label"]]["client_examples"])
        panel.plot(share, _finite([abs(row["gap"]) / scale]), ".", color="#808080", alpha=0.6)
    for label, style in _styles(view).items():
        row = view.audits[label][SHOWN]
        if not math.isfinite(row["gap"]):
            panel.plot([], [], **style, linestyle="", label=f"{label} (diverged)")
            continue
        size, half_width = abs(row["gap"]) / scale, row["gap_half_width"]
        # the interval of a distance ends at 0; one seed has none
        bars = None if half_width is None else [[min(size, half_width / scale)], [half_width / scale]]
        x = _share(view, view.costs[label]["client_examples"])
        panel.errorbar(x, size, bars, **style, linestyle="", capsize=3, markersize=7, label=label)
    if math.isfinite(noop["noop_gap"]):
        panel.axhline(abs(noop["noop_gap"]) / scale, **NOTHING, label="doing nothing")
    if noop["floor"]:
        panel.plot(1.0, 1.0, "*", color=INK, markersize=11, label=NAMES[ORACLE])
        panel.axhspan(0, 1, color="C2", alpha=0.15, linewidth=0, label="within the floor")
    _share_axis(panel)
    panel.set_yscale("symlog", linthresh=1.0, subs=(2, 5))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("{x:g}")
    panel.set_ylim(-0.08, 1.4 * max(1.0, panel.dataLim.y1))
    panel.set_ylabel("|gap| in forget margin, " + ("in floors" if noop["floor"] else "in nats"))
    return True


def _is_stop(row: Row, rounds: float) -> bool:
    return row["label"].startswith(CHECKPOINT) and row["cost"]["rounds"] == rounds


def _distance(header: Row, view: View):
    figure, ((panel,),) = _figure(3.2)
    if not _plot_distance(panel, header, view):
        return None
    _legend(figure, *panel.get_legend_handles_labels())
    caption = (
        "Distance between mean margins on the forget set, in units of the floor (one oracle against the others) where "
        "there is one, else in nats; lower is closer to a retrain. Bars: 95 % intervals over seeds."
    )
    return "distance_cost", "Distance to the oracle and price", caption, figure


def _forest(header: Row, view: View):
    judged = {label: view.verdicts[label] for label in (ANOTHER, *view.strategies) if label in view.verdicts}
    rows = {label: row for label, row in judged.items() if row["remaining"] is not None and label != NOOP}
    if not view.scored or not rows:
        return None
    figure, ((panel,),) = _figure(0.9 + 0.17 * len(rows))
    panel.axvspan(-20, 20, color="C2", alpha=0.15, linewidth=0, label="margin of equivalence")
    panel.axvline(0, color=INK, linewidth=0.8, label=NAMES[ORACLE])
    panel.axvline(100, **NOTHING, label="doing nothing")
    for y, row in enumerate(rows.values()):
        value = 100 * row["remaining"]
        if not math.isfinite(value):
            panel.text(0.01, y, "diverged", transform=panel.get_yaxis_transform(), fontsize=8, va="center")
            continue
        ends = row["remaining_low"], row["remaining_high"]
        bars = None if None in ends else [[value - 100 * ends[0]], [100 * ends[1] - value]]
        panel.errorbar(value, y, xerr=bars, color=INK, marker="o", markersize=3.5, linewidth=1, capsize=2)
    panel.set_xscale("symlog", linthresh=100, linscale=1.5)
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_yticks(range(len(rows)), [named(label, view) for label in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.grid(False, axis="y")
    # Long names make the panel narrower than this label: it grows to the left, where there is room.
    panel.set_xlabel(f"what remains of the gap in {view.gate['primary']}, %", loc="right")
    _legend(figure, *panel.get_legend_handles_labels())
    caption = (
        f"Gap to the oracle under the primary metric, {view.gate['primary']}, in % of the original's (linear to 100 %, "
        "logarithmic beyond), with 95 % intervals over seeds: 0 is the oracle, 100 doing nothing, below 0 lies beyond "
        "the oracle. A method is equivalent to retraining if its 90 % interval lies in the green margin."
    )
    return "forest", "How far from the oracle?", caption, figure


# ---------------------------------------------------------------------- distributions


def _margins(header: Row, view: View):
    styles = {ORIGINAL: {"color": "#808080"}, ORACLE: {"color": INK}} | _styles(view)
    rows = {row["label"]: row for row in view.figures if row["kind"] == "margins" and row["label"] in styles}
    if not rows:
        return None
    figure, ((panel,),) = _figure(1.0 + 0.42 * len(rows))
    highest = max(max(row["y"]) for row in rows.values()) or 1.0
    for i, (label, row) in enumerate(reversed(rows.items())):
        edges, oracle = row["x"], rows[ORACLE]["y"]
        panel.stairs(
            _lifted(row["y"], i, highest), edges, baseline=i, fill=True, color=styles[label]["color"], alpha=0.5
        )
        panel.stairs(_lifted(oracle, i, highest), edges, baseline=i, color=INK, linewidth=0.9)
    panel.set_yticks(range(len(rows)), [NAMES.get(label, label) for label in reversed(rows)])
    panel.tick_params(axis="y", length=0)
    panel.axvline(0, **(NOTHING | {"linestyle": ":"}))
    panel.set_xlabel("margin, in nats")
    caption = (
        "Margins (log-odds of the true label, in nats) of the forgotten examples over all seeds, as shares of "
        "examples, all to one scale; the outline repeats the oracle's. Left of the dotted line the true label has a "
        "probability below one half. The outermost bins hold all that lies beyond."
    )
    return "margins", "Margins of the forgotten examples", caption, figure


def _lifted(shares: list[float], base: int, highest: float) -> list[float]:
    return [base + 0.9 * share / highest for share in shares]


def _examples(header: Row, view: View):
    lines: dict[str, dict[str, Any]] = {
        ORIGINAL: {**NOTHING, "label": "doing nothing"},
        ANOTHER: {"color": INK, "label": ANOTHER},
    }
    lines |= {label: {"color": style["color"], "label": label} for label, style in _styles(view).items()}
    curves = {row["label"]: row for row in view.figures if row["kind"] == "examples" and row["label"] in lines}
    if not curves:
        return None
    figure, ((panel,),) = _figure(3.2)
    panel.axhspan(0.9, 1, **BAND, label="worst tenth")
    for label, row in curves.items():
        panel.plot(row["x"], row["y"], **({"linewidth": 1.3} | lines[label]))
    usual = [x for label in (ORIGINAL, ANOTHER) if label in curves for x in curves[label]["x"]]
    if usual:  # a destroyed model's curve may leave the picture
        wider = max(1.0, (max(usual) - min(usual)) / 4)
        panel.set_xlim(min(usual) - wider, max(usual) + wider)
    panel.set(ylim=(0, 1), xlabel="margin minus the oracle's, nats", ylabel="share of forgotten examples")
    _legend(figure, *panel.get_legend_handles_labels())
    caption = (
        "Each forgotten example's margin minus that of its seed's oracle, mean over seeds, in nats: the share of "
        "examples below x. A curve to the right of that of another oracle still knows the examples, one to its left "
        "knows them less than a retrain does; the mean may be right where the worst tenth is not. A curve that leaves "
        "the picture is farther away than doing nothing."
    )
    return "examples", "Example by example", caption, figure


def _roc(header: Row, view: View):
    drawn = (ORIGINAL, ORACLE, *_shown(view))
    curves = {row["label"]: row for row in view.figures if row["kind"] == "canary_roc" and row["label"] in drawn}
    if not curves:
        return None
    figure, ((panel,),) = _figure(3.5)
    for row in view.figures:
        if row["kind"] == "canary_chance":
            panel.fill_between(row["x"], row["low"], row["high"], **BAND, label="shuffled coins, 95 %")
    lines: dict[str, dict[str, Any]] = {
        ORIGINAL: {**NOTHING, "label": "doing nothing"},
        ORACLE: {"color": INK, "label": NAMES[ORACLE]},
    }
    for label, style in _styles(view).items():
        lines[label] = {"color": style["color"], "label": label}
    for label, row in curves.items():
        panel.plot(row["x"], row["y"], **({"linewidth": 1.5} | lines[label]))
    lowest = min(x for row in curves.values() for x in row["x"] if x > 0)
    panel.set(xscale="log", yscale="log", xlim=(lowest, 1.05), ylim=(lowest, 1.05))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    panel.set(xlabel="false positive rate", ylabel="true positive rate")
    _legend(figure, *panel.get_legend_handles_labels())
    caption = (
        "How well margins tell the canaries that were in the training data from those that a coin kept out: rates from "
        "0 to 1 on logarithmic axes, mean over seeds. The grey band holds 95 % of single models' curves when the coins "
        "are shuffled, so within it nothing is shown. Higher = more is remembered."
    )
    return "canary_roc", "The canary audit", caption, figure


# ---------------------------------------------------------------------- later stages


def _curves(panel, view: View, points: dict[int, str], scale: float) -> None:
    """Gaps to the oracle of the same seed through stages, ``x -> metric``, times ``scale``."""
    apart = [_apart(_by_seed(view, ORACLE, metric)) for metric in points.values()]
    if all(apart):
        low, high = [[scale * end(values) for values in apart] for end in (min, max)]
        panel.fill_between(list(points), low, high, **BAND, label=f"{len(apart[0])} oracles")
    panel.axhline(0, color=INK, linewidth=0.8)
    lines: dict[str, dict[str, Any]] = {ORIGINAL: {**NOTHING, "marker": ".", "label": "doing nothing"}}
    for label, style in _styles(view).items():
        lines[label] = {**style, "label": label, "markersize": 5, "linewidth": 1.3}
    for label, line in lines.items():
        found = [view.audits[label][metric] for metric in points.values()]
        gaps = [scale * gap for gap in _finite([row["gap"] for row in found])]
        if all(math.isnan(gap) for gap in gaps):
            panel.plot([], [], **{**line, "label": f"{line['label']} (no numbers)"})
            continue
        widths = [row["gap_half_width"] for row in found]
        bars = None if None in widths or label == ORIGINAL else [scale * width for width in _finite(widths)]
        panel.errorbar(list(points), gaps, bars, capsize=2, **line)
    panel.set_xticks(list(points))


def _apart(oracles: list[float]) -> list[float]:
    """Each oracle's value minus the mean of the others'; empty for fewer than two."""
    if len(oracles) < 2:
        return []
    total, others = sum(oracles), len(oracles) - 1
    return [value - (total - value) / others for value in oracles]


def _durability(header: Row, view: View):
    metric = next((m for m in (view.gate["primary"], SHOWN) if _stages(view, m)), None)
    if metric is None:
        return None
    figure, ((panel,),) = _figure(3.2)
    _curves(panel, view, {0: metric} | _stages(view, metric), 1)
    panel.set(xlabel="ordinary rounds after unlearning", ylabel=f"{metric} minus the oracle's")
    _legend(figure, *panel.get_legend_handles_labels())
    caption = (
        f"{metric} minus that of the oracle, as the method left the model and after further ordinary rounds of both on "
        "the retained clients. What leaves the band later was hidden, not forgotten. Band: range of oracles against "
        "the others. Bars: 95 % intervals over seeds."
    )
    return "durability", "Does the forgetting last?", caption, figure


def _stages(view: View, metric: str) -> dict[int, str]:
    """``rounds -> name`` of a metric in the stages after ordinary rounds."""
    names = [name for name in view.audits[ORACLE] if name != metric and later_metric(name)[1] == metric]
    return {int(name.partition("/")[0]): name for name in names}


def _relearning(view: View, kind: str):
    start = f"relearn/{kind}_"
    points = {int(name.removeprefix(start)): name for name in view.audits[ORACLE] if name.startswith(start)}
    if not points:
        return None
    figure, ((panel,),) = _figure(3.2)
    _curves(panel, view, points, 100)
    panel.set(xlabel="rounds of relearning", ylabel="accuracy minus the oracle's, points")
    _legend(figure, *panel.get_legend_handles_labels())
    how, title = {
        "rejoin": ("after rounds in which the forgotten data takes part again", "Relearning: the data returns"),
        "few": ("after rounds in which its owner trains on a few of them alone", "Relearning from a few examples"),
        "retain": ("after ordinary rounds on the retained clients", "Relearning without the data"),
    }[kind]
    caption = (
        f"Accuracy on the other forgotten examples {how}, minus that of the oracle, which relearns likewise. A model "
        "that relearns faster still held what it was to forget. Band: range of oracles against the others. Bars: 95 % "
        "intervals over seeds."
    )
    return f"relearn_{kind}", title, caption, figure


# ---------------------------------------------------------------------- features, clients, regions


def _features(header: Row, view: View):
    known = view.audits[ORACLE]
    sets = [name for name in ("forget", "retain", "test") if f"{name}/cka" in known]
    # A network of one layer has no features but its images, which are alike for all.
    if not sets or ("layer/1/cka" in known and "layer/2/cka" not in known):
        return None
    styles = {ORIGINAL: {"color": "#808080", "marker": "|", "markersize": 11}} | _styles(view)
    figure, ((panel,),) = _figure(0.7 + len(sets) * (0.3 + 0.15 * len(styles)))
    for i, name in enumerate(sets):
        oracles = _by_seed(view, ORACLE, f"{name}/cka")
        if oracles:
            label = f"range of {len(oracles)} oracles" if i == 0 else None
            panel.fill_betweenx([i - 0.4, i + 0.4], min(oracles), max(oracles), **BAND, label=label)
        for offset, (label, style) in zip(_spread(len(styles)), styles.items(), strict=True):
            row = view.audits[label][f"{name}/cka"]
            shown = {"label": "doing nothing" if label == ORIGINAL else label} if i == 0 else {}
            panel.errorbar(
                _finite([row["value"]]),
                [i + offset],
                xerr=row["value_half_width"],
                **style,
                linestyle="",
                capsize=2,
                **shown,
            )
    panel.set_yticks(range(len(sets)), [f"{name} set" for name in sets])
    panel.invert_yaxis()
    panel.set_xlabel("CKA to the oracles' features, 1 = alike")
    _legend(figure, *panel.get_legend_handles_labels())
    caption = (
        "Similarity (linear CKA, 0 to 1) of the last layer's inputs to those of oracles of other seeds; the band is "
        "what oracles score against each other. A method whose dots lie outside it computes something else, whatever "
        "its answers are. Bars: 95 % intervals over seeds."
    )
    return "features", "Features of the last layer", caption, figure


def _layers(header: Row, view: View):
    sides = {"CKA to the oracles'": "cka", "CKA to the original's": "original_cka", "probe accuracy": "probe"}
    layers = [name.split("/")[1] for name in view.audits[ORACLE] if re.fullmatch(r"layer/\d+/cka", name)]
    if len(layers) < 2:
        return None
    sides = {name: key for name, key in sides.items() if f"layer/{layers[0]}/{key}" in view.audits[ORACLE]}
    figure, panels = _figure(0.4 + 2.4 * len(sides), len(sides))
    for (panel,), (name_of_axis, key) in zip(panels, sides.items(), strict=True):
        names = [f"layer/{layer}/{key}" for layer in layers]
        oracles = [_by_seed(view, ORACLE, name) for name in names]
        if all(oracles):
            low, high = [[end(values) for values in oracles] for end in (min, max)]
            panel.fill_between(layers, low, high, **BAND, label=f"range of {len(oracles[0])} oracles")
        lines: dict[str, dict[str, Any]] = {ORIGINAL: {**NOTHING, "marker": ".", "label": "doing nothing"}}
        for label, style in _styles(view).items():
            lines[label] = {**style, "label": label, "markersize": 5, "linewidth": 1.3}
        for label, line in lines.items():
            panel.plot(layers, _finite([view.audits[label][name]["value"] for name in names]), **line)
        panel.set_ylabel(name_of_axis)
    panels[-1][0].set_xlabel("layer, from the input")
    _legend(figure, *panels[0][0].get_legend_handles_labels())
    caption = (
        "Similarity (linear CKA, 0 to 1, mean over seeds) of what comes out of each layer for 64 forgotten examples: "
        "first to the oracles of other seeds, then to the original of the same seed; last, the accuracy on them of a "
        "linear classifier of the layer's outputs, fitted on 64 examples of the owner's holdout. What is wanted is the "
        "band: there oracles lie. A method outside it in the last layer alone has changed what is said, not what is "
        "known."
    )
    return "layers", "Layer by layer", caption, figure


def _spread(count: int) -> list[float]:
    """Offsets that keep ``count`` dots of one group apart."""
    return [0.6 * ((i + 0.5) / count - 0.5) for i in range(count)]


def _clients(header: Row, view: View):
    metrics = [name for name in view.audits[ORACLE] if name.startswith("client/")]
    if not metrics:
        return None
    metrics.sort(key=lambda name: -view.audits[ORACLE][name]["noop_gap"])
    figure, ((panel,),) = _figure(3.2)
    for x, name in enumerate(metrics):
        apart = view.audits[ORACLE][name]["floor"]
        if apart is not None:
            label = "within the floor" if x == 0 else None
            panel.fill_between([x - 0.4, x + 0.4], -100 * apart, 100 * apart, **BAND, label=label)
    nothing = {"color": "#808080", "marker": "_", "markersize": 9, "markeredgewidth": 2}
    styles = {ORIGINAL: nothing} | _styles(view)
    for offset, (label, style) in zip(_spread(len(styles)), styles.items(), strict=True):
        gaps = [100 * gap for gap in _finite([view.audits[label][name]["gap"] for name in metrics])]
        shown = "doing nothing" if label == ORIGINAL else label
        panel.plot(
            [x + offset for x in range(len(metrics))], gaps, linestyle="", **({"markersize": 5} | style), label=shown
        )
    panel.axhline(0, color=INK, linewidth=0.8)
    names = [name.partition("/")[2] for name in metrics]
    panel.set_xticks(range(len(metrics)), names, rotation=90 if len(names) > 15 else 0)
    panel.grid(False, axis="x")
    panel.set(xlabel="retained client", ylabel="accuracy minus the oracle's, points")
    _legend(figure, *panel.get_legend_handles_labels())
    caption = (
        "Accuracy on each retained client's own holdout minus the oracle's, in points, mean over seeds; below 0 the "
        "client is served worse than after a retrain. On the left the clients that a retrain itself costs most, which "
        "resemble the one that left. Grey: the floor between oracles."
    )
    return "clients", "Retained clients", caption, figure


def _regions(header: Row, view: View):
    drawn = (ORIGINAL, ORACLE, *_shown(view))
    rows = [row for row in view.figures if row["kind"] == "regions" and row["label"] in drawn]
    if not rows:
        return None
    import matplotlib as mpl

    columns = _columns(len(rows))
    lines = -(-len(rows) // columns)
    figure, grid = _figure(0.2 + 1.6 * lines * min(1, 3 / columns), lines, columns)
    classes = sorted({c for row in rows for c in row["classes"]})
    colours = {c: mpl.colormaps["tab20"](i % 20)[:3] if c >= 0 else (0.5, 0.5, 0.5) for i, c in enumerate(classes)}
    panels = grid.flatten()
    for panel in panels[len(rows) :]:
        panel.remove()
    for panel, row in zip(panels, rows, strict=False):
        width = row["width"]
        image = [[colours[c] for c in row["classes"][i : i + width]] for i in range(0, width * width, width)]
        panel.imshow(image, origin="lower", interpolation="nearest")
        for (x, y, _), marker in zip(row["points"], MARKS, strict=True):
            panel.plot(x, y, marker, color="white", markeredgecolor="black", markersize=6)
        panel.set_title(NAMES.get(row["label"], row["label"]), fontsize=8.5 * min(1, 3 / columns))
        panel.set(xticks=[], yticks=[])
    handles: list = [
        mpl.patches.Patch(color=colours[c], label=f"class {c}" if c >= 0 else "no number") for c in classes
    ]
    for (_, _, name), marker in zip(rows[0]["points"], MARKS, strict=True):
        dot: dict = {"marker": marker, "color": "white", "markeredgecolor": "black", "linestyle": ""}
        handles.append(mpl.lines.Line2D([], [], **dot, label=name))
    _legend(figure, handles, [handle.get_label() for handle in handles])
    caption = (
        "Predicted class on the plane through a forgotten image and two others, with their true classes, for the first "
        "seed's models. What is wanted is the oracle's picture: change around the forgotten image, and none elsewhere."
    )
    return "regions", "Decision regions", caption, figure
