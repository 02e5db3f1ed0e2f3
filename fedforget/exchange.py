"""What a strategy may ask of clients, and what comes back: the assumption card and the replies of one exchange."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fedforget.core.exact import BLOCK, ExactSum, can_add_exactly, exact_scale
from fedforget.ledger import Cost
from fedforget.params import Layout, Params

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
        select: which entries: ``top``, ``random`` or ``bottom``, as in `fedforget.schema.learning.HistoryConfig`.
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
        sums: NumPy arrays as they arrived, one a node: ``sum_k n_k u_k`` over its clients, float64 ``[d]``. Their
            memory may be shared and read-only, which a tensor cannot be.
        layout: of what is summed.
        weights: n_k by client.
        losses: mean training loss by client.
    """

    sums: Sequence[Any]
    layout: Layout
    weights: Mapping[int, int]
    losses: Mapping[int, float]

    def total(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The sum over all clients, or its entries from ``start`` to ``stop``; always a new tensor."""
        total = self.sums[0][start:stop].copy()
        for more in self.sums[1:]:
            total += more[start:stop]
        return torch.from_numpy(total)


class Replies(tuple[Reply, ...]):
    """Answers in client-id order.

    Args:
        replies: the answers that came one by one.
        pool: those that came as a sum, if any did.
        scale: the scale of an exact sum over all of them (`fedforget.core.exact.exact_scale`); by default that of the
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

    @property
    def examples(self) -> int:
        """How many examples the replies stand for."""
        return sum(self.weights().values())

    def losses(self) -> dict[int, float]:
        """Mean training loss of every client that answered, in client-id order."""
        losses = {reply.client: reply.loss for reply in self} | dict(self.pool.losses if self.pool else {})
        return dict(sorted(losses.items()))

    def mean(self, dtype: torch.dtype | None = None) -> Params:
        """``sum_k n_k u_k / sum_k n_k``, in float64 and then rounded to ``dtype`` (by default that of the updates).

        The same bits come out whichever of the updates came one by one and which in the pool, see
        `fedforget.params.ExactSum`. What cannot be added exactly is added last, in client-id order.

        Raises:
            ValueError: if nobody answered, or nobody has an example.
        """
        layout, weight = self._whole()
        kept = self[0].update.flat.dtype if len(self) else torch.float32
        mean = torch.empty(layout.size, dtype=dtype or kept)
        for start, total in self._total(layout):
            torch.div(total, weight, out=mean[start : start + BLOCK])
        return Params(mean, layout)

    def added_to(self, model: Params) -> Params:
        """``model + sum_k n_k u_k / sum_k n_k``, in float64 and then rounded to the model's precision.

        Raises:
            ValueError: as `mean`.
        """
        layout, weight = self._whole()
        moved = torch.empty_like(model.flat)
        for start, total in self._total(layout):
            moved[start : start + BLOCK] = total.div_(weight).add_(model.flat[start : start + BLOCK])
        return Params(moved, model.layout)

    def _whole(self) -> tuple[Layout, int]:
        """The layout of the answers, and ``sum_k n_k``."""
        weight = self.examples
        if not weight > 0:
            raise ValueError("there is no mean of no replies; ask clients that hold data in this split")
        return self.pool.layout if self.pool else self[0].update.layout, weight

    def _total(self, layout: Layout) -> Iterator[tuple[int, Tensor]]:
        """``sum_k n_k u_k`` in float64, block by block, each with its place, see `mean`."""
        exact: list[tuple[Sequence[Tensor], int]] = []
        other: list[tuple[Sequence[Tensor], int]] = []
        for reply in self:
            fits = can_add_exactly(reply.update.flat) and reply.num_examples <= self.scale
            (exact if fits else other).append((reply.update.flat.split(BLOCK), reply.num_examples))
        for number, start in enumerate(range(0, layout.size, BLOCK)):
            stop = min(start + BLOCK, layout.size)
            total = self.pool.total(start, stop) if self.pool else torch.zeros(stop - start, dtype=torch.float64)
            if exact:
                continued = ExactSum(total, self.scale)
                continued.add((blocks[number], weight) for blocks, weight in exact)
                total = continued.total()
            for blocks, weight in other:
                total.add_(blocks[number], alpha=weight)
            yield start, total

    def by_client(self) -> dict[int, Params]:
        """The updates that came one by one, by client id."""
        return {reply.client: reply.update for reply in self}


# The replies, what they cost, and by client why others were left out.
Exchange = tuple[Replies, Cost, Mapping[int, str]]


class Journal(Protocol):
    """Remembers exchanges so that an interrupted strategy can be run again without asking clients twice."""

    def get(self, number: int) -> Exchange | None:
        """Exchange ``number``, if it is remembered."""

    def put(self, number: int, exchange: Exchange) -> None:
        """Remember exchange ``number``."""
