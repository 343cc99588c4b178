"""Whom a request is about: a user of the model, one not known, or one folded in for the moment."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import USER_SIDE
from sparkml_sgdals.arrays.id_kinds import id_array_type
from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.kernels.events.judges import NEVER
from sparkml_sgdals.learn.event_tables import folded_in
from sparkml_sgdals.learn.events import fold_in_events
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.serving.model.ids import Key, key_of
from sparkml_sgdals.serving.model.served_model import ServedModel
from sparkml_sgdals.state.columns import prior_variances, start_means
from sparkml_sgdals.state.event_scores import table_alone
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.partners import Partners

__all__ = ["Person", "alone", "fold_in", "nobody", "person_at", "person_of"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

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
    taste : F32
        float32, shape (table rank + 1,), as `topn.Tastes`: what the table's judgement is multiplied
        with, as a logarithm, then features; (0,) but where a table of events was fitted, where
        mean[0] is the same for the filter's
    fitted : int
        events of the user that the table held
    partners : Partners | None
        what stands together with what the user did last; None where nothing of it is learned
    drawn : F32
        float32, shape (rank,): what is left in the features of the small numbers, drawn by the id,
        that they started from; (0,) where that is not known
    """

    mean: F32
    var: F32
    noise_factor: float
    count: int
    cold: bool
    done: I32 | None = None
    taste: F32 = field(default_factory=lambda: np.empty(0, np.float32))
    fitted: int = 0
    partners: Partners | None = None
    drawn: F32 = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def learned(self) -> F32:
        """Features without what they were drawn to start at: what follows from the ratings."""
        features: F32 = self.mean[1:]
        return features - self.drawn if self.drawn.size else features


def nobody(model: ServedModel) -> Person:
    """Return a user that is not known: without bias and taste, and with the prior's variance."""
    settings = model.settings
    prior = prior_variances(settings) if settings.solver == "bayes" else np.empty(0, np.float32)
    taste = np.zeros(model.users.taste.shape[1], np.float32)
    taste[:1] = NEVER
    return Person(np.zeros(settings.rank + 1, np.float32), prior, 1.0, 0, True, taste=taste)


def person_of(model: ServedModel, user: Key) -> Person:
    """Return a user by id; one not known is `nobody`."""
    row = int(model.user_rows([user])[0])
    return nobody(model) if row < 0 else person_at(model, row)


def person_at(model: ServedModel, row: int) -> Person:
    """Return a user by its row."""
    users = model.users
    mean, var = users.mean[row].copy(), users.var[row].copy()
    noise, count = float(users.noise_factor[row]), int(users.count[row])
    with model.lock:
        drawn = _drawn(model, model.indexes[0].ids(np.array([row])), var)
    if model.events is None:
        return Person(mean, var, noise, count, False, drawn=drawn)
    done, taste = model.events.done[row], users.taste[row].copy()
    person = Person(mean, var, noise, count, False, done, taste, drawn=drawn)
    return _judged(model, person, model.events.last[row])


def _drawn(model: ServedModel, user: pa.Array, var: F32) -> F32:
    """Return what is left of a user's start, of features whose variances tell how much.

    A mean moves from where it started as its variance falls: what is left is their ratio to what
    they were. Where features of users are known these say where they start, and that is no chance.
    """
    settings = model.settings
    if not var.size or settings.featured:
        return np.empty(0, np.float32)
    start = start_means(settings, USER_SIDE, user)
    left: F32 = np.minimum(var / prior_variances(settings), np.float32(1.0))[1:] * start[0, 1:]
    return left


def _judged(model: ServedModel, person: Person, last: int | None = None) -> Person:
    """Return a person of events as scores need it, from the state of a user, whose arrays it takes.

    What was done last is added to the features, and all judges are weighed. `last` is the number of
    the last event, 0 where it is not known; None for the one before now.
    """
    mean, taste, done = person.mean, person.taste, person.done
    assert model.events is not None
    assert done is not None
    mean[1:] += model.events.context(done)[1].sum(axis=0)
    shell = model.shell
    shares = model.events.partner_shares(
        shell, shell.events_learned if last is None else last, done
    )
    if model.item_keys is not None:
        with model.lock:
            partners = model.events.partners(
                shell, model.item_keys, done, shares, taste, shell.scale.mean
            )
        person = replace(person, partners=partners)
    if model.anchors is None:
        return person
    fitted = round(np.expm1(float(taste[0])))
    own, table = model.anchors.weights(taste[None, :], mean[None, 1:], shares)
    mean[0], taste[0] = own[0], table[0]
    return replace(person, fitted=fitted)


def fold_in(model: ServedModel, items: list[Key], values: list[float]) -> Person:
    """Return a user who gives these ratings now, by `learn_batch` on a copy of what it touches.

    The model stays as it is. Items that are not known tell nothing and are left out. Where a table
    of events was fitted the user gets the features that the table gives with the items fixed, and
    no others where the table came without times.

    Raises DivergenceError for ratings of an absurd size.
    """
    rows = model.item_rows(items)
    known = np.flatnonzero(rows >= 0)
    if not known.size:
        return nobody(model)
    kind = model.kinds[0]
    someone = pa.array([_SOMEONE[kind]] * known.size, id_array_type(kind))
    found = pa.array(
        [key_of(items[n], model.kinds[1]) for n in known], id_array_type(model.kinds[1])
    )
    given = pa.array([values[n] for n in known], pa.float32())
    ratings = encode_ratings(pa.table({"user": someone, "item": found, "rating": given}))
    if model.events is None:
        # of repeated items, all ratings count, as in a batch of the stream
        scratch = model.scratch(np.empty(0, np.int64), np.unique(rows[known]))
        learn_batch(scratch, ratings)
        return _folded(model, scratch.users, known.size, someone[:1])
    named = model.item_rows(ratings.item_ids.to_pylist())
    if table_alone(model.shell):
        cold = nobody(model)
        done = rows[known[given.to_numpy() > 0]][::-1]
        last = done[np.sort(np.unique(done, return_index=True)[1])][::-1].astype(np.int32)
        taste = _taste(model, ratings, named)
        return _judged(model, replace(cold, count=known.size, cold=False, done=last, taste=taste))
    users, last = _learned_events(model, ratings, named)
    taste = users.taste[0].copy() if model.anchors is None else _taste(model, ratings, named)
    person = _folded(model, users, known.size, someone[:1])
    return _judged(model, replace(person, done=last, taste=taste))


def _folded(model: ServedModel, users: FactorTable, count: int, someone: pa.Array) -> Person:
    """Return the user of a table of one, who gave so many ratings."""
    mean, var, noise = users.mean[0].copy(), users.var[0].copy(), float(users.noise_factor[0])
    return Person(mean, var, noise, count, False, drawn=_drawn(model, someone, var))


def _learned_events(model: ServedModel, ratings: Ratings, named: I64) -> tuple[FactorTable, I32]:
    """Return a user of these events, on items of these rows, and rows done, the last one last."""
    assert model.events is not None
    assert model.item_keys is not None
    if model.settings.solver == "bayes":
        memory = model.events.memory(partners=False)
        return fold_in_events(model.shell, model.items, memory, model.draws, ratings, named)
    # touches of all items say which come next
    scratch = model.scratch(np.empty(0, np.int64), np.arange(model.items.size))
    learn_batch(scratch, ratings)
    with model.lock:
        (last,) = model.item_keys.done(scratch.users)
    return scratch.users, last


def _taste(model: ServedModel, ratings: Ratings, named: I64) -> F32:
    rows = named[ratings.items]
    return folded_in(
        model.settings, model.shell.regularisation[0], model.items.taste[rows], ratings,
        model.candidates.squares(), model.weight_beside(),
    )  # fmt: skip


def alone(model: ServedModel, user: Key, item: Key) -> ModelState:
    """Return a ModelState that knows, at most, one user and one item."""
    rows = model.user_rows([user]), model.item_rows([item])
    return model.scratch(*(row[row >= 0] for row in rows))
