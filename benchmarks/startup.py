"""What a short job takes from the command line, in two tables.

    python benchmarks/startup.py [--repeats 4] [--rounds 5] [--data FOLDER] [--experiment quickstart]

The first: an experiment by ``fedforget run``, beside ``flwr run`` on a SuperLink that the command has to start (as
``fedforget run`` did before it had its server in its own process): the first time, and again when everything is stored.
The commands take turns, each with a folder of its own for its results, and medians count.

The second: ``flwr run`` of five rounds of a CNN, fedforget beside stock Flower. Both are Flower apps on a SuperLink of
their own, which their first, cold run starts; the runs after it are warm, take turns, and their median counts. The time
is the wall clock of the whole command. The federation is the best for each: stock Flower has one SuperNode a client and
one actor a core, fedforget one SuperNode and one worker a core. The last columns tell how long the command took before
and after its rounds, and that both learned the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import (
    CORES,
    MNIST,
    REPOSITORY,
    Case,
    environment,
    folder_for,
    learn_with_fedforget,
    learn_with_flower,
    met,
    print_head,
    row,
)
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedforget.watcher import end_processes

CASE = Case("CNN 0.4 M, 28x28, 10 clients x 600, batch 32", "cnn", 10, 6000, (1, 28, 28), 32, 0.05, 5, 0.5)
BOUND = 0.7  # of stock Flower's time
FIRST, AGAIN = 0.65, 0.2  # of the time of `flwr run`, when nothing and when everything is stored
APP = """[project]
name = "startup"
version = "1.0.0"
description = "a benchmark"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedforget"

[tool.flwr.app.components]
serverapp = "startup:{side}"
clientapp = "{client}"

[tool.flwr.app.config]
folder = ""
rounds = 1
outcome = ""
"""
flower = ServerApp()  # on lines of their own, where Flower looks for them
fedforget = ServerApp()
# Client app, SuperNodes, and cores that Flower reserves for each of its own actors, by side.
SIDES = {
    "flower": ("common:client_app", CASE.clients, 1),
    "fedforget": ("fedforget.client_app:app", CORES, CORES),
}


@flower.main()
def run_flower(grid: Grid, context: Context) -> None:
    """Stock Flower's ServerApp."""
    _keep(context, time.time(), *learn_with_flower(grid, CASE, *_settings(context)))


@fedforget.main()
def run_fedforget(grid: Grid, context: Context) -> None:
    """fedforget's ServerApp."""
    _keep(context, time.time(), *learn_with_fedforget(grid, CASE, *_settings(context)))


def _settings(context: Context) -> tuple[str, int]:
    return str(context.run_config["folder"]), int(context.run_config["rounds"])


def _keep(context: Context, began: float, stamps: list[float], moved: object, loss: float) -> None:
    """Leave for the command's caller when the ServerApp began and ended, and the loss."""
    outcome = {"began": began, "ended": time.time(), "loss": loss}
    Path(str(context.run_config["outcome"])).write_text(json.dumps(outcome))


class Side:
    """An app, and a SuperLink of its own in ``home``."""

    def __init__(self, name: str, home: Path, folder: str, rounds: int) -> None:
        client, nodes, cpus = SIDES[name]
        self.outcome = home / "outcome.json"
        app, settings = home / "app", home / "run.toml"
        app.mkdir(parents=True)
        (app / "pyproject.toml").write_text(APP.format(side=name, client=client))
        settings.write_text(f'folder = "{folder}"\nrounds = {rounds}\noutcome = "{self.outcome}"\n')
        self.command = [
            sys.executable,
            "-m",
            "flwr.cli.app",
            "run",
            str(app),
            "--stream",
            "--run-config",
            str(settings),
        ]
        self.command += ["--federation-config", f"num-supernodes={nodes} client-resources-num-cpus={cpus}"]
        self.environment = {**environment(name), **_flower(home)}

    def run(self) -> tuple[float, float, float, float]:
        """Seconds of the whole command, of its parts before and after the ServerApp, and the last round's loss."""
        self.outcome.unlink(missing_ok=True)
        start = time.time()
        process = subprocess.run(self.command, env=self.environment, capture_output=True, text=True)
        end = time.time()
        if process.returncode or not self.outcome.exists():
            sys.exit(f"{' '.join(self.command)}:\n{process.stdout[-4000:]}{process.stderr[-2000:]}")
        outcome = json.loads(self.outcome.read_text())
        return end - start, outcome["began"] - start, end - outcome["ended"], outcome["loss"]


def _flower(home: Path) -> dict[str, str]:
    """The environment of ``flwr run`` with a SuperLink of its own in ``home``."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    control, http = (each.getsockname()[1] for each in sockets)
    for each in sockets:
        each.close()
    return {
        "FLWR_HOME": str(home),
        "RAY_TMPDIR": str(home),
        "RAY_ADDRESS": "local",
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def _seconds(command: list[str], variables: dict[str, str], sign: str) -> float:
    """How long a command took that has to print ``sign``."""
    start = time.time()
    process = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True)
    if sign not in process.stdout:
        sys.exit(f"{' '.join(command)}:\n{process.stdout[-4000:]}{process.stderr[-2000:]}")
    return time.time() - start


def _first_and_again(name: str, experiment: str, home: Path) -> tuple[float, float]:
    """Seconds of an experiment by a command, when nothing and then when everything is stored."""
    output, times = home / "output", []
    for turn in ("first", "again"):
        place = home / turn
        place.mkdir(parents=True)
        if name == "flwr run":
            settings = f'experiment="{experiment}" output-dir="{output}"'
            federation = f"num-supernodes={CORES} client-resources-num-cpus={CORES}"
            command = [sys.executable, "-m", "flwr.cli.app", "run", ".", "--stream", "--run-config", settings]
            command += ["--federation-config", federation]
        else:
            command = [sys.executable, "-m", "fedforget.cli", "run", experiment, "--output-dir", str(output)]
        variables = {**environment("fedforget"), **_flower(place)} if name == "flwr run" else environment("fedforget")
        try:
            times.append(_seconds(command, variables, "results: "))
        finally:
            end_processes(place)
    return times[0], times[1]


def compare_commands(experiment: str, repeats: int, home: Path) -> None:
    """Print the first table."""
    names = ("flwr run", "fedforget run")
    runs = [
        {name: _first_and_again(name, experiment, home / f"{name[:4]}-{turn}") for name in names}
        for turn in range(repeats)
    ]
    print(f"`{experiment}`, from the command line\n")
    print_head("command", "first s, median", "again s, median", "all", f"first <= {FIRST}", f"again <= {AGAIN}")
    medians = {name: [statistics.median(run[name][i] for run in runs) for i in range(2)] for name in names}
    for name, (first, again) in medians.items():
        ratios = [mine / its for mine, its in zip((first, again), medians["flwr run"], strict=True)]
        verdicts = [f"{ratio:.2f} {met(ratio <= most)}" for ratio, most in zip(ratios, (FIRST, AGAIN), strict=True)]
        everything = " ".join(f"{run[name][0]:.1f}/{run[name][1]:.1f}" for run in runs)
        print(row(name, f"{first:.1f}", f"{again:.1f}", everything, *(verdicts if name != "flwr run" else ("", ""))))
    print()


def main() -> None:
    """Run all sides in turn and print the tables."""
    parser = argparse.ArgumentParser(description="A warm `flwr run`: fedforget and stock Flower.")
    parser.add_argument("--repeats", type=int, default=4, help="warm runs of each side")
    parser.add_argument("--rounds", type=int, default=CASE.rounds)
    parser.add_argument("--data", type=Path, default=MNIST, help="MNIST as parquet; random images if it is not there")
    parser.add_argument("--experiment", default="quickstart", help="of the first table; empty to leave that out")
    options = parser.parse_args()
    if options.experiment:
        with tempfile.TemporaryDirectory(prefix="startup-", dir="/tmp") as folder:
            compare_commands(options.experiment, options.repeats, Path(folder))
    print(f"`flwr run` of {options.rounds} rounds: {CASE.title}\n")
    columns = ("cold s", "warm s, median", "all warm", "/ flower", f"<= {BOUND}")
    print_head("engine", *columns, "before the ServerApp", "after it", "loss in the last round")
    # Not in TMPDIR: the paths of Ray's sockets in it must stay below 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="startup-", dir="/tmp"))
    try:
        (home / "data").mkdir()
        folder = folder_for(CASE, options.data, home / "data")
        sides = {name: Side(name, home / name, folder, options.rounds) for name in SIDES}
        cold = {name: side.run() for name, side in sides.items()}
        warm = [{name: side.run() for name, side in sides.items()} for _ in range(options.repeats)]
    finally:
        for name in SIDES:
            end_processes(home / name)
        shutil.rmtree(home, ignore_errors=True)
    medians = {name: [statistics.median(run[name][i] for run in warm) for i in range(4)] for name in SIDES}
    for name, (seconds, before, after, loss) in medians.items():
        ratio = seconds / medians["flower"][0]
        everything = " ".join(f"{run[name][0]:.1f}" for run in warm)
        verdict = "" if name == "flower" else met(ratio <= BOUND)
        times = (f"{cold[name][0]:.1f}", f"{seconds:.1f}", everything, f"{ratio:.2f}", verdict)
        print(row(name, *times, f"{before:.1f}", f"{after:.1f}", f"{loss:.4f}"))


if __name__ == "__main__":
    main()
