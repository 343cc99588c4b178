"""One version of a model as requests see it: ids to rows, rows to factors."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.hashing import ITEM_SIDE, USER_SIDE
from sparkml_sgdals.arrays.id_index import IdIndex
from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.learn.events import EventDraws
from sparkml_sgdals.learn.least_squares import beside_user
from sparkml_sgdals.serving.model.changed_items import Changes
from sparkml_sgdals.serving.model.event_side import EventSide, ItemKeys
from sparkml_sgdals.serving.model.ids import Key, find_rows
from sparkml_sgdals.serving.model.mapped import Candidates, MappedSide
from sparkml_sgdals.state.event_scores import Anchors
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import Commit

__all__ = ["ServedModel"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ServedModel:
    """One version, as requests see it.

    Attributes
    ----------
    commit : Commit
        the version's number, time and metrics
    shell : ModelState
        a ModelState of no ids with the version's scale, counters and noise
    users, items : MappedSide
        their factors
    candidates : Candidates
        the items, laid out to be ranked
    changes : Changes
        items that versions wrote since all were loaded
    events : EventSide | None
        what a model of events remembers besides; None for models of ratings
    kinds, id_types
        kinds of ids of users and items, and Spark's names of their types
    clip : bool
        whether predictions are kept within the range of ratings seen
    anchors : Anchors | None
        what filter and table of a user are weighed by; None but where a table of events was fitted
    joined : I64
        rows of items that no version holds
    """

    commit: Commit
    shell: ModelState
    users: MappedSide
    items: MappedSide
    candidates: Candidates
    indexes: tuple[IdIndex, IdIndex]
    kinds: tuple[IdKind, IdKind]
    id_types: tuple[str, str]
    clip: bool
    lock: threading.Lock
    changes: Changes
    events: EventSide | None = None
    item_keys: ItemKeys | None = None
    anchors: Anchors | None = None
    joined: I64 = field(default_factory=lambda: np.empty(0, np.int64))

    @cached_property
    def draws(self) -> EventDraws:
        """What negatives of somebody's events are drawn from; of models of events by 'bayes'."""
        assert self.events is not None
        assert self.item_keys is not None
        memory = self.events.memory(partners=False)
        with self.lock:
            order = self.item_keys.order(memory.last.size)
        return EventDraws.of(memory, self.shell.events_learned, order)

    @property
    def version(self) -> int:
        """Number of the version."""
        return self.commit.version

    @property
    def settings(self) -> Settings:
        """What the model learns by."""
        return self.shell.settings

    def user_rows(self, ids: list[Key]) -> I64:
        """Rows of users, -1 where not known."""
        with self.lock:
            return find_rows(self.indexes[0], ids, self.users.size)

    def item_rows(self, ids: list[Key]) -> I64:
        """Rows of items, -1 where not known."""
        with self.lock:
            return find_rows(self.indexes[1], ids, self.items.size)

    def named_items(self, texts: list[Key]) -> list[Key]:
        """Ids of items as an address names them: one by one, or several with commas between.

        A text that is an item's id as a whole is that item, whatever is in it.
        """
        whole = self.item_rows(texts) >= 0
        return [
            part
            for text, known in zip(texts, whole.tolist(), strict=True)
            for part in ([text] if known else [one for one in str(text).split(",") if one])
        ]

    def weight_beside(self) -> float:
        """Return what is put beside the weight of a user's events where the table is asked."""
        return beside_user(self.shell, lambda: int(np.count_nonzero(self.items.taste[:, 0])))

    def item_ids(self, rows: I64) -> list[Key]:
        """Ids of rows of items."""
        with self.lock:
            found: list[Key] = self.indexes[1].ids(rows).to_pylist()
        return found

    def scratch(self, user_rows: I64, item_rows: I64) -> ModelState:
        """Return a small ModelState of its own, with the state of some users and items."""
        with self.lock:
            ids = self.indexes[0].ids(user_rows), self.indexes[1].ids(item_rows)
        shell, kinds = self.shell, self.kinds
        items = self.items.table(ITEM_SIDE, kinds[1], ids[1], item_rows)
        if self.events is not None:
            items.memory = self.events.memory(item_rows, partners=False)
        return ModelState(
            replace(shell.settings, num_partners=0),
            self.users.table(USER_SIDE, kinds[0], ids[0], user_rows),
            items,
            shell.scale,
            shell.counters,
            shell.noise,
            shell.noise_weight,
            events_learned=shell.events_learned,
            popularity_parts=shell.popularity_parts,
            filter_share=shell.filter_share,
            regularisation=shell.regularisation,
            weights_beside=shell.weights_beside,
            features=shell.features,
        )
