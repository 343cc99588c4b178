"""Regression on sparse features: what is known of ids beside their ratings."""

from __future__ import annotations

import numpy as np

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.kernels.checks import FAST

__all__ = [
    "add_pairs",
    "add_products",
    "add_to_columns",
    "regress",
    "regress_near",
    "regress_products",
]


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def regress(  # type: ignore[no-untyped-def]
    starts, rows, values, precision, pull, weights, variances, prior_var, passes, first, last
):
    """Coordinate descent for a ridge regression of many targets, one column after another: (17).

    Parameters
    ----------
    starts, rows, values
        features by column (CSC): int64, shape (columns + 1,); int32, rows, and float64
    precision
        float64, shape (rows, targets): how much each row says of each target
    pull
        float64, of the same shape, precision times what the weights leave unexplained; moves along
    weights
        float64, shape (columns, targets), changed in place
    variances
        float64, of the same shape: of each weight, the others fixed; written
    prior_var
        float64, of the same shape, prior variance of each weight
    passes
        int, how often all columns are gone through
    first, last
        targets first..last-1 are learned, the others left alone
    """
    gradient, curvature = np.empty(last - first), np.empty(last - first)
    for _ in range(passes):
        for j in range(starts.size - 1):
            gradient[:] = 0.0
            curvature[:] = 0.0
            for t in range(starts[j], starts[j + 1]):
                z, row = values[t], rows[t]
                for f in range(first, last):
                    gradient[f - first] += z * pull[row, f]
                    curvature[f - first] += z * z * precision[row, f]
            for f in range(first, last):
                own = curvature[f - first]
                variance = 1.0 / (own + 1.0 / prior_var[j, f])
                moved = variance * (gradient[f - first] + own * weights[j, f])
                variances[j, f] = variance
                gradient[f - first] = moved - weights[j, f]
                weights[j, f] = moved
            for t in range(starts[j], starts[j + 1]):
                z, row = values[t], rows[t]
                for f in range(first, last):
                    pull[row, f] -= precision[row, f] * z * gradient[f - first]


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def add_products(starts, columns, values, weights, sums):  # type: ignore[no-untyped-def]
    """Add to each row the weights of its columns times its values.

    Parameters
    ----------
    starts, columns, values
        features by row (CSR): int64, shape (rows + 1,); int32, columns, and float64
    weights
        float64, shape (columns, targets)
    sums
        float64, shape (rows, targets), changed in place
    """
    for row in range(starts.size - 1):
        for t in range(starts[row], starts[row + 1]):
            column, z = columns[t], values[t]
            for f in range(sums.shape[1]):
                sums[row, f] += z * weights[column, f]


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def add_pairs(starts, columns, values, counted, products):  # type: ignore[no-untyped-def]
    """Add rows to the products of each two of their columns.

    Parameters
    ----------
    starts, columns, values
        features by row (CSR): int64, shape (rows + 1,); int32, columns, and float64
    counted
        bool, shape (rows,): whether a row is added
    products
        float64, shape (columns, columns), changed in place
    """
    for row in range(starts.size - 1):
        if counted[row]:
            for t in range(starts[row], starts[row + 1]):
                for other in range(starts[row], starts[row + 1]):
                    products[columns[t], columns[other]] += values[t] * values[other]


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def regress_products(products, sums, noise, weights, variances, prior_var, passes):  # type: ignore[no-untyped-def]
    """`regress` where products of columns are known in the place of rows that count alike.

    Parameters
    ----------
    products
        float64, shape (columns, columns)
    sums
        float64, shape (columns, targets)
    noise
        float64, shape (targets,): variance of a row's target about what its columns say
    weights, variances, prior_var, passes
        as in `regress`
    """
    count, width = sums.shape
    gradient = np.empty(width)
    for _ in range(passes):
        for j in range(count):
            for f in range(width):
                gradient[f] = sums[j, f]
            for k in range(count):
                product = products[j, k]
                if product != 0.0:
                    for f in range(width):
                        gradient[f] -= product * weights[k, f]
            for f in range(width):
                own = products[j, j] / noise[f]
                variance = 1.0 / (own + 1.0 / prior_var[j, f])
                variances[j, f] = variance
                weights[j, f] = variance * (gradient[f] / noise[f] + own * weights[j, f])


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def add_to_columns(starts, columns, values, targets, sums):  # type: ignore[no-untyped-def]
    """Add to each column the targets of its rows times its values.

    Parameters
    ----------
    starts, columns, values
        features by row (CSR): int64, shape (rows + 1,); int32, columns, and float64
    targets
        float64, shape (rows, targets)
    sums
        float64, shape (columns, targets), changed in place
    """
    for row in range(starts.size - 1):
        for t in range(starts[row], starts[row + 1]):
            column, z = columns[t], values[t]
            for f in range(sums.shape[1]):
                sums[column, f] += z * targets[row, f]


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def regress_near(likeness, scale, gradient, weights, moved, prior_var, passes):  # type: ignore[no-untyped-def]
    """`regress` where rows are elsewhere: by their gradient, and what their curvature is like.

    Parameters
    ----------
    likeness
        float64, shape (columns, columns), ones on the diagonal: how alike two columns are
    scale
        float64, shape (columns, targets): root of a column's own curvature
    gradient
        float64, of the same shape, of what rows say, where the weights were
    weights
        float64, of the same shape, changed in place
    moved
        float64, of the same shape, moves of weights since the gradient, times scale; moves along
    prior_var
        float64, of the same shape, prior variance of each weight
    passes
        int, how often all columns are gone through
    """
    count, width = weights.shape
    pulled = np.empty(width)
    for _ in range(passes):
        for j in range(count):
            pulled[:] = 0.0
            for k in range(count):
                alike = likeness[j, k]
                if alike != 0.0:
                    for f in range(width):
                        pulled[f] += alike * moved[k, f]
            for f in range(width):
                own = scale[j, f] * scale[j, f]
                rest = gradient[j, f] - scale[j, f] * pulled[f] + own * weights[j, f]
                new = rest / (own + 1.0 / prior_var[j, f])
                moved[j, f] += scale[j, f] * (new - weights[j, f])
                weights[j, f] = new
