"""A race under a model path: one commit a batch, the same bits whatever breaks it off."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import low_rank, settings_of

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.fit.plan import FitOptions
from sparkml_sgdals.ingest.collecting import Collected
from sparkml_sgdals.ingest.columns import RatingColumns
from sparkml_sgdals.learn.event_tables import fit_events
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.race import updater
from sparkml_sgdals.race.candidates import started_from, warm_start
from sparkml_sgdals.race.grid_search import RaceJob
from sparkml_sgdals.race.standings import Race, RaceRules
from sparkml_sgdals.race.updater import RaceUpdater, leader_of
from sparkml_sgdals.state.event_scores import table_alone
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.lease import Lease
from sparkml_sgdals.store.version_store import StorageError, VersionStore
from sparkml_sgdals.stream.report import Report
from sparkml_sgdals.stream.residents import forget_resident

SIZE = 200
GRID = (
    settings_of(rank=3),
    settings_of(rank=8),
    settings_of(rank=3, factor_prior=0.001, bias_prior=0.001),
    settings_of(rank=2, drift=0.5),
)
OPTIONS = FitOptions(RatingColumns("user", "item", "rating"), ("int", "int"), "skip", 0, 1, 10, 10)
RULES = RaceRules(keep=2, min_ratings=1000, challengers=1, error_probability=0.2)


@pytest.fixture(scope="module")
def batches() -> list[pa.Table]:
    table, _ = low_rank(8000, noise=0.5)
    return [table.slice(start, SIZE) for start in range(0, table.num_rows, SIZE)]


class Racing:
    """A race at a path, fed without a stream."""

    def __init__(self, path, grid=GRID, rules=RULES):
        self.path, self.grid, self.rules = str(path), grid, rules
        self.store = VersionStore(self.path)
        if self.store.newest() is None:
            empty = ModelState.empty(grid[0], "int", "int")
            meta = {"settings": grid[0].to_json(), "kinds": ["int", "int"], "race": {}}
            self.store.create(empty, meta)
        self.lease = Lease.acquire(self.store, 60.0)
        self.updater = RaceUpdater(
            self.path, self.lease.token, OPTIONS, 3, 0.0, Report(), grid, rules, 2
        )

    def feed(self, batches, first=0):
        for number, table in enumerate(batches, first):
            collected = Collected(table, table.num_rows, 0, {}, [])
            self.updater.learn(lambda _, collected=collected: collected, number)
        return self

    def end(self):
        forget_resident(self.path)
        self.lease.release()

    def result(self):
        """Leader, bits of the leader, and all that was told."""
        state, commit = self.store.load()
        told = [row["race"] for row in self.store.metrics()]
        return leader_of(commit), state.fingerprint(), commit.scalars["race"]["standings"], told


@pytest.fixture
def racing() -> Iterator[type[Racing]]:
    started: list[Racing] = []

    class Kept(Racing):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    yield Kept
    for one in started:
        one.end()


@pytest.fixture
def often(monkeypatch):
    """Snapshots every few batches."""
    monkeypatch.setattr(updater, "_SNAPSHOT_BATCHES", 4)


class TestCandidates:
    def test_the_leader_is_what_it_is_alone(self, racing, batches, tmp_path):
        leader, bits, *_ = racing(tmp_path).feed(batches).result()
        alone = ModelState.empty(GRID[leader], "int", "int")
        for table in batches:
            learn_batch(alone, encode_ratings(table))
        assert bits == alone.fingerprint()

    def test_the_bad_ones_go_and_one_comes_back(self, racing, batches, tmp_path):
        *_, told = racing(tmp_path).feed(batches).result()
        rows = [row for batch in told for row in batch]
        dropped = [row["candidate"] for row in rows if row["dropped"]]
        assert {2, 3} <= set(dropped)
        assert any(row["entered"] for row in rows)
        assert all(row["lower"] > 0 for row in rows if row["dropped"] == "worse")

    def test_the_path_loads_as_any_model_path(self, racing, batches, tmp_path):
        race = racing(tmp_path, grid=(GRID[2], GRID[1], GRID[0])).feed(batches)
        state, commit = race.store.load()
        assert state.settings == (GRID[2], GRID[1], GRID[0])[leader_of(commit)]
        assert state.settings != GRID[2]

    def test_a_service_follows_the_leader(self, racing, batches, tmp_path):
        holder = pytest.importorskip("sparkml_sgdals.serving.model.holder")
        race = racing(tmp_path, grid=(GRID[2], GRID[1], GRID[0])).feed(batches[:1])
        (tmp_path / "served").mkdir()
        served = holder.ModelHolder(race.path, str(tmp_path / "served"))
        ranks = set()
        for number, table in enumerate(batches[1:20], 1):
            race.feed([table], number)
            served.poll()
            state, _ = race.store.load()
            with served.reading() as model:
                ranks.add(model.settings.rank)
                assert model.settings == state.settings
                assert model.shell.counters == state.counters
                ids = [side.index.ids(None).to_pylist()[:9] for side in (state.users, state.items)]
                rows = model.user_rows(ids[0]), model.item_rows(ids[1])
                nine = np.arange(9)
                expected = state.predict(nine, nine)[0]
                assert np.array_equal(model.scratch(*rows).predict(nine, nine)[0], expected)
        assert len(ranks) > 1


class TestRestarts:
    @pytest.mark.long
    @pytest.mark.parametrize("pieces", [2, pytest.param(7, marks=pytest.mark.nightly)])
    def test_same_winner_same_bits(self, racing, batches, tmp_path, often, pieces):
        whole = racing(tmp_path / "whole").feed(batches).result()
        for part in np.array_split(np.arange(len(batches)), pieces):
            again = racing(tmp_path / "pieces")
            again.feed([batches[n] for n in part], int(part[0]))
            again.end()
        assert again.result() == whole

    def test_a_replayed_batch_is_skipped(self, racing, batches, tmp_path):
        race = racing(tmp_path).feed(batches[:6])
        before = race.result()
        race.feed(batches[4:6], 4)
        assert race.result() == before

    @pytest.mark.parametrize(
        "at", [4, *(pytest.param(n, marks=pytest.mark.nightly) for n in (3, 16))]
    )
    @pytest.mark.parametrize(
        "stage",
        [
            "put_commit",
            *(pytest.param(s, marks=pytest.mark.long) for s in ("commit", "second snapshot")),
        ],
    )
    def test_broken_off_before_the_commit(
        self, racing, batches, tmp_path, often, monkeypatch, at, stage
    ):
        """Snapshots and files of a batch that was never committed are used again, or left."""
        whole = racing(tmp_path / "whole").feed(batches[:24]).result()
        race = racing(tmp_path / "broken").feed(batches[:at])
        calls = {"left": 1 if stage == "second snapshot" else 0}
        name = "put_commit" if stage == "put_commit" else "commit"
        real = getattr(VersionStore, name)

        def fail(self, *args, **kwargs):
            main = self.path == race.path
            if main and stage != "second snapshot":
                raise OSError("killed")
            if not main and stage == "second snapshot":
                calls["left"] -= 1
                if calls["left"] < 0:
                    raise OSError("killed")
            return real(self, *args, **kwargs)

        monkeypatch.setattr(VersionStore, name, fail)
        if stage != "second snapshot" or (at + 1) % 4 == 0:
            with pytest.raises(OSError, match="killed"):
                race.feed(batches[at : at + 1], at)
        monkeypatch.setattr(VersionStore, name, real)
        race.end()
        again = racing(tmp_path / "broken").feed(batches[:24])
        assert again.result() == whole

    def test_what_is_not_needed_is_deleted(self, racing, batches, tmp_path, often):
        race = racing(tmp_path).feed(batches)
        held = race.store.newest().scalars["race"]
        assert race.store.names("race") == sorted(
            file["name"].partition("/")[2] for file in held["log"]
        )
        for number in held["snapshots"]:
            store = VersionStore(f"{race.path}/candidates/{int(number):02d}")
            assert len(store.numbers()) < 25

    def test_a_damaged_batch_is_named(self, racing, batches, tmp_path):
        race = racing(tmp_path).feed(batches[:3])
        name = race.store.newest().scalars["race"]["log"][1]["name"]
        (tmp_path / name).write_bytes(b"no Parquet")
        race.end()
        with pytest.raises(StorageError, match=name):
            racing(tmp_path).feed(batches[3:4], 3)

    def test_a_race_that_was_rolled_back_does_not_go_on(self, racing, batches, tmp_path):
        race = racing(tmp_path).feed(batches[:3])
        state, commit = race.store.load(1)
        race.store.commit(state, None, 2, race.store.newest(), None, restored=commit)
        race.end()
        with pytest.raises(StorageError, match="rolled back"):
            racing(tmp_path).feed(batches[3:4], 3)


def races_in_memory() -> list[Race]:
    """Whoever holds them."""
    gc.collect()
    # isinstance would follow a proxy of another library, whose object may be gone
    return [held for held in gc.get_objects() if type(held) is Race]


class TestLife:
    """What is in memory of a race: nobody's but its own stream's, and no longer than that."""

    @staticmethod
    def job(race: Racing) -> RaceJob:
        """The job of a query that has ended."""
        query: Any = SimpleNamespace(isActive=False, stop=lambda: None)
        return RaceJob(query, race.path, race.lease, lambda store: Any)

    def test_the_end_of_a_race_leaves_the_next_one_alone(self, racing, batches, tmp_path):
        old = racing(tmp_path).feed(batches[:2])
        job = self.job(old)
        # as when its query ends by itself
        old.end()
        racing(tmp_path).feed(batches[2:3], 2)
        assert len(races_in_memory()) == 1
        job.stop(drain=False)
        assert len(races_in_memory()) == 1

    def test_it_is_gone_before_its_lease(self, racing, batches, tmp_path, monkeypatch):
        race = racing(tmp_path).feed(batches[:2])
        assert len(races_in_memory()) == 1
        seen = []
        release = Lease.release

        def watched(lease):
            seen.append(len(races_in_memory()))
            release(lease)

        monkeypatch.setattr(Lease, "release", watched)
        self.job(race).stop(drain=False)
        assert seen == [0]

    def test_nothing_of_its_path_is_left(self, racing, batches, tmp_path):
        race = racing(tmp_path).feed(batches[:2])
        self.job(race).stop(drain=False)
        modules = [(n, m) for n, m in sys.modules.items() if n.startswith("sparkml_sgdals")]
        left = [
            f"{module}.{name}"
            for module, content in modules
            for name, value in vars(content).items()
            if isinstance(value, dict) and race.path in value
        ]
        assert left == []


class TestDivergence:
    def test_one_that_diverges_is_dropped(self, racing, batches, tmp_path):
        grid = (settings_of(solver="sgd", step_size=1e9), settings_of(rank=3), settings_of(rank=4))
        race = racing(tmp_path, grid=grid, rules=RaceRules(keep=3)).feed(batches[:4])
        leader, *_, told = race.result()
        assert leader in (1, 2)
        assert [row["dropped"] for row in told[0]] == ["diverged", "", ""]
        assert [row["candidate"] for row in told[1]] == [1, 2]

    def test_all_that_diverge_are_an_error(self, racing, batches, tmp_path):
        grid = (settings_of(solver="sgd", step_size=1e9), settings_of(solver="sgd", step_size=1e8))
        with pytest.raises(DivergenceError, match="Every candidate"):
            racing(tmp_path, grid=grid).feed(batches[:2])


@pytest.fixture(scope="module")
def events() -> list[pa.Table]:
    """Two kinds of users, each of whom does items of its own kind, popular ones more often."""
    rng = np.random.default_rng(3)
    count = 4000
    users = rng.integers(0, 80, count)
    items = (60 * rng.random(count) ** 2).astype(np.int64) * 2 + users % 2
    columns = {"user": users, "item": items, "rating": np.ones(count, np.float32)}
    table = pa.table(columns | {"time": np.arange(count)})
    return [table.slice(start, SIZE) for start in range(0, count, SIZE)]


class TestEvents:
    GRID = tuple(
        settings_of(
            learns_events=True, rank=rank, num_negatives=3, bias_prior=0.2, factor_prior=prior,
            ranking_size=10, num_partners=0, repeat_items=False,
        )
        for rank, prior in ((4, 0.5), (2, 0.5), (4, 50.0))
    )  # fmt: skip
    RULES = RaceRules(
        keep=1, min_ratings=300, challengers=1, error_probability=0.2, squares=False, fading=0.999
    )

    def test_a_race_by_ranks_breaks_off_and_goes_on_to_the_bit(
        self, racing, events, tmp_path, often
    ):
        whole = racing(tmp_path / "whole", self.GRID, self.RULES).feed(events)
        leader, *_, told = whole.result()
        assert leader in (0, 1)
        rows = [row for batch in told for row in batch]
        assert {row["candidate"] for row in rows if row["dropped"]} >= {2}
        # a challenger ranks what the others rank
        assert any(row["entered"] for row in rows)
        for batch in told:
            judged = {row["candidate"] for row in batch if row["mrr"] is not None}
            assert judged in (set(), {row["candidate"] for row in batch if not row["entered"]})
        for part in (slice(0, 7), slice(7, 13), slice(13, None)):
            broken = racing(tmp_path / "broken", self.GRID, self.RULES)
            broken.feed(events[part], part.start)
            broken.end()
        assert broken.result() == whole.result()


def fitted(timed: bool) -> ModelState:
    """A model of a table of events, as `fit` makes it."""
    settings = settings_of(
        rank=4, learns_events=True, num_negatives=4, ranking_size=10, table_rank=6, max_iter=5,
        regs=(0.01,) * 4,
    )  # fmt: skip
    table, _ = low_rank(1_500, noise=0.5, seed=7)
    ratings = replace(encode_ratings(as_events(table)), timed=timed)
    ((state, _),) = fit_events(
        ModelState.empty(settings, "int", "int"), ratings, [5], 1, lambda *_: None
    )
    return state


def as_events(table: pa.Table) -> pa.Table:
    return table.set_column(2, "rating", pa.array(np.ones(table.num_rows), pa.float32()))


class TestFromAFittedTableOfEvents:
    """Candidates keep the table's judgement, and differ in the filter beside it."""

    @pytest.fixture(
        params=[False, pytest.param(True, marks=pytest.mark.long)], ids=["table", "timed"]
    )
    def start(self, request):
        return fitted(request.param)

    @pytest.fixture
    def grid(self, start):
        fields = {"learns_events": True, "ranking_size": 10}
        return tuple(
            started_from(start.settings, settings_of(**fields, **own))
            for own in (
                {"rank": 2, "num_negatives": 4}, {"rank": 8, "num_negatives": 2},
                {"rank": 4, "factor_prior": 1e-4, "num_negatives": 4},
            )
        )  # fmt: skip

    @pytest.fixture
    def events(self, batches):
        return [as_events(table) for table in batches[:9]]

    @pytest.fixture
    def from_start(self, racing, start, grid, monkeypatch):
        def begin(path):
            store = VersionStore(str(path))
            if store.newest() is None:
                meta = {"settings": start.settings.to_json(), "kinds": ["int", "int"], "race": {}}
                store.create(start, meta)
            return racing(path, grid=grid, rules=replace(RULES, squares=False, keep=3))

        return begin

    def test_each_is_what_it_is_alone(self, from_start, start, grid, events, tmp_path):
        race = from_start(tmp_path).feed(events)
        leader, bits, *_ = race.result()
        for number, settings in enumerate(grid):
            alone = warm_start(start, settings)
            assert table_alone(alone) is table_alone(start)
            for table in events:
                learn_batch(alone, encode_ratings(table))
            # the ids of the table kept what it says of them, those of the stream have nothing
            known = start.users.index.ids()
            rows = alone.users.index.find(known)
            np.testing.assert_array_equal(alone.users.taste[rows], start.users.taste)
            assert alone.regularisation == start.regularisation
            assert alone.events_learned > 0
            if number == leader:
                assert bits == alone.fingerprint()
        state, commit = race.store.load()
        assert state.settings == grid[leader]
        assert commit.batch == len(events) - 1

    def test_broken_off_anywhere_and_begun_again(self, from_start, events, tmp_path, often):
        whole = from_start(tmp_path / "whole").feed(events).result()
        for number in range(len(events)):
            race = from_start(tmp_path / "parts")
            race.feed(events[number : number + 1], number)
            race.end()
        assert from_start(tmp_path / "parts").result()[:3] == whole[:3]

    def test_a_kill_before_the_first_commit(self, from_start, events, tmp_path, monkeypatch):
        whole = from_start(tmp_path / "whole").feed(events[:2]).result()
        race = from_start(tmp_path / "killed")
        with monkeypatch.context() as patch:
            patch.setattr(VersionStore, "put_commit", refusing("gone"))
            with pytest.raises(OSError, match="gone"):
                race.feed(events[:1])
        race.end()
        again = from_start(tmp_path / "killed").feed(events[:2])
        assert again.result()[:2] == whole[:2]


def refusing(message: str):  # type: ignore[no-untyped-def]
    def refuse(*_args: Any, **_more: Any) -> None:
        raise OSError(message)

    return refuse
