"""The options of a stream: ranges, and one set of them in all public methods."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel, StreamingGridSearch
from sparkml_sgdals.stream.options import StreamOptions
from sparkml_sgdals.stream.report import Report

METHODS = (
    StreamingBiasedALSModel.updateStream, StreamingBiasedALS.fitStream,
    StreamingGridSearch.fitStream,
)  # fmt: skip


def options(**given: Any) -> StreamOptions:
    """Those of a stream for which nothing else is chosen."""
    usual = {
        "trigger": None, "validation": None, "query_name": None, "keep_versions": 5,
        "keep_days": 0.0, "lease_seconds": 60.0, "event_id_col": None, "watermark": "1 hour",
        "on_batch": None, "prometheus_path": "", "metrics_table": False,
    }  # fmt: skip
    return StreamOptions(**(usual | given))


def parameters(method: Any) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(method).parameters)
    return {name: found[name] for name in found if name not in ("self", "stream", "modelPath")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep_versions": 0}, r"keepVersions must be at least 1, got 0\."),
        ({"keep_days": -1.0}, r"keepDays must be at least 0, got -1\.0\."),
        ({"keep_days": float("nan")}, r"keepDays must be at least 0, got nan\."),
    ],
)
def test_ranges(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(**given)


def test_days_and_seconds() -> None:
    assert options(keep_days=1.5).keep_seconds == 129_600.0


def test_who_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that learns may stand in another folder."""
    assert options().report() == Report(None, "", False)
    monkeypatch.chdir(tmp_path)
    report = options(on_batch=print, prometheus_path="here", metrics_table=True).report()
    assert report == Report(print, str(tmp_path / "here"), True)


@pytest.mark.parametrize("method", METHODS[1:])
def test_the_public_methods_agree(method: Any) -> None:
    told, own = parameters(METHODS[0]), parameters(method)
    if method is METHODS[2]:
        # of a race, nothing is held out, and it may start from a model, which fitStream does not
        del told["validation"], own["initialModel"]
    assert list(own.values()) == list(told.values())


def test_every_option_is_a_parameter() -> None:
    assert len(fields(StreamOptions)) == len(parameters(METHODS[0]))
