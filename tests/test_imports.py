"""Who may import whom: the table of the design, checked against what the files say.

A new module must be entered here, which is the moment to think about where it belongs.
"""

from __future__ import annotations

import ast
import gc
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fedforget.data import DataConfig, PartitionConfig, divide
from fedforget.loading import loading

ROOT = Path(__file__).parents[1]
EVERYTHING = "*"

# Module -> modules of this project, and other packages, that it may import. The standard library is free to all.
ALLOWED: dict[str, tuple[str, str]] = {
    "__init__": ("", ""),
    "core": ("", "torch"),
    "params": ("core", "torch"),
    "seeds": ("", "numpy torch"),
    "loading": ("", ""),
    "machine": ("", ""),
    "watcher": ("", "psutil"),
    "request": ("", ""),
    "ledger": ("", ""),
    "names": ("", ""),
    "stage": ("", ""),
    "folders": ("", ""),
    "escape": ("", ""),
    "options": ("", ""),
    "failures": ("", ""),
    "found": ("folders request", ""),
    "schema": ("names stage data evaluation", ""),  # the latter two not at the top: what they load is slow
    "exchange": ("core params ledger", "torch"),
    "store": ("failures", "torch safetensors filelock"),
    "data": ("names schema request seeds", "numpy torch sklearn datasets flwr_datasets torchvision pyarrow PIL"),
    "models": ("names schema", "torch torchvision"),
    "history": ("schema params exchange ledger seeds store", "numpy torch"),
    "routines": ("schema params seeds", "torch"),
    "messages": ("request params seeds data models routines", "numpy torch flwr"),
    "client": ("core routines data models messages metrics params store", "numpy torch"),
    "client_app": ("client data messages store", "numpy torch flwr"),
    "attendance": ("", ""),
    "checks": ("params routines", "numpy"),
    "description": ("data schema", ""),
    "cohort": (
        "core data description messages exchange attendance checks ledger routines seeds params request",
        "numpy torch flwr",
    ),
    "solvers": ("params", "torch"),
    "grid": (
        "client_app data loading schema",
        "numpy flwr ray",
    ),  # the ClientApp only inside a function that runs in workers
    "simulation": ("client_app data grid machine messages watcher", "flwr psutil ray torch"),
    "strategy": (
        "found names options routines schema seeds history cohort exchange messages request params",
        "flwr",
    ),
    "metrics": ("params", "numpy torch sklearn scipy statsmodels"),
    "evaluation": ("schema stage metrics data ledger", "numpy torch scipy"),
    "verdicts": ("claims stage data evaluation metrics ledger", "numpy torch"),
    "assessment": ("claims stage data evaluation verdicts metrics ledger params store", "numpy torch threadpoolctl"),
    "tuning": ("schema metrics ledger request seeds", "torch optuna"),
    "effects": ("options strategy", ""),
    "config": (
        "effects folders found names options request schema strategy",
        "omegaconf yaml",
    ),
    "claims": ("", ""),
    "tables": ("claims data", ""),
    "figures": ("claims stage tables", "matplotlib"),
    "page": ("claims figures tables", "jinja2 markupsafe"),
    "report": ("escape claims page figures tables store", ""),
    "run": (
        "schema stage params seeds request ledger exchange store data models history messages cohort grid strategy "
        "metrics routines solvers tuning escape evaluation assessment config",
        "torch flwr",
    ),
    "experiment": ("run config cohort evaluation assessment report store", "torch flwr"),
    "server_app": ("escape config experiment cohort grid store loading", "flwr"),
    "launch": ("cohort config data escape experiment grid simulation store", "rich"),
    "cli": (EVERYTHING, "torch rich"),
    "testing": (EVERYTHING, "numpy torch flwr"),
}
# Modules that nobody but these may import: the outermost layer.
OUTERMOST = {
    "server_app": set(),
    "cli": set(),
    "testing": set(),
    "launch": {"cli"},
    "simulation": {"launch"},
    "experiment": {"server_app", "cli", "launch", "testing"},
    "run": {"run", "experiment"},
}
STRATEGIES = {"strategy", "params", "solvers", "routines"}  # what a strategy may import: public modules alone

# Slow to load, and needed by few processes: imported inside the function that needs them.
HEAVY = {
    "ray",
    "sklearn",
    "datasets",
    "flwr_datasets",
    "torchvision",
    "matplotlib",
    "scipy",
    "pyarrow",
    "PIL",
    "pandas",
    "optuna",
}
HEAVY_AT_THE_TOP = {"metrics": {"scipy"}, "evaluation": {"scipy"}}  # scipy by itself; it loads its parts when asked


class Import(NamedTuple):
    """One imported module: its dotted name, and whether importing the file imports it."""

    name: str
    at_the_top: bool
    line: int


def imports(path: Path) -> Iterator[Import]:
    """All imports of a file; those in functions and those for type checkers only are not at the top."""

    def walk(node: ast.AST, at_the_top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, at_the_top, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative imports hide who imports whom"
                # ``from fedforget import params`` imports a module; ``from fedforget.params import Params`` a name.
                parents = ("fedforget", "strategies")
                names = [f"{child.module}.{alias.name}" for alias in child.names] if child.module in parents else []
                yield from (Import(name, at_the_top, child.lineno) for name in names or [str(child.module)])
            else:
                lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                typing = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
                yield from walk(child, at_the_top and not lazy and not typing)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def module_of(path: Path) -> str:
    """The row of the table that a file of the framework belongs to."""
    parts = path.relative_to(ROOT / "fedforget").with_suffix("").parts
    return parts[0]


FILES = sorted((ROOT / "fedforget").rglob("*.py"))
METHODS = sorted((ROOT / "strategies").glob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
each_method = pytest.mark.parametrize("path", METHODS, ids=lambda path: path.name)


def test_the_table_names_every_module_and_no_other() -> None:
    assert {module_of(path) for path in FILES} == set(ALLOWED)
    named = {name for modules, _ in ALLOWED.values() for name in modules.split()} - {EVERYTHING}
    assert named | STRATEGIES <= set(ALLOWED)


@each_file
def test_modules_import_what_the_design_allows(path: Path) -> None:
    module = module_of(path)
    modules, packages = (set(names.split()) for names in ALLOWED[module])
    if module == "strategy":
        packages.add("strategies")  # the folder in which it finds them
    for name, _, line in imports(path):
        package, _, rest = name.partition(".")
        if package != "fedforget":
            allowed = package in packages or package in sys.stdlib_module_names
        else:
            target = rest.partition(".")[0]
            allowed = target in {"", module} or target in modules or EVERYTHING in modules
            allowed = allowed and module in OUTERMOST.get(target, {module})
        assert allowed, f"{path.relative_to(ROOT)}:{line} imports {name}; the design does not let {module} do that"


@each_method
def test_strategies_import_the_framework_and_never_each_other(path: Path) -> None:
    for name, _, line in imports(path):
        package, _, rest = name.partition(".")
        allowed = package == "torch" or package in sys.stdlib_module_names
        if package == "fedforget":
            allowed = rest.partition(".")[0] in STRATEGIES
        assert allowed, (
            f"{path.name}:{line} imports {name}; a strategy may import {', '.join(sorted(STRATEGIES))} and torch"
        )


@pytest.mark.parametrize("path", [*FILES, *METHODS], ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_are_imported_where_they_are_needed(path: Path) -> None:
    exempt = HEAVY_AT_THE_TOP.get(module_of(path), set()) if path in FILES else set()
    heavy = [(name, line) for name, at_the_top, line in imports(path) if at_the_top and name.split(".")[0] in HEAVY]
    assert [(name, line) for name, line in heavy if name.split(".")[0] not in exempt] == []


def test_metrics_are_pure_functions_of_outputs() -> None:
    """Said by the table already; here in words, so that nobody loosens it there."""
    reached = {name for path in FILES if module_of(path) == "metrics" for name, _, _ in imports(path)}
    assert not {name for name in reached if name.split(".")[0] in ("flwr", "strategies")}
    assert "fedforget.cohort" not in reached and "fedforget.strategy" not in reached


def test_no_module_imports_itself_in_a_circle() -> None:
    """Imports at the top of files form no cycle, so that any module can be imported first."""
    graph: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for path in FILES:
        targets = [name.split(".")[1] for name, at_the_top, _ in imports(path) if at_the_top and "fedforget." in name]
        graph[module_of(path)] |= {target for target in targets if target in ALLOWED} - {module_of(path)}
    while leaves := {module for module, targets in graph.items() if not targets}:
        graph = {module: targets - leaves for module, targets in graph.items() if module not in leaves}
    assert graph == {}, f"these modules import each other in a circle: {sorted(graph)}"


def test_a_worker_loads_nothing_heavy() -> None:
    """A worker process needs the ClientApp, and the grid, whose actor it is. Each of these packages would cost it much
    of a second, or more; what Flower's SuperLink keeps its messages in loads SQLAlchemy and FastAPI."""
    script = "import sys, fedforget.grid, fedforget.client_app; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "torch" in loaded and not loaded & (HEAVY | {"sqlalchemy", "fastapi"})


@pytest.mark.parametrize("module", ["grid", "server_app"])
def test_a_process_loads_torch_where_it_does_not_look_for_garbage(module: str) -> None:
    """A worker is made of fedforget.grid, and a server of fedforget.server_app, before either can switch it off."""
    script = f"import sys, fedforget.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"fedforget.{module}" in done.stdout.split() and "torch" not in done.stdout.split()


@pytest.mark.parametrize("looking", [True, False])
def test_loading_leaves_the_search_for_garbage_as_it_was(looking: bool) -> None:
    (gc.enable if looking else gc.disable)()
    try:
        with pytest.raises(ModuleNotFoundError), loading():
            assert not gc.isenabled()
            importlib.import_module("fedforget.there_is_no_such_module")
        assert gc.isenabled() == looking
    finally:
        gc.enable()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["runn"]])
def test_the_command_line_itself_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom fedforget.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    print('loaded', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.rpartition("loaded")[2].split()}
    assert "fedforget" in loaded and not loaded & (HEAVY | {"torch", "flwr", "ray", "numpy", "omegaconf", "rich"})


SLOW = HEAVY | {"torch", "flwr", "numpy"}


@pytest.mark.parametrize("command", [["list"], ["run", "--seed", "3"]])
def test_what_needs_no_training_loads_nothing_slow(command: list[str]) -> None:
    script = (
        "import sys\nfrom fedforget.cli import main\n"
        f"try:\n    main({command!r})\nexcept SystemExit:\n    pass\nprint('loaded', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.rpartition("loaded")[2].split()}
    assert "fedforget" in loaded and not loaded & SLOW


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nosuch"], "unknown experiment 'nosuch'"),
        (["quickstart", "learning.round=3"], "unknown key 'learning.round'"),
        (["quickstart", "seed=x"], "seed is 'x'"),
        (["quickstart", "local.lr=0"], "local.lr is 0"),
        (["quickstart", "model.name=mpl"], "model 'mpl' is unknown"),
        (["quickstart", "evaluation.level=scren"], "evaluation level 'scren' is unknown"),
        (["quickstart", "evaluation.level=epsilon"], "too few"),
        (["quickstart", "strategies=[finetun]"], "unknown strategy 'finetun'"),
        (["quickstart", "request.clients=[99]"], "request.clients names client 99"),
        (["quickstart", "task=no_such_task"], "unknown task"),
    ],
)
def test_what_the_settings_alone_decide_is_refused_before_anything_slow_is_loaded(
    words: list[str], complaint: str
) -> None:
    """Errors that a strategy's own options cause do load it, for only its class knows them."""
    script = (
        f"import sys\nfrom fedforget.cli import main\ncode = main({['run', *words]!r})\n"
        "print('loaded', *sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 2 and complaint in done.stderr, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.rpartition("loaded")[2].split()}
    assert "fedforget" in loaded and not loaded & SLOW


def test_reading_a_config_loads_nothing_that_audits_need() -> None:
    """Every command does, and a run twice, before anything else can start: scipy.stats alone takes most of a second."""
    script = (
        "import sys; from fedforget.config import compose, describe\n"
        "compose('quickstart', ''); describe(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"scipy.stats", "scipy.spatial", "sqlalchemy", "fastapi", *(HEAVY - {"scipy"})}


def test_reading_a_folder_and_dividing_it_at_random_loads_no_more_than_its_formats(tmp_path: Path) -> None:
    """The server does so in every run, while Ray starts, and every node that is deployed before every answer."""
    divide(DataConfig(partition=PartitionConfig(clients=2)), tmp_path)
    script = (
        "import sys; from fedforget.data import DataConfig, FederatedData, TaskConfig\n"
        f"print(FederatedData(DataConfig(TaskConfig('folder', {str(tmp_path / 'client-0')!r}))).num_clients)\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    clients, *loaded = done.stdout.split()
    assert clients == "10" and HEAVY.intersection(loaded) == {"pyarrow", "PIL"}
