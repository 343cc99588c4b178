"""Ids as a caller has them, in lists, arrays and columns, and how many of them (no Spark)."""

from __future__ import annotations

import datetime
import numbers
import uuid
import warnings
from collections.abc import Iterable, Iterator, MappingView
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type

__all__ = ["given_ids", "is_scalar", "listed", "lists_ids", "several", "whole_count"]


def given_ids(ids: Iterable[Any], kind: IdKind, side: str) -> pa.Array:
    """Ids as int64 or string, null where one is missing.

    Parameters
    ----------
    ids : Iterable[Any]
        a list, a NumPy array, a column of pandas, Polars or Arrow, or anything else to go through
    kind : IdKind
        of the model's ids
    side : str
        "user" or "item", for messages

    Raises
    ------
    TypeError
        ids of another kind, or too large
    """
    words = {"int": "whole numbers", "str": "strings"}
    try:
        given = _array(ids)
    except (pa.ArrowException, OverflowError) as failure:
        raise TypeError(
            f"Ids of {side}s are {words[kind]} in this model, and those given are not all of one "
            f"kind or too large: {failure}"
        ) from failure
    held = pa.types.is_string(given.type) if kind == "str" else pa.types.is_integer(given.type)
    if pa.types.is_floating(given.type) and kind == "int":
        # where an id is missing, pandas has made floats of all of them
        values = given.to_numpy(zero_copy_only=False)
        held = bool(np.all(np.isnan(values) | (values == np.floor(values))))
        given = pa.array(values, from_pandas=True)
    if not held and not pa.types.is_null(given.type):
        raise TypeError(
            f"Ids of {side}s are {words[kind]} in this model, got {given.type}: convert them."
        )
    try:
        return given.cast(id_array_type(kind))
    except pa.ArrowInvalid as failure:
        raise TypeError(f"Ids of {side}s have to fit into a bigint: {failure}") from failure


def lists_ids(given: Any) -> bool:
    """Whether this is a list, an array or a column of ids alone, not a table."""
    if isinstance(given, np.ndarray):
        return given.ndim == 1 and given.dtype.names is None
    if isinstance(given, (list, tuple, set, frozenset)):
        return all(is_scalar(one) for one in given)
    columns = (pd.Series, pd.Index, pd.api.extensions.ExtensionArray, pa.Array, pa.ChunkedArray)
    # of Polars and pandas on Spark
    return isinstance(given, (*columns, range)) or type(given).__name__ in ("Series", "Index")


def listed(given: Any) -> Any:
    """Return what can be gone through only once, or cannot be indexed, as a list; else itself."""
    once = isinstance(given, (Iterator, MappingView))
    # an open file, or Arrow's stream of batches, is more than its values
    whole = hasattr(given, "read") or hasattr(given, "__arrow_c_stream__")
    return list(given) if once and not whole else given


def several(given: Any, what: str) -> Any:
    """Return what a caller has of several ids, or lists of them, so that it has a length.

    Raises TypeError for one alone: the letters of a text are no ids.
    """
    if given is None or is_scalar(given):
        one = given.item() if isinstance(given, (np.generic, np.ndarray)) else given
        raise TypeError(f"{what} are given as a list, got {one!r}: write [{one!r}].")
    found = listed(given)
    return found if hasattr(found, "__len__") else list(found)


def whole_count(what: str, given: Any) -> int:
    """Return a number of things as an int.

    Raises
    ------
    TypeError
        it is no whole number
    ValueError
        it is below 1
    """
    number = isinstance(given, (int, float, np.number)) and not isinstance(given, bool)
    if not number or given != np.floor(given):
        raise TypeError(f"{what} must be a whole number, got {given!r}.")
    if given < 1:
        raise ValueError(f"{what} must be at least 1, got {given}.")
    return int(given)


def is_scalar(value: Any) -> bool:
    """Whether this is one value, such as an id, or none."""
    if isinstance(value, np.ndarray):
        return value.ndim == 0
    kinds = (str, bytes, numbers.Number, np.generic, datetime.date, uuid.UUID)
    return value is None or isinstance(value, kinds)


def _array(ids: Iterable[Any]) -> pa.Array:
    """Ids as one Arrow array, string where they are text of whatever form."""
    if type(ids).__module__.startswith("pyspark.pandas"):
        with warnings.catch_warnings():
            # that all of it comes here: a list of ids is asked for
            warnings.simplefilter("ignore")
            ids = ids.to_numpy()  # type: ignore[attr-defined]
    if not isinstance(ids, (pa.Array, pa.ChunkedArray, np.ndarray, pd.Series)):
        ids = pa.chunked_array(ids) if hasattr(ids, "__arrow_c_stream__") else list(ids)
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    given = ids if isinstance(ids, pa.Array) else pa.array(ids, from_pandas=True)
    if pa.types.is_dictionary(given.type):
        given = given.dictionary_decode()
    is_text = pa.types.is_large_string(given.type) or pa.types.is_string_view(given.type)
    return given.cast(pa.string()) if is_text else given
