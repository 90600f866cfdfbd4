# SPDX-License-Identifier: Apache-2.0
"""Starting, refusing to start, remembering over restarts, draining, and memory."""
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest

import kdserved
import tiny_model
from kdserved import Daemon, ProtocolError, wait_until

SEQUENCES = [[1, 2, 3, 4], [250, 9], list(range(200))]


def run(*arguments):
    """(exit status, stdout, stderr)"""
    done = subprocess.run([kdserved.PROGRAM, *arguments], capture_output=True, text=True, timeout=kdserved.PATIENCE)
    return done.returncode, done.stdout, done.stderr


class Temporary(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.directory, name)


class Remembering(Temporary):
    def daemon(self, *arguments):
        return Daemon("--store", self.path("store"), *arguments, directory=self.directory)

    def test_a_second_ask_is_cached_and_byte_identical_also_after_a_restart(self):
        with self.daemon() as d:
            with d.client() as c:
                first = c.score(SEQUENCES, top_k=9, own=True, entropy=True)
                second = c.score(SEQUENCES, top_k=9, own=True, entropy=True)
            self.assertEqual([first[i][0] for i in range(3)], [False] * 3)
            self.assertEqual([second[i][0] for i in range(3)], [True] * 3)
            self.assertEqual([first[i][1] for i in range(3)], [second[i][1] for i in range(3)])
            _, over_http = d.post("/v1/score", {"sequences": [{"tokens": s} for s in SEQUENCES], "top_k": 9, "own": True, "entropy": True})
            self.assertEqual([s["cached"] for s in over_http["sequences"]], [True] * 3)
            with d.client() as c:    # asked anew, without the store: the same bytes
                anew = c.score(SEQUENCES, top_k=9, own=True, entropy=True, flags=2)
            self.assertEqual([(False, first[i][1]) for i in range(3)], [anew[i] for i in range(3)])
        with self.daemon() as d:
            with d.client() as c:
                again = c.score(SEQUENCES, top_k=9, own=True, entropy=True)
            self.assertEqual([(True, first[i][1]) for i in range(3)], [again[i] for i in range(3)])
            m = d.metrics()
            self.assertEqual((m["kd_sequences_cached_total"], m["kd_sequences_computed_total"], m["kd_forward_passes_total"]), (3, 0, 0))

    def test_another_question_is_not_answered_from_the_store(self):
        with self.daemon() as d, d.client() as c:
            c.score([[1, 2, 3]], top_k=2, flags=1)    # durable: it is in the store when the answer comes
            for other in ({"top_k": 3}, {"top_k": 2, "own": True}, {"top_k": 2, "temperatures": (2.0,)}):
                self.assertEqual(c.score([[1, 2, 3]], **other)[0][0], False, other)
            for part in ({"top_k": 1}, {"top_k": 2, "first": 1}):
                self.assertEqual(c.score([[1, 2, 3]], **part)[0][0], True, part)
            self.assertEqual(c.score([[1, 2, 3]], top_k=2, temperatures=(1.0,), last=2)[0][0], True)    # the same, written otherwise

    def test_durable_answers_survive_kill_9(self):
        d = self.daemon()
        with d.client() as c:
            first = c.score(SEQUENCES, top_k=4, flags=1)
            self.assertEqual(c.score(SEQUENCES, top_k=4, flags=1)[0][0], True)    # a hit can be durable too
        d.process.kill()
        d.stop(expect=-signal.SIGKILL)
        with self.daemon() as d, d.client() as c:
            again = c.score(SEQUENCES, top_k=4)
        self.assertEqual([(True, first[i][1]) for i in range(3)], [again[i] for i in range(3)])

    def test_another_model_does_not_answer_from_the_store_of_the_first(self):
        with self.daemon() as d, d.client() as c:
            first = c.score([[1, 2]], top_k=2)
        tiny_model.write(self.path("model"), seed=2)
        with self.daemon() as d, d.client() as c:
            second = c.score([[1, 2]], top_k=2)
            self.assertEqual(second[0][0], False)
            self.assertNotEqual(second[0][1], first[0][1])


class Settings(Temporary):
    def asked(self, n, *arguments, **environment):
        with open(self.path("conf"), "w") as f:
            f.write("max-sequences = 2\n")
        with Daemon("--config", self.path("conf"), *arguments, directory=self.directory, environment=environment) as d:
            return d.post("/v1/score", {"sequences": [{"tokens": [1]}] * n, "top_k": 1})[0]

    def test_the_command_line_wins_over_the_environment_and_that_over_the_file(self):
        self.assertNotEqual(self.asked(3), 200)
        self.assertEqual(self.asked(3, KDSERVED_MAX_SEQUENCES="3"), 200)
        self.assertNotEqual(self.asked(3, "--max-sequences", "2", KDSERVED_MAX_SEQUENCES="3"), 200)

    def test_a_bad_variable_is_named(self):
        os.environ["KDSERVED_MAX_TOKENS"] = "many"
        self.addCleanup(os.environ.pop, "KDSERVED_MAX_TOKENS")
        status, _, said = run("--teacher", "/", "--check-config")
        self.assertEqual((status, "$KDSERVED_MAX_TOKENS: max-tokens = many" in said), (78, True), said)


class Stopping(Temporary):
    def test_sigterm_answers_what_was_accepted(self):
        d = Daemon("--batch-tokens", "64", directory=self.directory)
        with d.client() as c:
            request_id = c.start_score([[i % 250] * 60 for i in range(400)], top_k=20)
            wait_until(lambda: d.metrics()["kd_forward_passes_total"] > 0, "the first pass")
            d.process.send_signal(signal.SIGTERM)
            wait_until(lambda: d.http("GET", "/ready")[0] == 503, "/ready to say 503")
            self.assertEqual(d.get("/live")[0], 200)
            refused = c.start_score([[1]], top_k=1)
            answers, ended, goaway = 0, {}, False
            while len(ended) < 2:
                kind, got, body = c.receive()
                goaway |= kind == kdserved.GOAWAY
                answers += kind == kdserved.ANSWER
                if kind == kdserved.ERROR:
                    ended[got] = ProtocolError(body).code
                elif kind == kdserved.DONE:
                    ended[got] = "done"
            self.assertEqual((answers, ended, goaway), (400, {request_id: "done", refused: "unavailable"}, True))
        self.assertEqual(d.wait_exit(), 0)
        self.assertFalse(os.path.exists(d.socket_path))
        d.stop()

    def over_tcp(self, d):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        s.connect(("127.0.0.1", int(re.search(r"listening on tcp:127\.0\.0\.1:(\d+)", d.log()).group(1))))
        return kdserved.Client(s)

    def test_what_the_network_has_not_delivered_is_not_dropped(self):
        """A client that reads slowly, and says something, while its answers lie with the server's kernel alone."""
        d = Daemon("--socket", "tcp:127.0.0.1:0", "--max-tokens", "512", directory=self.directory)
        with self.over_tcp(d) as c:
            request_id = c.start_score([[i + 1] * 400 for i in range(5)], top_k=256)       # 2 MB
            wait_until(lambda: d.metrics()['kd_requests_answered_total{door="socket"}'] == 1, "the answers")
            d.process.send_signal(signal.SIGTERM)
            d.wait_line("draining")
            until = time.monotonic() + 1
            wait_until(lambda: d.process.poll() is not None or time.monotonic() > until, "an end that is too early")
            c.send(kdserved.PING, 9)
            self.assertEqual(len(c.finish_score(request_id)), 5)
        self.assertEqual(d.wait_exit(), 0)
        d.stop()

    def test_the_drain_has_a_deadline(self):
        d = Daemon("--batch-tokens", "64", "--drain-timeout", "0s", directory=self.directory)
        with d.client() as c:
            c.start_score([[i % 250] * 60 for i in range(1000)], top_k=200)
            wait_until(lambda: d.metrics()["kd_forward_passes_total"] > 0, "the first pass")
        d.stop()    # checks the exit status

    def test_a_second_signal_ends_at_once(self):
        d = Daemon("--batch-tokens", "64", directory=self.directory)
        with d.client() as c:
            c.start_score([[i % 250] * 1000 for i in range(900)], top_k=1)
            wait_until(lambda: d.metrics()["kd_forward_passes_total"] > 0, "the first pass")
            d.process.send_signal(signal.SIGTERM)
            wait_until(lambda: d.http("GET", "/ready")[0] == 503, "the drain")
            d.process.send_signal(signal.SIGTERM)
            self.assertEqual(d.wait_exit(), 1)
        d.stop(expect=1)


class Starting(Temporary):
    def model(self):
        path = self.path("model")
        tiny_model.write(path)
        return path

    def refused(self, model, words):
        d = Daemon(directory=self.directory, model=model, wait=False)
        status = d.wait_exit()
        self.assertEqual(status, 78, d.log())
        self.assertRegex(d.log(), words)
        d.stop(expect=78)

    def test_bad_model_files_are_refused_with_the_reason(self):
        path = self.model()
        weights = self.path("model/model.safetensors")
        with open(weights, "rb") as f:
            good = f.read()
        header_n, = struct.unpack("<Q", good[:8])
        header = json.loads(good[8:8 + header_n])

        def bent(change):
            h = json.loads(json.dumps(header))
            change(h)
            text = json.dumps(h).encode()
            return struct.pack("<Q", len(text)) + text + good[8 + header_n:]
        name = "model.norm.weight"
        begin, end = header[name]["data_offsets"]
        cases = [
            (good[:-100], "model.safetensors|offset|end|size|truncat"),
            (bent(lambda h: h[name].update(data_offsets=[begin - 128, end - 128])), "begins at"),
            (bent(lambda h: h[name].update(shape=[1 << 62, 1 << 62])), "shape|overflow|bytes|large|dimension"),
            (bent(lambda h: h[name].update(dtype="I32")), "I32|dtype"),
            (struct.pack("<Q", 1 << 60) + good[8:], "header"),
            (bent(lambda h: h.update({"model.norm.other": h.pop(name)})), "norm"),
        ]
        for data, words in cases:
            with self.subTest(words=words):
                with open(weights, "wb") as f:
                    f.write(data)
                self.refused(path, words)

    def test_other_faults_of_a_model_are_named(self):
        path = self.model()
        with open(self.path("model/config.json")) as f:
            config = json.load(f)
        for key, value, words in (("architectures", ["MambaForCausalLM"], "Mamba"),
            ("num_hidden_layers", 10 ** 9, "num_hidden_layers|layers"), ("hidden_act", "relu", "relu")):
            with self.subTest(key=key):
                with open(self.path("model/config.json"), "w") as f:
                    json.dump(dict(config, **{key: value}), f)
                self.refused(path, words)
        self.refused(self.path("nowhere-at-all/model.gguf"), "nowhere-at-all|No such file")

    def refused_arguments(self, status, words, *arguments):
        got, _, err = run(*arguments)
        self.assertEqual(got, status, err)
        self.assertRegex(err, words)
        self.assertEqual(err.count("\n"), 1, err)

    def test_bad_arguments(self):
        model = self.model()
        self.refused_arguments(2, 'did you mean "teacher"', "--teachr", "x")
        self.refused_arguments(2, "needs a value", "--teacher")
        self.refused_arguments(2, "unexpected argument", "x")
        self.refused_arguments(78, "no teacher", "--http", "127.0.0.1:0")
        self.refused_arguments(78, "max-tokens", "--teacher", model, "--max-tokens", "-1")
        self.refused_arguments(78, "other machines", "--teacher", model, "--http", "0.0.0.0:1")
        self.refused_arguments(78, "other machines", "--teacher", model, "--socket", "tcp:[::]:1")
        self.refused_arguments(78, "both doors", "--teacher", model, "--http", "", "--socket", "")
        self.refused_arguments(78, "nowhere", "--config", self.path("nowhere.conf"))
        with open(self.path("bad.conf"), "w") as f:
            f.write("teacher = x\nmax-top-k = many\n")
        self.refused_arguments(78, r"bad.conf:2.*max-top-k", "--config", self.path("bad.conf"))

    def test_what_settings_name_and_is_none_is_bad_configuration(self):
        """78, for which the unit does not start it again."""
        doors = ("--teacher", self.model(), "--http", "127.0.0.1:0", "--socket", "unix:" + self.path("s"))
        with open(self.path("file"), "w"):
            pass
        for arguments, words in ((("--store", self.path("file")), "store .*/file: .*Not a directory"),
                                 (("--store", self.path("file/store")), "store .*/file/store: .*Not a directory"),
                                 (("--runs", self.path("runs"), "--worker", "/nowhere"), "worker = /nowhere: No such file"),
                                 (("--runs", self.path("runs"), "--worker", self.path("file")), "worker = .*/file: Permission denied")):
            with self.subTest(arguments=arguments):
                status, _, err = run(*doors, *arguments)
                self.assertEqual(status, 78, err)
                self.assertRegex(err, "error: " + words)
                self.assertFalse(os.path.exists(self.path("s")), "the file of a socket on which nobody listens")

    def test_a_start_that_fails_leaves_no_file_of_a_door(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for http, last in (("unix:" + self.path("http"), "tcp:127.0.0.1:%d" % port), ("", "unix:" + self.path("nowhere/at/all"))):
                with self.subTest(last=last):
                    status, _, err = run("--teacher", self.model(), "--http", http, "--socket", "unix:" + self.path("s"), "--socket", last)
                    self.assertEqual((status, "listening on unix:" + self.path("s") in err), (1 if "tcp" in last else 78, True), err)
                    self.assertRegex(err, "error: socket: cannot listen on")
                    self.assertEqual([n for n in ("s", "http") if os.path.exists(self.path(n))], [])

    def test_a_door_that_closes_takes_its_file_along(self):
        d = Daemon("--http", "unix:" + self.path("http"), directory=self.directory)
        self.assertTrue(os.path.exists(self.path("http")) and os.path.exists(d.socket_path))
        d.stop()
        self.assertFalse(os.path.exists(self.path("http")) or os.path.exists(d.socket_path))

    def test_check_config_help_and_version(self):
        with open(self.path("good.conf"), "w") as f:
            f.write("# ours\nteacher = %s\nthreads = 1\n" % self.model())
        self.assertEqual(run("--config", self.path("good.conf"), "--check-config")[0], 0)
        self.assertEqual(run("--config", self.path("good.conf"), "--teacher", "/nowhere", "--check-config")[0], 78)
        status, out, _ = run("--help")
        self.assertEqual(status, 0)
        self.assertIn("--batch-tokens", out)
        self.assertRegex(run("--version")[1], r"^kdserved \d")

    def test_the_command_line_wins_over_the_file(self):
        with open(self.path("some.conf"), "w") as f:
            f.write("max-tokens = 7\nmax-top-k = 5\n")
        with Daemon("--config", self.path("some.conf"), "--max-tokens", "9", directory=self.directory) as d:
            model = d.get("/v1/model")[1]
        self.assertEqual((model["max_tokens"], model["max_top_k"]), (9, 5))

    def test_a_socket_that_is_served_is_not_taken_over_and_a_stale_one_is(self):
        d = Daemon(directory=self.directory)
        self.assertEqual(os.stat(d.socket_path).st_mode & 0o777, 0o600)
        second = Daemon(directory=self.directory, wait=False)
        self.assertEqual(second.wait_exit(), 1, second.log())
        self.assertRegex(second.log(), "another process serves")
        second.stop(expect=1)
        d.process.kill()
        d.stop(expect=-signal.SIGKILL)
        with Daemon(directory=self.directory) as d, d.client() as c:
            self.assertEqual(len(c.score([[1]], top_k=1)), 1)


class Reachable(Temporary):
    def sockets(self, d, *names):
        """[(kind, where)] of the daemon's own in the kernel's tables."""
        mine, found = set(), []
        for fd in os.listdir("/proc/%d/fd" % d.process.pid):
            link = re.fullmatch(r"socket:\[(\d+)\]", os.readlink("/proc/%d/fd/%s" % (d.process.pid, fd)))
            mine |= {link.group(1)} if link else set()
        for name in names:
            with open("/proc/net/" + name) as f:
                rows = [line.split() for line in f.readlines()[1:]]
            if name == "unix":
                found += [(name, row[7]) for row in rows if row[6] in mine and len(row) > 7 and int(row[3], 16) & 0x10000]
            else:
                found += [(name, row[1]) for row in rows if row[9] in mine]
        return found

    def test_it_listens_where_it_was_told_and_nowhere_else(self):
        with Daemon(directory=self.directory) as d:
            self.assertEqual(self.sockets(d, "tcp", "tcp6", "udp", "udp6", "raw", "raw6", "unix"),
                             [("tcp", "0100007F:%04X" % d.port), ("unix", d.socket_path)])

    @staticmethod
    def knock(directory, told):
        """As nobody, until the directory is gone: tells with what errors connecting ended."""
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        seen = set()
        while os.path.exists(directory):
            with socket.socket(socket.AF_UNIX) as s:
                seen.add(s.connect_ex(os.path.join(directory, "kd.sock")))
        told.send(seen)

    @unittest.skipUnless(os.geteuid() == 0, "only root can be somebody else")
    def test_nobody_else_connects_to_its_unix_socket_not_even_while_it_opens(self):
        directory = tempfile.mkdtemp(prefix="kdserved-e2e-", dir="/tmp")       # everybody may pass through
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        os.chmod(directory, 0o755)
        seen, whole = multiprocessing.Pipe(duplex=False)
        other = multiprocessing.get_context("fork").Process(target=self.knock, args=(directory, whole))
        other.start()
        self.addCleanup(other.kill)
        for _ in range(5):
            with Daemon(directory=directory) as d, d.client() as c:
                self.assertEqual(len(c.score([[1]], top_k=1)), 1)
        shutil.rmtree(directory)
        self.assertTrue(seen.poll(kdserved.PATIENCE))
        seen = seen.recv()
        other.join()
        self.assertIn(errno.EACCES, seen)
        self.assertLessEqual(seen, {errno.EACCES, errno.ENOENT, errno.ECONNREFUSED})


class Systemd(Temporary):
    def test_the_manager_is_told_and_the_watchdog_fed(self):
        path = self.path("notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.bind(path)
            s.settimeout(kdserved.PATIENCE)

            def wait_for(word):
                while word not in s.recv(4096).decode().split("\n"):
                    pass
            # The watchdog's settings name a process: the daemon takes them as its own when the number is left out.
            d = Daemon(directory=self.directory, environment={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "300000"})
            wait_for("READY=1")
            wait_for("WATCHDOG=1")
            wait_for("WATCHDOG=1")
            d.process.send_signal(signal.SIGHUP)    # changes nothing
            d.wait_line("SIGHUP")
            self.assertEqual(d.get("/ready")[0], 200)
            d.process.send_signal(signal.SIGTERM)
            wait_for("STOPPING=1")
            self.assertEqual(d.wait_exit(), 0)
            d.stop()


class Loading(Temporary):
    def test_the_doors_answer_while_the_teacher_loads(self):
        model = self.path("model")
        tiny_model.write(model)
        tiny_model.grow(model, 400000)    # a second or more
        d = Daemon(directory=self.directory, wait=False)
        d.wait_line("listening on unix:")
        self.assertEqual(d.get("/live"), (200, {"live": True}))
        status, headers, body = d.http("GET", "/ready")
        self.assertEqual((status, headers["Retry-After"], json.loads(body)["error"]["code"]), (503, "1", "unavailable"))
        self.assertEqual(d.post("/v1/score", {"sequences": [{"tokens": [1]}], "top_k": 1})[0], 503)
        self.assertEqual(d.get("/v1/model")[0], 503)
        self.assertEqual(d.get("/v1/status")[1]["ready"], False)
        self.assertEqual(d.metrics()["kd_ready"], 0)
        with self.assertRaises(AssertionError) as caught:    # no WELCOME but an ERROR
            d.client()
        self.assertIn("unavailable", str(caught.exception))
        d.wait_line(": teacher ")
        wait_until(lambda: d.http("GET", "/ready")[0] == 200, "/ready")
        d.stop()


class Overload(Temporary):
    def test_what_does_not_fit_now_is_429_and_what_never_fits_is_413(self):
        settings = ("--queue-requests", "1", "--queue-tokens", "100000", "--batch-tokens", "64")
        with Daemon(*settings, directory=self.directory) as d, d.client() as c:
            never = {"sequences": [{"tokens": [1] * 1000}] * 101, "own": True}
            status, reply = d.post("/v1/score", never)
            self.assertEqual((status, reply["error"]["code"]), (413, "too_large"))
            request_id = c.start_score([[i % 250] * 1000 for i in range(90)], top_k=1)
            wait_until(lambda: d.metrics()["kd_forward_passes_total"] > 0, "the first pass")
            status, headers, body = d.http("POST", "/v1/score", {"sequences": [{"tokens": [1]}], "top_k": 1})
            self.assertEqual((status, headers["Retry-After"], json.loads(body)["error"]["code"]), (429, "1", "overloaded"))
            self.assertEqual(len(c.finish_score(request_id)), 90)
            wait_until(lambda: d.post("/v1/score", {"sequences": [{"tokens": [1]}], "top_k": 1})[0] == 200, "room again")

    def test_an_http_client_that_leaves_takes_its_request_back(self):
        body = json.dumps({"sequences": [{"tokens": [i % 250] * 1000} for i in range(300)], "top_k": 1}).encode()
        with Daemon("--batch-tokens", "64", directory=self.directory) as d:
            with socket.create_connection(("127.0.0.1", d.port)) as s:
                s.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
                s.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
                wait_until(lambda: d.metrics()["kd_forward_passes_total"] > 0, "the first pass")
            wait_until(lambda: d.metrics()['kd_requests_cancelled_total{door="http"}'] == 1, "the cancel")
            self.assertLess(d.metrics()["kd_forward_sequences_total"], 300)
            wait_until(lambda: (m := d.metrics())["kd_reserved_bytes"] == 0 and m['kd_requests_in_flight{door="http"}'] == 0, "all of it to be let go")


class Name(Temporary):
    def test_the_process_goes_by_the_name_of_the_program(self):
        """It runs itself anew from /proc/self/exe, which must not show."""
        with Daemon(directory=self.directory) as d, open("/proc/%d/comm" % d.process.pid) as f:
            self.assertEqual(f.read(), "kdserved\n")


class Memory(Temporary):
    def peak(self, top_k):
        """Peak resident bytes of a fresh daemon that scores 64 sequences of 1024 tokens."""
        with Daemon(directory=self.directory) as d, d.client() as c:
            c.score([[i * 4 + 1] * 1024 for i in range(64)], top_k=top_k)
            with open("/proc/%d/status" % d.process.pid) as f:
                return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) * 1024

    @unittest.skipIf(os.environ.get("KDSERVED_TEST_SANITIZED"), "sanitizers keep freed memory")
    def test_memory_does_not_grow_with_top_k(self):
        small, large = self.peak(1), self.peak(64)
        self.assertLess(large - small, 100 << 20, (small, large))


if __name__ == "__main__":
    unittest.main(verbosity=2)
