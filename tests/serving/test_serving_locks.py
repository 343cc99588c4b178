"""Folders of services: gone when they end, or with the next one where they were killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sparkml_sgdals.serving.locks import own_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from sparkml_sgdals.serving.locks import own_folder
with own_folder(sys.argv[1]) as folder:
    Path(folder, "factors").write_bytes(bytes(1000))
    print(folder, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_ones_folder_goes_with_the_next(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    other = Path(process.stdout.readline().strip())
    with own_folder(str(tmp_path)) as folder:
        assert set(tmp_path.iterdir()) == {other, Path(folder)}
        process.communicate("\n")
        assert process.returncode == -signal.SIGKILL
        assert (other / "factors").exists()
        with own_folder(str(tmp_path)) as third:
            assert set(tmp_path.iterdir()) == {Path(folder), Path(third)}
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_services_stays(tmp_path):
    young, old = (tmp_path / f"sparkml-sgdals-serving-{n}" for n in "ab")
    for place in (young, old, tmp_path / "sparkml-sgdals-blocks-1", tmp_path / "notes"):
        place.mkdir()
    os.utime(old, (0, 0))
    with own_folder(str(tmp_path)) as folder:
        assert not old.exists()
        assert len(list(tmp_path.iterdir())) == 4
    assert not Path(folder).exists()


@pytest.mark.parametrize("kind", [FileNotFoundError, ValueError])
def test_an_error_within_is_told(tmp_path, kind):
    with pytest.raises(kind), own_folder(str(tmp_path)):
        raise kind("within")
    assert not list(tmp_path.iterdir())


def test_without_locks_none_is_taken_for_left(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with own_folder(str(tmp_path)) as first, own_folder(str(tmp_path)):
        assert Path(first).exists()


def test_many_at_once(tmp_path):
    """Each has its own, until it ends."""
    lost = []

    def work():
        for _ in range(40):
            with own_folder(str(tmp_path)) as folder:
                Path(folder, "x").touch()
                time.sleep(0.001)
                if not Path(folder, "x").exists():
                    lost.append(folder)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not lost
    assert not list(tmp_path.iterdir())
