"""The columns of a row: what is remembered of an id is described here and nowhere else (no Spark).

A column of every id is one line of `FactorColumns`; what events leave with an item besides is in
`event_memory`. Tables in memory, Arrow, packed rows, blocks, the service's maps, copies for other
ranks and Spark's schema of saved models all follow from these lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import id_keys, start_factors
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "Column", "ColumnSet", "FactorColumns", "bound_features", "grown", "list_column",
    "prior_variances", "start_means", "widest_starts",
]  # fmt: skip

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

_WIDEST: Final = 6.0
"""prior deviations"""

A = TypeVar("A", bound=Array)

Start = Callable[[Settings, int, pa.Array], Any]


class Column(Generic[A]):
    """One column, and as an attribute of a `ColumnSet` its array.

    Parameters
    ----------
    width : int | Callable[[Settings], int] | None
        numbers an id, from the settings; 1 for a matrix of one column, stored as a number; None for
        an array of one dimension, stored as a number
    stored : str
        name in files, by default that of the attribute
    dtype : npt.DTypeLike
        float32 or int64
    start : float | Start
        of a new id: a number, or a function of settings, side and ids
    unit : Literal['mean', 'offset', 'variance', 'none']
        how it follows the unit of ratings: "mean" as biases b and features f, which become (b +
        shift) r and f sqrt(r), "offset" the same without a shift, "variance" by the squares, "none"
        not at all
    used : Callable[[Settings], bool]
        whether models of these settings learn it; others keep it as it starts
    predicts : bool
        whether predictions depend on it, not further learning alone
    told : bool
        whether the fingerprint of a model tells it also where all ids are as they start
    """

    def __init__(
        self,
        width: int | Callable[[Settings], int] | None,
        *,
        stored: str = "",
        dtype: npt.DTypeLike = np.float32,
        start: float | Start = 0.0,
        unit: Literal["mean", "offset", "variance", "none"] = "none",
        used: Callable[[Settings], bool] = lambda _: True,
        predicts: bool = False,
        told: bool = True,
    ) -> None:
        self.name = ""
        self.stored = stored
        self.dtype = np.dtype(dtype)
        self.used = used
        self.predicts = predicts
        self.told = told
        self._width = width
        self._start = start
        self._unit = unit

    def __set_name__(self, owner: type, name: str) -> None:
        """Take the name of the attribute, and store the column by it unless told otherwise."""
        self.name = name
        self.stored = self.stored or name

    @overload
    def __get__(self, holder: None, owner: type) -> Column[A]: ...

    @overload
    def __get__(self, holder: ColumnSet, owner: type) -> A: ...

    def __get__(self, holder: ColumnSet | None, owner: type) -> Any:
        """Return the holder's array, the column itself where asked of the class."""
        return self if holder is None else holder.array(self.name)

    def __set__(self, holder: ColumnSet, array: A) -> None:
        """Assign the holder's array."""
        holder.set_array(self.name, array)

    def shape(self, settings: Settings) -> tuple[int, ...]:
        """Shape of one id's part."""
        if self._width is None:
            return ()
        return (self._width if isinstance(self._width, int) else self._width(settings),)

    def numbers(self, settings: Settings) -> int:
        """Numbers an id."""
        return math.prod(self.shape(settings))

    def zeros(self, settings: Settings, size: int = 0) -> Array:
        """Room for so many ids."""
        return np.zeros((size, *self.shape(settings)), self.dtype)

    def start(self, settings: Settings, side: int, ids: pa.Array) -> Any:
        """Return what rows of new ids start as, to be assigned to them."""
        return self._start(settings, side, ids) if callable(self._start) else self._start

    @property
    def arrow_type(self) -> pa.DataType:
        """Type in files."""
        number = pa.from_numpy_dtype(self.dtype)
        return pa.list_(number) if callable(self._width) else number

    def to_arrow(self, array: A) -> pa.Array:
        """Return an array as it is stored."""
        if callable(self._width):
            return list_column(array)
        return pa.array(array if array.ndim == 1 else array[:, 0])

    def from_arrow(self, table: pa.Table, settings: Settings) -> Array:
        """Return the array of a stored table.

        Raises
        ------
        ValueError
            the table lacks the column, or it has another width
        """
        if self.stored not in table.column_names:
            if not self.numbers(settings):
                # files of before there was such a column
                return self.zeros(settings, table.num_rows)
            raise ValueError(f"column {self.stored!r} is missing: the file is damaged")
        column = table.column(self.stored).combine_chunks()
        width = self.numbers(settings)
        if not width and column.null_count == table.num_rows:
            # Spark's reader puts nulls where a file lacks the column
            return self.zeros(settings, table.num_rows)
        flat, ragged = column, False
        if pa.types.is_list(column.type):
            flat = column.flatten()
            # twenty columns of each of five hundred small files are read for a version
            ragged = bool((np.diff(column.offsets.to_numpy()) != width).any())
        values = flat.to_numpy(zero_copy_only=False)
        if table.num_rows and (ragged or flat.null_count or values.size != table.num_rows * width):
            raise ValueError(
                f"column {self.stored!r} holds {values.size - flat.null_count} numbers for "
                f"{table.num_rows} ids, expected {width} each: the file belongs to a model of "
                "another rank or is damaged"
            )
        array: Array = values.astype(self.dtype).reshape(table.num_rows, *self.shape(settings))
        return array

    def rescale(self, array: A, shift: float, ratio: float) -> None:
        """Follow a change of the unit of ratings, in place."""
        if self._unit == "none" or not array.shape[1]:
            return
        if self._unit == "variance":
            array[:, 0] *= ratio * ratio
            array[:, 1:] *= ratio
            return
        if self._unit == "mean":
            array[:, 0] = (array[:, 0] + shift) * ratio
        else:
            array[:, 0] *= ratio
        array[:, 1:] *= np.sqrt(ratio)


class ColumnSet:
    """Arrays with a row an id, one for each `Column` of the class."""

    arrays: dict[str, Array]

    @classmethod
    def registry(cls) -> tuple[Column[Any], ...]:
        """Return the columns, in the order in which they are stored."""
        found = (column for base in cls.__mro__[::-1] for column in vars(base).values())
        return tuple(column for column in found if isinstance(column, Column))

    def array(self, name: str) -> Array:
        """Return the array of the column of that name."""
        return self.arrays[name]

    def set_array(self, name: str, array: Array) -> None:
        """Set the array of the column of that name."""
        self.arrays[name] = array

    def finite(self, rows: Any = slice(None)) -> bool:
        """Whether every number of these rows is a finite one."""
        floats = (column.name for column in self.registry() if column.dtype.kind == "f")
        return all(bool(np.isfinite(self.array(name)[rows]).all()) for name in floats)

    def to_columns(self, rows: I64) -> dict[str, pa.Array]:
        """State of rows as Arrow columns, by their names in files."""
        return {c.stored: c.to_arrow(self.array(c.name)[rows]) for c in self.registry()}

    def take_over(self, other: ColumnSet, rows: I64, settings: tuple[Settings, Settings]) -> None:
        """Take all of the other's rows into these, as far as both have coordinates.

        Parameters
        ----------
        other : ColumnSet
            of the same class, perhaps of another rank
        rows : I64
            int64, the row here of each of the other's rows
        settings : tuple[Settings, Settings]
            of this model, and of the other
        """
        for column in self.registry():
            if all(column.used(some) for some in settings):
                own, given = self.array(column.name), other.array(column.name)
                if own.ndim == 1:
                    own[rows] = given
                else:
                    width = min(own.shape[1], given.shape[1])
                    own[rows, :width] = given[:, :width]


def grown(arrays: Mapping[str, Array], size: int) -> dict[str, Array]:
    """Return copies of arrays with room for so many rows; new ones are zero."""
    roomy = {}
    for name, array in arrays.items():
        roomy[name] = np.zeros((size, *array.shape[1:]), array.dtype)
        held = min(size, array.shape[0])
        roomy[name][:held] = array[:held]
    return roomy


def prior_variances(settings: Settings) -> F32:
    """Prior variance of each coordinate, float32, shape (rank + 1,)."""
    prior = np.full(settings.rank + 1, settings.factor_prior, np.float32)
    prior[0] = settings.bias_prior
    return prior


def widest_starts(settings: Settings) -> F32:
    """How far features may put an id from usual ones, by coordinate, float32, (rank + 1,)."""
    return np.float32(_WIDEST) * np.sqrt(prior_variances(settings))


def list_column(matrix: Array) -> pa.ListArray:
    """Return a matrix as an Arrow column of lists, one a row; a width of 0 gives empty lists."""
    rows, width = matrix.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * np.int32(width)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matrix.reshape(-1)))


def _coordinates(settings: Settings) -> int:
    return settings.rank + 1


def _varies(settings: Settings) -> bool:
    return settings.solver == "bayes"


def _draws(settings: Settings) -> bool:
    return settings.draws_prior


def bound_features(mean: F32, lowest: float, rows: Any = slice(None)) -> None:
    """Raise features of some ids that lie below a bound to it, in place; biases stay."""
    if lowest > -math.inf:
        mean[rows, 1:] = np.maximum(mean[rows, 1:], np.float32(lowest))


def start_means(settings: Settings, side: int, ids: pa.Array) -> F32:
    """Return where ids start of which nothing is known, float32, shape (ids, rank + 1)."""
    return start_factors(
        id_keys(ids), side, settings.rank, settings.seed, settings.init_std, settings.lowest
    )


def _start_variances(settings: Settings, _side: int, _ids: pa.Array) -> F32:
    return prior_variances(settings)[: _variances(settings)]


def _start_base_variance(settings: Settings, _side: int, _ids: pa.Array) -> float:
    return settings.bias_prior


def _variances(settings: Settings) -> int:
    return _coordinates(settings) if _varies(settings) else 0


def _drawn(settings: Settings) -> int:
    return _coordinates(settings) if _draws(settings) else 0


def _featured(settings: Settings) -> int:
    if settings.fits_events:
        return 1 if settings.featured else 0
    return _coordinates(settings) if settings.featured else 0


def _table_features(settings: Settings) -> int:
    return settings.table_rank + 1 if settings.fits_events else 0


class FactorColumns(ColumnSet):
    """What is remembered of every id, in units of the standardised rating; n ids.

    Attributes
    ----------
    mean
        float32, shape (n, rank + 1), bias first
    var
        float32, shape (n, rank + 1); (n, 0) for solvers without variances
    base_mean, base_var
        float32, shape (n, 1), the mean-and-bias baseline learned beside it
    count
        int64, shape (n,), ratings learned from
    drawn
        float32, shape (n, rank + 1), prior mean that partners give: the sum of their `influence` /
        sqrt(count); (n, 0) without that prior
    influence
        float32, as `drawn`: what the id adds to the prior means of its partners
    evidence
        float32, shape (n,), the share that the id has in its partners' prior means: sum of 1 /
        count of each
    noise_factor
        float32, shape (n,), noise of the id's ratings in units of the model's
    taste
        float32, shape (n, table_rank + 1), what a table of events that was fitted as a whole says:
        log(1 + events of the id in it), which is 0 for ids that were not in it, then features; (n,
        0) for other models
    featured
        float32, shape (n, rank + 1), prior mean that the id's features give, beside `drawn`; of
        models of events (n, 1), 1 where `taste` is what features say, as no table held the id; (n,
        0) for models without features
    """

    mean = Column[F32](_coordinates, start=start_means, unit="mean", predicts=True)
    var = Column[F32](
        _variances, stored="variance", start=_start_variances, unit="variance", used=_varies,
        predicts=True,
    )  # fmt: skip
    base_mean = Column[F32](1, unit="mean")
    base_var = Column[F32](
        1, stored="base_variance", start=_start_base_variance, unit="variance"
    )  # fmt: skip
    count = Column[I64](None, dtype=np.int64, predicts=True)
    drawn = Column[F32](_drawn, stored="prior_mean", unit="offset", used=_draws)
    influence = Column[F32](_drawn, unit="offset", used=_draws)
    evidence = Column[F32](None, used=_draws)
    noise_factor = Column[F32](None, start=1.0, predicts=True, told=False)
    taste = Column[F32](
        _table_features, used=lambda settings: settings.fits_events, predicts=True, told=False
    )
    featured = Column[F32](_featured, unit="offset", used=lambda settings: settings.featured)
