"""Messages become ratings: what is whole is read, what is not is set aside, nothing stops."""

from __future__ import annotations

import base64
import json

import numpy as np
import pandas as pd
import pytest
from helpers import ONCE, assert_same_bits, long_after
from pyspark.sql.types import DoubleType, LongType, StructField, StructType

from sparkml_sgdals import StreamingBiasedALS, parseRatings
from sparkml_sgdals.ingest import messages

DDL = "user long, item long, rating double, time long"
GOOD = '{"user": 1, "item": 2, "rating": 4.5, "time": 9}'
MALFORMED = [
    "",
    "null",
    "no JSON",
    '"text"',
    '{"user": 1, "item": 2',
    '{"user": 1, "item": 2, "rating": "abc", "time": 9}',
    '{"user": 1, "item": 2, "rating": "4.5", "time": 9}',
    '{"user": 1, "item": 2, "rating": true, "time": 9}',
    '{"user": 1.5, "item": 2, "rating": 4.5, "time": 9}',
    '{"user": "1", "item": 2, "rating": 4.5, "time": 9}',
    '{"user": 1, "item": 99999999999999999999, "rating": 4.5, "time": 9}',
    '{"user": 1, "item": 2, "rating": 4.5, "time": {}}',
    GOOD + " and more",
    GOOD + GOOD,
    f"{GOOD}, {GOOD}",
    GOOD + "}",
    GOOD + "]",
    GOOD + '} garbage {"user": 9',
    GOOD + "}" + GOOD,
    GOOD + "][",
    GOOD + ', "x": 1',
    GOOD + ',"record":{"user": 7, "item": 8, "rating": 1.0}',
    f"[{GOOD}]",
    f"[{GOOD}, {GOOD}]",
    '{"user": 1, "item": 2, "rating": 4.5, "time": 9, "x": ' + "[" * 5000 + "]" * 5000 + "}",
]


def table(spark, values, kind="binary"):
    """Messages as Kafka gives them, offsets from 0."""
    rows = [
        (value.encode() if isinstance(value, str) and kind == "binary" else value, "films", 3, n)
        for n, value in enumerate(values)
    ]
    schema = f"value {kind}, topic string, partition int, offset long"
    return spark.createDataFrame(rows, schema).selectExpr(
        "cast(null as binary) as key", "*", "timestamp_seconds(offset) as timestamp"
    )


class TestJson:
    def test_columns(self, spark):
        frame = parseRatings(table(spark, [GOOD]), "json", DDL)
        assert frame.columns == ["user", "item", "rating", "time", "message"]
        assert [dict(frame.dtypes)[name] for name in frame.columns[:4]] == [
            "bigint", "bigint", "double", "bigint",
        ]  # fmt: skip
        (row,) = frame.collect()
        assert tuple(row)[:4] == (1, 2, 4.5, 9)
        message = row.message.asDict()
        assert message.pop("timestamp") is not None
        assert message == {"topic": "films", "partition": 3, "offset": 0, "value": GOOD}

    def test_a_struct_type(self, spark):
        fields = [StructField("user", LongType(), False), StructField("rating", DoubleType())]
        (row,) = parseRatings(table(spark, [GOOD]), "json", StructType(fields)).collect()
        assert (row.user, row.rating) == (1, 4.5)

    @pytest.mark.parametrize("kind", ["binary", "string"])
    def test_malformed_messages(self, spark, kind):
        frame = parseRatings(table(spark, [GOOD, *MALFORMED, None, GOOD], kind), "json", DDL)
        first, *bad, last = frame.orderBy("message.offset").collect()
        assert tuple(first)[:4] == tuple(last)[:4] == (1, 2, 4.5, 9)
        for row, value in zip(bad, [*MALFORMED, None], strict=True):
            assert tuple(row)[:4] == (None,) * 4, value
            assert row.message.value == value

    def test_numbers_as_producers_write_them(self, spark):
        whole = {"user": "1.0", "item": "2.00", "rating": "4.5", "time": "9.0"}
        sent = [
            "\ufeff" + GOOD,
            GOOD.replace("1,", "1.0,"),
            GOOD.replace('"time": 9', '"time" : 9.000 '),
            json.dumps(whole).replace('": "', '": ').replace('",', ",").replace('"}', "}"),
        ]
        for kind in ("binary", "string"):
            for row in parseRatings(table(spark, sent, kind), "json", DDL).collect():
                assert tuple(row)[:4] == (1, 2, 4.5, 9), row.message.value
                assert row.message.value in sent

    QUOTED = (
        '{"user": "1", "item": 2, "rating": "4.5", "time": "9.0"}',
        '{"user": "1", "item": "2", "rating": "45e-1", "time": 9, "x": "a\\"user\\": \\"7"}',
    )
    UNQUOTED = tuple(
        f'{{"user": "{user}", "item": 2, "rating": 4.5, "time": 9}}'
        for user in ("1x", "", "1.5", "01", "99999999999999999999")
    )

    def test_quoted_numbers_where_asked(self, spark):
        frame = table(spark, [*self.QUOTED, *self.UNQUOTED])
        for row in parseRatings(frame, "json", DDL).collect():
            assert tuple(row)[:4] == (None,) * 4, row.message.value
        asked = parseRatings(frame, "json", DDL, quotedNumbers=True).orderBy("message.offset")
        rows = [tuple(row)[:4] for row in asked.collect()]
        assert rows == [(1, 2, 4.5, 9)] * 2 + [(None,) * 4] * len(self.UNQUOTED)

    def test_texts_stay_as_they_are(self, spark):
        """Whatever stands in a field of text, and in names of others."""
        texts = [
            "1.0", '"user": 1.0, ', '\\"user": "5"', "user", '{"user":1.0}', "x.0,", "\\", '"',
            "\ufeff", '", "user": 3.0, "z": "', "a" * 5000 + '"user": 1.0',
        ]  # fmt: skip
        sent = [
            json.dumps({"note": text, "user": 1.0, "deep": {"user": 2.0, f"z{text}": "1.0"}})
            for text in texts
        ]
        schema = "note string, user long, deep struct<user: long>"
        for asked in (False, True):
            read = parseRatings(table(spark, sent), "json", schema, asked).orderBy("message.offset")
            found = read.collect()
            # too long to be looked through: as it was
            assert tuple(found[-1])[:3] == (None, None, None)
            for row, text in zip(found[:-1], texts[:-1], strict=True):
                assert (row.note, row.user, row.deep and row.deep.user) == (text, 1, 2)

    def test_whole_messages_of_all_shapes(self, spark):
        values = [
            f" \r\n\t{GOOD}\n",
            GOOD.replace("}", ', "x": "}{"}'),
            GOOD.replace("}", ', "x": "]["}'),
            GOOD.replace("}", ', "x": {"y": [1, {}]}}'),
            GOOD.replace('"', "'"),
        ]
        for row in parseRatings(table(spark, values), "json", DDL).collect():
            assert tuple(row)[:4] == (1, 2, 4.5, 9), row.message.value

    @pytest.mark.long
    def test_a_short_look_finds_what_a_long_one_does(self, spark, monkeypatch):
        """Messages put together at random, most of them no JSON."""
        rng = np.random.default_rng(3)
        parts = [
            GOOD, GOOD[1:-1], "{", "}", "[", "]", ",", ":", '"', "'", "\\", " ", "\n", "\u2028",
            '"user"', '"x"', "1", "4.5", "null", "record", '"record":', "//", "\0", "\x0b",
        ]  # fmt: skip
        some = ["".join(rng.choice(parts, rng.integers(1, 6))) for _ in range(3000)]
        some += [GOOD[:cut] + part + GOOD[cut:] for part in parts for cut in range(len(GOOD) + 1)]
        frame = table(spark, some)
        short = parseRatings(frame, "json", DDL).orderBy("message.offset").toPandas()
        monkeypatch.setattr(messages, "_FLAT", "(?!)")
        long = parseRatings(frame, "json", DDL).orderBy("message.offset").toPandas()
        pd.testing.assert_frame_equal(short.iloc[:, :4], long.iloc[:, :4])
        assert 200 < short["user"].notna().sum() < len(some) - 200

    def test_no_utf8(self, spark):
        value = b'{"user": "\xff", "rating": 4.5}'
        frame = parseRatings(table(spark, [value]), "json", "user string, rating double")
        (row,) = frame.collect()
        assert (row.user, row.rating) == (None, None)
        kept = row.message.value.removeprefix("base64:")
        assert base64.b64decode(kept) == value

    def test_a_missing_field_is_null_by_itself(self, spark):
        values = ['{"user": 1, "item": 2, "rating": 4.5}', '{"user": 1, "item": null, "other": 3}']
        first, second = parseRatings(table(spark, values), "json", DDL).collect()
        assert tuple(first)[:4] == (1, 2, 4.5, None)
        assert tuple(second)[:4] == (1, None, None, None)

    def test_names_that_need_quotes(self, spark):
        frame = table(spark, ['{"user id": 1, "a.b": 2, "Rating": 3}'])
        parsed = parseRatings(frame, "json", "`user id` long, `a.b` long, Rating double")
        assert tuple(parsed.collect()[0])[:3] == (1, 2, 3.0)

    def test_a_message_is_read_once(self, classic_only, spark, capsys):
        """However many columns look into it: once for its fields, once for its end."""
        parseRatings(table(spark, [GOOD]), "json", DDL).select("user", "item", "rating").explain()
        assert capsys.readouterr().out.count("from_json") == 2

    def test_fit_from_messages(self, spark, small):
        part = small.iloc[:500]
        lines = part.to_json(orient="records", lines=True).splitlines()
        als = StreamingBiasedALS(timestampCol="time", rank=2, maxIter=1)
        parsed = als.fit(parseRatings(table(spark, lines), "json", DDL))
        assert_same_bits(parsed, als.fit(spark.createDataFrame(part)))
        with pytest.raises(ValueError, match="userCol 'user' is null"):
            als.fit(parseRatings(table(spark, [*lines, "oops"]), "json", DDL))


class TestStream:
    """A stream of lines stands for one of Kafka's: the same columns but for the offset."""

    def lines(self, folder, small):
        good = small.iloc[:1000].to_json(orient="records", lines=True).splitlines()
        lines = [*good[:100], *[text for text in MALFORMED if text], *good[100:]]
        folder.mkdir()
        (folder / "lines.txt").write_text("\n".join(lines) + "\n")
        return lines

    @pytest.mark.parametrize("large", long_after(1, [False, True]))
    def test_malformed_lines_are_set_aside(self, spark, small, tmp_path, monkeypatch, large):
        if large:
            monkeypatch.setattr("sparkml_sgdals.ingest.collecting.COLLECT_LIMIT", 100)
            monkeypatch.setattr("sparkml_sgdals.ingest.collecting._FIRST_LOOK", 50)
        self.lines(tmp_path / "in", small)
        als = StreamingBiasedALS(timestampCol="time", rank=2)
        stream = spark.readStream.text(str(tmp_path / "in"))
        job = als.fitStream(parseRatings(stream, "json", DDL), str(tmp_path / "m"), trigger=ONCE)
        job.awaitTermination()
        aside = [text for text in MALFORMED if text]
        metrics = job.metrics()
        assert metrics.ratings.tolist() == [1000]
        assert metrics.invalid.tolist() == [len(aside)]
        kept = pd.read_parquet(tmp_path / "m" / "invalid" / "batch-000000000000.parquet")
        rows = [json.loads(row) for row in kept.row]
        assert sorted(row["message"]["value"] for row in rows) == sorted(aside)
        assert all(list(row) == ["message"] for row in rows)


class TestRefused:
    @pytest.mark.parametrize(
        ("format", "schema", "error", "message"),
        [
            ("csv", DDL, ValueError, "format must be one of json, avro, got 'csv'"),
            ("json", "", ValueError, "schema"),
            ("json", StructType([]), ValueError, "schema has no fields"),
            ("json", {"type": "record"}, TypeError, "DDL string or a StructType, got dict"),
            ("json", "user long, Message string", ValueError, "has a field 'message'"),
            ("avro", DDL, ValueError, "schema must be JSON"),
            ("avro", '"long"', ValueError, "must be that of a record"),
            ("avro", StructType([]), TypeError, "as JSON or as a dict, got StructType"),
        ],
    )
    def test_formats_and_schemas(self, spark, format, schema, error, message):
        with pytest.raises(error, match=message):
            parseRatings(table(spark, [GOOD]), format, schema)

    def test_no_messages(self, ratings):
        with pytest.raises(ValueError, match=r"no column 'value'.*user, item, rating, time"):
            parseRatings(ratings, "json", DDL)

    def test_values_of_another_type(self, spark):
        with pytest.raises(TypeError, match="'value' must be binary or string, got bigint"):
            parseRatings(spark.range(1).withColumnRenamed("id", "value"), "json", DDL)
