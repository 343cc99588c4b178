"""What a served model of events has besides factors: who did what last, and popularity (no Spark).

Scores are those of `event_scores.serving_state`, made a user at a time: that of an item is the
logarithm of its share of events, its bias, and the product of its features with the user's, to
which the items that the user did last add.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.arrays.id_index import IdIndex
from sparkml_sgdals.kernels.events.filter import CONTEXT_DECAY, CONTEXT_ITEMS
from sparkml_sgdals.kernels.events.partners import LATEST_ITEMS
from sparkml_sgdals.serving.model.mapped import map_array
from sparkml_sgdals.state.event_memory import ItemMemory, UserMemory
from sparkml_sgdals.state.event_scores import heard_from, popularity_logs
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.partners import Partners
from sparkml_sgdals.state.settings import Settings

__all__ = ["EventSide", "ItemKeys"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_NOTHING: Final[I32] = np.empty(0, np.int32)


class ItemKeys:
    """Rows of items by the 64-bit keys that models keep of what users did."""

    def __init__(self) -> None:
        self._index = IdIndex("int")
        self._order = np.empty(0, np.int64)

    def add(self, ids: pa.Array) -> None:
        """Take further items, in the order of their rows."""
        self._index.add(pa.array(id_keys(ids).view(np.int64)))

    def rows(self, keys: I64) -> I32:
        """Rows of the items of these keys; those not known any more are left out."""
        found = self._index.find(pa.array(keys))
        return found[found >= 0].astype(np.int32)

    def find(self, keys: I64) -> I64:
        """Rows of the items of these keys, -1 where not known any more."""
        found: I64 = self._index.find(pa.array(keys))
        return found

    def order(self, size: int) -> I64:
        """Return what sorts the first `size` items by their keys."""
        held = self._order
        if held.size != size:
            rows = np.arange(size)
            self._order = held = np.argsort(self._index.ids(rows).to_numpy().view(np.uint64))
        return held

    def done(self, users: FactorTable) -> list[I32]:
        """Return what each user of a table has done, as rows, the last done last."""
        memory = users.memory
        assert isinstance(memory, UserMemory)
        return [self.rows(keys) if keys.size else _NOTHING for keys in memory.done[: users.size]]


class EventSide:
    """One copy of it.

    Attributes
    ----------
    done
        int32 rows of items for each user, the last done last; an array is never changed
    last
        number of each user's last event, 0 where it is not known
    """

    def __init__(self, folder: str, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        self.size = 0
        self.done: list[I32] = []
        self.last: list[int] = []
        self._arrays = ItemMemory(settings).arrays

    @property
    def nbytes(self) -> int:
        """Bytes mapped, room for growth included."""
        return sum(array.nbytes for array in self._arrays.values())

    def put(
        self, user_rows: I64, done: list[I32], last: I64, item_rows: I64, items: FactorTable,
        sizes: tuple[int, int],
    ) -> None:  # fmt: skip
        """Set rows of users and of items; there are `sizes` of them from now on."""
        new = sizes[0] - len(self.done)
        self.done.extend([_NOTHING] * new)
        self.last.extend([0] * new)
        for row, own in zip(user_rows.tolist(), done, strict=True):
            self.done[row] = own
        for row, number in zip(user_rows.tolist(), last.tolist(), strict=False):
            self.last[row] = number
        memory, size = items.memory, sizes[1]
        assert isinstance(memory, ItemMemory)
        for name, old in self._arrays.items():
            if size > old.shape[0]:
                room = max(size, 2 * old.shape[0] if old.size else size + size // 8, 256)
                grown = map_array(self._folder, (room, *old.shape[1:]), old.dtype)
                grown[: self.size] = old[: self.size]
                self._arrays[name] = grown
            self._arrays[name][item_rows] = memory.arrays[name]
        self.size = size

    def memory(self, rows: I64 | None = None, partners: bool = True) -> ItemMemory:
        """Return what is remembered of items: a copy of `rows`, or views of all in use.

        Parameters
        ----------
        rows : I64 | None
            int64, rows of items
        partners : bool
            whether what stands together is among it
        """
        kept = self._settings.num_partners if partners else 0
        found = ItemMemory(replace(self._settings, num_partners=kept))
        for name, array in self._arrays.items():
            if found.arrays[name].shape[1:] == array.shape[1:]:
                found.arrays[name] = array[: self.size] if rows is None else array[rows]
            else:
                found.arrays[name] = np.empty((found.last.size, 0), array.dtype)
        found.partner_rows = np.full(found.partner.shape, -1, np.int32)
        return found

    def partners(
        self, shell: ModelState, keys: ItemKeys, done: I32, shares: F64 | None, taste: F32,
        least: float,
    ) -> Partners | None:  # fmt: skip
        """Return what stands together with what one user did last; None where nothing is learned.

        Parameters
        ----------
        shell : ModelState
            of the version
        keys : ItemKeys
            of the items
        done : I32
            int32, rows of what the user has done, the last done last
        shares : F64 | None
            float64, shape (1,), as `partner_shares`
        taste : F32
            float32, shape (table rank + 1,), of the user, as the column of that name
        least : float
            what is added to all scores
        """
        if shares is None:
            return None
        last = done[: -LATEST_ITEMS - 1 : -1].astype(np.int64)
        memory = self.memory(last)
        latest = np.full((1, LATEST_ITEMS), -1, np.int32)
        latest[0, : last.size] = np.arange(last.size)
        return heard_from(
            shell, memory.paired_strengths(), memory.look_up(keys.find), last, latest, shares,
            taste[None, :], least,
        )  # fmt: skip

    def partner_shares(self, shell: ModelState, last: int, done: I32) -> F64 | None:
        """Return how far partners are believed of one user, float64, shape (1,); None without them.

        Parameters
        ----------
        shell : ModelState
            of the version
        last : int
            number of the user's last event, 0 where it is not known
        done : I32
            int32, rows of what the user has done
        """
        if not self._settings.pairs_items or not shell.events_learned:
            return None
        return shell.partners.shares(
            shell.events_learned, np.array([last], np.int64), np.array([done.size], np.int64)
        )

    def popularity(self, shell: ModelState, counts: I64) -> tuple[F32, float]:
        """Return logarithms of the items' shares of events, and what is added to all scores.

        Parameters
        ----------
        shell : ModelState
            of the version: events learned, shares of the parts of popularity
        counts : I64
            int64, shape (items,), events of the items
        """
        if self._settings.solver != "bayes" or not self.size:
            return np.zeros(self.size, np.float32), 0.0
        return popularity_logs(shell, self.memory(), counts)

    def context(self, done: I32) -> tuple[I32, F32]:
        """Return the items done last, newest first, and what each adds to a user's features.

        Returns rows, and float32 of shape (rows, rank); nothing where the solver has none.
        """
        held = self._arrays["context"]
        if not held.shape[1]:
            return _NOTHING, np.empty((0, self._settings.rank), np.float32)
        last = done[: -CONTEXT_ITEMS - 1 : -1]
        weights = CONTEXT_DECAY ** np.arange(last.size)
        norm = float(np.sqrt(np.sum(weights**2))) or 1.0
        return last, ((weights / norm)[:, None] * held[last]).astype(np.float32)
