"""Models that say they have another format than the present one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from sparkml_sgdals.store.commit import FORMAT_VERSION

PRESENT = Path(__file__).resolve().parent / "golden" / f"format-{FORMAT_VERSION}"
OLDER = (1, 2)
REFUSED = (
    f"has format {{}}, this release reads format {FORMAT_VERSION}: learn the model again, or save "
    "it again"
)


def as_format(number: int, place: str, target: Path) -> Path:
    """A copy of what is at `place` of the golden models that says it has format `number`.

    Commits lack what came with format 3, so that whoever reads them before it looks at the number
    fails otherwise.
    """
    shutil.copytree(PRESENT / place, target)
    if (target / "model.json").exists():
        rewrite(target / "model.json", format=number)
        for file in (target / "commits").iterdir():
            fields = json.loads(json.loads(file.read_text())["commit"])
            body = json.dumps({k: v for k, v in fields.items() if k not in ("ids", "runs")})
            check = hashlib.sha256(body.encode()).hexdigest()
            rewrite(file, format=number, commit=body, sha256=check)
    else:
        (part,) = (target / "metadata").glob("part-*")
        for crc in (target / "metadata").glob(".part-*.crc"):
            crc.unlink()
        rewrite(part, formatVersion=number)
    return target


def rewrite(file: Path, **changes: object) -> None:
    """Change fields of a JSON object in a file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def digest(folder: Path) -> list[tuple[str, str]]:
    """Names and checksums of all files in a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(str(f.relative_to(folder)), hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]
