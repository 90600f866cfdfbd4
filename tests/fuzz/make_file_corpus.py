#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes seeds of the targets whose inputs are several files (weight_index, label, select, manifest, sink, store, reply), beside this script. Those
of tls were made by `openssl ecparam`, `req -x509` and `genpkey`; canary's are records of corpus/record and the target's own answer."""
import json
import struct
from pathlib import Path

HERE = Path(__file__).parent / "corpus"


def put(target, seeds):
    folder = HERE / target
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def shard(tensors, data, length=None):
    head = json.dumps(tensors).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + data


def index(weights, **more):
    return json.dumps({"metadata": {"total_size": 8}, "weight_map": weights, **more}).encode() + b"\0"


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
A = shard({"a": F32}, bytes(8))
put("weight_index", {
    "both": index({"a": "a.safetensors", "b": "b.safetensors"}) + A,
    "one": index({"b": "b.safetensors"}),
    "other-file": index({"a": "b.safetensors", "b": "b.safetensors"}) + A,
    "not-listed": index({"a": "a.safetensors"}) + shard({"a": F32, "c": F32}, bytes(8)),
    "not-there": index({"a": "a.safetensors", "b": "b.safetensors", "c": "a.safetensors"}) + A,
    "twice": index({"b": "a.safetensors"}) + shard({"b": F32}, bytes(8)),
    "both-have-b": index({"b": "b.safetensors", "a": "a.safetensors"}) + shard({"a": F32, "b": F32}, bytes(8)),
    "no-file": index({"a": "c.safetensors"}) + A,
    "above": index({"a": "../a.safetensors"}) + A,
    "hidden": index({"a": ".safetensors"}) + A,
    "other-end": index({"a": "a.bin"}) + A,
    "number": index({"a": 7}) + A,
    "empty-map": index({}) + A,
    "no-map": b'{"metadata":{}}\0' + A,
    "map-is-list": b'{"weight_map":["a.safetensors"]}\0' + A,
    "not-json": b"{\0" + A,
    "twice-named": b'{"weight_map":{"a":"a.safetensors","a":"b.safetensors"}}\0' + A,
    "odd-dtype": index({"a": "a.safetensors", "b": "b.safetensors"}) + shard({"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
    "empty-tensor": index({"a": "a.safetensors"}) + shard({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, b""),
    "shard-cut": index({"a": "a.safetensors"}) + A[:-3],
    "shard-length": index({"a": "a.safetensors"}) + shard({"a": F32}, bytes(8), 1 << 62),
    "many-shards": index({"t%d" % i: "a%d.safetensors" % i for i in range(40)}) + A,
})

# byte 1, prompt, sample: a right line; byte 2, prompt: its members. First byte: samples - 1, 4 = lines of JSON
TWO, LINES = "one\ntwo\n\nthree\n", '{"prompt":"one"}\n{"prompt":"two","n":1}\n'
SAME = '"prompt_id":"%s","teacher":"%s","sampler":{}}\n' % ("0" * 64, "0" * 64)
put("label", {
    "nothing": "\0" + TWO + "\0",
    "one-done": "\0" + TWO + "\0\1\0\0",
    "two-done": "\0" + TWO + "\0\1\0\0\1\1\0",
    "all-done": "\0" + TWO + "\0\1\0\0\1\1\0\1\2\0",
    "more-than-prompts": "\0one\n\0\1\0\0\1\1\0",
    "torn": "\0" + TWO + '\0\1\0\0{"item":1,"sam',
    "torn-whole": "\0" + TWO + '\0\1\0\0{"item":1,"sample":0,\2\1}',
    "half-item": "\1" + TWO + "\0\1\0\0\1\0\1\1\1\0",
    "samples": "\2" + TWO + "\0\1\0\0\1\0\1\1\0\2",
    "other-order": "\0" + TWO + "\0\1\1\0",
    "other-prompt": "\0" + TWO + '\0{"item":0,"sample":0,\2\1}\n',
    "other-teacher": "\0" + TWO + '\0{"item":0,"sample":0,' + SAME,
    "no-item": "\0" + TWO + "\0{\2\0}\n",
    "not-json": "\0" + TWO + "\0\1\0\0}\n",
    "empty-line": "\0" + TWO + "\0\n",
    "json-prompts": "\4" + LINES + "\0\1\0\0",
    "json-all": "\4" + LINES + "\0\1\0\0\1\1\0",
    "json-no-prompt": '\4{"text":"one"}\n\0\1\0\0',
    "json-broken": "\4{\n\0\1\0\0",
    "not-utf8": b"\0on\xff\n\0\1\0\0",
    "line-ends": "\0one\r\ntwo\r\n\0\1\0\0\1\1\0",
    "members-only": '\0' + TWO + '\0{"item":0,"sample":0,"response":"x",\2\0}\n{"item":1,"sample":0,\2\1}\n',
})

ITEMS = "".join('{"text":"%s"}\n' % t for t in ("it is a truth", "universally acknowledged that", "a single man in possession"))
SCORES = "".join('{"id":"%02x00112233445566","tokens":[1,2,3],"spans":[%s]}\n' % (i, s) for i, s in enumerate(("-1.5", "-2.25", "null")))
OTHER = SCORES.replace("-1.5", "-3").replace("null", "-4") + '{"summary":{"items":3}}\n'
GAINS = "".join('{"rows":[{"status":"ok","logits":[3,%s],"max_prob":0.5},{"status":"not_finite"}]}\n' % v for v in ("2.5", "1", "-7"))
NAMED = "".join('{"domain":"%s"}\n' % d for d in ("books", "code", "books"))
put("select", {
    "difference": "\0" + SCORES + "\0" + OTHER,
    "difference-items": "\4" + SCORES + "\0" + OTHER + "\0" + ITEMS,
    "difference-top": "\x10" + SCORES + "\0" + OTHER,
    "difference-other-ids": "\0" + SCORES + "\0" + OTHER.replace("01", "09"),
    "difference-fewer": "\0" + SCORES + "\0" + OTHER[:90],
    "difference-fewer-items": "\4" + SCORES + "\0" + OTHER + "\0" + ITEMS[:30],
    "difference-two-spans": "\0" + SCORES.replace("-1.5", "-1,-2") + "\0" + OTHER,
    "dsir": "\x09" + ITEMS + "\0" + ITEMS[:40] + "\n",
    "dsir-long": "\1" + ITEMS + "\0" + ITEMS,
    "dsir-no-text": "\x09" + SCORES + "\0" + ITEMS,
    "dsir-words": '\x09{"text":"\\u00e9t\\u00e9 a1-b2 \\ud83d\\ude00 \\u0085x"}\n\0{"text":"x"}\n',
    "queries": "\2" + GAINS,
    "queries-bad": "\x0a" + GAINS,
    "queries-top": "\x12" + GAINS,
    "queries-no-rows": '\2{"rows":[]}\n{}\n',
    "queries-huge": '\2{"rows":[{"logits":[-1e308,1e308],"max_prob":1e308}]}\n{"rows":[{"logits":[1,1],"max_prob":0.3}]}\n',
    "domains": "\3" + OTHER + "\0" + SCORES.replace("null", "-1") + "\0" + NAMED,
    "domains-null": "\3" + OTHER + "\0" + SCORES + "\0" + NAMED,
    "domains-previous": "\x0b" + OTHER + "\0" + SCORES.replace("null", "-1") + "\0" + NAMED + '\0{"weights":{"books":0.25,"code":0.75}}',
    "domains-previous-bad": "\x0b" + OTHER + "\0" + SCORES.replace("null", "-1") + "\0" + NAMED + '\0{"weights":{"books":-1}}',
    "domains-unnamed": "\3" + OTHER + "\0" + SCORES + "\0" + ITEMS,
    "summary-member": '\2{"summary":"a text","rows":[{"logits":[1,1],"max_prob":0.3}]}\n{"summary":{}}\n',
    "empty": "\0\0\0",
    "blank-lines": "\0\n \t\n" + SCORES + "\n\0" + OTHER,
    "not-json": "\0{\n\0" + OTHER,
    "list": "\0[1]\n\0" + OTHER,
})

ENTRY = {"id": "00" * 32, "state": "done", "teacher": {"id": "x"}, "corpus": [], "began": 1.5}
put("manifest", {
    "one": json.dumps({"format": 1, "captures": [ENTRY]}),
    "two": json.dumps({"format": 1, "captures": [ENTRY, {"id": "f" * 64, "more": [1, None, True, "\u00e9"]}]}),
    "none": json.dumps({"format": 1, "captures": []}),
    "no-id": json.dumps({"format": 1, "captures": [{}, 7, "text", [], None, {"id": 7}]}),
    "other-format": json.dumps({"format": 2, "captures": []}),
    "no-format": json.dumps({"captures": []}),
    "no-list": json.dumps({"format": 1, "captures": {}}),
    "not-json": "{",
    "empty": "",
    "list": "[]",
    "twice": '{"format":1,"captures":[],"captures":[1]}',
    "deep": '{"format":1,"captures":[' + "[" * 40 + "]" * 40 + "]}",
})

# byte 1 and a number: the true answer. First byte: 1 = lines
put("sink", {
    "nothing": b"\0",
    "one": b"\0\1\0",
    "all": b"\0\1\0\1\1\1\2",
    "more": b"\0\1\0\1\1\1\2\1\0",
    "more-torn": b"\0\1\0\1\1\1\2KDRC",
    "other-order": b"\0\1\1\1\0",
    "torn-head": b"\0\1\0KDRC\3\0",
    "torn-record": b"\0\1\0KDRC\3\0\0\0\xff\0\0\0abc",
    "zeros": b"\0\1\0" + bytes(40),
    "zeros-and-more": b"\0\1\0" + bytes(20) + b"x" + bytes(20),
    "damaged": b"\0KDRC\3\0\0\0\x20\0\0\0" + bytes(20) + b"\1\0",
    "damaged-last": b"\0\1\0KDRC\3\0\0\0\x20\0\0\0" + bytes(20),
    "too-small": b"\0KDRC\3\0\0\0\1\0\0\0" + bytes(20),
    "too-large": b"\0KDRC\3\0\0\0\0\0\0\x7f" + bytes(20),
    "lines-nothing": b"\1",
    "lines-one": b"\1\1\0",
    "lines-all": b"\1\1\0\1\1\1\2",
    "lines-more": b"\1\1\0\1\1\1\2{}\n",
    "lines-more-torn": b"\1\1\0\1\1\1\2{",
    "lines-torn": b"\1\1\0{\"id\":\"",
    "lines-other-order": b"\1\1\1",
    "lines-zeros": b"\1\1\0" + bytes(9) + b"\n",
    "lines-empty": b"\1\n\1\0",
})

# files (kind | id << 2, then for a shard: how its header is, steps); see shards.c
SHARD = bytes((0, 0))
RECORDS = bytes((1, 0, 1, 1, 1, 2, 1, 3))
INDEX = b"KDINDEX\n" + struct.pack("<IIIIQQ", 2, 56, 0, 0, 4096, 0) + bytes(24)
put("store", {
    "empty": b"\0",
    "no-records": b"\0" + SHARD,
    "all": b"\0" + SHARD + RECORDS,
    "sealed": b"\0" + SHARD + RECORDS + b"\3\0\7",
    "two-shards": b"\0" + SHARD + b"\1\0\1\3\3\0\7\4\0\1\1\1\2",
    "first-not-sealed": b"\0" + SHARD + b"\1\0\7\4\0\1\1\1\3",
    "packed": b"\0" + SHARD + bytes((6, 0, 6, 1, 6, 3)) + b"\3\0\7",
    "copies": b"\0" + SHARD + RECORDS + RECORDS + b"\3\0\7\4\0" + RECORDS,
    "copies-kept": b"\1" + SHARD + RECORDS + b"\3\0\7\4\0" + RECORDS,
    "flipped": b"\0" + SHARD + bytes((1, 0, 5, 1, 60, 0, 3, 1, 3)),
    "flipped-head": b"\2" + SHARD + bytes((1, 0, 5, 1, 9, 0, 3, 1, 3)),
    "flipped-dropped": b"\2" + SHARD + bytes((5, 0, 60, 0, 3, 1, 0, 3, 0, 7)) + b"\4\0" + RECORDS,
    "flipped-copy-later": b"\0" + SHARD + bytes((1, 0, 1, 3, 3, 0, 7)) + b"\4\0" + bytes((5, 0, 70, 0, 1)),
    "torn": b"\0\0\4" + RECORDS + b"\7\x20",
    "zeros": b"\0" + SHARD + RECORDS + b"\4\x20",
    "zeros-between": b"\0" + SHARD + bytes((1, 0, 4, 9, 1, 3)),
    "raw-between": b"\0" + SHARD + bytes((1, 0, 0, 16)) + b"KDFR" + bytes(12) + bytes((1, 3)),
    "frame-of-nothing": b"\0" + SHARD + bytes((1, 0, 2, 1, 9)) + b"not a rec" + bytes((1, 3)),
    "seal-between": b"\0" + SHARD + bytes((1, 0, 3, 0, 1, 3)),
    "seal-other-number": b"\0" + SHARD + bytes((1, 0, 3, 2)),
    "gap": b"\2" + SHARD + bytes((1, 0, 1, 0xb3, 3, 0)),
    "header-copy": b"\0\0\1" + RECORDS,
    "header-other-copy": b"\4\0\2" + RECORDS,
    "header-gone": b"\0\0\3" + RECORDS,
    "header-gone-of-one": b"\2\0\3" + RECORDS + b"\7\4\0" + RECORDS,
    "cut-header": b"\0\0\4\7\xff",
    "not-rewritten": b"\x08" + SHARD + RECORDS,
    "decompressed": b"\4" + SHARD + bytes((6, 0, 6, 3, 3, 0)),
    "index-of-another": b"\0" + SHARD + RECORDS + b"\3\0\7" + bytes((1, len(INDEX), 0)) + INDEX,
    "index-right": b"\0" + SHARD + RECORDS + b"\3\0\7" + bytes((2, len(INDEX), 0)) + INDEX,
    "index-alone": b"\0" + bytes((1, len(INDEX), 0)) + INDEX,
    "lock": b"\0" + SHARD + RECORDS + b"\7" + b"\3\2\x0012",
    "note": b"\0" + SHARD + RECORDS + b"\7" + b"\7\x05\0note\n",
    "temporary": b"\0" + SHARD + RECORDS + b"\7" + b"\x0b\x04\0half",
    "high-id": b"\0\x0c\0" + RECORDS + b"\3\0\7\0\0" + RECORDS,
})


def reply(value, status=200):
    return struct.pack("<H", status) + (value if isinstance(value, bytes) else json.dumps(value).encode())


RUN = {"id": "a-run", "state": "running", "reason": "", "restarting_in_s": 3.5,
       "progress": {"step": 3, "steps": 10, "loss": 2.5, "held_out_kl": 0.5, "tokens_per_second": 100.5, "eta_seconds": 90}}
POINTS = [{"step": i, "loss": 3 - i / 4, "held_out_kl": 1 / (i + 1), "learning_rate": 0.001 * i} for i in range(6)]
put("reply", {
    "top": reply({"version": "1", "ready": True, "degraded": ["store"], "why": "", "uptime_s": 4000, "device": {"name": "cpu", "numeric": "f32"},
                  "requests": {"answered": 5, "in_flight": 1}, "queue": {"requests": 1, "requests_limit": 4, "tokens": 9, "tokens_limit": 3},
                  "forward": {"passes": 3, "mixed_passes": 1}, "store": {"records": 4, "bytes": 1e6, "failing": True}, "canary": {"right": 2, "age_s": 1},
                  "runs": [RUN]}),
    "top-odd": reply({"degraded": [1, None], "uptime_s": -1, "queue": {"requests": -1e300, "requests_limit": 1e-300}, "runs": [{"progress": {"steps": 1}}]}),
    "top-huge": reply({"uptime_s": 1e300, "queue": {"requests": 1e300, "requests_limit": 1, "tokens": 1}, "ready": False}),
    "runs-list": reply({"runs": [RUN, {}, 7, {"progress": 7}, {"id": 7, "state": 9}]}),
    "run-over": reply(dict(RUN, state="succeeded", points=POINTS)),
    "run-failed": reply(dict(RUN, state="failed", reason="no memory", points=POINTS)),
    "run-stopped": reply({"state": "stopped", "points": []}),
    "run-over-odd": reply({"state": "stopped", "points": [{"step": 1, "loss": 2}], "progress": {"eta_seconds": 1e300, "step": "x"}}),
    "tokens": reply({"tokens": [0, 1, 4294967295]}),
    "tokens-odd": reply({"tokens": [0, -1]}),
    "tokens-large": reply({"tokens": [4294967296]}),
    "tokens-text": reply({"tokens": ["1"]}),
    "lines": reply("".join(json.dumps(p) + "\n" for p in POINTS).encode()),
    "line": reply(json.dumps(dict(POINTS[3], points=POINTS)).encode() + b"\n"),
})
