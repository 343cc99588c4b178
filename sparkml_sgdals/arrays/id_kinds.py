"""The two kinds of ids, integers and strings, and their Arrow types (no Spark)."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

__all__ = ["IdKind", "id_array_type"]

IdKind = Literal["int", "str"]


def id_array_type(kind: IdKind) -> pa.DataType:
    """Return the Arrow type of ids of a kind: int64 or string."""
    return pa.int64() if kind == "int" else pa.string()
