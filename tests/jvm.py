"""Options of the JVMs that tests start."""

from __future__ import annotations

import sys
from pathlib import Path

OPTIONS = (
    # code that runs for seconds is not worth the second compiler's time; the frames of the first
    # are larger, and the lineage of Spark's ALS overflows the usual stack with them
    "-XX:TieredStopAtLevel=1", "-Xss16m",
    # the first compiler alone is given room for a tenth of the code that a run makes, and sweeps it
    "-XX:ReservedCodeCacheSize=512m", "-XX:-UseCodeCacheFlushing",
    "-XX:+UseSerialGC", "-XX:MetaspaceSize=256m", "-XX:-UsePerfData",
)  # fmt: skip
"""for programs of any size"""

ARCHIVE = Path(sys.prefix) / "spark.jsa"
"""classes of Spark as they lie in memory, where `scripts/archive_spark.py` has written them"""


def options() -> tuple[str, ...]:
    """Return a JVM's options, with the archive where one is; one that does not fit is unused."""
    if not ARCHIVE.exists() or not ARCHIVE.stat().st_size:
        return OPTIONS
    return (*OPTIONS, f"-XX:SharedArchiveFile={ARCHIVE}", "-Xlog:cds*=off")
