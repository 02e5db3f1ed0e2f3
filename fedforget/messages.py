"""What travels between server and clients: message types, record keys and encodings, and nothing else does.

A message to a node carries one JSON text (what to do, for which clients) and one flat vector a parameter set, as raw
little-endian float32 (float64 where a strategy works in float64). Nothing in a message can execute: names of routines
are looked up, never unpickled.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedforget.data import DataConfig
from fedforget.models import ModelConfig
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.routines import LocalConfig
from fedforget.seeds import Seeds

DESCRIBE, TRAIN, EVALUATE = "query.describe", "train", "evaluate"
RAW = "fedforget.raw"
ARRAYS, WORK, REPORT, POOL = "arrays", "work", "report", "pool"
WEIGHT = "num-examples"
TYPES = ("float16", "float32", "float64", "int64")
LEARNER_BLOCK = 1 << 16  # entries
LINEAR = ("linear", "mlp")  # networks of linear layers, whose clients are always stacked
SMALL = ("lenet5", "cnn")  # other networks that can be stacked, and one client of which does not fill a GPU


@dataclass(frozen=True)
class Task:
    """What a node must know to build the data and the model of a run.

    Args:
        data: where the data comes from and how it lies at the clients.
        model: the network.
        local: how a client trains.
        device: ``auto``, ``cpu`` or ``cuda``.
        mode: ``auto`` (see `engine`), ``sequential`` (one client at a time), ``stacked`` (groups of clients as batched
            matrix products) or ``vmap`` (groups of clients, any network), see `fedforget.client.stacks`.
        precision: of `fedforget.routines.train`: ``float32``, ``tf32`` (CUDA only) or ``bfloat16``. Everything else
            that clients compute, and every evaluation, is in float32.

    Raises:
        ValueError: if stacks are asked for a network that cannot be stacked.
    """

    data: DataConfig
    model: ModelConfig
    local: LocalConfig
    device: str = "auto"
    mode: str = "auto"
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.mode == "stacked" and self.model.name not in LINEAR + SMALL:
            known = ", ".join(LINEAR + SMALL)
            raise ValueError(f"engine.mode=stacked, but only {known} can be stacked, not {self.model.name}")

    def engine(self, device: str) -> str:
        """``sequential``, ``stacked`` or ``vmap``: how clients are trained on devices of a type, ``cpu`` or ``cuda``.

        The rule behind ``auto`` knows neither node nor timing, so that numbers repeat.
        """
        if self.mode != "auto":
            return self.mode
        if self.model.name in LINEAR:
            return "stacked"
        if device == "cuda":
            return "vmap" if self.model.name in SMALL else "sequential"
        # A CPU's own convolutions are slow where channels are as few as in LeNet-5 (benchmarks/engines.py).
        return "stacked" if self.model.name == "lenet5" and self.model.width <= 1 else "sequential"

    def to_json(self) -> str:
        """Canonical JSON; equal tasks give equal texts, so a node can cache by it."""
        fields = {"data": json.loads(self.data.to_json()), "model": asdict(self.model), "local": asdict(self.local)}
        how = {"device": self.device, "mode": self.mode, "precision": self.precision}
        return json.dumps({**fields, **how}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Task:
        """The task that `to_json` wrote."""
        fields = json.loads(text)
        data = DataConfig.from_json(json.dumps(fields["data"]))
        local = LocalConfig(**fields["local"])
        how = (fields[name] for name in ("device", "mode", "precision"))
        return cls(data, ModelConfig(**fields["model"]), local, *how)


@dataclass(frozen=True)
class Work:
    """What clients are asked in one exchange.

    Args:
        task: canonical JSON of the `Task`.
        seeds: the random streams of the trajectory.
        routine: ``"module:function"``; empty for an evaluation.
        round: the round worked in.
        split: the split of each client's data that is worked on.
        clients: the clients asked; a node finds its own share of them here.
        removed: requests already served.
        request: the request being served.
        options: numbers, texts and tuples of them for the routine.
        parts: for an evaluation, ``(client, split, start, stop, model)``: the examples from ``start`` to ``stop`` of
            the split in its audit order, or so many points around or between examples (``near``, ``far``, ``plane``),
            and the number of the model that is asked; its vector has that number as its name.
        groups: the clients cut into groups that are trained together; empty: one by one.
        pooled: the clients whose answers are wanted as one weighted sum.
        scale: the scale of that sum, see `fedforget.core.exact.exact_scale`.
        planned: requests that clients know of while they learn.
        shelves: the folder in which clients keep vectors, each in one of its own; empty where they keep none. It stands
            for what a deployed node keeps in a folder of its own (client_app.py).
    """

    task: str
    seeds: Seeds
    routine: str = ""
    round: int = 0
    split: str = "train"
    clients: tuple[int, ...] = ()
    removed: tuple[UnlearningRequest, ...] = ()
    request: UnlearningRequest | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[tuple[int, str, int, int, int], ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    pooled: tuple[int, ...] = ()
    scale: float = 1.0
    planned: tuple[UnlearningRequest, ...] = ()
    shelves: str = ""

    def to_json(self) -> str:
        """JSON of the work; `from_json` inverts it."""
        fields = {**vars(self), "seeds": vars(self.seeds), "options": dict(self.options)}
        fields["removed"] = [request.to_dict() for request in self.removed]
        fields["planned"] = [request.to_dict() for request in self.planned]
        fields["request"] = self.request and self.request.to_dict()
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Work:
        """The work that `to_json` wrote."""
        fields = json.loads(text)
        seeds = Seeds(fields["seeds"]["root"], tuple(fields["seeds"]["path"]))
        removed, planned = (
            tuple(UnlearningRequest.from_dict(request) for request in fields[name]) for name in ("removed", "planned")
        )
        request = fields["request"] and UnlearningRequest.from_dict(fields["request"])
        clients, parts = tuple(fields["clients"]), tuple(tuple(part) for part in fields["parts"])
        parsed = {"seeds": seeds, "removed": removed, "request": request, "clients": clients, "parts": parts}
        parsed["planned"] = planned
        options = fields["options"].items()
        parsed["options"] = {name: tuple(value) if isinstance(value, list) else value for name, value in options}
        parsed["groups"] = tuple(tuple(group) for group in fields["groups"])
        parsed["pooled"] = tuple(fields["pooled"])
        return cls(**{**fields, **parsed})


def encode(array: NDArray) -> Array:
    """A NumPy array as a Flower `Array` of raw little-endian bytes (Flower's own encoding copies it three times).

    The bytes are a read-only view of the array, so that it must not change while the message is on its way.
    """
    raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    encoded = Array(str(array.dtype), tuple(array.shape), RAW, b"")
    encoded.data = raw.reshape(-1).view(np.uint8).data.toreadonly()  # type: ignore[assignment]
    return encoded


def decode(array: Array) -> NDArray:
    """The NumPy array in a Flower `Array` that `encode` made, read-only.

    Raises:
        ValueError: if it is encoded in another way, or its bytes do not fit the stated type and shape.
    """
    if array.stype != RAW:  # NumPy's own form gets the memory that it claims before a byte of it is read
        raise ValueError(f"a message holds an array encoded as {array.stype!r}; expected {RAW!r}")
    if array.dtype not in TYPES:
        raise ValueError(f"a message holds an array of type {array.dtype!r}; expected one of {', '.join(TYPES)}")
    return np.frombuffer(array.data, dtype=np.dtype(array.dtype).newbyteorder("<")).reshape(array.shape)


def pack(work: Work, vectors: Mapping[str, Params] | None = None) -> RecordDict:
    """The content of a message to a node; vectors travel in the precision they have."""
    arrays = {name: encode(params.flat.numpy()) for name, params in (vectors or {}).items()}
    return RecordDict({WORK: ConfigRecord({"json": work.to_json()}), ARRAYS: _record(arrays)})


def repack(content: RecordDict, work: Work) -> RecordDict:
    """The same arrays (not copied) with other work, for another node."""
    return RecordDict({WORK: ConfigRecord({"json": work.to_json()}), ARRAYS: content.array_records[ARRAYS]})


def unpack(content: RecordDict) -> tuple[Work, dict[str, NDArray]]:
    """The work and the flat vectors that `pack` wrote."""
    arrays = {name: decode(array) for name, array in content.array_records[ARRAYS].items()}
    return Work.from_json(str(content.config_records[WORK]["json"])), arrays


def pack_reply(arrays: Mapping[str, NDArray], report: Mapping[str, dict]) -> RecordDict:
    """A node's answer: arrays by ``"client"``, ``"client/name"`` or `POOL`, and a JSON report by client id."""
    encoded = _record({name: encode(array) for name, array in arrays.items()})
    return RecordDict({ARRAYS: encoded, REPORT: ConfigRecord({"json": json.dumps(report)})})


def unpack_reply(content: RecordDict) -> tuple[dict[str, NDArray], dict[str, dict]]:
    """The arrays and the report that `pack_reply` wrote.

    Raises:
        ValueError: if it wrote nothing of the kind.
    """
    try:
        arrays = {name: decode(array) for name, array in content.array_records[ARRAYS].items()}
        report = json.loads(str(content.config_records[REPORT]["json"]))
    except (KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not isinstance(report, dict) or not all(isinstance(entry, dict) for entry in report.values()):
        raise ValueError("its report is not one entry a client")
    return arrays, report


# Held while Python code is parsed: by Flower's learners, whose arrays have a literal as their header (numpy.load), and
# for a strategy's address. Before 3.11.8 and 3.12.2 that fails now and then with a SystemError if two threads do it at
# once (python/cpython#106905).
READING = threading.RLock()


class LearnerArray(Array):
    """A block of a model as a Flower learner sees it: float64, made on demand, never serialised.

    Args:
        model: the block of the global model, in any precision.
        update: that of a client's update; ``None`` for the global model itself.
        origin: the global model that this is a block of, and the block's number, if it is one.
    """

    def __init__(self, model: NDArray, update: NDArray | None = None, origin: tuple[Params, int] | None = None) -> None:
        super().__init__("float64", model.shape, RAW, b"")
        self.model, self.update, self.origin = model, update, origin

    def numpy(self) -> NDArray:
        """``model`` (and ``+ update``) in float64, shape ``[size of the block]``; always a new array."""
        return self.model.astype(np.float64) if self.update is None else np.add(self.model, self.update, dtype=float)


def to_learner(params: Params) -> ArrayRecord:
    """A global model for a Flower learner, in blocks.

    Blocks that fit into a core's cache make a learner's arithmetic about ten times faster than whole vectors do.
    """
    blocks = _blocks(params.flat.numpy())
    return _record({str(number): LearnerArray(block, origin=(params, number)) for number, block in enumerate(blocks)})


def from_learner(arrays: ArrayRecord, layout: Layout) -> Params:
    """The global model, float32, that `to_learner` or a Flower learner made; not a copy if `to_learner` did."""
    origins = [getattr(array, "origin", None) for array in arrays.values()]
    if origins and origins[0]:
        whole, _ = origins[0]
        if whole.flat.dtype == torch.float32 and origins == [(whole, number) for number in range(len(origins))]:
            return Params(whole.flat, layout)
    flat = np.empty(layout.size, dtype=np.float32)
    for number, block in enumerate(_blocks(flat)):
        sent = arrays[str(number)]
        if isinstance(sent, LearnerArray) and sent.update is None:
            block[:] = sent.model  # as it was sent: this spares the way through float64
        else:
            with READING:
                block[:] = sent.numpy()
    return Params(torch.from_numpy(flat), layout)


def learner_model(asked: Collection[Message], layout: Layout) -> Params:
    """The global model in a learner's messages, float32; it sends all clients the same."""
    content = next(iter(asked)).content
    assert all(message.content is content for message in asked), "a learner sends all clients the same model"
    return from_learner(next(iter(content.array_records.values())), layout)


def learner_replies(
    asked: Mapping[int, Message], model: Params, updates: Mapping[int, Params], weights: Mapping[int, int]
) -> list[Message]:
    """Clients' replies in the form that Flower's learners aggregate, in the order of ``updates``.

    A learner that averages may be given the mean of all as the update of one client.
    """
    sent = _blocks(model.flat.numpy())
    replies = []
    for client, update in updates.items():
        blocks = zip(sent, _blocks(update.flat.numpy()), strict=True)
        arrays = _record({str(number): LearnerArray(*block) for number, block in enumerate(blocks)})
        metrics = MetricRecord({WEIGHT: weights[client]})
        replies.append(Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=asked[client]))
    return replies


def _blocks(flat: NDArray) -> list[NDArray]:
    """Views of a vector, `LEARNER_BLOCK` entries each."""
    return [flat[start : start + LEARNER_BLOCK] for start in range(0, len(flat), LEARNER_BLOCK)]


def _record(arrays: Mapping[str, Array]) -> ArrayRecord:
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array  # by item: the constructor would replace it by a plain Array of bytes
    return record


def learner_options(content: RecordDict) -> dict[str, int | float | str]:
    """The settings that a learner sends along with the model, such as FedProx's ``proximal-mu``."""
    record = next(iter(content.config_records.values()), ConfigRecord())
    return {name: value for name, value in record.items() if isinstance(value, (int, float, str))}
