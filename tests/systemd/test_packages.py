# SPDX-License-Identifier: Apache-2.0
"""The Debian packages in a booted container: installed, used, upgraded, removed, purged. argv[1]: the directory they are in."""
import glob
import os
import re
import subprocess
import sys
import unittest

import machine
from machine import Machine, wait_until

if len(sys.argv) < 2 or not glob.glob(os.path.join(sys.argv[1], "kdserved_*.deb")):
    machine.skip("no packages: make check-package builds them")
machine.enter()

PACKAGES = os.path.abspath(sys.argv.pop(1))
NAMES = ("kdctl", "kdserved", "libkdclient-dev", "libkdclient1", "python3-kdclient")
UNIT = "kdserved.service"
INSTANCE = "kdserved@two.service"
CONF = "/etc/kdserved/kdserved.conf"
PLACES = ("bin", "boot", "etc", "home", "lib", "lib64", "media", "opt", "root", "sbin", "srv", "usr", "var")
# What changes by itself, or is dpkg's and apt's own memory.
OTHERS = re.compile(r"/var/(log|cache|lib/(dpkg|apt|systemd|dbus|private)|tmp)(/|$)|/etc/(ld\.so\.cache|machine-id|\.pwd\.lock|\.updated)$|/root/packages|"
                    r"/etc/(passwd|group|shadow|gshadow)-?$|/(var/)?\.updated$|/etc/resolv.conf$|__pycache__|/etc/mtab$|/etc/hostname$")


def build_newer(source, target, suffix):
    """The same package, called newer."""
    tree = target + ".tree"
    subprocess.run(["dpkg-deb", "--raw-extract", source, tree], check=True)
    path = os.path.join(tree, "DEBIAN/control")
    text = re.sub(r"^Version: (.*)$", r"Version: \1" + suffix, machine.text_of(path), flags=re.M)
    version = re.search(r"^Version: (.*)$", text, re.M).group(1)
    with open(path, "w") as f:
        f.write(text.replace("(= %s)" % version.removesuffix(suffix), "(= %s)" % version))
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", "-Znone", tree, target], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["rm", "-rf", tree], check=True)


class Packages(unittest.TestCase):
    """One life of a machine, in the order of the tests' names."""

    @classmethod
    def setUpClass(cls):
        cls.m = m = Machine()
        cls.addClassCleanup(m.close)
        for suffix, folder in (("", "one"), ("+1", "two"), ("+2", "three")):
            os.makedirs(m.path("/root/packages/" + folder))
            for name in NAMES:
                source, = glob.glob(os.path.join(PACKAGES, name + "_*.deb"))
                build_newer(source, m.path("/root/packages/%s/%s.deb" % (folder, name)), suffix)
        cls.before = cls.files()
        done = subprocess.run(["chroot", m.root, "env", *cls.install_command("one")], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise AssertionError("in a chroot without systemd: %s%s" % (done.stdout[-3000:], done.stderr[-3000:]))
        m.boot()

    @classmethod
    def files(cls):
        found = set()
        for place in PLACES:
            for where, directories, names in os.walk(cls.m.path(place)):
                found.update(os.path.join(where, n)[len(cls.m.root):] for n in directories + names)
        return {f for f in found if not OTHERS.search(f)}

    @staticmethod
    def install_command(folder):
        return ["DEBIAN_FRONTEND=noninteractive", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "apt-get", "-q", "-y", "--no-install-recommends", "-o",
                "Dpkg::Options::=--force-confdef", "install", *("/root/packages/%s/%s.deb" % (folder, name) for name in NAMES)]

    def apt(self, *command):
        self.m.run("env", "DEBIAN_FRONTEND=noninteractive", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "apt-get", "-q", "-y", *command)

    def serves(self, unit=UNIT, server="unix:/run/kdserved/kdserved.sock"):
        wait_until(lambda: self.m.show(unit, "ActiveState") == "active", lambda: self.m.journal(unit)[-3000:])
        self.assertIn("2048", self.m.run("kdctl", "--server", server, "model").stdout)

    def nothing_failed(self):
        self.assertEqual(self.m.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "kdserved*").stdout, "")

    def test_1_installed_in_an_image_it_serves_from_the_boot_on(self):
        self.serves()
        self.assertEqual([self.m.run("systemctl", "is-enabled", u, check=False).stdout.strip() for u in (UNIT, "kdserved.socket", "kdserved-http.socket")],
                         ["enabled", "disabled", "disabled"])
        self.assertEqual(self.m.run("systemctl", "show", "-P", "User", UNIT).stdout.strip(), "kdserved")

    def test_2_its_own_test_passes(self):
        with open(os.path.join(machine.SOURCE, "debian/tests/smoke")) as f:
            self.m.write("/root/packages/smoke", f.read(), 0o755)
        self.m.run("/root/packages/smoke")
        self.nothing_failed()

    def test_2_the_completions_are_found_by_name(self):
        for name in ("kdctl", "kdserved", "kdserved-worker"):
            said = self.m.run("bash", "-c", ". /usr/share/bash-completion/completions/%s && complete -p %s" % (name, name)).stdout
            self.assertIn("_kdserved", said)

    def test_3_an_upgrade_restarts_what_runs_and_keeps_what_was_set(self):
        with open(self.m.path(CONF)) as f:
            text = f.read()
        self.m.write(CONF, text + "max-tokens = 1024\n")
        self.m.write("/etc/kdserved/two.conf", "teacher = /usr/share/kdserved/teacher\nhttp = 127.0.0.1:8322\n")
        self.m.run("systemctl", "start", INSTANCE)
        self.serves(INSTANCE, "unix:/run/kdserved/two/kdserved.sock")
        before = [self.m.show(u, "MainPID") for u in (UNIT, INSTANCE)]
        store = os.listdir(self.m.path("/var/lib/kdserved/store"))
        self.m.run("env", *self.install_command("two"))
        self.serves()
        self.serves(INSTANCE, "unix:/run/kdserved/two/kdserved.sock")
        for unit, pid in zip((UNIT, INSTANCE), before):
            self.assertNotEqual(self.m.show(unit, "MainPID"), pid, unit)
        self.assertIn("+1", self.m.run("dpkg-query", "-W", "-f", "${Version}", "kdserved").stdout)
        self.assertIn("max-tokens = 1024\n", machine.text_of(self.m.path(CONF)))
        self.assertLessEqual(set(store), set(os.listdir(self.m.path("/var/lib/kdserved/store"))))
        self.nothing_failed()

    def test_4_sockets_stay_open_during_an_upgrade(self):
        sockets = ("kdserved.socket", "kdserved-http.socket")
        self.m.run("systemctl", "disable", "--now", UNIT)
        self.m.run("systemctl", "enable", "--now", *sockets)
        self.serves_on_demand()
        entered = [self.m.show(s, "ActiveEnterTimestampMonotonic") for s in sockets]
        before = self.m.show(UNIT, "MainPID")
        self.m.run("env", *self.install_command("three"))
        self.serves_on_demand()
        self.assertNotEqual(self.m.show(UNIT, "MainPID"), before)
        self.assertEqual([self.m.show(s, "ActiveEnterTimestampMonotonic") for s in sockets], entered)
        self.m.run("systemctl", "disable", "--now", *sockets)
        self.m.run("systemctl", "enable", "--now", UNIT)

    def serves_on_demand(self):
        done = self.m.run("kdctl", "model", check=False)     # loading perhaps, but never refused
        self.assertRegex(done.stdout + done.stderr, "2048|loading")
        self.serves()

    def test_5_removed_it_stops_and_keeps_settings_and_answers(self):
        self.m.run("systemctl", "stop", UNIT)
        self.m.run("systemctl", "start", "kdserved.socket", "kdserved-http.socket", UNIT, INSTANCE)
        self.apt("remove", *NAMES)
        for unit in (UNIT, INSTANCE, "kdserved.socket", "kdserved-http.socket"):
            self.assertNotIn(self.m.show(unit, "ActiveState"), ("active", "activating"), unit)
        self.assertEqual([os.path.exists(self.m.path(p)) for p in (CONF, "/var/lib/kdserved/store", "/usr/sbin/kdserved", "/run/kdserved")],
                         [True, True, False, False])
        self.nothing_failed()

    def test_6_installed_on_a_running_system_it_serves_at_once(self):
        self.m.run("env", *self.install_command("three"))
        self.serves()
        self.assertIn("max-tokens = 1024\n", machine.text_of(self.m.path(CONF)))

    def test_7_masked_before_it_is_not_started(self):
        self.apt("remove", "kdserved")
        self.m.run("systemctl", "mask", UNIT)
        self.m.run("env", *self.install_command("three"))
        self.assertNotEqual(self.m.show(UNIT, "ActiveState"), "active")
        self.m.run("systemctl", "unmask", UNIT)
        self.m.run("systemctl", "start", UNIT)
        self.serves()

    def test_8_purged_it_leaves_nothing_but_its_user(self):
        os.unlink(self.m.path("/etc/kdserved/two.conf"))
        self.apt("purge", *NAMES)
        self.assertEqual(sorted(self.files() - self.before), [])
        self.assertEqual(sorted(self.before - self.files()), [])
        self.assertEqual(self.m.show(UNIT, "LoadState"), "not-found")
        self.assertIn("kdserved", self.m.run("getent", "passwd", "kdserved").stdout)
        self.nothing_failed()


if __name__ == "__main__":
    unittest.main(verbosity=2, failfast=True)
