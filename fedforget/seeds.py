"""One root seed, many named streams.

A stream is addressed by its name alone, so a draw does not depend on which other draws were made before it, on which
process makes it, or in which order. ``Seeds(3).numpy("cohort", 7)`` is the same generator everywhere and always.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Seeds:
    """A node in a tree of random streams.

    Args:
        root: the root seed of the run.
        path: the names that lead from the root to this node.
    """

    root: int
    path: tuple[str | int, ...] = ()

    def child(self, *names: str | int) -> Seeds:
        """The subtree called ``names``; ``s.child("a").integer("b") == s.integer("a", "b")``."""
        return Seeds(self.root, self.path + names)

    def integer(self, *names: str | int) -> int:
        """A 63-bit integer that belongs to the stream ``names``: SHA-256 of the root and the names."""
        address = json.dumps([self.root, *self.path, *names]).encode()
        return int.from_bytes(hashlib.sha256(address).digest()[:8], "big") >> 1

    def numpy(self, *names: str | int) -> np.random.Generator:
        """A fresh NumPy generator at the start of the stream ``names``."""
        return np.random.default_rng(self.integer(*names))

    def torch(self, *names: str | int) -> torch.Generator:
        """A fresh CPU torch generator at the start of the stream ``names``."""
        return torch.Generator().manual_seed(self.integer(*names))
