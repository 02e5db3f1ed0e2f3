"""LURE: saliency and renewal by hand, and what changes on the toy federation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedforget.params import Layout, Params
from fedforget.routines import Client, LocalConfig
from fedforget.seeds import Seeds
from fedforget.testing import REQUESTS, Toy, serve
from strategies.lure import Lure, renew, salience

LAYOUT = Layout(("conv.weight", "conv.bias", "norm.weight", "norm.bias"), ((2, 2), (2,), (2,), (2,)))


def point(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), LAYOUT)


W, NEW = point(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), point(-1, -2, -3, -4, -5, -6, -7, -8, -9, -10)


@pytest.mark.parametrize(
    ("rho", "expected"),
    [
        # Six weights, whose saliencies are 5, 1, 4, 9 and 2, 6; the biases have the lowest of all but are not renewed.
        (0.5, [1, -2, -3, 4, 5, 6, -7, 8, 9, 10]),  # the lowest three: 1, 2, 4, of both layers
        (1 / 6, [1, -2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (1.0, [-1, -2, -3, -4, 5, 6, -7, -8, 9, 10]),
        (0.01, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),  # less than half a weight
    ],
)
def test_renewal_by_hand(rho: float, expected: list[float]) -> None:
    s = point(5, 1, 4, 9, 0, 0, 2, 6, 0, 0)
    assert renew(W, s, rho, NEW).flat.tolist() == expected


def test_salience_by_hand() -> None:
    # At w = 0 both classes have p = 1/2, and the gradient is (p - y) x for the weights, p - y for the biases.
    # x = 2, label 0: (-1, 1 | -1/2, 1/2);  x = -1, label 1: (-1/2, 1/2 | 1/2, -1/2).
    # The means of the absolute values over these two batches: (3/4, 3/4 | 1/2, 1/2); they do not cancel.
    module = nn.Linear(1, 2)
    layout = Params.from_module(module).layout
    Params(torch.zeros(4), layout).copy_to(module)
    local = LocalConfig(batch_size=1)
    inputs, labels = torch.tensor([[2.0], [-1.0]]), torch.tensor([0, 1])
    worker = Client(0, 1, module, inputs, labels, torch.arange(2), 2, local, Seeds(0))
    assert salience(worker).flat.tolist() == [0.75, 0.75, 0.5, 0.5]
    assert (worker.steps, worker.examples) == (2, 2)


def unlearn(folder: Path, scope: str, **fields: Any) -> tuple[list[Params], Any, Params, Toy]:
    toy = Toy(folder)
    models, cohort, final = serve(toy, Lure(Lure.Config(**fields), toy.learning), REQUESTS[scope])
    return models, cohort, final, toy


@pytest.mark.parametrize("scope", sorted(REQUESTS))
def test_a_fifth_of_the_weights_is_renewed_on_retained_data(tmp_path: Path, scope: str) -> None:
    models, cohort, final, toy = unlearn(tmp_path, scope, rounds=2)
    assert cohort.cost.rounds == 3 and len(models) == 3  # one for the saliency, and R
    changed = models[0].flat != final.flat
    assert changed[:640].sum() == round(0.2 * 640) and not changed[640:].any()
    assert models[0].flat[changed].abs().max() <= 1 / 8  # Kaiming uniform: 1/sqrt(64 inputs)
    [look] = [work for work in toy.grid.work[:2] if 0 in work.clients]
    assert look.routine == "strategies.lure:salience" and {work.split for work in toy.grid.work} == {"retain"}


def test_the_saliency_looks_at_a_share_of_the_batches(tmp_path: Path) -> None:
    few, many = (unlearn(tmp_path, "client", rounds=0, batches=beta)[1] for beta in (1 / 32, 1.0))
    sizes = [few.federation.num_train[client] for client in few.retained]
    assert few.cost.client_steps == len(sizes)  # at least one batch each
    assert many.cost.client_steps == sum(-(-size // 32) for size in sizes)
    assert many.cost.client_examples == sum(sizes)


def test_the_least_salient_weights_go(tmp_path: Path) -> None:
    models, cohort, final, _ = unlearn(tmp_path, "client", rounds=0, batches=1.0)
    g = cohort.train(final, cohort.retained, routine=salience, round=5, epochs=1).mean()
    s = (final.flat.abs() * g.flat)[:640]
    renewed = (models[0].flat != final.flat)[:640]
    assert s[renewed].max() <= s[~renewed].min()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 0.0}, r"strategy.lure.share is 0.0, but must be in \(0, 1\]"),
        ({"batches": 1.5}, r"strategy.lure.batches is 1.5, but must be in \(0, 1\]"),
        ({"rounds": -1}, "strategy.lure.rounds is -1, but must be at least 0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lure.Config(**fields)
