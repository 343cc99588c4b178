"""SQL that DataFrames of users are selected by."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql.types import LongType, StructType

from sparkml_sgdals.collecting import _FAR_LOOK, COLLECT_LIMIT, _caps
from sparkml_sgdals.repeats import _whole_row
from sparkml_sgdals.schema import RatingColumns, select_ratings


class Table:
    """A DataFrame that gives back what was selected."""

    schema = StructType().add("user", LongType()).add("a`b", LongType()).add("r", LongType())

    def selectExpr(self, *expressions: str) -> Any:  # noqa: N802
        """The expressions."""
        return expressions


def test_reserved_words_are_quoted() -> None:
    """`user` may not be a name where spark.sql.ansi.enforceReservedKeywords is on."""
    table: Any = Table()
    found: Any = select_ratings(table, RatingColumns("user", "a`b", "r"), ("int", "int"), raw=True)
    assert [e.rpartition(" AS ")[2] for e in found] == ["`user`", "`item`", "`rating`", "`raw`"]
    assert found[1].startswith("CAST(`a``b` AS bigint)")


def test_a_whole_row_keeps_names_and_microseconds() -> None:
    """Rows that differ in a microsecond alone are not repeats."""
    row = _whole_row(["time", "a`b"])
    assert "struct(`time`, `a``b`)" in row
    assert row.count(".SSSSSS") == 2


@pytest.mark.parametrize("expected", [0, 500, 600_000])
@pytest.mark.parametrize("partitions", [0, 1, 40, 200, 1000])
def test_what_is_sent_unasked_is_bounded(expected: int, partitions: int) -> None:
    """As a whole: also where many more partitions come than before, as after an outage."""
    caps = _caps(expected, partitions)
    assert [last for last, _ in caps] == sorted({last for last, _ in caps})
    of_each = [next((cap for last, cap in caps if n < last), _FAR_LOOK) for n in range(1000)]
    assert sum(of_each) <= 4 * COLLECT_LIMIT
    if expected == 500:
        assert min(of_each[:partitions], default=1000) >= 1000


@pytest.mark.parametrize("partitions", [1, 2, 3, 4, 8, 50])
def test_a_table_of_some_size_is_sent_unasked(partitions: int) -> None:
    """In one job, where its rows are spread evenly."""
    caps = _caps(0, 0)
    rows = -(-100_000 // partitions)
    assert all(next(cap for last, cap in caps if n < last) >= rows for n in range(partitions))
