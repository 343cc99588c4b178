"""Model paths that several test modules write versions to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from building import ratings_of, settings_of

from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.model_state import SETTLING_RATINGS, ModelState, Scale
from sparkml_sgdals.store.maintenance import list_versions
from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.version_store import VersionStore

NOBODY = 65534

META = {"settings": settings_of(rank=2).to_json(), "kinds": ["int", "str"], "origin": "nothing"}


class Writer:
    """A store with a model in it, and what it should hold: the fingerprint of every version."""

    def __init__(
        self, path: Path, settled: bool = True, meta: dict[str, Any] | None = None
    ) -> None:
        self.path = path
        self.store = VersionStore(str(path))
        self.state = ModelState.empty(settings_of(rank=2), "int", "str")
        if settled:
            self.state.scale = Scale(2.5, 1.2, 1000.0, 1440.0, SETTLING_RATINGS, True)
        self.commit = self.store.create(self.state, META | (meta or {}))
        self.fingerprints = [self.state.fingerprint()]
        self.metrics: list[dict[str, Any]] = []

    def learn(self, base: bool = False) -> None:
        """Learn a batch, known and new ids, and commit it as a delta or a base."""
        number = len(self.fingerprints)
        batch = ratings_of([number, 1, 1], ["a", f"i{number}", "a"], [1.0, 2.0 + number % 3, 4.0])
        report = learn_batch(self.state, batch)
        # the first batch has no rmse, as in a stream
        rmse = None if np.isnan(report.rmse) else report.rmse
        self.metrics.append({"batch": number - 1, "version": number, "rmse": rmse})
        rows = None if base else (report.user_rows, report.item_rows)
        self.commit = self.store.commit(self.state, rows, number - 1, self.commit, self.metrics[-1])
        self.fingerprints.append(self.state.fingerprint())

    def commit_path(self, version: int) -> Path:
        """The file of a commit object."""
        return self.path / "commits" / f"{version:012d}.json"

    def assert_loads(self, version: int) -> None:
        """A version holds what was committed as it."""
        state, commit = self.store.load(version)
        assert state.fingerprint() == self.fingerprints[version]
        assert (commit.version, commit.batch) == (version, version - 1)


class Stream:
    """A stream onto a path of 60 users and items, of which `limit` are in memory."""

    def __init__(self, folder: Path, limit: int) -> None:
        params = settings_of(rank=2)
        self.store = VersionStore(str(folder))
        state = ModelState.empty(params, "int", "int")
        state.scale = Scale(2.5, 1.2, 1000.0, 1440.0, SETTLING_RATINGS, True)
        learn_batch(state, ratings_of(list(range(60)), list(range(60)), [3.0] * 60))
        self.commit = self.store.create(
            state,
            {
                "settings": params.to_json(),
                "kinds": ["int", "int"],
                "origin": "nothing",
                "params": {"userCol": "user"},
            },
        )
        self.part = Overlay(self.store, self.commit, limit)

    def learn(self, ids: list[int]) -> None:
        """Learn and commit a batch of a rating each by users and items of these ids."""
        batch = ratings_of(ids, ids, [4.0] * len(ids))
        self.part.fetch(batch.user_ids, batch.item_ids)
        report = learn_batch(self.part.state, batch)
        rows = (report.user_rows, report.item_rows)
        before = self.commit
        self.commit = self.store.commit(
            self.part.state,
            rows,
            before.version,
            before,
            {"batch": before.version, "rmse": 1.0},
            onto=self.part.onto(report.new_users, report.new_items),
        )
        self.part.committed(self.commit, rows)


def plan(path: Path, batch: int, folder: str = "checkpoint", done: bool = True) -> None:
    """Write what Spark writes of a batch of a file source, its log compacted every tenth batch."""
    root = path / folder
    for name in ("offsets", "commits", "sources/0"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "metadata").write_text('{"id":"1"}')
    # as Spark writes a name that holds what ends a line for others
    entry = {"path": f"file:///in/{batch}\u2028.csv", "timestamp": 1, "batchId": batch}
    log = [json.dumps(entry, ensure_ascii=False)]
    if batch % 10 == 9:
        log = [line for n in range(batch) for line in log_lines(root, n)] + log
    name = f"{batch}.compact" if batch % 10 == 9 else f"{batch}"
    (root / "sources/0" / name).write_text("\n".join(["v1", *log]), "utf-8")
    (root / "offsets" / f"{batch}").write_text(f'v1\n{{"conf":{{}}}}\n{{"logOffset":{batch}}}')
    (root / "offsets" / f".{batch}.crc").write_bytes(b"crc")
    if done:
        (root / "commits" / f"{batch}").write_text('v1\n{"nextBatchWatermarkMs":0}')


def log_lines(root: Path, batch: int) -> list[str]:
    """The files of one batch, wherever the log holds them."""
    for path in sorted((root / "sources/0").glob("*")):
        for line in path.read_text("utf-8").split("\n")[1:]:
            if json.loads(line)["batchId"] == batch:
                return [line]
    return []


@contextmanager
def somebody_else() -> Iterator[None]:
    """Without the rights of root, whom no folder keeps out."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def loadable(store: VersionStore) -> list[int]:
    """Versions that are listed as whole."""
    table = list_versions(store, True)
    return list(table.version[table.loadable.astype(bool)])


def store_of(kind: type[ObjectStore] = ObjectStore) -> Any:
    """A store on S3 whose own reads are not used here."""
    store = kind.__new__(kind)
    store.path, store.root, store.local = "s3://bucket/model", "bucket/model", False
    store.fs = SimpleNamespace(region="us-east-1")  # type: ignore[assignment]
    return store
