"""Factors of a model as DataFrames, from memory or from the files that they lie in (driver)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals.predict.in_place import changed_table, public_in_place, rows_in_place
from sparkml_sgdals.predict.scoring import factor_frame, public_factors
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.large.opening import refuse_whole
from sparkml_sgdals.store.overlay import Overlay

__all__ = ["FactorMethods"]


class FactorMethods:
    """What a model gives out of its rows, wherever these are."""

    _state: ModelState
    _stored: Overlay | None
    _scoring_state: Callable[[], ModelState]
    _id_types: tuple[str, str]
    _session: Callable[[], SparkSession]

    @property
    def userFactors(self) -> DataFrame:
        """Users: id, features array<float> of length rank, bias float, in units of the ratings."""
        return self._public("users", self._id_types[0])

    @property
    def itemFactors(self) -> DataFrame:
        """Items: id, features array<float> of length rank, bias float, in units of the ratings."""
        return self._public("items", self._id_types[1])

    def _keep_apart(self) -> None:
        """Go on with a state that no copy has."""
        if self._stored is None:
            self._state = self._state.copy()
        else:
            self._stored = self._stored.fork()
            self._state = self._stored.state

    def _with_items(self, what: str) -> ModelState:
        """Return the model with all items in memory, if not all users.

        Raises StorageError, by what they are needed for, where they are more than may be there.
        """
        state, stored = self._scoring_state(), self._stored
        if stored is None:
            return state
        if state.ids[1] > stored.limit:
            refuse_whole(state, what)
        return replace(state, items=stored.all_of("items"))

    def _factors(self, spark: SparkSession, side: str, deviations: bool) -> DataFrame:
        state, stored = self._scoring_state(), self._stored
        table = getattr(state, side) if stored is None else changed_table(stored, side)
        frame = factor_frame(spark, table, deviations, state.heard)
        if stored is None:
            return frame
        return rows_in_place(spark, stored, side, deviations, frame)

    def _public(self, side: str, id_type: str) -> DataFrame:
        spark, state, stored = self._session(), self._scoring_state(), self._stored
        table = getattr(state, side) if stored is None else changed_table(stored, side)
        frame = public_factors(spark, table, state.scale.spread, id_type)
        return frame if stored is None else public_in_place(spark, stored, side, id_type, frame)
