# SPDX-License-Identifier: Apache-2.0
"""numeric = int8: another teacher by name, fingerprint and store, near the first by what it says, and refused where there is none."""
import math
import os
import shutil
import tempfile
import unittest

import tiny_model
from kdserved import Daemon


class Int8(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.model = os.path.join(self.directory, "model")
        tiny_model.write(self.model)
        self.store = os.path.join(self.directory, "store")

    def ask(self, numeric, *more):
        """(id, numeric, dense rows of a sequence, cached) of a daemon with the common store."""
        with Daemon("--store", self.store, "--numeric", numeric, *more, model=self.model) as d:
            told = d.get("/v1/model")[1]
            status, reply = d.post("/v1/score", {"sequences": [{"tokens": list(range(40, 90))}], "dense": True})
            self.assertEqual(status, 200, reply)
            one = reply["sequences"][0]
            return told["id"], told["numeric"], [row["dense"] for row in one["rows"]], one["cached"]

    def off(self, have, want):
        """Root mean square of the logits' differences, to that of the logits (of random weights 32 wide, where little averages out)."""
        self.assertTrue(all(math.isfinite(a) for x in have + want for a in x))
        return math.sqrt(sum((a - b) ** 2 for x, y in zip(have, want) for a, b in zip(x, y)) / sum(a * a for x in want for a in x))

    def test_it_is_another_teacher_that_says_nearly_the_same(self):
        f32, int8, again = self.ask("f32"), self.ask("int8"), self.ask("int8")
        self.assertEqual((f32[1], int8[1]), ("f32", "int8"))
        self.assertNotEqual(f32[0], int8[0])
        self.assertFalse(f32[3] or int8[3])                 # nothing that the other kept
        self.assertTrue(again[3])
        self.assertEqual(again[2], int8[2])
        self.assertNotEqual(f32[2], int8[2])
        self.assertLess(self.off(f32[2], int8[2]), 0.1)

    def test_the_reference_computes_nearly_the_same_integers(self):
        cpu, ref = self.ask("int8", "--canary-reference"), self.ask("int8", "--device", "ref")
        self.assertEqual(ref[1], "int8-f64")
        self.assertNotEqual(cpu[0], ref[0])
        self.assertFalse(ref[3])
        self.assertLess(self.off(cpu[2], ref[2]), 0.06)     # its attention rounds nothing, so some integers are the next


if __name__ == "__main__":
    unittest.main()
