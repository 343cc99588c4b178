"""What a model writes for others that search its vectors (driver)."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.vectors import describe_vectors, vector_table
from sparkml_sgdals.store.large.opening import refuse_whole
from sparkml_sgdals.store.objects import Location, ObjectStore, full_path

__all__ = ["ExportMethods", "VectorFormat"]

VectorFormat = Literal["parquet", "pgvector", "qdrant", "milvus", "faiss"]

_ABOUT: Final = "vectors.json"
_NAMES: Final = uuid.UUID("6c0e4b7e-5d0b-5a41-9a1e-0d3c1f3f7a52")


class ExportMethods:
    """Methods of the model that write its vectors."""

    version: int
    _state: ModelState

    def exportVectors(self, path: Location, format: VectorFormat = "parquet") -> None:
        """Write the vectors of all users and items, whose inner product predicts.

        Of ratings mean + product is the prediction, as `transform` gives it without clipping; the
        mean is in vectors.json beside them. Of events (implicitPrefs) the product is the part of
        the score that is one, that of tastes.

        Parameters
        ----------
        path : Location
            a new folder or URI; the driver writes
        format : VectorFormat
            "parquet": users.parquet and items.parquet with id and vector; "milvus": the same, as
            its bulk import takes it; "pgvector": CSV for COPY; "qdrant": points as lines of JSON;
            "faiss": matrices of NumPy and ids beside them

        Raises
        ------
        ValueError
            another format, or there are vectors at the path
        StorageError
            it cannot be written, or the model is read where it lies
        """
        if format not in _WRITERS:
            raise ValueError(f"format must be one of {', '.join(_WRITERS)}, got {format!r}.")
        store = ObjectStore(full_path(path))
        if store.read(_ABOUT) is not None:
            raise ValueError(f"There are vectors at {path}: choose another path, or delete them.")
        state = self._state
        refuse_whole(state, "To export vectors")
        for name, side in (("users", state.users), ("items", state.items)):
            _WRITERS[format](store, name, vector_table(side, state.scale))
        about = describe_vectors(state.settings, state.scale)
        about |= {"format": format, "version": self.version, "metric": "inner product"}
        # last: where it is, all is
        store.write(_ABOUT, json.dumps(about, indent=1).encode())


def _write_parquet(store: ObjectStore, name: str, table: pa.Table) -> None:
    store.write_table(f"{name}.parquet", table)


def _write_csv(store: ObjectStore, name: str, table: pa.Table) -> None:
    """Lines of id and vector, as PostgreSQL reads them: a float has digits enough to come back."""
    ids = table.column("id").to_pylist()
    if pa.types.is_string(table.column("id").type):
        ids = ['"' + one.replace('"', '""') + '"' for one in ids]
    lines = [
        f'{one},"[{",".join(map(str, row))}]"\n'
        for one, row in zip(ids, _matrix(table), strict=True)
    ]
    store.write(f"{name}.csv", "".join(lines).encode())


def _write_points(store: ObjectStore, name: str, table: pa.Table) -> None:
    """Ids of points are whole numbers from 0 or UUIDs: others are in the payload."""
    lines = []
    rows = table.column("vector").to_pylist()
    for one, row in zip(table.column("id").to_pylist(), rows, strict=True):
        point = one if isinstance(one, int) and one >= 0 else str(uuid.uuid5(_NAMES, repr(one)))
        lines.append(json.dumps({"id": point, "vector": row, "payload": {"id": one}}) + "\n")
    store.write(f"{name}.jsonl", "".join(lines).encode())


def _write_matrix(store: ObjectStore, name: str, table: pa.Table) -> None:
    ids = table.column("id")
    arrays = {name: _matrix(table)}
    # faiss knows numbers alone
    numbers = not pa.types.is_string(ids.type)
    arrays[f"{name}-ids"] = ids.to_numpy() if numbers else np.array(ids.to_pylist(), np.str_)
    for what, array in arrays.items():
        held = io.BytesIO()
        np.save(held, array, allow_pickle=False)
        store.write(f"{what}.npy", held.getvalue())


def _matrix(table: pa.Table) -> Any:
    flat = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, -1).astype(np.float32)


_WRITERS: Final[dict[str, Callable[[ObjectStore, str, pa.Table], None]]] = {
    "parquet": _write_parquet,
    "milvus": _write_parquet,
    "pgvector": _write_csv,
    "qdrant": _write_points,
    "faiss": _write_matrix,
}
