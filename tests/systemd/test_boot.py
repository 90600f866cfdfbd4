# SPDX-License-Identifier: Apache-2.0
"""The units under a systemd of their own: start, status, reload, crash, watchdog, sockets, credentials, stop."""
import json
import os
import re
import time
import unittest

import machine
from machine import Machine, wait_until

machine.enter()

import kdserved     # noqa: E402    tests/e2e
from frozen import Frozen     # noqa: E402
import tiny_model   # noqa: E402

UNIT = "kdserved.service"
UNIT_PLACES = ("/usr/local/lib/systemd/system/", "/usr/lib/systemd/system/", "/lib/systemd/system/")
WATCHDOG_S = 4
FAST = "[Unit]\nStartLimitBurst=100\n[Service]\nWatchdogSec=%d\nRestartSec=100ms\n" % WATCHDOG_S
SETTINGS = "teacher = tiny=/srv/model\nthreads = 1\n"
HTTP = """
import http.client, sys
c = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
c.request(*sys.argv[2:5], {"Content-Type": "application/json"})
r = c.getresponse()
print(r.status, r.read().decode())
"""
# Connects without end until the file in argv[2] is there; prints what became of the connections.
LOAD = """
import os, socket, sys
n = {"answered": 0, "refused": 0, "broken": 0}
while not os.path.exists(sys.argv[2]):
    try:
        s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=60)
    except OSError:
        n["refused"] += 1
        continue
    try:
        s.sendall(b"GET /live HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
        n["answered" if s.recv(4096).startswith(b"HTTP/1.1 200") else "broken"] += 1
    except OSError:
        n["broken"] += 1
    s.close()
print(n["answered"], n["refused"], n["broken"])
"""


class Boot(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.m = m = Machine()
        cls.addClassCleanup(m.close)
        m.install()
        if not any(os.path.exists(m.path(place + UNIT)) for place in UNIT_PLACES):
            m.close()
            machine.skip("configured with a prefix under which systemd looks for no units, as make distcheck does")
        tiny_model.write(m.path("/srv/model"))
        with open(os.path.join(machine.BUILD, "etc", UNIT)) as f:
            cls.conf = re.search(r"--config (\S+)", f.read()).group(1)
        m.write("/etc/systemd/system/kdserved.service.d/test.conf", FAST)
        cls.settings("")
        m.boot()

    @classmethod
    def settings(cls, more):
        cls.m.write(cls.conf, SETTINGS + more)

    def tearDown(self):
        self.m.run("systemctl", "stop", "kdserved.socket", "kdserved-http.socket", UNIT, check=False)
        self.m.run("systemctl", "reset-failed", check=False)
        for name in ("sealed.conf", "lan.conf"):
            if os.path.exists(self.m.path("/etc/systemd/system/kdserved.service.d/" + name)):
                os.unlink(self.m.path("/etc/systemd/system/kdserved.service.d/" + name))
        self.m.run("systemctl", "daemon-reload")
        self.settings("")

    def start(self):
        try:
            self.m.run("systemctl", "start", UNIT)
        except AssertionError as e:
            raise AssertionError("%s\n%s" % (e, self.m.journal(UNIT)[-3000:])) from None

    def http(self, method, path, body="", port=8321):
        status, text = self.m.python(HTTP, str(port), method, path, body).split(" ", 1)
        return int(status), text

    def score(self):
        with kdserved.Client("/proc/%d/root/run/kdserved/kdserved.sock" % self.m.leader) as c:
            return c.score([[1, 2, 3]], top_k=2)[0]

    def restarts(self):
        return int(self.m.show(UNIT, "NRestarts"))

    def becomes_active(self):
        wait_until(lambda: self.m.show(UNIT, "ActiveState") == "active", lambda: self.m.journal(UNIT)[-3000:])

    def serves_again_after(self, restarts):
        wait_until(lambda: self.restarts() > restarts and self.m.show(UNIT, "SubState") == "running", lambda: self.m.journal(UNIT)[-3000:])
        self.assertEqual(self.http("GET", "/ready")[0], 200)

    def test_it_starts_says_what_it_serves_and_stops(self):
        self.start()
        wait_until(lambda: self.m.show(UNIT, "StatusText").startswith("Serving tiny on cpu"), "the status text")
        self.assertEqual(self.http("GET", "/ready")[0], 200)
        self.assertTrue(self.score())
        self.assertTrue(os.path.isdir(self.m.path("/var/lib/kdserved/store")))
        self.assertTrue(os.path.isdir(self.m.path("/var/lib/kdserved/runs")))
        self.m.run("systemctl", "stop", UNIT)
        self.assertEqual((self.m.show(UNIT, "Result"), self.m.show(UNIT, "ExecMainStatus")), ("success", "0"))
        self.start()
        self.assertTrue(self.score()[0], "answers are remembered over restarts")

    def test_a_reload_ends_and_disturbs_nobody(self):
        self.start()
        before = self.m.main_pid(UNIT)
        self.m.run("systemctl", "reload", UNIT)
        self.assertEqual((self.m.show(UNIT, "ActiveState"), self.m.main_pid(UNIT)), ("active", before))
        self.told("SIGHUP: ")
        self.assertEqual(self.http("GET", "/ready")[0], 200)

    def told(self, text):
        """The journal may learn of it after we do."""
        wait_until(lambda: text in self.m.journal(UNIT), lambda: "%r in\n%s" % (text, self.m.journal(UNIT)[-3000:]))

    def entries(self, *matches):
        said = self.m.run("journalctl", "--no-pager", "-o", "json", "-u", UNIT, *matches).stdout
        return [json.loads(line) for line in said.splitlines()]

    def test_a_reload_changes_settings_and_the_journal_has_its_fields(self):
        self.start()
        self.settings("max-spans = 7\nmax-top-k = 9\n")
        self.m.run("systemctl", "reload", UNIT)
        changed = wait_until(lambda: self.entries("KD_SETTING=max-spans"), lambda: self.m.journal(UNIT)[-2000:])[-1]
        self.assertEqual(changed["MESSAGE"], "SIGHUP: max-spans: 1024 -> 7")
        self.assertEqual((changed["PRIORITY"], changed["CODE_FUNC"], changed["SYSLOG_IDENTIFIER"]), ("5", "move_rows", "kdserved"))
        self.assertTrue(changed["CODE_FILE"].endswith("daemon/reload.c"))
        self.assertGreater(int(changed["CODE_LINE"]), 0)
        self.assertEqual(changed["_TRANSPORT"], "journal")
        wait_until(lambda: self.m.show(UNIT, "StatusText").endswith("restart needed for: max-top-k"), lambda: self.m.show(UNIT, "StatusText"))
        self.settings("max-spans = many\n")
        self.m.run("systemctl", "reload", UNIT)
        wait_until(lambda: "max-spans = many: expected" in self.m.show(UNIT, "StatusText"), lambda: self.m.show(UNIT, "StatusText"))
        said = "%s:3: max-spans = many: expected a whole number" % self.conf
        wait_until(lambda: said in self.entries("KD_SETTING=max-spans")[-1]["MESSAGE"], said)
        self.m.run("systemctl", "stop", UNIT)
        self.told("stopped")

    def test_the_sandbox_is_in_effect(self):
        self.m.write("/home/somebody/secret", "s")
        self.start()
        pid = self.m.main_pid(UNIT)
        with open("/proc/%d/status" % pid) as f:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
        self.assertEqual((status["NoNewPrivs"], status["Seccomp"], int(status["CapBnd"], 16)), ("1", "2", 0))
        self.assertNotEqual(status["Uid"].split()[0], "0")
        self.assertEqual(status["Umask"], "0077")
        limits = machine.text_of("/proc/%d/limits" % pid)
        self.assertRegex(limits, r"Max core file size +0 +0 ")            # keys and tokens are in memory
        # what the unit asks for, or what the container has, which cannot give more than that where root may not raise limits
        most = int(re.search(r"Max open files +\d+ +(\d+) ", machine.text_of("/proc/%d/limits" % self.m.leader)).group(1))
        self.assertEqual(self.m.show(UNIT, "LimitNOFILE"), "65536")
        self.assertRegex(limits, r"Max open files +%d " % min(65536, most))
        self.assertFalse(os.path.exists("/proc/%d/root/home/somebody/secret" % pid))
        self.assertIn(" ro,", re.search(r"^\S+ \S+ \S+ \S+ / .*", machine.text_of("/proc/%d/mountinfo" % pid), re.M).group(0))

    def test_a_crash_is_followed_by_a_restart(self):
        self.start()
        before = self.restarts()
        self.m.run("systemctl", "kill", "--kill-whom=main", "--signal=SEGV", UNIT)
        self.serves_again_after(before)

    def test_bad_settings_are_not_tried_again(self):
        self.settings("max-tokens = many\n")
        self.assertNotEqual(self.m.run("systemctl", "start", UNIT, check=False).returncode, 0)
        self.assertEqual((self.m.show(UNIT, "Result"), self.m.show(UNIT, "ActiveState"), self.restarts()), ("exit-code", "failed", 0))
        self.told("%s:3: max-tokens" % self.conf)

    def test_a_frozen_engine_is_killed_and_a_frozen_door_is_not(self):
        self.start()
        before = self.restarts()
        door = Frozen(self.m.main_pid(UNIT), "http")
        end = time.monotonic() + 2.5 * WATCHDOG_S
        wait_until(lambda: time.monotonic() > end, "some time")
        self.assertEqual((self.restarts(), self.m.show(UNIT, "SubState")), (before, "running"))
        door.thaw()
        self.assertEqual(self.http("GET", "/ready")[0], 200)
        engine = Frozen(self.m.main_pid(UNIT), "engine")
        began = time.monotonic()
        wait_until(lambda: engine.reap() and self.m.show(UNIT, "NRestarts") != str(before), lambda: self.m.journal(UNIT)[-3000:])
        self.assertLess(time.monotonic() - began, max(3 * WATCHDOG_S, machine.PATIENCE / 4))
        self.told("Watchdog timeout")
        self.serves_again_after(before)

    def test_sockets_start_the_daemon_and_outlive_it(self):
        self.m.run("systemctl", "start", "kdserved.socket", "kdserved-http.socket")
        self.assertEqual(self.m.show(UNIT, "ActiveState"), "inactive")
        self.assertEqual(self.http("GET", "/live")[0], 200)
        self.becomes_active()
        self.assertTrue(self.score())
        stop = self.m.path("/run/stop-load")
        load = [self.m.network(machine.sys.executable, "-c", LOAD, "8321", stop) for _ in range(2)]
        for _ in range(3):
            self.m.run("systemctl", "restart", UNIT)
        open(stop, "w").close()
        counts = [[int(x) for x in p.communicate(timeout=machine.PATIENCE)[0].split()] for p in load]
        os.unlink(stop)
        answered, refused, broken = (sum(c) for c in zip(*counts))
        print("restarts under load: %d answered, %d refused, %d broken" % (answered, refused, broken))
        self.assertEqual((refused, broken), (0, 0))
        self.assertGreater(answered, 10)

    def test_sealed_it_has_no_network_and_serves_it(self):
        with open(os.path.join(machine.SOURCE, "etc/systemd/sealed.conf")) as f:
            self.m.write("/etc/systemd/system/kdserved.service.d/sealed.conf", f.read())
        self.m.run("systemctl", "daemon-reload")
        self.m.run("systemctl", "start", "kdserved.socket", "kdserved-http.socket")
        self.assertEqual(self.http("GET", "/live")[0], 200)
        self.becomes_active()
        self.assertTrue(self.score())
        network = os.readlink("/proc/%d/ns/net" % self.m.main_pid(UNIT))
        self.assertNotEqual(network, os.readlink("/proc/%d/ns/net" % self.m.leader))

    def test_credentials_reach_the_service_alone(self):
        self.m.write("/etc/credstore/kdserved.tls-key", "a key\n", 0o600)
        self.addCleanup(os.unlink, self.m.path("/etc/credstore/kdserved.tls-key"))
        self.start()
        pid = self.m.main_pid(UNIT)
        with open("/proc/%d/environ" % pid, "rb") as f:
            directory = re.search(rb"CREDENTIALS_DIRECTORY=([^\0]*)", f.read()).group(1).decode()
        inside = "/proc/%d/root%s" % (pid, directory)
        self.assertEqual(os.listdir(inside), ["tls-key"])
        with open(inside + "/tls-key") as f:
            self.assertEqual(f.read(), "a key\n")
        self.assertEqual(os.stat(inside + "/tls-key").st_mode & 0o77, 0)

    def test_an_instance_has_its_own_settings_and_places(self):
        self.m.write(os.path.dirname(self.conf) + "/two.conf", SETTINGS + "http = 127.0.0.1:8322\n")
        self.m.run("systemctl", "start", UNIT, "kdserved@two.service")
        self.addCleanup(self.m.run, "systemctl", "stop", "kdserved@two.service")
        self.assertEqual([self.http("GET", "/ready", port=port)[0] for port in (8321, 8322)], [200, 200])
        self.assertTrue(os.path.isdir(self.m.path("/var/lib/kdserved/two/store")))
        with kdserved.Client("/proc/%d/root/run/kdserved/two/kdserved.sock" % self.m.leader) as c:
            self.assertTrue(c.score([[1, 2]], top_k=1))


if __name__ == "__main__":
    unittest.main(verbosity=2)
