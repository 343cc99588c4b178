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


def test_it_can_be_read_without_being_run():
    cells = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    assert all(cell.outputs for cell in cells[:-1])
    assert sum("image/png" in str(cell.outputs) for cell in cells) == 2
    assert "stderr" not in str([cell.outputs for cell in cells])


def test_outputs_name_no_folder_of_a_machine():
    assert not any(word in NOTEBOOK.read_text() for word in ("/tmp/", "/home/", "/work/"))


FIVE_LINES = """
import pandas as pd
from sparkml_sgdals import StreamingBiasedALS
ratings = pd.read_csv("ratings.csv")
model = StreamingBiasedALS().fit(ratings)
model.recommendOne(ratings.user[0], 5, excludeSeen=ratings)
"""


@pytest.mark.long
def test_five_lines_with_pandas(small, tmp_path, monkeypatch):
    """Whoever wrote them knows of no session, and sees nothing of one but what a start says."""
    small.iloc[:, :3].to_csv(tmp_path / "ratings.csv", index=False)
    told = ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED", "SPARK_API_MODE", "PYSPARK_SUBMIT_ARGS")
    for name in told:
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(FIVE_LINES)])
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute()
    outputs = notebook.cells[0].outputs
    (answer,) = (out["data"]["text/plain"] for out in outputs if "data" in out)
    assert answer.count("Row(item=") == 5
    said = "".join(out.get("text", "") for out in outputs)
    assert not any(word in said for word in ("[Stage", "TaskSetManager", "NativeCodeLoader"))


CELLS = (
    """
import os
from pyspark.sql import SparkSession
from sparkml_sgdals import StreamingBiasedALS
spark = (SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
         .config("spark.sql.shuffle.partitions", "1").getOrCreate())
stream = (spark.readStream.schema("user long, item long, rating double")
          .option("maxFilesPerTrigger", 1).json("in"))
job = StreamingBiasedALS(rank=2).fitStream(stream, "model", trigger="1 second")
""",
    "job",
    """
import time
until = time.time() + 120
while len(job.metrics()) < 4 and time.time() < until:
    time.sleep(0.2)
time.sleep(6)
job.stop()
job.metrics()
""",
)


@pytest.mark.nightly
def test_a_job_is_shown_as_it_is_while_its_stream_runs(small, tmp_path, monkeypatch):
    """The cell that showed it ran before the first batch was learned."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        part = small.iloc[number * 100 : (number + 1) * 100, :3]
        part.to_json(tmp_path / "in" / f"{number}.json", orient="records", lines=True)
    for name in ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED", "SPARK_API_MODE"):
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    client = NotebookClient(notebook, timeout=240, kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path)}})  # fmt: skip
    client.execute()
    (shown,) = (out["data"] for out in notebook.cells[1].outputs if "data" in out)
    assert ">400<" in shown["text/html"]
    assert "baselineRmse" in shown["text/html"]
    (table,) = (out["data"] for out in notebook.cells[2].outputs if "data" in out)
    assert "more columns: metrics(all=True)" in table["text/html"]
    assert table["text/html"].count("<th>") == 10 + 4 + 1
