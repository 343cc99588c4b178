"""Where ids that a model of events does not know stand by their features, as it is served."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.state.event_scores import Anchors, memories_of, popularity_logs, table_alone
from sparkml_sgdals.state.feature_weights import FeatureWeights
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["EventStarts", "event_starts"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EventStarts:
    """Gives ids of one side the rows that `event_scores.serving_state` gives those it knows.

    Attributes
    ----------
    weights : FeatureWeights
        of the side
    width : int
        numbers of a mean
    anchors : Anchors | None
        what brings two judgements of a user to one unit; None for items
    alone : bool
        whether the table alone judges
    fitted : bool
        whether features tell of what a table says; else of what is learned event by event
    """

    weights: FeatureWeights
    width: int
    anchors: Anchors | None
    alone: bool
    fitted: bool = True

    def of(self, rows: SparseRows) -> tuple[F32, F32]:
        """Means and tastes, float32, shapes (rows, rank + 1) and (rows, table rank + 1)."""
        taste = self.weights.start_means(rows)
        if not self.fitted:
            return taste, np.empty((len(taste), 0), np.float32)
        mean = np.zeros((len(taste), self.width), np.float32)
        if self.anchors is not None:
            taste[:, 0] = 1.0
            mean[:, 0], taste[:, 0] = self.anchors.weights(taste, mean[:, 1:], None)
        else:
            taste[:, 0] = 0.0 if self.alone else mean[:, 0] - taste[:, 0]
        return mean, taste


def event_starts(
    state: ModelState, served: ModelState
) -> tuple[EventStarts | None, EventStarts | None]:
    """Return where users and items start, None where nothing is learned of their features.

    Parameters
    ----------
    state : ModelState
        a model of events
    served : ModelState
        what `serving_state` made of it
    """
    anchors, alone = None, table_alone(state)
    fitted = state.settings.fits_events
    if state.features[0] is not None and fitted:
        popularity = popularity_logs(state, memories_of(state)[1], state.items.count)
        anchors = Anchors(
            state, state.items, served.items.mean[:, 0], popularity,
            state.items.index.by_key,
        )  # fmt: skip
    width = state.settings.rank + 1
    users, items = (
        None if weights is None else EventStarts(weights, width, judge, alone, fitted)
        for weights, judge in zip(state.features, (anchors, None), strict=True)
    )
    return users, items
