"""What an extra needs, told wherever the package came from."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from sparkml_sgdals import extras

# by hand: Python 3.10 has no tomllib
TEXT = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()


def stated(extra):
    listed = re.search(rf"^{extra} = \[(.*?)\]$", TEXT, re.M | re.S)[1]
    return re.findall(r'"([^"]+)"', listed)


@pytest.mark.parametrize("extra", ["ann", "cli", "kafka", "plot", "serve", "s3"])
def test_its_packages_are_named(extra):
    said = shlex.split(extras.install(extra))
    assert said[:2] == ["pip", "install"]
    assert sorted(one.replace(" ", "") for one in said[2:]) == sorted(stated(extra))


def test_without_metadata_the_page_is_named(monkeypatch):
    def none(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", none)
    assert extras.install("cli") == "install the extra 'cli', as docs/install.md says"
