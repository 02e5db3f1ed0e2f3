"""Pixels: encoded images become 8-bit tensors, and these are normalised."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image


def decode(images: np.ndarray, mode: str = "") -> Tensor:
    """uint8 ``[N, C, H, W]`` from raw or encoded images.

    Args:
        images: uint8 ``[N, C, H, W]``, or objects ``[N]``: the bytes of an image file each.
        mode: what encoded images are converted to (`fedforget.schema.data.TaskConfig.mode`); ``""`` takes 8-bit
            grayscale and RGB images as they are, and no others.

    Raises:
        ValueError: if an image cannot be decoded or is of another mode, or they are not of one size.
    """
    if images.dtype != object:
        return torch.from_numpy(images)
    pixels = None
    for number, encoded in enumerate(images):
        image = decode_one(encoded, number, mode)
        if pixels is None:
            pixels = np.empty((len(images), *image.shape), dtype=np.uint8)
        if image.shape != pixels.shape[1:]:
            sizes = f"{list(pixels.shape[1:])} and {list(image.shape)}"
            mixed = image.ndim != pixels.ndim - 1
            hint = "; task.mode=RGB (or L) makes grayscale and RGB images alike" if mixed else ""
            raise ValueError(f"images have different sizes: {sizes}; a task needs one size{hint}")
        pixels[number] = image
    assert pixels is not None, "load_source refuses empty splits"
    return torch.from_numpy(channels_first(pixels))


def decode_one(encoded: bytes, number: int, mode: str) -> np.ndarray:
    """uint8 ``[H, W]`` or ``[H, W, 3]`` of the image with a number; as `decode` otherwise."""
    from PIL import Image, UnidentifiedImageError  # torchvision's own decoders are deprecated

    try:
        with Image.open(io.BytesIO(encoded)) as file:
            if mode and file.mode != mode:
                return np.asarray(_converted(file, number, mode))
            image, found = np.asarray(file), file.mode
    except UnidentifiedImageError as error:
        raise ValueError(f"image {number} cannot be decoded: it is of no format that Pillow knows") from error
    except OSError as error:
        raise ValueError(f"image {number} cannot be decoded: {error}") from error
    if found not in ("L", "RGB"):  # the pixels of others, such as a palette's, are no brightness
        kind = f"mode {found}, shape {list(image.shape)} and type {image.dtype}"
        raise ValueError(
            f"image {number} has {kind}; only 8-bit grayscale and RGB images are taken as they are; "
            "set task.mode=RGB or task.mode=L to convert it"
        )
    return image


def _converted(file: Image.Image, number: int, mode: str) -> Image.Image:
    """An image in another mode; transparency is dropped, and 16 bits become 8."""
    from PIL import Image

    image: Image.Image = file
    if file.mode == "F":
        raise ValueError(f"image {number} has mode F, whose brightest value is unknown; store it with 8 bits a channel")
    if file.mode.startswith("I"):  # Pillow would cut 16 bits off at 255
        levels = np.asarray(file).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(
                f"image {number} has mode {file.mode} and values from {levels.min()} to {levels.max()}, more than 16 "
                "bits hold; store it with 8 bits a channel"
            )
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # a palette may hold transparency
    return image if image.mode == mode else image.convert(mode)


def channels_first(images: np.ndarray) -> np.ndarray:
    """``[N, C, H, W]`` from ``[N, H, W]`` or ``[N, H, W, C]``."""
    return images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """float32 ``[N, C, H, W]`` from 8-bit pixels, given mean and standard deviation per channel ``[C, 1, 1]``."""
    return images.float().sub_(mean).div_(std)


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, float32 ``[C, 1, 1]`` each, of uint8 ``[N, C, H, W]``."""
    # Sums of integers: exact, so the numbers do not depend on how many threads a node has.
    levels = torch.arange(256)
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])])
    total = counts.sum(1).double()
    mean = (counts * levels).sum(1) / total
    std = ((counts * levels.square()).sum(1) / total - mean.square()).sqrt()
    std[std == 0] = 1.0  # a constant channel becomes 0, not NaN
    return mean.float()[:, None, None], std.float()[:, None, None]
