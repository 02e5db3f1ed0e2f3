"""Marks on the data of clients that will be forgotten: triggers, wrong labels, noise, coin-flip canaries.

A mark makes forgetting measurable. Positions in this file are those of requests: they count a client's training split
from 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedforget.data.classes import numbered
from fedforget.schema.data import CorruptionConfig
from fedforget.seeds import Seeds


def stamp(inputs: Tensor, patch: int, value: Tensor) -> Tensor:
    """Copies of images with a square in the lower right corner.

    Args:
        inputs: ``[N, C, H, W]``.
        patch: side of the square in pixels.
        value: its colour ``[C, 1, 1]``; see `brightest`.
    """
    marked = inputs.clone()
    marked[..., -patch:, -patch:] = value
    return marked


def brightest(inputs: Tensor) -> Tensor:
    """The largest value per channel ``[C, 1, 1]`` of images ``[N, C, H, W]``; stamping with it does not change it."""
    return inputs.amax((0, 2, 3))[:, None, None]


def coins(client: int, count: int, seeds: Seeds) -> np.ndarray:
    """Which candidates of a client are trained on: bool ``[count]``, fair coins, flipped anew in each trajectory.

    Args:
        client: the client's id.
        count: how many candidates it has.
        seeds: the streams of the trajectory: ``("coins", client)``.
    """
    return seeds.numpy("coins", client).integers(0, 2, size=count).astype(bool)


def corrupt(
    inputs: Tensor,
    labels: Tensor,
    train: Sequence[np.ndarray],
    num_classes: int,
    config: CorruptionConfig,
    seeds: Seeds,
) -> tuple[Tensor, Tensor, dict[int, np.ndarray]]:
    """Corrupt the training splits of the named clients.

    Args:
        inputs: ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        train: each client's training split, as positions in ``inputs``.
        num_classes: labels are below it.
        config: what to do, with classes as numbers of the network's outputs.
        seeds: the streams of the data: ``("corruption", client)``.

    Returns:
        Corrupted copies of inputs and labels (the given ones, where nothing is done), and for each named client the
        positions touched, ascending.

    Raises:
        ValueError: if the task lacks a named client or class, the patch does not fit, or too few examples are eligible.
    """
    if config.kind == "none":
        return inputs, labels, {}
    _check(inputs, len(train), config)
    config = config.resolved(numbered(num_classes))
    touched, marked, renamed = {}, inputs, labels.clone()
    if config.kind in ("trigger", "noise"):
        marked = inputs.clone()
    if config.kind == "trigger":
        white = brightest(inputs)
    for client in config.clients:
        rng = seeds.numpy("corruption", client)
        old = labels[train[client]].numpy()
        touched[client] = _choose(old, config, rng, client)
        rows, old = torch.from_numpy(train[client][touched[client]]), old[touched[client]]
        if config.kind == "trigger":
            marked[rows] = stamp(inputs[rows], config.patch, white)
        if config.kind == "noise":
            marked[rows] += config.deviation * torch.from_numpy(rng.standard_normal(inputs[rows].shape)).float()
        renamed[rows] = torch.from_numpy(_rename(old, num_classes, config, rng))
    return marked, renamed, touched


def _check(inputs: Tensor, num_clients: int, config: CorruptionConfig) -> None:
    outside = [client for client in config.clients if not 0 <= client < num_clients]
    if outside:
        raise ValueError(f"corruption.clients names client {outside[0]}, but the clients are 0 to {num_clients - 1}")
    if config.kind == "trigger" and config.patch > min(inputs.shape[2:]):
        raise ValueError(f"corruption.patch={config.patch} does not fit images of {list(inputs.shape[2:])} pixels")


def _choose(labels: np.ndarray, config: CorruptionConfig, rng: np.random.Generator, client: int) -> np.ndarray:
    """The positions to touch, ascending, given the labels of the client's training split."""
    eligible = np.arange(len(labels))
    if config.kind == "trigger":
        eligible = np.flatnonzero(labels != config.target_class)
    if config.kind == "label_swap":
        eligible = np.flatnonzero(np.isin(labels, config.classes))
    if config.kind == "canary":
        if config.canaries >= len(labels):
            raise ValueError(
                f"corruption.canaries={config.canaries} leaves client {client} nothing else to train on: "
                f"it has {len(labels)} training examples"
            )
        size = config.canaries
    else:
        size = round(config.share * len(eligible))
    if size == 0:
        raise ValueError(
            f"corruption.kind={config.kind} with share={config.share:g} touches nothing at client {client}: "
            f"{len(eligible)} of its {len(labels)} training examples are eligible"
        )
    return np.sort(rng.permutation(eligible)[:size])


def _rename(labels: np.ndarray, num_classes: int, config: CorruptionConfig, rng: np.random.Generator) -> np.ndarray:
    """The new labels of the touched examples."""
    if config.kind == "trigger":
        return np.full_like(labels, config.target_class)
    if config.kind == "label_swap":
        return np.where(labels == config.classes[0], config.classes[1], config.classes[0])
    if config.kind == "noise" or (config.kind == "canary" and config.canary_label == "natural"):
        return labels
    return (labels + rng.integers(1, num_classes, size=len(labels))) % num_classes  # uniform over the wrong ones
