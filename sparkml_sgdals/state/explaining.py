"""Why a prediction is what it is: its parts, each with its deviation and evidence (no Spark)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import ITEM_SIDE
from sparkml_sgdals.arrays.id_kinds import id_array_type
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.kernels.events.judges import NEVER, soft
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.event_scores import means_and_tastes, score_pairs, serving_state
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.feature_weights import FeatureWeights, feature_names
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["EXPLANATION_DDL", "Term", "explain_event", "explain_pair", "feature_shares"]

F64 = npt.NDArray[np.float64]

_MOST_FEATURES: Final = 8
_ROUNDING: Final = 1e-5
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


def explain_event(
    state: ModelState, user: int | str, item: int | str,
    known: tuple[SparseRows | None, SparseRows | None] = (None, None),
) -> list[Term]:  # fmt: skip
    """Return the parts of an event's score, docs/positive-only.md, (1): their sum is the score.

    What `known` says of ids without events is told behind, as shares of the parts before.

    Parameters
    ----------
    state : ModelState
        a model of events
    user, item : int | str
        ids of the model's own kind, known or not
    known : tuple[SparseRows | None, SparseRows | None]
        one row each: what is known of the user, and of the item, beside events

    Raises
    ------
    TypeError
        an id is of the other kind
    """
    keys = [
        _key(table, key)
        for table, key in zip((state.users, state.items), (user, item), strict=True)
    ]
    if any(known):
        state = state.copy()
        tables = state.users, state.items
        for table, rows, key, weights in zip(tables, known, keys, state.features, strict=True):
            if rows is not None and len(key):
                start_featured(table, key, replace(rows, ids=key), weights)
    served = serving_state(state)
    u, i = (
        int(table.index.find(key)[0]) if len(key) else -1
        for table, key in zip((state.users, state.items), keys, strict=True)
    )
    terms = _filter_terms(state, served, u, i)
    (u_mean, u_taste), (_, i_taste) = (
        means_and_tastes(table, np.array([row]))
        for table, row in ((served.users, u), (served.items, i))
    )
    least = served.scale.mean
    if u_taste.shape[1] and u_taste[0, 0] > NEVER / 2:
        product = float(u_taste[0, 1:] @ i_taste[0, 1:])
        table_says = float(u_taste[0, 0] + i_taste[0, 0]) + math.log(soft(np.float32(product)))
        before = sum(term.value or 0.0 for term in terms) - least
        heard = bool(u_mean[0, 0] > NEVER / 2)
        # log(a + b) is log a + log(1 + b / a)
        added = float(np.logaddexp(0.0, table_says - before)) if heard else least + table_says
        terms = [
            *(terms if heard else []),
            Term("table", added, None, None, f"U . P {product:.2f}"),
        ]
    score = float(score_pairs(served, np.array([u]), np.array([i]))[0])
    rest = score - sum(term.value or 0.0 for term in terms)
    if served.heard is not None:
        # what is left may be no more than rounding
        rest = rest if abs(rest) > _ROUNDING else 0.0
        told = "often done about when this one is" if rest > 0 else "with nothing done last"
        terms.append(Term("stands together", rest, None, None, told))
    shown = [] if known == (None, None) else _event_features(state, served, (u, i), known)
    return [*terms, *shown, Term("prediction", score, None, None, "the sum of the parts")]


def _filter_terms(state: ModelState, served: ModelState, u: int, i: int) -> list[Term]:
    """Return the parts of what is learned event by event."""
    bayes = state.settings.solver == "bayes"
    features = served.items.mean[i, 1:] if i >= 0 else np.zeros(state.settings.rank)
    own = float(state.items.mean[i, 0]) if i >= 0 else 0.0
    shown = float(served.items.mean[i, 0]) if i >= 0 else 0.0
    events, done = (
        int(table.count[row]) if row >= 0 else 0
        for table, row in ((state.items, i), (state.users, u))
    )
    taste = float(state.users.mean[u, 1:] @ features) if u >= 0 else 0.0
    whole = float(served.users.mean[u, 1:] @ features) if u >= 0 else 0.0
    believed = float(served.users.mean[u, 0]) if u >= 0 else 0.0
    terms = [Term("features", taste, None, done, "the user's taste")]
    if bayes:
        share = served.scale.mean + shown - own
        terms = [
            Term("popularity", share, None, events, f"{np.exp(share):.2%} of events now"),
            Term("item bias", own, None, events, "beyond its popularity"),
            *terms,
            Term("done last", whole - taste, None, None, "what the user did last"),
        ]
    if believed:
        terms.append(Term("weight", believed, None, None, "how far this is believed"))
    return terms


def _event_features(
    state: ModelState, served: ModelState, rows: tuple[int, int],
    known: tuple[SparseRows | None, SparseRows | None],
) -> list[Term]:  # fmt: skip
    """Return what the largest features add to U . P, of ids without events."""
    fits = state.settings.fits_events
    tables = (state.users, state.items)
    partners = [
        means_and_tastes(table, np.array([row]))[1 if fits else 0][0].astype(np.float64)
        for table, row in ((served.users, rows[0]), (served.items, rows[1]))
    ]
    terms: list[Term] = []
    for side, (given, weights) in enumerate(zip(known, state.features, strict=True)):
        if given is None or weights is None or (rows[side] >= 0 and tables[side].count[rows[side]]):
            continue
        what = ("user", "item")[side]
        note = f"of U . P: the {what} starts so"
        for name, value in feature_shares(weights, given, 0, partners[1 - side], 1.0):
            terms.append(Term(f"{what} {name}", value, None, None, note))
    return terms


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
    ids = _key(table, key)
    row = table.index.find(ids)[0] if len(ids) else -1
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


def _key(table: FactorTable, key: int | str) -> pa.Array:
    """Return an id as the table looks it up; none where it can have no such id."""
    kind = table.index.kind
    if not isinstance(key, str if kind == "str" else Integral):
        learned = "integers" if kind == "int" else "strings"
        raise TypeError(f"The id {key!r} is no {kind}, the model was learned from {learned}.")
    fits = kind == "str" or -(2**63) <= int(key) < 2**63
    return pa.array([key] if fits else [], id_array_type(kind))


def _bias_note(subject: str, bias: float, count: int) -> str:
    if not count:
        return "no rating yet: from its features" if bias else "not known: no bias yet"
    return f"{subject} {abs(bias):.2f} {'above' if bias >= 0 else 'below'} the mean"


def _taste_note(share: float, count: int) -> str:
    if not count:
        return "no rating yet: from features" if share else "not known: no taste yet"
    return f"the item {'suits' if share >= 0 else 'does not suit'} the user's taste"
