"""Streams: same bits whatever stops them, metrics of every batch, one writer, bad rows kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import IN_RUNS_NIGHTLY, ONCE, assert_same_bits, long_after, rmse
from pyspark.ml.feature import SQLTransformer

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.errors import LeaseError
from sparkml_sgdals.ingest import collecting
from sparkml_sgdals.ingest.columns import RatingColumns, select_ratings
from sparkml_sgdals.ingest.plain_batches import plain_batches
from sparkml_sgdals.store.version_store import StorageError, VersionStore
from sparkml_sgdals.stream.residents import forget_resident
from sparkml_sgdals.stream.start import METRICS


@pytest.fixture
def als():
    return StreamingBiasedALS(timestampCol="time", rank=4)


def run(job):
    job.awaitTermination()
    return job


def kill_session(leader):
    """SIGKILL to every process of a session: Python, its JVM and the workers of that."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                os.kill(int(folder.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue


def classic_environment():
    """The environment of a program with a classic session of its own."""
    marks = ("SPARK_CONNECT", "SPARK_REMOTE", "SPARK_LOCAL_REMOTE", "SPARK_API_MODE", "PYSPARK_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(marks)}
    return kept | {"PYSPARK_PYTHON": sys.executable}


@pytest.fixture(scope="module")
def undisturbed(stream, small, tmp_path_factory):
    """A model that learned eight files of `small` without a stop, and its metrics."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "in").mkdir()
    for number in range(8):
        file = folder / "in" / f"{number}.csv"
        small.iloc[500 * number : 500 * (number + 1)].to_csv(file, index=False)
        os.utime(file, (10**9 + number, 10**9 + number))
    als = StreamingBiasedALS(timestampCol="time", rank=4)
    job = run(als.fitStream(stream(str(folder / "in")), str(folder / "whole"), trigger=ONCE))
    return job.model, job.metrics()


class TestFitStream:
    def test_learns_like_updates_by_hand(self, als, files, stream, small, spark, tmp_path):
        folder = files(small, 700)
        job = run(als.fitStream(stream(folder), str(tmp_path / "m"), trigger=ONCE))
        first, *others = [small.iloc[s : s + 700] for s in range(0, len(small), 700)]
        by_hand = als.fitStream(stream(folder), str(tmp_path / "n"), trigger=ONCE)
        run(by_hand)
        model = StreamingBiasedALSModel.load(str(tmp_path / "n"), version=1)
        for part in others:
            model.update(spark.createDataFrame(part))
        assert_same_bits(job.model, model)
        assert len(first) == 700

    def test_what_is_told_of_batches(self, als, files, stream, small, spark, tmp_path):
        path, told = str(tmp_path / "m"), tmp_path / "told"
        told.mkdir()

        def write(metrics, folder=str(told)):
            Path(folder, f"{metrics['batch']}.json").write_text(json.dumps(metrics))

        job = run(
            als.fitStream(
                stream(files(small, 1000)), path, trigger=ONCE, onBatch=write,
                prometheusPath=str(tmp_path), metricsTable=True,
            )
        )  # fmt: skip
        metrics = job.metrics(window=1000)
        heard = [json.loads((told / f"{n}.json").read_text()) for n in range(4)]
        assert [row["rmse"] for row in heard[1:]] == metrics.rmse.tolist()[1:]
        assert metrics.windowRmse.tolist()[1:] == pytest.approx(metrics.rmse.tolist()[1:])
        assert metrics.within2.iloc[-1] > 0.8
        assert -3 < metrics.logLikelihood.iloc[-1] < 0
        assert metrics.newUserShare[0] == 1.0
        assert metrics.newUserShare[3] < 0.2
        table = spark.read.parquet(f"file:{path}/metrics").orderBy("batch").toPandas()
        assert table.rmse.tolist()[1:] == metrics.rmse.tolist()[1:]
        assert "sgdals_ratings_learned_total 4000" in (tmp_path / "metrics.prom").read_text()

    def test_metrics(self, undisturbed, small):
        _, metrics = undisturbed
        assert tuple(metrics.columns) == METRICS
        assert metrics.batch.tolist() == list(range(8))
        assert metrics.version.tolist() == list(range(1, 9))
        assert metrics.ratings.sum() == len(small)
        assert metrics.newUsers.sum() == small.user.nunique()
        assert metrics.newItems.sum() == small.item.nunique()
        assert np.isnan(metrics.rmse[0])
        assert metrics.rmse[1:].between(0.3, 1.5).all()
        assert metrics.baselineRmse[1:].between(0.3, 1.5).all()
        assert metrics.validationRmse.isna().all()
        assert metrics.committed.is_monotonic_increasing

    def test_rmse_is_from_before_learning(self, files, stream, small, spark, tmp_path, als):
        run(als.fitStream(stream(files(small, 1000)), str(tmp_path / "m"), trigger=ONCE))
        before = StreamingBiasedALSModel.load(str(tmp_path / "m"), version=2)
        metrics = VersionStore(str(tmp_path / "m")).metrics()
        assert metrics[2]["rmse"] == pytest.approx(
            rmse(before, small.iloc[2000:3000], spark), rel=1e-4
        )

    @pytest.mark.long
    def test_validation_goes_on_after_a_restart(self, als, files, stream, small, spark, tmp_path):
        held = small.sample(300, random_state=5)
        validation = spark.createDataFrame(held)
        path = str(tmp_path / "m")
        folder = files(small.iloc[:2000], 500)
        job = run(als.fitStream(stream(folder), path, trigger=ONCE, validation=validation))
        files(small.iloc[2000:], 500, first=4)
        job = run(als.fitStream(stream(folder), path, trigger=ONCE))
        metrics = job.metrics()
        assert metrics.validationRmse.notna().all()
        assert len(metrics) == 8
        assert metrics.validationRmse.iloc[-1] < metrics.validationRmse.iloc[0]
        assert metrics.validationRmse.iloc[-1] == pytest.approx(
            rmse(job.model, held, spark), rel=1e-5
        )

    def test_validation_may_come_with_a_restart(self, als, files, stream, small, spark, tmp_path):
        """Regression: the process that had run the path before went on without it."""
        path, folder = str(tmp_path / "m"), files(small.iloc[:1000], 500)
        run(als.fitStream(stream(folder), path, trigger=ONCE))
        files(small.iloc[1000:1500], 500, first=2)
        validation = spark.createDataFrame(small.tail(200))
        job = run(als.fitStream(stream(folder), path, trigger=ONCE, validation=validation))
        assert job.metrics().validationRmse.notna().tolist() == [False, False, True]

    @pytest.mark.parametrize("solver", long_after(1, ["sgd", "minibatch"]))
    def test_other_solvers(self, files, stream, small, spark, tmp_path, solver):
        als = StreamingBiasedALS(
            timestampCol="time", rank=4, solver=solver, stepSize=0.02, blockSize=100
        )
        job = run(als.fitStream(stream(files(small, 500)), str(tmp_path / "m"), trigger=ONCE))
        mean_only = float(np.sqrt(np.mean((small.rating - small.rating.mean()) ** 2)))
        assert rmse(job.model, small, spark) < mean_only

    def test_one_rating_a_batch(self, als, files, stream, small, tmp_path):
        folder = files(small.iloc[:4], 1)
        job = run(als.fitStream(stream(folder), str(tmp_path / "m"), trigger=ONCE))
        assert job.metrics().ratings.tolist() == [1, 1, 1, 1]
        assert np.isfinite(job.model.state.users.mean).all()

    def test_a_relative_path(self, als, files, stream, small, tmp_path, monkeypatch):
        """It is one path, wherever the process that learns may stand."""
        monkeypatch.chdir(tmp_path)
        job = run(als.fitStream(stream(files(small, 2000)), "models/m/", trigger=ONCE))
        assert job.path == str(tmp_path / "models" / "m")
        assert (tmp_path / "models" / "m" / "checkpoint" / "offsets").is_dir()
        assert job.model.version == 2

    def test_without_time(self, files, stream, small, tmp_path):
        folder = files(small[["user", "item", "rating"]], 1000)
        frame = stream(folder, "user string, item int, rating float")
        job = run(StreamingBiasedALS(rank=2).fitStream(frame, str(tmp_path / "m"), trigger=ONCE))
        assert job.model.userFactors.schema["id"].dataType.simpleString() == "string"
        assert job.model.itemFactors.schema["id"].dataType.simpleString() == "int"

    def test_a_batch_too_large_to_collect(
        self, classic_only, als, files, stream, small, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting.COLLECT_LIMIT", 1500)
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting._FIRST_LOOK", 100)
        folder = files(small, 2000)
        job = run(als.fitStream(stream(folder), str(tmp_path / "m"), trigger=ONCE))
        metrics = job.metrics()
        assert metrics.ratings.tolist() == [2000, 2000]
        assert metrics.newUsers.sum() == small.user.nunique()
        assert job.model.state.counters.ratings == len(small)
        assert metrics.rmse.between(0.3, 1.5).all()

    def test_small_batches_of_plain_columns_have_no_plan_of_their_own(
        self, classic_only, als, files, stream, small, tmp_path, monkeypatch
    ):
        """After the first, which tells how many rows there are; to the same bits."""
        selected = collecting._selected
        numbers = []

        def counted(*given):
            numbers.append(given)
            return selected(*given)

        monkeypatch.setattr(collecting, "_selected", counted)
        frame = stream(files(small, 1000))
        plain = run(als.fitStream(frame, str(tmp_path / "plain"), trigger=ONCE))
        assert len(numbers) == 1
        monkeypatch.setattr("sparkml_sgdals.stream.micro_batch.PLAIN_LIMIT", 0)
        chosen = run(als.fitStream(frame, str(tmp_path / "chosen"), trigger=ONCE))
        assert len(numbers) == 5
        assert_same_bits(plain.model, chosen.model)


class TestPlainBatches:
    """Columns cast in Arrow are what Spark's SQL gives."""

    NUMBERS = "1.1, 0.1, -0.0, 1e300, -1e300, 1e-46, 16777217, 3.4028236e38, double('NaN'), NULL"

    @pytest.mark.parametrize(
        ("user", "item", "rating", "time", "weight"),
        [
            ("long", "int", "double", "timestamp", "float"),
            ("short", "byte", "long", "int", "double"),
            ("string", "string", "float", "long", "int"),
        ],
    )
    def test_same_values(self, spark, user, item, rating, time, weight):
        values = f"explode(array({self.NUMBERS})) AS value"
        whole = "CAST(least(greatest(value, -100), 100) AS int)"
        number = {"long": f"9007199791611905 + {whole}", "int": f"16777217 + {whole}"}
        chosen = {
            "user": f"CAST({whole} AS {user})",
            "item": f"CAST(abs({whole}) AS {item})",
            "rating": f"TRY_CAST({number.get(rating, 'value')} AS {rating})",
            "time": f"-1000000007L * {whole}"
            if time != "timestamp"
            else f"timestamp_micros(-1000000007L * {whole})",
            "weight": f"TRY_CAST({number.get(weight, 'value')} AS {weight})",
        }
        if time == "int":
            chosen["time"] = f"CAST({whole} AS int)"
        frame = spark.range(1).selectExpr(values).selectExpr(
            *[f"{value} AS {name}" for name, value in chosen.items()]
        )  # fmt: skip
        columns = RatingColumns("user", "item", "rating", "time", "weight")
        kinds = ("str", "str") if user == "string" else ("int", "int")
        plain = plain_batches(spark, frame.schema, columns, kinds)
        assert plain is not None
        wanted = select_ratings(frame, columns, kinds).toArrow()
        for name, column in zip(wanted.column_names, wanted.columns, strict=True):
            found = plain.of(frame.toArrow()).column(name)
            assert found.type == column.type
            assert found.is_null().equals(column.is_null())
            np.testing.assert_array_equal(
                found.drop_null().to_numpy(), column.drop_null().to_numpy()
            )


@pytest.mark.usefixtures("first_version")
class TestUpdateStream:
    def test_from_a_fitted_model(self, als, files, stream, small, spark, tmp_path):
        model = als.fit(spark.createDataFrame(small.iloc[:2000]))
        mark = model.state.fingerprint()
        folder = files(small.iloc[2000:], 500)
        job = run(model.updateStream(stream(folder), str(tmp_path / "m"), trigger=ONCE))
        assert (model.version, model.state.fingerprint()) == (0, mark)
        assert job.model.version == 4
        by_hand = model.copy()
        for start in range(2000, 4000, 500):
            by_hand.update(spark.createDataFrame(small.iloc[start : start + 500]))
        assert_same_bits(job.model, by_hand)

    def test_resumes_from_an_equal_start_or_from_the_path(
        self, als, files, stream, small, spark, tmp_path
    ):
        path = str(tmp_path / "m")
        base = spark.createDataFrame(small.iloc[:2000])
        folder = files(small.iloc[2000:3000], 500)
        run(als.fit(base).updateStream(stream(folder), path, trigger=ONCE))
        files(small.iloc[3000:3500], 500, first=2)
        run(als.fit(base).updateStream(stream(folder), path, trigger=ONCE))
        files(small.iloc[3500:], 500, first=3)
        loaded = StreamingBiasedALSModel.load(path)
        assert loaded.version == 3
        job = run(loaded.updateStream(stream(folder), path, trigger=ONCE))
        assert job.model.version == 4
        assert job.model.state.counters.ratings == len(small)

    @IN_RUNS_NIGHTLY
    def test_another_start_is_refused(self, als, files, stream, small, spark, tmp_path):
        path, folder = str(tmp_path / "m"), files(small.iloc[:500], 500)
        model = als.fit(spark.createDataFrame(small.iloc[:2000]))
        run(model.updateStream(stream(folder), path, trigger=ONCE))
        with pytest.raises(ValueError, match=r"started from model .* from nothing"):
            als.fitStream(stream(folder), path, trigger=ONCE)
        other = als.fit(spark.createDataFrame(small.iloc[:1000]))
        with pytest.raises(ValueError, match=r"started from model .* from model"):
            other.updateStream(stream(folder), path, trigger=ONCE)

    @IN_RUNS_NIGHTLY
    def test_a_model_of_one_path_does_not_resume_another(self, als, files, stream, small, tmp_path):
        one, other, folder = str(tmp_path / "a"), str(tmp_path / "b"), files(small.iloc[:500], 500)
        run(als.fitStream(stream(folder), one, trigger=ONCE))
        run(als.fitStream(stream(folder), other, trigger=ONCE))
        with pytest.raises(ValueError, match="started from nothing"):
            StreamingBiasedALSModel.load(one).updateStream(stream(folder), other, trigger=ONCE)

    @IN_RUNS_NIGHTLY
    def test_a_lost_checkpoint_is_an_error(self, als, files, stream, small, tmp_path):
        """Batch ids would start at 0 again, and new ratings be taken for replays."""
        path, folder = tmp_path / "m", files(small.iloc[:1000], 500)
        run(als.fitStream(stream(folder), str(path), trigger=ONCE))
        # at once: Spark may be tidying it up still
        (path / "checkpoint").rename(tmp_path / "lost")
        with pytest.raises(StorageError, match=r"up to batch 1.*checkpoint under it is gone"):
            als.fitStream(stream(folder), str(path), trigger=ONCE)

    @IN_RUNS_NIGHTLY
    def test_other_params_are_refused(self, als, files, stream, small, tmp_path):
        path, folder = str(tmp_path / "m"), files(small.iloc[:500], 500)
        run(als.fitStream(stream(folder), path, trigger=ONCE))
        with pytest.raises(ValueError, match=r"learned with rank = 4, now it is 8"):
            als.copy({als.rank: 8}).fitStream(stream(folder), path, trigger=ONCE)
        text = stream(folder, "user string, item long, rating double, time long")
        with pytest.raises(ValueError, match="kinds"):
            als.fitStream(text, path, trigger=ONCE)


class TestExactlyOnce:
    @pytest.mark.usefixtures("first_version")
    def test_stopped_and_started_again(self, als, files, stream, small, undisturbed, tmp_path):
        path = str(tmp_path / "m")
        folder = files(small.iloc[:1500], 500, "parts")
        run(als.fitStream(stream(folder), path, trigger=ONCE))
        files(small.iloc[1500:], 500, "parts", first=3)
        forget_resident(path)
        job = run(als.fitStream(stream(folder), path, trigger=ONCE))
        assert_same_bits(job.model, undisturbed[0])
        pd.testing.assert_series_equal(job.metrics().rmse, undisturbed[1].rmse)

    @IN_RUNS_NIGHTLY
    @pytest.mark.long
    @pytest.mark.usefixtures("first_version")
    def test_killed_after_its_commit_and_before_sparks(
        self, als, files, stream, small, undisturbed, tmp_path
    ):
        """Spark's commit of the last batches is taken away: it replays them."""
        path = tmp_path / "m"
        folder = files(small.iloc[:2000], 500, "parts")
        run(als.fitStream(stream(folder), str(path), trigger=ONCE))
        for batch in (2, 3):
            for name in (f"{batch}", f".{batch}.crc"):
                (path / "checkpoint" / "commits" / name).unlink()
        files(small.iloc[2000:], 500, "parts", first=4)
        job = run(als.fitStream(stream(folder), str(path), trigger=ONCE))
        assert_same_bits(job.model, undisturbed[0])
        assert job.metrics().batch.tolist() == list(range(8))

    @pytest.mark.usefixtures("first_version")
    def test_killed_before_its_commit(self, als, files, stream, small, undisturbed, tmp_path):
        """The files of a version are there, its commit object is not, or only half of it."""
        path = tmp_path / "m"
        folder = files(small.iloc[:2000], 500, "parts")
        run(als.fitStream(stream(folder), str(path), trigger=ONCE))
        for name in ("3", ".3.crc"):
            (path / "checkpoint" / "commits" / name).unlink()
        commit = path / "commits" / "000000000004.json"
        commit.write_bytes(commit.read_bytes()[:200])
        files(small.iloc[2000:], 500, "parts", first=4)
        job = run(als.fitStream(stream(folder), str(path), trigger=ONCE))
        assert_same_bits(job.model, undisturbed[0])

    @IN_RUNS_NIGHTLY
    @pytest.mark.usefixtures("first_version")
    def test_an_error_in_a_batch_leaves_nothing(
        self, classic_only, als, files, stream, small, undisturbed, tmp_path, monkeypatch
    ):
        path, folder = str(tmp_path / "m"), files(small, 500, "parts")
        commit, full = VersionStore.commit, [2]

        def full_disk(self, state, rows, batch, *args, **kwargs):
            if batch in full:
                full.remove(batch)
                raise OSError("no space left on device")
            return commit(self, state, rows, batch, *args, **kwargs)

        monkeypatch.setattr(VersionStore, "commit", full_disk)
        job = als.fitStream(stream(folder), path, trigger=ONCE)
        with pytest.raises(Exception, match="no space left"):
            job.awaitTermination()
        assert job.metrics().batch.tolist() == [0, 1]
        job = run(als.fitStream(stream(folder), path, trigger=ONCE))
        assert_same_bits(job.model, undisturbed[0])

    @pytest.mark.long
    def test_the_process_killed_by_sigkill(self, als, files, stream, small, undisturbed, tmp_path):
        path, folder = tmp_path / "m", files(small, 500, "parts")
        program = tmp_path / "program.py"
        program.write_text(
            textwrap.dedent(
                f"""
                from pyspark.sql import SparkSession
                from sparkml_sgdals import StreamingBiasedALS
                spark = (SparkSession.builder.master("local[1]")
                    .config("spark.ui.enabled", "false").getOrCreate())
                stream = (spark.readStream.schema("user long, item long, rating double, time long")
                    .option("header", True).option("maxFilesPerTrigger", 1).csv({folder!r}))
                als = StreamingBiasedALS(timestampCol="time", rank=4)
                trigger = {{"processingTime": "300 milliseconds"}}
                als.fitStream(stream, {str(path)!r}, trigger=trigger)
                print("started", flush=True)
                import time; time.sleep(600)
                """
            )
        )
        process = subprocess.Popen(
            [sys.executable, str(program)], start_new_session=True, env=classic_environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until = time.monotonic() + 90
            while len(VersionStore(str(path)).numbers()) < 4:
                assert time.monotonic() < until, "the stream did not get going"
                time.sleep(0.02)
        finally:
            kill_session(process.pid)
            process.wait()
        held = json.loads((path / "lease.json").read_text())
        assert held["pid"] == process.pid
        job = run(als.fitStream(stream(folder), str(path), trigger=ONCE))
        assert_same_bits(job.model, undisturbed[0])
        assert job.metrics().batch.tolist() == list(range(8))


@pytest.mark.usefixtures("first_version")
class TestJob:
    @IN_RUNS_NIGHTLY
    def test_a_second_writer_is_refused(self, als, files, stream, small, tmp_path):
        path, folder = str(tmp_path / "m"), files(small.iloc[:500], 500)
        job = als.fitStream(stream(folder), path, trigger={"processingTime": "1 second"})
        try:
            with pytest.raises(LeaseError, match=r"written by .* \(process \d+\) since"):
                als.fitStream(stream(folder), path, trigger=ONCE)
        finally:
            job.stop()
        run(als.fitStream(stream(folder), path, trigger=ONCE))
        assert not (tmp_path / "m" / "lease.json").exists()

    @IN_RUNS_NIGHTLY
    def test_stop_waits_for_the_running_batch(self, als, files, stream, small, tmp_path):
        folder = files(small, 100)
        job = als.fitStream(stream(folder), str(tmp_path / "m"))
        while job.metrics().empty:
            assert not job.awaitTermination(0.1)
        job.stop(drain=True)
        assert not job.query.isActive
        metrics = job.metrics()
        assert 1 <= len(metrics) < 40
        assert metrics.batch.tolist() == list(range(len(metrics)))

    @IN_RUNS_NIGHTLY
    @pytest.mark.long
    def test_old_versions_are_pruned(
        self, classic_only, als, files, stream, small, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("sparkml_sgdals.store.version_store._MIN_ROWS_OF_BASE", 300)
        monkeypatch.setattr("sparkml_sgdals.stream.micro_batch._READERS_SECONDS", 0.0)
        path = str(tmp_path / "m")
        folder = files(small, 100)
        job = run(als.fitStream(stream(folder), path, trigger=ONCE, keepVersions=3))
        assert len(job.metrics()) == 40
        kept = VersionStore(path).numbers()
        assert kept[-1] == 40
        assert len(kept) < 12
        assert StreamingBiasedALSModel.load(path, version=38).version == 38
        with pytest.raises(StorageError, match="does not hold version 1"):
            StreamingBiasedALSModel.load(path, version=1)
        assert_same_bits(StreamingBiasedALSModel.load(path), job.model)

    @IN_RUNS_NIGHTLY
    def test_the_jobs_model_does_not_move_on(self, als, files, stream, small, tmp_path):
        path, folder = str(tmp_path / "m"), files(small.iloc[:1000], 500)
        job = als.fitStream(stream(folder), path, trigger={"processingTime": "100 milliseconds"})
        try:
            while len(job.metrics()) < 2:
                assert not job.awaitTermination(0.1)
            model = job.model
            mark = model.state.fingerprint()
            files(small.iloc[1000:1500], 500, first=2)
            while len(job.metrics()) < 3:
                assert not job.awaitTermination(0.1)
            assert model.state.fingerprint() == mark
            assert job.model.version == 3
        finally:
            job.stop()


class TestBadRows:
    def spoilt(self, small):
        part = small.iloc[:600].copy()
        part["rating"] = part.rating.astype(object)
        part["user"] = part.user.astype("Int64")
        part.iloc[3, 0] = pd.NA
        part.iloc[4, 2] = None
        part.iloc[5, 2] = "NaN"
        part.iloc[6, 2] = "Infinity"
        return part, small.iloc[:600].drop(index=[3, 4, 5, 6])

    def test_are_set_aside_and_kept(self, als, files, stream, small, tmp_path):
        bad, good = self.spoilt(small)
        path = str(tmp_path / "m")
        job = run(als.fitStream(stream(files(bad, 300)), path, trigger=ONCE))
        assert job.metrics().invalid.tolist() == [4, 0]
        assert job.metrics().ratings.tolist() == [296, 300]
        kept = pd.read_parquet(Path(path) / "invalid" / "batch-000000000000.parquet")
        rows = [json.loads(row) for row in kept.row]
        assert len(rows) == 4
        assert {"item", "rating", "time"} == set(rows[0])
        other = str(tmp_path / "n")
        folder = files(good.iloc[:296], 300, "good")
        files(good.iloc[296:], 300, "good", first=1)
        clean = run(als.fitStream(stream(folder), other, trigger=ONCE))
        assert_same_bits(job.model, clean.model)

    @pytest.mark.long
    def test_in_a_batch_too_large_to_collect(
        self, classic_only, als, files, stream, small, tmp_path, monkeypatch
    ):
        """Rows with two faults count once; a batch of nothing but bad rows passes."""
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting.COLLECT_LIMIT", 100)
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting._FIRST_LOOK", 50)
        bad, _ = self.spoilt(small)
        bad.iloc[3, 2] = None
        hopeless = bad.iloc[:200].assign(user=pd.NA)
        path = str(tmp_path / "m")
        folder = files(hopeless, 200)
        files(bad, 600, first=1)
        job = run(als.fitStream(stream(folder), path, trigger=ONCE))
        assert job.metrics().invalid.tolist() == [200, 4]
        assert job.metrics().ratings.tolist() == [0, 596]

    def test_a_batch_of_nothing_else_leaves_a_line_in_the_log(
        self, classic_only, als, files, stream, small, tmp_path, caplog
    ):
        hopeless = small[:40].assign(rating=np.nan)
        path = str(tmp_path / "m")
        folder = files(hopeless, 40)
        files(small[:40], 40, first=1)
        with caplog.at_level("WARNING", "sparkml_sgdals"):
            job = run(als.fitStream(stream(folder), path, trigger=ONCE))
        assert job.metrics().ratings.tolist() == [0, 40]
        (line,) = [one for one in caplog.messages if "nothing was learned" in one]
        assert line == (
            f"batch 0: nothing was learned, all 40 rows were set aside under {path}/invalid: "
            "ratingCol 'rating' is null, NaN or infinite in 40 rows"
        )

    def test_stop_the_stream_where_asked(self, als, files, stream, small, tmp_path):
        bad, _ = self.spoilt(small)
        strict = als.copy({als.handleInvalid: "error"})
        job = strict.fitStream(stream(files(bad, 300)), str(tmp_path / "m"), trigger=ONCE)
        with pytest.raises(Exception, match="userCol 'user' is null in 1 row"):
            job.awaitTermination()
        assert job.model.version == 0

    def test_missing_column(self, als, files, stream, small, tmp_path):
        frame = stream(files(small, 1000), "user long, film long, rating double, time long")
        with pytest.raises(ValueError, match="itemCol 'item' is not a column"):
            als.fitStream(frame, str(tmp_path / "m"))
        assert not (tmp_path / "m").exists()

    def test_a_table_is_no_stream(self, als, ratings, tmp_path):
        with pytest.raises(ValueError, match="is a table, not a stream"):
            als.fitStream(ratings, str(tmp_path / "m"))
        with pytest.raises(ValueError, match="is a table, not a stream"):
            als.fit(ratings).updateStream(ratings, str(tmp_path / "m"))

    def test_a_saved_model_is_no_model_path(self, als, ratings, files, stream, small, tmp_path):
        """Nothing is started beside it, nor written."""
        saved, folder = tmp_path / "saved", files(small.iloc[:500], 500)
        model = als.fit(ratings)
        model.save(str(saved))
        before = sorted(saved.rglob("*"))
        remedy = r"saved model.*another path.*load\(path\)\.updateStream\(stream, other\)"
        for start in (als.fitStream, model.updateStream):
            with pytest.raises(ValueError, match=remedy):
                start(stream(folder), str(saved), trigger=ONCE)
        assert sorted(saved.rglob("*")) == before
        loaded = StreamingBiasedALSModel.load(str(saved))
        job = run(loaded.updateStream(stream(folder), str(tmp_path / "other"), trigger=ONCE))
        assert job.model.state.counters.ratings == len(small) + 500

    @pytest.mark.parametrize(
        ("source", "path", "how"),
        [
            ("{}/in", "{}/in", "is"), ("file://{}/in", "{}/in", "is"),
            ("{}/in", "file:{}/in", "is"), ("{}/link", "{}/in", "is"),
            ("{}/in", "{}/in/model", "lies in"), ("{}/in", "{}", "holds"),
            ("{}/in/*.csv", "{}/in", "is"), ("{}/in/*.csv", "{}", "holds"),
        ],
    )  # fmt: skip
    def test_a_model_path_where_the_stream_reads(
        self, als, files, stream, small, tmp_path, source, path, how
    ):
        """Refused before anything is written."""
        files(small.iloc[:500], 500)
        (tmp_path / "link").symlink_to(tmp_path / "in")
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match=rf"model path .* {how} the folder .*Choose a model"):
            als.fitStream(stream(source.format(tmp_path)), path.format(tmp_path), trigger=ONCE)
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_stream_that_spark_does_not_plan_beforehand(
        self, als, files, stream, small, tmp_path
    ):
        """One that a SQLTransformer made: it runs, and its source is known all the same."""
        folder = files(small.iloc[:500], 500)
        made = SQLTransformer(statement="SELECT * FROM __THIS__").transform(stream(folder))
        with pytest.raises(ValueError, match=r"lies in the folder .*Choose a model path"):
            als.fitStream(made, f"{folder}/model", trigger=ONCE)
        job = run(als.fitStream(made, str(tmp_path / "m"), trigger=ONCE))
        assert job.model.state.counters.ratings == 500

    @pytest.mark.parametrize("source", ["{}/in", "{}/i[n]"])
    def test_a_model_path_beside_where_the_stream_reads(
        self, als, files, stream, small, tmp_path, source
    ):
        files(small.iloc[:500], 500)
        path = str(tmp_path / "in-model")
        job = run(als.fitStream(stream(source.format(tmp_path)), path, trigger=ONCE))
        assert job.model.state.counters.ratings == 500

    def test_own_files_are_not_learned(self, als, files, stream, small, tmp_path, monkeypatch):
        """Found at the first batch, where the plan does not tell the source's folder."""
        monkeypatch.setattr("sparkml_sgdals.stream.paths._sources", lambda stream: [])
        path = tmp_path / "m o\u00e4%20del"
        path.mkdir()
        folder = Path(files(small.iloc[:500], 500)).rename(path / "in")
        job = als.fitStream(stream(str(folder)), str(path), trigger=ONCE)
        with pytest.raises(Exception, match=r"lies under the model path .*Choose a model path"):
            job.awaitTermination()
        assert VersionStore(str(path)).numbers() == [0]

    def test_damaged_path(self, als, files, stream, small, tmp_path):
        path, folder = tmp_path / "m", files(small.iloc[:1000], 500)
        job = run(als.fitStream(stream(folder), str(path), trigger=ONCE))
        damaged = tmp_path / "damaged"
        shutil.copytree(path, damaged)
        (damaged / "model.json").write_text("{")
        with pytest.raises(StorageError, match=r"model.json is damaged"):
            als.fitStream(stream(folder), str(damaged), trigger=ONCE)
        (part,) = (path / "files").glob("000000000002-*-items.parquet")
        content = bytearray(part.read_bytes())
        content[50] ^= 1
        part.write_bytes(content)
        with pytest.raises(StorageError, match=r"checksum does not fit.*load\(path, version=n\)"):
            StreamingBiasedALSModel.load(str(path))
        assert StreamingBiasedALSModel.load(str(path), version=1).version == 1
        assert job.path == str(path)


def test_a_streaming_table_is_scored(als, ratings, files, stream, small, spark, tmp_path):
    """transform takes a stream of pairs as it takes a table."""
    model = als.fit(ratings)
    scored = model.transform(stream(files(small.iloc[:100], 100)))
    query = scored.writeStream.format("memory").queryName("scored").trigger(**ONCE).start()
    query.awaitTermination()
    found = spark.table("scored").toPandas()
    assert len(found) == 100
    assert found.prediction.notna().all()
