"""Exact cubic-regularised Newton steps against their optimality conditions on a toy federation."""

import pytest
import torch

from fedforget.history import FileJournal
from fedforget.testing import REQUESTS
from strategies.cubic_newton import CubicNewton

REQUEST = REQUESTS["client"]
SIZE = 650  # parameters of the toy's softmax regression


@pytest.fixture
def unlearn(from_start):
    return lambda cohort, **options: from_start(CubicNewton(CubicNewton.Config(**options)), cohort)


@pytest.mark.parametrize("M", [1.0, 5.0])
def test_a_step_satisfies_the_optimality_condition_on_pooled_data(toy, slope, unlearn, M):
    [w] = unlearn(toy.cohort(REQUEST), lipschitz=M)
    s = w.double() - toy.start.double()
    g, decay = slope(toy.start), toy.local.weight_decay
    Hs = toy.cohort(REQUEST).hvp(toy.start.double(), s) + decay * s
    assert (g + Hs + M / 2 * s.norm() * s).norm() < 1e-6  # the model is rounded to float32 when it is yielded


def test_a_larger_constant_takes_a_shorter_step(toy, unlearn):
    lengths = [(unlearn(toy.cohort(REQUEST), lipschitz=M)[0] - toy.start).norm() for M in (0.1, 1.0, 10.0)]
    assert lengths == sorted(lengths, reverse=True)


def test_repeated_steps_reach_the_minimum(toy, slope, unlearn):
    models = unlearn(toy.cohort(REQUEST), lipschitz=0.1, steps=7)
    residuals = [slope(w).norm() for w in models]
    assert residuals == sorted(residuals, reverse=True) and residuals[-1] < 1e-6


def test_each_step_is_one_round_of_whole_hessians(toy, unlearn):
    cohort = toy.cohort(REQUEST)
    unlearn(cohort, steps=2)
    assert cohort.cost.rounds == 2
    assert cohort.cost.bytes_up == 2 * 5 * 8 * (SIZE + SIZE**2) and cohort.cost.bytes_down == 2 * 5 * 8 * SIZE
    assert cohort.contacted == {0, 1, 3, 4, 5}


def test_a_hessian_round_is_remembered_when_a_run_goes_on(toy, tmp_path):
    # Replies of d + d^2 numbers must come back from the journal as they were.
    first, second = toy.cohort(REQUEST), toy.cohort(REQUEST)
    first.journal = second.journal = FileJournal(tmp_path / "journal")
    w = toy.start.double()
    g, H = first.hessian(w)
    toy.grid.work.clear()
    again_g, again_H = second.hessian(w)
    assert toy.grid.work == [] and again_g.equals(g) and torch.equal(again_H, H) and second.cost == first.cost


def test_models_too_large_for_a_hessian_are_refused_before_training(run_small, tmp_path):
    with pytest.raises(ValueError, match=r"cubic_newton makes a Hessian of d x d entries.* d=3000 .* not d="):
        run_small("model=mlp strategies=[cubic_newton]")
    assert not list(tmp_path.glob("store/trajectories/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": 0.0}, "strategy.cubic_newton.lipschitz is 0.0, but must be above 0"),
        ({"steps": 0}, "strategy.cubic_newton.steps is 0, but must be at least 1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CubicNewton.Config(**options)
