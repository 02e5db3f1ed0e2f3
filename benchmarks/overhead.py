"""What a federated round costs: fedforget beside a plain PyTorch loop and stock Flower, on the same work.

    python benchmarks/overhead.py [--cases mlp cnn resnet] [--rounds 5] [--data FOLDER]

(a) plain      One process, one intra-op thread: for each client load the global weights, one epoch of shuffled
               mini-batches with ``torch.optim.SGD``, then the weighted mean. Memory layout as torch gives it.
(b) flower     Flower's simulation: `FedAvg`, one SuperNode a client, one CPU a client (one actor a core). A client runs
               the loop of (a) on one intra-op thread; each actor keeps its data and its network in memory.
(c) fedforget  `UnlearningStrategy.learn` in Flower's simulation, over `Cohort` and `RayGrid`: one SuperNode and one
               worker a core. Its engine trains convolutional nets channels-last and has its own SGD; both count.

All train every client in every round on the same split, with the same shuffles, learning rate and initial weights;
nothing is evaluated or recorded. (a) and (b) get their shuffles ready-made, (c) draws them in the round. That nobody
skips work is seen from the training loss in the last round and from how far the final model is from that of (a),
relative to how far (a) moved. Each side runs in a fresh process. A round is timed at the server, from one aggregated
model to the next; the first two (imports, data, connections) are left out, and the median of the others counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common import (
    CORES,
    MNIST,
    WARM_UP,
    Case,
    Clients,
    Outcome,
    fedforget,
    flat,
    flower,
    folder_for,
    in_fresh_process,
    met,
    print_head,
    row,
)

CASES = {
    "mlp": Case("MLP 55 k, digits, 100 clients x 14, batch 5", "mlp", 100, 1437, None, 5, 0.1, 5),
    "cnn": Case("CNN 1.7 M, 28x28, 10 clients x 600, batch 32", "cnn", 10, 6000, (1, 28, 28), 32, 0.05, 5),
    "resnet": Case("ResNet-18 11 M, 32x32, 10 x 32, batch 32", "resnet18", 10, 320, (3, 32, 32), 32, 0.01, 3),
}
GAINS = {"mlp": 3.0, "cnn": 1.0, "resnet": 1.0}  # the b/c expected, at least


def plain(case: Case, folder: str, rounds: int) -> Outcome:
    """(a)"""
    clients = Clients(case, folder, rounds)
    initial = state = {key: value.clone() for key, value in clients.model.state_dict().items()}
    total = sum(len(labels) for _, labels in clients.examples)
    stamps = []
    for round in range(1, rounds + 1):
        mean, mean_loss = {key: torch.zeros_like(value) for key, value in state.items()}, 0.0
        for client in range(clients.case.clients):
            number, loss = clients.train(state, client, round)
            mean_loss += loss * number / total
            for key, value in clients.model.state_dict().items():
                mean[key].add_(value, alpha=number / total)
        state = mean
        stamps.append(time.perf_counter())
    return stamps, flat(state) - flat(initial), mean_loss


SIDES = {"plain": plain, "flower": flower, "fedforget": fedforget}


def compare(name: str, measured: int, mnist: Path) -> tuple[str, str]:
    """Run the sides of a case; returns its row of the table, and a line that shows that they did the same work."""
    case = CASES[name]
    measured = measured or case.rounds
    with TemporaryDirectory() as temporary:
        folder = folder_for(case, mnist, Path(temporary))
        outcomes = {
            side: in_fresh_process(function, case, folder, WARM_UP + measured) for side, function in SIDES.items()
        }
    seconds = {side: statistics.median(np.diff(stamps)[-measured:]) for side, (stamps, _, _) in outcomes.items()}
    a, b, c = seconds.values()
    _, reached, _ = outcomes["plain"]
    losses = [
        f"{side} {loss:.4f} ({float((moved - reached).norm() / reached.norm()):.0e} from plain)"
        for side, (_, moved, loss) in outcomes.items()
    ]
    cells = [case.title, f"{a:.4f}", f"{b:.4f}", f"{c:.4f}", f"{c / (a / CORES):.2f}", met(c <= 1.15 * a / CORES)]
    cells += [f"{b / c:.2f}", f"{met(b >= GAINS[name] * c)} (>= {GAINS[name]:g})"]
    return row(*cells), f"{name}: loss in the last round (final model): {', '.join(losses)}"


def main() -> None:
    """Run the cases asked and print the table."""
    parser = argparse.ArgumentParser(description="Seconds a round: plain PyTorch, stock Flower, fedforget.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=0, help="rounds measured; 0 = 5, or 3 for resnet")
    parser.add_argument("--data", type=Path, default=MNIST, help="MNIST as parquet; random images if it is not there")
    options = parser.parse_args()
    print("Seconds a round\n")
    bound = f"c / (a / {CORES} cores)"
    print_head("case", "a plain", "b flower", "c fedforget", bound, "<= 1.15", "b / c", "expected")
    checks = []
    for name in options.cases:
        line, check = compare(name, options.rounds, options.data)
        print(line, flush=True)
        checks.append(check)
    print("\n" + "\n".join(checks))


if __name__ == "__main__":
    main()
