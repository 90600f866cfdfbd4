# SPDX-License-Identifier: Apache-2.0
"""kdctl store export and import: what comes back is what went out, files are whole or not there, and what a file claims is not believed."""
import fcntl
import glob
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import unittest

from kdserved import BUILD, read_notes, write_note

TOP = os.environ.get("top_srcdir") or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KDCTL = os.path.join(BUILD, "kdctl")
LINES = sorted(glob.glob(os.path.join(TOP, "tests", "fuzz", "corpus", "line", "valid_*")))      # every signal, f32, f16, u8


def kdctl(*arguments, status=0, **more):
    done = subprocess.run([KDCTL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    assert done.returncode == status, (arguments, done)
    return (done.stdout + done.stderr).decode()


def small_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


class Files(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="kdserved-files-")
        self.lines = []
        for path in LINES:
            with open(path, "rb") as f:
                self.lines.append(f.read() + b"\n")
        self.store = self.path("store")
        kdctl("store", "import", self.store, "-", input=b"".join(self.lines))

    def tearDown(self):
        shutil.rmtree(self.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def export(self, name, *options, store=None, **more):
        return kdctl("store", "export", store or self.store, "--output", self.path(name), *options, **more)

    def text(self, store):
        """All records with their checksums: stores of the same text hold the same bytes."""
        return subprocess.run([KDCTL, "store", "export", store, "--output", "-"], check=True, stdout=subprocess.PIPE).stdout.decode()

    def left(self, name):
        return sorted(n for n in os.listdir(self.folder) if n.startswith(name))

    def test_lines_come_out_as_they_went_in(self):
        self.assertEqual(self.text(self.store).encode(), b"".join(self.lines))

    def test_files_of_each_format_give_the_same_store(self):
        for name in ("rows.jsonl", "rows.safetensors"):
            self.assertIn("%d records" % len(self.lines), self.export(name))
            self.assertIn("%d records" % len(self.lines), kdctl("store", "import", self.path(name + ".d"), self.path(name)))
            self.assertIn(" 0 damaged", kdctl("store", "verify", self.path(name + ".d")))
            self.assertEqual(self.text(self.path(name + ".d")), self.text(self.store))
            self.assertEqual(self.left(name), [name, name + ".d"])

    def test_notes_about_teachers_come_back(self):
        ids = sorted([write_note(self.store, 1), write_note(self.store, 2), write_note(self.store, 3, codec="2", name="")])
        for name in ("n.jsonl", "n.safetensors"):
            self.export(name)
            kdctl("store", "import", self.path(name + ".d"), self.path(name))
            self.assertEqual(read_notes(self.path(name + ".d")), read_notes(self.store))
            self.assertEqual(self.text(self.path(name + ".d")), self.text(self.store))
            kdctl("store", "import", self.path(name + ".d"), self.path(name))            # once more: nothing new
            self.assertEqual(len(read_notes(self.path(name + ".d"))), 3)
        with open(self.path("n.jsonl")) as f:
            notes = [json.loads(line) for line in f.readlines()[:3]]
        self.assertEqual([(n["note"], n["teacher"], n["numeric"]) for n in notes], [("teacher", i, "f32") for i in ids])
        self.assertEqual({n["name"] for n in notes}, {"", 'teacher \\ "one"'})
        os.mkdir(self.path("none"))                                                       # notes alone, of one teacher
        write_note(self.path("none"), 1)
        write_note(self.path("none"), 2)
        for name in ("one.jsonl", "one.safetensors"):
            kdctl("store", "export", self.path("none"), "--output", self.path(name))
            kdctl("store", "import", self.path(name + ".d"), self.path(name))
            self.assertEqual(read_notes(self.path(name + ".d")), read_notes(self.path("none")))

    def test_notes_that_prove_nothing_are_refused(self):
        write_note(self.store, 1)
        self.export("n.jsonl")
        with open(self.path("n.jsonl")) as f:
            note = f.readline()
        changed = json.loads(note)
        for wrong in ({"weights": "0" * 64}, {"numeric": "bf16"}, {"codec": "4"}, {"teacher": "0" * 64}, {"teacher": ""}, {"name": 5},
                      {"numeric": "f32\ncodec 3"}, {"note": "student"}, {"name": "x" * 200}, {"codec": None}):
            said = kdctl("store", "import", self.path("d"), "-", status=1, input=json.dumps({**changed, **wrong}).encode() + b"\n")
            self.assertIn("line 1: note: ", said)
            self.assertEqual(read_notes(self.path("d")), {})
        kdctl("store", "import", self.path("d"), "-", status=1, input=note[:-1].encode() + b" " * 5000 + b"\n")
        kdctl("store", "import", self.path("d"), "-", input=note.encode())
        self.assertEqual(read_notes(self.path("d")), read_notes(self.store))

    def metadata(self, name, change):
        """The file with other notes."""
        with open(self.path(name), "rb") as f:
            n, = struct.unpack("<Q", f.read(8))
            header, data = json.loads(f.read(n)), f.read()
        change(header["__metadata__"])
        text = json.dumps(header, separators=(",", ":")).encode()
        with open(self.path("changed"), "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text + data)

    def test_notes_of_older_files_are_taken_where_they_prove_themselves(self):
        write_note(self.store, 1)
        write_note(self.store, 2, codec="2")
        self.export("n.safetensors")

        def old(metadata):
            notes = json.loads(metadata["teachers"])
            metadata["teachers"] = json.dumps({i: {k: v for k, v in note.items() if k != "codec"} for i, note in notes.items()})
        self.metadata("n.safetensors", old)
        kdctl("store", "import", self.path("d"), self.path("changed"))
        self.assertEqual(list(read_notes(self.path("d")).values()), [t for t in read_notes(self.store).values() if "codec 3" in t])
        self.metadata("n.safetensors", lambda metadata: metadata.pop("teachers"))
        kdctl("store", "import", self.path("e"), self.path("changed"))
        self.assertEqual(read_notes(self.path("e")), {})
        for wrong in ("[]", "{", '{"' + "0" * 64 + '":{"weights":"x"}}', '{"' + "0" * 64 + '":5}'):
            self.metadata("n.safetensors", lambda metadata, wrong=wrong: metadata.update(teachers=wrong))
            said = kdctl("store", "import", self.path("f"), self.path("changed"), status=1)
            self.assertEqual(len(said.splitlines()), 1)

    def test_files_together_are_one_store_and_nothing_twice(self):
        self.export("some.jsonl", "--limit", "4")
        self.export("all.safetensors")
        said = kdctl("--json", "store", "import", self.path("d"), self.path("some.jsonl"), self.path("all.safetensors"))
        self.assertEqual(json.loads(said)["already_there"], 4)
        self.assertEqual(self.text(self.path("d")), self.text(self.store))

    def test_safetensors_are_what_they_say(self):
        self.export("rows.safetensors")
        with open(self.path("rows.safetensors"), "rb") as f:
            n, = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(n))
            data = f.read()
        self.assertEqual((header["__metadata__"]["records"], header["__metadata__"]["teachers"]), (str(len(self.lines)), "{}"))
        del header["__metadata__"]
        at = 0
        for tensor in sorted(header.values(), key=lambda t: t["data_offsets"]):
            size = {"U8": 1, "I32": 4, "I64": 8, "F32": 4}[tensor["dtype"]]
            begin, end = tensor["data_offsets"]
            n = 1
            for extent in tensor["shape"]:
                n *= extent
            self.assertEqual((begin, end - begin, (8 + begin) % size), (at, n * size, 0))    # no holes, aligned
            at = end
        self.assertEqual(at, len(data))
        begin, end = header["token_at"]["data_offsets"]
        offsets = struct.unpack("<%dq" % (len(self.lines) + 1), data[begin:end])
        lengths = [len(json.loads(line)["tokens"]) for line in self.lines]
        self.assertEqual([b - a for a, b in zip(offsets, offsets[1:])], lengths)

    def test_a_teacher_and_a_number_are_chosen(self):
        teacher = json.loads(self.lines[3])["teacher"]
        for name in ("one.jsonl", "one.safetensors"):
            self.export(name, "--teacher", teacher[:9])
            kdctl("store", "import", self.path(name + ".d"), self.path(name))
            self.assertEqual({json.loads(line)["teacher"] for line in self.text(self.path(name + ".d")).splitlines()}, {teacher})
            said = self.export("none." + name, "--teacher", "ffff", status=1)
            self.assertIn("no record of a teacher", said)
            self.assertEqual(self.left("none"), [])

    def test_a_file_that_is_there_stays(self):
        for name in ("a.jsonl", "a.safetensors", "a.npz"):
            with open(self.path(name), "w") as f:
                f.write("mine")
            self.assertIn("--overwrite", self.export(name, status=1))
            with open(self.path(name)) as f:
                self.assertEqual(f.read(), "mine")
        self.export("a.safetensors", "--overwrite")
        kdctl("store", "import", self.path("d"), self.path("a.safetensors"))

    def test_a_full_disk_leaves_nothing_and_harms_nothing(self):
        for name in ("full.jsonl", "full.safetensors"):
            with open(self.path(name), "w") as f:
                f.write("old")
            said = self.export(name, "--overwrite", status=1, preexec_fn=small_files, restore_signals=False)
            self.assertIn("too large", said)
            self.assertEqual(self.left(name), [name])
            with open(self.path(name)) as f:
                self.assertEqual(f.read(), "old")
        with open("/dev/full", "w") as full:
            done = subprocess.run([KDCTL, "store", "export", self.store, "--output", "-"], stdout=full, stderr=subprocess.PIPE)
        self.assertEqual((done.returncode, len(done.stderr.splitlines())), (1, 1))

    def test_a_link_in_the_way_is_not_followed(self):
        os.symlink(self.path("victim"), self.path("x.jsonl.tmp"))
        self.export("x.jsonl", status=1)
        self.assertFalse(os.path.exists(self.path("victim")))

    def test_an_import_that_cannot_be_stored_fails(self):
        self.export("rows.jsonl")
        said = kdctl("store", "import", self.path("d"), self.path("rows.jsonl"), status=1, preexec_fn=small_files, restore_signals=False)
        self.assertTrue(said)

    def test_damage_is_told_once_and_the_rest_exported(self):
        shard = glob.glob(self.path("store/*.shard"))[0]
        with open(shard, "r+b") as f:
            data = f.read()
            at = data.index(b"KDRC", data.index(b"KDRC") + 4) + 150
            f.seek(at)
            f.write(bytes([data[at] ^ 1]))
        for name in ("d.jsonl", "d.safetensors"):
            said = self.export(name, status=1)
            self.assertEqual(said.count("00000000.shard:"), 1, said)
            self.assertIn("1 damaged", said)
            kdctl("store", "import", self.path(name + ".d"), self.path(name))
            self.assertEqual(len(self.text(self.path(name + ".d")).splitlines()), len(self.lines) - 1)

    def test_a_store_in_use_is_left_alone(self):
        with open(self.path("store/lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.assertEqual(len(kdctl("store", "import", self.store, "-", status=1, input=self.lines[0]).splitlines()), 1)
            self.export("meanwhile.jsonl")    # reading is allowed

    def test_what_does_not_fit_ends_the_work(self):
        wrong = self.lines[1].replace(b'"vocab_size":300', b'"vocab_size":301')
        self.assertNotEqual(wrong, self.lines[1])
        said = kdctl("store", "import", self.path("d"), "-", status=1, input=self.lines[0] + b"\n" + wrong + self.lines[2])
        self.assertIn("line 3: checksum: ", said)
        self.assertEqual(self.text(self.path("d")).encode(), self.lines[0])    # what came before stays
        said = kdctl("store", "import", self.path("e"), "-", status=1, input=self.lines[0] + self.lines[2][:-20])
        self.assertIn("not whole", said)

    def test_changed_arrays_are_refused(self):
        self.export("rows.safetensors")
        with open(self.path("rows.safetensors"), "rb") as f:
            data = f.read()
        n, = struct.unpack_from("<Q", data)
        header = json.loads(data[8:8 + n])
        for name in ("key", "teacher", "tokens", "lse", "logits", "ids", "top_at", "draw_counts", "question", "gather", "features",
                     "vocab_size"):
            changed = bytearray(data)
            changed[8 + n + header[name]["data_offsets"][1] - 1] ^= 1
            changed[8 + n + header[name]["data_offsets"][0]] ^= 1
            with open(self.path("changed"), "wb") as f:
                f.write(changed)
            said = kdctl("store", "import", self.path(name), self.path("changed"), status=1)
            self.assertIn("record ", said)
            self.assertEqual(len(said.splitlines()), 1)
        for cut in (0, 4, 20, 8 + n, 8 + n + 50, len(data) - 1):
            with open(self.path("cut"), "wb") as f:
                f.write(data[:cut])
            kdctl("store", "import", self.path("cut.d"), self.path("cut"), status=0 if cut == 0 else 1)

    def test_other_files_are_refused(self):
        with open(self.path("noise"), "wb") as f:
            f.write(b"\x89PNG and so on and on")
        self.assertIn("neither jsonl nor", kdctl("store", "import", self.path("d"), self.path("noise"), status=1))
        self.assertIn("No such file", kdctl("store", "import", self.path("d"), self.path("nothing"), status=1))

    def test_usage(self):
        kdctl("store", "export", self.store, status=2)
        kdctl("store", "export", self.store, "--output", "-", "--format", "xml", status=2)
        kdctl("store", "export", self.store, "--output", "-", "--format", "safetensors", status=2)
        kdctl("store", "export", self.store, "--output", "-", "--limit", "none", status=2)
        kdctl("store", "export", "/nonexistent", "--output", "-", status=1)
        kdctl("store", "import", self.store, status=2)
        self.assertIn("safetensors", kdctl("store", "export", "--help"))
        self.assertIn("JSON", kdctl("store", "import", "--help").upper())


if __name__ == "__main__":
    unittest.main(verbosity=2)
