# SPDX-License-Identifier: Apache-2.0
"""The teacher that comes along (etc/teacher): small, trained, and something to learn from."""
import json
import os
import subprocess
import tempfile
import unittest

import kdserved
from test_training import conf

TEACHER = os.path.join(os.environ.get("top_srcdir", "."), "etc/teacher")
KDCTL, WORKER = (os.path.join(kdserved.BUILD, name) for name in ("kdctl", "kdserved-worker"))
PERPLEXITY = 50     # of tokens of "Persuasion", which it never saw; 2,048 would be a guess


class SmallTeacher(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = kdserved.Daemon(model=TEACHER)
        cls.addClassCleanup(cls.daemon.stop)
        folder = tempfile.TemporaryDirectory(prefix="kdserved-e2e-")
        cls.addClassCleanup(folder.cleanup)
        cls.directory = folder.name
        with open(os.path.join(TEACHER, "persuasion.txt"), encoding="utf-8") as f:
            cls.text = f.read()

    def file(self, name, text):
        path = os.path.join(self.directory, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        return path

    def kdctl(self, *arguments):
        done = subprocess.run([KDCTL, "--server", "unix:" + self.daemon.socket_path, *arguments], capture_output=True, text=True,
                              timeout=kdserved.PATIENCE)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_it_is_small_and_knows_more_than_a_guess(self):
        self.assertLessEqual(os.path.getsize(os.path.join(TEACHER, "model.safetensors")), 4 << 20)
        text = self.file("text.txt", self.text[:20000])
        said = json.loads(self.kdctl("--json", "score", "--length", "256", text).splitlines()[-1])["summary"]
        self.assertGreater(said["positions"], 5000)
        self.assertLess(said["perplexity"], PERPLEXITY)

    def test_it_goes_on_in_words_of_the_language(self):
        known = set(self.text.lower().replace("--", " ").split())
        said = self.kdctl("generate", "--prompt", "She had been", "--tokens", "24", "--temperature", "0").lower().split()[:-1]
        self.assertGreater(len(said), 5)
        self.assertGreater(len([w for w in said if w in known]), len(said) * 0.7, said)

    def test_a_student_learns_from_it(self):
        output = os.path.join(self.directory, "run")
        run = self.file("run.conf", conf({"corpus": self.file("corpus.txt", self.text[:12000]), "sequence-length": 64, "micro-batch": 8,
                                          "steps": 40, "student-width": 32, "student-layers": 1, "student-heads": 2, "student-kv-heads": 1,
                                          "student-ffn-width": 64, "student-context": 64, "learning-rate": 0.01, "warmup": 4,
                                          "evaluate-every": 0, "checkpoint-every": 0, "threads": 1, "server": "unix:" + self.daemon.socket_path}))
        done = subprocess.run([WORKER, "--config", run, "--output", output], capture_output=True, text=True, timeout=kdserved.PATIENCE)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(os.path.join(output, "metrics.jsonl"), encoding="utf-8") as f:
            last = json.loads(f.readlines()[-1])
        self.assertLess(last["held_out_kl"], 0.8 * last["held_out_kl_before"])


if __name__ == "__main__":
    unittest.main()
