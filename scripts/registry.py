"""Jars from Maven Central, by the Ivy that PySpark carries: nothing else has to be installed.

They are kept under $SPARKML_SGDALS_CACHE, else $XDG_CACHE_HOME/sparkml-sgdals, else
~/.cache/sparkml-sgdals.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pyspark

SCALA = "2.13"
PROVIDED = (
    ("org.apache.hadoop", "*"),
    ("org.apache.spark", f"spark-tags_{SCALA}"),
    ("org.scala-lang", "*"),
    ("org.slf4j", "*"),
)
"""What a connector needs and Spark has already: organisation, module."""

PROVIDED_HADOOP = (
    ("org.apache.hadoop", "hadoop-client-api"),
    ("org.apache.hadoop", "hadoop-common"),
    ("org.slf4j", "*"),
)
"""The same for Hadoop's connectors."""


def cache_folder() -> Path:
    """Where jars are kept between runs."""
    named = os.environ.get("SPARKML_SGDALS_CACHE")
    if named:
        return Path(named).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sparkml-sgdals"


def java() -> str:
    """The program of the Java that Spark uses."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which(f"{home}/bin/java" if home else "java")
    if found is None:
        raise RuntimeError(f"No java {f'in JAVA_HOME {home}' if home else 'on the PATH'}.")
    return found


def spark_jar(name: str) -> Path:
    """A jar of PySpark's own by the start of its name."""
    (found,) = (Path(pyspark.__file__).parent / "jars").glob(f"{name}-[0-9]*.jar")
    return found


def fetch(
    name: str, coordinates: list[str], without: tuple[tuple[str, str], ...] = ()
) -> list[Path]:
    """Jars of `coordinates` (group:artifact:version) and of all that they need, `without` some.

    Fetched once, then taken from the cache by `name`. Raises RuntimeError where the registry has
    not got them.
    """
    folder = cache_folder() / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            _retrieve(coordinates, without, Path(scratch))
            (Path(scratch) / "ivy.xml").unlink()
            try:
                # whole, or not there: another process may do the same
                (Path(scratch) / "jars").rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return sorted(folder.glob("*.jar"))


def connectors(*artifacts: str) -> list[Path]:
    """Jars of Spark's own connectors, such as spark-avro, for the PySpark in use.

    Of its very version; where the registry has not got that one, of the nearest before it, which
    the names of the jars tell.
    """
    version = pyspark.__version__
    major = version.partition(".")[0]
    jars: dict[str, Path] = {}
    for artifact in artifacts:
        wanted = f"org.apache.spark:{artifact}_{SCALA}:[{major}.0.0,{version}]"
        for jar in fetch(f"spark-{version}/{artifact}", [wanted], PROVIDED):
            jars.setdefault(jar.name, jar)
    return list(jars.values())


def s3_connector() -> list[Path]:
    """Jars of S3A, of the Hadoop that PySpark carries: 700 MB, mostly Amazon's client."""
    version = spark_jar("hadoop-client-api").stem.rpartition("-")[2]
    wanted = [f"org.apache.hadoop:hadoop-aws:{version}"]
    return fetch(f"hadoop-aws-{version}", wanted, PROVIDED_HADOOP)


def submit_with(jars: list[Path], *options: str) -> None:
    """Have the next PySpark of this process, or below it, use these jars and options as well."""
    before = os.environ.get("PYSPARK_SUBMIT_ARGS", "pyspark-shell").split()
    if "--jars" in before:
        place = before.index("--jars")
        jars = [*map(Path, before[place + 1].split(",")), *jars]
        del before[place : place + 2]
    mine = ["--jars", ",".join(dict.fromkeys(map(str, jars))), *options]
    os.environ["PYSPARK_SUBMIT_ARGS"] = " ".join([*mine, *before])


def _retrieve(coordinates: list[str], without: tuple[tuple[str, str], ...], folder: Path) -> None:
    wanted = "".join(
        '<dependency org="{}" name="{}" rev="{}" conf="default"/>'.format(*one.split(":"))
        for one in coordinates
    )
    left_out = "".join(f'<exclude org="{org}" module="{name}"/>' for org, name in without)
    ivy = folder / "ivy.xml"
    ivy.write_text(
        '<ivy-module version="2.0"><info organisation="sparkml-sgdals" module="jars"/>'
        f"<dependencies>{wanted}{left_out}</dependencies></ivy-module>"
    )
    command = [
        java(), "-jar", str(spark_jar("ivy")), "-ivy", str(ivy), "-confs", "default",
        "-cache", str(cache_folder() / "ivy"), "-types", "jar", "bundle",
        "-retrieve", f"{folder}/jars/[artifact]-[revision].[ext]",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (folder / "jars").is_dir():
        said = done.stdout + done.stderr
        faults = re.findall(r"^\s*::\s+(\S+:.*?)\s*(?:::)?$", said, re.MULTILINE)
        raise RuntimeError(
            f"Maven Central did not give {', '.join(coordinates)}: "
            f"{'; '.join(dict.fromkeys(faults)) or said[-400:]}"
        )
