"""Files that outlive a run: checksummed, written atomically, never holding anything that can execute.

Every file is either safetensors with a JSON header, or JSON. A file is written under a temporary name and renamed, so
it is there whole or not at all; its checksum is verified on reading, so a damaged file is named, never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class DamagedFile(ValueError):
    """A stored file whose content does not match its checksum."""


def default_output() -> Path:
    """Where results go unless said otherwise: ``$FEDFORGET_HOME``, else ``~/.fedforget``."""
    return Path(os.environ.get("FEDFORGET_HOME") or Path.home() / ".fedforget")


def digest(value: object) -> str:
    """Address of a JSON value: the first 16 hexadecimal digits of the SHA-256 of its canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict) -> None:
    """Write tensors and JSON metadata to ``path``, atomically and with a checksum."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"metadata": json.dumps(metadata, sort_keys=True)}
    header["checksum"] = _checksum(ready, header["metadata"])
    _replace(path, lambda temporary: save_file(ready, temporary, header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and metadata that `save_tensors` wrote.

    Raises:
        DamagedFile: if the content does not match its checksum.
        FileNotFoundError: if there is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata, expected = header["metadata"], header["checksum"]
    except (SafetensorError, KeyError) as error:
        raise DamagedFile(f"{path} is damaged ({error}); delete it to have it recomputed") from error
    if _checksum(tensors, metadata) != expected:
        raise DamagedFile(f"{path} is damaged (its checksum does not match); delete it to have it recomputed")
    return tensors, json.loads(metadata)


def save_json(path: Path, value: object) -> None:
    """Write a JSON value to ``path``, atomically and with a checksum."""
    text = json.dumps(value, sort_keys=True)
    write_text(path, json.dumps({"checksum": zlib.crc32(text.encode()), "value": value}, sort_keys=True, indent=1))


def load_json(path: Path) -> object:
    """The value that `save_json` wrote.

    Raises:
        DamagedFile: if the content does not match its checksum.
        FileNotFoundError: if there is no such file.
    """
    try:
        content = json.loads(path.read_text())
        value, expected = content["value"], content["checksum"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} is damaged ({error}); delete it to have it recomputed") from error
    if zlib.crc32(json.dumps(value, sort_keys=True).encode()) != expected:
        raise DamagedFile(f"{path} is damaged (its checksum does not match); delete it to have it recomputed")
    return value


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class Store:
    """Content-addressed folders under one root, shared by runs.

    Args:
        root: an absolute folder; it is made if it is not there.

    Raises:
        ValueError: if the folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            write_text(root / ".writable", "")
        except OSError as error:
            raise ValueError(f"cannot write to {root}: {error.strerror}; choose another output-dir") from error

    def folder(self, kind: str, key: str) -> Path:
        """The folder of the object ``key``; it is made if it is not there."""
        folder = self.root / kind / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def lock(self, kind: str, key: str) -> FileLock:
        """Held while the object ``key`` is being made, so that two runs never make it at once."""
        locks = self.root / "locks"
        locks.mkdir(exist_ok=True)
        return FileLock(locks / f"{kind}-{key}", thread_local=False)

    @staticmethod
    def remove(folder: Path) -> None:
        """Delete a folder and what is in it, if it is there."""
        if folder.exists():
            shutil.rmtree(folder)


def _checksum(tensors: Mapping[str, Tensor], metadata: str) -> str:
    """CRC-32 of names, shapes, types, contents and metadata: it finds every damage, though not a forger."""
    value = zlib.crc32(metadata.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write under a name beside ``path`` that nobody else uses, then rename; a failure leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
