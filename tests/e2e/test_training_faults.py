#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A training run that is killed at random, whose disk is full, whose teacher goes away, errs, stammers and lies: its numbers are those of the
run that met with nothing. KDSERVED_TEST_KILLS, KDSERVED_TEST_AWAY (seconds) and KDSERVED_TEST_ERRORS make it longer; KDSERVED_TEST_SEED repeats one."""
import ctypes
import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
import unittest

import kdserved
import test_full_disk
import test_training as training

KILLS = int(os.environ.get("KDSERVED_TEST_KILLS", "6"))
AWAY = float(os.environ.get("KDSERVED_TEST_AWAY", "3"))
ERRORS = int(os.environ.get("KDSERVED_TEST_ERRORS", "12"))
SEED = int(os.environ.get("KDSERVED_TEST_SEED", "0")) or random.SystemRandom().randrange(1 << 30)
LOSSES = training.LOSSES + ["taid top-k=8 rate=0.01"]


class Faults(unittest.TestCase):
    def start(self, address, output, text, *arguments, **more):
        config = output + ".conf"
        with open(config, "w") as f:
            f.write(text)
        return subprocess.Popen([training.WORKER, "--config", config, "--output", output, "--server", "unix:" + address, *arguments],
                                stderr=subprocess.PIPE, text=True, **more)

    def finish(self, process, expect=0):
        _, said = process.communicate(timeout=2 * kdserved.PATIENCE + AWAY)
        self.assertEqual(process.returncode, expect, said)
        self.assertNotIn("Sanitizer", said)
        return said

    def same(self, one, other):
        self.assertEqual(training.metrics(one), training.metrics(other))
        for name in training.FILES:
            self.assertEqual(training.read(one, "student", name), training.read(other, "student", name), name)

    def steps_done(self, output):
        try:
            return max(training.metrics(output), default=0)
        except OSError:
            return 0

    # ---- killed

    def checkpoints(self, output):
        try:
            names = os.listdir(os.path.join(output, "checkpoints"))
        except OSError:
            names = []
        return sorted(n for n in names if n.startswith("step-")), [n for n in names if n.startswith(".new-")]

    def test_killed_at_random_it_goes_on_from_a_checkpoint_that_is_whole(self):
        rng = random.Random(SEED)
        counts = dict.fromkeys(["kills", "rounds", "before the first checkpoint", "within a checkpoint", "within the export"], 0)
        with kdserved.Daemon() as daemon:
            text = training.settings(daemon.directory, loss=LOSSES, steps=40, checkpoint_every=1, evaluate_every=5, average=0.9, export="best")
            whole = os.path.join(daemon.directory, "whole")
            begin = time.monotonic()
            self.finish(self.start(daemon.socket_path, whole, text))
            longest = time.monotonic() - begin
            while counts["kills"] < KILLS:
                counts["rounds"] += 1
                output = os.path.join(daemon.directory, "round-%d" % counts["rounds"])
                self.kill_until_done(daemon, rng, longest, output, text, counts)
                self.same(output, whole)
        print("seed %d: %s" % (SEED, counts))

    def test_what_a_killed_export_left_is_no_hindrance(self):
        with kdserved.Daemon() as daemon:
            output = os.path.join(daemon.directory, "out")
            os.makedirs(os.path.join(output, "student.new"))
            for name in ("config.json", "model.safetensors.tmp", "tokenizer.json.tmp"):
                with open(os.path.join(output, "student.new", name), "w") as f:
                    f.write("half")
            self.finish(self.start(daemon.socket_path, output, training.settings(daemon.directory, steps=2)))
            self.assertEqual(set(os.listdir(os.path.join(output, "student"))), training.FILES)
            self.assertFalse(os.path.exists(os.path.join(output, "student.new")))

    def kill_until_done(self, daemon, rng, longest, output, text, counts):
        while True:
            before, _ = self.checkpoints(output)
            process = self.start(daemon.socket_path, output, text, "--resume")
            if counts["kills"] >= KILLS:
                said = self.finish(process)
            else:
                self.wait_for_a_moment(process, rng, longest, output)
                process.kill()                         # harmless when it has ended
                said = process.communicate()[1]
                self.assertIn(process.returncode, (0, -signal.SIGKILL), said)
            self.assertNotIn("passed over", said)
            self.assertNotIn("error: ", said)
            if before and "sequences" in said and "resumed" in said:
                self.assertIn("resumed after step %d\n" % int(before[-1].split("-")[1]), said)
            if process.returncode == 0:
                return
            after, partial = self.checkpoints(output)
            counts["kills"] += 1
            counts["before the first checkpoint"] += not after
            counts["within a checkpoint"] += bool(partial)
            counts["within the export"] += os.path.exists(os.path.join(output, "student.new"))

    def wait_for_a_moment(self, process, rng, longest, output):
        """Any time; or while a checkpoint, or the student, is being written."""
        what = rng.choice(("any", "checkpoint", "checkpoint", "export"))
        end = time.monotonic() + rng.uniform(0, longest)
        while time.monotonic() < end and process.poll() is None:
            if what == "export" and os.path.exists(os.path.join(output, "student.new")):
                break
            time.sleep(0.0005)                         # between looks
        while what == "checkpoint" and process.poll() is None and not self.checkpoints(output)[1]:
            pass                                       # too short a time to sleep in
        if what != "any":
            time.sleep(rng.uniform(0, 0.004))          # somewhere within

    # ---- a full disk

    def test_a_checkpoint_that_finds_no_space_leaves_the_one_before(self):
        """A file system of 4 MiB, filled while the run is at work, and emptied again."""
        mount_point = test_full_disk.small_disk()
        if not mount_point:
            self.skipTest("cannot mount a tmpfs here; the limit on files is tried all the same")
        filler = os.path.join(mount_point, "filler")

        def fill(_):
            with open(filler, "wb", buffering=0) as f:
                try:
                    while f.write(bytes(4096)):
                        pass
                except OSError:
                    pass
        try:
            self.no_space(os.path.join(mount_point, "out"), fill, lambda _: os.unlink(filler))
        finally:
            ctypes.CDLL(None).umount2(mount_point.encode(), test_full_disk.MNT_DETACH)
            os.rmdir(mount_point)

    def test_a_file_that_may_not_grow_is_a_full_disk(self):
        def limit(n):
            return lambda process: process and resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))
        self.no_space(None, limit(20000), limit(resource.RLIM_INFINITY))

    def no_space(self, output, take, give):
        """give: of the process, or of nobody's when it is gone."""
        with kdserved.Daemon() as daemon:
            text = training.settings(daemon.directory, loss=LOSSES, steps=150, epochs=100, checkpoint_every=10, evaluate_every=50)
            whole, output = os.path.join(daemon.directory, "whole"), output or os.path.join(daemon.directory, "out")
            self.finish(self.start(daemon.socket_path, whole, text))
            process = self.refused(daemon, output, text, take)
            good, _ = self.checkpoints(output)         # what was there is there, and nothing else
            self.assertTrue(good)
            process.kill()
            self.assertNotIn("error: ", process.communicate()[1])
            give(None)
            process = self.refused(daemon, output, text, take, "--resume", since=good[-1])
            self.paused(process, give)
            self.finish(process)                       # it went on
            self.assertEqual(self.final(output), self.final(whole))
            for name in training.FILES:
                self.assertEqual(training.read(output, "student", name), training.read(whole, "student", name), name)

    def refused(self, daemon, output, text, take, *arguments, since=None):
        """Writes beyond a limit are to fail, not to kill: Python ignores that signal, and the worker is left to it."""
        process = self.start(daemon.socket_path, output, text, *arguments, restore_signals=False)
        if since:
            self.assertNotIn("passed over", self.read_until(process, "resumed after step %d\n" % int(since.split("-")[1])))
        kdserved.wait_until(lambda: process.poll() is not None or self.checkpoints(output)[0][-1:] > [since or ""], "a checkpoint")
        self.paused(process, take)
        self.read_until(process, "no checkpoint after step")
        return process

    def paused(self, process, do):
        process.send_signal(signal.SIGSTOP)
        do(process)
        process.send_signal(signal.SIGCONT)

    def final(self, output):
        """The last report: some of those that the full disk was to hold are missing."""
        with open(os.path.join(output, "metrics.jsonl"), "rb") as f:
            report = json.loads(f.read().splitlines()[-1])
        self.assertEqual(report["state"], "succeeded")
        return {k: v for k, v in report.items() if k in training.KEYS or k in ("step", "positions", "masked")}

    def read_until(self, process, words):
        said = ""
        while words not in said:
            line = process.stderr.readline()
            self.assertTrue(line, said)
            said += line
        return said

    # ---- the teacher

    def test_a_teacher_that_is_gone_changes_nothing(self):
        with kdserved.Daemon() as keeper:
            text = training.settings(keeper.directory, loss=LOSSES, steps=200, epochs=100)
            whole, output = os.path.join(keeper.directory, "whole"), os.path.join(keeper.directory, "out")
            self.finish(self.start(keeper.socket_path, whole, text))
            daemon = kdserved.Daemon(directory=os.path.join(keeper.directory, "second"), model=keeper.model)
            process = self.start(daemon.socket_path, output, text)
            kdserved.wait_until(lambda: self.steps_done(output) >= 3 or process.poll() is not None, "some steps")
            daemon.process.kill()
            daemon.stop(expect=-signal.SIGKILL)
            done = self.steps_done(output)
            self.assertLess(done, 200)
            time.sleep(AWAY)                           # the time without a teacher is the thing tested
            self.assertIsNone(process.poll())
            daemon = kdserved.Daemon(directory=daemon.directory, model=keeper.model)
            self.assertIn("answers again", self.finish(process))
            self.same(output, whole)
            daemon.stop()

    def test_no_error_of_the_teacher_becomes_a_number(self):
        with kdserved.Daemon() as daemon:
            text = training.settings(daemon.directory, loss=LOSSES, steps=3 * ERRORS, epochs=100)
            whole, output = os.path.join(daemon.directory, "whole"), os.path.join(daemon.directory, "out")
            self.finish(self.start(daemon.socket_path, whole, text))
            with Proxy(daemon, random.Random(SEED)) as proxy:
                said = self.finish(self.start(proxy.path, output, text))
            print("seed %d: %s" % (SEED, proxy.done))
            self.assertIn("answers again", said)
            self.assertGreaterEqual(sum(proxy.done.values()), ERRORS)
            self.same(output, whole)

    def test_an_error_that_stays_ends_the_run_with_its_reason(self):
        with kdserved.Daemon() as daemon:
            text = training.settings(daemon.directory, loss=LOSSES)
            whole, output = os.path.join(daemon.directory, "whole"), os.path.join(daemon.directory, "out")
            self.finish(self.start(daemon.socket_path, whole, text))
            with Proxy(daemon, random.Random(SEED), faults=["not_finite"], spared=20, share=1) as proxy:
                self.assertIn("by order of the test", self.finish(self.start(proxy.path, output, text), expect=1))
            before, told = training.metrics(whole), training.metrics(output)
            self.assertTrue(0 < len(told) < len(before))
            self.assertEqual(told, {step: before[step] for step in told})


class Proxy:
    """Between worker and daemon: of the questions, some are answered with an error, some not at all, some with bytes that were changed."""
    ERRORS = ["overloaded", "unavailable", "deadline", "corrupt", "io", "memory", "internal"]
    FAULTS = ERRORS + ["hang up", "cut", "flip", "flip"]

    def __init__(self, daemon, rng, faults=FAULTS, spared=0, share=0.3):
        self.path, self.upstream = os.path.join(daemon.directory, "proxy.sock"), daemon.socket_path
        self.rng, self.faults, self.spared, self.share = rng, faults, spared, share
        self.done = dict.fromkeys(faults, 0)
        self.sockets = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(8)

    def __enter__(self):
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        for s in [self.listener] + self.sockets:
            s.close()
        os.unlink(self.path)

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.connect(self.upstream)
            self.sockets += [client, server]
            state = {"lock": threading.Lock(), "next": None}
            threading.Thread(target=self.pump, args=(client, server, self.question, state), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, self.answer, state), daemon=True).start()

    def pump(self, source, target, look, state):
        try:
            while True:
                head = self.take(source, 32)
                _, _, kind, _, request_id, n, _, _, _ = struct.unpack("<4sBBHQIIII", head)
                frame = look(kind, request_id, head, self.take(source, n), source, state)
                if frame is not None:
                    with state["lock"]:
                        target.sendall(frame)
        except (OSError, EOFError):
            for s in (source, target):
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def take(self, source, n):
        data = bytearray()
        while len(data) < n:
            piece = source.recv(n - len(data))
            if not piece:
                raise EOFError()
            data += piece
        return bytes(data)

    def question(self, kind, request_id, head, body, source, state):
        if kind != kdserved.SCORE:
            return head + body
        self.spared -= 1
        if self.spared >= 0 or self.rng.random() >= self.share:
            return head + body
        fault = self.rng.choice(self.faults)
        self.done[fault] += 1
        if fault == "hang up":
            raise EOFError()
        if fault in ("cut", "flip"):
            state["next"] = fault                      # of what comes back
            return head + body
        message = b"by order of the test"
        code = fault.encode()
        with state["lock"]:
            source.sendall(kdserved.frame(kdserved.ERROR, request_id,
                                          struct.pack("<IBBH", kdserved.WHOLE, len(code), 0, len(message)) + code + message))
        return None

    def answer(self, kind, _, head, body, source, state):
        if kind != kdserved.ANSWER or not state["next"]:
            return head + body
        fault, state["next"] = state["next"], None
        if fault == "cut":
            raise EOFError()
        at = self.rng.randrange(len(body))
        return head + body[:at] + bytes([body[at] ^ 1 << self.rng.randrange(8)]) + body[at + 1:]


if __name__ == "__main__":
    unittest.main()
