"""What the rule behind `engine.mode=auto` rests on: every engine beside the sequential one, on the device at hand.

    python benchmarks/engines.py [--cases mlp lenet5-half lenet5 lenet5-double cnn] [--rounds 5] [--device auto]

A round is one `Cohort.reduce` over an in-process grid: all clients train one epoch in one process (on a CPU on one
intra-op thread, as a worker does), and their sum comes back. The engines take turns, so that what else the machine does
hits all alike; the first round of each is left out, and the median of the others counts. On a CPU the seconds are those
of the process's own CPU time, on CUDA those of the clock. The share of the peak is the floating-point operations of
the training steps (torch's flop counter) a second, over those of a large matrix product in the same precision.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import SEEDS, Case, machine, row, write_random
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedforget import data, models
from fedforget.client_app import app
from fedforget.cohort import Cohort, describe
from fedforget.data.partition import PartitionConfig
from fedforget.data.sources import TaskConfig
from fedforget.grid import InProcessGrid
from fedforget.messages import Task
from fedforget.params import Params
from fedforget.routines import LocalConfig

SHAPE = (1, 28, 28)
CASES = {
    "mlp": Case("MLP 199 k, 48 clients x 40, batch 20", "mlp", 48, 48 * 40, SHAPE, 20, 0.05, 5),
    "lenet5-half": Case("LeNet 16 k, 48 clients x 40, batch 20", "lenet5", 48, 48 * 40, SHAPE, 20, 0.05, 5, 0.5),
    "lenet5": Case("LeNet 62 k, 48 clients x 40, batch 20", "lenet5", 48, 48 * 40, SHAPE, 20, 0.05, 5),
    "lenet5-double": Case("LeNet 244 k, 48 clients x 40, batch 20", "lenet5", 48, 48 * 40, SHAPE, 20, 0.05, 5, 2.0),
    "cnn": Case("CNN 1.7 M, 12 clients x 64, batch 32", "cnn", 12, 12 * 64, SHAPE, 32, 0.05, 5),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def clock(device: str) -> float:
    """Seconds: the process's own on a CPU, the world's once a GPU has done what it was given."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object], device: str) -> float:
    """How long ``work`` takes."""
    start = clock(device)
    work()
    return clock(device) - start


def peak(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product."""
    size = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def operations(case: Case) -> int:
    """Floating-point operations of a round: forward and backward passes over every client's examples."""
    model = models.initial(models.ModelConfig(case.model, case.width), SHAPE, 10, 0)
    with FlopCounterMode(display=False) as counter:
        loss = nn.functional.cross_entropy(model(torch.zeros(case.batch, *SHAPE)), torch.zeros(case.batch).long())
        torch.autograd.grad(loss, list(model.parameters()))
    return counter.get_total_flops() * case.examples // case.batch


def compare(case: Case, device: str, rounds: int, folder: str, peaks: dict[str, float]) -> None:
    """Measure the engines on a case and print their rows."""
    config = data.DataConfig(
        TaskConfig("folder", folder, max_train=case.examples), PartitionConfig("iid", case.clients, holdout=0.0)
    )
    local = LocalConfig(lr=case.lr, batch_size=case.batch)
    task, cohorts = Task(config, models.ModelConfig(case.model, case.width), local, device), {}
    for mode in ("sequential", "stacked", "vmap"):
        for precision in DTYPES:
            asked = Task(config, task.model, local, device, mode, precision)
            grid = InProcessGrid(app)
            federation = describe(grid, asked)
            start = Params.from_module(models.initial(task.model, SHAPE, 10, 0))
            cohorts[mode, precision] = Cohort(grid, federation, asked, start.layout, SEEDS)
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in cohorts}
    for number in range(1 + rounds):
        for key, cohort in cohorts.items():
            taken[key].append(
                seconds(lambda cohort=cohort, number=number: cohort.reduce(start, round=number + 1), device)
            )
    median = {key: statistics.median(several[1:]) for key, several in taken.items()}
    total, base = operations(case), median["sequential", "float32"]
    for (mode, precision), each in median.items():
        chosen = "auto" if mode == task.engine(device) else ""
        share = total / each / peaks[precision]
        figures = f"{each:.4f}", f"{base / each:.2f}", f"{100 * share:.1f} %"
        print(row(case.title, mode, precision, chosen, *figures), flush=True)


def main() -> None:
    """Run the cases asked and print the table."""
    parser = argparse.ArgumentParser(description="Seconds a round of each engine.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
    peaks = {name: peak(device, dtype) for name, dtype in DTYPES.items()}
    print(machine() + (f", {torch.cuda.get_device_name()}" if device == "cuda" else ""))
    print("\nPeak: " + ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in peaks.items()) + "\n")
    print("| case | engine | precision | chosen | s a round | sequential float32 / this | share of peak |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with TemporaryDirectory() as folder:
        for name in options.cases:
            write_random(Path(folder), SHAPE, CASES[name].examples)
            compare(CASES[name], device, options.rounds, folder, peaks)


if __name__ == "__main__":
    main()
