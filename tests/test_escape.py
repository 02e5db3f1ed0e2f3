"""Texts from outside are shown, and do nothing, in Markdown, CSV, HTML, figures and terminals."""

from __future__ import annotations

import csv
import html
import re

import pytest

from fedforget import report, tables
from fedforget.escape import csv_cell, everywhere, lines, markdown, plain
from fedforget.ledger import Cost
from tests.test_report import FULL, contents, run

HOSTILE = "=<img src=x>`|\x1b[1m\u202egnp\n# \x9b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("client 3, café, 数据, a_b", "client 3, café, 数据, a_b"),
        ("\x1b[2J\x9b1m\x07\x7f", r"\x1b[2J\x9b1m\x07\x7f"),
        ("a\r\nb\tc", "a  b c"),
        ("\u202eevil\u2066\u200b\ufeff\u2028\ud800", r"\u202eevil\u2066\u200b\ufeff\u2028\ud800"),
    ],
)
def test_control_characters_are_shown_as_their_codes(text: str, shown: str) -> None:
    assert plain(text) == shown == lines(text).replace("\n", " ").replace("\r", " ")
    shown.encode()


def test_a_terminal_keeps_its_lines() -> None:
    assert lines("a\nb\x1b[0m") == "a\nb\\x1b[0m"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amnesiac_repair, 93.8±1.7, +5/forget/margin", "amnesiac_repair, 93.8±1.7, +5/forget/margin"),
        ("a|b `c` *d* [e](f) <g>", r"a\|b \`c\` \*d\* \[e\](f) \<g\>"),
        ("_a_ b_ _c a_b", r"\_a\_ b\_ \_c a_b"),
        (r"\|", r"\\\|"),  # a backslash must not undo the mark
        ("a\n# b", "a # b"),
    ],
)
def test_markdown_shows_the_text_as_it_is(text: str, shown: str) -> None:
    assert markdown(text) == shown


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@sum(a)", "\t=1", "\r=1", " =1", "\n@x"])
def test_a_spreadsheet_computes_nothing(start: str) -> None:
    assert csv_cell(start).startswith("'")
    assert csv_cell("a=1") == "a=1"


def test_every_text_at_any_depth_is_reached_and_numbers_stay() -> None:
    value = {"a\x07": ["\x07", {"b": ("\x07", -1.5, None, True)}]}
    assert everywhere(value, plain) == {"a\\x07": ["\\x07", {"b": ["\\x07", -1.5, None, True]}]}


def hostile_run() -> tuple[dict, dict]:
    header, rows = contents(run({"none": (0.15, Cost()), HOSTILE: (0.05, FULL)}))
    header |= {"experiment": HOSTILE, "requests": [HOSTILE], "claim": HOSTILE}
    return header | {"failed": {HOSTILE: HOSTILE}, "left_out": {HOSTILE: HOSTILE}}, rows


def test_a_hostile_text_gets_through_the_whole_report_and_does_nothing(tmp_path) -> None:
    header, rows = hostile_run()
    written = report.write(tmp_path, header, rows)
    assert report.load(tmp_path)[0] == header, "the record keeps what was said"
    for name, path in written.items():
        if path.suffix != ".png" and name != report.RECORD:
            text = path.read_text(encoding="utf-8")
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), name
            assert path.suffix == ".csv" or not re.search(r"(?<!\\)<img", text), name
            assert name.endswith(".csv") or "gnp" in html.unescape(text) or "figures/" in name, name
    for name in ("audit.csv", "verdicts.csv"):
        with (tmp_path / name).open(newline="") as file:
            labels = {row["label"] for row in csv.DictReader(file)}
        assert csv_cell(HOSTILE) in labels and not any(label.startswith("=") for label in labels)


def test_a_hostile_text_makes_no_column_and_no_line_in_a_table() -> None:
    header, rows = hostile_run()
    text = report.render_table(header, rows)
    body = [line for line in text.splitlines() if " | " in re.sub(r"\\.", "", line)]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in body}) == 2  # two tables
    assert not any(line.startswith("# ") for line in text.splitlines())
    friendly = contents(run({"none": (0.15, Cost()), "fine": (0.05, FULL)}))
    assert len(tables.views(*friendly)) == len(tables.views(header, rows))


def test_numbers_in_csv_files_stay_numbers(tmp_path) -> None:
    report.write(tmp_path, *contents(run({"none": (0.15, Cost()), "worse": (-0.05, FULL)})))
    with (tmp_path / "audit.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert any(row["gap"].startswith("-") for row in found if row["gap"])
    assert not any("'" in cell for row in found for cell in row.values())
