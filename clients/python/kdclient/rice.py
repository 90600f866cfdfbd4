# SPDX-License-Identifier: Apache-2.0
"""Streams of small numbers (kdserved-record(5)), decoded many at a time.

A Rice code is one bits, a zero bit, then `b` low bits; a count is m one bits, a zero bit, then m low bits. Where a code begins is known
only when the one before it has been read. So the bits are cut into lanes that are followed side by side, each from a little before its
own stretch: whatever bit a reader starts at, it soon falls into step with the true codes. A lane that has not (it does not begin where
the lane before it ends) is followed again from the right bit, so the result does not depend on luck.
"""
from __future__ import annotations

from typing import Callable, List, Tuple

import numpy as np
import numpy.typing as npt

from .errors import KdError

RUN = 8                    # ones are stepped over this many at a time
CHUNK_BYTES = 1 << 17      # bits taken apart at once: their arrays stay in the second-level cache
SLACK_BYTES = 16           # behind a chunk: a code that begins in the chunk and has few ones ends in it
LANE_CODES = 64            # codes of a lane, about
WARM_CODES = 56            # codes in front of a lane in which it falls into step
PATIENCE = 8               # steps between looks at which lanes are done
ROUNDS = 3                 # of lanes followed again; codes so regular that lanes stay out of step are then read one by one
MAX_PARAMETER = 23

Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Steps = npt.NDArray[np.integer[npt.NBitBase]]


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

    def ones_ahead(self) -> Bytes:
        """How many ones begin at each bit, at most RUN."""
        runs, width = self.bits, 1
        while width < RUN:
            more = np.zeros_like(runs)
            np.multiply(runs[width:], runs[:-width] == width, out=more[:-width])
            runs = runs + more
            width *= 2
        return runs

    def next_zero(self) -> npt.NDArray[np.int32]:
        """The first zero at or after each bit; the number of bits where there is none."""
        n = len(self.bits)
        at = np.arange(n, dtype=np.int32)
        at[self.bits != 0] = n
        nearest: npt.NDArray[np.int32] = np.minimum.accumulate(at[::-1])[::-1]
        return nearest


def _numbers(chunk: _Bits, b: int, n_codes: int) -> Tuple[Integers, int]:
    """The numbers of a chunk, at most n_codes, and the bit after the last."""
    runs = chunk.ones_ahead()
    steps = runs + np.uint8(b + 1)
    np.copyto(steps, RUN, where=runs == RUN)
    starts = _step_starts(steps, chunk.n, b + 2, n_codes)
    ones = runs[starts]
    zeros = (starts + ones)[ones < RUN][:n_codes]    # of each code; steps within a longer run of ones have none
    zeros = zeros[zeros < chunk.n]
    if not len(zeros):
        return zeros, 0
    quotients = zeros.copy()
    quotients[1:] -= zeros[:-1] + (b + 1)
    return quotients << b | chunk.low(zeros + 1, b), int(zeros[-1]) + b + 1


def _pairs(chunk: _Bits, b: int, total: int) -> Tuple[Integers, Integers, int]:
    """Numbers each followed by a count, until the counts sum to total or more, and the bit after the last."""
    zero, highest = chunk.next_zero(), len(chunk.bits) - 1
    at = np.arange(len(zero), dtype=np.int64)
    count_at = np.minimum(zero + np.int64(b + 1), highest)
    count_zero = zero[count_at]
    steps = 2 * count_zero.astype(np.int64) - count_at + 1 - at
    starts = _step_starts(steps, chunk.n, b + 4, max(chunk.n // (b + 4), 1))
    starts = starts[count_zero[starts] + 32 < len(chunk.bits)]    # whole; none after the first that is not
    if not len(starts):
        return starts, starts, 0
    m = count_zero[starts] - count_at[starts]
    if int(m.max()) > 24:
        raise KdError("corrupt", "an impossible count", "ids")
    counts = np.int64(1) << m | chunk.low(count_zero[starts].astype(np.int64) + 1, m)
    n = int(np.searchsorted(np.cumsum(counts), total)) + 1
    starts, counts = starts[:n], counts[:n]
    numbers = (zero[starts] - starts) << b | chunk.low(zero[starts].astype(np.int64) + 1, b)
    return numbers, counts, int(starts[-1] + steps[starts[-1]])


def _cut_short() -> KdError:
    return KdError("corrupt", "a stream of ids is cut short", "ids")


def _chunks(data: bytes, take: Callable[[_Bits], int], more: Callable[[], bool]) -> int:
    """Hands chunks to take(), which says how many bits it used, while more() is true; returns the bit after the last."""
    source = np.zeros(len(data) + SLACK_BYTES, np.uint8)
    source[:len(data)] = np.frombuffer(data, np.uint8)
    at, size = 0, CHUNK_BYTES
    while more():
        byte = at // 8
        size = min(size, len(data) - byte)
        if size <= 0:
            raise _cut_short()
        used = take(_Bits(source[byte:byte + size + SLACK_BYTES], at % 8))
        if used:
            at, size = at + used, CHUNK_BYTES
        elif byte + size == len(data):
            raise _cut_short()
        else:
            size *= 2    # a code longer than the chunk
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
        raise KdError("corrupt", "a stream of ids without a Rice parameter", "ids")
    return stream[0]


def decode_numbers(stream: bytes, n: int) -> Integers:
    """The n numbers of a stream: the parameter's byte and the codes."""
    b, data, parts = _parameter(stream), stream[1:], [np.zeros(0, np.int64)]
    if n * (b + 1) > 8 * len(data):
        raise _cut_short()
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
