"""What a model answers at once, without a Spark job: for one user, and of itself (driver)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple
from typing import Any

import pyarrow.compute as pc
from pyspark.sql import DataFrame, Row

from sparkml_sgdals.arrays.given_ids import given_ids, listed, lists_ids, whole_count
from sparkml_sgdals.ingest.frames import Table, as_arrow
from sparkml_sgdals.notebook import html_table, number
from sparkml_sgdals.predict.seen import remembered_pairs
from sparkml_sgdals.predictor import Predictor
from sparkml_sgdals.spark_jobs import active_session
from sparkml_sgdals.state.explaining import EXPLANATION_DDL, explain_event, explain_pair
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.overlay import Overlay

__all__ = ["OneMethods"]


class OneMethods:
    """Methods of the model that answer in milliseconds."""

    version: int
    _state: ModelState
    _predictor: tuple[tuple[Any, ...], Predictor] | None
    getUserCol: Callable[[], str]
    getItemCol: Callable[[], str]
    getColdStartStrategy: Callable[[], str]
    getClipPredictions: Callable[[], bool]
    _scoring_state: Callable[[], ModelState]
    _stored: Overlay | None
    _vector_of: Callable[[Any, int], Any]

    def predictOne(self, user: int | str, item: int | str) -> float:
        """Return the prediction of one pair at once, as `transform` gives it.

        Parameters
        ----------
        user, item : int | str
            ids, known or not

        Returns
        -------
        float : in units of the ratings; NaN where coldStartStrategy gives none

        Raises
        ------
        TypeError
            an id of another kind than the model's
        """
        return float(self._at_hand().predict([user], [item])["prediction"].iloc[0])

    def recommendOne(
        self,
        user: int | str,
        n: int = 10,
        excludeSeen: Table | Iterable[Any] | bool | None = None,
        candidates: Iterable[Any] | None = None,
    ) -> list[Row]:
        """Return the best items for one user at once, as `recommendForUserSubset` ranks them.

        Parameters
        ----------
        user : int | str
            an id; one that is not known gets items by their biases
        n : int
            at most so many
        excludeSeen : Table | Iterable[Any] | bool | None
            ids of items not to recommend, or a table in memory with userCol and itemCol, such as a
            pandas DataFrame; True: those that the model remembers of the user
        candidates : Iterable[Any] | None
            ids of items to choose from; those not known are not ranked

        Returns
        -------
        list of rows of itemCol and rating, best first

        Raises
        ------
        TypeError
            an id of another kind than the model's
        ValueError
            `n` below 1, or `excludeSeen=True` where the model remembers nothing
        """
        count = whole_count("n", n)
        asked = None if isinstance(excludeSeen, bool) else listed(excludeSeen)
        if asked is not None and not lists_ids(asked):
            asked = self._seen_by(user, asked)
        among = None if candidates is None else [candidates]
        exclude: Any = [] if asked is None else asked
        if excludeSeen is True:
            known = given_ids([user], self._state.users.index.kind, "user")
            exclude = remembered_pairs(self._state, known.drop_null()).column("item")
        best = self._at_hand().recommend([user], count, [exclude], candidates=among)
        row = Row(self.getItemCol(), "rating")
        pairs = zip(best["item"].tolist(), best["rating"].tolist(), strict=True)
        return [row(item, rating) for item, rating in pairs]

    def _seen_by(self, user: int | str, pairs: Any) -> Any:
        """Return the items of a user in a table of pairs; TypeError for one that Spark holds."""
        names = self.getUserCol(), self.getItemCol()
        if isinstance(pairs, DataFrame) or type(pairs).__module__.startswith("pyspark."):
            raise TypeError(
                "excludeSeen of one user is a list of ids of items, a table in memory, or True, "
                f"got a table of Spark: that would be a job. Give excludeSeen.toPandas(), or ask "
                f"recommendForUserSubset([{user!r}], n, excludeSeen)."
            )
        table = as_arrow(pairs, "excludeSeen", names)
        for param, name in zip(("userCol", "itemCol"), names, strict=True):
            if name not in table.column_names:
                raise ValueError(
                    f"{param} {name!r} is not a column of excludeSeen, which has "
                    f"{', '.join(map(repr, table.column_names))}."
                )
        kind = self._state.users.index.kind
        users = given_ids(table.column(names[0]), kind, "user")
        return table.column(names[1]).filter(pc.equal(users, given_ids([user], kind, "user")[0]))

    def explain(
        self, user: int | str, item: int | str, userFeatures: Any = None, itemFeatures: Any = None
    ) -> DataFrame:
        """Why the model predicts what it does for a pair, in rows that a person can read.

        Parameters
        ----------
        user, item : int | str
            ids, known or not
        userFeatures, itemFeatures : Any
            a vector, or numbers, that is known of the user or item, where the model was fitted with
            such; its largest shares are told by name

        Returns
        -------
        DataFrame of part, value, std (both in units of the ratings), ratings, note: the mean, both
        biases, the features' share, the noise, and the prediction, which is their sum; std is null
        but under solver 'bayes', ratings is how many ratings are behind the part. Parts named by a
        feature ("item Comedy") say what it adds to the others. Of a model of events: the logarithms
        that make the score, and of new ids what features add to the table's product

        Raises
        ------
        ValueError
            a vector is none, or the model was fitted without such
        TypeError
            an id is a string where the model learned integers, or the other way round
        """
        known = self._vector_of(userFeatures, 0), self._vector_of(itemFeatures, 1)
        state = self._state
        if state.settings.learns_events:
            rows = [astuple(part) for part in explain_event(state, user, item, known)]
            return active_session().createDataFrame(rows, EXPLANATION_DDL)
        if self._stored is not None:
            kinds = state.users.index.kind, state.items.index.kind
            state = self._stored.rows_of(
                given_ids([user], kinds[0], "user"), given_ids([item], kinds[1], "item")
            )
        parts = explain_pair(state, user, item, self.getClipPredictions(), known)
        rows = [astuple(part) for part in parts]
        return active_session().createDataFrame(rows, EXPLANATION_DDL)

    def _repr_html_(self) -> str:
        state, settings = self._state, self._state.settings
        counters = state.counters
        rows = [
            ("users", number(state.ids[0])),
            ("items", number(state.ids[1])),
            ("events" if settings.learns_events else "ratings", number(counters.ratings)),
            ("rank", settings.rank),
            ("solver", settings.solver),
            ("version", self.version),
            ("columns", f"{self.getUserCol()}, {self.getItemCol()}"),
        ]
        if self._stored is not None:
            rows.append(("read from", self._stored.store.path))
        if counters.ratings and not settings.learns_events:
            span = f"{counters.low:g} to {counters.high:g}, mean {number(state.scale.mean)}"
            rows.append(("ratings from", span))
        return html_table(type(self).__name__, rows)

    def _at_hand(self) -> Predictor:
        """Return the model as arrays in this process, made once a version."""
        params = {
            "coldStartStrategy": self.getColdStartStrategy(),
            "clipPredictions": self.getClipPredictions(),
        }
        key = (id(self._state), self.version, *params.values())
        if self._predictor is None or self._predictor[0] != key:
            self._predictor = (
                key,
                Predictor(self._state, params, self.version, self._scoring_state(), self._stored),
            )
        return self._predictor[1]
