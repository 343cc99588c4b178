"""Factors as memory-mapped arrays that grow: one side of a served model, and items to rank.

The files have no name in any folder once they are mapped, so nothing is left behind, whatever ends
the process; the system may write pages of them to the disk where memory is short.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.kernels.scatter import put_columns, put_rows
from sparkml_sgdals.state.columns import Array, FactorColumns
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.settings import Settings

__all__ = ["Candidates", "MappedSide", "map_array"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_PIECE: Final = 1 << 16
_LEAST_ROOM: Final = 256


def map_array(folder: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return zeros in a nameless file in `folder`, which the system fills as it is written."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not size:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        held = mmap.mmap(file.fileno(), size)
    return np.frombuffer(held, dtype).reshape(shape)


def _flat(array: Array) -> Array:
    """Return the same memory as a matrix."""
    return array.reshape(array.shape[0], math.prod(array.shape[1:]))


class MappedSide(FactorColumns):
    """What a service has to know of users, or of items: what predicts, and perhaps what learns.

    Attributes
    ----------
    size
        ids; rows beyond it are not of this version
    """

    def __init__(self, folder: str, settings: Settings, learns: bool) -> None:
        self._folder = folder
        self._settings = settings
        self.size = 0
        self.arrays = {
            column.name: column.zeros(settings)
            for column in self.registry()
            if learns or column.predicts
        }

    def array(self, name: str) -> Array:
        """Return the rows of this version, of one column."""
        return self.arrays[name][: self.size]

    @property
    def nbytes(self) -> int:
        """Bytes mapped, room for growth included."""
        return sum(array.nbytes for array in self.arrays.values())

    def put(self, rows: I64, part: FactorTable, size: int) -> None:
        """Set `rows` to the state in `part`, row by row; there are `size` ids from now on."""
        room = self.arrays["mean"].shape[0]
        if size > room:
            # a first load is told the size; what comes later comes a few at a time
            room = max(size, 2 * room if room else size + size // 8, _LEAST_ROOM)
            for name, old in self.arrays.items():
                grown = map_array(self._folder, (room, *old.shape[1:]), old.dtype)
                grown[: self.size] = old[: self.size]
                self.arrays[name] = grown
        self.size = size
        for name, array in self.arrays.items():
            values = np.ascontiguousarray(part.array(name))
            put_rows(_flat(array), rows, _flat(values))

    def table(self, side: int, kind: IdKind, ids: pa.Array, rows: I64) -> FactorTable:
        """Return a factor table of its own that holds the state of `rows`, by distinct `ids`."""
        table = FactorTable(side, kind, self._settings)
        table.put(ids, {name: array[rows] for name, array in self.arrays.items()})
        return table


class Candidates:
    """Items laid out for `topn.top_n`: a column an item, padded with columns that never win.

    Attributes
    ----------
    factors
        float32, shape (rank + 2, room): features, bias, 1
    variances
        float32, shape (2 rank + 2, room): P^2 + c_P, c_P, c_b, 1; docs/algorithm.md (7); (0, room)
        but under `bayes`
    tastes
        float32, shape (table rank + 1, room), as `topn.Tastes`; (0, room) but for fitted tables of
        events
    """

    def __init__(self, folder: str, settings: Settings) -> None:
        self._folder = folder
        self._rank = settings.rank
        width = settings.table_rank + 1 if settings.fits_events else 0
        self.tastes: F32 = np.zeros((width, 0), np.float32)
        self._squares: F64 | None = None
        self._varies = settings.solver == "bayes"
        self.factors: F32 = np.zeros((self._rank + 2, 0), np.float32)
        self.variances: F32 = np.zeros((2 * self._rank + 2 if self._varies else 0, 0), np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes mapped, room for growth included."""
        return self.factors.nbytes + self.variances.nbytes + self.tastes.nbytes

    def put(self, rows: I64, items: FactorTable, size: int) -> None:
        """Set the columns `rows` to the state in `items`; there are `size` from now on."""
        mean, var = items.mean, items.var
        rank, room = self._rank, self.factors.shape[1]
        if size > room:
            grown_room = max(size, 2 * room if room else size + size // 8, _LEAST_ROOM)
            for name in ("factors", "variances", "tastes"):
                old = getattr(self, name)
                grown = map_array(self._folder, (old.shape[0], grown_room), np.float32)
                grown[:, :room] = old
                setattr(self, name, grown)
            # a bias that no score reaches, whatever is multiplied with the zeros beside it
            self.factors[rank, room:] = -np.inf
        ones = np.ones((rows.size, 1), np.float32)
        put_columns(self.factors, rows, np.hstack([mean[:, 1:], mean[:, :1], ones]))
        if self._varies:
            parts = [mean[:, 1:] ** 2 + var[:, 1:], var[:, 1:], var[:, :1], ones]
            put_columns(self.variances, rows, np.hstack(parts))
        if self.tastes.shape[0]:
            taste = items.taste
            if not np.array_equal(self.tastes[1:, rows], taste[:, 1:].T):
                self._squares = None
            put_columns(self.tastes, rows, np.ascontiguousarray(taste))

    def set_biases(self, biases: F32, table: F32 | None = None) -> None:
        """Rank by other biases than the items' own; float32, shape (items,).

        `table` is what a fitted table's judgement of items is multiplied with, as logarithms.
        """
        self.factors[self._rank, : biases.size] = biases
        if table is not None:
            self.tastes[0, : table.size] = table

    def squares(self) -> F64:
        """Sum of the products of the tastes' features over all items: `user_system`."""
        held = self._squares
        if held is None:
            held = np.zeros((self.tastes.shape[0] - 1,) * 2)
            for first in range(0, self.tastes.shape[1], _PIECE):
                part = self.tastes[1:, first : first + _PIECE].astype(np.float64)
                held += part @ part.T
            self._squares = held
        return held

    def query(self, means: F32, variances: F32) -> tuple[F32, F32]:
        """Rows to multiply with `factors` and `variances`, of users' means and variances."""
        ones = np.ones((means.shape[0], 1), np.float32)
        left = np.hstack([means[:, 1:], ones, means[:, :1]])
        if not self._varies:
            return left, np.empty((means.shape[0], 0), np.float32)
        own = np.hstack([variances[:, 1:], means[:, 1:] ** 2, ones, variances[:, :1]])
        return left, own
