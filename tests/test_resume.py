"""A run that is killed at any moment goes on from its last finished round and ends with the same numbers."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
RUN = """
import sys
from pathlib import Path
from fedforget import messages
from fedforget.client_app import app
from fedforget.config import compose
from fedforget.experiment import Experiment
from fedforget.grid import InProcessGrid

def counting(message, context):
    if message.metadata.message_type == messages.TRAIN:
        print("train", flush=True)
    return app(message, context)

config = compose(
    "quickstart",
    "model=linear learning.rounds=6 partition.clients=5 evaluation=smoke evaluation.seeds=2 engine.device=cpu "
    "learning.learner=fedavgm learning.options='{server_momentum: 0.5}' "
    "strategies=[finetune,federaser,amnesiac] strategy.finetune.rounds=3",
)
Experiment(config, InProcessGrid(counting, 2), Path(sys.argv[1])).run()
"""


def start(output):
    command = [sys.executable, "-c", RUN, str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(output):
    """Run to the end; returns how many training messages that took, and the table."""
    said, complaints = (process := start(output)).communicate()
    assert process.returncode == 0, complaints
    return said.splitlines().count("train"), said[said.index("model ") :].split("results:")[0]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    return output, *finish(output)


@pytest.mark.parametrize("seed", range(4))
def test_kill_and_resume(undisturbed, stored_models, tmp_path, seed):
    output, messages, table = undisturbed
    kill_after = random.Random(seed).randrange(1, messages)
    process = start(tmp_path)
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += line.strip() == "train"
        if seen == kill_after:
            time.sleep(random.Random(seed).random() * 0.02)
            break
    os.kill(process.pid, signal.SIGKILL)
    rest, _ = process.communicate()
    seen += rest.splitlines().count("train")
    again, resumed_table = finish(tmp_path)
    expected, resumed = stored_models(output), stored_models(tmp_path)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)
    assert resumed_table == table
    # Finished rounds are not asked again: at most the rounds in flight (one a thread, on two nodes) are.
    assert messages <= seen + again <= messages + 2 * 4
    assert not list(tmp_path.glob("store/**/journal"))
