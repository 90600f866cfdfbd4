# SPDX-License-Identifier: Apache-2.0
"""POST /v1/score, every field of a question: each signal against the dense row it is made of, as JSON and as base64."""
import base64
import math
import struct
import unittest

import kdserved
import tiny_model
from kdserved import EXACT, Daemon

VOCABULARY, WIDTH, LAYERS = 265, tiny_model.WIDTH, tiny_model.LAYERS
KV_WIDTH = WIDTH // tiny_model.HEADS * tiny_model.KV_HEADS
A, B = [5, 17, 200, 3, 99, 256, 258], [1, 2, 3]
CODES = {"u8": "B", "u32": "I", "f32": "f", "f16": "e"}


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def lse(row, t=1.0):
    top = max(row) / t
    return top + math.log(sum(math.exp(z / t - top) for z in row))


def softmax(row):
    total = lse(row)
    return [math.exp(z - total) for z in row]


def unpack(blob):
    """A blob's numbers: flat, or in lists by its second dimension or its offsets."""
    data = base64.b64decode(blob["data"], validate=True)
    if blob["dtype"] == "bf16":
        flat = [struct.unpack("<f", b"\0\0" + data[i:i + 2])[0] for i in range(0, len(data), 2)]
    else:
        code = CODES[blob["dtype"]]
        flat = list(struct.unpack("<%d%s" % (len(data) // struct.calcsize("<" + code), code), data))
    n = blob["shape"][0]
    if "offsets" in blob:
        raw = base64.b64decode(blob["offsets"], validate=True)
        at = struct.unpack("<%dI" % (len(raw) // 4), raw)
        assert at[0] == 0 and at[-1] == n == len(flat), (at, n)
        return [flat[a:b] for a, b in zip(at, at[1:])]
    if len(blob["shape"]) == 2:
        assert len(flat) == n * blob["shape"][1]
        return [flat[i * blob["shape"][1]:(i + 1) * blob["shape"][1]] for i in range(n)]
    assert len(flat) == n
    return flat


def same(packed, plain):
    """base64's numbers and JSON's: equal as floats; what JSON has no number for is null."""
    if isinstance(plain, list):
        return len(packed) == len(plain) and all(map(same, packed, plain))
    if plain is None:
        return not math.isfinite(packed)
    return packed == (plain if isinstance(plain, int) else f32(plain))


class Score(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", "64", "--max-top-k", "265", *EXACT)
        cls.dense = {tuple(s): [r["dense"] for r in cls.ask(cls, [s], dense=True)[0]["rows"]] for s in (A, B)}

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def ask(self, sequences, **more):
        body = dict({"sequences": [{"tokens": s} for s in sequences]}, **more)
        status, reply = self.daemon.post("/v1/score", body)
        assert status == 200, reply
        return reply["sequences"]

    def both(self, sequences, **more):
        """The JSON answer, after the base64 answer was held against it, member by member."""
        plain = self.ask(sequences, **more)
        for one, packed in zip(plain, self.ask(sequences, encoding="base64", **more)):
            rows = one.get("rows")
            names = set(packed) - {"id", "cached", "first", "last", "tokens", "offsets", "n_rows", "max_logit"}
            self.assertEqual(rows is not None, "status" in names)
            if rows is not None:
                self.assertEqual(unpack(packed["status"]), [0] * len(rows))
                self.assertEqual(packed["n_rows"], len(rows))
            for name in names - {"status", "spans", "features"}:
                key = name.removeprefix("draw_")
                column = [r["draws"][key] if key != name else r[name] for r in rows]
                self.assertTrue(same(unpack(packed[name]), column), (name, unpack(packed[name]), column))
            wanted = set(rows[0]) - {"draws", "features"} if rows else set()
            self.assertLessEqual(wanted, names)
            self.assertEqual(bool(rows and "draws" in rows[0]), "draw_ids" in names)
            if "spans" in one or "spans" in names:
                self.assertTrue(same(unpack(packed["spans"]), one["spans"]))
            for i, feature in enumerate(packed.get("features", [])):
                values = [one["pooled"][i]] if "pooled" in one else [r["features"][i] for r in rows]
                self.assertTrue(same(unpack(feature["values"]), values), feature["kind"])
        return plain

    def near(self, got, want, places=4):
        self.assertAlmostEqual(got, want, places=places)

    def test_scalars_of_a_row(self):
        one = self.both([A], top_k=7, own=True, entropy=True, max_prob=True, argmax=True, sum_squares=True, tail=True,
            temperatures=[2, 1, 0.5])[0]
        for i, (row, dense) in enumerate(zip(one["rows"], self.dense[tuple(A)])):
            p = softmax(dense)
            order = sorted(range(VOCABULARY), key=lambda v: (-dense[v], v))
            self.assertEqual(row["ids"], order[:7])
            self.assertEqual(row["logits"], [dense[v] for v in order[:7]])
            for t, value in zip([2, 1, 0.5], row["lse"]):
                self.near(value, lse(dense, t))
            self.assertEqual(row["own_logit"], dense[A[i + 1]] if i + 1 < len(A) else None)
            self.near(row["entropy"], -sum(x * math.log(x) for x in p))
            self.near(row["max_prob"], max(p))
            self.assertEqual(row["argmax"], order[0])
            self.near(row["sum_squares"], sum(x * x for x in p))
            self.near(row["tail"], math.log(1 - sum(p[v] for v in order[:7])))

    def test_top_mass_gives_as_many_ids_as_it_takes(self):
        one = self.both([A, B], top_k=100, top_mass=0.5)[0]
        lengths = set()
        for row, dense in zip(one["rows"], self.dense[tuple(A)]):
            p = sorted(softmax(dense), reverse=True)
            n = next(i for i in range(1, 266) if sum(p[:i]) >= 0.5)
            self.assertEqual(len(row["ids"]), min(n, 100))
            lengths.add(len(row["ids"]))
        self.assertGreater(len(lengths), 1)

    def test_gather_one_list_for_all(self):
        for one in self.both([A, B], gather=[9, 3, 9]):
            for row, dense in zip(one["rows"], self.dense[tuple(one["tokens"])]):
                self.assertEqual(row["gather"], [dense[9], dense[3], dense[9]])

    def test_gather_ragged_for_each_sequence_and_row(self):
        lists = [[[i, 0] if i % 2 else [i] * i for i in range(len(A))], [7, 8]]
        a, b = self.both([A, B], gather=lists)
        for i, row in enumerate(a["rows"]):
            self.assertEqual(row["gather"], [self.dense[tuple(A)][i][v] for v in lists[0][i]])
        for i, row in enumerate(b["rows"]):
            self.assertEqual(row["gather"], [self.dense[tuple(B)][i][v] for v in (7, 8)])
        a, b = self.both([A, B], gather=[[1], []], top_k=1)
        self.assertIn("gather", a["rows"][0])
        self.assertNotIn("gather", b["rows"][0])

    def test_gather_of_the_top_ids_is_the_top(self):
        top = self.ask([A], top_k=5)[0]
        got = self.ask([A], gather=[[r["ids"] for r in top["rows"]]])[0]
        self.assertEqual([r["gather"] for r in got["rows"]], [r["logits"] for r in top["rows"]])

    def test_rows_of_each_sequence(self):
        body = {"sequences": [{"tokens": A, "first": 2, "last": -2}, {"tokens": B}, {"tokens": A, "last": 0}], "top_k": 2, "first": -1}
        status, reply = self.daemon.post("/v1/score", body)
        self.assertEqual(status, 200, reply)
        self.assertEqual([(s["first"], s["last"], len(s["rows"])) for s in reply["sequences"]], [(2, 5, 4), (2, 2, 1), (0, 0, 1)])

    def test_keep_restricts_everything(self):
        keep = [200, 5, 9, 77, 9]
        one = self.both([A], keep=keep, dense=True, top_k=2, entropy=True, own=True)[0]
        for i, (row, dense) in enumerate(zip(one["rows"], self.dense[tuple(A)])):
            kept = {v: dense[v] for v in keep}
            self.assertEqual(row["dense"], [kept[v] for v in sorted(kept)])
            self.near(row["lse"][0], lse(list(kept.values())))
            self.assertEqual(row["ids"], sorted(kept, key=lambda v: (-kept[v], v))[:2])
            self.assertEqual(row["own_logit"], kept.get(A[i + 1]) if i + 1 < len(A) else None)

    def test_draws_carry_weights(self):
        n = 50
        one = self.both([A], draws={"n": n, "seed": 3})[0]
        again = self.ask([B, A], draws={"n": n, "seed": 3})[1]
        self.assertEqual([r["draws"] for r in one["rows"]], [r["draws"] for r in again["rows"]])
        other = self.ask([A], draws={"n": n, "seed": 4})[0]
        self.assertNotEqual([r["draws"] for r in one["rows"]], [r["draws"] for r in other["rows"]])
        for row in one["rows"]:
            d = row["draws"]
            self.assertEqual(sum(d["counts"]), n)
            self.assertEqual(d["ids"], sorted(set(d["ids"])))
            for c, w in zip(d["counts"], d["weights"]):
                self.near(w, c / n, 6)

    def test_draws_with_tau_weigh_by_the_ratio(self):
        n, tau = 40, 0.7
        one = self.both([A], draws={"n": n, "tau": tau, "seed": 1})[0]
        for row, dense in zip(one["rows"], self.dense[tuple(A)]):
            p, t = softmax(dense), softmax([tau * z for z in dense])
            for v, c, w in zip(row["draws"]["ids"], row["draws"]["counts"], row["draws"]["weights"]):
                self.assertAlmostEqual(w / (c / n * p[v] / t[v]), 1, places=4)

    def test_exact_head_and_sampled_tail(self):
        n = 30
        one = self.both([A], top_k=4, draws={"n": n, "seed": 9, "tail": True})[0]
        for row, dense in zip(one["rows"], self.dense[tuple(A)]):
            p = softmax(dense)
            rest = 1 - sum(p[v] for v in row["ids"])
            self.assertFalse(set(row["draws"]["ids"]) & set(row["ids"]))
            self.near(row["tail"], math.log(rest))
            for c, w in zip(row["draws"]["counts"], row["draws"]["weights"]):
                self.near(w, rest * c / n, 6)
            self.near(sum(row["draws"]["weights"]), rest, 5)

    def own_sum(self, tokens, begin, end):
        rows = self.dense[tuple(tokens)]
        return sum(rows[i - 1][tokens[i]] - lse(rows[i - 1]) for i in range(begin, end))

    def test_spans_are_summed_on_the_server(self):
        one, two = self.both([A, B], spans=[[1, 3], [2, 3]])
        for s in (one, two):
            self.assertNotIn("rows", s)
            self.near(s["spans"][0], self.own_sum(s["tokens"], 1, 3))
            self.near(s["spans"][1], self.own_sum(s["tokens"], 2, 3))
        one, two = self.both([A, B], spans=[[[1, 7]], [[1, 2], [1, 3]]])
        self.near(one["spans"][0], self.own_sum(A, 1, 7))
        self.assertEqual((len(one["spans"]), len(two["spans"])), (1, 2))
        one, two = self.both([A, B], sum=True)
        self.near(one["spans"][0], self.own_sum(A, 1, 7))
        self.near(two["spans"][0], self.own_sum(B, 1, 3))

    def test_features(self):
        asked = [{"kind": "hidden", "layer": 0}, {"kind": "hidden", "layer": LAYERS}, {"kind": "final"}, {"kind": "q", "layer": 1},
            {"kind": "k", "layer": 0}, {"kind": "v", "layer": 1}]
        one = self.both([A], features=asked)[0]
        widths = [WIDTH, WIDTH, WIDTH, WIDTH, KV_WIDTH, KV_WIDTH]
        self.assertEqual([[len(f) for f in r["features"]] for r in one["rows"]], [widths] * len(A))
        weights = self.daemon.post("/v1/weights", {"tensor": "embedding", "ids": A})[1]["values"]
        head = self.daemon.post("/v1/weights", {"tensor": "head"})[1]["values"]
        for i, row in enumerate(one["rows"]):
            self.assertEqual(row["features"][0], weights[i])      # layer 0 is the embedding
            for v in (0, 100, 264):     # what the head multiplies gives the logits
                self.near(sum(x * w for x, w in zip(row["features"][2], head[v])), self.dense[tuple(A)][i][v], 3)
        mean = self.both([A], features=asked[1:3], pooling="mean", first=1, last=3)[0]
        self.assertNotIn("rows", mean)
        for f in (0, 1):
            for x, *rest in zip(mean["pooled"][f], *[one["rows"][i]["features"][f + 1] for i in (1, 2, 3)]):
                self.near(x, sum(rest) / 3)
        last = self.both([A], features=asked[2:3], pooling="last", top_k=1)[0]
        self.assertEqual(last["pooled"][0], one["rows"][-1]["features"][2])
        for values in ("f16", "bf16"):
            narrow = self.both([A], features=asked[:1], feature_values=values)[0]
            for x, y in zip(narrow["rows"][0]["features"][0], weights[0]):
                self.assertAlmostEqual(x, y, delta=abs(y) / (1000 if values == "f16" else 250) + 1e-6)

    def test_values_are_rounded_from_the_maximum(self):
        for values, part in (("f16", 1 / 1000), ("u8", 1 / 255)):
            one = self.both([A], dense=True, top_k=20, values=values)[0]
            for row, dense in zip(one["rows"], self.dense[tuple(A)]):
                top, spread = max(dense), max(dense) - min(dense)
                for got, exact in zip(row["dense"], dense):
                    self.assertLessEqual(abs(got - exact), part * (spread if values == "u8" else top - exact) + 1e-5)

    def test_every_refusal_names_its_field(self):
        for field, more in (
            ("gather", {"gather": []}), ("gather", {"gather": 5}), ("gather[1]", {"gather": [1, "a"]}), ("gather[0]", {"gather": [265]}),
            ("gather", {"gather": [[1], [2], [3]]}), ("gather[1]", {"gather": [[1], 2]}), ("gather[0][0]", {"gather": [["a"], [1]]}),
            ("gather[0][1][0]", {"gather": [[[1], ["a"]], [1]]}), ("gather[0]", {"gather": [[[1], [2]], [1]]}),
            ("gather[1][0]", {"gather": [[1], [300]]}), ("gather[0][2][0]", {"gather": [[[], [], [300], [], [], [], []], []], "top_k": 1}),
            ("draws", {"draws": 5}), ("draws.n", {"draws": {"seed": 1}}), ("draws.seed", {"draws": {"n": 1}}), ("draws.n",
            {"draws": {"n": 0, "seed": 1}}),
            ("draws.tau", {"draws": {"n": 1, "seed": 1, "tau": 0}}), ("draws.tail", {"draws": {"n": 1, "seed": 1, "tail": True}}),
            ("draws.seed", {"draws": {"n": 1, "seed": -1}}), ("draws.more", {"draws": {"n": 1, "seed": 1, "more": 1}}),
            ("keep", {"keep": [], "dense": True}), ("keep[1]", {"keep": [1, 265], "dense": True}), ("top_mass", {"top_mass": 0.5,
            "own": True}),
            ("top_mass", {"top_k": 1, "top_mass": 0}), ("top_mass", {"top_k": 1, "top_mass": 1.5}), ("tail", {"tail": True, "own": True}),
            ("spans", {"spans": []}), ("spans", {"spans": 1}), ("spans[0]", {"spans": [[1]]}), ("spans[0][1]", {"spans": [[1, "a"]]}),
            ("spans", {"spans": [[[1, 2]]]}), ("spans[0].begin", {"spans": [[0, 2]]}), ("spans[1].end", {"spans": [[1, 2], [1, 4]]}),
            ("spans[1][0].end", {"spans": [[[1, 4]], [[1, 4]]]}), ("sum", {"sum": True, "spans": [[1, 2]]}), ("sum", {"sum": 1}),
            ("features", {"features": []}), ("features[0].kind", {"features": [{}]}), ("features[0].kind", {"features": [{"kind": "x"}]}),
            ("features[0].layer", {"features": [{"kind": "hidden", "layer": LAYERS + 1}]}), ("features[0].layer",
            {"features": [{"kind": "q", "layer": LAYERS}]}),
            ("features[1].layer", {"features": [{"kind": "final"}, {"kind": "final", "layer": 1}]}),
            ("pooling", {"features": [{"kind": "final"}], "pooling": "max"}), ("feature_values", {"features": [{"kind": "final"}],
            "feature_values": "u8"}),
            ("values", {"top_k": 1, "values": "u4"}), ("dense", {"dense": 1}), ("max_prob", {"max_prob": "yes"}),
        ):
            with self.subTest(more=more):
                status, reply = self.daemon.post("/v1/score", dict({"sequences": [{"tokens": A}, {"tokens": B}]}, **more))
                self.assertEqual((status, reply["error"]["field"]), (400, field), reply)
        status, reply = self.daemon.post("/v1/score", {"sequences": [{"tokens": A}, {"tokens": [1]}], "sum": True})
        self.assertEqual((status, reply["error"]["field"]), (400, "sequences[1]"))
        status, reply = self.daemon.post("/v1/score", {"sequences": [{"tokens": A, "first": 9}], "top_k": 1})
        self.assertEqual((status, reply["error"]["field"]), (400, "sequences[0].first"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
