# SPDX-License-Identifier: Apache-2.0
"""kdctl audit: answers and records against a daemon that computes in float64."""
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import tiny_model
from kdserved import BUILD, EXACT, Daemon

KDCTL = os.path.join(BUILD, "kdctl")
TEXT = "the cat and the dog in the garden and a bird on the other one\n" * 12


class Audit(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        cls.addClassCleanup(shutil.rmtree, cls.directory)
        cls.store = os.path.join(cls.directory, "store")
        cls.daemon = Daemon("--max-tokens", "512", "--store", cls.store, *EXACT)
        cls.addClassCleanup(cls.daemon.stop)
        cls.reference = Daemon("--max-tokens", "512", "--device", "ref", model=cls.daemon.model)
        cls.addClassCleanup(cls.reference.stop)
        cls.text = os.path.join(cls.directory, "text")
        with open(cls.text, "w") as f:
            f.write(TEXT)

    def kdctl(self, *arguments, reference=None, expect=0):
        where = "unix:" + (reference or self.reference).socket_path
        done = subprocess.run([KDCTL, "--server", "unix:" + self.daemon.socket_path, "--json", "audit", "--reference", where, *arguments],
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, expect, done.stderr)
        return json.loads(done.stdout) if done.stdout else done.stderr

    def test_answers_are_close_to_float64_and_not_equal_to_it(self):
        report = self.kdctl("--length", "40", "--sample", "5", "--top-k", "20", "--bound", "1e-2", self.text)
        self.assertEqual(report["sequences"], 5)
        self.assertGreaterEqual(report["rows"], 160)
        self.assertEqual(report["ids"]["beyond_ties"], 0)
        self.assertTrue(report["within"])
        for name, factor in (("lse", 1), ("logits", 20), ("entropy", 1)):
            signal = report["signals"][name]
            self.assertEqual(signal["n"], factor * report["rows"])
            self.assertTrue(0 <= signal["mean"] <= signal["p99"] <= signal["max"] < 1e-2, signal)
        self.assertGreater(report["signals"]["logits"]["max"], 0)
        self.assertEqual(report["signals"]["own"]["n"], report["rows"] - 5)

    def test_a_bound_that_is_not_met_is_a_failure(self):
        report = self.kdctl("--length", "40", "--sample", "3", "--bound", "1e-12", self.text, expect=1)
        self.assertFalse(report["within"])

    def test_records_are_audited_with_what_their_format_lost(self):
        sequences = os.path.join(self.directory, "lines.jsonl")
        with open(sequences, "w") as f:
            for i in range(6):
                f.write(json.dumps({"tokens": [(7 * i + j * j) % 200 for j in range(20)]}) + "\n")
        subprocess.run([KDCTL, "--server", "unix:" + self.daemon.socket_path, "capture", sequences, "--top-k", "8", "--values", "u8",
                        "--store", os.path.join(self.directory, "records")], check=True, capture_output=True, timeout=120)
        report = self.kdctl("--store", os.path.join(self.directory, "records"), "--bound", "0.5")
        self.assertEqual((report["sequences"], report["ids"]["beyond_ties"]), (6, 0))
        self.assertGreater(report["signals"]["logits"]["max"], 1e-4)       # of u8
        self.assertLess(report["signals"]["lse"]["max"], 1e-3)             # f32 all the same
        self.kdctl("--store", os.path.join(self.directory, "records"), "--bound", "1e-4", expect=1)

    def test_another_model_is_no_reference(self):
        other = os.path.join(self.directory, "other")
        tiny_model.write(other, seed=99)
        with Daemon("--device", "ref", model=other) as daemon:
            self.assertIn("different weights", self.kdctl(self.text, reference=daemon, expect=1))

    def test_what_does_not_compute_in_float64_is_no_reference(self):
        told = self.kdctl(self.text, reference=self.daemon, expect=1)
        self.assertIn("the reference computes in f32 on cpu, not in float64", told)

    def test_what_is_missing_is_said(self):
        for arguments, word in (((), "FILE or --store"), (("--bound", "x", self.text), "a number"), (("--what",), "unknown option")):
            self.assertIn(word, self.kdctl(*arguments, expect=2))
        self.assertIn("No such file", self.kdctl("/nonexistent", expect=1))


if __name__ == "__main__":
    unittest.main()
