"""What is known of how well the version served predicts: told, warned of, and at most a gate."""

from __future__ import annotations

import logging
from typing import Final

from sparkml_sgdals.serving.model.holder import ModelHolder
from sparkml_sgdals.state.diagnosis import ENOUGH, Diagnosis
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.commit import Commit

__all__ = ["Judge", "verdict"]

logger = logging.getLogger(__name__)

_LOOKED_AT: Final = 100
"""versions kept, the newest ones, of which one that did well opens the gate at a start"""


class Judge:
    """Judges each version that is taken up; warns when one does worse than its baseline again.

    Attributes
    ----------
    good : bool | None
        whether the version served is known to beat its baseline, None before there is one
    detail : str
        why, in a sentence
    passed : bool
        whether a version has beaten its baseline, or one was gone back to on purpose
    """

    def __init__(self) -> None:
        self.good: bool | None = None
        self.detail = "Nothing is served yet."
        self.passed = False

    def look(self, shell: ModelState, commit: Commit) -> None:
        """Judge the version that is served from now on."""
        good, self.detail = verdict(shell, commit)
        if self.good and not good:
            logger.warning(
                "version %d is served, the one before did better: %s", commit.version, self.detail
            )
        self.good = good
        self.passed = self.passed or good or commit.restored is not None

    def look_back(self, holder: ModelHolder) -> None:
        """Let what versions did that are still kept count as well.

        So a service that starts after a rollback is ready as those are that ran before it.
        """
        store = holder.store
        meta = store.meta()
        for number in reversed(store.numbers()[-_LOOKED_AT:]):
            commit = None if self.passed or meta is None else store.sound_commit(number)
            if commit is not None and meta is not None:
                shell = ModelState.empty(commit.settings(meta).unranked(), *meta["kinds"])
                shell.set_scalars(commit.scalars)
                self.passed = verdict(shell, commit)[0] or commit.restored is not None


def verdict(shell: ModelState, commit: Commit) -> tuple[bool, str]:
    """Whether a version is worth serving, and why: as `diagnose`, of events by how many it learned.

    Parameters
    ----------
    shell : ModelState
        its scale and counters, without ids
    commit : Commit
        its numbers
    """
    counters = shell.counters
    if not shell.settings.learns_events:
        diagnosis = Diagnosis(
            ratings=counters.ratings,
            users=commit.ids[0],
            items=commit.ids[1],
            minRatings=0,
            thinUsers=0.0,
            thinItems=0.0,
            evidence="prequential",
            predicted=counters.prequential_ratings,
            rmse=counters.prequential_rmse(),
            baselineRmse=counters.baseline_rmse(),
        )
        return diagnosis.beatsBaseline, diagnosis.verdict
    # a table without times is fitted, and the filter has learned none of it
    learned = counters.ratings if shell.settings.fits_events else shell.events_learned
    if learned < ENOUGH:
        return False, f"Not yet: {learned} events are learned, {ENOUGH:,} are needed."
    return True, f"Yes: {learned:,} events are learned. How well it ranks is not known here."
