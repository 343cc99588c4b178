"""Rank items by a person's own taste, or by everyone's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.serving.model.person import Person, nobody
from sparkml_sgdals.serving.model.ranking import Scored, in_order, unclipped
from sparkml_sgdals.serving.model.served_model import ServedModel

__all__ = ["rank_leaning"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def rank_leaning(
    model: ServedModel,
    person: Person,
    count: int,
    taste: bool,
    excluded: I64,
    only: I64 | None = None,
) -> Scored:
    """Return the best items by a person's taste or by everyone's, equal ones by id.

    Parameters
    ----------
    model : ServedModel
        the version that ranks
    person : Person
        whom items are for, known or not
    count : int
        at most so many items
    taste : bool
        whether by the person's own taste; everyone's stands in for that of a person not known
    excluded : I64
        rows of items not to give; -1 counts for nothing
    only : I64 | None
        rows of items to choose from; all by default

    A prediction is what everyone thinks of an item, which is what somebody unknown would be told,
    and what the person's own features add. Of few ratings these are small, and everyone's
    favourites would come first whatever was rated. By taste both are divided by the deviation of
    the prediction's mean, where the solver knows it, and weigh alike: each is divided by its root
    mean square over all items. By everyone's it is the first alone.

    Returns rows, ids and predictions for the person.
    """
    every = np.arange(model.items.size)
    scores = unclipped(model, nobody(model), every)[0] - model.shell.scale.mean
    if taste and not person.cold:
        values, variances = unclipped(model, person, every)
        own = values - model.shell.scale.mean - scores
        spread = 1.0 if model.events is not None else model.shell.scale.spread
        if model.events is None:
            own -= float(person.mean[0]) * spread
        if person.drawn.size and not person.taste.size:
            # of few ratings it would be most of the features, and is nobody's taste
            own -= spread * (person.drawn @ model.candidates.factors[: person.drawn.size, every])
        sure = 1.0 if variances is None else np.sqrt(variances)
        scores = _leveled(scores / sure) + _leveled(own / sure)
    allowed = np.zeros(every.size, bool)
    allowed[every if only is None else only[only >= 0]] = True
    allowed[excluded[excluded >= 0]] = False
    left = np.flatnonzero(allowed)
    count = min(count, left.size)
    if not count:
        return Scored(left[:0], [], np.empty(0))
    values = scores[left]
    least = np.partition(values, left.size - count)[left.size - count]
    best = left[values >= least]
    return in_order(model, person, best, scores[best], count)


def _leveled(values: F64) -> F64:
    size = float(np.sqrt(np.mean(values**2))) if values.size else 0.0
    return values / size if size > 0.0 else values
