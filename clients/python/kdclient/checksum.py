# SPDX-License-Identifier: Apache-2.0
"""CRC-32C (Castagnoli) at memory speed in numpy.

Without its initial and final inversions a CRC is linear over GF(2): a message is a polynomial in x and the CRC its remainder modulo a
polynomial P of degree 32. Cut into words of 32 bits it is a polynomial in y = x^32 whose coefficients are words, and a multiple of P with
few terms in y, such as y^6777 + y^484 + y^100 + 1, says how to be rid of the leading words without changing the remainder: add (XOR) each
to the words that far behind it. Whole blocks move at once, as long as the block's targets lie behind the block. The short rest is summed
bit by bit from a table of remainders. `Piece` keeps the remainder of a stretch of bytes, so that a frame and the record in it cost one
pass.
"""
from __future__ import annotations

from functools import lru_cache
from typing import List, NamedTuple, Sequence, Tuple, Union

import numpy as np
import numpy.typing as npt

POLYNOMIAL = 0x82F63B78    # reflected
INVERT = 0xFFFFFFFF

# Exponents of y in multiples of P, found by search: the gap below the highest is the number of words moved by one step. P has the factor
# x + 1, so the number of terms is even. test_checksum checks that they are multiples.
LONG = (0, 100, 484, 6777)
SHORT = (0, 31, 53, 58, 109, 563)

Buffer = Union[bytes, bytearray, memoryview]
Words = npt.NDArray[np.uint32]


def _byte_table() -> List[int]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (POLYNOMIAL if n & 1 else 0)
        table.append(n)
    return table


BYTE_TABLE = _byte_table()


def _bytewise(data: Buffer, state: int) -> int:
    for byte in bytes(data):
        state = BYTE_TABLE[(state ^ byte) & 255] ^ state >> 8
    return state


def _map(matrix: Sequence[int], value: int) -> int:
    """A linear map given by the images of the 32 bits."""
    result, bit = 0, 0
    while value:
        if value & 1:
            result ^= matrix[bit]
        value >>= 1
        bit += 1
    return result


@lru_cache(maxsize=None)
def _advance_matrix(log2_bytes: int) -> Tuple[int, ...]:
    """The map from the remainder of a message to that of the message with 2^log2_bytes zero bytes behind it."""
    if log2_bytes == 0:
        return tuple(_bytewise(b"\0", 1 << bit) for bit in range(32))
    half = _advance_matrix(log2_bytes - 1)
    return tuple(_map(half, image) for image in half)


def advance(state: int, n_bytes: int) -> int:
    log2_bytes = 0
    while n_bytes:
        if n_bytes & 1:
            state = _map(_advance_matrix(log2_bytes), state)
        n_bytes >>= 1
        log2_bytes += 1
    return state


@lru_cache(maxsize=None)
def _bit_remainders() -> Words:
    """(32 * (SHORT's highest + 1)) the remainder of each bit, words in message order: the last 32 belong to the last word."""
    words = np.array([_advance_matrix(2)], np.uint32)    # (n, 32)
    while len(words) <= SHORT[-1]:
        matrix = np.array([advance(1 << bit, 4 * len(words)) for bit in range(32)], np.uint32)
        before = np.zeros_like(words)
        for bit in range(32):
            before ^= (words >> np.uint32(bit) & np.uint32(1)) * matrix[bit]
        words = np.concatenate([before, words])
    return words[-SHORT[-1] - 1:].reshape(-1)


def _fold(words: Words, exponents: Tuple[int, ...]) -> Words:
    """The last words, as many as the highest exponent, of a message with the same remainder. Overwrites the message."""
    highest, gap = exponents[-1], exponents[-1] - exponents[-2]
    end = len(words) - highest
    for begin in range(0, end, gap):
        block = words[begin:min(begin + gap, end)]
        for exponent in exponents[:-1]:
            target = begin + highest - exponent
            words[target:target + len(block)] ^= block
    return words[end:]


def remainder(data: Buffer) -> int:
    """The remainder of the bytes."""
    n = len(data)
    if n <= 48:
        return _bytewise(data, 0)
    words = np.zeros((n + 3) // 4, np.dtype("<u4"))    # zero bytes in front change nothing
    words.view(np.uint8)[-n:] = np.frombuffer(data, np.uint8)
    for exponents in (LONG, SHORT):
        if len(words) > exponents[-1]:
            words = _fold(words, exponents)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return int(np.bitwise_xor.reduce(_bit_remainders()[-len(bits):] * bits))


class Piece(NamedTuple):
    """A stretch of bytes: its remainder and its length."""
    remainder: int
    n_bytes: int

    @staticmethod
    def of(data: Buffer) -> Piece:
        return Piece(remainder(data), len(data))

    def then(self, after: Piece) -> Piece:
        return Piece(advance(self.remainder, after.n_bytes) ^ after.remainder, self.n_bytes + after.n_bytes)

    def crc(self, before: int = 0) -> int:
        """The CRC of the bytes, continued from the CRC of what lies before them."""
        return advance(before ^ INVERT, self.n_bytes) ^ self.remainder ^ INVERT


def crc32c(data: Buffer, before: int = 0) -> int:
    """The CRC of the bytes; `before` is the CRC of what lies before them."""
    if len(data) <= 48:
        return _bytewise(data, before ^ INVERT) ^ INVERT
    return Piece.of(data).crc(before)
