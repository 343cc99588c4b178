"""Changes of files as disks, copies and hands make them, drawn from a seed."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

CHANGES = (
    "flip", "flip near the end", "overwrite", "truncate", "empty", "delete", "add",
    "copy over", "swap", "copy from another", "swap with another",
)  # fmt: skip


def files_in(folder: Path, hidden: bool = True) -> list[Path]:
    """Return all files below a folder, sorted."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if hidden or not path.name.startswith((".", "_")))


def change(rng: random.Random, folder: Path, others: list[Path], hidden: bool = True) -> str:
    """Change one file of a folder, or exchange two; says what was done.

    Parameters
    ----------
    rng : random.Random
        draws the change
    folder : Path
        where it is done
    others : list[Path]
        folders of the same kind that files are taken from; they are left alone
    hidden : bool
        whether files that begin with a dot or an underscore are changed as well
    """
    kind = rng.choice(CHANGES)
    files = files_in(folder, hidden)
    # the files with something in them, and those a reader looks at, come first
    file = rng.choice([f for f in files if f.name.startswith("part-")] * 4 + files)
    held = bytearray(file.read_bytes())
    told = f"{kind} {file.relative_to(folder)}"
    if kind.startswith("flip") and held:
        first = 0 if kind == "flip" else max(0, len(held) - 1500)
        bit = rng.randrange(8 * first, 8 * len(held))
        held[bit // 8] ^= 1 << bit % 8
        file.write_bytes(held)
        return f"{told} bit {bit}"
    if kind == "overwrite" and held:
        first, size = rng.randrange(len(held)), rng.randint(1, 64)
        end = min(len(held), first + size)
        held[first:end] = rng.choice([bytes(end - first), rng.randbytes(end - first)])
        file.write_bytes(held)
        return f"{told} {first}:{end}"
    if kind == "truncate" and held:
        file.write_bytes(held[: rng.randrange(len(held))])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "delete":
        file.unlink()
    elif kind == "add":
        shutil.copy(rng.choice(files), file.with_name(f"part-{rng.randrange(99999):05d}-more"))
    elif kind in ("copy over", "swap"):
        other = rng.choice([each for each in files if each != file])
        if kind == "swap":
            file.write_bytes(other.read_bytes())
            other.write_bytes(held)
        else:
            other.write_bytes(held)
        told += f" and {other.relative_to(folder)}"
    elif "another" in kind:
        # a swap shows here as a copy: the other one is another reader's
        source = rng.choice(others)
        alike = [f for f in files_in(source, hidden) if f.parent.name == file.parent.name]
        file.write_bytes(rng.choice(alike).read_bytes())
    return told


def tally(outcomes: Counter[tuple[str, str]]) -> str:
    """Return a line a kind of change: how often it was named, and how often it did nothing."""
    named, same = (
        {kind: outcomes[kind, how] for kind in CHANGES} for how in ("named", "no effect")
    )
    lines = [f"{kind}: {named[kind]} named, {same[kind]} without effect" for kind in CHANGES]
    return "\n".join([*lines, f"all: {sum(named.values())} named, {sum(same.values())} without"])
