# SPDX-License-Identifier: Apache-2.0
"""The worked example: its loss has the published values and gradients, and a student of transformers learns from a daemon by it."""
import ast
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import unittest

import support
support.need("numpy", "torch", "transformers", "accelerate")

import numpy as np
import torch

import tiny_model
from kdserved import Daemon

PATH = os.path.join(support.TOP, "clients", "python", "examples", "distil_trainer.py")
spec = importlib.util.spec_from_file_location("distil_trainer", PATH)
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)

ZT, ZS = [2, 1, .5, -.5, -1], [1.5, 1.2, 0, .3, -2]    # the running example of the method reference


def loss_and_gradient(support_ids, temperature=1.0, zs=ZS, k=None):
    student = torch.tensor([[zs]], dtype=torch.float64).float().requires_grad_()
    ids = torch.tensor([[support_ids + [-1] * ((k or 0) - len(support_ids))]])
    logits = torch.tensor([[[ZT[i] for i in support_ids] + [0.0] * ((k or 0) - len(support_ids))]])
    lse = torch.logsumexp(torch.tensor(ZT) / temperature, 0).reshape(1, 1)
    loss = example.ghost_kl(student, ids, logits, lse, torch.ones(1, 1, dtype=torch.bool), temperature)
    loss.backward()
    return loss.item(), student.grad[0, 0].numpy()


class Loss(unittest.TestCase):
    def test_has_the_published_values(self):
        for ids, temperature, value in (([0, 1], 1.0, 0.045520), ([0, 1, 3], 1.0, 0.087277), ([0, 1], 2.0, 0.037748),
                                        ([0, 1, 2, 3, 4], 1.0, 0.089926), ([0, 1, 2, 3, 4], 2.0, 0.134004)):
            self.assertAlmostEqual(loss_and_gradient(ids, temperature)[0], value, delta=2e-6, msg=ids)
            self.assertAlmostEqual(loss_and_gradient(ids, temperature, k=7)[0], value, delta=2e-6, msg="padded")

    def test_has_the_published_gradient(self):
        np.testing.assert_allclose(loss_and_gradient([0, 1])[1], [-0.144758, 0.109223, 0.014298, 0.019301, 0.001935], atol=2e-6)
        np.testing.assert_allclose(loss_and_gradient([0, 1, 2, 3, 4])[1], [-0.144758, 0.109223, -0.032300, 0.083576, -0.015742], atol=2e-6)

    def test_is_zero_at_the_teacher(self):
        value, gradient = loss_and_gradient([0, 1], zs=ZT)
        self.assertAlmostEqual(value, 0, delta=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)

    def test_rows_that_do_not_count_change_nothing(self):
        rng = torch.Generator().manual_seed(1)
        student, teacher = torch.randn(2, 3, 9, generator=rng), torch.randn(2, 3, 9, generator=rng)
        logits, ids = teacher.topk(4, dim=-1)
        lse, ok = teacher.logsumexp(-1), torch.tensor([[True, True, False], [True, False, False]])
        whole = example.ghost_kl(student, ids, logits, lse, ok)
        logits[~ok], ids[~ok], lse[~ok] = 0, -1, 0
        self.assertEqual(example.ghost_kl(student, ids, logits, lse, ok).item(), whole.item())


class Training(unittest.TestCase):
    def test_a_student_learns_from_a_daemon(self):
        with tempfile.TemporaryDirectory() as folder, Daemon() as daemon:
            student, out, text = (os.path.join(folder, name) for name in ("student", "out", "text"))
            tiny_model.write(student, seed=2)
            with open(text, "w") as f:
                f.write("the cat and the dog in the garden and the other one then ran on and on. " * 40)
            environment = dict(os.environ, PYTHONPATH=os.path.join(support.TOP, "clients", "python"), CUDA_VISIBLE_DEVICES="",
                               TOKENIZERS_PARALLELISM="false")
            run = subprocess.run([sys.executable, PATH, "--server", "unix:" + daemon.socket_path, "--student", student, "--text", text,
                                  "--out", out, "--length", "48", "--steps", "40", "--top-k", "16", "--learning-rate", "0.01",
                                  "--temperature", "2"],
                                 env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
            self.assertEqual(run.returncode, 0, run.stdout)
            logged = [line for line in run.stdout.replace("\r", "\n").splitlines() if line.startswith("{'loss'")]
            losses = [float(ast.literal_eval(line)["loss"]) for line in logged]
            self.assertEqual(len(losses), 4, run.stdout)
            self.assertLess(losses[-1], 0.5 * losses[0], losses)
            with open(os.path.join(out, "config.json")) as f:
                self.assertEqual(json.load(f)["model_type"], "llama")


if __name__ == "__main__":
    support.main()
