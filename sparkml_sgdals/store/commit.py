"""What a commit object holds: a version, its batch, its files and their checksums (no Spark).

A commit knows its number, the digest of the commit before it, that of model.json, and that of the
plan that its batch was read by; and each file that it names, by size and checksum. So whatever is
changed, exchanged or put back of what a version is made of does not fit, and is named.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass, fields
from typing import Any, Final

from sparkml_sgdals.errors import DamagedError, StorageError
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.described import COMMIT
from sparkml_sgdals.store.shapes import parse_json

__all__ = ["FORMAT_VERSION", "Base", "Commit", "check_format"]

FORMAT_VERSION: Final = 3
"""of model paths, commit objects and saved models: what is written, and all that is read"""


def check_format(found: int, what: str) -> None:
    """See that this release reads what it found.

    Parameters
    ----------
    found : int
        the format that it says it has
    what : str
        its kind and place, as the subject of a sentence

    Raises
    ------
    StorageError
        another format
    TypeError
        no number
    """
    if found > FORMAT_VERSION:
        remedy = "upgrade sparkml_sgdals"
    elif found != FORMAT_VERSION:
        remedy = "learn the model again, or save it again where it is in memory"
    else:
        return
    raise StorageError(
        f"{what} has format {found}, this release reads format {FORMAT_VERSION}: {remedy}."
    )


@dataclass(frozen=True)
class Commit:
    """One version: its number, its batch (-1 for none), its base, files and numbers."""

    version: int
    batch: int
    base: int
    files: dict[str, dict[str, Any]]
    scalars: dict[str, Any]
    metrics: dict[str, Any] | None
    committed: str
    delta_rows: int
    """rows written since the base"""
    ids: list[int]
    """number of users and of items"""
    checkpoint: str
    """folder of Spark's checkpoint that goes with it"""
    restored: int | None
    """the version that it holds again, after a rollback"""
    runs: dict[str, Any] | None
    """sorted runs that hold the version `base`: a list each of users and items, oldest first, and
    the metrics up to the batch before it; None where the files of that version do"""
    previous: str | None = None
    """digest of the commit before it; None for the first, and after one that is damaged"""
    meta: str | None = None
    """digest of model.json"""
    offsets: dict[str, Any] | None = None
    """what the batch was read from, as `checkpoint.agreement.reading` tells it; None where it was
    from nothing"""

    replaces: str | None = None
    """digest that the commit had before users were forgotten, which the next one calls `previous`
    """

    @property
    def digest(self) -> str:
        """SHA-256 of the body, in hexadecimal: what the next commit calls `previous`."""
        read = self.__dict__.get(_READ)
        return _sha256(self._body()) if read is None else str(read)

    def followed_by(self, following: Commit) -> bool:
        """Whether the commit is the one that another was added to."""
        return following.previous in (None, self.digest, self.replaces)

    def _body(self) -> str:
        # what is not known is left out, so that a commit read again has the digest that it had
        told = {
            name: value
            for name, value in self.__dict__.items()
            if name != _READ and (value is not None or name not in _MAY_LACK)
        }
        return json.dumps(told, sort_keys=True, allow_nan=False)

    def settings(self, meta: dict[str, Any]) -> Settings:
        """Return the version's settings, which in a race may differ from version to version.

        Parameters
        ----------
        meta : dict[str, Any]
            of the path, which says them where the commit does not
        """
        return Settings.from_json(self.scalars.get("settings") or meta["settings"])

    def run_files(self) -> list[dict[str, Any]]:
        """Return the files of its runs: name, bytes and checksum of each."""
        if self.runs is None:
            return []
        entries = [*self.runs["users"], *self.runs["items"]]
        files = [e[part] for e in entries for part in ("rows", "keys", "names") if part in e]
        return [*files, *([self.runs["metrics"]] if self.runs["metrics"] else [])]

    def to_bytes(self) -> bytes:
        """One JSON object with a checksum of all its other fields."""
        body = self._body()
        outer = {"format": FORMAT_VERSION, "sha256": _sha256(body), "commit": body}
        return json.dumps(outer).encode()

    @classmethod
    def from_bytes(cls, payload: bytes, place: str) -> Commit | None:
        """Return the commit read from `place`, None where the object is not whole.

        Raises StorageError where it is of another format, or whole with other fields than known;
        DamagedError where a field is not what it has to be.
        """
        found = _body_and_digest(payload, place)
        if found is None:
            return None
        body, digest = found
        try:
            values = _parsed(body)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise DamagedError(f"The commit {place} holds no object. {_REMEDY}")
        odd = (_FIELDS ^ values.keys()) - _MAY_LACK
        if odd:
            raise StorageError(
                f"The commit {place} holds {', '.join(sorted(odd))} otherwise than this release "
                "of sparkml_sgdals does: read it with the release that wrote it."
            )
        fault = COMMIT.fault(values, "it")
        if fault is None and values["base"] > values["version"]:
            fault = "its base is a later version"
        if fault is not None:
            raise DamagedError(f"The commit {place} cannot be used: {fault}. {_REMEDY}")
        # twenty thousand of them are read at once: a frozen object takes its fields one by one;
        # and what was read is what the checksum is of
        commit = object.__new__(cls)
        commit.__dict__.update(_ABSENT)
        commit.__dict__.update(values)
        commit.__dict__[_READ] = digest
        return commit

    @staticmethod
    def broken_off(payload: bytes) -> bool:
        """Return whether what is not whole may be a put that a kill broke off: it lacks its end."""
        begins = payload.startswith(_BEGINNING) or _BEGINNING.startswith(payload)
        return begins and not payload.rstrip().endswith(b'"}')


def _sha256(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _body_and_digest(payload: bytes, place: str) -> tuple[str, str] | None:
    """Return the body of a commit object and its checksum, None where that does not fit.

    Raises StorageError where it is of another format.
    """
    digest_end = _BODY - len(_BEFORE_BODY)
    if (
        payload.startswith(_WRITTEN)
        and payload[digest_end:_BODY] == _BEFORE_BODY
        and payload.endswith(b'"}')
    ):
        # as it is written, in half of the time: what is not so has another checksum
        digest = payload[len(_WRITTEN) : digest_end]
        body = payload[_BODY:-2].replace(b'\\"', b'"')
        if hashlib.sha256(body).hexdigest().encode() == digest:
            try:
                return body.decode("ascii"), digest.decode("ascii")
            except UnicodeDecodeError:
                pass
    try:
        outer = parse_json(payload)
        text, told = outer["commit"], outer["sha256"]
        whole = _sha256(text) == told
        check_format(outer["format"], f"The commit {place}")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return (text, told) if whole else None


def _parsed(body: str) -> Any:
    """Return what a body says: settings, which hardly ever change, are parsed once.

    Raises ValueError where it is no JSON.
    """
    found = _SETTINGS.search(body)
    if found is None:
        return parse_json(body)
    values = parse_json(f"{body[: found.start(1)]}null{body[found.end(1) :]}")
    settings = _settings_of(found[1])
    try:
        # nowhere else in what was written; a reader may change what it is given
        if values["scalars"]["settings"] is None:
            values["scalars"]["settings"] = settings | {}
            return values
    except (KeyError, TypeError):
        pass
    return parse_json(body)


@functools.lru_cache(maxsize=8)
def _settings_of(text: str) -> Any:
    return parse_json(text)


_FIELDS: Final = frozenset(field.name for field in fields(Commit))
_ABSENT: Final = {field.name: None for field in fields(Commit) if field.default is None}
_BEGINNING: Final = b'{"format": '
_WRITTEN: Final = b'{"format": %d, "sha256": "' % FORMAT_VERSION
_BEFORE_BODY: Final = b'", "commit": "'
_BODY: Final = len(_WRITTEN) + 64 + len(_BEFORE_BODY)
_SETTINGS: Final = re.compile(r'"settings": (\{[^{}]*\})')
_REMEDY: Final = (
    "Restore it, or take an older version: StreamingBiasedALSModel.versions(path) lists them."
)
_READ: Final = "_read"
"""attribute of a commit that was read: its digest. No field: a changed copy has none"""
_MAY_LACK: Final = frozenset(("previous", "meta", "offsets", "replaces"))


@dataclass(frozen=True)
class Base:
    """What versions of a model larger than memory add to: see `Commit.runs`."""

    version: int
    delta_rows: int
    """rows written since that version, before the one to commit"""
    runs: dict[str, Any]
    ids: list[int]
    """of the version to commit"""
