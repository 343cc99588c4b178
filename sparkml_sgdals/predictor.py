"""Use a model on one machine: predictions and rankings by NumPy, without a Spark session."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from sparkml_sgdals.arrays.given_ids import given_ids, lists_ids, several, whole_count
from sparkml_sgdals.arrays.id_kinds import id_array_type
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.kernels.topn import Positions, Tastes, candidate_products, query_products, top_n
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.event_scores import means_and_tastes, score_pairs, serving_state
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.feature_values import FeatureNames, start_featured
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.large.opening import open_version
from sparkml_sgdals.store.objects import Location
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.saved_model import is_saved, read_saved, saved_path
from sparkml_sgdals.store.version_store import VersionStore

__all__ = ["Predictor"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_SIGNS: Final = {"prediction": 0, "upper": 1, "lower": -1}
_MOST_IDS: Final = 5_000_000
"""Users and items in memory, where more can be read: as maxResidentIds is by default."""


class Predictor:
    """A model in this process's memory, one version of it; threads may share it.

    Attributes
    ----------
    version
        of the model
    """

    def __init__(
        self,
        state: ModelState,
        params: dict[str, Any],
        version: int,
        served: ModelState | None = None,
        stored: Overlay | None = None,
    ) -> None:
        # what reads the rows that `state` lacks, of a version too large for memory
        self._stored = stored
        # `served` is what `serving_state` made of a model of events, where that is at hand
        self._events = state.settings.learns_events
        if self._events and served is None:
            served = serving_state(state)
        self._state = state if served is None else served
        # what ids may join, of a model that is served as another
        self._whole = state if any(state.features) else self._state
        self._params = params
        self.version = version

    def __repr__(self) -> str:
        """Version and size."""
        users, items = self._state.ids
        return f"Predictor: version={self.version}, users={users}, items={items}"

    @classmethod
    def load(
        cls, path: Location, version: int | None = None, max_resident_ids: int = _MOST_IDS
    ) -> Predictor:
        """Read what `model.save(path)` wrote, or a version of a model path, the newest by default.

        Parameters
        ----------
        path : Location
            folder or URI
        version : int | None
            of a model path
        max_resident_ids : int
            users and items in memory; of a version in sorted runs with more of them rows are read
            by id. 0 = all

        Raises
        ------
        StorageError
            nothing readable is there, it is damaged or of another format
        """
        path = os.fspath(path)
        store = VersionStore(path)
        meta = store.meta()
        if meta is not None:
            state, commit, stored = open_version(store, version, lambda: max_resident_ids)
            return cls(state, meta.get("params", {}), commit.version, stored=stored)
        if not is_saved(path):
            raise StorageError(f"There is no model at {path}: look whether the path is right.")
        if version is not None:
            raise StorageError(f"{path} is a saved model, not a model path: it has no versions.")
        in_runs = saved_path(path)
        if in_runs is not None:
            place, metadata = in_runs
            params = metadata["defaultParamMap"] | metadata["paramMap"]
            state, _, stored = open_version(VersionStore(place), None, lambda: max_resident_ids)
            return cls(state, params, metadata["modelVersion"], stored=stored)
        saved = read_saved(path)
        return cls(saved.state, saved.params, saved.metadata["modelVersion"])

    def with_items(self, items: Mapping[Any, Mapping[str, Any]]) -> Predictor:
        """Return a predictor that knows more items, by their features alone, as `withItems` does.

        Parameters
        ----------
        items : Mapping[Any, Mapping[str, Any]]
            by id what is known of it: by the names of the fit numbers, texts and lists of texts;
            items that the model knows, or of which it has learned nothing, are left as they are

        Raises
        ------
        ValueError
            the model was fitted without features of items, or a number is none
        TypeError
            ids of another kind than the model's
        """
        return self._with(1, items)

    def with_users(self, users: Mapping[Any, Mapping[str, Any]]) -> Predictor:
        """Return a predictor that knows more users, by their features alone, as `withUsers` does.

        Parameters
        ----------
        users : Mapping[Any, Mapping[str, Any]]
            by id what is known of it, as at `with_items`

        Raises
        ------
        ValueError
            the model was fitted without features of users, or a number is none
        TypeError
            ids of another kind than the model's
        """
        return self._with(0, users)

    def _with(self, side: int, known: Mapping[Any, Mapping[str, Any]]) -> Predictor:
        what, weights = ("user", "item")[side], self._whole.features[side]
        if weights is None:
            raise ValueError(
                f"The model was fitted without features of {what}s, so there is nothing to start "
                "them from."
            )
        names = FeatureNames(weights)
        kinds = [table.index.kind for table in (self._whole.users, self._whole.items)]
        ids = given_ids(list(known), kinds[side], what)
        vectors = [names.vector(one)[0] for one in known.values()]
        told = [n for n, vector in enumerate(vectors) if vector]
        rows = names.rows(ids.take(pa.array(told, pa.int64())), [vectors[n] for n in told])

        def start(state: ModelState) -> None:
            start_featured((state.users, state.items)[side], rows.ids, rows, weights)

        if self._stored is None:
            state = self._whole.copy()
            start(state)
            return Predictor(state, self._params, self.version)
        nobody = pa.array([], id_array_type(kinds[1 - side]))
        stored = self._stored.fork()
        stored.add((nobody, rows.ids) if side else (rows.ids, nobody), start)
        return Predictor(stored.state, self._params, self.version, stored=stored)

    def predict(self, users: Iterable[Any], items: Iterable[Any]) -> pd.DataFrame:
        """Predict pairs, as `transform` does.

        Parameters
        ----------
        users, items : Iterable[Any]
            ids, as many of the one as of the other; those not known, or null, are predicted by what
            is left, or NaN where coldStartStrategy is 'nan' or 'drop'

        Returns
        -------
        DataFrame with a row a pair: prediction, float32 in rating units; std, float32, the
        deviation of a rating from it, NaN where the model knows none

        Raises
        ------
        TypeError
            ids of another kind than the model's
        ValueError
            more users than items, or fewer
        """
        users, items = several(users, "users"), several(items, "items")
        state = self._knowing(users, items)
        rows = _rows(state.users, users, "user"), _rows(state.items, items, "item")
        if rows[0].size != rows[1].size:
            raise ValueError(f"There are {rows[0].size} users and {rows[1].size} items.")
        if self._events:
            means, variances = score_pairs(state, *rows), np.zeros(rows[0].size, np.float32)
        else:
            means, variances = state.predict(*rows)
        if self._clips:
            means = state.clip(means)
        stds = np.full(means.size, np.nan, np.float32)
        if state.settings.solver == "bayes" and not self._events:
            spread = state.scale.spread
            noise = state.noise * state.noise_factors(*rows) * spread * spread
            stds = np.sqrt(variances.astype(np.float64) + noise).astype(np.float32)
        if self._params.get("coldStartStrategy", "bias") != "bias" or state.blank:
            cold = (rows[0] < 0) | (rows[1] < 0)
            means[cold] = stds[cold] = np.nan
        return pd.DataFrame({"prediction": means, "std": stds})

    def recommend(
        self,
        users: Iterable[Any],
        n: int = 10,
        exclude: Iterable[Any] | Sequence[Iterable[Any]] | None = None,
        rank_by: str = "prediction",
        candidates: Iterable[Any] | Sequence[Iterable[Any]] | None = None,
    ) -> pd.DataFrame:
        """Return the best items for users, equal ones by id, as `recommendForUserSubset` does.

        Parameters
        ----------
        users : Iterable[Any]
            ids; one that is not known is served by the items' biases
        n : int
            items for each
        exclude : Iterable[Any] | Sequence[Iterable[Any]] | None
            ids of items not to give: a list for all users, or for each of `users` one
        rank_by : str
            "prediction", or its "upper" or "lower" bound one deviation of the mean away
        candidates : Iterable[Any] | Sequence[Iterable[Any]] | None
            ids of items to choose from: a list for all users, or for each of `users` one; those not
            known are not ranked

        Returns
        -------
        DataFrame, best first for each user in turn: user, item, rating (float32, in rating units)

        Raises ValueError for other values, and for bounds of a model without variances.
        """
        wanted = list(several(users, "users"))
        sign = self._sign(rank_by)
        n = whole_count("n", n)
        gone = _of_each("exclude", exclude, len(wanted))
        among = _of_each("candidates", candidates, len(wanted))
        state = self._knowing(wanted, [])
        rows = _rows(state.users, wanted, "user")
        mean, taste = means_and_tastes(state.users, rows)
        # ids that are not known have the prior's variance
        prior = prior_variances(state.settings)
        var = None
        if sign:
            known = state.users.var[rows] if state.users.size else prior
            var = np.where(rows[:, None] >= 0, known, prior).astype(np.float32)
        queries, own = query_products(mean, var)
        order, ids, factors, other = self._candidates
        tastes = self._tastes
        best, scores = top_n(
            queries,
            factors,
            n,
            None if gone is None else self._positions(gone, order),
            None if own is None else (own, other),
            sign,
            None if tastes is None else Tastes(taste, tastes),
            None
            if state.heard is None
            else state.heard.of_rows(rows).of_users(self._places, order.size),
            None if among is None else self._positions(among, order),
        )
        found = best >= 0
        values = scores[found].astype(np.float64) * state.scale.spread + state.scale.mean
        ratings = state.clip(values.astype(np.float32)) if self._clips else values
        return pd.DataFrame(
            {
                "user": [user for user, n in zip(wanted, found.sum(axis=1), strict=True)
                         for _ in range(n)],
                "item": ids.take(pa.array(best[found])).to_pylist(),
                "rating": ratings.astype(np.float32),
            }
        )  # fmt: skip

    @property
    def _clips(self) -> bool:
        return bool(self._params.get("clipPredictions", True)) and not self._events

    def _knowing(self, users: Iterable[Any], items: Iterable[Any]) -> ModelState:
        """Return a state that has the rows of these ids, as far as they are known."""
        if self._stored is None:
            return self._state
        held = self._state
        found = (
            given_ids(ids, table.index.kind, side).drop_null().unique()
            for ids, table, side in ((users, held.users, "user"), (items, held.items, "item"))
        )
        return self._stored.rows_of(*found)

    @cached_property
    def _items(self) -> FactorTable:
        """All items."""
        if self._stored is None:
            return self._state.items
        items, limit = self._state.ids[1], self._stored.limit
        if items > limit:
            raise StorageError(
                f"To rank the {items} items of {self._stored.store.path} they have to be in "
                f"memory, and maxResidentIds is {limit}: load the model with more, or let tasks "
                "rank them by recommendForUserSubset."
            )
        return self._stored.all_of("items")

    @cached_property
    def _candidates(self) -> tuple[I64, pa.Array, F32, F32]:
        """Rows of items in the order of their ids, these ids, and the items' products."""
        items = self._items
        ids = items.index.ids()
        order = pa.compute.array_sort_indices(ids).to_numpy(zero_copy_only=False).astype(np.int64)
        bounded = self._state.settings.solver == "bayes"
        factors, other = candidate_products(
            items.mean[order], items.var[order] if bounded else None
        )
        nothing = np.empty((0, order.size), np.float32)
        return order, ids.take(pa.array(order)), factors, nothing if other is None else other

    @cached_property
    def _tastes(self) -> F32 | None:
        """What a fitted table says of the items, as `Tastes.candidates`; None without one."""
        taste = self._items.taste
        return np.ascontiguousarray(taste[self._candidates[0]].T) if taste.shape[1] else None

    @cached_property
    def _places(self) -> I32:
        """Position of each row's item among the candidates."""
        order = self._candidates[0]
        places = np.empty(order.size, np.int32)
        places[order] = np.arange(order.size, dtype=np.int32)
        return places

    def _sign(self, rank_by: str) -> int:
        if rank_by not in _SIGNS:
            raise ValueError(f"rank_by must be one of {', '.join(_SIGNS)}, got {rank_by!r}.")
        solver = self._state.settings.solver
        if _SIGNS[rank_by] and (solver != "bayes" or self._events):
            raise ValueError(
                f"rank_by={rank_by!r} needs a model of ratings learned by solver 'bayes': rank by "
                "'prediction'."
            )
        return _SIGNS[rank_by]

    def _positions(self, lists: Iterable[Iterable[Any]], order: I64) -> Positions:
        """Return ids of items, a list a user, as `top_n` takes their places."""
        places = self._places
        found = [_rows(self._items, one, "item") for one in lists]
        gone = [np.unique(places[rows[rows >= 0]]) for rows in found]
        starts = np.cumsum([0, *[len(one) for one in gone]], dtype=np.int64)
        return starts, np.concatenate([np.empty(0, np.int64), *gone]).astype(np.int32)


def _of_each(name: str, given: Any, users: int) -> list[Iterable[Any]] | None:
    """Return what is said of items for each user: a list of ids is for all of them."""
    if given is None:
        return None
    found = several(given, name)
    lists = [found] * users if lists_ids(found) else list(found)
    if len(lists) != users:
        raise ValueError(f"{name} has {len(lists)} lists, users are {users}.")
    return lists


def _rows(table: FactorTable, ids: Iterable[Any], side: str) -> I64:
    """Rows of ids, -1 where not known or null."""
    given = given_ids(ids, table.index.kind, side)
    rows = np.full(len(given), -1, np.int64)
    known = given.is_valid().to_numpy(zero_copy_only=False)
    rows[known] = table.index.find(given.drop_null())
    return rows
