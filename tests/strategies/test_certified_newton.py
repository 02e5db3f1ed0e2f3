"""Certified removal: the bound by hand, the residual on pooled data, and the way it behaves."""

import math
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import norm

from fedforget import data
from fedforget.params import Params
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


@pytest.mark.parametrize("delta", [1e-6, 0.01, 0.2])
def test_the_certificate_holds_for_the_gaussian_it_is_about(delta):
    # Removal with residual u has the distribution of the exact minimiser whose b is shifted by u, and w -> b is one to
    # one: so epsilon must bound how far N(0, sigma^2) and N(r, sigma^2) can be told apart, for every r. The exact delta
    # of that pair is Phi(t/2 - epsilon/t) - e^epsilon Phi(-t/2 - epsilon/t), t = r / sigma (Balle and Wang 2018).
    def exact(epsilon, t):
        return norm.cdf(t / 2 - epsilon / t) - math.exp(epsilon) * norm.cdf(-t / 2 - epsilon / t)

    for t in (0.001, 0.01, 0.1, 0.2, 0.25, 0.3):
        epsilon = certificate(3 * t, 3.0, delta)
        assert 0 < exact(epsilon, t) <= delta or epsilon > 1
    # The t that epsilon = 1 allows is safe as well; the one that epsilon = 10 would allow is not.
    assert exact(1.0, 1 / certificate(1.0, 1.0, delta)) <= delta
    assert exact(10.0, 10 / certificate(1.0, 1.0, 0.01)) == pytest.approx(0.0334, abs=1e-4)


@pytest.mark.parametrize("regularisation", [3.0, 30.0, 300.0])
def test_the_residual_bounds_the_distance_to_the_exact_minimiser(toy, regularisation):
    # L_b is lambda-strongly convex, so ||w - w*|| <= r / lambda, and its curvature is at most L: ||w - w*|| >= r / L.
    cohort = toy.cohort(REQUEST)
    *_, w = unlearn(toy, cohort, epsilon=1.0, sigma=5.0, regularisation=regularisation)
    residual, n = perturbed_gradient(toy, w, "retain", cohort.retained, 5.0, regularisation)
    best = w.double()
    for _ in range(8):  # Newton's method from nearby
        _, H = toy.cohort(REQUEST).hessian(best)
        H = n * H + regularisation * torch.eye(650, dtype=torch.float64)
        g = perturbed_gradient(toy, best, "retain", cohort.retained, 5.0, regularisation)[0]
        best = best - Params(torch.linalg.solve(H, g), best.layout)
    assert g.norm() < 1e-8
    distance, L = (w.double() - best).norm(), float(torch.linalg.eigvalsh(H)[-1])
    assert 0.5 * residual.norm() / L < distance <= residual.norm() / regularisation


def perturbed_gradient(toy, w, split, clients, sigma, regularisation):
    """grad L_b = sum grad l + lambda w + b on the pooled data of ``clients``, and how many examples that is."""
    federated = data.load(toy.task.data)
    request = REQUEST if split == "retain" else None
    index = torch.cat([federated.split(k, split, toy.seeds, (), request) for k in clients])
    inputs, labels = federated.inputs[index].double().flatten(1), federated.labels[index]
    b = sigma * torch.randn(650, generator=toy.seeds.torch("objective perturbation"), dtype=torch.float64)
    w = w.flat.double()
    errors = (inputs @ w[:640].view(10, 64).T + w[640:]).softmax(1) - torch.nn.functional.one_hot(labels, 10)
    return torch.cat([(errors.T @ inputs).flatten(), errors.sum(0)]) + regularisation * w + b, len(labels)


def test_the_residual_is_that_of_the_pooled_perturbed_objective(toy):
    cohort = toy.cohort(REQUEST)
    *_, w = unlearn(toy, cohort, epsilon=0.05, sigma=2.0, regularisation=30.0)
    # At the float32 model that is published.
    residual = float(perturbed_gradient(toy, w, "retain", cohort.retained, 2.0, 30.0)[0].norm())
    epsilon = certificate(residual, 2.0, 0.01)
    assert epsilon <= 0.05
    assert cohort.notes == [f"certified: epsilon={epsilon:.3g} at delta=0.01, residual {residual:.3g}, sigma=2"]


def test_learning_descends_the_perturbed_objective(tmp_path):
    # One step on all data a round: the mean over clients of (1/n_k) sum grad l + (lambda w + b) / n, weighted by n_k /
    # n, is grad L_b / n, so a round is w - eta grad L_b / n. The recipe's own weight decay plays no part.
    local = LocalConfig(lr=0.5, steps=1, batch_size=300, weight_decay=0.7)
    toy = Toy(tmp_path, 1, LearningConfig(rounds=2), local)
    strategy, cohort = CertifiedNewton(CertifiedNewton.Config(sigma=20.0, regularisation=300.0)), toy.cohort()
    w, asked = toy.start, cohort.federation.clients
    for learned in strategy.learn(cohort, toy.start, 2):
        g, n = perturbed_gradient(toy, w, "train", asked, 20.0, 300.0)
        torch.testing.assert_close(learned.flat.double(), w.flat.double() - 0.5 * g / n, rtol=0, atol=1e-6)
        w = learned
    assert cohort.contacted == set(asked) and cohort.cost.bytes_down == 2 * 6 * 2 * 4 * 650  # w and b


def test_learning_ends_at_the_minimum_that_the_certificate_speaks_of(tmp_path):
    # Full-batch rounds converge to the minimum of L_b on everybody's data (residual 1760 at the start, 3 at the end).
    toy = Toy(tmp_path, 1, LearningConfig(rounds=1), LocalConfig(lr=0.5, steps=1, batch_size=300))
    options = {"sigma": 10.0, "regularisation": 300.0}
    *_, w = CertifiedNewton(CertifiedNewton.Config(**options)).learn(toy.cohort(), toy.start, 60)
    start, end = (perturbed_gradient(toy, at, "train", range(6), 10.0, 300.0)[0].norm() for at in (toy.start, w))
    assert end < 3e-3 * start
    # Unlearning starts there with the same b: its first residual is what the leaving client's examples pulled. With
    # another b (here -b) it would have to take back the learned perturbation as well.
    cohort = toy.cohort(REQUEST)
    list(CertifiedNewton(CertifiedNewton.Config(**options)).unlearn(REQUEST, SimpleNamespace(final=w), cohort))
    pull = perturbed_gradient(toy, w, "retain", cohort.retained, 10.0, 300.0)[0].norm()
    other = perturbed_gradient(toy, w, "retain", cohort.retained, -10.0, 300.0)[0].norm()
    assert pull < 0.5 * other and cohort.notes[0].startswith("certified")


def test_the_perturbation_is_that_of_the_trajectory_and_scales_the_model_away(toy):
    options = {"regularisation": 30.0}
    calm, again, noisy = (unlearn(toy, toy.cohort(REQUEST), sigma=s, **options)[-1] for s in (1.0, 1.0, 10.0))
    assert calm.equals(again)
    residual = [toy.cohort(REQUEST).gradient(w.double()).norm() for w in (calm, noisy)]
    assert residual[0] < residual[1]  # more noise is further from the unperturbed minimum


def test_no_step_follows_the_certificate(toy):
    # From a model that is certified already: one round, which measures its residual, and the model as it is.
    options = {"regularisation": 30.0, "epsilon": 0.5}
    *_, certified = unlearn(toy, toy.cohort(REQUEST), **options)
    cohort, history = toy.cohort(REQUEST), SimpleNamespace(final=certified)
    [w] = CertifiedNewton(CertifiedNewton.Config(**options)).unlearn(REQUEST, history, cohort)
    assert w.equals(certified) and cohort.cost.rounds == 1


def test_a_certificate_that_is_not_reached_is_said_loudly(toy):
    cohort = toy.cohort(REQUEST)
    models = unlearn(toy, cohort, steps=1, iterations=1)
    assert len(models) == cohort.cost.rounds == 3  # gradient, one product, and the gradient that measures the residual
    assert cohort.notes[0].startswith("NOT certified (asked for 0.1): epsilon=")


def test_it_runs_on_softmax_regression_only(run_small, tmp_path):
    with pytest.raises(ValueError, match="certified_newton needs model=linear, whose loss is convex, not 'mlp'"):
        run_small("model=mlp strategies=[certified_newton]")
    with pytest.raises(ValueError, match="certified_newton learns by fedavg; learning.learner is 'fedadam'"):
        run_small("learning.learner=fedadam strategies=[certified_newton]")
    assert not list(tmp_path.glob("store/trajectories/*"))
    _, said = run_small("strategies=[certified_newton]")
    assert any("learned certified_newton's own original, seed 0: 3 rounds" in line for line in said)
    assert any("note: certified_newton, seed 0: certified: epsilon=" in line for line in said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, r"strategy.certified_newton.epsilon is 0.0, but must be in \(0, 1\]"),
        ({"epsilon": 2.0}, r"strategy.certified_newton.epsilon is 2.0, but must be in \(0, 1\]"),
        ({"sigma": float("inf")}, "strategy.certified_newton.sigma is inf, but must be a finite number"),
        ({"delta": 1.0}, r"strategy.certified_newton.delta is 1.0, but must be in \(0, 1\)"),
        ({"steps": 0}, "strategy.certified_newton.steps is 0, but must be at least 1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CertifiedNewton.Config(**options)
