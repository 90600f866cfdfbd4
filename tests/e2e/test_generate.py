# SPDX-License-Identifier: Apache-2.0
"""Generation from outside: POST /v1/generate, whole and as a stream; every limit; clients that leave."""
import concurrent.futures
import http.client
import json
import os
import struct
import subprocess
import sys
import unittest

import kdserved
from kdserved import Daemon, ProtocolError, wait_until

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "conformance"))
import kdserved_bytes as kd                     # the encoder made from the manual

MAX_TOKENS, MAX_SAMPLES, MAX_SEQUENCES, MAX_TOP_K, CACHE = 200, 4, 6, 20, 320
PROMPT = list(b"the cat and the other one")
SAMPLE = {"temperature": 0.8, "top_p": 0.9, "seed": 11, "ignore_eos": True}


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


class Generate(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", str(MAX_TOKENS), "--max-samples", str(MAX_SAMPLES), "--max-sequences", str(MAX_SEQUENCES),
                            "--max-top-k", str(MAX_TOP_K), "--cache-tokens", str(CACHE))
        cls.addClassCleanup(cls.daemon.stop)

    def generate(self, prompts=None, status=200, **more):
        body = {"prompts": [{"tokens": PROMPT}] if prompts is None else prompts, **more}
        got, reply = self.daemon.post("/v1/generate", body)
        self.assertEqual(got, status, reply)
        return reply if status == 200 else reply["error"]

    def stream(self, **more):
        """The events' objects, the first and [DONE] apart."""
        status, headers, data = self.daemon.http("POST", "/v1/generate", {"stream": True, **more})
        self.assertEqual((status, headers["Content-Type"]), (200, "text/event-stream"), data)
        events = data.decode().split("\n\n")
        self.assertEqual(events[-2:], ["data: [DONE]", ""])
        first, *rest = [json.loads(e[len("data: "):]) for e in events[:-2]]
        return first, rest

    def wait_idle(self):
        wait_until(lambda: self.daemon.metrics()["kd_generating"] == 0 and self.daemon.metrics()["kd_reserved_requests"] == 0, "the end")

    # ---- what is generated

    def test_the_reply(self):
        reply = self.generate(n=2, max_tokens=12, logprobs=True, rows=3, first_sample=5, **SAMPLE)
        self.assertEqual((sorted(reply), reply["seed"]), (["seed", "sequences", "teacher"], 11))
        for i, s in enumerate(reply["sequences"]):
            self.assertEqual((s["prompt"], s["sample"], s["finish"], s["n_prompt"]), (0, 5 + i, "length", len(PROMPT)))
            self.assertEqual([len(s[k]) for k in ("tokens", "logprobs", "sampled_logprobs", "rows")], [12] * 4)
            self.assertEqual(s["text"], self.daemon.post("/v1/detokenize", {"tokens": s["tokens"]})[1]["text"])
            for sampled, row in zip(s["sampled_logprobs"], s["rows"]):
                self.assertLessEqual(sampled, 0)
                self.assertEqual((len(row["ids"]), row["logits"]), (3, sorted(row["logits"], reverse=True)))
        self.assertNotEqual(reply["sequences"][0]["tokens"], reply["sequences"][1]["tokens"])

    def test_log_probabilities_are_those_of_a_score(self):
        s, = self.generate(max_tokens=10, logprobs=True, rows=4, **SAMPLE)["sequences"]
        score = self.daemon.post("/v1/score", {"sequences": [{"tokens": PROMPT + s["tokens"]}], "own": True, "top_k": 4})[1]
        rows = score["sequences"][0]["rows"][len(PROMPT) - 1:-1]
        for row, scored, logprob in zip(s["rows"], rows, s["logprobs"]):
            self.assertEqual([row["lse"]], scored["lse"])
            self.assertEqual((row["ids"], row["logits"]), (scored["ids"], scored["logits"]))
            self.assertEqual(f32(logprob), f32(f32(scored["own_logit"]) - f32(scored["lse"][0])))

    def test_a_seed_repeats_and_no_seed_is_told(self):
        one = self.generate(max_tokens=20, **SAMPLE)["sequences"][0]
        both = self.generate([{"tokens": [1, 2]}, {"tokens": PROMPT}], max_tokens=20, n=2, **SAMPLE)["sequences"]
        self.assertEqual([s["prompt"] for s in both], [0, 0, 1, 1])
        self.assertEqual(both[2]["tokens"], one["tokens"])
        self.assertGreater(both[2]["n_reused"], 0)
        drawn = self.generate(max_tokens=20)
        self.assertLess(drawn["seed"], 2 ** 53)
        again = self.generate(max_tokens=20, seed=drawn["seed"])
        self.assertEqual(again["sequences"][0]["tokens"], drawn["sequences"][0]["tokens"])

    def test_steps_of_one_token_are_the_whole(self):
        whole, = self.generate(max_tokens=15, **SAMPLE)["sequences"]
        tokens = list(PROMPT)
        for _ in range(15):
            step, = self.generate([{"tokens": tokens}], max_tokens=1, **SAMPLE)["sequences"]
            self.assertGreaterEqual(step["n_reused"], len(tokens) - 1)
            tokens += step["tokens"]
        self.assertEqual(tokens[len(PROMPT):], whole["tokens"])

    def test_a_stream_is_the_whole_in_pieces(self):
        ask = dict(SAMPLE, prompts=[{"text": "the cat"}, {"tokens": PROMPT}], n=2, max_tokens=25, logprobs=True, rows=2)
        whole = self.daemon.post("/v1/generate", ask)[1]
        first, pieces = self.stream(**ask)
        self.assertEqual(first, {"teacher": whole["teacher"], "seed": 11})
        joined = [None] * 4
        for p in pieces:
            i = p["prompt"] * 2 + p["sample"]
            if joined[i] is None:
                joined[i] = p
                continue
            self.assertNotIn("finish", joined[i])
            for key, value in p.items():
                if isinstance(value, (list, str)) and key not in ("finish", "stop"):
                    joined[i][key] += value
                else:
                    joined[i][key] = value
        self.assertGreaterEqual(len(pieces), 4)        # how many is a matter of time
        for a, b in zip(joined, whole["sequences"]):
            del a["n_reused"], b["n_reused"]
            self.assertEqual(a, b)

    def test_how_answers_end(self):
        whole, = self.generate(max_tokens=30, **SAMPLE)["sequences"]
        text = whole["text"]
        at = next(i for i in range(8, 28) if text[i:i + 2].isascii() and text.index(text[i:i + 2]) == i)
        for stream in (False, True):
            ask = dict(SAMPLE, prompts=[{"tokens": PROMPT}], max_tokens=30, stop=["never", text[at:at + 2]])
            if stream:
                pieces = self.stream(**ask)[1]
                got = dict(pieces[-1], text="".join(p["text"] for p in pieces), tokens=[t for p in pieces for t in p["tokens"]])
            else:
                got, = self.daemon.post("/v1/generate", ask)[1]["sequences"]
            self.assertEqual((got["finish"], got["stop"], got["text"]), ("stop", text[at:at + 2], text[:at]))
            self.assertEqual(got["tokens"], whole["tokens"][:len(got["tokens"])])
        got, = self.generate(max_tokens=30, stop_ids=[whole["tokens"][4]], **SAMPLE)["sequences"]
        self.assertEqual((got["finish"], got["stop_id"]), ("stop", whole["tokens"][4]))
        got, = self.generate(max_tokens=3, response_prefix={"text": "and so"}, **SAMPLE)["sequences"]
        self.assertTrue(got["text"].startswith("and so"))
        forced = self.daemon.post("/v1/tokenize", {"text": "and so", "add_special": False})[1]["tokens"]
        self.assertEqual((got["tokens"][:len(forced)], len(got["tokens"])), (forced, len(forced) + 3))

    def test_special_tokens_in_text(self):
        end = 264
        for specials, n in ((True, 1), (False, 7)):
            s, = self.generate([{"text": "<|end|>"}], specials=specials, max_tokens=1)["sequences"]
            self.assertEqual(s["n_prompt"], n)
        s, = self.generate(max_tokens=5, response_prefix={"tokens": [end, 65]}, **SAMPLE)["sequences"]
        self.assertEqual((s["tokens"][:2], s["text"][0]), ([end, 65], "A"))

    # ---- limits

    def refused(self, code, field, status, **more):
        e = self.generate(status=status, **more)
        self.assertEqual((e["code"], e["field"]), (code, field))

    def test_limits_at_and_beyond(self):
        n = len(PROMPT)
        self.generate(max_tokens=MAX_TOKENS - n, stop_ids=list(range(64)), stop=["x" * 256] * 16, rows=MAX_TOP_K)
        self.refused("too_large", "max_tokens", 413, max_tokens=MAX_TOKENS - n + 1)
        self.refused("too_large", "max_tokens", 413, max_tokens=MAX_TOKENS - n, response_prefix={"tokens": [1]})
        self.refused("too_large", "prompts[0]", 413, prompts=[{"tokens": [1] * MAX_TOKENS}], max_tokens=1)
        self.refused("too_large", "rows", 413, rows=MAX_TOP_K + 1)
        self.refused("too_large", "stop", 413, stop=["x"] * 17)
        self.refused("too_large", "stop[1]", 413, stop=["x", "y" * 257])
        self.refused("too_large", "stop_ids", 413, stop_ids=[1] * 65)
        self.generate(n=MAX_SAMPLES, max_tokens=1)
        self.refused("too_large", "n", 413, n=MAX_SAMPLES + 1, max_tokens=1)
        self.generate([{"tokens": [1]}] * 3, n=2, max_tokens=1)
        self.refused("too_large", "prompts", 413, prompts=[{"tokens": [1]}] * 7, max_tokens=1)
        self.refused("too_large", "prompts", 413, prompts=[{"tokens": [1]}] * 2, n=4, max_tokens=1)
        # places in the cache: the prompt once, what follows but its last token for each sample
        each = (CACHE - 20) // 2 + 1
        self.generate([{"tokens": [1] * 20}], n=2, max_tokens=each, stop_ids=list(range(64)))
        self.refused("too_large", "max_tokens", 413, prompts=[{"tokens": [1] * 20}], n=2, max_tokens=each + 1)

    def test_wrong_values_are_refused_by_name(self):
        for field, value in (("n", 0), ("max_tokens", 0), ("temperature", -1), ("temperature", "1"), ("top_p", 0), ("top_p", 1.5), ("min_p", -0.1),
                             ("typical_p", 0), ("top_k", -1), ("seed", -1), ("seed", 1.5), ("stop", 5), ("stop_ids", "1"), ("stream", 1),
                             ("ignore_eos", None), ("rows", -1), ("logprobs", 2), ("specials", 0), ("deadline_ms", 0), ("n", 1.5), ("n", 2 ** 32),
                             ("response_prefix", "x"), ("response_prefix", {}), ("prompts", []), ("prompts", "x"), ("nonsense", 1)):
            with self.subTest(field=field, value=value):
                self.refused("invalid", field, 400, **{field: value})
        for more, field in (({"stop": [""]}, "stop[0]"), ({"stop_ids": [999]}, "stop_ids[0]"), ({"prompts": [{}]}, "prompts[0]"),
                            ({"prompts": [{"tokens": [1, 999]}]}, "prompts[0].tokens[1]"), ({"prompts": [{"tokens": []}]}, "prompts[0]"),
                            ({"prompts": [{"tokens": [1]}, {"text": ""}]}, "prompts[1].text"), ({"prompts": [{"tokens": [1], "text": "x"}]}, "prompts[0]"),
                            ({"response_prefix": {"tokens": [-1]}}, "response_prefix.tokens[0]"),
                            ({"response_prefix": {"tokens": [999]}}, "response_prefix[0]")):
            with self.subTest(more=more):
                body = {"prompts": [{"tokens": PROMPT}], **more}
                status, reply = self.daemon.post("/v1/generate", body)
                self.assertEqual((status, reply["error"]["field"]), (400, field))
        self.refused("invalid", "first_sample", 400, first_sample=2 ** 32 - 1, n=2)

    # ---- what is over

    def test_places_are_given_back_when_the_client_leaves(self):
        ask = dict(prompts=[{"tokens": PROMPT}], n=2, max_tokens=140, ignore_eos=True, stream=True)
        for _ in range(3):
            c = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=kdserved.PATIENCE)
            c.request("POST", "/v1/generate", body=json.dumps(ask), headers={"Content-Type": "application/json"})
            reply = c.getresponse()
            self.assertTrue(reply.readline().startswith(b"data: "))
            reply.close()
            c.close()
            self.wait_idle()
        wait_until(lambda: len({self.daemon.metrics()["kd_cache_slots_" + what] for what in ("used", "idle")}) == 1, "all places to be idle")
        self.generate(n=2, max_tokens=140, ignore_eos=True)        # there is room for it again

    def test_a_deadline_ends_a_generation(self):
        e = self.generate(status=504, max_tokens=170, ignore_eos=True, deadline_ms=1)
        self.assertEqual(e["code"], "deadline")
        self.wait_idle()


# ---- the binary door

def parse_tokens(body):
    index, flags, first, n, k, text_bytes = struct.unpack_from("<6I", body)
    at = [24]

    def take(kind, count):
        at[0] += 4 * count
        return list(struct.unpack_from("<%d%s" % (count, kind), body, at[0] - 4 * count))
    piece = {"index": index, "first": first, "tokens": take("I", n), "logprobs": take("f", n), "sampled_logprobs": take("f", n), "lse": take("f", n)}
    ids, logits = take("I", n * k), take("f", n * k)
    piece["rows"] = [{"ids": ids[i * k:i * k + k], "logits": logits[i * k:i * k + k]} for i in range(n)]
    piece["text"] = body[at[0]:at[0] + text_bytes]
    at[0] += text_bytes
    if flags & 1:
        names = ("finish", "stop_id", "stop", "reused", "seed")
        piece.update(zip(names, struct.unpack_from("<4IQ", body, at[0])))
        at[0] += 24
    assert flags < 2 and at[0] == len(body)
    return piece


class Binary(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", str(MAX_TOKENS), "--max-samples", str(MAX_SAMPLES), "--max-sequences", str(MAX_SEQUENCES),
                            "--cache-tokens", str(CACHE), "--credits", "2")
        cls.addClassCleanup(cls.daemon.stop)

    def start(self, client, prompts=(PROMPT,), **more):
        request_id, client.next_id = client.next_id, client.next_id + 1
        client.send(kd.GENERATE, request_id, kd.generate_body(prompts, **more))
        return request_id

    def finish(self, client, request_id):
        """{index: pieces}"""
        pieces = {}
        while True:
            kind, got, body = client.receive()
            self.assertEqual(got, request_id)
            if kind == kd.ERROR:
                raise ProtocolError(body)
            if kind == kd.DONE:
                return pieces
            self.assertEqual(kind, kd.TOKENS)
            piece = parse_tokens(body)
            before = pieces.setdefault(piece["index"], [])
            self.assertEqual(piece["first"], sum(len(p["tokens"]) for p in before))
            before.append(piece)

    def test_both_doors_say_the_same(self):
        ask = dict(n=2, first_sample=1, max_tokens=20, rows=3, temperature=.75, top_p=.875, top_k=50, min_p=.0625, typical_p=.9375, seed=3,
                   stop_ids=[7], flags=kd.IGNORE_EOS, forced=[65, 66])
        more = dict(ask, prompts=[{"tokens": PROMPT}, {"tokens": [1, 2]}], ignore_eos=True, response_prefix={"tokens": ask["forced"]}, logprobs=True)
        del more["flags"], more["forced"]
        http_says = self.daemon.post("/v1/generate", more)[1]["sequences"]
        with self.daemon.client() as client:
            for flags in (0, kd.STREAM):
                got = self.finish(client, self.start(client, [PROMPT, [1, 2]], **dict(ask, flags=flags | kd.IGNORE_EOS)))
                self.assertEqual(sorted(got), [0, 1, 2, 3])
                for i, want in enumerate(http_says):
                    if not flags:
                        self.assertEqual(len(got[i]), 1)
                    joined = {k: sum((p[k] for p in got[i]), []) for k in ("tokens", "logprobs", "sampled_logprobs", "lse", "rows")}
                    text = b"".join(p["text"] for p in got[i])
                    self.assertEqual(joined["tokens"], want["tokens"])
                    for name in ("logprobs", "sampled_logprobs"):
                        self.assertEqual(joined[name], [f32(x) for x in want[name]])
                    self.assertEqual([(f32(r["lse"]), r["ids"], [f32(z) for z in r["logits"]]) for r in want["rows"]],
                                     [(lse, r["ids"], r["logits"]) for lse, r in zip(joined["lse"], joined["rows"])])
                    self.assertEqual(text.decode("ascii", "ignore"), want["text"].encode("ascii", "ignore").decode())
                    last = got[i][-1]
                    self.assertEqual((last["seed"], last["stop"]), (3, kd.NO_ID))
                    self.assertEqual({1: "stop", 2: "length"}[last["finish"]], want["finish"])
                    self.assertEqual(last["stop_id"], want.get("stop_id", kd.NO_ID))
                    self.assertNotIn("finish", got[i][0] if len(got[i]) > 1 else {})

    def test_stop_strings(self):
        with self.daemon.client() as client:
            whole = self.finish(client, self.start(client, max_tokens=30, seed=11, temperature=.75, flags=kd.IGNORE_EOS))[0][0]
            stop = whole["text"][12:14]
            cut = self.finish(client, self.start(client, max_tokens=30, seed=11, temperature=.75, flags=kd.IGNORE_EOS | kd.STREAM,
                                                 stops=[b"never", stop]))[0]
        self.assertEqual(b"".join(p["text"] for p in cut), whole["text"][:whole["text"].index(stop)])
        self.assertEqual((cut[-1]["finish"], cut[-1]["stop"]), (1, 1))

    def test_the_same_validator(self):
        with self.daemon.client() as client:
            for code, field, more in (("too_large", "max_tokens", {"max_tokens": MAX_TOKENS}), ("invalid", "n", {"n": 0}),
                                      ("too_large", "n", {"n": MAX_SAMPLES + 1}), ("invalid", "top_p", {"top_p": 0}),
                                      ("invalid", "prompts[0].tokens[1]", {"prompts": [[1, 999]]}), ("invalid", "prompts[0]", {"prompts": [[]]}),
                                      ("too_large", "prompts", {"prompts": [[1]] * 7, "max_tokens": 1}), ("invalid", "stop_ids[0]", {"stop_ids": [999]}),
                                      ("too_large", "stop", {"stops": [b"x"] * 17}), ("unsupported", "flags", {"flags": 64})):
                with self.subTest(field=field):
                    with self.assertRaises(ProtocolError) as caught:
                        self.finish(client, self.start(client, **more))
                    self.assertEqual((caught.exception.code, caught.exception.field, caught.exception.index), (code, field, kd.WHOLE))

    def test_cancel_credits_and_leaving(self):
        long = dict(n=1, max_tokens=120, flags=kd.IGNORE_EOS | kd.STREAM)
        with self.daemon.client() as client:
            one, two = self.start(client, **long), self.start(client, [[5]], **long)
            three = self.start(client, [[6]], max_tokens=1)
            client.send(kd.CANCEL, one)
            ended = {}
            while len(ended) < 3:
                kind, got, body = client.receive()
                if kind in (kd.DONE, kd.ERROR):
                    ended[got] = ProtocolError(body).code if kind == kd.ERROR else None
            self.assertIn(ended[one], ("cancelled", None))        # it may have been complete
            self.assertEqual((ended[two], ended[three]), (None, "overloaded"))
            self.start(client, **long)
        wait_until(lambda: self.daemon.metrics()["kd_generating"] == 0, "what the client left behind")
        wait_until(lambda: len({self.daemon.metrics()["kd_cache_slots_" + what] for what in ("used", "idle")}) == 1, "all places to be idle")
        wait_until(lambda: self.daemon.metrics()["kd_reserved_requests"] == 0, "all requests to be gone")


class Program(unittest.TestCase):
    """kdctl generate against a daemon."""

    def test_kdctl_says_what_the_server_says(self):
        with Daemon() as daemon:
            def kdctl(*arguments):
                command = [os.path.join(kdserved.BUILD, "kdctl"), "--server", "unix:" + daemon.socket_path, *arguments]
                return subprocess.run(command, check=True, capture_output=True, timeout=kdserved.PATIENCE).stdout
            ask = {"prompts": [{"text": "the cat"}], "n": 2, "max_tokens": 9, "temperature": .75, "top_k": 40, "top_p": .9, "seed": 5, "logprobs": True,
                   "response_prefix": {"text": "and"}, "ignore_eos": True, "stop": ["never"]}
            want = daemon.post("/v1/generate", ask)[1]["sequences"]
            options = ["generate", "--prompt", "the cat", "--samples", "2", "--tokens", "9", "--temperature", "0.75", "--top-p", "0.9", "--seed", "5",
                       "--prefix", "and", "--ignore-eos", "--stop", "never"]
            lines = sorted(map(json.loads, kdctl("--json", *options).decode().splitlines()), key=lambda line: line["sample"])
            for line, s in zip(lines, want):
                self.assertEqual([line[k] for k in ("sample", "tokens", "text", "logprobs", "finish", "seed")],
                                 [s["sample"], s["tokens"], s["text"], s["logprobs"], s["finish"], 5])
            text = kdctl(*options[:3], "--tokens", "4", "--temperature", "0", "--stop", "zzz")
            greedy, = daemon.post("/v1/generate", {"prompts": [{"text": "the cat"}], "max_tokens": 4, "temperature": 0})[1]["sequences"]
            self.assertEqual(text.decode("ascii", "ignore"), greedy["text"].encode("ascii", "ignore").decode() + "\n")
            for wrong in (("--temperature", "-1"), ("--tokens=0",), ("--samples", "many")):
                done = subprocess.run([os.path.join(kdserved.BUILD, "kdctl"), "generate", "--prompt", "x", *wrong], capture_output=True, text=True,
                                      timeout=kdserved.PATIENCE)
                self.assertEqual((done.returncode, done.stderr), (2, "kdctl: generate: %s: not a number in its range (kdctl generate --help)\n" %
                                                                  " ".join(wrong)))


class Many(unittest.TestCase):
    """More streams than a round of the HTTP thread has time for: their pieces are made at the desk, while more of each comes back."""

    def test_streams_of_many_samples_beside_each_other(self):
        n, n_streams, length = 8, 6, 30
        ask = dict(prompts=[{"tokens": PROMPT}], n=n, max_tokens=length, rows=50, seed=3, ignore_eos=True)
        with Daemon("--cache-tokens", "65536", "--max-samples", str(n), "--max-top-k", "50", "--max-generating", "256") as daemon:
            want = [s["tokens"] for s in daemon.post("/v1/generate", ask)[1]["sequences"]]

            def stream(_):
                data = daemon.http("POST", "/v1/generate", dict(ask, stream=True))[2]
                got = [[] for _ in range(n)]
                for event in data.decode().split("\n\n")[1:-2]:
                    piece = json.loads(event[len("data: "):])
                    got[piece["sample"]] += piece["tokens"]
                return got
            with concurrent.futures.ThreadPoolExecutor(n_streams) as pool:
                for got in pool.map(stream, range(2 * n_streams)):
                    self.assertEqual(got, want)


class Full(unittest.TestCase):
    """A server with few places."""

    def test_what_does_not_fit_now_is_refused_for_now(self):
        with Daemon("--max-tokens", "1000", "--cache-tokens", "1000") as daemon:
            ask = dict(prompts=[{"tokens": PROMPT}], max_tokens=900, ignore_eos=True, stream=True)
            c = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=kdserved.PATIENCE)
            c.request("POST", "/v1/generate", body=json.dumps(ask), headers={"Content-Type": "application/json"})
            reply = c.getresponse()
            reply.readline()
            status, headers, data = daemon.http("POST", "/v1/generate", dict(ask, max_tokens=120, stream=False))
            finished = b"finish" in reply.read()
            c.close()
            if status != 200 or not finished:        # else the first was over before the second came
                self.assertEqual((status, json.loads(data)["error"]["code"], headers["Retry-After"]), (429, "overloaded", "1"))
            self.assertEqual(daemon.post("/v1/generate", dict(ask, max_tokens=120, stream=False))[0], 200)

    def test_without_places_nothing_is_generated(self):
        with Daemon("--cache-tokens", "0") as daemon:
            status, reply = daemon.post("/v1/generate", {"prompts": [{"tokens": PROMPT}]})
            self.assertEqual((status, reply["error"]["code"]), (422, "unsupported"))
            self.assertIn("cache-tokens", reply["error"]["message"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
