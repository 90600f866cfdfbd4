# SPDX-License-Identifier: Apache-2.0
"""Bad input over both doors: a clear error that names the field, and a daemon that answers rightly afterwards, every time."""
import json
import socket
import struct
import threading
import unittest

import kdserved
from kdserved import Client, Closed, Daemon, ProtocolError, frame, score_body

VOCABULARY = 265
SEQUENCES = [{"tokens": [1, 2, 3]}]


def ask(**more):
    return dict({"sequences": SEQUENCES, "top_k": 2}, **more)


# body, status, field
HTTP_CASES = [
    (b"", 400, "body"), (b"{", 400, "body"), (b"[]", 400, "body"), (b"{\"a\":1}{", 400, "body"), (b"\xff\xfe", 400, "body"),
    (b"{\"sequences\":[{\"tokens\":[1]}],\"top_k\":1,\"top_k\":1}", 400, "body"),
    (b"[" * 40 + b"]" * 40, 400, "body"), (b"{\"sequences\":" + b"[" * 3000, 400, "body"),
    ({"top_k": 2}, 400, "sequences"), (ask(sequences=[]), 400, "sequences"), (ask(sequences={}), 400, "sequences"),
    (ask(sequences=[3]), 400, "sequences[0]"),
    (ask(sequences=[{}]), 400, "sequences[0]"), (ask(sequences=[{"tokens": [1], "text": "x"}]), 400, "sequences[0]"),
    (ask(sequences=[{"tokens": []}]), 400, "sequences[0].tokens"), (ask(sequences=[{"text": ""}]), 400, "sequences[0].text"),
    (ask(sequences=[{"text": 5}]), 400, "sequences[0].text"), (ask(sequences=[{"tokens": "x"}]), 400, "sequences[0].tokens"),
    (ask(sequences=[{"tokens": [1], "more": 1}]), 400, "sequences[0].more"),
    (ask(sequences=SEQUENCES + [{"tokens": [1, VOCABULARY]}]), 400, "sequences[1].tokens[1]"),
    (ask(sequences=[{"tokens": [-1]}]), 400, "sequences[0].tokens[0]"),
    (ask(sequences=[{"tokens": [1.0]}]), 400, "sequences[0].tokens[0]"),
    (ask(sequences=[{"tokens": [1 << 40]}]), 400, "sequences[0].tokens[0]"),
    (ask(sequences=[{"tokens": [True]}]), 400, "sequences[0].tokens[0]"),
    (ask(sequences=[{"tokens": [1] * 65}]), 413, "sequences[0].tokens"), (ask(sequences=[{"text": "x" * 1000}]), 413, "sequences[0].text"),
    (ask(sequences=SEQUENCES * 9), 413, "sequences"),
    (ask(top_k=0), 400, "top_k"), (ask(top_k=VOCABULARY + 1), 400, "top_k"), (ask(top_k=101), 413, "top_k"), (ask(top_k=-1), 400, "top_k"),
    (ask(top_k="5"), 400, "top_k"), (ask(top_k=2.5), 400, "top_k"), (ask(top_k=None), 400, "top_k"), (ask(top_k=10 ** 30), 400, "body"),
    ({"sequences": SEQUENCES}, 400, "top_k"),
    (ask(temperatures=1), 400, "temperatures"), (ask(temperatures=[]), 400, "temperatures"),
    (ask(temperatures=[0]), 400, "temperatures[0]"),
    (ask(temperatures=["1"]), 400, "temperatures[0]"), (ask(temperatures=[1, -2]), 400, "temperatures[1]"),
    (ask(temperatures=[1] * 17), 413, "temperatures"),
    (ask(own=1), 400, "own"), (ask(entropy="yes"), 400, "entropy"), (ask(durable=0), 400, "durable"), (ask(durable=True), 400, "durable"),
    (ask(first=3), 400, "first"), (ask(last=-4), 400, "last"), (ask(first=2, last=1), 400, "first"), (ask(first=1 << 31), 400, "first"),
    (ask(encoding="xml"), 400, "encoding"), (ask(values="f8"), 400, "values"), (ask(deadline_ms=0), 400, "deadline_ms"),
    (ask(gather=[]), 400, "gather"), (ask(draws={"n": 1}), 400, "draws.seed"), (ask(topk=1), 400, "topk"),
]

# sequences, query, code, field
SOCKET_CASES = [
    ([], {"top_k": 1}, "invalid", "sequences"), ([[]], {"top_k": 1}, "invalid", "sequences[0].tokens"),
    ([[1], [1, VOCABULARY]], {"top_k": 1}, "invalid", "sequences[1].tokens[1]"),
    ([[1] * 65], {"top_k": 1}, "too_large", "sequences[0].tokens"),
    ([[1]] * 9, {"top_k": 1}, "too_large", "sequences"), ([[1]], {}, "invalid", "top_k"),
    ([[1]], {"top_k": VOCABULARY + 1}, "invalid", "top_k"),
    ([[1]], {"top_k": 101}, "too_large", "top_k"), ([[1]], {"own": True, "temperatures": (0.0,)}, "invalid", "temperatures[0]"),
    ([[1]], {"own": True, "temperatures": (float("nan"),)}, "invalid", "temperatures[0]"),
    ([[1]], {"own": True, "first": 1}, "invalid", "first"),
    ([[1]], {"own": True, "last": -2}, "invalid", "last"), ([[1]], {"own": True, "values": 9}, "unsupported", "query"),
    ([[1]], {"own": True, "flags": 1}, "invalid", "durable"), ([[1]], {"own": True, "flags": 64}, "unsupported", "flags"),
]

# bytes sent after WELCOME that end the connection, code
FRAME_CASES = [
    (frame(kdserved.PING, 1, version=1), "unsupported"), (frame(kdserved.PING, 1, magic=b"HTTP"), "invalid"),
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b" " * 10, "invalid"),
    (frame(kdserved.PING, 1)[:-1] + b"\x00", "corrupt"), (frame(kdserved.PING, 1, b"abc", body_crc=1), "corrupt"),
    (frame(99, 1), "unsupported"),
    (frame(kdserved.PING, 1, flags=1), "invalid"), (frame(kdserved.SCORE, 1, body_bytes=1 << 31), "too_large"),
    (frame(kdserved.PING, 1, b"x" * 65), "too_large"),
    (frame(kdserved.SCORE, 0, score_body([[1]], top_k=1)), "invalid"), (frame(kdserved.WELCOME, 0), "invalid"),
    (frame(kdserved.HELLO, 0), "invalid"),
    (frame(kdserved.CANCEL, 1, b"x"), "invalid"),
]


class BadInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", "64", "--max-sequences", "8", "--max-top-k", "100", "--max-json", "8K", "--max-body", "8K",
                            "--header-timeout", kdserved.SHORT_TIMEOUT, "--body-timeout", kdserved.SHORT_TIMEOUT)
        with cls.daemon.client() as c:
            cls.canary = c.score([[1, 2, 3]], top_k=3, own=True)[0][1]

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def check_alive(self):
        self.assertIsNone(self.daemon.process.poll(), self.daemon.log())
        with self.daemon.client() as c:
            self.assertEqual(c.score([[1, 2, 3]], top_k=3, own=True)[0][1], self.canary)

    def test_http_bodies(self):
        for body, status, field in HTTP_CASES:
            with self.subTest(body=body):
                got, reply = self.daemon.post("/v1/score", body)
                self.assertEqual((got, reply["error"]["field"]), (status, field), reply)
                self.assertTrue(reply["error"]["message"])
                self.check_alive()

    def test_socket_requests(self):
        for sequences, query, code, field in SOCKET_CASES:
            with self.subTest(sequences=sequences, query=query):
                with self.daemon.client() as c:
                    with self.assertRaises(ProtocolError) as caught:
                        c.score(sequences, **query)
                    self.assertEqual((caught.exception.code, caught.exception.field, caught.exception.index),
                        (code, field, kdserved.WHOLE), str(caught.exception))
                    self.assertEqual(c.score([[1, 2, 3]], top_k=3, own=True)[0][1], self.canary)    # the connection lives on

    def test_socket_frames(self):
        for data, code in FRAME_CASES:
            with self.subTest(data=data[:40]):
                with self.daemon.client() as c:
                    c.send_bytes(data)
                    kind, request_id, body = c.receive()
                    self.assertEqual((kind, request_id, ProtocolError(body).code), (kdserved.ERROR, 0, code), body)
                    with self.assertRaises(Closed):
                        c.receive()
                self.check_alive()

    def test_truncated_frames(self):
        whole = frame(kdserved.SCORE, 1, score_body([[1, 2]], top_k=1))
        for n in (1, 31, 32, 33, len(whole) - 1):
            with self.subTest(n=n):
                with self.daemon.client() as c:
                    c.send_bytes(whole[:n])
                self.check_alive()
        with self.daemon.client() as c:    # and one that stays open is cut at the deadline
            c.send_bytes(whole[:40])
            kind, _, body = c.receive()
            self.assertEqual((kind, ProtocolError(body).code), (kdserved.ERROR, "deadline"))
        self.check_alive()

    def test_score_bodies_that_lie(self):
        good = score_body([[1, 2]], top_k=1)
        for body in (good[:-1], good + b"x", b"", struct.pack("<IIII", 0, 0, 1 << 30, 1),
                     struct.pack("<IIII", 0, 0, 16, 1 << 31) + good[16:]):
            with self.subTest(body=body):
                with self.daemon.client() as c:
                    c.send(kdserved.SCORE, 5, body)
                    kind, request_id, answer = c.receive()
                    self.assertEqual((kind, request_id), (kdserved.ERROR, 5))
                    self.assertIn(ProtocolError(answer).code, ("invalid", "too_large"))
                self.check_alive()

    def test_hello(self):
        def refused(data, code):
            with Client(self.daemon.socket_path, hello=False) as c:
                c.send_bytes(data)
                kind, request_id, body = c.receive()
                self.assertEqual((kind, request_id, ProtocolError(body).code), (kdserved.ERROR, 0, code), body)
        refused(frame(kdserved.SCORE, 1, score_body([[1]], top_k=1)), "invalid")
        refused(frame(kdserved.HELLO, 0, struct.pack("<HH", 3, 4) + bytes(32) + b"\0\0"), "unsupported")
        refused(frame(kdserved.HELLO, 0, struct.pack("<HH", 1, 2) + b"x" * 32 + b"\0\0"), "conflict")
        refused(frame(kdserved.HELLO, 0, b"short"), "invalid")
        refused(frame(kdserved.HELLO, 0, b"x" * 2000), "too_large")
        self.check_alive()

    def test_content_type(self):
        body = json.dumps(ask())
        for kind, expected in (("text/plain", 415), ("application/jsonx", 415), ("application/json; charset=utf-8", 200),
            ("APPLICATION/JSON", 200)):
            with self.subTest(kind=kind):
                self.assertEqual(self.daemon.http("POST", "/v1/score", body, {"Content-Type": kind})[0], expected)
        self.assertEqual(self.daemon.http("POST", "/v1/score", body, {"Content-Type": "application/json", "Content-Encoding": "gzip"})[0],
            415)

    def test_oversized_body(self):
        for n, status in ((8192, 200), (8193, 413), (1 << 20, 413)):
            with self.subTest(n=n):
                body = json.dumps(ask()).ljust(n)
                got, reply = self.daemon.post("/v1/score", body)
                self.assertEqual(got, status, reply)
                self.check_alive()

    def test_oversized_chunked_body(self):
        got, reply = self.raw_chunked(100, 1000)
        self.assertEqual((got, reply["error"]["field"]), (413, "body"))
        self.check_alive()

    def raw_chunked(self, n, size):
        with socket.create_connection(("127.0.0.1", self.daemon.port), timeout=kdserved.PATIENCE) as s:
            s.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(n):
                s.sendall(b"%x\r\n%s\r\n" % (size, b" " * size))
            s.sendall(b"0\r\n\r\n")
            return self.read_reply(s)

    def read_reply(self, s):
        data = b""
        while b"\r\n\r\n" not in data:
            piece = s.recv(65536)
            if not piece:
                return 0, None
            data += piece
        head, body = data.split(b"\r\n\r\n", 1)
        n = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
        while len(body) < n:
            body += s.recv(65536)
        return int(head.split()[1]), json.loads(body) if body[:1] == b"{" else body

    def raw(self, data):
        with socket.create_connection(("127.0.0.1", self.daemon.port), timeout=kdserved.PATIENCE) as s:
            s.sendall(data)
            status, reply = self.read_reply(s)
            try:
                closed = s.recv(1) == b""
            except ConnectionError:
                closed = True
            return status, reply, closed

    def test_requests_that_two_parsers_read_differently(self):
        start = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        second = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"
        for headers in (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", b"Content-Length: 2\r\nContent-Length: 3\r\n",
                        b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: identity\r\n",
                        b"Transfer-Encoding: chunked, identity\r\n", b"Host: y\r\nContent-Length: 2\r\n"):
            with self.subTest(headers=headers):
                status, _, closed = self.raw(start + headers + b"\r\n{}" + second)
                self.assertIn(status, (0, 400))
                self.assertTrue(closed)
                self.check_alive()
        status, _, closed = self.raw(b"POST /v1/score HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        self.assertEqual((status, closed), (400, True))

    def test_lines_that_end_or_go_on_otherwise(self):
        first, host, body = b"POST /v1/tokenize HTTP/1.1\r\n", b"Host: x\r\n", b'{"text":"a"}'
        rest = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        for name, head in (("LF after the request line", first[:-2] + b"\n" + host + rest + b"\r\n"),
                           ("LF after a line", first + b"Host: x\n" + rest + b"\r\n"),
                           ("LF after each line", (first + host + rest + b"\r\n").replace(b"\r\n", b"\n")),
                           ("LF after the last line", first + host + rest[:-2] + b"\n\r\n"), ("LF at the end", first + host + rest + b"\n"),
                           ("CR in the middle", first + host + b"X: a\rY: b\r\n" + rest + b"\r\n"),
                           ("CR after a line", first + b"Host: x\r" + rest + b"\r\n"),
                           ("CR CR LF", first + b"Host: x\r\r\n" + rest + b"\r\n"),
                           ("folded", first + host + b"X: a\r\n b\r\n" + rest + b"\r\n"),
                           ("folded by a tab", first + host + b"X: a\r\n\tb\r\n" + rest + b"\r\n"),
                           ("folded last", first + host + rest + b"X: a\r\n b\r\n\r\n"),
                           ("zero byte in a value", first + host + b"X: a\0b\r\n" + rest + b"\r\n"),
                           ("zero byte in a name", first + host + b"X\0Y: a\r\n" + rest + b"\r\n"),
                           ("zero byte in the last value", first + host + rest + b"X: a\0b\r\n\r\n"),
                           ("zero byte in the target", b"POST /v1/tokenize\0x HTTP/1.1\r\n" + host + rest + b"\r\n"),
                           ("no colon", first + host + b"X\r\n" + rest + b"\r\n"), ("no name", first + host + b": x\r\n" + rest + b"\r\n"),
                           ("blank before a name", first + b" Host: x\r\n" + rest + b"\r\n")):
            with self.subTest(name=name):
                status, _, closed = self.raw(head + body)
                self.assertIn(status, (0, 400, 413, 431), name)
                self.assertTrue(closed)
                self.check_alive()

    def test_lines_that_are_unusual_but_right(self):
        first, body = b"POST /v1/tokenize HTTP/1.1\r\n", b'{"text":"a"}'
        rest = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        for name, head in (("no blank", b"Host:x\r\n"), ("blanks", b"Host:  \t x\r\n"), ("blanks behind", b"Host: x\r\nX: a  \t\r\n"),
                           ("empty value", b"Host: x\r\nX:\r\n"), ("blank value", b"Host: x\r\nX: \r\n"),
                           ("a cookie", b"Host: x\r\nCookie: a=b; c=d\r\n"), ("no header but this", b"Host: x\r\n"),
                           ("many", b"Host: x\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"v" * (i % 90)) for i in range(60))),
                           ("a long one", b"Host: x\r\nX: " + b"a" * 8000 + b"\r\n")):
            for cuts in (1, 7):      # in one piece, and in several that the server reads one by one
                with self.subTest(name=name, cuts=cuts), \
                        socket.create_connection(("127.0.0.1", self.daemon.port), timeout=kdserved.PATIENCE) as s:
                    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for again in range(2):       # the connection is kept
                        data = first + head + rest + b"\r\n" + body
                        for i in range(cuts):
                            s.sendall(data[len(data) * i // cuts:len(data) * (i + 1) // cuts])
                            if cuts > 1:
                                kdserved.time.sleep(0.002)
                        self.assertEqual(self.read_reply(s)[0], 200)

    def test_a_get_has_no_body(self):
        status, reply, closed = self.raw(b"GET /live HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        self.assertEqual((status, reply["error"]["field"], closed), (400, "body", True))

    def test_paths_and_methods(self):
        for method, path, status in (("GET", "/index", 404), ("GET", "/v1/scores", 404), ("GET", "/%6cive", 400), ("GET", "/v1/score", 405),
            ("POST", "/live", 405),
                                     ("DELETE", "/v1/model", 405), ("GET", "/v1/runs/../../etc/passwd", 404),
                                         ("GET", "/v1/runs/" + "a" * 65, 404), ("GET", "/v1/runs/A", 404)):
            with self.subTest(path=path):
                got, headers, body = self.daemon.http(method, path, {} if method == "POST" else None)
                self.assertEqual(got, status, body)
                self.assertEqual("Allow" in headers, status == 405)
                self.assertIn("error", json.loads(body))

    def test_headers_too_large(self):
        start, end = b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: ", b"\r\n\r\n"
        for n, status in ((16383, 200), (16384, 200), (16385, 431), (20000, 431)):
            with self.subTest(n=n):
                self.assertEqual(self.raw(start + b"a" * (n - len(start + end)) + end)[0], status)
        for many in (b"X: " + b"a" * 40000 + b"\r\n", b"X: a\r\n" * 4000):
            status, _, _ = self.raw(b"GET /live HTTP/1.1\r\nHost: x\r\n" + many + b"\r\n")
            self.assertIn(status, (0, 413, 431))
            self.check_alive()

    def slow(self, first, drip):
        """Bytes one by one until the server closes; returns whether it did before patience ran out."""
        with socket.create_connection(("127.0.0.1", self.daemon.port), timeout=kdserved.PATIENCE) as s:
            s.sendall(first)
            s.settimeout(0.05)
            end = kdserved.time.monotonic() + kdserved.PATIENCE
            while kdserved.time.monotonic() < end:
                try:
                    s.sendall(drip)
                    if s.recv(1) == b"":
                        return True
                except socket.timeout:
                    continue
                except ConnectionError:
                    return True
        return False

    def test_a_trickle_is_cut_at_the_deadline(self):
        self.assertTrue(self.slow(b"GET /live HTTP/1.1\r\nHost: x\r\nX: ", b"a"), "headers")
        self.assertTrue(self.slow(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n\r\n",
            b" "), "body")
        self.check_alive()

    def test_a_client_that_leaves_in_the_middle_of_a_question_is_let_go(self):
        for rest in (b"POST /v1/sc", b"POST /v1/score HTTP/1.1\r\nHost: x\r\n", b"POST /v1/score HTTP/1.1\r\nHost: x\r\n"
                     b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"):
            with self.subTest(rest=rest), socket.create_connection(("127.0.0.1", self.daemon.port), timeout=kdserved.PATIENCE) as s:
                s.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
                self.assertEqual(self.read_reply(s)[0], 200)
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)      # the bytes and the end in one segment
                s.sendall(rest)
                s.shutdown(socket.SHUT_WR)
                self.assertEqual(s.recv(100), b"")      # far sooner than the five minutes of an idle connection
        self.check_alive()

    def test_small_bodies(self):
        for path, body, field in (("/v1/tokenize", {}, "text"), ("/v1/tokenize", {"text": 1}, "text"),
            ("/v1/tokenize", {"text": "a", "x": 1}, "x"),
                                  ("/v1/detokenize", {"tokens": [999]}, None), ("/v1/detokenize", {"tokens": ["a"]}, "tokens[0]")):
            with self.subTest(path=path, body=body):
                status, reply = self.daemon.post(path, body)
                self.assertEqual(status, 400, reply)
                if field:
                    self.assertEqual(reply["error"]["field"], field)

    def test_without_credit(self):
        with self.daemon.client() as c:
            credits, = struct.unpack("<I", c.welcome[-4:])
            n = credits * 4

            def send():    # beside reading: the server stops reading from a client that does not take its answers
                for i in range(n):
                    c.start_score([[i % 200 + 1] * 60] * 8, top_k=100)

            sender = threading.Thread(target=send)
            sender.start()
            self.addCleanup(sender.join)
            ended = {}
            while len(ended) < n:
                kind, request_id, body = c.receive()
                if kind == kdserved.DONE:
                    ended[request_id] = "done"
                elif kind == kdserved.ERROR:
                    ended[request_id] = ProtocolError(body).code
        self.assertLessEqual(set(ended.values()), {"done", "overloaded"})
        self.assertGreaterEqual(list(ended.values()).count("done"), credits)
        self.check_alive()


if __name__ == "__main__":
    unittest.main(verbosity=2)
