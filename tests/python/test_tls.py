# SPDX-License-Identifier: Apache-2.0
"""The Python client over TLS, in ordinary code and in asyncio: the same answers, and what it says of a server that is not the one expected."""
import asyncio
import os
import shutil
import socket
import tempfile
import time
import unittest

import support
support.need("numpy")

from kdclient import AsyncTeacher, KdError, Reconnect, Teacher
from kdserved import Daemon
from test_tls_clients import Pretender
from test_tls_socket import make, port_of

SEQUENCES = [[(7 * i + 3 * j) % 250 for j in range(200)] for i in range(60)]


class TLS(unittest.TestCase):
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

    def refused(self, says, code, address=None, **more):
        with self.assertRaises(KdError) as caught:
            Teacher.connect(address or self.address, **more).close()
        self.assertIn(says, caught.exception.message)
        self.assertEqual(caught.exception.code, code)

    def test_answers_are_the_same(self):
        with Teacher.connect("unix:" + self.daemon.socket_path) as plain, Teacher.connect(self.address, ca=self.ca) as tls:
            self.assertEqual(plain.info, tls.info)
            wanted = [r.record for r in plain.score(SEQUENCES, top_k=64, own=True)]
            self.assertGreater(sum(map(len, wanted)), 3 << 20)
            self.assertEqual([r.record for r in tls.score(SEQUENCES, top_k=64, own=True)], wanted)
            ahead = [tls.submit(SEQUENCES[i::4], top_k=64, own=True) for i in range(4)]
            for i, pending in enumerate(ahead):
                self.assertEqual([r.record for r in pending.result()], wanted[i::4])
            self.assertEqual(tls.model(), plain.model())
            self.assertLess(tls.ping(), 60)

    def test_asyncio(self):
        async def ask():
            async with await AsyncTeacher.connect("tls:localhost:%d" % self.port, ca=self.ca, reconnect=Reconnect()) as teacher:
                both = await asyncio.gather(teacher.score(SEQUENCES[0], top_k=4), teacher.score(SEQUENCES[1:], top_k=4))
                teacher._link._transport.abort()     # lost: it greets again
                return both, await teacher.score(SEQUENCES[0], top_k=4)
        (one, rest), again = asyncio.run(ask())
        self.assertEqual((one.record, len(rest)), (again.record, len(SEQUENCES) - 1))

    def test_who_is_refused(self):
        self.refused("the certificate of 127.0.0.1 is not trusted", "unauthorized", ca=self.made["other"][0])
        self.refused("is not trusted", "unauthorized")
        self.refused("the certificate of elsewhere.example is for another name", "unauthorized", ca=self.ca, server_name="elsewhere.example")
        for name, says in (("expired", "has expired"), ("early", "is not valid yet"), ("client", "is not for servers"),
                           ("elsewhere", "is for another name")):
            with self.subTest(name=name), Pretender(self.made[name]) as p:
                self.refused(says, "unauthorized", "tls:127.0.0.1:%d" % p.port, ca=self.ca)

    def test_one_side_alone_speaks_tls(self):
        self.refused("the server speaks TLS there", "invalid", "tcp:127.0.0.1:%d" % self.port)
        with Daemon("--socket", "tcp:127.0.0.1:0") as plain:
            self.refused("is not TLS", "invalid", "tls:127.0.0.1:%d" % port_of(plain, "tcp"), ca=self.ca)
        self.refused("is not encrypted", "invalid", "unix:" + self.daemon.socket_path, ca=self.ca)
        self.refused("is not encrypted", "invalid", "tcp:127.0.0.1:1", server_name="x")
        self.refused("No such file", "invalid", ca=os.path.join(self.directory, "absent"))

    def test_a_server_that_does_not_greet_back(self):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            began = time.monotonic()
            self.refused("not connected and welcomed within 0.5 s", "deadline", "tls:127.0.0.1:%d" % silent.getsockname()[1], ca=self.ca,
                         connect_timeout=0.5)
            self.assertLess(time.monotonic() - began, 30)


if __name__ == "__main__":
    support.main()
