"""Files that outlive a run: checksummed, written atomically, never holding anything that can execute.

What is read again is safetensors with a JSON header, JSON, or lines of JSON. A file is written under a temporary name
and renamed, so it is there whole or not at all; its checksum is verified on reading, so a damaged file is named, never
used.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from fedforget.failures import CannotWrite

# Bytes up to which a file is read as a whole, which for a moment takes twice its size, and a third of the time where
# there are many small tensors, as in an audit's answers.
SMALL = 1 << 24
MISMATCH = "its checksum does not match"
# What `_replace` writes to, and what safetensors, from 0.8 on, writes to before it renames it to that.
_UNFINISHED = re.compile(r"\..+\.\d+\.\d+|\.tmp\w{6}")


class DamagedFile(ValueError):
    """A stored file whose content does not match its checksum.

    Args:
        path: the file.
        why: what is wrong with it.
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is damaged ({why}); running its experiment again recomputes it")


def default_output() -> Path:
    """Where results go unless said otherwise: ``$FEDFORGET_HOME``, else ``~/.fedforget``."""
    return Path(os.environ.get("FEDFORGET_HOME") or Path.home() / ".fedforget")


def digest(value: object) -> str:
    """Address of a JSON value: the first 16 hexadecimal digits of the SHA-256 of its canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def digest_of_code(files: Iterable[Path]) -> str:
    """Address of Python files by what they do: comments, docstrings and layout do not change it.

    Raises:
        SyntaxError: if a file is no Python.
    """
    return digest([_without_prose(path.read_text(encoding="utf-8")) for path in files])


@lru_cache(maxsize=256)
def _without_prose(text: str) -> str:
    """The code of a file, in one fixed layout."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.unparse(tree)  # unlike ast.dump, hardly different from one version of Python to the next


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict) -> None:
    """Write tensors and JSON metadata to ``path``, atomically and with a checksum."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"metadata": json.dumps(metadata, sort_keys=True)}
    header["checksum"] = _checksum(ready, header["metadata"])

    def write(temporary: Path) -> None:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(ready, temporary, header)
        temporary.chmod(mode)  # as any file's: safetensors, from 0.8 on, keeps everybody else from reading it

    _replace(path, write)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and metadata that `save_tensors` wrote.

    Raises:
        DamagedFile: if the content does not match its checksum.
        FileNotFoundError: if there is no such file.
    """
    with _opened(path) as file:
        header, names = file.metadata() or {}, list(file.keys())
        if path.stat().st_size > SMALL:
            tensors = {name: file.get_tensor(name) for name in names}
        else:
            loaded = load(path.read_bytes())
            tensors = {name: loaded[name] for name in names}  # `load` returns them in another order each time
    return tensors, _verified(path, tensors, header)


def _verified(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> dict:
    """The metadata in a file's header, once its checksum is found to be that of the tensors."""
    if not {"metadata", "checksum"} <= header.keys():
        raise DamagedFile(path, "its header is not whole")
    if _checksum(tensors, header["metadata"]) != header["checksum"]:
        raise DamagedFile(path, MISMATCH)
    return json.loads(header["metadata"])


def open_tensors(path: Path) -> tuple[Mapping[str, Tensor], dict]:
    """As `load_tensors`, but of a file beyond `SMALL` every tensor is read when it is asked for, so that one is held.

    Its checksum is verified here, by reading all of them once.
    """
    if path.stat().st_size <= SMALL:
        return load_tensors(path)
    tensors = _OnDisk(path)
    return tensors, _verified(path, tensors, tensors.header)


class _OnDisk(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is asked for.

    Args:
        path: the file; it must not be changed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _opened(path) as file:
            self.header, self._names = file.metadata() or {}, tuple(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with _opened(self._path) as file:
            return file.get_tensor(name).clone()  # what it gives is the file itself, mapped into memory

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise DamagedFile(path, str(error)) from error


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
        raise DamagedFile(path, str(error)) from error
    if zlib.crc32(json.dumps(value, sort_keys=True).encode()) != expected:
        raise DamagedFile(path, MISMATCH)
    return value


def save_lines(path: Path, values: Iterable[object]) -> None:
    """Write JSON values, one a line, atomically; the last line holds the checksum of those before it."""
    text = "".join(f"{json.dumps(value, allow_nan=False)}\n" for value in values)
    write_text(path, f'{text}{{"checksum": {zlib.crc32(text.encode())}}}\n')


def load_lines(path: Path) -> list[Any]:
    """The values that `save_lines` wrote. Raises as `load_json` does."""
    try:
        text, _, last = path.read_text(encoding="utf-8").removesuffix("\n").rpartition("\n")
        expected = json.loads(last)["checksum"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(path, str(error)) from error
    if zlib.crc32(f"{text}\n".encode()) != expected:
        raise DamagedFile(path, MISMATCH)
    return [json.loads(line) for line in text.splitlines()]


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    _replace(path, lambda temporary: temporary.write_bytes(content))


class Shelf:
    """Vectors that a client keeps on a disk of its own, by name.

    Args:
        folder: an absolute folder of this client alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, vector: Tensor) -> None:
        """Keep a vector; one of that name is replaced."""
        Store.tidy(make_folder(self.folder))
        save_tensors(self._path(name), {"vector": vector}, {})

    def get(self, name: str) -> Tensor:
        """The vector of that name.

        Raises:
            ValueError: if there is none, or the file does not match its checksum.
        """
        try:
            return load_tensors(self._path(name))[0]["vector"]
        except (FileNotFoundError, DamagedFile) as error:
            lost = "is not there" if isinstance(error, FileNotFoundError) else "is damaged"
            again = "delete the folder of its trajectory and run again to learn it anew"
            raise ValueError(f"what a client kept in {self._path(name)} {lost}; {again}") from error

    def _path(self, name: str) -> Path:
        assert re.fullmatch(r"[\w-]+", name), "a name is no path"
        return self.folder / f"{name}.safetensors"


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
            with tempfile.TemporaryFile(dir=root):  # it has no name, so that nothing stays behind
                pass
        except OSError as error:
            raise ValueError(f"cannot write to {root}: {error.strerror}; choose another output-dir") from error

    def folder(self, kind: str, key: str) -> Path:
        """The folder of the object ``key``; it is made if it is not there."""
        return make_folder(self.root / kind / key)

    def lock(self, kind: str, key: str) -> Lock:
        """Held while the object ``key`` is being made, so that two runs never make it at once."""
        locks = make_folder(self.root / "locks")
        # Where a disk cannot lock files, a lock that is a file would outlive a run that was killed.
        return Lock(locks / f"{kind}-{key}", thread_local=False, fallback_to_soft=False)

    @staticmethod
    def tidy(folder: Path) -> None:
        """Delete what a process that was killed while it wrote left in a folder; the folder's lock is held."""
        for file in folder.glob(".*"):
            if _UNFINISHED.fullmatch(file.name):
                discard(file)

    @staticmethod
    def remove(folder: Path) -> None:
        """Delete a folder and what is in it, if it is there.

        Raises:
            CannotWrite: if it cannot be deleted.
        """
        try:
            if folder.exists():
                shutil.rmtree(folder)
        except OSError as error:
            raise CannotWrite(folder, error.strerror or str(error)) from error


class Lock(FileLock):
    """A file's lock, which ends with the process that holds it."""

    def acquire(self, *arguments: Any, **named: Any) -> Any:
        """As in `filelock.FileLock`.

        Raises:
            CannotWrite: if the disk does not take the file, or cannot lock files.
        """
        try:
            return super().acquire(*arguments, **named)
        except Timeout:
            raise
        except OSError as error:
            raise CannotWrite(Path(self.lock_file), error.strerror or str(error)) from error


def discard(path: Path) -> None:
    """Delete a file.

    Raises:
        CannotWrite: if it cannot be deleted.
    """
    try:
        path.unlink()
    except OSError as error:
        raise CannotWrite(path, error.strerror or str(error)) from error


def within(root: Path, relative: str) -> Path:
    """The file of a folder that a stored index names.

    Raises:
        ValueError: if that would lie outside of the folder.
    """
    path = Path(relative)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"an index names the file {relative!r}, which is not in {root}; do not use its results.jsonl")
    return root / path


def make_folder(folder: Path) -> Path:
    """The folder, which is made with those above it if it is not there.

    Raises:
        CannotWrite: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(folder, error.strerror or str(error)) from error
    return folder


def _checksum(tensors: Mapping[str, Tensor], metadata: str) -> str:
    """CRC-32 of names, shapes, types, contents and metadata: it finds every damage, though not a forger."""
    value = zlib.crc32(metadata.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write under a name beside ``path`` that nobody else uses, then rename; a failure leaves nothing behind.

    Raises:
        CannotWrite: if the disk does not take it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CannotWrite(path, error.strerror or str(error)) from error
        if isinstance(error, SafetensorError):  # it wraps what the system said
            raise CannotWrite(path, str(error).rpartition("I/O error: ")[2]) from error
        raise
