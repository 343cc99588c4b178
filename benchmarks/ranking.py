"""The tables of rankings: Recall@20 and NDCG@20 on tables of events, three protocols, and peers.

    pip install implicit threadpoolctl
    python benchmarks/ranking.py FOLDER --sets ml-latest-small --models popular ease ours ...
    python benchmarks/ranking.py --speed
    python benchmarks/ranking.py --twenty

benchmarks/ranking_protocols.py says what is read, held out and counted, ranking_peers.py who else
ranks. Of a peer with a grid the point with the best Recall@20 on the test itself is shown, on each
set and protocol anew, which favours the peer. Ours has one setting, the defaults; with `--inner`
all are judged within what the protocols learn, which is where ours is to be chosen. Standard errors
are over users. Writes out/ranking.json and out/ranking.md; rows of `--known`, results written
before, are kept for what is not run again.

`--speed` times 10 sweeps of 64 factors on a million events of benchmarks/generate.py, by turns, and
writes out/ranking_speed.json; `--twenty` learns 20 million of them, in one task and in blocks, each
in a fresh process whose memory is looked at, and writes out/ranking_twenty.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from generate import write_ratings
from harness import OUT, about, cores, cpu_seconds, in_turns, row, session, write
from peers import Point
from ranking_peers import PEERS, RankingPeer, implicit_model, spark_als, sparse
from ranking_protocols import (
    I64,
    PROTOCOLS,
    SETS,
    TOP,
    Events,
    Judged,
    Split,
    judge,
    read_events,
    splits,
)
from scale import watched

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.learn.whole_table import fit_stops
from sparkml_sgdals.ml.params import default_settings
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import CHOSEN

Row = dict[str, Any]
MILLION, TWENTY = 1_000_000, 20_000_000
SPEED_RANK, SPEED_SWEEPS, SPEED_REG = 64, 10, 0.01
HEAD = f"Recall@{TOP} / NDCG@{TOP}"


def ours(train: Events, users: I64, point: Point) -> I64:
    """StreamingBiasedALS with all defaults, through what its users call."""
    spark = session()
    columns = {"user": train.users, "item": train.items}
    als = StreamingBiasedALS(implicitPrefs=True)
    if point.get("timestampCol"):
        columns["time"] = train.order
        als = als.setTimestampCol("time")
    events = spark.createDataFrame(pd.DataFrame(columns))
    asked = spark.createDataFrame(pd.DataFrame({"user": users}))
    found = als.fit(events).recommendForUserSubset(asked, TOP, excludeSeen=events).toPandas()
    lists = np.full((users.size, TOP), -1)
    for place, recommended in zip(
        np.searchsorted(users, found.user), found.recommendations, strict=True
    ):
        lists[place, : len(recommended)] = [one["item"] for one in recommended]
    return lists


MODELS: dict[str, tuple[RankingPeer, ...]] = {
    **{name: (peer,) for name, peer in PEERS.items()},
    "ours": (
        RankingPeer("ours, no timestampCol", ours),
        RankingPeer("ours, timestampCol", ours, ({"timestampCol": "time"},), timed=True),
    ),
}


def measure(peer: RankingPeer, events: Events, parts: Sequence[Split]) -> Row:
    """The best point of a peer's grid, and what each point gave; or why there is nothing."""
    reason = peer.missing(events)
    tried: list[Row] = []
    try:
        for point in () if reason else peer.grid:
            clock = time.perf_counter()
            judged = [judge(peer.recommend(one.train, one.users, point), one) for one in parts]
            found = Judged.pooled(judged).row() | {"seconds": time.perf_counter() - clock}
            tried.append(found | {"point": point})
    except Exception as failure:  # one peer that fails is a line of the table
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
    if reason:
        return {"reason": reason}
    return max(tried, key=lambda one: one["recall"]) | {"tried": tried}


def run(folder: Path, given: argparse.Namespace) -> Iterator[Row]:
    """A row for each set, protocol and model asked for, as they come."""
    for name in given.sets:
        events = read_events(folder, name)
        for protocol in given.protocols:
            if protocol not in SETS[name].protocols:
                continue
            parts = splits(events, protocol, given.inner)
            for peer in (peer for model in given.models for peer in MODELS[model]):
                head: Row = {"set": name, "protocol": protocol, "inner": given.inner,
                             "model": peer.name, "learned": [len(one.train) for one in parts],
                             "heldOut": sum(len(one.test) for one in parts)}  # fmt: skip
                found = head | measure(peer, events, parts)
                brief = {key: value for key, value in found.items() if key != "tried"}
                print(json.dumps(brief), file=sys.stderr, flush=True)
                yield found


def merged(known: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """New rows in the place of known ones, in the order of sets, protocols and models."""
    names = [peer.name for peers in MODELS.values() for peer in peers]
    orders = {"set": list(SETS), "protocol": list(PROTOCOLS), "model": names}
    found = {tuple(one[key] for key in ("set", "protocol", "inner", "model")): one
             for one in (*known, *new)}  # fmt: skip
    return sorted(
        found.values(), key=lambda one: [order.index(one[key]) for key, order in orders.items()]
    )


def as_markdown(rows: Sequence[Row]) -> str:
    """A table for each protocol, sets as columns, and below it the points chosen."""
    lines = []
    for inner in (False, True):
        for protocol in PROTOCOLS:
            own = [one for one in rows if (one["protocol"], one["inner"]) == (protocol, inner)]
            if own:
                lines += [f"### {protocol}{', within what it learns' if inner else ''}", ""]
                lines += [*_table(own), ""]
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> list[str]:
    sets = list(dict.fromkeys(one["set"] for one in rows))
    cells = {(one["model"], one["set"]): one for one in rows}
    models = list(dict.fromkeys(one["model"] for one in rows))
    users = {one["set"]: one["users"] for one in rows if "users" in one}
    lines = [f"| {HEAD} | " + " | ".join(sets) + " |", "|---|" + "---|" * len(sets)]
    of_sets = {one["set"]: one for one in rows}
    sizes = [", ".join(f"{n:,}" for n in of_sets[name]["learned"]) for name in sets]
    lines.append("| events learned | " + " | ".join(sizes) + " |")
    lines.append("| users judged | " + " | ".join(f"{users.get(s, 0):,}" for s in sets) + " |")
    notes = []
    for model in models:
        texts = []
        for name in sets:
            one = cells.get((model, name), {})
            if "recall" not in one:
                texts.append("")
                if one.get("reason", "there are no times") != "there are no times":
                    notes.append(f"- {model}, {name}: no result, {one['reason']}")
                continue
            texts.append(f"{one['recall']:.3f} ± {one['recallError']:.3f} / {one['ndcg']:.3f}")
            if len(one["tried"]) > 1:
                point = ", ".join(f"{key} {value:g}" for key, value in one["point"].items())
                notes.append(f"- {model}, {name}: {point}; best of {len(one['tried'])}")
        if any(texts):
            lines.append(f"| {model} | " + " | ".join(texts) + " |")
    return [*lines, "", *notes] if notes else lines


def learned_alone(ratings: Ratings, rank: int, sweeps: int, lam: float = CHOSEN) -> ModelState:
    """Learn events that are encoded, without Spark and without files."""
    settings = default_settings(
        learns_events=True, rank=min(rank, 32), table_rank=rank, max_iter=sweeps, tol=0.0,
        regs=(lam,) * 4,
    )  # fmt: skip
    state = ModelState.empty(settings, "int", "int")
    ((learned, _),) = fit_stops(ratings, state, [sweeps], cores())
    return learned


def made_events(folder: Path, count: int) -> Path:
    """A folder of Parquet with so many events of benchmarks/generate.py, each of rating 1."""
    write_ratings(folder / "made", count)
    events = folder / "events"
    events.mkdir()
    for number, file in enumerate(sorted((folder / "made").glob("*/*.parquet"))):
        table = pq.read_table(file, columns=["userId", "movieId"])
        ones = pa.array(np.ones(table.num_rows, np.float32))
        table = table.rename_columns(["user", "item"]).append_column("rating", ones)
        pq.write_table(table, events / f"{number:05d}.parquet")
    return events


def speed(runs: int) -> None:
    """Time ours, with Spark and alone, Spark's implicit ALS and the package implicit, by turns."""
    with tempfile.TemporaryDirectory(prefix="ranking-speed-") as scratch:
        path = made_events(Path(scratch), MILLION)
        table = pq.read_table(path)
        sides = [np.unique(table[side], return_inverse=True)[1] for side in ("user", "item")]
        pairs = Events(*(side.astype(np.int64) for side in sides))
        ids = {side: table[side].cast(pa.int64()) for side in ("user", "item")}
        arrow = pa.table(ids | {"rating": table["rating"]})
        ratings = encode_ratings(arrow, cores())
        spark = session("4g")
        events = spark.read.parquet(str(path))
        point = {"rank": SPEED_RANK, "maxIter": SPEED_SWEEPS}
        as_it_comes = spark_als(point)
        in_blocks = spark_als(point).setNumBlocks(cores())
        own = StreamingBiasedALS(implicitPrefs=True, **point)

        ways: dict[str, Callable[[], Any]] = {
            "implicit": lambda: implicit_model(
                sparse(pairs), {"factors": SPEED_RANK, "iterations": SPEED_SWEEPS}
            ),
            "ours, learning alone": lambda: learned_alone(ratings, SPEED_RANK, SPEED_SWEEPS),
            "ours, learning alone, regParam given": lambda: learned_alone(
                ratings, SPEED_RANK, SPEED_SWEEPS, SPEED_REG
            ),
            "ours without Spark": lambda: learned_alone(
                encode_ratings(arrow, cores()), SPEED_RANK, SPEED_SWEEPS
            ),
            "ALS": lambda: as_it_comes.fit(events),
            "ALS, a block a core": lambda: in_blocks.fit(events),
            "ours": lambda: own.fit(events),
        }
        if importlib.util.find_spec("implicit") is None:
            print("implicit is left out: pip install implicit threadpoolctl")
            del ways["implicit"]
        # compiled and warm
        few = events.limit(10_000).cache()
        own.fit(few)
        in_blocks.fit(few)
        small = encode_ratings(arrow.slice(0, 10_000))
        learned_alone(small, SPEED_RANK, SPEED_SWEEPS)
        if "implicit" in ways:
            ways["implicit"]()
        rows = in_turns(ways, runs)
        spark.stop()
    ratios = {}
    for kind, suffix in (("median", ""), ("medianCpu", ", CPU")):
        took = {one["label"]: one[kind] for one in rows}
        als = min(took["ALS"], took["ALS, a block a core"])
        ratios[f"ALS to ours{suffix}"] = als / took["ours"]
        if "implicit" in took:
            for way in ("learning alone", "learning alone, regParam given"):
                ratios[f"{way}, to implicit{suffix}"] = took[f"ours, {way}"] / took["implicit"]
    write("ranking_speed", rows, ratios, events=MILLION, peers=_versions())


def fit_once(folder: str, blocks: int, memory: str) -> Row:
    """Seconds and highest memory of one fit of this process."""
    spark = session(memory)
    als = StreamingBiasedALS(implicitPrefs=True, numBlocks=blocks, maxRatingsPerTask=2_000_000_000)
    clock, cpu = time.perf_counter(), cpu_seconds()
    with watched() as peaks:
        model = als.fit(spark.read.parquet(folder))
    found = {
        "seconds": time.perf_counter() - clock, "cpu": cpu_seconds() - cpu, "peaks": peaks.held,
        "learned": model.summary.ratings, "ids": [model.summary.users, model.summary.items],
        "phases": dict(model.summary.seconds),
    }  # fmt: skip
    spark.stop()
    return found


def twenty(blocks: int, memory: str) -> None:
    """Learn 20 million events in one task and in blocks; what fails is a row with the reason."""
    rows, seconds = [], {}
    with tempfile.TemporaryDirectory(prefix="ranking-twenty-") as scratch:
        path = made_events(Path(scratch), TWENTY)
        for label, number in (("one task", 1), (f"{blocks} blocks", blocks)):
            asked = json.dumps([str(path), number, memory])
            done = subprocess.run(
                [sys.executable, __file__, "--fit-once", asked],
                check=False,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                reason = done.stderr.strip().splitlines()[-1]
                rows.append({"label": label, "reason": reason})
                print(f"{label}: no result, {reason}")
                continue
            one = json.loads(done.stdout.splitlines()[-1])
            peaks = one["peaks"]
            one["bytesPerEvent"] = peaks["all"] / one["learned"]
            one["pythonBytesPerEvent"] = (peaks["driver"] + peaks["workers"]) / one["learned"]
            rows.append(row(label, [one.pop("seconds")], [one.pop("cpu")], **one))
            seconds[number] = rows[-1]["median"]
            said = ", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in peaks.items())
            print(
                f"{label}: {seconds[number]:.1f} s; {said}; {one['bytesPerEvent']:.0f} bytes an "
                f"event, {one['pythonBytesPerEvent']:.0f} of them Python's"
            )
    ratios = {"blocks to one task": seconds[blocks] / seconds[1]} if len(seconds) > 1 else {}
    write("ranking_twenty", rows, ratios, events=TWENTY, memory=memory)


def _versions() -> dict[str, str]:
    return {
        name: importlib.metadata.version(name) for name in ("implicit", "scipy")
        if importlib.util.find_spec(name)
    }  # fmt: skip


def main() -> None:
    """Make the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("SPARKML_SGDALS_DATA"))
    usual = [name for name in SETS if name != "diginetica"]
    parser.add_argument("--sets", nargs="+", default=usual, choices=list(SETS))
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=list(PROTOCOLS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--inner", action="store_true", help="within what the protocols learn")
    parser.add_argument("--json", type=Path, default=OUT / "ranking.json", help="where to write")
    parser.add_argument("--markdown", type=Path, default=OUT / "ranking.md", help="where to write")
    parser.add_argument("--known", type=Path, help="results of before, for what is not run")
    parser.add_argument("--speed", action="store_true", help="time a million events")
    parser.add_argument("--runs", type=int, default=3, help="of --speed")
    parser.add_argument("--twenty", action="store_true", help="time 20 million events")
    parser.add_argument("--blocks", type=int, default=8, help="of --twenty")
    parser.add_argument("--memory", default="4g", help="of the driver's JVM, of --twenty")
    parser.add_argument("--fit-once", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    # peers that thread by OpenMP see what Spark and ours get
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    if given.fit_once:
        print(json.dumps(fit_once(*given.fit_once)))
        return
    if given.speed or given.twenty:
        if given.speed:
            speed(given.runs)
        if given.twenty:
            twenty(given.blocks, given.memory)
        return
    if not given.folder:
        sys.exit("Name the folder of data, or set SPARKML_SGDALS_DATA.")
    known = json.loads(given.known.read_text(encoding="utf-8"))["rows"] if given.known else []
    for file in (given.json, given.markdown):
        file.parent.mkdir(parents=True, exist_ok=True)
    rows = known
    for one in run(Path(given.folder), given):
        rows = merged(rows, [one])
        result = about("ranking") | {"peers": _versions(), "rows": rows}
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        given.markdown.write_text(as_markdown(rows), encoding="utf-8")
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
