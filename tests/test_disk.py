"""How much disk a run says it will take, beside the bytes that it wrote; and where it does not fit."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from fedforget.history import HistoryConfig, bytes_of_update, compress
from fedforget.params import Layout, Params
from fedforget.run import disk
from fedforget.run.checks import record_of
from fedforget.run.disk import Need
from fedforget.run.setting import cohort_of
from fedforget.seeds import Seeds
from fedforget.store import load_tensors

LAYOUT = Layout(("a", "b"), ((7, 9), (40,)))
HEADER = 1200  # bytes of a file beside its tensors, at most: their names, the notes, and the checksum


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("select", ["top", "bottom", "random"])
@pytest.mark.parametrize("keep", [1.0, 0.5, 0.02, 0.001])
def test_the_bytes_of_an_update_are_those_that_are_stored(dtype: str, select: str, keep: float) -> None:
    config = HistoryConfig("all", dtype, keep, select)
    update = Params(torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(0)), LAYOUT)
    stored = compress(update, config, Seeds(0))
    assert bytes_of_update(LAYOUT, config) == sum(tensor.nbytes for tensor in stored.values())


def test_a_recording_by_hand() -> None:
    """d = 103; three rounds of two clients, of which client 1 took part in two: 412 bytes a vector, 824 a sum."""
    cohorts = [(0, 1), (1, 2), (0, 2)]
    expected = {
        "nothing": Need(2 * 412, 3 * 824),
        "globals": Need(4 * 412, 3 * 824),
        "targets": Need(6 * 412, 2 * 412 + 3 * 824),
        "all": Need(10 * 412, 6 * 412),
    }
    for record, need in expected.items():
        assert disk.of_recording(LAYOUT, HistoryConfig(record), cohorts, (1,), pools=True) == need, record
    # A learner that must see every update has all of them in its journal, whatever is recorded.
    alone = disk.of_recording(LAYOUT, HistoryConfig("globals"), cohorts, (1,), pools=False)
    assert alone == Need(4 * 412, 6 * 412)


@pytest.mark.parametrize(
    "history",
    [
        "history.record=nothing",
        "history.record=globals",
        "history.record=targets",
        "history.record=all",
        "history.record=all history.dtype=bfloat16",
        "history.record=all history.keep=0.1",
        "history.record=all history.keep=0.3 history.select=random learning.fraction=0.5",
    ],
)
def test_a_run_says_what_its_recording_takes(run_small, tmp_path: Path, history: str) -> None:
    experiment, _ = run_small(f"strategies=[] {history}")
    files = sorted(tmp_path.glob("store/trajectories/*/*/round-*"))
    written = sum(tensor.nbytes for path in files for tensor in load_tensors(path)[0].values())
    setting, rounds = experiment.setting, experiment.config.learning.rounds
    cohort, form = cohort_of(setting, setting.seeds(0)), record_of(setting)
    cohorts = [cohort.sample(round) for round in range(1, rounds + 1)]
    assert disk.of_recording(setting.layout, form, cohorts, setting.targets, True).recordings == written
    on_disk = sum(path.stat().st_size for path in files)
    assert written <= on_disk <= written + HEADER * len(files)


def said_need(said: list[str]) -> str:
    (line,) = [line for line in said if line.startswith("what is still to be done needs ")]
    return line


def test_what_is_there_already_is_not_needed_again(run_small, tmp_path: Path) -> None:
    overrides = "strategies=[finetune,federaser] evaluation.durability=[1] evaluation.relearn=1"
    _, said = run_small(overrides)
    assert "about 0 bytes" not in said_need(said)
    stored = sum(path.stat().st_size for path in tmp_path.glob("store/**/*.safetensors"))
    amount, unit = said_need(said).partition(" about ")[2].split()[:2]
    needed = float(amount) * 1000 ** disk.UNITS.index(unit)
    assert stored / 2 < needed < 4 * stored, "an estimate, but of the right size"
    _, said = run_small(overrides)
    assert "needs about 0 bytes of disk" in said_need(said)


def test_what_does_not_fit_is_refused_before_any_training(run_small, tmp_path: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 20_000))
    with pytest.raises(
        ValueError, match=r"needs about .* of disk: .* has 20 kB free; use history.record=auto"
    ) as caught:
        run_small("strategies=[federaser]")
    assert "history.keep below 1" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("store/**/*.safetensors"))


def test_numbers_do_not_depend_on_how_much_is_recorded(run_small, stored_models, tmp_path: Path) -> None:
    models = []
    for record in ("auto", "all"):
        run_small(f"strategies=[finetune,amnesiac] history.record={record}", tmp_path / record)
        models.append(stored_models(tmp_path / record))
    assert models[0].keys() == models[1].keys()
    assert len(models[0]) == 4 and all(torch.equal(mine, models[1][key]) for key, mine in models[0].items())


def test_units() -> None:
    numbers = (0, 999, 1000, 12_900_000_000)
    assert [disk.readable(number) for number in numbers] == ["0 bytes", "999 bytes", "1 kB", "12.9 GB"]
