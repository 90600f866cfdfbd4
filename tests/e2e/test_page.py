#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The status page: what its headers forbid, and, where a browser is installed (chromium, or $KDSERVED_BROWSER), that it runs there."""
import html.parser
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest

import kdserved
from kdserved import Daemon

SKIP = 77
BROWSER = os.environ.get("KDSERVED_BROWSER") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Served(unittest.TestCase):
    def test_nothing_comes_from_elsewhere_and_the_policy_says_so(self):
        with Daemon() as d:
            for path, kind in ("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript"):
                status, headers, body = d.http("GET", path)
                self.assertEqual((status, headers["Content-Type"].split(";")[0]), (200, kind))
                policy = headers["Content-Security-Policy"]
                self.assertIn("default-src 'none'", policy)
                self.assertNotIn("unsafe", policy)
                self.assertEqual(headers["X-Content-Type-Options"], "nosniff")
                text = body.decode().replace("http://www.w3.org/2000/svg", "")
                self.assertNotRegex(text, r"https?://|//[a-z]+\.|innerHTML|insertAdjacent|document\.write|eval\(")
                status, headers, _ = d.http("POST", path, {})
                self.assertEqual((status, headers["Allow"]), (405, "GET, HEAD"))

    def test_the_page_has_neither_inline_scripts_nor_inline_styles(self):
        class Inline(html.parser.HTMLParser):
            found = []

            def handle_starttag(self, tag, attributes):
                names = {name for name, _ in attributes}
                if tag == "style" or (tag == "script" and "src" not in names) or any(n == "style" or n.startswith("on") for n in names):
                    self.found.append(tag)
        with Daemon() as d:
            Inline().feed(d.http("GET", "/")[2].decode())
        self.assertEqual(Inline.found, [])


@unittest.skipUnless(BROWSER, "no browser is installed")
class InABrowser(unittest.TestCase):
    def dump(self, d, path="/", seconds=6):
        """The page as it is after some seconds, on the browser's clock, of its own scripts."""
        with tempfile.TemporaryDirectory(prefix="kdserved-browser-") as profile:
            done = subprocess.run([BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
                                   "--user-data-dir=" + profile, "--virtual-time-budget=%d" % (1000 * seconds), "--dump-dom",
                                   "http://127.0.0.1:%d%s" % (d.port, path)], capture_output=True, text=True, timeout=4 * kdserved.PATIENCE)
        self.assertNotRegex(done.stderr, r"CONSOLE.*(Error|Refused|Uncaught)")
        return done.stdout

    def test_it_shows_what_the_server_says_and_draws_charts(self):
        with tempfile.TemporaryDirectory(prefix="kdserved-e2e-") as directory:
            with Daemon("--store", os.path.join(directory, "store"), "--runs", os.path.join(directory, "runs")) as d:
                stop = threading.Event()

                def ask():
                    i = 0
                    while not stop.is_set():
                        i += 1
                        d.post("/v1/score", {"sequences": [{"tokens": [i % 250, 2, 3]}], "top_k": 1})
                        stop.wait(0.02)
                t = threading.Thread(target=ask)
                t.start()
                try:
                    page = self.dump(d)
                finally:
                    stop.set()
                    t.join()
        self.assertRegex(page, r'id="state" class="pill good"[^>]*>ready<')
        self.assertRegex(page, r'id="facts">model · cpu, \S+ · up')
        self.assertGreater(int(re.search(r'id="answered">(\d+)', page).group(1)), 0)
        self.assertGreater(int(re.search(r'id="records">(\d+)', page).group(1)), 0)
        self.assertGreaterEqual(page.count('<polyline class="line"'), 3, page)
        self.assertIn("None.", page)

    def test_what_a_run_says_is_text_not_markup(self):
        with tempfile.TemporaryDirectory(prefix="kdserved-e2e-") as directory:
            with Daemon("--runs", os.path.join(directory, "runs"), "--worker", "/bin/false") as d:
                status, _ = d.post("/v1/runs", {"name": "hostile", "config": "corpus = <img src=x onerror=alert(1)>\n"})
                page = self.dump(d)
        self.assertNotIn("<img", page)
        if status < 300:
            self.assertIn("<h3>hostile</h3>", page)


if __name__ == "__main__":
    program = unittest.main(verbosity=2, exit=False)
    if not program.result.wasSuccessful():
        sys.exit(1)
    sys.exit(0 if BROWSER else SKIP)
