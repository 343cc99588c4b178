"""How an event that is delivered again is told."""

from sparkml_sgdals.ingest.deduplication import _WHOLE_ROW


def test_a_whole_row_keeps_all_columns_and_microseconds() -> None:
    """Rows that differ in a microsecond alone, or in the second column of a name, are others."""
    assert _WHOLE_ROW.startswith("to_json(struct(*)")
    assert _WHOLE_ROW.count(".SSSSSS") == 2
