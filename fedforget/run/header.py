"""What the report says about the run itself, before any number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from fedforget import config as configuration
from fedforget.config import StrategySpec
from fedforget.evaluation import LEVELS
from fedforget.run import addresses
from fedforget.run.resolve import name_request
from fedforget.run.setting import Setting, learns_itself
from fedforget.store import digest


def header(
    setting: Setting, index: list[dict], failed: Mapping[str, str], tuning: Mapping[str, Any], rehearsed: bool
) -> dict[str, Any]:
    """The header of a run.

    Args:
        setting: the run.
        index: the entries of its models.
        failed: why a strategy has none, by label.
        tuning: what is said of the tuning; empty if nothing was to be tuned.
        rehearsed: whether strategies were tuned.
    """
    config, about, facts = setting.config, setting.federation.about, setting.federation.facts
    return {
        "experiment": config.experiment,
        "level": config.evaluation.level,
        "code": LEVELS[config.evaluation.level].code,
        "trainings": trainings(setting, rehearsed),
        "primary": config.evaluation.primary,
        "durability": list(config.evaluation.durability),
        "classes": int(about["num_classes"]),
        "layout": [setting.layout.names, setting.layout.shapes],
        "corruption_config": asdict(config.corruption.resolved(facts.classes)),
        "claim": config.evaluation.claim,
        "tuning": tuning,
        "seeds": config.evaluation.seeds,
        "requests": [name_request(request, setting.federation) for request in setting.requests],
        "request_values": [request.to_dict() for request in setting.requests],
        "failed": dict(sorted(failed.items())),
        "left_out": left_out(index),
        "config": digest(configuration.to_dict(config)),
        "trajectory": digest([addresses.trajectory(setting, k) for k in range(config.evaluation.seeds)]),
        "options": {spec.label: _options(spec) for spec in setting.specs},
        "data": about["data"],
        "data_facts": about["facts"],
        "data_lines": facts.lines(),
        "owners": {str(client): owner for client, owner in enumerate(facts.owners)},
        "corruption": about["corruption"],
        "versions": addresses.versions(),
        "strategies": {spec.label: asdict(setting.strategy(spec).card) for spec in setting.specs},
        "models": index,
    }


def trainings(setting: Setting, rehearsed: bool) -> int:
    """How many whole trainings the run's models amount to: originals, oracles, and those of planned strategies."""
    own = sum(map(learns_itself, setting.specs))
    return setting.config.evaluation.seeds * (1 + len(setting.requests) + own) + 2 * rehearsed


def left_out(index: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By model, which clients were left out of its rounds, and why; of one with many such rounds the first three.

    What became of a model (further rounds, another head) has its notes as well, and only those of its own are listed.
    """
    own: dict[str, list[str]] = {}
    known: dict[tuple[str, int], set[str]] = {}
    for entry in index:
        before = known.setdefault((entry["label"], entry["seed"]), set())
        new = [note for note in entry["notes"] if note not in before]
        before.update(new)
        if new:
            own.setdefault(f"{entry['label']}, seed {entry['seed']} {entry['stage']}".strip(), []).extend(new)
    more = {model: f"; and {len(notes) - 3} more" if len(notes) > 3 else "" for model, notes in own.items()}
    return {model: "; ".join(notes[:3]) + more[model] for model, notes in own.items()}


def _options(spec: StrategySpec) -> list[dict[str, Any]]:
    """What a strategy was set to: of each option its name, value, and what the strategy says of symbol and meaning."""
    return [
        {
            "name": option.name,
            "symbol": option.metadata.get("symbol", ""),
            "value": getattr(spec.options, option.name),
            "help": option.metadata.get("help", ""),
        }
        for option in fields(spec.options)
    ]
