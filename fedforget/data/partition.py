"""Who holds which training examples, and which of them each client never trains on."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np

from fedforget.schema.data import GROWTHS, PartitionConfig
from fedforget.seeds import Seeds


def partition(labels: np.ndarray, ids: np.ndarray | None, config: PartitionConfig, seeds: Seeds) -> list[np.ndarray]:
    """Divide the examples with the partitioners of ``flwr_datasets``, which take about a millisecond a client.

    Only ``iid`` does without them: a random order cut into equal runs is theirs too, and they take seconds to import.

    Args:
        labels: classes ``[N]``.
        ids: natural client ids ``[N]``; needed for ``kind="natural"`` only.
        config: how to divide.
        seeds: the streams of the data: ``"order"``, ``"partition"``.

    Returns:
        For each client its positions in ``labels``, ascending; disjoint, none empty.

    Raises:
        ValueError: if the examples cannot be divided as asked.
    """
    check_partition(labels, ids, config)
    # The partitioners cut runs out of the given order, so the order must be random.
    order = seeds.numpy("order").permutation(len(labels))
    if config.kind == "iid":
        return [np.sort(part) for part in np.array_split(order, config.clients)]
    import datasets

    columns = {"position": order, "label": labels[order]}
    if config.kind == "natural":
        assert ids is not None
        columns["id"] = ids[order]
    partitioner = _partitioner(config, seeds.integer("partition"))
    partitioner.dataset = datasets.Dataset.from_dict(columns).with_format("numpy")
    try:
        # Each warning either becomes an error below or is what was asked for; a progress bar of milliseconds is noise.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            count = partitioner.num_partitions
            parts = [np.sort(partitioner.load_partition(client)["position"][:]) for client in range(count)]
    except ValueError as error:
        raise ValueError(_explain(config, error)) from error
    empty = [client for client, part in enumerate(parts) if len(part) == 0]
    if empty:
        raise ValueError(f"partition.kind={config.kind} leaves client {empty[0]} without examples; use fewer clients")
    return parts


def split_holdout(positions: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw what a client never trains on.

    Returns:
        Training and holdout positions, in their given order; at least one is a training position.
    """
    size = min(round(share * len(positions)), len(positions) - 1)
    held = np.zeros(len(positions), dtype=bool)
    held[rng.permutation(len(positions))[:size]] = True
    return positions[~held], positions[held]


def check_partition(labels: np.ndarray, ids: np.ndarray | None, config: PartitionConfig) -> None:
    """Refuse a division that cannot be, whatever is drawn; arguments as of `partition`.

    Raises:
        ValueError: if ids are missing, or there are more clients, ids or shards than can be filled.
    """
    if config.kind == "natural":
        if ids is None:
            raise ValueError("partition.kind=natural needs task.id_column, but the task names no such column")
        found = len(np.unique(ids))
        if config.clients not in (0, found):
            raise ValueError(
                f"partition.clients={config.clients} but the task has {found} natural ids; use 0 or {found}"
            )
    if config.clients > len(labels):
        raise ValueError(f"partition.clients={config.clients} but the task has only {len(labels)} training examples")
    shards = config.clients * config.shards_per_client
    if config.kind == "shards" and shards > len(labels):
        raise ValueError(
            f"partition.shards_per_client={config.shards_per_client} makes {shards} shards, "
            f"but the task has only {len(labels)} training examples"
        )


def _explain(config: PartitionConfig, error: ValueError) -> str:
    if config.kind == "dirichlet":
        return (
            f"partition.alpha={config.alpha:g} gives some of {config.clients} clients fewer than "
            f"partition.min_examples={config.min_examples} examples in every draw; "
            "raise alpha, or lower min_examples or clients"
        )
    return f"partition.kind={config.kind} cannot divide the task among {config.clients} clients: {error}"


def _partitioner(config: PartitionConfig, seed: int) -> Any:
    from flwr_datasets import partitioner as known  # takes seconds to import

    count = config.clients
    match config.kind:
        case "dirichlet":
            return known.DirichletPartitioner(count, "label", config.alpha, config.min_examples, seed=seed)
        case "pathological":
            # "first-deterministic": no class is left out while there are clients for it
            return known.PathologicalPartitioner(
                count, "label", config.classes_per_client, class_assignment_mode="first-deterministic", seed=seed
            )
        case "shards":
            return known.ShardPartitioner(count, "label", config.shards_per_client, seed=seed)
        case "sizes":
            growths = (known.LinearPartitioner, known.SquarePartitioner, known.ExponentialPartitioner)
            return dict(zip(GROWTHS, growths, strict=True))[config.growth](count)
        case _:
            return known.NaturalIdPartitioner("id")
