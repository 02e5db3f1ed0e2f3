"""Grids: what carries messages between the server and the nodes.

Three carry the same messages and give the same numbers: the grid that Flower hands to the ServerApp, `RayGrid`, which
replaces it in simulation (Flower's own polls every 0.1 s and copies the model for every message), and `InProcessGrid`,
which needs neither Ray nor a SuperLink. `fedforget.simulation` is made of the latter two.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
import queue
import threading
import time
import uuid
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedforget.loading import loading
from fedforget.schema.learning import EngineConfig

if TYPE_CHECKING:
    from fedforget.schema.data import DataConfig

INLINE = "RAY_max_direct_call_object_size"  # Ray's setting: most bytes that travel with a call, not by its store
KEPT = 1 << 30  # bytes of freed memory that a process keeps
CLIENT_FAILED = 0  # Flower's error code "unknown": the reason is in the text
DIED = "its worker process died"


class GridEnded(RuntimeError):
    """No message is answered any more, because the run is ending, or what carried them has ended."""


class _LocalGrid(Grid):
    """The part of a grid that is the same wherever the nodes are: message ids, and replies held until pulled."""

    def __init__(self, node_ids: Iterable[int]) -> None:
        self._node_ids = list(node_ids)
        self._replies: dict[str, Message] = {}
        self._arrived = threading.Condition()
        self._ended = ""

    def give_up(self, reason: str) -> None:
        """Raise `GridEnded` with the reason wherever replies are awaited, from now on."""
        with self._arrived:
            self._ended = reason
            self._arrived.notify_all()

    def set_run(self, run: Any) -> None:
        """Nothing to do: a local grid serves the run that made it."""

    @property
    def run(self) -> Any:
        """A local grid knows no run.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a local grid holds no run")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A new message, as in `Grid.create_message`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The ids of all nodes."""
        return list(self._node_ids)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand messages to their nodes; returns their ids at once."""
        batch = list(messages)
        for message in batch:
            # Flower gives an id to a message when a SuperLink stores it; there is no public way to set one.
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
        self._deliver(batch)
        return [message.metadata.message_id for message in batch]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have arrived, each once."""
        with self._arrived:
            return [self._replies.pop(identifier) for identifier in message_ids if identifier in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages and wait for their replies, or for ``timeout`` seconds.

        Raises:
            GridEnded: if the run ends meanwhile.
        """
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting:
            arrived = self.pull_messages(waiting)
            replies += arrived
            waiting -= {message.metadata.reply_to_message_id for message in arrived}
            with self._arrived:
                if self._ended:
                    raise GridEnded(self._ended)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                if waiting and waiting.isdisjoint(self._replies):
                    self._arrived.wait(left)
        self._abandon(waiting)
        return replies

    @abstractmethod
    def _deliver(self, messages: list[Message]) -> None:
        """Start work on messages; `_answer` is called for each, now or later."""

    def _abandon(self, message_ids: set[str]) -> None:
        """Called with the messages whose replies are no longer awaited."""

    def _answer(self, message: Message, reply: Message) -> None:
        with self._arrived:
            self._replies[message.metadata.message_id] = reply
            self._arrived.notify_all()


class InProcessGrid(_LocalGrid):
    """Nodes inside this process, served one message at a time: for tests and for debugging.

    Args:
        client_app: the ClientApp that every node runs.
        num_nodes: how many nodes there are.
        node_configs: the node config of each node, by node id 1..num_nodes; empty for nodes not named.
    """

    _one_at_a_time = threading.Lock()  # of the class: all such grids of a process share its one workbench

    def __init__(
        self,
        client_app: Callable[[Message, Context], Message],
        num_nodes: int = 1,
        node_configs: Mapping[int, dict] | None = None,
    ) -> None:
        super().__init__(range(1, num_nodes + 1))
        self._client_app = client_app
        self._contexts = {
            node: Context(0, node, (node_configs or {}).get(node, {}), RecordDict(), {}) for node in self._node_ids
        }
        # Messages take their run and sender from here; a SuperLink's process sets it, a plain process does not.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 0, 0, 0

    def _deliver(self, messages: list[Message]) -> None:
        for message in messages:
            try:
                with self._one_at_a_time:
                    reply = self._client_app(message, self._contexts[message.metadata.dst_node_id])
            except Exception as error:  # noqa: BLE001 (a node's failure is an answer, as on Flower's own grid)
                reply = _failure(message, error)
            self._answer(message, reply)


class RayGrid(_LocalGrid):
    """Ray actors of its own behind a Flower grid: no polling, one copy of the model in the object store a round.

    Each distinct array of a round is put into the object store once, whichever messages hold it, and is read there
    without a copy; one so small that Ray would send it along with a call is sent so (`INLINE`). Any worker serves any
    node: messages wait in one queue, and a worker holds one at a time, so that what hangs or dies takes no other
    message with it. A worker that died, or that holds a message nobody waits for any more, is replaced by a new one; a
    message that its worker died of is answered with an error. Idle workers are looked after then, and new ones get
    no message before they have started, so that what is asked again meets living ones.

    Args:
        grid: the grid that Flower handed to the ServerApp; its nodes stay the addressees.
        load_client_app: returns the ClientApp; called once in each worker.
        config: how many workers there are, and what each reserves.

    Raises:
        ValueError: if workers are to use a card that they do not reserve, or reserve more than Ray has.
    """

    def __init__(self, grid: Grid, load_client_app: Callable[[], ClientApp], config: EngineConfig) -> None:
        import ray

        super().__init__(sorted(grid.get_node_ids()))
        self._ray = ray
        self._load_client_app = load_client_app
        self._inline = int(os.environ.get(INLINE, 0))
        self._share = config.gpus_per_worker
        resources = ray.cluster_resources()
        most = most_workers(config, int(resources.get("GPU", 0)), int(resources.get("CPU", 1)))
        number = config.workers or max(1, min(most, len(self._node_ids)))
        self._first: tuple[Any, ...] = ()  # what each worker is told before it gets messages
        self._machines = dict(zip(range(number), itertools.cycle(_cores(self._ray.nodes())), strict=False))
        self._workers = {place: self._start(place) for place in self._machines}
        self._idle = deque(self._workers)  # the places of workers that hold no message
        self._queue: deque[tuple[Message, tuple[Any, ...]]] = deque()
        self._running: dict[Any, tuple[Message | None, int]] = {}  # without a message: a worker that is looked after
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()  # Ray's thread must not wait for a lock
        threading.Thread(target=self._collect, daemon=True, name="ray-grid").start()

    def close(self) -> None:
        """End the workers, and the thread that waits for them."""
        with self._arrived:
            for worker in self._workers.values():
                self._ray.kill(worker)
        self._done.put(None)

    def _start(self, place: int) -> Any:
        """A new worker, on the machine that the place belongs to as long as that machine is there."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # Workers reserve no CPU: Flower's own idle pool already holds every core that Ray has. So Ray cannot spread
        # them by what they need, unless that is a share of a card.
        machine = self._machines[place]
        gone = all(node["NodeID"] != machine for node in self._ray.nodes() if node["Alive"])
        there = "DEFAULT" if self._share else NodeAffinitySchedulingStrategy(machine, soft=gone)
        actor = self._ray.remote(_Worker).options(num_cpus=0, num_gpus=self._share, scheduling_strategy=there)
        worker: Any = actor.remote(self._load_client_app)
        if self._first:
            worker.take.remote(*self._first)
        return worker

    def share(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function in every worker, before whatever is delivered from now on, and in all that replace them.

        The arguments are put into the object store once; arrays in them are read there without a copy.
        """
        with self._arrived:
            self._first = (function, *map(self._ray.put, arguments))
            for worker in self._workers.values():
                worker.take.remote(*self._first)

    def _deliver(self, messages: list[Message]) -> None:
        stored: dict[int, Any] = {}
        calls = []
        for message in messages:
            content, buffers = _detach(message.content)
            for buffer in buffers:
                if id(buffer) not in stored:
                    array = np.frombuffer(buffer, np.uint8)
                    stored[id(buffer)] = array if array.nbytes <= self._inline else self._ray.put(array)
            node = message.metadata.dst_node_id
            envelope = Message(content, node, message.metadata.message_type)
            calls.append((message, (envelope, node, *(stored[id(buffer)] for buffer in buffers))))
        with self._arrived:
            self._queue.extend(calls)
            self._hand_out()

    def _hand_out(self) -> None:
        """Give waiting messages to idle workers; the lock is held."""
        while self._queue and self._idle:
            (message, arguments), place = self._queue.popleft(), self._idle.popleft()
            self._await(self._workers[place].handle.remote(*arguments), message, place)

    def _await(self, call: Any, message: Message | None, place: int) -> None:
        """Let `_collect` know when a call ends; the lock is held."""
        future = call.future()
        self._running[future] = (message, place)
        future.add_done_callback(self._done.put)

    def _collect(self) -> None:
        """Turn finished calls into replies, until the grid is closed."""
        while (future := self._done.get()) is not None:
            self._finish(future)

    def _finish(self, future: Any) -> None:
        """Answer the message of a finished call, unless it was abandoned, and give its worker the next."""
        answer, died = None, False
        try:
            answer = future.result()
        except self._ray.exceptions.RayTaskError as error:  # the ClientApp raised; its worker is well
            reason = f"{type(error.cause).__name__}: {error.cause}"
        except Exception as error:  # noqa: BLE001 (whatever ended the worker is that message's answer)
            began = not (isinstance(error, self._ray.exceptions.RayActorError) and error.actor_init_failed)
            last = str(error).strip().splitlines()[-1]
            reason, died = DIED if began else f"its worker process could not start ({last})", True
        with self._arrived:
            if future not in self._running or self._ended:
                return
            message, place = self._running.pop(future)
            if died:
                self._replace(place)
                self._look_after_idle()
            if died and message is not None:
                self._look_after(place)
            else:  # one that died while it was looked after may never start, which the next message is told
                self._idle.append(place)
            self._hand_out()
            if message is None:
                return
            if answer is None:
                reply = Message(Error(CLIENT_FAILED, reason), reply_to=message)
            else:
                content, *buffers = answer
                reply = Message(_attach(content, buffers), reply_to=message)
            self._answer(message, reply)  # still under the lock: nobody can give the message up in between

    def _look_after_idle(self) -> None:
        """See which idle workers live, before they get messages: what ended one may have ended them too.

        A message that is asked again would else meet one dead worker after the other, and its client be left out.
        """
        while self._idle:
            self._look_after(self._idle.popleft())

    def _look_after(self, place: int) -> None:
        """Let a worker be idle once it answers: one that is still starting would keep a message from the others."""
        self._await(self._workers[place].alive.remote(), None, place)

    def _replace(self, place: int) -> None:
        self._ray.kill(self._workers[place])
        self._workers[place] = self._start(place)

    def _abandon(self, message_ids: set[str]) -> None:
        with self._arrived:
            self._queue = deque(call for call in self._queue if call[0].metadata.message_id not in message_ids)
            held = {
                future: place
                for future, (message, place) in self._running.items()
                if message is not None and message.metadata.message_id in message_ids
            }
            for future, place in held.items():
                del self._running[future]
                self._replace(place)  # it may hang for ever
                self._look_after(place)
            for identifier in message_ids:
                self._replies.pop(identifier, None)
            self._hand_out()


def most_workers(config: EngineConfig, cards: int, cores: int) -> int:
    """How many workers a Ray with so many cards and cores can have.

    Raises:
        ValueError: if workers are to use a card that they do not reserve, or reserve more than there is.
    """
    share = config.gpus_per_worker
    if config.device == "cuda" and not share:
        raise ValueError(
            "engine.device=cuda, but Ray hides the cards from workers that reserve none; "
            "set engine.gpus_per_worker, e.g. to 1 (one worker a card) or 0.5 (two)"
        )
    # A worker's share lies on one card, so that what is left of several cards does not add up to another share.
    most = cards * int(1 / share) if share else cores
    if share and max(1, config.workers) > most:
        raise ValueError(
            f"engine.gpus_per_worker={share:g} lets {most} workers share the {cards} GPUs that Ray sees, "
            f"fewer than {max(1, config.workers)}; reserve less for each, or set engine.device=cpu"
        )
    return most


class _Worker:
    """A worker process: it runs the ClientApp for whichever nodes' messages it is given."""

    def __init__(self, load_client_app: Callable[[], ClientApp]) -> None:
        keep_freed_memory()
        with loading():  # of torch too, which this file does not import
            self._client_app = load_client_app()
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 0, 0, 0

    def take(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function, for what it leaves in the process."""
        function(*arguments)

    def alive(self) -> None:
        """Answers if the process is there."""

    def handle(self, envelope: Message, node: int, *buffers: Any) -> Any:
        """Answer one message; returns the reply's content without its arrays, and the arrays' bytes."""
        context = Context(0, node, {}, RecordDict(), {})
        envelope.content = _attach(envelope.content, buffers)
        content, replied = _detach(self._client_app(envelope, context).content)
        return [content, *(np.frombuffer(buffer, np.uint8) for buffer in replied)]


def _cores(machines: Iterable[Mapping[str, Any]]) -> list[str]:
    """The id of a core's machine for each core of a Ray cluster, the machines taking turns."""
    cores = [int(machine["Resources"].get("CPU", 0)) * [machine["NodeID"]] for machine in machines if machine["Alive"]]
    return [core for turn in itertools.zip_longest(*cores) for core in turn if core]


def _detach(content: RecordDict) -> tuple[RecordDict, list[Any]]:
    """A copy of ``content`` whose arrays have no bytes, and the bytes in order, so that both travel the best way."""
    buffers = []
    records: dict[str, Any] = {}
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            empty = {}
            for name, array in record.items():
                empty[name] = Array(array.dtype, array.shape, array.stype, b"")
                buffers.append(array.data)
            record = ArrayRecord(empty)
        records[key] = record
    return RecordDict(records), buffers


def _attach(content: RecordDict, buffers: Iterable[Any]) -> RecordDict:
    """Put bytes back into the arrays that `_detach` emptied (as memory views: nothing is copied)."""
    remaining = iter(buffers)
    for record in content.array_records.values():
        for array in record.values():
            array.data = memoryview(next(remaining))  # type: ignore[assignment]
    return content


def _failure(message: Message, error: Exception) -> Message:
    return Message(Error(CLIENT_FAILED, f"{type(error).__name__}: {error}"), reply_to=message)


def keep_freed_memory() -> None:
    """Let this process keep the memory of large vectors that it freed, for the next ones.

    glibc gives every freed block of more than 32 MB back to the kernel, and a new one costs a page fault every 4 kB:
    for a vector of 11 M parameters 20 ms of 30 (benchmarks/overhead.py; mallopt(3)). Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc, trim_threshold, mmap_threshold = ctypes.CDLL(None), -1, -3
        libc.mallopt(mmap_threshold, KEPT)
        libc.mallopt(trim_threshold, KEPT)


def load_client_app() -> ClientApp:
    """The project's ClientApp, imported where it is called (in a worker process)."""
    from fedforget.client_app import app

    return app


def choose(grid: Grid, config: EngineConfig, data: DataConfig, timeout: float = 60.0) -> Grid:
    """The grid to use where Flower gave ``grid``, once its nodes are there.

    Ray's workers are given the data: this process reads it once, while Ray starts, and those of a machine share it.

    Raises:
        ValueError: if nodes do not connect in time, or Ray was asked for and does not run in this process.
    """
    # Loads SQLAlchemy and FastAPI, which workers, who load this file too, have no use for (0.7 s of each).
    from flwr.superlink.grid import InMemoryGrid

    from fedforget.data import FederatedData, adopt

    wait_for_nodes(grid, config.nodes, timeout)
    simulated = isinstance(grid, InMemoryGrid)
    if config.transport == "ray" and not simulated:
        raise ValueError("engine.transport=ray works only in simulation; use engine.transport=auto")
    if config.transport == "flower" or not simulated:
        return grid
    with ThreadPoolExecutor(1) as background:
        loading = background.submit(FederatedData, data)
        _wait_for_ray()
        chosen = RayGrid(grid, load_client_app, config)
        if loading.exception() is None:  # else each worker tries, and its node says what is wrong
            chosen.share(adopt, data, loading.result())
    keep_freed_memory()  # only now, so that what was loaded here is given back
    return chosen


def _wait_for_ray() -> None:
    """Until Flower, which starts it while the ServerApp already runs, has started Ray.

    Raises:
        ValueError: if it did not.
    """
    import ray

    address = os.environ.get("RAY_ADDRESS", "")
    # A loaded machine needs minutes to start one; to join one takes seconds.
    patience = 60.0 if address not in ("", "local") else 600.0
    deadline = time.monotonic() + patience
    while not ray.is_initialized():
        if time.monotonic() > deadline:
            cluster = f"; RAY_ADDRESS={address!r} names the cluster to join: start it, or unset it" if address else ""
            raise ValueError(f"Flower did not start Ray within {patience:g} s{cluster}")
        time.sleep(0.05)


def wait_for_nodes(grid: Grid, number: int, timeout: float) -> list[int]:
    """The ids of the nodes, in order: at least ``number`` of them, or with 0 all that are there once none is added.

    At the start of a run a grid lists no node, then some, then all.

    Raises:
        ValueError: if fewer have connected when the time is over.
    """
    deadline = time.monotonic() + timeout
    known: list[int] = []
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= max(1, number) and (number or nodes == known):
            return nodes
        if time.monotonic() > deadline:
            raise ValueError(
                f"{len(nodes)} of {max(1, number)} SuperNodes connected within {timeout:g} s; start the rest"
            )
        known = nodes
        time.sleep(0.05)
