"""Options of the JVMs that tests start."""

from __future__ import annotations

import jvm


def test_an_archive_is_named_where_one_was_written(monkeypatch, tmp_path):
    archive = tmp_path / "spark.jsa"
    monkeypatch.setattr(jvm, "ARCHIVE", archive)
    assert jvm.options() == jvm.OPTIONS
    # what `make test` leaves where none can be written
    archive.touch()
    assert jvm.options() == jvm.OPTIONS
    archive.write_bytes(b"classes")
    assert f"-XX:SharedArchiveFile={archive}" in jvm.options()
