"""Save and load a model as Parquet and JSON through Spark, wherever Spark can write (driver)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReadable, MLReader, MLWriter
from pyspark.sql import SparkSession
from pyspark.sql.utils import is_remote

from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import FORMAT_VERSION, check_format
from sparkml_sgdals.store.version_store import StorageError, VersionStore

__all__ = ["EstimatorWriter", "ModelReader", "ModelWriter"]

_IDS_PER_FILE: Final = 1_000_000
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


M = TypeVar("M", bound=MLReadable[Any])


class _Writer(MLWriter):
    """A writer whose overwrite() works on Spark Connect too."""

    def _handleOverwrite(self, path: str) -> None:
        if is_remote():
            from pyspark.ml.connect.readwrite import RemoteMLWriter

            RemoteMLWriter.handleOverwrite(path, True)
        else:
            super()._handleOverwrite(path)


class EstimatorWriter(_Writer, DefaultParamsWriter):
    """Writes an estimator: Spark's own metadata."""


class ModelWriter(_Writer):
    """Writes a model: Spark's own metadata, and one Parquet folder a side."""

    def __init__(self, model: Savable) -> None:
        super().__init__()
        self.model: Any = model

    def saveImpl(self, path: str) -> None:
        """Write to `path`; the state is in memory, so the path it came from may be replaced."""
        model, spark = self.model, _session(self)
        state = model.state
        extra: dict[str, Any] = {
            "formatVersion": FORMAT_VERSION,
            "settings": state.settings.to_json(),
            "kinds": [state.users.index.kind, state.items.index.kind],
            "idTypes": list(model.idTypes),
            "scalars": state.scalars(),
            "modelVersion": model.version,
            "users": state.users.size,
            "items": state.items.size,
        }
        DefaultParamsWriter.saveMetadata(model, path, spark, extraMetadata=extra)
        for name, side in (("users", state.users), ("items", state.items)):
            ddl = _ddl(side)
            frame = (
                spark.createDataFrame(side.to_arrow())
                if side.size
                else spark.createDataFrame([], ddl)
            )
            files = 1 + side.size // _IDS_PER_FILE
            frame.coalesce(files).write.mode("overwrite").parquet(f"{path}/{name}")


class ModelReader(MLReader[M], Generic[M]):
    """Reads what `ModelWriter` wrote, or the newest version under a model path."""

    def __init__(
        self, model_class: Any, from_store: Callable[[VersionStore, int | None], M]
    ) -> None:
        super().__init__()
        self.model_class = model_class
        self.from_store = from_store

    def load(self, path: str, version: int | None = None) -> M:
        """Load the model at `path`.

        Raises
        ------
        StorageError
            nothing readable is there, it is damaged, or of another format
        """
        store = _version_store(path)
        if store is not None:
            return self.from_store(store, version)
        if version is not None:
            raise StorageError(f"{path} is a saved model, not a model path: it has no versions.")
        spark = _session(self)
        expected = f"{self.model_class.__module__}.{self.model_class.__name__}"
        try:
            metadata = DefaultParamsReader.loadMetadata(path, spark, expectedClassName=expected)
        except AssertionError as other:
            raise StorageError(f"{path} holds something else: {other}") from other
        except (PySparkException, ValueError, KeyError) as failure:
            raise StorageError(
                f"There is no readable model at {path}: {str(failure).splitlines()[0]}"
            ) from failure
        try:
            check_format(metadata["formatVersion"], f"The model at {path}")
            state = _read_state(spark, path, metadata)
        except StorageError:
            raise
        except Exception as failure:  # Spark's own type differs by way and release
            raise StorageError(
                f"The model at {path} is damaged: {str(failure).splitlines()[0]}"
            ) from failure
        model = self.model_class(state, tuple(metadata["idTypes"]), metadata["modelVersion"])
        model._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(model, metadata)
        loaded: M = model
        return loaded


def _read_state(spark: SparkSession, path: str, metadata: dict[str, Any]) -> ModelState:
    state = ModelState.empty(Settings.from_json(metadata["settings"]), *metadata["kinds"])
    state.set_scalars(metadata["scalars"])
    for name, side in (("users", state.users), ("items", state.items)):
        _read_side(spark, f"{path}/{name}", side)
        if side.size != metadata[name]:
            raise ValueError(f"{name} has {side.size} ids, the metadata says {metadata[name]}")
    return state


def _ddl(side: FactorTable) -> str:
    return ", ".join(f"{field.name} {_SQL_TYPES[field.type]}" for field in side.schema())


def _read_side(spark: SparkSession, path: str, side: FactorTable) -> None:
    ddl = _ddl(side)
    table = spark.read.schema(ddl).parquet(path).toArrow()
    if table.num_rows:
        side.put_arrow(table)


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
