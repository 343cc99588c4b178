"""Ids as they come in over HTTP, and as the model knows them."""

from __future__ import annotations

import re
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.id_index import IdIndex
from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type

__all__ = ["Key", "find_rows", "key_of", "storable"]

Key = int | str
I64 = npt.NDArray[np.int64]

_BITS: Final = {"tinyint": 8, "smallint": 16, "int": 32}
_WHOLE: Final = re.compile(r"-?[0-9]{1,19}")


def key_of(given: Key, kind: IdKind) -> Key | None:
    """Return an id of the model's kind; None where `given` cannot be one."""
    if kind == "str":
        return str(given)
    if isinstance(given, str):
        if not _WHOLE.fullmatch(given):
            return None
        given = int(given)
    return given if -(2**63) <= given < 2**63 else None


def storable(given: Key, kind: IdKind, spark_type: str) -> Key | None:
    """Return an id that the stream can read as a column of `spark_type`; None where it cannot."""
    key = key_of(given, kind)
    bits = _BITS.get(spark_type)
    if isinstance(key, int) and bits is not None and not -(1 << (bits - 1)) <= key < 1 << bits - 1:
        return None
    return key


def find_rows(index: IdIndex, given: list[Key], size: int) -> I64:
    """Rows of ids, -1 for what cannot be one, is not known, or came after the first `size`."""
    keys = [key_of(one, index.kind) for one in given]
    rows = np.full(len(keys), -1, np.int64)
    can_be = [n for n, key in enumerate(keys) if key is not None]
    if can_be:
        wanted = pa.array([keys[n] for n in can_be], id_array_type(index.kind))
        rows[can_be] = index.find(wanted)
        rows[rows >= size] = -1
    return rows
