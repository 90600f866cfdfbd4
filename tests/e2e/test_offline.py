# SPDX-License-Identifier: Apache-2.0
"""Training from shards alone: the same losses as with the teacher, exactly resumed, and nothing made up where answers are missing."""
import glob
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import kdserved
import tiny_model
from test_training import FILES, LOSSES, WORKER, conf, corpus, kill_at, metrics, read

SHAPE = {"sequence-length": 48, "micro-batch": 4, "accumulate": 2, "warmup": 3, "learning-rate": 0.01, "student-width": 32,
         "student-layers": 2, "student-heads": 4, "student-kv-heads": 2, "student-ffn-width": 64, "student-context": 64,
         "loss": LOSSES, "evaluate-every": 8, "checkpoint-every": 6, "held-out-max": 8, "threads": 1}


def text_of(**keys):
    keys = {**SHAPE, **{k.replace("_", "-"): v for k, v in keys.items()}}
    return conf(keys)


def last_report(output):
    return json.loads(read(output, "metrics.jsonl").splitlines()[-1])


class Offline(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        """A live run against a daemon that keeps everything: what all tests below learn from."""
        cls.directory = tempfile.mkdtemp(prefix="kdserved-offline-")
        cls.kept, cls.text = os.path.join(cls.directory, "kept"), os.path.join(cls.directory, "corpus.txt")
        cls.model = os.path.join(cls.directory, "model")
        with open(cls.text, "w") as f:
            f.write(corpus(2400))
        cls.live = os.path.join(cls.directory, "live")
        with kdserved.Daemon("--store", cls.kept, directory=cls.directory) as daemon:
            cls.teacher = daemon.get("/v1/model")[1]
            status, err = cls.work(cls.live, text_of(corpus=cls.text, epochs=1.5, server="unix:" + daemon.socket_path))
            assert status == 0, err

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.directory)

    def setUp(self):
        self.own = tempfile.mkdtemp(dir=self.directory)
        self.output = os.path.join(self.own, "out")

    @classmethod
    def start(cls, output, text, *arguments):
        with open(output + ".conf", "w") as f:
            f.write(text)
        return subprocess.Popen([WORKER, "--config", output + ".conf", "--output", output, *arguments], stderr=subprocess.PIPE, text=True)

    @classmethod
    def work(cls, output, text, *arguments):
        process = cls.start(output, text, *arguments)
        _, err = process.communicate(timeout=kdserved.PATIENCE)
        assert "Sanitizer" not in err, err
        return process.returncode, err

    def run_well(self, output, text, *arguments):
        status, err = self.work(output, text, *arguments)
        self.assertEqual(status, 0, err)
        return err

    def refused(self, words, status=1, output=None, arguments=(), **keys):
        got, err = self.work(output or self.output, self.offline(**keys), *arguments)
        self.assertEqual(got, status, err)
        for word in words:
            self.assertIn(word, err)

    def offline(self, **keys):
        return text_of(**{"teacher": "shards:" + self.kept, "tokenizer": self.model, "epochs": 1.5, **keys})

    def copy(self):
        to = os.path.join(self.own, "copy")
        shutil.copytree(self.kept, to)
        return to

    def killed_at(self, text, seen):
        process = self.start(self.output, text)
        kill_at(process, self.output, seen)

    # ---- the same as with the teacher

    def test_the_losses_are_those_of_the_live_run(self):
        self.run_well(self.output, self.offline(corpus=self.text))
        self.assertEqual(metrics(self.output), metrics(self.live))
        self.assertGreater(len(metrics(self.live)), 20)
        for name in FILES:
            self.assertEqual(read(self.output, "student", name), read(self.live, "student", name), name)
        said = last_report(self.output)
        self.assertEqual((said["masked"], said["cached_share"]), (0, 1))
        self.assertEqual(said["teacher_perplexity"], last_report(self.live)["teacher_perplexity"])

    def test_several_directories_and_a_tokenizer_alone(self):
        half = self.copy()
        shards = sorted(glob.glob(os.path.join(half, "*.shard")))
        other, none = os.path.join(self.own, "other"), os.path.join(self.own, "none")
        os.mkdir(other)
        os.mkdir(none)
        for path in shards + glob.glob(os.path.join(half, "*.index")):
            os.rename(path, os.path.join(other, os.path.basename(path)))      # the notes stay, the records move
        tokenizer = os.path.join(self.own, "tokenizer.json")
        shutil.copy(os.path.join(self.model, "tokenizer.json"), tokenizer)
        self.run_well(self.output, self.offline(corpus=self.text, tokenizer=tokenizer, teacher="shards:%s,%s,%s" % (none, half, other)))
        self.assertEqual(metrics(self.output), metrics(self.live))

    def test_a_live_run_goes_on_from_its_store(self):
        shutil.copytree(self.live, self.output)
        for path in sorted(os.listdir(os.path.join(self.output, "checkpoints")))[1:]:
            shutil.rmtree(os.path.join(self.output, "checkpoints", path))
        err = self.run_well(self.output, self.offline(corpus=self.text), "--resume")
        self.assertIn("resumed after step", err)
        self.assertEqual(metrics(self.output), metrics(self.live))

    # ---- from what the shards hold

    def test_without_a_corpus_it_trains_on_what_is_there(self):
        for order in ("shuffled", "sequential"):
            output = self.output + order
            err = self.run_well(output, self.offline(order=order, loss=["forward-kl top-k=8", LOSSES[1]], epochs=2))
            self.assertIn("shards: ", err)
            said = last_report(output)
            self.assertEqual(said["masked"], 0)
            self.assertLess(said["held_out_kl"], 0.9 * said["held_out_kl_before"])
        self.assertNotEqual(metrics(self.output + "shuffled"), metrics(self.output + "sequential"))

    def test_killed_and_resumed_is_the_same_though_the_store_grew(self):
        for order in ("shuffled", "sequential"):
            with self.subTest(order):
                self.output = os.path.join(self.own, order)
                kept = os.path.join(self.own, "kept-" + order)
                shutil.copytree(self.kept, kept)
                text = self.offline(teacher="shards:" + kept, order=order, epochs=None, steps=60)
                whole = self.output + "-whole"
                self.run_well(whole, text)
                self.killed_at(text, 12)
                with kdserved.Daemon("--store", kept, directory=self.directory) as daemon:
                    for i in range(20):
                        tokens = [(7 * i + k) % 250 for k in range(40)]
                        status, reply = daemon.post("/v1/score", {"sequences": [{"tokens": tokens}], "top_k": 16, "temperatures": [1, 2],
                                                                  "durable": True, "values": "f16", "last": -2})
                        self.assertEqual(status, 200, reply)
                self.run_well(self.output, text, "--resume")
                self.assertEqual(metrics(self.output), metrics(whole))
                self.assertEqual(sorted(metrics(whole)), list(range(1, 61)))
                self.assertEqual(read(self.output, "student", "model.safetensors"), read(whole, "student", "model.safetensors"))
                grown = self.output + "-grown"                       # whereas a new run takes them in
                self.run_well(grown, text)
                self.assertNotEqual(metrics(grown), metrics(whole))

    def test_another_list_is_refused(self):
        self.run_well(self.output, self.offline())
        self.killed = os.path.join(self.output, "sequences.list")
        listed = read(self.killed)
        self.refused(["order", "cannot be resumed"], arguments=["--resume"], order="sequential")
        with open(self.killed, "wb") as f:
            f.write(listed[:-1] + bytes([listed[-1] ^ 1]))
        self.refused(["the list of sequences is damaged"], arguments=["--resume"])
        os.unlink(self.killed)
        self.refused(["cannot be resumed"], arguments=["--resume"], sequence_length=49)
        self.run_well(self.output, self.offline(), "--resume")           # the same store gives the same list

    # ---- missing and damaged

    def test_missing_answers_are_counted_before_anything_is_trained(self):
        longer = os.path.join(self.own, "longer.txt")
        with open(self.text) as f:
            more = f.read()
        with open(longer, "w") as f:
            f.write(more + "and nobody asked about this\n" * 100)
        self.refused(["sequences of 48 tokens have no answer", "missing = skip"], corpus=longer)
        self.assertFalse(os.path.exists(os.path.join(self.output, "checkpoints")))
        self.refused(["have no answer"], corpus=longer, missing="skip", values="f32")      # none at all is left
        text = self.offline(corpus=longer, missing="skip", epochs=None, steps=40)
        whole = self.output + "-whole"
        self.assertIn("training on the others", self.run_well(whole, text))
        self.killed_at(text, 12)
        self.run_well(self.output, text, "--resume")
        self.assertEqual(metrics(self.output), metrics(whole))
        with open(longer, "a") as f:
            f.write("another text\n" * 40)
        self.refused(["corpus", "cannot be resumed"], arguments=["--resume"], corpus=longer, missing="skip", epochs=None, steps=40)

    def damage(self, directory, share):
        path = sorted(glob.glob(os.path.join(directory, "*.shard")))[0]
        with open(path, "r+b") as f:
            f.seek(int(os.path.getsize(path) * share))
            at = f.tell()
            byte = f.read(1)
            f.seek(at)
            f.write(bytes([byte[0] ^ 64]))

    def test_damage_that_was_there_is_told_and_left_out(self):
        kept = self.copy()
        self.damage(kept, 0.4)
        err = self.run_well(self.output, self.offline(teacher="shards:" + kept))
        self.assertRegex(err, r"0000000.\.shard:\d+: \d+ bytes are damaged, 1 records lost")
        self.assertIn("1 places damaged", err)
        self.assertEqual(last_report(self.output)["masked"], 0)

    def test_a_record_that_is_damaged_later_is_masked_and_counted(self):
        kept = self.copy()
        text = self.offline(teacher="shards:" + kept, missing="skip", epochs=None, steps=60)
        self.killed_at(text, 12)
        self.damage(kept, 0.4)
        err = self.run_well(self.output, text, "--resume")
        self.assertIn("damaged or gone", err)
        said = last_report(self.output)
        self.assertEqual(said["masked"] % 47, 0)
        self.assertGreater(said["masked"], 0)
        self.assertLess(said["held_out_kl"], said["held_out_kl_before"])

    # ---- refusals

    def test_what_does_not_fit_is_refused(self):
        other = os.path.join(self.own, "other")
        tiny_model.write(other)
        with open(os.path.join(other, "tokenizer.json")) as f:
            tokenizer = json.load(f)
        vocab = tokenizer["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
        with open(os.path.join(other, "tokenizer.json"), "w") as f:
            json.dump(tokenizer, f)
        self.refused(["tokenizer", "is not the tokenizer that the teacher's answers were made with"], tokenizer=other)
        self.refused(["teacher-id", "64 hexadecimal"], status=78, teacher_id="ab")
        self.refused(["no answer of " + "ab" * 32], teacher_id="ab" * 32)
        self.refused(["tokenizer", "is missing"], status=78, tokenizer=None)
        self.refused(["server", "one of the two"], status=78, server="unix:/nowhere")
        self.refused(["store"], status=78, store=self.own)
        self.refused(["names no directory"], status=78, teacher="shards:")
        self.refused(["/nowhere"], teacher="shards:/nowhere")
        self.refused(["do not hold 32 ids", "16 ids"], loss="forward-kl temperature=2 top-k=32")
        self.refused(["do not hold 16 ids", "temperature 1, 3"], loss="forward-kl temperature=3 top-k=16")
        self.refused(["longer than sequence-length"], sequence_length=20)
        self.refused(["a schedule asks", "at step"], temperature=None, ce_weight=None, top_k=None,
                     loss="forward-kl temperature=linear:2:4 top-k=16")

    # ---- no teacher

    def labels(self, **keys):
        return text_of(**{"teacher": "labels", "tokenizer": self.model, "corpus": self.text, "loss": "cross-entropy", "epochs": 1.5, **keys})

    def test_labels_alone_give_what_cross_entropy_beside_a_teacher_gives(self):
        beside = os.path.join(self.own, "beside")
        with kdserved.Daemon(directory=self.directory) as daemon:
            self.run_well(beside, text_of(server="unix:" + daemon.socket_path, corpus=self.text, loss="cross-entropy", epochs=1.5))
        self.killed_at(self.labels(), 6)
        self.run_well(self.output, self.labels(), "--resume")
        mine, theirs = metrics(self.output), metrics(beside)
        self.assertEqual({k: (v["loss"], v["gradient_norm"]) for k, v in mine.items()}, {k: (v["loss"], v["gradient_norm"]) for k, v in theirs.items()})
        said = last_report(self.output)
        self.assertEqual((said["teacher_perplexity"], said["masked"]), (1, 0))
        self.assertAlmostEqual(said["held_out_kl"], said["held_out_ce"], places=9)
        self.assertEqual(said["held_out_ce"], last_report(beside)["held_out_ce"])
        self.assertEqual(read(self.output, "student", "model.safetensors"), read(beside, "student", "model.safetensors"))

    def test_a_file_that_is_not_there_is_told_with_its_setting(self):
        for keys, words in (({"tokenizer": "/nowhere"}, "error: tokenizer: cannot open /nowhere"),
                            ({"student": "/nowhere"}, "error: student: cannot open model /nowhere"),
                            ({"student": "/nowhere", "tokenizer": None}, "error: student: cannot open /nowhere")):
            status, err = self.work(self.output, self.labels(**keys))
            self.assertEqual(status, 1, err)
            self.assertIn(words, err)

    def test_labels_go_with_nothing_that_asks_a_teacher(self):
        for words, keys in ((["loss", "cross-entropy"], {"loss": "forward-kl"}), (["server", "one of the two"], {"server": "unix:/nowhere"}),
                            (["store"], {"store": self.own}), (["tokenizer", "is missing"], {"tokenizer": None}),
                            (["corpus", "is missing"], {"corpus": None})):
            status, err = self.work(self.output, self.labels(**keys))
            self.assertEqual(status, 78, err)
            for word in words:
                self.assertIn(word, err)

    # ---- several teachers

    def test_each_of_several_teachers_can_be_named(self):
        second, kept = os.path.join(self.own, "second"), os.path.join(self.own, "kept")
        tiny_model.write(second, seed=2)
        with kdserved.Daemon("--teacher", "other=" + second, "--store", kept, directory=self.directory) as daemon:
            ids = {t["name"]: t["id"] for t in daemon.get("/v1/model")[1]["teachers"]}
            server = "unix:" + daemon.socket_path
            runs = {}
            for name in ("model", "other", ids["other"]):
                runs[name] = os.path.join(self.own, name[:8])
                self.run_well(runs[name], text_of(corpus=self.text, server=server, teacher=name, steps=10))
            self.assertEqual(metrics(runs["other"]), metrics(runs[ids["other"]]))
            self.assertNotEqual(metrics(runs["other"]), metrics(runs["model"]))
            wrong = text_of(corpus=self.text, server=server, teacher="nobody", steps=1)
            status, err = self.work(self.output, wrong)
            self.assertEqual(status, 1)
            self.assertIn("model, other", err)
            both = text_of(corpus=self.text, server=server, teacher="other", teacher_id=ids["model"], steps=1)
            status, err = self.work(self.output, both)
            self.assertEqual(status, 1)
            self.assertIn("teacher-id", err)
        self.refused(["name one", ids["model"] + " model", ids["other"] + " other"], teacher="shards:" + kept)
        same = {"teacher": "shards:" + kept, "corpus": self.text, "epochs": None, "steps": 10, "missing": "skip"}
        self.run_well(self.output, self.offline(teacher_id=ids["other"], **same))
        self.assertNotEqual(metrics(self.output), metrics(runs["model"]))


if __name__ == "__main__":
    unittest.main()
