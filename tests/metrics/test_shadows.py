"""U-LiRA and bounds on epsilon against Gaussians and coins whose answers are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logit
from scipy.stats import binomtest, norm
from torch import Tensor

from fedforget.metrics.shadows import (
    Attack,
    epsilon_by_coin,
    epsilon_of_errors,
    epsilon_over_models,
    largest_epsilon,
    ulira,
    ulira_attack,
)

SEEDS = 200


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def against_oracle(unlearned: Tensor, oracle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of `ulira`: models of both sides, paired by seed."""
    seeds = len(unlearned)
    side = torch.arange(2 * seeds) < seeds
    return torch.cat([unlearned, oracle]), side[:, None].expand(-1, unlearned.shape[1]), torch.arange(seeds).repeat(2)


def attack(unlearned: Tensor, oracle: Tensor) -> Attack:
    return ulira_attack(*against_oracle(unlearned, oracle), rng())


def coins(seeds: int, candidates: int) -> Tensor:
    return torch.rand(seeds, candidates, generator=torch.Generator().manual_seed(7)) < 0.5


# U-LiRA


def test_the_ratio_is_that_of_gaussians_fitted_to_other_seeds() -> None:
    u, o = normal(17, 2), 2 + 3 * normal(17, 2, seed=1)
    ratio = ulira(*against_oracle(u, o))
    others = np.arange(17) != 5
    for row, side in ((5, u), (22, o)):  # both models of seed 5
        for x in range(2):
            sides = [values[others, x].numpy() for values in (u, o)]
            inside, outside = (norm.logpdf(float(side[5, x]), s.mean(), s.std(ddof=1)) for s in sides)
            assert float(ratio[row, x]) == pytest.approx(inside - outside, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_gaussians_that_differ_by_a_shift(shift: float) -> None:
    """The best test of N(d, 1) against N(0, 1) is right in Phi(d / 2) of the cases, and its AUC is Phi(d / sqrt 2). At
    no shift they are a coin's 1/2, and the rate is that of false positives."""
    found = attack(shift + normal(SEEDS, 50), normal(SEEDS, 50, seed=1))
    expected = norm.cdf(shift / 2), norm.cdf(shift / math.sqrt(2)), norm.sf(norm.ppf(0.99) - shift)
    for name, value in zip(("accuracy", "auc", "tpr"), expected, strict=True):
        interval = getattr(found, name)
        assert interval.low < value < interval.high, name
        assert interval.high - interval.low < 0.12
        assert interval.mean == pytest.approx(value, abs=0.02)
    assert found.worst == pytest.approx(expected[0], abs=0.03)  # all examples are alike


def test_gaussians_that_differ_by_their_spread() -> None:
    """N(0, 1) against N(0, 4): densities are equal at c with c^2 = 8 ln 2 / 3; no threshold on the margin sees it."""
    c = math.sqrt(8 * math.log(2) / 3)
    expected = (2 * norm.cdf(c) - 1 + 2 * norm.sf(c / 2)) / 2
    found = attack(normal(SEEDS, 50), 2 * normal(SEEDS, 50, seed=1))
    assert found.accuracy.mean == pytest.approx(expected, abs=0.015)


def test_the_scale_of_an_example_does_not_matter() -> None:
    """Each example has its own Gaussians: 1000 nats of hardness cancel. Invariant to a rounding error."""
    u, o = 1 + normal(20, 8), normal(20, 8, seed=1)
    hardness, scale = 1000 * normal(8, seed=2), torch.arange(1.0, 9.0)
    plain, moved = (ulira(*against_oracle(*sides)) for sides in ((u, o), (scale * u + hardness, scale * o + hardness)))
    assert torch.allclose(plain, moved, atol=1e-6)


def test_a_few_examples_that_are_told_apart() -> None:
    """Ten of a hundred examples are 3 apart: Phi(1.5) of the calls are right on these, half on the others."""
    shift = 3.0 * (torch.arange(100) < 10)
    found = attack(shift + normal(SEEDS, 100), normal(SEEDS, 100, seed=1))
    assert found.worst == pytest.approx(norm.cdf(1.5), abs=0.02)
    assert found.accuracy.mean == pytest.approx(0.9 * 0.5 + 0.1 * norm.cdf(1.5), abs=0.01)


def test_the_worst_tenth_of_a_perfect_method_is_no_better_than_a_coin() -> None:
    """Though the best of 2000 examples are right in far more cases by chance."""
    u, o = normal(40, 2000), normal(40, 2000, seed=1)
    arguments = against_oracle(u, o)
    ratio = ulira(*arguments)
    right = ((ratio > 0) == arguments[1]).double().mean(0)
    assert float(right.topk(200).values.mean()) > 0.58
    assert attack(u, o).worst == pytest.approx(0.5, abs=0.02)


def test_noise_that_all_examples_of_a_model_share_widens_the_interval() -> None:
    """Examples of one model are not independent: 200 of them are worth little more than one."""
    alone = attack(normal(64, 200), normal(64, 200, seed=1)).accuracy
    together = attack(normal(64, 1) + 0.1 * normal(64, 200), normal(64, 1, seed=1) + 0.1 * normal(64, 200, seed=2))
    assert together.accuracy.high - together.accuracy.low > 5 * (alone.high - alone.low)
    assert together.accuracy.low < 0.5 < together.accuracy.high


def test_a_destroyed_model_is_found_and_two_of_them_are_not() -> None:
    destroyed = torch.full((20, 5), -50.0)
    found = attack(destroyed, normal(20, 5))
    assert found.accuracy.mean == found.auc.mean == found.tpr.mean == 1
    same = attack(destroyed, destroyed)
    assert same.accuracy.mean == same.auc.mean == 0.5 and same.tpr.mean == 0


def test_a_model_that_answers_nan_has_no_figures() -> None:
    u = normal(20, 5)
    u[3, 2] = torch.nan
    found = attack(u, normal(20, 5, seed=1))
    assert all(math.isnan(part.mean) for part in (found.accuracy, found.auc, found.tpr)) and math.isnan(found.worst)
    assert math.isnan(epsilon_over_models(torch.full((32, 2), math.inf), normal(32, 2)))
    assert math.isnan(epsilon_by_coin(torch.full((32, 2), math.nan), coins(32, 2)))


def test_by_the_coin_a_method_is_compared_with_itself() -> None:
    """However it trains: 5 nats away from any oracle it is right in half of the calls, and 1 nat of trace shows."""
    included = coins(SEEDS, 60)
    arguments = included, torch.arange(SEEDS), rng()
    clean = ulira_attack(normal(SEEDS, 60) - 5, *arguments)
    assert clean.accuracy.low < 0.5 < clean.accuracy.high and clean.auc.mean == pytest.approx(0.5, abs=0.02)
    leaky = ulira_attack(normal(SEEDS, 60) - 5 + included, *arguments)
    assert leaky.accuracy.mean == pytest.approx(norm.cdf(0.5), abs=0.02)
    assert leaky.auc.mean == pytest.approx(norm.cdf(0.5**0.5), abs=0.02)


def test_a_candidate_whose_coins_fell_alike_is_left_out() -> None:
    included = coins(32, 5)
    included[:, 2] = True
    margins, seeds = normal(32, 5) + included, torch.arange(32)
    assert ulira(margins, included, seeds)[:, 2].isnan().all()
    kept = torch.tensor([0, 1, 3, 4])
    assert ulira_attack(margins, included, seeds, rng()) == ulira_attack(
        margins[:, kept], included[:, kept], seeds, rng()
    )
    with pytest.raises(ValueError, match="no example has two models on each side"):
        ulira_attack(margins[:, 2:3], included[:, 2:3], seeds, rng())


def test_too_few_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="15 seeds are too few, use at least 16"):
        attack(normal(15, 3), normal(15, 3, seed=1))
    with pytest.raises(ValueError, match="31 seeds are too few, use at least 32"):
        epsilon_over_models(normal(31, 3), normal(31, 3))
    with pytest.raises(ValueError, match="31 seeds are too few, use at least 32"):
        epsilon_by_coin(normal(31, 3), coins(31, 3))
    with pytest.raises(ValueError, match=r"\(40, 3\), unlearned \(40, 2\)"):
        ulira(normal(40, 3), coins(40, 2), torch.arange(40))


# Epsilon


@pytest.mark.parametrize(("models", "most"), [(10, 0.8), (20, 1.6), (50, 2.6), (100, 3.3), (500, 4.9)])
def test_what_can_be_shown_at_most(models: int, most: float) -> None:
    """No error among N has the upper end 1 - 0.025^(1/N), on both sides."""
    end = 1 - 0.025 ** (1 / models)
    found = epsilon_of_errors(0, models, 0, models)
    assert found == pytest.approx(math.log((1 - 1e-5 - end) / end)) == pytest.approx(most, abs=0.05)


def test_epsilon_of_errors_by_hand() -> None:
    """3 of 50 and 20 of 80 errors; the ends are scipy's, and the rarer error is in the denominator."""
    fpr, fnr = (binomtest(k, n).proportion_ci(0.95, "exact").high for k, n in ((3, 50), (20, 80)))
    expected = math.log((1 - 0.01 - fnr) / fpr)
    assert epsilon_of_errors(3, 50, 20, 80, delta=0.01) == pytest.approx(expected)
    assert epsilon_of_errors(20, 80, 3, 50, delta=0.01) == pytest.approx(expected)
    assert epsilon_of_errors(25, 50, 40, 80) == epsilon_of_errors(50, 50, 80, 80) == 0
    with pytest.raises(ValueError, match="60 of 50"):
        epsilon_of_errors(60, 50, 0, 50)
    with pytest.raises(ValueError, match="delta=1 must"):
        epsilon_of_errors(0, 50, 0, 50, delta=1)


def test_models_that_lie_apart_show_the_most() -> None:
    """32 seeds: two tests on 16 seeds a side, each at 97.5 %: 1 - 0.0125^(1/16) is the upper end of no error."""
    end = 1 - 0.0125 ** (1 / 16)
    assert largest_epsilon(32) == pytest.approx(math.log((1 - 1e-5 - end) / end))
    assert epsilon_over_models(9 + normal(32, 4), normal(32, 4, seed=1)) == pytest.approx(largest_epsilon(32))
    assert largest_epsilon(256) == pytest.approx(3.36, abs=0.01)  # what level epsilon can show


def test_one_example_among_many_and_a_little_of_each() -> None:
    """The two tests of the second half: the example that the first half chose, and the sum over all."""
    one = 8.0 * (torch.arange(300) == 123)
    assert epsilon_over_models(one + normal(64, 300), normal(64, 300, seed=1)) > 1.5
    assert epsilon_over_models(0.5 + normal(64, 300), normal(64, 300, seed=1)) > 1.5


def test_a_bound_on_epsilon_holds_in_19_of_20_runs() -> None:
    """Randomised response with e^1 : 1 odds is 1-indistinguishable, and no test shows more. 25 examples to choose
    from; at 95 % at most 2 of 40 runs are expected above 1, and 6 or more have probability 0.01."""
    generator = torch.Generator().manual_seed(0)

    def answers(share: float) -> Tensor:
        return (torch.rand(64, 25, generator=generator) < share).double() + 1e-3 * torch.rand(
            64, 25, generator=generator
        )

    share = math.e / (1 + math.e)
    one = torch.arange(25) == 0  # the other examples say nothing
    bounds = []
    for _ in range(40):
        u, o = answers(0.5), answers(0.5)
        u[:, one], o[:, one] = answers(share)[:, one], answers(1 - share)[:, one]
        bounds.append(epsilon_over_models(u, o, delta=0))
    assert sum(bound > 1 for bound in bounds) < 6
    assert max(bounds) > 0.2


def test_a_perfect_method_shows_nothing() -> None:
    found = [epsilon_over_models(normal(64, 40, seed=2 * k), normal(64, 40, seed=2 * k + 1)) for k in range(20)]
    assert sum(bound > 0 for bound in found) <= 3  # 1 of 20 expected at most


def test_epsilon_by_coin_counts_the_calls_of_half_of_the_seeds() -> None:
    """Candidates that give themselves away: 32 of 64 models, 20 candidates each with half of the coins on each side in
    every model, so that all calls are right; the lower end of 640 of 640 is 0.05^(1/640)."""
    generator = torch.Generator().manual_seed(0)
    included = torch.stack([torch.randperm(20, generator=generator) < 10 for _ in range(64)])
    found = epsilon_by_coin(normal(64, 20) + 20 * included, included)
    assert found == pytest.approx(float(logit(0.05 ** (1 / 640))))


def test_epsilon_by_coin_of_a_method_without_trace_is_0() -> None:
    found = [epsilon_by_coin(normal(32, 50, seed=k) - 5, coins(64, 50)[32 * (k % 2) :][:32]) for k in range(20)]
    assert sum(bound > 0 for bound in found) <= 3
