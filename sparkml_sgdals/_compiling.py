"""`njit` of Numba, whose compiled forms are found again by what they are. No Spark.

Numba keeps them beside a module, or in a folder that is named after where the module lies. A
package that Spark ships to its executors lies somewhere else in each application, so that each
would compile again, for a minute and more. Here a compiled form is a file of its own, named after
the source that it was made of, Numba, Python, the kind of processor and the types, in one folder of
the user's.

A file is whole or not there, never changed, and with a checksum; whoever comes second writes the
same one. What lies in it is run: the folder is one that nobody else can write to.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import re
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numba
import numpy as np

__all__ = ["kernel_folder", "njit", "source_digest"]

logger = logging.getLogger(__name__)

# what types Numba says that it has depends on its version
_caching: Any = import_module("numba.core.caching")
_serialize: Any = import_module("numba.core.serialize")
_config: Any = numba.config

_PACKAGE: Final = "sparkml_sgdals"
_IMPORT: Final = re.compile(rf"^ *(?:from|import) +({_PACKAGE}[\w.]*)(?: +import +(\([^)]*\)|.*))?",
                            re.MULTILINE)  # fmt: skip
_DIGEST_BYTES: Final = 32
_UNUSED_DAYS: Final = 90
_DAY: Final = 86_400.0


def njit(*, cache: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return what `numba.njit` does; with `cache`, compiled forms are kept in `kernel_folder`.

    Parameters
    ----------
    cache : bool
        whether to keep them for other processes, and to look for theirs
    options
        as numba.njit takes them
    """

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        # without Numba's compiler, as NUMBA_DISABLE_JIT asks for, it is the function itself
        if cache and hasattr(dispatcher, "enable_caching"):
            digest, folder = source_digest(function.__module__), kernel_folder()
            if digest is not None and folder is not None:
                dispatcher._cache = _Kept(function, folder, digest)
        return dispatcher

    return compiled


class _Kept(_caching.FunctionCache):  # type: ignore[misc]
    """Numba's cache of one function, as files that are named after what they hold."""

    def __init__(self, function: Callable[..., Any], folder: str, digest: str) -> None:
        # not Numba's own, which looks for a place beside the module
        self._name = repr(function)
        self._py_func = function
        self._cache_path = folder
        self._impl = _Reduced(function)
        self._cache_file = _Files(Path(folder), f"{function.__module__}.{function.__qualname__}",
                                  digest)  # fmt: skip
        self.enable()

    def _save_overload(self, sig: Any, data: Any) -> None:
        if self._enabled and self._impl.check_cachable(data):
            key = self._index_key(sig, data.codegen)
            self._cache_file.save(key, self._impl.reduce(data))


class _Reduced(_caching.CompileResultCacheImpl):  # type: ignore[misc]
    """A compiled function as something that can be pickled: Numba's own, without its places."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._lineno = function.__code__.co_firstlineno
        self._locator = None


class _Files:
    """The compiled forms of one function.

    Numba numbers them in an index, which two processes that compile different forms at once write
    over each other: then a name stands for the other's code. Here nothing is numbered.
    """

    def __init__(self, folder: Path, name: str, digest: str) -> None:
        self.folder = folder
        self.name = name.removeprefix(f"{_PACKAGE}.").replace("<", "").replace(">", "")
        self.digest = digest

    def path(self, key: Any) -> Path:
        """Where the form lies that Numba knows by `key`: types, processor, code of the function."""
        made_by = (numba.__version__, np.__version__, sys.version_info[:2], sys.platform)
        told = repr((self.digest, made_by, getattr(sys, "abiflags", ""), key))
        return self.folder / f"{self.name}-{hashlib.sha256(told.encode()).hexdigest()[:32]}.nbc"

    def load(self, key: Any) -> Any:
        """Return the form, None where there is none, or where it is not what was written."""
        path = self.path(key)
        try:
            held = path.read_bytes()
            if time.time() - path.stat().st_mtime > _DAY:
                with suppress(OSError):
                    # it is used: see `_drop_unused`
                    os.utime(path)
        except OSError:
            return None
        digest, data = held[:_DIGEST_BYTES], held[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            logger.debug("%s is damaged: it is compiled again", path)
            return None
        return pickle.loads(data)

    def save(self, key: Any, reduced: Any) -> None:
        """Keep a form, where the folder lets it: learning goes on without."""
        path = self.path(key)
        beside = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        data: bytes = _serialize.dumps(reduced)
        try:
            beside.write_bytes(hashlib.sha256(data).digest() + data)
            os.replace(beside, path)
        except OSError as failure:
            logger.debug("%s cannot be kept: %s", path, failure)
            with suppress(OSError):
                beside.unlink()
            return
        _drop_unused(self.folder)

    def flush(self) -> None:
        """Forget nothing: what is kept is true for ever."""


@functools.cache
def _drop_unused(folder: Path) -> None:
    """Remove, once a process, what nobody has loaded for a long time: older sources' forms."""
    before = time.time() - _UNUSED_DAYS * _DAY
    with suppress(OSError):
        for path in folder.iterdir():
            if path.suffix in (".nbc", ".tmp") and path.stat().st_mtime < before:
                with suppress(OSError):
                    path.unlink()


# ---- what a kernel is made of ---------------------------------------------------------------


@functools.cache
def source_digest(module: str) -> str | None:
    """Return a digest of a module's source and of all in the package that it imports.

    Kernels take in functions and constants of other modules. None where sources are not there:
    what is compiled then is not kept.
    """
    total = hashlib.sha256()
    ahead, seen = [module], {module}
    while ahead:
        name = ahead.pop()
        source = _source(name)
        if source is None:
            if name == module:
                return None
            # a package, or something in a module
            continue
        total.update(name.encode() + b"\0" + source + b"\0")
        found = set()
        for base, names in _IMPORT.findall(source.decode()):
            found |= {base, *(f"{base}.{one}" for one in re.findall(r"\w+", names))}
        ahead += sorted(found - seen)
        seen |= found
    return total.hexdigest()


@functools.cache
def _source(module: str) -> bytes | None:
    """Source of a module of the package, which may lie in a zip."""
    loader: Any = getattr(import_module(_PACKAGE).__spec__, "loader", None)
    root = os.path.dirname(os.path.dirname(str(import_module(_PACKAGE).__file__)))
    path = os.path.join(root, *module.split(".")) + ".py"
    try:
        found: bytes = loader.get_data(path)
    except (OSError, AttributeError):
        return None
    return found


# ---- where ----------------------------------------------------------------------------------


@functools.cache
def kernel_folder() -> str | None:
    """Return the folder of compiled kernels, made where it was not there.

    NUMBA_CACHE_DIR where somebody set it; else one of this user's own; else, as for an executor
    whose user has no home, one under the temporary folder. None where none is this user's alone:
    kernels are then compiled once a process.
    """
    if _config.CACHE_DIR:
        folder = Path(_config.CACHE_DIR, _PACKAGE)
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            return str(folder)
        return None
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    for folder in (
        _user_caches() / _PACKAGE / "kernels",
        Path(tempfile.gettempdir(), f"{_PACKAGE}-kernels-{owner}"),
    ):
        if _is_ours(folder):
            return str(folder)
    return None


def _user_caches() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "."))
    # not Path.expanduser, which raises for a user without a home
    if sys.platform == "darwin":
        return Path(os.path.expanduser("~/Library/Caches"))
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))


def _is_ours(folder: Path) -> bool:
    """Whether a folder, made if need be, can be written by this user and by nobody else."""
    try:
        if not folder.is_absolute():
            return False
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    ours = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
    return stat.S_ISDIR(found.st_mode) and ours and os.access(folder, os.W_OK | os.X_OK)
