"""Which of a person's own ratings speak for an item, and a sentence that says so.

Given the items, a person's features are nearly linear in the person's ratings, so the features'
part of a prediction splits into a share of each rating: Hu, Koren and Volinsky 2008, section 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.kernels.events.judges import NEVER, soft
from sparkml_sgdals.kernels.events.partners import LATEST_DECAY
from sparkml_sgdals.learn.event_tables import user_system
from sparkml_sgdals.serving.model.person import Person
from sparkml_sgdals.serving.model.served_model import ServedModel
from sparkml_sgdals.state.event_scores import table_alone
from sparkml_sgdals.state.explaining import Term

__all__ = [
    "Share",
    "event_sentence",
    "event_shares",
    "event_terms",
    "sentence",
    "shares",
    "stands_together",
]

_TELLING: Final = 0.005
"""a share that would show in two digits"""
_TOLD_OF_RANGE: Final = 1 / 30
"""a share or term that is worth a word, of the range of ratings: 0.15 of 0.5 to 5 stars"""
_LOVED_OF_RANGE: Final = 1 / 9
"""how far above the mean what is loved stands, of the range: half a star"""
_TOLD: Final = 0.1
"""how far, of the whole, the shares of a table's judgement may be from it to be told"""

_LEAST: Final = 0.005
"""what a feature adds that would show in two digits"""

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """What one of a person's ratings adds to a prediction, in rating units.

    `liked` says whether the person liked what was rated: above the mean of all ratings, and above
    what its bias and the person's make of that.
    """

    row: int
    rating: float
    share: float
    liked: bool = True


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
    liked = (left > 0) & (values > scale.mean)
    return [Share(int(rated[n]), float(values[n]), float(found[n]), bool(liked[n])) for n in order]


def event_shares(model: ServedModel, person: Person, row: int) -> list[Share]:
    """Return how far the items that a person did speak for an item, largest first.

    Of what the filter says, these are the parts of C . P of docs/positive-only.md, of which they
    are the sum; of what a fitted table says those of U . P, by `_table_shares`; of what stands
    together with them their parts of the term of that name. It is the judge that says most of this
    item, and nothing where that is a table which did not hold just what the person has done.
    """
    if model.events is None or person.done is None or row < 0:
        return []
    own, table, _ = _judgements(model, person, row)
    if stands_together(model, person, row):
        return _partner_shares(model, person, row)
    if table > own:
        return _table_shares(model, person, row)
    last, parts = model.events.context(person.done)
    return _ordered(last, parts @ model.items.mean[row, 1:])


def stands_together(model: ServedModel, person: Person, row: int) -> bool:
    """Whether an item is there for what stands together with what a person did last."""
    own, table, _ = _judgements(model, person, row)
    boost = _boost_of(person, row)
    return boost > 0.0 and math.log(boost) > float(np.logaddexp(own, table))


def _partner_shares(model: ServedModel, person: Person, row: int) -> list[Share]:
    """Return each item's part of what stands together adds to the score."""
    assert person.partners is not None
    assert person.done is not None
    latest = person.partners.latest[0]
    count = int(np.count_nonzero(latest >= 0))
    each = np.full((count, latest.size), -1, np.int32)
    weights = LATEST_DECAY ** np.arange(count)
    for k in range(count):
        each[k, 0] = latest[k]
    alone = replace(person.partners, latest=each, weights=weights.astype(np.float32))
    parts = alone.of_pairs(np.arange(count), np.full(count, row)).astype(np.float64)
    own, table, _ = _judgements(model, person, row)
    added = np.logaddexp(0.0, math.log(_boost_of(person, row)) - np.logaddexp(own, table))
    return _ordered(person.done[: -count - 1 : -1], parts * added / max(parts.sum(), 1e-300))


def _ordered(rows: npt.NDArray[np.int32], found: npt.NDArray[Any]) -> list[Share]:
    order = np.argsort(-found, kind="stable")
    return [Share(int(rows[n]), 1.0, float(found[n])) for n in order]


def _judgements(model: ServedModel, person: Person, row: int) -> tuple[float, float, float]:
    """Logarithms of what filter and table say of an item, and U . P.

    -inf where one says nothing; of models without a table the score, and -inf.
    """
    candidates, rank = model.candidates, model.settings.rank
    known = row >= 0
    own = float(person.mean[0])
    if known:
        own += float(candidates.factors[rank, row])
        own += float(person.mean[1:] @ candidates.factors[:rank, row])
    own = own if own > NEVER / 2 else -math.inf
    taste = person.taste
    if not taste.size or taste[0] <= NEVER / 2:
        return own, -math.inf, 0.0
    product = float(taste[1:] @ candidates.tastes[1:, row]) if known else 0.0
    base = float(taste[0]) + (float(candidates.tastes[0, row]) if known else 0.0)
    return own, base + math.log(soft(np.float32(product))), product


def _table_shares(model: ServedModel, person: Person, row: int) -> list[Share]:
    """Return the share of each item that the person has done in U . P, items fixed.

    U solves A U = sum_t P_t over what was done, so it is the sum of P_y' A^-1 P_t.
    """
    done = person.done
    if done is None or not done.size == person.fitted == person.count:
        # what came since, or more than once, the table does not tell apart
        return []
    tastes = model.items.taste
    features = tastes[done, 1:]
    system = user_system(
        model.settings, model.shell.regularisation[0], features, np.ones(done.size, np.float32),
        model.candidates.squares(), model.weight_beside(),
    )  # fmt: skip
    towards = np.linalg.solve(system, tastes[row, 1:].astype(np.float64))
    shares = features @ towards
    product = float(person.taste[1:] @ tastes[row, 1:])
    if abs(float(shares.sum()) - product) > _TOLD * max(abs(product), _TOLD):
        # events that weighed more or less than 1, which is not remembered
        return []
    return _ordered(done, shares)


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
    judged, table, product = _judgements(model, person, row)
    least, known = model.shell.scale.mean, row >= 0
    terms: list[tuple[str, float, int | None, str]] = []
    if judged > -math.inf:
        terms = _filter_terms(model, person, row)
    if table > -math.inf:
        said = f"the table's U . P is {product:.2f}"
        if terms:
            # log(a + b) is log a + log(1 + b / a)
            terms.append(("table", float(np.logaddexp(0.0, table - judged)), person.fitted, said))
        else:
            terms.append(("table", least + table, person.fitted, said))
    boost = _boost_of(person, row)
    if boost > 0.0:
        before = sum(value for _, value, _, _ in terms) - least
        added = float(np.logaddexp(0.0, math.log(boost) - before)) if terms else 0.0
        terms.append(("stands together", added, None, "often done about when this one is"))
    total = sum(value for _, value, _, _ in terms)
    terms.append(("prediction", total, None, "" if known else "the item is not known"))
    return [Term(name, value, None, ratings, note) for name, value, ratings, note in terms]


def _boost_of(person: Person, row: int) -> float:
    """Return what partners of what a person did last add to exp(score) of an item."""
    if person.partners is None or row < 0:
        return 0.0
    return float(person.partners.of_pairs(np.zeros(1, np.int64), np.array([row]))[0])


def _filter_terms(
    model: ServedModel, person: Person, row: int
) -> list[tuple[str, float, int | None, str]]:
    least, rank = model.shell.scale.mean, model.settings.rank
    known = row >= 0
    own = float(model.items.mean[row, 0]) if known else 0.0
    shown = float(model.candidates.factors[rank, row]) if known else 0.0
    features = model.items.mean[row, 1:] if known else np.zeros(rank, np.float32)
    count = int(model.items.count[row]) if known else 0
    lately = 0.0
    if known and model.events is not None and person.done is not None:
        lately = float((model.events.context(person.done)[1] @ features).sum())
    taste = float(person.mean[1:] @ features) - lately
    terms: list[tuple[str, float, int | None, str]] = [
        ("item bias", own, count, "beyond its popularity"),
        ("features", taste, person.count, "the user's taste"),
    ]
    if model.settings.solver == "bayes":
        share = least + shown - own
        of = "of all events" if table_alone(model.shell) else "of events now"
        terms.insert(0, ("popularity", share, count, f"{np.exp(share):.2%} {of}"))
        terms.append(("done last", lately, None, "what the user did last"))
    if person.taste.size and person.mean[0]:
        said = f"believed {model.shell.filter_share:.0%}, the table the rest"
        terms.append(("weight", float(person.mean[0]), None, said))
    return terms


def popular_share(model: ServedModel, row: int) -> float:
    """Return the share of an item in events; 0 where popularity is not learned."""
    if model.settings.solver != "bayes":
        return 0.0
    shown = model.candidates.factors[model.settings.rank, row] - model.items.mean[row, 0]
    return math.exp(model.shell.scale.mean + float(shown))


def event_sentence(
    model: ServedModel, person: Person, row: int, because: list[tuple[str, float]],
    about: list[tuple[str, float]] | None = None,
) -> str:  # fmt: skip
    """Why an item comes next, for a person to read: what says most of it first.

    Parameters
    ----------
    model : ServedModel
        a version of a model of events
    person : Person
        to whom it is said
    row : int
        the item's row
    because : list[tuple[str, float]]
        name and share of what was done, largest first
    about : list[tuple[str, float]] | None
        of an item that nobody has done, names and shares in U . P of its features, largest first
    """
    described = [
        f"{name} {share:+.2f}" for name, share in (about or [])[:3] if abs(share) >= _LEAST
    ]
    if described:
        return f"Not done yet: {', '.join(described)}"
    speaking = [name for name, part in because[:3] if part >= _TELLING]
    together = row >= 0 and stands_together(model, person, row)
    share, general = popular_share(model, row), "by taste"
    if table_alone(model.shell):
        # what a table is fitted to is no popularity: that speaks to those that it does not hold
        if not person.taste.size or person.taste[0] <= NEVER / 2:
            general = f"it is {share:.2%} of all that was done"
    elif share:
        general = f"it is {share:.2%} of what is done now"
    if not speaking:
        return general[0].upper() + general[1:]
    last = speaking.pop()
    named = f"{', '.join(speaking)} and {last}" if speaking else last
    told = sum(part for _, part in because[:3] if part >= _TELLING)
    if share and not together and math.log(share * model.items.size) > told:
        # more often done than most things are, and that says more than what the person did
        return f"{general[0].upper()}{general[1:]}, and you did {named}"
    return f"{'Often done with' if together else 'Because you did'} {named}; {general}"


def sentence(
    bias: float,
    features: float,
    count: int,
    span: float,
    because: list[tuple[str, float, float]],
    about: list[tuple[str, float]] | None = None,
) -> str:
    """Why an item is recommended, for a person to read: the largest term first.

    Parameters
    ----------
    bias : float
        how far above the mean the item is rated, in rating units
    features : float
        what the person's taste adds, in rating units
    count : int
        ratings behind the bias
    span : float
        from the lowest rating to the highest
    because : list[tuple[str, float, float]]
        name, rating and share of the ratings that may be named, largest first
    about : list[tuple[str, float]] | None
        of an item that nobody has rated, names and shares of its features, largest first
    """
    told = [f"{name} {share:+.2f}" for name, share in (about or [])[:3] if abs(share) >= _LEAST]
    if told and not count:
        # what others say of it is not known: nothing but these
        return f"Not rated yet: {', '.join(told)}"
    least = span * _TOLD_OF_RANGE
    general = _general(bias, count, span)
    named = [f"{rating:g} to {name}" for name, rating, share in because[:3] if share > least]
    if not named:
        own = "close to your taste" if features > least else ""
    else:
        last = named.pop()
        own = f"you gave {', '.join(named)} and {last}" if named else f"you gave {last}"
    if not own:
        return general[0].upper() + general[1:]
    if features <= bias:
        return f"{general[0].upper()}{general[1:]}, and {own}"
    first = f"Because {own}" if own.startswith("you") else own[0].upper() + own[1:]
    return f"{first}; {general}"


def _general(bias: float, count: int, span: float) -> str:
    """Return what people in general think of an item."""
    if not count:
        return "not rated yet"
    people = "one person" if count == 1 else f"{count:,} people"
    if bias > span * _LOVED_OF_RANGE:
        return f"loved by {people}"
    if bias > span * _TOLD_OF_RANGE:
        return f"liked by {people}"
    if bias > -span * _TOLD_OF_RANGE:
        return f"rated like most by {people}"
    return f"rated below most by {people}"
