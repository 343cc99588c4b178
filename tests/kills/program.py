"""The program that is killed: learns a source to its end. Arguments: way, source, spec, path."""

import json
import os
import sys

from pyspark.sql import SparkSession
from sources import SOURCES

from sparkml_sgdals import StreamingBiasedALS

way, source, spec, path = sys.argv[1:]
builder = SparkSession.builder.config("spark.ui.enabled", "false")
builder = builder.config("spark.driver.memory", "1g").config(
    "spark.ui.showConsoleProgress", "false"
)
# no stream runs into the limit of Spark's own clean-up by accident: keep it low
builder = builder.config("spark.sql.streaming.minBatchesToRetain", "5")
spark = (
    builder.master("local[1]") if way == "classic" else builder.remote("local[1]")
).getOrCreate()
stream = SOURCES[source].read(spark, json.loads(spec))
resident = int(os.environ.get("KILLS_RESIDENT", "0"))
als = StreamingBiasedALS(timestampCol="time", rank=4, maxResidentIds=resident)
job = als.fitStream(stream, path, trigger={"availableNow": True}, keepVersions=2)
job.awaitTermination()
spark.stop()
