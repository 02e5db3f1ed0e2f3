"""Certified removal: the bound by hand, the residual on pooled data, and the way it behaves."""

import math
from types import SimpleNamespace

import pytest
import torch

from fedforget import data
from fedforget.routines import LocalConfig
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy
from strategies.certified_newton import CertifiedNewton, certificate

REQUEST = REQUESTS["client"]


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path, 1, LearningConfig(rounds=1), LocalConfig())


def unlearn(toy, cohort, **options):
    strategy = CertifiedNewton(CertifiedNewton.Config(**options))
    return list(strategy.unlearn(REQUEST, SimpleNamespace(final=toy.start), cohort))


def test_the_certificate_by_hand():
    # delta = 1.5 / e^2 gives c = sqrt(2 * 2) = 2; residual 0.3, sigma 0.6: epsilon = 2 * 0.3 / 0.6 = 1.
    assert certificate(0.3, 0.6, 1.5 / math.e**2) == pytest.approx(1)
    # The paper's epsilon 0.1 at delta 0.01 with sigma 1 allows a residual of 0.1 / sqrt(2 ln 150) = 0.03159.
    assert certificate(0.03159, 1.0, 0.01) == pytest.approx(0.1, rel=1e-3)


def test_the_residual_is_that_of_the_pooled_perturbed_objective(toy):
    cohort = toy.cohort(REQUEST)
    *_, w = unlearn(toy, cohort, epsilon=0.05, sigma=2.0, regularisation=30.0)
    federated = data.load(toy.task.data)
    index = torch.cat([federated.split(k, "retain", toy.seeds, (), REQUEST) for k in cohort.retained])
    inputs, labels = federated.inputs[index].double().flatten(1), federated.labels[index]
    b = 2.0 * torch.randn(650, generator=toy.seeds.torch("objective perturbation"), dtype=torch.float64)

    def objective(flat):
        logits = inputs @ flat[:640].view(10, 64).T + flat[640:]
        summed = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        return summed + 15 * flat @ flat + b @ flat

    residual = float(torch.func.grad(objective)(w.flat.double()).norm())  # at the float32 model that is published
    epsilon = certificate(residual, 2.0, 0.01)
    assert epsilon <= 0.05
    assert cohort.notes == [f"certified: epsilon={epsilon:.3g} at delta=0.01, residual {residual:.3g}"]


def test_the_perturbation_is_that_of_the_trajectory_and_scales_the_model_away(toy):
    options = {"regularisation": 30.0}
    calm, again, noisy = (unlearn(toy, toy.cohort(REQUEST), sigma=s, **options)[-1] for s in (1.0, 1.0, 10.0))
    assert calm.equals(again)
    residual = [toy.cohort(REQUEST).gradient(w.double()).norm() for w in (calm, noisy)]
    assert residual[0] < residual[1]  # more noise is further from the unperturbed minimum


def test_a_certificate_that_is_not_reached_is_said_loudly(toy):
    cohort = toy.cohort(REQUEST)
    models = unlearn(toy, cohort, steps=1, iterations=1)
    assert len(models) == cohort.cost.rounds == 3  # gradient, one product, and the gradient that measures the residual
    assert cohort.notes[0].startswith("NOT certified (asked for 0.1): epsilon=")


def test_it_runs_on_softmax_regression_only(run_small, tmp_path):
    with pytest.raises(ValueError, match="certified_newton needs model=linear, whose loss is convex, not 'mlp'"):
        run_small("model=mlp strategies=[certified_newton]")
    assert not list(tmp_path.glob("store/trajectories/*"))
    _, said = run_small("strategies=[certified_newton]")
    assert any("note: certified_newton, seed 0: certified: epsilon=" in line for line in said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "certified_newton.epsilon=0.0 must be finite and positive"),
        ({"sigma": float("inf")}, "certified_newton.sigma=inf must be finite and positive"),
        ({"delta": 1.0}, "certified_newton.delta=1.0 must lie strictly between 0 and 1"),
        ({"steps": 0}, "certified_newton.steps=0 must be at least 1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CertifiedNewton.Config(**options)
