"""The report: what it says, that it fits, and that it can be made again."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from fedforget import claims, evaluation, page, report, tables, verdicts
from fedforget.ledger import Cost
from fedforget.store import save_lines

ATTACK = "matched/margin"
FULL = Cost(rounds=30, client_examples=48_000, bytes_down=30_000_000, bytes_up=30_000_000)
QUARTER = Cost(rounds=10, client_examples=12_000, bytes_down=5_000_000, bytes_up=5_000_000, bytes_stored=2_500_000)


def run(labels: dict[str, tuple[float, Cost]], seeds: int = 3, requests: int = 1, spread: float = 0.01) -> list:
    """A run whose oracles have accuracies .80, .80 + spread, ... and in which each label is that far above them.

    The attack ``matched/margin`` scores 0.5 on each oracle and that much more on the others.
    """
    labels = {"original": (0.15, Cost()), "retrain": (0.0, FULL)} | labels
    results = []
    for request in range(requests):
        for label, (above, cost) in labels.items():
            for seed in range(seeds):
                accuracy = 0.8 + spread * seed + above
                values = {"forget/accuracy": accuracy, "forget/margin": 10 * accuracy, "test/accuracy": 0.9}
                results.append(evaluation.ModelResult(request, label, seed, values | {ATTACK: 0.5 + above}, cost))
    return results


def contents(results: list, level: str = "leaderboard") -> tuple[dict, dict]:
    """The header and the rows of a run."""
    seeds, requests = len({r.seed for r in results}), len({r.request for r in results})
    header = {
        "experiment": "toy",
        "level": level,
        "code": evaluation.LEVELS[level].code,
        "seeds": seeds,
        "claim": "Not much.",
        "requests": [f"client {3 + i}" for i in range(requests)],
        "failed": {},
        "left_out": {},
        "trainings": 2 * seeds,
        "durability": [],
        "tuning": {},
        "config": "c0ffee",
        "data": "da7a",
        "corruption": {"kind": "none"},
        "versions": {"fedforget": "1"},
        "trajectory": "7ra11",
        "strategies": {},
        "options": {},
        "models": [],
    }
    rows: dict = {"figure": [], "gate": [], "verdict": [], "result": [asdict(result) for result in results]}
    for request in range(requests):
        models = verdicts.evidence([result for result in results if result.request == request], {})
        chances = {"test/accuracy": 0.1}
        found = verdicts.gates(models, ATTACK, chances)
        rows["gate"].append({"request": request, "primary": ATTACK, "examples": {"forget": 144}, **found})
        rows["verdict"] += [{"request": request, **row} for row in verdicts.judge(models, ATTACK, chances)]
    shown = [result for result in results if result.label != evaluation.ANOTHER]
    return header, rows | {"audit": evaluation.audit(shown), "cost": evaluation.bill(shown)}


def table(results: list, level: str = "leaderboard") -> str:
    return report.render_table(*contents(results, level))


def line(text: str, start: str) -> list[str]:
    """Cells of the last row that starts so: that of the second table."""
    *_, found = [found for found in text.splitlines() if found.startswith(start) and " | " in found]
    return [cell.strip() for cell in found.split("|")]


def flat(text: str) -> str:
    return " ".join(text.split())


def test_table_content() -> None:
    text = table(run({"none": (0.15, Cost()), "finetune": (0.05, QUARTER)}), "screen")
    assert text.startswith("**toy** (forget client 3): evidence level screen (EL1), K = 3 seeds. Not much.")
    assert line(text, "model")[1:6] == ["forget %", "retain %", "holdout %", "test %", "gap, pts"]
    # oracles .80 .81 .82: mean 81, sd 1, half-width 4.303 / sqrt(3) = 2.48; floor (1.5 + 0 + 1.5) / 3 = 1 point
    assert line(text, "oracle") == [
        "oracle (retrain)", "81.0±2.5", "-", "-", "90.0±0.0", "floor 1.0", "1.0", "30", "48k", "60MB", "0B",
    ]  # fmt: skip
    assert line(text, "original")[5:] == ["+15.0±0.0", "15.0", "-", "-", "-", "-"]
    assert line(text, "finetune")[5:] == ["+5.0±0.0", "5.0", "3.0x", "4.0x", "6.0x", "2.5MB"]
    assert line(text, "none")[7:] == ["free", "free", "free", "0B"]
    assert "Accuracy alone does not show forgetting." in flat(text)


def test_scores_and_the_sentence() -> None:
    """The original's attack is 0.15 from the oracle's, finetune's 0.05: a third remains, so forgetting is 2/3.

    All seeds agree, so the interval is a point and the limit the value; test accuracy is the oracle's, so utility is 1.
    The TOST margin is 0.2 x 0.15 = 0.03 < 0.05: different. No retrain was stopped early, so no speed-up is known.
    """
    text = table(run({"none": (0.15, Cost()), "finetune": (0.05, QUARTER), evaluation.ANOTHER: (0.0, FULL)}))
    scores = text[: text.index("- finetune")]
    assert line(scores, "finetune") == ["finetune", "0.67", "1.00", "-", "0.67", "0.67", "1", "-", "different"]
    assert line(scores, "none")[:6] == ["none (original)", "0.00", "1.00", "-", "0.00", "0.00"]
    assert line(scores, "another")[:6] == ["another oracle", "1.00", "1.00", "-", "1.00", "1.00"]
    assert (
        "- finetune: 33 % [33, 33] of what doing nothing leaks remains (matched/margin); different from retraining; "
        "quality 0.67, at least 0.67; 4.0x cheaper than a full retrain." in flat(text)
    )


def test_every_table_says_how_much_evidence_there_is() -> None:
    blocks = table(run({"finetune": (0.05, QUARTER)}, requests=2)).split("\n\n")
    tables = [i for i, block in enumerate(blocks) if " | " in block]
    stamp = "EL2 (leaderboard), K = 3, primary metric matched/margin; gate: passed"
    assert len(tables) == 4 and {blocks[i - 1] for i in tables} == {stamp}


def test_a_void_scenario_has_no_scores() -> None:
    """The original scores what the oracles do, so nothing was remembered."""
    text = table(run({"original": (0.0, Cost()), "finetune": (0.05, QUARTER)}))
    assert "VOID: there is nothing to forget: under matched/margin original and oracle are equal (0.5)" in flat(text)
    assert "no scores and no verdicts" in flat(text)
    assert text.count("\n:--") == 1 and "quality" not in text and "- finetune" not in text


def test_table_is_aligned_markdown_that_fits_a_terminal() -> None:
    lines = table(run({"finetune": (-0.5, QUARTER), "truncated_retrain": (0.01, QUARTER)}, requests=2)).splitlines()
    assert max(map(len, lines)) <= 120
    starts = [i for i, row in enumerate(lines) if row.startswith(":--")]
    assert len(starts) == 4
    for i in starts:
        rows = [lines[i - 1], *itertools.takewhile(lambda row: " | " in row, lines[i:])]
        assert len(rows) > 4 and len({tuple(i for i, letter in enumerate(row) if letter == "|") for row in rows}) == 1
    assert [row for row in lines if row.startswith("###")] == [
        "### Request 1 of 2: client 3",
        "### Request 2 of 2: client 4",
    ]


def test_one_seed_claims_nothing() -> None:
    text = table(run({"finetune": (0.05, QUARTER)}, seeds=1), "smoke")
    assert "K = 1 seed." in flat(text) and "K = 1, so no interval and no floor" in flat(text)
    assert "cannot be checked: one seed has no spread between oracles to compare a distance with" in flat(text)
    assert "cannot be checked with one seed, so there are no scores and no verdicts" in flat(text)
    assert "quality" not in text and "remains" not in text and "0.67" not in text and "±" not in text
    assert line(text, "finetune")[1] == "85.0"


def test_the_lowest_level_shows_no_score_however_many_seeds_it_has() -> None:
    text = table(run({"finetune": (0.05, QUARTER)}), "smoke")
    assert "gate: passed" in text and "EL0 claims nothing about any method, so there are no scores" in flat(text)
    assert text.count("\n:--") == 1 and "quality" not in text and "remains" not in text


def test_failures_are_named() -> None:
    header, rows = contents(run({}))
    text = report.render_table(header | {"failed": {"pga": "a client sent NaN"}}, rows)
    assert "- pga failed and has no row: a client sent NaN" in text


def test_no_forget_set_still_reports() -> None:
    results = run({"finetune": (0.05, QUARTER)})
    for result in results:
        del result.values["forget/accuracy"], result.values["forget/margin"]
    assert line(table(results), "finetune")[5:] == ["-", "-", "3.0x", "4.0x", "6.0x", "2.5MB"]


def test_header_is_checked() -> None:
    header, rows = contents(run({}))
    del header["claim"], header["requests"]
    with pytest.raises(ValueError, match="report header lacks claim, requests; it needs experiment"):
        report.render_table(header, rows)


@pytest.mark.parametrize("seeds, requests", [(1, 1), (3, 2)])
def test_files_are_written_and_made_again(tmp_path: Path, seeds: int, requests: int) -> None:
    labels = {"none": (0.15, Cost()), "finetune": (0.05, QUARTER), "ascent": (math.nan, QUARTER)}
    header, rows = contents(run(labels, seeds, requests))
    folder = tmp_path / "run"
    paths = report.write(folder, header, rows)
    drawn = ("distance_cost", "forest", "quality_cost") if seeds > 1 else ("distance_cost",)  # one seed has no scores
    figures = [f"figures/{name}-{i + 1}.svg" for i in range(requests) for name in drawn]
    figures += ["figures/sequence.svg"] * (requests > 1)
    files = ["audit.csv", "quality_cost.png", "report.html", "results.jsonl", "table.md", "verdicts.csv"]
    assert sorted(paths) == sorted([*files, *figures])
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(paths.values())
    assert paths["quality_cost.png"].read_bytes().startswith(b"\x89PNG")
    assert paths["table.md"].read_text() == report.render_table(header, rows)
    for name, kind in (("audit.csv", "audit"), ("verdicts.csv", "verdict")):
        with paths[name].open() as file:
            read = list(csv.DictReader(file))
        assert [list(row) for row in read] == [list(row) for row in rows[kind]]
        assert [row["label"] for row in read] == [row["label"] for row in rows[kind]]

    loaded = report.load(folder)
    assert repr(loaded) == repr((header, {kind: rows[kind] for kind in report.KINDS}))
    first = {name: path.read_bytes() for name, path in paths.items()}
    again = report.write(tmp_path / "again", *loaded)
    assert {name: path.read_bytes() for name, path in again.items()} == first


def test_a_failure_leaves_the_old_files(tmp_path: Path) -> None:
    header, rows = contents(run({}))
    paths = report.write(tmp_path, header, rows)
    before = paths["table.md"].read_text()
    with pytest.raises(ValueError, match="header lacks"):
        report.write(tmp_path, {}, rows)
    assert paths["table.md"].read_text() == before


def test_load_needs_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no results.jsonl"):
        report.load(tmp_path)


def test_the_record_is_strict_json_even_where_numbers_are_not_finite(tmp_path: Path) -> None:
    value = {"a": [math.inf, -math.inf, {"b": 1.5}], "c": math.nan, "d": "text", "e": None}
    written = json.loads(json.dumps(report._to_json(value), allow_nan=False))
    read = report._from_json(written)
    assert read["a"] == value["a"] and math.isnan(read["c"]) and read["d"] == "text" and read["e"] is None


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([{"hello": {"a": 1}}], "is no record of a run: a line of it is neither a header nor one of"),
        ([[1]], "is no record of a run"),
        ([{"header": 3}], "is no record of a run"),
        ([{"header": {"experiment": "x"}}], "report header lacks level, code"),
    ],
)
def test_a_foreign_record_is_refused_in_a_sentence(tmp_path: Path, lines: list, sentence: str) -> None:
    save_lines(tmp_path / report.RECORD, lines)
    with pytest.raises(ValueError, match=sentence):
        report.load(tmp_path)


def test_a_record_of_an_earlier_version_without_its_store_is_refused_in_a_sentence(tmp_path: Path) -> None:
    header, rows = contents(run({"finetune": (0.05, QUARTER)}))
    for part in ("examples", "state", "chances"):
        gates = [{name: value for name, value in gate.items() if name != part} for gate in rows["gate"]]
        with pytest.raises(ValueError, match="lacks the sizes of audit sets or the states of its gates, because an"):
            report.write(tmp_path, header, {**rows, "gate": gates})


def test_a_sequence_is_drawn_on_the_page_request_after_request(tmp_path: Path) -> None:
    for requests in (1, 2):
        header, rows = contents(run({"finetune": (0.05, QUARTER)}, requests=requests))
        report.write(tmp_path / str(requests), header, rows)
    one, two = ((tmp_path / name / "report.html").read_text() for name in ("1", "2"))
    assert "The sequence of requests" in two and "starts from the model that the one before left" in two
    assert "The sequence" not in one and not (tmp_path / "1" / "figures" / "sequence.svg").exists()
    drawn = (tmp_path / "2" / "figures" / "sequence.svg").read_text()
    assert all(text in drawn for text in ("client 3", "client 4", "finetune", "remaining, 0 = the oracle"))


# What gate and level let be shown


MODELS = {"none": (0.15, Cost()), "finetune": (0.05, QUARTER), evaluation.ANOTHER: (0.0, QUARTER)}


def texts(level: str, seeds: int, tmp_path: Path) -> tuple[str, list[dict], str]:
    """Table and page of a run, the rows of its verdicts.csv, and the names of its figures."""
    head, rows = contents(run(MODELS, seeds=seeds), level)
    paths = report.write(tmp_path, head, rows)
    (view,) = tables.views(head, rows)
    with paths["verdicts.csv"].open() as file:
        verdicts = list(csv.DictReader(file))
    return page.render(head, [view], [[]], []) + paths["table.md"].read_text(), verdicts, " ".join(paths)


@pytest.mark.parametrize("level, seeds", [("smoke", 1), ("smoke", 3), ("screen", 1), ("leaderboard", 1)])
def test_without_evidence_no_table_sentence_figure_or_file_has_a_score(level: str, seeds: int, tmp_path: Path) -> None:
    """Whatever the level is called: one seed cannot be checked, and level smoke shows no scores of three either."""
    text, verdicts, files = texts(level, seeds, tmp_path)
    body = re.sub(r"<style>.*</style>|<section id=.(?:reading|run).*?</section>", "", text, flags=re.DOTALL)
    said = re.sub(r"no scores and no verdicts", "", body)
    for word in ("Tests and limits", "Scores of other papers", "at equal quality", "remains", "of what doing nothing"):
        assert word not in said, word
    assert "<h3>Verdicts" not in said and ">Verdicts<" not in said and "fidelity" not in said
    assert "forest" not in files and "figures/quality_cost" not in files
    for row in verdicts:
        assert {column for column, cell in row.items() if cell} <= set(claims.FREE)
        assert row["verdict"] == (claims.UNCHECKED if seeds == 1 else "no claim")


def test_the_share_of_a_gap_that_is_closed_is_a_score_too(tmp_path: Path) -> None:
    for level in ("smoke", "screen"):
        head, rows = contents(run(MODELS, seeds=3), level)
        with report.write(tmp_path / level, head, rows)["audit.csv"].open() as file:
            known = [row["gap_closed"] for row in csv.DictReader(file) if row["gap_closed"]]
        assert bool(known) == (level == "screen")


def test_a_screen_has_scores_and_no_rank_verdict_or_speedup_at_equal_quality(tmp_path: Path) -> None:
    text, verdicts, _ = texts("screen", 3, tmp_path)
    assert ">Verdicts<" in text and "may claim no ranking" in text and "short of the oracle" in text
    for row in verdicts:
        assert row["forgetting"] and not any(row[c] for c in ("rank_first", "examples_speedup", "verdict_p", "harmed"))
        assert row["verdict"] in ("short of the oracle", "no direction")


def test_the_record_keeps_what_is_not_shown(tmp_path: Path) -> None:
    head, rows = contents(run(MODELS, seeds=3), "smoke")
    report.write(tmp_path, head, rows)
    _, read = report.load(tmp_path)
    assert [row["forgetting"] for row in read["verdict"]] == [row["forgetting"] for row in rows["verdict"]] != []


def test_a_state_stands_beside_the_name_and_in_the_sentence_and_last(tmp_path: Path) -> None:
    head, rows = contents(run(MODELS | {"ascent": (0.0, QUARTER)}, seeds=3))
    for row in rows["verdict"]:
        if row["label"] == "ascent":
            row |= {"state": claims.CONSTANT, "state_seeds": 2}
    (view,) = tables.views(head, rows)
    verdicts, accuracies = tables.verdict_table(head, view), tables.accuracy_table(head, view)
    assert verdicts.rows[-1][0] == "ascent" and verdicts.rows[-1][-1] == "constant answer 2/3"
    assert "ascent (constant answer 2/3)" in [row[0] for row in accuracies.rows]
    assert tables.sentences(head, view)[-1] == (
        "ascent: constant answer: in 2 of 3 seeds it answers one class whatever it is asked, so its numbers say "
        "nothing about forgetting; 4.0x cheaper than a full retrain."
    )
    assert tables.metric_table(view, "ascent").note.startswith("constant answer: in 2 of 3 seeds it answers one class")
