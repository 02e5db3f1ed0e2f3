"""How many cores a process may use."""

import math
import os
import re
from pathlib import Path

import pytest

from fedforget import machine


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """Control groups of this process: ``files`` by path under the mounted root, and its own lines."""
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_MOUNTED", tmp_path / "mounted")

    def make(lines, files):
        (tmp_path / "cgroup").write_text(lines)
        for path, text in files.items():
            (tmp_path / "mounted" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "mounted" / path).write_text(text)

    return make


@pytest.mark.parametrize(
    ("lines", "files", "granted"),
    [
        ("0::/\n", {}, math.inf),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),
        ("0::/not/mounted\n", {"cpu.max": "300000 100000\n"}, 3.0),
        (
            "4:cpu,cpuacct:/c\n2:memory:/c\n",
            {"cpu/c/cpu.cfs_quota_us": "50000", "cpu/c/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("0::/\n", {"cpu.max": "nonsense"}, math.inf),
    ],
)
def test_quota_of_control_groups(groups, lines, files, granted):
    groups(lines, files)
    assert machine._quota() == granted


def test_cores_are_those_bound_and_granted(groups, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 7})
    groups("0::/\n", {"cpu.max": "max 100000"})
    assert machine.cores() == 3
    groups("0::/\n", {"cpu.max": "150000 100000"})
    assert machine.cores() == 2, "a part of a core counts as one"
    groups("0::/\n", {"cpu.max": "1000 100000"})
    assert machine.cores() == 1


def test_a_process_bound_to_one_core_has_one(groups):
    groups("0::/\n", {})
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_nothing_else_counts_cores():
    """Else a process that may use two cores of sixty-four would start sixty-four workers."""
    root = Path(machine.__file__).parent
    counting = {path.name for path in root.rglob("*.py") if re.search(r"cpu_count|sched_getaffinity", path.read_text())}
    assert counting == {"machine.py"}
