"""Every `sparkml-sgdals` line of README.md and docs/ runs, page by page, in a folder of its own.

A line finds ml-latest-small/ (ratings.csv, movies.csv), and on other pages than the tutorial
what the tutorial makes: data/ and model/. A block that cannot run here has a line before its fence
that says why: <!-- not run: needs the internet -->
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparkml_sgdals.cli.app import app

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"^(?:<!-- not run: (?P<why>.+?) -->\n)?```sh\n(?P<code>.*?)^```$", re.M | re.S)
LOCAL = re.compile(r"(data/|(data|model|films|arriving|ml-latest-small)$)")
READY = "sparkml-sgdals data movielens data --from ml-latest-small\n" \
        "sparkml-sgdals fit data/ratings.parquet model\n"  # fmt: skip


def lines(text):
    """The command's lines of the blocks of a page that can run."""
    blocks = [block["code"] for block in BLOCK.finditer(text) if not block["why"]]
    code = "".join(blocks).replace("\\\n", " ")
    found = [shlex.split(line, comments=True) for line in code.splitlines()]
    return [words[1:] for words in found if words[:1] == ["sparkml-sgdals"]]


PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if lines(page.read_text(encoding="utf-8"))
]
LONG = {"command-line.md", "tutorial.md"}
MARKED = [
    pytest.param(page, marks=pytest.mark.long) if page.name in LONG else page for page in PAGES
]


@pytest.mark.parametrize("page", MARKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page, spark, small, tmp_path, monkeypatch):
    folder = tmp_path / "ml-latest-small"
    folder.mkdir()
    table = small.rename(columns={"user": "userId", "item": "movieId", "time": "timestamp"})
    table.userId = table.userId // 7 + 1
    table.to_csv(folder / "ratings.csv", index=False)
    titles = table[["movieId"]].drop_duplicates().assign(title="A film", genres="Drama")
    titles.to_csv(folder / "movies.csv", index=False)
    monkeypatch.chdir(tmp_path)
    before = "" if page.name == "tutorial.md" else f"```sh\n{READY}```\n"
    for said in lines(before + page.read_text(encoding="utf-8")):
        # a JVM stays in the folder where it was started
        words = [
            str(tmp_path / word) if n and LOCAL.match(word) else word for n, word in enumerate(said)
        ]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{page.name}: {' '.join(words)}\n{done.output}"


def test_pages_and_lines_are_found():
    assert {"tutorial.md", "command-line.md"} <= {page.name for page in PAGES}
    text = (
        "<!-- not run: no -->\n```sh\nsparkml-sgdals a\n```\ntext\n"
        "```sh\nmake x\nsparkml-sgdals b 'c d'  # why\n```\n"
    )
    assert lines(text) == [["b", "c d"]]
