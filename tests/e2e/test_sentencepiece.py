# SPDX-License-Identifier: Apache-2.0
"""Teachers with SentencePiece's kind of tokenizer (Mistral, Mixtral, Gemma from tokenizer.json; Llama 2 from GGUF) serve text, generate, and
teach students with and without it. The tokenizers are those of tests/golden/tokenizer, the models random."""
import json
import os
import random
import re
import shutil
import struct
import subprocess
import tempfile
import unittest

import kdserved
import test_training
import tiny_model

GOLDEN = os.path.join(os.environ.get("top_srcdir", os.path.join(os.path.dirname(__file__), "..", "..")), "tests", "golden", "tokenizer")
KDCTL = os.path.join(kdserved.BUILD, "kdctl")
WIDTH, FFN, HEADS, KV_HEADS, LAYERS, EXPERTS = 32, 64, 4, 2, 2, 4
TEXTS = ["The quick brown fox jumps over the lazy dog.", "  two spaces\n\nand lines \t end ", "don't caf\u00e9 \u6f22\u5b57 \U0001f600 \U0001d11e x\u0301 1234", " a"]


def golden(name):
    with open(os.path.join(GOLDEN, name), "rb") as f:
        return f.read()


def tokenizer_json(variant):
    spaces = json.loads(golden("spaces.json"))
    changes = spaces[variant]
    return {**spaces["base"], **changes, "model": {**spaces["base"]["model"], **changes.get("model", {})}}


def shapes(family, vocab):
    """Hugging Face's names."""
    head = WIDTH // HEADS
    yield "model.embed_tokens.weight", (vocab, WIDTH)
    for i in range(LAYERS):
        p = "model.layers.%d." % i
        for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            yield p + "self_attn.%s_proj.weight" % name, (rows * head, WIDTH)
        yield p + "self_attn.o_proj.weight", (WIDTH, HEADS * head)
        for name in ["input_layernorm", "post_attention_layernorm"] + ["pre_feedforward_layernorm", "post_feedforward_layernorm"] * (family == "gemma2"):
            yield p + name + ".weight", (WIDTH,)
        if family == "mixtral":
            yield p + "block_sparse_moe.gate.weight", (EXPERTS, WIDTH)
            for e in range(EXPERTS):
                for name, shape in (("w1", (FFN, WIDTH)), ("w2", (WIDTH, FFN)), ("w3", (FFN, WIDTH))):
                    yield p + "block_sparse_moe.experts.%d.%s.weight" % (e, name), shape
        else:
            for name, shape in (("gate", (FFN, WIDTH)), ("up", (FFN, WIDTH)), ("down", (WIDTH, FFN))):
                yield p + "mlp.%s_proj.weight" % name, shape
    yield "model.norm.weight", (WIDTH,)


CONFIGS = {"mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": None},
           "mixtral": {"architectures": ["MixtralForCausalLM"], "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "sliding_window": None},
           "gemma2": {"architectures": ["Gemma2ForCausalLM"], "head_dim": WIDTH // HEADS, "query_pre_attn_scalar": WIDTH // HEADS, "sliding_window": 64,
                      "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}}


def values(shape, seed):
    rng = random.Random(seed)
    n = shape[0] * (shape[1] if len(shape) == 2 else 1)
    return struct.pack("<%df" % n, *([1.0] * n if len(shape) == 1 else [rng.gauss(0, 0.3) for _ in range(n)]))


def write_directory(directory, family, variant):
    tokenizer = tokenizer_json(variant)
    ids = [t["id"] for t in tokenizer["added_tokens"]] + list(tokenizer["model"]["vocab"].values())
    vocab = max(ids) + 1
    config = {**tiny_model.config(vocab), "model_type": family, "bos_token_id": 1, "eos_token_id": 2, **CONFIGS[family]}
    header, data = {}, bytearray()
    for i, (name, shape) in enumerate(shapes(family, vocab)):
        more = values(shape, i)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(more)]}
        data += more
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    os.makedirs(directory)
    for name, what in (("config.json", json.dumps(config).encode()), ("tokenizer.json", json.dumps(tokenizer).encode()),
                       ("model.safetensors", struct.pack("<Q", len(text)) + text + bytes(data))):
        with open(os.path.join(directory, name), "wb") as f:
            f.write(what)


def write_gguf(path, vocabulary):
    """A model around a file that holds only a vocabulary."""
    base = golden(vocabulary + ".gguf")
    version, n_tensors, n_entries = struct.unpack_from("<IQQ", base, 4)
    assert n_tensors == 0
    vocab, = struct.unpack_from("<Q", base.split(b"tokenizer.ggml.scores")[1], 8)       # an array's type, its elements' type, how many

    def text(s):
        return struct.pack("<Q", len(s)) + s.encode()

    sizes = {"block_count": LAYERS, "context_length": 1024, "embedding_length": WIDTH, "feed_forward_length": FFN, "attention.head_count": HEADS,
             "attention.head_count_kv": KV_HEADS}
    entries = [text("llama." + k) + struct.pack("<II", 4, v) for k, v in sizes.items()]
    entries.append(text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5))
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}
    infos, data = b"", b""
    for i, (name, shape) in enumerate(shapes("llama", vocab)):
        parts = name.split(".")
        if parts[1] == "layers":
            name = "blk.%s.%s.weight" % (parts[2], names[".".join(parts[3:-1])])
        else:
            name = {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[parts[1]]
        infos += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", d) for d in reversed(shape)) + struct.pack("<IQ", 0, len(data))
        data += values(shape, i)
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", version, infos.count(b".weight"), n_entries + len(entries)) + base[24:] + b"".join(entries) + infos
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % 32) + data)


PIECE = 1 << 18       # of kdctl
KINDS = [("mistral", "mistral"), ("mixtral", "mixtral"), ("gemma2", "gemma"), ("gguf", "spm-prefix"), ("gguf", "spm-plain")]


class SentencePiece(unittest.TestCase):
    worker, finish = test_training.Training.worker, test_training.Training.finish

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory)

    def model(self, family, variant):
        path = os.path.join(self.directory, family + "-" + variant + (".gguf" if family == "gguf" else ""))
        if not os.path.exists(path):
            write_gguf(path, variant) if family == "gguf" else write_directory(path, family, variant)
        return path

    def serve(self, family, variant, *arguments):
        return kdserved.Daemon("--max-tokens", "512", *arguments, model=self.model(family, variant))

    def post(self, daemon, path, **body):
        status, reply = daemon.post(path, body)
        self.assertEqual(status, 200, reply)
        return reply

    def check_text(self, daemon, variant):
        expected = json.loads(golden("spaces_expected.json"))[variant]
        for i, (ids, want) in enumerate(zip(expected["full"], expected["decoded"])):
            skip = i % 2 == 0 or variant.startswith("spm")
            self.assertEqual(self.post(daemon, "/v1/detokenize", tokens=ids, skip_special=skip)["text"], want)
        for text in TEXTS:
            # Mixtral's puts no space before one that is there, and leaves the first out all the same: so it is.
            text = text.lstrip() if variant == "mixtral" else text
            got = self.post(daemon, "/v1/tokenize", text=text)
            self.assertEqual(got["tokens"][0], 1)
            self.assertEqual(self.post(daemon, "/v1/detokenize", tokens=got["tokens"], skip_special=True)["text"], text)
            ranges = got["offsets"][1:]
            self.assertEqual([0] + [end for _, end in ranges], [begin for begin, _ in ranges] + [len(text.encode())])
            scored = self.post(daemon, "/v1/score", sequences=[{"text": text}], own=True)["sequences"][0]
            self.assertEqual((scored["tokens"], scored["offsets"]), (got["tokens"], got["offsets"]))
            half = len(text) // 2
            parts = [self.post(daemon, "/v1/tokenize", text=text[:half])["tokens"][1:], self.post(daemon, "/v1/tokenize", text=text[half:], part=True)["tokens"]]
            self.assertEqual(self.post(daemon, "/v1/detokenize", tokens=sum(parts, []))["text"], text)

    def check_answers(self, daemon):
        """What an answer's text is, streamed or whole: what its tokens add to the prompt's."""
        prompt = self.post(daemon, "/v1/tokenize", text=TEXTS[0])["tokens"]
        for seed in range(3):
            ask = {"prompts": [{"text": TEXTS[0]}], "max_tokens": 24, "temperature": 1.5, "seed": seed, "ignore_eos": True}
            got, = self.post(daemon, "/v1/generate", **ask)["sequences"]
            kept = [t for t in got["tokens"] if t > 2]      # specials are not in the text
            both = self.post(daemon, "/v1/detokenize", tokens=prompt + kept, skip_special=True)["text"]
            if "\ufffd" not in both:
                self.assertEqual(TEXTS[0] + got["text"], both)
            status, _, body = daemon.http("POST", "/v1/generate", dict(ask, stream=True))
            self.assertEqual(status, 200)
            events = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
            pieces = [json.loads(e) for e in events if e != "[DONE]"]
            self.assertEqual("".join(p.get("text", "") for p in pieces), got["text"])
            done = self.post(daemon, "/v1/completions", prompt=TEXTS[0], max_tokens=4, temperature=0, echo=True)
            self.assertTrue(done["choices"][0]["text"].startswith(TEXTS[0]))

    def test_a_text_in_pieces_is_the_text(self):
        """Tokenized by the server (score) and by kdctl (capture), with a space put first but not before each piece."""
        path, store = os.path.join(self.directory, "corpus.txt"), os.path.join(self.directory, "store")
        text = test_training.corpus(60000)[:PIECE + 1000]
        with open(path, "w") as f:
            f.write(text)
        with self.serve("gguf", "spm-prefix") as daemon:
            want = self.post(daemon, "/v1/tokenize", text=text, add_special=False)["tokens"]
            command = [KDCTL, "--json", "--server", "unix:" + daemon.socket_path]
            run = {"capture_output": True, "text": True, "timeout": kdserved.PATIENCE}
            said = subprocess.run([*command, "score", path, "--length", "256", "--no-own", "--top-k", "1", "--last", "0"], **run)
            self.assertEqual(said.returncode, 0, said.stderr)
            lines = [json.loads(line) for line in said.stdout.splitlines()]
            self.assertEqual(sum((line["tokens"] for line in lines if "tokens" in line), []), [1] + want)
            with open(path, "w") as f:
                f.write(text[:8000])
            few = self.post(daemon, "/v1/tokenize", text=text[:8000], add_special=False)["tokens"]
            done = subprocess.run([*command, "capture", path, "--store", store, "--top-k", "2", "--length", "256"], **run)
            self.assertEqual(done.returncode, 0, done.stderr)
            told = json.loads(done.stdout.splitlines()[-1])["summary"]["input"]
            # <s> in each sequence, </s> behind the document
            self.assertEqual(told["tokens"] - told["sequences"] + told["left_over_tokens"], len(few) + 1)

    def test_text_and_answers(self):
        for family, variant in KINDS:
            with self.subTest(family + " " + variant), self.serve(family, variant) as daemon:
                self.check_text(daemon, variant)
                self.check_answers(daemon)

    def test_a_student_has_its_teachers_tokenizer(self):
        for family, variant in (("mistral", "mistral"), ("gguf", "spm-prefix")):
            with self.subTest(family), self.serve(family, variant) as daemon:
                output = os.path.join(self.directory, family)
                self.finish(self.worker(daemon, output, test_training.settings(self.directory, steps=8)))
                with kdserved.Daemon("--max-tokens", "64", model=os.path.join(output, "student")) as student:
                    self.assertEqual(student.get("/v1/model")[1]["tokenizer_id"], daemon.get("/v1/model")[1]["tokenizer_id"])
                    self.assertEqual(*[self.post(d, "/v1/tokenize", text=TEXTS[2]) for d in (student, daemon)])

    def test_students_learn_across_tokenizers_of_both_kinds(self):
        """Both ways between bytes and characters: the text is the same, the space put first is not in it."""
        tiny, settings = os.path.join(self.directory, "tiny"), {"student_context": 128, "steps": 16, "loss": ["forward-kl top-k=16", "cross-entropy weight=0.3"]}
        tiny_model.write(tiny)
        for family, variant, own in (("mistral", "mistral", tiny), ("gguf", "spm-prefix", tiny), (None, None, self.model("mistral", "mistral")),
                                     ("gemma2", "gemma", self.model("mistral", "mistral"))):
            daemon = self.serve(family, variant) if family else kdserved.Daemon(model=tiny)
            with self.subTest("%s to %s" % (family, own)), daemon:
                output = os.path.join(self.directory, "out-%s-%s" % (family, os.path.basename(own)))
                said = self.finish(self.worker(daemon, output, test_training.settings(self.directory, student_tokenizer=own, **settings)))
                matched, compared = [float(x) for x in re.search(r"tokenizer: (\d+) of its .* after ([\d.]+) %", said).groups()]
                self.assertGreater(matched, 60)
                self.assertGreater(compared, 30)
                with open(os.path.join(output, "metrics.jsonl")) as f:
                    lines = [json.loads(line) for line in f]
                losses = [line["loss_cross_entropy"] for line in lines if "loss" in line]
                self.assertLess(losses[-1], losses[0])


if __name__ == "__main__":
    unittest.main()
