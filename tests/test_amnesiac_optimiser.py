"""The study of amnesiac unlearning, at a fifth of its size: its rows, and what holds at any size."""

from __future__ import annotations

import pytest

from simulations.amnesiac_optimiser import OPTIMISERS, PARTITIONS, PRUNING, study


@pytest.mark.parametrize("optimiser", list(OPTIMISERS))
def test_rows_of_a_small_study(optimiser: str) -> None:
    rows = {row.name: row for row in study(PARTITIONS["iid"], OPTIMISERS[optimiser], seed=0, rounds=4)}
    assert list(rows)[:3] == ["original", "retrained", "top 100 %"] and len(rows) == 2 + len(PRUNING)
    assert rows["retrained"].distance == 0 < rows["original"].distance
    # 4 rounds of 10 updates of 64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10 floats
    assert rows["top 100 %"].megabytes == pytest.approx(4 * 10 * 4 * 55_210 / 1e6)
    assert rows["top 5 %"].megabytes < 0.1 * rows["top 100 %"].megabytes
    assert rows["random 5 %"].megabytes < 0.051 * rows["top 100 %"].megabytes
    assert rows["top 100 %"].forget < rows["original"].forget
