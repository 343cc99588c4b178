"""What estimator and model do with features of users and items (driver)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyspark.ml.linalg import Vector
from pyspark.sql import DataFrame

from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type
from sparkml_sgdals.arrays.sparse_rows import SparseRows, vector_schema
from sparkml_sgdals.fit.plan import FitOptions
from sparkml_sgdals.ingest.features import SIDES, holds_vectors, joined_with
from sparkml_sgdals.ingest.frames import Table, as_table
from sparkml_sgdals.ingest.plain_features import vector_name, with_one_vector
from sparkml_sgdals.ingest.side_vectors import side_table
from sparkml_sgdals.ml.fit_options import fit_options, stream_invalid
from sparkml_sgdals.ml.params import LearningParams
from sparkml_sgdals.ml.params.features import FeatureParams
from sparkml_sgdals.spark_jobs import active_session
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.feature_weights import FeatureWeights, feature_names
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.maintenance import commit_added
from sparkml_sgdals.store.objects import Location, full_path
from sparkml_sgdals.store.version_store import VersionStore

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FeatureTables", "ModelFeatures"]

FEATURE_WEIGHTS_DDL = "side string, feature string, bias float, features array<float>"


class FeatureTables(LearningParams):
    """Methods of the estimator that are about features."""

    _feature_tables: tuple[DataFrame | None, DataFrame | None] = (None, None)

    def setUserFeatures(self, df: Table | None) -> Self:
        """Give features of users in a table: columns userCol, and one of vectors or plain ones.

        Plain columns become vectors: numbers as they are, texts, lists of texts and texts that are
        lists, such as "Action|Comedy", a number for each value that users share. Read by every
        fit, and not saved with the estimator. None takes it back.
        """
        return self._with_table(df, 0)

    def setItemFeatures(self, df: Table | None) -> Self:
        """Give features of items in a table: columns itemCol, and one of vectors or plain ones.

        Plain columns become vectors: numbers as they are, texts, lists of texts and texts that are
        lists, such as "Action|Comedy", a number for each value that items share. Read by every
        fit, and not saved with the estimator. None takes it back.
        """
        return self._with_table(df, 1)

    def _has_features(self) -> bool:
        """Whether users or items have features."""
        return bool(self.getUserFeaturesCol() or self.getItemFeaturesCol()) or any(
            table is not None for table in self._feature_tables
        )

    def _refuse_features(self, why: str) -> None:
        """Raise ValueError where there are features, which something cannot take."""
        if self._has_features():
            raise ValueError(
                f"{why}: leave userFeaturesCol, itemFeaturesCol, setUserFeatures and "
                "setItemFeatures out."
            )

    def _check_features(self, streams: bool = False) -> None:
        """Raise ValueError where the solver, of a table or of a stream, has no use for features."""
        if self.getSolver() != "bayes":
            self._refuse_features(
                f"Features are learned by solver 'bayes', and solver is {self.getSolver()!r}"
            )
        if self.getMaxIter() == 0 and not streams:
            self._refuse_features("Features are learned by sweeps, and maxIter is 0")

    def _from_nothing(
        self, stream: DataFrame, kinds: tuple[IdKind, IdKind], path: Location,
        begun: ModelState | None = None,
    ) -> tuple[DataFrame, ModelState, FitOptions]:  # fmt: skip
        """Return a stream with what the tables say of its ids, the model it begins, and how.

        Plain columns are read by the names of what the path has learned, if anything, or of what
        the model has that it starts from.
        """
        settings = replace(self.settings(), featured=self._has_features())
        options = fit_options(self, kinds, stream_invalid(self), settings)
        state = ModelState.empty(settings, *kinds)
        if not settings.featured:
            return stream, state, options
        names = list(options.columns.features)
        held: Sequence[FeatureWeights | None] = (None, None)
        newest = VersionStore(full_path(path)).newest()
        if newest is not None:
            told = newest.scalars.get("features", (None, None))
            held = [None if each is None else FeatureWeights.from_json(each) for each in told]
        elif begun is not None:
            held = begun.features
        ids = self.getUserCol(), self.getItemCol()
        for place, (side, table) in enumerate(zip(SIDES, self._feature_tables, strict=True)):
            if table is not None:
                refuse = self.getHandleInvalid() == "error"
                rows = side_table(table, side, kinds[place], refuse, held[place])
                stream, names[place] = joined_with(stream, rows, side, ids[place], kinds[place])
        state.learns_features = names[0] is not None, names[1] is not None
        columns = replace(options.columns, features=(names[0], names[1]))
        return stream, state, replace(options, columns=columns)

    def _warn_of_tables(self) -> None:
        """Warn that tables of features are not saved."""
        if any(table is not None for table in self._feature_tables):
            warnings.warn(
                "The tables of setUserFeatures and setItemFeatures are not saved with the "
                "estimator: give them again once it is loaded.",
                UserWarning,
                stacklevel=3,
            )

    def _with_table(self, df: Table | None, side: int) -> Self:
        if df is not None:
            df = _feature_table(self, df, side)
        tables = list(self._feature_tables)
        tables[side] = df
        self._feature_tables = (tables[0], tables[1])
        return self


class ModelFeatures(FeatureParams):
    """Methods of the model that are about features."""

    version: int
    _state: ModelState
    _shared: bool
    _frames: Any
    _path_id: str | None
    _id_types: tuple[str, str]
    getOrDefault: Any

    def _features_among(self, names: list[str]) -> tuple[str | None, str | None]:
        """Columns of features among those of a table of pairs, of users and of items."""
        self._check_feature_columns()
        here = {name.lower() for name in names}
        user, item = (
            name if name and name.split(".")[0].lower() in here else None
            for name in (self.getUserFeaturesCol(), self.getItemFeaturesCol())
        )
        return user, item

    def _check_feature_columns(self) -> None:
        """Raise ValueError where a column is set of features that the model knows nothing of."""
        if not self._state.ids[0]:
            # a stream that begins: what is at the path says
            return
        names = (self.getUserFeaturesCol(), self.getItemFeaturesCol())
        state = self._state
        for side, name, weights, learns in zip(
            SIDES, names, state.features, state.learns_features, strict=True
        ):
            if name and weights is None and not learns:
                raise ValueError(
                    f"{side}FeaturesCol is {name!r}, and the model was fitted without features of "
                    f"{side}s: fit it with them, or set {side}FeaturesCol to ''."
                )

    def _vector_of(self, given: Any, side: int) -> SparseRows | None:
        """Return a vector as the model takes it; None for None.

        Raises ValueError where it is none, or where the model was fitted without such.
        """
        if given is None:
            return None
        weights = self._state.features[side]
        if weights is None:
            raise ValueError(
                f"{SIDES[side]}Features is given, and the model was fitted without features of "
                f"{SIDES[side]}s: leave it out."
            )
        values = np.asarray(given.toArray() if isinstance(given, Vector) else given, np.float64)
        columns = {"id": [0], "size": [values.size], "indices": [None], "values": [values.tolist()]}
        rows, bad = SparseRows.of(pa.table(columns, schema=vector_schema("int")), weights.size)
        if bad:
            raise ValueError(
                f"{SIDES[side]}Features must be {weights.size} finite numbers, got {given!r}."
            )
        return rows

    @property
    def featureWeights(self) -> DataFrame:
        """What features say of ids without ratings, in units of the ratings, a row a column.

        Returns
        -------
        DataFrame of side ("user" or "item"), feature (its name by pyspark.ml's metadata, else its
        place in the vector), bias (what one unit adds to the id's bias), features (to its
        features, those of userFactors and itemFactors)
        """
        parts = []
        spread = self._state.scale.spread
        for side, weights in zip(SIDES, self._state.features, strict=True):
            if weights is None:
                continue
            names = np.array(feature_names(weights), object)[weights.columns]
            parts += [
                (side, str(name), float(row[0] * spread), (row[1:] * np.sqrt(spread)).tolist())
                for name, row in zip(names, weights.start[1:].astype(float), strict=True)
            ]
        return active_session().createDataFrame(parts, FEATURE_WEIGHTS_DDL)

    def userVectors(self, df: Table) -> DataFrame:
        """Return plain columns of users as the vectors that the model was fitted with.

        To join them to pairs, or to a stream of ratings, with userFeaturesCol set to their column.

        Parameters
        ----------
        df : Table
            column userCol, and plain columns by the names of the fit

        Returns
        -------
        DataFrame of userCol and userFeatures, a row a user of which anything is known

        Raises
        ------
        ValueError
            the model was fitted without features of users, or knows none of the columns
        """
        return self._vectors(df, 0)

    def itemVectors(self, df: Table) -> DataFrame:
        """Return plain columns of items as the vectors that the model was fitted with.

        To join them to pairs, or to a stream of ratings, with itemFeaturesCol set to their column.

        Parameters
        ----------
        df : Table
            column itemCol, and plain columns by the names of the fit

        Returns
        -------
        DataFrame of itemCol and itemFeatures, a row an item of which anything is known

        Raises
        ------
        ValueError
            the model was fitted without features of items, or knows none of the columns
        """
        return self._vectors(df, 1)

    def _vectors(self, df: Table, side: int) -> DataFrame:
        weights = self._state.features[side]
        if weights is None and not self._state.learns_features[side]:
            raise ValueError(
                f"The model was fitted without features of {SIDES[side]}s: fit it with "
                f"set{SIDES[side].capitalize()}Features."
            )
        table = _feature_table(self, df, side)
        if holds_vectors(table.schema.fields[1].dataType):
            return table.withColumnRenamed(table.columns[1], vector_name(SIDES[side]))
        return with_one_vector(table, SIDES[side], weights)

    def withUsers(self, df: Table, modelPath: Location | None = None) -> Any:
        """Return a copy of the model that knows more users, by their features alone.

        Parameters
        ----------
        df : Table
            column userCol, and a column of vectors, userFeaturesCol or its only other one, or
            plain columns as at setUserFeatures, by the names of the fit; users that the model knows
            are left as they are
        modelPath : Location | None
            add them to the newest version under this path, as a new version; stop the stream
            before

        Returns
        -------
        the copy, `version` one more; with `modelPath` its newest version

        Raises
        ------
        ValueError
            the model was fitted without features of users, or a vector is none
        LeaseError
            a stream writes to the path
        StorageError
            the path holds no version, or a damaged one
        """
        return self._with_ids(df, 0, modelPath)

    def withItems(self, df: Table, modelPath: Location | None = None) -> Any:
        """Return a copy of the model that knows more items, by their features alone.

        They are recommended, found by similarItems and served as others are, each by what its
        features say and with the deviation of an item that nobody has rated.

        Parameters
        ----------
        df : Table
            column itemCol, and a column of vectors, itemFeaturesCol or its only other one, or
            plain columns as at setItemFeatures, by the names of the fit; items that the model knows
            are left as they are
        modelPath : Location | None
            add them to the newest version under this path, as a new version; stop the stream
            before

        Returns
        -------
        the copy, `version` one more; with `modelPath` its newest version

        Raises
        ------
        ValueError
            the model was fitted without features of items, or a vector is none
        LeaseError
            a stream writes to the path
        StorageError
            the path holds no version, or a damaged one
        """
        return self._with_ids(df, 1, modelPath)

    def _with_ids(self, df: Table, side: int, path: Location | None) -> Any:
        itself: Any = self
        store = None if path is None else VersionStore(full_path(path))
        model = itself.copy() if store is None else itself._at_newest(store)
        weights = model._state.features[side]
        if weights is None:
            raise ValueError(
                f"The model was fitted without features of {SIDES[side]}s, so there is nothing to "
                f"start them from: fit it with {SIDES[side]}FeaturesCol, or with "
                f"set{SIDES[side].capitalize()}Features."
            )
        table = _feature_table(self, df, side)
        kinds = model._state.users.index.kind, model._state.items.index.kind
        refuse = self.getOrDefault("handleInvalid") == "error"
        rows = side_table(table, SIDES[side], kinds[side], refuse, weights)

        def add(state: ModelState) -> None:
            start_featured((state.users, state.items)[side], rows.ids, rows, weights)

        nobody = pa.array([], id_array_type(kinds[1 - side]))
        ids = (nobody, rows.ids) if side else (rows.ids, nobody)
        if store is not None:
            commit_added(store, ids, add)
            return itself._at_newest(store)
        model._keep_apart()
        if model._stored is None:
            add(model._state)
        else:
            model._stored.add(ids, add)
        model.version += 1
        model._path_id = None
        model._shared = False
        model._frames = None
        return model


def _feature_table(params: Any, df: Table, side: int) -> DataFrame:
    """Return the columns of ids and vectors of a table, in this order."""
    what = SIDES[side]
    ids = params.getOrDefault(f"{what}Col")
    wanted = params.getOrDefault(f"{what}FeaturesCol")
    frame = as_table(df, "df", (ids, wanted or "features"), "features stand in a table")
    if ids not in frame.columns:
        raise ValueError(
            f"{what}Col {ids!r} is not a column of the table of features, which has "
            f"{', '.join(map(repr, frame.columns))}. Rename its column of ids."
        )
    others = [field for field in frame.schema.fields if field.name != ids]
    if wanted in (field.name for field in others):
        others = [field for field in others if field.name == wanted]
    vectors = [field.name for field in others if holds_vectors(field.dataType)]
    if not others or (vectors and len(others) > 1):
        raise ValueError(
            f"The table of features has {len(others)} columns beside {ids!r}"
            + (
                f", among them one of vectors, {vectors[0]!r}: select either that one or plain "
                f"columns, or set {what}FeaturesCol to it."
                if vectors
                else ": it has to have what is known of them."
            )
        )
    return frame.select(frame[ids], *(frame[field.name] for field in others))
