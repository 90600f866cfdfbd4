# SPDX-License-Identifier: Apache-2.0
"""Reads a store without a server: the answers that a kdserved or a worker keeps (kdserved-shard(5)). Never writes; a store in use may be
read."""
from __future__ import annotations

import os
import re
import struct
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Tuple

from . import record
from .checksum import crc32c
from .errors import KdError
from .query import as_tokens, ask, key
from .rows import Rows

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .query import Question

HEADER_BYTES, BLOCK_BYTES, FRAME_BYTES, SEAL_BYTES = 64, 4096, 56, 32
PIECE_BYTES = 1 << 20    # looked through at once, a multiple of 8


@dataclass(frozen=True)
class Kept:
    """Where a record lies."""
    key: str         # its content key, hexadecimal
    shard: str       # path
    at: int          # of its frame
    number: int      # within the shard
    n_bytes: int


class Shard:
    """One file of a store. `damage` lists what was stepped over, as (begin, end) of the file, once it has been read. Not mapped: its writer
    may cut it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.damage: List[Tuple[int, int]] = []
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        self._size = os.fstat(self._fd).st_size
        self._seed = self._read_header()

    def _bytes(self, at: int, n: int) -> bytes:
        """Fewer where the file ends."""
        return os.pread(self._fd, n, at)

    def _read_header(self) -> int:
        for at in (0, BLOCK_BYTES // 2):    # it lies twice
            header = self._bytes(at, HEADER_BYTES)
            if len(header) < HEADER_BYTES or header[:8] != b"KDSHARD\n":
                continue
            seed: int = struct.unpack_from("<I", header, 60)[0]
            if seed == crc32c(header[:60]):
                if struct.unpack_from("<II", header, 8) != (1, BLOCK_BYTES):
                    raise KdError("unsupported", "a shard of version %d" % struct.unpack_from("<I", header, 8)[0], self.path)
                return seed
        raise KdError("corrupt", "not a shard", self.path)

    def _crc(self, at: int, data: bytes) -> int:
        return crc32c(data, crc32c(struct.pack("<Q", at), self._seed))

    def _frame(self, at: int) -> Optional[Kept]:
        """The frame at an offset, if its header holds and its record is there."""
        header = self._bytes(at, FRAME_BYTES)
        if len(header) < FRAME_BYTES or header[:4] != b"KDFR" or struct.unpack_from("<I", header, 52)[0] != self._crc(at, header[:52]):
            return None
        n, number = struct.unpack_from("<IQ", header, 4)
        if at + FRAME_BYTES + n > self._size:
            return None
        return Kept(header[16:48].hex(), self.path, at, number, n)

    def _is_seal(self, at: int) -> bool:
        seal = self._bytes(at, SEAL_BYTES)
        return len(seal) == SEAL_BYTES and seal[:4] == b"KDSE" and struct.unpack_from("<I", seal, 28)[0] == self._crc(at, seal[:28])

    def _resume(self, at: int) -> Optional[int]:
        """The next place at which a frame or a seal holds."""
        for begin in range(at, self._size, PIECE_BYTES):    # marks lie at multiples of 8, as `at` is: never across two pieces
            for mark in re.finditer(b"KDFR|KDSE", self._bytes(begin, PIECE_BYTES)):
                place = begin + mark.start()
                if place % 8 == 0 and (self._frame(place) or self._is_seal(place)):
                    return place
        return None

    def __iter__(self) -> Iterator[Kept]:
        """Every frame whose header holds; its record is checked when it is read."""
        self.damage = []
        at, expected = BLOCK_BYTES, 0
        while at < self._size and not self._is_seal(at):
            kept = self._frame(at)
            if kept is None or kept.number < expected:
                after = self._resume(at + 8)
                if after is None:
                    return    # zeros, or what a crash left of a write that was never acknowledged
                self.damage.append((at, after))
                at = after
                continue
            yield kept
            expected = kept.number + 1
            at += FRAME_BYTES + (kept.n_bytes + 7) // 8 * 8

    def read(self, kept: Kept) -> bytes:
        """The record's bytes, checked against the frame."""
        begin = kept.at + FRAME_BYTES
        head, padded = self._bytes(kept.at, FRAME_BYTES), self._bytes(begin, (kept.n_bytes + 7) // 8 * 8)
        if len(head) < FRAME_BYTES or struct.unpack_from("<I", head, 48)[0] != self._crc(kept.at, head[:48] + padded):
            raise KdError("corrupt", "the record at %d is damaged" % kept.at, self.path)
        if padded[:4] == b"KDRZ":
            raise KdError("unsupported", "the record at %d is compressed, which this client cannot read (kdctl store compact --compression "
                          "none)" % kept.at, self.path)
        return padded[:kept.n_bytes]


class Store:
    """The records of a directory, by content key; of a key that occurs twice the later copy counts. Looks at the directory once, when
    made."""

    def __init__(self, directory: str) -> None:
        self._shards: Dict[str, Shard] = {}
        self._kept: Dict[str, Kept] = {}
        for name in sorted(os.listdir(directory)):
            if re.fullmatch(r"[0-9a-f]{8}\.shard", name):
                try:
                    shard = Shard(os.path.join(directory, name))
                except FileNotFoundError:    # removed by its writer meanwhile
                    continue
                self._shards[shard.path] = shard
                self._kept.update((kept.key, kept) for kept in shard)

    @property
    def damage(self) -> List[Tuple[str, int, int]]:
        """Stretches that were stepped over: file, begin, end."""
        return [(shard.path, *stretch) for shard in self._shards.values() for stretch in shard.damage]

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, content_key: str) -> bool:
        return content_key in self._kept

    def __iter__(self) -> Iterator[Rows]:
        """Every record, unpacked, in the order in which they were written."""
        for content_key in self._kept:
            yield self[content_key]

    def keys(self) -> Iterator[str]:
        """Every record's content key, in the order in which they were written."""
        return iter(self._kept)

    def place(self, content_key: str) -> Kept:
        return self._kept[content_key]

    def record(self, content_key: str) -> bytes:
        """A record's bytes, not unpacked."""
        kept = self._kept[content_key]
        return self._shards[kept.shard].read(kept)

    def __getitem__(self, content_key: str) -> Rows:
        return record.decode(self.record(content_key), cached=True)

    def find(self, teacher: str, tokens: Any, **question: Unpack[Question]) -> Optional[Rows]:
        """The answer to a question that was asked before: the teacher's fingerprint, the tokens, and what is asked, as for
        Teacher.score."""
        ids = as_tokens(tokens)
        canonical = ask(question, [ids], True).of(0).canonical(len(ids))
        content_key = key(bytes.fromhex(teacher), ids, canonical.encoded).hex()
        return self[content_key] if content_key in self._kept else None
