"""A model of which a part is in memory learns what the whole one learns, to the bit."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from building import contents, low_rank, ratings_of, settings_of
from helpers import IN_RUNS_NIGHTLY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writing import Stream

from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.learn.one_batch import BatchReport, learn_batch
from sparkml_sgdals.state.model_state import SETTLING_RATINGS, ModelState, Scale
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store import compaction, overlay, sorted_runs
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.packed_rows import (
    Packed,
    RowShape,
    drop_older,
    pack_rows,
    search_keys,
    unpack_rows,
)
from sparkml_sgdals.store.sorted_runs import Run, RunWriter, merge_runs, stack_size
from sparkml_sgdals.store.version_store import StorageError, VersionStore

pytestmark = pytest.mark.usefixtures("first_version")


class Twins:
    """Two model paths that learn the same batches: one with all rows in memory, one with few."""

    def __init__(self, folder: Path, params: Settings, kinds: Any, limit: int) -> None:
        self.limit = limit
        meta = {"settings": params.to_json(), "kinds": list(kinds), "origin": "nothing"}
        self.state = ModelState.empty(params, *kinds)
        self.state.scale = Scale(2.5, 1.2, 1000.0, 1440.0, SETTLING_RATINGS, True)
        self.stores = [VersionStore(str(folder / name)) for name in ("whole", "part")]
        self.commits = [store.create(self.state, meta) for store in self.stores]
        self.open()

    def open(self) -> None:
        """Start the process anew."""
        self.overlay = Overlay(self.stores[1], self.commits[1], self.limit)

    def learn(self, batch: Ratings) -> None:
        """Learn a batch twice and commit it; what it reports agrees."""
        part = self.overlay
        report = learn_batch(self.state, batch)
        part.fetch(batch.user_ids, batch.item_ids)
        other = learn_batch(part.state, batch)
        for name in ("ratings", "new_users", "new_items", "rmse", "baseline_rmse"):
            np.testing.assert_equal(getattr(other, name), getattr(report, name), err_msg=name)
        number = self.commits[0].version
        rmse = None if np.isnan(report.rmse) else report.rmse
        metrics = {"batch": number, "rmse": rmse}
        made = [self.commit(n, r, metrics) for n, r in enumerate((report, other))]
        self.commits = made
        part.committed(made[1], (other.user_rows, other.item_rows))
        self.stores[1].prune(2)
        named = len(batch.user_ids) + len(batch.item_ids)
        assert part.resident <= max(self.limit, named + self.limit // 2)

    def commit(self, number: int, report: BatchReport, metrics: dict[str, Any]) -> Any:
        part = self.overlay
        onto = part.onto(report.new_users, report.new_items) if number else None
        state = part.state if number else self.state
        rows = (report.user_rows, report.item_rows)
        store, previous = self.stores[number], self.commits[number]
        return store.commit(state, rows, previous.version, previous, metrics, onto=onto)

    def check(self) -> None:
        """Both paths hold the same, and a reader finds it."""
        found, commit = self.stores[1].load()
        assert commit == self.commits[1]
        assert commit.ids == [self.state.users.size, self.state.items.size]
        assert found.fingerprint() == self.state.fingerprint()
        assert self.stores[1].metrics() == self.stores[0].metrics()


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of small commits: what a power cut would leave is not looked at here."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


PARAMS = [
    settings_of(rank=2),
    settings_of(rank=3, implicit_prior=False),
    settings_of(solver="sgd", rank=2),
    settings_of(solver="minibatch", rank=1, block_size=3),
]


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[list[int], list[int], list[float]] | None]:
    """Batches of ratings by number of user and item; None for a restart."""
    found: list[Any] = []
    for _ in range(draw(st.integers(1, 9))):
        if draw(st.integers(0, 4)) == 0:
            found.append(None)
            continue
        size = draw(st.integers(0, 12))
        column = st.lists(st.integers(0, 30), min_size=size, max_size=size)
        value = st.lists(st.sampled_from([0.5, 2.0, 3.5, 5.0]), min_size=size, max_size=size)
        found.append((draw(column), draw(column), draw(value)))
    return found


def named(numbers: list[int], kind: str) -> list[Any]:
    """Ids of a kind, negative ones and empty strings too."""
    return (
        [f"ü{n}" if n else "" for n in numbers] if kind == "str" else [7 - 3 * n for n in numbers]
    )


@IN_RUNS_NIGHTLY
@pytest.mark.parametrize(
    "kinds",
    [
        ("str", "int"),
        pytest.param(("int", "int"), marks=pytest.mark.nightly),
        pytest.param(("str", "str"), marks=pytest.mark.nightly),
    ],
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(PARAMS), st.integers(1, 40), streams(), st.booleans())
def test_any_stream_ends_in_the_same_bits(
    tmp_path: Path, kinds: Any, params: Settings, limit: int, batches: Any, colliding: bool
) -> None:
    """Few or many rows in memory, restarts, empty batches; string ids whose hashes are equal."""
    shutil.rmtree(tmp_path, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_runs, "_CHUNK", 5)
        patch.setattr(compaction, "_SPOOLED", 7)
        patch.setattr(overlay, "MAX_DELTAS", 4)
        if colliding:
            patch_hash(patch)
        twins = Twins(tmp_path, params, kinds, limit)
        for batch in batches:
            if batch is None:
                twins.overlay.stop()
                twins.open()
            else:
                users, items, values = batch
                columns = [pa.array(named(c, k), pa.string() if k == "str" else pa.int64())
                           for c, k in zip((users, items), kinds, strict=True)]  # fmt: skip
                table = pa.table(
                    {"user": columns[0], "item": columns[1],
                     "rating": pa.array(values, pa.float32())}
                )  # fmt: skip
                twins.learn(encode_ratings(table))
        twins.overlay.stop()
        twins.check()


def patch_hash(patch: pytest.MonkeyPatch) -> None:
    """Let strings have one of three hashes where rows are sorted and found."""
    from sparkml_sgdals.arrays import hashing
    from sparkml_sgdals.store import packed_rows

    def few(ids: pa.Array) -> np.ndarray:
        keys = hashing.id_keys(ids)
        return keys if pa.types.is_integer(ids.type) else keys % np.uint64(3)

    patch.setattr(packed_rows, "id_keys", few)


@IN_RUNS_NIGHTLY
@pytest.mark.long
def test_a_long_stream(tmp_path: Path) -> None:
    """Compaction in the background while batches go on: the bits of the whole model."""
    table, _ = low_rank(6000, users=900, items=500)
    twins = Twins(tmp_path, settings_of(rank=3), ("int", "int"), limit=150)
    bases = set()
    for first in range(0, 6000, 60):
        twins.learn(encode_ratings(table.slice(first, 60)))
        bases.add(twins.commits[1].base)
        if first % 900 == 0:
            twins.overlay.stop()
            twins.open()
    twins.check()
    assert len(bases) > 5
    assert all(len(twins.commits[1].runs[side]) <= 10 for side in ("users", "items"))
    # old bases went with the versions that needed them
    kept = [twins.stores[1].read_commit(n) for n in twins.stores[1].numbers()]
    used = {f["name"] for c in kept for f in [*c.run_files(), *c.files.values()]}
    oldest = kept[0].version
    stale = {f"files/{n}" for n in twins.stores[1].names("files")} - used
    assert all(int(name[6:18]) >= oldest for name in stale)


@pytest.mark.parametrize("kind", [pytest.param("int", marks=pytest.mark.long), "str"])
def test_without_a_local_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """Rows come by ranges of the files, several near ones at once, as from an object store."""
    monkeypatch.setattr(sorted_runs, "_REMOTE_GAP", 500)
    twins = Twins(tmp_path, settings_of(rank=3), (kind, kind), limit=150)
    store = twins.stores[1]
    store.fs, store.local = pafs.SubTreeFileSystem("/", pafs.LocalFileSystem()), False
    twins.open()
    rng = np.random.default_rng(2)
    for _ in range(40):
        numbers = [rng.integers(0, n, 60).tolist() for n in (900, 500)]
        twins.learn(ratings_of(*(named(n, kind) for n in numbers), rng.integers(1, 9, 60) / 2))
    twins.check()
    assert len(twins.commits[1].runs["users"]) > 1


def test_a_diverging_batch_changes_nothing(tmp_path: Path) -> None:
    """Rows that were read for it stay as they were; new ids are forgotten."""
    twins = Twins(tmp_path, settings_of(solver="sgd", rank=2, step_size=1.0), ("int", "int"), 4)
    twins.learn(ratings_of(list(range(8)), list(range(8)), [1.0, 2.0] * 4))
    twins.open()
    part = twins.overlay
    bad = ratings_of([1] * 6 + [99], [3] * 6 + [99], [1e30, -1e30] * 3 + [1.0])
    part.fetch(bad.user_ids, bad.item_ids)
    before = contents(part.state.users), contents(part.state.items)
    with pytest.raises(DivergenceError):
        learn_batch(part.state, bad)
    assert (contents(part.state.users), contents(part.state.items)) == before
    assert 99 not in part.state.users.index


def test_pinned_ids_stay(tmp_path: Path) -> None:
    """Held-out ratings are predicted by rows that are never dropped, nor ids that come later."""
    twins = Twins(tmp_path, settings_of(rank=2), ("int", "int"), 10)
    held = pa.array([1, 2, 500]), pa.array([3, 900])
    twins.overlay.pin(*held)
    for number in range(30):
        ids = list(range(20 * number, 20 * number + 20))
        twins.learn(ratings_of(ids, ids, [1.0, 4.0] * 10))
        for side, ids_ in (("users", held[0]), ("items", held[1])):
            known = getattr(twins.state, side).index.find(ids_) >= 0
            in_memory = getattr(twins.overlay.state, side).index.find(ids_) >= 0
            np.testing.assert_array_equal(in_memory, known)
    twins.check()


def test_a_part_is_never_written_as_the_whole(tmp_path: Path) -> None:
    """A base of a part would forget the rest."""
    twins = Twins(tmp_path, settings_of(rank=2), ("int", "int"), 10)
    twins.learn(ratings_of([1], [2], [3.0]))
    with pytest.raises(ValueError, match="a part of the model"):
        twins.stores[1].commit(twins.overlay.state, None, 0, twins.commits[1], None)
    rows = (np.empty(0, np.int64), np.empty(0, np.int64))
    with pytest.raises(ValueError, match="a part of the model"):
        twins.stores[1].commit(twins.overlay.state, rows, 0, twins.commits[1], None)


def test_a_compaction_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the background is an error in the stream, and no loss."""

    def full(*args: Any, **kwargs: Any) -> None:
        raise StorageError("No space left")

    twins = Twins(tmp_path, settings_of(rank=2), ("int", "int"), 4)
    batch = ratings_of(list(range(9)), list(range(9)), [1.0, 2.0, 4.0] * 3)
    with monkeypatch.context() as patch:
        patch.setattr(compaction, "merge_runs", full)
        with pytest.raises(StorageError, match="No space left"):
            twins.learn(batch)
    # the version itself had been committed
    twins.commits[1] = twins.stores[1].newest()
    twins.open()
    twins.learn(ratings_of([3, 99], [3, 3], [1.0, 2.0]))
    twins.check()


# ---- runs -----------------------------------------------------------------------------------


def filled(kind: str, numbers: list[int], seed: int = 0) -> Any:
    """A factor table with random contents."""
    from building import filled_table

    return filled_table(settings_of(rank=3), named(numbers, kind), seed=seed)


def written(store: VersionStore, packed: Packed, name: str = "files/a") -> Run:
    with RunWriter(store, packed.shape, name) as writer:
        writer.add(packed)
    return Run(store, packed.shape, writer.entry())


@pytest.mark.parametrize("kind", ["int", "str"])
def test_rows_come_back_to_the_bit(tmp_path: Path, kind: str) -> None:
    """Packed, written, found by id in any order, unpacked."""
    table = filled(kind, list(range(40)))
    run = written(VersionStore(str(tmp_path)), pack_rows(table))
    wanted = pa.array(named([5, 77, 0, 39, 41], kind))
    found, rows = run.find(wanted)
    assert sorted(found.tolist()) == [0, 2, 3]
    part = filled(kind, [1])
    unpack_rows(rows, part)
    expected = contents(table)
    for an_id in named([5, 0, 39], kind):
        assert contents(part)[an_id] == expected[an_id]
    back = filled(kind, [1])
    for rows in run.parts():
        unpack_rows(rows, back)
    assert contents(back) == expected
    assert len(run) == 40


@pytest.mark.parametrize("kind", ["int", "str"])
def test_keys_rise(kind: str) -> None:
    """Rows are sorted; for integers in the order of ids."""
    packed = pack_rows(filled(kind, [3, 0, 9, 1]))
    assert (np.diff(packed.keys.astype(object)) > 0).all()
    if kind == "int":
        assert packed.ids().to_pylist() == [-20, -2, 4, 7]


def test_keys_of_extreme_integers() -> None:
    """The order of the keys is that of the ids over all 64 bits."""
    ids = [-(2**63), -5, -1, 0, 1, 2**63 - 1]
    keys = search_keys(pa.array(ids))
    assert (keys[1:] > keys[:-1]).all()


@given(st.lists(st.lists(st.integers(0, 20), max_size=8), min_size=1, max_size=5), st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("kind", ["int", "str"])
def test_the_newest_row_counts(
    tmp_path: Path, kind: str, sets: list[list[int]], colliding: bool
) -> None:
    """Merged in parts of two rows, whatever the overlaps."""
    shutil.rmtree(tmp_path, ignore_errors=True)
    store = VersionStore(str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_runs, "_CHUNK", 2)
        if colliding:
            patch_hash(patch)
        sources = []
        expected: dict[Any, Any] = {}
        for number, ids in enumerate(sets):
            distinct = list(dict.fromkeys(ids))
            if distinct:
                table = filled(kind, distinct, seed=number)
                expected |= contents(table)
                sources.append(written(store, pack_rows(table), f"files/{number}"))
        if not sources:
            return
        with RunWriter(store, sources[0].shape, "files/merged") as writer:
            merge_runs(sources, writer)
        merged = Run(store, sources[0].shape, writer.entry())
        assert len(merged) == len(expected)
        back = filled(kind, [50])
        for rows in merged.parts():
            unpack_rows(rows, back)
        found = contents(back)
        del found[named([50], kind)[0]]
        assert found == expected


def test_ids_left_out(tmp_path: Path) -> None:
    """A merge can forget ids."""
    store = VersionStore(str(tmp_path))
    run = written(store, pack_rows(filled("str", [1, 2, 3])))
    with RunWriter(store, run.shape, "files/b") as writer:
        merge_runs([run], writer, without=pa.array(["ü2", "none"]))
    rows = list(Run(store, run.shape, writer.entry()).parts())
    assert sorted(rows[0].ids().to_pylist()) == ["ü1", "ü3"]


@pytest.mark.parametrize("kind", ["int", "str"])
def test_no_flipped_bit_of_a_run_goes_unseen(tmp_path: Path, kind: str) -> None:
    """In rows, keys or names: opening or reading says which file is damaged, or nothing differs."""
    store = VersionStore(str(tmp_path))
    table = filled(kind, [1, 2, 3])
    run = written(store, pack_rows(table))
    expected = contents(table)
    unseen = 0
    for part in ("rows", "keys", "names")[: 3 if kind == "str" else 2]:
        file = tmp_path / run.entry[part]["name"]
        payload = file.read_bytes()
        for place in range(len(payload)):
            damaged = bytearray(payload)
            damaged[place] ^= 1 << (place % 8)
            file.write_bytes(damaged)
            try:
                again = Run(store, run.shape, run.entry)
                back = filled(kind, [50])
                for rows in again.parts():
                    unpack_rows(rows, back)
            except StorageError:
                continue
            unseen += 1
            found = contents(back)
            del found[named([50], kind)[0]]
            assert found == expected
        file.write_bytes(payload)
    # where a name lies may be noted otherwise only in ways that read the same
    assert unseen == 0


@pytest.mark.parametrize("part", ["rows", "keys"])
def test_truncated_and_missing(tmp_path: Path, part: str) -> None:
    """A short file is damage and no crash; a missing one is named."""
    store = VersionStore(str(tmp_path))
    run = written(store, pack_rows(filled("int", list(range(9)))))
    file = tmp_path / run.entry[part]["name"]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(StorageError, match=rf"{part} is damaged"):
        list(Run(store, run.shape, run.entry).parts())
    file.unlink()
    with pytest.raises(StorageError, match=rf"{part} is missing"):
        Run(store, run.shape, run.entry)


def test_a_broken_off_run_leaves_no_files(tmp_path: Path) -> None:
    """What is of no use takes no room."""
    store = VersionStore(str(tmp_path))
    packed = pack_rows(filled("str", [1, 2]))

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), RunWriter(store, packed.shape, "files/a") as writer:
        merge_runs([packed], writer, check=fail)
    assert store.names("files") == []


def test_few_runs_and_few_copies() -> None:
    """After many small runs: each at least twice the next, rows written a few times each."""
    counts: list[int] = []
    copied = 0
    for _ in range(1000):
        left = stack_size(counts, 100)
        merged = 100 + sum(counts[left:])
        copied += merged
        counts = [*counts[:left], merged]
        assert all(a >= 2 * b for a, b in itertools.pairwise(counts))
    assert len(counts) < 12
    assert copied / 100_000 < 12


def test_rows_of_one_id_keep_the_last() -> None:
    """Also where names of one hash lie between."""
    with pytest.MonkeyPatch.context() as patch:
        patch_hash(patch)
        tables = [filled("str", [1, 2, 3, 4, 5, 6], seed=n) for n in range(3)]
        merged = drop_older(Packed.together([pack_rows(table) for table in tables]))
        back = filled("str", [1])
        unpack_rows(merged, back)
        assert contents(back) == contents(tables[2])


def test_a_shape_follows_from_the_settings() -> None:
    """Columns that a solver lacks take no room."""
    assert RowShape.of("int", settings_of(rank=16)).width * 8 == 312
    assert RowShape.of("int", settings_of(solver="sgd", rank=16)).width < 16
    assert dataclasses.asdict(RowShape.of("str", settings_of(rank=0)))["kind"] == "str"


def test_one_compaction_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second starts when the first one's base is named by no commit yet, and ends when what
    was the base before is pruned: the stream goes on, and counts the rows since its base."""
    gate, real = threading.Event(), overlay.compact

    def when_told(*args: Any) -> Any:
        assert gate.wait(30)
        return real(*args)

    monkeypatch.setattr(overlay, "compact", when_told)
    stream = Stream(tmp_path, 80)
    hot = list(range(25))

    def finish() -> None:
        gate.set()
        assert stream.part._compaction is not None
        stream.part._compaction._thread.join()
        gate.clear()

    def counted() -> None:
        newest = stream.commit
        since = range(newest.base + 1, newest.version + 1)
        commits = [stream.store.read_commit(number) for number in since]
        rows = [c.files[side]["rows"] for c in commits for side in ("users", "items")]
        assert newest.delta_rows == sum(rows)

    bases = []
    for round_ in range(4):
        for _ in range(3):
            stream.learn(hot)
            counted()
            if round_:
                stream.store.prune(1)
        finish()
        bases.append(stream.commit.base)
    gate.set()
    stream.part.stop()
    assert bases[1] < bases[2] < bases[3]
    rows = stream.store.metrics()
    assert [row["batch"] for row in rows] == list(range(stream.commit.version))


def test_nothing_is_compacted_after_the_end(tmp_path: Path) -> None:
    """A last batch may be running when its stream is stopped: it starts no thread that writes."""
    stream = Stream(tmp_path, 40)
    stream.part.stop()
    stream.learn(list(range(11)))
    assert stream.part._compaction is None
    assert stream.store.load()[1] == stream.commit
