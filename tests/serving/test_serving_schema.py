"""Schemathesis: whatever the OpenAPI document allows or forbids, the service does as it says."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("schemathesis")


@pytest.mark.parametrize(
    ("kinds", "examples"),
    [
        pytest.param(("int", "str"), 8, marks=pytest.mark.long),
        pytest.param(("int", "str"), 25, marks=pytest.mark.nightly),
        pytest.param(("str", "int"), 25, marks=pytest.mark.nightly),
    ],
)
def test_schemathesis_finds_nothing(modeler, started, tmp_path, kinds, examples):
    made = modeler(kinds=kinds)
    more = ["--rate", "0", "--rating-range", "-1000000000", "1000000000"]
    _, address = started(made, tmp_path / "inbox", *more)
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{address}openapi.json",
        "--max-examples", str(examples), "--seed", "7", "--no-color",
        "--generation-database", "none",
        # a stream of events has no end, and would be waited for
        "--exclude-path", "/events",
    ]  # fmt: skip
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=280, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
