"""Ranks of events and of ratings before they are learned, by the slow reference and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from building import ratings_of, settings_of

from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.learn import event_ranks
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.learn.prequential import rank_sums
from sparkml_sgdals.learn.rated_lists import copy_lists, note_lists
from sparkml_sgdals.learn.whole_table import fit_stops
from sparkml_sgdals.metrics import mrr_at, rank_of_rated, recall_at
from sparkml_sgdals.state.event_scores import score_pairs, serving_state
from sparkml_sgdals.state.model_state import ModelState

EVENTS = settings_of(
    learns_events=True, rank=3, num_negatives=4, factor_prior=0.5, bias_prior=0.1, init_std=0.3,
    ranking_size=5, num_partners=6, repeat_items=False,
)  # fmt: skip
DESCENT = replace(EVENTS, solver="isgd", num_negatives=0, step_size=0.1)
RATINGS = settings_of(rank=3, init_std=0.3, ranking_size=5)


def events(rng, count, users=30, items=40, unwanted=0.0):
    return pa.table(
        {
            "user": pa.array(rng.integers(0, users, count)),
            "item": pa.array((items * rng.random(count) ** 2).astype(np.int64)),
            "rating": pa.array(np.where(rng.random(count) < unwanted, 0, 1).astype(np.float32)),
            "time": pa.array(np.arange(count)),
        }
    )


def rated(rng, count, users=30, items=40):
    """The same pairs as `events` has, with ratings, of which 0 is one."""
    table = events(rng, count, users, items)
    values = pa.array(rng.integers(-1, 5, count).astype(np.float32))
    return table.set_column(2, "rating", values)


def scores_of(served, user):
    rows = np.arange(served.items.size)
    if served.settings.learns_events or served.heard is not None:
        return score_pairs(served, np.full(rows.size, user), rows)
    mean = served.items.mean
    return mean[:, 0] + mean[:, 1:] @ served.users.mean[user, 1:]


def slow_ranks(state, done, ratings):
    """Event by event: (rank by the model, rank by popularity) of those that count."""
    least = 0 if state.settings.learns_events else -np.inf
    served = serving_state(state) if state.settings.learns_events else state
    again = state.settings.learns_events and state.repeats_items
    names = state.items.index.ids().to_pylist()
    place = {item: row for row, item in enumerate(names)}
    people = {u: row for row, u in enumerate(state.users.index.ids().to_pylist())}
    done = {user: set(own) for user, own in done.items()}
    found = []
    for x, y, value in zip(ratings.users, ratings.items, ratings.values, strict=True):
        user, item = ratings.user_ids[int(x)].as_py(), ratings.item_ids[int(y)].as_py()
        own = done.setdefault(user, set())
        if value > least and user in people and item in place and (again or item not in own):
            seen = [place[i] for i in own if i in place and not again]
            what = (np.array([place[item]]), np.array([0, len(seen)]), np.array(seen, np.int64))
            nothing = np.zeros((1, 1)), np.zeros((len(names), 1))
            scores = scores_of(served, people[user])
            by_model = rank_of_rated(*nothing, scores, *what)
            by_count = rank_of_rated(*nothing, state.items.count.astype(np.float64), *what)
            found.append((int(by_model[0]), int(by_count[0])))
        if value > least:
            own.add(item)
    return np.array(found, np.int64).reshape(-1, 2), done


@pytest.mark.parametrize(
    "settings",
    [
        EVENTS, replace(EVENTS, repeat_items=True), replace(EVENTS, repeat_items=None), DESCENT,
        replace(EVENTS, implicit_prior=False, num_partners=0),
    ],
)  # fmt: skip
def test_ranks_are_those_of_the_slow_reference(settings):
    rng = np.random.default_rng(3)
    state, done, judged = ModelState.empty(settings, "int", "int"), {}, 0
    for number in range(6):
        # ids that nobody knows keep coming, and pairs come again
        table = events(rng, 150, users=20 + 10 * number, items=30 + 10 * number, unwanted=0.1)
        ratings = encode_ratings(table)
        ranks, done = slow_ranks(state, done, ratings)
        sums = learn_batch(state, ratings).sums
        assert sums == rank_sums(ranks[:, 0], ranks[:, 1], 5)
        assert sums.ranked == len(ranks)
        judged += sums.ranked
    assert judged > 200


@pytest.mark.parametrize("fitted", [False, True])
def test_ranks_among_many_items_are_those_of_the_slow_reference(fitted):
    """What no item to come can reach is left early, and so is what is beyond the ranks told."""
    rng = np.random.default_rng(6)
    state, done, judged = ModelState.empty(EVENTS, "int", "int"), {}, 0
    if fitted:
        table = encode_ratings(events(rng, 3000, users=60, items=1500))
        settings = replace(EVENTS, table_rank=4, max_iter=3, regs=(0.1, 0.1, 0.05, 0.05))
        empty = ModelState.empty(settings, "int", "int")
        ((state, _),) = fit_stops(table, empty, [3], 1)
        _, done = slow_ranks(state, done, table)
    for _ in range(4):
        ratings = encode_ratings(events(rng, 400, users=60, items=1500))
        ranks, done = slow_ranks(state, done, ratings)
        sums = learn_batch(state, ratings).sums
        assert sums == rank_sums(ranks[:, 0], ranks[:, 1], 5)
        judged += sums.hits
    assert judged > 5


@pytest.mark.parametrize("solver", ["bayes", "sgd", "minibatch"])
@pytest.mark.parametrize("draws_prior", [True, False])
def test_ranks_of_ratings_are_those_of_the_slow_reference(solver, draws_prior):
    """From the first batch on, while the scale still settles; every rating counts."""
    rng = np.random.default_rng(3)
    settings = replace(RATINGS, solver=solver, implicit_prior=draws_prior, block_size=10)
    state, done, judged = ModelState.empty(settings, "int", "str"), {}, 0
    for number in range(9):
        table = rated(rng, 150, users=20 + 10 * number, items=30 + 10 * number)
        names = table.column("item").cast(pa.string())
        ratings = encode_ratings(table.set_column(1, "item", names))
        ranks, done = slow_ranks(state, done, ratings)
        sums = learn_batch(state, ratings).sums
        assert sums.with_ranks(rank_sums(ranks[:, 0], ranks[:, 1], 5)) == sums
        assert sums.ranked == len(ranks)
        judged += sums.ranked
        assert held(state) == done
    assert judged > 300
    assert state.scale.frozen
    assert sums.judged == 150


def held(state):
    """What each user has rated, by the model."""
    names = state.items.index.ids()
    of_key = dict(zip(id_keys(names).view(np.int64).tolist(), names.to_pylist(), strict=True))
    found = {}
    for user, keys in zip(
        state.users.index.ids().to_pylist(), state.users.memory.done, strict=True
    ):
        items = [of_key[key] for key in keys.tolist()]
        found[user] = set(items)
        assert len(items) == len(found[user])
    return found


def test_what_a_user_has_rated_is_no_rival_by_hand():
    """Items 1 to 4 stand in this order for user 7, whose rating of item 4 is judged."""
    state = ModelState.empty(replace(RATINGS, rank=1), "int", "int")
    learn_batch(state, ratings_of([7, 8, 8, 8], [1, 2, 3, 4], [3, 3, 3, 3], times=range(4)))
    state.users.mean[state.users.index.find(pa.array([7]))] = [9.0, 1.0]
    rows = state.items.index.find(pa.array([1, 2, 3, 4]))
    # the bias counts as much as the features
    state.items.mean[rows] = [[1.0, 3.0], [3.0, 0.0], [0.0, 2.0], [0.0, 1.0]]
    state.items.count[rows] = [9, 2, 3, 2]
    batch = ratings_of([7, 7, 7, 7, 9], [2, 5, 2, 4, 4], [-1, 5, 5, 1, 5], times=range(5))
    sums = learn_batch(state.copy(), batch).sums
    # item 2 is second to nothing but item 1, which is seen; item 4 then has item 3 left above it;
    # by popularity items 3 and 4 are no worse than item 2, and item 3 is better than item 4
    assert (sums.ranked, sums.hits, sums.reciprocals) == (2, 2, 1 + 1 / 2)
    assert sums.baseline_reciprocals == 1 / 3 + 1 / 2
    # where nobody is known to have rated anything, item 1 stands above both
    unknown = learn_batch(state.under(state.settings), batch).sums
    assert (unknown.ranked, unknown.reciprocals) == (2, 1 / 2 + 1 / 3)


def test_sums_by_hand():
    found = rank_sums(np.array([1, 3, 12, 2]), np.array([11, 10, 1, 40]), 10).metrics()
    assert (found["ranked"], found["recall"], found["baselineRecall"]) == (4, 0.75, 0.5)
    assert found["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 4)
    assert found["baselineMrr"] == pytest.approx((1 / 10 + 1) / 4)
    assert found["rmse"] is None


def test_sums_are_the_metrics_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(5)
    scores, truth = rng.normal(0, 1, (300, 25)), rng.integers(0, 25, 300)
    own = scores[np.arange(300), truth]
    ranks = (scores >= own[:, None]).sum(axis=1)
    found = rank_sums(ranks, ranks, 5).metrics()
    assert found["recall"] == pytest.approx(
        metrics.top_k_accuracy_score(truth, scores, k=5, labels=np.arange(25))
    )
    # with one relevant item the label ranking average precision is the reciprocal rank
    whole = rank_sums(ranks, ranks, 25).metrics()
    assert whole["mrr"] == pytest.approx(
        metrics.label_ranking_average_precision_score(np.eye(25)[truth], scores)
    )
    assert found["recall"] == recall_at(ranks, 5)
    assert found["mrr"] == pytest.approx(mrr_at(ranks, 5))


def learned(settings, seed=4, batches=4, items=40, count=200):
    rng = np.random.default_rng(seed)
    state = ModelState.empty(settings, "int", "int")
    made = events if settings.learns_events else rated
    return state, [
        learn_batch(state, encode_ratings(made(rng, count, items=items))).sums
        for _ in range(batches)
    ]


BOTH = pytest.mark.parametrize("settings", [EVENTS, RATINGS], ids=["events", "ratings"])


@BOTH
def test_a_large_sample_is_the_catalogue_and_a_small_one_is_not(settings):
    _, whole = learned(settings)
    _, many = learned(replace(settings, ranking_sample=2000))
    _, few = learned(replace(settings, ranking_sample=8))
    assert many == whole
    assert [sums.ranked for sums in few] == [sums.ranked for sums in whole]
    assert all(a.hits > b.hits for a, b in zip(few[1:], whole[1:], strict=True))


@BOTH
def test_samples_do_not_depend_on_rows_in_memory(settings):
    """A state whose rows stand in another order, as after a restart, ranks the same."""
    settings = replace(settings, ranking_sample=10)
    state, _ = learned(settings)
    twin = ModelState.empty(settings, "int", "int")
    twin.set_scalars(state.scalars())
    for own, other in ((twin.users, state.users), (twin.items, state.items)):
        # sorted by id, not by first sight
        own.put_arrow(other.to_arrow())
    assert twin.items.index.ids().to_pylist() != state.items.index.ids().to_pylist()
    assert twin.fingerprint() == state.fingerprint()
    made = events if settings.learns_events else rated
    batch = encode_ratings(made(np.random.default_rng(8), 200))
    found = learn_batch(state, batch).sums
    assert found.ranked > 20
    assert learn_batch(twin, batch).sums == found
    assert twin.fingerprint() == state.fingerprint()


def test_of_many_events_some_are_ranked(monkeypatch):
    state, whole = learned(EVENTS)
    monkeypatch.setattr(event_ranks, "_SCORES", 40 * 25)
    _, some = learned(EVENTS)
    assert state.items.size == 40
    assert min(sums.ranked for sums in whole[1:]) > 26
    # the first batch did not name all items
    assert [sums.ranked for sums in some] == [0, 26, 25, 25]
    _, again = learned(EVENTS)
    assert again == some


def test_ranking_changes_nothing_that_is_learned():
    for settings in (EVENTS, DESCENT):
        ranked, _ = learned(settings)
        plain, sums = learned(replace(settings, ranking_size=0))
        assert ranked.fingerprint() == plain.fingerprint()
        assert {each.ranked for each in sums} == {0}


@pytest.mark.parametrize("solver", ["bayes", "sgd"])
def test_ranking_of_ratings_changes_no_factor_and_no_error(solver):
    settings = replace(RATINGS, solver=solver)
    state, ranked = learned(settings)
    plain, sums = learned(settings.unranked())
    assert plain.users.to_arrow() == state.users.to_arrow().drop_columns("done")
    assert plain.items.to_arrow() == state.items.to_arrow()
    assert plain.scalars() == state.scalars()
    assert plain.fingerprint() == state.under(plain.settings).fingerprint()
    assert plain.fingerprint() != state.fingerprint()
    assert {each.ranked for each in sums} == {0}
    assert [each.with_ranks(sums[0]) for each in ranked] == sums
    assert min(each.ranked for each in ranked[1:]) > 20


@pytest.mark.parametrize("before", [2, 7], ids=["while the scale settles", "frozen"])
def test_a_batch_that_fails_leaves_what_was_rated(before):
    settings = replace(RATINGS, solver="sgd", step_size=0.05)
    state, _ = learned(settings, batches=before)
    twin, _ = learned(settings, batches=before)
    assert state.scale.frozen == (before == 7)
    table = rated(np.random.default_rng(9), 200, users=40)
    absurd = np.full(200, 1e30, np.float32)
    with pytest.raises(DivergenceError):
        learn_batch(state, encode_ratings(table.set_column(2, "rating", pa.array(absurd))))
    assert state.fingerprint() == twin.fingerprint()
    assert len(state.users.memory.done) == state.users.size
    # a user of the batch that failed is as new as before
    again = [learn_batch(one, encode_ratings(table)).sums for one in (state, twin)]
    assert again[0] == again[1]
    assert state.fingerprint() == twin.fingerprint()


def test_lists_of_a_table_in_any_order_are_the_same_bits():
    """Lists overlap, come in pieces, and repeat what is known of a user, which stays first."""
    rng = np.random.default_rng(2)
    start, _ = learned(RATINGS)
    known = held(start)
    users = start.users.index.ids().to_pylist()
    keys = id_keys(start.items.index.ids()).view(np.int64)
    lists = [
        (users[n], rng.choice(keys, rng.integers(0, 15)).tolist())
        for n in rng.integers(0, len(users) - 3, 60)
    ]
    found = []
    for order in (range(60), rng.permutation(60)):
        state = start.copy()
        pieces = [
            pa.table(
                {
                    "user": pa.array([lists[n][0] for n in part]),
                    "done": pa.array([lists[n][1] for n in part], pa.list_(pa.int64())),
                }
            )
            for part in np.array_split(np.array(order), 4)
        ]
        note_lists(state.users, pa.concat_tables([*pieces, pieces[0].slice(0, 0)]))
        found.append(state)
    assert found[0].fingerprint() == found[1].fingerprint()
    of_key = dict(zip(keys.tolist(), start.items.index.ids().to_pylist(), strict=True))
    for user, own in lists:
        known[user] |= {of_key[key] for key in own}
    assert held(found[0]) == known
    for before, after in zip(start.users.memory.done, found[0].users.memory.done, strict=True):
        assert np.array_equal(after[: before.size], before)
        assert np.array_equal(np.unique(after[before.size :]), after[before.size :])
    # of users known to neither list nothing is lost by handing them on
    other = ModelState.empty(RATINGS, "int", "int")
    other.users.put_arrow(found[0].users.to_arrow().drop_columns("done"))
    copy_lists(found[0].users, other.users)
    assert other.users.to_arrow() == found[0].users.to_arrow()
    untouched = start.copy()
    note_lists(untouched.users, pieces[0].slice(0, 0))
    assert untouched.fingerprint() == start.fingerprint()


def test_an_item_without_taste_ties_and_gains_nothing():
    state, _ = learned(replace(DESCENT, init_std=0.0, step_size=0.0))
    batch = encode_ratings(events(np.random.default_rng(8), 50))
    sums = learn_batch(state, batch).sums
    assert sums.ranked > 5
    assert sums.hits == 0
