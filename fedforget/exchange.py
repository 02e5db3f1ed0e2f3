"""What a strategy may ask of clients, and what comes back: the assumption card and the replies of one exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fedforget.ledger import Cost
from fedforget.params import Params, weighted_mean

RECORDS = ("nothing", "globals", "targets", "all")
STORAGES = ("records", "updates", "sums")


@dataclass(frozen=True)
class Card:
    """What a strategy assumes; the cohort and the history refuse the rest, and the report prints it.

    Args:
        records: what must be recorded during learning: ``nothing``, ``globals``, ``targets`` (and the global models
            and the updates of the clients that later ask to be forgotten) or ``all`` updates.
        every: only each so-many-th round's record is needed (billing).
        target_online: the forgotten data's owner must take part in unlearning with that data.
        retained_online: retained clients take part in unlearning.
        server_data: the server needs data of its own.
        keep: share of each layer's entries that the server keeps of a recorded update; the history reads the rest as 0.
        select: which entries: ``top``, ``random`` or ``bottom``, as in `fedforget.history.HistoryConfig`.
        storage: what is billed: ``records`` (the global models and updates that ``records`` names), ``updates`` (no
            global models; the updates of every client, because nobody knows who will ask) or ``sums`` (one vector for
            every client that took part: a running sum of its weighted updates).
    """

    records: str = "nothing"
    every: int = 1
    target_online: bool = False
    retained_online: bool = True
    server_data: bool = False
    keep: float = 1.0
    select: str = "top"
    storage: str = "records"

    def __post_init__(self) -> None:
        assert self.records in RECORDS and self.storage in STORAGES, self


@dataclass(frozen=True)
class Reply:
    """One client's answer: its update (or what its routine returned), its weight and its report."""

    client: int
    update: Params
    num_examples: int
    loss: float


class Replies(tuple[Reply, ...]):
    """Answers in client-id order."""

    def mean(self) -> Params:
        """``sum_k n_k u_k / sum_k n_k``, accumulated in float64 in client-id order."""
        return weighted_mean((reply.update for reply in self), [reply.num_examples for reply in self])

    def by_client(self) -> dict[int, Params]:
        """The updates by client id."""
        return {reply.client: reply.update for reply in self}


class Journal(Protocol):
    """Remembers exchanges so that an interrupted strategy can be run again without asking clients twice."""

    def get(self, number: int) -> tuple[Replies, Cost, list[str]] | None:
        """Exchange ``number``, if it is remembered."""

    def put(self, number: int, exchange: tuple[Replies, Cost, list[str]]) -> None:
        """Remember exchange ``number``."""
