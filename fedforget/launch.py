"""`fedforget run`: an experiment in this process, and what a terminal needs around it."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fedforget.config import RunConfig, absolute_paths, compose
from fedforget.escape import plain

RESUMES = "the same command resumes from what was saved"


def read(experiment: str, overrides: Sequence[str]) -> RunConfig:
    """The configuration that a command line names, whose relative paths are those of the current folder.

    Raises:
        ValueError: one sentence, for whatever the configuration, or the data without its images, decides.
    """
    if "=" in experiment:
        raise ValueError(f"{experiment!r} stands where an experiment's name is expected; see `fedforget list`")
    if experiment.endswith((".yaml", ".yml")):
        experiment = str(Path(experiment).resolve())
    config = compose(experiment, absolute_paths(overrides, Path.cwd()))
    if config.task.source == "folder" and not Path(config.task.path).is_dir():
        raise ValueError(f"task.path={config.task.path} is not a folder")
    from fedforget.data import check_task  # loads torch, which no error so far needs

    check_task(config.task, config.partition, config.corruption, config.request.steps, config.seed)
    return config


def check(experiment: str, overrides: Sequence[str], nodes: int) -> list[str]:
    """Everything that a run refuses before it trains; returns what it says of the data and the requests.

    Raises:
        ValueError: as `run`.
    """
    config, said = read(experiment, overrides), list[str]()
    from fedforget.experiment import Experiment
    from fedforget.simulation import Simulation

    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Simulation(nodes, config.engine)) as grid:
        Experiment(config, grid, Path(folder), said.append).prepare()
    return said


def run(
    experiment: str,
    overrides: Sequence[str],
    output: Path | None = None,
    nodes: int = 2,
    verbose: bool = False,
    path: Sequence[str] = (),
) -> int:
    """Run an experiment and show how far it is.

    Args:
        experiment: its name, or a YAML file.
        overrides: ``key=value`` items.
        output: the folder for results; None for the default.
        nodes: how many nodes the simulation has.
        verbose: whether Flower and Ray may print, and every line goes to the terminal.
        path: folders that join Python's path in workers.

    Returns:
        0 if it came to its results; 1 if it could not go on.

    Raises:
        ValueError: if the configuration or the data does not allow it; nothing has been started then.
        SystemExit: with 128 + the signal's number, if SIGINT, SIGTERM or SIGHUP stopped it.
    """
    config = read(experiment, overrides)
    from fedforget.store import Store, default_output

    folder = (output or default_output()).expanduser().resolve()
    Store(folder / "store")
    from fedforget.cohort import AuditFailed, TooFewClients
    from fedforget.experiment import Experiment
    from fedforget.grid import GridEnded
    from fedforget.simulation import CannotStart, Simulation

    grid = Simulation(nodes, config.engine, path, verbose)
    with _stopped_by_signals(grid.give_up), contextlib.closing(grid), Terminal(verbose) as terminal:
        try:
            Experiment(config, grid, folder, terminal.say, terminal.step).run()
        except (AuditFailed, CannotStart, TooFewClients) as error:
            terminal.complain(str(error))
            return 1
        except GridEnded as error:
            terminal.complain(f"{error}; {RESUMES}")
            return 1
    return 0


@contextlib.contextmanager
def _stopped_by_signals(give_up: Callable[[str], None]) -> Iterator[None]:
    """Signals that end a process end the run instead, as long as it is open; in the main thread, which alone gets any.

    Args:
        give_up: makes whatever waits for clients stop to wait.
    """

    def stop(received: int, _: FrameType | None) -> NoReturn:
        name = signal.Signals(received).name
        print(f"\nfedforget: stopped by {name}; {RESUMES}", file=sys.stderr)
        give_up(f"stopped by {name}")
        sys.exit(128 + received)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Terminal:
    """What is seen of a run: its lines, and a bar; a log file, which sees no bar, gets a line for each model instead.

    Args:
        verbose: whether a log file gets every step.
    """

    def __init__(self, verbose: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._verbose, self._shown = verbose, 0
        self._console = Console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        )
        self._bar = self._progress.add_task("reading the data", total=None)

    def __enter__(self) -> Terminal:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Show a line."""
        self._print(line)

    def complain(self, line: str) -> None:
        """Show why a run could not go on."""
        self._progress.stop()
        print(f"fedforget: error: {plain(line)}", file=sys.stderr)

    def step(self, done: int, total: int, what: str) -> None:
        """Show how far the run is."""
        self._progress.update(self._bar, completed=done, total=total, description=f"{plain(what)[:60]:60}")
        if self._verbose or (not self._console.is_terminal and done != self._shown):
            self._shown = done
            self._print(f"[{done}/{total}] {plain(what)}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
