"""The stage at which a model is audited: what became of it after the strategy left it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["left", "later", "head", "path", "rejoin", "few", "retain"]
TAUGHT: tuple[Kind, ...] = ("rejoin", "few", "retain")  # while forgotten knowledge is relearned


@dataclass(frozen=True)
class Stage:
    """A stage of a model; its text is that of the run's index, and of the names of metrics measured later.

    Args:
        kind: see the table.
        number: r or n of the table; 0 where there is none.

    ==========  ================  ==================================================================================
    kind        text              the model
    ==========  ================  ==================================================================================
    ``left``    ``""``            as the strategy left it
    ``later``   ``+r``            after r ordinary rounds on the retained clients
    ``rejoin``  ``rejoin r``      after r rounds in which the forgotten data takes part again
    ``few``     ``few r``         after r rounds of training by its owner on one in `fedforget.data.FEW` of the
                                  forgotten examples alone
    ``retain``  ``retain r``      after r ordinary rounds on the retained clients, asked about the same forgotten
                                  examples as ``few r``
    ``head``    ``head``          with the original's last layer put back
    ``path``    ``path n``        after the n-th step of equal length on the straight line from the original's weights
                                  to its own
    ==========  ================  ==================================================================================
    """

    kind: Kind = "left"
    number: int = 0

    def __str__(self) -> str:
        bare = {"left": "", "head": "head", "later": f"+{self.number}"}
        return bare.get(self.kind, f"{self.kind} {self.number}")

    @classmethod
    def parse(cls, text: str) -> Stage:
        """The stage that a text names.

        Raises:
            ValueError: if it names none.
        """
        found = re.fullmatch(r"(?P<bare>head)?|\+(?P<later>\d+)|(?P<kind>path|rejoin|few|retain) (?P<number>\d+)", text)
        if found is None:
            raise ValueError(f"stage {text!r} is unknown; it is empty, head, +r, or path, rejoin, few or retain n")
        if found["later"]:
            return cls("later", int(found["later"]))
        return cls(found["kind"] or found["bare"] or "left", int(found["number"] or 0))  # type: ignore[arg-type]


LEFT, HEAD = Stage(), Stage("head")


def later_metric(name: str) -> tuple[str, str]:
    """A metric's name as the rounds after which it was measured again, empty if it was not, and its own name."""
    if not name.startswith("+"):
        return "", name
    rounds, _, rest = name[1:].partition("/")
    return rounds, rest
