"""The report: what it says, that it fits, and that it can be made again."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from fedforget import evaluation, report
from fedforget.ledger import Cost

FULL = Cost(rounds=30, client_examples=48_000, bytes_down=30_000_000, bytes_up=30_000_000)
QUARTER = Cost(rounds=10, client_examples=12_000, bytes_down=5_000_000, bytes_up=5_000_000, bytes_stored=2_500_000)


def run(labels: dict[str, tuple[float, Cost]], seeds: int = 3, requests: int = 1, spread: float = 0.01) -> list:
    """A run whose oracles have accuracies .80, .80 + spread, ... and in which each label is that far above them."""
    labels = {"original": (0.15, Cost()), "retrain": (0.0, FULL)} | labels
    results = []
    for request in range(requests):
        for label, (above, cost) in labels.items():
            for seed in range(seeds):
                accuracy = 0.8 + spread * seed + above
                values = {"forget/accuracy": accuracy, "forget/margin": 10 * accuracy, "test/accuracy": 0.9}
                results.append(evaluation.ModelResult(request, label, seed, values, cost))
    return results


def contents(results: list) -> tuple[dict, list, list, list]:
    seeds, requests = len({r.seed for r in results}), len({r.request for r in results})
    header = {
        "experiment": "toy",
        "level": "screen",
        "seeds": seeds,
        "claim": "Not much.",
        "requests": [f"client {3 + i}" for i in range(requests)],
    }
    return header, evaluation.audit(results), evaluation.bill(results), [asdict(result) for result in results]


def table(results: list) -> str:
    return report.render_table(*contents(results)[:3])


def line(text: str, start: str) -> list[str]:
    (found,) = [found for found in text.splitlines() if found.startswith(start) and " | " in found]
    return [cell.strip() for cell in found.split("|")]


def flat(text: str) -> str:
    return " ".join(text.split())


def test_table_content() -> None:
    text = table(run({"none": (0.15, Cost()), "finetune": (0.05, QUARTER)}))
    assert text.startswith("**toy** (forget client 3): evidence level screen, K = 3 seeds. Not much.")
    assert line(text, "model")[1:6] == ["forget %", "retain %", "holdout %", "test %", "gap, pts"]
    # oracles .80 .81 .82: mean 81, sd 1, half-width 4.303 / sqrt(3) = 2.48; floor (1.5 + 0 + 1.5) / 3 = 1 point
    assert line(text, "oracle") == [
        "oracle (retrain)", "81.0±2.5", "-", "-", "90.0±0.0", "floor 1.0", "1.0", "30", "48k", "60MB", "0B",
    ]  # fmt: skip
    assert line(text, "original")[5:] == ["+15.0±0.0", "15.0", "-", "-", "-", "-"]
    assert line(text, "finetune")[5:] == ["+5.0±0.0", "5.0", "3.0x", "4.0x", "6.0x", "2.5MB"]
    assert line(text, "none")[7:] == ["free", "free", "free", "0B"]
    assert "Accuracy alone does not show forgetting." in flat(text)


def test_table_is_aligned_markdown_that_fits_a_terminal() -> None:
    lines = table(run({"finetune": (-0.5, QUARTER)}, requests=2)).splitlines()
    assert max(map(len, lines)) <= 120
    rows = [row for row in lines if " | " in row]
    assert len({tuple(i for i, letter in enumerate(row) if letter == "|") for row in rows}) == 1
    assert [row for row in lines if row.startswith("###")] == [
        "### Request 1 of 2: client 3",
        "### Request 2 of 2: client 4",
    ]


def verdict(above: list[float], floor_spread: float = 0.01, signal: float = 0.15) -> str:
    results = run({"original": (signal, Cost())}, spread=floor_spread)
    for seed, shift in enumerate(above):
        accuracy = 0.8 + floor_spread * seed + shift
        values = {"forget/accuracy": accuracy, "forget/margin": 10 * accuracy, "test/accuracy": 0.9}
        results.append(evaluation.ModelResult(0, "x", seed, values, QUARTER))
    text = flat(table(results))
    return text[text.index("- x: forget accuracy") :].split("; forget margin")[0].split(": ")[-1]


@pytest.mark.parametrize(
    "above, expected",
    [
        ([0.05, 0.05, 0.05], "still distinguishable"),
        ([-0.05, -0.05, -0.05], "distinguishable, beyond the oracle"),
        ([0.001, 0.001, 0.002], "within the floor"),
        ([0.0, 0.005, 0.01], "unresolved, the interval reaches beyond the floor"),
        ([0.0, 0.02, 0.04], "unresolved, the interval reaches into the floor"),
        ([math.nan, 0.0, 0.0], "the model diverged"),
    ],
)
def test_verdicts_follow_the_interval(above: list[float], expected: str) -> None:
    assert verdict(above) == expected


def test_verdicts_without_signal() -> None:
    nothing = "nothing to forget under this metric"
    assert verdict([0.0, 0.0, 0.001], signal=0.02) == nothing
    assert verdict([-0.5, -0.5, -0.5], signal=0.02) == f"{nothing}, and yet distinguishable"


def test_sentences_state_the_cost() -> None:
    dear = Cost(rounds=60, client_examples=96_000)
    text = flat(table(run({"none": (0.15, Cost()), "finetune": (0.05, QUARTER), "slow": (0.0, dear)})))
    assert (
        "- finetune: forget accuracy is 5.0 ± 0.0 points above the oracle (floor 1.0): still distinguishable; "
        "forget margin is 0.50 ± 0.00 nats above the oracle (floor 0.10): still distinguishable; "
        "4.0x cheaper in client examples." in text
    )
    assert "within the floor; 2.0x dearer in client examples." in text
    assert "no client examples spent." in text


def test_one_seed_claims_nothing() -> None:
    text = flat(table(run({"finetune": (0.05, QUARTER)}, seeds=1)))
    assert "K = 1 seed." in text and "K = 1, so no interval and no floor" in text
    assert "forget accuracy is 5.0 points above the oracle: one seed, so no verdict" in text
    assert "±" not in text


def test_no_forget_set_still_reports() -> None:
    results = run({"finetune": (0.05, QUARTER)})
    for result in results:
        del result.values["forget/accuracy"], result.values["forget/margin"]
    header, audits, costs, _ = contents(results)
    assert "- finetune: 4.0x cheaper in client examples." in report.render_table(header, audits, costs)


def test_header_is_checked() -> None:
    with pytest.raises(ValueError, match="report header lacks claim, requests"):
        report.render_table({"experiment": "toy", "level": "smoke", "seeds": 1}, [], [])


@pytest.mark.parametrize("seeds, requests", [(1, 1), (3, 4)])
def test_files_are_written_and_made_again(tmp_path: Path, seeds: int, requests: int) -> None:
    labels = {"none": (0.15, Cost()), "finetune": (0.05, QUARTER), "ascent": (math.nan, QUARTER)}
    given = contents(run(labels, seeds, requests))
    paths = report.write(tmp_path / "run", *given)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(paths)
    assert sorted(paths) == ["audit.csv", "quality_cost.png", "results.jsonl", "table.md"]
    assert paths["quality_cost.png"].read_bytes().startswith(b"\x89PNG")
    assert paths["table.md"].read_text() == report.render_table(*given[:3])
    with paths["audit.csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(given[1]) and float(rows[0]["value"]) == given[1][0]["value"]

    assert repr(report.load(tmp_path / "run")) == repr(given)
    first = {name: path.read_bytes() for name, path in paths.items()}
    for name in ("table.md", "audit.csv", "quality_cost.png"):
        paths[name].unlink()
    assert {name: path.read_bytes() for name, path in report.rewrite(tmp_path / "run").items()} == first


def test_a_failure_leaves_the_old_files(tmp_path: Path) -> None:
    given = contents(run({}))
    paths = report.write(tmp_path, *given)
    before = paths["table.md"].read_text()
    with pytest.raises(ValueError, match="header lacks"):
        report.write(tmp_path, {}, *given[1:])
    assert paths["table.md"].read_text() == before


def test_load_needs_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no results.jsonl"):
        report.load(tmp_path)


def test_the_record_is_strict_json_even_where_numbers_are_not_finite(tmp_path: Path) -> None:
    value = {"a": [math.inf, -math.inf, {"b": 1.5}], "c": math.nan, "d": "text", "e": None}
    written = json.loads(json.dumps(report._to_json(value), allow_nan=False))
    read = report._from_json(written)
    assert read["a"] == value["a"] and math.isnan(read["c"]) and read["d"] == "text" and read["e"] is None
