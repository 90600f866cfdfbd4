# SPDX-License-Identifier: Apache-2.0
"""The tests' Hugging Face directories as GGUF files, and GGUF files in parts. Standard library only.

    gguf_files.py IN.gguf STEM N      writes STEM-00001-of-0000N.gguf and so on, as llama.cpp's gguf-split does
"""
import json
import struct
import sys

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SIZES = {U8: 1, I8: 1, BOOL: 1, U16: 2, I16: 2, U32: 4, I32: 4, F32: 4, U64: 8, I64: 8, F64: 8}
TYPES = {"F32": 0, "BF16": 30}
ALIGNMENT = 32
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm"}


def text(s):
    s = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(s)) + s


def entry(key, kind, value):
    """One of the metadata: a number or a text, or a list of them."""
    def one(v):
        return text(v) if kind == STRING else struct.pack("<" + {U16: "H", U32: "I", I32: "i", F32: "f"}[kind], v)
    if isinstance(value, list):
        return text(key) + struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(map(one, value))
    return text(key) + struct.pack("<I", kind) + one(value)


def write(path, entries, tensors):
    """entries: bytes of each; tensors: (name, dims as the file has them, type, bytes)."""
    at, infos = 0, []
    for name, dims, kind, data in tensors:
        infos.append(text(name) + struct.pack("<I%dQIQ" % len(dims), len(dims), *dims, kind, at))
        at += len(data) + -len(data) % ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries + infos)
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % ALIGNMENT))
        for *_, data in tensors:
            f.write(data)
            f.write(bytes(-len(data) % ALIGNMENT))


def name_of(name):
    parts = name.split(".")
    if parts[1] == "layers":
        return "blk.%s.%s.weight" % (parts[2], NAMES[".".join(parts[3:-1])])
    return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[parts[1]]


def from_directory(directory, path):
    """A Llama with a byte-level BPE tokenizer, as tiny_model.py has them. (Rows of q and k stay where they are: another model.)"""
    def read(name):
        with open("%s/%s" % (directory, name), encoding="utf-8") as f:
            return json.load(f)
    config, tokenizer = read("config.json"), read("tokenizer.json")
    pieces = dict(tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]})
    special = {t["id"] for t in tokenizer["added_tokens"]}
    sizes = {"block_count": "num_hidden_layers", "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
             "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
             "attention.head_count_kv": "num_key_value_heads"}
    entries = [entry("general.architecture", STRING, "llama"), *(entry("llama." + k, U32, config[v]) for k, v in sizes.items()),
               entry("llama.attention.layer_norm_rms_epsilon", F32, config["rms_norm_eps"]),
               entry("llama.rope.freq_base", F32, config["rope_theta"]), entry("tokenizer.ggml.model", STRING, "gpt2"),
               entry("tokenizer.ggml.pre", STRING, "gpt-2"), entry("tokenizer.ggml.tokens", STRING, sorted(pieces, key=pieces.get)),
               entry("tokenizer.ggml.token_type", I32, [3 if i in special else 1 for i in range(len(pieces))]),
               entry("tokenizer.ggml.merges", STRING, [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]),
               entry("tokenizer.ggml.eos_token_id", U32, config["eos_token_id"])]
    with open("%s/model.safetensors" % directory, "rb") as f:
        n, = struct.unpack("<Q", f.read(8))
        header, data = json.loads(f.read(n)), f.read()
    write(path, entries, [(name_of(name), t["shape"][::-1], TYPES[t["dtype"]], data[slice(*t["data_offsets"])])
                          for name, t in header.items() if name != "__metadata__"])


class Reader:
    """What a file has: the bytes of each metadata entry, and its tensors."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.data = f.read()
        self.at = 4
        _, n_tensors, n_entries = self.take("<IQQ")
        self.entries = [self.entry() for _ in range(n_entries)]
        infos = [(self.string().decode(), self.dims(), *self.take("<IQ")) for _ in range(n_tensors)]
        base = self.at + -self.at % ALIGNMENT
        ends = sorted([begin for *_, begin in infos] + [len(self.data) - base])      # with the padding; a reader knows what is its own
        self.tensors = [(name, dims, kind, self.data[base + begin:base + ends[ends.index(begin) + 1]]) for name, dims, kind, begin in infos]

    def take(self, form):
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def string(self):
        n, = self.take("<Q")
        self.at += n
        return self.data[self.at - n:self.at]

    def dims(self):
        n, = self.take("<I")
        return self.take("<%dQ" % n)

    def skip(self, kind, n):
        for _ in range(n if kind == STRING else 0):
            self.string()
        self.at += 0 if kind == STRING else n * SIZES[kind]

    def entry(self):
        begin = self.at
        key = self.string()
        kind, = self.take("<I")
        assert key != b"general.alignment", "parts are written with the default alignment"
        self.skip(*(self.take("<IQ") if kind == ARRAY else (kind, 1)))
        return self.data[begin:self.at]


def split(path, stem, n):
    """The paths of n parts; the first has no tensors, as with gguf-split --no-tensor-first-split."""
    whole, paths = Reader(path), ["%s-%05d-of-%05d.gguf" % (stem, i + 1, n) for i in range(n)]
    each = -(-len(whole.tensors) // (n - 1))
    for i, part in enumerate(paths):
        said = [entry("split.no", U16, i), entry("split.count", U16, n), entry("split.tensors.count", I32, len(whole.tensors))]
        write(part, (whole.entries if i == 0 else []) + said, whole.tensors[each * (i - 1):each * i] if i else [])
    return paths


if __name__ == "__main__":
    print("\n".join(split(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
