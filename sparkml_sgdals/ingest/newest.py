"""Of ratings of one pair the newest: in a user's table, and in a batch that was collected."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

__all__ = ["newest_of_table", "newest_rows"]


def newest_of_table(ratings: DataFrame, within: tuple[float, float] | None = None) -> DataFrame:
    """Leave out ratings whose pair has a newer one; of equal times the greatest rating stays.

    Parameters
    ----------
    ratings : DataFrame
        as `select_ratings` gives them, with a time
    within : tuple[float, float] | None
        least and greatest rating that is learned

    Returns
    -------
    the others, and all rows that cannot be learned, which hide none
    """
    names = ["user", "item", "time", "rating", *(["weight"] if "weight" in ratings.columns else [])]
    sound = ~F.isnan("rating")
    if within is not None:
        sound &= F.col("rating").between(*map(float, within))
    for name in names:
        sound &= F.col(name).isNotNull()
    sound = F.coalesce(sound, F.lit(False))
    newest = Window.partitionBy("user", "item", sound).orderBy(
        *[F.col(name).desc() for name in names[2:]]
    )
    numbered = ratings.withColumn("_newest", F.row_number().over(newest))
    return numbered.where(~sound | (F.col("_newest") == 1)).drop("_newest")


def newest_rows(table: pa.Table) -> pa.Table:
    """Return the rows of screened ratings whose pair has no newer one, in the order given."""
    if not table.num_rows:
        return table
    codes = [
        pa.compute.dictionary_encode(table.column(name).combine_chunks()).indices.to_numpy()
        for name in ("user", "item")
    ]
    names = [name for name in ("weight", "rating", "time") if name in table.column_names]
    keys = [table.column(name).to_numpy() for name in names]
    order = np.lexsort([*keys, codes[1], codes[0]])
    user, item = (code[order] for code in codes)
    last = np.ones(order.size, bool)
    last[:-1] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    return table.take(pa.array(np.sort(order[last])))
