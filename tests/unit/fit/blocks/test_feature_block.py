"""Features in blocks: all steps of all blocks in one process against a fit in one task."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from building import F32, settings_of
from clusters import Cluster, packed_in

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.arrays.sparse_rows import SparseRows, vector_schema
from sparkml_sgdals.fit.blocks.block import BlockState
from sparkml_sgdals.fit.blocks.features import given, routing
from sparkml_sgdals.kernels.features import add_to_columns, regress, regress_near
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.model_state import ModelState


def vectors(ids: list[str], matrix: np.ndarray) -> SparseRows:
    """Rows of a matrix as vectors by id."""
    table = pa.table(
        {"id": ids, "size": [matrix.shape[1]] * len(ids), "indices": [None] * len(ids),
         "values": matrix.tolist()},
        schema=vector_schema("str"),
    )  # fmt: skip
    return SparseRows.of(table)[0]


def featured_table(noise: bool) -> tuple[pa.Table, dict[str, np.ndarray], SparseRows]:
    """Ratings by ids of text of items of which five features say most, or nothing; and these."""
    rng = np.random.default_rng(3)
    users, items, features = 120, 300, 5
    matrix = (rng.random((items, features)) < 0.4).astype(float)
    taste, base = rng.normal(0, 0.6, (users, features)), matrix - matrix.mean(axis=0)
    if noise:
        matrix = rng.normal(0, 1, matrix.shape)
    u, i = rng.integers(0, users, 7000), rng.integers(0, items, 7000)
    v = 3 + base[i] @ rng.normal(0, 0.5, features) + (taste[u] * base[i]).sum(axis=1)
    v = v + rng.normal(0, 0.4, u.size)
    names = np.array([f"i{n}" for n in range(items)])
    columns = {"user": np.array([f"u{n}" for n in range(users)])[u], "item": names[i], "rating": v}
    table = pa.table({**columns, "rating": pa.array(v, pa.float32())})
    return table, columns, vectors(names.tolist(), matrix)


def cold_error(state: ModelState, held: dict[str, np.ndarray], rows: SparseRows) -> float:
    """RMSE of items that a model does not know."""
    weights = state.features[1]
    assert weights is not None
    means = weights.start_means(rows.take(rows.places(pa.array(held["item"]))))
    user = state.users.mean[state.users.index.find(pa.array(held["user"]))]
    told = user[:, 0] + means[:, 0] + (user[:, 1:] * means[:, 1:]).sum(axis=1)
    apart = held["rating"] - state.scale.mean - told * state.scale.spread
    return float(np.sqrt(np.mean(apart**2)))


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("noise", [True, pytest.param(False, marks=pytest.mark.long)])
def test_blocks_learn_what_one_task_does(noise: bool, implicit: bool) -> None:
    table, columns, rows = featured_table(noise)
    cold = np.isin(columns["item"], [f"i{n}" for n in range(270, 300)])
    held = {name: column[cold] for name, column in columns.items()}
    settings = settings_of(rank=5, featured=True, implicit_prior=implicit)
    one = ModelState.empty(settings, "str", "str")
    train = table.filter(pa.array(~cold))
    fit_ratings(encode_ratings(train), one, features=(None, rows))
    for blocks in (1, 3):
        found, history = Cluster.of(packed_in(train, 2), blocks, settings, "str").fit_ratings(
            (None, rows)
        )
        assert history[-1] < history[0]
        assert cold_error(found, held, rows) < 1.03 * cold_error(one, held, rows)
        weights, of_one = found.features[1], one.features[1]
        assert weights is not None
        assert of_one is not None
        assert weights.names == of_one.names
        assert weights.size == of_one.size
        np.testing.assert_array_equal(weights.columns, of_one.columns)
        # how far ids with ratings lie from where their features say
        own, ids = found.items, found.items.index.ids()
        apart = own.mean - weights.start_means(rows.take(rows.places(ids)))
        spread = (apart**2 + own.var).mean(axis=0)
        np.testing.assert_allclose(weights.start_var, spread, rtol=0.05)
        # prior means are those that the weights kept say
        told = weights.prior_means(rows.take(rows.places(ids)))
        np.testing.assert_allclose(found.items.featured, told, atol=1e-5)
        assert not found.users.featured.any()


def test_the_cut_of_the_table_does_not_matter() -> None:
    table, _, rows = featured_table(False)
    settings = settings_of(rank=3, featured=True, max_iter=3)
    users = vectors(["u1", "u5", "u7"], np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]))
    one, other = (
        Cluster.of(packed_in(table, parts), 3, settings, "str").fit_ratings((users, rows))[0]
        for parts in (1, 4)
    )
    assert one.fingerprint() == other.fingerprint()
    assert one.features[0] is not None
    for own, same in zip(one.features, other.features, strict=True):
        assert own.to_json() == same.to_json()  # type: ignore[union-attr]


def test_more_columns_than_blocks_learn_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (given, routing):
        monkeypatch.setattr(module, "MOST_IN_PAIRS", 2)
    table, _, _ = featured_table(False)
    rows = vectors(["a", "b"], np.eye(3)[:2] + np.eye(3)[2])
    cluster = Cluster.of(packed_in(table, 1), 2, settings_of(featured=True), "str")
    with pytest.raises(ValueError, match="3 columns of features have values, and a fit in blocks"):
        cluster.spread((None, rows))


def test_new_ids_of_a_block_start_by_their_features() -> None:
    """Where the table is added to a model; what is known of them is their prior, too."""
    table, _, rows = featured_table(False)
    settings = settings_of(rank=3, featured=True)
    model = ModelState.empty(settings, "str", "str")
    fit_ratings(encode_ratings(table), model, features=(None, rows))
    ids = pa.array(["i1", "new", "other"])
    more = vectors(["new"], np.ones((1, 5)))
    known = model.items.to_arrow(model.items.index.find(ids.slice(0, 1)))
    state = BlockState.start(
        1, ids, np.array([3, 1, 1]), settings, known, (more, model.features[1])
    )
    weights = model.features[1]
    assert weights is not None
    a = state.arrays
    np.testing.assert_allclose(a["featured"][1], weights.prior_means(more)[0])
    np.testing.assert_array_equal(a["var"][1], weights.start_var)
    np.testing.assert_array_equal(a["prior_mean"][1], a["mean"][1])
    assert a["mean"][1].any()
    assert not a["prior_mean"][2].any()
    assert not a["featured"][2].any()
    row = int(model.items.index.find(ids)[0])
    np.testing.assert_array_equal(a["featured"][0], model.items.featured[row])


def test_weights_come_to_rest_where_ridge_regression_does() -> None:
    """By gradients, whatever is taken for how columns go together."""
    rng = np.random.default_rng(1)
    z = rng.normal(0, 1, (60, 4))
    z[:, 3] += z[:, 2]
    precision, target = rng.uniform(0.2, 2, (60, 2)), rng.normal(0, 1, (60, 2))
    prior = np.full((4, 2), 0.5)
    expected = np.zeros((4, 2))
    csc = np.arange(0, 241, 60), np.tile(np.arange(60, dtype=np.int32), 4), z.T.ravel()
    regress(*csc, precision, precision * target, expected, np.empty((4, 2)), prior, 200, 0, 2)
    csr = np.arange(0, 241, 4), np.tile(np.arange(4, dtype=np.int32), 60), z.ravel()
    products = z.T @ z
    root = np.sqrt(np.diag(products))
    weights = np.zeros((4, 2))
    for _ in range(60):
        gradient, curvature = np.zeros((4, 2)), np.zeros((4, 2))
        add_to_columns(*csr, precision * (target - z @ weights), gradient)
        add_to_columns(*csr[:2], csr[2] ** 2, precision, curvature)
        moved = np.zeros((4, 2))
        likeness = products / root[:, None] / root
        regress_near(likeness, np.sqrt(curvature), gradient, weights, moved, prior, 1)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert F32(expected[0, 0])
