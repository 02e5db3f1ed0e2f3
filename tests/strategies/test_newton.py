"""Damped and pseudo-inverse Newton steps against optimality conditions and a federation retrained to convergence."""

from types import SimpleNamespace

import pytest
import torch

from fedforget.routines import LocalConfig
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy
from strategies.newton import Newton

REQUEST = REQUESTS["client"]
SIZE = 650  # parameters of the toy's softmax regression


def unlearn(toy, cohort, **options):
    strategy = Newton(Newton.Config(**options), toy.learning)
    return list(strategy.unlearn(REQUEST, SimpleNamespace(final=toy.start), cohort))


def convex(folder, penalty=0.3):
    """A toy whose clients take one full-batch step a round, so that learning is gradient descent on the pooled loss."""
    learning = LearningConfig(rounds=120, fraction=1.0)
    return Toy(folder, 1, learning, LocalConfig(lr=0.3, steps=1, batch_size=300, weight_decay=penalty))


def kkt_residual(toy, w):
    """Norm of the retained objective's gradient, weight decay included."""
    w = w.double()
    return (toy.cohort(REQUEST).gradient(w) + toy.local.weight_decay * w).norm()


def test_newton_steps_reach_the_federation_retrained_to_convergence(tmp_path):
    toy = convex(tmp_path)
    cohort = toy.cohort(REQUEST)
    *_, w = unlearn(toy, cohort, steps=6, damping=0.0, iterations=100, tolerance=1e-3)
    *_, oracle = Newton(learning=toy.learning).learn(toy.cohort(REQUEST), toy.start, toy.learning.rounds)
    assert kkt_residual(toy, w) < 1e-6  # the model is rounded to float32 when it is yielded
    assert kkt_residual(toy, toy.start) > 0.1
    assert (w - oracle).norm() < 1e-3 * oracle.norm()


def test_the_solvers_agree_and_send_what_they_should(tmp_path):
    toy = convex(tmp_path, penalty=0.05)
    by_products, by_hessian = toy.cohort(REQUEST), toy.cohort(REQUEST)
    *_, one = unlearn(toy, by_products, damping=0.1, iterations=200, tolerance=1e-8)
    [other] = unlearn(toy, by_hessian, solver="explicit", damping=0.1)
    assert (one - other).norm() < 1e-5 * (other - toy.start).norm()
    # One round of d + d^2 float64 numbers from each of the five clients left, against d a round.
    assert by_hessian.cost.rounds == 1 and by_hessian.cost.bytes_up == 5 * 8 * (SIZE + SIZE**2)
    assert by_products.cost.bytes_up == by_products.cost.rounds * 5 * 8 * SIZE
    assert by_products.contacted == by_hessian.contacted == {0, 1, 3, 4, 5}


def test_a_step_is_what_the_formula_says(tmp_path):
    toy = convex(tmp_path, penalty=0.0)
    g, H = toy.cohort(REQUEST).hessian(toy.start.double())
    [w] = unlearn(toy, toy.cohort(REQUEST), solver="explicit", damping=0.5)
    expected = toy.start.flat - torch.linalg.inv(H + 0.5 * torch.eye(SIZE)) @ g.flat
    torch.testing.assert_close(w.flat.double(), expected, rtol=0, atol=1e-6)


def test_a_model_is_yielded_after_every_round(tmp_path):
    toy = convex(tmp_path)
    cohort = toy.cohort(REQUEST)
    models = unlearn(toy, cohort, steps=2, iterations=3, tolerance=0.0)
    assert len(models) == cohort.cost.rounds == 2 * (1 + 3)
    assert models[0].equals(toy.start) and models[4].equals(models[3])  # a gradient alone moves nothing


def test_without_damping_the_step_explodes(tmp_path):
    # Softmax regression has flat directions: classes shift together, and border pixels are always black.
    toy = convex(tmp_path, penalty=0.0)
    [damped] = unlearn(toy, toy.cohort(REQUEST), solver="explicit", damping=0.1)
    [pseudo] = unlearn(toy, toy.cohort(REQUEST), solver="pseudo")
    assert (pseudo - toy.start).norm() > 10 * (damped - toy.start).norm()


def test_the_pseudo_inverse_drops_what_the_cutoff_says(tmp_path):
    toy = convex(tmp_path, penalty=0.0)
    g, H = toy.cohort(REQUEST).hessian(toy.start.double())
    [w] = unlearn(toy, toy.cohort(REQUEST), solver="pseudo", cutoff=0.1)
    values, vectors = torch.linalg.eigh(H)
    kept = values > 0.1 * values.max()
    expected = toy.start.flat - vectors[:, kept] @ (vectors[:, kept].T @ g.flat / values[kept])
    assert 0 < kept.sum() < SIZE
    torch.testing.assert_close(w.flat.double(), expected, rtol=0, atol=1e-6)


def test_models_too_large_for_a_hessian_are_refused_before_training(run_small, tmp_path):
    for name in ("newton_explicit", "newton_pseudo"):
        with pytest.raises(ValueError, match=r"newton with solver=\w+ makes a Hessian .* at most d=3000 parameters"):
            run_small(f"model=mlp strategies=[{name}]")
    assert not list(tmp_path.glob("store/trajectories/*"))


def test_it_runs_in_an_experiment(run_small):
    experiment, said = run_small("strategies=[newton,newton_explicit]")
    assert any("newton_explicit, seed 0: 1 rounds" in line for line in said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "cgg"}, "strategy.newton.solver is 'cgg', but must be one of cg, explicit, pseudo"),
        ({"damping": -1.0}, "strategy.newton.damping is -1.0, but must be at least 0"),
        ({"damping": float("inf")}, "strategy.newton.damping is inf, but must be a finite number"),
        ({"cutoff": 1.0}, r"strategy.newton.cutoff is 1.0, but must be in \[0, 1\)"),
        ({"tolerance": 1.5}, r"strategy.newton.tolerance is 1.5, but must be in \[0, 1\)"),
        ({"steps": 0}, "strategy.newton.steps is 0, but must be at least 1"),
        ({"iterations": 0}, "strategy.newton.iterations is 0, but must be at least 1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Newton.Config(**options)
