"""What a block does in each step of a fit in blocks (executor).

A step takes the static arrays of a block and the messages addressed to it, and gives messages.
`driver` arranges the steps; the arithmetic is in `block`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.ipc import arrays_from_buffer, arrays_to_buffer, from_bytes, to_buffer
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.fit.blocks.block import (
    BlockLayout,
    BlockState,
    Cell,
    Sums,
    draw,
    learn_cell,
    named_rows,
    sweep_block,
)
from sparkml_sgdals.fit.blocks.features.exchange import (
    BlockFeatures,
    given_features,
    kept_features,
)
from sparkml_sgdals.fit.blocks.files import Statics, static_name
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.layout import as_ids
from sparkml_sgdals.fit.blocks.messages import OTHER, SIDES, Job, Message, SideName
from sparkml_sgdals.kernels.checks import check_rows
from sparkml_sgdals.kernels.filter import standardise
from sparkml_sgdals.kernels.predict import clipped_squares
from sparkml_sgdals.learn.noise import in_units
from sparkml_sgdals.learn.solvers import sweeps_settled
from sparkml_sgdals.state.model_state import ModelState

__all__ = [
    "GlobalState",
    "Half",
    "NameRows",
    "Start",
    "Step",
    "Stratum",
    "final_states",
    "kept_messages",
    "send_messages",
    "state_message",
    "sums_messages",
]


Step = Callable[[Statics, Inbox], Iterator[Message]]


@dataclass(frozen=True)
class GlobalState:
    """What every block knows of the whole: noise, prior variances by side, training RMSE.

    Attributes
    ----------
    expected : tuple[float, ...]
        expected square error of a rating after each sweep, which tells when to stop
    users : int
        how many have ratings; 0 before their first half-sweep
    weight : float
        of the ratings behind the noise; 0 before the first sweep
    """

    noise: float
    priors: dict[SideName, npt.NDArray[np.float32]]
    history: tuple[float, ...]
    expected: tuple[float, ...]
    users: int
    weight: float

    @classmethod
    def read(cls, inbox: Inbox, job: Job) -> GlobalState:
        """Return what the block knew, brought up to date by the sums that have come in."""
        noise = job.settings.noise
        priors: dict[SideName, npt.NDArray[np.float32]] = {}
        history: tuple[float, ...] = ()
        expected: tuple[float, ...] = ()
        users, weight = 0, 0.0
        for side in SIDES:
            for payload in inbox.all(side, "learned").values():
                held = arrays_from_buffer(payload)
                noise = float(held["noise"][0])
                history, expected = (tuple(held[n].tolist()) for n in ("history", "expected"))
                priors = {name: held[name] for name in SIDES if name in held}
                users, weight = int(held["users counted"][0]), float(held["weight"][0])
        for side in SIDES:
            rows = [arrays_from_buffer(b)["sums"] for b in inbox.all(side, "sums").values()]
            if rows:
                total = Sums.total(rows)
                if job.fresh:
                    priors[side] = total.prior()
                if side == "users":
                    users = total.ids
                else:
                    weight = total.weight
                    expected = (*expected, (total.squares + total.variances) / weight)
                    if job.fresh:
                        noise = expected[-1]
                    history = (*history, math.sqrt(total.squares / weight))
        return cls(noise, priors, history, expected, users, weight)

    def settled(self, tol: float) -> bool:
        """Whether sweeps may end."""
        return sweeps_settled(self.expected, tol)

    def finish_noise(self, users: BlockState, job: Job) -> None:
        """Put the noise of a block's users, learned in a sweep, in units of what that sweep gave.

        That of items was learned by theirs, so that it is in these by now.
        """
        if job.fresh and self.expected:
            a, known = users.arrays, (job.settings.noise, *self.expected)
            a["noise_factor"] = in_units(a["noise_factor"], a["count"], known[-2], self.noise)

    def to_buffer(self) -> pa.Buffer:
        """Return the payload of a message, which `read` reads."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "noise": np.array([self.noise]),
            "history": np.array(self.history, np.float64),
            "expected": np.array(self.expected, np.float64),
            "users counted": np.array([self.users]),
            "weight": np.array([self.weight]),
        }
        return arrays_to_buffer(arrays | dict(self.priors))


def state_message(
    statics: Statics, target: int, side: SideName, source: int, state: BlockState
) -> Message:
    """Return the message that hands the state of a block of a side on."""
    return (target, side, source, "state", statics.park(side, source, state.arrays))


@dataclass(frozen=True)
class Start:
    """States of the blocks of one number; then, where told, the stratum that they make."""

    job: Job
    learn: bool
    kinds: ClassVar[tuple[str, ...]] = ("ids", "cell", "rows", "given")
    stratum: ClassVar[int] = 0

    def __call__(self, statics: Statics, inbox: Inbox) -> Iterator[Message]:
        """Yield the block's states, or what `Stratum` yields of the stratum that they make."""
        own = inbox.block
        states = {side: self._state(statics, inbox, side) for side in SIDES}
        for side in SIDES:
            ids = None if states[side] is None else self._ids(statics, side, own)
            yield from given_features(statics, inbox, side, ids)
        users, items = states["users"], states["items"]
        if self.learn:
            yield from Stratum(self.job, 0).learned(statics, own, users, items)
            return
        for side, state in states.items():
            if state is not None:
                yield state_message(statics, own, side, own, state)

    def _state(self, statics: Statics, inbox: Inbox, side: SideName) -> BlockState | None:
        job, own = self.job, inbox.block
        if not job.has_block(side, own):
            return None
        counts = statics.arrays(static_name("ids", side, own, own))["count"]
        known = inbox.all(side, "known").get(own)
        rows = None
        if not job.fresh:
            rows = self._no_rows(side) if known is None else from_bytes(known)
        vectors = inbox.all(side, "vectors").get(own)
        starts = None
        if vectors is not None:
            starts = SparseRows.of(from_bytes(vectors))[0], job.features[list(SIDES).index(side)]
        ids = self._ids(statics, side, own)
        state = BlockState.start(SIDES[side], ids, counts, job.settings, rows, starts)
        if side == "users":
            state.arrays["prequential"] = np.zeros(3)
        return state

    def _ids(self, statics: Statics, side: SideName, own: int) -> pa.Array:
        return as_ids(statics.arrays(static_name("ids", side, own, own))["id"])

    def _no_rows(self, side: SideName) -> pa.Table:
        empty = ModelState.empty(self.job.settings, *self.job.kinds)
        return (empty.users if side == "users" else empty.items).to_arrow()


@dataclass(frozen=True)
class Stratum:
    """Learn a stratum rating by rating: block u of users with block u + `stratum` of items."""

    job: Job
    number: int
    kinds: ClassVar[tuple[str, ...]] = ("cell", "rows")

    @property
    def stratum(self) -> int:
        """The number of the stratum within its pass."""
        return self.number % self.job.num_blocks

    def __call__(self, statics: Statics, inbox: Inbox) -> Iterator[Message]:
        """Yield the two blocks' states once the stratum is learned."""
        own = inbox.block
        partner = (own + self.number) % self.job.num_blocks
        yield from kept_features(inbox)
        yield from self.learned(
            statics, own, inbox.state(statics, "users", own), inbox.state(statics, "items", partner)
        )

    def learned(
        self, statics: Statics, own: int, users: BlockState | None, items: BlockState | None
    ) -> Iterator[Message]:
        """Messages of a block of users that holds these states."""
        job, number = self.job, self.number
        blocks = job.num_blocks
        partner = (own + number) % blocks
        if users is not None and items is not None and job.has_cell("users", own, partner):
            a = statics.arrays(static_name("cell", "users", own, partner), check=True)
            rows = {
                "users": statics.arrays(static_name("rows", "users", own, partner)),
                "items": statics.arrays(static_name("rows", "items", partner, own)),
            }
            for side, state in (("users", users), ("items", items)):
                check_rows(rows[side]["rows"], state.arrays["mean"].shape[0], side)
            # positions in the cell are checked by NumPy, as they are looked up
            cell = Cell(
                rows["users"]["rows"][a["users"]],
                rows["items"]["rows"][a["items"]],
                standardise(a["values"], *job.scale),
                a["weights"],
            )
            errors, baseline = learn_cell(cell, users, items, job.settings, number < blocks)
            # the later half of the first pass: what a model has learned so far is judged
            if blocks // 2 <= number < blocks:
                counted = users.arrays["prequential"]
                counted += _clipped_squares(a["values"], errors, baseline, job)
        if users is not None:
            yield state_message(statics, own, "users", own, users)
        if items is not None:
            # where the next stratum wants it; after a whole pass that is at home
            home = (partner - number - 1) % blocks
            yield state_message(statics, home, "items", partner, items)


def _clipped_squares(
    values: npt.NDArray[np.float32],
    errors: npt.NDArray[np.float32],
    baseline: npt.NDArray[np.float32],
    job: Job,
) -> npt.NDArray[np.float64]:
    sums = [float(values.size)]
    for apart in (errors, baseline):
        sums.append(clipped_squares(values, apart, job.scale[1], *job.value_range))
    return np.array(sums)


def kept_messages(inbox: Inbox, side: SideName, learned: pa.Buffer) -> Iterator[Message]:
    """Yield what a half-sweep hands on to its own block: the whole, and the other side."""
    own, partner_side = inbox.block, OTHER[side]
    yield own, side, own, "learned", learned
    passenger = inbox.all(partner_side, "state").get(own)
    if passenger is not None:
        yield own, partner_side, own, "state", passenger


def sums_messages(
    job: Job, side: SideName, own: int, sums: dict[str, npt.NDArray[Any]]
) -> Iterator[Message]:
    """Yield a block's sums, told to all blocks."""
    payload = arrays_to_buffer(sums)
    for target in range(job.num_blocks):
        yield target, side, own, "sums", payload


def send_messages(
    block: BlockLayout, side: SideName, own: int,
    named: Callable[[npt.NDArray[np.int32]], dict[str, npt.NDArray[Any]]],
) -> Iterator[Message]:  # fmt: skip
    """Yield what the other side's blocks have to know of the ids that they name."""
    for target, rows in enumerate(block.sends):
        if rows.size:
            yield target, side, own, "send", arrays_to_buffer(named(rows))


@dataclass(frozen=True)
class Half:
    """A half-sweep: the ids of one side of a block, with the factors of their partners fixed.

    Attributes
    ----------
    learn : bool
        False: only send factors to where the other side's half-sweep wants them, moved to where
        features say that they lie
    send : bool
        whether another half-sweep follows
    check : bool
        whether this reads the layout for the first time
    """

    job: Job
    side: SideName
    learn: bool = True
    send: bool = True
    check: bool = False
    kinds: ClassVar[tuple[str, ...]] = ("layout",)
    stratum: ClassVar[None] = None

    def __call__(self, statics: Statics, inbox: Inbox) -> Iterator[Message]:
        """Yield the block's state, its sums, and what its partners' blocks have to know of it."""
        job, side, own = self.job, self.side, inbox.block
        learned = GlobalState.read(inbox, job)
        yield from kept_messages(inbox, side, learned.to_buffer())
        features = {name: BlockFeatures.read(statics, inbox, job, name) for name in SIDES}
        for known in features.values():
            if known is not None:
                yield from known.to_keep()
        state = inbox.state(statics, side, own)
        if state is None:
            return
        if learned.settled(job.settings.tol):
            # all blocks see the same sums, and hand on what they have from here on
            yield state_message(statics, own, side, own, state)
            return
        arrays = statics.arrays(static_name("layout", side, own, own), self.check)
        block = BlockLayout.from_arrays(arrays)
        own_features, prior = features[side], learned.priors.get(side)
        if own_features is not None:
            own_features.put(state, prior)
        if self.learn:
            sums = self._sweep(statics, block, state, inbox, learned)
            yield from sums_messages(job, side, own, {"sums": sums.to_array()})
            if own_features is not None:
                yield from own_features.sums(statics, state, prior)
        message = state_message(statics, own, side, own, state)
        yield message
        if not self.send:
            return
        if statics.parked(message[-1]) is not None:
            # those who name ids of this block read their rows where the state lies
            for target, rows in enumerate(block.sends):
                if rows.size:
                    yield target, side, own, "send", message[-1]
            return
        named = partial(named_rows, state, settings=job.settings, fresh=job.fresh)
        yield from send_messages(block, side, own, named)

    def _partners(self, statics: Statics, inbox: Inbox) -> dict[str, npt.NDArray[Any]]:
        """Return what this block has to know of its partners, block by block in their order."""
        job, own, side = self.job, inbox.block, OTHER[self.side]
        given: list[tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.int32] | None]] = []
        for source, payload in inbox.all(side, "send").items():
            lying = statics.parked(payload)
            if lying is None:
                given.append((arrays_from_buffer(payload, copy=False), None))
                continue
            rows = statics.arrays(static_name("rows", side, source, own))["rows"]
            check_rows(rows, lying["mean"].shape[0], side)
            given.append((lying, rows))
        sizes = [a["mean"].shape[0] if rows is None else rows.size for a, rows in given]
        ends = np.cumsum(sizes).tolist()
        partners: dict[str, npt.NDArray[Any]] = {}
        # one block of them at a time lies in memory twice: together they are most of a task
        for (arrays, rows), size, end in zip(given, sizes, ends, strict=True):
            named = arrays
            if rows is not None:
                named = named_rows(BlockState(arrays), rows, job.settings, job.fresh)
            for name, part in named.items():
                if name not in partners:
                    partners[name] = np.empty((ends[-1], *part.shape[1:]), part.dtype)
                partners[name][end - size : end] = part
        return partners

    def _sweep(
        self, statics: Statics, block: BlockLayout, state: BlockState, inbox: Inbox,
        learned: GlobalState,
    ) -> Sums:  # fmt: skip
        job, side, partner_side = self.job, self.side, OTHER[self.side]
        partners = self._partners(statics, inbox)
        prior, threads = learned.priors.get(side), job.task_threads()
        if job.fresh and job.settings.draws_prior:
            priors = prior, learned.priors.get(partner_side)
            draw(block, state, partners, priors, side, job.settings, threads)
        return sweep_block(
            block, state, (partners["mean"], partners["var"]), prior, learned.noise,
            job.settings, threads, partners.get("noise_factor"),
            learned.users if side == "items" else 0,
        )  # fmt: skip


def final_states(
    statics: Statics, inbox: Inbox, job: Job
) -> tuple[dict[SideName, BlockState | None], list[Message]]:
    """Return a block's states with prior means as last learned, and what the driver is told."""
    states = {side: inbox.state(statics, side, inbox.block) for side in SIDES}
    learned = GlobalState.read(inbox, job)
    told: list[Message] = []
    for side, state in states.items():
        if state is not None and side == "users":
            learned.finish_noise(state, job)
        features = BlockFeatures.read(statics, inbox, job, side)
        if features is None:
            continue
        if state is not None:
            features.put(state, learned.priors.get(side))
        told.append(features.furthest(statics))
        if inbox.block == 0:
            # all blocks know the same
            told.append(features.told())
    return states, told


@dataclass(frozen=True)
class NameRows:
    """Put the ids back to the states: rows of a factor table; what else the driver has to know."""

    job: Job
    kinds: ClassVar[tuple[str, ...]] = ("ids", "given")
    stratum: ClassVar[None] = None

    def __call__(self, statics: Statics, inbox: Inbox) -> Iterator[Message]:
        """Yield the rows of the block's ids, and the sums and values for the driver."""
        own = inbox.block
        states, told = final_states(statics, inbox, self.job)
        yield from told
        for side, number in SIDES.items():
            state = states[side]
            if state is not None:
                ids = as_ids(statics.arrays(static_name("ids", side, own, own))["id"])
                rows = to_buffer(state.table(number, ids, self.job.settings))
                yield own, side, own, "rows", rows
                if side == "users":
                    counted = {"prequential": state.arrays["prequential"]}
                    yield own, side, own, "prequential", arrays_to_buffer(counted)
            for kind in ("learned", "sums"):
                for source, payload in inbox.all(side, kind).items():
                    yield own, side, source, kind, payload
