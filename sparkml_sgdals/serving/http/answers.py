"""The answers of the service, put together from one version each (no HTTP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.kernels.events.judges import NEVER
from sparkml_sgdals.serving.http import schemas as out
from sparkml_sgdals.serving.intake.history import History, Known
from sparkml_sgdals.serving.intake.posts import Told
from sparkml_sgdals.serving.model.approximate import Approximate
from sparkml_sgdals.serving.model.holder import ModelHolder, NoModelError
from sparkml_sgdals.serving.model.ids import Key, key_of
from sparkml_sgdals.serving.model.judge import Judge
from sparkml_sgdals.serving.model.leaning import rank_leaning
from sparkml_sgdals.serving.model.newcomers import KnownFeatures
from sparkml_sgdals.serving.model.person import Person, alone, fold_in, nobody, person_of
from sparkml_sgdals.serving.model.ranking import (
    RankBy,
    like_item,
    most_rated,
    predicted,
    rank_items,
)
from sparkml_sgdals.serving.model.reasons import (
    event_sentence,
    event_shares,
    event_terms,
    sentence,
    shares,
)
from sparkml_sgdals.serving.model.served_model import ServedModel
from sparkml_sgdals.serving.model.titles import Titles, spoken
from sparkml_sgdals.state.explaining import explain_pair, feature_shares
from sparkml_sgdals.state.feature_values import FeatureNames
from sparkml_sgdals.state.feature_values import told as as_told

__all__ = ["Answers"]

I64 = npt.NDArray[np.int64]


@dataclass
class Answers:
    """Answers questions by the newest version; each takes its version once and keeps to it."""

    holder: ModelHolder
    titles: Titles = field(default_factory=Titles)
    history: History = field(default_factory=lambda: History(("int", "int")))
    approximate: Approximate | None = None
    judge: Judge = field(default_factory=Judge)
    about: tuple[KnownFeatures, KnownFeatures] = field(
        default_factory=lambda: (KnownFeatures("int"), KnownFeatures("int"))
    )
    """what is known of users, and of items, beside ratings"""

    def join(self, told: Sequence[Told]) -> None:
        """Know users and items by what was posted of them."""
        for one in told:
            self.about[one.side].add(one.key, one.given)
        self.titles.add({one.key: one.title for one in told if one.side and one.title is not None})
        for side in (0, 1):
            self.holder.join(side, {one.key: one.given for one in told if one.side == side})

    # ---- recommend --------------------------------------------------------------------------

    def recommendations(
        self,
        user: Key,
        n: int,
        exclude_seen: bool | None,
        rank_by: RankBy,
        items: list[Key] | None,
        exclude: list[Key] | None,
        reasons: bool,
    ) -> out.Recommendations:
        """Return the best items for a user; ValueError for a bound that the model has not."""
        with self.holder.reading() as model:
            person = person_of(model, user)
            known = self.history.of(user)
            exclude_seen = _leaves_out(model, exclude_seen)
            left_out = [one.item for one in known] if exclude_seen else []
            gone = model.item_rows(left_out + model.named_items(exclude or []))
            items = None if items is None else model.named_items(items)
            if exclude_seen and person.done is not None:
                gone = np.concatenate([gone, person.done])
            return self._recommended(
                model, person, user, n, rank_by, items, gone, known if reasons else None
            )

    def anonymous(self, asked: out.AnonymousIn) -> out.Recommendations:
        """Return the best items for somebody with these ratings; one that is missing is 1.

        Raises DivergenceError for absurd ratings.
        """
        with self.holder.reading() as model:
            given = [one.item for one in asked.ratings]
            values = [1.0 if one.rating is None else one.rating for one in asked.ratings]
            person = fold_in(model, given, values)
            left_out = list(given) if _leaves_out(model, asked.exclude_seen) else []
            gone = model.item_rows(left_out)
            return self._recommended(
                model, person, None, asked.n, "prediction", asked.items, gone, None
            )

    def _recommended(
        self,
        model: ServedModel,
        person: Person,
        user: Key | None,
        n: int,
        rank_by: RankBy,
        items: list[Key] | None,
        gone: I64,
        known: list[Known] | None,
    ) -> out.Recommendations:
        only = None if items is None else model.item_rows(items)
        if rank_by in ("taste", "everyone"):
            best = rank_leaning(model, person, n, rank_by == "taste", gone, only)
        else:
            best = rank_items(model, person, n, rank_by, gone, only, self.approximate)
        _, deviations = predicted(model, person, best.rows)
        counts = model.items.count[best.rows].tolist()
        rated = None if known is None else self._rated(model, known)
        found = []
        for place, item in enumerate(best.ids):
            one = out.Recommendation(
                item=item,
                title=self.titles.of(item),
                genres=self.titles.genres_of(item),
                prediction=float(best.values[place]),
                std=None if deviations is None else float(deviations[place]),
                ratings=counts[place],
            )
            if rated is not None:
                because = self._because(model, person, rated, int(best.rows[place]))
                one.because = because[:3]
                one.reason = self._reason(model, person, int(best.rows[place]), because)
            found.append(one)
        whose = None if user is None else _own(model.kinds[0], user)
        return out.Recommendations(
            user=whose, version=model.version, cold=person.cold, learned=person.count, items=found
        )

    # ---- predict, explain -------------------------------------------------------------------

    def prediction(self, user: Key, item: Key) -> out.Prediction:
        """Return what a user would give an item."""
        with self.holder.reading() as model:
            return self._prediction(model, user, item)

    def _prediction(self, model: ServedModel, user: Key, item: Key) -> out.Prediction:
        person, rows = person_of(model, user), model.item_rows([item])
        values, deviations = predicted(model, person, rows)
        return out.Prediction(
            user=_own(model.kinds[0], user),
            item=_own(model.kinds[1], item),
            title=self._title(model, item),
            version=model.version,
            cold=person.cold or int(rows[0]) < 0,
            prediction=float(values[0]),
            std=None if deviations is None else float(deviations[0]),
        )

    def explanation(self, user: Key, item: Key) -> out.Explanation:
        """Why that is predicted: the library's own parts, and the ratings that speak for it."""
        with self.holder.reading() as model:
            found = self._prediction(model, user, item)
            row = int(model.item_rows([item])[0])
            person = person_of(model, user)
            if model.events is not None:
                parts = event_terms(model, person, row)
            else:
                keys = [
                    _or_unknown(key_of(one, kind))
                    for one, kind in zip((user, item), model.kinds, strict=True)
                ]
                known = self._told(model, 0, keys[0]), self._told(model, 1, keys[1])
                state = alone(model, user, item)
                parts = explain_pair(state, keys[0], keys[1], model.clip, known)
            because: list[out.Because] = []
            drawn: float | None = None
            reason = "Nothing is known of this item yet"
            if row >= 0:
                rated = self._rated(model, self.history.of(user))
                because = self._because(model, person, rated, row)
                reason = self._reason(model, person, row, because)
                if person.drawn.size and model.events is None:
                    drawn = float(person.drawn @ model.items.mean[row, 1:])
                    drawn *= model.shell.scale.spread
            return out.Explanation(
                **dict(found),
                parts=[out.PartOut(**asdict(part)) for part in parts],
                because=because,
                reason=reason,
                drawn=drawn,
            )

    def _rated(self, model: ServedModel, known: list[Known]) -> tuple[list[Known], I64]:
        rows = model.item_rows([one.item for one in known])
        held = np.flatnonzero(rows >= 0)
        return [known[n] for n in held], rows[held]

    def _because(
        self, model: ServedModel, person: Person, rated: tuple[list[Known], I64], row: int
    ) -> list[out.Because]:
        if person.cold:
            return []
        if model.events is not None:
            found = event_shares(model, person, row)
        else:
            known, rows = rated
            values = np.array([one.rating for one in known], np.float64)
            found = shares(model, person, rows, values, row)[:10]
        ids = model.item_ids(np.array([one.row for one in found], np.int64))
        return [
            out.Because(
                item=i,
                title=self.titles.of(i),
                rating=one.rating,
                share=one.share,
                liked=one.liked,
            )
            for i, one in zip(ids, found, strict=True)
        ]

    def _reason(
        self, model: ServedModel, person: Person, row: int, because: list[out.Because]
    ) -> str:
        told = [one for one in because if one.liked]
        names = [spoken(b.title) if b.title else str(b.item) for b in told]
        if model.events is not None:
            spoken_of = [(name, b.share) for name, b in zip(names, told, strict=True)]
            about = self._features_of(model, person, row)
            return event_sentence(model, person, row, spoken_of, about)
        spread, counters = model.shell.scale.spread, model.shell.counters
        span = counters.high - counters.low if counters.ratings else 0.0
        mean = model.items.mean[row].astype(np.float64)
        about = self._features_of(model, person, row)
        return sentence(
            float(mean[0]) * spread,
            float(person.learned @ mean[1:]) * spread,
            int(model.items.count[row]),
            span if span > 0.0 else spread,
            [(name, b.rating, b.share) for name, b in zip(names, told, strict=True)],
            about,
        )

    def _features_of(self, model: ServedModel, person: Person, row: int) -> list[tuple[str, float]]:
        """Return what features add to an item that nobody has rated, the largest first."""
        weights = model.shell.features[1]
        if weights is None or model.items.count[row]:
            return []
        (key,) = model.item_ids(np.array([row], np.int64))
        rows, spread = self._told(model, 1, key), model.shell.scale.spread
        if rows is None:
            return []
        taste = person.mean
        if model.events is not None:
            if not person.taste.size or person.taste[0] <= NEVER / 2:
                return []
            # shares of U . P
            taste = person.taste
        found = feature_shares(weights, rows, 0, taste.astype(np.float64), spread)
        return [(_as_told(name), share) for name, share in found]

    def _told(self, model: ServedModel, side: int, key: Key) -> SparseRows | None:
        """Return what is known of an id as the model takes it, None where nothing is."""
        weights, given = model.shell.features[side], self.about[side].of(key)
        if weights is None or given is None:
            return None
        names = FeatureNames(weights)
        try:
            vector, _ = names.vector(given)
        except ValueError:
            # of a table that was not read by this model
            return None
        kind = id_array_type(model.kinds[side])
        return names.rows(pa.array([key], kind), [vector]) if vector else None

    def _title(self, model: ServedModel, item: Key) -> str | None:
        key = key_of(item, model.kinds[1])
        return None if key is None else self.titles.of(key)

    # ---- items ------------------------------------------------------------------------------

    def similar(self, item: Key, n: int) -> out.Similar:
        """Return the items most like one."""
        with self.holder.reading() as model:
            row = int(model.item_rows([item])[0])
            best = like_item(model, row, n) if row >= 0 else None
            found = [] if best is None else zip(best.ids, best.values.tolist(), strict=True)
            return out.Similar(
                item=_own(model.kinds[1], item),
                title=self._title(model, item),
                version=model.version,
                cold=row < 0,
                items=[
                    out.SimilarItem(
                        item=i,
                        title=self.titles.of(i),
                        genres=self.titles.genres_of(i),
                        similarity=v,
                    )
                    for i, v in found
                ],
            )

    def popular(self, n: int) -> out.Popular:
        """Return the items with the most ratings."""
        with self.holder.reading() as model:
            best = most_rated(model, n)
            values, _ = predicted(model, nobody(model), best.rows)
            return out.Popular(
                version=model.version,
                items=[
                    out.PopularItem(
                        item=i,
                        title=self.titles.of(i),
                        genres=self.titles.genres_of(i),
                        ratings=int(c),
                        prediction=float(v),
                    )
                    for i, c, v in zip(best.ids, best.values, values, strict=True)
                ],
            )

    def found(self, query: str, n: int) -> out.Found:
        """Items by title, or by their very id."""
        with self.holder.reading() as model:
            keys = list(self.titles.search(query))
            itself = key_of(query.strip(), model.kinds[1])
            if itself is not None and model.item_rows([itself])[0] >= 0 and itself not in keys:
                keys.insert(0, itself)
            rows = model.item_rows(keys)
            counts = np.zeros(len(keys), np.int64)
            counts[rows >= 0] = model.items.count[rows[rows >= 0]]
            order = np.argsort(-counts, kind="stable")[:n]
            return out.Found(
                items=[
                    out.FoundItem(
                        item=keys[k],
                        title=self.titles.of(keys[k]),
                        genres=self.titles.genres_of(keys[k]),
                        ratings=int(counts[k]),
                    )
                    for k in order.tolist()
                ]
            )

    # ---- users, versions --------------------------------------------------------------------

    def user_ratings(self, user: Key) -> out.UserRatings:
        """Return what is known of a user's ratings."""
        with self.holder.reading() as model:
            person = person_of(model, user)
            learned, known = person.count, self.history.of(user)
            if person.done is not None:
                # a model of events knows itself what was done
                there = {one.item for one in known}
                ids = model.item_ids(person.done.astype(np.int64))
                known = [Known(i, 1.0, None) for i in ids if i not in there] + known
        return out.UserRatings(
            user=_own(model.kinds[0], user),
            version=model.version,
            learned=learned,
            ratings=[
                out.UserRating(
                    item=one.item,
                    title=self.titles.of(one.item),
                    genres=self.titles.genres_of(one.item),
                    rating=one.rating,
                    timestamp=one.time,
                )
                for one in known
            ],
        )

    def versions(self, n: int) -> out.Versions:
        """Return the newest `n` versions kept, newest first."""
        store = self.holder.store
        with self.holder.reading() as model:
            serving = model.version
        found = []
        for number in reversed(store.numbers()[-n:]):
            commit = store.read_commit(number)
            if commit is None:
                continue
            numbers = commit.metrics or {}
            found.append(
                out.VersionOut(
                    version=commit.version,
                    batch=commit.batch,
                    committed=commit.committed,
                    ratings=commit.scalars["counters"]["ratings"],
                    rmse=numbers.get("rmse"),
                    baseline_rmse=numbers.get("baselineRmse"),
                    validation_rmse=numbers.get("validationRmse"),
                    restored=commit.restored,
                    serving=number == serving,
                )
            )
        return out.Versions(serving=serving, versions=found)

    def ready(self, gate: bool) -> tuple[bool, str]:
        """Whether it can answer, and why; with a gate not before a version beat its baseline."""
        try:
            with self.holder.reading() as model:
                version = model.version
        except NoModelError as nothing:
            return False, str(nothing)
        if self.holder.gone:
            return False, f"{self.holder.store.path} holds no version any more: restore it."
        said = self.judge.detail
        if gate and not self.judge.passed:
            return False, f"Version {version} is held back. {said}"
        return True, f"Version {version} answers. Does it beat its baseline? {said}"

    def curve(self, most: int) -> out.Curve:
        """Errors of the micro-batches so far, at most `most` of them, the newest among them."""
        with self.holder.reading() as model:
            learned = model.shell.counters.ratings
        metrics = self.holder.metrics()
        learned -= sum(row["ratings"] for row in metrics)
        points = []
        for row in metrics:
            learned += row["ratings"]
            points.append(
                out.CurvePoint(
                    version=row["version"],
                    committed=row["committed"],
                    ratings=learned,
                    batch_ratings=row["ratings"],
                    rmse=row.get("rmse"),
                    baseline_rmse=row.get("baselineRmse"),
                    validation_rmse=row.get("validationRmse"),
                    recall=row.get("recall"),
                    baseline_recall=row.get("baselineRecall"),
                )
            )
        step = max(1, -(-len(points) // most))
        return out.Curve(points=points[::-1][::step][::-1])

    def news(self) -> dict[str, Any] | None:
        """Return what pages are told of the version that serves."""
        commit = self.holder.commit
        if commit is None:
            return None
        numbers = commit.metrics or {}
        return {
            "version": commit.version,
            "committed": commit.committed,
            "learned": commit.scalars["counters"]["ratings"],
            "ratings": numbers.get("ratings", 0),
            "rmse": numbers.get("rmse"),
            "baseline_rmse": numbers.get("baselineRmse"),
            "validation_rmse": numbers.get("validationRmse"),
            "recall": numbers.get("recall"),
            "baseline_recall": numbers.get("baselineRecall"),
        }


def _own(kind: IdKind, given: Key) -> Key:
    """Return an id as the model knows it, as it was given where it cannot be one."""
    key = key_of(given, kind)
    return given if key is None else key


def _as_told(name: str) -> str:
    lacks = name.removeprefix("without ")
    return as_told(name) if lacks == name else f"without {as_told(lacks)}"


def _or_unknown(key: Key | None) -> Key:
    # the state it is looked up in knows nothing of what cannot be an id
    return -(2**63) if key is None else key


def _leaves_out(model: ServedModel, asked: bool | None) -> bool:
    """Whether what was done is left out: as asked, else unless items come again."""
    return not model.shell.repeats_items if asked is None else asked
