"""Krylov cubic-regularised Newton steps against the exact ones on a toy federation."""

import pytest

from fedforget.solvers import cubic_step
from fedforget.testing import REQUESTS
from strategies.krylov_newton import KrylovNewton

REQUEST = REQUESTS["client"]


@pytest.fixture
def unlearn(from_start):
    return lambda cohort, **options: from_start(KrylovNewton(KrylovNewton.Config(**options)), cohort)


def test_few_products_give_the_exact_cubic_step(toy, slope, unlearn):
    w = toy.start.double()
    _, H = toy.cohort(REQUEST).hessian(w)
    H.diagonal().add_(toy.local.weight_decay)
    exact = cubic_step(H, slope(w), 5.0)
    models = unlearn(toy.cohort(REQUEST), lipschitz=5.0, steps=1, products=12, tolerance=0.0)
    errors = [(made.double() - w - exact).norm() / exact.norm() for made in models]
    assert errors[0] == 1 and errors[-1] < 0.01


def test_outer_steps_reach_the_minimum(toy, slope, unlearn):
    *_, w = unlearn(toy.cohort(REQUEST), lipschitz=0.1, steps=7, products=40, tolerance=1e-3)
    assert slope(w).norm() < 1e-6


def test_it_yields_after_every_round_and_spends_no_more_than_it_may(toy, unlearn):
    cohort = toy.cohort(REQUEST)
    models = unlearn(cohort, steps=2, products=3, tolerance=0.0)
    assert cohort.cost.rounds == len(models) == 2 * (1 + 3)
    assert cohort.cost.bytes_up == 8 * 5 * 8 * 650 and cohort.contacted == {0, 1, 3, 4, 5}
    assert models[0].equals(toy.start) and models[4].equals(models[3])
    loose = toy.cohort(REQUEST)
    unlearn(loose, steps=1, tolerance=0.5)
    assert loose.cost.rounds < 1 + 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": -1.0}, "strategy.krylov_newton.lipschitz is -1.0, but must be above 0"),
        ({"steps": 0}, "strategy.krylov_newton.steps is 0, but must be at least 1"),
        ({"products": 0}, "strategy.krylov_newton.products is 0, but must be at least 1"),
        ({"tolerance": 1.0}, r"strategy.krylov_newton.tolerance is 1.0, but must be in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        KrylovNewton.Config(**options)
