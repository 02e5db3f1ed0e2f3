"""What models answer on the audit sets: logits, features, and points of decision regions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedforget import routines
from fedforget.client.workbench import Workbench, multiply_in, prepare
from fedforget.data import audit_sets
from fedforget.data.audit_sets import GRID, LAYER_WIDTH, SPHERE, TEST
from fedforget.messages import Work
from fedforget.metrics import Outputs, regions
from fedforget.params import Params

BATCH = 500


@torch.no_grad()
def evaluate(work: Work, models: Mapping[str, NDArray]) -> tuple[dict[str, NDArray], dict[str, dict]]:
    """What models answer, each on its parts of ``work``.

    A split is taken in its audit order, a fixed shuffle of all rows of which the split's own are kept, so that the
    first examples of a split are the same for every model. Candidate canaries keep their order. Points of decision
    regions, see `_spheres` and `_plane`, are made here, from the examples that this node holds.

    Returns:
        Arrays over the ``n`` examples of all parts, one part after another: ``logits [n, classes]``, ``labels [n]``,
        ``rows [n]`` (where the examples stand in the data, or the numbers of points) and ``included [n]`` (whether the
        trajectory trained on a candidate canary; else 1). As ``"part/features"`` the features that
        `fedforget.data.audit_sets` names: what the last linear layer was given, ``[m, p]``, or what `_layers` and
        `_along` say. And a report by part, with its number of ``examples``.
    """
    bench = prepare(work)
    multiply_in("float32")
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
        asked = _examples(bench, whose, client, split, start, stop)
        logits, features = _outputs(bench, split, asked)
        answers["logits"] += logits
        for name in ("labels", "rows", "included"):
            answers[name].append(getattr(asked, name))
        if features:
            arrays[f"{number}/features"] = torch.cat(features).numpy()
        reports[str(number)] = {"examples": len(asked.rows), "seconds": time.perf_counter() - began}
    return arrays | {name: torch.cat(several).numpy() for name, several in answers.items()}, reports


class _Asked(NamedTuple):
    """The examples, or points, of one part: see `evaluate`; ``batches`` of their images on the device."""

    rows: Tensor
    labels: Tensor
    included: Tensor
    batches: Iterable[Tensor]


def _examples(bench: Workbench, whose: tuple[Any, ...], client: int, split: str, start: int, stop: int) -> _Asked:
    """The examples from ``start`` to ``stop`` of a split in its audit order, or so many points."""
    wanted = audit_sets.find(split)
    if wanted.points:
        if not wanted.of:
            points = _plane(bench, whose, client)
        else:
            anchors, _ = bench.audited(whose, client, wanted.of, 0, -(-stop // SPHERE))
            points = bench.spheres(client, tuple(anchors.tolist()))
        rows, labels, images = (whole[start:stop] for whole in points)
        return _Asked(rows, labels, torch.ones_like(rows), images.split(BATCH))
    rows, included = bench.audited(whose, client, wanted.of or split, start, stop)
    labels = (bench.data.test_labels if client == TEST else bench.data.labels)[rows]
    return _Asked(rows, labels, included, _batches(bench, client, split, rows))


def _outputs(bench: Workbench, split: str, asked: _Asked) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and features of each batch; no features where none are kept of the split."""
    kept = audit_sets.find(split).features
    if kept == "noise":
        return _along(bench, asked.rows)
    if kept == "layers":
        return _layers(bench.model, asked.batches if len(asked.rows) else ())
    if not kept:
        return [bench.model(batch).float().cpu() for batch in asked.batches], []
    last = [module for module in bench.model.modules() if isinstance(module, nn.Linear)][-1]
    features = [torch.zeros(0, last.in_features, dtype=torch.half)]
    # A hook that outlived a failed evaluation would go on keeping features: the network serves the process.
    with last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].half().cpu())):
        return [bench.model(batch).float().cpu() for batch in asked.batches], features


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
    for batch in rows.split(BATCH) if len(rows) else ():
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
    return (routines.take(inputs, batch) for batch in rows.to(inputs.device).split(BATCH))
