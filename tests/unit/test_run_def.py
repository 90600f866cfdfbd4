# SPDX-License-Identifier: Apache-2.0
"""Every row of daemon/train/run.def is described in kdserved-worker.8 with its default, and nothing else is; recipes use known keys."""
import glob
import os
import re
import subprocess
import sys
import unittest

TOP = os.environ.get("top_srcdir", os.path.join(os.path.dirname(__file__), "..", ".."))


def read(path):
    with open(os.path.join(TOP, path), encoding="utf-8") as f:
        return f.read()


def rows():
    found = re.findall(r'^OPTION\(\w+, "([a-z0-9-]+)", \w+, [^,]+, [^,]+, "([^"]*)"', read("daemon/train/run.def"), re.M)
    assert len(found) == read("daemon/train/run.def").count("\nOPTION("), "a row this test cannot read"
    return dict(found)


class RunDef(unittest.TestCase):
    def test_manual_has_each_setting_and_its_default(self):
        section = read("man/kdserved-worker.8").split(".SH SETTINGS")[1].split(".SH ")[0].replace("\\-", "-")
        described = {m[0]: m[1] for m in re.findall(r'^\.BR ([a-z0-9-]+)(?: " = ([^"]*)")?$', section, re.M)}
        self.assertEqual(described, rows())

    def test_manual_has_each_loss_and_its_parameters(self):
        """The section LOSSES says what --list-losses says."""
        worker = os.path.join(os.environ.get("top_builddir", "."), "kdserved-worker")
        said = subprocess.run([worker, "--list-losses"], capture_output=True, text=True, check=True).stdout
        wanted = []
        for line in said.splitlines():
            parameter = re.fullmatch(r"    ([a-z0-9-]+)=(\S*)(?: \((.*)\))?: (.*)", line)
            if parameter:
                name, default, values, text = parameter.groups()
                wanted += [(name, default), text[0].upper() + text[1:] + (" (%s)." % values if values else ".")]
            else:
                name, _, text = line.partition(": ")
                wanted += [name if text else name[0].upper() + name[1:]] + ([text + "."] if text else [])
        section = read("man/kdserved-worker.8").split(".SH LOSSES")[1].split(".SH ")[0].replace("\\-", "-")
        section = section[section.index("\n.SS ") + 1:]
        found = []
        for line in section.splitlines():
            parameter = re.fullmatch(r'\.BR ([a-z0-9-]+) "=(.*)"', line)
            if line != ".TP":
                found.append(parameter.groups() if parameter else line.removeprefix(".SS "))
        self.assertGreater(len(wanted), 100)
        self.assertEqual(found, wanted)

    def test_recipes_use_known_keys(self):
        recipes = glob.glob(os.path.join(TOP, "etc/recipes/*.conf"))
        self.assertTrue(recipes)
        for path in recipes:
            for line in read(path).splitlines():
                if "=" in line and not line.startswith("#"):
                    self.assertIn(line.split("=")[0].strip(), rows(), path)
            worker = os.path.join(os.environ.get("top_builddir", "."), "kdserved-worker")
            checked = subprocess.run([worker, "--config", path, "--check-config"], capture_output=True, text=True)
            self.assertEqual(checked.returncode, 0, checked.stderr)


if __name__ == "__main__":
    sys.exit(not unittest.main(exit=False).result.wasSuccessful())
