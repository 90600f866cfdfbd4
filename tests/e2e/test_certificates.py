#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""SIGHUP and the certificate of both doors: who connects is shown the new one, who is connected lives on, a pair that is no good changes nothing."""
import http.client
import json
import os
import re
import shutil
import ssl
import tempfile
import time
import unittest

import kdserved
from kdserved import Client, wait_until
from test_reload import QUESTION, Reloaded
from test_tls import make
from test_tls_socket import connect, port_of

# GnuTLS (3.7) keeps the certificates of a pair that it refuses: its leak, some KiB a time.
LEAKS = os.path.join(os.path.dirname(os.path.realpath(__file__)), "gnutls_leaks.txt")
os.environ["LSAN_OPTIONS"] = "suppressions=%s:print_suppressions=0" % LEAKS


class Encrypted(Reloaded):
    """Doors with a certificate that a file or a credential holds; the unix socket stays plain."""

    def renew(self, which="good"):
        """Another pair in the same files, each of them written beside and renamed, as renewers do; whom a client of it trusts."""
        made = make(tempfile.mkdtemp(dir=self.directory))
        for path, new in zip((self.certificate, self.key), made[which]):
            shutil.copy(new, path + ".new")
            os.chmod(path + ".new", 0o600)
            os.rename(path + ".new", path)
        return ssl.create_default_context(cafile=made["ca"][0])

    def start_encrypted(self, *arguments, in_settings=True, **environment):
        self.certificate, self.key = (os.path.join(self.directory, name) for name in ("tls-certificate", "tls-key"))
        self.rows = "tls-certificate = %s\ntls-key = %s\n" % (self.certificate, self.key)
        trusted = self.renew()
        self.write(self.rows if in_settings else "")
        self.start("--socket", "tcp:127.0.0.1:0", *arguments, **environment)
        self.tls_port = port_of(self.d)
        return trusted

    def call(self, path):
        with self.d.client() as c:
            return c.call("GET", path)[1].decode()

    def counts(self):
        m = dict(line.rsplit(" ", 1) for line in self.call("/metrics").splitlines() if not line.startswith("#"))
        return tuple(float(m['kd_reloads_total{result="%s"}' % r]) for r in ("good", "refused"))

    def settings(self):
        return json.loads(self.call("/v1/status"))["settings"]

    def https(self, trusted):
        c = http.client.HTTPSConnection("127.0.0.1", self.d.port, timeout=kdserved.PATIENCE, context=trusted)
        c.connect()
        self.addCleanup(c.close)
        return c

    def ask(self, c):
        c.request("GET", "/live")
        reply = c.getresponse()
        return reply.status, reply.read()

    def shown(self, trusted):
        """That both doors show who connects now a certificate that such a client takes."""
        c = self.https(trusted)
        self.assertEqual(self.ask(c)[0], 200)
        one = c.sock.getpeercert(True)
        with Client(connect(self.tls_port, trusted)) as c:
            self.assertEqual(c.call("GET", "/live")[0], 200)
            self.assertEqual(c.socket.getpeercert(True), one)
        return one

    def refuses(self, trusted):
        with self.assertRaises(ssl.SSLCertVerificationError):
            self.https(trusted)
        with self.assertRaises(ssl.SSLCertVerificationError):
            connect(self.tls_port, trusted)


class Certificates(Encrypted):
    def test_who_connects_is_shown_the_new_one_and_who_is_connected_lives_on(self):
        before = self.start_encrypted()
        old = self.https(before), Client(connect(self.tls_port, before))
        self.addCleanup(old[1].socket.close)
        self.assertEqual(self.ask(old[0])[0], 200)
        first = self.shown(before)
        for _ in range(3):
            after = self.renew()
            self.shown(before)                                 # a file alone changes nothing
            self.hangup()
            self.assertNotEqual(self.shown(after), first)
            self.refuses(before)
            before = after
        self.assertEqual(self.ask(old[0])[0], 200)
        self.assertEqual(len(old[1].score([QUESTION], top_k=2)), 1)
        self.assertEqual(len(re.findall(r"tls-certificate: another one, good until 20\d\d-", self.d.log())), 3)
        self.hangup()                                          # the same again: nothing to tell
        self.assertRegex(self.d.log(), r"settings read again: 0 changed[^\n]*$")
        self.assertEqual(self.settings()["restart_needed"], [])

    def test_a_handshake_under_way_ends_with_what_it_began_with(self):
        before = self.start_encrypted()
        with connect(self.tls_port) as s, connect(self.d.port) as web:
            self.shown(before)                                 # and so these two were accepted, and given what they will show
            self.renew()
            self.hangup()
            for each in (s, web):
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                half = before.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
                while True:
                    try:
                        half.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        each.sendall(outgoing.read())
                        incoming.write(each.recv(65536))

    def test_a_pair_that_is_no_good_keeps_the_old_one_and_all_else(self):
        trusted = self.start_encrypted()
        first = self.shown(trusted)
        good = {}
        for path in (self.certificate, self.key):
            with open(path) as f:
                good[path] = f.read()
        other = make(tempfile.mkdtemp(dir=self.directory))["good"]

        def restore():
            for path, text in good.items():
                with open(path, "w") as f:
                    f.write(text)
                os.chmod(path, 0o600)

        def put(path, text):
            with open(path, "w") as f:
                f.write(text)
        spoil = (
            (lambda: put(self.certificate, "no certificate"), "tls-certificate = %s: not a PEM file" % self.certificate),
            (lambda: put(self.certificate, ""), "tls-certificate = %s: not a PEM file" % self.certificate),
            (lambda: put(self.certificate, good[self.certificate][:200]), "tls-certificate = %s, tls-key = %s: not a certificate" %
             (self.certificate, self.key)),
            (lambda: shutil.copy(other[1], self.key), "tls-certificate = %s, tls-key = %s: not a certificate and its own key" %
             (self.certificate, self.key)),
            (lambda: put(self.key, "no key"), "tls-key = %s: not a PEM file" % self.key),
            (lambda: os.chmod(self.key, 0o644), "tls-key = %s: anybody may read it" % self.key),
            (lambda: os.unlink(self.key), "tls-key = %s: No such file" % self.key),
            (lambda: os.unlink(self.certificate), "tls-certificate = %s: No such file" % self.certificate))
        self.write(self.rows + "max-spans = 7\n")
        for do, why in spoil:
            with self.subTest(why=why):
                do()
                self.hangup(good=False)
                self.assertIn("SIGHUP: " + why, self.d.log())
                self.assertIn(why, self.settings()["why"])
                self.assertEqual(self.shown(trusted), first)
                self.assertNotIn("max-spans", self.d.log())
                restore()
        self.hangup()
        self.assertIn("SIGHUP: max-spans: 1024 -> 7", self.d.log())
        self.assertEqual(self.shown(trusted), first)

    def test_credentials_are_read_again_too(self):
        before = self.start_encrypted(in_settings=False, CREDENTIALS_DIRECTORY=self.directory)
        self.shown(before)
        after = self.renew()
        self.hangup()
        self.shown(after)
        self.refuses(before)
        self.assertEqual(self.settings()["restart_needed"], [])
        os.rename(self.key, self.key + ".away")
        self.hangup()
        self.assertEqual(self.settings()["restart_needed"], ["tls-certificate"])
        self.shown(after)

    def test_whether_there_is_one_needs_a_restart(self):
        trusted = self.start_encrypted()
        self.change("max-spans = 7\n")
        self.assertEqual(self.settings()["restart_needed"], ["tls-certificate", "tls-key"])
        self.shown(trusted)
        self.d.stop()
        self.write("")
        d = self.start()
        self.write(self.rows)
        Reloaded.hangup(self)
        self.assertEqual(self.settings()["restart_needed"], ["tls-certificate", "tls-key"])
        self.assertEqual(d.get("/live")[0], 200)

    def test_its_end_is_told(self):
        self.start_encrypted()
        key = "kd_tls_certificate_expiry_seconds"

        def expiry():
            return float(re.search("^%s (.*)$" % key, self.call("/metrics"), re.M).group(1))
        self.assertAlmostEqual(expiry(), time.time() + 86400, delta=600)
        self.assertRegex(self.d.log(), "tls-certificate: good until 20")
        wait_until(lambda: re.search(r"tls-certificate: it expires at \S+, in 2[34] h: renew it, then SIGHUP", self.d.log()), "the warning")
        self.assertNotIn("certificate", self.call("/ready"))
        self.renew("expired")
        self.hangup()
        self.assertLess(expiry(), time.time())
        wait_until(lambda: "it expired at" in self.d.log(), "the warning")
        self.assertEqual(json.loads(self.call("/ready")), {"ready": True, "degraded": ["certificate"]})
        self.assertIn('kd_degraded{state="certificate"} 1\n', self.call("/metrics"))
        self.renew()
        self.hangup()
        self.assertEqual(json.loads(self.call("/ready")), {"ready": True})
        self.assertEqual(self.d.log().count("it expires at"), 2)        # not at each look


if __name__ == "__main__":
    unittest.main(verbosity=2)
