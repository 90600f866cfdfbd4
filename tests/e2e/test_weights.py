# SPDX-License-Identifier: Apache-2.0
"""POST /v1/weights: rows of the embedding and the head on both doors, bit for bit those of the model file."""
import base64
import json
import os
import struct
import unittest

import kdserved
import tiny_model
from kdserved import Daemon

WIDTH, VOCABULARY = tiny_model.WIDTH, 265


def stored(model, name):
    with open(os.path.join(model, "model.safetensors"), "rb") as f:
        n, = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
        begin, end = header[name]["data_offsets"]
        f.seek(8 + n + begin)
        return f.read(end - begin)


class Weights(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", "64")
        cls.embedding = stored(cls.daemon.model, "model.embed_tokens.weight")

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def ask(self, expect=200, **body):
        status, reply = self.daemon.post("/v1/weights", body)
        self.assertEqual(status, expect, reply)
        return reply

    def row(self, i):
        return self.embedding[4 * WIDTH * i:4 * WIDTH * (i + 1)]

    def test_rows_by_id(self):
        reply = self.ask(tensor="embedding", ids=[7, 0, 264, 7], encoding="base64")
        self.assertEqual((reply["tensor"], reply["rows"], reply["width"], reply["tied"]), ("embedding", VOCABULARY, WIDTH, True))
        self.assertEqual(reply["teacher"]["id"], self.daemon.get("/v1/model")[1]["id"])
        self.assertEqual((reply["values"]["dtype"], reply["values"]["shape"]), ("f32", [4, WIDTH]))
        self.assertEqual(base64.b64decode(reply["values"]["data"], validate=True), b"".join(map(self.row, (7, 0, 264, 7))))

    def test_the_head_in_ranges_is_the_whole_head(self):
        data = b""
        for first in range(0, VOCABULARY, 100):
            reply = self.ask(tensor="head", first=first, count=min(100, VOCABULARY - first), encoding="base64")
            data += base64.b64decode(reply["values"]["data"])
        self.assertEqual(data, self.embedding)    # this model's head is tied to it
        reply = self.ask(tensor="head", first=200, encoding="base64")
        self.assertEqual(reply["values"]["shape"], [65, WIDTH])

    def test_decimal_numbers_read_back_exactly(self):
        values = self.ask(tensor="embedding", ids=[3])["values"]
        self.assertEqual(struct.pack("<%df" % WIDTH, *values[0]), self.row(3))

    def test_the_final_norm_is_one_row(self):
        reply = self.ask(tensor="final_norm")
        self.assertEqual((reply["rows"], reply["values"]), (1, [[1] * WIDTH]))

    def test_narrow_numbers_are_rounded_to_nearest(self):
        exact = struct.unpack("<%df" % WIDTH, self.row(9))
        half = self.ask(tensor="embedding", ids=[9], dtype="f16", encoding="base64")["values"]
        self.assertEqual((half["dtype"], base64.b64decode(half["data"])), ("f16", struct.pack("<%de" % WIDTH, *exact)))
        brain = self.ask(tensor="embedding", ids=[9], dtype="bf16", encoding="base64")["values"]
        got = struct.unpack("<%dH" % WIDTH, base64.b64decode(brain["data"]))
        for x, bits in zip(exact, got):
            wide, = struct.unpack("<I", struct.pack("<f", x))
            self.assertEqual(bits, wide + 0x7fff + (wide >> 16 & 1) >> 16)
        as_json = self.ask(tensor="embedding", ids=[9], dtype="bf16")["values"][0]
        self.assertEqual([struct.unpack("<f", struct.pack("<I", b << 16))[0] for b in got],
            [kdserved.as_f32({"v": v})["v"] for v in as_json])

    def test_the_binary_door_answers_the_same(self):
        body = {"tensor": "head", "ids": [1, 2], "encoding": "base64"}
        with self.daemon.client() as c:
            status, reply = c.call("POST", "/v1/weights", json.dumps(body).encode())
        self.assertEqual((status, json.loads(reply)), (200, self.ask(**body)))

    def test_bad_questions_name_their_field(self):
        for field, body in (("tensor", {}), ("tensor", {"tensor": "lm_head"}), ("ids", {"tensor": "head", "ids": []}),
            ("ids[1]", {"tensor": "head", "ids": [0, VOCABULARY]}), ("ids[0]", {"tensor": "head", "ids": [-1]}),
            ("first", {"tensor": "head", "first": VOCABULARY}), ("count", {"tensor": "head", "first": 1, "count": VOCABULARY}),
            ("count", {"tensor": "head", "count": 0}), ("ids", {"tensor": "head", "ids": [1], "first": 1}),
            ("ids", {"tensor": "final_norm", "ids": [0]}), ("first", {"tensor": "final_norm", "first": 1}),
            ("dtype", {"tensor": "head", "dtype": "f64"}), ("encoding", {"tensor": "head", "encoding": "hex"}), ("rows", {"tensor": "head",
            "rows": 1})):
            with self.subTest(body=body):
                self.assertEqual(self.ask(400, **body)["error"]["field"], field)

    def test_a_piece_is_bounded(self):
        for encoding, values in (("json", 1 << 18), ("base64", 1 << 22)):
            n = values // WIDTH
            for more, status in ((-1, 200), (0, 200), (1, 413)):
                with self.subTest(encoding=encoding, more=more):
                    reply = self.ask(status, tensor="head", ids=[5] * (n + more), encoding=encoding)
                    if status == 413:
                        self.assertEqual(reply["error"]["field"], "ids")

    def test_a_file_changed_since_is_refused(self):
        with Daemon("--max-tokens", "64") as d:
            path = os.path.join(d.model, "model.safetensors")
            self.assertEqual(d.post("/v1/weights", {"tensor": "head", "ids": [1]})[0], 200)
            with open(path, "r+b") as f:
                f.seek(-4, os.SEEK_END)
                f.write(b"\0\0\0\0")
            os.utime(path, (1, 1))
            status, reply = d.post("/v1/weights", {"tensor": "head", "ids": [1]})
            self.assertEqual((status, reply["error"]["code"]), (409, "conflict"))
            self.assertEqual(d.post("/v1/score", {"sequences": [{"tokens": [1, 2]}], "top_k": 1})[0], 200)    # the teacher is in memory


if __name__ == "__main__":
    unittest.main(verbosity=2)
