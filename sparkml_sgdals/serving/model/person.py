"""Whom a request is about: a user of the model, one not known, or one folded in for the moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.id_kinds import id_array_type
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.serving.model.ids import Key, key_of
from sparkml_sgdals.serving.model.served_model import ServedModel
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["Person", "alone", "fold_in", "person_of"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

_SOMEONE: Final[dict[str, Key]] = {"int": -(2**63), "str": ""}
"""Id of the user that is folded in: a new id's start follows from it."""


@dataclass(frozen=True)
class Person:
    """A user's side of a prediction.

    Attributes
    ----------
    mean, var : F32
        float32, shape (rank + 1,), bias first; var (0,) but under `bayes`
    noise_factor : float
        noise of the user's ratings in units of the model's
    count : int
        ratings learned
    cold : bool
        whether the user is not known
    done : I32 | None
        rows of the items that the user has done, the last one last; of models of events alone
    """

    mean: F32
    var: F32
    noise_factor: float
    count: int
    cold: bool
    done: I32 | None = None


def person_of(model: ServedModel, user: Key) -> Person:
    """Return a user by id; one not known has no bias and no taste, and the prior's variance."""
    row = int(model.user_rows([user])[0])
    if row < 0:
        settings = model.settings
        prior = prior_variances(settings) if settings.solver == "bayes" else np.empty(0, np.float32)
        return Person(np.zeros(settings.rank + 1, np.float32), prior, 1.0, 0, True)
    users = model.users
    mean, var = users.mean[row].copy(), users.var[row].copy()
    noise, count = float(users.noise_factor[row]), int(users.count[row])
    if model.events is None:
        return Person(mean, var, noise, count, False)
    done = model.events.done[row]
    mean[1:] += model.events.context(done)[1].sum(axis=0)
    return Person(mean, var, noise, count, False, done)


def fold_in(model: ServedModel, items: list[Key], values: list[float]) -> Person:
    """Return a user who gives these ratings now, by `learn_batch` on a copy of what it touches.

    The model stays as it is. Items that are not known tell nothing and are left out. A model of
    events is copied with all its items, because its negatives are drawn from all.

    Raises DivergenceError for ratings of an absurd size.
    """
    rows = model.item_rows(items)
    known = np.flatnonzero(rows >= 0)
    if not known.size:
        return person_of(model, _SOMEONE[model.kinds[0]])
    kind = model.kinds[0]
    # of repeated items, all ratings count, as in a batch of the stream
    touched = np.unique(rows[known])
    if model.events is not None:
        touched = np.arange(model.items.size)
    scratch = model.scratch(np.empty(0, np.int64), touched)
    someone = pa.array([_SOMEONE[kind]] * known.size, id_array_type(kind))
    found = pa.array(
        [key_of(items[n], model.kinds[1]) for n in known], id_array_type(model.kinds[1])
    )
    table = pa.table(
        {
            "user": someone,
            "item": found,
            "rating": pa.array([values[n] for n in known], pa.float32()),
        }
    )
    learn_batch(scratch, encode_ratings(table))
    users = scratch.users
    mean, var, noise = users.mean[0].copy(), users.var[0].copy(), float(users.noise_factor[0])
    if model.events is None or model.item_keys is None:
        return Person(mean, var, noise, known.size, False)
    with model.lock:
        (done,) = model.item_keys.done(users)
    mean[1:] += model.events.context(done)[1].sum(axis=0)
    return Person(mean, var, noise, known.size, False, done)


def alone(model: ServedModel, user: Key, item: Key) -> ModelState:
    """Return a ModelState that knows, at most, one user and one item."""
    rows = model.user_rows([user]), model.item_rows([item])
    return model.scratch(*(row[row >= 0] for row in rows))
