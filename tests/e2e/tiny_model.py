# SPDX-License-Identifier: Apache-2.0
"""Writes a tiny Llama model directory from a seed: config.json, model.safetensors, tokenizer.json. Standard library only."""
import json
import os
import random
import struct

WIDTH, FFN, HEADS, KV_HEADS, LAYERS, CONTEXT = 32, 64, 4, 2, 2, 1024


def byte_symbols():
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols, extra = {}, 0
    for b in range(256):
        if b in plain:
            symbols[b] = chr(b)
        else:
            symbols[b] = chr(256 + extra)
            extra += 1
    return symbols


def tokenizer():
    symbols = byte_symbols()
    merges = [("t", "h"), ("th", "e"), ("i", "n"), (symbols[32], "the"), ("e", "r"), ("a", "n"), ("an", "d"), ("o", "n")]
    vocab = {symbols[b]: b for b in range(256)}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    end = len(vocab)
    vocab["<|end|>"] = end
    special = {"id": end, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
               "special": True}
    return len(vocab), {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [special], "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": ["%s %s" % m for m in merges]},
    }


def tensors(vocab_size):
    head = WIDTH // HEADS
    yield "model.embed_tokens.weight", (vocab_size, WIDTH)
    for i in range(LAYERS):
        p = "model.layers.%d." % i
        yield p + "input_layernorm.weight", (WIDTH,)
        yield p + "self_attn.q_proj.weight", (HEADS * head, WIDTH)
        yield p + "self_attn.k_proj.weight", (KV_HEADS * head, WIDTH)
        yield p + "self_attn.v_proj.weight", (KV_HEADS * head, WIDTH)
        yield p + "self_attn.o_proj.weight", (WIDTH, HEADS * head)
        yield p + "post_attention_layernorm.weight", (WIDTH,)
        yield p + "mlp.gate_proj.weight", (FFN, WIDTH)
        yield p + "mlp.up_proj.weight", (FFN, WIDTH)
        yield p + "mlp.down_proj.weight", (WIDTH, FFN)
    yield "model.norm.weight", (WIDTH,)


def safetensors(vocab_size, seed):
    rng = random.Random(seed)
    header, data = {}, bytearray()
    for name, shape in tensors(vocab_size):
        n = shape[0] * (shape[1] if len(shape) == 2 else 1)
        values = [1.0] * n if len(shape) == 1 else [rng.gauss(0, 0.3) for _ in range(n)]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + 4 * n]}
        data += struct.pack("<%df" % n, *values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(data)


def config(vocab_size):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": WIDTH,
            "intermediate_size": FFN,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "num_hidden_layers": LAYERS, "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "vocab_size": vocab_size,
            "eos_token_id": vocab_size - 1,
            "torch_dtype": "float32"}


def write(directory, seed=1):
    os.makedirs(directory, exist_ok=True)
    vocab_size, tok = tokenizer()
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(config(vocab_size), f)
    with open(os.path.join(directory, "tokenizer.json"), "w") as f:
        json.dump(tok, f)
    with open(os.path.join(directory, "model.safetensors"), "wb") as f:
        f.write(safetensors(vocab_size, seed))
    return vocab_size


def grow(directory, rows):
    """Makes the vocabulary that large, which takes a while to load: tokens that no text has, with zeroes for embeddings; the file is sparse."""
    path = os.path.join(directory, "model.safetensors")
    with open(path, "rb") as f:
        n, = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
        data = f.read()
    name = "model.embed_tokens.weight"
    begin, end = header[name]["data_offsets"]
    assert begin == 0
    more = 4 * WIDTH * rows - end
    for key, entry in header.items():
        entry["data_offsets"] = [v + more for v in entry["data_offsets"]] if key != name else [0, end + more]
    header[name]["shape"][0] = rows
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data[:end])
        f.seek(more, os.SEEK_CUR)
        f.write(data[end:])
    with open(os.path.join(directory, "config.json")) as f:
        changed = dict(json.load(f), vocab_size=rows)
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(changed, f)
    with open(os.path.join(directory, "tokenizer.json")) as f:
        tokens = json.load(f)
    first = len(tokens["model"]["vocab"])
    tokens["model"]["vocab"].update(("<filler %d>" % i, i) for i in range(first, rows))
    with open(os.path.join(directory, "tokenizer.json"), "w") as f:
        json.dump(tokens, f)
