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

__all__ = ["Boosts", "Tastes", "candidate_products", "query_products", "top_n"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Boosts = tuple[I64, I32, F32]

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


def top_n(
    queries: F32,
    candidates: F32,
    count: int,
    excluded: tuple[I64, I32] | None = None,
    variances: tuple[F32, F32] | None = None,
    sign: int = 0,
    tastes: Tastes | None = None,
    boosts: Boosts | None = None,
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
    excluded : tuple[I64, I32] | None
        starts, int64 of shape (m + 1,), and rising positions, int32: candidates that a query must
        not get
    variances : tuple[F32, F32] | None
        as queries and candidates, of any other width; needed where sign is not 0
    sign : int
        1 for the upper, -1 for the lower bound of a score, 0 for the score itself
    tastes : Tastes | None
        of queries and candidates, where a table of events was fitted; sign is 0 then
    boosts : Boosts | None
        starts, int64 of shape (m + 1,), rising positions, int32, and what is added to them, float32
        of at least 0; sign is 0 then

    Returns
    -------
    best : int32, shape (m, k), positions of candidates, best first; -1 where there are no more
    scores : float32, shape (m, k)

    Raises IndexError for positions, excluded or boosted, outside the candidates.
    """
    total = candidates.shape[1]
    wanted = max(0, min(count, total))
    best = np.empty((queries.shape[0], wanted), np.int32)
    scores = np.empty((queries.shape[0], wanted), np.float32)
    if excluded is None:
        starts, positions = np.zeros(queries.shape[0] + 1, np.int64), np.empty(0, np.int32)
    else:
        starts, positions = excluded
        if positions.size and (positions.min() < 0 or positions.max() >= total):
            raise IndexError(f"excluded positions reach outside the {total} candidates")
    if boosts is None:
        nothing = np.empty(0, np.int32), np.empty(0, np.float32)
        boosts = np.zeros(queries.shape[0] + 1, np.int64), *nothing
    elif boosts[1].size and (boosts[1].min() < 0 or boosts[1].max() >= total):
        raise IndexError(f"boosted positions reach outside the {total} candidates")
    if variances is None:
        variances = np.empty((queries.shape[0], 0), np.float32), np.empty((0, total), np.float32)
    if tastes is None:
        tastes = Tastes(np.empty((queries.shape[0], 0), np.float32), np.empty((0, 0), np.float32))
    if wanted:
        factors = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(candidates)
        bounds = np.ascontiguousarray(variances[0]), np.ascontiguousarray(variances[1])
        _top_n(
            factors[0], factors[1], bounds[0], bounds[1],
            np.float32(sign), np.ascontiguousarray(tastes.queries, np.float32),
            np.ascontiguousarray(tastes.candidates), starts, positions, *boosts, best, scores,
        )  # fmt: skip
    return best, scores
