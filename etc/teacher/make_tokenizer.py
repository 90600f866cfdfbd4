#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_tokenizer.py OUTPUT TEXT...: the tokenizer of the small teacher, a byte-level BPE (needs the Python package tokenizers, 0.23 here).

The result is committed: nothing but a new teacher runs this.
"""
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 2048
END_OF_TEXT = "<|endoftext|>"


def main(output, *texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train(list(texts), trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT],
                                                     initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.save(output)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
