"""How far a run is: what it says, what it counts, and whether it is to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from fedforget import escape

Step = Callable[[int, int, str], None]  # is told how many models are there, of how many, and what goes on


class Stopped(Exception):
    """Another trajectory of the run failed; this one stops at its next round and can go on later."""


class Progress:
    """What the threads of a run say, each line at once.

    Args:
        say: is told, in one line, what has been done.
        step: is told how many models are there, of how many, and in one line what goes on; None: `say` is.
    """

    def __init__(self, say: Callable[[str], None], step: Step | None = None) -> None:
        self.total = 0
        self._told = say
        self._step = step or (lambda done, total, what: self.say(f"[{done}/{total}] {what}"))
        self._done, self._last, self._lock = 0, time.monotonic(), threading.Lock()
        self._stop = threading.Event()

    def say(self, line: str) -> None:
        """Say a line."""
        self._told(escape.lines(line))

    def note(self, text: str) -> None:
        """Say what a reader of the results must know."""
        self.say(f"  note: {text}")

    def notes(self, what: str, notes: Sequence[str]) -> None:
        """Say the notes of a model."""
        for note in notes:
            self.note(f"{what}: {note}")

    def of_rounds(self, what: str, rounds: int | None) -> Callable[[int], None]:
        """What a cohort calls after each exchange with the round's number; it raises `Stopped` if the run is to stop.

        Args:
            what: what goes on.
            rounds: how many rounds there will be; None: nobody knows.
        """

        def after(round: int) -> None:
            self.check()
            self._tick(f"{what}: round {round}" + (f"/{rounds}" if rounds else ""))

        return after

    def finished(self, what: str) -> None:
        """Say that a model is there."""
        with self._lock:
            self._done += 1
            self._count(what)

    def stop(self) -> None:
        """Every trajectory stops at its next round."""
        self._stop.set()

    def check(self) -> None:
        """Go on.

        Raises:
            Stopped: if the run is to stop.
        """
        if self._stop.is_set():
            raise Stopped

    def _tick(self, what: str) -> None:
        """Say what goes on, if nothing was said for two seconds."""
        with self._lock:
            if time.monotonic() - self._last > 2:
                self._count(what)

    def _count(self, what: str) -> None:
        self._last = time.monotonic()
        self._step(self._done, self.total, what)
