"""The command `fedforget` and its arguments."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import fedforget
from fedforget.machine import cores

if TYPE_CHECKING:
    from fedforget.tables import Rows

ERROR = "fedforget: error: "


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command ``fedforget``; returns its exit status (0 done, 1 failed, 2 bad input)."""
    parser = argparse.ArgumentParser(prog="fedforget", description="Federated unlearning, judged against a retrain.")
    parser.add_argument("--version", action="version", version=f"fedforget {fedforget.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="run an experiment and print its table")
    run.add_argument("experiment", nargs="?", default="quickstart", help="a name from `fedforget list`, or a YAML file")
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="group=name, or key=value, as often as needed")
    where = "default: $FEDFORGET_HOME, else ~/.fedforget"
    run.add_argument("--output-dir", type=Path, help=where)
    run.add_argument("--nodes", type=int, default=max(2, cores()), help="SuperNodes; default: CPU cores")
    run.add_argument("--verbose", action="store_true", help="show everything that Flower and Ray print")

    commands.add_parser("list", help="experiments, strategies and config groups")
    report = commands.add_parser(
        "report", help="make tables and figures of a run again, or put several requests together"
    )
    about = "the folder that `fedforget run` printed, or its name; several: runs that differ in their request only"
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=about)
    report.add_argument("--output-dir", type=Path, help=where)
    split = commands.add_parser("split", help="write what each client of an experiment holds into a folder of its own")
    split.add_argument("experiment", help="a name from `fedforget list`, or a YAML file")
    split.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as in `fedforget run`")
    split.add_argument("--to", type=Path, required=True, help="gets a folder client-<id> for each client")
    doctor = commands.add_parser("doctor", help="versions, devices, data found, and a self-test of some seconds")
    about = "folders of parquet files to look into; an experiment and its KEY=VALUE, to be checked as `run` does"
    doctor.add_argument("words", nargs="*", metavar="FOLDER|EXPERIMENT|KEY=VALUE", help=about)

    options, rest = parser.parse_known_args(arguments)
    if rest and ("overrides" not in options or any(word.startswith("-") for word in rest)):
        from fedforget.config import as_setting

        hint = as_setting(rest) if "overrides" in options else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if rest:  # overrides behind an option, where argparse expects no more of them
        options.overrides = [*options.overrides, *rest]
    from fedforget.escape import plain
    from fedforget.failures import CannotWrite

    command = {"run": _run, "list": _list, "report": _report, "split": _split, "doctor": _doctor}[options.command]
    try:
        with _on_path(_own_folder()):
            return command(options)
    except (ValueError, CannotWrite) as error:
        print(f"{ERROR}{plain(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


# ---------------------------------------------------------------------- run


def _run(options: argparse.Namespace) -> int:
    from fedforget.launch import run

    if options.nodes < 1:
        raise ValueError(f"--nodes {options.nodes} must be at least 1")
    return run(
        options.experiment,
        options.overrides,
        options.output_dir,
        options.nodes,
        options.verbose,
        _own_folder(),
    )


def _own_folder() -> list[str]:
    """The current folder, if the user keeps strategies or configs in it: they join the installed ones."""
    here = Path.cwd()
    return [str(here)] if (here / "strategies").is_dir() or (here / "configs").is_dir() else []


@contextlib.contextmanager
def _on_path(folders: list[str]) -> Iterator[None]:
    """Folders first on Python's path, as long as it is open."""
    before = list(sys.path)
    sys.path[:0] = folders
    try:
        yield
    finally:
        sys.path[:] = before


# ---------------------------------------------------------------------- list, report, split, doctor


def _list(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from fedforget.config import describe
    from fedforget.found import strategy_scopes, strategy_titles

    console = Console()
    known = describe()
    table = Table("experiment", "what it does", title="experiments: fedforget run NAME", title_justify="left")
    for name, about in known["experiments"].items():
        table.add_row(name, about)
    console.print(table)
    table = Table("strategy", "scopes", "what it is", title="strategies=[NAME, ...]", title_justify="left")
    scopes = strategy_scopes()
    for name, about in strategy_titles().items():
        table.add_row(name, ", ".join(scopes[name]), about)
    console.print(table)
    table = Table("group", "names", title="groups: GROUP=NAME", title_justify="left")
    for group, names in known["groups"].items():
        table.add_row(group, ", ".join(names))
    console.print(table)
    return 0


def _report(options: argparse.Namespace) -> int:
    from fedforget.report import write, write_together
    from fedforget.store import digest

    folders = [_run_folder(run, options) for run in options.runs]
    if len(folders) > 1:
        _check_comparable(folders)
    measured = [_measured(folder) for folder in folders]
    if len(folders) == 1:
        written = write(folders[0], *measured[0])
        print((folders[0] / "table.md").read_text())
    else:
        name = f"{measured[0][0]['experiment']}-requests-{digest(sorted(f.name for f in folders))[:8]}"
        written = write_together(folders[0].parent / name, measured)
        print(written["requests.md"].read_text())
    for path in written.values():
        print(path)
    return 0


def _run_folder(run: Path, options: argparse.Namespace) -> Path:
    from fedforget.store import default_output

    folder = run.expanduser()
    if not folder.exists():
        folder = (options.output_dir or default_output()).expanduser() / "runs" / run
    if not (folder / "results.jsonl").exists():
        raise ValueError(f"{run} is not a run: there is no results.jsonl in {folder}")
    return folder.resolve()


def _measured(folder: Path) -> tuple[dict, Rows]:
    """Header and rows of a run, with whatever metrics there are today, from the stored answers."""
    from fedforget.assessment import assess
    from fedforget.report import load

    header, rows = load(folder)
    store = folder.parents[1] / "store"
    if store.is_dir():
        return header, assess(store, header).rows()
    print(f"{store} is not there, so the numbers are those of the run itself", file=sys.stderr)
    return header, rows


def _check_comparable(folders: Sequence[Path]) -> None:
    """Refuse runs that differ in more than what is forgotten, and whose data carries the marks.

    Raises:
        ValueError: naming the runs and the settings.
    """
    from fedforget.config import compose, to_dict

    settings = []
    for folder in folders:
        tree = to_dict(compose(str(folder / "config.yaml"), []))
        settings.append(dict(_flat({**tree, "experiment": "", "request": tree.pop("request")})))
    asked = [[(key, value) for key, value in mine.items() if _of_request(key)] for mine in settings]
    for number, (folder, mine) in enumerate(zip(folders, settings, strict=True)):
        if asked.index(asked[number]) < number:
            raise ValueError(f"{folder.name} forgets the same as {folders[asked.index(asked[number])].name}")
        for key in sorted(mine.keys() | settings[0].keys()):
            if not _of_request(key) and mine.get(key) != settings[0].get(key):
                raise ValueError(
                    f"{folders[0].name} and {folder.name} differ in more than their request: "
                    f"{key}={settings[0].get(key)} and {mine.get(key)}"
                )


def _of_request(key: str) -> bool:
    return key.startswith(("request.", "corruption.clients"))


def _flat(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """``("learning.rounds", 20)`` of nested settings; lists are values, but those of settings."""
    if isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        tree = {str(number): item for number, item in enumerate(tree)}
    if not isinstance(tree, dict):
        yield prefix, tree
        return
    for key, value in tree.items():
        yield from _flat(value, f"{prefix}.{key}" if prefix else key)


def _split(options: argparse.Namespace) -> int:
    from fedforget.config import absolute_paths, compose
    from fedforget.data import divide
    from fedforget.failures import CannotWrite

    config = compose(options.experiment, absolute_paths(options.overrides, Path.cwd()))
    try:
        folders = divide(config.data, options.to.expanduser())
    except OSError as error:
        raise CannotWrite(options.to, error.strerror or str(error)) from error
    print(*folders, sep="\n")
    return 0


def _data_found(settings: dict) -> str:
    """Whether the data of a task lies on this machine, in words; nothing is downloaded or decoded."""
    source, path = settings["source"], settings.get("path", "")
    if source == "digits":
        return "found (it comes with scikit-learn)"
    if source == "holder":
        return "each SuperNode has its own, see docs/deployment.md"
    if source == "folder":
        return f"found in {path}" if path and Path(path).is_dir() else "give its folder: task.path=FOLDER"
    if source == "torchvision":
        place = Path(settings.get("root") or "~/.cache/fedforget/torchvision").expanduser()
        found = (place / path).is_dir()
    else:
        place = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
        found = any(place.glob(f"*/*{path.split('/')[-1]}*"))
    return f"{'found in' if found else 'a run downloads it to'} {place}"


def _describe_folder(folder: Path) -> str:
    """What a folder of parquet files holds, decoded as a run would."""
    from fedforget.data.sources import TaskConfig, load_source
    from fedforget.seeds import Seeds

    data = load_source(TaskConfig("folder", str(folder.expanduser().resolve())), Seeds(0))
    shape = "x".join(map(str, data.train_inputs.shape[1:]))
    return (
        f"{len(data.train_labels)} training and {len(data.test_labels)} test images {shape}, {data.num_classes} classes"
    )


def _doctor(options: argparse.Namespace) -> int:
    """Versions and devices, then one small run in this process."""
    import tempfile

    import torch

    for package in ("fedforget", "flwr", "ray", "torch", "torchvision", "numpy"):
        print(f"{package:12} {metadata.version(package)}")
    print(f"{'python':12} {sys.version.split()[0]}, {cores()} CPU cores")
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"{'cuda':12} {', '.join(cards) if cards else 'no device: everything runs on the CPU'}")
    for variable in ("FLWR_HOME", "CUDA_VISIBLE_DEVICES"):
        print(f"{variable:12} {os.environ.get(variable, '(not set)')}")

    from fedforget.client_app import app
    from fedforget.config import compose, describe, group_settings
    from fedforget.experiment import Experiment
    from fedforget.grid import InProcessGrid
    from fedforget.launch import check

    for task in describe()["groups"]["task"]:
        print(f"{'data':12} task={task}: {_data_found(group_settings('task', task))}")
    folders = [word for word in options.words if "=" not in word and Path(word).is_dir()]
    for folder in folders:
        print(f"{'data':12} task.path={folder}: {_describe_folder(Path(folder))}")
    asked = [word for word in options.words if word not in folders]
    if asked:
        named = [word for word in asked if "=" not in word]
        if len(named) > 1:
            raise ValueError(f"{named[1]!r} is no folder, and {named[0]!r} is the experiment already")
        experiment = named[0] if named else "quickstart"
        for line in check(experiment, [word for word in asked if "=" in word], max(2, cores())):
            print(f"{experiment:12} {line}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        config = compose(
            "quickstart", "learning.rounds=2 evaluation=smoke strategies=[finetune] strategy.finetune.rounds=1"
        )
        Experiment(config, InProcessGrid(app), Path(folder), lambda line: None).run()
    print(f"self-test    a small run in this process took {time.monotonic() - started:.1f} s: all is well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
