# SPDX-License-Identifier: Apache-2.0
"""Runs that compute the same in another way: layers computed twice."""
import os
import unittest

import kdserved
from test_training import FILES, Training, metrics, read, settings


class Options(unittest.TestCase):
    worker, finish = Training.worker, Training.finish

    def test_gradient_checkpointing_changes_no_bit_and_needs_less(self):
        with kdserved.Daemon() as daemon:
            outputs, needs = [], []
            for more in ({}, {"gradient_checkpointing": "yes"},
                         {"gradient_checkpointing": "yes", "gradient_checkpointing_layers": 3}):
                outputs.append(os.path.join(daemon.directory, "out%d" % len(outputs)))
                said = self.finish(self.worker(daemon, outputs[-1], settings(daemon.directory, student_layers=4, steps=6, **more)))
                needs.append(float(said.split("activations of a micro-batch need ")[1].split(" MiB")[0]))
            self.assertEqual(len(metrics(outputs[0])), 6)
            for other in outputs[1:]:
                self.assertEqual(metrics(other), metrics(outputs[0]))
                for name in FILES:
                    self.assertEqual(read(other, "student", name), read(outputs[0], "student", name), name)
            self.assertLess(needs[1], needs[2])
            self.assertLess(needs[2], needs[0])


del Training                                       # its tests run in test_training.py

if __name__ == "__main__":
    unittest.main()
