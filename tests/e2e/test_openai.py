# SPDX-License-Identifier: Apache-2.0
"""POST /v1/completions and GET /v1/models: what evaluation harnesses and trainers send, held against /v1/score."""
import json
import math
import socket
import struct
import unittest

import kdserved
from kdserved import Daemon

TEXT = "the cat and the dog in the garden"
TOKENS = [5, 17, 200, 3, 99, 256, 258]
END = 264


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


class OpenAI(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", "64", "--max-sequences", "8", "--max-top-k", "100")
        cls.model = cls.daemon.get("/v1/models")[1]["data"][0]["id"]

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def complete(self, expect=200, **ask):
        status, reply = self.daemon.post("/v1/completions", dict({"model": self.model}, **ask))
        self.assertEqual(status, expect, reply)
        return reply

    def score(self, tokens, k):
        status, reply = self.daemon.post("/v1/score", {"sequences": [{"tokens": tokens}], "top_k": max(k, 1), "own": True})
        self.assertEqual(status, 200, reply)
        return reply["sequences"][0]["rows"]

    def refuse(self, status, param, **ask):
        reply = self.complete(expect=status, **ask)
        self.assertEqual(set(reply), {"error"})
        self.assertEqual(set(reply["error"]), {"message", "type", "param", "code"})
        self.assertEqual(reply["error"]["param"], param, reply)
        self.assertTrue(reply["error"]["message"])
        return reply["error"]

    def text_of(self, token):
        return self.daemon.post("/v1/detokenize", {"tokens": [token]})[1]["text"]

    # what lm-eval's local-completions sends for log-likelihoods

    def test_a_harness_gets_each_log_probability(self):
        prompts = [TOKENS, [1, 2], [7]]
        reply = self.complete(prompt=prompts, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)
        self.assertEqual([c["index"] for c in reply["choices"]], [0, 1, 2])
        for choice, tokens in zip(reply["choices"], prompts):
            rows, got = self.score(tokens, 1), choice["logprobs"]
            self.assertEqual(len(got["tokens"]), len(tokens) + 1)
            self.assertIsNone(got["token_logprobs"][0])
            self.assertIsNone(got["top_logprobs"][0])
            for i in range(1, len(tokens)):
                row = rows[i - 1]
                self.assertEqual(f32(got["token_logprobs"][i]), f32(f32(row["own_logit"]) - f32(row["lse"][0])))
                best = max(got["top_logprobs"][i].values())
                self.assertEqual(f32(best), f32(f32(row["logits"][0]) - f32(row["lse"][0])))
                self.assertEqual(got["token_logprobs"][i] == best, row["ids"][0] == tokens[i])
            last = rows[-1]
            self.assertEqual(f32(got["token_logprobs"][-1]), f32(f32(last["logits"][0]) - f32(last["lse"][0])))
            self.assertEqual(got["token_logprobs"][-1], max(got["top_logprobs"][-1].values()))
        self.assertEqual(reply["usage"], {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13})

    def test_one_pass_serves_prompt_and_first_token(self):
        before = self.daemon.metrics()["kd_forward_positions_total"]
        self.complete(prompt=[[3, 1, 4, 1, 5]], temperature=0, max_tokens=1, logprobs=1, echo=True)
        self.assertEqual(self.daemon.metrics()["kd_forward_positions_total"] - before, 5)

    def test_log_probabilities_are_over_the_whole_vocabulary(self):
        reply = self.complete(prompt=TOKENS, temperature=0, max_tokens=0, logprobs=100, echo=True, return_tokens_as_token_ids=True)
        row = self.score(TOKENS, 100)[0]
        got = reply["choices"][0]["logprobs"]["top_logprobs"][1]
        self.assertEqual(list(got)[:100], ["token_id:%d" % i for i in row["ids"]])
        self.assertLess(sum(math.exp(v) for v in list(got.values())[:100]), 1)
        self.assertAlmostEqual(sum(math.exp(x - row["lse"][0]) for x in row["logits"]), sum(math.exp(v) for v in list(got.values())[:100]),
            places=5)

    def test_max_tokens_0_only_echoes(self):
        choice = self.complete(prompt=TEXT, max_tokens=0, echo=True, logprobs=0)["choices"][0]
        self.assertEqual((choice["text"], choice["finish_reason"], choice["stop_reason"]), (TEXT, "length", None))
        got = choice["logprobs"]
        self.assertEqual("".join(got["tokens"]), TEXT)
        self.assertEqual([TEXT[i:i + len(t)] for i, t in zip(got["text_offset"], got["tokens"])], got["tokens"])
        for own, top, token in list(zip(got["token_logprobs"], got["top_logprobs"], got["tokens"]))[1:]:
            self.assertEqual(top, {token: own})
        choice = self.complete(prompt=TEXT, max_tokens=0)["choices"][0]
        self.assertEqual((choice["text"], choice["logprobs"]), ("", None))

    def test_texts_and_tokens_are_the_same_question(self):
        tokens = self.daemon.post("/v1/tokenize", {"text": TEXT})[1]["tokens"]
        by_text = self.complete(prompt=[TEXT, "in"], max_tokens=1, temperature=0, logprobs=2, echo=True)["choices"]
        by_token = self.complete(prompt=[tokens, self.daemon.post("/v1/tokenize", {"text": "in"})[1]["tokens"]], max_tokens=1,
            temperature=0,
            logprobs=2, echo=True)["choices"]
        self.assertEqual(by_text, by_token)

    def test_special_tokens_in_a_text_become_their_ids(self):
        choice = self.complete(prompt="a<|end|>b", max_tokens=0, return_token_ids=True)["choices"][0]
        self.assertIn(END, choice["prompt_token_ids"])

    def test_tokens_that_are_not_text_keep_their_bytes(self):
        choice = self.complete(prompt=[0xe2 ^ 0, 0x80, 65], max_tokens=0, echo=True, logprobs=0)["choices"][0]
        self.assertEqual(choice["logprobs"]["tokens"], ["bytes:\\xe2", "bytes:\\x80", "A"])
        self.assertEqual(choice["logprobs"]["text_offset"], [0, 1, 1])
        self.assertEqual(list(choice["logprobs"]["top_logprobs"][1]), ["bytes:\\x80"])

    # vLLM's extension

    def test_prompt_logprobs_have_vllms_shape(self):
        for k in (0, 3):
            with self.subTest(k=k):
                choice = self.complete(prompt=TOKENS, max_tokens=1, temperature=1.0, prompt_logprobs=k)["choices"][0]
                got, rows = choice["prompt_logprobs"], self.score(TOKENS, 3)
                self.assertIsNone(got[0])
                self.assertEqual(len(got), len(TOKENS))
                for i in range(1, len(TOKENS)):
                    row, entry = rows[i - 1], got[i]
                    ids = row["ids"][:k]
                    self.assertEqual(list(entry)[0], str(TOKENS[i]))
                    self.assertEqual(set(entry), {str(t) for t in ids} | {str(TOKENS[i])})
                    for rank, (t, z) in enumerate(zip(ids, row["logits"]), 1):
                        self.assertEqual(set(entry[str(t)]), {"logprob", "rank", "decoded_token"})
                        self.assertEqual(entry[str(t)]["rank"], rank)
                        self.assertEqual(f32(entry[str(t)]["logprob"]), f32(f32(z) - f32(row["lse"][0])))
                    own = entry[str(TOKENS[i])]
                    self.assertEqual(f32(own["logprob"]), f32(f32(row["own_logit"]) - f32(row["lse"][0])))
                    if TOKENS[i] not in ids:
                        self.assertGreater(own["rank"], k)

    def test_a_sample_of_one_token_follows_its_seed(self):
        def sample(seed, temperature=1.0):
            return self.complete(prompt=TOKENS, max_tokens=1, temperature=temperature, seed=seed,
                return_token_ids=True)["choices"][0]["token_ids"]
        self.assertEqual(sample(5), sample(5))
        self.assertGreater(len({sample(i)[0] for i in range(20)}), 1)
        self.assertEqual({sample(i, 0.01)[0] for i in range(5)}, {self.score(TOKENS, 1)[-1]["ids"][0]})

    def test_a_stream_of_one_token(self):
        ask = {"model": self.model, "prompt": TEXT, "max_tokens": 1, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}}
        status, headers, body = self.daemon.http("POST", "/v1/completions", ask)
        self.assertEqual((status, headers["Content-Type"]), (200, "text/event-stream"))
        events = body.decode().split("\n\n")
        self.assertEqual((events[-1], events[-2]), ("", "data: [DONE]"))
        chunks = [json.loads(e[len("data: "):]) for e in events[:-2]]
        whole = self.complete(**dict(ask, stream=False, stream_options=None))
        self.assertEqual("".join(c["text"] for chunk in chunks for c in chunk["choices"]), whole["choices"][0]["text"])
        self.assertEqual(chunks[-1]["usage"], whole["usage"])
        self.assertEqual(chunks[-1]["choices"], [])

    # generation

    def greedy(self, tokens, n):
        """Token by token from /v1/score."""
        tokens = list(tokens)
        rows = []
        for _ in range(n):
            row = self.score(tokens, 3)[-1]
            rows.append(row)
            tokens.append(row["ids"][0])
        return tokens[-n:], rows

    def test_greedy_tokens_are_those_of_the_scores(self):
        want, rows = self.greedy(TOKENS, 8)
        for prompt_logprobs in (None, 2):
            choice = self.complete(prompt=TOKENS, max_tokens=8, temperature=0, logprobs=3, ignore_eos=True, return_token_ids=True,
                return_tokens_as_token_ids=True, prompt_logprobs=prompt_logprobs)["choices"][0]
            self.assertEqual(choice["token_ids"], want)
            self.assertEqual(choice["finish_reason"], "length")
            for i, row in enumerate(rows):
                top = choice["logprobs"]["top_logprobs"][i]
                self.assertEqual(list(top), ["token_id:%d" % v for v in row["ids"]])
                for got, z in zip(top.values(), row["logits"]):
                    self.assertAlmostEqual(got, z - row["lse"][0], places=4)
                self.assertEqual(choice["logprobs"]["token_logprobs"][i], list(top.values())[0])
            self.assertEqual("prompt_logprobs" in choice, prompt_logprobs is not None)
        text = self.daemon.post("/v1/detokenize", {"tokens": want, "skip_special": True})[1]["text"]
        self.assertEqual(choice["text"], text)

    def test_echo_puts_the_prompt_before_the_answer(self):
        want, _ = self.greedy(TOKENS, 4)
        choice = self.complete(prompt=TOKENS, max_tokens=4, temperature=0, logprobs=1, echo=True, ignore_eos=True,
            return_tokens_as_token_ids=True)["choices"][0]
        self.assertEqual(choice["logprobs"]["tokens"], ["token_id:%d" % t for t in TOKENS + want])
        self.assertIsNone(choice["logprobs"]["token_logprobs"][0])
        self.assertEqual(choice["text"], self.daemon.post("/v1/detokenize", {"tokens": TOKENS + want})[1]["text"])

    def test_samples_follow_seed_and_number(self):
        ask = {"prompt": [TOKENS, [1, 2]], "n": 3, "max_tokens": 6, "temperature": 1.0, "seed": 11, "return_token_ids": True,
            "ignore_eos": True}
        one, two = self.complete(**ask), self.complete(**ask)
        ids = [c["token_ids"] for c in one["choices"]]
        self.assertEqual(ids, [c["token_ids"] for c in two["choices"]])
        self.assertGreater(len({tuple(i) for i in ids}), 4)
        self.assertEqual(one["usage"], {"prompt_tokens": 9, "completion_tokens": 36, "total_tokens": 45})
        self.assertEqual([c["prompt_token_ids"] for c in one["choices"]], [TOKENS] * 3 + [[1, 2]] * 3)

    def test_stop_texts_and_ids(self):
        want, _ = self.greedy(TOKENS, 12)
        texts = [self.text_of(t) for t in want]
        k = next(i for i in range(2, 12) if "\ufffd" not in texts[i] and texts[i] and texts[i] not in "".join(texts[:i]))
        whole = "".join(texts[:k])
        ask = {"prompt": TOKENS, "max_tokens": 12, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        choice = self.complete(stop=["no such text", texts[k]], **ask)["choices"][0]
        self.assertEqual((choice["finish_reason"], choice["stop_reason"]), ("stop", texts[k]))
        self.assertTrue(choice["text"].endswith(whole[-3:]) and texts[k] not in choice["text"], choice)
        kept = self.complete(stop=texts[k], include_stop_str_in_output=True, **ask)["choices"][0]
        self.assertEqual(kept["text"], choice["text"] + texts[k])
        choice = self.complete(stop_token_ids=[want[k]], **ask)["choices"][0]
        self.assertEqual((choice["finish_reason"], choice["stop_reason"]), ("stop", want[k]))
        self.assertEqual(choice["token_ids"][-1], want[k])

    def read_stream(self, **ask):
        status, headers, body = self.daemon.http("POST", "/v1/completions", dict({"model": self.model, "stream": True}, **ask))
        self.assertEqual((status, headers["Content-Type"]), (200, "text/event-stream"), body)
        events = body.decode().split("\n\n")
        self.assertEqual((events[-1], events[-2]), ("", "data: [DONE]"))
        return [json.loads(e[len("data: "):]) for e in events[:-2]]

    def test_a_stream_adds_up_to_the_whole(self):
        for more in ({}, {"echo": True, "logprobs": 2}, {"prompt": [TEXT, TOKENS], "n": 2, "temperature": 1.0, "seed": 3},
            {"stop": "\u00e9"}):
            with self.subTest(more=more):
                ask = dict({"prompt": TEXT, "max_tokens": 10, "temperature": 0, "return_token_ids": True, "ignore_eos": True,
                    "return_tokens_as_token_ids": True}, **more)
                chunks = self.read_stream(**ask)
                whole = self.complete(**ask)
                for choice in whole["choices"]:
                    parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
                    self.assertEqual("".join(p["text"] for p in parts), choice["text"])
                    self.assertEqual(sum((p["token_ids"] for p in parts), []), choice["token_ids"])
                    self.assertEqual([p["finish_reason"] for p in parts], [None] * (len(parts) - 1) + [choice["finish_reason"]])
                    self.assertEqual(["prompt_token_ids" in p for p in parts], [True] + [False] * (len(parts) - 1))
                    if choice["logprobs"]:
                        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                            self.assertEqual(sum((p["logprobs"][name] for p in parts), []), choice["logprobs"][name], name)

    def test_a_stream_comes_while_it_is_made(self):
        """More than one chunk; a client that leaves in the middle ends the work."""
        kdserved.wait_until(lambda: len(self.read_stream(prompt=TEXT, max_tokens=40, n=8, ignore_eos=True)) > 16,
            "chunks of tokens under way")
        before = self.daemon.metrics()['kd_requests_cancelled_total{door="http"}']
        body = json.dumps({"model": self.model, "prompt": TEXT, "max_tokens": 40, "temperature": 1.0, "ignore_eos": True, "stream": True,
            "n": 8})
        with socket.create_connection(("127.0.0.1", self.daemon.port), timeout=kdserved.PATIENCE) as s:
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" %
                (len(body), body.encode()))
            self.assertIn(b"200", s.recv(20))
        kdserved.wait_until(lambda: self.daemon.metrics()["kd_reserved_requests"] == 0, "the cut stream to be gone")
        self.assertLessEqual(self.daemon.metrics()['kd_requests_cancelled_total{door="http"}'] - before, 1)
        self.complete(prompt="a", max_tokens=2)

    def test_the_context_bounds_prompt_and_answer(self):
        self.complete(prompt=[1] * 60, max_tokens=4, temperature=1.0, logprobs=1)
        self.refuse(413, "max_tokens", prompt=[1] * 60, max_tokens=5)
        self.refuse(413, "stop", prompt="a", stop="x" * 257)
        self.refuse(413, "stop_token_ids", prompt="a", stop_token_ids=[1] * 65)
        self.refuse(400, "stop_token_ids", prompt="a", stop_token_ids=[265], max_tokens=3)

    # the frame around it

    def test_the_reply_is_a_text_completion(self):
        reply = self.complete(prompt=TEXT, max_tokens=1, temperature=0)
        self.assertEqual(reply["object"], "text_completion")
        self.assertEqual(reply["model"], self.model)
        self.assertTrue(reply["id"].startswith("cmpl-"))
        self.assertEqual(reply["system_fingerprint"], self.daemon.get("/v1/model")[1]["id"])
        self.assertGreater(reply["created"], 1700000000)

    def test_several_of_one_prompt(self):
        reply = self.complete(prompt=[TEXT, "a"], n=2, max_tokens=1, temperature=0)
        self.assertEqual([c["index"] for c in reply["choices"]], [0, 1, 2, 3])
        self.assertEqual(reply["choices"][0]["text"], reply["choices"][1]["text"])
        self.assertEqual(reply["usage"]["completion_tokens"], 4)

    def test_models(self):
        reply = self.daemon.get("/v1/models")[1]
        card = reply["data"][0]
        self.assertEqual((reply["object"], len(reply["data"])), ("list", 1))
        self.assertEqual((card["object"], card["max_model_len"]), ("model", 64))
        self.assertEqual(self.daemon.get("/v1/models/" + card["id"])[1]["id"], card["id"])
        status, body = self.daemon.get("/v1/models/other")
        self.assertEqual((status, body["error"]["param"]), (404, "model"))
        self.assertEqual(self.daemon.get("/health"), (200, {"ready": True}))
        self.complete(model=self.daemon.get("/v1/model")[1]["id"], prompt="a", max_tokens=0)
        status, reply = self.daemon.post("/v1/completions", {"prompt": "a", "max_tokens": 0})
        self.assertEqual(status, 200, reply)

    def test_fields_that_ask_for_nothing_pass(self):
        self.complete(prompt="a", max_tokens=0, user="u", suffix=None, logit_bias={}, presence_penalty=0, frequency_penalty=0.0,
            repetition_penalty=1.0, best_of=1, stop=None, n=1, logprobs=None, stream=None, top_k=-1, metadata={"a": "b"})

    def test_refusals_have_openais_shape(self):
        error = self.refuse(404, "model", model="gpt-4", prompt="a")
        self.assertEqual((error["type"], error["code"]), ("invalid_request_error", "not_found"))
        for param, ask in (
            ("prompt", {}), ("prompt", {"prompt": []}), ("prompt", {"prompt": ""}), ("prompt", {"prompt": 5}), ("prompt[1]",
            {"prompt": ["a", 5]}),
            ("prompt[1]", {"prompt": ["a", ""]}), ("prompt[0]", {"prompt": [[]]}), ("prompt[1]", {"prompt": [1, "a"]}),
            ("prompt[0]", {"prompt": [265, 1]}), ("prompt[1][1]", {"prompt": [[1], [1, 300]]}), ("prompt[0]", {"prompt": [-1]}),
            ("echo", {"prompt": "a", "echo": "yes"}), ("n", {"prompt": "a", "n": 0}), ("max_tokens", {"prompt": "a", "max_tokens": -1}),
            ("temperature", {"prompt": "a", "temperature": -1}), ("top_p", {"prompt": "a", "top_p": 0}),
            ("logprobs", {"prompt": "a", "logprobs": 101}), ("logprobs", {"prompt": "a", "logprobs": -2}),
            ("prompt_logprobs", {"prompt": "a", "prompt_logprobs": 101}), ("prompt_logprobs", {"prompt": "a", "prompt_logprobs": -1}),
            ("prompt_logprobs", {"prompt": "a", "prompt_logprobs": 1, "stream": True}),
            ("stop", {"prompt": "a", "stop": ""}), ("stop[1]", {"prompt": "a", "stop": ["a", 3]}),
            ("stream_options", {"prompt": "a", "stream_options": {"include_usage": True}}),
            ("suffix", {"prompt": "a", "suffix": "b"}), ("logit_bias", {"prompt": "a", "logit_bias": {"5": 1}}),
            ("presence_penalty", {"prompt": "a", "presence_penalty": 0.5}), ("repetition_penalty", {"prompt": "a",
            "repetition_penalty": 1.1}),
            ("best_of", {"prompt": "a", "best_of": 2}), ("nonsense", {"prompt": "a", "nonsense": 1}),
            ("seed", {"prompt": "a", "seed": 1.5}), ("min_tokens", {"prompt": "a", "min_tokens": 1}),
        ):
            with self.subTest(ask=ask):
                self.refuse(400, param, **dict({"max_tokens": 0}, **ask))
        self.refuse(413, "prompt", prompt=[1] * 65, max_tokens=0)
        self.refuse(413, "prompt[1]", prompt=["a", "x" * 100], max_tokens=0)
        self.refuse(413, "prompt", prompt=["a"] * 9, max_tokens=0)
        self.refuse(413, "n", prompt=["a"] * 3, n=3, max_tokens=0)
        self.refuse(413, "stop", prompt="a", stop=["a"] * 17)
        status, reply = self.daemon.post("/v1/completions", b"{")
        self.assertEqual((status, reply["error"]["param"], reply["error"]["code"]), (400, "body", "invalid"))
        status, headers, body = self.daemon.http("GET", "/v1/completions")
        self.assertEqual((status, headers["Allow"]), (405, "POST"))
        self.assertEqual(json.loads(body)["error"]["type"], "invalid_request_error")
        self.assertEqual(self.daemon.http("POST", "/v1/completions", "{}", {"Content-Type": "text/plain"})[0], 415)


if __name__ == "__main__":
    unittest.main(verbosity=2)
