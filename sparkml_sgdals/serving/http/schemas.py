"""What goes in and out over HTTP, with examples: the OpenAPI document is made of these."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StringConstraints

__all__ = [
    "AnonymousIn",
    "Because",
    "Curve",
    "CurvePoint",
    "Explanation",
    "FeaturesOut",
    "Found",
    "FoundItem",
    "ItemIn",
    "ItemRating",
    "ItemsIn",
    "JoinedOut",
    "ModelInfo",
    "PartOut",
    "Popular",
    "PopularItem",
    "Prediction",
    "Problem",
    "RatingIn",
    "RatingsIn",
    "ReceiptOut",
    "Recommendation",
    "Recommendations",
    "Similar",
    "SimilarItem",
    "Status",
    "UserIn",
    "UserRating",
    "UserRatings",
    "UsersIn",
    "VersionOut",
    "Versions",
]


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 4.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Whole = BeforeValidator(_whole)
# limits go into the document as floats: this one is exact, and near the end of 64 bits; an id
# beyond it can be sent as a string
Whole = Annotated[StrictInt, Field(ge=-9 * 10**18, le=9 * 10**18), _Whole]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Id = Whole | Name
AnyId = StrictInt | str
Stars = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
EventId = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[ -~]+$")]
Seconds = Annotated[StrictInt, Field(ge=0, le=253402300799), _Whole]


Text = Annotated[str, StringConstraints(max_length=256)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e12, le=1e12)]
Feature = bool | Number | Text | Annotated[list[Text], Field(max_length=1000)] | None


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Problem(BaseModel):
    """Why a request was refused."""

    detail: Any = Field(examples=["There is no model yet."])


class ItemRating(_In):
    """An item and a rating of it."""

    item: Id = Field(examples=[1])
    rating: Stars | None = Field(
        default=None, description="needed but of events, where it is 1", examples=[4.5]
    )


class AnonymousIn(_In):
    """Ratings of somebody whom the model need not know; nothing of them is kept."""

    ratings: list[ItemRating] = Field(max_length=1000)
    n: Annotated[StrictInt, Field(ge=1, le=1000), _Whole] = Field(
        default=10, description="how many items"
    )
    exclude_seen: bool | None = Field(
        default=None,
        description="leave out the items rated here; by default so, but where events show that "
        "items come again",
    )
    items: list[Id] | None = Field(
        default=None, max_length=1000, description="choose from these only"
    )


class RatingIn(_In):
    """A rating, or an event. `timestamp` in seconds since 1970, now by default."""

    user: Id = Field(examples=[1])
    item: Id = Field(examples=[318])
    rating: Stars | None = Field(
        default=None, description="needed but of events, where it is 1", examples=[4.5]
    )
    timestamp: Seconds | None = Field(default=None, examples=[1260759144])
    eventId: EventId | None = Field(  # noqa: N815 - a field of the stream's messages
        default=None, description="the same in each delivery of one rating", examples=["5f0c-1"]
    )


RatingsIn = RatingIn | Annotated[list[RatingIn], Field(min_length=1, max_length=1000)]


class _About(_In):
    features: dict[Name, Feature] = Field(
        max_length=1000,
        description="what is known of it, by the names of the table that the model was fitted with",
        examples=[{"genres": ["Comedy", "Romance"], "year": 2024}],
    )
    timestamp: Seconds | None = None


class ItemIn(_About):
    """An item that nobody has rated yet, with what is known of it."""

    item: Id = Field(examples=[900001])
    title: Annotated[str, StringConstraints(min_length=1, max_length=500)] | None = Field(
        default=None, examples=["A film of tomorrow (2024)"]
    )


class UserIn(_About):
    """A user who has rated nothing yet, with what is known of them."""

    user: Id = Field(examples=[900001])


ItemsIn = ItemIn | Annotated[list[ItemIn], Field(min_length=1, max_length=1000)]
UsersIn = UserIn | Annotated[list[UserIn], Field(min_length=1, max_length=1000)]


class JoinedOut(BaseModel):
    """They count as known at once, and the stream adds them to the model."""

    accepted: int = Field(examples=[1])
    repeated: int = Field(description="of these, taken before under the same key", examples=[0])
    unknown: list[str] = Field(
        description="what the model has learned nothing of", examples=[["genres=Western"]]
    )


class FeaturesOut(BaseModel):
    """What may be known of users and of items: names, and of categories their values."""

    users: dict[str, list[str]] = Field(examples=[{}])
    items: dict[str, list[str]] = Field(examples=[{"year": [], "genres": ["Comedy", "Drama"]}])


class ReceiptOut(BaseModel):
    """The ratings are on the disk, or in Kafka, and will be learned."""

    accepted: int = Field(description="ratings of the request, repeated ones too", examples=[1])
    repeated: int = Field(description="of these, taken before under the same key", examples=[0])


class Because(BaseModel):
    """One of the user's own ratings, and what it adds to the prediction, in rating units."""

    item: AnyId = Field(examples=[50])
    title: str | None = Field(examples=["Usual Suspects, The (1995)"])
    rating: float = Field(examples=[5.0])
    share: float = Field(examples=[0.12])
    liked: bool = Field(
        description="rated above the mean, and above what item and user make of that: sentences "
        "name no other"
    )


class Recommendation(BaseModel):
    """An item, the predicted rating, and the deviation of a rating from that."""

    item: AnyId = Field(examples=[318])
    title: str | None = Field(examples=["Shawshank Redemption, The (1994)"])
    genres: list[str] = Field(default_factory=list, description="as --titles names them")
    prediction: float = Field(examples=[4.61])
    std: float | None = Field(description="null where the solver knows none", examples=[0.83])
    ratings: int = Field(description="ratings of the item", examples=[317])
    reason: str | None = Field(default=None, description="with reasons=true")
    because: list[Because] | None = Field(default=None, description="with reasons=true")


class Recommendations(BaseModel):
    """The best items for a user, best first."""

    user: AnyId | None = Field(examples=[1])
    version: int = Field(examples=[12])
    cold: bool = Field(description="the user is not known: items by mean and bias")
    learned: int = Field(description="ratings of the user that the model has learned")
    items: list[Recommendation]


class Prediction(BaseModel):
    """A predicted rating; `cold` where user or item is not known and their prior stands in."""

    user: AnyId = Field(examples=[1])
    item: AnyId = Field(examples=[318])
    title: str | None
    version: int
    cold: bool
    prediction: float
    std: float | None


class PartOut(BaseModel):
    """A part of a prediction, as a row of `StreamingBiasedALSModel.explain`."""

    part: str = Field(examples=["item bias"])
    value: float | None
    std: float | None
    ratings: int | None
    note: str


class Explanation(Prediction):
    """Why a prediction is what it is."""

    parts: list[PartOut]
    because: list[Because]
    reason: str
    drawn: float | None = Field(
        description="of the features, what is left of the small numbers drawn by the user's id "
        "that they started at; null where that is not known, and of events"
    )


class SimilarItem(BaseModel):
    """An item and the cosine of its features with those asked about."""

    item: AnyId
    title: str | None
    genres: list[str] = Field(default_factory=list, description="as --titles names them")
    similarity: float


class Similar(BaseModel):
    """Items like one, most alike first; none where the item is not known (`cold`)."""

    item: AnyId
    title: str | None
    version: int
    cold: bool
    items: list[SimilarItem]


class PopularItem(BaseModel):
    """An item, its ratings, and what somebody of whom nothing is known would give it."""

    item: AnyId
    title: str | None
    genres: list[str] = Field(default_factory=list, description="as --titles names them")
    ratings: int
    prediction: float


class Popular(BaseModel):
    """The items with the most ratings."""

    version: int
    items: list[PopularItem]


class UserRating(BaseModel):
    """A rating that the service knows of."""

    item: AnyId
    title: str | None
    genres: list[str] = Field(default_factory=list, description="as --titles names them")
    rating: float
    timestamp: int | None


class UserRatings(BaseModel):
    """A user's ratings, newest last; `learned` counts those in the model, known here or not."""

    user: AnyId
    version: int
    learned: int
    ratings: list[UserRating]


class FoundItem(BaseModel):
    """An item that fits a search; `ratings` is 0 where the model does not know it."""

    item: AnyId
    title: str | None
    genres: list[str] = Field(default_factory=list, description="as --titles names them")
    ratings: int


class Found(BaseModel):
    """Items that fit a search, those with the most ratings first."""

    items: list[FoundItem]


class VersionOut(BaseModel):
    """A version kept under the model path; errors are from before its batch was learned."""

    version: int
    batch: int
    committed: str
    ratings: int = Field(description="learned in all")
    rmse: float | None
    baseline_rmse: float | None
    validation_rmse: float | None
    restored: int | None
    serving: bool


class Versions(BaseModel):
    """The version that serves, and the newest ones kept."""

    serving: int
    versions: list[VersionOut]


class CurvePoint(BaseModel):
    """A micro-batch: all ratings up to it, and the errors."""

    version: int
    committed: str
    ratings: int
    batch_ratings: int
    rmse: float | None
    baseline_rmse: float | None
    validation_rmse: float | None
    recall: float | None = Field(description="of events: of the next one, among the best")
    baseline_recall: float | None = Field(description="by popularity alone")


class Curve(BaseModel):
    """RMSE of the micro-batches, oldest first."""

    points: list[CurvePoint]


class ModelInfo(BaseModel):
    """What a page has to know of the model."""

    version: int
    committed: str
    users: int
    items: int
    ratings: int
    user_id: str = Field(description="Spark's type of user ids", examples=["int"])
    item_id: str = Field(description="Spark's type of item ids", examples=["int"])
    lowest: float | None = Field(description="lowest rating taken", examples=[0.5])
    highest: float | None = Field(description="highest rating taken", examples=[5.0])
    events: bool = Field(description="learned from events (implicitPrefs), not from ratings")
    table: bool = Field(description="of events, fitted as a table without times, which alone ranks")
    titles: int = Field(description="titles known")
    writes: bool = Field(description="whether ratings can be posted")
    token: bool = Field(description="whether posting needs a token")


class Status(BaseModel):
    """Whether the service may be used, and why."""

    ready: bool
    detail: str
