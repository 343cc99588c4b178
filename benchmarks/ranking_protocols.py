"""Protocols that judge rankings on tables of events: what is read, held out, and counted.

Events are the good ratings of a set, or all its clicks or purchases, without repeated pairs, in the
order of the file; users with fewer than five events are left out, then items with fewer than five,
once each. Users and items are positions, in the order of their ids. Three protocols:

- random: a fifth of the events, numpy.random.default_rng(42).random(n) < 0.2, is held out;
- time: after each of five cuts, at .5, .6, .7, .8 and .9 of the events in time order, the next
  tenth is held out, of it the pairs whose user and item came before the cut; users of all cuts are
  pooled, so that one user may count five times;
- leave-one-out: the last event of each user that has done anything before it is held out.

All items learned are ranked, what a user has done before is left out, and nothing is sampled.
`inner` parts repeat a protocol inside what it learns, so that settings are chosen without its test.
Nothing here needs a Spark session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from sparkml_sgdals.metrics import list_hits, list_recall_at, ndcg_at

__all__ = [
    "PROTOCOLS",
    "SETS",
    "TOP",
    "Events",
    "Judged",
    "Source",
    "Split",
    "inner_splits",
    "judge",
    "read_events",
    "splits",
]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
TOP = 20
LEAST_EVENTS = 5
"""of a user, then of an item"""
SEED, INNER_SEED, TEST_SHARE = 42, 43, 0.2
CUTS = (5, 6, 7, 8, 9)
"""tenths of the events, in time order"""
COLUMNS = ["user", "item", "rating", "time"]


@dataclass(frozen=True)
class Events:
    """Who did what: positions of users and items, and times where the set has them.

    Attributes
    ----------
    users, items : I64
        shape (n,), in the order of the file
    order : I64 | None
        shape (n,), what came later has more; None where nothing says what came first
    timed : bool
        whether `order` is in seconds and compares events of different users
    """

    users: I64
    items: I64
    order: I64 | None = None
    timed: bool = False

    def __len__(self) -> int:
        return self.users.size

    def where(self, rows: Flags | I64 | slice) -> Events:
        """Some of them, users and items keeping their positions."""
        order = None if self.order is None else self.order[rows]
        return Events(self.users[rows], self.items[rows], order, self.timed)


@dataclass(frozen=True)
class Source:
    """Where a set lies and what counts as an event.

    Attributes
    ----------
    file : str
        below the folder of data
    user, item : str
        names of their columns
    least : float | None
        ratings from here on are events; None where every row is one
    order : str
        name of the column that orders the events; empty for none, "file" for the file's own order
    timed : bool
        whether it is in seconds
    """

    file: str
    user: str = "user"
    item: str = "item"
    least: float | None = None
    order: str = ""
    timed: bool = False

    @property
    def protocols(self) -> tuple[str, ...]:
        """What the set can be judged on."""
        last = ("leave-one-out",) if self.order else ()
        return ("random", *(("time",) if self.timed else ()), *last)


SETS = {
    "ml-latest-small": Source("ml-latest-small/ratings.csv", "userId", "movieId", 4.0,
                              "timestamp", timed=True),
    "movietweetings": Source("movietweetings/ratings.dat", least=8.0, order="time", timed=True),
    "douban": Source("douban/ratings.parquet", least=4.0),
    "beauty": Source("beauty/purchases.parquet", order="position"),
    "diginetica": Source("diginetica/clicks.parquet", "session", order="file"),
}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """What is learned, and the pairs that lists are judged by."""

    train: Events
    test: Events

    @property
    def users(self) -> I64:
        """Users with anything held out, by position, each once."""
        return np.unique(self.test.users)


def read_events(folder: Path, name: str) -> Events:
    """Events of a set, as all protocols take them."""
    source = SETS[name]
    path = folder / source.file
    if path.suffix == ".dat":
        table = pd.read_csv(path, sep="::", engine="python", header=None, names=COLUMNS)
    elif path.suffix == ".csv":
        table = pd.read_csv(path)
    else:
        table = pd.read_parquet(path)
    table = table.rename(columns={source.user: "user", source.item: "item"})
    if source.least is not None:
        table = table[table.rating >= source.least]
    order = np.arange(len(table)) if source.order == "file" else None
    if source.order not in ("", "file"):
        order = table[source.order].to_numpy(np.int64)
    return kept_events(table.user.to_numpy(), table["item"].to_numpy(), order, source.timed)


def with_enough(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of pairs that come once, of users and then of items that have enough of them."""
    rows = rows.drop_duplicates(["user", "item"])
    for side in ("user", "item"):
        rows = rows[rows.groupby(side)[side].transform("size") >= LEAST_EVENTS]
    return rows


def kept_events(
    users: npt.NDArray[np.generic],
    items: npt.NDArray[np.generic],
    order: I64 | None,
    timed: bool,
) -> Events:
    """Events without repeated pairs, of users and items that have enough of them."""
    pairs = with_enough(pd.DataFrame({"user": users, "item": items}))
    rows = pairs.index.to_numpy()
    sides = [np.unique(pairs[side], return_inverse=True)[1].astype(np.int64)
             for side in ("user", "item")]  # fmt: skip
    return Events(sides[0], sides[1], None if order is None else order[rows], timed)


def random_splits(events: Events, seed: int = SEED) -> list[Split]:
    """One split, by a number drawn for each event."""
    test = np.random.default_rng(seed).random(len(events)) < TEST_SHARE
    return [Split(events.where(~test), events.where(test))]


def time_splits(events: Events) -> list[Split]:
    """One split a cut."""
    if events.order is None or not events.timed:
        raise ValueError("These events have no times: they cannot be cut in time.")
    ordered = events.where(np.argsort(events.order, kind="stable"))
    found = []
    for cut in CUTS:
        begin, end = (len(events) * tenth // 10 for tenth in (cut, cut + 1))
        train, test = ordered.where(slice(begin)), ordered.where(slice(begin, end))
        came = np.isin(test.users, train.users) & np.isin(test.items, train.items)
        # no pair comes twice, so none of these was done before
        found.append(Split(train, test.where(came)))
    return found


def last_splits(events: Events) -> list[Split]:
    """One split: the last event of each user, of equal ones the last in the file."""
    if events.order is None:
        raise ValueError("Nothing says which of these events came last.")
    rows = np.lexsort([events.order, events.users])
    ordered = events.users[rows]
    last = np.append(ordered[1:] != ordered[:-1], True)
    has_more = np.append(False, ordered[1:] == ordered[:-1])
    test = np.zeros(len(events), bool)
    test[rows[last & has_more]] = True
    return [Split(events.where(~test), events.where(test))]


PROTOCOLS: dict[str, Callable[[Events], list[Split]]] = {
    "random": random_splits,
    "time": time_splits,
    "leave-one-out": last_splits,
}


def splits(events: Events, protocol: str, inner: bool = False) -> list[Split]:
    """What a protocol holds out, or what it holds out within what it learns."""
    return inner_splits(events, protocol) if inner else PROTOCOLS[protocol](events)


def inner_splits(events: Events, protocol: str) -> list[Split]:
    """The same protocol on what it never tests: what it learns, and before its first cut."""
    learned = PROTOCOLS[protocol](events)[0].train
    if protocol == "random":
        return random_splits(learned, INNER_SEED)
    return PROTOCOLS[protocol](learned)


@dataclass(frozen=True)
class Judged:
    """What each user's list is worth, users of all splits one after another.

    Attributes
    ----------
    recall, ndcg : F64
        shape (users,); recall is hits / min(places, items held out)
    """

    recall: F64
    ndcg: F64

    @classmethod
    def pooled(cls, parts: Sequence[Judged]) -> Judged:
        """Of several splits."""
        return cls(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("recall", "ndcg")))

    def row(self) -> dict[str, float]:
        """Means and their standard errors."""
        found: dict[str, float] = {"users": self.recall.size}
        for name in ("recall", "ndcg"):
            values: F64 = getattr(self, name)
            found[name] = float(values.mean())
            found[f"{name}Error"] = float(values.std(ddof=1) / np.sqrt(values.size))
        return found


def judge(lists: I64, split: Split, top: int = TOP) -> Judged:
    """Judge lists of items, a row for each of `split.users`, best first, -1 behind the end.

    Items that were never learned cannot be listed, and count as missed.
    """
    users = split.users
    if lists.shape[0] != users.size or lists.shape[1] > top:
        raise ValueError(f"{users.size} lists of at most {top} are judged, got {lists.shape}.")
    width = 1 + max(int(side.items.max(initial=0)) for side in (split.train, split.test))
    there = lists >= 0
    lengths = np.count_nonzero(there, axis=1)
    if not (there == (np.arange(lists.shape[1]) < lengths[:, None])).all():
        raise ValueError("-1 stands behind the end of a list only.")
    pairs = np.repeat(users, lengths) * width + lists[there]
    if np.isin(pairs, split.train.users * width + split.train.items).any():
        raise ValueError("A list holds what its user has done before.")
    rows = np.argsort(split.test.users, kind="stable")
    held_starts = np.searchsorted(split.test.users[rows], users)
    hits, held = list_hits(
        lists[there], np.append(0, np.cumsum(lengths)),
        split.test.items[rows], np.append(held_starts, rows.size), top,
    )  # fmt: skip
    return Judged(list_recall_at(hits, held, top), ndcg_at(hits, held, top))
