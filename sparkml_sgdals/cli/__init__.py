"""The command `sparkml-sgdals`: each of its commands is a thin layer over the library."""

from __future__ import annotations

import sys

from sparkml_sgdals.extras import install

__all__ = ["main"]


def main() -> None:
    """Run the command line; one sentence and exit code 1 where the extra `cli` is missing."""
    try:
        from sparkml_sgdals.cli.app import app
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "rich"):
            raise
        sys.exit(f"The command needs {missing.name}: {install('cli')}")
    app()
