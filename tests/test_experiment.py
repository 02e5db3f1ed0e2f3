"""Whole runs in this process: numbers do not depend on nodes, results are shared, bad input is refused before work."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from PIL import Image

from fedforget import client_app, data, messages, report
from fedforget.client.workbench import workbench
from fedforget.cohort import AuditFailed, TooFewClients
from fedforget.data import load
from fedforget.request import UnlearningRequest
from fedforget.run import addresses
from fedforget.run.header import left_out
from fedforget.run.setting import cohort_of
from fedforget.run.trajectories import Trajectories
from fedforget.store import load_tensors

LIST = "strategies=[finetune,amnesiac,amnesiac_repair,federaser,fedaccum,truncated_retrain] strategy.finetune.rounds=2"


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_numbers_do_not_depend_on_the_number_of_nodes(run_small, stored_models, tmp_path):
    results = []
    for nodes in (1, 2, 4):
        run_small(f"{LIST} learning.fraction=0.6", tmp_path / str(nodes), nodes)
        results.append(stored_models(tmp_path / str(nodes)))
    assert len(results[0]) == 8
    assert equal(results[0], results[1]) and equal(results[0], results[2])


@pytest.mark.fast
@pytest.mark.parametrize(
    "request_overrides",
    [
        "request.clients=[1,3]",
        "request=sample request.clients=[2] request.share=0.3",
        "request=sample request.clients=[2] request.share=1.0 request.samples=[0,5,9]",
        "request=class request.classes=[3,4]",
    ],
)
def test_every_scope_is_served_and_paired_with_an_oracle(run_small, request_overrides):
    experiment, said = run_small(f"{request_overrides} strategies=[finetune] evaluation.seeds=2")
    lines = [json.loads(line) for line in (experiment.folder / "results.jsonl").read_text().splitlines()]
    results = [line["result"] for line in lines if "result" in line]
    labels = ("original", "retrain", "none", "finetune", "another oracle", "retrain@1", "retrain@2")  # two checkpoints
    assert {(r["label"], r["seed"]) for r in results} == {(label, seed) for label in labels for seed in (0, 1)}
    assert all("forget/accuracy" in r["values"] and "test/loss" in r["values"] for r in results)
    assert "oracle (retrain)" in said[-2]


def test_a_sequence_redefines_the_oracle(run_small):
    experiment, _ = run_small("request.then='[{clients: [1]}]' strategies=[finetune,amnesiac]")
    lines = [json.loads(line) for line in (experiment.folder / "results.jsonl").read_text().splitlines()]
    header = next(line["header"] for line in lines if "header" in line)
    models = {(m["request"], m["label"]): m["model"] for m in header["models"]}
    assert models[0, "retrain"] != models[1, "retrain"] and models[0, "amnesiac"] != models[1, "amnesiac"]
    assert models[0, "original"] == models[1, "original"]
    # The second oracle never asks either client.
    _, metadata = load_tensors(experiment.store.root / "models" / models[1, "retrain"] / "model.safetensors")
    assert metadata["contacted"] == [0, 2, 4]


def test_none_is_the_original_and_oracles_are_paired(run_small):
    experiment, _ = run_small("strategies=[]")
    lines = [json.loads(line) for line in (experiment.folder / "results.jsonl").read_text().splitlines()]
    values = {r["label"]: r["values"] for r in (line["result"] for line in lines if "result" in line)}
    assert values["none"] == values["original"] != values["retrain"]


def test_forgetting_data_that_took_no_part_gives_the_original_to_the_bit(run_small, tmp_path):
    """Client 4 is asked in no round of a short run with small cohorts, so its oracle is the original."""
    for client in range(5):
        overrides = f"learning.rounds=1 learning.fraction=0.4 request.clients=[{client}] strategies=[]"
        experiment, _ = run_small(overrides, tmp_path / str(client))
        lines = [json.loads(line) for line in (experiment.folder / "results.jsonl").read_text().splitlines()]
        values = {r["label"]: r["values"] for r in (line["result"] for line in lines if "result" in line)}
        setting = experiment.setting
        asked = client in cohort_of(setting, setting.seeds(0)).sample(1)
        assert (values["retrain"] == values["original"]) == (not asked)


def test_a_second_run_and_a_changed_strategy_make_nothing_again(run_small, tmp_path, monkeypatch):
    run_small("strategies=[federaser,finetune]")
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("store/*/*/*.safetensors")}
    asked = []
    original = client_app.app

    def counting(message, context):
        asked.append(message.metadata.message_type)
        return original(message, context)

    run_small("strategies=[federaser,finetune]", client_app=counting)
    assert asked == [messages.DESCRIBE] * 2
    asked.clear()
    run_small("strategies=[federaser,finetune,amnesiac]", client_app=counting)
    assert messages.TRAIN not in asked
    asked.clear()
    run_small("strategies=[federaser,finetune] strategy.finetune.rounds=1", client_app=counting)
    assert asked.count(messages.TRAIN) == 2  # one round, on two nodes
    assert all(path.stat().st_mtime_ns == then for path, then in files.items())


def trajectories(output):
    """Folders of complete trajectories, by the files that made them complete."""
    return {path.parent.parent.name: path.parent for path in Path(output).glob("store/trajectories/*/*/complete.json")}


def test_a_strategy_that_learns_itself_has_its_own_trajectory_and_the_others_share_the_common_one(run_small, tmp_path):
    experiment, said = run_small("strategies=[finetune,amnesiac]")
    common = set(trajectories(tmp_path))
    assert len(common) == 1
    experiment, said = run_small("strategies=[finetune,amnesiac,certified_newton]")
    own = set(trajectories(tmp_path)) - common
    setting = experiment.setting
    assert own == {addresses.trajectory(setting, 0, setting.specs[-1])} and len(own) == 1
    assert any("learned certified_newton's own original, seed 0: 3 rounds" in line for line in said)
    made_of = {}
    for path in tmp_path.glob("store/models/*/model.safetensors"):
        determines = load_tensors(path)[1]["made_of"]
        made_of[determines["strategy"][0]] = determines["trajectory"]
    assert {made_of.pop("certified_newton")} == own and set(made_of.values()) == common
    # Same start, same cohorts; but another objective, so another model. The row "original" is the common one.
    (recorded,) = (path for name, path in trajectories(tmp_path).items() if name in own)
    (shared,) = (path for name, path in trajectories(tmp_path).items() if name in common)
    for round, same in ((0, True), (1, False), (3, False)):
        models = [load_tensors(path / f"round-{round:05d}.safetensors") for path in (recorded, shared)]
        assert torch.equal(*(tensors["global"] for tensors, _ in models)) == same
        assert models[0][1]["weights"] == models[1][1]["weights"]
    lines = [json.loads(line) for line in (experiment.folder / "results.jsonl").read_text().splitlines()]
    values = {r["label"]: r["values"] for r in (line["result"] for line in lines if "result" in line)}
    assert values["original"] == values["none"]


def test_a_trajectory_of_its_own_follows_the_strategys_options_and_is_kept(run_small, tmp_path):
    for options, trajectories_made in (("", 2), ("strategy.certified_newton.sigma=2.0", 3), ("", 3)):
        run_small(f"strategies=[certified_newton] {options}")
        assert len(trajectories(tmp_path)) == trajectories_made


def test_a_strategy_that_fails_in_its_own_learning_is_left_out_while_the_others_go_on(run_small):
    def ill(message, context):
        reply = client_app.app(message, context)
        if message.metadata.message_type == messages.TRAIN:
            work, _ = messages.unpack(message.content)
            if work.routine.endswith(":perturbed") and work.round == 2:
                raise RuntimeError("boom")
        return reply

    experiment, said = run_small("strategies=[certified_newton,finetune]", client_app=ill)
    table = (experiment.folder / "table.md").read_text()
    assert "certified_newton failed and has no row: seed 0: round 2" in " ".join(table.split())
    assert "\nfinetune " in table


def test_a_request_before_the_end_starts_from_the_model_of_its_round(run_small, tmp_path):
    experiment, _ = run_small("strategies=[] history.record=auto request.after_round=2")
    recording = experiment_recording(experiment)
    assert recording.config.record == "globals"  # no strategy asks for more than nothing
    index = report.load(experiment.folder)[0]["models"]
    (none,) = (entry for entry in index if entry["label"] == "none" and not entry["stage"])
    path, tensor = none["weights"]
    served = load_tensors(experiment.store.root / path)[0][tensor]
    assert torch.equal(served, recording.load(2)[0]["global"])


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            "request=class request.classes=[12] strategies=[finetune]",
            "class 12 does not exist; the classes are 0 to 9",
        ),
        (
            "request=sample request.clients=[1] request.share=1.0 request.samples=[5000] strategies=[]",
            "training examples",
        ),
        (
            "request=class request.classes=[3] request.then='[{scope: class, classes: [3]}]' strategies=[]",
            "request.then names class 3 again",
        ),
        ("partition=iid partition.clients=5000", "5000"),
        ("task=mnist task.path=/nowhere partition=iid", "/nowhere"),
        ("history.record=nothing strategies=[federaser]", "history.record"),
        ("history.record=nothing strategies=[finetune] request.after_round=2", "request.after_round=2 needs globals"),
        ("history.record=globals strategies=[amnesiac]", "but strategy 'amnesiac' needs targets; use history.record="),
        ("history.record=nothing strategies=[unrolling_renormalised]", "needs globals; use history.record=globals"),
        (
            "history.keep=0.1 strategies=[partial_amnesiac]",
            r"history.keep=0.1 \(top\) prunes .* 'partial_amnesiac' is to keep 0.05 \(top\); use history.keep=1",
        ),
        (
            "history.keep=0.05 history.select=random strategies=[partial_amnesiac]",
            r"history.keep=0.05 \(random\) prunes .* to keep 0.05 \(top\); use history.keep=1",
        ),
        (
            "model=mlp strategies=[cubic_newton]",
            "^cubic_newton .*at most d=3000 parameters, not d=.*; choose a smaller model",
        ),
        (
            "strategies=[retention_mask] strategy.retention_mask.keep=0",
            r"retention_mask.keep is 0.0, but must be in \(0, 1\]",
        ),
        ("strategies=[saps] strategy.saps.share=1.5", r"saps.share is 1.5, but must be in \(0, 1\]"),
        ("strategies=[partial_ascent] strategy.partial_ascent.density=.nan", "is nan, but must be a finite number"),
        ("local.optimizer=adam strategies=[unrolling]", "local.optimizer='adam' must be 'sgd'"),
        ("engine.device=cuda" if not torch.cuda.is_available() else "engine.device=xpu", "engine.device"),
    ],
)
def test_bad_input_is_refused_before_any_training(run_small, tmp_path, overrides, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        run_small(overrides)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("store/**/*.safetensors"))


def write_images(folder: Path, labels: list[int], owners: list[str], seed: int = 0) -> str:
    """A folder of random images; returns the overrides that use it."""
    folder.mkdir(exist_ok=True)
    for number, (name, chosen) in enumerate((("train", labels), ("test", labels[:10]))):
        rng, images = np.random.default_rng([seed, number]), []
        for label in chosen:
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 200, (4, 4), dtype=np.uint8) + np.uint8(label)).save(file, "png")
            images.append(file.getvalue())
        table = pa.table({"image": images, "label": chosen, "owner": owners[: len(chosen)]})
        pq.write_table(table, folder / f"{name}.parquet")
    return f"task.source=folder task.path={folder} partition=iid strategies=[] learning.rounds=1"


def test_owners_rows_and_classes_are_forgotten_by_their_names(run_small, tmp_path):
    """Labels 10 and 50 and owners in no order: the report speaks of these, and requests may."""
    given = write_images(tmp_path / "data", [10, 50] * 30, ["mia", "bob", "zoe", "bob", "mia"] * 12)
    natural = "task.id_column=owner partition=natural partition.clients=0 partition.holdout=0.2"
    experiment, said = run_small(f"{given} {natural} request=owners request.owners=[zoe]")
    assert experiment.setting.requests == (UnlearningRequest("client", (2,)),)
    assert "owners: client 0 = bob, client 1 = mia, client 2 = zoe" in said
    assert "2 classes (train/test): 10 (30/5), 50 (30/5)" in said
    header = report.load(experiment.folder)[0]
    assert header["owners"] == {"0": "bob", "1": "mia", "2": "zoe"} and header["classes"] == 2
    assert header["requests"] == ["client 2 (zoe)"]
    assert header["data_facts"]["classes"] == {"names": ["10", "50"], "numbers": [10, 50]}
    for name in ("table.md", "report.html"):
        assert "client 2 = zoe" in (experiment.folder / name).read_text(), name
    row = next(row for row in range(60) if held_by(experiment, row) == 0)
    rows, _ = run_small(f"{given} {natural} request=rows request.rows=[{row}]")
    assert [client for client, _ in rows.setting.requests[0].targets] == [0]
    classes, _ = run_small(f"{given} {natural} request=class request.classes=[50]")
    assert classes.setting.requests == (UnlearningRequest("class", (1,)),)
    assert report.load(classes.folder)[0]["requests"] == ["class 50"]


def held_by(experiment, row: int) -> int:
    """The client that trains on a row of the source, or -1."""
    origins = load(experiment.config.data).origins
    try:
        return origins.places((row,))[0][0]
    except ValueError:
        return -1


def test_other_data_at_the_same_path_are_another_run(run_small, tmp_path):
    owners = ["a", "b", "c"] * 20
    given = write_images(tmp_path / "data", [0, 1] * 30, owners)
    first, _ = run_small(given)
    again, _ = run_small(given)
    assert first.folder == again.folder
    assert write_images(tmp_path / "data", [0, 1] * 30, owners, seed=1) == given
    data._built.clear()  # a process reads a data set once
    workbench.cache_clear()
    other, _ = run_small(given)
    assert other.folder != first.folder and len(list((tmp_path / "runs").iterdir())) == 2


def test_an_output_folder_that_cannot_be_written_is_refused(run_small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="choose another output-dir"):
        run_small(output=tmp_path / "file" / "inside")


def faulty(clients, rounds=None, nodes=None, fault="raise"):
    """The project's ClientApp, except that some clients fail in some rounds on some nodes."""

    def app(message: Message, context) -> Message:
        reply = client_app.app(message, context)
        if message.metadata.message_type != messages.TRAIN:
            return reply
        work, _ = messages.unpack(message.content)
        if (rounds and work.round not in rounds) or (nodes and context.node_id not in nodes):
            return reply
        arrays, report = messages.unpack_reply(reply.content)
        arrays = dict(arrays)
        for client in map(str, set(clients).intersection(work.clients)):
            if fault == "raise":
                arrays.pop(client)
                report[client] = {"error": "RuntimeError: boom", "seconds": 0.0}
            elif fault == "nan":
                arrays[client] = arrays[client] * float("nan")
            elif fault == "shape":
                arrays[client] = arrays[client][:-1]
            elif fault == "silent":
                arrays.pop(client)
                report.pop(client)
            elif fault == "node":
                raise RuntimeError("the node is gone")
        return Message(messages.pack_reply(arrays, report), reply_to=message)

    return app


@pytest.mark.parametrize("fault", ["raise", "nan", "shape", "silent"])
def test_a_client_that_fails_everywhere_is_left_out_of_the_round_and_the_run_says_so(run_small, fault):
    recorded = "strategies=[finetune] history.record=all"  # updates come one by one, as `faulty` changes them
    experiment, said = run_small(recorded, client_app=faulty({2}, {2}, fault=fault))
    weights = [experiment_recording(experiment).load(round)[1] for round in (1, 2, 3)]
    assert ["2" in entry["weights"] for entry in weights] == [True, False, True]
    assert "client 2 left out" in weights[1]["notes"][0]
    assert any("note: learning, seed 0: round 2: client 2 left out" in line for line in said)


def test_a_note_is_said_once_of_a_model_and_of_what_became_of_it():
    def entry(label, seed, stage, *notes, request=0):
        return {"label": label, "seed": seed, "stage": stage, "request": request, "notes": notes}

    index = [
        entry("a", 0, "", "one"),
        entry("a", 0, "head", "one"),
        entry("a", 0, "after 5", "one", "two"),
        entry("a", 1, "", "one"),
        entry("b", 0, "", *"12345"),
        entry("c", 0, ""),
        entry("a", 0, "", "one", "three", request=1),
    ]
    assert left_out(index) == {
        "a, seed 0": "one; three",
        "a, seed 0 after 5": "two",
        "a, seed 1": "one",
        "b, seed 0": "1; 2; 3; and 2 more",
    }


@pytest.mark.parametrize("fault", ["raise", "nan", "node"])
def test_a_client_that_fails_on_one_node_is_retried_on_another_with_equal_numbers(
    run_small, stored_models, tmp_path, fault
):
    overrides = "strategies=[finetune] history.record=all"  # updates come one by one, as `faulty` changes them
    run_small(overrides, tmp_path / "well")
    run_small(overrides, tmp_path / "ill", client_app=faulty({2, 3}, nodes={1}, fault=fault))
    assert equal(stored_models(tmp_path / "well"), stored_models(tmp_path / "ill"))


def test_too_few_clients_stop_the_run_and_it_goes_on_later(run_small, stored_models, tmp_path):
    ill = faulty({0, 2, 3}, {3})
    overrides = "strategies=[finetune] history.record=all"  # updates come one by one, as `faulty` changes them
    with pytest.raises(TooFewClients, match="round 3: only 2 of 5 clients answered"):
        run_small(overrides, tmp_path / "ill", client_app=ill)
    run_small(overrides, tmp_path / "ill")
    run_small(overrides, tmp_path / "well")
    assert equal(stored_models(tmp_path / "well"), stored_models(tmp_path / "ill"))


def test_a_strategy_that_breaks_its_clients_is_left_out_and_named_while_the_others_go_on(run_small):
    ill = faulty({0, 1, 2, 4}, {4}, fault="nan")  # round 4 is the first of fine-tuning
    experiment, said = run_small("strategies=[finetune,amnesiac]", client_app=ill)
    table = (experiment.folder / "table.md").read_text()
    assert "finetune failed and has no row: seed 0: round 4: only 0 of 4 clients answered" in " ".join(table.split())
    assert "\namnesiac " in table and "\nfinetune " not in table
    assert any("note: finetune failed and is left out" in line for line in said)


def deaf(after: int, nodes: tuple[int, ...] = (1, 2)):
    """The project's ClientApp, except that nodes give no answer to an audit after the first few."""
    asked = []

    def app(message: Message, context) -> Message:
        if message.metadata.message_type == messages.EVALUATE and context.node_id in nodes:
            asked.append(message)
            if len(asked) > after:
                raise RuntimeError("no battery")
        return client_app.app(message, context)

    return app


@pytest.mark.parametrize("after", [0, 2, 5])
def test_an_audit_that_fails_stops_the_run_and_is_no_methods_failure(run_small, stored_models, tmp_path, after):
    overrides = "strategies=[finetune,amnesiac]"
    with pytest.raises(AuditFailed, match="could not evaluate a model: RuntimeError: no battery; .* not the method"):
        run_small(overrides, tmp_path / "ill", client_app=deaf(after))
    experiment, said = run_small(overrides, tmp_path / "ill")
    well, _ = run_small(overrides, tmp_path / "well")
    tables = [(each.folder / "audit.csv").read_text() for each in (experiment, well)]
    assert report.load(experiment.folder)[0]["failed"] == {} and tables[0] == tables[1]
    assert equal(stored_models(tmp_path / "well"), stored_models(tmp_path / "ill"))


def test_an_audit_that_one_node_cannot_make_another_one_makes(run_small):
    experiment, said = run_small("strategies=[finetune]", client_app=deaf(0, nodes=(1,)))
    assert report.load(experiment.folder)[0]["failed"] == {} and not [line for line in said if "note:" in line]


@pytest.mark.parametrize(("fraction", "asked"), [(0.1, 1), (0.5, 3), (1.0, 5)])
def test_the_run_says_how_many_clients_a_round_asks(run_small, fraction, asked):
    _, said = run_small(f"strategies=[] learning.rounds=1 learning.fraction={fraction}")
    assert any(f"5 clients on 2 SuperNodes (cpu), {asked} asked in a round; to forget" in line for line in said)


def test_a_fraction_that_is_nobody_is_refused(run_small):
    with pytest.raises(ValueError, match="^learning.fraction=0.09 of 5 clients is not one client a round; use .* 0.2$"):
        run_small("strategies=[] learning.fraction=0.09")


def test_two_runs_at_once_on_one_store_do_everything_once(run_small, stored_models, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    trained = []
    original = client_app.app

    def counting(message, context):
        if message.metadata.message_type == messages.TRAIN:
            trained.append(messages.unpack(message.content)[0])
        return original(message, context)

    overrides = "strategies=[finetune,amnesiac] strategy.finetune.rounds=2"
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run_small, overrides, tmp_path / "shared", 1, counting) for _ in range(2)]
        for run in runs:
            run.result()
    assert len(trained) == 3 + 3 + 2  # learning, the oracle, fine-tuning: each round once
    run_small(overrides, tmp_path / "alone")
    assert equal(stored_models(tmp_path / "shared"), stored_models(tmp_path / "alone"))


def experiment_recording(experiment):
    return Trajectories(experiment.setting, experiment.progress).original(0).recording


def test_client_app_is_flowers():
    assert isinstance(client_app.app, ClientApp)
