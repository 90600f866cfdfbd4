# SPDX-License-Identifier: Apache-2.0
"""Writes the records of a store as npz or Parquet, and reads them back: what `kdctl store export` runs for these formats (kdctl(1)).

    python3 -m kdclient.export DIR --format parquet|npz --output FILE [--teacher ID] [--limit N] [--overwrite] [--json]
    python3 -m kdclient.export --lines FILE      such a file as lines of JSON, for kdctl store import
"""
from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import zipfile
from typing import IO, Any, Dict, Iterator, List, NoReturn, Optional

from . import __version__, describe, flat, npz
from .errors import KdError
from .rows import Rows
from .store import Store

BAR_WIDTH, REDRAW_SECONDS = 30, 0.1


def tell(message: str) -> None:
    """A line on stderr by one write, as kdctl may be writing there too."""
    sys.stderr.write("kdclient.export: %s\n" % message)


def fail(message: str) -> NoReturn:
    tell(message)
    sys.exit(1)


def _parquet() -> Any:
    try:
        from . import parquet
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        fail("parquet needs pyarrow, which %s lacks: pip install pyarrow" % sys.executable)
    return parquet


class Progress:
    """A bar on stderr when that is a terminal."""

    def __init__(self, total: int) -> None:
        self._total, self._drawn = total, 0.0
        self._shown = sys.stderr.isatty()

    def show(self, done: int) -> None:
        now = time.monotonic()
        if self._shown and (done == self._total or now - self._drawn > REDRAW_SECONDS):
            filled = BAR_WIDTH * done // max(self._total, 1)
            bar = "#" * filled + "." * (BAR_WIDTH - filled)
            print("\r\033[K[%s] %d records exported" % (bar, done), end="", file=sys.stderr, flush=True)
            self._drawn = now

    def stop(self) -> None:
        if self._shown and self._drawn:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class Source:
    """The records asked for. Damage is told and counted, the rest goes on."""

    def __init__(self, directory: str, teacher: str, limit: Optional[int]) -> None:
        self._store, self._teacher, self._limit = Store(directory), teacher, limit
        self.records = self.rows = 0
        self.damaged = len(self._store.damage)
        for path, begin, end in self._store.damage:
            tell("%s:%d: %d bytes are damaged" % (os.path.basename(path), begin, end - begin))

    def __iter__(self) -> Iterator[Rows]:
        progress = Progress(len(self._store))
        for number, key in enumerate(self._store.keys(), 1):
            if self.records == self._limit:
                break
            try:
                rows = self._store[key]
            except KdError as error:
                kept = self._store.place(key)
                tell("%s:%d: %s" % (os.path.basename(kept.shard), kept.at, error.message))
                self.damaged += 1
                continue
            if rows.teacher.startswith(self._teacher):
                self.records += 1
                self.rows += len(rows)
                yield rows
            progress.show(number)
        progress.stop()


# ---- a file that appears whole or not at all

def _sync_folder(path: str) -> None:
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(source: Source, to: IO[bytes], path: str, format: str, notes: Dict[str, Any]) -> None:
    if format == "parquet":
        writer = _parquet().Writer(to, notes)
        for rows in source:
            writer.append(rows)
        writer.save()
        return
    columns = flat.Columns(os.path.dirname(path) or ".")
    try:
        for rows in source:
            columns.append(rows)
        columns.save(to, notes["teachers"])
    finally:
        columns.close()


def _save(source: Source, path: str, format: str, notes: Dict[str, Any]) -> None:
    temporary = path + ".tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(fd, "wb") as to:
            _write(source, to, path, format, notes)
            to.flush()
            os.fsync(to.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync_folder(path)


def export(directory: str, path: str, format: str, teacher: str = "", limit: Optional[int] = None) -> Source:
    """Writes the records of a directory; how many they were, and what was damaged. format: "npz" or "parquet"."""
    source = Source(directory, teacher, limit)
    notes = {"format": "kdserved-records 1", "program": "kdclient " + __version__, "teachers": describe.teachers(directory, teacher)}
    _save(source, path, format, notes)
    return source


# ---- the command line

def _arguments(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m kdclient.export", description="Writes the records of a store as npz or Parquet.")
    parser.add_argument("directory", nargs="?")
    parser.add_argument("--format", choices=("npz", "parquet"))
    parser.add_argument("--output")
    parser.add_argument("--teacher", default="", help="only records of the teacher whose fingerprint begins so")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--overwrite", action="store_true", help="the file may exist")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--lines", metavar="FILE", help="print the records of such a file as lines of JSON")
    asked = parser.parse_args(arguments)
    if not asked.lines and not (asked.directory and asked.format and asked.output):
        parser.error("DIR, --format and --output are expected, or --lines FILE")
    return asked


def _print_lines(path: str) -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)    # kdctl has said why it reads no further
    try:
        with open(path, "rb") as file:
            is_npz = file.read(4) == b"PK\3\4"
        for line in npz.lines(path) if is_npz else _parquet().lines(path):
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:    # pyarrow's own are among them
        fail("%s: %s" % (path, " ".join(str(error).split())))
    return 0


def main(arguments: Optional[List[str]] = None) -> int:
    asked = _arguments(arguments)
    if asked.lines:
        return _print_lines(asked.lines)
    if asked.format == "parquet":
        _parquet()
    if not asked.overwrite and os.path.lexists(asked.output):
        fail("%s: it exists: --overwrite writes it anew" % asked.output)
    try:
        source = export(asked.directory, asked.output, asked.format, asked.teacher, asked.limit)
    except KdError as error:
        fail(str(error))
    except OSError as error:
        fail("%s: %s" % (error.filename or asked.output, error.strerror or error))
    if asked.json:
        print(json.dumps({"records": source.records, "rows": source.rows, "damaged": source.damaged}, separators=(",", ":")))
    else:
        print("%d records, %d rows exported, %d damaged" % (source.records, source.rows, source.damaged))
    return 1 if source.damaged else 0


if __name__ == "__main__":
    sys.exit(main())
