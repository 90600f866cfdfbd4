# SPDX-License-Identifier: Apache-2.0
"""Every limit of the manual at n - 1, n and n + 1, on both doors where both have it: served, served, refused by name. The server answers
rightly afterwards, every time."""
import json
import os
import socket
import struct
import sys
import tempfile
import time
import unittest

import kdserved
from kdserved import Closed, Daemon, ProtocolError, wait_until

sys.path.insert(0, os.path.join(os.environ.get("top_srcdir", os.path.join(os.path.dirname(__file__), "..", "..")), "tests", "conformance"))
import kdserved_bytes as wire    # noqa: E402: the path comes first

MAX_TOKENS, MAX_SEQUENCES, MAX_TOP_K, MAX_GATHER, MAX_DRAWS, MAX_SPANS = 40, 6, 50, 9, 11, 5
MAX_JSON = MAX_BODY = 8192
SMALL = ("--max-tokens", str(MAX_TOKENS), "--max-sequences", str(MAX_SEQUENCES), "--max-top-k", str(MAX_TOP_K), "--max-gather",
    str(MAX_GATHER),
    "--max-draws", str(MAX_DRAWS), "--max-spans", str(MAX_SPANS), "--max-json", str(MAX_JSON), "--max-body", str(MAX_BODY))
A = [5, 17, 200, 3]

# name, n, code of the refusal, field, question of size k (sequences, then struct query's fields as both clients of this test know them)
LIMITS = [
    ("max-tokens", MAX_TOKENS, "too_large", "sequences[0].tokens", lambda k: ([[1] * k], {"top_k": 1})),
    ("max-sequences", MAX_SEQUENCES, "too_large", "sequences", lambda k: ([[1, 2]] * k, {"top_k": 1})),
    ("max-top-k", MAX_TOP_K, "too_large", "top_k", lambda k: ([A], {"top_k": k})),
    ("max-gather", MAX_GATHER, "too_large", "gather", lambda k: ([A], {"gather": [1] * k})),
    ("max-draws", MAX_DRAWS, "too_large", "draws.n", lambda k: ([A], {"draws": {"n": k, "seed": 1}})),
    ("max-spans", MAX_SPANS, "too_large", "spans", lambda k: ([A], {"spans": [[1, 2]] * k})),
    ("temperatures", 16, "too_large", "temperatures", lambda k: ([A], {"temperatures": [1.0 + i for i in range(k)]})),
    ("features", 64, "too_large", "features", lambda k: ([A], {"features": [("hidden", 0)] * k})),
    ("vocabulary", 264, "invalid", "sequences[0].tokens[1]", lambda k: ([[1, k]], {"top_k": 1})),
    ("layers", 2, "invalid", "features[0].layer", lambda k: ([A], {"features": [("hidden", k)]})),
    ("last row", 3, "invalid", "last", lambda k: ([A], {"top_k": 1, "last": k})),
]
# values: the last served, the first refused
RANGES = [
    ("lowest temperature", "temperatures[0]", lambda v: {"temperatures": [v]}, 1e-4, 0.99e-4),
    ("highest temperature", "temperatures[0]", lambda v: {"temperatures": [v]}, 1e6, 1.01e6),
    ("lowest tau", "draws.tau", lambda v: {"draws": {"n": 1, "seed": 1, "tau": v}}, 0.01, 0.0099),
    ("highest tau", "draws.tau", lambda v: {"draws": {"n": 1, "seed": 1, "tau": v}}, 100.0, 100.1),
    ("highest mass", "top_mass", lambda v: {"top_k": 1, "top_mass": v}, 1.0, 1.001),
]
KINDS = ["hidden", "final", "q", "k", "v"]


def as_json(sequences, ask):
    body = dict(ask, sequences=[{"tokens": s} for s in sequences])
    if "features" in body:
        body["features"] = [{"kind": kind, "layer": layer} for kind, layer in body["features"]]
    return body


def as_frame(sequences, ask):
    ask = dict(ask)
    if "features" in ask:
        ask["features"] = [(KINDS.index(kind), layer) for kind, layer in ask["features"]]
    if "gather" in ask:
        ask["gather"] = [ask["gather"]]
    return wire.score_body(wire.Query(**ask), sequences)


class Limits(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon(*SMALL)
        cls.addClassCleanup(cls.daemon.stop)
        cls.model = cls.daemon.get("/v1/models")[1]["data"][0]["id"]
        cls.canary = cls.daemon.post("/v1/score", {"sequences": [{"tokens": A}], "top_k": 3})[1]["sequences"][0]["rows"]

    def tearDown(self):
        rows = self.daemon.post("/v1/score", {"sequences": [{"tokens": A}], "top_k": 3})[1]["sequences"][0]["rows"]
        self.assertEqual(rows, self.canary)

    def by_http(self, sequences, ask):
        """(code, field) of the refusal, or None."""
        status, reply = self.daemon.post("/v1/score", as_json(sequences, ask))
        if status == 200:
            self.assertEqual(len(reply["sequences"]), len(sequences))
            return None
        return reply["error"]["code"], reply["error"]["field"]

    def by_frames(self, sequences, ask):
        with self.daemon.client() as c:
            c.send(kdserved.SCORE, 1, as_frame(sequences, ask))
            try:
                self.assertEqual(len(c.finish_score(1)), len(sequences))
            except ProtocolError as e:
                self.assertEqual(e.index, kdserved.WHOLE)
                return e.code, e.field
        return None

    def test_limits_of_a_question(self):
        for name, n, code, field, build in LIMITS:
            for door in (self.by_http, self.by_frames):
                with self.subTest(limit=name, door=door.__name__):
                    self.assertEqual([door(*build(k)) for k in (n - 1, n)], [None, None])
                    self.assertEqual(door(*build(n + 1)), (code, field))

    def test_ranges_of_a_question(self):
        for name, field, build, good, bad in RANGES:
            for door in (self.by_http, self.by_frames):
                with self.subTest(limit=name, door=door.__name__):
                    self.assertIsNone(door([A], build(good)))
                    self.assertEqual(door([A], build(bad)), ("invalid", field))

    def test_bytes_of_a_body(self):
        def text(n):
            return b'{"text":"' + b"a" * (n - len(b'{"text":""}')) + b'"}'
        for n, status in ((MAX_JSON - 1, 200), (MAX_JSON, 200), (MAX_JSON + 1, 413)):
            with self.subTest(door="http", n=n):
                got, reply = self.daemon.post("/v1/tokenize", text(n))
                self.assertEqual(got, status)
                self.assertEqual(reply.get("error", {}).get("field"), "body" if status == 413 else None)
        head = 8 + len("POST") + len("/v1/tokenize")
        for n, good in ((MAX_BODY - 1, True), (MAX_BODY, True), (MAX_BODY + 1, False)):
            with self.subTest(door="frames", n=n), self.daemon.client() as c:
                if good:
                    self.assertEqual(c.call("POST", "/v1/tokenize", text(n - head))[0], 200)
                    continue
                c.send(kdserved.CALL, 1, wire.call_body("POST", "/v1/tokenize", text(n - head)))
                kind, request_id, body = c.receive()
                self.assertEqual((kind, request_id, ProtocolError(body).code), (kdserved.ERROR, 0, "too_large"))
                self.assertRaises(Closed, c.receive)

    def test_bytes_of_json(self):
        """The same at both doors, though a frame may be larger than what may be JSON."""
        with Daemon("--max-json", str(MAX_JSON), "--max-body", str(16 * MAX_JSON)) as d, d.client() as c:
            for n, status in ((MAX_JSON - 1, 200), (MAX_JSON, 200), (MAX_JSON + 1, 413), (16 * MAX_JSON - 100, 413)):
                text = b'{"text":"' + b"a" * (n - len(b'{"text":""}')) + b'"}'
                for door, (got, reply) in (("http", d.post("/v1/tokenize", text)), ("frames", c.call("POST", "/v1/tokenize", text))):
                    with self.subTest(door=door, n=n):
                        error = (reply if door == "http" else json.loads(reply)).get("error", {})
                        self.assertEqual((got, error.get("code"), error.get("field")), (status, *(
                            ("too_large", "body") if status == 413 else (None, None))))
            self.assertEqual(len(c.score([[1, 2]], top_k=1)), 1)       # the connection lives on

    def test_depth_of_json(self):
        for depth, field in ((31, "text"), (32, "text"), (33, "body")):      # the object itself is the first level
            body = b'{"text":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
            with self.subTest(depth=depth):
                status, reply = self.daemon.post("/v1/tokenize", body)
                self.assertEqual((status, reply["error"]["field"]), (400, field))
                with self.daemon.client() as c:
                    status, reply = c.call("POST", "/v1/tokenize", body)
                    self.assertEqual((status, json.loads(reply)["error"]["field"]), (400, field))

    def test_frames_before_and_beside_questions(self):
        for n, good in ((63, True), (64, True), (65, False)):
            with self.subTest(ping=n), self.daemon.client() as c:
                c.send(kdserved.PING, 9, b"x" * n)
                kind, request_id, body = c.receive()
                self.assertEqual((kind, request_id, body) if good else (kind, request_id), (kdserved.PONG, 9,
                    b"x" * n) if good else (kdserved.ERROR, 0))
        for n, good in ((255, True), (256, True), (257, False)):
            with self.subTest(token=n), self.daemon.client(hello=False) as c:
                c.send(kdserved.HELLO, 0, wire.hello_body(b"t" * n))
                kind, _, body = c.receive()
                self.assertEqual(kind, kdserved.WELCOME if good else kdserved.ERROR)
                if not good:
                    self.assertEqual((ProtocolError(body).code, ProtocolError(body).field), ("invalid", "token"))

    def test_deadlines(self):
        for ms, status in ((86400000 - 1, 200), (86400000, 200), (86400001, 400), (1, None), (0, 400)):
            with self.subTest(ms=ms):
                got, reply = self.daemon.post("/v1/score", {"sequences": [{"tokens": A}], "top_k": 1, "deadline_ms": ms})
                self.assertEqual(got, status or got, reply)
                if status == 400:
                    self.assertEqual(reply["error"]["field"], "deadline_ms")

    def complete(self, **ask):
        status, reply = self.daemon.post("/v1/completions", dict({"model": self.model, "prompt": A, "max_tokens": 2}, **ask))
        return None if status == 200 else (reply["error"]["code"], reply["error"]["param"])

    def test_limits_of_completions(self):
        for name, n, code, field, build in (
            ("prompts", MAX_SEQUENCES, "too_large", "prompt", lambda k: {"prompt": ["a"] * k}),
            ("completions", MAX_SEQUENCES, "too_large", "n", lambda k: {"n": k}),
            ("context", MAX_TOKENS - len(A), "too_large", "max_tokens", lambda k: {"max_tokens": k}),
            ("prompt", MAX_TOKENS, "too_large", "prompt", lambda k: {"prompt": [1] * k, "max_tokens": 0}),
            ("logprobs", MAX_TOP_K, "invalid", "logprobs", lambda k: {"logprobs": k}),
            ("prompt_logprobs", MAX_TOP_K, "invalid", "prompt_logprobs", lambda k: {"prompt_logprobs": k}),
            ("stop texts", 16, "too_large", "stop", lambda k: {"stop": ["\u00e9%d" % i for i in range(k)]}),
            ("bytes of a stop text", 256, "too_large", "stop", lambda k: {"stop": "x" * k}),
            ("stop ids", 64, "too_large", "stop_token_ids", lambda k: {"stop_token_ids": list(range(k))}),
            ("highest temperature", 10000, "invalid", "temperature", lambda k: {"temperature": k}),
        ):
            with self.subTest(limit=name):
                self.assertEqual([self.complete(**build(k)) for k in (n - 1, n)], [None, None])
                self.assertEqual(self.complete(**build(n + 1)), (code, field))

    def test_names_of_runs(self):
        with tempfile.TemporaryDirectory(prefix="kdserved-e2e-") as runs, Daemon(*SMALL, "--runs", runs) as d:
            for n, field in ((63, "no-such-key"), (64, "no-such-key"), (65, "name")):
                with self.subTest(n=n):
                    status, reply = d.post("/v1/runs", {"name": "r" * n, "config": "no-such-key = 1\n"})
                    self.assertEqual(status, 400, reply)
                    self.assertEqual(reply["error"]["field"] == "name", field == "name", reply)


class Budget(unittest.TestCase):
    """What may be under way: requests, tokens, bytes, credits, connections, places of generations."""

    def daemon(self, *arguments):
        d = Daemon("--max-tokens", "512", *arguments)
        self.addCleanup(d.stop)
        return d

    def busy(self, d, c):
        """Keeps the teacher at work for a while; returns the request's id once that has begun."""
        self.before = before = d.metrics()["kd_forward_sequences_total"]
        request_id = c.start_score([[i % 250 + 1, i // 250 + 1] * 128 for i in range(900)], top_k=1)
        wait_until(lambda: d.metrics()["kd_forward_sequences_total"] > before, "the first forward pass")
        return request_id

    def wait_idle(self, d):
        """A client has its answer a moment before the server has its place back."""
        wait_until(lambda: d.metrics()["kd_reserved_requests"] == 0, "the budget to be free")

    def test_tokens_under_way(self):
        d = self.daemon("--queue-tokens", "1000")
        for n, code in ((999, None), (1000, None), (1001, "too_large")):
            sequences = [[1] * 500, [2] * (n - 500)]
            with self.subTest(n=n):
                self.wait_idle(d)
                status, reply = d.post("/v1/score", as_json(sequences, {"top_k": 1}))
                self.wait_idle(d)
                self.assertEqual((status, reply.get("error", {}).get("code")), (413 if code else 200, code))
                with d.client() as c:
                    if code:
                        self.assertRaises(ProtocolError, c.score, sequences, top_k=1)
                    else:
                        self.assertEqual(len(c.score(sequences, top_k=1)), 2)

    def check_account(self, m):
        for door in ("http", "socket"):
            n = [m['kd_requests_%s{door="%s"}' % (what, door)] for what in ("accepted_total", "answered_total", "rejected_total", "cancelled_total",
                "in_flight")]
            self.assertEqual(n[0], sum(n[1:]), door)

    def test_bytes_at_the_doors(self):
        """Bodies and replies that clients leave lying: of large ones door-bytes in all, of both doors; small ones always find room."""
        d = self.daemon("--door-bytes", "1M", "--max-json", "8M")

        def held():
            return d.metrics()["kd_door_bytes"]

        def text(n):
            return b'{"text":"' + b"a cat, " * (n // 7) + b'"}'
        large, small = text(200000), text(60000)            # bodies that count and that do not, and replies that both do
        scores = [[1] * 500] * 100
        with d.client() as c:
            self.assertEqual(c.call("POST", "/v1/tokenize", large)[0], 200)           # alone: whatever it takes
        wait_until(lambda: held() == 0, "the reply to be gone")
        with d.client() as lazy, d.client() as c:
            lazy.send(kdserved.CALL, 1, wire.call_body("POST", "/v1/tokenize", large))
            wait_until(lambda: held() > 1 << 20, "a reply that nobody takes")
            before = held()
            status, reply = c.call("POST", "/v1/tokenize", small)
            self.assertEqual((status, json.loads(reply)["error"]["code"]), (429, "overloaded"))
            for ask in (lambda: c.call("POST", "/v1/tokenize", large), lambda: c.score(scores, top_k=1)):
                with self.assertRaises(ProtocolError) as refused:
                    ask()
                self.assertEqual((refused.exception.code, refused.exception.index), ("overloaded", kdserved.WHOLE))
            for path, body in (("/v1/tokenize", small), ("/v1/tokenize", large), ("/v1/score", as_json(scores, {"top_k": 1}))):
                status, headers, reply = d.http("POST", path, body)
                self.assertEqual((status, json.loads(reply)["error"]["code"], headers["Retry-After"]), (429, "overloaded", "1"))
            self.assertEqual(held(), before)
            self.assertEqual(len(c.score([[1, 2]], top_k=1)), 1)                     # on the connection that was refused, too
            self.assertEqual(c.call("POST", "/v1/tokenize", b'{"text":"a"}')[0], 200)
            self.assertEqual(d.post("/v1/score", as_json([[1, 2]], {"top_k": 1}))[0], 200)
            self.check_account(d.metrics())
            self.assertEqual(lazy.receive()[0], kdserved.REPLY)
            wait_until(lambda: held() == 0, "the reply to be taken")
            self.assertEqual(c.call("POST", "/v1/tokenize", large)[0], 200)
            self.assertEqual(len(c.score(scores, top_k=1)), len(scores))
        wait_until(lambda: held() == 0, "all of it to be given back")
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 300000\r\n\r\n"
        for connect, data in ((self.web, head.ljust(200000)), (lambda d: d.client().socket, kdserved.frame(kdserved.SCORE, 1,
                bytes(300000))[:200000])):
            with connect(d) as s:
                s.sendall(data)
                wait_until(lambda: held() >= 1 << 17, "a part of a body")
            wait_until(lambda: held() == 0, "it to be gone with its client")

    def test_bytes_under_way(self):
        """The largest answer that fits is served, one row more is refused; over HTTP the text of one sequence has to fit besides."""
        d = self.daemon("--queue-bytes", "1M", "--max-sequences", "65536")

        def fits_text(n):
            status, reply = d.post("/v1/score", {"sequences": [{"tokens": [1]}] * n, "dense": True})
            if status != 200:
                self.assertEqual((status, reply["error"]["code"]), (413, "too_large"))
            return status == 200

        def fits_frames(n):
            c.send(kdserved.SCORE, n, wire.score_body(wire.Query(dense=True), [[1]] * n))
            try:
                return len(c.finish_score(n)) == n
            except ProtocolError as refused:
                self.assertEqual(refused.code, "too_large")
                return False

        def largest(fits):
            low, high = 1, 4096
            while high - low > 1:
                self.wait_idle(d)
                middle = (low + high) // 2
                low, high = (middle, high) if fits(middle) else (low, middle)
            return low
        with d.client() as c:
            text, frames = largest(fits_text), largest(fits_frames)
        self.assertGreater(text, 500)     # a row is about 1 KiB
        self.assertLess(text, frames)
        self.assertLess(frames, text + 16)     # a row's text some 8 KiB

    def ends(self, c, ids):
        """{id: code of the error that ended it, or None}"""
        codes, open_ids = {}, set(ids)
        while open_ids:
            kind, request_id, body = c.receive()
            error = ProtocolError(body) if kind == kdserved.ERROR else None
            if kind == kdserved.DONE or error and error.index == kdserved.WHOLE:
                codes[request_id] = error.code if error else None
                open_ids.remove(request_id)
        return codes

    def read_so_far(self, d, n):
        """Waits until the server has read n requests, or is done with the first."""
        def seen():
            m = d.metrics()
            return m["kd_reserved_requests"] == n or m["kd_forward_sequences_total"] >= self.before + 900
        wait_until(seen, "requests to be read")

    def test_requests_under_way(self):
        d = self.daemon("--queue-requests", "4")
        for attempt in range(5):
            with d.client() as c:
                big = self.busy(d, c)
                ids = [c.start_score([[i, 1]], top_k=1) for i in range(1, 4)]
                self.read_so_far(d, 4)
                over = c.start_score([[9, 1]], top_k=1)
                status, headers, body = d.http("POST", "/v1/score", {"sequences": [{"tokens": [1]}], "top_k": 1})
                codes = self.ends(c, [big, over, *ids])
            if codes[over] is None:
                continue      # the teacher was done with the rest before the fifth came
            self.assertEqual(codes, {big: None, over: "overloaded", **dict.fromkeys(ids)})
            self.assertEqual((status, json.loads(body)["error"]["code"]), (429, "overloaded"))
            self.assertEqual(headers["Retry-After"], "1")
            return
        self.skipTest("the teacher is too quick")

    def test_credits_of_a_connection(self):
        d = self.daemon("--credits", "3")
        for attempt in range(5):
            with d.client() as c:
                self.assertEqual(struct.unpack("<I", c.welcome[-4:])[0], 3)
                big = self.busy(d, c)
                ids = [c.start_score([[i, 1]], top_k=1) for i in range(1, 3)]
                over = c.start_score([[9, 1]], top_k=1)
                with d.client() as other:     # has credit of its own
                    other_id = other.start_score([[8, 1]], top_k=1)
                    codes = self.ends(c, [big, over, *ids])
                    self.assertEqual(self.ends(other, [other_id]), {other_id: None})
            if codes[over] is not None:
                self.assertEqual(codes, {big: None, over: "overloaded", **dict.fromkeys(ids)})
                return
        self.skipTest("the teacher is too quick")

    def test_connections_of_each_door(self):
        n = 5
        d = self.daemon("--max-connections", str(n))
        frames = [d.client() for _ in range(n)]
        with self.assertRaises((Closed, ConnectionError)), d.client(hello=False) as c:
            c.send(kdserved.HELLO, 0, wire.hello_body())
            c.receive()
        for c in frames:
            self.assertEqual(len(c.score([[1, 2]], top_k=1)), 1)      # those that came first are served
        frames.pop().socket.close()
        wait_until(lambda: self.connects(d), "a place for another client")
        for c in frames:
            c.socket.close()

        def get(s):     # who asks only what is public would make room
            s.sendall(b"GET /v1/model HTTP/1.1\r\nHost: x\r\n\r\n")
            return s.recv(65536)
        web = [socket.create_connection(("127.0.0.1", d.port), timeout=kdserved.PATIENCE) for _ in range(n)]
        self.assertEqual([b"200 OK" in get(s) for s in web], [True] * n)
        over = socket.create_connection(("127.0.0.1", d.port), timeout=0.5)
        try:
            answer = get(over)
        except (TimeoutError, ConnectionError):
            answer = b""
        self.assertEqual(answer, b"")        # not served: closed, or left waiting outside
        self.assertEqual([b"200 OK" in get(s) for s in web], [True] * n)
        over.close()
        web.pop().close()
        wait_until(lambda: self.lives(d), "a place for another connection")
        for s in web:
            s.close()

    def connects(self, d):
        try:
            with d.client() as c:
                return len(c.score([[1]], top_k=1)) == 1
        except (Closed, ConnectionError):
            return False

    def lives(self, d):
        try:
            return d.http("GET", "/live", timeout=1)[0] == 200
        except OSError:
            return False

    def test_places_and_samples_of_generations(self):
        d = self.daemon("--cache-tokens", "64", "--max-samples", "4")

        def ask(**more):
            status, reply = d.post("/v1/completions", dict({"prompt": A, "temperature": 1.0, "ignore_eos": True}, **more))
            return None if status == 200 else (reply["error"]["code"], reply["error"]["param"])
        places = 64 - len(A) + 1         # the last token is never read
        for k in (places - 1, places):
            self.assertIsNone(ask(max_tokens=k))
            self.wait_idle(d)
        self.assertEqual(ask(max_tokens=places + 1), ("too_large", "max_tokens"))
        self.assertEqual([ask(n=k, max_tokens=2) for k in (3, 4)], [None, None])
        self.assertEqual(ask(n=5, max_tokens=2), ("too_large", "n"))
        none = self.daemon("--cache-tokens", "0")
        status, reply = none.post("/v1/completions", {"prompt": A, "max_tokens": 5})
        self.assertEqual((status, reply["error"]["code"]), (422, "unsupported"))

    def test_times(self):
        """A door waits for headers and bodies as long as it says: not cut well before, cut soon after, whether bytes trickle in or none."""
        d = self.daemon("--header-timeout", "1s", "--body-timeout", "2s", "--idle-timeout", "1500ms")
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        whole = kdserved.frame(kdserved.PING, 1, b"x" * 60)
        for name, connect, data, trickle, seconds in (("http headers", self.web, b"GET /live HTTP/1.1\r\nHost: x\r\n", b"x" * 999, 1.0),
            ("http body", self.web, head, b" " * 99, 2.0), ("first frame", lambda d: d.client(hello=False).socket, b"", whole[:31], 1.0),
            ("frame", lambda d: d.client().socket, whole[:40], whole[40:-1], 2.0), ("idle", self.idle, b"", b"", 1.5)):
            for trickle in {b"", trickle}:
                began = time.monotonic()       # before the server's own clock for it
                with self.subTest(name=name, trickle=trickle), connect(d) as s:
                    s.settimeout(0.1)
                    s.sendall(data)
                    while self.still_open(s, trickle):
                        trickle = trickle[1:]
                        self.assertLess(time.monotonic() - began, seconds + kdserved.PATIENCE / 4)
                    self.assertGreater(time.monotonic() - began, seconds * 0.8)

    def idle(self, d):
        s = self.web(d)
        s.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn(b"200 OK", s.recv(65536))
        return s

    def web(self, d):
        return socket.create_connection(("127.0.0.1", d.port), timeout=kdserved.PATIENCE)

    def still_open(self, s, trickle):
        """After a tenth of a second or so, and one more byte."""
        try:
            s.sendall(trickle[:1])
            return s.recv(65536) != b""
        except TimeoutError:
            return True
        except ConnectionError:
            return False


if __name__ == "__main__":
    unittest.main(verbosity=2)
