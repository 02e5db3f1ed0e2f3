"""Addresses of what a run makes: digests of everything that determines it. Nothing here reads or writes a result."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import fedforget
from fedforget import config as configuration
from fedforget import messages, routines, solvers
from fedforget.config import StrategySpec
from fedforget.history import HistoryConfig
from fedforget.params import Params
from fedforget.run.setting import Setting, learns_itself
from fedforget.schema import local
from fedforget.store import digest, digest_of_code
from fedforget.strategy import UnlearningStrategy


def run_name(setting: Setting) -> str:
    """The name of the run's folder: other settings, or other data under the same settings, are another run."""
    of = {"config": configuration.to_dict(setting.config), "data": setting.federation.about["data"]}
    return f"{setting.config.experiment}-{digest(of)[:8]}"


def trajectory(setting: Setting, k: int, learner: StrategySpec | None = None) -> str:
    """Address of trajectory ``k``: the common one, or that of a strategy that learns itself."""
    if learner:
        strategy = setting.strategy(learner)
        planned = [request.to_dict() for request in setting.requests] if strategy.card.client_records else []
        mine = [learner.name, asdict(learner.options), _code_of(strategy), *planned]
        return digest([trajectory(setting, k), *mine])
    config, task, device = setting.config, setting.task, setting.federation.device
    return digest(
        {
            "versions": versions(),
            "device": device,
            "engine": task.engine(device),
            "precision": task.precision,
            "data": [task.data.to_json(), setting.federation.about["data"]],
            "model": asdict(config.model),
            "local": asdict(config.local),
            "learning": asdict(config.learning) | {"timeout": None},
            "seed": [config.seed, k],
        }
    )


def original(setting: Setting, k: int, learner: StrategySpec | None = None) -> str:
    """Address of the model of trajectory ``k`` that the first request is to be served from."""
    return digest([trajectory(setting, k, learner), setting.rounds(0)])


def made_of(setting: Setting, k: int, spec: StrategySpec, i: int, previous: str, form: HistoryConfig) -> dict[str, Any]:
    """What determines the model that a strategy makes of another; its digest is the address.

    Args:
        setting: the run.
        k: the trajectory.
        spec: the strategy.
        i: the request that it serves.
        previous: address of the model that it starts from.
        form: level and form of the record.
    """
    strategy = setting.strategy(spec)
    updates = strategy.card.records not in ("nothing", "globals")
    return {
        "trajectory": trajectory(setting, k, spec if learns_itself(spec) else None),
        "previous": previous,
        "requests": [request.to_dict() for request in setting.requests[: i + 1]],
        "strategy": [spec.name, asdict(spec.options), _code_of(strategy)],
        "recorded": asdict(replace(form, record="")) if updates else None,
    }


def later(setting: Setting, k: int, i: int, params: Params, kind: str, wanted: list[int]) -> str:
    """Address of the models after further rounds of a ``kind``, at the numbers ``wanted``."""
    config = setting.config
    learning = [asdict(config.local), {**asdict(config.learning), "timeout": None}, config.seed, versions()]
    return _of_content(setting, k, i, params, {"kind": kind, "rounds": wanted, "learning": learning})


def answers(setting: Setting, k: int, i: int, params: Params, sets: dict[str, int]) -> str:
    """Address of what a model answers on audit sets; ``sets``: the most examples, by set."""
    return _of_content(setting, k, i, params, {"sets": sets})


def versions() -> dict[str, str]:
    """Versions that stored numbers depend on."""
    return {"fedforget": fedforget.__version__, "torch": torch.__version__}


def _of_content(setting: Setting, k: int, i: int, params: Params, what: dict[str, Any]) -> str:
    """The address of something made of a model's parameters after request ``i``."""
    content = hashlib.sha256(params.flat.numpy().tobytes()).hexdigest()
    requests = [request.to_dict() for request in setting.requests[: i + 1]]
    made_of = {"model": content, "task": setting.task.to_json(), "requests": requests, "seed": k, **what}
    return digest({**made_of, "data": setting.federation.about["data"]})


def _code_of(strategy: UnlearningStrategy) -> str:
    """Address of the code of a strategy's file and of the modules that hold its mathematics."""
    files = [inspect.getfile(type(strategy)), routines.__file__, local.__file__, solvers.__file__]
    with messages.READING:  # which says why code is parsed by one thread at a time
        return digest_of_code(map(Path, files))
