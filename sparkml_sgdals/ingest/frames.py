"""Tables of other libraries, and rows in lists, as Spark DataFrames and back (driver).

What is small and plain is converted: frames of pandas, Polars and Arrow, NumPy arrays, rows in
lists. For the rest an error shows the line to write.
"""

from __future__ import annotations

import os
import sys
import uuid
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import from_arrow_type

from sparkml_sgdals.arrays.given_ids import is_scalar, listed, lists_ids
from sparkml_sgdals.ingest.columns import OWN, quoted
from sparkml_sgdals.spark_jobs import active_session

__all__ = ["Table", "as_arrow", "as_frame", "as_stream", "as_table", "is_spark", "like_given"]

Table = Any
"""A DataFrame of Spark, pandas, pandas on Spark or Polars, an Arrow table, or rows: `as_frame`."""

_ROWS: Final = (tuple, list, np.ndarray)
_MOST_COLUMNS: Final = 10
"""Of an array of ratings, where more are those of a matrix."""
_MOST_BYTES: Final = 2**27
"""Of a table that goes through the driver, where Spark has a gigabyte unless told otherwise."""


def is_spark(given: Any) -> bool:
    """Whether this is a DataFrame of Spark's own, of a classic session or of Spark Connect."""
    return isinstance(given, DataFrame)


def as_table(given: Any, what: str, names: Sequence[str], instead: str) -> DataFrame:
    """Return a table as a DataFrame; see `as_frame`.

    Parameters
    ----------
    given, what, names
        as `as_frame` takes them
    instead : str
        what to do where it is a stream, as a clause

    Raises
    ------
    ValueError
        it is a stream
    TypeError
        it is no table that can be converted
    """
    frame = as_frame(given, what, names)
    if frame.isStreaming:
        whose = "The DataFrame" if what == "dataset" else f"The DataFrame {what}"
        raise ValueError(f"{whose} is a stream: {instead}.")
    return frame


def as_stream(given: Any, instead: str) -> DataFrame:
    """Return a stream as it is.

    Raises
    ------
    ValueError
        it is a table: `instead` says what to do, as a clause
    TypeError
        it is no DataFrame of Spark's
    """
    if not isinstance(given, DataFrame):
        raise TypeError(
            "A stream is a DataFrame that spark.readStream gives, got "
            f"{_told(given)}: {instead} for a table."
        )
    if not given.isStreaming:
        raise ValueError(
            f"The DataFrame is a table, not a stream: read it with spark.readStream, or {instead}."
        )
    return given


def as_frame(given: Any, what: str, names: Sequence[str]) -> DataFrame:
    """Return a DataFrame, converted where it is another kind of table.

    Parameters
    ----------
    given : Any
        a DataFrame of Spark, pandas, pandas on Spark or Polars, an Arrow table, a NumPy array, a
        dict of columns, or rows as tuples or dicts
    what : str
        the parameter, for messages
    names : Sequence[str]
        columns of rows that have no names: tuples, and arrays of two dimensions

    Raises
    ------
    TypeError
        it is no table that can be converted
    """
    if isinstance(given, DataFrame):
        return given
    if _is_pandas_on_spark(given):
        levels = _named_levels(given)
        with warnings.catch_warnings():
            # that the rest of the index is lost, which holds no column of ratings
            warnings.simplefilter("ignore")
            spark_frame: DataFrame = (given.reset_index(levels) if levels else given).to_spark()
        return spark_frame
    return _sent(as_arrow(given, what, names), what)


def like_given(given: Any, names: Sequence[str], use: Callable[[DataFrame], DataFrame]) -> Any:
    """Return `use` of a table, in the kind that the table is, in its order and with its index.

    Parameters
    ----------
    given : Any
        as `as_frame` takes it; lists and arrays come back as a pandas DataFrame
    names : Sequence[str]
        as `as_frame` takes them
    use : Callable[[DataFrame], DataFrame]
        keeps the columns of its argument, may leave rows out and adds columns
    """
    if is_spark(given):
        return use(given)
    if _is_pandas_on_spark(given):
        kept = [f"{OWN}index_{n}" for n in range(given.index.nlevels)]
        sent, levels = given.to_spark(index_col=kept), _named_levels(given)
        for n, name in enumerate(given.index.names):
            if name in levels:
                sent = sent.withColumn(name, sent[kept[n]])
        back = use(sent).drop(*levels).pandas_api(index_col=kept)
        back.index.names = given.index.names
        return back
    given = listed(given)
    table = as_arrow(given, "dataset", names)
    line = f"{OWN}line_{uuid.uuid4().hex[:12]}"
    numbered = table.append_column(line, pa.array(np.arange(table.num_rows)))
    found = use(_sent(numbered, "dataset"))
    news = [name for name in found.columns if name not in numbered.column_names]
    added = found.select(line, *[quoted(name) for name in news]).toArrow().sort_by(line)
    rows = added.column(line).to_numpy()
    added = added.drop_columns(line)
    if isinstance(given, pd.DataFrame):
        frame = given.iloc[rows].copy()
        for name in news:
            frame[name] = added.column(name).to_numpy()
        return frame
    back = table.take(pa.array(rows))
    for name in news:
        back = back.append_column(name, added.column(name))
    if _comes_from(given, "polars"):
        return sys.modules["polars"].from_arrow(back)
    return back if isinstance(given, pa.Table) else back.to_pandas()


def _sent(table: pa.Table, what: str) -> DataFrame:
    if table.nbytes > _MOST_BYTES:
        raise TypeError(
            f"{what} has {table.num_rows:,} rows, {table.nbytes / 2**20:,.0f} MiB, and up to "
            f"{_MOST_BYTES / 2**20:.0f} MiB are sent to Spark from here: write it as Parquet and "
            "give spark.read.parquet(path), or leave out columns that are not needed."
        )
    spark = active_session()
    if not table.num_rows:
        # Spark Connect takes no types from a table without rows
        nothing = [pa.nulls(1, field.type) for field in table.schema]
        return spark.createDataFrame(pa.table(nothing, names=table.column_names)).limit(0)
    return spark.createDataFrame(table)


def as_arrow(given: Any, what: str, names: Sequence[str]) -> pa.Table:
    """Return a table in memory as Arrow, in types that Spark has."""
    try:
        found = _as_it_is(listed(given), what, names)
    except pa.ArrowException as failure:
        raise TypeError(f"{what} cannot be read as an Arrow table: {failure}") from failure
    lengths = {name: len(column) for name, column in found}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Columns of {what} are not of one length: {lengths}.")
    columns = []
    for name, column in found:
        try:
            columns.append(_plain(_column(column)))
        except (pa.ArrowException, PySparkException, AttributeError) as failure:
            kind = getattr(column, "dtype", getattr(column, "type", "object"))
            why = "not all of one type" if kind == "object" else f"of type {kind}"
            raise TypeError(
                f"Column {name!r} of {what} is {why}, which Spark has no type for ({failure}). "
                f"Convert it, e.g. to text: {what}[{name!r}].astype(str), or leave it out: "
                f"{what}[{[*names]}]."
            ) from failure
    return pa.Table.from_arrays(columns, [name for name, _ in found])


def _as_it_is(given: Any, what: str, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Return the columns of a table in memory as they are, each with its name."""
    if isinstance(given, pd.DataFrame):
        # one by one: a frame may have two columns of one name, as a Spark table may
        own = [(str(name), given.iloc[:, n]) for n, name in enumerate(given.columns)]
        levels = _named_levels(given)
        return own + [(name, given.index.get_level_values(name)) for name in levels]
    if isinstance(given, np.ndarray):
        return _of_array(given, what, names)
    if isinstance(given, dict) and given and not any(is_scalar(one) for one in given.values()):
        return [(str(name), column) for name, column in given.items()]
    if isinstance(given, (list, tuple)) and given:
        return _of_rows(given, what, names)
    if hasattr(given, "__arrow_c_stream__") and not lists_ids(given):
        table = pa.table(given)
        return list(zip(table.column_names, table.columns, strict=True))
    raise TypeError(_no_table(given, what, names))


def _named_levels(given: Any) -> list[str]:
    """Levels of an index that have names of their own: what groupby and set_index make of ids."""
    return [
        name for name in given.index.names if isinstance(name, str) and name not in given.columns
    ]


def _of_array(given: np.ndarray, what: str, names: Sequence[str]) -> list[tuple[str, Any]]:
    if given.dtype.names is not None:
        return [(name, given[name]) for name in given.dtype.names]
    if given.ndim != 2 or not min(2, len(names)) <= given.shape[1] <= len(names):
        raise TypeError(_no_table(given, what, names))
    return [(name, given[:, n]) for n, name in enumerate(names[: given.shape[1]])]


def _of_rows(given: Sequence[Any], what: str, names: Sequence[str]) -> list[tuple[str, Any]]:
    if all(isinstance(row, dict) for row in given):
        found = list(dict.fromkeys(name for row in given for name in row))
        return [(str(name), [row.get(name) for row in given]) for name in found]
    first = given[0]
    # Row of Spark, and named tuples
    own = getattr(first, "__fields__", None) or getattr(first, "_fields", None)
    width = len(first) if isinstance(first, _ROWS) else 0
    wanted = list(own or names[:width])
    same = all(isinstance(row, _ROWS) and len(row) == width for row in given)
    if not same or width < min(2, len(names)) or len(wanted) != width:
        raise TypeError(_no_table(given, what, names))
    return [(name, [row[n] for row in given]) for n, name in enumerate(wanted)]


def _column(column: Any) -> pa.ChunkedArray:
    """Return a column of whatever library as Arrow's."""
    if isinstance(column, pa.ChunkedArray):
        return column
    if isinstance(getattr(column, "dtype", None), pd.SparseDtype):
        column = np.asarray(column)
    return pa.chunked_array([pa.array(column, from_pandas=True)])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column in a type that Spark has."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        try:
            whole = [chunk.dictionary_decode() for chunk in column.chunks]
        except pa.ArrowNotImplementedError:
            return _by_value(column)
        return _plain(pa.chunked_array(whole, kind.value_type))
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            return pa.chunked_array([[one and str(one) for one in column.to_pylist()]], pa.string())
        return _plain(pa.chunked_array([one.storage for one in column.chunks], kind.storage_type))
    wider = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64()}
    wider |= {pa.uint64(): pa.decimal128(20, 0), pa.float16(): pa.float32()}
    wider |= {pa.string_view(): pa.string(), pa.large_string(): pa.string()}
    if kind in wider:
        return column.cast(wider[kind])
    try:
        from_arrow_type(kind)
    except PySparkException:
        return _by_value(column)
    return column


def _by_value(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of a type that is but another way to hold its values, within lists too."""
    plain = pa.chunked_array([pa.array(column.to_pylist())])
    from_arrow_type(plain.type)
    return plain


def _no_table(given: Any, what: str, names: Sequence[str]) -> str:
    """Return what to write for something that is no table, or not plainly one."""
    columns = [*names]
    start = f"{what} must be a table with the columns {', '.join(columns)}, got {_told(given)}: "
    if isinstance(given, (str, os.PathLike)):
        path = os.fspath(given)
        reader = (
            "parquet({!r})"
            if str(path).endswith(".parquet")
            else ("csv({!r}, header=True, inferSchema=True)")
        )
        return f"{start}read it with spark.read.{reader.format(str(path))}."
    if _comes_from(given, "scipy"):
        three = ["row", "col", "data"]
        pairs = ", ".join(f"{n!r}: m.{own}" for n, own in zip(columns, three, strict=False))
        return f"{start}with m = {what}.tocoo(), give pandas.DataFrame({{{pairs}}})."
    if hasattr(given, "collect") and _comes_from(given, "polars"):
        return f"{start}give {what}.collect()."
    if hasattr(given, "compute"):
        return f"{start}give {what}.compute()."
    if hasattr(given, "toDF"):
        return f"{start}give {what}.toDF({columns})."
    if lists_ids(given) and len(given):
        return f"{start}give the whole table, not one column of it."
    if isinstance(given, (list, tuple, np.ndarray)):
        rows = np.ndim(given) > 0 if isinstance(given, np.ndarray) else bool(given)
        width = len(given[0]) if rows and isinstance(given[0], _ROWS) else len(columns)
        if width > _MOST_COLUMNS and isinstance(given, np.ndarray) and len(columns) > 1:
            # of users by items
            values = f", {columns[2]!r}: {what}[u, i]" if len(columns) > 2 else ""
            pairs = f"{{{columns[0]!r}: u, {columns[1]!r}: i{values}}}"
            return f"{start}with u, i = {what}.nonzero(), give pandas.DataFrame({pairs})."
        columns = [*columns, *[f"other{n}" for n in range(1, width - len(columns) + 1)]][:width]
        return f"{start}name its columns, e.g. pandas.DataFrame({what}, columns={columns})."
    return f"{start}make a DataFrame of it, e.g. spark.createDataFrame(rows, {columns})."


def _told(given: Any) -> str:
    """Return what something is, in a few words."""
    if isinstance(given, np.ndarray):
        return f"a NumPy array of shape {given.shape}"
    if isinstance(given, (list, tuple)) and not given:
        return f"an empty {type(given).__name__}"
    if isinstance(given, (list, tuple)) and given:
        first = given[0]
        if isinstance(first, _ROWS):
            return f"a {type(given).__name__} of rows of {len(first)} values"
        return f"a {type(given).__name__} of {type(first).__name__}"
    kind = type(given)
    library = kind.__module__.partition(".")[0]
    name = kind.__name__ if library == "builtins" else f"{library}'s {kind.__name__}"
    return f"{given!r}" if is_scalar(given) else f"a {name}" if library == "builtins" else name


def _comes_from(given: Any, library: str) -> bool:
    return type(given).__module__.partition(".")[0] == library


def _is_pandas_on_spark(given: Any) -> bool:
    return type(given).__module__.startswith("pyspark.pandas.frame")
