# SPDX-License-Identifier: Apache-2.0
"""A teacher larger than the memory it may take, on disk or as its file has it: the same bits as one in memory, within the cap, and what
happens when the disk fails.
KDSERVED_TEST_SEQUENCES asks for more sequences (make torture-bits: 1,000)."""
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import tempfile
import threading
import unittest

import tiny_model
from kdserved import EXACT, Daemon, ProtocolError, wait_until

WIDTH, FFN, HEADS, KV_HEADS, LAYERS = 512, 2048, 8, 4, 8
MATRIX_MIB = 4 * LAYERS * (2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 2 + 3 * WIDTH * FFN) >> 20       # of its layers, in f32
SIZES = ["--batch-tokens", "256", "--cache-tokens", "256", "--max-tokens", "256", "--max-generating", "4", "--generate-batch", "64"]
SPARE_MIB = 20                                              # beside what is needed: some layers stay in memory
WINDOW_MIB = 16
NO_STORE = 2
ASK = {"top_k": 6, "own": True, "entropy": True, "temperatures": (1.0, 2.5)}
model_directory = None


def write_model(directory):
    """BF16 of small random size, fast: a random low byte, a high byte of either sign."""
    os.makedirs(directory)
    vocab_size, tokenizer = tiny_model.tokenizer()
    rng, head = random.Random(7), WIDTH // HEADS
    shapes = {"model.embed_tokens.weight": (vocab_size, WIDTH), "model.norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        p = "model.layers.%d." % i
        shapes.update({p + "input_layernorm.weight": (WIDTH,), p + "post_attention_layernorm.weight": (WIDTH,),
                       p + "self_attn.q_proj.weight": (HEADS * head, WIDTH), p + "self_attn.k_proj.weight": (KV_HEADS * head, WIDTH),
                       p + "self_attn.v_proj.weight": (KV_HEADS * head, WIDTH), p + "self_attn.o_proj.weight": (WIDTH, HEADS * head),
                       p + "mlp.gate_proj.weight": (FFN, WIDTH), p + "mlp.up_proj.weight": (FFN, WIDTH),
                       p + "mlp.down_proj.weight": (WIDTH, FFN)})
    signs = bytes(0x3c | (b & 1) << 7 for b in range(256))
    header, blocks, at = {}, [], 0
    for name, shape in shapes.items():
        n = shape[0] * (shape[1] if len(shape) == 2 else 1)
        block = bytearray(2 * n)
        block[0::2] = rng.randbytes(n)
        block[1::2] = rng.randbytes(n).translate(signs) if len(shape) == 2 else b"\x3f" * n
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + 2 * n]}
        blocks.append(block)
        at += 2 * n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(directory, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.writelines(blocks)
    config = dict(tiny_model.config(vocab_size), hidden_size=WIDTH, intermediate_size=FFN, num_attention_heads=HEADS,
                  num_key_value_heads=KV_HEADS, num_hidden_layers=LAYERS, torch_dtype="bfloat16")
    for name, value in (("config.json", config), ("tokenizer.json", tokenizer)):
        with open(os.path.join(directory, name), "w") as f:
            json.dump(value, f)


def sequences(n=int(os.environ.get("KDSERVED_TEST_SEQUENCES", "40")), longest=128, seed=5):
    rng = random.Random(seed)
    lengths = (1, 2, 7, 16, 33, 64, 65, longest)
    return [[rng.randrange(265) for _ in range(lengths[i % len(lengths)])] for i in range(n)]


def setUpModule():
    global model_directory
    model_directory = os.path.join(tempfile.mkdtemp(prefix="kdserved-e2e-"), "model")
    write_model(model_directory)


def tearDownModule():
    shutil.rmtree(os.path.dirname(model_directory))


class Streamed(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.disk = os.path.join(self.directory, "disk")
        os.mkdir(self.disk)

    def daemon(self, *arguments, cap=None, **more):
        bound = ["--memory", "%dM" % cap] if cap else []
        return Daemon(*SIZES, *EXACT, "--stream-directory", self.disk, *bound, *arguments, **{"model": model_directory, **more})

    def refused(self, *arguments, status=78, **more):
        d = self.daemon(*arguments, wait=False, **more)
        try:
            self.assertEqual(d.wait_exit(), status, d.log())
            return d.log()
        finally:
            d.stop(expect=None)

    def needed(self, buffers=True):
        """MiB without which it does not start, as the refusal says, with the buffers of a file or without."""
        log = self.refused(cap=1)
        self.assertRegex(log, r"memory = 1 MiB is not enough: with all matrices on disk the teacher needs \d+ MiB \(program \d+, batch-tokens \d+, "
                         r"head \d+, cache-tokens \d+, largest tensor while loading \d+, buffers \d+\)")
        return int(re.search(r"needs (\d+) MiB", log).group(1)) - (0 if buffers else int(re.search(r"buffers (\d+)", log).group(1)))

    def stored_cap(self):
        """MiB for all matrices as stored (BF16), the window they are unpacked to, and little more."""
        return self.needed(buffers=False) + MATRIX_MIB // 2 + WINDOW_MIB + 5

    def cap(self):
        cap = self.needed() + SPARE_MIB
        self.assertLess(SPARE_MIB, MATRIX_MIB / 2)
        return cap

    def records(self, daemon, wanted, batch=9, **more):
        with daemon.client() as c:
            got = []
            for i in range(0, len(wanted), batch):
                answers = c.score(wanted[i:i + batch], flags=NO_STORE, **(more or ASK))
                got += [answers[j][1] for j in range(len(answers))]
            return got

    def weights_file(self, daemon):
        """The daemon's file without a name, as a path."""
        for fd in os.listdir("/proc/%d/fd" % daemon.process.pid):
            path = "/proc/%d/fd/%s" % (daemon.process.pid, fd)
            if os.readlink(path).startswith(self.disk):
                return path
        self.fail("no file in " + self.disk)

    def test_the_bits_of_one_in_memory_within_the_cap(self):
        wanted, cap = sequences(), self.cap()
        prompt = {"prompts": [{"tokens": wanted[4]}], "max_tokens": 5, "temperature": 0}
        with self.daemon() as d:
            self.assertNotIn("GiB of its weights are read from", d.log())
            want = self.records(d, wanted)
            dense = self.records(d, wanted[:6], top_k=3)
            spoken = d.post("/v1/generate", prompt)
            fingerprint = d.get("/v1/model")[1]["id"]
        with self.daemon(cap=cap) as d:
            d.wait_line("are read from")             # the line after the one that says it is ready
            found = re.search(r"teacher model: ([\d.]+) GiB of its weights are read from (\S+) in each pass", d.log())
            self.assertTrue(found, d.log())
            self.assertEqual(found.group(2), self.disk)
            self.assertGreater(float(found.group(1)) * 1024, MATRIX_MIB - SPARE_MIB - 8)
            self.assertEqual(os.listdir(self.disk), [])
            self.assertEqual(d.get("/v1/model")[1]["id"], fingerprint)
            self.assertEqual(self.records(d, wanted), want)
            self.assertEqual(self.records(d, wanted, batch=40), want)       # short ones share tiles of the head
            self.assertEqual(self.records(d, wanted[:40], batch=1), want[:40])      # each reads all matrices
            self.assertEqual(self.records(d, wanted[:6], top_k=3), dense)
            self.assertEqual(d.post("/v1/generate", prompt)[1].get("sequences"), spoken[1].get("sequences"))
            self.assertGreater(d.metrics()["kd_weights_read_bytes_total"], 8 << 20)
            self.check_peak(d, cap)
        order = list(range(len(wanted)))
        random.Random(6).shuffle(order)
        with self.daemon("--threads", "1", cap=cap) as d:
            self.assertEqual(self.records(d, [wanted[i] for i in order], batch=7), [want[i] for i in order])

    def test_what_fits_as_stored_has_the_bits_of_what_is_packed(self):
        """Between the two: matrices stay as the file has them, in memory of the daemon's own, and no disk is needed."""
        wanted, cap, model = sequences(), self.stored_cap(), os.path.join(self.directory, "model")
        prompt = {"prompts": [{"tokens": wanted[4]}], "max_tokens": 5, "temperature": 0}
        shutil.copytree(model_directory, model)
        with self.daemon() as d:
            want = self.records(d, wanted)
            spoken = d.post("/v1/generate", prompt)
            packed = d.get("/v1/model")[1]
            self.assertEqual((packed["stored_bytes"], packed["streamed_bytes"]), (0, 0))
        with self.daemon(cap=cap, model=model) as d:
            d.wait_line("stay as they are stored and are unpacked in each pass")
            self.assertNotIn("are read from", d.log())
            told, numbers = d.get("/v1/model")[1], d.metrics()
            self.assertEqual(told["id"], packed["id"])
            self.assertEqual(told["streamed_bytes"], 0)
            self.assertGreater(told["stored_bytes"], MATRIX_MIB - 24 << 19)
            self.assertEqual(numbers['kd_teacher_stored_bytes{id="%s"}' % told["id"]], told["stored_bytes"])
            self.assertEqual(numbers['kd_teacher_streamed_bytes{id="%s"}' % told["id"]], 0)
            with open(os.path.join(model, "model.safetensors"), "r+b") as f:      # the file is its owner's
                f.seek(1 << 20)
                f.write(bytes(8 << 20))
            self.assertEqual(self.records(d, wanted), want)
            self.assertEqual(self.records(d, wanted, batch=40), want)
            self.assertEqual(self.records(d, wanted, batch=1)[:8], want[:8])
            self.assertEqual(d.post("/v1/generate", prompt)[1].get("sequences"), spoken[1].get("sequences"))
            self.assertEqual(d.metrics()["kd_weights_read_bytes_total"], 0)
            with self.assertRaises(AssertionError):
                self.weights_file(d)
            self.check_peak(d, cap)
        with self.daemon("--threads", "1", cap=cap) as d:
            self.assertEqual(self.records(d, list(reversed(wanted)), batch=7), list(reversed(want)))

    def test_what_does_not_fit_as_stored_is_streamed(self):
        with self.daemon(cap=self.stored_cap() - 16) as d:
            d.wait_line("are read from")
            told = d.get("/v1/model")[1]
            self.assertEqual(told["stored_bytes"], 0)
            self.assertGreater(told["streamed_bytes"], 0)

    def check_peak(self, daemon, cap):
        with open("/proc/%d/maps" % daemon.process.pid) as f:
            if re.search("[at]san", f.read()):
                return                      # shadow memory is not the teacher's
        with open("/proc/%d/status" % daemon.process.pid) as f:
            peak = int(re.search(r"VmHWM:\s+(\d+) kB", f.read()).group(1)) >> 10
        print("# peak %d MiB of %d" % (peak, cap))
        self.assertLessEqual(peak, cap)

    def test_all_that_fits_stays_in_memory(self):
        with self.daemon(cap=2048) as d:
            self.assertNotIn("are read from", d.log())

    def test_what_cannot_be_kept_is_refused(self):
        self.assertIn("memory is for a teacher on the CPU", self.refused("--device", "ref", cap=500))
        self.assertIn("memory is for a teacher on the CPU", self.refused("--device", "cuda", cap=500))
        self.assertIn("canary-reference", self.refused("--canary-reference", cap=500))
        self.assertIn("below the minimum 1048576", self.refused("--memory", "1000"))

    def test_many_clients_at_once(self):
        wanted, results = sequences(24), {}
        with self.daemon() as d:
            want = self.records(d, wanted)
        with self.daemon(cap=self.cap()) as d:
            threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, self.records(d, wanted, batch=3 + i))) for i in range(4)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
        self.assertEqual([results.get(i) == want for i in range(4)], [True] * 4)

    def test_sigterm_in_a_pass_answers_what_was_asked(self):
        with self.daemon("--drain-timeout", "10min", cap=self.cap()) as d:
            with d.client() as c:
                request = c.start_score(sequences(64), flags=NO_STORE, **ASK)
                wait_until(lambda: any(v for k, v in d.metrics().items() if k.startswith("kd_requests_in_flight")), "a request under way")
                d.process.send_signal(signal.SIGTERM)
                self.assertEqual(len(c.finish_score(request)), 64)
            self.assertEqual(d.wait_exit(), 0)

    def test_kill_leaves_nothing_behind(self):
        cap = self.cap()
        d = self.daemon(cap=cap)
        with d.client() as c:
            c.start_score(sequences(64), flags=NO_STORE, **ASK)
            d.process.kill()
            d.process.wait()
        d.stop(expect=None)
        self.assertEqual(os.listdir(self.disk), [])
        with self.daemon(cap=cap) as d:
            self.assertEqual(len(self.records(d, sequences(3))), 3)

    def expect_failure(self, damage, pattern):
        d = self.daemon(cap=self.cap())
        try:
            self.records(d, sequences(3))
            damage(self.weights_file(d))
            with self.assertRaises(ProtocolError) as raised:
                self.records(d, sequences(9))
            self.assertEqual(raised.exception.code, "unavailable")
            self.assertNotIn(d.wait_exit(), (0, 78))
            self.assertRegex(d.log(), pattern)
        finally:
            d.stop(expect=None)

    def test_changed_bytes_are_never_computed_with(self):
        def damage(path):
            with open(path, "r+b") as f:
                f.seek(os.fstat(f.fileno()).st_size // 100)
                byte = f.read(1)[0]
                f.seek(-1, os.SEEK_CUR)
                f.write(bytes([byte ^ 16]))
                f.flush()
                os.fsync(f.fileno())
        self.expect_failure(damage, "is not what was written there")

    def test_a_file_that_cannot_be_read_ends_the_daemon(self):
        self.expect_failure(lambda path: os.truncate(path, 8192), "cannot be read")

    def test_a_disk_without_room_is_refused_at_start(self):
        cap, before = self.cap(), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, before[1]))
        try:
            log = self.refused(cap=cap, status=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        self.assertIn("weights need more room in " + self.disk, log)
        shutil.rmtree(self.disk)
        self.assertIn("no file for weights can be made in " + self.disk, self.refused(cap=cap, status=78))
        os.mkdir(self.disk)


if __name__ == "__main__":
    unittest.main()
