"""SQL that DataFrames of users are selected by."""

from __future__ import annotations

from typing import Any

from pyspark.sql.types import LongType, StructType

from sparkml_sgdals.ingest.columns import RatingColumns, select_ratings


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
