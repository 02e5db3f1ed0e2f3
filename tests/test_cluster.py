"""A Ray cluster of two machines, played by two raylets on this one, started as docs/cluster.md says."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

from fedforget.client_app import app
from fedforget.cohort import describe
from fedforget.config import compose
from fedforget.experiment import Experiment
from fedforget.grid import EngineConfig, InProcessGrid, RayGrid, load_client_app
from fedforget.simulation import RAY
from fedforget.testing import Toy

ROOT = Path(__file__).parents[1]
SMALL = "model=linear learning.rounds=3 partition.clients=5 evaluation=smoke strategies=[finetune,amnesiac]"
# Ray announces a change of its own, and leaves it to Python to close the files of the processes that it starts.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def start(home, *arguments):
    """``ray start --block``: one machine of the cluster, for as long as the process lives."""
    environment = {**os.environ, **RAY, "RAY_TMPDIR": str(home), "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    command = [str(Path(sys.executable).with_name("ray")), "start", *arguments, "--num-cpus=2", "--block"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def processes_of(home):
    """The processes of the cluster, found by their environment."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            if process.environ().get("RAY_TMPDIR") == str(home):
                yield process


def raylets_of_workers(home):
    """The process ids of the raylets that run workers of this project."""
    found = set()
    for process in processes_of(home):
        with contextlib.suppress(psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            parent = process.parent()  # a worker too, for the moment in which a child that it started has its name
            if "ray::_Worker" in " ".join(process.cmdline()) and parent and parent.name() == "raylet":
                found.add(parent.pid)
    return found


@pytest.fixture(scope="module")
def cluster():
    """The folder and address of two raylets that have found each other, and the process of the second one."""
    import ray

    home = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the paths of its sockets must be short
    port = free_port()
    address = f"127.0.0.1:{port}"
    head = start(
        home, "--head", f"--port={port}", "--include-dashboard=false", f"--ray-client-server-port={free_port()}"
    )
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert head.poll() is None, "the head of the cluster ended"
            time.sleep(0.2)
        second = start(home, f"--address={address}")
        ray.init(address, log_to_driver=False)
        try:  # a run takes the machines that are there when it starts
            while sum(node["Alive"] for node in ray.nodes()) < 2:
                assert second.poll() is None, "the second machine of the cluster ended"
                time.sleep(0.2)
        finally:
            ray.shutdown()
        yield home, address, second
    finally:
        for process in processes_of(home):
            process.kill()
        shutil.rmtree(home, ignore_errors=True)


def test_a_run_on_two_machines_gives_the_numbers_of_one_process(cluster, stored_models, tmp_path):
    """`RAY_ADDRESS=... fedforget run`: Flower's simulation and the project's workers join the cluster that is there."""
    home, address, _ = cluster
    config = compose("quickstart", SMALL)
    Experiment(config, InProcessGrid(app), tmp_path / "alone", lambda line: None).run()
    command = [sys.executable, "-m", "fedforget.cli", "run", "quickstart", *SMALL.split(), "--nodes", "2"]
    log, raylets = tmp_path / "log", set()
    with log.open("w") as said:
        done = subprocess.Popen(
            [*command, "--output-dir", str(tmp_path / "cluster"), "--verbose"],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": address},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        while done.poll() is None:
            raylets |= raylets_of_workers(home)
            time.sleep(0.2)
    assert done.returncode == 0, log.read_text()
    assert len(raylets) == 2, "the work was not done on both machines"
    expected, found = stored_models(tmp_path / "alone"), stored_models(tmp_path / "cluster")
    assert expected.keys() == found.keys() and len(expected) == 4
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_workers_are_spread_and_a_machine_that_is_lost_costs_no_number(cluster, tmp_path):
    import ray

    _, address, second = cluster
    ray.init(address, log_to_driver=False)
    try:
        toy = Toy(tmp_path)
        grid = RayGrid(InProcessGrid(None, 4), load_client_app, EngineConfig())
        places = [
            ray.get(worker.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()))
            for worker in grid._workers.values()
        ]
        assert sorted(Counter(places).values()) == [2, 2]
        cohort = toy.cohort()
        cohort.grid, cohort.federation, cohort.timeout = grid, describe(grid, toy.task), 120.0
        expected = toy.cohort().train(toy.start, range(6), round=1)
        with ThreadPoolExecutor(1) as pool:
            rounds = pool.submit(lambda: [cohort.train(toy.start, range(6), round=1) for _ in range(100)])
            second.send_signal(signal.SIGTERM)
            second.wait(60)
            for replies in rounds.result(240):
                assert [reply.client for reply in replies] == list(range(6))
                assert all(a.update.equals(b.update) for a, b in zip(replies, expected, strict=True))
        assert cohort.notes == []
    finally:
        ray.shutdown()
