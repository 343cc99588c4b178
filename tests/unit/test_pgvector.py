"""What docs/how-to/vectors.md does with pgvector, done to a real PostgreSQL.

With `pip install pgserver "psycopg[binary]"`, which bring PostgreSQL and pgvector; skipped without.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from writing import Writer

from sparkml_sgdals import VectorFeed
from sparkml_sgdals.state.vectors import vector_table
from sparkml_sgdals.store.forgetting import forget_users

pgserver = pytest.importorskip("pgserver", reason="needs pgserver: PostgreSQL with pgvector")
psycopg = pytest.importorskip("psycopg", reason="needs psycopg, the client of PostgreSQL")

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "vectors.md"


def rows(connection, query, *given):
    return connection.execute(query, given).fetchall()


def test_the_loop_of_the_how_to(tmp_path_factory):
    """Taken up version by version, and after a user is forgotten: all bits, and its best items."""
    (loop,) = re.findall(r"```python\n(import psycopg\n.*?)```", HOW_TO.read_text("utf-8"), re.S)
    made = Writer(tmp_path_factory.mktemp("path") / "model", True)
    width = made.state.settings.rank + 2
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    try:
        address = server.get_uri()
        # ids of items are texts in these versions
        for told, own in (
            ("dbname=films", address), ("vector(10)", f"vector({width})"), ("bigint", "text"),
        ):  # fmt: skip
            assert told in loop
            loop = loop.replace(told, own)
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
            for step in range(5):
                if step == 3:
                    forget_users(made.store, pa.array([1]))
                    made.state, made.commit = made.store.load()
                else:
                    made.learn()
                exec(loop, {"feed": VectorFeed(made.path)})
                state, _ = made.store.load()
                expected = vector_table(state.items, state.scale)
                found = rows(
                    connection, 'SELECT id, vector::real[] FROM items ORDER BY id COLLATE "C"'
                )
                assert [row[0] for row in found] == expected["id"].to_pylist()
                np.testing.assert_array_equal(
                    np.array([row[1] for row in found], np.float32),
                    np.array(expected["vector"].to_pylist(), np.float32),
                )
            someone = vector_table(state.users, state.scale)["vector"][0].as_py()
            matrix = np.array(expected["vector"].to_pylist(), np.float32)
            scores = matrix @ np.array(someone, np.float32)
            best = rows(
                connection, "SELECT -(vector <#> %s::vector) FROM items ORDER BY 1 DESC LIMIT 3",
                str(someone),
            )  # fmt: skip
            top = np.sort(scores)[::-1][:3]
            np.testing.assert_allclose([row[0] for row in best], top, rtol=1e-4, atol=1e-5)
    finally:
        server.cleanup()
