# SPDX-License-Identifier: Apache-2.0
"""Streams of small numbers (kdserved-record(5)), decoded many at a time.

The exponential Golomb code of a number g with parameter b is l - b one bits, a zero bit, then the low l bits of g + 2**b, where l is
floor(log2(g + 2**b)); a count c is the number c - 1 with parameter 0. Where a code begins is known only when the one before it has been
read. So the bits are cut into lanes that are followed side by side, each from a little before its
own stretch: whatever bit a reader starts at, it soon falls into step with the true codes. A lane that has not (it does not begin where
the lane before it ends) is followed again from the right bit, so the result does not depend on luck.
"""
from __future__ import annotations

from typing import Callable, List, Tuple, Union

import numpy as np
import numpy.typing as npt

from .errors import KdError

CHUNK_BYTES = 1 << 17      # bits taken apart at once: their arrays stay in the second-level cache
SLACK_BYTES = 24           # behind a chunk: a number and its count that begin in the chunk end in it, and 32 bits more are there
LANE_CODES = 64            # codes of a lane, about
WARM_CODES = 56            # codes in front of a lane in which it falls into step
PATIENCE = 8               # steps between looks at which lanes are done
ROUNDS = 3                 # of lanes followed again; codes so regular that lanes stay out of step are then read one by one
MAX_PARAMETER = 23
MAX_LENGTH = 24            # of the bits behind the zero

Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Steps = Union[npt.NDArray[np.int32], Integers]


# ---- where codes begin

def _follow(steps: Steps, start: Integers, end: Integers) -> Integers:
    """(lanes, n) bits at which steps begin, until every lane is at or past its end."""
    taken, at, highest = [start], start, len(steps) - 1
    while (at < end).any():
        for _ in range(PATIENCE):
            at = np.minimum(at + steps[at], highest)
            taken.append(at)
    followed: Integers = np.stack(taken, axis=1)
    return followed


def _first_from(positions: Integers, bound: Integers) -> Integers:
    """The first position of each lane that is not below the lane's bound."""
    found: Integers = positions[np.arange(len(positions)), (positions >= bound[:, None]).argmax(axis=1)]
    return found


def _walk(steps: Steps, n_bits: int) -> Integers:
    """What _step_starts gives, one step after the other."""
    listed, starts, at = steps.tolist(), [], 0
    while at < n_bits:
        starts.append(at)
        at += listed[at]
    return np.array(starts, np.int64)


def _step_starts(steps: Steps, n_bits: int, code_bits: int, n_codes: int) -> Integers:
    """The bits below n_bits at which steps begin, from bit 0 on. A code has about code_bits; there are about n_codes."""
    n_lanes = max(1, min(n_codes // LANE_CODES, n_bits // (LANE_CODES * code_bits)))
    bounds = np.arange(n_lanes + 1, dtype=np.int64) * n_bits // n_lanes
    begin, end = bounds[:-1], bounds[1:]
    positions = _follow(steps, np.maximum(begin - WARM_CODES * code_bits, 0), end)
    enter, leave = _first_from(positions, begin), _first_from(positions, end)
    own = (positions >= begin[:, None]) & (positions < end[:, None])
    if (enter[1:] == leave[:-1]).all():
        return positions[own]
    lanes: List[Integers] = [positions[i][own[i]] for i in range(n_lanes)]
    for _ in range(ROUNDS):
        wrong = np.flatnonzero(enter[1:] != leave[:-1]) + 1
        if not len(wrong):
            return np.concatenate(lanes)
        enter[wrong] = leave[wrong - 1]    # true for the first wrong lane at least
        positions = _follow(steps, enter[wrong], end[wrong])
        leave[wrong] = _first_from(positions, end[wrong])
        for lane, found in zip(wrong, positions):
            lanes[lane] = found[found < end[lane]]
    return _walk(steps, n_bits)


# ---- what they say

class _Bits:
    """A chunk: its first bit is bit `skip` of its bytes, the last SLACK_BYTES are only looked at."""

    def __init__(self, data: Bytes, skip: int) -> None:
        self.skip = skip
        self.bits: Bytes = np.unpackbits(data, bitorder="little")[skip:]
        self.n = len(self.bits) - 8 * SLACK_BYTES
        near = data.astype(np.uint32)
        self._windows = near[:-3] | near[1:-2] << np.uint32(8) | near[2:-1] << np.uint32(16) | near[3:] << np.uint32(24)

    def low(self, at: Integers, count: npt.ArrayLike) -> Integers:
        """`count` bits from each position, at most 25; the position lies at least 32 bits before the end."""
        at = at + self.skip
        mask = (np.int64(1) << np.asarray(count, np.int64)) - 1
        found: Integers = (self._windows[at >> 3] >> (at & 7).astype(np.uint32)) & mask
        return found

    def next_zero(self) -> npt.NDArray[np.int32]:
        """The first zero at or after each bit; the number of bits where there is none."""
        n = len(self.bits)
        at = np.arange(n, dtype=np.int32)
        at[self.bits != 0] = n
        nearest: npt.NDArray[np.int32] = np.minimum.accumulate(at[::-1])[::-1]
        return nearest


def _values(chunk: _Bits, starts: Integers, zeros: Integers, b: int) -> Integers:
    """What the codes say that begin at `starts` and have their zero bits at `zeros`."""
    lengths = zeros - starts + b
    if int(lengths.max()) > MAX_LENGTH:
        raise KdError("corrupt", "an impossible number", "ids")
    values: Integers = (np.int64(1) << lengths) + chunk.low(zeros + 1, lengths) - (1 << b)
    return values


def _numbers(chunk: _Bits, b: int, n_codes: int) -> Tuple[Integers, int]:
    """The numbers of a chunk, at most n_codes, and the bit after the last."""
    zero = chunk.next_zero()
    steps: npt.NDArray[np.int32] = np.subtract(zero, np.arange(len(zero), dtype=np.int32))
    steps *= 2
    steps += b + 1
    starts = _step_starts(steps, chunk.n, b + 4, n_codes)[:n_codes]
    numbers = _values(chunk, starts, zero[starts].astype(np.int64), b)
    return numbers, int(starts[-1] + steps[starts[-1]])


def _pairs(chunk: _Bits, b: int, total: int) -> Tuple[Integers, Integers, int]:
    """Numbers each followed by a count, until the counts sum to total or more, and the bit after the last."""
    zero, highest = chunk.next_zero().astype(np.int64), len(chunk.bits) - 1
    at = np.arange(len(zero), dtype=np.int64)
    count_at = np.minimum(2 * zero - at + (b + 1), highest)
    steps: Integers = 2 * zero[count_at] - count_at + 1 - at
    starts = _step_starts(steps, chunk.n, b + 6, max(chunk.n // (b + 6), 1))
    bad = np.flatnonzero(zero[starts] - starts + b > MAX_LENGTH)     # behind the last pair anything may follow
    starts = starts[:bad[0] if len(bad) else None]
    bad = np.flatnonzero(zero[count_at[starts]] - count_at[starts] > MAX_LENGTH)
    starts = starts[:bad[0] if len(bad) else None]
    if not len(starts):
        raise KdError("corrupt", "an impossible number", "ids")
    counts = _values(chunk, count_at[starts], zero[count_at[starts]], 0) + 1
    n = int(np.searchsorted(np.cumsum(counts), total)) + 1
    starts, counts = starts[:n], counts[:n]
    return _values(chunk, starts, zero[starts], b), counts, int(starts[-1] + steps[starts[-1]])


def _cut_short() -> KdError:
    return KdError("corrupt", "a stream of ids is cut short", "ids")


def _chunks(data: bytes, take: Callable[[_Bits], int], more: Callable[[], bool]) -> int:
    """Hands chunks to take(), which says how many bits it used, while more() is true; returns the bit after the last."""
    source = np.zeros(len(data) + SLACK_BYTES, np.uint8)
    source[:len(data)] = np.frombuffer(data, np.uint8)
    at = 0
    while more():
        byte = at // 8
        size = min(CHUNK_BYTES, len(data) - byte)
        if size <= 0:
            raise _cut_short()
        at += take(_Bits(source[byte:byte + size + SLACK_BYTES], at % 8))
    return at


def _finish(data: bytes, end: int) -> None:
    """Nothing but fewer than 8 zero bits may be left."""
    spare = 8 * len(data) - end
    if spare < 0:
        raise _cut_short()
    if spare >= 8 or (spare and data[-1] >> (8 - spare)):
        raise KdError("corrupt", "bits after the last id", "ids")


def _parameter(stream: bytes) -> int:
    if not stream or stream[0] > MAX_PARAMETER:
        raise KdError("corrupt", "a stream of ids without a parameter of its codes", "ids")
    return stream[0]


def _longest(b: int) -> int:
    """Bits of a code with parameter b."""
    return 2 * MAX_LENGTH + 1 - b


def _check_length(data: bytes, n_bits: int) -> None:
    """Refuses at once what would only be found too long when all of it was read."""
    if 8 * len(data) > n_bits + 7:
        raise KdError("corrupt", "bits after the last id", "ids")


def decode_numbers(stream: bytes, n: int) -> Integers:
    """The n numbers of a stream: the parameter's byte and the codes."""
    b, data, parts = _parameter(stream), stream[1:], [np.zeros(0, np.int64)]
    if n * (b + 1) > 8 * len(data):
        raise _cut_short()
    _check_length(data, n * _longest(b))
    left = n

    def take(chunk: _Bits) -> int:
        nonlocal left
        found, used = _numbers(chunk, b, left)
        parts.append(found)
        left -= len(found)
        return used
    _finish(data, _chunks(data, take, lambda: left > 0))
    return np.concatenate(parts)


def decode_pairs(stream: bytes, total: int) -> Tuple[Integers, Integers]:
    """The numbers of a stream and the counts behind each, which sum to total."""
    b, data = _parameter(stream), stream[1:]
    _check_length(data, total * (_longest(b) + _longest(0)))
    numbers, counts, left = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], total

    def take(chunk: _Bits) -> int:
        nonlocal left
        found, counted, used = _pairs(chunk, b, left)
        numbers.append(found)
        counts.append(counted)
        left -= int(counted.sum())
        return used
    _finish(data, _chunks(data, take, lambda: left > 0))
    if left:
        raise KdError("corrupt", "counts that sum to too much", "ids")
    return np.concatenate(numbers), np.concatenate(counts)
