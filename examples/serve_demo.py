"""Rate films on a page and watch the list move: `make serve-demo`, or python examples/serve_demo.py

A first fit learns the older half of the ratings; a stream goes on with the folder INBOX, a
micro-batch a second; the service, a process of its own without Spark, serves the newest version
and writes what is rated on its page into INBOX. The newer half of the ratings is replayed beside
it, so that there is something to see. The ratings are found as in examples/demo.py, titles beside
them. Everything that is written goes to out/serve-demo. Ctrl-C ends all of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
from demo import OUT, download, load_ratings, say, split, start_spark
from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel

SCHEMA = (
    "userId int, movieId int, rating double, timestamp long, eventId string, "
    "itemFeatures array<double>"
)
COLUMNS = "userId,movieId,rating,timestamp,eventId"


def films_of(ratings: pd.DataFrame, name: str, whence: str) -> pd.DataFrame:
    """Films by title, genres and year: of the file beside the ratings, downloaded, or made up."""
    films = titles_of(ratings, name, whence)
    films["year"] = films.title.str.extract(r"\((\d{4})\)\s*$")[0].astype(float)
    return films


def titles_of(ratings: pd.DataFrame, name: str, whence: str) -> pd.DataFrame:
    """Titles and genres of the films: of the file beside the ratings, downloaded, or made up."""
    if whence.startswith("read from "):
        beside = Path(whence.removeprefix("read from ")).parent / "movies.csv"
        if beside.is_file():
            return pd.read_csv(beside)[["movieId", "title", "genres"]]
    if whence.startswith("downloaded"):
        found = download(seconds=5, file="movies.csv")
        if found is not None:
            return found[["movieId", "title", "genres"]]
    first = "Silent,Broken,Golden,Crimson,Distant,Hidden,Last,Paper,Restless,Winter,Iron"
    second = "Harbour,Mirror,Garden,Engine,River,Letter,Orchard,Signal,Carnival,Bridge"
    rng = np.random.default_rng(3)
    ids = np.sort(ratings.movieId.unique())
    words = zip(*[rng.choice(n.split(","), ids.size) for n in (first, second)], strict=True)
    years = rng.integers(1940, 2020, ids.size)
    texts = [f"{a} {b} {n} ({y})" for n, ((a, b), y) in enumerate(zip(words, years, strict=True))]
    genres = rng.choice(["Drama", "Comedy", "Thriller", "Romance", "Action|Adventure"], ids.size)
    return pd.DataFrame({"movieId": ids, "title": texts, "genres": genres})


def into_folder(inbox: Path) -> Callable[[int, pd.DataFrame], None]:
    """Puts ratings into the inbox, a whole file at a time."""

    def put(number: int, part: pd.DataFrame) -> None:
        name = f"replay-{number:08d}.json"
        hidden = inbox / f".{name}.tmp"
        hidden.write_text(part.to_json(orient="records", lines=True))
        hidden.rename(inbox / name)

    return put


def into_topic(address: str, topic: str) -> Callable[[int, pd.DataFrame], None]:
    """Sends ratings to a topic, a message each."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": address, "enable.idempotence": True, "log_level": 3})

    def put(number: int, part: pd.DataFrame) -> None:
        for line in part.to_json(orient="records", lines=True).splitlines():
            producer.produce(topic, line.encode())
        producer.flush(30)

    return put


class Replay(threading.Thread):
    """Hands ratings on, in time order, so many a second."""

    def __init__(
        self, ratings: pd.DataFrame, put: Callable[[int, pd.DataFrame], None], pace: int, done: int
    ) -> None:
        super().__init__(daemon=True)
        self._ratings, self._put, self._pace, self._done = ratings, put, pace, done
        self.ended = threading.Event()

    def run(self) -> None:
        """Write until all are written, or it is told to end."""
        for start in range(self._done * self._pace, len(self._ratings), self._pace):
            self._put(start // self._pace, self._ratings.iloc[start : start + self._pace])
            if self.ended.wait(1.0):
                return


class Service:
    """The service in its process, started again where it ends by itself."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self) -> None:
        """Start it, and wait until it listens. Raises RuntimeError where it does not."""
        # a session of its own: Ctrl-C is for the demo, which ends the service in turn
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("Serving at "):
            raise RuntimeError(f"The service did not start: {' '.join(self._command)}")
        self.address = line.split()[-1]
        # the same port after a start again
        port = self.address.rstrip("/").rpartition(":")[2]
        self._command[self._command.index("--port") + 1] = port

    def look_after(self) -> None:
        """Start it again where it has ended."""
        if self._process is not None and self._process.poll() is not None:
            say(f"The service ended with {self._process.returncode}; starting it again.")
            self.start()

    def stop(self) -> None:
        """End it, with what it has taken in written."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def first_model(
    spark: SparkSession, first: pd.DataFrame, films: pd.DataFrame, path: Path
) -> StreamingBiasedALSModel:
    """The model of the path where there is one, else one fitted to the ratings."""
    if (path / "model.json").is_file():
        model = StreamingBiasedALSModel.load(str(path))
        say(f"  goes on with {model}")
        return model
    als = StreamingBiasedALS(userCol="userId", itemCol="movieId", timestampCol="timestamp")
    table = spark.createDataFrame(first, "userId int, movieId int, rating double, timestamp long")
    about = spark.createDataFrame(films[["movieId", "genres", "year"]])
    model = als.setItemFeatures(about).fit(table)
    # films that the older half does not rate are recommended too
    model = model.withItems(about)
    # the stream is told of new ones in this column, by what the page posts
    model.setItemFeaturesCol("itemFeatures")
    say("  " + str(model.diagnose()).replace("\n", "\n  "))
    return model


def read_inbox(spark: SparkSession, inbox: Path) -> DataFrame:
    """The inbox as a stream of ratings."""
    return spark.readStream.schema(SCHEMA).json(str(inbox))


def start_kafka() -> tuple[Any, str]:
    """A broker of one's own and a topic; Spark finds its connector when it starts."""
    sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
    from kafka_broker import CONNECTORS, Broker, submit_args
    from kafka_stream import make_topic
    from registry import connectors

    os.environ["PYSPARK_SUBMIT_ARGS"] = submit_args(connectors(*CONNECTORS))
    broker = Broker()
    broker.start()
    say(f"  Kafka at {broker.address}")
    return broker, make_topic(broker.address)


def read_kafka(spark: SparkSession, broker: Any, topic: str) -> DataFrame:
    """The topic as a stream of ratings."""
    from kafka_stream import read_topic

    return read_topic(spark, broker.address, topic, 100_000)


def set_at_the_end(event: threading.Event) -> None:
    """Set an event at Ctrl-C or SIGTERM."""

    def told(number: int, frame: FrameType | None) -> None:
        event.set()

    signal.signal(signal.SIGINT, told)
    signal.signal(signal.SIGTERM, told)


def main() -> None:
    """Run it until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 for one that is free")
    parser.add_argument("--pace", type=int, default=50, help="ratings replayed a second; 0: none")
    parser.add_argument("--trigger", default="1 second", help="a micro-batch every so often")
    parser.add_argument("--keep", action="store_true", help="go on with the model of the last run")
    parser.add_argument("--kafka", action="store_true", help="with a Kafka broker of its own")
    parser.add_argument("--out", default=str(OUT / "serve-demo"))
    parser.add_argument("--seconds", type=float, help="end by itself after so long")
    given = parser.parse_args()

    if given.kafka and given.keep:
        parser.error("--keep goes with the folder: the broker's log goes when it ends.")
    ended = threading.Event()
    set_at_the_end(ended)
    out = Path(given.out).absolute()
    if not given.keep:
        shutil.rmtree(out, ignore_errors=True)
    inbox, path = out / "inbox", out / "model"
    inbox.mkdir(parents=True, exist_ok=True)

    ratings, name, whence = load_ratings()
    train, test = split(ratings)
    train = train.sort_values("timestamp", kind="stable")
    half = len(train) // 2
    first, rest = train.iloc[:half], train.iloc[half:]
    say(f"Ratings: {name}, {whence}")
    say(f"  {half:,} to fit, {len(rest):,} to replay, {len(test):,} held out")
    first.to_parquet(out / "first.parquet")
    films = films_of(ratings, name, whence)
    films.to_csv(out / "films.csv", index=False)

    broker, topic = start_kafka() if given.kafka else (None, "")
    spark = start_spark()
    # Spark has put its own in the place of it
    set_at_the_end(ended)
    service: Service | None = None
    replay: Replay | None = None
    job: Any = None
    try:
        model = first_model(spark, first, films, path)
        if broker is not None:
            # its messages are ratings alone
            model.setItemFeaturesCol("")
        held_out = spark.createDataFrame(
            test, "userId int, movieId int, rating double, timestamp long"
        )
        job = model.updateStream(
            read_inbox(spark, inbox) if broker is None else read_kafka(spark, broker, topic),
            str(path),
            trigger={"processingTime": given.trigger},
            validation=held_out,
        )
        # fmt: off
        service = Service([
            sys.executable, "-m", "sparkml_sgdals.serving", "--model", str(path),
            "--host", given.host, "--port", str(given.port),
            *(["--inbox", str(inbox)] if broker is None else
              ["--kafka", broker.address, "--topic", topic]),
            "--columns", COLUMNS, "--titles", str(out / "films.csv"),
            "--item-features", str(out / "films.csv"),
            "--ratings", str(out / "first.parquet"), "--wait-seconds", "60",
        ])
        # fmt: on
        if given.pace:
            done = len(list(inbox.glob("replay-*.json")))
            put = into_folder(inbox) if broker is None else into_topic(broker.address, topic)
            replay = Replay(rest, put, given.pace, done)
            replay.start()
        service.start()
        # the first micro-batches of a stream take longest
        until = time.monotonic() + (60 if given.pace else 0)
        before = model.version
        while job.model.version < before + 2 and time.monotonic() < until:
            time.sleep(0.2)
        say(f"\nOpen {service.address}  (Ctrl-C ends it)")
        until = time.monotonic() + (given.seconds or float("inf"))
        while not ended.wait(0.5) and time.monotonic() < until:
            service.look_after()
            if not job.query.isActive:
                job.awaitTermination(1)
                break
    finally:
        say("\nEnding the service and the stream ...")
        if replay is not None:
            replay.ended.set()
        if service is not None:
            service.stop()
        if job is not None:
            job.stop()
        spark.stop()
        if broker is not None:
            broker.close()
        say(f"What was written is in {os.path.relpath(out)}; --keep goes on with it.")


if __name__ == "__main__":
    main()
