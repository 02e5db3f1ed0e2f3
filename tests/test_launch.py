"""Real launches: `fedforget run` on Ray, and `flwr run` on Flower's own transport, give the in-process numbers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

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


def test_fedforget_run_on_ray(in_process, stored_models, tmp_path):
    command = [
        sys.executable,
        "-m",
        "fedforget.cli",
        "run",
        "quickstart",
        *SMALL.split(),
        "--output-dir",
        str(tmp_path),
    ]
    before = {process.pid for process in processes_of("/tmp/fedforget-")}

    def left():
        return [process for process in processes_of("/tmp/fedforget-") if process.pid not in before]

    # Stopped in the middle, it leaves nothing behind; the same command then goes on from there.
    process = subprocess.Popen([*command, "--verbose"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any(line.startswith("[1/") for line in process.stdout), "the run made no progress"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not left(), "the launcher left processes behind when it was stopped"

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "oracle (retrain)" in done.stdout and f"results: {tmp_path}" in done.stdout
    assert equal(stored_models(in_process), stored_models(tmp_path))
    assert not left(), "the launcher left processes behind"


LAUNCHER = """
import os, subprocess, sys, time
from fedforget import cli

def launch(home, *_):
    subprocess.Popen(["sleep", "600"], env={**os.environ, "FLWR_HOME": str(home)}, start_new_session=True)
    print(home, flush=True)
    time.sleep(600)

cli._launch = launch
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
    home = Path(process.stdout.readline().strip())
    assert home.is_dir() and processes_of(home)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if number == signal.SIGKILL:  # the launcher is gone at once, what watches it follows
        deadline = time.monotonic() + 60
        while home.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    else:
        assert process.returncode == 128 + number
        assert said.strip() == f"fedforget: stopped by {number.name}; the same command goes on from what was saved"
    assert not home.exists() and not processes_of(home)


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
    assert "K = 1; gates: " in said and "\nfinetune " in said and "\namnesiac " in said
    (together,) = (tmp_path / "out" / "runs").glob("quickstart-requests-*")
    assert sorted(path.name for path in together.iterdir()) == ["requests.md", "requests.svg"]
    assert "client 1" in (together / "requests.svg").read_text()
    assert main(["report", str(first), str(first)]) == 2
    assert "forgets the same as" in capsys.readouterr().err
    settings = (second / "config.yaml").read_text().partition("\n")[2]  # without its checksum
    (second / "config.yaml").write_text(settings.replace("rounds: 3", "rounds: 4"))
    assert main(["report", str(first), str(second)]) == 2
    assert "differ in more than their request: learning.rounds=3 and 4" in capsys.readouterr().err
