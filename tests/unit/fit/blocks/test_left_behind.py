"""Folders of killed fits go with the next fit; those in use, or perhaps in use, stay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from sparkml_sgdals.fit.blocks import left_behind
from sparkml_sgdals.fit.blocks.left_behind import drop_left_folders, folder_name, owned

FIT = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from sparkml_sgdals.fit.blocks.files import BlockFiles
    from sparkml_sgdals.fit.blocks.left_behind import owned
    parent, name = sys.argv[1:]
    with owned(parent, name):
        BlockFiles(f"{parent}/{name}").put("cell", {})
        print("laid out", flush=True)
        sys.stdin.readline()
    """
)
DAY = 86_400.0


def fit(parent: str, name: str) -> subprocess.Popen[str]:
    """A process with a folder of blocks, laid out when this returns."""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", FIT, parent, name], **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "laid out\n"
    return process


def name_of_one() -> str:
    """A name of a folder that no other has."""
    return folder_name(uuid.uuid4().hex)


def left(parent: Path, **owner: Any) -> Path:
    """A folder of blocks as one that was killed leaves it, with its owner's file where told."""
    folder = parent / name_of_one()
    folder.mkdir()
    (folder / "cell").write_bytes(b"x")
    if owner:
        (parent / f"{folder.name}.owner").write_text(json.dumps(owner))
    return folder


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_killed_driver_s_folder_goes_with_the_next_fit(tmp_path: Path, form: str) -> None:
    parent = form.format(tmp_path)
    name, other = name_of_one(), name_of_one()
    killed, living = fit(parent, name), fit(parent, other)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (tmp_path / name / "cell").exists()
    drop_left_folders(parent)
    assert sorted(p.name for p in tmp_path.iterdir()) == [other, f"{other}.owner"]
    living.communicate("end\n")
    assert living.returncode == 0
    # what it wrote is the fit's own to remove
    assert [p.name for p in tmp_path.iterdir()] == [other]


def owner_of(**fields: Any) -> dict[str, Any]:
    """What this process would write, but for these fields."""
    told = left_behind.this_process() | {
        "namespace": left_behind._namespace(), "renewed": time.time(),
    }  # fmt: skip
    return told | fields


def test_what_may_be_in_use_stays(tmp_path: Path) -> None:
    long = time.time() - 8 * DAY
    kept = [
        left(tmp_path, **owner_of()),
        # this process, that renews no more
        left(tmp_path, **owner_of(renewed=long)),
        left(tmp_path, **owner_of(host="elsewhere", pid=1, started="0")),
        left(tmp_path, **owner_of(namespace="another container's", pid=1, started="0")),
        # by a release without owners, or damaged, and young
        left(tmp_path),
        left(tmp_path, pid="many"),
    ]
    gone = [
        left(tmp_path, **owner_of(started="0")),
        left(tmp_path, **owner_of(host="elsewhere", renewed=long)),
        left(tmp_path, **owner_of(namespace="another container's", renewed=long)),
    ]
    old = left(tmp_path)
    os.utime(old, (long, long))
    others = [tmp_path / "sparkml-sgdals-blocks-notes", tmp_path / "spark-1234"]
    for each in others:
        each.mkdir()
        os.utime(each, (long, long))
    drop_left_folders(str(tmp_path))
    assert all(each.exists() for each in [*kept, *others])
    assert not any(each.exists() for each in [*gone, old])
    # owners go with their folders
    owners = {p.name.removesuffix(".owner") for p in tmp_path.glob("*.owner")}
    assert owners <= {each.name for each in kept}


def test_an_owner_without_a_folder_goes(tmp_path: Path) -> None:
    (tmp_path / f"{name_of_one()}.owner").write_text(json.dumps(owner_of(started="0")))
    drop_left_folders(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_long_fit_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_behind, "_RENEWED", 0.02)
    name = name_of_one()
    with owned(str(tmp_path), name):
        first = json.loads((tmp_path / f"{name}.owner").read_text())["renewed"]
        until = time.monotonic() + 10.0
        while json.loads((tmp_path / f"{name}.owner").read_text())["renewed"] == first:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_used_is_no_failure(tmp_path: Path) -> None:
    """The fit itself says so, if it is one."""
    (tmp_path / "file").write_text("")
    parent = str(tmp_path / "file")
    drop_left_folders(parent)
    with owned(parent, name_of_one()):
        pass
