# SPDX-License-Identifier: Apache-2.0
"""The records of the suite: good ones of every signal, and bad ones that differ from a good one in one thing, checksums mended."""
import random
import struct

import kdserved_bytes as kd

TEACHER = bytes(range(32))
INF = float("inf")
V = 60


def random_row(rng, q, i, vocab_size=V):
    kept = list(q.keep or range(vocab_size))
    maximum = rng.randrange(-8, 64) / 4
    below = lambda: maximum - rng.randrange(64) / 8
    row = {"max_logit": maximum, "lse": [maximum / t + 1 for t in q.temperatures], "own": below(), "entropy": rng.random() * 4,
           "max_prob": rng.random(), "argmax": rng.choice(kept), "sum_squares": rng.random(), "tail": -rng.random()}
    top = rng.sample(kept, rng.randint(1, q.top_k) if q.top_mass else q.top_k)
    row["top"] = {j: maximum if n == 0 else below() for n, j in enumerate(top)}
    if q.dense:
        row["dense"] = [maximum] + [below() for _ in kept[1:]]
        rng.shuffle(row["dense"])
    if q.gather is not None:
        row["gathered"] = [below() for _ in q.gather[i if len(q.gather) > 1 else 0]]
    if q.draws:
        ids = [j for j in kept if not (q.draws.get("tail") and j in top)]
        ids = sorted(rng.sample(ids, min(len(ids), rng.randint(1, q.draws["n"]))))
        counts = [1] * len(ids)
        for _ in range(q.draws["n"] - len(ids) if ids else 0):
            counts[rng.randrange(len(ids))] += 1
        row["draws"] = [(j, c, rng.random() - .5) for j, c in zip(ids, counts)]
        if not ids:
            row["tail"] = -INF
    return row


def make(seed, n_tokens=4, bad_row=None, vocab_size=V, **query):
    rng = random.Random(seed)
    tokens = [rng.randrange(vocab_size) for _ in range(n_tokens)]
    q = kd.Query(**query).canonical(n_tokens)
    rows = [None if i == bad_row else random_row(rng, q, i, vocab_size) for i in range(q.last - q.first + 1)]
    vectors = [[[rng.randrange(-64, 64) / 16 for _ in range(3)]] if q.pooling else
               [r and [rng.randrange(-64, 64) / 16 for _ in range(3)] for r in rows] for _ in q.features]
    return kd.Record(TEACHER, vocab_size, tokens, q, rows, [None if i % 3 == 2 else -rng.random() * 9 for i in range(len(q.spans))],
                     vectors, [3] * len(q.features))


KEEP = list(range(0, 60, 3)) + [1, 2]
DRAWS = {"n": 9, "seed": 77}
EVERYTHING = dict(top_k=4, top_mass=.5, dense=True, temperatures=[.5, 2], own=True, entropy=True, max_prob=True, argmax=True,
                  sum_squares=True, tail=True, gather=[[0, 3, 3], [], [57], [1, 2]], draws=dict(DRAWS, tau=2, tail=True), keep=KEEP,
                  spans=[(1, 4), (2, 3), (1, 2)], features=[(kd.HIDDEN, 2), (kd.FINAL, 0), (kd.Q, 0), (kd.K, 1), (kd.V, 1)])


def good_records():
    """(name, record)"""
    yield "manual-1", kd.first_record()
    yield "manual-2", kd.second_record()
    for name, v in (("f32", kd.F32), ("f16", kd.F16), ("u8", kd.U8)):
        yield "top-" + name, make(1, top_k=5, values=v)
        yield "top-one-" + name, make(2, top_k=1, values=v, bad_row=1)
        yield "top-mass-" + name, make(3, top_k=7, top_mass=.9, values=v, bad_row=0)
        yield "top-all-" + name, make(4, top_k=V, values=v)
        yield "dense-" + name, make(5, dense=True, values=v, bad_row=2)
        yield "gather-one-list-" + name, make(6, gather=[[9, 9, 0, 59]], values=v, bad_row=3)
        yield "gather-lists-" + name, make(7, gather=[[9, 9], [], [3], []], values=v)
        yield "keep-" + name, make(8, top_k=5, dense=True, keep=KEEP, own=True, argmax=True, gather=[[3, 6]], values=v)
        yield "everything-" + name, make(9, values=v, bad_row=2, **EVERYTHING)
    yield "gather-nothing", make(10, gather=[[]])
    for name in ("own", "entropy", "max_prob", "argmax", "sum_squares"):
        yield name.replace("_", "-"), make(11, bad_row=1, **{name: True})
    yield "own-in-the-middle", make(12, own=True, first=1, last=2)
    yield "temperatures", make(13, temperatures=[.0001, 1e6, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
    yield "tail", make(14, top_k=3, tail=True)
    for tau in (1, .01, 100):
        yield "draws-tau-%g" % tau, make(15, draws=dict(DRAWS, tau=tau), bad_row=0)
    yield "draws-one", make(16, draws={"n": 1})
    yield "draws-many", make(17, draws={"n": 1000, "seed": (1 << 64) - 1})
    yield "draws-outside-top-k", make(18, top_k=3, draws=dict(DRAWS, tail=True))
    yield "draws-with-nothing-outside", make(19, top_k=3, keep=[4, 5, 6], draws=dict(DRAWS, tail=True))
    yield "spans-alone", make(20, n_tokens=30, spans=[(1, 30), (5, 6), (1, 2), (1, 30)])
    yield "features-alone", make(21, features=[(kd.HIDDEN, 0), (kd.V, 1)], bad_row=1, feature_values=kd.F32)
    yield "features-f16", make(22, features=[(kd.FINAL, 0)], feature_values=kd.F16)
    yield "features-bf16", make(23, features=[(kd.FINAL, 0)], feature_values=kd.BF16)
    for v in (kd.F32, kd.F16, kd.BF16):
        yield "features-pooled-%d" % v, make(24, features=[(kd.HIDDEN, 1)], pooling=1 + v % 2, feature_values=v)
        absent = make(25, features=[(kd.Q, 1), (kd.K, 0)], pooling=2, feature_values=v)
        absent.features[0] = [None]
        yield "features-pooled-absent-%d" % v, absent
    yield "no-row-is-finite", kd.Record(TEACHER, V, [1, 2], kd.Query(top_k=3, top_mass=.5, own=True, draws=DRAWS), [None, None])
    yield "one-token", make(26, n_tokens=1, top_k=2, own=True)
    yield "vocabulary-of-one", make(27, vocab_size=1, top_k=1, dense=True, draws=DRAWS)
    large = make(28, top_k=2)
    large.vocab_size = 1 << 24
    large.rows[0]["top"] = {(1 << 24) - 1: large.rows[0]["max_logit"], 0: large.rows[0]["max_logit"]}
    yield "largest-vocabulary", large
    ties = make(29, top_k=4)
    for row in ties.rows:
        row["top"] = {i: row["max_logit"] for i in (40, 7, 59, 0)}
    yield "ties-go-to-the-lower-id", ties
    for i in range(12):
        rng = random.Random(1000 + i)
        some = {k: v for k, v in EVERYTHING.items() if rng.random() < .5}
        if "top_k" not in some:
            some = {k: v for k, v in some.items() if k not in ("top_mass", "tail", "draws")}
        if "keep" in some and len(some) == 1:
            some["own"] = True
        yield "random-%02d" % i, make(i, values=i % 3, feature_values=i // 3 % 3, bad_row=i % 5, **some)


def section(parts, tag, change):
    """The sections with one changed by a function of its bytes."""
    return [(t, change(d) if t == tag else d) for t, d in parts["sections"]]


def put(at, data):
    return lambda d: d[:at] + data + d[at + len(data):]


def u32(v):
    return struct.pack("<I", v)


def bad_headers():
    """(name, code, bytes): nothing but the framing of a record is wrong."""
    record = make(1, top_k=3, own=True, values=kd.F16)
    p, whole = record.parts(), record.encode()
    yield "empty", "corrupt", b""
    yield "cut-in-the-header", "corrupt", whole[:99]
    yield "cut-by-a-byte", "corrupt", whole[:-1]
    yield "a-byte-too-many", "corrupt", whole + b"\0"
    yield "a-byte-too-many-and-counted", "corrupt", kd.assemble(p, extra=b"\0")
    yield "magic", "corrupt", kd.assemble(p, magic=b"KDRX")
    yield "version-1", "unsupported", kd.assemble(p, version=1)
    yield "version-2", "unsupported", kd.assemble(p, version=2)
    yield "version-4", "unsupported", kd.assemble(p, version=4)
    yield "short-flag", "unsupported", kd.assemble(p, flags=1)
    yield "unknown-flag", "unsupported", kd.assemble(p, flags=2)
    yield "checksum", "corrupt", kd.assemble(p, crc=12345)
    yield "flipped-bit", "corrupt", whole[:-1] + bytes([whole[-1] ^ 1])
    yield "key", "corrupt", kd.assemble(p, key=bytes(32))
    yield "teacher", "corrupt", kd.assemble(p, teacher=bytes(32))
    yield "no-vocabulary", "corrupt", kd.assemble(p, vocab_size=0, mend=True)
    yield "vocabulary-too-large", "corrupt", kd.assemble(p, vocab_size=(1 << 24) + 1, mend=True)
    yield "token-outside", "corrupt", kd.assemble(p, tokens=[1, 2, 3, V], mend=True)
    yield "no-tokens", "corrupt", kd.assemble(p, tokens=[], n_tokens=0, mend=True)
    yield "tokens-beyond-the-end", "corrupt", kd.assemble(p, n_tokens=1 << 30)
    yield "query-beyond-the-end", "corrupt", kd.assemble(p, query_bytes=1 << 30)
    yield "query-with-a-byte-too-many", "corrupt", kd.assemble(p, query=p["query"] + b"\0", mend=True)
    yield "rows", "corrupt", kd.assemble(p, n_rows=3)
    yield "section-count", "corrupt", kd.assemble(p, n_sections=len(p["sections"]) + 1)
    yield "reserved", "corrupt", kd.assemble(p, reserved=1)
    sections = p["sections"]
    yield "section-missing", "corrupt", kd.assemble(p, sections=sections[:-1], n_sections=len(sections))
    yield "section-twice", "corrupt", kd.assemble(p, sections=sections[:1] + sections[:-1])
    yield "sections-out-of-order", "corrupt", kd.assemble(p, sections=[sections[1], sections[0]] + sections[2:])
    yield "section-unknown", "corrupt", kd.assemble(p, sections=sections[:-1] + [(99, sections[-1][1])])
    yield "section-longer", "corrupt", kd.assemble(p, sections=sections[:-1] + [(sections[-1][0], sections[-1][1] + b"\0")])


def bad_questions():
    """(name, code, bytes): the question is wrong, its key right."""
    record = make(2, top_k=3, own=True, temperatures=[1, 2])
    p = record.parts()

    def asks(query):
        return kd.assemble(p, query=query if isinstance(query, bytes) else query.encode(), mend=True)

    def like(**more):
        return kd.Query(**dict(dict(top_k=3, own=True, temperatures=[1, 2], first=0, last=3), **more))
    good = like().encode()
    yield "query-version", "unsupported", asks(b"\1" + good[1:])
    yield "query-values", "unsupported", asks(put(1, b"\3")(good))
    yield "query-reserved", "unsupported", asks(put(3, b"\1")(good))
    yield "query-unknown-signal", "unsupported", asks(put(7, b"\1")(good))
    yield "first-not-resolved", "corrupt", asks(like(first=-4))
    yield "last-beyond", "corrupt", asks(like(last=4))
    yield "temperatures-out-of-order", "corrupt", asks(like(temperatures=[2, 1]))
    yield "temperatures-repeat", "corrupt", asks(like(temperatures=[1, 1]))
    yield "temperatures-missing", "corrupt", asks(like(temperatures=[]))
    yield "temperature-zero", "corrupt", asks(like(temperatures=[0, 1]))
    yield "too-many-temperatures", "corrupt", asks(put(2, b"\x11")(good) + bytes(4 * 15))
    yield "top-k-beyond-the-vocabulary", "corrupt", asks(like(top_k=V + 1))
    yield "top-mass-without-top-k", "corrupt", asks(like(top_k=0, top_mass=.5))
    yield "top-mass-above-one", "corrupt", asks(like(top_mass=1.5))
    yield "top-mass-zero", "corrupt", asks(put(4, u32(kd.OWN | kd.TOP_MASS))(good) + bytes(4))
    yield "top-mass-nan", "corrupt", asks(like(top_mass=kd.NAN))
    yield "tail-without-top-k", "corrupt", asks(like(top_k=0, tail=True))
    yield "gather-outside", "corrupt", asks(like(gather=[[V]]))
    yield "gather-for-two-of-four-rows", "corrupt", asks(like(gather=[[1], [2]]))
    yield "gather-of-no-lists", "corrupt", asks(like(gather=[]))
    yield "gather-not-in-keep", "corrupt", asks(like(gather=[[1]], keep=[2, 3, 4]))
    long_form = put(4, u32(kd.OWN | kd.GATHER))(good) + b"\1\1\x85\0"
    yield "number-in-a-longer-form", "corrupt", asks(long_form)
    yield "number-beyond-32-bits", "corrupt", asks(long_form[:-2] + b"\xff\xff\xff\xff\x1f")
    yield "keep-out-of-order", "corrupt", asks(like(keep=[5, 4, 3]))
    yield "keep-repeats", "corrupt", asks(like(keep=[3, 4, 4]))
    yield "keep-outside", "corrupt", asks(like(keep=[3, 4, V]))
    yield "keep-smaller-than-top-k", "corrupt", asks(like(keep=[3, 4]))
    yield "draws-of-none", "corrupt", asks(like(draws={"n": 0}))
    yield "draws-tau", "corrupt", asks(like(draws={"n": 1, "tau": 1000}))
    yield "draws-tail-without-its-signal", "corrupt", asks(like(draws={"n": 1, "tail": True}))
    yield "span-from-token-0", "corrupt", asks(like(spans=[(0, 2)]))
    yield "span-empty", "corrupt", asks(like(spans=[(2, 2)]))
    yield "span-beyond", "corrupt", asks(like(spans=[(1, 5)]))
    yield "feature-kind", "unsupported", asks(like(features=[(5, 0)]))
    yield "feature-final-with-a-layer", "corrupt", asks(like(features=[(kd.FINAL, 1)]))
    yield "feature-pooling", "unsupported", asks(like(features=[(0, 0)], pooling=3))
    yield "nothing-is-asked", "corrupt", asks(kd.Query(first=0, last=3))
    yield "only-keep", "corrupt", asks(kd.Query(first=0, last=3, keep=[1]))
    yield "values-of-no-logits", "corrupt", asks(kd.Query(first=0, last=3, own=True, temperatures=[1], values=kd.F16))
    yield "rows-of-spans-alone", "corrupt", asks(kd.Query(first=1, last=3, spans=[(1, 2)]))


def bad_sections():
    """(name, code, bytes): the answer is wrong."""
    def wrong(name, tag, change, record):
        p = record.parts()
        return name, "corrupt", kd.assemble(p, sections=section(p, tag, change))
    scalars = make(3, bad_row=1, top_k=2, own=True, entropy=True, max_prob=True, argmax=True, sum_squares=True, tail=True)
    nan, inf, one = kd.f32_bytes(kd.NAN), struct.pack("<f", INF), kd.f32_bytes(1)
    yield wrong("status-unknown", 1, put(0, b"\2"), scalars)
    yield wrong("status-ok-of-an-empty-row", 1, put(1, b"\0"), scalars)
    yield wrong("status-not-finite-of-a-full-row", 1, put(0, b"\1"), scalars)
    yield wrong("max-logit-nan", 2, put(0, nan), scalars)
    yield wrong("max-logit-where-no-numbers-are", 2, put(4, one), scalars)
    yield wrong("max-logit-is-not-the-first", 2, put(0, one), scalars)
    yield wrong("lse-infinite", 3, put(0, inf), scalars)
    yield wrong("own-nan-though-a-token-follows", 8, put(0, nan), scalars)
    yield wrong("own-though-none-follows", 8, put(12, one), scalars)
    yield wrong("own-another-nan", 8, put(12, u32(0x7fc00001)), scalars)
    yield wrong("entropy-nan", 9, put(0, nan), scalars)
    yield wrong("max-prob-above-one", 10, put(0, kd.f32_bytes(1.5)), scalars)
    yield wrong("argmax-outside", 11, put(0, u32(V)), scalars)
    yield wrong("argmax-where-no-numbers-are", 11, put(4, u32(1)), scalars)
    yield wrong("sum-of-squares-negative", 12, put(0, kd.f32_bytes(-1)), scalars)
    yield wrong("tail-above-zero", 13, put(0, kd.f32_bytes(.5)), scalars)
    yield wrong("tail-nan", 13, put(0, nan), scalars)
    f32, f16, u8 = (make(4, bad_row=1, top_k=5, values=v) for v in (kd.F32, kd.F16, kd.U8))
    yield wrong("ids-parameter", 5, put(0, b"\x18"), f32)
    yield wrong("ids-leave-the-vocabulary", 5, put(1, b"\xff\xff\xff\xff"), f32)
    yield wrong("ids-end-early", 5, lambda d: d[:-1], f32)
    yield wrong("ids-with-a-byte-too-many", 5, lambda d: d + b"\0", f32)
    yield wrong("ids-empty-section", 5, lambda d: b"", f32)
    yield wrong("values-where-no-numbers-are", 6, put(20, one), f32)
    yield wrong("values-above-the-maximum", 6, put(0, kd.f32_bytes(1000)), f32)
    yield wrong("values-infinite", 6, put(0, struct.pack("<f", -INF)), f32)
    yield wrong("f16-above-zero", 6, put(0, struct.pack("<e", 1)), f16)
    yield wrong("f16-infinite", 6, put(0, struct.pack("<e", -INF)), f16)
    yield wrong("f16-without-the-maximum", 6, lambda d: struct.pack("<5e", *[-1] * 5) + d[10:], f16)
    yield wrong("u8-range-negative", 6, put(0, kd.f32_bytes(-1)), u8)
    yield wrong("u8-range-infinite", 6, put(0, inf), u8)
    yield wrong("u8-range-of-no-numbers", 6, put(4, one), u8)
    yield wrong("u8-codes-without-a-range", 6, put(0, bytes(4)), u8)
    yield wrong("u8-no-code-of-255", 6, lambda d: d[:16] + bytes([0, 1, 2, 3, 4]) + d[21:], u8)
    yield wrong("u8-no-code-of-0", 6, lambda d: d[:16] + bytes([255, 1, 2, 3, 4]) + d[21:], u8)
    mass = make(5, bad_row=1, top_k=3, top_mass=.5)
    yield wrong("count-above-top-k", 4, lambda d: b"\0\xff\xff", mass)
    yield wrong("count-parameter", 4, put(0, b"\x18"), mass)
    yield wrong("counts-with-bits-left", 4, lambda d: d + b"\0", mass)
    yield wrong("values-for-other-counts", 6, lambda d: d + bytes(4), mass)
    dense = make(6, dense=True)
    yield wrong("dense-without-the-maximum", 7, lambda d: kd.f32_bytes(-100) * (len(d) // 4), dense)
    yield wrong("dense-nan", 7, put(0, nan), dense)
    gather = make(7, bad_row=0, gather=[[1, 2]])
    yield wrong("gathered-above-the-maximum", 14, put(8, kd.f32_bytes(1000)), gather)
    yield wrong("gathered-where-no-numbers-are", 14, put(0, one), gather)
    draws = make(8, draws=dict(DRAWS, tau=2))
    yield wrong("draws-parameter", 15, put(0, b"\x18"), draws)
    yield wrong("draws-leave-the-vocabulary", 15, put(1, b"\xff\xff\xff\xff"), draws)
    yield wrong("draws-end-early", 15, lambda d: d[:-1], draws)
    yield wrong("draws-with-a-byte-too-many", 15, lambda d: d + b"\0", draws)
    yield wrong("ratios-infinite", 16, put(0, inf), draws)
    yield wrong("ratios-too-few", 16, lambda d: d[:-4], draws)
    top_drawn = make(9, top_k=3, draws=dict(DRAWS, tail=True))
    for row in top_drawn.rows:
        row["draws"] = [(min(row["top"]), DRAWS["n"])]
    yield "an-id-of-the-top-k-is-drawn-from-outside-it", "corrupt", top_drawn.encode()
    tail_drawn = make(10, top_k=3, draws=dict(DRAWS, tail=True))
    tail_drawn.rows[0]["tail"] = -INF
    yield "draws-though-nothing-is-outside", "corrupt", tail_drawn.encode()
    too_many = make(11, draws=DRAWS)
    too_many.rows[3]["draws"] = [(5, DRAWS["n"] + 1)]
    yield "counts-above-n", "corrupt", too_many.encode()
    spans = make(12, spans=[(1, 2)])
    yield wrong("span-infinite", 17, put(0, inf), spans)
    yield wrong("span-another-nan", 17, put(0, u32(0xffc00000)), spans)
    features, pooled = make(13, bad_row=1, features=[(0, 0)]), make(14, features=[(0, 0)], pooling=1)
    yield wrong("feature-of-no-width", 18, lambda d: bytes(4), features)
    yield wrong("feature-of-another-width", 18, put(0, u32(4)), features)
    yield wrong("feature-infinite", 18, put(4, inf), features)
    yield wrong("feature-where-no-numbers-are", 18, put(16, one), features)
    yield wrong("feature-pooled-partly-absent", 18, put(4, nan), pooled)
    yield wrong("feature-pooled-another-nan", 18, lambda d: d[:4] + u32(0x7fc00001) * 3, pooled)


def record_cases(describe):
    goods = dict(good_records())
    for name, record in goods.items():
        yield name, "record", "must accept", record.encode(), list(describe(record))
    for bad in (bad_headers, bad_questions, bad_sections):
        for name, code, data in bad():
            yield "bad-" + name, "record", "must refuse " + code, data, []
    for name in ("manual-1", "manual-2", "spans-alone", "everything-u8", "no-row-is-finite"):
        yield "short-" + name, "short", "must accept", goods[name].shorten(), ["of " + name]
    short = goods["spans-alone"].shorten()
    yield "bad-short-of-another", "short", "must refuse corrupt", goods["manual-1"].shorten(), ["of manual-2"]
    yield "bad-short-cut", "short", "must refuse corrupt", short[:-1], ["of spans-alone"]
    yield "bad-short-flipped", "short", "must refuse corrupt", short[:-1] + bytes([short[-1] ^ 1]), ["of spans-alone"]
    yield "bad-short-without-flag", "short", "must refuse corrupt", short[:6] + b"\0\0" + short[8:], ["of spans-alone"]
    yield "bad-short-whole-record", "short", "must refuse corrupt", goods["spans-alone"].encode(), ["of spans-alone"]
