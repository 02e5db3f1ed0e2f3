"""How processes load torch and alike."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Load modules inside it, and Python does not look for garbage meanwhile.

    Of what modules hold nothing dies, and to look for what did takes a fifth of the time of loading torch (measured).
    """
    looking = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looking:
            gc.enable()
