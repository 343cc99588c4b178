"""Which tables are learned in blocks, and what is said of those that cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from building import settings_of

from sparkml_sgdals.fit.plan import FitOptions, blocks_to_path, choose_blocks
from sparkml_sgdals.ingest.columns import RatingColumns
from sparkml_sgdals.state.settings import Settings

TABLE = settings_of(learns_events=True, table_rank=8)


def options(blocks: int = 0, most: int = 100, time: str | None = None) -> FitOptions:
    """How a table is spread."""
    columns = RatingColumns("user", "item", "rating", time)
    return FitOptions(columns, ("int", "int"), "error", blocks, 1, most, 10)


def chosen(settings: Settings, given: FitOptions, size: int, **fields: Any) -> int:
    """Blocks of a table of so many rows."""
    return choose_blocks(size, settings, given, **{"stops": (3,), "fresh": True} | fields)


@pytest.mark.parametrize("settings", [settings_of(), TABLE])
def test_size_and_num_blocks_choose(settings: Settings) -> None:
    assert chosen(settings, options(), 100) == 1
    assert chosen(settings, options(), 101) == 4
    assert chosen(settings, options(blocks=3), 10) == 3
    assert chosen(settings, options(blocks=1), 1000) == 1


@pytest.mark.parametrize(
    ("rows", "blocks", "most", "on_disk", "expected"),
    [
        (10, 0, 100, True, 2),
        (150, 0, 100, True, 4),
        (150, 1, 100, True, 1),
        # a task holds the rows of all ids that its ratings name
        (30_000_001, 0, 40_000_000, True, 4),
        # its rows go through Spark as one value a block
        (15_000_001, 0, 40_000_000, False, 4),
    ],
)
def test_blocks_that_write_their_rows(
    rows: int, blocks: int, most: int, on_disk: bool, expected: int
) -> None:
    assert blocks_to_path(rows, options(blocks, most), on_disk) == expected


def test_events_go_onto_a_model_in_one_task() -> None:
    """Whatever blocks the model was fitted in."""
    assert chosen(TABLE, options(blocks=3), 100, fresh=False) == 1
    assert chosen(settings_of(), options(blocks=3), 100, fresh=False) == 3


@pytest.mark.parametrize(
    ("settings", "time", "fields", "reason", "remedy"),
    [
        (TABLE, "at", {}, "timestampCol 'at'.* order", "leave timestampCol out"),
        (TABLE, None, {"stops": (0, 2)}, "maxIter=0", "set maxIter to 1 or more"),
        (TABLE, None, {"fresh": False}, "added to a model", "in parts with update or a stream"),
        (replace(TABLE, solver="isgd", table_rank=0), None, {}, "one by one.*'isgd'", "in parts"),
        (replace(TABLE, table_rank=0), None, {}, "one by one.*'bayes'", "in parts"),
    ],
)
def test_events_that_one_task_has_to_learn(
    settings: Settings, time: str | None, fields: dict[str, Any], reason: str, remedy: str
) -> None:
    assert chosen(settings, options(time=time), 100, **fields) == 1
    blocks = f"numBlocks is 3, and .*{reason}.*set numBlocks to 1, or .*{remedy}"
    large = f"has 101 events, maxRatingsPerTask is 100, .*{reason}.*raise maxRatings.*{remedy}"
    with pytest.raises(ValueError, match=blocks):
        chosen(settings, options(blocks=3, time=time), 101, **fields)
    with pytest.raises(ValueError, match=large):
        chosen(settings, options(time=time), 101, **fields)
