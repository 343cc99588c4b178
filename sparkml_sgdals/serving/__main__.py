"""Serve a model path: python -m sparkml_sgdals.serving --model PATH."""

from __future__ import annotations

import argparse
import logging
import sys

from sparkml_sgdals.serving.intake.history import named_columns
from sparkml_sgdals.serving.server import serve
from sparkml_sgdals.store.version_store import StorageError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sparkml_sgdals.serving", description="Serve a model path over HTTP."
    )
    add = parser.add_argument
    add("--model", required=True, help="the model path, local or a URI")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000, help="0 for one that is free")
    add("--inbox", help="folder that the stream reads: ratings posted go there")
    add("--archive", help="folder that files of the inbox are moved to once they are learned")
    add("--kafka", help="host:port of a broker: ratings posted go there")
    add("--topic", default="ratings")
    add(
        "--columns",
        default="",
        help="names of user, item, rating, time and event id, in ratings read and written; an "
        "empty one, and by default all: as the model's Params say, and eventId",
    )
    add("--titles", help="file of ids and titles of items: .csv, .json, .jsonl or .parquet")
    add("--item-features", help="such a file of what is known of items: new ones are ranked by it")
    add("--user-features", help="such a file of what is known of users")
    add("--ratings", help="file or folder of ratings that users are known to have given")
    add("--token-file", help="file with the token that posting needs")
    add("--open-writes", action="store_true", help="take ratings from other machines untold")
    add("--rate", type=float, default=20.0, help="ratings a second by client; 0: no limit")
    add("--rating-range", type=float, nargs=2, metavar=("LOWEST", "HIGHEST"))
    add("--max-body", type=int, default=1 << 20, help="bytes of a body")
    add("--origin", action="append", default=[], help="another site that may ask (CORS)")
    add("--allowed-host", action="append", default=[], help="a name that it is asked under")
    add("--connections", type=int, default=1_000, help="connections at once")
    add("--client-connections", type=int, default=256, help="of these of one client")
    add("--client-streams", type=int, default=16, help="streams of events of one client")
    add("--history", type=int, default=100_000, help="ratings posted that are remembered")
    add("--gate", action="store_true", help="not ready before a version beats its baseline")
    add("--cache", help="folder on a disk to map factors in")
    add("--poll-seconds", type=float, default=0.25)
    add("--wait-seconds", type=float, default=0.0, help="how long to wait for a first version")
    add("--trust-proxy", help="address of a proxy whose X-Forwarded-For is believed")
    add("--ann", action="store_true", help="rank by an approximate index (extra ann)")
    add("--ann-recall", type=float, default=0.95, help="recall@10 that it has to reach")
    add("--log-level", default="warning")
    return parser


def main() -> None:
    """Run the service; a mistake in the options is one sentence and exit code 2."""
    given = vars(_parser().parse_args())
    logging.basicConfig(level=given["log_level"].upper(), format="%(levelname)s %(message)s")
    columns = given.pop("columns")
    given["origins"] = tuple(given.pop("origin"))
    given["allowed_hosts"] = tuple(given.pop("allowed_host"))
    if given["rating_range"] is not None:
        given["rating_range"] = tuple(given["rating_range"])
    try:
        serve(
            given.pop("model"),
            columns=named_columns(columns) if columns else None,
            started=lambda address: print(f"Serving at {address}", flush=True),
            **given,
        )
    except (StorageError, ValueError, OSError) as fault:
        print(f"{fault}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
