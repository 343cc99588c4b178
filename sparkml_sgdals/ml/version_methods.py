"""What a model's user does to its versions: list them, go back, forget users (driver)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from sparkml_sgdals.ml.recommend_methods import TableOrIds
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.forgetting import forget_users
from sparkml_sgdals.store.large.opening import open_version, refuse_whole
from sparkml_sgdals.store.maintenance import Rollback, list_versions, roll_back
from sparkml_sgdals.store.objects import Location, full_path
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.version_store import VersionStore

__all__ = ["VersionMethods"]


class VersionMethods:
    """Methods of the model that are about a model path."""

    version: int
    _state: ModelState
    _shared: bool
    _frames: Any
    _path_id: str | None
    _stored: Overlay | None
    getMaxResidentIds: Callable[[], int]
    _subset: Callable[[Any, str], Any]

    @classmethod
    def versions(cls, path: Location, verify: bool = True) -> pd.DataFrame:
        """List the versions kept under a model path, oldest first.

        Parameters
        ----------
        path : Location
            the model path, a folder or URI
        verify : bool
            read all files and compare their checksums, which takes as long as reading them; else
            only see that they are there

        Returns
        -------
        version, batch, committed (time), ratings (learned up to there), rmse (of the batch before
        it was learned), validationRmse, restored (the version that a rollback went back to),
        loadable

        Raises StorageError where there is no model path.
        """
        return list_versions(VersionStore(full_path(path)), verify)

    @classmethod
    def rollback(cls, path: Location, version: int, reread: bool = True) -> Rollback:
        """Go back to a version, for example because bad data got in, and say where it reads on.

        The version's factors become those of a new version, the newest one; versions in between
        stay until they are pruned, their batches leave the metrics. Stop the stream before; start
        it again after. Broken off at any moment, all is as before or all is done.

        Parameters
        ----------
        path : Location
            the model path, a folder or URI
        version : int
            the version to go back to, one that `versions` lists
        reread : bool
            the stream reads on from where it stood after `version`, so clean the source first or it
            learns the same again; False: it goes on from where it stands now, and what it read
            since `version` is left out

        Raises
        ------
        LeaseError
            a stream writes to the path
        StorageError
            the version is not kept or is damaged, or Spark no longer keeps its offsets (it keeps
            those of 100 batches: spark.sql.streaming.minBatchesToRetain)
        """
        return roll_back(VersionStore(full_path(path)), version, reread)

    def forget(self, users: TableOrIds, modelPath: Location | None = None) -> Any:
        """Remove users and all that is stored of them alone; `version` grows by one.

        What they rated has moved the factors of the items, and stays in these.

        Parameters
        ----------
        users : TableOrIds
            a table with the column userCol, or a list of ids
        modelPath : Location | None
            remove them in every version kept under this path as well, then be its newest version;
            stop the stream before

        Returns
        -------
        this model

        Raises
        ------
        LeaseError
            a stream writes to the path
        StorageError
            the path holds no version, or a damaged one
        """
        ids = self._subset(users, "user")
        if modelPath is not None:
            store = VersionStore(full_path(modelPath))
            forget_users(store, ids)
            limit = self.getMaxResidentIds() if self._stored is None else self._stored.limit
            self._state, commit, self._stored = open_version(store, None, lambda: limit)
            self.version = commit.version
            self._path_id = (store.meta() or {}).get("pathId")
        else:
            refuse_whole(self._state, "To forget users without a modelPath")
            if self._shared:
                self._state = self._state.copy()
            self._state.users = self._state.users.without(ids)
            self._state.ranges = self._state.ranges.without_users(ids)
            self.version += 1
            self._path_id = None
        self._shared = False
        self._frames = None
        return self
