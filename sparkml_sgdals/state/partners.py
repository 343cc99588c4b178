"""What stands together with what a user did last, as models that score hear it (no Spark)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.kernels.events.partners import (
    LATEST_ITEMS,
    OFFSETS,
    gaps_of,
    item_boosts,
    pair_boosts,
    partner_shares,
    user_boosts,
)

__all__ = ["PartnerWeight", "Partners", "last_of_lists", "latest_items"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_EVEN: Final = (0.0,) * OFFSETS


@dataclass(frozen=True)
class PartnerWeight:
    """How far partners are believed, and what turns both judgements into probabilities.

    Attributes
    ----------
    share : float
        of partners where nothing is added, the filter having the rest
    filter_sum, partner_sum : float
        what either judgement sums up to over the items that may come, in the mean of events
    typical : float
        share of partners in the mean of events
    by_gap, by_length : tuple[float, ...]
        what the time since a user's last event, and how many items it has done, add to the log-odds
        of the share
    at_rest : tuple[float, ...]
        what the time since a user's last event adds to them besides, for users that have done
        nothing since a table was fitted
    rest_until : int
        number of the last event of that table; 0 where nothing was learned of it
    """

    share: float = 0.3
    filter_sum: float = 1.0
    partner_sum: float = 0.5
    typical: float = 0.3
    by_gap: tuple[float, ...] = _EVEN
    by_length: tuple[float, ...] = _EVEN
    at_rest: tuple[float, ...] = _EVEN
    rest_until: int = 0

    def shares(self, now: int, last: I64, lengths: I64) -> F64:
        """Return how far partners are believed of users.

        Parameters
        ----------
        now : int
            number of events so far
        last, lengths : I64
            int64, shape (n,): number of each user's last event, 0 where it is not known, and how
            many items it has done

        Returns
        -------
        float64, shape (n,)
        """
        by_gap, by_length = np.array(self.by_gap), np.array(self.by_length)
        # as of the event that comes
        found: F64 = partner_shares(now + 1, last, lengths, self.share, by_gap, by_length)
        resting = (last > 0) & (last <= self.rest_until)
        if resting.any():
            odds = np.log(found[resting]) - np.log1p(-found[resting])
            odds += np.array(self.at_rest)[gaps_of(now + 1, last[resting])]
            found[resting] = 1.0 / (1.0 + np.exp(-odds))
        return found

    def beside_filter(self, shares: F64) -> F64:
        """Return what N(y) is multiplied with to be added to exp(s), s being the filter's score."""
        found: F64 = self.beside_probability(shares) * self.filter_sum / (1.0 - shares)
        return found

    def beside_probability(self, shares: F64) -> F64:
        """Return what N(y) is multiplied with where the others' probability has 1 - share."""
        found: F64 = shares / self.partner_sum
        return found


@dataclass(frozen=True)
class Partners:
    """The partners of all items, and what users did last.

    Attributes
    ----------
    latest : I32
        int32, shape (users, 10): rows of the items done last, the last first, then -1
    weights : F32
        float32, shape (users,): what the partners' judgement is multiplied with
    rows, strengths : I32, F32
        shape (items, partners): rows of partners, -1 where there is none, and their parts
    """

    latest: I32
    weights: F32
    rows: I32
    strengths: F32

    def of_pairs(self, users: I64, items: I64) -> F32:
        """Return what is added to exp(score) of pairs, by rows; -1 for an id not known."""
        boosts = np.empty(users.size, np.float32)
        pair_boosts(users, items, self.latest, self.weights, self.rows, self.strengths, boosts)
        return boosts

    def of_users(self, places: I32, size: int) -> tuple[I64, I32, F32]:
        """Return what is added to exp(score) of the items of each user, where it is not 0.

        Parameters
        ----------
        places : I32
            int32, shape (items,): position of each row's item among the candidates, -1 for none
        size : int
            how many candidates there are

        Returns
        -------
        starts, int64 of shape (users + 1,), rising positions, int32, and what is added, float32
        """
        room = int(np.count_nonzero(self.latest >= 0)) * self.rows.shape[1]
        starts = np.empty(len(self.latest) + 1, np.int64)
        positions, boosts = np.empty(room, np.int32), np.empty(room, np.float32)
        end = user_boosts(
            self.latest, self.weights, self.rows, self.strengths, places, size, starts, positions,
            boosts,
        )  # fmt: skip
        return starts, positions[:end], boosts[:end]

    def of_items(self, items: I64) -> tuple[I64, I32, F32]:
        """Return what is added to exp(score) of all users of some items, as `of_users`."""
        boosts = np.empty((items.size, len(self.latest)), np.float32)
        item_boosts(items, self.latest, self.weights, self.rows, self.strengths, boosts)
        which, users = np.nonzero(boosts)
        starts = np.searchsorted(which, np.arange(items.size + 1)).astype(np.int64)
        return starts, users.astype(np.int32), boosts[which, users]

    def of_rows(self, rows: I64) -> Partners:
        """Return the same partners for some users, by rows; -1 for one that is not known."""
        latest = np.full((rows.size, LATEST_ITEMS), -1, np.int32)
        weights = np.zeros(rows.size, np.float32)
        known = rows >= 0
        latest[known], weights[known] = self.latest[rows[known]], self.weights[rows[known]]
        return replace(self, latest=latest, weights=weights)


def latest_items(starts: I64, held: I64) -> I32:
    """Return the items done last, the last first, then -1; int32, shape (users, 10).

    Parameters
    ----------
    starts : I64
        int64, shape (users + 1,), where the items of each user begin in `held`
    held : I64
        int64, rows of items, -1 for one that is not known any more
    """
    known = np.concatenate([[0], np.cumsum(held >= 0)])
    begins = known[starts]
    return last_of_lists(held[held >= 0].astype(np.int32), begins[:-1], np.diff(begins))


def last_of_lists(lists: I32, begins: I64, lengths: I64) -> I32:
    """Return the last ten of each list, the last first, then -1; int32, shape (lists, 10).

    Parameters
    ----------
    lists : I32
        int32, lists one after another, perhaps with room between them
    begins, lengths : I64
        int64, shape (lists,), where each list begins, and how long it is
    """
    last = (begins + lengths)[:, None] - 1 - np.arange(LATEST_ITEMS)
    return np.append(lists, np.int32(-1))[np.where(last >= begins[:, None], last, lists.size)]
