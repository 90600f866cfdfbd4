# SPDX-License-Identifier: Apache-2.0
"""A teacher whose GGUF file is in parts has the answers, the fingerprint and the plan of the same in one file: in memory, as stored, and
streamed."""
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import gguf_files
import test_streamed
from kdserved import BUILD

KDCTL = os.path.join(BUILD, "kdctl")
N_PARTS = 4
folder = single = parts = None


def setUpModule():
    global folder, single, parts
    folder = tempfile.mkdtemp(prefix="kdserved-e2e-")
    model = os.path.join(folder, "model")
    test_streamed.write_model(model)
    single = os.path.join(folder, "single.gguf")
    gguf_files.from_directory(model, single)
    shutil.rmtree(model)
    parts = gguf_files.split(single, os.path.join(folder, "split"), N_PARTS)


def tearDownModule():
    shutil.rmtree(folder)


class Parts(unittest.TestCase):
    setUp, refused, needed, stored_cap, records = (getattr(test_streamed.Streamed, name) for name in
                                                           ("setUp", "refused", "needed", "stored_cap", "records"))

    def daemon(self, *arguments, model=None, **more):
        return test_streamed.Streamed.daemon(self, *arguments, model=model or parts[0], **more)

    def answers(self, **more):
        wanted = test_streamed.sequences(n=16)
        with self.daemon(**more) as d:
            told = d.get("/v1/model")[1]
            status, reply = d.post("/v1/tokenize", {"text": "the other one"})
            self.assertEqual(status, 200)
            return told, self.records(d, wanted), reply["tokens"]

    def test_the_bits_of_one_file(self):
        one, want, tokens = self.answers(model=single)
        for cap, held in ((None, (0, 0)), (self.stored_cap(), (1, 0)), (self.needed() + test_streamed.SPARE_MIB, (0, 1))):
            told, have, same = self.answers(cap=cap)
            self.assertEqual((told["stored_bytes"] > 0, told["streamed_bytes"] > 0), held, cap)
            for name in ("id", "weights_id", "tokenizer_id", "n_parameters", "dtype", "vocab_size"):
                self.assertEqual(told[name], one[name], name)
            self.assertEqual(have, want)
            self.assertEqual(same, tokens)

    def test_the_plan_counts_all_parts(self):
        def plan(path):
            done = subprocess.run([KDCTL, "--json", "plan", path, "--flops", "1e9", "--bandwidth", "1e9"], capture_output=True, text=True, timeout=120)
            self.assertEqual(done.returncode, 0, done.stderr)
            return json.loads(done.stdout)
        of_one, of_parts = plan(single), plan(parts[0])
        self.assertEqual(of_one.pop("weights_bytes"), os.path.getsize(single))
        self.assertEqual(of_parts.pop("weights_bytes"), sum(map(os.path.getsize, parts)))
        self.assertEqual({**of_parts, "model": ""}, {**of_one, "model": ""})

    def test_what_is_wrong_is_said(self):
        self.assertIn("is part 3 of 4 of a model: open the first, " + parts[0], self.refused(model=parts[2]))
        os.rename(parts[1], parts[1] + ".part")
        try:
            self.assertIn("part 2 of 4 of the model is missing: there is no " + parts[1], self.refused())
        finally:
            os.rename(parts[1] + ".part", parts[1])


if __name__ == "__main__":
    unittest.main()
