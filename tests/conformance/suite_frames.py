# SPDX-License-Identifier: Apache-2.0
"""The frames of the suite. Teacher and limits are those of LIMITS, the largest body is 65536 bytes."""
import struct

import kdserved_bytes as kd

TEACHER = bytes(range(32))
LIMITS = dict(max_tokens=8, max_top_k=5, max_gather=4, max_draws=20, max_spans=3, vocab_size=300, n_layers=2, width=8, q_width=8,
              kv_width=4, max_sequences=1024, max_body=1 << 16, credits=4)


def raw(kind=kd.PING, body=b"", **changes):
    """A frame with any field of its header changed before the header's checksum is made."""
    f = dict(magic=b"KDDS", version=2, flags=0, request_id=1, n=len(body), reserved=0, crc=kd.crc32c(body))
    f.update(changes)
    head = f["magic"] + struct.pack("<BBHQIII", f["version"], kind, f["flags"], f["request_id"], f["n"], f["reserved"], f["crc"])
    return head + struct.pack("<I", kd.crc32c(head)) + body


def header_cases():
    ping = raw(body=b"hello")
    yield "header-magic", "must refuse invalid", raw(magic=b"HTTP"), []
    yield "header-version-1", "must refuse unsupported", raw(version=1), []
    yield "header-version-3", "must refuse unsupported", raw(version=3), []
    yield "header-checksum", "must refuse corrupt", ping[:28] + bytes([ping[28] ^ 1]) + ping[29:], []
    yield "header-kind-0", "must refuse unsupported", raw(kind=0), []
    yield "header-kind-15", "must refuse unsupported", raw(kind=15), []
    yield "header-flags", "must refuse invalid", raw(flags=1), []
    yield "header-reserved", "must refuse invalid", raw(reserved=1), []
    yield "header-body-too-large", "must refuse too_large", raw(n=LIMITS["max_body"] + 1), []
    yield "body-checksum", "must refuse corrupt", raw(body=b"hello", crc=1), []
    for name, kind in (("done", kd.DONE), ("goaway", kd.GOAWAY), ("cancel", kd.CANCEL)):
        yield name, "must accept", raw(kind), ["kind %d" % kind]
    yield "pong", "must accept", raw(kd.PONG, b"x" * 64), ["kind 8"]


def greeting_cases():
    yield "hello-any", "must accept", raw(kd.HELLO, kd.hello_body(), request_id=0), ["token"]
    yield "hello-longest-token", "must accept", raw(kd.HELLO, kd.hello_body(b"~" * 256, TEACHER), request_id=0), ["token " + "~" * 256]
    yield "hello-from-1-to-9", "must accept", raw(kd.HELLO, kd.hello_body(versions=(1, 9)), request_id=0), ["token"]
    bad = {"token-too-long": kd.hello_body(b"~" * 257), "token-of-control-bytes": kd.hello_body(b"a\nb"), "cut": kd.hello_body()[:-1],
           "too-long": kd.hello_body() + b"\0"}
    for name, body in bad.items():
        yield "bad-hello-" + name, "must refuse invalid", raw(kd.HELLO, body, request_id=0), []
    yield "bad-hello-versions", "must refuse unsupported", raw(kd.HELLO, kd.hello_body(versions=(3, 9)), request_id=0), []
    good = kd.welcome_body(TEACHER, **LIMITS)
    lines = ["teacher " + TEACHER.hex()] + ["%s %d" % item for item in LIMITS.items()]
    yield "welcome", "must accept", raw(kd.WELCOME, good, request_id=0), lines
    bad = {"reserved": good[:2] + b"\1" + good[3:], "no-credits": kd.welcome_body(TEACHER, **dict(LIMITS, credits=0)),
           "no-vocabulary": kd.welcome_body(TEACHER, **dict(LIMITS, vocab_size=0)),
           "large-vocabulary": kd.welcome_body(TEACHER, **dict(LIMITS, vocab_size=(1 << 24) + 1)),
           "layers": kd.welcome_body(TEACHER, **dict(LIMITS, n_layers=65536)), "cut": good[:-1], "too-long": good + b"\0"}
    for name, body in bad.items():
        yield "bad-welcome-" + name, "must refuse invalid", raw(kd.WELCOME, body, request_id=0), []
    yield "bad-welcome-version", "must refuse unsupported", raw(kd.WELCOME, b"\3" + good[1:], request_id=0), []


def score(name, query, sequences, says=(), **more):
    """says: of each sequence None (its key follows from the question) or (code, field)."""
    lines, parts = [], more.get("parts") or [{}] * len(sequences)
    for i, (tokens, part) in enumerate(zip(sequences, parts)):
        own = dict(query.__dict__)
        own.update({k: v for k, v in part.items() if k != "rows"})
        if part.get("rows"):
            own["first"], own["last"] = part["rows"]
        verdict = says[i] if i < len(says) else None
        lines.append("question %d %s" % (i, "refuse %s %s" % verdict if verdict else
                                         "key " + kd.key_of(TEACHER, tokens, kd.Query(**own).canonical(len(tokens))).hex()))
    return name, "must accept", raw(kd.SCORE, kd.score_body(query, sequences, **more)), lines


def question_cases():
    q, three = kd.Query, [[3, 1, 4]]
    yield score("score-own", q(own=True), three)
    yield score("score-many", q(top_k=2, first=1), [[3, 1, 4], [5, 9], [2] * 8], flags=kd.DURABLE, deadline_ms=5000)
    yield score("score-canonical-forms", q(top_k=2, temperatures=[2, 1, 2], keep=[9, 3, 3, 250], first=-2, values=kd.F16),
                [[1, 2, 3], [4, 5]])
    yield score("score-spans-alone", q(spans=[(1, 3), (2, 3)], first=1, values=kd.U8), three, flags=kd.SHORT)
    yield score("score-draws-bring-tail", q(top_k=2, draws={"n": 20, "tau": .5, "seed": 1 << 63, "tail": True}), three)
    yield score("score-features", q(features=[(0, 2), (1, 0), (2, 1)], pooling=1, feature_values=2, values=kd.F16), three)
    yield score("score-parts", q(own=True, gather=[[7]]), [[3, 1, 4], [1, 5], [9]], flags=kd.SHORT,
                parts=[{"spans": [(2, 3)]}, {"rows": (0, -1), "gather": [[7, 299], []]}, {}])
    yield score("score-limits", q(top_k=5, gather=[[1] * 4], draws={"n": 20}, spans=[(1, 2)] * 3), [[299] * 8])
    bad = [
        ("nothing", q(), [3, 1, 4], "invalid", "top_k"), ("token", q(own=True), [3, 300], "invalid", "sequences[0].tokens[1]"),
        ("no-tokens", q(own=True), [], "invalid", "sequences[0].tokens"),
        ("tokens", q(own=True), [1] * 9, "too_large", "sequences[0].tokens"),
        ("top-k", q(top_k=6), [1], "too_large", "top_k"), ("top-k-vocabulary", q(top_k=301), [1], "invalid", "top_k"),
        ("top-mass", q(top_k=1, top_mass=2), [1], "invalid", "top_mass"), ("tail", q(tail=True), [1], "invalid", "tail"),
        ("temperature", q(temperatures=[1, 0]), [1], "invalid", "temperatures[1]"),
        ("gather", q(gather=[[1], [2, 300]]), [1, 2], "invalid", "gather[1][1]"),
        ("gather-lists", q(gather=[[1]] * 3), [1, 2], "invalid", "gather"),
        ("gather-length", q(gather=[[1] * 5]), [1, 2], "too_large", "gather"),
        ("gather-keep", q(gather=[[1]], keep=[2]), [1], "invalid", "gather[0]"),
        ("keep", q(own=True, keep=[1, 300]), [1], "invalid", "keep[1]"), ("keep-top-k", q(top_k=2, keep=[1, 1]), [1], "invalid", "top_k"),
        ("draws", q(draws={"n": 21}), [1], "too_large", "draws.n"), ("tau", q(draws={"n": 2, "tau": 0}), [1], "invalid", "draws.tau"),
        ("draws-tail", q(draws={"n": 2, "tail": True}), [1], "invalid", "draws.tail"),
        ("spans", q(spans=[(1, 2)] * 4), [1, 2], "too_large", "spans"),
        ("span-begin", q(spans=[(1, 2), (0, 2)]), [1, 2], "invalid", "spans[1].begin"),
        ("span-end", q(spans=[(1, 3)]), [1, 2], "invalid", "spans[0].end"),
        ("layer", q(features=[(0, 2), (0, 3)]), [1], "invalid", "features[1].layer"),
        ("final-layer", q(features=[(1, 1)]), [1], "invalid", "features[0].layer"),
        ("first", q(own=True, first=2), [1, 2], "invalid", "first"),
        ("last", q(own=True, last=-3), [1, 2], "invalid", "last"),
    ]
    for name, query, tokens, code, field in bad:
        yield score("question-bad-" + name, query, [tokens], [(code, field)])


def bad_score_cases():
    good = kd.score_body(kd.Query(own=True), [[3, 1, 4]])

    def bad(name, code, body):
        return "bad-score-" + name, "must refuse " + code, raw(kd.SCORE, body), []
    yield bad("empty", "invalid", b"")
    yield bad("cut", "invalid", good[:-1])
    yield bad("too-long", "invalid", good + b"\0")
    yield bad("flags", "unsupported", b"\x10" + good[1:])
    yield bad("query-bytes", "invalid", good[:8] + struct.pack("<I", 21) + good[12:])
    yield bad("query-bytes-beyond", "invalid", good[:8] + struct.pack("<I", 1 << 31) + good[12:])
    yield bad("no-sequences", "invalid", kd.score_body(kd.Query(own=True), []))
    yield bad("too-many-sequences", "too_large", good[:12] + struct.pack("<I", 65537) + good[16:])
    yield bad("length-times-4-wraps", "invalid", good[:36] + struct.pack("<I", 0x40000003) + good[40:])
    yield bad("too-many-temperatures", "too_large", good[:18] + b"\x11" + good[19:])
    yield bad("query-version", "unsupported", good[:16] + b"\1" + good[17:])
    yield bad("parts-missing", "invalid", kd.score_body(kd.Query(own=True), [[1]], kd.PARTS))
    yield bad("part-of-an-unknown-kind", "unsupported", kd.score_body(kd.Query(own=True), [[1]], kd.PARTS) + b"\x08")
    yield bad("part-of-an-empty-gather", "invalid", kd.score_body(kd.Query(own=True), [[1]], kd.PARTS) + b"\2\0")
    yield bad("part-of-too-many-spans", "invalid", kd.score_body(kd.Query(own=True), [[1]], kd.PARTS) + b"\4\x7f\1\2")


def reply_cases():
    yield "answer", "must accept", raw(kd.ANSWER, kd.answer_body(3, b"bytes", 3)), ["index 3", "flags 3", "record " + b"bytes".hex()]
    for name, body in {"empty": kd.answer_body(0, b""), "index": kd.answer_body(65536, b"x"), "flags": kd.answer_body(0, b"x", 4)}.items():
        yield "bad-answer-" + name, "must refuse invalid", raw(kd.ANSWER, body), []
    yield "error", "must accept", raw(kd.ERROR, kd.error_body(3, "too_large", "top_k", "2000 is over the limit (1024)")), \
        ["index 3", "code too_large", "field top_k", "message 2000 is over the limit (1024)"]
    yield "error-of-the-whole", "must accept", raw(kd.ERROR, kd.error_body(0xffffffff, "overloaded", "", "later")), \
        ["index 4294967295", "code overloaded", "field", "message later"]
    yield "error-of-a-later-version", "must accept", raw(kd.ERROR, kd.error_body(0, "novel", "", "!")), ["index 0", "code internal"]
    for name, body in {"control": kd.error_body(0, "io", "", "\n"), "index": kd.error_body(65536, "io", "", "x"),
                       "cut": kd.error_body(0, "io", "", "x")[:-1], "none": kd.error_body(0, "none", "", "x")}.items():
        yield "bad-error-" + name, "must refuse invalid", raw(kd.ERROR, body), []
    yield "call", "must accept", raw(kd.CALL, kd.call_body("POST", "/v1/tokenize", b'{"text":"a"}')), \
        ["method POST", "path /v1/tokenize", "body " + b'{"text":"a"}'.hex()]
    for name, body in {"lower": kd.call_body("get", "/"), "path": kd.call_body("GET", "x"), "space": kd.call_body("GET", "/ x"),
                       "empty-method": kd.call_body("", "/"), "cut": kd.call_body("GET", "/", b"ab")[:-1]}.items():
        yield "bad-call-" + name, "must refuse invalid", raw(kd.CALL, body), []
    yield "reply", "must accept", raw(kd.REPLY, kd.reply_body(404, b"{}")), ["status 404", "body " + b"{}".hex()]
    for name, body in {"status": kd.reply_body(99), "long": kd.reply_body(200) + b"x", "cut": kd.reply_body(200, b"ab")[:-1]}.items():
        yield "bad-reply-" + name, "must refuse invalid", raw(kd.REPLY, body), []


def generation_cases():
    def generate(name, prompts, lines, **more):
        return "generate-" + name, "must accept", raw(kd.GENERATE, kd.generate_body(prompts, **more)), lines
    yield generate("plain", [[3, 1, 4]], ["flags 0", "n 1", "max_tokens 16", "temperature 3f800000", "forced", "prompt_0 3 1 4"])
    yield generate("everything", [[3], [1, 4]], ["flags 7", "deadline_ms 5000", "n 3", "first_sample 4", "max_tokens 6", "rows 2",
                                                 "temperature 3f000000", "top_k 5", "top_p 3f400000", "min_p 3e000000", "typical_p 3f600000",
                                                 "seed 9223372036854775808", "stop_ids 2 299", "stop_0 " + b"\n".hex(), "stop_1 " + b"ab".hex(),
                                                 "forced 7 8", "prompt_0 3", "prompt_1 1 4"],
                   flags=kd.IGNORE_EOS | kd.STREAM, deadline_ms=5000, n=3, first_sample=4, max_tokens=6, rows=2, temperature=.5, top_k=5, top_p=.75,
                   min_p=.125, typical_p=.875, seed=1 << 63, stop_ids=[2, 299], stops=[b"\n", b"ab"], forced=[7, 8])
    yield generate("an-empty-prompt", [[]], ["prompt_0"])        # well formed; refused for what it asks
    yield generate("longest-lists", [[1]], [], stop_ids=[1] * 64, stops=[b"x" * 256] * 16)
    good = kd.generate_body([[3, 1, 4]], stops=[b"ab"])
    bad = {
        "empty": ("invalid", b""), "cut": ("invalid", good[:-1]), "too-long": ("invalid", good + b"\0"), "flags": ("unsupported", b"\x08" + good[1:]),
        "seed-not-given": ("invalid", good[:44] + b"\1" + good[45:]), "no-prompts": ("invalid", kd.generate_body([])),
        "too-many-prompts": ("too_large", good[:64] + struct.pack("<I", 65537) + good[68:]),
        "too-many-stops": ("too_large", kd.generate_body([[1]], stops=[b"x"] * 17)),
        "too-many-stop-ids": ("too_large", kd.generate_body([[1]], stop_ids=[1] * 65)),
        "stop-too-long": ("invalid", kd.generate_body([[1]], stops=[b"x" * 257])), "empty-stop": ("invalid", kd.generate_body([[1]], stops=[b""])),
        "stop-with-zero": ("invalid", kd.generate_body([[1]], stops=[b"a\0b"])),
        "forced-beyond": ("invalid", good[:60] + struct.pack("<I", 1 << 30) + good[64:]),
        "length-beyond": ("invalid", kd.generate_body([[3, 1, 4]])[:68] + struct.pack("<I", 0x40000003) + kd.generate_body([[3, 1, 4]])[72:]),
    }
    for name, (code, body) in bad.items():
        yield "bad-generate-" + name, "must refuse " + code, raw(kd.GENERATE, body), []


def tokens_cases():
    more = kd.tokens_frame_body(0, 0, [7, 9], [-1, -2], [0, -.5], [3, 4], b"ab", [[(7, 2), (1, 1)], [(9, 3), (2, -1)]])
    yield "tokens", "must accept", raw(kd.TOKENS, more), [
        "index 0", "flags 0", "first 0", "tokens 7 9", "logprobs bf800000 c0000000", "sampled_logprobs 00000000 bf000000", "lse 40400000 40800000",
        "ids 7 1 9 2", "logits 40000000 3f800000 40400000 bf800000", "text " + b"ab".hex()]
    last = kd.tokens_frame_body(3, 5, [], [], [], [], b"\xff", end=(2, kd.NO_ID, kd.NO_ID, 9, 1 << 53))
    yield "tokens-last-of-none", "must accept", raw(kd.TOKENS, last), [
        "index 3", "flags 1", "first 5", "tokens", "text ff", "finish 2", "stop_id 4294967295", "stop 4294967295", "reused 9", "seed 9007199254740992"]
    bad = {"empty": b"", "cut": more[:-1], "too-long": more + b"\0", "flags": more[:4] + b"\2" + more[5:], "n-beyond": more[:12] + b"\xff" * 4 + more[16:],
           "rows-beyond": more[:16] + b"\xff" * 4 + more[20:], "text-beyond": more[:20] + b"\xff" * 4 + more[24:], "last-cut": last[:-1],
           "finish": last[:-24] + b"\3" + last[-23:], "whole": b"\xff" * 4 + more[4:]}
    for name, body in bad.items():
        yield "bad-tokens-" + name, "must refuse invalid", raw(kd.TOKENS, body), []


def frame_cases():
    for name, data in kd.frame_examples().items():
        yield "manual-" + name, "frame", "must accept", data, []
    for cases in (header_cases, greeting_cases, question_cases, bad_score_cases, reply_cases, generation_cases, tokens_cases):
        for name, verdict, data, lines in cases():
            yield name, "frame", verdict, data, lines
