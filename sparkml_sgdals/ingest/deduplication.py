"""Events of a stream that are delivered again, or too late to tell, are dropped (driver).

One whose time has not come yet is marked, and does not move the watermark: all later events would
be too late for it. Now is the batch's own time, which Spark keeps in its checkpoint: a batch that
is replayed sees the same.
"""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import TimestampNTZType, TimestampType

from sparkml_sgdals.ingest.columns import FUTURE, column, column_type

__all__ = ["drop_repeats"]

_KEY = "_event_key"
_TIME = "_event_time"
_MOMENT = "yyyy-MM-dd\\'T\\'HH:mm:ss.SSSSSS"
_WHOLE_ROW = (
    f"to_json(struct(*), map('timestampFormat', '{_MOMENT}XXX', 'timestampNTZFormat', '{_MOMENT}'))"
)
"""A row as JSON, in SQL, with a format lest times lose what is below a millisecond."""


def drop_repeats(stream: DataFrame, event_id: str, time: str | None, watermark: str) -> DataFrame:
    """Return the stream without events whose id came before, as far back as `watermark` reaches.

    Spark's dropDuplicatesWithinWatermark, which keeps the ids in the checkpoint. A row without
    an id counts as repeated only by one that is the same in all columns. One more column, FUTURE,
    says of a row whether its time lies further ahead of now than the watermark is behind.

    Parameters
    ----------
    stream : DataFrame
        of events, a streaming one
    event_id : str
        column of an id that is the same in each delivery of an event
    time : str | None
        column of the event's time, a timestamp
    watermark : str
        an interval such as "1 hour": repeats may come so much later than the first delivery, by
        their times; events older than the latest time seen less this are dropped

    Raises
    ------
    ValueError
        no time column, a column that is not there, or no interval
    TypeError
        a time that is no timestamp
    """
    schema = stream.schema
    column_type(schema, "eventIdCol", event_id)
    if time is None:
        raise ValueError(
            f"eventIdCol {event_id!r} needs the times of events, to know how long to keep ids: set "
            "timestampCol to a column of type timestamp."
        )
    found = column_type(schema, "timestampCol", time)
    if not isinstance(found, TimestampType | TimestampNTZType):
        raise TypeError(
            f"timestampCol {time!r} must be a timestamp where eventIdCol is set, got "
            f"{found.simpleString()}. Convert it first, e.g. with F.timestamp_seconds or "
            "F.timestamp_millis."
        )
    row = F.expr(_WHOLE_ROW)
    own = column(schema, event_id).cast("string")
    # hashed: what is kept in the checkpoint is not to tell who rated what
    key = F.when(own.isNotNull(), F.concat(F.lit("i"), own)).otherwise(
        F.concat(F.lit("r"), F.sha2(row, 256))
    )
    # a watermark is of a timestamp, and of a column, not of a field in one
    moment = column(schema, time).cast("timestamp")
    # so far ahead, it makes no event late that comes when it happens
    ahead = F.current_timestamp() + F.lit(watermark).cast("interval")
    future = F.coalesce(moment > ahead, F.lit(False))
    # what is set aside is not to take the place of its other deliveries
    key = F.when(future, F.concat(F.lit("f"), key)).otherwise(key)
    try:
        marked = stream.withColumn(_KEY, key).withColumn(FUTURE, future)
        marked = marked.withColumn(_TIME, F.when(~F.col(FUTURE), moment))
        marked = marked.withWatermark(_TIME, watermark)
        unique = marked.dropDuplicatesWithinWatermark([_KEY]).drop(_KEY, _TIME)
        # Spark Connect looks at the interval only now
        unique.schema  # noqa: B018
    except Exception as failure:
        if "interval" not in str(failure).lower():
            raise
        raise ValueError(
            f"watermark {watermark!r} is not an interval: write e.g. '1 hour'."
        ) from failure
    return unique
