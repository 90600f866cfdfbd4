# SPDX-License-Identifier: Apache-2.0
"""Several teachers behind both doors: routed by name and by fingerprint, mixed, and kept apart in the store."""
import json
import math
import os
import shutil
import tempfile
import unittest

import tiny_model
from kdserved import Daemon

TOKENS = [5, 17, 200, 3, 99, 256, 258]


def softmax(row):
    total = math.fsum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


class Teachers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        cls.vocab_size = tiny_model.write(os.path.join(cls.directory, "model"), seed=1)
        tiny_model.write(os.path.join(cls.directory, "second"), seed=2)
        cls.daemon = Daemon("--teacher", "other=" + os.path.join(cls.directory, "second"), "--store", os.path.join(cls.directory, "store"),
            "--max-top-k", "1000", directory=cls.directory)
        cls.teachers = cls.daemon.get("/v1/model")[1]["teachers"]

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()
        shutil.rmtree(cls.directory)

    def score(self, status=200, **more):
        got, _, data = self.daemon.http("POST", "/v1/score", {"sequences": [{"tokens": TOKENS}], "top_k": self.vocab_size, **more})
        self.assertEqual(got, status, data)
        return json.loads(data)

    def rows(self, reply):
        """Logits in order of ids, row by row."""
        out = []
        for row in reply["sequences"][0]["rows"]:
            z = [0.0] * self.vocab_size
            for i, value in zip(row["ids"], row["logits"]):
                z[i] = value
            out.append(z)
        return out

    def test_names_and_fingerprints_find_their_teacher(self):
        self.assertEqual([t["name"] for t in self.teachers], ["model", "other"])
        first, other = self.score(teacher="model"), self.score(teacher="other")
        self.assertEqual([r["teacher"]["id"] for r in (first, other)], [t["id"] for t in self.teachers])
        self.assertNotEqual(self.rows(first), self.rows(other))
        self.assertEqual(self.rows(self.score()), self.rows(first))
        self.assertEqual(self.rows(self.score(teacher=self.teachers[1]["id"])), self.rows(other))
        error = self.score(status=404, teacher="nobody")["error"]
        self.assertEqual(error["field"], "teacher")
        self.assertIn("model, other", error["message"])

    def test_the_binary_door_asks_whom_hello_names(self):
        for t in self.teachers:
            with self.daemon.client(teacher=bytes.fromhex(t["id"])) as c:
                self.assertEqual(c.welcome[4:36].hex(), t["id"])
                record = c.score([TOKENS], top_k=4)[0][1]
                self.assertEqual(record[16:48].hex(), t["id"])

    def test_a_mean_is_that_of_the_members_probabilities(self):
        a, b = self.rows(self.score(teacher="model")), self.rows(self.score(teacher="other"))
        reply = self.score(mixture={"rule": "mean", "members": [{"teacher": "model", "weight": 3}, {"teacher": "other"}]})
        self.assertEqual([m["weight"] for m in reply["teacher"]["members"]], [0.75, 0.25])
        self.assertEqual(reply["teacher"]["rule"], "mean")
        for got, x, y in zip(self.rows(reply), a, b):
            for z, p, q in zip(got, softmax(x), softmax(y)):
                self.assertAlmostEqual(math.exp(z), 0.75 * p + 0.25 * q, places=5)
        for row in reply["sequences"][0]["rows"]:
            self.assertAlmostEqual(row["lse"][0], 0, places=5)

    def test_logits_add_up_with_their_signs(self):
        a, b = self.rows(self.score(teacher="model")), self.rows(self.score(teacher="other"))
        reply = self.score(mixture={"rule": "logits", "members": [{"teacher": "model"}, {"teacher": "other", "weight": -0.5}]})
        for got, x, y in zip(self.rows(reply), a, b):
            for z, v, w in zip(got, x, y):
                self.assertAlmostEqual(z, v - 0.5 * w, places=4)

    def test_the_store_keeps_them_apart(self):
        questions = [{"teacher": "model"}, {"teacher": "other"}]
        questions += [{"mixture": {"rule": rule, "members": [{"teacher": "model", "weight": w}, {"teacher": "other"}]}}
            for rule in ("mean", "logits") for w in (1, 2)]
        ids = set()
        for again in range(2):
            for q in questions:
                got, _, data = self.daemon.http("POST", "/v1/score", {"sequences": [{"tokens": [9, 8, 7]}], "top_k": 3, "durable": True, **q})
                self.assertEqual(got, 200, data)
                reply = json.loads(data)
                self.assertEqual(reply["sequences"][0]["cached"], bool(again), q)
                ids.add(reply["teacher"]["id"])
        self.assertEqual(len(ids), len(questions))

    def test_faults_of_a_mixture_are_named(self):
        for members, status, field in (
                ([{"teacher": "model"}, {"teacher": "x"}], 404, "mixture.members[1].teacher"),
                ([{"teacher": "model"}, {"teacher": "model"}], 400, "mixture.members[1].teacher"),
                ([{"teacher": "model", "weight": -1}], 400, "mixture.members[0].weight"),
                ([], 400, "mixture.members")):
            error = self.score(status=status, mixture={"rule": "mean", "members": members})["error"]
            self.assertEqual(error["field"], field)
        both = {"teacher": "model", "mixture": {"rule": "mean", "members": [{"teacher": "model"}]}}
        self.assertEqual(self.score(status=400, **both)["error"]["field"], "mixture")

    def test_openai_models_are_the_teachers(self):
        cards = self.daemon.get("/v1/models")[1]["data"]
        self.assertEqual([c["id"] for c in cards], ["model", "other"])
        texts = {}
        for name in ("model", "other"):
            status, _, data = self.daemon.http("POST", "/v1/completions", {"model": name, "prompt": TOKENS, "max_tokens": 8, "temperature": 0})
            self.assertEqual(status, 200, data)
            reply = json.loads(data)
            self.assertEqual(reply["model"], name)
            texts[name] = reply["choices"][0]["text"]
        self.assertNotEqual(texts["model"], texts["other"])
        self.assertEqual(self.daemon.http("POST", "/v1/completions", {"model": "x", "prompt": TOKENS})[0], 404)
        self.assertEqual(self.daemon.get("/v1/models/other")[1]["id"], "other")

    def test_weights_are_those_of_the_teacher_named(self):
        rows = [json.loads(self.daemon.http("POST", "/v1/weights", {"tensor": "embedding", "ids": [3], **more})[2])
            for more in ({}, {"teacher": "model"}, {"teacher": "other"})]
        self.assertEqual(rows[0]["values"], rows[1]["values"])
        self.assertNotEqual(rows[0]["values"], rows[2]["values"])
        self.assertEqual(rows[2]["teacher"]["name"], "other")
        self.assertEqual(self.daemon.http("POST", "/v1/weights", {"tensor": "head", "teacher": "x"})[0], 404)


class Refusals(unittest.TestCase):
    def test_teachers_of_different_tokenizers_do_not_start(self):
        with tempfile.TemporaryDirectory(prefix="kdserved-e2e-") as directory:
            second = os.path.join(directory, "second")
            tiny_model.write(os.path.join(directory, "model"))
            tiny_model.write(second, seed=2)
            path = os.path.join(second, "tokenizer.json")
            with open(path) as f:
                tokenizer = json.load(f)
            vocab = tokenizer["model"]["vocab"]
            vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
            with open(path, "w") as f:
                json.dump(tokenizer, f)
            d = Daemon("--teacher", "other=" + second, directory=directory, wait=False)
            self.assertEqual(d.wait_exit(), 78)
            self.assertIn('teachers "model" and "other" have different tokenizers', d.log())
            d.stop(expect=78)


if __name__ == "__main__":
    unittest.main(verbosity=2)
