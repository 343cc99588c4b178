"""Learning a batch onto a model, and fitting a table, against the plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import reference
from building import F32, contents, low_rank, ratings_of, rows_of, seen_state, settings_of, table_of

from sparkml_sgdals.arrays import strata
from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.learn import one_batch, smoothing, solvers, whole_table
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.learn.whole_table import fit_ratings, fit_stops
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings

CLOSE = {"rtol": 2e-3, "atol": 2e-4}
SETTINGS = [
    settings_of(rank=3, max_iter=5, tol=0.0, drift=0.001, noise=0.6),
    settings_of(rank=3, max_iter=5, tol=0.0, drift=0.001, noise=0.6, implicit_prior=False),
    settings_of(solver="sgd", rank=3, max_iter=5, step_size=0.02, regs=(0.1, 0.2, 0.3, 0.4)),
    settings_of(
        solver="minibatch", rank=3, max_iter=5, step_size=0.01, regs=(0.1, 0.2, 0.3, 0.4),
        block_size=64,
    ),
]  # fmt: skip
SOLVERS = pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda s: s.solver + "-drawn" * s.draws_prior
)


def weights_of(ratings: Ratings) -> np.ndarray:
    """One weight a rating, float64."""
    return ratings.weights.astype(float) if ratings.weights.size else np.ones(len(ratings))


def standardised(state: ModelState, ratings: Ratings) -> np.ndarray:
    """Ratings in the state's units."""
    return (ratings.values.astype(float) - state.scale.mean) / state.scale.spread


def learn_by_loops(state: ModelState, ratings: Ratings, users: Any, items: Any) -> np.ndarray:
    """One pass of the state's solver over float64 copies (mean, var) of both sides; its errors."""
    settings, rows = state.settings, rows_of(state, ratings)
    what = (*rows, standardised(state, ratings), weights_of(ratings))
    if settings.solver == "bayes":
        return reference.learn_filter(*what, *users, *items, settings.noise, settings.drift)
    descent = (*what, users[0], items[0], settings.step_size, settings.regs)
    if settings.solver == "sgd":
        return reference.learn_sgd(*descent)
    return reference.learn_minibatches(*descent, settings.block_size)


def doubles(side: Any, base: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of a side, or of its baseline, as float64 copies."""
    if base:
        return side.base_mean.astype(float), side.base_var.astype(float)
    return side.mean.astype(float), side.var.astype(float)


def learn_by_loops_with_influences(
    state: ModelState, ratings: Ratings
) -> dict[str, dict[str, np.ndarray]]:
    """One pass of the filter with prior means that move; both sides as they are then."""
    settings, sides = state.settings, {}
    for name in ("users", "items"):
        held = getattr(state, name)
        sides[name] = {
            array: getattr(held, array).astype(float)
            for array in ("mean", "var", "drawn", "influence", "evidence")
        } | {"seen": held.count.astype(float)}
    reference.learn_with_influences(
        *rows_of(state, ratings), standardised(state, ratings), weights_of(ratings),
        sides["users"], sides["items"], prior_variances(settings).astype(float), settings.noise,
        settings.drift,
    )  # fmt: skip
    return sides


def smooth_by_loops(
    state: ModelState, ratings: Ratings, users: Any, items: Any, drawn: dict[str, Any]
) -> None:
    """Smooth what was filtered: (mean, var) of both sides, changed in place; `state` before."""
    default = prior_variances(state.settings).astype(float)
    both = []
    for side, filtered, name in ((state.users, users, "users"), (state.items, items, "items")):
        prior_mean, prior_var = doubles(side)
        if drawn:
            filtered[0][:], filtered[1][:] = drawn[name]["mean"], drawn[name]["var"]
            moved = drawn[name]["drawn"] - side.drawn
            prior_mean = prior_mean + np.minimum(prior_var / default, 1.0) * moved
        both.append((*filtered, prior_mean, prior_var))
    reference.smooth(
        *rows_of(state, ratings), standardised(state, ratings), weights_of(ratings), *both,
        state.settings.noise,
    )  # fmt: skip


def mixed_batch(weighted: bool = False) -> Ratings:
    """Known and unknown ids on both sides, pairs repeated."""
    rng = np.random.default_rng(8)
    users = np.concatenate([rng.integers(0, 90, 90) * 7 - 100, [10**12, -5, -5, 10**12]])
    items = np.concatenate([rng.integers(0, 70, 90) * 3, [0, 3, 10**13, 10**13]])
    weights = rng.choice([0.5, 1.0, 2.0], 94) if weighted else None
    return ratings_of(users, items, rng.normal(3.5, 1, 94), weights=weights, times=range(94))


# ---- one batch ------------------------------------------------------------------------------


@SOLVERS
@pytest.mark.parametrize("weighted", [False, True])
def test_batch_learns_each_rating_once(settings: Settings, weighted: bool) -> None:
    """Factors, baseline and counts are those of one pass in the order of learning."""
    state, batch = seen_state(settings), mixed_batch(weighted)
    expected = state.copy()
    for side, ids in ((expected.users, batch.user_ids), (expected.items, batch.item_ids)):
        side.ensure(ids)
    users, items = doubles(expected.users), doubles(expected.items)
    drawn = learn_by_loops_with_influences(expected, batch) if settings.draws_prior else {}
    if not drawn:
        learn_by_loops(expected, batch, users, items)
    if settings.solver == "bayes":
        smooth_by_loops(expected, batch, users, items, drawn)
    base = doubles(expected.users, base=True), doubles(expected.items, base=True)
    reference.learn_filter(
        *rows_of(expected, batch), standardised(expected, batch), weights_of(batch),
        *base[0], *base[1], settings.noise, settings.drift,
    )  # fmt: skip
    report = learn_batch(state, batch)
    sides = zip(
        (state.users, state.items), (expected.users, expected.items), (users, items), base,
        rows_of(state, batch), (report.user_rows, report.item_rows),
        (report.new_users, report.new_items), strict=True,
    )  # fmt: skip
    for side, before, (mean, var), (base_mean, base_var), rows, touched, new in sides:
        assert side.index.ids().equals(before.index.ids())
        np.testing.assert_allclose(side.mean, mean, **CLOSE)
        np.testing.assert_allclose(side.var, var, **CLOSE)
        np.testing.assert_allclose(side.base_mean, base_mean, **CLOSE)
        np.testing.assert_allclose(side.base_var, base_var, **CLOSE)
        np.testing.assert_array_equal(
            side.count, before.count + np.bincount(rows, minlength=side.size)
        )
        assert sorted(touched.tolist()) == sorted(set(rows.tolist()))
        assert new == np.count_nonzero(before.count == 0)
    assert report.ratings == 94


@SOLVERS
def test_ids_not_in_the_batch_stay(settings: Settings) -> None:
    """A batch onto a frozen scale changes its own ids only."""
    state, batch = seen_state(settings), mixed_batch()
    before = contents(state.users), contents(state.items)
    learn_batch(state, batch)
    for side, old, ids in zip(
        (state.users, state.items), before, (batch.user_ids, batch.item_ids), strict=True
    ):
        now, touched = contents(side), set(ids.to_pylist())
        assert set(old) - touched
        for an_id, row in old.items():
            assert (now[an_id] == row) == (an_id not in touched)


@SOLVERS
@pytest.mark.parametrize("frozen", [False, True])
def test_report_names_every_row_that_changed(settings: Settings, frozen: bool) -> None:
    """What a version has to write: while the scale settles all rows, then those of the batch."""
    state = seen_state(settings)
    if not frozen:
        state.scale = replace(state.scale, seen=500, frozen=False)
    before = contents(state.users), contents(state.items)
    report = learn_batch(state, mixed_batch())
    for side, old, rows in zip(
        (state.users, state.items), before, (report.user_rows, report.item_rows), strict=True
    ):
        changed = {an_id for an_id, row in contents(side).items() if old.get(an_id) != row}
        assert set(side.index.ids(rows).to_pylist()) == changed
        assert len(set(rows.tolist())) == rows.size


@SOLVERS
@pytest.mark.parametrize(
    ("user", "item", "new"),
    [(-100, 0, (0, 0)), (12345, 0, (1, 0)), (-100, 12345, (0, 1)), (12345, 12345, (1, 1))],
)
def test_one_rating_of_known_and_unknown_ids(
    settings: Settings, user: int, item: int, new: tuple[int, int]
) -> None:
    """A single rating pulls its own prediction towards itself, ids known or not."""
    state = seen_state(settings)
    size = state.users.size, state.items.size
    rating = 1.0 if state.scale.mean > 3 else 5.0
    batch = ratings_of([user], [item], [rating])
    before = state.predict(*rows_of(state, batch))[0][0]
    report = learn_batch(state, batch)
    assert (report.ratings, report.new_users, report.new_items) == (1, *new)
    assert (state.users.size, state.items.size) == (size[0] + new[0], size[1] + new[1])
    after = state.predict(*rows_of(state, batch))[0][0]
    assert abs(rating - after) < abs(rating - before)
    assert report.rmse == pytest.approx(abs(rating - state.clip(np.array([before]))[0]), rel=1e-4)


@SOLVERS
@pytest.mark.parametrize("fresh", [False, True])
def test_empty_batch(settings: Settings, fresh: bool) -> None:
    """Nothing is learned and nothing changes, not even a scale that settles."""
    state = ModelState.empty(settings, "int", "int") if fresh else seen_state(settings)
    before = state.fingerprint()
    report = learn_batch(state, encode_ratings(table_of([], [], [])))
    assert (report.ratings, report.new_users, report.new_items) == (0, 0, 0)
    assert report.user_rows.size == report.item_rows.size == 0
    assert math.isnan(report.rmse)
    assert math.isnan(report.baseline_rmse)
    assert state.fingerprint() == before


@SOLVERS
def test_prequential_rmse_by_hand(settings: Settings) -> None:
    """Errors of the clipped predictions from before the batch, for model and baseline."""
    state = seen_state(settings)
    # a range so narrow that many predictions are clipped
    state.counters = counters = replace(state.counters, low=3.3, high=3.7)
    batch = mixed_batch(weighted=True)
    users, items = rows_of(state, batch)
    found = []
    for predictions in (state.predict(users, items)[0], state.predict_baseline(users, items)):
        clipped = np.clip(predictions.astype(float), counters.low, counters.high)
        found.append(float(np.sum((batch.values.astype(float) - clipped) ** 2)))
    report = learn_batch(state, batch)
    assert report.rmse == pytest.approx(math.sqrt(found[0] / 94), rel=1e-6)
    assert report.baseline_rmse == pytest.approx(math.sqrt(found[1] / 94), rel=1e-6)
    now = state.counters
    assert now.ratings == counters.ratings + 94
    assert now.prequential_ratings == counters.prequential_ratings + 94
    assert now.prequential_squares == pytest.approx(counters.prequential_squares + found[0])
    assert now.baseline_squares == pytest.approx(counters.baseline_squares + found[1])
    assert now.low == min(counters.low, batch.values.min())
    assert now.high == max(counters.high, batch.values.max())


@SOLVERS
def test_first_batch_is_not_judged(settings: Settings) -> None:
    """Before any rating there is no prediction to judge."""
    state = ModelState.empty(settings, "int", "int")
    report = learn_batch(state, mixed_batch())
    assert math.isnan(report.rmse)
    assert math.isnan(report.baseline_rmse)
    assert state.counters.prequential_ratings == 0
    assert state.counters.ratings == 94
    second = learn_batch(state, mixed_batch())
    assert math.isfinite(second.rmse)
    assert state.counters.prequential_ratings == 94


def test_noise_goes_on_learning() -> None:
    """The mean over all observations of w (e^2 - V), in standardised units."""
    state = seen_state(settings_of(rank=3))
    state.noise, state.noise_weight = 0.3, 40.0
    batch = mixed_batch(weighted=True)
    predictions, variances = state.predict(*rows_of(state, batch))
    surplus = (batch.values.astype(float) - predictions) ** 2 - variances
    weights = weights_of(batch)
    total = 40.0 + weights.sum()
    expected = (0.3 * 40.0 + (weights * surplus).sum() / state.scale.spread**2) / total
    learn_batch(state, batch)
    assert state.noise == pytest.approx(expected, rel=1e-5)
    assert state.noise_weight == pytest.approx(total)


def test_threads_change_no_bit_of_a_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is smoothed in ranges of ids, each from its own ratings alone."""
    one = seen_state(SETTINGS[0])
    two = one.copy()
    batch = mixed_batch()
    learn_batch(one, batch)
    used = []
    run = solvers.run_all
    monkeypatch.setattr(smoothing, "_LARGE", 10)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.setattr(
        solvers, "run_all", lambda jobs, threads: (used.append(threads), run(jobs, threads))
    )
    learn_batch(two, batch)
    assert used == [3] * 4
    assert one.fingerprint() == two.fingerprint()


@pytest.mark.parametrize("settings", SETTINGS[2:], ids=lambda s: s.solver)
def test_rows_at_once_or_one_by_one(settings: Settings) -> None:
    """With a frozen scale the descents learn the same in any batches; bayes smooths a batch."""
    if settings.solver == "minibatch":
        settings = replace(settings, block_size=1)
    table, _ = low_rank(60, seed=11)
    one, other = seen_state(settings), seen_state(settings)
    learn_batch(one, encode_ratings(table))
    for start in range(0, 60, 7):
        learn_batch(other, encode_ratings(table[start : start + 7]))
    for name in ("users", "items"):
        left, right = getattr(one, name), getattr(other, name)
        rows = right.index.find(left.index.ids())
        np.testing.assert_allclose(left.mean, right.mean[rows], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(left.count, right.count[rows])


def runaway(solver: str) -> tuple[Settings, Ratings]:
    """Settings and a batch that diverge: known and new ids, many ratings of one pair."""
    rng = np.random.default_rng(2)
    users, items = np.full(4000, -100), np.full(4000, 0)
    users[::9], items[::7] = 777_777, 777_777
    settings = {
        "sgd": settings_of(solver="sgd", rank=3, step_size=50.0),
        "minibatch": settings_of(solver="minibatch", rank=3, step_size=5.0, block_size=500),
    }[solver]
    return settings, ratings_of(users, items, rng.normal(3.5, 1, 4000))


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
@pytest.mark.parametrize("solver", ["sgd", "minibatch"])
@pytest.mark.parametrize("frozen", [False, True])
def test_divergence_leaves_what_was_known(solver: str, frozen: bool) -> None:
    """The message names stepSize; factors, scale and counters stand as before the batch."""
    settings, batch = runaway(solver)
    state = seen_state(replace(settings, step_size=0.001), 1500 if frozen else 1000)
    if not frozen:
        state = ModelState.empty(replace(settings, step_size=0.001), "int", "int")
        learn_batch(state, encode_ratings(low_rank(600)[0]))
    assert state.scale.frozen == frozen
    before = contents(state.users), contents(state.items), state.scalars()
    for side in (state, state.users, state.items):
        side.settings = settings
    with pytest.raises(DivergenceError, match="stepSize"):
        learn_batch(state, batch)
    assert state.scalars() == before[2]
    for side, old in zip((state.users, state.items), before, strict=False):
        now = contents(side)
        assert {an_id: now[an_id] for an_id in old} == old
        assert all(now[an_id][-1] == 0 for an_id in set(now) - set(old))
    # and it can go on
    for side in (state, state.users, state.items):
        side.settings = replace(settings, step_size=0.001)
    assert learn_batch(state, mixed_batch()).ratings == 94


@SOLVERS
@pytest.mark.parametrize("name", ["settle_scale", "check_rows", "_learn_rows"])
@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_broken_off_leaves_what_was_known(
    settings: Settings, name: str, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = seen_state(settings)
    if not frozen:
        state = ModelState.empty(settings, "int", "int")
        learn_batch(state, encode_ratings(low_rank(600)[0]))
    before = state.fingerprint()

    def break_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(one_batch, name, break_off)
    with pytest.raises(KeyboardInterrupt):
        learn_batch(state, mixed_batch())
    assert state.fingerprint() == before


def test_divergence_in_the_only_minibatch() -> None:
    """A popular item in one micro-batch of the default size must not leave a ruined model."""
    state = seen_state(settings_of(solver="minibatch"))
    rng = np.random.default_rng(0)
    popular = ratings_of(rng.integers(0, 5000, 9000), [0] * 9000, rng.integers(1, 6, 9000))
    with pytest.raises(DivergenceError):
        learn_batch(state, popular)


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
@SOLVERS
def test_absurd_ratings_diverge(settings: Settings) -> None:
    """Ratings past float32's reach of squares raise instead of leaving NaN behind."""
    state = seen_state(settings)
    before = state.fingerprint()
    with pytest.raises(DivergenceError) as caught:
        learn_batch(state, ratings_of([-100] * 3, [0, 0, 3], [3e38, -3e38, 3e38]))
    assert state.fingerprint() == before
    # bayes has no step to lower
    assert ("stepSize" in str(caught.value)) == (settings.solver != "bayes")


@pytest.mark.parametrize("implicit_prior", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_variances_below_what_a_number_holds(implicit_prior: bool, frozen: bool) -> None:
    """A batch and a table raise what names the Params, and a batch leaves what was known."""
    known = settings_of(rank=2, implicit_prior=implicit_prior)
    tiny = replace(known, noise=1e-50, bias_prior=1e-50, factor_prior=1e-50)
    state = ModelState.empty(known, "int", "int")
    learn_batch(state, encode_ratings(low_rank(1500 if frozen else 600)[0]))
    assert state.scale.frozen == frozen
    before = state.fingerprint()
    for side in (state, state.users, state.items):
        side.settings = tiny
    new = ratings_of([-1, -2], [-3, -4], [4.0, 2.0])
    with pytest.raises(DivergenceError, match=r"noiseVariance \(now 1e-50\)"):
        learn_batch(state, new)
    assert state.fingerprint() == before
    with pytest.raises(DivergenceError, match=r"noiseVariance \(now 1e-50\)"):
        fit_ratings(new, ModelState.empty(tiny, "int", "int"))


def test_ratings_without_weight_leave_the_noise_as_it_was() -> None:
    """Regression: the second batch of a stream was said to have diverged."""
    state = ModelState.empty(settings_of(rank=2), "int", "int")
    learn_batch(state, ratings_of([1], [2], [3.0]))
    before = state.noise, state.noise_weight
    learn_batch(state, ratings_of([1, 1], [2, 3], [4.0, 2.0], weights=[0.0, 0.0]))
    assert (state.noise, state.noise_weight) == before


# ---- a whole table --------------------------------------------------------------------------


def fit_by_loops(
    state: ModelState, ratings: Ratings
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float, list[float]]:
    """Means and variances by side in the order of the table's ids, the noise, the history."""
    fresh = state.counters.ratings == 0
    settings, prior = state.settings, prior_variances(state.settings).astype(float)
    gathered = {}
    for name, ids in (("users", ratings.user_ids), ("items", ratings.item_ids)):
        side = getattr(state, name).copy()
        rows, _ = side.ensure(ids)
        mean, var = side.mean[rows].astype(float), side.var[rows].astype(float)
        prior_mean, prior_var = np.zeros_like(mean), np.tile(prior, (len(mean), 1))
        if not fresh and settings.draws_prior:
            filled = state.copy()
            filled.users.ensure(ratings.user_ids)
            filled.items.ensure(ratings.item_ids)
            drawn = learn_by_loops_with_influences(filled, ratings)[name]
            moved = drawn["drawn"][rows] - getattr(filled, name).drawn[rows]
        for x in range(len(rows)):
            if not fresh and side.count[rows[x]] > 0:
                prior_mean[x], prior_var[x] = mean[x], var[x]
        if not fresh and settings.draws_prior:
            prior_mean += np.minimum(prior_var / prior, 1.0) * moved
            mean, var = drawn["mean"][rows], drawn["var"][rows]
        gathered[name] = (mean, var, prior_mean, prior_var)
    noise, history = reference.fit_bayes(
        ratings.users, ratings.items, standardised(state, ratings), weights_of(ratings),
        gathered["users"], gathered["items"], settings.noise, settings.max_iter, fresh,
        settings.draws_prior,
    )  # fmt: skip
    return (
        {name: arrays[:2] for name, arrays in gathered.items()},
        noise,
        [rmse * state.scale.spread for rmse in history],
    )


def assert_fitted(state: ModelState, ratings: Ratings, expected: Any) -> None:
    """The factors of the table's ids are the expected ones."""
    for name, ids in (("users", ratings.user_ids), ("items", ratings.item_ids)):
        side = getattr(state, name)
        rows = side.index.find(ids)
        np.testing.assert_allclose(side.mean[rows], expected[name][0], **CLOSE)
        np.testing.assert_allclose(side.var[rows], expected[name][1], **CLOSE)


def small_table(weighted: bool, count: int = 250) -> Ratings:
    """A table of few ids, with the scale that a fit takes from it."""
    table, _ = low_rank(count, 20, 15)
    if weighted:
        weights = np.random.default_rng(4).choice([0.5, 1.0, 2.0], count)
        table = table.append_column("weight", pa.array(weights, pa.float32()))
    return encode_ratings(table)


def with_scale_of(state: ModelState, ratings: Ratings) -> ModelState:
    """A copy of an empty state that has the table's scale."""
    weights = weights_of(ratings)
    mean = np.average(ratings.values.astype(float), weights=weights)
    spread = math.sqrt(np.average((ratings.values - mean) ** 2, weights=weights))
    twin = state.copy()
    twin.scale = replace(
        twin.scale, mean=mean, spread=spread if state.settings.solver == "bayes" else 1.0
    )
    return twin


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sweeps", [0, 1, 4])
@pytest.mark.parametrize("draws_prior", [False, True])
def test_fresh_fit_is_filter_then_sweeps(weighted: bool, sweeps: int, draws_prior: bool) -> None:
    """Posteriors, noise and the RMSE of each sweep; priors and noise learned on the way."""
    settings = settings_of(
        rank=3, max_iter=sweeps, tol=0.0, noise=0.4, bias_prior=0.3, implicit_prior=draws_prior
    )
    state, ratings = ModelState.empty(settings, "int", "int"), small_table(weighted)
    factors, noise, expected = fit_by_loops(with_scale_of(state, ratings), ratings)
    seen: list[tuple[int, float]] = []
    history = fit_ratings(ratings, state, progress=lambda n, rmse: seen.append((n, rmse)))
    assert_fitted(state, ratings, factors)
    assert history == pytest.approx(expected, rel=1e-4)
    assert seen == list(enumerate(history, 1))
    assert len(history) == sweeps
    assert state.noise == pytest.approx(noise, rel=1e-3)
    assert state.noise_weight == (pytest.approx(weights_of(ratings).sum()) if sweeps else 0.0)
    assert state.scale.frozen
    assert state.counters.ratings == len(ratings)
    assert (state.counters.low, state.counters.high) == (ratings.values.min(), ratings.values.max())
    assert state.users.count[state.users.index.find(ratings.user_ids)].tolist() == (
        np.bincount(ratings.users).tolist()
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sweeps", [0, 1, 3])
@pytest.mark.parametrize("draws_prior", [False, True])
def test_fit_onto_a_model_takes_it_as_the_prior(
    weighted: bool, sweeps: int, draws_prior: bool
) -> None:
    """A known id's prior is its own posterior, an unknown one's the default; the rest is frozen."""
    settings = settings_of(rank=3, max_iter=sweeps, tol=0.0, implicit_prior=draws_prior)
    state = seen_state(settings)
    ratings = mixed_batch(weighted)
    before = contents(state.users), contents(state.items)
    scale, noise, counted = state.scale, (state.noise, state.noise_weight), state.counters.ratings
    factors, _, expected = fit_by_loops(state, ratings)
    history = fit_ratings(ratings, state)
    assert_fitted(state, ratings, factors)
    assert history == pytest.approx(expected, rel=1e-4)
    assert (state.scale, (state.noise, state.noise_weight)) == (scale, noise)
    assert state.counters.ratings == counted + 94
    for side, old, ids in zip(
        (state.users, state.items), before, (ratings.user_ids, ratings.item_ids), strict=True
    ):
        now, others = contents(side), set(old) - set(ids.to_pylist())
        assert others
        assert {an_id: now[an_id] for an_id in others} == {an_id: old[an_id] for an_id in others}


@pytest.mark.parametrize("settings", SETTINGS[2:], ids=lambda s: s.solver)
@pytest.mark.parametrize("fresh", [False, True])
def test_fit_by_descent(settings: Settings, fresh: bool) -> None:
    """maxIter passes from nothing, one onto a model; the RMSE of a pass is from on the way."""
    settings = replace(settings, max_iter=3)
    ratings = small_table(weighted=True) if fresh else mixed_batch(weighted=True)
    state = ModelState.empty(settings, "int", "int") if fresh else seen_state(settings)
    expected = with_scale_of(state, ratings) if fresh else state.copy()
    expected.users.ensure(ratings.user_ids)
    expected.items.ensure(ratings.item_ids)
    users, items = doubles(expected.users), doubles(expected.items)
    weights, rmse = weights_of(ratings), []
    for _ in range(3 if fresh else 1):
        errors = learn_by_loops(expected, ratings, users, items)
        rmse.append(math.sqrt(np.average(errors**2, weights=weights)))
    history = fit_ratings(ratings, state)
    for side, (mean, _) in ((state.users, users), (state.items, items)):
        np.testing.assert_allclose(side.mean, mean, **CLOSE)
        assert side.var.shape == (side.size, 0)
    assert history == pytest.approx(rmse, rel=1e-4)
    assert history == sorted(history, reverse=True)
    assert state.scale.mean == pytest.approx(expected.scale.mean)
    assert state.scale.spread == 1.0


@SOLVERS
def test_fit_gives_the_baseline_one_filter_pass(settings: Settings) -> None:
    """What features have to beat is filtered once, whatever the solver."""
    state = ModelState.empty(replace(settings, drift=0.0), "int", "int")
    ratings = small_table(weighted=False)
    scaled = with_scale_of(state, ratings)
    base = [
        (np.zeros((len(ids), 1)), np.full((len(ids), 1), settings.bias_prior))
        for ids in (ratings.user_ids, ratings.item_ids)
    ]
    reference.learn_filter(
        ratings.users, ratings.items, standardised(scaled, ratings), weights_of(ratings),
        *base[0], *base[1], settings.noise, 0.0,
    )  # fmt: skip
    fit_ratings(ratings, state)
    for side, (mean, var) in zip((state.users, state.items), base, strict=True):
        np.testing.assert_allclose(side.base_mean, mean, **CLOSE)
        np.testing.assert_allclose(side.base_var, var, **CLOSE)


@pytest.mark.parametrize("draws_prior", [False, True])
def test_last_rmse_is_that_of_the_predictions(draws_prior: bool) -> None:
    """The history ends with the weighted RMSE of the model on its own table; with the drawn
    prior from before the items moved with their priors for the last time."""
    settings = settings_of(rank=3, max_iter=5, tol=0.0, seed=42, implicit_prior=draws_prior)
    state, ratings = ModelState.empty(settings, "int", "int"), small_table(weighted=True)
    history = fit_ratings(ratings, state)
    errors = ratings.values - state.predict(*rows_of(state, ratings))[0].astype(float)
    expected = math.sqrt(np.average(errors**2, weights=weights_of(ratings)))
    assert history[-1] == pytest.approx(expected, rel=2e-3 if draws_prior else 1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        settings_of(rank=5, max_iter=5, tol=0.0),
        settings_of(solver="sgd", rank=5, max_iter=60, step_size=0.02, regs=(0.05,) * 4),
        settings_of(
            solver="minibatch", rank=5, max_iter=60, step_size=0.02, regs=(0.05,) * 4,
            block_size=100,
        ),
    ],
    ids=lambda s: s.solver,
)  # fmt: skip
def test_fit_recovers_low_rank_ratings(settings: Settings) -> None:
    """On ratings held out the features beat mean and biases, and these the mean."""
    table, clean = low_rank(5000)
    held = np.random.default_rng(0).random(5000) < 0.2
    state = ModelState.empty(settings, "int", "int")
    history = fit_ratings(encode_ratings(table.filter(pa.array(~held))), state)
    users = state.users.index.find(table.column("user").combine_chunks())
    items = state.items.index.find(table.column("item").combine_chunks())

    def rmse(predictions: Any) -> float:
        return float(np.sqrt(np.mean((predictions - clean)[held] ** 2)))

    features = rmse(state.predict(users, items)[0])
    baseline = rmse(state.predict_baseline(users, items))
    assert features < 0.4 * baseline
    assert baseline < rmse(state.scale.mean)
    assert history[-1] < history[0]
    if settings.solver == "bayes":
        # the noise of the ratings is 0.3
        assert math.sqrt(state.noise) * state.scale.spread == pytest.approx(0.3, rel=0.15)


def test_stated_deviations_cover_the_errors() -> None:
    """About two thirds of held-out ratings lie within one predictionStd."""
    table, _ = low_rank(5000)
    held = np.random.default_rng(0).random(5000) < 0.2
    state = ModelState.empty(settings_of(rank=5, max_iter=5, tol=0.0), "int", "int")
    fit_ratings(encode_ratings(table.filter(pa.array(~held))), state)
    ratings = encode_ratings(table.filter(pa.array(held)))
    predictions, variances = state.predict(*rows_of(state, ratings))
    errors = np.abs(ratings.values - predictions)
    deviations = np.sqrt(variances + state.noise * state.scale.spread**2)
    assert np.mean(errors < deviations) == pytest.approx(0.68, abs=0.06)
    assert np.mean(errors < 2 * deviations) == pytest.approx(0.95, abs=0.03)


@SOLVERS
@pytest.mark.parametrize("cut_from", [1, 10**9])
def test_fit_does_not_depend_on_threads_or_rows(
    settings: Settings, cut_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any threads and any order of the rows give the same bits, cut into cells or not."""
    monkeypatch.setattr(whole_table, "STRATA_FROM", cut_from)
    table, _ = low_rank(3000)
    order = np.random.default_rng(0).permutation(3000)
    found = []
    for rows, threads in ((table, 1), (table, 2), (table, 16), (table.take(order), 3)):
        state = ModelState.empty(settings, "int", "int")
        fit_ratings(encode_ratings(rows), state, threads)
        found.append(state.fingerprint())
    assert len(set(found)) == 1


def in_cells(ratings: Ratings) -> np.ndarray:
    """The numbers of a table's ratings in the order in which its cells are learned."""
    groups = tuple(reference.deal(np.bincount(rows)) for rows in (ratings.users, ratings.items))
    ends = [int(share * len(ratings)) for share in (strata._LEAD, *strata._SLICES)]
    cells = reference.cells(ratings.users, ratings.items, groups, ends)
    return np.array([n for stratum in cells for cell in stratum for n in cell])


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("draws_prior", [False, True])
def test_a_large_table_is_filtered_cell_by_cell(
    fresh: bool, draws_prior: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the loops learn its ratings in that order; model, baseline, and what is judged."""
    monkeypatch.setattr(whole_table, "STRATA_FROM", 1)
    settings = settings_of(rank=3, max_iter=0, drift=0.001, implicit_prior=draws_prior)
    ratings = encode_ratings(low_rank(700)[0])
    state = ModelState.empty(settings, "int", "int") if fresh else seen_state(settings)
    start = with_scale_of(state, ratings) if fresh else state.copy()
    for side, ids in ((start.users, ratings.user_ids), (start.items, ratings.item_ids)):
        side.ensure(ids)
    order = in_cells(ratings)
    learned = replace(
        ratings, users=ratings.users[order], items=ratings.items[order],
        values=ratings.values[order],
    )  # fmt: skip
    both = doubles(start.users), doubles(start.items)
    base = doubles(start.users, base=True), doubles(start.items, base=True)
    if draws_prior and not fresh:
        drawn = learn_by_loops_with_influences(start, learned)
        expected = [(drawn[name]["mean"], drawn[name]["var"]) for name in ("users", "items")]
    else:
        learn_by_loops(start, learned, *both)
        expected = list(both)
    apart = reference.learn_filter(
        *rows_of(start, learned), standardised(start, learned), weights_of(learned),
        *base[0], *base[1], settings.noise, settings.drift,
    )  # fmt: skip
    before = state.counters
    fit_ratings(ratings, state, threads=2)
    for side, (mean, var), (base_mean, base_var) in zip(
        (state.users, state.items), expected, base, strict=True
    ):
        np.testing.assert_allclose(side.mean, mean, **CLOSE)
        np.testing.assert_allclose(side.var, var, **CLOSE)
        np.testing.assert_allclose(side.base_mean, base_mean, **CLOSE)
        np.testing.assert_allclose(side.base_var, base_var, **CLOSE)
    half = learned.values[350:].astype(float)
    clipped = np.clip(half - state.scale.spread * apart[350:], *ratings.value_range())
    assert state.counters.prequential_ratings == before.prequential_ratings + 350
    assert state.counters.baseline_squares - before.baseline_squares == pytest.approx(
        np.sum((half - clipped) ** 2), rel=1e-4
    )


def test_cells_lead_to_the_same_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter is where sweeps start: held-out ratings are predicted as well."""
    table, clean = low_rank(6000)
    held = np.random.default_rng(0).random(6000) < 0.2
    found = []
    for cut_from in (1, 10**9):
        monkeypatch.setattr(whole_table, "STRATA_FROM", cut_from)
        state = ModelState.empty(settings_of(rank=3), "int", "int")
        fit_ratings(encode_ratings(table.filter(pa.array(~held))), state)
        rows = (
            side.index.find(table.column(name).combine_chunks())
            for side, name in ((state.users, "user"), (state.items, "item"))
        )
        found.append(np.sqrt(np.mean((state.predict(*rows)[0] - clean)[held] ** 2)))
    assert found[0] == pytest.approx(found[1], rel=0.02)


@pytest.mark.parametrize("settings", SETTINGS[2:], ids=lambda s: s.solver)
def test_tol_of_descent_is_of_the_rmse(settings: Settings) -> None:
    """Passes end where the training RMSE hardly changes."""
    settings = replace(settings, max_iter=50, tol=0.02)
    state = ModelState.empty(settings, "int", "int")
    history = fit_ratings(small_table(weighted=False), state)
    assert 2 <= len(history) < 50
    changes = [abs(a - b) / a for a, b in pairwise(history)]
    assert changes[-1] < 0.02
    assert all(change >= 0.02 for change in changes[:-1])


@pytest.mark.parametrize("implicit_prior", [False, True])
def test_tol_of_sweeps_is_of_the_expected_square_error(implicit_prior: bool) -> None:
    """Sweeps end where it, the noise variance of a fit, hardly changes; bits as of so many."""
    settings = settings_of(rank=3, implicit_prior=implicit_prior, max_iter=30, tol=0.0)
    ratings = small_table(weighted=False)
    kept = fit_stops(ratings, ModelState.empty(settings, "int", "int"), range(31))
    noise = [state.noise for state, _ in kept]
    ends = [n for n in range(3, 31) if abs(noise[n] - noise[n - 1]) < 0.02 * noise[n - 1]]
    assert 3 <= ends[0] < 30
    state = ModelState.empty(replace(settings, tol=0.02), "int", "int")
    history = fit_ratings(ratings, state)
    assert len(history) == ends[0]
    assert (state.users.mean == kept[ends[0]][0].users.mean).all()


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
@pytest.mark.parametrize("solver", ["sgd", "minibatch"])
def test_fit_that_diverges_raises(solver: str) -> None:
    """Divergence is an error that names stepSize, not factors of NaN."""
    settings, ratings = runaway(solver)
    state = ModelState.empty(settings, "int", "int")
    with pytest.raises(DivergenceError, match="stepSize"):
        fit_ratings(ratings, state)


@SOLVERS
def test_prequential_errors_of_a_fit(settings: Settings) -> None:
    """The later half of the first pass is judged, each rating from before it was learned."""
    ratings = small_table(weighted=False)
    state = ModelState.empty(settings, "int", "int")
    fit_ratings(ratings, state)
    scaled = with_scale_of(ModelState.empty(settings, "int", "int"), ratings)
    scaled.users.ensure(ratings.user_ids)
    scaled.items.ensure(ratings.item_ids)
    errors = learn_by_loops(scaled, ratings, doubles(scaled.users), doubles(scaled.items))
    truth = ratings.values[125:].astype(float)
    predictions = truth - errors[125:] * scaled.scale.spread
    clipped = np.clip(predictions, ratings.values.min(), ratings.values.max())
    assert state.counters.prequential_ratings == 125
    assert state.counters.prequential_squares == pytest.approx(
        float(np.sum((truth - clipped) ** 2)), rel=1e-3
    )
    assert state.counters.baseline_squares > 0


@SOLVERS
def test_fit_of_one_rating_and_of_equal_ratings(settings: Settings) -> None:
    """Both learn without error and give that rating again."""
    for count in (1, 50):
        state = ModelState.empty(settings, "int", "str")
        ratings = ratings_of(list(range(count)), [f"i{n % 7}" for n in range(count)], [4.5] * count)
        fit_ratings(ratings, state)
        found = state.predict(*rows_of(state, ratings))[0]
        np.testing.assert_allclose(found, 4.5, atol=0.05)
        assert state.clip(found).tolist() == [4.5] * count
        assert found.dtype == F32
        assert math.isfinite(state.noise)


@pytest.mark.parametrize("first", [1, 30])
def test_a_table_settles_a_scale_that_is_not(first: int) -> None:
    """Regression: a large table after a trickle was learned in the units of the trickle."""
    rng = np.random.default_rng(4)
    users, items = rng.integers(0, 60, 5000), rng.integers(0, 50, 5000)
    values = 0.02 * (rng.normal(0, 0.7, 60)[users] + rng.normal(0, 0.7, 50)[items]) + 3.0
    state = ModelState.empty(settings_of(rank=3, max_iter=5, tol=0.0), "int", "int")
    learn_batch(state, ratings_of(users[:first], items[:first], values[:first]))
    table = ratings_of(users[first:], items[first:], values[first:])
    fit_ratings(table, state)
    assert state.scale.frozen
    assert state.scale.seen == 5000
    assert state.scale.spread == pytest.approx(np.std(values), rel=1e-3)
    known = state.users.index.find(pa.array(users)), state.items.index.find(pa.array(items))
    predictions, _ = state.predict(*known)
    assert np.sqrt(np.mean((predictions - values) ** 2)) < 0.3 * np.std(values)


@pytest.mark.parametrize("kind", ["int", "str"])
def test_divergence_forgets_the_new_ids(kind: str) -> None:
    """Regression: they stayed, at their random start."""
    settings = settings_of(solver="sgd", rank=3, step_size=0.01)
    name = (lambda n: n) if kind == "int" else (lambda n: f"id{n}")
    state = ModelState.empty(settings, kind, kind)
    rng = np.random.default_rng(0)
    known = [name(int(n)) for n in rng.integers(0, 20, 1500)]
    learn_batch(state, ratings_of(known, known[::-1], rng.normal(3, 1, 1500)))
    mark = state.fingerprint()
    new = [name(n) for n in (100, 101, 102, 3)]
    with pytest.raises(DivergenceError):
        learn_batch(state, ratings_of(new, new[:1] * 4, [3e38, -3e38, 3e38, 3e38]))
    assert state.fingerprint() == mark
    assert (name(100) in state.users.index, name(3) in state.users.index) == (False, True)
    assert learn_batch(state, ratings_of(new, new, [3.0, 4.0, 3.0, 2.0])).new_users == 3
