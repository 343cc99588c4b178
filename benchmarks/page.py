"""Put the results in out/ into the pages: python benchmarks/page.py [--out FOLDER] [--docs FOLDER].

docs/benchmarks.md and docs/scale.md hold places of the form

    <!-- made by benchmarks/page.py: NAME -->
    ...
    <!-- end -->

What stands between is made anew from the results; everything else is left as it is, and so is a
place whose result is not there, and the row of a target that was not measured this time. What must
and should be measured is in benchmarks/targets.py.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from targets import TARGETS, Target

__all__ = ["SECTIONS", "filled", "read_results"]

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("benchmarks.md", "scale.md")
Result = dict[str, Any]
Results = dict[str, Result]
_PLACE = re.compile(
    r"(<!-- made by benchmarks/page\.py: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL
)
GIB = 2**30
NOT_MEASURED = "not measured"


def read_results(folder: Path) -> Results:
    """All results of the common form, by name."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(result, dict) and "ratios" in result and "benchmark" in result:
            found[result["benchmark"]] = result
    return found


def filled(page: str, results: Results) -> str:
    """A page with its places filled; a place whose result is not there stays as it is.

    Raises KeyError for a place that nothing is made for.
    """

    def fill(place: re.Match[str]) -> str:
        name = place["name"]
        if name not in SECTIONS:
            raise KeyError(f"nothing makes {name!r}: there are {sorted(SECTIONS)}")
        made = SECTIONS[name](results)
        if made is None:
            return place[0]
        return f"{place[1]}\n{with_rows_before(made, place[0])}\n\n{place[3]}"

    return _PLACE.sub(fill, page)


def with_rows_before(made: str, before: str) -> str:
    """Rows of a table that were not measured are those of the table before, where it has them."""
    rows = {line.split(" | ")[0]: line for line in before.splitlines()}
    lines = [
        rows.get(line.split(" | ")[0], line) if NOT_MEASURED in line.split(" | ") else line
        for line in made.splitlines()
    ]
    return "\n".join(lines)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits that count, without an exponent."""
    if value is None:
        return ""
    if value and abs(value) < 10 ** (digits - 1):
        return f"{value:.{digits}g}" if abs(value) >= 1e-4 else f"{value:.1e}"
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    """Seconds, or milliseconds where they are few."""
    if value < 0.1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def size_of(result: Result) -> str:
    """What a result was measured at."""
    names = ("ratings", "users", "items", "pairs")
    return ", ".join(f"{result[n]:,} {n}" for n in names if isinstance(result.get(n), int))


def measured_on(result: Result) -> str:
    """Machine, versions and day of a result, in a line."""
    machine, versions = result["machine"], result["versions"]
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memoryGiB']} GiB, "
        f"{machine['system']}; {said}; {result['date']}, load {machine['load']} in the end."
    )


def targets(results: Results) -> str | None:
    """Goal, must and measured, side by side."""
    rows = []
    for target in TARGETS:
        result = results.get(target.file)
        value = None if result is None else result["ratios"].get(target.ratio)
        rows.append(
            [
                target.what, number(target.goal), number(target.must),
                NOT_MEASURED if value is None else number(value), _verdict(target, value),
                "" if result is None or value is None else size_of(result),
            ]
        )  # fmt: skip
    if not any(target.file in results for target in TARGETS):
        return None
    return table(["", "goal", "must", "measured", "holds", "at"], rows)


def _verdict(target: Target, value: float | None) -> str:
    holds = None if value is None else target.holds(value)
    return "" if holds is None else "yes" if holds else "**no**"


def timings(name: str, *more: tuple[str, str]) -> Callable[[Results], str | None]:
    """Medians and ranges of a result, with further columns: heading and key of a row."""

    def make(results: Results) -> str | None:
        result = results.get(name)
        if result is None:
            return None
        rows = []
        for one in result["rows"]:
            if "median" not in one:
                continue
            spread = f"{seconds(one['low'])} to {seconds(one['high'])}"
            rows.append(
                [
                    one["label"], seconds(one["median"]), spread, str(one["runs"]),
                    seconds(one["medianCpu"]) if "medianCpu" in one else "",
                    *(number(one.get(key), 4) for _, key in more),
                ]
            )  # fmt: skip
        head = ["", "median", "range", "runs", "CPU", *(title for title, _ in more)]
        size = size_of(result)
        return "\n\n".join(
            filter(None, [f"{size}." if size else "", table(head, rows), measured_on(result)])
        )

    return make


def kernels(results: Results) -> str | None:
    """Ratings a second and the share of the bandwidth."""
    result = results.get("kernels")
    if result is None:
        return None
    rows = [
        [
            one["label"], str(one["threads"]),
            f"{one['ratingsPerSecond'] / 1e6:.1f} million" if "ratingsPerSecond" in one else "",
            number(one.get("bytesPerRating")), f"{one['bytesPerSecond'] / 1e9:.1f}",
            f"{one['share']:.0%}" if "share" in one else "",
        ]
        for one in result["rows"]
    ]  # fmt: skip
    head = ["", "threads", "ratings/s", "bytes touched a rating", "GB/s", "of the bandwidth"]
    return f"{size_of(result)}.\n\n{table(head, rows)}\n\n{measured_on(result)}"


def scale(results: Results) -> str | None:
    """Seconds and memory by size, and the exponents."""
    result = results.get("scale")
    if result is None:
        return None
    rows = [
        [
            f"{one['ratings']:,}", str(one["threads"]), seconds(one["median"]), str(one["runs"]),
            f"{one['ratingsPerSecond'] / 1e6:.2f} million",
            *(f"{one['peaks'][name] / GIB:.2f}" for name in ("driver", "jvm", "workers", "all")),
        ]
        for one in result["rows"]
    ]  # fmt: skip
    head = ["ratings", "cores", "median", "runs", "ratings/s", "driver, GiB", "JVM, GiB",
            "workers, GiB", "all at once, GiB"]  # fmt: skip
    said = "\n".join(f"- {name}: {number(value)}" for name, value in result["ratios"].items())
    return (
        f"{table(head, rows)}\n\n{said}\n\nThe JVM may take {result['memory']}. "
        f"{measured_on(result)}"
    )


def moved(results: Results) -> str | None:
    """Bytes that the blocked form moves."""
    result = results.get("scale")
    if result is None or not result.get("blocks"):
        return None
    rows = [
        [
            f"{one['learned']:,}", f"{sum(one['ids']):,}", str(one["blocks"]),
            number(one["shuffledPerRating"]), number(one["shuffledPerRatingAndSweep"]),
            number(one["shuffledPerIdAndSweep"]),
            number((one["sweep"]["toPython"] + one["sweep"]["fromPython"]) / one["learned"]),
            number(one["writtenPerRating"]), number(one["readPerRatingAndSweep"]),
        ]
        for one in result["blocks"]
    ]  # fmt: skip
    return table(
        ["ratings learned", "ids", "blocks", "bytes shuffled a rating before the sweeps",
         "a rating and sweep", "an id and sweep", "between JVM and Python, a rating and sweep",
         "bytes written to files a rating", "read from them a rating and sweep"],
        rows,
    )  # fmt: skip


def capped(results: Results) -> str | None:
    """Fits where workers have too little memory for one task, and with all of it."""
    rows = [
        [
            f"{one['ratings']:,}", f"{one['megabytes']:,} MB" if fit["capped"] else "no limit",
            f"{fit['blocks']} blocks" if fit["blocks"] > 1 else "one task",
            fit.get("ended") or seconds(fit["seconds"]), number(fit.get("rmse"), 4),
        ]
        for one in results.get("scale", {}).get("capped", [])
        for fit in one["fits"]
    ]  # fmt: skip
    head = ["ratings", "address space of a worker", "form", "fit", "RMSE"]
    return table(head, rows) if rows else None


FAR_RATINGS, FAR_IDS = 10_000_000_000, 100_000_000


def cluster(results: Results) -> str | None:
    """What 10 billion ratings of 100 million users would move, from the bytes measured."""
    result = results.get("scale")
    if result is None or not result.get("blocks"):
        return None
    one = result["blocks"][-1]
    blocks = max(one["blocks"], 2 * -(-FAR_RATINGS // 50_000_000))
    # an id goes to the blocks that name it: no more than it has ratings, no more than there are
    copies_here = min(one["blocks"], one["learned"] / one["ids"][0])
    copies_there = min(blocks, FAR_RATINGS / FAR_IDS)
    per_copy = one["shuffledPerIdAndSweep"] / copies_here
    routed = one["shuffledPerRating"] * FAR_RATINGS
    swept = per_copy * copies_there * FAR_IDS
    written = one["writtenPerRating"] * FAR_RATINGS
    read = one["readPerRatingAndSweep"] * FAR_RATINGS
    rows = [
        ["blocks, at 50 million a task (`maxRatingsPerTask`)", f"{blocks:,}"],
        ["written to the blocks' files, before the sweeps", f"{written / 1e9:,.0f} GB"],
        ["read from them a sweep", f"{read / 1e9:,.0f} GB"],
        ["shuffled once, before the sweeps", f"{routed / 1e9:,.0f} GB"],
        ["copies of an id's factors a sweep: here, there",
         f"{copies_here:.1f}, {copies_there:.0f}"],
        ["bytes of one copy", number(per_copy)],
        ["shuffled a sweep", f"{swept / 1e9:,.0f} GB"],
        ["shuffled in a fit of 5 sweeps", f"{(routed + 5 * swept) / 1e9:,.0f} GB"],
        ["the model on the driver, 200 bytes an id at rank 10", f"{FAR_IDS * 200 / 1e9:,.0f} GB"],
    ]  # fmt: skip
    return table(["10 billion ratings, 100 million users", ""], rows)


SECTIONS: dict[str, Callable[[Results], str | None]] = {
    "targets": targets,
    "large_fit": timings("large_fit", ("RMSE", "rmse")),
    "small_fit": timings("small_fit", ("times ours", "ratio"), ("RMSE", "rmse")),
    "recommend": timings("recommend"),
    "grid": timings("grid", ("best RMSE", "rmse")),
    "streaming": timings("streaming", ("ours takes, times", "ours_takes")),
    "model_size": timings("model_size", ("times the no-op", "times the no-op")),
    "large_peers": timings("large_peers", ("RMSE", "rmse")),
    "kernels": kernels,
    "scale": scale,
    "moved": moved,
    "capped": capped,
    "cluster": cluster,
}


def main() -> None:
    """Fill the pages, and say what holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="where the results lie")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the pages lie")
    given = parser.parse_args()
    results = read_results(given.out)
    for name in PAGES:
        page = given.docs / name
        before = page.read_text(encoding="utf-8")
        after = filled(before, results)
        if after != before:
            page.write_text(after, encoding="utf-8")
        print(f"{page}: {'changed' if after != before else 'as it was'}")
    for target in TARGETS:
        value = results.get(target.file, {}).get("ratios", {}).get(target.ratio)
        if value is not None:
            verdict = _verdict(target, value).strip("*")
            print(f"{number(value):>8}  must {number(target.must) or '-':>6}  "
                  f"{verdict:>3}  {target.what}")  # fmt: skip


if __name__ == "__main__":
    main()
