"""Decision regions in the assessment of a whole run, and of hand-made answers."""

from __future__ import annotations

import json

import torch

from fedforget import assessment
from fedforget.metrics import Outputs


def test_regions_of_a_run(run_small) -> None:
    experiment, _ = run_small("strategies=[finetune] evaluation.seeds=2")
    lines = [json.loads(line) for line in (experiment.folder / "results.jsonl").read_text().splitlines()]
    figures = {
        line["figure"]["label"]: line["figure"]
        for line in lines
        if "figure" in line and line["figure"]["kind"] == "regions"
    }
    assert list(figures) == ["original", "retrain", "none", "finetune"]
    for row in figures.values():
        assert row["width"] == 40 and len(row["classes"]) == 1600 and row["points"] == figures["original"]["points"]
    assert figures["none"]["classes"] == figures["original"]["classes"] != figures["retrain"]["classes"]
    values = {(r["label"], r["seed"]): r["values"] for r in (line["result"] for line in lines if "result" in line)}
    for seed in (0, 1):
        same, oracle = values["none", seed], values["retrain", seed]
        assert [same[f"regions/{name}"] for name in ("near", "far", "locality")] == [0, 0, 0.5]
        assert oracle["regions/near"] > 0 and 0 < oracle["near/disagreement"] < 1
        # Two oracles differ from each other as much as from one another.
        assert oracle["far/disagreement"] == values["retrain", 1 - seed]["far/disagreement"]


def test_a_picture_by_hand() -> None:
    # 3 x 3 points, all of class 1 but the middle one, which is of class 0, and the last, which is broken.
    logits = torch.tensor([[0.0, 1.0]]).repeat(9, 1)
    logits[4], logits[8] = torch.tensor([1.0, 0.0]), torch.tensor([torch.nan, 0.0])
    # The images stand in three corners: places 0, 2 and 6.
    labels = torch.tensor([1, 1, 0, 1, 0, 0, 1, 1, 0])
    row = assessment._drawn("someone", Outputs(logits, labels, torch.zeros(9, dtype=torch.long)))
    assert row == {
        "kind": "regions",
        "label": "someone",
        "width": 3,
        "classes": [1, 1, 1, 1, 0, 1, 1, 1, -1],
        "points": [[0, 0, "forgotten, class 1"], [2, 0, "class 0"], [0, 2, "class 1"]],
    }


def test_change_against_the_original_by_hand() -> None:
    # Near, 3 of 4 points change class; far, 1 of 4: 0.75 / (0.75 + 0.25).
    def answers(*classes: int) -> Outputs:
        logits = torch.nn.functional.one_hot(torch.tensor(classes), 3).float()
        return Outputs(logits, torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long))

    original = {"near": answers(0, 0, 0, 0), "far": answers(0, 1, 2, 0)}
    model = {"near": answers(1, 2, 1, 0), "far": answers(0, 1, 2, 2)}
    assert assessment._regions(model, original) == {"regions/near": 0.75, "regions/far": 0.25, "regions/locality": 0.75}
    assert assessment._regions({"far": model["far"]}, original) == {}
