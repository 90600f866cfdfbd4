# SPDX-License-Identifier: Apache-2.0
"""Records as Parquet and back to lines of JSON (kdctl(1), store export). A line of the table is a record; its `rows` are a list of
structures with the names of /v1/score. Needs pyarrow."""
from __future__ import annotations

import json
from typing import IO, Any, Dict, Iterator, List, Optional, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from . import describe
from .rows import Rows

GROUP_NUMBERS = 1 << 22    # of a row group, about: 16 MB each of ids and logits, before compression
GROUP_RECORDS = 4096

_FLOATS, _IDS = pa.list_(pa.float32()), pa.list_(pa.int32())
_ROW = pa.struct([
    ("status", pa.string()), ("lse", _FLOATS), ("ids", _IDS), ("logits", _FLOATS), ("dense", _FLOATS), ("own_logit", pa.float32()),
    ("entropy", pa.float32()), ("max_prob", pa.float32()), ("argmax", pa.int32()), ("sum_squares", pa.float32()), ("tail", pa.float32()),
    ("gather", _FLOATS), ("draws", pa.struct([("ids", _IDS), ("counts", _IDS), ("log_ratios", _FLOATS), ("weights", _FLOATS)])),
    ("features", pa.list_(_FLOATS))])
SCHEMA = pa.schema([
    ("version", pa.int32()), ("key", pa.string()), ("teacher", pa.string()), ("vocab_size", pa.int32()), ("checksum", pa.int64()),
    ("tokens", _IDS), ("question", pa.string()), ("feature_widths", _IDS), ("max_logit", _FLOATS), ("rows", pa.list_(_ROW)),
    ("spans", _FLOATS), ("pooled", pa.list_(_FLOATS)), ("record", pa.binary())])

Bools = npt.NDArray[np.bool_]


# ---- rows

def _list(counts: npt.ArrayLike, there: Bools, values: Any) -> Any:
    """A list of so many of the values for each entry that is there, null for the others."""
    sizes = np.where(there, counts, 0)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets, mask=np.append(~there, False)), values)


def _struct(fields: Sequence[Any], columns: Sequence[Any], there: Bools) -> Any:
    return pa.StructArray.from_arrays(list(columns), fields=list(fields), mask=pa.array(~there))


def _lists(batch: Sequence[Rows], name: str) -> Any:
    """Lists of as many numbers in every row of a record."""
    widths = [0 if getattr(r, name) is None else getattr(r, name).shape[1] for r in batch]
    asked = np.repeat([getattr(r, name) is not None for r in batch], [len(r) for r in batch])
    ok = _ok(batch)
    parts = [getattr(r, name)[r.ok].reshape(-1) for r in batch if getattr(r, name) is not None]
    return _list(np.repeat(widths, [len(r) for r in batch]), asked & ok, pa.array(_join(parts, np.float32)))


def _join(parts: Sequence[Any], dtype: Any) -> Any:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)


def _ok(batch: Sequence[Rows]) -> Bools:
    return np.concatenate([np.zeros(0, bool), *(r.ok for r in batch)])


def _scalar(batch: Sequence[Rows], name: str, dtype: Any) -> Any:
    values = _join([np.zeros(len(r)) if getattr(r, name) is None else getattr(r, name) for r in batch], dtype)
    asked = np.repeat([getattr(r, name) is not None for r in batch], [len(r) for r in batch])
    return pa.array(values, mask=~(asked & _ok(batch)) | np.isnan(values))


def _ragged(batch: Sequence[Rows], at: str, values: str, dtype: Any) -> Any:
    """Lists that differ in length from row to row; in rows that are not ok there is none."""
    counts = _join([np.zeros(len(r)) if getattr(r, at) is None else np.diff(getattr(r, at)) for r in batch], np.int64)
    asked = np.repeat([getattr(r, values) is not None for r in batch], [len(r) for r in batch])
    ok, parts = _ok(batch), []
    for r in batch:
        if getattr(r, values) is not None:
            parts.append(getattr(r, values)[np.repeat(r.ok, np.diff(getattr(r, at)))])
    return _list(counts, asked & ok, pa.array(_join(parts, dtype)))


class _Weighed:
    """A record's rows with the weights of its draws, which follow from the rest, beside them."""

    def __init__(self, rows: Rows) -> None:
        self.ok, self.draw_at = rows.ok, rows.draw_at
        self.weights = rows.draw_weights() if rows.draw_at is not None else None

    def __len__(self) -> int:
        return len(self.ok)


def _top(batch: Sequence[Rows]) -> List[Any]:
    counts = _join([np.zeros(len(r)) if r.ids is None else (r.ids >= 0).sum(axis=1) for r in batch], np.int64)
    asked = np.repeat([r.ids is not None for r in batch], [len(r) for r in batch]) & _ok(batch)
    ids = [r.ids[r.ids >= 0] for r in batch if r.ids is not None]
    logits = [r.logits[r.ids >= 0] for r in batch if r.ids is not None and r.logits is not None]
    return [_list(counts, asked, pa.array(_join(parts, dtype))) for parts, dtype in ((ids, np.int32), (logits, np.float32))]


def _draws(batch: Sequence[Rows]) -> Any:
    weighed: Any = [_Weighed(r) for r in batch]
    asked = np.repeat([r.draw_at is not None for r in batch], [len(r) for r in batch]) & _ok(batch)
    columns = [_ragged(batch, "draw_at", "draw_ids", np.int32), _ragged(batch, "draw_at", "draw_counts", np.int32),
               _ragged(batch, "draw_at", "draw_log_ratios", np.float32), _ragged(weighed, "draw_at", "weights", np.float32)]
    return _struct(_ROW.field("draws").type, columns, asked)


def _features(batch: Sequence[Rows]) -> Any:
    """Of each row a vector for each feature; those of a row lie behind one another."""
    asked = [bool(r.query.features) and r.query.pooling == "none" for r in batch]
    there = np.repeat(asked, [len(r) for r in batch]) & _ok(batch)
    counts = np.repeat([len(r.features or ()) if a else 0 for r, a in zip(batch, asked)], [len(r) for r in batch])
    widths, parts = [], []
    for r, a in zip(batch, asked):
        if a and r.features:
            widths.append(np.tile([v.shape[1] for v in r.features], int(r.ok.sum())))
            parts.append(np.concatenate([v[r.ok] for v in r.features], axis=1).reshape(-1))
    sizes = _join(widths, np.int64)
    return _list(counts, there, _list(sizes, np.ones(len(sizes), bool), pa.array(_join(parts, np.float32))))


def _rows(batch: Sequence[Rows]) -> Any:
    batch = [r for r in batch if describe.has_status(r)]
    ok = _ok(batch)
    top = _top(batch)
    columns = [
        pa.array(np.where(ok, "ok", "not_finite").tolist(), pa.string()), _lists(batch, "lse"), *top, _lists(batch, "dense"),
        _scalar(batch, "own_logit", np.float32), _scalar(batch, "entropy", np.float32), _scalar(batch, "max_prob", np.float32),
        _argmax(batch), _scalar(batch, "sum_squares", np.float32), _scalar(batch, "tail", np.float32),
        _ragged(batch, "gather_at", "gathered", np.float32), _draws(batch), _features(batch)]
    return _struct(_ROW, columns, np.ones(len(ok), bool))


def _argmax(batch: Sequence[Rows]) -> Any:
    asked = np.repeat([r.argmax is not None for r in batch], [len(r) for r in batch]) & _ok(batch)
    return pa.array(_join([np.zeros(len(r)) if r.argmax is None else r.argmax for r in batch], np.int32), mask=~asked)


# ---- records

def _column(batch: Sequence[Rows], values: Sequence[Optional[Any]], dtype: Any) -> Any:
    """A list for each record that has one."""
    there = np.array([v is not None for v in values], bool)
    return _list([0 if v is None else len(v) for v in values], there, pa.array(_join([v for v in values if v is not None], dtype)))


def _pooled(rows: Rows) -> Optional[List[List[float]]]:
    return [v[0].tolist() for v in rows.features] if rows.features and rows.query.pooling != "none" else None


def _spans(batch: Sequence[Rows]) -> Any:
    there = np.array([r.span_sums is not None for r in batch], bool)
    sums = _join([r.span_sums for r in batch if r.span_sums is not None], np.float32)
    return _list([0 if r.span_sums is None else len(r.span_sums) for r in batch], there, pa.array(sums, mask=np.isnan(sums)))


def table(batch: Sequence[Rows]) -> Any:
    """A record a line."""
    status = np.array([describe.has_status(r) for r in batch], bool)
    widths = [[v.shape[1] for v in r.features] if r.features else None for r in batch]
    columns = [
        pa.array([describe.version(r) for r in batch], pa.int32()), pa.array([r.key for r in batch], pa.string()),
        pa.array([r.teacher for r in batch], pa.string()), pa.array([r.vocab_size for r in batch], pa.int32()),
        pa.array([describe.checksum(r) for r in batch], pa.int64()), _column(batch, [r.tokens for r in batch], np.int32),
        pa.array([describe.question_text(r.query) for r in batch], pa.string()), _column(batch, widths, np.int32),
        _column(batch, [r.max_logit for r in batch], np.float32), _list([len(r) for r in batch], status, _rows(batch)), _spans(batch),
        pa.array([_pooled(r) for r in batch], pa.list_(_FLOATS)),
        pa.array([None if describe.numbers_suffice(r) else r.record for r in batch], pa.binary())]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


class Writer:
    """Row groups of a bounded size, as records come."""

    def __init__(self, to: IO[bytes], notes: Dict[str, Any]) -> None:
        self._writer = pq.ParquetWriter(to, SCHEMA.with_metadata({"kdserved": json.dumps(notes)}))
        self._batch: List[Rows] = []
        self._numbers = 0

    def append(self, rows: Rows) -> None:
        self._batch.append(rows)
        self._numbers += sum(array.size for array in rows.arrays().values()) + len(rows.tokens)
        if self._numbers >= GROUP_NUMBERS or len(self._batch) >= GROUP_RECORDS:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            self._writer.write_table(table(self._batch))
        self._batch, self._numbers = [], 0

    def save(self) -> None:
        self._flush()
        self._writer.close()

    def close(self) -> None:
        """Frees what it holds; without save the file is of no use."""
        self._batch = []


# ---- back to lines

def _line_row(row: Dict[str, Any], asked: Sequence[str]) -> Dict[str, Any]:
    made = {name: describe.finite(value) for name, value in row.items() if value is not None and name != "draws"}
    if row.get("draws") is not None:
        made["draws"] = {name: value for name, value in row["draws"].items() if value is not None and name != "weights"}
    if row["status"] == "ok":
        made.update((name, None) for name in asked if name not in made)
    return made


def _line(record: Dict[str, Any]) -> str:
    asked = json.loads(record["question"])
    absent = [name for name, flag in (("own_logit", "own"), ("tail", "tail")) if asked.get(flag)]
    if record["rows"] is not None:
        record["rows"] = [_line_row(row, absent) for row in record["rows"]]
    return describe.line(record)


def lines(path: str) -> Iterator[str]:
    """What kdctl store import reads: the notes and records of a file of ours, a line each."""
    file = pq.ParquetFile(path)
    missing = [name for name in SCHEMA.names if name not in file.schema_arrow.names]
    if missing:
        raise ValueError("no column %s: not a file that kdctl store export wrote" % ", ".join(missing))
    notes = json.loads((file.schema_arrow.metadata or {}).get(b"kdserved", b"{}"))
    yield from describe.note_lines(notes.get("teachers", {}))
    for batch in file.iter_batches(batch_size=16, columns=SCHEMA.names):
        for record in batch.to_pylist():
            yield _line(record)
