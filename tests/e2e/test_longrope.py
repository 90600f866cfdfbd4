# SPDX-License-Identifier: Apache-2.0
"""A teacher whose rotation is scaled by LongRoPE: its original context is served, longer sequences are refused, and the log says why."""
import json
import os
import shutil
import tempfile
import unittest

import tiny_model
from kdserved import Daemon

ORIGINAL = 40


class LongRope(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.model = os.path.join(self.directory, "model")
        tiny_model.write(self.model)
        path = os.path.join(self.model, "config.json")
        with open(path) as f:
            config = json.load(f)
        half = config["hidden_size"] // config["num_attention_heads"] // 2
        config["rope_scaling"] = {"rope_type": "longrope", "short_factor": [1.5] * half, "long_factor": [4.0] * half,
                                  "original_max_position_embeddings": ORIGINAL}
        with open(path, "w") as f:
            json.dump(config, f)

    def test_the_original_context_is_served(self):
        with Daemon("--device", "ref", model=self.model) as d:
            self.assertEqual(d.get("/v1/model")[1]["context_length"], ORIGINAL)
            status, reply = d.post("/v1/score", {"sequences": [{"tokens": [7] * ORIGINAL}], "top_k": 1})
            self.assertEqual((status, len(reply["sequences"][0]["rows"])), (200, ORIGINAL), reply)
            status, reply = d.post("/v1/score", {"sequences": [{"tokens": [7] * (ORIGINAL + 1)}], "top_k": 1})
            self.assertEqual((status, reply["error"]["code"]), (413, "too_large"), reply)
            self.assertIn("%d tokens, the limit is %d" % (ORIGINAL + 1, ORIGINAL), reply["error"]["message"])
            status, reply = d.post("/v1/generate", {"prompts": [{"tokens": [7] * (ORIGINAL - 2)}], "max_tokens": 9})
            self.assertEqual(status, 413, reply)
            self.assertIn("LongRoPE: its original context of %d tokens is served" % ORIGINAL, d.log())


if __name__ == "__main__":
    unittest.main()
