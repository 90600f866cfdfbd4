# SPDX-License-Identifier: Apache-2.0
"""Students whose vocabulary is not the teacher's: another tokenizer, live and from shards, and what such runs refuse."""
import json
import os
import shutil
import subprocess
import unittest

import kdserved
import test_training
import tiny_model


def other_tokenizer(directory):
    """The tiny model's bytes with other merges and another order of ids: some tokens are the teacher's too, most are not."""
    symbols = tiny_model.byte_symbols()
    merges = [("h", "e"), ("t", "he"), ("i", "n"), (symbols[32], "t"), ("n", "d"), ("o", "n"), (symbols[32], "a"), ("e", "r")]
    vocab = {"<|stop|>": 0}
    for b in reversed(range(256)):
        vocab[symbols[b]] = len(vocab)
    for left, right in merges:
        vocab[left + right] = len(vocab)
    special = {"id": 0, "content": "<|stop|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    made = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [special], "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": ["%s %s" % m for m in merges]},
    }
    path = os.path.join(directory, "other.json")
    with open(path, "w") as f:
        json.dump(made, f)
    return path


class Vocabulary(unittest.TestCase):
    worker, finish = test_training.Training.worker, test_training.Training.finish

    def learn(self, daemon, name, losses, *arguments, **more):
        output = os.path.join(daemon.directory, name)
        more = {"student_tokenizer": other_tokenizer(daemon.directory), "student_context": 128, "steps": 16, **more}
        said = self.finish(self.worker(daemon, output, test_training.settings(daemon.directory, loss=losses, **more), *arguments))
        with open(os.path.join(output, "metrics.jsonl")) as f:
            return output, said, [json.loads(line) for line in f]

    def test_each_loss_learns_across_tokenizers(self):
        with kdserved.Daemon() as daemon:
            for name in ("forward_kl", "uld", "gold", "cross_entropy"):
                with self.subTest(name):
                    output, said, lines = self.learn(daemon, name, name.replace("_", "-"))
                    self.assertRegex(said, r"student's tokenizer: 260 of its 265 ids are the teacher's too")
                    last = lines[-1]
                    self.assertEqual(last["state"], "succeeded")
                    losses = [line["loss_" + name] for line in lines if "loss" in line]
                    self.assertLess(losses[-1], 0.95 * losses[0])
                    if name == "cross_entropy":
                        bits = [line["held_out_bits_per_byte"] for line in lines if "held_out_bits_per_byte" in line]
                        self.assertLess(bits[-1], 0.9 * bits[0])
                    with open(os.path.join(output, "student", "tokenizer.json")) as f:
                        self.assertEqual(json.load(f)["model"]["vocab"]["\u0120t"], 260)
                    with open(os.path.join(output, "student", "config.json")) as f:
                        self.assertEqual(json.load(f)["vocab_size"], 265)

    def test_shards_and_a_resumed_run_give_the_same_losses(self):
        with kdserved.Daemon() as daemon:
            losses, store = ["gold top-k=16", "forward-kl top-k=16 weight=0.5", "cross-entropy weight=0.3"], os.path.join(daemon.directory, "own")
            small = os.path.join(daemon.directory, "small.txt")      # read whole within the run, so that shards answer all of it
            with open(small, "w") as f:
                f.write(test_training.corpus(1500))
            live, _, _ = self.learn(daemon, "live", losses, store=store, checkpoint_every=6, corpus=small)
            want = test_training.metrics(live)
            offline = {"teacher": "shards:" + store, "tokenizer": daemon.model}
            kept = os.path.join(daemon.directory, "kept")
            text = test_training.settings(daemon.directory, loss=losses, student_tokenizer=other_tokenizer(daemon.directory),
                                          student_context=128, steps=16, corpus=small, **offline)
            with open(kept + ".conf", "w") as f:
                f.write(text)
            done = subprocess.run([test_training.WORKER, "--config", kept + ".conf", "--output", kept], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(test_training.metrics(kept), want)
            shutil.rmtree(os.path.join(live, "checkpoints", "step-%012d" % 16))
            self.learn(daemon, "live", losses, "--resume", store=store, checkpoint_every=6, corpus=small)
            self.assertEqual(test_training.metrics(live), want)

    def test_a_student_goes_on_from_a_run_across_tokenizers(self):
        with kdserved.Daemon() as daemon:
            first, _, lines = self.learn(daemon, "first", ["uld top-k=16", "cross-entropy"])
            _, _, more = self.learn(daemon, "second", ["forward-kl top-k=16"], student=os.path.join(first, "student"), warmup=0,
                                    learning_rate=0.003)
            self.assertAlmostEqual(more[-1]["held_out_kl_before"], lines[-1]["held_out_kl"], 3)
            self.assertLess(more[-1]["held_out_kl"], lines[-1]["held_out_kl"])

    def test_what_needs_one_vocabulary_is_refused_with_its_line(self):
        with kdserved.Daemon() as daemon:
            output = os.path.join(daemon.directory, "out")
            for losses, why in ((["forward-kl", "logit-mse"], "loss logit-mse: compares ids one by one"), (["dkd"], "loss dkd: compares ids one by one"),
                                (["forward-kl form=draws"], "loss forward-kl: form=ghost is expected"),
                                (["reverse-kl support=both:8"], "loss reverse-kl: support=teacher is expected")):
                text = test_training.settings(daemon.directory, loss=losses, student_tokenizer=other_tokenizer(daemon.directory))
                self.assertRegex(self.finish(self.worker(daemon, output, text), expect=78), r"out\.conf:\d+: " + why)
            text = test_training.settings(daemon.directory, student_tokenizer=other_tokenizer(daemon.directory), rollouts="0.5",
                                          rollout_prompt=8, rollout_tokens=8)
            self.assertIn("student-tokenizer: and rollouts", self.finish(self.worker(daemon, output, text), expect=78))
            text = test_training.settings(daemon.directory, student_tokenizer=os.path.join(daemon.directory, "none.json"))
            self.assertIn("none.json", self.finish(self.worker(daemon, output, text), expect=1))


if __name__ == "__main__":
    unittest.main()
