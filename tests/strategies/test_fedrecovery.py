"""FedRecovery against two rounds by hand, the weights p_i and the noise that public code gets wrong."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fedforget.cohort import Cohort
from fedforget.exchange import Card, Replies, Reply
from fedforget.history import History, HistoryConfig, Recording
from fedforget.ledger import Cost
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.routines import LocalConfig
from fedforget.seeds import Seeds
from strategies.fedrecovery import FedRecovery, noise_scale

LAYOUT = Layout(("w",), ((2,),))
WEIGHTS = [{0: 10, 1: 30}, {1: 30, 2: 20}, {0: 10, 1: 20, 2: 20}]
UPDATES: list[dict[int, tuple[float, float]]] = [
    {0: (4.0, 0.0), 1: (0.0, 4.0)},
    {1: (2.0, 2.0), 2: (2.0, 2.0)},
    {0: (5.0, 0.0), 1: (0.0, 0.0), 2: (0.0, 0.0)},
]


def point(*values: float) -> Params:
    return Params(torch.tensor(values), LAYOUT)


def unlearn(
    folder: Path, config: FedRecovery.Config, targets: tuple[int, ...] = (0,), decay: float = 1.0, rounds: int = 3
) -> list[float]:
    strategy = FedRecovery(config)
    recording = Recording(folder, LAYOUT, HistoryConfig("all"), (), Seeds(0))
    recording.begin(point(0, 0))
    for round, (weights, updates) in enumerate(zip(WEIGHTS, UPDATES, strict=True), start=1):
        replies = Replies(Reply(k, point(*updates[k]), weights[k], 0.0) for k in weights)
        recording.add(round, point(0, 0), replies, [], last=round == 3)
    recording.finish(3, Cost())
    history = History(recording, rounds, point(10, 20), strategy.card, frozenset(), targets)
    cohort = SimpleNamespace(task=SimpleNamespace(local=LocalConfig(lr_decay=decay)), seeds=Seeds(4), notes=[])
    [w] = strategy.unlearn(UnlearningRequest("client", targets), history, cast(Cohort, cohort))
    # The retrained model gets no noise, and who reads a report must know.
    assert len(cohort.notes) == (config.distance > 0) and all("none to the oracle" in note for note in cohort.notes)
    return w.flat.tolist()


# Mean updates: (4, 0)/4 + 3 (0, 4)/4 = (1, 3); (2, 2); (5, 0)/5 = (1, 0): squares 10, 8 and 1.
# What a round without client 0 adds to that round's step (the mean of the others minus its own, by its share):
# round 1: ((0, 4) - (4, 0)) / 4 = (-1, 1); round 2: nothing; round 3: ((0, 0) - (5, 0)) / 5 = (-1, 0).


def test_residuals_are_weighted_by_the_gradients(tmp_path: Path) -> None:
    # (10 (-1, 1) + 1 (-1, 0)) / 19 = (-11, 10) / 19; without the weights p_i it would be (-2, 1).
    assert unlearn(tmp_path, FedRecovery.Config()) == pytest.approx([10 - 11 / 19, 20 + 10 / 19])


def test_the_residual_is_what_a_round_without_the_target_adds(tmp_path: Path) -> None:
    # One round alone has p = 1: the mean update (1, 3) becomes (0, 4), that of client 1, to the last digit.
    assert unlearn(tmp_path, FedRecovery.Config(), rounds=1) == [9, 21]


def test_a_falling_learning_rate_does_not_hide_gradients(tmp_path: Path) -> None:
    # Updates of round 3 came from 1/4 of the learning rate, so the gradient's square is 16, and that of round 2 is 32.
    # (10 (-1, 1) + 16 (-1, 0)) / (10 + 32 + 16) = (-26, 10) / 58
    assert unlearn(tmp_path, FedRecovery.Config(), decay=0.5) == pytest.approx([10 - 26 / 58, 20 + 10 / 58])


def test_a_client_that_never_took_part_leaves_the_model(tmp_path: Path) -> None:
    assert unlearn(tmp_path, FedRecovery.Config(), (7,)) == [10, 20]


def test_several_targets_count_as_one(tmp_path: Path) -> None:
    # Client 1 and 2 leave: round 1: 3/4 ((4, 0) - (0, 4)) = (3, -3); nobody stays in round 2; round 3:
    # 4/5 ((5, 0) - (0, 0)) = (4, 0): (10 (3, -3) + (4, 0)) / 19 = (34, -30) / 19
    assert unlearn(tmp_path, FedRecovery.Config(), (1, 2)) == pytest.approx([10 + 34 / 19, 20 - 30 / 19])


def test_the_noise_scale_gives_the_guarantee() -> None:
    # Gaussians at distance d have a Renyi divergence of a rho at order a, rho = d^2 / (2 sigma^2), and that implies
    # (rho + 2 sqrt(rho log(1/beta)), beta): Bun and Steinke 2016. So epsilon must come out again.
    for d, epsilon, beta in ((1.0, 1.0, 1e-5), (3.0, 0.5, 1e-2)):
        rho = d**2 / (2 * noise_scale(d, epsilon, beta) ** 2)
        assert rho + 2 * math.sqrt(rho * math.log(1 / beta)) == pytest.approx(epsilon)


def test_noise_is_drawn_from_the_seeds(tmp_path: Path) -> None:
    quiet = unlearn(tmp_path, FedRecovery.Config())
    noise = torch.tensor(unlearn(tmp_path, FedRecovery.Config(distance=2.0))) - torch.tensor(quiet)
    drawn = torch.randn(2, generator=Seeds(4).torch("fedrecovery"))
    assert torch.allclose(noise, noise_scale(2.0, 1.0, 1e-5) * drawn, atol=1e-4)


def test_what_it_assumes() -> None:
    assert FedRecovery.scopes == {"client"}
    assert FedRecovery().card == Card(records="all", storage="updates", retained_online=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distance": -1.0}, "strategy.fedrecovery.distance is -1.0, but must be at least 0"),
        ({"epsilon": 0.0}, "strategy.fedrecovery.epsilon is 0.0, but must be above 0"),
        ({"beta": 1.0}, r"strategy.fedrecovery.beta is 1.0, but must be in \(0, 1\)"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedRecovery.Config(**fields)
