"""Whether all steps of blocks are one stage: only where every block is sure to have a core."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest
from building import settings_of

from sparkml_sgdals.fit.blocks import side_by_side
from sparkml_sgdals.fit.blocks.exchange import Half
from sparkml_sgdals.fit.blocks.messages import Job
from sparkml_sgdals.fit.blocks.steps import HANDED_ON, rating_steps
from sparkml_sgdals.fit.plan import Plan


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


def test_states_are_kept_until_they_are_read():
    """A half-sweep reads the state of its side, which lies since that side's last step."""
    oldest = {}
    for moves in product((False, True), repeat=2):
        steps = rating_steps(
            Job(settings_of(max_iter=3), ("int", "int"), (0, 1), threads=1), Plan(2, 1, 0, (3,)),
            moves,
        )  # fmt: skip
        written, ages = {"users": 0, "items": 0}, []
        for number, (_, step, _) in enumerate(steps, 1):
            for side in (step.side,) if isinstance(step, Half) else written:
                ages.append(number - written[side])
                written[side] = number
        oldest[moves] = max(ages + [len(steps) + 1 - number for number in written.values()])
    assert oldest[False, False] == 2
    assert max(oldest.values()) == HANDED_ON
