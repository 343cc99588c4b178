"""Versions of a model on storage: immutable files, one commit object each, no rename (driver).

A *model path* holds

    model.json                what never changes: settings, params, kinds of ids, origin
    files/NNN-token-*.parquet factors: all of them (a *base*) or the rows a batch touched
    files/NNN-token-*.rows    the same of a model larger than memory: sorted runs, see `sorted_runs`
    commits/NNN.json          version NNN exists from the moment that this object is there, whole
    invalid/batch-NNN.parquet rows set aside, as JSON
    validation.parquet        held-out ratings that a stream is scored on
    checkpoint/               Spark's own; checkpoint-NNN/ since the rollback that made version NNN
    lease.json                who writes

A version is its base and the rows of every version since, in order; a base is the files of its
version, or the runs that a later commit names for it. A commit object carries its
own checksum, so one broken off while it was written does not count. On a local disk the files of a
version and the commit object are synced, all at once, before that gets its name and counts.
"""

from __future__ import annotations

import bisect
import itertools
import json
import logging
import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeVar

import pyarrow as pa

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.threads import Together
from sparkml_sgdals.errors import DamagedError, GoneError, StorageError
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.commit import FORMAT_VERSION, Base, Commit, check_format
from sparkml_sgdals.store.described import META, meta_digest, table_of
from sparkml_sgdals.store.objects import (
    NothingPutError,
    ObjectStore,
    full_path,
    spark_path,
)
from sparkml_sgdals.store.packed_rows import RowShape, unpack_rows
from sparkml_sgdals.store.shapes import parse_json
from sparkml_sgdals.store.sorted_runs import Run

__all__ = [
    "MAX_DELTAS", "StorageError", "VersionStore", "full_path", "spark_path",
]  # fmt: skip

logger = logging.getLogger(__name__)

_MIN_ROWS_OF_BASE: Final = 20_000
MAX_DELTAS: Final = 500
_READ_AGAIN: Final = 20
_COMMIT_NAME: Final = re.compile(r"[0-9]{12}\.json")

T = TypeVar("T")


class VersionStore(ObjectStore):
    """Reads and writes the versions under one model path; holds no state but the path."""

    # ---- what never changes -----------------------------------------------------------------

    def meta(self) -> dict[str, Any] | None:
        """Return what was written when the path was made; None where there is no model.

        Raises StorageError where it is damaged or of another format.
        """
        payload = self.read("model.json")
        if payload is None:
            return None
        damage: Any = "its checksum does not fit"
        try:
            meta: dict[str, Any] = parse_json(payload)
            check_format(meta["format"], f"The model at {self.path}")
            if meta.get("sha256") in (None, meta_digest(meta)):
                damage = META.fault(meta, "it")
                if damage is None:
                    return meta
        except (ValueError, KeyError, TypeError, AttributeError) as failure:
            damage = failure
        raise StorageError(
            f"{self.path}/model.json is damaged ({damage}): restore it, read it with the release "
            "of sparkml_sgdals that wrote it, or choose another path."
        )

    def create(self, state: ModelState, meta: dict[str, Any]) -> Commit:
        """Make the path with `state` as its version 0."""
        digest = self.put_meta(meta)
        return self.commit(state, None, batch=-1, previous=None, metrics=None, meta=digest)

    def put_meta(self, meta: dict[str, Any]) -> str:
        """Write what never changes; returns its digest, for the first commit."""
        meta = {name: meta[name] for name in meta if name != "sha256"} | {"format": FORMAT_VERSION}
        digest = meta_digest(meta)
        self.replace("model.json", json.dumps(meta | {"sha256": digest}, indent=1).encode())
        return digest

    def check_meta(self, commit: Commit) -> None:
        """See that model.json is the one that a commit was made under.

        Raises StorageError where it is another one.
        """
        found = (self.meta() or {}).get("sha256")
        if commit.meta is not None and found != commit.meta:
            raise StorageError(
                f"{self.path}/model.json is not the one that version {commit.version} was "
                "committed under: it is another model's, or was changed. Restore it."
            )

    # ---- versions ---------------------------------------------------------------------------

    def numbers(self) -> list[int]:
        """Numbers of the commit objects there are, rising; the last may not be whole."""
        # no version is ever looked for under another name
        names = self.names("commits")
        return [int(name[:12]) for name in names if _COMMIT_NAME.fullmatch(name)]

    def read_commit(self, version: int) -> Commit | None:
        """Return a commit, None where there is none or it is not whole.

        Raises StorageError where it is of another format or cannot be read, DamagedError where it
        cannot be used.
        """
        payload = self.read(name := _commit_name(version))
        return None if payload is None else self._commit_of(payload, name)

    def sound_commit(self, version: int) -> Commit | None:
        """Return a commit, None where it is not whole or cannot be used; else as `read_commit`."""
        try:
            return self.read_commit(version)
        except DamagedError as damage:
            logger.warning("%s", damage)
            return None

    def newest(self) -> Commit | None:
        """Return the newest version, None where there is none.

        Raises StorageError where a commit object that is not the last one is damaged.
        """
        return self.steadily(self._newest)

    def _newest(self) -> Commit | None:
        numbers = self.numbers()
        for place, number in enumerate(reversed(numbers)):
            name = _commit_name(number)
            payload = self.read(name)
            commit = None if payload is None else self._commit_of(payload, name)
            if commit is not None:
                return commit
            if payload is None or place > 0 or not Commit.broken_off(payload):
                kind = GoneError if payload is None else StorageError
                raise kind(
                    f"{self.path}/{name} is damaged. Older versions may be whole: "
                    "StreamingBiasedALSModel.versions(path) lists them, rollback(path, n) goes "
                    "back to one."
                )
            logger.warning("commit %d at %s is not whole and does not count", number, self.path)
        return None

    def commit(
        self,
        state: ModelState,
        rows: tuple[Any, Any] | None,
        batch: int,
        previous: Commit | None,
        metrics: dict[str, Any] | None,
        restored: Commit | None = None,
        checkpoint: str | None = None,
        check: Callable[[], None] = lambda: None,
        extra: dict[str, Any] | None = None,
        onto: Base | None = None,
        offsets: dict[str, Any] | None = None,
        meta: str | None = None,
        after: int | None = None,
    ) -> Commit:
        """Write the next version.

        Parameters
        ----------
        state : ModelState
            the model from this version on, or the part of it in memory where `onto` is given
        rows : tuple[Any, Any] | None
            rows of users and items that changed since `previous`; None to write all
        batch : int
            number of the last batch of the stream that counts as learned, -1 for none
        previous : Commit | None
            the newest version so far; None for the first
        metrics : dict[str, Any] | None
            what was measured of the batch, of JSON types; None where nothing was
        restored : Commit | None
            the version that `state` is of, where it is not the one after `previous`: the history of
            metrics is then that one's
        checkpoint : str | None
            folder of Spark's checkpoint from now on, by default that of `previous`
        check : Callable[[], None]
            called when all files stand, before the commit object; raises where another holds the
            lease by then
        extra : dict[str, Any] | None
            more to keep among the commit's `scalars`, of JSON types
        onto : Base | None
            runs to which `rows` are added, where `state` holds a part of the model alone
        offsets : dict[str, Any] | None
            what the batch was read from, as `checkpoint.agreement.reading` tells it
        meta : str | None
            digest of model.json, of the first version; later ones have it from `previous`
        after : int | None
            number that the version follows, where the commit of that number is damaged; `previous`
            is then an older one

        Raises
        ------
        StorageError
            it cannot be written, or another process has committed this version
        ValueError
            all is to be written, of a state that holds a part of the model
        """
        version = 0 if previous is None else 1 + (previous.version if after is None else after)
        delta_rows = 0
        ids = [state.users.size, state.items.size] if onto is None else onto.ids
        if rows is not None and previous is not None:
            delta_rows = previous.delta_rows + rows[0].size + rows[1].size
            if onto is not None:
                delta_rows += onto.delta_rows - previous.delta_rows
            elif delta_rows > max(_MIN_ROWS_OF_BASE, sum(ids)) or (
                version - previous.base > MAX_DELTAS
            ):
                rows = None
        is_base = rows is None or previous is None
        if state.partial and (is_base or onto is None):
            raise ValueError("The state holds a part of the model: it cannot be a base.")
        base = version if is_base or previous is None else previous.base
        runs = None if is_base or previous is None else previous.runs
        if onto is not None:
            base, runs = onto.version, onto.runs
        name = f"{version:012d}-{uuid.uuid4().hex[:8]}"
        # known before they are written, so that one broken off goes as well
        written = [f"files/{name}-{part}.parquet" for part in ("users", "items", "metrics")]
        files = {}
        together = Together()
        with self.or_without(written, Exception, together):
            for number, (part, side) in enumerate((("users", state.users), ("items", state.items))):
                table = side.to_arrow(None if rows is None else rows[number])
                files[part] = self.write_table(f"files/{name}-{part}.parquet", table, together)
            if is_base and previous is not None:
                history = self.metrics(restored or previous, lenient=restored is not None)
                files |= self.write_history(name, history)
        commit = Commit(
            version=version,
            batch=batch,
            base=base,
            files=files,
            scalars=state.scalars() | {"settings": state.settings.to_json()} | (extra or {}),
            metrics=metrics,
            committed=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            delta_rows=0 if is_base else delta_rows,
            checkpoint=checkpoint or (previous.checkpoint if previous else "checkpoint"),
            restored=None if restored is None else restored.version,
            runs=runs,
            ids=ids,
            previous=None if previous is None or after is not None else previous.digest,
            meta=meta if previous is None else previous.meta,
            offsets=offsets,
        )
        self.put_version(commit, written, check, together)
        return commit

    def put_version(
        self, commit: Commit, written: list[str], check: Callable[[], None], together: Together
    ) -> None:
        """Let a version count once `together` has ended; else `written` go."""
        beside = self.beside(_commit_name(commit.version)) if self.local else None
        with self.or_without([*written, *([beside] if beside else [])], Exception, together):
            # a disk syncs all of them in the time of one, and none counts before the commit's name
            self.sync("files", together)
            payload = commit.to_bytes()
            if beside is not None:
                self.write(beside, payload, together)
            together.wait()
            check()
        # the commit object may stand, whatever else fails
        with self.or_without(written, NothingPutError):
            self.put_commit(commit, new=True, payload=payload, beside=beside)
        if not commit.version:
            # the path itself and its folders are new
            self.sync("")
            self.sync("..")

    def write_history(self, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Write metrics of many batches as the file `metrics`; nothing where there are none."""
        history = table_of(rows, self.path)
        if not history.num_columns:
            return {}
        return {"metrics": self.write_table(f"files/{name}-metrics.parquet", history)}

    def put_commit(
        self, commit: Commit, new: bool = False, payload: bytes = b"", beside: str | None = None
    ) -> None:
        """Put a commit object, as `payload` where that is made: its version counts from now on.

        It may lie `beside` its name already, on a local disk.

        Raises StorageError where it is to be new and another process has put one.
        """
        name, payload = _commit_name(commit.version), payload or commit.to_bytes()
        if not new:
            self.replace(name, payload)
            return
        for _ in range(_READ_AGAIN):
            if self.put_new(name, payload, beside):
                return
            beside = None
            found = self.read(name)
            if found is None:
                # it went since: only what is there and not whole may be written over
                continue
            if self._commit_of(found, name) is not None or not Commit.broken_off(found):
                break
            # half of one, of a process that was killed
            self.replace(name, payload)
            return
        raise StorageError(
            f"{self.path} has a version {commit.version} already, which another process "
            "committed meanwhile. Nothing was changed: start again from the newest version."
        )

    def load(self, version: int | None = None) -> tuple[ModelState, Commit]:
        """Return a version's state, the newest by default; a writer may go on and prune meanwhile.

        Raises StorageError where there is none, or a file of it is missing or damaged.
        """
        return self.steadily(lambda: self._load(version))

    def meta_and_commit(self, version: int | None) -> tuple[dict[str, Any], Commit]:
        """Return model.json and the commit of a version, the newest for None.

        Raises StorageError where there is none.
        """
        meta = self.meta()
        commit = self.newest() if version is None else self.read_commit(version)
        if meta is None or commit is None:
            which = "a version" if version is None else f"version {version}"
            kept = ", ".join(map(str, self.numbers())) or "none"
            raise StorageError(f"{self.path} does not hold {which} of a model (kept: {kept}).")
        return meta, commit

    def _load(self, version: int | None) -> tuple[ModelState, Commit]:
        meta, commit = self.meta_and_commit(version)
        kinds: tuple[IdKind, IdKind] = (meta["kinds"][0], meta["kinds"][1])
        state = ModelState.empty(commit.settings(meta), *kinds)
        for part in self.parts(commit):
            for name, side in (("users", state.users), ("items", state.items)):
                if part.runs is not None:
                    self._put_runs(part.runs[name], side)
                if name in part.files:
                    self.put_rows(part.files[name], side)
        state.set_scalars(commit.scalars)
        return state, commit

    def put_rows(self, file: dict[str, Any], side: FactorTable) -> None:
        """Take over the factors in a committed file.

        Raises StorageError where it is missing, its checksum does not fit, or holds other columns.
        """
        rows = self.read_checked(file)
        try:
            side.put_arrow(rows)
        except (KeyError, ValueError, TypeError, IndexError, pa.ArrowException) as failure:
            raise DamagedError(
                f"{self.path}/{file['name']} does not hold factors of this model: "
                f"{str(failure).splitlines()[0]}. Take an older version: "
                "StreamingBiasedALSModel.versions(path)."
            ) from failure

    def _put_runs(self, entries: list[dict[str, Any]], side: FactorTable) -> None:
        shape = RowShape.of(side.index.kind, side.settings)
        for entry in entries:
            run = Run(self, shape, entry)
            for rows in run.parts():
                unpack_rows(rows, side)
            run.close()

    def parts(self, commit: Commit) -> list[Commit]:
        """Return the commits of a version, from its base to itself; only the first may have runs.

        Raises StorageError where one is missing or damaged, does not fit the next one, or
        model.json does not fit them.
        """
        self.check_meta(commit)
        parts: list[Commit] = []
        for number in range(commit.base, commit.version):
            name = _commit_name(number)
            payload = self.read(name)
            part = None if payload is None else self._commit_of(payload, name)
            if part is None:
                kind = GoneError if payload is None else StorageError
                raise kind(
                    f"Version {commit.version} at {self.path} needs commit {number}, which is "
                    f"{'missing' if payload is None else 'damaged'}: {name}. "
                    "Older versions may be whole: StreamingBiasedALSModel.versions(path)."
                )
            parts.append(part)
        for part, following in itertools.pairwise([*parts, commit]):
            if not part.followed_by(following):
                raise StorageError(
                    f"{self.path}/{_commit_name(part.version)} is not the commit that version "
                    f"{following.version} was added to: it is another model's, or was put back. "
                    "Restore it, or take an older version: StreamingBiasedALSModel.versions(path)."
                )
        parts = [replace(part, runs=None) for part in parts]
        if commit.runs is not None:
            metrics = commit.runs["metrics"]
            files = {"metrics": metrics} if metrics else {}
            if not parts:
                # a version that lies in runs from its beginning
                return [replace(commit, files=files)]
            parts[0] = replace(parts[0], files=files, runs=commit.runs)
        return [*parts, replace(commit, runs=None)]

    def metrics(self, commit: Commit | None = None, lenient: bool = False) -> list[dict[str, Any]]:
        """Return the metrics of every batch up to a version, the newest by default, in order.

        With `lenient`, a damaged file of them is left out with a warning.
        """
        return self.steadily(lambda: self._metrics(commit, lenient))

    def _metrics(self, commit: Commit | None, lenient: bool) -> list[dict[str, Any]]:
        last = commit or self.newest()
        rows: list[dict[str, Any]] = []
        for part in [] if last is None else self.parts(last):
            if "metrics" in part.files:
                try:
                    rows.extend(self.read_checked(part.files["metrics"]).to_pylist())
                except StorageError as damage:
                    if not lenient:
                        raise
                    logger.warning("metrics of older batches are lost: %s", damage)
            if part.metrics is not None:
                rows.append(part.metrics)
        return rows

    def prune(self, keep: int, seconds: float = 0.0) -> None:
        """Delete what no version needs but the newest `keep` and those of the last `seconds`.

        A version's time ends when the next one is committed: whoever began to load it while it
        was the newest has `seconds` to finish.
        """
        numbers = self.numbers()
        if len(numbers) <= keep:
            return
        first = len(numbers) - keep
        if seconds > 0:
            since = (datetime.now(timezone.utc) - timedelta(seconds=seconds)).isoformat()

            def ended(number: int) -> str:
                after = self.sound_commit(number + 1)
                return "" if after is None else after.committed

            first = bisect.bisect_left(numbers, since, 0, first, key=ended)
        oldest = self.sound_commit(numbers[first])
        if oldest is None or not any(number < oldest.base for number in numbers):
            return
        # commit objects go first: a version is never there without its files
        for number in numbers:
            if number < oldest.base:
                self.delete(_commit_name(number))
        names = {folder: self.names(folder) for folder in ("files", "commits")}
        used = set()
        newest = self.sound_commit(numbers[-1])
        # without sorted runs no version names a file of before its base: none has to be read
        if (
            newest is None
            or newest.runs is not None
            or oldest.runs is not None
            or any(name.endswith(".rows") for name in names["files"])
        ):
            kept = (self.sound_commit(number) for number in numbers if number >= oldest.base)
            used = {
                file["name"] for commit in kept if commit is not None for file in commit.run_files()
            }
        for folder in names:
            for name in names[folder]:
                numbered = _COMMIT_NAME.fullmatch(f"{name[:12]}.json")
                old = numbered and int(name[:12]) < oldest.base
                if old and f"{folder}/{name}" not in used:
                    self.delete(f"{folder}/{name}")

    def steadily(self, read: Callable[[], T]) -> T:
        """Return what `read` does, again where a file went meanwhile because the writer went on."""
        missing = ""
        for _ in range(_READ_AGAIN):
            try:
                return read()
            except GoneError as gone:
                if str(gone) == missing:
                    # what is there now still asks for it
                    raise
                missing = str(gone)
        return read()

    def _commit_of(self, payload: bytes, name: str) -> Commit | None:
        commit = Commit.from_bytes(payload, f"{self.path}/{name}")
        if commit is not None and _commit_name(commit.version) != name:
            raise DamagedError(
                f"{self.path}/{name} holds version {commit.version}: a commit object was copied or "
                "renamed. Restore it, or take an older version: "
                "StreamingBiasedALSModel.versions(path) lists them."
            )
        return commit


def _commit_name(version: int) -> str:
    return f"commits/{version:012d}.json"
