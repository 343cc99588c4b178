"""The race: its error rate on generated losses, who is dropped, who leads, who comes back."""

from __future__ import annotations

import json
import math
from statistics import NormalDist

import numpy as np
import pytest

from sparkml_sgdals.race.standings import Race, RaceRules

RATINGS = 1000
AT_ONCE = {"min_ratings": 0, "keep": 1, "tolerance": 0.0}


def run(race, losses, stop=lambda race: False):
    """Feed losses, shape (batches, candidates); all standings."""
    told = []
    for row in losses:
        here = {int(c): float(row[c]) for c in np.flatnonzero(race.alive)}
        told.append(race.step(here, RATINGS))
        if stop(race):
            break
    return told


def generated(rng, gaps, batches, spread=8.0, tails="normal", own=True):
    """Sums of squared errors: a common part that wanders, and each candidate's own noise."""
    common = 2000.0 * np.exp(np.cumsum(rng.normal(0, 0.03, batches)))
    shape = (batches, len(gaps))
    noise = rng.normal(0, 1, shape)
    if tails == "heavy":
        noise = np.clip(rng.standard_t(2, shape), -20, 20)
    if own:
        # the spread of a batch depends on the one before
        noise *= np.exp(0.5 * np.sin(np.arange(batches) / 5.0))[:, None]
    return common[:, None] + np.asarray(gaps) + spread * noise


class TestErrorRate:
    @pytest.mark.long
    @pytest.mark.parametrize("tails", ["normal", pytest.param("heavy", marks=pytest.mark.nightly)])
    def test_the_best_is_seldom_dropped(self, tails, monkeypatch):
        """All equal: the first one is among the best, and goes in fewer than 1 of 10 races."""
        # only told, not decided by
        monkeypatch.setattr(Race, "_bounds", lambda self, pairs: (pairs * 0.0, pairs * 0.0))
        rng = np.random.default_rng(11)
        races, dropped = 120, 0
        for _ in range(races):
            race = Race(6, RaceRules(error_probability=0.1, **AT_ONCE))
            run(race, generated(rng, np.zeros(6), 100, tails=tails), lambda r: not r.alive[0])
            dropped += not race.alive[0]
        assert dropped <= 0.1 * races

    def test_a_test_a_batch_would_not_do(self):
        """The same losses by a t-test at each look: that is wrong far more often."""
        rng = np.random.default_rng(11)
        races, wrong = 200, 0
        for _ in range(races):
            losses = generated(rng, np.zeros(2), 150)
            apart = losses[:, 0] - losses[:, 1]
            counts = np.arange(1, apart.size + 1)
            mean = np.cumsum(apart) / counts
            spread = np.sqrt(np.cumsum(apart**2) / counts - mean**2)
            z = mean[10:] * np.sqrt(counts[10:]) / spread[10:]
            wrong += bool((z > NormalDist().inv_cdf(0.9)).any())
        assert wrong > 0.3 * races

    def test_evidence_of_batches_worse_than_even_does_not_grow(self):
        """Symmetric about a centre below 0: E is expected to be at most 1 after every batch."""
        # one observation x = centre + s, s = +-spread: E exp(l x - l^2 x^2 / 2) <= 1 for l >= 0
        for centre in np.linspace(-4, 0, 41):
            for spread in np.linspace(0, 6, 61):
                x = np.array([centre + spread, centre - spread])
                for rate in (0.05, 0.2, 1.0, 3.0):
                    bet = np.exp(rate * x - rate**2 * x**2 / 2)
                    assert bet.mean() <= 1 + 1e-12

    def test_mixture_is_the_integral(self):
        """E of the docstring against the integral over half-normal rates; ours is a lower bound."""
        race = Race(2, RaceRules(keep=2))
        run(race, generated(np.random.default_rng(2), [25.0, 0.0], 20))
        total, squares = race._pairs["total"][0], race._pairs["squares"][0]
        rates = np.linspace(0, 12, 200_001)
        density = 2 * math.sqrt(2.0 / (2 * math.pi)) * np.exp(-2.0 * rates**2 / 2)
        integral = np.trapezoid(density * np.exp(rates * total - rates**2 * squares / 2), rates)
        found = float(race._evidence(np.array([0]), 0.0)[0])
        assert total > 0
        assert found <= math.log(integral) + 1e-9
        assert found == pytest.approx(math.log(integral), abs=0.02)


class TestDropping:
    def test_the_worst_go_first_and_the_best_leads(self):
        race = Race(4, RaceRules(keep=1, min_ratings=5000))
        told = run(race, generated(np.random.default_rng(5), [0.0, 9.0, 25.0, 60.0], 120))
        when = {s.candidate: batch for batch, rows in enumerate(told) for s in rows if s.dropped}
        assert race.leader == 0
        assert race.alive.tolist() == [True, False, False, False]
        assert when[3] <= when[2] <= when[1]
        assert when[3] >= 4

    def test_nobody_goes_before_the_minimum(self):
        race = Race(3, RaceRules(keep=1, min_ratings=50 * RATINGS))
        told = run(race, generated(np.random.default_rng(5), [0.0, 50.0, 90.0], 60))
        dropped = [batch for batch, rows in enumerate(told) for s in rows if s.dropped]
        assert dropped == [49, 49]

    def test_so_many_are_kept(self):
        race = Race(5, RaceRules(keep=3, min_ratings=0))
        run(race, generated(np.random.default_rng(5), [0.0, 20.0, 40.0, 60.0, 80.0], 100))
        assert np.flatnonzero(race.alive).tolist() == [0, 1, 2]

    def test_bounds_hold_the_difference_and_say_who_was_dropped(self):
        gap = 30.0
        race = Race(2, RaceRules(**AT_ONCE))
        told = run(race, generated(np.random.default_rng(6), [0.0, gap], 100))
        last = [s for rows in told for s in rows if s.candidate == 1][-1]
        assert last.dropped == "worse"
        assert last.rival == 0
        assert last.lower > 0
        assert last.lower < gap / RATINGS < last.upper
        before = [s for rows in told for s in rows if s.candidate == 1][:-1]
        assert all(s.lower is None or s.lower <= 0 for s in before)

    @pytest.mark.long
    def test_bounds_hold_the_truth_at_all_times(self):
        rng, missed, races, gap = np.random.default_rng(8), 0, 80, 2.0
        for _ in range(races):
            race = Race(2, RaceRules(error_probability=0.05, keep=2, min_ratings=0))
            told = run(race, generated(rng, [0.0, gap], 60))
            rows = [s for rows in told for s in rows if s.candidate == 1 and s.lower is not None]
            missed += any(
                s.lower > gap / RATINGS or (s.upper or np.inf) < gap / RATINGS for s in rows
            )
        # two ends
        assert missed <= 0.1 * races

    def test_divergence_drops_at_once(self):
        race = Race(3, RaceRules(keep=3))
        rows = race.step({0: None, 1: 5.0, 2: 4.0}, RATINGS)
        assert [s.dropped for s in rows] == ["diverged", "", ""]
        assert race.leader == 1
        rows = race.step({1: math.inf, 2: 4.0}, RATINGS)
        assert rows[0].dropped == "diverged"
        assert race.leader == 2

    def test_equal_losses_drop_nobody(self):
        race = Race(3, RaceRules(**AT_ONCE))
        for _ in range(50):
            rows = race.step({0: 7.0, 1: 7.0, 2: 7.0}, RATINGS)
        assert race.alive.all()
        assert rows[0].loss == pytest.approx(math.sqrt(7.0 / RATINGS))

    def test_losses_have_to_be_of_those_in_the_race(self):
        with pytest.raises(ValueError, match="in the race are"):
            Race(3, RaceRules()).step({0: 1.0, 1: 1.0}, RATINGS)

    def test_nothing_judged_changes_nothing(self):
        race = Race(2, RaceRules(**AT_ONCE))
        rows = race.step({0: 0.0, 1: 0.0}, 0)
        assert [s.loss for s in rows] == [None, None]
        assert race.ratings.tolist() == [0, 0]

    def test_one_candidate_alone(self):
        race = Race(1, RaceRules())
        assert race.step({0: 3.0}, 10)[0].leads


class TestTolerance:
    """Losses of 2,000 a batch: a tolerance of the root of 0.01 is a gap of 40 of their squares."""

    ZONE = RaceRules(keep=1, min_ratings=0, tolerance=0.01)

    def test_one_that_is_hardly_better_goes_as_equal(self):
        race = Race(3, self.ZONE)
        told = run(race, generated(np.random.default_rng(5), [0.0, 0.5, 1.0], 60))
        reasons = {s.candidate: s.dropped for rows in told for s in rows if s.dropped}
        assert set(reasons.values()) == {"equal"}
        assert race.alive.sum() == 1
        assert race.alive[race.leader]
        gone = next(s for rows in told for s in rows if s.dropped)
        assert gone.rival >= 0
        # not shown to be worse
        assert gone.lower is None or gone.lower < 0

    def test_equal_to_the_bit_as_well(self):
        race = Race(2, self.ZONE)
        told = run(race, np.full((40, 2), 2000.0), lambda race: not race.alive.all())
        assert [s.dropped for s in told[-1]] == ["", "equal"]
        assert 10 < len(told) < 30

    def test_without_it_they_stay(self):
        race = Race(2, RaceRules(**AT_ONCE))
        run(race, generated(np.random.default_rng(5), [0.0, 0.0], 60))
        assert race.alive.all()

    def test_the_worse_go_before_the_equal_and_keep_holds(self):
        race = Race(4, RaceRules(keep=2, min_ratings=0, tolerance=0.01))
        told = run(race, generated(np.random.default_rng(5), [0.0, 1.0, 3.0, 200.0], 80))
        gone = [(s.candidate, s.dropped) for rows in told for s in rows if s.dropped]
        assert gone[0] == (3, "worse")
        assert len(gone) == 2
        assert race.alive.sum() == 2

    @pytest.mark.long
    def test_one_that_is_better_by_more_is_seldom_dropped(self):
        rng, races, dropped = np.random.default_rng(12), 80, 0
        for _ in range(races):
            # better than both by a little more than the tolerance of 1%, below much noise
            race = Race(3, RaceRules(keep=1, min_ratings=0, tolerance=0.01, error_probability=0.1))
            losses = generated(rng, [-50.0, 0.0, 0.0], 120, spread=120.0, own=False)
            run(race, losses, lambda r: not r.alive[0])
            dropped += not race.alive[0]
        assert dropped <= 0.1 * races

    def test_evidence_is_the_test_of_shifted_differences(self):
        """Sums of differences plus the tolerance, each in units known before, by a loop."""
        losses = generated(np.random.default_rng(7), [0.0, 12.0], 30)
        race = Race(2, RaceRules(keep=2, min_ratings=0, tolerance=0.01))
        run(race, losses)
        assert race.leader == 0
        shifted, faded, count, scale, weight = [], np.zeros(2), 0.0, 0.0, 0.0
        for number, row in enumerate(losses):
            if number >= 3:
                zone = (2 * 0.01 - 0.01**2) * faded.min() / count * RATINGS
                unit = math.hypot(math.sqrt(scale / weight), zone)
                shifted.append((row[1] - row[0] + zone) / unit)
            fade = 0.9999**RATINGS
            faded, count = faded * fade + row, count * fade + RATINGS
            scale, weight = scale * 0.95 + (row[0] - row[1]) ** 2, weight * 0.95 + 1
        total, room = sum(shifted), sum(x * x for x in shifted) + 2.0
        half = total**2 / (2 * room)
        expected = math.log(2 - math.exp(-half)) + 0.5 * math.log(2.0 / room) + half
        assert float(race._zone_evidence([1])[0]) == pytest.approx(expected)

    def test_losses_that_are_no_squares_are_told_as_they_are(self):
        race = Race(2, RaceRules(keep=2, squares=False))
        rows = race.step({0: 700.0, 1: 800.0}, RATINGS)
        assert [s.loss for s in rows] == [0.7, 0.8]


class TestChangingWorld:
    def losses(self, rng, batches=240):
        first = generated(rng, [0.0, 15.0, 40.0], batches // 2)
        second = generated(rng, [40.0, 0.0, 20.0], batches // 2)
        return np.vstack([first, second])

    def test_the_order_turns_round(self):
        race = Race(3, RaceRules(keep=2, min_ratings=5000, fading=0.9998))
        told = run(race, self.losses(np.random.default_rng(3)))
        leaders = [next(s.candidate for s in rows if s.leads) for rows in told]
        assert leaders[110] == 0
        assert leaders[-1] == 1

    def test_a_challenger_comes_back_and_wins(self):
        race = Race(2, RaceRules(keep=1, min_ratings=5000, challengers=1, fading=0.9998))
        rng = np.random.default_rng(3)
        losses = np.vstack([generated(rng, [0.0, 40.0], 60), generated(rng, [40.0, 0.0], 60)])
        told = run(race, losses)
        dropped = [b for b, rows in enumerate(told) for s in rows if s.dropped and s.candidate == 1]
        entered = [b for b, rows in enumerate(told) for s in rows if s.entered and s.candidate == 1]
        assert dropped[0] < entered[0]
        # with nothing but what it knows since its entrance
        first = next(s for s in told[entered[0] + 1] if s.candidate == 1)
        assert first.ratings == RATINGS
        assert race.leader == 1

    def test_without_challengers_the_dropped_stay_away(self):
        race = Race(3, RaceRules(keep=1, min_ratings=0))
        told = run(race, generated(np.random.default_rng(5), [0.0, 40.0, 80.0], 60))
        assert not any(s.entered for rows in told for s in rows)


class TestJson:
    def test_a_race_goes_on_from_json_to_the_bit(self):
        losses = generated(np.random.default_rng(9), [0.0, 3.0, 9.0, 27.0], 90)
        rules = RaceRules(keep=1, min_ratings=3000, challengers=1)
        whole, broken = Race(4, rules), Race(4, rules)
        expected = run(whole, losses)
        found = []
        for row in losses:
            broken = Race.from_json(json.loads(json.dumps(broken.to_json(), allow_nan=False)))
            found += run(broken, [row])
        assert found == expected
        assert broken.to_json() == whole.to_json()
