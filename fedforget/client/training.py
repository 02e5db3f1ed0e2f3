"""Clients at work: one by one, or several in a stack; the same numbers up to the rounding of products."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor

from fedforget import routines
from fedforget.client import stacks
from fedforget.client.flat_module import FlatModule
from fedforget.client.workbench import Workbench, multiply_in, prepare
from fedforget.core.exact import ExactSum, can_add_exactly, ends
from fedforget.messages import POOL, Work
from fedforget.params import Layout, Params
from fedforget.store import Shelf

WAITING, WAITING_BYTES = 16, 1 << 28  # changes that wait to be summed in one pass, at most


@dataclass(frozen=True)
class _Job:
    """Work at its workbench: the vectors that came with it, the routine, the network, and what that multiplies in."""

    work: Work
    bench: Workbench
    params: Mapping[str, Params]
    routine: routines.Routine
    network: FlatModule
    precision: str

    @cached_property
    def stack(self) -> stacks.Stack:
        """The network of several clients, in the way that the task asks for; the groups of a message share it."""
        bench, device = self.bench, self.bench.inputs.device
        return stacks.choose(bench.task.engine(device.type), bench.model, bench.data.input_shape, device)


def train(work: Work, vectors: Mapping[str, NDArray]) -> tuple[dict[str, NDArray], dict[str, dict]]:
    """Run the routine for each client of ``work``.

    Returns:
        The reply vectors ``[d]`` by client, with the weighted sum of those in ``work.pooled`` as one float64 vector
        under `POOL`; and each client's report, which says whether it is ``pooled``. A client without data in the split
        has no vector. One that fails has none and a report with its ``error``; the others are unharmed. One whose
        vector cannot be summed exactly is left out of the pool and answers by itself.
    """
    bench = prepare(work)
    routine = routines.find(work.routine)
    # Training only looks at what arrived; what other routines do, strategies' own among them, is not known here.
    params = {name: _received(vector, bench.layout, routine is routines.train) for name, vector in vectors.items()}
    double = params["model"].flat.dtype == torch.float64
    network = FlatModule(copy.deepcopy(bench.model).double()) if double else bench.network
    network.start_from(params["model"])
    # As asked in the shared training; in other routines, whose formulas vary, float32.
    precision = bench.task.precision if routine is routines.train else "float32"
    multiply_in(precision)
    job = _Job(work, bench, params, routine, network, precision)
    arrays: dict[str, NDArray] = {}
    reports: dict[str, dict] = {}
    pooled, pool = frozenset(work.pooled), _Pool(network, work.scale)
    for group in work.groups or [(client,) for client in work.clients]:
        start = time.perf_counter()
        try:
            replies = _train_group(job, group, pool.place)
        except Exception as error:  # noqa: BLE001 (any failure of a group is that group's alone)
            replies = [(None, {"error": f"{type(error).__name__}: {error}"}) for _ in group]
        seconds = (time.perf_counter() - start) / len(group)
        for client, (reply, report) in zip(group, replies, strict=True):
            reports[str(client)] = {**report, "seconds": seconds}
            if reply is None:
                continue
            if client in pooled and pool.takes(reply, report["num_examples"]):
                reports[str(client)]["pooled"] = True
            else:
                update = reply.cpu() if isinstance(reply, Params) else reply.change()
                arrays[str(client)] = update.flat.numpy()
    total = pool.total()
    if total is not None:
        arrays[POOL] = total.numpy()
    return arrays, reports


class _Pool:
    """The exact sum of what clients answer: of what they reached, minus what all of them were sent, and of vectors.

    Several are added in one pass over the sum, which for a large network takes half the time.

    Args:
        network: where clients work one by one.
        scale: the scale of the sum, see `fedforget.core.exact.exact_scale`.
    """

    def __init__(self, network: FlatModule, scale: float) -> None:
        self.network, self.scale = network, scale
        self.room = max(1, min(WAITING, WAITING_BYTES // network.start.nbytes))
        # By what is subtracted: the network's start, in its own order, what a stack was sent, or nothing.
        self.waiting: dict[str, list[tuple[Tensor, int]]] = {"network": [], "stack": [], "vectors": []}
        self._sums: dict[str, ExactSum] = {}

    @property
    def place(self) -> int:
        """The network's vector that is free for the next client."""
        return len(self.waiting["network"])

    def takes(self, reply: _Reply, examples: int) -> bool:
        """Add a client's answer, or the change from where it started, unless it cannot be added exactly."""
        if isinstance(reply, Params):
            kind, vector, start, around = "vectors", reply.flat, None, (0.0, 0.0)
        else:
            kind = "network" if isinstance(reply, FlatModule) else "stack"
            vector, start, around = reply.vector, reply.start, reply.start_ends
        if examples > self.scale or not can_add_exactly(vector, around):
            return False
        if kind not in self._sums:
            nothing = vector.new_zeros((), dtype=torch.float64).expand_as(vector)
            self._sums[kind] = ExactSum(nothing, self.scale, start)
        waiting = self.waiting[kind]
        waiting.append((vector, examples))
        if len(waiting) == self.room:
            self._sums[kind].add(waiting)
            waiting.clear()
        return True

    def total(self) -> Tensor | None:
        """The sum, float64 in main memory; ``None`` if nothing was added."""
        totals = []
        for kind, exact in self._sums.items():
            exact.add(self.waiting[kind])
            totals.append(exact.total(self._translated) if kind == "network" else exact.total().cpu())
        # Exact sums may be added in any order.
        return reduce(torch.add, totals) if totals else None

    def _translated(self, vector: Tensor, minus: float) -> Tensor:
        """A vector of the network, less a number, in the order of its layout."""
        return self.network.params(vector.cpu(), minus).flat


def _received(vector: NDArray, layout: Layout, kept: bool) -> Params:
    """A vector that a strategy sent: in the model's layout, or, if it has another length, as one layer.

    Unless it is to be ``kept`` as it is, it is copied, because what arrived may be shared, read-only memory.
    """
    fits = vector.shape == (layout.size,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what cannot be written to
        values = torch.from_numpy(vector) if kept else torch.tensor(vector)
    return Params(values, layout if fits else Layout(("vector",), (vector.shape,)))


@dataclass(frozen=True)
class _Reached:
    """The parameters that a client of a stack reached, and those that it started from, as a `FlatModule` has them.

    Args:
        vector: what it reached, ``[d]``, on the device.
        start: what it started from.
        start_ends: the `ends` of that.
        layout: the layout of both.
    """

    vector: Tensor
    start: Tensor
    start_ends: tuple[float, float]
    layout: Layout

    def change(self) -> Params:
        """The one minus the other, in main memory."""
        return Params((self.vector - self.start).cpu(), self.layout)


_Reply = Params | FlatModule | _Reached


def _train_group(job: _Job, group: Sequence[int], place: int) -> list[tuple[_Reply | None, dict]]:
    """Reply and report of each client of a group, which is stacked if it has more than one member.

    A client that trains alone works in the network's vector number ``place``. If its reply is the change that its
    routine made there, the network stands for it, which would otherwise be computed for nothing.
    """
    bench, network = job.bench, job.network
    states = {client: _client(job, client, stacked=len(group) > 1) for client in group}
    working = {client: state for client, state in states.items() if state is not None}
    replies: dict[int, _Reply] = {}
    if len(group) > 1 and working:
        sent = job.params["model"]
        start = sent.flat.to(bench.labels.device)
        vectors, minus = stacks.train(list(working.values()), start, job.stack, bench.inputs)
        if minus is None:
            replies = {client: Params(vector, sent.layout) for client, vector in zip(working, vectors, strict=True)}
        else:
            around = ends(minus)
            replies = {c: _Reached(v, minus, around, sent.layout) for c, v in zip(working, vectors, strict=True)}
    else:
        for client, state in working.items():
            network.reset(place)
            reply = job.routine(state)
            if reply is not None and not isinstance(reply, Params):
                raise TypeError(f"routine {job.work.routine!r} returned a {type(reply).__name__}, not Params or None")
            replies[client] = network if reply is None else reply.cpu()
    return [(replies.get(client), _report(states[client], replies.get(client))) for client in group]


def _report(state: routines.Client | None, reply: _Reply | None) -> dict:
    if state is None or reply is None:
        return {"num_examples": 0}
    return {
        "num_examples": state.places.numel(),
        "steps": state.steps,
        "examples": state.examples,
        "loss": float(state.total_loss) / max(state.steps, 1),
        "bytes": _billed(reply, state.sparse),
    }


def _billed(reply: _Reply, sparse: bool) -> int:
    """Bytes of a reply; a ``sparse`` one is sent as its non-zero entries and a bitmap of their places, if that is less.

    A change has the size and the type of what the client started from.
    """
    if not sparse:
        return reply.layout.size * (reply.flat if isinstance(reply, Params) else reply.start).element_size()
    flat = (reply if isinstance(reply, Params) else reply.change()).flat
    return min(flat.nbytes, int(flat.count_nonzero()) * flat.element_size() + -(-len(flat) // 8))


def _client(job: _Job, client: int, stacked: bool) -> routines.Client | None:
    """A client with the split it works on; ``None`` if it holds no such data. One in a stack has its rows alone."""
    work, bench = job.work, job.bench
    whose = work.seeds, work.removed, work.request
    rows, places, capacity, forgotten, planned = bench.held(whose, client, work.split, work.planned)
    if not rows.numel():
        return None
    state = routines.Client(
        id=client,
        round=work.round,
        model=job.network.module,
        inputs=bench.inputs[:0] if stacked else routines.take(bench.inputs, rows).to(job.params["model"].flat.dtype),
        labels=bench.labels[rows],
        places=places,
        capacity=capacity,
        local=bench.task.local,
        seeds=work.seeds.child("client", client, work.round),
        options=work.options,
        vectors={name: vector for name, vector in job.params.items() if name != "model"},
        rows=rows,
        forgotten=forgotten,
        planned=planned,
        shelf=Shelf(Path(work.shelves) / f"client-{client}") if work.shelves else None,
        bfloat16=job.precision == "bfloat16",
    ).with_recipe()
    state.parameters = job.network.trainable
    return state
