# SPDX-License-Identifier: Apache-2.0
"""The Python client against the conformance suite: accept and find the same, to the bit, or refuse."""
import os
import unittest

import support
support.need("numpy")

import numpy as np

from kdclient import KdError, checksum, decode_record, frame, query, record
from kdclient.frame import Kind

FOLDER = os.path.join(support.TOP, "tests", "conformance")


def cases(file):
    """name -> its lines, as a dictionary of words; `hex` joined."""
    found, current = {}, None
    with open(os.path.join(FOLDER, file), encoding="ascii") as f:
        for line in f:
            words = line.split()
            if not words or line.startswith("#"):
                continue
            if words[0] == "case":
                current = found[words[1]] = {"hex": "", "questions": []}
            elif words[0] == "hex":
                current["hex"] += "".join(words[1:])
            elif words[0] == "question":
                current["questions"].append(words[1:])
            elif words[0] != "end":
                current[words[0]] = words[1:]
    return found


def bits(array):
    return ["%08x" % b for b in np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint32)]


def decimals(array):
    return ["%d" % n for n in np.asarray(array).reshape(-1)]


def found_in(rows):
    """What the suite lists of a record."""
    q, n = rows.query, len(rows)
    lines = {"key": [rows.key], "vocabulary": [str(rows.vocab_size)], "tokens": decimals(rows.tokens), "rows": decimals([q.first, q.last])}
    if q.has_rows() or (q.features and q.pooling == "none"):
        lines["status"] = decimals(~rows.ok)
    for name in ("max_logit", "lse", "own_logit", "entropy", "max_prob", "sum_squares", "tail", "gathered"):
        if getattr(rows, name) is not None:
            lines[name] = bits(getattr(rows, name))
    if q.argmax:
        lines["argmax"] = decimals(rows.argmax)
    if q.top_k:
        there = rows.ids >= 0
        lines.update(n_top=decimals(rows.n_top), ids=decimals(rows.ids[there]), logits=bits(rows.logits[there]))
    if q.dense:
        lines["dense"] = bits(rows.dense[rows.ok])
    if q.draws:
        lines.update(draw_starts=decimals(rows.draw_at), draw_ids=decimals(rows.draw_ids), draw_counts=decimals(rows.draw_counts))
        if q.draws.tau != 1:
            lines["draw_log_ratios"] = bits(rows.draw_log_ratios)
    if q.spans:
        lines["span_sums"] = bits(rows.span_sums)
    lines.update(("feature_%d" % i, bits(f)) for i, f in enumerate(rows.features or []))
    assert n == q.n_rows
    return lines


class Records(unittest.TestCase):
    def test_every_record(self):
        suite, n = cases("records.txt"), {"accept": 0, "refuse": 0}
        for name, case in suite.items():
            data, (verdict, *code) = bytes.fromhex(case["hex"]), case["must"]
            with self.subTest(name):
                n[verdict] += 1
                if case["is"] == ["short"]:
                    self.check_short(suite[case["of"][0]], data, verdict)
                elif verdict == "refuse":
                    with self.assertRaises(KdError) as raised:
                        decode_record(data)
                    self.assertEqual([raised.exception.code], code)
                else:
                    with np.errstate(all="raise"):
                        rows = decode_record(data)
                    listed = {k: v for k, v in case.items() if k not in ("hex", "is", "must", "questions")}
                    self.assertEqual(found_in(rows), listed)
        self.assertGreater(min(n.values()), 20, n)

    def check_short(self, whole, data, verdict):
        rows = decode_record(bytes.fromhex(whole["hex"]))

        def complete():
            made, piece = record.restore(data, checksum.Piece.of(data), bytes.fromhex(rows.teacher), rows.tokens, rows.query.encoded)
            return record.decode(made, False, piece, rows.query)
        if verdict == "accept":
            self.assertEqual(complete().record, rows.record)
        else:
            with self.assertRaises(KdError):
                complete()


class Frames(unittest.TestCase):
    """A client reads WELCOME, ANSWER, ERROR, REPLY, TOKENS and frames without a body; of the others it is tested that what it writes is in
    the suite (test_codec)."""

    def read(self, data):
        header = frame.decode_header(data[:frame.HEADER_BYTES], 65536)
        body = data[frame.HEADER_BYTES:]
        if len(body) != header.body_bytes:
            raise KdError("corrupt", "the body is not there")
        frame.check_body(header, checksum.Piece.of(body))
        readers = {Kind.WELCOME: frame.decode_welcome, Kind.ANSWER: frame.decode_answer, Kind.ERROR: frame.decode_error,
                   Kind.REPLY: frame.decode_reply, Kind.TOKENS: frame.decode_tokens}
        reader = readers.get(header.kind)
        return header, reader(body) if reader else None

    def test_every_frame_that_a_client_reads(self):
        n = {"accept": 0, "refuse": 0}
        to_server = (Kind.HELLO, Kind.SCORE, Kind.CALL, Kind.GENERATE, Kind.CANCEL)
        for name, case in cases("frames.txt").items():
            data, verdict = bytes.fromhex(case["hex"]), case["must"][0]
            with self.subTest(name):
                if verdict == "refuse" and len(data) > 5 and data[5] in to_server and self.header_holds(data):
                    continue    # the server's to refuse
                n[verdict] += 1
                if verdict == "refuse":
                    with self.assertRaises(KdError):
                        self.read(data)
                else:
                    self.check(case, *self.read(data))
        self.assertGreater(min(n.values()), 8, n)

    def header_holds(self, data):
        try:
            header = frame.decode_header(data[:frame.HEADER_BYTES], 65536)
            frame.check_body(header, checksum.Piece.of(data[frame.HEADER_BYTES:]))
            return True
        except (KdError, ValueError):
            return False

    def check(self, case, header, found):
        if header.kind == Kind.ERROR and "code" in case:
            index, error = found
            self.assertEqual(error.code, case["code"][0])
        if header.kind == Kind.ANSWER and "index" in case:
            self.assertEqual([str(found[0].index)], case["index"])
            if "record" in case:
                self.assertEqual(found[0].record.hex(), "".join(case["record"]))
        if header.kind == Kind.REPLY and "status" in case:
            self.assertEqual([str(found[0])], case["status"])
        if header.kind == Kind.TOKENS:
            for name in ("tokens", "ids"):
                if name in case:
                    self.assertEqual(decimals(getattr(found, name)), case[name])
            for name in ("logprobs", "sampled_logprobs", "lse", "logits"):
                if name in case:
                    self.assertEqual(bits(getattr(found, name)), case[name])

    def test_questions_have_the_keys_of_the_suite(self):
        """The canonical form of what a SCORE asks, with its parts, as this client works it out."""
        n = 0
        for name, case in cases("frames.txt").items():
            data = bytes.fromhex(case["hex"])
            for index, verdict, *rest in case["questions"]:
                if verdict != "key":
                    continue
                tokens, asked = self.read_score(data[frame.HEADER_BYTES:], int(index))
                with self.subTest(name, index=index):
                    canonical = asked.canonical(len(tokens)).encoded
                    self.assertEqual(query.key(bytes(range(32)), tokens, canonical).hex(), rest[0])
                    n += 1
        self.assertGreater(n, 5)

    def read_part(self, c):
        bits, = c.unpack("<B")
        rows = c.unpack("<ii") if bits & 1 else None
        lists = query._read_lists(c) if bits & 2 else None
        return query.Part(rows, lists, tuple(query.tuples(c.varints(2 * c.varint()), 2)) if bits & 4 else None)

    def read_score(self, body, index):
        """Sequence `index` of a SCORE and its question, part included."""
        from kdclient.cursor import Cursor
        c = Cursor(body, "score")
        flags, _, query_bytes, n = c.unpack("<IIII")
        base = query.read(c.take(query_bytes))
        lengths = c.unpack("<%dI" % n)
        sequences = [np.array(c.unpack("<%dI" % length), np.uint32) for length in lengths]
        parts = [self.read_part(c) for _ in range(n)] if flags & frame.SCORE_PARTS else [query.Part()] * n
        return sequences[index], parts[index].of(base)


if __name__ == "__main__":
    support.main()
