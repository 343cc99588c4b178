"""A Spark cluster of one's own: python scripts/spark_cluster.py [--workers N] [COMMAND ...]

Spark standalone from the classes that PySpark brings: a master and workers, each a process of its
own in a folder of its own, with a core and a gigabyte. Their Python has what the package needs,
and not the package: an application ships it. Without COMMAND it prints the master's address and
runs until Ctrl-C. With COMMAND it runs that, then stops. COMMAND finds the address in
SPARK_CLUSTER, the workers' Python in PYSPARK_PYTHON, and the package as a zip in SPARK_CLUSTER_ZIP.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil
import pyspark
from beside import serve

PACKAGE = Path(__file__).resolve().parents[1] / "sparkml_sgdals"
START_SECONDS = 60.0
# daemons that live for minutes, beside others
JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
EXECUTOR = "CoarseGrainedExecutorBackend"


class Cluster:
    """A master and its workers; a context manager that starts them and clears up.

    Parameters
    ----------
    workers : how many, of one core each
    own_disk : a folder that each worker sees as an empty disk of its own, where the system lets us
    environment : variables for the workers and their executors beside their own

    Attributes
    ----------
    address : of the master, as spark://host:port
    python : the workers' Python, which has no sparkml_sgdals
    package : a zip of the package, as an application ships it
    """

    def __init__(
        self,
        workers: int = 2,
        own_disk: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.address = ""
        self._folder = Path(tempfile.mkdtemp(prefix="spark-cluster-"))
        self._own_disk = own_disk
        self._environment = environment or {}
        self._master: subprocess.Popen[bytes] | None = None
        self._workers: list[subprocess.Popen[bytes]] = []
        self._count = workers
        self.python = str(self._folder / "python" / "bin" / "python")
        self.package = self._folder / "sparkml_sgdals.zip"

    def __enter__(self) -> Cluster:
        try:
            # of the same version, and with nothing installed
            subprocess.run([sys.executable, "-m", "venv", "--without-pip",
                            self._folder / "python"], check=True)  # fmt: skip
            zip_package(self.package)
            self._master, self.address = self._start(
                "Master", ["--webui-port", "0"], r"Starting Spark master at (spark://\S+)"
            )
            for _ in range(self._count):
                self.add_worker()
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
        """Whether the master runs."""
        return self._master is not None and self._master.poll() is None

    def add_worker(self) -> None:
        """Start one more worker, and wait until the master knows it."""
        options = ["--webui-port", "0", "--cores", "1", "--memory", "1g", self.address]
        process, _ = self._start("Worker", options, r"Successfully registered with (master)")
        self._workers.append(process)

    def executors(self) -> list[psutil.Process]:
        """Processes of the executors that run, those of the first worker first."""
        found = []
        for worker in self._workers:
            for child in _children(worker.pid):
                try:
                    if any(EXECUTOR in word for word in child.cmdline()):
                        found.append(child)
                except psutil.Error:
                    continue
        return found

    def kill_executor(self) -> None:
        """SIGKILL one executor and its Pythons; its worker starts another."""
        running = self.executors()
        if not running:
            raise RuntimeError("No executor runs: start an application on the cluster.")
        _kill_tree(running[0].pid)

    def kill_worker(self) -> None:
        """SIGKILL one worker with its executors."""
        _kill_tree(self._workers.pop().pid)

    def close(self) -> None:
        """Stop, and remove all that they wrote."""
        for process in [*self._workers, self._master]:
            if process is not None:
                _kill_tree(process.pid)
                process.wait()
        self._workers, self._master = [], None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(
        self, name: str, options: list[str], ready: str
    ) -> tuple[subprocess.Popen[bytes], str]:
        folder = Path(tempfile.mkdtemp(prefix=f"{name.lower()}-", dir=self._folder))
        home = Path(pyspark.__file__).parent
        kept = {
            word: value
            for word, value in os.environ.items()
            if not word.startswith(("SPARK", "PYSPARK", "PYTHON"))
        }
        mine = {
            "SPARK_HOME": str(home),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_DAEMON_JAVA_OPTS": JVM,
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_WORKER_DIR": str(folder / "work"),
            "SPARK_LOCAL_DIRS": str(folder / "local"),
            # the folder alone: what is installed there as a link to a checkout is not in it
            "PYTHONPATH": sysconfig.get_paths()["purelib"],
        }
        where = f"org.apache.spark.deploy.{name.lower()}.{name}"
        command = [str(home / "bin" / "spark-class"), where, "--host", "127.0.0.1", "--port", "0"]
        if self._own_disk is not None and name == "Worker":
            command = [*apart(self._own_disk), *command]
        log = folder / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, *options], cwd=folder, env=kept | mine | self._environment,
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while True:
            said = log.read_text(errors="replace")
            found = re.search(ready, said)
            if found:
                return process, found[1]
            if process.poll() is not None or time.monotonic() > until:
                _kill_tree(process.pid)
                raise RuntimeError(f"The {name.lower()} did not come up:\n{said[-2000:]}")
            time.sleep(0.05)


def zip_package(to: Path) -> Path:
    """Write the package, as it stands here, into a zip that Spark can ship."""
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(PACKAGE.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                packed.write(file, file.relative_to(PACKAGE.parent))
    return to


def apart(folder: Path) -> list[str]:
    """A command that runs what follows with an empty disk of its own at a folder."""
    rights = [] if os.getuid() == 0 else ["--map-root-user"]
    script = 'mount -t tmpfs none "$0" && exec "$@"'
    return ["unshare", "--mount", *rights, "sh", "-c", script, str(folder)]


def can_be_apart(folder: Path) -> bool:
    """Whether the system lets processes have disks of their own."""
    try:
        tried = subprocess.run([*apart(folder), "true"], capture_output=True, check=False)
    except OSError:
        return False
    return tried.returncode == 0


def _children(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _kill_tree(pid: int) -> None:
    """SIGKILL a process and all below it, parents first, so that none starts another."""
    try:
        # children are asked for while their parent is there
        tree = [psutil.Process(pid), *_children(pid)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(tree, timeout=30)


def variables(cluster: Cluster) -> dict[str, str]:
    """Return what a command beside the cluster finds it by."""
    return {
        "SPARK_CLUSTER": cluster.address,
        "SPARK_CLUSTER_ZIP": str(cluster.package),
        "PYSPARK_PYTHON": cluster.python,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


def main() -> int:
    """Start a cluster for a command, or until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Run a Spark cluster on this machine.")
    parser.add_argument("--workers", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="run beside it, then stop it")
    options = parser.parse_args()

    return serve("master", lambda: Cluster(options.workers), options.command, variables)


if __name__ == "__main__":
    sys.exit(main())
