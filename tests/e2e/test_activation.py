# SPDX-License-Identifier: Apache-2.0
"""Sockets that are passed the way systemd passes them, and the directories of its units."""
import multiprocessing
import os
import re
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import kdserved
import tiny_model
from kdserved import wait_until

ASK = b"POST /v1/score HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
RESTARTS = int(os.environ.get("KDSERVED_TEST_RESTARTS", "10"))
RATE = int(os.environ.get("KDSERVED_TEST_RATE", "1000"))        # connections a second
MOST = 2000                                                    # at once: half of the backlog
BODY = b'{"sequences":[{"tokens":[1,2,3]}],"top_k":2}'


class Passing(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        tiny_model.write(self.path("model"))

    def path(self, name):
        return os.path.join(self.directory, name)

    def unix(self, name):
        s = socket.socket(socket.AF_UNIX)
        self.addCleanup(s.close)
        s.bind(self.path(name))
        s.listen(4096)
        return s

    def tcp(self):
        s = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.addCleanup(s.close)
        return s

    def start(self, passed, *arguments, environment=None):
        """passed: [(name, socket)]. What systemd does between fork and exec."""
        high = [os.dup(s.fileno()) for _, s in passed]
        high = [(os.dup2(fd, 100 + i), os.close(fd))[0] for i, fd in enumerate(high)]

        def pass_sockets():
            for i, fd in enumerate(high):
                os.dup2(fd, 3 + i)

        # in a shell: LISTEN_PID is the pid of what exec leaves
        command = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$0" "$@"', kdserved.PROGRAM, "--teacher", self.path("model"),
                   "--threads", "1", *arguments]
        variables = dict(os.environ, LISTEN_FDS=str(len(passed)), LISTEN_FDNAMES=":".join(name for name, _ in passed), **(environment or {}))
        log = open(self.path("log"), "ab")
        process = subprocess.Popen(command, stderr=log, env=variables, preexec_fn=pass_sockets,
                                   pass_fds=tuple(range(3, 3 + len(passed))))
        log.close()
        for fd in high:
            os.close(fd)

        def end():
            if process.poll() is None:
                process.kill()
                process.wait()
        self.addCleanup(end)
        return process

    def log(self):
        with open(self.path("log"), errors="replace") as f:
            return f.read()

    def stop(self, process):
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(kdserved.PATIENCE), 0, self.log())
        self.assertNotIn("Sanitizer", self.log())

    def ask(self, address):
        with socket.create_connection(address, timeout=kdserved.PATIENCE) as s:
            return self.exchange(s)

    @staticmethod
    def exchange(s):
        s.sendall(ASK % (len(BODY), BODY))
        data = b""
        while piece := s.recv(65536):
            data += piece
        return data


class Arrivals:
    """A process that makes RATE new connections a second, each with one question, however long the answers take (up to what the backlog
    holds)."""

    def __init__(self, address):
        self.address, self.stop, self.answered = address, multiprocessing.Event(), multiprocessing.Value("q", 0)
        self.failures, theirs = multiprocessing.Pipe(duplex=False)
        self.process = multiprocessing.Process(target=self.run, args=(theirs,), daemon=True)
        self.process.start()

    def run(self, failures):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
        failed = []
        self.arrive(failed)
        failures.send(failed)

    def begin(self):
        """A connection on which a question is asked at once: a process that gets few turns must not leave the daemon waiting for it."""
        s = socket.create_connection(self.address, timeout=kdserved.PATIENCE)
        s.sendall(b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        s.setblocking(False)
        return s

    def take(self, s, data, failed):
        """True when the answer has ended."""
        piece = s.recv(65536)
        data += piece
        if piece:
            return False
        if data.startswith(b"HTTP/1.1 200 ") and data.endswith(b"}"):
            self.answered.value += 1
        else:
            failed.append(bytes(data))
        return True

    def arrive(self, failed):
        selector, began, n = selectors.DefaultSelector(), time.monotonic(), 0
        while not self.stop.is_set() or selector.get_map():
            due = (time.monotonic() - began) * RATE if not self.stop.is_set() else 0
            for _ in range(50):
                if n >= due or len(selector.get_map()) >= MOST:
                    break
                n += 1
                try:
                    selector.register(self.begin(), selectors.EVENT_READ, bytearray())
                except OSError as e:
                    failed.append(repr(e))
            for key, _ in selector.select(0.005):
                try:
                    ended = self.take(key.fileobj, key.data, failed)
                except OSError as e:
                    failed.append(repr(e))
                    ended = True
                if ended:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()

    def wait_more(self, log):
        seen = self.answered.value
        wait_until(lambda: self.answered.value > seen + RATE / 20, lambda: "answers\n" + log())

    def end(self):
        """(what failed, how many were answered)"""
        self.stop.set()
        failed = self.failures.recv()
        self.process.join()
        return failed, self.answered.value


class Activation(Passing):
    def test_passed_sockets_stand_in_for_the_settings(self):
        http, binary = self.tcp(), self.unix("kd.sock")
        d = self.start([("socket", binary), ("http", http)], "--http", "127.0.0.1:1")    # nobody may bind that one
        wait_until(lambda: b" 200 " in self.ask(http.getsockname()), "an answer over HTTP")
        with kdserved.Client(self.path("kd.sock")) as c:
            self.assertEqual(len(c.score([[1, 2, 3]], top_k=2)), 1)
        self.assertEqual(len(re.findall(r"listening on .*systemd's socket", self.log())), 2)
        self.stop(d)
        self.assertTrue(os.path.exists(self.path("kd.sock")), "the file of a passed socket is systemd's")

    def test_the_door_that_is_not_passed_opens_as_set(self):
        http = self.tcp()
        d = self.start([("http", http)], "--socket", "unix:" + self.path("own.sock"))
        wait_until(lambda: b" 200 " in self.ask(http.getsockname()), "an answer over HTTP")
        with kdserved.Client(self.path("own.sock")) as c:
            self.assertEqual(len(c.score([[1, 2, 3]], top_k=2)), 1)
        self.stop(d)
        self.assertFalse(os.path.exists(self.path("own.sock")))

    def test_http_may_be_a_unix_socket(self):
        http = self.unix("http.sock")
        d = self.start([("http", http)], "--socket", "")
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(kdserved.PATIENCE)
            s.connect(self.path("http.sock"))
            s.sendall(b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            self.assertIn(b" 200 ", s.recv(4096))
        self.stop(d)

    def refused(self, passed, says, *arguments):
        d = self.start(passed, *arguments)
        self.assertEqual(d.wait(kdserved.PATIENCE), 78, self.log())
        self.assertIn(says, self.log())

    def test_a_start_that_fails_leaves_a_passed_socket_and_its_file(self):
        self.refused([("http", self.unix("http.sock")), ("socket", self.unix("kd.sock"))], "Not a directory", "--store", "/dev/null")
        for name in ("http.sock", "kd.sock"):
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(self.path(name))

    def test_what_is_not_a_door_is_refused(self):
        self.refused([("kdserved.socket", self.tcp())], 'named "kdserved.socket"')
        self.refused([("http", self.tcp()), ("http", self.tcp())], "too many sockets for http")
        plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(plain.close)
        self.refused([("socket", plain)], "not a listening stream socket")

    def test_a_socket_of_virtual_machines_is_not_taken_for_this_machine_s_own(self):
        """Its port lies where IPv4 has the address: this one would read as 127.x.y.z, where no token is needed."""
        try:
            vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        except OSError:
            self.skipTest("no vsock here")
        self.addCleanup(vsock.close)
        vsock.bind((socket.VMADDR_CID_ANY, os.getpid() << 8 | 127))
        vsock.listen()
        self.refused([("socket", vsock)], "not a listening stream socket")

    def test_a_passed_socket_that_others_reach_needs_what_the_setting_needs(self):
        everywhere = socket.create_server(("0.0.0.0", 0))
        self.addCleanup(everywhere.close)
        self.refused([("http", everywhere)], "can be reached from other machines")

    def left_waiting(self, address):
        """A connection to which nobody says anything for now; None when somebody does."""
        s = socket.create_connection(address, timeout=2)
        s.sendall(b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        try:
            s.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            s.settimeout(kdserved.PATIENCE)
            return s
        s.close()
        return None

    def test_who_connects_while_the_other_door_drains_waits_for_the_next_process(self):
        http, binary = self.tcp(), self.unix("kd.sock")
        passed = [("http", http), ("socket", binary)]
        d = self.start(passed)
        wait_until(lambda: b" 200 " in self.ask(http.getsockname()), "an answer over HTTP")
        with kdserved.Client(self.path("kd.sock")) as slow, kdserved.Client(self.path("kd.sock")) as idle:
            request_id = slow.start_score([[i + 1] * 400 for i in range(5)], top_k=256)    # more than its buffer holds
            slow.socket.recv(1, socket.MSG_PEEK)
            d.send_signal(signal.SIGTERM)
            self.assertEqual(idle.receive()[0], kdserved.GOAWAY)
            waiting = wait_until(lambda: self.left_waiting(http.getsockname()), "a connection that is left to the next process")
            self.addCleanup(waiting.close)
            self.assertIsNone(d.poll())
            self.assertEqual(len(slow.finish_score(request_id)), 5)
        self.assertEqual(d.wait(kdserved.PATIENCE), 0, self.log())
        d = self.start(passed)
        self.assertIn(b" 200 ", waiting.recv(4096))
        self.stop(d)

    def test_restarts_under_load_refuse_no_connection(self):
        http = self.tcp()
        d = self.start([("http", http)], "--socket", "")
        wait_until(lambda: b" 200 " in self.ask(http.getsockname()), "an answer over HTTP")
        arrivals = Arrivals(http.getsockname())
        self.addCleanup(arrivals.stop.set)
        began = time.monotonic()
        for i in range(RESTARTS):
            arrivals.wait_more(self.log)
            self.stop(d)
            d = self.start([("http", http)], "--socket", "")
            wait_until(lambda: self.log().count(": teacher ") == i + 2, "the next one")
        arrivals.wait_more(self.log)
        failed, n = arrivals.end()
        self.stop(d)
        print("%d restarts, %.0f connections a second: %d answered, %d failed" % (RESTARTS, n / (time.monotonic() - began), n, len(failed)),
              file=sys.stderr)
        self.assertEqual(failed, [])


class Directories(Passing):
    def test_a_unit_keeps_its_things_in_the_directories_systemd_made(self):
        where = {"STATE_DIRECTORY": self.path("state") + ":/elsewhere", "RUNTIME_DIRECTORY": self.path("run")}
        os.mkdir(self.path("state"))
        os.mkdir(self.path("run"))
        http = self.tcp()
        d = self.start([("http", http)], environment=where)
        wait_until(lambda: b" 200 " in self.ask(http.getsockname()), "an answer over HTTP")
        self.assertTrue(os.path.exists(self.path("run/kdserved.sock")))
        self.stop(d)
        self.assertIn("store %s: " % self.path("state/store"), self.log())
        self.assertTrue(os.path.isdir(self.path("state/runs")))

    def test_settings_win_over_the_directories_of_the_unit(self):
        with open(self.path("conf"), "w") as f:
            f.write("store =\nruns =\nsocket = unix:%s\n" % self.path("mine.sock"))
        d = self.start([("http", self.tcp())], "--config", self.path("conf"),
                       environment={"STATE_DIRECTORY": self.path("state"), "RUNTIME_DIRECTORY": self.path("run")})
        wait_until(lambda: ": teacher " in self.log(), "READY")
        self.assertTrue(os.path.exists(self.path("mine.sock")))
        self.stop(d)
        self.assertNotIn("store ", self.log())
        self.assertFalse(os.path.exists(self.path("state")))


if __name__ == "__main__":
    unittest.main()
