"""Draw docs/images/floors.svg, which package may import which, from tests/unit/test_structure.py.

    .venv/bin/python scripts/draw_floors.py

A picture of its own, so that the page shows it without a script from elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = {
    "race": (280, 0), "ml": (280, 1), "stream": (120, 2), "predict": (360, 2),
    "predictor": (540, 2), "fit": (120, 3), "serving": (240, 4), "ingest": (360, 4),
    "vectors": (540, 4),
    "learn": (120, 5), "store": (400, 5), "state": (260, 6), "kernels": (260, 7),
    "arrays": (260, 8),
}  # fmt: skip
WIDTH, HEIGHT, STEP = 640, 590, 64
HALF, TALL = 48, 32
GREEN, GREY = "#2e7d32", "#555555"


def picture(arrows: list[tuple[str, str]], plain: set[str]) -> str:
    """Return the picture as SVG; `plain` know no Spark."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" font-family="sans-serif" font-size="15">',
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
    ]
    for upper, lower in arrows:
        (x1, row1), (x2, row2) = PLACES[upper], PLACES[lower]
        lines.append(
            f'<path data-arrow="{upper} {lower}" fill="none" stroke="{GREY}" stroke-width="1.4" '
            f'marker-end="url(#end)" d="M{x1} {30 + row1 * STEP + TALL / 2:g}'
            f'L{x2} {30 + row2 * STEP - TALL / 2 - 2:g}"/>'
        )
    for name, (x, row) in PLACES.items():
        edge, fill = (GREEN, "#e8f3e9") if name in plain else (GREY, "#f4f4f6")
        lines.append(
            f'<rect x="{x - HALF}" y="{30 + row * STEP - TALL / 2:g}" width="{2 * HALF}" '
            f'height="{TALL}" rx="5" fill="{fill}" stroke="{edge}"/>'
            f'<text x="{x}" y="{35 + row * STEP}" text-anchor="middle" fill="#222222">{name}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    """Write the picture."""
    sys.path.insert(0, str(ROOT / "tests" / "unit"))
    from test_structure import BELOW, NO_SPARK

    arrows = [(a, b) for a in PLACES for b in BELOW[a].split() if b in PLACES]
    path = ROOT / "docs" / "images" / "floors.svg"
    path.write_text(picture(arrows, NO_SPARK), encoding="utf-8")


if __name__ == "__main__":
    main()
