"""Run examples/quickstart.ipynb and keep what it shows in it.

    SPARKML_SGDALS_DATA=folder .venv/bin/python scripts/run_notebook.py

The folder is that of MovieLens: folder/ml-latest-small/ratings.csv. What names an object
of this machine is left out.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "quickstart.ipynb"


def main() -> None:
    """Run it, and write it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            # what is printed to stderr are remarks of this machine
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
            for out in cell.outputs:
                data = out.get("data", {})
                if "text/plain" in data:
                    data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
