"""A model path that several test modules write versions to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from building import ratings_of, settings_of

from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.model_state import SETTLING_RATINGS, ModelState, Scale
from sparkml_sgdals.store.version_store import VersionStore

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
