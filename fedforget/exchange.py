"""What a strategy may ask of clients, and what comes back: the assumption card and the replies of one exchange."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from fedforget.ledger import Cost
from fedforget.params import BLOCK, Params, add_exactly, can_add_exactly, exact_scale

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
        client_records: clients keep vectors on their own disks while they learn, about data that they know beforehand
            they may be asked to forget: the requests of the run.
        keep: share of each layer's entries that the server keeps of a recorded update; the history reads the rest as 0.
        select: which entries: ``top``, ``random`` or ``bottom``, as in `fedforget.history.HistoryConfig`.
        storage: what is billed: ``records`` (the global models and updates that ``records`` names), ``updates`` (no
            global models; the updates of every client, because nobody knows who will ask) or ``sums`` (one vector for
            every client that took part: a running sum of its weighted updates).

    Raises:
        ValueError: if ``records`` or ``storage`` is none of these.
    """

    records: str = "nothing"
    every: int = 1
    target_online: bool = False
    retained_online: bool = True
    server_data: bool = False
    client_records: bool = False
    keep: float = 1.0
    select: str = "top"
    storage: str = "records"

    def __post_init__(self) -> None:
        for field, valid in (("records", RECORDS), ("storage", STORAGES)):
            if getattr(self, field) not in valid:
                raise ValueError(f"Card.{field} is {getattr(self, field)!r}, but must be one of {', '.join(valid)}")


@dataclass(frozen=True)
class Reply:
    """One client's answer: its update (or what its routine returned), its weight and its report."""

    client: int
    update: Params
    num_examples: int
    loss: float


@dataclass(frozen=True)
class Pool:
    """The answers of clients of which only the weighted sum was asked.

    Args:
        total: ``sum_k n_k u_k``, float64.
        weights: n_k by client.
        losses: mean training loss by client.
    """

    total: Params
    weights: Mapping[int, int]
    losses: Mapping[int, float]


class Replies(tuple[Reply, ...]):
    """Answers in client-id order.

    Args:
        replies: the answers that came one by one.
        pool: those that came as a sum, if any did.
        scale: the scale of an exact sum over all of them (`fedforget.params.exact_scale`); by default that of the
            replies' own weights.
    """

    pool: Pool | None
    scale: float

    def __new__(cls, replies: Iterable[Reply] = (), pool: Pool | None = None, scale: float = 0.0) -> Replies:
        """See the class."""
        self = super().__new__(cls, replies)
        self.pool, self.scale = pool, scale or exact_scale(sum(reply.num_examples for reply in self))
        return self

    def weights(self) -> dict[int, int]:
        """n_k, the number of examples, of every client that answered, in client-id order."""
        weights = {reply.client: reply.num_examples for reply in self} | dict(self.pool.weights if self.pool else {})
        return dict(sorted(weights.items()))

    def losses(self) -> dict[int, float]:
        """Mean training loss of every client that answered, in client-id order."""
        losses = {reply.client: reply.loss for reply in self} | dict(self.pool.losses if self.pool else {})
        return dict(sorted(losses.items()))

    def mean(self, dtype: torch.dtype | None = None) -> Params:
        """``sum_k n_k u_k / sum_k n_k``, in float64 and then rounded to ``dtype`` (by default that of the updates).

        The same bits come out whichever of the updates came one by one and which in the pool, see
        `fedforget.params.add_exactly`. What cannot be added exactly is added last, in client-id order.

        Raises:
            ValueError: if nobody answered, or nobody has an example.
        """
        total, weight = self._total()
        kept = self[0].update.flat.dtype if len(self) else torch.float32
        mean = torch.empty(total.layout.size, dtype=dtype or kept)
        for start in range(0, len(mean), BLOCK):
            torch.div(total.flat[start : start + BLOCK], weight, out=mean[start : start + BLOCK])
        return Params(mean, total.layout)

    def added_to(self, model: Params) -> Params:
        """``model + sum_k n_k u_k / sum_k n_k``, in float64 and then rounded to the model's precision.

        Raises:
            ValueError: as `mean`.
        """
        total, weight = self._total()
        moved = torch.empty_like(model.flat)
        for start in range(0, len(moved), BLOCK):
            mean = total.flat[start : start + BLOCK] / weight
            moved[start : start + BLOCK] = mean.add_(model.flat[start : start + BLOCK])
        return Params(moved, model.layout)

    def _total(self) -> tuple[Params, int]:
        """``sum_k n_k u_k`` in float64 and ``sum_k n_k``, see `mean`."""
        weight = sum(self.weights().values())
        if not weight > 0:
            raise ValueError("there is no mean of no replies; ask clients that hold data in this split")
        layout = self.pool.total.layout if self.pool else self[0].update.layout
        total = self.pool.total.flat if self.pool else torch.zeros(layout.size, dtype=torch.float64)
        if self.pool and len(self):
            total = total.clone()  # the pool keeps its own
        exactly = [can_add_exactly(reply.update.flat) and reply.num_examples <= self.scale for reply in self]
        terms = [(reply.update.flat, reply.num_examples) for reply in self]
        add_exactly(total, (term for term, exact in zip(terms, exactly, strict=True) if exact), self.scale)
        for (vector, number), exact in zip(terms, exactly, strict=True):
            if not exact:
                total.add_(vector, alpha=number)
        return Params(total, layout), weight

    def by_client(self) -> dict[int, Params]:
        """The updates that came one by one, by client id."""
        return {reply.client: reply.update for reply in self}


class Journal(Protocol):
    """Remembers exchanges so that an interrupted strategy can be run again without asking clients twice."""

    def get(self, number: int) -> tuple[Replies, Cost, list[str]] | None:
        """Exchange ``number``, if it is remembered."""

    def put(self, number: int, exchange: tuple[Replies, Cost, list[str]]) -> None:
        """Remember exchange ``number``."""
