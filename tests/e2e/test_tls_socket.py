# SPDX-License-Identifier: Apache-2.0
"""TLS at the binary door: the same bytes as without, versions, who speaks something else or slowly, limits, large answers, the drain."""
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import tempfile
import time
import unittest

import kdserved
from kdserved import Client, Closed, Daemon, wait_until
from test_tls import make
from test_training import WORKER, settings

TOKENS = [5, 17, 200, 3]
MANY = [[(7 * i + j) % 250 for j in range(200)] for i in range(100)]
TLS_ALERT = 0x15


def port_of(daemon, scheme="tls"):
    return int(re.search(r"listening on %s:127\.0\.0\.1:(\d+)" % scheme, daemon.log()).group(1))


def connect(port, context=None, buffer_bytes=None):
    """A socket; with a context its handshake is over, and an end without a farewell is an error."""
    s = socket.socket()
    if buffer_bytes:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    s.settimeout(kdserved.PATIENCE)
    s.connect(("127.0.0.1", port))
    return context.wrap_socket(s, server_hostname="127.0.0.1", suppress_ragged_eofs=False) if context else s


def client_hello(context):
    """The first bytes of a handshake."""
    out = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="127.0.0.1").do_handshake()
    except ssl.SSLWantReadError:
        return out.read()


def read_to_end(s):
    said = b""
    try:
        while piece := s.recv(4096):
            said += piece
    except ConnectionError:
        pass
    return said


class Case(unittest.TestCase):
    arguments = ()

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)
        cls.made = make(cls.directory)
        cls.context = ssl.create_default_context(cafile=cls.made["ca"][0])
        cls.daemon = cls.start("--header-timeout", kdserved.SHORT_TIMEOUT, *cls.arguments)     # it holds the handshake
        cls.addClassCleanup(cls.daemon.stop)
        cls.port = port_of(cls.daemon)

    @classmethod
    def start(cls, *arguments):
        certificate, key = cls.made["good"]
        return Daemon("--socket", "tcp:127.0.0.1:0", "--tls-certificate", certificate, "--tls-key", key, *arguments, directory=cls.directory)

    def client(self, **more):
        return Client(connect(self.port, self.context, **more))


class Door(Case):
    def test_answers_are_the_bytes_of_a_plain_connection(self):
        ask = dict(top_k=7, own=True, entropy=True, temperatures=(1.0, 2.0))
        with self.daemon.client() as plain, self.client() as tls:
            self.assertEqual(plain.score([TOKENS, MANY[0]], **ask), tls.score([TOKENS, MANY[0]], **ask))
            self.assertEqual(plain.welcome, tls.welcome)
            self.assertEqual(tls.call("GET", "/live")[0], 200)

    def test_versions(self):
        for version, good in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)):
            with self.subTest(version=version):
                context = ssl.create_default_context(cafile=self.made["ca"][0])
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = version
                context.set_ciphers("ALL:@SECLEVEL=0")
                if good:
                    with Client(connect(self.port, context)) as c:
                        self.assertEqual(len(c.score([TOKENS], top_k=3)), 1)
                else:
                    self.assertRaises((ssl.SSLError, ConnectionError), connect, self.port, context)

    def test_many_frames_in_one_record(self):
        with self.client() as c:
            c.send_bytes(b"".join(kdserved.frame(kdserved.PING, i + 1, b"x" * 40) for i in range(200)))
            self.assertEqual([c.receive()[:2] for _ in range(200)], [(kdserved.PONG, i + 1) for i in range(200)])

    def test_frames_wait_decrypted_while_answers_are_not_taken(self):
        """Replies of some MiB to one record of questions: the door stops reading in the middle of it and goes on once there is room."""
        path = b"/openapi.json"
        with self.client(buffer_bytes=32768) as c:
            length = len(c.call("GET", path.decode())[1])
            n = (6 << 20) // length + 1
            bodies = [struct.pack("<BBHI", 3, 0, len(path), 0) + b"GET" + path] * n
            c.send_bytes(b"".join(kdserved.frame(kdserved.CALL, 1000 + i, body) for i, body in enumerate(bodies)))
            for i in range(n):
                kind, got, body = c.receive()
                self.assertEqual((kind, got, len(body) - 8), (kdserved.REPLY, 1000 + i, length))

    def test_large_answers_with_a_slow_reader(self):
        with self.daemon.client() as plain:
            wanted = plain.score(MANY, top_k=50)
        self.assertGreater(sum(len(record) for _, record in wanted.values()), 3 << 20)
        with self.client(buffer_bytes=32768) as slow, self.client() as quick:
            asked = slow.start_score(MANY, top_k=50)
            for _ in range(20):                  # nobody else waits for it
                began = time.monotonic()
                self.assertEqual(quick.call("GET", "/live")[0], 200)
                self.assertLess(time.monotonic() - began, kdserved.PATIENCE / 4)
            self.assertEqual({i: r for i, (_, r) in slow.finish_score(asked).items()}, {i: r for i, (_, r) in wanted.items()})

    def test_a_fault_is_told_and_the_end_is_clean(self):
        with self.client() as c:
            c.send(kdserved.WELCOME, 0)
            kind, _, body = c.receive()
            self.assertEqual(kind, kdserved.ERROR)
            self.assertIn(b"does not send", body)
            self.assertEqual(c.socket.recv(100), b"")    # a farewell, or this raises

    def test_who_speaks_no_tls_is_told_so_and_logged_once(self):
        for _ in range(20):
            with connect(self.port) as s:
                s.sendall(kdserved.frame(kdserved.HELLO, 0, struct.pack("<HH", 2, 2) + bytes(34)))
                said = read_to_end(s)
            self.assertLess(len(said), 32)
            self.assertEqual(said[0], TLS_ALERT)
        wait_until(lambda: "no TLS with tcp:127.0.0.1:" in self.daemon.log(), "a line about it")
        with self.client() as c:
            self.assertEqual(c.call("GET", "/live")[0], 200)
        self.assertEqual(self.daemon.log().count("no TLS with"), 1)

    def test_slow_greetings_hold_nobody_up_and_are_cut(self):
        hello = client_hello(self.context)
        slow = [connect(self.port) for _ in range(30)]
        began = time.monotonic()
        for i, s in enumerate(slow):
            s.sendall(hello[:i * 10])
        with self.client() as c:
            self.assertEqual(len(c.score([TOKENS], top_k=3)), 1)
        drip, at, over = slow[-1], 300, False
        while not over and time.monotonic() - began < kdserved.PATIENCE:
            try:
                drip.settimeout(0.1)
                drip.sendall(hello[at:at + 1])   # a byte now and then does not push the end back
                at += 1
                over = drip.recv(100) == b""
            except socket.timeout:
                pass
            except ConnectionError:
                over = True
        self.assertTrue(over)
        self.assertGreater(time.monotonic() - began, 0.5)
        for s in slow:
            s.settimeout(kdserved.PATIENCE)
            self.assertEqual(read_to_end(s), b"")
            s.close()


class Few(Case):
    arguments = ("--max-connections", "4")

    def test_greetings_count_as_connections(self):
        waiting = [connect(self.port) for _ in range(4)]
        with connect(self.port) as fifth:
            self.assertEqual(read_to_end(fifth), b"")
        for s in waiting:
            s.close()

        def free():
            try:
                with self.client() as c:
                    return c.call("GET", "/live")[0] == 200
            except (OSError, Closed):
                return False
        wait_until(free, "room", pause=0.05)


class Life(Case):
    arguments = ("--drain-timeout", "%ds" % kdserved.PATIENCE)

    def test_sigterm_answers_what_was_accepted_and_says_farewell(self):
        with self.client() as c, self.client() as idle, connect(self.port) as greeting:
            greeting.sendall(client_hello(self.context)[:50])
            asked = c.start_score(MANY, top_k=20)
            self.assertEqual(c.receive()[0], kdserved.ANSWER)
            self.daemon.process.send_signal(signal.SIGTERM)
            self.assertEqual(len(c.finish_score(asked)), len(MANY) - 1)
            self.assertEqual(read_to_end(greeting), b"")
            for each in (c, idle):
                self.assertIn(len(read_to_end(each.socket)), (0, 32))    # GOAWAY, unless it came before DONE; without a farewell it raises
            self.assertEqual(self.daemon.wait_exit(), 0)


class Runs(Case):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)
        cls.made = make(cls.directory)

    def test_workers_need_a_plain_socket(self):
        certificate, key = self.made["good"]
        d = Daemon("--socket", "", "--socket", "tcp:127.0.0.1:0", "--tls-certificate", certificate, "--tls-key", key, "--runs",
                   tempfile.mkdtemp(dir=self.directory), directory=self.directory, wait=False)
        self.assertEqual(d.wait_exit(), 78)
        self.assertIn("set socket = unix:PATH too", d.log())
        d.stop(expect=78)

    def test_workers_come_through_it(self):
        certificate, key = self.made["good"]
        path = os.path.join(self.directory, "second.sock")
        with Daemon("--socket", "", "--socket", "tcp:127.0.0.1:0", "--socket", "unix:" + path, "--tls-certificate", certificate, "--tls-key", key,
                    "--runs", tempfile.mkdtemp(dir=self.directory), "--worker", WORKER, directory=self.directory) as d, Client(path) as c:
            asked = json.dumps({"name": "learn", "config": settings(self.directory, steps=4)}).encode()
            status, made = c.call("POST", "/v1/runs", asked)
            self.assertIn(status, (200, 201, 202), made)

            def ended():
                run = json.loads(c.call("GET", "/v1/runs/learn")[1])
                return run if run["state"] in ("succeeded", "failed", "stopped") else None
            run = wait_until(ended, "the run to end", pause=0.1)
            self.assertEqual(run["state"], "succeeded", run)
            self.assertIn("listening on tls:", d.log())


if __name__ == "__main__":
    unittest.main(verbosity=2)
