"""SCureNewton against its formulas on a toy federation."""

from types import SimpleNamespace

import pytest
import torch

from fedforget.routines import LocalConfig
from fedforget.solvers import cauchy_step
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy
from strategies.stochastic_cubic_newton import StochasticCubicNewton

REQUEST = REQUESTS["client"]
DECAY = 0.05


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path, 1, LearningConfig(rounds=1), LocalConfig(weight_decay=DECAY))


def unlearn(toy, cohort, **options):
    strategy = StochasticCubicNewton(StochasticCubicNewton.Config(**options))
    return list(strategy.unlearn(REQUEST, SimpleNamespace(final=toy.start), cohort))


def test_without_inner_steps_it_is_the_cauchy_step(toy):
    cohort, w = toy.cohort(REQUEST), toy.start.double()
    g = cohort.gradient(w) + DECAY * w
    expected = toy.start + cauchy_step(g, cohort.hvp(w, g) + DECAY * g, 5.0).float()
    models = unlearn(toy, toy.cohort(REQUEST), steps=1, inner_steps=0)
    torch.testing.assert_close(models[-1].flat, expected.flat)
    assert len(models) == 2 and models[0].equals(toy.start)


def test_an_inner_step_descends_the_perturbed_model(toy):
    M, eta, sigma = 5.0, 0.1, 0.5
    *_, start, w = unlearn(toy, toy.cohort(REQUEST), steps=1, inner_steps=1, eta=eta, perturbation=sigma)
    cohort, at = toy.cohort(REQUEST), toy.start.double()
    s = start.double() - at
    slope = cohort.gradient(at) + DECAY * at + cohort.hvp(at, s) + DECAY * s + M / 2 * s.norm() * s
    # What is left of the step is the perturbation, a vector of norm sigma.
    assert ((s - (w.double() - at)) / eta - slope).norm() == pytest.approx(sigma, rel=1e-3)


def test_each_outer_step_takes_two_rounds_and_the_inner_ones(toy):
    cohort = toy.cohort(REQUEST)
    models = unlearn(toy, cohort)  # the defaults: 10 (2 + 5) = 70
    assert cohort.cost.rounds == len(models) == 70
    assert cohort.cost.bytes_up == 70 * 5 * 8 * 650
    norms = [(cohort.gradient(w.double()) + DECAY * w.double()).norm() for w in (models[0], models[-1])]
    assert norms[1] < 0.7 * norms[0]


def test_one_batch_serves_an_outer_step_and_is_all_that_is_processed(toy):
    cohort, strategy = toy.cohort(REQUEST), StochasticCubicNewton(StochasticCubicNewton.Config(hessian_batch=8))
    w = toy.start.double()
    g, H = strategy.local_model(cohort, w)
    before = cohort.cost
    first, twice = H(g), H(2.0 * g)
    torch.testing.assert_close(twice.flat, 2 * first.flat)
    assert cohort.cost.client_examples - before.client_examples == 2 * 5 * 8
    _, other = strategy.local_model(cohort, w)
    assert (other(g) - first).norm() > 0.01 * first.norm()  # the next outer step draws again


def test_a_batch_that_holds_everything_changes_nothing(toy):
    whole = unlearn(toy, toy.cohort(REQUEST), steps=1)
    batched = unlearn(toy, toy.cohort(REQUEST), steps=1, gradient_batch=10**6, hessian_batch=10**6)
    torch.testing.assert_close(batched[-1].flat, whole[-1].flat)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": 0.0}, "stochastic_cubic_newton.lipschitz=0.0 must be positive"),
        ({"eta": float("nan")}, "stochastic_cubic_newton.eta=nan must be positive"),
        ({"steps": 0}, "stochastic_cubic_newton.steps=0 must be at least 1"),
        ({"inner_steps": -1}, "stochastic_cubic_newton.inner_steps=-1 must be at least 0"),
        ({"hessian_batch": -1}, "stochastic_cubic_newton.hessian_batch=-1 must be at least 0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StochasticCubicNewton.Config(**options)
