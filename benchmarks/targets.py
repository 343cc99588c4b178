"""What the benchmarks must and should show: the only place where these numbers stand."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """One claim: a ratio of a result file, what it must be, and what is wanted.

    Attributes
    ----------
    file, ratio : name of the result in out/, and of the figure in its `ratios`
    at_most : whether less is better
    """

    what: str
    file: str
    ratio: str
    must: float | None
    goal: float | None = None
    at_most: bool = False

    def holds(self, measured: float) -> bool | None:
        """Whether the measured figure is what it must be; None where nothing is demanded."""
        if self.must is None:
            return None
        return measured <= self.must if self.at_most else measured >= self.must


def _small(name: str, text: str) -> list[Target]:
    ratio = "ALS takes so many times as long"
    return [
        Target(f"{text}, warm: {ratio}", "small_fit", f"{name}, warm", 1, 10),
        Target(f"{text}, cold: {ratio}", "small_fit", f"{name}, cold", 1),
    ]


TARGETS: tuple[Target, ...] = (
    Target("fit of 26 million: ALS takes so many times as long", "large_fit",
           "ALS to StreamingBiasedALS", 4, 6),
    Target("fitParquet of 26 million: ALS takes so many times as long", "large_fit",
           "ALS to fitParquet", 4, 6),
    Target("fit of 26 million: RMSE lower than that of ALS by", "large_fit", "RMSE gained", 0.008),
    Target("fit of 26 million: times the floor", "large_fit", "StreamingBiasedALS to its floor",
           2, 1.3, at_most=True),
    Target("fitParquet of 26 million: times the floor", "large_fit", "fitParquet to its floor",
           2, 1.3, at_most=True),
    Target("fit in 2 blocks: times the one-task form", "large_fit", "blocks to one task",
           1.4, at_most=True),
    *_small("ml-latest-small", "fit of ml-latest-small"),
    *_small("1 million", "fit of 1 million"),
    Target("transform: ALSModel takes so many times as long", "recommend", "transform", 1.2, 1.5),
    Target("recommendForAllUsers: ALSModel takes so many times as long", "recommend",
           "recommendForAllUsers", 5, 10),
    Target("recommendForUserSubset: ALSModel takes so many times as long", "recommend",
           "recommendForUserSubset", 5, 10),
    Target("trigger: dearest model size to the cheapest", "model_size", "dearest to cheapest",
           1.15, at_most=True),
    *(
        Target(f"trigger of {size} ratings{source}: times a stream that discards them", "streaming",
               f"ours to discard, {size} ratings a trigger{source}", must, goal, at_most=True)
        for size, must, goal in (("1,000", 1.25, 1.10), ("100,000", 1 / 0.75, 1 / 0.9))
        for source in ("", " from Kafka")
    ),
    Target("grid: ALS takes so many times as long", "grid", "ALS", None),
    Target("fit time grows with ratings to the power of", "scale", "exponent", None, at_most=True),
    Target("2 cores: times as fast as 1", "scale", "1 core to 2", None),
)  # fmt: skip
