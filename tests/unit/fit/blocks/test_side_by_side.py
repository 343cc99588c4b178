"""Whether all steps of blocks are one stage: only where every block is sure to have a core."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sparkml_sgdals.fit.blocks import side_by_side


@pytest.mark.parametrize(
    ("conf", "blocks", "expected"),
    [
        ({"spark.master": "local[2]"}, 2, True),
        ({"spark.master": "local[2]"}, 3, False),
        # a failed task is tried again
        ({"spark.master": "local[4, 2]"}, 4, False),
        ({"spark.master": "local"}, 2, False),
        ({"spark.master": "local[4]", "spark.task.cpus": "2"}, 3, False),
        ({"spark.master": "local[4]", "spark.task.cpus": "2"}, 2, True),
        # executors come and go there
        ({"spark.master": "spark://host:7077", "spark.default.parallelism": "64"}, 2, False),
        ({"spark.master": "yarn"}, 2, False),
    ],
)
def test_every_block_has_a_core(conf, blocks, expected):
    session = SimpleNamespace(conf=conf)
    assert side_by_side.run_side_by_side(session, blocks) is expected


@pytest.mark.parametrize("remote", [True, False])
def test_cores_of_another_machine_are_not_counted(monkeypatch, remote):
    monkeypatch.setattr(side_by_side, "is_remote", lambda: remote)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    session = SimpleNamespace(conf={"spark.master": "local[*]"})
    assert side_by_side.run_side_by_side(session, 2) is not remote
