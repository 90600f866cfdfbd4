# SPDX-License-Identifier: Apache-2.0
"""What an exported record says besides its rows: its question in words, and whether its numbers are all that there is to it."""
from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import struct
from typing import Any, Dict, Iterator

import numpy as np

from .query import FLAGS, Query
from .record import _Decoder, _decode_head, _decode_sections
from .rows import Floats, Integers, Rows


def version(rows: Rows) -> int:
    """Of the record format."""
    found: int = struct.unpack_from("<H", rows.record, 4)[0]
    return found


def checksum(rows: Rows) -> int:
    """The record's own CRC-32C."""
    found: int = struct.unpack_from("<I", rows.record, 12)[0]
    return found


def _number(value: float) -> float:
    """1.1 and not the 1.10000002 that the nearest float is; 1 and not 1.0: as kdctl writes it."""
    return int(value) if value == int(value) and abs(value) < 1e9 else float("%.9g" % value)


def question(query: Query) -> Dict[str, Any]:
    """The question under the names of /v1/score; gather is a list of lists, one for all rows or one for each."""
    asked: Dict[str, Any] = {"first": query.first, "last": query.last}
    if query.top_k:
        asked["top_k"] = query.top_k
    if query.top_mass:
        asked["top_mass"] = _number(query.top_mass)
    if query.temperatures:
        asked["temperatures"] = [_number(t) for t in query.temperatures]
    asked.update((flag, True) for flag in FLAGS if getattr(query, flag))
    if query.draws is not None:
        asked["draws"] = {"n": query.draws.n, "tau": _number(query.draws.tau), "seed": query.draws.seed, "tail": query.draws.tail}
    if query.gather is not None:
        asked["gather"] = [ids.tolist() for ids in np.split(query.gather.ids, query.gather.at[1:-1])]
    if query.keep is not None:
        asked["keep"] = query.keep.tolist()
    if query.spans:
        asked["spans"] = [list(span) for span in query.spans]
    if query.features:
        asked["features"] = [{"kind": f.kind, "layer": f.layer} for f in query.features]
        asked.update(pooling=query.pooling, feature_values=query.feature_values)
    asked["values"] = query.values
    return asked


def question_text(query: Query) -> str:
    return json.dumps(question(query), separators=(",", ":"))


def has_status(rows: Rows) -> bool:
    """Each row has one; else every signal is one of the whole sequence."""
    return rows.max_logit is not None or bool(rows.query.features and rows.query.pooling == "none")


_NOTE = ("weights", "tokenizer", "numeric", "codec", "name")


def _fingerprint(note: Dict[str, str]) -> str:
    """What a note about a teacher proves (kdserved-shard(5))."""
    ids = bytes.fromhex(note["weights"]) + bytes.fromhex(note["tokenizer"])
    words = note["numeric"].encode() + b"\0" + note["codec"].encode() + b"\0"
    return hashlib.sha256(b"kdserved teacher 1\n" + ids + words).hexdigest()


def teachers(directory: str, teacher: str = "") -> Dict[str, Dict[str, str]]:
    """The notes beside the shards of a store (kdserved-shard(5)): of each fingerprint's first digits what it stands for, as written. Notes that
    do not prove their name are left out. teacher: only those whose fingerprint begins so."""
    found: Dict[str, Dict[str, str]] = {}
    for name in sorted(os.listdir(directory)):
        if not name.endswith(".teacher"):
            continue
        with open(os.path.join(directory, name), "rb") as file:
            text = file.read(1024).decode("ascii", "replace")
        lines = [line.partition(" ") for line in text.splitlines()]
        note = {key: value for key, _, value in lines[1:]}
        try:
            fingerprint = _fingerprint(note)
        except (KeyError, ValueError):
            continue
        if tuple(note) == _NOTE and name == fingerprint[:16] + ".teacher" and fingerprint.startswith(teacher):
            found[fingerprint[:16]] = note
    return found


def note_lines(found: Any) -> Iterator[str]:
    """The notes of an export (of `teachers`) as kdctl store import reads them: a line each, before the records."""
    if not isinstance(found, dict):
        raise ValueError("teachers: not what kdctl store export wrote")
    for fingerprint, note in found.items():
        if not isinstance(note, dict):
            raise ValueError("teachers: not what kdctl store export wrote")
        yield json.dumps({"note": "teacher", "teacher": fingerprint, **{key: note[key] for key in _NOTE}}, separators=(",", ":"))


def finite(value: Any) -> Any:
    """Lists in lists of floats with null for what JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [finite(v) for v in value] if isinstance(value, list) else value


def line(record: Dict[str, Any]) -> str:
    """A record of an export as kdctl store import reads it: its members, `question` as text and `record` as bytes; None is left out."""
    members = ['"%s":%s' % (name, json.dumps(record[name])) for name in ("version", "key", "teacher", "vocab_size", "checksum", "tokens")]
    members.append('"question":' + record["question"])
    for name in ("feature_widths", "max_logit", "spans", "pooled", "rows"):
        if record[name] is not None:
            members.append('"%s":%s' % (name, json.dumps(finite(record[name]), allow_nan=False)))
    if record["record"] is not None:
        members.append('"record":"%s"' % base64.b64encode(record["record"]).decode())
    return "{" + ",".join(members) + "}"


class _Repeating(_Decoder):
    """Writes the values that it reads again, from what it made of them."""
    repeats = True

    def values(self, tag: int, counts: Integers) -> Floats:
        begin = self.cursor.at + 8    # behind the section's header
        values = super().values(tag, counts)
        top: Floats = np.repeat(self.max_logit, counts)
        if self.query.values == "f16":
            again = (values - top).astype(np.dtype("<f2")).tobytes()
        else:
            again = self._codes_again(counts, top, values)
        self.repeats &= again == self.cursor.data[begin:self.cursor.at]
        return values

    def _codes_again(self, counts: Integers, top: Floats, values: Floats) -> bytes:
        below = top.astype(np.float64) - values
        ranges = np.zeros(self.n_rows)
        filled = counts > 0
        if filled.any():
            ranges[filled] = np.maximum.reduceat(below, (np.cumsum(counts) - counts)[filled])
        ranges = ranges.astype(np.float32)
        scale = np.divide(255, ranges, out=np.zeros(self.n_rows), where=ranges > 0, dtype=np.float64)
        codes = np.rint(below * np.repeat(scale, counts)).astype(np.uint8)
        again: bytes = ranges.astype(np.dtype("<f4")).tobytes() + codes.tobytes()
        return again


def numbers_suffice(rows: Rows) -> bool:
    """Whether the numbers give the record's bytes again; f16 and u8 may tell apart what is one float."""
    if rows.query.values == "f32":
        return True
    decoder = _Repeating(rows.record, _decode_head(rows.record, None, None))
    with np.errstate(all="ignore"):
        _decode_sections(decoder)
    return decoder.repeats
