# SPDX-License-Identifier: Apache-2.0
"""numeric = fp8: another teacher by name, fingerprint and store, near the first by what it says, and refused where there is none."""
import math
import os
import shutil
import tempfile
import unittest

import tiny_model
from kdserved import Daemon


class Fp8(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.model = os.path.join(self.directory, "model")
        tiny_model.write(self.model)
        self.store = os.path.join(self.directory, "store")

    def ask(self, numeric):
        """(id, numeric, dense rows of a sequence, cached) of the reference with the common store."""
        with Daemon("--store", self.store, "--device", "ref", "--numeric", numeric, model=self.model) as d:
            told = d.get("/v1/model")[1]
            status, reply = d.post("/v1/score", {"sequences": [{"tokens": list(range(40, 90))}], "dense": True})
            self.assertEqual(status, 200, reply)
            one = reply["sequences"][0]
            return told["id"], told["numeric"], [row["dense"] for row in one["rows"]], one["cached"]

    def test_it_is_another_teacher_that_says_nearly_the_same(self):
        f64, fp8, again = self.ask("auto"), self.ask("fp8"), self.ask("fp8")
        self.assertEqual((f64[1], fp8[1]), ("f64", "fp8-f64"))
        self.assertNotEqual(f64[0], fp8[0])
        self.assertFalse(f64[3] or fp8[3])                  # nothing that the other kept
        self.assertTrue(again[3])
        self.assertEqual(again[2], fp8[2])
        self.assertNotEqual(f64[2], fp8[2])
        pairs = [(a, b) for x, y in zip(fp8[2], f64[2]) for a, b in zip(x, y)]
        self.assertTrue(all(math.isfinite(a) for a, _ in pairs))
        self.assertLess(math.sqrt(sum((a - b) ** 2 for a, b in pairs) / sum(b * b for _, b in pairs)), 0.4)     # of random weights 32 wide

    def test_the_processor_has_none(self):
        d = Daemon("--device", "cpu", "--numeric", "fp8", model=self.model, wait=False)
        status = d.wait_exit()
        d.stop(expect=None)
        self.assertEqual(status, 78, d.log())
        self.assertIn("numeric: device cpu has no products of fp8: cuda has, on GPUs of compute capability 8.9 and above", d.log())


if __name__ == "__main__":
    unittest.main()
