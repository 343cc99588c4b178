"""SQL that DataFrames of users are selected by."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql.types import LongType, StructType

from sparkml_sgdals.collecting import _FAR_LOOK, _FIRST_LOOK, _NEAR, COLLECT_LIMIT, _caps
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
    sent = partitions * _caps(expected, partitions)
    sent += max(_NEAR - partitions, 0) * _FIRST_LOOK + max(1000 - _NEAR, 0) * _FAR_LOOK
    assert sent <= 4 * COLLECT_LIMIT
    if expected == 500:
        assert _caps(expected, partitions) >= 1000
