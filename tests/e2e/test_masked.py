# SPDX-License-Identifier: Apache-2.0
"""A teacher that names masked tokens (BERT): what it answers at both doors, against the logits that transformers gave; what it refuses."""
import json
import math
import os
import struct
import unittest

import kdserved
from kdserved import Daemon, as_f32, decode_record

GOLDEN = os.path.join(os.environ.get("top_srcdir", "."), "tests", "golden", "models", "bert")


def golden():
    """The sequences of golden.bin with their logits."""
    with open(os.path.join(GOLDEN, "golden.bin"), "rb") as f:
        data = f.read()
    n, V = struct.unpack_from("<2I", data, 4)
    at, out = 12, []
    for _ in range(n):
        length, = struct.unpack_from("<I", data, at)
        tokens = list(struct.unpack_from("<%dI" % length, data, at + 4))
        at += 4 + 4 * length
        rows = [struct.unpack_from("<%df" % V, data, at + 4 * V * i) for i in range(length)]
        at += 4 * V * length
        out.append((tokens, rows))
    return out


class Masked(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--numeric", "f32", "--cache-tokens", "1024", model=GOLDEN)

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def test_the_model_says_what_it_is(self):
        status, model = self.daemon.get("/v1/model")
        self.assertEqual((status, model["architecture"], model["objective"]), (200, "bert", "masked"))

    def test_a_row_is_about_the_token_it_stands_at(self):
        ask = {"sequences": [{"tokens": tokens} for tokens, _ in golden()], "top_k": 5, "own": True}
        status, reply = self.daemon.post("/v1/score", ask)
        self.assertEqual(status, 200, reply)
        for (tokens, want), one in zip(golden(), reply["sequences"]):
            self.assertEqual(len(one["rows"]), len(tokens))
            for token, logits, row in zip(tokens, want, one["rows"]):
                if row is not one["rows"][-1]:        # of the last row records keep no own token
                    self.assertAlmostEqual(row["own_logit"], logits[token], delta=1e-3)
                self.assertEqual(row["ids"], sorted(range(len(logits)), key=lambda j: (-logits[j], j))[:5])

    def test_both_doors_and_any_company_give_the_same_numbers(self):
        asked = [tokens for tokens, _ in golden()]
        company = [asked[-1][:12] + [7] * 8, asked[-1][:12] + [9] * 8]    # they begin alike, and see what follows
        _, reply = self.daemon.post("/v1/score", {"sequences": [{"tokens": t} for t in company + asked], "top_k": 3, "own": True})
        with self.daemon.client() as c:
            alone = [decode_record(c.score([t], top_k=3, own=True)[0][1]) for t in company + asked]
        for one, rows in zip(reply["sequences"], alone):
            for row, record in zip(one["rows"], rows):
                got = as_f32(row)
                for key in ("ids", "logits", "own_logit"):
                    self.assertEqual(got[key], record[key])
        first, second = reply["sequences"][:2]
        self.assertNotEqual(first["rows"][0]["logits"], second["rows"][0]["logits"])

    def test_spans_add_up_own_tokens(self):
        tokens, want = golden()[-1]
        status, reply = self.daemon.post("/v1/score", {"sequences": [{"tokens": tokens}], "spans": [[2, 6]]})
        self.assertEqual(status, 200, reply)

        def logp(i):
            top = max(want[i])
            return want[i][tokens[i]] - top - math.log(sum(math.exp(z - top) for z in want[i]))
        self.assertAlmostEqual(reply["sequences"][0]["spans"][0], sum(logp(i) for i in range(2, 6)), delta=1e-2)

    def test_text_becomes_word_pieces(self):
        status, reply = self.daemon.post("/v1/tokenize", {"text": "The HOUSE, and caf\u00e9s \u6f22!"})
        self.assertEqual(status, 200, reply)
        vocabulary = json.load(open(os.path.join(GOLDEN, "tokenizer.json")))["model"]["vocab"]
        names = {i: name for name, i in vocabulary.items()}
        self.assertEqual([names[i] for i in reply["tokens"]],
                         ["[CLS]", "the", "ho", "##use", ",", "and", "c", "##a", "##f", "##e", "##s", "[UNK]", "!", "[SEP]"])
        status, text = self.daemon.post("/v1/detokenize", {"tokens": reply["tokens"], "skip_special": True})
        self.assertEqual((status, text["text"]), (200, "the house, and cafes!"))
        status, reply = self.daemon.post("/v1/tokenize", {"text": "the [MASK] is in the garden", "specials": True})
        self.assertEqual((status, reply["tokens"][2]), (200, vocabulary["[MASK]"]))

    def test_it_generates_and_completes_nothing(self):
        status, reply = self.daemon.post("/v1/generate", {"prompts": [{"tokens": [5, 6]}], "max_tokens": 2})
        self.assertEqual((status, reply["error"]["code"]), (422, "unsupported"), reply)
        self.assertIn("names masked tokens", reply["error"]["message"])
        status, reply = self.daemon.post("/v1/completions", {"model": "x", "prompt": [5, 6], "max_tokens": 1})
        self.assertIn("error", reply)
        self.assertNotEqual(status, 200)


if __name__ == "__main__":
    unittest.main()
