"""Every Python block of README.md and docs/ runs: in order, page by page, in one namespace a page.

A block finds what `namespace` prepares: spark, the tables ratings, new_ratings, held_out (userId,
movieId, rating, timestamp) and pairs (userId, movieId), and `stream`, two files of ratings. Paths
under /models/ become a temporary folder. A block that cannot run here has a line before its fence
that says why: <!-- not run: needs a Kafka broker -->
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import functions as F

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n)?```python\n(?P<code>.*?)^```$", re.M | re.S
)
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if BLOCK.search(page.read_text(encoding="utf-8"))
]
LONG = {
    "changed-ratings.md",
    "coming-from-als.md",
    "cold-start.md",
    "hyperparameters.md",
    "large-models.md",
    "metrics.md",
    "other-tables.md",
    "pictures.md",
    "shortlists.md",
    "vectors.md",
    "warm-start.md",
    "without-spark.md",
}
MARKED = [
    pytest.param(page, marks=pytest.mark.long) if page.name in LONG else page for page in PAGES
]

RELATIVE = ("data/", "arriving", "films-2")
"""what the tutorial's commands have made before its Python runs"""


def run(page, names, folder):
    """Run the blocks of a page; a failure shows the page and its line."""
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        if block["why"]:
            continue
        code = block["code"].replace('"/models/', f'"{folder}/')
        for name in RELATIVE:
            # a JVM stays in the folder where it was started
            code = code.replace(f'"{name}', f'"{folder.parent}/{name}')
        # the lines before make the numbers of the page those of a traceback
        padding = "\n" * text.count("\n", 0, block.start("code"))
        exec(compile(padding + code, str(page), "exec"), names)


@pytest.fixture
def namespace(spark, small, files, stream):
    table = small.rename(columns={"user": "userId", "item": "movieId", "time": "timestamp"})
    schema = "userId long, movieId long, rating double, timestamp long"
    names = {
        "spark": spark,
        "ratings": spark.createDataFrame(table.iloc[:3000], schema),
        "new_ratings": spark.createDataFrame(
            table.iloc[3000:3200].assign(userId=lambda d: d.userId + d.userId % 2), schema
        ),
        "held_out": spark.createDataFrame(table.iloc[3200:3600], schema),
        "pairs": spark.createDataFrame(table.iloc[3200:3600, :2], "userId long, movieId long"),
        "stream": stream(files(table.iloc[3600:], 200), schema),
    }
    yield names
    for query in spark.streams.active:
        query.stop()


def alone(namespace, folder):
    """Return what a program has that starts after the tutorial's commands: their files."""
    (folder / "data").mkdir()
    (folder / "arriving").mkdir()
    table = namespace["ratings"].toPandas()
    # what Connect tells of its plan there, Parquet has no words for
    table.attrs = {}
    table.userId = table.userId // 7 + 1
    table.to_parquet(folder / "data" / "ratings.parquet", index=False)
    table.head(500).to_json(folder / "arriving" / "a.json", orient="records", lines=True)
    return {}


def check_coming_from_als(names, folder):
    spark, pipeline = names["spark"], names["pipeline_model"]
    assert names["predictions"].count() <= names["held_out"].count()
    assert {len(r.recommendations) for r in names["best"].collect()} == {10}
    assert (names["model"].rank, names["model"].version) == (5, 1)
    assert names["job"].metrics().ratings.to_list() == [200, 200]
    # update made version 1, the stream two more
    versions = [m.stages[-1].version for m in (pipeline, names["serving"])]
    assert versions == [names["job"].model.version] * 2
    assert pipeline.stages[-1].state.counters.ratings == 3000 + 200 + 400
    scored = names["scored"].toPandas()
    assert len(scored) == names["pairs"].count()
    assert np.isfinite(scored.prediction).all()
    rows = spark.read.parquet(f"{folder}/scored/rows")
    assert rows.count() == 400
    assert rows.where(F.isnan("prediction") | F.col("prediction").isNull()).count() == 0


def check_readme(names, folder):
    assert names["model"].version == 1
    assert names["job"].model.version >= 0
    assert (folder / "films" / "model.json").exists()


CHECKS = {"coming-from-als.md": check_coming_from_als, "README.md": check_readme}
"""What holds after a page, beyond that it runs"""


@pytest.mark.parametrize("page", MARKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page, namespace, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    if page.name == "tutorial.md":
        namespace = alone(namespace, tmp_path)
    run(page, namespace, folder)
    CHECKS.get(page.name, lambda names, folder: None)(namespace, folder)


def test_pages_and_blocks_are_found():
    assert {"README.md", "coming-from-als.md"} <= {page.name for page in PAGES}
    found = list(
        BLOCK.finditer("<!-- not run: no -->\n```python\na\n```\ntext\n```python\nb\n```\n")
    )
    assert [(block["why"], block["code"]) for block in found] == [("no", "a\n"), (None, "b\n")]


def test_a_block_that_fails_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as failure:
        run(page, {}, tmp_path)
    assert failure.traceback[-1].lineno + 1 == 8


def test_the_page_names_every_test_of_spark():
    """Each of our tests after Spark's stands on the page, and the page names no other."""
    page = (ROOT / "docs" / "coming-from-als.md").read_text(encoding="utf-8")
    tests = (ROOT / "tests" / "spark" / "test_from_als.py").read_text(encoding="utf-8")
    ours = {
        name
        for name, doc in re.findall(r'def (test_\w+)\(.*?\n\s+"""(.+?)"""', tests, re.S)
        if not doc.startswith("Ours")
    }
    section = page.split("## Spark's own tests")[1]
    named = set(re.findall(r"`(test_\w+)`", section)) - {"test_nothing_stays_cached"}
    for suffix in ("fractions", "other_types"):
        named.add(f"test_als_validate_input_dataset_{suffix}")
    assert named == ours
