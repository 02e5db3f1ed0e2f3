"""The audit against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedforget.evaluation import (
    FAMILIES,
    LEVELS,
    NEEDED,
    EvaluationConfig,
    ModelResult,
    audit,
    bill,
    chances,
    floor,
    measure,
)
from fedforget.ledger import Cost
from fedforget.metrics import Outputs

T2 = 4.302652729911275  # the 97.5 % quantile of Student's t with 2 degrees of freedom


def scored(label: str, scores: list[float], cost: Cost | None = None, request: int = 0) -> list[ModelResult]:
    return [ModelResult(request, label, k, {"forget/margin": s}, cost or Cost()) for k, s in enumerate(scores)]


def row(results: list[ModelResult], label: str, request: int = 0) -> dict:
    (found,) = [row for row in audit(results) if row["label"] == label and row["request"] == request]
    return found


RUN = [
    *scored("retrain", [1.0, 2.0, 3.0]),
    *scored("original", [11.0, 12.0, 13.0]),
    *scored("finetune", [2.0, 4.0, 6.0]),
]


def test_gap_is_paired_and_has_a_t_interval() -> None:
    found = row(RUN, "finetune")
    # gaps 1, 2, 3: mean 2, sd 1; values 2, 4, 6: mean 4, sd 2
    assert (found["gap"], found["value"], found["seeds"]) == (2.0, 4.0, 3)
    assert found["gap_half_width"] == pytest.approx(T2 / math.sqrt(3))
    assert found["value_half_width"] == pytest.approx(2 * T2 / math.sqrt(3))


def test_floor_is_leave_one_out() -> None:
    found = row(RUN, "finetune")
    # 1 - (2+3)/2 = -1.5, 2 - (1+3)/2 = 0, 3 - (1+2)/2 = 1.5: mean size 1, sd 1.5
    assert (found["floor"], found["floor_sd"]) == (1.0, 1.5)
    assert found["gap_in_floors"] == 2.0


def test_gap_closed_counts_from_doing_nothing_to_the_oracle() -> None:
    assert row(RUN, "finetune")["gap_closed"] == pytest.approx(1 - 2 / 10)
    assert row(RUN, "original")["gap_closed"] == 0.0
    assert row(RUN, "original")["gap"] == row(RUN, "finetune")["noop_gap"] == 10.0


def test_gap_closed_is_hidden_where_there_is_nothing_to_forget() -> None:
    weak = [*RUN[:3], *scored("original", [5.0, 6.0, 7.0]), *RUN[6:]]  # signal 4 < 3 x 1.5
    assert row(weak, "finetune")["gap_closed"] is None
    assert row(weak, "finetune")["gap"] == 2.0


def test_the_oracle_has_a_floor_and_no_gap() -> None:
    found = row(RUN, "retrain")
    assert found["gap"] is found["gap_half_width"] is found["gap_in_floors"] is found["gap_closed"] is None
    assert (found["value"], found["floor"], found["noop_gap"]) == (2.0, 1.0, 10.0)


def test_equal_oracles_have_a_floor_of_exactly_zero() -> None:
    found = row([*scored("retrain", [0.1] * 3), *scored("original", [0.1] * 3)], "original")
    assert (found["floor"], found["floor_sd"]) == (0.0, 0.0)
    assert found["gap_in_floors"] is found["gap_closed"] is None


def test_the_floor_is_between_oracles_under_the_same_coins() -> None:
    """0.5, 0.6 and 0.8, each under its own coins. Under these the others score 0.4 and 0.5, 0.6 and 0.6, 0.5 and 0.7:
    differences of 0.05, 0 and 0.2, with the mean 1/12 and the standard deviation sqrt(0.065/6) = 0.1041."""
    apart, spread = floor([0.5, 0.6, 0.8], [[0.4, 0.5], [0.6, 0.6], [0.5, 0.7]])
    assert apart == pytest.approx(0.25 / 3)
    assert spread == pytest.approx(math.sqrt(0.065 / 6))
    assert floor([0.5, 0.6, 0.8], [[0.5] * 2, [0.6] * 2, [0.8] * 2]) == (0, 0)  # equal oracles under unequal coins
    with_coins = [replace(r, others={"forget/margin": [r.values["forget/margin"]] * 2}) for r in RUN]
    assert row(with_coins, "finetune")["floor"] == 0 < row(RUN, "finetune")["floor"]


def test_one_seed_has_no_interval_and_no_floor() -> None:
    found = row([*scored("retrain", [1.0]), *scored("original", [9.0]), *scored("finetune", [2.0])], "finetune")
    assert (found["value"], found["gap"], found["noop_gap"]) == (2.0, 1.0, 8.0)
    for column in ("value_half_width", "gap_half_width", "floor", "floor_sd", "gap_in_floors", "gap_closed"):
        assert found[column] is None


def test_a_diverged_model_keeps_its_row() -> None:
    found = row([*RUN, *scored("ascent", [math.inf, 1.0, math.nan])], "ascent")
    assert math.isnan(found["gap"])


def test_requests_have_their_own_oracles_and_originals_come_first() -> None:
    later = [replace(result, request=1, values={"forget/margin": 0.0}) for result in RUN]
    rows = audit([*later, *RUN])
    assert [(found["request"], found["label"]) for found in rows] == [
        (request, label) for request in (0, 1) for label in ("original", "retrain", "finetune")
    ]
    assert row([*later, *RUN], "finetune", request=1)["gap"] == 0.0


@pytest.mark.parametrize("work", [audit, bill])
def test_a_missing_oracle_is_an_error(work) -> None:
    with pytest.raises(ValueError, match="request 0: 'original' with seed 1 has no oracle"):
        work([result for result in RUN if (result.label, result.seed) != ("retrain", 1)])


def test_incomplete_or_repeated_results_are_errors() -> None:
    with pytest.raises(ValueError, match="request 0 has no 'original' model"):
        audit([result for result in RUN if result.label != "original"])
    with pytest.raises(ValueError, match="two results for 'finetune' with seed 2"):
        audit([*RUN, RUN[-1]])
    with pytest.raises(ValueError, match="'finetune' with seed 2 differs in its metrics: test/loss"):
        audit([*RUN[:-1], replace(RUN[-1], values=RUN[-1].values | {"test/loss": 1.0})])


def test_bill_means_and_speedups() -> None:
    full, part = Cost(rounds=30, client_examples=600, bytes_down=90, bytes_up=30), Cost(rounds=10, bytes_stored=7)
    rows = bill(
        [
            *scored("original", [0.0] * 2),
            *scored("retrain", [0.0] * 2, full),
            *scored("a", [0.0] * 2, part + Cost(client_examples=150, bytes_up=40)),
        ]
    )
    found = {row["label"]: row for row in rows}
    assert list(found) == ["original", "retrain", "a"]
    assert (found["a"]["rounds"], found["a"]["bytes_stored"], found["a"]["client_examples"]) == (10, 7, 150)
    assert (found["a"]["rounds_speedup"], found["a"]["client_examples_speedup"]) == (3.0, 4.0)
    assert found["a"]["bytes_speedup"] == (90 + 30) / 40
    assert found["retrain"]["bytes_speedup"] == 1.0
    assert found["original"]["rounds_speedup"] == math.inf


def test_bill_averages_over_seeds() -> None:
    results = [*scored("original", [0.0] * 2), *scored("retrain", [0.0] * 2, Cost(rounds=6))]
    results += [ModelResult(0, "a", k, {"forget/margin": 0.0}, Cost(rounds=k + 1)) for k in range(2)]
    assert (bill(results)[-1]["rounds"], bill(results)[-1]["rounds_speedup"]) == (1.5, 4.0)


def test_measure_skips_empty_sets() -> None:
    answers = Outputs(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]), torch.tensor([3, 3]))
    none = Outputs(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    values = measure({"forget": answers, "holdout": none})
    assert list(values) == ["forget/accuracy", "forget/loss", "forget/margin"]
    assert values["forget/accuracy"] == 0.5 and values["forget/margin"] == 0.0


def test_decision_regions_are_compared_with_the_references_by_class_alone() -> None:
    """Of the points common to both models, 1, 2 and 3, the reference puts point 2 in another class: a third."""

    def answers(rows: list[int], classes: list[int]) -> Outputs:
        logits, zeros = torch.eye(2)[classes], torch.zeros(len(rows), dtype=torch.long)
        return Outputs(logits, zeros, zeros, rows=torch.tensor(rows))

    model, other = answers([0, 1, 2, 3], [0, 0, 1, 1]), answers([3, 2, 1, 4], [1, 0, 0, 0])
    values = measure({"near": model, "far": model}, [{"near": other, "far": model}])
    assert values == {"near/disagreement": pytest.approx(1 / 3), "far/disagreement": 0}
    assert measure({"near": model}, [{"near": other}], brief=True) == measure({"near": model}) == {}


def test_levels_need_their_seeds() -> None:
    assert EvaluationConfig().claim == LEVELS["screen"].claim
    assert EvaluationConfig("smoke", 1).seeds == 1
    with pytest.raises(ValueError, match="seeds=2 is too few for level 'screen', which needs at least 3"):
        EvaluationConfig(seeds=2)
    with pytest.raises(ValueError, match="level 'leaderbord' is unknown.*did you mean 'leaderboard'"):
        EvaluationConfig("leaderbord", 5)
    with pytest.raises(ValueError, match="max_examples=0"):
        EvaluationConfig(max_examples=0)


def test_levels_from_leaderboard_on_audit_again() -> None:
    for level, k in (("leaderboard", 5), ("strong", 10), ("attack", 64), ("epsilon", 256)):
        assert EvaluationConfig(level, k, durability=(20, 5)).durability == (5, 20)
        with pytest.raises(ValueError, match=rf"level '{level}' audits again.*add evaluation.durability=\[5,20\]"):
            EvaluationConfig(level, k)
    with pytest.raises(ValueError, match=r"durability=\[0, 5\] must be numbers of rounds, at least 1"):
        EvaluationConfig(durability=(5, 0))
    assert [level.code for level in LEVELS.values()] == [f"EL{n}" for n in range(6)]


@pytest.mark.parametrize(
    ("settings", "corruption", "sentence"),
    [
        (
            {"level": "attack", "seeds": 64, "durability": (5,)},
            "none",
            "level 'attack' needs coin-flipped canaries; add",
        ),
        ({"level": "epsilon", "seeds": 256, "durability": (5,)}, "trigger", "add corruption=canary"),
        ({"primary": "canary/auc"}, "none", "primary=canary/auc was not recorded; add corruption=canary"),
        ({"primary": "trigger/success"}, "canary", "primary=trigger/success was not recorded; add corruption=trigger"),
        ({"primary": "noise/alignment"}, "canary", "primary=noise/alignment was not recorded; add corruption=noise"),
        ({"primary": "confusion/forget_error"}, "none", "add corruption=label_swap"),
        ({"primary": "+20/canary/auc"}, "canary", "needs the audit after 20 rounds; add 20 to evaluation.durability"),
        ({"primary": "+5/canary/auc", "durability": (5,)}, "none", "primary=.5/canary/auc was not recorded; add"),
        ({"primary": "+soon/canary/auc"}, "canary", "primary=.soon/canary/auc must name a number of rounds"),
        ({"primary": "forgot/accuracy"}, "none", "primary=forgot/accuracy is unknown; it starts with one of forget, "),
        ({"primary": "relearn/few"}, "none", "primary=relearn/few needs evaluation.relearn, for instance 5"),
        ({"primary": "forget/marginn"}, "none", "primary=forget/marginn is unknown; choose one of forget/accuracy, "),
        (
            {"primary": "+5/rmia/auk", "durability": (5,)},
            "none",
            "primary=.5/rmia/auk is unknown; choose one of rmia/auc",
        ),
        ({"primary": "lira/auc", "seeds": 2, "level": "smoke"}, "none", "use evaluation.seeds=3 at least, not 2"),
        ({"primary": "rmia/auc", "seeds": 1, "level": "smoke"}, "none", "use evaluation.seeds=2 at least, not 1"),
        ({"primary": "matched/margin", "holdout": 0.0}, "none", "never trains on; set partition.holdout above 0"),
    ],
)
def test_what_a_run_would_not_record_is_refused(settings: dict, corruption: str, sentence: str) -> None:
    holdout = settings.get("holdout", 0.2)
    config = EvaluationConfig(**{name: value for name, value in settings.items() if name != "holdout"})
    with pytest.raises(ValueError, match=sentence):
        config.check(corruption, holdout)


def test_what_a_run_records_is_accepted() -> None:
    EvaluationConfig().check("none", 0.2)
    EvaluationConfig("attack", 64, durability=(5,)).check("canary", 0.2)
    EvaluationConfig(primary="+5/canary/calibrated", durability=(5, 20)).check("canary", 0.2)
    EvaluationConfig(primary="confusion/forget_confused").check("label_swap", 0.2)
    EvaluationConfig(primary="relearn/few", relearn=5).check("none", 0.2)


def test_every_metric_that_can_be_primary_is_measured_and_the_others_are_named() -> None:
    """The names of `FAMILIES` against what `measure` returns; those that only an assessment adds are the exceptions."""
    generator = torch.Generator().manual_seed(0)

    def some(n: int, features: int = 2) -> Outputs:
        labels, clients = torch.arange(n) % 2, torch.arange(n) % 3
        logits, inside = torch.randn(n, 2, generator=generator), torch.rand(n, features, generator=generator)
        return Outputs(logits, labels, clients, inside, torch.arange(n), torch.arange(n) % 2)

    names = ("forget", "retain", "holdout", "test", "clients", "canary", "trigger", "noise", "near", "far")
    references = [{name: some(12) for name in names} for _ in range(2)]
    planted = {"kind": "label_swap", "classes": (0, 1), "target_class": 0, "deviation": 1.0}
    found = set(measure({name: some(12) for name in names}, references, planted))
    known = {f"{family}/{name}" for family, mine in FAMILIES.items() for name in mine}
    assert {name for name in known - found if not name.startswith(("relearn/", "regions/"))} == set()
    # Only forgotten examples and the holdout have features in a run, and clients one by one are no primary metric.
    assert {n for n in found - known if not n.startswith("client/")} == {"retain/cka", "test/cka"}
    alone = set(measure({name: some(12) for name in names}, (), planted))
    assert known - alone - set(NEEDED) == {n for n in known if n.startswith(("relearn/", "regions/"))}
    assert not alone & set(NEEDED)


def canaries(margins: list[float]) -> Outputs:
    """Four candidates of label 0 with these margins; the first two were trained on."""
    logits = torch.tensor([[margin, 0.0] for margin in margins], dtype=torch.float64)
    zeros = torch.zeros(4, dtype=torch.long)
    return Outputs(logits, zeros, zeros, rows=torch.arange(4), included=torch.tensor([1, 1, 0, 0]))


def test_canaries_raw_and_calibrated() -> None:
    """Raw, of the four pairs (1, 2), (1, 3), (4, 2), (4, 3) the included one is higher in two: AUC 0.5. References find
    the first candidate hard, by 3: 4 and 4 against 2 and 3 then, AUC 1."""
    values = measure({"canary": canaries([1, 4, 2, 3])}, [{"canary": canaries([-3, 0, 0, 0])}], {"kind": "canary"})
    assert (values["canary/auc"], values["canary/calibrated"]) == (0.5, 1.0)
    assert values["canary/epsilon"] == 0.0 and values["canary/p"] > 0.5
    assert "canary/calibrated" not in measure({"canary": canaries([1, 4, 2, 3])})


def test_coins_that_all_fell_alike_give_no_figure() -> None:
    alike = replace(canaries([1, 4, 2, 3]), included=torch.ones(4, dtype=torch.long))
    assert measure({"canary": alike}) == {}


def answers(labels: list[int], predicted: list[int], clients: list[int] | None = None) -> Outputs:
    owners = torch.tensor(clients or [-1] * len(labels))
    return Outputs(torch.eye(4)[predicted], torch.tensor(labels), owners, rows=torch.arange(len(labels)))


def test_forgotten_classes_are_scored_apart() -> None:
    """Class 2 was forgotten: the two retained classes have 2 of 3 and 1 of 1 right. Client 1 holds nothing else."""
    test = answers([0, 0, 0, 1, 2, 2], [0, 0, 3, 1, 0, 2])
    own = answers([0, 2, 2, 1], [0, 2, 2, 0], [0, 0, 1, 2])
    values = measure({"test": test, "clients": own}, [{"test": test, "clients": own}], forgotten=[2])
    assert values["test/accuracy"] == pytest.approx(4 / 6)
    assert values["test/balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert values["test_retained/accuracy"] == pytest.approx(3 / 4)
    assert values["test_retained/balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert values["test_forgotten/accuracy"] == 0.5
    assert {n: v for n, v in values.items() if n.startswith("client/")} == {"client/0": 1, "client/2": 0}
    assert (values["clients/accuracy"], values["clients/worst"], values["clients/mean"]) == (0.5, 0, 0)
    without = measure({"test": test, "clients": own})
    assert not any(name.startswith("test_") for name in without) and without["client/1"] == 1


def test_utility_is_judged_by_retained_classes_and_on_skewed_sets_by_balanced_accuracy_too() -> None:
    even, skewed = answers([0, 1, 2] * 2, [0] * 6), answers([0] * 8 + [1, 2], [0] * 10)
    own = answers([0, 0, 1, 2], [0] * 4, [0, 0, 1, 2])
    assert chances({"test": even}) == pytest.approx({"test/accuracy": 1 / 3})
    assert chances({"test": skewed, "clients": own}) == pytest.approx(
        {"test/accuracy": 0.8, "test/balanced_accuracy": 1 / 3, "clients/accuracy": 1 / 3, "clients/worst": 0}
    )
    # Without class 0 both are even again, and client 0 has nothing left.
    assert chances({"test": skewed, "clients": own}, [0]) == pytest.approx(
        {"test_retained/accuracy": 0.5, "clients/accuracy": 0.5, "clients/worst": 0}
    )
    # One class is left, which every constant answer gets right: there is nothing to judge.
    assert chances({"test": skewed}, [0, 1]) == {} == chances({"test": skewed}, [0, 1, 2])


def test_marks_of_noise() -> None:
    """Products 1 and 2 with gradients of length 1 and 4, deviation 0.5: alignments 2 and 1, z = 1.5 sqrt 2."""
    zeros = torch.zeros(2, dtype=torch.long)
    answers = Outputs(torch.zeros(2, 3), zeros, zeros, torch.tensor([[1.0, 1.0], [2.0, 4.0]]))
    values = measure({"noise": answers}, corruption={"kind": "noise", "deviation": 0.5})
    assert values == pytest.approx({"noise/alignment": 1.5, "noise/p": math.erfc(1.5) / 2})


def test_marks_of_a_trigger_and_of_swapped_labels() -> None:
    """Predictions 0, 0, 1 for the labels 0, 1, 1. The trigger, to class 0, works on one of the two others; of the three
    examples of the swapped classes one is wrong, and it is taken for the other class."""
    logits = torch.tensor([[1.0, 0.0, -1.0], [1.0, 0.0, -1.0], [0.0, 1.0, -1.0]])
    answers = Outputs(logits, torch.tensor([0, 1, 1]), torch.zeros(3, dtype=torch.long))
    values = measure({"trigger": answers}, corruption={"kind": "trigger", "target_class": 0})
    assert values == {"trigger/success": 0.5}
    swapped = measure({"forget": answers}, corruption={"kind": "label_swap", "classes": [0, 1]}, brief=True)
    third = pytest.approx(1 / 3)
    assert (swapped["confusion/forget_error"], swapped["confusion/forget_confused"]) == (third, third)


def test_brief_leaves_out_what_a_later_stage_is_not_judged_by() -> None:
    generator = torch.Generator().manual_seed(0)

    def some(n: int) -> Outputs:
        labels = torch.arange(n) % 2
        clients = torch.arange(n) % 3
        logits = torch.randn(n, 2, generator=generator)
        return Outputs(logits, labels, clients, torch.randn(n, 2, generator=generator), torch.arange(n))

    sets = {name: some(12) for name in ("forget", "retain", "holdout", "test", "clients")}
    references = [{name: some(12) for name in sets} for _ in range(2)]
    whole, brief = measure(sets, references), measure(sets, references, brief=True)
    left_out = set(whole) - set(brief)
    families = {name.partition("/")[0] for name in left_out}
    assert {n: v for n, v in brief.items() if v == v}.items() <= whole.items()  # of 12 examples two rates are NaN
    assert "probe" in families and "forget/disagreement" in left_out
    assert not {"matched", "efficacy", "lira", "rmia"} & families  # leakage is measured whole at every stage
    assert {"matched/entropy", "efficacy/logistic", "lira/auc", "rmia/auc", "clients/mean", "client/2"} <= set(brief)
