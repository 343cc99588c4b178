"""Ranks of items and their means, for judging recommendations as functions over NumPy arrays."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["mrr_at", "rank_of_rated", "recall_at", "sample_items"]

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]

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
