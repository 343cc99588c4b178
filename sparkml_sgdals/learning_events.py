"""Learning events onto a model in memory, and what it then ranks by (driver, executor; no Spark).

A table and a micro-batch are learned alike: each event once, in its order. It only arranges calls
of the kernels in `positive` and `isgd`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.event_memory import HALF_LIVES, ItemMemory, UserMemory
from sparkml_sgdals.factors import FactorTable
from sparkml_sgdals.hashing import id_keys, pair_hash
from sparkml_sgdals.isgd import descend_events
from sparkml_sgdals.kernels import check_rows
from sparkml_sgdals.positive import CONTEXT_DECAY, CONTEXT_ITEMS, filter_events
from sparkml_sgdals.ratings import Ratings
from sparkml_sgdals.settings import Settings
from sparkml_sgdals.solvers import DivergenceError
from sparkml_sgdals.state import ModelState, Scale

__all__ = ["Learned", "learn_events", "log_shares", "serving_state"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_UNSEEN: Final = 0.01
"""share of all events that popularity keeps for items without any"""
_EVENT: Final = np.uint64(0xA0761D6478BD642F)


@dataclass(frozen=True)
class Learned:
    """Rows of users and items whose state has changed, and how many ids are new."""

    user_rows: I64
    item_rows: I64
    new_users: int
    new_items: int


def learn_events(state: ModelState, ratings: Ratings) -> Learned:
    """Learn each row of a table of events once, in place.

    A rating r counts as (1 + alpha r) / (1 + alpha) events; one of 0 or less says that the user
    does not like the item, as in ALS.

    Raises
    ------
    DivergenceError : the state is then as it was before, as after any other error
    """
    sizes = state.users.size, state.items.size
    try:
        user_rows, new_users = state.users.ensure(ratings.user_ids)
        item_rows, new_items = state.items.ensure(ratings.item_ids)
        check_rows(ratings.users, user_rows.size, "user")
        check_rows(ratings.items, item_rows.size, "item")
        work = _Work(state, ratings, user_rows, item_rows)
        learn = work.filter if state.settings.solver == "bayes" else work.descend
        touched, counted = learn()
        if not work.finite(touched):
            raise _diverged(state.settings)
    except BaseException as failure:
        state.users.truncate(sizes[0])
        state.items.truncate(sizes[1])
        if isinstance(failure, ZeroDivisionError):
            # a weight or variance fell below what a float32 holds
            raise _diverged(state.settings) from failure
        raise
    work.put(touched)
    low, high = ratings.value_range()
    before = state.counters
    state.counters = replace(
        before,
        ratings=before.ratings + len(ratings),
        low=min(low, before.low),
        high=max(high, before.high),
    )
    state.events += counted
    return Learned(user_rows, np.flatnonzero(touched), new_users, new_items)


def _diverged(settings: Settings) -> DivergenceError:
    return DivergenceError(
        f"{settings.solver} left factors that are not finite. Lower stepSize (now "
        f"{settings.step_size}), or look for ratings or weights of an absurd size."
    )


class _Work:
    """A batch on copies: users compact, items whole because draws may reach any of them."""

    def __init__(self, state: ModelState, ratings: Ratings, user_rows: I64, item_rows: I64) -> None:
        self.state, self.ratings, self.user_rows = state, ratings, user_rows
        self.item_rows = item_rows
        self.users = state.users.take(user_rows)
        self.items = item_rows[ratings.items].astype(np.int32)
        self.user_memory, self.item_memory = _memories(state)
        alpha = np.float32(state.settings.alpha)
        confidence = (1.0 + alpha * np.abs(ratings.values)) / (1.0 + alpha)
        self.weights = (
            confidence * ratings.weights if ratings.weights.size else confidence
        ).astype(np.float32)
        self.mean = state.items.mean.copy()
        self.var = state.items.var.copy()
        self.memory = self.item_memory.copy()
        self.parts = np.array(state.popularity_parts or _even_parts())
        self.done: list[I64] | None = None

    def filter(self) -> tuple[npt.NDArray[np.bool_], int]:
        """Learn by the logistic filter; which items have changed, and how many events there are."""
        state, r, settings = self.state, self.ratings, self.state.settings
        keys = id_keys(state.items.index.ids())
        order = np.argsort(keys)
        starts, lengths, done = self._done_rows(keys, order)
        fades = 0.5 ** (1.0 / np.array(HALF_LIVES))
        popularity = _popularity(self.memory, state.events, fades)
        cumulative = np.cumsum(popularity[order], axis=0).T.copy()
        seed = np.uint64(settings.seed & 0xFFFFFFFFFFFFFFFF)
        numbers = np.arange(len(r), dtype=np.uint64) + np.uint64(state.counters.ratings)
        pairs = pair_hash(id_keys(r.user_ids), id_keys(r.item_ids), r.users, r.items)
        touched = np.zeros(state.items.size, bool)
        counted = filter_events(
            r.users, self.items, r.values, self.weights, pairs ^ ((numbers + seed) * _EVENT),
            state.events, settings.num_negatives, np.float32(settings.drift),
            settings.implicit_prior, self.users.mean, self.users.var, self.mean, self.var,
            self.memory.context, self.memory.context_var, done, starts, lengths,
            order.astype(np.int32), cumulative, fades, self.memory.popularity, self.memory.last,
            self.parts, np.zeros(state.items.size, np.int64), touched,
        )  # fmt: skip
        signed = keys.view(np.int64)
        self.done = [
            signed[done[begin : begin + length]]
            for begin, length in zip(starts.tolist(), lengths.tolist(), strict=True)
        ]
        return touched, int(counted)

    def descend(self) -> tuple[npt.NDArray[np.bool_], int]:
        """Learn by ISGD; as `filter`."""
        state, r, settings = self.state, self.ratings, self.state.settings
        last = self.memory.last
        known = np.flatnonzero(last > 0)
        touched = np.zeros(state.items.size, bool)
        counted = descend_events(
            r.users, self.items, r.values, self.weights, state.events, settings.num_negatives,
            np.float32(settings.step_size), np.float32(settings.regs[2]),
            np.float32(settings.regs[3]), self.users.mean, self.mean,
            known[np.argsort(last[known])].astype(np.int32), last, touched,
        )  # fmt: skip
        return touched, int(counted)

    def finite(self, touched: npt.NDArray[np.bool_]) -> bool:
        """Whether what was learned is finite."""
        rows = np.flatnonzero(touched)
        held = (self.mean[rows], self.var[rows])
        return (
            self.users.finite()
            and all(bool(np.isfinite(array).all()) for array in held)
            and self.memory.finite(rows)
        )

    def put(self, touched: npt.NDArray[np.bool_]) -> None:
        """Give the state what was learned."""
        state, r = self.state, self.ratings
        state.users.put_rows(self.users)
        state.items.mean[touched] = self.mean[touched]
        state.items.var[touched] = self.var[touched]
        state.items.events = self.memory
        if self.done is not None:
            for row, keys in zip(self.user_rows.tolist(), self.done, strict=True):
                self.user_memory.done[row] = keys
        state.users.count[self.user_rows] += np.bincount(r.users, minlength=self.user_rows.size)
        state.items.count[self.item_rows] += np.bincount(r.items, minlength=self.item_rows.size)
        state.popularity_parts = tuple(self.parts.tolist())

    def _done_rows(
        self, keys: npt.NDArray[np.uint64], order: I64
    ) -> tuple[I64, I64, npt.NDArray[np.int32]]:
        """What the batch's users have done, as rows of items, with room for the batch's events."""
        starts, held = self.user_memory.ragged(self.user_rows)
        rows = _rows_of(held, keys, order)
        owner = np.repeat(np.arange(self.user_rows.size), np.diff(starts))[rows >= 0]
        rows = rows[rows >= 0]
        lengths = np.bincount(owner, minlength=self.user_rows.size).astype(np.int64)
        room = lengths + np.bincount(self.ratings.users, minlength=self.user_rows.size)
        begins = np.concatenate([[0], np.cumsum(room)]).astype(np.int64)
        done = np.full(begins[-1], -1, np.int32)
        first = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        done[begins[owner] + np.arange(rows.size) - first[owner]] = rows
        return begins[:-1].copy(), lengths, done


def serving_state(state: ModelState) -> ModelState:
    """The model that scores pairs: score = scale.mean + bias of the item + U . P.

    Under 'bayes' an item's bias holds the logarithm of its share of events and a user's features
    what it did last: the score is the logarithm of the probability that the user's next event is
    this item, but for a constant of the user's. Under 'isgd' it is U . P. Nothing is clipped.
    """
    settings = replace(state.settings, positive=False, implicit_prior=False)
    served = ModelState.empty(settings, state.users.index.kind, state.items.index.kind)
    served.users, served.items = (_bare(table) for table in (state.users, state.items))
    served.scale = Scale(frozen=True)
    if settings.solver == "bayes" and state.items.size:
        user_memory, item_memory = _memories(state)
        keys = id_keys(state.items.index.ids())
        users = np.arange(state.users.size)
        served.users.mean[:, 1:] += _recent_context(user_memory, item_memory, users, keys)
        logs, least = log_shares(item_memory, state.events, state.popularity_parts)
        served.items.mean[:, 0] += logs
        served.scale = Scale(mean=least, frozen=True)
    return served


def log_shares(memory: ItemMemory, now: int, parts: tuple[float, ...]) -> tuple[F32, float]:
    """Logarithms of the items' shares of events, equation (4), above that of an item without any.

    Parameters
    ----------
    now : events learned
    parts : share of each part of popularity; empty before the first event

    Returns
    -------
    float32, shape (items,), and the logarithm for an item without events
    """
    fades = 0.5 ** (1.0 / np.array(HALF_LIVES))
    faded = _popularity(memory, now, fades)
    shares = (faded / np.maximum(faded.sum(axis=0), 1e-300)) @ np.array(parts or _even_parts())
    floor = _UNSEEN / (memory.last.size + 1)
    logs = np.log((1.0 - _UNSEEN) * shares + floor)
    return (logs - np.log(floor)).astype(np.float32), float(np.log(floor))


def _memories(state: ModelState) -> tuple[UserMemory, ItemMemory]:
    users, items = state.users.events, state.items.events
    assert isinstance(users, UserMemory)
    assert isinstance(items, ItemMemory)
    return users, items


def _even_parts() -> tuple[float, ...]:
    return (1.0 / len(HALF_LIVES),) * len(HALF_LIVES)


def _popularity(memory: ItemMemory, now: int, fades: F64) -> F64:
    """Faded events of each item as they stand now, shape (items, parts)."""
    age = (now - memory.last).astype(np.float64)[:, None]
    return memory.popularity * fades[None, :] ** age


def _rows_of(held: I64, keys: npt.NDArray[np.uint64], order: I64) -> I64:
    """Rows of item keys, -1 where the item is not known any more."""
    if not keys.size:
        return np.full(held.size, -1, np.int64)
    wanted = held.view(np.uint64)
    places = np.minimum(np.searchsorted(keys, wanted, sorter=order), keys.size - 1)
    rows = order[places]
    return np.where(keys[rows] == wanted, rows, -1)


def _recent_context(
    users: UserMemory, items: ItemMemory, rows: I64, keys: npt.NDArray[np.uint64]
) -> F32:
    """What the items that users did last add to their features, shape (users, rank)."""
    order = np.argsort(keys)
    total = np.zeros((rows.size, items.context.shape[1]), np.float32)
    squares = np.zeros(rows.size)
    recent = np.full((rows.size, CONTEXT_ITEMS), -1, np.int64)
    starts, held = users.ragged(rows)
    found = _rows_of(held, keys, order)
    for x in range(rows.size):
        own = found[starts[x] : starts[x + 1]]
        own = own[own >= 0][: -CONTEXT_ITEMS - 1 : -1]
        recent[x, : own.size] = own
    for k in range(CONTEXT_ITEMS):
        there = np.flatnonzero(recent[:, k] >= 0)
        squares[there] += CONTEXT_DECAY ** (2 * k)
        share = np.float32(CONTEXT_DECAY**k)
        total[there] += share * items.context[recent[there, k]]
    norms = np.sqrt(np.where(squares > 0, squares, 1.0)).astype(np.float32)
    return total / norms[:, None]


def _bare(table: FactorTable) -> FactorTable:
    """A copy of means and variances, without what only learning needs."""
    twin = table.copy()
    twin.events = None
    return twin
