"""Rank items for a person, find what is like an item or much rated, predict (arrays, no Spark)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.kernels.events.judges import mix_pairs
from sparkml_sgdals.kernels.predict import predict_rows
from sparkml_sgdals.kernels.topn import Boosts, Tastes, top_n
from sparkml_sgdals.serving.model.approximate import Approximate
from sparkml_sgdals.serving.model.ids import Key
from sparkml_sgdals.serving.model.person import Person
from sparkml_sgdals.serving.model.served_model import ServedModel
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.event_scores import with_boosts

__all__ = [
    "RankBy",
    "Scored",
    "in_order",
    "like_item",
    "most_rated",
    "predicted",
    "rank_items",
    "unclipped",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
RankBy = Literal["prediction", "upper", "lower", "taste", "everyone"]

_SIGNS: Final = {"upper": 1, "lower": -1}


@dataclass(frozen=True)
class Scored:
    """Items in order: rows, ids and a value each."""

    rows: I64
    ids: list[Key]
    values: F64


def rank_items(
    model: ServedModel,
    person: Person,
    count: int,
    rank_by: RankBy = "prediction",
    excluded: I64 | None = None,
    only: I64 | None = None,
    approximate: Approximate | None = None,
) -> Scored:
    """Return the best items for a person, equal ones by id, as `recommendForUserSubset` ranks them.

    Parameters
    ----------
    model : ServedModel
        the version that ranks
    person : Person
        whom items are for, known or not
    count : int
        at most so many items
    rank_by : RankBy
        "prediction", or its "upper" or "lower" bound one standard deviation of the mean away; what
        `leaning.rank_leaning` ranks by is for that
    excluded : I64 | None
        rows of items not to give; -1 counts for nothing
    only : I64 | None
        rows of items to choose from; all by default
    approximate : Approximate | None
        what to ask for candidates first, where all items are ranked by prediction

    Returns rows, ids and predictions in rating units, clipped as the model does.

    Raises ValueError for bounds of a model without variances.
    """
    sign = _SIGNS.get(rank_by, 0)
    if sign and (model.settings.solver != "bayes" or model.events is not None):
        learned = "from events" if model.events is not None else f"by {model.settings.solver!r}"
        raise ValueError(
            f"rank_by={rank_by!r} needs a model of solver 'bayes' of ratings, this one was learned "
            f"{learned}: rank by 'prediction'."
        )
    candidates = model.candidates
    left, own = candidates.query(person.mean[None, :], person.var[None, :])
    gone = np.unique(excluded[excluded >= 0]) if excluded is not None else np.empty(0, np.int64)
    if approximate is not None and only is None and not sign:
        near = approximate.candidates(model, left, count, gone.size, person.taste)
        # too few are left of what it found: all are looked at
        if near is not None and np.setdiff1d(near, gone).size >= count:
            only = np.union1d(near, _boosted(model, person)[1])
    if only is not None:
        # all columns but these are padding
        only = np.setdiff1d(only[only >= 0], gone)
        factors = np.ascontiguousarray(candidates.factors[:, only])
        variances = np.ascontiguousarray(candidates.variances[:, only]) if sign else None
        tastes = candidates.tastes[:, only]
        gone, total = np.empty(0, np.int64), only.size
        boosts = _boosted(model, person, only)
    else:
        factors, total = candidates.factors, model.items.size
        variances = candidates.variances if sign else None
        tastes = candidates.tastes
        boosts = _boosted(model, person)
    count = min(count, total - gone.size)
    starts = np.array([0, gone.size], np.int64)
    bounds = None if variances is None else (own, variances)
    judges = Tastes(person.taste[None, :], tastes) if person.taste.size else None
    best, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    wanted = count + 1
    while count:
        leave_out = starts, gone.astype(np.int32)
        found, valued = top_n(left, factors, wanted, leave_out, bounds, sign, judges, boosts)
        best, scores = found[0][found[0] >= 0].astype(np.int64), valued[0][found[0] >= 0]
        # rows come in the order of arrival: of items equal to the last one, all have to be seen
        if best.size < wanted or scores[-1] < scores[count - 1]:
            break
        wanted *= 2
    return in_order(model, person, best if only is None else only[best], scores, count)


def in_order(
    model: ServedModel, person: Person, rows: I64, scores: F32 | F64, count: int
) -> Scored:
    """Return the first of some items by their scores, equal ones by id, with what is predicted."""
    ids = model.item_ids(rows)
    order = sorted(range(rows.size), key=lambda n: (-scores[n], ids[n]))[:count]
    first = rows[order]
    return Scored(first, [ids[n] for n in order], predicted(model, person, first)[0])


def predicted(model: ServedModel, person: Person, rows: I64) -> tuple[F64, F64 | None]:
    """Predict new ratings of a person for items, and their deviations, in rating units.

    Parameters
    ----------
    model : ServedModel
        the version that predicts
    person : Person
        whose ratings
    rows : I64
        rows of items, -1 where not known

    Returns
    -------
    predictions : float64, shape (n,), clipped as the model does
    deviations : as the model's predictionStdCol; None where the model knows none
    """
    values, variances = unclipped(model, person, rows)
    if model.events is not None:
        return values, None
    shell, items = model.shell, model.items
    if model.clip:
        values = shell.clip(values.astype(np.float32)).astype(np.float64)
    if variances is None:
        return values, None
    noise = np.full(rows.size, shell.noise * person.noise_factor)
    noise[rows >= 0] *= items.noise_factor[rows[rows >= 0]]
    return values, shell.scale.spread * np.sqrt(variances + noise)


def unclipped(model: ServedModel, person: Person, rows: I64) -> tuple[F64, F64 | None]:
    """Predict as `predicted`, as the model does before it clips; variances without noise.

    Variances are in units of the spread; None where the model knows none.
    """
    if model.events is not None:
        return _event_scores(model, person, rows), None
    shell, items = model.shell, model.items
    predictions = np.empty(rows.size, np.float32)
    variances = np.empty(rows.size, np.float32)
    whose = np.full(rows.size, -1 if person.cold else 0, np.int64)
    predict_rows(
        whose,
        rows,
        person.mean[None, :],
        person.var[None, :],
        items.mean,
        items.var,
        prior_variances(shell.settings),
        predictions,
        variances,
    )
    in_units = predictions.astype(np.float64) * shell.scale.spread + shell.scale.mean
    known = shell.settings.solver == "bayes"
    return in_units, variances.astype(np.float64) if known else None


def _event_scores(model: ServedModel, person: Person, rows: I64) -> F64:
    """Scores as `transform` gives them for events; of items not known, that of none."""
    candidates, rank = model.candidates, model.settings.rank
    scores = np.zeros(rows.size, np.float32)
    known = rows >= 0
    if person.taste.size:
        places = np.where(known, np.cumsum(known) - 1, -1)
        factors, tastes = candidates.factors[:, rows[known]], candidates.tastes[:, rows[known]]
        # the bias stands behind the features there
        means = np.vstack([factors[rank], factors[:rank]])
        mix_pairs(
            np.zeros(rows.size, np.int64), places, person.mean[None, :],
            np.ascontiguousarray(means.T), person.taste[None, :],
            np.ascontiguousarray(tastes.T), scores,
        )  # fmt: skip
    else:
        left, _ = candidates.query(person.mean[None, :], person.var[None, :])
        scores[known] = left[0] @ candidates.factors[:, rows[known]]
    if person.partners is not None:
        boosts = person.partners.of_pairs(np.zeros(rows.size, np.int64), rows)
        scores = with_boosts(scores, boosts)
    return scores.astype(np.float64) + model.shell.scale.mean


def _boosted(model: ServedModel, person: Person, only: I64 | None = None) -> Boosts:
    """Return what stands together with what a person did last, among `only` these rows."""
    size = model.items.size
    if person.partners is None:
        return np.zeros(2, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
    places = np.arange(size, dtype=np.int32)
    if only is not None:
        places = np.full(size, -1, np.int32)
        places[only] = np.arange(only.size, dtype=np.int32)
    return person.partners.of_users(places, size if only is None else only.size)


def like_item(model: ServedModel, row: int, count: int) -> Scored:
    """Return the items whose features point as an item's do, by cosine, without itself."""
    size, settings, candidates = model.items.size, model.settings, model.candidates
    features = candidates.factors[: settings.rank, :size]
    if settings.fits_events:
        features = candidates.tastes[1:, :size]
    own = features[:, row].copy()
    norms = np.sqrt(np.einsum("fn,fn->n", features, features))
    scale = norms * (float(np.linalg.norm(own)) or 1.0)
    cosine = np.divide(own @ features, scale, out=np.zeros(size, np.float32), where=scale > 0)
    cosine[row] = -np.inf
    return _highest(model, cosine, min(count, size - 1), lambda v: np.clip(v, -1.0, 1.0))


def most_rated(model: ServedModel, count: int) -> Scored:
    """Return the items with the most ratings, and how many each has."""
    return _highest(model, model.items.count, min(count, model.items.size), lambda v: v)


def _highest(model: ServedModel, values, count: int, shown) -> Scored:  # type: ignore[no-untyped-def]
    """Return the `count` items of the highest values, equal ones by id."""
    if count <= 0:
        return Scored(np.empty(0, np.int64), [], np.empty(0))
    least = np.partition(values, values.size - count)[values.size - count]
    rows = np.flatnonzero(values >= least)
    ids = model.item_ids(rows)
    order = sorted(range(rows.size), key=lambda n: (-values[rows[n]], ids[n]))[:count]
    rows = rows[order]
    return Scored(rows, [ids[n] for n in order], shown(values[rows].astype(np.float64)))
