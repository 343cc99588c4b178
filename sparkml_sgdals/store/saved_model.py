"""A saved model: what is checked of it whoever reads it, and a reader without Spark, by pyarrow.

`ml.persistence` writes it: Spark's metadata, one row of JSON, and a Parquet folder a side. The
metadata say the fingerprint of the state, a digest of each stored column, and a digest of
themselves, so whatever is changed or exchanged does not fit, and is named. What was saved before
there were digests lacks all of them, and is read without.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import FORMAT_VERSION, check_format
from sparkml_sgdals.store.described import meta_digest
from sparkml_sgdals.store.objects import Location, ObjectStore
from sparkml_sgdals.store.version_store import VersionStore

__all__ = [
    "IN_RUNS",
    "SavedModel",
    "checked_metadata",
    "described",
    "first_line",
    "is_saved",
    "naming",
    "read_saved",
    "refuse_model_path",
    "saved_class",
    "saved_in_runs",
    "saved_path",
    "sealed",
    "state_of",
]

IN_RUNS: Final = "version"
"""The folder under a saved model that holds it as a model path, where it was not in memory."""
_CLASS: Final = "sparkml_sgdals.StreamingBiasedALSModel"
_SEAL: Final = frozenset(("fingerprint", "contents", "sha256"))
_TYPES: Final[dict[str, type]] = {
    "uid": str, "sparkVersion": str, "paramMap": dict, "defaultParamMap": dict,
}  # fmt: skip
_MODEL_TYPES: Final[dict[str, type]] = {
    "formatVersion": int, "settings": dict, "kinds": list, "idTypes": list, "scalars": dict,
    "modelVersion": int, "users": int, "items": int,
}  # fmt: skip
_ROWS: Final = 250_000
"""of which digests are taken at a time"""

Read = Callable[[str, FactorTable], Iterable[pa.Table]]


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


# ---- what is written ------------------------------------------------------------------------


def described(state: ModelState, id_types: tuple[str, str], version: int) -> dict[str, Any]:
    """Return what the metadata of a model say beside Spark's own fields."""
    scalars = json.loads(json.dumps(state.scalars()))
    # a number of NumPy's is told otherwise than the same one read from JSON
    stored = replace(state)
    stored.set_scalars(scalars)
    return {
        "formatVersion": FORMAT_VERSION,
        "settings": state.settings.to_json(),
        "kinds": [state.users.index.kind, state.items.index.kind],
        "idTypes": list(id_types),
        "scalars": scalars,
        "modelVersion": version,
        "users": state.users.size,
        "items": state.items.size,
        "fingerprint": stored.fingerprint(),
        "contents": {name: _column_digests(side) for name, side in _sides(state)},
    }


def sealed(text: str) -> str:
    """Return metadata, as JSON, with a digest of all their fields."""
    metadata = json.loads(text)
    return json.dumps(metadata | {"sha256": meta_digest(metadata)}, separators=(",", ":"))


def refuse_model_path(path: Location) -> None:
    """See that nothing is saved where a stream keeps its versions.

    Raises
    ------
    StorageError
        a model path, whether or not a stream writes to it now
    """
    try:
        store = ObjectStore(path)
        found = store.read("model.json") is not None or bool(store.names("commits"))
    except (OSError, ValueError, ImportError):
        # of a scheme that only Spark can write: no stream of ours has its versions there
        return
    if found:
        raise StorageError(
            f"{path} is the model path of a stream: saving there would delete or mix up its "
            "versions and its checkpoint. Save to another path; to start anew there, stop the "
            "stream and delete the folder first."
        )


# ---- what is read ---------------------------------------------------------------------------


def checked_metadata(text: str | bytes, path: str, expected: str = _CLASS) -> dict[str, Any]:
    """Return the metadata that were saved at a path.

    Parameters
    ----------
    text : str | bytes
        as they were read
    path : str
        of the model
    expected : str
        full name of the class to load

    Raises
    ------
    StorageError
        they are damaged, or of another class
    """
    with naming(f"{path}/metadata"):
        found: Any = json.loads(text)
        if not isinstance(found, dict) or not isinstance(found.get("class"), str):
            raise ValueError("it names no class")
        # before all that a flipped bit may pretend, another format among it
        if "sha256" in found and found["sha256"] != meta_digest(found):
            raise ValueError("its checksum does not fit")
        other = found["class"]
        if other != expected:
            raise StorageError(
                f"{path} holds a {other}, not a {expected}: load it with "
                f"{other.rpartition('.')[2]}.load(path)."
            )
        _check_types(found, _TYPES)
    metadata: dict[str, Any] = found
    return metadata


def state_of(metadata: dict[str, Any], path: str, read: Read) -> ModelState:
    """Return the state of a saved model, compared with its digests.

    Parameters
    ----------
    metadata : dict[str, Any]
        from `checked_metadata`
    path : str
        where it was saved
    read : Read
        called with the name of a side and its empty table, gives what is stored of it

    Raises
    ------
    StorageError
        it is of another format, or damaged
    """
    with naming(f"{path}/metadata"):
        check_format(metadata["formatVersion"], f"The model at {path}")
        seal = _SEAL & metadata.keys()
        if seal and seal != _SEAL:
            raise ValueError(f"it lacks {', '.join(sorted(_SEAL - seal))}")
        _check_types(metadata, _MODEL_TYPES)
        if [type(name) for name in metadata["idTypes"]] != [str, str]:
            raise ValueError(f"idTypes are {metadata['idTypes']}")
        state = ModelState.empty(Settings.from_json(metadata["settings"]), *metadata["kinds"])
        state.set_scalars(metadata["scalars"])
    alike = bool(seal)
    for name, side in _sides(state):
        with naming(f"{path}/{name}"):
            _fill(side, read(name, side), metadata[name])
            if not seal:
                continue
            found, said = _column_digests(side), metadata["contents"][name]
            odd = [c for c in said if c in found and found[c] != said[c]]
            if odd:
                raise ValueError(f"column {', '.join(odd)} is not what was saved")
            # a release that remembers more of an id, or less, tells another fingerprint
            alike = alike and said.keys() == found.keys()
    if alike and state.fingerprint() != metadata["fingerprint"]:
        raise StorageError(_damaged(path, "its fingerprint is not that of what was saved"))
    return state


def is_saved(path: Location) -> bool:
    """Whether there is what `model.save(path)` writes, of whatever class.

    Raises
    ------
    StorageError
        the folder may not be read
    """
    return bool(_parts(ObjectStore(path), "metadata"))


def saved_class(path: Location) -> str | None:
    """Return the full name of the class that was saved to a path, None where nothing tells it."""
    store = ObjectStore(path)
    try:
        found = json.loads(b"".join(_read(store, name) for name in _parts(store, "metadata")))
        return str(found["class"])
    except (ValueError, KeyError, TypeError):
        return None


def read_saved(path: str) -> SavedModel:
    """Return the model that was saved to `path`, local or a URI of pyarrow.fs.

    Raises
    ------
    StorageError
        nothing readable is there, it is damaged, or of another format
    """
    store, metadata = ObjectStore(path), _metadata(path)
    if "inRuns" in metadata:
        state, _ = saved_in_runs(path, metadata).load()
        return SavedModel(state, metadata)
    state = state_of(metadata, path, lambda name, _side: _tables(store, name, metadata[name]))
    return SavedModel(state, metadata)


def _metadata(path: str) -> dict[str, Any]:
    store = ObjectStore(path)
    parts = _parts(store, "metadata")
    if not parts:
        raise StorageError(f"There is no readable model at {path}: look whether the path is right.")
    return checked_metadata(b"".join(_read(store, name) for name in parts), path)


def saved_in_runs(path: str, metadata: dict[str, Any]) -> VersionStore:
    """Return the model path in a saved model that was not in memory.

    Parameters
    ----------
    path : str
        of the saved model
    metadata : dict[str, Any]
        from `checked_metadata`

    Raises
    ------
    StorageError
        it is missing, or another one than was saved
    """
    store = VersionStore(f"{path}/{IN_RUNS}")
    newest = store.newest()
    if newest is None or newest.digest != metadata["inRuns"]:
        raise StorageError(_damaged(store.path, "it is not what was saved"))
    return store


def saved_path(path: str) -> tuple[str, dict[str, Any]] | None:
    """Return the model path in a saved model, and its metadata; None where it has none.

    Raises
    ------
    StorageError
        nothing readable is there, or it is damaged
    """
    metadata = _metadata(path)
    return (saved_in_runs(path, metadata).path, metadata) if "inRuns" in metadata else None


def first_line(failure: BaseException) -> str:
    """Return what an error says, without the traces that Spark adds."""
    lines = [line.strip(" :.") for line in str(failure).splitlines() if line.strip(" :.")]
    if len(lines) > 1 and lines[0].startswith("An error occurred while calling"):
        return lines[1]
    return lines[0] if lines else type(failure).__name__


@contextmanager
def naming(place: str, state: str = "is damaged") -> Iterator[None]:
    """Say of which file or folder an error inside is: damage shows as errors of any type."""
    try:
        yield
    except StorageError:
        raise
    except Exception as failure:
        raise StorageError(_damaged(place, first_line(failure), state)) from failure


def _damaged(place: str, why: str, state: str = "is damaged") -> str:
    return f"{place} {state}: {why}. Restore it from a copy, or save the model again."


def _check_types(metadata: dict[str, Any], types: dict[str, type]) -> None:
    for name, wanted in types.items():
        value = metadata[name]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}")


def _sides(state: ModelState) -> tuple[tuple[str, FactorTable], tuple[str, FactorTable]]:
    return ("users", state.users), ("items", state.items)


def _fill(side: FactorTable, tables: Iterable[pa.Table], count: int) -> None:
    rows = 0
    for table in tables:
        table.validate(full=True)
        rows += table.num_rows
        if table.column("id").null_count:
            raise ValueError("an id is null")
        if table.num_rows and rows <= count:
            side.put_arrow(table)
    if rows != count or side.size != count:
        raise ValueError(f"it holds {rows} rows of {side.size} ids, {count} were saved")


def _column_digests(side: FactorTable) -> dict[str, str]:
    """SHA-256 of each stored column, rows by id, however they are cut into files."""
    ids = side.index.ids()
    order = pa.compute.array_sort_indices(ids).to_numpy(zero_copy_only=False).astype(np.int64)
    hashes = {name: (hashlib.sha256(), hashlib.sha256()) for name in side.schema().names}
    for first in range(0, side.size, _ROWS):
        part = side.to_arrow(order[first : first + _ROWS])
        for name, (lengths, values) in hashes.items():
            column = part.column(name).combine_chunks()
            if pa.types.is_list(column.type):
                lengths.update(_bytes(pa.compute.list_value_length(column)))
                column = column.flatten()
            if pa.types.is_string(column.type):
                lengths.update(_bytes(pa.compute.binary_length(column)))
                values.update("".join(column.to_pylist()).encode())
            else:
                values.update(_bytes(column))
    return {
        name: hashlib.sha256(lengths.digest() + values.digest()).hexdigest()
        for name, (lengths, values) in hashes.items()
    }


def _bytes(column: pa.Array) -> bytes:
    return bytes(column.to_numpy(zero_copy_only=False).tobytes())


def _parts(store: ObjectStore, folder: str) -> list[str]:
    """Names of the files that Spark wrote to a folder."""
    try:
        names = store.names(folder)
    except OSError as failure:
        raise StorageError(_unread(f"{store.path}/{folder}", failure)) from failure
    return [f"{folder}/{name}" for name in names if name.startswith("part-")]


def _read(store: ObjectStore, name: str) -> bytes:
    try:
        return store.read(name) or b""
    except OSError as failure:
        raise StorageError(_unread(f"{store.path}/{name}", failure)) from failure


def _unread(place: str, failure: OSError) -> str:
    return f"{place} could not be read: {first_line(failure)}. Look after the storage."


def _tables(store: ObjectStore, folder: str, count: int) -> Iterator[pa.Table]:
    for name in _parts(store, folder):
        payload = pa.BufferReader(_read(store, name))
        # Spark notes a checksum of each page: what is damaged is not unpacked
        file = pq.ParquetFile(payload, page_checksum_verification=True)
        if not 0 <= file.metadata.num_rows <= count:
            raise ValueError(f"{name} says it holds {file.metadata.num_rows} rows of {count}")
        yield file.read()
