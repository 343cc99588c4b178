"""What a model of events ranks by: popularity, what a user did last, and tastes (no Spark).

Two judges know a user: the filter, which learns event by event, and a table that was fitted as a
whole. Either may be alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.hashing import USER_SIDE, find_keys
from sparkml_sgdals.kernels.events.draws import faded_popularity
from sparkml_sgdals.kernels.events.filter import CONTEXT_DECAY, CONTEXT_ITEMS
from sparkml_sgdals.kernels.events.judges import LEAST_SHARE, NEVER, judge_sums, mix_pairs
from sparkml_sgdals.kernels.events.partners import faded_strengths
from sparkml_sgdals.state.columns import FactorColumns
from sparkml_sgdals.state.event_memory import HALF_LIVES, ItemMemory, UserMemory
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState, Scale
from sparkml_sgdals.state.partners import Partners, latest_items

__all__ = [
    "Anchors",
    "even_parts",
    "heard_from",
    "heard_partners",
    "known_done",
    "log_shares",
    "means_and_tastes",
    "memories_of",
    "partner_shares_of",
    "popularity_logs",
    "recent_context",
    "rows_of_keys",
    "score_pairs",
    "serving_state",
    "table_alone",
    "table_biases",
    "tastes_of",
    "with_boosts",
]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_UNSEEN: Final = 0.01
"""share of all events that popularity keeps for items without any"""
_ANCHORS: Final = 512
"""items by which two judgements are brought to one unit, all where there are no more"""


def serving_state(state: ModelState) -> ModelState:
    """Return the model that scores pairs: docs/positive-only.md, equation (1).

    Under 'bayes' the bias of an item in `mean` is the logarithm of its share of events, and its
    own, and a user's features hold what it did last. In `taste`, of models that were fitted,
    column 0 is what the table's judgement is multiplied with, as a logarithm, of the user and of
    the item; the user's column 0 of `mean` is the same for the filter's. Under 'isgd' the score is
    U . P. Nothing is clipped.
    """
    settings = replace(state.settings, learns_events=False, implicit_prior=False, nonnegative=False)
    served = ModelState.empty(settings, state.users.index.kind, state.items.index.kind)
    served.users, served.items = (_bare(table) for table in (state.users, state.items))
    served.scale = Scale(frozen=True)
    if settings.solver != "bayes" or not state.items.size:
        return served
    user_memory, item_memory = memories_of(state)
    logs, least = popularity_logs(state, item_memory, state.items.count)
    served.items.mean[:, 0] += logs
    served.scale = Scale(mean=least, frozen=True)
    users, index = np.arange(state.users.size), state.items.index
    keys, order = index.keys(), index.by_key()
    shares = None
    if not table_alone(state):
        context = recent_context(user_memory, item_memory, users, keys, order)
        served.users.mean[:, 1:] += context
        starts, held = user_memory.ragged(users)
        latest = latest_items(starts, rows_of_keys(held, keys, order))
        shares = partner_shares_of(state, users, np.diff(starts))
        served.heard = heard_partners(state, latest, shares, state.users.taste, least)
    if settings.fits_events:
        features = served.users.mean[:, 1:]
        biases = served.items.mean[:, 0]
        anchors = Anchors(state, state.items, biases, (logs, least), lambda: order)
        own, table = anchors.weights(state.users.taste, features, shares)
        served.users.mean[:, 0], served.users.taste[:, 0] = own, table
        served.items.taste[:, 0] = table_biases(state, biases, state.items.taste[:, 0])
    return served


def partner_shares_of(state: ModelState, rows: I64, lengths: I64) -> F64 | None:
    """Return how far partners are believed of users, by rows; None where nothing is learned.

    `lengths`, int64 of shape (n,), is how many items they have done.
    """
    if not state.settings.pairs_items or not state.events_learned:
        return None
    last = memories_of(state)[0].last[rows]
    return state.partners.shares(state.events_learned, last, lengths)


def heard_partners(
    state: ModelState, latest: I32, shares: F64 | None, tastes: F32, least: float
) -> Partners | None:
    """Return what stands together with what some users did last; None where nothing is learned.

    Parameters
    ----------
    state : ModelState
        the model
    latest : I32
        int32, shape (users, 10): rows of the items done last, the last first, then -1
    shares : F64 | None
        float64, shape (users,), as `partner_shares_of`
    tastes : F32
        float32, shape (users, table rank + 1), as the column of that name
    least : float
        what is added to all scores
    """
    if shares is None:
        return None
    memory, index = memories_of(state)[1], state.items.index
    rows = memory.look_up(lambda held: rows_of_keys(held, index.keys(), index.by_key()))
    own: I64 = np.arange(rows.shape[0])
    some: I64 = np.unique(latest[latest >= 0]).astype(np.int64)
    if 4 * some.size < own.size:
        # a batch's users did few of all items last
        places = np.full(own.size + 1, -1, np.int32)
        places[some] = np.arange(some.size)
        rows, own, latest = rows[some], some, places[latest]
    paired = memory.paired_strengths(own)
    return heard_from(state, paired, rows, own, latest, shares, tastes, least)


def heard_from(
    state: ModelState, paired: tuple[F32, F32, I64], rows: I32, own: I64, latest: I32,
    shares: F64, tastes: F32, least: float,
) -> Partners:  # fmt: skip
    """`heard_partners` of some items: their `paired_strengths`, their partners' rows and theirs."""
    strengths, sums, times = paired
    unknown = faded_strengths(strengths, sums, times, state.events_learned)
    if state.again > 0.0:
        # what is not known of an item's partners speaks for the item itself
        strengths = np.hstack([strengths, np.float32(state.again) * unknown[:, None]])
        rows = np.hstack([rows, own[:, None].astype(np.int32)])
    believed = state.partners
    weights = believed.beside_filter(shares)
    if tastes.shape[1]:
        # there the other judges' scores are probabilities
        weights = np.where(tastes[:, 0] != 0.0, believed.beside_probability(shares), weights)
    return Partners(latest, (weights * np.exp(-least)).astype(np.float32), rows, strengths)


def table_alone(state: ModelState) -> bool:
    """Whether a table was fitted and the filter has learned nothing: no time came with it."""
    return state.settings.fits_events and not state.events_learned


def table_biases(state: ModelState, biases: F32, counts: F32) -> F32:
    """Return what the table's judgement of items is multiplied with, as logarithms.

    That is what they are popular by now, `biases`, against what they were popular by in the table,
    `counts`: column 0 of their `taste`.
    """
    if table_alone(state):
        return np.zeros(biases.size, np.float32)
    known: F32 = biases - counts
    return known


def means_and_tastes(table: FactorTable, rows: I64) -> tuple[F32, F32]:
    """Copy the means and tastes of rows of a served model; -1 is an id that is not known."""
    unknown = rows < 0
    mean, taste = (
        np.zeros((rows.size, array.shape[1]), np.float32) for array in (table.mean, table.taste)
    )
    mean[~unknown], taste[~unknown] = table.mean[rows[~unknown]], table.taste[rows[~unknown]]
    if table.side == USER_SIDE:
        taste[unknown, :1] = NEVER
    return mean, taste


def score_pairs(served: ModelState, users: I64, items: I64) -> F32:
    """Score pairs by what `serving_state` gave.

    Parameters
    ----------
    served : ModelState
        the model
    users, items : I64
        int64, shape (n,), rows; -1 for an id that is not known

    Returns
    -------
    float32, shape (n,)
    """
    scores = np.empty(users.size, np.float32)
    own, other = served.users, served.items
    mix_pairs(users, items, own.mean, other.mean, own.taste, other.taste, scores)
    if served.heard is not None:
        scores = with_boosts(scores, served.heard.of_pairs(users, items))
    return scores + np.float32(served.scale.mean)


def with_boosts(scores: F32, boosts: F32) -> F32:
    """Return log(exp(score) + boost), float32, shape (n,)."""
    logs = np.full(boosts.size, -np.inf)
    logs[boosts > 0] = np.log(boosts[boosts > 0].astype(np.float64))
    found: F32 = np.logaddexp(scores.astype(np.float64), logs).astype(np.float32)
    return found


def tastes_of(table: FactorTable) -> F32:
    """Return the features by which ids are alike, column 0 apart: the table's where it has some."""
    return table.taste if table.settings.fits_events else table.mean


class Anchors:
    """Items that stand for all of them: by their sums two judgements are brought to one unit.

    All items where there are at most 512, else as many drawn in proportion to popularity, in an
    order of items that does not depend on the process.

    Parameters
    ----------
    state : ModelState
        the model that was fitted; its ids are not looked at
    items : FactorColumns
        its items
    biases : F32
        float32, shape (items,), as `serving_state` has them
    popularity : tuple[F32, float]
        as `popularity_logs`
    order : Callable[[], I64]
        what sorts the items by their keys
    """

    def __init__(
        self, state: ModelState, items: FactorColumns, biases: F32, popularity: tuple[F32, float],
        order: Callable[[], I64],
    ) -> None:  # fmt: skip
        logs, self._least = popularity
        rows, weights = np.arange(biases.size), np.zeros(1, np.float32)
        if rows.size > _ANCHORS:
            ordered = order()
            total = np.cumsum(np.exp(logs[ordered].astype(np.float64)))
            points = (np.arange(_ANCHORS) + 0.5) / _ANCHORS * total[-1]
            places = np.minimum(np.searchsorted(total, points), rows.size - 1)
            shares = np.diff(total, prepend=0.0)[places] / total[-1]
            rows, weights = ordered[places], -np.log(shares * _ANCHORS).astype(np.float32)
        self._alone = table_alone(state)
        self._share = min(max(state.filter_share, LEAST_SHARE), 1.0 - LEAST_SHARE)
        self._features = np.ascontiguousarray(items.mean[rows, 1:])
        self._tastes = np.ascontiguousarray(items.taste[rows, 1:])
        self._biases = biases[rows] + weights
        self._bases = table_biases(state, biases[rows], items.taste[rows, 0]) + weights

    def sums(self, tastes: F32, features: F32) -> F64:
        """Logarithms of what both judgements sum up to, float64, shape (2, users): as `weights`."""
        found = np.empty((2, tastes.shape[0]))
        judge_sums(
            np.ascontiguousarray(features), np.ascontiguousarray(tastes[:, 1:]), self._features,
            self._tastes, self._biases, self._bases, found,
        )  # fmt: skip
        return found

    def weights(self, tastes: F32, features: F32, shares: F64 | None) -> tuple[F32, F32]:
        """Return what filter and table of users are multiplied with, as logarithms.

        Parameters
        ----------
        tastes : F32
            float32, shape (n, table rank + 1), as the column of that name
        features : F32
            float32, shape (n, rank), of these users, what they did last added
        shares : F64 | None
            float64, shape (n,), how far partners are believed; None where there are none
        """
        size = tastes.shape[0]
        own, table = np.zeros(size, np.float32), np.full(size, NEVER, np.float32)
        known = np.flatnonzero(tastes[:, 0] > 0)
        if not known.size:
            return own, table
        # the scale's mean, which is added to all scores, is no part of a probability
        if self._alone:
            own[known], table[known] = NEVER, -self._least
            return own, table
        sums = self.sums(tastes[known], features[known])
        rest = 0.0 if shares is None else np.log(1.0 - shares[known])
        own[known] = rest + np.log(self._share) - sums[0] - self._least
        table[known] = rest + np.log(1.0 - self._share) - sums[1] - self._least
        return own, table


def popularity_logs(state: ModelState, memory: ItemMemory, counts: I64) -> tuple[F32, float]:
    """`log_shares` of a model; of one whose filter has learned nothing by how often items came.

    Parameters
    ----------
    state : ModelState
        the model; its ids are not looked at
    memory : ItemMemory
        of its items
    counts : I64
        int64, shape (items,), of its items
    """
    if table_alone(state):
        came = counts.astype(np.float64)
        return _log_of(came / max(float(came.sum()), 1e-300))
    return log_shares(memory, state.events_learned, state.popularity_parts, counts.size)


def log_shares(
    memory: ItemMemory, now: int, parts: tuple[float, ...], known: int
) -> tuple[F32, float]:
    """Logarithms of the items' shares of events, equation (4), above that of an item without any.

    Parameters
    ----------
    memory : ItemMemory
        the items' memory, left as it is
    now : int
        events learned
    parts : tuple[float, ...]
        share of each part of popularity; empty before the first event
    known : int
        items that share, the first rows

    Returns
    -------
    float32, shape (known,), and the logarithm for an item without events
    """
    fades = 0.5 ** (1.0 / np.array(HALF_LIVES))
    faded = faded_popularity(memory.popularity[:known], memory.last[:known], now, fades)
    shares = faded / np.maximum(faded.sum(axis=0), 1e-300)
    return _log_of(shares @ np.array(parts or even_parts()))


def _log_of(shares: F64) -> tuple[F32, float]:
    floor = _UNSEEN / (shares.size + 1)
    logs = np.log((1.0 - _UNSEEN) * shares + floor)
    return (logs - np.log(floor)).astype(np.float32), float(np.log(floor))


def memories_of(state: ModelState) -> tuple[UserMemory, ItemMemory]:
    """Return the memories of a model of events: of users, and of items."""
    users, items = state.users.memory, state.items.memory
    assert isinstance(users, UserMemory)
    assert isinstance(items, ItemMemory)
    return users, items


def even_parts() -> tuple[float, ...]:
    """Shares of the parts of popularity before the first event."""
    return (1.0 / len(HALF_LIVES),) * len(HALF_LIVES)


def rows_of_keys(held: I64, keys: npt.NDArray[np.uint64], order: I64) -> I64:
    """Rows of item keys, -1 where the item is not known any more."""
    if not keys.size:
        return np.full(held.size, -1, np.int64)
    wanted = held.view(np.uint64)
    if wanted.size * 8 > keys.size:
        # worth a pass over all keys
        found: I64 = find_keys(keys, order, wanted)
        return found
    places = np.minimum(np.searchsorted(keys, wanted, sorter=order), keys.size - 1)
    rows = order[places]
    return np.where(keys[rows] == wanted, rows, -1)


def known_done(
    users: UserMemory, rows: I64, keys: npt.NDArray[np.uint64], order: I64
) -> tuple[I64, I64]:
    """Return how many of the known items each user has done, and the rows of these items.

    Parameters
    ----------
    users : UserMemory
        what they have done
    rows : I64
        int64, shape (n,), rows of users
    keys : npt.NDArray[np.uint64]
        uint64, shape (items,), keys of the known items
    order : I64
        int64, of the same shape: what sorts the keys
    """
    starts, held = users.ragged(rows)
    found = rows_of_keys(held, keys, order)
    owner = np.repeat(np.arange(rows.size), np.diff(starts))[found >= 0]
    return np.bincount(owner, minlength=rows.size).astype(np.int64), found[found >= 0]


def recent_context(
    users: UserMemory, items: ItemMemory, rows: I64, keys: npt.NDArray[np.uint64], order: I64
) -> F32:
    """Return what the items that users did last add to their features, shape (users, rank).

    Parameters
    ----------
    users, items : UserMemory, ItemMemory
        what they have done, and what that adds
    rows, keys, order
        as `known_done`
    """
    total = np.zeros((rows.size, items.context.shape[1]), np.float32)
    squares = np.zeros(rows.size)
    recent = np.full((rows.size, CONTEXT_ITEMS), -1, np.int64)
    starts, held = users.ragged(rows)
    found = rows_of_keys(held, keys, order)
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
    """Return a copy of means and variances, without what only learning needs."""
    twin = table.copy()
    twin.memory = None
    return twin
