"""The audit sets: examples, or points, on which models are asked what they answer. All that is known of each is here.

A set is held by the request's targets, by the retained clients, or by the server's test set. Most are a split of their
holders' examples. Others are made of examples where these are, and the points stay there: ``near`` and ``far`` are
spheres of points around examples, ``plane`` is a grid of points on the plane through three examples of the first
target, and the sets ``..._layers`` are the first examples of another set, whose answers have the outputs of every
layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

TEST = -1  # the "client" that owns the global test set
SPHERE = 20  # points around an anchor, where decision regions are audited
ANCHORS = 20  # examples with points around them, at most
GRID = 40  # points along each side of the plane on which decision regions are drawn
DEEP = 64  # examples that are asked in every layer, at most
LAYER_WIDTH = 256  # numbers kept of a layer's output for one example
TEST_CHUNK = 2500  # a large test set is cut so that all nodes share it


@dataclass(frozen=True)
class AuditSet:
    """An audit set.

    Args:
        name: its name.
        holder: who holds it: the request's ``targets``, the ``retained`` clients, or the server's ``test`` set.
        of: the audit set that its examples, or its anchors, come from; empty: its own.
        features: kept beside the logits: of the ``last`` layer its input, ``[n, p]``; of all ``layers`` their outputs,
            ``[n, L, LAYER_WIDTH]``; ``noise``: how the margin grows along what was added, ``[n, 2]``.
        dtype: of the features.
        cap: most examples or points of it that are asked; None: as many as the run is configured to ask.
        asked: when models are asked: ``first`` as a strategy left them; ``drawn`` so too, for one seed's figures, and
            always whole; ``planted`` where a corruption of the set's name made it; ``taught`` while forgotten knowledge
            is relearned.
        again: whether models are asked again after ordinary rounds.
        points: whether it consists of points made from examples.
        scored: whether accuracy, loss and margin are measured on it.
        kept: whether an assessment keeps what all models answer: margins and figures are made of it.
    """

    name: str
    holder: Literal["targets", "retained", "test"]
    of: str = ""
    features: Literal["", "last", "layers", "noise"] = ""
    dtype: str = "float16"
    cap: int | None = None
    asked: Literal["first", "drawn", "planted", "taught"] = "first"
    again: bool = False
    points: bool = False
    scored: bool = False
    kept: bool = False

    @property
    def split(self) -> str:
        """What a client is asked: another set's name, where the two differ only in who holds them."""
        return self.of if self.of and not self.points and self.features != "layers" else self.name

    def most(self, wanted: int) -> int:
        """How many examples or points of it are asked, where ``wanted`` are wanted."""
        if self.cap is None:
            return wanted
        return self.cap if self.asked == "drawn" else min(wanted, self.cap)


AUDIT_SETS = {
    each.name: each
    for each in (
        AuditSet("forget", "targets", features="last", again=True, scored=True, kept=True),
        AuditSet("retain", "retained", again=True, scored=True, kept=True),
        AuditSet("holdout", "targets", features="last", again=True, scored=True),
        AuditSet("test", "test", again=True, scored=True, kept=True),
        AuditSet("clients", "retained", of="holdout", features="last"),
        AuditSet("near", "targets", of="forget", cap=ANCHORS * SPHERE, points=True),
        AuditSet("far", "test", of="test", cap=ANCHORS * SPHERE, points=True),
        AuditSet("forget_layers", "targets", of="forget", features="layers", cap=DEEP),
        AuditSet("holdout_layers", "targets", of="holdout", features="layers", cap=DEEP),
        AuditSet("plane", "targets", cap=GRID * GRID, asked="drawn", points=True, kept=True),
        AuditSet("canary", "targets", asked="planted", again=True, kept=True),
        AuditSet("noise", "targets", features="noise", dtype="float32", asked="planted", again=True),
        AuditSet("trigger", "test", asked="planted", again=True),
        AuditSet("few", "targets", asked="taught"),
        AuditSet("rest", "targets", asked="taught"),
    )
}


def names(wanted: Callable[[AuditSet], bool]) -> tuple[str, ...]:
    """The names of the audit sets that are wanted, in the order of the table."""
    return tuple(name for name, each in AUDIT_SETS.items() if wanted(each))


FIRST = names(lambda s: s.asked == "first")
DRAWN = names(lambda s: s.asked == "drawn")
LATER = names(lambda s: s.asked == "first" and s.again)
EXAMPLES = names(lambda s: s.asked == "first" and not s.points and s.features != "layers")  # of which answers count
SCORED = names(lambda s: s.scored)
COMPARED = names(lambda s: s.scored and s.kept)  # distributions of margins are compared between models
KEPT = names(lambda s: s.kept)
STATED = names(lambda s: s.name in EXAMPLES or s.asked == "planted")  # their sizes are in the report


def planted(kind: str) -> tuple[str, ...]:
    """The audit set that a corruption of this kind is asked on; none if it has no set of its own."""
    return names(lambda s: s.asked == "planted" and s.name == kind)


def find(name: str) -> AuditSet:
    """The audit set of this name.

    Raises:
        ValueError: if there is none.
    """
    if name not in AUDIT_SETS:
        raise ValueError(f"audit set {name!r} is unknown; choose one of {', '.join(AUDIT_SETS)}")
    return AUDIT_SETS[name]
