# SPDX-License-Identifier: Apache-2.0
"""Stores written as npz by kdclient: every number, the question in kdctl's words, and a file that is whole or not there."""
import json
import os
import resource
import struct
import subprocess
import sys
import unittest

import support
support.need("numpy")

import numpy as np

import kdclient
from exports import ENVIRONMENT, Folder, kdctl
from kdserved import read_notes, write_note
from kdclient import describe, export


class Npz(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = Folder()
        cls.rows = list(kdclient.Store(cls.folder.store))
        cls.path = cls.folder.file("rows.npz")
        cls.said = kdctl("store", "export", cls.folder.store, "--output", cls.path)
        cls.arrays = np.load(cls.path, allow_pickle=False)

    @classmethod
    def tearDownClass(cls):
        cls.arrays.close()
        cls.folder.remove()

    def of(self, i, name, at):
        """Record i's piece of a column."""
        return self.arrays[name][self.arrays[at][i]:self.arrays[at][i + 1]]

    def row_lists(self, i, name, at):
        """Record i's pieces, one a row, behind one another."""
        begin, end = self.arrays["row_at"][i:i + 2]
        return self.arrays[name][self.arrays[at][begin]:self.arrays[at][end]]

    def test_kdctl_says_what_it_wrote(self):
        self.assertIn("%d records, %d rows exported, 0 damaged" % (self.folder.n, sum(len(r) for r in self.rows)), self.said)

    def test_records_are_named(self):
        for i, r in enumerate(self.rows):
            self.assertEqual(self.arrays["key"][i].tobytes().hex(), r.key)
            self.assertEqual(self.arrays["teacher"][i].tobytes().hex(), r.teacher)
            self.assertEqual(self.arrays["vocab_size"][i], r.vocab_size)
            np.testing.assert_array_equal(self.of(i, "tokens", "token_at"), r.tokens)
        self.assertEqual(len(self.arrays["token_at"]), len(self.rows) + 1)
        self.assertEqual(len(self.arrays["status"]), self.arrays["row_at"][-1])

    def test_rows_hold_every_number(self):
        seen = set()
        for i, r in enumerate(self.rows):
            for name in ("max_logit", "own_logit", "entropy", "max_prob", "argmax", "sum_squares", "tail"):
                if getattr(r, name) is not None:
                    np.testing.assert_array_equal(self.of(i, name, "row_at"), getattr(r, name), name)
                    seen.add(name)
            for name, at in (("lse", "lse_at"), ("dense", "dense_at"), ("span_sums", "span_at")):
                if getattr(r, name) is not None:
                    np.testing.assert_array_equal(self.of(i, name, at), getattr(r, name).reshape(-1), name)
                    seen.add(name)
            if r.ids is not None:
                np.testing.assert_array_equal(self.row_lists(i, "ids", "top_at"), r.ids[r.ids >= 0])
                np.testing.assert_array_equal(self.row_lists(i, "logits", "top_at"), r.logits[r.ids >= 0])
            if r.gathered is not None:
                np.testing.assert_array_equal(self.row_lists(i, "gather", "gather_at"), r.gathered)
                np.testing.assert_array_equal(self.row_lists(i, "gather_ids", "gather_at"), r.gather_ids)
                seen.add("gather")
            if r.draw_at is not None:
                np.testing.assert_array_equal(self.row_lists(i, "draw_ids", "draw_at"), r.draw_ids)
                np.testing.assert_array_equal(self.row_lists(i, "draw_counts", "draw_at"), r.draw_counts)
                wanted = np.zeros(len(r.draw_ids)) if r.draw_log_ratios is None else r.draw_log_ratios
                np.testing.assert_array_equal(self.row_lists(i, "draw_log_ratios", "draw_at"), wanted)
                seen.add("draws")
            if r.features:
                np.testing.assert_array_equal(self.of(i, "features", "feature_at"), np.concatenate([f.reshape(-1) for f in r.features]))
                self.assertEqual(self.of(i, "feature_widths", "width_at").tolist(), [f.shape[1] for f in r.features])
                seen.add("features")
        self.assertEqual(len(seen), 13)    # the store has them all

    def test_kdctl_writes_the_same_arrays_as_safetensors(self):
        path = self.folder.file("rows.safetensors")
        kdctl("store", "export", self.folder.store, "--output", path)
        with open(path, "rb") as f:
            header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            data = f.read()
        self.assertEqual(set(header) - {"__metadata__"}, set(self.arrays.files))
        for name, array in self.arrays.items():
            begin, end = header[name]["data_offsets"]
            dtype = array.dtype.kind + str(8 * array.itemsize)
            self.assertEqual((header[name]["dtype"].lower(), header[name]["shape"]), (dtype, list(array.shape)))
            self.assertEqual(data[begin:end], array.tobytes(), name)

    def again(self, name, path):
        """The store that a file gives."""
        store = self.folder.file(name)
        self.assertIn("%d records" % self.folder.n, kdctl("store", "import", store, path))
        self.assertEqual(self.folder.text(store), self.folder.text())
        kdctl("store", "verify", store)
        self.assertEqual([r.record for r in kdclient.Store(store)], [r.record for r in self.rows])

    def test_import_gives_the_same_records(self):
        self.again("again", self.path)
        packed = self.folder.file("packed.npz")
        np.savez_compressed(packed, **dict(self.arrays.items()))        # as whoever worked on it may have saved it
        self.again("packed", packed)

    def test_notes_about_teachers_come_back(self):
        store, path, back = self.folder.file("noted"), self.folder.file("noted.npz"), self.folder.file("noted.d")
        kdctl("store", "import", store, self.path)
        write_note(store, 1)
        chosen = write_note(store, 2, codec="2", name="")
        with open(os.path.join(store, "0123456789abcdef.teacher"), "w") as f:
            f.write("kdserved teacher 1\nweights 00\n")                 # proves nothing: is no note
        kdctl("store", "export", store, "--output", path)
        kdctl("store", "import", back, path)
        wanted = {name: text for name, text in read_notes(store).items() if not name.startswith("0123456789abcdef")}
        self.assertEqual(read_notes(back), wanted)
        self.assertEqual(self.folder.text(back).splitlines()[2:], self.folder.text().splitlines())
        self.assertEqual([t for t in describe.teachers(store, chosen)], [chosen[:16]])

    def test_changed_arrays_are_refused(self):
        arrays, path, store = dict(self.arrays.items()), self.folder.file("changed.npz"), self.folder.file("changed")
        for name, change in (("lse", 0.25), ("tokens", 1), ("top_at", 1), ("row_at", 1000), ("token_at", -5), ("key", 1),
                             ("feature_widths", 1), ("question", 1), ("status", 1), ("draw_counts", 1)):
            np.savez(path, **{**arrays, name: arrays[name] + arrays[name].dtype.type(change)})
            said = kdctl("store", "import", store, path, status=1).splitlines()
            self.assertTrue(1 <= len(said) <= 2 and all(path in line for line in said), said)    # whoever reads sees it, or who takes over, or both
        for name in ("question_at", "max_logit", "lse"):
            np.savez(path, **{other: array for other, array in arrays.items() if other != name})
            self.assertEqual(len(kdctl("store", "import", store, path, status=1).splitlines()), 1)

    def test_other_archives_are_refused(self):
        path = self.folder.file("other.npz")
        np.savez(path, weights=np.zeros(3))
        self.assertIn("no array key", kdctl("store", "import", self.folder.file("other"), path, status=1))
        np.savez(path, **{**dict(self.arrays.items()), "lse": np.array([{}], dtype=object)})      # a pickle: never read
        self.assertEqual(len(kdctl("store", "import", self.folder.file("other"), path, status=1).splitlines()), 1)
        with open(self.path, "rb") as whole:
            data = whole.read()
        for n in (50, len(data) // 2, len(data) - 10):
            with open(path, "wb") as cut:
                cut.write(data[:n])
            self.assertEqual(len(kdctl("store", "import", self.folder.file("other"), path, status=1).splitlines()), 1)

    def test_what_was_not_asked_is_not_a_number(self):
        for i, r in enumerate(self.rows):
            if r.entropy is None:
                self.assertTrue(np.isnan(self.of(i, "entropy", "row_at")).all())
        one = self.folder.file("one.npz")
        kdctl("store", "export", self.folder.store, "--output", one, "--limit", "1")
        with np.load(one) as arrays:
            self.assertNotIn("entropy", arrays)
            self.assertNotIn("draw_ids", arrays)
            self.assertEqual(len(arrays["key"]), 1)

    def test_the_question_is_the_one_of_kdctl(self):
        for r, line in zip(self.rows, self.folder.lines()):
            self.assertEqual(describe.question(r.query), line["question"])
            self.assertEqual((describe.version(r), describe.checksum(r)), (line["version"], line["checksum"]))
            self.assertEqual(describe.numbers_suffice(r), "record" not in line)
        self.assertTrue(any("record" in line for line in self.folder.lines()))

    def test_bytes_stand_where_numbers_do_not_suffice(self):
        for i, r in enumerate(self.rows):
            self.assertEqual(self.of(i, "record", "record_at").tobytes(), b"" if describe.numbers_suffice(r) else r.record)

    def test_a_teacher_is_chosen(self):
        path, teacher = self.folder.file("teacher.npz"), self.rows[3].teacher
        kdctl("store", "export", self.folder.store, "--output", path, "--teacher", teacher[:12])
        with np.load(path) as arrays:
            self.assertEqual({t.tobytes().hex() for t in arrays["teacher"]}, {teacher})

    def test_a_file_that_is_there_stays(self):
        self.assertIn("exists", kdctl("store", "export", self.folder.store, "--output", self.path, status=1))
        self.assertIn("exists", self.run_module(self.folder.store, "--format", "npz", "--output", self.path, status=1))
        kdctl("store", "export", self.folder.store, "--output", self.path + "2.npz")
        kdctl("store", "export", self.folder.store, "--output", self.path + "2.npz", "--overwrite")
        with open(self.path, "rb") as a, open(self.path + "2.npz", "rb") as b:
            self.assertEqual(a.read(), b.read())    # the same records are the same file

    def test_a_full_disk_leaves_nothing(self):
        path = self.folder.file("full.npz")
        said = kdctl("store", "export", self.folder.store, "--output", path, status=1,
                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
        self.assertEqual(len(said.splitlines()), 1, said)
        self.assertIn(path + ": File too large", said)
        self.assertEqual([n for n in os.listdir(self.folder.path) if n.startswith("full")], [])

    def test_damage_is_told_and_the_rest_exported(self):
        store = self.folder.file("damaged")
        kdctl("store", "import", store, self.folder.file("all.jsonl"))
        kept = kdclient.Store(store).place(self.rows[2].key)
        with open(kept.shard, "r+b") as shard:
            shard.seek(kept.at + 200)
            byte = shard.read(1)[0]
            shard.seek(kept.at + 200)
            shard.write(bytes([byte ^ 1]))
        path = self.folder.file("damaged.npz")
        said = kdctl("store", "export", store, "--output", path, status=1)
        self.assertIn("00000000.shard:%d" % kept.at, said)
        self.assertIn("1 damaged", said)
        with np.load(path) as arrays:
            self.assertEqual(len(arrays["key"]), len(self.rows) - 1)

    def test_what_is_missing_is_said_in_a_line(self):
        bare = self.folder.file("bare")
        os.mkdir(bare)
        with open(os.path.join(bare, "pyarrow.py"), "w") as f:
            f.write("raise ModuleNotFoundError('gone', name='pyarrow')\n")
        environment = {**ENVIRONMENT, "PYTHONPATH": bare + ":" + ENVIRONMENT["PYTHONPATH"]}
        self.one_line("needs pyarrow", environment)
        self.one_line("no kdclient", {**ENVIRONMENT, "PYTHONPATH": bare}, sys.executable)
        self.one_line("No such file", {**ENVIRONMENT, "KDSERVED_PYTHON": "/nonexistent"})
        self.assertFalse(os.path.exists(self.folder.file("rows.parquet")))

    def one_line(self, what, environment, *unless):
        if unless and subprocess.run([*unless, "-c", "import kdclient"], env=environment, cwd="/", capture_output=True).returncode == 0:
            return    # installed: it is not missing
        from exports import KDCTL
        done = subprocess.run([KDCTL, "store", "export", self.folder.store, "--output", self.folder.file("rows.parquet")], env=environment,
                              capture_output=True, text=True, cwd="/")
        self.assertEqual((done.returncode, done.stdout, len(done.stderr.splitlines())), (1, "", 1), done)
        self.assertIn(what, done.stderr)

    def run_module(self, *arguments, status=0):
        done = subprocess.run([sys.executable, "-m", "kdclient.export", *arguments], env=ENVIRONMENT, capture_output=True, text=True)
        self.assertEqual(done.returncode, status, done)
        return done.stdout + done.stderr

    def test_usage(self):
        self.assertIn("expected", self.run_module("x", status=2))
        self.assertIn("invalid choice", self.run_module("x", "--format", "y", status=2))
        self.assertIn("No such file", self.run_module("/nonexistent", "--format", "npz", "--output", self.folder.file("n"), status=1))


if __name__ == "__main__":
    support.main()
