"""Clients that raise, hang, come late, send nonsense, or end their worker process, on Ray's workers.

The round ends in time, says who was left out and why, and the answers of all others are what they are without a fault.
"""

import os
import re
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Message

from fedforget import data, messages
from fedforget.cohort import LATE, AuditFailed, describe
from fedforget.data import FederatedData, adopt
from fedforget.grid import DIED, EngineConfig, InProcessGrid, RayGrid, load_client_app
from fedforget.simulation import RAY
from fedforget.testing import REQUESTS, Toy

ILL = 3  # the client that fails
# Ray announces a change of its own, and leaves it to Python to close the files of the processes that it starts.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def loader():
    """A function that makes the project's ClientApp in a worker, with one client that fails as `falling_ill` says."""

    def load():  # a closure, so that it travels by value: workers cannot import this file
        import os
        import signal
        import time

        import numpy as np
        from flwr.app import Message

        from fedforget import client_app, messages

        def app(message, context):
            fault, nodes, message_type, struck = client_app.illness
            work, _ = messages.unpack(message.content)
            asked = {*work.clients, *(part[0] for part in work.parts)}
            faulty = message.metadata.message_type == message_type and ILL in asked and context.node_id in nodes
            if faulty:
                open(struck, "a").close()
            if faulty and fault == "raise":
                raise RuntimeError("no battery")
            if faulty and fault == "hang":
                time.sleep(3600)
            if faulty and fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            reply = client_app.app(message, context)
            if faulty and fault == "late":
                time.sleep(3600)
            if faulty and fault in ("nan", "inf", "shape"):
                arrays, report = messages.unpack_reply(reply.content)
                arrays = {name: np.array(array) for name, array in arrays.items()}
                if fault == "shape":
                    arrays[str(ILL)] = arrays[str(ILL)][:-1]
                else:
                    arrays[str(ILL)][5] = float(fault)
                reply = Message(messages.pack_reply(arrays, report), reply_to=message)
            return reply

        return app

    return load


def falling_ill(fault, nodes, message_type, struck):
    """A function that gives a worker its data, and says what client 3 does on some nodes when asked such a message.

    The file ``struck`` is there once it has done so.
    """

    def prepare(config, federated):  # a closure, as above
        from fedforget import client_app, data

        data.adopt(config, federated)
        client_app.illness = fault, nodes, message_type, struck

    return prepare


@pytest.fixture(scope="module")
def ray():
    import ray

    # With Ray's own settings its workers yield to whatever else runs here, and may not start for minutes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        for name, value in RAY.items():
            patch.setenv(name, value)
        # The paths of its sockets must be short.
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        yield ray
        ray.shutdown()


def end(ray, grid):
    for worker in grid._workers.values():
        ray.kill(worker)


def awake(grid, toy):
    """Seconds until every worker has answered, one that is still starting too."""
    began = time.monotonic()
    content = messages.pack(messages.Work(toy.task.to_json(), toy.seeds))
    asked = [Message(content, 1, messages.DESCRIBE) for _ in grid._workers]
    assert len(grid.send_and_receive(asked, timeout=120)) == len(asked)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def shared(ray, tmp_path_factory):
    """Three workers for all tests that make a client fail on three; ``slowest`` is how long they took to start."""
    grid = RayGrid(InProcessGrid(None, 2), loader(), EngineConfig(workers=3))
    toy = Toy(tmp_path_factory.mktemp("shared"))
    grid.share(adopt, toy.task.data, data.load(toy.task.data))
    grid.slowest = awake(grid, toy)
    yield grid
    end(ray, grid)


@pytest.fixture
def federation(ray, shared, tmp_path):
    """A function that makes a toy federation on Ray, whose workers are ready.

    With a ``fault`` on three workers these are those of all such tests, else they are its own and end with the test.
    A test in which the fault did not happen fails at its end.
    """
    toy, grids, awaited = Toy(tmp_path), [], []
    toy.task = replace(toy.task, mode="sequential")

    def make(fault="", nodes=(1, 2), message_type="train", load=None, workers=3):
        if fault and workers == 3:
            grid = shared
        else:
            load = load or (loader() if fault else load_client_app)
            grid = RayGrid(InProcessGrid(None, 2), load, EngineConfig(workers=workers))
            grid.slowest = 0.0
            grids.append(grid)
        if fault:
            awaited.append(tmp_path / "struck")
        prepare = falling_ill(fault, nodes, message_type, str(tmp_path / "struck")) if fault else adopt
        grid.share(prepare, toy.task.data, data.load(toy.task.data))
        cohort = toy.cohort()
        cohort.grid = grid
        cohort.timeout = 120.0
        grid.slowest = max(grid.slowest, awake(grid, toy))  # every worker starts, before time is measured
        # In half of it a worker can be replaced, which takes less than the start of several at once.
        grid.patience = max(14.0, 2.5 * grid.slowest)
        return toy, cohort

    yield make
    for grid in grids:
        end(ray, grid)
    assert all(struck.exists() for struck in awaited), "no client failed, so the test shows nothing"


def equal(replies, others):
    assert [reply.client for reply in replies] == [reply.client for reply in others]
    return all(
        a.update.equals(b.update) and (a.num_examples, a.loss) == (b.num_examples, b.loss)
        for a, b in zip(replies, others, strict=True)
    )


def test_ray_gives_the_numbers_of_one_process(federation):
    toy, cohort = federation()
    expected = toy.cohort()
    assert equal(cohort.train(toy.start, range(6), round=1), expected.train(toy.start, range(6), round=1))
    assert cohort.reduce(toy.start, range(6), round=2).equals(expected.reduce(toy.start, range(6), round=2))


def test_workers_are_given_the_data_and_so_are_those_that_replace_them(ray, federation):
    """What they are given under the toy's name is other data, so that it shows whose they describe."""
    toy, cohort = federation(workers=2)
    other = FederatedData(replace(toy.task.data, seed=5))
    assert other.fingerprint != cohort.federation.about["data"]
    cohort.grid.share(adopt, toy.task.data, other)
    task = replace(toy.task, precision="bfloat16")  # one that no worker has a workbench for
    for _ in range(2):
        assert describe(cohort.grid, task).about["data"] == other.fingerprint
        for worker in list(cohort.grid._workers.values()):
            os.kill(ray.get(worker.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
        assert cohort.grid.send_and_receive(
            [Message(messages.pack(messages.Work(task.to_json(), toy.seeds)), 1, messages.DESCRIBE)]
        )


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raise", "RuntimeError: no battery"),
        ("nan", "sent NaN or infinite values"),
        ("inf", "sent NaN or infinite values"),
        ("shape", r"sent a vector of shape \(649,\), expected \(650,\)"),
        ("killed", DIED),
        ("hang", LATE),
        ("late", LATE),
    ],
)
def test_one_client_fails_and_the_others_are_unharmed(federation, fault, reason):
    toy, cohort = federation(fault)
    cohort.timeout, began = cohort.grid.patience if reason == LATE else 120.0, time.monotonic()
    replies = cohort.train(toy.start, range(6), round=1)
    assert time.monotonic() - began < cohort.timeout + 2, "the round outlasted its deadline"
    assert equal(replies, toy.cohort().train(toy.start, [0, 1, 2, 4, 5], round=1))
    (note,) = cohort.notes
    assert note.startswith(f"round 1: client {ILL} left out (")
    assert re.search(reason, note)
    # The workers that were lost are there again, and the next round knows nothing of it.
    cohort.timeout = 120.0
    assert equal(
        cohort.train(toy.start, [0, 1, 2, 4, 5], round=2), toy.cohort().train(toy.start, [0, 1, 2, 4, 5], round=2)
    )


@pytest.mark.parametrize("fault", ["raise", "killed", "hang"])
def test_what_fails_on_one_node_is_done_on_another_with_equal_numbers(federation, fault):
    """All clients of the node that fails are asked again, each by itself, and nobody is left out."""
    toy, cohort = federation(fault, nodes=(2,))
    expected = toy.cohort()
    assert (ILL,) in expected._schedule([(client,) for client in range(6)], {})[2]
    cohort.timeout = cohort.grid.patience if fault == "hang" else 120.0
    assert equal(cohort.train(toy.start, range(6), round=1), expected.train(toy.start, range(6), round=1))
    assert cohort.notes == []


@pytest.mark.parametrize("fault", ["raise", "killed", "hang"])
def test_an_evaluation_that_fails_on_one_node_is_done_on_another(federation, fault):
    sets = {"holdout": 50, "clients": 60, "test": 100}
    toy, cohort = federation(fault, (2,), "evaluate")
    expected = toy.cohort()
    for each in (cohort, expected):
        each.request = REQUESTS["client"]
    cohort.timeout = cohort.grid.patience if fault == "hang" else 120.0
    answers, others = cohort.evaluate(toy.start, sets), expected.evaluate(toy.start, sets)
    assert answers.keys() == others.keys()
    for name, mine in answers.items():
        assert all(np.array_equal(a, b) for a, b in zip(mine, others[name], strict=True)), name


def test_an_evaluation_that_fails_everywhere_is_refused(federation):
    toy, cohort = federation("raise", message_type="evaluate")
    with pytest.raises(AuditFailed, match="a node could not evaluate a model: RuntimeError: no battery"):
        cohort.evaluate(toy.start, {"clients": 60})


def test_a_worker_killed_from_outside_is_replaced_and_nobody_is_left_out(federation, tmp_path):
    """SIGKILL finds the worker in the middle of client 3's work; as an operator, or a full memory, would end it."""

    def load():
        import os
        import time

        from fedforget import client_app, messages

        def app(message, context):
            work, _ = messages.unpack(message.content)
            marker = tmp_path / "at work"
            if message.metadata.message_type == messages.TRAIN and ILL in work.clients and not marker.exists():
                marker.with_suffix(".tmp").write_text(str(os.getpid()))
                marker.with_suffix(".tmp").rename(marker)
                time.sleep(3600)
            return client_app.app(message, context)

        return app

    toy, cohort = federation(load=load, workers=1)

    def kill():
        while not (tmp_path / "at work").exists():
            time.sleep(0.05)
        os.kill(int((tmp_path / "at work").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    replies = cohort.train(toy.start, range(6), round=1)
    killer.join()
    assert equal(replies, toy.cohort().train(toy.start, range(6), round=1))
    assert cohort.notes == []


def test_all_workers_killed_between_rounds_leave_nobody_out(ray, federation):
    """While the server aggregates, nobody holds a message that would tell; there are more workers than messages."""
    toy, cohort = federation(workers=4)
    before = cohort.train(toy.start, range(6), round=1)
    workers = list(cohort.grid._workers.values())
    for process in [ray.get(worker.__ray_call__.remote(lambda _: os.getpid())) for worker in workers]:
        os.kill(process, signal.SIGKILL)
    assert equal(cohort.train(toy.start, range(6), round=1), before)
    assert cohort.notes == []
    assert equal(cohort.train(toy.start, range(6), round=2), toy.cohort().train(toy.start, range(6), round=2))


def test_a_trajectory_that_waits_behind_a_hanging_client_loses_nothing(federation):
    """Two trajectories share two workers; one of them hangs in both attempts, the other does round after round."""
    toy, ill = federation("hang", workers=2)
    well = toy.cohort()
    well.grid, well.timeout, ill.timeout = ill.grid, 120.0, ill.grid.patience
    clients = [client for client in range(6) if client != ILL]
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(ill.train, toy.start, [ILL, 0], round=1)
        for round in range(1, 5):
            assert equal(
                well.train(toy.start, clients, round=round), toy.cohort().train(toy.start, clients, round=round)
            )
        assert not pending.done(), "the other trajectory waited for the one that hangs"
        assert [reply.client for reply in pending.result()] == [0]
    assert well.notes == [] and len(ill.notes) == 1


def test_nobody_waits_for_a_worker_that_is_still_starting(federation, tmp_path):
    """The worker that client 3 hangs in is replaced by one that never gets ready; the other does all the work."""
    ill, struck = loader(), str(tmp_path / "struck")

    def load():
        import time
        from pathlib import Path

        if Path(struck).exists():
            time.sleep(3600)
        return ill()

    toy, cohort = federation("hang", nodes=(2,), load=load, workers=2)
    cohort.timeout = cohort.grid.patience
    assert equal(cohort.train(toy.start, range(6), round=1), toy.cohort().train(toy.start, range(6), round=1))
    assert cohort.notes == []


def test_a_worker_that_cannot_start_says_why(ray, tmp_path):
    def load():
        raise ModuleNotFoundError("No module named 'fedforget'")

    toy = Toy(tmp_path)
    grid = RayGrid(InProcessGrid(None, 2), load, EngineConfig(workers=1))
    with pytest.raises(ValueError, match=r"its worker process could not start \(.*No module named 'fedforget'"):
        describe(grid, toy.task)
