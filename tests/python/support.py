# SPDX-License-Identifier: Apache-2.0
"""What every test of the Python client begins with: an interpreter that has what it needs, else 77 (skipped)."""
import importlib.util
import os
import sys
import unittest

TOP = os.environ.get("top_srcdir") or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(TOP, "clients", "python"), os.path.join(TOP, "tests", "e2e")]


def need(*modules):
    """Goes on with this interpreter if it has the modules, else with KDSERVED_TEST_PYTHON or Debian's own, else skips."""
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if not missing:
        return
    tried = os.environ.get("KDSERVED_TEST_TRIED", "").split(":")
    for python in (os.environ.get("KDSERVED_TEST_PYTHON"), "/usr/bin/python3"):
        if python and python not in tried and os.access(python, os.X_OK):
            os.environ["KDSERVED_TEST_TRIED"] = ":".join(tried + [python])
            os.execv(python, [python] + sys.argv)
    print("skipped: no Python found with %s (KDSERVED_TEST_PYTHON names one)" % ", ".join(missing))
    sys.exit(77)


def main():
    unittest.main(verbosity=2)
