# SPDX-License-Identifier: Apache-2.0
"""The Python client's record decoder against the plain encoder of tests/conformance: every signal, alone and together, and hostile
bytes."""
import math
import os
import random
import struct
import sys
import unittest

import support
support.need("numpy")
sys.path.insert(0, os.path.join(support.TOP, "tests", "conformance"))

import numpy as np

import kdserved_bytes as plain
from kdclient import KdError, checksum, decode_record, query, record
from test_codec import man_bytes

TEACHER = bytes(range(100, 132))
F32_SIGNALS = ("entropy", "max_prob", "sum_squares")


def f32(v):
    return float(np.float32(v))


def random_row(rng, q, vocab_size, n):
    """A row of made-up logits, with what the question asks for worked out from them; None = not finite."""
    if rng.random() < 0.15:
        return None
    ids = q.keep or range(vocab_size)
    logits = {i: f32(rng.choice((-1, 1)) * rng.expovariate(0.3)) for i in ids}
    if rng.random() < 0.3:
        logits = {i: round(v) for i, v in logits.items()}    # many equal
    top = sorted(logits, key=lambda i: (-logits[i], i))[:rng.randint(1, q.top_k) if q.top_mass else q.top_k]
    row = {"logits": logits, "max_logit": max(logits.values()), "lse": [f32(rng.random() * 9) for _ in q.temperatures],
           "top": {i: logits[i] for i in top}, "dense": [logits[i] for i in ids], "entropy": f32(rng.random()),
           "max_prob": f32(rng.random()), "sum_squares": f32(rng.random()), "argmax": rng.choice(list(ids)), "own": 0,
           "tail": -math.inf if rng.random() < 0.2 else f32(-rng.random())}
    if q.gather is not None:
        row["gathered"] = [logits[i] for i in q.gather[n if len(q.gather) > 1 else 0]]
    if q.draws:
        outside = [i for i in ids if not q.draws.get("tail") or i not in row["top"]]
        if not outside or (q.draws.get("tail") and row["tail"] == -math.inf):
            row["tail"], drawn = -math.inf, []
        else:
            drawn = [rng.choice(outside) for _ in range(q.draws["n"])]
        row["draws"] = [(i, drawn.count(i), f32(rng.gauss(0, 1))) for i in sorted(set(drawn))]
    return row


def random_question(rng, vocab_size, n_tokens):
    pick = lambda chance: rng.random() < chance    # noqa: E731
    keep = sorted(rng.sample(range(vocab_size), rng.randint(1, vocab_size))) if pick(0.3) else None
    width = len(keep) if keep else vocab_size
    first = rng.randrange(n_tokens)
    last = rng.randrange(first, n_tokens)
    top_k = rng.randint(1, width) if pick(0.6) else 0
    ids = keep or range(vocab_size)
    gather = None
    if pick(0.4):
        gather = [[rng.choice(ids) for _ in range(rng.randrange(5))] for _ in range(1 if pick(0.3) else last - first + 1)]
    begins = [rng.randint(1, n_tokens - 1) for _ in range(3)] if n_tokens > 1 and pick(0.3) else []
    q = plain.Query(
        top_k=top_k, top_mass=f32(rng.uniform(0.1, 1)) if top_k and pick(0.4) else 0, dense=pick(0.3),
        temperatures=[rng.choice((0.0001, 0.5, 1, 2, 7.25, 1e6)) for _ in range(rng.randrange(3))], own=pick(0.5), entropy=pick(0.3),
        max_prob=pick(0.3), argmax=pick(0.3), sum_squares=pick(0.3), tail=bool(top_k) and pick(0.3), first=first, last=last,
        values=rng.choice((plain.F32, plain.F16, plain.U8)), keep=keep, gather=gather,
        draws={"n": rng.choice((1, 5, 40)), "tau": rng.choice((1, 1, 0.8)), "seed": rng.getrandbits(64), "tail": bool(top_k) and pick(0.5)}
        if pick(0.4) else None, spans=[(b, rng.randint(b + 1, n_tokens)) for b in begins],
        features=[(plain.HIDDEN, 3), (plain.FINAL, 0), (plain.K, 1)] if pick(0.3) else (), pooling=rng.randrange(3),
        feature_values=rng.randrange(3))
    if not q.has_rows() and not q.spans and not q.features:
        q.own = True
    return q


def random_record(seed):
    rng = random.Random(seed)
    vocab_size, n_tokens = rng.choice((1, 2, 10, 60, 300)), rng.choice((1, 2, 3, 9))
    tokens = [rng.randrange(vocab_size) for _ in range(n_tokens)]
    q = random_question(rng, vocab_size, n_tokens)
    canonical = q.canonical(n_tokens)
    n_rows = canonical.last - canonical.first + 1
    rows = [random_row(rng, canonical, vocab_size, n) for n in range(n_rows)]
    for n, row in enumerate(rows):
        if row and canonical.first + n + 1 < n_tokens:
            row["own"] = row["logits"].get(tokens[canonical.first + n + 1], 0)
    spans = [None if rng.random() < 0.3 else f32(-rng.expovariate(1)) for _ in q.spans]
    widths = [rng.randint(1, 4) for _ in q.features]
    empty = [None if canonical.pooling else row is None for row in (rows if not canonical.pooling else [rng.random() < 0.3])]
    features = [[None if e or (e is None and rng.random() < 0.3) else [rng.randint(-8, 8) / 4 for _ in range(w)] for e in empty]
                for w in widths]
    record = plain.Record(TEACHER, vocab_size, tokens, q, rows, spans, features, widths)
    return record, rows, tokens


def tolerance(form, row, values):
    if form == plain.F32:
        return 0
    spread = row["max_logit"] - min([row["max_logit"], *values])
    return spread / 1024 + 1e-6 if form == plain.F16 else spread / 500 + 1e-6


class Records(unittest.TestCase):
    def check_values(self, form, row, here, expected):
        np.testing.assert_allclose(here, expected, rtol=0, atol=tolerance(form, row, expected))

    def check_row(self, q, rows, i, row, tokens):
        if q.has_rows():
            self.assertEqual(rows.max_logit[i], row["max_logit"])
            self.assertEqual(rows.lse[i].tolist(), row["lse"])
        if q.top_k:
            n = len(row["top"])
            self.assertEqual(rows.n_top[i], n)
            self.assertEqual(sorted(rows.ids[i, :n].tolist()), sorted(row["top"]))
            self.assertTrue((rows.ids[i, n:] == -1).all() and not rows.logits[i, n:].any())
            self.check_values(q.values, row, rows.logits[i, :n], [row["top"][j] for j in rows.ids[i, :n].tolist()])
            if q.values == plain.F32:
                self.assertEqual(rows.ids[i, :n].tolist(), sorted(row["top"], key=lambda j: (-row["top"][j], j)))
            self.assertEqual(sorted(range(n), key=lambda j: (-rows.logits[i, j], rows.ids[i, j])), list(range(n)))
        if q.dense:
            self.check_values(q.values, row, rows.dense[i], row["dense"])
        for name in F32_SIGNALS + ("argmax", "tail"):
            if getattr(q, name):
                self.assertEqual(getattr(rows, name)[i], row[name], name)
        if q.own:
            at = q.first + i + 1
            absent = at >= len(tokens) or (q.keep and tokens[at] not in q.keep)
            self.assertTrue(np.isnan(rows.own_logit[i]) if absent else rows.own_logit[i] == row["own"])
        if q.gather is not None:
            begin, end = rows.gather_at[i:i + 2]
            self.assertEqual(rows.gather_ids[begin:end].tolist(), q.gather[i if len(q.gather) > 1 else 0])
            self.assertFalse(np.may_share_memory(rows.gather_ids, rows.query.gather.ids))    # the caller's to write to
            self.check_values(q.values, row, rows.gathered[begin:end], row["gathered"])
        if q.draws:
            begin, end = rows.draw_at[i:i + 2]
            drawn = zip(rows.draw_ids[begin:end].tolist(), rows.draw_counts[begin:end].tolist())
            self.assertEqual(list(drawn), [d[:2] for d in row["draws"]])
            if q.draws["tau"] != 1:
                self.assertEqual(rows.draw_log_ratios[begin:end].tolist(), [d[2] for d in row["draws"]])

    def check_empty_row(self, rows, i):
        for name in ("max_logit", "lse", "logits", "dense", "own_logit", "argmax", "tail", *F32_SIGNALS):
            value = getattr(rows, name)
            self.assertFalse(value is not None and value[i].any(), name)
        self.assertTrue(rows.ids is None or ((rows.ids[i] == -1).all() and rows.n_top[i] == 0))
        self.assertTrue(rows.gathered is None or not rows.gathered[rows.gather_at[i]:rows.gather_at[i + 1]].any())
        self.assertTrue(rows.draw_at is None or rows.draw_at[i] == rows.draw_at[i + 1])

    def check_record(self, record, made, tokens):    # record: the plain encoder's
        q, data = record.query, record.encode()
        rows = decode_record(data)
        self.assertEqual((rows.teacher, rows.vocab_size, rows.tokens.tolist()), (TEACHER.hex(), record.vocab_size, tokens))
        self.assertEqual((rows.query.first, rows.query.last, list(rows.query.temperatures)), (q.first, q.last, q.temperatures))
        self.assertEqual(rows.query.encoded, q.encode())
        for i, row in enumerate(made):
            if q.has_rows() or (q.features and not q.pooling):
                self.assertEqual(rows.ok[i], row is not None)
            if row:
                self.check_row(q, rows, i, row, tokens)
            elif q.has_rows():
                self.check_empty_row(rows, i)
        for here, expected in zip(rows.span_sums if q.spans else (), record.spans):
            self.assertTrue(np.isnan(here) if expected is None else here == expected)
        for here, vectors in zip(rows.features or (), record.features):
            for vector, expected in zip(here.tolist(), vectors):
                if expected is not None:
                    self.assertEqual(vector, expected)
                else:
                    self.assertTrue(all(math.isnan(v) if q.pooling else v == 0 for v in vector))
        return rows

    def test_every_signal_comes_back_in_random_company(self):
        for seed in range(600):
            with self.subTest(seed=seed):
                self.check_record(*random_record(seed))

    def test_examples_of_the_manual(self):
        second = decode_record(man_bytes("kdserved-record.5", "Row 1 is not finite, so"))
        self.assertEqual(second.record, plain.second_example())
        self.assertEqual(second.ok.tolist(), [True, False])
        self.assertEqual(second.gathered.tolist(), [2, -0.5, -0.5, 0])
        self.assertEqual(second.draw_ids.tolist(), [5, 130, 200])
        self.assertEqual(second.draw_weights().tolist(), [np.float32(0.1), np.float32(0.2), np.float32(0.7)])
        self.assertTrue(np.isnan(second.span_sums[0]))
        self.assertEqual(decode_record(man_bytes("kdserved-record.5", "Row 2: ids 0 and 9")).record, plain.first_example())

    def test_questions_are_written_as_the_manual_says(self):
        rng = random.Random(9)
        for seed in range(300):
            record, _, tokens = random_record(seed)
            q = record.query
            ours = query.ask(dict(
                top_k=q.top_k, top_mass=q.top_mass, dense=q.dense, temperatures=rng.sample(q.temperatures, len(q.temperatures)), own=q.own,
                entropy=q.entropy, max_prob=q.max_prob, argmax=q.argmax, sum_squares=q.sum_squares,
                tail=q.tail, first=q.first - len(tokens), last=q.last, values=query.VALUES[q.values], draws=q.draws, gather=q.gather,
                keep=rng.sample(q.keep, len(q.keep)) if q.keep else None, spans=q.spans,
                features=[(query.KINDS[k], layer) for k, layer in q.features], pooling=query.POOLINGS[q.pooling],
                feature_values=query.FEATURE_VALUES[q.feature_values]), [query.as_tokens(tokens)], True).of(0)
            self.assertEqual(ours.canonical(len(tokens)).encoded.hex(), q.encode().hex(), seed)

    def test_parts_belong_to_their_sequences(self):
        tokens = [query.as_tokens([1, 2, 3]), query.as_tokens([4, 5])]
        lists = [[[7], [], [8, 9]], [3, 3]]
        asked = query.ask(dict(gather=lists, spans=[[(1, None)], [(1, 2)]], first=[0, -2], last=-1, own=True), tokens, False)
        one, two = asked.of(0), asked.of(1)
        self.assertEqual([q.gather.at.tolist() for q in (one, two)], [[0, 1, 1, 3], [0, 2]])
        self.assertEqual([q.gather.ids.tolist() for q in (one, two)], [[7, 8, 9], [3, 3]])
        self.assertEqual([(q.spans, q.first, q.last) for q in (one, two)], [(((1, 3),), 0, -1), (((1, 2),), -2, -1)])
        for same in (dict(gather=[5, 6]), dict(gather=np.array([5, 6])), dict(spans=[(1, 2)]), dict(first=1, last=np.int64(-1))):
            self.assertEqual(query.ask(dict(same, own=True), tokens, False).parts, (), same)
        array = query.ask(dict(gather=np.arange(12).reshape(2, 3, 2)), [tokens[0]] * 2, False)
        self.assertEqual([array.of(i).gather.ids.tolist() for i in range(2)], [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]])
        single = query.ask(dict(gather=[[1], [2, 3], []]), [tokens[0]], True)
        self.assertEqual((single.parts, len(single.query.gather)), ((), 3))
        self.assertEqual(query.ask(dict(spans=[[], []], own=True), tokens, False).query.spans, ())
        self.assertEqual(query.ask(dict(draws={"n": 3, "tau": 1 + 1e-9}), tokens, False).query.draws.tau, 1)       # as the record has it
        for bad, field in ((dict(gather=[[1]]), "gather"), (dict(draws={"n": 2.5}), "draws.n"), (dict(first=[0, 1, 2]), "first"), (dict(spans=[[(1, 2)]]), "spans"),
                           (dict(keep=[]), "keep"), (dict(draws={"n": 0}), "draws.n"), (dict(gather=[[[1.5]], [1]]), "gather[0][0]"),
                           (dict(spans=[(-1, 2)]), "spans")):
            with self.assertRaises(KdError, msg=bad) as raised:
                query.ask(bad, tokens, False)
            self.assertEqual((raised.exception.code, raised.exception.field), ("invalid", field))
        for bad in (dict(top_k=-1), dict(top_k=1 << 32), dict(values="f64"), dict(temperatures=[1.0] * 17), dict(features=[("x", 0)]),
                    dict(features=[("hidden", 70000)]), dict(pooling="sum", features=[("final", 0)])):
            with self.assertRaises(KdError, msg=bad):
                query.ask(bad, tokens, False).query.encoded

    def test_short_records_come_back_whole(self):
        for seed in range(200):
            made, _, tokens = random_record(seed)
            short, whole = made.shorten(), made.encode()
            known = decode_record(whole).query
            data, piece = record.restore(short, checksum.Piece.of(short), TEACHER, query.as_tokens(tokens), known.encoded)
            self.assertEqual(data, whole)
            self.assertIs(record.decode(data, False, piece, known).query, known)
            for wrong in ((short, bytes(32), tokens, known.encoded), (short, TEACHER, [*tokens[1:], tokens[0] + 1], known.encoded),
                          (short[:-1], TEACHER, tokens, known.encoded), (short[:67], TEACHER, tokens, known.encoded),
                          (whole, TEACHER, tokens, known.encoded)):
                with self.assertRaises(KdError):
                    record.decode(*record.restore(wrong[0], checksum.Piece.of(wrong[0]), wrong[1], query.as_tokens(wrong[2]), wrong[3])[:1])
            with self.assertRaises(KdError):
                decode_record(short)

    def test_changed_bytes_with_a_mended_checksum_do_nothing_worse_than_an_error(self):
        rng, refused = random.Random(10), 0
        for seed in range(250):
            whole = random_record(seed)[0].encode()
            for _ in range(12):
                data = bytearray(whole)
                for _ in range(rng.randint(1, 3)):
                    at = rng.randrange(100 if rng.random() < 0.2 else 16, len(data))
                    data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
                if rng.random() < 0.2:
                    del data[rng.randrange(100, len(data)):]
                    data[8:12] = struct.pack("<I", len(data))
                n_tokens, n_query = struct.unpack_from("<I4xI", data, 84)
                tokens = bytes(data[100 + n_query:100 + n_query + 4 * n_tokens])
                if len(tokens) == 4 * n_tokens:    # so that what lies behind the key is looked at
                    data[48:80] = query.key(bytes(data[16:48]), np.frombuffer(tokens, np.uint32), bytes(data[100:100 + n_query]))
                data[12:16] = struct.pack("<I", checksum.crc32c(bytes(data[16:]), checksum.crc32c(bytes(data[:12]))))
                try:
                    decode_record(bytes(data))
                except KdError as error:
                    self.assertIn(error.code, ("corrupt", "unsupported"))
                    refused += 1
        self.assertGreater(refused, 1000)

    def test_what_the_manual_forbids_is_refused(self):
        def spoil(record, tag, at, data, message):
            sections = list(record.sections())
            for i, (found, body) in enumerate(sections):
                if found == tag:
                    sections[i] = found, body[:at] + data + body[at + len(data):]
            record.sections = lambda: iter(sections)
            with self.assertRaises(KdError, msg=message) as raised:
                decode_record(record.encode())
            self.assertEqual(raised.exception.code, "corrupt", message)

        def record(row=None, **ask):
            base = {"max_logit": 2.0, "lse": [2.5], "top": {1: 2.0, 3: 1.0}, "dense": [0.0, 2.0, 1.0, 1.0], "own": 2.0, "entropy": 1.0,
                    "max_prob": 0.5, "sum_squares": 0.5, "argmax": 1, "tail": -1.0, "gathered": [2.0, 0.0],
                    "draws": [(0, 1, 0.0), (2, 3, 0.0)]}
            return plain.Record(TEACHER, 4, [1, 1, 0], plain.Query(**ask), [dict(base, **(row or {})), None, dict(base)], [-1.0],
                                [[[1.0], None, [1.0]]], [1])
        nan, inf = struct.pack("<f", math.nan), struct.pack("<f", math.inf)
        one = struct.pack("<f", 1.0)
        for tag, at, data, ask, message in (
                (1, 0, b"\2", dict(own=True), "a status nobody knows"), (2, 0, nan, dict(own=True), "a maximum that is NaN"),
                (2, 4, one, dict(own=True), "a number in a row that has none"), (3, 0, inf, dict(own=True), "an infinite lse"),
                (6, 0, one, dict(top_k=2), "the largest is not the maximum"),
                (6, 0, struct.pack("<f", 3), dict(top_k=2), "above the maximum"),
                (6, 8, one, dict(top_k=2), "a value in a row that has none"), (5, 0, bytes([24]), dict(top_k=2), "a parameter over 23"),
                (5, 1, b"\xff", dict(top_k=2), "an id outside the vocabulary"),
                (7, 4, one, dict(dense=True), "the largest is not the maximum"), (8, 0, nan, dict(own=True), "own that is NaN"),
                (8, 8, one, dict(own=True), "own where nothing follows"), (9, 0, inf, dict(entropy=True), "an infinite entropy"),
                (10, 0, struct.pack("<f", 1.5), dict(max_prob=True), "a probability above 1"),
                (11, 0, b"\4", dict(argmax=True), "an id outside"),
                (12, 0, struct.pack("<f", -0.5), dict(sum_squares=True), "a sum of squares below 0"),
                (13, 0, one, dict(top_k=2, tail=True), "a log-probability above 0"),
                (14, 0, struct.pack("<f", 9), dict(gather=[[1, 0]]), "above the maximum"),
                (14, 8, one, dict(gather=[[1, 0]]), "in an empty row"),
                (14, 0, struct.pack("<f", -1), dict(gather=[[1, 0]], values=plain.U8), "a negative range"),
                (14, 12, b"\1\1", dict(gather=[[1, 0]], values=plain.U8), "codes short of 255"),
                (14, 0, struct.pack("<e", 0.5), dict(gather=[[1, 0]], values=plain.F16), "a difference above 0"),
                (15, 1, b"\xff", dict(draws={"n": 4}), "ids outside"), (15, 1, b"\6", dict(draws={"n": 4}), "counts that do not sum to n"),
                (15, 1, b"\x01", dict(draws={"n": 4, "tail": True}, top_k=2), "an id of the top-k"),
                (16, 0, nan, dict(draws={"n": 4, "tau": 2}), "a ratio that is NaN"), (17, 0, inf, dict(spans=[(1, 2)]), "an infinite sum"),
                (18, 0, b"\0", dict(features=[(0, 0)]), "no width"), (18, 4, nan, dict(features=[(0, 0)]), "a vector that is NaN"),
                (18, 8, one, dict(features=[(0, 0)]), "a vector in an empty row")):
            whole = record(**ask)
            decode_record(whole.encode())
            spoil(record(**ask), tag, at, data, message)


class Helpers(unittest.TestCase):
    def setUp(self):
        q = plain.Query(top_k=3, tail=True, temperatures=[1, 2], gather=[[0, 0, 4], [], [2]], draws={"n": 8, "tail": True}, own=True)
        logits = [2, 1, .5, -.5, -1]
        row = {"max_logit": 2, "lse": [f32(2.543998), f32(1.951091)], "top": dict(enumerate(logits[:3])), "own": 2,
               "tail": f32(math.log(0.076542)), "gathered": [2, 2, -1], "draws": [(3, 5), (4, 3)]}
        self.rows = decode_record(plain.Record(TEACHER, 5, [0, 0, 0], q, [row, None, dict(row, gathered=[.5])]).encode())

    def test_probabilities_follow_from_logits_and_lse(self):
        np.testing.assert_allclose(self.rows.probabilities()[0], [.580423, .213526, .129510], atol=2e-6)
        np.testing.assert_allclose(self.rows.probabilities(2)[0], [.386319, .234315, .182484], atol=2e-6)
        self.assertEqual(self.rows.probabilities()[1].tolist(), [0, 0, 0])
        np.testing.assert_allclose(self.rows.tail_mass(), [.076542, 0, .076542], rtol=1e-5)
        np.testing.assert_allclose(self.rows.tail_mass(2)[0], .196881, atol=2e-6)
        np.testing.assert_allclose(self.rows.gathered_logprobs(), [2 - 2.543998, 2 - 2.543998, -1 - 2.543998, .5 - 2.543998], atol=1e-6)
        self.assertEqual(self.rows.gather_rows().tolist(), [0, 0, 0, 2])
        np.testing.assert_allclose(self.rows.own_logprobs(), [2 - 2.543998, np.nan, np.nan], atol=1e-6)
        np.testing.assert_allclose(self.rows.draw_weights(), np.array([5, 3, 5, 3]) / 8 * .076542, rtol=1e-5)
        self.assertEqual(self.rows.draw_rows().tolist(), [0, 0, 2, 2])
        for wrong in (lambda: self.rows.probabilities(3), lambda: self.rows.dense_logprobs()):
            with self.assertRaises(KdError):
                wrong()

    def test_a_batch_is_padded_behind(self):
        from kdclient import stack
        short = decode_record(plain.Record(TEACHER, 5, [0], plain.Query(top_k=1), [{"max_logit": 2, "lse": [3], "top": {4: 2}}]).encode())
        rows = [{"max_logit": 1, "lse": [3], "top": {3: 1}}, None]
        long = decode_record(plain.Record(TEACHER, 5, [0, 1], plain.Query(top_k=1), rows).encode())
        batch = stack([short, long])
        self.assertEqual(batch["ids"].tolist(), [[[4], [-1]], [[3], [-1]]])
        self.assertEqual(batch["ok"].tolist(), [[True, False], [True, False]])
        self.assertEqual(batch["lse"].tolist(), [[[3], [0]], [[3], [0]]])

    def test_pooled_features_have_no_line_a_row(self):
        from kdclient import stack
        q = plain.Query(own=True, features=[(plain.FINAL, 0)], pooling=1)
        row = {"max_logit": 2, "lse": [3], "own": 1}
        made = [decode_record(plain.Record(TEACHER, 5, tokens, q, [dict(row)] * len(tokens), (), [[[.5, 1]]], [2]).encode()) for tokens in ([0], [0, 1])]
        for order in (made, made[::-1]):
            self.assertEqual(set(stack(order)), {"ok", "max_logit", "lse", "own_logit"})


if __name__ == "__main__":
    support.main()
