"""What features say of ids without events: learned once a table is, and what comes after it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of

from sparkml_sgdals.arrays.ratings import Ratings
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.learn.features import streams
from sparkml_sgdals.learn.features.tables_of_events import weights_of_events
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.learn.whole_table import fit_ratings, fit_stops
from sparkml_sgdals.predictor import Predictor
from sparkml_sgdals.state.event_scores import score_pairs, serving_state
from sparkml_sgdals.state.event_starts import event_starts
from sparkml_sgdals.state.explaining import explain_event
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.model_state import ModelState

USERS, ITEMS, KINDS, COLD = 120, 90, 3, 75
RNG = np.random.default_rng(3)
KIND = np.arange(ITEMS) % KINDS
MATRIX = np.eye(KINDS)[KIND]
SEED, RANK = 7, 8


def events_of(users: list[int], items: list[int], timed: bool) -> Ratings:
    """Events in their order, ids being numbers."""
    user_ids, u = np.unique(users, return_inverse=True)
    item_ids, i = np.unique(items, return_inverse=True)
    return Ratings(
        pa.array(user_ids), pa.array(item_ids), u.astype(np.int32), i.astype(np.int32),
        np.ones(u.size, np.float32), np.empty(0, np.float32), timed,
    )  # fmt: skip


def table(items: slice, timed: bool = False) -> Ratings:
    """Who did which of some items: users like items of their own kind."""
    rng = np.random.default_rng(SEED)
    liked = rng.random((USERS, ITEMS)) < np.where(
        np.arange(USERS)[:, None] % KINDS == KIND, 0.5, 0.03
    )
    liked[:, [n for n in range(ITEMS) if n not in range(*items.indices(ITEMS))]] = False
    users, found = np.nonzero(liked)
    order = rng.permutation(users.size)
    return events_of(users[order].tolist(), found[order].tolist(), timed)


def rows_of(ids: np.ndarray, matrix: np.ndarray) -> SparseRows:
    row, column = np.nonzero(matrix)
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(matrix)))])
    return SparseRows(
        pa.array(ids), matrix.shape[1], starts, column.astype(np.int32), matrix[row, column]
    )


ROWS = rows_of(np.arange(ITEMS), MATRIX)


def blank(featured: bool = True, **fields: object) -> ModelState:
    settings = settings_of(
        learns_events=True, rank=RANK, table_rank=RANK, featured=featured, max_iter=8,
        num_negatives=10, num_partners=8, tol=0.0, regs=(-1.0,) * 4, **fields,
    )  # fmt: skip
    return ModelState.empty(settings, "int", "int")


def fitted(rows: SparseRows | None, timed: bool, threads: int = 1) -> ModelState:
    """A model of the items that are not cold."""
    state = blank(rows is not None)
    fit_ratings(table(slice(COLD), timed), state, threads, features=(None, rows))
    return state


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "timed"])
def state(request: pytest.FixtureRequest) -> ModelState:
    return fitted(ROWS, request.param)


def rightly_first(state: ModelState) -> float:
    """Share of users whose best cold item is of their own kind."""
    items = np.arange(COLD, ITEMS)
    found = Predictor(state, {}, 1).recommend(range(USERS), 1, candidates=[items] * USERS)
    return float(np.mean(KIND[found["item"].to_numpy()] == found["user"].to_numpy() % KINDS))


def with_cold(state: ModelState, rows: SparseRows = ROWS) -> ModelState:
    twin = state.copy()
    ids = pa.array(np.arange(COLD, ITEMS))
    assert start_featured(twin.items, ids, rows, twin.features[1]) == ITEMS - COLD
    return twin


@pytest.mark.parametrize("value", [1e3, -1e6, 1e12])
def test_one_number_far_outside_puts_its_item_no_further_than_others(
    state: ModelState, value: float
) -> None:
    matrix = MATRIX.copy()
    matrix[COLD, 0] = value
    usual, found = with_cold(state), with_cold(state, rows_of(np.arange(ITEMS), matrix))
    own = usual.items.index.find(pa.array([COLD]))
    known = state.items.taste[state.items.taste[:, 0] > 0]
    start = found.items.taste[own]
    middle = state.features[1].start[0]
    most = np.maximum(known.max(axis=0) - middle, middle - known.min(axis=0))
    assert (np.abs(start - middle) <= 1.001 * most + 0.1).all()
    # in a table beside the model, too, as the service has of items that are not in a version yet
    beside = blank().items
    start_featured(beside, pa.array([COLD]), rows_of(np.arange(ITEMS), matrix), state.features[1])
    np.testing.assert_array_equal(beside.taste, start)
    # and all others stand where they did
    others = np.delete(np.arange(usual.items.size), own)
    np.testing.assert_array_equal(usual.items.taste[others], found.items.taste[others])


def test_factors_are_those_of_a_fit_without_features(state: ModelState) -> None:
    """What is learned of ids that have events is the same, to the bit."""
    plain = fitted(None, bool(state.events_learned))
    for name in ("mean", "var", "taste", "count"):
        for side in ("users", "items"):
            np.testing.assert_array_equal(
                getattr(getattr(state, side), name), getattr(getattr(plain, side), name)
            )
    assert not state.items.featured.any()


def test_items_that_nobody_has_done_are_ranked_by_what_they_are(state: ModelState) -> None:
    """Far above chance; among those with events they stand no higher than they deserve."""
    twin = with_cold(state)
    assert rightly_first(twin) > 0.9
    assert twin.items.featured[COLD:].all()
    served = serving_state(twin)
    known, cold = (np.linalg.norm(served.items.taste[some, 1:], axis=1).mean()
                   for some in (slice(COLD), slice(COLD, None)))  # fmt: skip
    assert cold < known


def test_noise_says_nothing() -> None:
    """Cold items of which only noise is known are far nearer each other than those of kinds."""
    noise = rows_of(np.arange(ITEMS), np.random.default_rng(1).normal(0, 1, (ITEMS, 20)))
    spread = {}
    for name, rows in (("noise", noise), ("kinds", ROWS)):
        twin = with_cold(fitted(rows, False), rows)
        spread[name] = float(twin.items.taste[COLD:, 1:].std(axis=0).max())
    assert spread["noise"] < 0.4 * spread["kinds"]


def test_threads_stops_and_files_change_nothing(state: ModelState) -> None:
    """A fit that is stopped on the way, and what is told of a state, give the same weights."""
    timed = bool(state.events_learned)
    assert fitted(ROWS, timed, threads=3).fingerprint() == state.fingerprint()
    begun = blank()
    begun.settings = replace(begun.settings, max_iter=10)
    (early, _), (late, _) = fit_stops(
        table(slice(COLD), timed), begun, [8, 10], features=(None, ROWS)
    )
    assert early.fingerprint() == state.fingerprint() != late.fingerprint()
    twin = state.copy()
    twin.set_scalars(state.scalars())
    assert twin.fingerprint() == state.fingerprint()
    told = twin.features[1]
    assert told is not None
    assert told.start.shape == (KINDS + 1, RANK + 1)


def test_unknown_ids_are_scored_as_those_that_joined(state: ModelState) -> None:
    """But for the start of factors, which differs from id to id, and for one item more."""
    state.settings = replace(state.settings, init_std=0.0)
    twin = with_cold(state)
    served = serving_state(twin)
    starts = event_starts(twin, served)[1]
    assert starts is not None
    mean, taste = starts.of(ROWS.take(np.arange(COLD, ITEMS)))
    np.testing.assert_allclose(taste, served.items.taste[COLD:], atol=1e-5)
    np.testing.assert_allclose(mean[:, 0], served.items.mean[COLD:, 0], atol=1e-5)


def test_users_start_by_their_features() -> None:
    """One who has done nothing is recommended what those are who are like it."""
    users = rows_of(np.arange(USERS), np.eye(KINDS)[np.arange(USERS) % KINDS])
    full = table(slice(ITEMS))
    state = blank()
    fit_ratings(full, state, features=(users, ROWS))
    more = rows_of(np.arange(1000, 1003), np.eye(KINDS))
    start_featured(state.users, more.ids, more, state.features[0])
    best = Predictor(state, {}, 1).recommend(range(1000, 1003), 5)
    assert (KIND[best["item"].to_numpy()] == best["user"].to_numpy() - 1000).mean() > 0.9


def test_a_stream_goes_on(state: ModelState) -> None:
    """New items start where it tells their features; a batch that fails leaves none of them."""
    begun = state.copy()
    batch = events_of([1, 2], [COLD + 1, COLD + 2], True)
    report = learn_batch(begun, batch, (None, ROWS))
    assert report.new_items == 2
    rows = begun.items.index.find(pa.array([COLD + 1, COLD + 2]))
    assert begun.items.featured[rows].all()
    assert begun.items.taste[rows, 1:].any(axis=1).all()
    blind = state.copy()
    learn_batch(blind, batch)
    assert not blind.items.taste[rows].any()
    before = begun.fingerprint()
    bad = events_of([1], [COLD + 3], True)
    bad = replace(bad, values=np.array([np.nan], np.float32))
    with np.errstate(all="ignore"), pytest.raises(DivergenceError):
        learn_batch(begun, bad, (None, ROWS))
    assert begun.fingerprint() == before


def test_a_table_that_is_added(state: ModelState) -> None:
    """Gives items that features had started factors of their own, and leaves the others."""
    twin = with_cold(state)
    more = table(slice(COLD, COLD + 5), bool(state.events_learned))
    kept = twin.items.taste[COLD + 5 :].copy()
    fit_ratings(more, twin, features=(None, ROWS))
    np.testing.assert_array_equal(twin.items.taste[COLD + 5 :], kept)
    assert not twin.items.featured[: COLD + 5].any()
    assert twin.items.featured[COLD + 5 :].all()
    done = np.bincount(more.items)
    counts = np.rint(np.expm1(twin.items.taste[COLD : COLD + 5, 0]))
    np.testing.assert_array_equal(counts, done)


def test_weights_come_near_ridge_regression() -> None:
    """With one variance for all columns: against the normal equations."""
    state = fitted(ROWS, False)
    found = weights_of_events(ROWS, state.items, state.users, 1)
    means = found.start_means(ROWS)[:COLD, 1:]
    taste = state.items.taste[:COLD, 1:]
    for kind in range(KINDS):
        own = KIND[:COLD] == kind
        apart = means[own][0] - taste[own].mean(axis=0)
        assert np.linalg.norm(apart) < 0.25 * np.linalg.norm(taste[own].mean(axis=0))


def parts_of(state: ModelState, user: int, item: int, own: SparseRows | None = None) -> dict:  # type: ignore[type-arg]
    told = {term.part: term.value for term in explain_event(state, user, item, (None, own))}
    whole = {"popularity", "item bias", "features", "done last", "weight", "table"}
    parts = [told[name] for name in (whole | {"stands together"}) & set(told)]
    assert told["prediction"] == pytest.approx(sum(parts), abs=1e-4)
    return told


def test_an_explanation_names_what_features_gave(state: ModelState) -> None:
    """Its parts sum up to the score that lists go by, of ids known, new, and not known at all."""
    names = tuple(f"k{n}" for n in range(KINDS))
    weights = state.features[1]
    assert weights is not None
    state = replace(state.copy(), features=(None, replace(weights, names=names)))
    for item in (1, 2, 80):
        own, key = ROWS.take(np.array([item])), pa.array([item])
        twin = state.copy()
        start_featured(twin.items, key, own, twin.features[1])
        served = serving_state(twin)
        for user in (0, 4, 10_000):
            rows = served.users.index.find(pa.array([user])), served.items.index.find(key)
            told = parts_of(state, user, item, own)
            assert told["prediction"] == pytest.approx(score_pairs(served, *rows)[0], abs=1e-4)
            named = {name for name in told if name.startswith("item k")}
            if item == 80 and user == 4:
                # it is of kind 2, which user 4 does little of
                assert named
                assert told["item k2"] < 0
            assert item == 80 or not named
    assert parts_of(state, 2, 10_000)["prediction"] == pytest.approx(
        parts_of(state, 2, 20_000)["prediction"]
    )
    with pytest.raises(TypeError, match="is no int"):
        explain_event(state, "a", 1)


# ---- in a stream from nothing ---------------------------------------------------------------


def from_nothing(matrix: np.ndarray, size: int = 150) -> tuple[ModelState, SparseRows]:
    """A model of a stream of events that came in batches, and the vectors of all items."""
    settings = settings_of(learns_events=True, rank=4, featured=True)
    state = ModelState.empty(settings, "int", "int")
    state.learns_features = False, True
    rows = rows_of(np.arange(ITEMS), matrix)
    whole = table(slice(0, COLD), timed=True)
    users, items = whole.user_ids.to_pylist(), whole.item_ids.to_pylist()
    for begin in range(0, len(whole), size):
        part = slice(begin, begin + size)
        named = [users[n] for n in whole.users[part]], [items[n] for n in whole.items[part]]
        learn_batch(state, events_of(*named, timed=True), (None, rows))
    return state, rows


def test_a_stream_from_nothing_learns_what_features_say() -> None:
    """New items are for those who did much of their kind; how often they are done is not said."""
    state, rows = from_nothing(MATRIX)
    weights = state.features[1]
    assert weights is not None
    assert not weights.start[:, 0].any()
    start_featured(state.items, pa.array(np.arange(COLD, ITEMS)), rows, weights)
    served = serving_state(state)
    found = served.users.mean[:, 1:] @ served.items.mean[state.items.index.find(
        pa.array(np.arange(COLD, ITEMS))), 1:].T  # fmt: skip
    users = state.users.index.ids().to_numpy()
    own = users[:, None] % KINDS == KIND[COLD:]
    assert (np.where(own, found, np.nan)[own].mean() - found[~own].mean()) > 0.1
    best = np.argsort(-found, axis=1)[:, :3]
    assert own[np.arange(len(users))[:, None], best].mean() > 0.8


def test_sums_of_events_are_those_of_the_means_kept() -> None:
    """Also where events of others moved an item since."""
    state, _rows = from_nothing(np.hstack([MATRIX, np.arange(ITEMS)[:, None] % 7.0]), size=60)
    weights = state.features[1]
    assert weights is not None
    assert weights.sums is not None
    counted = state.items.featured.any(axis=1)
    assert counted.all()
    assert (state.items.featured != state.items.mean).any()
    ids = state.items.index.ids().to_numpy()
    z = np.hstack([np.ones((ids.size, 1)), MATRIX[ids], ids[:, None] % 7.0])
    np.testing.assert_allclose(weights.sums.targets, z.T @ state.items.featured, atol=1e-3)
    np.testing.assert_allclose(weights.sums.products, z.T @ z)
    other = ModelState.empty(state.settings, "int", "int")
    told = json.loads(json.dumps(state.scalars()))
    other.set_scalars(told)
    assert other.features[1].to_json() == weights.to_json()  # type: ignore[union-attr]


def test_a_batch_of_events_that_fails_leaves_what_was_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, _rows = from_nothing(MATRIX)
    before = state.fingerprint()
    monkeypatch.setattr(streams, "MOST_IN_PAIRS", 3)
    more = rows_of(np.arange(ITEMS), np.hstack([MATRIX, np.ones((ITEMS, 1))]))
    with pytest.raises(ValueError, match="4 columns of features have values, and a stream"):
        learn_batch(state, table(slice(0, 20), timed=True), (None, more))
    assert state.fingerprint() == before


def test_an_explanation_of_a_stream_of_events() -> None:
    state, rows = from_nothing(MATRIX)
    told = parts_of(state, 2, 80, rows.take(np.array([80])))
    assert told["popularity"] < 0
    assert told["item 2"] > 0
    assert {"done last", "stands together"} <= set(told)
