"""The approximate index: exact scores, items changed since its build, filters, new versions."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("faiss")

from sparkml_sgdals.kernels.topn import top_n
from sparkml_sgdals.serving.model import approximate as module
from sparkml_sgdals.serving.model.approximate import Approximate, build_index
from sparkml_sgdals.serving.model.person import person_of
from sparkml_sgdals.serving.model.ranking import rank_items

ITEMS = 2_000


@pytest.fixture
def made(modeler):
    made = modeler(items=ITEMS)
    made.learn(made.ratings(20_000))
    return made


@pytest.fixture
def followed(made, tmp_path):
    from sparkml_sgdals.serving.model.holder import ModelHolder

    holder = ModelHolder(str(made.path), str(tmp_path), poll_seconds=3600.0)
    holder.poll()
    approximate = Approximate(holder, recall=0.9)
    approximate.build()
    yield holder, approximate
    approximate.stop()


def test_recall_is_what_it_says():
    rng = np.random.default_rng(0)
    factors = rng.normal(0, 0.3, (6, 5_000)).astype(np.float32)
    factors[5] = 1.0
    queries = rng.normal(0, 0.3, (80, 6)).astype(np.float32)
    queries[:, 4] = 1.0
    loose = build_index(factors, queries, 0.5, 3, "these")
    strict = build_index(factors, queries, 0.99, 3, "these")
    for built in (loose, strict):
        exact, _ = top_n(queries, factors, 10)
        found = [built.search(query[None, :], 10) for query in queries]
        recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)])
        assert recall == pytest.approx(built.recall)
    assert loose.recall >= 0.5
    assert strict.recall >= 0.99
    assert loose.probes < strict.probes < 4 * np.sqrt(5_000)
    # with all lists open nothing is missed
    assert build_index(factors, queries, 1.0, 3, "these").recall == 1.0


def test_ranked_nearly_as_exactly(made, followed):
    holder, approximate = followed
    same = 0
    with holder.reading() as model:
        for n in range(50):
            person = person_of(model, made.key(0, n))
            exact = rank_items(model, person, 10)
            near = rank_items(model, person, 10, approximate=approximate)
            assert len(near.ids) == 10
            scores = dict(zip(near.ids, near.values, strict=True))
            for item, value in zip(exact.ids, exact.values, strict=True):
                if item in scores:
                    same += 1
                    assert scores[item] == pytest.approx(value, abs=1e-6)
    assert same / 500 >= 0.85


def test_filters(made, followed):
    holder, approximate = followed
    with holder.reading() as model:
        person = person_of(model, made.key(0, 3))
        gone = rank_items(model, person, 30).rows
        near = rank_items(model, person, 10, excluded=gone, approximate=approximate)
        assert len(near.ids) == 10
        assert not set(near.rows.tolist()) & set(gone.tolist())
        # too much is left out, or wanted: the exact list
        most = rank_items(model, person, ITEMS - 5).rows
        for excluded, count in ((most, 5), (None, 600)):
            wanted = rank_items(model, person, count, excluded=excluded)
            found = rank_items(model, person, count, excluded=excluded, approximate=approximate)
            assert found.ids == wanted.ids
        upper = rank_items(model, person, 10, "upper", approximate=approximate)
        assert upper.ids == rank_items(model, person, 10, "upper").ids


def test_what_changed_since_is_looked_at(made, followed):
    """An item that has become the best of all is found though the index has it as it was."""
    holder, approximate = followed
    best = made.state.items.index.ids()[700].as_py()
    made.state.items.mean[700, 0] = 50.0
    rows = np.array([0]), np.array([700])
    made.commit = made.store.commit(made.state, rows, 1, made.commit, {"ratings": 1})
    holder.poll()
    with holder.reading() as model:
        near = rank_items(model, person_of(model, made.key(0, 3)), 3, approximate=approximate)
    assert near.ids[0] == best
    # new items, too
    made.learn(made.table([1, 2, 3], [ITEMS + 1] * 3, [5.0, 5.0, 5.0]))
    holder.poll()
    row = holder.num_items - 1
    with holder.reading() as model:
        found = approximate.candidates(
            model, model.candidates.query(model.users.mean[:1], model.users.var[:1])[0], 3, 0
        )
    assert row in found.tolist()


def test_built_anew_beside_the_requests(made, followed, monkeypatch):
    holder, approximate = followed
    holder.on_version = lambda commit: approximate.look()
    approximate.start()
    first = approximate.built.version
    monkeypatch.setattr(approximate, "_stale", 0.001)
    for n in range(4):
        made.learn(made.ratings(2_000))
        holder.poll()
        with holder.reading() as model:
            near = rank_items(model, person_of(model, made.key(0, n)), 5, approximate=approximate)
        assert len(near.ids) == 5
    until = time.monotonic() + 30
    while approximate.built.version == first and time.monotonic() < until:
        time.sleep(0.01)
    assert approximate.built.version > first
    # a whole load, as after a rollback, has other rows: exact until an index of it is there
    monkeypatch.setattr(module.Approximate, "_outdated", lambda self: False)
    holder._load(holder.store.newest())
    with holder.reading() as model:
        query = model.candidates.query(model.users.mean[:1], model.users.var[:1])[0]
        assert approximate.candidates(model, query, 5, 0) is None
        assert len(rank_items(model, person_of(model, 1), 5, approximate=approximate).ids) == 5


def test_over_http(made, serving):
    run = serving(made, ann_recall=0.9)
    found = run.get(f"/recommendations/{made.key(0, 3)}", n=5)
    assert len(found["items"]) == 5
    metrics = run.client.get("/metrics").text
    recall = float(metrics.partition("\nsparkml_sgdals_index_recall ")[2].split()[0])
    assert 0.9 <= recall <= 1.0
    run.service.answers.approximate.stop()
