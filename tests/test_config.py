"""Layers, groups and variants compose as documented; every mistake is one sentence; every shipped YAML works."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedforget import models
from fedforget.config import GROUPS, absolute_paths, as_setting, compose, describe, to_dict, to_yaml
from fedforget.evaluation import LEVELS
from fedforget.exchange import RECORDS
from fedforget.found import strategy_scopes
from fedforget.history import DTYPES, HistoryConfig
from fedforget.request import SCOPES
from fedforget.schema import learning as schema
from fedforget.schema.data import CANARY_LABELS, GROWTHS, PARTITIONS, SOURCES
from fedforget.store import digest
from fedforget.strategy import LEARNERS, OPTIONS, all_strategies
from fedforget.tuning import GOALS

CONFIGS = Path(__file__).parents[1] / "configs"

FILES = describe()["groups"]
LABELS = FILES["strategy"]  # of strategies and of their variants
DATA = "task.path=/data/x"
ONLY = "strategies=[finetune]"  # it serves every scope


def needed(name: str) -> str:
    """What an experiment needs beside its name."""
    return DATA if "Needs the data" in (CONFIGS / "experiment" / f"{name}.yaml").read_text() else ""


def experiment(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


# Layers


def test_overrides_beat_the_experiment_which_beats_the_default(tmp_path):
    mine = experiment(tmp_path, "seed: 1\nlearning: {rounds: 7}\nlocal: {lr: 0.2}\n")
    config = compose(mine, "seed=2 local.lr=1e-3")
    assert config.experiment == "mine"
    assert (config.seed, config.learning.rounds, config.local.lr) == (2, 7, 0.001)
    assert config.local.batch_size == 32  # the default's


def test_a_group_name_replaces_the_group_and_a_mapping_is_merged_onto_it(tmp_path):
    mine = experiment(tmp_path, "partition: {use: pathological, clients: 5}\nevaluation: {seeds: 4}\n")
    config = compose(mine)
    assert (config.partition.kind, config.partition.clients) == ("pathological", 5)
    assert (config.evaluation.level, config.evaluation.seeds) == ("screen", 4)
    assert compose(mine, "partition=iid").partition.clients == 10


def test_groups_are_selected_before_values_are_set():
    assert compose("quickstart", "partition.clients=6 partition=iid") == compose(
        "quickstart", ["partition=iid", "partition.clients=6"]
    )


def test_lists_replace_lists_and_mappings_are_merged():
    config = compose("quickstart", "request.clients=[2] learning.learner=fedadam learning.options.eta=0.1")
    assert config.request.clients == (2,)
    assert config.learning.options == {"eta": 0.1}


def test_a_string_of_overrides_is_split_like_a_command_line():
    text = "task=mnist 'task.path=/my data/mnist' seed=3"
    assert compose("quickstart", text) == compose("quickstart", ["task=mnist", "task.path=/my data/mnist", "seed=3"])
    assert compose("quickstart", text).task.path == "/my data/mnist"


def test_a_sequence_of_requests():
    config = compose("quickstart", ["request=sequence", "request.then=[{clients: [4]}, {clients: [5, 6]}]"])
    assert [step.clients for step in config.request.steps] == [(3,), (4,), (5, 6)]


# Strategies


def test_a_variant_has_its_own_label_and_the_options_of_its_base():
    config = compose("quickstart", "strategies=[federaser,fedaccum,amnesiac_repair] strategy.fedaccum.interval=4")
    federaser, fedaccum, repair = config.strategies
    assert (federaser.name, federaser.options.interval, federaser.options.calibration) == ("federaser", 2, True)
    assert (fedaccum.label, fedaccum.name) == ("fedaccum", "federaser")
    assert (fedaccum.options.interval, fedaccum.options.calibration) == (4, False)
    assert (repair.name, repair.options.repair_rounds) == ("amnesiac", 5)


def test_an_experiment_may_set_strategies_that_an_override_leaves_out(tmp_path):
    mine = experiment(tmp_path, "strategy: {finetune: {rounds: 3}, amnesiac: {repair_rounds: 1}}\n")
    (only,) = compose(mine, ONLY).strategies
    assert only.options.rounds == 3


# Paths


def test_a_relative_path_in_a_file_is_relative_to_that_file(tmp_path):
    mine = experiment(tmp_path, "task: {use: mnist, path: data/mnist}\n")
    assert compose(mine).task.path == str(tmp_path / "data" / "mnist")


def test_names_of_data_sets_are_no_paths(tmp_path):
    mine = experiment(tmp_path, "task: {use: fashion_mnist, root: files}\n")
    config = compose(mine)
    assert (config.task.path, config.task.root) == ("FashionMNIST", str(tmp_path / "files"))
    assert compose("quickstart", "task=femnist task.path=me/mine").task.path == "me/mine"


def test_absolute_paths_resolves_folders_and_leaves_the_rest(tmp_path):
    (tmp_path / "my data").mkdir()
    overrides = ["task.path=my data", "task.root=files", "seed=3", "model=cnn"]
    expected = [f"task.path={tmp_path}/my data", f"task.root={tmp_path}/files", "seed=3", "model=cnn"]
    assert absolute_paths(overrides, tmp_path) == expected
    assert absolute_paths(expected, tmp_path / "elsewhere") == expected
    assert absolute_paths("task.path=flwrlabs/femnist task.path=", tmp_path) == [
        "task.path=flwrlabs/femnist",
        "task.path=",
    ]


@pytest.mark.parametrize("name", ["a #b", "a\nb", "a: b", "5", "данные 'q'"])
def test_a_folder_of_any_name_is_found(tmp_path, name):
    (tmp_path / name).mkdir()
    overrides = absolute_paths(["task=mnist", f"task.path={name}"], tmp_path)
    assert compose("quickstart", overrides).task.path == str(tmp_path / name)


def test_an_experiment_file_may_end_in_yml(tmp_path):
    (tmp_path / "mine.yml").write_text("seed: 7\n")
    assert compose(str(tmp_path / "mine.yml")).seed == 7


# Mistakes


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        # unknown names
        ("learning.roundz=5", "unknown key 'learning.roundz'; did you mean 'learning.rounds'?"),
        ("rounds=5", "unknown key 'rounds'; did you mean 'learning.rounds'?"),
        ("sed=5", "unknown key 'sed'; did you mean 'seed'?"),
        ("zzz=5", "unknown key 'zzz'; choose one of corruption, engine, "),
        ("'request.then=[{client: [4]}]'", "unknown key 'request.then[0].client'; did you mean 'request.then[0]"),
        ("strategy.finetune.round=5", "unknown key 'strategy.finetune.round'; did you mean 'strategy.fine"),
        ("task=mnst", "unknown task 'mnst'; did you mean 'mnist'?"),
        ("request.use=klass", "unknown request 'klass'; did you mean 'class'?"),
        ("strategies=[finetun]", "unknown strategy 'finetun'; did you mean 'finetune'?"),
        ("strategy.finetun.rounds=5", "strategy.finetun is set, but strategies does not list 'finetun'; did you mean"),
        (f"{ONLY} strategy.amnesiac.repair_rounds=5", "strategy.amnesiac is set, but strategies does not list"),
        ("model.name=cnnn", "model 'cnnn' is unknown; did you mean 'cnn'?"),
        ("learning.learner=fedag", "learning.learner 'fedag' is unknown; did you mean 'fedavg'?"),
        ("learning.options.eta=1", "learning.options {'eta': 1} do not fit 'fedavg'"),
        ("learning.options.fraction_train=0.5", "learning.options {'fraction_train': 0.5} do not fit 'fedavg'"),
        ("learning.options.weighted_by_key=loss", "learning.options {'weighted_by_key': 'loss'} do not fit 'fedavg'"),
        (
            "learning.learner=fedprox learning.options.proximal_mu=much",
            "learning.options {'proximal_mu': 'much'} do not fit 'fedprox'",
        ),
        ("learning.learner=fedprox learning.options.proximal_mu=-1", "learning.options.proximal_mu is -1, but must be"),
        ("learning.learner=fedavgm learning.options.server_momentum=1", "learning.options.server_momentum is 1, but"),
        ("learning.learner=fedadam learning.options.tau=0", "learning.options.tau is 0, but must be above 0"),
        (
            "learning.learner=multikrum learning.options.num_nodes_to_select=0",
            "learning.options.num_nodes_to_select is",
        ),
        ("learning.learner=trimmed_mean learning.options.beta=0.5", "learning.options.beta is 0.5, but must be in [0,"),
        ("local.optimizer=sdg", "local.optimizer is 'sdg', but must be one of sgd, adam"),
        (
            "history.record=target",
            "history.record is 'target', but must be one of auto, nothing, globals, targets, all",
        ),
        ("history.dtype=float8", "history.dtype is 'float8', but must be one of float32, bfloat16, float16"),
        ("history.select=first", "history.select is 'first', but must be one of top, random, bottom"),
        ("engine.device=gpu", "engine.device is 'gpu', but must be one of auto, cpu, cuda"),
        ("engine.mode=vmapped", "engine.mode is 'vmapped', but must be one of auto, sequential, stacked, vmap"),
        ("engine.precision=half", "engine.precision is 'half', but must be one of float32, tf32, bfloat16"),
        ("engine.gpus_per_worker=2", "engine.gpus_per_worker is 2.0, but must be in [0, 1]"),
        ("engine.transport=rey", "engine.transport is 'rey', but must be one of auto, ray, flower"),
        ("request.scope=clint", "unknown request.scope 'clint'; did you mean 'client'?"),
        # types
        ("learning.rounds=many", "learning.rounds is 'many', but must be an integer"),
        ("learning.rounds=1.5", "learning.rounds is 1.5, but must be an integer"),
        ("local.lr=fast", "local.lr is 'fast', but must be a finite number"),
        ("local.lr=.inf", "local.lr is inf, but must be a finite number"),
        ("seed=true", "seed is True, but must be an integer"),
        ("strategy.federaser.calibration=1", "strategy.federaser.calibration is 1, but must be true or false"),
        ("task.path=5", "task.path is 5, but must be a text"),
        ("request.clients=3", "request.clients is 3, but must be a list, e.g. [3]"),
        ("request.clients=[a]", "request.clients[0] is 'a', but must be an integer"),
        ("request.after_round=x", "request.after_round is 'x', but must be an integer"),
        ("corruption.classes=[1]", "corruption.classes is [1], but must have 2 entries"),
        ("learning=5", "learning is 5, but must be a mapping"),
        ("strategy.finetune=5", "strategy.finetune is 5, but must be a mapping"),
        # ranges
        ("learning.rounds=0", "learning.rounds is 0, but must be at least 1"),
        ("learning.fraction=0", "learning.fraction is 0.0, but must be in (0, 1]"),
        ("learning.min_share=2", "learning.min_share is 2.0, but must be in (0, 1]"),
        ("learning.timeout=0", "learning.timeout is 0.0, but must be above 0"),
        ("local.lr=0", "local.lr is 0.0, but must be above 0"),
        ("local.momentum=1", "local.momentum is 1.0, but must be in [0, 1)"),
        ("local.weight_decay=-1", "local.weight_decay is -1.0, but must be at least 0"),
        ("local.lr_decay=0", "local.lr_decay is 0.0, but must be in (0, 1]"),
        ("local.epochs=0", "local.epochs is 0, but must be at least 1"),
        ("local.steps=-1", "local.steps is -1, but must be at least 0"),
        ("local.batch_size=0", "local.batch_size is 0, but must be at least 1"),
        ("history.keep=0", "history.keep is 0.0, but must be in (0, 1]"),
        ("engine.workers=-1", "engine.workers is -1, but must be at least 0"),
        ("engine.gpus_per_worker=-1", "engine.gpus_per_worker is -1.0, but must be in [0, 1]"),
        ("engine.nodes=-1", "engine.nodes is -1, but must be at least 0"),
        ("engine.trajectories=-1", "engine.trajectories is -1, but must be at least 0"),
        ("partition.holdout=1", "partition.holdout=1.0 must be at least 0 and below 1"),
        ("strategy.finetune.rounds=0", "strategy.finetune.rounds is 0, but must be at least 1"),
        # contradictions
        ("evaluation=leaderboard evaluation.seeds=3", "evaluation seeds=3 is too few for level 'leaderboard'"),
        ("strategies=[amnesiac,amnesiac]", "strategies lists 'amnesiac' twice"),
        (
            "request=class",
            "strategies amnesiac, amnesiac_repair, federaser, fedaccum cannot serve class requests; "
            "leave them out: strategies=[none,finetune,truncated_retrain]",
        ),
        (
            "request=class strategies=[amnesiac]",
            "strategy amnesiac cannot serve class requests; leave it out: strategi",
        ),
        ("request=class 'strategies=[class_pruning,amnesiac]'", "strategy amnesiac cannot serve class requests; leave"),
        ("request.clients=[]", "request.clients is empty, but a client request must name clients, e.g. [3]"),
        ("request.clients=[3,10]", "request.clients names client 10, but partition.clients is 10: clients"),
        ("request.clients=[3,3]", "request targets [3, 3] name one target twice"),
        ("request.clients=[-1]", "request target -1 is negative"),
        ("partition.clients=2 request.clients=[0,1]", "request.clients names all 2 clients, so none is left"),
        ("partition.clients=2 request.clients=[0] 'request.then=[{clients: [1]}]'", "request.clients names all 2"),
        ("request=sequence request.clients=[7]", "request.then names client 7 again"),
        (
            f"{ONLY} request=class 'request.then=[{{scope: class, classes: [2, 3]}}]'",
            "request.then names class 3 again",
        ),
        (
            f"{ONLY} request=sample request.samples=[7] 'request.then=[{{scope: sample, clients: [3], samples: [7]}}]'",
            "request.then names sample 7 of client 3 again",
        ),
        (f"{ONLY} 'request.then=[{{scope: sample, clients: [3], share: 0.1}}]'", "request.then names client 3 again"),
        ("task=holder corruption=noise", "corruption.kind is 'noise', but a holder's own data (task.source=holder) is"),
        ("partition=natural", "partition.kind=natural needs task.id_column, the column that says whose an example is"),
        ("request=class request.classes=[]", "request.classes is empty, but a class request must name classes"),
        ("request=class request.clients=[3]", "request.clients is [3], but a class request has none"),
        ("request.classes=[3]", "request.classes is [3], but a client request has none"),
        ("request.samples=[3]", "request.samples is [3], but a client request has none"),
        ("request.share=0.5", "request.share is 0.5, but only a sample request has a share"),
        ("request=sample request.clients=[]", "request.clients is empty, but a sample request must name clients"),
        ("request=sample request.clients=[1,2]", "request.clients is [1, 2], but a sample request names one client"),
        ("request=sample request.share=1", "request.share is 1.0, but a sample request without samples needs"),
        (
            "request.owners=[a] request.clients=[3]",
            "request.clients and request.owners are both given; name what to forget by one",
        ),
        ("request=owners request.owners=[]", "request.clients is empty, but a client request must name clients"),
        ("request=owners request.owners=[a,a]", "request.owners is ['a', 'a'], which names one target twice"),
        ("request=owners request.owners=[7,'\"7\"']", "request.owners is [7, '7'], which names one target twice"),
        ("request=owners request.owners=[1.5]", "request.owners[0] is 1.5, but must be"),
        ("request=owners request.rows=[3]", "request.rows is [3], but a client request has none"),
        ("request=class request.owners=[a]", "request.owners is ['a'], but a class request has none"),
        ("request=class request.classes=[cat,cat]", "request.classes is ['cat', 'cat'], which names one target twice"),
        ("request=rows request.rows=[3,3]", "request targets [3, 3] name one target twice"),
        ("request=rows request.rows=[-3]", "request target -3 is negative"),
        ("request=rows request.records=[x]", "request.rows and request.records are both given"),
        ("request=rows request.clients=[3]", "request.clients and request.rows are both given"),
        ("request=rows request.share=0.5", "request.rows names examples, so request.samples and request.share have no"),
        ("request=rows request.samples=[1]", "request.rows names examples, so request.samples and request.share have"),
        ("request=sample request.samples=[1] request.share=0.5", "request.samples and request.share are both given"),
        ("request.after_round=0", "request after_round 0 must be at least 1"),
        ("request.after_round=21", "request.after_round is 21, but learning.rounds is 20"),
        ("request=sequence request.after_round=5", "request.after_round is 5 first and None in request.then"),
        ("corruption=trigger corruption.clients=[12]", "corruption.clients names client 12, but"),
        # paths
        ("task=mnist", "task.path is empty; add task.path=FOLDER, the folder with the parquet files"),
        ("task=mnist task.path=data/mnist", "task.path is 'data/mnist', but must be the absolute path of a folder"),
        ("task=fashion_mnist task.root=files", "task.root is 'files', but must be the absolute path of a folder"),
        # the form of overrides
        ("learning.rounds", "override 'learning.rounds' is not of the form key=value"),
        ("strategies=[none, finetune]", "override 'finetune]' is not of the form key=value (write lists"),
        ("strategies=[none", "override 'strategies=[none' is not valid YAML: "),
        ("seed='3", 'overrides "seed=\'3" have an unclosed quote'),
        (
            "learning.learner=fedprox 'learning.options={proximal_mu:0.1}'",
            "override 'learning.options={proximal_mu:0.1}' holds {proximal_mu:0.1}, which lacks the blank after the "
            "colon; write {proximal_mu: 0.1}",
        ),
        ("learning.options=eta:0.1", "learning.options is 'eta:0.1', but must be a mapping; write {eta: 0.1}"),
        ("strategy.finetune=rounds:5", "strategy.finetune is 'rounds:5', but must be a mapping; write {rounds: 5}"),
        ("task.path=${oc.env:HOME}", "override 'task.path=${oc.env:HOME}' holds '${oc.env:HOME}', but only references"),
        ("task.path=x${oc.decode:5}", "override 'task.path=x${oc.decode:5}' holds "),
        ("'task.path=[\"${oc.env:HOME}\"]'", "override 'task.path=[\"${oc.env:HOME}\"]' holds '${oc.env:HOME}', but"),
        ("learning.options.eta=${a.${oc.env:HOME}}", "override 'learning.options.eta=${a.${oc.env:HOME}}' holds "),
    ],
)
def test_a_mistake_is_one_sentence(overrides, sentence):
    with pytest.raises(ValueError) as error:
        compose("quickstart", overrides)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_a_wrong_experiment_is_one_sentence(tmp_path):
    for name, sentence in {
        "quickstat": "unknown experiment 'quickstat'; did you mean 'quickstart'?",
        "mine.yaml": "experiment path 'mine.yaml' is relative; give an absolute path",
        str(tmp_path / "none.yaml"): f"experiment file '{tmp_path}/none.yaml' does not exist",
        experiment(tmp_path, "seed: [1\n"): f"{tmp_path}/mine.yaml is not valid YAML: ",
    }.items():
        with pytest.raises(ValueError) as error:
            compose(name)
        assert str(error.value).startswith(sentence)
    with pytest.raises(ValueError, match="mine.yaml is .*, but must be a mapping"):
        compose(experiment(tmp_path, "- seed\n"))


# What a group's file says gives way to what the user says


def test_samples_take_the_place_of_the_share_in_the_file_of_the_group():
    (step,) = compose("quickstart", f"{ONLY} request=sample request.samples=[0,4]").request.steps
    assert (step.samples, step.share, step.clients) == ((0, 4), 1.0, (3,))


def test_a_scope_takes_the_place_of_the_targets_in_the_file_of_the_group():
    (step,) = compose("quickstart", f"{ONLY} request.scope=class request.classes=[2]").request.steps
    assert (step.scope, step.classes, step.clients) == ("class", (2,), ())
    with pytest.raises(ValueError, match=r"request.clients is \[4\], but a class request has none"):
        compose("quickstart", f"{ONLY} request.scope=class request.classes=[2] request.clients=[4]")


# References


def test_a_file_may_refer_to_itself_but_not_to_the_environment(tmp_path, monkeypatch):
    mine = experiment(tmp_path, "local: {lr: 0.2}\nlearning: {learner: fedadam, options: {eta: '${local.lr}'}}\n")
    assert compose(mine).learning.options == {"eta": 0.2}
    monkeypatch.setenv("SECRET", "s3cret")
    for text in ("'${oc.env:SECRET}'", "'x${oc.env:SECRET}y'", "['${oc.env:SECRET}']", "'${oc.create:{a: 1}}'"):
        with pytest.raises(ValueError, match="but only references such as") as error:
            compose(experiment(tmp_path, f"task: {{use: mnist, path: {text}}}\n"))
        assert "s3cret" not in str(error.value)


# Commands and folders


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (["--seed", "3"], "; settings have no dashes: did you mean seed=3?"),
        (["--seed=3"], "; settings have no dashes: did you mean seed=3?"),
        (["--rounds", "5"], "; settings have no dashes: did you mean learning.rounds=5?"),
        (["--batch-size"], "; settings have no dashes: did you mean local.batch_size=VALUE?"),
        (["--task", "mnist"], "; settings have no dashes: did you mean task=mnist?"),
        (["--clients=4"], "; settings have no dashes: did you mean corruption.clients=4 or partition.clients=4 or"),
        (["--colour", "red"], ""),
    ],
)
def test_an_option_that_is_a_setting_is_called_so(words, end):
    assert as_setting(words).startswith(end) and bool(end) == bool(as_setting(words))


@pytest.mark.parametrize("name", ["strategies/__init__.py", "configs/__init__.py", "strategies.py", "configs.py"])
def test_a_file_that_hides_what_comes_with_the_framework_is_named(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    script = "import sys; sys.path.insert(0, ''); from fedforget.config import compose; compose('quickstart')"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ValueError")]
    assert f"{tmp_path / name} hides the {name[:-3].split('/')[0]} that come with fedforget; delete or rename" in line


# Copies


def test_the_yaml_copy_composes_to_the_same_run(tmp_path):
    config = compose("quickstart", "strategies=[fedaccum,finetune] strategy.finetune.rounds=3 request=sequence seed=9")
    again = compose(experiment(tmp_path, to_yaml(config)))
    assert dataclasses.replace(again, experiment="quickstart") == config


def test_the_digest_depends_on_values_only():
    value = to_dict(compose("quickstart"))
    assert digest(value) == digest(to_dict(compose("quickstart", "local.lr=1e-1 learning.fraction=1")))
    assert digest(value) != digest(to_dict(compose("quickstart", "local.lr=0.2")))
    assert value["request"]["clients"] == [3]
    assert value["strategies"][1] == {"label": "finetune", "name": "finetune", "options": {"rounds": 5}}


def test_every_option_of_every_learner_has_a_range():
    common = inspect.signature(LEARNERS["fedavg"]).parameters
    own = {
        name for learner in LEARNERS.values() for name in inspect.signature(learner).parameters if name not in common
    }
    assert own == set(OPTIONS)


def test_every_choice_can_be_written_on_a_command_line():
    """What YAML reads as something else than a text, such as true, could only be given in two pairs of quotes."""
    choices = (*CANARY_LABELS, *GROWTHS, *PARTITIONS, *SOURCES, *LEVELS, *LEARNERS, *SCOPES)
    assert all(yaml.safe_load(choice) == choice for choice in choices)


def test_a_run_is_frozen():
    config = compose("quickstart")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


# The shipped files


@pytest.mark.parametrize("name", sorted(describe()["experiments"]))
def test_every_experiment_composes(name):
    assert compose(name, needed(name)).experiment == name
    assert "# Takes: " in (CONFIGS / "experiment" / f"{name}.yaml").read_text()


# What a whole Hessian or a convex loss is needed for, and a convolutional network does not offer.
NOT_FOR_A_CNN = {"influence_explicit", "newton_explicit", "newton_pseudo", "cubic_newton", "certified_newton"}


@pytest.mark.parametrize(
    ("name", "without"),
    [("leaderboard_digits", set()), ("leaderboard_mnist_linear", set()), ("leaderboard_mnist", NOT_FOR_A_CNN)],
)
def test_the_boards_compare_everything_that_serves_a_client(name, without):
    """A new strategy or variant is a new row; the no-op and the oracle are there anyway."""
    serving = []
    for label in LABELS:
        with contextlib.suppress(ValueError):
            compose("leaderboard_digits", f"strategies=[{label}]")
            serving.append(label)
    specs = compose(name, needed(name)).strategies
    listed = [spec.label for spec in specs]
    assert set(listed) == set(serving) - {"none", "retrain"} - without and len(set(listed)) == len(listed)
    clients = {name for name, strategy in all_strategies().items() if "client" in strategy.scopes}
    assert clients <= {spec.name for spec in specs} | {"none", "retrain"} | without


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in GROUPS for name in FILES[group]])
def test_every_group_file_composes(group, name):
    content = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
    if content.get("source") == "folder":
        content["path"] = "/data/x"
    overrides = [ONLY, f"{group}={name}"] + [DATA] * ("path" in content and content["source"] == "folder")
    overrides += ["task=femnist"] * (name == "natural")
    overrides += ["corruption=canary"] * (name in ("attack", "epsilon"))  # levels that need canaries
    section = to_dict(compose("quickstart", overrides))[group]
    assert {key: section[key] for key in content if key != "then"} == {k: v for k, v in content.items() if k != "then"}


@pytest.mark.parametrize("label", LABELS)
def test_every_row_composes(label):
    requests = ["request=client", "request=class partition=iid", "request=sample"]  # each serves at least one of them
    composed = []
    for request in requests:
        with contextlib.suppress(ValueError):
            composed += compose("quickstart", f"strategies=[{label}] {request}").strategies
    assert composed and {spec.label for spec in composed} == {label}


def test_a_file_of_a_row_makes_it_a_variant():
    """A strategy needs no file in ``configs/strategy``: its defaults are those of its Config."""
    variants = {path.stem for path in (CONFIGS / "strategy").glob("*.yaml")}
    assert set(LABELS) == variants | set(all_strategies()) and not variants & set(all_strategies())
    for label in variants:
        (spec,) = compose("quickstart", f"strategies=[{label}] request=client").strategies
        assert spec.name != label and spec.options != all_strategies()[spec.name].Config()


def test_an_unknown_strategy_is_told_the_nearest_and_never_all():
    with pytest.raises(ValueError, match="^unknown strategy 'finetun'; did you mean 'finetune'[?]$"):
        compose("quickstart", "strategies=[finetun]")
    with pytest.raises(ValueError, match="^unknown strategy 'zzz'; the nearest of [0-9]+ is '[a-z0-9_]+'$"):
        compose("quickstart", "strategies=[zzz]")


def test_what_a_variant_sets_wrong_is_named_by_its_own_label():
    with pytest.raises(ValueError, match=r"strategy.fedaccum.ratio is 2.0, but must be in \(0, 1\]"):
        compose("quickstart", "strategies=[fedaccum] strategy.fedaccum.ratio=2")


def test_every_model_has_a_file_of_its_name():
    assert set(models.names()) == set(FILES["model"])


def test_every_file_says_in_its_first_line_what_it_is():
    assert all((CONFIGS / path).read_text().startswith("# ") for path in CONFIGS.glob("**/*.yaml"))
    assert describe()["groups"]["evaluation"]["screen"].startswith("Three seeds: ")


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.system ['touch {trap}']",
        "seed: !!python/name:os.system",
        "seed: ${{eval:1+1}}",
        "strategies: [../../x]",
        "strategies: [/x]",
        "task: ../../x",
        "model: {{use: ../../x}}",
    ],
)
def test_a_file_executes_nothing_and_names_no_file_outside_its_folders(tmp_path: Path, text: str) -> None:
    path, trap = tmp_path / "experiment.yaml", tmp_path / "executed"
    path.write_text(text.format(trap=trap))
    with pytest.raises(ValueError) as caught:
        compose(str(path))
    assert "\n" not in str(caught.value) and not trap.exists()
    key, _, value = path.read_text().partition(": ")
    with pytest.raises(ValueError):
        compose("quickstart", [f"{key}={value}"])
    assert not trap.exists()


@pytest.mark.parametrize("name", ["../quickstart", "..", "/etc/passwd", "experiment/../quickstart", "relative.yaml"])
def test_an_experiment_is_a_known_name_or_an_absolute_file(name: str) -> None:
    with pytest.raises(ValueError, match="unknown experiment|is relative"):
        compose(name)


def test_classes_owners_and_records_are_numbers_or_texts():
    config = compose("quickstart", "request=class request.classes=[3,cat] strategies=[finetune]")
    assert config.request.classes == (3, "cat")
    config = compose(
        "quickstart", "request=owners request.owners=[f01,7] corruption=trigger corruption.target_class=dog"
    )
    assert config.request.owners == ("f01", 7) and config.corruption.target_class == "dog"
    again = compose("quickstart", ["request=rows", "request.rows=[]", "request.records=[a,5]", "strategies=[finetune]"])
    assert again.request.records == ("a", 5) and again.request.rows == ()


def test_by_default_no_more_is_recorded_than_the_strategies_need():
    """The file of defaults and the dataclass say the same."""
    assert compose("quickstart").history == HistoryConfig() and HistoryConfig().record == "auto"


def test_what_the_schema_names_is_what_is_implemented():
    """The schema repeats these names, so that reading a configuration does not load what bears them."""
    assert list(schema.MODELS) == models.names()
    assert ("auto", *RECORDS) == schema.RECORDS
    assert tuple(DTYPES) == schema.DTYPES
    assert tuple(GOALS) == schema.GOALS


def test_scopes_are_read_from_files_as_the_classes_have_them():
    assert strategy_scopes() == {name: tuple(sorted(each.scopes)) for name, each in all_strategies().items()}
