"""Which ratings the service knows of each user: those it was started with, those posted to it."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.id_index import IdIndex
from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type
from sparkml_sgdals.arrays.ratings import encode_ratings, layout_by
from sparkml_sgdals.arrays.screening import screen
from sparkml_sgdals.serving.model.ids import Key, key_of
from sparkml_sgdals.serving.model.titles import read_file

__all__ = ["MOST_KNOWN", "History", "IntakeColumns", "Known", "named_columns", "read_ratings"]

logger = logging.getLogger(__name__)

I64 = npt.NDArray[np.int64]

MOST_KNOWN: Final = 100_000
"""ratings posted that are remembered: at most some 60 MB, where each is of another user"""
_PARAMS: Final = {
    "user": "userCol", "item": "itemCol", "rating": "ratingCol", "time": "timestampCol",
}  # fmt: skip
"""Params of a model that name columns; what names an event is the stream's affair"""


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

    @classmethod
    def of_model(
        cls, params: Mapping[str, Any], given: IntakeColumns | Mapping[str, str] | None = None
    ) -> IntakeColumns:
        """Return the columns that are given, and for the others those of a model's Params.

        What differs from the Params is logged: a stream that was not told of it reads nulls.
        Raises ValueError for a name that is none of these.
        """
        chosen = asdict(given) if isinstance(given, IntakeColumns) else dict(given or {})
        known = [field.name for field in fields(cls)]
        for name in chosen:
            if name not in known:
                raise ValueError(f"columns has {name!r}, and may have {', '.join(known)}.")
        # a path holds the Params that were set; those by default are called as here, but for the
        # time, which by default is not read
        reads = {name: params.get(p) or getattr(cls, name) for name, p in _PARAMS.items()}
        if not params.get(_PARAMS["time"]):
            del reads["time"]
        for name, column in reads.items():
            if chosen.get(name, column) != column:
                logger.warning(
                    "Ratings are written with the column %r, and the model reads %s=%r: leave out "
                    "the column of this service, unless the stream renames it.",
                    chosen[name], _PARAMS[name], column,
                )  # fmt: skip
        return cls(**{**reads, **chosen})


def named_columns(text: str) -> dict[str, str]:
    """Return columns by name from 'user,item,rating,time,event'; an empty one is left out."""
    columns = [column.strip() for column in text.split(",")]
    if len(columns) != 5:
        raise ValueError(f"--columns names five columns, got {text!r}.")
    names = ("user", "item", "rating", "time", "event")
    return {name: column for name, column in zip(names, columns, strict=True) if column}


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
