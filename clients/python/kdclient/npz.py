# SPDX-License-Identifier: Apache-2.0
"""An npz file of records (flat.py) back to lines of JSON (kdctl(1), store import). Arrays stay in the file and are read where they lie, so a
file may be larger than memory; one that somebody compressed is read whole. Nothing of it is believed: who reads the lines checks them."""
from __future__ import annotations

import json
import struct
import zipfile
from typing import Any, Dict, Iterator, List, Optional

import numpy as np
import numpy.typing as npt

from . import describe
from .flat import COLUMNS, TEACHERS

Array = npt.NDArray[Any]
_LOCAL = struct.Struct("<4s22xHH")    # what stands before a member: a mark, ..., how long name and extra are
_SCALARS = (("own_logit", "own"), ("entropy", "entropy"), ("max_prob", "max_prob"), ("argmax", "argmax"), ("sum_squares", "sum_squares"),
            ("tail", "tail"))


def _array(path: str, archive: zipfile.ZipFile, name: str) -> Array:
    member = archive.getinfo(name + ".npy")
    with archive.open(member) as head:
        if member.compress_type != zipfile.ZIP_STORED:
            array: Array = np.lib.format.read_array(head, allow_pickle=False)
            return array
        if np.lib.format.read_magic(head) != (1, 0):
            raise ValueError("%s: not an array as kdctl store export writes them" % name)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(head)
        n_head = head.tell()
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        mark, n_name, n_extra = _LOCAL.unpack(file.read(_LOCAL.size))
    if mark != b"PK\3\4" or fortran or dtype.hasobject:
        raise ValueError("%s: not an array as kdctl store export writes them" % name)
    if not all(shape):
        return np.zeros(shape, dtype)    # nothing can be mapped
    at = member.header_offset + _LOCAL.size + n_name + n_extra + n_head
    return np.memmap(path, dtype, "r", at, shape)


class _File:
    """The columns; those of signals that no record has are missing."""

    def __init__(self, path: str) -> None:
        self._columns: Dict[str, Array] = {}
        with zipfile.ZipFile(path) as archive:
            names = {name[:-len(".npy")] for name in archive.namelist() if name.endswith(".npy")}
            for name, (dtype, width) in COLUMNS.items():
                if name not in names:
                    continue
                array = _array(path, archive, name)
                if array.dtype != dtype or array.shape[1:] != ((width,) if width else ()):
                    raise ValueError("%s: type or shape are not those of kdctl store export" % name)
                self._columns[name] = array
            self.teachers: Any = json.loads(_array(path, archive, TEACHERS).tobytes()) if TEACHERS in names else {}
        if "key" not in self._columns:
            raise ValueError("no array key: not a file that kdctl store export wrote")
        self.n = len(self._columns["key"])

    def column(self, name: str) -> Array:
        if name not in self._columns:
            raise ValueError("no array %s, which the questions ask for" % name)
        return self._columns[name]

    def of(self, i: int, name: str, at: str) -> Array:
        """What the i-th record, or row, has of a column."""
        begin, end = (int(v) for v in self.column(at)[i:i + 2])
        if not 0 <= begin <= end <= len(self.column(name)):
            raise ValueError("%s: entry %d does not lie in %s" % (at, i, name))
        return self.column(name)[begin:end]

    def has(self, name: str) -> bool:
        return name in self._columns


class _Record:
    """One of the file, as the members of a line."""

    def __init__(self, file: _File, i: int) -> None:
        self.file, self.i = file, i
        self.text = file.of(i, "question", "question_at").tobytes().decode()
        self.asked: Dict[str, Any] = json.loads(self.text)
        if not isinstance(self.asked, dict):
            raise ValueError("question: entry %d is none" % i)
        self.first, self.end = (int(v) for v in file.column("row_at")[i:i + 2])
        if not 0 <= self.first <= self.end <= len(file.column("status")):
            raise ValueError("row_at: entry %d does not lie in status" % i)
        self.pooled = bool(self.asked.get("features")) and self.asked.get("pooling", "none") != "none"
        n = max(self.end - self.first, 1)
        self.wide = {name: file.of(i, name, name + "_at").reshape(n, -1)
                     for name, flag in (("lse", "temperatures"), ("dense", "dense")) if self.asked.get(flag)}
        self.vectors = self._features(1 if self.pooled else n)

    def _features(self, n_rows: int) -> List[Array]:
        """(rows, width) for each feature."""
        if not self.asked.get("features"):
            return []
        widths = self.file.of(self.i, "feature_widths", "width_at").tolist()
        numbers = self.file.of(self.i, "features", "feature_at")
        ends = np.cumsum([n_rows * width for width in widths])
        if min(widths, default=0) <= 0 or int(ends[-1]) != len(numbers):
            raise ValueError("features: entry %d has other widths" % self.i)
        return [part.reshape(n_rows, -1) for part in np.split(numbers, ends[:-1])]

    def _row(self, row: int) -> Dict[str, Any]:
        at, file = row - self.first, self.file
        if file.column("status")[row]:
            return {"status": "not_finite"}
        made: Dict[str, Any] = {"status": "ok", **{name: values[at].tolist() for name, values in self.wide.items()}}
        for name, flag in _SCALARS:
            if self.asked.get(flag):
                made[name] = describe.finite(file.column(name)[row].item())
        if self.asked.get("top_k"):
            made.update((name, file.of(row, name, "top_at").tolist()) for name in ("ids", "logits"))
        if self.asked.get("gather") is not None:
            made["gather"] = file.of(row, "gather", "gather_at").tolist()
        if self.asked.get("draws") is not None:
            made["draws"] = {name: file.of(row, "draw_" + name, "draw_at").tolist() for name in ("ids", "counts")}
            if self.asked["draws"].get("tau", 1) != 1:
                made["draws"]["log_ratios"] = file.of(row, "draw_log_ratios", "draw_at").tolist()
        if self.vectors and not self.pooled:
            made["features"] = [vectors[at].tolist() for vectors in self.vectors]
        return made

    def _exact(self) -> Optional[bytes]:
        return self.file.of(self.i, "record", "record_at").tobytes() or None if self.file.has("record") else None

    def line(self) -> str:
        file, i = self.file, self.i
        status = self.end > self.first
        return describe.line({
            "version": int(file.column("version")[i]), "key": file.column("key")[i].tobytes().hex(),
            "teacher": file.column("teacher")[i].tobytes().hex(), "vocab_size": int(file.column("vocab_size")[i]),
            "checksum": int(file.column("checksum")[i]), "tokens": file.of(i, "tokens", "token_at").tolist(), "question": self.text,
            "feature_widths": [vectors.shape[1] for vectors in self.vectors] or None,
            "max_logit": file.column("max_logit")[self.first:self.end].tolist() if status and file.has("max_logit") else None,
            "spans": file.of(i, "span_sums", "span_at").tolist() if self.asked.get("spans") else None,
            "pooled": [vectors[0].tolist() for vectors in self.vectors] if self.pooled else None,
            "rows": [self._row(row) for row in range(self.first, self.end)] if status else None, "record": self._exact()})


def lines(path: str) -> Iterator[str]:
    """What kdctl store import reads: the notes and records of a file of ours, a line each."""
    file = _File(path)
    yield from describe.note_lines(file.teachers)
    for i in range(file.n):
        yield _Record(file, i).line()
