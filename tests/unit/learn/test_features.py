"""Prior means from features, against the plain loops, and what they are worth."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import reference
from building import F32, low_rank, ratings_of, settings_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.kernels.features import regress
from sparkml_sgdals.learn.features import prior as of_tables
from sparkml_sgdals.learn.features import streams
from sparkml_sgdals.learn.features.prior import FeaturePrior
from sparkml_sgdals.learn.features.streams import learn_features_of_table
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.learn.solvers import Side
from sparkml_sgdals.learn.whole_table import fit_ratings, fit_stops
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.feature_weights import FeatureWeights
from sparkml_sgdals.state.model_state import ModelState


def rows_of(ids: np.ndarray, matrix: np.ndarray) -> SparseRows:
    """A matrix as sparse rows."""
    row, column = np.nonzero(matrix)
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(matrix)))])
    return SparseRows(
        pa.array(ids), matrix.shape[1], starts.astype(np.int64), column.astype(np.int32),
        matrix[row, column].astype(float),
    )  # fmt: skip


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 4), st.integers(1, 12))
def test_regression_is_that_of_the_loops(seed: int, rows: int, columns: int, targets: int) -> None:
    """Weights, their variances, and what is left unexplained; by groups of targets."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(0, 1, (rows, columns)) * rng.integers(0, 2, (rows, columns))
    precision, wanted = rng.uniform(0, 3, (rows, targets)), rng.normal(0, 1, (rows, targets))
    prior_var, weights = rng.uniform(0.1, 2, (2, columns, targets))
    expected = weights.copy()
    by_loops = reference.regress(matrix, precision, wanted, expected, prior_var, 3)
    column, row = np.nonzero(matrix.T)
    starts = np.concatenate([[0], np.cumsum(np.bincount(column, minlength=columns))])
    pull, variances = precision * (wanted - matrix @ weights), np.empty_like(weights)
    for first in range(0, targets, 5):
        regress(
            starts, row.astype(np.int32), matrix[row, column], precision, pull, weights, variances,
            prior_var, 3, first, min(first + 5, targets),
        )  # fmt: skip
    np.testing.assert_allclose(weights, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(variances, by_loops, rtol=1e-9)
    np.testing.assert_allclose(pull, precision * (wanted - matrix @ expected), atol=1e-9)


def side_of(ids: int, rank: int, seed: int = 0) -> Side:
    rng = np.random.default_rng(seed)
    shape = ids, rank + 1
    prior_var = np.full((1, rank + 1), 0.3, F32)
    return Side(
        rng.normal(0, 0.5, shape).astype(F32), rng.uniform(0.01, 0.2, shape).astype(F32),
        np.zeros((1, rank + 1), F32), prior_var,
    )  # fmt: skip


MATRIX = np.array(
    [[1, 0, 1990, 2], [0, 0, 2001, 2], [1, 1, 1987, 2], [0, 1, 2010, 2], [0, 0, 2020, 2],
     [1, 0, 1995, 2]], float,
)  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3])
def test_prior_means_and_what_is_kept_agree(threads: int) -> None:
    """A column that is mostly there counts from its mean, one that never varies not at all."""
    ids = np.array([10, 20, 30, 40, 50, 60])
    side = side_of(7, 9)
    before = side.mean.copy()
    prior = FeaturePrior(rows_of(ids, MATRIX), pa.array([10, 20, 25, 30, 40, 50, 60]))
    prior.start(side)
    for _ in range(3):
        prior.learn(side, threads)
    weights = prior.finish(side, threads)
    assert weights.columns.tolist() == [0, 1, 2]
    assert weights.centres[:2].tolist() == [0.0, 0.0]
    assert weights.centres[2] == pytest.approx(MATRIX[:, 2].mean())
    told = weights.prior_means(rows_of(ids, MATRIX))
    np.testing.assert_allclose(prior.given[[0, 1, 3, 4, 5, 6]], told, atol=2e-4)
    np.testing.assert_allclose(side.prior_mean, prior.given, atol=1e-6)
    # nothing is known of the third
    assert not prior.given[2].any()
    np.testing.assert_array_equal(side.mean[2], before[2])
    # the mean follows by c / v
    moved = side.mean - before
    np.testing.assert_allclose(moved, side.var / side.prior_var * prior.given, atol=1e-5)


def test_weights_come_to_rest_where_ridge_regression_does(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """With the prior variance held: they are those that posteriors less their prior ask for."""
    monkeypatch.setattr(of_tables, "learn_variance", lambda *_: None)
    rng = np.random.default_rng(1)
    matrix = rng.integers(0, 2, (40, 3)).astype(float)
    side = side_of(40, 2, seed=2)
    v, c = side.prior_var[0].astype(float), side.var.astype(float)
    likelihood = side.mean.astype(float) * v / (v - c)
    precision = (v - c) / v**2
    prior = FeaturePrior(rows_of(np.arange(40), matrix), pa.array(np.arange(40)))
    prior.start(side)
    for _ in range(60):
        prior.learn(side, 1)
    # half of all ids have a value or more: these columns count from their mean
    common = (matrix != 0).mean(axis=0) > 0.5
    scaled = np.where(common, (matrix - matrix.mean(axis=0)) / matrix.std(axis=0), matrix)
    design = np.hstack([np.ones((40, 1)), scaled])
    for f in range(3):
        curvature = design.T @ (precision[:, f, None] * design) + np.eye(4) / 0.01
        wanted = np.linalg.solve(curvature, design.T @ (precision[:, f] * likelihood[:, f]))
        np.testing.assert_allclose(prior.weights[:, f], wanted, rtol=1e-3, atol=1e-5)


def featured_ratings(noise: bool, seed: int = 0) -> tuple[list[np.ndarray], SparseRows]:
    """Ratings of items of which five features say most, or nothing; and these."""
    rng = np.random.default_rng(seed)
    users, items, features = 150, 300, 5
    matrix = (rng.random((items, features)) < 0.4).astype(float)
    taste = rng.normal(0, 0.6, (users, features))
    base = matrix - matrix.mean(axis=0)
    if noise:
        matrix = rng.normal(0, 1, matrix.shape)
    u, i = rng.integers(0, users, 9000), rng.integers(0, items, 9000)
    values = 3 + base[i] @ rng.normal(0, 0.5, features) + (taste[u] * base[i]).sum(axis=1)
    return [u, i, values + rng.normal(0, 0.4, u.size)], rows_of(np.arange(items), matrix)


def cold_error(state: ModelState, u: np.ndarray, i: np.ndarray, v: np.ndarray, rows: SparseRows):
    """RMSE of items that the model does not know, and what its stated deviations make of it."""
    weights = state.features[1]
    means = np.zeros((i.size, state.settings.rank + 1))
    if weights is not None:
        means = weights.start_means(rows.take(rows.places(pa.array(i))))
    user = state.users.mean[state.users.index.find(pa.array(u))]
    told = user[:, 0] + means[:, 0] + (user[:, 1:] * means[:, 1:]).sum(axis=1)
    return float(np.sqrt(np.mean((v - state.scale.mean - told * state.scale.spread) ** 2)))


def test_items_without_ratings_are_predicted_by_their_features() -> None:
    """Far better than by the mean, and no worse where features say nothing."""
    for noise in (False, True):
        (u, i, v), rows = featured_ratings(noise)
        cold = i >= 270
        rmse = {}
        for featured in (False, True):
            settings = settings_of(rank=6, featured=featured)
            state = ModelState.empty(settings, "int", "int")
            fit_ratings(
                ratings_of(u[~cold], i[~cold], v[~cold]), state,
                features=(None, rows if featured else None),
            )  # fmt: skip
            rmse[featured] = cold_error(state, u[cold], i[cold], v[cold], rows)
        assert rmse[True] < (1.02 if noise else 0.75) * rmse[False]


def blank(max_iter: int) -> ModelState:
    settings = settings_of(rank=9, featured=True, max_iter=max_iter, tol=0.0)
    return ModelState.empty(settings, "int", "int")


def test_threads_and_stops_change_nothing() -> None:
    """A fit that is stopped on the way gives what one of so many sweeps does."""
    (u, i, v), rows = featured_ratings(False)
    ratings = ratings_of(u, i, v)
    prints = []
    for threads in (1, 3):
        state = ModelState.empty(
            settings_of(rank=9, featured=True, max_iter=4, tol=0.0), "int", "int"
        )
        fit_ratings(ratings, state, threads, features=(None, rows))
        prints.append(state.fingerprint())
    assert prints[0] == prints[1]
    state = blank(max_iter=6)
    (early, _), (late, _) = fit_stops(ratings, state, [4, 6], features=(None, rows))
    assert early.fingerprint() == prints[0] != late.fingerprint()


def test_the_state_carries_its_weights() -> None:
    """Through JSON, to the bit; and into a copy."""
    (u, i, v), rows = featured_ratings(False)
    state = ModelState.empty(settings_of(rank=2, featured=True), "int", "int")
    fit_ratings(ratings_of(u, i, v), state, features=(None, rows))
    twin = state.copy()
    twin.set_scalars(state.scalars())
    assert twin.fingerprint() == state.fingerprint()
    told = state.scalars()["features"]
    assert told[0] is None
    for name, wrong in (
        ("size", 2), ("width", 4), ("names", ["a"]), ("columns", told[1]["centres"]),
        ("centres", ""), ("start_var", ""), ("prior", "AAAA"), ("start", "!"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            FeatureWeights.from_json(told[1] | {name: wrong})


def test_a_new_id_starts_where_its_features_say() -> None:
    """With the deviation of such ids, and is predicted so; ids that are known stay."""
    (u, i, v), rows = featured_ratings(False)
    state = ModelState.empty(settings_of(rank=2, featured=True, init_std=0.0), "int", "int")
    fit_ratings(ratings_of(u[i < 200], i[i < 200], v[i < 200]), state, features=(None, rows))
    before = state.items.mean.copy()
    ids = pa.array([5, 250, 251, 999])
    assert start_featured(state.items, ids, rows, state.features[1]) == 2
    assert start_featured(state.items, ids, rows, state.features[1]) == 0
    assert state.items.index.find(ids).tolist() == [
        *state.items.index.find(ids)[:1],
        *range(200, 202),
        -1,
    ]
    np.testing.assert_array_equal(state.items.mean[:200], before)
    weights = state.features[1]
    assert weights is not None
    own = rows.take(np.array([250, 251]))
    np.testing.assert_allclose(state.items.mean[200:], weights.start_means(own), atol=1e-6)
    np.testing.assert_allclose(state.items.featured[200:], weights.prior_means(own), atol=1e-6)
    np.testing.assert_array_equal(state.items.var[200], weights.start_var)
    assert start_featured(state.items, pa.array([77777]), None, weights) == 0
    with pytest.raises(ValueError, match="vectors of 3 numbers, the model knows 5"):
        start_featured(
            state.items, pa.array([888]), rows_of(np.array([888]), np.ones((1, 3))), weights
        )


def test_a_batch_predicts_new_items_by_their_features() -> None:
    """And learns on from there: what comes next of them is predicted better as well."""
    (u, i, v), rows = featured_ratings(False)
    old = i < 200
    errors = {}
    for featured in (False, True):
        state = ModelState.empty(settings_of(rank=6, featured=featured), "int", "int")
        given = (None, rows if featured else None)
        fit_ratings(ratings_of(u[old], i[old], v[old]), state, features=given)
        errors[featured] = []
        for part in np.array_split(np.flatnonzero(~old)[:600], 3):
            report = learn_batch(state, ratings_of(u[part], i[part], v[part]), given)
            errors[featured].append(report.rmse)
    assert report.new_items > 0
    assert all(a < 0.9 * b for a, b in zip(errors[True], errors[False], strict=True))


@pytest.fixture(scope="module")
def fitted_and_new():  # type: ignore[no-untyped-def]
    """A model of the first items, ratings of others, all features, and the RMSE without a fault."""
    (u, i, v), rows = featured_ratings(False)
    state = ModelState.empty(settings_of(rank=4, featured=True), "int", "int")
    fit_ratings(ratings_of(u[i < 200], i[i < 200], v[i < 200]), state, features=(None, rows))
    late = [part[i >= 200] for part in (u, i, v)]
    return state, late, rows, error_of_others(state, late, rows, -1)


def error_of_others(state, late, rows, odd):  # type: ignore[no-untyped-def]
    """RMSE of all new items but one, once their ratings were learned."""
    twin = state.copy()
    u, i, v = late
    for part in np.array_split(np.arange(u.size), 6):
        learn_batch(twin, ratings_of(u[part], i[part], v[part]), (None, rows))
    others = i != odd
    at = twin.users.index.find(pa.array(u[others])), twin.items.index.find(pa.array(i[others]))
    return float(np.sqrt(np.mean((twin.predict(*at)[0] - v[others]) ** 2)))


@given(
    st.integers(200, 299), st.integers(0, 4),
    st.floats(1.0, 1e12) | st.floats(-1e12, -1.0) | st.sampled_from([1e3, 1e6, -1e9, 5e-324]),
)  # fmt: skip
@settings(deadline=None, max_examples=12)
def test_one_number_far_outside_harms_its_own_item_alone(fitted_and_new, odd, place, value) -> None:  # type: ignore[no-untyped-def]
    """It moves who rates the item by no more than an unusual item does."""
    state, late, rows, usual = fitted_and_new
    matrix = np.zeros((300, 5))
    matrix[rows.row_of(), rows.columns] = rows.values
    matrix[odd, place] = value
    assert error_of_others(state, late, rows_of(np.arange(300), matrix), odd) < 1.015 * usual


def test_a_batch_that_fails_leaves_no_new_ids() -> None:
    """Those that features had started go as well."""
    (u, i, v), rows = featured_ratings(False)
    state = ModelState.empty(settings_of(rank=2, featured=True), "int", "int")
    fit_ratings(ratings_of(u[i < 200], i[i < 200], v[i < 200]), state, features=(None, rows))
    before = state.fingerprint()
    with np.errstate(all="ignore"), pytest.raises(DivergenceError):
        learn_batch(state, ratings_of([1], [250], [np.nan]), (None, rows))
    assert state.fingerprint() == before


def test_without_features_nothing_is_told_of_them() -> None:
    """Files and fingerprints are those of before."""
    table, _ = low_rank()
    state = ModelState.empty(settings_of(rank=2), "int", "int")
    fit_ratings(encode_ratings(table), state)
    assert "features" not in state.scalars()
    assert "featured" not in state.settings.to_json()
    assert state.items.featured.shape == (state.items.size, 0)


def test_more_columns_than_a_version_can_hold() -> None:
    """Are refused with what to do."""
    matrix = np.ones((1, 9000))
    with pytest.raises(ValueError, match="9000 columns of features have values, at most 8192"):
        FeaturePrior(rows_of(np.array([1]), matrix), pa.array([1]))


def test_a_table_onto_a_model_starts_its_new_ids_by_their_features() -> None:
    """As a batch does, and sweeps from there; ids that were known keep what they had."""
    (u, i, v), rows = featured_ratings(False)
    old, held = i < 200, np.arange(i.size) % 3 == 0
    more = ~old & ~held
    errors = []
    for known_of in ((None, None), (None, rows)):
        state = ModelState.empty(settings_of(rank=6, featured=True), "int", "int")
        fit_ratings(ratings_of(u[old], i[old], v[old]), state, features=(None, rows))
        before = state.items.featured.copy()
        some = np.flatnonzero(more)[:200]
        fit_ratings(ratings_of(u[some], i[some], v[some]), state, features=known_of)
        np.testing.assert_array_equal(state.items.featured[: len(before)], before)
        judged = np.flatnonzero(~old & held & np.isin(i, i[some]))
        known = (
            state.users.index.find(pa.array(u[judged])),
            state.items.index.find(pa.array(i[judged])),
        )
        errors.append(float(np.sqrt(np.mean((v[judged] - state.predict(*known)[0]) ** 2))))
    assert errors[1] < 0.9 * errors[0]


# ---- in a stream from nothing ---------------------------------------------------------------


def from_nothing(settings=None) -> ModelState:  # type: ignore[no-untyped-def]
    state = ModelState.empty(settings or settings_of(rank=3, featured=True), "int", "int")
    state.learns_features = False, True
    return state


def batches(u: np.ndarray, i: np.ndarray, v: np.ndarray, rows: SparseRows, size: int = 1500):
    """Ratings, batch by batch, with the features of their items."""
    for part in np.array_split(np.arange(u.size), u.size // size):
        ratings = ratings_of(u[part], i[part], v[part])
        yield ratings, (None, rows.take(np.unique(rows.places(pa.array(i[part])))))


def test_a_stream_from_nothing_learns_what_features_say() -> None:
    """Items that come late are predicted far better; noise costs next to nothing."""
    for noise in (False, True):
        (u, i, v), rows = featured_ratings(noise)
        order = np.argsort(np.where(i >= 200, 1, 0), kind="stable")
        errors = {}
        for featured in (False, True):
            state = from_nothing(settings_of(rank=3, featured=featured))
            state.learns_features = False, featured
            told = []
            for ratings, told_of in batches(u[order], i[order], v[order], rows):
                told.append(learn_batch(state, ratings, told_of if featured else (None, None)).rmse)
            errors[featured] = float(np.mean(told[-2:]))
        assert errors[True] < (1.01 if noise else 0.85) * errors[False]


def test_sums_of_a_stream_are_those_of_the_ids_as_they_are() -> None:
    """Of each two columns, and of columns and means, whatever came in which batch."""
    (u, i, v), rows = featured_ratings(False)
    state = from_nothing()
    for ratings, told_of in batches(u[:6000], i[:6000], v[:6000], rows):
        learn_batch(state, ratings, told_of)
    weights = state.features[1]
    assert weights is not None
    sums = weights.sums
    assert sums is not None
    some = rows.take(rows.places(state.items.index.ids()))
    dense = np.zeros((len(some), 6))
    dense[:, 0] = 1.0
    dense[some.row_of(), 1 + some.columns] = some.values
    np.testing.assert_allclose(sums.products, dense.T @ dense)
    np.testing.assert_allclose(sums.counts, (dense != 0).sum(axis=0))
    np.testing.assert_allclose(sums.targets, dense.T @ state.items.mean, atol=1e-3)


def test_weights_of_a_stream_come_to_rest_where_ridge_regression_does(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Columns that are mostly there count from their mean, wherever that lies."""
    monkeypatch.setattr(streams, "learn_variance", lambda *_: None)
    monkeypatch.setattr(streams, "_STREAM_PASSES", 300)
    rng = np.random.default_rng(3)
    matrix = np.column_stack(
        [rng.random((300, 2)) < 0.3, 1990 + rng.integers(0, 30, 300), np.full(300, 7.0)]
    ).astype(float)
    rows, means = rows_of(np.arange(300), matrix), rng.normal(0, 1, (300, 4))
    settings = settings_of(rank=3, featured=True)
    weights = streams._begun(rows, settings)
    sums = weights.sums
    assert sums is not None
    for part in np.array_split(np.arange(300), 4):
        sums = streams._added(sums, rows.take(part), means[part], np.ones(part.size, bool))
    weights = streams._solved(weights, sums)
    # what is the same for all says nothing
    assert weights.columns.tolist() == [0, 1, 2]
    scaled = matrix[:, :3] / np.sqrt((matrix[:, :3] ** 2).sum(axis=0) / (matrix[:, :3] != 0).sum(0))
    scaled[:, 2] = (matrix[:, 2] - matrix[:, 2].mean()) / matrix[:, 2].std()
    design = np.column_stack([np.ones(300), scaled])
    noise = [settings.bias_prior, *[settings.factor_prior] * 3]
    for f in range(4):
        wanted = np.linalg.solve(
            design.T @ design / noise[f] + np.eye(4) / 0.01, design.T @ means[:, f] / noise[f]
        )
        np.testing.assert_allclose(weights.prior_means(rows)[:, f], design @ wanted, atol=2e-4)


def test_a_stream_goes_on_from_what_was_stored() -> None:
    """To the same bits, after any batch; columns that come later join."""
    (u, i, v), rows = featured_ratings(False)
    late = np.isin(i, rows.ids.to_numpy()[np.flatnonzero(np.diff(rows.starts) > 2)])
    order = np.argsort(late, kind="stable")
    state, twin = from_nothing(), from_nothing()
    for ratings, told_of in batches(u[order], i[order], v[order], rows):
        learn_batch(state, ratings, told_of)
        kept = ModelState.empty(state.settings, "int", "int")
        kept.set_scalars(json.loads(json.dumps(twin.scalars())))
        for own, other in ((kept.users, twin.users), (kept.items, twin.items)):
            own.put_arrow(other.to_arrow())
        twin = kept
        learn_batch(twin, ratings, told_of)
        assert twin.fingerprint() == state.fingerprint()
    told = state.scalars()["features"][1]
    for name in ("products", "counts", "targets", "weights"):
        with pytest.raises(ValueError, match=r"."):
            FeatureWeights.from_json(told | {"sums": told["sums"] | {name: told["start"][:16]}})


def test_a_batch_that_fails_leaves_what_was_learned_of_features() -> None:
    """Also the first one, of which the weights begin."""
    (u, i, v), rows = featured_ratings(False)
    state = from_nothing()
    for ratings, told_of in batches(u, i, v, rows):
        before = state.fingerprint()
        with np.errstate(all="ignore"), pytest.raises(DivergenceError):
            learn_batch(state, ratings_of([1], [250], [np.nan]), (None, rows))
        assert state.fingerprint() == before
        learn_batch(state, ratings, told_of)


def test_a_stream_from_nothing_refuses_thousands_of_columns() -> None:
    """With what to do."""
    state = from_nothing()
    (u, i, v), _ = featured_ratings(False)
    rows = rows_of(np.arange(300), np.ones((300, 1100)))
    with pytest.raises(ValueError, match=r"1100 columns of features .* at most 1024: fit a table"):
        learn_batch(state, ratings_of(u, i, v), (None, rows))


def test_a_whole_table_moves_the_sums_as_well() -> None:
    """What a stream learns from a batch that is too large to collect."""
    (u, i, v), rows = featured_ratings(False)
    state = from_nothing()
    parts = list(batches(u, i, v, rows))
    for ratings, told_of in parts[:2]:
        learn_batch(state, ratings, told_of)
    before = state.copy()
    fit_ratings(parts[2][0], state, features=parts[2][1])
    learn_features_of_table(state, before, parts[2][1])
    sums = state.features[1].sums  # type: ignore[union-attr]
    some = rows.take(rows.places(state.items.index.ids()))
    total = np.zeros((5, 4))
    np.add.at(total, some.columns, state.items.mean[some.row_of()])
    np.testing.assert_allclose(sums.targets[1:], total, atol=1e-3)
    assert sums.counts[0] == state.items.size
