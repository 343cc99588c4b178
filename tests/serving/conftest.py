"""Model paths made without Spark, by the library's own state and storage, and a service on them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fastapi.testclient import TestClient

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.serving.http.guard import Buckets
from sparkml_sgdals.serving.http.routes import Service, make_app
from sparkml_sgdals.serving.intake.folder import FolderIntake
from sparkml_sgdals.serving.intake.history import IntakeColumns
from sparkml_sgdals.serving.server import build_service
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.version_store import VersionStore


@dataclass
class Modeler:
    """What writes a model path: the stream, but without Spark."""

    path: Path
    kinds: tuple[Any, Any] = ("int", "int")
    settings: Settings = field(default_factory=lambda: settings_of(rank=4))
    users: int = 60
    items: int = 40
    types: tuple[str, str] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    start: Callable[[Modeler], ModelState] | None = None
    """makes what the path starts from; a stream of ratings by default"""

    def __post_init__(self) -> None:
        self.store = VersionStore(str(self.path))
        self.state = ModelState.empty(self.settings, *self.kinds)
        rng = np.random.default_rng(1)
        self.taste = rng.normal(0, 0.8, (5_000, 3)), rng.normal(0, 0.8, (5_000, 3))
        names = {"int": "bigint", "str": "string"}
        meta = {
            "settings": self.settings.to_json(), "kinds": list(self.kinds), "origin": "nothing",
            "pathId": "p", "uid": "u", "params": self.params,
            "idTypes": list(self.types or [names[kind] for kind in self.kinds]),
        }  # fmt: skip
        self.rng = rng
        if self.start is None:
            learn_batch(self.state, encode_ratings(self.ratings(3_000)))
        else:
            self.state = self.start(self)
        self.commit: Commit = self.store.create(self.state, meta)

    def key(self, side: int, number: int) -> Any:
        """An id by number: whole numbers, or names with what a URL has to encode."""
        if self.kinds[side] == "int":
            return number * 3 + 1
        return f"{'user' if side == 0 else 'item'}/{number} %é"

    def ratings(self, count: int, first: int = 0, users: int | None = None) -> pa.Table:
        """Ratings of half stars, by taste, of users and items from `first` on."""
        u = self.rng.integers(0, users or self.users, count) + first
        i = self.rng.integers(0, self.items, count) + first
        values = 3.3 + np.sum(self.taste[0][u] * self.taste[1][i], axis=1)
        values += self.rng.normal(0, 0.3, count)
        return self.table(u, i, np.clip(np.round(values * 2) / 2, 0.5, 5.0))

    def table(self, users: Any, items: Any, values: Any) -> pa.Table:
        types = [pa.int64() if kind == "int" else pa.string() for kind in self.kinds]
        return pa.table(
            {
                "user": pa.array([self.key(0, int(n)) for n in users], types[0]),
                "item": pa.array([self.key(1, int(n)) for n in items], types[1]),
                "rating": pa.array(values, pa.float32()),
            }
        )

    def learn(self, table: pa.Table) -> Commit:
        """Learn a batch and commit it."""
        report = learn_batch(self.state, encode_ratings(table))
        number = self.commit.batch + 1
        metrics = {
            "batch": number, "version": self.commit.version + 1,
            "committed": "2026-01-01T00:00:00.000+00:00", "ratings": report.ratings, "invalid": 0,
            "zeroWeight": 0, "newUsers": report.new_users, "newItems": report.new_items,
            "rmse": None if math.isnan(report.rmse) else report.rmse,
            "baselineRmse": None if math.isnan(report.rmse) else report.baseline_rmse,
            "validationRmse": None, "seconds": 0.0,
        }  # fmt: skip
        rows = report.user_rows, report.item_rows
        self.commit = self.store.commit(self.state, rows, number, self.commit, metrics)
        return self.commit


@pytest.fixture
def modeler(tmp_path: Path) -> Callable[..., Modeler]:
    """Makes model paths."""
    return lambda **more: Modeler(tmp_path / "model", **more)


@dataclass
class Running:
    """A service in this process, and a client of it."""

    service: Service
    client: TestClient
    inbox: Path

    def get(self, path: str, status: int = 200, **params: Any) -> Any:
        answer = self.client.get(path, params=params)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path: str, body: Any, status: int = 202, **headers: str) -> Any:
        answer = self.client.post(path, json=body, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.json()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts services on model paths, which follow them only when they are told to poll."""
    opened: list[tuple[Service, TestClient]] = []

    def start(made: Modeler, change: Callable[[Service], None] = lambda s: None, **more: Any):
        folder, inbox = tmp_path / f"cache{len(opened)}", tmp_path / "inbox"
        folder.mkdir()
        service = build_service(
            str(made.path), str(folder), poll_seconds=3600.0,
            intake=lambda names: FolderIntake(str(inbox), names), **more,
        )  # fmt: skip
        service.buckets = Buckets(1e6, 1e7)
        change(service)
        client = TestClient(make_app(service), raise_server_exceptions=False)
        client.__enter__()
        opened.append((service, client))
        return Running(service, client, inbox)

    yield start
    for service, client in opened:
        client.__exit__(None, None, None)
        service.answers.holder.close()
        if service.intake is not None:
            service.intake.close()


@pytest.fixture
def columns() -> IntakeColumns:
    """The columns by default."""
    return IntakeColumns()


@pytest.fixture
def started() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Starts services in processes of their own; each with its address."""
    running: list[subprocess.Popen[str]] = []

    def start(made: Modeler, inbox: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
        command = [
            sys.executable, "-m", "sparkml_sgdals.serving", "--model", str(made.path),
            "--port", "0", "--inbox", str(inbox), *more,
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Serving at http://"), line
        return process, line.split()[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
