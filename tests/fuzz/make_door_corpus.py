# SPDX-License-Identifier: Apache-2.0
"""Writes the first seeds of tests/fuzz/corpus for connection, client, header_gate, doors, reply, environment, address, bearer, settings, run,
snapshot and corpus: frames of the conformance suite, requests of tests/e2e/malformed, and what is written here. Files with other names, which
fuzzing found, stay. Run it anywhere."""
import hashlib
import json
import os
import random
import re
import struct
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "conformance"))
import kdserved_bytes as kd
from suite_frames import frame_cases

SMALL = 600


def u16(n):
    return struct.pack("<H", n)


# ---- connection: settings, then steps (fuzz_connection.c)

FRAME, RAW, TEACH, TAKE, TIME, GOAWAY, LEAVE, TOKENS = range(8)
QUIET = 128
READY = 0xc0


def frame(kind, body=b"", id=0, cut=0, quiet=False):
    return bytes([FRAME | (QUIET if quiet else 0), kind, id]) + u16(len(body)) + bytes([cut]) + body


def hello(**more):
    return frame(kd.HELLO, kd.hello_body(**more))


def raw(data):
    return b"".join(bytes([RAW, len(part)]) + part for part in (data[i:i + 200] for i in range(0, len(data), 200)))


def score(n=1, **query):
    q = kd.Query(**query) if query else kd.Query(own=True)
    return kd.score_body(q, [[0, 1, 2][:1 + i % 3] for i in range(n)])


def connection_seeds():
    ask, go_on = score(), kd.generate_body([[0, 1]], n=2, max_tokens=4, seed=7)
    opened = bytes([READY | 1]) + hello()
    yield "hello", opened + bytes([TAKE, 255])
    yield "hello-loading", bytes([1]) + hello()
    yield "hello-of-the-second", bytes([READY]) + hello(teacher=b"\x22" * 32)
    yield "hello-of-nobody", bytes([READY]) + hello(teacher=b"\x33" * 32)
    yield "hello-twice", opened + hello()
    yield "hello-with-a-token", bytes([READY]) + hello(token=b"secret")
    yield "no-hello", bytes([READY]) + frame(kd.SCORE, ask, 1)
    yield "score", opened + frame(kd.SCORE, ask, 1) + bytes([TEACH, 0, 0, TAKE, 255])
    yield "score-short", opened + frame(kd.SCORE, kd.score_body(kd.Query(own=True), [[1, 2]], flags=4), 1) + bytes([TEACH, 0, 0, TAKE, 255])
    yield "score-durable", opened + frame(kd.SCORE, kd.score_body(kd.Query(own=True), [[1, 2]], flags=1), 1)
    yield "score-of-many", opened + frame(kd.SCORE, score(8), 1) + bytes([TEACH, 3, 0] * 8) + bytes([TAKE, 255])
    yield "score-of-too-many", opened + frame(kd.SCORE, score(9), 1)
    yield "score-refused", opened + frame(kd.SCORE, kd.score_body(kd.Query(own=True), [[9]]), 1)
    yield "score-twice", opened + frame(kd.SCORE, ask, 1) + frame(kd.SCORE, ask, 1)
    yield "score-again", opened + frame(kd.SCORE, ask, 1) + bytes([TEACH, 0, 0, TAKE, 255]) + frame(kd.SCORE, ask, 1)
    yield "score-of-id-0", opened + frame(kd.SCORE, ask, 0)
    yield "score-failed", opened + frame(kd.SCORE, score(2), 1) + bytes([TEACH, 0, 2, TEACH, 0, 0])
    yield "score-late", opened + frame(kd.SCORE, kd.score_body(kd.Query(own=True), [[1]], deadline_ms=1), 1) + bytes([TEACH, 0, 0])
    yield "score-in-pieces", opened + frame(kd.SCORE, ask, 1, 7) + frame(kd.SCORE, ask, 2, 33) + bytes([TEACH, 1, 0, TEACH, 0, 0])
    yield "no-credit", opened + b"".join(frame(kd.SCORE, ask, i, quiet=True) for i in range(1, 6))
    yield "cancel", opened + frame(kd.SCORE, score(3), 1) + frame(kd.CANCEL, b"", 1) + bytes([TEACH, 0, 1, TEACH, 0, 0, TEACH, 0, 1])
    yield "cancel-late", opened + frame(kd.SCORE, score(2), 1) + bytes([TEACH, 0, 0]) + frame(kd.CANCEL, b"", 1) + bytes([TEACH, 0, 0])
    yield "cancel-of-nothing", opened + frame(kd.CANCEL, b"", 5) + frame(kd.CANCEL, b"x", 5)
    yield "generate", opened + frame(kd.GENERATE, go_on, 2) + bytes([TOKENS, 0, 1, TOKENS, 1, 2, TEACH, 0, 8, TEACH, 0, 4, TAKE, 255])
    streamed = kd.generate_body([[0, 1]], n=1, max_tokens=4, rows=2, seed=7)
    streamed = struct.pack("<I", struct.unpack("<I", streamed[:4])[0] | 2) + streamed[4:]
    yield "generate-streamed", opened + frame(kd.GENERATE, streamed, 2) + bytes([TOKENS, 0, 1, TAKE, 9, TOKENS, 0, 3, TOKENS, 0, 4, TEACH, 0, 4])
    yield "generate-cancelled", opened + frame(kd.GENERATE, streamed, 2) + bytes([TOKENS, 0, 1]) + frame(kd.CANCEL, b"", 2) + bytes([TEACH, 0, 1])
    yield "generate-too-much", opened + frame(kd.GENERATE, kd.generate_body([[0]], n=4, max_tokens=90), 2)
    yield "call", opened + frame(kd.CALL, kd.call_body("GET", "/v1/model"), 3) + bytes([TAKE, 255])
    yield "call-cut", opened + frame(kd.CALL, kd.call_body("GET", "/v1/model")[:-1], 3)
    at_desk, refused = (kd.call_body("POST", "/v1/tokenize", b"x" * n) for n in (1, 2))       # as fuzz_connection.c's desk has it
    yield "call-at-the-desk", opened + frame(kd.CALL, at_desk, 3) + frame(kd.PING, b"hello", 9) + bytes([TEACH, 0, 0, TAKE, 255])
    yield "call-refused", opened + frame(kd.CALL, refused, 3) + bytes([TAKE, 255])
    yield "call-left", opened + frame(kd.SCORE, ask, 1) + frame(kd.CALL, at_desk, 3) + bytes([LEAVE, 1, TEACH, 0, 0])
    yield "calls", opened + frame(kd.CALL, at_desk, 3, quiet=True) * 3 + frame(kd.CALL, at_desk, 4) + bytes([TEACH, 0, 0, TAKE, 255])
    yield "ping", opened + frame(kd.PING, b"hello", 9) + frame(kd.PONG, b"x", 9) + bytes([TAKE, 255])
    yield "ping-too-large", opened + frame(kd.PING, b"x" * 65, 1)
    yield "pings-untaken", bytes([READY | 4]) + hello() + frame(kd.PING, b"x" * 64, 1, quiet=True) * 30
    yield "goaway", opened + frame(kd.SCORE, ask, 1) + bytes([GOAWAY, TEACH, 0, 0, TAKE, 255])
    yield "goaway-before-hello", bytes([READY, GOAWAY])
    yield "silent", bytes([READY, TIME, 255])
    yield "slow-frame", opened + raw(kd.frame(kd.SCORE, 1, ask)[:20]) + bytes([TIME, 255])
    yield "slow-reader", opened + frame(kd.SCORE, ask, 1) + bytes([TEACH | QUIET, 0, 0, TIME, 255])
    yield "leaves", opened + frame(kd.SCORE, score(2), 1) + bytes([LEAVE, 1, TEACH, 0, 0])
    yield "shuts", opened + frame(kd.SCORE, score(2), 1) + bytes([LEAVE, 0, TEACH, 0, 0])
    yield "large-body", bytes([READY]) + hello() + raw(kd.frame(kd.SCORE, 1, b"x" * 5000)[:300])
    yield "server-kinds", opened + frame(kd.WELCOME) + frame(kd.DONE, b"", 1)
    yield "http", bytes([READY]) + raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    yield "raw-conversation", bytes([READY]) + raw(kd.frame(kd.HELLO, 0, kd.hello_body()) + kd.frame(kd.SCORE, 1, ask)) + bytes([TEACH, 0, 0])
    for name, _, _, data, _ in frame_cases():
        if 32 < len(data) <= SMALL and data[5] in (kd.SCORE, kd.GENERATE, kd.CALL):
            yield "suite-" + name, opened + frame(data[5], data[32:], 1, 40) + bytes([TEACH, 0, 0, TAKE, 255])


# ---- client: what is asked, then steps of the server (fuzz_client.c)

SCORE, GENERATE, CALL, PING = range(4)


def sent(kind, id, body=b""):
    return bytes([kind, id]) + u16(len(body)) + body


def true_answer(id, of, index, short=False):
    return bytes([15, id, of | index << 1 | (8 if short else 0)])


def client_seeds():
    both = true_answer(1, 0, 0) + true_answer(1, 1, 1, True) + sent(kd.DONE, 1)
    rows = [[(1, 2.0), (2, 1.0)]] * 2
    first = kd.tokens_frame_body(0, 0, [1, 2], [-1, -1], [-1, -1], [1, 1], b"ab", rows)
    rest, other = (kd.tokens_frame_body(i, n, [1, 2], [-1, -1], [-1, -1], [1, 1], b"ab", rows, (2, kd.NO_ID, kd.NO_ID, 0, 7)) for i, n in ((0, 2), (1, 0)))
    yield "score", bytes([SCORE]) + both + true_answer(2, 1, 1) + true_answer(2, 0, 0) + sent(kd.DONE, 2)
    yield "score-short", bytes([SCORE]) + true_answer(1, 0, 0, True) + true_answer(2, 1, 1, True)
    yield "another-question", bytes([SCORE]) + true_answer(1, 1, 0)
    yield "another-question-short", bytes([SCORE]) + true_answer(1, 1, 0, True)
    yield "twice", bytes([SCORE]) + true_answer(1, 0, 0) * 2
    yield "no-such-index", bytes([SCORE]) + true_answer(1, 0, 3)
    yield "nobody-waits", bytes([SCORE]) + true_answer(3, 0, 0)
    yield "done-early", bytes([SCORE]) + true_answer(1, 0, 0) + sent(kd.DONE, 1)
    yield "sequence-failed", bytes([SCORE]) + sent(kd.ERROR, 1, kd.error_body(1, "invalid", "sequences[1]", "no")) + true_answer(1, 0, 0) + sent(kd.DONE, 1)
    yield "request-failed", bytes([SCORE]) + sent(kd.ERROR, 1, kd.error_body(kd.WHOLE, "overloaded", "", "busy")) + sent(kd.ERROR, 2, kd.error_body(kd.WHOLE, "overloaded", "", "busy"))
    yield "connection-failed", bytes([SCORE]) + sent(kd.ERROR, 0, kd.error_body(kd.WHOLE, "unavailable", "", "no"))
    yield "goaway", bytes([SCORE]) + sent(kd.GOAWAY, 0) + both
    yield "pings", bytes([SCORE]) + sent(kd.PING, 3, b"x" * 64) * 20 + sent(kd.PING, 1, b"y" * 65)
    yield "closed", bytes([SCORE])
    yield "cut", bytes([SCORE]) + sent(0, 0, kd.frame(kd.DONE, 1)[:20])
    yield "http", bytes([SCORE]) + sent(0, 0, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    yield "call", bytes([CALL]) + sent(kd.REPLY, 1, kd.reply_body(200, b"{}"))
    yield "call-failed", bytes([CALL]) + sent(kd.ERROR, 1, kd.error_body(kd.WHOLE, "forbidden", "", "no"))
    yield "call-answered-otherwise", bytes([CALL]) + true_answer(1, 0, 0)
    yield "ping", bytes([PING]) + sent(kd.PONG, 1)
    yield "pong-of-another", bytes([PING]) + sent(kd.PONG, 2) + sent(kd.PONG, 1, b"x")
    yield "generate", bytes([GENERATE]) + b"".join(sent(kd.TOKENS, 1, body) for body in (first, rest, other)) + sent(kd.DONE, 1)
    yield "generate-out-of-order", bytes([GENERATE]) + b"".join(sent(kd.TOKENS, 1, body) for body in (rest, first, other))
    yield "generate-ended-early", bytes([GENERATE]) + b"".join(sent(kd.TOKENS, 1, body) for body in (first, other)) + sent(kd.DONE, 1)
    yield "generate-after-its-last", bytes([GENERATE]) + b"".join(sent(kd.TOKENS, 1, body) for body in (other, other))
    for name, _, _, data, _ in frame_cases():
        if 32 < len(data) <= SMALL:
            for what in {kd.TOKENS: (GENERATE,), kd.REPLY: (CALL,), kd.ERROR: (SCORE, GENERATE)}.get(data[5], ()):
                yield "suite-%s-%d" % (name, what), bytes([what]) + sent(data[5], 1, data[32:]) + sent(kd.DONE, 1)


# ---- header_gate: the length of pieces, then bytes

def malformed(path):
    """Cases of tests/e2e/malformed/http.txt."""
    name, data = None, b""
    for line in open(path, encoding="utf-8"):
        line = line.strip()
        if line.startswith("case "):
            if name:
                yield name, data
            name, data = line.split()[1], b""
        elif line.startswith('"'):
            m = re.fullmatch(r'"((?:[^"\\]|\\.)*)"(?:\s*\*\s*(\d+))?', line)
            text = m.group(1).encode().decode("unicode_escape").encode("latin-1")
            data += text * min(int(m.group(2) or 1), 40)
    if name:
        yield name, data


def header_seeds():
    for name, data in malformed(os.path.join(HERE, "..", "e2e", "malformed", "http.txt")):
        data = data.replace(b"BODY", b'{"a":1}').replace(b"LENGTH", b"7")
        if len(data) <= 2000:
            yield name, b"\0" + data
    post = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    yield "chunk-extension", b"\0" + post + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\n\r\n"
    yield "chunk-extension-ended-by-lf", b"\0" + post + b"Transfer-Encoding: chunked\r\n\r\n2;\n{}\r\n0\r\n\r\nGET /v1/model HTTP/1.1\r\nHost: x\r\n\r\n"
    yield "pipelined", b"\0" + post + b"Content-Length: 2\r\n\r\n{}" * 1 + b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n" * 3
    yield "pipelined-in-pieces", b"\7" + post + b"Content-Length: 2\r\n\r\n{}" + b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n" * 2
    yield "bearer", b"\0GET /v1/model HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer kds_abc\r\n\r\n"
    yield "basic", b"\0GET /v1/model HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YTpi\r\n\r\n"
    yield "byte-by-byte", b"\1GET /live HTTP/1.1\r\nHost: x\r\n\r\n"
    yield "old", b"\0GET /live HTTP/1.0\r\n\r\n"
    yield "empty-lines-first", b"\0\r\n\r\nGET /live HTTP/1.1\r\nHost: x\r\n\r\n"
    yield "many-headers", b"\0GET /live HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(40)) + b"\r\n"


def doors_seeds():
    rng = random.Random(5)
    for i in range(64):
        yield "random-%02d" % i, bytes(rng.randrange(60) if rng.random() < .7 else rng.randrange(256) for _ in range(20 + 3 * i))


def reply_seeds():
    status = u16(200)
    points = [{"step": i, "loss": 3 / (i + 1), "held_out_kl": .5, "learning_rate": 1e-3} for i in range(9)]
    replies = {"object": {"a": 1, "b": {"c": [1, 2], "d": {"e": {"f": {"g": {"h": 1}}}}}, "t": "text", "n": None, "r": .5}, "points": {"points": points},
               "strange-points": {"points": [{"step": "x"}, 1, None, {"step": 1e308, "loss": -1e308}, {"step": -1e308, "loss": 1e308}, {"loss": 1}]},
               "one-point": {"points": points[:1]}, "same-points": {"points": [{"step": 5, "loss": 1}] * 3}, "no-points": {"points": {}},
               "tiny": {"points": [{"step": i, "loss": 5e-324 * i} for i in range(4)]}, "empty": {}, "escape": {"\x1b[2J": "\x1b]0;x\x07"},
               "long": {"k" * 200: "v" * 300}}
    for name, value in replies.items():
        yield name, status + json.dumps(value).encode()
    for name, text in {"not-json": b"<html>", "array": b"[1]", "text": b'"x"', "nothing": b"", "cut": b'{"a":', "twice": b'{"a":1,"a":2}', "nul": b'{"a":"\0"}',
                       "deep": b"[" * 300, "infinite": b'{"points":[{"step":1e999}]}', "latin": b'{"a":"\xe9"}'}.items():
        yield name, status + text
    for i, (steps, losses) in enumerate([([1, 2, 3], [1, 1, 1]), ([3, 2, 1], [1, 2, 3]), ([1, 1, 1], [1, 2, 3]), ([-5, 5], [-1, 1]), ([1e100, 2e100], [1, 2]), ([0, 1], [1e-320, 2e-320]),
                                         ([0, 1e-320], [1, 2]), ([1, 2], [1e99, 1e100]), ([1, 2], [1e100, -1e100]), (range(90), range(90)), ([1, 2, 4], [0, -0.0, 0]),
                                         ([1.5, 2.5], [.1, .2]), ([0], [0]), ([0], [-7]), ([1, 1e16, 2e16], [1, 2, 3]), ([1, 2], [1, 1 + 2e-16]), ([-1e100, 1e100], [1e-300, 1e100]), ([7], [1e-310])]):
        yield "curve-%02d" % i, status + json.dumps({"points": [{"step": x, "loss": y} for x, y in zip(steps, losses)]}).encode()
    for code in (0, 199, 400, 401, 404, 429, 500, 503, 65535):
        yield "status-%d" % code, u16(code) + b'{"error":{"code":"x","message":"what is wrong","field":"f"}}'
    for name, text in {"no-message": b'{"error":{}}', "error-is-text": b'{"error":"x"}', "error-is-list": b'{"error":[1]}', "message-is-number": b'{"error":{"message":1}}'}.items():
        yield "refused-" + name, u16(400) + text


def environment_seeds():
    parts = {
        "unit": ["NOTIFY_SOCKET=@fuzz-nobody", "WATCHDOG_USEC=60000000", "WATCHDOG_PID=self", "STATE_DIRECTORY=/var/lib/kdserved",
                 "RUNTIME_DIRECTORY=/run/kdserved"],
        "passed-http": ["LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=socket:http"],
        "passed-socket": ["LISTEN_PID=self", "LISTEN_FDS=1", "LISTEN_FDNAMES=socket"], "passed-two-sockets": ["LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=socket:socket"],
        "passed-http-twice": ["LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=http:http"], "passed-file": ["LISTEN_PID=self", "LISTEN_FDS=3", "LISTEN_FDNAMES=socket:http:socket"],
        "passed-unnamed": ["LISTEN_PID=self", "LISTEN_FDS=1"], "passed-other-name": ["LISTEN_PID=self", "LISTEN_FDS=1", "LISTEN_FDNAMES=kdserved"],
        "passed-too-many-names": ["LISTEN_PID=self", "LISTEN_FDS=1", "LISTEN_FDNAMES=http:socket"], "passed-too-few-names": ["LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=http"],
        "passed-beyond": ["LISTEN_PID=self", "LISTEN_FDS=4", "LISTEN_FDNAMES=a:b:c:d"], "passed-to-another": ["LISTEN_PID=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=http"],
        "passed-a-lot": ["LISTEN_PID=self", "LISTEN_FDS=4294967295"], "passed-negative": ["LISTEN_PID=self", "LISTEN_FDS=-1"], "passed-nonsense": ["LISTEN_PID=self", "LISTEN_FDS=1x"],
        "two-state-directories": ["STATE_DIRECTORY=/a:/b"], "long-state-directory": ["STATE_DIRECTORY=/" + "x" * 5000], "empty-state-directory": ["STATE_DIRECTORY="],
        "watchdog-0": ["WATCHDOG_USEC=0"], "watchdog-overflow": ["WATCHDOG_USEC=18446744073709551616"], "watchdog-largest": ["WATCHDOG_USEC=18446744073709551614"],
        "notify-vsock": ["NOTIFY_SOCKET=vsock:2:1234"], "notify-relative": ["NOTIFY_SOCKET=x"], "notify-long": ["NOTIFY_SOCKET=/" + "x" * 200], "notify-empty": ["NOTIFY_SOCKET="],
        "settings": ["KDSERVED_TEACHER=/models/a.gguf", "KDSERVED_HTTP=127.0.0.1:0", "KDSERVED_MAX_TOKENS=100", "KDSERVED_DEVICE=cpu"],
        "settings-wrong": ["KDSERVED_MAX_TOKENS=-1"], "settings-unknown": ["KDSERVED_NOTHING=1", "--nothing=1"],
        "arguments": ["--teacher", "/models/a.gguf", "--http=127.0.0.1:0", "--max-tokens", "5"], "argument-twice": ["--max-tokens=5", "--max-tokens=6"],
        "argument-without-value": ["--teacher"], "flags": ["--allow-remote", "--check-config", "--help", "--version"], "flag-with-value": ["--allow-remote=no"],
        "remote": ["--teacher=x", "--http=0.0.0.0:80"], "remote-socket": ["--teacher=x", "--socket=tcp:[::]:81"], "teachers": ["--teacher=a=/x", "--teacher=b=/y", "--teacher=a=/z"],
        "teacher-named-oddly": ["--teacher==x", "--teacher=/", "--teacher=a b=c"], "both-doors-closed": ["--teacher=x", "--http=", "--socket="], "half-of-tls": ["--teacher=x", "--tls-key=k"],
        "credentials": ["CREDENTIALS_DIRECTORY=/nonexistent", "--teacher=x", "--http=1.2.3.4:5"], "journal": ["JOURNAL_STREAM=8:12345"], "journal-nonsense": ["JOURNAL_STREAM=x:"],
        "amounts": ["--gpu-memory=0.5"], "amounts-wrong": ["--gpu-memory=1.5"], "sizes": ["--store-max=1T"], "durations": ["--drain-timeout=90s", "--header-timeout=5ms"],
        "passed-with-settings": ["LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=http:socket", "KDSERVED_HTTP=", "KDSERVED_SOCKET="],
        "list-of-the-environment": ["KDSERVED_SOCKET=unix:/a", "KDSERVED_TEACHER=a=/x"], "list-emptied": ["--socket=unix:/a", "--socket=", "--socket=unix:/b"],
        "empty-argument": ["--", "--="], "status-text": ["line\nbreak\x01"],
    }
    for name, values in parts.items():
        yield name, b"\0".join(v.encode() for v in values)


def address_seeds():
    texts = ["127.0.0.1:8321", "tcp:127.0.0.1:0", "tcp:[::1]:80", "[::]:65535", "0.0.0.0:1", "localhost:99999", "localhost:80", "unix:/run/kdserved/kdserved.sock",
             "unix:relative", "unix:/" + "x" * 106, "unix:/" + "x" * 107, "unix:", "tcp:", ":80", "127.0.0.1:", "127.0.0.1", "[::1:80", "::1:80", "[]:80", "1.2.3.4:+80",
             "1.2.3.4: 80", "1.2.3.4:0x50", "1.2.3.4:080", "1.2.3.4:65536", "256.1.1.1:80", "127.1:80", "127.0.0.1:80:90", "tcp:tcp:127.0.0.1:80", "[::ffff:127.0.0.1]:80",
             "[fe80::1%lo]:80", "[" + "1" * 70 + "]:80", "a" * 63 + ":80", "a" * 64 + ":80", "127.0.0.1:80\n", "UNIX:/x", "unix:/a\xe9", "score", "score,train", "none", "admin,",
             ",admin", "score,score", "score,generate,train,admin", "2027-01-01", "2027-02-31", "2027-02-28T23:59:59Z", "2027-02-28T24:00:00Z", "1970-01-01", "0000-00-00",
             "9999-12-31T23:59:59Z", "name.of_a-token", "x" * 64, "x" * 65, "kds_abc", ""]
    for i, text in enumerate(texts):
        yield "%02d" % i, text.encode()


def bearer_seeds():
    def line(name, secret, rest):
        return "%s %s %s\n" % (name, hashlib.sha256(secret.encode()).hexdigest(), rest)
    good = line("a", "one", "score") + line("b", "two", "admin rate=10 in-flight=2 k-max=5") + line("c", "three", "none expires=2020-01-01")
    yield "good", (good + "\0one\0two\0three\0four").encode()
    yield "reload", (good + "\0one\0#\n" + line("a", "five", "score") + "\0one\0five").encode()
    yield "reload-broken", (good + "\0one\0#\nx y z\0one").encode()
    yield "reload-to-nothing", (good + "\0one\0#\0one").encode()
    yield "reload-other-scopes", (good + "\0#\n" + line("a", "one", "train,generate") + "\0one").encode()
    yield "no-file", b"\0one"
    yield "empty-secret", (line("a", "", "score") + "\0\0").encode()
    yield "long-secret", (line("a", "x" * 256, "score") + "\0" + "x" * 256).encode()
    yield "latin-secret", line("a", "one", "score").encode() + b"\0\xe9\xff"
    yield "one-digest-twice", (line("a", "one", "score") + line("b", "one", "admin") + "\0one").encode()
    rests = ["score", "generate", "train", "admin", "none", "score,generate", "score,score", "", "score rate=0", "score rate=1", "score rate=1000000000000", "score rate=1000000000001",
             "score in-flight=1000000", "score in-flight=1000001", "score k-max=16777216", "score k-max=16777217", "score expires=2999-12-31", "score expires=2999-02-30",
             "score expires=2999-01-01T00:00:00Z", "score rate=1 rate=2", "score what=1", "SCORE", "score\t rate=3", "score  k-max=1", "score#x", "admin expires=1970-01-01",
             "admin expires=1970-01-02", "score rate=18446744073709551616", "score rate=-1", "score rate= 1"]
    for i, rest in enumerate(rests):
        yield "rest-%02d" % i, (line("a", "one", rest) + "\0one").encode()
    for i, name in enumerate(["", "x" * 64, "x" * 65, "kds_secret", "a b", "a/b", "\xe9", ".", "#a"]):
        yield "name-%d" % i, (line(name, "one", "score") + "\0one").encode()
    for i, text in enumerate(["# only a comment\n", "\n\n", "  # x\n", "a deadbeef score\n", "a " + "g" * 64 + " score\n", "x" * 1025, "a\0b"]):
        yield "text-%d" % i, text.encode()


def settings_seeds():
    base = "teacher = unix:/run/kdserved/kdserved.sock\ncorpus = a.txt\nstudent = config.json\nsteps = 10\n"
    yield "base", base.encode()
    for i, line in enumerate(["steps = 0", "steps = 99999999999999999999", "steps = -1", "epochs = 1e400", "learning-rate = 3e-4", "learning-rate = nan", "learning-rate = inf",
                              "learning-rate = 0x1p-3", "warmup = 20", "held-out = 1.5", "held-out = .1", "corpus = b.txt", "corpus =", "loss = forward-kl", "loss = forward-kl weight=.5",
                              "loss = ", "loss = nothing", "precision = bf16", "precision = f64", "packing = bfd", "teacher = shards:/a,/b", "teacher = shards:", "teacher = labels",
                              "order = sequential", "patience = 10 min", "patience = 1h 2m", "micro-batch = 8", "micro-batch = 8.5", "sequence-length = 1", "sequence-length = 2147483648",
                              "mlm = yes", "mlm = maybe", "quantize = int4", "optimizer = lion", "guard = stop", "beta1 = 1", "export = best", "nonsense = 1", "steps", "= 5", "steps == 5",
                              "steps = 5 # comment", "# steps = 5", "\tsteps\t=\t5\t", "steps = 5\r", "corpus-prompt = prompt", "rollouts = adaptive", "domains = yes", "reweight = focal",
                              "other = a:unix:/x", "teacher-layers = 3", "early-stop = 2", "tied-head = 1", "family = gpt2"]):
        yield "line-%02d" % i, (base + line + "\n").encode()
    yield "empty", b""
    yield "nul", base.encode() + b"steps\0 = 5\n"
    yield "no-end", base.encode() + b"seed = 7"


def run_seeds():
    lines = b'{"step":1,"steps":10,"loss":3.5,"state":"running"}\n{"step":2,"loss":3.25,"x":null,"y":true}\n'
    for piece in (0, 1, 7, 255):
        yield "lines-%d" % piece, bytes([0, piece]) + lines
    for i, more in enumerate([b'{"step":1e308}\n{"step":-1e308}\n', b'{"step":5e-324}\n{"step":1e-323}\n', b'[1]\n', b'{"a":{"b":1}}\n', b'{"A":1}\n{"a b":1}\n', b'{"' + b"k" * 41 + b'":1}\n',
                              b'{"k":"' + b"v" * 257 + b'"}\n', b'x' * 5000 + b'\n{"step":3}\n', b'{"step":3}', b'\n\n', b'{"a":1,"a":2}\n', b'{"state":"stopped"}\n', b'\xff\xfe\n',
                              b'{"' + b'","'.join(b"k%d" % i for i in range(3)) + b'"}\n', b"{" + b",".join(b'"k%d":%d' % (i, i) for i in range(70)) + b"}\n", b'{"step":9223372036854775807}\n']):
        yield "line-%02d" % i, b"\0\0" + more
    base = {"id": "run", "state": "running", "created": 1.5, "started": 2, "pid": 77, "resumed": True, "progress": {"step": 3}}
    yield "status", b"\1" + json.dumps(base).encode()
    for i, change in enumerate([{"state": "x"}, {"state": 1}, {"created": 1e308}, {"pid": 1e30}, {"pid": -1}, {"pid": 1.5}, {"pid": "x"}, {"reason": "y" * 400}, {"progress": [1]},
                                {"progress": {"a": {"b": 1}}}, {"finished": -5}, {"resumed": 1}, {"state": "succeeded", "finished": 3}, {"reason": 5}, {"pid": -9.3e18}]):
        yield "status-%02d" % i, b"\1" + json.dumps({**base, **change}).encode()
    for i, text in enumerate([b"", b"{}", b"[", b"null", b'{"state":"failed","state":"queued"}', b"\0" * 20]):
        yield "status-text-%d" % i, b"\1" + text
    metrics = b"".join(b'{"step":%d,"loss":%.2f}\n' % (i, 5 / (i + 1)) for i in range(30))
    yield "metrics", b"\2" + metrics
    yield "metrics-resumed", b"\2" + metrics + metrics[200:]
    yield "metrics-cut", b"\2" + metrics[:-5]
    yield "metrics-strange", b"\2" + b'x\n{"step":"a"}\n[]\n{"loss":1}\n{"step":1e999}\n{"step":2}\n{"step":1}\n\n'
    yield "metrics-long-line", b"\2" + b'{"step":1,"x":"' + b"y" * 5000 + b'"}\n{"step":2}\n'
    yield "metrics-one", b"\2\n"
    for i, text in enumerate([b"", b"\n\n", b"error: no\n", b"a\r\nb\r\n  \n", b"x" * 400, b"\x1b[2Jx\xe9\n", b"one\ntwo", b"y" * 5000 + b"\nlast\n"]):
        yield "log-%d" % i, b"\3" + text


def snapshot_state(**more):
    zero = "0" * 64
    evaluation = dict(kl=1.5, ce=2.5, agreement=.5, teacher_ce=2, bits_per_byte=-1, teacher_bits_per_byte=1, n_positions=10)
    state = dict(version=4, step=10, position=80, n_positions=1000, n_masked=1, seconds=1.5, teacher=zero, dataset=zero, seed=7, sequence_length=16, batch=8, n_held_out=2,
                 sequential=0, adaptive=[.5], rollout_chance=.1, rollout_reference=2, guard=[0.0] * 11, n_evaluations=1, before=evaluation, last=evaluation, best=evaluation,
                 best_evaluation=0, settings=["steps = 5", "seed = 7"])
    state.update(more)
    return {k: v for k, v in state.items() if v is not ...}


def snapshot_seeds():
    yield "state", b"\0" + json.dumps(snapshot_state()).encode()
    for i, change in enumerate([dict(version=3), dict(step=-1), dict(step=1.5), dict(step=2 ** 63 - 1), dict(teacher="x"), dict(teacher="0" * 63), dict(adaptive=...), dict(adaptive=[1] * 200),
                                dict(adaptive=["x"]), dict(adaptive=5), dict(guard=[0] * 10), dict(guard=[1] * 11), dict(guard=["x"] * 11), dict(n_evaluations=0), dict(before=...),
                                dict(best={}), dict(domains=dict(position=4, shares=[.5, .5], taken=[1, 2])), dict(domains=dict(position=4, shares=[], taken=[])),
                                dict(domains=dict(position=4, shares=[.5] * 65, taken=[1] * 65)), dict(domains=dict(position=4, shares=[.5], taken=[-1])), dict(domains=5), dict(settings=5),
                                dict(settings=[1, 2]), dict(settings=[""]), dict(settings=["a\nb"]), dict(settings=[]), dict(seconds=1e308), dict(seconds="x"), dict(rollout_chance=...),
                                dict(seed=2 ** 62)]):
        yield "state-%02d" % i, b"\0" + json.dumps(snapshot_state(**change)).encode()

    def passage(number, first, tokens, mixed=0.0):
        return struct.pack("<IIId", number, first, len(tokens), mixed) + struct.pack("<%dI" % len(tokens), *tokens) + struct.pack("<d", -1.5) * (2 * (len(tokens) - first))

    def replay(*passages, magic=b"krp1", n=None):
        return b"\1" + magic + struct.pack("<I", len(passages) if n is None else n) + b"".join(passages)
    one = passage(0, 1, [1, 2, 3])
    yield "replay-empty", replay()
    yield "replay", replay(one, passage(1, 2, [4, 5, 6, 7], .5))
    yield "replay-full", replay(*(passage(i, 1, [i, i + 1]) for i in range(4)))
    yield "replay-too-many", replay(*(passage(i, 1, [i, i + 1]) for i in range(5)))
    yield "replay-longest", replay(passage(0, 15, list(range(16))))
    yield "replay-too-long", replay(passage(0, 16, list(range(17))))
    yield "replay-first-0", replay(passage(0, 0, [1, 2]))
    yield "replay-first-last", replay(passage(0, 2, [1, 2]))
    yield "replay-vocabulary", replay(passage(0, 1, [1, 100]))
    yield "replay-mixed", replay(passage(0, 1, [1, 2], 2))
    yield "replay-nan", replay(passage(0, 1, [1, 2], float("nan")))
    yield "replay-cut", replay(one)[:-3]
    yield "replay-more", replay(one) + b"x"
    yield "replay-magic", replay(one, magic=b"krp2")
    yield "replay-count", replay(one, n=0xffffffff)
    yield "replay-number", replay(passage(9, 1, [1, 2]), passage(9, 1, [1, 2]))
    for i in range(6):
        yield "replay-random-%d" % i, replay(*(passage(k, 1 + k % 2, list(range(k, k + 4 + i)), k / 5) for k in range(1 + i % 4)))


def corpus_seeds():
    texts = [b"", b"a", b"ab ab a b\n", b"a b" * 40, b"ab\r\nab\r\n", b"<x>ab<x>", b"\xe6\xbc\xa2 a", b"\xff\xfe a", b"a\0b", b"\n\n\n"]
    for i, text in enumerate(texts):
        for packing in (0, 1, 2):
            yield "text-%d-%d" % (packing, i), bytes([packing]) + text
    lines = [b'{"text":"ab ab ab"}\n{"text":"a"}\n', b'{"text":""}\n', b'{"text":1}\n', b"{}\n", b"[]\n", b"x\n", b'{"text":"a","text":"b"}\n', b'\r\n{"text":"ab"}\r\n', b'{"text":"ab"',
             b'{"text":"\\u0000a"}\n', b'{"text":"' + b"ab" * 300 + b'"}\n', b'{"a":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]],"text":"a"}\n']
    for i, text in enumerate(lines):
        yield "lines-%d" % i, bytes([8 | i % 3]) + text
    prompts = [b'{"prompt":"ab","text":"a b a b"}\n', b'{"prompt":"ab"}\n', b'{"prompt":"' + b"a" * 50 + b'","text":"b"}\n', b'{"prompt":"","text":"ab"}\n', b'{"prompt":"a","text":""}\n',
               b'{"prompt":"a","text":"b","finish":"length"}\n{"prompt":"a","text":"b","finish":5}\n', b'{"prompt":1,"text":"b"}\n', b'{"prompt":"a","text":"abab","finish":"stop"}\n' * 5]
    for i, text in enumerate(prompts):
        yield "prompts-%d" % i, bytes([12 | i % 3]) + text


FOLDERS = {"connection": connection_seeds, "client": client_seeds, "header_gate": header_seeds, "doors": doors_seeds, "reply": reply_seeds,
           "environment": environment_seeds, "address": address_seeds, "bearer": bearer_seeds, "settings": settings_seeds, "run": run_seeds, "snapshot": snapshot_seeds,
           "corpus": corpus_seeds}

if __name__ == "__main__":
    for folder, seeds in FOLDERS.items():
        path = os.path.join(HERE, "corpus", folder)
        os.makedirs(path, exist_ok=True)
        for name, data in seeds():
            with open(os.path.join(path, name), "wb") as f:
                f.write(data)
