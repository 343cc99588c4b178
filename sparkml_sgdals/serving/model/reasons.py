"""Which of a person's own ratings speak for an item, and a sentence that says so.

Given the items, a person's features are nearly linear in the person's ratings, so the features'
part of a prediction splits into a share of each rating: Hu, Koren and Volinsky 2008, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.serving.model.person import Person
from sparkml_sgdals.serving.model.served_model import ServedModel
from sparkml_sgdals.state.explaining import Term

__all__ = ["Share", "event_sentence", "event_shares", "event_terms", "sentence", "shares"]

_TELLING: Final = 0.005
"""a share that would show in two digits"""

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """What one of a person's ratings adds to a prediction, in rating units."""

    row: int
    rating: float
    share: float


def shares(model: ServedModel, person: Person, rated: I64, values: F64, row: int) -> list[Share]:
    """Return the share of each rating in the features' part of the prediction for an item.

    Parameters
    ----------
    model : ServedModel
        a version of a model of ratings
    person : Person
        who has rated
    rated : I64
        rows of the items that the person has rated, all known
    values : F64
        the ratings, in rating units, shape as `rated`
    row : int
        the item's row

    Returns shares, largest first. With P the features of the rated items, c their variances, e what
    is left of the ratings without mean and biases, the share of rating t is
    spread P_y' (s2/v I + sum_t (P_t P_t' + diag c_t))^-1 P_t e_t.
    """
    if not rated.size:
        return []
    settings, scale = model.settings, model.shell.scale
    means = model.items.mean[rated].astype(np.float64)
    features = means[:, 1:]
    if settings.solver == "bayes":
        ridge = settings.noise / settings.factor_prior * np.ones(settings.rank)
        ridge += model.items.var[rated][:, 1:].astype(np.float64).sum(axis=0)
    else:
        ridge = settings.regs[2] * rated.size * np.ones(settings.rank) + 1e-9
    left = (values - scale.mean) / scale.spread - float(person.mean[0]) - means[:, 0]
    target = model.items.mean[row, 1:].astype(np.float64)
    weights = np.linalg.solve(features.T @ features + np.diag(ridge), target)
    found = scale.spread * (features @ weights) * left
    order = np.argsort(-found, kind="stable")
    return [Share(int(rated[n]), float(values[n]), float(found[n])) for n in order]


def event_shares(model: ServedModel, person: Person, row: int) -> list[Share]:
    """Return what each item that a person did last adds to the score of an item, largest first.

    These are exact: their sum is C . P of docs/positive-only.md, equation (1).
    """
    if model.events is None or person.done is None:
        return []
    last, parts = model.events.context(person.done)
    found = parts @ model.items.mean[row, 1:]
    order = np.argsort(-found, kind="stable")
    return [Share(int(last[n]), 1.0, float(found[n])) for n in order]


def event_terms(model: ServedModel, person: Person, row: int) -> list[Term]:
    """Return the terms of an event's score: their sum is the prediction.

    Parameters
    ----------
    model : ServedModel
        a version of a model of events
    person : Person
        whose score
    row : int
        the item's row, -1 where it is not known
    """
    least, rank = model.shell.scale.mean, model.settings.rank
    known = row >= 0
    own = float(model.items.mean[row, 0]) if known else 0.0
    shown = float(model.candidates.factors[rank, row]) if known else 0.0
    features = model.items.mean[row, 1:] if known else np.zeros(rank, np.float32)
    count = int(model.items.count[row]) if known else 0
    lately = sum(one.share for one in event_shares(model, person, row)) if known else 0.0
    taste = float(person.mean[1:] @ features) - lately
    terms: list[tuple[str, float, int | None, str]] = [
        ("item bias", own, count, "beyond its popularity"),
        ("features", taste, person.count, "the user's taste"),
    ]
    if model.settings.solver == "bayes":
        share = least + shown - own
        terms.insert(0, ("popularity", share, count, f"{np.exp(share):.2%} of events now"))
        terms.append(("done last", lately, None, "what the user did last"))
    total = sum(value for _, value, _, _ in terms)
    terms.append(("prediction", total, None, "" if known else "the item is not known"))
    return [Term(name, value, None, ratings, note) for name, value, ratings, note in terms]


def event_sentence(share: float, because: list[tuple[str, float]]) -> str:
    """Why an item comes next, for a person to read.

    Parameters
    ----------
    share : float
        of the item in events now; 0 where popularity is not learned
    because : list[tuple[str, float]]
        name and share of what was done last, largest first
    """
    speaking = [name for name, part in because[:3] if part >= _TELLING]
    general = f"it is {share:.2%} of what is done now" if share else "by taste"
    if not speaking:
        return general[0].upper() + general[1:]
    last = speaking.pop()
    named = f"{', '.join(speaking)} and {last}" if speaking else last
    return f"Because you did {named}; {general}"


def sentence(bias: float, count: int, because: list[tuple[str, float, float]]) -> str:
    """Why an item is recommended, for a person to read.

    Parameters
    ----------
    bias : float
        how far above the mean the item is rated, in rating units
    count : int
        ratings behind it
    because : list[tuple[str, float, float]]
        name, rating and share of the ratings that speak for it, largest first
    """
    where = "above" if bias >= 0 else "below"
    general = (
        f"rated {abs(bias):.2f} {where} the mean by {count:,} people" if count else "not rated yet"
    )
    speaking = [f"{rating:g} to {name}" for name, rating, share in because[:3] if share >= _TELLING]
    if not speaking:
        return general[0].upper() + general[1:]
    last = speaking.pop()
    named = f"{', '.join(speaking)} and {last}" if speaking else last
    return f"Because you gave {named}; {general}"
