#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kdserved on an emulated GPU, from outside: when the device fails, at any of its calls, no answer and no stored record follows, and the process
ends with the status its manual names; a GPU that is absent or too small is said so."""
import json
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "e2e"))
import kdserved
from kdserved import Daemon

kdserved.PROGRAM = os.path.join(kdserved.BUILD, "tests/gpu/kdserved_emulated")
KINDS = ["launch", "kernel", "product", "copy", "wait"]
REQUESTS = [{"sequences": [{"tokens": [5 + i, 17, 200, 3, 99, 45 + i]}, {"tokens": [7, 8 + i, 9]}], "top_k": 4, "temperatures": [1.0, 2.0], "own": True,
             "entropy": True, "durable": True} for i in range(4)]


def rows(body):
    return [s["rows"] for s in json.loads(body)["sequences"]]


class Faults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="kdserved-faults-")
        cls.n_runs = 0
        cls.loading, _ = cls.healthy([])
        cls.total, cls.want = cls.healthy(REQUESTS)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def daemon(cls, *arguments, directory=None, **environment):
        model = os.path.join(cls.folder.name, "model")
        if not os.path.exists(model):
            kdserved.tiny_model.write(model)
        if directory is None:
            cls.n_runs += 1
            directory = os.path.join(cls.folder.name, "run%d" % cls.n_runs)
            os.mkdir(directory)
        return Daemon("--store", os.path.join(directory, "store"), "--cache-tokens", "64", "--batch-tokens", "64", "--max-tokens", "64", *arguments,
                      directory=directory, model=model, environment=environment, wait=False)

    @classmethod
    def healthy(cls, requests):
        """How many calls of each kind there are, and the rows of each answer."""
        counts = os.path.join(cls.folder.name, "counts")
        with cls.daemon("--device", "cuda", EMULATE_COUNTS=counts) as d:
            d.wait_line(r": teacher ")
            answers = [d.http("POST", "/v1/score", json.dumps(r)) for r in requests]
            assert all(status == 200 for status, _, _ in answers), answers
            assert d.metrics()["kd_device_late_allocations_total"] == 0
        with open(counts) as f:
            found = {line.split()[0]: int(line.split()[1]) for line in f}
        found["wait"] -= 1               # the last is for the device to come to rest, when all is over
        return found, [rows(body) for _, _, body in answers]

    def ask_all(self, d):
        """Status and rows of each request; (0, None) where the connection was refused or cut."""
        answers = []
        for request in REQUESTS:
            try:
                status, _, body = d.http("POST", "/v1/score", json.dumps(request))
            except OSError:
                status, body = 0, None
            except Exception as e:      # http.client's own, for a connection that was cut
                self.assertIn(type(e).__name__, ("RemoteDisconnected", "BadStatusLine", "IncompleteRead"))
                status, body = 0, None
            answers.append((status, body))
        return answers

    def fail_at(self, kind, n):
        d = self.daemon("--device", "cuda", EMULATE_FAIL="%s:%d" % (kind, n))
        try:
            d.wait_line(r": teacher ")
            answers = self.ask_all(d)
            status = d.wait_exit()       # by itself
        finally:
            d.stop(expect=None)
        self.assertEqual(status, 70, d.log())
        self.assertRegex(d.log(), r"teacher: .*backend cuda failed: ")
        good = [i for i, (code, _) in enumerate(answers) if code == 200]
        self.assertEqual(good, list(range(len(good))), "an answer after a failure")
        self.assertLess(len(good), len(REQUESTS))
        for i, (code, body) in enumerate(answers):
            if i < len(good):
                self.assertEqual(rows(body), self.want[i])
            else:
                self.assertIn(code, (0, 503), body)
        return d.directory, len(good)

    def check_store(self, directory, n_good):
        """What was stored was answered, or would have been: every record has a healthy device's numbers."""
        with self.daemon("--device", "cuda", directory=directory) as d:
            d.wait_line(r": teacher ")
            for i, request in enumerate(REQUESTS):
                status, body = d.post("/v1/score", json.dumps(request))
                self.assertEqual(status, 200)
                self.assertEqual([s["rows"] for s in body["sequences"]], self.want[i])
                cached = [s["cached"] for s in body["sequences"]]
                if i < n_good:
                    self.assertTrue(all(cached))
                if i > n_good:           # the request during which it failed may have had a sequence verified before
                    self.assertFalse(any(cached))

    def test_no_answer_follows_a_fault(self):
        for kind in KINDS:
            first, last = self.loading[kind] + 1, self.total[kind]
            self.assertLess(first, last)
            for n in sorted({first, (2 * first + last) // 3, (first + 2 * last) // 3, last}):
                with self.subTest(kind=kind, n=n):
                    self.check_store(*self.fail_at(kind, n))

    def test_a_fault_while_loading_ends_it(self):
        for kind in KINDS + ["allocation"]:
            for n in (1, self.loading[kind] // 2, self.loading[kind]):
                with self.subTest(kind=kind, n=n):
                    d = self.daemon("--device", "cuda", EMULATE_FAIL="%s:%d" % (kind, n))
                    status = d.wait_exit()
                    d.stop(expect=None)
                    self.assertEqual(status, 1, d.log())

    def test_a_gpu_that_is_absent(self):
        d = self.daemon("--device", "cuda", EMULATE_NO_DEVICE="1")
        status = d.wait_exit()
        d.stop(expect=None)
        self.assertEqual(status, 78)
        self.assertIn("no CUDA device", d.log())
        with self.daemon("--device", "auto", EMULATE_NO_DEVICE="1") as d:
            d.wait_line(r"device = auto: no CUDA device: .*: the teacher runs on the CPU")
            self.assertEqual(d.get("/v1/model")[1]["device"], "cpu")
            self.assertIn("no CUDA device", d.get("/v1/status")[1]["device"]["fallback"])
            self.assertEqual(d.metrics()["kd_device_fallback"], 1)
        with self.daemon("--device", "auto") as d:
            d.wait_line(r": teacher .* on cuda ")
            self.assertEqual(d.get("/v1/model")[1]["device"], "cuda")
            self.assertNotIn("fallback", d.get("/v1/status")[1]["device"])
            self.assertEqual(d.metrics()["kd_device_fallback"], 0)

    def test_fp8_needs_a_chip_that_has_it(self):
        for capability in ("8.0", "8.6"):
            d = self.daemon("--device", "cuda", "--numeric", "fp8", EMULATE_CAPABILITY=capability)
            status = d.wait_exit()
            d.stop(expect=None)
            self.assertEqual(status, 78, d.log())
            self.assertIn("numeric: emulated device has compute capability %s: products of fp8 need 8.9" % capability, d.log())
        for capability in ("8.9", "9.0", "12.0"):
            with self.daemon("--device", "cuda", "--numeric", "fp8", "--canary-reference", EMULATE_CAPABILITY=capability) as d:
                d.wait_line(r": teacher .* on cuda ")
                self.assertEqual(d.get("/v1/model")[1]["numeric"], "fp8")
                status, _, body = d.http("POST", "/v1/score", json.dumps(REQUESTS[0]))
                self.assertEqual(status, 200)
                self.assertNotEqual(rows(body), self.want[0])        # bf16's
                self.assertEqual(d.metrics()["kd_device_late_allocations_total"], 0)

    def test_a_model_that_does_not_fit(self):
        for arguments, environment in (([], {"EMULATE_MEMORY": str(300 << 20)}), (["--gpu-memory", "100M"], {}), (["--gpu-memory", "0.01"], {})):
            d = self.daemon("--device", "cuda", *arguments, **environment)
            status = d.wait_exit()
            d.stop(expect=None)
            self.assertEqual(status, 78, d.log())
            self.assertRegex(d.log(), r"gpu-memory: [0-9.]+ GiB of GPU memory are needed \(weights [0-9.]+, work [0-9.]+, head [0-9.]+, cache [0-9.]+, "
                             r"buffers [0-9.]+\); [0-9.]+ may be taken, [0-9.]+ are free of [0-9.]+")
        with self.daemon("--device", "cuda", "--gpu-memory", "512M") as d:
            d.wait_line(r": teacher .*loaded in .* s per GiB")
            device = d.get("/v1/status")[1]["device"]
            self.assertTrue(128 << 20 < device["memory_bytes"] <= 512 << 20)
            self.assertEqual(device["late_allocations"], 0)


if __name__ == "__main__":
    if not os.path.exists(kdserved.PROGRAM):
        print("skipped: the emulated daemon is not built here", file=sys.stderr)
        sys.exit(77)
    sys.exit(not unittest.main(exit=False, verbosity=2).result.wasSuccessful())
