"""The service among idle, slow and killed ones, for half a minute; an hour is the same command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

SOAK = Path(__file__).parents[2] / "benchmarks" / "serving_soak.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_fails_but_for_kills_and_all_is_learned_once(tmp_path):
    words = ["--minutes", "0.7", "--kill-every", "12", "--rate", "40", "--posts", "20", "--idle",
             "1000", "--json", str(tmp_path / "soak.json")]  # fmt: skip
    done = subprocess.run(
        [sys.executable, SOAK, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["kills"] >= 1
    assert found["acknowledged"] > 0
    assert found["faults"] == []
