"""Files that outlive a run: written whole or not at all, and no damage goes unnoticed."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import Timeout
from hypothesis import given, settings
from hypothesis import strategies as st

from fedforget import store
from fedforget.store import (
    CannotWrite,
    DamagedFile,
    Shelf,
    Store,
    digest,
    digest_of_code,
    load_json,
    load_tensors,
    open_tensors,
    save_json,
    save_tensors,
    within,
    write_text,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.uint8]
VALUE = {"rounds": 12, "name": "mlp", "shares": [0.25, 0.5], "done": True}


def write_json(path: Path) -> None:
    save_json(path, VALUE)


def write_tensors(path: Path) -> None:
    save_tensors(path, {"w": torch.tensor([1.5, -2.0]), "n": torch.tensor([3])}, {"notes": ["late"], "round": 7})


def read_one_by_one(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """As of a file that is too large to be held."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SMALL", 0)
        tensors, metadata = open_tensors(path)
        return dict(tensors), metadata


Loader = Callable[[Path], object]
BOTH = pytest.mark.parametrize(
    ("write", "load"),
    [(write_json, load_json), (write_tensors, load_tensors), (write_tensors, read_one_by_one)],
    ids=["json", "tensors", "one by one"],
)


@settings(max_examples=40, deadline=None)
@given(plain)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    save_json(path, value)
    assert load_json(path) == value


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3)])
def test_tensors_round_trip_bit_for_bit(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 10).to(dtype)
    save_tensors(tmp_path / "t", {"7/values": tensor}, {"weights": {"7": 3}})
    tensors, metadata = load_tensors(tmp_path / "t")
    assert metadata == {"weights": {"7": 3}}
    assert list(tensors) == ["7/values"]
    assert tensors["7/values"].dtype == dtype and torch.equal(tensors["7/values"], tensor)


def test_not_a_number_survives(tmp_path: Path) -> None:
    # A quiet NaN with a payload: the bits are stored, not the number.
    bits = torch.tensor([0x7FC00123, 0x7F800000], dtype=torch.int32)
    save_tensors(tmp_path / "t", {"w": bits.view(torch.float32)}, {})
    assert torch.equal(load_tensors(tmp_path / "t")[0]["w"].view(torch.int32), bits)


def test_views_and_transposes_are_stored_as_they_read(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / "t", {"rows": matrix[0], "more": matrix[1], "across": matrix.T}, {})
    tensors, _ = load_tensors(tmp_path / "t")
    assert tensors["rows"].tolist() == [0, 1, 2] and tensors["more"].tolist() == [3, 4, 5]
    assert tensors["across"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_nothing_is_a_valid_content(tmp_path: Path) -> None:
    save_tensors(tmp_path / "t", {}, {})
    assert load_tensors(tmp_path / "t") == ({}, {})


@BOTH
def test_every_flipped_bit_is_found(tmp_path: Path, write: Callable[[Path], None], load: Loader) -> None:
    path = tmp_path / "file"
    write(path)
    good = path.read_bytes()
    load(path)
    assert len(good) < 600, "the loop below is meant for a small file"
    for position in range(len(good)):
        for pattern in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged = bytearray(good)
            damaged[position] ^= pattern
            path.write_bytes(damaged)
            with pytest.raises(DamagedFile) as caught:
                load(path)
            assert str(path) in str(caught.value), (position, pattern)


@BOTH
def test_every_truncated_file_is_found(tmp_path: Path, write: Callable[[Path], None], load: Loader) -> None:
    path = tmp_path / "file"
    write(path)
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(DamagedFile, match="file is damaged"):
            load(path)
    path.write_bytes(good + b"!")
    with pytest.raises(DamagedFile, match="file is damaged"):
        load(path)


@pytest.mark.parametrize("text", ["[]", "3", '"value"', "{}", '{"value": 1}', '{"checksum": 0}', "null", ""])
def test_json_that_this_module_did_not_write_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(DamagedFile, match="file is damaged"):
        load_json(tmp_path / "file")


@BOTH
def test_a_missing_file_is_missing(tmp_path: Path, write: Callable[[Path], None], load: Loader) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "file")


def test_swapped_contents_are_found(tmp_path: Path) -> None:
    # Same bytes under other names: the checksum covers names, so a renamed tensor is a damage.
    save_tensors(tmp_path / "t", {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}, {})
    content = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(content.replace(b'"a":', b'"?":').replace(b'"b":', b'"a":').replace(b'"?":', b'"b":'))
    with pytest.raises(DamagedFile, match="checksum does not match"):
        load_tensors(tmp_path / "t")


@BOTH
def test_writing_leaves_one_file(tmp_path: Path, write: Callable[[Path], None], load: Loader) -> None:
    for _ in range(2):
        write(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


@BOTH
@pytest.mark.parametrize("where", ["write", "rename"])
def test_a_failed_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], load: Loader, where: str
) -> None:
    path = tmp_path / "file"
    write(path)
    before = path.read_bytes()

    def full(target: object, *_: object) -> None:
        raise OSError(28, "No space left on device")

    def half(*arguments: object, **how: object) -> None:
        target = next(argument for argument in arguments if isinstance(argument, Path))
        target.write_bytes(b"half a fi")
        full(target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        if where == "rename":
            patch.setattr(store.os, "replace", full)
        else:
            patch.setattr(store, "save_file", lambda tensors, name, header: half(name))
            patch.setattr(Path, "write_text", half)
        if load is load_json:
            save_json(path, {"rounds": 0})
        else:
            save_tensors(path, {"w": torch.zeros(1)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "a failed write left something behind"
    load(path)


def test_a_crowd_of_writers_leaves_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    threads = [threading.Thread(target=save_json, args=(path, {"writer": i, "text": "x" * 1000})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = load_json(path)
    assert isinstance(content, dict) and content["writer"] in range(8)
    assert os.listdir(tmp_path) == ["file"]


def test_code_is_addressed_without_its_prose(tmp_path: Path) -> None:
    def address(code: str) -> str:
        (tmp_path / "code.py").write_text(code)
        return digest_of_code([tmp_path / "code.py"])

    plain = 'def f(a):\n    """What it does."""\n    return a + "text"\n\nclass C:\n    x = 1\n'
    prose = '"""Of the module."""\n# why\ndef f( a ):\n    return a + \'text\'\nclass C:\n    """Of C."""\n    x = 1'
    assert address(prose) == address(plain)
    for old, new in (("a +", "a *"), ("text", "words"), ("x = 1", "x = 2"), ("def f(a)", "def f(a, b=0)")):
        assert address(plain.replace(old, new)) != address(plain)
    assert address('def f():\n    """Only prose."""\n') == address('def f():\n    """Other prose."""\n')
    with pytest.raises(SyntaxError):
        address("def f(:\n")


def test_digest_is_pinned_and_does_not_see_the_order_of_keys() -> None:
    # printf '{"a": 1, "b": [2, 3]}' | sha256sum
    assert digest({"a": 1, "b": [2, 3]}) == "fd28b17488e0d3ec"
    assert digest({"b": [2, 3], "a": 1}) == digest({"a": 1, "b": [2, 3]})
    assert digest({"a": 1, "b": [3, 2]}) != digest({"a": 1, "b": [2, 3]})
    assert digest(1) != digest("1")


def test_write_text(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "é")
    write_text(tmp_path / "page.html", "ü")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "ü"


def test_a_store_makes_its_folders(tmp_path: Path) -> None:
    made = Store(tmp_path / "a" / "b")
    folder = made.folder("trajectories", "0123")
    assert folder == tmp_path / "a" / "b" / "trajectories" / "0123" and folder.is_dir()
    assert made.folder("trajectories", "0123") == folder
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("x")
    Store.remove(folder)
    assert not folder.exists()
    Store.remove(folder)  # nothing there: nothing to do


@pytest.mark.parametrize("root", ["file", "file/below"])
def test_an_unwritable_folder_is_a_clear_error(tmp_path: Path, root: str) -> None:
    # A path at or under a regular file cannot be a folder for anybody, not even for the superuser.
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot write to .*file.*choose another output-dir"):
        Store(tmp_path / root)


def test_a_lock_keeps_a_second_holder_out(tmp_path: Path) -> None:
    """The second holder is a second `Store` in another thread, as in two runs on one output folder."""
    entered, leave = threading.Event(), threading.Event()
    first, second = Store(tmp_path), Store(tmp_path)

    def hold() -> None:
        with first.lock("oracles", "k"):
            entered.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert entered.wait(10)
        with pytest.raises(Timeout):
            second.lock("oracles", "k").acquire(timeout=0.05)
        with second.lock("oracles", "other").acquire(timeout=1), second.lock("results", "k").acquire(timeout=1):
            pass  # other objects are free
    finally:
        leave.set()
        holder.join(10)
    with second.lock("oracles", "k").acquire(timeout=10):
        pass


@pytest.mark.parametrize("why", ["No space left on device", "Is a directory", "Function not implemented"])
def test_a_lock_that_cannot_be_made_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    made = Store(tmp_path)
    if why == "Is a directory":
        (tmp_path / "locks" / "models-k").mkdir(parents=True)
    elif why == "No space left on device":

        def full(self: object) -> None:
            raise OSError(errno.ENOSPC, why)

        monkeypatch.setattr(store.Lock, "_acquire", full)
    else:

        def missing(*_: object) -> None:  # what the system says where the disk cannot lock files
            raise OSError(errno.ENOSYS, why)

        monkeypatch.setattr(fcntl, "flock", missing)
    with (
        pytest.raises(CannotWrite, match=rf"cannot write .*models-k: {why}; mend that") as caught,
        made.lock("models", "k"),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_lock_file_with_anything_in_it_is_a_lock(tmp_path: Path) -> None:
    made = Store(tmp_path)
    for content in (b"", b"\xff\x00rubbish", b"1\nelsewhere\n"):
        (tmp_path / "locks").mkdir(exist_ok=True)
        (tmp_path / "locks" / "models-k").write_bytes(content)
        with made.lock("models", "k").acquire(timeout=10), pytest.raises(Timeout):
            made.lock("models", "k").acquire(timeout=0.05)


def test_tidying_deletes_what_this_module_left_and_nothing_else(tmp_path: Path) -> None:
    left = [tmp_path / ".model.safetensors.4711.140094", tmp_path / ".config.yaml.1.2", tmp_path / ".tmp2D3MUO"]
    others = [tmp_path / name for name in (".nfs000001", ".tmp", ".gitignore", "model.safetensors")]
    for path in [*left, *others]:
        path.write_text("")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    Store.tidy(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / ".ipynb_checkpoints"])


WRITER = """
import sys, torch
from pathlib import Path
from fedforget.store import save_tensors
while True:
    save_tensors(Path(sys.argv[1]), {"x": torch.zeros(10_000_000)}, {})
"""


def test_what_a_killed_writer_leaves_is_tidied(tmp_path: Path) -> None:
    """Whatever the name is under which safetensors writes."""
    path, left = tmp_path / "model.safetensors", False
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) as writer:
            while not (list(tmp_path.glob(".*")) or writer.poll()):
                pass
            writer.kill()
        if left := bool(list(tmp_path.glob(".*"))):
            break
    assert left, "no kill came while a file was written"
    Store.tidy(tmp_path)
    assert list(tmp_path.iterdir()) in ([], [path])


def test_a_client_that_keeps_a_vector_tidies_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".tmp2D3MUO").touch()
    Shelf(tmp_path).put("update-1", torch.ones(2))
    assert list(tmp_path.iterdir()) == [tmp_path / "update-1.safetensors"]


def test_tensors_may_be_read_by_whoever_may_read_other_files(tmp_path: Path) -> None:
    save_tensors(tmp_path / "tensors", {"x": torch.zeros(2)}, {})
    (tmp_path / "other").touch()
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_looking_whether_a_folder_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("path", ["../secret", "/etc/secret", "outputs/../../secret"])
def test_an_index_names_only_files_of_its_store(tmp_path: Path, path: str) -> None:
    assert within(tmp_path, "outputs/1/outputs.safetensors") == tmp_path / "outputs/1/outputs.safetensors"
    with pytest.raises(ValueError, match="which is not in"):
        within(tmp_path, path)


def test_tensors_come_back_in_one_order(tmp_path: Path) -> None:
    """Tables list them as they come, and a page made twice must be the same page."""
    save_tensors(tmp_path / "some", {f"part/{i}": torch.zeros(i % 3) for i in range(40)}, {})
    orders = {tuple(load_tensors(tmp_path / "some")[0]) for _ in range(5)}
    assert len(orders) == 1


def test_a_large_file_is_read_tensor_by_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {"b": torch.arange(4.0), "a": torch.ones(2, 3, dtype=torch.bfloat16), "none": torch.zeros(0)}
    save_tensors(tmp_path / "t", sent, {"round": 3})
    whole, metadata = open_tensors(tmp_path / "t")
    assert isinstance(whole, dict) and metadata == {"round": 3}
    monkeypatch.setattr(store, "SMALL", 0)
    lazy, metadata = open_tensors(tmp_path / "t")
    assert not isinstance(lazy, dict) and metadata == {"round": 3}
    assert list(lazy) == list(whole) and len(lazy) == 3 and "c" not in lazy
    assert all(torch.equal(lazy[name], tensor) and lazy[name].dtype == tensor.dtype for name, tensor in sent.items())
    lazy["b"].zero_()  # a copy: neither the file nor what is read next changes
    assert torch.equal(lazy["b"], sent["b"]) and torch.equal(load_tensors(tmp_path / "t")[0]["b"], sent["b"])
    with pytest.raises(KeyError):
        lazy["c"]
