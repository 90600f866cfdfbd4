# SPDX-License-Identifier: Apache-2.0
"""Records: what the teacher said about one sequence (kdserved-record(5)), as arrays."""
from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt

from . import query as questions
from . import rice
from .checksum import INVERT, Piece, advance, crc32c
from .errors import KdError
from .frame import Tokens
from .query import Query

MAGIC, VERSION = b"KDRC", 1
HEADER_BYTES = 96
MAX_BYTES = 1 << 30
STATUS, MAX_LOGIT, LSE, IDS, VALUES_F32, VALUES_F16, OWN, ENTROPY = range(1, 9)
ABSENT = np.uint32(0x7FC00000)

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass
class Rows:
    """The answer for one sequence. Row r is position query.first + r: what the teacher predicts after reading tokens 0 to that position.

    Arrays are row-major and belong to the caller; None where not asked for. Rows that are not `ok` (the teacher gave NaN or infinity) hold
    zeros.
    """
    teacher: str              # fingerprint, hexadecimal
    vocab_size: int
    tokens: Tokens            # of the sequence
    query: Query              # canonical: temperatures ascending, first and last from 0
    record: bytes             # the bytes, to be kept as they are
    cached: bool              # it came from the server's store
    ok: Bools                 # (R)
    max_logit: Floats         # (R)
    lse: Floats               # (R, N) at each temperature
    ids: Optional[Ids]        # (R, K) by descending logit, ties to the lower id
    logits: Optional[Floats]  # (R, K) raw
    own_logit: Optional[Floats]    # (R) NaN where no token follows
    entropy: Optional[Floats]      # (R) natural logarithm, temperature 1

    def __len__(self) -> int:
        return len(self.ok)

    @property
    def key(self) -> str:
        """The content key: hash of teacher, tokens and question."""
        return self.record[48:80].hex()

    def lse_at(self, temperature: float = 1.0) -> Floats:
        """(R) log of the sum over the vocabulary of exp(logit / T)."""
        wanted = float(np.float32(temperature))
        if wanted not in self.query.temperatures:
            raise KdError("invalid", "the lse at %g was not asked; ask for temperatures=[...]" % temperature, "temperatures")
        column: Floats = self.lse[:, self.query.temperatures.index(wanted)]
        return column

    def logprobs(self, temperature: float = 1.0) -> Floats:
        """(R, K) log-probabilities of the top-k ids over the whole vocabulary."""
        if self.logits is None:
            raise KdError("invalid", "the top-k was not asked", "top_k")
        return self._log(self.logits, temperature)

    def probabilities(self, temperature: float = 1.0) -> Floats:
        """(R, K) probabilities of the top-k ids; rows that are not ok hold zeros."""
        probabilities: Floats = np.exp(self.logprobs(temperature)) * self.ok[:, None]
        return probabilities

    def tail_mass(self, temperature: float = 1.0) -> Floats:
        """(R) the probability outside the top-k, by subtraction: noise below about 1e-6 (below 1e-3 with f16 values)."""
        head = self.probabilities(temperature).sum(axis=1, dtype=np.float64)
        return (np.maximum(1.0 - head, 0.0) * self.ok).astype(np.float32)

    def own_logprobs(self, temperature: float = 1.0) -> Floats:
        """(R) log-probability of the token that really follows; NaN where none does."""
        if self.own_logit is None:
            raise KdError("invalid", "the own token was not asked", "own")
        return self.own_logit / np.float32(temperature) - self.lse_at(temperature)

    def _log(self, values: Floats, temperature: float) -> Floats:
        return values / np.float32(temperature) - self.lse_at(temperature)[:, None]

    def to_torch(self) -> Dict[str, Any]:
        """The arrays as torch tensors that share their memory, by name; ids are int64, as torch's gather wants them."""
        import torch    # only here: the package needs numpy alone

        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray) and name != "tokens"}
        return {name: torch.from_numpy(value) for name, value in arrays.items()}


def _fail(message: str, field: str = "record") -> KdError:
    return KdError("corrupt", message, field)


@dataclass(frozen=True)
class _Head:
    teacher: bytes
    key: bytes
    vocab_size: int
    tokens: Tokens
    query: Query
    sections_at: int
    n_sections: int


def _check_crc(data: bytes, piece: Optional[Piece]) -> None:
    crc, = struct.unpack_from("<I", data, 12)
    if piece is None:
        found = crc32c(memoryview(data)[16:], crc32c(data[:12]))
    else:    # the whole record's remainder, less its first 16 bytes, is that of the rest
        rest = piece.remainder ^ advance(Piece.of(data[:16]).remainder, len(data) - 16)
        found = Piece(rest, len(data) - 16).crc(crc32c(data[:12]))
    if found != crc:
        raise _fail("wrong checksum")


def _decode_head(data: bytes, piece: Optional[Piece]) -> _Head:
    n = len(data)
    if n < HEADER_BYTES or data[:4] != MAGIC:
        raise _fail("not a record")
    version, flags, n_bytes = struct.unpack_from("<HHI", data, 4)
    if version != VERSION:
        raise KdError("unsupported", "a record of version %d, this client knows %d" % (version, VERSION), "record")
    if flags or n_bytes != n or n > MAX_BYTES:
        raise _fail("%d bytes that claim to be %d, flags %d" % (n, n_bytes, flags))
    _check_crc(data, piece)
    vocab_size, n_tokens, n_rows, query_bytes, n_sections = struct.unpack_from("<IIIHH", data, 80)
    at = HEADER_BYTES + query_bytes
    if not 1 <= vocab_size <= 1 << 24 or not n_tokens or at + 4 * n_tokens > n:
        raise _fail("impossible sizes")
    query = questions.decode(data[HEADER_BYTES:at], n_tokens)
    tokens = np.frombuffer(data, np.dtype("<u4"), n_tokens, at).astype(np.uint32)
    if int(tokens.max()) >= vocab_size or query.last - query.first + 1 != n_rows or query.top_k > vocab_size:
        raise _fail("tokens or rows outside their bounds")
    teacher = data[16:48]
    if data[48:80] != questions.key(teacher, tokens, data[HEADER_BYTES:at]):
        raise _fail("the key is not the hash of the question")
    return _Head(teacher, data[48:80], vocab_size, tokens, query, at + 4 * n_tokens, n_sections)


def _expected(query: Query, n_rows: int) -> List[Tuple[int, Optional[int]]]:
    """Tags of a question's sections with their lengths; None = it says itself."""
    wanted: List[Tuple[int, Optional[int]]] = [(STATUS, n_rows), (MAX_LOGIT, 4 * n_rows), (LSE, 4 * n_rows * len(query.temperatures))]
    if query.top_k:
        wanted.append((IDS, None))
        wanted.append((VALUES_F32, 4 * n_rows * query.top_k) if query.values == "f32" else (VALUES_F16, 2 * n_rows * query.top_k))
    if query.own:
        wanted.append((OWN, 4 * n_rows))
    if query.entropy:
        wanted.append((ENTROPY, 4 * n_rows))
    return wanted


def _sections(data: bytes, head: _Head, n_rows: int) -> Dict[int, bytes]:
    wanted = _expected(head.query, n_rows)
    if head.n_sections != len(wanted):
        raise _fail("%d sections, the question calls for %d" % (head.n_sections, len(wanted)))
    at, found = head.sections_at, {}
    for tag, size in wanted:
        if at + 8 > len(data):
            raise _fail("sections are cut short")
        got, reserved, n = struct.unpack_from("<HHI", data, at)
        if got != tag or reserved or (size is not None and n != size) or at + 8 + n > len(data):
            raise _fail("section %d of %d bytes where %d was due" % (got, n, tag))
        found[tag] = data[at + 8:at + 8 + n]
        at += 8 + n
    if at != len(data):
        raise _fail("%d bytes too many" % (len(data) - at))
    return found


def _column(data: bytes, ok: Bools, n_columns: int, what: str, absent: Optional[int] = None) -> Floats:
    """(R, n_columns) finite numbers, zero bits where the row is not ok; row `absent` holds the absent number."""
    bits = np.frombuffer(data, np.dtype("<u4")).astype(np.uint32).reshape(len(ok), n_columns)
    values = bits.view(np.float32)
    finite = np.isfinite(values)
    if absent is not None and ok[absent]:
        if bits[absent, 0] != ABSENT:
            raise _fail("a number where nothing follows", what)
        finite[absent] = True
    if not finite.all() or bits[~ok].any():
        raise _fail("a number that is not finite, or one in a row that has none", what)
    return values


def _decode_ids(data: bytes, n: int, k: int, vocab_size: int) -> Ids:
    """(n, k) ascending ids."""
    gaps = rice.decode_numbers(data, n * k)
    if n and int(gaps.max()) >= vocab_size:
        raise _fail("an id outside the vocabulary", "ids")
    ids = gaps.reshape(n, k)
    ids[:, 1:] += 1
    np.cumsum(ids, axis=1, out=ids)
    if n and int(ids[:, -1].max()) >= vocab_size:
        raise _fail("an id outside the vocabulary", "ids")
    return ids


def _by_size(ids: Ids, values: Floats) -> Tuple[Ids, Floats]:
    """Rows of ascending ids by descending value, the lower id first among equals."""
    bits = (values + np.float32(0)).view(np.int32).astype(np.int64)    # + 0: both zeros are equal
    ascending = np.where(bits < 0, np.int64(-0x80000000) - bits, bits)    # order of the floats
    keys = ascending * -(1 << 24) + np.arange(ids.shape[1])
    keys.sort(axis=1)
    order = keys & ((1 << 24) - 1)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)


def _decode_top(head: _Head, sections: Dict[int, bytes], ok: Bools, max_logit: Floats) -> Tuple[Ids, Floats]:
    k, n = head.query.top_k, int(ok.sum())
    ids = _decode_ids(sections[IDS], n, k, head.vocab_size)
    if head.query.values == "f32":
        values = _column(sections[VALUES_F32], ok, k, "values")[ok]
    else:
        halves = np.frombuffer(sections[VALUES_F16], np.dtype("<f2")).reshape(len(ok), k)
        if not np.isfinite(halves).all() or (halves > 0).any() or halves.view(np.uint16)[~ok].any():
            raise _fail("a difference that is positive or not finite", "values")
        values = halves[ok].astype(np.float32) + max_logit[ok, None]
    ids, values = _by_size(ids, values)
    if (values[:, 0] != max_logit[ok]).any():
        raise _fail("the largest value is not the row's maximum", "values")
    if n == len(ok):
        return ids, values
    all_ids, all_values = np.full((len(ok), k), -1, np.int64), np.zeros((len(ok), k), np.float32)
    all_ids[ok], all_values[ok] = ids, values
    return all_ids, all_values


def decode(data: bytes, cached: bool = False, piece: Optional[Piece] = None) -> Rows:
    """Checks a record and unpacks it. `piece` is its checksum where that was computed already. Raises KdError ("corrupt", "unsupported")."""
    head = _decode_head(data, piece)
    query = head.query
    n_rows = query.last - query.first + 1
    sections = _sections(data, head, n_rows)
    status = np.frombuffer(sections[STATUS], np.uint8)
    if (status > 1).any():
        raise _fail("an unknown row status", "status")
    ok = status == 0
    max_logit = _column(sections[MAX_LOGIT], ok, 1, "max_logit")[:, 0]
    ids, logits = _decode_top(head, sections, ok, max_logit) if query.top_k else (None, None)
    end = n_rows - 1 if query.last == len(head.tokens) - 1 else None
    return Rows(
        teacher=head.teacher.hex(), vocab_size=head.vocab_size, tokens=head.tokens, query=query, record=data, cached=cached, ok=ok,
        max_logit=max_logit, lse=_column(sections[LSE], ok, len(query.temperatures), "lse"), ids=ids, logits=logits,
        own_logit=_column(sections[OWN], ok, 1, "own", end)[:, 0] if query.own else None,
        entropy=_column(sections[ENTROPY], ok, 1, "entropy")[:, 0] if query.entropy else None)
