"""Verdicts of hand-made models whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
import torch

from fedforget.claims import CONSTANT, NOT_FINITE, PASSED, UNCHECKED, UNMOVED, VOID
from fedforget.evaluation import CHECKPOINT, ORACLE, ORIGINAL, ModelResult
from fedforget.ledger import Cost
from fedforget.verdicts import ANOTHER, ATTACKS, DIAGNOSTIC, Evidence, evidence, gates, judge, shadowed

PRIMARY = "canary/calibrated"
CHANCES = {"test/accuracy": 0.1}
SEEDS = range(5)

# Scores of five oracles: mean 0.5, and 1.25 times their standard deviation (leave-one-out) is the floor's.
SPREAD = [0.48, 0.49, 0.50, 0.51, 0.52]


def made(
    values: Mapping[str, Sequence[float]],
    cost: Cost | None = None,
    margins: Sequence[Sequence[float]] | None = None,
) -> Evidence:
    """Evidence from metrics seed by seed and margins ``[seeds][examples]`` on the forget set."""
    seeds = range(len(next(iter(values.values()))))
    each = {k: {name: column[k] for name, column in values.items()} for k in seeds}
    sets = {k: {"forget": torch.tensor(margins[k], dtype=torch.float64)} if margins else {} for k in seeds}
    return Evidence(each, sets, cost or Cost())


def scores(canary: Sequence[float], test: float = 0.9, forget: Sequence[float] = (0.5,) * 5) -> dict:
    return {"canary/auc": canary, PRIMARY: canary, "test/accuracy": [test] * 5, "forget/accuracy": forget}


def up(by: float, start: Sequence[float] = SPREAD) -> list[float]:
    return [value + by for value in start]


PASSES = {"attacks": ["canary/auc", PRIMARY], "state": PASSED, "why": "", "chances": CHANCES}
OUR = {ORIGINAL: made(scores(up(0.4))), ORACLE: made(scores(SPREAD))}  # the signal is 0.4, in every seed


def row(models: Mapping[str, Evidence], label: str, primary: str = PRIMARY) -> dict:
    (found,) = [row for row in judge(models, primary, CHANCES) if row["label"] == label]
    return found


# The axes


def test_a_model_that_is_the_oracle_is_perfect_and_one_that_is_the_original_is_nothing() -> None:
    models = OUR | {"perfect": made(scores(SPREAD)), "nothing": made(scores(up(0.4)))}
    perfect, nothing = row(models, "perfect"), row(models, "nothing")
    # Gaps are 0 in every seed, so that even the pessimistic ends are exact.
    assert perfect["forgetting"] == perfect["forgetting_low"] == perfect["utility"] == perfect["quality_privacy"] == 1
    assert perfect["quality_privacy_low"] == 1 and perfect["verdict"] == "equivalent" and perfect["remaining"] == 0
    assert nothing["forgetting"] == nothing["quality_privacy"] == 0 and nothing["utility"] == 1
    assert nothing["verdict"] == "different" and nothing["remaining"] == pytest.approx(1)
    assert row(models, ORIGINAL)["quality_privacy"] == 0


def test_forgetting_is_two_sided_and_the_worst_attack_counts() -> None:
    # 0.1 of 0.4 remains under one attack, and the other is 0.2 below the oracle: 1 - 0.2 / 0.4.
    over = scores(up(0.1)) | {"canary/auc": up(-0.2)}
    found = row(OUR | {"over": made(over)}, "over")
    assert found["forgetting"] == pytest.approx(0.5)
    assert found["remaining"] == pytest.approx(0.25)  # the primary metric is the other one


def test_a_destroyed_model_has_no_quality_though_no_attack_finds_anything() -> None:
    found = row(OUR | {"destroyed": made(scores(SPREAD, test=0.1))}, "destroyed")
    assert (found["forgetting"], found["utility"], found["quality_privacy"]) == (1, 0, 0)
    # Half-way between chance, 0.1, and the oracle's 0.9:
    assert row(OUR | {"half": made(scores(SPREAD, test=0.5))}, "half")["utility"] == pytest.approx(0.5)


def test_a_model_so_destroyed_that_an_attack_gives_no_number_has_no_quality_either() -> None:
    found = row(OUR | {"destroyed": made(scores([math.nan] * 5, test=0.1))}, "destroyed")
    assert math.isnan(found["forgetting"]) and found["utility"] == found["quality_privacy"] == 0


def test_an_attack_that_comes_back_after_further_rounds_counts() -> None:
    later = f"+20/{PRIMARY}"
    models = {
        ORIGINAL: made(scores(up(0.4)) | {later: up(0.3)}),
        ORACLE: made(scores(SPREAD) | {later: SPREAD}),
        "hidden": made(scores(SPREAD) | {later: up(0.24)}),  # 0.24 of 0.3 is back
    }
    assert row(models, "hidden")["forgetting"] == pytest.approx(1 - 0.8)


def test_a_model_that_answers_nan_keeps_its_row() -> None:
    found = row(OUR | {"broken": made(scores([math.nan] * 5))}, "broken")
    assert math.isnan(found["forgetting"]) and math.isnan(found["quality_privacy"])
    assert found["examples_speedup"] is None and found["verdict"] == "unresolved"


# Gates


def test_the_gate_closes_where_the_oracles_differ_as_much_as_the_original() -> None:
    # Leave-one-out differences of SPREAD are 1.25 (s - 0.5) = -0.025 .. 0.025, of standard deviation
    # 0.025 sqrt(2 (1 + 1/4) / 4) = 0.0198; three of them are 0.0593.
    weak, enough = (
        {ORIGINAL: made(scores(up(by)) | {"canary/auc": up(0.3)}), ORACLE: OUR[ORACLE]} for by in (0.059, 0.06)
    )
    assert gates(enough, PRIMARY, CHANCES) == PASSES
    found = gates(weak, PRIMARY, CHANCES)
    assert found["attacks"] == ["canary/auc"] and found["state"] == VOID
    assert found["why"].startswith(f"under {PRIMARY} the original is no further from the oracle than 3")
    assert row(weak, ORIGINAL)["verdict"] == "void"


def test_canaries_must_be_memorised_whatever_the_primary_metric() -> None:
    # 0.69 is 9 floor standard deviations above the oracle, and still not enough.
    models = {ORIGINAL: made(scores(up(0.19))), ORACLE: OUR[ORACLE]}
    assert (
        gates(models, PRIMARY, CHANCES)["why"]
        == "the original's canary AUC is 0.69, below 0.7: it did not memorise them"
    )
    assert gates({ORIGINAL: made(scores(up(0.2))), ORACLE: OUR[ORACLE]}, PRIMARY, CHANCES)["state"] == PASSED


def test_a_void_scenario_gives_no_score() -> None:
    """The original is no different from the oracle: nobody can be told from a perfect method."""
    models = {ORIGINAL: made(scores(SPREAD)), ORACLE: made(scores(SPREAD)), "x": made(scores(SPREAD))}
    found = row(models, "x")
    for column in ("forgetting", "forgetting_low", "quality_privacy", "quality_indistinguishable", "examples_speedup"):
        assert found[column] is None
    assert (found["verdict"], found["remaining"], found["rank_first"]) == ("void", None, None)
    assert found["utility"] == 1  # what it can do is known all the same


def one_seed(models: Mapping[str, Evidence]) -> dict[str, Evidence]:
    return {label: Evidence({0: mine.values[0]}, {0: {}}, Cost()) for label, mine in models.items()}


def test_one_seed_cannot_be_checked() -> None:
    """It has no spread to hold a distance against, however large that is: no share of it, and no score made of it."""
    one = one_seed(OUR | {"x": made(scores(up(0.1)))})
    gate, found = gates(one, PRIMARY, CHANCES), row(one, "x")
    assert (gate["state"], gate["attacks"]) == (UNCHECKED, []) and gate["why"].startswith("one seed has no spread")
    assert found["verdict"] == UNCHECKED
    for column in ("remaining", "forgetting", "fidelity", "quality_privacy", "worst_attack", "rank_first"):
        assert found[column] is None


def void(models: Mapping[str, Evidence], primary: str = PRIMARY, chances: Mapping[str, float] = CHANCES) -> str:
    """Why nothing can be shown; the same with one seed, which is no excuse for it."""
    found = gates(models, primary, chances)
    assert found["state"] == gates(one_seed(models), primary, chances)["state"] == VOID
    assert row(models, ORIGINAL, primary)["verdict"] == VOID
    return found["why"]


def test_a_dead_original_or_oracle_shows_nothing() -> None:
    """0.089 on ten classes of which one makes up 0.11: nobody learned anything, whatever else is measured."""
    chances = {"test/accuracy": 0.11}
    dead = OUR | {ORIGINAL: made(scores(up(0.4), test=0.089))}
    assert gates(dead, PRIMARY, chances)["why"] == (
        "the original is no better than a constant guess (8.9 % against 11 %), so nothing it forgets can be shown"
    )
    assert gates(dead, PRIMARY, {"test/accuracy": 0.08})["state"] == PASSED
    untrained = OUR | {ORACLE: made(scores(SPREAD, test=0.1))}
    assert "the oracle is no better than a constant guess (10 % against 10 %)" in void(untrained)


def test_on_skewed_data_an_original_is_dead_only_if_it_is_no_better_by_either_accuracy() -> None:
    chances = {"test/accuracy": 0.9, "test/balanced_accuracy": 0.5}

    def alive(balanced: float) -> bool:
        mine = [made(scores(s, 0.88) | {"test/balanced_accuracy": [balanced] * 5}) for s in (up(0.4), SPREAD)]
        return gates(dict(zip((ORIGINAL, ORACLE), mine, strict=True)), PRIMARY, chances)["state"] == PASSED

    assert alive(0.8) and not alive(0.5)


def test_original_and_oracle_that_are_equal_leave_nothing_to_forget() -> None:
    same = {ORIGINAL: OUR[ORIGINAL], ORACLE: made(scores(up(0.4)))}
    assert void(same) == f"there is nothing to forget: under {PRIMARY} original and oracle are equal (0.9)"


def test_forgotten_examples_that_everybody_has_right_leave_nothing_to_forget() -> None:
    """Losses of 0.001 and 0.002 differ by more than seeds do, and a method's would be thousands of per cent."""

    def perfect(loss: float) -> Evidence:
        return made(scores(up(0.4)) | {"forget/accuracy": [0.998] * 5, "forget/loss": [loss] * 5})

    assert void({ORIGINAL: perfect(0.001), ORACLE: perfect(0.002)}, "forget/loss").startswith(
        "there is nothing to forget: original and oracle have 99.8 % and 99.8 % of the forgotten examples right"
    )


@pytest.mark.parametrize("label", [ORIGINAL, ORACLE])
def test_a_side_without_a_number_shows_nothing(label: str) -> None:
    broken = OUR | {label: made(scores([math.nan] * 5))}
    name = {ORIGINAL: "original", ORACLE: "oracle"}[label]
    assert void(broken) == f"the {name}'s {PRIMARY} is no number, so there is nothing to compare with"


# States of models


@pytest.mark.parametrize(
    "states, expected, seeds",
    [
        ({}, "", 0),
        ({k: UNMOVED for k in SEEDS}, UNMOVED, 5),
        ({1: CONSTANT, 4: CONSTANT, 2: UNMOVED}, CONSTANT, 2),
        ({0: NOT_FINITE, 1: CONSTANT}, NOT_FINITE, 1),
    ],
)
def test_a_model_that_cannot_have_unlearned_is_called_so_and_not_ranked(states, expected, seeds) -> None:
    mine = made(scores(SPREAD))
    models = OUR | {"x": Evidence(mine.values, mine.margins, mine.cost, states=states), "y": mine}
    found = row(models, "x")
    assert (found["state"], found["state_seeds"]) == (expected, seeds)
    assert (found["rank_first"] is None) == bool(expected)
    assert row(models, "y")["rank_first"] == 1


def test_the_guess_of_the_most_frequent_class_has_no_utility_on_skewed_data() -> None:
    """Nine of ten test examples are of one class; the guess's balanced accuracy is 1/3, a coin's too."""
    chances = {"test/accuracy": 0.9, "test/balanced_accuracy": 1 / 3}

    def skewed(plain: float, balanced: float) -> Evidence:
        return made(scores(SPREAD, plain) | {"test/balanced_accuracy": [balanced] * 5})

    models = {
        ORIGINAL: made(scores(up(0.4), 0.95) | {"test/balanced_accuracy": [0.8] * 5}),
        ORACLE: skewed(0.95, 0.8),
        "guess": skewed(0.9, 1 / 3),
        "coin": skewed(0.33, 1 / 3),
        "as good": skewed(0.95, 0.8),
    }
    rows = {row["label"]: row for row in judge(models, PRIMARY, chances)}
    assert [rows[label]["utility"] for label in ("guess", "coin", "as good")] == pytest.approx([0, 0, 1])
    # By accuracy the oracle is no better than the guess here, so balanced accuracy alone counts.
    poor = {**models, ORACLE: skewed(0.9, 0.8), "half": skewed(0.5, 1 / 3 + (0.8 - 1 / 3) / 2)}
    (half,) = [row for row in judge(poor, PRIMARY, chances) if row["label"] == "half"]
    assert half["utility"] == pytest.approx(0.5)


def test_where_one_class_occurs_nothing_judges_utility() -> None:
    (found,) = judge(OUR, PRIMARY, {})
    assert found["utility"] is None and found["quality_privacy"] is None


def test_the_attack_that_counts_is_named() -> None:
    over = scores(up(0.1)) | {"canary/auc": up(-0.2)}
    found = row(OUR | {"over": made(over)}, "over")
    assert found["worst_attack"] == "canary/auc" and found["worst_left"] == pytest.approx(-0.5)
    assert found["forgetting"] == pytest.approx(1 - abs(found["worst_left"]))


# The speed-up


def test_speedup_is_over_the_first_checkpoint_that_is_as_good() -> None:
    """Checkpoints reach quality 0.25, 0.75 and, worse again, 0.5 after 10, 20 and 30 rounds of 40."""

    def after(rounds: int, remains: float) -> Evidence:
        cost = Cost(rounds=rounds, client_examples=100 * rounds, bytes_up=rounds, bytes_down=3 * rounds)
        return made(scores(up(remains)), cost)

    models = {ORIGINAL: OUR[ORIGINAL], ORACLE: after(40, 0.0)}
    models |= {f"{CHECKPOINT}{r}": after(r, left) for r, left in ((10, 0.3), (20, 0.1), (30, 0.2))}
    models |= {"good": after(5, 0.15), "better": after(5, 0.05), "free": made(scores(up(0.2)))}
    rows = {row["label"]: row for row in judge(models, PRIMARY, CHANCES)}
    # Quality 1 - 0.15 / 0.4 = 0.625 is first reached after 20 rounds; 0.875 only by the whole retrain.
    assert rows["good"]["rounds_speedup"] == rows["good"]["examples_speedup"] == rows["good"]["bytes_speedup"] == 4
    assert rows["better"]["rounds_speedup"] == 8
    assert rows["free"]["rounds_speedup"] == math.inf
    assert rows[ORIGINAL]["rounds_speedup"] is None  # doing nothing is not fast
    assert not any(label.startswith(CHECKPOINT) for label in rows)


# Tests of whole families


def shifted(by: float, scale: float = 0.01) -> list[list[float]]:
    """Margins of five models on two examples: all distinct, and far apart only if ``by`` is."""
    return [[by + scale * k, 2 * by - scale * k] for k in SEEDS]


def test_energy_p_values_are_corrected_for_the_number_of_strategies() -> None:
    """Two sides of five models that do not overlap: 2 of the 252 splits are as far apart, and only for strategies."""
    models = {ORIGINAL: made(scores(up(0.4)), margins=shifted(9)), ORACLE: made(scores(SPREAD), margins=shifted(0))}
    models |= {label: made(scores(SPREAD), margins=shifted(by)) for label, by in (("far", 5), ("further", 7))}
    models |= {label: made(scores(SPREAD), margins=shifted(0.0)) for label in ("same", ANOTHER)}
    rows = {row["label"]: row for row in judge(models, PRIMARY, CHANCES)}
    smallest = 2 / 252
    assert rows["far"]["energy_p"] == rows["further"]["energy_p"] == pytest.approx(smallest)
    assert rows["same"]["energy_p"] == 1
    # Holm: the smallest of three times 3, the next times 2 but not below the first, the last times 1.
    assert rows["far"]["energy_holm"] == rows["further"]["energy_holm"] == pytest.approx(3 * smallest)
    assert rows["same"]["energy_holm"] == 1
    assert rows[ORIGINAL]["energy_holm"] is rows[ANOTHER]["energy_holm"] is None
    assert rows["far"]["energy"] > 0 and rows["same"]["energy"] < 0  # the unbiased distance of equal samples


def test_fidelity_is_the_share_of_the_originals_distance() -> None:
    """Without any spread the energy distance is 2 |shift| an example: 3 of the original's 12 remain."""
    models = {
        ORIGINAL: made(scores(up(0.4)), margins=shifted(4, 0)),
        ORACLE: made(scores(SPREAD), margins=shifted(0, 0)),
    }
    models["x"] = made(scores(SPREAD), margins=shifted(1, 0))
    found = row(models, "x")
    assert found["fidelity"] == found["quality_indistinguishable"] == pytest.approx(1 - 1 / 4)
    assert found["quality_privacy"] == 1


def test_equivalence_needs_the_interval_inside_a_fifth_of_the_signal() -> None:
    """The margin is 0.08 (a fifth of 0.4). Gaps 0.02, ..., 0.06 lie inside with mean 0.04, se 0.00707: t = 5.66 > 2.13.
    Gaps 0.02, 0.11, ... have the mean 0.06 and a spread that leaves it open; 0.2 is outside."""
    sure = [s + gap for s, gap in zip(SPREAD, [0.02, 0.03, 0.04, 0.05, 0.06], strict=True)]
    open_ = [s + gap for s, gap in zip(SPREAD, [0.02, 0.11, 0.01, 0.10, 0.06], strict=True)]
    labels = {"sure": sure, "open": open_, "out": up(0.2)}
    models = OUR | {label: made(scores(canary)) for label, canary in labels.items()}
    rows = {row["label"]: row for row in judge(models, PRIMARY, CHANCES)}
    assert [rows[label]["verdict"] for label in labels] == ["equivalent", "unresolved", "different"]
    assert rows["sure"]["remaining"] == pytest.approx(0.1) and rows["out"]["remaining"] == pytest.approx(0.5)
    assert rows["open"]["remaining_low"] < 0.15 < rows["open"]["remaining_high"]


def test_coins_are_no_difference_between_oracles() -> None:
    """Five oracles that answer alike score 0.48 ... 0.52, for each has other coins. An original that scores 0.05 more
    under the coins of its seed does know something: between oracles under one seed's coins there is no difference."""
    oracle = made(scores(SPREAD))
    alike = {k: {PRIMARY: [SPREAD[k]] * 4, "canary/auc": [SPREAD[k]] * 4} for k in SEEDS}
    models = {ORIGINAL: made(scores(up(0.05)) | {"canary/auc": up(0.3)}), ORACLE: oracle}
    assert gates(models, PRIMARY, CHANCES)["state"] == VOID  # 0.05 is below the 0.0593 of the test above
    models[ORACLE] = Evidence(oracle.values, oracle.margins, oracle.cost, alike)
    assert gates(models, PRIMARY, CHANCES) == PASSES


def test_another_oracle_is_judged_as_a_strategy_is() -> None:
    """Oracles of seeds 1, 0, 4, 4 and 3: gaps 0.01, -0.01, 0.02, 0.01 and -0.01 have mean 0.004 and standard error
    sqrt(0.00072 / 4 / 5) = 0.006. One-sided t of 4: 2.1318."""
    found = row(OUR | {ANOTHER: made(scores([SPREAD[j] for j in (1, 0, 4, 4, 3)]))}, ANOTHER)
    assert found["forgetting"] == pytest.approx(1 - 0.004 / 0.4) and found["utility"] == 1
    assert found["forgetting_low"] == pytest.approx(1 - (0.004 + 2.1318 * 0.006) / 0.4, abs=1e-5)


def test_ranks_count_strategies_only() -> None:
    labels = {"best": 0.0, "middle": 0.1, "worst": 0.3, ANOTHER: 0.0}
    rows = judge(OUR | {label: made(scores(up(by))) for label, by in labels.items()}, PRIMARY, CHANCES)
    ranks = {row["label"]: (row["rank_first"], row["rank_last"]) for row in rows}
    assert ranks == {"best": (1, 1), "middle": (2, 2), "worst": (3, 3), ORIGINAL: (None, None), ANOTHER: (None, None)}


def test_clients_that_lose_in_every_seed_are_harmed() -> None:
    def served(first: float, second: float) -> dict:
        return scores(SPREAD) | {"client/0": [first] * 5, "client/1": [second] * 5}

    models = {ORIGINAL: made(scores(up(0.4)) | served(0.9, 0.9)), ORACLE: made(served(0.8, 0.8))}
    found = row(models | {"x": made(served(0.7, 0.8))}, "x")
    assert found["harmed"] == 0.5 and row(OUR, ORIGINAL)["harmed"] is None


def test_tug_of_war_by_hand() -> None:
    """Gaps 0.1, 0 and 0.5: 0.9 x 1 x 0.5."""

    def accuracies(*of: float) -> dict:
        return scores(SPREAD) | {
            f"{s}/accuracy": [a] * 5 for s, a in zip(("forget", "retain", "test"), of, strict=True)
        }

    models = {ORIGINAL: made(accuracies(0.9, 0.9, 0.9)), ORACLE: made(accuracies(0.5, 0.9, 0.8))}
    assert row(models | {"x": made(accuracies(0.6, 0.9, 0.3))}, "x")["tug_of_war"] == pytest.approx(0.45)


# Attacks with shadows


def with_coins(at: float, trace: float, seed: int, seeds: int = 64, examples: int = 30) -> Evidence:
    """Margins N(at, 1) on forgotten examples, and N(at, 1) plus the trace of the coin on 40 candidates."""
    generator = torch.Generator().manual_seed(seed)
    values = {k: {"canary/auc": 0.5} for k in range(seeds)}
    sets = {}
    for k in range(seeds):
        coins = torch.rand(40, generator=torch.Generator().manual_seed(k)) < 0.5
        forget, candidates = (at + torch.randn(n, generator=generator, dtype=torch.float64) for n in (examples, 40))
        sets[k] = {"forget": forget, "canary": candidates + trace * coins, "coins": coins}
    return Evidence(values, sets, Cost())


def test_attacks_on_single_examples_need_the_seeds_of_their_level() -> None:
    few = shadowed("x", with_coins(3, 3, 0, 63), with_coins(0, 0, 1, 63))
    assert len(few) == 23 and set(few.values()) == {None}
    enough = shadowed("x", with_coins(3, 3, 0), with_coins(0, 0, 1))
    assert [key for key, value in enough.items() if value is None] == ["epsilon", "coin_epsilon", "epsilon_most"]
    models = {ORIGINAL: with_coins(3, 3, 0, 5, 2), ORACLE: with_coins(0, 0, 1, 5, 2)}
    (row,) = judge(models, "canary/auc", CHANCES)
    assert few.items() <= row.items() and row["closer"] == "original" and row["closer_p"] < 0.05


def test_a_shorter_retrain_is_found_against_the_oracle_and_not_by_the_coin() -> None:
    """Phi(d / 2) of the calls are right at a shift of d: 0.69 at 1, 0.93 at 3."""
    oracle = with_coins(0, 0, 1)
    original, shorter = shadowed("x", with_coins(3, 3, 0), oracle), shadowed("x", with_coins(-1, 0, 2), oracle)
    assert original["ulira_accuracy"] == pytest.approx(0.933, abs=0.02)
    assert original["coin_accuracy"] == pytest.approx(0.933, abs=0.02)
    assert shorter["ulira_accuracy"] == pytest.approx(0.691, abs=0.03)
    assert shorter["coin_accuracy_low"] < 0.5 < shorter["coin_accuracy_high"]


def test_the_zero_of_attacks_is_an_oracle_in_the_place_of_another() -> None:
    """In disjoint pairs: an oracle on both sides would fit itself, and fewer than half of the calls would be right."""
    oracle = with_coins(0, 0, 1)
    found = shadowed(ANOTHER, oracle, oracle)
    for attack in ("ulira", "coin"):
        assert found[f"{attack}_accuracy_low"] < 0.5 < found[f"{attack}_accuracy_high"]
        assert found[f"{attack}_auc"] == pytest.approx(0.5, abs=0.05)


def test_bounds_on_epsilon_need_the_seeds_of_their_level() -> None:
    oracle = with_coins(0, 0, 1, 256, 5)
    original = shadowed("x", with_coins(4, 3, 0, 256, 5), oracle)
    # The sum of 5 shifts by 4 makes no error; by the coin Phi(1.5) = 0.933 of the calls are right, log-odds 2.64.
    assert original["epsilon"] == original["epsilon_most"] == pytest.approx(3.36, abs=0.01)
    assert original["coin_epsilon"] == pytest.approx(2.64, abs=0.25)
    another = shadowed(ANOTHER, oracle, oracle)
    assert another["epsilon"] == another["coin_epsilon"] == 0 and another["epsilon_most"] < 3.36


# What goes in


def test_evidence_sorts_by_seed_and_averages_the_bill() -> None:
    results = [ModelResult(0, "a", k, {"m": float(k)}, Cost(rounds=k)) for k in (2, 0, 1)]
    found = evidence(results, {("a", 1): {"forget": torch.ones(3)}})["a"]
    assert list(found.values) == [0, 1, 2] and found.cost.rounds == 1
    assert found.margins[0] == {} and found.margins[1]["forget"].tolist() == [1, 1, 1]


def test_no_attack_of_the_score_is_merely_diagnostic() -> None:
    assert not DIAGNOSTIC & set(ATTACKS)
