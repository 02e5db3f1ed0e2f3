"""The schema of a run, and how YAML files and overrides become one frozen value.

Layers, each on top of the one before: ``configs/default.yaml``, the experiment's YAML, the overrides. In any layer a
group (`GROUPS`) is either the name of a file in ``configs/<group>/``, which replaces the group's content, or a mapping,
which is merged onto it; a mapping may select a file first with the key ``use``. Lists replace lists. What no layer
mentions has the default of its dataclass.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
import types
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedforget.effects import check_effects, value_of
from fedforget.folders import places
from fedforget.found import strategy_names, strategy_titles
from fedforget.names import closest, nearest
from fedforget.options import check as check_options
from fedforget.request import SCOPES, UnlearningRequest
from fedforget.schema.data import CorruptionConfig, DataConfig, PartitionConfig, TaskConfig
from fedforget.schema.evaluation import EvaluationConfig
from fedforget.schema.learning import (
    DTYPES,
    GOALS,
    RECORDS,
    EngineConfig,
    HistoryConfig,
    LearningConfig,
    ModelConfig,
    TuningConfig,
)
from fedforget.schema.local import LocalConfig

GROUPS = ("task", "model", "partition", "corruption", "request", "evaluation")

_COMPUTED = re.compile(r"\$\{[^}]*:")  # a reference to what OmegaConf's resolvers compute, of the environment above all
_NO_BLANK = re.compile(r"\w+:\S+")
_CHECKSUM = re.compile("; checksum ([0-9a-f]{8})")  # at the end of the first line of what `to_yaml` wrote
_CHOICES = {
    "local.optimizer": ("sgd", "adam"),
    "history.record": RECORDS,
    "history.dtype": DTYPES,
    "history.select": ("top", "random", "bottom"),
    "tuning.goal": GOALS,
    "engine.transport": ("auto", "ray", "flower"),
    "engine.mode": ("auto", "sequential", "stacked", "vmap"),
    "engine.precision": ("float32", "tf32", "bfloat16"),
    "engine.device": ("auto", "cpu", "cuda"),
}
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "local.lr": ("above 0", lambda x: x > 0),
    "local.momentum": ("in [0, 1)", lambda x: 0 <= x < 1),
    "local.weight_decay": ("at least 0", lambda x: x >= 0),
    "local.lr_decay": ("in (0, 1]", lambda x: 0 < x <= 1),
    "local.epochs": ("at least 1", lambda x: x >= 1),
    "local.steps": ("at least 0", lambda x: x >= 0),
    "local.batch_size": ("at least 1", lambda x: x >= 1),
    "local.sd_gamma": ("at least 0", lambda x: x >= 0),
    "learning.rounds": ("at least 1", lambda x: x >= 1),
    "learning.fraction": ("in (0, 1]", lambda x: 0 < x <= 1),
    "learning.min_share": ("in (0, 1]", lambda x: 0 < x <= 1),
    "learning.timeout": ("above 0", lambda x: x > 0),
    "history.keep": ("in (0, 1]", lambda x: 0 < x <= 1),
    "tuning.trials": ("at least 0", lambda x: x >= 0),
    "tuning.trade_off": ("in [0, 1]", lambda x: 0 <= x <= 1),
    "engine.workers": ("at least 0", lambda x: x >= 0),
    "engine.gpus_per_worker": ("in [0, 1]", lambda x: 0 <= x <= 1),
    "engine.nodes": ("at least 0", lambda x: x >= 0),
    "engine.trajectories": ("at least 0", lambda x: x >= 0),
}

# What each scope's targets may be named by, the usual way first; and what else of a request a scope has.
_TARGETS = {"client": ("clients", "owners"), "sample": ("clients", "owners", "rows", "records"), "class": ("classes",)}
_FURTHER = {"client": (), "sample": ("samples", "share"), "class": ()}
_INSTEAD = {  # what somebody sets takes the place of what the group's file says
    "samples": ("share",),
    "share": ("samples",),
    "owners": ("clients",),
    "rows": ("clients", "samples", "share"),
    "records": ("clients", "samples", "share"),
}
_NAMING = ("clients", "owners", "classes", "samples", "rows", "records")


@dataclass(frozen=True)
class RequestStep:
    """One request as the user writes it, before the data are known; the experiment turns it into `UnlearningRequest`.

    Args:
        scope: ``"client"``, ``"sample"`` or ``"class"``.
        clients: the clients to forget; for a sample request the one client that owns the samples.
        owners: instead of ``clients``, values of ``task.id_column``, where the partition is natural.
        classes: the classes to forget, of a class request: a whole number is a label as the data have it, a text is a
            class's name.
        samples: positions in the client's training split, of a sample request.
        share: instead of ``samples``, the share of the client's training split to draw at random.
        rows: instead of a client and its samples, positions from 0 in the source's training split, as it is read; of a
            sample request.
        records: likewise, values of ``task.record_column``.
        after_round: the learning round after which the request arrives; None means after the last one.

    Raises:
        ValueError: if a field does not suit the scope, or what the scope needs is missing.
    """

    scope: str = "client"
    clients: tuple[int, ...] = ()
    owners: tuple[int | str, ...] = ()
    classes: tuple[int | str, ...] = ()
    samples: tuple[int, ...] = ()
    share: float = 1.0
    rows: tuple[int, ...] = ()
    records: tuple[int | str, ...] = ()
    after_round: int | None = None

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise _unknown("request.scope", self.scope, SCOPES)
        own = _TARGETS[self.scope]
        for name in _NAMING:
            value = getattr(self, name)
            if value and name not in (*own, *_FURTHER[self.scope]):
                raise ValueError(f"request.{name} is {list(value)}, but a {self.scope} request has none")
        given = [name for name in own if getattr(self, name)]
        if not given:
            raise ValueError(f"request.{own[0]} is empty, but a {self.scope} request must name {own[0]}, e.g. [3]")
        if len(given) > 1:
            raise ValueError(f"request.{given[0]} and request.{given[1]} are both given; name what to forget by one")
        if self.scope == "sample":
            self._check_samples(given[0])
        elif self.share != 1.0:
            raise ValueError(f"request.share is {self.share}, but only a sample request has a share")
        for name in ("owners", "classes", "records"):
            if len(set(map(str, getattr(self, name)))) < len(getattr(self, name)):
                raise ValueError(f"request.{name} is {list(getattr(self, name))}, which names one target twice")
        # Refuses negative and repeated numbers; what is named by a text is resolved once the data are known.
        numbers = {
            "client": self.clients,
            "class": tuple(label for label in self.classes if isinstance(label, int)),
            "sample": tuple((client, position) for client in (*self.clients, 0)[:1] for position in self.samples),
        }
        UnlearningRequest(self.scope, numbers[self.scope], self.after_round)
        UnlearningRequest("client", self.rows)

    def _check_samples(self, given: str) -> None:
        if given in ("rows", "records"):
            if self.samples or self.share != 1.0:
                raise ValueError(f"request.{given} names examples, so request.samples and request.share have no effect")
            return
        if len(getattr(self, given)) != 1:
            noun = given.removesuffix("s")
            raise ValueError(f"request.{given} is {list(getattr(self, given))}, but a sample request names one {noun}")
        if self.samples and self.share != 1.0:
            raise ValueError("request.samples and request.share are both given; a sample request takes one of them")
        if not self.samples and not 0 < self.share < 1:
            raise ValueError(
                f"request.share is {self.share}, but a sample request without samples needs a share in (0, 1)"
            )


@dataclass(frozen=True)
class RequestConfig(RequestStep):
    """The first request, and the ones that follow it.

    Args:
        then: requests served one after the other, each from the model that the one before left.
    """

    then: tuple[RequestStep, ...] = ()

    @property
    def steps(self) -> tuple[RequestStep, ...]:
        """All requests of the sequence, this one first."""
        return (self, *self.then)


@dataclass(frozen=True)
class StrategySpec:
    """One row of the comparison.

    Args:
        label: the row's name, that of the strategy or of a variant in ``configs/strategy``.
        name: the strategy, as `fedforget.strategy.find` knows it.
        options: an instance of the strategy's ``Config``.
    """

    label: str
    name: str
    options: Any


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run.

    Args:
        experiment: name of the experiment's YAML file.
        seed: root of every random stream.
        strategies: the rows to compare, apart from the no-op and the oracle, which every run has.

    The other fields are the sections, each described by its own class.

    Raises:
        ValueError: if two sections contradict each other.
    """

    experiment: str
    seed: int
    task: TaskConfig
    model: ModelConfig
    partition: PartitionConfig
    corruption: CorruptionConfig
    request: RequestConfig
    local: LocalConfig
    learning: LearningConfig
    history: HistoryConfig
    evaluation: EvaluationConfig
    tuning: TuningConfig
    engine: EngineConfig
    strategies: tuple[StrategySpec, ...]

    def __post_init__(self) -> None:
        from fedforget.strategy import make_learner

        _check_sections(self)
        make_learner(self.learning)  # refuses unknown learners and options
        _check_strategies(self)

    @property
    def data(self) -> DataConfig:
        """What determines the federation's data."""
        return DataConfig(self.task, self.partition, self.corruption, self.seed)


_SECTIONS: dict[str, Any] = {  # all but experiment, seed and strategies
    name: kind for name, kind in get_type_hints(RunConfig).items() if dataclasses.is_dataclass(kind)
}
_TOP = (*_SECTIONS, "seed", "strategies", "strategy")


def compose(experiment: str, overrides: str | Sequence[str] = "") -> RunConfig:
    """Read, merge and check the configuration of a run.

    Args:
        experiment: name of a file in ``configs/experiment``, or the absolute path of another file ending in ``.yaml``.
        overrides: ``key=value`` items, as a list or as one string in shell syntax, e.g.
            ``"strategies=[finetune,amnesiac] task=mnist request.clients=[2] strategy.finetune.rounds=5"``; values are
            YAML. Whole groups (``task=mnist``) are selected before single values are set, whatever their order.

    Raises:
        ValueError: one sentence that names the key, if anything is unknown, of the wrong type or contradictory.
    """
    path = _experiment_path(experiment)
    tree: dict[str, Any] = {}
    _apply(tree, _read(_files("")["default"]), None)
    mine = _read(path)
    _apply(tree, mine, path.parent)
    layers = [_parse(key, value) for key, value in sorted(_items(overrides), key=lambda item: item[0] not in GROUPS)]
    for layer in layers:
        _apply(tree, layer, None)
    # A copy of a whole configuration names every setting, and was checked when it was composed.
    said = {key for layer in ([] if _is_copy(path) else [mine]) + layers for key in _leaves(layer)}
    tree["request"] = _suiting(tree["request"], said)

    seed = _convert(int, tree.pop("seed"), "seed")
    labels = _convert(tuple[str, ...], tree.pop("strategies"), "strategies")
    options = tree.pop("strategy", {})
    for label in (label for layer in layers for label in layer.get("strategy", {})):
        if label not in labels:
            raise ValueError(f"strategy.{label} is set, but strategies does not list {label!r}{nearest(label, labels)}")
    files = {label: _strategy_file(label) for label in (*labels, *options)}
    _check_paths(tree["task"])
    sections = {name: _convert(kind, tree.get(name, {}), name) for name, kind in _SECTIONS.items()}
    _check_sections(types.SimpleNamespace(**sections))  # before the strategies' files are imported, which takes seconds
    specs = {label: _strategy(label, *files[label], options.get(label, {})) for label in files}
    config = RunConfig(path.stem, seed, **sections, strategies=tuple(specs[label] for label in labels))
    check_effects(config, said)
    return config


def absolute_paths(overrides: str | Sequence[str], base: Path) -> list[str]:
    """The overrides with relative paths resolved against ``base``, for a launcher that knows the user's folder.

    A ``task.path`` that is no folder there stays as it is, because it may be the name of a data set.
    """
    items = []
    for key, value in _items(overrides):
        if value and key in ("task.root", "task.path"):
            path = base / _home(value)
            if key == "task.root" or path.is_dir():
                value = _quoted(str(path))
        items.append(f"{key}={value}")
    return items


def _home(path: str) -> Path:
    """A path whose ``~`` is resolved, if there is such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"path {path!r} cannot be resolved: there is no such user") from error


def _quoted(text: str) -> str:
    """A text as YAML: in quotes if it would be read as something else, as `` #`` or a line break in a path would."""
    try:
        return text if yaml.safe_load(text) == text else json.dumps(text, ensure_ascii=False)
    except YAMLError:
        return json.dumps(text, ensure_ascii=False)


def to_dict(config: RunConfig) -> dict:
    """Every field of the run in plain JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: RunConfig) -> str:
    """A YAML experiment that composes to ``config`` again, apart from the experiment's name, which is its comment.

    Its first line also holds a checksum of the others, so that `compose` refuses a file that was damaged.
    """
    tree = to_dict(config)
    name = tree.pop("experiment")
    specs = tree.pop("strategies")
    tree["strategies"] = [spec["label"] for spec in specs]
    tree["strategy"] = {spec["label"]: spec["options"] for spec in specs}
    text = OmegaConf.to_yaml(OmegaConf.create(tree))
    return f"# The complete configuration of a run of {name}; checksum {zlib.crc32(text.encode()):08x}\n{text}"


def describe() -> dict[str, Any]:
    """What can be named, each with its file's first line: ``experiments``, and ``groups`` by group."""

    def titles(folder: str) -> dict[str, str]:
        # What is no text is refused by its name where it is used; here it only must not hide the others.
        texts = {name: path.read_text(encoding="utf-8", errors="replace") for name, path in _files(folder).items()}
        return {name: text.partition("\n")[0].lstrip("# ") for name, text in texts.items()}

    strategies = dict(sorted((strategy_titles() | titles("strategy")).items()))
    groups = {group: titles(group) for group in GROUPS} | {"strategy": strategies}
    return {"experiments": titles("experiment"), "groups": groups}


def as_setting(words: Sequence[str]) -> str:
    """The end of a sentence about an option that no command has: the setting that was meant, if it is one.

    Args:
        words: the option, such as ``--seed``, and what follows it.
    """
    key, _, value = words[0].lstrip("-").partition("=")
    key = key.replace("-", "_")
    fields = {f"{name}.{field.name}" for name, kind in _SECTIONS.items() for field in dataclasses.fields(kind)}
    meant = [field for field in sorted(fields | set(_TOP)) if key == field or field.endswith(f".{key}")]
    if not meant:
        return ""
    value = value or (words[1] if len(words) > 1 and not words[1].startswith("-") else "VALUE")
    return f"; settings have no dashes: did you mean {' or '.join(f'{field}={value}' for field in meant)}?"


def group_settings(group: str, name: str) -> dict[str, Any]:
    """The settings in ``configs/<group>/<name>.yaml``, as they stand there.

    Raises:
        ValueError: if there is no such file.
    """
    return _read(_file(group, name))


# Files and overrides -> one nested dict


def _files(folder: str) -> dict[str, Path]:
    """The YAML files of a config folder, by name.

    ``configs`` is a namespace package: a ``configs/`` folder of the user's joins the installed one, as ``strategies/``
    does, and a file of the same name in the folder that comes first on the path hides the other.
    """
    found = [place / folder for place in reversed(places("configs"))]
    return dict(sorted((path.stem, path) for place in found for path in place.glob("*.yaml")))


def _file(folder: str, name: str) -> Path:
    files = _files(folder)
    if name not in files:
        raise _unknown(folder, name, list(files))
    return files[name]


def _experiment_path(experiment: str) -> Path:
    if not experiment.endswith((".yaml", ".yml")):
        return _file("experiment", experiment)
    path = Path(experiment)
    if not path.is_absolute():
        raise ValueError(f"experiment path {experiment!r} is relative; give an absolute path")
    if not path.is_file():
        raise ValueError(f"experiment file {experiment!r} does not exist")
    return path


def _read(path: Path) -> dict:
    try:
        first, _, text = path.read_text(encoding="utf-8").partition("\n")
        stated = _CHECKSUM.search(first)
        if stated and f"{zlib.crc32(text.encode()):08x}" != stated[1]:
            raise ValueError(
                f"{path} is damaged or was edited (its checksum does not match); "
                "delete its first line to use it as it is"
            )
        content = _plain(OmegaConf.load(path), str(path))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {_one_line(error)}") from error
    return _mapping(content, str(path))


def _is_copy(path: Path) -> bool:
    """Whether a file is a whole configuration that `to_yaml` wrote (`_read` refuses it if it was edited)."""
    return bool(_CHECKSUM.search(path.read_text(encoding="utf-8").partition("\n")[0]))


def _leaves(layer: dict, prefix: str = "") -> Iterator[str]:
    """The settings that a layer names, such as ``local.lr``."""
    for name, content in layer.items():
        if isinstance(content, dict) and content:
            yield from _leaves(content, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _items(overrides: str | Sequence[str]) -> list[tuple[str, str]]:
    try:
        items = shlex.split(overrides) if isinstance(overrides, str) else overrides
    except ValueError as error:
        raise ValueError(f"overrides {overrides!r} have an unclosed quote") from error
    pairs = [item.partition("=") for item in items]
    for item, (key, equals, _) in zip(items, pairs, strict=True):
        if not key or not equals:
            raise ValueError(f"override {item!r} is not of the form key=value (write lists without spaces)")
    return [(key, value) for key, _, value in pairs]


def _parse(key: str, value: str) -> dict:
    try:
        return _mapping(_plain(OmegaConf.from_dotlist([f"{key}={value}"]), f"override '{key}={value}'"), key)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"override '{key}={value}' is not valid YAML: {_one_line(error)}") from error


def _plain(content: Any, where: str) -> Any:
    """What YAML holds in plain types; a reference such as ``${local.lr}`` is replaced by what it refers to.

    Raises:
        ValueError: if it would be computed (``${oc.env:HOME}``), for the environment must not get into results, or if
            a mapping lacks the blank after a colon.
    """
    for key, value in _entries(OmegaConf.to_container(content, resolve=False)):
        if isinstance(value, str) and _COMPUTED.search(value):
            raise ValueError(
                f"{where} holds {value!r}, but only references such as ${{local.lr}} are replaced; "
                "write the value itself"
            )
        if isinstance(key, str) and value is None and _NO_BLANK.fullmatch(key):
            raise ValueError(
                f"{where} holds {{{key}}}, which lacks the blank after the colon; write {{{key.replace(':', ': ', 1)}}}"
            )
    return OmegaConf.to_container(content, resolve=True)


def _entries(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every key with its value, at any depth; items of lists have their number as key."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield key, value
        yield from _entries(value)


def _apply(tree: dict, layer: dict, folder: Path | None) -> None:
    """Put ``layer`` on top of ``tree``; relative paths in it are relative to ``folder``, if there is one."""
    for key, content in layer.items():
        if key not in _TOP:
            raise _unknown_key(str(key))
        if key in ("seed", "strategies"):
            tree[key] = content
            continue
        base = tree.get(key, {})
        if key in GROUPS:
            content = {"use": content} if isinstance(content, str) else dict(_mapping(content, key))
            if "use" in content:
                base = _group(key, content.pop("use"))
        merged = _merge(base, _mapping(content, key))
        tree[key] = _resolve(merged, folder) if key == "task" and folder else merged


def _group(group: str, name: object) -> dict:
    path = _file(group, _convert(str, name, f"{group}.use"))
    content = _read(path)
    return _resolve(content, path.parent) if group == "task" else content


def _paths(task: dict) -> dict[str, str]:
    """The task's fields that are paths; ``path`` is one for a folder only, else it is a name."""
    field = {"folder": "path", "torchvision": "root"}.get(str(task.get("source")), "")
    return {field: task[field]} if isinstance(task.get(field), str) and task[field] else {}


def _resolve(task: dict, folder: Path) -> dict:
    return task | {field: str(folder / _home(path)) for field, path in _paths(task).items()}


def _merge(base: dict, layer: dict) -> dict:
    return base | {
        key: _merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in layer.items()
    }


# The nested dict -> dataclasses


def _suiting(request: dict, said: Collection[str]) -> dict:
    """A request without what its group's file says and what does not suit the scope or samples that somebody set."""
    scope, unsuited = request.get("scope", "client"), set()
    if "request.scope" in said:
        own = (*_TARGETS.get(str(scope), ()), *_FURTHER.get(str(scope), ()))
        unsuited = {*_NAMING, "share"} - set(own)
    for one, others in _INSTEAD.items():
        if f"request.{one}" in said:
            unsuited.update(others)
    return {key: value for key, value in request.items() if key not in unsuited or f"request.{key}" in said}


def _strategy(label: str, name: str, base: dict, fields: object) -> StrategySpec:
    from fedforget.strategy import find

    key = f"strategy.{label}"
    return StrategySpec(label, name, _convert(find(name).Config, _merge(base, _mapping(fields, key)), key))


def _strategy_file(label: str, variants: tuple[str, ...] = ()) -> tuple[str, dict]:
    """Name of the strategy and the options that its files in ``configs/strategy`` set.

    A variant is a file that names another row (``strategy: federaser``) and is merged onto its options. A strategy
    needs no file; one of its name changes its defaults.
    """
    if label in variants:
        raise ValueError(f"configs/strategy/{label}.yaml is a variant of itself ({' -> '.join((*variants, label))})")
    files, names = _files("strategy"), strategy_names()
    if label not in files:
        if label not in names:
            raise _unknown("strategy", label, sorted({*names, *files}))
        return label, {}
    fields = _read(files[label])
    if "strategy" not in fields:
        return label, fields
    base_label = _convert(str, fields.pop("strategy"), f"configs/strategy/{label}.yaml: strategy")
    name, base = _strategy_file(base_label, (*variants, label))
    return name, _merge(base, fields)


_WORDS = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false"}


def _convert(kind: Any, value: Any, key: str) -> Any:
    """``value`` as the annotation ``kind``: a dataclass, X | None, a tuple, a mapping or a key of `_WORDS`."""
    if dataclasses.is_dataclass(kind):
        return _build(kind, _mapping(value, key), key)
    if get_origin(kind) is types.UnionType:
        valid = [each for each in get_args(kind) if each is not types.NoneType]
        if value is None and len(valid) < len(get_args(kind)):
            return None
        return _convert(next((each for each in valid if type(value) is each), valid[0]), value, key)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{key} is {value!r}, but must be a list, e.g. [{'' if value is None else value}]")
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(value) != len(kinds):
            raise ValueError(f"{key} is {value!r}, but must have {len(kinds)} entries")
        pairs = zip(kinds, value, strict=True)
        return tuple(_convert(kind, item, f"{key}[{index}]") for index, (kind, item) in enumerate(pairs))
    if get_origin(kind) is Mapping:
        return _mapping(value, key)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{key} is {value!r}, but must be {_WORDS.get(kind, f'of type {kind}')}")
    return value


def _build(kind: Any, fields: dict, key: str) -> Any:
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for name in fields:
        if name not in names:
            raise _unknown_key(f"{key}.{name}", [f"{key}.{valid}" for valid in names])
    values = {name: _convert(hints[name], value, f"{key}.{name}") for name, value in fields.items()}
    check_options(kind, values, key)
    return kind(**values)


def _mapping(value: object, key: str) -> dict:
    if isinstance(value, str) and _NO_BLANK.fullmatch(value):
        raise ValueError(f"{key} is {value!r}, but must be a mapping; write {{{value.replace(':', ': ', 1)}}}")
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {value!r}, but must be a mapping")
    return value


# Checks of values, and across sections


def _check_paths(task: dict) -> None:
    if task.get("source") == "folder" and not task.get("path"):
        raise ValueError("task.path is empty; add task.path=FOLDER, the folder with the parquet files")
    for field, path in _paths(task).items():
        if not Path(path).is_absolute():  # the processes that read it work in folders of their own
            raise ValueError(
                f"task.{field} is {path!r}, but must be the absolute path of a folder "
                "(`fedforget run` takes a relative one too, if it is there)"
            )


def _check_sections(config: Any) -> None:
    """Refuse what the sections alone decide; ``config`` is a run, or what else has its sections as attributes."""
    _check_values(config)
    _check_request(config.request, config.learning.rounds)
    _check_clients(config)
    _check_holders(config)
    config.evaluation.check(config.corruption.kind, config.partition.holdout)  # last: a primary metric loads torch


def _check_values(config: Any) -> None:
    for key, valid in _CHOICES.items():
        if value_of(config, key) not in valid:
            raise ValueError(f"{key} is {value_of(config, key)!r}, but must be one of {', '.join(valid)}")
    for key, (words, holds) in _RANGES.items():
        if not holds(value_of(config, key)):
            raise ValueError(f"{key} is {value_of(config, key)}, but must be {words}")


def _check_request(request: RequestConfig, rounds: int) -> None:
    gone: set[tuple] = set()
    for step in request.steps:
        owners = [("client", client) for client in step.clients]
        again = gone.intersection([*_named(step), *owners])
        if again:
            raise ValueError(f"request.then names {_in_words(min(again))} again, but it is forgotten by then")
        gone |= set(_named(step))
        if step.after_round != request.after_round:
            raise ValueError(
                f"request.after_round is {request.after_round} first and {step.after_round} in request.then, "
                "but a sequence of requests arrives after one round"
            )
    if request.after_round is not None and request.after_round > rounds:
        raise ValueError(f"request.after_round is {request.after_round}, but learning.rounds is {rounds}")


def _named(step: RequestStep) -> list[tuple]:
    """What a request names: pairs of ``client`` or ``class`` and its number, or a client and a sample of it."""
    if step.scope == "sample":
        return [("sample", position, step.clients[0]) for position in step.samples]
    return [(step.scope, target) for target in (step.clients if step.scope == "client" else step.classes)]


def _in_words(target: tuple) -> str:
    kind, number, *client = target
    return f"{kind} {number}" + (f" of client {client[0]}" if client else "")


def _check_clients(config: Any) -> None:
    count = config.partition.clients
    if not count:
        return  # a natural partition takes as many clients as the data have
    named = {"request": {client for step in config.request.steps for client in step.clients}}
    named["corruption"] = set(config.corruption.clients)
    for section, clients in named.items():
        if not clients <= set(range(count)):
            raise ValueError(
                f"{section}.clients names client {max(clients)}, but partition.clients is {count}: "
                f"clients are numbered 0 to {count - 1}"
            )
    forgotten = {client for step in config.request.steps if step.scope == "client" for client in step.clients}
    if len(forgotten) == count:
        raise ValueError(f"request.clients names all {count} clients, so none is left to learn from")


def _check_holders(config: Any) -> None:
    if config.task.source == "holder" and config.corruption.kind != "none":
        raise ValueError(
            f"corruption.kind is {config.corruption.kind!r}, but a holder's own data (task.source=holder) is not "
            "corrupted; use corruption=none"
        )
    if config.partition.kind == "natural" and config.task.source != "holder" and not config.task.id_column:
        raise ValueError("partition.kind=natural needs task.id_column, the column that says whose an example is")


def _check_strategies(config: RunConfig) -> None:
    from fedforget.strategy import find

    labels = [spec.label for spec in config.strategies]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"strategies lists {label!r} twice")
    scopes = {spec.label: find(spec.name).scopes for spec in config.strategies}
    asked = dict.fromkeys(step.scope for step in config.request.steps)
    unfit = [label for label in labels if not scopes[label].issuperset(asked)]
    if unfit:
        fit = [label for label in labels if label not in unfit] or ["finetune"]
        raise ValueError(
            f"{'strategies' if len(unfit) > 1 else 'strategy'} {', '.join(unfit)} cannot serve "
            f"{' and '.join(asked)} requests; leave {'them' if len(unfit) > 1 else 'it'} out: "
            f"strategies=[{','.join(fit)}]"
        )


# Messages


def _unknown(what: str, name: object, valid: Iterable[str]) -> ValueError:
    return ValueError(f"unknown {what} {name!r}{nearest(str(name), valid)}")


def _unknown_key(key: str, siblings: Iterable[str] = _TOP) -> ValueError:
    """Suggests a near sibling, or else the same field of another section (``rounds`` -> ``learning.rounds``)."""
    if closest(key, siblings):
        return _unknown("key", key, siblings)
    fields = [f"{name}.{field.name}" for name, kind in _SECTIONS.items() for field in dataclasses.fields(kind)]
    elsewhere = [field for field in fields if field.endswith("." + key.rpartition(".")[2])]
    if not elsewhere:
        return _unknown("key", key, sorted(siblings))
    return ValueError(f"unknown key {key!r}; did you mean {' or '.join(map(repr, elsewhere))}?")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
