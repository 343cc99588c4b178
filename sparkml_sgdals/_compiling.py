"""Where Numba keeps compiled kernels, so that no process compiles what another one has. No Spark.

Numba keeps them beside the modules, or where that is read-only in the user's own cache folder, and
where neither can be written it refuses to import the module: an executor whose user has no home
could not run a task. Nothing of Numba is imported here: not every process needs a kernel.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["ROOMS", "keep_kernels"]

ROOMS: Final = ("arrays", "kernels", "kernels/events", "store")
"""packages that hold compiled functions"""


def keep_kernels(package: Path) -> str | None:
    """Name a folder of this user's under the temporary one where Numba has no other.

    Parameters
    ----------
    package : Path
        folder of the package, whose ROOMS hold the kernels

    Returns
    -------
    the folder, which NUMBA_CACHE_DIR then names as well; None where Numba's own choice works, or
    somebody made it
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return None
    if all(_writable(package / room / "__pycache__") for room in ROOMS):
        return None
    if _writable(_user_cache()):
        return None
    folder = _private_folder()
    os.environ["NUMBA_CACHE_DIR"] = folder
    numba = sys.modules.get("numba")
    if numba is not None:
        # it has read the environment already
        numba.config.CACHE_DIR = folder
    return folder


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself where it is not there yet."""
    # os.path: a Path raises where a folder on the way may not be searched, as another's home
    while not os.path.exists(folder):
        if folder == folder.parent:
            return False
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def _user_cache() -> Path:
    """Where Numba's own folder for a user lies, as its appdirs has it."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "."))
    # not Path.expanduser, which raises for a user without a home
    if sys.platform == "darwin":
        return Path(os.path.expanduser("~/Library/Caches/numba"))
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "numba")


def _private_folder() -> str:
    """Return a folder that nobody else can write: what lies there is run."""
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir(), f"sparkml_sgdals-kernels-{owner}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        ours = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        if stat.S_ISDIR(found.st_mode) and ours and not found.st_mode & 0o022:
            return str(folder)
    except OSError:
        pass
    # somebody else has the name: compiled once a process, and safe
    return tempfile.mkdtemp(prefix="sparkml_sgdals-kernels-")
