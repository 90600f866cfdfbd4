# SPDX-License-Identifier: Apache-2.0
"""What is asked of each position, its canonical form and its bytes (kdserved-record(5), Question).

The server is the validator of what callers ask: this module refuses only what cannot be written down. Questions that come in records are
checked whole, because what follows them is read by them.
"""
from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, TypedDict, Union

import numpy as np
import numpy.typing as npt

from .checksum import Buffer
from .cursor import Cursor, runs, tuples, varints
from .errors import KdError
from .frame import Tokens

VERSION = 2
VALUES = ("f32", "f16", "u8")
FEATURE_VALUES = ("f32", "f16", "bf16")
POOLINGS = ("none", "mean", "last")
KINDS = ("hidden", "final", "q", "k", "v")
MAX_TEMPERATURES, MAX_FEATURES = 16, 64
MIN_TEMPERATURE, MIN_TAU = float(np.float32(1e-4)), float(np.float32(0.01))

# Signals in order of their bits; from top_mass on they have parameters.
FLAGS = ("own", "entropy", "max_prob", "argmax", "sum_squares", "tail", "dense")
TOP_MASS, GATHER, DRAWS, KEEP, SPANS, FEATURES = (1 << bit for bit in range(7, 13))
ALL_BITS = (1 << 13) - 1

Integers = npt.NDArray[np.int64]
_HEAD = struct.Struct("<BBBBIIii")


def as_ids(ids: object, field: str) -> Integers:
    """One list of ids from a list, an array or anything with __array__ (a torch tensor, say)."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise KdError("invalid", "this is not one list of integers", field)
    if array.size and (int(array.min()) < 0 or int(array.max()) >= 1 << 32):
        raise KdError("invalid", "an id is negative or above 32 bits", field)
    return array.astype(np.int64)


def as_tokens(tokens: object, field: str = "tokens") -> Tokens:
    return as_ids(tokens, field).astype(np.uint32)


@dataclass(frozen=True)
class Draws:
    """n random ids with replacement, proposed by probability^tau; the same seed draws the same. tail: only outside the row's top-k."""
    n: int
    tau: float = 1.0
    seed: int = 0
    tail: bool = False


@dataclass(frozen=True)
class Feature:
    """Vectors of a layer: "hidden" is the residual stream after block `layer` (0 = the embedding), "final" what the LM head multiplies
    (layer 0), "q", "k", "v" the rows of block `layer` from 0, all heads, before rotation."""
    kind: str
    layer: int = 0


@dataclass(frozen=True, eq=False)
class Lists:
    """Ragged lists of ids: list i is ids[at[i]:at[i + 1]]. One list is for all rows, else there is one a row."""
    at: Integers
    ids: Integers

    def __len__(self) -> int:
        return len(self.at) - 1

    @cached_property
    def encoded(self) -> bytes:
        return varints([len(self)]) + varints(np.diff(self.at)) + varints(self.ids)

    @staticmethod
    def of(lists: Sequence[Integers]) -> Lists:
        return Lists(runs(np.array([len(x) for x in lists], np.int64)), np.concatenate([np.zeros(0, np.int64), *lists]))


class Question(TypedDict, total=False):
    """What is asked of each row; anything may be combined. Row i is what the teacher predicts after reading tokens 0 to i.

    gather: one list of ids for all rows; or for each row a list; with several sequences, for each sequence either of the two.
    spans: (begin, end) of tokens, begin >= 1, end None = to the end; with several sequences the same for each, or a list for each.
    first, last: with several sequences the same for each, or a list of one for each.
    """
    top_k: int                        # the ids of the largest logits
    top_mass: float                   # the fewest ids whose probability sums to this, at most top_k
    dense: bool                       # all logits
    temperatures: Iterable[float]     # at which the lse is wanted; none = at 1
    own: bool                         # the logit of the token that really follows
    entropy: bool                     # this and the next four at temperature 1
    max_prob: bool
    argmax: bool
    sum_squares: bool                 # of the probabilities
    tail: bool                        # log of the probability outside the top-k
    first: Union[int, Iterable[int]]  # rows wanted, inclusive; negative counts from the end
    last: Union[int, Iterable[int]]
    values: str                       # how logits travel: "f32" (exact), "f16" or "u8" (differences to the row's largest)
    draws: Union[Draws, Mapping[str, Any]]
    gather: Any
    keep: Any                         # ids to which the vocabulary is restricted: every number is over these alone
    spans: Any                        # sums of the log-probabilities of the own tokens
    features: Iterable[Union[Feature, Tuple[str, int]]]
    pooling: str                      # of all features over the rows: "none", "mean", "last"
    feature_values: str               # "f32", "f16", "bf16"


@dataclass(frozen=True, eq=False)
class Query:
    """A question as it is written down. See Question for the meaning of the fields."""
    top_k: int = 0
    top_mass: float = 0.0
    dense: bool = False
    temperatures: Tuple[float, ...] = ()
    own: bool = False
    entropy: bool = False
    max_prob: bool = False
    argmax: bool = False
    sum_squares: bool = False
    tail: bool = False
    first: int = 0
    last: int = -1
    values: str = "f32"
    draws: Optional[Draws] = None
    gather: Optional[Lists] = None
    keep: Optional[Integers] = None
    spans: Tuple[Tuple[int, ...], ...] = ()
    features: Tuple[Feature, ...] = ()
    pooling: str = "none"
    feature_values: str = "f32"

    @property
    def n_rows(self) -> int:
        return self.last - self.first + 1

    def has_rows(self) -> bool:
        """Asks for something of the vocabulary."""
        return bool(self.top_k or self.temperatures or any(getattr(self, f) for f in FLAGS) or self.draws or self.gather is not None)

    def _bits(self) -> int:
        bits = sum(1 << bit for bit, flag in enumerate(FLAGS) if getattr(self, flag))
        lists = ((self.top_mass != 0, TOP_MASS), (self.gather is not None, GATHER), (self.draws is not None, DRAWS),
                 (self.keep is not None, KEEP), (bool(self.spans), SPANS), (bool(self.features), FEATURES))
        return bits | sum(bit for asked, bit in lists if asked)

    @cached_property
    def encoded(self) -> bytes:
        """Its bytes, canonical if it is."""
        if len(self.temperatures) > MAX_TEMPERATURES:
            raise KdError("too_large", "%d temperatures, the limit is %d" % (len(self.temperatures), MAX_TEMPERATURES), "temperatures")
        if len(self.features) > MAX_FEATURES:
            raise KdError("too_large", "%d features, the limit is %d" % (len(self.features), MAX_FEATURES), "features")
        try:
            return b"".join(self._parts())
        except (struct.error, OverflowError) as error:
            raise KdError("invalid", "the question cannot be written down: %s" % error, "query") from None

    def _parts(self) -> Iterable[bytes]:
        yield _HEAD.pack(VERSION, _place(self.values, VALUES, "values"), len(self.temperatures), 0, self._bits(), self.top_k, self.first,
                         self.last)
        yield struct.pack("<%df" % len(self.temperatures), *self.temperatures)
        if self.top_mass != 0:
            yield struct.pack("<f", self.top_mass)
        if self.gather is not None:
            yield self.gather.encoded
        if self.draws is not None:
            yield varints([self.draws.n]) + struct.pack("<fQB", self.draws.tau, self.draws.seed, self.draws.tail)
        if self.keep is not None:
            yield varints([len(self.keep)]) + varints((self.keep - np.concatenate([[0], self.keep[:-1] + 1])) & 0xFFFFFFFF)
        if self.spans:
            yield spans_bytes(self.spans)
        if self.features:
            yield bytes([len(self.features), _place(self.pooling, POOLINGS, "pooling"),
                         _place(self.feature_values, FEATURE_VALUES, "feature_values")])
            for i, feature in enumerate(self.features):
                yield struct.pack("<BH", _place(feature.kind, KINDS, "features[%d].kind" % i), feature.layer)

    def canonical(self, n_tokens: int) -> Query:
        """The form it has in the record of a sequence of so many tokens, if the server finds it valid."""
        temperatures = tuple(sorted({_f32(t) for t in self.temperatures}))
        whole = not self.has_rows() and not self.features
        plain = not self.top_k and not self.dense and self.gather is None
        return replace(
            self, temperatures=temperatures or ((1.0,) if self.has_rows() else ()), top_mass=_f32(self.top_mass),
            first=0 if whole else self.first + (n_tokens if self.first < 0 else 0),
            last=n_tokens - 1 if whole else self.last + (n_tokens if self.last < 0 else 0),
            keep=None if self.keep is None else np.unique(self.keep), tail=self.tail or (self.draws is not None and self.draws.tail),
            values="f32" if plain else self.values, pooling=self.pooling if self.features else "none",
            feature_values=self.feature_values if self.features else "f32")

    def check(self, n_tokens: int, vocab_size: int) -> None:
        """Raises unless a record may have this question."""
        width = vocab_size if self.keep is None else len(self.keep)
        good = 0 <= self.first <= self.last < n_tokens and all(MIN_TEMPERATURE <= t <= 1e6 for t in self.temperatures)
        good = good and self.canonical(n_tokens).encoded == self.encoded and self.top_k <= width
        good = good and (bool(self.top_k) or not (self.tail or self.top_mass)) and 0 <= self.top_mass <= 1
        good = good and (self.has_rows() or bool(self.spans) or bool(self.features))
        good = good and (self.keep is None or (int(self.keep.max()) < vocab_size and bool((np.diff(self.keep) > 0).all())))
        good = good and all(1 <= begin < end <= n_tokens for begin, end in self.spans)
        good = good and all(f.kind != "final" or f.layer == 0 for f in self.features)
        if self.draws is not None:
            good = good and self.draws.n > 0 and MIN_TAU <= self.draws.tau <= 100
            good = good and (bool(self.top_k) or not self.draws.tail)
        if self.gather is not None:
            inside = self.gather.ids < vocab_size if self.keep is None else np.isin(self.gather.ids, self.keep)
            good = good and len(self.gather) in (1, self.n_rows) and bool(inside.all())
        if not good:
            raise KdError("corrupt", "a question that is not canonical or not valid", "query")


def _pack(field: str, form: str, *values: Any) -> bytes:
    try:
        return struct.pack(form, *values)
    except (struct.error, OverflowError) as error:
        raise KdError("invalid", "it cannot be written down: %s" % error, field) from None


def _f32(number: float) -> float:
    return float(np.float32(number))


def _place(word: str, words: Tuple[str, ...], field: str) -> int:
    if word not in words:
        raise KdError("invalid", "%r is not one of %s" % (word, ", ".join(words)), field)
    return words.index(word)


def spans_bytes(spans: Sequence[Tuple[int, ...]]) -> bytes:
    return varints([len(spans)]) + varints(np.array(spans, np.int64))


@dataclass(frozen=True, eq=False)
class Part:
    """What one sequence asks instead of the query: rows, lists, spans; None = what the query asks."""
    rows: Optional[Tuple[int, int]] = None
    gather: Optional[Lists] = None
    spans: Optional[Tuple[Tuple[int, ...], ...]] = None

    @cached_property
    def encoded(self) -> bytes:
        bits = (1 if self.rows else 0) | (2 if self.gather else 0) | (4 if self.spans else 0)
        return b"".join((bytes([bits]), _pack("first", "<ii", *self.rows) if self.rows else b"",
                         self.gather.encoded if self.gather else b"", spans_bytes(self.spans) if self.spans else b""))

    def of(self, query: Query) -> Query:
        first, last = self.rows or (query.first, query.last)
        return replace(query, first=first, last=last, gather=self.gather or query.gather, spans=self.spans or query.spans)


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked of several sequences: one query, and of each sequence the part that differs, if any does."""
    query: Query
    parts: Sequence[Part] = ()

    def of(self, i: int) -> Query:
        return self.parts[i].of(self.query) if self.parts else self.query

    def part(self, i: int) -> bytes:
        return self.parts[i].encoded if self.parts else b""


# ---- from what the caller wrote

def ask(question: Mapping[str, Any], sequences: Sequence[Tokens], single: bool) -> Asked:
    unknown = set(question) - set(Question.__annotations__)
    if unknown:
        raise TypeError("there is no signal called %s" % ", ".join(sorted(unknown)))
    same = {name: value for name, value in question.items() if value is not None}
    gather, spans = same.pop("gather", None), same.pop("spans", None)
    same["temperatures"] = tuple(float(t) for t in same.get("temperatures", ()))
    same["draws"] = _draws(same.get("draws"))
    same["features"] = tuple(f if isinstance(f, Feature) else Feature(*f) for f in same.get("features", ()))
    if "keep" in same:
        same["keep"] = as_ids(same["keep"], "keep")
        if not len(same["keep"]):
            raise KdError("invalid", "it is empty: leave it out for the whole vocabulary", "keep")
    n = len(sequences)
    rows = _rows(same, n)
    lists = [None] * n if gather is None else _gather(gather, n, single)
    pairs = [None] * n if spans is None else _spans(spans, sequences, single)
    if any(r is not None for r in rows) or any(x is not lists[0] for x in lists) or any(p != pairs[0] for p in pairs):
        return Asked(Query(**same), [Part(*part) for part in zip(rows, lists, pairs)])
    return Asked(Query(gather=lists[0], spans=pairs[0] or (), **same))


def _rows(same: Dict[str, Any], n: int) -> Sequence[Optional[Tuple[int, int]]]:
    """first and last of each sequence, taken out, if they are lists."""
    ends = [same.get("first", 0), same.get("last", -1)]
    if all(np.ndim(end) == 0 for end in ends):
        return [None] * n
    same.pop("first", None), same.pop("last", None)
    for name, end in zip(("first", "last"), ends):
        if np.ndim(end) and len(end) != n:
            raise KdError("invalid", "%d numbers for %d sequences" % (len(end), n), name)
    first, last = (np.broadcast_to(np.asarray(end), n).tolist() for end in ends)
    return list(zip(first, last))


def _draws(draws: Union[Draws, Mapping[str, Any], None]) -> Optional[Draws]:
    if draws is None:
        return None
    made = draws if isinstance(draws, Draws) else Draws(**draws)
    if made.n != int(made.n) or made.n < 1:
        raise KdError("invalid", "there must be one or more, a whole number", "draws.n")
    return replace(made, tau=_f32(made.tau))    # as the record has it: 1 is a case of its own


def _depth(nested: Any) -> int:
    """Of lists in lists; an array's dimensions."""
    depth = 0
    while not np.isscalar(nested) and nested is not None and getattr(nested, "ndim", 1) != 0:
        if hasattr(nested, "ndim"):
            return depth + int(nested.ndim)
        depth += 1
        if not len(nested):
            return depth
        nested = next((x for x in nested if np.isscalar(x) or len(x)), nested[0])
    return depth


def _gather(gather: Any, n_sequences: int, single: bool) -> Sequence[Optional[Lists]]:
    depth = _depth(gather)
    if depth == 1:
        return [Lists.of([as_ids(gather, "gather")])] * n_sequences
    if single:
        return [_lists(gather, "gather")]
    if len(gather) != n_sequences:
        raise KdError("invalid", "%d entries for %d sequences" % (len(gather), n_sequences), "gather")
    return [Lists.of([as_ids(g, "gather[%d]" % i)]) if _depth(g) == 1 else _lists(g, "gather[%d]" % i) for i, g in enumerate(gather)]


def _lists(gather: Any, field: str) -> Lists:
    if not len(gather):
        raise KdError("invalid", "there are no lists", field)
    return Lists.of([as_ids(ids, "%s[%d]" % (field, row)) for row, ids in enumerate(gather)])


def _spans(spans: Any, sequences: Sequence[Tokens], single: bool) -> Sequence[Optional[Tuple[Tuple[int, ...], ...]]]:
    empty = len(spans) > 0 and not any(len(pairs) for pairs in spans)    # [[], []]: none for either of two sequences
    each = [spans] * len(sequences) if single or (_depth(spans) < 3 and not empty) else list(spans)
    if len(each) != len(sequences):
        raise KdError("invalid", "%d entries for %d sequences" % (len(each), len(sequences)), "spans")
    made: List[Tuple[Tuple[int, ...], ...]] = []
    for pairs, tokens in zip(each, sequences):
        ends = [(int(begin), len(tokens) if end is None else int(end)) for begin, end in pairs]
        if any(begin < 0 or end < 0 or end >= 1 << 32 for begin, end in ends):
            raise KdError("invalid", "a span is (begin, end) with 1 <= begin < end", "spans")
        made.append(tuple(ends))
    return made


# ---- ids and bytes of records

def sequence_id(tokens: Tokens) -> bytes:
    return hashlib.sha256(b"kdserved sequence 1\n" + tokens.astype(np.dtype("<u4"), copy=False).tobytes()).digest()


def key(teacher: bytes, tokens: Tokens, canonical: Buffer) -> bytes:
    return hashlib.sha256(b"kdserved key 1\n" + teacher + sequence_id(tokens) + bytes(canonical)).digest()


def _word(index: int, words: Tuple[str, ...], cursor: Cursor) -> str:
    if index >= len(words):
        raise KdError("unsupported", "number %d where %d words are known" % (index, len(words)), cursor.name)
    return words[index]


def _read_lists(c: Cursor) -> Lists:
    counts = c.varints(c.varint())
    at = runs(counts)
    return Lists(at, c.varints(int(at[-1])))


def _read_draws(c: Cursor) -> Draws:
    n = c.varint()
    tau, seed, tail = c.unpack("<fQB")
    if tail > 1:
        raise c.fail("a flag that is %d" % tail)
    return Draws(n, tau, seed, bool(tail))


def _read_keep(c: Cursor) -> Integers:
    gaps = c.varints(c.varint())
    if not len(gaps):
        raise c.fail("an empty list")
    return (np.cumsum(gaps + 1) - 1) & 0xFFFFFFFF    # unsorted ones wrap around


def read(data: bytes) -> Query:
    """A question, canonical or not, in its one form."""
    c = Cursor(data, "query")
    version, values, n_temperatures, reserved, bits, top_k, first, last = c.unpack(_HEAD.format)
    if version != VERSION or reserved or bits & ~ALL_BITS:
        raise KdError("unsupported", "a question of version %d with signals %#x" % (version, bits), "query")
    if n_temperatures > MAX_TEMPERATURES:
        raise c.fail("%d temperatures" % n_temperatures)
    found: dict[str, Any] = {flag: bool(bits >> bit & 1) for bit, flag in enumerate(FLAGS)}
    found["temperatures"] = c.unpack("<%df" % n_temperatures)
    if bits & TOP_MASS:
        found["top_mass"], = c.unpack("<f")
    if bits & GATHER:
        found["gather"] = _read_lists(c)
    if bits & DRAWS:
        found["draws"] = _read_draws(c)
    if bits & KEEP:
        found["keep"] = _read_keep(c)
    if bits & SPANS:
        found["spans"] = tuple(tuples(c.varints(2 * c.varint()), 2))
    if bits & FEATURES:
        n, pooling, feature_values = c.unpack("<BBB")
        found["pooling"], found["feature_values"] = _word(pooling, POOLINGS, c), _word(feature_values, FEATURE_VALUES, c)
        found["features"] = tuple(Feature(_word(kind, KINDS, c), layer) for kind, layer in (c.unpack("<BH") for _ in range(n)))
    c.end()
    query = Query(top_k=top_k, first=first, last=last, values=_word(values, VALUES, c), **found)
    if any(math.isnan(t) for t in query.temperatures) or query.encoded != data:
        raise c.fail("a question in another than its one form")
    return query


def decode(data: bytes, n_tokens: int, vocab_size: int) -> Query:
    """The canonical question of a record."""
    query = read(data)
    query.check(n_tokens, vocab_size)
    return query
