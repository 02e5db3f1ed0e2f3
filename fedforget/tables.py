"""What the report says in tables and sentences, as text cells: Markdown and HTML print the same ones.

Everything follows from the header and the rows of a run (see `fedforget.report`). `views` cuts verdict rows down to
what gate and evidence level allow (`fedforget.claims`); whatever a table finds in a view may be printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fedforget import claims
from fedforget.claims import ATTACKED_FROM, RANKED_FROM, level
from fedforget.data import audit_sets

ORIGINAL, ORACLE = "original", "retrain"  # the two labels that are no strategy's
NOOP, ANOTHER = "none", "another oracle"
NAMES = {ORACLE: "oracle (retrain)"}
BLANK = "-"
ATTACKED = ("accuracy", "AUC", "TPR", "worst")
LEAKS = ("canary", "lira", "matched", "rmia")  # families of metrics whose distance from the oracle is a leak
HEADINGS = {  # of accuracies
    **{f"{name}/accuracy": f"{name} %" for name in audit_sets.SCORED},
    "test/balanced_accuracy": "balanced %",
    "test_retained/accuracy": "retained classes %",
    "test_retained/balanced_accuracy": "balanced %",
    "test_forgotten/accuracy": "forgotten class %",
}
COSTS = (
    ("rounds", "rounds", ""),
    ("client_steps", "client steps", ""),
    ("client_examples", "client examples", ""),
    ("bytes_down", "bytes down", "B"),
    ("bytes_up", "bytes up", "B"),
    ("bytes_stored", "stored", "B"),
    ("bytes_held", "held", "B"),
    ("seconds", "client seconds", "s"),
)
COMPARABLE = (
    ("tug_of_war", "tug of war"),
    ("average_gap", "average gap"),
    ("klom", "KLOM"),
    ("forgetting_score", "forgetting score"),
)

Row = dict
Rows = Mapping[str, list[Row]]


class Table(NamedTuple):
    """A table of text; the first column names the row, the others hold numbers.

    Args:
        title: what it shows.
        columns: headings.
        rows: a cell for each column.
        note: how to read it, with every unit.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str


class View(NamedTuple):
    """All that is known of one request.

    Args:
        number: from 1.
        name: what is forgotten, in short.
        audits: ``label -> metric -> audit row``, cut down likewise, for the models that a bill exists for.
        costs: ``label -> cost row``: the original, the oracle, then strategies in their given order.
        verdicts: ``label -> verdict row``, cut down to what may be shown.
        gate: the gate row.
        scored: whether there are scores, shares and verdicts to show: the gate passed, and the level prints them.
        figures: figure rows.
        results: result rows, of retrains that were stopped early, too.
        residues: ``label -> what -> bytes``, a mean over seeds.
    """

    number: int
    name: str
    audits: dict[str, dict[str, Row]]
    costs: dict[str, Row]
    verdicts: dict[str, Row]
    gate: Row
    figures: list[Row]
    results: list[Row]
    residues: dict[str, dict[str, float]]
    scored: bool

    @property
    def strategies(self) -> list[str]:
        """Labels of strategies, in their given order."""
        return [label for label in self.costs if label not in (ORIGINAL, ORACLE)]


def views(header: Row, rows: Rows) -> list[View]:
    """A view of each request."""
    found = []
    for request in sorted({row["request"] for row in rows["cost"]}):
        mine = {kind: [row for row in several if row["request"] == request] for kind, several in rows.items()}
        costs = {row["label"]: row for row in mine["cost"]}
        audits: dict[str, dict[str, Row]] = {label: {} for label in costs}
        for row in mine["audit"]:
            audits[row["label"]][row["metric"]] = claims.permitted_metric(header, row)
        (gate,) = mine["gate"]
        models = [m for m in header["models"] if m["request"] == request and m["stage"] == "" and m["label"] in costs]
        view = View(
            number=request + 1,
            name=header["requests"][request],
            audits=audits,
            costs=costs,
            verdicts={row["label"]: claims.permitted(header, gate, row) for row in mine["verdict"]},
            gate=gate,
            figures=mine["figure"],
            results=mine["result"],
            residues={label: _residues([m for m in models if m["label"] == label]) for label in costs},
            scored=claims.scored(header, gate),
        )
        found.append(view)
    return found


def _residues(models: list[Row]) -> dict[str, float]:
    kinds = dict.fromkeys(what for model in models for what in model["residues"])
    return {what: sum(model["residues"].get(what, 0) for model in models) / len(models) for what in kinds}


def stamp(header: Row, view: View) -> str:
    """What stands beside every table: how much evidence there is, and whether the gate was passed."""
    said, why = claims.gate(view.gate)
    gate = "gate: passed" if view.gate["state"] == claims.PASSED else f"{said}: {why}"
    return f"{header['code']} ({header['level']}), K = {header['seeds']}, primary metric {view.gate['primary']}; {gate}"


def overall(header: Row, several: list[View]) -> str:
    """The same beside a table that belongs to no request."""
    passed = sum(view.gate["state"] == claims.PASSED for view in several)
    return f"{header['code']} ({header['level']}), K = {header['seeds']}; gates: {passed} of {len(several)} passed"


# ---------------------------------------------------------------------- sentences


def sentences(header: Row, view: View) -> list[str]:
    """One sentence for each strategy but doing nothing; none where nothing may be said."""
    if not view.scored:
        return []
    return [_sentence(header, view, label) for label in _ordered(header, view) if label in view.verdicts]


def _sentence(header: Row, view: View, label: str) -> str:
    row = view.verdicts[label]
    parts = [claims.state(row)] if row["state"] else [*_shares(view, row), *_tests(header, row)]
    cost = _compared(view.costs[label]["client_examples_speedup"], "a full retrain")
    equal = row["examples_speedup"]
    if cost and equal == 0:
        cost += ", but no better than doing nothing"
    elif cost and equal is not None and equal < math.inf:
        cost += f", {_compared(equal, 'a retrain of equal quality')}"
    return f"{label}: {'; '.join([*parts, cost] if cost else parts)}."


def _shares(view: View, row: Row) -> list[str]:
    """What is left under the primary metric, and, if it is another one, under the attack that the score counts."""
    primary, attack, left = view.gate["primary"], row["worst_attack"], row["worst_left"]
    if row["verdict"] == "diverged":
        return [f"the model diverged, {primary} is no number"]
    leak = primary.partition("/")[0] in LEAKS
    of = "what doing nothing leaks" if leak else "the original's distance from the oracle"
    parts = [f"{claims.distance(row['remaining'], of, row['remaining_low'], row['remaining_high'])} ({primary})"]
    if attack not in (None, primary) and math.isfinite(left):
        parts.append(f"by its worst attack, {attack}, {claims.distance(left, 'what doing nothing shows')}")
    said = {
        "no direction": "on which side of the oracle it lies is open",
        "short of the oracle": "it lies on the original's side of the oracle",
        "beyond the oracle": "too much shows as well as too little",
        "equivalent": "equivalent to retraining in this metric",
        "different": "different from retraining",
        "unresolved": "whether it is equivalent to retraining in this metric is unresolved",
    }
    return [*parts, said[row["verdict"]]]


def _tests(header: Row, row: Row) -> list[str]:
    """What tests and attacks beyond the primary metric found, from the level on that claims them."""
    parts, p = [], row["energy_holm"]
    if row["verdict"] != "different" and p is not None and p < 0.05:
        parts.append(f"its margins on the forget set are not distributed as the oracles' (p = {p:.2g})")
    if row["ulira_accuracy"] is not None:
        parts.append(f"U-LiRA is right in {_within(row, 'ulira_accuracy')} % of its calls against the oracle")
    if row["coin_accuracy"] is not None:
        parts.append(f"in {_within(row, 'coin_accuracy')} % by the coin")
    if row["epsilon"] is not None:
        parts.append(f"its epsilon is at least {score(row['epsilon'])}")
    if level(header) >= RANKED_FROM and row["quality_privacy_low"] is not None:
        parts.append(f"quality {score(row['quality_privacy'])}, at least {score(row['quality_privacy_low'])}")
    return parts


def _compared(speedup: float, what: str) -> str:
    if math.isnan(speedup):  # not even the oracle spent any
        return ""
    if speedup == math.inf:
        return "no client examples spent"
    return f"{times(max(speedup, 1 / speedup))} {'cheaper' if speedup >= 1 else 'dearer'} than {what}"


def _ordered(header: Row, view: View) -> list[str]:
    """Strategies but doing nothing: best first where the level may claim a ranking, else in their given order."""
    labels = [label for label in view.strategies if label != NOOP]
    if level(header) < RANKED_FROM:
        return labels
    return sorted(labels, key=lambda label: -_sortable(view.verdicts[label]))


def _sortable(row: Row) -> float:
    """Quality; less than any where there is none, or the model cannot have unlearned."""
    quality = row["quality_privacy"]
    return -1.0 if row["state"] or quality is None or math.isnan(quality) else quality


def _judged(header: Row, view: View) -> dict[str, Row]:
    """Verdict rows by the name they are printed under: doing nothing, another oracle, strategies."""
    noop = {f"{NOOP} (original)": view.verdicts[ORIGINAL]}
    if NOOP in view.verdicts:
        noop = {f"{NOOP} (original)": view.verdicts[NOOP]}
    another = {ANOTHER: view.verdicts[ANOTHER]} if ANOTHER in view.verdicts else {}
    return noop | another | {label: view.verdicts[label] for label in _ordered(header, view)}


# ---------------------------------------------------------------------- tables


def verdict_table(header: Row, view: View) -> Table:
    """Scores, ranks and verdicts; see `fedforget.verdicts.judge` for what the numbers are."""
    columns = ["method", "forgetting", "utility", "fidelity", "quality", "at least", "rank", "speed-up", "verdict"]
    rows = []
    for name, row in _judged(header, view).items():
        axes = [score(row[axis]) for axis in ("forgetting", "utility", "fidelity", "quality_privacy")]
        rows.append(
            [name, *axes, score(row["quality_privacy_low"]), _rank(row), times(row["examples_speedup"]), row["verdict"]]
        )
    claimed = (
        "rank: its range over resampled seeds; verdict: equivalence to retraining, margin 20 % of the signal"
        if level(header) >= RANKED_FROM
        else f"{header['code']} may claim no ranking, so methods stand in their given order"
    )
    note = (
        "Scores from 0 (doing nothing, or useless) to 1 (the oracle). quality: the least of forgetting and utility "
        "(privacy track); at least: its one-sided 95 % limit; fidelity: how alike the margins are. speed-up: client "
        f"examples of a retrain stopped at equal quality over the method's own. {claimed}. {_judged_by(view)}."
    )
    return Table("Verdicts", columns, rows, note)


def _judged_by(view: View) -> str:
    """Which metrics utility is judged by, and what the best constant answer scores under each."""
    named = [f"{metric} ({100 * chance:.3g} %)" for metric, chance in view.gate["chances"].items()]
    if not named:
        return "utility: not judged, because one class occurs in each set"
    retained = " of retained classes" if _forgotten(view) else ""
    return f"utility: accuracy{retained} above the best constant answer's, the least of {', '.join(named)}"


def _rank(row: Row) -> str:
    if row["rank_first"] is None:
        return BLANK
    first, last = row["rank_first"], row["rank_last"]
    return str(first) if first == last else f"{first}-{last}"


def limits_table(header: Row, view: View) -> Table:
    """What stands behind the verdicts: intervals, p values, limits of each axis."""
    columns = [
        "method",
        "remaining %",
        "TOST p",
        "energy",
        "energy p",
        "Holm p",
        "worst tenth",
        "closer to",
        "harmed %",
        "worst attack",
    ]
    columns += [f"{axis} at least" for axis in ("forgetting", "utility", "fidelity", "indist. quality")]
    rows = []
    for name, row in _judged(header, view).items():
        cells = [
            name,
            _remaining(row),
            *(score(row[key], 3) for key in ("verdict_p", "energy", "energy_p", "energy_holm")),
        ]
        cells += [score(row["energy_worst"], 3), row["closer"] or BLANK, score(row["harmed"], 0, 100)]
        cells.append(row["worst_attack"] or BLANK)
        axes = ("forgetting_low", "utility_low", "fidelity_low", "quality_indistinguishable_low")
        rows.append([*cells, *(score(row[axis]) for axis in axes)])
    note = (
        "remaining: gap to the oracle under the primary metric in % of the original's, with its 95 % interval over "
        "seeds; 0 is the oracle, below 0 lies beyond it. TOST p: of two one-sided tests that the gap is below 20 % of "
        "the original's. energy: distance between the margins of the method's and the oracles' models on the forget "
        "set, in nats, unbiased, so it can be negative; energy p: permutation test of equal margins; Holm p: the same, "
        "corrected for the number of strategies; worst tenth: energy of the tenth of examples where it is largest; "
        "closer to: the oracle's margins or the original's, tested at 5 %. "
        "harmed: share of retained clients with an accuracy below the oracle's by more than seeds explain. worst "
        "attack: the one that forgetting comes from. at least: "
        "one-sided 95 % limits; indist. quality: the least of forgetting, utility and fidelity."
    )
    seeds, tested = header["seeds"], sum(row["energy_holm"] is not None for row in view.verdicts.values())
    least = 2 / math.comb(2 * seeds, seeds)  # with either side first; see fedforget.metrics.fidelity.energy_test
    if tested and tested * least > 0.05:
        note += (
            f" With K = {seeds} no energy p is below {number(least, 3)}, so after the correction for {tested} "
            "strategies no difference can be shown; use more seeds."
        )
    return Table("Tests and limits", columns, rows, note)


def attack_table(header: Row, view: View) -> Table | None:
    """Attacks on single examples with other seeds' models as shadows; None below the level that asks for them."""
    if level(header) < ATTACKED_FROM:
        return None
    columns = ["method", *(f"{side} {part}" for side in ("oracle:", "coin:") for part in ATTACKED)]
    bounded = level(header) > ATTACKED_FROM
    columns += ["epsilon at least", "of at most", "coin: epsilon at least"] if bounded else []
    rows = []
    for name, row in _judged(header, view).items():
        cells = [name]
        for attack in ("ulira", "coin"):
            cells += [_within(row, f"{attack}_{part}") for part in ("accuracy", "auc", "tpr")]
            cells.append(score(row[f"{attack}_worst"], 0, 100))
        bounds = [score(row[key]) for key in ("epsilon", "epsilon_most", "coin_epsilon")]
        rows.append([*cells, *(bounds if bounded else [])])
    note = (
        "U-LiRA: Gaussians of each example's margin, fitted to the other seeds' models, decide on every model whether "
        "it was trained on the example and unlearned it. oracle: or is an oracle; whoever trains otherwise than a full "
        "retrain is found, too. coin: or the candidate canary was not in its data; a method that leaves no trace of it "
        "is not found, however it trains. In %, 50 is a coin's accuracy and AUC; TPR: at 1 % false positives, 1 is a "
        f"coin's; worst: accuracy on the tenth told apart best, chosen on other seeds. {ANOTHER}: the zero. [95 % "
        "intervals over seeds and examples]."
    )
    if bounded:
        note += (
            " epsilon at least: 95 % lower bound (delta 1e-5 against the oracle, 0 by the coin), from tests chosen on "
            "half of the seeds and made on the other half; of at most: what no error would show. It refutes a "
            "guarantee below it; 0 is no certificate."
        )
    return Table("Attacks on single examples", columns, rows, note)


def _within(row: Row, key: str) -> str:
    """A share and its interval in %."""
    if row[key] is None or not math.isfinite(row[key]):
        return BLANK
    value, low, high = (100 * row[f"{key}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.0f} [{low:.0f}, {high:.0f}]"


def _remaining(row: Row) -> str:
    if row["remaining"] is None or not math.isfinite(row["remaining"]):
        return BLANK
    value, low, high = (row[f"remaining{end}"] for end in ("", "_low", "_high"))
    return claims.cell(value) if low is None else f"{claims.cell(value)} [{claims.cell(low)}, {claims.cell(high)}]"


def _forgotten(view: View) -> bool:
    """Whether the request, or one before it, names classes."""
    return "test_forgotten/accuracy" in view.audits.get(ORACLE, {})


def _shown_accuracies(view: View) -> list[str]:
    """The metrics of the accuracy table: as many as 120 columns hold."""
    balanced = [metric for metric in view.gate["chances"] if metric.endswith("/balanced_accuracy")]
    if _forgotten(view):
        return ["forget/accuracy", "test_retained/accuracy", *balanced, "test_forgotten/accuracy"]
    return [f"{name}/accuracy" for name in audit_sets.SCORED if not (balanced and name == "holdout")] + balanced


def named(label: str, view: View) -> str:
    """A model's name, and beside it the word for one that cannot have unlearned."""
    row = view.verdicts.get(label)
    return NAMES.get(label, label) + (f" ({row['verdict']})" if row and row["state"] else "")


def accuracy_table(header: Row, view: View) -> Table:
    """Accuracies, the gap to the oracle in points and in floors, and what it cost."""
    shown, floors = _shown_accuracies(view), [] if _forgotten(view) else ["floors"]
    columns = ["model", *(HEADINGS[metric] for metric in shown), "gap, pts", *floors]
    columns += ["rounds", "examples", "bytes", "stored"]
    rows = [_accuracies(label, view, shown) for label in view.costs]
    interval = "±: 95 % t-interval over seeds" if header["seeds"] > 1 else "K = 1, so no interval and no floor"
    note = (
        f"{interval}; gap: forget accuracy minus the oracle's; floor: what an oracle scores against the other oracles, "
        "as a perfect method would. Costs: the oracle's own, then times cheaper; stored: kept by the server. Accuracy "
        "alone does not show forgetting."
    )
    if _forgotten(view):
        note += (
            " retained classes: test examples of the classes that stay, which utility is judged by; forgotten class: "
            "test examples of those that were to be forgotten, apart."
        )
    if any(metric.endswith("/balanced_accuracy") for metric in shown):
        note += " balanced: mean over classes of the accuracy on each, because classes are not equally frequent."
    return Table("Accuracy and cost", columns, rows, note)


def _accuracies(label: str, view: View, shown: Sequence[str]) -> list[str]:
    audits, cost = view.audits[label], view.costs[label]
    cells = [named(label, view)]
    for metric in shown:
        row = audits.get(metric)
        cells.append(plus_minus(row["value"], row["value_half_width"], 100) if row else BLANK)
    forget = audits.get("forget/accuracy")
    if forget is None or (label == ORACLE and forget["floor"] is None):
        gap = [BLANK, BLANK]
    elif label == ORACLE:
        gap = [f"floor {number(100 * forget['floor'])}", "1.0"]
    else:
        sign = "+" if forget["gap"] > 0 else ""
        gap = [sign + plus_minus(forget["gap"], forget["gap_half_width"], 100), score(forget["gap_in_floors"], 1)]
    cells += gap[:1] if _forgotten(view) else gap
    if label == ORIGINAL:
        return [*cells, *[BLANK] * 4]
    if label == ORACLE:
        traffic = cost["bytes_down"] + cost["bytes_up"]
        cells += [short(cost["rounds"]), short(cost["client_examples"]), short(traffic, "B")]
    else:
        cells += [times(cost[f"{name}_speedup"]) for name in ("rounds", "client_examples", "bytes")]
    return [*cells, short(cost["bytes_stored"], "B")]


def client_table(header: Row, view: View) -> Table | None:
    """Retained clients one by one; None where they were not audited so."""
    metrics = [name for name in view.audits[ORACLE] if name.startswith("client/")]
    if not metrics:
        return None
    shown = [label for label in view.strategies if label != NOOP]
    rows = []
    for metric in metrics:
        oracle = view.audits[ORACLE][metric]
        client = metric.partition("/")[2]
        owner = header.get("owners", {}).get(client)
        cells = [f"{client} = {owner}" if owner else client]
        for row in (view.audits[ORIGINAL][metric], oracle):
            cells.append(plus_minus(row["value"], row["value_half_width"], 100))
        cells.append(score(oracle["floor"], 1, 100))
        for label in (ORIGINAL, *shown):
            row = view.audits[label][metric]
            cells.append(("+" if row["gap"] > 0 else "") + plus_minus(row["gap"], row["gap_half_width"], 100))
        rows.append(cells)
    note = (
        f"Accuracy on each retained client's own holdout{' (retained classes)' * _forgotten(view)}, in %; then each "
        "model's accuracy minus the oracle's, in points, "
        "below 0 = the client is served worse than after a retrain. floor: the same between oracles. ±: 95 % "
        "t-interval over seeds."
    )
    columns = ["client", "original %", "oracle %", "floor", "original", *shown]
    return Table("Retained clients", columns, rows, note)


def memorised_table(view: View) -> Table | None:
    """Forgotten examples by how much they were memorised; None where they were not grouped."""
    found = {row["label"]: row["groups"] for row in view.figures if row["kind"] == "memorised"}
    if not found:
        return None
    names = ("least", "middle", "most")
    columns = ["method", *(f"{name} {what}" for name in names for what in ("", "failure", "loss"))]
    columns = [column.strip() for column in columns]
    rows = []
    for label in (ORIGINAL, *(label for label in view.strategies if label in found and label != NOOP)):
        cells = [NAMES.get(label, label)]
        for group in found[label]:
            cells.append(("+" if group["gap"] > 0 else "") + plus_minus(group["gap"], group["gap_half_width"], 100))
            cells += [score(group[key], 1, 100) for key in ("failure", "loss")]
        rows.append(cells)
    shares = ", ".join(score(group["memorised"]) for group in found[ORIGINAL])
    note = (
        "Forgotten examples that every seed trained on, in thirds, from what the original memorised least to what it "
        "memorised most: the label's probability from the original minus that from the oracle, on average "
        f"{shares}. A seed's models are scored in thirds that the other seeds define. Accuracy in a third minus the "
        "oracle's, in points, ± 95 % t-interval over seeds; failure: what the method has right and the oracle wrong, "
        "in %; loss: the other way round."
    )
    return Table("By how much was memorised", columns, rows, note)


def ledger_table(view: View) -> Table:
    """The bill of each model, absolute."""
    known = any(row["examples_speedup"] is not None for row in view.verdicts.values())
    units = ("examples", "bytes", "rounds") if known else ()
    columns = ["model", *(heading for _, heading, _ in COSTS), *(f"{unit} at equal quality" for unit in units)]
    rows = []
    for label, cost in view.costs.items():
        cells = [named(label, view), *(short(cost[name], unit) for name, _, unit in COSTS)]
        row = view.verdicts[label] if label in view.strategies else {}
        rows.append([*cells, *(times(row.get(f"{unit}_speedup")) for unit in units)])
    note = (
        "Means over seeds. client examples: training examples that clients processed, with repetition; bytes: payload, "
        "one copy for each client asked; stored: what the server must keep from learning on; client seconds: time "
        "inside clients' work on this machine, summed. The original's row is what learning cost, which is billed to no "
        "strategy."
    )
    if known:
        note += (
            " at equal quality: cost of a retrain stopped at the method's quality, over the method's; above 1x it "
            "beats just retraining for that long."
        )
    return Table("Ledger", columns, rows, note)


def residue_table(view: View) -> Table:
    """What the server still holds that depends on the forgotten data."""
    kinds = list(dict.fromkeys(what for held in view.residues.values() for what in held))
    rows = []
    for label in (ORACLE, *view.strategies):
        held = view.residues[label]
        total = short(sum(held.values()), "B")
        rows.append([NAMES.get(label, label), total, *(short(held.get(what, 0), "B") for what in kinds)])
    note = (
        "Bytes that the server still holds after unlearning and that are a function of the forgotten data; the model "
        "that is handed over is not counted. Erasure may be claimed at 0 only."
    )
    return Table("Residual artefacts", ["model", "total", *kinds], rows, note)


def comparable_table(header: Row, view: View) -> Table:
    """Scores of other papers; never ranked by."""
    columns = ["method", *(cell for _, name in COMPARABLE for cell in (name, "floor"))]
    rows = [
        [name, *(score(row[key + end], 3) for key, _ in COMPARABLE for end in ("", "_floor"))]
        for name, row in _judged(header, view).items()
    ]
    note = (
        "For comparability with other papers only; no verdict rests on them. floor: what an oracle scores against "
        "other oracles. tug of war: 1 = the oracle's accuracies; average gap of accuracies and attack efficacy, 0 = "
        "the oracle; KLOM, 0 = the oracle, needs 4 seeds and is noise below 100; forgetting score of the NeurIPS 2023 "
        "challenge, needs 6 seeds."
    )
    return Table("Scores of other papers", columns, rows, note)


def card_table(header: Row) -> Table:
    """The assumption card of each strategy."""
    online = ["owner online", "others online", "server data", "client records"]
    columns = ["method", "recorded", "every", *online, "kept", "billed"]
    rows = []
    for label, card in header["strategies"].items():
        # A run of an earlier version says nothing of client records.
        said = ("target_online", "retained_online", "server_data", "client_records")
        words = [_yes(card.get(name, False)) for name in said]
        kept = f"{100 * card['keep']:.3g} %" + ("" if card["keep"] == 1 else f", {card['select']}")
        rows.append([NAMES.get(label, label), card["records"], str(card["every"]), *words, kept, card["storage"]])
    note = (
        "A run refuses a method what it did not declare. recorded during learning: nothing, global models, these and "
        "the updates of clients that later leave (targets), or all updates, of every so-many-th round; owner online: "
        "the forgotten data's owner takes part in unlearning with it; others online: retained clients take part; "
        "client records: clients keep vectors on their own disks while they learn; kept: share of a recorded update's "
        "entries; billed: which of the records count as stored."
    )
    return Table("What each method assumes", columns, rows, note)


def data_table(header: Row) -> Table | None:
    """What is known of the data; None for a run of an earlier version, which said nothing of them."""
    rows = [list(line) for line in header.get("data_lines", ())]
    note = (
        "Examples of each class are counted before any corruption, holdout splits included. duplicates: images of "
        "equal pixels; what is forgotten at one client may then stay at another."
    )
    return Table("Data", ["", "what the run found"], rows, note) if rows else None


def settings_table(header: Row) -> Table | None:
    """The options that each method ran with; None if no method has any."""
    rows = [
        [NAMES.get(label, label), option["name"], option["symbol"] or BLANK, _setting(option["value"]), option["help"]]
        for label, options in header["options"].items()
        for option in options
    ]
    note = "Values that the run used, after tuning where there was any; symbol: the paper's."
    return (
        Table("Settings of each method", ["method", "option", "symbol", "value", "meaning"], rows, note)
        if rows
        else None
    )


def tuning_table(header: Row) -> Table | None:
    """What tuning tried and chose; None if nothing was tuned."""
    tuning = header["tuning"]
    if not tuning:
        return None
    columns = ["method", "trials", "failed", "as configured", "best", "examples", "chosen"]
    rows = [[name, BLANK, BLANK, BLANK, number(value, 4), BLANK, BLANK] for name, value in _yardsticks(tuning)]
    for label, mine in tuning["strategies"].items():
        objectives = [trial["objective"] for trial in mine["trials"]]
        failed = sum(bool(trial["note"]) for trial in mine["trials"])
        cells = [label, str(len(objectives)), str(failed), number(objectives[0], 4), number(min(objectives), 4)]
        chosen = ", ".join(f"{name}={_setting(value)}" for name, value in mine["chosen"].items())
        rows.append([*cells, short(mine["cost"]["client_examples"]), chosen])
    rows += [[label, "0", *[BLANK] * 4, why] for label, why in tuning["untuned"].items()]
    note = (
        f"Every method got the same number of trials on another seed, to forget {tuning['request'] or 'nothing'}; the "
        f"objective (goal {tuning['goal']}, weight {tuning['trade_off']:g}; 0 to 1, lower is better) does not see what "
        "the run is judged by. examples: client examples that all trials processed, billed to no row above."
    )
    return Table("Tuning", columns, rows, " ".join([note, *([f"Note: {tuning['note']}."] if tuning["note"] else [])]))


def _yardsticks(tuning: Row) -> list[tuple[str, float]]:
    return [(NAMES.get(label, label), value) for label, value in tuning["objectives"].items()]


def _setting(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def metric_table(view: View, label: str) -> Table:
    """Every metric of one strategy between the original and the oracle."""
    rows = []
    for metric, mine in view.audits[label].items():
        original, oracle = view.audits[ORIGINAL][metric], view.audits[ORACLE][metric]
        cells = [metric, *(plus_minus(row["value"], row["value_half_width"], 1, 3) for row in (original, mine, oracle))]
        cells += [score(mine["floor"], 3), plus_minus(mine["gap"], mine["gap_half_width"], 1, 3)]
        rows.append([*cells, score(mine["gap_in_floors"], 1), score(mine["gap_closed"], 0, 100)])
    columns = ["metric", "original", "unlearned", "oracle", "floor", "gap", "in floors", "closed %"]
    note = (
        "gap: unlearned minus oracle of the same seed; floor: the same between oracles; closed: the share of the "
        "original's gap that is gone, blank where the original's gap is within 3 standard deviations between oracles. "
        "±: 95 % t-interval over seeds."
    )
    asked = [f"{view.gate['examples'][name]} ({name})" for name in audit_sets.STATED if name in view.gate["examples"]]
    if view.verdicts.get(label, {}).get("state"):
        note = f"{claims.state(view.verdicts[label])}. {note}"
    if asked:
        note += f" Examples asked, in the first seed: {', '.join(asked)}. A true positive rate at 1 % or 0.1 % false "
        note += "positives is blank where fewer than 100 or 1000 of the holdout were asked."
    return Table(f"All metrics of {label}", columns, rows, note)


# ---------------------------------------------------------------------- several requests


def requests_table(runs: Sequence[tuple[Row, View]]) -> Table:
    """Strategies over several requests, each with its header and view; a void request counts for none of them."""
    header = runs[0][0]
    columns = ["method", "requests", "forgetting", "utility", "fidelity", "quality", "worst half", "at least"]
    columns += ["remaining %", "verdicts"]
    known = [(header, _judged(header, view)) for header, view in runs if view.scored]
    names = list(dict.fromkeys(name for _, judged in known for name in judged))
    found = {name: [(header, judged[name]) for header, judged in known if name in judged] for name in names}
    if level(header) >= RANKED_FROM:
        reference = [name for name in names if name in (ANOTHER, f"{NOOP} (original)")]
        ranked = sorted(set(names) - set(reference), key=lambda name: (-_mean_quality(found[name]), names.index(name)))
        names = [*reference, *ranked]
    rows = []
    for name in names:
        mine = [row for _, row in found[name]]
        cells = [name, f"{len(mine)} of {len(runs)}"]
        axes = ("forgetting", "utility", "fidelity", "quality_privacy")
        cells += [_spread([row[axis] for row in mine]) for axis in axes]
        known_qualities = sorted(_known_numbers([row["quality_privacy"] for row in mine]))
        worst = known_qualities[: -(-len(known_qualities) // 2)]
        limits = _known_numbers([row["quality_privacy_low"] for row in mine])
        cells.append(score(sum(worst) / len(worst) if worst else None))
        cells.append(score(min(limits) if len(limits) == len(mine) else None))
        cells.append(_spread([row["remaining"] for row in mine], claims.cell))
        said = [row["verdict"] for row in mine]
        cells.append(", ".join(f"{said.count(what)} {what}" for what in dict.fromkeys(said)))
        rows.append(cells)
    note = (
        f"{len(runs)} requests, each judged by itself over K = {header['seeds']} seeds: means over the requests, and "
        "[lowest, highest] of them. Requests are chosen, not drawn, so nothing is said about others. requests: of how "
        "many the gate passed; quality: the least of forgetting and utility (privacy track); worst half: its mean over "
        "the worse half of the requests; at least: the lowest one-sided 95 % limit of any request; remaining: gap "
        "under each request's primary metric in % of the original's; verdicts: equivalence to retraining."
    )
    return Table("Requests together", columns, rows, note)


def _known_numbers(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _mean_quality(several: Sequence[tuple[Row, Row]]) -> float:
    return sum(_sortable(row) for _, row in several) / len(several)


def _spread(values: Sequence[float | None], show: Callable[[float], str] = lambda value: number(value, 2)) -> str:
    """Mean, lowest and highest; blank if one is not known."""
    known = _known_numbers(values)
    if not known or len(known) < len(values):
        return BLANK
    mean, *ends = map(show, (sum(known) / len(known), min(known), max(known)))
    return f"{mean} [{ends[0]}, {ends[1]}]"


# ---------------------------------------------------------------------- numbers


def number(value: float, decimals: int = 1) -> str:
    """Fixed decimals, none from 100 on; a p value that three decimals would show as 0 has one digit."""
    if not math.isfinite(value):
        return BLANK
    if decimals > 2 and 0 < abs(value) < 0.0005:
        return f"{value:.1g}"
    return f"{value:z.{decimals if abs(value) < 99.95 else 0}f}"


def score(value: float | None, decimals: int = 2, scale: float = 1) -> str:
    """A number that may be missing."""
    return BLANK if value is None else number(scale * value, decimals)


def plus_minus(value: float, half_width: float | None, scale: float, decimals: int = 1) -> str:
    """``value`` and the half-width of its interval, times ``scale``; a half-width from 10 on has no decimals."""
    if half_width is None or not (math.isfinite(value) and math.isfinite(half_width)):
        return number(scale * value, decimals)
    wide = scale * half_width
    return f"{number(scale * value, decimals)}±{wide:.{decimals if wide < 9.95 else 0}f}"


def short(value: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: 950, 12.3k, 4.56MB."""
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g}{prefix}{unit}"
        value /= 1000
    return f"{value:.3g}T{unit}"


def times(ratio: float | None) -> str:
    """How many times cheaper."""
    if ratio is None or math.isnan(ratio):
        return BLANK
    return "free" if ratio == math.inf else f"{number(ratio, 1 if ratio >= 1 else 2)}x"
