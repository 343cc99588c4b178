"""Ids, ratings and times of text as numbers and moments: what the values themselves allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

from sparkml_sgdals.ingest.columns import quoted

__all__ = ["Roles", "as_numbers", "by_row", "from_latin"]

_WHOLE: Final = r"^([+-]?(0|[1-9][0-9]*))(\.0*)?$"
_COMMA: Final = r"^([+-]?[0-9]*),([0-9]+)$"
_FIRST, _LAST = 0x80, 0xA0
_WINDOWS: Final = {
    chr(code): text
    for code in range(_FIRST, _LAST)
    if (text := bytes([code]).decode("cp1252", "ignore"))
}
_NAMES: Final = str.maketrans({**_WINDOWS})


@dataclass(frozen=True)
class Roles:
    """Which columns of a table hold what; None where it has no such column.

    Attributes
    ----------
    user : str | None
        ids of users
    item : str | None
        ids of items
    rating : str | None
        numbers
    time : str | None
        numbers or moments
    """

    user: str | None = None
    item: str | None = None
    rating: str | None = None
    time: str | None = None


def from_latin(table: DataFrame) -> DataFrame:
    """Return text that was read as ISO-8859-1, which keeps all bytes, as what it is.

    Value by value, since a folder may hold both: UTF-8 where its bytes are that, else the
    characters that Windows has beside those of ISO-8859-1.
    """
    return table.select(
        *(
            _text_of(F.col(quoted(one.name))).alias(_name_of(one.name))
            if isinstance(one.dataType, StringType)
            else F.col(quoted(one.name)).alias(_name_of(one.name))
            for one in table.schema.fields
        )
    )


def _text_of(latin: Column) -> Column:
    odd, right = "".join(_WINDOWS), "".join(_WINDOWS.values())
    # an escape in JSON may give any character: that was no byte
    bytes_alone = F.when(latin.rlike(r"\A[\x00-\xff]*\z"), latin)
    as_it_lies = F.encode(bytes_alone, "ISO-8859-1").cast("string")
    return F.coalesce(F.try_validate_utf8(as_it_lies), F.translate(latin, odd, right))


def _name_of(latin: str) -> str:
    try:
        return latin.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return latin.translate(_NAMES)


def as_numbers(
    table: DataFrame,
    roles: Roles,
    ids: tuple[str, str] | None = None,
    time_format: str = "",
    text_ids: bool = True,
    drops_bad: bool = False,
) -> DataFrame:
    """Return a table whose ids, ratings and times of text are of the types that learning takes.

    Ids that are all whole numbers become numbers, without a leading zero, which would make two
    ids one. Ratings may have a decimal comma. One job looks at all values.

    Parameters
    ----------
    table : DataFrame
        as it was read
    roles : Roles
        its columns
    ids : tuple[str, str] | None
        types that users and items must have, as a model learned them; None: as their values allow
    time_format : str
        Spark's pattern of times; empty for numbers and ISO 8601
    text_ids : bool
        whether ids of text may become numbers
    drops_bad : bool
        whether values that cannot be read are left to handleInvalid, as null

    Raises
    ------
    ValueError
        a value cannot be read
    """
    fields = {field.name: field.dataType for field in table.schema.fields}
    kinds = dict(zip(("user", "item"), ids, strict=True)) if ids else {}
    texts = {
        role: name
        for role, name in vars(roles).items()
        if name is not None and isinstance(fields.get(name), StringType)
    }
    if not text_ids and not kinds:
        texts = {role: name for role, name in texts.items() if role not in ("user", "item")}
    readings = {role: _readings(role, name, time_format) for role, name in texts.items()}
    asked = [
        part.alias(f"{role} {label} {what}")
        for role, name in texts.items()
        for label, reading in readings[role].items()
        for what, part in _unread(_value(name), reading).items()
    ]
    seen: dict[str, Any] = table.agg(*asked).first().asDict() if asked else {}  # type: ignore[union-attr]
    chosen = {}
    for role, name in texts.items():
        label, reading = _best(role, readings[role], seen)
        wanted = kinds.get(role)
        bad, example = seen[f"{role} {label} rows"], seen[f"{role} {label} value"]
        if wanted == "string" or (role in ("user", "item") and bad and not wanted):
            continue
        if bad and not drops_bad:
            raise ValueError(_refusal(role, name, bad, example, time_format))
        chosen[name] = reading
    for role, wanted in kinds.items():
        named: str | None = getattr(roles, role)
        if named is not None and named not in texts and wanted == "string" and named in fields:
            chosen[named] = F.col(quoted(named)).cast("string")
    return table.withColumns(chosen) if chosen else table


def by_row(table: DataFrame, roles: Roles, ids: tuple[str, str], moments: bool) -> DataFrame:
    """Return a stream of text with ids, numbers and times, each row by itself; null if unreadable.

    Parameters
    ----------
    table : DataFrame
        a stream of text
    roles : Roles
        its columns
    ids : tuple[str, str]
        types of users and items
    moments : bool
        whether times are moments, not numbers
    """
    chosen = {}
    for role, kind in zip(("user", "item"), ids, strict=True):
        name = getattr(roles, role)
        if name is not None and kind != "string":
            chosen[name] = _readings(role, name, "")["whole"].cast(kind)
    if roles.rating is not None:
        chosen[roles.rating] = F.coalesce(*_readings("rating", roles.rating, "").values())
    if roles.time is not None:
        chosen[roles.time] = _readings("time", roles.time, "")["moment" if moments else "whole"]
    return table.withColumns(chosen)


def _value(name: str) -> Column:
    # an empty text is no value, and blanks around one are not of it
    return F.nullif(F.trim(F.col(quoted(name))), F.lit(""))


def _readings(role: str, name: str, time_format: str) -> dict[str, Column]:
    """Ways to read a column of text, the strictest first."""
    value = _value(name)
    if role in ("user", "item"):
        return {"whole": _whole(value)}
    if role == "rating":
        point = value.try_cast("double")
        comma = F.regexp_replace(value, _COMMA, "$1.$2").try_cast("double")
        return {"point": point, "comma": F.coalesce(point, comma)}
    if time_format:
        return {"form": F.try_to_timestamp(value, F.lit(time_format))}
    whole = _whole(value)
    moment = F.when(whole.isNull(), value.try_cast("timestamp"))
    return {"whole": whole, "number": value.try_cast("double"), "moment": moment}


def _whole(value: Column) -> Column:
    """Return a text as a whole number; null for 007, 1.5 and x."""
    plain = value.try_cast("bigint")
    other = F.nullif(F.regexp_extract(value, _WHOLE, 1), F.lit(""))
    # most are written as they are printed, which takes no pattern to see
    return F.when(plain.cast("string") == value, plain).otherwise(other.try_cast("bigint"))


def _unread(value: Column, reading: Column) -> dict[str, Column]:
    missed = value.isNotNull() & reading.isNull()
    return {"rows": F.count_if(missed), "value": F.max(F.when(missed, value))}


def _best(role: str, readings: Mapping[str, Column], seen: Mapping[str, Any]) -> tuple[str, Column]:
    """Return the first reading that leaves the fewest values unread."""
    label = min(readings, key=lambda label: seen[f"{role} {label} rows"])
    return label, readings[label]


def _refusal(role: str, name: str, rows: int, example: str, time_format: str) -> str:
    where = f"{name!r} holds {example!r}" + (f", in {rows:,} rows such," if rows > 1 else ",")
    if role in ("user", "item"):
        return f"{where} which is no whole number as the model's ids are."
    if role == "rating":
        return (
            f"{where} which is no number. Repair it, say what stands for a missing value by "
            "--option nullValue=TEXT, or leave such rows out by -P handleInvalid=skip."
        )
    form = f"not of the form {time_format!r}" if time_format else "no number and no ISO 8601 time"
    return (
        f"{where} which is {form}: say the form by --time-format, such as 'dd.MM.yyyy HH:mm', "
        "or --time '' to learn without times."
    )
