"""What travels: everything comes back as it was sent, nothing executes, and Flower's learners can aggregate it."""

from __future__ import annotations

import io
import json
import pickle
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedforget import messages
from fedforget.data import DataConfig
from fedforget.grid import InProcessGrid
from fedforget.messages import LearnerArray, Task, Work
from fedforget.models import ModelConfig
from fedforget.params import Layout, Params
from fedforget.request import UnlearningRequest
from fedforget.routines import LocalConfig
from fedforget.seeds import Seeds
from fedforget.strategy import LEARNERS, LearningConfig, find, make_learner

quick = settings(max_examples=40, deadline=None)
PAIR = Layout(("a", "b"), ((2,), (1,)))
REQUESTS = [
    UnlearningRequest("client", (4, 1)),
    UnlearningRequest("sample", ((2, 9), (2, 3), (0, 1)), after_round=5),
    UnlearningRequest("class", (7,), after_round=1),
]

integers = st.integers(0, 10**6)
words = st.text(max_size=6)
requests = st.sampled_from(REQUESTS)
settings_ = st.one_of(integers, words, st.floats(allow_nan=False))
works = st.builds(
    Work,
    task=words,
    seeds=st.builds(Seeds, integers, st.lists(st.one_of(integers, words), max_size=3).map(tuple)),
    routine=words,
    round=integers,
    split=words,
    clients=st.lists(integers, max_size=4).map(tuple),
    removed=st.lists(requests, max_size=3).map(tuple),
    request=st.none() | requests,
    options=st.dictionaries(words, settings_ | st.lists(settings_, max_size=3).map(tuple)),
    parts=st.lists(st.tuples(integers, words, integers, integers, integers), max_size=3).map(tuple),
)


def point(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), PAIR)


# ---------------------------------------------------------------------- task and work


def test_a_task_round_trips() -> None:
    task = Task(DataConfig(), ModelConfig("cnn", 0.25), LocalConfig("adam", 0.003, epochs=4), device="cpu")
    again = Task.from_json(task.to_json())
    assert again == task
    assert again.to_json() == task.to_json()  # nodes keep what they built under this text
    other = replace(task, local=replace(task.local, lr=0.004))
    assert other.to_json() != task.to_json()


@quick
@given(works)
def test_work_round_trips(work: Work) -> None:
    assert Work.from_json(work.to_json()) == work


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.scope)
def test_requests_of_every_scope_travel(request_: UnlearningRequest) -> None:
    work = Work("{}", Seeds(1), removed=(request_, request_), request=request_)
    again = Work.from_json(work.to_json())
    assert again.request == request_ and again.removed == (request_, request_)
    assert isinstance(again.request, UnlearningRequest) and again.request.targets == request_.targets


def test_work_is_plain_json() -> None:
    work = Work("{}", Seeds(3, ("oracle", 0)), clients=(1, 2), parts=((0, "test", 0, 9, 0),))
    fields = json.loads(work.to_json())
    assert fields["seeds"] == {"root": 3, "path": ["oracle", 0]}
    assert fields["clients"] == [1, 2] and fields["parts"] == [[0, "test", 0, 9, 0]] and fields["request"] is None


# ---------------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 4), (2, 3)])
def test_arrays_round_trip(dtype: str, shape: tuple[int, ...]) -> None:
    array = (100 * Seeds(0).numpy().standard_normal(shape)).astype(dtype)
    encoded = messages.encode(array)
    assert encoded.stype == messages.RAW and len(encoded.data) == array.nbytes
    again = messages.decode(encoded)
    assert again.dtype == array.dtype and again.shape == array.shape and np.array_equal(again, array)


def test_the_encoding_is_little_endian() -> None:
    assert messages.encode(np.array([1.0], dtype=np.float32)).data == b"\x00\x00\x80\x3f"
    assert messages.encode(np.array([258], dtype=np.int64)).data == b"\x02\x01" + b"\x00" * 6


def test_arrays_that_are_not_contiguous_are_encoded_as_they_read() -> None:
    array = np.arange(12.0).reshape(3, 4)
    for view in (array.T, array[:, ::2], array[::-1]):
        assert np.array_equal(messages.decode(messages.encode(view)), view)


@pytest.mark.parametrize("dtype", ["object", "O", "int32", "bool", "<f4", "V4", "nonsense", ""])
def test_unknown_types_are_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="expected one of float16, float32, float64, int64"):
        messages.decode(Array(dtype, (1,), messages.RAW, b"\x00" * 8))


@pytest.mark.parametrize(("shape", "size"), [((2,), 4), ((2,), 12), ((1,), 3), ((-1, 3), 8), ((2, 2), 8)])
def test_bytes_that_do_not_fit_are_refused(shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(ValueError):
        messages.decode(Array("float32", shape, messages.RAW, b"\x00" * size))


def test_a_claim_of_more_memory_than_there_is_costs_none() -> None:
    """NumPy's own form is given the memory that its head claims, here 64 GB, before its end is found to be missing."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**34,)})
    for stype, shape, content in (
        ("numpy.ndarray", (1,), head.getvalue()),
        (messages.RAW, (2**34,), b"\x00" * 8),
        (messages.RAW, (2**80,), b"\x00" * 8),
        (messages.RAW, (0, 2**80), b""),
    ):
        with pytest.raises(ValueError):
            messages.decode(Array("float32", shape, stype, content))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "3", '"x"', "null", '{"3": 4}', "", "{"])
def test_a_report_that_is_none_is_one_kind_of_error(text: str) -> None:
    content = RecordDict({messages.ARRAYS: ArrayRecord(), messages.REPORT: ConfigRecord({"json": text})})
    with pytest.raises(ValueError):
        messages.unpack_reply(content)


def test_a_reply_without_its_records_is_the_same_error() -> None:
    whole = messages.pack_reply({}, {})
    for missing in (messages.ARRAYS, messages.REPORT):
        with pytest.raises(ValueError):
            messages.unpack_reply(RecordDict({name: record for name, record in whole.items() if name != missing}))
    with pytest.raises(ValueError):
        messages.unpack_reply(RecordDict({messages.ARRAYS: ArrayRecord(), messages.REPORT: ConfigRecord({"x": 1})}))


class Harmful:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_nothing_in_an_array_executes(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    np.save(tmp_path / "trap.npy", np.array([Harmful(trap)], dtype=object), allow_pickle=True)
    numpy_form = (tmp_path / "trap.npy").read_bytes()
    for stype, content in (("numpy.ndarray", numpy_form), (messages.RAW, pickle.dumps(Harmful(trap)))):
        with pytest.raises(ValueError):
            messages.decode(Array("object", (1,), stype, content))
    with pytest.raises(ValueError, match="encoded as 'pickle'"):
        messages.decode(Array("float32", (1,), "pickle", pickle.dumps(Harmful(trap))))
    assert not trap.exists()


# ---------------------------------------------------------------------- messages to nodes, and answers

SPECIAL = torch.tensor([0x7FC00123, -0x80000000, 1], dtype=torch.int32).view(torch.float32)  # NaN, -0, 1.4e-45


def test_vectors_travel_bit_for_bit() -> None:
    work = Work("{}", Seeds(1), "fedforget.routines:train", clients=(0, 3), options={"effort": 0.5})
    vectors = {"model": Params(SPECIAL, PAIR), "anchor": point(1, 2, 3)}
    again, arrays = messages.unpack(messages.pack(work, vectors))
    assert again == work and set(arrays) == {"model", "anchor"}
    assert np.array_equal(arrays["model"].view(np.int32), SPECIAL.view(torch.int32).numpy())
    assert arrays["anchor"].tolist() == [1, 2, 3] and arrays["anchor"].dtype == np.float32


def test_work_without_vectors() -> None:
    work = Work("{}", Seeds(1))
    assert messages.unpack(messages.pack(work)) == (work, {})


def test_repack_shares_the_arrays() -> None:
    content = messages.pack(Work("{}", Seeds(1), clients=(0, 1)), {"model": point(1, 2, 3)})
    other = messages.repack(content, Work("{}", Seeds(1), clients=(1,)))
    assert other.array_records[messages.ARRAYS] is content.array_records[messages.ARRAYS]
    assert messages.unpack(other)[0].clients == (1,) and messages.unpack(content)[0].clients == (0, 1)


def test_answers_round_trip() -> None:
    arrays: dict[str, NDArray] = {"3": SPECIAL.numpy(), "0/labels": np.array([1, 2]), "0/logits": np.zeros((2, 3))}
    report: dict[str, dict] = {"3": {"num_examples": 5, "loss": 0.25}, "4": {"error": "ValueError: ü"}}
    again, told = messages.unpack_reply(messages.pack_reply(arrays, report))
    assert told == report and set(again) == set(arrays)
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype and again[name].tobytes() == array.tobytes()
    assert messages.unpack_reply(messages.pack_reply({}, {})) == ({}, {})


# ---------------------------------------------------------------------- Flower's learners

# Five clients around the model (1, 10, 100); updates and weights by hand.
MODEL = point(1, 10, 100)
UPDATES = [point(0, 0, 0), point(1, -1, 2), point(2, -2, 4), point(3, -3, 6), point(100, -100, 500)]
WEIGHTS = [10, 20, 30, 40, 50]
CLIENT_MODELS = np.stack([MODEL.flat.double().numpy() + update.flat.double().numpy() for update in UPDATES])


def one_round(name: str, **options: float) -> Params:
    """A learner's first round with the five clients, as a strategy drives it."""
    learner = make_learner(LearningConfig(name, options))
    grid = InProcessGrid(ClientApp(), num_nodes=5)  # here only a list of five nodes
    asked = list(learner.configure_train(1, messages.to_learner(MODEL), ConfigRecord(), grid))
    asked.sort(key=lambda message: message.metadata.dst_node_id)
    assert [message.metadata.dst_node_id for message in asked] == [1, 2, 3, 4, 5]
    replies = messages.learner_replies(
        dict(enumerate(asked)), MODEL, dict(enumerate(UPDATES)), dict(enumerate(WEIGHTS))
    )
    aggregated, _ = learner.aggregate_train(1, replies)
    assert aggregated is not None
    return messages.from_learner(aggregated, PAIR)


@pytest.mark.parametrize("name", list(LEARNERS))
def test_every_learner_aggregates_our_replies(name: str) -> None:
    options = {"proximal_mu": 0.1} if name == "fedprox" else {}
    result = one_round(name, **options)
    assert result.is_finite() and result.layout == PAIR and result.flat.dtype == torch.float32
    # All updates point to (+, -, +), so whatever the learner, so does the step. Krum may choose client 0, who stays.
    step = (result - MODEL).flat * torch.tensor([1.0, -1.0, 1.0])
    assert bool((step >= 0).all()) and (name == "krum" or bool((step > 0).all()))


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_averaging_learners_give_the_weighted_mean(name: str) -> None:
    options = {"proximal_mu": 0.1} if name == "fedprox" else {}
    # Weights 1 2 3 4 5 of 15: a = (0 + 2 + 6 + 12 + 500) / 15 = 520 / 15; b = -a; c = (0 + 4 + 12 + 24 + 2500) / 15.
    expected = [1 + 520 / 15, 10 - 520 / 15, 100 + 2540 / 15]
    assert one_round(name, **options).flat.tolist() == pytest.approx(expected, rel=1e-7)


def test_robust_learners_by_hand() -> None:
    assert one_round("median").flat.tolist() == [3, 8, 104]
    # A fifth is cut off at either end: the mean of clients 1, 2 and 3, unweighted.
    assert one_round("trimmed_mean", beta=0.2).flat.tolist() == [3, 8, 104]
    # Krum returns one client's model as it is; the outlier never.
    assert one_round("krum", num_malicious_nodes=1).flat.tolist() in CLIENT_MODELS[:4].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_fedavg_gives_the_float64_mean(seed: int) -> None:
    """The mean is taken in float64 of ``model + update`` in float64, and rounded once, to float32."""
    generator = Seeds(seed).torch()
    layout = Layout(("w",), ((1000,),))
    model = Params(torch.randn(1000, generator=generator), layout)
    updates = [Params(1e-4 * torch.randn(1000, generator=generator), layout) for _ in range(5)]
    learner = make_learner(LearningConfig("fedavg"))
    grid = InProcessGrid(ClientApp(), num_nodes=5)
    asked = list(learner.configure_train(1, messages.to_learner(model), ConfigRecord(), grid))
    replies = messages.learner_replies(
        dict(enumerate(asked)), model, dict(enumerate(updates)), dict(enumerate(WEIGHTS))
    )
    aggregated, _ = learner.aggregate_train(1, replies)
    assert aggregated is not None
    mean = np.zeros(1000)
    for update, weight in zip(updates, WEIGHTS, strict=True):
        mean += (model.flat.numpy().astype(np.float64) + update.flat.numpy()) * (weight / 150)
    assert np.array_equal(aggregated["0"].numpy(), mean)
    assert torch.equal(messages.from_learner(aggregated, layout).flat, torch.from_numpy(mean).float())


def test_a_learners_array_holds_the_client_model_and_no_bytes() -> None:
    array = LearnerArray(np.array([1.0, 2.0, 3.0]), np.array([0.5, -1, 2**-30], dtype=np.float32))
    assert array.numpy().dtype == np.float64
    assert array.numpy().tolist() == [1.5, 1.0, 3 + 2**-30]  # the last would be lost in float32
    assert array.data == b"" and tuple(array.shape) == (3,)


def test_a_learner_gets_the_model_exactly() -> None:
    model = Params(torch.tensor([1 / 3, -0.0, 1e-45]), PAIR)
    arrays = messages.to_learner(model)
    assert arrays["0"].numpy().dtype == np.float64
    assert torch.equal(messages.from_learner(arrays, PAIR).flat, model.flat)


def test_a_model_that_a_learner_left_alone_is_not_copied_and_any_other_is() -> None:
    size = messages.LEARNER_BLOCK
    layout = Layout(("a",), ((2 * size,),))
    model = Params(torch.arange(2.0 * size), layout)
    assert messages.from_learner(messages.to_learner(model), layout).flat is model.flat
    swapped = messages.to_learner(model)
    swapped["0"], swapped["1"] = swapped["1"], swapped["0"]
    assert torch.equal(messages.from_learner(swapped, layout).flat, model.flat.roll(size))
    changed = messages.to_learner(model)
    changed["1"] = Array(changed["1"].numpy() + 1)
    assert torch.equal(messages.from_learner(changed, layout).flat[size:], model.flat[size:] + 1)
    double = messages.from_learner(messages.to_learner(model.double()), layout)
    assert double.flat.dtype == torch.float32 and double.equals(model)


def test_a_long_vector_travels_to_learners_in_blocks() -> None:
    size = 2 * messages.LEARNER_BLOCK + 3
    layout = Layout(("w",), ((size,),))
    model, update = (Params(torch.randn(size, generator=torch.Generator().manual_seed(s)), layout) for s in (0, 1))
    InProcessGrid(ClientApp())  # Flower's messages need to know which process they are made in
    asked = make_learner(LearningConfig()).configure_train(1, messages.to_learner(model), ConfigRecord(), OneNode())
    replies = messages.learner_replies(dict(enumerate(asked)), model, {0: update}, {0: 5})
    aggregated, _ = make_learner(LearningConfig()).aggregate_train(1, replies)
    assert aggregated is not None and len(aggregated) == 3
    assert torch.equal(messages.from_learner(aggregated, layout).flat, (model.flat.double() + update.flat).float())


class OneNode(InProcessGrid):
    def __init__(self) -> None:
        super().__init__(ClientApp())


def test_one_thread_at_a_time_reads_what_a_learner_keeps() -> None:
    """Flower reads arrays with numpy.load, which is not safe in two threads on every Python (`messages.READING`)."""
    here, most = 0, 0

    class Watched(Array):
        def numpy(self) -> NDArray:
            nonlocal here, most
            here += 1
            most = max(most, here)
            time.sleep(0.02)
            here -= 1
            return np.zeros(2)

    arrays = ArrayRecord()
    arrays["0"] = Watched(np.zeros(2))

    class Reads(find("none")):  # type: ignore[misc]
        """A strategy that reads replies by itself."""

        def configure_train(self, *_: object) -> list[Message]:
            return []

        def aggregate_train(self, server_round: int, replies: list[Message]) -> tuple[ArrayRecord, None]:
            arrays["0"].numpy()
            return arrays, None

    layout = Layout(("w",), (torch.Size([2]),))
    model = Params(torch.zeros(2), layout)

    def learns() -> None:
        cohort = SimpleNamespace(notes=[], send_and_receive=lambda asked: [])
        list(Reads().learn(cohort, model, 2))

    calls = [lambda: messages.from_learner(arrays, layout), learns] * 2
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_replies_name_the_client_they_come_from() -> None:
    InProcessGrid(ClientApp())  # Flower's messages need to know which process they are made in
    message = Message(RecordDict({"arrays": messages.to_learner(MODEL)}), 7, messages.TRAIN)
    (reply,) = messages.learner_replies({7: message}, MODEL, {7: UPDATES[1]}, {7: 20})
    assert reply.metadata.src_node_id == 7
    [metrics] = reply.content.metric_records.values()
    assert dict(metrics) == {"num-examples": 20}
    [arrays] = reply.content.array_records.values()
    assert isinstance(arrays, ArrayRecord) and list(arrays) == ["0"]


def test_settings_that_a_learner_sends_along() -> None:
    config = ConfigRecord({"proximal-mu": 0.5, "server-round": 3, "note": "x", "blob": b"x", "list": [1, 2]})
    content = RecordDict({"arrays": ArrayRecord(), "config": config})
    assert messages.learner_options(content) == {"proximal-mu": 0.5, "server-round": 3, "note": "x"}
    assert messages.learner_options(RecordDict({"arrays": ArrayRecord()})) == {}
