"""Trajectories at the same time: each in a thread of its own, all over one grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

from fedforget.run.progress import Progress, Stopped
from fedforget.run.setting import Setting


@contextmanager
def workers(setting: Setting, progress: Progress) -> Iterator[ThreadPoolExecutor]:
    """Threads for trajectories; they stop at their next round when something goes wrong."""
    concurrent = setting.config.engine.trajectories or 2 * len(setting.federation.hosts)
    with ThreadPoolExecutor(concurrent, thread_name_prefix="trajectory") as pool:
        try:
            yield pool
        except BaseException:
            progress.stop()
            raise


def wait_for(futures: Sequence[Future], progress: Progress) -> None:
    """Wait for all; the first failure stops the rest at their next round, and is raised."""
    done, pending = wait(futures, return_when=FIRST_EXCEPTION)
    failed = [future for future in done if future.exception()]
    if failed:
        progress.stop()
        for future in pending:
            future.cancel()
        wait(pending)
        failed = [f for f in futures if not f.cancelled() and not isinstance(f.exception(), (Stopped, type(None)))]
        raise failed[0].exception()  # type: ignore[misc]
