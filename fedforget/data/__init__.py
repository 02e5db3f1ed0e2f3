"""The data of a federation: sources, partitioning, corruption, and the splits that clients work on."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedforget.data.check import check_task
from fedforget.data.corruption import brightest, coins, corrupt, stamp
from fedforget.data.facts import DataFacts, count_duplicates, count_labels
from fedforget.data.holder import load_holder, write_holders
from fedforget.data.origins import Origins
from fedforget.data.partition import partition, split_holdout
from fedforget.data.sources import Dataset, load_source
from fedforget.request import UnlearningRequest
from fedforget.schema.data import CorruptionConfig, DataConfig, PartitionConfig, TaskConfig, unknown
from fedforget.seeds import Seeds

__all__ = [
    "CorruptionConfig",
    "DataConfig",
    "DataFacts",
    "FederatedData",
    "PartitionConfig",
    "TaskConfig",
    "adopt",
    "check_task",
    "divide",
    "load",
]
SPLITS = ("train", "retain", "forget", "holdout", "noise", "canary", "canary_in", "canary_out", "few", "rest")
FEW = 20  # one in so many forgotten examples is known to whoever tries to relearn the others


class FederatedData:
    """The data of all clients, or with ``task.source=holder`` of one, decoded once a process.

    Read-only by agreement: every client shares the tensors.

    Attributes:
        held: the clients whose data is here.
        inputs: training and holdout images of those clients, corrupted, float32 ``[N, C, H, W]``.
        labels: their labels, corrupted, int64 ``[N]``.
        test_inputs: the clean global test set, float32 ``[M, C, H, W]``.
        test_labels: int64 ``[M]``.
        num_classes: how many classes occur; labels are below it.
        input_shape: ``(C, H, W)``.
        num_clients: clients are ``0..num_clients-1``.
        record: what corruption touched, in JSON types: ``{}`` for none, else ``{"kind": ..., "positions":
            {client: [...]}}`` with positions as in sample requests.
        corruption: what was done to the data, with classes as labels.
        facts: what is known of the data, for the report.
        origins: what of the source is where; ``None`` for a holder's data, whose rows are its own affair.
        seeds: the random streams of the data.
        fingerprint: digest of all the above; nodes that differ in it hold different data.

    Raises:
        ValueError: if the data cannot be loaded, divided or corrupted as asked.
    """

    def __init__(self, config: DataConfig) -> None:
        self.seeds = Seeds(config.seed).child("data")
        if config.task.source == "holder":
            source = load_holder(config.task.path)
            parts = _own_part(source, config)
        else:
            source = load_source(config.task, self.seeds)
            parts = partition(source.train_labels.numpy(), source.train_ids, config.partition, self.seeds)
        self.held = range(len(parts))
        if source.holding:
            self.held = range(source.holding.client, source.holding.client + 1)
        halves = [
            split_holdout(part, config.partition.holdout, self.seeds.numpy("holdout", client))
            for client, part in enumerate(parts)
        ]
        self._train = [train for train, _ in halves]
        self._holdout = [holdout for _, holdout in halves]
        self.corruption = config.corruption.resolved(source.labels)
        self.inputs, self.labels, touched = corrupt(
            source.train_inputs, source.train_labels, self._train, source.num_classes, self.corruption, self.seeds
        )
        self._labels = self.labels.numpy()
        self._canaries = touched if config.corruption.kind == "canary" else {}
        self._noised = touched if config.corruption.kind == "noise" else {}
        self._clean = source.train_inputs if self._noised else None
        positions = {str(client): rows.tolist() for client, rows in touched.items()}
        self.record: dict[str, Any] = {"kind": config.corruption.kind, "positions": positions} if touched else {}
        self.test_inputs, self.test_labels = source.test_inputs, source.test_labels
        self.num_classes, self.input_shape = source.num_classes, source.input_shape
        self.num_clients = len(parts)
        natural = config.partition.kind == "natural"
        self.origins = Origins(source.origin, self._train, self._holdout, natural) if source.origin else None
        self.facts = _facts(source, self._train, self.origins)
        self.fingerprint = self._digest(source)

    def __getstate__(self) -> dict[str, Any]:
        """Tensors as arrays, which processes on one machine can share (fedforget/grid.py)."""
        tensors = {name: value.numpy() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return {**vars(self), **tensors, "_tensors": list(tensors)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tensors = state.pop("_tensors")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # shared memory cannot be written to
            vars(self).update({name: torch.from_numpy(v) if name in tensors else v for name, v in state.items()})
        self._train, self._holdout = ([part.copy() for part in parts] for parts in (self._train, self._holdout))

    def num_train(self, client: int) -> int:
        """Size of the client's training split, candidate canaries included; sample requests count up to it."""
        return len(self._train[client])

    def class_counts(self, client: int) -> list[int]:
        """Examples of each class in the client's training split, candidate canaries included."""
        return np.bincount(self._labels[self._train[client]], minlength=self.num_classes).tolist()

    def split(
        self,
        client: int,
        name: str,
        trajectory: Seeds,
        removed: tuple[UnlearningRequest, ...] = (),
        request: UnlearningRequest | None = None,
    ) -> Tensor:
        """A part of a client's data.

        Args:
            client: the client's id.
            name: ``train`` (the training split without canaries whose coin is 0 and without what ``removed`` names);
                ``retain`` and ``forget`` (``train`` without, and only, what ``request`` names); ``holdout`` (never
                trained on); ``noise`` (what of ``forget`` carries noise); ``canary`` (all candidates, whatever was
                removed), ``canary_in`` and ``canary_out`` (the candidates by coin); ``few`` and ``rest`` (every
                `FEW`-th example of ``forget``, and the others).
            trajectory: the streams of the training run, from which the canaries' coins come.
            removed: requests served before.
            request: the request being served.

        Returns:
            int64 positions in `inputs`, ascending.

        Raises:
            ValueError: if the client or the name is unknown, a position is outside the client's training split, or
                a part of ``train`` lacks a request.
        """
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
        if not 0 <= client < self.num_clients:
            raise ValueError(f"client {client} does not exist; the clients are 0 to {self.num_clients - 1}")
        if client not in self.held:
            raise ValueError(f"client {client} is not here: this is the data of client {self.held[0]} alone")
        if name == "holdout":
            return torch.from_numpy(self._holdout[client])
        train = self._train[client]
        if name == "train" and not removed and client not in self._canaries:
            return torch.from_numpy(train)
        chosen = np.ones(len(train), dtype=bool)
        candidates = self._canaries.get(client, np.zeros(0, dtype=np.int64))
        if len(candidates) or name.startswith("canary"):
            heads = coins(client, len(candidates), trajectory)
            if name.startswith("canary"):
                chosen_coins = {"canary_in": heads, "canary_out": ~heads}.get(name, np.ones_like(heads))
                return torch.from_numpy(train[candidates[chosen_coins]])
            chosen[candidates[~heads]] = False
        for earlier in removed:
            chosen &= ~self._named(client, earlier)
        if name != "train":
            if request is None:
                raise ValueError(f"split {name!r} needs a request, but there is none")
            named = self._named(client, request)
            chosen &= ~named if name == "retain" else named
        if name == "noise":
            chosen &= np.isin(np.arange(len(train)), self._noised.get(client, ()))
        rows = torch.from_numpy(train[chosen])
        if name in ("few", "rest"):
            few = torch.arange(len(rows)) % FEW == 0
            return rows[few if name == "few" else ~few]
        return rows

    def triggered(self) -> Tensor:
        """The test images with the backdoor's trigger on them, ``[M, C, H, W]``.

        Raises:
            ValueError: if no trigger was planted.
        """
        if self.corruption.kind != "trigger":
            raise ValueError(f"corruption.kind={self.corruption.kind} plants no trigger; use corruption=trigger")
        return stamp(self.test_inputs, self.corruption.patch, brightest(self.inputs))

    def noise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The images at ``rows`` before noise was added, and the noise, ``[n, C, H, W]`` each.

        Raises:
            ValueError: if no noise was added to any.
        """
        if self._clean is None:
            raise ValueError(f"corruption.kind={self.corruption.kind} adds no noise; use corruption=noise")
        return self._clean[rows], self.inputs[rows] - self._clean[rows]

    def check(self, request: UnlearningRequest) -> None:
        """Check a request against the data.

        Raises:
            ValueError: if a target does not exist, nothing would be forgotten, or nothing retained.
        """
        limit, noun = {"class": (self.num_classes, "class")}.get(request.scope, (self.num_clients, "client"))
        for target in request.targets if request.scope == "class" else request.clients:
            if target >= limit:
                raise ValueError(f"the request names {noun} {target}, but there are only {limit}: 0 to {limit - 1}")
        forgotten = sum(int(self._named(client, request).sum()) for client in range(self.num_clients))
        if forgotten == 0:
            raise ValueError(f"the request ({request}) names no training example, so there is nothing to forget")
        if forgotten == sum(map(self.num_train, range(self.num_clients))):
            raise ValueError(f"the request ({request}) names all training examples, so there is nothing to retain")

    def _named(self, client: int, request: UnlearningRequest) -> np.ndarray:
        """Which examples of the client's training split a request names: bool ``[num_train(client)]``."""
        train = self._train[client]
        if request.scope == "client":
            return np.full(len(train), client in request.targets)
        if request.scope == "class":
            return np.isin(self._labels[train], request.targets)
        positions = request.positions(client)
        if positions and positions[-1] >= len(train):
            raise ValueError(
                f"the request names position {positions[-1]} of client {client}, "
                f"whose training split has only {len(train)} examples"
            )
        named = np.zeros(len(train), dtype=bool)
        named[list(positions)] = True
        return named

    def _digest(self, source: Dataset) -> str:
        hasher = hashlib.sha256()
        tensors = [self.test_inputs, self.test_labels]
        if source.holding:  # what holders agreed on covers the training data of each, and is the same at all
            hasher.update(source.holding.agreed.encode())
        else:
            tensors = [self.inputs, self.labels, *tensors]
        for tensor in tensors:
            hasher.update(json.dumps(list(tensor.shape)).encode())
            hasher.update(tensor.contiguous().numpy().data)
        if not source.holding:
            for part in (*self._train, *self._holdout, *self._canaries.values()):
                hasher.update(json.dumps(part.tolist()).encode())
        return hasher.hexdigest()


def _facts(source: Dataset, train: list[np.ndarray], origins: Origins | None) -> DataFacts:
    """What is known of the data; duplicates are known where all training examples are here."""
    counts = [count_labels(labels.numpy(), source.labels) for labels in (source.train_labels, source.test_labels)]
    duplicates = None if source.holding else count_duplicates(source.alike, train, len(source.train_labels))
    holder = source.holding.client if source.holding else None
    owners = origins.owners if origins else ()
    named = source.named
    return DataFacts(named.files, named.columns, source.labels, counts[0], counts[1], owners, duplicates, holder)


def _own_part(source: Dataset, config: DataConfig) -> list[np.ndarray]:
    """Positions by client where one client's data is all there is."""
    holding = source.holding
    assert holding is not None, "load_holder says whose data it is"
    if config.partition.clients != holding.num_clients:
        raise ValueError(
            f"partition.clients={config.partition.clients}, but the holders agreed on {holding.num_clients} clients"
        )
    if config.corruption.kind != "none":
        raise ValueError(f"corruption.kind={config.corruption.kind} is not done to a holder's own data; use none")
    nothing = np.zeros(0, dtype=np.int64)
    parts = [nothing] * holding.num_clients
    parts[holding.client] = np.arange(len(source.train_labels))
    return parts


def divide(config: DataConfig, folder: Path) -> list[Path]:
    """Write what each client of a simulation holds into a folder of its own, see `fedforget.data.holder`.

    Raises:
        ValueError: if the data cannot be loaded or divided as asked, or would be corrupted.
    """
    if config.corruption.kind != "none":
        raise ValueError(f"corruption.kind={config.corruption.kind} cannot be divided among holders; use none")
    return write_holders(config.task, config.partition, Seeds(config.seed).child("data"), folder)


KEPT = 2  # how many federations' data a process keeps
_loading = threading.Lock()  # two threads that ask at once must not decode twice
_built: dict[DataConfig, FederatedData] = {}  # the one used last at the end


def load(config: DataConfig) -> FederatedData:
    """The data that a configuration describes, built once a process.

    Raises:
        ValueError: as `FederatedData`.
    """
    with _loading:
        federated = _built.get(config) or FederatedData(config)
        _keep(config, federated)
        return federated


def adopt(config: DataConfig, federated: FederatedData) -> None:
    """Let `load` return in this process what another one built."""
    with _loading:
        _keep(config, federated)


def _keep(config: DataConfig, federated: FederatedData) -> None:
    _built.pop(config, None)
    _built[config] = federated
    if len(_built) > KEPT:
        _built.pop(next(iter(_built)))
