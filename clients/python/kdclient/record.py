# SPDX-License-Identifier: Apache-2.0
"""Record bytes to arrays (kdserved-record(5)). Everything is checked: the bytes are the wire's or the disk's."""
from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Optional, Tuple

import numpy as np
import numpy.typing as npt

from . import query as questions
from . import golomb
from .checksum import Piece, advance, crc32c
from .cursor import Cursor, runs
from .errors import KdError
from .frame import Tokens
from .query import Query
from .rows import Bools, Floats, Integers, Rows

MAGIC, VERSION = b"KDRC", 3
HEADER_BYTES = 100
SHORT_HEADER_BYTES = 68              # without the teacher
FLAG_SHORT = 1
MAX_BYTES = 1 << 30
(STATUS, MAX_LOGIT, LSE, TOP_COUNTS, TOP_IDS, TOP_VALUES, DENSE, OWN, ENTROPY, MAX_PROB, ARGMAX, SUM_SQUARES, TAIL, GATHERED, DRAWS,
 DRAW_RATIOS, SPANS, FEATURE) = range(1, 19)
ABSENT = 0x7FC00000                  # the one NaN there may be
LARGEST = float(np.finfo(np.float32).max)
VALUE_BYTES = {"f32": 4, "f16": 2, "u8": 1}

Words = npt.NDArray[np.uint32]


def _fail(message: str, field: str = "record") -> KdError:
    return KdError("corrupt", message, field)


# ---- the header

@dataclass(frozen=True)
class Head:
    teacher: bytes
    vocab_size: int
    tokens: Tokens
    query: Query
    sections_at: int
    n_sections: int


def _check_crc(data: bytes, piece: Optional[Piece]) -> None:
    crc, = struct.unpack_from("<I", data, 12)
    rest = len(data) - 16
    if piece is None:
        found = crc32c(memoryview(data)[16:], crc32c(data[:12]))
    else:    # the whole record's remainder less that of its first 16 bytes
        found = Piece(piece.remainder ^ advance(Piece.of(data[:16]).remainder, rest), rest).crc(crc32c(data[:12]))
    if found != crc:
        raise _fail("wrong checksum")


def restore(short: bytes, piece: Piece, teacher: bytes, tokens: Tokens, query: bytes) -> Tuple[bytes, Piece]:
    """The whole record from its short form and the question it answers, and its checksum. That the two belong together shows when the
    record is decoded: its key, counts and checksum are those of the whole."""
    n_sections = len(short) - SHORT_HEADER_BYTES
    if n_sections < 0 or short[:8] != MAGIC + struct.pack("<HH", VERSION, FLAG_SHORT):
        raise _fail("not a record in its short form")
    head = b"".join((short[:6], b"\0\0", short[8:16], teacher, short[16:SHORT_HEADER_BYTES], query,
                     tokens.astype(np.dtype("<u4"), copy=False).tobytes()))
    before = Piece.of(short[:SHORT_HEADER_BYTES])
    sections = Piece(piece.remainder ^ advance(before.remainder, n_sections), n_sections)
    return head + short[SHORT_HEADER_BYTES:], Piece.of(head).then(sections)


def question(data: bytes) -> bytes:
    """The bytes of a record's question, if it is a record: nothing else is looked at."""
    n, = struct.unpack_from("<I", data, 92) if len(data) >= HEADER_BYTES else (0,)
    return data[HEADER_BYTES:HEADER_BYTES + n]


def _decode_head(data: bytes, piece: Optional[Piece], known: Optional[Query]) -> Head:
    n = len(data)
    if n < HEADER_BYTES or data[:4] != MAGIC:
        raise _fail("not a record")
    version, flags, n_bytes = struct.unpack_from("<HHI", data, 4)
    if version != VERSION:
        raise KdError("unsupported", "a record of version %d, this client knows %d" % (version, VERSION), "record")
    if flags:
        raise KdError("unsupported", "a record with flags %d" % flags, "record")
    if n_bytes != n or n > MAX_BYTES:
        raise _fail("%d bytes that claim to be %d" % (n, n_bytes))
    _check_crc(data, piece)
    vocab_size, n_tokens, n_rows, query_bytes, n_sections, reserved = struct.unpack_from("<IIIIHH", data, 80)
    at = HEADER_BYTES + query_bytes
    if not 1 <= vocab_size <= 1 << 24 or not n_tokens or reserved or at + 4 * n_tokens > n:
        raise _fail("impossible sizes")
    tokens = np.frombuffer(data, np.dtype("<u4"), n_tokens, at).astype(np.uint32)
    asked = data[HEADER_BYTES:at]
    query = known if known is not None and known.encoded == asked else questions.decode(asked, n_tokens, vocab_size)
    if int(tokens.max()) >= vocab_size or query.n_rows != n_rows:
        raise _fail("tokens or rows outside their bounds")
    if data[48:80] != questions.key(data[16:48], tokens, asked):
        raise _fail("the key is not the hash of the question")
    return Head(data[16:48], vocab_size, tokens, query, at + 4 * n_tokens, n_sections)


# ---- numbers

def _words(data: bytes) -> Words:
    return np.frombuffer(data, np.dtype("<u4")).astype(np.uint32)


class _Decoder:
    """One record: its sections are taken in the order of their tags, each with the length its question calls for."""

    def __init__(self, data: bytes, head: Head) -> None:
        self.head, self.query = head, head.query
        self.n_rows = self.query.n_rows
        self.width = head.vocab_size if self.query.keep is None else len(self.query.keep)
        self.cursor = Cursor(data, "record")
        self.cursor.at = head.sections_at
        self.left = head.n_sections
        self.ok: Bools = np.ones(self.n_rows, bool)
        self.max_logit: Floats = np.zeros(self.n_rows, np.float32)

    def section(self, tag: int, n_bytes: Optional[int] = None) -> bytes:
        if not self.left:
            raise _fail("section %d is missing" % tag)
        self.left -= 1
        found, reserved, n = self.cursor.unpack("<HHI")
        if found != tag or reserved or (n_bytes is not None and n != n_bytes):
            raise _fail("section %d of %d bytes where %d was due" % (found, n, tag))
        return self.cursor.take(n)

    def end(self) -> None:
        self.cursor.end()
        if self.left:
            raise _fail("%d sections too many" % self.left)

    def status(self) -> None:
        status = np.frombuffer(self.section(STATUS, self.n_rows), np.uint8)
        if (status > 1).any():
            raise _fail("an unknown row status", "status")
        self.ok = status == 0

    def column(self, tag: int, low: float, high: float, n: int = 1) -> Floats:
        """(R, n) numbers within bounds, zero bits in rows that are not ok."""
        bits = _words(self.section(tag, 4 * n * self.n_rows)).reshape(self.n_rows, n)
        values = bits.view(np.float32)
        if not ((values >= low) & (values <= high) | ~self.ok[:, None]).all() or bits[~self.ok].any():    # NaN fails both
            raise _fail("a number outside its bounds, or one in a row that has none", "section %d" % tag)
        return values

    def own(self) -> Floats:
        bits = _words(self.section(OWN, 4 * self.n_rows))
        following = self.head.tokens[self.query.first + 1:self.query.last + 2]
        exists = np.zeros(self.n_rows, bool)
        exists[:len(following)] = True if self.query.keep is None else np.isin(following, self.query.keep)
        values = bits.view(np.float32)
        good = np.where(exists, np.isfinite(values), bits == ABSENT)
        if not np.where(self.ok, good, bits == 0).all():
            raise _fail("a number where there is none, or none where there is one", "own")
        return values

    def argmax(self) -> Integers:
        ids = _words(self.section(ARGMAX, 4 * self.n_rows)).astype(np.int64)
        good = ids < self.head.vocab_size if self.query.keep is None else np.isin(ids, self.query.keep)
        if not np.where(self.ok, good, ids == 0).all():
            raise _fail("an id outside the vocabulary", "argmax")
        return ids

    # ---- values: logits in the question's format

    def values(self, tag: int, counts: Integers) -> Floats:
        """Of each row so many; zeros in rows that are not ok."""
        total, form = int(counts.sum()), self.query.values
        ranges = 4 * self.n_rows if form == "u8" else 0
        data = self.section(tag, VALUE_BYTES[form] * total + ranges)
        if self.n_rows and (counts == counts[0]).all():
            top: Floats = np.repeat(self.max_logit, int(counts[0])) if counts[0] > 1 else self.max_logit[:total]
            none = np.repeat(~self.ok, int(counts[0]))
        else:
            top, none = np.repeat(self.max_logit, counts), np.repeat(~self.ok, counts)
        if form == "f32":
            words = _words(data)
            bits, values = words.astype(bool), words.view(np.float32)
        elif form == "f16":
            halves = np.frombuffer(data, np.dtype("<f2"))
            bits, values = halves.view(np.uint16).astype(bool), halves.astype(np.float32) + top
            if not (halves <= 0).all():
                raise _fail("a difference above 0", "section %d" % tag)
        else:
            bits, values = self._codes(data, counts, top)
        if bits[none].any() or not ((values >= -LARGEST) & (values <= top)).all():
            raise _fail("a value above the row's largest or not finite, or one in a row that has none", "section %d" % tag)
        return values

    def _codes(self, data: bytes, counts: Integers, top: Floats) -> Tuple[Bools, Floats]:
        bits = _words(data[:4 * self.n_rows])
        codes = np.frombuffer(data, np.uint8, offset=4 * self.n_rows)
        largest = np.zeros(self.n_rows, np.int64)
        filled = counts > 0
        if filled.any():
            largest[filled] = np.maximum.reduceat(codes, runs(counts)[:-1][filled])
        if (bits >= 0x7F800000).any() or bits[~self.ok].any() or (largest != np.where(bits, 255, 0)).any():
            raise _fail("a range that is not that of its codes", "values")
        steps = bits.view(np.float32).astype(np.float64) / 255
        return codes.astype(bool), (top.astype(np.float64) - codes * np.repeat(steps, counts)).astype(np.float32)

    # ---- ids

    def positions(self, gaps: Integers, at: Integers) -> Integers:
        """Ascending ids of rows that begin at `at` from their gaps."""
        if not len(gaps):
            return gaps
        if int(gaps.max()) >= self.width:    # also keeps the sums small
            raise _fail("an id outside the vocabulary", "ids")
        sums = runs(gaps + 1)
        positions = sums[1:] - 1 - np.repeat(sums[at[:-1]], np.diff(at))
        if int(positions.max()) >= self.width:
            raise _fail("an id outside the vocabulary", "ids")
        return positions if self.query.keep is None else self.query.keep[positions]

    def top(self) -> Tuple[Integers, Integers, Floats]:
        """(R) how many ids, (R, K) ids and logits by descending logit."""
        k, n_top = self.query.top_k, np.where(self.ok, self.query.top_k, 0)
        if self.query.top_mass:
            n_top[self.ok] = golomb.decode_numbers(self.section(TOP_COUNTS), int(self.ok.sum())) + 1
            if self.n_rows and int(n_top.max()) > k:
                raise _fail("more ids than the top-k", "ids")
        at = runs(n_top)
        flat = self.positions(golomb.decode_numbers(self.section(TOP_IDS), int(at[-1])), at)
        if self.query.top_mass:
            values = self.values(TOP_VALUES, n_top)
        else:
            values = self.values(TOP_VALUES, np.full(self.n_rows, k))
            values = values.reshape(self.n_rows, k)[self.ok].reshape(-1)
        if len(flat) == self.n_rows * k:
            ids, logits, there = flat.reshape(self.n_rows, k), values.reshape(self.n_rows, k), None
        else:
            there = np.arange(k) < n_top[:, None]
            ids, logits = np.full((self.n_rows, k), -1), np.zeros((self.n_rows, k), np.float32)
            ids[there], logits[there] = flat, values
        ids, logits = _by_size(ids, logits, there)
        if (logits[self.ok, 0] != self.max_logit[self.ok]).any():
            raise _fail("the largest value is not the row's maximum", "values")
        return n_top, ids, logits

    def dense(self) -> Floats:
        dense = self.values(DENSE, np.full(self.n_rows, self.width)).reshape(self.n_rows, self.width)
        if (dense.max(axis=1)[self.ok] != self.max_logit[self.ok]).any():
            raise _fail("the largest value is not the row's maximum", "dense")
        return dense

    def gathered(self) -> Tuple[Integers, Integers, Floats]:
        lists = self.query.gather
        assert lists is not None
        counts = np.diff(lists.at)
        ids = lists.ids.copy()    # the caller's, and the question's stay as they are
        if len(lists) == 1:
            counts, ids = np.repeat(counts, self.n_rows), np.tile(ids, self.n_rows)
        return runs(counts), ids, self.values(GATHERED, counts)

    # ---- draws

    def draws(self, tail: Optional[Floats]) -> Tuple[Integers, Integers, Integers]:
        """(R + 1) where rows begin; distinct ids and counts."""
        asked = self.query.draws
        assert asked is not None
        drawn = self.ok & (tail != -np.inf) if asked.tail and tail is not None else self.ok
        gaps, counts = golomb.decode_pairs(self.section(DRAWS), asked.n * int(drawn.sum()))
        sums, due = np.cumsum(counts), asked.n * np.arange(1, int(drawn.sum()) + 1)
        ends = np.searchsorted(sums, due) + 1
        if (sums[ends - 1] != due).any():
            raise _fail("counts of a row that do not sum to the draws", "draws")
        at = np.zeros(self.n_rows + 1, np.int64)
        at[1:][drawn] = np.diff(ends, prepend=0)
        at = np.cumsum(at)
        return at, self.positions(gaps, at), counts

    def draw_ratios(self, n: int) -> Floats:
        values = _words(self.section(DRAW_RATIOS, 4 * n)).view(np.float32)
        if not np.isfinite(values).all():
            raise _fail("a number that is not finite", "draws")
        return values

    # ---- spans and features

    def spans(self) -> Floats:
        bits = _words(self.section(SPANS, 4 * len(self.query.spans)))
        values = bits.view(np.float32)
        if not (np.isfinite(values) | (bits == ABSENT)).all():
            raise _fail("a number that is not finite", "spans")
        return values

    def feature(self) -> Floats:
        data = self.section(FEATURE)
        form, n_rows = self.query.feature_values, self.n_rows if self.query.pooling == "none" else 1
        width = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0
        if not width or len(data) != 4 + (4 if form == "f32" else 2) * n_rows * width:
            raise _fail("%d bytes for vectors of %d" % (len(data), width), "features")
        bits = np.frombuffer(data, np.dtype("<u4" if form == "f32" else "<u2"), offset=4).reshape(n_rows, width)
        if form == "f16":
            values = bits.view(np.dtype("<f2")).astype(np.float32)
        else:
            values = (bits.astype(np.uint32) << np.uint32(16 if form == "bf16" else 0)).view(np.float32)
        none = {"f32": ABSENT, "f16": 0x7E00, "bf16": 0x7FC0}[form]
        finite = np.isfinite(values).all(axis=1)
        good = np.where(self.ok, finite, (bits == 0).all(axis=1)) if self.query.pooling == "none" else finite | (bits == none).all(axis=1)
        if not good.all():
            raise _fail("a number that is not finite", "features")
        return values


def _by_size(ids: Integers, values: Floats, there: Optional[Bools]) -> Tuple[Integers, Floats]:
    """Rows of ascending ids by descending value, the lower id first among equals; places that are not there last."""
    bits = (values + np.float32(0)).view(np.int32).astype(np.int64)    # + 0: both zeros are equal
    ascending = np.where(bits < 0, np.int64(-1 << 31) - bits, bits)    # integers in the order of the floats
    if there is not None:
        ascending[~there] = -1 << 33
    keys = ascending * -(1 << 24) + np.arange(ids.shape[1])    # a row has at most 2^24 ids
    keys.sort(axis=1)
    order = keys & ((1 << 24) - 1)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)


def _check_tail(at: Integers, drawn: Integers, ids: Integers) -> None:
    """No row's drawn ids are among its top-k."""
    rows = np.repeat(np.arange(len(at) - 1), np.diff(at))
    top = ids + (np.arange(len(ids)) << 24)[:, None]
    if np.isin(drawn + (rows << 24), top[ids >= 0]).any():
        raise _fail("an id of the top-k was drawn from outside it", "draws")


def _decode_sections(d: _Decoder) -> Dict[str, Any]:
    q, found = d.query, {}    # type: Query, Dict[str, Any]
    if q.has_rows() or (q.features and q.pooling == "none"):
        d.status()
    if q.has_rows():
        d.max_logit = found["max_logit"] = d.column(MAX_LOGIT, -LARGEST, LARGEST)[:, 0]
        found["lse"] = d.column(LSE, -LARGEST, LARGEST, len(q.temperatures))
    if q.top_k:
        found["n_top"], found["ids"], found["logits"] = d.top()
    if q.dense:
        found["dense"] = d.dense()
    if q.own:
        found["own_logit"] = d.own()
    if q.entropy:
        found["entropy"] = d.column(ENTROPY, -LARGEST, LARGEST)[:, 0]
    if q.max_prob:
        found["max_prob"] = d.column(MAX_PROB, 0, 1)[:, 0]
    if q.argmax:
        found["argmax"] = d.argmax()
    if q.sum_squares:
        found["sum_squares"] = d.column(SUM_SQUARES, 0, 1)[:, 0]
    if q.tail:
        found["tail"] = d.column(TAIL, -np.inf, 0)[:, 0]
    if q.gather is not None:
        found["gather_at"], found["gather_ids"], found["gathered"] = d.gathered()
    if q.draws is not None:
        found["draw_at"], found["draw_ids"], found["draw_counts"] = d.draws(found.get("tail"))
        if q.draws.tail:
            _check_tail(found["draw_at"], found["draw_ids"], found["ids"])
        if q.draws.tau != 1:
            found["draw_log_ratios"] = d.draw_ratios(len(found["draw_ids"]))
    if q.spans:
        found["span_sums"] = d.spans()
    if q.features:
        found["features"] = [d.feature() for _ in q.features]
    d.end()
    return found


def decode(data: bytes, cached: bool = False, piece: Optional[Piece] = None, known: Optional[Query] = None) -> Rows:
    """Checks a record and unpacks it. `piece` is its checksum where that was computed already; `known` a canonical question that it may
    have.
    Raises KdError ("corrupt", "unsupported")."""
    head = _decode_head(data, piece, known)
    decoder = _Decoder(data, head)
    with np.errstate(all="ignore"):    # numbers that are not finite are looked for, not computed with
        found = _decode_sections(decoder)
    return Rows(teacher=head.teacher.hex(), vocab_size=head.vocab_size, tokens=head.tokens, query=head.query, record=data, cached=cached,
                ok=decoder.ok, **found)


def split(data: bytes) -> Iterator[bytes]:
    """The records of a file that holds one after the other (kdctl score --records)."""
    at = 0
    while at < len(data):
        n = struct.unpack_from("<I", data, at + 8)[0] if at + HEADER_BYTES <= len(data) else 0
        if n < HEADER_BYTES or at + n > len(data) or data[at:at + 4] != MAGIC:
            raise _fail("no record at byte %d" % at)
        yield data[at:at + n]
        at += n


