"""The equations of learning as plain loops in float64: slow, obvious, nothing shared with kernels.

Weights are arrays of one number a rating. Functions that learn change the arrays given.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def predict(user_mean: np.ndarray, item_mean: np.ndarray) -> float:
    """b_user + b_item + U . P for one user and one item."""
    total = float(user_mean[0]) + float(item_mean[0])
    for f in range(1, len(user_mean)):
        total += float(user_mean[f]) * float(item_mean[f])
    return total


def variance(
    user_mean: np.ndarray, user_var: np.ndarray, item_mean: np.ndarray, item_var: np.ndarray
) -> float:
    """V of one prediction."""
    total = float(user_var[0]) + float(item_var[0])
    for f in range(1, len(user_mean)):
        total += float(user_var[f]) * float(item_mean[f]) ** 2
        total += float(item_var[f]) * float(user_mean[f]) ** 2
        total += float(user_var[f]) * float(item_var[f])
    return total


def learn_filter(
    users: np.ndarray,
    items: np.ndarray,
    ratings: np.ndarray,
    weights: np.ndarray,
    user_mean: np.ndarray,
    user_var: np.ndarray,
    item_mean: np.ndarray,
    item_var: np.ndarray,
    noise: float,
    drift: float,
) -> np.ndarray:
    """One pass of the filter; errors from before each rating was learned."""
    errors = []
    for x, y, r, w in zip(users, items, ratings, weights, strict=True):
        ux, vx = user_mean[x].copy(), user_var[x].copy()
        py, vy = item_mean[y].copy(), item_var[y].copy()
        e = r - predict(ux, py)
        errors.append(e)
        if w == 0:
            continue
        s = noise / w + vx[0] + vy[0]
        for f in range(1, len(ux)):
            s += vx[f] * py[f] ** 2 + vy[f] * ux[f] ** 2
        for f in range(len(ux)):
            user_regressor = 1.0 if f == 0 else py[f]
            item_regressor = 1.0 if f == 0 else ux[f]
            user_mean[x, f] = ux[f] + vx[f] * user_regressor * e / s
            user_var[x, f] = vx[f] - (vx[f] * user_regressor) ** 2 / s + drift
            item_mean[y, f] = py[f] + vy[f] * item_regressor * e / s
            item_var[y, f] = vy[f] - (vy[f] * item_regressor) ** 2 / s + drift
    return np.array(errors)


def learn_sgd(
    users: np.ndarray,
    items: np.ndarray,
    ratings: np.ndarray,
    weights: np.ndarray,
    user_mean: np.ndarray,
    item_mean: np.ndarray,
    step: float,
    regs: tuple[float, float, float, float],
) -> np.ndarray:
    """One pass of B-SGD; errors from before each rating was learned."""
    user_bias_reg, item_bias_reg, user_reg, item_reg = regs
    errors = []
    for x, y, r, w in zip(users, items, ratings, weights, strict=True):
        ux, py = user_mean[x].copy(), item_mean[y].copy()
        e = r - predict(ux, py)
        errors.append(e)
        g = step * w
        user_mean[x, 0] = ux[0] + g * (e - user_bias_reg * ux[0])
        item_mean[y, 0] = py[0] + g * (e - item_bias_reg * py[0])
        for f in range(1, len(ux)):
            user_mean[x, f] = ux[f] + g * (e * py[f] - user_reg * ux[f])
            item_mean[y, f] = py[f] + g * (e * ux[f] - item_reg * py[f])
    return np.array(errors)


def loss(
    users: np.ndarray,
    items: np.ndarray,
    ratings: np.ndarray,
    weights: np.ndarray,
    user_mean: np.ndarray,
    item_mean: np.ndarray,
    regs: tuple[float, float, float, float],
) -> float:
    """What B-SGD descends: 1/2 sum w (e^2 + lambda . squares), the penalty once a rating."""
    user_bias_reg, item_bias_reg, user_reg, item_reg = regs
    total = 0.0
    for x, y, r, w in zip(users, items, ratings, weights, strict=True):
        ux, py = user_mean[x], item_mean[y]
        penalty = user_bias_reg * ux[0] ** 2 + item_bias_reg * py[0] ** 2
        for f in range(1, len(ux)):
            penalty += user_reg * ux[f] ** 2 + item_reg * py[f] ** 2
        total += 0.5 * w * ((r - predict(ux, py)) ** 2 + penalty)
    return total


def learn_minibatches(
    users: np.ndarray,
    items: np.ndarray,
    ratings: np.ndarray,
    weights: np.ndarray,
    user_mean: np.ndarray,
    item_mean: np.ndarray,
    step: float,
    regs: tuple[float, float, float, float],
    block_size: int,
) -> np.ndarray:
    """One pass of mini-batches: what each rating alone would do to the factors, summed by id."""
    errors = []
    for start in range(0, len(ratings), block_size):
        part = range(start, min(start + block_size, len(ratings)))
        old_users, old_items = user_mean.copy(), item_mean.copy()
        for n in part:
            one = slice(n, n + 1)
            moved_users, moved_items = old_users.copy(), old_items.copy()
            found = learn_sgd(
                users[one], items[one], ratings[one], weights[one], moved_users, moved_items,
                step, regs,
            )  # fmt: skip
            errors.append(found[0])
            np.add.at(user_mean, users[one], (moved_users - old_users)[users[one]])
            np.add.at(item_mean, items[one], (moved_items - old_items)[items[one]])
    return np.array(errors)


def sweep(
    own: np.ndarray,
    partners: np.ndarray,
    ratings: np.ndarray,
    weights: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    prior_mean: np.ndarray,
    prior_var: np.ndarray,
    partner_mean: np.ndarray,
    partner_var: np.ndarray,
    noise: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Half a sweep; for each id the weighted sums of e^2 and of V afterwards.

    The priors have one row an id.
    """
    ids, width = mean.shape
    squares, variances = np.zeros(ids), np.zeros(ids)
    for x in range(ids):
        mine = [t for t in range(len(own)) if own[t] == x and weights[t] > 0]
        if not mine:
            continue
        e = {t: ratings[t] - predict(mean[x], partner_mean[partners[t]]) for t in mine}
        for f in range(width):
            precision = noise / prior_var[x, f]
            moment = noise / prior_var[x, f] * prior_mean[x, f]
            for t in mine:
                regressor = 1.0 if f == 0 else partner_mean[partners[t], f]
                spread = 0.0 if f == 0 else partner_var[partners[t], f]
                precision += weights[t] * (regressor**2 + spread)
                moment += weights[t] * regressor * (e[t] + mean[x, f] * regressor)
            var[x, f] = noise / precision
            new = var[x, f] / noise * moment
            for t in mine:
                e[t] -= (new - mean[x, f]) * (1.0 if f == 0 else partner_mean[partners[t], f])
            mean[x, f] = new
        for t in mine:
            y = partners[t]
            squares[x] += weights[t] * e[t] ** 2
            variances[x] += weights[t] * variance(mean[x], var[x], partner_mean[y], partner_var[y])
    return squares, variances


def learn_influence(
    givers: np.ndarray,
    takers: np.ndarray,
    influence: np.ndarray,
    own_variance: float,
    mean: np.ndarray,
    var: np.ndarray,
    prior_mean: np.ndarray,
    prior_var: np.ndarray,
) -> None:
    """One round of coordinate ascent for the influences of the givers, one after another.

    The takers' prior means are n^(-1/2) sum of influences, one a rating, so that a giver named
    twice counts twice; they and the means move along.
    `prior_var` has one row an id, all the same.
    """
    count = [np.sum(takers == x) for x in range(len(mean))]
    for f in range(mean.shape[1]):
        p = 1.0 / prior_var[0, f]
        moved = np.zeros(len(mean))
        for y in range(len(influence)):
            mine = [x for t, x in enumerate(takers) if givers[t] == y]
            if not mine:
                continue
            precision, moment = 1.0 / own_variance, 0.0
            root = {x: mine.count(x) * count[x] ** -0.5 for x in mine}
            for x in sorted(root):
                precision += p * root[x] ** 2
                apart = mean[x, f] - prior_mean[x, f] - moved[x]
                moment += p * root[x] * (apart + root[x] * influence[y, f])
            new = moment / precision
            for x in root:
                moved[x] += root[x] * (new - influence[y, f])
            influence[y, f] = new
        for x in range(len(mean)):
            prior_mean[x, f] += moved[x]
            mean[x, f] += var[x, f] / prior_var[0, f] * moved[x]


def learn_noise(
    users: np.ndarray,
    items: np.ndarray,
    squares: np.ndarray,
    user_factors: np.ndarray,
    item_factors: np.ndarray,
    user_known: np.ndarray,
    item_known: np.ndarray,
    rounds: int,
) -> None:
    """Noise by id, users and items in turn; `known` are ratings of each id from before."""
    sides = ((users, user_factors, user_known), (items, item_factors, item_known))
    before = [factors.copy() for _, factors, _ in sides]
    for _ in range(rounds):
        for own, (rows, factors, known) in enumerate(sides):
            others, other_factors, _ = sides[1 - own]
            for x in range(len(factors)):
                mine = [t for t in range(len(rows)) if rows[t] == x]
                total = before[own][x] * (2.0 + known[x] / 2.0)
                for t in mine:
                    total += squares[t] / other_factors[others[t]] / 2.0
                factors[x] = total / (2.0 + known[x] / 2.0 + len(mine) / 2.0)


def fit_bayes(
    users: np.ndarray,
    items: np.ndarray,
    ratings: np.ndarray,
    weights: np.ndarray,
    user: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    item: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    noise: float,
    sweeps: int,
    fresh: bool,
    drawn: bool = False,
) -> tuple[float, list[float]]:
    """Filter, then sweeps, of standardised ratings; the noise and the RMSE after each sweep.

    Each side is (mean, var, prior mean, prior var), the priors with one row an id. With `drawn`
    a fresh fit learns prior means; a table that is added to a model has been filtered before.
    """
    (user_mean, user_var, *user_prior), (item_mean, item_var, *item_prior) = user, item
    if fresh or not drawn:
        learn_filter(
            users, items, ratings, weights, user_mean, user_var, item_mean, item_var, noise, 0.0
        )
    history = []
    by_user, by_item = np.zeros_like(user_mean), np.zeros_like(item_mean)
    for _ in range(sweeps):
        sweep(
            users, items, ratings, weights, user_mean, user_var, *user_prior, item_mean,
            item_var, noise,
        )  # fmt: skip
        if fresh and drawn:
            learn_influence(items, users, by_item, 0.02, user_mean, user_var, *user_prior)
        squares, variances = sweep(
            items, users, ratings, weights, item_mean, item_var, *item_prior, user_mean,
            user_var, noise,
        )  # fmt: skip
        if fresh and drawn:
            learn_influence(users, items, by_user, 0.05, item_mean, item_var, *item_prior)
        if fresh:
            noise = (squares.sum() + variances.sum()) / weights.sum()
            for mean, var, prior in (
                (user_mean, user_var, user_prior),
                (item_mean, item_var, item_prior),
            ):
                learned = ((mean - prior[0]) ** 2 + var).mean(axis=0)
                prior[1] = np.tile(learned, (len(mean), 1))
        history.append(math.sqrt(squares.sum() / weights.sum()))
    return noise, history


def concentration(users: np.ndarray, items: np.ndarray) -> float:
    """Mean over ratings of how many ratings of the batch their user, or item, has."""
    users, items = list(users), list(items)
    return max(sum(rows.count(row) for row in rows) / len(rows) for rows in (users, items))


def learn_with_influences(
    users: np.ndarray,
    items: np.ndarray,
    ratings: np.ndarray,
    weights: np.ndarray,
    user: dict[str, np.ndarray],
    item: dict[str, np.ndarray],
    default: np.ndarray,
    noise: float,
    drift: float,
) -> np.ndarray:
    """The filter with prior means that move; each side has mean, var, drawn, influence,
    evidence and seen, items perhaps featured; `default` is the prior variance by coordinate."""
    bias_share = 1.0 / (1.0 + (concentration(users, items) / 10.0) ** 2)
    errors = []
    for n, (x, y) in enumerate(zip(users, items, strict=True)):
        one = slice(n, n + 1)
        if weights[n] > 0:
            for own, a, other, b in ((user, x, item, y), (item, y, user, x)):
                seen = own["seen"][a]
                total = math.sqrt(seen) * own["drawn"][a] + other["influence"][b]
                move_prior(own, a, total / math.sqrt(seen + 1), default)
                own["seen"][a] += 1
            root = item["seen"][y] ** -0.5
            user["evidence"][x] += root**2
            precision = 1.0 / 0.05 + user["evidence"][x] / default
            apart = item["mean"][y] - item["drawn"][y]
            if "featured" in item and item["featured"].size:
                apart = apart - item["featured"][y]
            change = root * apart / default / precision
            change[0] *= bias_share
            user["influence"][x] += change
            move_prior(item, y, item["drawn"][y] + root * change, default)
        errors += list(
            learn_filter(
                users[one], items[one], ratings[one], weights[one], user["mean"], user["var"],
                item["mean"], item["var"], noise, drift,
            )
        )  # fmt: skip
    return np.array(errors)


def move_prior(side: dict[str, np.ndarray], row: int, new: np.ndarray, default: np.ndarray) -> None:
    """Set a prior mean; the mean follows by c / v of the change, at most by all of it."""
    gain = np.minimum(side["var"][row] / default, 1.0)
    side["mean"][row] += gain * (new - side["drawn"][row])
    side["drawn"][row] = new


def smooth(
    users: np.ndarray,
    items: np.ndarray,
    ratings: np.ndarray,
    weights: np.ndarray,
    user: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    item: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    noise: float,
) -> None:
    """Two sweeps over a batch that was filtered, its means moved towards the result.

    Each side is (mean, var, prior mean, prior var), filtered and from before, a row an id.
    """
    (user_mean, user_var, *user_prior), (item_mean, item_var, *item_prior) = user, item
    swept_users, swept_items = user_mean.copy(), item_mean.copy()

    def discounted(own, partners, mean, partner_var):  # type: ignore[no-untyped-def]
        return np.array([
            1.0 / (1.0 / w + (v[0] + np.sum(v[1:] * mean[x, 1:] ** 2)) / noise) if w else 0.0
            for x, w, v in zip(own, weights, partner_var[partners], strict=True)
        ])  # fmt: skip

    for _ in range(2):
        less = discounted(users, items, swept_users, item_var)
        sweep(
            users, items, ratings, less, swept_users, user_var.copy(), *user_prior, swept_items,
            item_var, noise,
        )  # fmt: skip
        less = discounted(items, users, swept_items, user_var)
        sweep(
            items, users, ratings, less, swept_items, item_var.copy(), *item_prior, swept_users,
            user_var, noise,
        )  # fmt: skip
    crowd = concentration(users, items)
    for mean, swept in ((user_mean, swept_users), (item_mean, swept_items)):
        mean[:] = mean + crowd / (crowd + 20.0) * (swept - mean)


def mix64(z: int) -> int:
    """SplitMix64's finaliser on Python integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def key(an_id: int | str) -> int:
    """The 64-bit key of an id."""
    if isinstance(an_id, int):
        return mix64((an_id + GOLDEN) & MASK)
    h = 0xCBF29CE484222325
    for byte in an_id.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return mix64(h)


def pair_key(user: int | str, item: int | str) -> int:
    """The hash of (user, item)."""
    return mix64((key(user) * GOLDEN + key(item)) & MASK)


def start(an_id: int | str, side: int, rank: int, seed: int, std: float) -> list[float]:
    """Bias and features that an id starts from: Box-Muller on SplitMix64."""
    state = mix64(key(an_id) ^ mix64((3 * seed + side + GOLDEN) & MASK))
    found = [0.0]
    for _ in range(rank):
        first = ((mix64((state + GOLDEN) & MASK) >> 11) + 1) / 2**53
        second = (mix64((state + 2 * GOLDEN) & MASK) >> 11) / 2**53
        state = (state + 2 * GOLDEN) & MASK
        found.append(std * math.sqrt(-2 * math.log(first)) * math.cos(2 * math.pi * second))
    return found


def regress(
    features: np.ndarray,
    precision: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    prior_var: np.ndarray,
    passes: int,
) -> np.ndarray:
    """Ridge regression by coordinate descent, weights in place; the variance of each weight."""
    variances = np.empty_like(weights)
    for _ in range(passes):
        for j in range(features.shape[1]):
            z = features[:, j]
            for f in range(weights.shape[1]):
                rest = targets[:, f] - features @ weights[:, f] + z * weights[j, f]
                curvature = np.sum(precision[:, f] * z * z) + 1.0 / prior_var[j, f]
                weights[j, f] = np.sum(precision[:, f] * z * rest) / curvature
                variances[j, f] = 1.0 / curvature
    return variances


def cells(
    users: np.ndarray, items: np.ndarray, groups: tuple[np.ndarray, np.ndarray], ends: list[int]
) -> list[list[list[int]]]:
    """Numbers of ratings by stratum and cell: one by one up to ends[0], then slice by slice."""
    found = [[list(range(ends[0]))]]
    for first, last in pairwise(ends):
        for stratum in range(8):
            found.append([
                [
                    n
                    for n in range(first, last)
                    if groups[0][users[n]] == group
                    and groups[1][items[n]] == (group + stratum) % 8
                ]
                for group in range(8)
            ])  # fmt: skip
    return found


def deal(counts: np.ndarray) -> np.ndarray:
    """Groups of ids: from the one with most ratings on, 0 to 7 and back again."""
    groups = np.zeros(len(counts), int)
    turns = [*range(8), *range(7, -1, -1)]
    for turn, x in enumerate(sorted(range(len(counts)), key=lambda x: (-counts[x], x))):
        groups[x] = turns[turn % 16]
    return groups
