"""The bill of each method against its formula in d, T, K: rounds, numbers sent, who is asked, what the server keeps.

The toy federation has K = 6 clients, all asked in each of T = 4 rounds, and a model of d = 650 numbers: 64 x 10 weights
and 10 biases. Client 2 leaves (f = 1 client), r = 5 stay. All is counted in float32 numbers; a method that works in
float64 sends two for each. The server's own copy of the model is nobody's bill; what it holds beside it while it
unlearns is: in the widest round, the vectors sent along and the answers, and what it keeps meanwhile. A sum over
clients is one answer; nodes add float32 alone, so clients' float64 vectors are all answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedforget.history import History
from fedforget.strategy import LearningConfig, all_strategies, find
from fedforget.testing import REQUESTS, Toy

T, K, d = 4, 6, 650
r, f = 5, 1
RETAINED, FORGETTING, ALL, NOBODY = {0, 1, 3, 4, 5}, {2}, {0, 1, 2, 3, 4, 5}, set[int]()


@dataclass(frozen=True)
class Bill:
    """What a method should cost.

    Args:
        rounds: rounds after learning.
        up: numbers that clients send in all of them.
        down: numbers that clients are sent.
        asked: the clients.
        stored: numbers that the server keeps from learning on.
        held: numbers that the server holds at most while it unlearns.
    """

    rounds: float
    up: float
    down: float
    asked: set[int]
    stored: float = 0
    held: float = d


def kept(p: float) -> int:
    """Entries that a share p keeps of the two layers, at least one of each."""
    return max(1, round(p * 640)) + max(1, round(p * 10))


STEPS = 6  # of client 2 in a round: 192 examples in batches of 32
BITMAP = 82 / 4  # numbers that a bitmap of d bits takes: 650 bits are 82 bytes

BILLS: dict[str, tuple[str, dict[str, Any], Bill]] = {
    "retrain": ("retrain", {}, Bill(T, T * r * d, T * r * d, RETAINED)),
    "truncated retrain": ("truncated_retrain", {"share": 0.5}, Bill(2, 2 * r * d, 2 * r * d, RETAINED)),
    "fine-tuning": ("finetune", {"rounds": 3}, Bill(3, 3 * r * d, 3 * r * d, RETAINED)),
    # Amnesiac: every update of everybody, or one running sum each; nobody is asked. A repair is fine-tuning.
    "amnesiac": ("amnesiac", {}, Bill(0, 0, 0, NOBODY, K * T * d, 0)),
    "amnesiac, repaired": ("amnesiac", {"repair_rounds": 2}, Bill(2, 2 * r * d, 2 * r * d, RETAINED, K * T * d)),
    "amnesiac, sums": ("partial_amnesiac", {"keep": 1.0, "storage": "sum"}, Bill(0, 0, 0, NOBODY, K * d, 0)),
    # Partial amnesiac: p d values with p d indices of 32 bits, the values and a bitmap where that is shorter (beyond p
    # = 1/32), or the values alone where the choice is random.
    "partial amnesiac, 2%": ("partial_amnesiac", {"keep": 0.02}, Bill(0, 0, 0, NOBODY, K * T * 2 * kept(0.02), 0)),
    "partial amnesiac, 20%": (
        "partial_amnesiac",
        {"keep": 0.2},
        Bill(0, 0, 0, NOBODY, K * T * (kept(0.2) + BITMAP), 0),
    ),
    "partial amnesiac, random": (
        "partial_amnesiac",
        {"keep": 0.05, "select": "random"},
        Bill(0, 0, 0, NOBODY, K * T * kept(0.05), 0),
    ),
    # Partial updates: p d values and a bitmap of their places, as the mask is fixed within a round.
    "partial label-flipping": (
        "partial_label_flip",
        {"retained": False, "rounds": 2, "density": 0.1},
        Bill(2, 2 * f * (kept(0.1) + BITMAP), 2 * f * d, FORGETTING),
    ),
    "partial label-flipping, all": (
        "partial_label_flip",
        {"rounds": 2, "density": 0.1},
        Bill(2, 2 * K * (kept(0.1) + BITMAP), 2 * K * d, ALL),
    ),
    "partial ascent": (  # w and w_o go down
        "partial_ascent",
        {"restraint": "origin", "rounds": 2, "density": 0.1},
        Bill(2, 2 * f * (kept(0.1) + BITMAP), 2 * f * 2 * d, FORGETTING, held=2 * d),
    ),
    "RBM": ("retention_mask", {"rounds": 3}, Bill(1 + 3, (1 + 3) * r * d, (1 + 3) * r * d, RETAINED)),
    # The two steps of an epoch start from one model, so they are parts of one round; SCRUB's teacher goes down beside
    # the student, and its clients answer one by one, because some answer in both parts.
    "SCRUB": (
        "scrub",
        {"rounds": 3, "max_rounds": 2},
        Bill(3, (3 * r + 2 * f) * d, 2 * (3 * r + 2 * f) * d, ALL, held=(1 + r + f) * d),
    ),
    "NegGrad": ("neggrad", {"rounds": 3}, Bill(3, 3 * K * d, 3 * K * d, ALL, held=2 * d)),
    "discriminative": ("discriminative", {"rounds": 3}, Bill(3, 3 * K * d, 3 * K * d, ALL, held=2 * d)),
    "L1-sparse": ("l1_sparse", {"rounds": 3}, Bill(3, 3 * r * d, 3 * r * d, RETAINED)),
    # SCureNewton: N_out (2 + N_in) rounds in float64; products take the model and a vector, gradients the model. The
    # server holds g, v and the answers H_k v.
    "SCureNewton": (
        "stochastic_cubic_newton",
        {"steps": 2, "inner_steps": 3},
        Bill(2 * (2 + 3), 2 * (2 + 3) * r * 2 * d, 2 * (1 + 2 * (1 + 3)) * r * 2 * d, RETAINED, held=(2 + r) * 2 * d),
    ),
    "CureNewton": ("cubic_newton", {}, Bill(1, r * 2 * (d**2 + d), r * 2 * d, RETAINED, held=r * 2 * (d**2 + d))),
    # FedAF: one round of Fisher diagonals, then w, w_o and F go down to the forgetting clients alone.
    "FedAF": ("fedaf", {"rounds": 2}, Bill(1 + 2, (r + 2 * f) * d, (r + 2 * f * 3) * d, ALL, held=3 * d)),
    # PGU: in_l^2 numbers of each retained client, then d up, and d + in_l k down (k columns of U). Features come
    # one by one, and are the most that is held.
    "PGU": (
        "projected_gradient",
        {"rounds": 2, "rank": 7},
        Bill(1 + 2, r * 64**2 + 2 * f * d, r * d + 2 * f * (d + 64 * 7), ALL, held=r * 64**2),
    ),
    # One gradient of the owner; a server that keeps K d numbers from the first round would need no round. It holds
    # the gradient and the initial model.
    "single gradient": ("unrolling", {}, Bill(1, f * d, f * d, FORGETTING, held=2 * d)),
    # Influence: G from the owners in float64, and the Hessian in the same round, or then the products, for which the
    # server holds v, the answers H_k v, the iterate and the residual.
    "first order": ("influence", {"order": 1}, Bill(1, f * 2 * d, f * 2 * d, FORGETTING, held=2 * d)),
    "second order": (
        "influence",
        {"solver": "explicit"},
        Bill(1, 2 * (f * d + r * (d**2 + d)), 2 * (f + r) * d, ALL, held=2 * (f * d + r * (d**2 + d))),
    ),
    "second order, CG": (
        "influence",
        {"iterations": 3, "tolerance": 0.0},
        Bill(1 + 3, 2 * (f + 3 * r) * d, 2 * (f + 3 * r * 2) * d, ALL, held=(3 + r) * 2 * d),
    ),
    # SAPS: the diagonal from all, then the owners are told S (d numbers) and send q d of G and a bitmap of places.
    "SAPS": ("saps", {"share": 0.2}, Bill(2, r * d + f * (0.2 * d + BITMAP), (r + 2 * f) * d, ALL, held=2 * d)),
    "SAPS, probes": (
        "saps",
        {"curvature": "hutchinson", "probes": 3},
        Bill(4, 3 * r * d + f * (0.1 * d + BITMAP), (6 * r + 2 * f) * d, ALL, held=3 * d),
    ),
    # PBU: F, then w, w_o and the stiffness of the well go down.
    "PBU": ("pbu", {"rounds": 2}, Bill(1 + 2, 3 * f * d, (1 + 2 * 3) * f * d, FORGETTING, held=3 * d)),
    # LURE: one round of saliency, then fine-tuning.
    "LURE": ("lure", {"rounds": 3}, Bill(1 + 3, (1 + 3) * r * d, (1 + 3) * r * d, RETAINED)),
    # Krylov: N_out (1 + k) rounds in float64, as SCureNewton's; the server holds v, the answers and k basis vectors.
    "Krylov": (
        "krylov_newton",
        {"steps": 2, "products": 3, "tolerance": 0.0},
        Bill(2 * (1 + 3), 2 * (1 + 3) * r * 2 * d, 2 * (1 + 2 * 3) * r * 2 * d, RETAINED, held=(1 + r + 3) * 2 * d),
    ),
    # Amnesiac at the client: it sends what it kept, once; the model goes down with the question.
    "amnesiac, client": ("amnesiac_client", {}, Bill(1, f * d, f * d, FORGETTING, held=d)),
    # DMM: of K = 6 clients two are left out of each of three trainings, so 4 work T rounds; then the trained models,
    # the original and the current one go down to all.
    "DMM": (
        "datamodel_matching",
        {"passes": 1, "rounds": 2},
        Bill(3 * T + 2, (3 * T * 4 + 2 * K) * d, (3 * T * 4 + 2 * K * 5) * d, ALL, held=(4 + 1) * d),
    ),
    # Of Part I, those whose bill has a formula.
    "FedQUIT": ("fedquit", {"rounds": 3}, Bill(1 + 3, (f + 3 * r) * d, (f + 3 * r) * d, ALL)),
    # FedRecover: exact rounds of T = 4 are T_w = 2 and T_f = 1, and none of T_c; estimates of round 3 are accepted at
    # alpha = 0. Held: the answers, and from the second exact round on a pair of each client.
    "FedRecover": (
        "fedrecover",
        {"warmup": 2, "buffer": 1, "final": 1, "interval": 9, "tolerance": 0.0},
        Bill(2 + 1, (2 + 1) * r * d, (2 + 1) * r * d, RETAINED, (1 + T) * d + K * T * d, (1 + 2) * r * d),
    ),
    # PGA: w_ref and the target's last model go down, one update comes up; then recovery. Its records are all globals
    # and the updates of whoever may leave, of which a run keeps those of who does.
    "PGA": ("pga", {"rounds": 2}, Bill(1 + 2, (f + 2 * r) * d, (2 * f + 2 * r) * d, ALL, (1 + T + f * T) * d, 2 * d)),
    # SGA with EWC: F of all who stay; w, w_o and the penalty down to the target; recovery.
    "SGA-EWC": (
        "sga_ewc",
        {"unlearning_rounds": 2, "rounds": 1},
        Bill(1 + 2 + 1, (2 * r + 2 * f) * d, (2 * r + 2 * f * 3) * d, ALL, held=3 * d),
    ),
    # PUF: an ordinary round of everybody, or of those alone who leave, then recovery. Updates come one by one.
    "PUF": ("pseudo_gradient", {"rounds": 2}, Bill(1 + 2, (K + 2 * r) * d, (K + 2 * r) * d, ALL, held=K * d)),
    "PUF, special": ("pseudo_gradient", {"retained_rate": 0.0, "rounds": 0}, Bill(1, f * d, f * d, FORGETTING)),
    # NoT and IFU are ordinary rounds but for what the server does alone; Psi* near 0 rolls everything back.
    "NoT": ("negation", {"rounds": 3}, Bill(3, 3 * r * d, 3 * r * d, RETAINED)),
    "IFU": (
        "sifu",
        {"sigma": 1e-9},
        Bill(T, T * r * d, T * r * d, RETAINED, (1 + T) * d + K * T * d),
    ),
    # FATS: client 2 takes part in the first round, as everybody does, so all are repeated from the initial model.
    "FATS": ("fats", {}, Bill(T, T * r * d, T * r * d, RETAINED, (1 + T) * d)),
    # FUSED: an ordinary round whose updates come one by one; then adapters of rank 10, the layer's smaller side.
    "FUSED": (
        "fused",
        {"rounds": 2},
        Bill(1 + 2, r * (d + 2 * 740), r * (d + 2 * (d + 740)), RETAINED, held=r * d),  # 740 = 10 * 64 + 10 * 10
    ),
    "ConDa": ("conda", {}, Bill(0, 0, 0, NOBODY, K * d, 0)),
    # MoDe: w_de learns at those who stay; in guidance w and w_de go to everybody, and w_de is held; then recovery.
    "MoDe": (
        "momentum_degradation",
        {"degradation_rounds": 2, "guidance_rounds": 3, "rounds": 1},
        Bill(2 + 3 + 1, (3 * r + 3 * K) * d, (3 * r + 3 * K * 2) * d, ALL, held=3 * d),
    ),
    # The retrain inside, then two models down to everybody and one update up.
    "oracle matching": (
        "oracle_matching",
        {"rounds": 2},
        Bill(T + 2, (T * r + 2 * K) * d, (T * r + 2 * K * 2) * d, ALL, held=2 * d),
    ),
    "random labels": ("random_label", {"rounds": 2}, Bill(2, 2 * K * d, 2 * K * d, ALL)),
    # Damped Newton: a gradient and as many products as allowed, in float64; the iterate and the residual are held.
    "damped Newton, CG": (
        "newton",
        {"iterations": 3, "tolerance": 0.0},
        Bill(1 + 3, 4 * r * 2 * d, (1 + 3 * 2) * r * 2 * d, RETAINED, held=(3 + r) * 2 * d),
    ),
    "damped Newton, H": (
        "newton",
        {"solver": "explicit"},
        Bill(1, r * 2 * (d**2 + d), r * 2 * d, RETAINED, held=r * 2 * (d**2 + d)),
    ),
    "pseudo-inverse Newton": (
        "newton",
        {"solver": "pseudo", "steps": 2},
        Bill(2, 2 * r * 2 * (d**2 + d), 2 * r * 2 * d, RETAINED, held=r * 2 * (d**2 + d)),
    ),
    # As CG, but u is the iterate and there is no residual.
    "second order, LiSSA": (
        "influence",
        {"solver": "lissa", "iterations": 3},
        Bill(1 + 3, 2 * (f + 3 * r) * d, 2 * (f + 3 * r * 2) * d, ALL, held=(2 + r) * 2 * d),
    ),
    # Two gradients around a step of three products, in float64; b and the basis are held. It learns by itself.
    "certified Newton": (
        "certified_newton",
        {"steps": 1, "iterations": 3, "epsilon": 1e-9},
        Bill(2 + 3, 5 * r * 2 * d, (2 + 3 * 2) * r * 2 * d, RETAINED, held=(1 + r + 1 + 3) * 2 * d),
    ),
    # SalUn's counterpart of RBM: the gradient comes from who forgets.
    "forget-based mask": (
        "retention_mask",
        {"saliency": "forget", "rounds": 3},
        Bill(1 + 3, (f + 3 * r) * d, (f + 3 * r) * d, ALL),
    ),
    # A rotating block of a tenth moves on with every step: after its steps so many blocks have changed.
    "partial label-flipping, rotating": (
        "partial_label_flip",
        {"retained": False, "rounds": 1, "density": 0.1, "mask": "rotating"},
        Bill(1, f * (STEPS * kept(0.1) + BITMAP), f * d, FORGETTING),
    ),
    "partial ascent, with retained data": (
        "partial_ascent",
        {"rounds": 2, "density": 0.1},
        Bill(2, 2 * K * (kept(0.1) + BITMAP), 2 * K * d, ALL),
    ),
    "none": ("none", {}, Bill(0, 0, 0, NOBODY, 0, 0)),
    "FedEraser": (  # every second of T rounds, with half of the local steps
        "federaser",
        {"interval": 2},
        Bill(1, r * d, r * d, RETAINED, T / 2 * K * d, r * d),
    ),
    "FedRecovery": ("fedrecovery", {}, Bill(0, 0, 0, NOBODY, K * T * d, 0)),
    # KD: a running sum of everybody is kept; then student and teacher go down to those who stay.
    "KD": ("distillation", {"rounds": 3}, Bill(3, 3 * r * d, 3 * r * 2 * d, RETAINED, K * d, 2 * d)),
    "FedOSD": (  # all gradients; in post-training those of the retained and the model before
        "fedosd",
        {"rounds": 2, "post_rounds": 3},
        Bill(2 + 3, (2 * K + 3 * r) * d, (2 * K + 3 * r) * d, ALL, held=K * d),
    ),
}


def test_every_strategy_that_serves_a_client_has_a_bill() -> None:
    assert {name for name, _, _ in BILLS.values()} == {n for n, s in all_strategies().items() if "client" in s.scopes}


@pytest.mark.parametrize("method", BILLS)
def test_the_bill_is_that_of_the_formula(tmp_path: Path, method: str) -> None:
    name, options, expected = BILLS[method]
    strategy_class, toy = find(name), Toy(tmp_path, 1, LearningConfig(rounds=T))
    strategy, request = strategy_class(strategy_class.Config(**options), toy.learning), REQUESTS["client"]
    toy.record, cohort = strategy.card.records, toy.cohort(request, strategy.card)
    cohort.shelves = toy.shelves if strategy.card.client_records else ""
    recording, final = toy.learn(strategy, cohort.targets, request)
    history = History(recording, T, final, strategy.card, frozenset(), cohort.targets)
    for _ in strategy.serve(request, history, cohort):
        pass
    assert toy.start.layout.size == d and cohort.federation.clients == tuple(sorted(ALL))
    cost = cohort.cost
    stored, held = history.bytes_stored() / 4, cohort.held / 4
    found = Bill(cost.rounds, cost.bytes_up / 4, cost.bytes_down / 4, cohort.contacted, stored, held)
    assert found == expected
