"""What features say of ids without events, learned once a table of events is (no Spark).

docs/positive-only.md, "Features of users and items".
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.kernels.events.judges import FLOOR
from sparkml_sgdals.learn.features.prior import FeaturePrior
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.feature_weights import FeatureWeights
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["learn_event_features", "weights_of_events"]

F32 = npt.NDArray[np.float32]

_SOME = 512
"""ids of a side by which the level of a preference is told"""


def learn_event_features(
    state: ModelState, features: tuple[SparseRows | None, SparseRows | None], threads: int
) -> None:
    """Learn what features say of ids without events from a table that a model holds, in place.

    Parameters
    ----------
    state : ModelState
        gets the weights
    features : tuple[SparseRows | None, SparseRows | None]
        of users and of items, by id
    threads : int
        at most so many at once; they change no result
    """
    sides = state.users, state.items
    users, items = (
        None if rows is None or not len(rows) else weights_of_events(rows, side, other, threads)
        for rows, side, other in zip(features, sides, sides[::-1], strict=True)
    )
    state.features = users, items


def weights_of_events(
    rows: SparseRows, side: FactorTable, other: FactorTable, threads: int
) -> FeatureWeights:
    """Learn what features say of ids that did nothing from those that a table held.

    Parameters
    ----------
    rows : SparseRows
        features by id
    side, other : FactorTable
        what was learned of both sides of a model of events
    threads : int
        at most so many at once; they change no result

    Raises
    ------
    ValueError
        more columns have values than may have weights
    """
    held = np.flatnonzero(side.taste[:, 0] > 0.0)
    prior = FeaturePrior(rows, side.index.ids(held))
    own = held[prior.known]
    taste = side.taste[own].astype(np.float64)
    events = np.expm1(taste[:, 0])
    # an id's own events against the weight that all pairs have besides
    shares = events / (events + side.settings.unobserved_weight * other.size)
    found = prior.of_events(taste[:, 1:], shares, threads)
    base = np.zeros((len(found.start), 1), np.float32)
    if own.size:
        told = found.start_means(rows.take(rows.places(side.index.ids(own))))
        base[0] = _level(told, other)
    start = np.hstack([base, found.start])
    start_var = np.append(np.float32(0.0), found.start_var)
    return replace(found, start=start, start_var=start_var).reaching(side.taste[held])


def _level(features: F32, other: FactorTable) -> float:
    """Logarithm of what features give a pair on average, against one of which nothing is known.

    By it new ids are, on average, to a table beside a filter what they are without features.
    """
    known = other.taste[other.taste[:, 0] > 0.0, 1:]
    own, partners = (
        some[np.linspace(0, len(some) - 1, min(len(some), _SOME)).astype(np.int64)]
        for some in (features, known)
    )
    products = own.astype(np.float64) @ partners.astype(np.float64).T
    told = (products + np.sqrt(products**2 + 4.0 * float(FLOOR) ** 2)) / 2.0
    return float(np.log(max(told.mean() / float(FLOOR), 1.0)))
