"""Where examples come from: rows of the source's training split, their natural owners and their names.

Requests may name any of these; here they become clients, and positions in clients' training splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_NAMED = 5  # owners or records that a sentence lists


@dataclass(frozen=True, eq=False)
class Origin:
    """Where the training examples of a task stand in their source.

    Args:
        rows: the row of each training example in the source's training split, int64 ``[N]``.
        total: how many rows that split has.
        test_rows: the rows drawn as the test set, where the source has none.
        ids: natural owner of each row ``[total]``; ``None`` without ``task.id_column``.
        records: name of each row ``[total]``; ``None`` without ``task.record_column``.
    """

    rows: np.ndarray
    total: int
    test_rows: np.ndarray
    ids: np.ndarray | None = None
    records: np.ndarray | None = None

    @property
    def owners(self) -> np.ndarray | None:
        """Natural owner of each training example ``[N]``."""
        return None if self.ids is None else self.ids[self.rows]

    def check_rows(self, rows: Sequence[int]) -> None:
        """Refuse rows that are no training examples.

        Raises:
            ValueError: if a row does not exist, is a test example or was not drawn.
        """
        drawn, test = set(self.rows.tolist()), set(self.test_rows.tolist())
        for row in rows:
            if not 0 <= row < self.total:
                raise ValueError(f"request.rows names row {row}, but the training split has rows 0 to {self.total - 1}")
            if row in test:
                raise ValueError(f"row {row} of the source was drawn as a test example, so nothing of it is to forget")
            if row not in drawn:
                raise ValueError(
                    f"row {row} of the source was not drawn (task.max_train={len(self.rows)}), so nothing of it is to "
                    "forget; name another row or raise task.max_train"
                )

    def rows_of(self, records: Sequence[int | str]) -> list[int]:
        """The rows with some names, ascending.

        Raises:
            ValueError: if there are no names, or none with one of these.
        """
        if self.records is None:
            raise ValueError("request.records needs task.record_column, but the task names no such column")
        rows: list[int] = []
        names = np.array([str(record) for record in self.records.tolist()], dtype=object)
        for record in records:
            found = np.flatnonzero(names == str(record))
            if not len(found):
                raise ValueError(f"request.records names {record}, which task.record_column does not hold")
            rows += found.tolist()
        return sorted(set(rows))

    def check_owners(self, owners: Sequence[int | str]) -> None:
        """Refuse owners that hold no training example.

        Raises:
            ValueError: if there are no owners, one does not exist, or none of its examples was drawn.
        """
        if self.ids is None or self.owners is None:
            raise ValueError("request.owners needs task.id_column, but the task names no such column")
        known, drawn = ({str(owner) for owner in np.unique(ids).tolist()} for ids in (self.ids, self.owners))
        for owner in map(str, owners):
            if owner not in known:
                shown = sorted(known)[:MOST_NAMED]
                more = f", ... ({len(known)} in all)" if len(known) > MOST_NAMED else ""
                raise ValueError(
                    f"request.owners names {owner}, which does not exist; the owners are {', '.join(shown)}{more}"
                )
            if owner not in drawn:
                raise ValueError(
                    f"request.owners names {owner}, of whom no training example was drawn "
                    f"(task.max_train={len(self.rows)} of {self.total} rows); raise task.max_train"
                )


@dataclass(frozen=True, eq=False)
class Origins:
    """What of a source is where in the federation.

    Args:
        origin: where the training examples stand in their source.
        train: each client's training split, as positions among the training examples.
        holdout: each client's holdout split, likewise.
        natural: whether each client is one owner.
    """

    origin: Origin
    train: Sequence[np.ndarray]
    holdout: Sequence[np.ndarray]
    natural: bool

    @property
    def owners(self) -> tuple[str, ...]:
        """The natural owner of each client, by client id; empty unless clients are owners."""
        ids = self.origin.owners
        return tuple(str(ids[part[0]]) for part in self.train) if self.natural and ids is not None else ()

    def clients(self, owners: Sequence[int | str]) -> tuple[int, ...]:
        """The clients of some owners.

        Raises:
            ValueError: if one is none.
        """
        if not self.natural:
            raise ValueError("request.owners needs partition=natural, where each client is one value of task.id_column")
        self.origin.check_owners(owners)
        return tuple(self.owners.index(str(owner)) for owner in owners)

    def places(self, rows: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Client, and position in its training split, of some rows of the source.

        Raises:
            ValueError: if a row is not trained on, with the reason.
        """
        self.origin.check_rows(rows)
        place = {int(row): place for place, row in enumerate(self.origin.rows)}
        held = {place[row]: row for row in rows}
        found = []
        for client, part in enumerate(self.train):
            for position in np.flatnonzero(np.isin(part, list(held))).tolist():
                found.append((client, position))
                del held[int(part[position])]
        for client, part in enumerate(self.holdout):
            for example in part[np.isin(part, list(held))].tolist():
                raise ValueError(
                    f"row {held[example]} of the source is in the holdout split of client {client}, which is never "
                    "trained on, so nothing of it is to forget; name another row or set partition.holdout=0"
                )
        if held:
            raise ValueError(f"row {min(held.values())} of the source is at no client, so nothing of it is to forget")
        return tuple(found)
