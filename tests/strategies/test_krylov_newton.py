"""Krylov cubic-regularised Newton steps against the exact ones on a toy federation."""

from types import SimpleNamespace

import pytest

from fedforget.routines import LocalConfig
from fedforget.solvers import cubic_step
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy
from strategies.krylov_newton import KrylovNewton

REQUEST = REQUESTS["client"]
DECAY = 0.05


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path, 1, LearningConfig(rounds=1), LocalConfig(weight_decay=DECAY))


def unlearn(toy, cohort, **options):
    strategy = KrylovNewton(KrylovNewton.Config(**options))
    return list(strategy.unlearn(REQUEST, SimpleNamespace(final=toy.start), cohort))


def test_few_products_give_the_exact_cubic_step(toy):
    w = toy.start.double()
    g, H = toy.cohort(REQUEST).hessian(w)
    H.diagonal().add_(DECAY)
    exact = cubic_step(H, g + DECAY * w, 5.0)
    models = unlearn(toy, toy.cohort(REQUEST), lipschitz=5.0, steps=1, products=12, tolerance=0.0)
    errors = [(made.double() - w - exact).norm() / exact.norm() for made in models]
    assert errors[0] == 1 and errors[-1] < 0.01


def test_outer_steps_reach_the_minimum(toy):
    cohort = toy.cohort(REQUEST)
    *_, w = unlearn(toy, cohort, lipschitz=0.1, steps=7, products=40, tolerance=1e-3)
    assert (cohort.gradient(w.double()) + DECAY * w.double()).norm() < 1e-6


def test_it_yields_after_every_round_and_spends_no_more_than_it_may(toy):
    cohort = toy.cohort(REQUEST)
    models = unlearn(toy, cohort, steps=2, products=3, tolerance=0.0)
    assert cohort.cost.rounds == len(models) == 2 * (1 + 3)
    assert cohort.cost.bytes_up == 8 * 5 * 8 * 650 and cohort.contacted == {0, 1, 3, 4, 5}
    assert models[0].equals(toy.start) and models[4].equals(models[3])
    loose = toy.cohort(REQUEST)
    unlearn(toy, loose, steps=1, tolerance=0.5)
    assert loose.cost.rounds < 1 + 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": -1.0}, "krylov_newton.lipschitz=-1.0 must be positive"),
        ({"steps": 0}, "krylov_newton.steps=0 must be at least 1"),
        ({"products": 0}, "krylov_newton.products=0 must be at least 1"),
        ({"tolerance": 1.0}, r"krylov_newton.tolerance=1.0 must lie in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        KrylovNewton.Config(**options)
