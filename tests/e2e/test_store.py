# SPDX-License-Identifier: Apache-2.0
"""The store behind the doors: a stored answer serves smaller questions with the bytes the teacher gives, and a store has one daemon."""
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "conformance"))
import kdserved
import kdserved_bytes as kd
import tiny_model
from kdserved import Daemon

NO_STORE, DURABLE = 2, 1
TOKENS = [5, 17, 200, 3, 99, 45, 7, 150, 2, 61]


def ask(c, query, flags=0):
    request_id = c.next_id
    c.next_id += 1
    c.send(kdserved.SCORE, request_id, kd.score_body(query, [TOKENS], flags=flags))
    return c.finish_score(request_id)[0]


def wide(values):
    n = len(TOKENS)
    return dict(top_k=20, temperatures=[0.5, 1, 2], own=True, entropy=True, max_prob=True, argmax=True, sum_squares=True, tail=False,
                values=values, gather=[[i, 2 * i + 1, 9] for i in range(n)], draws={"n": 8, "seed": 3}, spans=[(1, 4), (2, 9)],
                features=[(kd.HIDDEN, 1), (kd.FINAL, 0)], feature_values=kd.F32)


def less(rng, values):
    q = wide(values)
    first, last = rng.randrange(3), len(TOKENS) - 1 - rng.randrange(3)
    q["first"], q["last"] = first, last
    q["gather"] = [lists[:rng.randint(1, 3)] for lists in q["gather"][first:last + 1]] if rng.randrange(2) else None
    q["temperatures"] = rng.sample(q["temperatures"], rng.randint(1, 3))
    for name in "own", "entropy", "max_prob", "argmax", "sum_squares":
        q[name] = bool(rng.randrange(2))
    if rng.randrange(2):
        q["draws"] = None
    q["spans"] = rng.sample(q["spans"], rng.randint(0, 2))
    q["features"] = rng.sample(q["features"], rng.randint(0, 2))
    if values == kd.F32:
        q["top_k"] = rng.choice([0, 1, 5, 20])
        q["values"] = rng.choice([kd.F32, kd.F16, kd.U8])
        q["feature_values"] = rng.choice([kd.F32, kd.F16, kd.BF16])
    return kd.Query(**q)


def sections(record):
    """Contents by tag: where two records differ."""
    n_tokens, = struct.unpack_from("<I", record, 84)
    n_query, = struct.unpack_from("<I", record, 92)
    at, found = 100 + n_query + 4 * n_tokens, []
    while at < len(record):
        tag, _, n = struct.unpack_from("<HHI", record, at)
        found.append((tag, record[at + 8:at + 8 + n].hex()))
        at += 8 + n
    return found


class NotFinite(unittest.TestCase):
    """A teacher that gives no numbers behind one id: such answers are told of, counted, and never kept."""
    BAD = 77

    def model(self, directory):
        path = os.path.join(directory, "model")
        tiny_model.write(path)
        with open(os.path.join(path, "model.safetensors"), "rb") as f:
            n, = struct.unpack("<Q", f.read(8))
            header, data = json.loads(f.read(n)), bytearray(f.read())
        begin, end = header["model.embed_tokens.weight"]["data_offsets"]
        header["lm_head.weight"] = dict(header["model.embed_tokens.weight"], data_offsets=[len(data), len(data) + end - begin])
        data += data[begin:end]                     # not the embedding itself: it would be no number in any row
        struct.pack_into("<f", data, begin + 4 * tiny_model.WIDTH * self.BAD, float("nan"))
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(path, "model.safetensors"), "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text + data)
        with open(os.path.join(path, "config.json")) as f:
            config = json.load(f)
        with open(os.path.join(path, "config.json"), "w") as f:
            json.dump(dict(config, tie_word_embeddings=False), f)
        return path

    def test_what_is_no_number_is_told_and_not_kept(self):
        good, bad = {"tokens": [1, 2, 3]}, {"tokens": [1, self.BAD, 3]}
        with tempfile.TemporaryDirectory(prefix="kdserved-e2e-") as directory, \
                Daemon("--store", os.path.join(directory, "store"), model=self.model(directory)) as d:
            status, reply = d.post("/v1/score", {"sequences": [good, bad], "top_k": 2, "own": True})
            told = [[r["status"] for r in s["rows"]] for s in reply["sequences"]]
            self.assertEqual((status, told[0], told[1][1:]), (200, ["ok"] * 3, ["not_finite"] * 2))
            self.assertEqual(d.metrics()["kd_rows_not_finite_total"], told[1].count("not_finite"))
            status, reply = d.post("/v1/score", {"sequences": [good, bad], "top_k": 2, "own": True})
            self.assertEqual([s["cached"] for s in reply["sequences"]], [True, False])
            status, reply = d.post("/v1/score", {"sequences": [bad], "top_k": 2, "own": True, "durable": True})
            self.assertEqual((status, reply["error"]["code"]), (500, "not_finite"))
            status, reply = d.post("/v1/completions", {"prompt": bad["tokens"], "max_tokens": 0, "echo": True, "logprobs": 1})
            self.assertEqual((status, reply["error"]["code"]), (500, "not_finite"))
            self.assertEqual([d.metrics()[name] for name in ('kd_requests_errors_total{code="not_finite"}', 'kd_requests_rejected_total{door="http"}',
                'kd_requests_answered_total{door="http"}')], [2, 2, 2])
            with d.client() as c, self.assertRaises(kdserved.ProtocolError) as refused:
                c.score([bad["tokens"]], top_k=2, flags=DURABLE)
            self.assertEqual(refused.exception.code, "not_finite")
            with d.client() as c:
                self.assertEqual(len(c.score([good["tokens"]], top_k=5, flags=DURABLE)), 1)
            m = d.metrics()
            self.assertEqual((m["kd_store_appended_total"], m["kd_store_records"], m["kd_answers_unkept_total"]), (2, 2, 0))


class Contained(unittest.TestCase):
    def test_what_is_cut_out_of_a_stored_answer_is_what_the_teacher_says(self):
        rng = random.Random(4)
        for values in kd.F32, kd.F16:
            with tempfile.TemporaryDirectory(prefix="kdserved-e2e-") as store, Daemon("--store", store) as d, d.client() as c:
                cached, _ = ask(c, kd.Query(**wide(values)), DURABLE)
                self.assertFalse(cached)
                for i in range(60):
                    q = less(rng, values)
                    cached, record = ask(c, q)
                    told = ask(c, q, NO_STORE)
                    self.assertEqual((cached, told[0]), (True, False), (values, i, vars(q)))
                    self.assertEqual(sections(record), sections(told[1]), (values, i, vars(q)))
                    self.assertEqual(record, told[1], (values, i, vars(q)))
                cached, _ = ask(c, kd.Query(top_k=21))
                self.assertFalse(cached)
                metrics = d.http("GET", "/metrics")
                self.assertIn("kd_store_contained_total 6", str(metrics))


class Second(unittest.TestCase):
    def test_a_second_daemon_is_refused_and_the_first_goes_on(self):
        with tempfile.TemporaryDirectory(prefix="kdserved-e2e-") as store, Daemon("--store", store) as first, first.client() as c:
            before = ask(c, kd.Query(top_k=3), DURABLE)[1]
            second = Daemon("--store", store, wait=False)
            self.assertNotEqual(second.wait_exit(), 0)
            self.assertRegex(second.log(), "another process, pid %d is writing to it" % first.process.pid)
            second.stop(expect=None)
            self.assertEqual(ask(c, kd.Query(top_k=3)), (True, before))
            self.assertEqual(ask(c, kd.Query(top_k=4), DURABLE)[0], False)


KDCTL = os.path.join(kdserved.BUILD, "kdctl")


class Compressed(unittest.TestCase):
    def test_the_answers_of_a_compressed_store_are_those_of_the_teacher(self):
        check = subprocess.run([os.path.join(kdserved.BUILD, "kdserved"), "--teacher", "none", "--store-compression", "zstd",
                                "--check-config"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if b"no zstd" in check.stderr:
            self.skipTest("built without zstd")
        with tempfile.TemporaryDirectory(prefix="kdserved-e2e-") as store:
            with Daemon("--store", store, "--store-compression", "zstd:19") as d, d.client() as c:
                told = ask(c, kd.Query(**wide(kd.F32)), DURABLE)
                again = ask(c, kd.Query(**wide(kd.F32)))
                self.assertEqual((told[0], again), (False, (True, told[1])))
            with Daemon("--store", store) as d, d.client() as c:
                self.assertEqual(ask(c, kd.Query(**wide(kd.F32))), (True, told[1]))
            saved = kdctl("store", "stat", store)["saved_bytes"]
            self.assertGreater(saved, 0)
            kdctl("store", "compact", "--compression", "none", store)
            self.assertEqual(kdctl("store", "stat", store)["saved_bytes"], 0)
            kdctl("store", "compact", "--compression", "zstd:19", store)
            self.assertEqual(kdctl("store", "stat", store)["saved_bytes"], saved)
            self.assertEqual(kdctl("store", "verify", store)["summary"]["damaged"], 0)
            with Daemon("--store", store) as d, d.client() as c:
                self.assertEqual(ask(c, kd.Query(**wide(kd.F32))), (True, told[1]))


def kdctl(*arguments, expect=0):
    done = subprocess.run([KDCTL, "--json", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=kdserved.PATIENCE)
    if done.returncode != expect:
        raise AssertionError("kdctl %s: %d: %s" % (" ".join(arguments), done.returncode, done.stderr.decode()))
    return json.loads(done.stdout.decode().splitlines()[-1])


class Upkeep(unittest.TestCase):
    def test_stat_tells_how_often_the_server_found_answers(self):
        with tempfile.TemporaryDirectory(prefix="kdserved-e2e-") as store, Daemon("--store", store) as d, d.client() as c:
            ask(c, kd.Query(top_k=9, own=True), DURABLE)
            ask(c, kd.Query(top_k=9, own=True))
            ask(c, kd.Query(top_k=4))
            ask(c, kd.Query(top_k=12), DURABLE)
            stat = kdctl("store", "stat", "--server", "unix:" + d.socket_path, store)
            self.assertEqual((stat["records"], stat["rows"], stat["duplicates"], stat["contained"]), (2, 20, 0, 0))
            self.assertEqual([stat["server"][name] for name in ("hits", "contained", "misses")], [2, 1, 2])
            self.assertEqual({kind["kind"] for kind in stat["teachers"][0]["kinds"]}, {"top-9 f32 own", "top-12 f32"})
            parts = stat["parts"]
            self.assertEqual(sum(parts.values()), stat["shard_bytes"] + stat["index_bytes"])
            self.assertEqual(parts["tokens"], 2 * 4 * len(TOKENS))
            with self.assertRaisesRegex(AssertionError, "another process, pid %d is writing to it" % d.process.pid):
                kdctl("store", "compact", store)

    def test_the_server_keeps_its_store_within_its_size(self):
        arguments = "--store-shard", "1M", "--store-max-bytes", "2M"
        with tempfile.TemporaryDirectory(prefix="kdserved-e2e-") as store, Daemon("--store", store, *arguments) as d, d.client() as c:
            rng = random.Random(8)
            sequences = [[rng.randrange(250) for _ in range(100)] for _ in range(60)]
            for tokens in sequences:                # about 105 KB each
                request_id = c.next_id
                c.next_id += 1
                c.send(kdserved.SCORE, request_id, kd.score_body(kd.Query(dense=True), [tokens], flags=DURABLE))
                self.assertFalse(c.finish_score(request_id)[0][0])
            size = sum(os.path.getsize(os.path.join(store, name)) for name in os.listdir(store))
            self.assertLess(size, 4 << 20)
            status = d.http("GET", "/v1/status")
            self.assertGreater(kdctl("--server", "unix:" + d.socket_path, "status")["store"]["removed_shards"], 2, status)
            self.assertTrue(self.score(c, sequences[-1]))
            self.assertFalse(self.score(c, sequences[0]))        # a miss: computed again
            self.assertEqual(kdctl("store", "verify", store)["summary"]["damaged"], 0)

    def score(self, c, tokens):
        request_id = c.next_id
        c.next_id += 1
        c.send(kdserved.SCORE, request_id, kd.score_body(kd.Query(dense=True), [tokens], flags=0))
        return c.finish_score(request_id)[0][0]


if __name__ == "__main__":
    unittest.main()
