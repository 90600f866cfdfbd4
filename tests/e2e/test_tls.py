# SPDX-License-Identifier: Apache-2.0
"""TLS at the HTTP door: who is verified, which versions, who speaks something else, and certificates that are none."""
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import unittest

import kdserved
from kdserved import Daemon

TOKENS = [5, 17, 200, 3]


def make(directory):
    """Certificates and keys (certificates.c says which), by name: (certificate's path, key's path)."""
    subprocess.run([os.path.join(kdserved.BUILD, "tests", "e2e", "certificates"), directory], check=True)
    return {name: tuple(os.path.join(directory, name + suffix) for suffix in (".pem", ".key"))
            for name in ("ca", "good", "elsewhere", "expired", "early", "client", "other")}


class TLS(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)
        made = make(cls.directory)
        (cls.certificate, cls.key), (cls.ca, _), cls.other = made["good"], made["ca"], made["other"]
        cls.daemon = Daemon("--tls-certificate", cls.certificate, "--tls-key", cls.key, "--header-timeout", kdserved.SHORT_TIMEOUT,
                            directory=cls.directory)
        cls.addClassCleanup(cls.daemon.stop)

    def context(self, trusted=None):
        return ssl.create_default_context(cafile=trusted or self.ca)

    def ask(self, method, path, body=None, context=None):
        connection = http.client.HTTPSConnection("127.0.0.1", self.daemon.port, timeout=kdserved.PATIENCE, context=context or self.context())
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"} if body else {})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()

    def test_questions_are_answered(self):
        self.assertIn("listening on https://", self.daemon.log())
        self.assertEqual(self.ask("GET", "/live")[0], 200)
        status, reply = self.ask("POST", "/v1/score", {"sequences": [{"tokens": TOKENS}], "top_k": 3})
        self.assertEqual(status, 200)
        with self.daemon.client() as c:      # a unix socket is never encrypted
            rows = kdserved.decode_record(c.score([TOKENS], top_k=3, temperatures=(1.0,))[0][1])
        self.assertEqual([kdserved.as_f32(r) for r in reply["sequences"][0]["rows"]], rows)

    def test_replies_of_many_records(self):
        context = self.context()
        body = {"sequences": [{"tokens": [i + 1] * 200} for i in range(40)], "top_k": 50}
        for _ in range(3):
            status, reply = self.ask("POST", "/v1/score", body, context)
            self.assertEqual((status, len(reply["sequences"])), (200, 40))

    def test_the_certificate_is_verified(self):
        with self.assertRaises(ssl.SSLCertVerificationError):
            self.ask("GET", "/live", context=self.context(self.other[0]))

    def test_versions(self):
        for version, good in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)):
            with self.subTest(version=version):
                context = self.context()
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = version
                context.set_ciphers("ALL:@SECLEVEL=0")
                if good:
                    self.assertEqual(self.ask("GET", "/live", context=context)[0], 200)
                else:
                    self.assertRaises((ssl.SSLError, ConnectionError), self.ask, "GET", "/live", context=context)

    def closed_after(self, first, drip=b""):
        """Seconds until the server ended the connection, and what it said."""
        began, said = time.monotonic(), b""
        with socket.create_connection(("127.0.0.1", self.daemon.port), timeout=kdserved.PATIENCE) as s:
            s.sendall(first)
            s.settimeout(0.1)
            while time.monotonic() - began < kdserved.PATIENCE:
                try:
                    if drip:
                        s.sendall(drip)
                    piece = s.recv(4096)
                    if not piece:
                        break
                    said += piece
                except socket.timeout:
                    continue
                except ConnectionError:
                    break
        return time.monotonic() - began, said

    def test_others_are_told_nothing(self):
        seconds, said = self.closed_after(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertNotIn(b"HTTP", said)
        self.assertLess(seconds, kdserved.PATIENCE / 4)
        self.assertEqual(self.ask("GET", "/live")[0], 200)

    def test_a_slow_handshake_is_cut(self):
        for first, drip in ((b"", b""), (b"\x16\x03\x01\x02\x00\x01", b"")):
            seconds, said = self.closed_after(first, drip)
            self.assertLess(seconds, kdserved.PATIENCE / 4)
            self.assertEqual(said, b"")

    def check(self, *arguments):
        done = subprocess.run([kdserved.PROGRAM, "--check-config", "--teacher", self.daemon.model, *arguments], capture_output=True,
                              text=True, timeout=kdserved.PATIENCE)
        return done.returncode, done.stderr

    def test_files_that_are_none(self):
        readable = os.path.join(self.directory, "readable.key")
        shutil.copy(self.key, readable)
        os.chmod(readable, 0o644)
        for arguments, text in ((("--tls-certificate", self.certificate), "go together"), (("--tls-key", self.key), "go together"),
                                (("--tls-certificate", self.certificate, "--tls-key", "absent"), "No such file"),
                                (("--tls-certificate", kdserved.__file__, "--tls-key", self.key), "not a PEM file"),
                                (("--tls-certificate", self.certificate, "--tls-key", readable), "chmod o-rwx")):
            with self.subTest(arguments=arguments):
                status, said = self.check(*arguments)
                self.assertEqual(status, 78)
                self.assertIn(text, said)
        strangers = ("--http", "127.0.0.1:0", "--tls-certificate", self.certificate, "--tls-key", self.other[1])
        done = subprocess.run([kdserved.PROGRAM, "--teacher", self.daemon.model, "--socket", "", *strangers], capture_output=True, text=True,
                              timeout=kdserved.PATIENCE)
        for status, said in ((done.returncode, done.stderr), self.check(*strangers)):
            self.assertEqual(status, 78, said)
            self.assertIn("its own key", said)

    def test_other_machines_may_come_with_tokens(self):
        tokens = os.path.join(self.directory, "tokens")
        with open(tokens, "w", opener=lambda p, flags: os.open(p, flags, 0o600)):
            pass
        tls = ("--tls-certificate", self.certificate, "--tls-key", self.key)
        self.assertEqual(self.check("--http", "0.0.0.0:80", "--tokens", tokens, *tls)[0], 0)
        self.assertIn("set tokens", self.check("--http", "0.0.0.0:80", *tls)[1])
        self.assertEqual(self.check("--socket", "tcp:0.0.0.0:80", "--tokens", tokens, *tls)[0], 0)
        self.assertIn("set tokens", self.check("--socket", "tcp:0.0.0.0:80", *tls)[1])
        for door in (("--http", "0.0.0.0:80"), ("--socket", "tcp:0.0.0.0:80")):
            status, said = self.check(*door, "--tokens", tokens)
            self.assertEqual(status, 78)
            self.assertIn("unencrypted: set tls-certificate and tls-key, or set allow-remote", said)
            self.assertEqual(self.check(*door, "--tokens", tokens, "--allow-remote")[0], 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
