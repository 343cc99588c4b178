"""Least squares over all pairs against the loss written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_events import least_squares_half, least_squares_loss

from sparkml_sgdals.arrays.ratings import layout_by
from sparkml_sgdals.kernels.events.least_squares import gram, rank_held
from sparkml_sgdals.kernels.lanes import padded_rows
from sparkml_sgdals.learn.least_squares import (
    EventTable,
    Factors,
    choose_regularisation,
    descend_half,
    fit_table,
    gram_of,
    id_weights,
    means_beside,
    shrinkage,
    unpadded,
)

F32 = np.float32


@st.composite
def problems(draw):
    """Events of a few users and items, repeated pairs and negatives among them."""
    users, items = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    count, rank = draw(st.integers(1, 40)), draw(st.integers(1, 11))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    targeted, weighted = draw(st.booleans()), draw(st.booleans())
    nothing = np.empty(0, F32)
    table = EventTable(
        rng.integers(0, users, count).astype(np.int32),
        rng.integers(0, items, count).astype(np.int32),
        (users, items),
        rng.integers(0, 2, count).astype(F32) if targeted else nothing,
        rng.uniform(0.1, 3.0, count).astype(F32) if weighted else nothing,
        rng.integers(0, 2**63, count).astype(np.uint64),
    )
    features = [rng.normal(0, 0.5, (size, rank)).astype(F32) for size in (users, items)]
    return table, features, draw(st.floats(0.01, 1.0)), draw(st.floats(0.001, 0.5)), rng


def rows_of(table, flip=False):
    targets = table.targets if table.targets.size else np.ones(len(table))
    weights = table.weights if table.weights.size else np.ones(len(table))
    sides = (table.items, table.users) if flip else (table.users, table.items)
    return list(zip(*(side.tolist() for side in sides), targets, weights, strict=True))


@given(problems(), st.booleans())
def test_half_a_sweep(problem, drawn):
    table, (users, items), unobserved, lam, rng = problem
    layout = table.layouts(1)[0]
    regs = shrinkage(id_weights(layout), rng.uniform(0, 9), lam)
    factors, partners = padded_rows(users), padded_rows(items)
    prior, before, pulls = None, None, None
    if drawn:
        before = rng.normal(0, 1, users.shape).astype(F32)
        pulls = (rng.uniform(0, 5, len(users)) * (rng.random(len(users)) < 0.7)).astype(F32)
        prior = padded_rows(before), pulls
    errors = descend_half(layout, factors, partners, gram_of(partners), unobserved, regs, 1, prior)
    wanted = least_squares_half(rows_of(table), users, items, unobserved, regs, before, pulls)
    np.testing.assert_allclose(factors[:, : users.shape[1]], wanted, atol=2e-4, rtol=2e-3)
    assert not factors[:, users.shape[1] :].any()
    left = sum(w * (t - wanted[x] @ items[y].astype(float)) ** 2 for x, y, t, w in rows_of(table))
    assert errors == pytest.approx(left, abs=1e-3, rel=1e-2)


@given(problems())
def test_no_half_sweep_makes_the_loss_larger(problem):
    table, (users, items), unobserved, lam, _ = problem
    weights = [id_weights(layout) for layout in table.layouts(1)]
    means = means_beside(weights[0].sum(), *(np.count_nonzero(own) for own in weights))
    regs = [
        lam * (own + times * own[own > 0].mean()) for own, times in zip(weights, means, strict=True)
    ]
    events = rows_of(table)
    factors = Factors.start(users, items)
    last = least_squares_loss(events, users, items, unobserved, *regs)
    for loss, _ in fit_table(table.layouts(1), factors, (lam, lam), unobserved, 4, 1):
        both = (unpadded(side, users.shape[1]) for side in (factors.users, factors.items))
        now = least_squares_loss(events, *both, unobserved, *regs)
        assert now <= last * (1 + 1e-5) + 1e-6
        assert loss <= now * (1 + 1e-4) + 1e-5
        last = now


@pytest.mark.long
@given(problems())
def test_threads_change_nothing(problem):
    table, features, unobserved, lam, _ = problem
    found = []
    for threads in (1, 3):
        factors = Factors.start(*features)
        losses = list(
            fit_table(table.layouts(threads), factors, (lam, lam), unobserved, 3, threads)
        )
        chosen = choose_regularisation(
            table, Factors.start(*features), table.hashes[: table.sizes[0]], unobserved, threads
        )
        found.append((factors.users.tobytes(), factors.items.tobytes(), losses, chosen))
    assert found[0] == found[1]


def test_a_gram_of_many_rows_is_the_sum_of_its_parts():
    rng = np.random.default_rng(3)
    factors = padded_rows(rng.normal(0, 1, (40_000, 5)).astype(F32))
    wanted = factors.astype(np.float64).T @ factors.astype(np.float64)
    np.testing.assert_allclose(gram_of(factors, 2), wanted, rtol=1e-4, atol=0.5)
    assert gram_of(factors, 1).tobytes() == gram_of(factors, 3).tobytes()
    np.testing.assert_allclose(
        gram(factors, 10, 20), factors[10:20].astype(float).T @ factors[10:20], rtol=1e-4, atol=1e-4
    )


@given(problems())
def test_ranks_of_what_is_held_out(problem):
    table, (users, items), _, _, rng = problem
    factors, partners = padded_rows(users), padded_rows(items)
    nothing = np.empty(0, F32)
    done = layout_by(table.users, table.items, np.ones(len(table), F32), nothing, len(users))
    rows = np.arange(len(users))
    held = [
        np.setdiff1d(rng.integers(0, len(items), 3), table.items[table.users == x]) for x in rows
    ]
    starts = np.concatenate([[0], np.cumsum([len(h) for h in held])]).astype(np.int64)
    ranks = np.empty(starts[-1], np.int64)
    flat = np.concatenate(held).astype(np.int32)
    rank_held(
        0, len(users), rows, done.starts, done.partners, starts, flat, factors, partners, ranks
    )
    for x in rows:
        scores = users[x].astype(float) @ items.T.astype(float)
        allowed = np.setdiff1d(np.arange(len(items)), table.items[table.users == x])
        for h in range(starts[x], starts[x + 1]):
            better = [y for y in allowed if scores[y] > scores[flat[h]] - 1e-6]
            worse = [y for y in allowed if scores[y] > scores[flat[h]] + 1e-6]
            assert max(1, len(worse)) <= ranks[h] <= len(better)


def test_a_regularisation_is_chosen_between_none_and_too_much():
    """Blocks of users who like blocks of items: held-out events stand high if both are found."""
    rng = np.random.default_rng(5)
    users = np.repeat(np.arange(200), 12)
    items = (users % 4) * 25 + rng.integers(0, 25, users.size)
    pairs = np.unique(np.stack([users, items]), axis=1).astype(np.int32)
    nothing = np.empty(0, F32)
    table = EventTable(
        pairs[0], pairs[1], (200, 100), nothing, nothing,
        rng.integers(0, 2**63, pairs.shape[1]).astype(np.uint64),
    )  # fmt: skip
    start = Factors.start(*(rng.normal(0, 0.02, (size, 16)).astype(F32) for size in (200, 100)))
    before = start.users.copy()
    keys = rng.integers(0, 2**63, 200).astype(np.uint64)
    lam = choose_regularisation(table, start, keys, 0.1, 2)
    assert 0.001 < lam < 0.5
    assert np.array_equal(start.users, before)
    fitted = start.copy()
    for _ in fit_table(table.layouts(2), fitted, (lam, lam), 0.1, 8, 2):
        pass
    scores = fitted.users[:, :16] @ fitted.items[:, :16].T
    own = scores.reshape(50, 4, 4, 25).mean(axis=(0, 3))
    assert (np.diag(own) > 3 * (own.sum(axis=1) - np.diag(own)) / 3).all()
