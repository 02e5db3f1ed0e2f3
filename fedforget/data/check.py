"""What a data set decides before any image is read: columns, labels, ids, and what requests and corruption name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fedforget.data.facts import DataFacts, count_labels
from fedforget.data.images import decode_one
from fedforget.data.partition import check_partition
from fedforget.data.sources import choose_examples
from fedforget.schema.data import CorruptionConfig, PartitionConfig, TaskConfig
from fedforget.seeds import Seeds

NONE = CorruptionConfig()
LOCAL = ("digits", "folder")  # sources that are read without a download, and on the machine that starts the run


class Step(Protocol):
    """What is read of a request as the user writes it (`fedforget.config.RequestStep`)."""

    @property
    def classes(self) -> Sequence[int | str]: ...
    @property
    def owners(self) -> Sequence[int | str]: ...
    @property
    def rows(self) -> Sequence[int]: ...
    @property
    def records(self) -> Sequence[int | str]: ...


def check_task(
    task: TaskConfig,
    partition: PartitionConfig,
    corruption: CorruptionConfig = NONE,
    steps: Sequence[Step] = (),
    seed: int = 0,
) -> DataFacts | None:
    """Refuse what cannot be loaded, by reading schemas, labels, ids and one image of each file: about a second.

    `FederatedData` makes the same checks, and decodes all images.

    Args:
        task: which data set.
        partition: how it is divided.
        corruption: what is done to it.
        steps: the requests.
        seed: of the run, by which examples are drawn.

    Returns:
        What is known then: neither owners by client nor duplicates. ``None`` for sources that are downloaded, or read
        where a holder is.

    Raises:
        ValueError: as `FederatedData`, and if a request names a class, owner, row or record that is not there.
    """
    if task.source not in LOCAL:
        return None
    chosen = choose_examples(task, Seeds(seed).child("data"))
    check_partition(chosen.train.labels, chosen.origin.owners, partition)
    corruption.resolved(chosen.labels)
    for step in steps:
        for label in step.classes:
            chosen.labels.index(label, "request.classes")
        if step.owners:
            chosen.origin.check_owners(step.owners)
        if step.rows:
            chosen.origin.check_rows(step.rows)
        if step.records:
            chosen.origin.check_rows(chosen.origin.rows_of(step.records))
    for encoded in chosen.first():
        decode_one(encoded, 0, task.mode)
    train, test = (count_labels(labels, chosen.labels) for labels in (chosen.train.labels, chosen.test.labels))
    return DataFacts(chosen.named.files, chosen.named.columns, chosen.labels, train, test)
