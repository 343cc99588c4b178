"""What is in the JSON objects of a model path: settings, model.json and commits, field by field."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final

import pyarrow as pa

from sparkml_sgdals.errors import DamagedError
from sparkml_sgdals.state.feature_weights import FeatureWeights
from sparkml_sgdals.store.shapes import (
    ANYTHING,
    COMMITTED,
    COUNT,
    NUMBER,
    SIGNED,
    TEXT,
    TRUTH,
    Fields,
    ListOf,
    Maybe,
    OneOf,
    Plain,
    Repeated,
    named,
)

__all__ = ["COMMIT", "META", "meta_digest", "table_of"]

_RANK: Final = Plain(
    "a whole number from 0 to 65,536", lambda v: type(v) is int and 0 <= v <= 1 << 16
)
_SETTINGS: Final = Fields(
    {
        "solver": named("bayes|sgd|minibatch|isgd", "a solver that this release knows"),
        "rank": _RANK, "max_iter": COUNT, "tol": NUMBER, "seed": SIGNED, "step_size": NUMBER,
        "regs": ListOf(NUMBER, 4), "block_size": COUNT, "bias_prior": NUMBER,
        "factor_prior": NUMBER, "noise": NUMBER, "init_std": NUMBER, "drift": NUMBER,
        "implicit_prior": TRUTH,
    },
    {
        "positive": TRUTH, "alpha": NUMBER, "num_negatives": COUNT,
        "ranking_size": COUNT, "ranking_sample": COUNT, "table_rank": _RANK,
        "unobserved_weight": NUMBER, "num_partners": _RANK, "repeat_items": Maybe(TRUTH),
        "featured": TRUTH, "forget_after": COUNT, "forget_after_micros": COUNT,
        "nonnegative": TRUTH,
    },
)  # fmt: skip
"""as `Settings.from_json` takes them"""

META: Final = Fields(
    {"settings": _SETTINGS, "kinds": ListOf(named("int|str", "a kind of ids"), 2)},
    {
        "origin": TEXT, "pathId": TEXT, "uid": TEXT, "idTypes": ListOf(TEXT, 2),
        "learnsFeatures": ListOf(TRUTH, 2),
        "params": Fields(
            optional={"userCol": TEXT, "clipPredictions": TRUTH}, others=ANYTHING
        ),
    },
    others=ANYTHING,
)  # fmt: skip

_NAME: Final = named(r"files/[\w.-]+", "the name of a file under files/")
_FILE: Final = Fields({"name": _NAME, "bytes": COUNT, "sha256": TEXT}, {"rows": COUNT})
_RUN: Final = Fields(
    {"count": COUNT, "rows": _FILE, "keys": _FILE}, {"salt": COUNT, "names": _FILE}
)
_RANGE: Final = Fields(
    {"settled": Maybe(ListOf(NUMBER, 2)), "buckets": ListOf(OneOf((COUNT, NUMBER, NUMBER)))}
)
_ID: Final = Plain("an id", lambda v: type(v) in (int, str))
_ROW: Final = {"user": _ID, "item": _ID, "rating": NUMBER}
_ROW_LATER: Final = {"time": SIGNED, "weight": NUMBER}


def _weighs(value: Any) -> bool:
    try:
        FeatureWeights.from_json(value)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return False
    return True


_SCALARS: Final = Fields(
    {
        "scale": Fields(
            optional={
                "mean": NUMBER, "spread": NUMBER, "weight": NUMBER, "squares": NUMBER,
                "seen": COUNT, "frozen": TRUTH,
            },
            needed={"frozen": TRUTH},
        ),
        "counters": Fields(
            {"ratings": COUNT, "low": Maybe(NUMBER), "high": Maybe(NUMBER)},
            {
                "prequential_ratings": COUNT, "prequential_squares": NUMBER,
                "baseline_squares": NUMBER,
            },
        ),
        "noise": NUMBER,
        "noiseWeight": NUMBER,
    },
    {
        "settings": Repeated(_SETTINGS), "events": COUNT, "popularityParts": ListOf(NUMBER),
        "filterShare": NUMBER, "regularisation": ListOf(NUMBER, 2),
        "weightsBeside": ListOf(NUMBER, 2),
        "features": ListOf(Maybe(Plain("weights of features that go together", _weighs)), 2),
        "learnsFeatures": ListOf(TRUTH, 2),
        "partners": ListOf(NUMBER, 3), "partnerOffsets": ListOf(NUMBER, 20),
        "partnersAtRest": ListOf(NUMBER, 11),
        "partnerShare": NUMBER, "repeats": COUNT,
        "ranges": Repeated(
            Fields({"rating": _RANGE, "weight": _RANGE, "first": ListOf(Fields(_ROW, _ROW_LATER))})
        ),
    },
    others=ANYTHING,
)  # fmt: skip


def _keeps(value: Any) -> bool:
    try:
        return (
            all(type(number) is int and 0 <= number < value["version"] for number in value["bases"])
            and len(value["chains"]) == len(value["last"]) == 16 * len(value["bases"])
            and len(value["fixed"]) == 32
            and _DIGESTS.fullmatch(value["chains"] + value["last"] + value["fixed"]) is not None
            and value["version"] < 2**63
        )
    except (KeyError, TypeError):
        return False


_DIGESTS: Final = re.compile("[A-Za-z0-9+/]*")
_KEPT: Final = Plain("what a checkpoint keeps", _keeps)
"""as `KeptState.after` gives it: each digest has twelve bytes, sixteen characters of base64"""

COMMIT: Final = Fields(
    {
        "version": COUNT,
        "batch": Plain("a batch", lambda v: type(v) is int and -1 <= v < 2**63),
        "base": COUNT,
        "files": Fields({"users": _FILE, "items": _FILE}, {"metrics": _FILE}),
        "scalars": _SCALARS,
        "metrics": Maybe(
            Fields(
                optional={"rmse": Maybe(NUMBER), "validationRmse": Maybe(NUMBER)}, others=ANYTHING
            )
        ),
        "committed": COMMITTED,
        "delta_rows": COUNT,
        "ids": ListOf(COUNT, 2),
        "checkpoint": named(r"checkpoint(-\d{12})?", "the name of a checkpoint"),
        "restored": Maybe(COUNT),
        "runs": Maybe(
            Fields({"users": ListOf(_RUN), "items": ListOf(_RUN), "metrics": Maybe(_FILE)})
        ),
    },
    {
        "previous": TEXT, "meta": TEXT, "replaces": TEXT,
        "offsets": Fields(
            {
                "plan": TEXT,
                "files": Fields(
                    others=OneOf((SIGNED, TEXT)), names=named(r"\d+", "the number of a source")
                ),
            },
            {"state": Fields(others=_KEPT, names=named(r"\d+", "the number of an operator"))},
        ),
    },
)  # fmt: skip


def meta_digest(meta: dict[str, Any]) -> str:
    """SHA-256 of what model.json says, in hexadecimal."""
    told = {name: value for name, value in meta.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def table_of(rows: list[dict[str, Any]], path: str) -> pa.Table:
    """Return metrics of batches as Arrow; a release may have added columns that older ones lack.

    Raises DamagedError, by the model's path, where they are of types that do not go together.
    """
    names = {name: None for row in rows for name in row}
    try:
        return pa.Table.from_pylist([names | row for row in rows])
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as failure:
        raise DamagedError(
            f"The metrics of the batches of {path} do not go together, a commit object was "
            f"changed: {str(failure).splitlines()[0]}. Take an older version: "
            "StreamingBiasedALSModel.versions(path)."
        ) from failure
