# SPDX-License-Identifier: Apache-2.0
"""Stores read without a server, by the Python client: what a daemon kept, what kdctl says of it, damage and torn tails."""
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import support
support.need("numpy")

import numpy as np

from kdclient import KdError, Store, Teacher
from kdserved import BUILD, Daemon

SEQUENCES = [[(7 * i + 3 * j) % 250 for j in range(10 + i)] for i in range(30)]


class Stores(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="kdserved-python-")
        cls.directory = os.path.join(cls.folder, "store")
        with Daemon("--store", cls.directory) as daemon, Teacher.connect("unix:" + daemon.socket_path) as teacher:
            cls.answers = teacher.score(SEQUENCES, top_k=5, own=True, temperatures=[1, 2], durable=True)
            cls.answers += teacher.score(SEQUENCES[:5], gather=[1, 2, 3], values="u8", durable=True)
            cls.fingerprint = teacher.info.fingerprint
            cls.running = Store(cls.directory)    # while the daemon writes

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def copy(self, change):
        """The store with one shard changed."""
        to = tempfile.mkdtemp(dir=self.folder)
        shutil.copytree(self.directory, to, dirs_exist_ok=True)
        path = os.path.join(to, sorted(n for n in os.listdir(to) if n.endswith(".shard"))[0])
        with open(path, "r+b") as f:
            change(f)
        return to

    def test_records_are_those_that_were_sent(self):
        for store in (self.running, Store(self.directory)):
            self.assertEqual({r.record for r in store}, {r.record for r in self.answers})
            self.assertEqual((len(store), store.damage), (len(self.answers), []))
            self.assertIn(self.answers[3].key, store)
            self.assertEqual(store[self.answers[3].key].record, self.answers[3].record)

    def test_a_question_finds_its_answer(self):
        store = Store(self.directory)
        for tokens, answer in zip(SEQUENCES, self.answers):
            self.assertEqual(store.find(self.fingerprint, tokens, top_k=5, own=True, temperatures=[2, 1]).record, answer.record)
        self.assertEqual(store.find(self.fingerprint, SEQUENCES[0], gather=[1, 2, 3], values="u8").record, self.answers[30].record)
        self.assertIsNone(store.find(self.fingerprint, SEQUENCES[0], gather=[1, 2, 3]))
        self.assertIsNone(store.find("00" * 32, SEQUENCES[0], top_k=5, own=True, temperatures=[2, 1]))

    def test_kdctl_finds_the_same(self):
        shown = subprocess.run([os.path.join(BUILD, "kdctl"), "--json", "store", "cat", self.directory], check=True, stdout=subprocess.PIPE)
        lines = [json.loads(line) for line in shown.stdout.splitlines()]
        self.assertEqual([line["key"] for line in lines], [r.key for r in Store(self.directory)])
        for line, rows in zip(lines, Store(self.directory)):
            self.assertEqual(line["tokens"], rows.tokens.tolist())
            if rows.ids is not None:
                self.assertEqual([row["ids"] for row in line["rows"]], rows.ids.tolist())
                np.testing.assert_array_equal(np.array([row["logits"] for row in line["rows"]], np.float32), rows.logits)

    def test_damage_is_told_and_stepped_over(self):
        def in_a_record(f):
            f.seek(4096 + 60)
            f.write(b"\xff")
        store = Store(self.copy(in_a_record))
        self.assertEqual((len(store), store.damage), (len(self.answers), []))    # its header holds
        with self.assertRaises(KdError) as raised:
            list(store)
        self.assertEqual(raised.exception.code, "corrupt")

        def frame_header(f):
            f.seek(4096 + 5)
            f.write(b"\xff")
        store = Store(self.copy(frame_header))
        self.assertEqual(len(store), len(self.answers) - 1)
        self.assertEqual([d[1] for d in store.damage], [4096])
        whole = [r.record for r in Store(self.directory)]
        self.assertEqual([r.record for r in store], whole[1:])

    def test_a_torn_tail_is_ignored_and_one_header_is_enough(self):
        def tail(f):
            f.seek(0)
            f.write(bytes(64))    # the first header
            f.seek(0, 2)
            f.truncate(f.tell() - 40)    # in the seal or the last record
            f.seek(0, 2)
            f.write(b"KDFR torn")
        store = Store(self.copy(tail))
        self.assertGreaterEqual(len(store), len(self.answers) - 1)
        self.assertEqual(store.damage, [])

    def test_a_shard_that_its_writer_cuts_is_damaged_and_no_end_of_the_program(self):
        folder = self.copy(lambda f: None)
        store = Store(folder)
        path = os.path.join(folder, "00000000.shard")
        os.truncate(path, 4096)    # a mapped page that is gone is a SIGBUS
        with self.assertRaises(KdError) as raised:
            list(store)
        self.assertEqual(raised.exception.code, "corrupt")

    def test_compressed_records_are_told_from_damaged_ones(self):
        folder = self.copy(lambda f: None)
        done = subprocess.run([os.path.join(BUILD, "kdctl"), "store", "compact", "--compression", "zstd", folder], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
        if b"no zstd" in done.stderr:
            self.skipTest("this build has no zstd")
        self.assertEqual(done.returncode, 0, done.stderr)
        codes = set()
        store = Store(folder)
        for key in store.keys():
            try:
                codes.add(store[key].key == key)
            except KdError as error:
                codes.add(error.code)
        self.assertLessEqual(codes, {True, "unsupported"})
        self.assertIn("unsupported", codes)

    def test_what_is_no_shard_is_refused(self):
        for content in (b"", bytes(5000), b"KDSHARD\n" + bytes(5000)):
            folder = tempfile.mkdtemp(dir=self.folder)
            with open(os.path.join(folder, "00000001.shard"), "wb") as f:
                f.write(content)
            with self.assertRaises(KdError) as raised:
                Store(folder)
            self.assertEqual(raised.exception.code, "corrupt")


if __name__ == "__main__":
    support.main()
