"""Messages become columns of ratings: JSON or Avro, from Kafka or from lines of text (driver).

Builds expressions only and starts no job. Spark's own readers do the work; what stands here keeps a
message that is wrong in part from being learned in part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    DataType,
    IntegralType,
    MapType,
    NumericType,
    StringType,
    StructField,
    StructType,
)

from sparkml_sgdals.ingest.columns import quoted
from sparkml_sgdals.ingest.frames import Table, as_frame

__all__ = ["parseRatings"]

_FORMATS: Final = ("json", "avro")
_ORIGIN: Final = ("topic", "partition", "offset", "timestamp")
_MESSAGE: Final = "message"
_FLAT: Final = r"^[ \t\r\n]*[{][^{}\[\]]*[}][ \t\r\n]*\z"
"""One pair of braces, around everything, and no bracket."""
_TEXT: Final = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_QUOTED: Final = r'"(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"'
_NOUGHTS: Final = r"\.0+(?![0-9eE.])"
_REWRITTEN: Final = 4_000
"""Characters beyond which a message is not looked through: patterns go down as deep as texts have
escapes."""


def parseRatings(
    stream: Table,
    format: str,
    schema: str | StructType | dict[str, Any],
    quotedNumbers: bool = False,
) -> DataFrame:
    """Columns of ratings from messages, for `fitStream`, `updateStream` and, of a table, `fit`.

    Parameters
    ----------
    stream : Table
        a stream or table with the column `value` (binary or string), as Spark's Kafka source gives
        it, or `spark.readStream.text` with a message a line
    format : str
        "json", an object a message; or "avro", a record a message in Avro's binary encoding (needs
        the package spark-avro in the session)
    schema : str | StructType | dict[str, Any]
        the fields of a message. For JSON a DDL string ("userId int, movieId int, rating double") or
        a StructType; for Avro the schema of the record, as JSON or as a dict
    quotedNumbers : bool
        whether a number in quotes ("3.5") counts as one in JSON; else its message is malformed

    Returns
    -------
    DataFrame : a column a field, and the struct `message`: the message's topic, partition, offset
        and timestamp where the input has them, and its `value` (JSON: the text, or "base64:..."
        where it is no UTF-8; Avro: the bytes)

    Raises
    ------
    ValueError
        another format, no column `value`, a schema that cannot be read or has no fields
    TypeError
        `value` or `schema` has a wrong type

    Notes
    -----
    A malformed message stops nothing: every field of it is null, so that a stream sets it aside
    with its `message` and counts it (`handleInvalid`). Malformed is what cannot be read, a field of
    another type than the schema says (a rating "4.5" where it says double), and text or bytes after
    the end. A whole number may be written 1.0, and JSON may begin with a byte order mark. A field
    that is missing is null by itself. Avro does not mark the end of a record:
    bytes left over are seen where all fields are primitive, or primitive or null.
    """
    if format not in _FORMATS:
        raise ValueError(f"format must be one of {', '.join(_FORMATS)}, got {format!r}.")
    given: DataFrame = as_frame(stream, "stream", ["value"])
    names = given.columns
    if "value" not in names:
        raise ValueError(
            "There is no column 'value' with the messages; the DataFrame has "
            f"{', '.join(names) or 'none'}. Read it with format('kafka'), or rename the column."
        )
    found = given.schema["value"].dataType
    if not isinstance(found, BinaryType | StringType):
        raise TypeError(
            f"The column 'value' must be binary or string, got {found.simpleString()}. Cast it "
            "first, e.g. to 'binary'."
        )
    record, alone, whole, value = (
        _json(schema, quotedNumbers) if format == "json" else _avro(schema)
    )
    origin = [F.col(name) for name in _ORIGIN if name in names]
    # a projection of its own: each message is read once, however many columns look into it
    message = F.struct(*origin, value.alias("value")).alias(_MESSAGE)
    read = given.select(message, record, alone.alias("alone"))
    whole = whole & F.col("alone")
    fields = read.schema["record"].dataType
    inner = fields["record"].dataType if format == "json" else fields  # type: ignore[index]
    if not isinstance(inner, StructType) or not inner.fields:
        raise ValueError("schema has no fields: name those of a rating, e.g. 'user long, ...'.")
    if _MESSAGE in (name.lower() for name in inner.names):
        raise ValueError(
            f"schema has a field {_MESSAGE!r}, which is the name of the column for a message's "
            "origin. Rename it."
        )
    holder = "record.record" if format == "json" else "record"
    columns = [F.when(whole, F.col(f"{holder}.{quoted(name)}")).alias(name) for name in inner.names]
    return read.select(*columns, _MESSAGE)


def _json(schema: Any, quoted_numbers: bool) -> tuple[Column, Column, Column, Column]:
    """Return a JSON message read, whether it is one object alone, whether it fits, what to keep."""
    if isinstance(schema, str):
        fields = StructType.fromDDL(schema)
    elif isinstance(schema, StructType):
        fields = schema
    else:
        raise TypeError(
            "For format 'json', schema must be a DDL string or a StructType, got "
            f"{type(schema).__name__}."
        )
    sent = F.col("value").cast("string")
    legible = F.is_valid_utf8(sent)
    text = _plain_numbers(F.ltrim(sent, F.lit("\ufeff")), fields, quoted_numbers)
    wrapped = StructType([StructField("record", fields), StructField("corrupt", StringType())])
    # Spark ignores what follows an object at the top. As a field of an object, text can end that
    # object early only by a brace too many, as the one element of an array only by a bracket. Text
    # with neither inside, as ratings are, need not be read a second time
    flat = text.rlike(_FLAT)
    only = F.from_json(
        F.when(legible, F.concat(F.lit("["), text, F.lit("]"))), "array<struct<nothing: string>>"
    )
    record = F.from_json(
        F.when(legible, F.concat(F.lit('{"record":'), text, F.lit("}"))),
        wrapped,
        {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": "corrupt"},
    )
    unread = F.concat(F.lit("base64:"), F.base64(F.col("value").cast("binary")))
    kept = F.when(legible, sent).otherwise(unread)
    alone = F.when(flat, F.lit(True)).otherwise(F.coalesce(F.size(only) == 1, F.lit(False)))
    return record.alias("record"), alone, F.col("record.corrupt").isNull(), kept


def _plain_numbers(text: Column, fields: DataType, quoted_numbers: bool) -> Column:
    """Return JSON in which numbers of these fields are written as Spark's reader takes them.

    A pattern takes a whole text in quotes at once, so that nothing inside one is changed.
    """
    kinds = _kinds(fields)
    whole = [name for name, held in kinds.items() if all(map(_is_whole, held))]
    numbers = [
        name for name, held in kinds.items() if all(isinstance(one, NumericType) for one in held)
    ]
    short = F.length(text) <= _REWRITTEN
    if quoted_numbers and numbers:
        text = F.when(
            short,
            F.regexp_replace(
                text, F.lit(f"({_names(numbers)}){_QUOTED}|({_TEXT})"), F.lit("$1$2$3")
            ),
        ).otherwise(text)
    if whole:
        noughts = f"({_names(whole)}-?[0-9]+){_NOUGHTS}|({_TEXT})"
        text = F.when(
            short & text.contains(".0"),
            F.regexp_replace(text, F.lit(noughts), F.lit("$1$2")),
        ).otherwise(text)
    return text


def _kinds(fields: DataType) -> dict[str, list[DataType]]:
    """Types of the fields of a name, at whatever depth."""
    found: dict[str, list[DataType]] = {}
    waiting: list[DataType] = [fields]
    while waiting:
        one = waiting.pop()
        if isinstance(one, StructType):
            for field in one.fields:
                found.setdefault(field.name, []).append(field.dataType)
                waiting.append(field.dataType)
        elif isinstance(one, ArrayType):
            waiting.append(one.elementType)
        elif isinstance(one, MapType):
            waiting.append(one.valueType)
    # others are not written as they are
    return {name: held for name, held in found.items() if not set(name) & {'"', "\\"}}


def _is_whole(kind: DataType) -> bool:
    return isinstance(kind, IntegralType)


def _names(names: list[str]) -> str:
    """Return a pattern of these names of fields, with what stands before their values."""
    return f'"(?:{"|".join(map(re.escape, names))})"[ \\t\\r\\n]*:[ \\t\\r\\n]*'


def _avro(schema: Any) -> tuple[Column, Column, Column, Column]:
    """Return what `_json` does, for an Avro record."""
    # the module is there without the package, which is looked for when it is called
    from pyspark.sql.avro.functions import from_avro

    if not isinstance(schema, str | dict):
        raise TypeError(
            "For format 'avro', schema must be an Avro schema as JSON or as a dict, got "
            f"{type(schema).__name__}."
        )
    try:
        tree = json.loads(schema) if isinstance(schema, str) else schema
    except ValueError as error:
        raise ValueError(f"For format 'avro', schema must be JSON: {error}.") from error
    if not isinstance(tree, dict) or tree.get("type") != "record":
        raise ValueError("For format 'avro', schema must be that of a record: a rating a message.")
    value = F.col("value").cast("binary")
    steps = [_step(field.get("type")) for field in tree.get("fields", [])]
    known = [step for step in steps if step is not None]
    fits = F.lit(True)
    if known and len(known) == len(steps):
        fits = _end(value, known) == F.length(value) + 1
    record = from_avro(F.when(fits, value), json.dumps(tree), {"mode": "PERMISSIVE"})
    return record.alias("record"), F.lit(True), F.col("record").isNotNull(), value


def _step(kind: Any) -> tuple[int, int, int] | None:
    """How far a field of an Avro type reaches, None where that takes more than a step.

    The three numbers: which branch of a union is null (-1 where there is no union), whether a
    variable-length integer stands there (1) that is the length of what follows (2), and the bytes
    besides.
    """
    if isinstance(kind, list):
        inner = [part for part in kind if part != "null"]
        step = _step(inner[0]) if len(kind) == 2 and len(inner) == 1 else None
        return None if step is None or step[0] >= 0 else (kind.index("null"), *step[1:])
    if isinstance(kind, dict):
        if kind.get("type") == "fixed":
            return (-1, 0, int(kind["size"]))
        return (-1, 1, 0) if kind.get("type") == "enum" else _step(kind.get("type"))
    if not isinstance(kind, str):
        return None
    return {
        "boolean": (-1, 0, 1),
        "int": (-1, 1, 0),
        "long": (-1, 1, 0),
        "float": (-1, 0, 4),
        "double": (-1, 0, 8),
        "bytes": (-1, 2, 0),
        "string": (-1, 2, 0),
    }.get(kind)


def _end(value: Column, steps: list[tuple[int, int, int]]) -> Column:
    """Place (from 1) after the last field of an Avro record in `value`, null where it has none.

    Spark's reader takes whatever length a broken message gives for a string, and memory for it.
    """
    kinds = F.array(*[F.struct(*[F.lit(part) for part in step]) for step in steps])

    def after(text: Column, place: Column, kind: Column) -> Column:
        null_branch, integer, size = (kind[f"col{n}"] for n in (1, 2, 3))
        branch = F.ascii(F.substring(text, place, F.lit(1)))
        start = F.when(null_branch < 0, place).otherwise(place + 1)
        some = F.substring(text, start, F.lit(10))

        def beyond(octets: Column) -> Column:
            bits = F.lit(0)
            for n in range(4):
                octet = F.ascii(F.substring(octets, n + 1, 1)).bitwiseAND(127)
                bits = bits.bitwiseOR(F.shiftleft(octet, 7 * n))
            count = F.length(octets)
            length = F.when((count <= 4) & (bits % 2 == 0), F.shiftright(bits, 1))
            return start + F.when(count > 0, count) + F.when(integer == 2, length).otherwise(0)

        octets = F.regexp_extract(some, "^[\\x80-\\xff]{0,9}[\\x00-\\x7f]", 0)
        inner = F.when(integer == 0, start + size).otherwise(_let(octets, beyond))
        return F.when((null_branch < 0) | (branch == 2 - 2 * null_branch), inner).when(
            branch == 2 * null_branch, start
        )

    # a character a byte, for ascii() and the pattern to read
    return _let(
        F.decode(value, "ISO-8859-1"),
        lambda text: F.aggregate(kinds, F.lit(1), lambda place, kind: after(text, place, kind)),
    )


def _let(value: Column, use: Callable[[Column], Column]) -> Column:
    """`use(value)`, with `value` reckoned once."""
    return F.transform(F.array(value), use)[0]
