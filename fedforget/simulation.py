"""A simulation in this process: the ServerApp's work runs here, clients on Ray, and Flower's engine is not started.

Ray starts at the first message that asks a client to work, so that what the configuration or the data decides is
refused before, and a run of which everything is stored needs no Ray at all. It is a Ray of the run's own, whatever
other clusters left their address on this machine; only one that ``RAY_ADDRESS`` names is joined.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from fedforget import watcher
from fedforget.grid import (
    EngineConfig,
    GridEnded,
    InProcessGrid,
    RayGrid,
    keep_freed_memory,
    load_client_app,
    most_workers,
)
from fedforget.machine import cores
from fedforget.messages import DESCRIBE, Task, pack, unpack

ADDRESS = "RAY_ADDRESS"
# How Ray is set up, which only its environment can say: its default niceness, 15, starves the workers beside anything
# else that runs; what a call carries by itself takes a third of the time that the object store takes (measured with
# 0.5 MB: 5 ms a round less); processes started ahead would serve nobody; and on a loaded machine a worker may take
# minutes to start.
RAY = {
    "RAY_worker_niceness": "0",
    "RAY_max_direct_call_object_size": str(1 << 20),
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_maximum_startup_concurrency": str(cores() + 1),
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_USAGE_STATS_ENABLED": "0",
}
LOOPBACK = "127.0.0.1,localhost"
SOCKET = 107  # bytes, with the one that ends it: the longest path of a socket
SOCKETS = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # the longest of Ray's, in its folder
ATTEMPTS = 3
NEEDED = ("raylet", "gcs_server")  # Ray's processes without which it cannot go on
CLOSING = 30  # seconds that Ray's end may take
LOOK = 0.5  # seconds between two looks at them
SILENT = 10  # a cluster that answered none of so many looks is gone


class CannotStart(RuntimeError):
    """Ray did not start on this machine; the text ends with the last lines of its logs."""


class Simulation(Grid):
    """Nodes 1 to ``number``, each of which hosts any client.

    What describes a node is answered in this process (on a cluster: by a worker), everything else by Ray's workers.

    Args:
        number: how many nodes there are.
        config: how many workers there are, and what each reserves.
        path: folders that join Python's path in workers.
        verbose: whether Ray may print.

    Raises:
        ValueError: if ``RAY_ADDRESS`` names a cluster that does not answer, or workers are to reserve cards that this
            machine does not have.
    """

    def __init__(self, number: int, config: EngineConfig, path: Iterable[str] = (), verbose: bool = False) -> None:
        self._config, self._address = config, cluster_address()
        if not self._address:
            most_workers(config, _cards(config), cores())
        self._here = InProcessGrid(self._describe, number)
        self._ray = Ray(self._address, path, verbose, self.give_up)
        self._there: RayGrid | None = None
        self._starting = threading.Lock()
        self._given_up = ""

    def give_up(self, reason: str) -> None:
        """Raise `GridEnded` wherever replies are awaited, from now on."""
        self._given_up = self._given_up or reason
        self._ray.give_up()
        if self._there is not None:
            self._there.give_up(reason)

    def close(self) -> None:
        """End Ray, if it was started."""
        if self._there is not None:
            self._there.close()
        self._ray.close()

    def set_run(self, run: Any) -> None:
        """Nothing to do: a simulation serves the run that made it."""

    @property
    def run(self) -> Any:
        """A simulation knows no run of Flower's.

        Raises:
            RuntimeError: always.
        """
        return self._here.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A new message, as in `Grid.create_message`."""
        return self._here.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> list[int]:
        """The ids of all nodes."""
        return self._here.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand messages to their nodes; returns their ids at once."""
        batch = list(messages)
        return list(self._serving(batch).push_messages(batch))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have arrived, each once."""
        asked = list(message_ids)
        grids = [self._here] if self._there is None else [self._here, self._there]
        return [reply for grid in grids for reply in grid.pull_messages(asked)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages and wait for their replies, or for ``timeout`` seconds.

        Raises:
            CannotStart: if Ray had to be started for them, and did not.
            GridEnded: if the run ends meanwhile.
        """
        batch = list(messages)
        return list(self._serving(batch).send_and_receive(batch, timeout=timeout))

    def _serving(self, messages: list[Message]) -> InProcessGrid | RayGrid:
        """The grid that answers messages."""
        if not self._address and all(message.metadata.message_type == DESCRIBE for message in messages):
            return self._here
        with self._starting:
            if self._given_up:
                raise GridEnded(self._given_up)
            if self._there is None:
                try:
                    self._there = self._start(messages)
                except Exception as error:
                    self._given_up = self._given_up or str(error)  # nobody else is to try
                    raise
        return self._there

    def _start(self, messages: list[Message]) -> RayGrid:
        """Ray's workers, which are given the data of the first message: this process has read it already."""
        from fedforget.data import adopt, load

        self._ray.start()
        grid = RayGrid(self._here, load_client_app, self._config)
        data = Task.from_json(unpack(messages[0].content)[0].task).data
        with contextlib.suppress(ValueError):  # else each worker tries, and its node says what is wrong
            grid.share(adopt, data, load(data))
        keep_freed_memory()  # only now, so that what was loaded here is given back
        if self._given_up:
            grid.give_up(self._given_up)
        return grid

    def _describe(self, message: Message, context: Context) -> Message:
        """What a node says of itself, with the device of Ray's workers, who see only the cards that they reserve."""
        work, _ = unpack(message.content)
        task = Task.from_json(work.task)
        device = "cuda" if self._config.gpus_per_worker and task.device != "cpu" else "cpu"
        message.content = pack(replace(work, task=replace(task, device=device).to_json()))
        return load_client_app()(message, context)


class Ray:
    """Ray for one run: of its own in a folder of its own, or that of a cluster.

    Args:
        address: of a cluster; empty for a Ray of the run's own.
        path: folders that join Python's path in its processes.
        verbose: whether it may print.
        died: told, in one sentence, that it ended in the midst of the run.
    """

    def __init__(self, address: str, path: Iterable[str], verbose: bool, died: Callable[[str], None]) -> None:
        self._address, self._path, self._verbose, self._died = address, path, verbose, died
        self._began, self._closing = threading.Event(), threading.Event()
        self._home: Home | None = None
        self._problem: Exception | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Return once Ray is there.

        Raises:
            CannotStart: if it does not start on this machine.
            GridEnded: if the run ends meanwhile.
            ValueError: if it has no folder to be in, or the cluster does not let this process join.
        """
        # Linux ends Ray's processes with the *thread* that started them, so one thread has Ray from start to end.
        self._thread = threading.Thread(target=self._live, daemon=True, name="ray")
        self._thread.start()
        self._began.wait()
        if self._problem is not None:
            raise self._problem
        if self._closing.is_set():
            raise GridEnded("the run ended before Ray had started")

    def give_up(self) -> None:
        """Let nobody wait for its start any more."""
        if not self._began.is_set():
            self._closing.set()
            self._began.set()

    def close(self) -> None:
        """End Ray, and delete its folder; if it hangs, this process's end will."""
        self._closing.set()
        if self._home is not None:
            self._home.announce()
        if self._thread is not None:
            self._thread.join(CLOSING)

    def _live(self) -> None:
        with contextlib.ExitStack() as stack:
            try:
                if self._address:
                    stack.enter_context(environment(self._path))
                    self._init(address=self._address)
                else:
                    self._home = stack.enter_context(contextlib.closing(Home()))
                    stack.enter_context(environment(self._path, {watcher.MARK: str(self._home.path)}))
                    self._start_here(self._home.path)
            except Exception as error:  # noqa: BLE001 (it is raised where Ray was asked for)
                self._problem = error
                return
            finally:
                self._began.set()
            gone = self._watch()
            if gone:
                self._died(f"{gone} ended in the midst of the run (killed, or out of memory)")
                self._closing.wait()
                if self._home is not None:
                    watcher.end_processes(self._home.path)  # what is left of it would be waited for
            self._end()

    def _watch(self) -> str:
        """Look at Ray until it is to end; returns what of it ended before, empty if nothing did."""
        needed, silent = {} if self._address else _needed(), 0
        while not self._closing.wait(LOOK):
            silent = silent + 1 if self._address and not _answers(self._address, LOOK) else 0
            if silent >= SILENT:
                return f"the Ray cluster at {self._address}"
            for name, process in needed.items():
                if not _is_alive(process):
                    return f"Ray's process {name}"
        return ""

    def _start_here(self, home: Path) -> None:
        """Start a Ray of the run's own, patiently.

        Raises:
            CannotStart: if it does not start.
        """
        said = ""
        for attempt in range(ATTEMPTS):
            if self._closing.wait(attempt):
                break
            try:
                # The number of cores is said, because Ray does not see that a process is bound to some of them.
                self._init(address="local", num_cpus=cores(), include_dashboard=False, _temp_dir=str(home))
                return
            except Exception as error:  # noqa: BLE001 (whatever it is, the next attempt may do better)
                said = f"{' '.join(str(error).split())[:300]}\n{_logged(home)}"
                self._end()
                watcher.end_processes(home)
        raise CannotStart(f"Ray did not start in {ATTEMPTS} attempts: {said}")

    def _init(self, **settings: Any) -> None:
        import ray

        with handlers_kept(), warnings.catch_warnings():
            if not self._verbose:
                warnings.simplefilter("ignore")  # Ray announces a change of its own
            level = logging.INFO if self._verbose else logging.CRITICAL
            try:
                ray.init(log_to_driver=self._verbose, logging_level=level, **settings)
            except (ConnectionError, RuntimeError) as error:
                if not self._address:
                    raise
                raise ValueError(
                    f"{ADDRESS}={self._address!r} names a Ray cluster that cannot be joined "
                    f"({' '.join(str(error).split())[:300]}); unset it to use this machine alone"
                ) from error

    def _end(self) -> None:
        import ray

        ray.shutdown()


# ---------------------------------------------------------------------- what Ray needs around it


def cluster_address() -> str:
    """The address of the cluster that the user asked for in ``RAY_ADDRESS``; empty for a Ray of the run's own.

    Raises:
        ValueError: if nobody answers there.
    """
    address = os.environ.get(ADDRESS, "")
    if address in ("", "local"):
        return ""
    if not _answers(address, 10):
        raise ValueError(
            f"{ADDRESS}={address!r} names a Ray cluster that does not answer; start it, give "
            f"its HOST:PORT, or unset {ADDRESS} to use this machine alone"
        )
    return address


def _answers(address: str, timeout: float) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout).close()
    except (OSError, ValueError):
        return False
    return True


def _cards(config: EngineConfig) -> int:
    """How many cards this machine has, if workers are to reserve some."""
    if not config.gpus_per_worker:
        return 0
    import torch

    return torch.cuda.device_count()


class Home:
    """A folder for Ray, which is deleted with every process of the run that is left, however this process ends.

    Raises:
        ValueError: if no folder can be written whose path is short enough for Ray's sockets.
    """

    def __init__(self) -> None:
        self.path = _short_folder()
        source = str(Path(__file__).parents[1])
        self._watcher = subprocess.Popen(
            [sys.executable, "-c", "from fedforget.watcher import main; main()", str(self.path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))},
            stdin=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def announce(self) -> None:
        """Say that what ends now was not killed."""
        with contextlib.suppress(OSError, ValueError):  # it may be closed
            assert self._watcher.stdin is not None
            self._watcher.stdin.write(watcher.ENDS)

    def close(self) -> None:
        """End what is left, and delete the folder."""
        self.announce()
        self._watcher.communicate()
        shutil.rmtree(self.path, ignore_errors=True)  # what a process that was ended wrote at its end


def _short_folder() -> Path:
    most = SOCKET - len(SOCKETS) - len("/fedforget-12345678")
    for place in dict.fromkeys(("/tmp", tempfile.gettempdir())):
        if len(place.encode()) < most:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="fedforget-", dir=place))
    raise ValueError(
        f"Ray needs a folder with a short path for its sockets, but /tmp cannot be written, and TMPDIR="
        f"{tempfile.gettempdir()!r} cannot either or is longer than {most - 1} bytes; set TMPDIR to another folder"
    )


@contextlib.contextmanager
def environment(path: Iterable[str] = (), also: Mapping[str, str] | None = None) -> Iterator[None]:
    """The environment of Ray's processes, as long as it is open: how Ray is set up, and no proxy for this machine.

    Args:
        path: folders that join Python's path in them.
        also: further variables.
    """
    changed = {**RAY, **(also or {})}
    changed["PYTHONPATH"] = os.pathsep.join(filter(None, [*path, os.environ.get("PYTHONPATH")]))
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        changed[name] = ",".join(filter(None, [os.environ.get(name), LOOPBACK]))
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """What the process does with signals is what it did before, once it is closed.

    Ray sets handlers of its own, below Python, by which SIGTERM aborts the process. Python sets any in its main thread
    alone, so the C library is asked.
    """
    library, kept = ctypes.CDLL(None), {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        kept[number] = ctypes.create_string_buffer(1024)  # more than a ``struct sigaction`` takes
        library.sigaction(int(number), None, kept[number])
    try:
        yield
    finally:
        for number, before in kept.items():
            library.sigaction(int(number), before, None)


def _needed() -> dict[str, Any]:
    """Ray's processes that this process started and that Ray cannot do without, by name."""
    import psutil

    return {each.name(): each for each in psutil.Process().children() if each.name() in NEEDED}


def _is_alive(process: Any) -> bool:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _logged(home: Path) -> str:
    """The last lines of the logs of Ray's processes."""
    tails = []
    for name in (*(f"{process}.out" for process in NEEDED), *(f"{process}.err" for process in NEEDED)):
        for log in sorted(home.glob(f"session_latest/logs/{name}"))[-1:]:
            lines = log.read_text(errors="replace").splitlines()[-10:]
            tails += [f"--- {name}", *lines] if lines else []
    return "\n".join(tails)
