#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What operators watch: the account of requests at any scrape, a fixed set of series, quick scrapes under load, named states of health; and
that the alert rules and the dashboard name metrics that exist."""
import json
import os
import re
import socket
import tempfile
import threading
import time
import unittest

import kdserved
import tiny_model
from kdserved import Closed, Daemon, ProtocolError, wait_until
from test_tls import make

SOURCE = os.environ.get("top_srcdir", os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", ".."))
CLIENTS = int(os.environ.get("KDSERVED_TEST_CLIENTS", "100000"))
SCRAPE_S = float(os.environ.get("KDSERVED_TEST_SCRAPE_S", "0.010"))


def parts(text):
    """{name without labels} of metrics, of a text."""
    return set(re.findall(r"\bkd_[a-z_]+", text))


class Accounts(unittest.TestCase):
    DOORS = ("http", "socket")

    def check_account(self, m):
        for door in self.DOORS:
            n = {what: m['kd_requests_%s{door="%s"}' % (what, door)] for what in
                 ("accepted_total", "answered_total", "rejected_total", "cancelled_total", "in_flight")}
            self.assertEqual(n["accepted_total"], n["answered_total"] + n["rejected_total"] + n["cancelled_total"] + n["in_flight"], door)
            self.assertGreaterEqual(n["in_flight"], 0)
        return m

    def ask_http(self, d, stop, number):
        i = 0
        while not stop.is_set():
            i += 1
            tokens = [(number * 31 + i + j) % 256 for j in range(40 if i % 3 else 400)]      # 400 are too many
            d.http("POST", "/v1/score", {"sequences": [{"tokens": tokens}], "top_k": 4 if i % 5 else 1 << 20})

    def ask_and_leave(self, d, stop, number):
        i = 0
        while not stop.is_set():
            i += 1
            body = json.dumps({"sequences": [{"tokens": [(number + i + j) % 256 for j in range(100)]} for _ in range(8)], "top_k": 4})
            with socket.create_connection(("127.0.0.1", d.port)) as s:
                s.sendall(("POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" %
                           (len(body), body)).encode())
                time.sleep(0.001 * (i % 4))

    def ask_socket(self, d, stop, number):
        i = 0
        while not stop.is_set():
            with d.client() as c:
                for _ in range(5):
                    i += 1
                    try:
                        c.score([[(number + i + j) % 256 for j in range(50)]], top_k=4 if i % 4 else 1 << 20)
                    except ProtocolError:
                        pass
                c.start_score([[(number + i) % 256] * 100] * 4, top_k=4)     # and leaves

    def test_the_account_is_exact_at_any_scrape_and_the_series_stay_the_same(self):
        with Daemon("--max-tokens", "256", "--queue-requests", "6") as d:
            series = set(d.metrics())
            ended = [(what, door) for door in self.DOORS for what in ("answered", "rejected", "cancelled")]
            stop = threading.Event()
            threads = [threading.Thread(target=ask, args=(d, stop, 100 * i)) for i, ask in
                       enumerate([self.ask_http] * 2 + [self.ask_and_leave] + [self.ask_socket] * 2)]
            for t in threads:
                t.start()
            busy, n, quick = 0, 0, []
            try:
                end = time.monotonic() + 6
                seen = False
                while time.monotonic() < end or (not seen and time.monotonic() < end + kdserved.PATIENCE):
                    began = time.monotonic()
                    m = self.check_account(d.metrics())
                    quick.append(time.monotonic() - began)
                    busy += m['kd_requests_in_flight{door="http"}'] + m['kd_requests_in_flight{door="socket"}'] > 0
                    n += 1
                    seen = n > 10 and busy > n // 10 and all(m['kd_requests_%s_total{door="%s"}' % each] for each in ended)
            finally:
                stop.set()
                for t in threads:
                    t.join()
            self.assertGreater(n, 10)
            self.assertGreater(busy, n // 10, "hardly ever anything under way")

            def quiet():
                m = self.check_account(d.metrics())
                return m if all(m['kd_requests_in_flight{door="%s"}' % door] == 0 for door in self.DOORS) else None
            m = wait_until(quiet, "nothing under way")
            self.assertEqual(set(m), series)
            for each in ended:
                self.assertGreater(m['kd_requests_%s_total{door="%s"}' % each], 0, each)
            for stage in "queue", "batch", "forward", "epilogue", "encode", "request":
                self.assertGreater(m["kd_%s_seconds_count" % stage], 0, stage)
                self.assertEqual(m["kd_%s_seconds_count" % stage], m['kd_%s_seconds_bucket{le="+Inf"}' % stage], stage)
            self.assertEqual(m["kd_batch_seconds_count"], m["kd_forward_seconds_count"])
            quick.sort()
            print("scrapes: %d, median %.1f ms, p90 %.1f ms" % (n, 1e3 * quick[n // 2], 1e3 * quick[n * 9 // 10]))

    def outcomes(self, d, door):
        """(answered, rejected, cancelled) once nothing is under way."""
        m = wait_until(lambda: (m := d.metrics())['kd_requests_in_flight{door="%s"}' % door] == 0 and m, "the request to be over")
        self.check_account(m)
        return [m['kd_requests_%s_total{door="%s"}' % (what, door)] for what in ("answered", "rejected", "cancelled")]

    def test_an_answer_that_its_client_did_not_take_is_not_answered(self):
        """Computed whole, larger than what the kernel holds for a client; then the client is cut for taking nothing, or leaves."""
        many = [[i % 256, i // 256] + [7] * 510 for i in range(16)]
        body = json.dumps({"sequences": [{"tokens": t} for t in many], "top_k": 264}).encode()
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        with tempfile.TemporaryDirectory(prefix="kdserved-watch-") as store, \
                Daemon("--max-tokens", "512", "--store", store, "--write-timeout", kdserved.SHORT_TIMEOUT) as d:
            with d.client() as c:
                c.score(many, top_k=264)                   # from now on the store answers at once
            self.assertEqual(self.outcomes(d, "socket"), [1, 0, 0])
            for n, leaves in ((1, False), (2, True)):
                with d.client() as c, socket.create_connection(("127.0.0.1", d.port)) as web:
                    web.sendall(head + body)
                    c.start_score(many, top_k=264)
                    wait_until(lambda: d.metrics()["kd_sequences_cached_total"] == 2 * n * len(many), "the answers")
                    if not leaves:
                        self.assertEqual([self.outcomes(d, "socket"), self.outcomes(d, "http")], [[1, 0, n], [0, 0, n]])
                self.assertEqual([self.outcomes(d, "socket"), self.outcomes(d, "http")], [[1, 0, n], [0, 0, n]])

    def test_the_series_stay_the_same_whoever_asks_for_whatever(self):
        """Each request is another client's by all it says of itself: path, name, agent, token, question; at the other door by its request id."""
        def web(i):
            body = b'{"sequences":[{"tokens":[%d]}],"top_k":1,"teacher":"nobody-%d"}' % (i % 200, i)
            who = b"Host: host-%d\r\nUser-Agent: agent/%d\r\nX-Forwarded-For: 10.%d.%d.%d\r\n" % (i, i, i >> 16, i >> 8 & 255, i & 255)
            if i % 2:
                return b"GET /nowhere/%d HTTP/1.1\r\n%s\r\n" % (i, who)
            return b"POST /v1/score HTTP/1.1\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (who, len(body), body)

        with Daemon() as d:
            series = set(d.metrics())
            for first in range(0, CLIENTS, 100):
                with socket.create_connection(("127.0.0.1", d.port), timeout=kdserved.PATIENCE) as s:
                    s.sendall(b"".join(web(i) for i in range(first, first + 100)) + b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    said = b""
                    while piece := s.recv(1 << 16):
                        said += piece
                self.assertEqual((said.count(b"HTTP/1.1 404 "), said.count(b"HTTP/1.1 200 ")), (100, 1))
            with d.client() as c:
                for i in range(1, CLIENTS // 100):
                    c.send(kdserved.PING, i << 32, b"%d" % i)
                    self.assertEqual(c.receive()[:2], (kdserved.PONG, i << 32))
            m = self.check_account(d.metrics())
            self.assertEqual(set(m), series)
            self.assertEqual(m['kd_requests_accepted_total{door="http"}'], CLIENTS / 2)

    def test_faults_of_gpus_before_the_start_are_shown(self):
        with tempfile.TemporaryDirectory(prefix="kdserved-watch-") as store:
            for text, shown in ((None, (0, 0, 0)), ("restart 3\nreset 1\nsupport 2\n", (3, 1, 2)), ("reset of what\n", (0, 0, 0))):
                if text:
                    with open(os.path.join(store, "gpu.faults"), "w") as f:
                        f.write(text)
                with Daemon("--store", store) as d:
                    m = d.metrics()
                    self.assertEqual(shown, tuple(m['kd_gpu_fatal_total{class="%s"}' % c] for c in ("restart", "reset", "support")))
                    self.assertEqual(any("gpu.faults does not count faults" in line for line in d.lines), text is not None and not any(shown))

    def test_making_the_text_takes_few_milliseconds_of_a_processor(self):
        """Of processor time, which a loaded machine does not change; what else the process does meanwhile is next to nothing."""
        with Daemon() as d:
            def used():
                with open("/proc/%d/stat" % d.process.pid) as f:
                    fields = f.read().rsplit(")", 1)[1].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            before = used()
            for _ in range(200):
                d.http("GET", "/metrics")
            self.assertLess((used() - before) / 200, SCRAPE_S)


class Health(unittest.TestCase):
    def test_everything_may_be_asked_while_the_teacher_loads(self):
        """Until it is there every door says so, and metrics and status have their numbers; what loads it is not disturbed (ThreadSanitizer)."""
        answers, paths = {}, ["/live", "/ready", "/metrics", "/v1/status", "/v1/model", "/v1/models", "/v1/models/a", "/v1/tokenizer", "/"]
        ask = {"/v1/score": {"sequences": [{"tokens": [1, 2]}], "own": True}, "/v1/tokenize": {"text": "a"}, "/v1/detokenize": {"tokens": [1]},
               "/v1/generate": {"prompts": [{"tokens": [1]}], "max_tokens": 1}, "/v1/completions": {"model": "model", "prompt": [1], "max_tokens": 1},
               "/v1/weights": {"tensor": "head", "ids": [1]}}
        with tempfile.TemporaryDirectory(prefix="kdserved-e2e-") as directory:
            model = os.path.join(directory, "model")
            tiny_model.write(model)
            tiny_model.grow(model, 400000)           # a second or more to load
            with Daemon(model=model, wait=False) as d:
                wait_until(lambda: d.read_lines(0.01) or d.port, "the HTTP door")
                while not any(": teacher " in line for line in d.lines):
                    for path in paths:
                        answers.setdefault(path, set()).add(d.http("GET", path)[0])
                    for path, body in ask.items():
                        answers.setdefault(path, set()).add(d.http("POST", path, body)[0])
                    try:
                        d.client().__exit__()
                    except kdserved.Refused as e:
                        self.assertEqual(ProtocolError(e.args[0][1]).code, "unavailable")
                        answers.setdefault("frames", set()).add(503)
                    d.read_lines(0)
        for path in "/live", "/metrics", "/v1/status", "/":
            self.assertEqual(answers[path], {200}, path)
        answers.pop("/v1/models/a").discard(404)
        for path, got in answers.items():
            self.assertLessEqual(got, {200, 503}, path)
        self.assertIn(503, answers["/ready"], "it was loaded too soon to say anything")

    def test_ready_says_why_not_and_live_goes_on(self):
        d = Daemon("--drain-timeout", "5s", wait=False)
        try:
            wait_until(lambda: d.read_lines(0.01) or d.port, "the HTTP door")
            self.assertEqual(d.get("/live"), (200, {"live": True}))
            status, reply = d.get("/ready")
            if status != 200:
                self.assertEqual((status, reply["error"]["code"]), (503, "unavailable"))
            d.wait_line(r": teacher ")
            self.assertEqual(d.get("/ready")[1].get("degraded", []), [])
            m = d.metrics()
            self.assertEqual({name: v for name, v in m.items() if name.startswith("kd_degraded")},
                             {'kd_degraded{state="%s"}' % s: 0 for s in ("device", "store", "space", "canary", "certificate")})
            self.assertAlmostEqual(m["kd_start_time_seconds"], time.time(), delta=600)
        finally:
            d.stop()

    def test_the_status_text_follows_what_ready_says(self):
        path = os.path.join(os.environ.get("TMPDIR", "/tmp"), "kdserved-notify-%d" % os.getpid())
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(path)
        self.addCleanup(os.unlink, path)
        self.addCleanup(notify.close)
        notify.settimeout(kdserved.PATIENCE)
        told = []

        def wait_for(pattern):
            while not told or not re.search(pattern, told[-1]):
                try:
                    told.append(notify.recv(4096).decode())
                except TimeoutError:
                    self.fail("%r is not among %s" % (pattern, told))
        with Daemon(environment={"NOTIFY_SOCKET": path}) as d:
            wait_for(r"STATUS=Serving model on cpu$")
            self.assertTrue(any("READY=1" in t for t in told), told)
            self.assertTrue(told[0].startswith("STATUS=Not ready: the teacher is loading"), told)
            self.assertEqual(d.get("/v1/status")[1]["degraded"], [])
        wait_for(r"STOPPING=1")


class Top(unittest.TestCase):
    def run_top(self, d, *arguments, **more):
        return kdserved.subprocess.run([os.path.join(kdserved.BUILD, "kdctl"), "--server", "unix:" + d.socket_path, *arguments], text=True,
                                       timeout=kdserved.PATIENCE, **more)

    def test_in_a_pipe_it_is_one_plain_snapshot(self):
        with Daemon() as d:
            d.post("/v1/score", {"sequences": [{"tokens": [1, 2, 3]}], "top_k": 1})
            done = self.run_top(d, "top", "--interval", "0.1", capture_output=True)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertRegex(done.stdout, r"\Akdserved \S+  ready  cpu \S+  up 0 min \d+ s\nrequests +0 answered/s")
            self.assertNotIn("\033", done.stdout)
            self.assertRegex(done.stdout, r"requests \[\.{24}\] 0 of 1024\n")
            self.assertEqual(json.loads(self.run_top(d, "--json", "top", capture_output=True).stdout)["requests"]["answered"], 1)
            self.assertEqual(self.run_top(d, "top", "--interval", "0", capture_output=True).returncode, 2)
            self.assertEqual(self.run_top(d, "top", "more", capture_output=True).returncode, 2)

    def test_on_a_terminal_it_goes_on_until_the_server_leaves(self):
        with Daemon() as d:
            master, slave = os.openpty()
            top = kdserved.subprocess.Popen([os.path.join(kdserved.BUILD, "kdctl"), "--server", "unix:" + d.socket_path, "top", "--interval",
                                             "0.1"], stdout=slave, stderr=kdserved.subprocess.DEVNULL)
            os.close(slave)
            seen = b""
            while seen.count(b"\033[H") < 3:
                seen += os.read(master, 4096)
        self.assertEqual(top.wait(kdserved.PATIENCE), 1)
        os.close(master)


class Shipped(unittest.TestCase):
    """What etc/ says about metrics, held against a daemon with everything switched on."""

    @classmethod
    def setUpClass(cls):
        cls.store = kdserved.tempfile.mkdtemp(prefix="kdserved-e2e-")
        certificate, key = make(cls.store)["good"]
        cls.daemon = Daemon("--store", os.path.join(cls.store, "store"), "--runs", os.path.join(cls.store, "runs"), "--tls-certificate",
                            certificate, "--tls-key", key)
        with cls.daemon.client() as c:
            cls.text = c.call("GET", "/metrics")[1].decode()
        cls.series = {line.rsplit(" ", 1)[0] for line in cls.text.splitlines() if not line.startswith("#")}
        cls.names = {name.split("{")[0] for name in cls.series}

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()
        kdserved.shutil.rmtree(cls.store, ignore_errors=True)

    def check(self, name, expressions):
        self.assertGreater(len(expressions), 5)
        for expression in expressions:
            for metric in parts(expression):
                self.assertIn(metric, self.names, "%s: %s" % (name, expression))
            for metric, label, value in re.findall(r'\b(kd_[a-z_]+)\{(state|code|door)="(\w+)"\}', expression):
                self.assertIn('%s{%s="%s"}' % (metric, label, value), self.series, expression)

    def test_every_metric_of_the_alert_rules_exists(self):
        with open(os.path.join(SOURCE, "etc", "prometheus", "kdserved.rules.yml")) as f:
            self.check("rules", re.findall(r"expr: (?:>-\n)?((?:.|\n)*?)\n +(?:for|labels):", f.read()))

    def test_every_metric_of_the_dashboard_exists_and_panels_do_not_lie_on_each_other(self):
        with open(os.path.join(SOURCE, "etc", "grafana", "kdserved.json")) as f:
            board = json.load(f)
        self.check("dashboard", [t["expr"] for p in board["panels"] for t in p.get("targets", [])])
        self.assertEqual(len({p["id"] for p in board["panels"]}), len(board["panels"]))
        taken = set()
        for p in board["panels"]:
            g = p["gridPos"]
            cells = {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
            self.assertFalse(cells & taken, p["title"])
            self.assertLessEqual(g["x"] + g["w"], 24, p["title"])
            taken |= cells

    def test_every_stage_has_a_histogram_and_every_metric_a_help_and_a_type(self):
        for stage in "request", "queue", "batch", "forward", "epilogue", "encode", "store_append", "training_step":
            self.assertIn("kd_%s_seconds_bucket" % stage, self.names)
        described = set(re.findall(r"^# HELP (\S+) \S", self.text, re.M))
        self.assertEqual(described, set(re.findall(r"^# TYPE (\S+) (?:counter|gauge|histogram)$", self.text, re.M)))
        self.assertEqual(described, {re.sub(r"(_seconds)_(bucket|sum|count)$", r"\1", n) for n in self.names})


if __name__ == "__main__":
    unittest.main(verbosity=2)
