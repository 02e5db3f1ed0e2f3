"""SCureNewton against its formulas on a toy federation."""

import pytest
import torch

from fedforget.params import Layout, Params
from fedforget.solvers import cauchy_step, cubic_descent, cubic_model, cubic_step
from fedforget.testing import REQUESTS
from strategies.stochastic_cubic_newton import StochasticCubicNewton, gradient

REQUEST = REQUESTS["client"]


@pytest.fixture
def unlearn(from_start):
    return lambda cohort, **options: from_start(StochasticCubicNewton(StochasticCubicNewton.Config(**options)), cohort)


def test_without_inner_steps_it_is_the_cauchy_step(toy, slope, unlearn):
    w = toy.start.double()
    g = slope(w)
    Hg = toy.cohort(REQUEST).hvp(w, g) + toy.local.weight_decay * g
    expected = toy.start + cauchy_step(g, Hg, 5.0).float()
    models = unlearn(toy.cohort(REQUEST), steps=1, inner_steps=0)
    torch.testing.assert_close(models[-1].flat, expected.flat)
    assert len(models) == 2 and models[0].equals(toy.start)


@pytest.mark.parametrize(
    ("M", "least", "most"), [(0.1, 0.08, 0.87), (1.0, 0.79, 1.0), (5.0, 0.79, 1.0), (50.0, 0.79, 1.0)]
)
def test_five_inner_steps_get_most_of_the_decrease_unless_M_is_small(M, least, most):
    # Where curvature is about 1 and the gradient is long (n = 60 random entries): the paper's five steps of 0.01.
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        A = torch.randn(60, 60, generator=generator, dtype=torch.float64)
        H, layout = (A + A.T) / 20, Layout(("w",), ((60,),))
        g = Params(torch.randn(60, generator=generator, dtype=torch.float64), layout)

        def product(v, H=H, layout=layout):
            return Params(H @ v.flat, layout)

        best, start = cubic_step(H, g, M), cauchy_step(g, product(g), M)
        *_, s = cubic_descent(product, g, start, M, 0.01, 5)
        reached, optimum = (cubic_model(g, product(at), at, M) for at in (s, best))
        assert least < reached / optimum <= most


def test_an_inner_step_descends_the_perturbed_model(toy, slope, unlearn):
    M, eta, sigma = 5.0, 0.1, 0.5
    *_, start, w = unlearn(toy.cohort(REQUEST), steps=1, inner_steps=1, eta=eta, perturbation=sigma)
    at = toy.start.double()
    s = start.double() - at
    Hs = toy.cohort(REQUEST).hvp(at, s) + toy.local.weight_decay * s
    descent = slope(at) + Hs + M / 2 * s.norm() * s
    # What is left of the step is the perturbation, a vector of norm sigma.
    assert ((s - (w.double() - at)) / eta - descent).norm() == pytest.approx(sigma, rel=1e-3)


def test_each_outer_step_takes_two_rounds_and_the_inner_ones(toy, slope, unlearn):
    cohort = toy.cohort(REQUEST)
    models = unlearn(cohort)  # the defaults: 10 (2 + 5) = 70
    assert cohort.cost.rounds == len(models) == 70
    assert cohort.cost.bytes_up == 70 * 5 * 8 * 650
    assert slope(models[-1]).norm() < 0.7 * slope(models[0]).norm()


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


def test_the_batches_of_gradient_and_hessian_are_drawn_apart(toy):
    # With one batch for both, H g would be the product on the examples that g comes from.
    config = StochasticCubicNewton.Config(gradient_batch=8, hessian_batch=8)
    cohort, w = toy.cohort(REQUEST), toy.start.double()
    t = cohort.next_round
    g, H = StochasticCubicNewton(config).local_model(cohort, w)

    def on_the_gradients_batch(at):
        return cohort.reduce(at, cohort.retained, routine=gradient, round=t, size=8)

    torch.testing.assert_close((on_the_gradients_batch(w) + toy.local.weight_decay * w).flat, g.flat)
    difference = (on_the_gradients_batch(w + 1e-4 * g) - on_the_gradients_batch(w - 1e-4 * g)) / 2e-4
    assert (H(g) - toy.local.weight_decay * g - difference).norm() > 0.01 * difference.norm()


def test_an_outer_step_starts_where_the_one_before_ended_with_another_perturbation(toy, slope, unlearn):
    M, eta, sigma = 5.0, 0.1, 0.5
    models = unlearn(toy.cohort(REQUEST), steps=2, inner_steps=1, eta=eta, perturbation=sigma)
    assert len(models) == 6 and models[3].equals(models[2])
    perturbations = []
    for at, start, end in (models[:3], models[3:]):
        at, s = at.double(), (start - at).double()
        Hs = toy.cohort(REQUEST).hvp(at, s) + toy.local.weight_decay * s
        perturbations.append((at + s - end.double()) / eta - (slope(at) + Hs + M / 2 * s.norm() * s))
    assert [u.norm() for u in perturbations] == pytest.approx([sigma, sigma], rel=1e-3)
    assert (perturbations[0] - perturbations[1]).norm() > sigma


def test_a_batch_that_holds_everything_changes_nothing(toy, unlearn):
    whole = unlearn(toy.cohort(REQUEST), steps=1)
    batched = unlearn(toy.cohort(REQUEST), steps=1, gradient_batch=10**6, hessian_batch=10**6)
    torch.testing.assert_close(batched[-1].flat, whole[-1].flat)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": 0.0}, "strategy.stochastic_cubic_newton.lipschitz is 0.0, but must be above 0"),
        ({"eta": float("nan")}, "strategy.stochastic_cubic_newton.eta is nan, but must be a finite number"),
        ({"steps": 0}, "strategy.stochastic_cubic_newton.steps is 0, but must be at least 1"),
        ({"inner_steps": -1}, "strategy.stochastic_cubic_newton.inner_steps is -1, but must be at least 0"),
        ({"hessian_batch": -1}, "strategy.stochastic_cubic_newton.hessian_batch is -1, but must be at least 0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StochasticCubicNewton.Config(**options)
