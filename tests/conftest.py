"""Fixtures shared by the integration tests."""

from pathlib import Path

import pytest

from fedforget.client_app import app
from fedforget.config import compose
from fedforget.experiment import Experiment
from fedforget.grid import InProcessGrid
from fedforget.store import load_tensors

SMALL = "model=linear learning.rounds=3 partition.clients=5 evaluation=smoke engine.device=cpu"


def pytest_addoption(parser):
    parser.addoption("--points", type=int, default=7, help="moments at which test_resume.py kills a run")


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
