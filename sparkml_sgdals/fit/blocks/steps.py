"""The steps of a fit in blocks, in their order (driver), and what is noted of each (executor)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from sparkml_sgdals.fit.blocks.ends import whole_known
from sparkml_sgdals.fit.blocks.events.exchange import DescendHalf, NameEvents, StartEvents
from sparkml_sgdals.fit.blocks.exchange import Half, NameRows, Start, Stratum
from sparkml_sgdals.fit.blocks.files import Statics
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.messages import Job
from sparkml_sgdals.fit.blocks.to_path import WriteRuns
from sparkml_sgdals.fit.plan import Plan
from sparkml_sgdals.fit.progress import TaskProgress
from sparkml_sgdals.learn.solvers import EARLIEST_STOP
from sparkml_sgdals.store.large.in_runs import RunSink

__all__ = [
    "HANDED_ON", "Naming", "Noted", "Step", "Steps", "event_steps", "last_step", "may_settle",
    "rating_steps", "stops_of",
]  # fmt: skip

Naming = NameRows | NameEvents | WriteRuns
Step = Start | Stratum | Half | StartEvents | DescendHalf | Naming
Steps = list[tuple[str, Step, int | None]]
"""name of the phase, step, and the stop that is reached by it"""


HANDED_ON: Final = 3
"""steps after which a state is read at the latest: two of the other side hand it on"""


def last_step(job: Job, sink: RunSink | None) -> Naming:
    """Return what is made of the states in the end: rows for the driver, or runs in the sink."""
    if sink is not None:
        return WriteRuns(job, sink)
    return NameEvents(job) if job.settings.fits_events else NameRows(job)


def stops_of(job: Job, plan: Plan) -> tuple[int, ...]:
    """Return the passes after which to keep a model, as the blocks' solver counts them."""
    return plan.stops if job.fresh or job.settings.solver == "bayes" else (1,)


def event_steps(job: Job, plan: Plan, lams: tuple[float, float]) -> Steps:
    """Return the steps of events, with the lambda of users and of items."""
    steps: Steps = [("start", StartEvents(job), None)]
    for sweep in range(1, plan.stops[-1] + 1):
        name, again = f"sweep {sweep}", sweep < plan.stops[-1]
        steps.append((name, DescendHalf(job, "users", lams[0]), None))
        steps.append((name, DescendHalf(job, "items", lams[1], send=again), sweep))
    return steps


def rating_steps(job: Job, plan: Plan, moves: tuple[bool, bool] = (False, False)) -> Steps:
    """Return the steps of ratings; the start learns a stratum too.

    Sides with features move to where these say in a step of their own, between what all blocks
    tell of them and what partners are sent.
    """
    bayes, stops = job.settings.solver == "bayes", stops_of(job, plan)
    untouched = not bayes and 0 in stops
    steps: Steps = []
    for stratum in range((1 if bayes else stops[-1]) * job.num_blocks):
        passes, rest = divmod(stratum + 1, job.num_blocks)
        stop = None if rest else (0 if bayes else passes)
        learned = stratum == 0 and not untouched
        steps.append(("filter", Start(job, True) if learned else Stratum(job, stratum), stop))
    if bayes and stops[-1]:
        steps.append(("sweep 1", Half(job, "items", learn=False, check=True), None))
        for sweep in range(1, stops[-1] + 1):
            name, again = f"sweep {sweep}", sweep < stops[-1]
            steps.append((name, Half(job, "users", send=not moves[0], check=sweep == 1), None))
            if moves[0]:
                steps.append((name, Half(job, "users", learn=False), None))
            steps.append((name, Half(job, "items", send=again and not moves[1]), sweep))
            if moves[1] and again:
                steps.append((name, Half(job, "items", learn=False), None))
    return steps


def may_settle(job: Job, plan: Plan, stop: int | None) -> bool:
    """Whether learning may end with a step by which this stop is reached."""
    possible = job.settings.solver == "bayes" and job.settings.tol > 0 and stop is not None
    return possible and stop in range(EARLIEST_STOP, stops_of(job, plan)[-1])


@dataclass(frozen=True)
class Noted:
    """A step whose messages are rows, and which its block notes once it is done."""

    step: Step
    note: TaskProgress | None

    def __call__(self, statics: Statics, inbox: Inbox) -> Iterator[pa.RecordBatch]:
        """Yield the messages of the step."""
        job = self.step.job
        for message in self.step(statics, inbox):
            yield job.batch(message)
        if self.note is not None:
            history = whole_known(inbox, job).history
            rmse = history[-1] * job.scale[1] if history else None
            place = replace(self.note, task=inbox.block)
            place.write(self.note.task, rmse)
