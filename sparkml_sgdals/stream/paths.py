"""Model paths that are something else already: a saved model, or where a stream reads (driver)."""

from __future__ import annotations

import contextlib
import glob
import io
import re
from typing import Final

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame

from sparkml_sgdals.store.objects import same_place
from sparkml_sgdals.store.saved_model import is_saved, saved_class

__all__ = ["refuse_other_paths"]

_SOURCE: Final = re.compile(r"\bFileSource\[(.*?)\](?:, \[|$)", re.MULTILINE)
"""a file source in a plan as it is told to people: the only place that Spark names its folder"""
_PATTERN: Final = re.compile(r"[*?{\[]")


def refuse_other_paths(stream: DataFrame, path: str) -> None:
    """See that a new model path is not that of something else.

    A source that a plan does not name, or names otherwise, is found at the first batch:
    `checkpoint.agreement.refuse_own_files`.

    Parameters
    ----------
    stream : DataFrame
        that is to be learned
    path : str
        where there is no model yet

    Raises
    ------
    ValueError
        a saved model is there, or the stream reads there, above it or below
    """
    if is_saved(path):
        name = (saved_class(path) or "").rpartition(".")[2]
        if name.startswith("Pipeline"):
            raise ValueError(
                f"{path} holds a {name} that was saved there, not a model path. Versions that were "
                "there before, Spark has deleted as it saved: restore the folder from a copy, or "
                "choose another path, where a stream starts anew. Save pipelines elsewhere."
            )
        raise ValueError(
            f"{path} holds a saved model, not a model path: a stream would start from nothing "
            "beside it. To go on from that model, choose another path: "
            "StreamingBiasedALSModel.load(path).updateStream(stream, other). To start from "
            "nothing, fitStream to another path as well."
        )
    place = f"{same_place(path)}/"
    for source in _sources(stream):
        pattern = _PATTERN.search(source)
        # what a pattern leaves out may hold the model
        folder = source if pattern is None else source[: pattern.start()].rpartition("/")[0]
        folder = f"{same_place(folder)}/"
        if pattern is not None and place.startswith(folder) and place != folder:
            continue
        if folder.startswith(place) or place.startswith(folder):
            how = "is" if folder == place else "lies in" if place.startswith(folder) else "holds"
            raise ValueError(
                f"The model path {path} {how} the folder that the stream reads, {source}: what a "
                "stream writes there would be read as ratings, or lie among them. Choose a model "
                "path beside the stream's source folder."
            )


def _sources(stream: DataFrame) -> list[str]:
    """Folders of file sources, or patterns of them, as far as a plan tells them."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            stream.explain()
    except PySparkException as failure:
        # Spark does not plan every stream that it runs, those of SQLTransformer for one; what it
        # says then names the sources as well
        told.write(str(failure))
    return [
        source
        for source in _SOURCE.findall(told.getvalue())
        # without a scheme it is in Spark's default file system, which need not be this disk
        if "://" in source or source.startswith("file:") or glob.glob(source)
    ]
