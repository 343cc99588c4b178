"""What ways give under local[2], to compare with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WAYS = Path(__file__).with_name("ways.py")


@pytest.fixture(scope="session")
def locally() -> Callable[[Path, list[str]], Callable[[], dict[str, str]]]:
    """Begin ways under local[2], in a process of its own; what is returned waits for the end."""

    def begin(folder: Path, names: list[str]) -> Callable[[], dict[str, str]]:
        log = folder / "local.log"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPARK_HOME", "PYSPARK"))}
        root = str(WAYS.parents[2])
        mine = {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": root, "SPARK_LOCAL_IP": "127.0.0.1"}
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(WAYS), "local[2]", str(folder), *names],
                env=kept | mine, cwd=folder, stdout=file, stderr=file,
            )  # fmt: skip

        def end() -> dict[str, str]:
            assert process.wait(240) == 0, log.read_text()[-3000:]
            found: dict[str, str] = json.loads((folder / "local.json").read_text())
            return found

        return end

    return begin
