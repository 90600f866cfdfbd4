#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/tokenizer/: what Hugging Face `tokenizers` says about 10,000 lines of mixed text.

    python3 tests/golden/make_tokenizer_golden.py [--teacher FILE.gguf]

fragments.json  pieces of text, from which make_line() here and line_make() in tests/unit/test_tokenizer_golden.c build the same lines
base.json       a byte-level BPE trained here, without pre-tokenization, so that merges cross every boundary a pattern should cut
variants.json   members that replace base.json's, one set for each family of tokenizers
wordpiece.json  BERT's kind, whole: uncased, cased, and one that only strips accents
expected.json   for each variant: the ids of the first lines, then the CRC-32 (of little-endian u32 ids) of each block of 20 lines
"teacher" is the tokenizer in the SmolLM2 GGUF. `transformers` reads it with the plain GPT-2 pattern, for GGUF names only "smollm";
SmolLM2's own tokenizer.json cuts digits first (Digits, then ByteLevel), so that is put in place here.
"""
import argparse
import json
import pathlib
import struct
import subprocess
import sys
import venv
import zlib

PACKAGES = ["tokenizers==0.23.3", "transformers==5.23.0", "gguf==0.19.0", "torch==2.15.0"]
HERE = pathlib.Path(__file__).resolve().parent / "tokenizer"
N_LINES, BLOCK, N_FULL = 10000, 20, 40
MASK = (1 << 64) - 1


class Random:
    """splitmix64; below(n) is its high half modulo n."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
        return ((z ^ z >> 31) >> 32) % n


def make_line(random, fragments):
    line = b""
    for _ in range(1 + random.below(12)):
        kind = random.below(32)
        if kind < 24:
            line += fragments[random.below(len(fragments))]
        elif kind < 26:
            line += chr(random.below(0x800)).encode()
        elif kind < 28:
            line += chr(0x800 + random.below(0xD000)).encode()
        elif kind < 29:
            line += chr(0x10000 + random.below(0x22000)).encode()
        elif kind < 30:
            line += bytes([0x80 + random.below(0x80)])
        else:
            line += fragments[random.below(len(fragments))] * (2 + random.below(9))
    return line


WORDS = """The quick brown fox jumps over the lazy dog while Distillation of language models asks the teacher about every position
and nothing else was said in the house that night because its people had gone to the river where they found what we're looking for
don't I'll you've he'd SHE'S we'RE it'S rock'n'roll naïve café Straße ſ'ſ don'ſ encyclopædia façade jalapeño""".split()
CODE = ["for (int i = 0; i < n; i++) {\n\t", "return -EINVAL;\n", "}\n\n", "def f(x):\n    return x**2\n", "#include <stdio.h>\r\n", "x+=1;//", "a[i][j]",
        "\"%s\\n\"", "<div class=\"a\">", "</div>", "https://example.org/a?b=1&c=%20", "user@example.org", "SELECT * FROM t;", "${VAR:-x}", "0x1F", "1e-5",
        "===", "->", "::", "/**", "*/", "...", "?!", "(a", "'a", "''s", "'", "\"", "_x", "__init__", "\t\t", "\r\n", "\r", "\n \n", "\n\n\n", " \t \n  "]
SCRIPTS = ["漢字", "日本語の文章です。", "カタカナ", "한국어", "각", "안녕하세요", "中文，标点！", "「引用」", "Привет, мир!", "Ελληνικά", "עברית", "שָׁלוֹם", "العربية", "مَرْحَبًا",
           "१२३", "नमस्ते", "ไทย", "ភាសា", "తెలుగు", "Việt Nam", "Ω", "Ⅷ", "½", "²³", "①", "٣٤٥", "𝟘𝟙", "𝕏", "𠀀𠮷", "﷽", "ﬁ"]
MARKS = ["e\u0301", "a\u0323\u0308", "a\u0308\u0323", "q\u0307\u0323", "A\u030a", "\u212b", "\u0344", "\u1100\u1161\u11a8", "\uac00\u11a8", "\uac01\u11a8",
         "\u0958", "\u0915\u093c", "\u2126", "\u1e9b\u0323", "a\u0315\u0300\u05ae\u0300b", "\u304b\u3099", "\u0301", "\u0327\u0301", "\u0b47\u0b3e", "\u00e9\u0323"]
EMOJI = ["\U0001f600", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f44d\U0001f3fd", "\u2764\ufe0f",
         "\U0001f1e9\U0001f1ea", "1\ufe0f\u20e3", "\U0001f937\U0001f3ff\u200d\u2640\ufe0f"]
SPACES = [" ", " ", " ", "  ", "   ", "        ", "\n", "\t", "\u00a0", "\u3000", "\u2028", "\u0085", "\u180e", "\u200b", "\u200d", "\ufeff", "\u1680", "\v", "\f"]
NUMBERS = ["0", "7", "12", "123", "1234", "1,234,567.89", " 42", "3.14159", "2026-11-21", "1st", "x2", "v1.2.3", "99%", "$5", "٢", "007"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_", "<tool>", "mask", "masked", "<café>"]
CONTROL = ["\0", "\x01", "\x04", "\x1b[0m", "\x7f"]

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
RAW_LEVEL = {**BYTE_LEVEL, "use_regex": False}
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
HEAD, TAIL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def cased(contraction, digits):
    """GPT-4o's pattern (also Phi-4-mini's, gpt-oss'), and with other arguments Tekken's (Mistral Nemo's)."""
    words = [rf"[^\r\n\p{{L}}\p{{N}}]?{HEAD}*{TAIL}+{contraction}", rf"[^\r\n\p{{L}}\p{{N}}]?{HEAD}+{TAIL}*{contraction}"]
    return "|".join(words + [digits, r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"])


def split(pattern, invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": invert}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def added(token_id, content, special, **flags):
    return {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special, **flags}


def make_variants(vocab):
    """Members that replace the base's. An added token that merging made, too, keeps that id; the others follow the vocabulary."""
    ids = iter(range(len(vocab), len(vocab) + 9))
    tool, mask, cafe = (vocab[text] if text in vocab else next(ids) for text in ("<tool>", "mask", "<café>"))
    bos = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    template = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    flags = [added(0, "<|endoftext|>", True), added(1, "<|im_start|>", True, rstrip=True), added(2, "<|im_end|>", True, lstrip=True),
             added(tool, "<tool>", False, normalized=False), added(mask, "mask", False, single_word=True), added(cafe, "<café>", False)]
    return {
        "gpt2": {"pre_tokenizer": BYTE_LEVEL},
        "smollm": {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL)},
        "llama3": {"pre_tokenizer": sequence(split(CL100K % r"\p{N}{1,3}"), RAW_LEVEL), "model": {"ignore_merges": True},
                   "post_processor": {"type": "Sequence", "processors": [BYTE_LEVEL, {"type": "TemplateProcessing", "single": template,
                                      "pair": template + [{"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": bos}]}},
        "qwen2": {"pre_tokenizer": sequence(split(CL100K % r"\p{N}"), RAW_LEVEL), "normalizer": {"type": "NFC"}, "added_tokens": flags},
        "o200k": {"pre_tokenizer": sequence(split(cased("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}")), RAW_LEVEL)},
        "tekken": {"pre_tokenizer": sequence(split(cased("", r"\p{N}")), RAW_LEVEL), "model": {"ignore_merges": True}},
        # What no hand-written matcher knows: runs through PCRE2, one step cutting the pieces of another.
        "regex": {"pre_tokenizer": sequence(split(r"\p{N}{1,3}"), split(r"[\r\n]+| ?\w+|\s+(?!\S)|[^\s\w]", True), {"type": "Digits", "individual_digits": False}, RAW_LEVEL)},
    }


def apply(base, changes):
    out = {**base, **changes}
    out["model"] = {**base["model"], **changes.get("model", {})}
    return out


def train(fragments):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers, decoders
    random = Random(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=SPECIAL[:3], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
                                  max_token_length=12)
    words = [w + s for w in WORDS for s in (" ", "  ", ", ", "\n")]
    tokenizer.train_from_iterator([make_line(random, fragments + [w.encode() for w in words]).decode("utf-8", "replace") for _ in range(4000)], trainer)
    return json.loads(tokenizer.to_str())


def train_wordpiece(fragments, normalizer):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    random = Random(2)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + SPECIAL[:2], show_progress=False,
                                        limit_alphabet=300)
    tokenizer.train_from_iterator([make_line(random, fragments).decode("utf-8", "replace") for _ in range(3000)], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    kept = sorted((i, t) for t, i in model["vocab"].items() if "\0" not in t)      # which a key of JSON in C cannot hold
    return {**model, "vocab": {t: i for i, (_, t) in enumerate(kept)}}


def make_wordpiece(fragments):
    names = ["[CLS]", "[SEP]"]
    specials = {n: {"id": n, "ids": [i], "tokens": [n]} for i, n in enumerate(names, 2)}
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    pair = single + [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials}
    kinds = {"bert": (dict(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True), template, True),
             "bert-cased": (dict(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=False),
                            {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}, False),
             "bert-accents": (dict(clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False), None, True)}
    out = {}
    for name, (normalizer, post, cleanup) in kinds.items():
        model = train_wordpiece(fragments, normalizer)
        tokens = [added(model["vocab"][t], t, True, **({"rstrip": True} if "start" in t else {})) for t in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + SPECIAL[:2]]
        out[name] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": {"type": "BertNormalizer", **normalizer},
                     "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": post,
                     "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": cleanup}, "model": model}
    return out


def expect(tokenizer, lines):
    """ids of the first lines and a checksum of each block; every second block without specials, so that both ways are compared."""
    full, checks, block = [], [], b""
    for i, line in enumerate(lines):
        tokenizer.encode_special_tokens = i // BLOCK % 2 == 1
        ids = tokenizer.encode(line.decode("utf-8", "replace"), add_special_tokens=True).ids
        if i < N_FULL:
            full.append(ids)
        block += struct.pack(f"<{len(ids)}I", *ids)
        if i % BLOCK == BLOCK - 1:
            checks.append(f"{zlib.crc32(block):08x}")
            block = b""
    return {"full": full, "blocks": "".join(checks)}


def teacher_tokenizer(path):
    from transformers import AutoTokenizer
    loaded = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    from tokenizers import Tokenizer
    spec = json.loads(loaded.backend_tokenizer.to_str())
    spec["pre_tokenizer"] = sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL)
    return Tokenizer.from_str(json.dumps(spec))


def ensure_packages():
    try:
        from importlib.metadata import version
        if all(version(p.split("==")[0]) == p.split("==")[1] for p in PACKAGES):
            return
    except Exception:
        pass
    place = pathlib.Path.home() / ".cache" / "kdserved" / "golden-venv"
    if pathlib.Path(sys.prefix) == place:
        sys.exit("the pinned packages did not install")
    venv.create(place, with_pip=True)
    subprocess.run([place / "bin" / "pip", "install", "-q", *PACKAGES], check=True)
    sys.exit(subprocess.run([place / "bin" / "python", __file__, *sys.argv[1:]]).returncode)


def write(name, value, **kwargs):
    (HERE / name).write_text(json.dumps(value, ensure_ascii=False, **kwargs) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=pathlib.Path)
    arguments = parser.parse_args()
    ensure_packages()
    from tokenizers import Tokenizer

    HERE.mkdir(exist_ok=True)
    texts = WORDS + [" " + w for w in WORDS] + CODE + SCRIPTS + MARKS + EMOJI + 3 * SPACES + NUMBERS + SPECIAL + CONTROL
    fragments = [t.encode() for t in texts]
    write("fragments.json", texts, indent=0)
    base = train(fragments)
    variants = make_variants(base["model"]["vocab"])
    write("base.json", base, separators=(",", ":"))
    write("variants.json", variants, indent=1)
    random = Random(2026)
    lines = [make_line(random, fragments) for _ in range(N_LINES)]
    expected = {}
    for name, changes in variants.items():
        expected[name] = expect(Tokenizer.from_str(json.dumps(apply(base, changes))), lines)
    wordpiece = make_wordpiece(fragments)
    write("wordpiece.json", wordpiece, separators=(",", ":"))
    for name, spec in wordpiece.items():
        tokenizer = Tokenizer.from_str(json.dumps(spec))
        expected[name] = expect(tokenizer, lines)
        tokenizer.encode_special_tokens = False
        expected[name]["decoded"] = [tokenizer.decode(ids, skip_special_tokens=i % 2 == 0) for i, ids in enumerate(expected[name]["full"])]
    if arguments.teacher:
        expected["teacher"] = expect(teacher_tokenizer(arguments.teacher), lines)
    elif (HERE / "expected.json").exists():
        expected["teacher"] = json.loads((HERE / "expected.json").read_text())["teacher"]
    write("expected.json", expected, separators=(",", ":"))


if __name__ == "__main__":
    main()
