"""Client work on one device: clients one by one, or in a stack.

A process builds the data and the network of a task once and keeps them. On one intra-op thread, clients are trained one
after another (convolutional nets channels-last, which a CPU's convolutions and pooling are faster in), or, where the
cohort asks for groups, several at once (stacked.py, convolved.py, vmapped.py). Neither depends on how clients are
spread over processes.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial, reduce
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedforget import convolved, data, models, routines, stacked, vmapped
from fedforget.messages import GRID, POOL, SPHERE, TEST, Task, Work
from fedforget.metrics import Outputs, regions
from fedforget.params import ExactSum, FlatModule, Layout, Params, can_add_exactly, ends
from fedforget.store import Shelf

EVALUATION_BATCH = 500
PROBED = ("forget", "holdout")  # splits whose features are kept
DEEP = {"forget_layers": "forget", "holdout_layers": "holdout"}  # few examples in every layer, and where they come from
LAYER_WIDTH = 256  # numbers kept of a layer's output for one example
AROUND = {"near": "forget", "far": "test"}  # spheres of points, and the audit set that their anchors come from
RADIUS = 0.5  # of these spheres, in typical distances between test images, which every node holds
WAITING, WAITING_BYTES = 16, 1 << 28  # changes that wait to be summed in one pass, at most
NEIGHBOURS = 500  # test images among which that distance is taken
AUDITED, SPHERES = 1024, 8  # parts of audit sets whose rows (16 bytes an example), and whose points, are remembered
HELD = 2048  # parts of clients' data that are remembered (25 bytes an example)


@dataclass(frozen=True)
class Workbench:
    """The data and the network of a task on this process's device.

    Args:
        data: the federated data set.
        inputs: all training examples on the device, ``[N, C, H, W]``.
        labels: their labels on the device, ``[N]``.
        test_inputs: the global test set on the device.
        network: the network on the device; its parameters are overwritten by each client.
        task: what it was built for.
    """

    data: data.FederatedData
    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    network: FlatModule
    task: Task

    @property
    def model(self) -> nn.Module:
        """The module of the network."""
        return self.network.module

    @property
    def layout(self) -> Layout:
        """How a flat vector divides into the network's parameters."""
        return self.network.layout

    @cached_property
    def radius(self) -> float:
        """Of the spheres around anchors, near and far: alike on every node."""
        some = self.data.seeds.numpy("regions").permutation(len(self.data.test_labels))[:NEIGHBOURS]
        return RADIUS * regions.typical_distance(self.data.test_inputs[some])

    @cached_property
    def audited(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """`_audited`, which every model of a trajectory is asked about: remembered, for its latest arguments."""
        return lru_cache(maxsize=AUDITED)(partial(_audited, self))

    @cached_property
    def held(self) -> Callable[..., tuple[Tensor, Tensor, int, Tensor, Tensor]]:
        """`_held`, which every round of a trajectory asks about: remembered as `audited` is."""
        return lru_cache(maxsize=HELD)(partial(_held, self))

    @cached_property
    def spheres(self) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        """`_spheres`, remembered as `audited` is."""
        return lru_cache(maxsize=SPHERES)(partial(_spheres, self))


def device_of(name: str, precision: str = "float32") -> torch.device:
    """The device called ``name``.

    Raises:
        ValueError: if it is ``cuda`` and there is no such device, or does not multiply in the precision asked.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("engine.device=cuda, but this process sees no CUDA device; use engine.device=cpu or auto")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError("engine.precision=tf32 needs a CUDA device, not cpu; use engine.precision=float32 or bfloat16")
    return device


@lru_cache(maxsize=2)
def workbench(task_json: str) -> Workbench:
    """The workbench of a task, built once a process."""
    task = Task.from_json(task_json)
    device = device_of(task.device, task.precision)
    federated = data.load(task.data)
    model = models.build(task.model, federated.input_shape, federated.num_classes).to(device)
    inputs, test_inputs = federated.inputs.to(device), federated.test_inputs.to(device)
    if _channels_last(model, task.precision):
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        test_inputs = test_inputs.contiguous(memory_format=torch.channels_last)
    return Workbench(federated, inputs, federated.labels.to(device), test_inputs, FlatModule(model), task)


def _channels_last(model: nn.Module, precision: str) -> bool:
    """Whether a network's images and weights lie with their channels last.

    That makes pooling several times faster on a CPU, and products in bfloat16. A network without either gains nothing,
    but its weights would have to be turned over for every message.
    """
    kinds = {type(module) for module in model.modules()}
    return nn.Conv2d in kinds and (nn.MaxPool2d in kinds or precision == "bfloat16")


@dataclass(frozen=True)
class _Job:
    """Work at its workbench: the vectors that came with it, the routine, the network, and what that multiplies in."""

    work: Work
    bench: Workbench
    params: Mapping[str, Params]
    routine: routines.Routine
    network: FlatModule
    precision: str

    @cached_property
    def stack(self) -> stacked.Stack:
        """The network of several clients, in the way that the task asks for; the groups of a message share it."""
        bench = self.bench
        if bench.task.engine(bench.inputs.device.type) == "vmap":
            return vmapped.VmapStack(bench.model)
        if stacked.can_stack(bench.model):
            return stacked.LinearStack(bench.model)
        return convolved.ConvStack(bench.model, bench.data.input_shape, bench.inputs.device)


def train(work: Work, vectors: Mapping[str, NDArray]) -> tuple[dict[str, NDArray], dict[str, dict]]:
    """Run the routine for each client of ``work``.

    Returns:
        The reply vectors ``[d]`` by client, with the weighted sum of those in ``work.pooled`` as one float64 vector
        under `POOL`; and each client's report, which says whether it is ``pooled``. A client without data in the split
        has no vector. One that fails has none and a report with its ``error``; the others are unharmed. One whose
        vector cannot be summed exactly is left out of the pool and answers by itself.
    """
    bench = _bench(work)
    routine = routines.find(work.routine)
    # Training only looks at what arrived; what other routines do, strategies' own among them, is not known here.
    params = {name: _received(vector, bench.layout, routine is routines.train) for name, vector in vectors.items()}
    double = params["model"].flat.dtype == torch.float64
    network = FlatModule(copy.deepcopy(bench.model).double()) if double else bench.network
    network.start_from(params["model"])
    # As asked in the shared training; in other routines, whose formulas vary, float32.
    precision = bench.task.precision if routine is routines.train else "float32"
    _multiply_in(precision)
    job = _Job(work, bench, params, routine, network, precision)
    arrays: dict[str, NDArray] = {}
    reports: dict[str, dict] = {}
    pooled, pool = frozenset(work.pooled), _Pool(network, work.scale)
    for group in work.groups or [(client,) for client in work.clients]:
        start = time.perf_counter()
        try:
            replies = _train_group(job, group, pool.place)
        except Exception as error:  # noqa: BLE001 (any failure of a group is that group's alone)
            replies = [(None, {"error": f"{type(error).__name__}: {error}"}) for _ in group]
        seconds = (time.perf_counter() - start) / len(group)
        for client, (reply, report) in zip(group, replies, strict=True):
            reports[str(client)] = {**report, "seconds": seconds}
            if reply is None:
                continue
            if client in pooled and pool.takes(reply, report["num_examples"]):
                reports[str(client)]["pooled"] = True
            else:
                update = reply.cpu() if isinstance(reply, Params) else reply.change()
                arrays[str(client)] = update.flat.numpy()
    total = pool.total()
    if total is not None:
        arrays[POOL] = total.numpy()
    return arrays, reports


class _Pool:
    """The exact sum of what clients answer: of what they reached, minus what all of them were sent, and of vectors.

    Several are added in one pass over the sum, which for a large network takes half the time.

    Args:
        network: where clients work one by one.
        scale: the scale of the sum, see `fedforget.params.exact_scale`.
    """

    def __init__(self, network: FlatModule, scale: float) -> None:
        self.network, self.scale = network, scale
        self.room = max(1, min(WAITING, WAITING_BYTES // network.start.nbytes))
        # By what is subtracted: the network's start, in its own order, what a stack was sent, or nothing.
        self.waiting: dict[str, list[tuple[Tensor, int]]] = {"network": [], "stack": [], "vectors": []}
        self._sums: dict[str, ExactSum] = {}

    @property
    def place(self) -> int:
        """The network's vector that is free for the next client."""
        return len(self.waiting["network"])

    def takes(self, reply: _Reply, examples: int) -> bool:
        """Add a client's answer, or the change from where it started, unless it cannot be added exactly."""
        if isinstance(reply, Params):
            kind, vector, start, around = "vectors", reply.flat, None, (0.0, 0.0)
        else:
            kind = "network" if isinstance(reply, FlatModule) else "stack"
            vector, start, around = reply.vector, reply.start, reply.start_ends
        if examples > self.scale or not can_add_exactly(vector, around):
            return False
        if kind not in self._sums:
            nothing = vector.new_zeros((), dtype=torch.float64).expand_as(vector)
            self._sums[kind] = ExactSum(nothing, self.scale, start)
        waiting = self.waiting[kind]
        waiting.append((vector, examples))
        if len(waiting) == self.room:
            self._sums[kind].add(waiting)
            waiting.clear()
        return True

    def total(self) -> Tensor | None:
        """The sum, float64 in main memory; ``None`` if nothing was added."""
        totals = []
        for kind, exact in self._sums.items():
            exact.add(self.waiting[kind])
            totals.append(exact.total(self._translated) if kind == "network" else exact.total().cpu())
        # Exact sums may be added in any order.
        return reduce(torch.add, totals) if totals else None

    def _translated(self, vector: Tensor, minus: float) -> Tensor:
        """A vector of the network, less a number, in the order of its layout."""
        return self.network.params(vector.cpu(), minus).flat


def _received(vector: NDArray, layout: Layout, kept: bool) -> Params:
    """A vector that a strategy sent: in the model's layout, or, if it has another length, as one layer.

    Unless it is to be ``kept`` as it is, it is copied, because what arrived may be shared, read-only memory.
    """
    fits = vector.shape == (layout.size,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what cannot be written to
        values = torch.from_numpy(vector) if kept else torch.tensor(vector)
    return Params(values, layout if fits else Layout(("vector",), (vector.shape,)))


@dataclass(frozen=True)
class _Reached:
    """The parameters that a client of a stack reached, and those that it started from, as a `FlatModule` has them.

    Args:
        vector: what it reached, ``[d]``, on the device.
        start: what it started from.
        start_ends: the `ends` of that.
        layout: the layout of both.
    """

    vector: Tensor
    start: Tensor
    start_ends: tuple[float, float]
    layout: Layout

    def change(self) -> Params:
        """The one minus the other, in main memory."""
        return Params((self.vector - self.start).cpu(), self.layout)


_Reply = Params | FlatModule | _Reached


def _train_group(job: _Job, group: Sequence[int], place: int) -> list[tuple[_Reply | None, dict]]:
    """Reply and report of each client of a group, which is stacked if it has more than one member.

    A client that trains alone works in the network's vector number ``place``. If its reply is the change that its
    routine made there, the network stands for it, which would otherwise be computed for nothing.
    """
    bench, network = job.bench, job.network
    states = {client: _client(job, client, stacked=len(group) > 1) for client in group}
    working = {client: state for client, state in states.items() if state is not None}
    replies: dict[int, _Reply] = {}
    if len(group) > 1 and working:
        sent = job.params["model"]
        start = sent.flat.to(bench.labels.device)
        vectors, minus = stacked.train(list(working.values()), start, job.stack, bench.inputs)
        if minus is None:
            replies = {client: Params(vector, sent.layout) for client, vector in zip(working, vectors, strict=True)}
        else:
            around = ends(minus)
            replies = {c: _Reached(v, minus, around, sent.layout) for c, v in zip(working, vectors, strict=True)}
    else:
        for client, state in working.items():
            network.reset(place)
            reply = job.routine(state)
            if reply is not None and not isinstance(reply, Params):
                raise TypeError(f"routine {job.work.routine!r} returned a {type(reply).__name__}, not Params or None")
            replies[client] = network if reply is None else reply.cpu()
    return [(replies.get(client), _report(states[client], replies.get(client))) for client in group]


def _report(state: routines.Client | None, reply: _Reply | None) -> dict:
    if state is None or reply is None:
        return {"num_examples": 0}
    return {
        "num_examples": state.places.numel(),
        "steps": state.steps,
        "examples": state.examples,
        "loss": float(state.total_loss) / max(state.steps, 1),
        "bytes": _billed(reply, state.sparse),
    }


def _billed(reply: _Reply, sparse: bool) -> int:
    """Bytes of a reply; a ``sparse`` one is sent as its non-zero entries and a bitmap of their places, if that is less.

    A change has the size and the type of what the client started from.
    """
    if not sparse:
        return reply.layout.size * (reply.flat if isinstance(reply, Params) else reply.start).element_size()
    flat = (reply if isinstance(reply, Params) else reply.change()).flat
    return min(flat.nbytes, int(flat.count_nonzero()) * flat.element_size() + -(-len(flat) // 8))


def _client(job: _Job, client: int, stacked: bool) -> routines.Client | None:
    """A client with the split it works on; ``None`` if it holds no such data. One in a stack has its rows alone."""
    work, bench = job.work, job.bench
    whose = work.seeds, work.removed, work.request
    rows, places, capacity, forgotten, planned = bench.held(whose, client, work.split, work.planned)
    if not rows.numel():
        return None
    state = routines.Client(
        id=client,
        round=work.round,
        model=job.network.module,
        inputs=bench.inputs[:0] if stacked else routines.take(bench.inputs, rows).to(job.params["model"].flat.dtype),
        labels=bench.labels[rows],
        places=places,
        capacity=capacity,
        local=bench.task.local,
        seeds=work.seeds.child("client", client, work.round),
        options=work.options,
        vectors={name: vector for name, vector in job.params.items() if name != "model"},
        rows=rows,
        forgotten=forgotten,
        planned=planned,
        shelf=Shelf(Path(work.shelves) / f"client-{client}") if work.shelves else None,
        bfloat16=job.precision == "bfloat16",
    ).with_recipe()
    state.parameters = job.network.trainable
    return state


def _held(
    bench: Workbench, whose: tuple[Any, ...], client: int, split: str, expected: tuple[Any, ...]
) -> tuple[Tensor, Tensor, int, Tensor, Tensor]:
    """``rows``, ``places``, ``capacity``, ``forgotten`` and ``planned`` of a `routines.Client`.

    ``whose`` is as in `_audited`; ``expected`` are the requests that clients know of.
    """
    seeds, removed, request = whose
    whole = bench.data.split(client, "train", seeds)
    all_of_it = split == "train" and not removed
    mine = whole if all_of_it else bench.data.split(client, split, seeds, removed, request)
    part = not all_of_it and split in ("train", "retain", "forget", "few")
    places = torch.searchsorted(whole, mine) if part else torch.arange(mine.numel())
    forgotten = torch.zeros_like(mine, dtype=torch.bool)
    if request:
        forgotten = torch.isin(mine, bench.data.split(client, "forget", seeds, removed, request))
    planned = torch.full_like(mine, -1)
    for number, one in enumerate(expected):
        named = bench.data.split(client, "forget", seeds, expected[:number], one)
        planned[torch.isin(mine, named)] = number
    device = bench.labels.device
    return mine.to(device), places, max(whole.numel(), mine.numel()), forgotten.to(device), planned.to(device)


@torch.no_grad()
def evaluate(work: Work, models: Mapping[str, NDArray]) -> tuple[dict[str, NDArray], dict[str, dict]]:
    """What models answer, each on its parts of ``work``.

    A split is taken in its audit order, a fixed shuffle of all rows of which the split's own are kept, so that the
    first examples of a split are the same for every model. Candidate canaries keep their order. Points of decision
    regions, see `_spheres` and `_plane`, are made here, from the examples that this node holds.

    Returns:
        Arrays over the ``n`` examples of all parts, one part after another: ``logits [n, classes]``, ``labels [n]``,
        ``rows [n]`` (where the examples stand in the data, or the numbers of points) and ``included [n]`` (whether the
        trajectory trained on a candidate canary; else 1). As ``"part/features"``, float16, of a split in `PROBED` what
        the last linear layer was given, ``[m, p]``, of one in `DEEP` what `_layers` says, and of ``noise`` what
        `_along` says. And a report by part, with its number of ``examples``.
    """
    bench = _bench(work)
    _multiply_in("float32")
    last = [module for module in bench.model.modules() if isinstance(module, nn.Linear)][-1]
    nothing = torch.zeros(0, bench.data.num_classes)
    answers: dict[str, list[Tensor]] = {"logits": [nothing], "labels": [], "rows": [], "included": []}
    arrays: dict[str, NDArray] = {}
    reports: dict[str, dict] = {}
    whose, loaded = (work.seeds, work.removed, work.request), -1
    for number, (client, split, start, stop, model) in enumerate(work.parts):
        began = time.perf_counter()
        if model != loaded:
            bench.network.start_from(Params(torch.tensor(models[str(model)]), bench.layout))
            bench.network.reset()
            loaded = model
        batches: Iterable[Tensor]
        if split in AROUND or split == "plane":
            if split == "plane":
                points = _plane(bench, whose, client)
            else:
                anchors, _ = bench.audited(whose, client, AROUND[split], 0, -(-stop // SPHERE))
                points = bench.spheres(client, tuple(anchors.tolist()))
            rows, labels, images = (whole[start:stop] for whole in points)
            included, batches = torch.ones_like(rows), images.split(EVALUATION_BATCH)
        else:
            rows, included = bench.audited(whose, client, DEEP.get(split, split), start, stop)
            labels = (bench.data.test_labels if client == TEST else bench.data.labels)[rows]
            batches = _batches(bench, client, split, rows)
        if split == "noise":
            logits, features = _along(bench, rows)
        elif split in DEEP:
            logits, features = _layers(bench.model, batches if len(rows) else ())
        elif split in PROBED:
            features = [torch.zeros(0, last.in_features, dtype=torch.half)]
            # A hook that outlived a failed evaluation would go on keeping features: the network serves the process.
            with last.register_forward_pre_hook(lambda _, inputs, kept=features: kept.append(inputs[0].half().cpu())):
                logits = [bench.model(batch).float().cpu() for batch in batches]
        else:
            features, logits = [], [bench.model(batch).float().cpu() for batch in batches]
        answers["logits"] += logits
        for name, found in (("labels", labels), ("rows", rows), ("included", included)):
            answers[name].append(found)
        if features:
            arrays[f"{number}/features"] = torch.cat(features).numpy()
        reports[str(number)] = {"examples": len(rows), "seconds": time.perf_counter() - began}
    return arrays | {name: torch.cat(several).numpy() for name, several in answers.items()}, reports


def _layers(model: nn.Module, batches: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The logits of each batch, and what its examples are inside the network, ``[n, L, LAYER_WIDTH]`` float16.

    These are the outputs of all L linear and convolutional layers before any activation, in the network's order. A
    wider one (a map of a convolution) is averaged over neighbouring entries to `LAYER_WIDTH` numbers, which the
    likeness of two models survives; a narrower one is filled up with zeros, which change no inner product. So n
    examples take ``512 n L`` bytes, whatever the network.
    """
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    kept: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        flat = output.flatten(1).float()
        if flat.shape[1] > LAYER_WIDTH:
            flat = nn.functional.adaptive_avg_pool1d(flat, LAYER_WIDTH)
        kept[module] = nn.functional.pad(flat, (0, LAYER_WIDTH - flat.shape[1])).half().cpu()

    logits, outputs = [], [torch.zeros(0, len(layers), LAYER_WIDTH, dtype=torch.half)]
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.register_forward_hook(keep))
        for batch in batches:
            logits.append(model(batch).float().cpu())
            outputs.append(torch.stack([kept[layer] for layer in layers], 1))
    return logits, outputs


def _along(bench: Workbench, rows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The logits of images before noise was added to them, and how the margin grows along that noise, float32.

    The two columns ``[n, 2]`` are the inner product of the noise with the gradient of the margin with respect to the
    clean image, and that gradient's length. (The loss is a falling function of the margin, so its gradient has the
    opposite direction, but rounds to 0 where the model is sure.)
    """
    logits, found = [], [torch.zeros(0, 2)]
    for batch in rows.split(EVALUATION_BATCH) if len(rows) else ():
        clean, noise = (images.to(bench.inputs.device) for images in bench.data.noise(batch))
        labels = bench.labels[batch.to(bench.labels.device)]
        with torch.enable_grad():
            clean.requires_grad_()
            answers = bench.model(clean)
            margins = Outputs(answers, labels, labels).margins
            (gradient,) = torch.autograd.grad(margins.sum(), clean)
        products = (noise * gradient).flatten(1).sum(1)
        logits.append(answers.detach().float().cpu())
        found.append(torch.stack([products, gradient.flatten(1).norm(dim=1)], 1).float().cpu())
    return logits, found


def _audited(
    bench: Workbench, whose: tuple[Any, ...], client: int, split: str, start: int, stop: int | None
) -> tuple[Tensor, Tensor]:
    """The rows of a part of a split in its audit order, and whether the trajectory trained on each (int64).

    ``whose``, the streams of the trajectory, the requests removed and the one being served, says what is in the split.
    """
    federated = bench.data
    if split == "canary":
        rows = federated.split(client, split, *whose)[start:stop].clone()
        return rows, torch.isin(rows, federated.split(client, "canary_in", *whose)).long()
    # The few examples that an attacker knows, and the rest, are forgotten ones: they keep that set's order.
    order = federated.seeds.numpy("audit", client, "forget" if split in ("few", "rest") else split)
    if client == TEST:
        rows = torch.from_numpy(order.permutation(len(federated.test_labels)))
    else:
        mine = federated.split(client, split, *whose)
        rank = torch.from_numpy(order.permutation(len(federated.labels)))[mine]
        rows = mine[rank.argsort()]
    rows = rows[start:stop].clone()  # what is remembered must not keep all of them
    return rows, torch.ones_like(rows)


def _spheres(bench: Workbench, client: int, anchors: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """`SPHERE` points around each of some rows.

    Returns:
        The numbers of the points (`SPHERE` times the row of the anchor, plus 0, 1, ...), their anchors' labels, and the
        points on the device. An anchor has the same points for every model and trajectory.
    """
    inputs, labels = (
        (bench.test_inputs, bench.data.test_labels) if client == TEST else (bench.inputs, bench.data.labels)
    )
    seeds = bench.data.seeds.child("regions", client)
    spheres = [regions.sphere(inputs[row], bench.radius, SPHERE, seeds.torch(row)) for row in anchors]
    rows = torch.tensor(anchors, dtype=torch.long)
    numbers = SPHERE * rows[:, None] + torch.arange(SPHERE)
    return numbers.flatten(), labels[rows].repeat_interleave(SPHERE), torch.cat([inputs[:0], *spheres])


def _plane(bench: Workbench, whose: tuple[Any, ...], client: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points on the plane through a client's first forgotten example and two others of its own, of other classes.

    Returns:
        The numbers of the points, row by row, the label of the image that each has the largest share of, and the points
        on the device; all empty if the client forgets nothing or has fewer than 3 examples.
    """
    forgotten, held = (bench.audited(whose, client, split, 0, None)[0] for split in ("forget", "train"))
    rows = torch.cat([forgotten[:1], held[~torch.isin(held, forgotten[:1])]])
    if not len(forgotten) or len(rows) < 3:
        return rows[:0], rows[:0], bench.inputs[:0]
    rows = rows[regions.corners(bench.data.labels[rows])]
    labels = bench.data.labels[rows][regions.grid(GRID).argmax(1)]
    return torch.arange(GRID * GRID), labels, regions.plane(bench.inputs[rows.to(bench.inputs.device)], GRID)


def _batches(bench: Workbench, client: int, split: str, rows: Tensor) -> Iterator[Tensor]:
    """The images of ``rows`` on the device, in batches."""
    inputs = bench.test_inputs if client == TEST else bench.inputs
    if split == "trigger":
        inputs = bench.data.triggered().to(inputs.device)
    return (routines.take(inputs, batch) for batch in rows.to(inputs.device).split(EVALUATION_BATCH))


def _bench(work: Work) -> Workbench:
    # Two processes with one thread each beat one process with two, and one thread makes sums reproducible.
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    return workbench(work.task)


def _multiply_in(precision: str) -> None:
    """How CUDA multiplies float32 matrices from here on; torch itself would use TF32 in convolutions."""
    products = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = products
    torch.backends.cudnn.conv.fp32_precision = products  # type: ignore[attr-defined]
