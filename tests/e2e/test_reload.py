#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: each setting that can change does, none other; a broken file changes nothing; under load no request is lost or wrong, and nothing
grows. KDSERVED_TEST_RELOADS: how many reloads under load."""
import json
import os
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time
import unittest

import kdserved
from kdserved import Closed, Daemon, ProtocolError, wait_until
from test_notify import Told

KDCTL = os.path.join(kdserved.BUILD, "kdctl")
QUESTION = [5, 17, 200, 3]
GROWTH = 8 << 20       # bytes a process may have more of after many reloads: what its threads' arenas vary by; sanitizers keep what is freed
SANITIZED = bool(os.environ.get("KDSERVED_TEST_SANITIZED"))
RELOADS = int(os.environ.get("KDSERVED_TEST_RELOADS", "100" if SANITIZED else "1000"))


def reloadable():
    """Names, as the program itself says."""
    said = subprocess.run([kdserved.PROGRAM, "--print-config"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^# SIGHUP changes it\.\n#([a-z-]+) =", said, re.M))


class Reloaded(unittest.TestCase):
    """A daemon whose settings file is written anew."""

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.conf = os.path.join(self.directory, "kdserved.conf")
        self.write("")

    def write(self, text):
        with open(self.conf + ".new", "w") as f:
            f.write(text)
        os.rename(self.conf + ".new", self.conf)

    def start(self, *arguments, **environment):
        self.d = Daemon("--config", self.conf, *arguments, directory=self.directory, environment=environment)
        self.addCleanup(lambda: self.d.process.poll() is None and self.d.stop())
        return self.d

    def counts(self):
        m = self.d.metrics()
        return m['kd_reloads_total{result="good"}'], m['kd_reloads_total{result="refused"}']

    def hangup(self, good=True):
        """One reload, until it is counted."""
        before = self.counts()
        self.d.process.send_signal(signal.SIGHUP)
        after = wait_until(lambda: self.counts() != before and self.counts(), lambda: "the reload:\n" + self.d.log())
        self.assertEqual(after, (before[0] + good, before[1] + (not good)), self.d.log())

    def change(self, text):
        self.write(text)
        self.hangup()

    def settings(self):
        return self.d.get("/v1/status")[1]["settings"]


class Settings(Reloaded):
    """Each is wrong for the probe at first, then changed."""

    def score(self, n=1, length=4, **more):
        return self.d.post("/v1/score", {"sequences": [{"tokens": [7] * length}] * n, "top_k": 2, **more})

    def code(self, reply):
        return reply[1].get("error", {}).get("code")

    def welcome(self):
        with self.d.client() as c:
            return struct.unpack("<13I", c.welcome[36:])[10:]      # sequences, bytes of a body, credits

    def closed_after(self, first, then=b""):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", self.d.port), timeout=kdserved.PATIENCE) as s:
            s.sendall(first)
            while s.recv(65536):
                pass
        return time.monotonic() - began

    def probe_max_sequences(self):
        self.assertEqual(self.score(3)[0], 200)
        with self.d.client() as old:
            self.change("max-sequences = 2\n")
            self.assertEqual((self.score(2)[0], self.code(self.score(3))), (200, "too_large"))
            with self.assertRaises(ProtocolError) as refused:
                old.score([QUESTION] * 3, top_k=1)           # a connection that was there before is no exception
            self.assertEqual(refused.exception.field, "sequences")
        self.assertEqual(self.welcome()[0], 2)

    def probe_max_spans(self):
        spans = [[1, 2]] * 3
        self.assertEqual(self.score(spans=spans)[0], 200)
        self.change("max-spans = 2\n")
        self.assertEqual(self.code(self.score(spans=spans)), "too_large")

    def probe_max_samples(self):
        body = {"prompts": [{"tokens": [1, 2]}], "max_tokens": 1, "n": 3}
        self.assertEqual(self.d.post("/v1/generate", body)[0], 200)
        self.change("max-samples = 2\n")
        self.assertEqual(self.code(self.d.post("/v1/generate", body)), "too_large")

    def probe_max_json(self):
        text = {"text": "a" * 3000}
        self.assertEqual(self.d.post("/v1/tokenize", text)[0], 200)
        self.change("max-json = 2K\n")
        self.assertEqual(self.code(self.d.post("/v1/tokenize", text)), "too_large")

    def probe_door_bytes(self):
        text = {"text": "a cat, " * 30000}
        with self.d.client() as lazy:
            body = json.dumps(text).encode()
            lazy.send(kdserved.CALL, 1, struct.pack("<BBHI", 4, 0, 12, len(body)) + b"POST/v1/tokenize" + body)
            wait_until(lambda: self.d.metrics()["kd_door_bytes"] > 1 << 20, "a reply that nobody takes")
            self.assertEqual(self.d.post("/v1/tokenize", text)[0], 200)
            self.change("door-bytes = 1M\n")
            self.assertEqual(self.code(self.d.post("/v1/tokenize", text)), "overloaded")

    def probe_max_body(self):
        with self.d.client() as old:
            self.change("max-body = 2K\n")
            self.assertEqual(self.welcome()[1], 2048)
            self.assertEqual(len(old.score([[1] * 1000], top_k=1)), 1)       # what it was told holds
            with self.d.client() as new:
                with self.assertRaises((ProtocolError, Closed)):
                    new.score([[1] * 1000], top_k=1)

    def probe_credits(self):
        with self.d.client() as old:
            self.change("credits = 1\n")
            self.assertEqual(self.welcome()[2], 1)
            ids = [old.start_score([QUESTION] * 20, top_k=i + 1) for i in range(8)]       # it was told 64
            for _ in ids:
                while old.receive()[0] != kdserved.DONE:
                    pass

    def queue(self, name):
        return self.d.get("/v1/status")[1]["queue"][name]

    def probe_queue_requests(self):
        self.change("queue-requests = 7\n")
        self.assertEqual(self.queue("requests_limit"), 7)

    def probe_queue_tokens(self):
        self.assertEqual(self.score(length=30)[0], 200)
        self.change("queue-tokens = 20\n")
        self.assertEqual((self.score(length=20)[0], self.code(self.score(length=21))), (200, "too_large"))

    def probe_queue_bytes(self):
        wide = {"top_k": 200}
        self.assertEqual(self.score(n=8, length=200, **wide)[0], 200)
        self.change("queue-bytes = 1M\n")
        self.assertEqual(self.code(self.score(n=8, length=200, **wide)), "too_large")

    def probe_header_timeout(self):
        self.change("header-timeout = 1500ms\n")
        self.assertLess(self.closed_after(b"GET /live HT"), 8)      # not 10 s
        began = time.monotonic()
        with self.d.client(hello=False) as c:
            with self.assertRaises(Closed):
                while True:
                    c.receive()
        self.assertLess(time.monotonic() - began, 8)

    def probe_body_timeout(self):
        self.change("body-timeout = 1500ms\n")
        self.assertLess(self.closed_after(b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                                          b"Content-Length: 10\r\n\r\n{"), 30)

    def probe_idle_timeout(self):
        self.change("idle-timeout = 300ms\n")
        self.assertLess(self.closed_after(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n"), 30)

    def probe_write_timeout(self):
        self.change("write-timeout = 300ms\n")
        with self.d.client() as c:
            try:
                for _ in range(4):
                    c.start_score([[i] * 500 for i in range(30)], top_k=200)
            except ConnectionError:
                pass                                            # cut while it still asked, on a busy machine
            before = time.monotonic()
            cut = select.poll()                                 # all may be computed by then, and nothing cancelled
            cut.register(c.socket, 0)                           # the end alone, whatever waits to be read
            self.assertTrue(cut.poll(1000 * kdserved.PATIENCE), "a client that reads nothing is not cut")
            self.assertLess(time.monotonic() - before, 50)

    def probe_drain_timeout(self):
        told = Told(os.path.join(self.directory, "notify"))
        self.d.stop()
        self.start(NOTIFY_SOCKET=os.path.join(self.directory, "notify"))
        self.change("drain-timeout = 7s\n")
        self.d.stop()
        wait_until(lambda: told.has("EXTEND_TIMEOUT_USEC=22000000"), "the new deadline")     # and 15 s for the rest

    def probe_tls(self, name, file):
        """The other file, and what is in the first does not matter any more."""
        from test_certificates import Encrypted
        e = Encrypted()
        e.directory, e.conf, e.addCleanup = self.directory, self.conf, self.addCleanup
        self.d.stop()
        e.start_encrypted()
        trusted = e.renew()
        os.rename(getattr(e, file), getattr(e, file) + ".other")
        e.change(e.rows.replace("%s\n" % getattr(e, file), "%s.other\n" % getattr(e, file)))
        e.shown(trusted)
        self.d = e.d
        self.assertRegex(self.d.log(), "SIGHUP: %s: .* -> .*[.]other" % name)

    def probe_tls_certificate(self):
        self.probe_tls("tls-certificate", "certificate")

    def probe_tls_key(self):
        self.probe_tls("tls-key", "key")

    def probe_log_level(self):
        self.change("log-level = error\n")
        n = self.d.log().count("settings read again")
        self.change("log-level = error\nmax-spans = 9\n")
        self.assertEqual(self.d.log().count("settings read again"), n)
        self.change("")
        wait_until(lambda: self.d.log().count("settings read again") == n + 1, "a line")

    def probe_canary_interval(self):
        key = "kd_canary_right_total"
        before = self.d.metrics()[key]
        self.change("canary-interval = 20ms\n")
        wait_until(lambda: self.d.metrics()[key] >= before + 3, "the known question")
        self.change("canary-interval = 0\n")
        before = self.d.metrics()[key]
        self.assertLessEqual(self.d.metrics()[key], before + 1)

    def probe_audit_interval(self):
        path = os.path.join(self.directory, "tokens")
        said = subprocess.run([KDCTL, "token", "new", "me", "--file", path, "--scopes", "score"], capture_output=True, text=True, check=True)
        self.d.stop()
        self.write("tokens = %s\n" % path)
        self.start()
        reply = self.d.http("POST", "/v1/score", {"sequences": [{"tokens": QUESTION}], "top_k": 2}, {"Authorization": "Bearer " + said.stdout.strip()})
        self.assertEqual(reply[0], 200)
        self.assertNotIn("audit: token=me", self.d.log())        # an hour is not over
        self.write("tokens = %s\naudit-interval = 100ms\n" % path)
        self.d.process.send_signal(signal.SIGHUP)
        self.d.wait_line("audit: token=me requests=1 ")

    def probe_tokens(self):
        first, second = (os.path.join(self.directory, name) for name in ("first", "second"))
        secrets = []
        for path in (first, second):
            said = subprocess.run([KDCTL, "token", "new", "me", "--file", path, "--scopes", "score"], capture_output=True, text=True, check=True)
            secrets.append(said.stdout.strip())
        self.d.stop()
        self.write("tokens = %s\n" % first)
        self.start()

        def statuses():
            body = {"sequences": [{"tokens": QUESTION}], "top_k": 2}
            return [self.d.http("POST", "/v1/score", body, {"Authorization": "Bearer " + s})[0] for s in secrets]
        self.assertEqual(statuses(), [200, 401])
        self.write("tokens = %s\n" % second)
        self.d.process.send_signal(signal.SIGHUP)
        wait_until(lambda: statuses() == [401, 200], "the other file")
        self.write("")                                          # not while running: who may connect was decided with them
        self.d.process.send_signal(signal.SIGHUP)
        self.d.wait_line("a restart is needed for: tokens")
        self.assertEqual(statuses(), [401, 200])

    def with_store(self):
        self.d.stop()
        self.start("--store", os.path.join(self.directory, "store"), "--store-shard", "1M")

    def probe_store_queue(self):
        self.with_store()
        wide = {"dense": True, "durable": True}
        self.assertEqual(self.score(length=1023, **wide)[0], 200)
        self.change("store-queue = 1M\n")
        status, reply = self.score(length=1024, **wide)          # one record of 1024 times 265 logits
        self.assertIn("over the store's limit of 1048576", json.dumps(reply))

    def fill(self):
        for i in range(6):
            self.assertEqual(self.d.post("/v1/score", {"sequences": [{"tokens": [i] * 900}], "dense": True, "durable": True})[0], 200)
        self.assertGreater(self.d.metrics()["kd_store_shards"], 3)

    def probe_store_max_bytes(self):
        self.with_store()
        self.fill()
        self.change("store-max-bytes = 2M\n")
        wait_until(lambda: self.d.metrics()["kd_store_removed_shards_total"] >= 3, "shards to go")
        self.assertLess(self.d.metrics()["kd_store_bytes"], 3 << 20)

    def probe_store_max_age(self):
        self.with_store()
        self.fill()
        self.write("store-max-age = 1s\n")

        def gone():
            self.hangup()
            return self.d.metrics()["kd_store_removed_shards_total"] >= 3
        wait_until(gone, "old shards to go", pause=0.3)

    def with_runs(self, script, *more):
        worker = os.path.join(self.directory, "worker")
        with open(worker, "w") as f:
            f.write("#!/bin/sh\n" + script + "\n")
        os.chmod(worker, stat.S_IRWXU)
        self.d.stop()
        self.start("--runs", os.path.join(self.directory, "runs"), "--worker", worker, *more)

    def run_state(self, name):
        return self.d.get("/v1/runs/" + name)[1]

    def add_run(self, name):
        status, reply = self.d.post("/v1/runs", {"name": name, "config": "corpus = /nowhere\n"})
        self.assertEqual(status, 201, reply)

    def probe_max_running(self):
        self.with_runs("exec sleep 1000")
        for name in ("one", "two"):
            self.add_run(name)
        self.assertEqual(self.run_state("two")["state"], "queued")
        self.change("max-running = 2\n")
        self.assertEqual(self.run_state("two")["state"], "running")

    def probe_run_restarts(self):
        self.with_runs("kill -9 $$")
        self.change("run-restarts = 2\nrun-restart-delay = 10ms\n")
        self.add_run("falls")
        run = wait_until(lambda: self.run_state("falls")["state"] == "failed" and self.run_state("falls"), "the run to fail")
        self.assertEqual(run["restarts"], 2)
        self.assertIn("killed by signal 9", run["reason"])
        self.assertEqual(self.d.metrics()["kd_run_restarts_total"], 2)

    def probe_run_restart_delay(self):
        self.with_runs("kill -9 $$")
        self.change("run-restart-delay = 5min\n")
        self.add_run("falls")
        run = wait_until(lambda: self.run_state("falls")["state"] == "restarting" and self.run_state("falls"), "the run to fall")
        self.assertTrue(290 < run["restarting_in_s"] <= 300)
        self.assertEqual(self.d.metrics()['kd_runs{state="restarting"}'], 1)
        said = subprocess.run([KDCTL, "--server", "unix:" + self.d.socket_path, "runs"], capture_output=True, text=True, check=True).stdout
        self.assertRegex(said, "restarting in (29[0-9]|300) s")
        self.assertEqual(self.d.http("DELETE", "/v1/runs/falls")[0], 200)
        self.assertEqual(self.run_state("falls")["state"], "stopped")
        self.add_run("again")                                   # and one is waiting when the daemon ends
        wait_until(lambda: self.run_state("again")["state"] == "restarting", "the run to fall")

    def probe_run_restart_window(self):
        self.with_runs("kill -9 $$")
        self.change("run-restarts = 1\nrun-restart-delay = 1500ms\nrun-restart-window = 1s\n")
        self.add_run("falls")
        wait_until(lambda: self.run_state("falls").get("restarts", 0) >= 2, "a restart beyond the window's limit")


def each_setting(name):
    def test(self):
        self.start()
        getattr(self, "probe_" + name.replace("-", "_"))()
        if self.d.process.poll() is None:
            self.d.stop()
    return test


for setting in sorted(reloadable()):
    setattr(Settings, "test_" + setting.replace("-", "_"), each_setting(setting))


class Refused(Reloaded):
    def test_a_broken_file_changes_nothing_and_is_told(self):
        told = Told(os.path.join(self.directory, "notify"))
        self.write("max-sequences = 9\n")
        d = self.start(NOTIFY_SOCKET=os.path.join(self.directory, "notify"))
        read = self.settings()["read"]
        for text, line, why in (("max-sequences = 3\nmax-spans = no\n", 2, "max-spans = no: expected"), ("max-sequence = 3\n", 1, 'did you mean "max-sequences"'),
                                ("max-spans = 3\nmax-spans = 4\n", 2, "set twice"),
                                ("max-tokens = 9\nqueue-tokens = 8\n", 1, "queue-tokens = 8 ")):
            self.write(text)
            self.hangup(good=False)
            self.assertRegex(d.log(), re.escape("SIGHUP: %s:%d: " % (self.conf, line)) + ".*" + re.escape(why))
            settings = self.settings()
            self.assertIn(why, settings["why"])
            self.assertEqual(settings["read"], read)
            self.assertEqual(d.post("/v1/score", {"sequences": [{"tokens": QUESTION}] * 10, "top_k": 1})[0], 413)
            self.assertEqual(d.post("/v1/score", {"sequences": [{"tokens": QUESTION}] * 9, "top_k": 1})[0], 200)
        os.unlink(self.conf)
        self.hangup(good=False)
        self.assertIn("No such file", self.settings()["why"])
        wait_until(lambda: any("reload refused: cannot open" in line for _, line in told.look()), "the status text")
        self.change("max-sequences = 10\n")
        self.assertNotIn("why", self.settings())
        self.assertGreater(self.settings()["read"], read)
        self.assertIn("SIGHUP: max-sequences: 9 -> 10", d.log())
        self.assertEqual(d.post("/v1/score", {"sequences": [{"tokens": QUESTION}] * 10, "top_k": 1})[0], 200)

    def test_what_needs_a_restart_is_named_until_it_is_as_before(self):
        d = self.start()
        self.change("max-top-k = 9\nmax-spans = 7\nbatch-tokens = 99\nsocket = unix:/elsewhere\n")
        d.wait_line("SIGHUP: a restart is needed for: max-top-k batch-tokens$")       # --socket is on the command line
        self.assertEqual(self.settings()["restart_needed"], ["max-top-k", "batch-tokens"])
        self.assertEqual(d.metrics()["kd_settings_restart_needed"], 2)
        self.assertEqual(d.post("/v1/score", {"sequences": [{"tokens": QUESTION}], "top_k": 10})[0], 200)
        said = subprocess.run([KDCTL, "--server", "unix:" + d.socket_path, "status"], capture_output=True, text=True, check=True).stdout
        self.assertRegex(said, r'settings\.restart_needed +\["max-top-k","batch-tokens"\]')
        self.change("")
        self.assertEqual(self.settings()["restart_needed"], [])
        self.assertEqual(d.metrics()["kd_settings_restart_needed"], 0)
        self.assertIn("SIGHUP: max-spans: 7 -> 1024", d.log())

    def test_every_other_setting_is_named_and_none_of_them_changes(self):
        """But for those on the command line here, which a file does not change at all."""
        with open(os.path.join(os.environ.get("top_srcdir", "."), "daemon/options.def")) as f:
            rows = set(re.findall(r'^OPTION\(\w+, "([a-z-]+)"', f.read(), re.M)) - {"teacher", "device", "threads", "http", "socket"}
        self.assertFalse(rows & reloadable())
        other = {"numeric": "int8", "gpu-memory": "0.5", "memory": "8G", "stream-directory": self.directory, "allow-remote": "yes",
                 "store": os.path.join(self.directory, "store"), "store-shard": "2M", "store-compression": "zstd",
                 "runs": os.path.join(self.directory, "runs"), "worker": kdserved.PROGRAM}
        other.update({name: "17" for name in rows if name.startswith(("max-", "batch-", "cache-", "generate-"))})
        self.assertEqual(set(other) | {"canary-reference"}, rows)
        d = self.start()
        before = d.get("/v1/model")
        self.change("".join("%s = %s\n" % row for row in other.items()))
        self.assertEqual(set(self.settings()["restart_needed"]), set(other))
        self.assertEqual(d.get("/v1/model"), before)
        self.assertEqual(d.post("/v1/score", {"sequences": [{"tokens": [7] * 100}], "top_k": 100})[0], 200)
        self.assertEqual(sorted(os.listdir(self.directory)), ["kd.sock", "kdserved.conf", "model"])
        self.change("canary-reference = yes\n")
        self.assertEqual(self.settings()["restart_needed"], ["canary-reference"])

    def test_the_environment_and_the_command_line_still_win(self):
        d = self.start("--max-spans", "5", KDSERVED_MAX_SEQUENCES="6")
        self.change("max-spans = 50\nmax-sequences = 60\n")
        self.assertNotIn("->", d.log())
        self.assertEqual(self.settings()["restart_needed"], [])


class Load(Reloaded):
    GOOD = ("queue-requests = 1000\nqueue-tokens = 100000\nmax-sequences = 50\nmax-json = 1M\nidle-timeout = 50s\n",
            "queue-requests = 2000\nqueue-tokens = 200000\nmax-sequences = 60\nmax-json = 2M\nidle-timeout = 60s\n")
    BAD = ("queue-requests = 3000\nqueue-tokens = many\n", "queue-requests = 3000\nqueue-token = 1\n", "max-sequences = 0\n", "\0")

    def setUp(self):
        super().setUp()
        self.write(self.GOOD[0])
        self.stop, self.faults, self.n = threading.Event(), [], 0
        self.questions = [[(7 * i + j) % 260 for j in range(5 + i)] for i in range(8)]

    def asks(self, ask):
        try:
            while not self.stop.is_set():
                ask()
                self.n += 1
        except Exception as e:          # a request that is lost, refused or wrong
            self.faults.append(repr(e))

    def by_http(self):
        status, reply = self.d.post("/v1/score", {"sequences": [{"tokens": q} for q in self.questions], "top_k": 3})
        assert status == 200, reply
        rows = [[kdserved.as_f32(r) for r in s["rows"]] for s in reply["sequences"]]
        assert rows == self.right, "wrong rows"

    def by_frames(self, client):
        answers = client.score(self.questions, top_k=3, temperatures=(1.0,))
        assert [kdserved.decode_record(answers[i][1]) for i in range(8)] == self.right, "wrong records"

    def pairs(self):
        q = self.d.get("/v1/status")[1]["queue"]
        assert (q["requests_limit"], q["tokens_limit"]) in ((1000, 100000), (2000, 200000)), q

    def size(self):
        pid = self.d.process.pid
        with open("/proc/%d/statm" % pid) as f:
            return len(os.listdir("/proc/%d/fd" % pid)), int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def reload_often(self, n):
        for i in range(n):
            good = i % 2 == 0
            self.write(self.GOOD[i // 2 % 2] if good else self.BAD[i // 2 % len(self.BAD)])
            self.hangup(good)
            assert not self.faults, self.faults

    def test_reloads_lose_nothing_and_nothing_grows(self):
        d = self.start()
        with d.client() as c:
            self.right = [kdserved.decode_record(c.score([q], top_k=3, temperatures=(1.0,))[0][1]) for q in self.questions]
        with d.client() as first, d.client() as second:
            asks = [self.by_http, self.by_http, self.pairs, lambda: self.by_frames(first), lambda: self.by_frames(second)]
            threads = [threading.Thread(target=self.asks, args=(ask,)) for ask in asks]
            for t in threads:
                t.start()
            try:
                self.reload_often(20)
                warm = self.n
                before = self.size()
                self.reload_often(RELOADS)
            finally:
                self.stop.set()
                for t in threads:
                    t.join()
            self.assertEqual(self.faults, [])
            self.assertGreater(self.n, warm)
            fds = wait_until(lambda: self.size()[0] <= before[0] and self.size(), lambda: "descriptors: %s" % (self.size(),))
            if not SANITIZED:
                self.assertLess(fds[1] - before[1], GROWTH)
        self.assertEqual(self.counts(), ((20 + RELOADS) / 2, (20 + RELOADS) / 2))
        m = d.metrics()
        for door in ("http", "socket"):
            self.assertEqual(m['kd_requests_accepted_total{door="%s"}' % door], m['kd_requests_answered_total{door="%s"}' % door])


class Check(unittest.TestCase):
    """--check-config"""

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.conf = os.path.join(self.directory, "kdserved.conf")
        self.model = os.path.join(self.directory, "model")
        os.mkdir(self.model)

    def check(self, text, *arguments, **environment):
        with open(self.conf, "w") as f:
            f.write(text)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("KDSERVED_") or k.startswith("KDSERVED_TEST_")}
        done = subprocess.run([kdserved.PROGRAM, "--check-config", "--config", self.conf, *arguments], capture_output=True, text=True,
                              timeout=kdserved.PATIENCE, env={**kept, **environment})
        return done.returncode, done.stdout, done.stderr.replace("kdserved: ", "").replace(self.conf, "conf").splitlines()

    def test_a_good_file(self):
        status, out, err = self.check("teacher = %s\n" % self.model)
        self.assertEqual((status, out, err), (0, "kdserved: the settings are good\n", []))

    def test_all_errors_are_told(self):
        text = ("techer = /x\n"                       # 1
                "max-tokens = many\n"                 # 2
                "max-sequences = 0\n"                 # 3
                "max-spans = 3\n"                     # 4
                "max-spans = 4\n"                     # 5
                "header-timeout = 5 weeks\n"          # 6
                "socket =\n"                          # 7
                "runs = /proc/nowhere/runs\n"         # 8
                "teacher = /nonexistent/model\n"      # 9
                "tls-key = /nonexistent/key\n"        # 10
                "store = /dev/null\n"                 # 11
                "worker = /nonexistent/worker\n"      # 12
                "queue-tokens = 8\n"                  # 13
                "log-level = loud\n"                  # 14
                "words without meaning\n")            # 15
        status, out, err = self.check(text, KDSERVED_QUEUE_BYTES="1", KDSERVED_MAX_TOP_KAY="3", KDSERVED_SERVICE_HOST="10.0.0.1")
        self.assertEqual((status, out), (78, ""))
        for expected in ('conf:1: unknown setting "techer"; did you mean "teacher"?', "conf:2: max-tokens = many: expected a whole number",
                         "conf:3: max-sequences = 0 is below the minimum 1 sequences", "conf:5: max-spans is set twice (before in line 4)",
                         "conf:6: header-timeout = 5 weeks: expected a duration (digits, then ms, s, min, h or d)",
                         "conf:8: runs need the binary door: set socket (conf:7)", "conf:9: teacher = /nonexistent/model: No such file or directory",
                         "conf:10: tls-certificate and tls-key go together: tls-certificate is not set", "conf:11: store = /dev/null: not a directory",
                         "conf:12: worker = /nonexistent/worker: No such file or directory", "conf:8: runs = /proc/nowhere: No such file or directory",
                         "conf:14: log-level = loud: expected one of error|warning|notice|info|debug",
                         'conf:15: expected "key = value", found "words without meaning"',
                         "$KDSERVED_QUEUE_BYTES: queue-bytes = 1 is below the minimum 1048576 bytes",
                         "warning: $KDSERVED_MAX_TOP_KAY is no setting: did you mean $KDSERVED_MAX_TOP_K?"):
            self.assertIn(expected, err)
        self.assertEqual(len(err), 15, err)

    def test_every_setting_says_where_it_is_wrong(self):
        """By its row: what is none of its type, and the first number beyond each end; paths and addresses by what is there."""
        with open(os.path.join(os.environ.get("top_srcdir", "."), "daemon/options.def")) as f:
            rows = re.findall(r'^(?:OPTION|RELOADABLE)\(\w+, "([a-z-]+)", ([A-Z]+), (-?\d+), (\d+), ', f.read(), re.M)
        paths = {"teacher": "/nowhere", "tokens": "/nowhere", "store": "/dev/null", "runs": "/dev/null", "worker": "/nowhere", "http": "127.0.0.1:x",
                 "socket": "unix:relative", "store-compression": "lzma", "tls-certificate": "/nowhere", "tls-key": "/nowhere",
                 "stream-directory": "/nowhere"}
        unit, certificate = {"DURATION": "ms"}, os.path.join(self.directory, "certificate")
        with open(certificate, "w") as f:
            f.write("-----BEGIN CERTIFICATE-----\n")          # as much of one as is looked at before the key
        self.assertGreater(len(rows), 50)
        for name, kind, low, high in rows:
            wrong = [paths[name]] if kind in ("STRING", "LIST") else ["x y", ""] if kind != "AMOUNT" else ["x y"]
            if kind in ("INTEGER", "SIZE", "DURATION", "AMOUNT"):
                wrong += [str(int(high) + 1) + unit.get(kind, "")] + [str(int(low) - 1) + unit.get(kind, "")] * (int(low) > 1)
            for value in wrong:
                others = {"teacher": self.model, "tls-certificate": certificate, "tls-key": "/nowhere"}
                more = "".join("%s = %s\n" % (k, v) for k, v in others.items() if k != name and (k == "teacher" or name.startswith("tls-")))
                more += "memory = 1G\n" if name == "stream-directory" else ""
                with self.subTest(name=name, value=value):
                    status, _, err = self.check("\n\n%s = %s\n%s" % (name, value, more))
                    self.assertEqual(status, 78)
                    self.assertTrue(any(line.startswith("conf:3: ") and name in line for line in err), err)

    def test_both_lines_of_a_contradiction(self):
        status, _, err = self.check("teacher = %s\nmax-tokens = 20\n\nqueue-tokens = 8\n" % self.model)
        self.assertEqual((status, err), (78, ["conf:2: max-tokens = 20 is more than queue-tokens = 8 (conf:4): no such sequence would be let in"]))
        status, _, err = self.check("teacher = %s\nqueue-tokens = 8\n" % self.model, "--max-tokens", "9")
        self.assertEqual((status, err), (78, ["--max-tokens: max-tokens = 9 is more than queue-tokens = 8 (conf:2): no such sequence would be let in"]))

    def test_a_daemon_starts_with_none_of_them(self):
        with open(self.conf, "w") as f:
            f.write("max-tokens = many\nmax-spans = few\n")
        done = subprocess.run([kdserved.PROGRAM, "--config", self.conf], capture_output=True, text=True, timeout=kdserved.PATIENCE)
        self.assertEqual(done.returncode, 78)
        self.assertIn(":1: max-tokens", done.stderr)
        self.assertIn(":2: max-spans", done.stderr)


if __name__ == "__main__":
    unittest.main()
