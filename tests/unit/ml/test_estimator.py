"""What the estimator's docstring tells of its Params is what they are."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass

import pytest

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.ml.params.solvers import EVENT_DEFAULTS

PARAMETERS = inspect.signature(StreamingBiasedALS).parameters
KEYWORDS = [name for name in PARAMETERS if name != "self"]
NUMBERS = [
    name
    for name in KEYWORDS
    if PARAMETERS[name].annotation.split(" ")[0] in ("int", "float") and name != "seed"
]


@dataclass(frozen=True)
class Told:
    type: str
    default: object
    text: str


def told_of_params() -> dict[str, Told]:
    """The Parameters section of the class docstring, read as numpydoc writes it."""
    doc = inspect.getdoc(StreamingBiasedALS)
    assert doc is not None
    section = doc.split("Parameters\n----------\n", 1)[1].split("\n\n", 1)[0]
    heads = re.findall(r"^(\S+) : (.+), default (.+)\n((?:    .+\n?)+)", section, re.M)
    # each line is one of a head or of its description
    assert sum(1 + text.strip().count("\n") + 1 for *_, text in heads) == section.count("\n") + 1
    names = [name for name, *_ in heads]
    assert len(set(names)) == len(names)
    return {
        name: Told(type_, ast.literal_eval(default), " ".join(text.split()))
        for name, type_, default, text in heads
    }


def test_the_docstring_tells_every_keyword_and_nothing_else() -> None:
    assert list(told_of_params()) == KEYWORDS


@pytest.mark.parametrize("name", KEYWORDS)
def test_the_docstring_tells_a_params_type_default_and_meaning(name: str) -> None:
    als, told = StreamingBiasedALS(), told_of_params()[name]
    default = als.getOrDefault(name) if als.hasDefault(name) else None
    assert (told.default, type(told.default)) == (default, type(default))
    assert told.type == PARAMETERS[name].annotation
    # the Param's own words, with a range after them
    assert told.text.startswith(als.getParam(name).doc.rstrip("."))


@pytest.mark.parametrize("solver", EVENT_DEFAULTS)
def test_the_docstring_tells_the_defaults_of_events(solver: str) -> None:
    told = told_of_params()
    for name, value in EVENT_DEFAULTS[solver].items():
        if value != told[name].default:
            assert re.search(rf"under implicitPrefs {value}(?![\d.]*\d)", told[name].text), name


@pytest.mark.parametrize("name", NUMBERS)
def test_the_docstring_tells_the_range_of_a_number(name: str) -> None:
    """A number just out of the range is refused, the least one within it is not."""
    text = told_of_params()[name].text
    # where 0 has a meaning of its own, that is the range
    bound = re.search(r"(at least|above) (\d+)", text) or re.search(r"(\b)(0) = ", text)
    assert bound is not None
    low = int(bound[2])
    out, within = (low, low + 1) if bound[1] == "above" else (low - 1, low)
    with pytest.raises(ValueError, match=name):
        StreamingBiasedALS(**{name: out})
    assert StreamingBiasedALS(**{name: within}).getOrDefault(name) == within
