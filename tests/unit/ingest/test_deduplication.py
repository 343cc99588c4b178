"""How an event that is delivered again is told."""

from sparkml_sgdals.ingest.deduplication import _whole_row


def test_a_whole_row_keeps_names_and_microseconds() -> None:
    """Rows that differ in a microsecond alone are not repeats."""
    row = _whole_row(["time", "a`b"])
    assert "struct(`time`, `a``b`)" in row
    assert row.count(".SSSSSS") == 2
