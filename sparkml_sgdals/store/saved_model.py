"""Read a saved model without Spark: what `ml.persistence` writes, by pyarrow."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import check_format
from sparkml_sgdals.store.objects import ObjectStore

__all__ = ["SavedModel", "is_saved", "read_saved"]

_CLASS = "sparkml_sgdals.StreamingBiasedALSModel"


@dataclass(frozen=True)
class SavedModel:
    """A saved model: its state, and what Spark's metadata say of it."""

    state: ModelState
    metadata: dict[str, Any]

    @property
    def params(self) -> dict[str, Any]:
        """Params by name, defaults included."""
        found: dict[str, Any] = self.metadata["defaultParamMap"] | self.metadata["paramMap"]
        return found


def is_saved(path: str) -> bool:
    """Whether there is what `model.save(path)` writes, of whatever class."""
    return bool(_parts(ObjectStore(path), "metadata"))


def read_saved(path: str) -> SavedModel:
    """Return the model that was saved to `path`, local or a URI of pyarrow.fs.

    Raises
    ------
    StorageError
        nothing readable is there, it is damaged, or of another format
    """
    store = ObjectStore(path)
    metadata = _metadata(store)
    if metadata.get("class") != _CLASS:
        raise StorageError(f"{path} holds a {metadata.get('class')}, not a {_CLASS}.")
    try:
        check_format(metadata["formatVersion"], f"The model at {path}")
        state = ModelState.empty(Settings.from_json(metadata["settings"]), *metadata["kinds"])
        state.set_scalars(metadata["scalars"])
        for name, side in (("users", state.users), ("items", state.items)):
            _read_side(store, name, side)
            if side.size != metadata[name]:
                raise ValueError(f"{name} has {side.size} ids, the metadata says {metadata[name]}")
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as failure:
        raise StorageError(
            f"The model at {path} is damaged: {str(failure).splitlines()[0]}"
        ) from failure
    return SavedModel(state, metadata)


def _parts(store: ObjectStore, folder: str) -> list[str]:
    """Names of the files that Spark wrote to a folder."""
    return [f"{folder}/{name}" for name in store.names(folder) if name.startswith("part-")]


def _metadata(store: ObjectStore) -> dict[str, Any]:
    try:
        payloads = [store.read(name) or b"" for name in _parts(store, "metadata")]
        found: dict[str, Any] = json.loads(b"".join(payloads))
    except (OSError, ValueError) as failure:
        raise StorageError(
            f"There is no readable model at {store.path}: {str(failure).splitlines()[0]}"
        ) from failure
    return found


def _read_side(store: ObjectStore, folder: str, side: FactorTable) -> None:
    for name in _parts(store, folder):
        table = pq.read_table(pa.BufferReader(store.read(name) or b""))
        if table.num_rows:
            side.put_arrow(table)
