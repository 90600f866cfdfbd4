# SPDX-License-Identifier: Apache-2.0
"""Starts the daemon that was built and speaks to both of its doors. Standard library only; everything polls with a deadline."""
import hashlib
import http.client
import json
import os
import re
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time

import tiny_model

BUILD = os.environ.get("top_builddir", os.getcwd())
PROGRAM = os.path.join(BUILD, "kdserved")
PATIENCE = float(os.environ.get("KDSERVED_TEST_PATIENCE", "60"))    # sanitizer builds are slow
# Of a door's timeouts that a test waits for: more than a busy machine holds up who sends (or shakes hands) without a pause.
SHORT_TIMEOUT = "%dms" % (1000 * PATIENCE / 40)

EXACT = ("--numeric", "f32")     # for tests that hold answers to another way of computing them; what is the default depends on the processor

HELLO, WELCOME, SCORE, ANSWER, DONE, ERROR, PING, PONG, GOAWAY, CALL, REPLY, CANCEL = range(1, 13)
WHOLE = 0xffffffff


def wait_until(condition, what, patience=PATIENCE, pause=0.005):
    """What the condition became. what: it was, or says when asked, what was waited for."""
    end = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("waited too long: %s" % (what() if callable(what) else what))
        time.sleep(pause)    # between looks, not instead of one


# ---- the daemon

class Daemon:
    """One daemon with a tiny model in a directory of its own (kept over restarts when given)."""

    def __init__(self, *arguments, directory=None, wait=True, model=None, patience=PATIENCE, environment=None):
        self.own = directory is None
        self.directory = directory or tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.model = model or os.path.join(self.directory, "model")
        if model is None and not os.path.exists(self.model):
            tiny_model.write(self.model)
        self.socket_path = os.path.join(self.directory, "kd.sock")
        self.lines, self.port, self.patience, self.unread = [], None, patience, b""
        device = [] if "--device" in arguments else ["--device", "cpu"]     # by choice: auto is degraded where a build looks for a GPU in vain
        command = [PROGRAM, "--teacher", self.model, "--threads", "1", "--http", "127.0.0.1:0", "--socket", "unix:" + self.socket_path,
                   *device, *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, env=dict(os.environ, **(environment or {})))
        os.set_blocking(self.process.stderr.fileno(), False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stderr, selectors.EVENT_READ)
        if wait:
            self.wait_line(r": teacher ")

    def read_lines(self, seconds):
        if not self.selector.get_map() or not self.selector.select(seconds):
            return
        data = self.process.stderr.read() or b""
        if not data:
            self.selector.unregister(self.process.stderr)
        *whole, self.unread = (self.unread + data).split(b"\n")
        for line in whole:
            self.lines.append(line.decode(errors="replace"))
            found = re.search(r"listening on https?://127\.0\.0\.1:(\d+)", self.lines[-1])
            if found:
                self.port = int(found.group(1))

    def wait_line(self, pattern):
        end = time.monotonic() + self.patience
        while not any(re.search(pattern, line) for line in self.lines):
            if self.process.poll() is not None and not self.selector.get_map():
                raise AssertionError("kdserved ended with %s:\n%s" % (self.process.returncode, "\n".join(self.lines)))
            if time.monotonic() > end:
                raise AssertionError("no line %r in:\n%s" % (pattern, "\n".join(self.lines)))
            self.read_lines(0.1)

    def log(self):
        self.read_lines(0)
        return "\n".join(self.lines)

    def wait_exit(self):
        end = time.monotonic() + self.patience
        while self.process.poll() is None or self.selector.get_map():
            self.read_lines(0.05)
            if time.monotonic() > end:
                self.process.kill()
                raise AssertionError("kdserved did not end:\n" + "\n".join(self.lines))
        return self.process.returncode

    def stop(self, expect=0):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.wait_exit()
            if expect is not None and status != expect:
                raise AssertionError("kdserved ended with %s, not %s:\n%s" % (status, expect, self.log()))
            if "Sanitizer" in self.log():
                raise AssertionError(self.log())
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.selector.close()
            self.process.stderr.close()
            if self.own:
                shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.stop(expect=None if kind else 0)

    # HTTP

    def http(self, method, path, body=None, headers=None, timeout=PATIENCE):
        """(status, headers, bytes)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            send = dict(headers or {})
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            if body is not None and "Content-Type" not in send:
                send["Content-Type"] = "application/json"
            connection.request(method, path, body=body, headers=send)
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()

    def get(self, path):
        status, _, body = self.http("GET", path)
        return status, json.loads(body)

    def post(self, path, body, **more):
        status, _, data = self.http("POST", path, body, **more)
        return status, json.loads(data)

    def metrics(self):
        status, _, body = self.http("GET", "/metrics")
        assert status == 200, status
        values = {}
        for line in body.decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name] = float(value)
        return values

    def client(self, **more):
        return Client(self.socket_path, **more)


# ---- the binary protocol (kdserved-protocol.7)

CRC_TABLE = []
for n in range(256):
    for _ in range(8):
        n = n >> 1 ^ (0x82f63b78 if n & 1 else 0)
    CRC_TABLE.append(n)


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xffffffff


def frame(kind, request_id=0, body=b"", version=2, magic=b"KDDS", flags=0, body_bytes=None, body_crc=None):
    head = magic + struct.pack("<BBHQIII", version, kind, flags, request_id, len(body) if body_bytes is None else body_bytes, 0,
                               crc32c(body) if body_crc is None else body_crc)
    return head + struct.pack("<I", crc32c(head)) + body


def query(top_k=0, own=False, entropy=False, temperatures=(), first=0, last=-1, values=0):
    return struct.pack("<BBBBIIii", 2, values, len(temperatures), 0, (1 if own else 0) | (2 if entropy else 0), top_k, first, last) + \
        struct.pack("<%df" % len(temperatures), *temperatures)


def score_body(sequences, flags=0, deadline_ms=0, **more):
    q = query(**more)
    body = struct.pack("<IIII", flags, deadline_ms, len(q), len(sequences)) + q
    body += struct.pack("<%dI" % len(sequences), *map(len, sequences))
    for s in sequences:
        body += struct.pack("<%dI" % len(s), *s)
    return body


class Closed(Exception):
    pass


class Refused(AssertionError):
    """No WELCOME for our HELLO."""


class Client:
    """To the path of a unix socket, or over a socket that is connected."""

    def __init__(self, path, hello=True, timeout=PATIENCE, teacher=bytes(32)):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) if isinstance(path, str) else path
        self.socket.settimeout(timeout)
        if isinstance(path, str):
            self.socket.connect(path)
        self.next_id = 1
        if hello:
            self.send(HELLO, 0, struct.pack("<HH", 2, 2) + teacher + struct.pack("<H", 0))
            kind, _, body = self.receive()
            if kind != WELCOME:
                self.socket.close()
                raise Refused((kind, body))
            self.welcome = body

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send_bytes(self, data):
        self.socket.sendall(data)

    def send(self, kind, request_id=0, body=b"", **more):
        self.send_bytes(frame(kind, request_id, body, **more))

    def take(self, n):
        data = bytearray()
        while len(data) < n:
            try:
                piece = self.socket.recv(n - len(data))
            except ConnectionError:
                piece = b""
            if not piece:
                raise Closed()
            data += piece
        return bytes(data)

    def receive(self):
        """(kind, request id, body); checksums are checked."""
        head = self.take(32)
        magic, version, kind, _, request_id, n, _, body_crc, crc = struct.unpack("<4sBBHQIIII", head)
        assert magic == b"KDDS" and version == 2 and crc == crc32c(head[:28])
        body = self.take(n)
        assert body_crc == crc32c(body)
        return kind, request_id, body

    def start_score(self, sequences, **more):
        request_id = self.next_id
        self.next_id += 1
        self.send(SCORE, request_id, score_body(sequences, **more))
        return request_id

    def finish_score(self, request_id):
        """{index: (cached, record bytes)}; raises ProtocolError."""
        answers = {}
        while True:
            kind, got, body = self.receive()
            if kind == GOAWAY:
                continue
            if kind == ERROR and got in (0, request_id):        # 0: the connection is over
                raise ProtocolError(body)
            assert got == request_id, (kind, got, request_id)
            if kind == DONE:
                return answers
            assert kind == ANSWER, kind
            index, flags = struct.unpack("<II", body[:8])
            answers[index] = bool(flags & 1), body[8:]

    def score(self, sequences, **more):
        return self.finish_score(self.start_score(sequences, **more))

    def call(self, method, path, body=b""):
        request_id = self.next_id
        self.next_id += 1
        self.send(CALL, request_id, struct.pack("<BBHI", len(method), 0, len(path), len(body)) + method.encode() + path.encode() + body)
        kind, got, reply = self.receive()
        if kind == ERROR:
            raise ProtocolError(reply)
        assert kind == REPLY and got == request_id, (kind, got)
        status, n = struct.unpack("<II", reply[:8])
        assert n == len(reply) - 8
        return status, reply[8:]


class ProtocolError(Exception):
    def __init__(self, body):
        self.index, code_n, field_n, message_n = struct.unpack("<IBBH", body[:8])
        text = body[8:].decode()
        self.code, self.field, self.message = text[:code_n], text[code_n:code_n + field_n], text[code_n + field_n:]
        assert len(self.message) == message_n
        super().__init__("%s: %s: %s" % (self.code, self.field, self.message))


# ---- records (kdserved-record.5)

class Bits:
    def __init__(self, data):
        self.data, self.at = data, 0

    def bit(self):
        b = self.data[self.at >> 3] >> (self.at & 7) & 1
        self.at += 1
        return b

    def golomb(self, parameter):
        length = parameter
        while self.bit():
            length += 1
        return (1 << length) - (1 << parameter) + sum(self.bit() << i for i in range(length))


def decode_record(data):
    """A list of rows as /v1/score gives them, from an f32 record."""
    magic, _, _, n, crc = struct.unpack("<4sHHII", data[:16])
    assert magic == b"KDRC" and n == len(data) and crc == crc32c(data[:12] + data[16:])
    _, n_tokens, n_rows, query_bytes, n_sections, _ = struct.unpack("<IIIIHH", data[80:100])
    _, values, n_temperatures, _, signals, top_k, first, _ = struct.unpack("<BBBBIIii", data[100:120])
    assert values == 0 and signals < 4
    at = 100 + query_bytes + 4 * n_tokens
    sections = {}
    for _ in range(n_sections):
        tag, _, size = struct.unpack("<HHI", data[at:at + 8])
        sections[tag] = data[at + 8:at + 8 + size]
        at += 8 + size
    assert at == len(data)
    status = sections[1]
    lse = struct.unpack("<%df" % (n_rows * n_temperatures), sections[3])
    bits = Bits(sections[5][1:]) if top_k else None
    rows = []
    for i in range(n_rows):
        if status[i]:
            rows.append({"status": "not_finite"})
            continue
        row = {"status": "ok", "lse": list(lse[i * n_temperatures:(i + 1) * n_temperatures])}
        if top_k:
            ids, previous = [], -1
            for _ in range(top_k):
                previous += 1 + bits.golomb(sections[5][0])
                ids.append(previous)
            logits = struct.unpack_from("<%df" % top_k, sections[6], 4 * i * top_k)
            pairs = sorted(zip(ids, logits), key=lambda p: (-p[1], p[0]))
            row["ids"], row["logits"] = [p[0] for p in pairs], [p[1] for p in pairs]
        if signals & 1:
            own, = struct.unpack_from("<f", sections[8], 4 * i)
            row["own_logit"] = None if own != own else own
            assert (own != own) == (first + i + 1 == n_tokens)
        if signals & 2:
            row["entropy"], = struct.unpack_from("<f", sections[9], 4 * i)
        rows.append(row)
    return rows


def as_f32(row):
    """HTTP's decimal numbers as the floats they stand for."""
    def one(v):
        return v if v is None or isinstance(v, (str, int)) else struct.unpack("<f", struct.pack("<f", v))[0]
    return {k: ([one(x) if k != "ids" else x for x in v] if isinstance(v, list) else one(v)) for k, v in row.items()}


def write_note(store, which, codec="3", name="teacher \\ \"one\""):
    """A note about a teacher beside a store's shards (kdserved-shard(5)); its fingerprint."""
    ids = [bytes([which]) * 32, bytes([9]) * 32]
    fingerprint = hashlib.sha256(b"kdserved teacher 1\n" + b"".join(ids) + b"f32\0" + codec.encode() + b"\0").hexdigest()
    with open(os.path.join(store, fingerprint[:16] + ".teacher"), "w") as f:
        f.write("kdserved teacher 1\nweights %s\ntokenizer %s\nnumeric f32\ncodec %s\nname %s\n" % (ids[0].hex(), ids[1].hex(), codec, name))
    return fingerprint


def read_notes(store):
    """Names and bytes of them all."""
    found = {}
    for name in sorted(os.listdir(store)):
        if name.endswith(".teacher"):
            with open(os.path.join(store, name)) as f:
                found[name] = f.read()
    return found
