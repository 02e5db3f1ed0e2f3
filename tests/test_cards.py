"""How many workers share the cards, and what is refused: Ray is asked what there is, so that no card is needed."""

from __future__ import annotations

import pytest

from fedforget.client_app import app
from fedforget.grid import EngineConfig, InProcessGrid, RayGrid, load_client_app


class Actor:
    """A Ray actor class that counts its actors."""

    def __init__(self) -> None:
        self.reserved: list[float] = []

    def options(self, *, num_cpus: int, num_gpus: float, scheduling_strategy: object) -> Actor:
        assert num_cpus == 0 and (scheduling_strategy == "DEFAULT") == (num_gpus > 0)
        self.share = num_gpus
        return self

    def remote(self, _: object) -> int:
        self.reserved.append(self.share)
        return len(self.reserved)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch):
    """Start a RayGrid on a machine with some cards and cores; returns what each worker reserved of a card."""
    import ray

    def workers(cards: int, nodes: int = 100, cores: int = 4, **config) -> list[float]:
        actor = Actor()
        monkeypatch.setattr(
            ray, "cluster_resources", lambda: {"CPU": float(cores), **({"GPU": float(cards)} if cards else {})}
        )
        machine = {"NodeID": "a" * 56, "Alive": True, "Resources": {"CPU": float(cores)}}
        monkeypatch.setattr(ray, "nodes", lambda: [machine])
        monkeypatch.setattr(ray, "remote", lambda _: actor)
        RayGrid(InProcessGrid(app, nodes), load_client_app, EngineConfig(**config))
        return actor.reserved

    return workers


def test_workers_share_cards(start) -> None:
    assert start(1, gpus_per_worker=1.0) == [1.0]
    assert start(1, gpus_per_worker=0.25) == [0.25] * 4
    assert start(4, gpus_per_worker=0.5, device="cuda") == [0.5] * 8
    assert start(4, gpus_per_worker=0.5, workers=3) == [0.5] * 3
    assert start(4, gpus_per_worker=0.5, nodes=2) == [0.5] * 2
    assert start(4) == [0] * 4  # one a core


def test_what_is_left_of_several_cards_is_not_another_share(start) -> None:
    # Two workers at 0.4 fit one card. A fifth would wait for ever, and its nodes with it, though 2 / 0.4 is 5.
    assert start(2, gpus_per_worker=0.4) == [0.4] * 4


def test_a_card_that_no_worker_would_see_is_refused(start) -> None:
    with pytest.raises(ValueError, match="engine.device=cuda, but Ray hides the cards .* set engine.gpus_per_worker"):
        start(1, device="cuda")


@pytest.mark.parametrize(
    ("cards", "config", "words"),
    [
        (0, {"gpus_per_worker": 0.5}, "gpus_per_worker=0.5 lets 0 workers share the 0 GPUs that Ray sees"),
        (2, {"gpus_per_worker": 1.0, "workers": 3}, "gpus_per_worker=1 lets 2 workers share the 2 GPUs .* than 3;"),
        (1, {"gpus_per_worker": 0.6, "workers": 2}, "gpus_per_worker=0.6 lets 1 workers share the 1 GPUs"),
    ],
)
def test_more_than_there_is_cannot_be_reserved(start, cards: int, config: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        start(cards, **config)
