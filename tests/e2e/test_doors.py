# SPDX-License-Identifier: Apache-2.0
"""Both doors of a running daemon: the same numbers, the resources, sharing of forward passes, streams and cancels."""
import base64
import contextlib
import json
import os
import re
import select
import signal
import socket
import struct
import threading
import time
import unittest

import kdserved
from kdserved import Daemon, as_f32, decode_record, wait_until

TEXT = "the cat and the dog in the garden"


class Doors(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", "512", "--write-timeout", "%ds" % kdserved.PATIENCE)     # one of the clients is slow

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def test_both_doors_give_the_same_numbers(self):
        tokens = [5, 17, 200, 3, 99, 256, 258]
        status, reply = self.daemon.post("/v1/score", {"sequences": [{"tokens": tokens}, {"tokens": [1, 2]}],
            "top_k": 7, "own": True, "entropy": True,
                                                       "temperatures": [2.0, 1.0, 2.0]})
        self.assertEqual(status, 200, reply)
        with self.daemon.client() as c:
            answers = c.score([tokens, [1, 2]], top_k=7, own=True, entropy=True, temperatures=(1.0, 2.0))
        for i in range(2):
            rows = decode_record(answers[i][1])
            for row in rows:    # a record keeps temperatures sorted and once; HTTP answers in the order asked
                one, two = row["lse"]
                row["lse"] = [two, one, two]
            self.assertEqual([as_f32(r) for r in reply["sequences"][i]["rows"]], rows)
            self.assertEqual(len(reply["sequences"][i]["rows"]), [7, 2][i])

    def test_alone_or_in_company_a_sequence_gets_the_same_bytes(self):
        with self.daemon.client() as c:
            alone = c.score([[7, 8, 9]], top_k=5)[0][1]
            company = c.score([[1] * 40, [7, 8, 9], list(range(100))], top_k=5)
        self.assertEqual(company[1][1], alone)

    def test_text_is_tokenized_with_offsets(self):
        status, reply = self.daemon.post("/v1/score", {"sequences": [{"text": TEXT}], "own": True})
        self.assertEqual(status, 200, reply)
        one = reply["sequences"][0]
        status, tok = self.daemon.post("/v1/tokenize", {"text": TEXT})
        self.assertEqual((status, tok["tokens"], tok["offsets"]), (200, one["tokens"], one["offsets"]))
        self.assertEqual("".join(TEXT[a:b] for a, b in one["offsets"]), TEXT)
        self.assertIsNone(one["rows"][-1]["own_logit"])
        status, back = self.daemon.post("/v1/detokenize", {"tokens": one["tokens"]})
        self.assertEqual((status, back), (200, {"text": TEXT}))

    def test_first_and_last_choose_rows(self):
        tokens = [9, 8, 7, 6, 5]
        _, whole = self.daemon.post("/v1/score", {"sequences": [{"tokens": tokens}], "top_k": 3})
        _, part = self.daemon.post("/v1/score", {"sequences": [{"tokens": tokens}], "top_k": 3, "first": -4, "last": 2})
        self.assertEqual(part["sequences"][0]["rows"], whole["sequences"][0]["rows"][1:3])
        self.assertEqual((part["sequences"][0]["first"], part["sequences"][0]["last"]), (1, 2))

    def test_base64_holds_the_same_numbers(self):
        ask = {"sequences": [{"tokens": [4, 5, 6]}], "top_k": 2, "own": True, "entropy": True}
        _, plain = self.daemon.post("/v1/score", ask)
        _, packed = self.daemon.post("/v1/score", dict(ask, encoding="base64"))
        one = packed["sequences"][0]

        def column(name, letter):
            data = base64.b64decode(one[name]["data"], validate=True)
            return struct.unpack("<%d%s" % (len(data) // struct.calcsize(letter), letter), data)
        rows = [as_f32(r) for r in plain["sequences"][0]["rows"]]
        self.assertEqual(one["ids"]["shape"], [3, 2])
        self.assertEqual(list(column("ids", "I")), sum((r["ids"] for r in rows), []))
        self.assertEqual(list(column("logits", "f")), sum((r["logits"] for r in rows), []))
        self.assertEqual(list(column("lse", "f")), sum((r["lse"] for r in rows), []))
        self.assertEqual(list(column("entropy", "f")), [r["entropy"] for r in rows])
        self.assertEqual(list(column("status", "B")), [0, 0, 0])

    def test_resources_answer_on_both_doors(self):
        self.assertEqual(self.daemon.get("/live"), (200, {"live": True}))
        self.assertEqual(self.daemon.get("/ready"), (200, {"ready": True}))
        status, model = self.daemon.get("/v1/model")
        self.assertEqual(status, 200)
        for key in ("id", "tokenizer_id", "architecture", "vocab_size", "context_length", "n_parameters", "dtype", "device"):
            self.assertIn(key, model)
        with self.daemon.client() as c:
            status, body = c.call("GET", "/v1/model")
            self.assertEqual((status, json.loads(body)["id"]), (200, model["id"]))
            self.assertEqual(c.welcome[4:36].hex(), model["id"])
            status, body = c.call("GET", "/v1/tokenizer")
            self.assertEqual((status, json.loads(body)["model"]["type"]), (200, "BPE"))
            self.assertEqual(c.call("GET", "/nowhere")[0], 404)
            status, body = c.call("POST", "/v1/score", b"{}")
            self.assertEqual((status, json.loads(body)["error"]["code"]), (422, "unsupported"))
        self.assertEqual(self.daemon.get("/v1/status")[1]["ready"], True)
        self.assertEqual(self.daemon.http("HEAD", "/live")[0], 200)
        self.assertEqual(self.daemon.get("/v1/runs")[0], 422)    # no runs directory

    def test_ping_comes_back(self):
        with self.daemon.client() as c:
            c.send(kdserved.PING, 77, b"hello")
            self.assertEqual(c.receive(), (kdserved.PONG, 77, b"hello"))

    def test_several_requests_in_flight_on_one_connection(self):
        with self.daemon.client() as c:
            ids = [c.start_score([[i + 1, 2, 3]] * 3, top_k=2) for i in range(20)]
            done, answers = set(), {}
            while len(done) < len(ids):
                kind, request_id, body = c.receive()
                if kind == kdserved.DONE:
                    done.add(request_id)
                else:
                    self.assertEqual(kind, kdserved.ANSWER)
                    answers.setdefault(request_id, set()).add(struct.unpack("<I", body[:4])[0])
        self.assertEqual(answers, {i: {0, 1, 2} for i in ids})

    def test_connections_share_forward_passes(self):
        def mixed():
            return self.daemon.metrics()["kd_forward_mixed_passes_total"]
        before = mixed()

        def ask():
            with self.daemon.client() as c:
                c.score([[i, 1, 2, 3] for i in range(50)], top_k=1)

        def shared():
            threads = [threading.Thread(target=ask) for _ in range(6)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            return mixed() > before
        wait_until(shared, "a forward pass with sequences of two connections")

    def test_accounts_add_up(self):
        self.daemon.post("/v1/score", {"sequences": []})
        self.daemon.post("/v1/score", {"sequences": [{"tokens": [1]}], "top_k": 1})
        m = self.daemon.metrics()
        for door in ("http", "socket"):
            parts = [m['kd_requests_%s{door="%s"}' % (name, door)] for name in ("answered_total", "rejected_total", "cancelled_total",
                "in_flight")]
            self.assertEqual(m['kd_requests_accepted_total{door="%s"}' % door], sum(parts))
        self.assertGreaterEqual(m['kd_requests_errors_total{code="invalid"}'], 1)
        self.assertGreaterEqual(m["kd_request_seconds_count"], 1)

    def test_a_cancelled_request_ends(self):
        with self.daemon.client() as c:
            request_id = c.start_score([[i % 250] * 200 for i in range(100)], top_k=100)
            c.send(kdserved.CANCEL, request_id)
            kind = kdserved.ANSWER
            while kind == kdserved.ANSWER:
                kind, got, body = c.receive()
                self.assertEqual(got, request_id)
            if kind == kdserved.ERROR:    # else it was complete before the cancel came
                self.assertEqual(kdserved.ProtocolError(body).code, "cancelled")
            else:
                self.assertEqual(kind, kdserved.DONE)
            self.assertEqual(len(c.score([[1, 2]], top_k=1)), 1)

    def test_a_client_that_leaves_frees_its_budget(self):
        c = self.daemon.client()
        c.start_score([[i % 250] * 300 for i in range(200)], top_k=200)
        c.socket.close()
        wait_until(lambda: self.daemon.metrics()["kd_reserved_bytes"] == 0, "the budget to be free again")

    def test_a_slow_reader_does_not_block_others(self):
        with self.daemon.client() as slow, self.daemon.client() as quick:
            request_id = slow.start_score([[i % 250] * 256 for i in range(100)], top_k=250)    # far more than socket buffers hold
            for i in range(20):
                self.assertEqual(len(quick.score([[i + 1, 2]], top_k=1)), 1)
            self.assertEqual(len(slow.finish_score(request_id)), 100)

    def test_a_crowd_that_connects_does_not_block_others(self):
        """So many at once that a server which took all of them first would have let in the last when it answers."""
        with open("/proc/sys/net/core/somaxconn") as f:
            n = min(800, int(f.read()))

        def let_in_before_the_answer(d, c):
            with contextlib.ExitStack() as stack:
                stack.callback(d.process.send_signal, signal.SIGCONT)
                d.process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, d.process.pid, os.WSTOPPED | os.WNOWAIT)
                crowd = [stack.enter_context(kdserved.Client(d.socket_path, hello=False)).socket for _ in range(n)]
                c.send(kdserved.PING, 1)
                d.process.send_signal(signal.SIGCONT)
                self.assertEqual(c.receive()[0], kdserved.PONG)
                d.process.send_signal(signal.SIGSTOP)
                closed = [s for s in crowd if select.select([s], [], [], 0)[0]]        # there is no place for them
                d.process.send_signal(signal.SIGCONT)
                self.assertEqual({s.recv(1) for s in crowd}, {b""})
                return len(closed)
        with Daemon("--max-connections", "1") as d, d.client() as c:
            tries = (let_in_before_the_answer(d, c) < n for _ in range(50))      # who runs when is not ours to say
            self.assertTrue(any(tries), "all of the crowd was in first")

    def test_a_frame_is_not_late_while_the_server_does_not_read_it(self):
        """While answers wait the server reads nothing more: half a frame that it has begun with is then in nobody's hands but its own."""
        second = kdserved.frame(kdserved.SCORE, 2, kdserved.score_body([[1, 2]], top_k=1))
        n, body_timeout = 5, kdserved.PATIENCE / 40         # some 2 MB of answers: more than a socket's buffer and what may wait
        with Daemon("--max-tokens", "512", "--body-timeout", "%dms" % int(1000 * body_timeout)) as d, d.client() as c:
            first = kdserved.frame(kdserved.SCORE, 1, kdserved.score_body([[i + 1] * 400 for i in range(n)], top_k=256))
            c.send_bytes(first + second[:40])
            wait_until(lambda: d.metrics()["kd_forward_sequences_total"] == n, "answers")
            c.send_bytes(second[40:])
            stalled = time.monotonic()
            wait_until(lambda: time.monotonic() > stalled + 1.5 * body_timeout, "a stall longer than that")
            self.assertEqual(len(c.finish_score(1)), n)
            self.assertEqual(len(c.finish_score(2)), 1)

    def test_a_client_whose_machine_is_gone_is_noticed(self):
        """Nothing else would ever tell: a connection may be silent for as long as it likes."""
        with Daemon("--socket", "tcp:127.0.0.1:0") as d:
            port = int(re.search(r"listening on tcp:127\.0\.0\.1:(\d+)", d.log()).group(1))
            with kdserved.Client(socket.create_connection(("127.0.0.1", port))) as c:
                ends = " 0100007F:%04X 0100007F:%04X 01 " % (port, c.socket.getsockname()[1])     # the server's, established

                def timer():
                    with open("/proc/net/tcp") as f:
                        line = next(line for line in f if ends in line)
                    return line.split()[5].split(":")[0]
                wait_until(lambda: timer() == "02", "the keepalive timer")

    def test_deadline(self):
        with self.daemon.client() as c:
            big = c.start_score([[i % 250] * 256 for i in range(200)], top_k=100)
            late = c.start_score([[1, 2, 3]] * 3, top_k=1, deadline_ms=1)
            ended, errors = set(), []
            while ended != {big, late}:
                kind, request_id, body = c.receive()
                if kind == kdserved.DONE:
                    ended.add(request_id)
                elif kind == kdserved.ERROR:
                    errors.append((request_id, kdserved.ProtocolError(body).code))
            self.assertEqual(set(errors), {(late, "deadline")})


if __name__ == "__main__":
    unittest.main(verbosity=2)
