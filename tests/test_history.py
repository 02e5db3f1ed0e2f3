"""The trajectory on disk: what is kept of an update, what is billed, what a strategy may read, and resuming."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedforget.exchange import Card, Replies, Reply
from fedforget.history import (
    FileJournal,
    History,
    HistoryConfig,
    Recording,
    compress,
    decompress,
    find_recording,
)
from fedforget.ledger import Cost
from fedforget.params import Layout, Params
from fedforget.seeds import Seeds
from fedforget.store import DamagedFile, Store

quick = settings(max_examples=40, deadline=None)
SEEDS = Seeds(3).child("prune")
TEN = Layout(("a", "b"), ((2, 4), (2,)))  # layers of 8 and 2 entries
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def ten(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), TEN)


UPDATE = ten(0.5, -4.0, 1.0, 0.25, -2.0, 8.0, 0.125, -1.0, 3.0, -6.0)


def bytes_of(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


# ---------------------------------------------------------------------- what is kept of an update


@pytest.mark.parametrize("dtype", list(TYPES))
def test_without_pruning_an_update_is_rounded_once(dtype: str) -> None:
    config = HistoryConfig(dtype=dtype)
    update = Params(torch.randn(10, generator=Seeds(0).torch()), TEN)
    stored = compress(update, config, SEEDS)
    assert list(stored) == ["values"] and stored["values"].dtype == TYPES[dtype]
    restored = decompress(stored, TEN, config, SEEDS)
    assert restored.flat.dtype == torch.float32
    assert torch.equal(restored.flat, update.flat.to(TYPES[dtype]).float())


def test_full_float32_is_bit_for_bit() -> None:
    bits = torch.tensor([0x7FC00123, -0x80000000, 1, 0x7F800000] + [0x3F800001] * 6, dtype=torch.int32)
    update = Params(bits.view(torch.float32), TEN)  # a NaN with a payload, -0, the smallest number, infinity
    restored = decompress(compress(update, HistoryConfig(), SEEDS), TEN, HistoryConfig(), SEEDS)
    assert torch.equal(restored.flat.view(torch.int32), bits)


def test_pruning_by_hand() -> None:
    # Half of each layer: 4 of 8 entries and 1 of 2. Magnitudes of a: .5 4 1 .25 2 8 .125 1; of b: 3 6.
    top = HistoryConfig(keep=0.5, select="top")
    restored = decompress(compress(UPDATE, top, SEEDS), TEN, top, SEEDS)
    # 8, 4 and 2 are kept; of the two entries of magnitude 1 the first.
    assert restored.flat.tolist() == [0, -4, 1, 0, -2, 8, 0, 0, 0, -6]
    bottom = HistoryConfig(keep=0.5, select="bottom")
    restored = decompress(compress(UPDATE, bottom, SEEDS), TEN, bottom, SEEDS)
    # .125, .25 and .5 are kept, and again the first entry of magnitude 1.
    assert restored.flat.tolist() == [0.5, 0, 1, 0.25, 0, 0, 0.125, 0, 3, 0]


@pytest.mark.parametrize("select", ["top", "random", "bottom"])
@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (0.01, (1, 1)),  # 0.08 and 0.02: at least one
        (0.25, (2, 1)),
        (0.5, (4, 1)),
        (0.7, (6, 1)),  # 5.6 and 1.4
        (0.9, (7, 2)),  # 7.2 and 1.8
    ],
)
def test_each_layer_keeps_its_own_share(select: str, keep: float, kept: tuple[int, int]) -> None:
    """``max(1, round(keep * size))`` entries of layers of 8 and 2; no entry of the update is zero."""
    config = HistoryConfig(keep=keep, select=select)
    stored = compress(UPDATE, config, SEEDS)
    restored = decompress(stored, TEN, config, SEEDS).layers()
    assert tuple(int((layer != 0).sum()) for layer in restored.values()) == kept
    assert len(stored["values"]) == sum(kept)


@pytest.mark.parametrize("select", ["top", "bottom"])
def test_of_equal_entries_the_first_are_kept(select: str) -> None:
    # Enough entries that a sort which is not stable would mix them.
    level = Params(torch.ones(4096), Layout(("w",), ((4096,),)))
    config = HistoryConfig(keep=0.25, select=select)
    restored = decompress(compress(level, config, SEEDS), level.layout, config, SEEDS)
    assert restored.flat.tolist() == [1.0] * 1024 + [0.0] * 3072


@quick
@given(
    st.lists(st.floats(-100, 100, width=16), min_size=10, max_size=10),
    st.sampled_from(["top", "random", "bottom"]),
    st.sampled_from(list(TYPES)),
    st.floats(0.01, 0.99),
)
def test_kept_entries_are_exact_and_the_rest_is_zero(values: list[float], select: str, dtype: str, keep: float) -> None:
    update, config = ten(*values), HistoryConfig(dtype=dtype, keep=keep, select=select)
    restored = decompress(compress(update, config, SEEDS), TEN, config, SEEDS)
    rounded = update.flat.to(TYPES[dtype]).float()
    assert bool(((restored.flat == rounded) | (restored.flat == 0)).all())
    for whole, part in zip(update.layers().values(), restored.layers().values(), strict=True):
        kept, dropped = whole[part != 0].abs(), whole[part == 0].abs()
        if select == "top" and len(kept) and len(dropped):
            assert kept.min() >= dropped.max()
        # An entry that is itself zero is kept or dropped unseen, so "bottom" is judged by the layers without zeros.
        if select == "bottom" and len(kept) and len(dropped) and bool((whole != 0).all()):
            assert kept.max() <= dropped.min()


def test_a_random_choice_belongs_to_its_stream() -> None:
    config = HistoryConfig(keep=0.5, select="random")

    def kept(seeds: Seeds) -> list[bool]:
        return (decompress(compress(UPDATE, config, seeds), TEN, config, seeds).flat != 0).tolist()

    assert kept(SEEDS) == kept(SEEDS)
    assert len({tuple(kept(SEEDS.child(1, client))) for client in range(8)}) > 4
    # Read with other streams, the values would land elsewhere: the stream is part of what is stored.
    mine, other = SEEDS.child(1, 0), SEEDS.child(1, 1)
    stored = compress(UPDATE, config, mine)
    assert not decompress(stored, TEN, config, other).equals(decompress(stored, TEN, config, mine))


@pytest.mark.parametrize("select", ["top", "bottom"])
def test_bytes_of_a_pruned_update(select: str) -> None:
    # 10 entries, 5 kept: 5 float32 values and a bitmap of ceil(10 / 8) = 2 bytes (indices would take 20).
    stored = compress(UPDATE, HistoryConfig(keep=0.5, select=select), SEEDS)
    assert set(stored) == {"values", "bitmap"} and bytes_of(stored) == 5 * 4 + 2
    stored = compress(UPDATE, HistoryConfig(keep=0.5, select=select, dtype="bfloat16"), SEEDS)
    assert bytes_of(stored) == 5 * 2 + 2
    # 3,200 entries, 64 kept: indices take 256 bytes, a bitmap would take 400. With 128 kept the bitmap is shorter.
    wide = Layout(("w",), ((3200,),))
    update = Params(torch.randn(3200, generator=Seeds(1).torch()), wide)
    stored = compress(update, HistoryConfig(keep=0.02, select=select), SEEDS)
    assert set(stored) == {"values", "indices"} and bytes_of(stored) == 64 * 4 + 64 * 4
    stored = compress(update, HistoryConfig(keep=0.04, select=select), SEEDS)
    assert set(stored) == {"values", "bitmap"} and bytes_of(stored) == 128 * 4 + 400


@pytest.mark.parametrize("keep", [0.02, 0.04])
def test_both_forms_of_positions_read_back(keep: float) -> None:
    wide = Layout(("v", "w"), ((1,), (3200,)))
    update = Params(torch.randn(3201, generator=Seeds(1).torch()), wide)
    config = HistoryConfig(keep=keep, select="top")
    restored = decompress(compress(update, config, SEEDS), wide, config, SEEDS)
    expected = torch.zeros(3201)
    expected[0] = update.flat[0]
    largest = 1 + np.argsort(-update.flat[1:].abs().numpy())[: round(keep * 3200)]
    expected[largest] = update.flat[largest]
    assert torch.equal(restored.flat, expected)


def test_a_random_choice_stores_values_only() -> None:
    stored = compress(UPDATE, HistoryConfig(keep=0.5, select="random", dtype="float16"), SEEDS)
    assert list(stored) == ["values"] and bytes_of(stored) == 5 * 2


@pytest.mark.parametrize(
    ("form", "share"),
    [
        ({}, 1.0),
        ({"keep": 0.05}, 0.05 + 1 / 32),  # values and a bitmap
        ({"keep": 0.02}, 2 * 0.02),  # values and indices
        ({"keep": 0.05, "select": "random"}, 0.05),  # values alone
        ({"keep": 0.05, "dtype": "bfloat16"}, 0.05 / 2 + 1 / 32),
    ],
)
def test_pruned_updates_are_as_much_smaller_on_disk(tmp_path: Path, form: dict[str, Any], share: float) -> None:
    layout = Layout(("w",), ((200, 200),))
    vectors = [Params(torch.randn(40_000, generator=Seeds(i).torch()), layout) for i in range(3)]
    recording = Recording(tmp_path, layout, HistoryConfig("all", **form), (), Seeds(3))
    recording.add(1, vectors[0], Replies(Reply(k, vectors[k], 1, 0.0) for k in (1, 2)), [], last=True)
    on_disk = recording.path(1).stat().st_size - 4 * 40_000  # without the global model
    assert on_disk == pytest.approx(2 * share * 4 * 40_000, abs=1000)  # names and a checksum


# ---------------------------------------------------------------------- recordings

PAIR = Layout(("a", "b"), ((2,), (1,)))  # 3 entries are 12 bytes
SIZES = {0: 30, 1: 10, 2: 20}


def point(*values: float) -> Params:
    return Params(torch.tensor(values, dtype=torch.float32), PAIR)


def model(round: int) -> Params:
    return point(round, 10 * round, -round)


def update(round: int, client: int) -> Params:
    return point(round + 0.5, client + 0.25, -client)


def replies(round: int) -> Replies:
    """Clients 0 and 1 take part in odd rounds, all three in even ones."""
    cohort = [client for client in SIZES if client < 2 or round % 2 == 0]
    return Replies(Reply(client, update(round, client), SIZES[client], 0.5) for client in cohort)


def record(folder: Path, level: str, rounds: int = 4, targets: tuple[int, ...] = (1,), **form: Any) -> Recording:
    config = HistoryConfig(level, **form)
    recording = Recording(folder, PAIR, config, targets if level == "targets" else (), Seeds(3))
    recording.begin(model(0))
    for round in range(1, rounds + 1):
        recording.add(round, model(round), replies(round), [f"note {round}"], last=round == rounds)
    recording.finish(rounds, Cost(rounds=rounds, bytes_up=7))
    return recording


def history(recording: Recording, card: Card | None = None, **fields: Any) -> History:
    rounds, _ = recording.summary()
    return History(recording, rounds, model(rounds), card, **fields)


def test_what_was_recorded_reads_back(tmp_path: Path) -> None:
    seen = history(record(tmp_path, "all"))
    assert seen.initial.equals(model(0))
    for round in range(5):
        assert seen.model(round).equals(model(round))
    assert seen.weights(1) == {0: 30, 1: 10} and seen.weights(2) == {0: 30, 1: 10, 2: 20}
    assert seen.cohort(1) == (0, 1) and seen.cohort(4) == (0, 1, 2)
    for round in range(1, 5):
        for client in seen.cohort(round):
            assert seen.update(round, client).equals(update(round, client))
    assert seen.recording.load(3)[1]["notes"] == ["note 3"]
    assert seen.recording.summary() == (4, Cost(rounds=4, bytes_up=7))
    seen.recording.verify()


def test_two_digit_clients_stay_in_numerical_order_and_apart(tmp_path: Path) -> None:
    recording = Recording(tmp_path, PAIR, HistoryConfig("all"), (), Seeds(3))
    recording.begin(model(0))
    crowd = Replies(Reply(client, update(1, client), client + 1, 0.0) for client in (1, 2, 10, 11, 100))
    recording.add(1, model(1), crowd, [], last=True)
    recording.finish(1, Cost())
    seen = history(recording)
    assert seen.cohort(1) == (1, 2, 10, 11, 100)
    assert seen.weights(1) == {1: 2, 2: 3, 10: 11, 11: 12, 100: 101}
    for client in seen.cohort(1):
        assert seen.update(1, client).equals(update(1, client))


def test_a_pruned_recording_reads_back(tmp_path: Path) -> None:
    # Half of layers of 2 and 1 entries is one entry each, of (1.5, 0.25 | 0) and (2.5, 2.25 | -2).
    recording = record(tmp_path, "all", keep=0.5, select="top", dtype="bfloat16")
    assert recording.update(1, 0).flat.tolist() == [1.5, 0, 0]
    assert recording.update(2, 2).flat.tolist() == [2.5, 0, -2]
    recording = record(tmp_path / "random", "all", keep=0.5, select="random")
    for client in (0, 1, 2):
        kept = recording.update(2, client).flat
        assert bool(((kept == update(2, client).flat) | (kept == 0)).all()) and int((kept[:2] != 0).sum()) == 1


def test_levels_of_recording(tmp_path: Path) -> None:
    names = {
        level: [sorted(record(tmp_path / level, level).load(round)[0]) for round in range(5)]
        for level in ("nothing", "globals", "targets", "all")
    }
    only, targets = ["global"], ["1/values", "global"]
    odd, even = ["0/values", "1/values", "global"], ["0/values", "1/values", "2/values", "global"]
    assert names == {
        "nothing": [only, [], [], [], only],  # where learning started and ended
        "globals": [only] * 5,
        "targets": [only] + [targets] * 4,
        "all": [only, odd, even, odd, even],
    }


def test_a_recording_is_complete_only_when_finished(tmp_path: Path) -> None:
    recording = Recording(tmp_path, PAIR, HistoryConfig("globals"), (), Seeds(3))
    recording.begin(model(0))
    recording.add(1, model(1), replies(1), [], last=False)
    assert not recording.is_complete
    # The process dies here; another one finds the rounds done and goes on.
    resumed = Recording(tmp_path, PAIR, HistoryConfig("globals"), (), Seeds(3))
    assert not resumed.is_complete
    assert torch.equal(resumed.load(1)[0]["global"], model(1).flat)
    resumed.add(2, model(2), replies(2), [], last=True)
    resumed.finish(2, Cost(rounds=2))
    assert recording.is_complete and recording.summary() == (2, Cost(rounds=2))


def test_a_round_that_is_recorded_again_reads_as_the_new_one(tmp_path: Path) -> None:
    recording = record(tmp_path, "globals", rounds=2)
    recording.load(1)
    recording.add(1, model(9), replies(1), [], last=False)
    assert torch.equal(recording.load(1)[0]["global"], model(9).flat)


def test_what_was_read_can_be_changed_without_changing_the_record(tmp_path: Path) -> None:
    recording = record(tmp_path, "all")
    seen = history(recording)
    seen.model(2).flat.zero_()
    seen.update(2, 1).flat.zero_()
    assert seen.model(2).equals(model(2)) and seen.update(2, 1).equals(update(2, 1))


@pytest.mark.parametrize("round", [0, 2, 4])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_verify_names_the_first_damaged_file(tmp_path: Path, round: int, damage: str) -> None:
    recording = record(tmp_path, "all")
    recording.verify()
    path = tmp_path / f"round-{round:05d}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-5])
    with pytest.raises(DamagedFile, match=path.name):
        recording.verify()


def test_damage_is_found_in_a_file_that_was_read_before(tmp_path: Path) -> None:
    recording = record(tmp_path, "globals", rounds=2)
    recording.verify()
    (tmp_path / "round-00001.safetensors").write_bytes(b"x")
    with pytest.raises(DamagedFile, match="round-00001"):
        recording.verify()


def test_the_bill_reads_no_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round's file holds the updates of all its clients, so only a strategy that wants them may read it."""
    seen = history(record(tmp_path, "all", rounds=9), Card("all"), targets=(2,))
    seen.recording.verify()
    stored, residues = seen.bytes_stored(), seen.residues()
    monkeypatch.setattr(Recording, "load", lambda *_: pytest.fail("a round was read"))
    assert seen.bytes_stored() == stored and seen.residues() == residues
    assert seen.cohort(8) == (0, 1, 2)


# ---------------------------------------------------------------------- what a strategy may read

READS = {
    "globals": lambda seen: seen.model(2),
    "targets": lambda seen: seen.update(2, 1),
    "all": lambda seen: seen.update(2, 0),
}
LEVELS = ["nothing", "globals", "targets", "all"]


@pytest.mark.parametrize("needs", list(READS))
@pytest.mark.parametrize("declares", LEVELS)
def test_history_refuses_what_the_card_did_not_declare(tmp_path: Path, needs: str, declares: str) -> None:
    seen = history(record(tmp_path, "all"), Card(records=declares), targets=(1,))
    if LEVELS.index(declares) >= LEVELS.index(needs):
        READS[needs](seen)
    else:
        with pytest.raises(ValueError, match=f"card declares records='{declares}'"):
            READS[needs](seen)


def test_history_refuses_what_the_card_is_not_billed_for(tmp_path: Path) -> None:
    recording = record(tmp_path, "all")
    updates = history(recording, Card(records="all", storage="updates"))
    assert updates.update(2, 0) is not None
    with pytest.raises(ValueError, match="the global model of round 2, but its card declares storage='updates'"):
        updates.model(2)
    seldom = history(recording, Card(records="all", every=2))
    assert seldom.update(3, 0) is not None and seldom.model(0).equals(model(0))
    for read in (lambda: seldom.update(2, 0), lambda: seldom.model(4)):
        with pytest.raises(ValueError, match="but its card declares every=2"):
            read()


def test_what_every_strategy_may_read(tmp_path: Path) -> None:
    seen = history(record(tmp_path, "nothing"), Card(records="nothing"))
    assert seen.initial.equals(model(0)) and seen.final.equals(model(4))
    assert seen.weights(2) == {0: 30, 1: 10, 2: 20}


def test_a_client_that_took_no_part_has_no_update(tmp_path: Path) -> None:
    seen = history(record(tmp_path, "all"), Card(records="all"))
    with pytest.raises(ValueError, match=r"client 2 took no part in round 1; its cohort was \(0, 1\)"):
        seen.update(1, 2)


def test_clients_of_earlier_requests_are_gone(tmp_path: Path) -> None:
    seen = history(record(tmp_path, "all"), Card(records="all"), removed=frozenset({0}))
    assert seen.cohort(2) == (1, 2) and seen.weights(1) == {1: 10}
    assert seen.examples(1) == sum(history(record(tmp_path, "all")).weights(1).values()) > 10  # what went in, went in
    with pytest.raises(ValueError, match="client 0 took no part"):
        seen.update(2, 0)


# ---------------------------------------------------------------------- the bill


@pytest.mark.parametrize("recorded", LEVELS)
def test_bytes_stored_by_hand(tmp_path: Path, recorded: str) -> None:
    """4 rounds, vectors of 12 bytes: 5 global models, 4 updates of client 1, 4 of client 0 and 2 of client 2."""
    recording = record(tmp_path, recorded)
    needs = {"nothing": 0, "globals": 5 * 12, "targets": (5 + 4) * 12, "all": (5 + 4 + 4 + 2) * 12}
    for level in LEVELS[: LEVELS.index(recorded) + 1]:
        # A richer recording costs a strategy no more than what it asked for.
        assert history(recording, Card(records=level), targets=(1,)).bytes_stored() == needs[level], level


@pytest.mark.parametrize(
    ("every", "stored"),
    [
        (1, 15),
        # Rounds 0, 1 and 3: three global models, updates of clients 0 and 1 in rounds 1 and 3.
        (2, 3 + 4),
        # Rounds 0, 1 and 4: three global models, two updates in round 1, three in round 4.
        (3, 3 + 5),
        # Rounds 0 and 1.
        (4, 2 + 2),
        (100, 2 + 2),
    ],
)
def test_only_every_so_many_rounds_are_billed(tmp_path: Path, every: int, stored: int) -> None:
    seen = history(record(tmp_path, "all"), Card(records="all", every=every))
    assert seen.bytes_stored() == 12 * stored


def test_compressed_records_are_billed_compressed(tmp_path: Path) -> None:
    # bfloat16, half of layers of 2 and 1: 2 values of 2 bytes and a bitmap of 1 byte an update; models stay float32.
    seen = history(record(tmp_path, "all", keep=0.5, dtype="bfloat16"), Card(records="all"))
    assert seen.bytes_stored() == 5 * 12 + 10 * (2 * 2 + 1)
    seen = history(record(tmp_path / "r", "all", keep=0.5, select="random"), Card(records="all"))
    assert seen.bytes_stored() == 5 * 12 + 10 * 2 * 4


def test_only_rounds_before_the_request_are_billed(tmp_path: Path) -> None:
    recording = record(tmp_path, "globals")
    assert History(recording, 2, model(2), Card(records="globals")).bytes_stored() == 3 * 12


# ---------------------------------------------------------------------- finding a recording


def need(store: Store, level: str, targets: tuple[int, ...] = (), **form: Any) -> Recording:
    return find_recording(store, "key", PAIR, HistoryConfig(level, **form), targets, Seeds(3))


def make(store: Store, level: str, targets: tuple[int, ...] = (), **form: Any) -> Recording:
    return record(need(store, level, targets, **form).folder, level, targets=targets, **form)


@pytest.mark.parametrize("made", LEVELS)
@pytest.mark.parametrize("asked", LEVELS)
def test_a_richer_recording_serves_a_poorer_need_and_not_vice_versa(tmp_path: Path, made: str, asked: str) -> None:
    store = Store(tmp_path)
    targets = {level: (1,) if level == "targets" else () for level in LEVELS}
    existing = make(store, made, targets[made])
    found = need(store, asked, targets[asked])
    if LEVELS.index(made) >= LEVELS.index(asked):
        assert found.is_complete and found.folder == existing.folder and found.config.record == made
        found.verify()
    else:
        assert not found.is_complete and found.folder != existing.folder and found.config.record == asked


def test_a_recording_of_some_targets_serves_fewer_targets(tmp_path: Path) -> None:
    store = Store(tmp_path)
    both = make(store, "targets", (0, 1))
    for targets in ((0,), (1,), (0, 1)):
        found = need(store, "targets", targets)
        assert found.is_complete and found.folder == both.folder and found.targets == (0, 1)
    assert not need(store, "targets", (1, 2)).is_complete
    assert not need(store, "targets", (2,)).is_complete


def test_a_recording_for_no_target_and_one_for_very_many_are_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for targets in ((), tuple(range(1000))):
        made = make(store, "targets", targets)
        found = need(store, "targets", targets)
        assert found.is_complete and found.folder == made.folder and found.targets == targets


def test_a_recording_whose_last_file_is_damaged_is_found_so_that_it_can_be_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make(store, "all")
    (made.folder / "complete.json").write_text("{}")
    found = need(store, "globals")
    assert found.folder == made.folder and found.is_complete
    with pytest.raises(DamagedFile, match="complete.json"):
        found.verify()


def test_an_unfinished_recording_serves_only_its_own_need(tmp_path: Path) -> None:
    store = Store(tmp_path)
    started = need(store, "all")
    started.begin(model(0))
    assert need(store, "all").folder == started.folder  # it is the one to go on with
    assert need(store, "globals").folder != started.folder


@pytest.mark.parametrize(
    ("made", "asked"),
    [
        ({}, {"dtype": "bfloat16"}),
        ({"dtype": "bfloat16"}, {}),
        ({"keep": 0.5}, {}),
        ({}, {"keep": 0.5}),
        ({"keep": 0.55}, {"keep": 0.5}),
        ({"keep": 0.5}, {"keep": 0.55}),
        ({"keep": 0.5, "select": "random"}, {"keep": 0.5}),
    ],
)
@pytest.mark.parametrize("level", ["targets", "all"])
def test_updates_in_another_form_do_not_serve(
    tmp_path: Path, level: str, made: dict[str, Any], asked: dict[str, Any]
) -> None:
    store, targets = Store(tmp_path), (1,) if level == "targets" else ()
    existing = make(store, level, targets, **made)
    found = need(store, level, targets, **asked)
    assert not found.is_complete and found.folder != existing.folder


def test_the_form_of_updates_does_not_matter_where_none_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make(store, "globals", dtype="bfloat16", keep=0.5)
    assert need(store, "globals").folder == made.folder and need(store, "globals").is_complete


def test_trajectories_do_not_mix(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make(store, "all")
    other = find_recording(store, "another key", PAIR, HistoryConfig("nothing"), (), Seeds(3))
    assert not other.is_complete


# ---------------------------------------------------------------------- the journal of exchanges


def exchange(number: int) -> tuple[Replies, Cost, dict[int, str]]:
    return replies(number), Cost(rounds=1, client_steps=number, seconds=0.1), {2: f"left out in {number}"}


def test_exchanges_round_trip(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal")
    assert journal.get(1) is None
    for number in (1, 2, 10):
        journal.put(number, exchange(number))
    again = FileJournal(tmp_path / "journal")
    for number in (1, 2, 10):
        found = again.get(number)
        assert found is not None
        got, cost, left_out = found
        expected = exchange(number)
        assert (cost, left_out) == expected[1:]
        assert isinstance(got, Replies) and [r.client for r in got] == [r.client for r in expected[0]]
        for one, other in zip(got, expected[0], strict=True):
            assert one.update.equals(other.update)
            assert (one.num_examples, one.loss) == (other.num_examples, other.loss)
    assert again.get(3) is None


def test_replies_come_back_in_client_order(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    crowd = Replies(Reply(client, update(1, client), client, 0.0) for client in (2, 9, 10, 100))
    journal.put(1, (crowd, Cost(), {}))
    found = journal.get(1)
    assert found is not None and [reply.client for reply in found[0]] == [2, 9, 10, 100]


def test_an_exchange_without_replies_is_remembered(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    journal.put(1, (Replies(), Cost(rounds=1), {}))
    assert journal.get(1) == (Replies(), Cost(rounds=1), {})


def test_a_loss_that_is_no_number_is_remembered(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    journal.put(1, (Replies([Reply(0, update(1, 0), 3, math.nan)]), Cost(), {}))
    found = journal.get(1)
    assert found is not None and math.isnan(found[0][0].loss)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_exchange_is_asked_for_again(tmp_path: Path, damage: str) -> None:
    """So is what followed it: another client may be left out of the second attempt, and what was asked afterwards was
    asked of a model made from the first one's answers."""
    said: list[str] = []
    journal = FileJournal(tmp_path, said.append)
    for number in (1, 2, 3, 10):
        journal.put(number, exchange(number))
    path = tmp_path / "000002.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 16
    path.write_bytes({"flip": content, "truncate": content[:-3], "empty": bytearray()}[damage])
    assert journal.get(1) is not None
    assert journal.get(2) is None
    assert len(said) == 1 and said[0].startswith(f"  note: {path} is damaged (")
    assert [file.name for file in tmp_path.iterdir()] == ["000001.safetensors"]
    journal.put(2, exchange(2))
    assert journal.get(2) is not None and journal.get(3) is None


# ---------------------------------------------------------------------- what a card says a server would keep


@pytest.mark.parametrize(("keep", "select"), [(0.5, "top"), (0.3, "random"), (0.3, "bottom")])
def test_a_card_prunes_what_was_recorded_whole(tmp_path: Path, keep: float, select: str) -> None:
    """One whole recording serves every share: it reads, and is billed, as if it had been recorded pruned."""
    whole, pruned = record(tmp_path / "w", "all"), record(tmp_path / "p", "all", keep=keep, select=select)
    card = Card(records="all", keep=keep, select=select)
    seen, expected = history(whole, card), history(pruned, Card(records="all"))
    for round in range(1, 5):
        for client in seen.cohort(round):
            assert seen.update(round, client).equals(expected.update(round, client))
    assert seen.bytes_stored() == expected.bytes_stored()


def test_a_card_that_keeps_more_than_was_recorded_reads_the_record(tmp_path: Path) -> None:
    pruned = record(tmp_path, "all", keep=0.5, select="bottom")
    seen = history(pruned, Card(records="all", keep=0.7, select="top"))
    assert seen.update(2, 2).equals(pruned.update(2, 2))


def test_updates_are_billed_for_every_client_and_without_models(tmp_path: Path) -> None:
    # Clients 0 and 1 in odd rounds, all in even ones: 10 updates of 12 bytes, though only client 1's are on the disk.
    recording = record(tmp_path, "targets")
    card = Card(records="targets", storage="updates")
    assert history(recording, card, targets=(1,)).bytes_stored() == 10 * 12
    # One entry of each layer, 2 of 3, and a bitmap of one byte; every other round has 4 updates.
    assert history(recording, replace(card, keep=0.5), targets=(1,)).bytes_stored() == 10 * (2 * 4 + 1)
    assert history(recording, replace(card, every=2), targets=(1,)).bytes_stored() == 4 * 12


@pytest.mark.parametrize(("rounds", "clients"), [(1, 2), (4, 3)])
@pytest.mark.parametrize("keep", [1.0, 0.1])
def test_sums_are_billed_once_a_client(tmp_path: Path, rounds: int, clients: int, keep: float) -> None:
    card = Card(records="targets", storage="sums", keep=keep)
    seen = history(record(tmp_path, "targets", rounds), card, targets=(1,))
    assert seen.bytes_stored() == clients * 12
