"""How much disk a run will take, said before anything is trained, and refused where it does not fit.

What is recorded of a trajectory is known exactly (but for the files' headers, some hundred bytes each); what the audit
keeps is an estimate, and so is the journal that lets an interrupted trajectory go on.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from fedforget.data import audit_sets
from fedforget.history import HistoryConfig, bytes_of_update
from fedforget.params import Layout

FLOAT = 4  # bytes of a number in a stored model
HALF = 2  # of one in the features of an example
SUM = 8  # of one in a sum over clients
ROW = 4 * 8  # of an example of an audit set beside its logits: label, client, place, and whether it was trained on
UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Need:
    """Bytes that a run will write; they add with ``+``.

    Args:
        recordings: the histories.
        journals: exchanges of trajectories that are not finished; they are deleted afterwards.
        models: models that strategies and further rounds leave.
        audits: what models answer.
    """

    recordings: int = 0
    journals: int = 0
    models: int = 0
    audits: int = 0

    def __add__(self, other: Need) -> Need:
        return Need(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def total(self) -> int:
        """All of it, at the moment when most of it is there."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = (f"{readable(getattr(self, field.name))} of {field.name}" for field in fields(self))
        return f"about {readable(self.total)} of disk: {', '.join(parts)}"


def readable(number: float) -> str:
    """A number of bytes with its unit."""
    unit = 0
    while number >= 1000 and unit < len(UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {UNITS[unit]}"


def of_recording(
    layout: Layout, config: HistoryConfig, cohorts: Iterable[Collection[int]], targets: Collection[int], pools: bool
) -> Need:
    """A trajectory while it is learned: the tensors of its recording, and its journal.

    Args:
        layout: of the model.
        config: level and form of the record; the level is not ``auto``.
        cohorts: the clients of each round.
        targets: the clients whose updates the level ``targets`` keeps.
        pools: whether updates that are not recorded come as one sum.
    """
    cohorts, own = list(cohorts), set(targets)
    kept = [{"all": set(c), "targets": own.intersection(c)}.get(config.record, set()) for c in map(set, cohorts)]
    models = 2 if config.record == "nothing" else len(cohorts) + 1
    alone = [len(mine if pools else cohort) for mine, cohort in zip(kept, cohorts, strict=True)]
    sums = sum(len(cohort) > number for number, cohort in zip(alone, cohorts, strict=True))
    updates = sum(map(len, kept)) * bytes_of_update(layout, config)
    return Need(models * FLOAT * layout.size + updates, (sum(alone) * FLOAT + sums * SUM) * layout.size)


def of_answers(layout: Layout, classes: int, sizes: Mapping[str, int]) -> int:
    """About how many bytes the answers on some audit sets take; ``sizes``: examples by set."""
    weights = [shape for shape in layout.shapes if len(shape) > 1]
    number = 0
    for name, size in sizes.items():
        kept = audit_sets.find(name).features
        widths = {"last": weights[-1][-1], "layers": audit_sets.LAYER_WIDTH * len(weights)}
        features = HALF * widths.get(kept, 0) if kept != "noise" else FLOAT * 2
        number += size * (FLOAT * classes + ROW + features)
    return number


def already(folder: Path) -> int:
    """Bytes of the files in a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def refuse(need: Need, root: Path, record: str) -> None:
    """Refuse a run that does not fit.

    Args:
        need: what it needs.
        root: where it is to be written.
        record: the level of its recordings.

    Raises:
        ValueError: if the file system has less room.
    """
    free = shutil.disk_usage(root).free
    if need.total <= free:
        return
    less = "" if record in ("nothing", "globals") else "history.keep below 1, history.dtype=bfloat16, "
    raise ValueError(
        f"the run needs {need} (history.record={record}), but {root} has {readable(free)} free; use "
        f"history.record=auto, {less}fewer evaluation.seeds or strategies, or another output-dir"
    )
