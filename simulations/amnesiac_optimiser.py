"""Does taking back a client's updates forget the client, or ruin the model? It depends on optimiser and pruning.

Amnesiac unlearning (Graves et al., AAAI 2021, arXiv 2010.10981) subtracts what a client's updates added; partial
amnesiac unlearning (Gogineni and Nadimi, JMLR 2025, arXiv 2403.07611) only a share p of each layer of them. ``python
-m simulations.amnesiac_optimiser`` takes two minutes on one core and prints, for IID clients and for clients of two
classes each, accuracies in per cent on the target's and the others' training data, now and after one ordinary round,
the distance to the retrained model, and what the server stores; means of three seeds on digits. For clients of two
classes:

    two classes a client, sgd:
      model         forget  retain    repaired: forget  retain    distance  stored MB
      original        86.6    88.4                31.7    89.3        0.96        0.0
      retrained       17.5    89.2                15.8    90.6        0.00        0.0
      top 100 %        0.0    62.2                 0.0    80.0        1.34       44.2
      top 20 %         0.0    63.4                 0.0    80.2        1.27       10.2
      top 5 %          0.0    80.0                 1.5    83.5        1.07        3.6
      random 50 %      0.0    77.3                 0.2    83.4        0.77       22.1
      random 20 %     10.4    84.6                13.8    87.9        0.78        8.8
      random 5 %      33.9    88.5                19.5    89.6        0.90        2.2
      bottom 50 %     84.6    89.0                30.4    89.5        0.96       23.5
    two classes a client, adam:
      model         forget  retain    repaired: forget  retain    distance  stored MB
      original        21.5    62.5                14.4    60.5        2.02        0.0
      retrained        0.0    64.3                 0.0    65.3        0.00        0.0
      top 100 %        0.0    23.8                 0.0    40.4        2.07       44.2
      top 20 %         0.0    64.1                 0.0    62.2        1.86       10.2
      top 5 %         13.1    66.1                12.1    62.0        1.93        3.6
      random 50 %      0.0    37.6                 0.0    52.1        1.72       22.1
      random 20 %      0.8    50.7                 2.1    58.5        1.82        8.8
      random 5 %      14.4    60.5                12.9    60.5        1.96        2.2
      bottom 50 %      0.0    34.7                 0.0    52.3        1.90       23.5

Read: subtracting everything (top 100 %) forgets at least what retraining does, but ruins the model with both
optimisers; one round repairs about half of that. Under Adam, the largest 20 % forget as much and leave the others as
they were, at a quarter of the storage: the claim for partial amnesiac unlearning. Random entries do harm first.
Under SGD it is the other way round: random 20 % come closest to the retrained model. With IID clients no form comes
closer to the retrained model than the original is by more than a twentieth. That full subtraction is mended by one
epoch under Adam (published for one machine) does not carry over to federated rounds (2026-11-21).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from fedforget import models
from fedforget.client_app import app
from fedforget.cohort import Cohort, describe
from fedforget.data import DataConfig
from fedforget.data.partition import PartitionConfig
from fedforget.grid import InProcessGrid
from fedforget.history import History, HistoryConfig, Recording
from fedforget.messages import Task
from fedforget.params import Params
from fedforget.request import UnlearningRequest
from fedforget.routines import LocalConfig
from fedforget.seeds import Seeds
from fedforget.strategy import LearningConfig
from strategies.partial_amnesiac import PartialAmnesiac
from strategies.retrain import Retrain

TARGET = 3
OPTIMISERS = {"sgd": LocalConfig("sgd", lr=0.1), "adam": LocalConfig("adam", lr=0.001)}
PARTITIONS = {
    "iid": PartitionConfig("iid", clients=10),
    "two classes a client": PartitionConfig("pathological", clients=10, classes_per_client=2),
}
PRUNING = [("top", 1.0), ("top", 0.2), ("top", 0.05), ("random", 0.5), ("random", 0.2), ("random", 0.05)]
PRUNING += [("bottom", 0.5)]


@dataclass(frozen=True)
class Row:
    """One model: accuracies in per cent on the target's and the others' training data, now and after one more round."""

    name: str
    forget: float
    retain: float
    forget_repaired: float
    retain_repaired: float
    distance: float
    megabytes: float


def study(partition: PartitionConfig, local: LocalConfig, seed: int, rounds: int = 20) -> Iterator[Row]:
    """The original, the retrained and the unlearned models of one trajectory; distances are from the retrained one."""
    learning = LearningConfig(rounds=rounds)
    task = Task(DataConfig(partition=partition, seed=seed), models.ModelConfig("mlp"), local, "cpu")
    grid = InProcessGrid(app, 1)
    federation, seeds = describe(grid, task), Seeds(seed).child("trajectory", 0)
    start = Params.from_module(models.initial(task.model, (1, 8, 8), 10, seeds.integer("initial")))
    request = UnlearningRequest("client", (TARGET,))

    def cohort(request: UnlearningRequest | None) -> Cohort:
        return Cohort(grid, federation, task, start.layout, seeds, request=request)

    def accuracies(w: Params) -> tuple[float, float]:
        sets = cohort(request).evaluate(w, {"forget": 2000, "retain": 2000})
        forget, retain = (100 * float((logits.argmax(1) == labels).mean()) for logits, labels, *_ in sets.values())
        return forget, retain

    def row(name: str, w: Params, stored: int = 0) -> Row:
        [repaired] = Retrain(learning=learning).learn(cohort(request), w, 1, first_round=rounds + 1)
        return Row(name, *accuracies(w), *accuracies(repaired), (w - retrained).norm(), stored / 1e6)

    with tempfile.TemporaryDirectory() as folder:
        recording = Recording(Path(folder), start.layout, HistoryConfig("targets"), (TARGET,), seeds)
        recording.begin(start)
        *_, original = Retrain(learning=learning).learn(cohort(None), start, rounds, recording=recording)
        *_, retrained = Retrain(learning=learning).learn(cohort(request), start, rounds)
        yield row("original", original)
        yield row("retrained", retrained)
        for select, keep in PRUNING:
            strategy = PartialAmnesiac(PartialAmnesiac.Config(keep, select), learning)
            history = History(recording, rounds, original, strategy.card, targets=(TARGET,))
            *_, w = strategy.unlearn(request, history, cohort(request))
            yield row(f"{select} {100 * keep:g} %", w, history.bytes_stored())


def main(seeds: int = 3) -> None:
    """Print the tables: means over seeds."""
    logging.getLogger("flwr").setLevel(logging.WARNING)  # two lines a round
    for partition, how in PARTITIONS.items():
        for optimiser, local in OPTIMISERS.items():
            print(f"{partition}, {optimiser}:")
            print("  model         forget  retain    repaired: forget  retain    distance  stored MB")
            for same in zip(*(study(how, local, seed) for seed in range(seeds)), strict=True):
                values = np.mean([astuple(row)[1:] for row in same], axis=0)
                print("  {:12} {:7.1f} {:7.1f} {:19.1f} {:7.1f} {:11.2f} {:10.1f}".format(same[0].name, *values))


if __name__ == "__main__":
    main()
