"""Test, then learn: what is measured of a batch before it is learned, and over batches.

Everything over several batches is computed from the sums of each, which are committed with its
version: so windows and fading survive a restart. Prequential evaluation with sliding windows and
fading factors: Gama, Sebastiao and Rodrigues 2013. Formulas: docs/metrics.md. Arrays, no Spark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.threads import ranges, run_all
from sparkml_sgdals.kernels.predict import clipped_squares

__all__ = ["BatchSums", "faded_means", "judge_batch", "rank_sums", "sum_squares", "window_means"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_TOGETHER: Final = 1_000_000
"""ratings whose squared errors are added up one after another"""


@dataclass(frozen=True)
class BatchSums:
    """Sums over the ratings of a batch, each predicted before any of them was learned.

    Attributes
    ----------
    judged : int
        ratings predicted; 0 where the model knew nothing yet
    squares, absolutes : float
        of the error of the clipped prediction, in rating units
    baseline_squares, baseline_absolutes : float
        the same for mean and biases alone
    stated : int
        ratings whose prediction came with a deviation
    log_likelihood : float
        sum of log N(rating; prediction, deviation^2) over them
    within_one, within_two : int
        how many of them lie within one and two deviations
    ranked : int
        events or ratings whose item was ranked; 0 without a ranking size
    hits, reciprocals
        of these, how many items were among the best N, and their sum of 1 / rank
    baseline_hits, baseline_reciprocals
        the same for items ranked by popularity
    uncounted : int
        events that count for their user alone: `shares.events_that_count`
    """

    judged: int = 0
    squares: float = 0.0
    absolutes: float = 0.0
    baseline_squares: float = 0.0
    baseline_absolutes: float = 0.0
    stated: int = 0
    log_likelihood: float = 0.0
    within_one: int = 0
    within_two: int = 0
    ranked: int = 0
    hits: int = 0
    reciprocals: float = 0.0
    baseline_hits: int = 0
    baseline_reciprocals: float = 0.0
    uncounted: int = 0

    def with_ranks(self, ranks: BatchSums) -> BatchSums:
        """Return these sums of errors with the sums of ranks of another."""
        return replace(
            self,
            ranked=ranks.ranked,
            hits=ranks.hits,
            reciprocals=ranks.reciprocals,
            baseline_hits=ranks.baseline_hits,
            baseline_reciprocals=ranks.baseline_reciprocals,
        )

    def loss(self, positive: bool) -> tuple[float, int]:
        """Return what a race compares: the sum of the batch's losses, and how many are in it.

        Squared errors; of events 1 - 1 / rank, 1 beyond the best N: their mean is 1 - MRR@N.
        """
        if positive:
            return self.ranked - self.reciprocals, self.ranked
        return self.squares, self.judged

    def metrics(self) -> dict[str, int | float | None]:
        """Return the means, by the names of job.metrics(); None where nothing was judged."""

        def mean(total: float, count: int) -> float | None:
            return total / count if count and math.isfinite(total) else None

        def root(total: float) -> float | None:
            square = mean(total, self.judged)
            return None if square is None else math.sqrt(square)

        return {
            "judged": self.judged,
            "rmse": root(self.squares),
            "baselineRmse": root(self.baseline_squares),
            "mae": mean(self.absolutes, self.judged),
            "baselineMae": mean(self.baseline_absolutes, self.judged),
            "logLikelihood": mean(self.log_likelihood, self.stated),
            "within1": mean(self.within_one, self.stated),
            "within2": mean(self.within_two, self.stated),
            "ranked": self.ranked,
            "recall": mean(self.hits, self.ranked),
            "mrr": mean(self.reciprocals, self.ranked),
            "baselineRecall": mean(self.baseline_hits, self.ranked),
            "baselineMrr": mean(self.baseline_reciprocals, self.ranked),
            "uncounted": self.uncounted,
        }


def sum_squares(
    truth: F32, errors: F32, spread: float, bounds: tuple[float, float], threads: int
) -> float:
    """Sum of squared errors of a table's ratings, each from before it was learned.

    Parameters
    ----------
    truth, errors : F32
        float32, shape (n,): ratings, and rating minus prediction in standardised units
    spread : float
        of the ratings
    bounds : tuple[float, float]
        least and greatest rating, which predictions are clipped to
    threads : int
        at most so many at once; they change no result
    """
    # a small table in one part, so that its sum is taken in one order
    parts = ranges(truth.size, truth.size // _TOGETHER)
    jobs = [partial(clipped_squares, truth[p], errors[p], spread, *bounds) for p in parts]
    return math.fsum(run_all(jobs, threads))


def judge_batch(
    truth: F64, predictions: F32 | F64, baseline: F32 | F64, variances: F64 | None
) -> BatchSums:
    """Compare predictions with the ratings that came.

    Parameters
    ----------
    truth, predictions, baseline
        shape (n,), in rating units, the latter two clipped
    variances : F64 | None
        shape (n,), stated variance of each rating about its prediction, noise included, in squared
        rating units; None where none is stated
    """
    errors = truth - predictions
    baseline_errors = truth - baseline
    squares = errors**2
    sums = BatchSums(
        judged=int(truth.size),
        squares=float(np.sum(squares)),
        absolutes=float(np.sum(np.abs(errors))),
        baseline_squares=float(np.sum(baseline_errors**2)),
        baseline_absolutes=float(np.sum(np.abs(baseline_errors))),
    )
    if variances is None:
        return sums
    relative = squares / variances
    likelihood = -0.5 * (np.log(2.0 * math.pi * variances) + relative)
    return BatchSums(
        **(
            sums.__dict__
            | {
                "stated": int(truth.size),
                "log_likelihood": float(np.sum(likelihood)),
                "within_one": int(np.count_nonzero(relative <= 1.0)),
                "within_two": int(np.count_nonzero(relative <= 4.0)),
            }
        )
    )


def rank_sums(ranks: I64, baseline: I64, n: int) -> BatchSums:
    """Return sums of a batch whose ranked items had these ranks, by the model and by popularity.

    An item beyond the best `n` is no hit, and its 1 / rank counts as 0.
    """
    hits, reciprocals = [], []
    for each in (ranks, baseline):
        among = each[each <= n]
        hits.append(int(among.size))
        reciprocals.append(math.fsum(1.0 / among))
    return BatchSums(
        ranked=int(ranks.size),
        hits=hits[0],
        reciprocals=reciprocals[0],
        baseline_hits=hits[1],
        baseline_reciprocals=reciprocals[1],
    )


def window_means(sums: F64, counts: I64, window: int) -> F64:
    """Mean over the newest batches that together hold at least `window` ratings, at each batch.

    Parameters
    ----------
    sums : F64
        float64, shape (batches,), sums over a batch, in the order of the batches
    counts : I64
        int64, shape (batches,), how many ratings are in each sum
    window : int
        ratings to look back over

    Returns
    -------
    float64, shape (batches,): over all batches while there are fewer ratings; NaN before the first
    """
    totals = np.concatenate([[0], np.cumsum(counts)])
    means = np.full(sums.size, np.nan)
    for last in range(sums.size):
        # the latest start that leaves enough; sums are added anew, without a running error
        start = int(np.searchsorted(totals, totals[last + 1] - window, side="right")) - 1
        held = slice(max(start, 0), last + 1)
        count = int(counts[held].sum())
        if count:
            means[last] = math.fsum(sums[held]) / count
    return means


def faded_means(sums: F64, counts: I64, factor: float) -> F64:
    """Mean with a fading factor, at each batch: a rating counts factor^(ratings of later batches).

    Parameters and result are as in `window_means`; 0 < factor <= 1.
    """
    means = np.full(sums.size, np.nan)
    total = weight = 0.0
    for number in range(sums.size):
        fade = factor ** int(counts[number])
        total = total * fade + float(sums[number])
        weight = weight * fade + int(counts[number])
        if weight:
            means[number] = total / weight
    return means
