"""The program that is killed: learns a source. Arguments: way, source, spec, path.

It ends where the source does, but for a spec with another trigger.
"""

import json
import os
import sys

from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from sources import POSTED, SOURCES

from sparkml_sgdals import StreamingBiasedALS

way, source, spec, path = sys.argv[1:]
builder = SparkSession.builder.config("spark.ui.enabled", "false")
builder = builder.config("spark.driver.memory", "1g").config(
    "spark.ui.showConsoleProgress", "false"
)
# no stream runs into the limit of Spark's own clean-up by accident: keep it low
builder = builder.config("spark.sql.streaming.minBatchesToRetain", "5")
# which batches there are must not depend on when they come
builder = builder.config("spark.sql.streaming.noDataMicroBatches.enabled", "false")
builder = builder.config("spark.sql.shuffle.partitions", "1")
spark = (
    builder.master("local[1]") if way == "classic" else builder.remote("local[1]")
).getOrCreate()
settings = json.loads(spec)
stream = (SOURCES | POSTED)[source].read(spark, settings)
resident = int(os.environ.get("KILLS_RESIDENT", "0"))
als = StreamingBiasedALS(timestampCol="time", rank=4, maxResidentIds=resident)
trigger = settings.get("trigger", {"availableNow": True})
options = {"trigger": trigger, "keepVersions": 2, **settings.get("options", {})}
model = os.environ.get("KILLS_MODEL")
if model == "events":
    # users come by chance: from the tenth batch or so on a quarter of them stays away for so long
    als = StreamingBiasedALS(
        timestampCol="time", ratingCol="", rank=4, implicitPrefs=True, numNegatives=3,
        numPartners=4, forgetUsersAfter="15 seconds",
    )  # fmt: skip
    job = als.fitStream(stream.withColumn("time", F.timestamp_seconds("time")), path, **options)
elif model == "fitted":
    # fitted anew at each start, to the same bits: what a path of its stream is told by
    pairs = [(n % 23, (n * n + 3 * (n % 23)) % 17) for n in range(150)]
    table = spark.createDataFrame(sorted(set(pairs)), "user long, item long")
    als = StreamingBiasedALS(implicitPrefs=True, ratingCol="", rank=4, maxIter=4)
    start = als.fit(table)
    assert not start.state.events_learned
    job = start.setTimestampCol("time").updateStream(stream, path, **options)
else:
    job = als.fitStream(stream, path, **options)
job.awaitTermination()
spark.stop()
