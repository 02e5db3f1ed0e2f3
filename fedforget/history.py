"""The trajectory on disk: per round the global model, the cohort, its weights and, where asked for, its updates.

A recording lies in one folder, one file a round, and is complete or resumable at every moment. Its bytes are billed to
the strategies that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedforget.exchange import RECORDS, Card, Exchange, Pool, Replies, Reply
from fedforget.ledger import Cost
from fedforget.params import Layout, Params
from fedforget.schema.learning import HistoryConfig
from fedforget.seeds import Seeds
from fedforget.store import (
    DamagedFile,
    Store,
    digest,
    discard,
    load_json,
    load_tensors,
    make_folder,
    open_tensors,
    save_json,
    save_tensors,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SELECTORS = ("top", "random", "bottom")
COMPLETE = "complete.json"  # the last file of a recording


def compress(update: Params, config: HistoryConfig, seeds: Seeds) -> dict[str, Tensor]:
    """An update as the tensors that are stored: ``values``, and where needed which entries they are.

    Layer-wise pruning keeps ``max(1, round(keep * size))`` entries of each layer. A random choice is drawn from
    ``seeds`` and costs no bytes; others are stored as a bitmap (d/8 bytes) or, if that is shorter, as 32-bit indices.
    """
    dtype = DTYPES[config.dtype]
    if config.keep >= 1:
        return {"values": update.flat.to(dtype)}
    kept = _kept(update.layout, config, seeds, update.flat)
    stored = {"values": update.flat[kept].to(dtype)}
    if config.select == "random":
        return stored
    if 4 * len(kept) < update.layout.size / 8:
        return {**stored, "indices": kept.to(torch.int32)}
    mask = np.zeros(update.layout.size, dtype=bool)
    mask[kept.numpy()] = True
    return {**stored, "bitmap": torch.from_numpy(np.packbits(mask))}


def bytes_of_update(layout: Layout, config: HistoryConfig) -> int:
    """Bytes of what `compress` stores of an update."""
    size, number = DTYPES[config.dtype].itemsize, layout.size
    if config.keep >= 1:
        return size * number
    kept = sum(_number_kept(config, length) for length in layout.sizes)
    return size * kept + (0 if config.select == "random" else min(4 * kept, -(-number // 8)))


def _number_kept(config: HistoryConfig, size: int) -> int:
    """How many entries pruning keeps of a layer."""
    return max(1, round(config.keep * size))


def decompress(stored: Mapping[str, Tensor], layout: Layout, config: HistoryConfig, seeds: Seeds) -> Params:
    """The update that `compress` stored, float32, with zeros where nothing was kept."""
    values = stored["values"].to(torch.float32, copy=True)
    if config.keep >= 1:
        return Params(values, layout)
    if config.select == "random":
        kept = _kept(layout, config, seeds)
    elif "indices" in stored:
        kept = stored["indices"].long()
    else:
        kept = torch.from_numpy(np.flatnonzero(np.unpackbits(stored["bitmap"].numpy(), count=layout.size)))
    return Params(torch.zeros(layout.size).index_put_((kept,), values), layout)


def _kept(layout: Layout, config: HistoryConfig, seeds: Seeds, flat: Tensor | None = None) -> Tensor:
    """Sorted positions of the entries that pruning keeps."""
    pieces, start = [], 0
    for number, size in enumerate(layout.sizes):
        count = _number_kept(config, size)
        if config.select == "random":
            chosen = torch.from_numpy(seeds.numpy(number).permutation(size)[:count])
        else:
            assert flat is not None, "only a random choice can be made without the update"
            magnitude = flat[start : start + size].abs()
            chosen = magnitude.argsort(descending=config.select == "top", stable=True)[:count]
        pieces.append(start + chosen.sort().values)
        start += size
    return torch.cat(pieces)


class Recording:
    """The folder of one recorded trajectory.

    Args:
        folder: where it lies.
        layout: the layout of its vectors.
        config: level and form of the record; the level is not ``auto``.
        targets: the clients whose updates the level ``targets`` keeps.
        seeds: the trajectory's random streams (for random pruning).
    """

    def __init__(
        self, folder: Path, layout: Layout, config: HistoryConfig, targets: tuple[int, ...], seeds: Seeds
    ) -> None:
        assert config.record in RECORDS, "the level is resolved before anything is recorded"
        self.folder, self.layout, self.config, self.targets, self.seeds = folder, layout, config, targets, seeds
        self._about: dict[int, dict] = {}
        make_folder(folder)

    def begin(self, model: Params) -> None:
        """Record the initial model."""
        Store.tidy(self.folder)
        self._save(0, {"global": model.flat}, {"weights": {}, "notes": []})

    def add(self, round: int, model: Params, replies: Replies, notes: list[str], last: bool) -> None:
        """Record a round: the model after it, the cohort's weights, and the updates that the level keeps."""
        keeps_all, keeps_targets = self.config.record == "all", self.config.record == "targets"
        tensors = {"global": model.flat} if last or self.config.record != "nothing" else {}
        for reply in replies:
            if keeps_all or (keeps_targets and reply.client in self.targets):
                stored = compress(reply.update, self.config, self.stream(round, reply.client))
                tensors.update({f"{reply.client}/{name}": tensor for name, tensor in stored.items()})
        weights = {str(client): number for client, number in replies.weights().items()}
        self._save(round, tensors, {"weights": weights, "notes": notes})

    def finish(self, rounds: int, cost: Cost) -> None:
        """Mark the recording complete."""
        content = {"rounds": rounds, "cost": cost.to_dict(), "targets": list(self.targets)}
        save_json(self.folder / COMPLETE, content)

    @property
    def is_complete(self) -> bool:
        """Whether the trajectory was learned to its end."""
        return (self.folder / COMPLETE).exists()

    def summary(self) -> tuple[int, Cost]:
        """The number of rounds, and what learning them cost."""
        content = load_json(self.folder / COMPLETE)
        assert isinstance(content, dict)
        return content["rounds"], Cost(**content["cost"])

    def verify(self) -> dict[int, list[str]]:
        """Read every file once; returns each round's notes, which say who was left out of it and why.

        Raises:
            DamagedFile: naming the first file that does not match its checksum or is missing.
        """
        rounds, _ = self.summary()
        self._about = {round: self.load(round)[1] for round in range(rounds + 1)}
        return {round: metadata["notes"] for round, metadata in self._about.items()}

    def about(self, round: int) -> dict:
        """Metadata of one round, which is kept: the file holds every update of the round."""
        if round not in self._about:
            self._about[round] = self.load(round)[1]
        return self._about[round]

    def load(self, round: int) -> tuple[Mapping[str, Tensor], dict]:
        """Tensors and metadata of one round; of a large one the tensors are read when they are asked for."""
        try:
            now = self.path(round).stat()
            return _load(self.path(round), now.st_mtime_ns, now.st_ino)
        except FileNotFoundError as error:
            raise DamagedFile(self.path(round), "it is missing") from error

    def update(self, round: int, client: int) -> Params:
        """The recorded update of a client in a round."""
        prefix = f"{client}/"
        tensors, _ = self.load(round)
        stored = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        return decompress(stored, self.layout, self.config, self.stream(round, client))

    def stream(self, round: int, client: int) -> Seeds:
        """The random stream that prunes a client's update of a round."""
        return self.seeds.child("prune", round, client)

    def path(self, round: int) -> Path:
        """The file of one round."""
        return self.folder / f"round-{round:05d}.safetensors"

    def _save(self, round: int, tensors: Mapping[str, Tensor], metadata: dict) -> None:
        self._about.pop(round, None)
        save_tensors(self.path(round), tensors, metadata)


@lru_cache(maxsize=4)
def _load(path: Path, changed: int, inode: int) -> tuple[Mapping[str, Tensor], dict]:
    """A round's file; time of change and inode tell a rewritten file from the one that was read before."""
    return open_tensors(path)


GLOBAL_MODELS = "global models"
UPDATES_OF_TARGETS, UPDATES_OF_OTHERS = "updates of the leaving clients", "updates made from models that knew them"


@dataclass(frozen=True)
class History:
    """A recording as a strategy sees it: only what its card declared, up to the request, without removed clients.

    Args:
        recording: the trajectory.
        rounds: T, the number of rounds before the request arrived.
        final: the model to unlearn from (the result of the request before, in a sequence).
        card: what the strategy declared; ``None`` allows everything.
        removed: clients that earlier requests removed; they appear in no cohort.
        targets: the clients of the request.
    """

    recording: Recording
    rounds: int
    final: Params
    card: Card | None = None
    removed: frozenset[int] = frozenset()
    targets: tuple[int, ...] = ()

    @property
    def initial(self) -> Params:
        """The model before the first round."""
        return Params(self.recording.load(0)[0]["global"].clone(), self.recording.layout)

    def model(self, round: int) -> Params:
        """The global model after ``round`` (0 is the initial one)."""
        self._declared("globals", f"the global model of round {round}", round)
        return Params(self.recording.load(round)[0]["global"].clone(), self.recording.layout)

    def weights(self, round: int) -> dict[int, int]:
        """n_k, the examples of each client that took part in ``round``, in client-id order."""
        weights = {int(client): weight for client, weight in self.recording.about(round)["weights"].items()}
        return {client: weights[client] for client in sorted(weights) if client not in self.removed}

    def examples(self, round: int) -> int:
        """N_t, the examples of everybody who took part in ``round``, clients that earlier requests removed among them.

        A client's update went into the round's model with the weight ``weights(t)[c] / examples(t)``.
        """
        return sum(self.recording.about(round)["weights"].values())

    def cohort(self, round: int) -> tuple[int, ...]:
        """The clients that took part in ``round``, ascending."""
        return tuple(self.weights(round))

    def update(self, round: int, client: int) -> Params:
        """The recorded update of ``client`` in ``round``: its model after local training minus the model it was sent.

        Raises:
            ValueError: if the card did not declare it, or the client took no part.
        """
        needed = "targets" if client in self.targets else "all"
        self._declared(needed, f"the update of client {client} in round {round}", round)
        if client not in self.cohort(round):
            raise ValueError(f"client {client} took no part in round {round}; its cohort was {self.cohort(round)}")
        update = self.recording.update(round, client)
        form = self._form
        if form == self.recording.config:
            return update
        stream = self.recording.stream(round, client)
        return decompress(compress(update, form, stream), update.layout, form, stream)

    @property
    def _form(self) -> HistoryConfig:
        """The form in which the server keeps updates for this strategy: as recorded, or pruned further by its card."""
        recorded = self.recording.config
        if self.card is None or self.card.keep >= recorded.keep:
            return recorded
        return replace(recorded, keep=self.card.keep, select=self.card.select)

    def _declared(self, level: str, what: str, round: int) -> None:
        """Refuse what the card does not name, and what it names but is not billed for."""
        card = self.card or Card("all")
        if RECORDS.index(card.records) < RECORDS.index(level):
            raise ValueError(f"this strategy reads {what}, but its card declares records={card.records!r}")
        if level == "globals" and card.storage != "records":
            raise ValueError(f"this strategy reads {what}, but its card declares storage={card.storage!r}")
        if round and (round - 1) % card.every:
            raise ValueError(f"this strategy reads {what}, but its card declares every={card.every}")

    def bytes_stored(self) -> int:
        """Bytes that the server keeps from learning on because the strategy's card asks for them."""
        return sum(size for _, _, size in self._kept())

    def residues(self) -> dict[str, int]:
        """Those of the stored bytes that are a function of the forgotten data, by what they are.

        The first round in which a target took part taints its own update, the global model after it, and all that was
        trained from there on. The model that the strategy hands over is not counted.
        """
        took_part = (round for round in range(1, self.rounds + 1) if set(self.targets) & set(self.cohort(round)))
        first = next(took_part, self.rounds + 1)
        found: dict[str, int] = {}
        for what, round, size in self._kept():
            if round > first or (round == first and what != UPDATES_OF_OTHERS):
                found[what] = found.get(what, 0) + size
        return found

    def _kept(self) -> Iterator[tuple[str, int, int]]:
        """``(what, round, bytes)`` of everything the server keeps."""
        card, layout = self.card or Card("all"), self.recording.layout
        if card.records == "nothing":
            return
        model = 4 * layout.size
        due = range(1, self.rounds + 1, card.every)
        cohorts = {round: [int(c) for c in self.recording.about(round)["weights"]] for round in due}
        if card.storage == "sums":
            for client in {client for cohort in cohorts.values() for client in cohort}:
                yield UPDATES_OF_TARGETS if client in self.targets else UPDATES_OF_OTHERS, self.rounds, model
            return
        update = bytes_of_update(layout, self._form)
        if card.storage != "updates":
            yield from ((GLOBAL_MODELS, round, model) for round in (0, *due))
        for round, cohort in cohorts.items():
            for client in cohort:
                mine = client in self.targets
                if card.storage == "updates" or card.records == "all" or (card.records == "targets" and mine):
                    yield UPDATES_OF_TARGETS if mine else UPDATES_OF_OTHERS, round, update


def find_recording(
    store: Store, key: str, layout: Layout, config: HistoryConfig, targets: tuple[int, ...], seeds: Seeds
) -> Recording:
    """A complete recording of trajectory ``key`` that holds at least what is asked, else the one to be made.

    A richer recording serves a poorer need: a strategy that is added or dropped re-learns nothing.
    """
    folder = store.folder("trajectories", key)
    levels = RECORDS[RECORDS.index(config.record) :]
    for level in reversed(levels):
        form = replace(config, record=level)
        for candidate in sorted(folder.glob(_slug(form) + ("@*" if level == "targets" else ""))):
            owners = _owners(candidate)
            if owners is not None and (level != "targets" or set(targets) <= set(owners)):
                return Recording(candidate, layout, form, owners, seeds)
    mine = f"@{digest(targets)}" if config.record == "targets" else ""
    return Recording(folder / f"{_slug(config)}{mine}", layout, config, targets, seeds)


def _owners(folder: Path) -> tuple[int, ...] | None:
    """The clients whose updates a recording of level ``targets`` holds; ``None`` if it is not complete."""
    try:
        content = load_json(folder / COMPLETE)
    except FileNotFoundError:
        return None
    except DamagedFile:  # `Recording.verify` names it
        return ()
    assert isinstance(content, dict)
    return tuple(content["targets"])


def _slug(config: HistoryConfig) -> str:
    plain = config.keep >= 1 or config.record in ("nothing", "globals")
    pruned = "" if plain else f"-{config.select}{config.keep}"
    dtype = "" if config.record in ("nothing", "globals") else f"-{config.dtype}"
    return f"{config.record}{dtype}{pruned}"


class FileJournal:
    """Exchanges on disk, until the strategy that made them is done.

    Args:
        folder: where they lie.
        say: is told, in one line, of damage.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        self.folder, self.say = make_folder(folder), say

    def get(self, number: int) -> Exchange | None:
        """Exchange ``number``, or ``None`` if it has to be made: it is not there, or damaged, which is said.

        What follows a damaged one is deleted, because who answers the second time may be others, and what was asked
        afterwards was asked of a model made from the first answers.
        """
        try:
            tensors, metadata = load_tensors(self._path(number))
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            self.say(f"  note: {error}")
            for later in self.folder.glob("*.safetensors"):
                if later.name >= self._path(number).name:
                    discard(later)
            return None
        entries = {int(client): entry for client, entry in metadata["replies"].items()}
        names, shapes = metadata["layout"]
        layout = Layout(tuple(names), tuple(map(tuple, shapes)))
        alone = [client for client in sorted(entries) if str(client) in tensors]
        pool = None
        if "pool" in tensors:
            pooled = {client: entry for client, entry in entries.items() if client not in alone}
            weights = {client: number for client, (number, _) in pooled.items()}
            losses = {client: loss for client, (_, loss) in pooled.items()}
            pool = Pool([tensors["pool"].numpy()], layout, weights, losses)
        one_by_one = (Reply(client, Params(tensors[str(client)], layout), *entries[client]) for client in alone)
        left_out = {int(client): reason for client, reason in metadata["left_out"].items()}
        return Replies(one_by_one, pool, metadata["scale"]), Cost(**metadata["cost"]), left_out

    def put(self, number: int, exchange: Exchange) -> None:
        """Remember exchange ``number``."""
        replies, cost, left_out = exchange
        losses = replies.losses()
        entries = {str(client): [number, losses[client]] for client, number in replies.weights().items()}
        tensors = {str(reply.client): reply.update.flat for reply in replies}
        layouts = [reply.update.layout for reply in replies]
        if replies.pool:
            tensors["pool"] = replies.pool.total()
            layouts.append(replies.pool.layout)
        layout = layouts[0] if layouts else Layout((), ())
        metadata = {
            "replies": entries,
            "scale": replies.scale,
            "cost": cost.to_dict(),
            "left_out": {str(client): reason for client, reason in left_out.items()},
            "layout": [layout.names, layout.shapes],
        }
        save_tensors(self._path(number), tensors, metadata)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"
