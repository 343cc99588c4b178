"""The race under a model path: learn a batch with all candidates, commit it once (driver).

The versions of the path are those of the leader, so the path loads as any model path. Beside them:

    candidates/NN/            versions of candidate NN, one every few batches: its snapshots
    race/NNN-token.parquet    the ratings of the batches since the last snapshots

A batch exists from the moment that the leader's commit object is there: it holds the race's
standings, and names the snapshots and the batches since. A candidate is what its snapshot becomes
when it learns those batches, in that order: to the same bits, as learning is a function of a state
and a batch. What a batch wrote before a kill, and no commit names, is used again or left behind.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.ingest.collecting import COLLECT_LIMIT, Collected
from sparkml_sgdals.ingest.features import features_of_table
from sparkml_sgdals.learn.far_values import learn_without_extremes, prepare, take_back
from sparkml_sgdals.learn.one_batch import BatchReport
from sparkml_sgdals.race.candidates import learn_with_all, warm_start
from sparkml_sgdals.race.standings import Race, RaceRules, Standing
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.version_store import StorageError, VersionStore
from sparkml_sgdals.stream.announced import Announced, all_in_memory
from sparkml_sgdals.stream.kept_state import run_again
from sparkml_sgdals.stream.micro_batch import (
    BatchClock,
    BatchUpdater,
    LearnedBatch,
    with_set_aside,
)
from sparkml_sgdals.stream.residents import Resident, learn_once

__all__ = ["RaceUpdater", "leader_of"]

logger = logging.getLogger(__name__)

I64 = npt.NDArray[np.int64]

_SNAPSHOT_BATCHES: Final = 20
"""Batches after which every candidate is written: a restart learns at most so many again."""
_SNAPSHOT_RATINGS: Final = 200_000


@dataclass
class _Runner:
    """A candidate in memory."""

    state: ModelState
    snapshot: int | None
    """version under candidates/NN that it was last written as; None: it is as it started"""
    changed: list[tuple[I64, I64]] | None = field(default_factory=list)
    """rows changed by each batch since; None for all"""


@dataclass
class _Resident(Resident):
    """A race in memory between batches."""

    race: Race
    runners: dict[int, _Runner]
    log: list[dict[str, Any]]
    """files of the batches since the snapshots"""


@dataclass(frozen=True)
class RaceUpdater(BatchUpdater):
    """Learns a micro-batch with every candidate and commits it: the function of foreachBatch."""

    settings: tuple[Settings, ...]
    rules: RaceRules
    threads: int

    def __call__(self, batch: DataFrame, batch_id: int) -> None:
        """Learn and commit a micro-batch, unless it is committed already."""
        self.learn(
            lambda resident: self._collect(batch, batch_id, resident), batch_id,
            lambda resident: run_again(batch, batch_id, resident, self.path),
        )  # fmt: skip

    def learn(
        self,
        collect: Callable[[_Resident], Collected],
        batch_id: int,
        again: Callable[[_Resident], None] = lambda resident: None,
    ) -> None:
        """Learn and commit what `collect` gives, unless the batch is committed already."""
        learn_once(
            self.path, self.token, batch_id, self._open,
            lambda resident: self._learn(resident, collect, batch_id), again,
        )  # fmt: skip

    def _collect(self, batch: DataFrame, batch_id: int, resident: _Resident) -> Collected:
        # all candidates have learned the same rows, and know the same of their range
        leader = resident.runners[resident.race.leader].state
        collected = self.collect(batch, resident, batch_id, leader)
        if collected is None:
            raise ValueError(
                f"Batch {batch_id} has more than {COLLECT_LIMIT:,} ratings, a race takes smaller "
                "ones: limit a batch by the source's option (maxFilesPerTrigger, "
                "maxOffsetsPerTrigger)."
            )
        return collected

    # ---- a race in memory -------------------------------------------------------------------

    def _open(self) -> _Resident:
        """Return the race as it was after the newest commit."""
        store = VersionStore(self.path)
        committed, commit = store.load()
        if commit.batch < 0:
            kinds = self.options.kinds
            runners = {
                number: _Runner(_empty(settings, kinds, committed), None)
                if committed.blank
                else _Runner(warm_start(committed, settings), None, None)
                for number, settings in enumerate(self.settings)
            }
            race = Race(len(self.settings), self.rules)
            return _Resident(commit, self.token, race, runners, [])
        if "race" not in commit.scalars:
            raise StorageError(
                f"Version {commit.version} at {self.path} does not say how the race stood, it was "
                "rolled back. Start the race on a new path; the model can be loaded from this one."
            )
        held = commit.scalars["race"]
        race = Race.from_json(held["standings"])
        runners = {}
        for name, version in held["snapshots"].items():
            number = int(name)
            if version is None:
                state = _empty(self.settings[number], self.options.kinds, committed)
            else:
                state, _ = self._store_of(number).load(version)
            runners[number] = _Runner(state, version)
        states = {number: runner.state for number, runner in runners.items()}
        with ThreadPoolExecutor(self.threads) as pool:
            for file in held["log"]:
                reports = learn_with_all(pool, states, encode_ratings(store.read_checked(file)))
                for number, told in reports.items():
                    if told is None:
                        raise StorageError(
                            f"Candidate {number} at {self.path} diverged on ratings that it had "
                            f"learned: {file['name']}. Start the race on a new path."
                        )
                    _note(runners[number], told.rows)
        for runner in runners.values():
            runner.state.ranges = committed.ranges
        leader = runners[race.leader]
        if leader.state.fingerprint() != committed.fingerprint():
            logger.warning(
                "the candidates at %s learn to other bits than before, on another machine or "
                "release: the leader goes on from its commit",
                self.path,
            )
            leader.state, leader.changed = committed, None
        return _Resident(commit, self.token, race, runners, list(held["log"]))

    # ---- a batch ----------------------------------------------------------------------------

    def _learn(
        self, resident: _Resident, collect: Callable[[_Resident], Collected], batch_id: int
    ) -> None:
        clock = BatchClock()
        collected = collect(resident)
        clock.collected()
        store = VersionStore(self.path)
        race, runners = resident.race, resident.runners
        led = race.leader
        ready = prepare(runners[led].state, collected.table, self.options.rating_range)
        with ThreadPoolExecutor(self.threads) as pool:
            states = {number: runner.state for number, runner in runners.items()}
            if ready.again is not None:
                for runner in runners.values():
                    take_back(runner.state)
                    runner.changed = None

            announced = {
                number: Announced(state, collected.announced, self.options)
                for number, state in states.items()
            }
            refuse = self.options.handle_invalid == "error"

            def learn(table: pa.Table) -> tuple[Ratings, dict[int, BatchReport | None]]:
                ratings = encode_ratings(table)
                for told in announced.values():
                    told.start(all_in_memory)
                # all know the same ids
                features = features_of_table(
                    states[led], collected.vectors, self.options.columns, refuse, True
                )
                reports = learn_with_all(pool, states, ratings, features)
                if not any(reports.values()):
                    raise DivergenceError(
                        "Every candidate of the race diverged: lower stepSize, or look for ratings "
                        "of an absurd size."
                    )
                return ratings, reports

            if self.options.handle_invalid == "error":
                ratings, reports = learn(ready.table)
                table = ready.table
            else:
                (ratings, reports), out = learn_without_extremes(ready.table, learn)
                collected = with_set_aside(collected, ready, out, self.options)
                table = ready.table.filter(pa.array(~out)) if out.any() else ready.table
            for runner in runners.values():
                runner.state.ranges = ready.ranges
            standings = self._step(race, reports)
            shown = reports.get(led) or reports[race.leader]
            assert shown is not None
            for number, told in reports.items():
                if told is not None:
                    _note(runners[number], announced[number].with_rows(told.rows))
            due = self._bring_in(race, runners, standings)
            fresh = runners[race.leader].changed is None
            # what the race starts from may be pruned soon
            due = due or any(runner.changed is None for runner in runners.values())
            clock.learned()
            log = resident.log
            # the log is of ratings alone
            due = due or any(self.options.columns.features)
            due = due or ready.again is not None or len(log) + 1 >= _SNAPSHOT_BATCHES
            due = due or sum(f["rows"] for f in log) + len(ratings) >= _SNAPSHOT_RATINGS
            if due:
                list(pool.map(lambda c: self._snapshot(c, runners[c], batch_id), runners))
                log = []
            else:
                version = resident.commit.version + 1
                name = f"race/{version:012d}-{uuid.uuid4().hex[:8]}.parquet"
                log = [*log, store.write_table(name, table)]
                store.sync("race")
        learned = LearnedBatch.of(collected, ratings, shown, announced[led], ready.earlier)
        if led != race.leader or reports.get(led) is None or fresh:
            # the path goes on with another model
            learned = replace(learned, rows=None)
        leader = runners[race.leader].state
        metrics = self.commit(
            resident,
            leader,
            learned,
            batch_id,
            clock,
            {"race": [_row(standing, reports) for standing in standings]},
            extra={
                "race": {
                    "standings": race.to_json(),
                    "snapshots": {str(c): runner.snapshot for c, runner in runners.items()},
                    "log": log,
                }
            },
        )
        resident.log = log
        if due:
            self._tidy(store, runners)
        self.finish(leader, metrics)

    def _step(self, race: Race, reports: dict[int, BatchReport | None]) -> list[Standing]:
        alive = [told for told in reports.values() if told is not None]
        positive = self.settings[0].learns_events
        losses = {
            c: None if told is None else told.sums.loss(positive)[0] for c, told in reports.items()
        }
        return race.step(losses, alive[0].sums.loss(positive)[1])

    def _bring_in(self, race: Race, runners: dict[int, _Runner], standings: list[Standing]) -> bool:
        """Let go of who was dropped, start who entered; whether somebody did."""
        for standing in standings:
            if standing.dropped:
                del runners[standing.candidate]
        entered = [standing.candidate for standing in standings if standing.entered]
        for candidate in entered:
            state = warm_start(runners[race.leader].state, self.settings[candidate])
            runners[candidate] = _Runner(state, None, None)
        return bool(entered)

    def _snapshot(self, number: int, runner: _Runner, batch_id: int) -> None:
        """Write a candidate as it is after a batch, unless a run that was killed did."""
        store = self._store_of(number)
        newest = store.newest()
        if newest is None:
            meta = {
                "settings": runner.state.settings.to_json(),
                "kinds": list(self.options.kinds),
            }
            newest = store.create(
                ModelState.empty(runner.state.settings, *self.options.kinds), meta
            )
            whole = True
        else:
            # the rows that changed are counted from the version that the race's commit names
            whole = runner.changed is None or runner.snapshot != newest.version
        if newest.batch != batch_id:
            rows = None if whole or runner.changed is None else _union(runner.changed)
            newest = store.commit(runner.state, rows, batch_id, newest, None)
        runner.snapshot, runner.changed = newest.version, []

    def _tidy(self, store: VersionStore, runners: dict[int, _Runner]) -> None:
        """Delete what the newest commit does not need; a kill on the way leaves it for later."""
        for name in store.names("race"):
            store.delete(f"race/{name}")
        for number in range(len(self.settings)):
            if number in runners:
                self._store_of(number).prune(2)
            else:
                store.delete_folder(f"candidates/{number:02d}")

    def _store_of(self, number: int) -> VersionStore:
        return VersionStore(f"{self.path}/candidates/{number:02d}")


def leader_of(commit: Commit) -> int:
    """Return the candidate whose factors a version of a race holds; 0 before the first batch."""
    held = commit.scalars.get("race")
    return 0 if held is None else int(held["standings"]["leader"])


def _empty(settings: Settings, kinds: tuple[IdKind, IdKind], like: ModelState) -> ModelState:
    return replace(ModelState.empty(settings, *kinds), learns_features=like.learns_features)


def _note(runner: _Runner, rows: tuple[I64, I64] | None) -> None:
    if runner.changed is not None:
        # no candidate forgets users
        assert rows is not None
        runner.changed.append(rows)


def _union(changed: list[tuple[I64, I64]]) -> tuple[I64, I64]:
    users, items = zip(*changed, strict=True) if changed else ((), ())
    nothing = np.empty(0, np.int64)
    return np.unique(np.concatenate([nothing, *users])), np.unique(
        np.concatenate([nothing, *items])
    )


def _row(standing: Standing, reports: dict[int, BatchReport | None]) -> dict[str, Any]:
    told = reports.get(standing.candidate)
    own = {} if told is None or standing.entered else told.sums.metrics()
    return asdict(standing) | {name: own.get(name) for name in ("rmse", "mrr")}
