# SPDX-License-Identifier: Apache-2.0
"""The frames of kdserved-protocol(7): header, bodies, and what is refused about them."""
from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt

from .checksum import Buffer, Piece, crc32c
from .errors import KdError

MAGIC = b"KDDS"
VERSION = 2
HEADER = struct.Struct("<4sBBHQIII")     # and the header's checksum behind
HEADER_BYTES = HEADER.size + 4
WHOLE_REQUEST = 0xFFFFFFFF
SCORE_DURABLE, SCORE_NO_STORE, SCORE_SHORT, SCORE_PARTS = 1, 2, 4, 8
ANSWER_CACHED, ANSWER_SHORT = 1, 2
MAX_TOKEN_BYTES = 256
MAX_SEQUENCES = 65536

Tokens = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


CODES = ("invalid", "unsupported", "too_large", "not_found", "conflict", "unauthorized", "forbidden", "overloaded", "unavailable", "deadline",
         "cancelled", "not_finite", "store", "corrupt", "io", "memory", "internal")


class Kind(IntEnum):
    HELLO = 1
    WELCOME = 2
    SCORE = 3
    ANSWER = 4
    DONE = 5
    ERROR = 6
    PING = 7
    PONG = 8
    GOAWAY = 9
    CALL = 10
    REPLY = 11
    CANCEL = 12
    GENERATE = 13
    TOKENS = 14


@dataclass(frozen=True)
class Header:
    kind: int
    request_id: int
    body_bytes: int
    body_crc: int


@dataclass(frozen=True)
class Info:
    """What the server said in its WELCOME."""
    fingerprint: str          # of weights, tokenizer and numeric format, hexadecimal
    vocab_size: int
    max_tokens: int           # of one sequence
    max_top_k: int
    max_gather: int           # ids of one row
    max_draws: int            # of one row
    max_spans: int            # of one sequence
    n_layers: int             # of the teacher: hidden states 0 to this, query, key and value rows below it
    width: int                # of hidden states
    q_width: int              # of query rows
    kv_width: int             # of key and value rows
    max_sequences: int        # of one request; score() splits
    max_body_bytes: int
    credits: int              # requests in flight; score() waits


@dataclass(frozen=True)
class Answer:
    index: int
    cached: bool
    short: bool               # the record comes without its question
    record: bytes
    piece: Piece              # of the record: its checksum costs no second pass


def encode(kind: int, request_id: int = 0, body: bytes = b"") -> bytes:
    head = HEADER.pack(MAGIC, VERSION, kind, 0, request_id, len(body), 0, crc32c(body))
    return b"".join((head, struct.pack("<I", crc32c(head)), body))


def decode_header(data: Buffer, max_body: int) -> Header:
    magic, version, kind, flags, request_id, body_bytes, reserved, body_crc = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise KdError("corrupt", "the server does not speak kdserved's protocol", "frame")
    if version != VERSION:
        raise KdError("unsupported", "a frame of version %d, this client speaks %d" % (version, VERSION), "frame")
    if crc32c(data[:HEADER.size]) != struct.unpack_from("<I", data, HEADER.size)[0]:
        raise KdError("corrupt", "a frame header with a wrong checksum", "frame")
    if flags or reserved or kind not in Kind.__members__.values():
        raise KdError("corrupt", "a frame header with kind %d, flags %d, reserved %d" % (kind, flags, reserved), "frame")
    if body_bytes > max_body:
        raise KdError("too_large", "a frame of %d bytes, the limit is %d" % (body_bytes, max_body), "frame")
    return Header(kind, request_id, body_bytes, body_crc)


def check_body(header: Header, piece: Piece) -> None:
    if piece.crc() != header.body_crc:
        raise KdError("corrupt", "a frame body with a wrong checksum", "frame")


def _exactly(name: str, body: Buffer, n: int) -> None:
    if len(body) != n:
        raise KdError("corrupt", "%s has %d bytes, not %d" % (name, len(body), n), name)


def _at_least(name: str, body: Buffer, n: int) -> None:
    if len(body) < n:
        raise KdError("corrupt", "%s is cut short" % name, name)


def hello(token: str, teacher: bytes) -> bytes:
    try:
        secret = token.encode("ascii")
    except UnicodeEncodeError:
        secret = b"\0"
    if len(secret) > MAX_TOKEN_BYTES or any(not 32 <= c < 127 for c in secret):
        raise KdError("invalid", "a token is at most %d printable ASCII characters" % MAX_TOKEN_BYTES, "token")
    return struct.pack("<HH32sH", VERSION, VERSION, teacher, len(secret)) + secret


# version, reserved, teacher; tokens, top-k, gather, draws, spans, vocabulary; layers and widths of features; sequences, body, credits
_WELCOME = struct.Struct("<HH32s6I4I3I")


def decode_welcome(body: Buffer) -> Info:
    _exactly("welcome", body, _WELCOME.size)
    version, reserved, teacher, tokens, top_k, gather, draws, spans, vocabulary, *rest = _WELCOME.unpack(body)
    n_layers, width, q_width, kv_width, sequences, max_body, credits = rest
    if version != VERSION:
        raise KdError("unsupported", "the server speaks version %d" % version, "welcome")
    if reserved or not 1 <= vocabulary <= 1 << 24 or not 1 <= sequences <= MAX_SEQUENCES or not credits or not tokens or n_layers > 65535:
        raise KdError("corrupt", "a welcome with impossible limits", "welcome")
    return Info(teacher.hex(), vocabulary, tokens, top_k, gather, draws, spans, n_layers, width, q_width, kv_width, sequences, max_body,
                credits)


def score(query: bytes, sequences: Sequence[Tokens], parts: Sequence[bytes], flags: int, deadline_ms: int) -> bytes:
    """`parts`: what each sequence asks instead of the query; none where all ask the query."""
    lengths = np.array([len(s) for s in sequences], np.dtype("<u4"))
    flags |= SCORE_PARTS if parts else 0
    body: List[bytes] = [struct.pack("<4I", flags, deadline_ms, len(query), len(sequences)), query, lengths.tobytes()]
    body.extend(s.astype(np.dtype("<u4"), copy=False).tobytes() for s in sequences)
    body.extend(parts)
    return b"".join(body)


def score_bytes(query: bytes, sequence: Tokens, part: bytes) -> int:
    """Of a request of one sequence; every further one adds 4 + 4 tokens + part."""
    return 16 + len(query) + 4 + 4 * len(sequence) + len(part)


def decode_answer(body: bytes) -> Tuple[Answer, Piece]:
    """The answer and the whole body's checksum."""
    _at_least("answer", body, 8)
    index, flags = struct.unpack_from("<II", body)
    if flags & ~(ANSWER_CACHED | ANSWER_SHORT) or index >= MAX_SEQUENCES or len(body) == 8:
        raise KdError("corrupt", "an answer %d with flags %d and %d bytes" % (index, flags, len(body)), "answer")
    record = body[8:]
    piece = Piece.of(record)
    return Answer(index, bool(flags & ANSWER_CACHED), bool(flags & ANSWER_SHORT), record, piece), Piece.of(body[:8]).then(piece)


def decode_error(body: bytes) -> Tuple[int, KdError]:
    """The index of the sequence (or WHOLE_REQUEST) and what is wrong with it."""
    _at_least("error", body, 8)
    index, code_bytes, field_bytes, message_bytes = struct.unpack_from("<IBBH", body)
    _exactly("error", body, 8 + code_bytes + field_bytes + message_bytes)
    text = body[8:]
    if any(not 32 <= c < 127 for c in text) or field_bytes > 63 or message_bytes > 319 or MAX_SEQUENCES <= index < WHOLE_REQUEST or \
            text[:code_bytes] in (b"", b"none"):
        raise KdError("corrupt", "an error that is not printable ASCII, too long, of no code or of no sequence", "error")
    words = text.decode("ascii")
    code = words[:code_bytes] if words[:code_bytes] in CODES else "internal"    # one of a later version
    return index, KdError(code, words[code_bytes + field_bytes:], words[code_bytes:code_bytes + field_bytes])


@dataclass(frozen=True)
class NewTokens:
    """A TOKENS frame: what is new of one sample."""
    index: int
    last: bool
    first: int
    rows: int
    tokens: Ids                   # (n)
    logprobs: Floats              # (n)
    sampled_logprobs: Floats      # (n)
    lse: Floats                   # (n)
    ids: Ids                      # (n, rows)
    logits: Floats                # (n, rows)
    text: bytes
    finish: Optional[str] = None  # these of the last
    stop_id: Optional[int] = None
    stop: Optional[int] = None
    reused: int = 0
    seed: int = 0


FINISHES = {1: "stop", 2: "length"}
NONE = 0xFFFFFFFF


def decode_tokens(body: bytes) -> NewTokens:
    _at_least("tokens", body, 24)
    index, flags, first, n, rows, text_bytes = struct.unpack_from("<6I", body)
    size = 4 * n * (4 + 2 * rows)    # tokens, three logarithms, ids and logits
    _exactly("tokens", body, 24 + size + text_bytes + (24 if flags & 1 else 0))
    if flags & ~1 or index == WHOLE_REQUEST:
        raise KdError("corrupt", "tokens of sample %d with flags %d" % (index, flags), "tokens")
    words = np.frombuffer(body, np.dtype("<u4"), n * (4 + 2 * rows), 24).astype(np.uint32)
    floats, ids = words.view(np.float32), words[4 * n:(4 + rows) * n].reshape(n, rows).astype(np.int64)
    end: Tuple[Optional[str], Optional[int], Optional[int], int, int] = (None, None, None, 0, 0)
    if flags & 1:
        finish, stop_id, stop, reused, seed = struct.unpack_from("<4IQ", body, len(body) - 24)
        if finish not in FINISHES:
            raise KdError("corrupt", "an end of kind %d" % finish, "tokens")
        end = FINISHES[finish], None if stop_id == NONE else stop_id, None if stop == NONE else stop, reused, seed
    return NewTokens(index, bool(flags & 1), first, rows, words[:n].astype(np.int64), floats[n:2 * n], floats[2 * n:3 * n],
                     floats[3 * n:4 * n], ids, floats[(4 + rows) * n:].reshape(n, rows), body[24 + size:24 + size + text_bytes], *end)


def call(method: str, path: str, body: bytes) -> bytes:
    name, where = method.encode("ascii", "replace"), path.encode()
    if not 1 <= len(name) <= 7 or any(not 65 <= c <= 90 for c in name):
        raise KdError("invalid", "a method is 1 to 7 capital letters", "method")
    if not 1 <= len(where) <= 255 or where[:1] != b"/" or any(not 33 <= c < 127 for c in where):
        raise KdError("invalid", "a path is a slash and up to 254 printable ASCII characters", "path")
    return struct.pack("<BBHI", len(name), 0, len(where), len(body)) + name + where + body


def decode_reply(body: bytes) -> Tuple[int, bytes]:
    _at_least("reply", body, 8)
    status, n = struct.unpack_from("<II", body)
    _exactly("reply", body, 8 + n)
    if not 100 <= status <= 599:
        raise KdError("corrupt", "a reply with status %d" % status, "reply")
    return status, body[8:]
