"""What the audit of a model costs: in the same run, beside one training round of the quickstart.

    python benchmarks/audit.py [--experiment quickstart] [--overrides "..."] [--repeats 5]

round    One round of learning, all clients, as the originals and oracles are learned.
answers  One exchange that asks for all that an audit asks of a model first: its answers on all audit sets, and those
         of the model with the original's head on what is forgotten.
metrics  Everything that is made of the stored answers, for each model: metrics, tests, gates, figures' data.
report   Tables, figures and the page, for each model.

All in one process on one thread, without any transport, in seconds of processor time, so that what else the machine
does counts for nobody; medians over repeats. What an audit asks later (further rounds, relearning) is training.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fedforget import report
from fedforget.assessment import assess
from fedforget.client_app import app
from fedforget.config import compose
from fedforget.data import audit_sets
from fedforget.experiment import Experiment
from fedforget.grid import InProcessGrid
from fedforget.metrics.representation import swap_head
from fedforget.run.setting import cohort_of
from fedforget.strategy import find


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median processor time of ``work``, after one call that does not count."""
    spent = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return statistics.median(spent[1:])


def main() -> None:
    """Run the experiment once, then time its parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="quickstart")
    parser.add_argument("--overrides", default="")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = compose(arguments.experiment, f"engine.device=cpu {arguments.overrides}")
    with TemporaryDirectory() as folder:
        experiment = Experiment(config, InProcessGrid(app, 2), Path(folder), lambda line: None)
        run = experiment.run()
        header, rows = report.load(run)
        audited = len({(e["request"], e["label"], e["seed"]) for e in header["models"]})
        setting = experiment.setting
        cohort, model = cohort_of(setting, setting.seeds(0), 0), setting.initial(0)
        learner = find("none")(learning=config.learning)
        rounds = learner.learn(cohort, model, 10**6)
        most = config.evaluation.max_examples
        sets, head = dict.fromkeys(audit_sets.FIRST, most), swap_head(model, model)
        costs = {
            "round": seconds(lambda: next(rounds), 5 * arguments.repeats),
            "answers": seconds(
                lambda: cohort.evaluate_all([(model, sets), (head, {"forget": most})]), arguments.repeats
            ),
            "metrics": seconds(lambda: assess(experiment.store.root, header), arguments.repeats) / audited,
            "report": seconds(lambda: report.write(run, header, rows), arguments.repeats) / audited,
        }
    for name, spent in costs.items():
        print(f"{name:8} {1000 * spent:8.1f} ms")
    audit = costs["answers"] + costs["metrics"] + costs["report"]
    print(f"audit of one model / one round: {audit / costs['round']:.2f} ({audited} models)")


if __name__ == "__main__":
    main()
