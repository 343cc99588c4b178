"""The N best candidates for each query, exactly: one compiled pass over tiles of candidates.

Arrays in, arrays out, nothing of Spark. Candidates come in the order of their ids, so that equal
scores go to the smaller id.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.kernels.events.judges import LEAST, boosted, mixed

__all__ = [
    "Boosts",
    "Positions",
    "Tastes",
    "candidate_products",
    "positions_of",
    "query_products",
    "top_n",
]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Boosts = tuple[I64, I32, F32]
Positions = tuple[I64, I32]
"""Starts, shape (queries + 1,), and for each query rising positions of candidates."""

_TILE: Final = 1024
"""candidates scored at once: their scores and factors stay in the cache of a core"""


@dataclass(frozen=True)
class Tastes:
    """What a fitted table of events says beside the scores of `top_n`.

    Attributes
    ----------
    queries : F32
        float32, shape (m, table rank + 1): a logarithm, then factors
    candidates : F32
        float32, shape (table rank + 1, n), C-contiguous: likewise, a row a feature
    """

    queries: F32
    candidates: F32

    @classmethod
    def of(cls, queries: F32, candidates: F32) -> Tastes | None:
        """Return those of two tables' rows, shapes (m, width) and (n, width); None for no width."""
        if not queries.shape[1]:
            return None
        return cls(queries, np.ascontiguousarray(candidates.T))


def query_products(mean: F32, var: F32 | None) -> tuple[F32, F32 | None]:
    """Factors of queries, the bias first, as rows of products with `candidate_products`.

    A score is q . c, the variance of its mean qv . cv: docs/algorithm.md, equation (7). A bias is
    a feature whose other side is 1.

    Parameters
    ----------
    mean, var
        float32, shape (n, K + 1); without `var` there are no variances
    """
    ones = np.ones((len(mean), 1), np.float32)
    left = np.hstack([mean[:, 1:], ones, mean[:, :1]])
    if var is None:
        return left, None
    own = np.hstack([var[:, 1:], mean[:, 1:] ** 2, ones, var[:, :1]])
    return left, own.astype(np.float32)


def candidate_products(mean: F32, var: F32 | None) -> tuple[F32, F32 | None]:
    """Return factors of candidates as columns for `query_products`, float32, shape (width, n)."""
    ones = np.ones((1, len(mean)), np.float32)
    right = np.vstack([mean[:, 1:].T, mean[:, :1].T, ones])
    if var is None:
        return right, None
    features, spare = mean[:, 1:].T, var[:, 1:].T
    other = np.vstack([features**2 + spare, spare, var[:, :1].T, ones])
    return right, other.astype(np.float32)


@nb.njit(cache=True, nogil=True)
def _top_n(  # type: ignore[no-untyped-def]
    queries, candidates, query_vars, candidate_vars, sign, query_tastes, tastes, starts, excluded,
    boost_starts, risen, boosts, best, scores,
):  # fmt: skip
    width, total = candidates.shape
    var_width = candidate_vars.shape[0]
    wanted = best.shape[1]
    lowest = np.float32(-np.inf)
    tile_scores = np.empty(_TILE, np.float32)
    tile_vars = np.empty(_TILE, np.float32)
    judged = tastes.shape[0] > 0
    for q in range(queries.shape[0]):
        found = 0
        worst = lowest
        gone = starts[q]
        last_gone = starts[q + 1]
        up = boost_starts[q]
        last_up = boost_starts[q + 1]
        for begin in range(0, total, _TILE):
            size = min(_TILE, total - begin)
            tile_scores[:size] = np.float32(0.0)
            for f in range(width):
                factor = queries[q, f]
                row = candidates[f, begin : begin + size]
                for j in range(size):
                    tile_scores[j] += factor * row[j]
            if sign != 0:
                tile_vars[:size] = np.float32(0.0)
                for f in range(var_width):
                    factor = query_vars[q, f]
                    row = candidate_vars[f, begin : begin + size]
                    for j in range(size):
                        tile_vars[j] += factor * row[j]
                for j in range(size):
                    tile_scores[j] += sign * np.sqrt(tile_vars[j])
            if judged:
                tile_vars[:size] = np.float32(0.0)
                for f in range(1, tastes.shape[0]):
                    factor = query_tastes[q, f]
                    row = tastes[f, begin : begin + size]
                    for j in range(size):
                        tile_vars[j] += factor * row[j]
                for j in range(size):
                    if tile_scores[j] > lowest:
                        tile_scores[j] = mixed(
                            tile_scores[j], tile_vars[j], query_tastes[q, 0] + tastes[0, begin + j]
                        )
            while up < last_up and risen[up] < begin + size:
                place = risen[up] - begin
                if tile_scores[place] > lowest:
                    tile_scores[place] = boosted(tile_scores[place], boosts[up], judged)
                up += 1
            while gone < last_gone and excluded[gone] < begin + size:
                tile_scores[excluded[gone] - begin] = lowest
                gone += 1
            for j in range(size):
                score = tile_scores[j]
                if score > worst:
                    # rows are short: a sorted insert beats a heap, and keeps the order of ids
                    place = min(found, wanted - 1)
                    while place > 0 and scores[q, place - 1] < score:
                        scores[q, place] = scores[q, place - 1]
                        best[q, place] = best[q, place - 1]
                        place -= 1
                    scores[q, place] = score
                    best[q, place] = begin + j
                    found = min(found + 1, wanted)
                    if found == wanted:
                        worst = scores[q, wanted - 1]
        for place in range(found, wanted):
            best[q, place] = -1
            scores[q, place] = lowest
        if judged:
            for place in range(found):
                least = max(scores[q, place], LEAST)
                scores[q, place] = np.float32(math.log(least))


@nb.njit(cache=True, nogil=True)
def _top_among(  # type: ignore[no-untyped-def]
    queries, candidates, query_vars, candidate_vars, sign, query_tastes, tastes, starts, excluded,
    boost_starts, risen, boosts, own_starts, own, best, scores,
):  # fmt: skip
    """`_top_n` where each query has candidates of its own; candidates come as rows."""
    wanted = best.shape[1]
    lowest = np.float32(-np.inf)
    judged = tastes.shape[1] > 0
    for q in range(queries.shape[0]):
        found = 0
        gone = starts[q]
        last_gone = starts[q + 1]
        up = boost_starts[q]
        last_up = boost_starts[q + 1]
        for at in range(own_starts[q], own_starts[q + 1]):
            j = own[at]
            while gone < last_gone and excluded[gone] < j:
                gone += 1
            if gone < last_gone and excluded[gone] == j:
                continue
            # in the order of `_top_n`, so that a score is the same to the bit
            score = np.float32(0.0)
            for f in range(candidates.shape[1]):
                score += queries[q, f] * candidates[j, f]
            if sign != 0:
                spread = np.float32(0.0)
                for f in range(candidate_vars.shape[1]):
                    spread += query_vars[q, f] * candidate_vars[j, f]
                score += sign * np.sqrt(spread)
            if judged and score > lowest:
                taste = np.float32(0.0)
                for f in range(1, tastes.shape[1]):
                    taste += query_tastes[q, f] * tastes[j, f]
                score = mixed(score, taste, query_tastes[q, 0] + tastes[j, 0])
            while up < last_up and risen[up] < j:
                up += 1
            if up < last_up and risen[up] == j and score > lowest:
                score = boosted(score, boosts[up], judged)
            if score > lowest and (found < wanted or score > scores[q, wanted - 1]):
                place = min(found, wanted - 1)
                while place > 0 and scores[q, place - 1] < score:
                    scores[q, place] = scores[q, place - 1]
                    best[q, place] = best[q, place - 1]
                    place -= 1
                scores[q, place] = score
                best[q, place] = j
                found = min(found + 1, wanted)
        for place in range(found, wanted):
            best[q, place] = -1
            scores[q, place] = lowest
        if judged:
            for place in range(found):
                least = max(scores[q, place], LEAST)
                scores[q, place] = np.float32(math.log(least))


def top_n(
    queries: F32,
    candidates: F32,
    count: int,
    excluded: Positions | None = None,
    variances: tuple[F32, F32] | None = None,
    sign: int = 0,
    tastes: Tastes | None = None,
    boosts: Boosts | None = None,
    among: Positions | None = None,
) -> tuple[I32, F32]:
    """Candidates of the highest score = q . c + sign sqrt(qv . cv), ties to the first.

    With tastes it is the logarithm of exp(q . c) and what the table says: `judges.mixed`; with
    boosts that of exp(score) + boost.

    Parameters
    ----------
    queries : F32
        float32, shape (m, width)
    candidates : F32
        float32, shape (width, n), C-contiguous: a row a feature; one of score -inf is none
    count : int
        how many to find for each query
    excluded : Positions | None
        candidates that a query must not get
    variances : tuple[F32, F32] | None
        as queries and candidates, of any other width; needed where sign is not 0
    sign : int
        1 for the upper, -1 for the lower bound of a score, 0 for the score itself
    tastes : Tastes | None
        of queries and candidates, where a table of events was fitted; sign is 0 then
    boosts : Boosts | None
        starts, int64 of shape (m + 1,), rising positions, int32, and what is added to them, float32
        of at least 0; sign is 0 then
    among : Positions | None
        candidates that a query has to choose from; all by default

    Returns
    -------
    best : int32, shape (m, k), positions of candidates, best first; -1 where there are no more
    scores : float32, shape (m, k)

    Raises IndexError for positions, of whichever kind, outside the candidates.
    """
    total = candidates.shape[1]
    most = total if among is None else int(np.diff(among[0]).max(initial=0))
    wanted = max(0, min(count, most))
    best = np.empty((queries.shape[0], wanted), np.int32)
    scores = np.empty((queries.shape[0], wanted), np.float32)
    if excluded is None:
        starts, positions = np.zeros(queries.shape[0] + 1, np.int64), np.empty(0, np.int32)
    else:
        starts, positions = excluded
        _check_positions("excluded", positions, total)
    if boosts is None:
        nothing = np.empty(0, np.int32), np.empty(0, np.float32)
        boosts = np.zeros(queries.shape[0] + 1, np.int64), *nothing
    else:
        _check_positions("boosted", boosts[1], total)
    if among is not None:
        _check_positions("own", among[1], total)
    if variances is None:
        variances = np.empty((queries.shape[0], 0), np.float32), np.empty((0, total), np.float32)
    if tastes is None:
        tastes = Tastes(np.empty((queries.shape[0], 0), np.float32), np.empty((0, 0), np.float32))
    if not wanted:
        return best, scores
    asked = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(variances[0])
    judged = np.ascontiguousarray(tastes.queries, np.float32)
    offered = candidates, variances[1], tastes.candidates
    if among is None:
        factors, bounds, rest = map(np.ascontiguousarray, offered)
        _top_n(
            asked[0], factors, asked[1], bounds, np.float32(sign), judged, rest, starts, positions,
            *boosts, best, scores,
        )  # fmt: skip
    else:
        factors, bounds, rest = (np.ascontiguousarray(given.T) for given in offered)
        _top_among(
            asked[0], factors, asked[1], bounds, np.float32(sign), judged, rest, starts, positions,
            *boosts, *among, best, scores,
        )  # fmt: skip
    return best, scores


@nb.njit(cache=True, nogil=True)
def _group(rows, positions, starts, grouped):  # type: ignore[no-untyped-def]
    """Group positions by row into `grouped`, rising and each once; `starts` become theirs."""
    place = starts[:-1].copy()
    for n in range(rows.size):
        grouped[place[rows[n]]] = positions[n]
        place[rows[n]] += 1
    kept = 0
    begin = starts[0]
    for q in range(starts.size - 1):
        own = np.sort(grouped[begin : starts[q + 1]])
        begin = starts[q + 1]
        starts[q] = kept
        for n in range(own.size):
            if n == 0 or own[n] != own[n - 1]:
                grouped[kept] = own[n]
                kept += 1
    starts[-1] = kept


def positions_of(rows: I64, positions: I64, queries: int) -> Positions:
    """Return pairs as `top_n` takes them, each once: rows of queries, positions of candidates."""
    starts = np.zeros(queries + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=queries), out=starts[1:])
    grouped = np.empty(rows.size, np.int32)
    _group(rows, positions, starts, grouped)
    return starts, grouped[: starts[-1]]


def _check_positions(what: str, positions: I32, total: int) -> None:
    if positions.size and (positions.min() < 0 or positions.max() >= total):
        raise IndexError(f"{what} positions reach outside the {total} candidates")
