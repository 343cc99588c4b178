"""What the library says of Params and methods, in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

__all__ = ["in_options"]

_OPTIONS: Final = {
    "userCol": "--user", "itemCol": "--item", "ratingCol": "--rating", "timestampCol": "--time",
    "excludeSeen": "--exclude-seen", "keepVersions": "--keep-versions", "rankBy": "--rank-by",
    "setUserFeatures": "--user-features", "setItemFeatures": "--item-features",
}  # fmt: skip
_SAID: Final[tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]] = (
    (r"\bmodel\.write\(\)\.overwrite\(\)\.save\([^)]*\)", "--overwrite"),
    (r"excludeSeen=True leaves out what the model remembers of each user, and this",
     "--exclude-seen without a table would leave out what the model remembers, and this"),
    (r"excludeSeen=ratings", "--exclude-seen TABLE"),
    # a Param with a value, in Python's spelling
    (r"(?<!-P )(?<!--option )\b([a-z]+[A-Z]\w*)=(?:'([^']*)'|(True|False)|([\w.]+))",
     lambda m: f"-P {m[1]}={m[2] or (m[3] or '').lower() or m[4]}"),
    (r"\bset (\w+) to (\d[\w.]*)", lambda m: f"set -P {m[1]}={m[2]}"),
    (r" Start a model without ratings with fitStream\.$", ""),
    # what a program would do about a table that is a file here
    (r"\b(?:Cast|Convert) it first, e\.g\. (?:with|df\.\w+\().*$", "Convert it in the file."),
)  # fmt: skip


def in_options(text: str) -> str:
    """Return a sentence of the library with options for Params."""
    for pattern, said in _SAID:
        text = re.sub(pattern, said, text)
    for param, option in _OPTIONS.items():
        text = re.sub(rf"(?<![-\w]){param}\b(?!=)", option, text)
    return text
