# SPDX-License-Identifier: Apache-2.0
"""Stores as Parquet and back (needs pyarrow): what is read is what /v1/score gave, and import gives the same records byte for byte."""
import json
import math
import unittest
from unittest import mock

import support
support.need("numpy", "pyarrow")

import numpy as np
import pyarrow.parquet as pq

import kdclient
from exports import Folder, kdctl
from kdserved import read_notes, write_note
from kdclient import parquet


def same(a, b):
    """A line's JSON against what the table has: floats of nine digits, null for what is not finite."""
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return all(same(value, b[name]) for name, value in a.items()) and all(b[name] is None for name in b if name not in a)
    if a is None:
        return b is None or not math.isfinite(b)
    return np.float32(a) == np.float32(b) if isinstance(b, float) else a == b


class Parquet(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = Folder()
        cls.path = cls.folder.file("rows.parquet")
        kdctl("store", "export", cls.folder.store, "--output", cls.path)
        cls.records = pq.read_table(cls.path).to_pylist()

    @classmethod
    def tearDownClass(cls):
        cls.folder.remove()

    def test_every_line_of_json_is_a_line_of_the_table(self):
        lines = self.folder.lines()
        self.assertEqual(len(self.records), len(lines))
        for record, line in zip(self.records, lines):
            self.assertEqual(json.loads(record["question"]), line["question"])
            for name in ("version", "key", "teacher", "vocab_size", "checksum", "tokens"):
                self.assertEqual(record[name], line[name])
            for name in ("max_logit", "spans", "pooled", "feature_widths", "rows"):
                self.assertTrue(same(line.get(name), record[name]), (name, line.get(name), record[name]))

    def test_minus_infinity_stays(self):
        tails = [row["tail"] for record in self.records for row in record["rows"] or () if row["tail"] is not None]
        self.assertIn(-math.inf, tails)

    def test_import_gives_the_same_records(self):
        store = self.folder.file("again")
        self.assertIn("%d records" % self.folder.n, kdctl("store", "import", store, self.path))
        self.assertEqual(self.folder.text(store), self.folder.text())
        kdctl("store", "verify", store)
        self.assertEqual([r.record for r in kdclient.Store(store)], [r.record for r in kdclient.Store(self.folder.store)])

    def test_notes_about_teachers_come_back(self):
        store, path, back = self.folder.file("noted"), self.folder.file("noted.parquet"), self.folder.file("noted.d")
        kdctl("store", "import", store, self.path)
        write_note(store, 1)
        write_note(store, 2, codec="2", name="")
        kdctl("store", "export", store, "--output", path)
        kdctl("store", "import", back, path)
        self.assertEqual(read_notes(back), read_notes(store))
        self.assertEqual(len(read_notes(back)), 2)

    def test_row_groups_are_bounded(self):
        path = self.folder.file("groups.parquet")
        with open(path, "wb") as to, mock.patch.object(parquet, "GROUP_NUMBERS", 500):
            writer = parquet.Writer(to, {})
            for rows in kdclient.Store(self.folder.store):
                writer.append(rows)
            writer.save()
        self.assertGreater(pq.ParquetFile(path).num_row_groups, 2)
        self.assertEqual(pq.read_table(path).to_pylist(), self.records)

    def test_a_changed_number_is_refused(self):
        table = pq.read_table(self.path).to_pylist()
        row = next(r for record in table for r in record["rows"] or () if r["lse"])
        row["lse"][0] += 0.25
        path = self.folder.file("changed.parquet")
        import pyarrow as pa
        pq.write_table(pa.Table.from_pylist(table, schema=parquet.SCHEMA), path)
        said = kdctl("store", "import", self.folder.file("changed"), path, status=1)
        self.assertRegex(said, "line 1: (checksum|record): ")

    def test_another_table_is_refused(self):
        import pyarrow as pa
        path = self.folder.file("other.parquet")
        pq.write_table(pa.table({"input_ids": [[1, 2]]}), path)
        self.assertIn("no column version", kdctl("store", "import", self.folder.file("other"), path, status=1))
        with open(path, "r+b") as f:
            f.truncate(50)
        self.assertEqual(len(kdctl("store", "import", self.folder.file("other"), path, status=1).splitlines()), 1)

    def test_a_store_of_nothing_is_a_table_of_nothing(self):
        import os
        os.mkdir(self.folder.file("empty"))
        path = self.folder.file("empty.parquet")
        kdctl("store", "export", self.folder.file("empty"), "--output", path)
        self.assertEqual((pq.read_table(path).num_rows, pq.read_schema(path).names), (0, parquet.SCHEMA.names))


if __name__ == "__main__":
    support.main()
