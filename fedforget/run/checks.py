"""What cannot work is refused before anything is trained, and what a strategy's code raises becomes one sentence."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fedforget.cohort import AuditFailed, TooFewClients
from fedforget.config import StrategySpec
from fedforget.exchange import RECORDS
from fedforget.grid import GridEnded
from fedforget.history import HistoryConfig
from fedforget.run.progress import Stopped
from fedforget.run.setting import Setting, cohort_of
from fedforget.seeds import Seeds
from fedforget.store import CannotWrite, DamagedFile
from fedforget.strategy import find


def check(setting: Setting) -> None:
    """Refuse what cannot work.

    Raises:
        ValueError: if the data are too few for an audit, a request leaves nothing, or a strategy refuses the task.
    """
    if int(setting.federation.about["num_test"]) < 2:  # the audit measures distances between test images
        raise ValueError("the task has a single test example, but an audit needs two at least")
    for number, request in enumerate(setting.requests):
        cohort = cohort_of(setting, Seeds(0), number)
        if not cohort.targets:
            raise ValueError(f"request {request} names no training example that is still there")
        if not cohort.retained:
            raise ValueError(f"request {request} leaves no training data at any client")
    for spec in setting.specs:
        with code_of_strategy(spec, refuses=True):
            strategy = setting.strategy(spec)
            strategy.card  # noqa: B018 (a card that cannot be made is found here)
            strategy.check(cohort_of(setting, Seeds(0), 0))


def record_of(setting: Setting) -> HistoryConfig:
    """The configured record; ``auto`` is the least that the strategies' cards and the request ask for.

    Raises:
        ValueError: if the configured record is less than that.
    """
    kept, cards = setting.config.history, {spec.label: setting.strategy(spec).card for spec in setting.specs}
    levels = {f"strategy {label!r}": card.records for label, card in cards.items()}
    after = setting.requests[0].after_round
    if after not in (None, setting.config.learning.rounds):  # the model to unlearn from is not the last one
        levels[f"request.after_round={after}"] = "globals"
    for label, card in cards.items():
        if card.keep < 1 and kept.keep < 1 and (card.keep, card.select) != (kept.keep, kept.select):
            raise ValueError(
                f"history.keep={kept.keep:g} ({kept.select}) prunes the updates of which strategy {label!r} "
                f"is to keep {card.keep:g} ({card.select}); use history.keep=1"
            )
    needy = max(levels, key=lambda who: RECORDS.index(levels[who]))
    most, asked = levels[needy], kept.record
    if asked == "auto":
        return replace(kept, record=most)
    if RECORDS.index(asked) < RECORDS.index(most):
        raise ValueError(f"history.record={asked}, but {needy} needs {most}; use history.record={most}")
    return kept


@contextmanager
def code_of_strategy(spec: StrategySpec, refuses: bool = False) -> Iterator[None]:
    """Whatever is wrong with a strategy's code, as one sentence that names the strategy and the line of its file.

    Where it ``refuses`` a task, a ValueError is its own sentence to the user, and passes.

    Raises:
        ValueError: in the place of what the code raised. What is no fault of it passes: a full disk, too many clients
            that failed, or another trajectory's failure.
    """
    try:
        yield
    except (TooFewClients, AuditFailed, CannotWrite, DamagedFile, GridEnded, Stopped):
        raise
    except Exception as error:
        if refuses and type(error) is ValueError:
            raise
        file = inspect.getfile(find(spec.name))
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f" in {Path(file).name}, line {lines[-1]}" if lines else ""
        what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"strategy {spec.label!r} failed{where}: {what}") from error
