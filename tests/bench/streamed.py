# SPDX-License-Identifier: Apache-2.0
"""See streamed.sh. streamed.py COMMIT ROUNDS SEQUENCES"""
import datetime
import json
import os
import random
import re
import shutil
import statistics
import struct
import sys
import tempfile
import time

import tiny_model
from kdserved import Daemon

WIDTH, FFN, HEADS, KV_HEADS, LAYERS, VOCABULARY = 2048, 8192, 32, 8, 16, 128256
LENGTH, NO_STORE = 512, 2
HEAD = WIDTH // HEADS


def shapes():
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    for i in range(LAYERS):
        p = "model.layers.%d." % i
        yield p + "input_layernorm.weight", (WIDTH,)
        yield p + "self_attn.q_proj.weight", (HEADS * HEAD, WIDTH)
        yield p + "self_attn.k_proj.weight", (KV_HEADS * HEAD, WIDTH)
        yield p + "self_attn.v_proj.weight", (KV_HEADS * HEAD, WIDTH)
        yield p + "self_attn.o_proj.weight", (WIDTH, HEADS * HEAD)
        yield p + "post_attention_layernorm.weight", (WIDTH,)
        yield p + "mlp.gate_proj.weight", (FFN, WIDTH)
        yield p + "mlp.up_proj.weight", (FFN, WIDTH)
        yield p + "mlp.down_proj.weight", (WIDTH, FFN)
    yield "model.norm.weight", (WIDTH,)


def elements(shape):
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


def write_model(directory):
    """BF16 of random sign and mantissa, about 0.01 in size. Speed does not depend on them, so one block of them serves all matrices."""
    os.makedirs(directory)
    rng = random.Random(1)
    block = bytearray(32 << 20)
    block[0::2] = rng.randbytes(len(block) // 2)
    block[1::2] = rng.randbytes(len(block) // 2).translate(bytes(0x3c | (b & 1) << 7 for b in range(256)))
    header, at = {}, 0
    for name, shape in shapes():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + 2 * elements(shape)]}
        at += 2 * elements(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(directory, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, shape in shapes():
            left = 2 * elements(shape)
            if len(shape) == 1:
                f.write(b"\x80\x3f" * elements(shape))
                continue
            while left:
                left -= f.write(memoryview(block)[:min(left, len(block))])
    vocab_size, tokenizer = tiny_model.tokenizer()
    for i in range(vocab_size, VOCABULARY):
        tokenizer["model"]["vocab"]["<filler %d>" % i] = i
    config = dict(tiny_model.config(VOCABULARY), hidden_size=WIDTH, intermediate_size=FFN, num_attention_heads=HEADS,
                  num_key_value_heads=KV_HEADS, num_hidden_layers=LAYERS, torch_dtype="bfloat16")
    for name, value in (("config.json", config), ("tokenizer.json", tokenizer)):
        with open(os.path.join(directory, name), "w") as f:
            json.dump(value, f)


def processor_seconds(daemon):
    with open("/proc/%d/stat" % daemon.process.pid) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(daemon):
    with open("/proc/%d/status" % daemon.process.pid) as f:
        return int(re.search(r"VmHWM:\s+(\d+) kB", f.read()).group(1)) >> 10


def read_mib(daemon):
    with open("/proc/%d/io" % daemon.process.pid) as f:
        return int(re.search(r"read_bytes: (\d+)", f.read()).group(1)) >> 20


def score(client, daemon, sequences):
    """(wall seconds, processor seconds, MiB read from disk, records)"""
    before, read, began = processor_seconds(daemon), read_mib(daemon), time.monotonic()
    answers = client.score(sequences, flags=NO_STORE, top_k=64, temperatures=(1.0,))
    return time.monotonic() - began, processor_seconds(daemon) - before, read_mib(daemon) - read, answers


def start(model, disk, batch_tokens, *arguments, **more):
    sizes = ["--batch-tokens", str(batch_tokens), "--max-tokens", str(LENGTH), "--cache-tokens", "0", "--canary-interval", "0",
             "--threads", str(os.cpu_count()), "--stream-directory", disk]
    return Daemon(*sizes, *arguments, model=model, patience=3600, **more)


def main(commit, rounds, n_sequences):
    directory = tempfile.mkdtemp(prefix="kdserved-streamed-")
    model, rng, ratios = os.path.join(directory, "model"), random.Random(3), []
    try:
        write_model(model)
        with start(model, directory, n_sequences * LENGTH) as resident:
            element = 2 if "(bf16" in resident.log() else 4
            size = element * sum(elements(s) for _, s in shapes() if len(s) == 2)
            cap = size // 4
            with start(model, directory, n_sequences * LENGTH, "--memory", str(cap)) as streamed, \
                    resident.client(timeout=7200) as a, streamed.client(timeout=7200) as b:
                streamed.wait_line("are read from")
                print("# " + next(line for line in streamed.log().splitlines() if "are read from" in line))
                print("date,commit,load,threads,matrices_mib,cap_mib,peak_mib,tokens,resident_tokens_s,streamed_tokens_s,ratio,"
                      "resident_processor_s,streamed_processor_s,processor_ratio,read_mib,same_bits", flush=True)
                for i in range(rounds):
                    wanted = [[rng.randrange(VOCABULARY) for _ in range(LENGTH)] for _ in range(n_sequences)]
                    runs = [(a, resident), (b, streamed)]
                    results = {d: score(c, d, wanted) for c, d in (runs if i % 2 == 0 else reversed(runs))}
                    r, s, tokens = results[resident], results[streamed], n_sequences * LENGTH
                    ratios.append((r[0] / s[0], r[1] / s[1]))
                    print("%s,%s,%.1f,%d,%d,%d,%d,%d,%.1f,%.1f,%.3f,%.1f,%.1f,%.3f,%d,%d" % (
                        datetime.date.today(), commit, os.getloadavg()[0], os.cpu_count(), size >> 20, cap >> 20, peak_mib(streamed), tokens,
                        tokens / r[0], tokens / s[0], ratios[-1][0], r[1], s[1], ratios[-1][1], s[2], r[3] == s[3]), flush=True)
                print("# median ratio %.3f (processor time %.3f) of %d rounds" % (
                    statistics.median(x for x, _ in ratios), statistics.median(y for _, y in ratios), rounds))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
