"""How what an extra needs is installed, wherever the package itself came from."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import PackageNotFoundError, requires

__all__ = ["install"]

_DISTRIBUTION = "sparkml-sgdals"


def install(extra: str) -> str:
    """Return the command that brings what an extra needs.

    It names the packages, not the extra: a checkout, a wheel and a release are installed in
    different ways (docs/install.md), and are there already.

    Parameters
    ----------
    extra : str
        as in pyproject.toml
    """
    try:
        stated = requires(_DISTRIBUTION) or []
    except PackageNotFoundError:
        stated = []
    needed = [
        one.split(";")[0].strip()
        for one in stated
        if re.search(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""", one)
    ]
    if not needed:
        return f"install the extra {extra!r}, as docs/install.md says"
    return "pip install " + " ".join(map(shlex.quote, needed))
