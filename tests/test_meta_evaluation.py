"""Does the audit tell who forgot? Models with known answers, judged as strategies are.

Exact ones never saw what was to be forgotten: an oracle of another seed, a retrain stopped early. Leaky ones did, and
hide it in some way; destroyed ones know nothing of anything. Between exact and leaky, quality on the privacy track must
separate, and so must every attack that counts in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fedforget import models
from fedforget.assessment import LATER, PLAIN
from fedforget.claims import PASSED
from fedforget.client_app import app
from fedforget.cohort import Answers, Cohort, describe
from fedforget.config import RunConfig, compose
from fedforget.data.audit_sets import COMPARED
from fedforget.evaluation import ORACLE, ORIGINAL, ModelResult, chances, measure
from fedforget.grid import InProcessGrid
from fedforget.ledger import Cost
from fedforget.messages import Task
from fedforget.metrics import Outputs
from fedforget.metrics.outputs import align, margins
from fedforget.metrics.representation import swap_head
from fedforget.params import Params
from fedforget.request import UnlearningRequest
from fedforget.seeds import Seeds
from fedforget.strategy import find
from fedforget.verdicts import ATTACKS, DIAGNOSTIC, Evidence, evidence, gates, judge

# Training is long enough for a small network to memorise the 70 candidate canaries that client 3 of five holds.
SCENARIO = "model.width=0.14 partition.clients=5 local.epochs=5 local.lr=0.3 learning.rounds=40"
CANARIES = "corruption=canary corruption.canaries=70"
NOISE, ALONG = "corruption=noise corruption.deviation=1.0", "noise/alignment"
K = 5
LATER_ROUNDS = 5
PRIMARY = "canary/calibrated"
SETS = ("forget", "retain", "holdout", "test", "clients")
LATER_SETS = ("forget", "holdout", "test")

EXACT = ("another oracle's seed", "retrain stopped early")
LEAKY = (
    "fine-tuned",
    "head reset, then tuned",
    "mild ascent",
    "mild ascent, then tuned",
    "labels flipped",
    "noise on logits",
    "tempered",
    "filtered",
)
DESTROYED = ("random weights", "head reset", "ascent", "ascent, then tuned", "much noise on logits")

Sets = dict[str, Outputs]


class Lab:
    """The federation: it learns, unlearns and answers, with the streams of trajectory ``k``."""

    def __init__(self, scenario: str) -> None:
        self.config: RunConfig = compose("quickstart", scenario)
        c = self.config
        self.task = Task(c.data, c.model, c.local, "cpu", c.engine.mode)
        self.grid = InProcessGrid(app, 2)
        self.federation = describe(self.grid, self.task)
        self.layout = self.initial(0).layout

    def initial(self, k: int) -> Params:
        seed = self._seeds(k).integer("initial")
        return Params.from_module(models.initial(self.config.model, (1, 8, 8), 10, seed))

    def _seeds(self, k: int) -> Seeds:
        return Seeds(self.config.seed).child("trajectory", k)

    def cohort(self, k: int, forget: bool = True) -> Cohort:
        cohort = Cohort(self.grid, self.federation, self.task, self.layout, self._seeds(k))
        cohort.request = UnlearningRequest("client", (3,)) if forget else None
        cohort.next_round = self.config.learning.rounds + 1
        return cohort

    def learn(self, k: int, start: Params, rounds: int, first: int = 1, forget: bool = True) -> list[Params]:
        """The models after each of so many ordinary rounds."""
        learner = find("none")(learning=self.config.learning)
        return list(learner.learn(self.cohort(k, forget), start, rounds, first))

    def tune(self, k: int, start: Params, rounds: int) -> Params:
        """Ordinary rounds on the retained clients."""
        return self.learn(k, start, rounds, self.config.learning.rounds + 1)[-1]

    def ascend(self, k: int, model: Params, steps: int, length: float) -> Params:
        """Steps of equal length up the gradient of the forget set's loss."""
        for _ in range(steps):
            gradient = self.cohort(k).gradient(model, split="forget")
            model = model + (length / float(gradient.norm())) * gradient
        return model

    def flip(self, k: int, model: Params) -> Params:
        """Three rounds in which the forgotten examples carry wrong labels."""
        flipping = find("partial_label_flip")
        strategy = flipping(flipping.Config(density=1.0, rounds=3), self.config.learning)
        history = SimpleNamespace(final=model, rounds=self.config.learning.rounds)  # it asks for nothing else
        return list(strategy.unlearn(UnlearningRequest("client", (3,)), history, self.cohort(k)))[-1]

    def answers(self, k: int, model: Params, names: Iterable[str]) -> Sets:
        """What a model answers on audit sets, canaries of the coins of trajectory ``k`` among them."""
        found = self.cohort(k).evaluate(model, dict.fromkeys(names, 2000))
        return {name: _outputs(name, mine) for name, mine in found.items()}


def _outputs(name: str, answers: Answers) -> Outputs:
    """Features are those of noise alone: the probe, which does not pass the gate here, takes a quarter of a second."""
    parts = {part: array for part, array in answers._asdict().items() if part != "features" or name == "noise"}
    return Outputs(**{part: torch.from_numpy(array) for part, array in parts.items()})


def noisy(sets: Sets, scale: float, k: int) -> Sets:
    generator = torch.Generator().manual_seed(k)
    return {
        n: replace(o, logits=o.logits + scale * torch.randn(o.logits.shape, generator=generator))
        for n, o in sets.items()
    }


def tempered(sets: Sets) -> Sets:
    return {n: replace(o, logits=o.logits / 5) for n, o in sets.items()}


def filtered(sets: Sets) -> Sets:
    """Every class is as likely as another on what was to be forgotten: a filter behind an unchanged model."""
    forget = replace(sets["forget"], logits=torch.zeros_like(sets["forget"].logits))
    if "canary" not in sets:
        return sets | {"forget": forget}
    known = sets["canary"].included.bool()  # type: ignore[union-attr]
    canaries = replace(sets["canary"], logits=sets["canary"].logits.masked_fill(known[:, None], 0.0))
    return sets | {"forget": forget, "canary": canaries}


class Judged(NamedTuple):
    models: dict[str, Evidence]
    rows: dict[str, dict]
    chances: dict[str, float]


@pytest.fixture(scope="module")
def judged() -> Judged:
    """The models of the scenario with canaries."""
    return _judged(f"{CANARIES} {SCENARIO}", PRIMARY)


@pytest.fixture(scope="module")
def noised() -> Judged:
    """The models of the same scenario whose client 3 has noise on its images."""
    return _judged(f"{NOISE} {SCENARIO}", ALONG)


@pytest.fixture(scope="module")
def plain() -> Judged:
    """The models of the same scenario without anything planted."""
    return _judged(SCENARIO, PLAIN)


def _judged(scenario: str, primary: str) -> Judged:
    """All models, their metrics as they are and after five further rounds, and their verdicts."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.WARNING)  # two lines a round
    lab = Lab(scenario)
    rounds = lab.config.learning.rounds
    with ThreadPoolExecutor(2) as pool:  # oracles of seeds 100 to 104 take no part but as models to be judged
        originals = list(pool.map(lambda k: lab.learn(k, lab.initial(k), rounds, forget=False)[-1], range(K)))
        oracles = list(pool.map(lambda k: lab.learn(k, lab.initial(k), rounds), range(K)))
        others = list(pool.map(lambda k: lab.learn(100 + k, lab.initial(100 + k), rounds)[-1], range(K)))

    def made(make: Callable[[int, Params], Params], of: list[Params] = originals) -> list[Params]:
        return [make(k, model) for k, model in enumerate(of)]

    known = {
        ORIGINAL: originals,
        ORACLE: [passed[-1] for passed in oracles],
        "another oracle's seed": others,
        "retrain stopped early": [passed[round(rounds * 8 / 30) - 1] for passed in oracles],
        "fine-tuned": made(lambda k, model: lab.tune(k, model, 5)),
        "random weights": made(lambda k, _: lab.initial(1000 + k)),
        "head reset": made(lambda k, model: swap_head(model, lab.initial(1000 + k))),
        "mild ascent": made(lambda k, model: lab.ascend(k, model, 5, 0.2)),
        "ascent": made(lambda k, model: lab.ascend(k, model, 10, 0.5)),
        "labels flipped": made(lab.flip),
    }
    known["head reset, then tuned"] = made(lambda k, model: lab.tune(k, model, 3), known["head reset"])
    known["mild ascent, then tuned"] = made(lambda k, model: lab.tune(k, model, 5), known["mild ascent"])
    # After 5 rounds what was destroyed has relearned (utility 0.74), its quality lies on the bound: 0.52 on one make
    # of processor, less on another (docs/evaluation.md).
    known["ascent, then tuned"] = made(lambda k, model: lab.tune(k, model, 3), known["ascent"])
    corruption = asdict(lab.config.corruption)
    planted = (corruption["kind"],) if corruption["kind"] != "none" else ()
    answers = {n: [lab.answers(k, model, (*SETS, *planted)) for k, model in enumerate(of)] for n, of in known.items()}
    later = {
        name: [lab.answers(k, lab.tune(k, model, LATER_ROUNDS), (*LATER_SETS, *planted)) for k, model in enumerate(of)]
        for name, of in known.items()
    }
    outside: dict[str, Callable[[Sets, int], Sets]] = {  # what is done to answers, not to weights
        "noise on logits": lambda sets, k: noisy(sets, 2.0, k),
        "much noise on logits": lambda sets, k: noisy(sets, 8.0, k),
        "tempered": lambda sets, _: tempered(sets),
        "filtered": lambda sets, _: filtered(sets),
    }
    for name, change in outside.items():
        for stage in (answers, later):
            stage[name] = [change(sets, k) for k, sets in enumerate(stage[ORIGINAL])]
    values = {(name, k): _values(answers, later, name, k, corruption) for name in answers for k in range(K)}
    results = [ModelResult(0, name, k, mine, Cost()) for (name, k), mine in values.items()]
    found = evidence(results, _margins(answers))
    guesses = chances(answers[ORACLE][0])  # every seed is asked the same test examples and holdouts
    return Judged(found, {row["label"]: row for row in judge(found, primary, guesses)}, guesses)


def _values(
    answers: Mapping[str, list[Sets]], later: Mapping[str, list[Sets]], name: str, k: int, corruption: dict
) -> dict[str, float]:
    """The metrics of one model, as `fedforget.assessment` makes them."""

    def measured(stage: Mapping[str, list[Sets]], brief: bool) -> dict[str, float]:
        references = [sets for other, sets in enumerate(stage[ORACLE]) if other != k]
        return measure(stage[name][k], references, corruption, brief)

    further = {m: v for m, v in measured(later, True).items() if m.startswith(LATER)}
    return measured(answers, False) | {f"+{LATER_ROUNDS}/{m}": v for m, v in further.items()}


def _margins(answers: Mapping[str, list[Sets]]) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    keys = [(name, k) for name in answers for k in range(K)]
    found: dict[tuple[str, int], dict[str, torch.Tensor]] = {key: {} for key in keys}
    for name in COMPARED:
        for key, outputs in zip(keys, align([answers[label][k][name] for label, k in keys]), strict=True):
            found[key][name] = margins(outputs)
    return found


def separation(exact: Iterable[float], leaky: Iterable[float]) -> float:
    """AUC of a number that should be larger for exact models."""
    good, bad = list(exact), list(leaky)
    return float(roc_auc_score([1] * len(good) + [0] * len(bad), good + bad))


def gap(judged: Judged, name: str, metric: str) -> float:
    mine, oracle = judged.models[name].values, judged.models[ORACLE].values
    return abs(float(np.mean([mine[k][metric] - oracle[k][metric] for k in mine])))


def test_the_scenario_passes_its_gate(judged: Judged) -> None:
    found = gates(judged.models, PRIMARY, judged.chances)
    assert found["state"] == PASSED, found["why"]
    assert {"canary/auc", PRIMARY, f"+{LATER_ROUNDS}/{PRIMARY}"} <= set(found["attacks"])


def test_doing_nothing_is_worth_nothing(judged: Judged) -> None:
    assert judged.rows[ORIGINAL]["quality_privacy"] == 0
    assert judged.rows[ORIGINAL]["verdict"] == "different"


@pytest.mark.parametrize("name", EXACT)
def test_who_never_saw_the_data_has_forgotten_it(judged: Judged, name: str) -> None:
    """Bounds by simulation: 1000 draws of five from 15 further oracles of this scenario, each in the place of a seed's
    unlearned model, had a quality of at least 0.82 in 95 % of them, and a pessimistic end of at least 0.44.

    So the value must reach 0.75, as the protocol asks. Its pessimistic end cannot, with five seeds: the noisiest attack
    that passes the gate (matched/margin, whose signal is 3.5 standard deviations between oracles) alone costs a perfect
    method t_{0.95, 4} sqrt(2) (4/5) / (3.5 sqrt(5)) = 0.31 on average. Without it the median is 0.75.
    """
    assert judged.rows[name]["quality_privacy"] >= 0.75
    assert judged.rows[name]["quality_privacy_low"] >= 0.4


@pytest.mark.parametrize("name", LEAKY + DESTROYED)
def test_who_leaks_or_is_destroyed_has_not(judged: Judged, name: str) -> None:
    assert judged.rows[name]["quality_privacy"] <= 0.5
    assert judged.rows[name]["quality_privacy_low"] <= 0.3


def test_quality_separates_exact_from_leaky(judged: Judged) -> None:
    for column in ("quality_privacy", "quality_privacy_low"):
        of = {name: judged.rows[name][column] for name in EXACT + LEAKY + DESTROYED}
        assert separation([of[n] for n in EXACT], [of[n] for n in LEAKY + DESTROYED]) >= 0.95


def test_a_shorter_retrain_is_leak_free_and_yet_not_the_oracle(judged: Judged) -> None:
    """Why there are two tracks."""
    short, other = (judged.rows[name] for name in ("retrain stopped early", "another oracle's seed"))
    assert short["quality_indistinguishable"] < 0.5 < other["quality_indistinguishable"]
    assert short["energy_p"] < 0.05 < other["energy_p"]


def test_each_attack_of_the_score_separates_by_itself(judged: Judged) -> None:
    """From leaky models: a destroyed one leaks nothing, and it is utility that tells."""
    counted = [name for name in gates(judged.models, PRIMARY, judged.chances)["attacks"] if name in ATTACKS]
    assert counted and not DIAGNOSTIC & set(counted)
    for metric in counted:
        gaps = {name: gap(judged, name, metric) for name in EXACT + LEAKY}
        assert separation([-gaps[name] for name in EXACT], [-gaps[name] for name in LEAKY]) >= 0.95, (metric, gaps)


def test_one_attack_is_not_enough(judged: Judged) -> None:
    """Higher temperature hardly changes how one model's answers rank, but it does change their difference from those of
    references: under the calibrated attack little of the signal is left, and the raw one sees nearly all of it."""
    signal = {metric: gap(judged, ORIGINAL, metric) for metric in ("canary/auc", PRIMARY)}
    assert gap(judged, "tempered", PRIMARY) < 0.25 * signal[PRIMARY]
    assert gap(judged, "tempered", "canary/auc") > 0.95 * signal["canary/auc"]


def test_what_is_only_diagnostic_does_not_separate(judged: Judged) -> None:
    found = {
        metric: separation([-gap(judged, n, metric) for n in EXACT], [-gap(judged, n, metric) for n in LEAKY])
        for metric in DIAGNOSTIC
    }
    assert max(found.values()) < 0.95, found


def test_without_anything_planted_the_primary_metric_separates_and_attacks_have_nothing_to_find(plain: Judged) -> None:
    found = gates(plain.models, PLAIN, plain.chances)
    assert found["state"] == PASSED and not {"matched/margin", "rmia/auc"} & set(found["attacks"])

    def separates(metric: str) -> float:
        gaps = {name: gap(plain, name, metric) for name in EXACT + LEAKY}
        return separation([-gaps[name] for name in EXACT], [-gaps[name] for name in LEAKY])

    assert separates(PLAIN) >= 0.95 > separates("forget/margin")


def test_noise_on_images_separates_exact_from_leaky_and_sees_through_filters(noised: Judged) -> None:
    """It looks inside the model, so nothing that is done to answers hides it; after ordinary rounds too."""
    found = gates(noised.models, ALONG, noised.chances)
    assert found["state"] == PASSED and {ALONG, f"+{LATER_ROUNDS}/{ALONG}"} <= set(found["attacks"])
    gaps = {name: gap(noised, name, ALONG) for name in (*EXACT, *LEAKY, ORIGINAL)}
    assert separation([-gaps[name] for name in EXACT], [-gaps[name] for name in LEAKY]) >= 0.95, gaps
    assert gaps["filtered"] == gaps["tempered"] == gaps[ORIGINAL]
    assert all(noised.rows[name]["quality_privacy"] >= 0.7 for name in EXACT)
    assert all(noised.rows[name]["quality_privacy"] <= 0.5 for name in LEAKY + DESTROYED)


def test_p_values_of_noise(noised: Judged) -> None:
    """Who never saw the noise has no small p value; who did, has one in every seed."""
    p_values = {name: [mine["noise/p"] for mine in noised.models[name].values.values()] for name in noised.models}
    assert min(p for name in (*EXACT, ORACLE) for p in p_values[name]) > 0.05
    assert max(p_values[ORIGINAL]) < 0.01
