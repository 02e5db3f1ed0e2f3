"""What this process may use of the machine that it runs on."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/proc/self/cgroup")
_MOUNTED = Path("/sys/fs/cgroup")


def cores() -> int:
    """How many CPU cores this process may use, at least 1.

    Fewer than the machine has where ``taskset`` or a batch system binds the process to some of them, or where its
    container has a quota of processor time; a part of a core counts as a whole one.
    """
    try:
        bound = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        bound = os.cpu_count() or 1
    return max(1, math.ceil(min(bound, _quota())))


def _quota() -> float:
    """The cores that the control groups of this process grant, infinite without a limit: the least of all levels."""
    try:
        lines = _CGROUP.read_text().splitlines()
    except OSError:
        return math.inf
    granted = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = {"": _MOUNTED, "cpu": _MOUNTED / "cpu"}.get("cpu" if "cpu" in controllers.split(",") else controllers)
        if root is None:
            continue
        levels = [root / path.lstrip("/"), *(root / path.lstrip("/")).parents]
        # Inside a container the path may be that of the host, which is not mounted; its own group is then the root.
        for level in [each for each in levels if each.is_relative_to(root)]:
            granted = min(granted, _limit(level))
    return granted


def _limit(folder: Path) -> float:
    """The cores that one control group grants, by version 2 (``cpu.max``) or 1 (``cpu.cfs_quota_us``)."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return math.inf if quota in ("max", "-1") else float(quota) / float(period)
    except (OSError, ValueError):
        return math.inf
