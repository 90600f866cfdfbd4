# SPDX-License-Identifier: Apache-2.0
"""libkdclient as it is installed: header, pkg-config file and library serve to build the program of libkdclient(3), which asks a daemon."""
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest

from kdserved import BUILD, Daemon

SOURCE = os.environ.get("top_srcdir", ".")
TOOLS = {name: shlex.split(os.environ.get(name, "")) for name in ("CC", "MAKE", "PKG_CONFIG")}


def man_example(page):
    """The program of the page's EXAMPLES."""
    with open(os.path.join(SOURCE, "man", page)) as f:
        text = f.read().split(".Sh EXAMPLES")[1]
    return text.split(".Bd -literal\n")[1].split(".Ed\n")[0].replace("\\e", "\\")


class Installed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.root = tempfile.mkdtemp(prefix="kdserved-e2e-")
        cls.addClassCleanup(shutil.rmtree, cls.root)
        targets = ["install-libLTLIBRARIES", "install-includeHEADERS", "install-pkgconfigDATA"]
        environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
        done = subprocess.run(TOOLS["MAKE"] + ["-C", BUILD, "-s", "DESTDIR=" + cls.root] + targets, capture_output=True, text=True,
            env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        for where, _, names in os.walk(cls.root):
            if "libkdclient.pc" in names:
                cls.pkgconfig = where
        cls.lib = os.path.dirname(cls.pkgconfig)

    def flags(self, *options):
        environment = dict(os.environ, PKG_CONFIG_PATH=self.pkgconfig, PKG_CONFIG_SYSROOT_DIR=self.root,
            PKG_CONFIG_ALLOW_SYSTEM_CFLAGS="1", PKG_CONFIG_ALLOW_SYSTEM_LIBS="1")
        return shlex.split(subprocess.run(TOOLS["PKG_CONFIG"] + list(options) + ["libkdclient"], env=environment, check=True,
            capture_output=True, text=True).stdout)

    def build(self, source, name):
        path = os.path.join(self.root, name)
        with open(path + ".c", "w") as f:
            f.write(source)
        command = TOOLS["CC"] + ["-Wall", "-Wextra", "-Werror", path + ".c", "-o", path]
        command += self.flags("--cflags", "--libs") + ["-lm"] + os.environ.get("KDSERVED_TEST_SANITIZED", "").split()
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return path

    def run_program(self, *command):
        return subprocess.run(command, env=dict(os.environ, LD_LIBRARY_PATH=self.lib), capture_output=True, text=True, timeout=60)

    def test_nothing_but_the_library_is_needed(self):
        names = sorted(n for _, _, files in os.walk(self.root) for n in files if not n.startswith("perplexity"))
        self.assertIn("kdclient.h", names)
        self.assertIn("libkdclient.so", names)
        self.assertEqual(self.flags("--modversion")[0].count("."), 2)

    def test_the_program_of_the_manual_gives_the_perplexity(self):
        program = self.build(man_example("libkdclient.3"), "perplexity")
        tokens = [5, 17, 200, 3, 99]
        with Daemon() as daemon:
            status, reply = daemon.post("/v1/score", {"sequences": [{"tokens": tokens}], "own": True})
            self.assertEqual(status, 200, reply)
            rows = reply["sequences"][0]["rows"]
            nll = sum(r["lse"][0] - r["own_logit"] for r in rows[:-1])
            done = self.run_program(program, "unix:" + daemon.socket_path, *map(str, tokens))
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertAlmostEqual(float(done.stdout), math.exp(nll / (len(tokens) - 1)), places=3)
            done = self.run_program(program, "unix:" + daemon.socket_path, "1", "999999")
            self.assertEqual(done.returncode, 1)
            self.assertIn("sequences[0].tokens[1]", done.stderr)


if __name__ == "__main__":
    if not all(TOOLS.values()):
        print("skipped: needs the compiler, make and pkg-config of the build")
        sys.exit(77)
    unittest.main(verbosity=2)
