"""Which parquet file of a folder belongs to which split.

A file's own name decides (``train.parquet``, ``Test-00000-of-00001.parquet``), or that of a folder around it
(``default/train/0000.parquet``), below ``task.path`` and whatever the capitals. Several files are one split only as its
numbered parts, side by side: a copy beside the original would train on every example twice, and be forgotten once.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SPLITS = {  # as Hugging Face's libraries write them
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev"),
}
TEST_SPLITS = ("test", "validation")  # the first that a source has is its test set
_WORD = re.compile(r"[a-z]+")
# A numbered part, such as train-00000-of-00002, train-00000-of-00002-0a1b2c3d4e5f6071, train_1 or 0000.
_PART = re.compile(r"(?P<name>.*?)[-_.]?(?P<number>\d+)(-of-(?P<count>\d+)(-[0-9a-f]{16})?)?")
MOST_NAMED = 5  # files that a sentence lists


class _Part(NamedTuple):
    """What a file is a part of, and which one."""

    folder: Path
    name: str
    parts: int | None
    number: int | None


def find_files(path: str) -> dict[str, list[Path]]:
    """The parquet files of each split in a folder: ``train``, and ``test`` or ``validation`` where there are any.

    Without any split's name among the files, all are training files.

    Raises:
        ValueError: if there is no such folder or file, a file is of no split or of two, several files of a split are
            not its numbered parts, or two files have the same content.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"task.path={path} is not a folder")
    try:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() == ".parquet")
    except OSError as error:  # such as a folder that others change meanwhile
        raise ValueError(f"task.path={path} cannot be searched: {error.strerror} ({error.filename})") from error
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not files:
        raise ValueError(f"task.path={path} holds no parquet file")
    splits: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        splits[_split_of(file, folder)].append(file)
    if len(splits) == 1 and "" in splits:
        splits["train"] = splits.pop("")
    if "" in splits:
        raise ValueError(
            f"task.path={path} holds {_listed(splits[''], folder)}, named after no split, beside files that are; "
            "begin its name with train, test or validation, or move it elsewhere"
        )
    if "train" not in splits:
        raise ValueError(f"task.path={path} holds no training file; one must be called train*.parquet")
    for split, mine in splits.items():
        _check_parts(split, mine, folder)
    _check_copies(files, folder)
    return dict(splits)


def _split_of(file: Path, folder: Path) -> str:
    """The split that a file's name or that of a folder around it says; ``""`` if none does."""
    *around, own = (part.lower() for part in file.relative_to(folder).parts)
    word = _WORD.match(own.removesuffix(".parquet"))
    found = {split for split, words in SPLITS.items() if (word and word[0] in words) or set(around) & set(words)}
    if len(found) > 1:
        raise ValueError(
            f"{file.relative_to(folder)} in task.path={folder} is named after two splits ({', '.join(sorted(found))}); "
            "rename it or its folder"
        )
    return found.pop() if found else ""


def _check_parts(split: str, files: list[Path], folder: Path) -> None:
    """Refuse files that are not all the numbered parts of one split."""
    parts = [_part(file) for file in files]
    numbers = [part.number for part in parts]
    together = len({part[:3] for part in parts}) == 1 and len(set(numbers)) == len(numbers)
    if len(files) > 1 and not (together and None not in numbers):
        raise ValueError(
            f"task.path={folder} holds several {split} files that are not numbered parts of one: "
            f"{_listed(files, folder)}; move copies and other versions elsewhere"
        )
    count = parts[0].parts
    if count is not None and len(files) != count:
        raise ValueError(
            f"task.path={folder} holds {len(files)} of the {count} {split} files that {files[0].name} speaks of; "
            "get the others"
        )


def _part(file: Path) -> _Part:
    numbered = _PART.fullmatch(file.stem.lower())
    if not numbered:
        return _Part(file.parent, file.stem.lower(), None, None)
    count = numbered["count"]
    return _Part(file.parent, numbered["name"], int(count) if count else None, int(numbered["number"]))


def _check_copies(files: list[Path], folder: Path) -> None:
    """Refuse two files of the same content; only files of the same size are read."""
    alike: dict[int, list[Path]] = defaultdict(list)
    for file in files:
        if file.is_file():
            alike[file.stat().st_size].append(file)
    for several in alike.values():
        seen: dict[str, Path] = {}
        for file in several if len(several) > 1 else ():
            try:
                with file.open("rb") as content:
                    digest = hashlib.file_digest(content, "sha256").hexdigest()
            except OSError as error:
                raise ValueError(f"{file} cannot be read as a parquet file: {error.strerror}") from error
            first = seen.setdefault(digest, file)
            if first != file:
                raise ValueError(
                    f"task.path={folder} holds the same examples twice: {_listed([first, file], folder)} have the same "
                    "content; move one of them elsewhere"
                )


def _listed(files: Iterable[Path], folder: Path) -> str:
    names = [file.relative_to(folder).as_posix() for file in files]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
