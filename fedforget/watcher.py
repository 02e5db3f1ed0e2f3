"""The process that cleans up after a run, however that ends: it ends what the run started and deletes its folder.

    python -c "from fedforget.watcher import main; main()" FOLDER

It is out of reach of Ctrl-C, and waits for the end of its standard input: the run's process holds the other end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

MARK = "RAY_TMPDIR"  # the variable by which the processes of a run are known: its value is the run's folder
ENDS = b"."  # what the run writes when it ends by itself
UNANNOUNCED = "fedforget: the run was killed; the same command resumes from what was saved"


def main() -> None:
    """Wait for the end of a run, then clean up after it."""
    announced = sys.stdin.buffer.read().endswith(ENDS)
    end_processes(Path(sys.argv[1]))
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    if not announced:
        print(UNANNOUNCED, file=sys.stderr)


def end_processes(home: Path) -> None:
    """End every process of a run but the one that calls.

    They are looked for again until none is left, because one that is being ended may just have started another.
    """
    import psutil

    for stop in ("terminate", *["kill"] * 10):
        mine = processes_of(home)
        if not mine:
            return
        for process in mine:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, stop)()
        psutil.wait_procs(mine, timeout=3)


def processes_of(home: Path) -> list:
    """The processes, other than the one that calls, that a run started, those of its children too."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            its_own = process.pid != os.getpid() and process.environ().get(MARK) == str(home)
            if its_own and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
