"""Models of events that `fit` made, and streams that go on from them, ranked as elsewhere."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.event_tables import fit_events
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.predictor import Predictor
from sparkml_sgdals.serving.model.holder import ModelHolder
from sparkml_sgdals.serving.model.person import fold_in, person_of
from sparkml_sgdals.serving.model.ranking import like_item, predicted, rank_items
from sparkml_sgdals.serving.model.reasons import event_shares, event_terms, stands_together
from sparkml_sgdals.state.event_scores import table_alone
from sparkml_sgdals.state.model_state import ModelState

LAMBDA = 0.01
SETTINGS = settings_of(
    rank=4, learns_events=True, num_negatives=5, ranking_size=0, table_rank=6, max_iter=30,
    repeat_items=False,
    tol=0.0, regs=(LAMBDA,) * 4,
)  # fmt: skip


def events(made, count, first=0):
    """Events, of what users like more often, none twice."""
    table = made.ratings(3 * count, first).to_pandas()
    table = table[table.rating >= 3.5].drop_duplicates(["user", "item"]).head(count)
    return pa.Table.from_pandas(table.assign(rating=np.float32(1.0)), preserve_index=False)


def fitted(timed, count=700, more=()):
    """Makes a model of so many events and the pairs `more`."""

    def start(made):
        table = events(made, count)
        if more:
            table = pa.concat_tables(
                [table, made.table(*zip(*more, strict=True), [1.0] * len(more))]
            )
        ratings = replace(encode_ratings(table), timed=timed)
        blank = ModelState.empty(made.settings, *made.kinds)
        ((state, _),) = fit_events(blank, ratings, [made.settings.max_iter], 1, lambda *_: None)
        assert table_alone(state) is not timed
        return state

    return start


@pytest.fixture(params=[False, True], ids=["table", "timed"])
def timed(request):
    return request.param


@pytest.fixture(params=["int", "str"])
def made(request, timed, modeler):
    kinds = (request.param, request.param)
    return modeler(kinds=kinds, settings=SETTINGS, start=fitted(timed))


@pytest.fixture
def follow(tmp_path):
    def start(made):
        holder = ModelHolder(str(made.path), str(tmp_path), poll_seconds=3600.0)
        holder.poll()
        return holder

    return start


def nobody(made):
    return 999_999 if made.kinds[0] == "int" else "nobody"


def check(model, made, users):
    """Lists, scores and single predictions are those of `Predictor`, equal ones by id."""
    predictor = Predictor(made.state, {}, made.commit.version)
    expected = predictor.recommend(users, 10**6)
    for user in users:
        own = expected[expected.user == user]
        person = person_of(model, user)
        found = rank_items(model, person, 10**6)
        np.testing.assert_allclose(found.values, own.rating, atol=3e-5)
        scores = dict(zip(own.item, own.rating, strict=True))
        assert scores.keys() == set(found.ids)
        np.testing.assert_allclose([scores[item] for item in found.ids], found.values, atol=3e-5)
        ten = rank_items(model, person, 10)
        assert ten.ids == found.ids[:10]
        some = model.item_rows(found.ids[5:20])
        assert rank_items(model, person, 10, only=some).ids == found.ids[5:15]
        rows = np.append(found.rows[:4], -1)
        values, _ = predicted(model, person, rows)
        items = [*found.ids[:4], 10**8 if made.kinds[1] == "int" else "none"]
        said = predictor.predict([user] * 5, items).prediction
        np.testing.assert_allclose(values, said, atol=3e-5)


def test_ranked_as_elsewhere_version_by_version(made, follow):
    holder = follow(made)
    for step in range(4):
        with holder.reading() as model:
            check(model, made, [made.key(0, 7), made.key(0, 30), nobody(made)])
            ids = model.indexes
        # from the second one on, with users and items that no table held
        made.learn(events(made, 60, first=step * 9))
        assert holder.poll()
        with holder.reading() as model:
            # taken up beside what is served, not loaded whole: also the first one after a table,
            # which writes all rows
            assert model.indexes is ids
            check(model, made, [made.key(0, 30 + step * 9), made.key(0, 7), nobody(made)])
    assert not table_alone(made.state)


def test_a_service_that_starts_later_says_the_same(made, follow, tmp_path):
    first = follow(made)
    made.learn(events(made, 60))
    made.learn(events(made, 60, first=5))
    first.poll()
    (tmp_path / "other").mkdir()
    second = ModelHolder(str(made.path), str(tmp_path / "other"), poll_seconds=3600.0)
    second.poll()
    with first.reading() as one, second.reading() as other:
        for n in (3, 20, 62):
            lists = [
                rank_items(model, person_of(model, made.key(0, n)), 50) for model in (one, other)
            ]
            assert lists[0].ids == lists[1].ids
            np.testing.assert_allclose(lists[0].values, lists[1].values, atol=1e-6)


@pytest.mark.parametrize("after", [0, 2])
def test_catalogues_beyond_the_anchors(modeler, follow, timed, after):
    made = modeler(settings=SETTINGS, items=2_500, start=fitted(timed, 6_000))
    holder = follow(made)
    for _ in range(after):
        made.learn(events(made, 300))
        holder.poll()
    assert made.state.items.size > 1_500
    with holder.reading() as model:
        check(model, made, [made.key(0, 7), made.key(0, 30), nobody(made)])


def dense(made, items, values=None):
    """The features that minimise the table's loss of one user, by all items, in float64."""
    table = made.state.items
    features = table.taste[:, 1:].astype(float)
    rows = table.index.find(pa.array(items))
    targets = np.ones(len(items)) if values is None else (np.array(values) > 0).astype(float)
    # alpha is 1, so what is not wanted counts half
    weights = (1.0 + targets) / 2.0
    own = features[rows]
    ridge = LAMBDA * (weights.sum() + made.state.weights_beside[0])
    system = (
        own.T @ (weights[:, None] * own)
        + 0.1 * features.T @ features
        + ridge * np.eye(features.shape[1])
    )
    return np.linalg.solve(system, own.T @ targets)


class TestSomebodyWhoIsNotKnown:
    def test_of_a_table_without_times(self, modeler, follow):
        made = modeler(settings=SETTINGS, start=fitted(False))
        items, values = [made.key(1, n) for n in (3, 9, 5, 8)], [1.0, 1.0, 1.0, 0.0]
        before = made.state.fingerprint()
        with follow(made).reading() as model:
            person = fold_in(model, items, values)
            np.testing.assert_allclose(person.taste[1:], dense(made, items, values), atol=1e-5)
            found = rank_items(model, person, 10**6)
            assert person.done.tolist() == model.item_rows(items[:3]).tolist()
        products = made.state.items.taste[:, 1:] @ dense(made, items, values)
        soft = np.log((products + np.sqrt(products**2 + 4e-4)) / 2)
        by_id = dict(zip(made.state.items.index.ids().to_pylist(), soft, strict=True))
        np.testing.assert_allclose(found.values, [by_id[i] for i in found.ids], atol=1e-4)
        assert made.state.fingerprint() == before

    def test_like_a_user_that_did_the_same(self, modeler, follow):
        """A known user's features are nearly those that its own events fold in to."""
        made = modeler(settings=SETTINGS, start=fitted(False))
        with follow(made).reading() as model:
            alike = []
            for n in range(40):
                known = person_of(model, made.key(0, n))
                done = model.item_ids(known.done.astype(np.int64))
                other = fold_in(model, done, [1.0] * len(done))
                alike.append(
                    len(
                        set(rank_items(model, known, 10).ids)
                        & set(rank_items(model, other, 10).ids)
                    )
                )
            assert np.mean(alike) > 9.5

    def test_of_a_filter_and_a_table(self, modeler, follow):
        """The filter learns the events as a stream would, and the table judges beside it."""
        made = modeler(settings=SETTINGS, start=fitted(True))
        items = [made.key(1, n) for n in (3, 9, 5)]
        twin = made.state.copy()
        # whom the service makes, as its first features follow from the id
        user = pa.array([-(2**63)])
        rows = made.table([0] * 3, [3, 9, 5], [1.0] * 3)
        rows = rows.set_column(0, "user", pa.array([-(2**63)] * 3))
        learn_batch(twin, encode_ratings(rows))
        state, row = made.state.copy(), twin.users.index.find(user)[0]
        (mine,), _ = state.users.ensure(user)
        state.users.mean[mine] = twin.users.mean[row]
        state.users.memory.last[mine] = state.events_learned
        state.users.memory.done[mine] = twin.users.memory.done[row]
        state.users.taste[mine, 0] = math.log(4.0)
        state.users.taste[mine, 1:] = dense(made, items)
        with follow(made).reading() as model:
            found = rank_items(model, fold_in(model, items, [1.0] * 3), 10**6)
        expected = Predictor(state, {}, 0).recommend(user, 10**6)
        scores = dict(zip(expected.item, expected.rating, strict=True))
        np.testing.assert_allclose(found.values, [scores[i] for i in found.ids], atol=1e-4)

    def test_nothing_that_is_known_is_what_is_popular(self, made, follow):
        holder = follow(made)
        with holder.reading() as model:
            person = fold_in(model, ["none"] if made.kinds[1] == "str" else [10**8], [1.0])
            assert (
                rank_items(model, person, 9).ids
                == rank_items(model, person_of(model, nobody(made)), 9).ids
            )
        unwanted = [made.key(1, 3)]
        with holder.reading() as model:
            assert rank_items(model, fold_in(model, unwanted, [0.0]), 9).ids


class TestWhy:
    def test_parts_add_up(self, made, follow):
        holder = follow(made)
        for _ in range(2):
            with holder.reading() as model:
                for n in (7, 30, -1):
                    person = person_of(model, nobody(made) if n < 0 else made.key(0, n))
                    for row in (0, 3, -1):
                        terms = event_terms(model, person, row)
                        value = predicted(model, person, np.array([row]))[0][0]
                        assert terms[-1].value == pytest.approx(value, abs=1e-4)
                        parts = sum(term.value for term in terms[:-1])
                        assert parts == pytest.approx(value, abs=1e-4)
                        assert ("table" in [term.part for term in terms]) == (n >= 0)
            made.learn(events(made, 60))
            holder.poll()

    def test_what_was_done_shares_the_table_s_product(self, modeler, follow):
        made = modeler(settings=SETTINGS, start=fitted(False))
        with follow(made).reading() as model:
            for n in range(0, 40, 5):
                person = person_of(model, made.key(0, n))
                for row in (2, 11):
                    shares = event_shares(model, person, row)
                    assert {one.row for one in shares} == set(person.done.tolist())
                    total = sum(one.share for one in shares)
                    product = person.taste[1:] @ model.items.taste[row, 1:]
                    assert total == pytest.approx(product, abs=0.02)
                    assert shares[0].share == max(one.share for one in shares)

    def test_nothing_is_said_that_may_be_wrong(self, made, follow):
        """Who has done more since, the table does not tell of; what the filter says, it names."""
        holder = follow(made)
        user = made.key(0, 7)
        with holder.reading() as model:
            done = person_of(model, user).done.size
        others = [n for n in range(40) if n not in {5}][:6]
        made.learn(made.table([7] * 6, others, [1.0] * 6))
        holder.poll()
        with holder.reading() as model:
            person = person_of(model, user)
            assert person.done.size > done == person.fitted
            for row in range(30):
                heard = 10 if stands_together(model, person, row) else 8
                last = set(person.done[-heard:].tolist())
                assert {one.row for one in event_shares(model, person, row)} in (set(), last)

    def test_one_done_twice_and_one_done_since_are_told_apart(self, modeler, follow, timed):
        start = fitted(timed, more=[(70, 3), (70, 3), (70, 9)])
        made = modeler(settings=SETTINGS, start=start)
        made.learn(made.table([70], [12], [1.0]))
        with follow(made).reading() as model:
            person = person_of(model, made.key(0, 70))
            assert person.done.size == person.fitted == 3
            for row in range(30):
                shares = event_shares(model, person, row)
                if stands_together(model, person, row):
                    (told,) = (
                        term.value
                        for term in event_terms(model, person, row)
                        if term.part == "stands together"
                    )
                    assert sum(one.share for one in shares) == pytest.approx(told, abs=1e-4)
                    continue
                context = model.events.context(person.done)[1] @ model.items.mean[row, 1:]
                assert sorted(one.share for one in shares) in ([], sorted(context.tolist()))

    def test_sentences(self, made, serving):
        run = serving(made)
        at = quote(str(made.key(0, 7)), safe="")
        listed = run.get(f"/recommendations/{at}", n=5, reasons=True)["items"]
        assert all(one["reason"] for one in listed)
        alone = table_alone(made.state)
        assert all(("done now" in one["reason"]) is not alone for one in listed)
        if alone:
            assert all(one["reason"].startswith("Because you did") for one in listed)
        item = quote(str(made.key(1, 3)), safe="")
        told = run.get(f"/explain/{quote(str(nobody(made)), safe='')}/{item}")["reason"]
        assert ("of all that was done" in told) is alone
        described = run.get("/model")
        assert (described["events"], described["table"]) == (True, alone)
        lists = {
            rank_by: run.get(f"/recommendations/{at}", n=1000, rank_by=rank_by)["items"]
            for rank_by in ("prediction", "taste", "everyone")
        }
        scores = {
            name: {o["item"]: o["prediction"] for o in listed} for name, listed in lists.items()
        }
        assert scores["taste"] == scores["prediction"] == scores["everyone"]
        orders = [[o["item"] for o in listed] for listed in lists.values()]
        assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_what_is_alike_by_the_table(made, follow):
    features = made.state.items.taste[:, 1:].astype(float)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    with follow(made).reading() as model:
        found = like_item(model, 4, 6)
    cosine = features @ features[4]
    cosine[4] = -2.0
    ids = made.state.items.index.ids().to_pylist()
    best = np.argsort(-cosine)[:6]
    assert found.ids == [ids[n] for n in best]
    np.testing.assert_allclose(found.values, cosine[best], atol=1e-5)


def test_a_gate_opens_by_the_events_of_the_table(modeler, serving):
    small = modeler(settings=SETTINGS, start=fitted(False))
    run = serving(small, change=lambda service: setattr(service, "gate", True))
    learned = small.state.counters.ratings
    assert f"{learned} events" in run.get("/health/ready", status=503)["detail"]
    small.learn(events(small, 500))
    run.service.answers.holder.poll()
    assert run.get("/health/ready")["ready"] is True


@pytest.mark.parametrize("after", [pytest.param(0, marks=pytest.mark.long), 1])
def test_an_index_proposes_by_both_judges(modeler, follow, timed, after):
    pytest.importorskip("faiss")
    from sparkml_sgdals.serving.model.approximate import Approximate

    made = modeler(settings=SETTINGS, items=2_500, start=fitted(timed, 9_000))
    holder = follow(made)
    approximate = Approximate(holder, recall=0.9)
    approximate.build()
    for _ in range(after):
        made.learn(events(made, 100))
        holder.poll()
    if after:
        approximate.build()
    assert approximate.built.recall >= 0.9
    assert len(approximate.built.lists) == (1 if table_alone(made.state) else 2)
    same = 0
    with holder.reading() as model:
        for n in range(50):
            person = person_of(model, made.key(0, n))
            exact = rank_items(model, person, 10)
            left = model.candidates.query(person.mean[None, :], person.var[None, :])[0]
            assert approximate.candidates(model, left, 10, 0, person.taste) is not None
            near = rank_items(model, person, 10, approximate=approximate)
            scores = dict(zip(near.ids, near.values, strict=True))
            for item, value in zip(exact.ids, exact.values, strict=True):
                if item in scores:
                    same += 1
                    assert scores[item] == pytest.approx(value, abs=1e-5)
        assert same / 500 >= 0.85
        # without a taste nothing is proposed, and the exact list is given
        cold = person_of(model, 999_999)
        left = model.candidates.query(cold.mean[None, :], cold.var[None, :])[0]
        assert approximate.candidates(model, left, 10, 0, cold.taste) is None
        assert rank_items(model, cold, 9, approximate=approximate).ids == (
            rank_items(model, cold, 9).ids
        )
    approximate.stop()
