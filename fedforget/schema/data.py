"""What determines a federation's data: the task, who holds what, and what is done to it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedforget.names import nearest

if TYPE_CHECKING:
    from fedforget.data.classes import Classes

SOURCES = ("digits", "folder", "hub", "torchvision", "holder")
MODES = ("", "L", "RGB")
COLUMNS = ("input_column", "label_column", "id_column", "record_column")


def unknown(field: str, value: object, choices: Sequence[str]) -> ValueError:
    """The error for a value that is not among ``choices``; it names the nearest one."""
    return ValueError(f"{field}={value} is unknown{nearest(str(value), choices)}")


@dataclass(frozen=True)
class TaskConfig:
    """Which data set.

    Args:
        source: ``digits`` (scikit-learn's, 8x8, no download), ``folder``, ``hub``, ``torchvision`` or ``holder`` (each
            deployed SuperNode reads its own folder, see `fedforget.data.holder`).
        path: ``folder``: its path; ``hub``: the data set's name; ``torchvision``: its class, such as ``FashionMNIST``;
            ``holder``: empty, each node fills in its own.
        root: for ``torchvision``, where the files lie or go to; ``""`` means ``~/.cache/fedforget/torchvision``.
        input_column: the images; ``""`` where there is one image column.
        label_column: the classes: whole numbers, texts, booleans, a dictionary type or one-hot lists; ``""`` means the
            one of `fedforget.data.columns.LABEL_COLUMNS` that there is. Another column is never guessed.
        id_column: natural client ids (writers, hospitals), for ``partition.kind=natural``.
        record_column: names of examples, by which ``request.records`` names them.
        mode: ``L`` (8-bit grey) or ``RGB``: what images are converted to, from palettes, transparency (which is
            dropped), 1 bit or 16 bits (65535 becomes 255) a pixel, or from each other; ``""`` takes 8-bit grey or RGB
            images as they are, and no others.
        test_share: share of the examples drawn as test set where the source has none.
        max_train: how many training examples to draw; 0 takes all.
        max_test: how many test examples to draw; 0 takes all.

    Raises:
        ValueError: if the source is unknown, lacks its path, or a number is out of range.
    """

    source: str = "digits"
    path: str = ""
    root: str = ""
    input_column: str = ""
    label_column: str = ""
    id_column: str = ""
    record_column: str = ""
    mode: str = ""
    test_share: float = 0.2
    max_train: int = 0
    max_test: int = 0

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise unknown("task.source", self.source, SOURCES)
        if self.source not in ("digits", "holder") and not self.path:
            raise ValueError(f"task.source={self.source} needs task.path, but it is empty")
        if self.mode not in MODES:
            raise unknown("task.mode", self.mode, MODES[1:])
        for field in ("id_column", "record_column", "mode"):
            if getattr(self, field) and self.source not in ("folder", "hub"):
                raise ValueError(
                    f"task.{field}={getattr(self, field)} needs task.source=folder or hub, not {self.source}"
                )
        columns = [field for field in COLUMNS if getattr(self, field)]
        for one, other in itertools.combinations(columns, 2):
            if getattr(self, one) == getattr(self, other) and {one, other} != {"id_column", "record_column"}:
                raise ValueError(f"task.{one} and task.{other} are both {getattr(self, one)}; name two columns")
        if not 0 < self.test_share < 1:
            raise ValueError(f"task.test_share={self.test_share} must be above 0 and below 1")
        for field in ("max_train", "max_test"):
            if getattr(self, field) < 0:
                raise ValueError(f"task.{field}={getattr(self, field)} must be at least 0 (0 takes all)")
            if self.source == "holder" and getattr(self, field):
                raise ValueError(f"task.{field}={getattr(self, field)}, but task.source=holder takes all; use 0")


PARTITIONS = ("iid", "dirichlet", "pathological", "shards", "sizes", "natural")
GROWTHS = ("linear", "square", "exponential")


@dataclass(frozen=True)
class PartitionConfig:
    """How the training examples are divided among clients.

    Args:
        kind: ``iid``; ``dirichlet`` (class proportions drawn per client, arXiv:1905.12022); ``pathological`` (a few
            classes a client); ``shards`` (a few runs of the examples sorted by class, arXiv:1602.05629); ``sizes``
            (identically distributed, of growing size); ``natural`` (one client per value of ``task.id_column``).
        clients: number of clients; for ``natural`` either 0 or the number of ids.
        alpha: for ``dirichlet``, the concentration; smaller is more skewed.
        classes_per_client: for ``pathological``.
        shards_per_client: for ``shards``; what does not fill a shard is left out.
        growth: for ``sizes``, how the size grows with the client id: ``linear``, ``square`` or ``exponential``.
        min_examples: for ``dirichlet``, the smallest client that is accepted; the draw is repeated ten times at most.
        holdout: share of every client's examples that it never trains on.

    Raises:
        ValueError: if a name is unknown or a number is out of range.
    """

    kind: str = "iid"
    clients: int = 10
    alpha: float = 0.3
    classes_per_client: int = 2
    shards_per_client: int = 2
    growth: str = "linear"
    min_examples: int = 10
    holdout: float = 0.2

    def __post_init__(self) -> None:
        if self.kind not in PARTITIONS:
            raise unknown("partition.kind", self.kind, PARTITIONS)
        if self.growth not in GROWTHS:
            raise unknown("partition.growth", self.growth, GROWTHS)
        least = {"clients": 0 if self.kind == "natural" else 1}
        least |= dict.fromkeys(("classes_per_client", "shards_per_client", "min_examples"), 1)
        for field, bound in least.items():
            if getattr(self, field) < bound:
                raise ValueError(f"partition.{field}={getattr(self, field)} must be at least {bound}")
        if not self.alpha > 0:
            raise ValueError(f"partition.alpha={self.alpha} must be above 0")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"partition.holdout={self.holdout} must be at least 0 and below 1")


CORRUPTIONS = ("none", "trigger", "label_swap", "label_random", "noise", "canary")
CANARY_LABELS = ("random", "natural")


@dataclass(frozen=True)
class CorruptionConfig:
    """What is done to the training splits of some clients; holdout and test data stay clean.

    Args:
        kind: ``none``; ``trigger`` (a bright square and the target label: a backdoor); ``label_swap`` (two classes
            change names); ``label_random`` (wrong labels); ``noise`` (Gaussian noise on images, which keep their
            labels: the Gaussian poisoning of arXiv:2406.17216); ``canary`` (candidates that are trained on only where a
            coin says so: the randomised-inclusion audit, arXiv:2305.08846).
        clients: whose data is corrupted.
        share: share of each such client's eligible training examples: for ``trigger`` those not of the target class,
            for ``label_swap`` those of the two classes, for ``label_random`` and ``noise`` all. Not for ``canary``.
        target_class: for ``trigger``, the label given to marked images: a whole number is the label as the data have
            it, a text is a class's name (`fedforget.data.classes.Classes.index`).
        patch: for ``trigger``, side of the square in the lower right corner, in pixels.
        classes: for ``label_swap``, the two classes, named likewise.
        deviation: for ``noise``, its standard deviation in each entry of a normalised image, whose own is about 1.
        canaries: for ``canary``, candidates at each client.
        canary_label: for ``canary``, ``random`` (uniform over the wrong labels) or ``natural`` (the true ones).

    Raises:
        ValueError: if a name is unknown, a number is out of range, or no client is named.
    """

    kind: str = "none"
    clients: tuple[int, ...] = ()
    share: float = 1.0
    target_class: int | str = 0
    patch: int = 3
    classes: tuple[int | str, int | str] = (0, 1)
    deviation: float = 0.5
    canaries: int = 100
    canary_label: str = "random"

    def __post_init__(self) -> None:
        object.__setattr__(self, "clients", tuple(sorted(int(client) for client in self.clients)))
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.kind not in CORRUPTIONS:
            raise unknown("corruption.kind", self.kind, CORRUPTIONS)
        if self.canary_label not in CANARY_LABELS:
            raise unknown("corruption.canary_label", self.canary_label, CANARY_LABELS)
        if self.kind != "none" and not self.clients:
            raise ValueError(f"corruption.kind={self.kind} needs corruption.clients, but none is named")
        if len(set(self.clients)) != len(self.clients):
            raise ValueError(f"corruption.clients={list(self.clients)} names one client twice")
        if not 0 < self.share <= 1:
            raise ValueError(f"corruption.share={self.share} must be above 0 and at most 1")
        if len(set(self.classes)) != 2:
            raise ValueError(f"corruption.classes={list(self.classes)} must be two different classes")
        if not 0 < self.deviation < math.inf:
            raise ValueError(f"corruption.deviation={self.deviation} must be above 0 and finite")
        for field in ("patch", "canaries"):
            if getattr(self, field) < 1:
                raise ValueError(f"corruption.{field}={getattr(self, field)} must be at least 1")

    def resolved(self, classes: Classes) -> CorruptionConfig:
        """The same with the classes that it uses as numbers of the network's outputs.

        Raises:
            ValueError: if one does not occur.
        """
        if self.kind == "trigger":
            return replace(self, target_class=classes.index(self.target_class, "corruption.target_class"))
        if self.kind == "label_swap":
            first, second = (classes.index(label, "corruption.classes") for label in self.classes)
            return replace(self, classes=(first, second))
        return self


LATER = ("mode", "record_column")  # settings of a task that were added after results had been stored


@dataclass(frozen=True)
class DataConfig:
    """Everything that determines the data of a federation.

    Args:
        task: which data set.
        partition: who holds what.
        corruption: what is done to it.
        seed: root of the random draws in all three.
    """

    task: TaskConfig = TaskConfig()
    partition: PartitionConfig = PartitionConfig()
    corruption: CorruptionConfig = CorruptionConfig()
    seed: int = 0

    def to_json(self) -> str:
        """Canonical JSON; `from_json` inverts it.

        `LATER` settings are left out where they are empty: the text is part of the addresses of stored results.
        """
        fields = dataclasses.asdict(self)
        fields["task"] = {name: value for name, value in fields["task"].items() if value or name not in LATER}
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> DataConfig:
        """The configuration that `to_json` wrote."""
        fields = json.loads(text)
        return cls(
            TaskConfig(**fields["task"]),
            PartitionConfig(**fields["partition"]),
            CorruptionConfig(**fields["corruption"]),
            fields["seed"],
        )
