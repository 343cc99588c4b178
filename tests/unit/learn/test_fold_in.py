"""New users with items held, against what the stream does to items that cannot move."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from building import CLOSE, ratings_of, seen_state, settings_of
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.learn.influences import FilterSide, run_influence_filter
from sparkml_sgdals.learn.one_batch import HeldItems, fold_in, learn_batch
from sparkml_sgdals.learn.solvers import run_filter

WAYS = [{}, {"implicit_prior": False}, {"rank": 9}]


@pytest.fixture(scope="module", params=WAYS, ids=str)
def state(request):
    return seen_state(settings_of(**{"rank": 3} | request.param))


def some_ratings(state, seed, users, most, weighted):
    """Ratings of users that the model does not know, some pairs more than once, in any order."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, most + 1, users)
    owner = np.repeat(-1 - np.arange(users) * 3, counts)
    items = state.items.index.ids().to_numpy()
    shuffled = rng.permutation(owner.size)
    return (
        owner[shuffled], rng.choice(items, owner.size), rng.normal(3.5, 1.0, owner.size),
        rng.choice([0.0, 0.5, 1.0, 3.0], owner.size) if weighted else None,
        rng.integers(0, 4, owner.size) if seed % 2 else None,
    )  # fmt: skip


def folded(state, columns):
    users, items, values, weights, times = columns
    ratings = ratings_of(users, items, values, weights=weights, times=times)
    held = HeldItems.of(state)
    rows = state.items.index.find(ratings.item_ids)
    mean, var = fold_in(held.with_new(ratings.item_ids.filter(pa.array(rows < 0))), ratings,
                        np.where(rows < 0, held.mean.shape[0] + np.cumsum(rows < 0) - 1, rows),
                        "int")  # fmt: skip
    return ratings, mean, var


def of_user(columns, user):
    own = columns[0] == user
    return [None if column is None else column[own] for column in columns]


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([3, 90]), st.booleans())
def test_is_the_stream_where_items_cannot_move(state, seed, users, most, weighted):
    """Each user alone in a batch, beside others or not: the same."""
    still = state.copy()
    still.items.var[:] = 1e-9
    still.items.count[:] = 10**12
    columns = some_ratings(still, seed, users, most, weighted)
    ratings, mean, var = folded(still, columns)
    for n, user in enumerate(ratings.user_ids.to_pylist()):
        stream = still.copy()
        own = of_user(columns, user)
        learn_batch(stream, ratings_of(*own[:3], weights=own[3], times=own[4]))
        row = stream.users.index.find(pa.array([user]))[0]
        np.testing.assert_allclose(mean[n], stream.users.mean[row], rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(var[n], stream.users.var[row], rtol=2e-3, atol=1e-5)
        alone = folded(still, own)
        np.testing.assert_array_equal(alone[1][0], mean[n])
        np.testing.assert_array_equal(alone[2][0], var[n])


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_items_are_as_unsure_as_they_are(state, seed, weighted):
    """Variances are those of the stream's filter, one rating at a time, each of a fresh item."""
    state = replace(state, settings=replace(state.settings, drift=0.001))
    users, items, values, weights, _ = some_ratings(state, seed, 1, 9, weighted)
    ratings, _, var = folded(state, (users, items, values, weights, None))
    settings = state.settings
    scratch = state.copy()
    rows, _ = scratch.users.ensure(ratings.user_ids)
    user = scratch.users.take(rows)
    known = state.items.index.find(ratings.item_ids)
    standard = state.scale.standardise(ratings.values)
    seen = np.zeros(1, np.float32)
    for n in range(len(ratings)):
        item = state.items.take(known[ratings.items[n : n + 1]])
        zero = np.zeros(1, np.int32)
        given_ = zero, zero, standard[n : n + 1], ratings.weights[n : n + 1], settings
        if settings.draws_prior:
            # an item that so many have rated is not moved by who rates it
            many = np.full(1, 1e30, np.float32)
            run_influence_filter(
                *given_, FilterSide.of(user.arrays, seen), FilterSide.of(item.arrays, many)
            )
        else:
            run_filter(*given_, user.mean, user.var, item.mean, item.var)
    np.testing.assert_allclose(var[0], user.var[0], **CLOSE)


def test_what_an_unknown_item_says(state):
    """Little, as of an item that starts; and the model is left as it is."""
    before = state.fingerprint()
    known = int(state.items.index.ids()[0].as_py())
    _, mean, _ = folded(state, ([-5, -5], [known, 10**9], [5.0, 5.0], None, None))
    _, alone, _ = folded(state, ([-5], [known], [5.0], None, None))
    assert mean[0, 0] > alone[0, 0]
    assert state.fingerprint() == before


def test_models_that_cannot():
    with pytest.raises(ValueError, match="learned by 'sgd'"):
        HeldItems.of(seen_state(settings_of(solver="sgd", rank=2)))
