"""When a setting has an effect. What a user sets in vain is refused: a run that ignores it would mislead.

`EFFECTS` has an entry for each setting that some other setting can switch off; all others always have an effect, or are
refused where they do not fit by the class that declares them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from fedforget.options import in_vain


class Effect(NamedTuple):
    """The condition under which a setting has an effect.

    Args:
        words: what completes "it has an effect only with ...".
        holds: whether a run meets the condition, given its `fedforget.config.RunConfig`.
    """

    words: str
    holds: Callable[[Any], bool]


def value_of(config: Any, key: str) -> Any:
    """The value of a setting, such as ``"local.momentum"``."""
    section, _, field = key.partition(".")
    return getattr(getattr(config, section), field)


def _where(key: str, *values: str) -> Effect:
    """Only where a setting has one of some values."""
    words = f"{key}={' or '.join(filter(None, [', '.join(values[:-1]), values[-1]]))}"
    return Effect(words, lambda config: value_of(config, key) in values)


def _except(key: str, value: str) -> Effect:
    """Wherever a setting has another value than this one."""
    return Effect(f"another {key} than {value}", lambda config: value_of(config, key) != value)


def _both(first: Effect, second: Effect) -> Effect:
    return Effect(
        f"{first.words}, and with {second.words}", lambda config: first.holds(config) and second.holds(config)
    )


def _records_updates(config: Any) -> bool:
    """Whether clients' updates are recorded."""
    if config.history.record != "auto":
        return config.history.record in ("targets", "all")
    from fedforget.strategy import find

    cards = (find(spec.name)(spec.options).card for spec in config.strategies)
    return any(card.records in ("targets", "all") for card in cards)


_UPDATES = Effect(
    "history.record=targets or all (auto takes them if a strategy in the list needs them)", _records_updates
)
_DIVIDED = _except("task.source", "holder")  # else the data is divided already
_MARKED = ("trigger", "label_swap", "label_random", "noise")

EFFECTS: dict[str, Effect] = {
    "task.path": _where("task.source", "folder", "hub", "torchvision"),
    "task.root": _where("task.source", "torchvision"),
    "task.input_column": _where("task.source", "folder", "hub"),
    "task.label_column": _where("task.source", "folder", "hub"),
    "task.id_column": _both(_where("task.source", "folder", "hub"), _where("partition.kind", "natural")),
    "task.test_share": _where("task.source", "digits", "folder", "hub"),  # the others have a test set of their own
    "task.max_train": _DIVIDED,
    "task.max_test": _DIVIDED,
    "partition.kind": _DIVIDED,
    "partition.alpha": _both(_where("partition.kind", "dirichlet"), _DIVIDED),
    "partition.min_examples": _both(_where("partition.kind", "dirichlet"), _DIVIDED),
    "partition.classes_per_client": _both(_where("partition.kind", "pathological"), _DIVIDED),
    "partition.shards_per_client": _both(_where("partition.kind", "shards"), _DIVIDED),
    "partition.growth": _both(_where("partition.kind", "sizes"), _DIVIDED),
    "corruption.clients": _except("corruption.kind", "none"),
    "corruption.share": _where("corruption.kind", *_MARKED),
    "corruption.target_class": _where("corruption.kind", "trigger"),
    "corruption.patch": _where("corruption.kind", "trigger"),
    "corruption.classes": _where("corruption.kind", "label_swap"),
    "corruption.deviation": _where("corruption.kind", "noise"),
    "corruption.canaries": _where("corruption.kind", "canary"),
    "corruption.canary_label": _where("corruption.kind", "canary"),
    "local.momentum": _where("local.optimizer", "sgd"),
    "local.epochs": Effect("local.steps=0 (steps replace the epochs)", lambda config: config.local.steps == 0),
    "history.dtype": _UPDATES,
    "history.keep": _UPDATES,
    "history.select": _both(_UPDATES, Effect("history.keep below 1", lambda config: config.history.keep < 1)),
    "tuning.goal": Effect("tuning.trials above 0", lambda config: config.tuning.trials > 0),
    "tuning.trade_off": Effect("tuning.trials above 0", lambda config: config.tuning.trials > 0),
    "engine.workers": _except("engine.transport", "flower"),
    "engine.gpus_per_worker": _both(_except("engine.transport", "flower"), _except("engine.device", "cpu")),
}


def check_effects(config: Any, said: Collection[str]) -> None:
    """Refuse settings that somebody has set to another value than the default, and that have no effect.

    Args:
        config: the run, a `fedforget.config.RunConfig`.
        said: the settings that an experiment's file or an override names; what group files say is theirs to say.

    Raises:
        ValueError: naming the first such setting, and when it would have an effect.
    """
    for key, effect in EFFECTS.items():
        section, _, field = key.partition(".")
        default = next(each for each in dataclasses.fields(getattr(config, section)) if each.name == field).default
        value = value_of(config, key)
        if key in said and value != default and not effect.holds(config):
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(
                f"{key} is {shown!r}, but it has an effect only with {effect.words}; {_advice(key, shown)}"
            )
    for spec in config.strategies:
        _check_options(f"strategy.{spec.label}", spec.options, said)


def _check_options(key: str, options: Any, said: Collection[str]) -> None:
    """The same for the options of a strategy, which say themselves what they need."""
    for option in dataclasses.fields(options):
        value, name = getattr(options, option.name), f"{key}.{option.name}"
        lacking = in_vain(options, option.name, key) if name in said and value != option.default else ""
        if lacking:
            raise ValueError(f"{name} is {value!r}, but it has an effect only with {lacking}; leave it out")


def _advice(key: str, value: object) -> str:
    if key == "task.path":
        return f"did you mean task=mnist task.path={value} (or task.source=folder)?"
    return "leave it out"
