"""What a notebook shows: whatever the texts, a table of them."""

from __future__ import annotations

import math
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparkml_sgdals.notebook import html_table, number
from sparkml_sgdals.state.diagnosis import Diagnosis

# without what HTML may not hold or reads otherwise
TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)


class Read(HTMLParser):
    """The texts of a page, and its tags."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.tags = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.texts.append("")

    def handle_data(self, data):
        self.texts[-1] += data


@given(TEXT, st.lists(st.tuples(TEXT, TEXT)), TEXT)
@example("<i>&lt;", [("<b>&amp;", "<u>&gt;")], "<p>&quot;")
def test_a_table_says_what_it_was_given(title, rows, note):
    read = Read(html_table(title, rows, note))
    cells = [one for row in rows for one in row]
    assert [text for text in read.texts if text] == [title, *cells, note]
    assert read.tags <= {"div", "b", "table", "tr", "th", "td"}


def test_numbers():
    assert [number(1234567), number(0.123456), number(math.nan)] == ["1,234,567", "0.1235", "nan"]


@pytest.fixture
def diagnosis():
    return Diagnosis(
        ratings=20_000, users=300, items=40, minRatings=5, thinUsers=0.25, thinItems=0.0,
        evidence="held-out", predicted=2_000, rmse=0.8, baselineRmse=1.0,
    )  # fmt: skip


def test_a_diagnosis_shows_its_verdict(diagnosis):
    texts = Read(diagnosis._repr_html_()).texts
    assert {"20,000", "25% of users, 0% of items", "0.8000"} <= set(texts)
    assert "Serve it? Yes: its predictions beat mean and biases by 20.00% (held-out)." in texts
    figure = diagnosis.plot()
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.8, 1.0]


def test_a_diagnosis_needs_matplotlib_only_to_draw(diagnosis):
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from sparkml_sgdals.state.diagnosis import Diagnosis\n"
        f"found = {diagnosis!r}\nprint(len(found._repr_html_()))\n"
        "try: found.plot()\nexcept ImportError as error: print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert "Pictures need matplotlib" in told
