"""What must be forgotten: the unlearning request.

A request is a frozen value: it travels in messages as JSON and is part of the address of every stored result.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from numbers import Integral

SCOPES = ("client", "sample", "class")


@dataclass(frozen=True)
class UnlearningRequest:
    """A statement of what to forget.

    Args:
        scope: ``"client"`` (whole clients), ``"sample"`` (single examples of clients) or ``"class"`` (all examples of
            some classes, at every client).
        targets: for ``client`` the client ids; for ``class`` the class labels; for ``sample`` pairs
            ``(client id, position)``, where a position counts the client's training split from 0.
        after_round: the learning round after which the request arrives; ``None`` means after the last one.

    Raises:
        ValueError: if the scope is unknown, or a target has the wrong form or occurs twice.
    """

    scope: str
    targets: tuple
    after_round: int | None = None

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f"request scope {self.scope!r} is unknown; choose one of {', '.join(SCOPES)}")
        for target in self.targets:
            parts = target if isinstance(target, tuple) else (target,)
            if len(parts) != (2 if self.scope == "sample" else 1) or not all(isinstance(x, Integral) for x in parts):
                form = "pairs of client id and position" if self.scope == "sample" else "whole numbers"
                raise ValueError(f"request target {target!r} is malformed; {self.scope} requests name {form}")
            if min(parts) < 0:
                raise ValueError(f"request target {target!r} is negative; targets count from 0")
        targets = tuple(sorted(self.targets))
        if len(set(targets)) != len(targets):
            raise ValueError(f"request targets {list(self.targets)} name one target twice")
        if self.after_round is not None and self.after_round < 1:
            raise ValueError(f"request after_round {self.after_round} must be at least 1")
        object.__setattr__(self, "targets", targets)

    @property
    def clients(self) -> tuple[int, ...]:
        """The ids of clients named by the request (empty for class requests, which concern every client)."""
        if self.scope == "client":
            return self.targets
        if self.scope == "sample":
            return tuple(sorted({client for client, _ in self.targets}))
        return ()

    def positions(self, client: int) -> tuple[int, ...]:
        """Training-split positions of ``client`` named by a sample request (empty for other scopes)."""
        if self.scope != "sample":
            return ()
        return tuple(position for owner, position in self.targets if owner == client)

    def to_dict(self) -> dict:
        """Plain JSON types; `from_dict` inverts it."""
        targets = [list(target) if isinstance(target, tuple) else target for target in self.targets]
        return {"scope": self.scope, "targets": targets, "after_round": self.after_round}

    @classmethod
    def from_dict(cls, fields: dict) -> UnlearningRequest:
        """The request that `to_dict` wrote."""
        targets = tuple(tuple(target) if isinstance(target, list) else target for target in fields["targets"])
        return cls(fields["scope"], targets, fields["after_round"])

    def __str__(self) -> str:
        if self.scope == "sample":
            counts = {client: len(self.positions(client)) for client in self.clients}
            parts = [f"{count} sample{'s' * (count > 1)} of client {client}" for client, count in counts.items()]
            return ", ".join(parts) or "no samples"
        noun = {"client": ("client", "clients"), "class": ("class", "classes")}[self.scope]
        return f"{noun[len(self.targets) != 1]} {', '.join(map(str, self.targets))}" if self.targets else "nothing"


def to_json(requests: tuple[UnlearningRequest, ...]) -> str:
    """Canonical JSON of a sequence of requests."""
    return json.dumps([request.to_dict() for request in requests], sort_keys=True)


def from_json(text: str) -> tuple[UnlearningRequest, ...]:
    """The requests that `to_json` wrote."""
    return tuple(UnlearningRequest.from_dict(fields) for fields in json.loads(text))
