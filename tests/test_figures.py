"""Figures: that they show what the rows say, where it belongs."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from fedforget import figures
from fedforget.tables import View

HEADER = {"experiment": "toy", "code": "EL2"}


def audit(value: float, gap: float | None, noop_gap: float = 4.0, floor: float | None = 0.5) -> dict:
    return {
        "value": value,
        "value_half_width": 0.1,
        "gap": gap,
        "gap_half_width": None if gap is None else 0.2,
        "noop_gap": noop_gap,
        "floor": floor,
    }


def view(metrics: dict[str, dict[str, dict]], shown: list[dict] = (), results: list[dict] = (), why: str = "") -> View:
    """Doing nothing, the oracle (1000 client examples) and a strategy ``half`` (500) with these audits."""
    costs = {"original": 0, "retrain": 1000, "none": 0, "half": 500}
    labels = {label: {name: by_label[label] for name, by_label in metrics.items()} for label in costs}
    quality = {"original": (0.0, 0.0), "none": (0.0, 0.0), "half": (0.6, 0.4), "another oracle": (1.0, 0.9)}
    verdicts = {
        k: {
            **{"state": "", "quality_privacy": value, "quality_privacy_low": low},
            **{"remaining": 1 - value, "remaining_low": 0.9 - value, "remaining_high": 1.2 - value},
        }
        for k, (value, low) in quality.items()
    }
    gate = {"state": "void" if why else "passed", "why": why, "primary": "canary/auc", "chances": {}}
    bills = {label: {"client_examples": examples} for label, examples in costs.items()}
    return View(1, "client 3", labels, bills, verdicts, gate, list(shown), list(results), {}, not why)


def gaps(half: float, floor: float | None = 0.5) -> dict[str, dict]:
    nothing = audit(5.0, 4.0, floor=floor)
    return {
        "original": nothing,
        "none": nothing,
        "retrain": audit(1.0, None, floor=floor),
        "half": audit(1 + half, half),
    }


def drawn(plot, *arguments):
    """The panel after ``plot(panel, *arguments)``, and its lines and bars by legend text."""
    panel = Figure().subplots()
    done = plot(panel, *arguments)
    handles, labels = panel.get_legend_handles_labels()
    return done, panel, dict(zip(labels, handles, strict=True))


@pytest.mark.parametrize("panels", range(2, figures.MOST + 3))
def test_no_panel_of_small_multiples_is_alone_in_its_row(panels):
    columns = figures._columns(panels)
    assert panels % columns != 1 and min(panels, 2) <= columns <= 5


def test_quality_against_cost() -> None:
    """The strategy spent 500 of 1000 examples: it stands at 50 %, at its quality 0.6, with a bar down to 0.4."""
    frontier = {"kind": "frontier", "x": [100.0, 400.0], "y": [0.2, 0.7]}
    done, _, shown = drawn(figures._plot_quality, HEADER, view({}, [frontier]))
    assert done
    point, _, (bar,) = shown["half"]
    assert point.get_xydata().tolist() == [[0.5, 0.6]]
    assert [end[1] for end in bar.get_segments()[0]] == [0.4, 0.6]
    assert shown["retrain stopped early"].get_xydata().tolist() == [[0.1, 0.2], [0.4, 0.7]]
    assert shown["another oracle"][0].get_xydata().tolist() == [[1.0, 1.0]]
    assert "none" not in shown and shown["doing nothing"].get_ydata() == [0, 0]


def test_a_void_scenario_draws_no_quality() -> None:
    done, _, shown = drawn(figures._plot_quality, HEADER, view({}, why="nothing was learned"))
    assert not done and not shown


def test_distance_against_cost() -> None:
    """Gaps in floors of 0.5: -1 is 2 floors away, the original's 4 is 8. A retrain stopped at 200 examples is (in the
    two seeds) 1.5 and 0.5 above the whole one: 1 on average, 2 floors."""
    metric = figures.SHOWN

    def result(label: str, seed: int, value: float, rounds: int, examples: int) -> dict:
        cost = {"rounds": rounds, "client_examples": examples}
        return {"label": label, "seed": seed, "values": {metric: value}, "cost": cost}

    results = [result("retrain", 0, 1.0, 10, 1000), result("retrain", 1, 2.0, 10, 1000)]
    results += [result("retrain@2", 0, 2.5, 2, 200), result("retrain@2", 1, 2.5, 2, 200)]
    done, _, shown = drawn(figures._plot_distance, HEADER, view({metric: gaps(-1.0)}, results=results))
    assert done
    assert shown["half"][0].get_xydata().tolist() == [[0.5, 2.0]]
    assert shown["retrain stopped early"].get_xydata().tolist() == [[0.2, 2.0]]
    assert list(shown["doing nothing"].get_ydata()) == [8, 8]
    assert shown["oracle (retrain)"].get_xydata().tolist() == [[1, 1]]


def test_a_diverged_model_is_in_the_legend_alone() -> None:
    _, _, shown = drawn(figures._plot_distance, HEADER, view({figures.SHOWN: gaps(math.nan)}))
    assert "half (diverged)" in shown and "half" not in shown


def test_an_oracle_against_the_others() -> None:
    """1 - (2 + 6)/2 = -3; 2 - (1 + 6)/2 = -1.5; 6 - (1 + 2)/2 = 4.5."""
    assert figures._apart([1.0, 2.0, 6.0]) == [-3.0, -1.5, 4.5]
    assert figures._apart([1.0]) == []


def test_curves_lie_over_the_band_of_oracles() -> None:
    """Oracles that score 1, 2 and 6 make a band from -3 to 4.5; in points, 100 times that."""
    results = [{"label": "retrain", "values": {"a": value, "b": value}} for value in (1.0, 2.0, 6.0)]
    metrics = {"a": gaps(0.5), "b": gaps(0.25)}
    _, panel, shown = drawn(figures._curves, view(metrics, results=results), {0: "a", 5: "b"}, 100)
    corners = shown["3 oracles"].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (-300, 450)
    assert shown["half"][0].get_xydata().tolist() == [[0, 50], [5, 25]]
    assert shown["doing nothing"][0].get_xydata().tolist() == [[0, 400], [5, 400]]
    assert list(panel.get_xticks()) == [0, 5]


def test_stages_are_those_of_the_metric() -> None:
    names = ["canary/auc", "+2/canary/auc", "+10/canary/auc", "+2/forget/accuracy", "relearn/few_1"]
    assert figures._stages(view({name: gaps(0.0) for name in names}), "canary/auc") == {
        2: "+2/canary/auc",
        10: "+10/canary/auc",
    }


def shown_rows() -> list[dict]:
    rows = []
    for label in ("original", "retrain", "none", "half"):
        rows.append({"kind": "margins", "label": label, "x": [0.0, 1.0, 2.0], "y": [0.25, 0.75]})
        rows.append({"kind": "canary_roc", "label": label, "x": [0.0, 0.01, 1.0], "y": [0.0, 0.1, 1.0]})
        rows.append({"kind": "examples", "label": label, "x": [-1.0, 0.0, 3.0], "y": [0.0, 0.5, 1.0]})
        points = [[0, 0, "forgotten, class 3"], [2, 0, "class 1"], [0, 2, "class 2"]]
        classes = [3, 3, 1, 3, -1, 1, 2, 2, 1]
        rows.append({"kind": "regions", "label": label, "width": 3, "classes": classes, "points": points})
    rows.append({"kind": "canary_chance", "label": "", "x": [0.01, 1.0], "low": [0.0, 1.0], "high": [0.2, 1.0]})
    return rows


def everything() -> View:
    names = [
        figures.SHOWN,
        "canary/auc",
        "+5/canary/auc",
        "relearn/few_1",
        "relearn/rejoin_1",
        "forget/cka",
        "client/0",
        *(f"layer/{i}/{name}" for i in (1, 2) for name in ("cka", "original_cka")),
    ]
    results = [
        {"label": "retrain", "seed": k, "values": dict.fromkeys(names, 0.5 + k), "cost": {"rounds": 3}} for k in (0, 1)
    ]
    return view({name: gaps(0.5) for name in names}, shown_rows(), results)


def test_every_figure_is_a_drawing_with_words() -> None:
    drawings = figures.draw(HEADER, everything())
    assert [drawing.name for drawing in drawings] == [
        f"{name}-1"
        for name in (
            *("quality_cost", "distance_cost", "forest", "margins", "examples", "canary_roc", "durability"),
            *("relearn_rejoin", "relearn_few", "features", "layers", "clients", "regions"),
        )
    ]
    for drawing in drawings:
        root = ElementTree.fromstring(drawing.svg)
        words = "".join(root.itertext())
        assert root.tag.endswith("svg") and drawing.caption.endswith(".")
        # ridges and regions name their models; the others say so in their legends
        assert "half" in words and "mathdefault" not in words
        assert "none" not in words.split()


def test_a_network_of_one_layer_has_no_figure_of_features() -> None:
    given = everything()
    audits = {label: {n: row for n, row in rows.items() if "layer/2" not in n} for label, rows in given.audits.items()}
    names = [drawing.name for drawing in figures.draw(HEADER, given._replace(audits=audits))]
    assert "durability-1" in names and not {"features-1", "layers-1"} & set(names)


def test_methods_drawn_by_name_differ_in_colour_and_none_is_grey() -> None:
    """Lines without markers are told apart by it; grey is doing nothing's (matplotlib's C7 is grey, too)."""
    colours = [style["color"] for style in figures._styles(many(figures.MOST)).values()]
    assert len(set(colours)) == len(colours) == figures.MOST and "C7" not in colours


def many(number: int) -> View:
    """A view with so many strategies, of which the last is best."""
    given = everything()
    names = [f"method {i:02}" for i in range(number)]
    half = given.verdicts["half"] | {"quality_privacy_low": 0.0}
    qualities = {n: half | {"quality_privacy": i / number} for i, n in enumerate(names)}
    return given._replace(
        audits=given.audits | {name: given.audits["half"] for name in names},
        costs={k: v for k, v in given.costs.items() if k != "half"} | {name: given.costs["half"] for name in names},
        verdicts=given.verdicts | qualities,
        figures=[
            row | {"label": n} for row in given.figures for n in (names if row["label"] == "half" else [row["label"]])
        ],
    )


def test_of_many_strategies_the_best_are_drawn_and_the_others_named() -> None:
    """Of 15 strategies three are left out of every figure but the forest, which has a line for each."""
    for drawing in figures.draw(HEADER, many(15)):
        words = "".join(ElementTree.fromstring(drawing.svg).itertext())
        assert "method 14" in words and "method 03" in words
        left_out = [f"method {i:02}" for i in range(3)]
        assert all((name in words) == (drawing.name == "forest-1") for name in left_out), drawing.name
        assert drawing.caption.endswith(": method 00, method 01, method 02.") == (drawing.name != "forest-1")
    assert not any("method 00" in drawing.caption for drawing in figures.draw(HEADER, many(12)))


def test_the_forest_shows_what_remains_with_its_interval() -> None:
    """Quality 0.6 in the test's verdicts: 40 % remain, between 30 and 60; it stands below another oracle's 0 %."""
    _, _, _, figure = figures._forest(HEADER, everything())
    (panel,) = figure.axes
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["another oracle", "half"]
    points = [tuple(bar.lines[0].get_xydata()[0].round(6)) for bar in panel.containers]
    assert points == [(0, 0), (40, 1)]
    ends = [bar.lines[2][0].get_segments()[0][:, 0].round(6).tolist() for bar in panel.containers]
    assert ends == [[-10, 20], [30, 60]]


def test_layers_side_by_side_with_the_band_of_oracles() -> None:
    _, _, _, figure = figures._layers(HEADER, everything())
    for panel in figure.axes:
        lines = {line.get_label(): line.get_ydata() for line in panel.lines}
        assert list(lines["half"]) == [1.5, 1.5] and list(lines["doing nothing"]) == [5, 5]
        corners = panel.collections[0].get_paths()[0].vertices[:, 1]  # oracles score 0.5 and 1.5
        assert (corners.min(), corners.max()) == (0.5, 1.5)


def test_without_data_there_are_no_figures() -> None:
    assert figures.draw(HEADER, view({}, why="nothing was learned")) == []


def test_an_inline_figure_takes_the_page_s_colours_and_has_names_of_its_own() -> None:
    one, two = figures.draw(HEADER, everything())[:2]
    assert figures.INK in one.svg and figures.PAPER in one.svg
    inline = figures.inline(one)
    assert inline.startswith("<svg") and figures.INK not in inline and figures.PAPER not in inline
    assert "currentColor" in inline

    def ids(text: str) -> set[str]:
        found = {element.get("id") for element in ElementTree.fromstring(text).iter()} - {None}
        return {str(name) for name in found}

    assert ids(inline) and not ids(inline) & ids(figures.inline(two))
    used = {part.split(")")[0] for part in inline.split("url(#")[1:]} | {
        part.split('"')[0] for part in inline.split('href="#')[1:]
    }
    assert used and used <= ids(inline)


def test_labels_are_text_and_not_mathematics() -> None:
    given = everything()
    strange = "a$_b$<c>&"
    swap = {"half": strange}
    given = given._replace(
        audits={swap.get(k, k): v for k, v in given.audits.items()},
        costs={swap.get(k, k): v for k, v in given.costs.items()},
        verdicts={swap.get(k, k): v for k, v in given.verdicts.items()},
        figures=[row | {"label": swap.get(row["label"], row["label"])} for row in given.figures],
    )
    for drawing in figures.draw(HEADER, given):
        assert strange in "".join(ElementTree.fromstring(drawing.svg).itertext()), drawing.name


@pytest.mark.parametrize("count", [1, 3])
def test_dots_of_a_group_are_spread_evenly_about_its_place(count: int) -> None:
    """0.6 wide in all: one dot in the middle; three at -0.2, 0 and 0.2."""
    assert figures._spread(count) == pytest.approx({1: [0], 3: [-0.2, 0, 0.2]}[count])


def test_the_overview_is_a_png_even_of_a_void_run() -> None:
    views = [everything(), view({}, why="nothing was learned")]
    assert figures.quality_cost(HEADER, views).startswith(b"\x89PNG")
