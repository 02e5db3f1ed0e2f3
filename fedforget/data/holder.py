"""One data holder's own folder: what a deployed SuperNode reads, with nothing of any other holder in it.

The folder holds ``train.parquet`` (the holder's examples, in an order that stays), ``test.parquet`` (the global test
set, alike at all holders, because any of them may be asked to evaluate it) and ``federation.json``:

- ``client``: the holder's id; all else is agreed and alike at all holders;
- ``classes``: how many there are;
- ``mean``, ``std``: per channel, of 8-bit pixels, by which all normalise;
- ``digests``: by client id, the `digest` of each holder's training examples. A holder whose files no longer fit says so
  instead of training on something else, and stored results never outlive the data that made them.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedforget.data.partition import PartitionConfig, partition
from fedforget.data.sources import Dataset, Holding, TaskConfig, decode, moments, normalised, read_examples
from fedforget.seeds import Seeds

FACTS = "federation.json"


@dataclass(frozen=True)
class Facts:
    """The content of ``federation.json``.

    Args:
        client: the holder's id.
        classes: number of classes.
        mean: of each channel's 8-bit pixels.
        std: likewise, none of them 0.
        digests: `digest` of each client's training examples, by client id.
    """

    client: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digests: tuple[str, ...]

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(vars(self), indent=1)

    @classmethod
    def read(cls, path: Path) -> Facts:
        """The facts in a file.

        Raises:
            ValueError: if it is absent, or not what the module describes.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            client, classes = int(fields.pop("client")), int(fields.pop("classes"))
            mean, std = (tuple(float(value) for value in fields.pop(name)) for name in ("mean", "std"))
            digests = tuple(str(value) for value in fields.pop("digests"))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} lacks a field or has one of the wrong type: {error}") from error
        if fields or not 0 <= client < len(digests) or not 0 < len(mean) == len(std) or not all(s > 0 for s in std):
            raise ValueError(f"{path} is inconsistent: client={client}, {len(digests)} digests, mean={mean}, std={std}")
        return cls(client, classes, mean, std, digests)


def digest(images: Tensor, labels: np.ndarray) -> str:
    """SHA-256 of training examples in their order: 8-bit pixels ``[N, C, H, W]`` and labels ``[N]``."""
    hasher = hashlib.sha256(json.dumps(list(images.shape)).encode())
    hasher.update(images.contiguous().numpy().data)
    hasher.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return hasher.hexdigest()


def load_holder(folder: str) -> Dataset:
    """The examples in a holder's folder, and whose they are.

    Raises:
        ValueError: if a file is absent or cannot be read, has other labels or channels than agreed, or has changed.
    """
    facts = Facts.read(Path(folder).expanduser() / FACTS)
    if not (Path(folder).expanduser() / "test.parquet").is_file():
        raise ValueError(f"{folder} holds no test.parquet; every holder needs the global test set")
    train, test = read_examples(TaskConfig("folder", folder), Seeds(0))  # nothing is drawn: it has both, whole
    images, test_images = decode(train.images), decode(test.images)
    found = digest(images, train.labels)
    if found != facts.digests[facts.client]:
        raise ValueError(
            f"the examples in {folder} have digest {found}, but {FACTS} says "
            f"{facts.digests[facts.client]} of client {facts.client}: agree on it anew, at all holders"
        )
    highest = int(max(train.labels.max(), test.labels.max()))
    if highest >= facts.classes:
        raise ValueError(f"{folder} holds label {highest}, but {FACTS} says that there are {facts.classes} classes")
    if {images.shape[1], test_images.shape[1]} != {len(facts.mean)}:
        raise ValueError(f"{folder} holds images of {images.shape[1]} channels, but {FACTS} has {len(facts.mean)}")
    mean, std = (torch.tensor(values)[:, None, None] for values in (facts.mean, facts.std))
    agreed = json.dumps({**vars(facts), "client": None}, sort_keys=True)
    return Dataset(
        train_inputs=normalised(images, mean, std),
        train_labels=torch.from_numpy(train.labels.astype(np.int64)),
        test_inputs=normalised(test_images, mean, std),
        test_labels=torch.from_numpy(test.labels.astype(np.int64)),
        train_ids=None,
        num_classes=facts.classes,
        holding=Holding(facts.client, len(facts.digests), agreed),
    )


def write_holders(task: TaskConfig, config: PartitionConfig, seeds: Seeds, folder: Path) -> list[Path]:
    """Divide a data set into one folder a client, as a simulation divides it: for rehearsals of a deployment.

    Args:
        task: which data set.
        config: how it is divided.
        seeds: the streams of the data, as in `fedforget.data.FederatedData`.
        folder: gets a subfolder ``client-<id>`` for each client.

    Raises:
        ValueError: if the data cannot be read or divided as asked, or the folder cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    train, test = read_examples(task, seeds)
    images, test_images = decode(train.images), decode(test.images)
    mean, std = moments(images)
    parts = partition(train.labels, train.ids, config, seeds)
    digests = tuple(digest(images[rows], train.labels[rows]) for rows in parts)
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    written = []
    for client, rows in enumerate(parts):
        own = folder / f"client-{client}"
        facts = Facts(client, classes, tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()), digests)
        try:
            own.mkdir(parents=True, exist_ok=True)
            for name, some, labels in (
                ("train", images[rows], train.labels[rows]),
                ("test", test_images, test.labels),
            ):
                table = pa.table({"image": [_png(image) for image in some], "label": labels.astype(np.int64)})
                parquet.write_table(table, own / f"{name}.parquet")
            (own / FACTS).write_text(facts.to_json(), encoding="utf-8")
        except OSError as error:
            raise ValueError(f"cannot write to {own}: {error.strerror or error}; choose another folder") from error
        written.append(own)
    return written


def _png(image: Tensor) -> bytes:
    """One 8-bit image ``[C, H, W]`` without loss."""
    from PIL import Image

    file = io.BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "png")
    return file.getvalue()
