# SPDX-License-Identifier: Apache-2.0
"""kdctl and kdserved-worker over TLS: the same as without, and what they say of a server that is not the one expected."""
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import unittest

import kdserved
from kdserved import Daemon
from test_offline import text_of
from test_tls import make
from test_tls_socket import port_of
from test_training import WORKER, corpus, metrics

KDCTL = os.path.join(kdserved.BUILD, "kdctl")


class Pretender:
    """A server with a certificate of one's choice, or (None) one that leaves at once."""

    def __init__(self, pair):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if pair else None
        if pair:
            self.context.load_cert_chain(*pair)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            with s:
                try:
                    if self.context:
                        self.context.wrap_socket(s, server_side=True).close()
                except OSError:
                    pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)
        cls.made = make(cls.directory)
        cls.ca = cls.made["ca"][0]
        certificate, key = cls.made["good"]
        cls.daemon = Daemon("--socket", "tcp:127.0.0.1:0", "--tls-certificate", certificate, "--tls-key", key, directory=cls.directory)
        cls.addClassCleanup(cls.daemon.stop)
        cls.port = port_of(cls.daemon)
        cls.address = "tls:127.0.0.1:%d" % cls.port
        cls.text = os.path.join(cls.directory, "corpus.txt")
        with open(cls.text, "w") as f:
            f.write(corpus(2400))

    def kdctl(self, *arguments, expect=0, **environment):
        done = subprocess.run([KDCTL, *arguments], capture_output=True, text=True, timeout=kdserved.PATIENCE,
                              env=dict(os.environ, **environment))
        self.assertEqual(done.returncode, expect, done.stderr)
        return done.stdout if expect == 0 else done.stderr

    def refused(self, *arguments, says, **environment):
        said = self.kdctl(*arguments, "model", expect=1, **environment)
        self.assertIn(says, said)
        self.assertEqual(said.count("\n"), 1)

    def test_kdctl_answers_the_same(self):
        ask = ("--json", "score", "--top-k", "9", "--temperatures", "1,2", "--values", "f32", self.text)
        plain = self.kdctl("--server", "unix:" + self.daemon.socket_path, *ask).splitlines()
        tls = self.kdctl("--server", self.address, "--ca", self.ca, *ask).splitlines()
        self.assertEqual(plain[:-1], tls[:-1])       # the last line has times
        self.assertGreater(len(plain), 5)
        self.kdctl("--server", "tls:localhost:%d" % self.port, "model", KDSERVED_CA=self.ca)
        self.kdctl("--server", "unix:" + self.daemon.socket_path, "model", KDSERVED_CA=self.ca)

    def test_names(self):
        self.refused("--server", self.address, "--ca", self.ca, "--server-name", "elsewhere.example",
                     says="the certificate of elsewhere.example is for another name")
        with Pretender(self.made["elsewhere"]) as p:
            self.refused("--server", "tls:127.0.0.1:%d" % p.port, "--ca", self.ca, says="the certificate of 127.0.0.1 is for another name")
            self.refused("--server", "tls:127.0.0.1:%d" % p.port, "--ca", self.ca, "--server-name", "elsewhere.example",
                         says="the server closed the connection")       # after a good handshake

    def test_trust(self):
        self.refused("--server", self.address, "--ca", self.made["other"][0], says="the certificate of 127.0.0.1 is not trusted")
        said = self.kdctl("--server", self.address, "model", expect=1, KDSERVED_CA="")
        self.assertRegex(said, "is not trusted|the system trusts no certificates")
        self.refused("--server", self.address, "--ca", self.text, says="no PEM certificates")
        self.refused("--server", self.address, "--ca", "/nonexistent", says="No such file")
        for name, says in (("expired", "has expired"), ("early", "is not valid yet"), ("client", "is not for servers"),
                           ("other", "is not trusted")):
            with self.subTest(name=name), Pretender(self.made[name]) as p:
                self.refused("--server", "tls:127.0.0.1:%d" % p.port, "--ca", self.ca, says=says)

    def test_one_side_alone_speaks_tls(self):
        self.refused("--server", "tcp:127.0.0.1:%d" % self.port, says="the server speaks TLS there")
        with Daemon("--socket", "tcp:127.0.0.1:0") as plain:
            self.refused("--server", "tls:127.0.0.1:%d" % port_of(plain, "tcp"), "--ca", self.ca, says="is not TLS: is it tcp:, not tls:?")
        with Pretender(None) as p:
            self.refused("--server", "tls:127.0.0.1:%d" % p.port, "--ca", self.ca, says="closed during the TLS handshake")
        self.refused("--server", "unix:" + self.daemon.socket_path, "--ca", self.ca, says="is not encrypted")
        self.refused("--server", "tcp:127.0.0.1:1", "--server-name", "x", says="is not encrypted")
        self.assertIn("tls:HOST:PORT is expected", self.kdctl("--server", "tls:nowhere", "model", expect=1))

    # ---- libkdclient

    def run_program(self, name, *arguments):
        program = os.path.join(kdserved.BUILD, "tests", "e2e", name)
        done = subprocess.run([program, self.address, *arguments], capture_output=True, text=True, timeout=300,
                              env=dict(os.environ, KDSERVED_CA=self.ca))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def test_threads_share_a_connection(self):
        self.assertRegex(self.run_program("sharing", "6", "5"), r"\d\d\d answers, 0 wrong")

    def test_many_connections_that_come_and_go(self):
        sums = json.loads(self.run_program("storm", "30", "400", "3"))
        self.assertEqual(sums["wrong"], 0)
        self.assertGreater(min(sums["answers"], sums["left"]), 0)

    # ---- the worker

    def work(self, name, seconds=kdserved.PATIENCE, **keys):
        config, output = os.path.join(self.directory, name + ".conf"), os.path.join(self.directory, name)
        with open(config, "w") as f:
            f.write(text_of(corpus=self.text, epochs=0.5, **keys))
        done = subprocess.run([WORKER, "--config", config, "--output", output], capture_output=True, text=True, timeout=seconds)
        return done.returncode, done.stderr, output

    def test_a_worker_learns_the_same(self):
        status, said, plain = self.work("plain", server="unix:" + self.daemon.socket_path)
        self.assertEqual(status, 0, said)
        status, said, tls = self.work("tls", server=self.address, ca=self.ca, server_name="localhost")
        self.assertEqual(status, 0, said)
        self.assertEqual(metrics(plain), metrics(tls))
        self.assertTrue(metrics(tls))

    def test_another_teacher_of_a_worker_over_tls(self):
        status, said, _ = self.work("two", server="unix:" + self.daemon.socket_path, loss=["forward-kl", "reverse-kl teacher=far"],
                                    other_teacher="far server:%s ca=%s server-name=localhost" % (self.address, self.ca))
        self.assertEqual(status, 0, said)

    def test_a_worker_does_not_wait_for_a_server_that_it_must_not_trust(self):
        began = time.monotonic()
        for name, keys, says in (("stranger", {"server": self.address, "ca": self.made["other"][0]}, "is not trusted"),
                                 ("name", {"server": self.address, "ca": self.ca, "server_name": "elsewhere.example"}, "is for another name"),
                                 ("forgotten", {"server": "tcp:127.0.0.1:%d" % self.port}, "speaks TLS there"),
                                 ("pointless", {"server": "unix:/nowhere", "ca": self.ca}, "is for server = tls:HOST:PORT")):
            with self.subTest(name=name):
                status, said, _ = self.work(name, **keys)
                self.assertNotEqual(status, 0)
                self.assertIn(says, said)
        self.assertLess(time.monotonic() - began, 60 + kdserved.PATIENCE)


if __name__ == "__main__":
    unittest.main(verbosity=2)
