"""A version that is read where it lies answers as the whole model does."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers import ONCE, assert_same_bits, predictions, whole_state
from pyspark.ml.tuning import ParamGridBuilder
from pyspark.sql import functions as F

from sparkml_sgdals import (
    Predictor,
    StreamingBiasedALS,
    StreamingBiasedALSModel,
    StreamingGridSearch,
)
from sparkml_sgdals.predict import (
    in_place,
    rank_blocks,
    ranking_in_place,
    scoring,
    vector_files,
)
from sparkml_sgdals.store.version_store import StorageError, VersionStore

LIMIT = 50


LONG = pytest.mark.long


@pytest.fixture(
    scope="module",
    params=["int", pytest.param("str", marks=LONG), pytest.param("featured", marks=LONG)],
)
def kind(request):
    """Of the ids of users; items have integers. Or both have, and items have features besides."""
    return request.param


@pytest.fixture(scope="module")
def table(small, kind):
    """The ratings; users by text where asked."""
    return small.assign(user="u" + small.user.astype(str)) if kind == "str" else small


@pytest.fixture(scope="module")
def path(spark, table, kind, tmp_path_factory):
    """A path that `fitPath` made of the first three quarters."""
    als = StreamingBiasedALS(timestampCol="time", rank=4, maxIter=2, numBlocks=2)
    als.setClipPredictions(True)
    if kind == "featured":
        items = pd.DataFrame({"item": table.item.unique()})
        als.setItemFeatures(spark.createDataFrame(items.assign(odd=items["item"] % 2.0)))
    place = tmp_path_factory.mktemp("path") / "model"
    als.fitPath(spark.createDataFrame(table.head(3000)), place)
    return place


@pytest.fixture(
    scope="module", params=["updated", pytest.param("as fitted", marks=pytest.mark.nightly)]
)
def twins(request, spark, path, table):
    """The version in place and the whole of it; both once more after an update in memory."""
    part = StreamingBiasedALSModel.load(path, maxResidentIds=LIMIT)
    whole = StreamingBiasedALSModel.load(path, maxResidentIds=0)
    assert part.state.partial
    assert not whole.state.partial
    if request.param == "updated":
        fresh = table.tail(40).copy()
        # one user and one item that are new, one pair by both
        fresh.loc[fresh.index[:2], "item"] = -7
        fresh.loc[fresh.index[:1], "user"] = -3 if fresh.user.dtype.kind == "i" else "nobody"
        for model in (part, whole):
            model.update(spark.createDataFrame(fresh))
    return part, whole


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Ranges of few rows, so that there are several of all that is cut."""
    monkeypatch.setattr(in_place, "PIECE", 128)
    monkeypatch.setattr(in_place, "_SAMPLES", 8)
    monkeypatch.setattr(in_place, "stored_rows", _pieces(in_place.stored_rows))
    for module in (ranking_in_place, vector_files):
        monkeypatch.setattr(module, "stored_rows", in_place.stored_rows)
    for module in (rank_blocks, ranking_in_place):
        monkeypatch.setattr(module, "QUERIES_PER_BLOCK", 32)


def _pieces(cut):
    return lambda stored, side, rows=32: cut(stored, side, min(rows, 32))


def lists(frame):
    """Ids and their lists, as sorted rows of plain values."""
    name = frame.columns[0]
    rows = {row[name]: [tuple(each) for each in row[1]] for row in frame.collect()}
    assert rows
    return rows


def same_lists(one, other):
    left, right = lists(one), lists(other)
    assert left.keys() == right.keys()
    for name, found in left.items():
        assert [each[0] for each in found] == [each[0] for each in right[name]], name
        np.testing.assert_array_equal([e[1] for e in found], [e[1] for e in right[name]])


def test_it_says_so_and_keeps_few(twins, path):
    part, whole = twins
    assert f"read from {path}" in repr(part)
    assert "read from" in part._repr_html_()
    assert repr(part).partition(", read")[0].partition(",")[2] == repr(whole).partition(",")[2]
    assert "read from" not in repr(whole)
    assert_same_bits(part, whole)


@pytest.mark.long
def test_pairs(twins, spark, table):
    part, whole = twins
    pairs = table.tail(300)[["user", "item"]].drop_duplicates()
    unknown = pd.DataFrame({"user": pairs.user.iloc[:1], "item": [-99]})
    frame = spark.createDataFrame(pd.concat([pairs, unknown]))
    for column in ("prediction", "std"):
        scored = [m.copy({m.predictionStdCol: "std"}).transform(frame) for m in twins]
        one, other = (predictions(each, ["user", "item"], column) for each in scored)
        np.testing.assert_array_equal(one, other)
    assert part._stored.resident <= max(LIMIT, part._stored.changed("users").size + 50)
    user, item = pairs.user.iloc[0], int(pairs.item.iloc[0])
    user = user if isinstance(user, str) else int(user)
    for ids in ((user, item), (user, -99)):
        assert part.predictOne(*ids) == whole.predictOne(*ids)
        assert part.explain(*ids).collect() == whole.explain(*ids).collect()


def test_rows_in_files_are_never_broadcast(twins, spark, table, capsys, monkeypatch):
    """Spark takes what tasks read for some bytes, and would gather 20 million rows to send them."""
    part, _ = twins
    monkeypatch.setattr(scoring, "BROADCAST_IDS", 10)
    frame = spark.createDataFrame(table[["user", "item"]].head(20))
    joined = [part.transform(frame)]
    for name in ("userFactors", "itemFactors"):
        joined.append(frame.join(getattr(part, name), frame[name[:4]] == F.col("id")))
    for each in joined:
        each.explain()
        plan = capsys.readouterr().out
        assert "SortMergeJoin" in plan
        assert "Broadcast" not in plan
        assert each.count() == 20


def test_factors(twins):
    for name in ("userFactors", "itemFactors"):
        one, other = (getattr(model, name).toPandas().sort_values("id") for model in twins)
        assert one.id.tolist() == other.id.tolist()
        np.testing.assert_array_equal(np.stack(one.features), np.stack(other.features))
        np.testing.assert_array_equal(one.bias, other.bias)


@pytest.mark.long
@pytest.mark.parametrize("rank_by", ["prediction", "upper"])
def test_all_users(twins, spark, table, rank_by):
    seen = spark.createDataFrame(table[["user", "item"]])
    one, other = (m.recommendForAllUsers(7, excludeSeen=seen, rankBy=rank_by) for m in twins)
    same_lists(one, other)


@pytest.mark.long
def test_subsets_and_the_similar(twins, table):
    users = [*table.user.unique()[:5].tolist(), -5 if table.user.dtype.kind == "i" else "zzz"]
    items = [*table.item.unique()[:5].tolist(), -99]
    for ask in (
        lambda m: m.recommendForUserSubset(users, 5),
        # more than are kept in memory
        lambda m: m.recommendForUserSubset(table.user.unique().tolist(), 3, rankBy="lower"),
        lambda m: m.recommendForItemSubset(items, 5),
        lambda m: m.similarItems(items, 4),
        lambda m: m.similarUsers(users, 4),
    ):
        same_lists(*(ask(model) for model in twins))


@pytest.mark.long
def test_what_is_judged(twins, spark, table):
    part, whole = twins
    held = spark.createDataFrame(table.tail(400))
    for given in (None, held):
        assert str(part.diagnose(given)) == str(whole.diagnose(given))
    # items do not fit
    with pytest.raises(StorageError, match="maxResidentIds=0"):
        part.evaluateRanking(held)
    with pytest.raises(StorageError, match="recommendForUserSubset"):
        part.recommendOne(table.user.iloc[0])
    with pytest.raises(StorageError, match=r"people whom it does not know.*maxResidentIds=0"):
        part.recommendForRatings(held, 3)


@pytest.mark.long
def test_rankings_where_items_fit(path, spark, table):
    part = StreamingBiasedALSModel.load(path, maxResidentIds=120)
    whole = StreamingBiasedALSModel.load(path, maxResidentIds=0)
    assert part.state.partial
    user = table.user.iloc[0]
    user = user if isinstance(user, str) else int(user)
    assert part.recommendOne(user, 5) == whole.recommendOne(user, 5)
    held = spark.createDataFrame(table.tail(400))
    assert part.evaluateRanking(held).recall == whole.evaluateRanking(held).recall
    same_lists(*(model.recommendForRatings(held, 4) for model in (part, whole)))


def read_vectors(folder, side, form):
    """Ids and vectors of one file or of all parts, by id."""
    one = folder / f"{side}.parquet" if form == "parquet" else folder / f"{side}.npy"
    files = [one] if one.exists() else sorted((folder / side).glob(f"*{one.suffix}"))
    assert files
    if form == "parquet":
        rows = pd.concat([pd.read_parquet(file) for file in files])
        ids, vectors = rows.id.tolist(), np.stack(rows.vector.tolist())
    else:
        files = [file for file in files if not file.stem.endswith("-ids")]
        ids = [i for f in files for i in np.load(f.with_name(f"{f.stem}-ids.npy")).tolist()]
        vectors = np.concatenate([np.load(file) for file in files])
    assert len(set(ids)) == len(ids)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return [ids[n] for n in order], vectors[order]


@pytest.mark.parametrize("form", ["parquet", pytest.param("faiss", marks=pytest.mark.long)])
def test_vectors(twins, form, tmp_path):
    """Tasks write parts, which hold what the driver writes of the whole."""
    part, whole = twins
    part.exportVectors(tmp_path / "part", form)
    whole.exportVectors(tmp_path / "whole", form)
    for side in ("users", "items"):
        ids, vectors = read_vectors(tmp_path / "part", side, form)
        expected = read_vectors(tmp_path / "whole", side, form)
        assert ids == expected[0]
        np.testing.assert_array_equal(vectors, expected[1])
    about, all_of_it = (
        json.loads((tmp_path / name / "vectors.json").read_text()) for name in ("part", "whole")
    )
    assert about.pop("parts")["users"] > 1
    assert about == all_of_it
    (tmp_path / "part" / "vectors.json").unlink()
    with pytest.raises(ValueError, match=r"part/users holds 'part-00000.*choose another path"):
        part.exportVectors(tmp_path / "part", form)


def test_copies_and_pickle(path, spark, table):
    part = StreamingBiasedALSModel.load(path, maxResidentIds=LIMIT)
    kept = part.copy()
    part.update(spark.createDataFrame(table.tail(30)))
    whole = StreamingBiasedALSModel.load(path, maxResidentIds=0)
    assert_same_bits(kept, whole)
    again = pickle.loads(pickle.dumps(part))
    assert_same_bits(again, part)
    assert_same_bits(part, whole.update(spark.createDataFrame(table.tail(30))))


def test_predictor(path, table):
    part = Predictor.load(path, max_resident_ids=LIMIT)
    whole = Predictor.load(path, max_resident_ids=0)
    users, items = table.user.head(40).tolist(), table.item.head(40).tolist()
    pd.testing.assert_frame_equal(part.predict(users, items), whole.predict(users, items))


@pytest.mark.long
def test_saved_and_loaded(path, spark, table, tmp_path):
    """With what was learned since; the files are copied, and read where they then lie."""
    part = StreamingBiasedALSModel.load(path, maxResidentIds=LIMIT)
    part.update(spark.createDataFrame(table.tail(30)))
    saved = tmp_path / "saved"
    part.save(saved)
    again = StreamingBiasedALSModel.load(saved)
    assert (again.version, again.uid, again.getTimestampCol()) == (1, part.uid, "time")
    assert again.state.partial
    assert f"read from {saved}" in repr(again)
    assert_same_bits(again, part)
    whole = StreamingBiasedALSModel.load(saved, maxResidentIds=0)
    assert_same_bits(whole, part)
    users, items = table.user.head(9).tolist(), table.item.head(9).tolist()
    for predictor in (Predictor.load(saved, max_resident_ids=LIMIT), Predictor.load(saved)):
        found = predictor.predict(users, items)
        pd.testing.assert_frame_equal(found, Predictor(whole.state, {}, 1).predict(users, items))
    with pytest.raises(StorageError, match="save to another path"):
        again.write().overwrite().save(saved)
    part.write().overwrite().save(saved)
    commit = next((saved / "version" / "commits").iterdir())
    commit.write_bytes((path / "commits" / commit.name).read_bytes())
    with pytest.raises(StorageError, match="version"):
        StreamingBiasedALSModel.load(saved)


def test_goes_on(path, spark, stream, files, table, tmp_path):
    """By a stream onto another path, with few rows in memory, as the whole model does."""
    folder = files(table.tail(1000), 250)
    schema = f"user {'long' if table.user.dtype.kind == 'i' else 'string'}, item long, "
    schema += "rating double, time long"
    models = []
    for limit in (LIMIT, 0):
        model = StreamingBiasedALSModel.load(path, maxResidentIds=limit)
        place = str(tmp_path / f"m{limit}")
        job = model.updateStream(stream(folder, schema), place, trigger=ONCE)
        job.awaitTermination()
        # the same start goes on there, as does the path alone
        files(table.tail(1000).head(250), 250, first=4 + bool(not limit))
        job = model.updateStream(stream(folder, schema), place, trigger=ONCE)
        job.awaitTermination()
        models.append(job.model)
    assert models[0].state.partial
    assert not models[1].state.partial
    assert models[0].version == models[1].version - 1 == 5
    state, _ = VersionStore(str(tmp_path / "m0")).load(5)
    assert whole_state(models[0]).fingerprint() == state.fingerprint()
    other = StreamingBiasedALSModel.load(path, maxResidentIds=LIMIT)
    other.update(spark.createDataFrame(table.tail(10)))
    with pytest.raises(ValueError, match="started from model"):
        other.updateStream(stream(folder, schema), str(tmp_path / f"m{LIMIT}"), trigger=ONCE)


@pytest.mark.long
def test_versions(path, spark, stream, files, table, tmp_path):
    """Gone back to and forgotten where they lie, on a path that fitPath made."""
    place = str(tmp_path / "m")
    shutil.copytree(path, place)
    folder = files(table.tail(500), 250)
    schema = f"user {'long' if table.user.dtype.kind == 'i' else 'string'}, item long, "
    schema += "rating double, time long"
    model = StreamingBiasedALSModel
    model.resumeStream(
        stream(folder, schema), place, maxResidentIds=LIMIT, trigger=ONCE
    ).awaitTermination()
    assert model.versions(place).loadable.tolist() == [True] * 3
    expected = whole_state(model.load(place, 1)).fingerprint()
    assert model.rollback(place, 1, reread=False).version == 3
    assert whole_state(model.load(place)).fingerprint() == expected
    part = model.load(place, maxResidentIds=LIMIT)
    gone = table.user.tail(300).unique()[:3].tolist()
    before = part.state.ids[0]
    with pytest.raises(StorageError, match="without a modelPath"):
        part.forget(gone)
    part.forget(gone, modelPath=place)
    assert part.state.partial
    assert part.state.ids[0] == before - 3
    assert all(model.load(place, int(v)).state is not None for v in model.versions(place).version)
    assert np.isfinite(part.predictOne(gone[0], 5))


@pytest.mark.long
def test_a_race_starts_from_it(path, stream, files, table, tmp_path):
    """As from the whole model: candidates have all of it in memory."""
    als = StreamingBiasedALS(timestampCol="time", rank=4)
    search = StreamingGridSearch(
        estimator=als, estimatorParamMaps=ParamGridBuilder().addGrid(als.drift, [0.0, 1e-3]).build()
    )
    folder = files(table.tail(500), 250)
    schema = f"user {'long' if table.user.dtype.kind == 'i' else 'string'}, item long, "
    schema += "rating double, time long"
    found = []
    for limit in (LIMIT, 0):
        start = StreamingBiasedALSModel.load(path, maxResidentIds=limit)
        place = str(tmp_path / f"race{limit}")
        job = search.fitStream(stream(folder, schema), place, trigger=ONCE, initialModel=start)
        job.awaitTermination()
        found.append(job.model)
    assert_same_bits(*found)
