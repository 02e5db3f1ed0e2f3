"""Errors that a command catches before anything that raises them is loaded."""

from __future__ import annotations

from pathlib import Path


class CannotWrite(OSError):
    """A file could not be written, because the disk is full, say: one sentence. What was there before is unharmed."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"cannot write {path}: {why}; mend that and give the same command again, it goes on from what was saved"
        )
