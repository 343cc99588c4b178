"""Hashes of ids and the random start that follows from them (driver and executor, no Spark).

Everything that must not depend on partitioning, arrival order or cores starts here: the 64-bit
key of an id, the block that it is routed to, the order in which ratings without a time are
learned, and the factors that a new id starts from.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals import _compiling as nb

__all__ = [
    "ITEM_SIDE",
    "USER_SIDE",
    "block_of",
    "find_keys",
    "id_keys",
    "mix64",
    "pair_hash",
    "part_of",
    "sampled",
    "start_factors",
]

USER_SIDE: Final = 1
ITEM_SIDE: Final = 2

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_BLOCK_SALT: Final = np.uint64(0xD1B54A32D192ED03)
_PART_SALT: Final = np.uint64(0x8CB92BA72F3D8DD7)
_FNV_OFFSET: Final = np.uint64(0xCBF29CE484222325)
_FNV_PRIME: Final = np.uint64(0x100000001B3)

U64 = npt.NDArray[np.uint64]


@nb.njit(cache=True, nogil=True, inline="always")
def mix64(z):  # type: ignore[no-untyped-def]
    """SplitMix64's finaliser, a bijection of 64 bits (Steele, Lea and Flood 2014, figure 17)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@nb.njit(cache=True, nogil=True)
def _mix_all(values):  # type: ignore[no-untyped-def]
    out = np.empty(values.size, np.uint64)
    for n in range(values.size):
        out[n] = mix64(values[n] + _GOLDEN)
    return out


@nb.njit(cache=True, nogil=True)
def _hash_strings(offsets, data):  # type: ignore[no-untyped-def]
    out = np.empty(offsets.size - 1, np.uint64)
    for n in range(out.size):
        h = _FNV_OFFSET
        for j in range(offsets[n], offsets[n + 1]):
            h = (h ^ np.uint64(data[j])) * _FNV_PRIME
        out[n] = mix64(h)
    return out


@nb.njit(cache=True, nogil=True)
def _pair_hash(user_keys, item_keys, users, items):  # type: ignore[no-untyped-def]
    out = np.empty(users.size, np.uint64)
    for n in range(users.size):
        out[n] = mix64(user_keys[users[n]] * _GOLDEN + item_keys[items[n]])
    return out


@nb.njit(cache=True, nogil=True)
def _start_normals(keys, rank, start_seed, std, out):  # type: ignore[no-untyped-def]
    to_unit = 1.0 / 9007199254740992.0
    for n in range(keys.size):
        state = mix64(keys[n] ^ start_seed)
        for f in range(rank):
            state += _GOLDEN
            u1 = (np.float64(mix64(state) >> np.uint64(11)) + 1.0) * to_unit
            state += _GOLDEN
            u2 = np.float64(mix64(state) >> np.uint64(11)) * to_unit
            out[n, f] = std * math.sqrt(-2.0 * math.log(u1)) * math.cos(2.0 * math.pi * u2)


@nb.njit(cache=True, nogil=True)
def find_keys(keys, order, wanted):  # type: ignore[no-untyped-def]
    """Where distinct keys stand, -1 for those that are not among them.

    Parameters
    ----------
    keys
        uint64, shape (n,), above 0 of them
    order
        int64, shape (n,), what sorts them
    wanted
        uint64, shape (m,)

    Returns
    -------
    int64, shape (m,): rows of `keys`
    """
    # keys are even over 64 bits: their first ones say where among the sorted they stand
    bits = 1
    while 1 << bits < keys.size:
        bits += 1
    shift = np.uint64(64 - bits)
    starts = np.empty((1 << bits) + 1, np.int64)
    at = 0
    for first in range(1 << bits):
        while at < keys.size and keys[order[at]] >> shift < np.uint64(first):
            at += 1
        starts[first] = at
    starts[-1] = keys.size
    rows = np.full(wanted.size, -1, np.int64)
    for n in range(wanted.size):
        begins = np.int64(wanted[n] >> shift)
        at, end = starts[begins], starts[begins + 1]
        last = end
        # halved, as ids may be chosen so that their keys are not even
        while at < end:
            middle = (at + end) // 2
            if keys[order[middle]] < wanted[n]:
                at = middle + 1
            else:
                end = middle
        if at < last and keys[order[at]] == wanted[n]:
            rows[n] = order[at]
    return rows


def id_keys(ids: pa.Array) -> U64:
    """64-bit keys of ids: a bijection for integers, a hash of the UTF-8 bytes for strings.

    Parameters
    ----------
    ids : pa.Array
        pyarrow.Array of int64 or string, no nulls, shape (n,)

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    if pa.types.is_integer(ids.type):
        values = ids.cast(pa.int64()).to_numpy(zero_copy_only=False)
        return _mix_all(values.astype(np.int64).view(np.uint64))  # type: ignore[no-any-return]
    large = pa.concat_arrays([ids.cast(pa.large_binary())])
    _, offset_buffer, data_buffer = large.buffers()
    first = large.offset
    offsets = np.frombuffer(offset_buffer, np.int64)[first : first + len(large) + 1].copy()
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer else np.empty(0, np.uint8)
    return _hash_strings(offsets, data.copy())  # type: ignore[no-any-return]


def pair_hash(
    user_keys: U64, item_keys: U64, users: npt.NDArray[np.int32], items: npt.NDArray[np.int32]
) -> U64:
    """Return a hash of (user, item) for each rating: the order of learning where there is no time.

    Parameters
    ----------
    user_keys, item_keys : U64
        ndarray of uint64, shapes (n_users,) and (n_items,), from `id_keys`
    users, items : npt.NDArray[np.int32]
        ndarray of int32, shape (n,), indices into the two arrays of keys
    """
    if users.size:
        _check_indices(users, user_keys.size, "users")
        _check_indices(items, item_keys.size, "items")
    return _pair_hash(user_keys, item_keys, users, items)  # type: ignore[no-any-return]


def block_of(keys: U64, num_blocks: int) -> npt.NDArray[np.int32]:
    """Return the block, 0 to `num_blocks` - 1, that each key is routed to."""
    mixed: U64 = _mix_all(keys ^ _BLOCK_SALT)
    return (mixed % np.uint64(num_blocks)).astype(np.int32)


def part_of(keys: U64, parts: int) -> npt.NDArray[np.int32]:
    """Return the part of its block, 0 to `parts` - 1, that each key lies in."""
    mixed: U64 = _mix_all(keys ^ _PART_SALT)
    return (mixed % np.uint64(parts)).astype(np.int32)


def sampled(keys: U64, share: float) -> npt.NDArray[np.bool_]:
    """Whether each key is in a sample of about this share of all, whatever its block."""
    if share >= 1.0:
        return np.ones(keys.size, bool)
    mixed: U64 = _mix_all(keys ^ _PART_SALT)
    return mixed < np.uint64(share * 2.0**64)


def start_factors(
    keys: U64, side: int, rank: int, seed: int, std: float, lowest: float = -math.inf
) -> npt.NDArray[np.float32]:
    """Start of new ids: bias 0 and features N(0, std), a function of (seed, side, id) alone.

    A feature below `lowest` is mirrored there.

    Returns
    -------
    ndarray of float32, shape (n, rank + 1): the bias, then the features
    """
    start = np.zeros((keys.size, rank + 1), np.float32)
    side_seed = np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) * np.uint64(3) + np.uint64(side)
    _start_normals(keys, rank, _mix_all(side_seed)[0], std, start[:, 1:])
    if lowest > -math.inf:
        features = start[:, 1:]
        low = np.float32(lowest)
        np.copyto(features, 2 * low - features, where=features < low)
    return start


def _check_indices(indices: npt.NDArray[np.int32], size: int, what: str) -> None:
    if int(indices.min()) < 0 or int(indices.max()) >= size:
        raise IndexError(f"{what}: index outside 0..{size - 1}")
