"""What Spark keeps between batches, such as ids of events, and whether it is as it was (driver).

Of a checkpoint's `state` this module knows what Spark's default store writes there:

    O/_metadata/metadata    what operator O keeps
    O/P/_metadata/schema    its columns; of the first partition alone
    O/P/N.delta             what batch N - 1 changed in partition P: version N of it
    O/P/N.snapshot          all of version N, written in the background some time later

Spark reads the newest snapshot and the deltas since, and deletes what is older than the versions
that it retains. So a commit tells of each partition which snapshot it counts from (its *base*, 0
for none), one digest of that and of all deltas since but the last, and a digest of the last delta:
where Spark has not noted that the batch is done, it runs the batch again and writes that one anew.

A base moves to a snapshot within some batches of its being written. One that no commit tells of
says what the deltas say, and goes before a stream starts. Other stores than the default one
(RocksDB) name their files otherwise, and are not told of.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sparkml_sgdals.arrays.threads import workers
from sparkml_sgdals.store.checkpoint.bookkeeping import fits_sums
from sparkml_sgdals.store.checkpoint.file_log import number_of
from sparkml_sgdals.store.objects import ObjectStore

__all__ = ["KeptState", "changed_files", "drop_untold", "with_all_files"]

_BYTES: Final = 12
"""of a digest: two hundred partitions have two each in a commit"""
_READERS: Final = 16
"""threads that wait for a store that is not on this machine; files of its own are read in turn"""
_EVERY: Final = 16
"""batches within which each partition is looked at for a new snapshot, in turn"""
_FIXED: Final = ("_metadata/metadata", "0/_metadata/schema")

T = TypeVar("T")


@dataclass
class KeptState:
    """Tells what Spark keeps after a batch, and remembers what makes the next one cheap.

    Attributes
    ----------
    retained : int
        versions that Spark can go back to: spark.sql.streaming.minBatchesToRetain
    """

    retained: int = 100
    _folder: str = field(default="", init=False)
    _partitions: dict[str, int] = field(default_factory=dict, init=False)
    _fixed: dict[str, str] = field(default_factory=dict, init=False)
    _deltas: dict[str, dict[int, list[bytes]]] = field(default_factory=dict, init=False)
    """digests by operator and version"""

    def after(
        self, store: ObjectStore, folder: str, batch: int, before: dict[str, Any]
    ) -> dict[str, Any]:
        """Return what a commit tells of the state after its batch, by operators.

        Parameters
        ----------
        store : ObjectStore
            the model path
        folder : str
            of the checkpoint
        batch : int
            its number; Spark has run it
        before : dict[str, Any]
            what the commit before tells, or the same commit where Spark ran its batch again
        """
        if folder != self._folder:
            self._folder, self._deltas = folder, {}
            self._partitions = _partitions(store, folder)
            self._fixed = {
                operator: _fixed(store, f"{folder}/state/{operator}")
                for operator in self._partitions
            }
        told = {}
        for operator, size in list(self._partitions.items()):
            top = f"{folder}/state/{operator}"
            last = _digests(store, [f"{top}/{p}/{batch + 1}.delta" for p in range(size)])
            found = None
            if None not in last:
                deltas = self._deltas.setdefault(operator, {})
                deltas[batch + 1] = [digest for digest in last if digest is not None]
                found = self._since_bases(store, top, batch + 1, deltas, before.get(operator))
            if found is None:
                # another kind of store
                del self._partitions[operator]
            else:
                told[operator] = found | {"fixed": self._fixed[operator]}
        return told

    def _since_bases(
        self,
        store: ObjectStore,
        top: str,
        version: int,
        deltas: dict[int, list[bytes]],
        before: dict[str, Any] | None,
    ) -> dict[str, Any] | None:
        last = deltas[version]
        size = len(last)
        if before is not None and len(before["bases"]) != size:
            before = None
        behind = None if before is None else version - before["version"]
        asked = range(size)
        if before is None or behind not in (0, 1):
            bases, chains = [-1] * size, [b""] * size
        else:
            bases, chains = list(before["bases"]), _split(before["chains"])
            if behind == 1:
                chains = [
                    _chained(chain, version - 1, digest)
                    for chain, digest in zip(chains, _split(before["last"]), strict=True)
                ]
            step = max(1, min(_EVERY, self.retained // 2))
            asked = range(version % step, size, step)

        def newer(partition: int) -> tuple[int, bytes | None] | None:
            # what Spark may be asked for is the version before, too
            base = _newest_snapshot(store, f"{top}/{partition}", version - 1)
            if base <= bases[partition]:
                return None
            return base, _chain(store, top, partition, base, version - 1, deltas)

        for partition, found in zip(asked, _all(store, newer, asked), strict=True):
            if found is None:
                continue
            base, chain = found
            if chain is not None:
                bases[partition], chains[partition] = base, chain
            elif bases[partition] < 0:
                return None
        for old in [number for number in deltas if number <= min(bases, default=0)]:
            del deltas[old]
        return {
            "version": version, "bases": bases, "chains": _joined(chains), "last": _joined(last),
        }  # fmt: skip


def changed_files(store: ObjectStore, folder: str, told: dict[str, Any], done: bool) -> list[str]:
    """Return what is not as a commit tells it, below the checkpoint's folder.

    Parameters
    ----------
    store : ObjectStore
        the model path
    folder : str
        of the checkpoint
    told : dict[str, Any]
        as `KeptState.after` gives it
    done : bool
        whether Spark takes the commit's batch for done; else it writes the last deltas again
    """
    changed = []
    for operator, kept in told.items():
        held = _Held(store, f"{folder}/state/{operator}", kept)
        changed_since = functools.partial(held.changed, done=done)
        found = [*held.changed_descriptions(), *held.of_each(changed_since)]
        changed += [f"state/{operator}/{name}" for name in found if name is not None]
    return changed


def drop_untold(store: ObjectStore, folder: str, told: dict[str, Any]) -> None:
    """Delete snapshots that a commit does not tell of, and what is of later versions.

    Spark writes them again. Only for the holder of the lease, and once `changed_files` finds none.
    """
    for operator, kept in told.items():
        held = _Held(store, f"{folder}/state/{operator}", kept)
        held.of_each(held.drop_untold)


def with_all_files(store: ObjectStore, folder: str, told: dict[str, Any]) -> dict[str, Any]:
    """Return what is told of operators whose files are all there still.

    Of an older version Spark may have deleted some, and reads on from a later snapshot.
    """
    there = {}
    for operator, kept in told.items():
        held = _Held(store, f"{folder}/state/{operator}", kept)
        if all(held.of_each(held.whole)):
            there[operator] = kept
    return there


class _Held:
    """What a commit tells of an operator, and the files that there are."""

    def __init__(self, store: ObjectStore, top: str, kept: dict[str, Any]) -> None:
        self._store, self._top = store, top
        self._version: int = kept["version"]
        self._bases: list[int] = kept["bases"]
        self._chains, self._last = _split(kept["chains"]), _split(kept["last"])
        self._fixed = kept["fixed"]

    def of_each(self, job: Callable[[int], T]) -> list[T]:
        """Return what a job says of each partition."""
        return _all(self._store, job, range(len(self._bases)))

    def changed_descriptions(self) -> list[str]:
        """Return what describes the operator, and is not as it was."""
        then, now = _split(self._fixed), _split(_fixed(self._store, self._top))
        changed = [name for name, a, b in zip(_FIXED, then, now, strict=True) if a != b]
        for name in _FIXED:
            folder, _, base = f"{self._top}/{name}".rpartition("/")
            payload = self._store.read(f"{folder}/{base}") or b""
            if not fits_sums(self._store, folder, base, payload):
                changed.append(f"{name} or its sums")
        return changed

    def changed(self, partition: int, done: bool) -> str | None:
        """Return the file or files of a partition that are not as they were, None for none."""
        store, place, base = self._store, f"{self._top}/{partition}", self._bases[partition]
        digests = []
        files = _chain_files(base, self._version - 1)
        for name in files:
            found = store.read(f"{place}/{name}")
            if found is None:
                return f"{partition}/{name}"
            if not fits_sums(store, place, name, found):
                return f"{partition}/.{name}.crc or {name}"
            digests.append(_digest(found))
        if _linked(base, digests) != self._chains[partition]:
            # one digest is of all of them
            return f"{partition} ({' to '.join(dict.fromkeys([*files[:1], *files[-1:]]))})"
        if not done:
            return None
        last = f"{self._version}.delta"
        found = store.read(f"{place}/{last}")
        if found is None or _digest(found) != self._last[partition]:
            return f"{partition}/{last}"
        return None if fits_sums(store, place, last, found) else f"{partition}/.{last}.crc"

    def drop_untold(self, partition: int) -> None:
        """Delete a partition's snapshots that are not told of, and its later versions."""
        place, base = f"{self._top}/{partition}", self._bases[partition]
        for name in sorted(self._store.names(place), key=len, reverse=True):
            number = number_of(name.lstrip("."))
            # sums first, whose names are longer: those without a file would be the next one's
            if number > self._version or (number > base and ".snapshot" in name):
                self._store.delete(f"{place}/{name}")

    def whole(self, partition: int) -> bool:
        """Whether the files are all there, whatever is in them."""
        names = set(self._store.names(f"{self._top}/{partition}"))
        return names.issuperset(_chain_files(self._bases[partition], self._version))


def _partitions(store: ObjectStore, folder: str) -> dict[str, int]:
    """Return how many partitions each operator has, by its number."""
    found = {}
    for operator in store.names(f"{folder}/state"):
        if operator.isdecimal():
            numbers = {n for n in store.names(f"{folder}/state/{operator}") if n.isdecimal()}
            if numbers == set(map(str, range(len(numbers)))):
                found[operator] = len(numbers)
    return found


def _fixed(store: ObjectStore, top: str) -> str:
    """Return digests of what describes an operator, which Spark writes once."""
    return _joined([each or _NONE for each in _digests(store, [f"{top}/{n}" for n in _FIXED])])


def _newest_snapshot(store: ObjectStore, place: str, version: int) -> int:
    """Return the newest version up to this one that Spark has a snapshot of, 0 for none."""
    stems = [n.removesuffix(".snapshot") for n in store.names(place) if n.endswith(".snapshot")]
    return max((int(n) for n in stems if n.isdecimal() and int(n) <= version), default=0)


def _chain_files(base: int, version: int) -> list[str]:
    """Return the names of the files that a version is read from."""
    deltas = [f"{number}.delta" for number in range(base + 1, version + 1)]
    return [f"{base}.snapshot", *deltas] if base else deltas


def _chain(
    store: ObjectStore,
    top: str,
    partition: int,
    base: int,
    version: int,
    known: dict[int, list[bytes]],
) -> bytes | None:
    """Return one digest of all files that a version is read from, None where one is not there."""
    digests = []
    for name in _chain_files(base, version):
        number = number_of(name)
        if number in known and name.endswith(".delta"):
            digests.append(known[number][partition])
            continue
        found = store.read(f"{top}/{partition}/{name}")
        if found is None:
            return None
        digests.append(_digest(found))
    return _linked(base, digests)


def _linked(base: int, digests: list[bytes]) -> bytes:
    """Return one digest from those of the files that a version is read from, in their order."""
    chain = b""
    for number, digest in enumerate(digests, base if base else 1):
        chain = _chained(chain, number, digest)
    return chain or _NONE


def _chained(chain: bytes, number: int, digest: bytes) -> bytes:
    return _digest((chain or _NONE) + number.to_bytes(8, "big") + digest)


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()[:_BYTES]


def _digests(store: ObjectStore, names: list[str]) -> list[bytes | None]:
    """Return the digest of each file, None where it is not there."""

    def digest(name: str) -> bytes | None:
        payload = store.read(name)
        return None if payload is None else _digest(payload)

    return _all(store, digest, names)


def _all(store: ObjectStore, job: Callable[[Any], T], of: Any) -> list[T]:
    """Do a job of each of these; at once where each waits for a network."""
    with workers(1 if store.local else min(_READERS, len(of))) as run:
        return run(functools.partial(job, each) for each in of)


def _joined(digests: list[bytes]) -> str:
    return base64.b64encode(b"".join(digests)).decode()


def _split(text: str) -> list[bytes]:
    whole = base64.b64decode(text)
    return [whole[first : first + _BYTES] for first in range(0, len(whole), _BYTES)]


_NONE: Final = bytes(_BYTES)
"""digest of no file"""
