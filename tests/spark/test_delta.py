"""Tables of Delta as source and target: in an environment that has it, which PySpark 4.3 has not.

pip install "pyspark==4.2.*" delta-spark; pytest -m slow tests/spark/test_delta.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyspark
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not pyspark.__version__.startswith("4.2."), reason="Delta 4.4.0 is made for PySpark 4.2"
)
def test_the_example_ends_as_it_should(tmp_path):
    """It compares what it has learned, and the table's vectors with the model's, to the bit."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "delta_tables.py"), "--folder", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "the table holds the model's vectors, to the bit" in done.stdout
