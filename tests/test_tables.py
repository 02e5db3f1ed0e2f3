"""What the report says of a strategy: no more than its evidence level allows, and no less than what was found."""

from __future__ import annotations

import math

import pytest

from fedforget import claims, tables
from fedforget.tables import View

NOTHING = {
    "seeds": 5,
    "state": "",
    "state_seeds": 0,
    "worst_attack": "canary/calibrated",
    "worst_left": 1.0,
    "forgetting": 0.0,
    "forgetting_low": 0.0,
    "utility": 1.0,
    "utility_low": 0.9,
    "fidelity": 0.0,
    "fidelity_low": 0.0,
    "quality_privacy": 0.0,
    "quality_privacy_low": 0.0,
    "quality_indistinguishable": 0.0,
    "quality_indistinguishable_low": 0.0,
    "examples_speedup": None,
    "bytes_speedup": None,
    "rounds_speedup": None,
    "rank_first": None,
    "rank_last": None,
    "energy": 1.2,
    "energy_p": 0.008,
    "energy_holm": None,
    "energy_worst": 3.0,
    "verdict": "different",
    "verdict_p": 1.0,
    "remaining": 1.0,
    "remaining_low": 0.9,
    "remaining_high": 1.1,
    "harmed": 0.0,
    "closer": "original",
    "epsilon": None,
    "epsilon_most": None,
    "coin_epsilon": None,
    **{f"{attack}_{part}{end}": None for attack in ("ulira", "coin") for part in ("accuracy", "auc", "tpr")
       for end in ("", "_low", "_high")},
    **{f"{attack}_worst": None for attack in ("ulira", "coin")},
}  # fmt: skip
FOUND = NOTHING | {
    "forgetting": 0.59,
    "worst_left": 0.41,
    "quality_privacy": 0.59,
    "quality_privacy_low": 0.5,
    "examples_speedup": 0.9,
    "rank_first": 1,
    "rank_last": 2,
    "energy_holm": 0.5,
    "remaining": 0.41,
    "remaining_low": 0.33,
    "remaining_high": 0.5,
}


def header(code: str) -> dict:
    return {"code": code, "level": "some", "seeds": 5, "requests": ["client 3"], "strategies": {}, "options": {}}


def view(
    verdicts: dict[str, dict],
    why: str = "",
    primary: str = "canary/calibrated",
    speedup: float = 6.0,
    code: str = "EL2",
) -> View:
    """A request with these strategies; doing nothing stands first, as in a run."""
    judged = {"original": NOTHING, "none": NOTHING, **verdicts, "another oracle": NOTHING | {"quality_privacy": 1.0}}
    costs = {label: {"client_examples_speedup": speedup} for label in ("original", "retrain", "none", *verdicts)}
    chances = {"test/accuracy": 0.11}
    gate = {
        **{"state": claims.VOID if why else claims.PASSED, "why": why, "primary": primary},
        **{"attacks": ["canary/auc"], "chances": chances},
    }
    shown = {label: claims.permitted(header(code), gate, row) for label, row in judged.items()}
    return View(1, "client 3", {}, costs, shown, gate, [], [], {}, claims.scored(header(code), gate))


def sentence(code: str, changes: dict, **others) -> str:
    (found,) = tables.sentences(header(code), view({"finetune": FOUND | changes}, code=code, **others))
    return found


def test_the_sentence_of_a_leaderboard() -> None:
    assert sentence("EL2", {}) == (
        "finetune: 41 % [33, 50] of what doing nothing leaks remains (canary/calibrated); different from retraining; "
        "quality 0.59, at least 0.50; 6.0x cheaper than a full retrain, 1.1x dearer than a retrain of equal quality."
    )


def test_a_lower_level_claims_less_of_the_same_numbers() -> None:
    start = "finetune: 41 % [33, 50] of what doing nothing leaks remains (canary/calibrated)"
    end = "6.0x cheaper than a full retrain."
    assert sentence("EL1", {}) == f"{start}; it lies on the original's side of the oracle; {end}"
    assert tables.sentences(header("EL0"), view({"finetune": FOUND}, code="EL0")) == []


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0.1, 0.3, "short of the oracle"),
        (-0.3, -0.1, "beyond the oracle"),
        (-0.1, 0.3, "no direction"),
        (None, None, "no direction"),
    ],
)
def test_a_screen_claims_a_direction_if_the_interval_has_one(low, high, expected) -> None:
    row = FOUND | {"remaining_low": low, "remaining_high": high, "verdict": "equivalent"}
    gate = {"state": claims.PASSED}
    assert claims.word(header("EL1"), gate, row) == expected
    assert claims.word(header("EL2"), gate, row) == "equivalent"
    assert claims.word(header("EL0"), gate, row) == "no claim"


def test_equivalence_under_one_metric_does_not_hide_another_distribution() -> None:
    told_apart = "its margins on the forget set are not distributed as the oracles' (p = 0.03)"
    assert told_apart in sentence("EL2", {"verdict": "equivalent", "energy_holm": 0.03})
    assert "equivalent to retraining in this metric" in sentence("EL2", {"verdict": "equivalent", "energy_holm": 0.03})
    assert "distributed" not in sentence("EL2", {"verdict": "equivalent", "energy_holm": 0.06})
    assert "distributed" not in sentence("EL1", {"verdict": "equivalent", "energy_holm": 0.03})  # a test of EL2


def test_costs_in_words() -> None:
    assert sentence("EL2", {"examples_speedup": 2.0}).endswith("retrain, 2.0x cheaper than a retrain of equal quality.")
    assert sentence("EL2", {"examples_speedup": 0.0}).endswith("full retrain, but no better than doing nothing.")
    assert sentence("EL2", {"examples_speedup": math.inf}, speedup=math.inf).endswith("; no client examples spent.")
    assert sentence("EL1", {}, speedup=0.5).endswith("; 2.0x dearer than a full retrain.")
    assert sentence("EL1", {}, speedup=math.nan).endswith("side of the oracle.")


def test_a_metric_that_is_no_attack_does_not_speak_of_leaks() -> None:
    assert "41 % [33, 50] of the original's distance from the oracle remains (forget/margin)" in sentence(
        "EL2", {}, primary="forget/margin"
    )


def test_a_diverged_model_is_called_so() -> None:
    row = {"remaining": math.nan, "remaining_low": math.nan, "quality_privacy": math.nan, "quality_privacy_low": None}
    text = sentence("EL2", row | {"examples_speedup": None, "verdict": "unresolved"})
    assert text == "finetune: the model diverged, canary/calibrated is no number; 6.0x cheaper than a full retrain."


def test_a_void_scenario_has_no_sentences_and_says_why() -> None:
    void = view({"finetune": FOUND | {"verdict": "void", "remaining": None}}, why="nothing was learned")
    assert tables.sentences(header("EL2"), void) == []
    assert tables.stamp(header("EL2"), void).endswith("primary metric canary/calibrated; VOID: nothing was learned")
    passed = tables.stamp(header("EL2"), view({}))
    assert passed == "EL2 (some), K = 5, primary metric canary/calibrated; gate: passed"
    assert tables.overall(header("EL2"), [void, view({})]) == "EL2 (some), K = 5; gates: 1 of 2 passed"


def test_a_ranking_only_where_the_level_claims_one() -> None:
    strategies = {
        "broken": FOUND | {"quality_privacy": math.nan},
        "worse": FOUND | {"quality_privacy": 0.2, "rank_first": 2, "rank_last": 2},
        "unknown": FOUND | {"quality_privacy": None},
        "better": FOUND | {"quality_privacy": 0.7},
    }
    table = tables.verdict_table(header("EL2"), view(strategies))
    names = [row[0] for row in table.rows]
    assert names == ["none (original)", "another oracle", "better", "worse", "broken", "unknown"]
    assert [row[6] for row in table.rows][2:4] == ["1-2", "2"]
    assert table.rows[4][4] == table.rows[5][4] == "-"
    table = tables.verdict_table(header("EL1"), view(strategies, code="EL1"))
    assert [row[0] for row in table.rows][2:] == ["broken", "worse", "unknown", "better"]
    assert {row[6] for row in table.rows} == {"-"} and "may claim no ranking" in table.note


def test_residues_are_means_over_seeds() -> None:
    """Two seeds hold 10 and 0 bytes of updates, 4 and 4 of models: 5 and 4, together 9."""
    entry = {"request": 0, "label": "amnesiac", "stage": ""}
    models = [entry | {"residues": {"updates": 10, "models": 4}}, entry | {"residues": {"models": 4}}]
    models += [
        entry | {"stage": "+5", "residues": {"updates": 99}},
        entry | {"request": 1, "residues": {"updates": 99}},
    ]
    rows = {kind: [] for kind in ("result", "audit", "verdict", "figure")}
    rows |= {"cost": [{"request": 0, "label": label} for label in ("original", "retrain", "amnesiac")]}
    rows |= {"gate": [{"request": 0, "state": claims.PASSED}]}
    (found,) = tables.views(header("EL1") | {"models": models}, rows)
    assert found.residues["amnesiac"] == {"updates": 5, "models": 4}
    table = tables.residue_table(found)
    assert table.columns == ["model", "total", "updates", "models"]
    assert table.rows == [["oracle (retrain)", "0B", "0B", "0B"], ["amnesiac", "9B", "5B", "4B"]]


def test_retained_clients_against_the_oracle() -> None:
    def audit(value: float, gap: float | None) -> dict:
        return {"value": value, "value_half_width": None, "gap": gap, "gap_half_width": None, "floor": 0.02}

    audits = {
        "original": {"client/4": audit(0.95, 0.05)},
        "retrain": {"client/4": audit(0.9, None)},
        "none": {"client/4": audit(0.95, 0.05)},
        "finetune": {"client/4": audit(0.88, -0.02)},
    }
    table = tables.client_table({"owners": {"4": "ward B"}}, view({"finetune": FOUND})._replace(audits=audits))
    assert table is not None
    assert table.columns == ["client", "original %", "oracle %", "floor", "original", "finetune"]
    assert table.rows == [["4 = ward B", "95.0", "90.0", "2.0", "+5.0", "-2.0"]]
    assert tables.client_table({}, view({})._replace(audits={"retrain": {}})) is None


def test_what_is_said_of_the_data() -> None:
    table = tables.data_table({"data_lines": [["columns", "image = img"], ["owners", "client 0 = a"]]})
    assert table is not None and table.rows == [["columns", "image = img"], ["owners", "client 0 = a"]]
    assert tables.data_table({}) is None  # an earlier version


def attacked(attack: str, accuracy: float, worst: float) -> dict:
    ends = {"": 0.0, "_low": -0.05, "_high": 0.05}
    shares = {f"{attack}_{part}{end}": accuracy + by for part in ("accuracy", "auc", "tpr") for end, by in ends.items()}
    return shares | {f"{attack}_worst": worst}


def test_attacks_on_single_examples_are_shown_from_level_attack_on() -> None:
    found = FOUND | attacked("ulira", 0.7, 0.9) | attacked("coin", math.nan, math.nan)
    table = tables.attack_table(header("EL4"), view({"finetune": found}, code="EL4"))
    assert table is not None and tables.attack_table(header("EL3"), view({"finetune": found}, code="EL3")) is None
    assert table.rows[0] == ["none (original)", *["-"] * 8]
    assert table.rows[-1] == ["finetune", *["70 [65, 75]"] * 3, "90", *["-"] * 4]
    bounds = {"epsilon": 1.234, "epsilon_most": 3.36, "coin_epsilon": 0.0}
    table = tables.attack_table(header("EL5"), view({"finetune": found | bounds}, code="EL5"))
    assert table is not None and table.rows[-1][-3:] == ["1.23", "3.36", "0.00"]
    assert len(table.columns) == len(table.rows[0]) == 12 and "0 is no certificate" in table.note


def test_groups_by_memorisation() -> None:
    """In points and %, least memorised first; whoever was not grouped, such as another oracle, has no row."""
    group = {"memorised": 0.05, "gap": 0.1, "gap_half_width": 0.02, "failure": 0.12, "loss": 0.02}
    third = group | {"memorised": 0.9, "gap": -0.25, "gap_half_width": 0.125}
    rows = [
        {"kind": "memorised", "label": label, "groups": [group, group, third]} for label in ("original", "finetune")
    ]
    found = view({"finetune": FOUND})
    assert tables.memorised_table(found) is None
    table = tables.memorised_table(found._replace(figures=rows))
    assert table is not None and [row[0] for row in table.rows] == ["original", "finetune"]
    assert table.rows[1][1:] == ["+10.0±2.0", "12.0", "2.0"] * 2 + ["-25.0±12", "12.0", "2.0"]
    assert "on average 0.05, 0.05, 0.90" in table.note and len(table.columns) == 10


def test_the_sentence_says_what_attacks_found() -> None:
    found = attacked("ulira", 0.7, 0.9) | attacked("coin", 0.5, 0.5) | {"epsilon": 1.234}
    attacks = "U-LiRA is right in 70 [65, 75] % of its calls against the oracle; in 50 [45, 55] % by the coin; "
    assert f"{attacks}quality" in sentence("EL4", found)
    assert f"{attacks}its epsilon is at least 1.23; quality" in sentence("EL5", found)
    assert "U-LiRA" not in sentence("EL3", found) and "epsilon" not in sentence("EL5", {})


def test_tuning_shows_every_budget() -> None:
    trials = [
        {"options": {"rate": 0.1}, "objective": 0.4, "note": ""},
        {"options": {"rate": 0.25}, "objective": 0.3, "note": ""},
        {"options": {"rate": 9.0}, "objective": 1.0, "note": "diverged"},
    ]
    tuning = {
        "trials": 3,
        "goal": "privacy",
        "trade_off": 0.4,
        "request": "client 5",
        "objectives": {"retrain": 0.05},
        "note": "the oracle is no better than doing nothing",
        "strategies": {"scrub": {"trials": trials, "chosen": {"rate": 0.25}, "cost": {"client_examples": 1500}}},
        "untuned": {"amnesiac": "it has nothing to tune"},
    }
    table = tables.tuning_table({"tuning": tuning})
    assert table is not None
    assert table.rows == [
        ["oracle (retrain)", "-", "-", "-", "0.0500", "-", "-"],
        ["scrub", "3", "1", "0.4000", "0.3000", "1.5k", "rate=0.25"],
        ["amnesiac", "0", "-", "-", "-", "-", "it has nothing to tune"],
    ]
    assert "to forget client 5" in table.note and table.note.endswith("no better than doing nothing.")
    assert tables.tuning_table({"tuning": {}}) is None


def test_numbers() -> None:
    assert tables.plus_minus(0.5, 0.012, 100) == "50.0±1.2" and tables.plus_minus(0.5, 0.12, 100) == "50.0±12"
    assert tables.plus_minus(math.nan, math.nan, 1) == "-" and tables.score(None) == "-"
    assert tables.number(0.00012, 3) == "0.0001" and tables.number(0.0, 3) == "0.000" and tables.number(0.04) == "0.0"
    assert [tables.short(x, "B") for x in (0, 999, 1000, 12_345, 2.5e12)] == ["0B", "999B", "1kB", "12.3kB", "2.5TB"]
    assert [tables.times(x) for x in (4.0, 0.25, math.inf, math.nan, None)] == ["4.0x", "0.25x", "free", "-", "-"]


def test_settings_are_those_of_the_run() -> None:
    options = [{"name": "lr", "symbol": "", "value": 0.123456, "help": "step"}]
    found = tables.settings_table(header("EL0") | {"options": {"none": [], "pga": options}})
    assert found and found.rows == [["pga", "lr", "-", "0.1235", "step"]]
    assert tables.settings_table(header("EL0")) is None


def test_requests_together_by_hand() -> None:
    """Qualities 0.6, 0.2 and 0.4: mean 0.4, the worse two of three 0.3; the lowest limit is 0.1. The void one is left
    out. The limit of `once`, which one request has no number for, is blank."""
    here = header("EL2")

    def of(quality: float, low: float | None, said: str) -> dict:
        return FOUND | {"quality_privacy": quality, "quality_privacy_low": low, "verdict": said, "forgetting": None}

    runs = [
        (here, view({"b": of(0.6, 0.5, "equivalent"), "a": of(0.5, 0.4, "different")})),
        (here, view({"b": of(0.2, 0.1, "different"), "a": of(0.7, None, "different")})),
        (here, view({"b": of(0.4, 0.3, "equivalent")})),
        (here, view({"b": of(0.0, 0.0, "different")}, why="nothing was memorised")),
    ]
    table = tables.requests_table(runs)
    assert [row[0] for row in table.rows] == ["none (original)", "another oracle", "a", "b"]  # best first
    a, b = table.rows[2:]
    assert b[1:4] == ["3 of 4", "-", "1.00 [1.00, 1.00]"]
    assert b[5:] == ["0.40 [0.20, 0.60]", "0.30", "0.10", "41 [41, 41]", "2 equivalent, 1 different"]
    assert a[1] == "2 of 4" and a[5:8] == ["0.60 [0.50, 0.70]", "0.50", "-"]
    assert "chosen, not drawn" in table.note


def test_too_many_methods_for_the_seeds_are_said_to_show_nothing() -> None:
    """At 5 seeds no p is below 2 / 252 = 0.0079: corrected for six methods that is 0.048, for seven 0.056."""

    def note(methods: int, seeds: int = 5) -> str:
        known = view({f"method {i}": FOUND for i in range(methods)})
        return tables.limits_table(header("EL2") | {"seeds": seeds}, known).note

    assert "no difference can be shown" not in note(6)
    assert "With K = 5 no energy p is below 0.008, so after the correction for 7 strategies no difference can" in note(
        7
    )
    assert "no difference can be shown" not in note(48, seeds=10)
