"""A race between models that learn from one stream: who leads, who is dropped, on what evidence.

After each batch every pair of candidates is compared by the difference of their summed squared
prequential errors on the same ratings. A candidate is dropped when a one-sided confidence sequence
shows a rival to be better; looking after every batch is allowed for. Arrays, no Spark.

The test is the self-normalised confidence sequence of Howard, Ramdas, McAuliffe and Sekhon 2021
(one-sided normal mixture, section 3.2; the supermartingale is that of de la Pena 1999, lemma 6.1).
With x_t the difference of batch t in units of a scale known before it, S = sum x_t and
V = sum x_t^2,

    E = 2 Phi(S / sqrt(V + r)) sqrt(r / (V + r)) exp(S^2 / (2 (V + r)))

stays below 1 / a for ever with probability at least 1 - a, if each x_t, given all before it, is
spread symmetrically about a centre of at most 0. Nothing is assumed of its variance, tails or
range, of how ratings depend on each other within a batch (a batch is one observation), or of how
the spread of one batch depends on those before. a = errorProbability / (candidates - 1), one test
for each rival. So one that is never worse than any rival, given the past, is ever dropped with at
most `errorProbability`, counted anew for a challenger from its entrance.

With a tolerance a candidate goes as well where it is shown that it is not better than the leader by
more than that share of its loss (an indifference zone): the same test of x_t + g_t, with g_t the
tolerance in the units of x_t, known before the batch. There are then two tests for each rival, at
half of a each, and the guarantee is of a candidate that is better than any rival by more than it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["Race", "RaceRules", "Standing"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_PILOT: Final = 3
"""Batches of a pair that only set its scale."""
_MIXTURE: Final = 2.0
"""r above, in batches: tightest bounds after some 30 of them."""
_DOUBLINGS: Final = 7
_HALVINGS: Final = 30
_SCALE_FADE: Final = 0.95
"""What a batch counts in the scale of a pair when the next one comes."""
_PAIR: Final = (
    "batches", "scale", "scaleWeight", "total", "weight", "squares", "mixed", "weights", "faded",
    "zoneTotal", "zoneShift", "zoneSquares", "zoneMixed", "zoneShifts",
)  # fmt: skip


@dataclass(frozen=True)
class RaceRules:
    """What a race is run by.

    Attributes
    ----------
    error_probability : float
        that the best candidate is ever dropped, at most
    keep : int
        candidates that are never fewer, but by divergence
    min_ratings : int
        predicted ratings since its entrance before a candidate can be dropped, or lead
    challengers : int
        dropped candidates that may be back in the race at a time
    fading : float
        what a rating counts in a candidate's loss when the next one comes
    tolerance : float
        share of the leader's loss that a candidate has to be better by, where that is put to the
        test; 0 for no such test
    squares : bool
        whether losses are squared errors, told as the root of their mean
    """

    error_probability: float = 0.05
    keep: int = 2
    min_ratings: int = 5_000
    challengers: int = 0
    fading: float = 0.9999
    tolerance: float = 0.002
    squares: bool = True


@dataclass(frozen=True)
class Standing:
    """A candidate after a batch.

    Attributes
    ----------
    candidate : int
        its number
    ratings : int
        predicted since its entrance
    loss : float | None
        mean with the fading factor, of squared errors its root; None before the first prediction
    rival : int
        who it is compared with: the leader, for the leader the strongest other, and where it was
        dropped the one that showed it to be worse; -1 for none
    lower, upper : float | None
        bounds on its mean loss (squared error) minus the rival's since both run, each with the
        error probability of one test; None where there is none yet
    leads, entered : bool
        whether it leads after this batch, or enters the race after it
    dropped : str
        "" or why it was dropped: "worse", "equal" (better by the tolerance at most) or "diverged"
    """

    candidate: int
    ratings: int
    loss: float | None
    rival: int
    lower: float | None
    upper: float | None
    leads: bool
    entered: bool
    dropped: str


class Race:
    """The standings of a race; a function of the losses of the batches in order.

    Attributes
    ----------
    alive : npt.NDArray[np.bool_]
        shape (candidates,), who is in the race
    leader : int
        the candidate with the least loss, in fair comparison with each other one
    """

    def __init__(self, candidates: int, rules: RaceRules) -> None:
        self.rules = rules
        self.candidates = candidates
        self.alive = np.ones(candidates, bool)
        self.leader = 0
        self.ratings = np.zeros(candidates, np.int64)
        self._loss = np.zeros(candidates)
        self._loss_count = np.zeros(candidates)
        self._challenger = np.zeros(candidates, bool)
        self._queue: list[int] = []
        """dropped candidates, the longest dropped first"""
        self._since_change = 0
        # a pair stands for the first minus the second; the first has the lower number
        self._first, self._second = np.triu_indices(candidates, 1)
        self._pairs = {name: np.zeros(self._first.size) for name in _PAIR}

    # ---- a batch ----------------------------------------------------------------------------

    def step(self, losses: dict[int, float | None], judged: int) -> list[Standing]:
        """Take a batch into account.

        Parameters
        ----------
        losses : dict[int, float | None]
            of every candidate in the race the sum of its losses, of squared errors in rating units;
            None for one that diverged
        judged : int
            ratings behind each of them, 0 where nothing was predicted

        Raises
        ------
        ValueError
            the losses are not those of the candidates in the race
        """
        running = [int(c) for c in np.flatnonzero(self.alive)]
        if sorted(losses) != running:
            raise ValueError(f"losses are of {sorted(losses)}, in the race are {running}.")
        dropped: dict[int, tuple[str, int]] = {}
        sums = np.full(self.candidates, np.nan)
        self._since_change += judged
        for candidate, loss in losses.items():
            if loss is None or not math.isfinite(loss):
                dropped[candidate] = ("diverged", -1)
                self._drop(candidate)
            else:
                sums[candidate] = loss
        if judged:
            self._count(sums, judged)
        self._choose_leader()
        for reason, found in (("worse", self._beaten), ("equal", self._no_better)):
            for candidate, rival in found():
                dropped[candidate] = (reason, rival)
                self._drop(candidate)
        standings = self._standings(running, dropped)
        entered = self._entrance()
        return standings if entered is None else [*standings, entered]

    def _count(self, sums: F64, judged: int) -> None:
        fade = self.rules.fading**judged
        here = np.isfinite(sums)
        zone = self._zone() * judged
        self.ratings[here] += judged
        self._loss[here] = self._loss[here] * fade + sums[here]
        self._loss_count[here] = self._loss_count[here] * fade + judged
        both = np.flatnonzero(here[self._first] & here[self._second])
        pairs = self._pairs
        difference = sums[self._first[both]] - sums[self._second[both]]
        pairs["faded"][both] = pairs["faded"][both] * fade + difference
        spread = np.sqrt(pairs["scale"][both] / np.maximum(pairs["scaleWeight"][both], 1e-300))
        counts = (pairs["batches"][both] >= _PILOT) & (spread > 0.0)
        told = both[counts]
        scaled = difference[counts] / spread[counts]
        size = judged / spread[counts]
        for name, value in (
            ("total", scaled), ("weight", size), ("squares", scaled**2), ("mixed", scaled * size),
            ("weights", size**2),
        ):  # fmt: skip
            pairs[name][told] += value
        self._count_zone(both, difference, spread, zone[both])
        pairs["scale"][both] = pairs["scale"][both] * _SCALE_FADE + difference**2
        pairs["scaleWeight"][both] = pairs["scaleWeight"][both] * _SCALE_FADE + 1.0
        pairs["batches"][both] += 1.0

    def _zone(self) -> F64:
        """Return each pair's tolerance in units of loss a rating, from what was seen before."""
        means = np.full(self.candidates, np.inf)
        np.divide(self._loss, self._loss_count, out=means, where=self._loss_count > 0.0)
        best = np.minimum(means[self._first], means[self._second])
        share = self.rules.tolerance
        if self.rules.squares:
            # a root that is smaller by a share, a mean of squares that is smaller by nearly twice
            share *= 2.0 - share
        return np.where(np.isfinite(best), best, 0.0) * share

    def _count_zone(self, both: I64, difference: F64, spread: F64, zone: F64) -> None:
        counts = (self._pairs["batches"][both] >= _PILOT) & (zone > 0.0)
        told = both[counts]
        # no shift is above one unit, however small differences are
        unit = np.hypot(spread[counts], zone[counts])
        scaled, shift = difference[counts] / unit, zone[counts] / unit
        for name, value in (
            ("zoneTotal", scaled), ("zoneShift", shift), ("zoneSquares", scaled**2),
            ("zoneMixed", scaled * shift), ("zoneShifts", shift**2),
        ):  # fmt: skip
            self._pairs[name][told] += value

    def _choose_leader(self) -> None:
        """Let the one lead that is best against the leader, over ratings that both predicted."""
        best, gain = -1, 0.0
        for candidate in np.flatnonzero(self.alive):
            ahead = self._against(self.leader, int(candidate))
            known = self.ratings[candidate] >= self.rules.min_ratings or not self._is_new(candidate)
            if candidate != self.leader and known and ahead > gain:
                best, gain = int(candidate), ahead
        if best < 0 and not self.alive[self.leader]:
            # the leader diverged, and nobody is known to be better
            best = int(np.flatnonzero(self.alive)[0])
        if best >= 0:
            self.leader = best
            self._challenger[best] = False

    def _is_new(self, candidate: np.intp | int) -> bool:
        return bool(self._challenger[candidate])

    def _beaten(self) -> list[tuple[int, int]]:
        """Who is to go, and whom each is worse than; the strongest evidence first."""
        rules = self.rules
        spare = int(self.alive.sum()) - rules.keep
        if spare <= 0 or self.candidates < 2:
            return []
        found: dict[int, tuple[float, int]] = {}
        evidence = self._evidence(np.arange(self._first.size), 0.0)
        for pair in np.flatnonzero(evidence >= self._threshold()):
            ends = int(self._first[pair]), int(self._second[pair])
            worse, rival = ends if self._pairs["total"][pair] > 0 else ends[::-1]
            told = (float(evidence[pair]), rival)
            if (
                self.alive[worse]
                and self.alive[rival]
                and worse != self.leader
                and self.ratings[worse] >= rules.min_ratings
                # one that was worse and has become better stays
                and self._against(worse, rival) > 0.0
                and told > found.get(worse, (-1.0, -1))
            ):
                found[worse] = told
        order = sorted(found, key=lambda worse: (-found[worse][0], worse))
        return [(worse, found[worse][1]) for worse in order[:spare]]

    def _no_better(self) -> list[tuple[int, int]]:
        """Return who is not better than the leader by the tolerance, each with the leader.

        The one furthest behind comes first.
        """
        rules = self.rules
        spare = int(self.alive.sum()) - rules.keep
        if spare <= 0 or rules.tolerance <= 0.0:
            return []
        rivals = [
            int(c)
            for c in np.flatnonzero(self.alive & (self.ratings >= rules.min_ratings))
            if c != self.leader
        ]
        evidence = self._zone_evidence(rivals)
        found = [c for c, e in zip(rivals, evidence, strict=True) if e >= self._threshold()]
        found.sort(key=lambda c: (-self._against(c, self.leader), c))
        return [(c, self.leader) for c in found[:spare]]

    def _zone_evidence(self, candidates: list[int]) -> F64:
        """Return log E that these are not better than the leader by more than the tolerance."""
        pairs = np.array([self._pair(c, self.leader) for c in candidates], np.int64)
        p = {name: values[pairs] for name, values in self._pairs.items()}
        side = np.where(np.array(candidates) < self.leader, 1.0, -1.0)
        total = side * p["zoneTotal"] + p["zoneShift"]
        squares = p["zoneSquares"] + 2.0 * side * p["zoneMixed"] + p["zoneShifts"]
        return np.where(total > 0.0, _log_evidence(total, squares), -np.inf)

    def _drop(self, candidate: int) -> None:
        self.alive[candidate] = False
        self._challenger[candidate] = False
        self._since_change = 0
        self._queue.append(candidate)

    def _entrance(self) -> Standing | None:
        """Bring the one dropped longest ago back, where a place is free and it is time."""
        rules = self.rules
        back = int(self._challenger.sum())
        if not self._queue or back >= rules.challengers or self._since_change < rules.min_ratings:
            return None
        candidate = self._queue.pop(0)
        self._since_change = 0
        self.alive[candidate] = self._challenger[candidate] = True
        self.ratings[candidate] = 0
        self._loss[candidate] = self._loss_count[candidate] = 0.0
        own = (self._first == candidate) | (self._second == candidate)
        for values in self._pairs.values():
            values[own] = 0.0
        return Standing(candidate, 0, None, -1, None, None, False, True, "")

    # ---- evidence ---------------------------------------------------------------------------

    def _threshold(self) -> float:
        tests = max(self.candidates - 1, 1) * (2 if self.rules.tolerance > 0.0 else 1)
        return math.log(tests / self.rules.error_probability)

    def _evidence(self, pairs: I64, mean: F64 | float) -> F64:
        """Return log E, by a lower bound of Phi, against a mean difference on one side of `mean`.

        The side is that of at most `mean` where the total is above it, else of at least `mean`.
        """
        p = {name: values[pairs] for name, values in self._pairs.items()}
        total = p["total"] - mean * p["weight"]
        squares = p["squares"] - 2.0 * mean * p["mixed"] + mean * mean * p["weights"]
        return _log_evidence(total, squares)

    def _bounds(self, pairs: I64) -> tuple[F64, F64]:
        """Return the ends of the mean differences a rating, about the one seen, not rejected.

        They are infinite where the evidence does not reach so far.
        """
        weight = self._pairs["weight"][pairs]
        told = np.flatnonzero(weight > 0.0)
        ends = np.full((2, pairs.size), np.inf)
        # both sides at once
        both, weight = np.tile(pairs[told], 2), np.tile(weight[told], 2)
        side = np.repeat([-1.0, 1.0], told.size)
        centre = self._pairs["total"][both] / weight
        inside = np.zeros(both.size)
        outside = np.sqrt(self._pairs["squares"][both] + _MIXTURE) / weight
        threshold = self._threshold()
        for _ in range(_DOUBLINGS):
            short = self._evidence(both, centre + side * outside) < threshold
            inside = np.where(short, outside, inside)
            outside = np.where(short, outside * 2.0, outside)
        open_end = self._evidence(both, centre + side * outside) < threshold
        for _ in range(_HALVINGS):
            middle = 0.5 * (inside + outside)
            short = self._evidence(both, centre + side * middle) < threshold
            inside, outside = np.where(short, middle, inside), np.where(short, outside, middle)
        ends[:, told] = np.where(open_end, np.inf, centre * side + outside).reshape(2, -1)
        return -ends[0], ends[1]

    def _pair(self, one: int, other: int) -> int:
        """Place of a pair of different candidates."""
        low, high = min(one, other), max(one, other)
        return low * self.candidates - low * (low + 1) // 2 + high - low - 1

    def _against(self, one: int, other: int) -> float:
        """Faded squared errors of one minus those of another."""
        if one == other:
            return 0.0
        value = float(self._pairs["faded"][self._pair(one, other)])
        return value if one < other else -value

    # ---- what is told -----------------------------------------------------------------------

    def _standings(self, running: list[int], dropped: dict[int, tuple[str, int]]) -> list[Standing]:
        rivals = {c: self._rival(c, dropped) for c in running}
        compared = [c for c in running if rivals[c] >= 0]
        pairs = np.array([self._pair(c, rivals[c]) for c in compared], np.int64)
        lower, upper = self._bounds(pairs)
        bounds: dict[int, tuple[float | None, float | None]] = {}
        for place, c in enumerate(compared):
            low, high = float(lower[place]), float(upper[place])
            if c > rivals[c]:
                low, high = -high, -low
            bounds[c] = _finite(low), _finite(high)
        standings = []
        for c in running:
            loss = None
            if self._loss_count[c] and dropped.get(c, ("",))[0] != "diverged":
                loss = float(self._loss[c] / self._loss_count[c])
                loss = math.sqrt(loss) if self.rules.squares else loss
            standings.append(
                Standing(
                    c,
                    int(self.ratings[c]),
                    loss,
                    rivals[c],
                    *bounds.get(c, (None, None)),
                    leads=c == self.leader,
                    entered=False,
                    dropped=dropped.get(c, ("", -1))[0],
                )
            )
        return standings

    def _rival(self, candidate: int, dropped: dict[int, tuple[str, int]]) -> int:
        if candidate in dropped:
            return dropped[candidate][1]
        if candidate != self.leader:
            return self.leader
        others = [int(c) for c in np.flatnonzero(self.alive) if c != candidate]
        return max(others, key=lambda other: (self._against(candidate, other), -other), default=-1)

    # ---- as JSON ----------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types, the inverse of `from_json`, to the last bit."""
        return {
            "rules": asdict(self.rules),
            "alive": self.alive.tolist(),
            "leader": self.leader,
            "ratings": self.ratings.tolist(),
            "loss": self._loss.tolist(),
            "lossCount": self._loss_count.tolist(),
            "challenger": self._challenger.tolist(),
            "queue": list(self._queue),
            "sinceChange": self._since_change,
            "pairs": {name: values.tolist() for name, values in self._pairs.items()},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Race:
        """Return a race from what `to_json` gave."""
        race = cls(len(values["alive"]), RaceRules(**values["rules"]))
        race.alive = np.array(values["alive"], bool)
        race.leader = int(values["leader"])
        race.ratings = np.array(values["ratings"], np.int64)
        race._loss = np.array(values["loss"], np.float64)
        race._loss_count = np.array(values["lossCount"], np.float64)
        race._challenger = np.array(values["challenger"], bool)
        race._queue = list(values["queue"])
        race._since_change = int(values["sinceChange"])
        race._pairs = {n: np.array(values["pairs"][n], np.float64) for n in _PAIR}
        return race


def _log_evidence(total: F64, squares: F64) -> F64:
    """Return log E of the sums S and V, from below."""
    room = np.maximum(squares, 0.0) + _MIXTURE
    half = total**2 / (2.0 * room)
    # 2 Phi(z) >= 2 - exp(-z^2 / 2)
    evidence: F64 = np.log(2.0 - np.exp(-half)) + 0.5 * np.log(_MIXTURE / room) + half
    return evidence


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
