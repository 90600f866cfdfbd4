# SPDX-License-Identifier: Apache-2.0
"""What is asked of each position, its canonical form and its bytes (kdserved-record(5)).

The server is the validator: this module refuses only what cannot be written down.
"""
from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace
from typing import Any, Iterable, List, Mapping, Sequence, Tuple, TypedDict

import numpy as np

from .checksum import Buffer
from .errors import KdError
from .frame import Tokens

VERSION = 1
VALUES = ("f32", "f16")
MAX_TEMPERATURES = 16
OWN, ENTROPY = 1, 2

_HEAD = struct.Struct("<BBBBIii")


def as_tokens(tokens: object, field: str = "tokens") -> Tokens:
    """A contiguous array of u32 ids from a list, an array or anything with __array__ (a torch tensor, say)."""
    array = np.asarray(tokens)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise KdError("invalid", "tokens are one list of integers", field)
    if array.size and (int(array.min()) < 0 or int(array.max()) >= 1 << 32):
        raise KdError("invalid", "an id is negative or above 32 bits", field)
    return np.ascontiguousarray(array, np.uint32)


class Question(TypedDict, total=False):
    """What is asked of each row; anything may be combined. Row i is what the teacher predicts after reading tokens 0 to i."""
    top_k: int                        # the ids of the largest logits
    temperatures: Iterable[float]     # at which the lse is wanted; none = at 1
    own: bool                         # the logit of the token that really follows
    entropy: bool                     # natural, at temperature 1
    first: int                        # rows wanted, inclusive; negative counts from the end
    last: int
    values: str                       # how logits travel: "f32" (exact) or "f16" (difference to the row's largest)


@dataclass(frozen=True)
class Query:
    """See Teacher.score for the meaning of each field."""
    top_k: int = 0
    temperatures: Tuple[float, ...] = ()
    own: bool = False
    entropy: bool = False
    first: int = 0
    last: int = -1
    values: str = "f32"

    @staticmethod
    def of(question: Mapping[str, Any], sequences: Sequence[Tokens], single: bool) -> List["Query"]:
        """The query of each sequence."""
        unknown = set(question) - set(Question.__annotations__)
        if unknown:
            raise TypeError("there is no signal called %s" % ", ".join(sorted(unknown)))
        plain = dict(question)
        plain["temperatures"] = tuple(float(t) for t in plain.get("temperatures", ()))
        return [Query(**plain)] * len(sequences)

    def encode(self) -> bytes:
        """Its bytes, canonical if it is."""
        if self.values not in VALUES:
            raise KdError("invalid", "values are one of %s" % ", ".join(VALUES), "values")
        if len(self.temperatures) > MAX_TEMPERATURES:
            raise KdError("too_large", "%d temperatures, the limit is %d" % (len(self.temperatures), MAX_TEMPERATURES), "temperatures")
        signals = (OWN if self.own else 0) | (ENTROPY if self.entropy else 0)
        try:
            head = _HEAD.pack(VERSION, signals, VALUES.index(self.values), len(self.temperatures), self.top_k, self.first, self.last)
            return head + struct.pack("<%df" % len(self.temperatures), *self.temperatures)
        except (struct.error, OverflowError) as error:
            raise KdError("invalid", "the question cannot be written down: %s" % error, "query") from None

    def canonical(self, n_tokens: int) -> "Query":
        """The form of the record's question for a sequence of so many tokens."""
        temperatures = sorted({float(np.float32(t)) for t in self.temperatures}) or [1.0]
        return replace(self, temperatures=tuple(temperatures), first=self.first + (n_tokens if self.first < 0 else 0),
                       last=self.last + (n_tokens if self.last < 0 else 0))


def sequence_id(tokens: Tokens) -> bytes:
    return hashlib.sha256(b"kdserved sequence 1\n" + tokens.astype(np.dtype("<u4"), copy=False).tobytes()).digest()


def key(teacher: bytes, tokens: Tokens, canonical: Buffer) -> bytes:
    return hashlib.sha256(b"kdserved key 1\n" + teacher + sequence_id(tokens) + bytes(canonical)).digest()


def decode(data: bytes, n_tokens: int) -> Query:
    """The canonical question of a record."""
    if len(data) < _HEAD.size:
        raise KdError("corrupt", "the question is cut short", "query")
    version, signals, values, n_temperatures, top_k, first, last = _HEAD.unpack_from(data)
    if version != VERSION or signals & ~(OWN | ENTROPY) or values >= len(VALUES):
        raise KdError("unsupported", "a question of version %d with signals %#x" % (version, signals), "query")
    if not 1 <= n_temperatures <= MAX_TEMPERATURES or len(data) != _HEAD.size + 4 * n_temperatures:
        raise KdError("corrupt", "a question with impossible sizes", "query")
    temperatures = struct.unpack_from("<%df" % n_temperatures, data, _HEAD.size)
    ascending = all(a < b for a, b in zip(temperatures, temperatures[1:]))
    if not 0 <= first <= last < n_tokens or not ascending or not 1e-4 <= temperatures[0] <= temperatures[-1] <= 1e6:
        raise KdError("corrupt", "a question that is not canonical", "query")
    return Query(top_k, temperatures, bool(signals & OWN), bool(signals & ENTROPY), first, last, VALUES[values])
