"""The whole state of a model: two factor tables, the scale of the ratings, what was seen of them.

Runs on driver and executors; knows nothing of Spark.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import ITEM_SIDE, USER_SIDE
from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.threads import ranges, run_all
from sparkml_sgdals.arrays.value_range import FIRST_LOOK, ValueRange
from sparkml_sgdals.kernels.filter import standardise
from sparkml_sgdals.kernels.predict import predict_rows
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.feature_weights import FeatureWeights
from sparkml_sgdals.state.partners import Partners, PartnerWeight
from sparkml_sgdals.state.ranges import Ranges
from sparkml_sgdals.state.settings import Settings

__all__ = ["FIRST_SHARE", "SETTLING_RATINGS", "Counters", "ModelState", "Scale"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

SETTLING_RATINGS: Final = 1000
"""Ratings of a stream from nothing after which mean and spread are frozen."""
FIRST_SHARE: Final = 0.4
"""How far the filter is believed before events have judged it beside the table: best, or near it,
on what came next after cuts in time of two sets."""

REPEATED: Final = 0.05
"""share of events that repeat, above which items that were done may come again"""


@dataclass(frozen=True)
class Scale:
    """Mean and spread of the ratings: the unit in which factors are kept.

    `weight` and `squares` (sum of weighted squares about the mean) let a stream go on with them
    until `seen` reaches SETTLING_RATINGS; after that, and after a fit, they are frozen.
    """

    mean: float = 0.0
    spread: float = 1.0
    weight: float = 0.0
    squares: float = 0.0
    seen: int = 0
    frozen: bool = False

    @classmethod
    def of(cls, moments: tuple[float, float, float], seen: int, standardise: bool) -> Scale:
        """Return the scale of ratings with these moments (weight, mean, squares about it)."""
        weight, mean, squares = moments
        deviation = math.sqrt(squares / weight) if weight > 0 else 0.0
        # equal ratings leave a spread of nothing but rounding; float32 has seven digits
        spreads = standardise and deviation > 1e-7 * abs(mean)
        return cls(mean, deviation if spreads else 1.0, weight, squares, seen)

    def merged(self, moments: tuple[float, float, float], seen: int, standardise: bool) -> Scale:
        """Return the scale after more ratings (Chan, Golub and LeVeque 1979, equation 2.1)."""
        weight, mean, squares = moments
        total = self.weight + weight
        if total <= 0.0:
            return self
        apart = mean - self.mean
        merged = (
            total,
            self.mean + apart * weight / total,
            self.squares + squares + apart * apart * self.weight * weight / total,
        )
        return Scale.of(merged, self.seen + seen, standardise)

    def standardise(self, values: F32, threads: int = 1) -> F32:
        """Ratings in units of the spread about the mean, float32."""
        if threads <= 1:
            return standardise(values, self.mean, self.spread)  # type: ignore[no-any-return]
        units = np.empty_like(values)

        def fill(part: slice) -> None:
            units[part] = standardise(values[part], self.mean, self.spread)

        run_all([partial(fill, part) for part in ranges(values.size, 4 * threads)], threads)
        return units


@dataclass(frozen=True)
class Counters:
    """What a model has seen, and how well it predicted ratings before it learned them.

    `low` and `high` are the range of ratings; the prequential sums are of squared errors of the
    clipped predictions in rating units, for the model and for its mean-and-bias baseline.
    """

    ratings: int = 0
    low: float = math.inf
    high: float = -math.inf
    prequential_ratings: int = 0
    prequential_squares: float = 0.0
    baseline_squares: float = 0.0

    def with_ratings(self, count: int, bounds: tuple[float, float]) -> Counters:
        """Return the counters once so many more ratings, within these bounds, are learned."""
        low, high = min(bounds[0], self.low), max(bounds[1], self.high)
        return replace(self, ratings=self.ratings + count, low=low, high=high)

    def prequential_rmse(self) -> float:
        """RMSE before learning, NaN where nothing was predicted first."""
        return _root_mean(self.prequential_squares, self.prequential_ratings)

    def baseline_rmse(self) -> float:
        """Return the RMSE of the mean-and-bias baseline on the same ratings."""
        return _root_mean(self.baseline_squares, self.prequential_ratings)


@dataclass
class ModelState:
    """Everything that predictions and further learning depend on."""

    settings: Settings
    users: FactorTable
    items: FactorTable
    scale: Scale = field(default_factory=Scale)
    counters: Counters = field(default_factory=Counters)
    noise: float = 0.5
    """learned noise variance s2 in standardised units, for deviations of predictions"""
    noise_weight: float = 0.0
    """observations behind `noise`"""
    partial: bool = False
    """whether there are ids beside those in memory: see `store.overlay`"""
    known_ids: tuple[int, int] = (0, 0)
    """users and items that there are, where `partial`"""
    events_learned: int = 0
    """of positive-only feedback: how many have been learned"""
    popularity_parts: tuple[float, ...] = ()
    """share of each part of popularity; empty before the first event"""
    filter_share: float = FIRST_SHARE
    """how far the filter's judgement is believed, the table's having the rest; of models of events
    that were fitted"""
    partners: PartnerWeight = field(default_factory=PartnerWeight)
    """how far what stands together is believed, beside the filter"""
    repeats: int = 0
    """events of pairs that had come before"""
    heard: Partners | None = None
    """what stands together, of a model that only scores: see `event_scores.serving_state`"""
    regularisation: tuple[float, float] = (0.0, 0.0)
    """lambda of users and of items that the last table of events was fitted with"""
    weights_beside: tuple[float, float] = (0.0, 0.0)
    """what was put beside the weight of a user's events, and of an item's, to shrink them; 0 of
    models that were fitted before it was kept"""
    ranges: Ranges = field(default_factory=Ranges)
    """of ratings: where they lie; not told by the fingerprint, as no prediction depends on it"""
    features: tuple[FeatureWeights | None, FeatureWeights | None] = (None, None)
    """what features of users, and of items, say of them; None where they have none"""
    learns_features: tuple[bool, bool] = (False, False)
    """of which sides a stream from nothing learns that; there are no weights before the first"""

    @classmethod
    def empty(cls, settings: Settings, user_kind: IdKind, item_kind: IdKind) -> ModelState:
        """Return a model that has seen nothing."""
        return cls(
            settings,
            FactorTable(USER_SIDE, user_kind, settings),
            FactorTable(ITEM_SIDE, item_kind, settings),
            noise=settings.noise,
        )

    @property
    def ids(self) -> tuple[int, int]:
        """Users and items that it knows, in memory or not."""
        return self.known_ids if self.partial else (self.users.size, self.items.size)

    @property
    def blank(self) -> bool:
        """Whether it knows no ids at all."""
        return not (self.partial or self.users.size or self.items.size)

    def copy(self) -> ModelState:
        """Return an independent copy."""
        return replace(self, users=self.users.copy(), items=self.items.copy())

    def restore(self, kept: ModelState) -> None:
        """Be again what a copy has kept, which is then used up: its factors are not copied."""
        for each in fields(self):
            setattr(self, each.name, getattr(kept, each.name))

    def under(self, settings: Settings) -> ModelState:
        """Return the same model, factors shared, under settings that differ in ranking.

        For models of ratings.
        """
        sides = self.users.under(settings), self.items.under(settings)
        return replace(self, settings=settings, users=sides[0], items=sides[1])

    def scalars(self) -> dict[str, Any]:
        """All but the factors and settings, as JSON types."""
        counters = asdict(self.counters)
        if not self.counters.ratings:
            counters |= {"low": None, "high": None}
        events: dict[str, Any] = {
            "events": self.events_learned,
            "popularityParts": list(self.popularity_parts),
        }
        if self.settings.pairs_items:
            weight = self.partners
            events["partners"] = [weight.share, weight.filter_sum, weight.partner_sum]
            events["partnerShare"] = weight.typical
            events["partnerOffsets"] = [*weight.by_gap, *weight.by_length]
            if weight.rest_until:
                events["partnersAtRest"] = [*weight.at_rest, weight.rest_until]
        if self.settings.repeat_items is not False:
            events["repeats"] = self.repeats
        if self.settings.fits_events:
            events |= {
                "filterShare": self.filter_share,
                "regularisation": list(self.regularisation),
            }
            if any(self.weights_beside):
                events["weightsBeside"] = list(self.weights_beside)
        told: dict[str, Any] = {
            "scale": asdict(self.scale),
            "counters": counters,
            "noise": self.noise,
            "noiseWeight": self.noise_weight,
        }
        if self.settings.featured:
            told["features"] = [None if each is None else each.to_json() for each in self.features]
        if any(self.learns_features):
            told["learnsFeatures"] = list(self.learns_features)
        return told | (events if self.settings.learns_events else {"ranges": self.ranges.to_json()})

    def set_scalars(self, values: dict[str, Any]) -> None:
        """Take over what `scalars` gave."""
        counters = dict(values["counters"])
        if counters["low"] is None:
            counters |= {"low": math.inf, "high": -math.inf}
        self.scale = Scale(**values["scale"])
        self.counters = Counters(**counters)
        self.noise = float(values["noise"])
        self.noise_weight = float(values["noiseWeight"])
        self.events_learned = int(values.get("events", 0))
        self.popularity_parts = tuple(values.get("popularityParts", ()))
        self.filter_share = float(values.get("filterShare", FIRST_SHARE))
        if "partners" in values:
            share, filter_sum, partner_sum = map(float, values["partners"])
            self.partners = PartnerWeight(share, filter_sum, partner_sum)
        else:
            self.partners = PartnerWeight()
        if "partnerOffsets" in values:
            offsets = tuple(map(float, values["partnerOffsets"]))
            half = len(offsets) // 2
            self.partners = replace(
                self.partners, typical=float(values["partnerShare"]),
                by_gap=offsets[:half], by_length=offsets[half:],
            )  # fmt: skip
        if "partnersAtRest" in values:
            *at_rest, until = values["partnersAtRest"]
            self.partners = replace(
                self.partners, at_rest=tuple(map(float, at_rest)), rest_until=int(until)
            )
        self.repeats = int(values.get("repeats", 0))
        lams = values.get("regularisation", (0.0, 0.0))
        self.regularisation = (float(lams[0]), float(lams[1]))
        means = values.get("weightsBeside", (0.0, 0.0))
        self.weights_beside = (float(means[0]), float(means[1]))
        users, items = (
            None if each is None else FeatureWeights.from_json(each)
            for each in values.get("features", (None, None))
        )
        self.features = users, items
        learns = values.get("learnsFeatures", (False, False))
        self.learns_features = bool(learns[0]), bool(learns[1])
        if "ranges" in values:
            self.ranges = Ranges.from_json(values["ranges"])
        elif self.counters.ratings >= FIRST_LOOK and not self.settings.learns_events:
            # of a release that did not learn them
            seen = self.counters.low, self.counters.high
            self.ranges = Ranges(ValueRange(settled=seen))

    @property
    def repeats_items(self) -> bool:
        """Whether items that a user has done may come again: as set, else as events have shown."""
        given = self.settings.repeat_items
        return self.repeats > REPEATED * self.counters.ratings if given is None else given

    @property
    def again(self) -> float:
        """Share of events that repeat what their users had done; 0 where none may."""
        return self.repeats / max(1, self.counters.ratings) if self.repeats_items else 0.0

    def shares(self) -> dict[str, float | None]:
        """How far judges of events are believed, by the names of job.metrics(); None without."""
        fits, pairs = self.settings.fits_events, self.settings.pairs_items
        return {
            "filterShare": self.filter_share if fits and self.events_learned else None,
            "partnerShare": self.partners.typical if pairs else None,
        }

    def fingerprint(self) -> str:
        """Return a hash of the whole state, the same whatever the order of rows in memory."""
        told = {name: value for name, value in self.scalars().items() if name != "ranges"}
        digest = hashlib.sha256(repr(sorted(told.items())).encode())
        for side in (self.users, self.items):
            table = side.to_arrow()
            silent = [column.stored for column in side.registry() if not side.told(column)]
            names = [name for name in table.column_names if name not in silent]
            for name in names:
                column = table.column(name).combine_chunks()
                if pa.types.is_list(column.type):
                    column = column.flatten()
                if pa.types.is_string(column.type):
                    digest.update("\0".join(column.to_pylist()).encode())
                else:
                    digest.update(column.to_numpy(zero_copy_only=False).tobytes())
        return digest.hexdigest()

    def predict(self, users: I64, items: I64) -> tuple[F32, F32]:
        """Predictions in rating units, not clipped, and variances of the predicted mean.

        Parameters
        ----------
        users, items : I64
            rows, shape (n,); -1 for an unknown id

        Returns
        -------
        predictions, variances : float32, shape (n,); variances in squared rating units, without
            the noise of a new rating
        """
        predictions = np.empty(users.size, np.float32)
        variances = np.empty(users.size, np.float32)
        predict_rows(
            users,
            items,
            self.users.mean,
            self.users.var,
            self.items.mean,
            self.items.var,
            prior_variances(self.settings),
            predictions,
            variances,
        )
        spread = self.scale.spread
        in_units = predictions.astype(np.float64) * spread + self.scale.mean
        return in_units.astype(np.float32), variances * np.float32(spread * spread)

    def noise_factors(self, users: I64, items: I64) -> npt.NDArray[np.float64]:
        """Noise of a rating of each pair in units of `noise`: rows as in `predict`."""
        user = np.append(self.users.noise_factor, np.float32(1.0))[users].astype(np.float64)
        return user * np.append(self.items.noise_factor, np.float32(1.0))[items]

    def predict_baseline(self, users: I64, items: I64) -> F32:
        """Predictions of the mean-and-bias baseline in rating units, not clipped."""
        user = np.append(self.users.base_mean[:, 0], np.float32(0.0))[users]
        item = np.append(self.items.base_mean[:, 0], np.float32(0.0))[items]
        in_units = (user.astype(np.float64) + item) * self.scale.spread + self.scale.mean
        return in_units.astype(np.float32)

    def clip(self, predictions: F32) -> F32:
        """Predictions within the range of ratings seen."""
        if not self.counters.ratings:
            return predictions
        return np.clip(predictions, self.counters.low, self.counters.high)


def _root_mean(squares: float, count: int) -> float:
    return math.sqrt(squares / count) if count else math.nan
