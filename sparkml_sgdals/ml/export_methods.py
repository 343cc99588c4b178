"""What a model writes for others that search its vectors (driver)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from pyspark.sql import SparkSession

from sparkml_sgdals.predict.vector_files import WRITERS, VectorFormat, export_in_place
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.vectors import describe_vectors, vector_table
from sparkml_sgdals.store.objects import Location, ObjectStore, full_path
from sparkml_sgdals.store.overlay import Overlay

__all__ = ["ExportMethods", "VectorFormat"]

_ABOUT: Final = "vectors.json"


class ExportMethods:
    """Methods of the model that write its vectors."""

    version: int
    _state: ModelState
    _stored: Overlay | None
    _session: Callable[[], SparkSession]

    def exportVectors(self, path: Location, format: VectorFormat = "parquet") -> None:
        """Write the vectors of all users and items, whose inner product predicts.

        Of ratings mean + product is the prediction, as `transform` gives it without clipping; the
        mean is in vectors.json beside them. Of events (implicitPrefs) the product is the part of
        the score that is one, that of tastes.

        Parameters
        ----------
        path : Location
            a new folder or URI; the driver writes. Of a model that is read from its path tasks
            write, each a part of users or of items, and all of them have to see it
        format : VectorFormat
            "parquet": users.parquet and items.parquet with id and vector; "milvus": the same, as
            its bulk import takes it; "pgvector": CSV for COPY; "qdrant": points as lines of JSON;
            "faiss": matrices of NumPy and ids beside them. Parts are users/part-00000.parquet ...

        Raises
        ------
        ValueError
            another format, or there are vectors at the path, or files where parts go
        StorageError
            it cannot be written, or the driver does not see what tasks have written
        """
        if format not in WRITERS:
            raise ValueError(f"format must be one of {', '.join(WRITERS)}, got {format!r}.")
        store = ObjectStore(full_path(path))
        if store.read(_ABOUT) is not None:
            raise ValueError(f"There are vectors at {path}: choose another path, or delete them.")
        state = self._state
        about = describe_vectors(state.settings, state.scale)
        if self._stored is None:
            for name, side in (("users", state.users), ("items", state.items)):
                WRITERS[format](store, name, vector_table(side, state.scale))
        else:
            about["parts"] = export_in_place(self._session(), self._stored, store, format)
        about |= {"format": format, "version": self.version, "metric": "inner product"}
        # last: where it is, all is
        store.write(_ABOUT, json.dumps(about, indent=1).encode())
