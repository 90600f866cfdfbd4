#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the SentencePiece files in tests/golden/tokenizer/: what `tokenizers` and `sentencepiece` say about the 10,000 lines of
make_tokenizer_golden.py (whose fragments.json must be there).

    python3 tests/golden/make_sentencepiece_golden.py

spaces.json           a BPE over characters with byte fallback, trained here without pre-tokenization; and members that replace its own, one
                      set for each layout of tokenizer.json found with Llama 2, Mistral, Mixtral and Gemma, and for each option of them
spm-*.gguf            vocabularies trained by `sentencepiece`, written as GGUF metadata by `gguf`
spaces_expected.json  as expected.json, and the text of the first lines' ids
"""
import io
import json
import struct
import zlib

from make_tokenizer_golden import BLOCK, HERE, N_FULL, N_LINES, WORDS, Random, added, apply, expect, make_line, write

MARK = "\u2581"
BYTES = ["<0x%02X>" % b for b in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]
PREPEND, REPLACE = {"type": "Prepend", "prepend": MARK}, {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
JOIN = [{"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def training_lines(fragments):
    random = Random(3)
    words = [w + s for w in WORDS for s in (" ", "  ", ", ", "\n")]
    lines = [make_line(random, fragments + [w.encode() for w in words]).decode("utf-8", "replace") for _ in range(4000)]
    return [line.replace("\0", "") for line in lines]


def train(lines):
    from tokenizers import Tokenizer, models, normalizers, trainers
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", MARK)
    trainer = trainers.BpeTrainer(vocab_size=1100, special_tokens=SPECIAL + BYTES, limit_alphabet=160, show_progress=False, max_token_length=12)
    tokenizer.train_from_iterator(lines, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["id"] < len(SPECIAL)]
    return {**spec, "normalizer": None, "pre_tokenizer": None, "post_processor": None}


def sequence(name, *steps):
    return {"type": "Sequence", name: list(steps)}


def metaspace(scheme, split):
    return {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": split}


def template(token, token_id):
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = single + [{"SpecialToken": {"id": token, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}}}


def make_variants(vocab):
    specials = [added(i, t, True) for i, t in enumerate(SPECIAL)]

    def number(*tokens):
        """Those that the vocabulary has keep that id; the others follow it in order, as the reference numbers them."""
        ids = iter(range(max(vocab.values()) + 1, 1 << 20))
        return specials + [added(vocab[text] if text in vocab else next(ids), text, special, **flags) for text, special, flags in tokens]

    chat = [("<|im_start|>", True, {}), ("<|im_end|>", True, {"rstrip": True}), ("<|endoftext|>", True, {"lstrip": True})]
    words = [("mask", False, {"single_word": True}), ("<tool>", False, {}), ("<caf\u00e9>", False, {"lstrip": True})]
    runs = [(t, False, {"normalized": False}) for t in ("\n\n", "\n\n\n", MARK * 2, MARK * 3, "<tool>")]
    llama = {"normalizer": sequence("normalizers", PREPEND, REPLACE), "decoder": sequence("decoders", *JOIN, STRIP), "post_processor": template("<s>", 1)}
    first = {"pre_tokenizer": metaspace("first", False), "decoder": sequence("decoders", *JOIN, STRIP), "post_processor": template("<s>", 1)}
    gemma_split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return {
        "llama": {**llama, "added_tokens": [{**t, "normalized": t["id"] < len(SPECIAL)} for t in number(*chat)]},
        "mistral": {**llama, "added_tokens": specials},
        "mistral-words": {**llama, "added_tokens": number(*chat, *words)},
        "mixtral": {**first, "added_tokens": number(*chat)},
        "first-split": {**first, "pre_tokenizer": metaspace("first", True), "added_tokens": number(*chat, *words)},
        "gemma": {"normalizer": REPLACE, "pre_tokenizer": gemma_split, "decoder": sequence("decoders", *JOIN), "post_processor": template("<s>", 1),
                  "added_tokens": number(*chat, *runs)},
        "always": {"pre_tokenizer": metaspace("always", True), "decoder": metaspace("always", True), "added_tokens": number(*chat, *words),
                   "model": {"byte_fallback": False, "ignore_merges": True}},
        "never": {"pre_tokenizer": metaspace("never", False), "decoder": metaspace("never", False), "added_tokens": specials,
                  "model": {"byte_fallback": False, "fuse_unk": False}},
        "no-unknown": {"normalizer": REPLACE, "decoder": sequence("decoders", JOIN[0], JOIN[2]), "added_tokens": [],
                       "model": {"byte_fallback": False, "unk_token": None}},
    }


def ids_check(all_ids):
    full, checks, block = all_ids[:N_FULL], [], b""
    for i, ids in enumerate(all_ids):
        block += struct.pack(f"<{len(ids)}I", *ids)
        if i % BLOCK == BLOCK - 1:
            checks.append(f"{zlib.crc32(block):08x}")
            block = b""
    return {"full": full, "blocks": "".join(checks)}


def train_sentencepiece(lines, **options):
    import sentencepiece
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=0.98, minloglevel=2, max_sentencepiece_length=12, hard_vocab_limit=False, num_threads=1, **options)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def write_gguf(path, sp, prefix):
    import gguf
    writer = gguf.GGUFWriter(str(path), "llama")
    types, kinds = [], [(sp.is_unknown, 2), (sp.is_control, 3), (sp.is_unused, 5), (sp.is_byte, 6)]
    for i in range(sp.vocab_size()):
        found = [t for ask, t in kinds if ask(i)]
        types.append(found[0] if found else 4 if sp.id_to_piece(i) in USER else 1)
    # A converter writes user-defined tokens with their spaces.
    pieces = [sp.id_to_piece(i).replace(MARK, " ") if types[i] == 4 else sp.id_to_piece(i) for i in range(sp.vocab_size())]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores([sp.get_score(i) for i in range(sp.vocab_size())])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    if not prefix:
        writer.add_add_space_prefix(False)      # true where the file does not say
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


USER = ["<|im_start|>", "mask", "\n\n", MARK * 2, MARK * 3]


def main():
    from tokenizers import Tokenizer
    fragments = [t.encode() for t in json.loads((HERE / "fragments.json").read_text())]
    texts = training_lines(fragments)
    base = train(texts)
    variants = make_variants(base["model"]["vocab"])
    write("spaces.json", {"base": base, **variants}, separators=(",", ":"))
    random = Random(2026)
    lines = [make_line(random, fragments) for _ in range(N_LINES)]
    expected = {}
    for name, changes in variants.items():
        tokenizer = Tokenizer.from_str(json.dumps(apply(base, changes)))
        expected[name] = expect(tokenizer, lines)
        tokenizer.encode_special_tokens = False
        # Llama's: special tokens that are normalized are not left out by `tokenizers` 0.23, which is no model for us.
        expected[name]["decoded"] = [tokenizer.decode(ids, skip_special_tokens=i % 2 == 0 and name != "llama") for i, ids in enumerate(expected[name]["full"])]
    kinds = {"spm-prefix": (True, dict(vocab_size=900, byte_fallback=True)),
             "spm-plain": (False, dict(vocab_size=900, byte_fallback=True, user_defined_symbols=USER, add_dummy_prefix=False)),
             "spm-unknown": (True, dict(vocab_size=500))}
    for name, (prefix, options) in kinds.items():
        sp = train_sentencepiece([line for text in texts for line in text.split("\n")], **options)
        write_gguf(HERE / f"{name}.gguf", sp, prefix)
        expected[name] = ids_check([[1] + sp.encode(line.decode("utf-8", "replace")) for line in lines])
        expected[name]["decoded"] = [sp.decode(ids) for ids in expected[name]["full"]]
    write("spaces_expected.json", expected, separators=(",", ":"))


if __name__ == "__main__":
    main()
