# SPDX-License-Identifier: Apache-2.0
"""Questions of the binary door: parts of a sequence's own, short answers, every limit at n - 1, n and n + 1."""
import os
import struct
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "conformance"))
import kdserved
import kdserved_bytes as kd
from kdserved import Daemon, ProtocolError

LIMITS = {"max-tokens": 64, "max-sequences": 5, "max-top-k": 20, "max-gather": 10, "max-draws": 30, "max-spans": 7}


def ask(c, query, sequences, **more):
    request_id = c.next_id
    c.next_id += 1
    c.send(kdserved.SCORE, request_id, kd.score_body(query, sequences, **more))
    return c.finish_score(request_id)


def restore(short, teacher, query, tokens):
    """The manual's receiver of a short record."""
    whole = short[:6] + b"\0\0" + short[8:16] + teacher + short[16:68] + query.canonical(len(tokens)).encode() + kd.tokens_bytes(tokens)
    whole += short[68:]
    assert struct.unpack_from("<I", whole, 12)[0] == kd.crc32c(whole[:12] + whole[16:])
    return whole


class Questions(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon(*(word for name, value in LIMITS.items() for word in ("--" + name, str(value))))

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def test_welcome_names_the_limits(self):
        with self.daemon.client() as c:
            limits = dict(zip(kd.LIMITS, struct.unpack_from("<13I", c.welcome, 36)))
            model = self.daemon.get("/v1/model")[1]
        for name, value in LIMITS.items():
            self.assertEqual(limits[name.replace("-", "_")], value, name)
        self.assertEqual(limits["vocab_size"], model["vocab_size"])
        self.assertTrue(limits["n_layers"] and limits["width"] and limits["q_width"] and limits["kv_width"])

    def test_a_part_of_its_own_is_the_whole_question_of_its_own(self):
        sequences = [[5, 17, 200], [3, 99], [1, 2, 3, 4], [7]]
        common = dict(top_k=3, draws={"n": 5, "seed": 9}, temperatures=[1, 2])
        parts = [{"gather": [[1, 2], [], [9, 9, 3]]}, {"spans": [(1, 2)]},
                 {"rows": (1, -2), "gather": [[8], [9]], "spans": [(2, 4), (1, 3)]}, {}]
        alone = [kd.Query(gather=parts[0]["gather"], **common), kd.Query(gather=[[4]], spans=[(1, 2)], **common),
                 kd.Query(gather=[[8], [9]], spans=[(2, 4), (1, 3)], first=1, last=-2, **common), kd.Query(gather=[[4]], **common)]
        with self.daemon.client() as c:
            together = ask(c, kd.Query(gather=[[4]], **common), sequences, parts=parts)
            for i, query in enumerate(alone):
                self.assertEqual(ask(c, query, [sequences[i]])[0][1], together[i][1], i)

    def test_a_fault_of_its_own_is_the_sequences(self):
        cases = [({"gather": [[1], [2, 70000]]}, "sequences[1].gather[1][1]"), ({"spans": [(0, 1)]}, "sequences[1].spans[0].begin"),
                 ({"rows": (5, 6)}, "sequences[1].first"), ({"gather": [[1], [2], [3]]}, "sequences[1].gather")]
        with self.daemon.client() as c:
            for part, field in cases:
                with self.assertRaises(ProtocolError) as e:
                    ask(c, kd.Query(own=True), [[1, 2], [3, 4]], parts=[{}, part])
                self.assertEqual((e.exception.code, e.exception.field), ("invalid", field))

    def test_short_answers_are_the_same_records(self):
        sequences = [[5, 17, 200, 3], list(range(1, 60))]
        spans = kd.Query(spans=[(1, 4)])
        everything = kd.Query(top_k=4, top_mass=.9, own=True, entropy=True, max_prob=True, argmax=True, sum_squares=True, tail=True,
                              dense=True, gather=[[1, 2]], draws={"n": 9, "tau": 2, "seed": 3}, spans=[(1, 3)], values=kd.U8,
                              features=[(kd.HIDDEN, 0), (kd.FINAL, 0), (kd.V, 0)], feature_values=kd.BF16)
        with self.daemon.client() as c:
            teacher = c.welcome[4:36]
            for query in (spans, everything):
                whole, short = ask(c, query, sequences), ask(c, query, sequences, flags=kd.SHORT)
                for i, tokens in enumerate(sequences):
                    self.assertEqual(restore(short[i][1], teacher, query, tokens), whole[i][1])
            one = ask(c, spans, sequences, flags=kd.SHORT)
            self.assertEqual([len(record) for _, record in one.values()], [80, 80])

    def test_limits_at_one_less_exactly_and_one_more(self):
        n = LIMITS
        row = lambda k: dict(gather=[[1] * k])
        cases = [
            ("tokens", n["max-tokens"], lambda k: (dict(own=True), [[1] * k]), "sequences[0].tokens"),
            ("sequences", n["max-sequences"], lambda k: (dict(own=True), [[1]] * k), "sequences"),
            ("top_k", n["max-top-k"], lambda k: (dict(top_k=k), [[1]]), "top_k"),
            ("gather", n["max-gather"], lambda k: (row(k), [[1]]), "gather"),
            ("gather per row", n["max-gather"], lambda k: (dict(gather=[[1], [2] * k]), [[1, 2]]), "gather[1]"),
            ("draws", n["max-draws"], lambda k: (dict(draws={"n": k}), [[1]]), "draws.n"),
            ("spans", n["max-spans"], lambda k: (dict(spans=[(1, 2)] * k), [[1, 2]]), "spans"),
            ("temperatures", 16, lambda k: (dict(temperatures=[1 + i for i in range(k)]), [[1]]), "temperatures"),
            ("features", 64, lambda k: (dict(features=[(kd.FINAL, 0)] * k), [[1]]), "features"),
        ]
        with self.daemon.client() as c:
            for name, limit, make, field in cases:
                for k in (limit - 1, limit):
                    query, sequences = make(k)
                    self.assertEqual(len(ask(c, kd.Query(**query), sequences)), len(sequences), (name, k))
                query, sequences = make(limit + 1)
                with self.assertRaises(ProtocolError, msg=name) as e:
                    ask(c, kd.Query(**query), sequences)
                self.assertEqual((e.exception.code, e.exception.field), ("too_large", field), name)

    def test_a_long_question_about_many_sequences_is_refused_before_it_is_copied(self):
        with Daemon("--queue-bytes", "1M") as daemon, daemon.client() as c:
            keep = list(range(0, 200))
            ask(c, kd.Query(own=True, keep=keep), [[1]] * 10)
            with self.assertRaises(ProtocolError) as e:
                ask(c, kd.Query(own=True, gather=[[150] * 1000], keep=keep), [[1]] * 600)
            self.assertEqual((e.exception.code, e.exception.field), ("too_large", "sequences"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
