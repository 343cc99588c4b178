"""The models of a race: learning one batch with all of them, and starting one from another.

Arrays in and out, no Spark.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace

from sparkml_sgdals.arrays.ratings import Ratings
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.learn.features.streams import weights_at_rank
from sparkml_sgdals.learn.one_batch import BatchReport, learn_batch
from sparkml_sgdals.learn.whole_table import NO_FEATURES, Features
from sparkml_sgdals.state.event_memory import ItemMemory, UserMemory
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState, Scale
from sparkml_sgdals.state.settings import Settings

__all__ = ["learn_with_all", "started_from", "warm_start"]


def learn_with_all(
    pool: Executor, states: Mapping[int, ModelState], ratings: Ratings,
    features: Features = NO_FEATURES,
) -> dict[int, BatchReport | None]:  # fmt: skip
    """Learn a batch onto each state, in place, side by side; `features` are of its ids.

    Returns
    -------
    the report of each; None for one that diverged, which is then as it was before
    """

    def learn(state: ModelState) -> BatchReport | None:
        try:
            return learn_batch(state, ratings, features)
        except DivergenceError:
            return None

    return dict(zip(states, pool.map(learn, states.values()), strict=True))


def started_from(leader: Settings, settings: Settings) -> Settings:
    """Return the settings of a candidate that starts from a model: the table of events is its."""
    if not settings.learns_events:
        return settings
    return replace(
        settings, table_rank=leader.table_rank, unobserved_weight=leader.unobserved_weight
    )


def warm_start(leader: ModelState, settings: Settings) -> ModelState:
    """Return a model of other settings that starts from what the leader knows.

    Features beyond the leader's rank start as those of new ids do; of more than `settings.rank`
    the first ones are taken. The leader is left as it is. Models of events have one solver both,
    and what a fitted table says is the same in all candidates.
    """
    kinds = leader.users.index.kind, leader.items.index.kind
    state = ModelState.empty(settings, *kinds)
    old = leader.scale
    moments = (old.weight, old.mean, old.squares)
    scale = Scale.of(moments, old.seen, settings.solver == "bayes")
    if settings.solver == leader.settings.solver:
        # after a fit or a load the moments need not give it again
        scale = old
    state.scale = replace(scale, frozen=old.frozen)
    state.counters, state.ranges = leader.counters, leader.ranges
    state.learns_features = leader.learns_features
    users, items = (
        # what a fitted table of events says is the same in all
        weights if weights is None or settings.fits_events else weights_at_rank(weights, settings)
        for weights in leader.features
    )
    state.features = users, items
    ratio = old.spread / state.scale.spread
    if settings.learns_events:
        state.events_learned, state.popularity_parts = (
            leader.events_learned,
            leader.popularity_parts,
        )
    if settings.pairs_items and leader.settings.pairs_items:
        state.partners = leader.partners
    state.repeats = leader.repeats
    if settings.fits_events and leader.settings.fits_events:
        state.filter_share, state.regularisation = leader.filter_share, leader.regularisation
        state.weights_beside = leader.weights_beside
    for own, other in ((state.users, leader.users), (state.items, leader.items)):
        _take_over(own, other, ratio)
    if settings.solver == "bayes" and leader.settings.solver == "bayes":
        state.noise, state.noise_weight = leader.noise * ratio**2, leader.noise_weight
    return state


def _take_over(own: FactorTable, other: FactorTable, ratio: float) -> None:
    rows, _ = own.ensure(other.index.ids(None))
    scaled = other.copy()
    scaled.rescale(0.0, ratio)
    both = own.settings, other.settings
    own.take_over(scaled, rows, both)
    own.bound()
    if isinstance(own.memory, UserMemory) and isinstance(other.memory, UserMemory):
        for row, done in zip(rows.tolist(), other.memory.done, strict=True):
            own.memory.done[row] = done
        if own.memory.last.size and other.memory.last.size:
            own.memory.last[rows] = other.memory.last
    if isinstance(own.memory, ItemMemory) and isinstance(other.memory, ItemMemory):
        own.memory.take_over(other.memory, rows, both)
