"""A Kafka broker of one's own: python scripts/kafka_broker.py [--port PORT] [COMMAND ...]

One real broker (KRaft: it is its own controller) on a port of this machine, with a log in a
temporary folder. Without COMMAND it prints its address and runs until Ctrl-C. With COMMAND it runs
that, then stops. COMMAND finds the address in KAFKA_BOOTSTRAP, and a PySpark in it has Spark's
connectors for Kafka and Avro (PYSPARK_SUBMIT_ARGS). The jars are fetched on first use.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path
from types import TracebackType

from beside import serve
from registry import SCALA, connectors, fetch, java

KAFKA = "4.3.1"
CONNECTORS = ("spark-sql-kafka-0-10", "spark-avro")
START_SECONDS = 60.0


class Broker:
    """One broker in a process of its own; a context manager that starts it and clears up.

    Attributes
    ----------
    address : host:port for clients; the same after a kill and a new start
    log : what the broker printed
    """

    def __init__(self, port: int = 0) -> None:
        ports = free_ports(2)
        self.address = f"127.0.0.1:{port or ports[0]}"
        self._controller = f"127.0.0.1:{ports[1]}"
        self._folder = Path(tempfile.mkdtemp(prefix="kafka-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.log = self._folder / "broker.log"

    def __enter__(self) -> Broker:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the running broker."""
        if self._process is None:
            raise RuntimeError("The broker does not run: start it.")
        return self._process.pid

    def start(self) -> None:
        """Start, or start again over the same log, and wait until it serves.

        Raises RuntimeError with the end of its log where it does not come up.
        """
        jars = fetch(
            f"kafka-{KAFKA}",
            [f"org.apache.kafka:kafka_{SCALA}:{KAFKA}", "org.slf4j:slf4j-simple:1.7.36"],
        )
        program = [
            java(), "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
            "-cp", os.pathsep.join(map(str, jars)),
        ]  # fmt: skip
        settings = self._folder / "server.properties"
        if not settings.exists():
            settings.write_text(self._settings())
            identity = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            tool = [*program, "kafka.tools.StorageTool", "format", "--standalone"]
            subprocess.run(
                [*tool, "-t", identity.replace("-", "_"), "-c", str(settings)],
                check=True, capture_output=True,
            )  # fmt: skip
        with self.log.open("ab") as log:
            before = log.tell()
            # its own session: Ctrl-C is for the one who started it, who then stops it
            self._process = subprocess.Popen(
                [*program, "kafka.Kafka", str(settings)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while b"Kafka Server started" not in self.log.read_bytes()[before:]:
            if self._process.poll() is not None or time.monotonic() > until:
                said = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"The broker did not come up at {self.address}:\n{said}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL: it gets no chance to write anything."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Shut down in order, within half a minute."""
        self._end(signal.SIGTERM)

    def close(self) -> None:
        """Stop, and remove all that it wrote."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _settings(self) -> str:
        listeners = f"PLAINTEXT://{self.address},CONTROLLER://{self._controller}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.bootstrap.servers": self._controller,
            "listeners": listeners,
            "advertised.listeners": listeners,
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self._folder / "data"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()


def submit_args(jars: list[Path]) -> str:
    """PYSPARK_SUBMIT_ARGS for a PySpark that has these jars."""
    return f"--jars {','.join(map(str, jars))} pyspark-shell"


def variables(broker: Broker) -> dict[str, str]:
    """Return what a command beside the broker finds it by."""
    jars = connectors(*CONNECTORS)
    return {"KAFKA_BOOTSTRAP": broker.address, "PYSPARK_SUBMIT_ARGS": submit_args(jars)}


def main() -> int:
    """Start a broker for a command, or until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Run a Kafka broker on this machine.")
    parser.add_argument("--port", type=int, default=0, help="0 (default): a free one")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="run beside it, then stop it")
    options = parser.parse_args()

    print(f"Starting Kafka {KAFKA} ...", file=sys.stderr, flush=True)
    return serve("broker", lambda: Broker(options.port), options.command, variables)


if __name__ == "__main__":
    sys.exit(main())
