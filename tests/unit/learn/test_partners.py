"""What stands together: kernels against slow references, and what a model makes of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.kernels.events.partners import weigh_partners
from sparkml_sgdals.kernels.topn import top_n
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.predictor import Predictor
from sparkml_sgdals.race.candidates import warm_start
from sparkml_sgdals.state.event_scores import score_pairs, serving_state
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.partners import PartnerWeight, latest_items
from sparkml_sgdals.state.parts import state_from_parts, state_parts

SETTINGS = settings_of(
    learns_events=True, rank=3, num_negatives=4, factor_prior=0.5, bias_prior=0.1, init_std=0.3,
    ranking_size=0, num_partners=12, repeat_items=False,
)  # fmt: skip
ITEMS = 12
HALF_LIFE = 200_000.0


def batch(users, items, first=0):
    count = len(users)
    return encode_ratings(
        pa.table(
            {
                "user": pa.array(users, pa.int64()), "item": pa.array(items, pa.int64()),
                "rating": pa.array(np.ones(count, np.float32)),
                "time": pa.array(np.arange(first, first + count)),
            }
        )
    )  # fmt: skip


def learned(settings, users, items, size=7):
    state = ModelState.empty(settings, "int", "int")
    for first in range(0, len(users), size):
        learn_batch(state, batch(users[first : first + size], items[first : first + size], first))
    return state


class Pairs:
    """Pairs as dictionaries: each event fades all that was there, in float64."""

    def __init__(self):
        self.done, self.strengths, self.sums = {}, {}, {}
        self.events, self.last = 0, {}

    def latest(self, user):
        return self.done.get(user, [])[-10:][::-1]

    def add(self, one, other, strength):
        own = self.strengths.setdefault(one, {})
        own[other] = own.get(other, 0.0) + strength
        self.sums[one] = self.sums.get(one, 0.0) + strength

    def learn(self, user, item):
        for k, before in enumerate(self.latest(user)):
            self.add(before, item, (1.7 if before == item else 1.0) / (k + 1))
            if before != item:
                self.add(item, before, 0.7 / (k + 1))
        own = self.done.setdefault(user, [])
        if item in own:
            own.remove(item)
        own.append(item)
        self.events += 1
        self.last[user] = self.events
        left = 0.5 ** (1 / HALF_LIFE)
        for one, partners in self.strengths.items():
            self.sums[one] *= left
            for other in partners:
                partners[other] *= left

    def share(self, user, believed):
        gap = math.floor(math.log(self.events + 1 - self.last[user], 4))
        length = math.floor(math.log2(len(self.done[user])))
        odds = believed.share / (1 - believed.share)
        odds *= math.exp(believed.by_gap[gap] + believed.by_length[length])
        return odds / (1 + odds)

    def says(self, user, item, again):
        latest = self.latest(user)
        total = 0.0
        for k, one in enumerate(latest):
            told = self.strengths.get(one, {}).get(item, 0.0) + 20.0 * again * (one == item)
            total += 0.7**k * told / (self.sums.get(one, 0.0) + 20.0)
        return total / sum(0.7**k for k in range(len(latest)))


@st.composite
def histories(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 60))
    return rng.integers(0, 4, count).tolist(), rng.integers(0, ITEMS, count).tolist()


@given(histories(), st.booleans())
def test_partners_and_scores_equal_the_reference(history, repeats):
    state, slow = learned(replace(SETTINGS, repeat_items=repeats), *history), Pairs()
    again = 1 - len(set(zip(*history, strict=True))) / len(history[0])
    for user, item in zip(*history, strict=True):
        slow.learn(user, item)
    memory, names = state.items.memory, state.items.index.ids()
    by_key = dict(zip(id_keys(names).view(np.int64).tolist(), names.to_pylist(), strict=True))
    for row, item in enumerate(names.to_pylist()):
        there = memory.strength[row] > 0
        found = dict(
            zip(
                [by_key[key] for key in memory.partner[row][there].tolist()],
                memory.strength[row][there].tolist(), strict=True,
            )
        )  # fmt: skip
        # as they stood when they last changed, within 60 events
        assert found == pytest.approx(slow.strengths.get(item, {}), rel=1e-3)
        assert memory.strengths[row, 0] == pytest.approx(slow.sums.get(item, 0.0), rel=1e-3)
    # the filter learns the same without partners
    served = serving_state(state)
    bare = serving_state(learned(replace(SETTINGS, num_partners=0), *history))
    rows = {i: n for n, i in enumerate(names.to_pylist())}
    believed = state.partners
    for user in set(history[0]):
        share = slow.share(user, believed)
        weight = share / (1 - share) * believed.filter_sum / believed.partner_sum
        at = np.full(len(rows), state.users.index.find(pa.array([user]))[0])
        both = np.exp(score_pairs(served, at, np.arange(len(rows))).astype(float))
        alone = np.exp(score_pairs(bare, at, np.arange(len(rows))).astype(float))
        says = [weight * slow.says(user, item, again if repeats else 0.0) for item in rows]
        np.testing.assert_allclose(both, alone + says, rtol=2e-3)


def test_the_weakest_partner_makes_room():
    """Two places: 1 is done before 2 twice, before 3 once; then 4 takes the place of 3."""
    settings = replace(SETTINGS, num_partners=2)
    users = [1, 1, 2, 2, 3, 3, 4, 4]
    state = learned(settings, users, [1, 2, 1, 2, 1, 3, 1, 4], size=8)
    row = state.items.index.find(pa.array([1]))[0]
    memory = state.items.memory
    keys = id_keys(pa.array([2, 4])).view(np.int64).tolist()
    assert memory.partner[row].tolist() == keys
    np.testing.assert_allclose(memory.strength[row], [2.0, 1.0], rtol=1e-4)
    assert memory.strengths[row, 0] == pytest.approx(4.0, rel=1e-4)


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_weights_follow_who_predicted_better(seed, count):
    rng = np.random.default_rng(seed)
    said, odds = rng.random((count, 5)), rng.gamma(1.0, 2.0, (count, 2))
    said[:, 3] = np.floor(4.0 ** rng.uniform(-1, 12, count))
    said[:, 4] = np.floor(2.0 ** rng.uniform(0, 12, count))
    said[rng.random(count) < 0.2, 0] = 0.0
    odds[rng.random(count) < 0.2, 1] = 0.0
    share, filter_sum, partner_sum, typical = 0.3, 1.0, 0.5, 0.3
    by_gap, by_length = np.zeros(10), np.zeros(10)
    for (popular, own, total, since, done), (odd, others) in zip(said, odds, strict=True):
        if popular > 0 and total > 0 and others > 0:
            filter_sum += 0.002 * (others - filter_sum)
            partner_sum += 0.002 * (total - partner_sum)
            # a gap of 0 is not known
            gap = min(int(math.log2(since)) // 2, 9) if since else 9
            length = min(int(math.log2(done)), 9)
            believed = share / (1 - share) * math.exp(by_gap[gap] + by_length[length])
            believed /= 1 + believed
            ours = (1 - believed) * popular * odd / filter_sum
            theirs = believed * own / partner_sum
            right = theirs / (ours + theirs)
            typical += 0.002 * (believed - typical)
            share += 0.002 * (right - believed)
            by_gap[gap] += 0.02 * (right - believed)
            by_length[length] += 0.02 * (right - believed)
    found_gap, found_length = np.zeros(10), np.zeros(10)
    found = weigh_partners(said, odds, 0.3, 1.0, 0.5, 0.3, found_gap, found_length)
    assert found == pytest.approx((share, filter_sum, partner_sum, typical), rel=1e-9)
    np.testing.assert_allclose(found_gap, by_gap, rtol=1e-9)
    np.testing.assert_allclose(found_length, by_length, rtol=1e-9)


def test_partners_are_believed_of_those_who_have_just_done_something():
    """Pairs follow at once; who comes back after long does anything."""
    rng = np.random.default_rng(3)
    users, items = [], []
    for n in range(3000):
        users += [1000 + n, 1000 + n, n % 300]
        first = int(rng.integers(0, 100))
        items += [first, first + 100, int(rng.integers(0, 200))]
    state = learned(replace(SETTINGS, repeat_items=True), users, items, 500)
    now, lengths = state.events_learned, np.array([8, 8])
    soon, late = state.partners.shares(now, np.array([now, now - 900]), lengths)
    assert soon > 2 * late


def test_partners_that_know_are_believed_and_those_that_do_not_are_not():
    """What comes next is told by what came before, for users of whom nothing else is known."""
    rng = np.random.default_rng(1)
    firsts = rng.integers(0, 200, 3000)
    users, told = np.repeat(np.arange(3000), 2), np.column_stack([firsts, firsts + 200]).ravel()
    random = rng.integers(0, 400, 6000)
    sure = learned(SETTINGS, users.tolist(), told.tolist(), size=500).partners.typical
    unsure = learned(SETTINGS, users.tolist(), random.tolist(), size=500).partners.typical
    assert sure > 0.9
    assert unsure < 0.4


@pytest.mark.parametrize("names", [False, True])
def test_a_state_that_travelled_pairs_on_to_the_same_bits(names):
    rng = np.random.default_rng(2)
    users, items = rng.integers(0, 9, 300).tolist(), rng.integers(0, 40, 300).tolist()
    settings = replace(SETTINGS, num_partners=4, repeat_items=None)
    whole, moved = (ModelState.empty(settings, "int", "int") for _ in range(2))
    for first in range(0, 300, 60):
        part = slice(first, first + 60)
        for state in (whole, moved):
            learn_batch(state, batch(users[part], items[part], first))
        moved, _ = state_from_parts(reversed(list(state_parts(moved))))
        assert whole.fingerprint() == moved.fingerprint()
    assert whole.repeats > 0
    assert whole.partners == moved.partners
    at = np.arange(9), np.arange(9)
    found = [score_pairs(serving_state(state), *rows_in(state, *at)) for state in (whole, moved)]
    assert found[0].tolist() == found[1].tolist()


def rows_in(state, users, items):
    return state.users.index.find(pa.array(users)), state.items.index.find(pa.array(items))


def test_an_error_leaves_partners_as_they_were(monkeypatch):
    rng = np.random.default_rng(4)
    users, items = rng.integers(0, 9, 100).tolist(), rng.integers(0, 20, 100).tolist()
    state = learned(replace(SETTINGS, num_partners=4), users, items, 50)
    before = state.fingerprint(), state.items.memory.partner_rows.copy()
    state.users.mean[:, 1] = np.nan
    broken = state.fingerprint()
    with pytest.raises(DivergenceError):
        learn_batch(state, batch(users, [item + 15 for item in items], 100))
    assert state.fingerprint() == broken
    assert before[1].tolist() == state.items.memory.partner_rows.tolist()


@given(st.integers(0, 2**32), st.integers(0, 3000))
def test_the_best_with_boosts_are_the_best_of_all(seed, total):
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(3, 2)).astype(np.float32)
    candidates = rng.normal(size=(2, total)).astype(np.float32)
    dense = rng.random((3, total)) * (rng.random((3, total)) < 0.1) * 5
    which, positions = np.nonzero(dense)
    starts = np.searchsorted(which, np.arange(4)).astype(np.int64)
    boosts = dense[which, positions].astype(np.float32)
    best, scores = top_n(
        queries, candidates, 5, boosts=(starts, positions.astype(np.int32), boosts)
    )
    whole = np.log(np.exp((queries @ candidates).astype(float)) + dense)
    expected = -np.sort(-whole, axis=1)[:, :5]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    for q in range(3):
        np.testing.assert_allclose(whole[q, best[q]], expected[q], rtol=1e-4, atol=1e-5)


def test_boosts_outside_the_candidates_are_refused():
    outside = np.array([0, 1]), np.array([3], np.int32), np.ones(1, np.float32)
    with pytest.raises(IndexError, match="boosted positions"):
        top_n(np.ones((1, 1), np.float32), np.ones((1, 3), np.float32), 1, boosts=outside)


def test_lists_have_what_stands_together_first():
    """Users of pairs (n, n + 20): who has done 5 gets 25, by lists and by predictions."""
    rng = np.random.default_rng(5)
    firsts = rng.integers(0, 20, 400)
    users, items = np.repeat(np.arange(400), 2), np.column_stack([firsts, firsts + 20]).ravel()
    state = learned(SETTINGS, [*users.tolist(), 999], [*items.tolist(), 5], 100)
    predictor = Predictor(state, {}, 0)
    best = predictor.recommend([999], 3, [[5]])
    assert best["item"].iloc[0] == 25
    again = predictor.predict([999] * 3, best["item"])["prediction"]
    np.testing.assert_allclose(again, best["rating"], rtol=1e-5)
    heard = serving_state(state).heard
    dense = [heard.of_pairs(np.full(40, x), np.arange(40)) for x in range(state.users.size)]
    starts, who, boosts = heard.of_items(np.arange(40))
    for y in range(40):
        own = slice(starts[y], starts[y + 1])
        column = np.zeros(state.users.size, np.float32)
        column[who[own]] = boosts[own]
        np.testing.assert_allclose(column, [row[y] for row in dense], rtol=1e-5)


def test_latest_items_skip_what_is_not_known_any_more():
    starts, held = np.array([0, 0, 3, 15]), np.array([4, -1, 2, *range(12)])
    found = latest_items(starts, held)
    assert found[0].tolist() == [-1] * 10
    assert found[1].tolist() == [2, 4, *[-1] * 8]
    assert found[2].tolist() == list(range(11, 1, -1))


def test_nothing_is_heard_before_the_first_event():
    assert serving_state(ModelState.empty(SETTINGS, "int", "int")).heard is None
    weight, known = PartnerWeight(), np.array([7, 0])
    shares = weight.shares(9, known, known)
    np.testing.assert_allclose(shares, 0.3)
    np.testing.assert_allclose(weight.beside_filter(shares), 0.3 / 0.7 / 0.5)


def test_who_has_rested_since_the_table_is_believed_otherwise():
    """By how long; who has come since, or was never seen, as of the next event."""
    plain = PartnerWeight(share=0.2, by_gap=(0.5,) * 10)
    moved = replace(plain, at_rest=(-1.0, 2.0, *[0.0] * 8), rest_until=10)
    last, lengths = np.array([0, 11, 10, 4, 1]), np.ones(5, np.int64)
    before, after = (weight.shares(11, last, lengths) for weight in (plain, moved))
    odds = np.log(after / (1 - after)) - np.log(before / (1 - before))
    np.testing.assert_allclose(odds, [0.0, 0.0, -1.0, 2.0, 2.0], atol=1e-12)


def test_candidates_that_enter_a_race_hear_the_same_partners():
    rng = np.random.default_rng(6)
    users, items = rng.integers(0, 9, 200).tolist(), rng.integers(0, 20, 200).tolist()
    leader = learned(replace(SETTINGS, repeat_items=None), users, items, 50)
    entered = warm_start(leader, replace(leader.settings, rank=5, num_partners=3))
    assert (entered.partners, entered.repeats) == (leader.partners, leader.repeats)
    rows = entered.items.index.find(leader.items.index.ids())
    own, other = entered.items.memory, leader.items.memory
    assert own.partner[rows].tolist() == other.partner[:, :3].tolist()
    assert own.strength[rows].tolist() == other.strength[:, :3].tolist()
    users_of = [state.users.memory.last for state in (entered, leader)]
    assert users_of[0][entered.users.index.find(leader.users.index.ids())].tolist() == (
        users_of[1].tolist()
    )
    learn_batch(entered, batch(users, items, 200))
    assert np.isfinite(score_pairs(serving_state(entered), np.arange(9), np.arange(9))).all()
