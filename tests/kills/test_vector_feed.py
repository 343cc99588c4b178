"""Vectors taken up beside a stream that is killed again and again end equal to the model."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
from trials import TooSlowError, Trial, located

from sparkml_sgdals import VectorFeed
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.state.vectors import vector_table
from sparkml_sgdals.store.version_store import VersionStore


class Index:
    """Vectors of items in faiss, with the position that they are of; and vectors of users."""

    def __init__(self, width):
        faiss = pytest.importorskip("faiss")
        self.items = faiss.IndexIDMap2(faiss.IndexFlatIP(width))
        self.users, self.position, self.times = {}, None, 0

    def take_up(self, changes):
        ids = changes.items["id"].to_numpy()
        if changes.complete:
            self.items.reset()
            self.users = {}
        elif ids.size:
            self.items.remove_ids(ids)
        vectors = np.array(changes.items["vector"].to_pylist(), np.float32)
        if ids.size:
            self.items.add_with_ids(vectors, ids)
        pairs = zip(changes.users["id"].to_pylist(), changes.users["vector"].to_pylist(),
                    strict=True)  # fmt: skip
        self.users.update(pairs)
        self.position = changes.position
        self.times += 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills(tmp_path):
    """To the bit, whatever the stream was at when it was killed."""
    kills, rng = 10, random.Random(7)
    trial = Trial(tmp_path, "classic", "files", 120, 40)
    path = tmp_path / "model"
    index, feed, through = Index(6), VectorFeed(located(path)), threading.Event()
    failures = []

    def follow():
        while not through.is_set():
            try:
                changes = feed.changes(index.position)
            except StorageError as failure:
                # before the first version
                if index.position is not None:
                    failures.append(failure)
                changes = None
            if changes is not None:
                index.take_up(changes)
            time.sleep(0.02)

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        while trial.figures.random_kills < kills:
            try:
                if not trial.kill_at_random(path, rng):
                    break
            except TooSlowError:
                continue
        trial.finish(path)
    finally:
        through.set()
        follower.join()
    last = feed.changes(index.position)
    if last is not None:
        index.take_up(last)
    print(trial.figures.random_kills, "kills,", index.times, "times taken up")
    assert (trial.figures.random_kills, failures) == (kills, [])
    assert index.times > kills
    state, commit = VersionStore(located(path)).load()
    assert index.position == f"{commit.version}-{commit.digest}"
    users, items = (vector_table(side, state.scale) for side in (state.users, state.items))
    assert index.users == dict(
        zip(users["id"].to_pylist(), users["vector"].to_pylist(), strict=True)
    )
    assert index.items.ntotal == items.num_rows
    held = np.stack([index.items.reconstruct(one) for one in items["id"].to_pylist()])
    np.testing.assert_array_equal(held, np.array(items["vector"].to_pylist(), np.float32))
    # and it finds what the model ranks first
    query = np.array([users["vector"][0].as_py()], np.float32)
    _, found = index.items.search(query, 5)
    scores = held @ query[0]
    best = np.sort(scores)[::-1][:5]
    places = [items["id"].to_pylist().index(one) for one in found[0].tolist()]
    np.testing.assert_allclose(scores[places], best, rtol=1e-6)
