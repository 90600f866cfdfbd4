# SPDX-License-Identifier: Apache-2.0
"""Bearer tokens at both doors: every resource with no, a wrong, an expired, another's and the right token; quotas; reload; what is never
said."""
import hashlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest

import kdserved
import tiny_model
from kdserved import Closed, Daemon, ProtocolError, wait_until

KDCTL = os.path.join(kdserved.BUILD, "kdctl")
SCOPES = ("score", "generate", "train", "admin", "none")
SECRETS = {name: "kds_secret-of-" + name for name in SCOPES + ("expired", "limited", "slow", "narrow", "brief", "fleeting", "inside")}
BODIES = {"/v1/score": {"sequences": [{"tokens": [1, 2, 3]}], "top_k": 2},
          "/v1/generate": {"prompts": [{"tokens": [1, 2]}], "max_tokens": 2},
          "/v1/completions": {"prompt": "the", "max_tokens": 1, "echo": True},
          "/v1/tokenize": {"text": "the"}, "/v1/detokenize": {"tokens": [1]},
          "/v1/weights": {"tensor": "head", "ids": [1]}, "/v1/runs": {"name": "x", "config": "nonsense"}}
REFUSED = (401, 403)


def line(name, rest):
    return "%s %s %s\n" % (name, hashlib.sha256(SECRETS[name].encode()).hexdigest(), rest)


def write(path, *more):
    with open(path, "w", opener=lambda p, flags: os.open(p, flags, 0o600)) as f:
        f.write("# tokens of a test\n" + "".join(line(name, name) for name in SCOPES))
        f.write(line("expired", "admin expires=2001-01-01") + "".join(more))


class Tokens(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        cls.path = os.path.join(cls.directory, "tokens")
        write(cls.path, line("limited", "score,generate in-flight=2"), line("slow", "score rate=1"),
              line("narrow", "score,generate k-max=3"), line("brief", "generate rate=20"), line("fleeting", "score"))
        runs = os.path.join(cls.directory, "runs")
        os.mkdir(runs)
        cls.daemon = Daemon("--tokens", cls.path, "--runs", runs, directory=cls.directory)
        document = cls.get(cls, "/openapi.json", "none")[1]
        cls.resources = []
        for path, item in document["paths"].items():
            for verb, operation in item.items():
                if verb == "parameters":
                    continue
                security = operation.get("security", document["security"])
                scopes = {s for one in security for s in one["bearer"]}
                cls.resources.append((verb.upper(), path.replace("{id}", "x"), path, scopes, not security))

    @classmethod
    def tearDownClass(cls):
        log = cls.daemon.log()
        cls.daemon.stop()
        kdserved.shutil.rmtree(cls.directory, ignore_errors=True)
        for secret in SECRETS.values():
            assert secret not in log, "a secret is in the log"

    def ask(self, method, path, who=None, body=None, secret=None):
        secret = secret or SECRETS.get(who)
        headers = {"Authorization": "Bearer " + secret} if secret else {}
        status, got, data = self.daemon.http(method, path, body, headers)
        return status, got, data

    def get(self, path, who):
        status, _, data = Tokens.ask(self, "GET", path, who)
        return status, json.loads(data)

    def hello(self, secret):
        """A client that is welcomed, or the code of the refusal; then the connection has ended."""
        c = self.daemon.client(hello=False)
        c.send(kdserved.HELLO, 0, struct.pack("<HH", 2, 2) + bytes(32) + struct.pack("<H", len(secret)) + secret.encode())
        kind, _, body = c.receive()
        if kind == kdserved.WELCOME:
            c.welcome = body
            return c
        self.assertEqual(kind, kdserved.ERROR)
        self.assertLessEqual(len(body), 1024)
        self.assertRaises(Closed, c.receive)
        c.__exit__()
        return ProtocolError(body).code

    def test_every_resource_over_http(self):
        self.assertGreater(len(self.resources), 15)
        for method, path, name, scopes, public in self.resources:
            body = BODIES.get(name) if method == "POST" else None
            for who, secret in (("nobody", None), ("wrong", "kds_wrong"), ("expired", None)):
                with self.subTest(method=method, path=name, who=who):
                    status, headers, data = self.ask(method, path, who, body, secret)
                    if public:
                        self.assertEqual(status, 200)
                        continue
                    self.assertEqual((status, json.loads(data)["error"]["code"]), (401, "unauthorized"))
                    self.assertEqual((headers["WWW-Authenticate"], headers["Connection"].lower()), ("Bearer", "close"))
                    self.assertLessEqual(len(data), 1024)
            for who in SCOPES:
                with self.subTest(method=method, path=name, who=who):
                    allowed = public or who == "admin" or not scopes or who in scopes
                    status, _, data = self.ask(method, path, who, body)
                    if allowed and name == "/v1/completions" and who != "admin":
                        self.assertIn(status, (200, 403))      # what it asks for, reading or writing, is looked at besides
                    elif allowed:
                        self.assertNotIn(status, REFUSED, data)
                    else:
                        self.assertEqual((status, json.loads(data)["error"]["code"]), (403, "forbidden"))

    def test_every_resource_over_frames(self):
        for secret in ("", "kds_wrong", SECRETS["expired"]):
            self.assertEqual(self.hello(secret), "unauthorized")
        for who in SCOPES:
            with self.hello(SECRETS[who]) as c:
                for method, path, name, scopes, public in self.resources:
                    with self.subTest(method=method, path=name, who=who):
                        body = json.dumps(BODIES[name]).encode() if method == "POST" and name in BODIES else b""
                        status, data = c.call(method, path, body)
                        allowed = public or who == "admin" or not scopes or who in scopes
                        self.assertEqual(status == 403, not allowed, data)
                        self.assertNotEqual(status, 401)

    def test_questions_over_frames(self):
        for who, code in (("score", None), ("admin", None), ("generate", "forbidden"), ("none", "forbidden"), ("train", "forbidden")):
            with self.subTest(who=who), self.hello(SECRETS[who]) as c:
                if code is None:
                    self.assertEqual(len(c.score([[1, 2, 3]], top_k=2)), 1)
                else:
                    with self.assertRaises(ProtocolError) as got:
                        c.score([[1, 2, 3]], top_k=2)
                    self.assertEqual((got.exception.code, got.exception.index), (code, kdserved.WHOLE))

    def test_completions_need_what_they_do(self):
        for who, body, status in (("score", {"prompt": "the", "max_tokens": 0, "echo": True, "logprobs": 1}, 200),
                                  ("score", {"prompt": "the", "max_tokens": 2}, 403), ("generate", {"prompt": "the", "max_tokens": 2}, 200),
                                  ("generate", {"prompt": "the", "max_tokens": 0, "echo": True, "logprobs": 1}, 403)):
            with self.subTest(who=who, body=body):
                self.assertEqual(self.ask("POST", "/v1/completions", who, body)[0], status)

    def test_nobody_learns_which_resources_there_are(self):
        for path in ("/v1/secret", "/page", "/v1/runs/../x"):
            self.assertEqual(self.ask("GET", path)[0], 401)
            self.assertEqual(self.ask("GET", path, "none")[0], 404)
        self.assertEqual(self.ask("GET", "/v1/score")[0], 401)
        self.assertEqual(self.ask("GET", "/v1/score", "none")[0], 405)

    def test_the_audit_trail_adds_up(self):
        """Lines now and then, more after a reload, the last at the end: as much as was asked, and as the metrics said."""
        directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        path, config = os.path.join(directory, "tokens"), os.path.join(directory, "conf")
        write(path, line("inside", "score"), line("fleeting", "score"))
        with open(config, "w") as f:
            f.write("audit-interval = 0\n")
        d = Daemon("--config", config, "--tokens", path)

        def ask(who, body, where="/v1/score"):
            status, _, data = d.http("POST", where, json.dumps(body), {"Authorization": "Bearer " + SECRETS[who]})
            self.assertEqual(status, 200, data)

        def lines(who):
            numbers = " ".join(what + r"=(\d+)" for what in ("requests", "rows", "values", "all_requests", "all_rows", "all_values"))
            found = re.findall("audit: token=%s %s" % (who, numbers), d.log())
            return [tuple(map(int, one)) for one in found]
        try:
            sequences = [{"tokens": [1, 2, 3]}, {"tokens": [4, 5]}]
            for _ in range(2):           # the second from no store: there is none
                ask("score", {"sequences": sequences, "top_k": 3, "gather": [7, 9], "own": True})     # 5 rows of 3 + 2 + 1
            ask("inside", {"sequences": sequences, "draws": {"n": 6, "seed": 1}})               # 5 rows of 6
            ask("inside", {"sequences": sequences, "features": [{"kind": "hidden", "layer": 0}, {"kind": "k", "layer": 1}]})
            ask("inside", {"sequences": sequences, "features": [{"kind": "final"}], "pooling": "mean"})
            ask("inside", {"tensor": "head", "ids": [5, 6, 9]}, "/v1/weights")
            key_width = tiny_model.WIDTH // tiny_model.HEADS * tiny_model.KV_HEADS
            inside = (3, 18, 5 * 6 + 5 * (tiny_model.WIDTH + key_width) + (2 + 3) * tiny_model.WIDTH)
            ask("fleeting", {"sequences": [{"tokens": [1, 2, 3, 4]}], "top_k": 2, "first": 2})  # 2 rows of 2
            status, _, data = d.http("GET", "/metrics", None, {"Authorization": "Bearer " + SECRETS["score"]})
            self.assertEqual(status, 200)
            counters = {(what, who): int(n) for what, who, n in re.findall(r'kd_token_(\w+)_total\{token="(\w+)"\} (\d+)', data.decode())}
            self.assertEqual([counters[what, "score"] for what in ("requests", "rows", "values")], [2, 10, 60])
            self.assertEqual(tuple(counters[what, "inside"] for what in ("requests", "rows", "values")), inside)
            self.assertEqual(lines("score"), [])
            write(path, line("inside", "score"))                  # fleeting's line is gone
            with open(config, "w") as f:
                f.write("audit-interval = 200ms\n")
            d.process.send_signal(signal.SIGHUP)
            wait_until(lambda: lines("score"), "a line for score")
            wait_until(lambda: lines("fleeting"), "the last line for fleeting")
            wait_until(lambda: lines("inside") == [inside * 2], lambda: "a line for inside: %s" % lines("inside"))
            self.assertEqual(lines("fleeting"), [(1, 2, 4, 1, 2, 4)])
            with open(config, "w") as f:
                f.write("audit-interval = 0\n")
            d.process.send_signal(signal.SIGHUP)
            d.wait_line("audit-interval: 200ms -> 0")
            ask("score", {"sequences": sequences, "top_k": 1})
        finally:
            d.stop()
        found = lines("score")
        self.assertEqual(found, [(2, 10, 60, 2, 10, 60), (1, 5, 5, 3, 15, 65)])
        self.assertEqual(lines("admin"), [])
        kdserved.shutil.rmtree(directory, ignore_errors=True)

    def test_strangers_do_not_hold_the_door(self):
        """They ask what is public and rest, say nothing, or wait outside: who has a token gets in, and nobody with one is put out."""
        n = 8
        with Daemon("--tokens", self.path, "--max-connections", str(n), "--header-timeout", "1h") as d:
            model = b"GET /v1/model HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n" % SECRETS["score"].encode()

            def connect():
                return socket.create_connection(("127.0.0.1", d.port), timeout=kdserved.PATIENCE)

            def get(s, request):
                s.sendall(request)
                return s.recv(65536)
            trainer = connect()
            self.assertIn(b"200 OK", get(trainer, model))
            strangers = [connect() for _ in range(2 * n)]
            for s in strangers[::2]:
                s.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            begin = time.monotonic()
            late = [connect() for _ in range(n // 4)]
            for s in late:
                self.assertIn(b"200 OK", get(s, model))
            self.assertLess(time.monotonic() - begin, kdserved.PATIENCE / 2)      # not an hour
            for s in [trainer, *late]:
                self.assertIn(b"200 OK", get(s, model))
            for s in [trainer, *late, *strangers]:
                s.close()

    def test_headers_that_are_no_token(self):
        for value in ("Basic YTpi", "Bearer", "Bearer ", "kds_x", "Bearer " + "a" * 257, "Bearer a b"):
            with self.subTest(value=value):
                self.assertEqual(self.daemon.http("GET", "/v1/model", headers={"Authorization": value})[0], 401)
        self.assertEqual(self.daemon.http("GET", "/v1/model", headers={"Authorization": "bearer " + SECRETS["none"]})[0], 200)
        with socket.create_connection(("127.0.0.1", self.daemon.port), timeout=kdserved.PATIENCE) as s:
            one = "Authorization: Bearer %s\r\n" % SECRETS["none"]
            s.sendall(("GET /v1/model HTTP/1.1\r\nHost: x\r\n%s%s\r\n" % (one, one)).encode())
            self.assertEqual(s.recv(12), b"HTTP/1.1 400")

    def test_a_stranger_sends_no_body(self):
        head = "POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n%s\r\n"
        for more in ("Content-Length: 65537\r\n", "Transfer-Encoding: chunked\r\n"):
            with self.subTest(more=more), socket.create_connection(("127.0.0.1", self.daemon.port), timeout=kdserved.PATIENCE) as s:
                s.sendall((head % more).encode())
                data = b""
                while piece := s.recv(4096):      # the end, though the body never came
                    data += piece
                self.assertTrue(data.startswith(b"HTTP/1.1 401"))
                self.assertLessEqual(len(data), 1024)

    def test_quota_of_requests_under_way(self):
        with self.hello(SECRETS["limited"]) as c:
            ids = [c.start_score([[i + 1] * 900] * 4, top_k=5) for i in range(8)]
            ended = {}
            while len(ended) < len(ids):
                kind, request_id, body = c.receive()
                if kind == kdserved.ERROR:
                    ended[request_id] = ProtocolError(body).code
                elif kind == kdserved.DONE:
                    ended[request_id] = "done"
        self.assertEqual(set(ended.values()), {"done", "overloaded"})
        self.assertEqual([ended[i] for i in ids[:2]], ["done", "done"])

    def test_quota_of_tokens(self):
        statuses = [self.ask("POST", "/v1/score", "slow", BODIES["/v1/score"]) for _ in range(3)]
        self.assertEqual(statuses[0][0], 200)
        self.assertEqual(statuses[2][0], 429)
        self.assertIn(int(statuses[2][1]["Retry-After"]), range(1, 6))
        self.assertEqual(json.loads(statuses[2][2])["error"]["code"], "overloaded")
        with self.hello(SECRETS["slow"]) as c:
            with self.assertRaises(ProtocolError) as got:
                for _ in range(3):
                    c.score([[1, 2, 3]], top_k=2)
            self.assertEqual(got.exception.code, "overloaded")

    def test_what_was_not_generated_is_given_back(self):
        body = {"prompts": [{"tokens": [1, 2]}], "max_tokens": 900, "temperature": 0, "ignore_eos": True}
        used = 'kd_token_tokens_total{token="brief"}'

        def ended():
            wait_until(lambda: self.daemon_value('kd_token_in_flight{token="brief"}') == 0, "it to end")
            return self.daemon_value(used)

        def generate(who, **more):
            status, _, data = self.ask("POST", "/v1/generate", who, dict(body, **more))
            return status, json.loads(data)
        first = generate("generate", max_tokens=1)[1]["sequences"][0]["tokens"]
        for i in range(3):                                      # each is let in for 901 tokens, of a bucket of 20
            status, reply = generate("brief", stop_ids=first)
            self.assertEqual((status, reply["sequences"][0]["tokens"]), (200, first))
            self.assertEqual(ended(), 2 * (i + 1))              # the prompt; the last token of an answer is never read
        self.assertEqual(generate("brief", n=64)[1]["error"]["code"], "too_large")      # there are no such places
        self.assertEqual(ended(), 6)
        self.assertEqual(self.daemon_value('kd_token_requests_total{token="brief"}'), 3)         # it was not let in
        self.assertEqual(generate("brief", max_tokens=3)[0], 200)
        self.assertEqual(ended(), 6 + 4)
        with socket.create_connection(("127.0.0.1", self.daemon.port), timeout=kdserved.PATIENCE) as s:
            text = json.dumps(dict(body, n=8, stream=True))
            s.sendall(("POST /v1/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
                       "Content-Length: %d\r\n\r\n%s" % (SECRETS["brief"], len(text), text)).encode())
            self.assertTrue(s.recv(100).startswith(b"HTTP/1.1 200"))
        left = ended() - 10
        self.assertTrue(2 <= left < 2 + 8 * 899, left)
        status, headers, _ = self.ask("POST", "/v1/generate", "brief", dict(body, max_tokens=899))
        self.assertIn(status, (200, 429) if left < 400 else (429,))       # of a bucket that gets 20 a second
        if status == 429:
            self.assertLessEqual(int(headers["Retry-After"]), left / 20 + 1)

    def test_nobody_waits_for_all_of_anothers(self):
        with self.hello(SECRETS["score"]) as heavy, self.hello(SECRETS["admin"]) as light:
            ids = [heavy.start_score([[i * 8 + j + 1] * 900 for j in range(8)], own=True) for i in range(30)]
            wait_until(lambda: self.daemon_value("kd_reserved_requests") >= 25, "the heavy one's questions")
            self.assertEqual(len(light.score([[7] * 100], top_k=3)), 1)
            left = self.daemon_value("kd_reserved_requests")
            done = 0
            while done < len(ids):
                kind, _, body = heavy.receive()
                self.assertIn(kind, (kdserved.ANSWER, kdserved.DONE), body)
                done += kind == kdserved.DONE
        self.assertGreater(left, 10)       # first come, first served: 0

    def daemon_value(self, name):
        return float(re.search("^%s (.*)$" % re.escape(name), self.ask("GET", "/metrics", "none")[2].decode(), re.M).group(1))

    def test_ids_of_a_row(self):
        ask = {"sequences": [{"tokens": [1, 2, 3]}]}
        for more, status, field in (({"top_k": 2}, 200, None), ({"top_k": 3}, 200, None), ({"top_k": 4}, 413, "top_k"),
                                    ({"gather": [1, 2, 3]}, 200, None), ({"gather": [1, 2, 3, 4]}, 413, "gather"),
                                    ({"draws": {"n": 3, "seed": 1}}, 200, None), ({"draws": {"n": 4, "seed": 1}}, 413, "draws.n"),
                                    ({"dense": True}, 403, "dense"), ({"dense": True, "keep": [1, 2, 3]}, 200, None),
                                    ({"dense": True, "keep": [1, 2, 3, 4]}, 403, "dense")):
            with self.subTest(more=more):
                got, _, data = self.ask("POST", "/v1/score", "narrow", dict(ask, **more))
                self.assertEqual(got, status, data)
                if field:
                    self.assertEqual(json.loads(data)["error"]["field"], field)
        for rows, status in ((3, 200), (4, 413)):
            self.assertEqual(self.ask("POST", "/v1/generate", "narrow", dict(BODIES["/v1/generate"], rows=rows))[0], status)
        self.assertEqual(self.ask("POST", "/v1/weights", "narrow", BODIES["/v1/weights"])[0], 403)
        with self.hello(SECRETS["narrow"]) as c:
            self.assertEqual(struct.unpack_from("<III", c.welcome, 40), (3, 3, 3))
            self.assertRaises(ProtocolError, c.score, [[1, 2, 3]], top_k=4)

    def test_who_asked_is_counted(self):
        _, _, data = self.ask("GET", "/metrics", "none")
        found = dict(re.findall(r'kd_token_requests_total\{token="([^"]+)"\} (\d+)', data.decode()))
        self.assertLessEqual({"score", "limited", "expired", "(workers)"}, set(found))
        before = int(found["score"])
        self.ask("POST", "/v1/score", "score", BODIES["/v1/score"])
        _, _, data = self.ask("GET", "/metrics", "none")
        self.assertEqual(int(re.search(r'kd_token_requests_total\{token="score"\} (\d+)', data.decode()).group(1)), before + 1)

    @unittest.skipIf(os.environ.get("KDSERVED_TEST_SANITIZED"), "sanitizers keep what is freed")
    def test_no_secret_stays_in_memory(self):
        """Nor gets into a core dump, once its client is gone."""
        body = {"sequences": [{"tokens": [1, 2, 3]}], "top_k": 2}
        known, unknown = SECRETS["fleeting"], "kds_is-not-known-to-anybody"
        for secret in (known, unknown):
            self.assertEqual(self.ask("POST", "/v1/score", None, body, secret)[0], 200 if secret == known else 401)
        with self.hello(known) as c:
            c.score([[1, 2, 3]], top_k=2)
        self.assertEqual(self.hello(unknown), "unauthorized")
        self.assertEqual(self.found(b"a word that is nowhere"), [])
        wait_until(lambda: not self.found(known.encode()) + self.found(unknown.encode()), lambda: "secrets to be gone: %s" % (
            self.found(known.encode()) + self.found(unknown.encode())), pause=0.3)

    def found(self, word):
        """Where in the daemon's memory."""
        places = []
        with open("/proc/%d/maps" % self.daemon.process.pid) as maps, open("/proc/%d/mem" % self.daemon.process.pid, "rb", 0) as memory:
            for row in maps:
                begin, end = (int(x, 16) for x in row.split()[0].split("-"))
                if row.split()[1].startswith("rw"):
                    memory.seek(begin)
                    at = memory.read(end - begin).find(word)
                    places += [(row.split()[-1], hex(begin + at))] if at >= 0 else []
        return places

    def test_kdctl_brings_its_token(self):
        server = "unix:" + self.daemon.socket_path
        clean = {k: v for k, v in os.environ.items() if not k.startswith("KDSERVED_TOKEN")}
        path = os.path.join(self.directory, "secret")
        with open(path, "w") as f:
            f.write(SECRETS["none"] + "\n")

        def run(*options, **more):
            return subprocess.run([KDCTL, "--server", server, *options, "model"], env=dict(clean, **more), capture_output=True, text=True,
                                  timeout=kdserved.PATIENCE)
        self.assertEqual(run("--token-file", path).returncode, 0)
        self.assertEqual(run(KDSERVED_TOKEN_FILE=path).returncode, 0)
        self.assertEqual(run(KDSERVED_TOKEN=SECRETS["none"]).returncode, 0)
        self.assertEqual(run("--token-file", path, KDSERVED_TOKEN="kds_wrong").returncode, 0)
        for refused in (run(), run(KDSERVED_TOKEN="kds_wrong"), run(KDSERVED_TOKEN="kds_wrong", KDSERVED_TOKEN_FILE=path)):
            self.assertEqual(refused.returncode, 1)
            self.assertIn("token", refused.stderr)
            self.assertNotIn("kds_wrong", refused.stderr)


class Reload(unittest.TestCase):
    def test_tokens_made_by_kdctl_come_and_go(self):
        directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(kdserved.shutil.rmtree, directory, ignore_errors=True)
        path = os.path.join(directory, "tokens")

        def make(name, *options):
            made = subprocess.run([KDCTL, "token", "new", name, "--file", path, *options], capture_output=True, text=True, check=True)
            return made.stdout.strip()
        first = make("first", "--scopes", "score,train", "--rate", "1000000", "--expires", "2999-01-01")
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        with open(path) as f:
            self.assertNotIn(first, f.read())
        with Daemon("--tokens", path, directory=directory) as d:
            def status(secret):
                return d.http("GET", "/v1/model", headers={"Authorization": "Bearer " + secret})[0]

            def reload(text):
                n = len(re.findall("SIGHUP", d.log()))
                d.process.send_signal(signal.SIGHUP)
                wait_until(lambda: len(re.findall("SIGHUP", d.log())) > n, "the reload")
                self.assertIn(text, d.log().split("SIGHUP")[-1])
            self.assertEqual(status(first), 200)
            c = d.client(hello=False)
            self.addCleanup(c.__exit__)
            c.send(kdserved.HELLO, 0, struct.pack("<HH", 2, 2) + bytes(32) + struct.pack("<H", len(first)) + first.encode())
            self.assertEqual(c.receive()[0], kdserved.WELCOME)
            self.assertEqual(c.call("GET", "/v1/model")[0], 200)
            second = make("second")
            self.assertEqual(status(second), 401)
            reload("2 tokens")
            self.assertEqual((status(first), status(second)), (200, 200))
            with open(path) as f:
                lines = f.readlines()
            with open(path, "w") as f:
                f.write(lines[1])
            reload("1 tokens")
            self.assertEqual((status(first), status(second)), (401, 200))
            c.send(kdserved.CALL, 9, struct.pack("<BBHI", 3, 0, 9, 0) + b"GET/v1/model")
            kind, request_id, body = c.receive()
            self.assertEqual((kind, request_id, ProtocolError(body).code), (kdserved.ERROR, 0, "unauthorized"))
            self.assertRaises(Closed, c.receive)
            with open(path, "a") as f:
                f.write("nonsense\n")
            reload(":2: ")
            self.assertEqual((status(first), status(second)), (401, 200))
            self.assertNotIn(first, d.log() + "")
            self.assertNotIn(second, d.log())


class Addresses(unittest.TestCase):
    def refused(self, *arguments):
        with tempfile.TemporaryDirectory(prefix="kdserved-e2e-") as directory:
            kdserved.tiny_model.write(directory)
            done = subprocess.run([kdserved.PROGRAM, "--teacher", directory, *arguments], capture_output=True, text=True,
                                  timeout=kdserved.PATIENCE)
            self.assertEqual(done.returncode, 78, done.stderr)
            return done.stderr

    def test_other_machines_need_tokens(self):
        for arguments in (("--http", "0.0.0.0:0"), ("--http", "0.0.0.0:0", "--allow-remote"), ("--http", "", "--socket", "tcp:0.0.0.0:0")):
            self.assertIn("set tokens = FILE", self.refused(*arguments))
        self.assertIn("unencrypted", self.refused("--http", "0.0.0.0:0", "--tokens", "x"))
        self.assertIn("No such file", self.refused("--http", "127.0.0.1:0", "--tokens", "absent"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
