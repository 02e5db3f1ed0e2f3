"""One data holder's own folder: what a deployed SuperNode reads, with nothing of any other holder in it.

The folder holds ``train.parquet`` (the holder's examples, in an order that stays), ``test.parquet`` (the global test
set, alike at all holders, because any of them may be asked to evaluate it) and ``federation.json``:

- ``client``: the holder's id; all else is agreed and alike at all holders;
- ``classes``: how many there are, where labels are the whole numbers from 0; else the list of their names in the order
  of the network's outputs, and labels are these names;
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

from fedforget.data.classes import Classes, numbered
from fedforget.data.images import decode, moments, normalised
from fedforget.data.partition import partition
from fedforget.data.sources import Dataset, Holding, choose_examples, decoded, read_source, same_pixels
from fedforget.schema.data import PartitionConfig, TaskConfig
from fedforget.seeds import Seeds

FACTS = "federation.json"


@dataclass(frozen=True)
class Facts:
    """The content of ``federation.json``.

    Args:
        client: the holder's id.
        classes: number of classes, or their names.
        mean: of each channel's 8-bit pixels.
        std: likewise, none of them 0.
        digests: `digest` of each client's training examples, by client id.
    """

    client: int
    classes: int | tuple[str, ...]
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
            client, classes = int(fields.pop("client")), fields.pop("classes")
            classes = tuple(map(str, classes)) if isinstance(classes, list) else int(classes)
            mean, std = (tuple(float(value) for value in fields.pop(name)) for name in ("mean", "std"))
            digests = tuple(str(value) for value in fields.pop("digests"))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} lacks a field or has one of the wrong type: {error}") from error
        if fields or not 0 <= client < len(digests) or not 0 < len(mean) == len(std) or not all(s > 0 for s in std):
            raise ValueError(f"{path} is inconsistent: client={client}, {len(digests)} digests, mean={mean}, std={std}")
        return cls(client, classes, mean, std, digests)

    @property
    def labels(self) -> Classes:
        """The classes."""
        return numbered(self.classes) if isinstance(self.classes, int) else Classes(self.classes)

    def encode(self, labels: np.ndarray, folder: str) -> np.ndarray:
        """Labels as the files hold them, as places among the classes, int64 ``[n]``.

        Raises:
            ValueError: if one is none of them.
        """
        values, places = np.unique(labels, return_inverse=True)
        names, order = self.labels.names, []
        for value in values.tolist():
            if str(value) not in names:
                agreed = f"there are {self.classes} classes" if isinstance(self.classes, int) else f"they are {names}"
                raise ValueError(f"{folder} holds label {value}, but {FACTS} says that {agreed}")
            order.append(names.index(str(value)))
        return np.array(order, dtype=np.int64)[places.reshape(-1)]


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
    source = read_source(TaskConfig("folder", folder))
    train, test = source.train, source.test
    if test is None or not len(train.labels) or not len(test.labels):
        raise ValueError(f"{folder} lacks training or test examples; every holder needs both")
    images, test_images = decode(train.images), decode(test.images)
    labels, test_labels = facts.encode(train.labels, folder), facts.encode(test.labels, folder)
    found = digest(images, labels)
    if found != facts.digests[facts.client]:
        raise ValueError(
            f"the examples in {folder} have digest {found}, but {FACTS} says "
            f"{facts.digests[facts.client]} of client {facts.client}: agree on it anew, at all holders"
        )
    if {images.shape[1], test_images.shape[1]} != {len(facts.mean)}:
        raise ValueError(f"{folder} holds images of {images.shape[1]} channels, but {FACTS} has {len(facts.mean)}")
    mean, std = (torch.tensor(values)[:, None, None] for values in (facts.mean, facts.std))
    agreed = json.dumps({**vars(facts), "client": None}, sort_keys=True)
    return Dataset(
        train_inputs=normalised(images, mean, std),
        train_labels=torch.from_numpy(labels),
        test_inputs=normalised(test_images, mean, std),
        test_labels=torch.from_numpy(test_labels),
        labels=facts.labels,
        alike=same_pixels(images, test_images),
        named=source.named,
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

    chosen = choose_examples(task, seeds)
    train, test = chosen.train, chosen.test
    images, test_images = decoded(chosen, task.mode)
    mean, std = moments(images)
    parts = partition(train.labels, chosen.origin.owners, config, seeds)
    digests = tuple(digest(images[rows], train.labels[rows]) for rows in parts)
    count = len(chosen.labels.names)
    named = chosen.labels.names != numbered(count).names
    classes = chosen.labels.names if named else count
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
                values = [chosen.labels.names[label] for label in labels] if named else labels
                table = pa.table({"image": [_png(image) for image in some], "label": values})
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
