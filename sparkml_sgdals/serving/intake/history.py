"""Which ratings the service knows of each user: those it was started with, those posted to it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.id_index import IdIndex
from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type
from sparkml_sgdals.arrays.ratings import encode_ratings, layout_by
from sparkml_sgdals.arrays.screening import screen
from sparkml_sgdals.serving.model.ids import Key, key_of
from sparkml_sgdals.serving.model.titles import read_file

__all__ = ["MOST_KNOWN", "History", "IntakeColumns", "Known", "read_ratings"]

I64 = npt.NDArray[np.int64]

MOST_KNOWN: Final = 100_000
"""ratings posted that are remembered: at most some 60 MB, where each is of another user"""


@dataclass(frozen=True)
class IntakeColumns:
    """Names of the columns of ratings, in files and in what is sent to the stream."""

    user: str = "user"
    item: str = "item"
    rating: str = "rating"
    time: str = "timestamp"
    event: str = "eventId"
    user_features: str = "userFeatures"
    item_features: str = "itemFeatures"


@dataclass(frozen=True)
class Known:
    """A rating that the service knows; `time` in seconds since 1970, None where not known."""

    item: Key
    rating: float
    time: int | None


class History:
    """Ratings by user. Safe to use from several threads.

    Parameters
    ----------
    kinds : tuple[IdKind, IdKind]
        of ids of users and items
    table : pa.Table | None
        ratings that users are known to have given, as `read_ratings` returns them; all are kept
    most : int
        ratings posted that are remembered beside these; those of users who posted least recently
        go first, and of a user who fills a tenth of them the oldest
    """

    def __init__(
        self,
        kinds: tuple[IdKind, IdKind],
        table: pa.Table | None = None,
        most: int = MOST_KNOWN,
    ) -> None:
        self._kinds = kinds
        self._most = most
        self._num_posted = 0
        # users in the order of their last post; of each item rating and time, in that of posting
        self._posted: OrderedDict[Key, dict[Key, tuple[float, int | None]]] = OrderedDict()
        self._lock = threading.Lock()
        self._users = IdIndex(kinds[0])
        self._layout = None
        if table is not None and table.num_rows:
            ratings = encode_ratings(table)
            self._users.add(ratings.user_ids)
            self._items = ratings.item_ids
            self._layout = layout_by(
                ratings.users, ratings.items, ratings.values, ratings.weights,
                len(ratings.user_ids),
            )  # fmt: skip

    def add(self, user: Key, ratings: Iterable[Known]) -> None:
        """Ratings posted by a user; the latest of an item stands."""
        key = key_of(user, self._kinds[0])
        if key is None:
            return
        with self._lock:
            held = self._posted.pop(key, {})
            self._num_posted -= len(held)
            for one in ratings:
                item = key_of(one.item, self._kinds[1])
                if item is not None:
                    held.pop(item, None)
                    held[item] = one.rating, one.time
            while len(held) > max(self._most // 10, 1):
                del held[next(iter(held))]
            self._posted[key] = held
            self._num_posted += len(held)
            while self._num_posted > self._most:
                self._num_posted -= len(self._posted.popitem(last=False)[1])

    def of(self, user: Key) -> list[Known]:
        """Return a user's ratings, one an item, those posted last and in the order of posting."""
        key = key_of(user, self._kinds[0])
        if key is None:
            return []
        found: dict[Key, Known] = {}
        layout = self._layout
        if layout is not None:
            row = int(self._users.find(pa.array([key], id_array_type(self._kinds[0])))[0])
            if row >= 0:
                part = slice(int(layout.starts[row]), int(layout.starts[row + 1]))
                ids = self._items.take(pa.array(layout.partners[part])).to_pylist()
                values = layout.values[part].tolist()
                found = {i: Known(i, v, None) for i, v in zip(ids, values, strict=True)}
        with self._lock:
            posted = list(self._posted.get(key, {}).items())
        for item, (rating, time) in posted:
            found.pop(item, None)
            found[item] = Known(item, rating, time)
        return list(found.values())


def read_ratings(path: str, columns: IntakeColumns, kinds: tuple[IdKind, IdKind]) -> pa.Table:
    """Ratings of a file, or of all files of a folder, as `encode_ratings` takes them.

    Raises ValueError where a column is not there or of another kind.
    """
    place = Path(path)
    endings = {".csv", ".json", ".jsonl", ".parquet"}
    files = sorted(f for f in place.iterdir() if f.suffix in endings) if place.is_dir() else [place]
    tables = [_select(read_file(str(f)), str(f), columns, kinds) for f in files]
    if not tables:
        return pa.table({n: pa.array([], t) for n, t in _types(kinds).items()})
    table, _, _ = screen(pa.concat_tables(tables))
    return table


def _types(kinds: tuple[IdKind, IdKind]) -> dict[str, pa.DataType]:
    return {
        "user": id_array_type(kinds[0]), "item": id_array_type(kinds[1]), "rating": pa.float32(),
    }  # fmt: skip


def _select(
    table: pa.Table, path: str, columns: IntakeColumns, kinds: tuple[IdKind, IdKind]
) -> pa.Table:
    names = {"user": columns.user, "item": columns.item, "rating": columns.rating}
    # so that times decide which rating of an item stands
    time = columns.time if columns.time in table.column_names else None
    for name in names.values():
        if name not in table.column_names:
            raise ValueError(
                f"{path} has no column {name!r}, it has {', '.join(table.column_names)}."
            )
    try:
        found = {n: table.column(names[n]).cast(t) for n, t in _types(kinds).items()}
        if time is not None and pa.types.is_integer(table.column(time).type):
            order = pa.compute.sort_indices(table.column(time))
            found = {name: column.take(order) for name, column in found.items()}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as failure:
        raise ValueError(f"{path} holds other ids than the model: {failure}") from failure
    return pa.table(found)
