"""Damaged files, full disks and two runs on one store: what is wrong is named, and the numbers end up the same."""

import contextlib
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from fedforget import report, server_app, store
from fedforget.cli import main
from fedforget.client_app import app
from fedforget.config import compose
from fedforget.grid import InProcessGrid
from fedforget.store import CannotWrite, DamagedFile, load_json, load_tensors

ROOT = Path(__file__).parents[1]
RUN = "strategies=[finetune,federaser] strategy.finetune.rounds=2 evaluation.durability=[1]"
DAMAGE = {
    "flipped": lambda content, draw: flipped(content, draw.randrange(len(content))),
    "truncated": lambda content, draw: content[: draw.randrange(1, len(content))],
    "emptied": lambda content, draw: b"",
}


def flipped(content, position):
    """The content with one bit of one byte turned."""
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


def left(output):
    """The numbers that a run leaves: all tensors by file, and the tables."""
    output = Path(output)
    tensors = {  # copied, because what was read is the file itself, in memory, and some tests overwrite files in place
        str(path.relative_to(output)): {name: tensor.clone() for name, tensor in load_tensors(path)[0].items()}
        for path in output.rglob("*.safetensors")
    }
    tables = {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.glob("runs/*/*")
        if path.name in ("table.md", "audit.csv", "verdicts.csv", "config.yaml")
    }
    return tensors, tables


def same(first, second):
    assert first[0].keys() == second[0].keys() and first[1] == second[1]
    for name, tensors in first[0].items():
        others = second[0][name]
        assert tensors.keys() == others.keys() and all(torch.equal(tensors[key], others[key]) for key in tensors), name


def readable(output):
    """Asserts that every file that is there is whole, and that nothing unfinished lies about."""
    for path in Path(output).rglob("*"):
        if path.suffix == ".safetensors":
            load_tensors(path)
        elif path.name == "complete.json":
            load_json(path)
        assert not path.name.startswith(".") or path.name == ".writable", path


@pytest.fixture
def undisturbed(run_small, tmp_path):
    run_small(RUN, tmp_path / "well")
    return left(tmp_path / "well")


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_file_of_every_kind_is_named_and_made_again(run_small, tmp_path, damage):
    """Round of a history, its end (with the ledger), model, further rounds, answers: one of each is damaged at once."""
    experiment, _ = run_small(RUN)
    before = left(tmp_path)
    draw = random.Random(damage)
    kinds = ("trajectories/*/*/round-*", "trajectories/*/*/complete.json", "models/*/*", "later/*/*", "outputs/*/*")
    files = [draw.choice(sorted(tmp_path.glob(f"store/{kind}"))) for kind in kinds]
    known = {path.relative_to(tmp_path).parts[1] for path in tmp_path.glob("store/*/**/*") if path.is_file()}
    assert known == {kind.partition("/")[0] for kind in kinds} | {"locks"}, "there is a kind of file that is not tested"
    for several in (files[:1] + files[2:], files[1:2]):  # a damaged round hides a damaged end of the same history
        for path in several:
            path.write_bytes(DAMAGE[damage](path.read_bytes(), draw))
        _, said = run_small(RUN)
        for path in several:
            assert any(line.startswith(f"  note: {path} is damaged (") for line in said), path
        same(left(tmp_path), before)
        readable(tmp_path)


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_record_is_refused_and_the_run_writes_it_again(run_small, tmp_path, capsys, damage):
    experiment, _ = run_small(RUN)
    record = experiment.folder / "results.jsonl"
    good = record.read_bytes()
    header = report.load(experiment.folder)[0]
    draw = random.Random(damage)
    for _ in range(20):
        record.write_bytes(DAMAGE[damage](good, draw))
        with pytest.raises(DamagedFile, match="results.jsonl is damaged"):
            report.load(experiment.folder)
    assert main(["report", str(experiment.folder)]) == 2
    said = capsys.readouterr().err.strip()
    assert f"{record} is damaged" in said and "\n" not in said
    run_small(RUN)
    assert report.load(experiment.folder)[0] == header


def test_damaged_answers_are_refused_by_the_report(run_small, tmp_path, capsys):
    experiment, _ = run_small(RUN)
    path = next(tmp_path.glob("store/outputs/*/*"))
    path.write_bytes(flipped(path.read_bytes(), -10 % path.stat().st_size))
    assert main(["report", str(experiment.folder)]) == 2
    assert f"{path} is damaged" in capsys.readouterr().err


def test_a_damaged_configuration_of_a_run_is_refused(run_small, tmp_path):
    """Whichever bit of it turns: it composes to the same configuration (a bit of the first line), or not at all."""
    experiment, _ = run_small("strategies=[]")
    path = experiment.folder / "config.yaml"
    good = path.read_bytes()
    whole = compose(str(path))
    end = good.index(b"\n")
    assert "does not match" in complaint(path, flipped(good, end)), "a line that joined the comment is missed"
    for position in random.Random(0).sample(range(end + 1, len(good)), 150):
        assert complaint(path, flipped(good, position)), position
    for length in random.Random(0).sample(range(end, len(good) - 1), 50):
        assert complaint(path, good[:length]), length
    for position in range(end):
        path.write_bytes(flipped(good, position))
        with contextlib.suppress(ValueError):
            assert compose(str(path)) == whole
    path.write_bytes(good[end + 1 :].replace(b"rounds: 3", b"rounds: 4"))
    assert compose(str(path)).learning.rounds == 4, "without its first line the file is the user's"


def complaint(path, content):
    """What `compose` says of a file with this content."""
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        compose(str(path))
    return str(caught.value)


def test_files_that_are_only_for_reading_are_made_again(run_small, tmp_path):
    """Tables, page and figures are never read by the program: whatever happened to them, they are written anew."""
    experiment, _ = run_small(RUN)
    files = [p for p in experiment.folder.rglob("*") if p.suffix in (".md", ".csv", ".html", ".png", ".svg")]
    before = {path: path.read_bytes() for path in files}
    for path in files:
        path.write_bytes(before[path][:10])
    run_small(RUN)
    assert {path: path.read_bytes() for path in files} == before


# ---------------------------------------------------------------------- a full disk


def refused(run, output, reason):
    """Asserts that a run ends in one sentence with the reason, and leaves only whole files."""
    with pytest.raises(CannotWrite, match=f"cannot write .*{reason}.*same command again") as caught:
        run(RUN, output)
    assert "\n" not in str(caught.value)
    readable(output)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(
    run_small, undisturbed, tmp_path, monkeypatch
):
    """On a file system of its own, which fills up in the midst of the run: three times, each with a bit more room.

    At first the run does not begin: there is not enough room from the start.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only who may mount a file system can fill one")
    try:
        with pytest.raises(ValueError, match=f"of disk: .*, but {disk}/store has .* kB free; use history.record=auto"):
            run_small(RUN, disk)
        monkeypatch.setattr(
            "fedforget.run.disk.refuse", lambda *_: None
        )  # as if somebody else filled the disk meanwhile
        for size in (60, 140, 260):
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
            refused(run_small, disk, "No space left on device")
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        run_small(RUN, disk)
        same(left(disk), undisturbed)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("size", [1_000, 5_000, 12_000])
def test_a_file_that_may_not_grow_is_one_sentence(run_small, undisturbed, tmp_path, size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        refused(run_small, tmp_path / "ill", "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    run_small(RUN, tmp_path / "ill")
    same(left(tmp_path / "ill"), undisturbed)


def test_any_write_may_find_the_disk_full(run_small, undisturbed, tmp_path, monkeypatch):
    """A first attempt fails at its 4th rename, the next one at its 8th, and so on, until one comes to its end."""
    rename, left_over, failures = os.replace, [0], 0

    def full(*names):
        left_over[0] -= 1
        if left_over[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(*names)

    monkeypatch.setattr(store.os, "replace", full)
    while True:
        left_over[0] = 4 * (failures + 1)
        try:
            run_small(RUN, tmp_path / "ill")
            break
        except CannotWrite as error:
            assert "No space left on device" in str(error) and "\n" not in str(error)
            readable(tmp_path / "ill")
            failures += 1
    assert failures > 3
    same(left(tmp_path / "ill"), undisturbed)


def test_the_server_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    def full(*names):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    settings = "model=linear learning.rounds=1 partition.clients=4 evaluation=smoke engine.device=cpu strategies=[]"
    config = {"experiment": "quickstart", "overrides": settings, "output-dir": str(tmp_path)}
    writable = store.Store(tmp_path / "store")
    monkeypatch.setattr(store, "Store", lambda root: writable)
    monkeypatch.setattr("fedforget.experiment.Store", lambda root: writable)
    monkeypatch.setattr(store.os, "replace", full)
    with pytest.raises(RuntimeError, match="No space left on device"):
        server_app.app(InProcessGrid(app, 2), Context(0, 0, {}, RecordDict(), config))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fedforget: error: ")]
    assert len(said) == 1 and "No space left on device" in said[0]


# ---------------------------------------------------------------------- two runs on one store

TWIN = """
import os, sys, time
from pathlib import Path
from fedforget import messages
from fedforget.client_app import app
from fedforget.config import compose
from fedforget.experiment import Experiment
from fedforget.grid import InProcessGrid

def slow(message, context):
    if message.metadata.message_type == messages.TRAIN:
        os.write(2, b"train\\n")  # at once, so that threads do not write into each other's lines
        time.sleep(0.05)
    return app(message, context)

Experiment(compose("quickstart", sys.argv[2]), InProcessGrid(slow, 1), Path(sys.argv[1])).run()
"""


def twin(output):
    overrides = f"model=linear learning.rounds=3 partition.clients=5 evaluation=smoke engine.device=cpu {RUN}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TWIN, str(output), overrides]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_on_one_store_do_everything_once(run_small, undisturbed, tmp_path):
    twins = [twin(tmp_path / "shared") for _ in range(2)]
    said = []
    for process in twins:
        _, complaints = process.communicate(timeout=300)
        assert process.returncode == 0, complaints
        said += complaints.splitlines()
    alone = twin(tmp_path / "alone").communicate(timeout=300)[1].splitlines()
    assert said.count("train") == alone.count("train")
    same(left(tmp_path / "shared"), undisturbed)
    readable(tmp_path / "shared")


def test_what_a_killed_run_held_goes_to_the_one_that_waits(run_small, undisturbed, tmp_path):
    """Both want the same history; the one that makes it is killed, and the other goes on from its last round."""
    first = twin(tmp_path / "shared")
    assert first.stderr is not None and any(line.strip() == "train" for line in first.stderr)
    second = twin(tmp_path / "shared")
    time.sleep(0.1)
    first.kill()
    first.communicate()
    _, complaints = second.communicate(timeout=300)
    assert second.returncode == 0, complaints
    same(left(tmp_path / "shared"), undisturbed)
    readable(tmp_path / "shared")
