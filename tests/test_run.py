"""The parts of a run, each by itself: what an address depends on, who stops whom, and how a rehearsal differs."""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from fedforget.client_app import app
from fedforget.config import compose
from fedforget.grid import InProcessGrid
from fedforget.request import UnlearningRequest
from fedforget.run import addresses
from fedforget.run.checks import check, record_of
from fedforget.run.progress import Progress, Stopped
from fedforget.run.rehearsal import rehearse, tune
from fedforget.run.setting import Setting, cohort_of, learns_itself
from fedforget.run.threads import wait_for, workers
from fedforget.run.trajectories import checkpoints
from fedforget.seeds import Seeds
from fedforget.store import Store

ROOT = Path(__file__).parents[1] / "fedforget"
SMALL = "model=linear learning.rounds=3 partition.clients=5 evaluation=smoke engine.device=cpu"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """The setting of a small run; nothing is trained."""

    def setting(overrides: str) -> Setting:
        config = compose("quickstart", f"{SMALL} {overrides}")
        return Setting.of(config, InProcessGrid(app, 2), Store(tmp_path_factory.mktemp("output") / "store"))

    return setting


@pytest.fixture(scope="module")
def sequence(make) -> Setting:
    return make("request.clients=[3] request.then='[{clients: [1]}]' strategies=[finetune,certified_newton]")


# ---------------------------------------------------------------------- the setting


def test_the_oracle_and_the_no_op_come_first_and_each_label_once(make) -> None:
    labels = [spec.label for spec in make("strategies=[finetune,none,amnesiac]").specs]
    assert labels == ["retrain", "none", "finetune", "amnesiac"]


def test_only_a_strategy_that_overrides_learn_learns_itself(sequence: Setting) -> None:
    assert [spec.label for spec in sequence.specs if learns_itself(spec)] == ["certified_newton"]


def test_a_cohort_serves_one_request_after_those_before_it(sequence: Setting) -> None:
    first, second = UnlearningRequest("client", (3,)), UnlearningRequest("client", (1,))
    learning, serving = cohort_of(sequence, Seeds(0)), cohort_of(sequence, Seeds(0), 1, next_round=4)
    again = cohort_of(sequence, Seeds(0), 1, learns_again=True)
    assert (learning.removed, learning.request, learning.next_round) == ((), None, 1)
    assert (serving.removed, serving.request, serving.next_round) == ((first,), second, 4)
    assert (again.removed, again.request) == ((first,), None)


def test_checkpoints_are_spread_over_the_rounds_without_the_end(sequence: Setting) -> None:
    """Of 3 rounds one checkpoint comes after round(1.5) = 2, two after rounds 1 and 2, five after no others."""
    evaluation = sequence.config.evaluation
    for number, expected in ((0, set()), (1, {2}), (2, {1, 2}), (5, {1, 2})):
        config = replace(sequence.config, evaluation=replace(evaluation, checkpoints=number))
        assert checkpoints(replace(sequence, config=config), 0) == expected


# ---------------------------------------------------------------------- addresses


def test_what_does_not_determine_a_trajectory_is_not_in_its_address(make) -> None:
    base = addresses.trajectory(make("strategies=[finetune]"), 0)
    for same in ("strategies=[amnesiac]", "request.clients=[1]", "learning.timeout=100", "evaluation.relearn=2"):
        assert addresses.trajectory(make(f"strategies=[finetune] {same}"), 0) == base, same
    others = ("learning.rounds=4", "local.lr=0.07", "model=mlp", "partition.clients=6", "seed=7")
    found = {addresses.trajectory(make(f"strategies=[finetune] {other}"), 0) for other in others}
    assert len(found | {base}) == 1 + len(others)


def test_the_model_of_a_request_depends_on_the_requests_before_it_and_not_on_those_after(
    make, sequence: Setting
) -> None:
    def made(setting: Setting, label: str, i: int) -> dict:
        (spec,) = (spec for spec in setting.specs if spec.label == label)
        return addresses.made_of(setting, 0, spec, i, "previous", record_of(setting))

    alone = make("request.clients=[3] strategies=[finetune,certified_newton]")
    for label in ("retrain", "finetune", "certified_newton"):
        assert made(alone, label, 0) == made(sequence, label, 0) != made(sequence, label, 1)
    trajectories = {made(sequence, label, 0)["trajectory"] for label in ("retrain", "finetune")}
    assert trajectories == {addresses.trajectory(sequence, 0)} != {made(sequence, "certified_newton", 0)["trajectory"]}


# ---------------------------------------------------------------------- progress and threads


def test_progress_counts_what_is_finished_and_speaks_between_at_most_every_two_seconds() -> None:
    said, steps = [], []
    progress = Progress(said.append, lambda *step: steps.append(step))
    progress.total = 2
    progress.of_rounds("learning", 9)(1)  # too soon after the start
    progress.finished("one")
    progress.notes("one", ["slow", "late"])
    assert steps == [(1, 2, "one")] and said == ["  note: one: slow", "  note: one: late"]
    told: list[str] = []
    Progress(told.append).finished("it")
    assert told == ["[1/0] it"]


def test_after_a_stop_every_trajectory_ends_at_its_next_round() -> None:
    progress = Progress(lambda line: None)
    after = progress.of_rounds("learning", 9)
    after(1)
    progress.stop()
    with pytest.raises(Stopped):
        after(2)
    with pytest.raises(Stopped):
        progress.check()


def test_the_failure_is_raised_and_not_that_the_others_stopped(sequence: Setting) -> None:
    progress, began = Progress(lambda line: None), Event()

    def goes_on() -> None:
        began.set()
        while True:
            progress.check()

    def fails() -> None:
        began.wait(10)
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"), workers(sequence, progress) as pool:
        wait_for([pool.submit(goes_on), pool.submit(fails)], progress)
    with ThreadPoolExecutor(1) as pool:
        wait_for([pool.submit(int)], Progress(print))  # nothing fails, and nothing is raised


# ---------------------------------------------------------------------- checks and the rehearsal


def test_the_record_is_the_least_that_is_needed(make) -> None:
    for overrides, record in (
        ("strategies=[finetune]", "nothing"),
        ("strategies=[finetune] request.after_round=2", "globals"),
        ("strategies=[finetune,amnesiac]", "targets"),
        ("strategies=[federaser]", "all"),
    ):
        assert record_of(make(f"history.record=auto {overrides}")).record == record, overrides


def test_a_request_that_leaves_nobody_is_refused(sequence: Setting) -> None:
    everybody = UnlearningRequest("client", (0, 1, 2, 3, 4))
    with pytest.raises(ValueError, match="leaves no training data at any client"):
        check(replace(sequence, requests=(everybody,)))
    with pytest.raises(ValueError, match="names no training example that is still there"):
        check(replace(sequence, requests=(sequence.requests[0], sequence.requests[0])))


def test_a_rehearsal_is_another_setting_and_leaves_the_runs_alone(make) -> None:
    setting = make("strategies=[finetune] tuning.trials=2 corruption=label_random corruption.clients=[3]")
    rehearsal = rehearse(setting, Progress(lambda line: None))
    assert rehearsal is not None
    (other,) = rehearsal.setting.requests
    assert setting.requests == (UnlearningRequest("client", (3,)),) != (other,)
    assert setting.task.data.corruption.clients == (3,)
    assert rehearsal.setting.task.data.corruption.clients == other.targets
    same = replace(rehearsal.setting, requests=setting.requests, task=setting.task, federation=setting.federation)
    assert same == setting


def test_nothing_to_tune_has_no_rehearsal_and_changes_no_option(make) -> None:
    setting, said = make("strategies=[amnesiac] tuning.trials=2"), []
    progress = Progress(said.append)
    assert rehearse(setting, progress) is None
    tuned, header = tune(setting, None, progress)
    assert tuned is setting and list(header["untuned"]) == ["amnesiac"] and len(said) == 1


# ---------------------------------------------------------------------- their size


@pytest.mark.parametrize("path", [ROOT / "experiment.py", *sorted((ROOT / "run").glob("*.py"))], ids=lambda p: p.name)
def test_no_part_grows_into_a_second_giant(path: Path) -> None:
    """Nothing has more than 15 methods or 50 lines, so that a part can be read by itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            assert sum(isinstance(each, ast.FunctionDef) for each in node.body) <= 15, node.name
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 50, node.name
