"""Single-gradient unlearning against sums by hand, and against the federated retrain."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fedforget.cohort import Cohort
from fedforget.exchange import Card, Replies, Reply
from fedforget.history import History, HistoryConfig, Recording
from fedforget.ledger import Cost
from fedforget.metrics.unrolling import unlearning_error, verification_error
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.routines import LocalConfig, Routine, gradient
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig
from fedforget.testing import REQUESTS, Toy, serve
from strategies.retrain import Retrain
from strategies.unrolling import Unrolling

LAYOUT = Layout(("w",), ((2,),))
WEIGHTS = [{0: 10, 1: 30}, {1: 30, 2: 10}, {0: 10, 1: 10}]
MODELS = [(0.0, 0.0), (1.0, 1.0), (2.0, 4.0), (3.0, 5.0)]


def point(*values: float) -> Params:
    return Params(torch.tensor(values), LAYOUT)


class FakeCohort:
    """Answers with a gradient of (4, -8) over ``forgotten`` examples of client 0."""

    def __init__(self, local: LocalConfig, forgotten: int = 10) -> None:
        self.task, self.targets = SimpleNamespace(local=local), (0,)
        self.forgotten, self.asked = forgotten, []

    def train(self, model: Params, clients: tuple[int, ...], *, routine: Routine, split: str) -> Replies:
        self.asked.append((model.flat.tolist(), clients, routine, split))
        return Replies([Reply(0, point(4, -8), self.forgotten, 0.0)])

    def hold(self, *vectors: Params) -> None:
        """What is held is billed by a real cohort."""


def unlearn(folder: Path, cohort: FakeCohort, rounds: int = 3, **options: Any) -> list[float]:
    strategy = Unrolling(Unrolling.Config(**options))
    recording = Recording(folder, LAYOUT, HistoryConfig(strategy.card.records), (0,), Seeds(0))
    recording.begin(point(*MODELS[0]))
    for round, weights in enumerate(WEIGHTS, start=1):
        replies = Replies(Reply(k, point(0, 0), n, 0.0) for k, n in weights.items())
        recording.add(round, point(*MODELS[round]), replies, [], last=round == 3)
    recording.finish(3, Cost())
    history = History(recording, rounds, point(*MODELS[3]), strategy.card, frozenset(), (0,))
    request = UnlearningRequest("client", (0,))
    *before, w = strategy.unlearn(request, history, cast(Cohort, cohort))
    assert all(model.equals(history.final) for model in before) and len(before) == strategy.config.products
    return w.flat.tolist()


def test_the_gradient_is_added_back_with_the_rounds_weights(tmp_path: Path) -> None:
    # p = 10/40 in round 1, absent in round 2, p = 10/20 in round 3. E = 2 epochs of ceil(10/4) = 3 steps = 6.
    # eta = 0.1, then 0.1 / 4 in round 3: sum p E eta = 0.25 * 6 * 0.1 + 0.5 * 6 * 0.025 = 0.15 + 0.075 = 0.225
    # (3, 5) + 0.225 (4, -8) = (3.9, 3.2)
    cohort = FakeCohort(LocalConfig(lr=0.1, lr_decay=0.5, epochs=2, batch_size=4))
    assert unlearn(tmp_path, cohort) == pytest.approx([3.9, 3.2])
    assert cohort.asked == [([0.0, 0.0], (0,), gradient, "forget")]


def test_steps_replace_epochs(tmp_path: Path) -> None:
    # E = 3: 0.25 * 3 * 0.1 + 0.5 * 3 * 0.1 = 0.225 again
    cohort = FakeCohort(LocalConfig(lr=0.1, steps=3))
    assert unlearn(tmp_path, cohort) == pytest.approx([3.9, 3.2])


def test_samples_count_by_their_share(tmp_path: Path) -> None:
    # 5 of the 10 examples: half of the sum above.
    cohort = FakeCohort(LocalConfig(lr=0.1, steps=3), forgotten=5)
    assert unlearn(tmp_path, cohort) == pytest.approx([3.45, 4.1])


def test_only_rounds_before_the_request_count(tmp_path: Path) -> None:
    # 0.25 * 3 * 0.1 = 0.075: (3, 5) + (0.3, -0.6)
    assert unlearn(tmp_path, FakeCohort(LocalConfig(lr=0.1, steps=3)), rounds=2) == pytest.approx([3.3, 4.4])


def test_renormalised_rounds_by_hand(tmp_path: Path) -> None:
    # Round 1: ((1, 1) + 0.075 (4, -8)) / 0.75 = (1.3, 0.4) / 0.75
    # Round 2: (1, 3) as it is. Round 3: ((1, 1) + 0.15 (4, -8)) / 0.5 = (3.2, -0.4)
    expected = [1.3 / 0.75 + 1 + 3.2, 0.4 / 0.75 + 3 - 0.4]
    assert unlearn(tmp_path, FakeCohort(LocalConfig(lr=0.1, steps=3)), renormalise=True) == pytest.approx(expected)


def test_the_unlearning_error_by_power_iteration(tmp_path: Path) -> None:
    # H = diag(3, -5): sigma = 5. Client 0 made 3 steps in each of rounds 1 and 3: t = 6. ||(3, 5)|| = sqrt 34, and e =
    # 0.1^2 sqrt 34 / 6 * 5 * (36 - 6) / 2.
    cohort = FakeCohort(LocalConfig(lr=0.1, steps=3))
    cohort.seeds, cohort.notes, asked = Seeds(0), [], []

    def hvp(w: Params, v: Params) -> Params:
        asked.append(w.flat.tolist())
        return Params(v.flat * torch.tensor([3.0, -5.0]), LAYOUT)

    cohort.hvp = hvp
    assert unlearn(tmp_path, cohort, products=40) == pytest.approx([3.9, 3.2])
    expected = unlearning_error(point(*MODELS[0]), point(*MODELS[3]), steps=6, lr=0.1, sigma=5.0)
    assert cohort.notes == [f"unlearning error {expected:.3g} (sigma=5, t=6)"] and asked == [[3.0, 5.0]] * 40


def test_other_optimisers_are_refused() -> None:
    Unrolling().check(cast(Cohort, FakeCohort(LocalConfig())))
    with pytest.raises(ValueError, match="local.optimizer='adam' must be 'sgd'"):
        Unrolling().check(cast(Cohort, FakeCohort(LocalConfig("adam"))))


def test_what_it_assumes() -> None:
    assert Unrolling().card == Card("nothing", target_online=True, retained_online=False)
    assert Unrolling(Unrolling.Config(True)).card == Card("globals", target_online=True, retained_online=False)
    assert Unrolling(Unrolling.Config(products=3)).card == Card("nothing", target_online=True)
    with pytest.raises(ValueError, match="strategy.unrolling.products is -1, but must be at least 0"):
        Unrolling.Config(products=-1)


@pytest.mark.parametrize("scope", ["client", "sample", "class"])
def test_it_costs_one_gradient_up_and_one_model_down_for_each_owner(tmp_path: Path, scope: str) -> None:
    _, cohort, _ = serve(Toy(tmp_path), Unrolling(), REQUESTS[scope])
    d = 4 * cohort.layout.size
    owners = len(cohort.targets)
    assert (cohort.cost.rounds, cohort.cost.bytes_up, cohort.cost.bytes_down) == (1, owners * d, owners * d)


def test_first_order_steps_are_undone_but_for_the_second_order(tmp_path: Path) -> None:
    # One full-batch step a round: as eta falls, the renormalised error falls as eta^2, that of doing nothing as eta.
    def errors(lr: float) -> tuple[float, float]:
        toy = Toy(tmp_path / str(lr), 1, LearningConfig(rounds=4), LocalConfig(lr=lr, batch_size=10_000))
        models, _, final = serve(toy, Unrolling(Unrolling.Config(renormalise=True)), REQUESTS["client"])
        oracle, _, _ = serve(toy, Retrain(), REQUESTS["client"])
        return verification_error(models[-1], oracle[-1]), verification_error(final, oracle[-1])

    (coarse, coarse_nothing), (fine, fine_nothing) = errors(0.04), errors(0.02)
    assert 3 < coarse / fine < 5 and 1.5 < coarse_nothing / fine_nothing < 2.5
    assert fine < fine_nothing / 2


@pytest.mark.parametrize(
    ("eta", "rounds", "renormalised", "plain", "nothing"),
    [(0.01, 1, 0.00097, 0.0139, 0.0063), (0.1, 1, 0.057, 0.139, 0.050), (0.1, 5, 0.563, 0.724, 0.116)],
)
def test_it_helps_only_while_steps_are_few_and_short(
    tmp_path: Path, eta: float, rounds: int, renormalised: float, plain: float, nothing: float
) -> None:
    # ||w_u - w_g||, the numbers that the strategy's docstring records.
    learning = LearningConfig(rounds=rounds)
    toy = Toy(tmp_path, 1, learning, LocalConfig(lr=eta))
    oracle, _, final = serve(toy, Retrain(learning=learning), REQUESTS["client"])
    errors = []
    for way in (True, False):
        models, _, _ = serve(toy, Unrolling(Unrolling.Config(renormalise=way), learning), REQUESTS["client"])
        errors.append(verification_error(models[-1], oracle[-1]))
    errors.append(verification_error(final, oracle[-1]))
    assert errors == pytest.approx([renormalised, plain, nothing], rel=0.02)


def test_the_sd_loss_lowers_the_unlearning_error_up_to_a_point(tmp_path: Path) -> None:
    # The weights change less, but where the model is less sure the cross-entropy's curvature is larger.
    estimated, moved = [], []
    for gamma in (0.0, 0.3, 1.0, 3.0, 10.0):
        toy = Toy(tmp_path / str(gamma), 1, LearningConfig(rounds=4), LocalConfig(lr=0.1, epochs=2, sd_gamma=gamma))
        _, cohort, final = serve(toy, Unrolling(Unrolling.Config(products=20), toy.learning), REQUESTS["client"])
        estimated.append(float(cohort.notes[0].split()[2]))
        moved.append((final - toy.start).norm())
    assert estimated == pytest.approx([2.08, 1.73, 1.28, 1.37, 2.90], rel=0.02)
    assert moved == pytest.approx([2.66, 2.29, 1.69, 1.31, 1.59], rel=0.02)


def test_the_oracle_has_no_verification_error(tmp_path: Path) -> None:
    # Federated retraining repeats the same seeds, cohorts and batches, so v(w_g) = 0 to the bit.
    first, _, _ = serve(Toy(tmp_path / "a", 1), Retrain(), REQUESTS["client"])
    second, _, _ = serve(Toy(tmp_path / "b", 3), Retrain(), REQUESTS["client"])
    assert verification_error(first[-1], second[-1]) == 0


def test_a_run_that_learns_with_the_sd_loss_reports_both_errors(run_small: Any) -> None:
    experiment, said = run_small("local.sd_gamma=0.5 strategies=[unrolling] strategy.unrolling.products=3")
    assert any("note: unrolling, seed 0: unlearning error" in line for line in said)
    audit = (experiment.folder / "audit.csv").read_text()
    assert "0,unrolling,weights/verification_error," in audit
