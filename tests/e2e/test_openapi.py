# SPDX-License-Identifier: Apache-2.0
"""Real requests and replies of a running daemon against the schemas of /openapi.json: the document cannot drift from what is served."""
import json
import os
import re
import unittest

import kdserved
import schema
from kdserved import Daemon

TOKENS = [5, 17, 200, 3, 99, 256, 258]

# Operations that change things or that another test serves: validated there, or not by example.
WITHOUT_EXAMPLE = {"start_run", "run", "run_metrics", "stop_run"}


class OpenAPI(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", "64", "--max-sequences", "8", "--max-top-k", "100")
        cls.model = cls.daemon.get("/v1/models")[1]["data"][0]["id"]
        cls.document = cls.daemon.get("/openapi.json")[1]
        cls.operations = {operation["operationId"]: (verb.upper(), path, operation) for path, item in cls.document["paths"].items()
            for verb, operation in item.items() if verb != "parameters"}
        cls.shown = set()

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def response_of(self, operation, status):
        response = operation["responses"].get(str(status), operation["responses"].get("default"))
        self.assertIsNotNone(response, "the document has no status %d" % status)
        return schema.resolve(self.document, response)

    def check(self, name, body=None, id=None, status=200, valid=True):
        """Asks; holds the request (unless it is meant to be wrong) and the reply against the document."""
        verb, path, operation = self.operations[name]
        if body is not None:
            request = operation["requestBody"]["content"]["application/json"]["schema"]
            if valid:
                schema.validate(self.document, request, body)
            else:
                self.assertFalse(schema.passes(self.document, request, body, ""), body)
        got, headers, data = self.daemon.http(verb, path.replace("{id}", id or ""), body)
        self.assertEqual(got, status, data)
        kind = headers["Content-Type"].split(";")[0]
        content = self.response_of(operation, got)["content"]
        self.assertIn(kind, content)
        if kind == "application/json":
            reply = json.loads(data)
            schema.validate(self.document, content[kind]["schema"], reply)
            self.shown.add(name)
            return reply
        if kind == "text/event-stream":
            events = re.findall(r"data: (.*)\n\n", data.decode())
            self.assertEqual(events[-1], "[DONE]")
            for event in events[:-1]:
                schema.validate(self.document, content[kind]["schema"], json.loads(event))
        self.shown.add(name)
        return data

    def test_the_document_is_the_one_installed(self):
        path = os.path.join(os.environ.get("top_srcdir", os.path.join(os.path.dirname(__file__), "..", "..")), "daemon/server/openapi.json")
        with open(path, encoding="utf-8") as f:
            self.assertEqual(json.load(f), self.document)

    def test_resources(self):
        for name in ("page", "page_style", "page_script", "live", "ready", "health", "metrics", "openapi", "model", "status", "models", "tokenizer",
                     "tokenizerConfig"):
            with self.subTest(name=name):
                self.check(name)
        self.check("model_card", id=self.model)
        self.check("model_card", id="other", status=404)
        self.check("runs", status=422)
        self.check("tokenize", {"text": "the cat", "add_special": True, "specials": False})
        self.check("tokenize", {"text": 5}, status=400, valid=False)
        self.check("detokenize", {"tokens": TOKENS, "skip_special": True})

    def test_weights(self):
        self.check("weights", {"tensor": "head", "ids": [1, 2]})
        self.check("weights", {"tensor": "embedding", "first": 3, "count": 2, "dtype": "bf16", "encoding": "base64"})
        self.check("weights", {"tensor": "final_norm"})
        self.check("weights", {"tensor": "lm_head"}, status=400, valid=False)

    def test_score(self):
        base = {"sequences": [{"tokens": TOKENS}, {"text": "the cat"}], "top_k": 3}
        for more in ({}, {"own": True, "entropy": True, "temperatures": [1, 2.5]}, {"first": -2, "last": -1, "values": "f16"},
            {"store": False, "deadline_ms": 60000}, {"gather": [1, 2]}, {"gather": [[[1]] * 7, [3]]}, {"spans": [[1, 2]]}, {"sum": True,
            "entropy": True},
            {"dense": True, "values": "u8", "keep": [1, 2, 3]}, {"top_mass": 0.5, "tail": True, "max_prob": True, "argmax": True,
            "sum_squares": True},
            {"draws": {"n": 5, "seed": 1, "tau": 0.5, "tail": True}}, {"features": [{"kind": "hidden", "layer": 1}, {"kind": "final"}]},
            {"features": [{"kind": "q", "layer": 1}], "pooling": "mean", "feature_values": "bf16"}):
            for encoding in ("json", "base64"):
                with self.subTest(more=more, encoding=encoding):
                    self.check("score", dict(base, encoding=encoding, **more))
        for wrong in ({"top_k": 0}, {"top_k": "1"}, {"encoding": "xml"}, {"sequences": []}, {"sequences": [{}]}, {"own": 1}, {"topk": 1},
            {"temperatures": []}, {"deadline_ms": 0}):
            with self.subTest(wrong=wrong):
                self.check("score", dict(base, **wrong), status=400, valid=False)

    def test_generate(self):
        ask = {"prompts": [{"tokens": TOKENS}, {"text": "the cat"}], "max_tokens": 3}
        for more in ({}, {"n": 2, "seed": 5, "logprobs": True, "rows": 2}, {"temperature": 0, "stop": "a", "stop_ids": [1]},
            {"stream": True},
            {"stream": True, "logprobs": True, "rows": 1, "response_prefix": {"tokens": [4]}}, {"top_k": 5, "top_p": 0.5, "min_p": 0.1,
            "typical_p": 0.5},
            {"stop": ["a", "b"], "specials": True, "first_sample": 3, "ignore_eos": True, "deadline_ms": 60000}):
            with self.subTest(more=more):
                self.check("generate", dict(ask, **more))
        for wrong in ({"prompts": []}, {"prompts": [{}]}, {"n": 0}, {"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"min_p": 2},
            {"typical_p": 0},
            {"stop": 5}, {"stop": [""]}, {"rows": -1}, {"stream": 1}, {"seed": -1}, {"logprobs": 1}, {"top": 1}):
            with self.subTest(wrong=wrong):
                self.check("generate", dict(ask, **wrong), status=400, valid=False)

    def test_completions(self):
        ask = {"model": self.model, "prompt": "the cat", "max_tokens": 1, "temperature": 0}
        for more in ({}, {"echo": True, "logprobs": 2}, {"prompt_logprobs": 1, "return_token_ids": True}, {"prompt": [TOKENS, [1]],
            "logprobs": 0},
            {"max_tokens": 0, "prompt": ["a", "b"], "n": 2}, {"stream": True, "stream_options": {"include_usage": True}, "logprobs": 1},
            {"stop": ["a"], "user": "u", "logprobs": None}, {"max_tokens": 5, "temperature": 1, "top_p": 0.9, "top_k": 20, "min_p": 0.01,
            "seed": 1, "n": 2},
            {"max_tokens": 5, "stream": True, "echo": True, "logprobs": 1, "return_token_ids": True}):
            with self.subTest(more=more):
                self.check("completions", dict(ask, **more))
        for wrong in ({"prompt": 5}, {"prompt": []}, {"n": 0}, {"echo": 1}, {"temperature": -1}, {"stop": 5}):
            with self.subTest(wrong=wrong):
                self.check("completions", dict(ask, **wrong), status=400, valid=False)
        self.check("completions", dict(ask, model="other"), status=404)

    def test_zz_every_operation_was_shown(self):
        """Runs last: what the other tests have asked covers the document."""
        self.assertEqual(set(self.operations) - WITHOUT_EXAMPLE - self.shown, set())


class Validator(unittest.TestCase):
    """The validator itself must be able to fail."""

    def test_it_refuses(self):
        for one, value in (({"type": "integer"}, True), ({"type": "integer"}, 1.5), ({"type": "number"}, "1"), ({"enum": [1, None]}, 0),
            ({"const": 1}, True), ({"type": "object", "required": ["a"]}, {}), ({"additionalProperties": False}, {"a": 1}),
            ({"properties": {"a": {"type": "string"}}}, {"a": 1}), ({"items": {"minimum": 1}}, [0]), ({"exclusiveMinimum": 0}, 0),
            ({"minLength": 1}, ""), ({"maxItems": 1}, [1, 2]),
            ({"pattern": "^a$"}, "b"), ({"oneOf": [{}, {}]}, 1), ({"anyOf": [{"type": "null"}]}, 1),
            ({"additionalProperties": {"type": "null"}}, {"x": 1})):
            with self.subTest(schema=one, value=value):
                self.assertRaises(schema.Invalid, schema.validate, {}, one, value)
        self.assertRaises(AssertionError, schema.validate, {}, {"multipleOf": 2}, 3)


if __name__ == "__main__":
    unittest.main(verbosity=2)
