# SPDX-License-Identifier: Apache-2.0
"""Every signal through the Python client: against the dense row, against HTTP's numbers, ragged over sequences of different lengths."""
import unittest

import support
support.need("numpy")

import numpy as np

from kdclient import Draws, Feature, KdError, Teacher
from kdserved import EXACT, Daemon

TOKENS = [5, 17, 200, 3, 99, 256, 258]
SEQUENCES = [TOKENS, [1, 2, 3], [7], list(range(30, 60))]


def log_softmax(logits, temperature=1.0):
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


class Signals(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", "512", *EXACT)
        cls.teacher = Teacher.connect("unix:" + cls.daemon.socket_path)
        cls.dense = [r.dense for r in cls.teacher.score(SEQUENCES, dense=True)]
        cls.rng = np.random.default_rng(1)

    @classmethod
    def tearDownClass(cls):
        cls.teacher.close()
        cls.daemon.stop()

    def test_scalars_follow_from_the_dense_row(self):
        asked = self.teacher.score(SEQUENCES, top_k=8, temperatures=[0.5, 1, 15], own=True, entropy=True, max_prob=True, argmax=True,
                                   sum_squares=True, tail=True)
        for rows, dense, tokens in zip(asked, self.dense, SEQUENCES):
            log_p = log_softmax(dense)
            p = np.exp(log_p)
            for t in (0.5, 1, 15):
                np.testing.assert_allclose(rows.lse_at(t), np.log(np.exp(dense.astype(np.float64) / t).sum(1)), rtol=1e-5)
            np.testing.assert_allclose(rows.entropy, -(p * log_p).sum(1), rtol=1e-4)
            np.testing.assert_allclose(rows.max_prob, p.max(1), rtol=1e-5)
            np.testing.assert_allclose(rows.sum_squares, (p ** 2).sum(1), rtol=1e-5)
            np.testing.assert_array_equal(rows.argmax, dense.argmax(1))
            order = np.lexsort((np.broadcast_to(np.arange(dense.shape[1]), dense.shape), -dense))[:, :8]
            np.testing.assert_array_equal(rows.ids, order)
            np.testing.assert_array_equal(rows.logits, np.take_along_axis(dense, order, 1))
            outside = p.copy()
            np.put_along_axis(outside, order, 0, 1)
            np.testing.assert_allclose(rows.tail_mass(), outside.sum(1), rtol=1e-4)
            np.testing.assert_array_equal(rows.own_logit[:-1], dense[np.arange(len(tokens) - 1), tokens[1:]])

    def test_fewest_ids_that_hold_the_mass(self):
        for rows, dense in zip(self.teacher.score(SEQUENCES, top_k=40, top_mass=0.6), self.dense):
            sums = np.cumsum(np.sort(np.exp(log_softmax(dense)), 1)[:, ::-1], 1)
            np.testing.assert_array_equal(rows.n_top, np.minimum((sums < 0.6).sum(1) + 1, 40))
            self.assertTrue(((rows.ids >= 0).sum(1) == rows.n_top).all())

    def test_gathered_ids_are_each_rows_own(self):
        lists = [[self.rng.integers(0, 265, self.rng.integers(0, 6)).tolist() for _ in s] for s in SEQUENCES]
        for rows, dense, mine in zip(self.teacher.score(SEQUENCES, gather=lists), self.dense, lists):
            np.testing.assert_array_equal(rows.gather_ids, [i for row in mine for i in row])
            np.testing.assert_array_equal(rows.gathered, dense[rows.gather_rows(), rows.gather_ids])
            np.testing.assert_allclose(rows.gathered_logprobs(), log_softmax(dense)[rows.gather_rows(), rows.gather_ids], atol=2e-5)

    def test_gathering_the_top_gives_the_top(self):
        top = self.teacher.score(SEQUENCES, top_k=5)
        again = self.teacher.score(SEQUENCES, gather=[r.ids for r in top])
        for one, two in zip(top, again):
            np.testing.assert_array_equal(one.logits.reshape(-1), two.gathered)

    def test_rows_of_each_sequence_are_its_own(self):
        first = [3, 1, 0, 20]
        for rows, dense, begin in zip(self.teacher.score(SEQUENCES, dense=True, first=first), self.dense, first):
            np.testing.assert_array_equal(rows.dense, dense[begin:])

    def test_spans_sum_the_own_logprobs(self):
        spans = [[(1, None), (2, 4)], [(1, 3)], [], [(5, 6), (1, 30), (29, 30)]]
        whole = [s for i, s in enumerate(SEQUENCES) if spans[i]]
        asked = self.teacher.score(whole, spans=[s for s in spans if s])
        for rows, tokens, mine in zip(asked, whole, [s for s in spans if s]):
            log_p = log_softmax(self.dense[SEQUENCES.index(tokens)])
            own = log_p[np.arange(len(tokens) - 1), tokens[1:]]
            expected = [own[b - 1:(len(tokens) if e is None else e) - 1].sum() for b, e in mine]
            np.testing.assert_allclose(rows.span_sums, expected, rtol=1e-5)
            self.assertIsNone(rows.lse)

    def test_kept_ids_are_the_whole_vocabulary(self):
        keep = [200, 3, 17, 99, 5, 3]
        for rows, dense in zip(self.teacher.score(SEQUENCES, keep=keep, top_k=2, entropy=True, dense=True), self.dense):
            kept = dense[:, sorted(set(keep))]
            np.testing.assert_array_equal(rows.dense, kept)
            np.testing.assert_allclose(rows.dense_logprobs(), log_softmax(kept), atol=1e-5)
            np.testing.assert_array_equal(rows.ids[:, 0], np.array(sorted(set(keep)))[kept.argmax(1)])

    def test_draws_are_the_seeds_own_and_unbiased(self):
        one = self.teacher.score(SEQUENCES, draws=Draws(50, seed=7))
        two = [self.teacher.score(s, draws={"n": 50, "seed": 7}, top_k=3) for s in SEQUENCES]
        for a, b in zip(one, two):
            np.testing.assert_array_equal(a.draw_ids, b.draw_ids)
            np.testing.assert_array_equal(a.draw_counts, b.draw_counts)
            self.assertTrue((np.add.reduceat(a.draw_counts, a.draw_at[:-1]) == 50).all())
        p = np.exp(log_softmax(self.dense[0][:1]))[0]
        for ask in (dict(draws=Draws(200)), dict(draws=Draws(200, tau=0.8)), dict(draws=Draws(200, tail=True), top_k=4)):
            mean = np.zeros(265)
            for seed in range(100):
                rows = self.teacher.score(TOKENS, last=0, **dict(ask, draws=Draws(**dict(vars(ask["draws"]), seed=seed))))
                mean[rows.draw_ids] += rows.draw_weights() / 100
            expected = p.copy()
            if ask["draws"].tail:
                expected[rows.ids[0]] = 0
            np.testing.assert_allclose(mean, expected, atol=6 * np.sqrt(p.max() / 20000))

    def test_rounded_values_are_as_near_as_they_say(self):
        for values in ("f16", "u8"):
            for rows, dense in zip(self.teacher.score(SEQUENCES, dense=True, gather=[1, 2], top_k=6, values=values), self.dense):
                spread = dense.max(1) - dense.min(1)
                limit = spread / 510 if values == "u8" else spread / 2048
                self.assertTrue((np.abs(rows.dense - dense) <= limit[:, None] + 1e-6).all())
                np.testing.assert_array_equal(rows.dense.max(1), dense.max(1))

    def test_what_the_head_multiplies_times_the_head_is_the_logits(self):
        head = self.teacher.weights("head")
        self.assertEqual(head.shape, (265, 32))
        np.testing.assert_array_equal(self.teacher.weights("head", [3, 200, 3]), head[[3, 200, 3]])
        self.assertEqual(self.teacher.weights("final_norm").shape, (1, 32))
        asked = self.teacher.score(SEQUENCES, features=[("final", 0), Feature("hidden", 1), ("q", 0), ("v", 1)])
        for rows, dense in zip(asked, self.dense):
            np.testing.assert_allclose(rows.features[0] @ head.T, dense, atol=1e-4)
            self.assertEqual([f.shape[1] for f in rows.features], [32, 32, 32, 16])
        for pooling, expected in (("last", asked[0].features[1][-1]), ("mean", asked[0].features[1].mean(0))):
            pooled = self.teacher.score(TOKENS, features=[("hidden", 1)], pooling=pooling)
            np.testing.assert_allclose(pooled.features[0][0], expected, atol=1e-5)
        for values, rtol in (("f16", 1e-3), ("bf16", 8e-3)):
            rounded = self.teacher.score(TOKENS, features=[("hidden", 1)], feature_values=values)
            np.testing.assert_allclose(rounded.features[0], asked[0].features[1], rtol=rtol, atol=1e-6)

    def test_numbers_are_those_of_http(self):
        ask = {"top_k": 6, "top_mass": 0.7, "tail": True, "own": True, "argmax": True, "max_prob": True, "sum_squares": True,
               "gather": [[1, 2], [3, 3, 3]], "draws": {"n": 30, "seed": 5, "tau": 0.5}, "spans": [[[1, 4]], [[1, 2], [2, 3]]],
               "features": [{"kind": "k", "layer": 1}], "keep": list(range(0, 265))}
        status, reply = self.daemon.post("/v1/score", dict(ask, sequences=[{"tokens": TOKENS}, {"tokens": [1, 2, 3]}]))
        self.assertEqual(status, 200, reply)
        asked = self.teacher.score([TOKENS, [1, 2, 3]], **dict(ask, features=[("k", 1)]))
        for theirs, ours in zip(reply["sequences"], asked):
            np.testing.assert_array_equal(ours.span_sums, np.array(theirs["spans"], np.float32))
            for r, row in enumerate(theirs["rows"]):
                n = ours.n_top[r]
                gathered, drawn = slice(*ours.gather_at[r:r + 2]), slice(*ours.draw_at[r:r + 2])
                for name, here in (("ids", ours.ids[r, :n]), ("logits", ours.logits[r, :n]), ("argmax", ours.argmax[r]),
                                   ("max_prob", ours.max_prob[r]), ("sum_squares", ours.sum_squares[r]), ("tail", ours.tail[r]),
                                   ("gather", ours.gathered[gathered]),
                                   ("lse", ours.lse[r]), ("features", [ours.features[0][r]])):
                    np.testing.assert_array_equal(here, np.array(row[name], np.float32), name)
                np.testing.assert_array_equal(ours.draw_ids[drawn], row["draws"]["ids"])
                np.testing.assert_array_equal(ours.draw_counts[drawn], row["draws"]["counts"])
                np.testing.assert_allclose(ours.draw_weights()[drawn], row["draws"]["weights"], rtol=1e-5)

    def test_a_fault_in_a_part_is_named_as_the_caller_counts(self):
        lists = [[[1]] * len(s) for s in SEQUENCES]
        lists[3][7] = [1, 999]
        with self.assertRaises(KdError) as raised:
            self.teacher.score(SEQUENCES, gather=lists)
        self.assertEqual((raised.exception.code, raised.exception.field), ("invalid", "sequences[3].gather[7][1]"))


if __name__ == "__main__":
    support.main()
