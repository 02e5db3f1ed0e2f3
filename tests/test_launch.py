"""Real launches: `fedforget run` on Ray, and `flwr run` on Flower's own transport, give the in-process numbers."""

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

from fedforget import simulation, watcher
from fedforget.cli import main

ROOT = Path(__file__).parents[1]
SMALL = "model=linear learning.rounds=3 partition.clients=5 evaluation=smoke strategies=[finetune,amnesiac]"


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def processes_of(home):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME", "").startswith(str(home)):
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    from fedforget.client_app import app
    from fedforget.config import compose
    from fedforget.experiment import Experiment
    from fedforget.grid import InProcessGrid

    output = tmp_path_factory.mktemp("in-process")
    Experiment(compose("quickstart", SMALL), InProcessGrid(app), output, lambda line: None).run()
    return output


def processes_of_runs():
    """The processes of Ray that runs of this suite's machine have started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            if "/fedforget-" in process.environ().get(watcher.MARK, ""):
                found.append(process)
    return found


PROXIES = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")}


def test_fedforget_run_on_ray(in_process, stored_models, tmp_path):
    """Stopped, then without Ray's processes one after the other, then killed, and behind a proxy that is not there."""
    command = [sys.executable, "-m", "fedforget.cli", "run", "quickstart", *SMALL.split()]
    command += ["--output-dir", str(tmp_path)]
    before = {process.pid for process in processes_of_runs()}

    def mine():
        return [process for process in processes_of_runs() if process.pid not in before]

    def interrupted(end):
        """What a run says and how it ends, if ``end`` is called with its process once it has made progress."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [*command, "--verbose"], cwd=ROOT, env={**os.environ, **PROXIES}, text=True, bufsize=1, **pipes
        )
        assert process.stdout is not None
        said = next((line for line in process.stdout if line.startswith(f"[{done}/")), None)
        assert said, "the run made no progress: " + process.communicate()[1]
        homes.update(each.environ()[watcher.MARK] for each in mine())
        end(process)
        _, complaints = process.communicate(timeout=90)
        deadline = time.monotonic() + 60
        while (mine() or any(Path(home).exists() for home in homes)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not mine(), "the run left processes behind"
        assert not any(Path(home).exists() for home in homes), "the run left its folder behind"
        return process.returncode, complaints

    def without(name):
        return lambda process: next(each for each in mine() if each.name() == name).kill()

    homes: set[str] = set()
    done = 1
    status, said = interrupted(lambda process: process.send_signal(signal.SIGTERM))
    assert status == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; the same command resumes from what was saved" in said
    for name in ("raylet", "gcs_server"):
        shutil.rmtree(tmp_path / "store")
        status, said = interrupted(without(name))
        assert status == 1, said
        assert (
            f"fedforget: error: Ray's process {name} ended in the midst of the run (killed, or out of memory)" in said
        )
        assert said.strip().endswith("the same command resumes from what was saved")
    shutil.rmtree(tmp_path / "store")
    status, said = interrupted(lambda process: process.kill())
    assert status == -signal.SIGKILL
    assert watcher.UNANNOUNCED in said

    whole = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **PROXIES}, capture_output=True, text=True, timeout=300
    )
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "oracle (retrain)" in whole.stdout and f"results: {tmp_path}" in whole.stdout
    assert not whole.stderr, "Ray or Flower made noise"
    assert equal(stored_models(in_process), stored_models(tmp_path))
    assert not mine(), "the launcher left processes behind"


LAUNCHER = """
import subprocess, sys, time
from fedforget import cli, simulation

def init(self, **settings):
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(settings["_temp_dir"], flush=True)
    time.sleep(600)

simulation.Ray._init = init
simulation.CLOSING = 0.1
sys.exit(cli.main(["run", "quickstart", "--output-dir", sys.argv[1]]))
"""


def test_overrides_may_stand_behind_options(tmp_path, capsys):
    command = ["run", "quickstart", "seed=3", "--output-dir", str(tmp_path), "--verbose", "learning.runds=3"]
    assert main(command) == 2
    assert "did you mean 'learning.rounds'?" in capsys.readouterr().err
    for stranger in (["run", "quickstart", "--output-dir", str(tmp_path), "--wordy"], ["list", "seed=3"]):
        with pytest.raises(SystemExit):
            main(stranger)
        assert "unrecognized arguments: " + stranger[-1] in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_however_the_launcher_ends_it_leaves_nothing_behind(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # pytest may run with it ignored
    )
    assert process.stdout is not None
    home = Path(next(line for line in process.stdout if line.startswith("/")).strip())
    assert home.is_dir() and watcher.processes_of(home)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while home.exists() and time.monotonic() < deadline:  # the launcher is gone at once, what watches it follows
        time.sleep(0.1)
    if number == signal.SIGKILL:
        assert process.returncode == -number and said.strip() == watcher.UNANNOUNCED
    else:
        assert process.returncode == 128 + number
        assert said.strip() == f"fedforget: stopped by {number.name}; the same command resumes from what was saved"
    assert not home.exists() and not watcher.processes_of(home)


@pytest.fixture
def no_ray(monkeypatch):
    """Ray fails the test that starts it."""
    monkeypatch.setattr(simulation.Ray, "start", lambda self: pytest.fail("Ray was started"))


def test_a_run_of_which_everything_is_stored_starts_no_ray(in_process, tmp_path, no_ray, capsys):
    shutil.copytree(in_process, tmp_path / "out")
    tables = {path: path.read_bytes() for path in (tmp_path / "out" / "runs").glob("*/*.csv")}
    for path in tables:
        path.unlink()
    assert main(["run", "quickstart", *SMALL.split(), "--output-dir", str(tmp_path / "out")]) == 0
    assert "oracle (retrain)" in capsys.readouterr().out
    assert tables and {path: path.read_bytes() for path in tables} == tables


def test_main_in_a_thread_and_in_a_script_leaves_nothing_behind(in_process, tmp_path, no_ray, capsys):
    shutil.copytree(in_process, tmp_path / "out")
    command = ["run", "quickstart", *SMALL.split(), "--output-dir", str(tmp_path / "out")]
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def state():
        return [signal.getsignal(number) for number in numbers], dict(os.environ), list(sys.path), threading.enumerate()

    before = state()
    assert main(command) == 0
    assert state() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, command).result() == 0
    assert state() == before


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ("request=sample request.share=1.0 request.samples=[99999]", "so none at 99999"),
        ("request=class request.classes=[77] strategies=[]", "77"),
    ],
)
def test_what_the_data_decides_is_refused_before_ray_starts(tmp_path, no_ray, capsys, overrides, complaint):
    settings = "model=linear evaluation=smoke strategies=[finetune]"
    assert main(["run", "quickstart", *settings.split(), *overrides.split(), "--output-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("fedforget: error: ") and complaint in said and "\n" not in said
    assert not list(tmp_path.glob("store/trajectories/*"))


def test_cards_that_are_not_there_are_refused_before_ray_starts(tmp_path, no_ray, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    command = ["run", "quickstart", "engine.gpus_per_worker=0.5", "--output-dir", str(tmp_path)]
    assert main(command) == 2
    assert "engine.gpus_per_worker=0.5 lets 0 workers share the 0 GPUs" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_named(tmp_path, no_ray, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for dead in (address, "nowhere"):
        monkeypatch.setenv("RAY_ADDRESS", dead)
        assert main(["run", "quickstart", *SMALL.split(), "--output-dir", str(tmp_path)]) == 2
        said = capsys.readouterr().err.strip()
        assert f"RAY_ADDRESS={dead!r} names a Ray cluster that does not answer" in said and "\n" not in said


def test_ray_needs_a_short_folder_that_can_be_written(tmp_path, monkeypatch):
    make = tempfile.mkdtemp

    def read_only(prefix, dir):
        if dir == "/tmp":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return make(prefix=prefix, dir=dir)

    with tempfile.TemporaryDirectory(dir="/dev/shm") as short:
        monkeypatch.setattr(tempfile, "mkdtemp", read_only)
        monkeypatch.setattr(tempfile, "tempdir", short)
        with contextlib.closing(simulation.Home()) as home:
            assert home.path.parent == Path(short) and home.path.is_dir()
        assert not home.path.exists()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 20)))
        with pytest.raises(ValueError, match="set TMPDIR to another folder"):
            simulation.Home()


def test_when_ray_does_not_start_the_end_of_its_log_is_shown(monkeypatch, tmp_path):
    """It is tried again, and each attempt cleans up."""
    attempts = []

    def init(self, **settings):
        attempts.append(settings)
        logs = Path(settings["_temp_dir"]) / "session_latest" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        (logs / "raylet.err").write_text("\n".join(["early", *["then"] * 20, "no memory for the object store"]))
        raise TimeoutError("The current node timed out during startup.")

    monkeypatch.setattr(simulation.Ray, "_init", init)
    monkeypatch.setattr(simulation.Ray, "_end", lambda self: None)
    ray = simulation.Ray("", [], False, pytest.fail)
    with contextlib.closing(ray), pytest.raises(simulation.CannotStart) as caught:
        ray.start()
    said = str(caught.value)
    assert len(attempts) == simulation.ATTEMPTS and attempts[0]["address"] == "local"
    assert "timed out during startup" in said and "no memory for the object store" in said and "early" not in said
    assert not Path(attempts[0]["_temp_dir"]).exists()


def test_what_is_started_here_is_reached_without_a_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.delenv("NO_PROXY", raising=False)
    before = dict(os.environ)
    with simulation.environment(["/mine"]):
        assert os.environ["no_proxy"] == "example.org,127.0.0.1,localhost"
        assert os.environ["NO_PROXY"] == "127.0.0.1,localhost"
        assert os.environ["PYTHONPATH"].startswith("/mine")
    assert dict(os.environ) == before


def test_flwr_run_with_flowers_own_transport_and_three_nodes(in_process, stored_models, tmp_path):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    environment = {
        **os.environ,
        "FLWR_HOME": str(tmp_path / "flower"),
        "FLWR_LOCAL_CONTROL_API_PORT": ports[0],
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": ports[1],
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_ADDRESS": "local",  # else Flower joins a cluster that left its address on this machine, dead or alive
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    settings = f'output-dir="{tmp_path}" overrides="{SMALL} engine.transport=flower"'
    federation = "num-supernodes=3 client-resources-num-cpus=1"
    command = ["flwr", "run", ".", "--stream", "--run-config", settings, "--federation-config", federation]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    finally:
        for process in processes_of(tmp_path):
            process.kill()
    assert "oracle (retrain)" in done.stdout, done.stdout + done.stderr
    assert "on 3 SuperNodes" in done.stdout
    assert equal(stored_models(in_process), stored_models(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "quikstart"], "did you mean 'quickstart'"),
        (["run", "quickstart", "learning.roundz=3"], "did you mean 'learning.rounds'"),
        (["run", "quickstart", "strategies=[finetun]"], "did you mean 'finetune'"),
        (["run", "quickstart", "request=class"], "class"),
        (["run", "quickstart", "request.clients=[99]"], "99"),
        (["run", "mnist_client"], "task.path"),
        (["run", "mnist_client", "task.path=/nowhere"], "task.path=/nowhere is not a folder"),
        (["run", "mnist_client", "task.path=no/where"], "task.path is 'no/where', but must be the absolute path of"),
        (["run", "mnist_client", "task.path=~nobody-here/mnist"], "there is no such user"),
        (["run", "quickstart", "task.use=[1]"], "task.use is [1], but must be a text"),
        (["run", "quickstart", "strategies="], "strategies is None, but must be a list, e.g. []"),
        (["run", "quickstart", "--output-dir", "/dev/null/x"], "choose another output-dir"),
        (["run", "rounds=3"], "experiment's name"),
        (["run", "quickstart", "--nodes", "0"], "--nodes 0"),
        (["report", "/nowhere"], "not a run"),
        (["split", "quickstart", "--to", "/dev/null"], "cannot write to /dev/null/client-0: Not a directory"),
        (["report", "/nowhere", "/either"], "not a run"),
    ],
)
def test_bad_input_is_one_sentence_and_a_non_zero_exit(arguments, complaint, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("fedforget: error: ") and complaint in said and "\n" not in said


def test_list_and_doctor(capsys):
    assert main(["list"]) == 0
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "quickstart" in said and "federaser" in said and "all is well" in said
    assert "task=digits: found" in said and "task=mnist: give its folder" in said


def test_report_makes_the_files_again(in_process, capsys):
    (folder,) = (in_process / "runs").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".md", ".csv")}
    for name in before:
        (folder / name).unlink()
    assert main(["report", folder.name, "--output-dir", str(in_process)]) == 0
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert "oracle (retrain)" in capsys.readouterr().out


def test_several_requests_are_put_together(in_process, tmp_path, capsys):
    from fedforget.client_app import app
    from fedforget.config import compose
    from fedforget.experiment import Experiment
    from fedforget.grid import InProcessGrid

    shutil.copytree(in_process, tmp_path / "out")
    (first,) = (tmp_path / "out" / "runs").iterdir()
    config = compose("quickstart", f"{SMALL} request.clients=[1]")
    second = Experiment(config, InProcessGrid(app), tmp_path / "out", lambda line: None).run()
    assert main(["report", str(first), str(second)]) == 0
    said = capsys.readouterr().out
    assert "K = 1; gates: 0 of 2 passed" in said  # one seed has no scores to put together
    assert all(f"client {client} counts for nothing (cannot be checked: " in said for client in (1, 3))
    (together,) = (tmp_path / "out" / "runs").glob("quickstart-requests-*")
    assert sorted(path.name for path in together.iterdir()) == ["requests.md", "requests.svg"]
    assert "client 1" in (together / "requests.svg").read_text()
    assert main(["report", str(first), str(first)]) == 2
    assert "forgets the same as" in capsys.readouterr().err
    settings = (second / "config.yaml").read_text().partition("\n")[2]  # without its checksum
    (second / "config.yaml").write_text(settings.replace("rounds: 3", "rounds: 4"))
    assert main(["report", str(first), str(second)]) == 2
    assert "differ in more than their request: learning.rounds=3 and 4" in capsys.readouterr().err
