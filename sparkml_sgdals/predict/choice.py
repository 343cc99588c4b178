"""Which candidates there are to rank: of all, some, or pairs with those they are for (driver)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkml_sgdals.state.factors import FactorTable

__all__ = ["Choice"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """Which candidates there are: all but where something is said.

    Attributes
    ----------
    only, never : pa.Array | None
        distinct ids of candidates that alone are ranked, and of those that are not
    among, seen : DataFrame | None
        columns query and candidate, as bigint or string: pairs that alone are ranked, and pairs
        not to recommend
    """

    only: pa.Array | None = None
    never: pa.Array | None = None
    among: DataFrame | None = None
    seen: DataFrame | None = None

    @property
    def names_pairs(self) -> bool:
        """Whether pairs say something."""
        return self.among is not None or self.seen is not None

    def rows(self, candidates: FactorTable) -> I64:
        """Return rows of the candidates for all, in the order of their ids."""
        ids = candidates.index.ids()
        order = pa.compute.array_sort_indices(ids).to_numpy(zero_copy_only=False).astype(np.int64)
        kept = np.ones(candidates.size, bool)
        if self.only is not None:
            rows = candidates.index.find(self.only)
            kept[:] = False
            kept[rows[rows >= 0]] = True
        if self.never is not None:
            rows = candidates.index.find(self.never)
            kept[rows[rows >= 0]] = False
        chosen: I64 = order[kept[order]]
        return chosen

    def cells(self) -> DataFrame | None:
        """Return the pairs, those of both kinds with a column `kept`; None where there are none."""
        known = F.col("query").isNotNull() & F.col("candidate").isNotNull()
        both = [
            None if pairs is None else pairs.where(known).select("query", "candidate")
            for pairs in (self.among, self.seen)
        ]
        among, seen = both
        if among is None or seen is None:
            return seen if among is None else among
        kept = among.withColumn("kept", F.lit(True))
        return kept.unionByName(seen.withColumn("kept", F.lit(False)))
