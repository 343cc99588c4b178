"""Print the lowest allowed version of each dependency of users, as requirements.

python scripts/lowest_versions.py. Read from the metadata of the installed package, without the
extras of developers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import requires

NAME = "sparkml-sgdals"
DEVELOPERS = {"dev", "docs"}
REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(?P<extras>\[[\w,-]+\])?(?P<bounds>[^;]*)"
    r"(?:;.*\bextra == ['\"](?P<extra>[\w-]+)['\"])?"
)
LOWEST = re.compile(r">=\s*([\w.]+)")


def lowest(requirements: Iterable[str]) -> list[str]:
    """Requirements with == in place of bounds; ValueError where one has no lower bound."""
    found = set()
    for line in requirements:
        parts = REQUIREMENT.match(line)
        if parts is None:
            raise ValueError(f"{line!r} is no requirement")
        if parts["extra"] in DEVELOPERS or parts["name"] == NAME:
            continue
        bound = LOWEST.search(parts["bounds"])
        if bound is None:
            raise ValueError(f"{line!r} has no lowest version: add >= to pyproject.toml")
        found.add(f"{parts['name']}{parts['extras'] or ''}=={bound[1]}")
    return sorted(found)


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in lowest(requires(NAME) or []))
