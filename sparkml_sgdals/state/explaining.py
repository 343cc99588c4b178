"""Why a prediction is what it is: its parts, each with its deviation and evidence (no Spark)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import ITEM_SIDE
from sparkml_sgdals.arrays.id_kinds import id_array_type
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.feature_weights import FeatureWeights, feature_names
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["EXPLANATION_DDL", "Term", "explain_pair", "feature_shares"]

F64 = npt.NDArray[np.float64]

_MOST_FEATURES: Final = 8
EXPLANATION_DDL: Final = "part string, value double, std double, ratings bigint, note string"


@dataclass(frozen=True)
class Term:
    """One row of an explanation.

    Attributes
    ----------
    value, std : float | None
        in units of the ratings; std is None where the solver knows no variances
    ratings : int | None
        how many ratings are behind it
    """

    part: str
    value: float | None
    std: float | None
    ratings: int | None
    note: str


def explain_pair(
    state: ModelState, user: int | str, item: int | str, clip: bool,
    known: tuple[SparseRows | None, SparseRows | None] = (None, None),
) -> list[Term]:  # fmt: skip
    """Return the parts of a prediction: mean, both biases, features, noise, and the prediction.

    What `known` says is told behind the features, as shares of the parts before.

    Parameters
    ----------
    state : ModelState
        the model that predicts
    user, item : int | str
        ids of the model's own kind; one that is not known counts with its prior
    clip : bool
        whether the prediction is clipped to the range of ratings seen
    known : tuple[SparseRows | None, SparseRows | None]
        one row each: what is known of the user, and of the item, beside ratings

    Raises
    ------
    TypeError
        an id is of the other kind

    Notes
    -----
    value of prediction = mean + user bias + item bias + features, before it is clipped, and
    std of prediction = root of the sum of the squared stds: the variance V of docs/algorithm.md.
    """
    spread = state.scale.spread
    known_variance = state.settings.solver == "bayes"
    (u_mean, u_var, u_count, u_noise), (i_mean, i_var, i_count, i_noise) = (
        _row(table, key, state, rows)
        for table, key, rows in zip((state.users, state.items), (user, item), known, strict=True)
    )
    share = float(u_mean[1:] @ i_mean[1:]) * spread
    variance = float(
        u_var[1:] @ i_mean[1:] ** 2 + i_var[1:] @ u_mean[1:] ** 2 + u_var[1:] @ i_var[1:]
    )
    user_bias, item_bias = float(u_mean[0]) * spread, float(i_mean[0]) * spread
    variances = [float(u_var[0]), float(i_var[0]), variance, state.noise * u_noise * i_noise]

    def std(*parts: float) -> float | None:
        return spread * math.sqrt(sum(parts)) if known_variance else None

    total = state.scale.mean + user_bias + item_bias + share
    prediction = float(state.clip(np.array([total], np.float64))[0]) if clip else total
    seen = state.counters.ratings
    clipped = "" if prediction == total else f", clipped from {total:.2f} to the ratings seen"
    both = min(u_count, i_count)
    user_note = _bias_note("the user rates", user_bias, u_count)
    item_note = _bias_note("the item is rated", item_bias, i_count)
    noise_note = "how far such ratings lie from their prediction"
    return [
        Term("mean", state.scale.mean, None, seen, "of all ratings learned"),
        Term("user bias", user_bias, std(variances[0]), u_count, user_note),
        Term("item bias", item_bias, std(variances[1]), i_count, item_note),
        Term("features", share, std(variances[2]), both, _taste_note(share, both)),
        *_feature_terms(state, 0, known[0], u_count, i_mean),
        *_feature_terms(state, 1, known[1], i_count, u_mean),
        Term("noise", None, std(variances[3]), None, noise_note),
        Term("prediction", prediction, std(*variances), both, f"the sum{clipped}"),
    ]


def _feature_terms(
    state: ModelState, side: int, rows: SparseRows | None, count: int, partner: F64
) -> list[Term]:
    """Return what the largest features add: to where an id starts, or to its prior mean."""
    weights = state.features[side]
    if rows is None or weights is None:
        return []
    what = ("user", "item")[side]
    note = f"of the parts above: {'what ratings start from' if count else f'the {what} starts so'}"
    found = feature_shares(weights, rows, count, partner, state.scale.spread)
    return [Term(f"{what} {name}", value, None, None, note) for name, value in found]


def feature_shares(
    weights: FeatureWeights, rows: SparseRows, count: int, partner: F64, spread: float
) -> list[tuple[str, float]]:
    """Return the features that add most to a prediction, by name, in units of the ratings.

    Parameters
    ----------
    weights : FeatureWeights
        of the id's side
    rows : SparseRows
        one row: what is known of the id
    count : int
        its ratings
    partner : F64
        means of the other side
    spread : float
        of the ratings
    """
    which = weights.prior if count else weights.start
    value = np.zeros(rows.size)
    value[rows.columns] = rows.values
    value = value[weights.columns]
    slopes = which[1:, 0] + which[1:, 1:].astype(np.float64) @ partner[1:]
    given = (value - weights.centres) * slopes * spread
    names = feature_names(weights)
    found = []
    for j in np.argsort(-np.abs(given), kind="stable")[:_MOST_FEATURES].tolist():
        name = names[weights.columns[j]]
        if given[j]:
            # of what most have, the lack speaks too
            lacks = "=" in name and not value[j]
            found.append((f"without {name}" if lacks else name, float(given[j])))
    return found


def _row(
    table: FactorTable, key: int | str, state: ModelState, rows: SparseRows | None
) -> tuple[F64, F64, int, float]:
    """Means, variances, number of ratings and noise factor of an id; its prior if not known."""
    kind = table.index.kind
    if not isinstance(key, str if kind == "str" else Integral):
        learned = "integers" if kind == "int" else "strings"
        raise TypeError(f"The id {key!r} is no {kind}, the model was learned from {learned}.")
    fits = kind == "str" or -(2**63) <= int(key) < 2**63
    row = table.index.find(pa.array([key], id_array_type(kind)))[0] if fits else -1
    if row < 0:
        prior = prior_variances(state.settings).astype(np.float64)
        weights = state.features[table.side == ITEM_SIDE]
        if rows is not None and weights is not None:
            start = weights.start_means(rows)[0].astype(np.float64)
            return start, weights.start_var.astype(np.float64), 0, 1.0
        return np.zeros(prior.size), prior, 0, 1.0
    variances = table.var[row] if table.var.shape[1] else np.zeros(table.mean.shape[1])
    mean, noise = table.mean[row].astype(np.float64), float(table.noise_factor[row])
    return mean, variances.astype(np.float64), int(table.count[row]), noise


def _bias_note(subject: str, bias: float, count: int) -> str:
    if not count:
        return "no rating yet: from its features" if bias else "not known: no bias yet"
    return f"{subject} {abs(bias):.2f} {'above' if bias >= 0 else 'below'} the mean"


def _taste_note(share: float, count: int) -> str:
    if not count:
        return "no rating yet: from features" if share else "not known: no taste yet"
    return f"the item {'suits' if share >= 0 else 'does not suit'} the user's taste"
