"""Tuning: every strategy gets as many trials, on another seed and target, scored on data the run is not judged by."""

import json
from dataclasses import dataclass, field, replace

import pytest
import torch
from flwr.app import Message

from fedforget import client_app, data, messages, models, tuning
from fedforget.config import compose
from fedforget.data.audit_sets import TEST
from fedforget.ledger import Cost
from fedforget.metrics import Outputs
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.seeds import Seeds
from fedforget.store import load_tensors
from fedforget.strategy import UnlearningStrategy, all_strategies
from fedforget.tuning import Outcome, TuningConfig

CLIENT = UnlearningRequest("client", (3,))
RUN = "strategies=[finetune,federaser,amnesiac] strategy.finetune.rounds=2 tuning.trials=3"


# ---------------------------------------------------------------------- the objective


def answers(right, labels=None, clients=None):
    """Two classes; ``right`` says which predictions are."""
    labels = torch.tensor(labels or [0] * len(right))
    predicted = torch.where(torch.tensor(right, dtype=torch.bool), labels, 1 - labels)
    logits = torch.nn.functional.one_hot(predicted, 2).float()
    return Outputs(logits, labels, torch.tensor(clients or [0] * len(right)))


def small_sets():
    """err(D_f) = 1/4, err(holdout) = 1/2; err(V) = 1/4, once client 9, who errs in all, is spared."""
    return {
        "forget": answers([1, 1, 1, 0]),
        "holdout": answers([1, 0]),
        "clients": answers([1, 1, 1, 0, 0, 0], clients=[0, 0, 1, 1, 9, 9]),
    }


@pytest.mark.parametrize(
    ("goal", "trade_off", "expected"),
    [
        ("privacy", 0.4, 0.6 * 0.25 + 0.4 * abs(0.25 - 0.5)),
        ("bias_removal", 0.4, 0.6 * 0.25 + 0.4 * (1 - 0.25)),
        ("privacy", 0.0, 0.25),
        ("bias_removal", 1.0, 0.75),
    ],
)
def test_the_objective_by_hand(goal, trade_off, expected):
    cost = Cost(rounds=7)
    result = tuning.outcome(small_sets(), CLIENT, {9}, TuningConfig(3, goal, trade_off), cost)
    assert result == Outcome(pytest.approx(expected), cost)


def test_of_a_class_request_the_goal_looks_at_that_class_and_accuracy_at_the_others():
    """Class 1 is forgotten. Its holdout is all wrong, as what is forgotten: the goal is 0. V errs in 1 of 2."""
    sets = {
        "forget": answers([0, 0], labels=[1, 1]),
        "holdout": answers([1, 0, 0], labels=[0, 1, 1]),
        "clients": answers([1, 0, 0, 0], labels=[0, 0, 1, 1]),
    }
    result = tuning.outcome(sets, UnlearningRequest("class", (1,)), (), TuningConfig(3, "privacy", 0.4), Cost())
    assert result.objective == pytest.approx(0.6 * 0.5)


def test_a_model_that_diverged_is_worst():
    sets = small_sets()
    sets["holdout"].logits[0, 0] = float("nan")
    assert tuning.outcome(sets, CLIENT, (), TuningConfig(), Cost()) == Outcome(1.0, Cost(), "the model diverged")


def test_nothing_to_be_scored_on_is_refused():
    with pytest.raises(ValueError, match="client 3 has no holdout of the others .*partition.holdout"):
        tuning.outcome(small_sets(), CLIENT, {0, 1, 9}, TuningConfig(), Cost())


def test_an_objective_that_does_not_prefer_the_oracle_says_so():
    better, worse = Outcome(0.1, Cost()), Outcome(0.2, Cost())
    assert tuning.doubt(worse, better) == ""
    assert "the oracle (0.2000) is no better than doing nothing (0.1000)" in tuning.doubt(better, worse)
    assert tuning.doubt(better, better)


# ---------------------------------------------------------------------- the trials of one strategy


@dataclass(frozen=True)
class Options:
    lr: float = field(default=0.1, metadata={"search": (0.01, 1.0, "log")})
    rounds: int = field(default=2, metadata={"search": (1, 4, "int")})
    mask: str = field(default="a", metadata={"search": ("a", "b")})
    fixed: int = 5


def tried(options, trials, objective, seed=0):
    """The options in the order in which they were tried, and the result."""
    seen = []

    def attempt(options):
        seen.append(options)
        return objective(options, len(seen))

    return seen, tuning.tune(options, trials, Seeds(seed), attempt)


def by_lr(options, number):
    return Outcome(abs(options.lr - 0.5), Cost(rounds=number, bytes_stored=10))


def test_the_configured_options_are_tried_first_and_others_from_their_ranges():
    seen, tuned = tried(Options(), 30, by_lr)
    assert len(seen) == len(tuned.trials) == 30 and seen[0] == Options()
    assert all(0.01 <= o.lr <= 1 and o.rounds in (1, 2, 3, 4) and o.mask in "ab" and o.fixed == 5 for o in seen)
    assert {o.mask for o in seen} == {"a", "b"} and len({o.lr for o in seen}) == 30
    # The best is chosen, and all are billed: 1 + ... + 30 rounds, but one store of 10 bytes.
    best = min(seen, key=lambda o: abs(o.lr - 0.5))
    assert tuned.best.drawn == {"lr": best.lr, "rounds": best.rounds, "mask": best.mask}
    assert tuned.cost == Cost(rounds=465, bytes_stored=10)
    # The sampler learns from what it is told: the later trials are nearer to the optimum than uniform ones.
    assert sum(abs(o.lr - 0.5) < 0.25 for o in seen[15:]) > sum(abs(o.lr - 0.5) < 0.25 for o in seen[:15])


def test_equal_seeds_give_equal_trials_and_a_longer_search_begins_with_the_shorter():
    first, second = tried(Options(), 6, by_lr)[0], tried(Options(), 12, by_lr)[0]
    assert second[:6] == first != tried(Options(), 6, by_lr, seed=1)[0]


def test_a_configured_value_outside_its_range_is_tried_all_the_same():
    seen, tuned = tried(Options(lr=7.0), 3, lambda options, number: Outcome(0.5, Cost()))
    assert seen[0].lr == 7.0 and tuned.best.drawn["lr"] == 7.0  # the first among equals


def test_a_trial_that_failed_is_chosen_only_if_all_did():
    outcomes = [Outcome(1.0, Cost(), "broke"), Outcome(1.0, Cost()), Outcome(1.0, Cost(), "broke")]
    seen, tuned = tried(Options(), 3, lambda options, number: outcomes[number - 1])
    assert tuned.best.drawn["lr"] == seen[1].lr
    seen, tuned = tried(Options(), 3, lambda options, number: outcomes[0])
    assert tuned.best.drawn["lr"] == 0.1
    assert "3 of 3 trials failed" in str(tuned)


# ---------------------------------------------------------------------- the ranges of all strategies


@pytest.mark.parametrize("name", sorted(all_strategies()))
def test_ranges_hold_the_default_and_nothing_that_the_strategy_refuses(name):
    strategy = all_strategies()[name]
    ranges = tuning.space(strategy.Config())
    if strategy.learn is not UnlearningStrategy.learn:
        assert not ranges, "each trial of a strategy that learns itself would be a whole training"
    for option, search in ranges.items():
        is_range = search[-1] in tuning.SCALES
        default = getattr(strategy.Config(), option)
        assert search[0] <= default <= search[1] if is_range else default in search
        values = search[:2] if is_range else search
        cards = [strategy(replace(strategy.Config(), **{option: value})).card for value in values]
        # What is recorded while learning is settled before anything is tuned.
        assert {(card.records, card.target_online, card.retained_online) for card in cards} == {
            (cards[0].records, cards[0].target_online, cards[0].retained_online)
        }


# ---------------------------------------------------------------------- another target


def another(requests, sizes, counts=None, seed=0):
    return tuning.another_request(requests, sizes, counts or {}, Seeds(seed))


def test_another_client_is_one_of_the_three_nearest_in_size_that_no_request_names():
    sizes = {0: 100, 1: 0, 2: 90, 3: 100, 4: 99, 5: 101, 6: 400}
    requests = (replace(CLIENT, after_round=4), UnlearningRequest("client", (5,)))
    chosen = {another(requests, sizes, seed=seed) for seed in range(40)}
    # Of the free ones (0, 2, 4, 6) the nearest three are 0, 4 and 2; client 1 has no data.
    assert {request.targets for request in chosen} == {(0,), (2,), (4,)}
    assert {request.after_round for request in chosen} == {4}
    assert another(requests, sizes) == another(requests, sizes)


def test_several_clients_have_several_others():
    request = UnlearningRequest("client", (0, 1))
    chosen = {another((request,), dict.fromkeys(range(6), 50), seed=seed).targets for seed in range(20)}
    assert len(chosen) > 1 and all(len(set(targets) - {0, 1}) == 2 for targets in chosen)


def test_another_class():
    """Classes 0 to 3 have 10, 12, 0 and 30 examples, so instead of class 0 it is 1 or 3."""
    request = UnlearningRequest("class", (0,))
    counts = {0: [4, 6, 0, 10], 1: [6, 6, 0, 20]}
    assert {another((request,), {0: 20, 1: 32}, counts, seed).targets for seed in range(20)} == {(1,), (3,)}


def test_the_same_share_of_another_clients_samples():
    """5 of client 0's 50 examples are a tenth; client 1 has 80, so 8."""
    request = UnlearningRequest("sample", tuple((0, position) for position in range(5)))
    other = another((request,), {0: 50, 1: 80})
    assert other.scope == "sample" and other.clients == (1,) and len(other.targets) == 8
    assert max(position for _, position in other.targets) < 80
    assert tuning.exchanged((0, 2), request, other) == (1, 2) and tuning.exchanged((0, 1), request, other) == (0, 1)


@pytest.mark.parametrize(
    ("request_", "sizes", "counts"),
    [
        (CLIENT, {1: 20, 3: 20}, {}),  # one to forget, but then nobody to validate on
        (UnlearningRequest("sample", ((0, 1),)), {0: 20}, {}),
        (UnlearningRequest("class", (1,)), {0: 20}, {0: [0, 20]}),
    ],
)
def test_too_few_targets_are_refused(request_, sizes, counts):
    with pytest.raises(ValueError, match="tuning forgets .*use tuning.trials=0") as caught:
        another((request_,), sizes, counts)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- whole runs


@pytest.mark.parametrize(
    "search", [(), "log", 3, (0.1, 1.0, "logarithmic"), (1.0, 0.1, "log"), (0.0, 1.0, "log"), [2, 2, "int"]]
)
def test_a_range_that_is_none_is_refused(search):
    @dataclass(frozen=True)
    class Config:
        rate: float = field(default=0.5, metadata={"search": search})

    with pytest.raises(ValueError, match=r"Config.rate is to be searched in .* must be \(low, high, scale\) with"):
        tuning.space(Config())


def header_of(experiment):
    lines = (experiment.folder / "results.jsonl").read_text().splitlines()
    return next(line["header"] for line in map(json.loads, lines) if "header" in line)


def watched(seen, fails=lambda work: False):
    """The project's ClientApp, which notes what is asked, and whose training fails where ``fails`` says so."""

    def app(message: Message, context) -> Message:
        if message.metadata.message_type == messages.DESCRIBE:
            return client_app.app(message, context)
        work, _ = messages.unpack(message.content)
        seen.append((message.metadata.message_type, work))
        if message.metadata.message_type == messages.TRAIN and fails(work):
            raise RuntimeError("boom")
        return client_app.app(message, context)

    return app


def is_trial(work):
    return work.seeds.path == ("trajectory", tuning.SEED)


def models_of(root):
    """``(what it is made of, parameters, cost)`` of every stored model."""
    files = root.glob("store/models/*/model.safetensors")
    return [(m["made_of"], tensors["model"], m["cost"]) for tensors, m in map(load_tensors, files)]


def test_every_strategy_gets_its_trials_on_another_seed_and_client_and_the_best_options_serve(run_small, tmp_path):
    seen = []
    experiment, said = run_small(RUN, client_app=watched(seen))
    header = header_of(experiment)["tuning"]
    tuned = header["strategies"]
    assert {label: len(mine["trials"]) for label, mine in tuned.items()} == {"finetune": 3, "federaser": 3}
    why = "no option of its Config declares a range to search"
    assert header["untuned"] == {"amnesiac": why}
    note = said.index(f"  note: amnesiac is not tuned and keeps its configured options: {why}")
    assert note < min(number for number, line in enumerate(said) if line.startswith("[")), "it is said at the start"
    assert why in (experiment.folder / "report.html").read_text()
    assert tuned["finetune"]["trials"][0]["options"] == {"rounds": 2}

    # Another target and another seed; no trial asks for the test set, or for what the run's own target holds.
    (other,) = experiment.rehearsal.setting.requests
    assert other.scope == "client" and other != experiment.setting.requests[0] and header["request"] == str(other)
    trials = [(kind, work) for kind, work in seen if is_trial(work)]
    assert {work.request for _, work in trials} == {None, other}
    asked = {part[:2] for kind, work in trials if kind == messages.EVALUATE for part in work.parts}
    assert asked and TEST not in {client for client, _ in asked}
    assert {split for _, split in asked} == {"forget", "holdout"}
    assert all(
        work.request == experiment.setting.requests[0] for _, work in seen if not is_trial(work) and work.request
    )

    # The chosen options are the best, serve the request, and keep the label; the configuration stays as it was.
    for label, mine in tuned.items():
        best = min(mine["trials"], key=lambda trial: trial["objective"])
        assert mine["chosen"] == best["options"]
        assert mine["cost"]["rounds"] == sum(trial["cost"]["rounds"] for trial in mine["trials"])
        (served,) = (
            made["strategy"][1]
            for made, _, _ in models_of(tmp_path)
            if made["strategy"][0] == label and made["requests"] == [experiment.setting.requests[0].to_dict()]
        )
        assert mine["chosen"].items() <= served.items()
    assert "strategies=[finetune" not in (experiment.folder / "config.yaml").read_text()
    assert "rounds: 2" in (experiment.folder / "config.yaml").read_text()
    assert header_of(experiment)["trainings"] == 2 + 2  # an original and an oracle, and those of the tuning
    assert any("4 whole trainings" in line for line in said)
    assert 0 <= header["objectives"]["retrain"] <= 1 and 0 <= header["objectives"]["original"] <= 1


def test_a_trials_objective_is_that_of_its_stored_model(run_small, tmp_path):
    """J from the model and the data alone: no part of the framework that asks clients is used."""
    experiment, _ = run_small(RUN)
    (other,) = experiment.rehearsal.setting.requests
    federated = data.load(experiment.rehearsal.setting.task.data)
    module = models.build(experiment.config.model, federated.input_shape, federated.num_classes)

    def error(rows):
        return (module(federated.inputs[rows]).argmax(1) != federated.labels[rows]).double().mean().item()

    def split(client, name):
        return federated.split(client, name, Seeds(0), (), other)

    for trial in header_of(experiment)["tuning"]["strategies"]["finetune"]["trials"]:
        (flat,) = (
            tensor
            for made, tensor, _ in models_of(tmp_path)
            if made["strategy"][:2] == ["finetune", trial["options"]] and made["requests"] == [other.to_dict()]
        )
        Params(flat, Layout.of(module)).copy_to(module)
        (target,) = other.targets
        forget, unseen = error(split(target, "forget")), error(split(target, "holdout"))
        validation = error(torch.cat([split(c, "holdout") for c in range(5) if c not in (target, 3)]))
        assert trial["objective"] == pytest.approx(0.6 * validation + 0.4 * abs(forget - unseen))


def test_a_second_run_makes_nothing_again_and_more_seeds_change_no_trial(run_small):
    first, _ = run_small(RUN)
    seen = []
    again, _ = run_small(RUN, client_app=watched(seen))
    assert seen == [] and header_of(again)["tuning"] == header_of(first)["tuning"]
    more, _ = run_small(f"{RUN} evaluation.seeds=2", client_app=watched(seen))
    assert seen and not [work for _, work in seen if is_trial(work)]
    assert header_of(more)["tuning"] == header_of(first)["tuning"]


def test_trials_that_fail_are_worst_and_the_configured_options_stay(run_small, tmp_path):
    """The tuning original takes 3 rounds; fine-tuning's clients fail in the second of its rounds, the fifth of all.

    So trials of one round pass. The configured two rounds fail, after a first round that is billed.
    """
    fails = lambda work: is_trial(work) and work.round == 5  # noqa: E731
    experiment, _ = run_small(
        "strategies=[finetune] strategy.finetune.rounds=2 tuning.trials=2", client_app=watched([], fails)
    )
    mine = header_of(experiment)["tuning"]["strategies"]["finetune"]
    failed = mine["trials"][0]
    assert failed["objective"] == 1 and "round 5: only 0 of 4 clients answered" in failed["note"]
    assert failed["cost"]["rounds"] == 1
    assert (mine["trials"][1]["note"] == "") == (mine["trials"][1]["options"]["rounds"] == 1)
    assert mine["chosen"]["rounds"] == (1 if mine["trials"][1]["note"] == "" else 2)
    assert "finetune" not in header_of(experiment)["failed"]


def test_what_is_corrupted_moves_to_the_other_target(run_small):
    seen = []
    experiment, said = run_small(
        "strategies=[finetune] corruption=label_random corruption.clients=[3] tuning.trials=1", client_app=watched(seen)
    )
    tasks = {is_trial(work): json.loads(work.task)["data"]["corruption"] for _, work in seen}
    assert tasks[False]["clients"] == [3]
    assert tasks[True] == {**tasks[False], "clients": list(experiment.rehearsal.setting.requests[0].targets)}


@pytest.mark.parametrize(
    "overrides", ["request=class request.classes=[3]", "request=sample request.clients=[2] request.share=0.3"]
)
def test_every_scope_is_tuned(run_small, overrides):
    experiment, _ = run_small(f"{overrides} strategies=[finetune] tuning.trials=2 tuning.goal=bias_removal")
    (other,), (own,) = experiment.rehearsal.setting.requests, experiment.setting.requests
    assert other.scope == own.scope and not set(other.targets) & set(own.targets)
    assert len(header_of(experiment)["tuning"]["strategies"]["finetune"]["trials"]) == 2


def test_nothing_to_tune_trains_nothing_more_and_says_so(run_small):
    experiment, _ = run_small("strategies=[amnesiac] tuning.trials=2")
    header = header_of(experiment)
    assert (
        header["trainings"] == 2
        and header["tuning"]["strategies"] == {}
        and list(header["tuning"]["untuned"]) == ["amnesiac"]
    )
    assert header_of(run_small("strategies=[amnesiac]")[0])["tuning"] == {}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("tuning.trials=-1", "tuning.trials is -1, but must be at least 0"),
        ("tuning.goal=fast", "tuning.goal is 'fast', but must be one of privacy, bias_removal"),
        ("tuning.trade_off=1.5", r"tuning.trade_off is 1.5, but must be in \[0, 1\]"),
    ],
)
def test_bad_settings_are_refused(overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        compose("quickstart", overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("partition.clients=2 request.clients=[1]", "tuning forgets .*use tuning.trials=0"),
        ("partition.holdout=0.0", "partition.holdout"),
    ],
)
def test_a_federation_that_cannot_be_tuned_on_is_refused_before_training(run_small, tmp_path, overrides, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        run_small(f"strategies=[finetune] tuning.trials=2 {overrides}")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("store/models/*")) and not list(tmp_path.glob("store/trajectories/*"))
