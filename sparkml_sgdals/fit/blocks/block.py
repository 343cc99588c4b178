"""One block of a table too large for one task: its layout and what a task does with it (executor).

Users and items are hashed to B blocks each; a *cell* holds the ratings of one user block and one
item block. A *layout* is all that one block of one side needs to know of its ratings. Arrays in,
arrays out: `driver` moves them. Sources: Gemulla et al. 2011 (strata), Spark ALS (in- and
out-blocks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.ratings import Layout, Ratings, layout_by
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.kernels.filter import standardise
from sparkml_sgdals.learn.influences import (
    ITEM_INFLUENCE,
    USER_INFLUENCE,
    FilterSide,
    drawn_means,
    influence_shares,
    learn_influence,
    moved_prior,
    roots,
    run_influence_filter,
)
from sparkml_sgdals.learn.least_squares import id_weights
from sparkml_sgdals.learn.noise import fitted_factors
from sparkml_sgdals.learn.shares import capped_items
from sparkml_sgdals.learn.solvers import Side, half_sweep, run_filter, run_sgd
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.feature_weights import FeatureWeights
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "BlockLayout",
    "BlockState",
    "Cell",
    "Sums",
    "build_layout",
    "draw",
    "learn_cell",
    "named_rows",
    "sweep_block",
]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Cell:
    """Ratings of one cell in the order of learning: int32 positions among the ids of each block."""

    users: I32
    items: I32
    values: F32
    weights: F32


@dataclass(frozen=True)
class BlockLayout:
    """What a block knows of its ratings.

    Attributes
    ----------
    layout : Layout
        ratings by own id; a partner is a position in the concatenation, over the partner blocks in
        order, of the partners named in that cell
    sends : list[I32]
        for each partner block, int32 positions of the own ids that it names
    """

    layout: Layout
    sends: list[I32]

    def to_arrays(self) -> dict[str, Array]:
        """Return the layout as named arrays."""
        return {
            "starts": self.layout.starts,
            "partners": self.layout.partners,
            "values": self.layout.values,
            "weights": self.layout.weights,
            "bounds": np.cumsum([0] + [s.size for s in self.sends]),
            "sends": np.concatenate(self.sends),
        }

    @staticmethod
    def from_arrays(a: Mapping[str, Array]) -> BlockLayout:
        """Return the inverse of `to_arrays`.

        Raises ValueError where the arrays do not fit together.
        """
        starts, ratings = a["starts"], a["partners"].size
        if (
            starts[0] != 0
            or starts[-1] != ratings
            or a["values"].size != ratings
            or a["weights"].size not in (0, ratings)
            or (np.diff(starts) < 0).any()
        ):
            raise ValueError("the arrays of a layout do not fit together")
        layout = Layout(starts, a["partners"], a["values"], a["weights"])
        return BlockLayout(layout, np.split(a["sends"], a["bounds"][1:-1]))


def build_layout(cells: Sequence[Ratings | None], own_side: str) -> tuple[pa.Array, BlockLayout]:
    """Return the sorted ids of one block, as an Arrow array, and the layout of its ratings.

    Parameters
    ----------
    cells : Sequence[Ratings | None]
        the ratings of the block by partner block, each encoded for itself; None where empty
    own_side : str
        "users" or "items"
    """
    parts: list[tuple[pa.Array, I32, I32, int] | None] = []
    for ratings in cells:
        if ratings is None:
            parts.append(None)
        elif own_side == "users":
            parts.append((ratings.user_ids, ratings.users, ratings.items, len(ratings.item_ids)))
        else:
            parts.append((ratings.item_ids, ratings.items, ratings.users, len(ratings.user_ids)))
    present = [part for part in parts if part is not None]
    every = pa.chunked_array([part[0] for part in present]).combine_chunks().unique()
    ids = every.take(pa.compute.array_sort_indices(every))
    own, partners, sends = [], [], []
    offset = 0
    for part in parts:
        if part is None:
            sends.append(np.empty(0, np.int32))
            continue
        named, own_codes, partner_codes, num_partners = part
        positions = pa.compute.index_in(named, ids).to_numpy(zero_copy_only=False)
        sends.append(positions.astype(np.int32))
        own.append(positions.astype(np.int32)[own_codes])
        partners.append(partner_codes + np.int32(offset) if offset else partner_codes)
        offset += num_partners
    given = [ratings for ratings in cells if ratings is not None]
    layout = layout_by(
        np.concatenate(own),
        np.concatenate(partners).astype(np.int32, copy=False),
        np.concatenate([r.values for r in given]),
        np.concatenate([r.weights for r in given]),
        len(ids),
    )
    return ids, BlockLayout(layout, sends)


@dataclass
class BlockState:
    """Factors of one block; the priors are there only where a table is added to a model.

    Attributes
    ----------
    arrays : dict[str, Array]
        those of `FactorColumns`; perhaps the prior of a table that is added to a model: prior_mean,
        prior_var, drawn_before, seen
    """

    arrays: dict[str, Array]

    @classmethod
    def start(
        cls, side: int, ids: pa.Array, counts: npt.NDArray[np.int64], settings: Settings,
        known: pa.Table | None, features: tuple[SparseRows, FeatureWeights | None] | None = None,
    ) -> BlockState:  # fmt: skip
        """Return a block's state before it learns.

        Parameters
        ----------
        side : int
            number of the side
        ids : pa.Array
            of the block, sorted
        counts : npt.NDArray[np.int64]
            int64, shape (ids,), their ratings
        settings : Settings
            of the model
        known : pa.Table | None
            rows of a model that is added to
        features : tuple[SparseRows, FeatureWeights | None] | None
            what is known of ids beside, and what that model has learned of it
        """
        table = FactorTable(side, "str" if pa.types.is_string(ids.type) else "int", settings)
        if known is not None:
            table.put_arrow(known)
        size = table.size
        started = 0 if features is None else start_featured(table, ids, *features)
        rows, _ = table.ensure(ids)
        arrays = table.take(rows).arrays
        arrays["count"] += counts
        if known is not None:
            # what is known of a new id beside its ratings is its prior, too
            learned = (rows < size + started)[:, None]
            arrays["prior_mean"] = np.where(learned, arrays["mean"], np.float32(0.0))
            arrays["prior_var"] = arrays["var"].copy()
            arrays["drawn_before"] = arrays["drawn"].copy()
            arrays["seen"] = table.count[rows].astype(np.float32)
        return cls(arrays)

    def drawn_from(self, settings: Settings, rows: Any = slice(None)) -> F32:
        """Prior means of ids that no model knew: what partners say, and features."""
        told = {"drawn": settings.draws_prior, "featured": settings.featured}
        means: list[F32] = [self.arrays[name][rows] for name, there in told.items() if there]
        if not means:
            return np.zeros((1, settings.rank + 1), np.float32)
        return means[0] if len(means) == 1 else means[0] + means[1]

    def table(self, side: int, ids: pa.Array, settings: Settings) -> pa.Table:
        """Return the block's rows in the Arrow form of a `FactorTable`."""
        table = FactorTable(side, "str" if pa.types.is_string(ids.type) else "int", settings)
        table.put(ids, self.arrays)
        return table.to_arrow()


@dataclass(frozen=True)
class Sums:
    """Sums over blocks from which priors and noise are learned, in standardised units.

    Attributes
    ----------
    ids : int
        number of rated ids
    spread : npt.NDArray[np.float64]
        float64, shape (rank + 1,), sum over ids of (m - a)^2 + c
    squares, variances : float
        weighted sums of e^2 and V over ratings
    weight : float
        of these ratings
    """

    ids: int
    spread: npt.NDArray[np.float64]
    squares: float
    variances: float
    weight: float

    def to_array(self) -> npt.NDArray[np.float64]:
        """One row of numbers, the inverse of `total` over one row."""
        return np.concatenate([[self.ids, self.squares, self.variances, self.weight], self.spread])

    @classmethod
    def total(cls, rows: Sequence[npt.NDArray[np.float64]]) -> Sums:
        """Return the sum of rows in the order given."""
        sums = np.sum(np.stack(rows), axis=0)
        return cls(int(sums[0]), sums[4:], float(sums[1]), float(sums[2]), float(sums[3]))

    def prior(self) -> F32:
        """Prior variances that follow, float32, shape (1, rank + 1)."""
        return (self.spread / self.ids).astype(np.float32)[None, :]


def learn_cell(
    cell: Cell, users: BlockState, items: BlockState, settings: Settings, baseline: bool
) -> tuple[F32, F32]:
    """Filter (or descend through) one cell in place; errors of the model and of its baseline.

    Parameters
    ----------
    cell : Cell
        its ratings in the order of learning, in standardised units
    users, items : BlockState
        the block of users and the block of items that they are of, changed in place
    settings : Settings
        solver, and what it depends on
    baseline : bool
        whether the baseline learns the cell too; it counts each rating once, so in the first of
        several passes. Its errors are empty where it does not.
    """
    u, i = users.arrays, items.arrays
    where = (cell.users, cell.items, cell.values, cell.weights, settings)
    apart = np.empty(0, np.float32)
    if baseline:
        apart = run_filter(*where, u["base_mean"], u["base_var"], i["base_mean"], i["base_var"])
    if settings.draws_prior and "seen" in u:
        sides = (FilterSide.of(a, a["seen"]) for a in (u, i))
        return run_influence_filter(*where, *sides), apart
    if settings.solver == "bayes":
        return run_filter(*where, u["mean"], u["var"], i["mean"], i["var"]), apart
    return run_sgd(*where, u["mean"], i["mean"]), apart


def sweep_block(
    block: BlockLayout, state: BlockState, partners: tuple[F32, F32], prior: F32 | None,
    noise: float, settings: Settings, threads: int, partner_noise: F32 | None = None,
    most_ids: int = 0,
) -> Sums:  # fmt: skip
    """Sweep one block in place with its partners fixed.

    Parameters
    ----------
    block : BlockLayout
        the block's ratings, in standardised units
    state : BlockState
        the block, changed in place
    partners : tuple[F32, F32]
        mean and variance of the partners in the layout's order
    prior : F32 | None
        prior variances learned so far, shape (1, rank + 1); None for the defaults. Ignored where
        the state has priors of its own.
    noise : float
        variance of a rating's noise, in standardised units
    settings : Settings
        of the model
    threads : int
        at most so many at once; they change no result
    partner_noise : F32 | None
        float32, noise of the partners' ratings in units of `noise`, from which that of the block's
        own ids is learned; None: theirs stays
    most_ids : int
        partners in all blocks, by which an id counts for less in the sums that has many more
        ratings; 0: each counts in full
    """
    a = state.arrays
    own = "prior_mean" in a
    if prior is None:
        prior = prior_variances(settings)[None, :]
    mean = a["prior_mean"] if own else state.drawn_from(settings)
    if settings.draws_prior and own:
        moves = a["drawn_before"], a["drawn"]
        mean = moved_prior(a["prior_mean"], a["prior_var"], *moves, settings)
    own_var = a["prior_var"] if own else prior
    side = Side(a["mean"], a["var"], mean, own_var, settings.lowest)
    relative = None if partner_noise is None else (partner_noise, np.zeros(a["count"].size))
    shares = capped_items(block.layout.counts(), most_ids) if most_ids else None
    squares, variances = half_sweep(block.layout, side, *partners, noise, threads, shares, relative)
    if relative is not None:
        a["noise_factor"] = fitted_factors(relative[1], a["count"], noise)
    ids, weights = side.mean.shape[0], id_weights(block.layout)
    weight = float(weights.sum() if shares is None else weights @ shares)
    spread = side.spread(np.ones(ids, bool)) * ids if ids else np.zeros(side.mean.shape[1])
    return Sums(ids, spread, squares, variances, weight)


def named_rows(state: BlockState, rows: I32, settings: Settings, fresh: bool) -> dict[str, Array]:
    """Return what another block has to know of these ids, to sweep and, if fresh, to `draw`."""
    a = state.arrays
    names = ["mean", "var"]
    if fresh:
        names.append("noise_factor")
    if settings.draws_prior and fresh:
        names.append("influence")
    named: dict[str, Array] = {name: a[name][rows] for name in names}
    if settings.draws_prior and fresh:
        named["drawn"] = state.drawn_from(settings, rows)
        named["root"] = roots(a["count"][rows])
    return named


def draw(
    block: BlockLayout, state: BlockState, partners: dict[str, Array],
    priors: tuple[F32 | None, F32 | None], own: str, settings: Settings, threads: int,
) -> None:  # fmt: skip
    """Bring a block's prior means up to date, and learn its influences, in place.

    Parameters
    ----------
    block : BlockLayout
        the block's ratings, in standardised units
    state : BlockState
        the block, changed in place
    partners : dict[str, Array]
        `named_rows` of the partners, in the layout's order; mean and variance are left in it
    priors : tuple[F32 | None, F32 | None]
        prior variances learned so far, shape (1, rank + 1), of the block's own side and of its
        partners'; None before the first sweep of that side
    own : str
        "users" or "items"
    settings : Settings
        of the model
    threads : int
        at most so many at once; they change no result
    """
    a = state.arrays
    root = roots(a["count"])
    # of no use after this, and as large as the means
    drawn = drawn_means(block.layout, partners.pop("influence"), root, threads)
    own_prior, partner_prior = priors
    if own_prior is not None:
        moved = Side(a["mean"], a["var"], a["drawn"], own_prior, settings.lowest)
        moved.mean += moved.var / own_prior * (drawn - moved.prior_mean)
        moved.bound()
    a["drawn"] = drawn
    theirs, partner_roots = partners.pop("drawn"), partners.pop("root")
    if partner_prior is None:
        return
    if not a["evidence"].any():
        # counts stay, and with them the shares
        a["evidence"] = influence_shares(block.layout, partner_roots, threads)
    side = Side(partners["mean"], partners["var"], theirs, partner_prior)
    variance = USER_INFLUENCE if own == "users" else ITEM_INFLUENCE
    # the partners' own blocks move their means, by what all blocks say
    learn_influence(
        block.layout, a["influence"], variance, side, partner_roots, a["evidence"], threads,
        (len(block.sends) + 1) / 2, moves=False,
    )  # fmt: skip


def standardised(block: BlockLayout, mean: float, spread: float) -> BlockLayout:
    """Return the layout with its ratings in standardised units."""
    values = standardise(block.layout.values, mean, spread)
    return replace(block, layout=replace(block.layout, values=values))
