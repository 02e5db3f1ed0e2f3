"""From the store of a run to all that a report shows: a pure function of files, so that no metric retrains anything.

A run leaves an index: an entry for each model that was audited, with the file of its answers, its bill, and the stage
at which it was asked (`fedforget.stage`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from fedforget import claims, verdicts
from fedforget.data import audit_sets
from fedforget.evaluation import (
    ANOTHER,
    CHECKPOINT,
    LATER,
    NOOP,
    ORACLE,
    ORIGINAL,
    ModelResult,
    audit,
    bill,
    canary_scores,
    chances,
    layer_likeness,
    measure,
)
from fedforget.ledger import Cost
from fedforget.metrics import Outputs, fidelity, leakage, memorisation, regions, representation, statistics
from fedforget.metrics.outputs import accuracy, align, loss, margins, right
from fedforget.metrics.unrolling import verification_error
from fedforget.params import Layout, Params
from fedforget.stage import HEAD, LEFT, TAUGHT, Stage
from fedforget.store import DamagedFile, load_tensors, within

PRIMARIES = (
    ("canary", "canary/calibrated"),
    ("trigger", "trigger/success"),
    ("noise", "noise/alignment"),
    ("label_swap", "confusion/forget_confused"),
    ("label_random", "matched/margin"),
)
# Where nothing was planted: the only plain metric under which the models of tests/test_meta_evaluation.py that saw the
# data can be told from those that did not, and which passes the gate there. Attacks find nothing to attack.
PLAIN = "forget/loss"
ROUNDING = 4 * 2.0**-23  # of the length of the weights: a few units in the last place of a 32-bit float
GROUPS = 3  # of forgotten examples, by how much they were memorised
Sets = dict[str, Outputs]


class Assessment(NamedTuple):
    """What a report is made of.

    Args:
        results: every model's metrics and bill.
        audit: rows of `fedforget.evaluation.audit`.
        costs: rows of `fedforget.evaluation.bill`.
        verdicts: rows of `fedforget.verdicts.judge`, each with its ``request``.
        gates: for each request what `fedforget.verdicts.gates` found, the primary metric, and ``examples``, the size of
            each audit set in the first seed.
        figures: data of figures: rows with ``request``, ``kind``, ``label`` and what belongs to the kind.
    """

    results: list[ModelResult]
    audit: list[dict]
    costs: list[dict]
    verdicts: list[dict]
    gates: list[dict]
    figures: list[dict]

    def rows(self) -> dict[str, list[dict]]:
        """All of it as plain rows, by kind, as `fedforget.report` takes them."""
        return {
            "result": [asdict(result) for result in self.results],
            "audit": self.audit,
            "cost": self.costs,
            "verdict": self.verdicts,
            "gate": self.gates,
            "figure": self.figures,
        }


# Problems are small, and threads that wait for each other make a fit of a classifier ten times slower.
@threadpool_limits.wrap(limits=1)
def assess(store: Path, header: Mapping[str, Any]) -> Assessment:
    """Measure, compare and judge every model of a run.

    Args:
        store: the folder that the index's paths are relative to.
        header: the run's header: ``models`` is the index; ``corruption_config``, ``request_values`` and ``primary`` are
            used.

    Raises:
        DamagedFile: if a stored file is not there or does not match its checksum.
        ValueError: as `fedforget.evaluation.audit`; or if the header is an earlier version's.
    """
    if "request_values" not in header:
        raise ValueError(
            "the header has no request_values, because an earlier version wrote it, so which classes were forgotten is "
            "unknown; run its experiment again, which trains nothing that is stored"
        )
    index: list[dict] = header["models"]
    results: list[ModelResult] = []
    verdict_rows, gate_rows, figures = [], [], []
    for request in sorted({entry["request"] for entry in index}):
        reader = _Reader(store, header, request)
        mine = reader.results(request)
        results += mine
        models = verdicts.evidence(mine, reader.margins(), reader.states)
        primary, chances = _primary(header, models), reader.chances()
        found = verdicts.gates(models, primary, chances)
        gate_rows.append({"request": request, "primary": primary, "examples": reader.sizes, **found})
        judged = verdicts.judge(models, primary, chances)
        verdict_rows += [{"request": request, **row} for row in judged]
        figures += [{"request": request, **row} for row in _frontier(models, found["attacks"], chances)]
        figures += [{"request": request, **row} for row in [*_examples(models), *_memorised(models), *reader.figures()]]
    shown = [result for result in results if not _is_yardstick(result.label)]
    return Assessment(results, audit(shown), bill(shown), verdict_rows, gate_rows, figures)


def _is_yardstick(label: str) -> bool:
    """Whether models of this label only show what others are worth: retrains stopped early, and other oracles."""
    return label == ANOTHER or label.startswith(CHECKPOINT)


def _frontier(
    models: Mapping[str, verdicts.Evidence], attacks: Sequence[str], chances: Mapping[str, float]
) -> list[dict]:
    """Quality against client examples of retrains stopped early; no row where they have no quality."""
    stops = verdicts.stopped(models, attacks, chances).items()
    known = [(models[label].cost.client_examples, axes["quality_privacy"]) for label, axes in stops]
    points = sorted((examples, quality) for examples, quality in known if quality is not None)
    x, y = [examples for examples, _ in points], [quality for _, quality in points]
    return [{"kind": "frontier", "label": "", "x": x, "y": y}] if points else []


def _examples(models: Mapping[str, verdicts.Evidence]) -> list[dict]:
    """Quantiles over forgotten examples of the margin minus that of the seed's oracle, mean over seeds."""
    shares, rows, oracle = np.linspace(0, 1, 51), [], models[ORACLE].margins
    for label, mine in models.items():
        if (
            label == ORACLE
            or label.startswith(CHECKPOINT)
            or not all("forget" in sets for sets in mine.margins.values())
        ):
            continue
        apart = torch.stack([sets["forget"] - oracle[seed]["forget"] for seed, sets in mine.margins.items()]).mean(0)
        if len(apart) and apart.isfinite().all():
            quantiles = np.quantile(apart.numpy(), shares)
            rows.append({"kind": "examples", "label": label, "x": quantiles.tolist(), "y": shares.tolist()})
    return rows


def _memorised(models: Mapping[str, verdicts.Evidence]) -> list[dict]:
    """Forgotten examples in groups by how much they were memorised; nothing for one seed, or fewer than `GROUPS`.

    Not of `ANOTHER`: its models are oracles that help to make the groups.
    """
    rows = []
    for label, mine in models.items():
        seeds, sides = list(mine.margins), (models[ORIGINAL].margins, models[ORACLE].margins, mine.margins)
        known = all(verdicts.RIGHT in side[k] for side in sides for k in seeds)
        if label in (ORACLE, ANOTHER) or len(seeds) < 2 or not known or len(sides[0][seeds[0]]["forget"]) < GROUPS:
            continue
        if not all(side[k]["forget"].isfinite().all() for side in sides for k in seeds):
            continue
        original, oracle = (torch.stack([side[k]["forget"] for k in seeds]).sigmoid() for side in sides[:2])
        oracle_right, mine_right = (torch.stack([side[k][verdicts.RIGHT] for k in seeds]) for side in sides[1:])
        groups = memorisation.by_memorisation(original, oracle, mine_right, oracle_right, GROUPS)
        means = [{name: float(np.mean(numbers)) for name, numbers in asdict(group).items()} for group in groups]
        for mean, group in zip(means, groups, strict=True):
            mean["gap_half_width"] = statistics.interval(group.gap).high - mean["gap"]
        rows.append({"kind": "memorised", "label": label, "groups": means})
    return rows


def _primary(header: Mapping[str, Any], models: Mapping[str, verdicts.Evidence]) -> str:
    """The primary metric: the configured one, or the one that fits the corruption."""
    if header["primary"] != "auto":
        return header["primary"]
    known = next(iter(models[ORIGINAL].values.values()))
    fitting = [metric for kind, metric in PRIMARIES if kind == header["corruption_config"]["kind"] and metric in known]
    return fitting[0] if fitting else PLAIN


class _Reader:
    """The stored answers of one request's models."""

    def __init__(self, store: Path, header: Mapping[str, Any], request: int) -> None:
        self.store, self.header = store, header
        entries = [entry for entry in header["models"] if entry["request"] == request]
        self.before = {  # of a sequence, the models that this request's started from
            (e["label"], e["seed"]): e["weights"]
            for e in header["models"]
            if e["request"] == request - 1 and Stage.parse(e["stage"]) == LEFT
        }
        asked = header["request_values"][: request + 1]
        self.forgotten = sorted({t for each in asked if each["scope"] == "class" for t in each["targets"]})
        self.states: dict[tuple[str, int], str] = {}  # what a model is called that cannot have unlearned
        self.entries = {(e["label"], e["seed"], Stage.parse(e["stage"])): e for e in entries}
        self.models = [key for key in self.entries if key[2] == LEFT]
        self.seeds = sorted({seed for label, seed, _ in self.models if label == ORACLE})
        self.layout = Layout(tuple(header["layout"][0]), tuple(map(tuple, header["layout"][1])))
        self._oracle = lru_cache(maxsize=None)(lambda seed, stage: self.outputs(ORACLE, seed, stage))
        self.sizes: dict[str, int] = {}
        self.kept: dict[tuple[str, int], Sets] = {}  # of every model, what its margins and figures need
        self._original = lru_cache(maxsize=None)(lambda seed: self.outputs(ORIGINAL, seed))
        self._scores = lru_cache(maxsize=None)(self._candidates)
        self._learned = lru_cache(maxsize=None)(lambda seed: self.weights(ORIGINAL, seed))
        self._retrained = lru_cache(maxsize=None)(lambda seed: self.weights(ORACLE, seed))
        self._apart = lru_cache(maxsize=None)(lambda: fidelity.spread([self._retrained(k) for k in self.seeds]))

    def outputs(self, label: str, seed: int, stage: Stage = LEFT) -> Sets:
        """A model's answers by audit set."""
        tensors = self._load(self.entries[label, seed, stage]["outputs"])
        names = dict.fromkeys(name.partition("/")[0] for name in tensors)
        return {name: Outputs.stored(tensors, name) for name in names}

    def references(self, label: str, seed: int, stage: Stage) -> list[Sets]:
        """The oracles of the other seeds at a stage, without one that is the model itself."""
        mine = self.entries[label, seed, stage]["model"]
        known = {k: self.entries.get((ORACLE, k, stage)) for k in self.seeds if k != seed}
        return [self._oracle(k, stage) for k, entry in known.items() if entry and entry["model"] != mine]

    def weights(self, label: str, seed: int) -> Params:
        """A model's parameters."""
        return self._weights(self.entries[label, seed, LEFT]["weights"])

    def _weights(self, where: Sequence[str]) -> Params:
        path, name = where
        return Params(self._load(path)[name], self.layout)

    def _load(self, path: str) -> dict[str, Tensor]:
        file = within(self.store, path)
        try:
            return load_tensors(file)[0]
        except FileNotFoundError as error:
            raise DamagedFile(file, "it is not there") from error

    def results(self, request: int) -> list[ModelResult]:
        """The metrics of every model, those of later stages among them; to be asked first, because it reads the files.

        A stage that a broken model did not reach (its clients sent NaN) counts as NaN.
        """
        values = {(label, seed): self._values(label, seed) for label, seed, _ in self.models}
        expected = dict.fromkeys(name for metrics in values.values() for name in metrics)
        results = []
        for (label, seed), metrics in values.items():
            if not _is_yardstick(label):
                metrics = {name: metrics.get(name, float("nan")) for name in expected}
            others = self._others(seed) if label == ORACLE else {}
            cost = Cost(**self.entries[label, seed, LEFT]["cost"])
            results.append(ModelResult(request, label, seed, metrics, cost, others))
        return results

    def chances(self) -> dict[str, float]:
        """`fedforget.evaluation.chances`, the mean over seeds; of metrics that every seed can be judged by."""
        each = [chances(self._oracle(seed, LEFT), self.forgotten) for seed in self.seeds]
        return {name: float(np.mean([one[name] for one in each])) for name in each[0] if all(name in o for o in each)}

    def _others(self, seed: int) -> dict[str, list[float]]:
        """What the oracles of other seeds score under the coins of this one, now and after ordinary rounds."""
        found: dict[str, list[float]] = {}
        for stage in [stage for label, k, stage in self.entries if (label, k) == (ORACLE, seed)]:
            if stage.kind not in ("left", "later"):
                continue
            candidates = self._oracle(seed, stage).get("canary")
            if candidates is None or candidates.included is None:
                continue
            coins = candidates.included.bool()
            for k in self.seeds:
                if k != seed and 0 < coins.sum() < len(coins):
                    for name, scores in self._scores(k, stage).items():
                        name = f"{stage}/{name}" if stage != LEFT else name
                        found.setdefault(name, []).append(leakage.canary_auc(scores, coins))
        return found

    def _candidates(self, seed: int, stage: Stage) -> dict[str, Tensor]:
        """An oracle's scores of all candidate canaries, which know no coins."""
        others = [reference["canary"] for reference in self.references(ORACLE, seed, stage)]
        return canary_scores(self._oracle(seed, stage)["canary"], others)

    def _values(self, label: str, seed: int) -> dict[str, float]:
        corruption = self.header["corruption_config"]
        first = self._oracle(seed, LEFT) if label == ORACLE else self.outputs(label, seed)
        self.kept[label, seed] = {
            name: replace(sets, features=None) for name, sets in first.items() if name in audit_sets.KEPT
        }
        if label == ORACLE and seed == self.seeds[0]:
            self.sizes = {name: len(answers) for name, answers in first.items()}
        brief = label.startswith(CHECKPOINT)
        values = measure(first, self.references(label, seed, LEFT), corruption, brief, self.forgotten)
        if brief:
            return values
        if state := _state(first) or self._unmoved(label, seed):
            self.states[label, seed] = state
        stages = [stage for name, k, stage in self.entries if (name, k) == (label, seed) and stage != LEFT]
        path = []
        for stage in stages:
            sets = self._oracle(seed, stage) if label == ORACLE else self.outputs(label, seed, stage)
            if stage.kind == "later":
                later = measure(sets, self.references(label, seed, stage), corruption, True, self.forgotten)
                values |= {f"{stage}/{name}": value for name, value in later.items() if name.startswith(LATER)}
            elif stage == HEAD:
                values["head/forget_accuracy"] = accuracy(sets["forget"]) if len(sets["forget"]) else float("nan")
            elif stage.kind == "path":
                path.append(loss(sets["test"]))
            elif len(sets["rest"]):
                values[f"relearn/{stage.kind}_{stage.number}"] = accuracy(sets["rest"])
        for kind in TAUGHT:
            curve = [value for name, value in values.items() if name.startswith(f"relearn/{kind}_")]
            if curve:
                values[f"relearn/{kind}"] = float(np.mean(curve))
        if path:
            ends = [loss(sets["test"]) for sets in (self._original(seed), first)]
            values["weights/barrier"] = representation.barrier([ends[0], *path, ends[1]])
        elif label == ORIGINAL and any(stage.kind == "path" for _, _, stage in self.entries):
            values["weights/barrier"] = 0.0  # it is where the path begins
        if label == ORIGINAL and "forget/accuracy" in values:
            values["head/forget_accuracy"] = values["forget/accuracy"]  # its own head is what would be put back
        if (ORIGINAL, seed, LEFT) in self.entries:
            kept = {ORIGINAL: self._learned, ORACLE: self._retrained}  # needed for other models, too: read once
            model = kept[label](seed) if label in kept else self.weights(label, seed)
            shares = representation.layer_shares(model, self._learned(seed))
            values |= {f"weights/{block}/share": share for block, share in shares.items()}
            values["weights/head_share"] = list(shares.values())[-1]
            if (ORACLE, seed, LEFT) in self.entries:
                values["weights/verification_error"] = verification_error(model, self._retrained(seed))
            if len(self.seeds) > 1:
                values["weights/distance"] = fidelity.weight_distance(model, self._retrained(seed), self._apart())
            values |= _regions(first, self._original(seed))
            if "forget_layers" in first:
                likeness = layer_likeness(first["forget_layers"], self._original(seed)["forget_layers"])
                values |= {f"layer/{i}/original_cka": similar for i, similar in likeness.items()}
                known, asked = first["holdout_layers"], first["forget_layers"]
                if len(known) and len(asked):
                    probes = enumerate(representation.layer_probes(known, asked), start=1)
                    values |= {f"layer/{i}/probe": share for i, share in probes}
        return values

    def _unmoved(self, label: str, seed: int) -> str:
        """Whether a strategy that should have done something left the model that it started from, to rounding."""
        if label in (ORIGINAL, ORACLE, ANOTHER, NOOP) or (ORIGINAL, seed, LEFT) not in self.entries:
            return ""
        where = self.before.get((label, seed))
        before, after = self._weights(where) if where else self._learned(seed), self.weights(label, seed)
        return claims.UNMOVED if float((after - before).norm()) <= ROUNDING * float(before.norm()) else ""

    def margins(self) -> dict[tuple[str, int], dict[str, Tensor]]:
        """Margins of every model on the examples that all models of the request have, by label and seed, then set.

        Those of candidate canaries come with the coins of the model's seed, see `fedforget.verdicts.Evidence`.
        """
        found: dict[tuple[str, int], dict[str, Tensor]] = defaultdict(dict)
        models = [key for key in self.models if not key[0].startswith(CHECKPOINT)]
        for name in (*audit_sets.COMPARED, "canary"):
            several = [self.kept[label, seed].get(name) for label, seed, _ in models]
            if all(several):
                for (label, seed, _), outputs in zip(models, align(several), strict=True):  # type: ignore[arg-type]
                    found[label, seed][name] = margins(outputs)
                    if name == "forget":
                        found[label, seed][verdicts.RIGHT] = right(outputs)
                    if name == "canary":
                        found[label, seed][verdicts.COINS] = outputs.included.bool()  # type: ignore[union-attr]
        return found

    def figures(self) -> list[dict]:
        """Histograms of margins, ROC curves of the canary audit, and decision regions of the first seed's models."""
        rows = []
        labels = dict.fromkeys(label for label, _, _ in self.models if not _is_yardstick(label))
        known = {label: [self.kept[label, k] for name, k, _ in self.models if name == label] for label in labels}
        forgotten = {
            label: np.concatenate(
                [np.zeros(0), *(margins(sets["forget"]).numpy() for sets in several if "forget" in sets)]
            )
            for label, several in known.items()
        }
        # A destroyed model's margins lie so far away that the others' would be one bar: the scale is that of original
        # and oracle, half as wide again on each side, and what lies beyond counts in the outermost bins.
        usual = np.concatenate([forgotten[label] for label in (ORIGINAL, ORACLE)])
        usual = usual[np.isfinite(usual)]
        if len(usual):
            low, high = np.quantile(usual, (0.005, 0.995)).tolist()
            wider = (high - low) / 2
            edges = np.linspace(low - wider, high + wider, 41)
            for label, m in forgotten.items():
                density, _ = np.histogram(m[np.isfinite(m)].clip(edges[0], edges[-1]), edges)
                rows.append(
                    {"kind": "margins", "label": label, "x": edges.tolist(), "y": (density / max(1, len(m))).tolist()}
                )
        grid = np.concatenate([[0.0], np.geomspace(0.005, 1, 60)])
        rng = np.random.default_rng(0)
        chance = []
        for label, several in known.items():
            curves = []
            for sets in several:
                if "canary" not in sets or sets["canary"].included is None:
                    continue
                scores, included = margins(sets["canary"]), sets["canary"].included.bool()
                if 0 < included.sum() < len(included) and scores.isfinite().all():
                    curves.append(np.interp(grid, *leakage.canary_roc(scores, included)))
                    if label == ORACLE:
                        for _ in range(200 // max(1, len(several))):
                            coins = included[rng.permutation(len(included))]
                            chance.append(np.interp(grid, *leakage.canary_roc(scores, coins)))
            if curves:
                y = np.mean(curves, 0)
                rows.append({"kind": "canary_roc", "label": label, "x": grid.tolist(), "y": y.tolist()})
        if chance:
            lower, upper = np.quantile(chance, (0.025, 0.975), axis=0)
            band = {"x": grid.tolist(), "low": lower.tolist(), "high": upper.tolist()}
            rows.append({"kind": "canary_chance", "label": "", **band})
        for label, several in known.items():  # an entry of the first seed alone has the plane
            rows += [_drawn(label, sets["plane"]) for sets in several if len(sets.get("plane", ()))]
        return rows


def _state(sets: Sets) -> str:
    """What a model is called whose answers show that it is none any more; empty for all others."""
    if not all(answers.finite for name, answers in sets.items() if name in audit_sets.EXAMPLES):
        return claims.NOT_FINITE
    return claims.CONSTANT if "test" in sets and sets["test"].constant else ""


def _regions(sets: Sets, original: Sets) -> dict[str, float]:
    """The family regions: share of points whose class is not the original's, near and far; nothing without points."""
    if not all(len(sets.get(name, ())) for name in ("near", "far")):
        return {}
    near, far = (fidelity.disagreement(sets[name], [original[name]]) for name in ("near", "far"))
    return {"regions/near": near, "regions/far": far, "regions/locality": regions.locality(near, far)}


def _drawn(label: str, plane: Outputs) -> dict:
    """A figure's row of decision regions: the class of each point, row by row (-1: NaN), and where the images are."""
    width = math.isqrt(len(plane))
    points = [[x, y, f"class {int(plane.labels[y * width + x])}"] for x, y in regions.marks(width)]
    points[0][2] = f"forgotten, {points[0][2]}"
    return {"kind": "regions", "label": label, "width": width, "classes": plane.predicted.tolist(), "points": points}
