# SPDX-License-Identifier: Apache-2.0
"""Records as flat arrays, one behind the other, with offsets where they differ in length: the layout of exports as npz and safetensors
(kdctl(1)). `x_at` has one entry more than there are records or rows; entry i is where those of i begin."""
from __future__ import annotations

import json
import tempfile
import zipfile
from typing import IO, Any, Dict, List, Tuple

import numpy as np
import numpy.typing as npt

from . import describe
from .rows import Rows

Array = npt.NDArray[Any]
_I64, _I32, _F32, _U8 = (np.dtype(name) for name in ("<i8", "<i4", "<f4", "|u1"))
_FILE_PIECE = 1 << 20

# Name: type, numbers of one entry (0: one, without a dimension of its own). Of each record, then of each row, then what offsets point into.
COLUMNS: Dict[str, Tuple["np.dtype[Any]", int]] = {
    "version": (_I32, 0), "key": (_U8, 32), "teacher": (_U8, 32), "vocab_size": (_I32, 0), "checksum": (_I64, 0),
    "token_at": (_I64, 0), "row_at": (_I64, 0), "question_at": (_I64, 0), "lse_at": (_I64, 0), "dense_at": (_I64, 0), "span_at": (_I64, 0),
    "width_at": (_I64, 0), "feature_at": (_I64, 0), "record_at": (_I64, 0),
    "status": (_U8, 0), "max_logit": (_F32, 0), "own_logit": (_F32, 0), "entropy": (_F32, 0), "max_prob": (_F32, 0), "argmax": (_I32, 0),
    "sum_squares": (_F32, 0), "tail": (_F32, 0), "top_at": (_I64, 0), "gather_at": (_I64, 0), "draw_at": (_I64, 0),
    "tokens": (_I32, 0), "question": (_U8, 0), "lse": (_F32, 0), "ids": (_I32, 0), "logits": (_F32, 0), "dense": (_F32, 0),
    "gather_ids": (_I32, 0), "gather": (_F32, 0), "draw_ids": (_I32, 0), "draw_counts": (_I32, 0), "draw_log_ratios": (_F32, 0),
    "span_sums": (_F32, 0), "feature_widths": (_I32, 0), "features": (_F32, 0), "record": (_U8, 0),
}
TEACHERS = "teachers"    # beside them, where there are notes: what the teachers' fingerprints stand for, text in JSON
# Columns that stand alone: left out where no record has any. Others go with the column whose numbers they count.
_OPTIONAL = {"max_logit": "max_logit", "own_logit": "own_logit", "entropy": "entropy", "max_prob": "max_prob", "argmax": "argmax",
             "sum_squares": "sum_squares", "tail": "tail", "lse": "lse", "lse_at": "lse", "dense": "dense", "dense_at": "dense",
             "span_sums": "span_sums", "span_at": "span_sums", "feature_widths": "feature_widths", "width_at": "feature_widths",
             "features": "feature_widths", "feature_at": "feature_widths", "record": "record", "record_at": "record",
             "top_at": "ids", "ids": "ids", "logits": "ids", "gather_at": "gather_at", "gather_ids": "gather_at", "gather": "gather_at",
             "draw_at": "draw_at", "draw_ids": "draw_at", "draw_counts": "draw_at", "draw_log_ratios": "draw_log_ratios"}


def flatten(rows: Rows) -> Dict[str, Any]:
    """What one record adds to each column that it has; of an `x_at` how many, of each row where it is a row's."""
    n = len(rows) if describe.has_status(rows) else 0
    text = np.frombuffer(describe.question_text(rows.query).encode(), np.uint8)
    added: Dict[str, Any] = {
        "version": [describe.version(rows)], "key": np.frombuffer(rows.record[48:80], np.uint8), "vocab_size": [rows.vocab_size],
        "teacher": np.frombuffer(bytes.fromhex(rows.teacher), np.uint8), "checksum": [describe.checksum(rows)], "tokens": rows.tokens,
        "token_at": [len(rows.tokens)], "row_at": [n], "question": text, "question_at": [len(text)], "status": ~rows.ok[:n]}
    for name in ("max_logit", "own_logit", "entropy", "max_prob", "argmax", "sum_squares", "tail"):
        column = getattr(rows, name)
        if column is not None:
            added[name] = column
    for name in ("lse", "dense", "span_sums"):
        column = getattr(rows, name)
        if column is not None:
            added[name], added["span_at" if name == "span_sums" else name + "_at"] = column, [column.size]
    if rows.ids is not None and rows.logits is not None:
        there = rows.ids >= 0
        added.update(ids=rows.ids[there], logits=rows.logits[there], top_at=there.sum(axis=1))
    if rows.gather_at is not None:
        added.update(gather_at=np.diff(rows.gather_at), gather_ids=rows.gather_ids, gather=rows.gathered)
    if rows.draw_at is not None and rows.draw_ids is not None:
        added.update(draw_at=np.diff(rows.draw_at), draw_ids=rows.draw_ids, draw_counts=rows.draw_counts)
        if rows.draw_log_ratios is not None:
            added["draw_log_ratios"] = rows.draw_log_ratios
    if rows.features is not None:
        widths = [vectors.shape[1] for vectors in rows.features]
        added.update(feature_widths=widths, width_at=[len(widths)], features=np.concatenate([v.reshape(-1) for v in rows.features]))
        added["feature_at"] = [added["features"].size]
    if not describe.numbers_suffice(rows):
        added.update(record=np.frombuffer(rows.record, np.uint8), record_at=[len(rows.record)])
    return added


def _absent(name: str, rows: Rows, n_rows: int, added: Dict[str, Any]) -> Any:
    """What stands in a column for a record that has nothing of it."""
    if name in ("lse_at", "dense_at", "span_at", "width_at", "feature_at", "record_at"):
        return [0]
    if name in ("top_at", "gather_at", "draw_at"):
        return np.zeros(n_rows, np.int64)
    if name == "draw_log_ratios":
        return np.zeros(len(added.get("draw_ids", ())))
    if name == "max_logit":
        return np.zeros(n_rows)
    return np.full(n_rows, -1 if name == "argmax" else np.nan) if name in (
        "own_logit", "entropy", "max_prob", "argmax", "sum_squares", "tail") else ()


def _member(archive: zipfile.ZipFile, name: str, dtype: "np.dtype[Any]", shape: Tuple[int, ...]) -> IO[bytes]:
    """An array of an npz file, its head written. The fixed date makes the same records the same file."""
    member = archive.open(zipfile.ZipInfo(name + ".npy", (1980, 1, 1, 0, 0, 0)), "w", force_zip64=True)
    np.lib.format.write_array_header_1_0(
        member, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return member


class Columns:
    """Columns that grow on disk, in files without a name beside the one to be written, and become an npz file."""

    def __init__(self, folder: str) -> None:
        self._files: Dict[str, IO[bytes]] = {name: tempfile.TemporaryFile(dir=folder) for name in COLUMNS}
        self._sizes: Dict[str, int] = dict.fromkeys(COLUMNS, 0)      # bytes
        self._sums: Dict[str, int] = {name: 0 for name in COLUMNS if name.endswith("_at")}
        self._had = {"version"}
        for name in self._sums:
            self._write(name, np.zeros(1, _I64))

    def _write(self, name: str, values: Any) -> None:
        data = np.ascontiguousarray(np.asarray(values).astype(COLUMNS[name][0], copy=False)).tobytes()
        self._files[name].write(data)
        self._sizes[name] += len(data)

    def append(self, rows: Rows) -> None:
        added = flatten(rows)
        n_rows = len(added["status"])
        self._had.update(added)
        for name in COLUMNS:
            values = added[name] if name in added else _absent(name, rows, n_rows, added)
            if name in self._sums:
                sums = self._sums[name] + np.cumsum(np.asarray(values, np.int64))
                self._sums[name] = int(sums[-1]) if len(sums) else self._sums[name]
                values = sums
            self._write(name, values)

    def names(self) -> List[str]:
        return [name for name in COLUMNS if _OPTIONAL.get(name, "version") in self._had]

    def save(self, to: IO[bytes], teachers: Dict[str, Dict[str, str]]) -> None:
        with zipfile.ZipFile(to, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name in self.names():
                dtype, width = COLUMNS[name]
                n = self._sizes[name] // dtype.itemsize
                with _member(archive, name, dtype, (n // width, width) if width else (n,)) as member:
                    self._copy(name, member)
            if teachers:
                text = json.dumps(teachers, separators=(",", ":")).encode()
                with _member(archive, TEACHERS, _U8, (len(text),)) as member:
                    member.write(text)

    def _copy(self, name: str, to: IO[bytes]) -> None:
        file = self._files[name]
        file.seek(0)
        while True:
            piece = file.read(_FILE_PIECE)
            if not piece:
                return
            to.write(piece)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
