# SPDX-License-Identifier: Apache-2.0
"""What systemd is told: a socket of our own stands in for it."""
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import unittest

import kdserved
import tiny_model
from frozen import Frozen
from kdserved import Daemon, wait_until


class Told:
    """Every assignment that arrives at $NOTIFY_SOCKET, with when it did."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.seen = []
        # Like systemd it always reads: the kernel holds only some messages, then whoever tells waits.
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        while message := self.socket.recv(65536).decode():
            self.seen += [(time.monotonic(), line) for line in message.split("\n")]

    def look(self):
        return list(self.seen)

    def has(self, text):
        return any(line.startswith(text) for _, line in self.look())

    def count(self, text):
        return sum(line.startswith(text) for _, line in self.look())


class Notify(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.told = Told(os.path.join(self.directory, "notify"))

    def daemon(self, *arguments, **environment):
        return Daemon(*arguments, directory=self.directory,
                      environment={"NOTIFY_SOCKET": os.path.join(self.directory, "notify"), **environment})

    def test_ready_status_and_stopping_are_told(self):
        with self.daemon():
            wait_until(lambda: self.told.has("READY=1"), "READY")
            wait_until(lambda: self.told.has("STATUS=Serving model on cpu"), "STATUS")
            self.assertFalse(self.told.has("STOPPING=1"))
        for text in ("STOPPING=1", "STATUS=Answering what was accepted", "EXTEND_TIMEOUT_USEC=45000000"):
            wait_until(lambda: self.told.has(text), text)          # it may have been sent and not yet read
        self.assertFalse(self.told.has("WATCHDOG=1"), "nobody asked for it")

    def test_while_it_loads_it_asks_for_more_time(self):
        model = os.path.join(self.directory, "model")
        tiny_model.write(model)
        tiny_model.grow(model, 400000)              # a second or more
        with Daemon(directory=self.directory, model=model, wait=False,
                environment={"NOTIFY_SOCKET": os.path.join(self.directory, "notify")}) as d:
            def worked():
                with open("/proc/%d/stat" % d.process.pid) as f:
                    return sum(map(int, f.read().rsplit(")", 1)[1].split()[11:13])) >= 5
            wait_until(worked, "20 ms of work and more, which say that it goes forward")
            d.process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            wait_until(lambda: time.monotonic() > began + 5.5, "the next look, every 5 s")
            d.process.send_signal(signal.SIGCONT)
            wait_until(lambda: self.told.has("READY=1"), "READY")
            lines = [line for _, line in self.told.look()]
        self.assertIn("EXTEND_TIMEOUT_USEC=60000000", lines[:lines.index("READY=1")])

    def test_a_reload_begins_and_ends(self):
        with self.daemon() as d:
            wait_until(lambda: self.told.has("READY=1"), "READY")
            d.process.send_signal(signal.SIGHUP)
            wait_until(lambda: self.told.count("READY=1") == 2, "READY after the reload")
            lines = [line.split("=")[0] for _, line in self.told.look()]
            self.assertIn("MONOTONIC_USEC", lines)
            self.assertLess(lines.index("RELOADING"), len(lines) - 1 - lines[::-1].index("READY"))

    def test_the_watchdog_is_fed_while_idle_and_while_busy(self):
        with self.daemon("--batch-tokens", "64", WATCHDOG_USEC="800000") as d:    # a look every 200 ms
            wait_until(lambda: self.told.count("WATCHDOG=1") >= 5, "an idle engine's food")
            seen = self.told.count("WATCHDOG=1")
            with d.client() as c:
                request = c.start_score([[i % 250] * 60 for i in range(400)], top_k=20)
                wait_until(lambda: self.told.count("WATCHDOG=1") >= seen + 2, "a busy engine's food")
                c.finish_score(request)


    def test_a_frozen_engine_starves_the_watchdog_and_a_frozen_door_does_not(self):
        with self.daemon(WATCHDOG_USEC="800000") as d:                            # a look every 200 ms
            def fed():
                return self.told.count("WATCHDOG=1")
            wait_until(lambda: fed() >= 2, "an idle engine's food")
            try:
                frozen = Frozen(d.process.pid, "http")
            except PermissionError:
                self.skipTest("no thread of another process may be stopped here")
            seen = fed()
            wait_until(lambda: fed() >= seen + 4, "food, though a door stands still")
            frozen.thaw()
            frozen = Frozen(d.process.pid, "engine")
            began = time.monotonic()
            wait_until(lambda: time.monotonic() > began + 2, "its last sign of life to be told")
            seen = fed()
            wait_until(lambda: time.monotonic() > began + 4.4, "three times the watchdog's time")
            self.assertEqual(fed(), seen, "a frozen engine's food")
            frozen.thaw()
            wait_until(lambda: fed() > seen, "food again")


class Unread(unittest.TestCase):
    def test_a_manager_that_does_not_read_holds_nothing_up_and_is_told_later(self):
        directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        path = os.path.join(directory, "notify")
        manager, other = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
        self.addCleanup(manager.close)
        self.addCleanup(other.close)
        manager.bind(path)
        manager.setblocking(False)
        other.setblocking(False)

        def fill():
            with self.assertRaises(BlockingIOError):
                while True:
                    other.sendto(b"X=1", path)

        def read():
            lines = []
            try:
                while True:
                    lines += manager.recv(65536).decode().split("\n")
            except BlockingIOError:
                return lines
        fill()
        with Daemon("--canary-interval", "0", directory=directory, environment={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"}) as d:
            self.assertEqual(d.get("/ready")[0], 200)
            d.process.send_signal(signal.SIGHUP)
            d.wait_line("SIGHUP")
            told = []
            wait_until(lambda: told.extend(read()) or told.count("READY=1") == 2 and "WATCHDOG=1" in told, lambda: "READY twice: %r" % told)
            told = [line.split("=")[0] for line in told if line.startswith(("READY", "RELOADING"))]
            self.assertEqual(told, ["READY", "RELOADING", "READY"])
            fill()
            began = time.monotonic()
        self.assertLess(time.monotonic() - began, kdserved.PATIENCE / 2)    # a blocked STOPPING would have ended in the test's own patience


if __name__ == "__main__":
    unittest.main()
