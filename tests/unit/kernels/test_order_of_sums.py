"""No kernel adds up in an order that depends on where arrays lie in memory.

LLVM makes a loop that reads one array and stores to another twice, for vectors and for numbers one
by one, and takes the second where the arrays lie close by. Sums whose order may change then differ
in their last bits, now and then: rows that lay just behind the weights were such a case.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import re, sys
import pytest

assert pytest.main(["-q", "-n0", "-p", "no:cacheprovider", "--timeout=3000", *sys.argv[1:]]) == 0

from numba.core.dispatcher import Dispatcher

kernels = {}
for module in list(sys.modules.values()):
    if getattr(module, "__name__", "").startswith("sparkml_sgdals."):
        for each in vars(module).values():
            if isinstance(each, Dispatcher):
                kernels[f"{each.py_func.__module__}.{each.py_func.__name__}"] = each
loops = 0
for name, kernel in kernels.items():
    for signature in kernel.signatures:
        blocks = re.split(r"^(?=[^ \\n]+:)", kernel.inspect_llvm(signature), flags=re.MULTILINE)
        checked = False
        for block in blocks:
            checked = checked or block.startswith("vector.memcheck")
            if block.startswith("vector.body"):
                loops += 1
                if checked and re.search(r"= phi <[0-9]+ x (float|double)>", block):
                    print("ORDER", name)
                checked = False
print("LOOPS", loops, "SWEEP", len(kernels["sparkml_sgdals.kernels.sweep.sweep_ids"].signatures))
"""


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "tests",
    [
        pytest.param(["learn/test_solvers.py"], id="sweep"),
        pytest.param(["kernels", "learn"], id="all", marks=pytest.mark.nightly),
    ],
)
def test_sums_have_one_order(tests: list[str], tmp_path: Path) -> None:
    """What is compiled anew for these tests has no sum behind a check of addresses."""
    # only what this process compiles itself can be looked at
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(ROOT / "tests/unit" / one) for one in tests)],
        env=clean | {"NUMBA_CACHE_DIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout.splitlines()
    loops, sweeps = (int(word) for word in told[-1].split()[1::2])
    assert loops > 10
    assert sweeps > 0
    assert not [line for line in told if line.startswith("ORDER")]
