from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fedforget.data.images import decode
from fedforget.data.sources import TaskConfig, load_source
from fedforget.seeds import Seeds

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
SEEDS = Seeds(0)


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def table(count: int, size: tuple[int, ...] = (4, 5), seed: int = 0, **columns: list) -> pa.Table:
    """Random images of a size, labels 0, 1, 2, 0, ... and more columns."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *size), dtype=np.uint8)
    images = [{"bytes": encoded(image), "path": None} for image in pixels]
    return pa.table({"image": images, "label": [row % 3 for row in range(count)], **columns})


def folder(root: Path, **files: pa.Table) -> TaskConfig:
    for name, content in files.items():
        pq.write_table(content, root / f"{name}.parquet")
    return TaskConfig(source="folder", path=str(root))


def test_digits_are_normalised_by_their_training_split() -> None:
    data = load_source(TaskConfig(), SEEDS)
    assert data.train_inputs.shape == (1437, 1, 8, 8) and data.test_inputs.shape == (360, 1, 8, 8)
    assert data.train_inputs.dtype == torch.float32 and data.train_labels.dtype == torch.int64
    assert data.input_shape == (1, 8, 8) and data.num_classes == 10 and data.train_ids is None
    assert abs(data.train_inputs.double().mean()) < 1e-6
    assert abs(data.train_inputs.double().std(correction=0) - 1) < 1e-6
    assert abs(data.test_inputs.mean()) > 1e-6


def test_draws_follow_the_seed() -> None:
    first, again, other = (load_source(TaskConfig(max_train=50), Seeds(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.train_inputs, again.train_inputs) and torch.equal(first.test_labels, again.test_labels)
    assert not torch.equal(first.train_labels, other.train_labels)
    assert not torch.equal(first.test_labels, other.test_labels)


def test_most_examples() -> None:
    data = load_source(TaskConfig(max_train=30, max_test=7, test_share=0.5), SEEDS)
    assert len(data.train_inputs) == len(data.train_labels) == 30
    assert len(data.test_inputs) == len(data.test_labels) == 7
    # a sample, not the first ones: the whole test set is the same with and without a maximum of training examples
    whole = load_source(TaskConfig(test_share=0.5), SEEDS)
    assert len(whole.test_labels) == 899


@pytest.mark.parametrize("size", [(4, 5), (4, 5, 3)])
def test_folder_decodes_and_normalises(tmp_path: Path, size: tuple[int, ...]) -> None:
    data = load_source(folder(tmp_path, train=table(12, size), test=table(3, size, seed=1)), SEEDS)
    pixels = np.random.default_rng(0).integers(0, 256, (12, *size), dtype=np.uint8).reshape(12, 4, 5, -1)
    expected = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    np.testing.assert_allclose(data.train_inputs.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)
    assert data.train_labels.tolist() == [0, 1, 2] * 4 and len(data.test_labels) == 3
    assert data.input_shape == (3 if len(size) == 3 else 1, 4, 5)


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"),
        ("data/train-0", "data/train-1", "data/test-0"),
        ("default/train/0000", "default/train/0001", "default/test/0000"),
        ("Train-0", "Train-1", "TEST"),
        ("data/train_1", "data/train_2", "dev"),
        ("train/0000", "train/0001", "validation/0000"),
    ],
)
def test_folder_layouts(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    data = load_source(folder(tmp_path, **{name: table(6, seed=seed) for seed, name in enumerate(names)}), SEEDS)
    assert len(data.train_labels) == 12 and len(data.test_labels) == 6


def test_folder_without_test_split_draws_one(tmp_path: Path) -> None:
    data = load_source(folder(tmp_path, train=table(20)), SEEDS)
    assert len(data.train_labels) == 16 and len(data.test_labels) == 4


def test_constant_channel_is_finite(tmp_path: Path) -> None:
    images = [{"bytes": encoded(np.full((2, 2), 7, dtype=np.uint8)), "path": None}] * 6
    data = load_source(folder(tmp_path, train=pa.table({"image": images, "label": [0, 1] * 3})), SEEDS)
    assert torch.equal(data.train_inputs, torch.zeros(4, 1, 2, 2))


def test_natural_ids_follow_their_examples(tmp_path: Path) -> None:
    writers = [f"writer {row % 3}" for row in range(20)]  # as the labels
    config = folder(tmp_path, train=table(20, writer=writers))
    data = load_source(TaskConfig(source="folder", path=config.path, id_column="writer", max_train=10), SEEDS)
    assert data.train_ids is not None
    assert list(data.train_ids) == [f"writer {label}" for label in data.train_labels.tolist()]


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([1, None, 2, 1], "column writer lacks the values of 1 of 4 examples"),
        ([[1], [2], [1], [2]], "task.id_column=writer holds list<.*>; an id is a number or a text"),
    ],
)
def test_bad_ids(tmp_path: Path, ids: list, sentence: str) -> None:
    path = folder(tmp_path, train=table(4, writer=ids)).path
    with pytest.raises(ValueError, match=sentence):
        load_source(TaskConfig(source="folder", path=path, id_column="writer"), SEEDS)


def test_images_in_large_columns_are_read(tmp_path: Path) -> None:
    """Some writers of parquet files give every column of bytes 64-bit offsets."""
    content = table(10)
    images = pa.array([image["bytes"] for image in content["image"].to_pylist()], pa.large_binary())
    plain = load_source(folder(tmp_path, train=content), SEEDS)
    large = load_source(folder(tmp_path, train=content.set_column(0, "image", images)), SEEDS)
    assert torch.equal(plain.train_inputs, large.train_inputs)


def test_wanted_columns(tmp_path: Path) -> None:
    other = [2] * 5 + [0] * 5
    content = table(10, coarse=other).append_column("thumbnail", table(10, (2, 2))["image"])
    path = folder(tmp_path, train=content).path
    config = TaskConfig(source="folder", path=path, input_column="thumbnail", label_column="coarse", test_share=0.1)
    data = load_source(config, SEEDS)
    assert data.input_shape == (1, 2, 2) and set(data.train_labels.tolist()) == {0, 1} and data.classes == ("0", "2")


@pytest.mark.parametrize(
    ("drop", "fields", "sentence"),
    [
        ([], {"input_column": "imagge"}, "task.input_column=imagge is unknown; did you mean 'image'?"),
        ([], {"input_column": "label"}, "task.input_column=label is no image column; such columns are image"),
        (
            [],
            {"label_column": "image"},
            "task.label_column=image is no label column, for it holds struct<.*>; .*; such columns are label, a, b",
        ),
        ([], {"id_column": "writer"}, "task.id_column=writer is unknown; choose one of image, label, a, b"),
        (["label"], {}, "there is no column called label, .* or classes; set task.label_column .* are image, a, b"),
        (["label", "a", "b"], {}, "there is no column called label, .* set task.label_column .* columns are image"),
        (["image"], {}, "there is no image column; the columns are label, a, b"),
    ],
)
def test_missing_columns(tmp_path: Path, drop: list[str], fields: dict, sentence: str) -> None:
    path = folder(tmp_path, train=table(4, a=[0] * 4, b=[1] * 4).drop_columns(drop)).path
    with pytest.raises(ValueError, match=sentence):
        load_source(TaskConfig(source="folder", path=path, **fields), SEEDS)


def test_bad_content(tmp_path: Path) -> None:
    config = TaskConfig(source="folder", path=str(tmp_path))
    bad = {
        "images have different sizes": pa.concat_tables([table(3), table(3, (6, 6))]),
        "label -1 is negative": table(4).set_column(1, "label", [[-1, 0, 1, 2]]),
        "column label lacks the values of 1 of 4": table(4).set_column(1, "label", [[None, 0, 1, 2]]),
        "8-bit grayscale and RGB images": table(4, (3, 3, 4)),
        "cannot be decoded": pa.table({"image": [b"no image"] * 4, "label": [0, 1, 0, 1]}),
        "training and 1 test examples; it needs both": table(1),
        "all labels are 0; a task needs two classes at least": table(4).set_column(1, "label", [[0] * 4]),
    }
    for sentence, content in bad.items():
        folder(tmp_path, train=content)
        with pytest.raises(ValueError, match=sentence):
            load_source(config, SEEDS)


def test_images_of_a_palette_are_refused(tmp_path: Path) -> None:
    """Their pixels are places in a table of colours, of the same shape and type as grayscale."""
    file = io.BytesIO()
    Image.fromarray(np.arange(9, dtype=np.uint8).reshape(3, 3)).convert("P").save(file, "png")
    config = folder(tmp_path, train=pa.table({"image": [file.getvalue()] * 4, "label": [0, 1, 0, 1]}))
    with pytest.raises(ValueError, match="mode P"):
        load_source(config, SEEDS)


def stored(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "tiff" if image.mode in ("CMYK", "F", "I") else "png")
    return file.getvalue()


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # the same brightness in 16 bits


@pytest.mark.parametrize(
    ("image", "mode", "expected"),
    [
        (Image.fromarray(RAMP), "L", RAMP),
        (Image.fromarray(RAMP), "RGB", np.stack([RAMP] * 3, 2)),
        (Image.fromarray(np.stack([RAMP] * 3, 2)), "L", RAMP),
        (Image.fromarray(RAMP).convert("P"), "L", RAMP),
        (Image.fromarray(RAMP).convert("P"), "RGB", np.stack([RAMP] * 3, 2)),
        (Image.fromarray(np.stack([RAMP, RAMP], 2)), "L", RAMP),  # grey with transparency
        (Image.fromarray(np.stack([RAMP] * 4, 2)), "RGB", np.stack([RAMP] * 3, 2)),
        (Image.fromarray(RAMP > 127), "L", np.where(RAMP > 127, 255, 0)),
        (Image.fromarray(DEEP), "L", RAMP),
        (Image.fromarray(DEEP), "RGB", np.stack([RAMP] * 3, 2)),
        (Image.fromarray(DEEP.astype(np.int32)), "L", RAMP),
    ],
)
def test_images_are_converted_as_asked(image: Image.Image, mode: str, expected: np.ndarray) -> None:
    found = decode(np.array([stored(image)], dtype=object), mode)[0]
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected.reshape(16, 16, -1))


@pytest.mark.parametrize(
    ("image", "mode", "sentence"),
    [
        (Image.fromarray(DEEP), "", "mode I;16, .* set task.mode=RGB or task.mode=L to convert it"),
        (Image.fromarray(RAMP > 127), "", "mode 1, .* set task.mode=RGB"),
        (Image.fromarray(np.stack([RAMP] * 4, 2)), "", "mode RGBA, .* set task.mode=RGB"),
        (Image.fromarray(RAMP.astype(np.float32)), "L", "mode F, whose brightest value is unknown"),
        (Image.fromarray(DEEP.astype(np.int32) * 2), "L", "values from 0 to 131070, more than 16 bits hold"),
    ],
)
def test_images_of_other_modes_are_refused(image: Image.Image, mode: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"image 0 has {sentence}" if mode == "" else sentence):
        decode(np.array([stored(image)], dtype=object), mode)


def test_grey_beside_colour_names_the_conversion(tmp_path: Path) -> None:
    path = folder(tmp_path, train=pa.concat_tables([table(6, (4, 5)), table(6, (4, 5, 3))])).path
    with pytest.raises(ValueError, match="different sizes: .* task.mode=RGB"):
        load_source(TaskConfig("folder", path), SEEDS)
    assert load_source(TaskConfig("folder", path, mode="L"), SEEDS).input_shape == (1, 4, 5)
    assert load_source(TaskConfig("folder", path, mode="RGB"), SEEDS).input_shape == (3, 4, 5)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        load_source(TaskConfig(source="folder", path=str(tmp_path / "absent")), SEEDS)
    with pytest.raises(ValueError, match="holds no parquet file"):
        load_source(TaskConfig(source="folder", path=str(tmp_path)), SEEDS)
    with pytest.raises(ValueError, match="holds no training file"):
        load_source(folder(tmp_path, test=table(3)), SEEDS)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"source": "digit"}, "task.source=digit is unknown; did you mean 'digits'?"),
        ({"source": "hub"}, "task.source=hub needs task.path"),
        ({"id_column": "writer"}, "task.id_column=writer needs task.source=folder or hub, not digits"),
        ({"mode": "L"}, "task.mode=L needs task.source=folder or hub, not digits"),
        ({"record_column": "name"}, "task.record_column=name needs task.source=folder or hub, not digits"),
        ({"source": "folder", "path": "x", "mode": "rgb"}, "task.mode=rgb is unknown; .*RGB"),
        ({"test_share": 1.0}, "task.test_share=1.0 must be above 0 and below 1"),
        ({"max_train": -1}, "task.max_train=-1 must be at least 0"),
    ],
)
def test_bad_settings(fields: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TaskConfig(**fields)


def test_hub_reads_as_a_folder_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    splits = {
        name: datasets.Dataset.from_dict(table(count, (4, 5, 3)).to_pydict(), features=images)
        for name, count in (("train", 12), ("validation", 3))
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(splits))
    hub = load_source(TaskConfig(source="hub", path="somebody/something"), SEEDS)
    local = load_source(folder(tmp_path, train=table(12, (4, 5, 3)), test=table(3, (4, 5, 3))), SEEDS)
    assert torch.equal(hub.train_inputs, local.train_inputs) and torch.equal(hub.test_inputs, local.test_inputs)
    assert torch.equal(hub.train_labels, local.train_labels)
    del splits["train"]
    with pytest.raises(ValueError, match="has no split 'train'; its splits are validation"):
        load_source(TaskConfig(source="hub", path="somebody/something"), SEEDS)


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match="task.path=a/b cannot be loaded from the hub: no route"):
        load_source(TaskConfig(source="hub", path="a/b"), SEEDS)


def write_mnist(raw: Path) -> None:
    """Ten training and four test images in the format of MNIST."""
    raw.mkdir(parents=True)
    for name, count in (("train", 10), ("t10k", 4)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 3
        headers = {"images-idx3-ubyte": (0x803, count, 28, 28), "labels-idx1-ubyte": (0x801, count)}
        for (kind, header), content in zip(headers.items(), (pixels, labels), strict=True):
            packed = struct.pack(f">{len(header)}I", *header) + content.tobytes()
            (raw / f"{name}-{kind}").write_bytes(packed)
            (raw / f"{name}-{kind}.gz").write_bytes(gzip.compress(packed))


def test_torchvision(tmp_path: Path) -> None:
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    data = load_source(TaskConfig(source="torchvision", path="FashionMNIST", root=str(tmp_path)), SEEDS)
    assert data.train_inputs.shape == (10, 1, 28, 28) and data.test_inputs.shape == (4, 1, 28, 28)
    assert data.test_labels.tolist() == [0, 1, 2, 0]


def test_torchvision_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task.path=FashionMnist is unknown; did you mean 'FashionMNIST'?"):
        load_source(TaskConfig(source="torchvision", path="FashionMnist"), SEEDS)


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="the shared MNIST folder is absent")
def test_mnist() -> None:
    data = load_source(TaskConfig(source="folder", path=str(SHARED / "mnist")), SEEDS)
    assert data.train_inputs.shape == (60000, 1, 28, 28) and data.test_inputs.shape == (10000, 1, 28, 28)
    assert data.train_labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    # MNIST's published mean and standard deviation, .1307 and .3081: a black and a white pixel
    assert data.train_inputs.min() == pytest.approx(-0.1307 / 0.3081, abs=1e-3)
    assert data.train_inputs.max() == pytest.approx((1 - 0.1307) / 0.3081, abs=1e-3)


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="the shared CIFAR-10 folder is absent")
def test_cifar10() -> None:
    task = TaskConfig(source="folder", path=str(SHARED / "cifar10"), max_train=500, max_test=100)
    data = load_source(task, SEEDS)
    assert data.input_shape == (3, 32, 32) and data.num_classes == 10
    assert torch.allclose(data.train_inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)


def test_a_folder_that_cannot_be_searched_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanished(self: Path, pattern: str) -> list[Path]:
        raise FileNotFoundError(2, "No such file or directory", "gone")

    monkeypatch.setattr(Path, "rglob", vanished)
    with pytest.raises(ValueError, match=r"cannot be searched: No such file or directory \(gone\)"):
        load_source(TaskConfig("folder", path=str(tmp_path)), Seeds(0))


@pytest.mark.parametrize("content", [b"", b"junk" * 100, None])
def test_a_file_that_is_no_parquet_file_is_named(tmp_path, content):
    path = tmp_path / "train.parquet"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match="train.parquet cannot be read as a parquet file: ") as error:
        load_source(TaskConfig("folder", str(tmp_path)), Seeds(0))
    assert "\n" not in str(error.value)
