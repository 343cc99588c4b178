"""The lowest allowed versions, as requirements that pip takes."""

from __future__ import annotations

import pytest
from lowest_versions import lowest


def test_lower_bounds_become_versions():
    given = [
        "numpy<3,>=1.26", "pyspark[connect]<5,>=4.0", 'moto[server]>=5; extra == "s3-test"',
        'ruff>=0.9; extra == "dev"', 'mkdocs; extra == "docs"',
        'sparkml-sgdals[s3]; extra == "s3-test"',
    ]  # fmt: skip
    assert lowest(given) == ["moto[server]==5", "numpy==1.26", "pyspark[connect]==4.0"]


@pytest.mark.parametrize("line", ["numpy<3", 'tqdm; extra == "cli"', "numba==0.6"])
def test_a_dependency_without_a_lowest_version_is_named(line):
    with pytest.raises(ValueError, match=line.split("<")[0].split(";")[0].split("=")[0]):
        lowest([line])
