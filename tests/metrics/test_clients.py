"""Per-client accuracy, its spread against the oracle, and the share of clients harmed, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedforget.metrics import Outputs
from fedforget.metrics.clients import client_accuracies, share_harmed, side_effects


def test_client_accuracies_by_owner_without_the_test_set() -> None:
    # Logits always say class 1. Client 4 has labels 1, 0, 1, 1; client 2 has 0, and the global test set 1.
    labels = torch.tensor([1, 0, 1, 0, 1, 1])
    clients = torch.tensor([4, 4, 4, 2, -1, 4])
    accuracies = client_accuracies(Outputs(torch.tensor([[0.0, 1.0]] * 6), labels, clients))
    assert list(accuracies.items()) == [(2, 0), (4, 0.75)]


def test_a_destroyed_model_has_no_accuracy_on_any_client() -> None:
    outputs = Outputs(torch.full((2, 2), torch.nan), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert all(math.isnan(value) for value in client_accuracies(outputs).values())
    assert math.isnan(share_harmed([{0: math.nan, 1: 0.5}] * 2, [{0: 0.5, 1: 0.5}] * 2))


def test_side_effects_by_hand() -> None:
    # Accuracies 0, 1/2, 1 against 1/2 each, in another order of clients: D = -1/2, 0, 1/2. Mean 0, sd sqrt(1/6), worst
    # ceil(3/10) = 1 client; Jain (3/2)^2 / (3 (1/4 + 1)) = 2.25 / 3.75.
    spread = side_effects({0: 0.0, 1: 0.5, 2: 1.0}, {2: 0.5, 1: 0.5, 0: 0.5})
    assert spread == pytest.approx({"mean": 0, "worst_decile": -0.5, "min": -0.5, "sd": 1 / 6**0.5, "jain": 0.6})


def test_the_worst_decile_is_a_tenth_rounded_up() -> None:
    # D = -k/100 for k < n. n = 10: the worst is -.09; n = 11: -.10 and -.09; n = 20: -.19 and -.18.
    for n, expected in ((10, -0.09), (11, -0.095), (20, -0.185)):
        spread = side_effects({k: 1 - k / 100 for k in range(n)}, dict.fromkeys(range(n), 1.0))
        assert spread["worst_decile"] == pytest.approx(expected)
        assert spread["min"] == pytest.approx(-(n - 1) / 100)


def test_losing_uniformly_is_even_but_a_loss() -> None:
    spread = side_effects({0: 0.25, 1: 0.25}, {0: 0.75, 1: 0.75})
    assert spread == {"mean": -0.5, "worst_decile": -0.5, "min": -0.5, "sd": 0, "jain": 1}


def test_jain_by_hand() -> None:
    # One of four served: 1 / (4 * 1). All served alike: 1. Nobody served: 1.
    oracle = dict.fromkeys(range(4), 0.5)
    assert side_effects({0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0}, oracle)["jain"] == 0.25
    assert side_effects(oracle, oracle)["jain"] == 1
    assert side_effects(dict.fromkeys(range(4), 0.0), oracle)["jain"] == 1


@given(st.dictionaries(st.integers(0, 99), st.tuples(*[st.integers(0, 8)] * 2), min_size=1, max_size=40))
def test_side_effects_keep_their_order_and_ranges(pairs: dict[int, tuple[int, int]]) -> None:
    spread = side_effects({k: a / 8 for k, (a, _) in pairs.items()}, {k: b / 8 for k, (_, b) in pairs.items()})
    assert spread["min"] <= spread["worst_decile"] <= spread["mean"] + 1e-12
    assert 1 / len(pairs) - 1e-12 <= spread["jain"] <= 1 + 1e-12 and 0 <= spread["sd"] <= 1


def test_clients_must_be_the_same() -> None:
    with pytest.raises(ValueError, match=r"clients \[0, 1\] of the model and \[0, 2\] of the oracle"):
        side_effects({0: 1.0, 1: 1.0}, {0: 1.0, 2: 1.0})
    with pytest.raises(ValueError, match=r"clients \[\] of the model"):
        side_effects({}, {})
    with pytest.raises(ValueError, match=r"clients \[0\] of the model and \[0, 1\]"):
        share_harmed([{0: 1.0, 1: 1.0}, {0: 1.0}], [{0: 1.0, 1: 1.0}] * 2)


def seeds(*differences: tuple[float, ...]) -> tuple[list[dict[int, float]], list[dict[int, float]]]:
    """Models and oracles of K seeds, from each client's K differences; the oracles differ from seed to seed."""
    oracle = [{k: 0.5 + i / 16 for k in range(len(differences))} for i in range(len(differences[0]))]
    model = [{k: a + differences[k][i] for k, a in accuracies.items()} for i, accuracies in enumerate(oracle)]
    return model, oracle


def test_share_harmed_by_hand() -> None:
    # With 2 degrees of freedom P(T <= t) = 1/2 + t / (2 sqrt(2 + t^2)). D = -.3, -.2, -.1 has mean -.2, sd .1 and
    # t = -2 sqrt 3, so p = 1/2 - sqrt(12) / (2 sqrt 14) = .0371 (two-sided it would be .074): harmed, alone.
    harmed = (-0.3, -0.2, -0.1)
    assert share_harmed(*seeds(harmed)) == 1
    assert share_harmed(*seeds(harmed), alpha=0.0372) == 1
    assert share_harmed(*seeds(harmed), alpha=0.037) == 0
    # Beside a client with p = 1/2 Benjamini-Hochberg makes it 2 * .0371 = .074.
    assert share_harmed(*seeds(harmed, (-0.2, 0.0, 0.2))) == 0
    assert share_harmed(*seeds(harmed, (-0.2, 0.0, 0.2)), alpha=0.075) == 0.5
    # Two such clients: the larger p of two is multiplied by 2/2, and the smaller is never adjusted above it.
    assert share_harmed(*seeds(harmed, harmed)) == 1
    # Better than the oracle is no harm.
    assert share_harmed(*seeds((0.3, 0.2, 0.1))) == 0


def test_differences_without_variance_are_certain() -> None:
    # Quarters are exact in binary, so the variance is exactly 0. p = 0, 1, 1: one of three.
    assert share_harmed(*seeds((-0.25, -0.25), (0.0, 0.0), (0.25, 0.25))) == pytest.approx(1 / 3)
    # Tenths are not, and the variance is that of rounding.
    assert share_harmed(*seeds((-0.1,) * 3, (0.0,) * 3, (0.1,) * 3)) == pytest.approx(1 / 3)


def test_oracles_harm_nobody() -> None:
    _, oracle = seeds((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    assert share_harmed(oracle, oracle) == 0


def test_one_seed_shows_no_harm() -> None:
    assert math.isnan(share_harmed(*seeds((-0.5,))))


def test_share_harmed_refuses_what_it_cannot_pair() -> None:
    model, oracle = seeds((0.0, 0.0))
    with pytest.raises(ValueError, match="1 models and 2 oracles"):
        share_harmed(model[:1], oracle)
    with pytest.raises(ValueError, match="alpha=1.5"):
        share_harmed(model, oracle, alpha=1.5)
