"""A real S3 server for the tests marked `s3`, and S3A in the session of the run."""

from __future__ import annotations

import itertools

import pytest
from s3_server import BUCKET, S3Server

_numbers = itertools.count()
_server = pytest.StashKey[S3Server]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Jars and addresses have to be there when the JVM starts, at the first test that asks."""
    if any(item.get_closest_marker("s3") for item in session.items):
        session.config.stash[_server] = S3Server().__enter__()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop it."""
    if _server in config.stash:
        config.stash[_server].__exit__(None, None, None)


@pytest.fixture(params=["s3a", "s3"])
def place(request: pytest.FixtureRequest) -> str:
    """A path in the bucket where nothing is yet."""
    return f"{request.param}://{BUCKET}/path-{next(_numbers)}/model"
