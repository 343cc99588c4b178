"""The notebook runs from its first cell to its last, in a kernel and a session of its own."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent.parent / "examples" / "quickstart.ipynb"


@pytest.mark.long
def test_quickstart(small, tmp_path, monkeypatch):
    folder = tmp_path / "ml-latest-small"
    folder.mkdir()
    table = small.rename(columns={"user": "userId", "item": "movieId", "time": "timestamp"})
    table.to_csv(folder / "ratings.csv", index=False)
    titles = table[["movieId"]].drop_duplicates().assign(genres="Drama")
    titles.insert(1, "title", [f"Film {movie}" for movie in titles.movieId])
    titles.to_csv(folder / "movies.csv", index=False)
    monkeypatch.setenv("SPARKML_SGDALS_DATA", str(tmp_path))
    for name in ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED", "SPARK_API_MODE"):
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    said = {cell["id"]: cell["outputs"] for cell in notebook.cells if cell.cell_type == "code"}
    assert "4,000 ratings of 120 users and 90 films" in str(said)
    pictures = [out for outs in said.values() for out in outs if "image/png" in out.get("data", {})]
    assert len(pictures) == 2


def test_outputs_name_no_folder_of_a_machine():
    assert not any(word in NOTEBOOK.read_text() for word in ("/tmp/", "/home/", "/work/"))
