"""The workflows run what is promised: each mark of the tests, each supported Python; by hash."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()
PARTS = dict(re.findall(r"^PART_([\w-]+) :=(?: -m '(.*?)')?", MAKEFILE, re.M))
MARKS = re.findall(r'^    "(\w+): ', PROJECT.split("markers = [")[1].split("]")[0], re.M)


def jobs():
    """Each job of each workflow, by its name."""
    return {f"{path.stem} {name}": job for path in WORKFLOWS
            for name, job in yaml.safe_load(path.read_text())["jobs"].items()}  # fmt: skip


def called():
    """What each job makes: words after `make`, those of its matrix put in."""
    for job in jobs().values():
        matrix = job.get("strategy", {}).get("matrix", {})
        parts = {*matrix.get("part", ()), *(one.get("part") for one in matrix.get("include", ()))}
        for step in job.get("steps", ()):
            for words in re.findall(r"\bmake (.+)", step.get("run", "")):
                for part in parts or {None}:
                    yield words.replace("${{ matrix.part }}", str(part))


def run_parts():
    return {part for words in called() for part in re.findall(r"^test PART=([\w-]+)", words)}


def selected(expression, marks):
    """Whether an expression of pytest's -m takes a test with these marks."""
    return eval(expression, {}, {mark: mark in marks for mark in MARKS})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_may_only_read(path):
    text = path.read_text()
    for action in re.findall(r"uses: +(.+)", text):
        assert action.startswith("./") or re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d.*", action)
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    asked = {name for name, job in jobs().items() if "permissions" in job}
    assert asked == {"release build", "release publish", "release announce"}
    assert text.count("uses: actions/checkout@") == text.count("persist-credentials: false")


def test_what_is_made_is_there():
    targets = set(re.findall(r"^([a-z-]+):.* ## ", MAKEFILE, re.M))
    words = list(called())
    assert {one.split()[0] for one in words} <= targets
    assert run_parts() == set(PARTS)
    ci = (ROOT / ".ci" / "run").read_text()
    assert set(re.findall(r"^make test PART=([\w-]+)$", ci, re.M)) == {"long", "connect", "cluster"}


def test_some_part_takes_each_combination_of_marks():
    default = re.search(r"-m '(.+?)'\"", PROJECT)[1]
    expressions = [PARTS[part] or default for part in run_parts()]
    left = {frozenset(marks) for n in range(len(MARKS) + 1)
            for marks in itertools.combinations(MARKS, n)
            if not any(selected(one, marks) for one in expressions)}  # fmt: skip
    # kills by the hour, whose harness `make kills` runs
    assert {marks - {"long", "nightly"} for marks in left} == {
        frozenset({"slow", "connect"}), frozenset({"slow", "kafka"}),
        frozenset({"slow", "kafka", "connect"}), frozenset({"slow", "s3", "connect"}),
        frozenset({"slow", "kafka", "s3", "connect"}),
    }  # fmt: skip


def test_each_python_that_is_claimed_is_tried():
    claimed = set(re.findall(r"Python :: (3\.\d+)", PROJECT))
    matrix = jobs()["ci test"]["strategy"]["matrix"]
    assert claimed == {*matrix["python"], *(one["python"] for one in matrix["include"])}


def test_hooks_are_those_of_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = MAKEFILE.split("lint:")[1].split("grep")[0]
    assert len(hooks) == 3
    for hook in hooks:
        tool = hook["entry"].removeprefix(".venv/bin/python -m ").removesuffix(" --force-exclude")
        assert f"$(PY) -m {tool}" in lint
