# SPDX-License-Identifier: Apache-2.0
"""An encoder of kdserved's questions, records and frames, written from kdserved-record.5 and kdserved-protocol.7 alone: it shares
nothing with the C code, so that bytes on which both agree are the manual's. Only the standard library; slow and plain on purpose."""
import hashlib
import math
import struct

OWN, ENTROPY, MAX_PROB, ARGMAX, SUM_SQUARES, TAIL, DENSE, TOP_MASS, GATHER, DRAWS, KEEP, SPANS, FEATURES = (1 << i for i in range(13))
F32, F16, U8 = 0, 1, 2
BF16 = 2
HIDDEN, FINAL, Q, K, V = range(5)
NAN = struct.unpack("<f", struct.pack("<I", 0x7fc00000))[0]
NOT_FINITE = 1


def _table():
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82f63b78 if n & 1 else 0)
        table.append(n)
    return table


CRC_TABLE = _table()


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 255]
    return crc ^ 0xffffffff


def f32(v):
    return struct.unpack("<f", struct.pack("<f", v))[0]


def f32_bytes(v):
    return struct.pack("<I", 0x7fc00000) if v != v else struct.pack("<f", v)


def bf16_bytes(v):
    if v != v:
        return b"\xc0\x7f"
    bits = struct.unpack("<I", struct.pack("<f", v))[0]
    bits += 0x7fff + (bits >> 16 & 1)
    return struct.pack("<H", bits >> 16)


def f16_bytes(v):
    return b"\x00\x7e" if v != v else struct.pack("<e", v)


def varint(n):
    out = b""
    while n >= 0x80:
        out += bytes([n & 0x7f | 0x80])
        n >>= 7
    return out + bytes([n])


class Query:
    """A question. `gather` is a list of lists (one, or one per row) or None; `keep` a list of ids or None; `spans` of (begin, end);
    `features` of (kind, layer)."""
    def __init__(self, top_k=0, top_mass=0, dense=False, temperatures=(), own=False, entropy=False, max_prob=False, argmax=False,
                 sum_squares=False, tail=False, first=0, last=-1, values=F32, draws=None, gather=None, keep=None, spans=(), features=(),
                 pooling=0, feature_values=F32):
        self.__dict__.update({k: v for k, v in locals().items() if k != "self"})

    def has_rows(self):
        return bool(self.top_k or self.dense or self.temperatures or self.own or self.entropy or self.max_prob or self.argmax or
                    self.sum_squares or self.tail or self.gather is not None or self.draws)

    def canonical(self, n_tokens):
        """The same question in its one form. Assumes a valid one."""
        q = Query(**{k: v for k, v in self.__dict__.items()})
        q.temperatures = sorted(set(f32(t) for t in q.temperatures)) or ([1.0] if q.has_rows() else [])
        q.first += n_tokens if q.first < 0 else 0
        q.last += n_tokens if q.last < 0 else 0
        if not q.has_rows() and not q.features:
            q.first, q.last = 0, n_tokens - 1
        q.keep = sorted(set(q.keep)) if q.keep else None
        if q.draws and q.draws.get("tail"):
            q.tail = True
        if not q.top_k and not q.dense and q.gather is None:
            q.values = F32
        if not q.features:
            q.pooling, q.feature_values = 0, F32
        return q

    def bits(self):
        flags = [(self.own, OWN), (self.entropy, ENTROPY), (self.max_prob, MAX_PROB), (self.argmax, ARGMAX),
                 (self.sum_squares, SUM_SQUARES), (self.tail, TAIL), (self.dense, DENSE), (self.top_mass, TOP_MASS),
                 (self.gather is not None, GATHER), (self.draws, DRAWS), (self.keep, KEEP), (self.spans, SPANS), (self.features, FEATURES)]
        return sum(bit for asked, bit in flags if asked)

    def encode(self):
        out = struct.pack("<BBBBIIii", 2, self.values, len(self.temperatures), 0, self.bits(), self.top_k, self.first, self.last)
        out += b"".join(map(f32_bytes, self.temperatures))
        if self.top_mass:
            out += f32_bytes(self.top_mass)
        if self.gather is not None:
            out += gather_bytes(self.gather)
        if self.draws:
            d = self.draws
            out += varint(d["n"]) + f32_bytes(d.get("tau", 1)) + struct.pack("<QB", d.get("seed", 0), bool(d.get("tail")))
        if self.keep:
            out += varint(len(self.keep))
            expected = 0
            for i in self.keep:
                out += varint(i - expected & 0xffffffff)
                expected = i + 1
        if self.spans:
            out += spans_bytes(self.spans)
        if self.features:
            out += bytes([len(self.features), self.pooling, self.feature_values])
            out += b"".join(struct.pack("<BH", *f) for f in self.features)
        return out


def gather_bytes(lists):
    return varint(len(lists)) + b"".join(varint(len(x)) for x in lists) + b"".join(varint(i) for x in lists for i in x)


def spans_bytes(spans):
    return varint(len(spans)) + b"".join(varint(b) + varint(e) for b, e in spans)


def tokens_bytes(tokens):
    return struct.pack("<%dI" % len(tokens), *tokens)


def key_of(teacher, tokens, query):
    sequence = hashlib.sha256(b"kdserved sequence 1\n" + tokens_bytes(tokens)).digest()
    return hashlib.sha256(b"kdserved key 1\n" + teacher + sequence + query.encode()).digest()


class Bits:
    """A stream of bits, each byte from its least significant bit."""
    def __init__(self):
        self.bits = []

    def put(self, value, count):
        self.bits += [value >> i & 1 for i in range(count)]

    def golomb(self, number, parameter):
        total = number + (1 << parameter)
        length = total.bit_length() - 1
        self.put((1 << (length - parameter)) - 1, length - parameter + 1)
        self.put(total, length)

    def count(self, c):
        self.golomb(c - 1, 0)

    def bytes(self):
        out = bytearray((len(self.bits) + 7) // 8)
        for i, b in enumerate(self.bits):
            out[i >> 3] |= b << (i & 7)
        return bytes(out)


def best_parameter(numbers):
    return min(range(24), key=lambda b: sum(2 * (n + (1 << b)).bit_length() - 1 - b for n in numbers))


def golomb_section(numbers):
    parameter = best_parameter(numbers)
    bits = Bits()
    for n in numbers:
        bits.golomb(n, parameter)
    return bytes([parameter]) + bits.bytes()


def gaps(positions):
    expected = 0
    for p in positions:
        yield p - expected
        expected = p + 1


def values_section(values, rows):
    """rows: (maximum, values) of each row; maximum None and zeros where the row has no numbers."""
    if values == F32:
        return b"".join(f32_bytes(v) for _, row in rows for v in row)
    if values == F16:
        return b"".join(f16_bytes(f32(v - m) if m is not None else 0) for m, row in rows for v in row)
    ranges, codes = b"", b""
    for m, row in rows:
        span = f32(m - min([m] + list(row))) if m is not None else 0
        ranges += f32_bytes(span)
        codes += bytes(round((m - v) * (255 / span)) if span else 0 for v in row)    # Python rounds halves to even
    return ranges + codes


def read_values(values, maximum, row):
    """What comes back of a row's logits."""
    if values == F32:
        return [f32(v) for v in row]
    if values == F16:
        return [f32(maximum + struct.unpack("<e", f16_bytes(f32(v - maximum)))[0]) for v in row]
    span = f32(maximum - min([maximum] + list(row)))
    return [f32(maximum - (round((maximum - v) * (255 / span)) if span else 0) * (span / 255)) for v in row]


def assemble(parts, mend=False, **changes):
    """A record of parts, with changes: perhaps one that nobody should accept, but with its checksum right unless `crc` is given; with
    `mend` the key is right too, for a question that is wrong in itself."""
    p = dict(parts, **changes)
    if mend:
        sequence = hashlib.sha256(b"kdserved sequence 1\n" + tokens_bytes(p["tokens"])).digest()
        p["key"] = hashlib.sha256(b"kdserved key 1\n" + p["teacher"] + sequence + p["query"]).digest()

    def count(name, value):
        return value if p[name] is None else p[name]
    tail = p["teacher"] + p["key"]
    tail += struct.pack("<IIIIHH", p["vocab_size"], count("n_tokens", len(p["tokens"])), p["n_rows"], count("query_bytes", len(p["query"])),
                        count("n_sections", len(p["sections"])), p["reserved"])
    tail += p["query"] + tokens_bytes(p["tokens"])
    for tag, data in p["sections"]:
        tail += struct.pack("<HHI", tag, 0, len(data)) + data
    tail += p["extra"]
    head = struct.pack("<4sHHI", p["magic"], p["version"], p["flags"], count("n_bytes", 16 + len(tail)))
    return head + struct.pack("<I", count("crc", crc32c(head + tail))) + tail


class Record:
    """Rows are dictionaries, None for a row that is not finite: max_logit, lse, top (id -> logit), dense, own, entropy, max_prob, argmax,
    sum_squares, tail, gathered, draws ((id, count) or (id, count, log ratio)). spans: sums, None = absent. features: lists of vectors
    (None = a row without numbers, or a pooled one that is absent), all of one width."""
    def __init__(self, teacher, vocab_size, tokens, query, rows=(), spans=(), features=(), widths=()):
        self.teacher, self.vocab_size, self.tokens, self.query = teacher, vocab_size, tokens, query.canonical(len(tokens))
        self.rows, self.spans, self.features, self.widths = list(rows), spans, features, widths

    def position(self, i):
        return self.query.keep.index(i) if self.query.keep else i

    def column(self, name):
        return b"".join(f32_bytes(row[name]) if row else b"\0\0\0\0" for row in self.rows)

    def values(self, name, zeros):
        """zeros(i): how many values row i has where it holds no numbers."""
        rows = [(row["max_logit"], row[name]) if row else (None, [0.0] * zeros(i)) for i, row in enumerate(self.rows)]
        return values_section(self.query.values, rows)

    def own_section(self):
        out = b""
        for i, row in enumerate(self.rows):
            follows = self.query.first + i + 1 < len(self.tokens)
            kept = follows and (not self.query.keep or self.tokens[self.query.first + i + 1] in self.query.keep)
            out += (f32_bytes(row["own"]) if kept else f32_bytes(NAN)) if row else b"\0\0\0\0"
        return out

    def draw_section(self):
        bits, parameter = Bits(), best_parameter([g for row in self.rows if row for g in gaps(self.position(d[0]) for d in row["draws"])])
        for row in filter(None, self.rows):
            for gap, d in zip(gaps(self.position(d[0]) for d in row["draws"]), row["draws"]):
                bits.golomb(gap, parameter)
                bits.count(d[1])
        return bytes([parameter]) + bits.bytes()

    def feature_section(self, i):
        write = (f32_bytes, f16_bytes, bf16_bytes)[self.query.feature_values]
        out = struct.pack("<I", self.widths[i])
        for vector in self.features[i]:
            missing = NAN if self.query.pooling else 0.0
            out += b"".join(map(write, vector if vector else [missing] * self.widths[i]))
        return out

    def sections(self):
        q, rows = self.query, self.rows
        good = [row for row in rows if row]
        if q.has_rows() or (q.features and not q.pooling):
            yield 1, bytes(0 if row is not None else NOT_FINITE for row in rows)
        if q.has_rows():
            yield 2, self.column("max_logit")
            yield 3, b"".join(b"".join(map(f32_bytes, row["lse"])) if row else bytes(4 * len(q.temperatures)) for row in rows)
        if q.top_k:
            tops = [sorted(row["top"].items()) for row in good]
            if q.top_mass:
                yield 4, golomb_section([len(t) - 1 for t in tops])
            yield 5, golomb_section([g for t in tops for g in gaps(self.position(i) for i, _ in t)])
            for row in good:
                row["top_values"] = [v for _, v in sorted(row["top"].items())]
            yield 6, self.values("top_values", lambda i: 0 if q.top_mass else q.top_k)
        if q.dense:
            yield 7, self.values("dense", lambda i: len(q.keep or range(self.vocab_size)))
        if q.own:
            yield 8, self.own_section()
        if q.entropy:
            yield 9, self.column("entropy")
        if q.max_prob:
            yield 10, self.column("max_prob")
        if q.argmax:
            yield 11, b"".join(struct.pack("<I", row["argmax"] if row else 0) for row in rows)
        if q.sum_squares:
            yield 12, self.column("sum_squares")
        if q.tail:
            yield 13, self.column("tail")
        if q.gather is not None:
            yield 14, self.values("gathered", lambda i: len(q.gather[i if len(q.gather) > 1 else 0]))
        if q.draws:
            yield 15, self.draw_section()
            if q.draws.get("tau", 1) != 1:
                yield 16, b"".join(f32_bytes(d[2]) for row in good for d in row["draws"])
        if q.spans:
            yield 17, b"".join(f32_bytes(NAN if s is None else s) for s in self.spans)
        for i in range(len(q.features)):
            yield 18, self.feature_section(i)

    def encode(self, **changes):
        return assemble(self.parts(), **changes)

    def parts(self):
        """What the bytes are made of; assemble() takes changes to any of it."""
        return dict(teacher=self.teacher, vocab_size=self.vocab_size, tokens=self.tokens, n_rows=self.query.last - self.query.first + 1,
                    query=self.query.encode(), sections=list(self.sections()), key=key_of(self.teacher, self.tokens, self.query),
                    magic=b"KDRC", version=3, flags=0, extra=b"", n_bytes=None, crc=None, n_tokens=None, query_bytes=None, n_sections=None,
                    reserved=0)

    def decoded(self):
        """What a reader finds: name -> list. Floats are already rounded by the question's format; rows without numbers are zeros, in ids,
        logits and dense they have no entries."""
        q, good = self.query, [row for row in self.rows if row]
        out, zero = {}, lambda n: [0.0] * n
        if q.has_rows() or (q.features and not q.pooling):
            out["status"] = [0 if row else NOT_FINITE for row in self.rows]
        if q.has_rows():
            out["max_logit"] = [row["max_logit"] if row else 0.0 for row in self.rows]
            out["lse"] = [v for row in self.rows for v in (row["lse"] if row else zero(len(q.temperatures)))]
        if q.top_k:
            tops = [sorted(zip(row["top"], read_values(q.values, row["max_logit"], list(row["top"].values()))), key=lambda e: (-e[1], e[0]))
                    for row in good]
            out["n_top"] = [len(row["top"]) if row else 0 for row in self.rows]
            out["ids"], out["logits"] = [i for t in tops for i, _ in t], [v for t in tops for _, v in t]
        if q.dense:
            out["dense"] = [v for row in good for v in read_values(q.values, row["max_logit"], row["dense"])]
        if q.own:
            out["own_logit"] = list(struct.unpack("<%df" % len(self.rows), self.own_section()))
        for name in ("entropy", "max_prob", "argmax", "sum_squares", "tail"):
            if getattr(q, name):
                out[name] = [row[name] if row else 0 if name == "argmax" else 0.0 for row in self.rows]
        if q.gather is not None:
            out["gathered"] = [v for i, row in enumerate(self.rows) for v in
                               (read_values(q.values, row["max_logit"], row["gathered"]) if row else
                                zero(len(q.gather[i if len(q.gather) > 1 else 0])))]
        if q.draws:
            draws = [row["draws"] if row else [] for row in self.rows]
            out["draw_starts"] = [sum(map(len, draws[:i])) for i in range(len(draws) + 1)]
            out["draw_ids"], out["draw_counts"] = [d[0] for row in draws for d in row], [d[1] for row in draws for d in row]
            if q.draws.get("tau", 1) != 1:
                out["draw_log_ratios"] = [f32(d[2]) for row in draws for d in row]
        if q.spans:
            out["span_sums"] = [NAN if v is None else v for v in self.spans]
        rounded = (f32, lambda v: struct.unpack("<e", struct.pack("<e", v))[0],
                   lambda v: struct.unpack("<f", b"\0\0" + bf16_bytes(v))[0])[q.feature_values]
        for i, vectors in enumerate(self.features):
            out["feature %d" % i] = [v for x in vectors for v in (map(rounded, x) if x else [NAN if q.pooling else 0.0] * self.widths[i])]
        return out

    def shorten(self):
        """The short form: no teacher, query or tokens; flag 1; length and checksum are those of the whole."""
        whole = self.encode()
        sections_at = 100 + len(self.query.encode()) + 4 * len(self.tokens)
        return whole[:6] + b"\1\0" + whole[8:16] + whole[48:100] + whole[sections_at:]


# ---- frames (kdserved-protocol.7)

HELLO, WELCOME, SCORE, ANSWER, DONE, ERROR, PING, PONG, GOAWAY, CALL, REPLY, CANCEL, GENERATE, TOKENS = range(1, 15)
DURABLE, NO_STORE, SHORT, PARTS = 1, 2, 4, 8
PROTOCOL_VERSION = 2


def frame(kind, request_id=0, body=b"", version=PROTOCOL_VERSION, flags=0, magic=b"KDDS"):
    head = magic + struct.pack("<BBHQIII", version, kind, flags, request_id, len(body), 0, crc32c(body))
    return head + struct.pack("<I", crc32c(head)) + body


def hello_body(token=b"", teacher=bytes(32), versions=(PROTOCOL_VERSION, PROTOCOL_VERSION)):
    return struct.pack("<HH", *versions) + teacher + struct.pack("<H", len(token)) + token


LIMITS = ("max_tokens", "max_top_k", "max_gather", "max_draws", "max_spans", "vocab_size", "n_layers", "width", "q_width", "kv_width",
          "max_sequences", "max_body", "credits")


def welcome_body(teacher, **limits):
    return struct.pack("<HH", PROTOCOL_VERSION, 0) + teacher + struct.pack("<13I", *(limits[name] for name in LIMITS))


def part_bytes(rows=None, gather=None, spans=None):
    out = bytes([(1 if rows else 0) | (2 if gather is not None else 0) | (4 if spans else 0)])
    out += struct.pack("<ii", *rows) if rows else b""
    out += gather_bytes(gather) if gather is not None else b""
    return out + (spans_bytes(spans) if spans else b"")


def score_body(query, sequences, flags=0, deadline_ms=0, parts=None):
    """parts: of each sequence a dictionary of its own rows, gather, spans."""
    q = query.encode()
    body = struct.pack("<IIII", flags | (PARTS if parts else 0), deadline_ms, len(q), len(sequences)) + q
    body += tokens_bytes(list(map(len, sequences))) + b"".join(map(tokens_bytes, sequences))
    return body + b"".join(part_bytes(**p) for p in parts or ())


def answer_body(index, record, flags=0):
    return struct.pack("<II", index, flags) + record


def error_body(index, code, field, message):
    return struct.pack("<IBBH", index, len(code), len(field), len(message)) + code.encode() + field.encode() + message.encode()


def call_body(method, path, body=b""):
    return struct.pack("<BBHI", len(method), 0, len(path), len(body)) + method.encode() + path.encode() + body


def reply_body(status, body=b""):
    return struct.pack("<II", status, len(body)) + body


IGNORE_EOS, STREAM, SEED = 1, 2, 4
LAST = 1
NO_ID = WHOLE = 0xffffffff


def generate_body(prompts, n=1, first_sample=0, max_tokens=16, rows=0, temperature=1, top_k=0, top_p=1, min_p=0, typical_p=1, seed=None,
                  stop_ids=(), stops=(), forced=(), flags=0, deadline_ms=0):
    body = struct.pack("<6I", flags | (SEED if seed is not None else 0), deadline_ms, n, first_sample, max_tokens, rows)
    body += struct.pack("<fIfffQ", temperature, top_k, top_p, min_p, typical_p, seed or 0)
    body += struct.pack("<4I", len(stop_ids), len(stops), len(forced), len(prompts)) + tokens_bytes(stop_ids)
    body += b"".join(struct.pack("<H", len(s)) + s for s in stops) + tokens_bytes(forced)
    return body + tokens_bytes(list(map(len, prompts))) + b"".join(map(tokens_bytes, prompts))


def tokens_frame_body(index, first, tokens, logprobs, sampled, lse, text=b"", rows=(), end=None):
    """rows: of each token a list of (id, logit). end: (finish, stop id, stop, reused, seed) of the last."""
    k = len(rows[0]) if rows else 0
    floats = lambda values: struct.pack("<%df" % len(values), *values)
    body = struct.pack("<6I", index, LAST if end else 0, first, len(tokens), k, len(text)) + tokens_bytes(tokens)
    body += floats(logprobs) + floats(sampled) + floats(lse)
    body += tokens_bytes([i for row in rows for i, _ in row]) + floats([z for row in rows for _, z in row]) + text
    return body + (struct.pack("<4IQ", *end) if end else b"")


# ---- the worked examples of the manual

EXAMPLE_TEACHER = bytes(range(32))


def first_record():
    q = Query(top_k=2, own=True, first=1, last=-1, values=F16)
    rows = [{"max_logit": 2, "lse": [2.5], "top": {7: 2.0, 4: 1.0}, "own": 1}, {"max_logit": 1.5, "lse": [2], "top": {0: 1.5, 9: -.5}}]
    return Record(EXAMPLE_TEACHER, 10, [3, 1, 4], q, rows)


def second_record():
    q = Query(first=0, last=-2, values=U8, temperatures=[1, 2], argmax=True, gather=[[200, 5, 5], [299]], draws={"n": 10, "seed": 7},
              spans=[(1, 3)])
    row = {"max_logit": 2, "lse": [2.5, 4], "argmax": 200, "gathered": [2, -.5, -.5], "draws": [(5, 1), (130, 2), (200, 7)]}
    return Record(EXAMPLE_TEACHER, 300, [3, 1, 4], q, [row, None], spans=[None])


def first_example():
    return first_record().encode()


def second_example():
    return second_record().encode()


def hexdump(data, base=0):
    """As the manual prints bytes."""
    for at in range(0, len(data), 16):
        part = data[at:at + 16]
        text = "".join(chr(b) if 32 <= b < 127 and b != 92 else "." for b in part)    # a backslash is not text to troff
        yield "%04x  %-47s  %s" % (base + at, " ".join("%02x" % b for b in part), text)


def c_array(name, data):
    lines = "".join("\t%s,\n" % ", ".join("0x%02x" % b for b in data[at:at + 16]) for at in range(0, len(data), 16))
    return "static const uint8_t %s[] = {\n%s};\n" % (name, lines)


def frame_examples():
    q = Query(top_k=2, own=True, first=1, values=F16)
    spans = Query(temperatures=[1], gather=[[5]])
    parts = [{"spans": [(2, 3)]}, {"rows": (0, 1), "gather": [[7, 300], []]}]
    limits = dict(max_tokens=4096, max_top_k=1024, max_gather=1024, max_draws=1024, max_spans=65536, vocab_size=49152, n_layers=30,
                  width=576, q_width=576, kv_width=192, max_sequences=1024, max_body=1 << 25, credits=64)
    return {
        "ping": frame(PING, 1, b"hello"),
        "hello": frame(HELLO, 0, hello_body(b"s3cret")),
        "welcome": frame(WELCOME, 0, welcome_body(EXAMPLE_TEACHER, **limits)),
        "score": frame(SCORE, 7, score_body(q, [[3, 1, 4]], deadline_ms=5000)),
        "parts": frame(SCORE, 8, score_body(spans, [[3, 1, 4], [1, 5]], SHORT, parts=parts)),
        "error": frame(ERROR, 7, error_body(0, "invalid", "sequences[0].tokens[2]", "id 12 is outside the vocabulary (10)")),
        "call": frame(CALL, 8, call_body("GET", "/v1/model")),
        "generate": frame(GENERATE, 9, generate_body([[3, 1, 4]], n=2, max_tokens=20, rows=1, temperature=.5, top_p=.75, seed=7, stop_ids=[5],
                                                     stops=[b"\n\n"], flags=STREAM)),
        "tokens": frame(TOKENS, 9, tokens_frame_body(1, 19, [5], [-.5], [-.25], [2], b"!", [[(5, 1.5)]], (1, 5, NO_ID, 2, 7))),
    }


if __name__ == "__main__":
    for example in (first_example(), second_example(), *frame_examples().values()):
        print("\n".join(hexdump(example)), end="\n\n")
