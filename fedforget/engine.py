"""Client work on one device: clients one by one, or in a stack.

A process builds the data and the network of a task once and keeps them. On one intra-op thread, clients are trained one
after another (convolutional nets channels-last, which a CPU's convolutions and pooling are faster in), or, where the
cohort asks for groups, several at once (stacked.py, vmapped.py). Neither depends on how clients are spread over
processes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedforget import data, models, routines, stacked, vmapped
from fedforget.messages import GRID, POOL, SPHERE, TEST, Task, Work
from fedforget.metrics import regions
from fedforget.params import FlatModule, Layout, Params, add_exactly, can_add_exactly

EVALUATION_BATCH = 500
PROBED = ("forget", "holdout")  # splits whose features are kept
DEEP = {"forget_layers": "forget", "holdout_layers": "holdout"}  # few examples in every layer, and where they come from
LAYER_WIDTH = 256  # numbers kept of a layer's output for one example
AROUND = {"near": "forget", "far": "test"}  # spheres of points, and the audit set that their anchors come from
RADIUS = 0.5  # of these spheres, in typical distances between test images, which every node holds
NEIGHBOURS = 500  # test images among which that distance is taken


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
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        test_inputs = test_inputs.contiguous(memory_format=torch.channels_last)
    return Workbench(federated, inputs, federated.labels.to(device), test_inputs, FlatModule(model), task)


@dataclass(frozen=True)
class _Job:
    """Work at its workbench: the vectors that came with it, the routine, the network, and what that multiplies in."""

    work: Work
    bench: Workbench
    params: Mapping[str, Params]
    routine: routines.Routine
    network: FlatModule
    precision: str


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
    params = {name: _received(vector, bench.layout) for name, vector in vectors.items()}
    double = params["model"].flat.dtype == torch.float64
    network = FlatModule(copy.deepcopy(bench.model).double()) if double else bench.network
    network.start_from(params["model"])
    # As asked in the shared training; in other routines, whose formulas vary, float32.
    precision = bench.task.precision if routine is routines.train else "float32"
    _multiply_in(precision)
    job = _Job(work, bench, params, routine, network, precision)
    arrays: dict[str, NDArray] = {}
    reports: dict[str, dict] = {}
    pooled, pools = frozenset(work.pooled), dict[type, Tensor]()
    for group in work.groups or [(client,) for client in work.clients]:
        start = time.perf_counter()
        try:
            replies = _train_group(job, group)
        except Exception as error:  # noqa: BLE001 (any failure of a group is that group's alone)
            replies = [(None, {"error": f"{type(error).__name__}: {error}"}) for _ in group]
        seconds = (time.perf_counter() - start) / len(group)
        for client, (reply, report) in zip(group, replies, strict=True):
            reports[str(client)] = {**report, "seconds": seconds}
            if reply is None:
                continue
            vector, kind = reply.flat if isinstance(reply, Params) else reply, type(reply)
            if client in pooled and report["num_examples"] <= work.scale and can_add_exactly(vector):
                if kind not in pools:
                    pools[kind] = torch.zeros(len(vector), dtype=torch.float64)
                add_exactly(pools[kind], vector, report["num_examples"], work.scale)
                reports[str(client)]["pooled"] = True
            else:
                arrays[str(client)] = (vector if kind is Params else network.params(vector).flat).numpy()
    # Exact sums may be added in any order.
    sums = [pool if kind is Params else network.params(pool).flat for kind, pool in pools.items()]
    if sums:
        arrays[POOL] = sum(sums[1:], sums[0]).numpy()
    return arrays, reports


def _received(vector: NDArray, layout: Layout) -> Params:
    """A vector that a strategy sent: in the model's layout, or, if it has another length, as one layer.

    It is copied, because what arrived may be shared, read-only memory.
    """
    fits = vector.shape == (layout.size,)
    return Params(torch.tensor(vector), layout if fits else Layout(("vector",), (vector.shape,)))


def _train_group(job: _Job, group: Sequence[int]) -> list[tuple[Params | Tensor | None, dict]]:
    """Reply and report of each client of a group, which is stacked if it has more than one member.

    A reply that is no `Params` is a change, in the network's order; the next group overwrites it.
    """
    bench, network = job.bench, job.network
    states = {client: _client(job, client) for client in group}
    working = {client: state for client, state in states.items() if state is not None}
    replies: dict[int, Params | Tensor] = {}
    if len(group) > 1 and working:
        sent, as_asked = job.params["model"], bench.task.engine(bench.labels.device.type)
        stack = vmapped.VmapStack(bench.model) if as_asked == "vmap" else stacked.LinearStack(bench.model)
        updates = stacked.train(list(working.values()), sent.flat.to(bench.labels.device), stack)
        replies = {client: Params(u.cpu(), sent.layout) for client, u in zip(working, updates, strict=True)}
    else:
        for client, state in working.items():
            network.reset()
            reply = job.routine(state)
            replies[client] = network.change() if reply is None else reply.cpu()
    return [_report(states[client], replies.get(client), network.layout.size) for client in group]


def _report(
    state: routines.Client | None, reply: Params | Tensor | None, size: int
) -> tuple[Params | Tensor | None, dict]:
    if state is None or reply is None:
        return None, {"num_examples": 0}
    vector = reply.flat if isinstance(reply, Params) else reply
    number = vector.numel() if isinstance(reply, Params) else size
    report = {
        "num_examples": state.places.numel(),
        "steps": state.steps,
        "examples": state.examples,
        "loss": float(state.total_loss) / max(state.steps, 1),
        "bytes": _billed(vector, number) if state.sparse else number * vector.element_size(),
    }
    return reply, report


def _billed(vector: Tensor, size: int) -> int:
    """Bytes of ``size`` numbers sent as the non-zero ones and a bitmap of their places, or whole if that is less."""
    return min(size * vector.element_size(), int(vector.count_nonzero()) * vector.element_size() + -(-size // 8))


def _client(job: _Job, client: int) -> routines.Client | None:
    """A client with the split it works on; ``None`` if it holds no such data."""
    work, bench = job.work, job.bench
    whole = bench.data.split(client, "train", work.seeds)
    all_of_it = work.split == "train" and not work.removed
    mine = whole if all_of_it else bench.data.split(client, work.split, work.seeds, work.removed, work.request)
    if not mine.numel():
        return None
    part = not all_of_it and work.split in ("train", "retain", "forget", "few")
    forgotten = torch.zeros_like(mine, dtype=torch.bool)
    if work.request:
        forgotten = torch.isin(mine, bench.data.split(client, "forget", work.seeds, work.removed, work.request))
    index = mine.to(bench.labels.device)
    return routines.Client(
        id=client,
        round=work.round,
        model=job.network.module,
        inputs=bench.inputs[index].to(job.params["model"].flat.dtype),
        labels=bench.labels[index],
        places=torch.searchsorted(whole, mine) if part else torch.arange(mine.numel()),
        capacity=max(whole.numel(), mine.numel()),
        local=bench.task.local,
        seeds=work.seeds.child("client", client, work.round),
        options=work.options,
        vectors={name: vector for name, vector in job.params.items() if name != "model"},
        forgotten=forgotten.to(bench.labels.device),
        bfloat16=job.precision == "bfloat16",
    ).with_recipe()


@torch.no_grad()
def evaluate(work: Work, model: NDArray) -> tuple[dict[str, NDArray], dict[str, dict]]:
    """What a model answers on each part of ``work``.

    A split is taken in its audit order, a fixed shuffle of all rows of which the split's own are kept, so that the
    first examples of a split are the same for every model. Candidate canaries keep their order. Points of decision
    regions, see `_spheres` and `_plane`, are made here, from the examples that this node holds.

    Returns:
        Arrays over the ``n`` examples of all parts, one part after another: ``logits [n, classes]``, ``labels [n]``,
        ``rows [n]`` (where the examples stand in the data, or the numbers of points) and ``included [n]`` (whether the
        trajectory trained on a candidate canary; else 1). As ``"part/features"``, float16, of a split in `PROBED` what
        the last linear layer was given, ``[m, p]``, and of one in `DEEP` what `_layers` says. And a report by part,
        with its number of ``examples``.
    """
    bench = _bench(work)
    _multiply_in("float32")
    Params(torch.tensor(model), bench.layout).copy_to(bench.model)
    last = [module for module in bench.model.modules() if isinstance(module, nn.Linear)][-1]
    nothing = torch.zeros(0, bench.data.num_classes)
    answers: dict[str, list[Tensor]] = {"logits": [nothing], "labels": [], "rows": [], "included": []}
    arrays: dict[str, NDArray] = {}
    reports: dict[str, dict] = {}
    for number, (client, split, start, stop) in enumerate(work.parts):
        began = time.perf_counter()
        batches: Iterable[Tensor]
        if split in AROUND or split == "plane":
            points = _plane(bench, work, client) if split == "plane" else _spheres(bench, work, client, split, stop)
            rows, labels, images = (whole[start:stop] for whole in points)
            included, batches = torch.ones_like(rows), images.split(EVALUATION_BATCH)
        else:
            rows, included = (whole[start:stop] for whole in _audited(bench, work, client, DEEP.get(split, split)))
            labels = (bench.data.test_labels if client == TEST else bench.data.labels)[rows]
            batches = _batches(bench, client, split, rows)
        if split in DEEP:
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


def _audited(bench: Workbench, work: Work, client: int, split: str) -> tuple[Tensor, Tensor]:
    """The rows of a split in its audit order, and whether the trajectory trained on each (int64)."""
    federated = bench.data
    if split == "canary":
        rows = federated.split(client, split, work.seeds)
        return rows, torch.isin(rows, federated.split(client, "canary_in", work.seeds)).long()
    # The few examples that an attacker knows, and the rest, are forgotten ones: they keep that set's order.
    order = federated.seeds.numpy("audit", client, "forget" if split in ("few", "rest") else split)
    if client == TEST:
        rows = torch.from_numpy(order.permutation(len(federated.test_labels)))
    else:
        mine = federated.split(client, split, work.seeds, work.removed, work.request)
        rank = torch.from_numpy(order.permutation(len(federated.labels)))[mine]
        rows = mine[rank.argsort()]
    return rows, torch.ones_like(rows)


def _spheres(bench: Workbench, work: Work, client: int, split: str, stop: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points around the first examples of an audit set, so many that there are ``stop`` if it has them.

    Returns:
        The numbers of the points (`SPHERE` times the row of the anchor, plus 0, 1, ...), their anchors' labels, and the
        points on the device. An anchor has the same points for every model and trajectory.
    """
    inputs, labels = (
        (bench.test_inputs, bench.data.test_labels) if client == TEST else (bench.inputs, bench.data.labels)
    )
    anchors = _audited(bench, work, client, AROUND[split])[0][: -(-stop // SPHERE)]
    seeds = bench.data.seeds.child("regions", client)
    spheres = [regions.sphere(inputs[row], bench.radius, SPHERE, seeds.torch(row)) for row in anchors.tolist()]
    numbers = SPHERE * anchors[:, None] + torch.arange(SPHERE)
    return numbers.flatten(), labels[anchors].repeat_interleave(SPHERE), torch.cat([inputs[:0], *spheres])


def _plane(bench: Workbench, work: Work, client: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points on the plane through a client's first forgotten example and two others of its own, of other classes.

    Returns:
        The numbers of the points, row by row, the label of the image that each has the largest share of, and the points
        on the device; all empty if the client forgets nothing or has fewer than 3 examples.
    """
    forgotten, held = (_audited(bench, work, client, split)[0] for split in ("forget", "train"))
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
    return (inputs[batch] for batch in rows.to(inputs.device).split(EVALUATION_BATCH))


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
