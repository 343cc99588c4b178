"""The state of one side of a model: ids, posteriors and their priors (driver and executor)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import id_keys, start_factors
from sparkml_sgdals.arrays.id_index import IdIndex
from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type
from sparkml_sgdals.state.event_memory import EventMemory, memory_for
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "FactorRows",
    "FactorTable",
    "arrow_schema",
    "drop_ids",
    "list_column",
    "prior_variances",
    "put_features",
]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_LATER: Final = ("prior_mean", "influence", "evidence", "noise_factor")
"""columns that files of format 1 lack"""
_ARRAYS: Final = (
    "_mean", "_var", "_base_mean", "_base_var", "_count",
    "_prior_mean", "_influence", "_evidence", "_noise_factor",
)  # fmt: skip


@dataclass
class FactorRows:
    """Copies of some rows of a `FactorTable`, to be learned and then put back, or dropped.

    Attributes
    ----------
    rows : int64, where they came from; the others as in `FactorTable`
    """

    rows: I64
    mean: F32
    var: F32
    base_mean: F32
    base_var: F32
    count: I64
    prior_mean: F32
    influence: F32
    evidence: F32
    noise_factor: F32

    def copy(self) -> FactorRows:
        """An independent copy: rows side by side, so cheaper than to take them again."""
        return FactorRows(*(array.copy() for array in vars(self).values()))

    def finite(self) -> bool:
        """Whether every mean and variance is a finite number."""
        held = (self.mean, self.var, self.prior_mean, self.influence, self.noise_factor)
        return all(bool(np.isfinite(array).all()) for array in held)


class FactorTable:
    """Factors of users or of items, one row an id, in units of the standardised rating.

    Attributes
    ----------
    index : the ids and their rows
    mean : float32, shape (size, rank + 1), bias first
    var : float32, shape (size, rank + 1); (size, 0) for solvers without variances
    base_mean, base_var : float32, shape (size, 1), the mean-and-bias baseline learned beside it
    count : int64, shape (size,), ratings learned from
    prior_mean : float32, shape (size, rank + 1), sum of the partners' `influence` / sqrt(count);
        (size, 0) without the implicit prior
    influence : float32, as `prior_mean`: what the id adds to the prior means of its partners
    evidence : float32, shape (size,), the share that the id has in its partners' prior means:
        sum of 1 / count of each
    noise_factor : float32, shape (size,), noise of the id's ratings in units of the model's
    memory : what is remembered besides where the model learns events, and of users where it ranks
        ratings; else None
    """

    def __init__(self, side: int, kind: IdKind, settings: Settings) -> None:
        self.side = side
        self.settings = settings
        self.index = IdIndex(kind)
        width = settings.rank + 1
        self._mean: F32 = np.empty((0, width), np.float32)
        self._var: F32 = np.empty((0, width if settings.solver == "bayes" else 0), np.float32)
        self._base_mean: F32 = np.empty((0, 1), np.float32)
        self._base_var: F32 = np.empty((0, 1), np.float32)
        self._count: I64 = np.empty(0, np.int64)
        implicit = width if settings.draws_prior else 0
        self._prior_mean: F32 = np.empty((0, implicit), np.float32)
        self._influence: F32 = np.empty((0, implicit), np.float32)
        self._evidence: F32 = np.empty(0, np.float32)
        self._noise_factor: F32 = np.empty(0, np.float32)
        self.memory: EventMemory | None = memory_for(side, settings)

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.index.size

    @property
    def mean(self) -> F32:
        return self._mean[: self.size]

    @property
    def var(self) -> F32:
        return self._var[: self.size]

    @property
    def base_mean(self) -> F32:
        return self._base_mean[: self.size]

    @property
    def base_var(self) -> F32:
        return self._base_var[: self.size]

    @property
    def count(self) -> I64:
        return self._count[: self.size]

    @property
    def prior_mean(self) -> F32:
        return self._prior_mean[: self.size]

    @property
    def influence(self) -> F32:
        return self._influence[: self.size]

    @property
    def evidence(self) -> F32:
        return self._evidence[: self.size]

    @property
    def noise_factor(self) -> F32:
        return self._noise_factor[: self.size]

    def ensure(self, ids: pa.Array) -> tuple[I64, int]:
        """Rows of distinct `ids`, new ones starting from (seed, side, id); and how many are new."""
        rows = self.index.find(ids)
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            new = ids.take(pa.array(missing))
            rows[missing] = self._append(new)
            settings = self.settings
            added = slice(self.size - missing.size, self.size)
            self._mean[added] = start_factors(
                id_keys(new), self.side, settings.rank, settings.seed, settings.init_std
            )
            if self._var.shape[1]:
                self._var[added] = prior_variances(settings)
            self._base_mean[added] = 0.0
            self._base_var[added] = settings.bias_prior
            self._count[added] = 0
            self._prior_mean[added] = 0.0
            self._influence[added] = 0.0
            self._evidence[added] = 0.0
            self._noise_factor[added] = 1.0
        return rows, int(missing.size)

    def take(self, rows: I64) -> FactorRows:
        """Copies of these rows."""
        return FactorRows(
            rows, self._mean[rows], self._var[rows], self._base_mean[rows], self._base_var[rows],
            self._count[rows], self._prior_mean[rows], self._influence[rows], self._evidence[rows],
            self._noise_factor[rows],
        )  # fmt: skip

    def put_rows(self, learned: FactorRows) -> None:
        """Put rows that were taken back into their places."""
        rows = learned.rows
        self._mean[rows] = learned.mean
        self._var[rows] = learned.var
        self._base_mean[rows] = learned.base_mean
        self._base_var[rows] = learned.base_var
        self._count[rows] = learned.count
        self._prior_mean[rows] = learned.prior_mean
        self._influence[rows] = learned.influence
        self._evidence[rows] = learned.evidence
        self._noise_factor[rows] = learned.noise_factor

    def put(
        self, ids: pa.Array, mean: F32, var: F32, base_mean: F32, base_var: F32, count: I64,
        prior_mean: F32 | None = None, influence: F32 | None = None, evidence: F32 | None = None,
        noise_factor: F32 | None = None,
    ) -> None:  # fmt: skip
        """Set the state of distinct `ids`, known or not; arrays as in the attributes.

        Without the last four, the ids stand as if no partner had said anything about them.
        """
        rows = self.index.find(ids)
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            rows[missing] = self._append(ids.take(pa.array(missing)))
        self._mean[rows] = mean
        self._var[rows] = var
        self._base_mean[rows] = base_mean
        self._base_var[rows] = base_var
        self._count[rows] = count
        self._prior_mean[rows] = 0.0 if prior_mean is None else prior_mean
        self._influence[rows] = 0.0 if influence is None else influence
        self._evidence[rows] = 0.0 if evidence is None else evidence
        self._noise_factor[rows] = 1.0 if noise_factor is None else noise_factor

    def to_arrow(self, rows: I64 | None = None) -> pa.Table:
        """State of `rows` (all by default) as Arrow, sorted by id: see `arrow_schema`."""
        ids = self.index.ids(rows)
        order = pa.compute.array_sort_indices(ids).to_numpy(zero_copy_only=False)
        picked = order if rows is None else rows[order]
        table = pa.Table.from_arrays(
            [
                ids.take(pa.array(order)),
                list_column(self._mean[picked]),
                list_column(self._var[picked]),
                pa.array(self._base_mean[picked, 0]),
                pa.array(self._base_var[picked, 0]),
                pa.array(self._count[picked]),
                list_column(self._prior_mean[picked]),
                list_column(self._influence[picked]),
                pa.array(self._evidence[picked]),
                pa.array(self._noise_factor[picked]),
            ],
            schema=arrow_schema(self.index.kind),
        )
        if self.memory is not None:
            for name, column in self.memory.columns(picked).items():
                table = table.append_column(name, column)
        return table

    def put_arrow(self, table: pa.Table) -> None:
        """Set the state of the ids in a table of `arrow_schema`.

        Tables of a release before the implicit prior lack the last four columns, or hold nulls.
        Raises ValueError where a list has not the width of this model.
        """
        ids = table.column("id").cast(id_array_type(self.index.kind)).combine_chunks()
        self.put(
            ids,
            _matrix(table, "mean", self._mean.shape[1]),
            _matrix(table, "variance", self._var.shape[1]),
            _matrix(table, "base_mean", 1),
            _matrix(table, "base_variance", 1),
            table.column("count").to_numpy(),
            **self._later_columns(table),
        )
        if self.memory is not None:
            self.memory.put(self.index.find(ids), table)

    def finite(self, rows: I64) -> bool:
        """Whether every mean and variance in `rows` is a finite number."""
        held = (self._mean, self._var, self._prior_mean, self._influence, self._noise_factor)
        finite = all(bool(np.isfinite(array[rows]).all()) for array in held)
        return finite and (self.memory is None or self.memory.finite(rows))

    def truncate(self, size: int) -> None:
        """Forget the ids that were added last, down to `size` of them."""
        self.index.truncate(size)
        if self.memory is not None:
            self.memory.resize(self.size)

    def without(self, ids: pa.Array) -> FactorTable:
        """A table of the same state but for some ids, known or not."""
        twin = FactorTable(self.side, self.index.kind, self.settings)
        twin.put_arrow(drop_ids(self.to_arrow(), "id", ids))
        return twin

    def rescale(self, bias_shift: float, ratio: float) -> None:
        """Change units: biases become (b + shift) * ratio, features f * sqrt(ratio)."""
        for bias, variance in ((self.mean, self.var), (self.base_mean, self.base_var)):
            bias[:, 0] = (bias[:, 0] + bias_shift) * ratio
            if variance.shape[1]:
                variance[:, 0] *= ratio * ratio
        self.mean[:, 1:] *= np.sqrt(ratio)
        for prior in (self.prior_mean, self.influence):
            prior[:, :1] *= ratio
            prior[:, 1:] *= np.sqrt(ratio)
        if self.var.shape[1]:
            self.var[:, 1:] *= ratio

    def under(self, settings: Settings) -> FactorTable:
        """The same factors, shared, under settings that differ in ranking; nobody has done a thing.

        For models of ratings.
        """
        twin = copy.copy(self)
        twin.settings = settings
        twin.memory = memory_for(self.side, settings)
        if twin.memory is not None:
            twin.memory.resize(self.size)
        return twin

    def copy(self) -> FactorTable:
        """An independent copy."""
        twin = FactorTable(self.side, self.index.kind, self.settings)
        twin.index = self.index.copy()
        for name in _ARRAYS:
            setattr(twin, name, getattr(self, name)[: self.size].copy())
        twin.memory = None if self.memory is None else self.memory.copy()
        return twin

    def _later_columns(self, table: pa.Table) -> dict[str, F32]:
        if not _has(table, _LATER[0]):
            return {}
        width = self._prior_mean.shape[1]
        found = {name: _matrix(table, name, width) for name in _LATER[:2]}
        return found | {name: _matrix(table, name, 1)[:, 0] for name in _LATER[2:]}

    def _append(self, ids: pa.Array) -> I64:
        rows = self.index.add(ids)
        if self.size > self._count.size:
            room = max(self.size, 2 * self._count.size)
            for name in _ARRAYS:
                old = getattr(self, name)
                grown = np.zeros((room, *old.shape[1:]), old.dtype)
                grown[: old.shape[0]] = old
                setattr(self, name, grown)
        if self.memory is not None:
            self.memory.resize(self.size)
        return rows


def prior_variances(settings: Settings) -> F32:
    """Prior variance of each coordinate, float32, shape (rank + 1,)."""
    prior = np.full(settings.rank + 1, settings.factor_prior, np.float32)
    prior[0] = settings.bias_prior
    return prior


def put_features(table: FactorTable, features: pa.Table) -> None:
    """Set features of a table of id and features, without biases: the factors of Spark's ALS.

    Variances, baseline and counts are those of new ids.
    """
    ids = features.column("id").cast(id_array_type(table.index.kind)).combine_chunks()
    values = _matrix(features, "features", table.mean.shape[1] - 1)
    rows, _ = table.ensure(ids)
    table.mean[rows, 1:] = values


def drop_ids(table: pa.Table, column: str, ids: pa.Array) -> pa.Table:
    """The rows of a table whose id in `column` is not among `ids`."""
    known = pa.compute.is_in(table.column(column), value_set=ids.cast(table[column].type))
    return table.filter(pa.compute.invert(known))


def arrow_schema(kind: IdKind) -> pa.Schema:
    """Schema of a factor table: a column for each attribute of `FactorTable`, lists bias first.

    Models that remember more add the columns of `event_memory`.
    """
    return pa.schema(
        [
            ("id", id_array_type(kind)),
            ("mean", pa.list_(pa.float32())),
            ("variance", pa.list_(pa.float32())),
            ("base_mean", pa.float32()),
            ("base_variance", pa.float32()),
            ("count", pa.int64()),
            ("prior_mean", pa.list_(pa.float32())),
            ("influence", pa.list_(pa.float32())),
            ("evidence", pa.float32()),
            ("noise_factor", pa.float32()),
        ]
    )


def list_column(matrix: F32) -> pa.ListArray:
    """A matrix as an Arrow column of lists, one a row; a width of 0 gives empty lists."""
    rows, width = matrix.shape
    offsets = np.arange(0, (rows + 1) * width, width, dtype=np.int32) if width else None
    if offsets is None:
        offsets = np.zeros(rows + 1, np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matrix.reshape(-1)))


def _has(table: pa.Table, name: str) -> bool:
    return name in table.column_names and table.column(name).null_count < table.num_rows


def _matrix(table: pa.Table, name: str, width: int) -> F32:
    column = table.column(name).combine_chunks()
    flat = column.flatten() if pa.types.is_list(column.type) else column
    values: F32 = flat.to_numpy(zero_copy_only=False).astype(np.float32)
    lengths = pa.compute.list_value_length(column) if flat is not column else None
    ragged = lengths is not None and not pa.compute.all(pa.compute.equal(lengths, width)).as_py()
    if table.num_rows and (ragged or values.size != table.num_rows * width):
        raise ValueError(
            f"column {name!r} holds {values.size} numbers for {table.num_rows} ids, "
            f"expected {width} each: the file belongs to a model of another rank or is damaged"
        )
    return values.reshape(table.num_rows, width)
