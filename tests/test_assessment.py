"""The assessment of a stored run is a function of its files; decision regions, of a run and of hand-made answers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from fedforget import assessment, client_app, report
from fedforget.assessment import assess
from fedforget.claims import CONSTANT, NOT_FINITE, UNMOVED
from fedforget.client import answering, training
from fedforget.config import compose
from fedforget.evaluation import ANOTHER, ORACLE, layer_likeness
from fedforget.experiment import Experiment
from fedforget.grid import InProcessGrid
from fedforget.metrics import Outputs, leakage, loss, representation
from fedforget.stage import LEFT, Stage
from fedforget.store import DamagedFile, load_tensors, save_tensors

SMALL = "model=linear learning.rounds=3 partition.clients=5 evaluation=smoke engine.device=cpu"


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


def test_likeness_layer_by_layer() -> None:
    """Two layers: the first is turned and doubled, which CKA does not see; the second is another one altogether. Only
    the rows that both models were asked count, in whatever order."""
    generator = torch.Generator().manual_seed(0)
    one, two, other = (torch.randn(30, 4, generator=generator) for _ in range(3))
    turned = 2 * one @ torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    zeros, rows = torch.zeros(30, dtype=torch.long), torch.arange(30)
    mine = Outputs(torch.zeros(30, 2), zeros, zeros, torch.stack([one, two], 1), rows)
    theirs = Outputs(torch.zeros(30, 2), zeros, zeros, torch.stack([turned, other], 1), rows).take(rows.flip(0)[:25])
    similar = layer_likeness(mine, theirs)
    assert similar[1] == pytest.approx(1, abs=1e-5)
    assert similar[2] == representation.cka(two[5:], other[5:]) < 0.5
    assert layer_likeness(mine, theirs.take(rows[:3])) == {}


def test_layers_of_a_run(run_small) -> None:
    """A linear model has one layer, whose outputs are the logits; doing nothing is the original."""
    experiment, _ = run_small("strategies=[finetune] evaluation.seeds=2")
    _, rows = report.load(experiment.folder)
    values = {(row["label"], row["seed"]): row["values"] for row in rows["result"]}
    assert values["none", 0]["layer/1/original_cka"] == pytest.approx(1)
    assert values["retrain", 0]["layer/1/cka"] == pytest.approx(values["retrain", 1]["layer/1/cka"])
    assert 0.5 < values["finetune", 0]["layer/1/cka"] < 1
    assert "layer/2/cka" not in values["finetune", 0]


def test_change_against_the_original_by_hand() -> None:
    # Near, 3 of 4 points change class; far, 1 of 4: 0.75 / (0.75 + 0.25).
    def answers(*classes: int) -> Outputs:
        logits = torch.nn.functional.one_hot(torch.tensor(classes), 3).float()
        return Outputs(logits, torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long))

    original = {"near": answers(0, 0, 0, 0), "far": answers(0, 1, 2, 0)}
    model = {"near": answers(1, 2, 1, 0), "far": answers(0, 1, 2, 2)}
    assert assessment._regions(model, original) == {"regions/near": 0.75, "regions/far": 0.25, "regions/locality": 0.75}
    assert assessment._regions({"far": model["far"]}, original) == {}


CANARIES = "corruption=canary evaluation.seeds=2 evaluation.durability=[1] evaluation.relearn=1 strategies=[finetune]"


@pytest.fixture(scope="module")
def canary_run(tmp_path_factory):
    """A finished run with every stage: its store, the header and the rows that it wrote."""
    output = tmp_path_factory.mktemp("canaries")
    config = compose("quickstart", f"{SMALL} {CANARIES}")
    experiment = Experiment(config, InProcessGrid(client_app.app, 2), output, lambda line: None)
    header, rows = report.load(experiment.run())
    return experiment.store.root, header, rows


def same(one, other) -> bool:
    """Equal as JSON, so that NaN equals NaN and a tuple a list."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def test_assessing_a_stored_run_again_gives_what_it_printed_and_trains_nothing(canary_run, monkeypatch) -> None:
    def refuse(*arguments):
        raise AssertionError("an assessment asked a client")

    monkeypatch.setattr(training, "train", refuse)
    monkeypatch.setattr(answering, "evaluate", refuse)
    store, header, rows = canary_run
    again = assess(store, header).rows()
    assert again.keys() == rows.keys()
    assert all(same(again[kind], rows[kind]) for kind in rows)


def test_every_stage_is_measured(canary_run) -> None:
    store, header, rows = canary_run
    stages = {entry["stage"] for entry in header["models"]}
    assert stages == {"", "+1", "rejoin 1", "few 1", "retain 1", "head", "path 1", "path 2", "path 3"}
    values = {(row["label"], row["seed"]): row["values"] for row in rows["result"]}
    mine, nothing = values["finetune", 0], values["none", 0]
    leaks = ("+1/canary/calibrated", "+1/rmia/auc", "+1/matched/entropy", "+1/matched/tpr_at_1", "+1/efficacy/logistic")
    for name in ("canary/auc", "canary/calibrated", *leaks, "relearn/few", "relearn/retain"):
        assert name in mine and name in nothing
    assert mine["relearn/rejoin"] == mine["relearn/rejoin_1"]  # the mean of a curve of one point
    assert "+1/probe/accuracy" not in mine
    assert nothing["weights/head_share"] == 0 < mine["weights/head_share"] <= 1
    assert mine["weights/1/share"] == 1  # a linear model has one layer, the second of its modules
    oracle, layers = values["retrain", 0], [name for name in mine if name.startswith("layer/")]
    assert oracle["weights/distance"] == 0 < mine["weights/distance"] != nothing["weights/distance"]
    assert layers == ["layer/1/cka", "layer/1/original_cka", "layer/1/probe"] and 0.1 < mine["layer/1/probe"] <= 1
    assert rows["gate"][0]["examples"]["canary"] == 20
    # The oracle is where it is itself; doing nothing is as far from it as the original.
    apart = {
        label: values[label, 0]["weights/verification_error"] for label in ("retrain", "finetune", "none", "original")
    }
    assert apart["retrain"] == 0 < apart["finetune"] and apart["none"] == apart["original"] > 0
    # The loss of a linear model is convex, so that it nowhere rises above the line between its ends.
    assert mine["weights/barrier"] == pytest.approx(0, abs=1e-6) and nothing["weights/barrier"] == 0
    # Doing nothing is the original, in every stage.
    assert same({**nothing, "head/forget_accuracy": 0}, {**values["original", 0], "head/forget_accuracy": 0})
    assert rows["gate"][0]["primary"] == "canary/calibrated"


def test_the_barrier_is_that_of_the_losses_on_the_way(canary_run, monkeypatch) -> None:
    """In a store whose second step has the answers of nobody: equal logits, whose loss is ln 10."""
    store, header, _ = canary_run
    reader = assessment._Reader(store, header, 0)
    read, asked = reader.outputs, []

    def outputs(label: str, seed: int, stage: Stage = LEFT):
        sets = read(label, seed, stage)
        if stage.kind == "path":
            asked.append(stage)
        if stage == Stage("path", 2):
            sets["test"] = replace(sets["test"], logits=torch.zeros_like(sets["test"].logits))
        return sets

    monkeypatch.setattr(reader, "outputs", outputs)
    mine = reader._values("finetune", 0)
    ends = [reader.outputs(label, 0)["test"] for label in ("original", "finetune")]
    assert mine["weights/barrier"] == pytest.approx(math.log(10) - sum(loss(end) for end in ends) / 2, rel=1e-5)
    assert asked == [Stage("path", step) for step in (1, 2, 3)]


def test_forgotten_examples_are_grouped_by_how_much_was_memorised(canary_run) -> None:
    """Doing nothing has right what the original has: in each third its gap is the original's, not 0."""
    _, _, rows = canary_run
    found = {row["label"]: row["groups"] for row in rows["figure"] if row["kind"] == "memorised"}
    assert list(found) == ["original", "none", "finetune"] and found["none"] == found["original"]
    for groups in found.values():
        assert len(groups) == 3
        assert all(group["gap"] == pytest.approx(group["failure"] - group["loss"]) for group in groups)
    assert found["original"][0]["memorised"] < found["original"][2]["memorised"]


def test_an_oracle_passed_on_the_way_is_a_point_of_the_frontier_and_no_row(canary_run) -> None:
    _, _, rows = canary_run
    passed = {row["label"] for row in rows["result"] if row["label"].startswith("retrain@")}
    assert passed == {"retrain@1", "retrain@2"}  # the training takes three rounds
    for kind in ("audit", "cost", "verdict"):
        assert not passed & {row["label"] for row in rows[kind]}


def test_another_oracle_is_a_stored_model_under_this_seeds_coins(canary_run) -> None:
    """With two seeds each seed's other oracle is that of the other one; its answers are to this seed's questions."""
    store, header, rows = canary_run
    entries = {(e["label"], e["seed"], e["stage"]): e for e in header["models"]}
    assert len(list((store / "models").iterdir())) == 2 * 3  # an oracle, doing nothing and finetune: no more was made
    for k in (0, 1):
        mine, oracle, source = (entries[name, s, ""] for name, s in ((ANOTHER, k), (ORACLE, k), (ORACLE, 1 - k)))
        assert mine["model"] == source["model"] != oracle["model"] and mine["cost"] == source["cost"]
        answers, own, elsewhere = (load_tensors(store / entry["outputs"])[0] for entry in (mine, oracle, source))
        for name in ("forget/rows", "canary/included"):  # the coins decide what was there to forget
            assert torch.equal(answers[name], own[name]) and not torch.equal(answers[name], elsewhere[name])
        assert torch.equal(answers["canary/logits"], elsewhere["canary/logits"])
        assert {stage for name, s, stage in entries if (name, s) == (ANOTHER, k)} == {
            *("", "+1", "rejoin 1", "few 1", "retain 1", "head", "path 1", "path 2", "path 3")
        }
    (judged,) = [row for row in rows["verdict"] if row["label"] == ANOTHER]
    assert judged["seeds"] == 2
    for kind in ("audit", "cost"):
        assert ANOTHER not in {row["label"] for row in rows[kind]}


def test_a_model_is_no_reference_for_itself(canary_run) -> None:
    """Another oracle of one of two seeds has no oracle left to be compared with: nothing is calibrated by itself."""
    _, _, rows = canary_run
    values = {(row["label"], row["seed"]): row["values"] for row in rows["result"]}
    assert "canary/calibrated" in values[ORACLE, 0] and "canary/calibrated" not in values[ANOTHER, 0]


def test_one_oracle_is_no_other(run_small) -> None:
    experiment, _ = run_small("strategies=[finetune]")
    header, _ = report.load(experiment.folder)
    assert ANOTHER not in {entry["label"] for entry in header["models"]}


def test_the_floor_of_the_canary_audit_knows_one_seeds_coins(canary_run) -> None:
    """Oracle 1's margins under the coins of seed 0, and the other way round, at each stage; the floor is what is left
    of the differences when both sides have the same coins."""
    store, header, rows = canary_run
    entries = {(e["label"], e["seed"], e["stage"]): e for e in header["models"]}
    results = {row["seed"]: row for row in rows["result"] if row["label"] == ORACLE}
    for stage, metric in (("", "canary/auc"), ("+1", "+1/canary/auc")):
        apart = []
        for k in (0, 1):
            own, other = (load_tensors(store / entries[ORACLE, s, stage]["outputs"])[0] for s in (k, 1 - k))
            logits, labels = other["canary/logits"].double(), other["canary/labels"]
            margin = leakage.margins(Outputs(logits, labels, labels))
            (expected,) = results[k]["others"][metric]
            assert expected == leakage.canary_auc(margin, own["canary/included"].bool())
            apart.append(results[k]["values"][metric] - expected)
        (row,) = [r for r in rows["audit"] if (r["label"], r["metric"]) == (ORACLE, metric)]
        assert row["floor"] == pytest.approx((abs(apart[0]) + abs(apart[1])) / 2)
        assert row["floor_sd"] == pytest.approx(abs(apart[0] - apart[1]) / 2**0.5)
    assert set(results[0]["others"]) == {f"{s}canary/{m}" for s in ("", "+1/") for m in ("auc", "calibrated")}


def test_a_stage_that_a_broken_model_never_reached_counts_as_nan(canary_run) -> None:
    store, header, _ = canary_run
    gone = [e for e in header["models"] if (e["label"], e["seed"], e["stage"]) != ("finetune", 1, "+1")]
    results = assess(store, header | {"models": gone}).results
    (broken,) = [result for result in results if (result.label, result.seed) == ("finetune", 1)]
    assert math.isnan(broken.values["+1/canary/auc"]) and math.isfinite(broken.values["canary/auc"])


def test_a_run_with_noise_is_judged_by_it_now_and_later(run_small) -> None:
    experiment, _ = run_small("corruption=noise strategies=[finetune] evaluation.seeds=2 evaluation.durability=[1]")
    _, rows = report.load(experiment.folder)
    assert rows["gate"][0]["primary"] == "noise/alignment"
    values = {(row["label"], row["seed"]): row["values"] for row in rows["result"]}
    for name in ("noise/alignment", "noise/p", "+1/noise/alignment"):
        assert values["none", 0][name] == values["original", 0][name] != values["retrain", 0][name]


def test_the_primary_metric_is_the_configured_one_or_fits_the_corruption(canary_run) -> None:
    store, header, _ = canary_run
    assert assess(store, header | {"primary": "forget/accuracy"}).gates[0]["primary"] == "forget/accuracy"
    for kind, primary in (("none", "forget/loss"), ("label_random", "matched/margin")):
        other = header | {"corruption_config": {**header["corruption_config"], "kind": kind}}
        assert assess(store, other).gates[0]["primary"] == primary


def test_a_file_of_answers_that_is_gone_is_named(canary_run) -> None:
    store, header, _ = canary_run
    models = [{**header["models"][0], "outputs": "outputs/gone/outputs.safetensors"}, *header["models"][1:]]
    with pytest.raises(DamagedFile, match=r"gone/outputs.safetensors is damaged \(it is not there\)"):
        assess(store, header | {"models": models})


def test_a_damaged_file_of_answers_is_named(canary_run) -> None:
    store, header, _ = canary_run
    path = store / next(entry["outputs"] for entry in header["models"] if entry["label"] == "finetune")
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DamagedFile, match=rf"{path} is damaged.*running its experiment again recomputes it"):
            assess(store, header)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "change, state", [(lambda logits: logits * torch.nan, NOT_FINITE), (lambda logits: logits * 0, CONSTANT)]
)
def test_a_model_that_answers_nothing_or_one_class_is_called_so(canary_run, change, state) -> None:
    store, header, _ = canary_run
    path = store / next(e["outputs"] for e in header["models"] if (e["label"], e["stage"]) == ("finetune", ""))
    tensors, metadata = load_tensors(path)
    logits = {name: change(tensor) for name, tensor in tensors.items() if name.endswith("/logits")}
    try:
        save_tensors(path, tensors | logits, metadata)
        again = assess(store, header)
    finally:
        save_tensors(path, tensors, metadata)
    rows = {row["label"]: row for row in again.verdicts}
    assert (rows["finetune"]["state"], rows["finetune"]["state_seeds"]) == (state, 1)
    assert rows["finetune"]["rank_first"] is None and not any(
        rows[label]["state"] for label in rows if label != "finetune"
    )
    (mine,) = [result.values for result in again.results if (result.label, result.seed) == ("finetune", 0)]
    shares = ("test/accuracy", "forget/accuracy", "clients/accuracy", "client/0", "test/balanced_accuracy")
    assert all(math.isnan(mine[name]) == (state == NOT_FINITE) for name in shares)


def test_a_model_that_is_the_original_to_rounding_did_not_move(canary_run) -> None:
    """Doing nothing is meant to be the original, and is not blamed for it."""
    store, header, _ = canary_run
    assert not any(row["state"] for row in assess(store, header).verdicts)
    entries = {(e["label"], e["seed"], e["stage"]): e for e in header["models"]}
    path, name = entries["original", 0, ""]["weights"]
    tensors, metadata = load_tensors(store / path)
    nearby = store / "nearby.safetensors"
    for by, state in ((0.0, UNMOVED), (1e-7, UNMOVED), (1e-4, "")):
        save_tensors(nearby, tensors | {name: tensors[name] * (1 + by)}, metadata)
        changed = [
            e | {"weights": [nearby.name, name]} if (e["label"], e["seed"], e["stage"]) == ("finetune", 0, "") else e
            for e in header["models"]
        ]
        rows = {row["label"]: row for row in assess(store, header | {"models": changed}).verdicts}
        assert (rows["finetune"]["state"], rows["none"]["state"]) == (state, "")
    nearby.unlink()


def test_in_a_sequence_a_model_is_compared_with_what_it_started_from(canary_run) -> None:
    """The same entries as a second request: finetune's is where it already was, though far from the original."""
    store, header, _ = canary_run
    first = [entry for entry in header["models"] if entry["stage"] == ""]
    twice = [*first, *(entry | {"request": 1} for entry in first)]
    two = header | {"models": twice, "request_values": header["request_values"] * 2}
    states = {(row["request"], row["label"]): row["state"] for row in assess(store, two).verdicts}
    assert (states[0, "finetune"], states[1, "finetune"], states[1, "none"]) == ("", UNMOVED, "")


def test_a_class_request_is_judged_by_the_classes_that_stay(run_small) -> None:
    experiment, _ = run_small("request=class request.classes=[3] strategies=[finetune] evaluation.seeds=2")
    header, rows = report.load(experiment.folder)
    assert header["request_values"] == [{"scope": "class", "targets": [3], "after_round": None}]
    chances = rows["gate"][0]["chances"]
    assert list(chances) == ["test_retained/accuracy", "clients/accuracy", "clients/worst"]
    entry = next(e for e in header["models"] if (e["label"], e["seed"], e["stage"]) == (ORACLE, 0, ""))
    labels = load_tensors(experiment.store.root / entry["outputs"])[0]["test/labels"]
    counts = labels[labels != 3].bincount()
    assert chances["test_retained/accuracy"] == pytest.approx(float(counts.max() / counts.sum()))
    values = {(row["label"], row["seed"]): row["values"] for row in rows["result"]}
    oracle, original = values["retrain", 0], values["original", 0]
    assert oracle["test_forgotten/accuracy"] == 0 < original["test_forgotten/accuracy"]
    assert oracle["test/accuracy"] < oracle["test_retained/accuracy"]
    text = (experiment.folder / "table.md").read_text()
    columns = next(line for line in text.splitlines() if line.startswith("model"))
    assert "retained classes %" in columns and "forgotten class %" in columns and " test %" not in columns
    assert max(map(len, text.splitlines())) <= 120 and "which utility is judged by" in " ".join(text.split())


def test_a_header_of_an_earlier_version_is_refused_in_a_sentence(canary_run) -> None:
    store, header, _ = canary_run
    earlier = {name: value for name, value in header.items() if name != "request_values"}
    with pytest.raises(ValueError, match="the header has no request_values, because an earlier version wrote it"):
        assess(store, earlier)


def test_a_changed_answer_changes_its_row_and_no_other_models(canary_run) -> None:
    """A strategy's answers are its own: no other model's metrics may depend on them."""
    store, header, rows = canary_run
    path = store / next(e["outputs"] for e in header["models"] if (e["label"], e["stage"]) == ("finetune", ""))
    tensors, metadata = load_tensors(path)
    try:
        save_tensors(path, tensors | {"test/logits": -tensors["test/logits"]}, metadata)
        again = assess(store, header).rows()
    finally:
        save_tensors(path, tensors, metadata)
    changed = [new["label"] for new, old in zip(again["result"], rows["result"], strict=True) if not same(new, old)]
    assert changed == ["finetune"]
