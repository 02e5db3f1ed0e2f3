"""Fixtures shared by the integration tests, and how the suite is divided among the processes of ``pytest -n N``."""

from pathlib import Path

import pytest

from fedforget.client_app import app
from fedforget.config import compose
from fedforget.experiment import Experiment
from fedforget.grid import InProcessGrid
from fedforget.store import load_tensors

# Files whose tests start servers, clusters or workers, or end processes: one after another, and before all others,
# because they take long and partly wait.
ALONE = (
    "test_ray_grid.py",
    "test_cluster.py",
    "test_deployment.py",
    "test_launch.py",
    "test_faults.py",
    "test_resume.py",
    "test_docs.py",
)
# Files that are not in the fast lane (`pytest -m fast`, about a minute), apart from tests in them that are marked so.
SLOW = {
    *ALONE,
    "test_assessment.py",
    "test_certified_newton.py",
    "test_code.py",
    "test_conformance.py",
    "test_costs.py",
    "test_device.py",
    "test_disk.py",
    "test_experiment.py",
    "test_influence.py",
    "test_meta_evaluation.py",
    "test_newton.py",
    "test_page.py",
    "test_partial_amnesiac.py",
    "test_precision.py",
    "test_recipes.py",
    "test_shadows.py",
    "test_statistics.py",
    "test_strategy.py",
    "test_tuning.py",
    "test_vmap_stack.py",
}
SMALL = "model=linear learning.rounds=3 partition.clients=5 evaluation=smoke engine.device=cpu"


def pytest_addoption(parser):
    parser.addoption("--points", type=int, default=7, help="moments at which test_resume.py kills a run")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name not in SLOW and not item.get_closest_marker("slow"):
            item.add_marker("fast")
    items.sort(key=lambda item: item.path.name not in ALONE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one process, where they share fixtures; those of `ALONE` are all in the same."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = Path(nodeid.partition("::")[0])
            return "alone" if file.name in ALONE else str(file)

    config.option.loadscopereorder = False  # those that take long begin, however many tests they are
    return Files(config, log)


@pytest.fixture
def run_small(tmp_path):
    """Run a small experiment in this process; returns the experiment and the lines it said."""

    def run(overrides="", output=tmp_path, nodes=2, client_app=app):
        said = []
        config = compose("quickstart", f"{SMALL} {overrides}")
        experiment = Experiment(config, InProcessGrid(client_app, nodes), Path(output), said.append)
        experiment.run()
        return experiment, said

    return run


@pytest.fixture
def stored_models():
    """All finished models under an output folder, by address."""

    def read(output):
        files = Path(output).glob("store/models/*/model.safetensors")
        return {path.parent.name: load_tensors(path)[0]["model"] for path in files}

    return read
