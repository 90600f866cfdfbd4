# SPDX-License-Identifier: Apache-2.0
"""Writes tests/fuzz/corpus/record and frame: records of every signal and format, small, from a fixed seed, and frames and bodies, good and
nearly good. Of a file in frame the first byte is the kind of the body that follows; a whole frame begins with its own magic."""
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "conformance"))
import kdserved_bytes as kd

FOLDER = os.path.join(os.path.dirname(__file__), "corpus")


def random_query(rng, n_rows):
    keep = sorted(rng.sample(range(60), 40)) if rng.random() < .3 else None
    kept = keep or range(60)
    lists = rng.choice([1, n_rows])
    draws = {"n": rng.choice([1, 5, 50]), "tau": rng.choice([1, 2]), "seed": rng.getrandbits(64)}
    q = kd.Query(values=rng.randrange(3), keep=keep, first=-n_rows, entropy=rng.random() < .3, max_prob=rng.random() < .3,
                 argmax=rng.random() < .3, sum_squares=rng.random() < .3, own=rng.random() < .5, dense=rng.random() < .2,
                 temperatures=rng.sample([.5, 1, 2], rng.randrange(3)), top_k=rng.choice([0, 1, 4]),
                 gather=[rng.choices(kept, k=rng.randrange(4)) for _ in range(lists)] if rng.random() < .4 else None,
                 draws=draws if rng.random() < .5 else None, spans=[(1, 3), (2, 3)] if rng.random() < .3 else (),
                 features=[(kd.HIDDEN, 2), (kd.V, 0)] if rng.random() < .3 else (), pooling=rng.randrange(3), feature_values=rng.randrange(3))
    if q.top_k:
        q.tail, q.top_mass = rng.random() < .5, rng.choice([0, .5])
        if q.draws:
            q.draws["tail"] = rng.random() < .5
    q.own |= not (q.has_rows() or q.spans or q.features)
    return q


def random_row(rng, q, i):
    kept = list(q.keep or range(60))
    maximum = rng.randrange(-8, 64) / 4
    below = lambda: maximum - rng.randrange(64) / 8
    row = {"max_logit": maximum, "lse": [maximum / t + 1 for t in q.temperatures], "own": below(), "entropy": 1.5, "max_prob": .5,
           "argmax": rng.choice(kept), "sum_squares": .25, "tail": rng.choice([-1.0, -20.0])}
    n_top = rng.randint(1, q.top_k) if q.top_mass else q.top_k
    top = rng.sample(kept, n_top)
    row["top"] = {j: maximum if n == 0 else below() for n, j in enumerate(top)}
    row["dense"] = [maximum] + [below() for _ in kept[1:]]
    if q.gather is not None:
        row["gathered"] = [below() for _ in q.gather[i if len(q.gather) > 1 else 0]]
    if q.draws:
        ids = [j for j in kept if not (q.draws.get("tail") and j in top)]
        ids = sorted(rng.sample(ids, min(len(ids), rng.randint(1, q.draws["n"]))))
        counts = [1] * len(ids)
        for _ in range(q.draws["n"] - len(ids)):
            counts[rng.randrange(len(ids))] += 1
        row["draws"] = [(j, c, -.5) for j, c in zip(ids, counts)]
    return row


def random_record(seed):
    rng = random.Random(seed)
    tokens = [rng.randrange(60) for _ in range(rng.randint(3, 5))]
    n_rows = rng.randint(1, 3)
    q = random_query(rng, n_rows).canonical(len(tokens))
    n_rows = q.last - q.first + 1
    rows = [None if rng.random() < .2 else random_row(rng, q, i) for i in range(n_rows)]
    vectors = [[None if r is None else [.5, -1, 2] for r in rows] if not q.pooling else [rng.choice([None, [1, 2, 3]])] for _ in q.features]
    return kd.Record(rng.randbytes(32), 60, tokens, q, rows, [rng.choice([None, -2.5]) for _ in q.spans], vectors, [3] * len(q.features))


def records():
    yield "manual", kd.first_example()
    yield "manual-2", kd.second_example()
    for i in range(64):
        yield "random-%02d" % i, random_record(i).encode()


def bodies():
    """(name, kind, body)"""
    plain, everything = kd.Query(top_k=2, own=True), random_query(random.Random(5), 2)
    keep = kd.Query(entropy=True, keep=[9, 3, 3, 70000])
    yield "hello", kd.HELLO, kd.hello_body(b"s3cret")
    yield "hello-empty-token", kd.HELLO, kd.hello_body()
    yield "hello-future", kd.HELLO, kd.hello_body(versions=(3, 9))
    yield "welcome", kd.WELCOME, kd.frame_examples()["welcome"][32:]
    yield "welcome-no-credit", kd.WELCOME, kd.frame_examples()["welcome"][32:-4] + bytes(4)
    yield "score", kd.SCORE, kd.score_body(plain, [[3, 1, 4]], deadline_ms=5000)
    yield "score-many", kd.SCORE, kd.score_body(plain, [[1], [2, 3], list(range(60))], kd.SHORT)
    yield "score-everything", kd.SCORE, kd.score_body(everything, [[1, 2, 3, 4, 5]])
    yield "score-keep-unsorted", kd.SCORE, kd.score_body(keep, [[1, 2]])
    yield "score-none", kd.SCORE, kd.score_body(plain, [])
    yield "score-outside", kd.SCORE, kd.score_body(plain, [[70000]])
    yield "score-length-lies", kd.SCORE, kd.score_body(plain, [[1, 2]])[:-4]
    yield "score-nan", kd.SCORE, kd.score_body(kd.Query(temperatures=[kd.NAN, 1e30]), [[1]])
    yield "parts", kd.SCORE, kd.frame_examples()["parts"][32:]
    yield "parts-unknown-bit", kd.SCORE, kd.score_body(plain, [[1]], kd.PARTS) + b"\x08"
    yield "parts-missing", kd.SCORE, kd.score_body(plain, [[1]], kd.PARTS)
    yield "parts-empty-gather", kd.SCORE, kd.score_body(plain, [[1]], kd.PARTS) + b"\2\0"
    yield "answer", kd.ANSWER, kd.answer_body(3, b"bytes", 3)
    yield "answer-empty", kd.ANSWER, kd.answer_body(0, b"")
    yield "error", kd.ERROR, kd.error_body(1, "invalid", "tokens[2]", "id 12 is outside the vocabulary (10)")
    yield "error-whole", kd.ERROR, kd.error_body(0xffffffff, "overloaded", "", "later")
    yield "error-unknown", kd.ERROR, kd.error_body(0, "novel", "", "!")
    yield "error-control", kd.ERROR, kd.error_body(0, "io", "", "\n")
    yield "call", kd.CALL, kd.call_body("GET", "/v1/model")
    yield "call-post", kd.CALL, kd.call_body("POST", "/v1/tokenize", b'{"text":"a"}')
    yield "call-lower", kd.CALL, kd.call_body("get", "/")
    yield "call-space", kd.CALL, kd.call_body("GET", "/ x")
    yield "reply", kd.REPLY, kd.reply_body(200, b'{"a":1}')
    yield "reply-status", kd.REPLY, kd.reply_body(99)
    yield "reply-lies", kd.REPLY, kd.reply_body(200, b"ab")[:-1]


def frames():
    for name, kind, body in bodies():
        yield "body-" + name, bytes([kind]) + body
    for name, data in kd.frame_examples().items():
        yield "frame-" + name, data
    ping = kd.frame(kd.PING, 1, b"x")
    yield "frame-version-1", kd.frame(kd.PING, 1, b"x", version=1)
    yield "frame-unknown-kind", kd.frame(99)
    yield "frame-done", kd.frame(kd.DONE, 7)
    yield "frame-goaway", kd.frame(kd.GOAWAY)
    yield "frame-bad-body-crc", ping[:-1] + b"y"
    yield "empty", b""


if __name__ == "__main__":
    for folder, examples in (("record", records()), ("frame", frames())):
        os.makedirs(os.path.join(FOLDER, folder), exist_ok=True)
        for name, data in examples:
            with open(os.path.join(FOLDER, folder, name), "wb") as f:
                f.write(data)
