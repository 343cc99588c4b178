"""Judging recommendations, by ranks of items or by lists, as functions over NumPy arrays."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "average_precision_at",
    "chance_of_lists",
    "gini",
    "list_hits",
    "list_recall_at",
    "mrr_at",
    "ndcg_at",
    "precision_at",
    "rank_of_rated",
    "recall_at",
    "reciprocal_rank_at",
    "sample_items",
    "self_information",
]

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

_SCORES: Final = 1 << 22
"""Scores that are in memory at once."""


def rank_of_rated(
    users: F32 | F64, items: F32 | F64, offsets: F32 | F64, rated: I64, starts: I64, seen: I64,
    among: I64 | None = None,
) -> I64:  # fmt: skip
    """Rank of the rated item among all items that its user has not seen, 1 for the best.

    An item that scores the same counts as better, so that a model without an opinion gains nothing.

    Parameters
    ----------
    users : F32 | F64
        shape (n, K), the user's features at each rating
    items, offsets : F32 | F64
        shapes (m, K) and (m,): an item's score is users . items + offsets
    rated : I64
        int64, shape (n,), row of the rated item; it competes even where the user has seen it
    starts, seen : I64
        int64, CSR: rows of what the user of rating x has seen are
        seen[starts[x]]..seen[starts[x+1]-1]
    among : I64 | None
        int64, shape (n, s), a sample of the catalogue for each rating, as `sample_items` draws;
        None for all of it

    Returns
    -------
    int64, shape (n,)

    Notes
    -----
    Ranks among a sample are not those among all, nor in proportion to them: compare models by one
    sample size only (Krichene and Rendle 2020).
    """
    count, catalogue = rated.size, items.shape[0]
    ranks = np.empty(count, np.int64)
    step = max(1, _SCORES // max(catalogue, 1))
    for first in range(0, count, step):
        part = np.arange(first, min(first + step, count))
        scores = users[part].astype(np.float64) @ items.T.astype(np.float64) + offsets
        own = scores[np.arange(part.size), rated[part]]
        rivals = np.ones(scores.shape, bool)
        if among is not None:
            rivals[:] = False
            np.put_along_axis(rivals, among[part], True, axis=1)
        lengths = starts[part + 1] - starts[part]
        rivals[
            np.repeat(np.arange(part.size), lengths), seen[starts[first] : starts[part[-1] + 1]]
        ] = False
        rivals[np.arange(part.size), rated[part]] = False
        ranks[part] = 1 + np.count_nonzero(rivals & (scores >= own[:, None]), axis=1)
    return ranks


def sample_items(count: int, catalogue: int, size: int, seed: int, batch: int) -> I64:
    """Draw a sample of a catalogue for each of `count` ratings, a function of (seed, batch).

    Parameters
    ----------
    count : int
        ratings
    catalogue : int
        items there are
    size : int
        items to draw for each rating, uniformly, with replacement: a repeated one is one rival
    seed, batch : int
        not negative; the same ones draw the same

    Returns
    -------
    int64, shape (count, size): rows of items, as `rank_of_rated` takes them for `among`
    """
    return np.random.default_rng([seed, batch]).integers(0, catalogue, (count, size))


def recall_at(ranks: I64, n: int) -> float:
    """Share of ratings whose item is among the best `n`; NaN without ratings.

    Parameters
    ----------
    ranks : I64
        int64, of the rated items, 1 for the best
    n : int
        length of the list that is recommended
    """
    return float(np.mean(ranks <= n)) if ranks.size else math.nan


def mrr_at(ranks: I64, n: int) -> float:
    """Mean of 1 / rank, 0 beyond `n`; NaN without ratings.

    Parameters
    ----------
    ranks : I64
        int64, of the rated items, 1 for the best
    n : int
        length of the list that is recommended
    """
    return float(np.mean(np.where(ranks <= n, 1.0 / ranks, 0.0))) if ranks.size else math.nan


def list_hits(found: I64, starts: I64, held: I64, held_starts: I64, n: int) -> tuple[Flags, I64]:
    """Where the lists of recommendations hold what their users were held out.

    An item counts once: a list that repeats one has its hit at the first place, and the places of
    the others are lost.

    Parameters
    ----------
    found, starts : I64
        int64, CSR: the list of user x, best first, is found[starts[x]]..found[starts[x+1]-1], rows
        of items, not negative
    held, held_starts : I64
        int64, CSR: rows of the items held out, in any order; repeated ones count once
    n : int
        places of a list to look at

    Returns
    -------
    bool, shape (users, n), whether a place is a hit, and int64, shape (users,), items held out
    """
    users = starts.size - 1
    width = 1 + max(found.max(initial=0), held.max(initial=0))
    owners = np.repeat(np.arange(users), np.diff(starts))
    wanted = np.unique(np.repeat(np.arange(users), np.diff(held_starts)) * width + held)
    pairs = owners * width + found
    first = np.zeros(pairs.size, bool)
    first[np.unique(pairs, return_index=True)[1]] = True
    places = np.arange(pairs.size) - starts[owners]
    there = first & (places < n) & np.isin(pairs, wanted)
    hits = np.zeros((users, n), bool)
    hits[owners[there], places[there]] = True
    return hits, np.bincount(wanted // width, minlength=users).astype(np.int64)


def precision_at(hits: Flags, n: int) -> F64:
    """Hits among the first `n` places, divided by `n`, also where a list is shorter.

    Parameters
    ----------
    hits : Flags
        bool, shape (users, at least n), as `list_hits` gives them
    n : int
        length of the list that is recommended

    Returns
    -------
    float64, shape (users,)
    """
    shares: F64 = np.count_nonzero(hits[:, :n], axis=1) / n
    return shares


def list_recall_at(hits: Flags, held: I64, n: int) -> F64:
    """Hits among the first `n` places, divided by min(n, items held out).

    Parameters
    ----------
    hits : Flags
        bool, shape (users, at least n), as `list_hits` gives them
    held : I64
        int64, shape (users,), items held out
    n : int
        length of the list that is recommended

    Returns
    -------
    float64, shape (users,), NaN where nothing was held out
    """
    return _shares(np.count_nonzero(hits[:, :n], axis=1).astype(np.float64), np.minimum(held, n))


def ndcg_at(hits: Flags, held: I64, n: int) -> F64:
    """Sum of 1 / log2(1 + place) over the hits, divided by that of the best list there could be.

    Parameters
    ----------
    hits : Flags
        bool, shape (users, at least n), as `list_hits` gives them
    held : I64
        int64, shape (users,), items held out
    n : int
        length of the list that is recommended

    Returns
    -------
    float64, shape (users,), NaN where nothing was held out
    """
    gains = 1.0 / np.log2(np.arange(2, n + 2))
    best = np.concatenate([[0.0], np.cumsum(gains)])
    own = hits[:, :n]
    return _shares((own * gains[: own.shape[1]]).sum(axis=1), best[np.minimum(held, n)])


def average_precision_at(hits: Flags, held: I64, n: int) -> F64:
    """Sum over the hits of the precision down to their place, divided by min(n, items held out).

    Parameters
    ----------
    hits : Flags
        bool, shape (users, at least n), as `list_hits` gives them
    held : I64
        int64, shape (users,), items held out
    n : int
        length of the list that is recommended

    Returns
    -------
    float64, shape (users,), NaN where nothing was held out
    """
    own = hits[:, :n]
    precisions = np.cumsum(own, axis=1) / np.arange(1, own.shape[1] + 1)
    return _shares((own * precisions).sum(axis=1), np.minimum(held, n))


def reciprocal_rank_at(hits: Flags, n: int) -> F64:
    """1 / place of the first hit, 0 where there is none among the first `n` places.

    Parameters
    ----------
    hits : Flags
        bool, shape (users, at least n), as `list_hits` gives them
    n : int
        length of the list that is recommended

    Returns
    -------
    float64, shape (users,)
    """
    own = hits[:, :n]
    return np.where(own.any(axis=1), 1.0 / (1 + np.argmax(own, axis=1)), 0.0)


def chance_of_lists(held: I64, candidates: int, n: int) -> tuple[F64, F64]:
    """Recall@n and NDCG@n to expect of lists that hold the candidates in a random order.

    Parameters
    ----------
    held : I64
        int64, shape (users,), how many candidates were held out of each user, at least 1
    candidates : int
        candidates there are
    n : int
        length of the lists

    Returns
    -------
    float64, shape (users,), of both
    """
    # as lists are judged, with a certain part of a hit in each place
    hits = np.zeros((held.size, n))
    hits[:, : min(n, candidates)] = (held / candidates)[:, None]
    gains = 1.0 / np.log2(np.arange(2, n + 2))
    best = np.cumsum(gains)[np.minimum(held, n) - 1]
    return hits.sum(axis=1) / np.minimum(held, n), hits @ gains / best


def gini(counts: I64) -> float:
    """How unevenly recommendations spread: 0 where all items come as often, 1 where one has all.

    Parameters
    ----------
    counts : I64
        int64, shape (items,): how often each item of the catalogue is recommended, 0 included

    Returns
    -------
    float, 0 for a catalogue of one item, NaN without recommendations
    """
    total = int(counts.sum())
    if not total:
        return math.nan
    places = 2 * np.arange(1, counts.size + 1) - counts.size - 1
    return float((places * np.sort(counts)).sum()) / (max(counts.size - 1, 1) * total)


def self_information(done: I64, users: int) -> F64:
    """How surprising an item is: -log2 of the share of users that have done it, in bits.

    Parameters
    ----------
    done : I64
        int64, users that have done each item; none counts as one, or it would be infinite
    users : int
        users there are, at least 1

    Returns
    -------
    float64, of the shape of `done`
    """
    bits: F64 = np.log2(users / np.maximum(done, 1))
    return bits


def _shares(values: F64, wholes: npt.NDArray[Any]) -> F64:
    """Return values / wholes, NaN where there is nothing to have a share of."""
    shares: F64 = np.divide(values, wholes, out=np.full(values.size, np.nan), where=wholes > 0)
    return shares
