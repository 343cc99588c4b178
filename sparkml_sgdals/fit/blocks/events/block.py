"""One block of a table of events: what its events say, its descent, what its users did (executor).

Arrays in, arrays out, as in `block`: the layouts are the same, their ratings being targets and
their weights confidences. Source: `learn.least_squares`, which fits a table in one task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import id_keys, pair_hash
from sparkml_sgdals.arrays.ratings import Layout, Ratings, layout_by
from sparkml_sgdals.arrays.sorting import sort_by_key
from sparkml_sgdals.fit.blocks.block import BlockLayout, BlockState
from sparkml_sgdals.kernels.lanes import padded_rows
from sparkml_sgdals.learn.event_tables import said_by_events, start_features
from sparkml_sgdals.learn.least_squares import (
    descend_half,
    gram_of,
    id_weights,
    shrinkage,
    unpadded,
    weights_beside,
)
from sparkml_sgdals.learn.shares import pairs_that_count, some_of
from sparkml_sgdals.learn.solvers import sweeps_settled
from sparkml_sgdals.state.event_memory import UserMemory
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "EventSums",
    "EventTotals",
    "descend_block",
    "done_lists",
    "event_cells",
    "event_table",
    "start_block",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EventSums:
    """Sums over the ids of a block, or of all blocks of a side.

    Attributes
    ----------
    ids : int
        how many there are
    weight : float
        of their events
    errors : float
        weighted sum of squared errors of their events; NaN before they were fitted
    squares : F64
        float64, shape (wide, wide), `gram_of` their features
    """

    ids: int
    weight: float
    errors: float
    squares: F64

    def to_arrays(self) -> dict[str, Array]:
        """Return the sums as named arrays."""
        numbers = np.array([self.ids, self.weight, self.errors], np.float64)
        return {"numbers": numbers, "squares": self.squares}

    @classmethod
    def total(cls, parts: Iterable[dict[str, Array]]) -> EventSums:
        """Return the sum of what `to_arrays` gave, in the order given."""
        given = list(parts)
        numbers = np.sum([part["numbers"] for part in given], axis=0)
        squares: F64 = np.sum([part["squares"] for part in given], axis=0)
        return cls(int(numbers[0]), float(numbers[1]), float(numbers[2]), squares)


@dataclass(frozen=True)
class EventTotals:
    """What every block knows of the whole table.

    Attributes
    ----------
    users, items : EventSums | None
        as they are by now, None before the first
    losses : tuple[float, ...]
        what the descent makes smaller, but for what shrinks, after each sweep
    history : tuple[float, ...]
        root of the mean squared error of an event after each
    """

    users: EventSums | None = None
    items: EventSums | None = None
    losses: tuple[float, ...] = ()
    history: tuple[float, ...] = ()

    def after_users(self, sums: EventSums) -> EventTotals:
        """Return what is known once the users' sums have come in."""
        return replace(self, users=sums)

    def after_items(self, sums: EventSums, unobserved: float) -> EventTotals:
        """Return what is known once the items' sums have come in, at the start or after a sweep."""
        if math.isnan(sums.errors) or self.users is None:
            return replace(self, items=sums)
        of_all_pairs = float((self.users.squares * sums.squares).sum())
        return EventTotals(
            self.users,
            sums,
            (*self.losses, sums.errors + unobserved * of_all_pairs),
            (*self.history, math.sqrt(sums.errors / sums.weight)),
        )

    @property
    def weights_beside(self) -> tuple[float, float]:
        """What is put beside the weight of a user's events, and of an item's, to shrink them."""
        assert self.users is not None
        assert self.items is not None
        return weights_beside(self.users.weight, self.users.ids, self.items.ids)

    def settled(self, tol: float) -> bool:
        """Whether sweeps may end."""
        return sweeps_settled(self.losses, tol)

    def to_arrays(self) -> dict[str, Array]:
        """Return all of it as named arrays."""
        arrays: dict[str, Array] = {
            "losses": np.array(self.losses, np.float64),
            "history": np.array(self.history, np.float64),
        }
        for side, sums in (("users", self.users), ("items", self.items)):
            if sums is not None:
                arrays |= {f"{side}.{name}": a for name, a in sums.to_arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, a: dict[str, Array]) -> EventTotals:
        """Return the inverse of `to_arrays`."""
        sides = [
            EventSums.total([{name: a[f"{side}.{name}"] for name in ("numbers", "squares")}])
            if f"{side}.numbers" in a
            else None
            for side in ("users", "items")
        ]
        return cls(sides[0], sides[1], tuple(a["losses"].tolist()), tuple(a["history"].tolist()))


def event_cells(
    cells: Sequence[Ratings | None], settings: Settings, total: int
) -> list[Ratings | None]:
    """Return the cells of a block with targets in the place of ratings, and confidences as weights.

    Of a pair that comes again and again they hold what counts among `total` events. Raises
    DivergenceError where a weight is not a number above 0.
    """
    cells = [
        None if cell is None else some_of(cell, pairs_that_count(cell, total)) for cell in cells
    ]
    said = [None if cell is None else said_by_events(settings, cell) for cell in cells]
    weighted = any(some is not None and some[1].size for some in said)
    found: list[Ratings | None] = []
    for cell, some in zip(cells, said, strict=True):
        if cell is None or some is None:
            found.append(None)
            continue
        targets, weights = some
        ones = np.ones(len(cell), np.float32)
        if weighted and not weights.size:
            weights = ones
        values = targets if targets.size else ones
        found.append(replace(cell, values=values, weights=weights))
    return found


def user_counts(cells: Sequence[Ratings | None], block: BlockLayout, size: int) -> I64:
    """Return the events of each user of a block, all of them."""
    counts = np.zeros(size, np.int64)
    for cell, places in zip(cells, block.sends, strict=True):
        if cell is not None:
            counts[places] += np.bincount(cell.users, minlength=places.size)
    return counts


def start_block(
    side: int, ids: pa.Array, layout: Layout, settings: Settings
) -> tuple[BlockState, EventSums]:
    """Return a block before it is fitted, its taste being all that it learns, and its sums."""
    taste = np.empty((len(ids), settings.table_rank + 1), np.float32)
    owner = np.repeat(np.arange(len(ids)), layout.counts())
    taste[:, 0] = np.log1p(np.bincount(owner, layout.values, len(ids)))
    features = start_features(id_keys(ids), side, settings)
    taste[:, 1:] = features
    weight = float(id_weights(layout).sum())
    sums = EventSums(len(ids), weight, math.nan, gram_of(padded_rows(features)))
    return BlockState({"taste": taste}), sums


def descend_block(
    block: BlockLayout, state: BlockState, partners: F32, others: EventSums, beside: float,
    lam: float, settings: Settings, threads: int,
) -> EventSums:  # fmt: skip
    """Update one block in place with its partners fixed, and return its sums afterwards.

    Parameters
    ----------
    block : BlockLayout
        the block's events, ratings being targets
    state : BlockState
        the block, changed in place
    partners : F32
        float32, features of the partners in the layout's order
    others : EventSums
        of the whole other side, as it is by now
    beside : float
        what is put beside the weight of the events of each of the block's ids
    lam : float
        lambda of the block's side
    settings : Settings
        of the model
    threads : int
        at most so many at once; they change no result
    """
    a0 = settings.unobserved_weight
    taste = state.arrays["taste"]
    features = padded_rows(taste[:, 1:])
    weights = id_weights(block.layout)
    regs = shrinkage(weights, beside, lam)
    errors = descend_half(
        block.layout, features, padded_rows(partners), others.squares, a0, regs, threads,
        lowest=settings.lowest,
    )  # fmt: skip
    taste[:, 1:] = unpadded(features, settings.table_rank)
    return EventSums(len(taste), float(weights.sum()), errors, gram_of(features, threads))


def done_lists(
    cells: Iterable[tuple[Ratings, I32]], size: int, threads: int
) -> tuple[I64, npt.NDArray[np.int64]]:
    """Return what the users of a block have done, each item once, in the order of learning.

    Parameters
    ----------
    cells : Iterable[tuple[Ratings, I32]]
        the cells of the block, each with the places in the block of the users that it names
    size : int
        users of the block
    threads : int
        at most so many at once; they change no result

    Returns
    -------
    starts, int64, shape (size + 1,), and the keys of items, int64
    """
    rows, keys, hashes = [], [], []
    for cell, places in cells:
        done = cell.values > 0
        users, items = cell.users[done], cell.items[done]
        item_keys = id_keys(cell.item_ids)
        rows.append(places[users])
        keys.append(item_keys.view(np.int64)[items])
        hashes.append(pair_hash(id_keys(cell.user_ids), item_keys, users, items))
    order = sort_by_key(np.concatenate(hashes), threads)[1]
    own = np.concatenate(rows)[order].astype(np.int32)
    nothing = np.empty(0, np.float32)
    grouped = layout_by(own, order.astype(np.int32), np.ones(own.size, np.float32), nothing, size)
    listed = np.concatenate(keys)[grouped.partners]
    owner = np.repeat(np.arange(size), grouped.counts())
    # repeated pairs have the same hash
    first = np.ones(listed.size, bool)
    first[1:] = (listed[1:] != listed[:-1]) | (owner[1:] != owner[:-1])
    starts = np.zeros(size + 1, np.int64)
    np.cumsum(np.bincount(owner[first], minlength=size), out=starts[1:])
    return starts, listed[first]


def event_table(
    side: int, ids: pa.Array, counts: I64, state: BlockState, settings: Settings,
    done: tuple[I64, npt.NDArray[np.int64]] | None,
) -> pa.Table:  # fmt: skip
    """Return a fitted block in the Arrow form of a `FactorTable`.

    Parameters
    ----------
    side : int
        USER_SIDE or ITEM_SIDE
    ids : pa.Array
        of the block
    counts : I64
        int64, shape (ids,), events of each
    state : BlockState
        the block once it is fitted
    settings : Settings
        of the model
    done : tuple[I64, npt.NDArray[np.int64]] | None
        of users, as `done_lists`
    """
    table = FactorTable(side, "str" if pa.types.is_string(ids.type) else "int", settings)
    table.put(ids, {"count": counts, **state.arrays})
    # of ids that no table held nothing is known
    table.taste[table.taste[:, 0] <= 0.0] = 0.0
    if done is not None:
        assert isinstance(table.memory, UserMemory)
        starts, keys = done
        table.memory.replace(table.index.find(ids), np.split(keys, starts[1:-1]))
    return table.to_arrow()
