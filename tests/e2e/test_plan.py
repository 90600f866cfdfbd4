# SPDX-License-Identifier: Apache-2.0
"""kdctl plan: the shape is the file's, the figures are the caller's or measured through a daemon."""
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import tiny_model
from kdserved import BUILD, Daemon

KDCTL = os.path.join(BUILD, "kdctl")


class Plan(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.model = os.path.join(self.directory, "model")
        tiny_model.write(self.model)

    def kdctl(self, *arguments, server=(), expect=0):
        done = subprocess.run([KDCTL, *server, "--json", "plan", *arguments], capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, expect, done.stderr)
        return json.loads(done.stdout) if expect == 0 else done.stderr

    def test_figures_of_the_caller(self):
        plan = self.kdctl(self.model, "--flops", "1e9", "--bandwidth", "1e15", "--tokens", "3600000", "--length", "511", "--batch", "511",
                          "--top-k", "10", "--values", "u8", "--cache-tokens", "100", "--student", self.model, "--epochs", "2")
        C, F, W, V, layers = tiny_model.WIDTH, tiny_model.FFN, 64, 265, tiny_model.LAYERS
        active = layers * (W * C + C * C + 3 * F * C) + V * C
        self.assertEqual(plan["active_parameters"], active)
        per_token = 2 * active + layers * 4 * 256 * C                   # 256 keys a row on average
        self.assertAlmostEqual(plan["score_tokens_per_s"], 1e9 / per_token, delta=1e-6 * 1e9 / per_token)
        self.assertAlmostEqual(plan["score_hours"], 1000 / plan["score_tokens_per_s"], delta=1e-9)
        self.assertAlmostEqual(plan["train_tokens_per_s"] * 3, plan["score_tokens_per_s"], delta=1)
        self.assertAlmostEqual(plan["train_hours"], 2 * 3 * plan["score_hours"], delta=1e-6)
        self.assertEqual(plan["weights_bytes"], os.path.getsize(os.path.join(self.model, "model.safetensors")))
        self.assertEqual(plan["resident_bytes"], 4 * plan["parameters"])
        self.assertAlmostEqual(plan["memory_bytes"], plan["resident_bytes"] + plan["cache_bytes"] + plan["work_bytes"], delta=1)
        self.assertEqual(plan["cache_bytes"], 100 * 2 * layers * 16 * 4)
        self.assertAlmostEqual(sum(plan["shares"].values()), 1, delta=1e-9)
        self.assertAlmostEqual(plan["store_bytes"], plan["row_bytes"] * 3600000, delta=1)

    def test_a_memory_cap_is_planned_for(self):
        figures = (self.model, "--flops", "1e11", "--bandwidth", "1e15", "--tokens", "1e6")
        free = self.kdctl(*figures)
        self.assertNotIn("streamed_bytes", free)
        roomy = self.kdctl(*figures, "--memory", "1e9")
        self.assertEqual((roomy["streamed_bytes"], roomy["stored_bytes"], roomy["pass_read_bytes"]), (0, 0, 0))
        self.assertEqual(roomy["score_tokens_per_s"], free["score_tokens_per_s"])
        tight = self.kdctl(*figures, "--memory", "8e7", "--disk", "1e3", "--products", "bf16")
        layer = 32 * 64 + 32 * 32 + 3 * 32 * 64
        self.assertAlmostEqual(tight["streamed_bytes"], 2 * (2 * layer + 265 * 32), delta=1)
        self.assertAlmostEqual(tight["pass_read_bytes"], 2 * (2 * layer + 8 * 265 * 32), delta=1)       # 2048 rows are 8 tiles
        self.assertEqual((tight["memory_bytes"], tight["stored_bytes"]), (8e7, 0))
        self.assertAlmostEqual(tight["hidden_batch_tokens"], 1e8, delta=1)
        self.assertLess(tight["score_tokens_per_s"], 2048 / (tight["pass_read_bytes"] / 1e3) * 1.1)
        self.assertIn("f32, bf16, int8 or fp8", self.kdctl(self.model, "--products", "f64", expect=2))

    def test_weights_in_memory_are_those_of_the_products(self):
        for products, size in (("f32", 4), ("bf16", 2), ("int8", 1.125)):
            plan = self.kdctl(self.model, "--flops", "1e9", "--bandwidth", "1e9", "--products", products)
            self.assertEqual(plan["resident_bytes"], size * plan["parameters"])
        plan = self.kdctl(self.model, "--flops", "1e9", "--bandwidth", "1e9", "--products", "fp8")
        blocks = 2 * (32 * 64 + 32 * 32 + 3 * 32 * 64)
        self.assertEqual(plan["resident_bytes"], 2 * plan["parameters"] - blocks)
        self.assertIn("fp8 is a GPU's", self.kdctl(self.model, "--flops", "1", "--bandwidth", "1", "--products", "fp8", "--memory", "1e9", expect=2))

    def test_figures_measured_explain_what_was_measured(self):
        with Daemon(model=self.model) as daemon:
            plan = self.kdctl(self.model, "--measure", "--length", "64", "--batch", "512", "--generate", "100",
                              server=("--server", "unix:" + daemon.socket_path))
        for name in ("flops", "bandwidth", "score_tokens_per_s", "generate_tokens_per_s"):
            self.assertGreater(plan[name], 0)

    def test_products_are_those_of_the_measured_server(self):
        with Daemon("--numeric", "int8", model=self.model) as daemon:
            measured = ("--measure", "--length", "64", "--batch", "512")
            server = ("--server", "unix:" + daemon.socket_path)
            plan = self.kdctl(self.model, *measured, server=server)
            self.assertEqual((plan["products"], plan["resident_bytes"]), ("int8", 1.125 * plan["parameters"]))
            self.assertEqual(self.kdctl(self.model, *measured, "--products", "int8", server=server)["products"], "int8")
            self.assertIn("--products f32, but the measured server multiplies int8",
                          self.kdctl(self.model, *measured, "--products", "f32", server=server, expect=1))

    def test_training_has_figures_of_its_own(self):
        figures = (self.model, "--flops", "1e9", "--bandwidth", "1e15", "--length", "511", "--batch", "511", "--student", self.model)
        same, half = self.kdctl(*figures), self.kdctl(*figures, "--train-flops", "5e8")
        self.assertAlmostEqual(same["train_tokens_per_s"], 1e9 / same["train_flop_per_token"], delta=1)
        self.assertAlmostEqual(half["train_tokens_per_s"], 5e8 / half["train_flop_per_token"], delta=1)
        self.assertEqual(half["score_tokens_per_s"], same["score_tokens_per_s"])

    def test_what_is_missing_is_said(self):
        self.assertIn("--flops and --bandwidth, or --measure", self.kdctl(self.model, expect=2))
        self.assertIn("f32, f16 or u8", self.kdctl(self.model, "--values", "f64", expect=2))
        self.assertIn("a number", self.kdctl(self.model, "--flops", "much", expect=2))
        self.assertIn("No such file", self.kdctl("/nonexistent", "--flops", "1", "--bandwidth", "1", expect=1))
        with open(os.path.join(self.directory, "text"), "w") as f:
            f.write("no model, but text that is long enough to be one")
        self.kdctl(f.name, "--flops", "1", "--bandwidth", "1", expect=1)


if __name__ == "__main__":
    unittest.main()
