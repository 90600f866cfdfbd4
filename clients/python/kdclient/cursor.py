# SPDX-License-Identifier: Apache-2.0
"""Bounded little-endian reading, and varints (LEB128) by the array."""
from __future__ import annotations

import struct
from typing import Any, List, Tuple

import numpy as np
import numpy.typing as npt

from .errors import KdError

Integers = npt.NDArray[np.int64]
_SHIFTS = np.arange(0, 35, 7, dtype=np.uint64)


def varints(numbers: npt.ArrayLike) -> bytes:
    """Each number, below 2^32, in its shortest form."""
    values = np.asarray(numbers, np.uint64).reshape(-1)
    if len(values) < 8:
        return b"".join(_varint(int(v)) for v in values)
    pieces = values[:, None] >> _SHIFTS
    more = np.zeros(pieces.shape, bool)
    more[:, :-1] = pieces[:, 1:] > 0
    sent = np.ones(pieces.shape, bool)
    sent[:, 1:] = more[:, :-1]
    out: bytes = ((pieces & np.uint64(127)) | np.where(more, np.uint64(128), np.uint64(0)))[sent].astype(np.uint8).tobytes()
    return out


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class Cursor:
    """Reads bytes from front to back; a KdError where they end early or are not what they must be."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.at = data, name, 0

    def fail(self, why: str) -> KdError:
        return KdError("corrupt", why, self.name)

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, n: int) -> bytes:
        if n > self.left:
            raise self.fail("cut short")
        self.at += n
        return self.data[self.at - n:self.at]

    def unpack(self, form: str) -> Tuple[Any, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def varint(self) -> int:
        return int(self.varints(1)[0])

    def varints(self, n: int) -> Integers:
        """The next n, each at least a byte, so that n is bounded by what is there."""
        if n > self.left:
            raise self.fail("cut short")
        if n == 0:
            return np.zeros(0, np.int64)
        data = np.frombuffer(self.data, np.uint8, min(5 * n, self.left), self.at)
        ends = np.flatnonzero(data < 128)[:n]
        if len(ends) < n:
            raise self.fail("a number that is cut short or too long")
        lengths = np.diff(ends, prepend=-1)
        if int(lengths.max()) > 5 or ((data[ends] == 0) & (lengths > 1)).any():
            raise self.fail("a number that is not in its shortest form")
        values, begins = np.zeros(n, np.int64), ends - lengths + 1
        for i in range(int(lengths.max())):
            here = lengths > i
            values[here] |= (data[begins[here] + i] & 127).astype(np.int64) << (7 * i)
        if int(values.max()) >> 32:
            raise self.fail("a number above 32 bits")
        self.at += int(ends[-1]) + 1
        return values

    def end(self) -> None:
        if self.left:
            raise self.fail("%d bytes too many" % self.left)


def runs(counts: Integers) -> Integers:
    """(n + 1) where runs of these lengths begin, and where the last ends."""
    at = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=at[1:])
    return at


def tuples(items: Integers, width: int) -> List[Tuple[int, ...]]:
    return [tuple(row) for row in items.reshape(-1, width).tolist()]
