"""The site needs no network: its pictures, scripts and search are in its folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALLS = re.compile(r"pip install[^\n|`]*sparkml[-_]sgdals\[")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
def test_nothing_of_a_page_comes_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"([^\"]+)\"", text)
        own = ("https://sparkml", "#")
        assert not [one for one in loaded if "://" in one and not one.startswith(own)], page
        # the theme would fetch what draws these
        assert 'class="mermaid"' not in text
    assert (site / "search" / "search_index.js").is_file()


@pytest.mark.long
def test_the_reference_has_constructors_and_no_inner_modules(site):
    text = (site / "reference.html").read_text(encoding="utf-8")
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))
    assert re.search(r"StreamingBiasedALS ?\( ?\*, ?userCol", plain)
    assert "sparkml_sgdals.ml." not in plain
    for name in ("recommendOne", "predictOne", "diagnose", "update", "plot_passes"):
        assert f'.{name}"' in text, name


def test_one_page_says_how_to_install():
    """A release changes that page alone."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").iterdir()]
    pages += (ROOT / "sparkml_sgdals").rglob("*.py")
    told = [
        page.relative_to(ROOT).as_posix()
        for page in pages
        if page.is_file() and INSTALLS.search(page.read_text(encoding="utf-8"))
    ]
    assert told == ["docs/install.md"]
