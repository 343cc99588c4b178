"""Save and load a model as Parquet and JSON through Spark, wherever Spark can write (driver)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.ml.util import (
    DefaultParamsReadable,
    DefaultParamsReader,
    DefaultParamsWriter,
    MLReadable,
    MLReader,
    MLWriter,
)
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.utils import is_remote

from sparkml_sgdals.spark_jobs import local_threads
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.large.rewriting import copy_version
from sparkml_sgdals.store.objects import Location, same_place
from sparkml_sgdals.store.saved_model import (
    IN_RUNS,
    checked_metadata,
    described,
    first_line,
    is_saved,
    naming,
    refuse_model_path,
    saved_in_runs,
    sealed,
    state_of,
)
from sparkml_sgdals.store.version_store import StorageError, VersionStore

__all__ = ["EstimatorReader", "EstimatorWriter", "ModelReader", "ModelWriter", "Picklable"]

_IDS_PER_FILE: Final = 1_000_000
_UNREADABLE: Final = "is damaged or cannot be read"
_SQL_TYPES: Final = {
    pa.string(): "string",
    pa.int64(): "bigint",
    pa.float32(): "float",
    pa.list_(pa.int64()): "array<bigint>",
    pa.list_(pa.float32()): "array<float>",
}


class Savable(Protocol):
    """What the writer has to know of a model."""

    version: int

    @property
    def state(self) -> ModelState: ...

    @property
    def idTypes(self) -> tuple[str, str]: ...


class Picklable:
    """A model that pickle and joblib take as it is, but for what belongs to a session."""

    _of_session = ("_frames", "_serving", "_predictor")

    def __getstate__(self) -> dict[str, Any]:
        """Return the model's fields; an unpickled one makes the others again."""
        return self.__dict__ | dict.fromkeys(self._of_session)

    def __copy__(self) -> Any:
        """Return what Params.copy begins with: a twin that shares all, also of the session."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin


E = TypeVar("E", bound=DefaultParamsReadable[Any])
M = TypeVar("M", bound=MLReadable[Any])


class _Writer(MLWriter):
    """A writer whose overwrite() works on Spark Connect too, and spares a stream's versions."""

    def save(self, path: Location) -> None:
        """Write to `path`.

        Raises
        ------
        StorageError
            a stream keeps its versions there
        """
        refuse_model_path(path)
        self._refuse_own(os.fspath(path))
        super().save(os.fspath(path))

    def _refuse_own(self, path: str) -> None:
        """See that what is to be saved does not lie there."""

    def _handleOverwrite(self, path: str) -> None:
        if is_remote():
            from pyspark.ml.connect.readwrite import RemoteMLWriter

            RemoteMLWriter.handleOverwrite(path, True)
        else:
            super()._handleOverwrite(path)

    def _write_metadata(self, instance: Any, path: str, extra: dict[str, Any]) -> None:
        """Write what `DefaultParamsWriter.saveMetadata` does, with a digest of it."""
        spark = _session(self)
        text = sealed(DefaultParamsWriter._get_metadata_to_save(instance, spark, extra))
        frame = spark.createDataFrame([(text,)], "value string")
        frame.coalesce(1).write.text(f"{path}/metadata")
        _see_written(spark, path, spark.read.text(f"{path}/metadata"), 1)


class EstimatorWriter(_Writer, DefaultParamsWriter):
    """Writes an estimator: Spark's own metadata."""

    def saveImpl(self, path: str) -> None:
        """Write to `path`."""
        self._write_metadata(self.instance, path, {})


class ModelWriter(_Writer):
    """Writes a model: Spark's own metadata, and one Parquet folder a side."""

    def __init__(self, model: Savable) -> None:
        super().__init__()
        self.model: Any = model

    def saveImpl(self, path: str) -> None:
        """Write to `path`; the state is in memory, so the path it came from may be replaced."""
        model, spark = self.model, _session(self)
        state = model.state
        if model._stored is not None:
            self._copy(path)
            return
        self._write_metadata(model, path, described(state, model.idTypes, model.version))
        for name, side in (("users", state.users), ("items", state.items)):
            ddl = _ddl(side)
            frame = (
                spark.createDataFrame(side.to_arrow())
                if side.size
                else spark.createDataFrame([], ddl)
            )
            files = 1 + side.size // _IDS_PER_FILE
            frame.coalesce(files).write.mode("overwrite").parquet(f"{path}/{name}")
            written = spark.read.schema("id string").parquet(f"{path}/{name}")
            _see_written(spark, path, written, side.size)

    def _refuse_own(self, path: str) -> None:
        stored = self.model._stored
        if stored is not None and f"{same_place(stored.store.path)}/".startswith(
            f"{same_place(path)}/"
        ):
            raise StorageError(
                f"The model is read from {stored.store.path}, which saving to {path} would delete: "
                "save to another path."
            )

    def _copy(self, path: str) -> None:
        """Write a model that is read where it lies: copies of its files, as a model path."""
        model, stored = self.model, self.model._stored
        target = VersionStore(f"{path}/{IN_RUNS}")
        meta = model._meta() | {
            "settings": model.state.settings.to_json(),
            "kinds": list(model._kinds()),
            "origin": f"saved {stored.fingerprint()}",
            "pathId": uuid.uuid4().hex,
        }
        commit = copy_version(stored, target, meta)
        extra = {"modelVersion": model.version, "inRuns": commit.digest}
        self._write_metadata(model, path, extra)
        if not is_saved(path):
            target.delete_folder("")
            raise StorageError(
                f"Spark writes {path} to another place than this process: name it as a full URI, "
                "such as hdfs://host/path or s3a://bucket/path."
            )


class EstimatorReader(DefaultParamsReader[E], Generic[E]):
    """Reads what `EstimatorWriter` wrote."""

    def load(self, path: Location) -> E:
        """Return the estimator at `path`.

        Raises
        ------
        StorageError
            nothing readable is there, it is damaged, or something else
        """
        path = os.fspath(path)
        if _version_store(path) is not None:
            raise StorageError(
                f"{path} is the model path of a stream, not a saved estimator: load the model with "
                "StreamingBiasedALSModel.load(path)."
            )
        metadata = _read_metadata(_session(self), path, self.cls)
        estimator: Any = self.cls()
        _set_params(estimator, metadata, path)
        loaded: E = estimator
        return loaded


class ModelReader(MLReader[M], Generic[M]):
    """Reads what `ModelWriter` wrote, or the newest version under a model path."""

    def __init__(
        self, model_class: Any, from_store: Callable[[VersionStore, int | None, int | None], M]
    ) -> None:
        super().__init__()
        self.model_class = model_class
        self.from_store = from_store

    def load(
        self, path: Location, version: int | None = None, maxResidentIds: int | None = None
    ) -> M:
        """Load the model at `path`.

        Parameters
        ----------
        path : Location
            of a saved model, or a model path
        version : int | None
            of a model path, the newest by default
        maxResidentIds : int | None
            users and items of it in memory, where the rest can be read; by default as it was set

        Raises
        ------
        StorageError
            nothing readable is there, it is damaged, or of another format
        """
        path = os.fspath(path)
        store = _version_store(path)
        if store is not None:
            return self.from_store(store, version, maxResidentIds)
        if version is not None:
            raise StorageError(f"{path} is a saved model, not a model path: it has no versions.")
        spark = _session(self)
        metadata = _read_metadata(spark, path, self.model_class)
        if "inRuns" in metadata:
            held: Any = self.from_store(saved_in_runs(path, metadata), None, maxResidentIds)
            held.version, held._path_id = metadata["modelVersion"], None
            _set_params(held, metadata, path)
            in_runs: M = held
            return in_runs
        state = state_of(metadata, path, partial(_read_side, spark, path))
        model = self.model_class(state, tuple(metadata["idTypes"]), metadata["modelVersion"])
        _set_params(model, metadata, path)
        loaded: M = model
        return loaded


def _see_written(spark: SparkSession, path: str, written: DataFrame, rows: int) -> None:
    """See that what tasks have written on a cluster is where the driver reads."""
    if not local_threads(spark) and written.count() != rows:
        raise StorageError(
            f"Nothing usable was saved at {path}: what executors write there is not what the "
            "driver finds, as it is a folder of each machine's own. Save to one that they share, "
            "such as a URI of an object store or HDFS; a model path of a stream may be the "
            "driver's own."
        )


def _read_metadata(spark: SparkSession, path: str, expected: type[Any]) -> dict[str, Any]:
    with naming(f"{path}/metadata", _UNREADABLE):
        try:
            rows = spark.read.text(f"{path}/metadata").collect()
        except AnalysisException as missing:
            raise StorageError(
                f"There is no readable model at {path}: {first_line(missing)}"
            ) from missing
    # whole, so that a row too many does not pass for a model
    text = "\n".join(row["value"] for row in rows)
    return checked_metadata(text, path, f"{expected.__module__}.{expected.__name__}")


def _set_params(instance: Any, metadata: dict[str, Any], path: str) -> None:
    instance._resetUid(metadata["uid"])
    try:
        DefaultParamsReader.getAndSetParams(instance, metadata)
    except Exception as failure:
        raise StorageError(
            f"{path}/metadata holds Params that this release does not take: {first_line(failure)}. "
            "Load it by the release that saved it, or save the model again."
        ) from failure


def _ddl(side: FactorTable) -> str:
    return ", ".join(f"{field.name} {_SQL_TYPES[field.type]}" for field in side.schema())


def _read_side(spark: SparkSession, path: str, name: str, side: FactorTable) -> list[pa.Table]:
    reader = spark.read.schema(_ddl(side))
    # Spark notes a checksum of each page, and looks at it where it is told to
    reader = reader.option("parquet.page.verify-checksum.enabled", "true")
    with naming(f"{path}/{name}", _UNREADABLE):
        return [reader.parquet(f"{path}/{name}").toArrow()]


def _version_store(path: str) -> VersionStore | None:
    """Return the versions at a path, None where it is none or of a scheme only for Spark."""
    try:
        store = VersionStore(path)
        return store if store.meta() is not None else None
    except (OSError, ValueError, ImportError) as failure:
        if isinstance(failure, StorageError):
            raise
        return None


def _session(io: Any) -> SparkSession:
    session: SparkSession = io.sparkSession
    return session
