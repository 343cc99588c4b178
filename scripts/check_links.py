"""Check that relative links in Markdown files lead somewhere: python scripts/check_links.py PATH...

A PATH is a Markdown file or a folder of them. Links inside code are left out.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import unquote

CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=\"([^\"]+)\"", re.M
)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    found: set[str] = set()
    for heading in HEADING.findall(text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        name, count = slug, 0
        while name in found:
            count += 1
            name = f"{slug}-{count}"
        found.add(name)
    return found


def broken(page: Path) -> list[str]:
    """What is wrong with the links of a page, one line each."""
    # blanks in place of code keep the line numbers
    text = CODE.sub(lambda code: re.sub(r"\S", " ", code[0]), page.read_text(encoding="utf-8"))
    faults = []
    for link in LINK.finditer(text):
        target = next(filter(None, link.groups()))
        if re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = page.parent / path if path else page
        line = text.count("\n", 0, link.start()) + 1
        if not file.exists():
            faults.append(f"{page}:{line}: there is no {target}")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            faults.append(f"{page}:{line}: {path or page.name} has no heading #{anchor}")
    return faults


def main(arguments: list[str]) -> int:
    """Print every broken link; 1 if there is one."""
    pages = []
    for path in map(Path, arguments):
        pages += sorted(path.rglob("*.md")) if path.is_dir() else [path]
    faults = [fault for page in pages for fault in broken(page)]
    print("\n".join(faults) if faults else f"{len(pages)} pages, all links lead somewhere")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
