# SPDX-License-Identifier: Apache-2.0
"""The Python client's codec: checksums, Golomb codes, and the examples of the manual pages."""
import os
import random
import re
import struct
import unittest
from unittest import mock

import support
support.need("numpy")

import numpy as np

from kdclient import KdError, checksum, cursor, decode_record, frame, golomb, query


def man_bytes(page, after):
    """The bytes of the first hex dump behind a text of a manual page."""
    with open(os.path.join(support.TOP, "man", page), encoding="utf-8") as f:
        text = f.read()
    dump = bytearray()
    for line in text[text.index(after):].splitlines():
        found = re.match(r"[0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+)(?:  |$)", line)
        if found:
            dump += bytes.fromhex(found.group(1))
        elif dump:
            break
    return bytes(dump)


def crc_by_bits(data, state=0xffffffff):
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82f63b78 if state & 1 else 0)
    return state ^ 0xffffffff


class Checksum(unittest.TestCase):
    def test_of_every_length_equals_the_definition(self):
        rng = random.Random(1)
        for n in [*range(0, 80), 2251, 2252, 2253, 27108, 27109, 40001]:
            data = rng.randbytes(n)
            self.assertEqual(checksum.crc32c(data), crc_by_bits(data), n)
        self.assertEqual(checksum.crc32c(b"123456789"), 0xe3069283)

    def test_continues_over_pieces(self):
        data = random.Random(2).randbytes(5000)
        whole = checksum.crc32c(data)
        for cut in (0, 1, 47, 48, 49, 2500, 4999, 5000):
            self.assertEqual(checksum.crc32c(data[cut:], checksum.crc32c(data[:cut])), whole)
            self.assertEqual(checksum.Piece.of(data[:cut]).then(checksum.Piece.of(data[cut:])).crc(), whole)

    def test_folding_constants_are_multiples_of_the_polynomial(self):
        for exponents in (checksum.LONG, checksum.SHORT):
            total = 0
            for exponent in exponents:
                total ^= checksum.advance(0x80000000, 4 * exponent)
            self.assertEqual(total, 0, exponents)


def pack(bits):
    return np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()


def number_bits(number, b):
    total = number + (1 << b)
    length = total.bit_length() - 1
    return [1] * (length - b) + [0] + [total >> i & 1 for i in range(length)]


def count_bits(count):
    return number_bits(count - 1, 0)


def encode_numbers(numbers, b):
    return bytes([b]) + pack([bit for n in numbers for bit in number_bits(n, b)])


def encode_pairs(numbers, counts, b):
    return bytes([b]) + pack([bit for n, c in zip(numbers, counts) for bit in number_bits(n, b) + count_bits(c)])


class Golomb(unittest.TestCase):
    def test_numbers_come_back_at_every_parameter(self):
        rng = random.Random(3)
        for b in range(24):
            for n in (1, 2, 63, 1000):
                numbers = [min(int(rng.expovariate(1 / (0.1 + 3 * rng.random() * 2 ** b))), (1 << 24) - 1) for _ in range(n)]
                self.assertEqual(golomb.decode_numbers(encode_numbers(numbers, b), n).tolist(), numbers, (b, n))

    def test_numbers_and_counts_come_back_at_every_parameter(self):
        rng = random.Random(4)
        for b in range(24):
            for n in (1, 63, 700):
                numbers = [min(int(rng.expovariate(1 / (0.1 + 2 ** b))), (1 << 24) - 1) for _ in range(n)]
                counts = [1 + int(rng.expovariate(0.01 if n < 100 else 1)) for _ in range(n)]
                got = golomb.decode_pairs(encode_pairs(numbers, counts, b), sum(counts))
                self.assertEqual((got[0].tolist(), got[1].tolist()), (numbers, counts), (b, n))

    def test_regular_codes_that_never_fall_into_step_come_back(self):
        for pattern in (b"\x00", b"\x55", b"\x11", b"\xaa\x0f", b"\xfe"):
            for b in (0, 1, 2, 7, 15, 23):
                data = pattern * 4000
                bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").tolist() + [1]
                at, numbers = 0, []
                while True:
                    zero = bits.index(0, at) if 0 in bits[at:at + 40] else len(bits)
                    length = zero - at + b
                    if zero + 1 + length >= len(bits) or length > 24:
                        break
                    numbers.append((1 << length) - (1 << b) + sum(bits[zero + 1 + i] << i for i in range(length)))
                    at = zero + 1 + length
                whole = bytes([b]) + pack(bits[:at])
                self.assertEqual(golomb.decode_numbers(whole, len(numbers)).tolist(), numbers, (pattern, b))

    def test_streams_longer_than_their_codes_are_refused_unread(self):
        for read in (golomb.decode_numbers, golomb.decode_pairs):
            with mock.patch.object(golomb, "_chunks", side_effect=AssertionError("it was read")), self.assertRaises(KdError) as raised:
                read(b"\0" + b"\xff" * 131071, 1)
            self.assertEqual(raised.exception.code, "corrupt")

    def test_a_stream_longer_than_a_chunk_comes_back(self):
        rng = random.Random(5)
        with mock.patch.object(golomb, "CHUNK_BYTES", 64):
            numbers = [rng.randrange(1 << 12) for _ in range(5000)]
            self.assertEqual(golomb.decode_numbers(encode_numbers(numbers, 11), len(numbers)).tolist(), numbers)
            self.assertEqual(golomb.decode_pairs(encode_pairs(numbers, [3] * len(numbers), 11), 3 * len(numbers))[0].tolist(), numbers)
            numbers = [5, (1 << 24) - 1, 7]
            self.assertEqual(golomb.decode_numbers(encode_numbers(numbers, 0), 3).tolist(), numbers)
            self.assertEqual(golomb.decode_pairs(encode_pairs(numbers, [1, 2, 3], 0), 6)[0].tolist(), numbers)

    def test_streams_cut_short_or_too_long_are_refused(self):
        numbers, counts = list(range(301)), [2] * 301
        for whole, read in ((encode_numbers(numbers, 5), lambda d: golomb.decode_numbers(d, 301)),
                            (encode_pairs(numbers, counts, 5), lambda d: golomb.decode_pairs(d, 602))):
            read(whole)
            for bad in (whole[:-1], whole[:7], whole[:1], b"", whole + b"\0", whole + b"\1", bytes([24]) + whole[1:],
                        whole[:-1] + bytes([whole[-1] | 0x80])):
                with self.assertRaises(KdError, msg=bad[-4:]):
                    read(bad)

    def test_random_bytes_do_nothing_worse_than_an_error(self):
        rng = random.Random(6)
        for _ in range(300):
            data = rng.randbytes(rng.randrange(1, 3000))
            for read in (golomb.decode_numbers, golomb.decode_pairs):
                try:
                    read(data, rng.randrange(1, 5000))
                except KdError:
                    pass


class Frames(unittest.TestCase):
    def check(self, expected, after):
        self.assertEqual(expected.hex(), man_bytes("kdserved-protocol.7", after).hex())

    def test_examples_of_the_manual(self):
        self.check(frame.encode(frame.Kind.PING, 1, b"hello"), "PING, request 1")
        self.check(frame.encode(frame.Kind.HELLO, 0, frame.hello("s3cret", bytes(32))), "HELLO, any teacher")
        asked = query.ask(dict(top_k=2, own=True, values="f16", first=1), [query.as_tokens([3, 1, 4])], True)
        self.assertEqual(asked.parts, ())
        body = frame.score(asked.query.encoded, [query.as_tokens([3, 1, 4])], (), 0, 5000)
        self.check(frame.encode(frame.Kind.SCORE, 7, body), "SCORE, request 7")
        sequences = [query.as_tokens([3, 1, 4]), query.as_tokens([1, 5])]
        whole = query.Query(temperatures=(1,), gather=query.Lists.of([np.array([5])]))
        parts = [query.Part(spans=((2, 3),)), query.Part((0, 1), query.Lists.of([np.array([7, 300]), np.array([], int)]))]
        body = frame.score(whole.encoded, sequences, [p.encoded for p in parts], frame.SCORE_SHORT, 0)
        self.check(frame.encode(frame.Kind.SCORE, 8, body), "SCORE, request 8")
        self.check(frame.encode(frame.Kind.CALL, 8, frame.call("GET", "/v1/model", b"")), "CALL, request 8")
        error = man_bytes("kdserved-protocol.7", "ERROR for sequence 0")
        header = frame.decode_header(error[:32], 1000)
        frame.check_body(header, checksum.Piece.of(error[32:]))
        index, what = frame.decode_error(error[32:])
        self.assertEqual((index, what.code, what.field, what.message),
                         (0, "invalid", "sequences[0].tokens[2]", "id 12 is outside the vocabulary (10)"))
        info = frame.decode_welcome(man_bytes("kdserved-protocol.7", "WELCOME: teacher 00")[32:])
        limits = 49152, 4096, 1024, 1024, 1024, 65536, 30, 576, 576, 192, 1024, 1 << 25, 64
        self.assertEqual(info, frame.Info(bytes(range(32)).hex(), *limits))

    def test_bad_headers_are_refused(self):
        good = frame.encode(frame.Kind.DONE, 9)
        self.assertEqual(frame.decode_header(good, 0).request_id, 9)
        for at, byte in ((0, 0), (4, 9), (5, 0), (5, 99), (6, 1), (16, 1), (20, 1), (28, good[28] ^ 1)):
            bad = bytearray(good)
            bad[at] = byte
            if at != 28:
                bad[28:] = struct.pack("<I", checksum.crc32c(bytes(bad[:28])))
            with self.assertRaises(KdError, msg=at):
                frame.decode_header(bytes(bad), 0)

    def test_bad_bodies_are_refused(self):
        def pack_error(code, field, message, extra=b""):
            return struct.pack("<IBBH", 0, len(code), len(field), len(message)) + code + field + message + extra
        frame.decode_error(pack_error(b"internal", b"", b"oh"))
        for body in (b"", pack_error(b"internal", b"", b"oh", b"!"), pack_error(b"in\x80", b"", b"")):
            with self.assertRaises(KdError):
                frame.decode_error(body)
        for body in (b"", struct.pack("<II", 0, 2) + b"x", struct.pack("<II", 200, 2) + b"x"):
            with self.assertRaises(KdError):
                frame.decode_reply(body)
            with self.assertRaises(KdError):
                frame.decode_welcome(body)
        with self.assertRaises(KdError):
            frame.decode_answer(b"short")
        for token in ("ü", "a" * 257, "line\n"):
            with self.assertRaises(KdError):
                frame.hello(token, bytes(32))


class Record(unittest.TestCase):
    def test_any_changed_byte_is_refused(self):
        whole = man_bytes("kdserved-record.5", "Row 1 is not finite, so")
        decode_record(whole)
        for at in range(len(whole)):
            bad = bytearray(whole)
            bad[at] ^= 1
            with self.assertRaises(KdError, msg=at):
                decode_record(bytes(bad))
        for n in range(len(whole)):
            with self.assertRaises(KdError, msg=n):
                decode_record(whole[:n])


class Varints(unittest.TestCase):
    def test_numbers_come_back_in_their_shortest_form(self):
        rng = random.Random(7)
        for n in (1, 5, 7, 8, 9, 400):
            numbers = [rng.getrandbits(rng.randint(0, 32)) for _ in range(n)] + [0, 127, 128, 16383, 16384, 2 ** 32 - 1]
            data = cursor.varints(numbers)
            expected = b"".join(bytes([v >> s & 127 | (128 if v >> s + 7 else 0) for s in range(0, 35, 7) if not s or v >> s])
                                for v in numbers)
            self.assertEqual(data, expected)
            c = cursor.Cursor(data + b"x", "test")
            self.assertEqual(c.varints(len(numbers)).tolist(), numbers)
            self.assertEqual(c.take(1), b"x")
        for bad in (b"", b"\x80", b"\x80\x00", b"\xff\xff\xff\xff\x10", b"\x80\x80\x80\x80\x80\x01"):
            with self.assertRaises(KdError, msg=bad):
                cursor.Cursor(bad, "test").varint()


if __name__ == "__main__":
    support.main()
