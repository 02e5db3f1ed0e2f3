"""Influence updates against their formulas, and against what they approximate: the retrained model."""

from types import SimpleNamespace

import pytest
import torch

from fedforget.exchange import Card
from fedforget.routines import LocalConfig
from fedforget.solvers import conjugate_gradient, shifted
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy
from strategies.influence import Influence

DECAY = 0.1


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path, 1, LearningConfig(rounds=1), LocalConfig(weight_decay=DECAY))


def unlearn(toy, scope, final, **options):
    strategy = Influence(Influence.Config(**options))
    cohort = toy.cohort(REQUESTS[scope], strategy.card)
    return list(strategy.unlearn(REQUESTS[scope], SimpleNamespace(final=final), cohort)), cohort


def minimum(cohort, w):
    """The minimiser of the regularised loss of what the cohort's clients keep, by Newton steps."""
    for _ in range(6):
        g = cohort.gradient(w) + DECAY * w
        *_, x = conjugate_gradient(shifted(cohort.hvp, w, DECAY), g, 100, 1e-4)
        w = w - x
    return w


def forgotten(toy, scope, w):
    """The gradient summed over the forgotten examples, and how many there are."""
    cohort = toy.cohort(REQUESTS[scope])
    mean = cohort.gradient(w.double(), split="forget") + DECAY * w.double()
    n = sum(cohort.last_replies.weights().values())
    return n * mean, n


@pytest.mark.parametrize("scope", ["client", "sample", "class"])
def test_the_first_order_adds_the_forgotten_gradient(toy, scope):
    [w], cohort = unlearn(toy, scope, toy.start, order=1, tau=1e-3)
    total, _ = forgotten(toy, scope, toy.start)
    torch.testing.assert_close(w.flat, toy.start.flat + (1e-3 * total).flat.float())
    owners = {0, 1, 2, 3, 4, 5} if scope == "class" else {2}
    assert cohort.cost.rounds == 1 and cohort.contacted == owners
    assert cohort.cost.bytes_up == len(owners) * 8 * 650


def test_the_second_order_by_the_hessian_is_what_the_formula_says(toy):
    models, cohort = unlearn(toy, "client", toy.start, solver="explicit", damping=0.5)
    total, n = forgotten(toy, "client", toy.start)
    rest = sum(toy.federation.num_train[k] for k in (0, 1, 3, 4, 5))
    _, H = toy.cohort(REQUESTS["client"]).hessian(toy.start.double())
    summed = rest * (H + (DECAY + 0.5) * torch.eye(650))
    expected = toy.start.flat + torch.linalg.solve(summed, total.flat)
    torch.testing.assert_close(models[-1].flat.double(), expected, rtol=0, atol=1e-6)
    assert len(models) == cohort.cost.rounds == 1 and n == toy.federation.num_train[2]


def test_the_solvers_agree_and_pay_a_round_a_product(toy):
    options = {"damping": 0.5, "iterations": 150, "tolerance": 1e-9}
    models, cohort = unlearn(toy, "client", toy.start, **options)
    by_lissa, lissa = unlearn(toy, "client", toy.start, solver="lissa", scale=8.0, **options)
    assert (by_lissa[-1] - models[-1]).norm() < 1e-3 * (models[-1] - toy.start).norm()
    assert len(models) == cohort.cost.rounds < 1 + 60 and len(by_lissa) == lissa.cost.rounds == 1 + 150


def test_lissa_says_when_it_diverges(toy):
    # The largest eigenvalue, with decay and damping, lies between 2 and 16: half of it is too small a scale, 8 is not.
    _, cohort = unlearn(toy, "client", toy.start, solver="lissa", scale=8.0)
    assert cohort.notes == []
    models, cohort = unlearn(toy, "client", toy.start, solver="lissa", scale=0.5)
    assert cohort.notes == ["LiSSA diverged: the damped Hessian has eigenvalues below 0 or above twice scale=0.5"]
    assert (models[-1] - toy.start).norm() > 1000 * (models[1] - toy.start).norm()


def test_the_second_order_comes_close_to_the_retrained_model(toy):
    w = minimum(toy.cohort(), toy.start.double())
    golden = minimum(toy.cohort(REQUESTS["sample"]), w)
    models, _ = unlearn(toy, "sample", w.float(), damping=0.0, iterations=60)
    assert (models[-1] - golden.float()).norm() < 0.1 * (w - golden).norm()


def test_what_it_assumes():
    assert Influence().card == Card(target_online=True)
    assert Influence(Influence.Config(order=1)).card == Card(target_online=True, retained_online=False)


def test_models_too_large_for_a_hessian_are_refused_before_training(run_small, tmp_path):
    with pytest.raises(ValueError, match=r"influence with solver=explicit makes a Hessian .* d=3000"):
        run_small("model=mlp strategies=[influence_explicit]")
    assert not list(tmp_path.glob("store/trajectories/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 3}, "strategy.influence.order is 3, but must be one of 1, 2"),
        ({"solver": "lisa"}, "strategy.influence.solver is 'lisa', but must be one of cg, lissa, explicit"),
        ({"damping": -0.1}, "strategy.influence.damping is -0.1, but must be at least 0"),
        ({"tolerance": 1.0}, r"strategy.influence.tolerance is 1.0, but must be in \[0, 1\)"),
        ({"tau": 0.0}, "strategy.influence.tau is 0.0, but must be above 0"),
        ({"iterations": 0}, "strategy.influence.iterations is 0, but must be at least 1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Influence.Config(**options)
