"""The pages made of results: places filled, the rest untouched, and verdicts that can be no."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def page(monkeypatch):
    if not (FOLDER / "page.py").is_file():
        pytest.skip("the benchmarks are not part of a source distribution")
    monkeypatch.syspath_prepend(str(FOLDER))
    import page

    return page


def result(name, ratios, rows=(), **more):
    machine = {"cpu": "Z80", "cores": 2, "memoryGiB": 24, "system": "CP/M", "load": 0.1}
    return {
        "benchmark": name, "date": "2026-11-25", "machine": machine,
        "versions": {"python": "3.11"}, "rows": list(rows), "ratios": ratios,
    } | more  # fmt: skip


def place(name, text="old"):
    return f"before\n<!-- made by benchmarks/page.py: {name} -->\n{text}\n<!-- end -->\nafter\n"


def test_verdicts(page):
    found = page.targets({"recommend": result("recommend", {"transform": 1.3}, pairs=10)})
    line = next(line for line in found.splitlines() if line.startswith("| transform"))
    assert line.split(" | ")[1:] == ["1.5", "1.2", "1.3", "yes", "10 pairs |"]
    found = page.targets({"recommend": result("recommend", {"transform": 1.1})})
    assert "| 1.1 | **no** |" in found
    found = page.targets({"model_size": result("model_size", {"dearest to cheapest": 1.2})})
    assert "| 1.15 | 1.2 | **no** |" in found
    found = page.targets({"model_size": result("model_size", {"dearest to cheapest": 1.1})})
    assert "| 1.15 | 1.1 | yes |" in found
    assert "not measured" in found


def test_a_place_is_filled_and_nothing_else_changes(page):
    rows = [{"label": "ALS", "median": 2.0, "low": 1.0, "high": 3.0, "runs": 5, "medianCpu": 4.0}]
    made = page.filled(place("grid"), {"grid": result("grid", {}, rows)})
    assert made.startswith("before\n<!-- made by benchmarks/page.py: grid -->\n")
    assert made.endswith("<!-- end -->\nafter\n")
    assert "| ALS | 2.00 s | 1.00 s to 3.00 s | 5 | 4.00 s |" in made
    assert "old" not in made
    # the same results again change nothing
    assert page.filled(made, {"grid": result("grid", {}, rows)}) == made


def test_a_place_without_a_result_stays(page):
    assert page.filled(place("grid"), {}) == place("grid")


def test_a_target_that_is_not_measured_again_keeps_its_row(page):
    both = {
        "recommend": result("recommend", {"transform": 1.3}, pairs=10),
        "model_size": result("model_size", {"dearest to cheapest": 1.2}),
    }
    before = page.filled(place("targets"), both)
    after = page.filled(before, {"recommend": result("recommend", {"transform": 1.4}, pairs=20)})
    assert [line for line in before.splitlines() if "1.15 | 1.2 | **no**" in line]
    changed = set(after.splitlines()) ^ set(before.splitlines())
    assert len(changed) == 2
    assert all(line.startswith("| transform") for line in changed)
    assert "| 1.4 | yes | 20 pairs |" in after
    # and one that was never measured says so
    assert "not measured" in page.filled(place("targets"), {"recommend": both["recommend"]})


def test_a_place_that_nobody_fills_is_an_error(page):
    with pytest.raises(KeyError, match="nonsense"):
        page.filled(place("nonsense"), {})


def test_results_of_another_form_are_left_out(page, tmp_path):
    (tmp_path / "soak.json").write_text(json.dumps({"ratings": 1}))
    (tmp_path / "grid.json").write_text(json.dumps(result("grid", {"ALS": 2.0})))
    assert list(page.read_results(tmp_path)) == ["grid"]


def test_every_place_of_the_docs_has_a_maker(page):
    names = set()
    for name in page.PAGES:
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        names |= set(re.findall(r"<!-- made by benchmarks/page\.py: ([\w-]+) -->", text))
        assert text.count("<!-- made by") == text.count("<!-- end -->")
    assert names == set(page.SECTIONS)


def test_what_a_cluster_would_move_follows_from_the_bytes_measured(page):
    one = {
        "learned": 1_000_000, "ids": [10_000, 5_000], "blocks": 8, "shuffledPerRating": 20.0,
        "shuffledPerRatingAndSweep": 1.0, "shuffledPerIdAndSweep": 800.0,
        "writtenPerRating": 60.0, "readPerRatingAndSweep": 20.0,
    }  # fmt: skip
    found = page.cluster({"scale": result("scale", {}, blocks=[one])})
    # 8 copies of 100 bytes here; there 100 copies, as many as a user has ratings
    assert "| written to the blocks' files, before the sweeps | 600 GB |" in found
    assert "| read from them a sweep | 200 GB |" in found
    assert "| shuffled once, before the sweeps | 200 GB |" in found
    assert "| shuffled a sweep | 1,000 GB |" in found
    assert "| shuffled in a fit of 5 sweeps | 5,200 GB |" in found


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (12.34, "12.3"), (1234567.0, "1,234,567"), (None, "")]
)
def test_numbers(page, value, text):
    assert page.number(value) == text


def test_the_index_names_every_program():
    text = (FOLDER / "README.md").read_text()
    named = set(re.findall(r"`(\w+\.py)`", text))
    assert named == {path.name for path in FOLDER.glob("*.py")}
